"""Where barriers have to stand between the kernels of a host level that every thread runs.

An access says which bytes of which root (the arena, a function argument, ...) a step touches, whether it writes, and whether
only thread 0 takes the step. Two steps need a barrier between them when their bytes overlap, one of them writes, and they
are not both thread 0's. Roots are different memory, except that donation makes an argument and a result one root.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ...compiler.ir.core import Block, Func, Op, Value
from ...compiler.ir.types import BufferType


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes lo..hi of a root; `hi` None: to its end."""

    root: object
    lo: int = 0
    hi: int | None = None

    def overlaps(self, other: Place) -> bool:
        return self.root == other.root and (self.hi is None or other.lo < self.hi) and (other.hi is None or self.lo < other.hi)


@dataclass(frozen=True, slots=True)
class Access:
    place: Place
    write: bool
    single: bool


class Sync:
    """The accesses since the last barrier."""

    def __init__(self, pending: Iterable[Access] = ()):
        self._by_root: dict[object, set[Access]] = {}
        self.add(pending)

    @property
    def pending(self) -> set[Access]:
        return set().union(*self._by_root.values())

    def needs_barrier(self, accesses: list[Access]) -> bool:
        return any((a.write or p.write) and not (a.single and p.single) and a.place.overlaps(p.place)
                   for a in accesses for p in self._by_root.get(a.place.root, ()))

    def add(self, accesses: Iterable[Access]) -> None:
        for a in accesses:
            self._by_root.setdefault(a.place.root, set()).add(a)

    def clear(self) -> None:
        self._by_root.clear()


class Places:
    """The place of every buffer value of a function."""

    def __init__(self, func: Func, n_inputs: int):
        self.of: dict[Value, Place] = {}
        root = list(range(len(func.args)))
        for a, r in func.attrs.get("donate", []):
            root[n_inputs + r] = root[a]
        for i, v in enumerate(func.args):
            self.of[v] = Place(("arg", root[i]))
        self._walk(func.body)

    def _walk(self, block: Block) -> None:
        for op in block.ops:
            if op.name == "loop.alloc" and "offset" in op.attrs:
                lo = op.attrs["offset"]
                self.of[op.result] = Place("arena", lo, lo + max(op.attrs["type"].nbytes, 1))
            elif op.name == "loop.constant":
                self.of[op.result] = Place(op)
            elif op.name == "loop.view" and op.operands[0] in self.of:
                self.of[op.result] = self.of[op.operands[0]]
            for r in op.regions:
                self._walk(r)


WHOLE = ("loop.contract", "loop.contract_packed", "loop.copy", "loop.pack")      # kernels that write their first operand and read the others


def touched(op: Op) -> list[tuple[Value, bool]]:
    """(buffer, written) for every buffer from outside that a kernel (loop.parallel or one of WHOLE) accesses."""
    found: dict[tuple[Value, bool], None] = {}
    if op.name in WHOLE:
        found = dict.fromkeys((v, i == 0) for i, v in enumerate(op.operands))
    base: dict[Value, Value] = {}

    def visit(block: Block) -> None:
        for o in block.ops:
            if o.name == "loop.view":
                base[o.result] = base.get(o.operands[0], o.operands[0])
            elif o.name == "loop.load":
                found[base.get(o.operands[0], o.operands[0]), False] = None
            elif o.name == "loop.store":
                found[base.get(o.operands[1], o.operands[1]), True] = None
            elif o.name == "loop.sort":
                for v in o.operands:
                    found[base.get(v, v), True] = None
            elif o.name == "loop.contract":
                for v, write in zip(o.operands, (True, False, False)):
                    found[base.get(v, v), write] = None
            for r in o.regions:
                visit(r)
    for r in op.regions:
        visit(r)
    return list(found)


@dataclass
class Summary:
    """What a call of a function touches: its parameters by position, its arena; whether thread 0 does all of it."""

    params: dict[int, bool]
    arena: int
    single: bool

    def accesses(self, call: Op, places: Places) -> list[Access]:
        out = [Access(places.of[call.operands[i]], write, self.single) for i, write in self.params.items()]
        if self.arena:
            frame = call.attrs.get("frame", 0)
            out.append(Access(Place("arena", frame, frame + self.arena), True, self.single))
        return out


def as_single(accesses: set[Access]) -> set[Access]:
    return {replace(a, single=True) for a in accesses}


def is_buffer(v: Value) -> bool:
    return isinstance(v.type, BufferType)
