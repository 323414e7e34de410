"""schedule: the order of a function's groups, so that what a result needs is made and used up before the next result is begun.

Program order computes all layers' activations before the first rule uses one. Where nothing flows back, each layer can learn as soon as it
has been computed, and memory does not grow with depth. Results are finished in the order of how much they need, and the new order
is taken where its largest live memory is clearly smaller.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir.core import Func, Module, Op, Value, free_values
from .donate import infer_donations
from .lower_buffers import MOVES
from .util import Purity, nbytes

WORTH = 0.95                        # of the memory in program order: for less it is not worth another order


@dataclass(frozen=True)
class Schedule:
    """Reorders the ops of each function's body (regions stay as they are). Stage: tensor, fused; valid IR before and after. Exact."""

    name: ClassVar[str] = "schedule"
    exact: ClassVar[bool] = True

    def apply(self, module: Module) -> Module:
        infer_donations(module)                              # inner functions, too, write in place
        pure = Purity(module)
        for f in module.funcs.values():
            if len(f.returns.operands) > 1:
                _function(f, pure)
        return module


def _function(f: Func, pure: Purity) -> None:
    block = f.body
    ops = block.ops[:-1]
    number = {op: i for i, op in enumerate(ops)}
    needs = [_needs(op, number) for op in ops]
    last = None
    for i, op in enumerate(ops):                             # effects keep their order
        if not pure(op):
            if last is not None:
                needs[i].add(last)
            last = i
    cones: list[int] = []                                    # as bits: an op and all that it needs
    for i, n in enumerate(needs):
        cone = 1 << i
        for j in n:
            cone |= cones[j]
        cones.append(cone)
    roots: dict[int, int] = {}                               # an op that makes results -> the bits that have to come first
    readers = _readers(ops)
    donated = {r: f.args[a] for a, r in f.attrs.get("donate", [])}
    for r, v in enumerate(block.terminator.operands):
        if not isinstance(v.owner, Op) or v.owner not in number:
            continue
        i = number[v.owner]
        roots[i] = roots.get(i, 0) | cones[i]
        for j in readers.get(donated.get(r), ()):            # written in place: whoever reads the old value comes first
            if not cones[j] >> i & 1:
                roots[i] |= cones[j]
    order = _finish(roots, cones, len(ops), last)
    if order != list(range(len(ops))) and _peak(f, [ops[i] for i in order]) <= WORTH * _peak(f, ops):
        block.ops = [*(ops[i] for i in order), block.terminator]


def _finish(roots: dict[int, int], cones: list[int], n: int, effect: int | None) -> list[int]:
    """The ops in the order in which results get finished, those that need least first; within what a result needs, as they were."""
    done, out = 0, []

    def add(bits: int) -> None:
        nonlocal done
        new = bits & ~done
        done |= new
        while new:
            low = new & -new
            out.append(low.bit_length() - 1)
            new ^= low
    for i, bits in sorted(roots.items(), key=lambda x: (x[1].bit_count(), x[0])):
        add(bits & ~(1 << i))
        add(bits)
    if effect is not None:
        add(cones[effect])
    add((1 << n) - 1)
    return out


def _needs(op: Op, number: dict[Op, int]) -> set[int]:
    return {number[v.owner] for v in _read(op) if isinstance(v.owner, Op) and v.owner in number}


def _read(op: Op) -> list[Value]:
    return [*op.operands, *(v for r in op.regions for v in free_values(r))]


def _readers(ops: list[Op]) -> dict[Value, list[int]]:
    """Ops that read a value, itself or as it is shown by movement."""
    shown: dict[Value, Value] = {}
    out: dict[Value, list[int]] = {}
    for i, op in enumerate(ops):
        for v in _read(op):
            out.setdefault(shown.get(v, v), []).append(i)
        if op.name in MOVES:
            shown[op.result] = shown.get(op.operands[0], op.operands[0])
    return out


def _peak(f: Func, ops: list[Op]) -> int:
    """The most bytes of temporaries alive at one time, when the ops run in this order."""
    shown: dict[Value, Value] = {}
    last: dict[Value, int] = {}
    for i, op in enumerate(ops):
        for v in _read(op):
            last[shown.get(v, v)] = i
        if op.name in MOVES:
            shown[op.result] = shown.get(op.operands[0], op.operands[0])
    kept = {shown.get(v, v) for v in f.returns.operands}     # results have memory of their own
    ends: dict[int, int] = {}
    now = most = 0
    for i, op in enumerate(ops):
        if op.name not in MOVES and op.name != "tensor.constant":
            for v in op.results:
                if v not in kept:
                    size = nbytes(v)
                    now += size
                    ends[last.get(v, i)] = ends.get(last.get(v, i), 0) + size
        most = max(most, now)
        now -= ends.pop(i, 0)
    return most
