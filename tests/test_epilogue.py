"""Elementwise ops on a product's result are done in the product's kernel: results on every backend, bits, structure, errors."""
import numpy as np
import pytest

pytest.importorskip("llvmlite")

from engram.compiler import driver
from engram.compiler.diagnostics import RuntimeError_
from engram.compiler.ir.core import Module
from engram.compiler.ir.parser import parse_module
from engram.compiler.ir.printer import print_module
from engram.compiler.ir.types import DTYPES, TensorType, f32
from engram.compiler.ir.verifier import VerificationError, verify
from engram.frontend import elaborate_function
from engram.interp.interpreter import Interpreter
from engram.session import load_program

SOURCE = """
fn linear(x: f32[B, i], w: f32[i, o], b: f32[o]) -> f32[B, o] { relu(x @ w + b) }
fn residual(x: f32[B, i], w: f32[i, o], b: f32[o], r: f32[B, o]) -> f32[B, o] { r + gelu(x @ w + b) }
fn both(x: f32[B, i], w: f32[i, o], b: f32[o]) -> (f32[B, o], f32[B, o]) { let u = x @ w; (u, tanh(u + b)) }
fn batched(x: f32[A, H, B, i], w: f32[A, H, i, o], s: f32[H, B]) -> f32[A, H, B, o] { (x @ w) * reshape(s, [1, H, B, 1]) }
fn three(x: f32[A, B, C, D, i], w: f32[A, B, C, i, o], s: f32[B, D]) -> f32[A, B, C, D, o] { (x @ w) * reshape(s, [1, B, 1, D, 1]) }
fn row(x: f32[i], w: f32[i, o], b: f32[o]) -> f32[o] { tanh(x @ w + b) }
fn column(x: f32[B, i], w: f32[i], b: f32[B]) -> f32[B] { tanh(x @ w + b) }
fn transposed(x: f32[i, B], w: f32[o, i], b: f32[o], m: f32[B, o]) -> f32[B, o] { where(m > 0, x.T @ w.T + b, 0.0) }
fn update(x: f32[B, i], d: f32[B, o], w: f32[i, o]) -> f32[i, o] { w - 0.1 * (x.T @ d) }
fn scaled(x: i32[B, i], w: i32[i, o], s: f32[o]) -> f32[B, o] { f32(x @ w) * s }
fn sixteen(x: bf16[B, i], w: bf16[i, o], b: bf16[o]) -> bf16[B, o] { relu(x @ w + b) }
"""
CASES = [("linear", [(9, 40), (40, 33), (33,)]), ("linear", [(3, 700), (700, 35), (35,)]), ("residual", [(17, 30), (30, 45), (45,), (17, 45)]),
         ("both", [(20, 64), (64, 32), (32,)]), ("batched", [(2, 3, 10, 20), (2, 3, 20, 17), (3, 10)]),
         ("three", [(2, 3, 2, 5, 20), (2, 3, 2, 20, 18), (3, 5)]), ("row", [(100,), (100, 70), (70,)]), ("column", [(70, 100), (100,), (70,)]),
         ("transposed", [(40, 21), (33, 40), (33,), (21, 33)]), ("update", [(30, 17), (30, 40), (17, 40)]), ("update", [(700, 5), (700, 40), (5, 40)])]
WANT = {"linear": lambda x, w, b: np.maximum(x @ w + b, 0), "three": lambda x, w, s: x @ w * s[None, :, None, :, None],
        "update": lambda x, d, w: w - 0.1 * (x.T @ d), "row": lambda x, w, b: np.tanh(x @ w + b)}
DTYPES_OF = {"scaled": ("i32", "i32", "f32"), "sixteen": ("bf16",) * 3}


def build(name: str, shapes, dtypes=None):
    types = [TensorType(DTYPES[d], s) for d, s in zip(dtypes or ["f32"] * len(shapes), shapes)]
    return elaborate_function(load_program(SOURCE), name, types)


def arrays(shapes, dtypes=None):
    rng = np.random.default_rng(0)
    return [(rng.integers(-100, 100, s) if DTYPES[d].is_int else rng.standard_normal(s)).astype(DTYPES[d].numpy)
            for s, d in zip(shapes, dtypes or ["f32"] * len(shapes))]


