"""The frequent elementary functions in f32 arithmetic: exp, log, tanh, erf, sin, cos."""
from __future__ import annotations

from collections.abc import Callable

from .vecbuild import V, VecBuilder
from .vecmath_avx512 import has_table, lookup16, scalef
from .vecmath_f64 import large_trig

_MAGIC32 = 12582912.0                    # 1.5 * 2^23: adding it rounds to an integer, which its low bits then hold
_LN2_HI, _LN2_LO = 0.693145751953125, 1.428606765330187e-06
_LOG2E, _LOG2E_LO = 1.44269502162933349609375, 1.925963033500011e-08
_EXP = [1.0, 1.0, 0.49999993372855067, 0.16666519521795217, 0.04166840112991228, 0.008368851279245974,
        0.0013814318376318203]           # |r| <= ln(2)/2
_EXPM1_NEAR = [1.0, 0.5, 0.16666666666666666]            # expm1(r) / r, |r| <= ln(2)/32: Taylor's, the next term is below 1e-8
_EXP2 = [1.0, 0.6931471824645996, 0.24022650718688965, 0.055503569543361664, 0.009618083015084267, 0.0013390863314270973, 0.00015453163359779865]    # |r| <= 1/2
_EXPM1 = [0.5, 0.16666576266288757, 0.04166655242443085, 0.00836323294788599, 0.0013926250394433737]    # (expm1(r) - r) / r^2
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


def _reduced(b: VecBuilder, x: V) -> tuple[V, V, V]:
    """x = n ln 2 + r: (r, n, n's bits with something above them)."""
    t = b.fma(x, 1.4426950408889634, _MAGIC32)
    n = t - _MAGIC32
    r = b.fma(n, -_LN2_HI, x)
    return b.fma(n, -_LN2_LO, r), n, b.bits(t)


def exp(b: VecBuilder, x: V) -> V:
    x = b.clamp(x, -104.0, 89.0)
    if has_table(b):
        p, n, _ = _by_table(b, x)
        return scalef(b, p, n)
    r, n, bits = _reduced(b, x)
    return _scaled(b, b.poly(r, _EXP), n, bits)


def _near_exp(b: VecBuilder, x: V) -> V:
    """exp(x) where neither it nor what it is scaled by is denormal or overflows."""
    if has_table(b):
        p, _, bits = _by_table(b, x)
        return b.real(b.bits(p) + ((bits & -16) << 19))
    r, _, bits = _reduced(b, x)
    return b.real(b.bits(b.poly(r, _EXP)) + (bits << 23))


def _by_table(b: VecBuilder, x: V) -> tuple[V, V, V]:
    """x = n ln 2 + r for n in sixteenths: (2^(n - floor n) exp(r), n, n's bits from the sixteenths on with something above them). The table
    of 2^(i / 16) is one register, which those bits look up, and exp(r) needs few terms (Tang 1989, "Table-driven implementation of the
    exponential function")."""
    t = b.fma(x, 1.4426950408889634, _MAGIC32 / 16)
    n, bits = t - _MAGIC32 / 16, b.bits(t)
    r = b.fma(n, -_LN2_LO, b.fma(n, -_LN2_HI, x))
    power = lookup16(b, [2.0 ** (i / 16) for i in range(16)], bits)
    return b.fma(power, b.poly(r, _EXPM1_NEAR) * r, power), n, bits


def exp2(b: VecBuilder, x: V) -> V:
    x = b.clamp(x, -151.0, 129.0)
    t = x + _MAGIC32
    n = t - _MAGIC32
    return _scaled(b, b.poly(x - n, _EXP2), n, b.bits(t))


def expm1(b: VecBuilder, x: V) -> V:
    """expm1(r) 2^n + (2^n - 1), both halved so that 2^n exists."""
    r, n, bits = _reduced(b, b.clamp(x, -30.0, 89.0))
    q = b.fma(b.poly(r, _EXPM1) * r, r, r)
    half = b.real((bits - 0x4B400000 + 126) << 23)
    y = b.fma(q, half, half - 0.5) * 2.0
    return b.select(x.eq(0.0), x, b.select(n.eq(0.0), q, y))


