"""Elementwise rows: each exists as `tensor.NAME` (equal shapes) and as `scalar.NAME` (loop IR). No broadcasting here."""
from __future__ import annotations

import math
import re

from ..ir.types import DTYPES, ScalarType, TensorType, bool_, f32, f64, i32, u32
from .common import BASE, LOOPS, S, count, need, row

F, I, N, B_ = "float", "int", "num", "bool"         # what dtypes an op takes; N: float or int; "any"; "bits": int or bool

KINDS = {F: "floats", I: "integers", N: "numbers", B_: "bools", "bits": "integers or bools"}


def _ok(dtype, kind: str) -> bool:
    return {F: dtype.is_float, I: dtype.is_int, N: dtype.is_float or dtype.is_int, B_: dtype.is_bool,
            "bits": not dtype.is_float, "any": True}[kind]


def _infer(kind: str, arity: int, out=None):
    allowed = {d.name for d in DTYPES.values() if _ok(d, kind)}

    def infer(types, attrs, regions):
        t = types[0] if len(types) == arity else None
        if isinstance(t, TensorType | ScalarType) and t.dtype.name in allowed and (arity == 1 or all(u == t for u in types)):      # no messages made
            return [_with(t, out(attrs)) if out else t]
        count(arity, types)
        t = types[0]
        need(isinstance(t, TensorType | ScalarType), f"expected tensors or scalars, got {t}", 0)
        need(_ok(t.dtype, kind), f"expected {KINDS.get(kind, kind)}, got {t}", 0)
        for i, u in enumerate(types[1:], 1):
            need(u == t, f"expected equal types, got {t} and {u}", 0, i)
        return [_with(t, out(attrs) if out else t.dtype)]
    return infer


def _with(t, dtype):
    return ScalarType(dtype) if isinstance(t, ScalarType) else t.with_dtype(dtype)


def _both(name, doc, operands, infer, grad, *, example, samples=(), **kw):
    row("tensor." + name, doc, operands, infer, grad, example=example, stages=BASE, elementwise=True, samples=samples, **kw)
    row("scalar." + name, doc, operands, infer, "scalars carry no gradient: the tensor op does", stages=LOOPS, elementwise=True,
        example=re.sub(r"\[[\d,]*\]$", "", example.replace("tensor.", "scalar.")), **kw)


def unary(name, doc, kind, grad, lo=-2.0, hi=2.0, ulp=0.0, **kw):
    """grad(b, x, y, g) -> adjoint of x, or the reason why there is none."""
    rule = grad if isinstance(grad, str) else (lambda b, op, dys: [grad(b, op.operands[0], op.results[0], dys[0])])
    t = {F: "f32[3,5]", I: "i32[3,5]", N: "f32[3,5]", B_: "bool[3,5]", "bits": "i32[3,5]", "any": "f32[3,5]"}[kind]
    _both(name, doc, "x", _infer(kind, 1), rule, samples=[S((t, lo, hi)), S((t.replace("[3,5]", "[]"), lo, hi))],
          exact=ulp == 0, ulp=ulp, example=f"%y = tensor.{name}(%x) : {t}", **kw)


def binary(name, doc, kind, grad, lo=-2.0, hi=2.0, ulp=0.0, lo2=None, hi2=None, **kw):
    """grad(b, x, y, out, g) -> (adjoint of x, adjoint of y)."""
    rule = grad if isinstance(grad, str) else (lambda b, op, dys: list(grad(b, *op.operands, op.results[0], dys[0])))
    t = "i32[3,5]" if kind in (I, "bits") else "f32[3,5]"
    r2 = (lo if lo2 is None else lo2, hi if hi2 is None else hi2)
    _both(name, doc, "x y", _infer(kind, 2), rule, samples=[S((t, lo, hi), (t, *r2))], exact=ulp == 0, ulp=ulp,
          example=f"%z = tensor.{name}(%x, %y) : {t}", **kw)


ZERO = "its derivative is zero almost everywhere"   # kept as a rule below, so that training through it is not an error


