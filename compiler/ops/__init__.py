"""The op table: importing this package registers every row in compiler.ir.opdef.OPS."""
from ..ir.opdef import LOOP, NN, OPS, STAGES, TENSOR, OpDef, Sample, TypeMismatch  # noqa: F401
from . import (  # noqa: F401
    attention,
    contraction,
    control,
    elementwise,
    indexing,
    learn,
    loop,
    movement,
    nn,
    packed,
    packed_conv,
    random,
    reduction,
    window,
)
