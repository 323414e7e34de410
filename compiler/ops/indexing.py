"""Rows that read or write at run-time positions. An index out of range is a run-time error, never undefined."""
from __future__ import annotations

from ..ir.types import TensorType, i64
from .common import S, count, need, row, tensor


def _index(t, i):
    need(tensor(t, i).dtype.is_int, f"expected integer indices, got {t}", i)
    return t


def _starts(types, first, rank):
    need(len(types) == first + rank, f"expected {rank} start indices, got {len(types) - first}")
    for i, t in enumerate(types[first:], first):
        need(t == TensorType(i64), f"expected a start index i64[], got {t}", i)


def _dynamic_slice(types, attrs, regions):
    x, sizes = tensor(types[0]), attrs["sizes"]
    need(len(sizes) == x.rank, "sizes has one entry per dim")
    _starts(types, 1, x.rank)
    need(all(0 <= s <= n for s, n in zip(sizes, x.shape)), f"sizes {list(sizes)} exceed {x}", 0)
    return [x.with_shape(sizes)]


def _dynamic_slice_grad(b, op, dys):
    x, starts = op.operands[0], op.operands[1:]
    return [b.op("tensor.dynamic_update_slice", [b.zeros(x.type), dys[0], *starts]).result] + [None] * len(starts)


row("tensor.dynamic_slice", "A block of `sizes` at run-time starts; out of range is an error.", "x *starts", _dynamic_slice, _dynamic_slice_grad,
    attrs={"sizes": "per dim"}, example="%y = tensor.dynamic_slice(%x, %i, %j) {sizes = [2, 2]} : f32[2,2]",
    samples=[S("f32[4,5]", ("i64[]", 0, 2), ("i64[]", 0, 3), sizes=[2, 2])])


def _dynamic_update_slice(types, attrs, regions):
    x, u = tensor(types[0]), tensor(types[1], 1)
    need(u.dtype is x.dtype and u.rank == x.rank and all(p <= q for p, q in zip(u.shape, x.shape)), f"cannot write {u} into {x}", 1, 0)
    _starts(types, 2, x.rank)
    return [x]


def _dynamic_update_slice_grad(b, op, dys):
    x, u, *starts = op.operands
    g = dys[0]
    dx = b.op("tensor.dynamic_update_slice", [g, b.zeros(u.type), *starts]).result
    du = b.op("tensor.dynamic_slice", [g, *starts], {"sizes": list(u.type.shape)}).result
    return [dx, du] + [None] * len(starts)


row("tensor.dynamic_update_slice", "x with the block at run-time starts replaced by `update`; out of range is an error.", "x update *starts",
    _dynamic_update_slice, _dynamic_update_slice_grad, example="%y = tensor.dynamic_update_slice(%x, %u, %i, %j) : f32[4,5]",
    samples=[S("f32[4,5]", "f32[2,2]", ("i64[]", 0, 2), ("i64[]", 0, 3))])


def _take(types, attrs, regions):
    count(2, types)
    x, i, d = tensor(types[0]), _index(types[1], 1), attrs["dim"]
    need(0 <= d < x.rank, f"dim {d} out of range for {x}", 0)
    return [x.with_shape(x.shape[:d] + i.shape + x.shape[d + 1:])]


def _take_grad(b, op, dys):
    x, i = op.operands
    return [b.op("tensor.scatter_add", [b.zeros(x.type), i, dys[0]], dict(op.attrs)).result, None]


row("tensor.take", "numpy.take: x's slices along dim at `indices` (any shape, which replaces the dim).", "x indices", _take, _take_grad, attrs={"dim": "int"},
    example="%y = tensor.take(%x, %i) {dim = 0} : f32[6,5]", samples=[S("f32[4,5]", ("i64[6]", 0, 3), dim=0), S("f32[4,5]", ("i64[2,3]", 0, 4), dim=1)])


def _scatter_add(types, attrs, regions):
    count(3, types)
    x, i, u, d = tensor(types[0]), _index(types[1], 1), tensor(types[2], 2), attrs["dim"]
    need(0 <= d < x.rank and u.dtype is x.dtype and u.shape == x.shape[:d] + i.shape + x.shape[d + 1:], f"cannot add {u} at {i} into {x} along dim {d}", 2)
    need(not x.dtype.is_bool, f"expected numbers, got {x}", 0)
    return [x]


def _scatter_add_grad(b, op, dys):
    i = op.operands[1]
    return [dys[0], None, b.op("tensor.take", [dys[0], i], dict(op.attrs)).result]


row("tensor.scatter_add", "x with `updates` added at `indices` along dim (the transpose of take); equal indices add in order.", "x indices updates",
    _scatter_add, _scatter_add_grad, attrs={"dim": "int"}, example="%y = tensor.scatter_add(%x, %i, %u) {dim = 0} : f32[4,5]", exact=False,
    samples=[S("f32[4,5]", ("i64[6]", 0, 3), "f32[6,5]", dim=0), S("f32[4,5]", ("i64[2,3]", 0, 4), "f32[4,2,3]", dim=1)])


def _along(x, i, d):
    need(i.rank == x.rank and 0 <= d < x.rank and all(k == d or p <= q for k, (p, q) in enumerate(zip(i.shape, x.shape))),
         f"cannot index {x} with {i} along dim {d}: the other dims must not be larger", 0, 1)


def _take_along(types, attrs, regions):
    count(2, types)
    x, i = tensor(types[0]), _index(types[1], 1)
    _along(x, i, attrs["dim"])
    return [x.with_shape(i.shape)]


def _take_along_grad(b, op, dys):
    x, i = op.operands
    return [b.op("tensor.put_along_add", [b.zeros(x.type), i, dys[0]], dict(op.attrs)).result, None]


row("tensor.take_along", "torch.gather: y[.., j, ..] = x[.., indices[.., j, ..], ..] along dim.", "x indices", _take_along, _take_along_grad, attrs={"dim": "int"},
    example="%y = tensor.take_along(%x, %i) {dim = 1} : f32[4,2]", samples=[S("f32[4,5]", ("i64[4,2]", 0, 4), dim=1), S("f32[4,5]", ("i64[2,5]", 0, 3), dim=0)])


def _put_along(types, attrs, regions):
    count(3, types)
    x, i, u = tensor(types[0]), _index(types[1], 1), tensor(types[2], 2)
    _along(x, i, attrs["dim"])
    need(u.dtype is x.dtype and u.shape == i.shape, f"expected updates {x.with_shape(i.shape)}, got {u}", 2)
    need(not x.dtype.is_bool, f"expected numbers, got {x}", 0)
    return [x]


def _put_along_grad(b, op, dys):
    return [dys[0], None, b.op("tensor.take_along", [dys[0], op.operands[1]], dict(op.attrs)).result]


row("tensor.put_along_add", "torch.scatter_add: x with updates added at indices along dim (the transpose of take_along).", "x indices updates",
    _put_along, _put_along_grad, attrs={"dim": "int"}, example="%y = tensor.put_along_add(%x, %i, %u) {dim = 1} : f32[4,5]", exact=False,
    samples=[S("f32[4,5]", ("i64[4,2]", 0, 4), "f32[4,2]", dim=1), S("f32[4,5]", ("i64[2,5]", 0, 3), "f32[2,5]", dim=0)])
