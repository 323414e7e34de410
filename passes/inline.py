"""inline: calls of small functions, of functions called once, and of a few that continue a product, are replaced by the function's ops."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir.core import Block, Func, Module, Op, Value, clone_op, rewrite, uses
from .util import callees, callees_first

MOVES = frozenset("tensor." + n for n in ("reshape", "transpose", "slice", "broadcast", "reverse"))


@dataclass(frozen=True)
class Inline:
    """Inlines a function whose body has at most `small` ops, or that one place calls; `all` inlines everything. Functions
    with many callers and large bodies stay: they are compiled once. With `continues`, a function of so many callers is inlined where it gets
    a matrix product that nobody else reads: the product can end with it then (an optimiser's update of two or three layers of one shape).
    With `moves`, only functions that do nothing but move are. Ops keep their locations. Valid IR before and after.
    """

    small: int = 12
    all: bool = False
    moves: bool = False
    continues: int = 0

    name: ClassVar[str] = "inline"
    exact: ClassVar[bool] = True

    def apply(self, module: Module) -> Module:
        entries = set(module.attrs.get("entries") or ())
        calls: dict[str, int] = {}
        for op in module.walk():
            for name in callees(op):
                calls[name] = calls.get(name, 0) + 1
        for f in callees_first(module):
            if any(op.name == "func.call" for op in f.walk()):
                products = {v for v, ops in uses(f.body).items() if _is_product(v) and len(ops) == 1} if self.continues else set()
                rewrite(f.body, lambda op, out, products=products: self._inline(module, calls, entries, products, op, out))
        if entries:
            used = {name for op in module.walk() for name in callees(op)}
            module.funcs = {n: f for n, f in module.funcs.items() if n in entries or n in used or n not in calls}
        return module

    def _inline(self, module: Module, calls: dict[str, int], entries: set[str], products: set[Value], op: Op, out: Block) -> list[Value] | None:
        if op.name != "func.call":
            return None
        callee = module.funcs[op.attrs["callee"]]
        if callee.attrs.get("noinline"):
            return None
        if self.moves and any(o.name not in MOVES for o in callee.body.ops[:-1]):
            return None
        once = calls[callee.name] == 1 and callee.name not in entries
        continues = calls[callee.name] <= self.continues and any(v in products for v in op.operands)
        if not (self.all or self.moves or once or continues or _size(callee, self.small) <= self.small):
            return None
        env = dict(zip(callee.args, op.operands))
        for inner in callee.body.ops[:-1]:
            out.append(clone_op(inner, env))
            for name in callees(inner):
                calls[name] = calls.get(name, 0) + 1
        return [env.get(v, v) for v in callee.returns.operands]


def _is_product(v: Value) -> bool:
    return isinstance(v.owner, Op) and v.owner.name == "tensor.dot_general"


def _size(f: Func, limit: int) -> int:
    """The number of ops that compute something (counting stops above the limit)."""
    n = 0
    for op in f.walk():
        n += op.name not in ("tensor.constant", "func.return", "scf.yield", "tensor.reshape", "tensor.broadcast")
        if n > limit:
            break
    return n
