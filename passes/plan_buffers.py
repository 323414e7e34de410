"""The pass plan-buffers: gives every host-level loop.alloc a place in one arena per function, by liveness.

Before: loop stage without addresses. After: allocs carry `offset` (bytes, multiples of 64), calls carry `frame` (where the callee's
arena starts), functions carry `arena` (bytes, callees' frames included). Two buffers share bytes only when no op of the host level
needs both; sections run side by side, so what one of them uses is in use while any of them runs. Allocations inside kernels are private to an iteration and stay as they are.
"""
from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir.core import Block, Func, Module, Op, Value
from .util import callees_first

ALIGN = 64


@dataclass(frozen=True)
class PlanBuffers:
    """Before: loop stage. After: loop stage with offset, frame and arena attributes."""

    name: ClassVar[str] = "plan-buffers"
    exact: ClassVar[bool] = True

    def apply(self, module: Module) -> Module:
        for f in callees_first(module):
            plan(f, module)
        return module


@dataclass
class _Slot:
    """Bytes that `op` (an alloc, or a call's frame) needs while positions first..last run."""

    op: Op
    size: int
    first: int
    last: int
    offset: int = -1


def plan(func: Func, module: Module) -> None:
    """Sets the attributes of one function; its callees are planned already."""
    slots: list[_Slot] = []
    of: dict[Value, _Slot] = {}
    clock = [0]

    def use(v: Value, now: int) -> None:
        slot = of.get(v)
        if slot is not None:
            slot.first, slot.last = min(slot.first, now), max(slot.last, now)

    def visit(block: Block) -> set[Value]:
        """Walks host-level ops; returns the memory from outside that they use."""
        outside: set[Value] = set()
        mine: set[Value] = set()
        for op in block.ops:
            clock[0] += 1
            now = clock[0]
            if op.name == "loop.alloc":
                slot = _Slot(op, _round(op.attrs["type"].nbytes), 1 << 60, -1)
                slots.append(slot)
                of[op.result] = slot
                mine.add(op.result)
                continue
            if op.name == "loop.view":
                if op.operands[0] in of:
                    of[op.result] = of[op.operands[0]]
                    (mine if op.operands[0] in mine else outside).add(op.result)
                continue
            if op.name == "loop.sections":
                mark = len(slots)
                touched = set().union(*(visit(r) for r in op.regions))
                for slot in [*slots[mark:], *(of[v] for v in touched)]:
                    slot.first, slot.last = min(slot.first, now), max(slot.last, clock[0])
                outside |= touched - mine
                continue
            used = set(op.operands)
            if op.name in ("loop.for", "loop.while", "loop.if"):
                for r in op.regions:
                    used |= visit(r)
            else:
                for r in op.regions:
                    for inner in r.walk():
                        used.update(inner.operands)
            for v in used:
                use(v, now)                            # a loop needs what its body uses from its first op to its last, ...
                use(v, clock[0])                       # ... as the body runs again
            outside |= {v for v in used if v in of and v not in mine}
            if op.name == "loop.call":
                size = _round(module.funcs[op.attrs["callee"]].attrs["arena"])
                if size:
                    slots.append(_Slot(op, size, now, now))
                else:
                    op.attrs["frame"] = 0
        return outside

    visit(func.body)
    func.attrs["arena"] = _assign([s for s in slots if s.last >= 0])
    for s in slots:
        s.op.attrs["frame" if s.op.name == "loop.call" else "offset"] = max(s.offset, 0)


def _assign(slots: list[_Slot]) -> int:
    """Offsets, large slots first, each at the lowest place free during its life; the arena's size."""
    placed: list[tuple[int, int, int, int]] = []           # (offset, end, first, last), by offset
    top = 0
    for s in sorted(slots, key=lambda s: -s.size):
        at, size, first, last = 0, s.size, s.first, s.last
        for offset, end, begins, ends in placed:
            if begins <= last and first <= ends:
                if offset - at >= size:
                    break
                if end > at:
                    at = end
        s.offset = at
        insort(placed, (at, at + size, first, last))
        top = max(top, at + size)
    return top


def _round(n: int) -> int:
    return -(-n // ALIGN) * ALIGN
