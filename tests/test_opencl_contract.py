"""loop.contract on the OpenCL device: all forms (plain, staged, tiled, blocked) on ragged sizes, strides, letters and dtypes."""
import dataclasses

import numpy as np
import pytest
from engram.codegen.opencl import device as devices
from engram.compiler import ops  # noqa: F401  (registers the op table)
from engram.compiler.ir import DTYPES, Func, Module
from engram.compiler.ir.builder import Builder
from engram.compiler.ir.types import BufferType

OK, WHY = devices.available()
pytestmark = pytest.mark.skipif(not OK, reason=f"no OpenCL device: {WHY}")
FORMS = {"blocked": {"cpu": True}, "tiled": {"cpu": False}}


def contract_module(cases, dtype):
    """One function per case (letters, sizes, accumulate): out arrives as an argument that is donated to the result."""
    m = Module(attrs={"stage": "loop"})
    for i, (out, lhs, rhs, sizes, accumulate) in enumerate(cases):
        types = [BufferType(dtype, tuple(sizes[c] for c in letters)) for letters in (out, lhs, rhs)]
        f = m.add(Func(f"f{i}", [*types, types[0]], attrs={"n_inputs": 3, "n_outputs": 1, "donate": [[0, 0]]}))
        b = Builder(f.body)
        b.op("loop.contract", [f.args[3], f.args[1], f.args[2]], {"out": out, "lhs": lhs, "rhs": rhs, "accumulate": accumulate})
        b.op("func.return")
    return m


def on(form, module):
    from engram.codegen.opencl.program import OpenClProgram
    d = devices.device()
    return OpenClProgram(module, dataclasses.replace(d, caps=dataclasses.replace(d.caps, **FORMS[form])))


def arrays(case, dtype, seed=0):
    out, lhs, rhs, sizes, _ = case
    rng = np.random.default_rng(seed)
    shapes = [tuple(sizes[c] for c in letters) for letters in (out, lhs, rhs)]
    if dtype.is_float:
        return [rng.standard_normal(s).astype(dtype.numpy) for s in shapes]
    return [rng.integers(dtype.min, dtype.max, s, dtype.numpy, endpoint=True) for s in shapes]


def expected(case, c, a, b):
    """In f64 (integers: 64 bits, wrapped), and the bound k * eps * sum |x| |y|."""
    out, lhs, rhs, _, accumulate = case
    wide = np.float64 if c.dtype.kind in "fV" else np.uint64
    spec = f"{lhs},{rhs}->{out}"
    y = np.einsum(spec, a.astype(wide), b.astype(wide))
    size = np.einsum(spec, np.abs(a.astype(wide)), np.abs(b.astype(wide))) if wide is np.float64 else None
    if accumulate:
        y = y + c.astype(wide)
        size = size + np.abs(c.astype(wide)) if size is not None else None
    return y, size


