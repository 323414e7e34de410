"""What two correct ways of running a program may differ by: the yardstick of the differential tests.

A backend may choose how it computes an inexact op within what the op's row states (so many ulp; n eps sum |x| for a sum). What that
does to a result depends on the program. So the definition is run in an f64 shadow a few times, each time with every inexact op's
result pushed off by a random part of its stated bound: what the results move by, and what rounding to their dtypes itself moved
them by, is the tolerance. Programs that jump right after inexact ops have no such bound: generate.py makes none.
"""
from __future__ import annotations

import math
import random

import numpy as np
from engram.compiler.ir import Module, Op
from engram.compiler.ir.types import dtype_of
from engram.compiler.ops import OPS
from engram.interp.compare import assert_close, eps
from engram.interp.interpreter import Interpreter
from engram.interp.numerics import Array

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


def tolerances(module: Module, name: str, args: list[np.ndarray], results: list[np.ndarray], runs: int = 3, factor: float = 4.0) -> list:
    """One absolute tolerance per result of the interpreter's `results`; 0 for integers and bools."""
    plain = Interpreter(module, dtype_shadow="f64").call(name, args)
    others = [Disturbed(module, seed).call(name, args) for seed in range(runs)]
    out = []
    for i, (r, s) in enumerate(zip(results, plain)):
        dt = dtype_of(r.dtype)
        if not dt.is_float:
            out.append(0.0)
            continue
        wide = r.astype(np.float64)
        fine = np.isfinite(wide) & np.isfinite(s)
        size = float(np.max(np.abs(wide[fine]), initial=0.0))
        moved = max(float(np.max(np.abs(x - s)[fine], initial=0.0)) for x in (wide, *(o[i] for o in others)))
        out.append(factor * (moved + eps(dt) * size) + float(np.finfo(np.float32).tiny))
    return out


def agree(got: list, want: list[np.ndarray], atol: list, exact: list[bool], what: str) -> None:
    """Results within their tolerances, those of exact programs (and integers, bools) bit for bit."""
    assert len(got) == len(want)
    for i, (g, w) in enumerate(zip(got, want)):
        g = np.asarray(g)
        assert g.dtype == w.dtype, f"{what}: result {i} is {g.dtype}, expected {w.dtype}"
        if exact[i] or not dtype_of(w.dtype).is_float:
            assert_close(g, w, bits_exact=True, what=f"{what}: result {i}")
        else:
            assert_close(g, w, atol=atol[i], what=f"{what}: result {i} (tolerance {atol[i]:.3g})")
