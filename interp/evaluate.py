"""Evaluates one op on NumPy arrays: what constant folding is handed by the pipeline. No regions, no calls."""
from __future__ import annotations

import numpy as np

from ..compiler.ir.core import Op
from .interpreter import Evaluator
from .numerics import from_numpy, to_numpy

_EVALUATOR = Evaluator()


def evaluate_op(op: Op, operands: list[np.ndarray]) -> list[np.ndarray]:
    """The results of `op` for operand arrays of its operands' dtypes and shapes.

    RuntimeError_ when the op fails for them (a division by zero, an index out of range): such an op must not be folded.
    NotImplementedError for ops that are not computations on values.
    """
    args = [from_numpy(np.asarray(a), v.type.dtype) for a, v in zip(operands, op.operands, strict=True)]
    return [to_numpy(a) for a in _EVALUATOR.evaluate(op, args)]
