"""The nn ops, computed from their mathematical definitions in double precision and rounded once: not their decompositions."""
from __future__ import annotations

import math

from .indexing import check_index, rows, unrows
from .numerics import INF
from .semantics_scalar import div, exp
from .semantics_tensor import exact_sum

NN: dict = {}

_SQRT_HALF = math.sqrt(0.5)
_SQRT_2_PI = math.sqrt(2 / math.pi)


def sigmoid(x):
    return 1 / (1 + exp(-x))


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return x + math.log1p(exp(-x)) if x > 0 else math.log1p(exp(x)) if x == x else x


def relu(x):
    return x if x > 0 or x != x else 0.0


def gelu(x):
    return 0.5 * x * math.erfc(-x * _SQRT_HALF)         # Phi(x) = erfc(-x / sqrt 2) / 2, accurate in the left tail


def gelu_tanh(x):
    return x * sigmoid(2 * _SQRT_2_PI * (x + 0.044715 * x * x * x))      # (1 + tanh u) / 2 = sigmoid(2 u)


def _activation(fn):
    return lambda ev, op, xs: [ev.round(list(map(fn, xs[0].data)), xs[0].dtype)]


for _fn in (relu, sigmoid, silu, softplus):
    NN[f"nn.{_fn.__name__}"] = _activation(_fn)


def _gelu(ev, op, xs):
    return _activation(gelu_tanh if op.attrs["approximate"] == "tanh" else gelu)(ev, op, xs)


NN["nn.gelu"] = _gelu


def log_sum_exp(row: list) -> float:
    """log(sum(exp(x))); nothing to add up gives -inf."""
    top = max((x for x in row if -INF < x < INF), default=0.0)
    total = exact_sum([exp(x - top) for x in row])
    return total if total != total else top + math.log(total) if total > 0 else -INF


def _softmax_row(row):
    top = max((x for x in row if -INF < x < INF), default=0.0)
    e = [exp(x - top) for x in row]
    total = exact_sum(e)
    return [div(v, total) for v in e]


def _along_rows(fn):
    def semantics(ev, op, xs):
        x, dim = xs[0], [op.attrs["dim"]]
        return [ev.round(unrows([fn(r) for r in rows(x, dim)], x.shape, dim), x.dtype)]
    return semantics


NN["nn.softmax"] = _along_rows(_softmax_row)
NN["nn.log_softmax"] = _along_rows(lambda row: [x - total for total in [log_sum_exp(row)] for x in row])


def _logsumexp(ev, op, xs):
    return [ev.round([log_sum_exp(r) for r in rows(xs[0], op.attrs["dims"])], xs[0].dtype)]


def _cross_entropy(ev, op, xs):
    logits, target = xs
    last = [len(logits.shape) - 1]
    return [ev.round([log_sum_exp(r) - r[check_index(t, len(r))] for r, t in zip(rows(logits, last), target.data)], logits.dtype)]


def _one_hot(ev, op, xs):
    n = op.attrs["classes"]
    return [ev.round([int(i == c) for i in xs[0].data for c in range(n)], op.attrs["dtype"])]


NN.update({"nn.logsumexp": _logsumexp, "nn.cross_entropy": _cross_entropy, "nn.one_hot": _one_hot})


def _max_first(ev, op, xs):
    best = []
    for row in rows(xs[0], [len(xs[0].shape) - 1]):
        top = row[0]
        for v in row[1:]:
            if v > top or v == 0 == top and math.copysign(1, v) > math.copysign(1, top):          # +0 is larger than -0
                top = v
        best.append(next((v for v in row if v != v), top))
    return [ev.round(best, xs[0].dtype)]


NN["nn.max_first"] = _max_first
