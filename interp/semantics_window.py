"""Sliding windows and their adjoint, on whole tensors."""
from __future__ import annotations

from math import prod

from ..compiler.ir.types import row_major
from .indexing import gather, outer
from .semantics_tensor import define, exact_sum


def _positions(shape, attrs) -> list[int]:
    """For each window element, in the result's row-major order, its position in a tensor of `shape`."""
    size, stride, dilation = attrs["size"], attrs["stride"], attrs["dilation"]
    lead = len(shape) - len(size)
    steps = row_major(shape)
    counts = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(shape[lead:], size, stride, dilation)]
    return outer(0, [*([i * t for i in range(n)] for n, t in zip(shape[:lead], steps)),
                     *([o * s * t for o in range(n)] for n, s, t in zip(counts, stride, steps[lead:])),
                     *([k * d * t for k in range(n)] for n, d, t in zip(size, dilation, steps[lead:]))])


@define("tensor.windows")
def _windows(ev, op, xs):
    return [gather(xs[0].data, _positions(xs[0].shape, op.attrs))]


@define("tensor.fold_windows")
def _fold_windows(ev, op, xs):
    """Sums are exact and rounded once; the order of the definition matters to backends only."""
    n = len(op.attrs["size"])
    shape = (*xs[0].shape[:len(xs[0].shape) - 2 * n], *op.attrs["shape"])
    terms: list[list] = [[] for _ in range(prod(shape))]
    for i, v in zip(_positions(shape, op.attrs), xs[0].data):
        terms[i].append(v)
    add = exact_sum if xs[0].dtype.is_float else sum
    return [ev.round([add(t) for t in terms], xs[0].dtype)]
