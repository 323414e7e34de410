"""Rows that make or move data without computing: constants, reshapes, broadcasts, slices, pads, concatenation."""
from __future__ import annotations

import numpy as np

from ..ir.dims import maybe_equal, product
from ..ir.types import TensorType, f32, i64
from .common import S, count, need, norm_dims, row, tensor

NO_INPUT = "it has no inputs"


def _constant(types, attrs, regions):
    t, value = attrs["type"], attrs["value"]
    need(not isinstance(value, np.ndarray) or value.shape == tuple(t.shape), f"{t} holds an array of another shape: {getattr(value, 'shape', None)}")
    return [t]


row("tensor.constant", "A constant: one number for all elements (splat) or an ndarray of the type's shape.", "", _constant, NO_INPUT,
    attrs={"value": "a number or ndarray", "type": "TensorType"}, example="%c = tensor.constant() {value = 0.5, type = f32[3,5]} : f32[3,5]",
    samples=[S(value=0.5, type=TensorType(f32, (3, 5)))])


def _iota(types, attrs, regions):
    need(0 <= attrs["dim"] < len(attrs["shape"]), "dim out of range")
    return [TensorType(attrs["dtype"], tuple(attrs["shape"]))]


row("tensor.iota", "The index along `dim`: 0, 1, 2 ...", "", _iota, NO_INPUT, attrs={"shape": "sizes", "dim": "int", "dtype": "DType"},
    example="%i = tensor.iota() {shape = [3, 5], dim = 1, dtype = i64} : i64[3,5]",
    samples=[S(shape=[3, 5], dim=1, dtype=i64), S(shape=[3, 5], dim=0, dtype=f32)])


def _broadcast(types, attrs, regions):
    count(1, types)
    x, shape, dims = tensor(types[0]), tuple(attrs["shape"]), list(attrs["dims"])
    need(len(dims) == x.rank, f"dims has {len(dims)} entries for rank {x.rank}")
    need(all(0 <= d < len(shape) for d in dims) and all(a < b for a, b in zip(dims, dims[1:])), f"dims {dims} must increase within rank {len(shape)}")
    for j, d in enumerate(dims):
        need(x.shape[j] == 1 or maybe_equal(x.shape[j], shape[d]), f"cannot broadcast {x} to {x.with_shape(shape)}", 0)
    return [x.with_shape(shape)]


def _broadcast_grad(b, op, dys):
    x, dims, shape = op.operands[0], op.attrs["dims"], op.attrs["shape"]
    red = [d for d in range(len(shape)) if d not in dims] + [d for j, d in enumerate(dims) if x.type.shape[j] == 1 and shape[d] != 1]
    return [b.reshape(b.sum(dys[0], red), x.type.shape)]


row("tensor.broadcast", "x's dim j becomes result dim dims[j]; its size is the result's or 1.", "x", _broadcast, _broadcast_grad,
    attrs={"shape": "result sizes", "dims": "increasing result dims, one per operand dim"},
    example="%y = tensor.broadcast(%x) {shape = [3, 5], dims = [1]} : f32[3,5]",
    samples=[S("f32[5]", shape=[3, 5], dims=[1]), S("f32[3,1]", shape=[3, 5], dims=[0, 1]), S("f32[]", shape=[4], dims=[])])


def _reshape(types, attrs, regions):
    count(1, types)
    x, shape = tensor(types[0]), tuple(attrs["shape"])
    need(maybe_equal(x.numel, product(shape)), f"cannot reshape {x} to {x.with_shape(shape)}: {x.numel} elements against {product(shape)}", 0)
    return [x.with_shape(shape)]


row("tensor.reshape", "The same elements in row-major order under another shape.", "x", _reshape,
    lambda b, op, dys: [b.reshape(dys[0], op.operands[0].type.shape)], attrs={"shape": "result sizes"},
    example="%y = tensor.reshape(%x) {shape = [15]} : f32[15]", samples=[S("f32[3,5]", shape=[15]), S("f32[2,6]", shape=[3, 2, 2])])


def _transpose(types, attrs, regions):
    count(1, types)
    x, perm = tensor(types[0]), list(attrs["perm"])
    need(sorted(perm) == list(range(x.rank)), f"perm {perm} is no permutation of rank {x.rank}", 0)
    return [x.with_shape(x.shape[p] for p in perm)]


def _transpose_grad(b, op, dys):
    perm = op.attrs["perm"]
    return [b.transpose(dys[0], [perm.index(i) for i in range(len(perm))])]


row("tensor.transpose", "Result dim i is operand dim perm[i].", "x", _transpose, _transpose_grad, attrs={"perm": "a permutation"},
    example="%y = tensor.transpose(%x) {perm = [1, 0]} : f32[5,3]", samples=[S("f32[3,5]", perm=[1, 0]), S("f32[2,3,4]", perm=[2, 0, 1])])


