"""Neural-network rows: each is defined by a decomposition into base ops, applied by the pass `decompose` before differentiation
(or, where the row has a gradient rule of its own because it is cheaper than that of the expansion, after it).

The interpreter has semantics of its own for them, so a wrong decomposition shows. A row belongs here when its direct form says
more than the expansion (numerically or to a reader); everything else is written in the language or in the prelude.
"""
from __future__ import annotations

import math

from ..ir.dims import maybe_equal
from ..ir.types import TensorType, f32, i64
from .common import FRONT, S, count, need, norm_dims, row, tensor

DECOMPOSED = "decomposed into base ops before differentiation"


def nn(name, doc, operands, infer, decompose, grad=DECOMPOSED, **kw):
    row("nn." + name, doc, operands, infer, grad, stages=FRONT, decompose=decompose, **kw)


def _float(types, attrs, regions):
    count(1, types)
    need(tensor(types[0]).dtype.is_float, f"expected a float tensor, got {types[0]}", 0)
    return [types[0]]


def activation(name, doc, fn, ulp=8, attrs=None, samples=None, shown="", **kw):
    nn(name, doc, "x", _float, lambda b, op: [fn(b, op.operands[0], op.attrs)], elementwise=True, exact=ulp == 0, ulp=ulp, attrs=attrs or {},
       samples=samples or [S(("f32[3,5]", -4, 4))], example=f"%y = nn.{name}(%x){shown} : f32[3,5]", **kw)


activation("relu", "max(x, 0); its derivative at 0 is 0. NaN stays NaN and lets its gradient through.", lambda b, x, a: b.max(x, 0.0), 0,
           grad=lambda b, op, dys: [b.select(b.compare("le", op.results[0], 0.0), 0.0, dys[0])])
activation("sigmoid", "1 / (1 + exp(-x)).", lambda b, x, a: b.div(b.like(1.0, x), b.add(b.exp(b.neg(x)), 1.0)))
activation("silu", "x * sigmoid(x).", lambda b, x, a: b.div(x, b.add(b.exp(b.neg(x)), 1.0)))
activation("softplus", "log(1 + exp(x)), without overflow.",
           lambda b, x, a: b.add(b.max(x, 0.0), b.log1p(b.exp(b.neg(b.abs(x))))))


def _gelu(b, x, a):
    if a["approximate"] == "tanh":
        inner = b.mul(b.add(x, b.mul(b.mul(b.mul(x, x), x), 0.044715)), math.sqrt(2 / math.pi))
        return b.mul(b.mul(x, 0.5), b.add(b.tanh(inner), 1.0))
    return b.mul(b.mul(x, 0.5), b.add(b.erf(b.mul(x, math.sqrt(0.5))), 1.0))


activation("gelu", "x * Phi(x), Phi the normal distribution function; approximate = \"tanh\" for the tanh form.", _gelu, 16,
           attrs={"approximate": '"none" or "tanh"'}, shown=' {approximate = "none"}', samples=[S(("f32[3,5]", -4, 4), approximate=a) for a in ("none", "tanh")])


def _dims(types, attrs, regions):
    t = _float(types, attrs, regions)
    norm_dims([attrs["dim"]], types[0].rank)
    return t


def _shifted(b, x, dims):
    """x - max(x) over dims, the max held constant: it cancels in every derivative. An infinite max is taken as 0."""
    m = b.op("tensor.stop_gradient", [b.reduce("max", x, dims, keepdim=True)]).result
    m = b.select(b.compare("lt", b.abs(m), float("inf")), m, 0.0)
    return b.sub(x, b.broadcast(m, x.type.shape)), m


def _softmax(b, op):
    x, d = op.operands[0], op.attrs["dim"]
    e = b.exp(_shifted(b, x, [d])[0])
    return [b.div(e, b.broadcast(b.sum(e, [d], keepdim=True), x.type.shape))]


def _log_softmax(b, op):
    x, d = op.operands[0], op.attrs["dim"]
    z = _shifted(b, x, [d])[0]
    return [b.sub(z, b.broadcast(b.log(b.sum(b.exp(z), [d], keepdim=True)), x.type.shape))]


def _softmax_grad(b, op, dys):
    # dx = y (g - sum(g y)): needs the result only
    y, g, d = op.results[0], dys[0], op.attrs["dim"]
    return [b.mul(y, b.sub(g, b.broadcast(b.sum(b.mul(g, y), [d], keepdim=True), y.type.shape)))]


def _log_softmax_grad(b, op, dys):
    # dx = g - exp(y) sum(g)
    y, g, d = op.results[0], dys[0], op.attrs["dim"]
    return [b.sub(g, b.mul(b.exp(y), b.broadcast(b.sum(g, [d], keepdim=True), y.type.shape)))]


nn("softmax", "exp(x) / sum(exp(x)) along dim, computed without overflow.", "x", _dims, _softmax, _softmax_grad, attrs={"dim": "int"}, exact=False, ulp=16,
   example="%y = nn.softmax(%x) {dim = 1} : f32[3,5]", samples=[S(("f32[3,5]", -4, 4), dim=1), S(("f32[3,5]", -4, 4), dim=0)])
nn("log_softmax", "log(softmax(x)) along dim, accurate where softmax underflows.", "x", _dims, _log_softmax, _log_softmax_grad, attrs={"dim": "int"}, exact=False, ulp=16,
   example="%y = nn.log_softmax(%x) {dim = 1} : f32[3,5]", samples=[S(("f32[3,5]", -4, 4), dim=1)])


