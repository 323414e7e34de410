"""Intervals of i64 index values, so that index arithmetic is emitted in 32 bits and divided without sign fixes where that is exact.

64-bit multiplication and division cost a GPU several times their 32-bit forms, and almost all indices come from loops with known
bounds. An interval is (low, high), inclusive; None is "any i64".
"""
from __future__ import annotations

Interval = tuple[int, int] | None
LOW, HIGH = -(1 << 31), (1 << 31) - 1
_I64 = (-(1 << 63), (1 << 63) - 1)
OF_DTYPE = {"i32": (LOW, HIGH), "i16": (-(1 << 15), (1 << 15) - 1), "i8": (-128, 127), "u16": (0, (1 << 16) - 1), "u8": (0, 255), "bool": (0, 1),
            "u32": (0, (1 << 32) - 1)}


def fits_int(r: Interval) -> bool:
    return r is not None and LOW <= r[0] and r[1] <= HIGH


def _checked(low: int, high: int) -> Interval:
    return (low, high) if _I64[0] <= low and high <= _I64[1] else None


def of_op(name: str, rs: list[Interval]) -> Interval:
    """The interval of an i64 scalar op's result from its operands'; None when it may wrap or is not known."""
    if any(r is None for r in rs):
        if name == "mod" and rs[1] is not None and rs[1][0] > 0:
            return (0, rs[1][1] - 1)
        if name == "and" and any(r is not None and r[0] >= 0 for r in rs):
            return (0, min(r[1] for r in rs if r is not None and r[0] >= 0))
        return _clamped(name, rs)
    if name == "neg":
        return _checked(-rs[0][1], -rs[0][0])
    if len(rs) != 2:
        return rs[0] if name == "abs" and rs[0][0] >= 0 else None
    (a, b), (c, d) = rs
    if name == "add":
        return _checked(a + c, b + d)
    if name == "sub":
        return _checked(a - d, b - c)
    if name == "mul":
        p = (a * c, a * d, b * c, b * d)
        return _checked(min(p), max(p))
    if name == "max":
        return (max(a, c), max(b, d))
    if name == "min":
        return (min(a, c), min(b, d))
    if name == "floordiv" and c > 0:
        p = (a // c, a // d, b // c, b // d)
        return (min(p), max(p))
    if name == "mod" and c > 0:
        return (a, b) if a >= 0 and b < c else (0, d - 1)
    if name == "fmod" and c > 0 and a >= 0:
        return (0, min(b, d - 1))
    if name == "and" and a >= 0 and c >= 0:
        return (0, min(b, d))
    return None


def _clamped(name: str, rs: list[Interval]) -> Interval:
    """max(x, low) and min(x, high) bound one side only; both together (a clamp) are recognised by the second of them."""
    known = [r for r in rs if r is not None]
    if len(rs) == 2 and known and name == "max":
        return (max(known[0][0], _I64[0]), _I64[1])
    if len(rs) == 2 and known and name == "min":
        return (_I64[0], min(known[0][1], _I64[1]))
    return None


def union(a: Interval, b: Interval) -> Interval:
    return None if a is None or b is None else (min(a[0], b[0]), max(a[1], b[1]))
