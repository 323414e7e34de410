"""scatter_add and put_along_add as kernels: into memory that holds what is added to; or, for a large table of zeros, row by row.

The second way first sorts the updates by row (a counting sort, one thread's, of indices alone): then threads share the rows, each is written
once, past the caches, and the updates are read once. Updates of one destination are added in order either way: the same bits.
"""
from __future__ import annotations

from ..compiler.ir.core import Op, Value
from ..compiler.ir.types import TensorType, i64
from .cost import SORTED_REUSE, SORTED_ROW, STREAM_BYTES
from .lower_buffers import Place, Splat, Storage
from .lower_elemental import Elements, Index
from .lower_kernel import I64, Kernel
from .lower_kernels import _emit
from .lower_roots import start, updated


def scatter_add(body, op: Op, pos: int) -> None:
    """Parallel over the dims that are not indexed; the updates of one destination in order."""
    x, indices, updates = op.operands
    if body.serial and _worth_sorting(op, body.env[x]):
        return _by_row(body, op, pos)
    place, d, r = updated(body, op, pos), op.attrs["dim"], indices.type.rank
    if updates.type.numel == 0:
        return
    shape, n = x.type.shape, indices.type.numel
    k, g, at = start(body, op, shape[:d] + shape[d + 1:])
    scope = k.open(k.root)
    j = Index((n,), (scope.block.args[0],))
    i = g.at(indices, Index(indices.type.shape, k.resolve(j, indices.type.shape)))
    value = g.at(updates, Index(updates.type.shape, (*at[:d], *k.resolve(j, updates.type.shape[d:d + r]), *at[d:])))
    _accumulate(k, g, body, op, place, (*at[:d], i, *at[d:]), d, value, scope)
    k.close(scope, "loop.for", [k.index(0), k.index(n)], {"step": 1}, [], op.loc)
    _emit(k, body.host)


def put_along_add(body, op: Op, pos: int) -> None:
    x, indices, updates = op.operands
    place, d = updated(body, op, pos), op.attrs["dim"]
    if updates.type.numel == 0:
        return
    shape = indices.type.shape
    k, g, at = start(body, op, shape[:d] + shape[d + 1:])
    scope = k.open(k.root)
    where = Index(shape, (*at[:d], scope.block.args[0], *at[d:]))
    i = g.at(indices, where)
    _accumulate(k, g, body, op, place, (*at[:d], i, *at[d:]), d, g.at(updates, where), scope)
    k.close(scope, "loop.for", [k.index(0), k.index(shape[d])], {"step": 1}, [], op.loc)
    _emit(k, body.host)


def _accumulate(k: Kernel, g: Elements, body, op: Op, place: Storage, at, d: int, value: Value, scope) -> None:
    """place[at] += value where at[d] is in range; out of range is reported and adds nothing."""
    n = place.shape[d]
    i = g.cast(at[d], i64)
    ok = k.between(i, 0, n - 1)
    g.check(ok, i, f"index {{}} is out of range 0..{n}", op)
    if n == 0:
        return
    at = (*at[:d], k.clamp(i, 0, n - 1), *at[d + 1:])
    buffer = body.host.buffer(place)
    old = k.emit("loop.load", [buffer, *at], None, op.loc, scope).result
    new = k.emit("scalar.add", [old, value], None, op.loc, scope).result
    new = k.emit("scalar.select", [ok, new, old], None, op.loc, scope).result
    k.emit("loop.store", [new, buffer, *at], None, op.loc, scope)


# ---- sorted by row -------------------------------------------------------------------------------------------------------


def _worth_sorting(op: Op, x: Place) -> bool:
    """Whether op adds to zeros in a table too large for the caches, and so much that reading and writing rows of zeros again would count."""
    table, n = op.result.type, op.operands[1].type.numel
    return (isinstance(x, Splat) and x.value == 0 and op.attrs["dim"] == 0 and table.numel * table.dtype.bytes >= STREAM_BYTES
            and table.numel >= SORTED_ROW * table.shape[0] and n * SORTED_REUSE >= table.shape[0])


