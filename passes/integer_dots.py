"""integer-dots: products of i8 and i16 numbers that are summed in i32 become products with packed codes.

`i32(x) @ i32(w)` of narrow x and w (at this stage also dot_general with dtype = i32) says what is meant: numbers of 8 or 16 bits whose products are summed in 32. Neither is widened in memory;
the right operand is packed (compiler/ops/packed.py) and the backends use their instructions for small products.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir.builder import Builder
from ..compiler.ir.core import Block, Module, Op, Value, rewrite
from ..compiler.ir.dims import product
from ..compiler.ir.types import TensorType, i8, i16, i32
from ..compiler.ops.packed import FORMATS
from .cost import SMALL_CONTRACTION


@dataclass(frozen=True)
class IntegerDots:
    """Before and after: tensor stage. Keeps every bit."""

    name: ClassVar[str] = "integer-dots"
    exact: ClassVar[bool] = True

    def apply(self, module: Module) -> Module:
        for f in module.funcs.values():
            if any(op.name == "tensor.dot_general" and op.result.type.dtype is i32 for op in f.walk()):
                rewrite(f.body, _packed)
        return module


def _narrow(v: Value) -> Value | None:
    """The i8 or i16 tensor that v is, or widens."""
    if v.type.dtype in (i8, i16):
        return v
    widened = isinstance(v.owner, Op) and v.owner.name == "tensor.cast" and v.owner.operands[0].type.dtype in (i8, i16)
    return v.owner.operands[0] if widened else None


def _packed(op: Op, out: Block) -> list[Value] | None:
    a = op.attrs
    if op.name != "tensor.dot_general" or op.result.type.dtype is not i32 or a["lhs_batch"] or len(a["lhs_contract"]) != 1:
        return None
    b = Builder(out, op.loc)
    x, w = (_through(b, v) for v in op.operands)
    if x is None or w is None or w.type.rank not in (1, 2) or x.type.rank < 1:
        return None
    (d,), (c,) = a["lhs_contract"], a["rhs_contract"]
    k = x.type.shape[d]
    if w.type.rank == 1 or product(op.result.type.shape) * k <= SMALL_CONTRACTION:
        return None
    fmt = FORMATS["int8" if x.type.dtype is i8 and w.type.dtype is i8 else "int16"]
    dtype = fmt.memory[1]
    x = b.transpose(b.cast(x, dtype), [*(i for i in range(x.type.rank) if i != d), d])
    codes = b.op("tensor.pack", [b.transpose(b.cast(w, dtype), [c, 1 - c])], {"format": fmt.name}).result
    if more := -k % fmt.group:
        none = [0] * x.type.rank
        x = b.op("tensor.pad", [x, b.constant(0, TensorType(dtype, ()))], {"low": none, "high": [*none[1:], more], "interior": none}).result
    return [b.op("tensor.dot_packed", [x, codes], {"format": fmt.name, "n": op.result.type.shape[-1]}).result]


def _through(b: Builder, v: Value) -> Value | None:
    """The narrow tensor that v widens; a transpose is done to it instead."""
    moves: list[Op] = []
    while isinstance(v.owner, Op) and v.owner.name == "tensor.transpose":
        moves.append(v.owner)
        v = v.owner.operands[0]
    x = _narrow(v)
    for op in reversed(moves):
        x = None if x is None else b.transpose(x, op.attrs["perm"])
    return x
