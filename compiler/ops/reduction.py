"""Rows that reduce, scan along or order a dim."""
from __future__ import annotations

from ..ir.types import TensorType, i64
from .common import S, count, need, norm_dims, row, tensor


def _reduce(bools: bool):
    def infer(types, attrs, regions):
        count(1, types)
        x = tensor(types[0])
        need(bools or not x.dtype.is_bool, f"expected numbers, got {x}", 0)
        dims = norm_dims(attrs["dims"], x.rank)
        return [x.with_shape(n for d, n in enumerate(x.shape) if d not in dims)]
    return infer


def _spread(b, v, op):
    """A reduced value broadcast back over the reduced dims."""
    x = op.operands[0]
    keep = [d for d in range(x.type.rank) if d not in op.attrs["dims"]]
    return b.broadcast(v, x.type.shape, keep)


def _extreme_grad(b, op, dys):
    # Ties share the gradient equally (torch.amax).
    x, y, g = op.operands[0], op.results[0], dys[0]
    hit = b.cast(b.compare("eq", x, _spread(b, y, op)), x.type.dtype)
    return [b.mul(hit, _spread(b, b.div(g, b.sum(hit, op.attrs["dims"])), op))]


def _prod_grad(b, op, dys):
    # Exact also where factors are zero: product of all others = exclusive prefix product * exclusive suffix product.
    x, dims = op.operands[0], list(op.attrs["dims"])
    keep = [d for d in range(x.type.rank) if d not in dims]
    perm = keep + dims
    n = 1
    for d in dims:
        n *= x.type.shape[d]
    flat = b.reshape(b.transpose(x, perm), [x.type.shape[d] for d in keep] + [n])
    others = b.mul(_exclusive(b, flat, False), _exclusive(b, flat, True))
    others = b.transpose(b.reshape(others, [x.type.shape[d] for d in perm]), [perm.index(i) for i in range(len(perm))])
    return [b.mul(others, _spread(b, dys[0], op))]


def _exclusive(b, x, reverse):
    d = x.type.rank - 1
    n = x.type.shape[d]
    p = b.op("tensor.cumprod", [x], {"dim": d, "reverse": reverse}).result
    one = b.constant(1, TensorType(x.type.dtype))
    low = [0] * d + ([0] if reverse else [1])
    high = [0] * d + ([1] if reverse else [0])
    padded = b.op("tensor.pad", [p, one], {"low": low, "high": high, "interior": [0] * (d + 1)}).result
    start, limit = [0] * (d + 1), [*x.type.shape[:d], n]
    if reverse:
        start[d], limit[d] = 1, n + 1
    return b.op("tensor.slice", [padded], {"start": start, "limit": limit, "stride": [1] * (d + 1)}).result


_R = [S("f32[3,5]", dims=[1]), S("f32[3,5]", dims=[0, 1]), S("f32[2,3,4]", dims=[1]), S("f32[2,3,4]", dims=[0, 2])]
row("tensor.reduce_sum", "Sum over dims (fixed order; within n * eps * sum |x| of the exact sum).", "x", _reduce(False), lambda b, op, dys: [_spread(b, dys[0], op)],
    attrs={"dims": "which"}, example="%y = tensor.reduce_sum(%x) {dims = [1]} : f32[3]", samples=_R, exact=False)
row("tensor.reduce_prod", "Product over dims.", "x", _reduce(False), _prod_grad, attrs={"dims": "which"},
    example="%y = tensor.reduce_prod(%x) {dims = [1]} : f32[3]", samples=_R, exact=False)
row("tensor.reduce_max", "Largest over dims; NaN if any is NaN; `any` of bools; the type's least value over nothing.", "x", _reduce(True), _extreme_grad,
    attrs={"dims": "which"}, example="%y = tensor.reduce_max(%x) {dims = [1]} : f32[3]", samples=_R)
row("tensor.reduce_min", "Smallest over dims; NaN if any is NaN; `all` of bools; the type's greatest value over nothing.", "x", _reduce(True), _extreme_grad,
    attrs={"dims": "which"}, example="%y = tensor.reduce_min(%x) {dims = [1]} : f32[3]", samples=_R)


def _arg(types, attrs, regions):
    count(1, types)
    x = tensor(types[0])
    need(0 <= attrs["dim"] < x.rank, f"dim {attrs['dim']} out of range for {x}", 0)
    need(x.shape[attrs["dim"]] != 0, f"dim {attrs['dim']} of {x} is empty", 0)
    return [TensorType(i64, tuple(n for d, n in enumerate(x.shape) if d != attrs["dim"]))]