def _by_row(body, op: Op, pos: int) -> None:
    _, indices, updates = op.operands
    place, r = body.destination(op.result, pos, op.loc), indices.type.rank
    shape, n = op.result.type.shape, indices.type.numel
    ends, order = _sorted(body, op)
    k, g, at = start(body, op, shape)
    first, behind = (k.emit("loop.load", [body.host.buffer(ends), k.add(at[0], i)], None, op.loc).result for i in (0, 1))
    zero = k.constant(0, op.result.type.dtype)
    scope = k.open(k.root, [I64, zero.type])
    j, sofar = scope.block.args
    which = Index((n,), (k.emit("loop.load", [body.host.buffer(order), j], None, op.loc, scope).result,))
    value = g.at(updates, Index(updates.type.shape, (*k.resolve(which, updates.type.shape[:r]), *at[1:])))
    total = k.emit("scalar.add", [sofar, value], None, op.loc, scope).result
    total, = k.close(scope, "loop.for", [first, behind, zero], {"step": 1}, [total], op.loc)
    k.emit("loop.store", [total, body.host.buffer(place), *at], None, op.loc, k.root)
    _emit(k, body.host)
    body.env[op.result] = place


def _sorted(body, op: Op) -> tuple[Storage, Storage]:
    """(ends, order): the updates of row i are those numbered order[ends[i]] .. order[ends[i + 1] - 1], in ascending order."""
    indices, rows = op.operands[1], op.result.type.shape[0]
    n = indices.type.numel
    ends, order = (body.temporary(TensorType(i64, (size,)), op.loc) for size in (rows + 2, n))
    body.written(Splat(0, i64, (rows + 2,)), ends, op.loc)
    k, g, _ = start(body, op, ())
    counts, to = body.host.buffer(ends), body.host.buffer(order)

    def access(scope, name: str, *operands: Value) -> Value | None:
        made = k.emit("loop." + name, operands, None, op.loc, scope)
        return made.result if made.results else None

    def row(scope, j: Value, checked: bool) -> Value:
        i = g.cast(g.at(indices, Index(indices.type.shape, k.resolve(Index((n,), (j,)), indices.type.shape))), i64)
        if checked:
            g.check(k.between(i, 0, rows - 1), i, f"index {{}} is out of range 0..{rows}", op)
        return k.clamp(i, 0, rows - 1)

    def increased(scope, at: Value) -> Value:
        old = access(scope, "load", counts, at)
        access(scope, "store", k.emit("scalar.add", [old, k.index(1)], None, op.loc, scope).result, counts, at)
        return old
    scope = k.open(k.root)                                   # counts of row i at i + 2
    increased(scope, k.add(row(scope, scope.block.args[0], True), 2))
    k.close(scope, "loop.for", [k.index(0), k.index(n)], {"step": 1}, [], op.loc)
    scope = k.open(k.root, [I64, I64])                       # their sums: where row i begins, at i + 1
    i, sofar = scope.block.args
    total = k.emit("scalar.add", [sofar, access(scope, "load", counts, i)], None, op.loc, scope).result
    access(scope, "store", total, counts, i)
    k.close(scope, "loop.for", [k.index(0), k.index(rows + 2), k.index(0)], {"step": 1}, [total], op.loc)
    scope = k.open(k.root)                                   # each update to its place: then where row i ends is at i + 1
    j = scope.block.args[0]
    access(scope, "store", j, to, increased(scope, k.add(row(scope, j, False), 1)))
    k.close(scope, "loop.for", [k.index(0), k.index(n)], {"step": 1}, [], op.loc)
    _emit(k, body.host)
    return ends, order


SCATTER = {"tensor.scatter_add": scatter_add, "tensor.put_along_add": put_along_add}
