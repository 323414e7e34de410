"""The pass prefetch-rows: kernels that go through each row of a large array several times fetch the next row while they work on this one.

Before and after: loop stage. The processor prefetches what is read in order, but only while something is read from memory: that is the first
sweep over a row (a maximum, a sum). In the later ones, with their exponentials and stores, memory would have nothing to do. A load
of the second sweep is marked with how many elements further the row to fetch lies. Nothing is computed differently.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir.core import Block, Module, Op, Value
from .cost import FETCHED_ROW_BYTES, PAGE_BYTES, STREAM_BYTES
from .util import nbytes

SWEEPS = ("loop.for", "loop.reduce")


@dataclass(frozen=True)
class PrefetchRows:
    """Before and after: loop stage."""

    name: ClassVar[str] = "prefetch-rows"
    exact: ClassVar[bool] = True

    def apply(self, module: Module) -> Module:
        for f in module.funcs.values():
            for op in f.walk():
                if op.name == "loop.parallel" and op.attrs["extents"]:
                    _rows(op.regions[0])
        return module


def _rows(body: Block) -> None:
    """The sweeps of a block that is carried out for row after row: its last index."""
    sweeps = [op for op in body.ops if op.name in SWEEPS]
    row, loads = body.args[-1], {}
    for op in sweeps:
        if op.name == "loop.for" and not op.operands[2:] and not op.attrs.get("independent"):
            _rows(op.regions[0])                             # a chunk of rows
        for load in op.regions[0].ops:
            if load.name == "loop.load" and (key := _row_of(load, row, op.regions[0].args[0])) is not None:
                loads.setdefault(key, {}).setdefault(op, load)
    for (buffer, *indices), seen in loads.items():
        if len(seen) > 1:
            second = list(seen.values())[1]
            step = buffer.type.element_strides[indices.index(row)]
            second.attrs["ahead"] = step * max(1, -(-PAGE_BYTES // (step * buffer.type.dtype.bytes)))


def _row_of(load: Op, row: Value, column: Value) -> tuple[Value, ...] | None:
    """(buffer, indices but for the last) where a sweep over `column` reads neighbours of a row that is worth it."""
    buffer, *indices = load.operands
    if nbytes(buffer) < STREAM_BYTES or indices[-1] is not column or indices.count(row) != 1 or buffer.type.element_strides[-1] != 1:
        return None
    last = buffer.type.shape[-1] * buffer.type.dtype.bytes
    return (buffer, *indices[:-1]) if PAGE_BYTES // 4 <= last <= FETCHED_ROW_BYTES else None
