"""Elementwise operations.  On compile-time numbers they are computed at once."""
from __future__ import annotations

import math

from ..compiler.ir import Dim, TensorType, Value, bool_
from ..compiler.ir.dims import divide
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


def _static(cx, x, f, kind: str | None = None):
    """f of a compile-time number."""
    if isinstance(x, Opaque | Dim):
        return Opaque(kind or (x.kind if isinstance(x, Opaque) else "int"))
    try:
        return f(x)
    except (ValueError, OverflowError, ZeroDivisionError):
        cx.fail(f"`{cx.name}({x})` is not defined")


def _float_op(name: str, f):
    def run(cx, x):
        if is_weak(x):
            return _static(cx, x, f, "float")
        x = cx.tensor(x)
        return cx.op("tensor." + name, [to_float(cx.b, x)])
    run.__name__ = name
    run.__doc__ = f"{name}(x), elementwise; integers become f32."
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
    run.__doc__ = f"{name}(x), elementwise."
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
    run.__doc__ = f"{name}(x), elementwise; integers stay as they are."
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


# ---- activations ------------------------------------------------------------------------------------------------------

def _nn(name: str, f):
    def run(cx, x):
        if is_weak(x):
            return _static(cx, x, f, "float")
        return cx.op("nn." + name, [cx.float(x)])
    run.__doc__ = f"{name}(x), elementwise."
    return run


for _n, _f in {"sigmoid": lambda x: 1 / (1 + math.exp(-x)), "silu": lambda x: x / (1 + math.exp(-x))}.items():
    builtin(_n, *({"silu": ("swish",)}.get(_n, ())))(_nn(_n, _f))


@builtin()
def softplus(cx, x, beta=1.0, threshold=20.0):
    """log(1 + exp(beta * x)) / beta; where beta * x > threshold, x itself."""
    b, k, limit = cx.b, _number(cx, beta, "beta"), _number(cx, threshold, "threshold")
    if is_weak(x) and k == 1:
        return _static(cx, x, lambda x: max(x, 0) + math.log1p(math.exp(-abs(x))), "float")
    x = cx.float(x)
    if k == 1 and limit == 20:                                 # beyond 20 the two agree to the last bit
        return cx.op("nn.softplus", [x])
    z = b.mul(x, k)
    return b.select(b.compare("gt", z, limit), x, b.div(cx.op("nn.softplus", [z]), k))


@builtin()
def relu(cx, x):
    """max(x, 0)."""
    if is_weak(x):
        return _static(cx, x, lambda v: max(v, 0))
    x = cx.tensor(x)
    return cx.op("nn.relu", [x]) if x.type.dtype.is_float else cx.b.max(x, 0)


@builtin()
def gelu(cx, x, approximate="none"):
    """x * Phi(x); approximate = "tanh" for the tanh form."""
    cx.choice(approximate, "approximate", "none", "tanh")
    return cx.op("nn.gelu", [cx.float(x)], {"approximate": approximate})


def _positive(b, x: Value) -> Value:
    return b.compare("gt", x, 0.0)


def _negative_part(b, x: Value) -> Value:
    """x where it is not positive (its derivative at 0 is 1: the exponential side's), else 0, so that nothing overflows."""
    return b.select(_positive(b, x), 0.0, x)


def _between(b, x: Value, lo: float, hi: float, inside: Value, below=None, above=None) -> Value:
    """`inside` where lo < x < hi, else the numbers (by default lo and hi); at the ends the derivative is 0, as PyTorch's."""
    high = b.select(b.compare("ge", x, hi), hi if above is None else above, inside)
    return b.select(b.compare("le", x, lo), lo if below is None else below, high)


@builtin()
def leaky_relu(cx, x, negative_slope=0.01):
    """x where x > 0, else negative_slope * x."""
    x, b = cx.float(x), cx.b
    return b.select(_positive(b, x), x, b.mul(x, _number(cx, negative_slope, "negative_slope")))


def _number(cx, v, arg: str) -> float:
    if isinstance(v, bool) or not isinstance(v, int | float):
        cx.fail(f"`{arg}` of `{cx.name}` is a number known when compiling, got {describe(v)}", arg)
    return float(v)


@builtin()
def elu(cx, x, alpha=1.0):
    """x where x > 0, else alpha * (exp(x) - 1)."""
    x, b = cx.float(x), cx.b
    return b.select(_positive(b, x), x, b.mul(b.expm1(_negative_part(b, x)), _number(cx, alpha, "alpha")))


@builtin()
def celu(cx, x, alpha=1.0):
    """max(0, x) + min(0, alpha * (exp(x / alpha) - 1))."""
    x, b = cx.float(x), cx.b
    a = _number(cx, alpha, "alpha")
    return b.select(_positive(b, x), x, b.mul(b.expm1(b.div(_negative_part(b, x), a)), a))


