"""Reductions, running sums, sorting: operations along dims."""
from __future__ import annotations

import math

from ..compiler.ir import Dim, Value, f32, i64
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


def _summand(cx, x, dtype) -> Value:
    """The argument of a sum or product in the type it is added up in: `dtype`, its own, or i64 for integers and bools."""
    x = _numbers(cx, x)
    if dtype is not None:
        return cx.b.cast(x, cx.dtype(dtype))
    return x if x.type.dtype.is_float else cx.b.cast(x, i64)


@builtin("sum")
def sum_(cx, x, dim=None, keepdim=False, dtype=None):
    """Sum over dims (all without `dim`); integers and bools add up as i64."""
    if isinstance(x, list | tuple) and x and all(is_weak(v) for v in x) and dim is None:
        return sum(x) if not any(isinstance(v, Opaque | Dim) for v in x) else Opaque("int")
    x = _summand(cx, x, dtype)
    return cx.b.sum(x, cx.dims(dim, x.type.rank), cx.flag(keepdim, "keepdim"))


@builtin()
def prod(cx, x, dim=None, keepdim=False, dtype=None):
    """Product over dims."""
    if isinstance(x, list | tuple) and all(isinstance(v, int | float) for v in x) and dim is None:
        return math.prod(x)
    if isinstance(x, tuple) and all(isinstance(v, int | Dim) for v in x):
        return count(type("T", (), {"shape": x}), range(len(x)))
    x = _summand(cx, x, dtype)
    return cx.b.reduce("prod", x, cx.dims(dim, x.type.rank), cx.flag(keepdim, "keepdim"))


@builtin()
def mean(cx, x, dim=None, keepdim=False, dtype=None):
    """Mean over dims; integers and bools become f32."""
    x = to_float(cx.b, _numbers(cx, x) if dtype is None else _summand(cx, x, dtype))
    return mean_of(cx.b, x, cx.dims(dim, x.type.rank), cx.flag(keepdim, "keepdim"))


def widened(b, x: Value) -> Value:
    """f16 and bf16 as f32: squares and their sums leave the range of 16 bits, or lose all digits."""
    return b.cast(x, f32) if x.type.dtype.bits < 32 else x


def variance(cx, x, dim, correction, keepdim) -> Value:
    b = cx.b
    x = widened(b, cx.float(x))
    dims = cx.dims(dim, x.type.rank)
    c = b.sub(x, b.broadcast(mean_of(b, x, dims, True), x.type.shape))
    n = count(x.type, dims)
    k = correction if isinstance(correction, float) else cx.int(correction, "correction")
    s = b.sum(b.mul(c, c), dims, cx.flag(keepdim, "keepdim"))
    if isinstance(n, int):
        return b.div(s, float(max(n - k, 0)))                  # too few elements: 0 / 0 is NaN
    return scale(b, s, n - k if isinstance(k, int) else n)


def root(b, x: Value) -> Value:
    """sqrt(x) whose derivative at 0 is 0, as that of PyTorch's norms and standard deviations."""
    zero = b.compare("eq", x, 0.0)
    return b.select(zero, 0.0, b.sqrt(b.select(zero, 1.0, x)))


@builtin()
def var(cx, x, dim=None, correction=1, keepdim=False):
    """Variance over dims; `correction = 0` divides by n instead of n - 1."""
    return cx.b.cast(variance(cx, x, dim, correction, keepdim), cx.float(x).type.dtype)


@builtin()
def std(cx, x, dim=None, correction=1, keepdim=False):
    """Standard deviation over dims; `correction = 0` divides by n instead of n - 1."""
    return cx.b.cast(root(cx.b, variance(cx, x, dim, correction, keepdim)), cx.float(x).type.dtype)


@builtin()
def count_nonzero(cx, x, dim=None, keepdim=False):
    """How many elements are not 0, i64."""
    b = cx.b
    x = _numbers(cx, x)
    hit = x if x.type.dtype.is_bool else b.compare("ne", x, 0)
    return b.sum(b.cast(hit, i64), cx.dims(dim, x.type.rank), cx.flag(keepdim, "keepdim"))


@builtin()
def nansum(cx, x, dim=None, keepdim=False, dtype=None):
    """Sum over dims, NaNs left out."""
    x = _summand(cx, x, dtype)
    if x.type.dtype.is_float:
        x = cx.b.select(cx.b.compare("ne", x, x), 0.0, x)
    return cx.b.sum(x, cx.dims(dim, x.type.rank), cx.flag(keepdim, "keepdim"))


@builtin()
def nanmean(cx, x, dim=None, keepdim=False, dtype=None):
    """Mean over dims, NaNs left out."""
    b = cx.b
    x = to_float(b, _numbers(cx, x) if dtype is None else _summand(cx, x, dtype))
    dims, keep = cx.dims(dim, x.type.rank), cx.flag(keepdim, "keepdim")
    nan = b.compare("ne", x, x)
    return b.div(b.sum(b.select(nan, 0.0, x), dims, keep), b.sum(b.select(nan, 0.0, b.like(1.0, x)), dims, keep))


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


def line(cx, x, dim, arg: str = "dim") -> tuple[Value, int]:
    """A tensor and one of its dims; a scalar counts as one element along dim 0, as in PyTorch."""
    x = cx.tensor(x)
    if x.type.rank == 0:
        cx.dim(dim, 1, arg)
        return cx.b.reshape(x, (1,)), 0
    return x, cx.dim(dim, x.type.rank, arg)


