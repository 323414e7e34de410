"""Attention: scores, mask, softmax and the product with the values as one op, so that no [queries, keys] array is ever needed.

A row of its own and no nn op, because it stays until the lowering and its gradient keeps one number per query instead of the
probabilities. The pass `attention` finds it in what users write.
"""
from __future__ import annotations

from ..ir.dims import maybe_equal
from ..ir.types import f32, f64, i64
from .common import S, need, row, tensor


def _operands(types, n: int) -> tuple:
    need(len(types) in (n, n + 1), f"expected {n} operands and perhaps a length, got {len(types)}")
    q, k, v = (tensor(types[i], i) for i in range(3))
    need(q.dtype in (f32, f64) and q.dtype is k.dtype is v.dtype, f"expected f32 or f64 throughout, got {q}, {k}, {v}", 0, 1, 2)
    need(q.rank >= 2 and q.rank == k.rank == v.rank, f"expected [.., tokens, features] of equal ranks, got {q}, {k}, {v}", 0, 1, 2)
    batch = q.shape[:-2]
    for i, t in ((1, k), (2, v)):
        need(all(maybe_equal(a, b) for a, b in zip(batch, t.shape[:-2])), f"batch dims differ: {q} and {t}", 0, i)
    need(maybe_equal(q.shape[-1], k.shape[-1]), f"queries {q} and keys {k} have different numbers of features", 0, 1)
    need(maybe_equal(k.shape[-2], v.shape[-2]), f"{k} and {v} have different numbers of keys and values", 1, 2)
    if len(types) > n:
        need(tensor(types[n], n).rank == 0 and types[n].dtype is i64, f"expected an i64 length, got {types[n]}", n)
    return q, k, v


def _attention(types, attrs, regions):
    q, _, v = _operands(types, 3)
    return [q.with_shape((*q.shape[:-1], v.shape[-1])), q.with_shape(q.shape[:-1])]


def _attention_grad_types(types, attrs, regions):
    q, k, v = _operands(types, 6)
    want = [(3, q.shape[:-1]), (4, (*q.shape[:-1], v.shape[-1])), (5, q.shape[:-1])]
    for i, shape in want:
        need(tensor(types[i], i) == q.with_shape(shape), f"expected {q.with_shape(shape)}, got {types[i]}", i)
    return [q, k, v]


def visible(b, shape, attrs, length=None):
    """bool[.., queries, keys]: which keys a query sees; None when all do."""
    t, s = shape[-2:]
    cols = b.iota((t, s), 1)
    n = b.broadcast(length, (t, s)) if length is not None else b.constant(s, cols.type)
    if attrs["causal"]:
        seen = b.compare("le", cols, b.sub(b.add(n, b.iota((t, s), 0)), t))
    elif length is not None:
        seen = b.compare("lt", cols, n)
    else:
        return None
    return b.broadcast(seen, shape)


def dot(b, x, y, cx: int, cy: int):
    """Contracts dim cx of x with dim cy of y (negative numbers); all dims but the last two are batch dims."""
    n = x.type.rank - 2
    batch = list(range(n))
    return b.op("tensor.dot_general", [x, y], {"lhs_batch": batch, "rhs_batch": batch, "lhs_contract": [n + 2 + cx], "rhs_contract": [n + 2 + cy]}).result


def _rows(b, x, like):
    """One number per query, for every key."""
    return b.broadcast(x, like.type.shape, range(x.type.rank))


def _attention_grad(b, op, dys):
    q, k, v, *length = op.operands
    o, lse = op.results
    do, dlse = dys
    if do is None:
        do = b.zeros(o.type)
    delta = b.sum(b.mul(do, o), [o.type.rank - 1])
    if dlse is not None:
        delta = b.sub(delta, dlse)
    return [*b.op("tensor.attention_grad", [q, k, v, lse, do, delta, *length], dict(op.attrs)).results, *[None] * len(length)]