def kernels(module: Module) -> list[str]:
    """Host-level kernels, in order; a contraction with a region as "contract+"."""
    out = []

    def visit(block):
        for op in block.ops:
            if op.name in ("loop.contract", "loop.parallel", "loop.copy"):
                out.append(op.name.partition(".")[2] + ("+" if op.name == "loop.contract" and op.regions else ""))
            elif op.name in ("loop.for", "loop.if", "loop.while"):
                for r in op.regions:
                    visit(r)
    for f in module.funcs.values():
        visit(f.body)
    return out


def run(backend, name, shapes, args, dtypes=None, threads=None):
    e = build(name, shapes, dtypes)
    program = driver.build(e.module, backend, threads=threads)
    return [program.to_host(x) for x in program.call(e.entry, args)]


@pytest.mark.parametrize("name, shapes", CASES)
def test_against_the_interpreter(name, shapes):
    args = arrays(shapes)
    e = build(name, shapes)
    want = driver.build(e.module, "interp").call(e.entry, args)
    loop = driver.lower(build(name, shapes).module, "loop")
    assert kernels(loop) == ["contract+"]
    for got in (Interpreter(loop).call(e.entry, args), run("cpu", name, shapes, args)):
        for x, y in zip(got, want):
            np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)
    text = print_module(loop)
    assert print_module(parse_module(text)) == text


@pytest.mark.parametrize("machine", ["", "avx2", "generic"])
def test_machines_and_threads(machine, monkeypatch):
    from engram.codegen.cpu.target import host_target
    monkeypatch.setenv("ENGRAM_CPU", machine)
    if machine and host_target().name != machine:
        pytest.skip(f"this processor cannot stand in for {machine}")
    for name, shapes in [("linear", [(90, 400), (400, 75), (75,)]), ("three", [(2, 3, 2, 12, 20), (2, 3, 2, 20, 18), (3, 12)]),
                         ("update", [(130, 90), (130, 100), (90, 100)]), ("row", [(300,), (300, 200), (200,)])]:
        args = arrays(shapes)
        results = [run("cpu", name, shapes, args, threads=n)[0] for n in (1, 2, 4)]
        assert len({r.tobytes() for r in results}) == 1
        np.testing.assert_allclose(results[0], WANT[name](*(x.astype(np.float64) for x in args)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name, shapes", [("scaled", [(20, 50), (50, 33), (33,)]), ("sixteen", [(20, 50), (50, 33), (33,)])])
def test_narrow_operands(name, shapes):
    dtypes = DTYPES_OF[name]
    args = arrays(shapes, dtypes)
    e = build(name, shapes, dtypes)
    want, = driver.build(e.module, "interp").call(e.entry, args)
    loop = driver.lower(build(name, shapes, dtypes).module, "loop")
    assert kernels(loop) == ["contract+"]
    for got in (run("cpu", name, shapes, args, dtypes)[0], Interpreter(loop).call(e.entry, args)[0]):
        np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=1e-2 if name == "sixteen" else 1e-6, atol=1e-2)


def test_the_product_keeps_its_bits():
    shapes = [(40, 900), (900, 70), (70,)]
    args = arrays(shapes)
    u, _ = run("cpu", "both", shapes, args)
    e = elaborate_function(load_program("fn f(x: f32[B, i], w: f32[i, o]) -> f32[B, o] { x @ w }"), "f", [TensorType(f32, s) for s in shapes[:2]])
    plain, = driver.build(e.module, "cpu").call(e.entry, args[:2])
    assert u.tobytes() == plain.tobytes()


def test_opencl():
    devices = pytest.importorskip("engram.codegen.opencl.device")
    ok, why = devices.available()
    if not ok:
        pytest.skip(f"no OpenCL device: {why}")
    for name, shapes in [CASES[2], CASES[4], CASES[9]]:
        args = arrays(shapes)
        for x, y in zip(run("opencl", name, shapes, args), run("cpu", name, shapes, args)):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)


# ---- structure -------------------------------------------------------------------------------------------------------------


def step_kernels(source: str, x, y) -> list[str]:
    from engram.datasets import Dataset
    from engram.session import train_plan
    plan = train_plan(load_program(source), "t", given={"bench": Dataset("bench", {"x": x, "y": y})})
    loop = driver.lower(plan.phases[0].module, "loop")
    return kernels(Module([loop.funcs["step"]]))


