"""The table of operations that programs know without an import, and the scope that holds them.

An operation is a Python function `f(cx, ...)` whose parameters have the names users write (PyTorch's and NumPy's); the sibling
modules builtins_*.py register theirs with `@builtin`.
"""
from __future__ import annotations

import functools
import math
from collections.abc import Callable

from ..compiler.ir import DTYPES
from .values import TRAINING, Builtin, QuantType, Scope

TABLE: dict[str, Builtin] = {}


def builtin(*names: str, draws: bool = False) -> Callable:
    """Registers an operation under one or more names; `draws`: it may use the type an initialiser is wanted in."""
    def add(f: Callable) -> Callable:
        for n in names or (f.__name__.rstrip("_"),):
            TABLE[n] = Builtin(n, f, draws)
        return f
    return add


@functools.cache
def builtin_scope() -> Scope:
    """The outermost scope of every program."""
    from . import (  # noqa: F401
        builtins_activation,
        builtins_cheap,
        builtins_conv,
        builtins_fn,
        builtins_index,
        builtins_loss,
        builtins_make,
        builtins_math,
        builtins_matrix,
        builtins_nn,
        builtins_norm,
        builtins_reduce,
        builtins_resize,
        builtins_shape,
    )
    scope = Scope(None, dict(TABLE))
    scope.names.update(DTYPES)
    scope.names.update(pi=math.pi, inf=math.inf, nan=math.nan, e=math.e, training=TRAINING,
                       ternary=QuantType("ternary"), int8=QuantType("int8"), int4=QuantType("int4"), pow2=QuantType("pow2"))
    return scope
