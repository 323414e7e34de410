"""Elementary functions over vectors, as LLVM text, one function per (name, lanes, dtype) and module, emitted on demand.

`require(module, "exp", 16, "f32")` returns the symbol of `<16 x float> @vm_exp_f32x16(<16 x float>)`; one lane means scalars.

* f32: at most 2 ulp over all inputs, denormals, infinities and NaN included (tests/test_cpu_math.py). exp, log, tanh, erf,
  sin and cos are computed in f32; the rest in f64 on vectors of twice the width, which makes them correct to about half
  an ulp with short polynomials. Large arguments of sin, cos, tan are reduced with a table of 2^e * 2/pi mod 4.
* f64: the C library's functions, lane by lane.
* rsqrt is 1 / sqrt(x), both rounded.
Coefficients were fitted (weighted minimax) over the reduced ranges noted beside them; the fit's error is far below an ulp.
Fused multiply-adds are used where the machine has them: this is library code, not the user's arithmetic.
"""
from __future__ import annotations

from collections.abc import Callable

from .irtext import Fn, Module, f32_const, f64_const, vec

UNARY = ("exp", "exp2", "expm1", "log", "log2", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh",
         "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "rsqrt")
BINARY = ("pow", "atan2")
LLVM = {"f32": "float", "f64": "double"}


class V:
    """A vector value under construction; arithmetic operators append instructions."""

    __slots__ = ("b", "name", "elem")

    def __init__(self, b: _B, name: str, elem: str):
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


class _B:
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


# ---------------------------------------------------------------- f32 in f32

_MAGIC32 = 12582912.0                    # 1.5 * 2^23: adding it rounds to an integer, which its low bits then hold
_MAGIC64 = 6755399441055744.0            # 1.5 * 2^52
_LN2_HI, _LN2_LO = 0.693145751953125, 1.428606765330187e-06
_EXP = [1.0, 1.0, 0.49999993372855067, 0.16666519521795217, 0.04166840112991228, 0.008368851279245974,
        0.0013814318376318203]           # |r| <= ln(2)/2
_LOG = [0.3333333170969447, -0.250008210562477, 0.2000122666733799, -0.16623356478225737, 0.14201762470441023,
        -0.13160195067798014, 0.12761551338080288, -0.07634429838618638]   # sqrt(1/2) <= 1+f <= sqrt(2)
_TANH = [-0.3333326287982298, 0.13330899709145697, -0.05369296451846853, 0.020483306523116675,
         -0.005528624593963876]          # |x| <= 0.65
_ERF_NEAR = [0.128379166494785, -0.376126322856789, 0.11283672545568586, -0.026858104289111177,
             0.0051977971684292554, -0.0008105965133752298, 8.215423767271666e-05]      # erf(x)/x - 1, |x| <= 0.95
_ERF_FAR = [0.0001692051293211705, -1.1294884064405422, -0.6334008508411627, -0.10822038405737824,
            0.025080616496801943, -0.004156254915863207, 0.00043139356561432726, -2.0828618407809767e-05]  # log erfc, 0.9..4
_SIN = [-0.1666665422535114, 0.008332131487768929, -0.00019510838134880083]             # |r| <= pi/4
_COS = [0.041666645652426164, -0.0013887306024707568, 2.4431203143258373e-05]


def _exp_parts(b: _B, x: V) -> tuple[V, V, V]:
    """x = n ln 2 + r: (exp(r), n, n's bits with something above them)."""
    t = b.fma(x, 1.4426950408889634, _MAGIC32)
    n = t - _MAGIC32
    r = b.fma(n, -_LN2_HI, x)
    r = b.fma(n, -_LN2_LO, r)
    return b.poly(r, _EXP), n, b.bits(t)


def _exp(b: _B, x: V) -> V:
    p, n, bits = _exp_parts(b, b.clamp(x, -104.0, 89.0))
    if b.m.target.name == "avx512" and b.w in (4, 8, 16):     # one instruction, denormals and overflow included
        t = p.type
        if b.w == 16:
            name = b.m.intrinsic(t, "llvm.x86.avx512.mask.scalef.ps.512", t, t, t, "i16", "i32")
            return V(b, b.f.op(f"call {t} {name}({t} {p.name}, {t} {n.name}, {t} zeroinitializer, i16 -1, i32 4)"), "float")
        name = b.m.intrinsic(t, f"llvm.x86.avx512.mask.scalef.ps.{b.w * 32}", t, t, t, "i8")
        return V(b, b.f.op(f"call {t} {name}({t} {p.name}, {t} {n.name}, {t} zeroinitializer, i8 -1)"), "float")
    k = bits - 0x4B400000
    half = k >> 1                                             # in two steps: 2^n itself may not exist
    return p * b.real((half + 127) << 23) * b.real((k - half + 127) << 23)


def _log(b: _B, x: V) -> V:
    tiny = x.lt(1.1754943508222875e-38)
    y = b.select(tiny, x * 8388608.0, x)
    i = b.bits(y) - 0x3F3504F3
    e = b.cast("sitofp", i >> 23, "float")
    e = b.select(tiny, e - 23.0, e)
    f = b.real((i & 0x007FFFFF) + 0x3F3504F3) - 1.0
    z = f * f
    s = b.fma(e, _LN2_LO, b.poly(f, _LOG) * f * z)
    s = b.fma(z, -0.5, s)
    r = b.fma(e, _LN2_HI, f + s)
    r = b.select(x.eq(float("inf")), x, r)
    r = b.select(x.eq(0.0), -float("inf"), r)
    return b.select(x.ge(0.0), r, b.select(x.isnan(), x, float("nan")))


def _tanh(b: _B, x: V) -> V:
    a = b.abs(x)
    z = x * x
    near = b.fma(b.poly(z, _TANH) * z, x, x)
    capped = b.select(a.gt(10.0), 10.0, a)                    # NaN stays
    p, _, bits = _exp_parts(b, capped * 2.0)
    e = b.real(b.bits(p) + (bits << 23))
    return b.copysign(b.select(a.ge(0.625), 1.0 - 2.0 / (e + 1.0), near), x)


def _erf(b: _B, x: V) -> V:
    a = b.abs(x)
    z = x * x
    near = b.copysign(b.fma(b.poly(z, _ERF_NEAR), x, x), x)
    q = b.poly(b.select(a.gt(4.0), 4.0, a), _ERF_FAR)
    p, _, bits = _exp_parts(b, q)
    far = b.copysign(1.0 - b.real(b.bits(p) + (bits << 23)), x)
    return b.select(a.ge(0.92), far, near)


_PIO2_1, _PIO2_2, _PIO2_3 = 1.57079637050628662109375, -4.37113900018624283e-08, -1.71512451111e-15
_TRIG_F32_MAX = 8000.0


def _trig(cosine: bool) -> Callable[[_B, V], V]:
    def emit(b: _B, x: V) -> V:
        a = b.abs(x)
        t = b.fma(x, 0.6366197723675814, _MAGIC32)
        q, n = b.bits(t), t - _MAGIC32
        if b.m.target.fma:
            r = b.fma(n, -_PIO2_1, x)                         # exact
            r = b.fma(n, -_PIO2_2, r)
            r = b.fma(n, -_PIO2_3, r)
        else:                                                 # exact products need f64 there
            n64 = b.wide(n)
            r = b.narrow(b.wide(x) - n64 * 1.5707963267948966 - n64 * 6.123233995736766e-17)
        z = r * r
        s = b.fma(b.poly(z, _SIN) * z, r, r)
        c = b.fma(b.poly(z, _COS), z * z, b.fma(z, -0.5, 1.0))
        if cosine:
            q = q + 1
        y = b.select((q & 1).eq(0), s, c)
        y = b.real(b.bits(y) ^ ((q & 2) << 30))
        if not cosine:
            y = b.select(x.eq(0.0), x, y)                     # the sign of zero
        big = a._cmp("uge", "", _TRIG_F32_MAX)                # NaN and infinity too
        slow, done = b.f.new_label("slow"), b.f.new_label("done")
        start = b.f.block
        b.f.branch(b.any(big), slow, done)
        b.f.label(slow)
        name = _large_trig(b.m, b.w, "cos" if cosine else "sin")
        far = V(b, b.f.op(f"call {x.type} @{name}({x.type} {x.name})"), "float")
        far = b.select(big, far, y)
        b.f.jump(done)
        b.f.label(done)
        return V(b, b.f.op(f"phi {x.type} [ {y.name}, %{start} ], [ {far.name}, %{slow} ]"), "float")
    return emit


# ---------------------------------------------------------------- f64, good to about 1e-11: what f32 results need

_LN2D_HI, _LN2D_LO = 0.6931471803691238, 1.9082149292705877e-10
_ATAN = [-0.33333333333257664, 0.19999999982425917, -0.14285712862538888, 0.11111054200163221, -0.09089612752288737,
         0.07674305017450105, -0.0651021231495419, 0.050374231784180885, -0.025475575859696287]   # z = t^2, t <= tan(pi/8)
_ERFC = [-0.6717940840557517, 0.6726432236314308, 0.04734330671838095, -0.046895590427162355, -0.00987269136717859,
         0.008824610732906812, 0.0017590637919593249, -0.002343440051230069, -0.0001477809673890417,
         0.0006651062159070243, -8.617104923499305e-05, -0.00015884086557869248, 5.352766600603737e-05,
         2.0214614787320326e-05, -1.0454606541471142e-05]     # log(erfc(x) exp(x^2) / t), t = 2/(2+x), in 2t-1


def _factorial(n: int) -> float:
    out = 1.0
    for i in range(2, n + 1):
        out *= i
    return out


def _expm1d_parts(b: _B, x: V) -> tuple[V, V]:
    """(expm1(r), 2^n) with x = n ln 2 + r."""
    x = b.clamp(x, -700.0, 700.0)
    t = b.fma(x, 1.4426950408889634, _MAGIC64)
    n = t - _MAGIC64
    r = b.fma(n, -_LN2D_LO, b.fma(n, -_LN2D_HI, x))
    p = b.poly(r, [1 / _factorial(k) for k in range(2, 13)])
    p = b.fma(p * r, r, r)
    scale = b.real((b.bits(t) << 52) + (1023 << 52))
    return p, scale


def _expd(b: _B, x: V) -> V:
    p, scale = _expm1d_parts(b, x)
    return b.fma(p, scale, scale)


def _expm1d(b: _B, x: V) -> V:
    p, scale = _expm1d_parts(b, x)
    return b.fma(p, scale, scale - 1.0)


def _logd_from(b: _B, e: V, f: V) -> V:
    """e ln 2 + log(1 + f)."""
    s = f / (f + 2.0)
    z = s * s
    p = b.poly(z, [2.0 / k for k in range(3, 21, 2)])
    return b.fma(e, _LN2D_HI, b.fma(p * z, s, b.fma(e, _LN2D_LO, s * 2.0)))


def _split(b: _B, x: V) -> tuple[V, V]:
    i = b.bits(x) - 0x3FE6A09E667F3BCD
    e = b.cast("sitofp", i >> 52, "double")
    return e, b.real((i & 0x000FFFFFFFFFFFFF) + 0x3FE6A09E667F3BCD) - 1.0


def _logd(b: _B, x: V) -> V:
    """x is not a denormal f64 (no widened f32 is)."""
    e, f = _split(b, x)
    return _log_special(b, x, _logd_from(b, e, f))


def _log_special(b: _B, x: V, r: V) -> V:
    r = b.select(x.eq(float("inf")), x, r)
    r = b.select(x.eq(0.0), -float("inf"), r)
    return b.select(x.ge(0.0), r, b.select(x.isnan(), x, float("nan")))


def _log1pd(b: _B, x: V) -> V:
    u = x + 1.0
    e, f = _split(b, u)
    small = b.abs(x).lt(0.29)                                 # there 1 + x would lose x
    r = _logd_from(b, b.select(small, 0.0, e), b.select(small, x, f))
    return b.select(x.eq(0.0), x, _log_special(b, u, r))


def _atan2d(b: _B, y: V, x: V) -> V:
    ay, ax = b.abs(y), b.abs(x)
    steep = ay.gt(ax)
    num, den = b.select(steep, ax, ay), b.select(steep, ay, ax)
    t = num / den
    t = b.select(num.eq(den), 1.0, t)                         # inf / inf
    t = b.select(num.eq(0.0), 0.0, t)                         # 0 / 0
    mid = t.gt(0.41421356237309503)
    u = b.select(mid, (t - 1.0) / (t + 1.0), t)
    z = u * u
    a = b.fma(b.poly(z, _ATAN) * z, u, u)
    a = b.select(mid, a + 0.7853981633974483, a)
    a = b.select(steep, 1.5707963267948966 - a, a)
    negative = b.bits(x).lt(0)
    a = b.select(negative, 3.141592653589793 - a, a)
    a = b.copysign(a, y)
    return b.select(V(b, b.f.op(f"fcmp uno {x.type} {x.name}, {y.name}"), "i1"), x + y, a)


def _erfcd(b: _B, x: V) -> V:
    a = b.abs(x)
    a = b.select(a.gt(20.0), 20.0, a)
    t = 2.0 / (a + 2.0)
    y = b.fma(t, 2.0, -1.0)
    r = t * _expd(b, b.poly(y, _ERFC) - a * a)
    return b.select(x.lt(0.0), 2.0 - r, r)


def _powd(b: _B, x: V, y: V) -> V:
    a = b.abs(x)
    r = _expd(b, _logd(b, a) * y)
    whole = b.call("trunc", y).eq(y)
    small = b.abs(y).lt(9007199254740992.0)
    odd = (b.cast("fptosi", b.select(small, b.select(whole, y, 0.0), 0.0), "i64") & 1).ne(0)
    r = b.select(a.eq(0.0), b.select(y.lt(0.0), b.const(float("inf"), "double"), 0.0), r)
    inf_y = b.abs(y).eq(float("inf"))
    grows = V(b, b.f.op(f"xor {vec('i1', b.w)} {a.gt(1.0).name}, {y.lt(0.0).name}"), "i1")
    r = b.select(inf_y, b.select(a.eq(1.0), 1.0, b.select(grows, b.const(float("inf"), "double"), 0.0)), r)
    negative = b.bits(x).lt(0)
    r = b.select(negative, b.select(odd, -r, r), r)
    bad = b.select(whole, b.const(0, "i1"), x.lt(0.0))        # a negative base and a fraction
    bad = b.select(inf_y, b.const(0, "i1"), b.select(x.eq(-float("inf")), b.const(0, "i1"), bad))
    r = b.select(bad, float("nan"), r)
    r = b.select(V(b, b.f.op(f"fcmp uno {x.type} {x.name}, {y.name}"), "i1"), x + y, r)
    r = b.select(y.eq(0.0), 1.0, r)
    return b.select(x.eq(1.0), 1.0, r)


def _sinhd(b: _B, x: V) -> V:
    e = _expm1d(b, b.abs(x))
    return b.copysign((e + e / (e + 1.0)) * 0.5, x)


def _coshd(b: _B, x: V) -> V:
    e = _expd(b, b.abs(x))
    return (e + 1.0 / e) * 0.5


def _asinhd(b: _B, x: V) -> V:
    a = b.abs(x)
    z = x * x
    a = b.select(a.eq(float("inf")), a, a + z / (b.call("sqrt", z + 1.0) + 1.0))
    return b.copysign(_log1pd(b, a), x)


def _acoshd(b: _B, x: V) -> V:
    t = x - 1.0
    inside = b.call("sqrt", t * (t + 2.0))
    return b.select(x.lt(1.0), float("nan"), _log1pd(b, t + inside))


def _atanhd(b: _B, x: V) -> V:
    a = b.abs(x)
    return b.copysign(_log1pd(b, (a + a) / (1.0 - a)) * 0.5, x)


def _asind(b: _B, x: V) -> V:
    return _atan2d(b, x, b.call("sqrt", (1.0 - x) * (x + 1.0)))


def _acosd(b: _B, x: V) -> V:
    return _atan2d(b, b.call("sqrt", (1.0 - x) * (x + 1.0)), x)


def _atand(b: _B, x: V) -> V:
    return _atan2d(b, x, b.const(1.0, "double"))


def _reduced_d(b: _B, x: V) -> tuple[V, V]:
    """x (a widened f32) = q pi/2 + r: (q as i64, r), through the table of 2^e * 2/pi mod 4."""
    table = _trig_table(b.m)
    i = b.bits(b.narrow(x))
    field = (i >> 23) & 255
    m = b.real((b.bits(x) & 0x000FFFFFFFFFFFFF) | (1075 << 52)) - 4503599627370496.0     # the 52-bit significand ...
    m = (m + 4503599627370496.0) * 2.0 ** -29                                            # ... as a 24-bit integer
    row = b.select(field.lt(_TABLE_FROM), _TABLE_FROM, field) - _TABLE_FROM
    row = b.cast("zext", b.select(row.gt(_TABLE_ROWS - 1), _TABLE_ROWS - 1, row), "i64")
    hi, lo = _gather(b, f"{table}_hi", row), _gather(b, f"{table}_lo", row)
    magic = b.const(_MAGIC64, "double")
    t = m * hi                                                # exact: 24 x 29 bits
    q4 = (t * 0.25 + magic) - magic
    t = t - q4 * 4.0
    k = (t + magic) - magic                                   # nearest quarter turn
    frac = (t - k) + m * lo
    k2 = (frac + magic) - magic
    frac = frac - k2
    q = b.bits(k + k2 + magic)
    small = field.lt(_TABLE_FROM)
    ks = b.fma(x, 0.6366197723675814, magic)
    n = ks - magic
    near = b.fma(n, -6.123233995736766e-17, b.fma(n, -1.5707963267948966, x))
    far = b.copysign(frac * 1.5707963267948966, frac)
    minus = b.bits(x).lt(0)
    far = b.select(minus, -far, far)
    q = b.select(minus, 0 - q, q)
    r = b.select(small, near, far)
    q = b.select(small, b.bits(ks), q)
    special = field.eq(255)
    return q, b.select(special, float("nan"), r)


def _sin_cos_d(b: _B, r: V) -> tuple[V, V]:
    z = r * r
    s = b.poly(z, [(-1) ** (k // 2) / _factorial(k) for k in range(3, 17, 2)])
    c = b.poly(z, [(-1) ** (k // 2) / _factorial(k) for k in range(2, 18, 2)])
    return b.fma(s * z, r, r), b.fma(c, z, 1.0)


def _tand(b: _B, x: V) -> V:
    q, r = _reduced_d(b, x)
    s, c = _sin_cos_d(b, r)
    odd = (q & 1).ne(0)
    y = b.select(odd, -c, s) / b.select(odd, s, c)
    return b.select(x.eq(0.0), x, y)


# ---- the table: rows e = 100..254 of the f32 exponent field; entry = 2^(e - 150) * 2/pi mod 4 = hi + lo

_TABLE_FROM, _TABLE_ROWS = 139, 116


def _two_over_pi(bits: int) -> int:
    """floor(2/pi * 2^bits), by Machin's formula in integers."""
    guard = bits + 64

    def arctan_inverse(n: int) -> int:
        term = (1 << guard) // n
        total, k, sign = term, 3, -1
        while term:
            term //= n * n
            total += sign * (term // k)
            k, sign = k + 2, -sign
        return total
    pi = 4 * (4 * arctan_inverse(5) - arctan_inverse(239))
    return (2 << (guard + bits)) // pi


def _trig_table(m: Module) -> str:
    name = "vm_two_over_pi"
    if name in m.have:
        return name
    m.have.add(name)
    bits = 320
    c = _two_over_pi(bits)
    hi, lo = [], []
    for row in range(_TABLE_ROWS):
        e = _TABLE_FROM + row - 150
        value = (c << e if e >= 0 else c >> -e) % (4 << bits)
        cut = bits - 27
        top = (value >> cut) << cut
        hi.append(float(top >> cut) * 2.0 ** -27)
        lo.append(float((value - top) >> (bits - 27 - 64)) * 2.0 ** -91)
    for part, values in (("hi", hi), ("lo", lo)):
        text = ", ".join(f"double {f64_const(v)}" for v in values)
        m.functions.append(f"@{name}_{part} = internal constant [{_TABLE_ROWS} x double] [{text}], align 64")
    return name


def _gather(b: _B, table: str, row: V) -> V:
    if b.w == 1:
        return V(b, b.f.load("double", b.f.gep("double", f"@{table}", row.name), 8), "double")
    ptrs = b.f.op(f"getelementptr double, ptr @{table}, {row.type} {row.name}")
    t, p = vec("double", b.w), vec("ptr", b.w)
    mask = vec("i1", b.w)
    name = b.m.intrinsic(t, f"llvm.masked.gather.v{b.w}f64.v{b.w}p0", p, "i32", mask, t)
    return V(b, b.f.op(f"call {t} {name}({p} {ptrs}, i32 8, {mask} splat (i1 true), {t} zeroinitializer)"), "double")


def _large_trig(m: Module, w: int, name: str) -> str:
    """sin or cos of any f32 in f64 arithmetic, out of line."""
    symbol = f"vm_{name}_large_f32x{w}"
    if symbol in m.have:
        return symbol
    m.have.add(symbol)
    t = vec("float", w)
    f = Fn(m, f"internal {t} @{symbol}({t} %x)", "#2")
    b = _B(f, w)
    x = V(b, "%x", "float")
    q, r = _reduced_d(b, b.wide(x))
    s, c = _sin_cos_d(b, r)
    if name == "cos":
        q = q + 1
    y = b.select((q & 1).eq(0), s, c)
    y = b.narrow(b.real(b.bits(y) ^ ((q & 2) << 62)))
    f.finish(f"ret {t} {y.name}")
    return symbol


_IN_F32 = {"exp": _exp, "log": _log, "tanh": _tanh, "erf": _erf, "sin": _trig(False), "cos": _trig(True)}
_IN_F64 = {
    "exp2": lambda b, x: _expd(b, x * 0.6931471805599453),
    "log2": lambda b, x: _logd(b, x) * 1.4426950408889634,
    "expm1": lambda b, x: b.select(x.eq(0.0), x, _expm1d(b, x)),
    "log1p": _log1pd, "tan": _tand, "asin": _asind, "acos": _acosd, "atan": _atand, "sinh": _sinhd, "cosh": _coshd,
    "asinh": _asinhd, "acosh": _acoshd, "atanh": _atanhd, "erfc": _erfcd, "pow": _powd, "atan2": _atan2d,
}
_INLINE = ("exp", "log", "tanh", "erf", "rsqrt")      # short, and constants are worth sharing with the caller's loop


def require(m: Module, name: str, lanes: int, dtype: str) -> str:
    """The symbol of the function, emitted into the module if it is not there yet."""
    symbol = f"vm_{name}_{dtype}x{lanes}"
    if symbol in m.have:
        return symbol
    m.have.add(symbol)
    elem = LLVM[dtype]
    t = vec(elem, lanes)
    params = ["%x", "%y"] if name in BINARY else ["%x"]
    f = Fn(m, f"internal {t} @{symbol}({', '.join(f'{t} {p}' for p in params)})", "#1" if name in _INLINE else "#2")
    b = _B(f, lanes)
    args = [V(b, p, elem) for p in params]
    if name == "rsqrt":
        out = b.const(1.0, elem) / b.call("sqrt", args[0])
    elif dtype == "f64":
        out = _libm(b, name, args)
    elif name in _IN_F32:
        out = _IN_F32[name](b, args[0])
    else:
        out = b.narrow(_IN_F64[name](b, *(b.wide(a) for a in args)))
    f.finish(f"ret {t} {out.name}")
    return symbol


def _libm(b: _B, name: str, args: list[V]) -> V:
    b.m.declare(f"declare double @{name}({', '.join(['double'] * len(args))})")
    if b.w == 1:
        return V(b, b.f.op(f"call double @{name}({', '.join(f'double {a.name}' for a in args)})"), "double")
    out = "poison"
    for i in range(b.w):
        lanes = [b.f.op(f"extractelement {a.type} {a.name}, i64 {i}") for a in args]
        y = b.f.op(f"call double @{name}({', '.join(f'double {x}' for x in lanes)})")
        out = b.f.op(f"insertelement {args[0].type} {out}, double {y}, i64 {i}")
    return V(b, out, "double")
