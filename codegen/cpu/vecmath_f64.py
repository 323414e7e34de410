"""Elementary functions in f64 arithmetic, good to about 1e-11: what correctly rounded f32 results need. Also the reduction
of large arguments of sin, cos and tan by a table of 2^e * 2/pi mod 4."""
from __future__ import annotations

from .irtext import Fn, Module, f64_const, vec
from .vecbuild import V, VecBuilder

MAGIC64 = 6755399441055744.0             # 1.5 * 2^52: adding it rounds to an integer, which its low bits then hold
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


def expm1_reduced(b: VecBuilder, x: V) -> tuple[V, V]:
    """(expm1(r), n as i64) with x = n ln 2 + r."""
    t = b.fma(x, 1.4426950408889634, MAGIC64)
    n = t - MAGIC64
    r = b.fma(n, -_LN2D_LO, b.fma(n, -_LN2D_HI, x))
    p = b.poly(r, [1 / _factorial(k) for k in range(2, 14)])
    return b.fma(p * r, r, r), b.bits(t) - 0x4338000000000000


def _expm1d_parts(b: VecBuilder, x: V) -> tuple[V, V]:
    """(expm1(r), 2^n) with x = n ln 2 + r."""
    p, n = expm1_reduced(b, b.clamp(x, -700.0, 700.0))
    return p, b.real((n + 1023) << 52)


def expd(b: VecBuilder, x: V) -> V:
    p, scale = _expm1d_parts(b, x)
    return b.fma(p, scale, scale)


def expm1d(b: VecBuilder, x: V) -> V:
    p, scale = _expm1d_parts(b, x)
    return b.fma(p, scale, scale - 1.0)


def _logd_from(b: VecBuilder, e: V, f: V) -> V:
    """e ln 2 + log(1 + f)."""
    s = f / (f + 2.0)
    z = s * s
    p = b.poly(z, [2.0 / k for k in range(3, 21, 2)])
    return b.fma(e, _LN2D_HI, b.fma(p * z, s, b.fma(e, _LN2D_LO, s * 2.0)))


def _split(b: VecBuilder, x: V) -> tuple[V, V]:
    i = b.bits(x) - 0x3FE6A09E667F3BCD
    e = b.cast("sitofp", i >> 52, "double")
    return e, b.real((i & 0x000FFFFFFFFFFFFF) + 0x3FE6A09E667F3BCD) - 1.0


def logd(b: VecBuilder, x: V, exponent: V | float = 0.0, special: V | None = None) -> V:
    """log(x) + exponent ln 2, where x is not a denormal f64 (no widened f32 is); `special` is what 0, infinity, NaN are seen in."""
    e, f = _split(b, x)
    return _log_special(b, special or x, _logd_from(b, e + exponent, f))


def _log_special(b: VecBuilder, x: V, r: V) -> V:
    r = b.select(x.eq(float("inf")), x, r)
    r = b.select(x.eq(0.0), -float("inf"), r)
    return b.select(x.ge(0.0), r, b.select(x.isnan(), x, float("nan")))


def log1pd(b: VecBuilder, x: V) -> V:
    u = x + 1.0
    e, f = _split(b, u)
    small = b.abs(x).lt(0.29)                                 # there 1 + x would lose x
    r = _logd_from(b, b.select(small, 0.0, e), b.select(small, x, f))
    return b.select(x.eq(0.0), x, _log_special(b, u, r))


def atan2d(b: VecBuilder, y: V, x: V) -> V:
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


def erfcd(b: VecBuilder, x: V) -> V:
    a = b.abs(x)
    a = b.select(a.gt(20.0), 20.0, a)
    t = 2.0 / (a + 2.0)
    y = b.fma(t, 2.0, -1.0)
    r = t * expd(b, b.poly(y, _ERFC) - a * a)
    return b.select(x.lt(0.0), 2.0 - r, r)


def powd(b: VecBuilder, x: V, y: V) -> V:
    a = b.abs(x)
    r = expd(b, logd(b, a) * y)
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


def sinhd(b: VecBuilder, x: V) -> V:
    e = expm1d(b, b.abs(x))
    return b.copysign((e + e / (e + 1.0)) * 0.5, x)


def coshd(b: VecBuilder, x: V) -> V:
    e = expd(b, b.abs(x))
    return (e + 1.0 / e) * 0.5


