"""Attention, query by query, from its mathematical definition in double precision, rounded once."""
from __future__ import annotations

import math
from itertools import product

from .semantics_scalar import div, exp
from .semantics_tensor import define, exact_dot, exact_sum


class _Heads:
    """The operands as rows per batch element, and which keys each query sees."""

    def __init__(self, op, xs, n: int):
        q, k, v = xs[:3]
        (*batch, self.t, _), self.s = q.shape, k.shape[-2]
        self.batches = list(range(math.prod(batch)))
        self.q, self.k, self.v = (self.rows(x) for x in (q, k, v))
        self.length = xs[n].item if len(xs) > n else self.s
        self.causal, self.scale = op.attrs["causal"], op.attrs["scale"]

    @staticmethod
    def rows(x) -> list[list[list]]:
        *_, m, d = x.shape
        return [[x.data[(b * m + i) * d:(b * m + i + 1) * d] for i in range(m)] for b in range(math.prod(x.shape[:-2]))]

    def seen(self, i: int) -> range:
        n = self.length + i - self.t + 1 if self.causal else self.length
        return range(max(0, min(n, self.s)))

    def score(self, b: int, i: int, j: int) -> float:
        return self.scale * exact_dot(self.q[b][i], self.k[b][j])


@define("tensor.attention")
def _attention(ev, op, xs):
    h = _Heads(op, xs, 3)
    out, lse = [], []
    features = xs[2].shape[-1]
    for b, i in product(h.batches, range(h.t)):
        s = [h.score(b, i, j) for j in h.seen(i)]
        top = max(s, default=-math.inf)
        if any(x != x for x in s) or math.isinf(top):
            top = 0.0
        e = [exp(x - top) for x in s]
        total = exact_sum(e)
        out += [div(exact_dot(e, [h.v[b][j][c] for j in h.seen(i)]), total) for c in range(features)]
        lse.append(top + (math.log(total) if total > 0 else -math.inf if total == 0 else total))
    return [ev.round(out, xs[0].dtype), ev.round(lse, xs[0].dtype)]


@define("tensor.attention_grad")
def _attention_grad(ev, op, xs):
    h = _Heads(op, xs, 6)
    lse, do, delta = xs[3].data, h.rows(xs[4]), xs[5].data
    dq, dk, dv = ([] for _ in range(3))
    for b in h.batches:
        at = [b * h.t + i for i in range(h.t)]
        p = [[exp(h.score(b, i, j) - lse[at[i]]) if j in h.seen(i) else 0.0 for j in range(h.s)] for i in range(h.t)]
        ds = [[x and x * (exact_dot(do[b][i], h.v[b][j]) - delta[at[i]]) for j, x in enumerate(row)] for i, row in enumerate(p)]
        column = lambda rows, c: [r[c] for r in rows]
        dq += [h.scale * exact_dot(ds[i], column(h.k[b], c)) for i in range(h.t) for c in range(len(h.q[b][i]))]
        dk += [h.scale * exact_dot(column(ds, j), column(h.q[b], c)) for j in range(h.s) for c in range(len(h.k[b][j]))]
        dv += [exact_dot(column(p, j), column(do[b], c)) for j in range(h.s) for c in range(len(h.v[b][j]))]
    return [ev.round(x, xs[0].dtype) for x in (dq, dk, dv)]
