"""Products of operands that are narrower than their sums: i8 x i8 to i32, bf16 x bf16 to f32, mixed; on every backend."""
import numpy as np
import pytest
from engram.compiler import driver
from engram.compiler.ir.parser import parse_module
from engram.compiler.ir.types import DTYPES, widens
from engram.interp.interpreter import Interpreter

pytest.importorskip("llvmlite")

PAIRS = [("f32", "bf16", "bf16"), ("f32", "f16", "f32"), ("i32", "i8", "i8"), ("i32", "u8", "i8"), ("f32", "f32", "i8"), ("f64", "f32", "bf16"),
         ("i64", "i32", "i8"), ("i32", "i32", "i16")]


def text(acc, left, right, m, n, k, tb, cast):
    """The product of [m, k] and [k, n] (or its transpose), with the widening written as casts or as the op's dtype."""
    shape = f"{n},{k}" if tb else f"{k},{n}"
    dims = f"lhs_batch = [], rhs_batch = [], lhs_contract = [1], rhs_contract = [{int(tb)}]"
    body = (f"%p = tensor.cast(%x) {{dtype = {acc}}} : {acc}[{m},{k}]\n%q = tensor.cast(%y) {{dtype = {acc}}} : {acc}[{shape}]\n"
            f"%o = tensor.dot_general(%p, %q) {{{dims}}} : {acc}[{m},{n}]" if cast else
            f"%o = tensor.dot_general(%x, %y) {{{dims}, dtype = {acc}}} : {acc}[{m},{n}]")
    return (f'module attributes {{stage = "tensor"}} {{ func @f(%x: {left}[{m},{k}], %y: {right}[{shape}]) -> ({acc}[{m},{n}]) {{\n{body}\n'
            "func.return(%o) } }")


def array(rng, dtype, shape):
    d = DTYPES[dtype]
    if d.is_int:
        return rng.integers(max(d.min, -100), min(d.max, 200), shape).astype(d.numpy)
    return rng.standard_normal(shape).astype(d.numpy)


def close(acc, got, a, b, tb):
    wide = np.int64 if DTYPES[acc].is_int else np.longdouble
    a, b = a.astype(wide), b.astype(wide)
    b = b.T if tb else b
    if DTYPES[acc].is_int:
        np.testing.assert_array_equal(got, a @ b)
    else:
        assert np.all(np.abs(got - a @ b) <= (a.shape[1] + 1) * np.finfo(DTYPES[acc].numpy).eps * (np.abs(a) @ np.abs(b)))


@pytest.mark.parametrize("acc, left, right", PAIRS)
def test_every_backend(acc, left, right):
    rng = np.random.default_rng(0)
    for (m, n, k), tb, cast in [((5, 33, 40), False, True), ((1, 70, 75), True, False), ((2, 77, 33), False, False), ((70, 1, 64), True, True)]:
        m_ = parse_module(text(acc, left, right, m, n, k, tb, cast))
        a, b = array(rng, left, (m, k)), array(rng, right, (n, k) if tb else (k, n))
        close(acc, Interpreter(m_).call("f", [a, b])[0], a, b, tb)
        loop = driver.lower(parse_module(text(acc, left, right, m, n, k, tb, cast)), "loop")
        found = [op for op in loop.walk() if op.name.startswith("loop.contract")]       # small integers: packed codes
        assert found[0].name == "loop.contract_packed" or [v.type.dtype.name for v in found[0].operands] == [acc, left, right]
        for backend in ("cpu", "interp"):
            close(acc, driver.build(parse_module(text(acc, left, right, m, n, k, tb, cast)), backend).call("f", [a, b])[0], a, b, tb)
        close(acc, Interpreter(loop).call("f", [a, b])[0], a, b, tb)


@pytest.mark.parametrize("machine", ["avx2", "generic"])
@pytest.mark.parametrize("kind", ["f32:bf16:bf16", "i32:i8:i8", "f32:f32:i8", "f32:f16:f16"])
def test_other_machines_and_threads(kind, machine):
    from test_cpu_gemm import Gemm
    run, rng = Gemm(kind, machine), np.random.default_rng(1)
    acc, left, right = kind.split(":")
    for m, n, k in [(15, 33, 17), (1, 100, 50), (90, 40, 400)]:
        a, b = array(rng, left, (1, 1, m, k)), array(rng, right, (1, 1, k, n))
        results = []
        for threads in (1, 2, 4):
            c = np.full((1, 1, m, n), 77, DTYPES[acc].numpy)
            results.append(run(a, b, c, threads=threads).tobytes())
        assert len(set(results)) == 1
        close(acc, c[0, 0], a[0, 0], b[0, 0], False)


def test_opencl():
    devices = pytest.importorskip("engram.codegen.opencl.device")
    ok, why = devices.available()
    if not ok:
        pytest.skip(f"no OpenCL device: {why}")
    rng = np.random.default_rng(2)
    for acc, left, right in [("i32", "i8", "i8"), ("f32", "bf16", "f32"), ("f32", "i8", "bf16")]:
        for m, n, k in [(20, 33, 40), (3, 70, 75), (2, 3, 700)]:
            program = driver.build(parse_module(text(acc, left, right, m, n, k, False, False)), "opencl")
            a, b = array(rng, left, (m, k)), array(rng, right, (k, n))
            close(acc, program.to_host(program.call("f", [a, b])[0]), a, b, False)


def test_widens():
    yes = [("i8", "i32"), ("u8", "i16"), ("i8", "f16"), ("bf16", "f32"), ("f16", "f32"), ("f32", "f64"), ("i16", "f32"), ("i32", "f64"), ("f32", "f32")]
    no = [("i8", "u8"), ("u8", "i8"), ("bf16", "f16"), ("f16", "bf16"), ("i32", "f32"), ("i16", "f16"), ("f32", "i64"), ("i64", "f64"), ("bool", "i8"), ("f64", "f32")]
    assert all(widens(DTYPES[a], DTYPES[b]) for a, b in yes)
    assert not any(widens(DTYPES[a], DTYPES[b]) for a, b in no)
