"""Rules for one element: movement, windows, run-time positions, random numbers, small contractions (see lower_elemental.py)."""
from __future__ import annotations

from ..compiler.ir.core import Op, Value
from ..compiler.ir.types import bool_, i64, u64
from .lower_elemental import Elements, accumulator, rule
from .lower_kernel import Index

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
    counts = y.type.shape[lead:lead + n]
    if all(d == 1 and j <= s for j, s, d in zip(*(op.attrs[a] for a in ("size", "stride", "dilation")))):
        return _separate_windows(g, op, y, at, lead, counts)

    dims = list(zip(at[lead:], counts, *(op.attrs[a] for a in ("size", "stride", "dilation"))))

    def body(ivs):
        conds, pos, places = [], [], []
        for i, (s, o, size, st, di) in zip(ivs, dims):
            if st > 1 and di == 1:                     # only every st-th place has windows that begin at a multiple of st
                t, j = k.sub(k.div(s, st), i), k.add(k.mod(s, st), k.mul(i, st))
                conds.append(k.between(j, None, size - 1) if size % st else None)
                j, st = (k.clamp(j, 0, size - 1) if size % st else j), 1
            else:
                t, j = k.sub(s, k.mul(i, di)), i
            conds.append(k.between(t, 0, (o - 1) * st))
            t = k.clamp(t, 0, (o - 1) * st)
            if st > 1:
                conds.append(k.pure("scalar.compare", [k.mod(t, st), k.index(0)], {"predicate": "eq"}, op.loc))
            pos.append(k.div(t, st))
            places.append(j)
        e = g.cast(g.at(y, Index(y.type.shape, (*at[:lead], *pos, *places))), accumulator(dtype))
        return [k.pure("scalar.select", [k.all([c for c in conds if c is not None]), e, k.constant(0, e.type.dtype)], None, op.loc)]

    turns = [-(-size // st) if st > 1 and di == 1 else size for _, _, size, st, di in dims]
    return g.cast(g.reduce_nest(k.scope_of(at), turns, ["add"], body, op.loc)[0], dtype)


def _separate_windows(g, op, y, at, lead, counts):
    """Windows that do not overlap: every position is in one window at most."""
    k, conds, out, place = g.k, [], [], []
    for s, j, st, o, m in zip(at[lead:], op.attrs["size"], op.attrs["stride"], counts, op.attrs["shape"]):
        window, p = k.div(s, st), k.mod(s, st)
        if m > o * st:
            conds.append(k.between(window, None, o - 1))
            window = k.clamp(window, 0, o - 1)
        if j < st:
            conds.append(k.between(p, None, j - 1))
            p = k.clamp(p, 0, j - 1)
        out.append(window)
        place.append(p)
    value, inside = g.at(y, Index(y.type.shape, (*at[:lead], *out, *place))), k.all(conds)
    return value if inside is None else k.pure("scalar.select", [inside, value, k.constant(0, y.type.dtype)], None, op.loc)


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
    return [g.checked_index(g.item(s), n - size + 1, op, f"{'index' if size == 1 else 'slice start'} {{}} is out of range 0..{n - size + 1}")
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

    def products(ivs):
        p, q = {**left, **dict(zip(lc, ivs))}, {**right, **dict(zip(rc, ivs))}
        xs = (g.at(v, Index(v.type.shape, tuple(pos[d] for d in range(v.type.rank)))) for v, pos in ((x, p), (y, q)))
        return [k.pure("scalar.mul", [g.cast(v, accumulator(dtype)) for v in xs], None, op.loc)]

    if not lc:
        return g.cast(products([])[0], dtype)
    return g.cast(g.reduce_nest(k.scope_of(at), [x.type.shape[d] for d in lc], ["add"], products, op.loc)[0], dtype)