def _zero(b, x, y, g):
    return None                                      # None: contributes nothing


# ---- unary ----
unary("neg", "-x.", N, lambda b, x, y, g: b.neg(g))
unary("abs", "|x|.", N, lambda b, x, y, g: b.mul(g, b.sign(x)))
unary("sign", "-1, 0 or 1; NaN stays NaN.", N, _zero)
unary("exp", "e to the x.", F, lambda b, x, y, g: b.mul(g, y), ulp=2)
unary("exp2", "2 to the x.", F, lambda b, x, y, g: b.mul(b.mul(g, y), math.log(2)), ulp=2)
unary("expm1", "exp(x) - 1, accurate near 0.", F, lambda b, x, y, g: b.mul(g, b.add(y, 1)), ulp=2)
unary("log", "Natural logarithm.", F, lambda b, x, y, g: b.div(g, x), 0.1, 4, ulp=2)
unary("log2", "Logarithm to base 2.", F, lambda b, x, y, g: b.div(g, b.mul(x, math.log(2))), 0.1, 4, ulp=2)
unary("log1p", "log(1 + x), accurate near 0.", F, lambda b, x, y, g: b.div(g, b.add(x, 1)), -0.5, 2, ulp=2)
unary("sqrt", "Square root, correctly rounded.", F, lambda b, x, y, g: b.div(b.mul(g, 0.5), y), 0.1, 4)
unary("rsqrt", "1 / sqrt(x), both rounded.", F, lambda b, x, y, g: b.mul(b.mul(g, -0.5), b.div(y, x)), 0.1, 4)
unary("sin", "Sine (radians).", F, lambda b, x, y, g: b.mul(g, b.cos(x)), ulp=2)
unary("cos", "Cosine (radians).", F, lambda b, x, y, g: b.neg(b.mul(g, b.sin(x))), ulp=2)
unary("tan", "Tangent (radians).", F, lambda b, x, y, g: b.mul(g, b.add(b.mul(y, y), 1)), -1, 1, ulp=4)
unary("asin", "Arc sine.", F, lambda b, x, y, g: b.mul(g, b.rsqrt(b.sub(1, b.mul(x, x)))), -0.9, 0.9, ulp=2)
unary("acos", "Arc cosine.", F, lambda b, x, y, g: b.neg(b.mul(g, b.rsqrt(b.sub(1, b.mul(x, x))))), -0.9, 0.9, ulp=2)
unary("atan", "Arc tangent.", F, lambda b, x, y, g: b.div(g, b.add(b.mul(x, x), 1)), ulp=2)
unary("sinh", "Hyperbolic sine.", F, lambda b, x, y, g: b.mul(g, b.cosh(x)), ulp=3)
unary("cosh", "Hyperbolic cosine.", F, lambda b, x, y, g: b.mul(g, b.sinh(x)), ulp=3)
unary("tanh", "Hyperbolic tangent.", F, lambda b, x, y, g: b.mul(g, b.sub(1, b.mul(y, y))), ulp=2)
unary("asinh", "Inverse hyperbolic sine.", F, lambda b, x, y, g: b.mul(g, b.rsqrt(b.add(b.mul(x, x), 1))), ulp=3)
unary("acosh", "Inverse hyperbolic cosine.", F, lambda b, x, y, g: b.mul(g, b.rsqrt(b.sub(b.mul(x, x), 1))), 1.1, 4, ulp=3)
unary("atanh", "Inverse hyperbolic tangent.", F, lambda b, x, y, g: b.div(g, b.sub(1, b.mul(x, x))), -0.9, 0.9, ulp=3)
_C = 2 / math.sqrt(math.pi)
unary("erf", "Error function.", F, lambda b, x, y, g: b.mul(g, b.mul(b.exp(b.neg(b.mul(x, x))), _C)), ulp=2)
unary("erfc", "1 - erf(x), accurate for large x.", F, lambda b, x, y, g: b.mul(g, b.mul(b.exp(b.neg(b.mul(x, x))), -_C)), ulp=4)
unary("floor", "Largest whole number <= x.", F, _zero)
unary("ceil", "Smallest whole number >= x.", F, _zero)
unary("round", "Nearest whole number, ties to even.", F, _zero)
unary("trunc", "x without its fraction.", F, _zero)
unary("not", "Logical not of bools, bitwise not of integers.", "bits", "not differentiable: it takes no floats", -9, 9)


