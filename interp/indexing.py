"""Positions of elements: every movement of data is a list of positions in a flat row-major list. No arithmetic on elements here."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import prod

from ..compiler.ir.types import row_major
from .numerics import Array, RunTimeFault


def outer(offset: int, steps: Iterable[Sequence[int]]) -> list[int]:
    """All sums of `offset` and one entry of each list, the last list running fastest."""
    out = [offset]
    for offsets in steps:
        out = [i + o for i in out for o in offsets]
    return out


def strided(shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> list[int]:
    """Positions, in row-major order of `shape`, of elements that lie `strides` apart. Shared: do not modify."""
    if offset or prod(shape) > 1 << 16:                 # offsets vary at run time, and long lists would stay in memory
        return outer(offset, [[i * s for i in range(n)] for n, s in zip(shape, strides)])
    return _kept(shape, strides)


@lru_cache(maxsize=256)
def _kept(shape: tuple[int, ...], strides: tuple[int, ...]) -> list[int]:
    return outer(0, [[i * s for i in range(n)] for n, s in zip(shape, strides)])


def gather(data, positions: Iterable[int]) -> list:
    return list(map(data.__getitem__, positions))


def _grouped(shape: tuple[int, ...], dims: Sequence[int]) -> list[int]:
    order = [d for d in range(len(shape)) if d not in dims] + list(dims)
    strides = row_major(shape)
    return strided(tuple(shape[d] for d in order), tuple(strides[d] for d in order))


def rows(x: Array, dims: Sequence[int]) -> list[list]:
    """The elements along `dims`, one list for each position of the other dims (row-major)."""
    n = prod(x.shape[d] for d in dims)
    if n == 0:
        return [[] for _ in range(prod(s for d, s in enumerate(x.shape) if d not in dims))]
    flat = gather(x.data, _grouped(x.shape, tuple(dims)))
    return [flat[i:i + n] for i in range(0, len(flat), n)]


def unrows(parts: Iterable[list], shape: tuple[int, ...], dims: Sequence[int]) -> list:
    """The inverse of `rows`: the flat list of a tensor of `shape`."""
    out = [None] * prod(shape)
    positions = iter(_grouped(shape, tuple(dims)))
    for part in parts:
        for v in part:
            out[next(positions)] = v
    return out


def check_index(i: int, n: int) -> int:
    if not 0 <= i < n:
        raise RunTimeFault(f"index {i} is out of range 0..{n}")
    return i
