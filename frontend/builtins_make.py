"""Operations that make tensors: filled, counted, from lists, drawn at random."""
from __future__ import annotations

import numpy as np

from ..compiler.ir import Dim, DType, TensorType, Value, bool_, f32, i64, u64
from ..compiler.ir.opdef import TypeMismatch
from .builtins import builtin
from .tensors import as_tensor, constant, is_weak, plain, together, weak_dtype
from .values import Opaque, describe

MAX_LIST = 1 << 20


def tensor_from_list(b, items: list, dtype: DType | None) -> Value:
    """A (nested) list of numbers as a constant; of tensors, stacked."""
    shape, flat = _shape(items)
    if dtype is None:
        kinds = {weak_dtype(v, None).kind for v in flat}
        dtype = f32 if "float" in kinds else i64 if "int" in kinds else bool_
    array = np.asarray([plain(v) for v in flat]).astype(dtype.numpy).reshape(shape)
    return b.constant(array, TensorType(dtype, tuple(shape)))


def _shape(items) -> tuple[list[int], list]:
    if not isinstance(items, list | tuple):
        if not is_weak(items):
            raise TypeMismatch(f"expected a list of numbers, it holds {describe(items)}")
        return [], [items]
    if not items:
        return [0], []
    parts = [_shape(x) for x in items]
    first = parts[0][0]
    if any(s != first for s, _ in parts):
        raise TypeMismatch("the rows differ in length")
    return [len(items), *first], [v for _, flat in parts for v in flat]


@builtin()
def tensor(cx, data, dtype=None):
    """A tensor of a (nested) list of numbers."""
    d = None if dtype is None else cx.dtype(dtype)
    if isinstance(data, Value):
        return data if d is None else cx.b.cast(data, d)
    if is_weak(data):
        return as_tensor(cx.b, data, d)
    if not isinstance(data, list | tuple):
        cx.fail(f"`tensor` needs a list of numbers, got {describe(data)}", "data")
    if any(isinstance(x, Value) for x in data):
        from .builtins_shape import stack
        return stack(cx, list(data))
    try:
        return tensor_from_list(cx.b, list(data), d)
    except (ValueError, OverflowError) as e:
        cx.fail(f"`tensor` needs a list of numbers: {e}", "data")


def _sizes(cx, sizes) -> tuple:
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        sizes = sizes[0]
    return tuple(_size(cx, n) for n in sizes)


def _size(cx, v):
    n = cx.int(v, "size")
    if isinstance(n, int) and n < 0:
        cx.fail(f"a size cannot be negative: {n}")
    return n


def _filled(name: str, value):
    def run(cx, *sizes, dtype=f32):
        return constant(cx.b, value, cx.dtype(dtype), _sizes(cx, sizes))
    run.__doc__ = f"{name}(B, h): a tensor of {name}."
    builtin(name)(run)


_filled("zeros", 0)
_filled("ones", 1)


@builtin()
def full(cx, size, value, dtype=None):
    """A tensor of one number."""
    b = cx.b
    shape = _sizes(cx, (size,))
    d = weak_dtype(value, None) if dtype is None and is_weak(value) else None if dtype is None else cx.dtype(dtype)
    if is_weak(value):
        return constant(b, value, d, shape)
    v = cx.tensor(value, "value")
    return b.broadcast(b.cast(v, d) if d else v, shape)


def _like(name: str, value):
    def run(cx, x, dtype=None):
        t = cx.tensor(x).type
        return constant(cx.b, value, t.dtype if dtype is None else cx.dtype(dtype), t.shape)
    run.__doc__ = f"A tensor of {value}s with x's shape and type."
    builtin(name)(run)


_like("zeros_like", 0)
_like("ones_like", 1)


@builtin()
def full_like(cx, x, value, dtype=None):
    """A tensor of one number with x's shape and type."""
    t = cx.tensor(x).type
    d = t.dtype if dtype is None else cx.dtype(dtype)
    return constant(cx.b, value, d, t.shape) if is_weak(value) else cx.b.broadcast(cx.b.cast(cx.tensor(value, "value"), d), t.shape)


