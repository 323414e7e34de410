"""Quantised weight types: a parameter declared `ternary[i, o]` is stored as f32 and read through the quantiser; gradients pass
straight through to the stored value."""
from __future__ import annotations

from ..compiler.diagnostics import Span
from ..compiler.ir import Value
from .values import QuantType


def quantize_read(el, w: Value, weight: QuantType, span: Span) -> Value:
    """w + stop_gradient(Q(w) - w)."""
    b = el.b(span)
    q = quantize(b, w, weight)
    return b.add(w, b.op("tensor.stop_gradient", [b.sub(q, w)]).result)


def quantize(b, w: Value, weight: QuantType) -> Value:
    dims = range(w.type.rank)
    a = b.abs(w)
    if weight.name == "ternary":                               # BitNet b1.58: scale by the mean, round to -1, 0, 1
        g = b.div(b.sum(a, dims), float(w.type.numel) if isinstance(w.type.numel, int) else 1.0)
        g = b.broadcast(b.max(g, 1e-12), w.type.shape)
        return b.mul(b.max(b.min(b.round(b.div(w, g)), 1.0), -1.0), g)
    top = b.broadcast(b.max(b.reduce("max", a, dims), 1e-30), w.type.shape)
    if weight.name == "int8":
        s = b.div(top, 127.0)
        return b.mul(b.round(b.div(w, s)), s)
    n = weight.bits or 7                                       # pow2(n): sign * 2^k, the n largest exponents
    km = b.floor(b.log2(b.mul(top, 4 / 3)))
    k = b.min(b.round(b.log2(b.max(a, 1e-30))), km)
    small = b.compare("lt", k, b.sub(km, float(n)))
    return b.select(small, 0.0, b.mul(b.sign(w), b.exp2(k)))
