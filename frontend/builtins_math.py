"""Elementwise operations.  On compile-time numbers they are computed at once."""
from __future__ import annotations

import math

from ..compiler.ir import Dim, TensorType, Value, bool_
from .builtins import builtin
from .tensors import binary, common_dtype, is_weak, to_float, together
from .values import Opaque, Quotient, describe


def _sign(x):
    return math.nan if x != x else (x > 0) - (x < 0)


# name in the language -> (op, what it does to a Python number); floats only: integers are converted
FLOAT = {
    "exp": math.exp, "exp2": lambda x: 2.0 ** x, "expm1": math.expm1, "log": math.log, "log2": math.log2, "log1p": math.log1p,
    "sqrt": math.sqrt, "rsqrt": lambda x: 1 / math.sqrt(x), "sin": math.sin, "cos": math.cos, "tan": math.tan, "asin": math.asin,
    "acos": math.acos, "atan": math.atan, "sinh": math.sinh, "cosh": math.cosh, "tanh": math.tanh, "asinh": math.asinh,
    "acosh": math.acosh, "atanh": math.atanh, "erf": math.erf, "erfc": math.erfc,
}
ANY = {"abs": abs, "neg": lambda x: -x, "sign": _sign}
ROUND = {"floor": math.floor, "ceil": math.ceil, "trunc": math.trunc}
DOCS = {
    "exp": "e to the power of x", "exp2": "2 ** x", "expm1": "exp(x) - 1, accurate near 0", "log": "The natural logarithm", "log2": "Logarithm to base 2",
    "log1p": "log(1 + x), accurate near 0", "sqrt": "The square root", "rsqrt": "1 / sqrt(x)", "sin": "The sine", "cos": "The cosine", "tan": "The tangent",
    "asin": "The angle whose sine is x", "acos": "The angle whose cosine is x", "atan": "The angle whose tangent is x", "sinh": "The hyperbolic sine",
    "cosh": "The hyperbolic cosine", "tanh": "The hyperbolic tangent", "asinh": "The inverse of sinh", "acosh": "The inverse of cosh",
    "atanh": "The inverse of tanh", "erf": "The error function, 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x", "erfc": "1 - erf(x), accurate for large x",
    "abs": "The absolute value", "neg": "-x", "sign": "-1, 0 or 1", "floor": "Rounded down", "ceil": "Rounded up", "trunc": "Rounded towards 0",
}


def _static(cx, x, f, kind: str | None = None):
    """f of a compile-time number."""
    if isinstance(x, Opaque | Dim):
        return Opaque(kind or (x.kind if isinstance(x, Opaque) else "int"))
    try:
        return f(x)
    except (ValueError, OverflowError, ZeroDivisionError):
        cx.fail(f"`{cx.name}({x})` is not defined")





def _number(cx, v, arg: str) -> float:
    if isinstance(v, bool) or not isinstance(v, int | float):
        cx.fail(f"`{arg}` of `{cx.name}` is a number known when compiling, got {describe(v)}", arg)
    return float(v)


def _float_op(name: str, f):
    def run(cx, x):
        if is_weak(x):
            return _static(cx, x, f, "float")
        x = cx.tensor(x)
        return cx.op("tensor." + name, [to_float(cx.b, x)])
    run.__name__ = name
    run.__doc__ = f"{DOCS[name]}, elementwise; integers become f32."
    return run


for _n, _f in FLOAT.items():
    builtin(_n)(_float_op(_n, _f))


def _any_op(name: str, f):
    def run(cx, x):
        if is_weak(x):
            return _static(cx, x, f)
        x = cx.tensor(x)
        if x.type.dtype.is_bool:
            cx.fail(f"`{name}` works on numbers, got {describe(x)}", "x")
        return cx.op("tensor." + name, [x])
    run.__doc__ = f"{DOCS[name]}, elementwise."
    return run


for _n, _f in ANY.items():
    builtin(_n, *({"abs": ("absolute",), "neg": ("negative",)}.get(_n, ())))(_any_op(_n, _f))


