"""Normalisation and dropout."""
from __future__ import annotations

from ..compiler.ir import TensorType, Value, f32
from ..compiler.ir.dims import maybe_equal
from .builtins import builtin
from .builtins_math import _number
from .builtins_reduce import mean_of, widened
from .tensors import together
from .values import type_text


def _last_dims(cx, x: Value, shape) -> list[int]:
    if shape is None:
        return [x.type.rank - 1]
    sizes = cx.shape(shape, "normalized_shape")
    if len(sizes) > x.type.rank or not all(maybe_equal(p, q) for p, q in zip(sizes, x.type.shape[x.type.rank - len(sizes):])):
        cx.fail(f"`normalized_shape` [{', '.join(map(str, sizes))}] is not how {type_text(x.type)} ends", "normalized_shape")
    return list(range(x.type.rank - len(sizes), x.type.rank))


def affine(cx, y: Value, weight, bias) -> Value:
    """y * weight + bias, either left out."""
    b = cx.b
    if weight is not None:
        y, w = together(b, (y, cx.tensor(weight, "weight")))
        y = b.mul(y, w)
    if bias is not None:
        y, v = together(b, (y, cx.tensor(bias, "bias")))
        y = b.add(y, v)
    return y


def standardised(cx, x: Value, dims, eps) -> Value:
    """(x - mean) / sqrt(var + eps) over dims."""
    b, dtype = cx.b, x.type.dtype
    x = widened(b, x)
    c = b.sub(x, b.broadcast(mean_of(b, x, dims, True), x.type.shape))
    v = mean_of(b, b.mul(c, c), dims, True)
    return b.cast(b.mul(c, b.broadcast(b.rsqrt(b.add(v, _number(cx, eps, "eps"))), x.type.shape)), dtype)


@builtin()
def layer_norm(cx, x, normalized_shape=None, weight=None, bias=None, eps=1e-5):
    """(x - mean) / sqrt(var + eps) over the last dims (by default the last one)."""
    x = cx.float(x)
    return affine(cx, standardised(cx, x, _last_dims(cx, x, normalized_shape), eps), weight, bias)


@builtin()
def rms_norm(cx, x, normalized_shape=None, weight=None, eps=None):
    """x / sqrt(mean(x^2) + eps) over the last dims (by default the last one); without eps, that of the type."""
    b = cx.b
    x = cx.float(x)
    dims = _last_dims(cx, x, normalized_shape)
    small = 2.0 ** -{"f64": 52, "f32": 23, "f16": 10, "bf16": 7}[x.type.dtype.name] if eps is None else _number(cx, eps, "eps")
    z = widened(b, x)
    v = mean_of(b, b.mul(z, z), dims, True)
    y = b.mul(z, b.broadcast(b.rsqrt(b.add(v, small)), z.type.shape))
    return affine(cx, b.cast(y, x.type.dtype), weight, None)


def _channels(cx, v, x: Value, arg: str) -> Value | None:
    """One number a channel (dim 1 of x), to go with x."""
    if v is None:
        return None
    v = cx.float(v, arg)
    if v.type.rank != 1 or not maybe_equal(v.type.shape[0], x.type.shape[1]):
        cx.fail(f"`{arg}` holds one number a channel, {x.type.shape[1]} in all, got {type_text(v.type)}", arg)
    return cx.b.broadcast(v, x.type.shape, [1])


def _with_channels(cx, x) -> Value:
    x = cx.float(x)
    if x.type.rank < 2:
        cx.fail(f"`{cx.name}` needs [batch, channels, ..], got {type_text(x.type)}", "x")
    return x


@builtin()
def group_norm(cx, x, num_groups, weight=None, bias=None, eps=1e-5):
    """Standardised over each group of channels (dim 1) and all later dims."""
    b = cx.b
    x = _with_channels(cx, x)
    n, c = x.type.shape[:2]
    g = cx.int(num_groups, "num_groups")
    if not isinstance(g, int) or g <= 0 or isinstance(c, int) and c % g:
        cx.fail(f"{c} channels do not divide into {g} groups", "num_groups")
    rest = x.type.shape[2:]
    y = b.reshape(x, (n, g, c // g if isinstance(c, int) else _quotient(c, g), *rest))
    y = b.reshape(standardised(cx, y, range(2, y.type.rank), eps), x.type.shape)
    return affine(cx, y, _channels(cx, weight, x, "weight"), _channels(cx, bias, x, "bias"))


def _quotient(n, k):
    from ..compiler.ir.dims import divide
    return divide(n, k)


@builtin()
def instance_norm(cx, x, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, eps=1e-5):
    """Each channel of each sample standardised over its later dims; without use_input_stats, by the running statistics."""
    b = cx.b
    x = _with_channels(cx, x)
    if cx.flag(use_input_stats, "use_input_stats"):
        y = standardised(cx, x, range(2, x.type.rank), eps)
    else:
        y = _by_statistics(cx, b, x, running_mean, running_var, eps)
    return affine(cx, y, _channels(cx, weight, x, "weight"), _channels(cx, bias, x, "bias"))


def _by_statistics(cx, b, x: Value, mean, var, eps) -> Value:
    m, v = _channels(cx, mean, x, "running_mean"), _channels(cx, var, x, "running_var")
    if m is None or v is None:
        cx.fail(f"`{cx.name}` outside of training needs `running_mean` and `running_var`")
    return b.mul(b.sub(x, b.cast(m, x.type.dtype)), b.rsqrt(b.add(b.cast(v, x.type.dtype), _number(cx, eps, "eps"))))


@builtin()
def batch_norm(cx, x, running_mean=None, running_var=None, weight=None, bias=None, training=None, eps=1e-5):
    """Each channel (dim 1) standardised: in training by the batch's own statistics, else by the running ones.  A function writes no
    state: keeping the running statistics is the layer's business, see BatchNorm in std/nn.nn."""
    b = cx.b
    x = _with_channels(cx, x)
    if cx.el.training if training is None else cx.flag(training, "training"):
        y = standardised(cx, x, [0, *range(2, x.type.rank)], eps)
    else:
        y = _by_statistics(cx, b, x, running_mean, running_var, eps)
    return affine(cx, y, _channels(cx, weight, x, "weight"), _channels(cx, bias, x, "bias"))


@builtin()
def normalize(cx, x, p=2, dim=-1, eps=1e-12):
    """x divided by its p-norm along dim."""
    from .builtins_reduce import norm
    b = cx.b
    x = cx.float(x)
    n = norm(cx, x, p, dim, True)
    return b.div(x, b.broadcast(b.max(n, _number(cx, eps, "eps")), x.type.shape))


@builtin()
def dropout(cx, x, p=0.5, training=None, key=None):
    """In training, elements become 0 with probability p and the others grow by 1 / (1 - p)."""
    x = cx.float(x)
    on = cx.el.training if training is None else cx.flag(training, "training")
    rate = _number(cx, p, "p")
    if not 0 <= rate <= 1:
        cx.fail(f"`p` of `dropout` is a probability, got {rate}", "p")
    if not on or rate == 0:
        return x
    b = cx.b
    if rate == 1:
        return b.zeros(TensorType(x.type.dtype, x.type.shape))
    from .builtins_make import key_of, unit
    keep = b.compare("lt", unit(cx, "uniform", key_of(cx, key), x.type.shape, f32), 1 - rate)
    return b.select(keep, b.mul(x, 1 / (1 - rate)), 0.0)
