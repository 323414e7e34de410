"""Pull-style generation: the scalar code that computes one element of a tensor op's result at a given index.

`Elements.at(value, index)` asks the producer's rule, which asks for the elements it needs in turn, down to the leaves (buffers,
numbers). Equal requests are answered once. How elements become kernels is in lower_kernels.py.
"""
from __future__ import annotations

import itertools
from collections.abc import Callable

from ..compiler.ir.core import Op, Value
from ..compiler.ir.dims import product
from ..compiler.ir.opdef import OPS
from ..compiler.ir.types import DType, accumulator, i32, i64
from .cost import UNROLLED
from .lower_kernel import Index, Kernel, Scope

RULES: dict[str, Callable[[Elements, Op, Index], Value]] = {}
ONCE = {"tensor.reduce_sum", "tensor.reduce_prod", "tensor.reduce_max", "tensor.reduce_min", "tensor.argmax", "tensor.argmin",
        "tensor.dot_general", "tensor.fold_windows"}
SUMS = {"tensor.reduce_sum": "add", "tensor.reduce_prod": "mul", "tensor.reduce_max": "max", "tensor.reduce_min": "min"}


def is_elementwise(name: str) -> bool:
    return OPS[name].elementwise


def can_pull(name: str) -> bool:
    """Whether an element of the op's result can be generated anywhere."""
    return name in RULES or is_elementwise(name)