def _arg(kind: str):
    def run(cx, x, dim=None, keepdim=False):
        b = cx.b
        x = cx.tensor(x)
        rank = x.type.rank
        keep = cx.flag(keepdim, "keepdim")
        shape = [1] * rank
        if dim is None:
            y = b.op(f"tensor.arg{kind}", [b.reshape(x, (x.type.numel,))], {"dim": 0}).result
        else:
            x, d = line(cx, x, dim)
            y = b.op(f"tensor.arg{kind}", [x], {"dim": d}).result
            shape = [1 if k == d else n for k, n in enumerate(x.type.shape)][:rank]
        return b.reshape(y, shape) if keep else y
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
def norm(cx, x, p=2, dim=None, keepdim=False, dtype=None):
    """The p-norm over dims; p = 1, 2, inf or any number."""
    b = cx.b
    x = cx.float(x)
    if dtype is not None:
        x = b.cast(x, cx.dtype(dtype))
    return b.cast(_norm(cx, b, widened(b, x), p, cx.dims(dim, x.type.rank), cx.flag(keepdim, "keepdim")), x.type.dtype)


def _norm(cx, b, x: Value, p, dims: list[int], keep: bool) -> Value:
    if isinstance(p, bool) or not isinstance(p, int | float):
        cx.fail(f"`p` of `norm` is a number known when compiling, got {describe(p)}", "p")
    if p == 2:
        return root(b, b.sum(b.mul(x, x), dims, keep))
    if p == 0:
        return b.sum(b.cast(b.compare("ne", x, 0.0), x.type.dtype), dims, keep)
    a = b.abs(x)
    if p == 1:
        return b.sum(a, dims, keep)
    if p == math.inf:
        return b.reduce("max", a, dims, keep)
    if p == -math.inf:
        return b.reduce("min", a, dims, keep)
    if p < 0:
        return b.pow(b.sum(b.pow(a, float(p)), dims, keep), 1.0 / p)
    zero = b.compare("eq", x, 0.0)                             # there the derivative is 0
    s = b.sum(b.select(zero, 0.0, b.pow(b.select(zero, 1.0, a), float(p))), dims, keep)
    zero = b.compare("eq", s, 0.0)
    return b.select(zero, 0.0, b.pow(b.select(zero, 1.0, s), 1.0 / p))


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
    def run(cx, x, dim=-1, reverse=False, dtype=None):
        b = cx.b
        x = _summand(cx, x, dtype)
        y, d = line(cx, x, dim)
        return b.reshape(cx.op(f"tensor.{op}", [y], {"dim": d, "reverse": cx.flag(reverse, "reverse")}), x.type.shape)
    run.__doc__ = f"Running {'sum' if op == 'cumsum' else 'product'} along dim; from the end with `reverse`."
    builtin(name)(run)


_running("cumsum", "cumsum")
_running("cumprod", "cumprod")


def sorted_pair(cx, x, dim, descending, keep=None) -> tuple[Value, Value]:
    """(values, indices) along dim, the first `keep` where that is not all; of a scalar, along its one element."""
    x, d = line(cx, x, dim)
    op = cx.b.op("tensor.sort", [x], {"dim": d, "descending": descending, **({} if keep in (None, x.type.shape[d]) else {"keep": keep})})
    return op.results[0], op.results[1]


@builtin()
def sort(cx, x, dim=-1, descending=False, stable=True):
    """(values, indices) sorted along dim; equal elements always keep their order."""
    shape = cx.tensor(x).type.shape
    return tuple(cx.b.reshape(v, shape) for v in sorted_pair(cx, x, dim, cx.flag(descending, "descending")))


@builtin()
def argsort(cx, x, dim=-1, descending=False, stable=True):
    """The indices that sort x along dim; equal elements always keep their order."""
    return sort(cx, x, dim, descending)[1]


@builtin()
def topk(cx, x, k, dim=-1, largest=True, sorted=True):
    """(values, indices) of the k largest (smallest) elements along dim, always in order."""
    scalar = cx.tensor(x).type.rank == 0
    x, d = line(cx, x, dim)
    n = cx.int(k, "k")
    size = x.type.shape[d]
    if isinstance(n, int) and isinstance(size, int) and not 0 <= n <= size:
        cx.fail(f"`topk` takes {n} of {size} elements", "k")
    out = sorted_pair(cx, x, d, cx.flag(largest, "largest"), n)
    return tuple(cx.b.reshape(v, ()) for v in out) if scalar and n == 1 else out


@builtin()
def median(cx, x, dim=None, keepdim=False):
    """The lower median along dim (of all, without `dim`); NaN where there is one."""
    b = cx.b
    x = cx.tensor(x)
    shape = x.type.shape
    if dim is None:
        y, d, shape = b.reshape(x, (x.type.numel,)), 0, [1] * len(shape)
    else:
        y, d = line(cx, x, dim)
        shape = [1 if k == d else n for k, n in enumerate(shape)]
    n = y.type.shape[d]
    if isinstance(n, int) and n == 0:
        cx.fail(f"`median` of nothing: {describe(x)} has no elements there", "x")
    values, _ = sorted_pair(cx, y, d, False)
    from .builtins_shape import cut
    k = (n - 1) // 2 if isinstance(n, int) else 0
    m = cut(b, values, d, k, k + 1)
    if x.type.dtype.is_float:
        last = cut(b, values, d, n - 1, n)                     # NaNs are sorted to the end
        m = b.select(b.compare("ne", last, last), last, m)
    if not cx.flag(keepdim, "keepdim"):
        shape = [] if dim is None or not x.type.rank else [n for k, n in enumerate(x.type.shape) if k != d]
    return b.reshape(m, shape)