def test_kernels_of_an_mlp_step():
    """Three layers: forward 3, backward through 2 of them, 3 weight gradients that are Adam's updates at the same time."""
    source = """import "std/nn.nn"
layer M() {
  a = Linear(20, 64)
  b = Linear(64, 32)
  c = Linear(32, 20)
  fn (x: f32[B, 20]) -> f32[B, 20] { x |> a |> relu |> b |> relu |> c }
}
train t { model = M(); data = dataset("bench"); batch = 16; holdout = 0
  minimize cross_entropy(model(x), y) using adam(1e-3) }
"""
    rng = np.random.default_rng(0)
    found = step_kernels(source, rng.standard_normal((16, 20), np.float32), rng.integers(0, 20, 16))
    assert found.count("contract+") == 7 and found.count("contract") == 1      # the logits: softmax needs whole rows of them
    assert len(found) <= 14


def test_kernels_of_a_recurrent_step():
    source = "fn rnn(xs: f32[T, B, h], w: f32[h, h]) -> f32[T, B, h] { scan x in xs with s = zeros(B, h) { let s = tanh(x + s @ w); yield s; s } }"
    e = elaborate_function(load_program(source), "rnn", [TensorType(f32, (5, 8, 32)), TensorType(f32, (32, 32))])
    assert kernels(driver.lower(e.module, "loop")).count("contract+") == 1


def test_kernels_of_a_transformer_block():
    """Forward: bias, gelu, and both residual additions belong to the products; between them the norms and the attention."""
    source = """import "std/nn.nn"
layer Block(C) {
  l = LayerNorm(C)
  f = Linear(C, 4 * C)
  g = Linear(4 * C, C)
  a = Linear(C, 3 * C)
  p = Linear(C, C)
  fn (x: f32[B, T, C]) -> f32[B, T, C] {
    let (q, k, v) = chunk(a(l(x)), 3, dim = -1)
    let x = x + p(softmax(causal(q @ k.T / sqrt(C)), dim = -1) @ v)
    x + g(gelu(f(l(x)), approximate = "tanh"))
  }
}
"""
    from engram.frontend import elaborate_call, instantiate
    e = elaborate_call(instantiate(load_program(source), "Block", [64]), [TensorType(f32, (2, 16, 64))])
    found = kernels(driver.lower(e.module, "loop"))
    assert found.count("contract+") == 4
    assert len(found) <= 9


# ---- errors ----------------------------------------------------------------------------------------------------------------


def test_errors_in_an_epilogue_are_reported():
    types = [TensorType(DTYPES["i32"], s) for s in ((20, 50), (50, 33), (33,))]
    e = elaborate_function(load_program("fn f(x: i32[B, i], w: i32[i, o], d: i32[o]) -> i32[B, o] { (x @ w) // d }"), "f", types)
    program = driver.build(e.module, "cpu")
    x, w, d = np.ones((20, 50), np.int32), np.full((50, 33), 3, np.int32), np.full(33, 4, np.int32)
    np.testing.assert_array_equal(program.call(e.entry, [x, w, d])[0], 37)
    d[30] = 0
    with pytest.raises(RuntimeError_, match="integer division by zero"):
        program.call(e.entry, [x, w, d])


@pytest.mark.parametrize("args, yielded, message", [
    ("%s: f64, %i: i64, %j: i64", "", "the region takes the sum"), ("%s: f32, %i: i64", "", "the region takes the sum"),
    ("%s: f32, %i: i64, %j: i64", "%i", "the region yields what is stored")])
def test_verifier(args, yielded, message):
    text = f"""module attributes {{stage = "loop"}} {{
func @f(%a: buf<f32[4,6]>, %b: buf<f32[6,5]>, %c: buf<f32[4,5]>) -> () attributes {{n_inputs = 2, n_outputs = 1}} {{
  loop.contract(%c, %a, %b) {{out = "mn", lhs = "mk", rhs = "kn", accumulate = false}} ({{
  ^({args}):
    scf.yield({yielded})
  }})
  func.return()
}} }}"""
    with pytest.raises(VerificationError, match=message):
        verify(parse_module(text))


# ---- recurrent products ----------------------------------------------------------------------------------------------------

