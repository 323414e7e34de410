"""From what a Python caller passes to arrays of exactly the declared types, or an error that names the argument."""
from __future__ import annotations

from typing import Any

import numpy as np

_FLOATS, _INTS = ("f64", "f32", "bf16", "f16"), ("i64", "i32", "i16", "i8", "u64", "u32", "u16", "u8")
KINDS = {"float": _FLOATS, "int": _INTS, "num": _FLOATS + _INTS}
_BY_NAME = {"f64": "float64", "f32": "float32", "f16": "float16", "i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8",
            "u64": "uint64", "u32": "uint32", "u16": "uint16", "u8": "uint8", "bool": "bool", "key": "uint64"}


class ArgumentError(ValueError, TypeError):
    """A call's argument is of the wrong kind, rank, shape or range; the message names it."""


def numpy_dtype(name: str) -> np.dtype:
    """The NumPy dtype of a dtype of the language."""
    if name == "bf16":
        import ml_dtypes
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(_BY_NAME[name])


def dtype_name(dtype: np.dtype) -> str | None:
    """The language's name of a NumPy dtype; None for one it lacks."""
    if dtype.name == "bfloat16":
        return "bf16"
    return next((k for k, v in _BY_NAME.items() if v == dtype.name and k != "key"), None)


def to_array(name: str, value: Any, declared: str, weak: str | None = None) -> np.ndarray:
    """`value` as an array of the declared dtype: a dtype name, or float, int, num (any such).

    f64 is taken for f32 and i64 for i32 where every value fits; integers are taken for floats, never the reverse. Numbers and
    lists are weak under `float`: they become f32 (or `weak`), as the language's literals do.
    """
    exact = isinstance(value, np.ndarray | np.generic)
    a = _array(name, value)
    kind = "float" if a.dtype.kind == "f" or a.dtype.name == "bfloat16" else {"i": "int", "u": "int", "b": "bool"}[a.dtype.kind]
    if declared in KINDS:
        target = dtype_name(a.dtype)
        if declared == "float" and (kind == "int" or not exact):
            target = weak or "f32"
        elif declared == "num" and not exact and kind == "float":
            target = weak or "f32"
        declared_text = declared
        if kind == "bool" or (declared == "int" and kind == "float"):
            raise ArgumentError(f"argument {name}: expected {declared_text}, got {_describe(a)}")
    else:
        target, declared_text = declared, declared
    dtype = numpy_dtype(target)
    if a.dtype == dtype:
        return a
    wanted = "float" if target in _FLOATS else "bool" if target == "bool" else "int"
    if wanted == kind == "int" or (kind == "int" and target == "key"):
        info = np.iinfo(dtype)
        if a.size and (int(a.min()) < info.min or int(a.max()) > info.max):
            raise ArgumentError(f"argument {name}: values from {a.min()} to {a.max()} do not fit {target} ({info.min} to {info.max})")
        return a.astype(dtype)
    if wanted == "float" and kind in ("float", "int"):
        with np.errstate(over="ignore"):
            out = a.astype(dtype)
        lost = ~np.isfinite(out.astype(np.float64)) & np.isfinite(a.astype(np.float64)) if kind == "float" else ~np.isfinite(out.astype(np.float64))
        if lost.any():
            worst = a[lost].flat[0]
            raise ArgumentError(f"argument {name}: the value {worst} does not fit {target}")
        if kind == "int" and a.size and not _exact_in(a, dtype):
            raise ArgumentError(f"argument {name}: integers too large to be exact as {target}; convert them yourself if that is meant")
        return out
    raise ArgumentError(f"argument {name}: expected {declared_text}, got {_describe(a)}")


def _exact_in(a: np.ndarray, dtype: np.dtype) -> bool:
    bits = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}[dtype.name]
    return max(abs(int(a.min())), abs(int(a.max()))) <= 1 << bits or np.array_equal(a.astype(dtype).astype(a.dtype), a)


def _array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, str | bytes) or value is None or callable(value):
        raise ArgumentError(f"argument {name}: expected numbers, got {type(value).__name__} {value!r}" if not callable(value)
                            else f"argument {name}: expected numbers, got a function")
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise ArgumentError(f"argument {name}: a masked array, and what its mask hides would be taken for numbers; fill it first: a.filled(0)")
    try:
        a = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as e:
        raise ArgumentError(f"argument {name}: not an array: {e}") from None
    if a.dtype.kind == "O" and isinstance(value, int | list | tuple):
        raise ArgumentError(f"argument {name}: integers too large for 64 bits, or rows of different lengths")
    if dtype_name(a.dtype) is None:
        raise ArgumentError(f"argument {name}: expected numbers, got {a.dtype}" if a.dtype.kind != "O"
                            else f"argument {name}: expected numbers, got {'an array of Python objects' if isinstance(value, np.ndarray) else type(value).__name__}")
    if not a.dtype.isnative:
        a = a.astype(a.dtype.newbyteorder("="))
    return a


def _describe(a: np.ndarray) -> str:
    name = dtype_name(a.dtype)
    return f"{name}[{', '.join(map(str, a.shape))}]" if a.ndim else name


def shape_text(shape) -> str:
    return "[" + ", ".join(str(d) for d in shape) + "]"
