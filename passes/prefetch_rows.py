"""The pass prefetch-rows: kernels fetch the next row of a large array while they work on this one. Nothing is computed differently.

Before and after: loop stage. The processor prefetches what is read in order, and only while it is read from memory.
* A kernel that goes through each row several times reads memory in the first sweep (a maximum, a sum) alone; in the later ones, with their
  exponentials and stores, memory would have nothing to do. A load of the second sweep is marked with how many elements further the row to fetch lies.
* Rows that are taken by index begin anywhere: beside the load from one, a loop.prefetch of the row that the next turn's index names.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir.builder import Builder
from ..compiler.ir.core import Block, Module, Op, Value, clone_op
from .cost import FETCHED_ROW_BYTES, LINE_BYTES, PAGE_BYTES, STREAM_BYTES
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
                    body, extents = op.regions[0], op.attrs["extents"]
                    _rows(body)
                    if len(extents) > 1:
                        _taken(body, body.args[-1], body.args[-2])
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


# ---- rows taken by index ------------------------------------------------------------------------------------------------


def _taken(block: Block, column: Value, turn: Value) -> None:
    """Beside loads of w[.. f(index[turn]) .., column] in a block that is carried out for turn after turn: a prefetch for a later turn."""
    for op in list(block.ops):
        if op.name == "loop.for":
            _taken(op.regions[0], column, op.regions[0].args[0])
        if op.name != "loop.load" or nbytes(op.operands[0]) < STREAM_BYTES or op.operands[-1] is not column:
            continue
        size = op.operands[0].type.shape[-1] * op.operands[0].type.dtype.bytes
        made = _made_of(block, op.operands[1:-1], turn, column)
        if made and size >= LINE_BYTES:
            last = min(n for o in made for v, n in zip(o.operands[1:], o.operands[0].type.shape if o.name == "loop.load" else ()) if v is turn) - 1
            before = Block()
            b = Builder(before, op.loc)
            env = {turn: b.min(b.add(turn, max(1, -(-PAGE_BYTES // size))), last)}
            before.ops += [clone_op(o, env) for o in made]
            b.op("loop.prefetch", [env.get(v, v) for v in op.operands])
            at = block.ops.index(op)
            block.ops[at:at] = before.ops


def _made_of(block: Block, wanted: list[Value], turn: Value, column: Value) -> list[Op] | None:
    """The block's ops that compute the indices, alike for all columns, from what is loaded at `turn`; None where they need it otherwise."""
    needed, out, loaded = set(wanted), [], False
    for op in reversed(block.ops):
        if needed.intersection(op.results):
            load = op.name == "loop.load"
            if not (load or op.name.startswith("scalar.")) or column in op.operands or (turn in op.operands and not load):
                return None
            loaded |= turn in op.operands
            needed.update(op.operands)
            out.append(op)
    return out[::-1] if loaded and turn not in wanted else None
