"""What AVX-512 does in one instruction for sixteen f32: a look-up in sixteen numbers, and x 2^floor(n) with denormals and overflow.

Any number of lanes: fewer are part of a register of sixteen, more are several; so a lane's result does not depend on how many there are.
"""
from __future__ import annotations

from collections.abc import Callable

from .irtext import f32_const, vec
from .vecbuild import V, VecBuilder

LANES = 16


def has_table(b: VecBuilder) -> bool:
    return b.m.target.name == "avx512"


def lookup16(b: VecBuilder, table: list[float], at: V) -> V:
    """table[at mod 16] in each lane."""
    t, i = vec("float", LANES), vec("i32", LANES)
    name = b.m.intrinsic(t, "llvm.x86.avx512.permvar.sf.512", t, i)
    text = "<" + ", ".join(f"float {f32_const(x)}" for x in table) + ">"
    return _in_sixteens(b, lambda x: b.f.op(f"call {t} {name}({t} {text}, {i} {x})"), at)


def scalef(b: VecBuilder, x: V, n: V) -> V:
    """x 2^floor(n), rounded once."""
    t = vec("float", LANES)
    name = b.m.intrinsic(t, "llvm.x86.avx512.mask.scalef.ps.512", t, t, t, "i16", "i32")
    return _in_sixteens(b, lambda p, q: b.f.op(f"call {t} {name}({t} {p}, {t} {q}, {t} zeroinitializer, i16 -1, i32 4)"), x, n)


def _in_sixteens(b: VecBuilder, f: Callable[..., str], *xs: V) -> V:
    """f, of registers of sixteen lanes (their names), on vectors of any power of two."""
    if b.w == LANES:
        return V(b, f(*(x.name for x in xs)), "float")
    if b.w == 1:
        wide = [b.f.op(f"insertelement {vec(x.elem, LANES)} zeroinitializer, {x.elem} {x.name}, i64 0") for x in xs]
        return V(b, b.f.op(f"extractelement {vec('float', LANES)} {f(*wide)}, i64 0"), "float")
    if b.w < LANES:
        wide = [_shuffled(b, x.type, x.name, "zeroinitializer", [*range(b.w), *[b.w] * (LANES - b.w)]) for x in xs]
        return V(b, _shuffled(b, vec("float", LANES), f(*wide), "poison", list(range(b.w))), "float")
    parts = [f(*(_shuffled(b, x.type, x.name, "poison", list(range(k, k + LANES))) for x in xs)) for k in range(0, b.w, LANES)]
    n = LANES
    while len(parts) > 1:
        parts = [_shuffled(b, vec("float", n), p, q, list(range(2 * n))) for p, q in zip(parts[::2], parts[1::2])]
        n *= 2
    return V(b, parts[0], "float")


def _shuffled(b: VecBuilder, t: str, x: str, y: str, lanes: list[int]) -> str:
    return b.f.op(f"shufflevector {t} {x}, {t} {y}, <{len(lanes)} x i32> <{', '.join(f'i32 {k}' for k in lanes)}>")
