"""Random numbers: Philox 4x32-10 on Python integers, and the derived distributions bit by bit.

random.normal is *defined* by a formula of base operations, each rounded to f32, so that every backend gives the same bits; it is
written out again here, with the rounding after every operation.
"""
from __future__ import annotations

import math
from math import prod

from ..compiler.ir.types import f32
from .numerics import cast, rounding_one

RANDOM: dict = {}

_M32 = 0xFFFFFFFF


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Philox 4x32 with 10 rounds: four u32 words (Salmon et al. 2011)."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        p, q = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (q >> 32) ^ c1 ^ k0, q & _M32, (p >> 32) ^ c3 ^ k1, p & _M32
        k0, k1 = (k0 + 0x9E3779B9) & _M32, (k1 + 0xBB67AE85) & _M32
    return c0, c1, c2, c3


def words(key: int, counter: int, domain: int) -> tuple[int, int, int, int]:
    """The block of a u64 key at a 64-bit counter. Domain 0 makes bits, domain 1 derives keys."""
    return philox((key & _M32, key >> 32 & _M32), (counter & _M32, counter >> 32 & _M32, domain, 0))


def bits(key: int, n: int) -> list[int]:
    return [w for block in range((n + 3) // 4) for w in words(key, block, 0)][:n]


def fold_in(key: int, data: int) -> int:
    low, high, _, _ = words(key, data, 1)
    return low | high << 32


def uniform(key: int, n: int) -> list[float]:
    return [(w >> 8) * 2.0**-24 for w in bits(key, n)]          # exact in f32: 24 bits


_r = rounding_one(f32)
_LOG2 = _r(math.log(2))
_HALF_PI = _r(math.pi / 2)
_LOG = [_r(1 / k) for k in (11, 9, 7, 5, 3, 1)]                                     # atanh's series in s^2
_SIN = [_r((-1) ** (k // 2) / math.factorial(k)) for k in (11, 9, 7, 5, 3, 1)]
_COS = [_r((-1) ** (k // 2) / math.factorial(k)) for k in (12, 10, 8, 6, 4, 2, 0)]
_ROOT2 = _r(1.4142135)


def _horner(x: float, coefficients: list[float]) -> float:
    y = coefficients[0]
    for c in coefficients[1:]:
        y = _r(_r(y * x) + c)
    return y


def box_muller(w1: int, w2: int) -> float:
    """A standard normal f32 from two words: sqrt(-2 log u1) cos(2 pi u2), u1 in (0, 1] and u2 in [0, 1) of 24 bits each."""
    u1 = _r(_r((w1 >> 8) + 1.0) * 2.0**-24)
    u2 = (w2 >> 8) * 2.0**-24
    m, e = math.frexp(u1)                                       # u1 = m * 2^e with m in [1/2, 1); the formula's m is in [1, 2)
    m, e = 2 * m, e - 1
    if m > _ROOT2:
        m, e = m / 2, e + 1
    s = _r(_r(m - 1) / _r(m + 1))
    log_m = _r(_r(s * 2) * _horner(_r(s * s), _LOG))
    log_u = _r(_r(e * _LOG2) + log_m)
    r = _r(math.sqrt(max(0.0, _r(log_u * -2))))                  # this order: of two zeros, max gives the +0
    t = u2 * 4
    q = math.floor(_r(t + 0.5))
    f = _r(_r(t - q) * _HALF_PI)
    f2 = _r(f * f)
    c = _r(f * _horner(f2, _SIN)) if q % 2 else _horner(f2, _COS)
    return _r(r * (-c if q % 4 in (1, 2) else c))


def normal(key: int, n: int) -> list[float]:
    w = bits(key, 2 * n)
    return list(map(box_muller, w[:n], w[n:]))


def _bits(ev, op, xs):
    n = prod(op.attrs["shape"])
    return [[w for key in xs[0].data for w in bits(key, n)]]


def _fold_in(ev, op, xs):
    return [list(map(fold_in, xs[0].data, xs[1].data))]


def _derived(fn):
    def semantics(ev, op, xs):
        n = prod(op.attrs["shape"])
        return [cast([v for key in xs[0].data for v in fn(key, n)], f32, op.attrs["dtype"], ev.shadow)]
    return semantics


RANDOM.update({"random.bits": _bits, "random.fold_in": _fold_in,
               "random.uniform": _derived(uniform), "random.normal": _derived(normal)})
