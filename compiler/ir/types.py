"""Types of IR values: dtypes, tensors, scalars, buffers. No ops here."""
from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .dims import Dim, is_static, product


@dataclass(frozen=True, eq=False)
class DType:
    """An element type. `kind` is "float", "int", "uint" or "bool"; `bits` its width (bool: 8 in memory)."""

    name: str
    kind: str
    bits: int

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_int(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def is_bool(self) -> bool:
        return self.kind == "bool"

    @property
    def bytes(self) -> int:
        return self.bits // 8

    @cached_property
    def numpy(self) -> np.dtype:
        """The NumPy dtype of its arrays (bf16: ml_dtypes')."""
        if self.name == "bf16":
            import ml_dtypes
            return np.dtype(ml_dtypes.bfloat16)
        return np.dtype({"f64": "float64", "f32": "float32", "f16": "float16", "bool": "bool"}.get(
            self.name, self.name.replace("i", "int", 1) if self.kind == "int" else self.name.replace("u", "uint", 1)))

    @property
    def min(self):
        """Smallest value: -inf for floats, False for bool."""
        return -float("inf") if self.is_float else False if self.is_bool else -(1 << (self.bits - 1)) if self.kind == "int" else 0

    @property
    def max(self):
        return float("inf") if self.is_float else True if self.is_bool else (1 << (self.bits - (self.kind == "int"))) - 1

    def __str__(self):
        return self.name

    __repr__ = __str__

    def __reduce__(self):
        return (_dtype, (self.name,))


# how many bits of integer each float holds exactly
_EXACT_BITS = {"f64": 53, "f32": 24, "f16": 11, "bf16": 8}


def accumulator(dtype: DType) -> DType:
    """What sums and products of a dtype are kept in."""
    return f32 if dtype in (f16, bf16) else dtype


def widens(narrow: DType, wide: DType) -> bool:
    """Whether every value of `narrow` is a value of `wide`."""
    if narrow is wide:
        return True
    if wide.is_bool or narrow.is_bool:
        return False
    if narrow.is_float:
        return wide.is_float and (wide is f64 or (wide is f32 and narrow is not f64))
    bits = narrow.bits - (narrow.kind == "int")        # of the magnitude
    if wide.is_float:
        return bits <= _EXACT_BITS[wide.name]
    return wide.bits - (wide.kind == "int") >= bits and not (narrow.kind == "int" and wide.kind == "uint")


f64, f32, bf16, f16 = DType("f64", "float", 64), DType("f32", "float", 32), DType("bf16", "float", 16), DType("f16", "float", 16)
i64, i32, i16, i8 = (DType(f"i{b}", "int", b) for b in (64, 32, 16, 8))
u64, u32, u16, u8 = (DType(f"u{b}", "uint", b) for b in (64, 32, 16, 8))
bool_ = DType("bool", "bool", 8)
DTYPES: dict[str, DType] = {d.name: d for d in (f64, f32, bf16, f16, i64, i32, i16, i8, u64, u32, u16, u8, bool_)}


def _dtype(name: str) -> DType:
    return DTYPES[name]


def dtype_of(array_dtype) -> DType:
    """The DType of a NumPy dtype; KeyError for one we do not have."""
    name = np.dtype(array_dtype).name
    return DTYPES[{"float64": "f64", "float32": "f32", "bfloat16": "bf16", "float16": "f16", "bool": "bool"}.get(
        name, name.replace("uint", "u").replace("int", "i"))]


class Type:
    """Base of all types; equal by value, hashable."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class TensorType(Type):
    """A value of the tensor IR: `f32[32,64]`; rank 0 is `f32[]`. Dims are ints (or `Dim` while checking)."""

    dtype: DType
    shape: tuple[int | Dim, ...] = ()

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> int | Dim:
        return product(self.shape)

    @property
    def is_static(self) -> bool:
        return is_static(self.shape)

    def with_shape(self, shape) -> TensorType:
        return TensorType(self.dtype, tuple(shape))

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(dtype, self.shape)

    def __str__(self):
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class ScalarType(Type):
    """A register value of the loop IR: `f32`. Indices are `i64`."""

    dtype: DType

    def __str__(self):
        return self.dtype.name


@dataclass(frozen=True, slots=True)
class BufferType(Type):
    """Memory in the loop IR: `buf<f32[32,64]>`, or with explicit element strides `buf<f32[32,64], [1,32]>`."""

    dtype: DType
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] | None = None

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> int:
        return product(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.bytes

    @property
    def element_strides(self) -> tuple[int, ...]:
        """Strides in elements, row-major where none are given."""
        return self.strides if self.strides is not None else row_major(self.shape)

    def __str__(self):
        t = f"{self.dtype}[{','.join(map(str, self.shape))}]"
        return f"buf<{t}>" if self.strides is None else f"buf<{t}, [{','.join(map(str, self.strides))}]>"


def row_major(shape) -> tuple[int, ...]:
    out, step = [], 1
    for d in reversed(shape):
        out.append(step)
        step *= d
    return tuple(reversed(out))