for _n, _w in (("max", "largest"), ("min", "smallest")):
    row(f"tensor.arg{_n}", f"Index of the first {_w} element along dim (the first NaN, if any).", "x", _arg, "not differentiable: an index is no float",
        attrs={"dim": "int"}, example=f"%i = tensor.arg{_n}(%x) {{dim = 1}} : i64[3]", samples=[S("f32[3,5]", dim=1), S("f32[3,5]", dim=0)])


def _cum(types, attrs, regions):
    count(1, types)
    need(0 <= attrs["dim"] < tensor(types[0]).rank, f"dim {attrs['dim']} out of range for {types[0]}", 0)
    need(not types[0].dtype.is_bool, f"expected numbers, got {types[0]}", 0)
    return [types[0]]


def _cumsum_grad(b, op, dys):
    return [b.op("tensor.cumsum", [dys[0]], {"dim": op.attrs["dim"], "reverse": not op.attrs["reverse"]}).result]


def _cumprod_grad(b, op, dys):
    # dx_j = sum_{i >= j} g_i prod_{k <= i, k != j} x_k: for x without zeros, reverse-cumsum(g * y) / x. With zeros the division
    # fails, so zeros are treated exactly: before the first zero the formula holds, at it the "others" product is recomputed.
    x, y, g = op.operands[0], op.results[0], dys[0]
    d, rev = op.attrs["dim"], op.attrs["reverse"]
    zero = b.compare("eq", x, 0.0)
    nz = b.op("tensor.cumsum", [b.cast(zero, i64)], {"dim": d, "reverse": rev}).result
    first = b.ew("and", zero, b.compare("eq", nz, 1))
    safe = b.select(zero, 1.0, x)
    simple = b.div(b.op("tensor.cumsum", [b.mul(g, y)], {"dim": d, "reverse": not rev}).result, safe)
    # y with the first zero replaced by 1: nonzero until the second zero
    y1 = b.op("tensor.cumprod", [b.select(first, 1.0, x)], {"dim": d, "reverse": rev}).result
    tail = b.op("tensor.cumsum", [b.mul(g, b.select(b.compare("ge", nz, 1), y1, 0.0))], {"dim": d, "reverse": not rev}).result
    return [b.select(first, tail, b.select(b.compare("eq", nz, 0), simple, 0.0))]


row("tensor.cumsum", "Running sum along dim; from the end when reverse.", "x", _cum, _cumsum_grad, attrs={"dim": "int", "reverse": "bool"}, exact=False,
    example="%y = tensor.cumsum(%x) {dim = 1, reverse = false} : f32[3,5]", samples=[S("f32[3,5]", dim=1, reverse=False), S("f32[3,5]", dim=0, reverse=True)])
row("tensor.cumprod", "Running product along dim; from the end when reverse.", "x", _cum, _cumprod_grad, attrs={"dim": "int", "reverse": "bool"}, exact=False,
    example="%y = tensor.cumprod(%x) {dim = 1, reverse = false} : f32[3,5]", samples=[S("f32[3,5]", dim=1, reverse=False), S("f32[3,5]", dim=0, reverse=True)])


def _sort(types, attrs, regions):
    count(1, types)
    x = tensor(types[0])
    d, k = attrs["dim"], attrs.get("keep")
    need(0 <= d < x.rank, f"dim {d} out of range for {x}", 0)
    if k is not None:
        need(0 <= k and k <= x.shape[d], f"cannot keep {k} of dim {d} of {x}", 0)
        x = x.with_shape([*x.shape[:d], k, *x.shape[d + 1:]])
    return [x, TensorType(i64, x.shape)]


def _sort_grad(b, op, dys):
    if dys[0] is None:
        return [None]
    x, idx = op.operands[0], op.results[1]
    return [b.op("tensor.put_along_add", [b.zeros(x.type), idx, dys[0]], {"dim": op.attrs["dim"]}).result]


row("tensor.sort", "Sorted values and their indices along dim, with `keep` the first so many; stable; NaN counts as the largest.", "x", _sort, _sort_grad,
    attrs={"dim": "int", "descending": "bool", "keep": "int, optional"}, example="%v, %i = tensor.sort(%x) {dim = 1, descending = false} : f32[3,5], i64[3,5]",
    samples=[S("f32[3,5]", dim=1, descending=False), S("f32[3,5]", dim=0, descending=True), S("f32[3,7]", dim=1, descending=True, keep=2)])
