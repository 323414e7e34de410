"""The helper functions that emitted kernels call, in OpenCL C: exact minimum and maximum, integer division, casts, rounding to
f16/bf16, Philox, error reports, and elementary functions within the op table's bounds.

`Helpers` collects the ones a module uses.  A name is `base` or `base_types`, the types filled into a template.
"""
from __future__ import annotations

from string import Template

from .device import Caps

_BITS = {"float": ("int", "uint"), "double": ("long", "ulong")}
_UNSIGNED = {"char": "uint", "short": "uint", "int": "uint", "long": "ulong", "uchar": "uint", "ushort": "uint", "uint": "uint", "ulong": "ulong"}
_LIMITS = {"char": ("-128", "127"), "short": ("-32768", "32767"), "int": ("(-2147483647 - 1)", "2147483647"),
           "long": ("(-9223372036854775807L - 1L)", "9223372036854775807L"), "uchar": ("0", "255"), "ushort": ("0", "65535"),
           "uint": ("0u", "4294967295u"), "ulong": ("0ul", "18446744073709551615ul")}
_WIDTH = {"char": 8, "short": 16, "int": 32, "long": 64, "uchar": 8, "ushort": 16, "uint": 32, "ulong": 64}

# name -> (names it needs, text). $T is the type, $I and $U the integers of its width, $u the unsigned type it is computed in.
_TEMPLATES: dict[str, tuple[tuple[str, ...], str]] = {
    # IEEE 754 maximum and minimum: NaN wins, and the zeros are ordered. Equal numbers have equal bits, zeros apart.
    "max": ((), "static inline $T max_$T($T a, $T b) { return a > b ? a : b > a ? b : a == b ? as_$T(as_$I(a) & as_$I(b)) : a + b; }"),
    "min": ((), "static inline $T min_$T($T a, $T b) { return a < b ? a : b < a ? b : a == b ? as_$T(as_$I(a) | as_$I(b)) : a + b; }"),
    "sign": ((), "static inline $T sign_$T($T x) { return x > 0 ? ($T)1 : x < 0 ? ($T)-1 : x == 0 ? ($T)0 : x; }"),
    "fmodulo": ((), """static inline $T fmodulo_$T($T x, $T y) {
  $T r = fmod(x, y);
  if (r == 0) return copysign(($T)0, y);
  return (r < 0) != (y < 0) ? r + y : r;
}"""),
    # signed division rounds down; -1 is apart because the least number has no opposite; 0 is reported before the call
    "floordiv": ((), """static inline $T floordiv_$T($T x, $T y) {
  if (y == 0) return 0;
  if (y == -1) return ($T)(($u)0 - ($u)x);
  $T q = x / y, r = x % y;
  return r != 0 && (r < 0) != (y < 0) ? q - 1 : q;
}"""),
    "modulo": ((), """static inline $T modulo_$T($T x, $T y) {
  if (y == 0 || y == -1) return 0;
  $T r = x % y;
  return r != 0 && (r < 0) != (y < 0) ? r + y : r;
}"""),
    "remainder": ((), "static inline $T remainder_$T($T x, $T y) { return y == 0 || y == -1 ? 0 : x % y; }"),
    "udiv": ((), "static inline $T udiv_$T($T x, $T y) { return y == 0 ? 0 : x / y; }"),
    "urem": ((), "static inline $T urem_$T($T x, $T y) { return y == 0 ? 0 : x % y; }"),
    "ipow": ((), """static inline $T ipow_$T($T x, $T y) {
  if ($negative) return x == 1 ? 1 : x == ($T)-1 ? ((y & 1) ? x : 1) : 0;
  $u r = 1, b = ($u)x;
  for ($u e = ($u)y; e != 0; e >>= 1) { if (e & 1) r *= b; b *= b; }
  return ($T)r;
}"""),
    "shl": ((), "static inline $T shl_$T($T x, $T y) { return ($u)y >= $width ? 0 : ($T)(($u)x << y); }"),
    "shr": ((), "static inline $T shr_$T($T x, $T y) { return ($u)y >= $width ? (x < 0 ? ($T)-1 : 0) : ($T)(x >> y); }"),
    "bf16_value": ((), "static inline float bf16_value(ushort b) { return as_float((uint)b << 16); }"),
    "bf16_bits": ((), """static inline ushort bf16_bits(float x) {
  uint u = as_uint(x);
  return x != x ? (ushort)((u >> 16) | 64) : (ushort)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}"""),
    "bf16_round": (("bf16_value", "bf16_bits"), "static inline float bf16_round(float x) { return bf16_value(bf16_bits(x)); }"),
    "f16_bits": ((), "static inline ushort f16_bits(float x) { ushort u; vstore_half_rte(x, 0, (half *)&u); return u; }"),
    "f16_value": ((), "static inline float f16_value(ushort b) { return vload_half(0, (const half *)&b); }"),
    "f16_round": (("f16_bits", "f16_value"), "static inline float f16_round(float x) { return f16_value(f16_bits(x)); }"),
    # to float, rounding inexact values to odd: a second rounding to f16 or bf16 is then the correct one
    "odd_double": ((), """static inline float odd_double(double x) {
  float f = convert_float_rtz(x);
  return x == x && fabs(f) < INFINITY && (double)f != x ? as_float(as_uint(f) | 1u) : f;
}"""),
    "odd_long": ((), """static inline float odd_long(long x) {
  float f = convert_float_rtz(x);
  return (long)f != x ? as_float(as_uint(f) | 1u) : f;
}"""),
    "odd_ulong": ((), """static inline float odd_ulong(ulong x) {
  float f = convert_float_rtz(x);
  return (ulong)f != x ? as_float(as_uint(f) | 1u) : f;
}"""),
    "fail": ((), """static inline void fail(volatile __global int *err, int op, long value) {
  if (atomic_cmpxchg(err, 0, op) == 0) { err[2] = (int)value; err[3] = (int)(value >> 32); }
}"""),
    "philox": ((), """static inline uint4 philox(ulong key, ulong counter, uint domain) {
  uint4 c = (uint4)((uint)counter, (uint)(counter >> 32), domain, 0u);
  uint k0 = (uint)key, k1 = (uint)(key >> 32);
  for (int i = 0; i < 10; i++) {
    const uint h0 = mul_hi(0xD2511F53u, c.x), l0 = 0xD2511F53u * c.x, h1 = mul_hi(0xCD9E8D57u, c.z), l1 = 0xCD9E8D57u * c.z;
    c = (uint4)(h1 ^ c.y ^ k0, l1, h0 ^ c.w ^ k1, l0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}"""),
}

