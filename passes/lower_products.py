"""Contractions, alone or with elementwise ops on their results (a fused group of kind "product"): one loop.contract each.

Sums of 16-bit floats and small integers are kept in f32 and i32: rounding to the result's dtype is the first op of the epilogue. The
buffer the sums are kept in is that of one of the group's results where the epilogue does not read it, else a temporary.
"""
from __future__ import annotations

from ..compiler.ir.core import Op, Value
from ..compiler.ir.types import DType, ScalarType, TensorType, accumulator, i32, row_major
from .fuse_graph import is_product, small_contraction
from .lower_buffers import Host, Storage
from .lower_elemental import Elements, Index
from .lower_kernel import Kernel
from .lower_kernels import _store

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def dot_general(body, op: Op, pos: int) -> None:
    """A dot_general that stands alone."""
    if small_contraction(op):
        body.group([op], [op.result], pos, body.leaf, op.loc)
    elif sums_of(op.result.type.dtype) is not op.result.type.dtype:
        body.group([op], [op.result], pos, body.leaf, op.loc)         # with the rounding as its epilogue
    else:
        x, y = op.operands
        left, right = body.in_memory(x, op.loc), body.in_memory(y, op.loc)
        place = body.product_place(op.result, pos, op.loc)
        body.env[op.result] = place
        places, text = joined([place, left, right], letters(op))
        _append(body.host, places, text, (), op.loc)


def sums_of(dtype: DType) -> DType:
    """What a contraction with results of `dtype` keeps its sums in."""
    return i32 if dtype.is_int and dtype.bits < 32 else accumulator(dtype)


def root_product(ops: list[Op]) -> Op | None:
    """The contraction among a group's ops that makes it a group of kind "product"."""
    return next((op for op in ops if is_product(op)), None)


def product_kernel(host: Host, dot: Op, operands: list[Storage], group, read: set[Value], temporary) -> Op:
    """The loop.contract of a group around `dot`, whose operands lie in `operands`; its region does the rest of the group.
    `read`: the memory that anything in the group reads."""
    sums = sums_of(dot.result.type.dtype)
    outputs = [(v, place) for v, places in group.outputs for place in places]
    kept = next(((v, p) for v, p in outputs if v.type.dtype is sums and p.contiguous and p.buffer not in read), None)
    place = kept[1] if kept else temporary(TensorType(sums, dot.result.type.shape))
    place = Storage(place.buffer, place.offset, dot.result.type.shape, row_major(dot.result.type.shape))
    places, text = joined([place, *operands], letters(dot))
    k = Kernel(list(places[0].shape), group.loc)
    value = Value(ScalarType(sums), k.root.block)
    g = Elements(k, group.producers, group.leaf)
    index = Index(places[0].shape, tuple(k.indices))

    def result(where: Index) -> Value:
        if k.resolve(where, index.shape) != index.at:
            raise ValueError("an epilogue reads the product at another position than its own")
        return g.cast(value, dot.result.type.dtype)

    g.partial[dot.result] = result
    values = [g.at(v, index) for v, _ in outputs]
    yields = []
    for (v, p), x in zip(outputs, values):
        if kept and p is kept[1]:
            yields.append(x)
        else:
            _store(k, host, x, p, index, v.owner.loc if isinstance(v.owner, Op) else group.loc, k.root)
    k.root.block.append(Op("scf.yield", yields, {}, (), (), group.loc))
    k.root.block.args.insert(0, value)
    return _append(host, places, text, (k.root.block,), group.loc)


def letters(op: Op) -> list[str]:
    """Index letters of the result, lhs and rhs of a dot_general."""
    a = op.attrs
    fresh = iter(LETTERS)
    names: dict[tuple[int, int], str] = {}
    for i, j in [*zip(a["lhs_batch"], a["rhs_batch"]), *zip(a["lhs_contract"], a["rhs_contract"])]:
        names[0, i] = names[1, j] = next(fresh)
    ranks = [v.type.rank for v in op.operands]
    free = [[d for d in range(rank) if (side, d) not in names] for side, rank in enumerate(ranks)]
    for side in (0, 1):
        for d in free[side]:
            names[side, d] = next(fresh)
    left, right = ("".join(names[side, d] for d in range(rank)) for side, rank in enumerate(ranks))
    return ["".join(names[0, d] for d in a["lhs_batch"]) + "".join(names[0, d] for d in free[0]) + "".join(names[1, d] for d in free[1]), left, right]


def joined(places: list[Storage], text: list[str]) -> tuple[list[Storage], list[str]]:
    """Without dims of size 1, and with letters that are neighbours without a gap wherever they occur as one."""
    for i in range(3):
        keep = [d for d, n in enumerate(places[i].shape) if n != 1]
        text[i] = "".join(text[i][d] for d in keep)
        p = places[i]
        places[i] = Storage(p.buffer, p.offset, tuple(p.shape[d] for d in keep), tuple(p.strides[d] for d in keep))
    changed = True
    while changed:
        changed = False
        for i in range(3):
            for p in range(len(text[i]) - 1):
                if _joinable(places, text, text[i][p], text[i][p + 1]):
                    _join(places, text, text[i][p], text[i][p + 1])
                    changed = True
                    break
            if changed:
                break
    return places, text


def _append(host: Host, places: list[Storage], text: list[str], regions, loc) -> Op:
    return host.op("loop.contract", [host.buffer(p) for p in places],
                   {"out": text[0], "lhs": text[1], "rhs": text[2], "accumulate": False}, regions, loc)


def _joinable(places, text, u: str, v: str) -> bool:
    for s, t in zip(places, text):
        if (u in t) != (v in t):
            return False
        if u in t:
            p = t.index(u)
            if t[p + 1:p + 2] != v or s.strides[p] != s.strides[p + 1] * s.shape[p + 1]:
                return False
    return True


def _join(places, text, u: str, v: str) -> None:
    for i, (s, t) in enumerate(zip(places, text)):
        if u in t:
            p = t.index(u)
            places[i] = Storage(s.buffer, s.offset, s.shape[:p] + (s.shape[p] * s.shape[p + 1],) + s.shape[p + 2:], s.strides[:p] + s.strides[p + 1:])
            text[i] = t[:p + 1] + t[p + 2:]
