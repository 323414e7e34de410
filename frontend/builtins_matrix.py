"""Triangles and diagonals of matrices."""
from __future__ import annotations

from ..compiler.ir import TensorType, Value, i64
from .builtins import builtin
from .builtins_shape import cut
from .tensors import constant
from .values import Undecidable, type_text


def band(b, t: TensorType, diagonal, lower: bool) -> Value:
    """bool[.., m, n]: whether column <= row + diagonal (lower) or >= (upper)."""
    m, n = t.shape[-2], t.shape[-1]
    rows, cols = b.iota((m, n), 0), b.iota((m, n), 1)
    edge = b.add(rows, constant(b, diagonal, i64, (m, n)))
    return b.broadcast(b.compare("le" if lower else "ge", cols, edge), t.shape)


def _triangle(cx, x, diagonal, lower: bool) -> Value:
    x = cx.tensor(x)
    if x.type.rank < 2:
        cx.fail(f"`{cx.name}` needs a matrix, got {type_text(x.type)}", "x")
    b = cx.b
    return b.select(band(b, x.type, cx.int(diagonal, "diagonal"), lower), x, b.zeros(x.type))


@builtin()
def tril(cx, x, diagonal=0):
    """The lower triangle of the last two dims, zeros elsewhere."""
    return _triangle(cx, x, diagonal, True)


@builtin()
def triu(cx, x, diagonal=0):
    """The upper triangle of the last two dims, zeros elsewhere."""
    return _triangle(cx, x, diagonal, False)


@builtin()
def causal(cx, x):
    """Attention scores [.., queries, keys] with -inf where a query would see later keys; the last query is aligned with the last key."""
    b = cx.b
    x = cx.float(x)
    if x.type.rank < 2:
        cx.fail(f"`causal` needs scores [.., queries, keys], got {type_text(x.type)}", "x")
    t, s = x.type.shape[-2:]
    return b.select(band(b, x.type, s - t, True), x, float("-inf"))


def _plane(cx, x, dim1, dim2) -> Value:
    """x with the two dims last."""
    if x.type.rank < 2:
        cx.fail(f"`{cx.name}` needs at least two dimensions, got {type_text(x.type)}", "x")
    i, j = cx.dim(dim1, x.type.rank, "dim1"), cx.dim(dim2, x.type.rank, "dim2")
    if i == j:
        cx.fail("`dim1` and `dim2` are the same dimension", "dim2")
    return cx.b.transpose(x, [*[d for d in range(x.type.rank) if d not in (i, j)], i, j])


@builtin()
def diagonal(cx, x, offset=0, dim1=-2, dim2=-1):
    """The diagonal of the last two dims (or dim1, dim2); `offset` counts diagonals upwards from the main one.  It becomes the last dim."""
    b = cx.b
    x = _plane(cx, cx.tensor(x), dim1, dim2)
    *lead, m, n = x.type.shape
    k = cx.int(offset, "offset")
    if not isinstance(m, int) or not isinstance(n, int):
        if m != n or k != 0:
            raise Undecidable
        eye = b.compare("eq", b.iota((m, n), 0), b.iota((m, n), 1))
        return b.sum(b.select(b.broadcast(eye, x.type.shape), x, b.zeros(x.type)), [x.type.rank - 1])
    count = max(0, min(m, n - k) if k >= 0 else min(m + k, n))
    start = k if k >= 0 else -k * n
    if not count:
        return b.zeros(TensorType(x.type.dtype, (*lead, 0)))
    flat = b.reshape(x, (*lead, m * n))
    return cut(b, flat, len(lead), start, start + (count - 1) * (n + 1) + 1, n + 1)


@builtin()
def diag_embed(cx, x, offset=0, dim1=-2, dim2=-1):
    """Matrices with x's last dim as their diagonal, zeros elsewhere; their dims are dim1 and dim2 of the result."""
    b = cx.b
    x = cx.tensor(x)
    if not x.type.rank:
        cx.fail("`diag_embed` needs at least one dimension, got a scalar", "x")
    *lead, c = x.type.shape
    k = cx.int(offset, "offset")
    if not isinstance(c, int):
        raise Undecidable
    n = c + abs(k)
    i, j = cx.dim(dim1, x.type.rank + 1, "dim1"), cx.dim(dim2, x.type.rank + 1, "dim2")
    if i == j:
        cx.fail("`dim1` and `dim2` are the same dimension", "dim2")
    if c:
        low = k if k >= 0 else -k * n
        high = n * n - low - ((c - 1) * (n + 1) + 1)
        d = len(lead)
        y = b.op("tensor.pad", [x, b.constant(0, TensorType(x.type.dtype))], {"low": [0] * d + [low], "high": [0] * d + [high],
                                                                             "interior": [0] * d + [n]}).result
        y = b.reshape(y, (*lead, n, n))
    else:
        y = b.zeros(TensorType(x.type.dtype, (*lead, n, n)))
    order: list = [None] * (x.type.rank + 1)
    order[i], order[j] = x.type.rank - 1, x.type.rank
    rest = iter(range(x.type.rank - 1))
    return b.transpose(y, [next(rest) if p is None else p for p in order])


@builtin()
def diag(cx, x, diagonal=0):
    """Of a vector, the matrix with it as diagonal; of a matrix, its diagonal."""
    x = cx.tensor(x)
    if x.type.rank not in (1, 2):
        cx.fail(f"`diag` takes a vector or a matrix, got {type_text(x.type)}", "x", hint="`diagonal` and `diag_embed` work on more dimensions")
    return diag_embed(cx, x, diagonal) if x.type.rank == 1 else diagonal_of(cx, x, diagonal)


diagonal_of = diagonal


@builtin()
def trace(cx, x):
    """The sum of the diagonal."""
    d = diagonal(cx, x)
    if not d.type.dtype.is_float:
        d = cx.b.cast(d, i64)
    return cx.b.sum(d, [d.type.rank - 1])