def run(form, cases, dtype):
    p = on(form, contract_module(cases, dtype))
    for i, case in enumerate(cases):
        c, a, b = arrays(case, dtype, i)
        got = np.asarray(p.call(f"f{i}", [c, a, b])[0])
        want, size = expected(case, c, a, b)
        if size is None:
            np.testing.assert_array_equal(got, want.astype(dtype.numpy), err_msg=str(case))
            continue
        eps = {"f64": 2.0**-53, "f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}[dtype.name]
        k = np.prod([n for letter, n in case[3].items() if letter not in case[0]] or [1])
        bound = (k * 2.0**-24 + 2 * eps if dtype.bits == 16 else (k + 1) * eps) * size
        assert np.all(np.abs(got.astype(np.float64) - want) <= bound), f"{case}: {np.abs(got.astype(np.float64) - want).max()}"
    return p


S = dict
MATMULS = [
    ("mn", "mk", "kn", S(m=70, n=67, k=45), False),
    ("mn", "mk", "nk", S(m=33, n=130, k=17), True),
    ("mn", "km", "kn", S(m=64, n=64, k=129), False),
    ("nm", "mk", "kn", S(m=40, n=24, k=31), False),                     # the result is transposed
    ("bmn", "bmk", "bkn", S(b=3, m=20, n=35, k=16), True),
    ("bmhn", "bmhk", "bnhk", S(b=2, m=17, h=3, n=19, k=12), False),     # attention scores, heads inside
    ("xyn", "xyk", "kn", S(x=5, y=9, n=40, k=33), False),               # two letters that are one run of memory
    ("xnym", "xkpm", "pnyk", S(x=2, n=6, y=5, m=11, k=7, p=4), False),  # several letters in every role
]
THIN = [
    ("n", "k", "kn", S(n=300, k=50), False),
    ("m", "mk", "k", S(m=30, k=257), True),
    ("", "k", "k", S(k=100), False),
    ("n", "k", "nk", S(n=200, k=70), False),
    ("bmn", "bmk", "bnk", S(b=2, m=3, n=100, k=45), True),
    ("m", "mk", "k", S(m=130, k=65), False),
    ("mn", "mk", "kn", S(m=90, n=2, k=65), False),
    ("mn", "m", "n", S(m=5, n=6), False),
    ("mn", "mk", "kn", S(m=4, n=3, k=0), False),
    ("mn", "mk", "kn", S(m=4, n=3, k=0), True),
    ("mn", "mk", "kn", S(m=0, n=3, k=2), False),
    ("m", "mk", "j", S(m=3, k=4, j=5), False),                          # summed letters that only one operand has
]


@pytest.mark.parametrize("form", FORMS)
def test_f32(form):
    p = run(form, MATMULS + THIN, DTYPES["f32"])
    assert ("barrier(" in p.source()) == (form == "tiled") and ("vload16" in p.source() or "vload8" in p.source() or "vload4" in p.source()) == (form == "blocked")


@pytest.mark.parametrize("dtype", ["f64", "f16", "bf16", "u8"])
@pytest.mark.parametrize("form", FORMS)
def test_other_dtypes(form, dtype):
    run(form, [MATMULS[0], MATMULS[1], MATMULS[4], THIN[0], THIN[4]], DTYPES[dtype])


@pytest.mark.parametrize("form", FORMS)
def test_strided_views_and_windows(form):
    """A convolution: one operand is a view with overlapping windows; the result is every second column of a buffer."""
    from engram.compiler.ir.parser import parse_module
    m = parse_module("""module attributes {stage = "loop"} {
func @f(%x: buf<f32[2,14,14,3]>, %w: buf<f32[3,3,3,20]>, %y: buf<f32[2,12,12,20,2]>) -> () attributes {n_inputs = 2, n_outputs = 1} {
  %z = scalar.constant() {value = 0, dtype = i64} : i64
  %one = scalar.constant() {value = 1, dtype = i64} : i64
  %v = loop.view(%x, %z) {shape = [2,12,12,3,3,3], strides = [588,42,3,42,3,1]} : buf<f32[2,12,12,3,3,3], [588,42,3,42,3,1]>
  %a = loop.view(%y, %z) {shape = [2,12,12,20], strides = [5760,480,40,2]} : buf<f32[2,12,12,20], [5760,480,40,2]>
  %b = loop.view(%y, %one) {shape = [2,12,12,20], strides = [5760,480,40,2]} : buf<f32[2,12,12,20], [5760,480,40,2]>
  loop.contract(%a, %v, %w) {out = "bhwo", lhs = "bhwrsc", rhs = "rsco", accumulate = false}
  loop.copy(%b, %a)
  loop.contract(%b, %v, %w) {out = "bhwo", lhs = "bhwrsc", rhs = "rsco", accumulate = true}
  func.return()
}
}""")
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 14, 14, 3)).astype(np.float32), rng.standard_normal((3, 3, 3, 20)).astype(np.float32)
    y = np.asarray(on(form, m).call("f", [x, w])[0])
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), (3, 3), axis=(1, 2))   # b h w c r s
    want = np.einsum("bhwcrs,rsco->bhwo", windows, w.astype(np.float64))
    np.testing.assert_allclose(y[..., 0], want, rtol=0, atol=1e-5)
    np.testing.assert_allclose(y[..., 1], 2 * want, rtol=0, atol=2e-5)


def test_all_forms_give_the_same_bits():
    """Each adds in ascending k with fused multiply-adds, whatever its tiles."""
    case = MATMULS[0]
    c, a, b = arrays(case, DTYPES["f32"])
    results = [np.asarray(on(form, contract_module([case], DTYPES["f32"])).call("f0", [c, a, b])[0]) for form in FORMS]
    np.testing.assert_array_equal(results[0], results[1])


@pytest.mark.parametrize("form", FORMS)
def test_products_of_other_sizes_share_a_kernel(form):
    """Sizes and strides are arguments where every role is one dim: a network's matrix products compile once."""
    cases = [("mn", "mk", "kn", S(m=m, n=n, k=k), False) for m, n, k in ((64, 96, 64), (60, 90, 33), (62, 85, 130))]
    p = run(form, cases, DTYPES["f32"])
    assert p.source().count("__kernel ") == 1
