"""tensor.attention and its gradient as kernels over blocks: scores, mask, softmax and products stay in private memory.

The online form (Milakov and Gimelshein 2018, FlashAttention: Dao et al. 2022): one iteration of a loop.parallel takes a block of queries of
one batch element through all blocks of keys it sees, keeping for each query the largest score so far, the sum of exponentials relative to it
and the weighted sum of values. The gradient goes through pairs of blocks and computes the probabilities again. Blocks of keys beyond the
causal diagonal or the run-time length are skipped. Sizes follow from the shapes alone, and with them the order of every sum.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..compiler.ir.core import Block, Op, Value
from ..compiler.ir.dims import product
from ..compiler.ir.types import BufferType, ScalarType, i64
from .cost import ATTENTION_APART, ATTENTION_FEW_KEYS, ATTENTION_KEYS, ATTENTION_LANES, ATTENTION_QUERIES
from .lower_buffers import Storage
from .lower_kernel import Kernel, Scope

INF = float("inf")


@dataclass
class Side:
    """One dim of tokens, cut into `count` blocks of `size` and a last one of `rest`."""

    total: int
    size: int

    @property
    def count(self) -> int:
        return self.total // self.size

    @property
    def rest(self) -> int:
        return self.total % self.size

    @property
    def sizes(self) -> list[int]:
        """Of the blocks there are."""
        return [n for n in (self.size if self.count else 0, self.rest) if n]


class Emit:
    """A kernel over (batch dims, `blocks`), with what attention kernels are made of. `at` are the batch indices, `block` the last one."""

    def __init__(self, op: Op, batch: tuple[int, ...], blocks: int, length: Storage | None, host):
        self.op, self.loc = op, op.loc
        sizes = [*batch, blocks]
        self.k = k = Kernel([n for n in sizes if n != 1] or [1], op.loc)
        args = iter(k.indices)
        at = [k.index(0) if n == 1 else next(args) for n in sizes]
        self.at, self.block = tuple(at[:-1]), at[-1]
        self.dtype = op.operands[0].type.dtype
        self.t, self.s = op.operands[0].type.shape[-2], op.operands[1].type.shape[-2]
        self.causal, self.scale = op.attrs["causal"], op.attrs["scale"]
        self.length = None if length is None else k.emit("loop.load", [host.buffer(length)], None, self.loc, k.root).result
        self.masked = self.causal or length is not None
        if self.causal and blocks > 2:                 # cheap blocks and dear ones in turn: contiguous shares are then equal
            half = k.div(self.block, 2)
            self.block = self.select(self.compare("eq", k.mod(self.block, 2), k.index(0)), half, k.sub(blocks - 1, half))

    # ---- scalars ----
    def number(self, x: float) -> Value:
        return self.k.constant(x, self.dtype)

    def op2(self, name: str, x: Value, y: Value) -> Value:
        return self.k.pure("scalar." + name, [x, y], None, self.loc)

    def op1(self, name: str, x: Value) -> Value:
        return self.k.pure("scalar." + name, [x], None, self.loc)

    def select(self, c: Value, x: Value, y: Value) -> Value:
        return self.k.pure("scalar.select", [c, x, y], None, self.loc)

    def compare(self, predicate: str, x: Value, y: Value) -> Value:
        return self.k.pure("scalar.compare", [x, y], {"predicate": predicate}, self.loc)

    def finite(self, x: Value) -> Value:
        """x, or 0 where it is infinite."""
        return self.select(self.compare("lt", self.op1("abs", x), self.number(INF)), x, self.number(0.0))

    # ---- memory ----
    def private(self, *shape: int) -> Value:
        return self.k.emit("loop.alloc", [], {"type": BufferType(self.dtype, shape)}, self.loc, self.k.root).result

    def rows(self, s: Storage, start: Value | None, size: int, scope: Scope) -> Value:
        """Rows start..start+size of this iteration's matrix (or of its vector, one dim less)."""
        k, n = self.k, len(self.at)
        offset = k.index(s.offset) if isinstance(s.offset, int) else s.offset
        for i, stride in zip(self.at, s.strides):
            offset = k.add(offset, k.mul(i, stride))
        if start is not None:
            offset = k.add(offset, k.mul(start, s.strides[n]))
        return k.emit("loop.view", [s.buffer, offset], {"shape": [size, *s.shape[n + 1:]], "strides": list(s.strides[n:])}, self.loc, scope).result

    def load(self, buffer: Value, at: list[Value], scope: Scope) -> Value:
        return self.k.emit("loop.load", [buffer, *at], None, self.loc, scope).result

    def store(self, x: Value, buffer: Value, at: list[Value], scope: Scope) -> None:
        self.k.emit("loop.store", [x, buffer, *at], None, self.loc, scope)

    def contract(self, out: Value, x: Value, y: Value, text: str, scope: Scope, accumulate: bool = False) -> None:
        """`text`: "mn,mk,nk" for out, x, y."""
        o, a, c = text.split(",")
        self.k.emit("loop.contract", [out, x, y], {"out": o, "lhs": a, "rhs": c, "accumulate": accumulate}, self.loc, scope)

    # ---- control ----
    def loop(self, scope: Scope, lo: Value, hi: Value, body: Callable[[Value, Scope], None], independent: bool = False) -> None:
        inner = self.k.open(scope)
        body(inner.block.args[0], inner)
        self.k.close(inner, "loop.for", [lo, hi], {"step": 1, **({"independent": True} if independent else {})}, [], self.loc)

    def each(self, scope: Scope, n: int, body: Callable[[Value, Scope], None]) -> None:
        """Independent iterations, for lanes."""
        self.loop(scope, self.k.index(0), self.k.index(n), body, True)

    def reduce(self, scope: Scope, n: int, kind: str, body: Callable[[Value, Scope], Value]) -> Value:
        return self.reduce_many(scope, n, [kind], lambda j, s: [body(j, s)])[0]

    def reduce_many(self, scope: Scope, n: int, kinds: list[str], body: Callable[[Value, Scope], list[Value]]) -> list[Value]:
        inner = self.k.open(scope)
        xs = body(inner.block.args[0], inner)
        return self.k.close(inner, "loop.reduce", [self.k.index(0), self.k.index(n)], {"kinds": kinds}, xs, self.loc)

    def when(self, scope: Scope, cond: Value, body: Callable[[Scope], None]) -> None:
        inner = Scope(scope, Block([]))
        body(inner)
        other = Block([])
        for b in (inner.block, other):
            b.append(Op("scf.yield", [], {}, (), (), self.loc))
        scope.block.append(Op("loop.if", [cond], {}, (), [inner.block, other], self.loc))

    def zero(self, scope: Scope, buffer: Value) -> None:
        n, d = buffer.type.shape
        self.loop(scope, self.k.index(0), self.k.index(n), lambda i, s: self.each(s, d, lambda j, s2: self.store(self.number(0.0), buffer, [i, j], s2)))

    # ---- which keys are seen ----
    def edge(self, row: Value) -> Value:
        """The number of keys (from the first on; perhaps <= 0 or > s) that query `row` sees."""
        k = self.k
        if not self.causal:
            return self.length if self.length is not None else k.index(self.s)
        n = self.length if self.length is not None else k.index(self.s)
        return k.add(k.add(n, row), 1 - self.t)

    def blocks(self, scope: Scope, last: Value, keys: Side, body: Callable[[Value, int, Scope], None]) -> None:
        """body(first key, size, scope) for the blocks of keys that query `last`, or an earlier one, sees."""
        k = self.k
        edge = k.clamp(self.edge(last), 0, self.s)
        if keys.count:
            hi = k.index(keys.count)
            if self.masked:
                hi = self.op2("min", hi, k.div(k.add(edge, keys.size - 1), keys.size))
            self.loop(scope, k.index(0), hi, lambda c, inner: body(k.mul(c, keys.size), keys.size, inner))
        if keys.rest:
            first = keys.count * keys.size
            rest = lambda inner: body(k.index(first), keys.rest, inner)
            if self.masked and first:
                self.when(scope, self.compare("gt", edge, k.index(first)), rest)
            else:
                rest(scope)

    def masked_score(self, s: Value, i: Value, j: Value, seen: Value, scope: Scope) -> Value:
        """The scaled score of row i and column j of a block, -inf from column `seen` on."""
        x = self.op2("mul", self.load(s, [i, j], scope), self.number(self.scale))
        return self.select(self.compare("lt", j, seen), x, self.number(-INF)) if self.masked else x

    def emit(self, host) -> None:
        host.block.append(self.k.finish())


