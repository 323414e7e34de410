"""What is done to the result of a loop.contract (its region) as ops of their own, for code that has no better place for it."""
from __future__ import annotations

from ..compiler.ir.builder import Builder
from ..compiler.ir.core import Block, Op, Value, clone_op
from ..compiler.ir.types import ScalarType, i64


def split_epilogue(op: Op) -> tuple[Op, Op]:
    """The contraction without its region, and a loop.parallel that loads the sums back and does what the region does."""
    out, shape = op.operands[0], op.operands[0].type.shape
    body = Block([ScalarType(i64)] * max(len(shape), 1))
    b = Builder(body, op.loc)
    value = b.op("loop.load", [out, *body.args[:len(shape)]]).result
    inline_epilogue(b, op, value, body.args[:len(shape)])
    b.op("scf.yield", [])
    plain = Op(op.name, op.operands, op.attrs, (), (), op.loc)
    return plain, Op("loop.parallel", [], {"extents": list(shape) or [1]}, (), [body], op.loc)


def inline_epilogue(b: Builder, op: Op, value: Value, indices: list[Value], place: list[Value] | None = None) -> None:
    """The region's ops for the element at `indices`, whose sum is `value`, and the store of what it yields to `place` (a buffer
    and indices; else the element of the result)."""
    place = place or [op.operands[0], *indices]
    if not op.regions:
        b.op("loop.store", [value, *place])
        return
    region = op.regions[0]
    env = dict(zip(region.args, [value, *indices]))
    b.block.ops.extend(clone_op(o, env) for o in region.ops[:-1])
    for v in region.terminator.operands:
        b.op("loop.store", [env.get(v, v), *place])
