"""The elementwise ops on single Python numbers: what `tensor.NAME` does to each element and `scalar.NAME` to a register.

Each function is total on floats (infinities, NaN, poles, overflow give what IEEE 754 and C say, never an exception) and returns the
unrounded result; the caller rounds it to the dtype. Transcendental functions are those of `math` in double precision. Integer
division by zero raises RunTimeFault.
"""
from __future__ import annotations

import math
import operator

from .numerics import INF, NAN, RunTimeFault

_copysign, _isinf = math.copysign, math.isinf


# ---- floats ------------------------------------------------------------------------------------------------------------


def sign(x):
    return 1.0 if x > 0 else -1.0 if x < 0 else x if x != x else 0.0


def exp(x):
    try:
        return math.exp(x)
    except OverflowError:
        return INF


def exp2(x):
    try:
        return math.exp2(x)
    except OverflowError:
        return INF


def expm1(x):
    try:
        return math.expm1(x)
    except OverflowError:
        return INF


def _log(fn):
    def log(x):
        return fn(x) if x > 0 else -INF if x == 0 else NAN
    return log


def log1p(x):
    return math.log1p(x) if x > -1 else -INF if x == -1 else NAN


def sqrt(x):
    return math.sqrt(x) if x >= 0 else NAN              # -0 >= 0: sqrt(-0) is -0


def _periodic(fn):
    def call(x):
        return NAN if _isinf(x) else fn(x)
    return call


def _in_domain(fn, low, high):
    def call(x):
        return fn(x) if low <= x <= high else NAN
    return call


def atanh(x):
    return math.atanh(x) if -1 < x < 1 else _copysign(INF, x) if abs(x) == 1 else NAN


def sinh(x):
    try:
        return math.sinh(x)
    except OverflowError:
        return _copysign(INF, x)


def cosh(x):
    try:
        return math.cosh(x)
    except OverflowError:
        return INF


def _whole(fn):
    def call(x):                                        # infinities and NaN have no int; a zero keeps the operand's sign
        return _copysign(float(fn(x)), x) if -4503599627370496.0 < x < 4503599627370496.0 else x
    return call




def div(x, y):
    try:
        return x / y
    except ZeroDivisionError:
        return NAN if x == 0 or x != x else _copysign(INF, x) * _copysign(1.0, y)


def fmod(x, y):
    if y == 0 or _isinf(x) or x != x or y != y:
        return NAN
    return math.fmod(x, y)


def mod(x, y):
    r = fmod(x, y)
    if r == 0:
        return _copysign(0.0, y)
    return r + y if (r < 0) != (y < 0) else r


def pow_(x, y):
    """C's pow."""
    try:
        return math.pow(x, y)
    except OverflowError:
        return -INF if x < 0 and y % 2 == 1 else INF
    except ValueError:
        if x == 0:                                      # zero to a negative power
            return _copysign(INF, x) if y % 2 == 1 else INF
        return NAN                                      # a negative base to a fraction


def maximum(x, y):
    if x > y:
        return x
    if y > x:
        return y
    if x == y:                                          # also of +0 and -0: the larger is +0
        return x if _copysign(1.0, x) > 0 else y
    return NAN


def minimum(x, y):
    if x < y:
        return x
    if y < x:
        return y
    if x == y:
        return x if _copysign(1.0, x) < 0 else y
    return NAN


_whole_floor, _whole_ceil, _whole_round, _whole_trunc = map(_whole, (math.floor, math.ceil, round, math.trunc))

FLOAT = {
    "neg": operator.neg, "abs": abs, "sign": sign, "exp": exp, "exp2": exp2, "expm1": expm1,
    "log": _log(math.log), "log2": _log(math.log2), "log1p": log1p, "sqrt": sqrt,
    "sin": _periodic(math.sin), "cos": _periodic(math.cos), "tan": _periodic(math.tan),
    "asin": _in_domain(math.asin, -1, 1), "acos": _in_domain(math.acos, -1, 1), "atan": math.atan,
    "sinh": sinh, "cosh": cosh, "tanh": math.tanh,
    "asinh": math.asinh, "acosh": _in_domain(math.acosh, 1, INF), "atanh": atanh, "erf": math.erf, "erfc": math.erfc,
    "floor": _whole_floor, "ceil": _whole_ceil, "round": _whole_round, "trunc": _whole_trunc,
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": div, "mod": mod, "fmod": fmod,
    "pow": pow_, "atan2": math.atan2, "max": maximum, "min": minimum,
}

# Two roundings: each step is listed, and the caller rounds after every one.
FLOAT_STEPS = {
    "rsqrt": (sqrt, lambda x: div(1.0, x)),
    "floordiv": (div, _whole_floor),
}


# ---- integers (wrapped by the caller) ----------------------------------------------------------------------------------


def _by_zero(fn):
    def call(x, y):
        if y == 0:
            raise RunTimeFault("integer division by zero")
        return fn(x, y)
    return call


def _c_remainder(x, y):
    r = abs(x) % abs(y)
    return -r if x < 0 else r


def int_pow(x, y):
    if y >= 0:
        return pow(x, y, 1 << 64)
    return 1 if x == 1 else (1 if y % 2 == 0 else -1) if x == -1 else 0


INT = {
    "neg": operator.neg, "abs": abs, "sign": lambda x: (x > 0) - (x < 0), "not": operator.invert,
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "pow": int_pow, "max": max, "min": min,
    "floordiv": _by_zero(operator.floordiv), "mod": _by_zero(operator.mod), "fmod": _by_zero(_c_remainder),
    "and": operator.and_, "or": operator.or_, "xor": operator.xor,
    "shl": lambda x, y: x << y if 0 <= y < 64 else 0,   # bits beyond a narrower width are wrapped away
    "shr": lambda x, y: x >> y if 0 <= y < 64 else -(x < 0),
}

BOOL = {
    "not": operator.not_, "and": operator.and_, "or": operator.or_, "xor": operator.xor,
    "max": operator.or_, "min": operator.and_,
}

COMPARE = {"eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge}


def steps(name: str, dtype) -> tuple:
    """The functions that make up elementwise op `name` on operands of dtype; the result is rounded after each."""
    if dtype.is_float:
        return FLOAT_STEPS.get(name) or (FLOAT[name],)
    return ((BOOL if dtype.is_bool else INT)[name],)
