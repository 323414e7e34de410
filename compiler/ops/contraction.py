"""Contractions: dot_general (every matmul and einsum). Convolution comes as its own row."""
from __future__ import annotations

from ..ir.dims import maybe_equal
from ..ir.types import TensorType, f32, i32, widens
from .common import S, count, need, row, tensor


def _dot(types, attrs, regions):
    count(2, types)
    a, c = tensor(types[0]), tensor(types[1], 1)
    dtype = attrs.get("dtype")
    if dtype is None:
        need(a.dtype is c.dtype and not a.dtype.is_bool, f"expected equal number types, got {a} and {c}", 0, 1)
    else:
        for i, t in enumerate((a, c)):
            need(widens(t.dtype, dtype), f"{t.dtype} is not exact in a product of {dtype}", i)
    lb, rb, lc, rc = (list(attrs[k]) for k in ("lhs_batch", "rhs_batch", "lhs_contract", "rhs_contract"))
    need(len(lb) == len(rb) and len(lc) == len(rc), "batch and contract lists differ in length")
    need(len(set(lb + lc)) == len(lb + lc) and all(0 <= d < a.rank for d in lb + lc), f"bad dims {lb} {lc} for {a}", 0)
    need(len(set(rb + rc)) == len(rb + rc) and all(0 <= d < c.rank for d in rb + rc), f"bad dims {rb} {rc} for {c}", 1)
    for i, j in list(zip(lb, rb)) + list(zip(lc, rc)):
        what = "inner" if i in lc else "batch"
        need(maybe_equal(a.shape[i], c.shape[j]), f"cannot multiply {a} @ {c}: {what} dimensions differ ({a.shape[i]} vs {c.shape[j]})", 0, 1)
    out = [a.shape[d] for d in lb] + [a.shape[d] for d in range(a.rank) if d not in lb + lc] + [c.shape[d] for d in range(c.rank) if d not in rb + rc]
    return [TensorType(dtype or a.dtype, tuple(out))]


def _dot_grad(b, op, dys):
    """d lhs = g . rhs over rhs's free dims; d rhs = lhs . g over lhs's free dims; then the dims go back to their places."""
    g = dys[0]
    x, y = (b.cast(v, g.type.dtype) for v in op.operands)
    lb, rb, lc, rc = (list(op.attrs[k]) for k in ("lhs_batch", "rhs_batch", "lhs_contract", "rhs_contract"))
    lf = [d for d in range(x.type.rank) if d not in lb + lc]
    rf = [d for d in range(y.type.rank) if d not in rb + rc]
    nb, nl, nr = len(lb), len(lf), len(rf)
    gb, gl, gr = list(range(nb)), list(range(nb, nb + nl)), list(range(nb + nl, nb + nl + nr))

    def dot(p, q, pb, qb, pc, qc):
        return b.op("tensor.dot_general", [p, q], {"lhs_batch": pb, "rhs_batch": qb, "lhs_contract": pc, "rhs_contract": qc}).result

    # result dims: batch, lhs free, then rhs's contracted dims in rhs order
    dx = dot(g, y, gb, rb, gr, rf)
    order = lb + lf + [lc[rc.index(d)] for d in range(y.type.rank) if d in rc]
    dx = b.transpose(dx, [order.index(d) for d in range(x.type.rank)])
    # result dims: batch, lhs's contracted dims in lhs order, then rhs free
    dy = dot(x, g, lb, gb, lf, gl)
    order = rb + [rc[lc.index(d)] for d in range(x.type.rank) if d in lc] + rf
    dy = b.transpose(dy, [order.index(d) for d in range(y.type.rank)])
    return [b.cast(d, v.type.dtype) for d, v in zip((dx, dy), op.operands)]


def D(lb, rb, lc, rc):
    return {"lhs_batch": lb, "rhs_batch": rb, "lhs_contract": lc, "rhs_contract": rc}


row("tensor.dot_general", "Sum of products over the contracted dims; result dims are batch, lhs free, rhs free. Adds in ascending k. With `dtype`, operands of "
    "any types that fit it are widened to it first: i8 and i8 to i32, bf16 and bf16 to f32.", "lhs rhs", _dot, _dot_grad,
    attrs={"lhs_batch": "dims", "rhs_batch": "dims", "lhs_contract": "dims", "rhs_contract": "dims", "dtype": "of the result, optional"}, exact=False,
    example="%c = tensor.dot_general(%a, %b) {lhs_batch = [], rhs_batch = [], lhs_contract = [1], rhs_contract = [0]} : f32[3,4]",
    samples=[S("f32[3,5]", "f32[5,4]", **D([], [], [1], [0])), S("f32[2,3,5]", "f32[2,4,5]", **D([0], [0], [2], [2])),
             S("f32[5,3]", "f32[5,4]", **D([], [], [0], [0])), S("f32[5]", "f32[5]", **D([], [], [0], [0])), S("f32[3]", "f32[4]", **D([], [], [], [])),
             S("f32[2,3,4]", "f32[4,2,5]", **D([], [], [0, 2], [1, 0])), S("i8[3,5]", "i8[5,4]", **D([], [], [1], [0]), dtype=i32),
             S("bf16[3,5]", "bf16[5,4]", **D([], [], [1], [0]), dtype=f32)])
