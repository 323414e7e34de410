"""Operations at run-time positions: gathering, scattering, tables.  An index out of range is a run-time error."""
from __future__ import annotations

from ..compiler.ir import TensorType, Value, bool_, i64
from .builtins import builtin
from .builtins_reduce import line
from .tensors import broadcast_shapes, is_weak, together
from .values import describe, type_text


def _indices(cx, v, arg: str = "index") -> Value:
    if isinstance(v, list | tuple):
        from .builtins_make import tensor_from_list
        v = tensor_from_list(cx.b, list(v), None)
    v = cx.tensor(v, arg)
    if not v.type.dtype.is_int:
        cx.fail(f"`{arg}` of `{cx.name}` holds whole numbers, got {type_text(v.type)}", arg)
    return v


def _from_start(b, i: Value, size) -> Value:
    """Indices with negative ones, which count from the end, made positive."""
    if i.type.dtype.kind != "int" or not isinstance(size, int):
        return i
    wide = b.cast(i, i64)
    return b.select(b.compare("lt", wide, 0), b.add(wide, size), wide)


@builtin()
def take(cx, x, index, dim=None):
    """x's slices at `index` along dim; without dim, elements of the flattened x.  Negative indices count from the end."""
    b = cx.b
    x = cx.tensor(x)
    if dim is None:
        x, d = b.reshape(x, (x.type.numel,)), 0
    else:
        x, d = line(cx, x, dim)
    return b.op("tensor.take", [x, _from_start(b, _indices(cx, index), x.type.shape[d])], {"dim": d}).result


@builtin()
def index_select(cx, x, dim, index):
    """x's slices at `index` along dim."""
    b = cx.b
    scalar = cx.tensor(x).type.rank == 0
    x, d = line(cx, x, dim)
    i = _indices(cx, index)
    y = b.op("tensor.take", [x, i if i.type.rank else b.reshape(i, (1,))], {"dim": d}).result
    return b.reshape(y, ()) if scalar else y


def _along(cx, x, dim, index) -> tuple[Value, Value, int, tuple]:
    """(x, index, dim) for an operation along a dim, scalars as one element; and the index's shape."""
    x, d = line(cx, x, dim)
    i = _indices(cx, index)
    shape = i.type.shape
    return x, cx.b.reshape(i, (1,)) if not i.type.rank and x.type.rank == 1 else i, d, shape


@builtin()
def gather(cx, x, dim, index):
    """torch.gather: y[.., j, ..] = x[.., index[.., j, ..], ..] along dim."""
    b = cx.b
    x, i, d, shape = _along(cx, x, dim, index)
    if 0 in shape:                                             # nothing to gather: an empty index may have any shape
        return b.zeros(TensorType(x.type.dtype, shape))
    return b.reshape(b.op("tensor.take_along", [x, i], {"dim": d}).result, shape)


@builtin()
def take_along_dim(cx, x, index, dim=None):
    """x at `index` along dim, the other dims broadcast against each other; without dim, of the flattened x.  Negative indices count from
    the end."""
    b = cx.b
    x, i = cx.tensor(x), _indices(cx, index)
    if dim is None:
        i = _from_start(b, b.reshape(i, (i.type.numel,)), x.type.numel)
        return b.op("tensor.take_along", [b.reshape(x, (x.type.numel,)), i], {"dim": 0}).result
    if x.type.rank != i.type.rank:
        cx.fail(f"`index` needs as many dimensions as {type_text(x.type)}, got {type_text(i.type)}", "index")
    d = cx.dim(dim, x.type.rank)
    without = broadcast_shapes(*[(*v.type.shape[:d], 1, *v.type.shape[d + 1:]) for v in (x, i)])
    x, i = (b.broadcast(v, (*without[:d], v.type.shape[d], *without[d + 1:])) for v in (x, i))
    return b.op("tensor.take_along", [x, _from_start(b, i, x.type.shape[d])], {"dim": d}).result


def _source(cx, src, index: Value, x: Value) -> Value:
    """What is written: a tensor of the index's shape (the leading part of a larger one), or a number."""
    b = cx.b
    if is_weak(src):
        return together(b, (src, b.zeros(TensorType(x.type.dtype, index.type.shape))), x.type.dtype)[0]
    v = b.cast(cx.tensor(src, "src"), x.type.dtype)
    if v.type.shape == index.type.shape:
        return v
    if not v.type.rank and index.type.rank == 1:
        return b.reshape(v, (1,))
    if v.type.rank != index.type.rank or any(isinstance(p, int) and isinstance(q, int) and p < q for p, q in zip(v.type.shape, index.type.shape)):
        cx.fail(f"`src` {type_text(v.type)} is smaller than `index` {type_text(index.type)}", "src")
    return b.op("tensor.slice", [v], {"start": [0] * v.type.rank, "limit": list(index.type.shape), "stride": [1] * v.type.rank}).result


@builtin()
def scatter_add(cx, x, dim, index, src):
    """torch.scatter_add: x with `src` added at `index` along dim."""
    b = cx.b
    out = cx.tensor(x).type.shape
    x, i, d, _ = _along(cx, x, dim, index)
    if 0 in i.type.shape:
        return b.reshape(x, out)
    return b.reshape(b.op("tensor.put_along_add", [x, i, _source(cx, src, i, x)], {"dim": d}).result, out)


