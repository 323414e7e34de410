"""Work counted on the loop IR, and `--profile`: the table names the user's lines, and FLOPs and bytes of known programs are exact."""
from __future__ import annotations

import json

import numpy as np
import pytest
from engram import profiler as P
from engram.benchmarks.machine import Limits
from engram.cli import main
from engram.compiler import driver
from engram.compiler.ir import TensorType, f32, i64
from engram.compiler.ops import work
from engram.compiler.pass_manager import Options
from engram.frontend import elaborate_function
from engram.session import load_program

LIMITS = Limits(threads=2, fma=100e9, fma_one=50e9, read=10e9, triad=8e9, both=8e9, cache=32 << 20)


def kernels(source: str, *types: TensorType) -> list[work.Kernel]:
    e = elaborate_function(load_program("prog.nn", source), "f", list(types))
    loop = driver.lower(e.module, "loop")
    return [work.kernel_of(f, op) for f in loop.funcs.values() for op in f.body.ops if op.name in work.KERNELS]


def F(*shape):
    return TensorType(f32, shape)


def total(ks):
    return sum(k.flops for k in ks), sum(k.bytes_read for k in ks), sum(k.bytes_written for k in ks)


def test_a_product():
    k, = kernels("fn f(a: f32[m, k], b: f32[k, n]) -> f32[m, n] { a @ b }", F(30, 40), F(40, 50))
    assert (k.flops, k.bytes_read, k.bytes_written, k.exact) == (2 * 30 * 40 * 50, 4 * (1200 + 2000), 4 * 1500, True)
    assert k.op == "contract" and k.loc.file == "prog.nn" and k.loc.line == 1


def test_elementwise():
    ks = kernels("fn f(a: f32[n], b: f32[n]) -> f32[n] { exp(a * b) + abs(a) }", F(1000), F(1000))
    assert total(ks) == (3000, 8000, 4000) and all(k.exact for k in ks), "abs is no arithmetic; a is read once"


def test_a_broadcast_operand_is_read_once():
    assert total(kernels("fn f(a: f32[m, n], b: f32[n]) -> f32[m, n] { a + b }", F(100, 64), F(64))) == (6400, 4 * (6400 + 64), 4 * 6400)


def test_a_sum_counts_its_additions():
    flops, read, _ = total(kernels("fn f(a: f32[m, n]) -> f32[m] { sum(a * a, dim = 1) }", F(64, 100)))
    assert (flops, read) == (2 * 64 * 100, 4 * 6400)


def test_rows_of_a_gather():
    t = TensorType(i64, (10,))
    ks = kernels("fn f(w: f32[v, d], i: int[n]) -> f32[n, d] { w[i] * 2.0 }", F(1000, 16), t)
    assert total(ks)[0] == 160 and total(ks)[1] == 4 * 160 + 8 * 10, "not the whole table"


def test_integers_count_nothing():
    t = TensorType(i64, (10,))
    assert total(kernels("fn f(a: int[n]) -> int[n] { a * 2 + 1 }", t))[0] == 0


def test_a_loop_up_to_its_neighbours_index_counts_half():
    from engram.compiler.ir.parser import parse_module
    m = parse_module("""module {
  func @f(%a: buf<f32[9]>, %o: buf<f32[9]>) -> () attributes {n_inputs = 1, n_outputs = 1} {
    loop.parallel() {extents = [9]} ({
    ^(%i: i64):
      %zero = scalar.constant() {value = 0} : i64
      %one = scalar.constant() {value = 1} : i64
      %hi = scalar.add(%i, %one) : i64
      %s = loop.reduce(%zero, %hi) {kinds = ["add"]} ({
      ^(%k: i64):
        %x = loop.load(%a, %k) : f32
        scf.yield(%x)
      }) : f32
      loop.store(%s, %o, %i)
      scf.yield()
    })
    func.return()
  }
}""")
    f = m.funcs["f"]
    k = work.kernel_of(f, f.body.ops[0])
    assert k.flops == sum(range(1, 10)) and k.bytes_read == 36 and k.exact


def test_a_run_time_bound_is_an_estimate():
    source = "fn f(x: f32[n]) -> f32 { while total < 10.0 with total = 0.0 { total + sum(x) } }"
    e = elaborate_function(load_program("prog.nn", source), "f", [F(100)])
    loop = driver.lower(e.module, "loop")
    found = [work.kernel_of(f, op) for f in loop.funcs.values() for op in f.walk() if op.name == "loop.parallel"]
    assert found and all(k.flops >= 0 for k in found)


@pytest.mark.parametrize("flops, size, each, wanted", [(1e9, 1e6, 0.02, ("compute", 0.5)), (1e6, 1e8, 0.02, ("memory", 0.5)), (1e6, 1e8, 0.001, ("cache", 10)),
                                                       (10, 10, 2e-6, ("launch", None))])
