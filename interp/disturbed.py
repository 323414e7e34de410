"""How far rounding may move each element of a result: the f64 shadow with every inexact op pushed off by a part of its stated bound.

A backend may choose how it computes an inexact op within what the op's row states (so many ulp; n eps sum |x| for a sum). What that
does to a result depends on the program: sqrt near 0 magnifies it, a softmax far from its step hides it. Running the definition a few times,
each time disturbed, shows it element by element, without a rule per op. Programs that jump (floor, comparisons) right after
inexact ops have no such bound.
"""
from __future__ import annotations

import math
import random

import numpy as np

from ..compiler.ir.core import Module, Op
from ..compiler.ir.types import dtype_of
from ..compiler.ops import OPS
from .compare import eps
from .interpreter import Interpreter
from .numerics import Array

# Sums: the error is measured against the sum of magnitudes. Which operands to take the magnitude of, by op.
SUMS = {"tensor.reduce_sum": (0,), "tensor.dot_general": (0, 1), "tensor.cumsum": (0,), "tensor.scatter_add": (0, 2),
        "tensor.put_along_add": (0, 2), "tensor.fold_windows": (0,), "tensor.reduce_prod": (0,), "tensor.cumprod": (0,)}


class Disturbed(Interpreter):
    """The f64 shadow with every inexact op's results moved by a random part of what its row allows."""

    def __init__(self, module: Module, seed: int):
        super().__init__(module, dtype_shadow="f64")
        self.random = random.Random(seed)

    def run_op(self, op: Op, operands: list[Array], env) -> list[Array]:
        out = super().run_op(op, operands, env)
        row = OPS[op.name]
        if row.exact or op.regions or not op.results or not op.results[0].type.dtype.is_float or op.name in ("func.call", "tensor.fused"):
            return out
        bounds = self._bounds(op, row, operands, out[0])
        moved = [y + self.random.choice((-1, 1)) * self.random.uniform(0.5, 1) * b for y, b in zip(out[0].data, bounds)]
        return [Array(out[0].dtype, out[0].shape, moved), *out[1:]]

    def _bounds(self, op: Op, row, operands: list[Array], y: Array):
        unit = eps(op.results[0].type.dtype)
        if op.name in SUMS:
            size = [Array(a.dtype, a.shape, [abs(v) for v in a.data]) if i in SUMS[op.name] else a for i, a in enumerate(operands)]
            sums = super().run_op(op, size, {})[0].data
            n = max(1, sum(len(operands[i].data) for i in SUMS[op.name]) // max(1, len(y.data)))
            return [unit * (1 + math.sqrt(n)) * s for s in sums]
        if op.name.startswith("nn."):                      # their results near 0 are off by ulps of what they are made from
            size = max((abs(v) for v in operands[0].data), default=0.0) + 1
            return [unit * row.ulp * (abs(v) + size) for v in y.data]
        return [unit * row.ulp * abs(v) for v in y.data]


def element_tolerances(module: Module, name: str, args: list[np.ndarray], runs: int = 8, factor: float = 4.0) -> list:
    """An absolute tolerance for every element of every result (0 for integers and bools).

    It is wide only where the program is steep: an element's neighbours lend it nothing.
    """
    results = Interpreter(module).call(name, args)
    plain = Interpreter(module, dtype_shadow="f64").call(name, args)
    moved = [np.zeros(r.shape) for r in results]
    with np.errstate(invalid="ignore", over="ignore"):
        for other in (results, *(Disturbed(module, seed).call(name, args) for seed in range(runs))):
            for most, o, p in zip(moved, other, plain):
                if dtype_of(o.dtype).is_float:
                    by = np.abs(o.astype(np.float64) - p)
                    np.maximum(most, np.where(np.isfinite(by), by, 0.0), out=most)
        return [factor * (most + eps(dtype_of(r.dtype)) * np.where(np.isfinite(r), np.abs(r.astype(np.float64)), 0.0))
                if dtype_of(r.dtype).is_float else 0.0 for most, r in zip(moved, results)]
