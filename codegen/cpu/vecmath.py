"""Elementary functions over vectors, as LLVM text, one function per (name, lanes, dtype) and module, emitted on demand.

`require(module, "exp", 16, "f32")` returns the symbol of `<16 x float> @vm_exp_f32x16(<16 x float>)`; one lane means scalars.

* f32: at most 2 ulp over all inputs, denormals, infinities and NaN included (tests/test_cpu_math.py). exp, exp2, expm1, log,
  log2, log1p, tanh, erf, sin and cos are computed in f32 (vecmath_avx512.py: what AVX-512 has instructions for); the rest in f64 on vectors of twice the width, which makes them correct to about half
  an ulp with short polynomials. Large arguments of sin, cos, tan are reduced with a table of 2^e * 2/pi mod 4.
* f64: exp, log and tanh within 2 ulp; the rest are the C library's functions, lane by lane.
* rsqrt is 1 / sqrt(x), both rounded.
Coefficients were fitted (weighted minimax) over the reduced ranges noted beside them; the fit's error is far below an ulp.
Fused multiply-adds are used where the machine has them: this is library code, not the user's arithmetic.
"""
from __future__ import annotations

from . import vecmath_double as double
from . import vecmath_f32 as single
from . import vecmath_f64 as wide
from .irtext import Fn, Module, vec
from .vecbuild import V, VecBuilder

UNARY = ("exp", "exp2", "expm1", "log", "log2", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh",
         "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "rsqrt")
BINARY = ("pow", "atan2")
LLVM = {"f32": "float", "f64": "double"}


_IN_F32 = {"exp": single.exp, "exp2": single.exp2, "expm1": single.expm1, "log": single.log, "log2": single.log2,
           "log1p": single.log1p, "tanh": single.tanh, "erf": single.erf, "sin": single.trig(False), "cos": single.trig(True)}
_IN_F64 = {
    "tan": wide.tand, "asin": wide.asind, "acos": wide.acosd, "atan": wide.atand, "sinh": wide.sinhd, "cosh": wide.coshd,
    "asinh": wide.asinhd, "acosh": wide.acoshd, "atanh": wide.atanhd, "erfc": wide.erfcd, "pow": wide.powd, "atan2": wide.atan2d,
}
OWN_F64 = {"exp": double.exp, "log": double.log, "tanh": double.tanh}
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
    b = VecBuilder(f, lanes)
    args = [V(b, p, elem) for p in params]
    if name == "rsqrt":
        out = b.const(1.0, elem) / b.call("sqrt", args[0])
    elif dtype == "f64":
        out = OWN_F64[name](b, args[0]) if name in OWN_F64 else _libm(b, name, args)
    elif name in _IN_F32:
        out = _IN_F32[name](b, args[0])
    elif lanes == 1 and name in BINARY:                      # one number, as an optimiser's beta^t: 20 ms less to compile
        out = b.narrow(_libm(b, name, [b.wide(a) for a in args]))
    else:
        out = b.narrow(_IN_F64[name](b, *(b.wide(a) for a in args)))
    f.finish(f"ret {t} {out.name}")
    return symbol


def _libm(b: VecBuilder, name: str, args: list[V]) -> V:
    b.m.declare(f"declare double @{name}({', '.join(['double'] * len(args))})")
    if b.w == 1:
        return V(b, b.f.op(f"call double @{name}({', '.join(f'double {a.name}' for a in args)})"), "double")
    out = "poison"
    for i in range(b.w):
        lanes = [b.f.op(f"extractelement {a.type} {a.name}, i64 {i}") for a in args]
        y = b.f.op(f"call double @{name}({', '.join(f'double {x}' for x in lanes)})")
        out = b.f.op(f"insertelement {args[0].type} {out}, double {y}, i64 {i}")
    return V(b, out, "double")
