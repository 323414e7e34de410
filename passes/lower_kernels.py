"""From a group of tensor ops to one kernel (two for a reduction in chunks): which loops there are and what is stored where.

The code inside comes from lower_elemental.py; collapse.py merges loops afterwards. Three shapes of kernel:
* map: parallel over the results' shape (a reduction inside runs per element);
* rows: parallel over the leading dims of the domain, per row reductions and loops over the rest (softmax, layer norm);
* rows in chunks: with reductions over the rows besides, in two kernels: chunks of rows in parallel, then the combination of the chunks;
* split: a reduction of much to little, in two kernels: chunks of it in parallel, then the combination of the chunks.
"""
from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from ..compiler.ir.core import Loc, Op, Value
from ..compiler.ir.dims import product
from ..compiler.ir.types import BufferType, DType, TensorType
from .collapse import collapse
from .cost import EXPENSIVE, ROW_BUFFER_BYTES, UNROLLED_STORES, cost
from .lower_buffers import Host, Storage, reshape_strides
from .lower_elemental import SUMS, Elements, Index, Leaf, accumulator, identity, reducer
from .lower_kernel import Kernel


@dataclass
class Group:
    """`ops` in order; `outputs`: which values are stored where (a value may have several places). `rows`: how many leading
    dims of `domain` are rows; None for a map."""

    ops: list[Op]
    outputs: list[tuple[Value, list[Storage]]]
    leaf: Callable[[Value], Leaf]
    loc: Loc | None = None
    domain: tuple[int, ...] | None = None
    rows: int | None = None
    split: int = 0
    chunks: int = 0
    producers: dict[Value, Op] = field(init=False)

    def __post_init__(self):
        self.producers = {r: op for op in self.ops for r in op.results}


def build(group: Group, host: Host, temporary: Callable[[TensorType], Storage]) -> list[Op]:
    """Append the group's kernels to the host level; returns the loop.parallel ops. Nothing for empty results."""
    outputs = [(v, places) for v, places in group.outputs if v.type.numel and places]
    if not outputs:
        return []
    if group.split:
        return _split(group, outputs, host, temporary)
    if group.chunks:
        return _along_rows(group, outputs, host, temporary)
    if group.rows is not None:
        return [_emit(_rows(group, outputs, host), host)]
    return [_emit(_map(group, outputs, host), host)]


def _emit(kernel: Kernel, host: Host) -> Op:
    """Merge loops, then append: merged views have to come before the kernel."""
    op = kernel.finish()
    collapse(op, host)
    return host.block.append(op)


def _start(shape: tuple[int, ...], loc: Loc | None) -> tuple[Kernel, tuple[Value, ...]]:
    """A kernel over the dims of `shape` that are not 1, and an index scalar per dim."""
    k = Kernel([n for n in shape if n != 1] or [1], loc)
    args = iter(k.indices)
    return k, tuple(k.index(0) if n == 1 else next(args) for n in shape)


def _elements(group: Group, k: Kernel) -> Elements:
    g = Elements(k, group.producers, group.leaf)
    g.reductions = [op for op in group.ops if op.name in SUMS]
    return g


def _store(k: Kernel, host: Host, value: Value, place: Storage, index: Index, loc: Loc | None, scope=None) -> None:
    """Write one element; the place has the index's shape, or is contiguous, so that any shape with as many elements will do."""
    strides = reshape_strides(place, index.shape)
    if strides is None:
        raise ValueError(f"results are stored contiguously, got strides {place.strides} for {place.shape}")
    view = host.buffer(Storage(place.buffer, place.offset, index.shape, strides))
    k.emit("loop.store", [value, view, *index.at], None, loc, scope)


def _map(group: Group, outputs, host: Host) -> Kernel:
    shape = max((v.type.shape for v, _ in outputs), key=len)
    if any(v.type.numel != product(shape) for v, _ in outputs):
        raise ValueError("the results of a map have different sizes")
    for op in group.ops:                                       # a finer shape needs no division to find its way around the values inside
        if len(op.results[0].type.shape) > len(shape) and _refines(op.results[0].type.shape, shape):
            shape = op.results[0].type.shape
    k, at = _start(shape, group.loc)
    g = _elements(group, k)
    index = Index(shape, at)
    values = [g.at(v, index) for v, _ in outputs]              # all reads before all writes: an output may overwrite an input
    for (v, places), x in zip(outputs, values):
        for place in places:
            _store(k, host, x, place, index, _loc(v, group), k.root)
    return k


