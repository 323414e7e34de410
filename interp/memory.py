"""Buffers of the loop stage: elements of a memory seen through a shape and strides.

A memory is a Python list (None marks elements never written), a tuple (constants: not writable) or TypedMemory: a typed window of a
byte array, as compiled code would see it.
"""
from __future__ import annotations

import numpy as np

from ..compiler.ir.types import BufferType, DType
from .indexing import strided


class LoopError(Exception):
    """The loop IR does something it must not: a bug of ours, never of the user's program."""


class Private(list):
    """Memory of one iteration of a loop.parallel: no other iteration can disturb it."""


class TypedMemory:
    """`count` elements of dtype from byte `start` of `data`, read and written as Python numbers."""

    __slots__ = ("data", "start", "array", "convert")

    def __init__(self, data: np.ndarray, start: int, count: int, dtype: DType):
        self.data, self.start = data, start
        self.array = data[start:start + count * dtype.bytes].view(dtype.numpy)
        self.convert = float if dtype.is_float else bool if dtype.is_bool else int

    def __getitem__(self, i: int):
        return self.convert(self.array[i])

    def __setitem__(self, i: int, v) -> None:
        self.array[i] = v


class Buffer:
    """A view of a memory from element `offset` on. `low` and `high` are the first and last element it can reach, from offset."""

    __slots__ = ("memory", "dtype", "shape", "strides", "offset", "low", "high")

    def __init__(self, memory, dtype: DType, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0):
        self.memory, self.dtype, self.shape, self.strides, self.offset = memory, dtype, shape, strides, offset
        ends = [(n - 1) * s for n, s in zip(shape, strides)]
        self.low, self.high = sum(min(e, 0) for e in ends), sum(max(e, 0) for e in ends)

    @staticmethod
    def of(memory, type: BufferType) -> Buffer:
        return Buffer(memory, type.dtype, tuple(type.shape), type.element_strides)

    @property
    def is_empty(self) -> bool:
        return 0 in self.shape

    def positions(self) -> list[int]:
        """Where its elements are in the memory, in row-major order."""
        return strided(self.shape, self.strides, self.offset)

    def read(self) -> list:
        m = self.memory
        return [m[p] for p in self.positions()]

    def write(self, values: list) -> None:
        m = self.memory
        for p, v in zip(self.positions(), values, strict=True):
            m[p] = v

    def view(self, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Buffer:
        out = Buffer(self.memory, self.dtype, shape, strides, self.offset + offset)
        if not out.is_empty and not (self.low <= offset + out.low and offset + out.high <= self.high and not self.is_empty):
            raise LoopError(f"view of elements {offset + out.low}..{offset + out.high} of a buffer that has {self.low}..{self.high}")
        return out

    def fits(self, type: BufferType) -> bool:
        """Whether it is laid out as `type` says (a stride over one element means nothing)."""
        return (self.dtype is type.dtype and self.shape == tuple(type.shape)
                and all(n <= 1 or s == t for n, s, t in zip(self.shape, self.strides, type.element_strides)))

    def cell(self, position: int) -> tuple[int, int]:
        """An address for an element: the same for the same memory, however it is seen."""
        m = self.memory
        return (id(m.data), m.start + position * self.dtype.bytes) if isinstance(m, TypedMemory) else (id(m), position)


def span(type: BufferType) -> int:
    """How many elements of memory a buffer type needs."""
    if 0 in type.shape:
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(type.shape, type.element_strides))


def overlap(a: Buffer, b: Buffer) -> bool:
    if a.is_empty or b.is_empty or a.cell(0)[0] != b.cell(0)[0]:
        return False
    wide_a, wide_b = ((x.dtype.bytes if isinstance(x.memory, TypedMemory) else 1) for x in (a, b))
    first_a, last_a = a.cell(a.offset + a.low)[1], a.cell(a.offset + a.high)[1] + wide_a
    first_b, last_b = b.cell(b.offset + b.low)[1], b.cell(b.offset + b.high)[1] + wide_b
    if last_a <= first_b or last_b <= first_a:
        return False
    cells = {a.cell(p)[1] + k for p in a.positions() for k in range(wide_a)}
    return any(b.cell(p)[1] + k in cells for p in b.positions() for k in range(wide_b))


class RaceLog:
    """What each iteration of the running loop.parallel read and wrote; raises when one disturbs another."""

    MANY = -1

    def __init__(self):
        self.iteration = 0
        self.writer: dict = {}
        self.reader: dict = {}

    def load(self, buffer: Buffer, position: int) -> None:
        cell = buffer.cell(position)
        if self.writer.get(cell, self.iteration) != self.iteration:
            raise LoopError("an iteration of loop.parallel reads what another one writes")
        if self.reader.setdefault(cell, self.iteration) != self.iteration:
            self.reader[cell] = self.MANY

    def store(self, buffer: Buffer, position: int) -> None:
        cell = buffer.cell(position)
        if self.writer.setdefault(cell, self.iteration) != self.iteration:
            raise LoopError("two iterations of loop.parallel write the same element")
        if self.reader.get(cell, self.iteration) != self.iteration:
            raise LoopError("an iteration of loop.parallel writes what another one reads")
