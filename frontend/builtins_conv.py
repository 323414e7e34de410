"""Convolution and pooling: contractions and reductions of sliding windows; their gradients follow from those of `tensor.windows`."""
from __future__ import annotations

import math

import numpy as np

from ..compiler.ir import TensorType, Value, i64
from ..compiler.ir.dims import maybe_equal, product
from .builtins import builtin
from .builtins_reduce import mean_of, scale
from .tensors import together
from .values import Undecidable, describe, type_text

# For the docs of the operations on n spatial dims.
SIZES = {1: "L", 2: "H, W", 3: "D, H, W"}
KERNELS = {1: "k", 2: "kh, kw", 3: "kd, kh, kw"}
DIMS = {1: "dim", 2: "two dims", 3: "three dims"}


def _spread(cx, v, n: int, arg: str) -> list:
    """One number for all spatial dims, or a list of n (or of one)."""
    if isinstance(v, list | tuple):
        if len(v) not in (1, n):
            cx.fail(f"`{arg}` of `{cx.name}` needs {n} numbers, got {len(v)}", arg)
        return [cx.int(k, arg) for k in v] * (n if len(v) == 1 else 1)
    return [cx.int(v, arg)] * n


def windows(b, x: Value, size: list, stride: list, dilation: list) -> Value:
    return b.op("tensor.windows", [x], {"size": list(size), "stride": list(stride), "dilation": list(dilation)}).result


def padded(b, x: Value, pads: list[tuple], value: float = 0.0) -> Value:
    """More elements before and after the trailing dims (fewer where negative)."""
    if not any(p or q for p, q in pads):
        return x
    lead = x.type.rank - len(pads)
    low = [0] * lead + [p for p, _ in pads]
    high = [0] * lead + [q for _, q in pads]
    return b.op("tensor.pad", [x, b.constant(value, TensorType(x.type.dtype))], {"low": low, "high": high, "interior": [0] * x.type.rank}).result


# ---- convolution ------------------------------------------------------------------------------------------------------

def _conv_operands(cx, n: int, x, weight) -> tuple[Value, Value]:
    x, w = cx.float(x), cx.float(weight, "weight")
    if w.type.rank != n + 2:
        cx.fail(f"`{cx.name}` needs weights [out, in, {', '.join(['k'] * n)}], got {type_text(w.type)}", "weight")
    if x.type.rank < n + 1:
        cx.fail(f"`{cx.name}` needs [.., channels, {', '.join('HWD'[:n])}], got {type_text(x.type)}", "x")
    return x, cx.b.cast(w, x.type.dtype)


def _add_bias(cx, y: Value, bias, n: int) -> Value:
    if bias is None:
        return y
    v = cx.tensor(bias, "bias")
    y, v = together(cx.b, (y, cx.b.reshape(v, (*v.type.shape, *[1] * n))))
    return cx.b.add(y, v)


def _groups(cx, groups, channels, what: str) -> int:
    g = cx.int(groups, "groups")
    if not isinstance(g, int) or g <= 0 or isinstance(channels, int) and channels % g:
        cx.fail(f"{channels} {what} channels do not divide by {g} groups", "groups")
    return g


