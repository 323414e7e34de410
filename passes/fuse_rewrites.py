"""Rewrites that fusion makes first. They regroup sums, or compute both sides of a small `if`, so they are no canonical forms:

* scf.if with a few cheap number ops in its branches     ->  both, and a select
* y + scatter_add(0, i, u)                               ->  scatter_add(y, i, u)
* pad(a) + pad(b) + ..., side by side along one dim     ->  concat(a, b, ...)
* dot_general(cast(a), cast(b)), casts that keep every value  ->  dot_general(a, b) {dtype}, which reads the narrow ones
* x . w, a vector by a large matrix whose rows are summed  ->  the sum over a few chunks of rows of their products
* x . y of vectors, one each or a batch of them         ->  the sum of x * y, which threads and lanes share
* x <= 0 ? 0 : g back to the largest of each window of x  ->  (maximum <= 0 ? 0 : g) back to them: relu's gradient behind a max pool's
* fold_windows(w . g), the gradient of a convolution     ->  reversed w . windows(padded g), which stores no windows
                                                            (where strides of 2 x 2 would make three of four products by zero, it stays)
"""
from __future__ import annotations

import math

from ..compiler.ir.builder import Builder
from ..compiler.ir.core import Block, Op, Value, clone_op, rewrite, uses
from ..compiler.ir.opdef import OPS
from ..compiler.ir.types import TensorType, accumulator, widens
from .cost import MATRIX_CHUNKS, MATRIX_ELEMENTS, cost
from .fuse_graph import separate_windows, small_contraction

SPREAD = 4                          # places per place of g, spread by a stride, from which on products with the zeros between cost more than windows in memory
BRANCH_COST = 16                    # both branches of an `if` on single numbers are computed up to this cost


def rewrite_block(block: Block) -> None:
    """All rewrites, in two sweeps over the block and its regions."""
    used = uses(block)

    def once(v: Value) -> bool:
        return len(used.get(v, ())) == 1 and isinstance(v.owner, Op)

    def step(op: Op, out: Block) -> list[Value] | None:
        if op.name == "scf.if":
            return _select(op, out)
        if op.name == "tensor.add":
            return _scatter(op, out, once) or _side_by_side(op, out, used)
        if op.name == "tensor.select":
            return _masked_pool(op, out, once, used)
        if op.name == "tensor.dot_general":
            return _narrow_operands(op, out) or _vectors(op, out) or _vector_by_matrix(op, out)
        if op.name == "tensor.fold_windows" and not separate_windows(op) and math.prod(op.attrs["stride"]) < SPREAD:
            return _transposed_convolution(op, out, once)
        return None

    rewrite(block, step)
    rewrite(block, _bordered)                          # when what folds has been found
    remove_unused(block)


def remove_unused(block: Block) -> None:
    """Drops ops without effects whose results nobody uses."""
    live = set()
    for op in block.walk():
        if op.regions or not OPS[op.name].pure or OPS[op.name].terminator or op.name == "func.call":
            live.update(op.operands)

    def sweep(b: Block) -> None:
        for op in reversed(b.ops):
            for r in op.regions:
                sweep(r)
            if any(r in live for r in op.results):
                live.update(op.operands)

    def drop(b: Block) -> None:
        b.ops = [op for op in b.ops if not op.results or op.regions or not OPS[op.name].pure or op.name == "func.call"
                 or any(r in live for r in op.results)]
        for op in b.ops:
            for r in op.regions:
                drop(r)

    sweep(block)
    drop(block)


def _vectors(op: Op, out: Block) -> list[Value] | None:
    """A product of which nothing is used twice is no matrix product."""
    a, (x, y) = op.attrs, op.operands
    if small_contraction(op) or op.result.type.dtype.name not in ("f32", "f64", "i32", "i64") or any(v.type.dtype is not op.result.type.dtype for v in (x, y)):
        return None
    sides, b = [], Builder(out, op.loc)
    for v, batch, summed in ((x, a["lhs_batch"], a["lhs_contract"]), (y, a["rhs_batch"], a["rhs_contract"])):
        free = [d for d in range(v.type.rank) if d not in batch and d not in summed]
        if any(v.type.shape[d] != 1 for d in free):
            return None
        sides.append((v, [*free, *batch, *summed], len(free)))
    n = len(a["lhs_batch"])
    terms = [b.reshape(t, t.type.shape[free:]) for t, free in ((b.transpose(v, perm), free) for v, perm, free in sides)]
    return [b.reshape(b.sum(b.mul(*terms), list(range(n, terms[0].type.rank))), op.result.type.shape)]