# ---- binary ----
def _pow(b, x, y, out, g):
    # d/dx x^y = y x^(y-1) (0 where y = 0, also at x = 0); d/dy x^y = x^y log x (0 where x = 0 and y > 0; NaN for x < 0, as torch)
    zero_y = b.compare("eq", y, 0.0)
    dx = b.select(zero_y, 0.0, b.mul(y, b.pow(x, b.sub(b.select(zero_y, 1.0, y), 1))))
    # 0 where x = 0 and y >= 0: the limit
    flat = b.ew("and", b.compare("eq", x, 0.0), b.compare("ge", y, 0.0))
    dy = b.select(flat, 0.0, b.mul(out, b.log(b.select(flat, 1.0, x))))
    return b.mul(g, dx), b.mul(g, dy)


def _pick(pred):
    def grad(b, x, y, out, g):                       # ties share the gradient equally, as PyTorch's maximum
        half = b.mul(g, 0.5)
        tie = b.compare("eq", x, y)
        zero = b.like(0.0, g)
        dx = b.select(tie, half, b.select(b.compare(pred, x, y), g, zero))
        dy = b.select(tie, half, b.select(b.compare(pred, y, x), g, zero))
        return dx, dy
    return grad


binary("add", "x + y; integers wrap.", N, lambda b, x, y, o, g: (g, g), commutative=True)
binary("sub", "x - y; integers wrap.", N, lambda b, x, y, o, g: (g, b.neg(g)))
binary("mul", "x * y; integers wrap.", N, lambda b, x, y, o, g: (b.mul(g, y), b.mul(g, x)), commutative=True)
binary("div", "x / y, floats.", F, lambda b, x, y, o, g: (b.div(g, y), b.neg(b.div(b.mul(g, o), y))), lo2=0.5, hi2=3)
binary("floordiv", "floor(x / y), for floats of the rounded quotient; an integer division by zero is a run-time error.", N,
       lambda b, x, y, o, g: (None, None), lo2=1, hi2=4)
binary("mod", "The remainder with the sign of y (Python's % and torch.remainder): fmod(x, y), plus y where the signs differ; a zero takes y's sign; integer division by zero is a run-time error.", N,
       lambda b, x, y, o, g: (g, b.neg(b.mul(g, b.floor(b.div(x, y))))), lo2=1, hi2=4)
binary("fmod", "The remainder with the sign of x (C's fmod and %); integer division by zero is a run-time error.", N,
       lambda b, x, y, o, g: (g, b.neg(b.mul(g, b.trunc(b.div(x, y))))), lo2=1, hi2=4)
binary("pow", "x to the y; integers: y >= 0 (negative powers give 0, or +-1 for a base of +-1).", N, _pow, 0.2, 2, ulp=2)
binary("atan2", "The angle of the point (y=x-operand, x=y-operand), in radians.", F,
       lambda b, x, y, o, g: (b.div(b.mul(g, y), b.add(b.mul(x, x), b.mul(y, y))),
                              b.neg(b.div(b.mul(g, x), b.add(b.mul(x, x), b.mul(y, y))))), ulp=3)
binary("max", "The larger; NaN if either is NaN; +0 is larger than -0 (IEEE 754 maximum).", "any", _pick("gt"), commutative=True)
binary("min", "The smaller; NaN if either is NaN; -0 is smaller than +0 (IEEE 754 minimum).", "any", _pick("lt"), commutative=True)
NOT_FLOAT = "not differentiable: it takes no floats"
binary("and", "Logical and bitwise and.", "bits", NOT_FLOAT, -9, 9, commutative=True)
binary("or", "Logical and bitwise or.", "bits", NOT_FLOAT, -9, 9, commutative=True)
binary("xor", "Logical and bitwise exclusive or.", "bits", NOT_FLOAT, -9, 9, commutative=True)
binary("shl", "x << y; 0 when y >= the width or y < 0.", I, NOT_FLOAT, -9, 9, lo2=0, hi2=8)
binary("shr", "x >> y, arithmetic for signed types; y >= the width or y < 0 fills with the sign.", I, NOT_FLOAT, -9, 9, lo2=0, hi2=8)