def _sides(op: Op) -> tuple[Side, Side]:
    t, s = op.operands[0].type.shape[-2], op.operands[1].type.shape[-2]
    return Side(t, min(t, ATTENTION_QUERIES)), Side(s, min(s, ATTENTION_KEYS if t >= ATTENTION_LANES else ATTENTION_FEW_KEYS))


def _length(body, op: Op, n: int) -> Storage | None:
    return body.in_memory(op.operands[n], op.loc) if len(op.operands) > n else None


def attention(body, op: Op, pos: int) -> None:
    """One kernel over the whole blocks of queries, and one over what is left of them."""
    q, k, v = (body.in_memory(x, op.loc) for x in op.operands[:3])
    length = _length(body, op, 3)
    o = body.env[op.results[0]] = body.product_place(op.results[0], pos, op.loc)
    lse = None
    if op.results[1] in body.users or op.results[1] in body.wanted:
        lse = body.env[op.results[1]] = body.destination(op.results[1], pos, op.loc)
    queries, keys = _sides(op)
    for blocks, size, first in _cuts(queries):
        e = Emit(op, op.operands[0].type.shape[:-2], blocks, length, body.host)
        _forward(e, e.k.add(e.k.mul(e.block, size), first), size, keys, q, k, v, o, lse)
        e.emit(body.host)


