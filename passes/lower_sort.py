"""Sorting: whole rows in place, or one pass over each row that keeps the first few of its order."""
from __future__ import annotations

from collections.abc import Callable

from ..compiler.ir.core import Block, Op, Value
from ..compiler.ir.types import BufferType, DType, TensorType, i64
from .cost import KEPT, KEPT_SHARE
from .lower_buffers import Storage
from .lower_elemental import Elements, Index
from .lower_kernel import I64, Kernel, Scope
from .lower_kernels import _emit, _start, _store

BLOCKS = (64, 256)  # elements that one test may pass over: more for a longer list, if that goes backwards
REGISTERS = 8       # so few may be kept in scalars
LONG_ROW = 256      # from here on a row is gone through in lanes
BACKWARDS = 4       # a list sees blocks backwards that are at least so many times longer
LANES = 16          # the list of the kept is filled up to whole vectors


def sort(body, op: Op, pos: int) -> None:
    """The results in memory; of an order that is not kept as a whole, a part of it or what one pass finds."""
    x, d = op.operands[0], op.attrs["dim"]
    n, keep = x.type.shape[d], op.results[0].type.shape[d]
    few = keep <= KEPT and keep * KEPT_SHARE <= n
    places = [body.destination(r, pos, op.loc) if keep == n or few else body.temporary(TensorType(r.type.dtype, x.type.shape), op.loc) for r in op.results]
    for r, s in zip(op.results, places):
        body.env[r] = Storage(s.buffer, s.offset, r.type.shape, s.strides)
    if op.results[0].type.numel:
        (_best if few and keep < n else _whole)(body, op, *places)


def _whole(body, op: Op, values: Storage, order: Storage) -> None:
    """A copy with the indices beside it, then each row of the results sorted where it is."""
    x, d = op.operands[0], op.attrs["dim"]
    shape = x.type.shape
    k, at = _start(shape, op.loc)
    index = Index(shape, at)
    e = Elements(k, {}, body.leaf).at(x, index)
    _store(k, body.host, e, values, index, op.loc, k.root)
    _store(k, body.host, at[d], order, index, op.loc, k.root)
    _emit(k, body.host)
    k, at = _start(shape[:d] + shape[d + 1:], op.loc)
    rows = []
    for s in (values, order):
        offset = k.index(0)
        for i, step in zip(at, s.strides[:d] + s.strides[d + 1:]):
            offset = k.add(offset, k.mul(i, step))
        rows.append(k.emit("loop.view", [body.host.buffer(s), offset], {"shape": [shape[d]], "strides": [s.strides[d]]}, op.loc, k.root).result)
    k.emit("loop.sort", rows, {"descending": bool(op.attrs["descending"])}, op.loc, k.root)
    _emit(k, body.host)


def _best(body, op: Op, values: Storage, order: Storage) -> None:
    """One kernel over the rows. Few kept of short or strided rows are scalars, so that rows may be lanes; of a long row, neighbours are."""
    x, d = op.operands[0], op.attrs["dim"]
    shape, kept = x.type.shape, op.results[0].type.shape
    k, at = _start(shape[:d] + shape[d + 1:], op.loc)
    g = Elements(k, {}, body.leaf)
    source = body.env[x]
    in_lanes = shape[d] >= LONG_ROW and isinstance(source, Storage) and source.strides[d] == 1
    best = (InRegisters if kept[d] <= REGISTERS and not in_lanes else InMemory)(k, lambda j: g.at(x, Index(shape, (*at[:d], j, *at[d:]))), x.type.dtype, op)

    def store(p: Value, value: Value, index: Value, scope: Scope) -> None:
        for v, place in ((value, values), (index, order)):
            _store(k, body.host, v, place, Index(kept, (*at[:d], p, *at[d:])), op.loc, scope)
    best.each(best.run(shape[d]), store)
    _emit(k, body.host)