PREDICATES = ("eq", "ne", "lt", "le", "gt", "ge")


def _compare(types, attrs, regions):
    need(attrs.get("predicate") in PREDICATES, f"predicate is one of {' '.join(PREDICATES)}")
    return _infer("any", 2, lambda a: bool_)(types, attrs, regions)


_both("compare", "x (predicate) y; comparisons with NaN are false, `ne` is true.", "x y", _compare,
      "not differentiable: its result is a bool", attrs={"predicate": "eq ne lt le gt ge"},
      samples=[S("f32[3,5]", "f32[3,5]", predicate=p) for p in PREDICATES] + [S("i32[7]", "i32[7]", predicate="le")],
      example='%z = tensor.compare(%x, %y) {predicate = "lt"} : bool[3,5]')


def _select(types, attrs, regions):
    count(3, types)
    need(types[0].dtype.is_bool, f"expected a bool condition, got {types[0]}", 0)
    need(types[1] == types[2], f"expected equal types, got {types[1]} and {types[2]}", 1, 2)
    if isinstance(types[0], TensorType):
        need(types[0].shape == types[1].shape, f"expected equal shapes, got {types[0]} and {types[1]}", 0, 1)
    return [types[1]]


def _select_grad(b, op, dys):
    c, g = op.operands[0], dys[0]
    zero = b.like(0.0, g)
    return [None, b.select(c, g, zero), b.select(c, zero, g)]


_both("select", "a where the condition holds, else b.", "cond a b", _select, _select_grad,
      samples=[S(("bool[3,5]", 0, 1), "f32[3,5]", "f32[3,5]")], example="%z = tensor.select(%c, %a, %b) : f32[3,5]")


def _cast_grad(b, op, dys):
    x = op.operands[0]
    return [b.cast(dys[0], x.type.dtype) if x.type.dtype.is_float and op.attrs["dtype"].is_float else None]


def _cast(types, attrs, regions):
    count(1, types)
    return [_with(types[0], attrs["dtype"])]


_both("cast", "Converts elements: float to integer truncates towards zero and saturates (NaN gives 0); integer to integer wraps; "
      "to bool is `!= 0`; rounding to a narrower float is to nearest, ties to even.", "x", _cast, _cast_grad,
      attrs={"dtype": "the new element type"}, example="%y = tensor.cast(%x) {dtype = f64} : f64[3,5]",
      samples=[S(("f32[3,5]", -9, 9), dtype=d) for d in (f64, i32, bool_)] + [S(("i32[3,5]", -9, 9), dtype=f32), S(("bool[3,5]", 0, 1), dtype=f32)])


def _bitcast(types, attrs, regions):
    count(1, types)
    need(attrs["dtype"].bits == types[0].dtype.bits, f"cannot reinterpret {types[0]} as {attrs['dtype']}: widths differ", 0)
    return [_with(types[0], attrs["dtype"])]


_both("bitcast", "The same bits as another type of the same width.", "x", _bitcast,
      "not differentiable: it works on representations", attrs={"dtype": "the new element type"},
      example="%y = tensor.bitcast(%x) {dtype = u32} : u32[3,5]", samples=[S("f32[3,5]", dtype=u32), S(("i32[3,5]", 0, 2**30), dtype=f32)])


def _const_scalar(types, attrs, regions):
    return [ScalarType(attrs["dtype"])]


row("scalar.constant", "A number.", "", _const_scalar, "scalars carry no gradient: the tensor op does", stages=LOOPS,
    attrs={"value": "a number", "dtype": "its type"}, example="%c = scalar.constant() {value = 1.5, dtype = f32} : f32")
