"""Softmax, attention, and products: matmul, einsum and their relatives."""
from __future__ import annotations

import math

import numpy as np

from ..compiler.ir import TensorType, Value, f32, i64
from ..compiler.ir.dims import maybe_equal
from .builtins import builtin
from .builtins_math import _number
from .builtins_matrix import band
from .builtins_norm import affine, dropout
from .builtins_reduce import line
from .tensors import constant, together
from .values import Undecidable, type_text


def _along(cx, name: str, x, dim, dtype) -> Value:
    b = cx.b
    x = cx.float(x) if dtype is None else b.cast(cx.tensor(x), cx.dtype(dtype))
    y, d = line(cx, x, dim)
    return b.reshape(cx.op(name, [y], {"dim": d}), x.type.shape)


@builtin()
def softmax(cx, x, dim=-1, dtype=None):
    """exp(x) / sum(exp(x)) along dim, without overflow."""
    return _along(cx, "nn.softmax", x, dim, dtype)


@builtin()
def log_softmax(cx, x, dim=-1, dtype=None):
    """log(softmax(x)) along dim."""
    return _along(cx, "nn.log_softmax", x, dim, dtype)


@builtin()
def softmin(cx, x, dim=-1, dtype=None):
    """softmax(-x) along dim."""
    x = cx.float(x) if dtype is None else cx.b.cast(cx.tensor(x), cx.dtype(dtype))
    return _along(cx, "nn.softmax", cx.b.neg(x), dim, None)


# ---- attention --------------------------------------------------------------------------------------------------------

