"""Where tensor values live while a function is lowered: strided pieces of buffers, numbers, host-level scalars; and the host-level
op list that views, allocations and kernels are appended to. Transposes, slices, broadcasts and reshapes of these move nothing.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..compiler.ir.core import Block, Loc, Op, Value
from ..compiler.ir.dims import product
from ..compiler.ir.opdef import OPS
from ..compiler.ir.types import BufferType, DType, TensorType, i64, row_major

MOVES = {"tensor.reshape", "tensor.transpose", "tensor.slice", "tensor.broadcast", "tensor.windows", "tensor.stop_gradient"}   # what `moved` handles


@dataclass(frozen=True)
class Storage:
    """`shape` elements of `buffer` from `offset` elements on, `strides` apart."""

    buffer: Value
    offset: int | Value
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def dtype(self) -> DType:
        return self.buffer.type.dtype

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie in row-major order without gaps."""
        step = 1
        for n, s in zip(reversed(self.shape), reversed(self.strides)):
            if n != 1 and s != step:
                return product(self.shape) == 0
            step *= n
        return True


@dataclass(frozen=True)
class Splat:
    """The same number (or host-level scalar) in every element; no memory."""

    value: object
    dtype: DType
    shape: tuple[int, ...]


Place = Storage | Splat


def whole(buffer: Value) -> Storage:
    """All of a buffer."""
    return Storage(buffer, 0, buffer.type.shape, buffer.type.element_strides)


def moved(op: Op, x: Place) -> Place | None:
    """The result of a movement op as another view of the same place; None when strides cannot say it."""
    shape = op.results[0].type.shape
    if isinstance(x, Splat):
        return replace(x, shape=shape)
    if op.name == "tensor.stop_gradient":
        return x
    if op.name == "tensor.reshape":
        strides = reshape_strides(x, shape)
        return None if strides is None else replace(x, shape=shape, strides=strides)
    if op.name == "tensor.transpose":
        return replace(x, shape=shape, strides=tuple(x.strides[p] for p in op.attrs["perm"]))
    if op.name == "tensor.broadcast":
        strides = [0] * len(shape)
        for n, s, d in zip(x.shape, x.strides, op.attrs["dims"]):
            strides[d] = s if n != 1 else 0
        return replace(x, shape=shape, strides=tuple(strides))
    if op.name == "tensor.windows":                    # overlapping: nothing is copied, a convolution is a contraction of this view
        n = len(x.shape) - len(op.attrs["size"])
        steps = [[f * s for f, s in zip(op.attrs[a], x.strides[n:])] for a in ("stride", "dilation")]
        return replace(x, shape=shape, strides=(*x.strides[:n], *steps[0], *steps[1]))
    if op.name == "tensor.slice" and isinstance(x.offset, int):
        skip = sum(lo * s for lo, s in zip(op.attrs["start"], x.strides)) if product(shape) else 0
        return replace(x, offset=x.offset + skip, shape=shape, strides=tuple(s * t for s, t in zip(x.strides, op.attrs["stride"])))
    return None


def equal_groups(a: Sequence[int], b: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """Two lists of sizes, none of them 1, with the same product, cut into the smallest pairs of runs of equal product:
    (start, end) in `a`, (start, end) in `b`."""
    i = j = 0
    while i < len(a) and j < len(b):
        p, q, i0, j0 = a[i], b[j], i, j
        i, j = i + 1, j + 1
        while p != q:
            if p < q:
                p, i = p * a[i], i + 1
            else:
                q, j = q * b[j], j + 1
        yield i0, i, j0, j


def reshape_strides(x: Storage, shape: Sequence[int]) -> tuple[int, ...] | None:
    """Strides that show x's elements, in row-major order, under another shape; None when there are none."""
    shape = tuple(shape)
    if x.contiguous:
        return row_major(shape)
    src = [(n, s) for n, s in zip(x.shape, x.strides) if n != 1]
    out = [0] * len(shape)
    dst = [(n, d) for d, n in enumerate(shape) if n != 1]
    for i0, i, j0, j in equal_groups([n for n, _ in src], [n for n, _ in dst]):
        if any(src[p][1] != src[p + 1][1] * src[p + 1][0] for p in range(i0, i - 1)):
            return None
        step = src[i - 1][1]
        for n, d in reversed(dst[j0:j]):
            out[d] = step
            step *= n
    return tuple(out)


class Host:
    """A list of host-level ops being written: a function's body, or the body of a host-level loop inside one (`parent`)."""

    def __init__(self, block: Block, parent: Host | None = None):
        self.block, self.parent = block, parent
        self.views: dict[Storage, Value] = {}
        self.origin: dict[Value, Storage] = {}         # view -> what it shows, so that views of views do not pile up
        self.consts: dict[int, Value] = {}

    def op(self, name: str, operands: Sequence[Value] = (), attrs: dict | None = None, regions: Sequence[Block] = (), loc: Loc | None = None) -> Op:
        types = OPS[name].infer([v.type for v in operands], attrs or {}, list(regions))
        return self.block.append(Op(name, operands, attrs, types, regions, loc))

    def index(self, n: int) -> Value:
        found = self._find("consts", n)
        if found is None:
            found = self.consts[n] = self.op("scalar.constant", (), {"value": n, "dtype": i64}).result
        return found

    def alloc(self, type: TensorType, loc: Loc | None) -> Storage:
        """A new temporary, row-major."""
        return whole(self.op("loop.alloc", (), {"type": BufferType(type.dtype, type.shape)}, (), loc).result)

    def buffer(self, s: Storage) -> Value:
        """The storage as a buffer value: the base itself, or a view of it."""
        t = s.buffer.type
        if s.offset == 0 and s.shape == t.shape and (s.strides == t.element_strides):
            return s.buffer
        found = self._find("views", s)
        if found is None:
            offset = self.index(s.offset) if isinstance(s.offset, int) else s.offset
            found = self.op("loop.view", [s.buffer, offset], {"shape": list(s.shape), "strides": list(s.strides)}).result
            self.views[s], self.origin[found] = found, s
        return found

    def storage(self, buffer: Value) -> Storage:
        """What a buffer value shows."""
        return self._find("origin", buffer) or whole(buffer)

    def _find(self, table: str, key):
        host: Host | None = self
        while host is not None:
            found = getattr(host, table).get(key)
            if found is not None:
                return found
            host = host.parent
        return None

    def scalar(self, name: str, operands: Sequence[Value], attrs: dict | None = None, loc: Loc | None = None) -> Value:
        return self.op(name, operands, attrs, (), loc).result

    def load(self, s: Storage, loc: Loc | None = None) -> Value:
        """A host-level load of a rank-0 storage."""
        return self.op("loop.load", [self.buffer(s)], None, (), loc).result


def shifted(host: Host, s: Storage, elements: int) -> int | Value:
    """The offset `elements` further into s's buffer."""
    if isinstance(s.offset, int):
        return s.offset + elements
    return s.offset if elements == 0 else host.scalar("scalar.add", [s.offset, host.index(elements)])