def _lse_infer(types, attrs, regions):
    x = _float(types, attrs, regions)[0]
    dims = norm_dims(attrs["dims"], x.rank)
    return [x.with_shape(n for d, n in enumerate(x.shape) if d not in dims)]


def _lse(b, op):
    x, dims = op.operands[0], list(op.attrs["dims"])
    z, m = _shifted(b, x, dims)
    s = b.log(b.sum(b.exp(z), dims))
    return [b.add(s, b.reshape(m, s.type.shape))]


nn("logsumexp", "log(sum(exp(x))) over dims, without overflow.", "x", _lse_infer, _lse, attrs={"dims": "which"}, exact=False, ulp=16,
   example="%y = nn.logsumexp(%x) {dims = [1]} : f32[3]", samples=[S(("f32[3,5]", -4, 4), dims=[1]), S(("f32[3,5]", -4, 4), dims=[0, 1])])


def _ce_infer(types, attrs, regions):
    count(2, types)
    x, y = tensor(types[0]), tensor(types[1], 1)
    need(x.dtype.is_float and x.rank >= 1, f"expected float logits [.., classes], got {x}", 0)
    need(y.dtype.is_int, f"expected integer class indices, got {y}", 1)
    need(y.rank == x.rank - 1 and all(maybe_equal(p, q) for p, q in zip(y.shape, x.shape[:-1])),
         f"logits {x} need targets {y.with_shape(x.shape[:-1])}, got {y}", 0, 1)
    return [x.with_shape(x.shape[:-1])]


def _ce(b, op):
    x, y = op.operands
    d = x.type.rank - 1
    z = _shifted(b, x, [d])[0]
    lse = b.log(b.sum(b.exp(z), [d]))
    index = b.cast(b.reshape(y, (*y.type.shape, 1)), i64)
    at = b.reshape(b.op("tensor.take_along", [z, index], {"dim": d}).result, y.type.shape)
    return [b.sub(lse, at)]


def _ce_grad(b, op, dys):
    # dx = (softmax(x) - one_hot(target)) g: nothing but the logits is kept, nothing is scattered
    x, y = op.operands
    d = x.type.rank - 1
    p = b.op("nn.softmax", [x], {"dim": d}).result
    at = b.broadcast(b.cast(y, i64), x.type.shape, range(d))
    hot = b.cast(b.compare("eq", at, b.iota(x.type.shape, d)), x.type.dtype)
    return [b.mul(b.sub(p, hot), b.broadcast(dys[0], x.type.shape, range(d))), None]


nn("cross_entropy", "-log softmax(logits)[target] along the last dim, one value per target; an index out of range is a run-time error.",
   "logits target", _ce_infer, _ce, _ce_grad, exact=False, ulp=16, example="%l = nn.cross_entropy(%x, %y) : f32[3]",
   samples=[S(("f32[3,5]", -4, 4), ("i64[3]", 0, 4)), S(("f32[2,3,5]", -4, 4), ("i32[2,3]", 0, 4))])


def _one_hot_infer(types, attrs, regions):
    count(1, types)
    need(tensor(types[0]).dtype.is_int, f"expected integers, got {types[0]}", 0)
    return [TensorType(attrs["dtype"], (*types[0].shape, attrs["classes"]))]


def _one_hot(b, op):
    x, n, dt = op.operands[0], op.attrs["classes"], op.attrs["dtype"]
    shape = (*x.type.shape, n)
    at = b.broadcast(b.cast(x, i64), shape, range(x.type.rank))
    return [b.cast(b.compare("eq", at, b.iota(shape, len(shape) - 1)), dt)]


nn("one_hot", "1 at the index, else 0, along a new last dim.", "x", _one_hot_infer, _one_hot, attrs={"classes": "int", "dtype": "DType"},
   example="%y = nn.one_hot(%x) {classes = 10, dtype = f32} : f32[3,10]", samples=[S(("i64[3]", 0, 4), classes=5, dtype=f32), S(("i32[2,3]", -1, 5), classes=5, dtype=f32)])


def _max_first_infer(types, attrs, regions):
    x = _float(types, attrs, regions)[0]
    need(x.rank >= 1, f"expected at least one dim, got {x}", 0)
    need(x.shape[-1] != 0, f"the last dim of {x} is empty", 0)
    return [x.with_shape(x.shape[:-1])]


def _max_first_grad(b, op, dys):
    x = op.operands[0]
    d = x.type.rank - 1
    first = b.op("tensor.argmax", [x], {"dim": d}).result
    hit = b.compare("eq", b.iota(x.type.shape, d), b.broadcast(first, x.type.shape, range(d)))
    g = b.broadcast(dys[0], x.type.shape, range(d))
    return [b.select(hit, g, b.like(0.0, g))]


nn("max_first", "The largest of the last dim, as reduce_max; its gradient goes to the first element that is the largest, as in PyTorch's max pools.",
   "x", _max_first_infer, lambda b, op: [b.reduce("max", op.operands[0], [op.operands[0].type.rank - 1])], _max_first_grad,
   example="%y = nn.max_first(%x) : f32[3]", samples=[S("f32[3,5]"), S("f32[2,3,4]")])
