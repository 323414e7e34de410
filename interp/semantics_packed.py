"""Cheap weights, from their definitions: what a weight type's values are, where a packed code lies, and products as plain sums of integers."""
from __future__ import annotations

import itertools
import math

from ..compiler.ir.types import f32, row_major
from .semantics_nn import NN
from .semantics_tensor import define


def _values(ev, data, weight: str) -> tuple[list[int], float]:
    """Whole numbers and their scale."""
    r = lambda x: ev.round([x], f32)[0]
    size = [abs(x) for x in data]
    if weight.startswith("pow2("):
        n = int(weight[5:-1])
        km = math.frexp(r(max(size) * r(4 / 3)))[1] - 1
        low = km - n + 1
        k = [-999 if a == 0 else min(_nearest_exponent(a), km) for a in size]
        return [0 if e < low else int(math.copysign(1 << (e - low), x)) for e, x in zip(k, data)], 2.0 ** low
    if weight == "ternary":
        scale, top = max(r(ev.round([math.fsum(size)], f32)[0] / len(size)), r(1e-12)), 1
    else:
        top = {"int8": 127, "int4": 7}[weight]
        scale = r(max(*size, r(1e-30)) / top)
    return [max(min(round(r(x / scale)), top), -top) for x in data], scale


def _nearest_exponent(a: float) -> int:
    m, e = math.frexp(a)                       # a = m 2^e, 0.5 <= m < 1
    return e - 1 + (m * m >= 0.5)              # 2 m above the root of 2


def _columns(ev, w, weight: str, along: int | None) -> tuple[list[int], list[float]]:
    """Whole numbers, and the scale of each column along this dim (None: the one scale as often as there are elements)."""
    if along is None:
        q, scale = _values(ev, w.data, weight)
        return q, [scale] * len(q)
    k, n = w.shape[along], w.shape[1 - along]
    q, scales = [0] * len(w.data), []
    for j in range(n):
        at = range(j, k * n, n) if along == 0 else range(j * k, (j + 1) * k)
        mine, scale = _values(ev, [w.data[i] for i in at], weight)
        scales.append(scale)
        for i, v in zip(at, mine):
            q[i] = v
    return q, scales


def _quantize(ev, op, xs):
    along, w = op.attrs.get("along"), xs[0]
    q, scales = _columns(ev, w, op.attrs["weight"], along)
    column = lambda i: i if along is None else i % w.shape[1] if along == 0 else i // w.shape[1]
    return [ev.round([v * scales[column(i)] for i, v in enumerate(q)], f32)]


def _quantized_dot(ev, op, xs):
    x, w = xs
    c, k = op.attrs["contract"], x.shape[-1]
    n = w.shape[1 - c]
    r = lambda v: ev.round([v], f32)[0]
    q, scales = _columns(ev, w, op.attrs["weight"], c if op.attrs.get("columns") else None)
    out = []
    for i in range(0, len(x.data), k):
        ints, top = _int8(r, x.data[i:i + k])
        step = r(top / 127)
        for j in range(n):
            out.append(r(step * scales[j]) * sum(a * q[t * n + j if c == 0 else j * k + t] for t, a in enumerate(ints)))
    return [ev.round(out, f32)]


def _quantized_conv(ev, op, xs):
    """Every sum written out; taps outside x count nothing."""
    (x, w), a = xs, op.attrs
    r = lambda v: ev.round([v], f32)[0]
    q, scale = _values(ev, w.data, a["weight"])
    (batch, channels, *space), (co, _, *taps), places = x.shape, w.shape, op.results[0].type.shape[2:]
    steps, size = row_major(space), math.prod(space)
    out = []
    for s in range(batch):
        ints, top = _int8(r, x.data[s * channels * size:(s + 1) * channels * size])
        step = r(r(top / 127) * scale)
        reads = []                                     # of each position: (where in a channel, which tap)
        for o in itertools.product(*map(range, places)):
            here = []
            for t, k in enumerate(itertools.product(*map(range, taps))):
                at = [i * st + j * di - low for i, st, j, di, low in zip(o, a["stride"], k, a["dilation"], a["low"])]
                if all(0 <= p < n for p, n in zip(at, space)):
                    here.append((sum(p * n for p, n in zip(at, steps)), t))
            reads.append(here)
        many = math.prod(taps)
        for c in range(co):
            for here in reads:
                out.append(step * sum(ints[i * size + p] * q[(c * channels + i) * many + t] for i in range(channels) for p, t in here))
    return [ev.round(out, f32)]


