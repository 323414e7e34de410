"""Cheap numbers: weights and signals as small integers with a scale. Products of such integers are written `i32(a) @ i32(b)`."""
from __future__ import annotations

from ..compiler.ir import f32, i8
from ..compiler.ops import packed
from .builtins import builtin
from .quantized import weight_name
from .values import QuantType, describe


@builtin("int8_rows")
def _int8_rows(cx, x):
    """Rows over the last dim as whole numbers of max |x| / 127: (i8 of x's shape, f32 scales with a last dim of 1). x is about i8 * scale."""
    x = cx.b.cast(cx.float(x), f32)
    if x.type.rank == 0:
        cx.fail("`int8_rows` works on rows: a number has none", "x")
    return packed.rows(cx.b, x, i8)


@builtin("codes")
def _codes(cx, x, weight):
    """The whole numbers that a weight type (ternary, int4, int8, pow2(n)) makes of a tensor, and the one scale they have: x is about codes * scale.
    i8, or i16 for pow2(8) and more: pow2(n) gives 0 or a sign and one of 1, 2, 4 .. 2 ** (n - 1)."""
    x = cx.b.cast(cx.float(x), f32)
    if not isinstance(weight, QuantType):
        cx.fail(f"`weight` of `codes` is ternary, int4, int8 or pow2(n), got {describe(weight)}", "weight")
    return packed.codes(cx.b, x, weight_name(weight))
