"""Reductions, running sums, sorting: operations along dims."""
from __future__ import annotations

import math

from ..compiler.ir import Dim, Value, i64
from .builtins import builtin
from .builtins_math import _pick
from .tensors import is_weak, to_float
from .trees import flatten
from .values import LayerInstance, Opaque, describe


def count(t, dims) -> int | Dim:
    """How many elements a reduction over dims takes together."""
    n = 1
    for d in dims:
        k = t.shape[d]
        n = k * n if isinstance(k, Dim) else n * k
    return n


def scale(b, x: Value, n: int | Dim) -> Value:
    """x / n, for a size."""
    return b.div(x, float(n) if isinstance(n, int) else 1.0)


def mean_of(b, x: Value, dims, keepdim: bool = False) -> Value:
    return scale(b, b.sum(x, dims, keepdim), count(x.type, dims))


def _numbers(cx, x) -> Value:
    """The argument of a sum: a tensor, or a list of numbers or scalars."""
    if isinstance(x, list | tuple) and x:
        if all(isinstance(v, Value) for v in x):
            from .builtins_shape import stack
            return stack(cx, list(x))
        if all(is_weak(v) for v in x):
            from .builtins_make import tensor_from_list
            return tensor_from_list(cx.b, list(x), None)
    return cx.tensor(x)


@builtin("sum")
def sum_(cx, x, dim=None, keepdim=False):
    """Sum over dims (all without `dim`); integers and bools add up as i64."""
    if isinstance(x, list | tuple) and x and all(is_weak(v) for v in x) and dim is None:
        return sum(x) if not any(isinstance(v, Opaque | Dim) for v in x) else Opaque("int")
    x = _numbers(cx, x)
    if not x.type.dtype.is_float:
        x = cx.b.cast(x, i64)
    return cx.b.sum(x, cx.dims(dim, x.type.rank), cx.flag(keepdim, "keepdim"))


@builtin()
def prod(cx, x, dim=None, keepdim=False):
    """Product over dims."""
    if isinstance(x, list | tuple) and all(isinstance(v, int | float) for v in x) and dim is None:
        return math.prod(x)
    if isinstance(x, tuple) and all(isinstance(v, int | Dim) for v in x):
        return count(type("T", (), {"shape": x}), range(len(x)))
    x = _numbers(cx, x)
    if not x.type.dtype.is_float:
        x = cx.b.cast(x, i64)
    return cx.b.reduce("prod", x, cx.dims(dim, x.type.rank), cx.flag(keepdim, "keepdim"))


@builtin()
def mean(cx, x, dim=None, keepdim=False):
    """Mean over dims; integers and bools become f32."""
    x = to_float(cx.b, _numbers(cx, x))
    return mean_of(cx.b, x, cx.dims(dim, x.type.rank), cx.flag(keepdim, "keepdim"))


def variance(cx, x, dim, correction, keepdim) -> Value:
    b = cx.b
    x = cx.float(x)
    dims = cx.dims(dim, x.type.rank)
    c = b.sub(x, b.broadcast(mean_of(b, x, dims, True), x.type.shape))
    n = count(x.type, dims)
    k = cx.int(correction, "correction")
    s = b.sum(b.mul(c, c), dims, cx.flag(keepdim, "keepdim"))
    if isinstance(n, int) and n - k <= 0:
        return b.mul(s, math.nan if n - k == 0 else math.inf)
    return scale(b, s, n - k)


@builtin()
def var(cx, x, dim=None, correction=1, keepdim=False):
    """Variance over dims; `correction = 0` divides by n instead of n - 1."""
    return variance(cx, x, dim, correction, keepdim)


@builtin()
def std(cx, x, dim=None, correction=1, keepdim=False):
    """Standard deviation over dims; `correction = 0` divides by n instead of n - 1."""
    return cx.b.sqrt(variance(cx, x, dim, correction, keepdim))


def _extreme(cx, x, dim, keepdim, kind: str) -> Value:
    x = _numbers(cx, x)
    dims = cx.dims(dim, x.type.rank)
    if any(isinstance(x.type.shape[d], int) and x.type.shape[d] == 0 for d in dims):
        cx.fail(f"`{cx.name}` of nothing: {describe(x)} has no elements there", "x")
    return cx.b.reduce(kind, x, dims, cx.flag(keepdim, "keepdim"))


@builtin("amax")
def amax(cx, x, dim=None, keepdim=False):
    """Largest over dims."""
    return _extreme(cx, x, dim, keepdim, "max")


@builtin("amin")
def amin(cx, x, dim=None, keepdim=False):
    """Smallest over dims."""
    return _extreme(cx, x, dim, keepdim, "min")


def _max(kind: str):
    def run(cx, x, y=None, dim=None, keepdim=False):
        if y is not None:
            return _pick(cx, x, y, kind)
        if isinstance(x, list | tuple) and x and all(is_weak(v) for v in x) and dim is None:
            out = x[0]
            for v in x[1:]:
                out = _pick(cx, out, v, kind)
            return out
        return _extreme(cx, x, dim, keepdim, kind)
    run.__doc__ = f"{kind}(x, y): the {'larger' if kind == 'max' else 'smaller'} of each pair; {kind}(x, dim = d): over dims, values only."
    return run


builtin("max")(_max("max"))
builtin("min")(_max("min"))