class Elements:
    """Elements of one kernel. `producers`: values computed inside the kernel and their ops; `leaf(v)`: where other values are."""

    def __init__(self, kernel: Kernel, producers: dict[Value, Op], leaf: Callable[[Value], Leaf]):
        self.k, self.producers, self.leaf = kernel, producers, leaf
        self.memo: dict[tuple, Value] = {}
        self.needs: dict[Op, set[Op]] = {}
        self.rows: dict[Value, tuple] = {}       # values kept in a private row buffer: (buffer, the row's index)
        self.partial: dict[Value, Callable[[Index], Value]] = {}   # values with a special source (second stage of a split reduction)
        self.active: set[Op] = set()             # reductions being generated
        self.reductions: list[Op] = []           # reductions of this kernel that may be computed together with an equal-shaped one

    def at(self, v: Value, index: Index) -> Value:
        """The scalar v[index]."""
        op = self.producers.get(v)
        if op is not None and op.name in ONCE:         # never twice for two spellings of one position
            index = Index(v.type.shape, self.k.resolve(index, v.type.shape))
        key = self.key(v, index)
        out = self.memo.get(key)
        if out is None:
            out = self.memo[key] = self._make(v, index)
        return out

    def key(self, v: Value, index: Index) -> tuple:
        """What identifies a request: dims of size 1 say nothing."""
        return (v, tuple((n, i) for n, i in zip(*index) if n != 1))

    def item(self, v: Value) -> Value:
        """The element of a rank-0 value."""
        return self.at(v, Index((), ()))

    def _make(self, v: Value, index: Index) -> Value:
        special = self.partial.get(v)
        if special is not None:
            return special(index)
        row = self.rows.get(v)
        if row is not None:
            (buffer, head), at = row, self.k.resolve(index, v.type.shape)
            if at[:len(head)] == head:
                cols = Index(v.type.shape[len(head):], at[len(head):])
                return self.k.pure("loop.load", [buffer, *self.k.resolve(cols, buffer.type.shape)])
        op = self.producers.get(v)
        if op is None:
            return self.leaf(v).load(self.k, index)
        rule = RULES.get(op.name)
        if rule is not None:
            return rule(self, op, index)
        return self.elementwise(op, index)

    def dims(self, op: Op, index: Index) -> tuple[Value, ...]:
        """The index as one scalar per dim of op's (first) result."""
        return self.k.resolve(index, op.results[0].type.shape)

    # ---- elementwise ----
    def elementwise(self, op: Op, index: Index) -> Value:
        xs = [self.at(x, index) for x in op.operands]
        name = "scalar." + op.name[len("tensor."):]
        if name in ("scalar.floordiv", "scalar.mod", "scalar.fmod") and xs[0].type.dtype.is_int:
            return self.int_division(name, xs[0], xs[1], op)
        if name == "scalar.compare" and xs[0].type.dtype is i64:
            narrow = [self.narrow(x) for x in xs]
            xs = xs if None in narrow else narrow
        return self.k.pure(name, xs, op.attrs, op.loc)

    def narrow(self, x: Value) -> Value | None:
        """An i64 as an i32, where it certainly is one."""
        if x in self.k.consts:
            return self.k.constant(self.k.consts[x], i32) if abs(self.k.consts[x]) < 1 << 31 else None
        return x.owner.operands[0] if isinstance(x.owner, Op) and x.owner.name == "scalar.cast" and x.owner.operands[0].type.dtype is i32 else None

    def int_division(self, name: str, x: Value, y: Value, op: Op) -> Value:
        """Division that cannot trap: zero is reported and replaced by 1; x // -1 is a negation (the least value has no quotient)."""
        k, dtype = self.k, y.type.dtype
        c = y.owner.attrs["value"] if isinstance(y.owner, Op) and y.owner.name == "scalar.constant" else None
        if c is not None and c not in (0, -1):
            return k.pure(name, [x, y], None, op.loc)
        one = k.constant(1, dtype)
        zero = k.pure("scalar.compare", [y, k.constant(0, dtype)], {"predicate": "eq"}, op.loc)
        self.check(k.pure("scalar.not", [zero], None, op.loc), k.index(0), "integer division by zero", op)
        if dtype.kind == "uint":
            return k.pure(name, [x, k.pure("scalar.select", [zero, one, y], None, op.loc)], None, op.loc)
        minus = k.pure("scalar.compare", [y, k.constant(-1, dtype)], {"predicate": "eq"}, op.loc)
        safe = k.pure("scalar.select", [k.pure("scalar.or", [zero, minus]), one, y], None, op.loc)
        q = k.pure(name, [x, safe], None, op.loc)
        if name == "scalar.floordiv":
            q = k.pure("scalar.select", [minus, k.pure("scalar.neg", [x], None, op.loc), q], None, op.loc)
        return q

    def check(self, cond: Value, value: Value, message: str, op: Op) -> None:
        """A run-time assertion, once per (condition, message)."""
        scope = self.k.scope_of([cond, value])
        key = ("assert", cond, value, message)
        if key not in scope.memo:
            scope.memo[key] = None
            self.k.emit("loop.assert", [cond, value], {"message": message}, op.loc, scope)

    def checked_index(self, i: Value, n: int, op: Op, message: str | None = None) -> Value:
        """i as an i64 that is certainly within 0..n (n > 0); outside is a run-time error."""
        i = self.cast(i, i64)
        if i in self.k.consts and 0 <= self.k.consts[i] < n:
            return i
        self.check(self.k.between(i, 0, n - 1), i, message or f"index {{}} is out of range 0..{n}", op)
        return self.k.clamp(i, 0, n - 1)

    def cast(self, x: Value, dtype: DType) -> Value:
        return x if x.type.dtype is dtype else self.k.pure("scalar.cast", [x], {"dtype": dtype})

    # ---- reductions ----
    def reduce_nest(self, parent: Scope, sizes: list[int], kinds: list[str], body: Callable[[list[Value]], list[Value]], loc) -> list[Value]:
        """Nested loop.reduce over `sizes` in `parent`; body gets the indices and gives one scalar per kind. Dims of size 1 need no loop."""
        k = self.k
        if 0 < product(sizes) <= UNROLLED:
            return self.unrolled(sizes, kinds, body, loc)
        scopes, ivs = [], []
        for n in sizes:
            if n == 1:
                ivs.append(k.index(0))
                continue
            parent = k.open(parent)
            scopes.append((parent, n))
            ivs.append(parent.block.args[0])
        out = body(ivs)
        for scope, n in reversed(scopes):
            out = k.close(scope, "loop.reduce", [k.index(0), k.index(n)], {"kinds": list(kinds)}, out, loc)
        return list(out)

    def unrolled(self, sizes: list[int], kinds: list[str], body: Callable[[list[Value]], list[Value]], loc) -> list[Value]:
        """A short reduction without a loop: code around it can then be vectorised."""
        out: list[Value] = []
        for at in itertools.product(*map(range, sizes)):
            part = body([self.k.index(i) for i in at])
            out = part if not out else [self.k.pure("scalar." + kind, [x, y], None, loc) for kind, x, y in zip(kinds, out, part)]
        return out

    def depends(self, a: Op, b: Op) -> bool:
        """Whether a needs b's result, inside the kernel."""
        if a not in self.needs:
            seen: set[Op] = set()
            todo = [a]
            while todo:
                for v in todo.pop().operands:
                    p = self.producers.get(v)
                    if p is not None and p not in seen:
                        seen.add(p)
                        todo.append(p)
            self.needs[a] = seen
        return b in self.needs[a]


def rule(*names: str):
    def add(fn):
        for n in names:
            RULES[n] = fn
        return fn
    return add


# ---- leaves ------------------------------------------------------------------------------------------------------------


class Leaf:
    """A value that exists before the kernel."""

    def load(self, k: Kernel, index: Index) -> Value:
        raise NotImplementedError


