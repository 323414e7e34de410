"""Scalar ops of the loop IR as LLVM instructions on registers of one or many lanes.

Register types: integers as they are, bool as i1; f16 and bf16 live in f32 registers that always hold a representable
value (computed in f32, rounded after every op, which is exact: f32 has more than twice their digits). In memory bool is
a byte, f16 and bf16 are 16 raw bits. No loops and no memory accesses here, see emit_kernel.py.
"""
from __future__ import annotations

from ...compiler.ir.types import DType
from . import vecmath
from .irtext import Fn, f32_const, f64_const, vec

_LIBRARY = {*vecmath.UNARY, *vecmath.BINARY}
_PREDICATE = {"eq": ("oeq", "eq", "eq"), "ne": ("une", "ne", "ne"), "lt": ("olt", "slt", "ult"), "le": ("ole", "sle", "ule"),
              "gt": ("ogt", "sgt", "ugt"), "ge": ("oge", "sge", "uge")}


def reg_elem(dt: DType) -> str:
    """LLVM element type in registers."""
    if dt.is_float:
        return "double" if dt.bits == 64 else "float"
    return "i1" if dt.is_bool else f"i{dt.bits}"


def mem_elem(dt: DType) -> str:
    """LLVM element type in memory."""
    return {"f64": "double", "f32": "float", "f16": "i16", "bf16": "i16", "bool": "i8"}.get(dt.name, f"i{dt.bits}")


def const(dt: DType, value) -> str:
    """A scalar constant as text."""
    if dt.is_float:
        value = float(value)
        return f64_const(value) if dt.bits == 64 else f32_const(_fit(value, dt))
    if dt.is_bool:
        return "true" if value else "false"
    value = int(value) & ((1 << dt.bits) - 1)
    return str(value - (1 << dt.bits) if value >> (dt.bits - 1) else value)


def _fit(value: float, dt: DType) -> float:
    """Rounded to dt, overflowing to infinity."""
    import numpy as np
    with np.errstate(over="ignore"):
        return float(np.asarray(value, np.float64).astype(dt.numpy))


