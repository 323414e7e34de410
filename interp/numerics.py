"""Numbers of each dtype as Python numbers: rounding, wrapping, conversion to and from NumPy, casts and bit casts.

A float of any width is a Python float (a double) that the width can represent; an integer is a Python int in range; a bool is a
bool. An operation computes on doubles and rounds once. For + - * / and sqrt of f32, f16 and bf16 that is the exact IEEE answer: a
double has more than twice their digits, so rounding twice cannot differ from rounding once.

Whole lists are rounded at a time (array("f") or NumPy's conversion), which is what makes the interpreter usable. NaN payloads are
not kept. No operations of the IR here: see semantics_*.py.
"""
from __future__ import annotations

import ctypes
import math
from array import array
from collections.abc import Callable

import numpy as np

from ..compiler.ir.types import DType

INF, NAN = math.inf, math.nan


class RunTimeFault(Exception):
    """An error of the user's program found by an op's semantics; the interpreter adds the location."""


class Array:
    """A tensor: elements in row-major order as Python numbers. Never modified once made, so lists may be shared."""

    __slots__ = ("dtype", "shape", "data")

    def __init__(self, dtype: DType, shape: tuple[int, ...], data: list):
        self.dtype, self.shape, self.data = dtype, shape, data

    @property
    def item(self):
        """The element of a rank-0 tensor."""
        return self.data[0]

    def __repr__(self):
        shown = ", ".join(map(repr, self.data[:6])) + (", ..." if len(self.data) > 6 else "")
        return f"<{self.dtype}[{','.join(map(str, self.shape))}] {shown}>"


# ---- NumPy at the boundary -------------------------------------------------------------------------------------------


def from_numpy(a: np.ndarray, dtype: DType) -> Array:
    """The elements of an array that already has dtype's NumPy dtype."""
    flat = a.ravel()
    if dtype.name == "bf16":
        flat = flat.astype(np.float64)
    return Array(dtype, tuple(a.shape), flat.tolist())


def to_numpy(a: Array, shadow: bool = False) -> np.ndarray:
    """An ndarray of the dtype; of float64 for floats in the f64 shadow."""
    if a.dtype.is_float:
        with np.errstate(over="ignore"):
            flat = np.array(a.data, np.float64)
            if not shadow:
                flat = flat.astype(a.dtype.numpy)
    else:
        flat = np.array(a.data, a.dtype.numpy)
    return flat.reshape(a.shape)


# ---- rounding lists ----------------------------------------------------------------------------------------------------


def _round_f64(xs: list) -> list:
    return [float(x) for x in xs]


def _round_f32(xs: list) -> list:
    return array("f", xs).tolist()


def _round_f16(xs: list) -> list:
    with np.errstate(over="ignore"):
        return np.array(xs, np.float64).astype(np.float16).tolist()


def _round_bf16(xs: list) -> list:
    """To nearest, ties to even, by way of a f32 rounded to odd: going through the nearest f32 could round twice."""
    x = np.array(xs, np.float64)
    with np.errstate(over="ignore"):
        y = x.astype(np.float32)
    bits = y.view(np.uint32).copy()
    wide = y.astype(np.float64)
    bits -= (np.abs(wide) > np.abs(x)).astype(np.uint32)                # truncated towards zero ...
    bits |= (wide != x).astype(np.uint32) & ~np.isnan(x)                # ... with the last bit set where inexact
    out = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) & np.uint32(0xFFFF0000)
    out = np.where(np.isnan(x), np.uint32(0x7FC00000), out)
    return out.view(np.float32).tolist()


def _wrap(dtype: DType) -> Callable[[list], list]:
    mask = (1 << dtype.bits) - 1
    if dtype.kind == "uint":
        return lambda xs: [int(x) & mask for x in xs]
    half = 1 << (dtype.bits - 1)
    return lambda xs: [((int(x) + half) & mask) - half for x in xs]


def _round_bool(xs: list) -> list:
    return [x != 0 for x in xs]


_FLOATS = {"f64": _round_f64, "f32": _round_f32, "f16": _round_f16, "bf16": _round_bf16}
_TABLES: dict[tuple[str, bool], Callable[[list], list]] = {}


def rounding(dtype: DType, shadow: bool = False) -> Callable[[list], list]:
    """The function that brings a list of exact results into dtype: rounds floats, wraps integers. `shadow` keeps floats at f64."""
    key = (dtype.name, shadow)
    if key not in _TABLES:
        if dtype.is_float:
            _TABLES[key] = _round_f64 if shadow else _FLOATS[dtype.name]
        else:
            _TABLES[key] = _round_bool if dtype.is_bool else _wrap(dtype)
    return _TABLES[key]


def _round_one_f32(x: float, _c_float=ctypes.c_float) -> float:
    return _c_float(x).value


def rounding_one(dtype: DType, shadow: bool = False) -> Callable:
    """The same for one number (None is refused: it marks uninitialised memory)."""
    if dtype.is_float:
        if shadow or dtype.name == "f64":
            return float
        if dtype.name == "f32":
            return _round_one_f32
    many = rounding(dtype, shadow)
    return lambda x: many([x])[0]


# ---- casts -------------------------------------------------------------------------------------------------------------


def _odd53(v: int) -> float:
    """An integer as a double, rounded to odd, so that rounding it further to a narrower float rounds only once."""
    extra = v.bit_length() - 53                                         # bit_length ignores the sign
    if extra <= 0:
        return float(v)
    kept, lost = abs(v) >> extra, abs(v) & ((1 << extra) - 1)
    return math.copysign(math.ldexp(float(kept | (lost != 0)), extra), v)


def _truncate(low: int, high: int) -> Callable[[float], int]:
    def convert(x):
        if x != x:
            return 0
        if x <= low:
            return low
        return high if x >= high else int(x)
    return convert


def cast(xs: list, source: DType, target: DType, shadow: bool = False) -> list:
    """tensor.cast and scalar.cast."""
    if source is target:
        return xs
    if target.is_bool:
        return [x != 0 for x in xs]                                     # also of NaN
    if target.is_int:
        if source.is_float:
            return list(map(_truncate(target.min, target.max), xs))
        return rounding(target)(xs)
    if source.is_int and (target.bits < 64 and source.bits > 53):
        xs = list(map(_odd53, xs))
    elif not source.is_float:
        xs = [float(x) for x in xs]
    return rounding(target, shadow)(xs)


def bitcast(xs: list, source: DType, target: DType) -> list:
    """tensor.bitcast and scalar.bitcast, through memory of the source's type."""
    a = np.array(xs, np.float64).astype(source.numpy) if source.is_float else np.array(xs, source.numpy)
    if target.is_bool:
        return (a.view(np.uint8) != 0).tolist()
    b = a.view(target.numpy)
    return b.astype(np.float64).tolist() if target.is_float else b.tolist()