class NumberLeaf(Leaf):
    """The same number everywhere."""

    def __init__(self, value, dtype: DType):
        self.value, self.dtype = value, dtype

    def load(self, k, index):
        return k.constant(self.value, self.dtype)


class ScalarLeaf(Leaf):
    """A scalar of the host level everywhere, e.g. a loop index."""

    def __init__(self, value: Value):
        self.value = value

    def load(self, k, index):
        return self.value


class BufferLeaf(Leaf):
    """A buffer: `reshaped(shape)` gives it under another shape where its layout allows that, else None."""

    def __init__(self, shape: tuple[int, ...], buffer: Callable[[], Value], reshaped: Callable[[tuple[int, ...]], Value | None]):
        self.shape, self.buffer, self.reshaped = shape, buffer, reshaped

    def load(self, k, index):
        if index.shape != self.shape:
            view = self.reshaped(index.shape)
            if view is not None:
                return k.pure("loop.load", [view, *index.at])
        return k.pure("loop.load", [self.buffer(), *k.resolve(index, self.shape)])


# ---- reductions --------------------------------------------------------------------------------------------------------


def reducer(op: Op) -> str:
    kind = SUMS[op.name]
    return {"max": "or", "min": "and"}.get(kind, kind) if op.operands[0].type.dtype.is_bool else kind


def identity(op: Op):
    kind, dtype = SUMS[op.name], op.operands[0].type.dtype
    return {"add": 0, "mul": 1, "max": dtype.min, "min": dtype.max}[kind]


@rule(*SUMS)
def _reduce(g, op, index):
    k, x = g.k, op.operands[0]
    dtype = x.type.dtype
    if x.type.numel == 0:
        return k.constant(identity(op), dtype)
    at = k.resolve(index, op.result.type.shape)
    ops, dims = [op], op.attrs["dims"]
    for o in g.reductions:                             # others over the same range share the loop
        if o not in g.active and all(_joint(g, o, p) for p in ops) and not any(g.depends(o, a) for a in g.active) and g.key(o.result, index) not in g.memo:
            ops.append(o)
    g.active.update(ops)

    def body(ivs):
        full, kept, red = [], iter(at), iter(ivs)
        for d in range(x.type.rank):
            full.append(next(red) if d in dims else next(kept))
        out = []
        for o in ops:
            e = g.at(o.operands[0], Index(x.type.shape, tuple(full)))
            out.append(g.cast(e, accumulator(e.type.dtype)) if SUMS[o.name] in ("add", "mul") else e)
        return out

    results = g.reduce_nest(k.scope_of(at), [x.type.shape[d] for d in dims], [reducer(o) for o in ops], body, op.loc)
    g.active.difference_update(ops)
    results = [g.cast(r, o.result.type.dtype) for o, r in zip(ops, results)]
    for o, r in zip(ops[1:], results[1:]):
        g.memo[g.key(o.result, index)] = r
    return results[0]


def _joint(g: Elements, other: Op, op: Op) -> bool:
    """Whether `other` runs over the same range as op and neither needs the other's result."""
    if other is op or other.operands[0].type.shape != op.operands[0].type.shape or other.attrs["dims"] != op.attrs["dims"]:
        return False
    return not g.depends(other, op) and not g.depends(op, other)


@rule("tensor.argmax", "tensor.argmin")
def _arg(g, op, index):
    # The extreme value first, then the least index that has it: two exact reductions, which vectorise. A NaN is the extreme when
    # there is one, and equals nothing: then it is the least index of a NaN.
    k, x, d = g.k, op.operands[0], op.attrs["dim"]
    at = k.resolve(index, op.result.type.shape)
    dtype, n, scope = x.type.dtype, x.type.shape[d], k.scope_of(at)
    best_kind = {"argmax": ("max", "or"), "argmin": ("min", "and")}[op.name[7:]][dtype.is_bool]

    def element(iv):
        return g.at(x, Index(x.type.shape, (*at[:d], iv, *at[d:])))

    best = g.reduce_nest(scope, [n], [best_kind], lambda ivs: [element(ivs[0])], op.loc)[0]

    def body(ivs):
        e = element(ivs[0])
        hit = k.pure("scalar.compare", [e, best], {"predicate": "eq"}, op.loc)
        if dtype.is_float:
            hit = k.pure("scalar.or", [hit, k.pure("scalar.compare", [e, e], {"predicate": "ne"}, op.loc)])
        i, last = (k.constant(k.consts[ivs[0]], i32), k.constant(n - 1, i32)) if n <= UNROLLED else (ivs[0], k.index(n - 1))
        return [k.pure("scalar.select", [hit, i, last], None, op.loc)]

    return g.cast(g.reduce_nest(scope, [n], ["min"], body, op.loc)[0], i64)       # unrolled: as wide as an f32, so that a vector holds as many
