"""The vector functions against wider arithmetic: within 2 ulp over all exponents and signs, f32 and f64, on every kind of machine; special
values and the sign of zero exact."""
import ctypes
import math

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from engram.codegen.cpu import vecmath
from engram.codegen.cpu.compile import load
from engram.codegen.cpu.irtext import Fn, Module, vec
from engram.codegen.cpu.target import _describe

LIMIT = 2.0                                      # ulp; the op table allows some more


def compiled(name: str, dtype: str, lanes: int, target):
    """f(n, x, [y,] out) applying the function to n elements."""
    m = Module(target)
    symbol = vecmath.require(m, name, lanes, dtype)
    elem, size = vecmath.LLVM[dtype], 4 if dtype == "f32" else 8
    t = vec(elem, lanes)
    binary = name in vecmath.BINARY
    f = Fn(m, f"void @run(i64 %n, ptr %x{', ptr %y' if binary else ''}, ptr %out)")
    with f.loop("0", "%n", str(lanes)) as i:
        args = [f.load(t, f.gep(elem, p, i.index), size) for p in (["%x", "%y"] if binary else ["%x"])]
        value = f.op(f"call {t} @{symbol}({', '.join(f'{t} {a}' for a in args)})")
        f.store(t, value, f.gep(elem, "%out", i.index), size)
    f.finish()
    library = load(m.text(), ["run"], target=target)
    call = ctypes.CFUNCTYPE(None, ctypes.c_int64, *[ctypes.c_void_p] * (3 if binary else 2))(library.address("run"))

    def run(*xs):
        n = -(-xs[0].size // lanes) * lanes
        padded = [np.concatenate([x, np.ones(n - x.size, x.dtype)]) for x in xs]
        out = np.empty(n, xs[0].dtype)
        call(n, *[p.ctypes.data for p in padded], out.ctypes.data)
        return out[:xs[0].size]
    run.library = library
    return run


SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-38, -1e-38,
                    3.4e38, -3.4e38, 88.72, 88.73, -87.3, -103.9, -104.1, 8000.0, 1e9, 0.99999994, 1.0000001, 0.625], np.float32)


def inputs() -> np.ndarray:
    """Every exponent and sign with many significands, plus a dense stretch around the interesting range."""
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 1 << 32, 200_000, dtype=np.uint64).astype(np.uint32)
    dense = [rng.uniform(-a, a, 40_000).astype(np.float32) for a in (1.0, 1.5, 12.0, 110.0, 10_000.0)]
    return np.concatenate([SPECIAL, bits.view(np.float32), *dense])


_erf = np.vectorize(math.erf, otypes=[np.float64])
_erfc = np.vectorize(math.erfc, otypes=[np.float64])
REFERENCE = {"asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "asinh": np.arcsinh, "acosh": np.arccosh,
             "atanh": np.arctanh, "erf": _erf, "erfc": _erfc, "atan2": np.arctan2, "pow": np.power}


def reference(name, *xs):
    with np.errstate(all="ignore"):
        wide = [x.astype(np.float64) for x in xs]
        if name == "rsqrt":
            return (np.float32(1) / np.sqrt(xs[0])).astype(np.float64)
        return REFERENCE.get(name, getattr(np, name, None))(*wide)


def errors_in_ulp(got, want):
    """|got - want| in units of the last place of the f32 nearest to want; infinities and NaN must agree."""
    with np.errstate(all="ignore"):
        w32 = want.astype(np.float32)
        same = ((got == w32) & (np.signbit(got) == np.signbit(w32))) | (np.isnan(got) & np.isnan(w32))
        ulp = np.spacing(np.minimum(np.abs(w32), np.float32(3.4e38))).astype(np.float64)
        capped = np.clip(want, -3.4028235677973366e38, 3.4028235677973366e38)
        off = np.abs(np.clip(got.astype(np.float64), -3.4028235677973366e38, 3.4028235677973366e38) - capped) / ulp
        off = np.where((np.isnan(got) != np.isnan(w32)) | ((got == 0) & (w32 == 0)), np.inf, off)
    return np.where(same, 0.0, off)


def check(name, got, want, xs, limit=LIMIT, errors=errors_in_ulp):
    off = errors(got, want)
    worst = int(np.argmax(off))
    assert off[worst] <= limit, (f"{name}({', '.join(repr(float(x[worst])) for x in xs)}) = {got[worst]!r}, "
                                 f"wanted {want[worst]!r}: {off[worst]:.2f} ulp")


def binary_inputs(name):
    rng = np.random.default_rng(2)
    a, b = (v.ravel() for v in np.meshgrid(SPECIAL, np.append(SPECIAL, np.float32(5e7))))
    r = [rng.integers(0, 1 << 32, 50_000, dtype=np.uint64).astype(np.uint32).view(np.float32) for _ in range(2)]
    d = [np.exp(rng.uniform(-20, 20, 50_000)).astype(np.float32), rng.uniform(-6, 6, 50_000).astype(np.float32)]
    w = [rng.uniform(-9, 9, 20_000).astype(np.float32), rng.integers(-12, 12, 20_000).astype(np.float32)]
    return np.concatenate([a, r[0], d[0], w[0]]), np.concatenate([b, r[1], d[1], w[1]])


