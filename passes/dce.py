"""dce: removes what no result needs: ops, results and carries of control flow, arguments and results of functions, functions."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir.core import Block, Func, Module, Op, Value
from .util import Purity, callees, callees_first


@dataclass(frozen=True)
class Dce:
    """Valid IR before and after, at any tensor stage. Functions named in the module's `entries` keep their arguments and
    results (all functions do when there is no such list); ops with effects stay."""

    name: ClassVar[str] = "dce"
    exact: ClassVar[bool] = True

    def apply(self, module: Module) -> Module:
        entries = set(module.attrs.get("entries") or module.funcs)
        while True:
            _drop_unreachable(module, entries)
            pure = Purity(module)
            for f in module.funcs.values():
                _Sweep(pure).run(f.body)
            if not _shrink_functions(module, entries):
                return module


def _drop_unreachable(module: Module, entries: set[str]) -> None:
    live, todo = set(), [n for n in entries if n in module.funcs]
    while todo:
        name = todo.pop()
        if name not in live:
            live.add(name)
            todo.extend(c for op in module.funcs[name].walk() for c in callees(op) if c in module.funcs)
    module.funcs = {n: f for n, f in module.funcs.items() if n in live}


class _Sweep:
    """One backward walk over a function: `live` are the values that something kept reads."""

    def __init__(self, pure: Purity):
        self.pure, self.live = pure, set()

    def run(self, block: Block) -> None:
        live, out = self.live, []
        term = block.terminator
        live.update(term.operands)
        for op in reversed(block.ops[:-1]):
            if not any(r in live for r in op.results) and self.pure(op):
                continue
            shrink = _SHRINK.get(op.name)
            if shrink:
                shrink(self, op)
            live.update(op.operands)
            for r in op.regions:
                self.run(r)
            out.append(op)
        block.ops = [*reversed(out), term]

    def needed(self, block: Block, roots) -> set[Value]:
        """Values that `roots` (values of the block) and the block's ops with effects read, regions included."""
        need = set(roots)
        for op in reversed(block.ops[:-1]):
            if any(r in need for r in op.results) or not self.pure(op):
                need.update(op.operands)
                for r in op.regions:
                    for inner in r.walk():
                        need.update(inner.operands)
        return need


def _if(s: _Sweep, op: Op) -> None:
    keep = [r in s.live for r in op.results]
    for r in op.regions:
        r.terminator.operands = _pick(r.terminator.operands, keep)
    op.results = _pick(op.results, keep)


def _scan(s: _Sweep, op: Op) -> None:
    """A carry stays when its last value is read, or the body needs it for something that stays."""
    body, n = op.regions[0], op.attrs["n_carry"]
    yields = body.terminator.operands
    keep = [r in s.live for r in op.results]
    while True:
        need = s.needed(body, _pick(yields, keep))
        more = [j for j in range(n) if not keep[j] and body.args[1 + j] in need]
        if not more:
            break
        for j in more:
            keep[j] = True
    xs = [a in need for a in body.args[1 + n:]]
    ins = keep[:n] + xs
    op.operands = _pick(op.operands, ins)
    body.args = [body.args[0], *_pick(body.args[1:], ins)]
    body.terminator.operands = _pick(yields, keep)
    op.results = _pick(op.results, keep)
    op.attrs = {**op.attrs, "n_carry": sum(keep[:n])}


def _while(s: _Sweep, op: Op) -> None:
    cond, body = op.regions
    yields = body.terminator.operands
    keep = [r in s.live for r in op.results]
    in_cond = s.needed(cond, cond.terminator.operands)
    keep = [k or a in in_cond for k, a in zip(keep, cond.args)]
    while True:
        need = s.needed(body, _pick(yields, keep))
        more = [j for j, a in enumerate(body.args) if not keep[j] and a in need]
        if not more:
            break
        for j in more:
            keep[j] = True
    for r in op.regions:
        r.args = _pick(r.args, keep)
    body.terminator.operands = _pick(yields, keep)
    op.operands, op.results = _pick(op.operands, keep), _pick(op.results, keep)


_SHRINK = {"scf.if": _if, "scf.scan": _scan, "scf.while": _while}


def _pick(items, mask) -> list:
    return [x for x, on in zip(items, mask) if on]


def _shrink_functions(module: Module, entries: set[str]) -> bool:
    """Drop results that no caller reads and arguments that the body does not read. True if anything changed."""
    calls: dict[str, list[Op]] = {}
    fixed = set(entries)
    read: set[Value] = set()
    for op in module.walk():
        read.update(op.operands)
        if op.name == "func.call":
            calls.setdefault(op.attrs["callee"], []).append(op)
        else:
            fixed.update(callees(op))
    changed = False
    for f in reversed(callees_first(module)):
        sites = calls.get(f.name, [])
        if f.name in fixed or not sites:
            continue
        results = [any(op.results[k] in read for op in sites) for k in range(len(f.result_types))]
        body_reads = {v for op in f.walk() for v in op.operands}
        args = [a in body_reads for a in f.args]
        if not all(results) or not all(args):
            changed = True
            _restrict(f, sites, args, results)
    return changed


def _restrict(f: Func, sites: list[Op], args: list[bool], results: list[bool]) -> None:
    new_arg = {i: k for k, i in enumerate(i for i, on in enumerate(args) if on)}
    new_result = {i: k for k, i in enumerate(i for i, on in enumerate(results) if on)}
    f.body.args = _pick(f.args, args)
    f.returns.operands = _pick(f.returns.operands, results)
    f.result_types = _pick(f.result_types, results)
    f.attrs = dict(f.attrs)
    for key, mask in (("arg_names", args), ("arg_roles", args), ("arg_locs", args), ("result_names", results)):
        if key in f.attrs:
            f.attrs[key] = _pick(f.attrs[key], mask)
    if "donate" in f.attrs:
        f.attrs["donate"] = [[new_arg[a], new_result[r]] for a, r in f.attrs["donate"] if a in new_arg and r in new_result]
    for op in sites:
        op.operands = _pick(op.operands, args)
        op.results = _pick(op.results, results)
        op.attrs = {**op.attrs, "result_types": list(f.result_types)}
