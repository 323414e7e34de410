"""Values while a kernel is emitted: uniform scalars, i64s at known distances from lane to lane, and vectors; address sums."""
from __future__ import annotations

import math
from dataclasses import dataclass

from ...compiler.ir.types import BufferType, DType, i32, i64
from .irtext import Fn
from .scalars import Ops, const, reg_elem


@dataclass(frozen=True, slots=True)
class Val:
    """`kind` u: one scalar for all lanes; l: an i64, text + offs[lane]; v: a vector register. `aligned`: the text of a u or l
    value is a multiple of this; `small`: an i64 made from loop indices and constants only, |x| < 2^52."""

    kind: str
    text: str
    dtype: DType
    offs: tuple[int, ...] = ()
    aligned: int = 1
    small: bool = False

    @property
    def contiguous(self) -> bool:
        """Neighbouring lanes are neighbours in memory."""
        return self.kind == "l" and self.offs == tuple(range(len(self.offs)))

    @property
    def number(self) -> int | None:
        """The constant this is, for uniform integers."""
        t = self.text
        return int(t) if self.kind == "u" and t.lstrip("-").isdigit() else None


@dataclass(frozen=True, slots=True)
class Buf:
    """A buffer: base pointer, an element offset from it (may differ between lanes), its type."""

    ptr: str
    type: BufferType
    offset: Val


def _multiple(a: Val) -> int:
    """A number that the scalar part is a multiple of (0 for 0)."""
    n = a.number if a.kind == "u" else None
    return abs(n) if n is not None else a.aligned


def num(n: int) -> Val:
    return Val("u", str(n), i64, small=True)


class Lanes:
    """Arithmetic on Vals in one context of `w` lanes."""

    def __init__(self, f: Fn, w: int):
        self.f, self.w = f, w
        self.one, self.ops = Ops(f, 1), Ops(f, w)

    def vector(self, x: Val) -> str:
        """The value in a register of w lanes."""
        if x.kind == "v" or self.w == 1:
            return x.text
        elem = reg_elem(x.dtype)
        if x.kind == "u":
            if not x.text.startswith("%"):
                return self.ops.splat_const(elem, x.text)
            return self.splat(elem, x.text)
        offsets = "<" + ", ".join(f"i64 {o}" for o in x.offs) + ">"
        if x.text == "0":
            return offsets
        base = self.splat("i64", x.text) if x.text.startswith("%") else self.ops.splat_const("i64", x.text)
        return self.f.op(f"add <{self.w} x i64> {base}, {offsets}")

    def splat(self, elem: str, text: str) -> str:
        t = f"<{self.w} x {elem}>"
        one = self.f.op(f"insertelement {t} poison, {elem} {text}, i64 0")
        return self.f.op(f"shufflevector {t} {one}, {t} poison, <{self.w} x i32> zeroinitializer")

    def steps(self, stride: int, elem: str) -> str:
        return "<" + ", ".join(f"{elem} {i * stride}" for i in range(self.w)) + ">"

    # ---- i64 arithmetic that keeps what is known
    def add(self, a: Val, b: Val) -> Val:
        return self._sum("add", a, b)

    def sub(self, a: Val, b: Val) -> Val:
        return self._sum("sub", a, b)

    def _sum(self, op: str, a: Val, b: Val) -> Val:
        small = a.small and b.small
        if "v" in (a.kind, b.kind):
            return Val("v", self.ops.bin(op, "i64", self.vector(a), self.vector(b)), i64, small=small)
        text = (self.f.iadd if op == "add" else self.f.isub)(a.text, b.text)
        if a.kind == b.kind == "u":
            return Val("u", text, i64, (), math.gcd(_multiple(a), _multiple(b)) or 1, small)
        sign = 1 if op == "add" else -1
        offs = tuple(x + sign * y for x, y in zip(a.offs or (0,) * self.w, b.offs or (0,) * self.w))
        if not any(offs):
            return Val("u", text, i64, small=small)
        return Val("l", text, i64, offs, math.gcd(_multiple(a), _multiple(b)) or 1, small)

    def scaled(self, a: Val, n: int) -> Val:
        if n == 0:
            return num(0)
        if n == 1:
            return a
        if a.kind == "v":
            return Val("v", self.ops.bin("mul", "i64", a.text, self.ops.splat_const("i64", str(n))), i64, small=a.small)
        text = self.f.imul(a.text, str(n))
        return Val(a.kind, text, i64, tuple(o * n for o in a.offs), abs(n) * a.aligned, a.small)

    def quotient(self, a: Val, n: int, remainder: bool) -> Val | None:
        """a // n or a % n for a >= 0 where that is cheap: lanes that do not cross a multiple of n, or small numbers."""
        if a.kind == "u" or n <= 0:
            return None
        if a.contiguous and a.aligned % self.w == 0 and n % self.w == 0:
            op = self.f.urem if remainder else self.f.udiv
            text = op(a.text, str(n))
            return Val("l", text, i64, a.offs, self.w, True) if remainder else Val("u", text, i64, small=True)
        if a.kind == "l" and a.aligned % n == 0 and min(a.offs) >= 0:
            if remainder:
                return Val("l", "0", i64, tuple(o % n for o in a.offs), a.aligned, True)
            return Val("l", self.f.udiv(a.text, str(n)), i64, tuple(o // n for o in a.offs), a.aligned // n, True)
        if not a.small:
            return None
        x = self.vector(a)
        d = self.ops.splat_const("double", const_f64(n))
        wide = self.ops.conv("sitofp", "i64", x, "double")
        q = self.ops.call("floor", "double", self.ops.bin("fdiv", "double", wide, d))
        q = self.ops.conv("fptosi", "double", q, "i64")
        if remainder:
            q = self.ops.bin("sub", "i64", x, self.ops.bin("mul", "i64", q, self.ops.splat_const("i64", str(n))))
        return Val("v", q, i64, small=True)

    def compared(self, predicate: str, a: Val, b: Val) -> str:
        """Lanes at known distances beside one number for all: of the distances, which are small, with what the number is above the first
        lane, cut off where all lanes compare alike. One comparison of i32 instead of two sums and two comparisons of i64."""
        f, e, (line, one) = self.f, "i64", (a, b) if a.kind == "l" else (b, a)
        lo, hi = min(line.offs) - 1, max(line.offs) + 1

        def within(x: str, least: int, most: int) -> str:
            return self.one.call("smax", e, self.one.call("smin", e, x, str(most)), str(least))
        above = within(f.isub(within(one.text, -1 << 62, 1 << 62), line.text), lo, hi)      # the difference must not overflow
        above = self.splat("i32", f.op(f"trunc i64 {above} to i32"))
        offs = "<" + ", ".join(f"i32 {o}" for o in line.offs) + ">"
        return self.ops.emit("compare", i32, [offs, above] if line is a else [above, offs], {"predicate": predicate})

    def address(self, buf: Buf, indices: list[Val]) -> Val:
        """Element offset of an access from the buffer's base pointer."""
        total = buf.offset
        for x, stride in zip(indices, buf.type.element_strides):
            total = self.add(total, self.scaled(x, stride))
        return total


def const_f64(n: float) -> str:
    from .irtext import f64_const
    return f64_const(float(n))


__all__ = ["Buf", "Lanes", "Val", "const", "num"]