def _round_op(name: str, f):
    def run(cx, x):
        if is_weak(x):
            v = _static(cx, x, f)
            return float(v) if isinstance(x, float) and not isinstance(v, Opaque) else v
        x = cx.tensor(x)
        return x if not x.type.dtype.is_float else cx.op("tensor." + name, [x])
    run.__doc__ = f"{DOCS[name]}, elementwise; integers stay as they are."
    return run


for _n, _f in ROUND.items():
    builtin(_n)(_round_op(_n, _f))


@builtin("round")
def round_(cx, x, decimals=0):
    """The nearest number with so many decimals (negative: tens, hundreds ...), ties to even; integers stay as they are."""
    n = cx.int(decimals, "decimals")
    if is_weak(x):
        v = _static(cx, x, lambda v: round(v, n) if n else round(v))
        return float(v) if isinstance(x, float) and not isinstance(v, Opaque) else v
    b, x = cx.b, cx.tensor(x)
    if not x.type.dtype.is_float:
        return x
    if n == 0:
        return b.round(x)
    if n < 0:
        return b.mul(b.round(b.div(x, 10.0 ** -n)), 10.0 ** -n)
    return b.div(b.round(b.mul(x, 10.0 ** n)), 10.0 ** n)


@builtin()
def square(cx, x):
    """x * x."""
    if is_weak(x):
        return _static(cx, x, lambda v: v * v)
    x = cx.tensor(x)
    return cx.b.mul(x, x)


@builtin()
def reciprocal(cx, x):
    """1 / x."""
    x = cx.float(x)
    return cx.b.div(cx.b.like(1.0, x), x)


@builtin()
def log10(cx, x):
    """Logarithm to base 10."""
    if is_weak(x):
        return _static(cx, x, math.log10, "float")
    x = cx.float(x)
    return cx.b.mul(cx.b.log(x), 1 / math.log(10))


@builtin()
def frac(cx, x):
    """x - trunc(x)."""
    x = cx.float(x)
    return cx.b.sub(x, cx.b.trunc(x))


# ---- two arguments ----------------------------------------------------------------------------------------------------

def _both_static(cx, x, y) -> bool:
    for v, n in ((x, "x"), (y, "y")):
        if not isinstance(v, Value) and not is_weak(v):
            cx.fail(f"`{n}` of `{cx.name}` is {describe(v)}, expected a tensor or number", n)
    return not isinstance(x, Value) and not isinstance(y, Value)


def _pick(cx, x, y, op: str):
    if _both_static(cx, x, y):
        if isinstance(x, Dim | Opaque) or isinstance(y, Dim | Opaque):
            if x == y:
                return x
            return Opaque("float" if isinstance(x, float) or isinstance(y, float) else "int")
        return (max if op == "max" else min)(x, y)
    return binary(cx.b, op, x, y)


@builtin()
def maximum(cx, x, y):
    """The larger of each pair."""
    return _pick(cx, x, y, "max")


@builtin()
def minimum(cx, x, y):
    """The smaller of each pair."""
    return _pick(cx, x, y, "min")


@builtin("pow")
def pow_(cx, x, y):
    """x ** y."""
    from .expressions import power, weak_op
    if _both_static(cx, x, y):
        return weak_op(cx.el, "**", x, y, cx.span)
    return power(cx.b, x, y)


def _plain_binary(name: str, op: str, doc: str, floats: bool = False):
    def run(cx, x, y):
        if _both_static(cx, x, y):
            x = cx.tensor(x)
        if floats:
            dtype = common_dtype((x, y))
            xv, yv = together(cx.b, (x, y), dtype if dtype.is_float else None)
            return cx.op("tensor." + op, [to_float(cx.b, xv), to_float(cx.b, yv)])
        return binary(cx.b, op, x, y)
    run.__doc__ = doc
    builtin(name)(run)


