"""Contractions whose operand is a view of windows (convolutions, their input and weight gradients) without packing the windows.

One operand, the rows side, is read where it is: a register tile's rows are neighbouring positions (or taps of a window), whose
distances are known when the code is made, so every load is a constant offset from one pointer, repeated over the lanes. The other
operand, the lanes side, is packed to panels [k][nw vectors]: weights once, gradients a block of k at a time. C's tile is transposed
in registers where C's rows are its contiguous dim (NCHW).

* convolution and input gradient: rows = positions, lanes = output channels, k = input channels and taps
* weight gradient: rows = input channels and taps, lanes = output channels, k = samples and positions

Strides, dilation and any number of dims are only other constants; groups are batch dims. This file decides (`plan`, with its cost
model); direct_code.py writes the code. Bits: an element is one chain of fused multiply-adds in ascending k from 0 (or from C), whatever
the blocks and however many threads.
"""
from __future__ import annotations

from dataclasses import dataclass

from ...compiler.ir.core import Op
from .contract import Dim, contraction_groups
from .gemm_base import SIZE
from .target import CpuTarget

VARIANTS = 4                 # different register tiles that a unit of rows may be cut into
DEEP = 2048                  # k of a packed block, about: both operands' blocks stay in L2
GROUP = 2                    # the packed panels take at most the GEMM's scratch memory, L2 over this
UNROLLED = 200               # multiply-adds in the body of the innermost loop; longer ones fall out of the op cache
PACKED = 6                   # cycles to pack a vector of the lanes side, transposing


@dataclass(frozen=True)
class Tile:
    """Rows of a unit that one register tile covers: the first one's offsets in A and C, and the rows' distances from it."""

    a: int
    c: int
    a_rows: tuple[int, ...]
    c_rows: tuple[int, ...]


@dataclass(frozen=True)
class DirectPlan:
    """`outer`: dims of rows around a unit, `k`: outermost first. `swapped`: lhs and rhs change places. `transposed`: C is contiguous along
    rows, else along lanes. `cut`: the dim of k that blocks are cut along, `cut_step` of it at a time. `groups`: panels packed at a time."""

    dtype: str
    swapped: bool
    accumulate: bool
    batch: tuple[Dim, ...]
    outer: tuple[Dim, ...]
    tiles: tuple[Tile, ...]
    n: Dim
    k: tuple[Dim, ...]
    nw: int
    transposed: bool
    cut: int
    cut_step: int
    groups: int
    across: int              # threads that share the lanes (the others share the rows)
    cost: float              # cycles of all threads together

    def cycles(self, target: CpuTarget) -> float:
        return self.cost

    def panels(self, target: CpuTarget) -> int:
        return -(-self.n.size // (self.nw * target.lanes(self.dtype)))

    @property
    def callee(self) -> str:
        """The GEMM whose packing memory it uses."""
        return self.dtype

    @property
    def units(self) -> int:
        return _size(self.outer)


def _size(dims) -> int:
    out = 1
    for d in dims:
        out *= d.size
    return out


def plan(op: Op, target: CpuTarget, team: int) -> DirectPlan | None:
    """How to do the contraction directly; None where this is no windowed operand or does not pay."""
    dtype = op.operands[0].type.dtype.name
    if dtype not in ("f32", "f64") or any(v.type.dtype.name != dtype for v in op.operands):
        return None
    found = contraction_groups(op)
    if found is None:
        return None
    batch, ms, ns, ks = found
    if max(len(ms), len(ns), len(ks)) <= 1 or not ks:
        return None
    best = None
    for swapped in (False, True):
        rows, lanes = (ns, ms) if swapped else (ms, ns)
        sides = [[Dim(d.size, d.b, d.a, d.c) for d in g] if swapped else list(g) for g in (batch, rows, lanes, ks)]
        p = _arrange(dtype, swapped, bool(op.attrs.get("accumulate")), *sides, target, team)
        if p is not None and (best is None or p.cost < best.cost):
            best = p
    return best


def _arrange(dtype: str, swapped: bool, accumulate: bool, batch, rows, lanes, ks, target: CpuTarget, team: int) -> DirectPlan | None:
    w = target.lanes(dtype)
    if len(lanes) != 1 or not rows or 4 * lanes[0].size < 3 * w:
        return None
    n, depth = lanes[0], _size(ks)
    transposed = n.c != 1
    best, chosen = None, None
    for nw in range(1, 5):
        if (nw - 1) * w >= n.size:
            break
        high = (target.registers - 1 - nw) // nw
        panels = -(-n.size // (nw * w))
        for inner in range(1, min(3, len(rows)) + 1):
            unit = rows[len(rows) - inner:]
            if transposed and not _contiguous(unit):
                break
            tiles = _tiles(unit, high)
            if tiles is None:
                continue
            each = sum(_tile_cycles(len(t.a_rows), nw, depth, w, transposed) for t in tiles)
            units = _size(rows[:len(rows) - inner])
            for across in (x for x in range(1, team + 1) if team % x == 0):
                mine = _size(batch) * -(-panels // across) * (-(-units // (team // across)) * each + depth * nw * PACKED)
                if best is None or mine * team < best:
                    best, chosen = mine * team, (nw, rows[:len(rows) - inner], tiles, across)
    if chosen is None:
        return None
    nw, outer, tiles, across = chosen
    panels = -(-n.size // (nw * w))
    room = target.l2 // GROUP // SIZE[dtype]
    cut, step = _block(ks, min(DEEP, room // (nw * w)))
    block = step * _size(ks[cut + 1:])
    groups = max(1, min(-(-panels // across), room // (block * nw * w)))
    return DirectPlan(dtype, swapped, accumulate, tuple(batch), tuple(outer), tiles, n, tuple(ks), nw, transposed, cut, step, groups, across, best)


def _contiguous(unit: list[Dim]) -> bool:
    return unit[-1].c == 1 and all(p.c == q.c * q.size for p, q in zip(unit, unit[1:]))


def _tiles(unit: list[Dim], high: int) -> tuple[Tile, ...] | None:
    """The unit's rows cut evenly into tiles of at most `high`; None where that takes too many different ones."""
    at = [(0, 0)]
    for d in unit:
        at = [(a + i * d.a, c + i * d.c) for a, c in at for i in range(d.size)]
    if len(at) > 1024:
        return None
    parts = -(-len(at) // high)
    out = []
    for p in range(parts):
        rows = at[p * len(at) // parts:(p + 1) * len(at) // parts]
        a, c = rows[0]
        out.append(Tile(a, c, tuple(x - a for x, _ in rows), tuple(x - c for _, x in rows)))
    if len({(t.a_rows, t.c_rows) for t in out}) > VARIANTS or parts > 32:
        return None
    return tuple(out)


def _tile_cycles(h: int, nw: int, depth: int, w: int, transposed: bool) -> float:
    """Two multiply-adds and two loads a cycle, a latency of 4, and a little for the loop; then the tile is stored."""
    step = max(h * nw / 2, (h + nw) / 2, 4) + 0.5
    store = nw * -(-h // w) * (6 * w) if transposed else h * nw
    return depth * step + store + 20


def _block(ks: list[Dim], limit: int) -> tuple[int, int]:
    """(the dim of k that blocks are cut along, how much of it): blocks of about `limit`, evenly, whole where k is little more."""
    inner = 1
    for i in range(len(ks) - 1, -1, -1):
        if inner * ks[i].size > limit + limit // 2:
            step = max(1, limit // inner)
            parts = -(-ks[i].size // step)
            return i, -(-ks[i].size // parts)
        inner *= ks[i].size
    return 0, ks[0].size
