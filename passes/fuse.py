"""The pass fuse: groups base ops into `tensor.fused` ops, each of which becomes one kernel (a split reduction: two).

Before and after: tensor stage. A group is one of
* elementwise: results of one size, computed in one loop;
* rows: values of the whole domain and values of its rows (reductions over trailing dims), in one loop over rows: softmax, layer norm; reductions over many
  rows go along with them, in chunks of rows: a layer norm's gradient reads everything once;
* product: a contraction that is large enough for a kernel of its own, and elementwise ops on its result: its epilogue;
* reduce: a reduction over other dims, or of much to little, with its producers and what is computed from its result.

Movement (broadcast, reshape, transpose, slice ...), small constants and cheap ops that read one array are copied into every group that
uses them. Nothing expensive is computed in two kernels. What fits together is decided on numbers of elements: reshapes change nothing.
"""
from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir.core import Block, Module, Op, Value, clone_op
from .fuse_graph import ALIGNED, Graph, is_product
from .fuse_groups import Cluster, merged
from .fuse_rewrites import rewrite_block


@dataclass(frozen=True)
class Fuse:
    """Before: tensor stage. After: tensor stage with tensor.fused groups; results keep their bits, except that sums may regroup."""

    name: ClassVar[str] = "fuse"
    exact: ClassVar[bool] = False
    along_rows: bool = True            # reductions over rows in few chunks of them: for processors with few threads

    def apply(self, module: Module) -> Module:
        for f in module.funcs.values():
            rewrite_block(f.body)
            fuse_block(f.body, self.along_rows)
        return module


def fuse_block(block: Block, along_rows: bool = True) -> None:
    """Groups the ops of a block and of its regions."""
    for op in block.ops:
        if op.name != "tensor.fused":
            for r in op.regions:
                fuse_block(r, along_rows)
    graph = Graph(block, along_rows)
    if not _rewrite(block, graph, _grouped(graph)):
        graph.far = True                               # rare: groups far apart, see Graph.cyclic
        if not _rewrite(block, graph, _grouped(graph)):
            raise ValueError("the groups depend on one another in a circle")


def _grouped(graph: Graph) -> dict[Op, Cluster]:
    """The cluster of every op that can be in one."""
    home: dict[Op, Cluster] = {}
    for op in graph.order:
        if graph.fusible(op):
            home[op] = Cluster.single(op, graph)
    _merge_along_edges(graph, home)
    _merge_siblings(graph, home)
    return home


def _merge_along_edges(graph: Graph, home: dict[Op, Cluster]) -> None:
    """Each op joins the clusters of its producers where that is possible, nearest producer first."""
    for op in graph.order:
        if op not in home:
            continue
        for e in reversed(graph.edges(op)):
            if e.source in home and home[e.source] is not home[op]:
                _try(home[e.source], home[op], graph, home)


def _merge_siblings(graph: Graph, home: dict[Op, Cluster]) -> None:
    """Clusters that read the same array, and all work on single elements, join although neither feeds the other."""
    readers: dict[object, list[Op]] = {}
    for op in home:
        if op.results[0].type.numel == 1 and home[op].full == 1:
            readers.setdefault("single elements", []).append(op)
        for e in graph.edges(op):
            if e.kind is ALIGNED and (e.source is None or e.source not in home or home[e.source] is not home[op]):
                readers.setdefault(e.value, []).append(op)
    for ops in readers.values():
        for a, b in zip(ops, ops[1:]):
            if home[a] is not home[b] and not any(is_product(op) for c in (home[a], home[b]) for op in c.ops):
                _try(home[a], home[b], graph, home)


def _try(a: Cluster, b: Cluster, graph: Graph, home: dict[Op, Cluster]) -> bool:
    c = merged(a, b, graph)
    if c is None or graph.cyclic(a, b, home):
        return False
    for op in c.ops:
        home[op] = c
    return True


# ---- writing the groups ------------------------------------------------------------------------------------------------