class Best:
    """The first `keep` elements of a row's stable order, in one pass: an element that does not come before the last of those kept
    is passed over, and so is a block of elements by one test. Subclasses say where the kept are; `state` is what loops carry of them."""

    def __init__(self, k: Kernel, element: Callable[[Value], Value], dtype: DType, op: Op):
        self.k, self.element, self.dtype, self.loc = k, element, dtype, op.loc
        self.keep, self.down = op.results[0].type.shape[op.attrs["dim"]], bool(op.attrs["descending"])
        self.block, self.backwards = BLOCKS[0], False

    def fill(self) -> list[Value]:
        """The state after the first `keep` elements."""
        raise NotImplementedError

    def last(self, state: list[Value]) -> Value:
        """The last kept value."""
        raise NotImplementedError

    def enters(self, x: Value, j: Value, state: list[Value]) -> Value:
        """Whether element x at j has to be given to `enter`."""
        raise NotImplementedError

    def enter(self, scope: Scope, j: Value, x: Value, state: list[Value]) -> list[Value]:
        """The state after element x at j."""
        raise NotImplementedError

    def each(self, state: list[Value], store: Callable[[Value, Value, Value, Scope], None]) -> None:
        """Calls store(place, value, index, scope) for each place."""
        raise NotImplementedError

    # ---- scalar code ----
    def compare(self, predicate: str, x: Value, y: Value) -> Value:
        return self.k.pure("scalar.compare", [x, y], {"predicate": predicate}, self.loc)

    def both(self, name: str, x: Value, y: Value) -> Value:
        return self.k.pure("scalar." + name, [x, y], None, self.loc)

    def select(self, c: Value, x: Value, y: Value) -> Value:
        return self.k.pure("scalar.select", [c, x, y], None, self.loc)

    def before(self, x: Value, j: Value, y: Value, i: Value) -> Value:
        """Element x at j comes before y at i in the order: NaN is above everything, of equal ones the first in the row comes first.
        Indices matter only to those who go backwards, else j is behind i."""
        first = self._above(x, y) if self.down else self._above(y, x)
        if not self.backwards:
            return first
        equal = self.compare("eq", x, y)
        if self.dtype.is_float:
            equal = self.both("or", equal, self.both("and", self.compare("ne", x, x), self.compare("ne", y, y)))
        return self.both("or", first, self.both("and", equal, self.compare("lt", j, i)))

    def _above(self, x: Value, y: Value) -> Value:
        out = self.compare("gt", x, y)
        return self.both("or", out, self.both("and", self.compare("ne", x, x), self.compare("eq", y, y))) if self.dtype.is_float else out

    def perhaps(self, x: Value, y: Value, equal: bool = False) -> Value:
        """Whether x may come before an earlier y (or a later one, with `equal`), by one comparison: so it is, or one of them is NaN."""
        predicate = ("lt" if self.down else "gt") if equal else "le" if self.down else "ge"
        return self.k.pure("scalar.not", [self.compare(predicate, x, y)], None, self.loc)

    # ---- the row ----
    def run(self, n: int) -> list[Value]:
        """The state after n elements."""
        k = self.k
        state = self.fill()
        blocks, tail = divmod(n - self.keep, self.block)
        if blocks:
            scope = k.open(k.root, [I64, *(v.type for v in state)])
            i, *inner = scope.block.args
            inner = self._block(scope, k.add(k.mul(i, self.block), self.keep), self.block, inner)
            state = k.close(scope, "loop.for", [k.index(0), k.index(blocks), *state], {"step": 1}, inner, self.loc)
        return self._block(k.root, k.index(n - tail), tail, state) if tail else state

    def _block(self, scope: Scope, first: Value, size: int, state: list[Value]) -> list[Value]:
        """Tests `size` elements at once, and only if one may enter, each."""
        k = self.k
        lanes = k.open(scope)
        may_enter = self.perhaps(self.element(k.add(first, lanes.block.args[0])), self.last(state))
        found, = k.close(lanes, "loop.reduce", [k.index(0), k.index(size)], {"kinds": ["or"]}, [may_enter], self.loc)

        def each(inside: Scope) -> list[Value]:
            s = k.open(inside, [I64, *(v.type for v in state)])
            i, *now = s.block.args
            j = k.add(first, k.sub(size - 1, i) if self.backwards else i)
            x = self.element(j)
            now = self._when(s, self.enters(x, j, now), lambda inner: self.enter(inner, j, x, now), now)
            return k.close(s, "loop.for", [k.index(0), k.index(size), *state], {"step": 1}, now, self.loc)
        return self._when(scope, found, each, state)

    def _when(self, scope: Scope, cond: Value, then: Callable[[Scope], list[Value]], otherwise: list[Value]) -> list[Value]:
        inner, other = Scope(scope, Block([])), Block([])
        yields = then(inner)
        for block, out in ((inner.block, yields), (other, otherwise)):
            block.append(Op("scf.yield", list(out), {}, (), (), self.loc))
        op = scope.block.append(Op("loop.if", [cond], {}, [v.type for v in yields], [inner.block, other], self.loc))
        for r in op.results:
            self.k.home[r] = scope
        return op.results


class InRegisters(Best):
    """The kept are carried scalars: the values in order, then their indices."""

    def fill(self) -> list[Value]:
        kept: list[Value] = []
        for i in range(self.keep):
            j = self.k.index(i)
            x = self.element(j)
            kept = self._placed(j, x, [*kept[:i], x, *kept[i:], j])
        return kept

    def last(self, state: list[Value]) -> Value:
        return state[self.keep - 1]

    def enters(self, x: Value, j: Value, state: list[Value]) -> Value:
        return self.before(x, j, self.last(state), state[-1])

    def enter(self, scope: Scope, j: Value, x: Value, state: list[Value]) -> list[Value]:
        return self._placed(j, x, state)

    def _placed(self, j: Value, x: Value, state: list[Value]) -> list[Value]:
        """Element x at j in its place, which is at the latest the last."""
        n = len(state) // 2
        values, order = state[:n], state[n:]
        takes = [self.before(x, j, v, i) for v, i in zip(values[:-1], order)]
        out = []
        for kept, new in ((values, x), (order, j)):
            here = [self.select(c, new, old) for c, old in zip(takes, kept)] + [new]
            out += here[:1] + [self.select(c, old, chosen) for c, old, chosen in zip(takes, kept, here[1:])]
        return out

    def each(self, state: list[Value], store: Callable[[Value, Value, Value, Scope], None]) -> None:
        for p in range(self.keep):
            store(self.k.index(p), state[p], state[self.keep + p], self.k.root)