def _vector_by_matrix(op: Op, out: Block) -> list[Value] | None:
    """In chunks of rows, so that each thread reads one piece of memory from its start to its end; split by columns, it would read short runs.
    The chunks do not depend on the number of threads."""
    x, w = op.operands
    a = op.attrs
    if a["lhs_batch"] or list(a["rhs_contract"]) != [0] or w.type.rank != 2 or not op.result.type.dtype.is_float or x.type.dtype is not w.type.dtype:
        return None
    (c,), (k, n) = a["lhs_contract"], w.type.shape
    if x.type.numel > 2 * k or k % MATRIX_CHUNKS or w.type.numel < MATRIX_ELEMENTS or c != x.type.rank - 1:
        return None
    b, p = Builder(out, op.loc), MATRIX_CHUNKS
    parts = b.op("tensor.dot_general", [b.reshape(x, (*x.type.shape[:-1], p, k // p)), b.reshape(w, (p, k // p, n))],
                 {**a, "lhs_batch": [c], "rhs_batch": [0], "lhs_contract": [c + 1], "rhs_contract": [1]}).result
    return [b.sum(parts, [0])]


def _select(op: Op, out: Block) -> list[Value] | None:
    for r in op.regions:
        for o in r.ops[:-1]:
            if not (OPS[o.name].elementwise or o.name == "tensor.constant") or o.results[0].type.numel != 1 or not OPS[o.name].pure \
                    or (o.name in ("tensor.floordiv", "tensor.mod", "tensor.fmod") and o.results[0].type.dtype.is_int):
                return None
        if sum(cost(o) for o in r.ops[:-1]) > BRANCH_COST:
            return None
    if any(v.type.numel != 1 and r.ops[:-1] for r in op.regions for v in r.terminator.operands):
        return None
    sides = []
    for r in op.regions:
        env: dict[Value, Value] = {}
        out.ops.extend(clone_op(o, env) for o in r.ops[:-1])
        sides.append([env.get(v, v) for v in r.terminator.operands])
    b = Builder(out, op.loc)
    cond = op.operands[0]
    return [x if x is y else b.select(b.broadcast(cond, x.type.shape, []), x, y) for x, y in zip(*sides)]


def _scatter(op: Op, out: Block, once) -> list[Value] | None:
    for s, y in (op.operands, reversed(op.operands)):
        o = s.owner
        if not once(s) or o.name not in ("tensor.scatter_add", "tensor.put_along_add"):
            continue
        zero = o.operands[0].owner
        if not (isinstance(zero, Op) and zero.name == "tensor.constant" and not hasattr(zero.attrs["value"], "shape") and zero.attrs["value"] == 0):
            continue
        return [Builder(out, o.loc).op(o.name, [y, *o.operands[1:]], dict(o.attrs)).result]
    return None


def _side_by_side(op: Op, out: Block, used) -> list[Value] | None:
    """The adjoints of slices of one array: a sum of arrays that are zero but for a part each."""
    if len(used.get(op.result, ())) == 1 and used[op.result][0].name == "tensor.add":
        return None                                    # the outermost addition sees them all
    parts: list[tuple[int, int, int, Value]] = []      # dim, first, last + 1, the part
    rest: list[Value] = []
    todo = list(reversed(op.operands))
    while todo:
        v = todo.pop()
        single = len(used.get(v, ())) == 1 and isinstance(v.owner, Op)
        if single and v.owner.name == "tensor.add":
            todo.extend(reversed(v.owner.operands))
        elif single and (part := _part(v.owner)) is not None:
            parts.append(part)
        else:
            rest.append(v)
    parts.sort(key=lambda p: p[:3])
    if len(parts) < 2 or len({p[0] for p in parts}) != 1 or any(p[2] > q[1] for p, q in zip(parts, parts[1:])):
        return None
    b, d = Builder(out, op.loc), parts[0][0]
    pieces, at = [], 0
    for _, lo, hi, x in [*parts, (d, op.result.type.shape[d], 0, None)]:
        if lo > at:
            shape = op.result.type.shape
            pieces.append(b.zeros(op.result.type.with_shape((*shape[:d], lo - at, *shape[d + 1:]))))
        if x is not None:
            pieces.append(x)
        at = hi
    total = b.op("tensor.concat", pieces, {"dim": d}).result
    for v in rest:
        total = b.add(v, total)
    return [total]


def _part(op: Op) -> tuple[int, int, int, Value] | None:
    """(dim, first, last + 1, x) of a pad that puts zeros before and after x along one dim."""
    if op.name != "tensor.pad" or any(op.attrs["interior"]) or min(*op.attrs["low"], *op.attrs["high"], 0) < 0:
        return None
    zero, x = op.operands[1].owner, op.operands[0]
    if not (isinstance(zero, Op) and zero.name == "tensor.constant" and not hasattr(zero.attrs["value"], "shape") and zero.attrs["value"] == 0):
        return None
    dims = [d for d, (lo, hi) in enumerate(zip(op.attrs["low"], op.attrs["high"])) if lo or hi]
    if len(dims) != 1:
        return None
    lo = op.attrs["low"][dims[0]]
    return dims[0], lo, lo + x.type.shape[dims[0]], x


def _is_zero(v: Value) -> bool:
    o = v.owner
    return isinstance(o, Op) and o.name == "tensor.constant" and not hasattr(o.attrs["value"], "shape") and o.attrs["value"] == 0


def _made(v: Value, *names: str) -> list[Op] | None:
    """The chain of ops that make v, the last one first; a reshape in front of one of them may be missing. None where it is another chain."""
    found: list[Op] = []
    for name in names:
        if found and found[-1].operands:
            v = found[-1].operands[0]
        o = v.owner
        if not isinstance(o, Op) or o.name != "tensor." + name:
            if name == "reshape":
                continue
            return None
        found.append(o)
    return found


def _masked_pool(op: Op, out: Block, once, used) -> list[Value] | None:
    """The element that a window's gradient goes to is its maximum, so relu's mask is a mask of maxima: a quarter of the elements for windows of 2 x 2, and
    nobody has to keep x."""
    mask, zero, f = op.operands
    if not (_is_zero(zero) and once(f) and once(mask)) or mask.owner.name != "tensor.compare" or mask.owner.attrs["predicate"] != "le" \
            or not _is_zero(mask.owner.operands[1]):
        return None
    x = mask.owner.operands[0]
    back = _made(f, "fold_windows", "reshape", "select")
    if back is None or not separate_windows(back[0]):
        return None
    pick = back[-1]
    hit, spread, none = pick.operands
    where = _made(hit, "compare", "iota")
    if where is None or not _is_zero(none) or where[0].attrs["predicate"] != "eq" or not once(pick.result):
        return None
    last = hit.type.rank - 1
    winner = _made(where[0].operands[1], "broadcast", "argmax", "reshape", "windows")
    if where[1].attrs["dim"] != last or winner is None or winner[1].attrs["dim"] != last or winner[-1].operands[0] is not x \
            or any(winner[-1].attrs[k] != back[0].attrs[k] for k in ("size", "stride", "dilation")) \
            or list(winner[0].attrs["dims"]) != list(range(last)) or (g := _made(spread, "broadcast")) is None or list(g[0].attrs["dims"]) != list(range(last)):
        return None
    b, g, windows = Builder(out, op.loc), g[0].operands[0], winner[1].operands[0]
    m = next((u.result for u in used[windows] if u.name == "tensor.reduce_max" and list(u.attrs["dims"]) == [last] and u in out.ops), None)
    m = b.reduce("max", windows, [last]) if m is None else m
    g = b.select(b.compare("le", m, b.zeros(m.type)), b.zeros(g.type), g)
    v = b.select(hit, b.broadcast(g, spread.type.shape, list(range(last))), none)
    return [b.op("tensor.fold_windows", [b.reshape(v, back[0].operands[0].type.shape)], back[0].attrs, loc=back[0].loc).result]


def _bordered(op: Op, out: Block) -> list[Value] | None:
    """What no window reaches are zeros behind the windows, which then lie side by side (lower_windows.py)."""
    if op.name != "tensor.fold_windows":
        return None
    a, shape = op.attrs, op.operands[0].type.shape
    n = len(a["size"])
    rest = [m - o * s for m, o, s in zip(a["shape"], shape[len(shape) - 2 * n:len(shape) - n], a["stride"])]
    if not any(rest) or min(rest) < 0 or any(k != s or d != 1 for k, s, d in zip(a["size"], a["stride"], a["dilation"])):
        return None
    b, lead = Builder(out, op.loc), [0] * (len(shape) - 2 * n)
    x = b.op("tensor.fold_windows", [op.operands[0]], {**a, "shape": [m - r for m, r in zip(a["shape"], rest)]}).result
    none = [0] * op.result.type.rank
    return [b.op("tensor.pad", [x, b.constant(0, TensorType(x.type.dtype))], {"low": none, "high": [*lead, *rest], "interior": none}).result]


def _narrow_operands(op: Op, out: Block) -> list[Value] | None:
    dtype = op.result.type.dtype
    new = []
    for v in op.operands:
        o = v.owner
        widened = isinstance(o, Op) and o.name == "tensor.cast" and widens(o.operands[0].type.dtype, dtype)
        new.append(o.operands[0] if widened else v)
    if new == list(op.operands) or accumulator(dtype) is not dtype:
        return None
    return [Builder(out, op.loc).op(op.name, new, {**op.attrs, "dtype": dtype}).result]


def _transposed_convolution(op: Op, out: Block, once) -> list[Value] | None:
    """x[.., s] = sum over windows o and places j with o * stride + j * dilation = s of (w . g)[.., o.., j..]: when the places come
    from one factor w and the windows from the other, g, it is reversed w against all windows of g, spread and padded."""
    y, kept = op.operands[0], None
    if once(y) and y.owner.name == "tensor.reshape":   # of a convolution in groups: a dim of 1 is dropped
        kept = _without_ones(y.owner.operands[0].type.shape, y.type.shape)
        if kept is None:
            return None
        y = y.owner.operands[0]
    perm = list(range(y.type.rank))
    if once(y) and y.owner.name == "tensor.transpose":
        perm, y = list(y.owner.attrs["perm"]), y.owner.operands[0]
    if not once(y) or y.owner.name != "tensor.dot_general" or not y.type.dtype.is_float:
        return None
    dot, n = y.owner, len(op.attrs["size"])
    batch = [list(dot.attrs["lhs_batch"]), list(dot.attrs["rhs_batch"])]
    contract = [list(dot.attrs["lhs_contract"]), list(dot.attrs["rhs_contract"])]
    free = [[d for d in range(v.type.rank) if d not in batch[s] + contract[s]] for s, v in enumerate(dot.operands)]
    source = [("batch", i) for i in range(len(batch[0]))] + [(0, d) for d in free[0]] + [(1, d) for d in free[1]]
    origin = [source[p] for p in perm]                 # of each dim of fold_windows' operand
    ones = [o for d, o in enumerate(origin) if kept is not None and d not in kept]
    origin = [o for o in origin if o not in ones]
    lead, places, kinds = origin[:-2 * n], origin[-2 * n:-n], origin[-n:]
    sides = {s for s, _ in places}, {s for s, _ in kinds}
    if "batch" in sides[0] | sides[1] or len(sides[0]) != 1 or len(sides[1]) != 1 or sides[0] == sides[1]:
        return None
    (gs,), (ws,) = sides
    g, w = dot.operands[gs], dot.operands[ws]
    b = Builder(out, op.loc)
    # g with its places last, spread by the stride and padded so that there is a window for every position of the result
    gp, wk = [d for _, d in places], [d for _, d in kinds]
    order = [d for d in range(g.type.rank) if d not in gp] + gp
    rest = len(order) - n
    low, high, inner = ([0] * rest for _ in range(3))
    for d, size, stride, dil, total in zip(gp, *(op.attrs[a] for a in ("size", "stride", "dilation", "shape"))):
        low.append((size - 1) * dil)
        high.append(total - (g.type.shape[d] - 1) * stride - 1)
        inner.append(stride - 1)
    p = b.op("tensor.pad", [b.transpose(g, order), b.constant(0, TensorType(g.type.dtype))], {"low": low, "high": high, "interior": inner}).result
    p = b.op("tensor.windows", [p], {"size": list(op.attrs["size"]), "stride": [1] * n, "dilation": list(op.attrs["dilation"])}).result
    r = b.op("tensor.reverse", [w], {"dims": sorted(wk)}).result
    # the contraction of before, and over the places in a window
    new_batch, new_contract = [None, None], [None, None]
    new_batch[ws], new_contract[ws] = batch[ws], contract[ws] + wk
    new_batch[gs] = [order.index(d) for d in batch[gs]]
    new_contract[gs] = [order.index(d) for d in contract[gs]] + list(range(p.type.rank - n, p.type.rank))
    pair = [None, None]
    pair[ws], pair[gs] = r, p
    z = b.op("tensor.dot_general", pair, {"lhs_batch": new_batch[0], "rhs_batch": new_batch[1], "lhs_contract": new_contract[0],
                                          "rhs_contract": new_contract[1]}, loc=dot.loc).result
    made = [("batch", i) for i in range(len(batch[0]))]
    for s in (0, 1):
        taken = new_batch[s] + new_contract[s]
        back = order + [None] * n if s == gs else list(range(w.type.rank))
        made += [(s, back[d]) for d in range(pair[s].type.rank) if d not in taken]
    return [b.reshape(b.transpose(z, [made.index(o) for o in [*lead, *places, *ones]]), op.result.type.shape)]


def _without_ones(shape, fewer) -> list[int] | None:
    """Which dims a reshape keeps that only drops dims of 1; None for any other."""
    kept: list[int] = []
    for d, n in enumerate(shape):
        if len(kept) < len(fewer) and n == fewer[len(kept)]:
            kept.append(d)
        elif n != 1:
            return None
    return kept if len(kept) == len(fewer) else None
