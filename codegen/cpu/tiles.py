"""Kernels that read an array the other way round than they write it (a transpose): in square tiles.

Lanes go along what is written, so such a load has its lanes far apart, each on a cache line of its own. In a tile, as many rows as there
are lanes are done together: their loads become whole vectors along the array's own rows, exchanged in registers, and each line is used at once.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

from ...compiler.ir.core import Block, Op
from ...compiler.ir.types import i64
from .lanes import Plan, Strides, base_lanes, varying
from .scalars import mem_elem
from .values import Buf, Val

MAX_OPS = 24                # in a body, which a tile repeats for each of its rows
FAR = 16                    # elements between lanes from which on a load is worth it


@dataclass(frozen=True)
class Tile:
    """`loads` have neighbours in memory along the kernel's index number `dim`, of which `size` are done together."""

    dim: int
    size: int
    loads: tuple[Op, ...]


def plan_tile(op: Op, plan: Plan, team: int) -> Tile | None:
    """How a kernel that is vectorised over its innermost index is done in tiles; None where it does not read across."""
    region, extents, w = op.regions[0], op.attrs["extents"], plan.lanes
    if w != base_lanes(region, plan.target) or extents[-1] < w or len(extents) < 2 or len(region.ops) > MAX_OPS:
        return None
    if any(o.regions or o.name in ("loop.assert", "loop.alloc", "loop.view") for o in region.ops):
        return None
    written = {o.operands[1] for o in region.ops if o.name == "loop.store"}
    over = Strides(plan.over, varying(region, plan.over))
    across = [o for o in region.ops if o.name == "loop.load" and o.operands[0] not in written
              and o.operands[0].type.dtype.bits == 8 * plan.target.vector_bytes // w and (over.access(o.operands[0], o.operands[1:]) or 0) >= FAR]
    for dim in reversed(range(len(extents) - 1)):
        along = Strides(region.args[dim], varying(region, region.args[dim]))
        loads = tuple(o for o in across if along.access(o.operands[0], o.operands[1:]) == 1)
        units = math.prod(extents[:-1]) // extents[dim] * -(-extents[dim] // w)
        if loads and extents[dim] >= w and units >= 4 * team:
            return Tile(dim, w, loads)
    return None


def emit_tile(body, region: Block, tile: Tile, first: str, extent: int) -> None:
    """The region for one vector of the innermost index and rows first .. first + size; `body` is in that vector's context."""
    f, index, w = body.f, region.args[tile.dim], tile.size
    whole, rest, done = f.new_label("tile"), f.new_label("rest"), f.new_label("tiled")
    if extent % w:
        f.branch(f.icmp("sle", f.iadd(first, str(w)), str(extent)), whole, rest)
        f.label(whole)
    body.env[index] = Val("u", first, i64, small=True)
    columns = {}
    for op in tile.loads:
        for o in region.ops[:region.ops.index(op)]:          # its indices
            if o.name.startswith("scalar."):
                body.op(o)
        columns[op] = _exchanged(body, op)
    for k in range(w):
        body.env[index] = Val("u", f.iadd(first, str(k)), i64, small=True)
        body.ready = {op: c[k] for op, c in columns.items()}
        body.block(region)
    body.ready = {}
    if extent % w:
        f.jump(done)
        f.label(rest)
        emit_rows(body, region, tile, first, extent)
        f.jump(done)
        f.label(done)


def emit_rows(body, region: Block, tile: Tile, first: str, extent: int) -> None:
    """The same, row by row: at the ends of both indices."""
    f = body.f
    with f.loop(first, f.imin(f.iadd(first, str(tile.size)), str(extent))) as row:
        body.env[region.args[tile.dim]] = Val("u", row.index, i64, small=True)
        body.block(region)


def _exchanged(body, op: Op) -> list[str]:
    """For each row of the tile a vector of what the lanes load: as many vectors along memory as there are lanes, transposed by log2 rounds in
    which rows 2^r apart swap the halves of their blocks (Eklundh 1972)."""
    f, w = body.f, body.w
    buf: Buf = body.buffer(op.operands[0])
    dt = buf.type.dtype
    at = body.l.address(buf, [body.get(v) for v in op.operands[1:]])
    t = f"<{w} x {mem_elem(dt)}>"
    rows = [f.load(t, f.gep(mem_elem(dt), buf.ptr, f.iadd(at.text, str(o))), dt.bytes) for o in at.offs]
    d = w // 2
    while d:
        for r in range(w):
            if not r & d:
                a, b = rows[r], rows[r + d]
                for k, pick in ((r, [i if not i & d else w + i - d for i in range(w)]), (r + d, [i + d if not i & d else w + i for i in range(w)])):
                    rows[k] = f.op(f"shufflevector {t} {a}, {t} {b}, <{w} x i32> <{', '.join(f'i32 {i}' for i in pick)}>")
        d //= 2
    return rows


def unit_extents(extents: list[int], tile: Tile) -> list[int]:
    """Of the outer indices, that of the rows in tiles."""
    return [-(-n // tile.size) if d == tile.dim else n for d, n in enumerate(extents[:-1])]

