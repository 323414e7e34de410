"""The base tensor ops on whole tensors: movement, reductions, contractions, run-time indexing.

Each function takes (ev, op, operands) and returns one list of elements per result; `ev.round(elements, dtype)` rounds or wraps.
Sums of floats are exact (math.fsum) and rounded once, whatever the order: a backend is within n * eps * sum |x| of them.
"""
from __future__ import annotations

import operator
from functools import reduce
from itertools import accumulate
from math import fsum, prod

import numpy as np

from ..compiler.ir.types import row_major
from .indexing import check_index, gather, outer, rows, strided, unrows
from .numerics import RunTimeFault, bitcast, cast, from_numpy
from .semantics_scalar import COMPARE, maximum, minimum, steps

TENSOR: dict = {}


def define(*names: str):
    def enter(fn):
        TENSOR.update(dict.fromkeys(names, fn))
        return fn
    return enter


# ---- elementwise -------------------------------------------------------------------------------------------------------


def elementwise(ev, op, xs):
    """Any row that `semantics_scalar` has functions for."""
    dtype = xs[0].dtype
    first, *rest = steps(op.name.partition(".")[2], dtype)
    out = ev.round(list(map(first, *(x.data for x in xs))), dtype)
    for fn in rest:
        out = ev.round(list(map(fn, out)), dtype)
    return [out]


@define("tensor.compare")
def _compare(ev, op, xs):
    return [list(map(COMPARE[op.attrs["predicate"]], xs[0].data, xs[1].data))]


@define("tensor.select")
def _select(ev, op, xs):
    return [[a if c else b for c, a, b in zip(*(x.data for x in xs))]]


@define("tensor.cast")
def _cast(ev, op, xs):
    return [cast(xs[0].data, xs[0].dtype, op.attrs["dtype"], ev.shadow)]


@define("tensor.bitcast")
def _bitcast(ev, op, xs):
    return [bitcast(xs[0].data, xs[0].dtype, op.attrs["dtype"])]


# ---- movement ----------------------------------------------------------------------------------------------------------


@define("tensor.constant")
def _constant(ev, op, xs):
    value, type = op.attrs["value"], op.attrs["type"]
    if isinstance(value, np.ndarray):
        return [from_numpy(value, type.dtype).data]
    return [ev.round([value], type.dtype) * type.numel]


@define("tensor.iota")
def _iota(ev, op, xs):
    shape = tuple(op.attrs["shape"])
    along = strided(shape, tuple(int(d == op.attrs["dim"]) for d in range(len(shape))))
    return [ev.round(along, op.attrs["dtype"])]


@define("tensor.broadcast")
def _broadcast(ev, op, xs):
    x, shape = xs[0], tuple(op.attrs["shape"])
    strides = [0] * len(shape)
    for d, n, s in zip(op.attrs["dims"], x.shape, row_major(x.shape)):
        strides[d] = s if n != 1 else 0
    return [gather(x.data, strided(shape, tuple(strides)))]


@define("tensor.reshape", "tensor.stop_gradient", "autodiff.watch")
def _same(ev, op, xs):
    return [xs[0].data]


@define("tensor.transpose")
def _transpose(ev, op, xs):
    x, perm, strides = xs[0], op.attrs["perm"], row_major(xs[0].shape)
    return [gather(x.data, strided(tuple(x.shape[p] for p in perm), tuple(strides[p] for p in perm)))]


@define("tensor.slice")
def _slice(ev, op, xs):
    a = op.attrs
    return [gather(xs[0].data, outer(0, [[i * s for i in range(lo, hi, st)] for lo, hi, st, s in
                                         zip(a["start"], a["limit"], a["stride"], row_major(xs[0].shape))]))]


@define("tensor.reverse")
def _reverse(ev, op, xs):
    x, dims = xs[0], op.attrs["dims"]
    return [gather(x.data, outer(0, [[i * s for i in (reversed(range(n)) if d in dims else range(n))]
                                     for d, (n, s) in enumerate(zip(x.shape, row_major(x.shape)))]))]


@define("tensor.pad")
def _pad(ev, op, xs):
    (x, value), shape = xs, op.results[0].type.shape
    source, target = [], []                             # per dim: steps of the elements that are not cropped
    for d, (n, s, t) in enumerate(zip(x.shape, row_major(x.shape), row_major(shape))):
        to = [(i, op.attrs["low"][d] + i * (op.attrs["interior"][d] + 1)) for i in range(n)]
        kept = [(i, j) for i, j in to if 0 <= j < shape[d]]
        source.append([i * s for i, _ in kept])
        target.append([j * t for _, j in kept])
    out = [value.item] * prod(shape)
    for i, j in zip(outer(0, source), outer(0, target)):
        out[j] = x.data[i]
    return [out]


