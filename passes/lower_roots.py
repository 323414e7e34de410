"""Ops that are kernels of their own: running sums, random bits, padding, concatenation, block updates."""
from __future__ import annotations

from ..compiler.ir.core import Op, Value
from ..compiler.ir.dims import product
from .lower_buffers import Splat, Storage, shifted
from .lower_elemental import Elements, Index, accumulator
from .lower_kernel import I64, Kernel
from .lower_kernels import _emit, _start, _store
from .lower_products import dot_general
from .lower_rules import philox, slice_starts
from .lower_sort import sort


def start(body, op: Op, shape) -> tuple[Kernel, Elements, tuple[Value, ...]]:
    """A kernel over `shape` that can generate elements of op's operands."""
    k, at = _start(tuple(shape), op.loc)
    return k, Elements(k, {}, body.leaf), at


# ---- packed codes -------------------------------------------------------------------------------------------------------


def pack(body, op: Op, pos: int) -> None:
    values = body.in_memory(op.operands[0], op.loc)
    place = body.env[op.result] = body.destination(op.result, pos, op.loc)
    if op.result.type.numel:
        body.host.op("loop.pack", [body.host.buffer(place), body.host.buffer(values)], dict(op.attrs), (), op.loc)


def dot_packed(body, op: Op, pos: int) -> None:
    """Rows are read where they are, windows too, if what is summed over comes in runs of neighbours."""
    x, packed = op.operands
    n, lead = op.attrs["n"], x.type.rank - op.attrs.get("dims", 1)
    at = op.attrs.get("at", lead)
    rows, codes = body.in_memory(x, op.loc), body.contiguous(packed, op.loc)
    if rows.strides[-1] != 1:
        rows = body.contiguous(x, op.loc)
    place = body.env[op.result] = body.destination(op.result, pos, op.loc)
    if product(x.type.shape[:lead]) and n:
        columns, steps = place.strides[at], (*place.strides[:at], *place.strides[at + 1:])
        m = _evenly(rows.shape[:lead], rows.strides, steps) or [(1, 0, 0)]
        k = _evenly(rows.shape[lead:], rows.strides[lead:])
        pieces = [Storage(place.buffer, place.offset, (*(d[0] for d in m), n), (*(d[2] for d in m), columns)),
                  Storage(rows.buffer, rows.offset, tuple(d[0] for d in m + k), tuple(d[1] for d in m + k))]
        body.host.op("loop.contract_packed", [*map(body.host.buffer, pieces), body.host.buffer(codes)],
                     {"format": op.attrs["format"], **({"dims": len(k)} if len(k) > 1 else {})}, (), op.loc)


def _evenly(shape, *strides) -> list[tuple[int, ...]]:
    """(size, strides..) without dims of size 1, and with neighbours that step as one as one."""
    out: list[tuple[int, ...]] = []
    for n, *s in zip(shape, *strides):
        if n == 1:
            continue
        if out and all(p == q * n for p, q in zip(out[-1][1:], s)):
            out[-1] = (out[-1][0] * n, *s)
        else:
            out.append((n, *s))
    return out


# ---- updates of a copy ---------------------------------------------------------------------------------------------------


def updated(body, op: Op, pos: int) -> Storage:
    """Memory that holds operand 0 and that op may change: its own where it dies here, else a copy. The result lives there."""
    x = op.operands[0]
    own = None if op.result in body.wanted else body.reusable(x, op, 0, pos)
    if own is None:
        over = body.shown(x) if body.unused_by(x, op, (0,)) else None
        own = body.destination(op.result, pos, op.loc, over)
        source = body.env[x]
        if source != own:
            body.written(source, own, op.loc)
    body.env[op.result] = own
    return own


def dynamic_update_slice(body, op: Op, pos: int) -> None:
    """The copy (or x itself), then the block."""
    x, u = op.operands[:2]
    place = updated(body, op, pos)
    k, g, at = start(body, op, u.type.shape)
    starts = slice_starts(g, op, op.operands[2:], x.type.shape, u.type.shape)
    if u.type.numel == 0:
        k, g, _ = start(body, op, ())
        slice_starts(g, op, op.operands[2:], x.type.shape, u.type.shape)
    else:
        value = g.at(u, Index(u.type.shape, at))
        k.emit("loop.store", [value, body.host.buffer(place), *(k.add(s, i) for s, i in zip(starts, at))], None, op.loc, k.root)
    _emit(k, body.host)


# ---- running sums ----------------------------------------------------------------------------------------------------------


