"""Merges two nested loops into one where their indices are only ever used together, as neighbouring indices of memory without a gap
between the two dims: [32, 64, 128] elementwise becomes one loop over 262144 elements, and the inner loops of a row become one.

Before and after: a loop.parallel in the loop IR; views that it then needs are appended to the host level.
"""
from __future__ import annotations

from ..compiler.ir.core import Block, Op, Value, uses
from ..compiler.ir.types import i64
from .lower_buffers import Host, Storage


def collapse(kernel: Op, host: Host) -> None:
    """Merge what can be merged in `kernel`, a loop.parallel that is not yet in the host's list."""
    body = kernel.regions[0]
    use = uses(body)
    extents = kernel.attrs["extents"]
    d = len(extents) - 2
    while d >= 0:
        outer, inner = body.args[d], body.args[d + 1]
        if _Merge(body, host, use, outer, inner, extents[d + 1]).run():
            extents[d] *= extents[d + 1]
            del extents[d + 1], body.args[d + 1]
            use = uses(body)
        d -= 1
    for op in list(body.walk()):
        if op.name in ("loop.for", "loop.reduce") and op.regions:
            _nested(body, op, host)


def _nested(body: Block, op: Op, host: Host) -> None:
    """op's body is nothing but one loop of the same kind from 0 to a constant (and scaled indices for it): merge them."""
    while len(op.regions[0].ops) > 1 and op.regions[0].ops[-2].name == op.name:
        block, inner = op.regions[0], op.regions[0].ops[-2]
        n, m = _constant_range(op), _constant_range(inner)
        if n is None or m is None or op.attrs != inner.attrs or len(op.operands) != 2 or list(block.ops[-1].operands) != list(inner.results):
            return
        outer_iv, inner_iv = block.args[0], inner.regions[0].args[0]
        if any(o.name != "scalar.mul" or o.operands[0] is not outer_iv for o in block.ops[:-2]):
            return
        if not _Merge(body, host, uses(body), outer_iv, inner_iv, m).run():
            return
        constant = Op("scalar.constant", [], {"value": n * m, "dtype": i64}, [op.operands[1].type], (), op.loc)
        body.ops.insert(0, constant)
        op.operands[1] = constant.result
        inner.regions[0].args = [outer_iv]
        outer_iv.owner = inner.regions[0]
        op.regions = [inner.regions[0]]


def _constant_range(op: Op) -> int | None:
    lo, hi = op.operands[0].owner, op.operands[1].owner
    if all(isinstance(b, Op) and b.name == "scalar.constant" for b in (lo, hi)) and lo.attrs["value"] == 0 and op.attrs.get("step", 1) == 1:
        return hi.attrs["value"]
    return None


class _Merge:
    """One attempt: `outer * n + inner` becomes the value of `outer`."""

    def __init__(self, body: Block, host: Host, use: dict[Value, list[Op]], outer: Value, inner: Value, n: int):
        self.body, self.host, self.use, self.outer, self.inner, self.n = body, host, use, outer, inner, n

    def run(self) -> bool:
        accesses, sums = [], []
        for op in dict.fromkeys(self.use.get(self.inner, []) + self.use.get(self.outer, [])):
            if op.name in ("loop.load", "loop.store"):
                at = self.access(op)
                if at is None:
                    return False
                accesses.append((op, at))
            elif op.name == "scalar.mul" and self.is_scaled(op):
                sums.extend(self.use.get(op.result, []))
            elif op.name != "scalar.add" or not any(self.is_scaled_value(x) for x in op.operands):
                return False
        if any(self.sum_of(op) is None for op in sums):
            return False
        for op, at in accesses:
            self.rewrite(op, at)
        for op in dict.fromkeys(sums):                 # outer * n + inner: all its users take the merged index
            for user in self.use.get(op.result, []):
                user.operands = [self.outer if v is op.result else v for v in user.operands]
        dead = {id(op) for op in sums} | {id(op) for op in self.use.get(self.outer, []) if op.name == "scalar.mul"}
        if dead:
            _remove(self.body, dead)
        return True

    def is_scaled(self, op: Op) -> bool:
        """outer * n."""
        c = op.operands[1].owner
        return op.operands[0] is self.outer and isinstance(c, Op) and c.name == "scalar.constant" and c.attrs["value"] == self.n

    def is_scaled_value(self, v: Value) -> bool:
        return isinstance(v.owner, Op) and v.owner.name == "scalar.mul" and self.is_scaled(v.owner)

    def sum_of(self, op: Op) -> Op | None:
        return op if op.name == "scalar.add" and op.operands[1] is self.inner and self.is_scaled_value(op.operands[0]) else None

    def access(self, op: Op) -> int | None:
        """Position of `outer` among op's operands when it and `inner` are used once each, side by side, on gapless dims."""
        first = 1 if op.name == "loop.load" else 2
        buffer, at = op.operands[first - 1], op.operands[first:]
        if op.operands.count(self.outer) != 1 or op.operands.count(self.inner) != 1:
            return None
        p = at.index(self.outer) if self.outer in at else -2
        if p < 0 or p + 1 >= len(at) or at[p + 1] is not self.inner:
            return None
        t = buffer.type
        strides = t.element_strides
        if t.shape[p + 1] != self.n or strides[p] != strides[p + 1] * self.n:
            return None
        if isinstance(buffer.owner, Op) and buffer.owner.name == "loop.alloc" and buffer.owner in self.private():
            return None
        return p

    def private(self) -> set[Op]:
        return {op for op in self.body.ops if op.name == "loop.alloc"}

    def rewrite(self, op: Op, p: int) -> None:
        first = 1 if op.name == "loop.load" else 2
        s = self.host.storage(op.operands[first - 1])
        shape = s.shape[:p] + (s.shape[p] * s.shape[p + 1],) + s.shape[p + 2:]
        view = self.host.buffer(Storage(s.buffer, s.offset, shape, s.strides[:p] + s.strides[p + 1:]))
        op.operands = [*op.operands[:first - 1], view, *op.operands[first:first + p], self.outer, *op.operands[first + p + 2:]]


def _remove(block: Block, dead: set[int]) -> None:
    block.ops = [op for op in block.ops if id(op) not in dead]
    for op in block.ops:
        for r in op.regions:
            _remove(r, dead)
