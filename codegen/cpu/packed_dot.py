"""Four small products at a time: sums of unsigned codes times int8 activations per 32-bit lane, on whatever the target has for it."""
from __future__ import annotations

from ...compiler.ops.packed import Format
from .irtext import Fn
from .target import CpuTarget


class Dot:
    """Instructions on one vector register: `lanes` columns of 32 bits, four codes (two for int16) each."""

    def __init__(self, target: CpuTarget, fmt: Format):
        self.target, self.fmt = target, fmt
        self.lanes = target.vector_bytes // 4
        self.wide = fmt.bits == 16
        self.v = f"<{self.lanes} x i32>"
        self.bytes = f"<{target.vector_bytes} x i8>"
        self.halves = f"<{target.vector_bytes // 2} x i16>"
        features = target.features.split(",")
        self.vnni = "512" if target.name == "avx512" and "+avx512vnni" in features else \
            "256" if target.name == "avx2" and ("+avxvnni" in features or {"+avx512vnni", "+avx512vl"} <= set(features)) else ""
        self.sdot = target.name == "neon" and "+dotprod" in features
        # what is multiplied: value + offset, unsigned; with signed dot products only, less 128 where it does not fit otherwise
        self.flip = self.sdot and fmt.name in ("int8", "pow2")
        self.one = 0x81 if self.flip else 1                         # a code that is multiplied as 1
        self.offset = 0 if self.wide else fmt.offset - (128 if self.flip else 0)

    def splat(self, f: Fn, scalar: str) -> str:
        one = f.op(f"insertelement {self.v} poison, i32 {scalar}, i64 0")
        return f.op(f"shufflevector {self.v} {one}, {self.v} poison, <{self.lanes} x i32> zeroinitializer")

    def dot(self, f: Fn, acc: str, codes: str, x: str) -> str:
        """acc + the products of codes and x (both as 32-bit lanes)."""
        return self.dot_halves(f, acc, codes, x) if self.wide else self.dot_bytes(f, acc, codes, x)

    def _call(self, f: Fn, name: str, result: str, *args: tuple[str, str]) -> str:
        at = f.module.intrinsic(result, name, *(t for t, _ in args))
        return f.op(f"call {result} {at}({', '.join(f'{t} {x}' for t, x in args)})")

    def cast(self, f: Fn, x: str, to: str) -> str:
        return f.op(f"bitcast {self.v} {x} to {to}")

    def dot_halves(self, f: Fn, acc: str, codes: str, x: str) -> str:
        c, y = self.cast(f, codes, self.halves), self.cast(f, x, self.halves)
        if self.vnni:
            return self._call(f, f"llvm.x86.avx512.vpdpwssd.{self.vnni}", self.v, (self.v, acc), (self.halves, c), (self.halves, y))
        n = self.lanes * 2
        c, y = (f.op(f"sext {self.halves} {z} to <{n} x i32>") for z in (c, y))
        p = f.op(f"mul <{n} x i32> {c}, {y}")                       # LLVM makes pmaddwd of it where there is one
        return f.op(f"add {self.v} {acc}, {self.every(f, p, n, 2)}")

    def every(self, f: Fn, p: str, n: int, count: int) -> str:
        """Sums of each `count` neighbours of an n-vector."""
        total = ""
        for i in range(count):
            at = ", ".join(f"i32 {j}" for j in range(i, n, count))
            part = f.op(f"shufflevector <{n} x i32> {p}, <{n} x i32> poison, <{n // count} x i32> <{at}>")
            total = f.op(f"add {self.v} {total}, {part}") if total else part
        return total

    def dot_bytes(self, f: Fn, acc: str, codes: str, x: str) -> str:
        c, y = self.cast(f, codes, self.bytes), self.cast(f, x, self.bytes)
        if self.vnni:
            return self._call(f, f"llvm.x86.avx512.vpdpbusd.{self.vnni}", self.v, (self.v, acc), (self.bytes, c), (self.bytes, y))
        if self.sdot:
            if self.flip:
                c = f.op(f"xor {self.bytes} {c}, splat (i8 -128)")
            return self._call(f, "llvm.aarch64.neon.sdot.v4i32.v16i8", self.v, (self.v, acc), (self.bytes, c), (self.bytes, y))
        if self.target.name == "avx2":
            if self.fmt.name != "int8":                             # codes up to 128: pairs fit 16 bits
                return self.pairs(f, acc, c, y)
            half = f.op(f"lshr {self.bytes} {c}, splat (i8 1)")
            return self.pairs(f, self.pairs(f, acc, half, y), f.op(f"sub {self.bytes} {c}, {half}"), y)
        n = self.target.vector_bytes
        c, y = f.op(f"zext {self.bytes} {c} to <{n} x i32>"), f.op(f"sext {self.bytes} {y} to <{n} x i32>")
        return f.op(f"add {self.v} {acc}, {self.every(f, f.op(f'mul <{n} x i32> {c}, {y}'), n, 4)}")

    def pairs(self, f: Fn, acc: str, c: str, y: str) -> str:
        p = self._call(f, "llvm.x86.avx2.pmadd.ub.sw", self.halves, (self.bytes, c), (self.bytes, y))
        q = self._call(f, "llvm.x86.avx2.pmadd.wd", self.v, (self.halves, p), (self.halves, "splat (i16 1)"))
        return f.op(f"add {self.v} {acc}, {q}")

    # ---- codes of a packed vector ----

    def unpack(self, f: Fn, packed: str, part: int) -> str:
        """The part-th four codes of each column, as numbers to multiply with."""
        bits = self.fmt.bits
        if bits >= 8:
            return packed
        mask = f"splat (i32 {((1 << bits) - 1) * 0x01010101})"
        x = f.op(f"lshr {self.v} {packed}, splat (i32 {bits * part})") if part else packed
        x = f.op(f"and {self.v} {x}, {mask}")
        return self.powers(f, x) if self.fmt.powers else x

    def masked(self, f: Fn, packed: str, part: int) -> str:
        """The same where they lie: 2 ** (bits * part) times as much."""
        bits = self.fmt.bits
        mask = (((1 << bits) - 1) << bits * part) * 0x01010101
        return f.op(f"and {self.v} {packed}, splat (i32 {mask - (1 << 32) if mask >> 31 else mask})")

    def powers(self, f: Fn, nibbles: str) -> str:
        """64 + the value of each nibble."""
        n = self.target.vector_bytes
        c = self.cast(f, nibbles, self.bytes)
        table = [64, *(64 + (1 << e) for e in range(7)), 64, *(64 - (1 << e) for e in range(7))]
        names = {"avx512": "llvm.x86.avx512.pshuf.b.512", "avx2": "llvm.x86.avx2.pshuf.b", "neon": "llvm.aarch64.neon.tbl1.v16i8"}
        if self.target.name in names:
            lookup = "<" + ", ".join(f"i8 {t - 256 if t > 127 else t}" for t in table * (n // 16)) + ">"
            out = self._call(f, names[self.target.name], self.bytes, (self.bytes, lookup), (self.bytes, c))
        else:
            e = f.op(f"and {self.bytes} {c}, splat (i8 7)")
            size = f.op(f"lshr {self.bytes} {f.op(f'shl {self.bytes} splat (i8 1), {e}')}, splat (i8 1)")
            negative = f.op(f"icmp ugt {self.bytes} {c}, splat (i8 7)")
            up, down = (f.op(f"{o} {self.bytes} splat (i8 64), {size}") for o in ("add", "sub"))
            out = f.op(f"select <{n} x i1> {negative}, {self.bytes} {down}, {self.bytes} {up}")
        return f.op(f"bitcast {self.bytes} {out} to {self.v}")