def _arg(kind: str):
    def run(cx, x, dim=None, keepdim=False):
        x = cx.tensor(x)
        if dim is None:
            x = cx.b.reshape(x, (x.type.numel,))
            d = 0
        else:
            d = cx.dim(dim, x.type.rank)
        y = cx.op(f"tensor.arg{kind}", [x], {"dim": d})
        if cx.flag(keepdim, "keepdim"):
            shape = list(x.type.shape)
            shape[d] = 1
            y = cx.b.reshape(y, shape)
        return y
    run.__doc__ = f"Index of the first {'largest' if kind == 'max' else 'smallest'} element along dim (of all, without `dim`), i64."
    return run


builtin("argmax")(_arg("max"))
builtin("argmin")(_arg("min"))


def _truth(kind: str):
    def run(cx, x, dim=None, keepdim=False):
        if isinstance(x, list | tuple) and all(isinstance(v, bool) for v in x):
            return any(x) if kind == "max" else all(x)
        x = _numbers(cx, x)
        if not x.type.dtype.is_bool:
            x = cx.b.compare("ne", x, 0)
        return cx.b.reduce(kind, x, cx.dims(dim, x.type.rank), cx.flag(keepdim, "keepdim"))
    run.__doc__ = f"Whether {'any' if kind == 'max' else 'every'} element is true."
    return run


builtin("any")(_truth("max"))
builtin("all")(_truth("min"))


@builtin()
def logsumexp(cx, x, dim=None, keepdim=False):
    """log(sum(exp(x))) over dims, without overflow."""
    x = cx.float(x)
    dims = cx.dims(dim, x.type.rank)
    y = cx.op("nn.logsumexp", [x], {"dims": dims})
    if cx.flag(keepdim, "keepdim"):
        y = cx.b.reshape(y, [1 if d in dims else n for d, n in enumerate(x.type.shape)])
    return y


@builtin("norm")
def norm(cx, x, p=2, dim=None, keepdim=False):
    """The p-norm over dims; p = 1, 2, inf or any number."""
    b = cx.b
    x = cx.float(x)
    dims = cx.dims(dim, x.type.rank)
    keep = cx.flag(keepdim, "keepdim")
    if isinstance(p, bool) or not isinstance(p, int | float):
        cx.fail(f"`p` of `norm` is a number known when compiling, got {describe(p)}", "p")
    if p == 2:
        return b.sqrt(b.sum(b.mul(x, x), dims, keep))
    a = b.abs(x)
    if p == 1:
        return b.sum(a, dims, keep)
    if p == math.inf:
        return b.reduce("max", a, dims, keep)
    if p == -math.inf:
        return b.reduce("min", a, dims, keep)
    s = b.sum(b.pow(a, float(p)), dims, keep)
    return b.pow(s, 1.0 / p)


@builtin()
def global_norm(cx, tree):
    """The 2-norm of all tensors of a tree together."""
    b = cx.b
    if isinstance(tree, LayerInstance):
        leaves = [cx.el.read(s, None, cx.span) for _, s in tree.params]
    else:
        _, leaves = flatten(tree)
    if not leaves:
        cx.fail(f"`global_norm` needs tensors, got {describe(tree)}", "tree")
    total = None
    for x in leaves:
        s = b.sum(b.mul(x, x), range(x.type.rank))
        s = b.cast(s, leaves[0].type.dtype)
        total = s if total is None else b.add(total, s)
    return b.sqrt(total)


def _running(name: str, op: str):
    def run(cx, x, dim=-1, reverse=False):
        x = cx.tensor(x)
        if x.type.dtype.is_bool:
            x = cx.b.cast(x, i64)
        return cx.op(f"tensor.{op}", [x], {"dim": cx.dim(dim, x.type.rank), "reverse": cx.flag(reverse, "reverse")})
    run.__doc__ = f"Running {'sum' if op == 'cumsum' else 'product'} along dim; from the end with `reverse`."
    builtin(name)(run)


_running("cumsum", "cumsum")
_running("cumprod", "cumprod")


def sorted_pair(cx, x, dim, descending) -> tuple[Value, Value]:
    x = cx.tensor(x)
    op = cx.b.op("tensor.sort", [x], {"dim": cx.dim(dim, x.type.rank), "descending": descending})
    return op.results[0], op.results[1]


@builtin()
def sort(cx, x, dim=-1, descending=False):
    """(values, indices) sorted along dim; equal elements keep their order."""
    return sorted_pair(cx, x, dim, cx.flag(descending, "descending"))


@builtin()
def argsort(cx, x, dim=-1, descending=False):
    """The indices that sort x along dim."""
    return sorted_pair(cx, x, dim, cx.flag(descending, "descending"))[1]


@builtin()
def topk(cx, x, k, dim=-1, largest=True):
    """(values, indices) of the k largest (smallest) elements along dim, in order."""
    x = cx.tensor(x)
    d = cx.dim(dim, x.type.rank)
    n = cx.int(k, "k")
    size = x.type.shape[d]
    if isinstance(n, int) and isinstance(size, int) and not 0 <= n <= size:
        cx.fail(f"`topk` takes {n} of {size} elements", "k")
    values, indices = sorted_pair(cx, x, d, cx.flag(largest, "largest"))
    start, limit = [0] * x.type.rank, list(x.type.shape)
    limit[d] = n
    attrs = {"start": start, "limit": limit, "stride": [1] * x.type.rank}
    return cx.op("tensor.slice", [values], attrs), cx.op("tensor.slice", [indices], dict(attrs))


@builtin()
def median(cx, x, dim=-1):
    """The lower median along dim."""
    from .indexing import static_part
    x = cx.tensor(x)
    d = cx.dim(dim, x.type.rank)
    values, _ = sorted_pair(cx, x, d, False)
    n = x.type.shape[d]
    return static_part(cx.el, values, d, (n - 1) // 2, cx.span)
