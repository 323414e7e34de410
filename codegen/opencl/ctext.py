"""How dtypes and numbers are written in OpenCL C: types in memory, types in registers, literals, loads and stores.

f16 and bf16 are floats in registers, rounded after each operation; `bool` is one byte in memory.
"""
from __future__ import annotations

import math

from ...compiler.ir.types import BufferType, DType

MEMORY = {"f64": "double", "f32": "float", "f16": "half", "bf16": "ushort", "i64": "long", "i32": "int", "i16": "short", "i8": "char",
          "u64": "ulong", "u32": "uint", "u16": "ushort", "u8": "uchar", "bool": "uchar"}
REGISTER = {**MEMORY, "f16": "float", "bf16": "float", "bool": "bool"}
ARGUMENT = {**REGISTER, "bool": "uchar"}                     # a kernel argument cannot be a bool
UNSIGNED = {"i64": "ulong", "i32": "uint", "i16": "uint", "i8": "uint", "u64": "ulong", "u32": "uint", "u16": "uint", "u8": "uint"}
NUMPY_ARGUMENT = {"f64": "f8", "f32": "f4", "f16": "f4", "bf16": "f4", "i64": "i8", "i32": "i4", "i16": "i2", "i8": "i1",
                  "u64": "u8", "u32": "u4", "u16": "u2", "u8": "u1", "bool": "u1"}

INT32 = (-(1 << 31), (1 << 31) - 1)


def narrow(dtype: DType) -> bool:
    """Floats kept in memory narrower than they are computed in."""
    return dtype.name in ("f16", "bf16")


def span(t: BufferType) -> int:
    """Elements of memory a buffer takes, its strides included."""
    return 0 if 0 in t.shape else 1 + sum((n - 1) * s for n, s in zip(t.shape, t.element_strides))


def literal(value, dtype: DType) -> str:
    """A constant of a register type."""
    if dtype.is_bool:
        return "true" if value else "false"
    if dtype.is_float:
        v = float(value)
        tail = "" if dtype.name == "f64" else "f"
        if math.isnan(v):
            return "((double)NAN)" if not tail else "NAN"
        if math.isinf(v):
            text = "((double)INFINITY)" if not tail else "INFINITY"
            return text if v > 0 else f"(-{text})"
        text = v.hex() if abs(v) > 1e15 or v != round(v) else f"{v:.1f}"
        text += tail
        return f"({text})" if text.startswith("-") else text
    v = int(value)
    if dtype.kind == "uint":
        return f"{v}ul" if dtype.bits == 64 else f"{v}u"
    if dtype.bits == 64:
        if v == -(1 << 63):
            return "(-9223372036854775807L - 1L)"
        return f"({v}L)" if v < 0 else f"{v}L"
    if v == -(1 << 31):
        return "(-2147483647 - 1)"
    return f"({v})" if v < 0 else str(v)


def index_literal(v: int) -> str:
    """An i64 constant that may be written as an int when it fits one."""
    if INT32[0] < v <= INT32[1]:
        return f"({v})" if v < 0 else str(v)
    from ...compiler.ir.types import i64
    return literal(v, i64)


def load(pointer: str, index: str, dtype: DType, helpers, space: str = "__global") -> str:
    """The element `pointer[index]` as a register value."""
    if dtype.name == "f16":
        return f"vload_half({index}, {pointer})"
    if dtype.name == "bf16":
        helpers.use("bf16_value")
        return f"bf16_value({pointer}[{index}])"
    if dtype.is_bool:
        return f"({pointer}[{index}] != 0)"
    return f"{pointer}[{index}]"


def store(value: str, pointer: str, index: str, dtype: DType, helpers, space: str = "__global") -> str:
    """A statement that writes a register value."""
    if dtype.name == "f16":
        return f"vstore_half_rte({value}, {index}, {pointer});"
    if dtype.name == "bf16":
        helpers.use("bf16_bits")
        return f"{pointer}[{index}] = bf16_bits({value});"
    if dtype.is_bool:
        return f"{pointer}[{index}] = {value} ? 1 : 0;"
    return f"{pointer}[{index}] = {value};"
