"""What a backward function gets from the forward one: the fewest bytes, by a minimum cut.

A value that cheap ops compute from kept values, arguments and constants is computed again instead of being kept: reading
memory costs more than elementwise arithmetic. Nothing here knows about derivatives.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable

from ..compiler.ir.core import Block, Op, Value, uses
from ..compiler.ir.opdef import OPS
from .util import nbytes

CHEAP_MOVES = frozenset("tensor." + n for n in ("constant iota broadcast reshape transpose slice reverse pad concat stop_gradient "
                                                "dynamic_slice windows").split()) | {"autodiff.watch"}


def cheap(op: Op) -> bool:
    """Whether computing the op's results again costs no more than loading them."""
    return (OPS[op.name].elementwise and not op.name.startswith("nn.")) or op.name in CHEAP_MOVES


def choose(needed: Iterable[Value], body: Block, sources: Collection[Value]) -> tuple[list[Value], list[Op]]:
    """(values to keep, ops to compute again, both in program order) so that every needed value of `body` can be had.

    Arguments of the body and values from outside it are at hand, except for the arguments in `sources`.
    """
    needed = list(needed)
    own = set(body.ops)
    index: dict[Value, int] = {}
    stack = list(needed)
    graph = _Flow()
    while stack:
        v = stack.pop()
        if v in index or not (v in sources or (isinstance(v.owner, Op) and v.owner in own)):
            continue
        index[v] = len(index)
        graph.edge(("in", v), ("out", v), max(nbytes(v), 1))
        if v in sources or not cheap(v.owner):
            graph.edge("source", ("in", v), None)
        else:
            for u in v.owner.operands:
                if u in sources or (isinstance(u.owner, Op) and u.owner in own):
                    graph.edge(("out", u), ("in", v), None)
                    stack.append(u)
    for v in dict.fromkeys(needed):
        if v in index:
            graph.edge(("out", v), "sink", None)
    reach = graph.sink_side()
    cut = {v for v in index if ("in", v) not in reach and ("out", v) in reach}
    readers = uses(body)
    cut = _wholes({_unmoved(v, own, readers) for v in cut}, own, readers)
    # From the needed values back to the cut: those ops are computed again.
    again: set[Op] = set()
    stack = [v for v in needed if v in index]
    while stack:
        v = stack.pop()
        if v in cut or v not in index or v.owner in again:
            continue
        again.add(v.owner)
        stack.extend(v.owner.operands)
    kept = [a for a in body.args if a in cut]
    kept += [r for op in body.ops for r in op.results if r in cut]
    return kept, [op for op in body.ops if op in again]


VIEWS = ("tensor.reshape", "tensor.transpose", "tensor.slice")
READ_VIEWS = ("tensor.dot_general", "tensor.attention")            # what takes operands of any strides


def _unmoved(v: Value, own: set[Op], readers: dict[Value, list[Op]]) -> Value:
    """v, or what it is a reshape of, or a transpose of where only ops read it that read through it: the same bytes, without a copy."""
    while isinstance(v.owner, Op) and v.owner in own:
        op = v.owner
        free = op.name == "tensor.reshape" or (op.name == "tensor.transpose" and _read_in_place(v, readers))
        u = op.operands[0] if free else None
        if u is None or not isinstance(u.owner, Op) or u.owner not in own:
            return v
        v = u
    return v


def _read_in_place(v: Value, readers: dict[Value, list[Op]]) -> bool:
    """Whether v may be a view: whoever reads it, or a view of it, takes any strides."""
    return all(r.name in READ_VIEWS or r.name in VIEWS and _read_in_place(r.results[0], readers) for r in readers.get(v, ()))


def _wholes(cut: set[Value], own: set[Op], readers: dict[Value, list[Op]]) -> set[Value]:
    """Where views of slices are kept that have as many bytes as what they are slices of (the heads of a product that makes queries, keys and
    values), that is kept instead: it is there already, and they would be copies."""
    parts: dict[Value, list[Value]] = {}
    for v in cut:
        u, sliced = v, False
        while isinstance(u.owner, Op) and u.owner in own and u.owner.name in VIEWS and _read_in_place(u, readers):
            sliced = sliced or u.owner.name == "tensor.slice"
            u = u.owner.operands[0]
        if sliced and isinstance(u.owner, Op) and u.owner in own:
            parts.setdefault(u, []).append(v)
    for u, views in parts.items():
        if u in cut or sum(nbytes(v) for v in views) >= nbytes(u):
            cut = (cut - set(views)) | {u}
    return cut


def carry_over(needed: Iterable[Value], kept: Collection[Value], again: Iterable[Op]) -> set[Value]:
    """All values that the backward side reads which it does not compute itself."""
    made = {r for op in again for r in op.results}
    read = set(needed) | {v for op in again for v in op.operands}
    return (read - made) | set(kept)


class _Flow:
    """Maximum flow (Dinic). A capacity of None is infinite."""

    INF = 1 << 62

    def __init__(self):
        self.ids: dict = {}
        self.adj: list[list[int]] = []
        self.to: list[int] = []
        self.cap: list[int] = []
        self.node("source"), self.node("sink")

    def node(self, key) -> int:
        if key not in self.ids:
            self.ids[key] = len(self.adj)
            self.adj.append([])
        return self.ids[key]

    def edge(self, a, b, cap: int | None) -> None:
        for u, v, c in ((self.node(a), self.node(b), self.INF if cap is None else cap), (self.node(b), self.node(a), 0)):
            self.adj[u].append(len(self.to))
            self.to.append(v)
            self.cap.append(c)

    def sink_side(self) -> set:
        """The keys of nodes from which the sink can be reached once the flow is maximal: the cut nearest the sink."""
        while (level := self._levels()) is not None:
            at = [0] * len(self.adj)
            while self._push(level, at):
                pass
        seen, todo = {1}, [1]
        while todo:
            v = todo.pop()
            for e in self.adj[v]:
                u = self.to[e]
                if u not in seen and self.cap[e ^ 1] > 0:        # the edge u -> v has room left
                    seen.add(u)
                    todo.append(u)
        return {k for k, i in self.ids.items() if i in seen}

    def _levels(self) -> list[int] | None:
        level = [-1] * len(self.adj)
        level[0] = 0
        todo = deque([0])
        while todo:
            v = todo.popleft()
            for e in self.adj[v]:
                if self.cap[e] > 0 and level[self.to[e]] < 0:
                    level[self.to[e]] = level[v] + 1
                    todo.append(self.to[e])
        return level if level[1] >= 0 else None

    def _push(self, level: list[int], at: list[int]) -> bool:
        """One augmenting path in the level graph."""
        path: list[int] = []
        v = 0
        while v != 1:
            while at[v] < len(self.adj[v]):
                e = self.adj[v][at[v]]
                if self.cap[e] > 0 and level[self.to[e]] == level[v] + 1:
                    break
                at[v] += 1
            else:
                if not path:
                    return False
                e = path.pop()
                v = self.to[e ^ 1]
                at[v] += 1
                continue
            path.append(e)
            v = self.to[e]
        room = min(self.cap[e] for e in path)
        for e in path:
            self.cap[e] -= room
            self.cap[e ^ 1] += room
        return True