def _slice(types, attrs, regions):
    count(1, types)
    x = tensor(types[0])
    start, limit, stride = attrs["start"], attrs["limit"], attrs["stride"]
    need(len(start) == len(limit) == len(stride) == x.rank, "start, limit and stride have one entry per dim")
    out = []
    for d, (lo, hi, st) in enumerate(zip(start, limit, stride)):
        need(st > 0 and lo >= 0 and hi <= x.shape[d] and lo <= hi, f"slice {lo}:{hi}:{st} is out of range for dim {d} of {x}", 0)
        out.append((hi - lo) if st == 1 else (hi - lo + st - 1) // st)
    return [x.with_shape(out)]


def _slice_grad(b, op, dys):
    x = op.operands[0]
    a = op.attrs
    low, high, inner = list(a["start"]), [], [s - 1 for s in a["stride"]]
    for d, n in enumerate(op.results[0].type.shape):
        used = (n - 1) * a["stride"][d] + 1 if n > 0 else 0
        high.append(x.type.shape[d] - a["start"][d] - used)
    zero = b.constant(0, TensorType(x.type.dtype))
    return [b.op("tensor.pad", [dys[0], zero], {"low": low, "high": high, "interior": inner}).result]


row("tensor.slice", "Elements start, start + stride, ... below limit, in each dim.", "x", _slice, _slice_grad,
    attrs={"start": "per dim", "limit": "per dim", "stride": "per dim, > 0"},
    example="%y = tensor.slice(%x) {start = [0, 1], limit = [3, 5], stride = [1, 2]} : f32[3,2]",
    samples=[S("f32[3,5]", start=[0, 1], limit=[3, 5], stride=[1, 2]), S("f32[6]", start=[2], limit=[6], stride=[3])])


def _reverse(types, attrs, regions):
    count(1, types)
    norm_dims(attrs["dims"], tensor(types[0]).rank)
    return [types[0]]


row("tensor.reverse", "Reverses the order along dims.", "x", _reverse,
    lambda b, op, dys: [b.op("tensor.reverse", [dys[0]], dict(op.attrs)).result], attrs={"dims": "which"},
    example="%y = tensor.reverse(%x) {dims = [0]} : f32[3,5]", samples=[S("f32[3,5]", dims=[0]), S("f32[3,5]", dims=[0, 1])])


def _pad(types, attrs, regions):
    count(2, types)
    x, v = tensor(types[0]), tensor(types[1], 1)
    need(v.rank == 0 and v.dtype is x.dtype, f"expected a padding value {x.dtype}[], got {v}", 1)
    low, high, inner = attrs["low"], attrs["high"], attrs["interior"]
    need(len(low) == len(high) == len(inner) == x.rank, "low, high and interior have one entry per dim")
    out = []
    for d, n in enumerate(x.shape):
        size = n + max(n - 1, 0) * inner[d] + low[d] + high[d] if isinstance(n, int) else n + low[d] + high[d]
        need(inner[d] >= 0 and size >= 0, f"padding of dim {d} gives a negative size", 0)
        out.append(size)
    return [x.with_shape(out)]


def _pad_grad(b, op, dys):
    x, a = op.operands[0], op.attrs
    g = dys[0]
    # Negative padding cropped elements: put zeros back first, then slice the positive part away.
    crop_lo, crop_hi = [max(-p, 0) for p in a["low"]], [max(-p, 0) for p in a["high"]]
    if any(crop_lo) or any(crop_hi):
        zero = b.constant(0, TensorType(x.type.dtype))
        g = b.op("tensor.pad", [g, zero], {"low": crop_lo, "high": crop_hi, "interior": [0] * x.type.rank}).result
    start = [max(p, 0) for p in a["low"]]
    stride = [i + 1 for i in a["interior"]]
    limit = [s + (n - 1) * st + 1 if n > 0 else s for s, n, st in zip(start, x.type.shape, stride)]
    dx = b.op("tensor.slice", [g], {"start": start, "limit": limit, "stride": stride}).result
    all_dims = list(range(x.type.rank))
    dv = b.sub(b.sum(dys[0], all_dims), b.sum(dx, all_dims))
    return [dx, dv]


row("tensor.pad", "Puts `value` before (low), after (high) and between (interior) the elements; negative low or high crop.", "x value",
    _pad, _pad_grad, attrs={"low": "per dim", "high": "per dim", "interior": "per dim, >= 0"},
    example="%y = tensor.pad(%x, %v) {low = [-1], high = [2], interior = [0]} : f32[7]",
    samples=[S("f32[3,5]", "f32[]", low=[1, 0], high=[0, 2], interior=[0, 1]), S("f32[6]", "f32[]", low=[-1], high=[2], interior=[0])])


def _concat(types, attrs, regions):
    need(len(types) > 0, "needs at least one operand")
    x, d = tensor(types[0]), attrs["dim"]
    need(0 <= d < x.rank, f"dim {d} out of range for {x}", 0)
    total = x.shape[d]
    for i, t in enumerate(types[1:], 1):
        need(tensor(t, i).dtype is x.dtype and t.rank == x.rank and all(k == d or p == q for k, (p, q) in enumerate(zip(x.shape, t.shape))),
             f"cannot concatenate {x} and {t} along dim {d}", 0, i)
        total = total + t.shape[d]
    return [x.with_shape(total if k == d else n for k, n in enumerate(x.shape))]


def _concat_grad(b, op, dys):
    d, at, out = op.attrs["dim"], 0, []
    shape = op.results[0].type.shape
    for x in op.operands:
        start = [0] * len(shape)
        limit = list(shape)
        start[d], limit[d] = at, at + x.type.shape[d]
        out.append(b.op("tensor.slice", [dys[0]], {"start": start, "limit": limit, "stride": [1] * len(shape)}).result)
        at = limit[d]
    return out


row("tensor.concat", "Joins tensors along `dim`.", "*xs", _concat, _concat_grad, attrs={"dim": "int"},
    example="%y = tensor.concat(%a, %b) {dim = 0} : f32[5,4]", samples=[S("f32[3,4]", "f32[2,4]", dim=0), S("f32[3,4]", "f32[3,1]", "f32[3,2]", dim=1)])


row("tensor.stop_gradient", "x itself; nothing flows back through it.", "x", lambda types, attrs, regions: [types[0]], lambda b, op, dys: [None],
    example="%y = tensor.stop_gradient(%x) : f32[3,5]", samples=[])