def test_what_bounds_a_kernel(flops, size, each, wanted):
    r = P.Row(work.Kernel("f", "contract", "", None, (), flops, size, 0.0, True), 10, 10 * each, each)
    assert r.bound(LIMITS) == (wanted[0], wanted[1] and pytest.approx(wanted[1])) and r.bound(None) == ("-", None)


def _backends():
    from engram.codegen.opencl import device
    return ["cpu", pytest.param("opencl", marks=pytest.mark.skipif(not device.available()[0], reason="no OpenCL device"))]


@pytest.mark.parametrize("backend", _backends())
def test_programs_count_what_runs(backend):
    p = P.Profiler(backend)
    e = elaborate_function(load_program("prog.nn", "fn f(a: f32[n, n], b: f32[n, n]) -> f32[n, n] {\n  tanh(a @ b)\n}\n"), "f", [F(64, 64)] * 2)
    program = driver.build(e.module, backend, threads=2, options=Options(profiler=p))
    a = np.random.default_rng(0).standard_normal((2, 64, 64), np.float32)
    for _ in range(3):
        out = program.to_host(program.call(e.entry, list(a))[0])
    np.testing.assert_allclose(out, np.tanh(a[0] @ a[1]), atol=1e-5)
    profile = p.take()
    assert profile.calls == 3 and profile.wall > 0 and {r.runs for r in profile.rows} == {3}
    assert sum(r.kernel.flops for r in profile.rows) == 2 * 64 ** 3 + 64 ** 2
    assert {r.kernel.loc.line for r in profile.rows} == {2} and all(0 < r.best <= r.seconds for r in profile.rows)
    assert p.take().rows == [] and p.take().calls == 0
    assert (profile.built > 0) == (backend == "opencl")                  # drivers build a kernel when it first runs
    program.call(e.entry, list(a))
    assert p.take().built == 0


TRAIN = '''import "std/nn.nn"
layer Net(h) {
  hidden = Linear(4, h)
  out    = Linear(h, 2)
  fn (x: f32[B, 4]) -> f32[B, 2] {
    let u = hidden(x)
    let v = sin(u)
    out(v)
  }
}
train t {
  model   = Net(16)
  data    = dataset("random", n = 64, x = [4], y_below = 2)
  batch   = 32
  epochs  = 3
  holdout = 0
  minimize cross_entropy(model(x), y) using sgd(0.1)
}
run r {
  let a = normal(0, 1, size = [32, 32])
  print(sum(a @ a) > -1e9)
}
'''


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.nn").write_text(TRAIN)
    return tmp_path


def test_run_with_a_profile(place, capsys):
    assert main(["run", "t.nn", "--profile", "-q", "--out", "o"]) == 0
    text = capsys.readouterr().out
    assert "profile of train t: 6 steps" in text and "FMA peak" in text and "measuring took" in text
    data = json.loads((place / "o" / "profile.json").read_text())
    assert data["steps"] == 6 and abs(sum(k["share"] for k in data["kernels"]) - 1) < 1e-9
    lines = {x for k in data["kernels"] for x in k["lines"]}
    assert "t.nn:7" in lines, "sin(u)"
    assert any(x.startswith("std/optim.nn:") for x in lines)
    assert all(k["runs"] in (6, 12) for k in data["kernels"]), "neither the initial weights nor measuring are among the steps"


def test_run_block_with_a_profile(place, capsys):
    assert main(["run", "t.nn", "r", "--profile", "--out", "o"]) == 0
    assert "profile of run r" in capsys.readouterr().out
    data = json.loads((place / "o" / "profile.json").read_text())
    assert any(k["flops"] == 2 * 32 ** 3 for k in data["kernels"])


def test_the_interpreter_has_no_kernels(place, capsys):
    assert main(["run", "t.nn", "--profile", "--backend", "interp"]) == 1
    assert "--profile: the interpreter has no kernels" in capsys.readouterr().err


def test_bench_with_a_profile(tmp_path, capsys, monkeypatch):
    from engram.cli import bench
    monkeypatch.setattr(bench, "PROFILED", 0.01)
    assert main(["bench", "matmul_512", "--profile", "--out", str(tmp_path / "p.json")]) == 0
    assert "matmul.nn:2" in capsys.readouterr().out
    kernel, = json.loads((tmp_path / "p.json").read_text())["matmul_512"]["kernels"]
    assert kernel["flops"] == 2 * 512 ** 3 and kernel["flops_per_s"] > 0 and kernel["bound"] in ("compute", "memory", "cache")


def test_attention_counts_the_half_that_causality_leaves():
    """Blocks above the diagonal are not visited; those on it are, whole."""
    ks = kernels("fn f(q: f32[H, T, d], k: f32[H, T, d], v: f32[H, T, d]) -> f32[H, T, d] { softmax(causal(q @ k.T / sqrt(d)), dim = -1) @ v }", *[F(12, 512, 64)] * 3)
    least = 12 * 512 * 513 / 2 * 64 * 4
    assert least <= total(ks)[0] <= 1.3 * least and all(k.exact for k in ks) and total(ks)[1:] == (3 * 12 * 512 * 64 * 4, 12 * 512 * 64 * 4)