_plain_binary("atan2", "atan2", "The angle of the point (y, x).", floats=True)
_plain_binary("fmod", "fmod", "The remainder with the sign of x.")
_plain_binary("remainder", "mod", "The remainder with the sign of y, Python's %.")
_plain_binary("bitwise_and", "and", "Bits in both.")
_plain_binary("bitwise_or", "or", "Bits in either.")
_plain_binary("bitwise_xor", "xor", "Bits in exactly one.")


def _bools(cx, x, arg: str = "x") -> Value:
    """Numbers as bools: what is not 0 is true."""
    x = cx.tensor(x, arg)
    return x if x.type.dtype.is_bool else cx.b.compare("ne", x, 0)


def _logical(name: str, op: str, doc: str):
    def run(cx, x, y):
        return binary(cx.b, op, _bools(cx, x), _bools(cx, y, "y"))
    run.__doc__ = doc
    builtin(name)(run)


_logical("logical_and", "and", "Whether both are true (of numbers: not 0).")
_logical("logical_or", "or", "Whether either is true (of numbers: not 0).")
_logical("logical_xor", "xor", "Whether exactly one is true (of numbers: not 0).")


@builtin()
def logical_not(cx, x):
    """Whether x is false (of numbers: 0)."""
    if isinstance(x, bool):
        return not x
    return cx.op("tensor.not", [_bools(cx, x)])


@builtin()
def bitwise_not(cx, x):
    """Every bit turned; of bools: not."""
    return cx.op("tensor.not", [cx.tensor(x)])


_plain_binary("bitwise_left_shift", "shl", "x << y.")
_plain_binary("bitwise_right_shift", "shr", "x >> y.")


def _arithmetic(name: str, symbol: str, doc: str, *more: str):
    def run(cx, x, y):
        from .expressions import weak_op
        if _both_static(cx, x, y):
            return weak_op(cx.el, symbol, x, y, cx.span)
        return binary(cx.b, {"+": "add", "-": "sub", "*": "mul", "//": "floordiv"}[symbol], x, y)
    run.__doc__ = doc
    builtin(name, *more)(run)


_arithmetic("add", "+", "x + y.")
_arithmetic("sub", "-", "x - y.", "subtract")
_arithmetic("mul", "*", "x * y.", "multiply")
_arithmetic("floor_divide", "//", "x // y: rounded down.")


@builtin("div", "divide", "true_divide")
def div(cx, x, y, rounding_mode=None):
    """x / y; rounding_mode = "floor" rounds down, "trunc" towards 0."""
    from .expressions import weak_op
    if rounding_mode is not None:
        cx.choice(rounding_mode, "rounding_mode", "floor", "trunc")
    if _both_static(cx, x, y):
        if rounding_mode is None:
            return weak_op(cx.el, "/", x, y, cx.span)
        x = cx.tensor(x)
    if rounding_mode == "floor":
        return binary(cx.b, "floordiv", x, y)
    dtype = common_dtype((x, y))
    xv, yv = (to_float(cx.b, v) for v in together(cx.b, (x, y)))
    q = cx.b.div(xv, yv)
    return q if rounding_mode is None else cx.b.cast(cx.b.trunc(q), dtype)


SYMBOLS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def _comparison(name: str):
    def run(cx, x, y):
        if _both_static(cx, x, y):
            x = cx.tensor(x)
        return binary(cx.b, "compare", x, y, predicate=name)
    run.__doc__ = f"x {SYMBOLS[name]} y, elementwise."
    builtin(name)(run)


for _n in SYMBOLS:
    _comparison(_n)


@builtin()
def hypot(cx, x, y):
    """sqrt(x * x + y * y)."""
    xv, yv = together(cx.b, (cx.float(x), cx.float(y, "y")))
    return cx.b.sqrt(cx.b.add(cx.b.mul(xv, xv), cx.b.mul(yv, yv)))