@builtin()
def selu(cx, x):
    """The self-normalising elu."""
    x, b = cx.float(x), cx.b
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    return b.mul(b.select(_positive(b, x), x, b.mul(b.expm1(_negative_part(b, x)), alpha)), scale)


@builtin()
def relu6(cx, x):
    """min(max(x, 0), 6)."""
    x, b = cx.float(x), cx.b
    return _between(b, x, 0.0, 6.0, x)


@builtin()
def hardtanh(cx, x, min_val=-1.0, max_val=1.0):
    """x between min_val and max_val."""
    x, b = cx.float(x), cx.b
    return _between(b, x, _number(cx, min_val, "min_val"), _number(cx, max_val, "max_val"), x)


@builtin()
def hardsigmoid(cx, x):
    """min(max(x + 3, 0), 6) / 6."""
    x, b = cx.float(x), cx.b
    return _between(b, x, -3.0, 3.0, b.div(b.add(x, 3.0), 6.0), 0.0, 1.0)


@builtin()
def hardswish(cx, x):
    """x * hardsigmoid(x)."""
    x, b = cx.float(x), cx.b
    return _between(b, x, -3.0, 3.0, b.mul(x, b.div(b.add(x, 3.0), 6.0)), 0.0, x)


@builtin()
def mish(cx, x):
    """x * tanh(softplus(x))."""
    x = cx.float(x)
    return cx.b.mul(x, cx.b.tanh(cx.op("nn.softplus", [x])))


@builtin()
def softsign(cx, x):
    """x / (1 + |x|)."""
    x, b = cx.float(x), cx.b
    return b.div(x, b.add(b.abs(x), 1.0))


@builtin("logsigmoid", "log_sigmoid")
def logsigmoid(cx, x):
    """log(sigmoid(x)), without overflow."""
    x, b = cx.float(x), cx.b
    return b.neg(cx.op("nn.softplus", [b.neg(x)]))


@builtin()
def softshrink(cx, x, lambd=0.5):
    """x moved towards 0 by lambd; 0 within."""
    x, b = cx.float(x), cx.b
    k = _number(cx, lambd, "lambd")
    low = b.select(b.compare("lt", x, -k), b.add(x, k), b.mul(x, 0.0))
    return b.select(b.compare("gt", x, k), b.sub(x, k), low)


@builtin()
def hardshrink(cx, x, lambd=0.5):
    """x, but 0 where |x| <= lambd."""
    x, b = cx.float(x), cx.b
    k = _number(cx, lambd, "lambd")
    inside = b.ew("and", b.compare("ge", x, -k), b.compare("le", x, k))
    return b.select(inside, 0.0, x)


@builtin()
def tanhshrink(cx, x):
    """x - tanh(x)."""
    x = cx.float(x)
    return cx.b.sub(x, cx.b.tanh(x))


@builtin()
def threshold(cx, x, threshold, value):
    """x where x > threshold, else value."""
    x, b = cx.float(x), cx.b
    return b.select(b.compare("le", x, _number(cx, threshold, "threshold")), _number(cx, value, "value"), x)


@builtin()
def glu(cx, x, dim=-1):
    """The first half along dim times the sigmoid of the second."""
    from .builtins_shape import cut
    x, b = cx.float(x), cx.b
    d = cx.dim(dim, x.type.rank)
    n = x.type.shape[d]
    if isinstance(n, int) and n % 2:
        cx.fail(f"`glu` halves dimension {d} of {describe(x)}, whose size is odd", "x")
    half = n // 2 if isinstance(n, int) else divide(n, 2)
    return b.mul(cut(b, x, d, 0, half), cx.op("nn.sigmoid", [cut(b, x, d, half, n)]))


@builtin()
def prelu(cx, x, weight):
    """x where x > 0, else weight * x; a weight for each channel (dim 1), or one."""
    x, w, b = cx.float(x), cx.float(weight, "weight"), cx.b
    if w.type.rank > 1:
        cx.fail(f"`weight` of `prelu` is one number, or one a channel, got {describe(w)}", "weight")
    if w.type.rank == 1:
        w = b.reshape(w, (*w.type.shape, *[1] * max(x.type.rank - 2, 0)) if x.type.rank > 1 else w.type.shape)
    shape = x.type.shape
    x, w = together(b, (x, w))
    if x.type.shape != shape:
        if x.type.numel != 1:
            cx.fail(f"`weight` does not fit the channels of {describe(x)}", "weight")
        x, w = b.reshape(x, shape), b.reshape(w, shape)
    return b.select(_positive(b, x), x, b.mul(x, w))


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


def _comparison(name: str):
    def run(cx, x, y):
        if _both_static(cx, x, y):
            x = cx.tensor(x)
        return binary(cx.b, "compare", x, y, predicate=name)
    run.__doc__ = f"Elementwise comparison: {name}."
    builtin(name)(run)


for _n in ("eq", "ne", "lt", "le", "gt", "ge"):
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