@pytest.mark.parametrize("name", vecmath.UNARY)
def test_unary_f32(name):
    target = _describe("")
    x = inputs()
    check(name, compiled(name, "f32", target.lanes("f32"), target)(x), reference(name, x), [x])


@pytest.mark.parametrize("name", vecmath.BINARY)
def test_binary_f32(name):
    target = _describe("")
    x, y = binary_inputs(name)
    check(name, compiled(name, "f32", target.lanes("f32"), target)(x, y), reference(name, x, y), [x, y])


@pytest.mark.parametrize("machine", ["avx2", "generic"])
@pytest.mark.parametrize("name", [*vecmath.UNARY, *vecmath.BINARY])
def test_other_machines(name, machine):
    target = _describe(machine)
    xs = binary_inputs(name) if name in vecmath.BINARY else [inputs()[::3]]
    check(name, compiled(name, "f32", target.lanes("f32"), target)(*xs), reference(name, *xs), xs)


def test_every_f32_exponent_is_among_the_inputs():
    """Denormals, infinity and NaN included, with both signs."""
    seen = inputs().view(np.uint32) >> 23
    assert set(seen.tolist()) == set(range(512)) and np.bincount(seen).min() > 200


@pytest.mark.parametrize("name", ["exp", "log", "tanh", "sin", "atan"])
def test_one_lane_gives_the_vector_result(name):
    target = _describe("")
    x = inputs()[:20_000]
    one, many = (compiled(name, "f32", lanes, target)(x) for lanes in (1, target.lanes("f32")))
    np.testing.assert_array_equal(one, many)


# ---- f64: the reference is NumPy's long double where that has 64 bits; of erf and erfc, only the C library's own value is at hand

def inputs_f64(binary: bool) -> list[np.ndarray]:
    """Every exponent and sign, and dense stretches."""
    rng = np.random.default_rng(5)
    special = np.concatenate([SPECIAL.astype(np.float64), [5e-324, -5e-324, 2.3e-308, -2.2e-308, 1.79e308, -1.79e308, 709.78, 709.79, -745.1, -745.2, 1e22]])
    bits = rng.integers(0, 1 << 64, 30_000, dtype=np.uint64).view(np.float64)
    if not binary:
        return [np.concatenate([special, bits, *(rng.uniform(-a, a, 8_000) for a in (1.0, 1.5, 12.0, 750.0, 10_000.0))])]
    a, b = (v.ravel() for v in np.meshgrid(special, special))
    return [np.concatenate([a, bits, np.exp(rng.uniform(-20, 20, 20_000))]), np.concatenate([b, rng.permutation(bits), rng.uniform(-30, 30, 20_000)])]


def errors_in_ulp_f64(got, want):
    with np.errstate(all="ignore"):
        w = want.astype(np.float64)
        same = ((got == w) & (np.signbit(got) == np.signbit(w))) | (np.isnan(got) & np.isnan(w))
        most = want.dtype.type(np.finfo(np.float64).max)
        ulp = np.spacing(np.minimum(np.abs(w), np.finfo(np.float64).max))
        off = np.abs(np.clip(got.astype(want.dtype), -most, most) - np.clip(want, -most, most)) / ulp
        off = np.where((np.isnan(got) != np.isnan(w)) | ((got == 0) & (w == 0)), np.inf, off)
    return np.where(same, 0.0, off.astype(np.float64))


@pytest.mark.parametrize("machine", ["", "avx2", "generic"])
@pytest.mark.parametrize("name", [*vecmath.UNARY, *vecmath.BINARY])
def test_f64(name, machine):
    target = _describe(machine)
    own = name in vecmath.OWN_F64
    if machine and not own:
        pytest.skip("the C library's function, whatever the machine")
    xs = inputs_f64(name in vecmath.BINARY)
    with np.errstate(all="ignore"):
        wide = [x.astype(np.longdouble) for x in xs]
        want = 1 / np.sqrt(wide[0]) if name == "rsqrt" else REFERENCE.get(name, getattr(np, name, None))(*wide)
    limit = LIMIT if np.finfo(np.longdouble).nmant >= 63 and name not in ("erf", "erfc") else LIMIT + 1
    check(name, compiled(name, "f64", target.lanes("f64"), target)(*xs), np.asarray(want, np.longdouble), xs, limit, errors_in_ulp_f64)


def test_sign_of_zero_is_kept():
    target = _describe("")
    x = np.array([-0.0, 0.0], np.float32)
    for name in ("sin", "tan", "tanh", "erf", "sinh", "asinh", "asin", "atan", "atanh", "expm1", "log1p"):
        got = compiled(name, "f32", target.lanes("f32"), target)(x)
        assert list(np.signbit(got)) == [True, False], name
