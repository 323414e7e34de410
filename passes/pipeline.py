"""The pass pipeline: cuts the step of a training loop into stages, so that threads can work on several batches at once.

A scan with `pipeline` (an epoch, frontend/train_epoch.py) calls one step function per turn. Where nothing flows back, its ops fall apart into
parts: what layer 2 does with batch t needs nothing of what layer 1 does with batch t + 1. The pass makes a function per stage and lets
the scan call these one after the other, which computes the same; `stages` says so, and lower_pipeline.py makes sections that run side by side.

What may be apart: a value is made in the stage of its reader or in an earlier one; a slot (a weight, a rule's state) is updated in the
stage of all who read it in the next turn, or before: later stages are handed the old value. So what depends on each other in a circle
over turns stays together, and every number is that of the steps one after the other.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..compiler.diagnostics import error
from ..compiler.ir.core import Block, Func, Module, Op, Value, clone_op, free_values
from .cost import part_cost
from .lower_buffers import MOVES
from .util import Purity, callees, span

COPIED = 64              # elements up to which a value that no slot influences is computed in every stage that wants it
HEAVY = 0.01             # of the step's work, from which on a part is worth a stage
GAIN = 1.2               # times faster than one thread that the stages would have to be, at best


@dataclass(frozen=True)
class Pipeline:
    """Before and after: tensor stage, fused (groups become kernels as they are: the same bits whatever the cut). CompileError where the
    step cannot be cut."""

    name: ClassVar[str] = "pipeline"
    exact: ClassVar[bool] = True

    def apply(self, module: Module) -> Module:
        made: dict[tuple, list[_Stage]] = {}                 # epochs of one step, several of them in one module, share its stages
        for f in list(module.funcs.values()):
            for scan in [op for op in f.body.ops if op.name == "scf.scan" and "pipeline" in op.attrs]:
                _scan(module, scan, made)
        if made:
            _forget(module)
        return module


def _scan(module: Module, scan: Op, made: dict[tuple, list[_Stage]]) -> None:
    wanted, exactly = scan.attrs.pop("pipeline"), scan.attrs.pop("pipeline_exactly", False)
    region = scan.regions[0]
    call = next(op for op in region.ops if op.name == "func.call")
    n, step = scan.attrs["n_carry"], module.funcs[call.attrs["callee"]]
    carries = {v: k for k, v in enumerate(region.args[1:1 + n])}
    slots = {a: carries[v] for a, v in zip(step.args, call.operands) if v in carries}
    term = region.terminator.operands
    news = {k: step.returns.operands[call.results.index(v)] for k, v in enumerate(term[:n]) if v in call.results}      # others stay as they are
    key = (step.name, wanted, exactly)
    if key not in made:
        parts = _Parts(module, step, slots, news)
        cut = parts.stages(wanted, exactly, scan)
        made[key] = [] if cut is None else [_Stage(module, parts, cut, s) for s in range(max(cut.values()) + 1)]
    stages = made[key]
    if not stages:                                           # one thread: the step is its own stage
        return
    outside = dict(zip(step.args, call.operands))
    inside: dict[Value, Value] = {}                          # of the step function -> of the scan's body
    at = region.ops.index(call)
    ops = []
    for st in stages:
        operands = [outside[v] if v in outside and v not in st.handed else inside[v] for v in st.inputs]
        types = [v.type for v in st.outputs]
        op = Op("func.call", operands, {"callee": st.func.name, "result_types": types}, types, (), call.loc)
        ops.append(op)
        inside.update((v, r) for v, r in zip(st.outputs, op.results))
    region.ops[at:at + 1] = ops
    back = {r: v for r, v in zip(call.results, step.returns.operands)}
    region.terminator.operands = [v if v not in back else inside[back[v]] if back[v] in inside else outside[back[v]] for v in term]
    scan.attrs["stages"] = len(stages)


def _forget(module: Module) -> None:
    """Removes the functions that nobody calls any more."""
    entries = set(module.attrs.get("entries") or ())
    while True:
        called = {c for op in module.walk() for c in callees(op)}
        gone = [name for name in module.funcs if name not in called and name not in entries]
        if not gone or not entries:
            return
        for name in gone:
            del module.funcs[name]


# ---- what hangs together ----------------------------------------------------------------------------------------------

class _Parts:
    """The step function's ops and slots as nodes of a graph (a node: an op, or an argument that is an updated slot); an edge says that its
    source's stage is not behind its target's. `order`: the circles of it, each a list of nodes, in an order in which no edge points back."""

    def __init__(self, module: Module, step: Func, slots: dict[Value, int], news: dict[int, Value]):
        self.module, self.step, self.pure = module, step, Purity(module)
        self.updated = {a: news[k] for a, k in slots.items() if k in news and news[k] is not a}
        kept = [a for a, k in slots.items() if news.get(k) is a]
        self.others = [v for v in dict.fromkeys(step.returns.operands) if v not in kept and all(v is not new for new in self.updated.values())]
        self._from: dict[Value, tuple] = {}
        self.nodes: list = []
        for op in step.body.ops[:-1]:
            if not self.free(op):
                self.nodes.append(op)
        ops = list(self.nodes)
        self.nodes += self.updated
        self.edges: dict[object, set] = {x: set() for x in self.nodes}
        for op in ops:
            for v in reads(op):
                for x in self.sources(v):
                    self.edges[x].add(op)
        for slot, new in self.updated.items():
            for x in self.sources(new):
                self.edges[x].add(slot)
                self.edges[slot].add(x)
        number = {x: i for i, x in enumerate(ops)}
        self.order = _circles(self.nodes, self.edges, lambda c: min((number[x] for x in c if x in number), default=len(number)))
        self.weights = [sum(part_cost(x, module) for x in c if isinstance(x, Op)) for c in self.order]

    def free(self, op: Op) -> bool:
        """Whether an op is computed again wherever it is wanted: movement, constants, and numbers that no slot influences."""
        if op.name in MOVES or op.name == "tensor.constant":
            return True
        return bool(op.results) and self.pure(op) and all(r.type.numel <= COPIED for r in op.results) and \
            not any(self.sources(v) for v in reads(op))

    def sources(self, v: Value) -> tuple:
        """The nodes that a value comes from."""
        if v not in self._from:
            op = v.owner
            if not isinstance(op, Op):
                self._from[v] = (v,) if v in self.updated else ()
            elif self.free(op):
                self._from[v] = tuple(dict.fromkeys(x for u in reads(op) for x in self.sources(u)))
            else:
                self._from[v] = (op,)
        return self._from[v]

    def node(self, v: Value):
        """The node that a value belongs to: the op that makes it, the updated slot that it is; None for other arguments."""
        return v.owner if isinstance(v.owner, Op) else v if v in self.updated else None

    def roots(self, v: Value) -> list[Value]:
        """The arguments and the nodes' results that a value is computed from by what is free."""
        if not isinstance(v.owner, Op) or not self.free(v.owner):
            return [v]
        return [u for x in reads(v.owner) for u in self.roots(x)]

    def stages(self, wanted: int, exactly: bool, scan: Op) -> dict | None:
        """Node -> stage; None when one thread is to do it all."""
        total = max(sum(self.weights), 1.0)
        heavy = sum(w >= HEAVY * total for w in self.weights)
        if heavy < 2 or total < GAIN * max(self.weights):
            raise self._uncut(scan, max(self.weights) / total)
        if exactly and heavy < wanted:
            raise error(span(scan.loc), f"`pipeline = {wanted}`: this step falls apart into {heavy} parts only, and a part is one stage's",
                        hint=f"`pipeline = {heavy}`, or `true` for as many as there are threads")
        n = min(wanted, heavy)
        if n == 1:
            return None
        ends = _balanced(self.weights, n)
        return {x: s for s, (a, b) in enumerate(ends) for c in self.order[a:b] for x in c}

    def _uncut(self, scan: Op, share: float):
        """What flows back, told by the first and the last slot of the largest part."""
        circle = self.order[self.weights.index(max(self.weights))]
        inside = set(circle)
        names = self.step.attrs.get("arg_names") or [a.name for a in self.step.args]
        place = {x: i for i, x in enumerate(self.nodes)}

        def first_use(slot: Value) -> int:
            return min((place[x] for x in self.edges[slot] if isinstance(x, Op)), default=0)
        roles = dict(zip(self.step.args, self.step.attrs.get("arg_roles") or ()))
        found = sorted((a for a in self.step.args if a in inside and roles.get(a, "param").startswith("param")), key=first_use)
        label = {a: n for a, n in zip(self.step.args, names)}
        message = "`pipeline`: this step cannot be cut into stages"
        notes = []
        layers = list(dict.fromkeys(label[a].rpartition(".")[0] for a in found))
        if len(found) > 1 and len(layers) > 1:
            a, b = found[0], found[-1]
            message += f": `{label[a]}` learns from what is computed with `{label[b]}`, behind it"
            writer = next((x for x in self.sources(self.updated[a]) if isinstance(x, Op)), None)
            if writer is not None and writer.loc is not None and scan.loc is not None and writer.loc.file == scan.loc.file:      # not in the library
                notes.append((span(writer.loc), f"`{label[a]}` gets its new value here"))
        elif found:
            message += f": all that learns is `{layers[0] or label[found[0]]}`"
        hint = "layers that learn by local rules (`learn LAYER by RULE`) can be stages; an error that is sent back through layers keeps them together"
        return error(span(scan.loc), f"{message} ({share:.0%} of its work hangs together)", notes=notes, hint=hint)