def _refines(fine: tuple[int, ...], coarse: tuple[int, ...]) -> bool:
    """Whether a row-major walk over `fine` passes every border between dims of `coarse`."""
    def borders(shape):
        return set(itertools.accumulate(reversed(shape), lambda x, y: x * y))
    return product(fine) == product(coarse) and borders(coarse) <= borders(fine)


def _loc(v: Value, group: Group) -> Loc | None:
    return v.owner.loc if isinstance(v.owner, Op) else group.loc


# ---- rows --------------------------------------------------------------------------------------------------------------


def _rows(group: Group, outputs, host: Host) -> Kernel:
    k, at = _start(group.domain[:group.rows], group.loc)
    _row(group, outputs, host, k, _elements(group, k), at)
    return k


def _row(group: Group, outputs, host: Host, k: Kernel, g: Elements, at, columns=()) -> None:
    """What is done to the row `at`. `columns`: (reduction over the rows, where its results so far lie)."""
    domain, n = group.domain, group.rows
    head, cols = domain[:n], domain[n:]
    full = [(v, p) for v, p in outputs if v.type.numel == product(domain)]
    if product(cols) == 1:
        full = []
    for v in row_buffers(group, full):
        _fill_row_buffer(g, v, at, cols)
    wrapped = Index(head, at)
    for v, places in outputs:
        if (v, places) not in full:
            x = g.at(v, wrapped)
            for place in places:
                _store(k, host, x, place, wrapped, _loc(v, group), k.root)
    if full or columns:
        # a value that is written between others has the shape of its place: the rows, and how a row lies there
        lies = next((p.shape for _, places in full for p in places if reshape_strides(p, domain) is None), domain)
        if lies[:n] != head:
            raise ValueError(f"rows of {domain} are written to {lies}")

        def body(ivs, scope):
            index = Index(lies, at + tuple(ivs))
            values = [g.at(v, index) for v, _ in full]
            parts = [_term(g, op, index) for op, _ in columns]
            for (v, places), x in zip(full, values):
                for place in places:
                    _store(k, host, x, place, index, _loc(v, group), scope)
            for (op, sofar), x in zip(columns, parts):
                where = k.resolve(Index(lies[n:], tuple(ivs)), sofar.type.shape)
                before = k.emit("loop.load", [sofar, *where], None, op.loc, scope).result
                k.emit("loop.store", [k.pure("scalar." + reducer(op), [before, x], None, op.loc), sofar, *where], None, op.loc, scope)
        _independent(k, lies[n:], body, group.loc)


def _term(g: Elements, op: Op, index: Index) -> Value:
    """An element that a reduction takes in, as its results so far are kept."""
    x = g.at(op.operands[0], index)
    return g.cast(x, _kept_as(op))


def _kept_as(op: Op) -> DType:
    dtype = op.operands[0].type.dtype
    return accumulator(dtype) if SUMS[op.name] in ("add", "mul") else dtype


