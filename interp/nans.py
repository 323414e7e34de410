"""Which op made the first NaN: the question after a training run has gone wrong."""
from __future__ import annotations

import numpy as np

from ..compiler.ir.core import Module, Op
from ..compiler.ir.types import BufferType
from .interpreter import Interpreter


class _Found(Exception):
    pass


def first_nan(module: Module, name: str, args: list[np.ndarray]) -> Op | None:
    """The first op, in the order of running, that gives a NaN when @name (of a tensor stage) is called; None when there is none.

    Its `loc` is the user's line. A NaN among the arguments is not looked for: the first op that takes it is named.
    """
    if any(isinstance(v.type, BufferType) for v in module.funcs[name].args):
        raise ValueError("first_nan runs tensor-stage modules, not loops over buffers")

    def look(op, results):
        if any(r.dtype.is_float and any(v != v for v in r.data) for r in results):
            raise _Found(op)

    try:
        Interpreter(module, on_op=look).call(name, args)
    except _Found as found:
        return found.args[0]
    return None
