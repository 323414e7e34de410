"""Comparing results with a reference: units in the last place, tolerances, and a readable first mismatch."""
from __future__ import annotations

import numpy as np

from ..compiler.ir.types import DType, dtype_of

FAR = 1 << 62                                           # the distance between a NaN and a number


def eps(dtype: DType) -> float:
    """The distance from 1 to the next larger number."""
    return 2.0 ** -{"f64": 52, "f32": 23, "f16": 10, "bf16": 7}[dtype.name]


def _ordered(a: np.ndarray) -> np.ndarray:
    """Floats as integers in the same order, neighbours one apart; both zeros are 0."""
    bits = a.view({2: np.int16, 4: np.int32, 8: np.int64}[a.dtype.itemsize]).astype(np.int64)
    low = -(1 << (8 * a.dtype.itemsize - 1))
    return np.where(bits < 0, low - bits, bits)


def ulp_distance(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """How many numbers of the dtype apart, elementwise (f64, f32, f16, bf16). NaN equals NaN and is FAR from all else."""
    a, e = np.asarray(actual), np.asarray(expected)
    if a.dtype != e.dtype or a.shape != e.shape:
        raise ValueError(f"cannot compare {a.dtype}{list(a.shape)} with {e.dtype}{list(e.shape)}")
    shape = a.shape                                     # (ravel also makes them contiguous, and a rank of at least 1)
    a, e = a.ravel(), e.ravel()
    p, q = _ordered(a), _ordered(e)
    # the difference of two far apart f64 does not fit an int64: take it modulo 2^64, then cap it
    apart = np.minimum(np.where(p > q, p.view(np.uint64) - q.view(np.uint64), q.view(np.uint64) - p.view(np.uint64)),
                       np.uint64(FAR)).astype(np.int64)
    nan_a, nan_e = np.isnan(a), np.isnan(e)
    return np.where(nan_a & nan_e, 0, np.where(nan_a | nan_e, FAR, apart)).reshape(shape)


def same_bits(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Elementwise: the same value with the same sign of zero; any NaN is any other."""
    if dtype_of(actual.dtype).is_float:
        with np.errstate(invalid="ignore"):
            return ((actual == expected) & (np.signbit(actual) == np.signbit(expected))) | (np.isnan(actual) & np.isnan(expected))
    return actual == expected


def assert_close(actual, expected, *, bits_exact: bool = False, ulp: float | None = None, rtol: float = 0.0, atol=0.0,
                 what: str = "result") -> None:
    """AssertionError with the first mismatch. Also takes two lists of arrays.

    An element passes when it is the same bit for bit, or (without bits_exact) within `ulp` units in the last place, or within
    atol + rtol * |expected| (`atol` a number or an array). Integers and bools must be equal. No tolerance given: bits_exact.
    """
    if isinstance(actual, list | tuple):
        assert len(actual) == len(expected), f"{what}: {len(actual)} results, expected {len(expected)}"
        for i, (a, e) in enumerate(zip(actual, expected)):
            assert_close(a, e, bits_exact=bits_exact, ulp=ulp, rtol=rtol, atol=atol[i] if isinstance(atol, list) else atol,
                         what=f"{what} {i}")
        return
    a, e = np.asarray(actual), np.asarray(expected)
    bits_exact = bits_exact or (ulp is None and not rtol and not np.any(atol))
    assert a.shape == e.shape, f"{what}: shape {list(a.shape)}, expected {list(e.shape)}"
    number = dtype_of(a.dtype)
    assert number.is_float == dtype_of(e.dtype).is_float, f"{what}: {a.dtype}, expected {e.dtype}"
    if a.dtype != e.dtype:
        assert number.is_float and ulp is None and not bits_exact, f"{what}: {a.dtype}, expected {e.dtype}"
        ok = np.zeros(a.shape, bool)
    else:
        ok = same_bits(a, e)
    apart = None
    if number.is_float and not bits_exact:
        wide_a, wide_e = a.astype(np.float64), e.astype(np.float64)
        if a.dtype == e.dtype:
            apart = ulp_distance(a, e)
            ok = ok | (apart <= (ulp or 0))
        with np.errstate(invalid="ignore", over="ignore"):
            near = np.abs(wide_a - wide_e) <= atol + rtol * np.abs(wide_e)
        ok = ok | (near & np.isfinite(wide_e)) | (np.isnan(wide_a) & np.isnan(wide_e)) | (wide_a == wide_e)
    if np.all(ok):
        return
    bad = np.argwhere(~np.asarray(ok))
    at = tuple(int(i) for i in bad[0])
    distance = f", {int(apart[at])} ulp apart" if apart is not None and apart[at] < FAR else ""
    raise AssertionError(f"{what}{list(at) if at else ''} is {_show(a[at])}, expected {_show(e[at])}{distance}; "
                         f"{len(bad)} of {a.size} elements differ")


def _show(x) -> str:
    return repr(float(x)) if dtype_of(x.dtype).is_float else str(x)


def reference_with_tolerance(module, name: str, args: list[np.ndarray], factor: float = 16.0) -> tuple[list[np.ndarray], list]:
    """The interpreter's results of a function, and one absolute tolerance per result for other backends.

    The tolerance comes from an f64 shadow: what rounding to the dtypes moved the interpreter's own result by, anywhere in that
    result, times `factor`, and at least `factor` eps of its largest element. Not for programs that jump (floor, comparisons)
    right after inexact ops: there a last bit decides.
    """
    from .interpreter import Interpreter
    results = Interpreter(module).call(name, args)
    shadows = Interpreter(module, dtype_shadow="f64").call(name, args)
    tolerances = []
    for r, s in zip(results, shadows):
        if not dtype_of(r.dtype).is_float:
            tolerances.append(0.0)
            continue
        wide = r.astype(np.float64)
        finite = np.isfinite(wide) & np.isfinite(s)
        moved = np.max(np.abs(wide - s)[finite], initial=0.0)
        scale = np.max(np.abs(wide)[finite], initial=0.0)
        tolerances.append(factor * max(float(moved), eps(dtype_of(r.dtype)) * float(scale)))
    return results, tolerances
