"""Products of operands that are narrower than their sums: i8 x i8 to i32, bf16 x bf16 to f32, mixed; on every backend."""
import itertools

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


def test_pairs_of_bf16():
    """The instruction that multiplies pairs: every layout, odd depths, blocks of k, the same bits for any number of threads."""
    from engram.codegen.cpu.gemm_base import with_pairs
    from engram.codegen.cpu.target import host_target
    from test_cpu_gemm import Gemm
    kind = with_pairs("f32:bf16:bf16", host_target())
    if not host_target().bf16_dot:
        assert kind == "f32:bf16:bf16"
        pytest.skip("this processor does not multiply pairs of bf16")
    run, rng = Gemm(kind, ""), np.random.default_rng(3)
    for m, n, k in [(3, 5, 7), (15, 33, 17), (33, 47, 310), (90, 200, 40), (5, 7, 0), (16, 96, 1), (40, 50, 1301)]:
        for layout in itertools.product("nts", "nts"):
            a, b = (strided(array(rng, "bf16", shape), how) for shape, how in zip(((1, 1, m, k), (1, 1, k, n)), layout))
            results = []
            for threads in (1, 2, 3):
                c = np.full((1, 1, m, n), 77, np.float32)
                results.append(run(a, b, c, threads=threads).tobytes())
            assert len(set(results)) == 1
            close("f32", c[0, 0], a[0, 0], b[0, 0], False)


def strided(x, how):
    """The same numbers, row by row (n), column by column (t) or with gaps everywhere (s)."""
    if how == "t":
        return np.ascontiguousarray(x.swapaxes(2, 3)).swapaxes(2, 3)
    if how == "s":
        big = np.zeros((1, 1, 2 * x.shape[2] + 1, 3 * x.shape[3] + 1), x.dtype)
        view = big[:, :, 1::2, 1::3]
        view[...] = x
        return view
    return x


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