RECURRENT = """
fn run(xs: f32[T, B, h], w: f32[h, h]) -> f32[T, B, h] { scan x in xs with s = zeros(B, h) { let s = tanh(x + s @ w); yield s; s } }
fn transposed(xs: f32[T, B, h], w: f32[h, h]) -> (f32[T, B, h], f32[T, B, h]) {
  scan x in xs with s = zeros(B, h) { let t = tanh(x + s @ w.T); yield (t, s); t }
}
"""


@pytest.mark.parametrize("backend", ["cpu", "interp"])
def test_recurrent_products_against_numpy(backend):
    """The stack of a carry's values, rows shifted by one, and a matrix that is transposed in front of the loop."""
    rng = np.random.default_rng(3)
    for T, B, h in [(5, 3, 40), (1, 2, 48), (6, 4, 32)]:
        xs, w = rng.standard_normal((T, B, h)).astype(np.float32), (rng.standard_normal((h, h)) / h).astype(np.float32)
        e = elaborate_function(load_program(RECURRENT), "transposed", [TensorType(f32, xs.shape), TensorType(f32, w.shape)])
        new, old = driver.build(e.module, backend).call(e.entry, [xs, w])
        s = np.zeros((B, h))
        for t in range(T):
            np.testing.assert_allclose(old[t], s, rtol=1e-4, atol=1e-5)
            s = np.tanh(xs[t] + s @ w.T)
            np.testing.assert_allclose(new[t], s, rtol=1e-4, atol=1e-5)


def test_reversed_scan_keeps_its_stack():
    text = """module attributes {stage = "tensor"} { func @f(%xs: f32[5,3,32], %w: f32[32,32], %s: f32[3,32]) -> (f32[3,32], f32[5,3,32], f32[5,3,32]) {
    %end, %new, %old = scf.scan(%s, %xs) {length = 5, n_carry = 1, reverse = true} ({
    ^(%i: i64[], %c: f32[3,32], %x: f32[3,32]):
      %p = tensor.dot_general(%c, %w) {lhs_batch = [], rhs_batch = [], lhs_contract = [1], rhs_contract = [0]} : f32[3,32]
      %t = tensor.add(%p, %x) : f32[3,32]
      scf.yield(%t, %t, %c)
    }) : f32[3,32], f32[5,3,32], f32[5,3,32]
    func.return(%end, %new, %old) } }"""
    rng = np.random.default_rng(4)
    args = [rng.standard_normal(s).astype(np.float32) for s in ((5, 3, 32), (32, 32), (3, 32))]
    args[1] /= 32
    want = Interpreter(parse_module(text)).call("f", args)
    loop = driver.lower(parse_module(text), "loop")
    for got in (driver.build(parse_module(text), "cpu").call("f", args), Interpreter(loop).call("f", args)):
        for x, y in zip(got, want):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_what_an_epilogue_reads_beside_its_product_is_known():
    """The weight and its momentum are read row by row beside the product, the bias is not."""
    from engram.codegen.cpu import contract
    from engram.codegen.cpu.emit_kernel import Errors
    from engram.codegen.cpu.epilogue import emit_epilogue
    from engram.codegen.cpu.irtext import Module as Text
    from engram.codegen.cpu.target import host_target
    text = """
module {
  func @f(%x: buf<f32[30,16]>, %d: buf<f32[30,40]>, %w: buf<f32[16,40]>, %m: buf<f32[16,40]>, %b: buf<f32[40]>, %out: buf<f32[16,40]>) -> () attributes {n_inputs = 5, n_outputs = 1} {
    loop.contract(%out, %x, %d) {out = "bc", lhs = "ab", rhs = "ac", accumulate = false} ({
    ^(%s: f32, %i: i64, %j: i64):
      %u = loop.load(%b, %j) : f32
      %v = loop.load(%w, %i, %j) : f32
      %n = loop.load(%m, %i, %j) : f32
      %y = scalar.add(%u, %v) : f32
      %z = scalar.add(%y, %n) : f32
      %r = scalar.sub(%z, %s) : f32
      scf.yield(%r)
    })
    func.return()
  }
}
"""
    op = next(o for o in parse_module(text).funcs["f"].body.ops if o.name == "loop.contract")
    target = host_target()
    code = emit_epilogue(Text(target), op, contract.plan(op, target), Errors())
    found = {code.captured[i].name: stride for i, stride in code.streams}
    assert found == {"w": 40, "m": 40}
