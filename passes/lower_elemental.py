"""Pull-style generation: the scalar code that computes one element of a tensor op's result at a given index.

`Elements.at(value, index)` asks the producer's rule, which asks for the elements it needs in turn, down to the leaves (buffers,
numbers). Equal requests are answered once. How elements become kernels is in lower_kernels.py.
"""
from __future__ import annotations

from collections.abc import Callable

from ..compiler.ir.core import Op, Value
from ..compiler.ir.opdef import OPS
from ..compiler.ir.types import DType, bf16, bool_, f16, f32, i64, u64
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
        return self.k.pure(name, xs, op.attrs, op.loc)

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


# ---- movement ----------------------------------------------------------------------------------------------------------


@rule("tensor.constant")
def _constant(g, op, index):
    value = op.attrs["value"]
    if hasattr(value, "shape"):
        raise ValueError("a dense constant is a leaf, not part of a kernel")
    return g.k.constant(value, op.result.type.dtype)


@rule("tensor.iota")
def _iota(g, op, index):
    return g.cast(g.dims(op, index)[op.attrs["dim"]], op.result.type.dtype)


@rule("tensor.reshape", "tensor.stop_gradient")
def _reshape(g, op, index):
    return g.at(op.operands[0], index)


@rule("tensor.broadcast")
def _broadcast(g, op, index):
    x = op.operands[0]
    if x.type.numel == 1:                              # no dim's index matters
        return g.at(x, Index(x.type.shape, (g.k.index(0),) * x.type.rank))
    at = g.dims(op, index)
    return g.at(x, Index(x.type.shape, tuple(g.k.index(0) if n == 1 else at[d] for n, d in zip(x.type.shape, op.attrs["dims"]))))


@rule("tensor.transpose")
def _transpose(g, op, index):
    at, perm = g.dims(op, index), op.attrs["perm"]
    return g.at(op.operands[0], Index(op.operands[0].type.shape, tuple(at[perm.index(d)] for d in range(len(perm)))))


@rule("tensor.slice")
def _slice(g, op, index):
    at = g.dims(op, index)
    return g.at(op.operands[0], Index(op.operands[0].type.shape, tuple(
        g.k.add(g.k.mul(i, st), lo) for i, lo, st in zip(at, op.attrs["start"], op.attrs["stride"]))))


@rule("tensor.reverse")
def _reverse(g, op, index):
    at, shape = g.dims(op, index), op.result.type.shape
    return g.at(op.operands[0], Index(shape, tuple(
        g.k.sub(n - 1, i) if d in op.attrs["dims"] else i for d, (i, n) in enumerate(zip(at, shape)))))


@rule("tensor.pad")
def _pad(g, op, index):
    x, fill = op.operands
    if x.type.numel == 0:
        return g.item(fill)
    k, at, conds, pos = g.k, g.dims(op, index), [], []
    for d, i in enumerate(at):
        n, low, high, inner = x.type.shape[d], op.attrs["low"][d], op.attrs["high"][d], op.attrs["interior"][d]
        i = k.sub(i, k.index(low)) if low >= 0 else k.add(i, -low)
        conds.append(k.between(i, 0 if low > 0 else None, (n - 1) * (inner + 1) if high > 0 else None))
        if low > 0 or high > 0:
            i = k.clamp(i, 0, (n - 1) * (inner + 1))
        if inner and n > 1:
            conds.append(k.pure("scalar.compare", [k.mod(i, inner + 1), k.index(0)], {"predicate": "eq"}, op.loc))
        pos.append(k.div(i, inner + 1))
    value = g.at(x, Index(x.type.shape, tuple(pos)))
    inside = k.all(conds)
    return value if inside is None else k.pure("scalar.select", [inside, value, g.item(fill)], None, op.loc)


@rule("tensor.concat")
def _concat(g, op, index):
    k, d, at = g.k, op.attrs["dim"], g.dims(op, index)
    out, lo = None, 0
    for x in op.operands:
        n = x.type.shape[d]
        if x.type.numel == 0:
            continue
        i = k.add(at[d], -lo)
        if n != op.result.type.shape[d]:
            i = k.clamp(i, 0, n - 1)
        value = g.at(x, Index(x.type.shape, (*at[:d], i, *at[d + 1:])))
        out = value if out is None else k.pure("scalar.select", [k.between(at[d], lo, None), value, out], None, op.loc)
        lo += n
    return out


