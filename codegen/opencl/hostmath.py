"""Scalar ops on Python numbers, for the few that stand at host level: loop bounds, offsets of views, conditions, random keys.

A float is held as a double that its dtype can represent, an integer as an int in range. Elementary functions come from `math`.
"""
from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...compiler.ir.types import DType
from .scalars import Unsupported


class DivisionByZero(Exception):
    """An integer division by zero at host level."""


def rounded(x: Any, dtype: DType) -> Any:
    """A number brought into dtype: floats rounded to nearest, integers wrapped."""
    if dtype.is_bool:
        return bool(x)
    if dtype.is_float:
        x = float(x)
        if dtype.name == "f64" or x != x or math.isinf(x):
            return x
        if dtype.name == "bf16":                         # by way of an f32 rounded to odd: one rounding in effect
            with np.errstate(over="ignore"):
                y = np.float32(x)
            if not np.isinf(y) and float(y) != x:
                if abs(float(y)) > abs(x):
                    y = np.nextafter(y, np.float32(0))
                y = (y.view(np.uint32) | np.uint32(1)).view(np.float32)
            return float(y.astype(dtype.numpy))
        with np.errstate(over="ignore"):
            return float(np.float64(x).astype(dtype.numpy))
    v = int(x) & ((1 << dtype.bits) - 1)
    return v - (1 << dtype.bits) if dtype.kind == "int" and v >> (dtype.bits - 1) else v


def _guard(fn):
    """IEEE results where `math` raises."""
    def call(*xs):
        try:
            return fn(*xs)
        except OverflowError:
            return math.inf
        except ValueError:
            return math.nan
    return call


def _div(x, y):
    if y == 0:
        return math.nan if x == 0 or x != x else math.copysign(math.inf, x) * math.copysign(1.0, y)
    return x / y


def _fmod(x, y):
    return math.nan if y == 0 or math.isinf(x) or x != x or y != y else math.fmod(x, y)


def _mod(x, y):
    r = _fmod(x, y)
    return math.copysign(0.0, y) if r == 0 else r + y if (r < 0) != (y < 0) else r


def _larger(x, y):
    return x + y if x != x or y != y else y if (x, math.copysign(1, x)) < (y, math.copysign(1, y)) else x


def _smaller(x, y):
    return x + y if x != x or y != y else x if (x, math.copysign(1, x)) < (y, math.copysign(1, y)) else y


def _whole(fn):
    return lambda x: math.copysign(float(fn(x)), x) if math.isfinite(x) else x


def _log(fn):
    return lambda x: fn(x) if x > 0 else -math.inf if x == 0 else math.nan


def _pow(x, y):
    try:
        return math.pow(x, y)
    except OverflowError:
        return -math.inf if x < 0 and y % 2 == 1 else math.inf
    except ValueError:
        return math.nan if x != 0 else math.copysign(math.inf, x) if y % 2 == 1 else math.inf


_FLOAT = {
    "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y, "div": _div, "mod": _mod, "fmod": _fmod, "pow": _pow,
    "atan2": math.atan2, "max": _larger, "min": _smaller, "neg": lambda x: -x, "abs": abs,
    "sign": lambda x: x if x != x else float((x > 0) - (x < 0)), "floor": _whole(math.floor), "ceil": _whole(math.ceil),
    "round": _whole(round), "trunc": _whole(math.trunc), "sqrt": _guard(math.sqrt), "log": _log(math.log), "log2": _log(math.log2),
    "log1p": lambda x: math.log1p(x) if x > -1 else -math.inf if x == -1 else math.nan,
    "sinh": lambda x: math.copysign(_guard(math.sinh)(abs(x)), x),
    "atanh": lambda x: math.copysign(math.inf, x) if abs(x) == 1 else _guard(math.atanh)(x),
    **{n: _guard(getattr(math, n)) for n in ("exp", "exp2", "expm1", "sin", "cos", "tan", "asin", "acos", "atan", "cosh", "tanh", "asinh", "acosh",
                                             "erf", "erfc")},
}
_FLOAT_TWICE = {"rsqrt": (_guard(math.sqrt), lambda x: _div(1.0, x)), "floordiv": (_div, _whole(math.floor))}
_COMPARE = {"eq": lambda x, y: x == y, "ne": lambda x, y: x != y, "lt": lambda x, y: x < y, "le": lambda x, y: x <= y,
            "gt": lambda x, y: x > y, "ge": lambda x, y: x >= y}