# f32 functions of our own where the OpenCL bound (exp 3 ulp, log 3, tanh 5, erf 16) is above the table's 2 and networks use them all the time. Coefficients: Lawson's weighted
# least squares, relative error below 1e-9 before rounding. fma is exact by definition, so the bits are the same on every device.
_MATH32: dict[str, tuple[tuple[str, ...], str]] = {
    "exp": ((), """static inline float m_exp(float x) {
  const float t = fmin(fmax(x, -105.0f), 89.5f);
  const float n = rint(t * 1.44269504f);
  const float r = fma(n, -1.428606765330187e-06f, fma(n, -0.693145751953125f, t));
  float p = 0.00019919921760447323f;
  p = fma(p, r, 0.0013947212137281895f);
  p = fma(p, r, 0.008333261124789715f);
  p = fma(p, r, 0.04166625440120697f);
  p = fma(p, r, 0.1666666716337204f);
  p = fma(p, r, 0.5f);
  p = fma(p * r, r, r) + 1.0f;
  const int i = (int)n, h = i >> 1;                        /* two factors: 2^i alone leaves the normal range */
  const float y = p * as_float((h + 127) << 23) * as_float((i - h + 127) << 23);
  return x != x ? x : y;
}"""),
    "log": ((), """static inline float m_log(float x) {
  const int small = x < 1.17549435e-38f;
  const uint u = as_uint(small ? x * 8388608.0f : x) - 0x3f2aaaabu;
  const float e = (float)((int)u >> 23) - (small ? 23.0f : 0.0f);
  const float f = as_float((u & 0x7fffffu) + 0x3f2aaaabu) - 1.0f;
  float p = 0.12028177827596664f;
  p = fma(p, f, -0.12865303456783295f);
  p = fma(p, f, 0.10749369859695435f);
  p = fma(p, f, -0.12191667407751083f);
  p = fma(p, f, 0.14304830133914948f);
  p = fma(p, f, -0.16679833829402924f);
  p = fma(p, f, 0.19999587535858154f);
  p = fma(p, f, -0.24999815225601196f);
  p = fma(p, f, 0.3333333730697632f);
  const float q = f * f;
  const float low = fma(e, 1.428606765330187e-06f, fma(p * q, f, -0.5f * q));
  const float y = fma(e, 0.693145751953125f, f + low);
  return x > 0 ? (x < INFINITY ? y : x) : x == 0 ? -INFINITY : x != x ? x : NAN;
}"""),
    "tanh": (("m_exp",), """static inline float m_tanh(float x) {
  const float a = fabs(x);
  if (a >= 0.625f) {
    const float y = a > 10.0f ? 1.0f : 1.0f - 2.0f / (m_exp(2.0f * a) + 1.0f);
    return copysign(y, x);
  }
  const float t = x * x;
  float p = 0.002122745616361499f;
  p = fma(p, t, -0.008156280033290386f);
  p = fma(p, t, 0.021692607551813126f);
  p = fma(p, t, -0.053945377469062805f);
  p = fma(p, t, 0.13333195447921753f);
  p = fma(p, t, -0.3333333134651184f);
  return fma(x * t, p, x);
}"""),
    "erf": (("m_exp",), """static inline float m_erf(float x) {
  const float a = fabs(x), t = x * x;
  if (a < 0.9f) {
    float p = 8.538841211702675e-05f;
    p = fma(p, t, -0.0008181927842088044f);
    p = fma(p, t, 0.005204435903578997f);
    p = fma(p, t, -0.026860753074288368f);
    p = fma(p, t, 0.11283719539642334f);
    p = fma(p, t, -0.37612634897232056f);
    p = fma(p, t, 0.12837916612625122f);
    return fma(x, p, x);
  }
  float p = -2.0909405066049658e-05f;                      /* log(erfc(a)) on 0.9 .. 4 */
  p = fma(p, a, 0.00043230137089267373f);
  p = fma(p, a, -0.004160519689321518f);
  p = fma(p, a, 0.02509147860109806f);
  p = fma(p, a, -0.10823659598827362f);
  p = fma(p, a, -0.6333866715431213f);
  p = fma(p, a, -1.1294951438903809f);
  p = fma(p, a, 0.00017055022181011736f);
  return x != x ? x : copysign(a > 4.0f ? 1.0f : 1.0f - m_exp(p), x);
}"""),
}
BUILTIN = {"exp", "exp2", "expm1", "log", "log2", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh",
           "atanh", "erf", "erfc", "pow", "atan2"}