@define("tensor.concat")
def _concat(ev, op, xs):
    d = op.attrs["dim"]
    sizes = [prod(x.shape[d:]) for x in xs]
    return [[v for k in range(prod(xs[0].shape[:d])) for x, n in zip(xs, sizes) for v in x.data[k * n:(k + 1) * n]]]


# ---- reductions --------------------------------------------------------------------------------------------------------


def exact_sum(terms: list) -> float:
    """The sum, rounded once; a sum starts at +0. Where it overflows or meets both infinities: as IEEE addition in order."""
    try:
        return fsum(terms) + 0.0
    except (OverflowError, ValueError):
        return reduce(operator.add, terms, 0.0)


def wrapping_mul(a: int, b: int) -> int:
    return a * b & 0xFFFFFFFFFFFFFFFF                   # low 64 bits: the caller wraps further


def _reduction(number, integer):
    def semantics(ev, op, xs):
        x = xs[0]
        fn = number if x.dtype.is_float else integer
        return [ev.round([fn(r) for r in rows(x, op.attrs["dims"])], x.dtype)]
    return semantics


TENSOR["tensor.reduce_sum"] = _reduction(exact_sum, sum)
TENSOR["tensor.reduce_prod"] = _reduction(prod, lambda r: reduce(wrapping_mul, r, 1))


def _extreme(fn, builtin, identity):
    def semantics(ev, op, xs):
        x = xs[0]
        fold = fn if x.dtype.is_float else builtin
        return [[reduce(fold, r, identity(x.dtype)) for r in rows(x, op.attrs["dims"])]]
    return semantics


TENSOR["tensor.reduce_max"] = _extreme(maximum, max, lambda dt: dt.min)
TENSOR["tensor.reduce_min"] = _extreme(minimum, min, lambda dt: dt.max)


def _arg(better):
    def first(row):
        best = 0
        for i, v in enumerate(row):
            if v != v:
                return i
            if better(v, row[best]):
                best = i
        return best
    return lambda ev, op, xs: [[first(r) for r in rows(xs[0], [op.attrs["dim"]])]]


TENSOR["tensor.argmax"] = _arg(operator.gt)
TENSOR["tensor.argmin"] = _arg(operator.lt)


def _running(number, integer):
    def semantics(ev, op, xs):
        x, dim = xs[0], [op.attrs["dim"]]
        fn = number if x.dtype.is_float else integer
        if op.attrs["reverse"]:
            out = [list(accumulate(reversed(r), fn))[::-1] for r in rows(x, dim)]
        else:
            out = [list(accumulate(r, fn)) for r in rows(x, dim)]
        return [ev.round(unrows(out, x.shape, dim), x.dtype)]
    return semantics


TENSOR["tensor.cumsum"] = _running(operator.add, operator.add)
TENSOR["tensor.cumprod"] = _running(operator.mul, wrapping_mul)


def sorted_order(values: list, descending: bool) -> list[int]:
    """The stable order of values; NaN counts as the largest."""
    return sorted(range(len(values)), key=lambda i: (1, 0) if values[i] != values[i] else (0, values[i]), reverse=descending)


@define("tensor.sort")
def _sort(ev, op, xs):
    x, dim = xs[0], [op.attrs["dim"]]
    parts = rows(x, dim)
    orders = [sorted_order(r, op.attrs["descending"])[:op.attrs.get("keep")] for r in parts]
    values = [gather(r, order) for r, order in zip(parts, orders)]
    shape = op.results[0].type.shape
    return [unrows(values, shape, dim), unrows(orders, shape, dim)]


# ---- contractions ------------------------------------------------------------------------------------------------------


def exact_dot(a: list, b: list) -> float:
    try:
        return fsum(map(operator.mul, a, b)) + 0.0
    except (OverflowError, ValueError):
        return reduce(operator.add, map(operator.mul, a, b), 0.0)


def int_dot(a: list, b: list) -> int:
    return sum(map(operator.mul, a, b))