def _last_writers(b, index: Value, d: int) -> Value:
    """Which elements of an index no later one along dim equals: those whose value stays when all are written in order."""
    n = index.type.shape[d]
    s = b.op("tensor.sort", [b.cast(index, i64)], {"dim": d, "descending": False})
    values, order = s.results
    from .builtins_shape import cut
    edge = list(values.type.shape)
    edge[d] = 1
    differs = b.compare("ne", cut(b, values, d, 0, n - 1), cut(b, values, d, 1, n))
    last = b.op("tensor.concat", [differs, b.constant(True, TensorType(bool_, tuple(edge)))], {"dim": d}).result
    back = b.op("tensor.put_along_add", [b.zeros(TensorType(i64, index.type.shape)), order, b.cast(last, i64)], {"dim": d}).result
    return b.compare("ne", back, 0)


@builtin()
def scatter(cx, x, dim, index, src, reduce=None):
    """torch.scatter: x with `src` (a tensor or a number) written at `index` along dim; of equal indices the last counts.
    reduce = "add" adds it instead."""
    if reduce is not None:
        cx.choice(reduce, "reduce", "add")
        return scatter_add(cx, x, dim, index, src)
    b = cx.b
    out = cx.tensor(x).type.shape
    x, i, d, _ = _along(cx, x, dim, index)
    if 0 in i.type.shape:
        return b.reshape(x, out)
    if not x.type.dtype.is_float:
        cx.fail("`scatter` writes floats only", "x")
    u = _source(cx, src, i, x)
    last = _last_writers(b, i, d)
    ones = b.cast(last, x.type.dtype)
    put = b.op("tensor.put_along_add", [b.zeros(x.type), i, b.select(last, u, 0.0)], {"dim": d}).result
    hit = b.op("tensor.put_along_add", [b.zeros(x.type), i, ones], {"dim": d}).result
    return b.reshape(b.select(b.compare("gt", hit, 0.0), put, x), out)


@builtin()
def index_add(cx, x, dim, index, src, alpha=1):
    """x with alpha times slices of `src` added at `index` along dim."""
    b = cx.b
    out = cx.tensor(x).type.shape
    x, d = line(cx, x, dim)
    i, u = _indices(cx, index), b.cast(cx.tensor(src, "src"), x.type.dtype)
    i = b.reshape(i, (1,)) if not i.type.rank else i
    u = b.reshape(u, (1,)) if not u.type.rank else u
    if not (isinstance(alpha, int | float) and alpha == 1):
        u, k = together(b, (u, alpha), u.type.dtype)
        u = b.mul(u, k)
    return b.reshape(b.op("tensor.scatter_add", [x, i, u], {"dim": d}).result, out)


def _rows_hit(b, x: Value, i: Value, d: int) -> Value:
    """bool of x's shape: whether `index` names the slice along dim."""
    n, k = x.type.shape[d], i.type.shape[0]
    named = b.compare("eq", b.iota((n, k), 0), b.broadcast(b.cast(i, i64), (n, k), [1]))
    return b.broadcast(b.reduce("max", named, [1]), x.type.shape, [d])


@builtin()
def index_fill(cx, x, dim, index, value):
    """x with the slices at `index` along dim filled with a number."""
    b = cx.b
    out = cx.tensor(x).type.shape
    x, d = line(cx, x, dim)
    i = _indices(cx, index)
    i = b.reshape(i, (1,)) if not i.type.rank else i
    if 0 in i.type.shape:
        return b.reshape(x, out)
    v = together(b, (value, x), x.type.dtype)[0]
    return b.reshape(b.select(_rows_hit(b, x, i, d), v, x), out)


@builtin()
def index_copy(cx, x, dim, index, src):
    """x with the slices at `index` along dim replaced by those of `src`; of equal indices the last counts."""
    b = cx.b
    out = cx.tensor(x).type.shape
    x, d = line(cx, x, dim)
    i, u = _indices(cx, index), b.cast(cx.tensor(src, "src"), x.type.dtype)
    i = b.reshape(i, (1,)) if not i.type.rank else i
    u = b.reshape(u, (1,)) if not u.type.rank else u
    if 0 in i.type.shape:
        return b.reshape(x, out)
    u = b.select(b.broadcast(_last_writers(b, i, 0), u.type.shape, [d]), u, b.zeros(u.type))
    put = b.op("tensor.scatter_add", [b.zeros(x.type), i, u], {"dim": d}).result
    return b.reshape(b.select(_rows_hit(b, x, i, d), put, x), out)


@builtin()
def masked_fill(cx, x, mask, value):
    """x, but `value` where the mask is true."""
    b = cx.b
    x, m = cx.tensor(x), cx.tensor(mask, "mask")
    if not m.type.dtype.is_bool:
        cx.fail(f"`mask` holds bools, got {describe(m)}", "mask", hint="compare it: `mask != 0`")
    shape = broadcast_shapes(x.type.shape, m.type.shape)
    v = together(b, (value, b.broadcast(x, shape)), x.type.dtype)[0]
    return b.select(b.broadcast(m, shape), v, b.broadcast(x, shape))


@builtin()
def embedding(cx, index, weight, padding_idx=None):
    """weight[index]: rows of a table.  The row padding_idx gets no gradient."""
    b = cx.b
    i, w = _indices(cx, index), cx.tensor(weight, "weight")
    y = b.op("tensor.take", [w, i], {"dim": 0}).result
    if padding_idx is None:
        return y
    k = cx.int(padding_idx, "padding_idx")
    k = k + w.type.shape[0] if isinstance(k, int) and k < 0 and isinstance(w.type.shape[0], int) else k
    still = b.op("tensor.stop_gradient", [y]).result
    return b.select(b.broadcast(b.compare("eq", b.cast(i, i64), k), y.type.shape, list(range(i.type.rank))), still, y)
