"""Dtype promotion, NumPy broadcasting, and turning compile-time numbers into tensors.

The IR's elementwise ops want equal types; everything that makes them equal happens here.  Failures are `TypeMismatch`es
without places: callers know the spans.
"""
from __future__ import annotations

from ..compiler.ir import DTYPES, Dim, DType, TensorType, Value, bool_, f32, f64, i16, i32, i64
from ..compiler.ir.builder import Builder
from ..compiler.ir.dims import is_static, maybe_equal
from ..compiler.ir.opdef import TypeMismatch
from .values import Opaque, Quotient, describe, type_text

CATEGORY = {"bool": 0, "uint": 1, "int": 1, "float": 2}


def promote(a: DType, b: DType) -> DType:
    """torch.promote_types; u32 and u64 (which torch leaves out) go to the signed type that holds them, or i64."""
    if a is b:
        return a
    ca, cb = CATEGORY[a.kind], CATEGORY[b.kind]
    if ca != cb:
        return a if ca > cb else b
    if a.is_float:
        if a.bits == b.bits:                                   # f16 and bf16
            return f32
        return a if a.bits > b.bits else b
    if a.kind == b.kind:
        return a if a.bits > b.bits else b
    signed, unsigned = (a, b) if a.kind == "int" else (b, a)
    if signed.bits > unsigned.bits:
        return signed
    return {8: i16, 16: i32}.get(unsigned.bits, i64)


def weak_dtype(v: object, other: DType | None) -> DType:
    """The dtype that a weak number takes beside a tensor of `other` (or alone)."""
    kind = v.kind if isinstance(v, Opaque) else "bool" if isinstance(v, bool) else "float" if isinstance(v, float) else "int"
    if kind == "float":
        return other if other is not None and other.is_float else f32
    if kind == "int":
        return other if other is not None and not other.is_bool else i64
    return other if other is not None else bool_


def is_weak(v: object) -> bool:
    return isinstance(v, bool | int | float | Dim | Opaque)


def plain(v: object):
    """A weak number as a Python one; unknown ones (generic checks only) stand as 1."""
    if isinstance(v, Dim):
        return 1
    if isinstance(v, Opaque):
        return {"float": 1.0, "int": 1, "bool": True}[v.kind]
    return float(v) if type(v) is Quotient else v


def constant(b: Builder, v: object, dtype: DType, shape=()) -> Value:
    """A weak number as a tensor of this dtype and shape."""
    if not is_weak(v):
        raise TypeMismatch(f"expected a tensor or a number, got {describe(v)}")
    v = plain(v)
    if not isinstance(v, int | float):
        raise TypeMismatch(f"expected a number, got {describe(v)}")
    if dtype.is_int and isinstance(v, float):
        if v != int(v):
            raise TypeMismatch(f"{v} is no whole number, so it cannot be {dtype}")
        v = int(v)
    return b.constant(v, TensorType(dtype, tuple(shape)))


def as_tensor(b: Builder, v: object, dtype: DType | None = None) -> Value:
    """A value as a tensor; `dtype` is what a weak number becomes (tensors are left alone)."""
    if isinstance(v, Value):
        return v
    if is_weak(v):
        return constant(b, v, dtype or weak_dtype(v, None))
    raise TypeMismatch("expected a tensor")


def common_dtype(values) -> DType:
    """The dtype that the values have together: tensors promote among themselves, then weak numbers join."""
    dtype = None
    for v in values:
        if isinstance(v, Value):
            dtype = v.type.dtype if dtype is None else promote(dtype, v.type.dtype)
    for v in values:
        if not isinstance(v, Value):
            w = weak_dtype(v, dtype)
            dtype = w if dtype is None or CATEGORY[w.kind] > CATEGORY[dtype.kind] else dtype
    return dtype


def broadcast_shapes(*shapes) -> tuple:
    """NumPy's rule on sizes; symbolic dims must be equal, and only a literal 1 stretches."""
    rank = max(map(len, shapes))
    out = []
    for i in range(rank):
        size, known = 1, False
        for s in shapes:
            k = i - (rank - len(s))
            if k < 0:
                continue
            n = s[k]
            if type(n) is int and n == 1:
                continue
            if not known:
                size, known = n, True
            elif size != n:
                if not maybe_equal(size, n):
                    raise TypeMismatch(f"dimension {i - rank} is {size} and {n}")
                if isinstance(n, int):
                    size = n
        out.append(size)
    return tuple(out)


def together(b: Builder, values, dtype: DType | None = None) -> list[Value]:
    """The values as tensors of one dtype and one shape."""
    dtype = dtype or common_dtype(values)
    shapes = [v.type.shape for v in values if isinstance(v, Value)]
    first = shapes[0] if shapes else ()
    shape = first
    for s in shapes[1:]:
        if s != first:
            shape = broadcast_shapes(*shapes)
            break
    return [b.broadcast(b.cast(v, dtype), shape) if isinstance(v, Value) else constant(b, v, dtype, shape) for v in values]


def binary(b: Builder, op: str, x: object, y: object, **attrs) -> Value:
    """An elementwise op on two values, broadcast and promoted."""
    xv, yv = together(b, (x, y))
    return b.op("tensor." + op, [xv, yv], attrs).result


def to_float(b: Builder, x: Value) -> Value:
    """An integer or bool tensor as f32, floats unchanged."""
    return x if x.type.dtype.is_float else b.cast(x, f32)


def cast(b: Builder, v: object, dtype: DType):
    """`f32(x)`: tensors are converted, numbers become scalars of that type."""
    if isinstance(v, Value):
        return b.cast(v, dtype)
    if isinstance(v, float) and dtype.is_int:
        v = int(v)                                             # truncates, as casting a tensor does
    if dtype.is_bool:
        v = bool(plain(v))
    return constant(b, v, dtype)


def dtype_named(name: str) -> DType | None:
    return DTYPES.get(name)


def mismatch(op: str, x: object, y: object, why: str) -> str:
    """ "cannot add f32[B, 3] and f32[B, 4]: dimension -1 is 3 and 4" """
    def text(v):
        return type_text(v.type) if isinstance(v, Value) else str(v)

    return f"cannot {op} {text(x)} and {text(y)}: {why}"


__all__ = ["promote", "weak_dtype", "is_weak", "plain", "constant", "as_tensor", "common_dtype", "broadcast_shapes",
           "together", "binary", "to_float", "cast", "dtype_named", "mismatch", "f64", "is_static"]