def reads(op: Op) -> list[Value]:
    return [*op.operands, *(v for r in op.regions for v in free_values(r))]


def _circles(nodes: list, edges: dict[object, set], first) -> list[list]:
    """The strongly connected parts of a graph, sorted: an edge never points back, and among those that may come next `first` decides."""
    seen, post = set(), []
    for root in nodes:
        if root in seen:
            continue
        seen.add(root)
        stack = [(root, iter(edges[root]))]
        while stack:
            x, rest = stack[-1]
            y = next((y for y in rest if y not in seen), None)
            if y is None:
                post.append(x)
                stack.pop()
            else:
                seen.add(y)
                stack.append((y, iter(edges[y])))
    back: dict[object, list] = {x: [] for x in nodes}
    for x, ys in edges.items():
        for y in ys:
            back[y].append(x)
    home: dict[object, int] = {}
    circles: list[list] = []
    for root in reversed(post):
        if root in home:
            continue
        circle, todo = [], [root]
        home[root] = len(circles)
        while todo:
            x = todo.pop()
            circle.append(x)
            for y in back[x]:
                if y not in home:
                    home[y] = len(circles)
                    todo.append(y)
        circles.append(circle)
    waits = [0] * len(circles)
    after: list[set[int]] = [set() for _ in circles]
    for x, ys in edges.items():
        after[home[x]] |= {home[y] for y in ys} - {home[x]}
    for ys in after:
        for y in ys:
            waits[y] += 1
    ready = sorted((first(c), i) for i, c in enumerate(circles) if not waits[i])
    out = []
    while ready:
        _, i = ready.pop(0)
        out.append(circles[i])
        for y in after[i]:
            waits[y] -= 1
            if not waits[y]:
                ready.append((first(circles[y]), y))
        ready.sort()
    return out


