"""decompose: nn.* rows and the derived random.* rows become base ops, by the definition in their row of the op table."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir.builder import Builder
from ..compiler.ir.core import Block, Module, Op, Value, rewrite
from ..compiler.ir.opdef import OPS


@dataclass(frozen=True)
class Decompose:
    """Replaces every op whose row has a decomposition, everywhere. Valid IR before and after; none such is left, except that
    rows with a gradient rule of their own wait for the pass grad when the module has gradients.

    Not exact: the interpreter has semantics of its own for nn.* ops, within the row's stated bound.
    """

    name: ClassVar[str] = "decompose"
    exact: ClassVar[bool] = False

    def apply(self, module: Module) -> Module:
        wait = any(op.name == "autodiff.gradient" for op in module.walk())
        for f in module.funcs.values():
            if any(OPS[op.name].decompose for op in f.walk()):
                rewrite(f.body, _expand_undifferentiable if wait else expand)
        return module


def _expand_undifferentiable(op: Op, out: Block) -> list[Value] | None:
    return None if callable(OPS[op.name].grad) else expand(op, out)


def expand(op: Op, out: Block) -> list[Value] | None:
    """For `rewrite`: one op by its row's decomposition."""
    row = OPS[op.name]
    if row.decompose is None:
        return None
    inner = Block()
    results = row.decompose(Builder(inner, op.loc), op)
    if any(OPS[o.name].decompose for o in inner.ops):              # a decomposition may use another row that has one
        inner.ops.append(Op("scf.yield", results))
        rewrite(inner, expand)
        results = inner.ops.pop().operands
    out.ops.extend(inner.ops)
    return _checked(op, results)


def _checked(op: Op, results: list[Value]) -> list[Value]:
    got, want = [r.type for r in results], [r.type for r in op.results]
    if got != want:
        raise TypeError(f"the decomposition of {op.name} gives {got}, expected {want}")
    return results
