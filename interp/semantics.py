"""Every op that has semantics of its own, by name; what has none, and why; and where the rest is interpreted."""
from __future__ import annotations

from ..compiler import ops  # noqa: F401  (registers the op table)
from ..compiler.ir.opdef import LOOP, OPS
from . import semantics_attention, semantics_packed, semantics_window  # noqa: F401  (define their ops in TENSOR and NN)
from .semantics_nn import NN
from .semantics_random import RANDOM
from .semantics_scalar import BOOL, FLOAT, FLOAT_STEPS, INT
from .semantics_tensor import TENSOR, elementwise

# fn(ev, op, operand Arrays) -> one list of elements per result. `ev`: round(elements, dtype), shadow.
SEMANTICS: dict = {
    **{f"tensor.{name}": elementwise for name in {*FLOAT, *FLOAT_STEPS, *INT, *BOOL}}, **TENSOR, **NN, **RANDOM,
}

# Interpreted by interpreter.py, which runs their regions and callees.
CONTROL = frozenset({"func.call", "func.return", "scf.yield", "scf.if", "scf.while", "scf.scan", "tensor.fused", "autodiff.custom"})

# Interpreted by loops.py.
LOOPS = frozenset(name for name, row in OPS.items() if LOOP in row.stages and row.name.split(".")[0] in ("loop", "scalar"))

# Ops that mean a transformation of the program, not a computation on values.
NO_SEMANTICS: dict[str, str] = {
    "autodiff.gradient": "the derivative of a program, not of a value: the pass grad replaces it by ordinary ops",
    "autodiff.vmap": "a function applied along a new dim: the pass vmap replaces it by ordinary ops",
    "learn.update": "a rule applied to a layer: the pass plasticity replaces it by a call, once locality is proven",
    "learn.local_gradient": "the derivative of a local loss: the pass plasticity derives it",
}