@rule("tensor.windows")
def _windows(g, op, index):
    x, at, n = op.operands[0], g.dims(op, index), len(op.attrs["size"])
    lead = x.type.rank - n
    space = (g.k.add(g.k.mul(o, st), g.k.mul(j, di)) for o, j, st, di in zip(at[lead:lead + n], at[lead + n:], op.attrs["stride"], op.attrs["dilation"]))
    return g.at(x, Index(x.type.shape, (*at[:lead], *space)))


@rule("tensor.fold_windows")
def _fold_windows(g, op, index):
    """Each position sums the windows that cover it, in ascending order of its place in them."""
    k, y, n = g.k, op.operands[0], len(op.attrs["size"])
    dtype, at = y.type.dtype, g.dims(op, index)
    if y.type.numel == 0:
        return k.constant(0, dtype)
    lead = y.type.rank - 2 * n
    if all(d == 1 and j == s and m % s == 0 for j, s, d, m in zip(*(op.attrs[a] for a in ("size", "stride", "dilation", "shape")))):
        sizes = op.attrs["size"]                       # every position is in exactly one window
        return g.at(y, Index(y.type.shape, (*at[:lead], *(k.div(s, j) for s, j in zip(at[lead:], sizes)), *(k.mod(s, j) for s, j in zip(at[lead:], sizes)))))
    counts = y.type.shape[lead:lead + n]

    def body(ivs):
        conds, pos = [], []
        for s, j, o, st, di in zip(at[lead:], ivs, counts, op.attrs["stride"], op.attrs["dilation"]):
            t = k.sub(s, k.mul(j, di))
            conds.append(k.between(t, 0, (o - 1) * st))
            t = k.clamp(t, 0, (o - 1) * st)
            if st > 1:
                conds.append(k.pure("scalar.compare", [k.mod(t, st), k.index(0)], {"predicate": "eq"}, op.loc))
            pos.append(k.div(t, st))
        e = g.cast(g.at(y, Index(y.type.shape, (*at[:lead], *pos, *ivs))), accumulator(dtype))
        return [k.pure("scalar.select", [k.all(conds), e, k.constant(0, e.type.dtype)], None, op.loc)]

    return g.cast(g.reduce_nest(k.scope_of(at), list(op.attrs["size"]), ["add"], body, op.loc)[0], dtype)


# ---- run-time positions --------------------------------------------------------------------------------------------------


@rule("tensor.take")
def _take(g, op, index):
    x, indices = op.operands
    d, r, at = op.attrs["dim"], indices.type.rank, g.dims(op, index)
    return _gather(g, op, x, d, g.at(indices, Index(indices.type.shape, at[d:d + r])), at[:d], at[d + r:])


@rule("tensor.take_along")
def _take_along(g, op, index):
    x, indices = op.operands
    d, at = op.attrs["dim"], g.dims(op, index)
    return _gather(g, op, x, d, g.at(indices, Index(indices.type.shape, at)), at[:d], at[d + 1:])


@rule("tensor.put_along_add")
def _put_along_add(g, op, index):
    """With one update per row (what `fuse` groups): x, plus the update at the row's index."""
    x, indices, updates = op.operands
    d, at, k = op.attrs["dim"], g.dims(op, index), g.k
    if indices.type.shape[d] != 1:
        raise ValueError("put_along_add of several updates is a kernel of its own")
    row = Index(indices.type.shape, (*at[:d], k.index(0), *at[d + 1:]))
    i = g.checked_index(g.at(indices, row), x.type.shape[d], op)
    hit = k.pure("scalar.compare", [at[d], i], {"predicate": "eq"}, op.loc)
    old = g.at(x, index)
    new = k.pure("scalar.add", [old, g.at(updates, row)], None, op.loc)
    return k.pure("scalar.select", [hit, new, old], None, op.loc)


def _gather(g, op, x, d, i, before, after):
    n = x.type.shape[d]
    if n == 0:
        g.check(g.k.constant(False, bool_), g.cast(i, i64), "index {} is out of range 0..0", op)
        return g.k.constant(False if x.type.dtype.is_bool else 0, x.type.dtype)
    return g.at(x, Index(x.type.shape, (*before, g.checked_index(i, n, op), *after)))


def slice_starts(g: Elements, op: Op, starts: list[Value], shape, sizes) -> list[Value]:
    """The start indices of a block, checked and clamped."""
    return [g.checked_index(g.item(s), n - size + 1, op, f"slice start {{}} is out of range 0..{n - size + 1}")
            for s, n, size in zip(starts, shape, sizes)]


@rule("tensor.dynamic_slice")
def _dynamic_slice(g, op, index):
    x = op.operands[0]
    starts = slice_starts(g, op, op.operands[1:], x.type.shape, op.attrs["sizes"])
    return g.at(x, Index(x.type.shape, tuple(g.k.add(s, i) for s, i in zip(starts, g.dims(op, index)))))


