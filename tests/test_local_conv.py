"""Convolution layers that learn locally: the rule written out against its local loss, the same on every backend, nothing computed for the
layer before; data augmentation."""
from __future__ import annotations

import json
from pathlib import Path

import engram as eg
import numpy as np
import pytest
from engram.codegen.cpu.program import CpuProgram
from engram.codegen.opencl import device as devices
from engram.compiler import driver
from engram.compiler.diagnostics import CompileError
from engram.compiler.ir.parser import parse_module
from engram.interp.interpreter import Interpreter
from engram.passes.lower_to_loops import LowerToLoops
from engram.passes.plan_buffers import PlanBuffers
from test_rule_library import plan

pytest.importorskip("llvmlite")

NET = """
layer Net(weight = f32, int8_inputs = false) {
  c1 = LocalConv(1, 3, 5, pool = 2, norm = false, weight = weight, int8_inputs = int8_inputs)
  c2 = LocalConv(3, 4, 3, weight = weight, int8_inputs = int8_inputs)
  fn (x: f32[B, 1, 8, 8]) {
    let h = c1(x)
    (h, c2(h))
  }
}
layer Deep() {
  c1 = LocalConv(1, 3, 5, pool = 2, norm = false)
  c2 = LocalConv(3, 4, 3)
  c3 = LocalConv(4, 3, 3, pool = 2)
  c4 = LocalConv(3, 5, 1)
  fn (x: f32[B, 1, 8, 8]) { x |> c1 |> c2 |> c3 |> c4 }
}
"""
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((8, 1, 8, 8)).astype(np.float32), RNG.integers(0, 3, 8)
FEATURES = "fn (h) { flatten(adaptive_avg_pool2d(h, 2), 1) }"


def net(rules, model="Net()", first="let _ = model(x)"):
    body = f"model = {model}; batch = 4\n {first}\n" + "".join(f" learn model.{layer} by {r}\n" for layer, r in rules) + " measure m = mean(x)"
    return plan(NET, body, x=X, y=Y)


def steps(p, backend, start=None, count=2):
    """The slots by path before and after some steps."""
    program = driver.build(p.module, backend, threads=2 if backend == "cpu" else None)
    slots = [np.asarray(program.to_host(s)) for s in program.call("init", [np.array(5, np.uint64)])]
    names = [s.path for s in p.slots]
    slots = [np.array((start or {}).get(n, s)) for n, s in zip(names, slots)]
    before = dict(zip(names, (s.copy() for s in slots)))
    for k in range(count):
        args = [program.to_device(np.array(s)) for s in slots]
        args += [np.array(k, np.int64), np.array(0, np.int64), np.array(7, np.uint64), X[4 * k:4 * k + 4], Y[4 * k:4 * k + 4]]
        slots = [np.asarray(program.to_host(s)) for s in program.call("step", args)[:len(slots)]]
    return before, dict(zip(names, slots))


@pytest.mark.parametrize("weight", ["f32", "ternary"])
@pytest.mark.parametrize("backend", ["interp", "cpu"])
def test_the_written_rule_is_the_local_loss(backend, weight):
    """Same start, same features: the changes agree to 1e-5, of weights, biases and readouts."""
    model = f"Net(weight = {weight}, int8_inputs = {str(weight != 'f32').lower()})"     # what the rule sees is what is multiplied
    written = net([("c1", "three_factor_conv(3, 0.5, grid = 2, drop = 0, optimizer = sgd) given y"),
                   ("c2", "three_factor_conv(3, 0.5, grid = 2, drop = 0, optimizer = sgd) given y")], model)
    derived = net([(c, f"pred(3, 0.5, optimizer = sgd, features = {FEATURES}) given y") for c in ("c1", "c2")], model)
    before, a = steps(written, backend, count=1)
    _, b = steps(derived, backend, {n.replace("three_factor_conv", "pred"): v for n, v in before.items()}, count=1)
    changes = 0
    for name, start in before.items():
        da, db = a[name] - start, b[name.replace("three_factor_conv", "pred")] - start
        if start.dtype == np.float32 and "running" not in name:
            assert np.abs(da - db).max() <= 1e-5 * np.abs(da).max() + 1e-7, name
            changes += da.any()
    assert changes == 8                                      # w, b, m, c of two layers


WRITTEN = "three_factor_conv(3, 0.5, grid = 2, optimizer = sgd) given y"
CASES = [("Deep()", 2, [("c1", "three_factor_conv(3, 0.1, grid = 2) given y"), ("c2", f"pred(3, 0.1, features = {FEATURES}) given y"),
                        ("c3", "predsim(3, 0.1) given y"), ("c4", "soft_hebb(0.1, 2.0, anti = true)")]),
         ("Net(weight = ternary, int8_inputs = true)", 1, [("c1", WRITTEN), ("c2", WRITTEN)])]