def contraction(out, lhs, rhs, sizes: dict, lhs_memory, rhs_memory, dot) -> list:
    """out[..] = sum over the letters missing from `out` of lhs[..] * rhs[..], unrounded, in row-major order of out.

    `out`, `lhs`, `rhs` are sequences of index letters (any hashable); a memory is (data, offset, strides).
    """
    summed = [c for c in dict.fromkeys([*lhs, *rhs]) if c not in out]

    def vectors(letters, memory):
        """The vectors to be multiplied, one per position of the letters kept; and which one each result takes."""
        data, offset, strides = memory
        at = dict(zip(letters, strides))
        terms = strided(tuple(sizes[c] for c in summed), tuple(at.get(c, 0) for c in summed))
        kept = [c for c in out if c in at]
        shape = tuple(sizes[c] for c in kept)
        starts = strided(shape, tuple(at[c] for c in kept), offset)
        number = dict(zip(kept, row_major(shape)))
        which = strided(tuple(sizes[c] for c in out), tuple(number.get(c, 0) for c in out))
        return [[data[s + t] for t in terms] for s in starts], which

    a, which_a = vectors(lhs, lhs_memory)
    b, which_b = vectors(rhs, rhs_memory)
    return [dot(a[i], b[j]) for i, j in zip(which_a, which_b)]


@define("tensor.dot_general")
def _dot_general(ev, op, xs):
    x, y = xs
    dtype = op.attrs.get("dtype") or x.dtype
    lb, rb, lc, rc = (list(op.attrs[k]) for k in ("lhs_batch", "rhs_batch", "lhs_contract", "rhs_contract"))
    lhs = [("batch", lb.index(d)) if d in lb else ("k", lc.index(d)) if d in lc else ("lhs", d) for d in range(len(x.shape))]
    rhs = [("batch", rb.index(d)) if d in rb else ("k", rc.index(d)) if d in rc else ("rhs", d) for d in range(len(y.shape))]
    out = [("batch", i) for i in range(len(lb))] + [c for c in lhs if c[0] == "lhs"] + [c for c in rhs if c[0] == "rhs"]
    sizes = dict(zip(lhs + rhs, x.shape + y.shape))
    sums = contraction(out, lhs, rhs, sizes, (x.data, 0, row_major(x.shape)), (y.data, 0, row_major(y.shape)),
                       exact_dot if dtype.is_float else int_dot)
    return [ev.round(sums, dtype)]


# ---- run-time positions ------------------------------------------------------------------------------------------------


def _block(x, starts, sizes) -> list[int]:
    """Positions in x of the block of `sizes` at run-time `starts`."""
    for s, size, n in zip(starts, sizes, x.shape):
        if not 0 <= s.item <= n - size:
            raise RunTimeFault(f"{'index' if size == 1 else 'slice start'} {s.item} is out of range 0..{n - size + 1}")
    strides = row_major(x.shape)
    return strided(tuple(sizes), strides, sum(s.item * t for s, t in zip(starts, strides)))


@define("tensor.dynamic_slice")
def _dynamic_slice(ev, op, xs):
    return [gather(xs[0].data, _block(xs[0], xs[1:], op.attrs["sizes"]))]


@define("tensor.dynamic_update_slice")
def _dynamic_update_slice(ev, op, xs):
    out = list(xs[0].data)
    for i, v in zip(_block(xs[0], xs[2:], xs[1].shape), xs[1].data):
        out[i] = v
    return [out]


def _taken(x, indices, d) -> list[int]:
    """Positions in x of take's result: x's dim d is replaced by the dims of `indices`."""
    steps = [[i * s for i in range(n)] for n, s in zip(x.shape, row_major(x.shape))]
    stride = row_major(x.shape)[d]
    steps[d] = [check_index(i, x.shape[d]) * stride for i in indices.data]
    return outer(0, steps)


@define("tensor.take")
def _take(ev, op, xs):
    return [gather(xs[0].data, _taken(xs[0], xs[1], op.attrs["dim"]))]


def _added(ev, x, positions, updates):
    out = list(x.data)
    for i, v in zip(positions, updates.data):
        out[i] += v
    return [ev.round(out, x.dtype)]


@define("tensor.scatter_add")
def _scatter_add(ev, op, xs):
    return _added(ev, xs[0], _taken(xs[0], xs[1], op.attrs["dim"]), xs[2])


def _along(x, indices, d) -> list[int]:
    """Positions in x of take_along's result: at each position of `indices`, dim d is replaced by the index."""
    strides = row_major(x.shape)
    base = strided(indices.shape, tuple(0 if k == d else s for k, s in enumerate(strides)))
    return [p + check_index(i, x.shape[d]) * strides[d] for p, i in zip(base, indices.data)]


@define("tensor.take_along")
def _take_along(ev, op, xs):
    return [gather(xs[0].data, _along(xs[0], xs[1], op.attrs["dim"]))]


@define("tensor.put_along_add")
def _put_along_add(ev, op, xs):
    return _added(ev, xs[0], _along(xs[0], xs[1], op.attrs["dim"]), xs[2])


@define("tensor.assert")
def _assert(ev, op, xs):
    if not xs[0].item:
        raise RunTimeFault(op.attrs["message"])
    return []