def _balanced(weights: list[float], n: int) -> list[tuple[int, int]]:
    """n runs of the list, none empty, whose largest sum is smallest."""
    total = [0.0]
    for w in weights:
        total.append(total[-1] + w)
    k = len(weights)
    best = [total[:]]                                        # best[s][e]: of weights[:e] in s + 1 runs
    cuts = []
    for s in range(1, n):
        row, cut = [float("inf")] * (k + 1), [0] * (k + 1)
        for e in range(s + 1, k + 1):
            for a in range(s, e):
                most = max(best[-1][a], total[e] - total[a])
                if most < row[e]:
                    row[e], cut[e] = most, a
        best.append(row)
        cuts.append(cut)
    ends = [k]
    for cut in reversed(cuts):
        ends.append(cut[ends[-1]])
    ends = [0, *ends[::-1]]
    return list(zip(ends, ends[1:]))


# ---- a stage's function -----------------------------------------------------------------------------------------------

class _Stage:
    """The function of one stage. `inputs` and `outputs`: what its arguments and results are in the step function, first the slots that it
    updates; `handed`: those of the inputs that earlier stages hand over (old values of their slots among them)."""

    def __init__(self, module: Module, parts: _Parts, cut: dict, s: int):
        step, self.parts, self.env = parts.step, parts, {}
        needed = [_needed(parts, cut, k) for k in range(max(cut.values()) + 1)]
        home = {v: cut[parts.node(v)] for v in set().union(*needed) if parts.node(v) is not None}
        own = [a for a in parts.updated if cut[a] == s]
        others = [v for v in needed[s] if home.get(v) != s]
        self.handed = {v for v in others if v in home}
        self.inputs = own + others
        later = dict.fromkeys(v for n in needed[s + 1:] for v in n if home.get(v) == s)
        self.outputs = list(dict.fromkeys([*(parts.updated[a] for a in own), *_losses(parts, cut, s), *later]))
        block = self.block = Block([v.type for v in self.inputs], [v.name for v in self.inputs])
        self.env.update(zip(self.inputs, block.args))
        for op in step.body.ops[:-1]:
            if cut.get(op) == s:
                for v in reads(op):
                    self.value(v)
                block.append(clone_op(op, self.env))
        results = [self.value(v) for v in self.outputs]
        block.append(Op("func.return", results, {}, (), (), step.returns.loc))
        donate = [[i, self.outputs.index(parts.updated[a])] for i, a in enumerate(own)]
        self.func = Func(module.unique_name(f"{step.name}.stage{s + 1}"), [], [], [v.type for v in results],
                         {"donate": [d for i, d in enumerate(donate) if d[1] not in [e[1] for e in donate[:i]]]}, step.loc)
        self.func.body = block
        module.add(self.func)

    def value(self, v: Value) -> Value:
        """v in this function; what is free is computed here."""
        if v not in self.env:
            for u in reads(v.owner):
                self.value(u)
            self.block.append(clone_op(v.owner, self.env))
        return self.env[v]


def _needed(parts: _Parts, cut: dict, s: int) -> dict[Value, None]:
    """The step's arguments and the nodes' results that stage s reads or returns."""
    read = [v for op in parts.step.body.ops[:-1] if cut.get(op) == s for v in reads(op)]
    read += [parts.updated[a] for a in parts.updated if cut[a] == s] + _losses(parts, cut, s)
    return dict.fromkeys(u for v in read for u in parts.roots(v))


def _losses(parts: _Parts, cut: dict, s: int) -> list[Value]:
    """What the step returns beside its slots, in the stage that has it last."""
    return [v for v in parts.others if max((cut[x] for x in parts.sources(v)), default=0) == s]
