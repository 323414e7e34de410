"""The pass hoist-layouts: what a loop's small products read down its columns is transposed once, in front of the loop.

Before and after: loop stage, memory not yet planned. A product of few rows reads its right operand once, so a transposed one (the
weights in a recurrent net's backward steps) would be transposed again in every iteration. Moves elements only: results keep their bits.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir.core import Block, Func, Module, Op, Value
from ..compiler.ir.dims import product
from ..compiler.ir.types import BufferType, ScalarType, i64, row_major
from .cost import FEW_ROWS, MATRIX_ELEMENTS, WORTH_TRANSPOSING


@dataclass(frozen=True)
class HoistLayouts:
    """Before and after: loop stage."""

    name: ClassVar[str] = "hoist-layouts"
    exact: ClassVar[bool] = True

    def apply(self, module: Module) -> Module:
        for f in module.funcs.values():
            _Layouts(f).run()
        return module


class _Layouts:
    def __init__(self, func: Func):
        self.func = func
        self.root: dict[Value, Value] = {a: a for a in func.args}      # whose memory a buffer shows

    def run(self) -> None:
        for op in self.func.walk():
            if op.name in ("loop.alloc", "loop.constant"):
                self.root[op.result] = op.result
            elif op.name == "loop.view":
                self.root[op.result] = self.root[op.operands[0]]
        self.block(self.func.body)

    def block(self, block: Block) -> None:
        for op in list(block.ops):
            if op.name == "loop.for":
                trips = [v.owner.attrs["value"] for v in op.operands[:2] if isinstance(v.owner, Op) and v.owner.name == "scalar.constant"]
                if len(trips) == 2 and trips[1] - trips[0] >= WORTH_TRANSPOSING * op.attrs.get("step", 1):
                    self.loop(block, op)
            for r in op.regions if op.name in ("loop.for", "loop.if", "loop.while", "loop.sections") else ():
                self.block(r)

    def loop(self, block: Block, loop: Op) -> None:
        inside = {v for r in loop.regions for v in _defined(r)}
        written = {self.root[v] for r in loop.regions for v in _written(r) if v in self.root}
        made: dict[Value, Value] = {}
        for op in loop.regions[0].ops:
            if op.name != "loop.contract":
                continue
            v = op.operands[2]
            if v in inside or self.root[v] in written or not _down_columns(op):
                continue
            if v not in made:
                made[v] = self.transposed(block, loop, op)
            op.operands[2] = made[v]

    def transposed(self, block: Block, loop: Op, op: Op) -> Value:
        """A copy of the right operand whose columns are neighbours, as a buffer of the same shape."""
        v = op.operands[2]
        t, at = v.type, block.ops.index(loop)
        column = op.attrs["rhs"].index(_columns(op))
        order = [d for d in range(t.rank) if d != column] + [column]
        shape = tuple(t.shape[d] for d in order)
        strides = [0] * t.rank
        for d, s in zip(order, row_major(shape)):
            strides[d] = s
        alloc = Op("loop.alloc", [], {"type": BufferType(t.dtype, shape)}, [BufferType(t.dtype, shape)], (), op.loc)
        zero = Op("scalar.constant", [], {"value": 0, "dtype": i64}, [ScalarType(i64)], (), op.loc)
        view = Op("loop.view", [alloc.result, zero.result], {"shape": list(t.shape), "strides": strides},
                  [BufferType(t.dtype, t.shape, tuple(strides))], (), op.loc)
        copy = Op("loop.copy", [view.result, v], {}, (), (), op.loc)
        block.ops[at:at] = [alloc, zero, view, copy]
        self.root[alloc.result] = self.root[view.result] = alloc.result
        return view.result


def _columns(op: Op) -> str:
    """The letter that runs along the result's rows."""
    return op.attrs["out"][-1:]


def _down_columns(op: Op) -> bool:
    """Whether a product has few rows and a right operand that is contiguous along the sums, not along the result's rows."""
    out, _, rhs = (v.type for v in op.operands)
    letter, rows = _columns(op), product(out.shape[:-1])
    if letter not in op.attrs["rhs"] or letter in op.attrs["lhs"] or rows > FEW_ROWS:
        return False
    if rows == 1 and product(rhs.shape) > MATRIX_ELEMENTS and 1 in rhs.element_strides:
        return False                                         # dot products read it at memory's speed as it lies
    return rhs.element_strides[op.attrs["rhs"].index(letter)] != 1


def _defined(block: Block) -> set[Value]:
    out = set(block.args)
    for op in block.ops:
        out.update(op.results)
        for r in op.regions:
            out |= _defined(r)
    return out


def _written(block: Block) -> set[Value]:
    """Buffers that anything in the block may write."""
    out: set[Value] = set()
    for op in block.walk():
        if op.name == "loop.store":
            out.add(op.operands[1])
        elif op.name in ("loop.call", "loop.sort"):
            out.update(op.operands)
        elif op.name.startswith(("loop.contract", "loop.copy", "loop.pack")):
            out.add(op.operands[0])
    return out