def _forward(e: Emit, row: Value, size: int, keys: Side, q: Storage, k: Storage, v: Storage, o: Storage, lse: Storage | None) -> None:
    """One block of queries."""
    root, index, d = e.k.root, e.k.index, v.shape[-1]
    total, top, sums = e.private(size), e.private(size), e.private(size, d)

    def start(i: Value, s: Scope) -> None:
        e.store(e.number(-INF), top, [i], s)
        e.store(e.number(0.0), total, [i], s)
    e.each(root, size, start)
    e.zero(root, sums)
    make = _few_queries if size < ATTENTION_LANES else _many_queries
    block = make(e, row, size, keys, e.rows(q, row, size, root), total, top, sums)
    e.blocks(root, e.k.add(row, size - 1), keys, lambda first, n, s: block(first, n, e.rows(k, first, n, s), e.rows(v, first, n, s), s))
    out = e.rows(o, row, size, root)

    def finish(i: Value, s: Scope) -> None:
        x = e.load(total, [i], s)
        e.each(s, d, lambda j, sc: e.store(e.op2("div", e.load(sums, [i, j], sc), x), out, [i, j], sc))
    e.loop(root, index(0), index(size), finish)
    if lse is not None:
        to = e.rows(lse, row, size, root)
        e.each(root, size, lambda i, s: e.store(e.op2("add", e.finite(e.load(top, [i], s)), e.op1("log", e.load(total, [i], s))), to, [i], s))


def _few_queries(e: Emit, row: Value, size: int, keys: Side, q: Value, total: Value, top: Value, sums: Value):
    """Scores as [queries, keys]: the keys of one query are the lanes."""
    index, d = e.k.index, sums.type.shape[1]
    scores = {n: e.private(size, n) for n in keys.sizes}

    def block(first: Value, n: int, kb: Value, vb: Value, scope: Scope) -> None:
        s = scores[n]
        e.contract(s, q, kb, "mn,mk,nk", scope)

        def softmax(i: Value, inner: Scope) -> None:
            seen = e.op2("sub", e.edge(e.k.add(row, i)), first)
            here = e.reduce(inner, n, "max", lambda j, sc: e.masked_score(s, i, j, seen, sc))
            old = e.load(top, [i], inner)
            new = e.op2("max", old, here)
            base = e.finite(new)
            e.each(inner, n, lambda j, sc: e.store(e.op1("exp", e.op2("sub", e.masked_score(s, i, j, seen, sc), base)), s, [i, j], sc))
            add = e.reduce(inner, n, "add", lambda j, sc: e.load(s, [i, j], sc))
            factor = e.op1("exp", e.op2("sub", old, base))
            e.store(new, top, [i], inner)
            e.store(e.op2("add", e.op2("mul", e.load(total, [i], inner), factor), add), total, [i], inner)
            e.each(inner, d, lambda j, sc: e.store(e.op2("mul", e.load(sums, [i, j], sc), factor), sums, [i, j], sc))
        e.loop(scope, index(0), index(size), softmax)
        e.contract(sums, s, vb, "mn,mk,kn", scope, accumulate=True)
    return block