class Ops:
    """Emits ops into `f` on registers of `w` lanes. Values are LLVM names or constants of the register type."""

    def __init__(self, f: Fn, w: int):
        self.f, self.w = f, w

    def type(self, dt: DType) -> str:
        return vec(reg_elem(dt), self.w)

    def t(self, elem: str) -> str:
        return vec(elem, self.w)

    def k(self, dt: DType, value) -> str:
        """A constant in all lanes."""
        return self.splat_const(reg_elem(dt), const(dt, value))

    def splat_const(self, elem: str, text: str) -> str:
        return text if self.w == 1 else f"splat ({elem} {text})"

    def call(self, intrinsic: str, elem: str, *args: str, extra: str = "") -> str:
        """A same-type intrinsic; `extra` is a trailing immediate as written in the call ("i1 true")."""
        t = self.t(elem)
        short = {"float": "f32", "double": "f64"}.get(elem, elem)
        suffix = short if self.w == 1 else f"v{self.w}{short}"
        types = [t] * len(args) + ([extra.split()[0]] if extra else [])
        name = self.f.module.intrinsic(t, f"llvm.{intrinsic}.{suffix}", *types)
        text = ", ".join([f"{t} {a}" for a in args] + ([extra] if extra else []))
        return self.f.op(f"call {t} {name}({text})")

    def bin(self, op: str, elem: str, x: str, y: str) -> str:
        return self.f.op(f"{op} {self.t(elem)} {x}, {y}")

    def cmp(self, pred: str, elem: str, x: str, y: str) -> str:
        kind = "fcmp" if elem in ("float", "double") else "icmp"
        return self.f.op(f"{kind} {pred} {self.t(elem)} {x}, {y}")

    def sel(self, cond: str, elem: str, x: str, y: str) -> str:
        return self.f.op(f"select {self.t('i1')} {cond}, {self.t(elem)} {x}, {self.t(elem)} {y}")

    def conv(self, op: str, frm: str, x: str, to: str) -> str:
        return self.f.op(f"{op} {self.t(frm)} {x} to {self.t(to)}")

    # ---- rounding to the narrow floats
    def rounded(self, x: str, dt: DType) -> str:
        """An f32 register brought to f16 or bf16 precision."""
        if dt.name == "f16":
            return self.from_memory(self.to_memory(x, dt), dt)
        if dt.name != "bf16":
            return x
        c = lambda v: self.splat_const("i32", str(v))
        bits = self.conv("bitcast", "float", x, "i32")
        odd = self.bin("and", "i32", self.bin("lshr", "i32", bits, c(16)), c(1))
        up = self.bin("and", "i32", self.bin("add", "i32", self.bin("add", "i32", bits, odd), c(0x7FFF)), c(-65536))
        quiet = self.bin("or", "i32", self.bin("and", "i32", bits, c(-65536)), c(0x400000))
        nan = self.cmp("uno", "float", x, x)
        return self.conv("bitcast", "i32", self.sel(nan, "i32", quiet, up), "float")

    def to_memory(self, x: str, dt: DType) -> str:
        if dt.is_bool:
            return self.conv("zext", "i1", x, "i8")
        if dt.name == "f16":
            if self.f.module.target.name == "generic":
                return self._soft_half(x)
            return self.conv("bitcast", "half", self.conv("fptrunc", "float", x, "half"), "i16")
        if dt.name == "bf16":
            bits = self.bin("lshr", "i32", self.conv("bitcast", "float", x, "i32"), self.splat_const("i32", "16"))
            return self.conv("trunc", "i32", bits, "i16")
        return x

    def from_memory(self, x: str, dt: DType) -> str:
        if dt.is_bool:
            return self.cmp("ne", "i8", x, self.splat_const("i8", "0"))
        if dt.name == "f16":
            if self.f.module.target.name == "generic":
                return self._soft_float(x)
            return self.conv("fpext", "half", self.conv("bitcast", "i16", x, "half"), "float")
        if dt.name == "bf16":
            bits = self.bin("shl", "i32", self.conv("zext", "i16", x, "i32"), self.splat_const("i32", "16"))
            return self.conv("bitcast", "i32", bits, "float")
        return x

    # f16 where the machine has no conversion
    def _soft_half(self, x: str) -> str:
        c = lambda v: self.splat_const("i32", str(v))
        bits = self.conv("bitcast", "float", x, "i32")
        mag = self.bin("and", "i32", bits, c(0x7FFFFFFF))
        shifted = self.bin("lshr", "i32", mag, c(13))
        odd = self.bin("and", "i32", shifted, c(1))
        normal = self.bin("lshr", "i32", self.bin("add", "i32", self.bin("add", "i32", mag, odd), c(0xFFF - (112 << 23))), c(13))
        # below 2^-14 the addition of 1/2 rounds at the right place
        small = self.bin("fadd", "float", self.conv("bitcast", "i32", mag, "float"), self.splat_const("float", "0.5"))
        small = self.bin("sub", "i32", self.conv("bitcast", "float", small, "i32"), c(0x3F000000))
        out = self.sel(self.cmp("ult", "i32", mag, c(0x38800000)), "i32", small, normal)
        out = self.sel(self.cmp("uge", "i32", mag, c(0x477FF000)), "i32", c(0x7C00), out)
        out = self.sel(self.cmp("ugt", "i32", mag, c(0x7F800000)), "i32", c(0x7E00), out)
        sign = self.bin("and", "i32", self.bin("lshr", "i32", bits, c(16)), c(0x8000))
        return self.conv("trunc", "i32", self.bin("or", "i32", out, sign), "i16")

    def _soft_float(self, h: str) -> str:
        c = lambda v: self.splat_const("i32", str(v))
        wide = self.conv("zext", "i16", h, "i32")
        mag = self.bin("shl", "i32", self.bin("and", "i32", wide, c(0x7FFF)), c(13))
        scaled = self.bin("fmul", "float", self.conv("bitcast", "i32", mag, "float"), self.splat_const("float", f32_const(2.0 ** 112)))
        special = self.cmp("uge", "i32", mag, c(0x7C00 << 13))
        out = self.sel(special, "i32", self.bin("or", "i32", mag, c(0x7F800000)), self.conv("bitcast", "float", scaled, "i32"))
        sign = self.bin("shl", "i32", self.bin("and", "i32", wide, c(0x8000)), c(16))
        return self.conv("bitcast", "i32", self.bin("or", "i32", out, sign), "float")

    # ---- combining (reductions)
    def combine(self, kind: str, dt: DType, x: str, y: str) -> str:
        """One turn of a reduction."""
        if kind in ("max", "min") and dt.is_float:
            return self._either_extreme(kind, reg_elem(dt), x, y)
        return self.emit(kind, dt, [x, y], {})

    def _either_extreme(self, kind: str, e: str, x: str, y: str) -> str:
        """The larger or smaller, NaN if either is NaN, in three instructions for the IEEE operation's six: each comparison gives its second
        operand where one is NaN, so that together the bits of both results are those of a NaN. Of zeros of both signs, -0."""
        pred, bits = "ogt" if kind == "max" else "olt", {"float": "i32", "double": "i64"}[e]
        both = [self.conv("bitcast", e, self.sel(self.cmp(pred, e, a, b), e, a, b), bits) for a, b in ((x, y), (y, x))]
        return self.conv("bitcast", bits, self.bin("or", bits, *both), e)

    @staticmethod
    def identity(kind: str, dt: DType) -> str:
        return const(dt, {"add": 0, "mul": 1, "max": dt.min, "min": dt.max, "and": -1, "or": 0}[kind])

    def fma(self, dt: DType, x: str, y: str, acc: str) -> str:
        """x * y + acc, in one rounding where the machine can."""
        elem = reg_elem(dt)
        if self.f.module.target.fma and dt.name in ("f32", "f64"):
            return self.call("fma", elem, x, y, acc)
        return self.emit("add", dt, [acc, self.emit("mul", dt, [x, y], {})], {})

    # ---- the ops
    def emit(self, name: str, dt: DType, xs: list[str], attrs: dict, fail=None) -> str:
        """scalar.NAME on operands of dtype `dt` (not for select, cast, bitcast, philox). `fail(bad)` reports a division
        by zero in the lanes of the i1 register `bad`."""
        if name == "compare":
            f, s, u = _PREDICATE[attrs["predicate"]]
            pred = f if dt.is_float else s if dt.kind == "int" else u
            return self.cmp(pred, reg_elem(dt), *xs)
        if dt.is_float:
            out = self._float(name, dt, xs)
            return self.rounded(out, dt) if dt.bits == 16 else out
        if dt.is_bool:
            return self._bool(name, xs)
        return self._int(name, dt, xs, fail)

    def _float(self, name: str, dt: DType, xs: list[str]) -> str:
        e = reg_elem(dt)
        if name in ("add", "sub", "mul", "div"):
            return self.bin("f" + name, e, *xs)
        if name == "neg":
            return self.f.op(f"fneg {self.t(e)} {xs[0]}")
        if name == "abs":
            return self.call("fabs", e, xs[0])
        if name in ("max", "min"):
            return self._extreme(name, e, *xs)
        if name == "sign":
            x, zero = xs[0], self.splat_const(e, "0.0")
            below = self.sel(self.cmp("olt", e, x, zero), e, self.splat_const(e, "-1.0"), zero)
            below = self.sel(self.cmp("uno", e, x, x), e, x, below)
            return self.sel(self.cmp("ogt", e, x, zero), e, self.splat_const(e, "1.0"), below)
        if name in ("floor", "ceil", "trunc", "sqrt"):
            return self.call(name, e, xs[0])
        if name == "round":
            return self.call("rint", e, xs[0])
        if name == "rsqrt" and dt.bits == 16:                 # both steps rounded
            root = self.rounded(self.call("sqrt", e, xs[0]), dt)
            return self.bin("fdiv", e, self.splat_const(e, "1.0"), root)
        if name == "floordiv":
            return self.call("floor", e, self.rounded(self.bin("fdiv", e, *xs), dt) if dt.bits == 16 else self.bin("fdiv", e, *xs))
        if name in ("fmod", "mod"):
            r = self.bin("frem", e, *xs)
            if name == "fmod":
                return r
            x, y = r, xs[1]
            zero = self.splat_const(e, "0.0")
            differ = self.bin("xor", "i1", self.cmp("olt", e, x, zero), self.cmp("olt", e, y, zero))
            moved = self.sel(differ, e, self.bin("fadd", e, x, y), x)
            return self.sel(self.cmp("oeq", e, x, zero), e, self.call("copysign", e, zero, y), moved)
        if name in _LIBRARY:
            symbol = vecmath.require(self.f.module, name, self.w, "f64" if dt.bits == 64 else "f32")
            t = self.t(e)
            return self.f.op(f"call {t} @{symbol}({', '.join(f'{t} {x}' for x in xs)})")
        raise NotImplementedError(f"scalar.{name} on {dt}")

    def _extreme(self, name: str, e: str, x: str, y: str) -> str:
        """IEEE 754 maximum and minimum; against a constant that is no NaN, one comparison does."""
        for a, b in ((x, y), (y, x)):
            c = _constant(a, e)
            if c is not None and c == c and not (c == 0.0 and _is_negative_zero(a)):
                if c == 0.0:                                  # +0: -0 must come out as +0 from max, and stay in min
                    pred = "ole" if name == "max" else "ogt"
                else:
                    pred = "olt" if name == "max" else "ogt"
                return self.sel(self.cmp(pred, e, b, a), e, a, b)
        return self.call("maximum" if name == "max" else "minimum", e, x, y)

    def _bool(self, name: str, xs: list[str]) -> str:
        if name == "not":
            return self.bin("xor", "i1", xs[0], self.splat_const("i1", "true"))
        op = {"and": "and", "or": "or", "xor": "xor", "max": "or", "min": "and", "add": "or", "mul": "and"}[name]
        return self.bin(op, "i1", *xs)

    def _int(self, name: str, dt: DType, xs: list[str], fail) -> str:
        e, signed = reg_elem(dt), dt.kind == "int"
        c = lambda v: self.splat_const(e, const(dt, v))
        if name in ("add", "sub", "mul", "and", "or", "xor"):
            return self.bin(name, e, *xs)
        if name == "neg":
            return self.bin("sub", e, c(0), xs[0])
        if name == "not":
            return self.bin("xor", e, xs[0], c(-1))
        if name == "abs":
            return self.call("abs", e, xs[0], extra="i1 false") if signed else xs[0]
        if name == "sign":
            pos = self.conv("zext", "i1", self.cmp("sgt" if signed else "ugt", e, xs[0], c(0)), e)
            return self.bin("sub", e, pos, self.conv("zext", "i1", self.cmp("slt", e, xs[0], c(0)), e)) if signed else pos
        if name in ("max", "min"):
            return self.call(("s" if signed else "u") + name, e, *xs)
        if name in ("shl", "shr"):
            x, y = xs
            known = _constant(y, e)
            if known is not None and 0 <= known < dt.bits:
                return self.bin("shl" if name == "shl" else "ashr" if signed else "lshr", e, x, y)
            inside = self.cmp("ult", e, y, c(dt.bits))
            if name == "shl":
                return self.sel(inside, e, self.bin("shl", e, x, self.sel(inside, e, y, c(0))), c(0))
            op = "ashr" if signed else "lshr"
            amount = self.sel(inside, e, y, c(dt.bits - 1))
            out = self.bin(op, e, x, amount)
            return out if signed else self.sel(inside, e, out, c(0))
        if name in ("floordiv", "mod", "fmod"):
            return self._division(name, dt, xs, fail)
        if name == "pow":
            return self._power(dt, xs)
        raise NotImplementedError(f"scalar.{name} on {dt}")

    def _division(self, name: str, dt: DType, xs: list[str], fail) -> str:
        e, signed = reg_elem(dt), dt.kind == "int"
        c = lambda v: self.splat_const(e, const(dt, v))
        x, y = xs
        known = _constant(y, e)
        zero = None
        if known is None or known == 0:
            zero = self.cmp("eq", e, y, c(0))
            if fail is not None:
                fail(zero)
            y = self.sel(zero, e, c(1), y)
        if known is None and signed:                          # the one quotient that does not fit wraps
            smallest = self.bin("and", "i1", self.cmp("eq", e, x, c(-(1 << (dt.bits - 1)))), self.cmp("eq", e, y, c(-1)))
            y = self.sel(smallest, e, c(1), y)
        if not signed:
            out = self.bin("udiv" if name == "floordiv" else "urem", e, x, y)
        else:
            q = self.bin("sdiv", e, x, y)
            r = self.bin("sub", e, x, self.bin("mul", e, q, y))
            if name == "fmod":
                out = r
            else:
                differ = self.bin("and", "i1", self.cmp("ne", e, r, c(0)),
                                  self.cmp("slt", e, self.bin("xor", e, r, y), c(0)))
                out = (self.sel(differ, e, self.bin("sub", e, q, c(1)), q) if name == "floordiv"
                       else self.sel(differ, e, self.bin("add", e, r, y), r))
        return out if zero is None else self.sel(zero, e, c(0), out)

    def _power(self, dt: DType, xs: list[str]) -> str:
        """By repeated squaring, one turn per bit of the exponent's type."""
        e = reg_elem(dt)
        c = lambda v: self.splat_const(e, const(dt, v))
        x, y = xs
        f, t = self.f, self.t(e)
        with f.loop("0", str(dt.bits), carried=[(t, c(1)), (t, x), (t, y)], nonempty=True) as loop:
            acc, base, left = loop.values
            odd = self.cmp("ne", e, self.bin("and", e, left, c(1)), c(0))
            loop.next = [self.sel(odd, e, self.bin("mul", e, acc, base), acc), self.bin("mul", e, base, base),
                         self.bin("lshr", e, left, c(1))]
        out = loop.results[0]
        if dt.kind == "int":
            parity = self.cmp("ne", e, self.bin("and", e, y, c(1)), c(0))
            minus = self.sel(parity, e, c(-1), c(1))
            other = self.sel(self.cmp("eq", e, x, c(1)), e, c(1), self.sel(self.cmp("eq", e, x, c(-1)), e, minus, c(0)))
            out = self.sel(self.cmp("slt", e, y, c(0)), e, other, out)
        return out

    def select(self, dt: DType, cond: str, x: str, y: str) -> str:
        return self.sel(cond, reg_elem(dt), x, y)

    def bitcast(self, x: str, frm: DType, to: DType) -> str:
        if frm is to:
            return x
        raw = self.to_memory(x, frm)
        raw = self.conv("bitcast", mem_elem(frm), raw, mem_elem(to)) if mem_elem(frm) != mem_elem(to) else raw
        return self.from_memory(raw, to)

    def cast(self, x: str, frm: DType, to: DType) -> str:
        if frm is to:
            return x
        a, b = reg_elem(frm), reg_elem(to)
        if to.is_bool:
            if frm.is_float:
                return self.cmp("une", a, x, self.splat_const(a, "0.0"))
            return self.cmp("ne", a, x, self.splat_const(a, "0"))
        if frm.is_float and to.is_float:
            if frm.bits == 64:
                return self.rounded(self._odd(x), to) if to.bits == 16 else self.conv("fptrunc", a, x, b)
            if to.bits == 64:
                return self.conv("fpext", a, x, b)
            return self.rounded(x, to)
        if frm.is_float and self.w > 1:
            return self._to_int(x, frm, to)
        if frm.is_float:
            name = "fptosi.sat" if to.kind == "int" else "fptoui.sat"
            suffix = lambda e: (f"v{self.w}" if self.w > 1 else "") + {"float": "f32", "double": "f64"}.get(e, e)
            fn = self.f.module.intrinsic(self.t(b), f"llvm.{name}.{suffix(b)}.{suffix(a)}", self.t(a))
            return self.f.op(f"call {self.t(b)} {fn}({self.t(a)} {x})")
        if to.is_float:
            if frm.is_bool and to.bits >= 32:                  # a choice by a mask, where the conversion makes integers of it first
                return self.sel(x, b, self.splat_const(b, "1.0"), self.splat_const(b, "0.0"))
            op = "sitofp" if frm.kind == "int" else "uitofp"
            if to.bits == 16 and frm.bits > 16:               # one rounding: through a f64 rounded to odd
                wide = self.conv(op, a, x, "double")
                return self.rounded(self._odd(wide), to)
            out = self.conv(op, a, x, b)
            return self.rounded(out, to) if to.bits == 16 else out
        if frm.is_bool or (to.bits > frm.bits and frm.kind == "uint"):
            return self.conv("zext", a, x, b)
        if to.bits > frm.bits:
            return self.conv("sext", a, x, b)
        return self.conv("trunc", a, x, b) if to.bits < frm.bits else x

    def _to_int(self, x: str, frm: DType, to: DType) -> str:
        """A vector of floats as integers, towards zero; what is beyond the integers becomes the nearest one, NaN 0. LLVM's own fptosi.sat does that
        element by element (100 instructions for 16 bytes)."""
        a, wide, digits = reg_elem(frm), f"i{max(to.bits, 32)}", 53 if frm.bits == 64 else 24
        c = lambda value: self.splat_const(a, (f64_const if a == "double" else f32_const)(float(value)))
        beyond = to.max.bit_length() > digits                 # the largest integer is no float: the one below, and 2^n is set right afterwards
        top = (to.max + 1) * (1 - 2.0 ** -digits) if beyond else to.max
        y = self.sel(self.cmp("ogt", a, x, c(to.min)), a, x, c(to.min))
        y = self.sel(self.cmp("olt", a, y, c(top)), a, y, c(top))
        y = self.conv("fptoui" if to.kind == "uint" and to.bits >= 32 else "fptosi", a, y, wide)
        if beyond:
            y = self.sel(self.cmp("oge", a, x, c(to.max + 1)), wide, self.splat_const(wide, const(to, to.max)), y)
        y = self.sel(self.cmp("ord", a, x, x), wide, y, "zeroinitializer")
        return self.conv("trunc", wide, y, reg_elem(to)) if to.bits < 32 else y

    def _odd(self, x: str) -> str:
        """f64 to f32 rounded to odd: a further rounding to fewer bits is then right."""
        near = self.conv("fptrunc", "double", x, "float")
        back = self.conv("fpext", "float", near, "double")
        bits = self.conv("bitcast", "float", near, "i32")
        beyond = self.cmp("ogt", "double", self.call("fabs", "double", back), self.call("fabs", "double", x))
        bits = self.bin("sub", "i32", bits, self.conv("zext", "i1", beyond, "i32"))
        inexact = self.cmp("one", "double", back, x)
        bits = self.bin("or", "i32", bits, self.conv("zext", "i1", inexact, "i32"))
        return self.conv("bitcast", "i32", bits, "float")

    def philox(self, key: str, counter: str, domain: int) -> list[str]:
        """The four words of Philox 4x32-10; counter words (counter low, counter high, domain, 0). Out of line: it is long."""
        m, symbol = self.f.module, f"engram_philox_{domain}x{self.w}"
        t, out = self.t("i64"), "{ " + ", ".join([self.t("i32")] * 4) + " }"
        if symbol not in m.have:
            m.have.add(symbol)
            f = Fn(m, f"internal {out} @{symbol}({t} %key, {t} %counter)", "#2")
            value = "poison"
            for i, word in enumerate(Ops(f, self.w)._philox("%key", "%counter", domain)):
                value = f.op(f"insertvalue {out} {value}, {self.t('i32')} {word}, {i}")
            f.finish(f"ret {out} {value}")
        words = self.f.op(f"call {out} @{symbol}({t} {key}, {t} {counter})")
        return [self.f.op(f"extractvalue {out} {words}, {i}") for i in range(4)]

    def _philox(self, key: str, counter: str, domain: int) -> list[str]:
        c32, c64 = (lambda v: self.splat_const("i32", str(v))), (lambda v: self.splat_const("i64", str(v)))
        halves = lambda v: (self.conv("trunc", "i64", v, "i32"),
                            self.conv("trunc", "i64", self.bin("lshr", "i64", v, c64(32)), "i32"))
        k0, k1 = halves(key)
        x = [*halves(counter), c32(domain), c32(0)]

        def mul(m: int, v: str) -> tuple[str, str]:
            p = self.bin("mul", "i64", self.conv("zext", "i32", v, "i64"), c64(m))
            lo, hi = halves(p)
            return hi, lo
        for r in range(10):
            if r:
                k0 = self.bin("add", "i32", k0, c32(-0x61C88647))          # 0x9E3779B9
                k1 = self.bin("add", "i32", k1, c32(-0x4498517B))          # 0xBB67AE85
            hi0, lo0 = mul(0xD2511F53, x[0])
            hi1, lo1 = mul(0xCD9E8D57, x[2])
            x = [self.bin("xor", "i32", self.bin("xor", "i32", hi1, x[1]), k0), lo1,
                 self.bin("xor", "i32", self.bin("xor", "i32", hi0, x[3]), k1), lo0]
        return x


def _constant(text: str, elem: str) -> float | int | None:
    """The number behind a constant operand, or None."""
    if text.startswith("splat ("):
        text = text[len("splat ("):-1].split()[1]
    if text.startswith("%") or text in ("zeroinitializer", "poison"):
        return None
    if elem in ("float", "double"):
        if text.startswith("0x"):
            import struct
            return struct.unpack("<d", struct.pack("<Q", int(text, 16)))[0]
        return float(text)
    return int(text) if text.lstrip("-").isdigit() else None


def _is_negative_zero(text: str) -> bool:
    return "0x8000000000000000" in text or "-0.0" in text