@builtin()
def clamp(cx, x, min=None, max=None):
    """x, at least min and at most max."""
    if min is None and max is None:
        cx.fail("`clamp` needs `min` or `max`")
    if is_weak(x) and all(v is None or is_weak(v) for v in (min, max)):
        if min is not None:
            x = _pick(cx, x, min, "max")
        return _pick(cx, x, max, "min") if max is not None else x
    b = cx.b
    if not isinstance(x, Value):
        x = cx.tensor(x)
    for bound, inside in ((min, "ge"), (max, "le")):
        if bound is None:
            continue
        xv, edge = together(b, (x, bound))
        keep = b.compare(inside, xv, edge)                     # at the bound the derivative is that of x, as PyTorch's
        if xv.type.dtype.is_float:
            keep = b.ew("or", keep, b.compare("ne", xv, xv))
        x = b.select(keep, xv, edge)
    return x


builtin("clip")(clamp)


@builtin()
def lerp(cx, x, y, weight):
    """x + weight * (y - x)."""
    b = cx.b
    return binary(b, "add", x, binary(b, "mul", weight, binary(b, "sub", y, x))) if isinstance(x, Value) or isinstance(y, Value) \
        else binary(b, "add", cx.tensor(x), binary(b, "mul", weight, cx.tensor(y - x)))


@builtin()
def where(cx, condition, x, y):
    """x where the condition holds, else y."""
    b = cx.b
    if isinstance(condition, bool):
        condition = cx.tensor(condition)
    if not isinstance(condition, Value) or not condition.type.dtype.is_bool:
        cx.fail(f"`where` needs a condition of bools, got {describe(condition)}", "condition", hint="compare it: `x != 0`")
    for v, n in ((x, "x"), (y, "y")):
        if not isinstance(v, Value) and not is_weak(v):
            cx.fail(f"`{n}` of `where` is {describe(v)}, expected a tensor or number", n)
    from .tensors import broadcast_shapes, constant
    dtype = common_dtype((x, y))
    shape = broadcast_shapes(condition.type.shape, *[v.type.shape for v in (x, y) if isinstance(v, Value)])
    xv, yv = (b.broadcast(b.cast(v, dtype), shape) if isinstance(v, Value) else constant(b, v, dtype, shape) for v in (x, y))
    return b.select(b.broadcast(condition, shape), xv, yv)


def _test(name: str, doc: str, emit, static):
    def run(cx, x):
        if is_weak(x) and not isinstance(x, Opaque | Dim):
            return static(x)
        x = cx.tensor(x)
        if not x.type.dtype.is_float:
            return cx.b.constant(static(1), TensorType(bool_, x.type.shape))
        return emit(cx.b, x)
    run.__doc__ = doc
    builtin(name)(run)


_test("isnan", "Whether each element is NaN.", lambda b, x: b.compare("ne", x, x), lambda v: v != v)
_test("isinf", "Whether each element is infinite.", lambda b, x: b.compare("eq", b.abs(x), math.inf), lambda v: abs(v) == math.inf)
_test("isfinite", "Whether each element is neither infinite nor NaN.", lambda b, x: b.compare("lt", b.abs(x), math.inf),
      lambda v: abs(v) < math.inf)


@builtin()
def nan_to_num(cx, x, nan=0.0, posinf=None, neginf=None):
    """NaN replaced by a number, infinities by the given numbers or by the largest that the type has."""
    x, b = cx.float(x), cx.b
    largest = float({"f64": 1.7976931348623157e308, "f32": 3.4028234663852886e38, "f16": 65504.0, "bf16": 3.3895313892515355e38}[x.type.dtype.name])
    high = largest if posinf is None else _number(cx, posinf, "posinf")
    low = -largest if neginf is None else _number(cx, neginf, "neginf")
    y = b.select(b.compare("ne", x, x), 0.0 if nan is None else _number(cx, nan, "nan"), x)
    return b.select(b.compare("eq", x, math.inf), high, b.select(b.compare("eq", x, -math.inf), low, y))


__all__ = ["Quotient"]