class InMemory(Best):
    """The kept are a list in private memory; the state is where it begins and its last value.

    In front of the list is a guard that nothing comes before, so that each new place is chosen, in lanes, from the old one, its
    neighbour in front and the new element. Two lists take turns. Short lists see each block backwards: of a row in ascending order
    only `keep` elements of a block enter the list of the largest, not all.
    """

    def __init__(self, k: Kernel, element: Callable[[Value], Value], dtype: DType, op: Op):
        super().__init__(k, element, dtype, op)
        self.places = -(-self.keep // LANES) * LANES
        self.half = self.places + 1
        fitting = [n for n in BLOCKS if self.keep * BACKWARDS <= n]
        self.block, self.backwards = min(fitting, default=BLOCKS[0]), bool(fitting)
        self.values, self.order = (k.emit("loop.alloc", [], {"type": BufferType(t, (2 * self.half,))}, op.loc, k.root).result for t in (dtype, i64))

    def load(self, buffer: Value, at: Value, scope: Scope) -> Value:
        return self.k.emit("loop.load", [buffer, at], None, self.loc, scope).result

    def store(self, x: Value, buffer: Value, at: Value, scope: Scope) -> None:
        self.k.emit("loop.store", [x, buffer, at], None, self.loc, scope)

    def in_lanes(self, scope: Scope, n: int, body: Callable[[Value, Scope], None]) -> None:
        inner = self.k.open(scope)
        body(inner.block.args[0], inner)
        self.k.close(inner, "loop.for", [self.k.index(0), self.k.index(n)], {"step": 1, "independent": True}, [], self.loc)

    def fill(self) -> list[Value]:
        k, t = self.k, self.dtype
        least, most = (float("-inf"), float("nan")) if t.is_float else (False, True) if t.is_bool else (t.min, t.max)

        def guard(p: Value, lanes: Scope) -> None:
            self.store(k.constant(most if self.down else least, t), self.values, p, lanes)
            self.store(k.index(0), self.order, p, lanes)
        self.in_lanes(k.root, 2 * self.half, guard)
        scope = k.open(k.root, [I64, I64])
        j, at = scope.block.args
        to = self._placed(scope, j, self.element(j), at, filling=True)
        at, = k.close(scope, "loop.for", [k.index(0), k.index(self.keep), k.index(0)], {"step": 1}, [to], self.loc)
        return [at, self.load(self.values, k.add(at, self.keep), k.root)]

    def last(self, state: list[Value]) -> Value:
        return state[1]

    def enters(self, x: Value, j: Value, state: list[Value]) -> Value:
        """Perhaps: one that does not come before the last changes nothing."""
        return self.perhaps(x, self.last(state), self.backwards)

    def enter(self, scope: Scope, j: Value, x: Value, state: list[Value]) -> list[Value]:
        to = self._placed(scope, j, x, state[0])
        return [to, self.load(self.values, self.k.add(to, self.keep), scope)]

    def _placed(self, scope: Scope, j: Value, x: Value, at: Value, filling: bool = False) -> Value:
        """Where the new list begins. While it is `filling`, the old one has j elements."""
        k = self.k
        to = k.sub(self.half, at)

        def choose(p: Value, lanes: Scope) -> None:
            front = k.add(at, p)
            here = k.add(front, 1)
            (a, ia), (b, ib) = ((self.load(self.values, q, lanes), self.load(self.order, q, lanes)) for q in (front, here))
            shift, takes = self.before(x, j, a, ia), self.before(x, j, b, ib)
            if filling:
                takes = self.both("or", takes, self.compare("ge", p, j))
            there = k.add(k.add(to, p), 1)
            self.store(self.select(shift, a, self.select(takes, x, b)), self.values, there, lanes)
            self.store(self.select(shift, ia, self.select(takes, j, ib)), self.order, there, lanes)
        self.in_lanes(scope, self.places, choose)
        return to

    def each(self, state: list[Value], store: Callable[[Value, Value, Value, Scope], None]) -> None:
        def one(p: Value, lanes: Scope) -> None:
            at = self.k.add(self.k.add(state[0], p), 1)
            store(p, self.load(self.values, at, lanes), self.load(self.order, at, lanes), lanes)
        self.in_lanes(self.k.root, self.keep, one)
