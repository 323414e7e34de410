"""Which arguments of inner functions may be overwritten by their results: found from the callers, top down.

An entry function's `donate` is the caller's promise. When a caller hands a donated argument (or the carried value of a loop) to a
function and returns that function's result in its place, the same holds one level down, provided that every call agrees.
So optimiser states and caches are updated in place however deep the function is that updates them.
"""
from __future__ import annotations

from ..compiler.ir.core import Block, Func, Module, Op, Value
from .lower_buffers import MOVES
from .util import callees_first


def infer_donations(module: Module) -> None:
    """Sets `donate` on functions that are only called from within the module and have none."""
    entries = set(module.attrs.get("entries") or ())
    sites: dict[str, list[_Site]] = {}
    for f in reversed(callees_first(module)):
        called = sites.get(f.name)
        if called and f.name not in entries and not f.attrs.get("donate"):
            pairs = _agreed(f, called)
            if pairs:
                f.attrs["donate"] = pairs
        _collect(f.body, {f.args[a]: r for a, r in f.attrs.get("donate", [])}, sites)


class _Site:
    """One call: `swaps` are (operand, result) pairs where the result takes the operand's place; `dying` operands nobody reads later."""

    def __init__(self, op: Op, swaps: set[tuple[int, int]], dying: set[int]):
        self.op, self.swaps, self.dying = op, swaps, dying


def _agreed(f: Func, sites: list[_Site]) -> list[list[int]]:
    found: dict[int, int] = {}
    for a, r in sorted(set().union(*(s.swaps for s in sites))):
        same_type = f.args[a].type == f.result_types[r]
        if same_type and a not in found and r not in found.values() and all((a, r) in s.swaps or a in s.dying for s in sites):
            found[a] = r
    return [[a, r] for a, r in found.items()]


def _collect(block: Block, homes: dict[Value, int], sites: dict[str, list[_Site]]) -> None:
    """Calls in the block and its regions. `homes`: values in whose memory the terminator's operand of that number is stored."""
    last: dict[Value, int] = {}
    rep: dict[Value, Value] = {}
    for pos, op in enumerate(block.ops):
        inner = [v for r in op.regions for o in r.walk() for v in o.operands]
        for v in [*op.operands, *inner]:
            last[rep.get(v, v)] = pos
        if op.name in MOVES:
            rep[op.result] = rep.get(op.operands[0], op.operands[0])
    made = {r for op in block.ops for r in op.results}
    returned = block.terminator.operands
    for pos, op in enumerate(block.ops):
        if op.name == "func.call":
            swaps, dying = set(), set()
            for i, v in enumerate(op.operands):
                if last.get(v) != pos or sum(rep.get(u, u) is v for u in op.operands) != 1:
                    continue
                if v in homes:
                    swaps |= {(i, k) for k, x in enumerate(op.results) if returned[homes[v]] is x}
                elif v in made and v.owner.name not in MOVES and v.owner.name != "tensor.constant":
                    dying.add(i)
            sites.setdefault(op.attrs["callee"], []).append(_Site(op, swaps, dying))
        elif op.name == "scf.scan":
            region = op.regions[0]
            _collect(region, {region.args[1 + i]: i for i in range(op.attrs["n_carry"])}, sites)
        elif op.name == "scf.while":
            _collect(op.regions[0], {}, sites)
            _collect(op.regions[1], {a: i for i, a in enumerate(op.regions[1].args)}, sites)
        elif op.name == "scf.if":                      # a donated value whose place a result of the `if` takes
            number = {x: k for k, x in enumerate(op.results)}
            inner = {v: number[returned[r]] for v, r in homes.items() if returned[r] in number and last.get(v) == pos}
            for region in op.regions:
                _collect(region, inner, sites)
