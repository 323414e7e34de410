"""attention: finds softmax(scale q k^T, masked) v in what users write and makes it one tensor.attention.

Before and after: nn stage, learning not yet derived (the op's gradient keeps one number per query; that of the parts keeps the
probabilities, [queries, keys]). Found are a scale by a number before or after the mask, and no mask, `causal`'s or that of a run-time
length. Anything else (dropout, other masks, probabilities used elsewhere) stays as it is.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir.builder import Builder
from ..compiler.ir.core import Block, Module, Op, Value, rewrite, uses
from ..compiler.ir.types import i64


@dataclass(frozen=True)
class Attention:
    """Valid IR before and after. Not exact: scores are scaled by a product where the program divides, and sums regroup."""

    name: ClassVar[str] = "attention"
    exact: ClassVar[bool] = False

    def apply(self, module: Module) -> Module:
        for f in module.funcs.values():
            if any(op.name == "nn.softmax" for op in f.walk()):
                used = uses(f.body)
                rewrite(f.body, lambda op, out, used=used: _attention(op, out, used))
                prune_unused(f.body)
        return module


def prune_unused(block: Block) -> None:
    """Drops scores, masks and probabilities that nobody reads any more."""
    from .fuse_rewrites import remove_unused
    remove_unused(block)


def _attention(op: Op, out: Block, used: dict[Value, list[Op]]) -> list[Value] | None:
    if op.name != "tensor.dot_general" or op.result.type.dtype.name not in ("f32", "f64"):
        return None
    p, v = op.operands
    soft = _made(p, "nn.softmax")
    n = p.type.rank - 2
    if soft is None or n < 0 or soft.attrs["dim"] != n + 1 or len(used[p]) != 1 or not _one_free(op) or list(op.attrs["lhs_contract"]) != [n + 1] \
            or n in op.attrs["lhs_batch"]:
        return None
    scores, scale, mask = _scores(soft.operands[0])
    if scores is None or scores.type.rank != n + 2 or not _one_free(scores.owner) or 0 in p.type.shape or 0 in v.type.shape:
        return None
    a = scores.owner.attrs
    q, k = scores.owner.operands
    if 0 in q.type.shape:
        return None
    found = _mask(mask, scores.type.shape[-2:])
    if found is None:
        return None
    causal, length = found
    b = Builder(out, op.loc)
    q = _ordered(b, q, a["lhs_batch"], a["lhs_contract"], last=True)
    k = _ordered(b, k, a["rhs_batch"], a["rhs_contract"], last=True)
    # the probabilities' batch dims are in order; v's follow them
    pairs = dict(zip(op.attrs["lhs_batch"], op.attrs["rhs_batch"]))
    v = _ordered(b, v, [pairs[d] for d in range(n)], op.attrs["rhs_contract"], last=False)
    o = b.op("tensor.attention", [q, k, v, *([length] if length is not None else [])], {"causal": causal, "scale": scale}).results[0]
    return [b.transpose(o, [*op.attrs["lhs_batch"], n, n + 1])]


def _made(v: Value, name: str) -> Op | None:
    return v.owner if isinstance(v.owner, Op) and v.owner.name == name else None


def _one_free(op: Op) -> bool:
    """A contraction over one dim with one free dim a side; the others are batch dims."""
    a = op.attrs
    return len(a["lhs_contract"]) == 1 and all(x.type.rank == len(a["lhs_batch"]) + 2 for x in op.operands)


def _ordered(b: Builder, x: Value, batch, contract, last: bool) -> Value:
    """x with its batch dims first, then the free and the contracted dim (`last`) or the other way round."""
    free = [d for d in range(x.type.rank) if d not in batch and d not in contract]
    return b.transpose(x, [*batch, *((*free, *contract) if last else (*contract, *free))])


def _number(v: Value) -> float | None:
    """The number in every element."""
    while isinstance(v.owner, Op) and v.owner.name in ("tensor.broadcast", "tensor.reshape"):
        v = v.owner.operands[0]
    c = _made(v, "tensor.constant")
    return None if c is None or hasattr(c.attrs["value"], "shape") else c.attrs["value"]


def _scores(v: Value) -> tuple[Value | None, float, Value | None]:
    """(the contraction q k^T, its scale, the mask) of a softmax's operand."""
    scale, mask = 1.0, None
    while True:
        op = v.owner
        if not isinstance(op, Op):
            return None, scale, mask
        if op.name == "tensor.dot_general":
            return v, scale, mask
        if op.name in ("tensor.mul", "tensor.div"):
            x, y = op.operands
            c = _number(y)
            if c is None and op.name == "tensor.mul":
                x, y, c = y, x, _number(x)
            if c is None or not 0 < c < float("inf"):      # a negative scale would turn the mask's -inf around
                return None, scale, mask
            v, scale = x, scale * c if op.name == "tensor.mul" else scale / c
        elif op.name == "tensor.select" and mask is None and _number(op.operands[2]) == -float("inf"):
            mask, v, _ = op.operands
        else:
            return None, scale, mask


def _mask(mask: Value | None, shape) -> tuple[bool, Value | None] | None:
    """(causal, length) that a mask means; None when it means something else."""
    if mask is None:
        return False, None
    if (spread := _made(mask, "tensor.broadcast")) is not None:
        rank = mask.type.rank
        if list(spread.attrs["dims"]) != [rank - 2, rank - 1] or tuple(spread.operands[0].type.shape) != tuple(shape):
            return None
        mask = spread.operands[0]
    test = _made(mask, "tensor.compare")
    if test is None or tuple(mask.type.shape) != tuple(shape) or not _is_iota(test.operands[0], 1):
        return None
    t, s = shape
    constant, rows, rest = _sum(test.operands[1])
    if test.attrs["predicate"] == "lt" and rows == 0:              # key < length
        return (False, rest[0]) if len(rest) == 1 and constant == 0 else None
    if test.attrs["predicate"] != "le" or rows != 1:
        return None
    if not rest:                                                   # key <= query + keys - queries
        return (True, None) if constant == s - t else None
    return (True, rest[0]) if len(rest) == 1 and constant == -t else None


def _is_iota(v: Value, dim: int) -> bool:
    op = _made(v, "tensor.iota")
    return op is not None and op.attrs["dim"] == dim and op.attrs["dtype"] is i64


def _sum(v: Value) -> tuple[int, int, list[Value]]:
    """v as constant + (how often) the number of the row + single i64 numbers."""
    op = v.owner
    if isinstance(op, Op):
        if op.name in ("tensor.add", "tensor.sub"):
            (a, m, x), (c, k, y) = (_sum(u) for u in op.operands)
            if op.name == "tensor.add":
                return a + c, m + k, x + y
            if not y:
                return a - c, m - k, x
        elif _is_iota(v, 0):
            return 0, 1, []
        elif (c := _number(v)) is not None:
            return c, 0, []
        elif op.name == "tensor.broadcast" and op.operands[0].type.rank == 0:
            return 0, 0, [op.operands[0]]
    return 0, 0, [v] * 2                                           # nothing that a mask is made of