@builtin()
def scaled_dot_product_attention(cx, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False,
                                 length=None):
    """softmax(query @ key.T * scale + mask) @ value over [.., tokens, features].  attn_mask: bools (true: may be seen) or numbers to
    add.  is_causal: a query sees no later key; the last query is aligned with the last key.  length: only the first `length` keys
    count (a run-time number); the last query is then aligned with key length - 1.  Without attn_mask and dropout, in f32 and f64, no array
    of scores is made, neither here nor for the gradient; softmax(causal(q @ k.T / sqrt(d))) @ v written out is the same."""
    from .expressions import matmul_values
    b = cx.b
    q, k, v = cx.float(query, "query"), cx.float(key, "key"), cx.float(value, "value")
    if min(q.type.rank, k.type.rank, v.type.rank) < 2:
        cx.fail(f"attention needs [.., tokens, features], got {type_text(q.type)}, {type_text(k.type)}, {type_text(v.type)}")
    d = q.type.shape[-1]
    out_shape = None
    if cx.flag(enable_gqa, "enable_gqa") and q.type.rank >= 3 and q.type.shape[-3] != k.type.shape[-3]:
        h, g = q.type.shape[-3], k.type.shape[-3]
        if not isinstance(h, int) or not isinstance(g, int) or h % g:
            cx.fail(f"{h} query heads do not divide among {g} key heads", "query")
        out_shape = (*q.type.shape[:-1], v.type.shape[-1])
        q = b.reshape(q, (*q.type.shape[:-3], g, h // g, *q.type.shape[-2:]))
        k = b.reshape(k, (*k.type.shape[:-2], 1, *k.type.shape[-2:]))
        v = b.reshape(v, (*v.type.shape[:-2], 1, *v.type.shape[-2:]))
    t, s = q.type.shape[-2], k.type.shape[-2]
    kt = b.transpose(k, [*range(k.type.rank - 2), k.type.rank - 1, k.type.rank - 2])
    factor = _number(cx, scale, "scale") if scale is not None else 1 / math.sqrt(d) if isinstance(d, int) else 1.0
    scores = b.mul(matmul_values(b, q, kt), factor)
    st = scores.type
    if length is not None:
        n = length if isinstance(length, Value) else constant(b, cx.int(length, "length"), i64)
        n = b.broadcast(b.cast(n, i64), (t, s))
        cols = b.iota((t, s), 1)
        ok = b.compare("lt", cols, n)
        if cx.flag(is_causal, "is_causal"):
            rows = b.iota((t, s), 0)
            last = b.sub(b.add(n, rows), constant(b, t, i64, (t, s)))
            ok = b.compare("le", cols, last)
        scores = b.select(b.broadcast(ok, st.shape), scores, float("-inf"))
    elif cx.flag(is_causal, "is_causal"):
        scores = b.select(band(b, st, s - t, True), scores, float("-inf"))
    if attn_mask is not None:
        mask = cx.tensor(attn_mask, "attn_mask")
        if mask.type.dtype.is_bool:
            scores = b.select(b.broadcast(mask, st.shape), scores, float("-inf"))
        else:
            scores = b.add(scores, b.broadcast(b.cast(mask, st.dtype), st.shape))
    weights = b.op("nn.softmax", [scores], {"dim": st.rank - 1}).result
    if dropout_p:
        weights = dropout(cx, weights, dropout_p)
    y = matmul_values(b, weights, v)
    return y if out_shape is None else b.reshape(y, out_shape)


@builtin()
def rotary_embedding(cx, x, pos=0, base=10000.0, interleaved=False):
    """Rotary positions: in x[.., T, k], pair j of the features at place t is turned by (pos + t) / base^(2j / k).  Pairs are (j, j + k/2),
    as in GPT-NeoX, or with `interleaved` (2j, 2j + 1), as in the paper."""
    from .builtins_shape import cut
    b = cx.b
    x = cx.float(x)
    if x.type.rank < 2:
        cx.fail(f"`rotary_embedding` needs [.., tokens, features], got {type_text(x.type)}", "x")
    t, k = x.type.shape[-2:]
    if not isinstance(k, int):
        raise Undecidable
    if k % 2:
        cx.fail(f"`rotary_embedding` turns pairs of features: {k} is odd", "x")
    half, last = k // 2, x.type.rank - 1
    freq = np.array([_number(cx, base, "base") ** (-2 * j / k) for j in range(half)], np.float32)
    at = b.iota((t,), 0, i64)
    at = b.add(at, b.broadcast(b.cast(pos, i64), (t,)) if isinstance(pos, Value) else constant(b, cx.int(pos, "pos"), i64, (t,)))
    angle = b.mul(b.broadcast(b.cast(at, f32), (t, half), [0]), b.broadcast(b.constant(freq, TensorType(f32, (half,))), (t, half), [1]))
    if cx.flag(interleaved, "interleaved"):
        pairs = b.reshape(x, (*x.type.shape[:-1], half, 2))
        p, q = (b.reshape(cut(b, pairs, last + 1, i, i + 1), (*x.type.shape[:-1], half)) for i in (0, 1))
    else:
        p, q = cut(b, x, last, 0, half), cut(b, x, last, half, k)
    c, s = (b.broadcast(b.cast(v, x.type.dtype), p.type.shape) for v in (b.cos(angle), b.sin(angle)))
    y = [b.sub(b.mul(p, c), b.mul(q, s)), b.add(b.mul(p, s), b.mul(q, c))]
    if not interleaved:
        return b.op("tensor.concat", y, {"dim": last}).result
    y = [b.reshape(v, (*v.type.shape, 1)) for v in y]
    return b.reshape(b.op("tensor.concat", y, {"dim": last + 1}).result, x.type.shape)


# ---- products ---------------------------------------------------------------------------------------------------------

@builtin()
def matmul(cx, x, y):
    """x @ y."""
    from .expressions import matmul_values
    return matmul_values(cx.b, cx.tensor(x), cx.tensor(y, "y"))


builtin("mm")(matmul)
builtin("bmm")(matmul)


@builtin()
def dot(cx, x, y):
    """The sum of products of two vectors."""
    from .expressions import matmul_values
    x, y = cx.tensor(x), cx.tensor(y, "y")
    if x.type.rank != 1 or y.type.rank != 1:
        cx.fail(f"`dot` takes two vectors, got {type_text(x.type)} and {type_text(y.type)}", hint="`@` multiplies matrices")
    return matmul_values(cx.b, x, y)


@builtin()
def outer(cx, x, y):
    """x[i] * y[j]."""
    b = cx.b
    x, y = cx.tensor(x), cx.tensor(y, "y")
    if x.type.rank != 1 or y.type.rank != 1:
        cx.fail(f"`outer` takes two vectors, got {type_text(x.type)} and {type_text(y.type)}")
    x, y = b.broadcast(x, (x.type.shape[0], y.type.shape[0]), [0]), b.broadcast(y, (x.type.shape[0], y.type.shape[0]), [1])
    x, y = together(b, (x, y))
    return b.mul(x, y)


@builtin()
def inner(cx, x, y):
    """Sums of products over the last dims of both: y.T for matrices."""
    x, y = cx.tensor(x), cx.tensor(y, "y")
    if not x.type.rank or not y.type.rank:
        x, y = together(cx.b, (x, y))
        return cx.b.mul(x, y)
    return tensordot(cx, x, y, [[-1], [-1]])


@builtin()
def tensordot(cx, x, y, dims=2):
    """Sums of products over the last `dims` dims of x and the first of y, or over the dims that two lists pair."""
    from .tensors import common_dtype
    b = cx.b
    x, y = cx.tensor(x), cx.tensor(y, "y")
    if isinstance(dims, list | tuple):
        if len(dims) != 2 or not all(isinstance(d, list | tuple) for d in dims) or len(dims[0]) != len(dims[1]):
            cx.fail("`dims` is a number, or two lists of equally many dimensions", "dims")
        left, right = ([cx.dim(d, v.type.rank, "dims") for d in ds] for v, ds in zip((x, y), dims))
    else:
        n = cx.int(dims, "dims")
        if not isinstance(n, int) or not 0 <= n <= min(x.type.rank, y.type.rank):
            cx.fail(f"{type_text(x.type)} and {type_text(y.type)} have no {n} dimensions to sum over", "dims")
        left, right = list(range(x.type.rank - n, x.type.rank)), list(range(n))
    for i, j in zip(left, right):                              # a size of 1 stretches, as in PyTorch
        p, q = x.type.shape[i], y.type.shape[j]
        if p != q and p == 1:
            y = b.sum(y, [j], True)
        elif p != q and q == 1:
            x = b.sum(x, [i], True)
    dtype = common_dtype((x, y))
    return b.op("tensor.dot_general", [b.cast(x, dtype), b.cast(y, dtype)],
                {"lhs_batch": [], "rhs_batch": [], "lhs_contract": left, "rhs_contract": right}).result


def _plus_product(cx, x, product: Value, beta, alpha) -> Value:
    """beta * x + alpha * product; beta = 0 leaves x out, NaN or not."""
    b = cx.b

    def times(v: Value, k) -> Value:
        if isinstance(k, int | float) and k == 1:
            return v
        v, f = together(b, (v, k), v.type.dtype)
        return b.mul(v, f)

    product = times(product, alpha)
    if isinstance(beta, int | float) and beta == 0:
        return product
    x, y = together(b, (times(cx.tensor(x), beta), product))
    return b.add(x, y)


def _add_product(name: str, doc: str, sums: bool = False):
    def run(cx, x, x1, x2, beta=1, alpha=1):
        from .expressions import matmul_values
        y = matmul_values(cx.b, cx.tensor(x1, "x1"), cx.tensor(x2, "x2"))
        return _plus_product(cx, x, cx.b.sum(y, [0]) if sums else y, beta, alpha)
    run.__doc__ = doc
    builtin(name)(run)


_add_product("addmm", "beta * x + alpha * x1 @ x2.")
_add_product("addmv", "beta * x + alpha * x1 @ x2, of a matrix and a vector.")
_add_product("baddbmm", "beta * x + alpha * x1 @ x2, batched.")
_add_product("addbmm", "beta * x + alpha * sum(x1 @ x2, dim = 0).", sums=True)


@builtin()
def addr(cx, x, x1, x2, beta=1, alpha=1):
    """beta * x + alpha * outer(x1, x2)."""
    return _plus_product(cx, x, outer(cx, x1, x2), beta, alpha)


@builtin()
def kron(cx, x, y):
    """The Kronecker product: every element of x times all of y."""
    b = cx.b
    x, y = cx.tensor(x), cx.tensor(y, "y")
    rank = max(x.type.rank, y.type.rank)
    p, q = ((1,) * (rank - v.type.rank) + tuple(v.type.shape) for v in (x, y))
    x = b.reshape(x, [n for a in p for n in (a, 1)])
    y = b.reshape(y, [n for a in q for n in (1, a)])
    x, y = together(b, (x, y))
    return b.reshape(b.mul(x, y), [m * n for m, n in zip(p, q)])


@builtin()
def bilinear(cx, x1, x2, weight, bias=None):
    """x1[.., i] * weight[o, i, j] * x2[.., j] + bias[o], torch.nn.functional.bilinear."""
    y = einsum(cx, "...i,oij,...j->...o", x1, weight, x2)
    return y if bias is None else affine(cx, y, None, bias)


@builtin()
def linear(cx, x, weight, bias=None):
    """x @ weight.T + bias, torch.nn.functional.linear."""
    from .expressions import matmul_values
    b = cx.b
    w = cx.tensor(weight, "weight")
    y = matmul_values(b, cx.tensor(x), b.transpose(w, [*range(w.type.rank - 2), w.type.rank - 1, w.type.rank - 2]))
    return y if bias is None else affine(cx, y, None, bias)


@builtin()
def einsum(cx, equation, *operands):
    """Einstein summation: einsum("bij,bjk->bik", a, b)."""
    if not isinstance(equation, str):
        cx.fail("`einsum` needs an equation such as \"ij,jk->ik\"")
    xs = [cx.tensor(x) for x in operands]
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if "." in text:
        return _einsum_ellipsis(cx, terms, right if arrow else None, xs)
    return _einsum(cx, terms, right if arrow else None, xs)


def _einsum_ellipsis(cx, terms, right, xs):
    wide = max((x.type.rank - len(t.replace("...", "")) for t, x in zip(terms, xs) if "..." in t), default=0)
    if wide < 0 or any(t.count("...") > 1 or "." in t.replace("...", "") for t in terms):
        cx.fail("`...` stands for the leading dimensions, once a term")
    letters = "αβγδεζηθ"[:wide]
    out = []
    for t, x in zip(terms, xs):
        k = x.type.rank - len(t.replace("...", ""))
        out.append(t.replace("...", letters[wide - k:]) if "..." in t else t)
    if right is None:
        names = sorted({c for t in out for c in t if c not in letters and sum(u.count(c) for u in out) == 1})
        right = letters + "".join(names)
    return _einsum(cx, out, right.replace("...", letters), xs)


def _einsum(cx, terms, right, xs):
    if len(terms) != len(xs):
        cx.fail(f"the equation has {len(terms)} operands, {len(xs)} are given")
    if not xs:
        cx.fail("`einsum` needs operands")
    sizes: dict = {}
    for t, x in zip(terms, xs):
        if not t.isalpha() and t or len(t) != x.type.rank:
            cx.fail(f"`{t}` names {len(t)} dimensions of {type_text(x.type)}")
        for c, n in zip(t, x.type.shape):
            if not maybe_equal(sizes.setdefault(c, n), n):
                cx.fail(f"`{c}` is {sizes[c]} and {n}")
    if right is None:
        right = "".join(sorted(c for c in sizes if sum(t.count(c) for t in terms) == 1))
    if len(set(right)) != len(right) or any(c not in sizes for c in right):
        cx.fail(f"`{right}` names a dimension twice or one that no operand has")
    b = cx.b
    from .tensors import common_dtype
    dtype = common_dtype(xs)
    parts = [_diagonals(b, t, b.cast(x, dtype)) for t, x in zip(terms, xs)]
    t, x = parts[0]
    for k, (u, y) in enumerate(parts[1:], 1):
        later = set(right).union(*(set(v) for v, _ in parts[k + 1:]))
        t, x = _contract(b, t, x, u, y, later)
    drop = [i for i, c in enumerate(t) if c not in right]
    if drop:
        x = b.sum(x, drop)
        t = "".join(c for c in t if c in right)
    return b.transpose(x, [t.index(c) for c in right])


def _diagonals(b, t: str, x: Value) -> tuple[str, Value]:
    for c in dict.fromkeys(t):
        while t.count(c) > 1:
            i = t.index(c)
            j = t.index(c, i + 1)
            n = x.type.shape[i]
            shape = x.type.shape
            eye = b.compare("eq", b.iota(shape, i), b.iota(shape, j))
            x = b.sum(b.select(eye, x, b.zeros(x.type)), [j])
            t = t[:j] + t[j + 1:]
            del n
    return t, x


def _contract(b, t: str, x: Value, u: str, y: Value, later: set[str]) -> tuple[str, Value]:
    """Two operands into one; letters that nobody needs later are summed."""
    alone = [i for i, c in enumerate(t) if c not in u and c not in later]
    if alone:
        x, t = b.sum(x, alone), "".join(c for i, c in enumerate(t) if i not in alone)
    alone = [i for i, c in enumerate(u) if c not in t and c not in later]
    if alone:
        y, u = b.sum(y, alone), "".join(c for i, c in enumerate(u) if i not in alone)
    both = [c for c in t if c in u]
    batch, inner = [c for c in both if c in later], [c for c in both if c not in later]
    out = b.op("tensor.dot_general", [x, y], {"lhs_batch": [t.index(c) for c in batch], "rhs_batch": [u.index(c) for c in batch],
                                              "lhs_contract": [t.index(c) for c in inner], "rhs_contract": [u.index(c) for c in inner]}).result
    return "".join(batch) + "".join(c for c in t if c not in both) + "".join(c for c in u if c not in both), out