# The OpenCL C bounds (section 7.4, ulp of single precision) of the built-ins that stand in for a table bound of 2 to 4 on devices
# without double precision. With it, single precision functions are computed in double and rounded once (at most 0.51 ulp).
SPEC_ULP_WITHOUT_FP64 = {"exp2": 3, "expm1": 3, "log2": 3, "sin": 4, "cos": 4, "tan": 5, "asin": 4, "acos": 4, "atan": 5, "sinh": 4, "cosh": 4,
                         "asinh": 4, "acosh": 4, "atanh": 5, "erfc": 16, "pow": 16, "atan2": 6}


class Helpers:
    """The helper functions a program needs, in order of dependence."""

    def __init__(self, caps: Caps):
        self.caps = caps
        self.texts: dict[str, str] = {}

    def use(self, base: str, type_: str | None = None) -> str:
        """Make sure a template is there for a C type; gives the function's name."""
        name = f"{base}_{type_}" if type_ else base
        if name not in self.texts:
            needs, text = _TEMPLATES[base]
            for n in needs:
                self.use(n)
            fill = {}
            if type_:
                i, u = _BITS.get(type_, (type_, type_))
                unsigned = _UNSIGNED.get(type_, "")
                fill = {"T": type_, "I": i, "U": u, "u": unsigned, "width": _WIDTH.get(type_, 0),
                        "negative": "y < 0" if type_ in ("char", "short", "int", "long") else "0"}
            self.texts[name] = Template(text).substitute(fill) if fill else text
        return name

    def saturate(self, source: str, target: str) -> str:
        """Float to integer: towards zero, saturating, NaN gives 0."""
        name = f"sat_{target}_{source}"
        if name not in self.texts:
            low, high = _LIMITS[target]
            bound = 2.0 ** (_WIDTH[target] - (target in ("char", "short", "int", "long")))
            tail = "f" if source == "float" else ""
            least = f"x < -{bound.hex()}{tail}" if low not in ("0", "0u", "0ul") else f"x < 0.0{tail}"
            self.texts[name] = (f"static inline {target} {name}({source} x) "
                                f"{{ return x >= {bound.hex()}{tail} ? {high} : {least} ? {low} : x == x ? ({target})x : 0; }}")
        return name

    def math(self, name: str, double: bool) -> str:
        """The function to call for an elementary function of float (or double)."""
        if double:
            return name
        if name in _MATH32:
            return self._math32(name)
        if not self.caps.fp64:
            return name
        key = f"m_{name}"
        if key not in self.texts:
            two = name in ("pow", "atan2")
            args, call = ("float x, float y", "(double)x, (double)y") if two else ("float x", "(double)x")
            self.texts[key] = f"static inline float {key}({args}) {{ return (float){name}({call}); }}"
        return key

    def _math32(self, name: str) -> str:
        key = f"m_{name}"
        if key not in self.texts:
            needs, text = _MATH32[name]
            for n in needs:
                self._math32(n[2:])
            self.texts[key] = text
        return key

    def divide(self) -> str | None:
        """How f32 is divided: None for `/`, which is correctly rounded when the device says so, else a helper through double."""
        if self.caps.exact_divide or not self.caps.fp64:
            return None
        self.texts.setdefault("divide", "static inline float divide(float x, float y) { return (float)((double)x / (double)y); }")
        return "divide"

    def root(self) -> str:
        if self.caps.exact_divide or not self.caps.fp64:
            return "sqrt"
        self.texts.setdefault("root", "static inline float root(float x) { return (float)sqrt((double)x); }")
        return "root"

    def add(self, name: str, text: str) -> str:
        self.texts.setdefault(name, text)
        return name

    def text(self) -> str:
        return "\n".join(self.texts.values())