def _along_rows(group: Group, outputs, host: Host, temporary) -> list[Op]:
    """Rows in chunks, one after the other within a chunk; reductions over the rows add up in memory of the chunk's own, a row of
    results that stays in the cache. Then the chunks' results, and what is computed from them."""
    n, rows = group.rows, product(group.domain[:group.rows])
    over = [op for op in group.ops if op.name in SUMS and list(op.attrs["dims"]) == list(range(n))]
    chunk = -(-rows // group.chunks)
    chunks = -(-rows // chunk)
    width = product(group.domain[n:])
    places = [temporary(TensorType(_kept_as(op), (chunks, width))) for op in over]
    later = set()
    for op in group.ops:
        if op in over or any(v.owner in later for v in op.operands if v in group.producers):
            later.add(op)
    k = Kernel([chunks], group.loc)
    first, = k.indices
    g = _elements(group, k)
    g.reductions = [op for op in g.reductions if op not in over]
    sofar = [k.emit("loop.view", [host.buffer(p), k.mul(first, width)], {"shape": [width], "strides": [1]}, op.loc, k.root).result for op, p in zip(over, places)]

    def clear(ivs, scope):
        for op, b in zip(over, sofar):
            k.emit("loop.store", [k.constant(identity(op), b.type.dtype), b, *ivs], None, op.loc, scope)
    _independent(k, (width,), clear, group.loc)
    lo = k.mul(first, chunk)
    hi = k.add(lo, k.index(chunk))
    if rows % chunk:
        hi = k.pure("scalar.min", [hi, k.index(rows)])
    outer, k.root = k.root, k.open(k.root)
    at = k.resolve(Index((rows,), (k.root.block.args[0],)), group.domain[:n])
    _row(group, [(v, p) for v, p in outputs if v.owner not in later], host, k, g, at, list(zip(over, sofar)))
    inner, k.root = k.root, outer
    k.close(inner, "loop.for", [lo, hi], {"step": 1}, [], group.loc)
    ends = [(v, p) for v, p in outputs if v.owner in later]
    return [_emit(k, host), _combined(group, ends, host, over, places, [chunks], group.domain[n:])]


def _independent(k: Kernel, sizes, body, loc) -> None:
    """Nested loops over `sizes` at the root whose iterations do not depend on one another; no loops for a few iterations."""
    if product(sizes) <= UNROLLED_STORES:
        for at in itertools.product(*map(range, sizes)):
            body([k.index(i) for i in at], k.root)
        return
    scope, opened, ivs = k.root, [], []
    for n in sizes:
        if n == 1:
            ivs.append(k.index(0))
            continue
        scope = k.open(scope)
        opened.append((scope, n))
        ivs.append(scope.block.args[0])
    body(ivs, scope)
    for s, n in reversed(opened):
        k.close(s, "loop.for", [k.index(0), k.index(n)], {"step": 1, "independent": True}, [], loc)


def _fill_row_buffer(g: Elements, v: Value, at, cols) -> None:
    """v's elements of this row, computed once into private memory."""
    k, loc, size = g.k, v.owner.loc, product(cols)
    buffer = k.emit("loop.alloc", [], {"type": BufferType(v.type.dtype, (size,))}, loc, k.root).result

    def body(ivs, scope):
        x = g.at(v, Index(v.type.shape, at + tuple(ivs)))
        k.emit("loop.store", [x, buffer, *k.resolve(Index(tuple(cols), tuple(ivs)), (size,))], None, loc, scope)

    _independent(k, cols, body, loc)
    g.rows[v] = (buffer, at)


def row_buffers(group: Group, full) -> list[Value]:
    """Values of the whole domain that several passes over a row need and that cost more to make than to keep, in order. Of a
    chain only the last is kept: where its users part, or where what comes next is needed in fewer passes."""
    size, width = product(group.domain), product(group.domain[group.rows:])
    passes: list[list[Value]] = [[op.operands[0]] for op in group.ops if op.name in SUMS]
    passes.append([v for v, _ in full])
    counts: dict[Value, int] = {}
    for roots in passes:
        seen: set[Value] = set()
        todo = list(roots)
        while todo:
            v = todo.pop()
            op = group.producers.get(v)
            if v in seen or op is None or op.name in SUMS or v.type.numel != size:
                continue
            seen.add(v)
            counts[v] = counts.get(v, 0) + 1
            todo.extend(op.operands)
    users: dict[Value, list[Op]] = {}
    for op in group.ops:
        for v in dict.fromkeys(op.operands):
            users.setdefault(v, []).append(op)
    stored = {v for v, _ in full}
    kept: list[Value] = []
    effort: dict[Value, int] = {}
    for op in group.ops:
        for v in op.results:
            if v not in counts:
                continue
            effort[v] = cost(op) + sum(effort.get(x, 0) for x in dict.fromkeys(op.operands))
            follow = users.get(v, [])
            last = v in stored or len(follow) != 1 or counts.get(follow[0].results[0], 0) != counts[v]
            if last and counts[v] > 1 and effort[v] >= EXPENSIVE and width * v.type.dtype.bytes <= ROW_BUFFER_BYTES and v.type.shape == tuple(group.domain):
                kept.append(v)
                effort[v] = 0
    return kept


# ---- split reductions --------------------------------------------------------------------------------------------------


def _split(group: Group, outputs, host: Host, temporary) -> list[Op]:
    """First kernel: parallel over (leading reduced dims, the last of them in `split` chunks; kept dims); second: the group's
    outputs, with each reduction reading the partial results."""
    ops = [op for op in group.ops if op.name in SUMS]
    first = ops[0]
    shape, dims = first.operands[0].type.shape, list(first.attrs["dims"])
    if any(o.operands[0].type.shape != shape or list(o.attrs["dims"]) != dims for o in ops):
        raise ValueError("a split group reduces one shape over the same dims")
    kept = [d for d in range(len(shape)) if d not in dims]
    lead: list[int] = []
    for d in dims:
        lead.append(d)
        if product(shape[e] for e in lead) >= group.split:
            break
    cut, rest = lead[-1], [d for d in dims if d not in lead]
    chunk = -(-shape[cut] * product(shape[e] for e in lead[:-1]) // group.split)
    chunk = max(1, min(shape[cut], chunk))
    counts = [shape[d] for d in lead[:-1]] + [-(-shape[cut] // chunk)]
    space = tuple(counts + [shape[d] for d in kept])
    places = [temporary(TensorType(accumulator(o.result.type.dtype) if SUMS[o.name] in ("add", "mul") else o.result.type.dtype, space)) for o in ops]

    k, at = _start(space, group.loc)
    g = _elements(group, k)
    where: dict[int, Value] = dict(zip(lead[:-1] + [cut] + kept, at))
    c = where[cut]
    lo = k.mul(c, chunk)
    hi = k.pure("scalar.min", [k.add(lo, k.index(chunk)), k.index(shape[cut])]) if shape[cut] % chunk else k.add(lo, k.index(chunk))
    scope = k.open(k.root)
    where[cut] = scope.block.args[0]
    kinds = [reducer(o) for o in ops]

    def element(o: Op, inner: dict[int, Value]) -> Value:
        x = g.at(o.operands[0], Index(shape, tuple(inner[d] for d in range(len(shape)))))
        return g.cast(x, accumulator(x.type.dtype)) if SUMS[o.name] in ("add", "mul") else x

    parts = g.reduce_nest(scope, [shape[d] for d in rest], kinds,
                          lambda ivs: [element(o, {**where, **dict(zip(rest, ivs))}) for o in ops], first.loc)
    sums = k.close(scope, "loop.reduce", [lo, hi], {"kinds": kinds}, parts, first.loc)
    for s, place in zip(sums, places):
        _store(k, host, s, place, Index(space, at), first.loc, k.root)
    return [_emit(k, host), _combined(group, outputs, host, ops, places, counts, tuple(shape[d] for d in kept))]


def _combined(group: Group, outputs, host: Host, ops: list[Op], places: list[Storage], counts: list[int], kept: tuple[int, ...]) -> Op:
    """The kernel that reduces the chunks' results (over `counts`) and computes the outputs from them."""
    kinds, loc = [reducer(o) for o in ops], ops[0].loc
    shape2 = max((v.type.shape for v, _ in outputs), key=len)
    k, at = _start(shape2, group.loc)
    g = _elements(group, k)

    def combine(index: Index) -> None:
        where = k.resolve(index, kept)

        def body(ivs):
            return [k.pure("loop.load", [host.buffer(p), *ivs, *k.resolve(Index(kept, where), p.shape[len(counts):])]) for p in places]

        sums = g.reduce_nest(k.scope_of(where), counts, kinds, body, loc)
        for o, s in zip(ops, sums):
            g.memo[g.key(o.result, Index(o.result.type.shape, where))] = g.cast(s, o.result.type.dtype)

    def source(o: Op):
        def make(index: Index) -> Value:
            combine(index)
            return g.memo[g.key(o.result, Index(o.result.type.shape, k.resolve(index, o.result.type.shape)))]
        return make

    for o in ops:
        g.partial[o.result] = source(o)
    index = Index(shape2, at)
    values = [g.at(v, index) for v, _ in outputs]
    for (v, out), x in zip(outputs, values):
        for place in out:
            _store(k, host, x, place, index, _loc(v, group), k.root)
    return _emit(k, host)
