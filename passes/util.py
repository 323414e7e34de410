"""What several passes share: the order of functions, purity, removal of unused ops, sizes, spans of locations."""
from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..compiler.diagnostics import Span
from ..compiler.ir.core import Block, Func, Loc, Module, Op, Value
from ..compiler.ir.opdef import OPS

# attributes that name functions, by op
CALLEES = {"func.call": ("callee",), "loop.call": ("callee",), "autodiff.custom": ("forward", "backward"),
           "autodiff.vmap": ("callee",), "learn.update": ("rule",)}


def callees(op: Op) -> Iterator[str]:
    """Names of the functions an op refers to."""
    for key in CALLEES.get(op.name, ()):
        yield op.attrs[key]
    if op.name == "learn.update" and op.attrs.get("forward"):
        yield op.attrs["forward"]["callee"]


def callees_first(module: Module) -> list[Func]:
    """All functions, each after those it calls; otherwise in definition order."""
    out: dict[str, Func] = {}

    def visit(f: Func) -> None:
        if f.name in out:
            return
        for op in f.walk():
            for name in callees(op):
                if name in module.funcs:
                    visit(module.funcs[name])
        out[f.name] = f

    for f in list(module.funcs.values()):
        visit(f)
    return list(out.values())


class Purity:
    """Whether an op may be removed, merged or moved: it, its regions and what it calls have no effects."""

    def __init__(self, module: Module):
        self.module, self.funcs = module, {}

    def __call__(self, op: Op) -> bool:
        row = OPS[op.name]
        if not row.pure:
            return False
        if any(not self.func(name) for name in callees(op)):
            return False
        return all(self(inner) for r in op.regions for inner in r.ops)

    def func(self, name: str) -> bool:
        if name not in self.funcs:
            self.funcs[name] = True                              # recursion is not allowed; this only guards broken input
            self.funcs[name] = all(self(op) for op in self.module.funcs[name].body.ops)
        return self.funcs[name]


def prune(block: Block, keep: Iterable[Value], removable=lambda op: True) -> None:
    """Remove ops of this block (not inside regions) that nothing in `keep` needs and that are `removable`."""
    live = set(keep)
    out = []
    for op in reversed(block.ops):
        if OPS[op.name].terminator or not removable(op) or any(r in live for r in op.results):
            live.update(op.operands)
            for r in op.regions:
                for inner in r.walk():
                    live.update(inner.operands)
            out.append(op)
    block.ops = out[::-1]


def nbytes(v: Value) -> int:
    return v.type.numel * v.type.dtype.bytes


def is_float(v: Value) -> bool:
    return v.type.dtype.is_float


def span(loc: Loc | None) -> Span | None:
    """The source span of an op's location."""
    if loc is None:
        return None
    return Span(loc.file, loc.line, loc.col, loc.end_line or loc.line, loc.end_col or loc.col + 1)
