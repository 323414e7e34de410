"""First values: made one by one, with the bits that the whole `init` function gives; what is given is not drawn."""
from __future__ import annotations

import numpy as np
import pytest
from engram import train
from engram.compiler import driver
from engram.compiler.diagnostics import CompileError
from engram.first_values import fill, make, places
from engram.frontend import elaborate_init, first_values, instantiate, load

NET = """
layer Cell(n, s) {
  param w: f32[n, n] = normal(0, s)
  param u: f32[n, n] = uniform(-1, 1)
  param o: f32[n, n] = eye(n) + kaiming_normal(n)
  param b: f32[n] = 0
  param c: bf16[n] = 1.5
  param z: f32[n] = -0.0
  state k: i64 = 3
  state e: f32[n] = scan t in 0 .. 3 with y = ones([n]) { y * 2 + f32(t) }
  fn (x: f32[B, n]) -> f32[B, n] { x @ w }
}
layer Net(depth, n = 8) {
  cells = [Cell(n, 0.5)] * depth
  last = Cell(n, 0.25)
  fn (x: f32[B, n]) -> f32[B, n] { last(cells(x)) }
}
"""
KEY = np.array(12345, np.uint64)


def init_of(depth: int):
    return elaborate_init(instantiate(load("<string>", NET), "Net", (depth,)))


@pytest.mark.parametrize("backend", ["interp", "cpu", "opencl"])
def test_the_same_bits_as_the_whole_function(backend):
    if backend == "opencl":
        devices = pytest.importorskip("engram.codegen.opencl.device")
        if not devices.available()[0]:
            pytest.skip("no OpenCL device")
    e = init_of(2)
    program = driver.build(e.module, backend)
    whole = [np.asarray(program.to_host(r)) for r in program.call("init", [KEY])]
    apart = make(e.module, "init", KEY, backend, lambda m: driver.build(m, backend))
    assert len(apart) == len(whole) == 24
    for info, a, b in zip(e.results, apart, whole):
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes(), info.name
        assert a.flags.writeable
    some = make(e.module, "init", KEY, backend, lambda m: driver.build(m, backend), [9, 1])
    assert [a.tobytes() for a in some] == [whole[9].tobytes(), whole[1].tobytes()]


def test_equal_layers_share_functions():
    small, firsts = first_values(init_of(2).module)
    large, more = first_values(init_of(20).module)
    assert len(more) == 21 * 8 and len(firsts) == 3 * 8
    assert len(large.attrs["entries"]) == len(small.attrs["entries"]) == 10      # of two kinds of Cell: w, u, o, e and z
    assert len({f.entry for f in more if f.entry}) == 10
    drawn = [(f.entry, f.numbers) for f in more if f.numbers]
    assert len(set(drawn)) == len(drawn) == 21 * 3                               # each with a number of its own


def test_numbers_are_told_apart():
    """-0.0 is not 0.0 and True is not 1: equal in Python, not in bits."""
    program = load("<string>", "layer L() { param a: f32[2] = 0.0 * ones([2])\n param b: f32[2] = -0.0 * ones([2])\n fn (x: f32[2]) -> f32[2] { x } }")
    e = elaborate_init(instantiate(program, "L", ()))
    a, b = make(e.module, "init", KEY, "interp", lambda m: driver.build(m, "interp"))
    assert not np.signbit(a).any() and np.signbit(b).all()


def plan_of(text: str = ""):
    from engram.datasets import Dataset
    from engram.session import load_program, train_plan
    program = load_program("<string>", 'import "std/nn.nn"\ntrain t {\n model = Linear(3, 4)\n data = dataset("d")\n batch = 2\n holdout = 0\n'
                           + text + "\n minimize cross_entropy(model(x), y) using adam(0.1) }")
    data = Dataset("d", {"x": np.ones((4, 3), "f4"), "y": np.zeros(4, np.int64)})
    return train_plan(program, "t", given={"d": data})


def test_what_is_given_is_not_made(monkeypatch):
    built = []
    build = driver.build
    monkeypatch.setattr(driver, "build", lambda module, *a, **k: built.append(module) or build(module, *a, **k))
    t = train.Trainer(plan_of())
    t.initialise(0)
    w = {"w": np.full((3, 4), 7, "f4"), "b": np.full(4, 8, "f4")}
    t.set_values(w)
    assert all(np.array_equal(v, w[k]) for k, v in t.values(("param",)).items())
    assert not built                                          # weights given, adam's zeros need no code
    assert all(not np.any(v) for v in t.values(("own",)).values())
    t.set_values({**w, "w": -w["w"]})
    assert w["w"].min() == 7                                  # copied, not taken
    drawn = train.Trainer(plan_of())
    drawn.initialise(0)
    assert np.any(drawn.values()["w"]) and len(built) == 1


def test_values_larger_than_the_machine(monkeypatch):
    from engram.compiler import memory
    monkeypatch.setattr(memory, "machine_memory", lambda: 100)
    with pytest.raises(CompileError, match=r"`t` keeps 208 bytes of parameters and state; this machine has 100 bytes") as e:
        train.Trainer(plan_of()).initialise(0)
    assert "the largest tensor is f32[3, 4]: 48 bytes" in str(e.value)


def test_memory_for_what_lives_together():
    from engram.compiler.ir import TensorType, f32, i64
    types = [TensorType(f32, (3,)), TensorType(i64), TensorType(f32, (0, 2)), TensorType(f32, (1 << 12, 1 << 11))]
    arrays = places(types)
    assert [(a.shape, a.dtype.name) for a in arrays] == [((3,), "float32"), ((), "int64"), ((0, 2), "float32"), ((4096, 2048), "float32")]
    assert all(a.ctypes.data % 64 == 0 and a.flags.c_contiguous and a.flags.writeable and not a.any() for a in arrays if a.size)
    large = np.random.default_rng(0).standard_normal((4096, 2048)).astype("f4")
    fill([(arrays[0], np.arange(3, dtype="f4")), (arrays[1], np.array(5)), (arrays[3], large.T.copy().T)])
    assert arrays[0].tolist() == [0, 1, 2] and arrays[1] == 5 and np.array_equal(arrays[3], large)
    del arrays[0], arrays[0]
    assert np.array_equal(arrays[1], large)                   # the memory lives as long as any of them