def _attention_grad_grad(b, op, dys):
    """With s = scale q k^T, A = exp(s - lse), E = do v^T - delta, G = A E: dq = scale G k, dk = scale G^T q, dv = A^T do. Here the
    [queries, keys] arrays are made: second derivatives are rare."""
    q, k, v, lse, do, delta, *length = op.operands
    c = op.attrs["scale"]
    x, y, z = (d if d is not None else b.zeros(r.type) for d, r in zip(dys, op.results))
    s = b.mul(dot(b, q, k, -1, -1), c)
    seen = visible(b, s.type.shape, op.attrs, length[0] if length else None)
    a = b.exp(b.sub(s, _rows(b, lse, s)))
    if seen is not None:
        a = b.select(seen, a, 0.0)
    e = b.sub(dot(b, do, v, -1, -1), _rows(b, delta, s))
    g = b.mul(a, e)
    w = b.mul(b.add(dot(b, x, k, -1, -1), dot(b, q, y, -1, -1)), c)          # the adjoint of G
    we, wa = b.mul(w, e), b.mul(w, a)
    gs = b.mul(b.add(we, dot(b, do, z, -1, -1)), a)                         # of s
    last = s.type.rank - 1
    dq = b.mul(b.add(dot(b, g, y, -1, -2), dot(b, gs, k, -1, -2)), c)
    dk = b.mul(b.add(dot(b, g, x, -2, -2), dot(b, gs, q, -2, -2)), c)
    ddo = b.add(dot(b, a, z, -1, -2), dot(b, wa, v, -1, -2))
    return [dq, dk, dot(b, wa, do, -2, -2), b.neg(b.sum(gs, [last])), ddo, b.neg(b.sum(wa, [last])), *[None] * len(length)]


_ATTRS = {"causal": "bool", "scale": "number"}
row("tensor.attention", "softmax(scale q k^T) v over [.., tokens, features], and the logarithm of each softmax's denominator. causal: query i of t sees the keys "
    "up to i + n - t, n the number of keys, or the run-time length. A length hides the keys from there on. A query that sees no key gives NaN.",
    "q k v *length", _attention, _attention_grad, attrs=_ATTRS, exact=False,
    example="%o, %l = tensor.attention(%q, %k, %v) {causal = true, scale = 0.5} : f32[2,3,3], f32[2,3]",
    samples=[S("f32[2,3,4]", "f32[2,5,4]", "f32[2,5,3]", causal=True, scale=0.5), S("f32[3,4]", "f32[5,4]", "f32[5,4]", causal=False, scale=0.25),
             S("f32[2,2,2,3]", "f32[2,2,6,3]", "f32[2,2,6,3]", ("i64[]", 3, 5), causal=True, scale=0.75)])
row("tensor.attention_grad", "The adjoints of q, k and v of an attention, from the logarithms lse it gave, the adjoint do of its result and delta, each "
    "query's sum of do times the result: P = exp(scale q k^T - lse) is computed again, dv = P^T do, and with dS = P (do v^T - delta) dq = scale dS k, dk = scale "
    "dS^T q. Attributes causal and scale as there.", "q k v lse do delta *length", _attention_grad_types, _attention_grad_grad, attrs=_ATTRS, exact=False,
    example="%dq, %dk, %dv = tensor.attention_grad(%q, %k, %v, %l, %g, %d) {causal = true, scale = 0.5} : f32[2,3,4], f32[2,5,4], f32[2,5,3]",
    samples=[S("f32[2,3,4]", "f32[2,5,4]", "f32[2,5,3]", ("f32[2,3]", 3, 4), "f32[2,3,3]", "f32[2,3]", causal=True, scale=0.5),
             S("f32[3,4]", "f32[5,4]", "f32[5,4]", ("f32[3]", 3, 4), "f32[3,4]", "f32[3]", causal=False, scale=0.25),
             S("f32[2,2,3]", "f32[2,6,3]", "f32[2,6,3]", ("f32[2,2]", 3, 4), "f32[2,2,3]", "f32[2,2]", ("i64[]", 3, 5), causal=True, scale=0.75)])