def _scaled(b: VecBuilder, p: V, n: V, bits: V) -> V:
    """p 2^n, denormals and overflow included."""
    if has_table(b):
        return scalef(b, p, n)
    k = bits - 0x4B400000
    half = k >> 1                                             # in two steps: 2^n itself may not exist
    return p * b.real((half + 127) << 23) * b.real((k - half + 127) << 23)


def _log_parts(b: VecBuilder, y: V, c: V | float = 0.0) -> tuple[V, V, V]:
    """log(y) + c as (e, s, f): e LN2_HI + (s + f)."""
    i = b.bits(y) - 0x3F3504F3
    e = b.cast("sitofp", i >> 23, "float")
    f = b.real((i & 0x007FFFFF) + 0x3F3504F3) - 1.0
    z = f * f
    return e, b.fma(z, -0.5, b.poly(f, _LOG) * f * z + c), f


def log(b: VecBuilder, x: V) -> V:
    tiny = x.lt(1.1754943508222875e-38)
    e, s, f = _log_parts(b, b.select(tiny, x * 8388608.0, x))
    e = b.select(tiny, e - 23.0, e)
    return _log_special(b, x, b.fma(e, _LN2_HI, f + b.fma(e, _LN2_LO, s)))


def log2(b: VecBuilder, x: V) -> V:
    tiny = x.lt(1.1754943508222875e-38)
    e, s, f = _log_parts(b, b.select(tiny, x * 8388608.0, x))
    e = b.select(tiny, e - 23.0, e)
    r = e + b.fma(f, _LOG2E, b.fma(f, _LOG2E_LO, s * _LOG2E))
    return _log_special(b, x, r)


def _log_special(b: VecBuilder, x: V, r: V) -> V:
    r = b.select(x.eq(float("inf")), x, r)
    r = b.select(x.eq(0.0), -float("inf"), r)
    return b.select(x.ge(0.0), r, b.select(x.isnan(), x, float("nan")))


def log1p(b: VecBuilder, x: V) -> V:
    """log(u) + (x - (u - 1)) / u, u = 1 + x as rounded: the second term is what rounding took."""
    u = x + 1.0
    e, s, f = _log_parts(b, u, (x - (u - 1.0)) / u)
    r = b.fma(e, _LN2_HI, f + b.fma(e, _LN2_LO, s))
    r = b.select(x.eq(float("inf")), x, r)
    r = b.select(x.eq(-1.0), -float("inf"), r)
    r = b.select(x.eq(0.0), x, r)
    return b.select(x.ge(-1.0), r, b.select(x.isnan(), x, float("nan")))


def tanh(b: VecBuilder, x: V) -> V:
    a = b.abs(x)
    z = x * x
    near = b.fma(b.poly(z, _TANH) * z, x, x)
    capped = b.select(a.gt(10.0), 10.0, a)                    # NaN stays
    e = _near_exp(b, capped * 2.0)
    return b.copysign(b.select(a.ge(0.625), 1.0 - 2.0 / (e + 1.0), near), x)


def erf(b: VecBuilder, x: V) -> V:
    a = b.abs(x)
    z = x * x
    near = b.copysign(b.fma(b.poly(z, _ERF_NEAR), x, x), x)
    q = b.poly(b.select(a.gt(4.0), 4.0, a), _ERF_FAR)
    far = b.copysign(1.0 - _near_exp(b, q), x)
    return b.select(a.ge(0.92), far, near)


_PIO2_1, _PIO2_2, _PIO2_3 = 1.57079637050628662109375, -4.37113900018624283e-08, -1.71512451111e-15
_TRIG_F32_MAX = 8000.0


def trig(cosine: bool) -> Callable[[VecBuilder, V], V]:
    def emit(b: VecBuilder, x: V) -> V:
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
        name = large_trig(b.m, b.w, "cos" if cosine else "sin")
        far = V(b, b.f.op(f"call {x.type} @{name}({x.type} {x.name})"), "float")
        far = b.select(big, far, y)
        b.f.jump(done)
        b.f.label(done)
        return V(b, b.f.op(f"phi {x.type} [ {y.name}, %{start} ], [ {far.name}, %{slow} ]"), "float")
    return emit
