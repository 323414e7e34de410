"""Convolutions with cheap weights, as integer products of windows that are read where they are.

The activations of a sample are whole numbers times one scale and lie with their channels last, so that the taps of a window along the last dim
and their channels are one run of neighbours. A run is filled up with weights of 0 to what a step of packed codes takes; the activations it meets
there are those that follow in memory. With the last dim dilated, a run is one tap's channels.
"""
from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ..ir.types import TensorType, f32
from .common import FRONT, S, count, need, row, tensor
from .packed import FORMATS, Format, codes, packed_shape, rows, sums_fit, weight_format

TAPS, CHANNELS = 2, 3          # what a run is; as `contract` of prepack's arguments, where 0 and 1 are dims of a matrix


def layout(weight: str, filter: tuple[int, ...], run_is: int) -> tuple[Format, int, int, int]:
    """(format, runs, length of a run, length of a packed run) of a filter [out, in, k..]. Where short runs would be mostly filling, wider codes
    in smaller groups take less time."""
    channels, taps = filter[1], filter[2:]
    run = channels * (taps[-1] if run_is == TAPS else 1)
    runs = prod(taps[:-1] if run_is == TAPS else taps)
    fmt = weight_format(weight)[0]
    full = lambda f: -(-run // f.group) * f.group
    if fmt.bits < 8 and 4 * run < 3 * full(fmt):
        fmt = FORMATS["int8"]
    return fmt, runs, run, full(fmt)


def filter_types(weight: str, filter: tuple[int, ...], run_is: int) -> list[TensorType]:
    """Of the packed codes and the scale."""
    fmt, runs, _, padded = layout(weight, filter, run_is)
    return [TensorType(fmt.memory[0], packed_shape(fmt, runs * padded, filter[0])), TensorType(f32, ())]


def pack_filter(b, w, weight: str, run_is: int):
    """(packed codes, scale) of a filter [out, in, k..]."""
    fmt, runs, run, padded = layout(weight, w.type.shape, run_is)
    q, scale = codes(b, w, weight)
    q = b.reshape(b.transpose(q, [*range(2, w.type.rank), 1, 0]), (runs, run, w.type.shape[0]))
    q = b.reshape(_pad(b, q, [0, 0, 0], [0, padded - run, 0]), (runs * padded, w.type.shape[0]))
    return b.op("tensor.pack", [q], {"format": fmt.name}).result, scale


def _pad(b, x, low, high):
    if not any([*low, *high]):
        return x
    zero = b.constant(0, TensorType(x.type.dtype, ()))
    return b.op("tensor.pad", [x, zero], {"low": list(low), "high": list(high), "interior": [0] * x.type.rank}).result


@dataclass(frozen=True)
class Geometry:
    """Sizes of a convolution of [B, in, s..] with [out, in, k..]."""

    x: tuple[int, ...]
    w: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]

    @property
    def out(self) -> tuple[int, ...]:
        """Positions of the window."""
        return tuple((n + p + q - d * (k - 1) - 1) // s + 1 for n, k, s, d, p, q in zip(self.x[2:], self.w[2:], self.stride, self.dilation, self.low, self.high))

    @property
    def run_is(self) -> int:
        return TAPS if self.dilation[-1] == 1 else CHANNELS


def geometry(x, w, attrs) -> Geometry:
    return Geometry(tuple(x.shape), tuple(w.shape), *(tuple(attrs[a]) for a in ("stride", "dilation", "low", "high")))


def _rounded(b, x, dtype):
    """(whole numbers [B, in, s..], the samples' scales [B])."""
    batch = x.type.shape[0]
    q, sx = rows(b, b.reshape(x, (batch, prod(x.type.shape[1:]))), dtype)
    return b.reshape(q, x.type.shape), b.reshape(sx, (batch,))


def convolution(b, x, packed, scale, weight: str, g: Geometry):
    """x * (packed codes times scale): each sample of x in whole numbers, summed exactly, scaled once. [B, out, positions..]."""
    fmt, _, run, padded = layout(weight, g.w, g.run_is)
    n, (batch, channels, *space) = len(g.stride), g.x
    q, sx = _rounded(b, x, fmt.memory[1])
    q = b.transpose(q, [0, *range(2, n + 2), 1])
    if g.run_is == TAPS:                                   # [B, .., W * in]
        width = -(-((g.out[-1] - 1) * g.stride[-1] * channels + padded) // channels)
        q = _pad(b, q, [0, *g.low, 0], [0, *g.high[:-1], width - g.low[-1] - space[-1], 0])
        q = b.reshape(q, (*q.type.shape[:-2], width * channels))
        size, stride, dilation = [*g.w[2:-1], padded], [*g.stride[:-1], g.stride[-1] * channels], list(g.dilation)
    else:                                                  # [B, .., W, in]
        q = _pad(b, q, [0, *g.low, 0], [0, *g.high, padded - run])
        size, stride, dilation = [*g.w[2:], padded], [*g.stride, 1], [*g.dilation, 1]
    v = b.op("tensor.windows", [q], {"size": size, "stride": stride, "dilation": dilation}).result
    sums = b.op("tensor.dot_packed", [v, packed], {"format": fmt.name, "n": g.w[0], "dims": len(size), "at": 1}).result
    y = b.reshape(sums, (batch, g.w[0], *g.out))
    return b.mul(b.cast(y, f32), b.broadcast(b.mul(sx, b.broadcast(scale, sx.type.shape)), y.type.shape, [0]))


def _quantized_conv(types, attrs, regions):
    count(2, types)
    x, w = tensor(types[0]), tensor(types[1], 1)
    need(x.dtype is f32 and w.dtype is f32, f"expected f32, got {x} and {w}", 0, 1)
    need(w.rank >= 3 and x.rank == w.rank and x.shape[1] == w.shape[1], f"cannot convolve {x} with {w}", 0, 1)
    need(all(len(attrs[a]) == w.rank - 2 for a in ("stride", "dilation", "low", "high")), "stride, dilation, low and high have one entry per dim")
    need(min(*attrs["stride"], *attrs["dilation"]) > 0 and min(*attrs["low"], *attrs["high"]) >= 0, "stride and dilation are positive, low and high not negative")
    out = geometry(x, w, attrs).out
    need(min(out) > 0, f"a window of {w} does not fit {x}", 0, 1)
    k = prod(w.shape[1:])
    need(k > 0 and sums_fit(str(attrs.get("weight")), k), f"sums of {k} products with {attrs['weight']} weights do not fit i32")
    return [x.with_shape((x.shape[0], w.shape[0], *out))]


def _quantized_conv_expand(b, op):
    x, w = op.operands
    g = geometry(x.type, w.type, op.attrs)
    packed, scale = pack_filter(b, w, op.attrs["weight"], g.run_is)
    return [convolution(b, x, packed, scale, op.attrs["weight"], g)]


def _quantized_conv_grad(b, op, dys):
    """Straight through both roundings: the gradients of the float convolution of the rounded x with the rounded w."""
    (x, w), dy, a = op.operands, dys[0], op.attrs
    n, shape = w.type.rank - 2, x.type.shape
    places = {"size": list(w.type.shape[2:]), "stride": a["stride"], "dilation": a["dilation"]}
    wq = b.op("nn.quantize", [w], {"weight": a["weight"]}).result
    y = b.op("tensor.dot_general", [wq, dy], {"lhs_batch": [], "rhs_batch": [], "lhs_contract": [0], "rhs_contract": [1]}).result    # [in, k.., B, o..]
    y = b.transpose(y, [n + 1, 0, *range(n + 2, 2 * n + 2), *range(1, n + 1)])
    full = [s + p + q for s, p, q in zip(shape[2:], a["low"], a["high"])]
    y = b.op("tensor.fold_windows", [y], {**places, "shape": full}).result
    dx = _pad(b, y, [0, 0, *(-p for p in a["low"])], [0, 0, *(-q for q in a["high"])])
    q, sx = _rounded(b, x, weight_format(a["weight"])[0].memory[1])
    xq = b.mul(b.cast(q, f32), b.broadcast(sx, shape, [0]))
    v = b.op("tensor.windows", [_pad(b, xq, [0, 0, *a["low"]], [0, 0, *a["high"]])], places).result                                 # [B, in, o.., k..]
    over = [0, *range(2, n + 2)]
    dw = b.op("tensor.dot_general", [dy, v], {"lhs_batch": [], "rhs_batch": [], "lhs_contract": over, "rhs_contract": over}).result
    return [dx, dw]


def _sample(x: str, w: str, weight: str, stride=(1, 1), dilation=(1, 1), low=(0, 0), high=(0, 0)):
    return S(x, w, weight=weight, stride=list(stride), dilation=list(dilation), low=list(low), high=list(high))


row("nn.quantized_conv", "The convolution of x[B, in, s..] with w[out, in, k..], w as nn.quantize has it and each sample of x rounded to whole numbers of max |x| / 127: sums of "
    "products of small integers, exact, scaled once. low and high: zeros around x. Gradients pass straight through both roundings.", "x w", _quantized_conv,
    _quantized_conv_grad, stages=FRONT, decompose=_quantized_conv_expand, exact=False,
    attrs={"weight": "ternary int8 int4 pow2(n)", "stride": "per dim", "dilation": "per dim", "low": "per dim", "high": "per dim"},
    example='%y = nn.quantized_conv(%x, %w) {weight = "ternary", stride = [1, 1], dilation = [1, 1], low = [0, 0], high = [0, 0]} : f32[2,5,4,5]',
    samples=[_sample("f32[2,3,6,7]", "f32[5,3,3,3]", "ternary"), _sample("f32[2,4,6,7]", "f32[17,4,2,4]", "ternary", (2, 1), (1, 1), (1, 2), (0, 1)),
             _sample("f32[1,3,7,8]", "f32[4,3,3,2]", "int8", (1, 2), (2, 3), (1, 1), (1, 1)), _sample("f32[2,2,5,6]", "f32[3,2,2,3]", "pow2(12)"),
             _sample("f32[2,3,5,6]", "f32[3,3,1,3]", "pow2(7)", (1, 1), (1, 1), (0, 1), (0, 1)),
             S("f32[2,5,9]", "f32[4,5,4]", weight="int4", stride=[2], dilation=[1], low=[0], high=[1])])
