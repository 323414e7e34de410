"""The frequent elementary functions in f64 to the last place: exp, log and tanh, within 2 ulp over all f64 inputs.

(vecmath_f64.py computes in f64, too, but what it is good for is f32 results. The other f64 functions are the C library's.)
"""
from __future__ import annotations

from .vecbuild import V, VecBuilder
from .vecmath_f64 import expd, expm1_reduced, logd

# tanh(x) / x - 1 = z P(z), z = x^2 <= 0.4: Chebyshev interpolation, off by 7e-18
_TANH = [-0.3333333333333333, 0.13333333333333316, -0.053968253968231024, 0.02186948853488776, -0.008863235493441451,
         0.0035921274106953164, -0.0014558274668454265, 0.0005899759192143973, -0.00023886464788549952,
         9.597236318160513e-05, -3.696052230333826e-05, 1.2088687226216899e-05, -2.3855793111704252e-06]


def exp(b: VecBuilder, x: V) -> V:
    """2^n (1 + expm1(r)), the power of two in two steps: it may not exist itself."""
    p, k = expm1_reduced(b, b.clamp(x, -746.0, 710.0))
    half = k >> 1
    return (p + 1.0) * b.real((half + 1023) << 52) * b.real((k - half + 1023) << 52)


def log(b: VecBuilder, x: V) -> V:
    """Denormals are scaled first."""
    tiny = x.lt(2.2250738585072014e-308)
    return logd(b, b.select(tiny, x * 2.0 ** 54, x), b.select(tiny, b.const(-54.0, "double"), 0.0), x)


def tanh(b: VecBuilder, x: V) -> V:
    """A polynomial near 0, 1 - 2 / (exp(2 |x|) + 1) elsewhere."""
    a = b.abs(x)
    z = x * x
    near = b.fma(b.poly(z, _TANH) * z, x, x)
    capped = b.select(a.gt(22.0), 22.0, a)
    far = 1.0 - 2.0 / (expd(b, capped * 2.0) + 1.0)
    return b.copysign(b.select(a.ge(0.625), far, near), x)
