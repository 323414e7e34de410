"""Sliding windows and their adjoint: with them convolutions, pools and their gradients are contractions and reductions."""
from __future__ import annotations

from .common import S, count, need, row, tensor

ATTRS = {"size": "per trailing dim", "stride": "per trailing dim, > 0", "dilation": "per trailing dim, > 0"}


def _positions(n, k, stride, dilation):
    """How many windows of k elements, `dilation` apart, start every `stride` within n."""
    return (n - dilation * (k - 1) - 1) // stride + 1


def _windows(types, attrs, regions):
    count(1, types)
    x, size, stride, dil = tensor(types[0]), attrs["size"], attrs["stride"], attrs["dilation"]
    need(0 < len(size) == len(stride) == len(dil) <= x.rank, f"size, stride and dilation have one entry per trailing dim of {x}")
    lead, space = x.shape[:x.rank - len(size)], x.shape[x.rank - len(size):]
    out = []
    for n, k, st, di in zip(space, size, stride, dil):
        need(k > 0 and st > 0 and di > 0, "size, stride and dilation are positive")
        need(n >= di * (k - 1) + 1, f"a window of {di * (k - 1) + 1} does not fit {n} elements", 0)
        out.append(_positions(n, k, st, di))
    return [x.with_shape((*lead, *out, *size))]


def _windows_grad(b, op, dys):
    x = op.operands[0]
    attrs = {**op.attrs, "shape": list(x.type.shape[x.type.rank - len(op.attrs["size"]):])}
    return [b.op("tensor.fold_windows", [dys[0]], attrs).result]


def _fold(types, attrs, regions):
    count(1, types)
    y, shape = tensor(types[0]), attrs["shape"]
    need(not y.dtype.is_bool, f"expected numbers, got {y}", 0)
    n = len(attrs["size"])
    need(len(shape) == n and y.rank >= 2 * n, f"shape has one entry per window dim; {y} has positions and window dims last", 0)
    lead = y.shape[:y.rank - 2 * n]
    x = y.with_shape((*lead, *shape))
    need(_windows([x], attrs, regions)[0] == y, f"{y} are not the windows of {x}", 0)
    return [x]


def _fold_grad(b, op, dys):
    return [b.op("tensor.windows", [dys[0]], {k: op.attrs[k] for k in ATTRS}).result]


row("tensor.windows", "y[.., o.., k..] = x[.., o * stride + k * dilation ..] over the trailing dims: every window, as new trailing dims.", "x", _windows, _windows_grad,
    attrs=ATTRS, example="%y = tensor.windows(%x) {size = [3], stride = [1], dilation = [1]} : f32[2,6,3]",
    samples=[S("f32[2,8]", size=[3], stride=[1], dilation=[1]), S("f32[2,7,8]", size=[3, 2], stride=[2, 1], dilation=[1, 2])])
row("tensor.fold_windows", "The adjoint of windows: x[.., s..] is the sum of y[.., o.., k..] over all o * stride + k * dilation = s, in ascending k; zero where there is none.",
    "y", _fold, _fold_grad, attrs={**ATTRS, "shape": "trailing sizes of the result"}, exact=False,
    example="%x = tensor.fold_windows(%y) {size = [3], stride = [1], dilation = [1], shape = [8]} : f32[2,8]",
    samples=[S("f32[2,6,3]", size=[3], stride=[1], dilation=[1], shape=[8]), S("f32[2,3,6,3,2]", size=[3, 2], stride=[2, 1], dilation=[1, 2], shape=[7, 8])])