def _ipow(x, y):
    return pow(x, y, 1 << 64) if y >= 0 else 1 if x == 1 else (-1 if y % 2 else 1) if x == -1 else 0


def _c_remainder(x, y):
    r = abs(x) % abs(y)
    return -r if x < 0 else r


_INT = {
    "add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y, "neg": lambda x: -x, "abs": abs, "not": lambda x: ~x,
    "sign": lambda x: (x > 0) - (x < 0), "floordiv": lambda x, y: x // y, "mod": lambda x, y: x % y, "fmod": _c_remainder, "pow": _ipow,
    "max": max, "min": min, "and": lambda x, y: x & y, "or": lambda x, y: x | y, "xor": lambda x, y: x ^ y,
}
_BOOL = {"not": lambda x: not x, "and": lambda x, y: x and y, "or": lambda x, y: x or y, "xor": lambda x, y: x != y,
         "max": lambda x, y: x or y, "min": lambda x, y: x and y}


def evaluate(name: str, dtype: DType, attrs: dict, xs: list, result: DType) -> Any:
    """`scalar.<name>` of operands of `dtype` (for select: of the chosen values)."""
    if name == "compare":
        return _COMPARE[attrs["predicate"]](*xs)
    if name == "select":
        return xs[1] if xs[0] else xs[2]
    if name == "cast":
        return _cast(xs[0], dtype, result)
    if name == "bitcast":
        raw = np.asarray(xs[0]).astype(dtype.numpy).tobytes()
        return rounded(np.frombuffer(raw, np.uint8 if result.is_bool else result.numpy)[0], result)
    if dtype.is_float:
        if name in _FLOAT_TWICE:
            first, second = _FLOAT_TWICE[name]
            return rounded(second(rounded(first(*xs), dtype)), dtype)
        fn = _FLOAT.get(name)
    elif dtype.is_bool:
        fn = _BOOL.get(name)
    else:
        if name in ("floordiv", "mod", "fmod") and xs[1] == 0:
            raise DivisionByZero
        if name in ("shl", "shr"):
            x, y = xs
            outside = not 0 <= y < dtype.bits
            return rounded((0 if outside else x << y) if name == "shl" else (-(x < 0) if outside else x >> y), dtype)
        fn = _INT.get(name)
    if fn is None:
        raise Unsupported(f"scalar.{name} on {dtype} at host level")
    return rounded(fn(*xs), dtype)


def _cast(x, source: DType, target: DType):
    if target.is_bool:
        return x != 0
    if target.is_int and source.is_float:
        if x != x:
            return 0
        return target.min if x <= target.min else target.max if x >= target.max else int(x)
    if target.name == "f32" and source.is_int and abs(int(x)) > 1 << 53:
        return float(np.asarray(x, source.numpy).astype(np.float32))         # once: not by way of a double
    return rounded(x, target)


def philox(key: int, counter: int, domain: int) -> tuple[int, int, int, int]:
    """Philox 4x32-10 of (counter low, counter high, domain, 0)."""
    m = 0xFFFFFFFF
    c0, c1, c2, c3 = counter & m, counter >> 32 & m, domain, 0
    k0, k1 = key & m, key >> 32 & m
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = p1 >> 32 ^ c1 ^ k0, p1 & m, p0 >> 32 ^ c3 ^ k1, p0 & m
        k0, k1 = k0 + 0x9E3779B9 & m, k1 + 0xBB67AE85 & m
    return c0, c1, c2, c3