def cumulative(body, op: Op, pos: int) -> None:
    """Parallel over the other dims, a loop that carries the sum along dim."""
    x, d = op.operands[0], op.attrs["dim"]
    place = body.env[op.result] = body.destination(op.result, pos, op.loc)
    if x.type.numel == 0:
        return
    shape = x.type.shape
    dtype, kind = accumulator(x.type.dtype), op.name.removeprefix("tensor.cum")
    k, g, at = start(body, op, shape[:d] + shape[d + 1:])
    first = k.constant(0 if kind == "sum" else 1, dtype)
    scope = k.open(k.root, [I64, first.type])
    j, carried = scope.block.args
    i = k.sub(shape[d] - 1, j) if op.attrs["reverse"] else j
    index = Index(shape, (*at[:d], i, *at[d:]))
    e = g.cast(g.at(x, index), dtype)
    total = k.emit("scalar.add" if kind == "sum" else "scalar.mul", [carried, e], None, op.loc, scope).result
    _store(k, body.host, g.cast(total, x.type.dtype), place, index, op.loc, scope)
    k.close(scope, "loop.for", [k.index(0), k.index(shape[d]), first], {"step": 1}, [total], op.loc)
    _emit(k, body.host)


# ---- padding, concatenation, random bits, assertions ---------------------------------------------------------------------------


def pad(body, op: Op, pos: int) -> None:
    """Fill, then the elements in their places: both kernels store at affine positions."""
    x, fill = op.operands
    out = op.result.type
    place = body.env[op.result] = body.destination(op.result, pos, op.loc)
    if out.numel == 0:
        return
    first, counts, offset, strides = [], [], 0, []
    for d, n in enumerate(x.type.shape):
        low, step = op.attrs["low"][d], op.attrs["interior"][d] + 1
        lo = max(0, -(low // step))
        hi = min(n - 1, (out.shape[d] - 1 - low) // step)
        first.append(lo)
        counts.append(max(hi - lo + 1, 0))
        offset += (low + lo * step) * place.strides[d]
        strides.append(place.strides[d] * step)
    if product(counts) != out.numel:
        k, g, at = start(body, op, out.shape)
        _store(k, body.host, g.item(fill), place, Index(out.shape, at), op.loc, k.root)
        _emit(k, body.host)
    if product(counts):
        inner = Storage(place.buffer, shifted(body.host, place, offset), tuple(counts), tuple(strides))
        k, g, at = start(body, op, counts)
        e = g.at(x, Index(x.type.shape, tuple(k.add(i, lo) for i, lo in zip(at, first))))
        _store(k, body.host, e, inner, Index(tuple(counts), at), op.loc, k.root)
        _emit(k, body.host)


def concat(body, op: Op, pos: int) -> None:
    """Each operand into its part of the result, unless it was made there."""
    place = body.env[op.result] = body.concats.get(op) or body.destination(op.result, pos, op.loc)
    d, at = op.attrs["dim"], 0
    for x in op.operands:
        n = x.type.shape[d]
        if x.type.numel:
            part = Storage(place.buffer, shifted(body.host, place, at * place.strides[d]), x.type.shape, place.strides)
            if body.env[x] != part:
                body.written(body.env[x], part, op.loc)
        at += n


def bits(body, op: Op, pos: int) -> None:
    """One Philox call for four words; what is left of the last four in a kernel of its own."""
    key, out = op.operands[0], op.result.type
    place = body.env[op.result] = body.destination(op.result, pos, op.loc)
    lead = key.type.shape
    n = product(out.shape[len(lead):])
    if out.numel == 0:
        return
    for first, count, words in ((0, n // 4, 4), (n // 4, 1, n % 4)):
        if count == 0 or words == 0:
            continue
        k, g, at = start(body, op, (*lead, count))
        key_at = g.at(key, Index(lead, at[:-1]))
        got = philox(g, key_at, k.add(at[-1], first), 0, op)
        for w in range(words):
            if words == 4 and n % 4 == 0:
                index = Index((*lead, count, 4), (*at, k.index(w)))
            else:
                index = Index((*lead, n), (*at[:-1], k.add(k.mul(k.add(at[-1], first), 4), k.index(w))))
            _store(k, body.host, got[w], place, index, op.loc, k.root)
        _emit(k, body.host)


def assertion(body, op: Op, pos: int) -> None:
    place = body.env[op.operands[0]]
    if isinstance(place, Splat) and place.value is True:
        return
    k, g, _ = start(body, op, ())
    cond = g.item(op.operands[0])
    k.emit("loop.assert", [cond, k.index(0)], {"message": op.attrs["message"]}, op.loc, k.root)
    _emit(k, body.host)


ROOTS = {
    "tensor.pack": pack, "tensor.dot_packed": dot_packed,
    "tensor.dot_general": dot_general,
    "tensor.dynamic_update_slice": dynamic_update_slice, "tensor.cumsum": cumulative, "tensor.cumprod": cumulative, "tensor.sort": sort,
    "tensor.pad": pad, "tensor.concat": concat, "random.bits": bits, "tensor.assert": assertion,
}