def _conv(n: int):
    name = f"conv{n}d"

    def run(cx, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        b = cx.b
        x, w = _conv_operands(cx, n, x, weight)
        ci, co = x.type.shape[-n - 1], w.type.shape[0]
        g = _groups(cx, groups, co, "output")
        size = list(w.type.shape[2:])
        if not maybe_equal(ci, w.type.shape[1] * g):
            cx.fail(f"`{name}` of {type_text(x.type)} with weights {type_text(w.type)}: {ci} channels, but the weights take {w.type.shape[1] * g}",
                    marks=[(cx.spans[k], None) for k in ("x", "weight") if k in cx.spans])
        st, di = _spread(cx, stride, n, "stride"), _spread(cx, dilation, n, "dilation")
        if padding == "same":
            if any(s != 1 for s in st):
                cx.fail('`padding = "same"` goes with stride 1 only', "padding")
            total = [d * (k - 1) for d, k in zip(di, size)]
            pads = [(t // 2, t - t // 2) for t in total]
        elif padding == "valid":
            pads = [(0, 0)] * n
        elif isinstance(padding, str):
            cx.choice(padding, "padding", "same", "valid")
        else:
            pads = [(p, p) for p in _spread(cx, padding, n, "padding")]
        lead = x.type.shape[:-n - 1]
        x = b.reshape(x, (product(lead), *x.type.shape[-n - 1:]))
        p = windows(b, padded(b, x, pads), size, st, di)      # [B, ci, o.., k..]
        o = list(p.type.shape[2:2 + n])
        if g == 1:
            kdims = list(range(2 + n, 2 + 2 * n))
            y = b.op("tensor.dot_general", [w, p], {"lhs_batch": [], "rhs_batch": [], "lhs_contract": [1, *range(2, 2 + n)],
                                                    "rhs_contract": [1, *kdims]}).result       # [co, B, o..]
            y = b.transpose(y, [1, 0, *range(2, 2 + n)])
        else:
            p = b.reshape(p, (p.type.shape[0], g, ci // g, *o, *size))
            w = b.reshape(w, (g, co // g, *w.type.shape[1:]))
            kdims = list(range(3 + n, 3 + 2 * n))
            y = b.op("tensor.dot_general", [w, p], {"lhs_batch": [0], "rhs_batch": [1], "lhs_contract": [2, *range(3, 3 + n)],
                                                    "rhs_contract": [2, *kdims]}).result       # [g, co/g, B, o..]
            y = b.transpose(y, [2, 0, 1, *range(3, 3 + n)])
        return _add_bias(cx, b.reshape(y, (*lead, co, *o)), bias, n)

    run.__doc__ = f"The convolution of x [B, in, {SIZES[n]}] with weights [out, in / groups, {KERNELS[n]}], as torch.nn.functional.conv{n}d; padding may also be \"same\" or \"valid\"."
    builtin(name)(run)


def _conv_transpose(n: int):
    name = f"conv_transpose{n}d"

    def run(cx, x, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
        b = cx.b
        x, w = _conv_operands(cx, n, x, weight)
        ci, co = x.type.shape[-n - 1], w.type.shape[1]
        g = _groups(cx, groups, ci, "input")
        if not maybe_equal(ci, w.type.shape[0]):
            cx.fail(f"`{name}` of {type_text(x.type)} with weights {type_text(w.type)}: {ci} channels, but the weights take {w.type.shape[0]}",
                    marks=[(cx.spans[k], None) for k in ("x", "weight") if k in cx.spans])
        st, di, pad, more = (_spread(cx, v, n, a) for v, a in ((stride, "stride"), (dilation, "dilation"), (padding, "padding"),
                                                              (output_padding, "output_padding")))
        size = list(w.type.shape[2:])
        lead, space = x.type.shape[:-n - 1], list(x.type.shape[-n:])
        batch = product(lead)
        x = b.reshape(x, (batch, g, ci // g if g > 1 else ci, *space))
        w = b.reshape(w, (g, ci // g if g > 1 else ci, co, *size))
        y = b.op("tensor.dot_general", [w, x], {"lhs_batch": [0], "rhs_batch": [1], "lhs_contract": [1], "rhs_contract": [2]}).result
        # [g, co, k.., B, o..] -> [B, g, co, o.., k..]
        y = b.transpose(y, [2 + n, 0, 1, *range(3 + n, 3 + 2 * n), *range(2, 2 + n)])
        y = b.reshape(y, (batch, g * co, *space, *size))
        full = [(o - 1) * s + d * (k - 1) + 1 for o, s, d, k in zip(space, st, di, size)]
        y = b.op("tensor.fold_windows", [y], {"size": size, "stride": st, "dilation": di, "shape": full}).result
        y = padded(b, y, [(-p, q - p) for p, q in zip(pad, more)])
        return _add_bias(cx, b.reshape(y, (*lead, *y.type.shape[1:])), bias, n)

    run.__doc__ = f"The transpose of conv{n}d with weights [in, out / groups, {KERNELS[n]}], as torch.nn.functional.conv_transpose{n}d."
    builtin(name)(run)


for _n in (1, 2, 3):
    _conv(_n)
    _conv_transpose(_n)


# ---- pooling ----------------------------------------------------------------------------------------------------------

def _pool_geometry(cx, x: Value, n: int, kernel_size, stride, padding, dilation, ceil_mode) -> tuple[list, list, list, list]:
    """(size, stride, dilation, pads); with ceil_mode a last, partial window may reach beyond the end."""
    if x.type.rank < n:
        cx.fail(f"`{cx.name}` needs {n} trailing dimensions, got {type_text(x.type)}", "x")
    size = _spread(cx, kernel_size, n, "kernel_size")
    st = size if stride is None or isinstance(stride, list | tuple) and not stride else _spread(cx, stride, n, "stride")
    di = _spread(cx, dilation, n, "dilation")
    pads = []
    up = cx.flag(ceil_mode, "ceil_mode")
    for p, k, s, d, m in zip(_spread(cx, padding, n, "padding"), size, st, di, x.type.shape[x.type.rank - n:]):
        if isinstance(p, int) and isinstance(k, int) and 2 * p > d * (k - 1) + 1:
            cx.fail(f"`padding` {p} is more than half the window {k}", "padding")
        more = 0
        if up:
            if not isinstance(m, int):
                raise Undecidable
            wide = d * (k - 1) + 1
            count = -(-(m + 2 * p - wide) // s) + 1
            if (count - 1) * s >= m + p:                       # a window that would start in the padding behind
                count -= 1
            more = max(0, (count - 1) * s + wide - (m + 2 * p))
        pads.append((p, p + more))
    return size, st, di, pads


def _first_max(b, w: Value, n: int) -> Value:
    """The maximum over the last n dims; its gradient goes to the first element that has it."""
    shape = (*w.type.shape[:w.type.rank - n], product(w.type.shape[w.type.rank - n:]))
    return b.op("nn.max_first", [b.reshape(w, shape)]).result


def _positions_of_max(b, w: Value, n: int, at: Value) -> Value:
    """For each window the position (from `at`, shaped as the windows' dims) of its first maximum, i64."""
    lead = w.type.shape[:w.type.rank - n]
    k = product(w.type.shape[w.type.rank - n:])
    which = b.op("tensor.argmax", [b.reshape(w, (*lead, k))], {"dim": len(lead)}).result
    flat = b.reshape(at, (*at.type.shape[:at.type.rank - n], k))
    flat = b.broadcast(flat, (*lead, k))
    hit = b.compare("eq", b.iota((*lead, k), len(lead)), b.broadcast(which, (*lead, k), list(range(len(lead)))))
    return b.sum(b.select(hit, flat, 0), [len(lead)])


def _max_pool(n: int):
    name = f"max_pool{n}d"

    def run(cx, x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
        b = cx.b
        x = cx.float(x)
        size, st, di, pads = _pool_geometry(cx, x, n, kernel_size, stride, padding, dilation, ceil_mode)
        w = windows(b, padded(b, x, pads, -math.inf), size, st, di)
        y = _first_max(b, w, n)
        if not cx.flag(return_indices, "return_indices"):
            return y
        space = x.type.shape[x.type.rank - n:]
        at = windows(b, padded(b, b.reshape(b.iota((product(space),), 0, i64), space), pads, 0), size, st, di)
        return y, _positions_of_max(b, w, n, at)

    run.__doc__ = f"The largest of each window of the last {DIMS[n]}, as torch.nn.functional.max_pool{n}d; the gradient goes to the first maximum of a window."
    builtin(name)(run)


def _avg_pool(n: int):
    name = f"avg_pool{n}d"

    def run(cx, x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):
        b = cx.b
        x = cx.float(x)
        size, st, di, pads = _pool_geometry(cx, x, n, kernel_size, stride, padding, 1, ceil_mode)
        w = windows(b, padded(b, x, pads), size, st, di)
        y = b.sum(w, list(range(x.type.rank, x.type.rank + n)))
        if divisor_override is not None:
            k = cx.int(divisor_override, "divisor_override")
            if k == 0:
                cx.fail("`divisor_override` cannot be 0", "divisor_override")
            return scale(b, y, k)
        counted = cx.flag(count_include_pad, "count_include_pad")
        if all(p == q == 0 for p, q in pads) or counted and all(p == q for p, q in pads):
            return scale(b, y, product(size))
        space, out = x.type.shape[x.type.rank - n:], y.type.shape[y.type.rank - n:]
        if not all(isinstance(m, int) for m in space):
            raise Undecidable
        each = np.ones((), y.type.dtype.numpy)
        for m, o, k, s, (p, _) in zip(space, out, size, st, pads):
            lo, hi = (-p, m + p) if counted else (0, m)        # a window counts what lies in here
            counts = [min(i * s - p + k, hi) - max(i * s - p, lo) for i in range(o)]
            each = np.multiply.outer(each, np.array(counts, each.dtype))
        d = b.constant(each, TensorType(y.type.dtype, tuple(out)))
        return b.div(y, b.broadcast(d, y.type.shape))

    run.__doc__ = f"The mean of each window of the last {DIMS[n]}, as torch.nn.functional.avg_pool{n}d."
    builtin(name)(run)


def _cells(size: int, out: int) -> list[tuple[int, int]]:
    """Where the cells of an adaptive pool start and end."""
    return [(j * size // out, -(-(j + 1) * size // out)) for j in range(out)]


def _outputs(cx, x: Value, n: int, output_size) -> list[int]:
    if x.type.rank < n:
        cx.fail(f"`{cx.name}` needs {n} trailing dimensions, got {type_text(x.type)}", "x")
    space = x.type.shape[x.type.rank - n:]
    many = list(output_size) if isinstance(output_size, list | tuple) else [output_size] * n
    if len(many) == 1:
        many *= n
    if len(many) != n:
        cx.fail(f"`output_size` of `{cx.name}` needs {n} numbers, got {describe(output_size)}", "output_size")
    out = [m if o is None else cx.int(o, "output_size") for o, m in zip(many, space)]
    for o, m in zip(out, space):
        if not isinstance(m, int) or not isinstance(o, int):
            raise Undecidable
        if o < 0:
            cx.fail("an output size cannot be negative", "output_size")
    return out


def _adaptive_avg(n: int):
    name = f"adaptive_avg_pool{n}d"

    def run(cx, x, output_size):
        b = cx.b
        x = cx.float(x)
        for i, o in enumerate(_outputs(cx, x, n, output_size)):
            d = x.type.rank - n + i
            s = x.type.shape
            if s[d] == o:
                continue
            if o and s[d] % o == 0:
                x = mean_of(b, b.reshape(x, (*s[:d], o, s[d] // o, *s[d + 1:])), [d + 1])
                continue
            m = np.zeros((o, s[d]), x.type.dtype.numpy)        # uneven cells: a matrix of averaging weights
            for j, (lo, hi) in enumerate(_cells(s[d], o)):
                m[j, lo:hi] = 1 / (hi - lo)
            w = b.constant(m, TensorType(x.type.dtype, (o, s[d])))
            y = b.op("tensor.dot_general", [x, w], {"lhs_batch": [], "rhs_batch": [], "lhs_contract": [d], "rhs_contract": [1]}).result
            x = b.transpose(y, [*range(d), y.type.rank - 1, *range(d, y.type.rank - 1)])
        return x

    run.__doc__ = f"Means of windows such that the last {DIMS[n]} get{'s' if n == 1 else ''} this size, as torch.nn.functional.adaptive_avg_pool{n}d; none keeps a size."
    builtin(name)(run)


def _cell_windows(b, x: Value, d: int, out: int) -> Value:
    """Dim d as [out, widest cell]; narrower cells repeat their last element."""
    s = x.type.shape
    if out and s[d] % out == 0:
        return b.reshape(x, (*s[:d], out, s[d] // out, *s[d + 1:]))
    cells = _cells(s[d], out)
    widest = max((hi - lo for lo, hi in cells), default=1)
    index = np.array([[min(lo + k, hi - 1) for k in range(widest)] for lo, hi in cells], np.int64).reshape(out, widest)
    return b.op("tensor.take", [x, b.constant(index, TensorType(i64, (out, widest)))], {"dim": d}).result


def _adaptive_max(n: int):
    name = f"adaptive_max_pool{n}d"

    def run(cx, x, output_size, return_indices=False):
        b = cx.b
        x = cx.float(x)
        out = _outputs(cx, x, n, output_size)
        lead = x.type.rank - n

        def cut_up(v: Value, first: int) -> Value:
            for i, o in enumerate(out):
                v = _cell_windows(b, v, first + 2 * i, o)
            return b.transpose(v, [*range(first), *range(first, first + 2 * n, 2), *range(first + 1, first + 2 * n, 2)])

        w = cut_up(x, lead)
        y = _first_max(b, w, n)
        if not cx.flag(return_indices, "return_indices"):
            return y
        space = x.type.shape[lead:]
        return y, _positions_of_max(b, w, n, cut_up(b.reshape(b.iota((product(space),), 0, i64), space), 0))

    run.__doc__ = f"The largest of windows such that the last {DIMS[n]} get{'s' if n == 1 else ''} this size, as torch.nn.functional.adaptive_max_pool{n}d; none keeps a size."
    builtin(name)(run)


for _n in (1, 2, 3):
    _max_pool(_n)
    _avg_pool(_n)
    _adaptive_avg(_n)
    _adaptive_max(_n)


# ---- windows as columns ------------------------------------------------------------------------------------------------

def _images(cx, x, rank: int) -> tuple[Value, bool]:
    x = cx.float(x)
    if x.type.rank not in (rank, rank - 1):
        cx.fail(f"`{cx.name}` needs {rank - 1} or {rank} dimensions, got {type_text(x.type)}", "x")
    return (x, False) if x.type.rank == rank else (cx.b.reshape(x, (1, *x.type.shape)), True)


@builtin()
def unfold(cx, x, kernel_size, dilation=1, padding=0, stride=1):
    """torch.nn.functional.unfold: every window of [B, C, H, W] as a column, [B, C * kh * kw, windows]."""
    b = cx.b
    x, single = _images(cx, x, 4)
    size, di, pad, st = (_spread(cx, v, 2, a) for v, a in ((kernel_size, "kernel_size"), (dilation, "dilation"), (padding, "padding"), (stride, "stride")))
    w = windows(b, padded(b, x, [(p, p) for p in pad]), size, st, di)
    n, c, oh, ow = w.type.shape[:4]
    y = b.reshape(b.transpose(w, [0, 1, 4, 5, 2, 3]), (n, c * size[0] * size[1], oh * ow))
    return b.reshape(y, y.type.shape[1:]) if single else y


@builtin()
def fold(cx, x, output_size, kernel_size, dilation=1, padding=0, stride=1):
    """torch.nn.functional.fold: columns [B, C * kh * kw, windows] added up into [B, C, H, W]; the transpose of unfold."""
    b = cx.b
    x, single = _images(cx, x, 3)
    out, size, di, pad, st = (_spread(cx, v, 2, a) for v, a in ((output_size, "output_size"), (kernel_size, "kernel_size"), (dilation, "dilation"),
                                                               (padding, "padding"), (stride, "stride")))
    full = [o + 2 * p for o, p in zip(out, pad)]
    at = [(m - d * (k - 1) - 1) // s + 1 for m, d, k, s in zip(full, di, size, st)]
    n, rows, cols = x.type.shape
    if not maybe_equal(cols, at[0] * at[1]) or isinstance(rows, int) and rows % (size[0] * size[1]):
        cx.fail(f"{type_text(x.type)} are not the {at[0] * at[1]} windows of an image of {out[0]} by {out[1]}", "x")
    w = b.transpose(b.reshape(x, (n, rows // (size[0] * size[1]), *size, *at)), [0, 1, 4, 5, 2, 3])
    y = b.op("tensor.fold_windows", [w], {"size": size, "stride": st, "dilation": di, "shape": full}).result
    y = padded(b, y, [(-p, -p) for p in pad])
    return b.reshape(y, y.type.shape[1:]) if single else y
