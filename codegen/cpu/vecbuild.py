"""Arithmetic on vectors as Python expressions that append LLVM instructions: what the elementary functions are written in."""
from __future__ import annotations

from .irtext import Fn, f32_const, f64_const, vec


class V:
    """A vector value under construction; arithmetic operators append instructions."""

    __slots__ = ("b", "name", "elem")

    def __init__(self, b: VecBuilder, name: str, elem: str):
        self.b, self.name, self.elem = b, name, elem

    @property
    def type(self) -> str:
        return vec(self.elem, self.b.w)

    def _bin(self, fop: str, iop: str, other: V | float) -> V:
        other = self.b.lift(other, self.elem)
        op = fop if self.elem in ("float", "double") else iop
        return V(self.b, self.b.f.op(f"{op} {self.type} {self.name}, {other.name}"), self.elem)

    def __add__(self, o): return self._bin("fadd", "add", o)
    def __radd__(self, o): return self.b.lift(o, self.elem) + self
    def __sub__(self, o): return self._bin("fsub", "sub", o)
    def __rsub__(self, o): return self.b.lift(o, self.elem) - self
    def __mul__(self, o): return self._bin("fmul", "mul", o)
    def __rmul__(self, o): return self.b.lift(o, self.elem) * self
    def __truediv__(self, o): return self._bin("fdiv", "sdiv", o)
    def __rtruediv__(self, o): return self.b.lift(o, self.elem) / self
    def __and__(self, o): return self._bin("", "and", o)
    def __or__(self, o): return self._bin("", "or", o)
    def __xor__(self, o): return self._bin("", "xor", o)
    def __lshift__(self, n): return self._bin("", "shl", n)
    def __rshift__(self, n): return self._bin("", "ashr", n)

    def __neg__(self):
        return V(self.b, self.b.f.op(f"fneg {self.type} {self.name}"), self.elem)

    def _cmp(self, fop: str, iop: str, other: V | float) -> V:
        other = self.b.lift(other, self.elem)
        op = f"fcmp {fop}" if self.elem in ("float", "double") else f"icmp {iop}"
        return V(self.b, self.b.f.op(f"{op} {self.type} {self.name}, {other.name}"), "i1")

    def lt(self, o): return self._cmp("olt", "slt", o)
    def gt(self, o): return self._cmp("ogt", "sgt", o)
    def ge(self, o): return self._cmp("oge", "sge", o)
    def eq(self, o): return self._cmp("oeq", "eq", o)
    def ne(self, o): return self._cmp("une", "ne", o)

    def isnan(self) -> V:
        return self._cmp("uno", "", self)


class VecBuilder:
    """Builds one function over `w` lanes."""

    def __init__(self, f: Fn, w: int):
        self.f, self.w, self.m = f, w, f.module

    def const(self, x: float, elem: str) -> V:
        text = {"float": f32_const, "double": f64_const}.get(elem, lambda v: str(int(v)))(x)
        return V(self, f"splat ({elem} {text})" if self.w > 1 else text, elem)

    def lift(self, x: V | float, elem: str) -> V:
        return x if isinstance(x, V) else self.const(x, elem)

    def cast(self, op: str, x: V, elem: str) -> V:
        return V(self, self.f.op(f"{op} {x.type} {x.name} to {vec(elem, self.w)}"), elem)

    def call(self, intrinsic: str, *args: V) -> V:
        elem = args[0].elem
        bits = {"float": "f32", "double": "f64", "i32": "i32", "i64": "i64"}[elem]
        suffix = f"v{self.w}{bits}" if self.w > 1 else bits
        t = args[0].type
        name = self.m.intrinsic(t, f"llvm.{intrinsic}.{suffix}", *[t] * len(args))
        return V(self, self.f.op(f"call {t} {name}({', '.join(f'{t} {a.name}' for a in args)})"), elem)

    def fma(self, a: V, b: V | float, c: V | float) -> V:
        b, c = self.lift(b, a.elem), self.lift(c, a.elem)
        return self.call("fma", a, b, c) if self.m.target.fma else a * b + c

    def poly(self, x: V, coefficients: list[float]) -> V:
        """Horner; ascending coefficients."""
        acc = self.const(coefficients[-1], x.elem)
        for c in reversed(coefficients[:-1]):
            acc = self.fma(acc, x, c)
        return acc

    def select(self, cond: V, a: V | float, b: V | float) -> V:
        elem = a.elem if isinstance(a, V) else b.elem
        a, b = self.lift(a, elem), self.lift(b, elem)
        c = f"{vec('i1', self.w)} {cond.name}"
        return V(self, self.f.op(f"select {c}, {a.type} {a.name}, {b.type} {b.name}"), elem)

    def clamp(self, x: V, lo: float, hi: float) -> V:
        """NaN stays."""
        x = self.select(x.gt(hi), hi, x)
        return self.select(x.lt(lo), lo, x)

    def bits(self, x: V) -> V:
        return self.cast("bitcast", x, "i32" if x.elem == "float" else "i64")

    def real(self, x: V) -> V:
        return self.cast("bitcast", x, "float" if x.elem == "i32" else "double")

    def abs(self, x: V) -> V:
        return self.call("fabs", x)

    def copysign(self, x: V, sign: V) -> V:
        return self.call("copysign", x, sign)

    def any(self, cond: V) -> str:
        if self.w == 1:
            return cond.name
        t = vec("i1", self.w)
        name = self.m.intrinsic("i1", f"llvm.vector.reduce.or.v{self.w}i1", t)
        return self.f.op(f"call i1 {name}({t} {cond.name})")

    # f64 for f32 functions
    def wide(self, x: V) -> V:
        return self.cast("fpext", x, "double")

    def narrow(self, x: V) -> V:
        return self.cast("fptrunc", x, "float")
