"""Windows that are put side by side (the gradient of a pool): their elements are written straight to where they belong.

tensor.fold_windows of windows that neither overlap nor leave gaps only rearranges elements. When nothing else uses the value that it folds, and
a window is small enough for its stores to be unrolled, that value is a strided view of the result's memory, and the fold is no kernel.
"""
from __future__ import annotations

from ..compiler.ir.core import Op, Value
from ..compiler.ir.dims import product
from .cost import UNROLLED_STORES
from .lower_buffers import Storage


def fold_of(op: Op) -> Op | None:
    """The fold_windows that op is, maybe after a reshape (one group of the two); None for anything else."""
    inner = op.regions[0].ops[:-1] if op.name == "tensor.fused" else [op]
    if inner[-1:] and inner[-1].name == "tensor.fold_windows" and [o.name for o in inner[:-1]] in ([], ["tensor.reshape"]) and len(op.results) == 1:
        return inner[-1]
    return None


def unfolded(body, v: Value, pos: int, loc) -> Storage | None:
    """Where v, which a group of rows computes, is to be written so that the fold that is its only use is done; None where that does not apply."""
    users = body.users.get(v, ())
    if v in body.wanted or len(users) != 1 or (fold := fold_of(users[0])) is None:
        return None
    a, shape = fold.attrs, fold.operands[0].type.shape
    n = len(a["size"])
    counts = shape[len(shape) - 2 * n:len(shape) - n]
    if any(d != 1 or k != s or o * s != m for k, s, d, o, m in zip(a["size"], a["stride"], a["dilation"], counts, a["shape"])):
        return None
    made = v.owner.attrs
    if product(a["size"]) > UNROLLED_STORES or made["rows"] != len(shape) - n or tuple(made["domain"]) != tuple(v.type.shape):
        return None
    place = body.folds[users[0]] = body.destination(users[0].result, pos, loc)
    lead, at = place.strides[:len(place.strides) - n], place.strides[len(place.strides) - n:]
    return Storage(place.buffer, place.offset, shape, (*lead, *(x * s for x, s in zip(at, a["stride"])), *at))
