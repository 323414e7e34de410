"""Activation functions.  Their derivatives at kinks are PyTorch's."""
from __future__ import annotations

import math

from ..compiler.ir import Value
from ..compiler.ir.dims import divide
from .builtins import builtin
from .builtins_math import _number, _static
from .tensors import is_weak, together
from .values import describe


def _nn(name: str, f):
    def run(cx, x):
        if is_weak(x):
            return _static(cx, x, f, "float")
        return cx.op("nn." + name, [cx.float(x)])
    run.__doc__ = {"sigmoid": "1 / (1 + exp(-x)).", "silu": "x * sigmoid(x)."}[name]
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
