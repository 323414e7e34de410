"""Values of a run block: arrays of the backend or of NumPy, numbers, strings, tuples and lists of them, layers with values of their own.

What decides about compiled code (`static`), what is passed to it (`as_types`, `leaves`) and what a check knows of a value (`Abstract`).
Nothing is evaluated here: see run_block.py.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import host_objects as H
from .compiler.ir import TensorType
from .compiler.ir.types import dtype_of
from .frontend.host import UNIT, Closure, TreeType
from .frontend.values import LayerInstance, Slot
from .tokenizers import Piece


@dataclass(eq=False)
class Abstract:
    """An array of which only the type is known: what a check computes with."""

    type: TensorType


@dataclass(eq=False)
class HostTree:
    """Values for the parameters of a layer."""

    layer: LayerInstance
    values: dict[Slot, Any]


class Indices:
    """The indices of a range as arrays, which is what they are in compiled loops."""

    def __init__(self, of: range):
        self.of = of

    def __len__(self) -> int:
        return len(self.of)

    def __iter__(self):
        return (np.array(k, np.int64) for k in self.of)

    def __getitem__(self, part: slice) -> Indices:
        return Indices(self.of[part])


def type_of(v: Any) -> TensorType | None:
    """An array's type; None for what is no array."""
    if isinstance(v, Abstract):
        return v.type
    if isinstance(v, np.ndarray):
        return TensorType(dtype_of(v.dtype), v.shape)
    if H.is_array(v):
        return TensorType(v.dtype, tuple(v.shape))
    return None


INDEX = type_of(np.array(0, np.int64))


def as_types(v: Any) -> Any:
    """A host value as elaborate_expression wants it."""
    t = type_of(v)
    if t is not None:
        return t
    if isinstance(v, tuple | list):
        return type(v)(map(as_types, v))
    if isinstance(v, HostTree):
        return TreeType(v.layer, {s: type_of(x) for s, x in v.values.items()})
    if isinstance(v, Closure):
        return Closure(v.node, {n: as_types(x) for n, x in v.names.items()})
    return str(v) if isinstance(v, Piece) else v


def leaves(v: Any) -> list[Any]:
    """The arrays in a host value, in the order of elaborate_expression's arguments."""
    if type_of(v) is not None:
        return [v]
    if isinstance(v, tuple | list):
        return [x for y in v for x in leaves(y)]
    if isinstance(v, HostTree):
        return list(v.values.values())
    if isinstance(v, Closure):
        return [x for y in v.names.values() for x in leaves(y)]
    return []


def static(v: Any) -> object:
    """What of a value decides about the compiled code: the type of an array, else the value itself."""
    t = type_of(v)
    if t is not None:
        return ("array", t)
    if isinstance(v, tuple | list):
        return (type(v).__name__, *map(static, v))
    if isinstance(v, HostTree):
        return ("tree", id(v.layer))
    if isinstance(v, Closure):
        return ("fn", id(v.node), *((n, static(x)) for n, x in v.names.items()))
    if isinstance(v, LayerInstance):
        return ("layer", id(v))
    return (type(v).__name__, v)


def strong(v: Any) -> Any:
    """A loop's value: a number becomes an array, as in compiled loops, so that its next value needs no new code."""
    if isinstance(v, bool):
        return np.array(v)
    if isinstance(v, int | float):
        return np.array(v, np.int64 if isinstance(v, int) else np.float32)
    return v


def outcome(values: list[Any]) -> Any:
    return UNIT if not values else values[0] if len(values) == 1 else tuple(values)


def static_layers(spec: tuple) -> list[LayerInstance]:
    """The layers among the static parts of a result."""
    if spec[0] == "s":
        return [spec[1]] if isinstance(spec[1], LayerInstance) else []
    return [x for s in spec[1] for x in static_layers(s)] if spec[0] in ("t", "l") else []
