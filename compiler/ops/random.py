"""Counter-based random numbers: Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

A key is a u64: its low and high halves are Philox's two key words. Counter words are (c low, c high, domain, 0); domain 0 makes
bits, domain 1 derives keys. The same bits everywhere, any number of threads.
"""
from __future__ import annotations

from ..ir.types import ScalarType, TensorType, f32, i64, u32, u64
from .common import FRONT, LOOPS, S, count, need, row, tensor

NONE = "not differentiable: random bits"


def _bits(types, attrs, regions):
    count(1, types)
    need(tensor(types[0]).dtype is u64, f"expected a key (u64), got {types[0]}", 0)
    return [TensorType(u32, types[0].shape + tuple(attrs["shape"]))]


row("random.bits", "u32 bits: element e (row-major within `shape`) for a key is word e % 4 of Philox(key, counter e // 4, domain 0). "
    "Leading dims of a key tensor stay.", "key", _bits, NONE, attrs={"shape": "sizes"}, example="%r = random.bits(%k) {shape = [3, 5]} : u32[3,5]",
    samples=[S(("u64[]", 0, 2**40), shape=[3, 5]), S(("u64[2]", 0, 2**40), shape=[7])])


def _fold(types, attrs, regions):
    count(2, types)
    need(tensor(types[0]).dtype is u64, f"expected a key (u64), got {types[0]}", 0)
    need(types[1] == TensorType(i64, types[0].shape), f"expected data i64 of the key's shape, got {types[1]}", 1)
    return [types[0]]


row("random.fold_in", "A new key from a key and an integer: words 0 (low) and 1 (high) of Philox(key, counter data, domain 1).", "key data", _fold, NONE,
    example="%k2 = random.fold_in(%k, %i) : u64[4]", samples=[S(("u64[4]", 0, 2**40), ("i64[4]", 0, 99))])


def _philox(types, attrs, regions):
    count(2, types)
    need(types[0] == ScalarType(u64) and types[1] == ScalarType(u64), f"expected u64, u64, got {types[0]}, {types[1]}")
    return [ScalarType(u32)] * 4


row("scalar.philox", "The four words of Philox 4x32-10 for key and counter (u64 each) and a domain.", "key counter", _philox, NONE, stages=LOOPS,
    attrs={"domain": "0 bits, 1 keys"}, example="%a, %b, %c, %d = scalar.philox(%k, %n) {domain = 0} : u32, u32, u32, u32")


# ---- derived: decomposed into bits and base ops, so that they are the same bits on every backend --------------------

def _derived(types, attrs, regions):
    count(1, types)
    need(tensor(types[0]).dtype is u64, f"expected a key (u64), got {types[0]}", 0)
    need(attrs["dtype"].is_float, "expected a float dtype")
    return [TensorType(attrs["dtype"], types[0].shape + tuple(attrs["shape"]))]


def _uniform(b, op):
    bits = b.op("random.bits", [op.operands[0]], {"shape": op.attrs["shape"]}).result
    return [b.cast(b.mul(b.cast(b.ew("shr", bits, 8), f32), 2.0**-24), op.attrs["dtype"])]


def _normal(b, op):
    """Box-Muller from 2n words; log and cos from base ops only (each correctly rounded), so the bits agree everywhere.

    log: s = (m-1)/(m+1), log m = 2 s (1 + s^2/3 + s^4/5 + ...), |s| <= 0.172, 6 terms. cos(2 pi u): exact reduction to
    |f| <= 1/2 quarter turns, then the Taylor polynomials of sin and cos to degree 11 and 12.
    """
    n = op.attrs["shape"]
    lead = op.operands[0].type.rank
    bits = b.op("random.bits", [op.operands[0]], {"shape": [2, *n]}).result

    def half(i):
        start, limit = [0] * bits.type.rank, list(bits.type.shape)
        start[lead], limit[lead] = i, i + 1
        part = b.op("tensor.slice", [bits], {"start": start, "limit": limit, "stride": [1] * bits.type.rank}).result
        return b.ew("shr", b.reshape(part, bits.type.shape[:lead] + tuple(n)), 8)

    u1 = b.mul(b.add(b.cast(half(0), f32), 1.0), 2.0**-24)                        # (0, 1]
    u2 = b.mul(b.cast(half(1), f32), 2.0**-24)                                    # [0, 1)
    raw = b.ew("bitcast", u1, dtype=u32)
    e = b.sub(b.cast(b.ew("shr", raw, 23), f32), 127.0)
    m = b.ew("bitcast", b.ew("or", b.ew("and", raw, 0x7FFFFF), 0x3F800000), dtype=f32)
    big = b.compare("gt", m, 1.4142135)
    m = b.select(big, b.mul(m, 0.5), m)
    e = b.select(big, b.add(e, 1.0), e)
    s = b.div(b.sub(m, 1.0), b.add(m, 1.0))
    z = b.mul(s, s)
    poly = _horner(b, z, [1 / 11, 1 / 9, 1 / 7, 1 / 5, 1 / 3, 1.0])
    log_u = b.add(b.mul(e, 0.6931471805599453), b.mul(b.mul(s, 2.0), poly))
    r = b.sqrt(b.max(b.mul(log_u, -2.0), 0.0))
    t = b.mul(u2, 4.0)
    q = b.floor(b.add(t, 0.5))
    f = b.mul(b.sub(t, q), 1.5707963267948966)
    f2 = b.mul(f, f)
    sin = b.mul(f, _horner(b, f2, [-1 / 39916800, 1 / 362880, -1 / 5040, 1 / 120, -1 / 6, 1.0]))
    cos = _horner(b, f2, [1 / 479001600, -1 / 3628800, 1 / 40320, -1 / 720, 1 / 24, -0.5, 1.0])
    k = b.cast(q, u32)
    odd = b.compare("eq", b.ew("and", k, 1), 1)
    flip = b.compare("eq", b.ew("and", b.ew("add", k, 1), 2), 2)                  # quadrants 1 and 2 are negative
    c = b.select(odd, sin, cos)
    return [b.cast(b.mul(r, b.select(flip, b.neg(c), c)), op.attrs["dtype"])]


def _horner(b, x, coefficients):
    y = b.like(coefficients[0], x)
    for c in coefficients[1:]:
        y = b.add(b.mul(y, x), c)
    return y


for _name, _doc, _rule in (("uniform", "Uniform in [0, 1): the top 24 bits of each word times 2^-24.", _uniform),
                           ("normal", "Standard normal: Box-Muller on two words an element.", _normal)):
    row(f"random.{_name}", _doc, "key", _derived, NONE, attrs={"shape": "sizes", "dtype": "a float DType"}, stages=FRONT, decompose=_rule,
        example=f"%x = random.{_name}(%k) {{shape = [3, 5], dtype = f32}} : f32[3,5]", samples=[S(("u64[]", 0, 2**40), shape=[3, 5], dtype=f32)])