def _many_queries(e: Emit, row: Value, size: int, keys: Side, q: Value, total: Value, top: Value, sums: Value):
    """Scores as [keys, queries]: the queries are the lanes, so that nothing is ever combined across lanes. The queries are turned and scaled
    once."""
    root, index, d = e.k.root, e.k.index, sums.type.shape[1]
    features = q.type.shape[1]
    turned = e.private(features, size)
    factors = e.private(size)
    scores = {n: e.private(n, size) for n in keys.sizes}

    def turn(j: Value, s: Scope) -> None:
        e.each(s, size, lambda i, sc: e.store(e.op2("mul", e.load(q, [i, j], sc), e.number(e.scale)), turned, [j, i], sc))
    e.loop(root, index(0), index(features), turn)

    def block(first: Value, n: int, kb: Value, vb: Value, scope: Scope) -> None:
        s = scores[n]
        e.contract(s, kb, turned, "nm,nk,km", scope)
        ways = next(w for w in (4, 2, 1) if n % w == 0)          # chains of maxima and sums a query
        if e.masked:
            def hide(j: Value, inner: Scope) -> None:
                at = e.k.add(first, j) if n > 1 else first

                def one(i: Value, sc: Scope) -> None:
                    hidden = e.compare("ge", at, e.edge(e.k.add(row, i)))
                    e.store(e.select(hidden, e.number(-INF), e.load(s, [j, i], sc)), s, [j, i], sc)
                e.each(inner, size, one)
            beyond = e.compare("gt", e.k.add(first, n), e.edge(row))           # the first query sees least
            e.when(scope, beyond, lambda inner: e.loop(inner, index(0), index(n), hide))

        def parts(j: Value, i: Value, sc: Scope) -> list[Value]:
            return [e.load(s, [e.k.add(j, w * (n // ways)), i], sc) for w in range(ways)]

        def joined(name: str, xs: list[Value]) -> Value:
            while len(xs) > 1:
                xs = [e.op2(name, *pair) for pair in zip(xs[::2], xs[1::2])]
            return xs[0]

        def softmax(i: Value, inner: Scope) -> None:
            old = e.load(top, [i], inner)
            new = e.op2("max", old, joined("max", e.reduce_many(inner, n // ways, ["max"] * ways, lambda j, sc: parts(j, i, sc))))
            base = e.finite(new)
            loop = e.k.open(inner, (ScalarType(i64), *[ScalarType(e.dtype)] * ways))
            j, *so_far = loop.block.args
            xs = [e.op1("exp", e.op2("sub", x, base)) for x in parts(j, i, loop)]
            for w, x in enumerate(xs):
                e.store(x, s, [e.k.add(j, w * (n // ways)), i], loop)
            zero = e.number(0.0)
            added = e.k.close(loop, "loop.for", [index(0), index(n // ways), *[zero] * ways], {"step": 1}, [e.op2("add", t, x) for t, x in zip(so_far, xs)], e.loc)
            factor = e.op1("exp", e.op2("sub", old, base))
            e.store(factor, factors, [i], inner)
            e.store(new, top, [i], inner)
            e.store(e.op2("add", e.op2("mul", e.load(total, [i], inner), factor), joined("add", added)), total, [i], inner)
        e.each(scope, size, softmax)

        def rescale(i: Value, inner: Scope) -> None:
            factor = e.load(factors, [i], inner)
            e.each(inner, d, lambda j, sc: e.store(e.op2("mul", e.load(sums, [i, j], sc), factor), sums, [i, j], sc))
        if len(keys.sizes) > 1 or keys.count > 1:
            e.loop(scope, index(0), index(size), rescale)
        e.contract(sums, s, vb, "me,nm,ne", scope, accumulate=True)
    return block


def attention_grad(body, op: Op, pos: int) -> None:
    """Many batch elements: one kernel over them, each going through all pairs of blocks. Few: a kernel over blocks of queries for dq and
    one over blocks of keys for dk and dv, which compute the probabilities twice."""
    *places, length = *(body.in_memory(x, op.loc) for x in op.operands[:6]), _length(body, op, 6)
    for r in op.results:
        place = body.env[r] = body.product_place(r, pos, op.loc)
        places.append(place)
    queries, keys = _sides(op)
    batch = op.operands[0].type.shape[:-2]

    def kernel(blocks: int, sizes: list[tuple[int, int]], *results: str) -> Pairs:
        return Pairs(Emit(op, batch, blocks, length, body.host), places, sizes, results)
    if product(batch) >= ATTENTION_APART:
        p = kernel(1, [(m, n) for m in queries.sizes for n in keys.sizes], "q", "k", "v")
        p.zero("q", None, queries.total)
        p.zero("k", None, keys.total)
        p.zero("v", None, keys.total)
        p.each_query_block(queries, None, lambda row, m, s: p.keys_of(row, m, keys, s))
        p.e.emit(body.host)
        return
    for count, m, first in _cuts(queries):
        p = kernel(count, [(m, n) for n in keys.sizes], "q")
        row = p.e.k.add(p.e.k.mul(p.e.block, m), first)
        p.zero("q", row, m)
        p.keys_of(row, m, keys, p.e.k.root)
        p.e.emit(body.host)
    for count, n, first in _cuts(keys):
        p = kernel(count, [(m, n) for m in queries.sizes], "k", "v")
        key = p.e.k.add(p.e.k.mul(p.e.block, n), first)
        p.zero("k", key, n)
        p.zero("v", key, n)
        p.each_query_block(queries, key, lambda row, m, s, p=p, key=key, n=n: p.pair(row, m, key, n, s))
        p.e.emit(body.host)


def _cuts(side: Side) -> list[tuple[int, int, int]]:
    """(number of blocks, their size, the first one's start), for the whole blocks and the rest."""
    return [(count, size, first) for count, size, first in ((side.count, side.size, 0), (1, side.rest, side.count * side.size)) if count and size]


class Pairs:
    """A kernel of the gradient: what a pair of a block of queries and a block of keys adds to those of dq, dk and dv that are wanted."""

    def __init__(self, e: Emit, places: list[Storage], sizes: list[tuple[int, int]], results: tuple[str, ...]):
        self.e, self.results = e, results
        self.q, self.k, self.v, self.lse, self.do, self.delta, *made = places
        self.made = dict(zip("qkv", made))
        self.scores = {p: (e.private(*p), e.private(*p)) for p in sizes}

    def zero(self, name: str, start: Value | None, size: int) -> None:
        self.e.zero(self.e.k.root, self.e.rows(self.made[name], start, size, self.e.k.root))

    def each_query_block(self, queries: Side, key: Value | None, body: Callable[[Value, int, Scope], None]) -> None:
        """All blocks of queries; with a key, from the one on in which a query may see it."""
        e, k = self.e, self.e.k
        lo = k.index(0)
        if key is not None and e.causal:
            n = e.length if e.length is not None else k.index(e.s)
            lo = k.div(k.clamp(k.sub(k.add(key, e.t), n), 0, e.t), queries.size)
        if queries.count:
            e.loop(k.root, lo, k.index(queries.count), lambda r, s: body(k.mul(r, queries.size), queries.size, s))
        if queries.rest:
            body(k.index(queries.count * queries.size), queries.rest, k.root)

    def keys_of(self, row: Value, m: int, keys: Side, scope: Scope) -> None:
        self.e.blocks(scope, self.e.k.add(row, m - 1), keys, lambda first, n, s: self.pair(row, m, first, n, s))

    def pair(self, row: Value, m: int, first: Value, n: int, scope: Scope) -> None:
        e, index = self.e, self.e.k.index
        qr, gr, lr, er = (e.rows(s, row, m, scope) for s in (self.q, self.do, self.lse, self.delta))
        kb, vb = (e.rows(s, first, n, scope) for s in (self.k, self.v))
        p, g = self.scores[m, n]
        e.contract(p, qr, kb, "mn,mk,nk", scope)
        e.contract(g, gr, vb, "mn,mk,nk", scope)

        def softmax(i: Value, sc: Scope) -> None:
            seen = e.op2("sub", e.edge(e.k.add(row, i)), first)
            log, dlt = e.load(lr, [i], sc), e.load(er, [i], sc)

            def one(j: Value, s: Scope) -> None:
                x = e.op1("exp", e.op2("sub", e.masked_score(p, i, j, seen, s), log))
                y = e.op2("mul", e.op2("mul", x, e.op2("sub", e.load(g, [i, j], s), dlt)), e.number(e.scale))
                e.store(x, p, [i, j], s)
                e.store(y, g, [i, j], s)
            e.each(sc, n, one)
        e.loop(scope, index(0), index(m), softmax)

        def add(name: str, start: Value, size: int, x: Value, y: Value, text: str) -> None:
            if name in self.results:
                e.contract(e.rows(self.made[name], start, size, scope), x, y, text, scope, accumulate=True)
        add("v", first, n, p, gr, "mn,km,kn")
        add("k", first, n, g, qr, "mn,km,kn")
        add("q", row, m, g, kb, "mn,mk,kn")


ATTENTION = {"tensor.attention": attention, "tensor.attention_grad": attention_grad}
