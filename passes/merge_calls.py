"""merge-calls: an optimiser's update of a parameter joins the function that makes the parameter's gradient.

Layers that repeat share one backward function, which so cannot end with the update: every layer's gradient goes to memory and is read
again by a kernel of its own, 10 of the 28 bytes that Adam moves for a parameter, and all gradients are there at once. Where every
call of a function hands a result to the same other function, and nobody else reads it, the function calls that one itself, and
`inline` and `fuse` bring the update to the product whose sums it takes.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from ..compiler.ir.core import Block, Func, Module, Op, Value
from .util import Purity, callees, callees_first

# what lies between a product and the gradient that it is
LAYOUT = ("tensor.reshape", "tensor.transpose", "tensor.add", "tensor.mul", "tensor.cast")


class _Call(NamedTuple):
    block: Block
    op: Op


@dataclass(frozen=True)
class MergeCalls:
    """Valid IR before and after, at stage tensor. Only calls of one result from a matrix product are merged: what else a backward function
    gives is small, or gains nothing. A function that is called once is `inline`'s business."""

    name: ClassVar[str] = "merge-calls"
    exact: ClassVar[bool] = True

    def apply(self, module: Module) -> Module:
        entries = set(module.attrs.get("entries") or module.funcs)
        calls, named = _calls(module)
        pure = Purity(module)
        for f in reversed(callees_first(module)):            # callers first: what was merged into one may go on into what it calls
            if f.name not in entries | named and len(calls.get(f.name, ())) > 1:
                _merge(module, f, calls, entries, pure)
        return module


def _merge(module: Module, f: Func, calls: dict[str, list[_Call]], entries: set[str], pure: Purity) -> None:
    """Merges the consumers of f's results into it, where they can be. `calls` is kept up to date."""
    sites = calls[f.name]
    uses = _uses(sites)
    for r in reversed(range(len(f.returns.operands))):       # from the end: a merged result becomes several
        readers = [uses.get(c.op.results[r], []) for c in sites]
        if any(len(u) != 1 or u[0].name != "func.call" for u in readers) or not _of_product(module, f.returns.operands[r]):
            continue
        consumers = [u[0] for u in readers]
        at = {(o.attrs["callee"], o.operands.index(c.op.results[r])) for c, o in zip(sites, consumers)}
        (callee, slot), more = next(iter(at)), len(at) > 1
        if more or callee in entries or callee == f.name or not pure.func(callee):
            continue
        fixed = {id(op) for op in (*(c.op for c in sites), *consumers)}
        chains = [_movable(c, o, slot, pure, fixed) for c, o in zip(sites, consumers)]
        if any(chain is None for chain in chains):
            continue
        for c, chain in zip(sites, chains):
            _move(c, chain)
        call = _join(f, r, module.funcs[callee], slot, list(zip(sites, consumers)))
        gone = {id(o) for o in consumers}
        calls[callee] = [*(c for c in calls[callee] if id(c.op) not in gone), _Call(f.body, call)]


def _calls(module: Module) -> tuple[dict[str, list[_Call]], set[str]]:
    """All calls, by the function called; the names of functions that something else than a call refers to."""
    calls: dict[str, list[_Call]] = {}
    named: set[str] = set()

    def visit(block: Block) -> None:
        for op in block.ops:
            if op.name == "func.call":
                calls.setdefault(op.attrs["callee"], []).append(_Call(block, op))
            else:
                named.update(callees(op))
            for region in op.regions:
                visit(region)

    for f in module.funcs.values():
        visit(f.body)
    return calls, named


def _uses(sites: list[_Call]) -> dict[Value, list[Op]]:
    """The ops that read results of these calls. One in a region counts twice: it may run often, or not at all."""
    wanted = {v for c in sites for v in c.op.results}
    out: dict[Value, list[Op]] = {}
    for block in {id(c.block): c.block for c in sites}.values():
        for op in block.ops:
            for v in op.operands:
                if v in wanted:
                    out.setdefault(v, []).append(op)
            for region in op.regions:
                for inner in region.walk():
                    for v in inner.operands:
                        if v in wanted:
                            out.setdefault(v, []).extend((inner, inner))
    return out


def _of_product(module: Module, v: Value) -> bool:
    """Whether a matrix product makes this value."""
    op = v.owner
    if not isinstance(op, Op):
        return False
    if op.name == "tensor.dot_general":
        return True
    if op.name == "func.call":
        return _of_product(module, module.funcs[op.attrs["callee"]].returns.operands[op.results.index(v)])
    return op.name in LAYOUT and any(_of_product(module, x) for x in op.operands)


def _movable(call: _Call, consumer: Op, slot: int, pure: Purity, fixed: set[int]) -> list[Op] | None:
    """The ops between the call and the consumer that the consumer's other operands need; None where they cannot go in front of the call:
    one of them has effects, or is among the `fixed` (by id), the calls and consumers themselves."""
    todo = [v for i, v in enumerate(consumer.operands) if i != slot]
    if not any(isinstance(v.owner, Op) for v in todo):
        return []
    position = {id(op): i for i, op in enumerate(call.block.ops)}
    start, chain = position[id(call.op)], {}
    while todo:
        op = todo.pop().owner
        if not isinstance(op, Op) or position.get(id(op), -1) < start or id(op) in chain:
            continue                                         # known before the call
        if id(op) in fixed or op.regions or not pure(op):
            return None
        chain[id(op)] = op
        todo += op.operands
    return [op for op in call.block.ops if id(op) in chain]


def _move(call: _Call, chain: list[Op]) -> None:
    """Puts ops in front of a call, but for those that an earlier move brought there."""
    ops = call.block.ops
    at = next(i for i, op in enumerate(ops) if op is call.op)
    inside = {id(op) for op in chain} & {id(op) for op in ops[at:]}
    if inside:
        call.block.ops = [*ops[:at], *(op for op in chain if id(op) in inside), *(op for op in ops[at:] if id(op) not in inside)]


def _join(f: Func, r: int, g: Func, slot: int, sites: list[tuple[_Call, Op]]) -> Op:
    """f calls g on its result r and returns what g does in its place. The call in f."""
    inner: list[Value] = []
    added: list[int] = []                                    # g's operands that become arguments of f
    for i, arg in enumerate(g.args):
        if i == slot:
            inner.append(f.returns.operands[r])
            continue
        same = [k for k in range(len(f.args)) if all(c.op.operands[k] is o.operands[i] for c, o in sites)]
        if same:
            inner.append(f.args[same[0]])
        else:
            inner.append(Value(arg.type, f.body, arg.name))
            added.append(i)
    for i in added:
        f.args.append(inner[i])
    call = Op("func.call", inner, {"callee": g.name, "result_types": list(g.result_types)}, g.result_types, loc=sites[0][1].loc)
    f.body.ops.insert(-1, call)
    f.returns.operands[r:r + 1] = call.results
    f.result_types[r:r + 1] = g.result_types
    more = len(g.result_types) - 1
    attrs = {k: v for k, v in f.attrs.items() if k not in ("arg_names", "arg_roles", "arg_locs", "result_names", "donate")}
    f.attrs = {**attrs, **({"donate": [[a, k + more if k > r else k] for a, k in f.attrs["donate"] if k != r]} if "donate" in f.attrs else {})}
    for (block, op), consumer in sites:
        op.operands += [consumer.operands[i] for i in added]
        op.results[r:r + 1] = consumer.results
        for v in consumer.results:
            v.owner = op
        op.attrs = {**op.attrs, "result_types": list(f.result_types)}
        block.ops.remove(consumer)
    return call