@builtin()
def arange(cx, start, end=None, step=1, dtype=None):
    """start, start + step, ... below end; `arange(n)` counts from 0."""
    b = cx.b
    if end is None:
        start, end = 0, start
    d = None if dtype is None else cx.dtype(dtype)
    if all(not isinstance(v, float) or type(v) is not float and getattr(v, "whole", None) is not None for v in (start, end, step)):
        lo, hi, st = (cx.int(v, n) for v, n in ((start, "start"), (end, "end"), (step, "step")))
        if isinstance(st, int) and st == 0:
            cx.fail("the step cannot be zero", "step")
        if isinstance(hi, int) and isinstance(lo, int) and isinstance(st, int):
            n = max(0, -((lo - hi) // st))
        elif st == 1:
            n = hi - lo
        elif isinstance(st, int):
            n = -((lo - hi) // st)                     # a named dimension while a generic function is checked: it counts nothing below 0
        else:
            cx.fail("the length of this `arange` is not known when compiling", "step")
        d = d or i64
    else:
        from math import ceil
        if not all(isinstance(v, int | float) for v in (start, end, step)):
            cx.fail("the length of this `arange` is not known when compiling")
        lo, st = float(start), float(step)
        if st == 0:
            cx.fail("the step cannot be zero", "step")
        n = max(0, ceil((float(end) - lo) / st))
        d = d or f32
    x = b.iota((n,), 0, i64)
    x = b.cast(x, d)
    if st != 1:
        x = b.mul(x, constant(b, st, d, x.type.shape))
    return x if lo == 0 else b.add(x, constant(b, lo, d, x.type.shape))


@builtin()
def linspace(cx, start, end, steps, dtype=f32):
    """`steps` numbers from start to end, evenly spaced."""
    b = cx.b
    n, d = cx.int(steps, "steps"), cx.dtype(dtype)
    if not isinstance(n, int) or n < 0:
        cx.fail("`steps` is a number >= 0 known when compiling", "steps")
    if all(isinstance(v, int | float) for v in (start, end)):  # known now: computed in f64, rounded once
        return b.constant(np.linspace(start, end, n).astype(d.numpy), TensorType(d, (n,)))
    x = b.cast(b.iota((n,), 0, i64), d)
    lo, hi = (constant(b, v, d) if is_weak(v) else b.cast(cx.tensor(v), d) for v in (start, end))
    step = b.div(b.sub(hi, lo), float(max(n - 1, 1)))
    return b.add(b.mul(x, b.broadcast(step, (n,))), b.broadcast(lo, (n,)))


@builtin()
def eye(cx, n, m=None, dtype=f32):
    """The unit matrix."""
    b = cx.b
    shape = (_size(cx, n), _size(cx, n if m is None else m))
    return b.cast(b.compare("eq", b.iota(shape, 0), b.iota(shape, 1)), cx.dtype(dtype))


@builtin()
def one_hot(cx, x, num_classes, dtype=f32):
    """1 at the index, else 0, along a new last dim."""
    x = cx.tensor(x)
    if not x.type.dtype.is_int:
        cx.fail(f"`one_hot` needs whole numbers, got {describe(x)}", "x")
    return cx.op("nn.one_hot", [x], {"classes": _size(cx, num_classes), "dtype": cx.dtype(dtype)})


# ---- random -----------------------------------------------------------------------------------------------------------

def key_of(cx, key) -> Value:
    """The given key, or one folded from the place."""
    if key is None:
        return cx.el.key(cx.span)
    if not isinstance(key, Value) or key.type.dtype is not u64:
        cx.fail(f"`key` is a random key, got {describe(key)}", "key", hint="a key comes from a parameter `k: key`, `split` or `fold_in`")
    cx.el.use_key(key, cx.span)
    return key


def draw_shape(cx, size, parameters=()) -> tuple:
    """The shape of a draw: `size`, or what the declaration that is initialised wants, or the parameters' shape."""
    if size is not None:
        return cx.shape(size)
    frame = cx.el.frame
    if frame is not None and frame.expected is not None:
        return frame.expected.shape
    from .tensors import broadcast_shapes
    shapes = [p.type.shape for p in parameters if isinstance(p, Value)]
    return broadcast_shapes(*shapes) if shapes else ()


def draw_dtype(cx, dtype) -> DType:
    if dtype is not None:
        return cx.dtype(dtype)
    frame = cx.el.frame
    if frame is not None and frame.expected is not None and frame.expected.dtype.is_float:
        return frame.expected.dtype
    return f32


def unit(cx, kind: str, key: Value, shape, dtype: DType) -> Value:
    return cx.op(f"random.{kind}", [key], {"shape": list(shape), "dtype": dtype})


@builtin(draws=True)
def uniform(cx, low=0.0, high=1.0, size=None, key=None, dtype=None):
    """Uniform in [low, high)."""
    b = cx.b
    d = draw_dtype(cx, dtype)
    u = unit(cx, "uniform", key_of(cx, key), draw_shape(cx, size, (low, high)), d)
    return _affine(b, u, low, plain(high) - plain(low) if is_weak(low) and is_weak(high) else _minus(cx, high, low))


def _minus(cx, x, y) -> Value:
    xv, yv = together(cx.b, (x, y))
    return cx.b.sub(xv, yv)


def _affine(b, u: Value, offset, factor) -> Value:
    """u * factor + offset; plain numbers 1 and 0 cost nothing."""
    if not (isinstance(factor, int | float) and factor == 1):
        u, f = together(b, (u, factor), u.type.dtype)
        u = b.mul(u, f)
    if not (isinstance(offset, int | float) and offset == 0):
        u, o = together(b, (u, offset), u.type.dtype)
        u = b.add(u, o)
    return u


@builtin(draws=True)
def normal(cx, mean=0.0, std=1.0, size=None, key=None, dtype=None):
    """Normal with this mean and standard deviation."""
    d = draw_dtype(cx, dtype)
    z = unit(cx, "normal", key_of(cx, key), draw_shape(cx, size, (mean, std)), d)
    return _affine(cx.b, z, mean, std)


@builtin(draws=True)
def rand(cx, *size, key=None, dtype=None):
    """Uniform in [0, 1)."""
    return uniform(cx, 0.0, 1.0, list(_sizes(cx, size)), key, dtype)


@builtin(draws=True)
def randn(cx, *size, key=None, dtype=None):
    """Standard normal."""
    return normal(cx, 0.0, 1.0, list(_sizes(cx, size)), key, dtype)


@builtin(draws=True)
def bernoulli(cx, p, size=None, key=None):
    """True with probability p."""
    b = cx.b
    u = unit(cx, "uniform", key_of(cx, key), draw_shape(cx, size, (p,)), f32)
    u, q = together(b, (u, p), f32)
    return b.compare("lt", u, q)


@builtin(draws=True)
def randint(cx, low, high, size=None, key=None):
    """Whole numbers low <= n < high, i64."""
    b = cx.b
    shape = draw_shape(cx, size, (low, high))
    if isinstance(low, int) and isinstance(high, int) and high <= low:
        cx.fail(f"no whole number n has {low} <= n < {high}")
    bits = b.cast(b.op("random.bits", [key_of(cx, key)], {"shape": list(shape)}).result, u64)
    span = plain(high) - plain(low) if is_weak(low) and is_weak(high) else _minus(cx, high, low)
    wide = b.broadcast(b.cast(as_tensor(b, span), u64), shape) if isinstance(span, Value) else constant(b, span, u64, shape)
    n = b.cast(b.ew("shr", b.mul(bits, wide), 32), i64)        # the high half of bits * span: no remainder, no bias to speak of
    low = b.broadcast(b.cast(as_tensor(b, low), i64), shape) if isinstance(low, Value) else constant(b, low, i64, shape)
    return b.add(n, low)


@builtin(draws=True)
def categorical(cx, logits, key=None):
    """Draws indices along the last dim with probabilities softmax(logits), i64."""
    b = cx.b
    x = cx.float(logits, "logits")
    u = unit(cx, "uniform", key_of(cx, key), x.type.shape, f32)
    u = b.add(u, 2.0 ** -25)                                   # never 0, never 1
    gumbel = b.neg(b.log(b.neg(b.log(u))))
    return b.op("tensor.argmax", [b.add(x, b.cast(gumbel, x.type.dtype))], {"dim": x.type.rank - 1}).result


@builtin()
def fold_in(cx, key, data):
    """A new key from a key and a whole number."""
    b = cx.b
    if not isinstance(key, Value) or key.type.dtype is not u64:
        cx.fail(f"`fold_in` needs a key, got {describe(key)}", "key")
    if isinstance(data, Value):
        if not data.type.dtype.is_int:
            cx.fail(f"`data` is a whole number, got {describe(data)}", "data")
        data = b.cast(data, i64)
    else:
        data = constant(b, cx.int(data, "data"), i64)
    shape = key.type.shape if key.type.rank else data.type.shape
    return b.op("random.fold_in", [b.broadcast(key, shape), b.broadcast(data, shape)]).result


@builtin(draws=True)
def permutation(cx, n, key=None):
    """0 .. n - 1 in random order, i64."""
    b = cx.b
    bits = b.op("random.bits", [key_of(cx, key)], {"shape": [_size(cx, n)]}).result
    return b.op("tensor.sort", [b.cast(bits, u64)], {"dim": 0, "descending": False}).results[1]


__all__ = ["tensor_from_list", "Dim", "Opaque"]