def _int8(r, line: list[float]) -> tuple[list[int], float]:
    """Whole numbers, and the largest size, which 127 stands for."""
    top = max(max(map(abs, line)), r(1e-30))
    return [max(min(round(r(r(127 * v) / top)), 127), -128) for v in line], top


NN["nn.quantize"], NN["nn.quantized_dot"], NN["nn.quantized_conv"] = _quantize, _quantized_dot, _quantized_conv


# ---- codes -------------------------------------------------------------------------------------------------------------

_BITS = {"ternary": 2, "pow2": 4, "int4": 4, "int8": 8}
_POWERS = [0, 1, 2, 4, 8, 16, 32, 64, 0, -1, -2, -4, -8, -16, -32, -64]


def _encode(format: str, v: int) -> int:
    if format == "pow2":
        return v.bit_length() if v >= 0 else 8 + (-v).bit_length()
    return v + {"ternary": 1, "int4": 8, "int8": 128}[format] & (1 << _BITS[format]) - 1


def _decode(format: str, code: int) -> int:
    return _POWERS[code] if format == "pow2" else code - {"ternary": 1, "int4": 8, "int8": 128}[format]


def packed(format: str, at, k: int, n: int) -> list[int]:
    """The elements of the packed form; at(t, j) is the matrix, 0 beyond it."""
    value = lambda t, j: at(t, j) if t < k and j < n else 0
    panels = -(-n // 16)
    if format == "int16":
        return [value(2 * s + e % 2, 16 * p + e // 2) for p in range(panels) for s in range(-(-k // 2)) for e in range(32)]
    bits = _BITS[format]
    per = 8 // bits
    return [sum(_encode(format, value(4 * per * s + 4 * i + b, 16 * p + c)) << bits * i for i in range(per))
            for p in range(panels) for s in range(-(-k // (4 * per))) for c in range(16) for b in range(4)]


def products(format: str, x, m: int, k: int, codes, n: int) -> list[int]:
    """Sums of x(i, t) times the decoded codes(element)."""
    per = 2 if format == "int16" else 32 // _BITS[format]
    steps = k // per

    def weight(t: int, j: int) -> int:
        panel, column, step, i = j // 16, j % 16, t // per, t % per
        if format == "int16":
            return codes((panel * steps + step) * 32 + 2 * column + i)
        bits = _BITS[format]
        byte = codes((panel * steps + step) * 64 + 4 * column + i % 4)
        return _decode(format, byte >> bits * (i // 4) & (1 << bits) - 1)
    columns = [[weight(t, j) for t in range(k)] for j in range(n)]
    return [sum(x(i, t) * w for t, w in enumerate(column)) for i in range(m) for column in columns]


@define("tensor.pack")
def _pack(ev, op, xs):
    k, n = xs[0].shape
    return [packed(op.attrs["format"], lambda t, j: xs[0].data[t * n + j], k, n)]


@define("tensor.dot_packed")
def _dot_packed(ev, op, xs):
    x, p = xs
    lead, n = len(x.shape) - op.attrs.get("dims", 1), op.attrs["n"]
    k = math.prod(x.shape[lead:])
    sums = ev.round(products(op.attrs["format"], lambda i, t: x.data[i * k + t], math.prod(x.shape[:lead]), k, p.data.__getitem__, n), op.results[0].type.dtype)
    inner = math.prod(x.shape[op.attrs.get("at", lead):lead])        # rows behind the columns
    return [[sums[i + j * n + c] for i in range(0, len(sums), inner * n) for c in range(n) for j in range(inner)] if inner != 1 else sums]