def asinhd(b: VecBuilder, x: V) -> V:
    a = b.abs(x)
    z = x * x
    a = b.select(a.eq(float("inf")), a, a + z / (b.call("sqrt", z + 1.0) + 1.0))
    return b.copysign(log1pd(b, a), x)


def acoshd(b: VecBuilder, x: V) -> V:
    t = x - 1.0
    inside = b.call("sqrt", t * (t + 2.0))
    return b.select(x.lt(1.0), float("nan"), log1pd(b, t + inside))


def atanhd(b: VecBuilder, x: V) -> V:
    a = b.abs(x)
    return b.copysign(log1pd(b, (a + a) / (1.0 - a)) * 0.5, x)


def asind(b: VecBuilder, x: V) -> V:
    return atan2d(b, x, b.call("sqrt", (1.0 - x) * (x + 1.0)))


def acosd(b: VecBuilder, x: V) -> V:
    return atan2d(b, b.call("sqrt", (1.0 - x) * (x + 1.0)), x)


def atand(b: VecBuilder, x: V) -> V:
    return atan2d(b, x, b.const(1.0, "double"))


def _reduced_d(b: VecBuilder, x: V) -> tuple[V, V]:
    """x (a widened f32) = q pi/2 + r: (q as i64, r), through the table of 2^e * 2/pi mod 4."""
    table = _trig_table(b.m)
    i = b.bits(b.narrow(x))
    field = (i >> 23) & 255
    m = b.real((b.bits(x) & 0x000FFFFFFFFFFFFF) | (1075 << 52)) - 4503599627370496.0     # the 52-bit significand ...
    m = (m + 4503599627370496.0) * 2.0 ** -29                                            # ... as a 24-bit integer
    row = b.select(field.lt(_TABLE_FROM), _TABLE_FROM, field) - _TABLE_FROM
    row = b.cast("zext", b.select(row.gt(_TABLE_ROWS - 1), _TABLE_ROWS - 1, row), "i64")
    hi, lo = _gather(b, f"{table}_hi", row), _gather(b, f"{table}_lo", row)
    magic = b.const(MAGIC64, "double")
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


def _sin_cos_d(b: VecBuilder, r: V) -> tuple[V, V]:
    z = r * r
    s = b.poly(z, [(-1) ** (k // 2) / _factorial(k) for k in range(3, 17, 2)])
    c = b.poly(z, [(-1) ** (k // 2) / _factorial(k) for k in range(2, 18, 2)])
    return b.fma(s * z, r, r), b.fma(c, z, 1.0)


def tand(b: VecBuilder, x: V) -> V:
    q, r = _reduced_d(b, x)
    s, c = _sin_cos_d(b, r)
    odd = (q & 1).ne(0)
    y = b.select(odd, -c, s) / b.select(odd, s, c)
    return b.select(x.eq(0.0), x, y)


# ---- the table: rows e = 139..254 of the f32 exponent field; entry = 2^(e - 150) * 2/pi mod 4 = hi + lo

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


def _gather(b: VecBuilder, table: str, row: V) -> V:
    if b.w == 1:
        return V(b, b.f.load("double", b.f.gep("double", f"@{table}", row.name), 8), "double")
    ptrs = b.f.op(f"getelementptr double, ptr @{table}, {row.type} {row.name}")
    t, p = vec("double", b.w), vec("ptr", b.w)
    mask = vec("i1", b.w)
    name = b.m.intrinsic(t, f"llvm.masked.gather.v{b.w}f64.v{b.w}p0", p, "i32", mask, t)
    return V(b, b.f.op(f"call {t} {name}({p} {ptrs}, i32 8, {mask} splat (i1 true), {t} zeroinitializer)"), "double")


def large_trig(m: Module, w: int, name: str) -> str:
    """sin or cos of any f32 in f64 arithmetic, out of line."""
    symbol = f"vm_{name}_large_f32x{w}"
    if symbol in m.have:
        return symbol
    m.have.add(symbol)
    t = vec("float", w)
    f = Fn(m, f"internal {t} @{symbol}({t} %x)", "#2")
    b = VecBuilder(f, w)
    x = V(b, "%x", "float")
    q, r = _reduced_d(b, b.wide(x))
    s, c = _sin_cos_d(b, r)
    if name == "cos":
        q = q + 1
    y = b.select((q & 1).eq(0), s, c)
    y = b.narrow(b.real(b.bits(y) ^ ((q & 2) << 62)))
    f.finish(f"ret {t} {y.name}")
    return symbol