@pytest.mark.parametrize("model, count, rules", CASES, ids=["float", "ternary"])
def test_backends_agree(model, count, rules):
    """Ternary: one step, whose sums are exact; afterwards a rounding may part two backends."""
    p = net(rules, model)
    runs = [steps(p, backend, count=count) for backend in ("interp", "cpu", *(("opencl",) if devices.available()[0] else ()))]
    changed = [n for n, v in runs[0][1].items() if not np.array_equal(v, runs[0][0][n])]
    assert all(f"model.{c}.w" in changed for c, _ in rules)
    for _, other in runs[1:]:
        for n, v in runs[0][1].items():
            assert np.isfinite(v).all()
            np.testing.assert_allclose(v, other[n], rtol=3e-4, atol=3e-5, err_msg=n)


def test_no_input_gradient_is_computed():
    """Each layer's step is two contractions with windows: the convolution and its weight gradient; none with reversed weights."""
    p = net([(c, "three_factor_conv(3, 0.1, grid = 2) given y") for c in ("c1", "c2")])
    func = driver.lower(p.module, "loop").funcs["step"]
    overlapping = [op for op in func.walk() if op.name == "loop.contract"
                   and any(len(set(v.type.element_strides)) < v.type.rank for v in op.operands)]
    assert sorted(sorted(op.operands[0].type.shape) for op in overlapping) == [[3, 3, 3, 4], [3, 4, 8, 8], [3, 5, 5], [4, 4, 4, 4]]
    assert not any(op.name == "tensor.reverse" for op in driver.lower(p.module, "tensor").walk())


POOL = """module attributes {stage = "tensor"} {
  func @f(%u: f32[2,4,SIZE,SIZE], %d: f32[2,4,4,4]) -> (f32[2,4,SIZE,SIZE]) {
    %0 = tensor.windows(%u) {size = [2, 2], stride = [2, 2], dilation = [1, 1]} : f32[2,4,4,4,2,2]
    %1 = tensor.fused(%0, %d) {kind = "rows", domain = [2, 4, 4, 4, 4], rows = 4} ({
    ^(%2: f32[2,4,4,4,2,2], %3: f32[2,4,4,4]):
      %4 = tensor.reshape(%2) {shape = [2, 4, 4, 4, 4]} : f32[2,4,4,4,4]
      %5 = tensor.argmax(%4) {dim = 4} : i64[2,4,4,4]
      %6 = tensor.iota() {shape = [2, 4, 4, 4, 4], dim = 4, dtype = i64} : i64[2,4,4,4,4]
      %7 = tensor.broadcast(%5) {shape = [2, 4, 4, 4, 4], dims = [0, 1, 2, 3]} : i64[2,4,4,4,4]
      %8 = tensor.compare(%6, %7) {predicate = "eq"} : bool[2,4,4,4,4]
      %9 = tensor.broadcast(%3) {shape = [2, 4, 4, 4, 4], dims = [0, 1, 2, 3]} : f32[2,4,4,4,4]
      %10 = tensor.constant() {value = 0.0, type = f32[2,4,4,4,4]} : f32[2,4,4,4,4]
      %11 = tensor.select(%8, %9, %10) : f32[2,4,4,4,4]
      scf.yield(%11)
    }) : f32[2,4,4,4,4]
    %12 = tensor.fused(%1) {kind = "elementwise"} ({
    ^(%13: f32[2,4,4,4,4]):
      %14 = tensor.reshape(%13) {shape = [2, 4, 4, 4, 2, 2]} : f32[2,4,4,4,2,2]
      %15 = tensor.fold_windows(%14) {size = [2, 2], stride = [2, 2], dilation = [1, 1], shape = [SIZE, SIZE]} : f32[2,4,SIZE,SIZE]
      scf.yield(%15)
    }) : f32[2,4,SIZE,SIZE]
    func.return(%12)
  }
}
"""


@pytest.mark.parametrize(("size", "kernels"), [(8, 1), (9, 2)], ids=["covered", "a rest"])
def test_a_pools_gradient_is_written_where_it_belongs(size, kernels):
    """One kernel where the windows cover everything, else one for the windows' values and one for their places. The first of equal
    values gets all of it."""
    module = PlanBuffers().apply(LowerToLoops().apply(parse_module(POOL.replace("SIZE", str(size)))))
    assert sum(op.name == "loop.parallel" for op in module.walk()) == kernels
    u = RNG.integers(0, 4, (2, 4, size, size)).astype(np.float32)
    d = RNG.standard_normal((2, 4, 4, 4)).astype(np.float32)
    want = np.zeros_like(u)
    for b, c, i, j in np.ndindex(d.shape):
        y, x = np.unravel_index(u[b, c, 2 * i:2 * i + 2, 2 * j:2 * j + 2].argmax(), (2, 2))
        want[b, c, 2 * i + y, 2 * j + x] = d[b, c, i, j]
    for program in (Interpreter(module), CpuProgram(module, 2)):
        assert np.array_equal(program.call("f", [u, d])[0], want)


# ---- augmentation -----------------------------------------------------------------------------------------------------

AUGMENT = """
fn moved(x: num[B, .., H, W], dy: int[B], dx: int[B]) { shift(x, dy, dx, fill = 9) }
fn mirrored(x: num[B, .., H, W], dy: int[B], dx: int[B]) { shift(x, dy, dx, reflect = true) }
fn plain(x: num[B, .., H, W], key: key) { random_flip(random_shift(x, 2, key = key), key = key) }
"""