@rule("tensor.dynamic_update_slice")
def _dynamic_update_slice(g, op, index):
    x, u = op.operands[:2]
    starts = slice_starts(g, op, op.operands[2:], x.type.shape, u.type.shape)
    old = g.at(x, index)
    if u.type.numel == 0:
        return old
    k, conds, pos = g.k, [], []
    for i, s, n, size in zip(g.dims(op, index), starts, x.type.shape, u.type.shape):
        j = k.sub(i, s)
        if size != n:
            conds.append(k.between(j, 0, size - 1))
            j = k.clamp(j, 0, size - 1)
        pos.append(j)
    new, inside = g.at(u, Index(u.type.shape, tuple(pos))), k.all(conds)
    return new if inside is None else k.pure("scalar.select", [inside, new, old], None, op.loc)


# ---- random numbers ----------------------------------------------------------------------------------------------------


def philox(g: Elements, key: Value, counter: Value, domain: int, op: Op) -> list[Value]:
    """The four words; `counter` is an i64."""
    counter = g.cast(counter, u64)
    scope = g.k.scope_of([key, counter])
    memo = ("philox", key, counter, domain)
    if memo not in scope.memo:
        scope.memo[memo] = g.k.emit("scalar.philox", [key, counter], {"domain": domain}, op.loc, scope).results
    return scope.memo[memo]


@rule("random.bits")
def _bits(g, op, index):
    k, key = g.k, op.operands[0]
    lead, shape = key.type.shape, op.result.type.shape
    n = 1
    for s in shape[len(lead):]:
        n *= s
    at = k.resolve(index, (*lead, n))
    e = at[-1]
    words = philox(g, g.at(key, Index(lead, at[:-1])), k.div(e, 4), 0, op)
    word, out = k.mod(e, 4), words[0]
    for i in (1, 2, 3):
        if n > i:
            out = k.pure("scalar.select", [k.pure("scalar.compare", [word, k.index(i)], {"predicate": "eq"}, op.loc), words[i], out], None, op.loc)
    return out


@rule("random.fold_in")
def _fold_in(g, op, index):
    key, data = (g.at(v, index) for v in op.operands)
    words = philox(g, key, data, 1, op)
    high = g.k.pure("scalar.shl", [g.cast(words[1], u64), g.k.constant(32, u64)], None, op.loc)
    return g.k.pure("scalar.or", [high, g.cast(words[0], u64)], None, op.loc)


# ---- reductions --------------------------------------------------------------------------------------------------------


def accumulator(dtype: DType) -> DType:
    """What sums and products of a dtype are kept in."""
    return f32 if dtype in (f16, bf16) else dtype


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
        return [k.pure("scalar.select", [hit, ivs[0], k.index(n - 1)], None, op.loc)]

    return g.reduce_nest(scope, [n], ["min"], body, op.loc)[0]


# ---- contractions ------------------------------------------------------------------------------------------------------


@rule("tensor.dot_general")
def _dot_general(g, op, index):
    """A small contraction as a plain sum; without contracted dims, a product."""
    k, (x, y), a = g.k, op.operands, op.attrs
    lb, rb, lc, rc = (list(a[n]) for n in ("lhs_batch", "rhs_batch", "lhs_contract", "rhs_contract"))
    lf = [d for d in range(x.type.rank) if d not in lb + lc]
    rf = [d for d in range(y.type.rank) if d not in rb + rc]
    dtype = op.result.type.dtype
    if x.type.numel == 0 or y.type.numel == 0:
        return k.constant(0, dtype)
    at = g.dims(op, index)
    nb, nl = len(lb), len(lf)
    left, right = dict(zip(lb, at[:nb])), dict(zip(rb, at[:nb]))
    left.update(zip(lf, at[nb:nb + nl]))
    right.update(zip(rf, at[nb + nl:]))

    def product(ivs):
        p, q = {**left, **dict(zip(lc, ivs))}, {**right, **dict(zip(rc, ivs))}
        xs = (g.at(v, Index(v.type.shape, tuple(pos[d] for d in range(v.type.rank)))) for v, pos in ((x, p), (y, q)))
        return [k.pure("scalar.mul", [g.cast(v, accumulator(dtype)) for v in xs], None, op.loc)]

    if not lc:
        return g.cast(product([])[0], dtype)
    return g.cast(g.reduce_nest(k.scope_of(at), [x.type.shape[d] for d in lc], ["add"], product, op.loc)[0], dtype)