def _rewrite(block: Block, graph: Graph, home: dict[Op, Cluster]) -> bool:
    """Replaces clusters by tensor.fused ops, keeping an order in which everything is defined before it is used; False: there is none."""
    needed: dict[Value, None] = {}
    plain: set[Op] = set()
    todo: list[Value] = []

    def need(v: Value) -> None:
        if v not in needed:
            needed[v] = None
            todo.append(v)

    clusters = list(dict.fromkeys(home.values()))
    inputs: dict[Cluster, list[Value]] = {}
    inside: dict[Cluster, list[Op]] = {}
    for c in clusters:
        inputs[c], inside[c] = _contents(c, graph)
        for v in inputs[c]:
            need(v)
    for op in graph.order:
        if op not in home and op not in graph.copied:
            plain.add(op)
            for v in graph.all_operands(op):
                need(v)
    while todo:                                        # copied ops that something outside the groups needs stay as they are, too
        op = graph.defined.get(todo.pop())
        if op is not None and op in graph.copied and op not in plain:
            plain.add(op)
            for v in op.operands:
                need(v)

    owner: dict[Value, object] = {}
    for op in plain:
        for r in op.results:
            owner[r] = op
    for c in clusters:
        for op in c.ops:
            for r in op.results:
                owner[r] = c
    everything = [*clusters, *plain]
    place = {n: max(graph.position[o] for o in n.ops) if isinstance(n, Cluster) else graph.position[n] for n in everything}
    reads = {n: (inputs[n] if isinstance(n, Cluster) else graph.all_operands(n)) for n in everything}
    waiting: dict[object, int] = {}
    users: dict[object, list] = {}
    for n in everything:
        sources = {owner[v] for v in reads[n] if v in owner} - {n}
        waiting[n] = len(sources)
        for s in sources:
            users.setdefault(s, []).append(n)
    ready = [(place[n], i) for i, n in enumerate(everything) if not waiting[n]]
    number = {n: i for i, n in enumerate(everything)}
    heapq.heapify(ready)
    out: list[Op] = []
    env: dict[Value, Value] = {}
    done = 0
    while ready:
        n = everything[heapq.heappop(ready)[1]]
        done += 1
        if isinstance(n, Cluster):
            out.append(_group(n, inputs[n], inside[n], needed, env, graph.along_rows))
        else:
            out.append(n)
        for u in users.get(n, ()):
            waiting[u] -= 1
            if not waiting[u]:
                heapq.heappush(ready, (place[u], number[u]))
    if done != len(everything):
        return False
    block.ops = out
    _replace(block, env)
    return True


def _replace(block: Block, env: dict[Value, Value]) -> None:
    for op in block.walk():
        op.operands = [env.get(v, v) for v in op.operands]


def _contents(c: Cluster, graph: Graph) -> tuple[list[Value], list[Op]]:
    """Values that come from outside, and all ops inside in order, copied ones included."""
    ops: dict[Op, None] = {}
    inputs: dict[Value, None] = {}
    todo = list(c.ops)
    while todo:
        op = todo.pop()
        if op in ops:
            continue
        ops[op] = None
        for v in op.operands:
            source = graph.defined.get(v)
            if source is not None and not is_product(op) and (source in c.members or source in graph.copied):
                todo.append(source)
            else:
                inputs[v] = None
    ordered = sorted(ops, key=graph.position.__getitem__)
    first = {v: i for i, v in reversed(list(enumerate(v for op in ordered for v in op.operands)))}
    return sorted(inputs, key=first.__getitem__), ordered


def _group(c: Cluster, inputs: list[Value], ops: list[Op], needed: dict[Value, None], env: dict[Value, Value], along_rows: bool) -> Op:
    outputs = [r for op in ops if op in c.members for r in op.results if r in needed]
    attrs = c.attrs(along_rows)
    if len(ops) == 1 and not {"chunks", "split"} & attrs.keys():
        return ops[0]
    region = Block([v.type for v in inputs], [v.name for v in inputs])
    inner = dict(zip(inputs, region.args))
    region.ops = [clone_op(op, inner) for op in ops]
    loc = c.loc()
    region.append(Op("scf.yield", [inner[v] for v in outputs], {}, (), (), loc))
    fused = Op("tensor.fused", inputs, attrs, [v.type for v in outputs], [region], loc)
    for v, r in zip(outputs, fused.results):
        r.name = v.name
        env[v] = r
    return fused

