"""fold: ops on constants become constants. What an op computes is asked of an evaluator that the pipeline hands in."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..compiler.diagnostics import RuntimeError_
from ..compiler.ir.builder import Builder
from ..compiler.ir.core import Block, Module, Op, Value, rewrite
from ..compiler.ir.opdef import OPS, TENSOR
from ..compiler.ir.types import TensorType

SPLATS = frozenset("tensor." + n for n in ("broadcast", "reshape", "transpose", "slice", "reverse"))   # move equal elements only


@dataclass(frozen=True)
class Fold:
    """Folds base ops without regions whose operands are constants and whose results have at most `max_elements`; elementwise
    ops and moves on one repeated number fold at any size. An op that fails for its operands stays, to fail when it runs.
    Valid IR before and after. Exact, as the evaluator is the definition."""

    evaluate: Callable[[Op, list[np.ndarray]], list[np.ndarray]]
    max_elements: int = 256

    name: ClassVar[str] = "fold"
    exact: ClassVar[bool] = True

    def apply(self, module: Module) -> Module:
        for f in module.funcs.values():
            rewrite(f.body, self._fold)
        return module

    def _fold(self, op: Op, out: Block) -> list[Value] | None:
        row = OPS[op.name]
        if not op.operands or op.regions or not row.pure or TENSOR not in row.stages or not op.name.startswith(("tensor.", "random.")):
            return None
        if any(not isinstance(v.owner, Op) or v.owner.name != "tensor.constant" for v in op.operands):
            return None
        b = Builder(out, op.loc)
        values = [v.owner.attrs["value"] for v in op.operands]
        splat = not any(isinstance(v, np.ndarray) for v in values)
        if splat and op.name in SPLATS:
            return [b.constant(values[0], op.result.type)]
        if splat and row.elementwise:
            one = Op(op.name, [Value(v.type.with_shape(()), None) for v in op.operands], op.attrs,
                     [r.type.with_shape(()) for r in op.results], loc=op.loc)
            got = self._run(one, values)
            return got and [b.constant(g[()], r.type) for g, r in zip(got, op.results)]
        if any(r.type.numel > self.max_elements for r in op.results) or any(v.type.numel > self.max_elements for v in op.operands):
            return None
        got = self._run(op, values)
        return got and [_constant(b, g, r.type) for g, r in zip(got, op.results)]

    def _run(self, op: Op, values: list) -> list[np.ndarray] | None:
        arrays = [np.broadcast_to(np.asarray(x, v.type.dtype.numpy), v.type.shape) for x, v in zip(values, op.operands)]
        try:
            return self.evaluate(op, arrays)
        except (RuntimeError_, NotImplementedError):
            return None


def _constant(b: Builder, array: np.ndarray, type: TensorType) -> Value:
    """A splat when all elements have the same bits, else a dense constant."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.size and flat.tobytes() == flat[:1].tobytes() * flat.size and not np.isnan(flat[:1].astype(np.float64))[0]:
        return b.constant(flat[0], type)
    return b.constant(np.ascontiguousarray(array).reshape(type.shape), type)