@pytest.mark.parametrize("backend", ["interp", "cpu"])
def test_shift_is_padding_and_cutting(backend):
    p = eg.compile(AUGMENT, backend=backend)
    x = RNG.integers(0, 200, (3, 2, 5, 6)).astype(np.uint8)
    dy, dx = np.array([0, 2, -1]), np.array([3, 0, -2])
    for f, how in (("moved", dict(constant_values=9)), ("mirrored", dict(mode="reflect"))):
        wide = np.pad(x, ((0, 0), (0, 0), (3, 3), (3, 3)), **how)
        want = np.stack([wide[s, :, 3 - a:8 - a, 3 - b:9 - b] for s, (a, b) in enumerate(zip(dy, dx))])
        got = p[f](x, dy, dx)
        assert got.dtype == np.uint8 and np.array_equal(got, want)
        assert np.array_equal(p[f](x[:, 0].astype(np.float32), dy, dx), want[:, 0])


def test_outside_of_training_images_pass_through():
    x = RNG.standard_normal((4, 3, 6, 7)).astype(np.float32)
    assert np.array_equal(eg.compile(AUGMENT).plain(x, key=3), x)


def augmented(change, seed=7):
    """What a training step sees of 256 equal images: the weights learn to be them."""
    text = """layer Keep() { param seen: f32[256, 4, 5] = 0
  fn (x: f32[256, 4, 5]) -> f32[256, 4, 5] { x - seen } }"""
    image = np.arange(20, dtype=np.float32).reshape(4, 5)
    p = plan(text, f"model = Keep(); batch = 256\n let v = {change}\n minimize sum(square(model(v))) / 2 using sgd(1.0)\n measure m = mean(model({change}))",
             x=np.stack([image] * 256))
    program = driver.build(p.module, "cpu")
    slots = program.call("init", [np.array(1, np.uint64)])
    out = program.call("step", [*slots, np.array(0, np.int64), np.array(0, np.int64), np.array(seed, np.uint64), p.dataset.fields["x"]])
    module, entry = p.measure(256)
    mean = driver.build(module, "cpu").call(entry, [np.zeros((256, 4, 5), np.float32), np.array(seed, np.uint64), p.dataset.fields["x"]])[0]
    assert float(mean) == 9.5                                # measuring sees the images as they are
    return out[0], image


def test_random_shifts_are_of_each_sample_and_uniform():
    seen, image = augmented("random_shift(x, 1, fill = -1)")
    wide = np.pad(image, 1, constant_values=-1)
    kinds = [wide[1 - a:5 - a, 1 - b:6 - b] for a in (-1, 0, 1) for b in (-1, 0, 1)]
    counts = [sum(np.array_equal(s, k) for s in seen) for k in kinds]
    assert sum(counts) == 256 and min(counts) > 12
    assert not np.array_equal(seen, augmented("random_shift(x, 1, fill = -1)", seed=8)[0])
    assert np.array_equal(seen, augmented("random_shift(x, 1, fill = -1)")[0])


def test_random_flips_are_of_each_sample():
    seen, image = augmented("random_flip(x, p = 0.25)")
    flipped = sum(np.array_equal(s, image[:, ::-1]) for s in seen)
    assert 40 < flipped < 90 and flipped + sum(np.array_equal(s, image) for s in seen) == 256


def test_a_shift_is_smaller_than_the_image():
    with pytest.raises(CompileError, match="a shift is smaller than the image"):
        eg.compile("fn f(x: f32[2, 4, 5], key: key) { random_shift(x, 4, key = key) }").f(np.zeros((2, 4, 5), np.float32))


# ---- the examples -----------------------------------------------------------------------------------------------------

def test_cifar_example_learns_from_binary_files(tmp_path, capsys):
    """Ten kinds of coloured noise in CIFAR-10's format; the test batch is what is held out."""
    from engram.cli import main
    rng = np.random.default_rng(0)
    kinds = rng.uniform(0, 255, (10, 3, 4, 4)).repeat(8, 2).repeat(8, 3)
    for name, n in [*((f"data_batch_{k}.bin", 40) for k in range(1, 6)), ("test_batch.bin", 60)]:
        y = rng.integers(0, 10, n)
        x = np.clip(kinds[y] + rng.normal(0, 30, (n, 3, 32, 32)), 0, 255)
        np.concatenate([y[:, None], x.reshape(n, -1)], 1).astype(np.uint8).tofile(tmp_path / name)
    example = Path(__file__).parent.parent / "examples" / "cifar_local.nn"
    settings = [f"data={tmp_path}", "batch=20", "epochs=2"]
    assert main(["run", str(example), "--out", str(tmp_path / "out"), *(a for s in settings for a in ("--set", s))]) == 0
    shown = capsys.readouterr()
    assert "200 samples to learn from, 60 held out" in shown.out + shown.err
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["final"]["accuracy"] > 0.5
