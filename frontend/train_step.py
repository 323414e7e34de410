"""What a train block's statements do while its step is elaborated: minimize, measure, state; and where values live between steps.

`learn` is in train_learn.py, putting the functions together in train.py.  Two kinds of run share the statements: the training step,
and measuring, in which nothing learns and losses are only evaluated.
"""
from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass

from ..compiler.diagnostics import Span
from ..compiler.ir import Block, Loc, Op, TensorType, Value, f32, i64
from ..compiler.ir.builder import Builder
from ..compiler.ir.core import free_values
from . import ast as A
from .api import initial_value as slot_value
from .api import path_number
from .arguments import evaluate_args
from .builtins import TABLE
from .elaborator import STATEMENTS, Elaborator
from .expressions import attribute
from .frame import Frame
from .rule_statements import apply_optimizer, read_cell, scalar_loss
from .rules import Own, RuleUse, evaluate_rule, initial_value
from .train_settings import LoadedData
from .values import (
    MISSING,
    UNIT,
    CallArgs,
    Cell,
    LayerInstance,
    Namespace,
    Scope,
    Slot,
    describe,
    type_text,
    walk_layers,
)

TRAIN_STATEMENTS: MutableMapping[type, Callable] = ChainMap({}, STATEMENTS)


def train_statement(*nodes: type):
    """Registers the execution of a statement of train blocks."""
    def add(f):
        for n in nodes:
            TRAIN_STATEMENTS[n] = f
        return f
    return add


@dataclass
class Place:
    """A value that lives from step to step.  `kind`: "param", "state", "cache" or "own"; `init(key, path)` emits its first value,
    with a random key of its own folded from `key` and `path`."""

    path: str
    cell: Cell
    kind: str
    type: TensorType
    init: Callable[[Value, str], Value]
    span: Span | None = None


class Training:
    """One train block: its models and all that lives between steps, shared by its phases."""

    def __init__(self, el: TrainElaborator, name: str):
        self.el, self.name = el, name
        self.models: list[tuple[str, LayerInstance | list]] = []
        self.paths: dict[int, str] = {}                        # id of a layer instance -> its path
        self.places: dict[Cell, Place] = {}
        self.taken: set[str] = set()                           # paths of places and of what they belong to
        self.applied: dict[tuple, object] = {}                 # (layer, rule) -> its own cells, shared by phases
        self.views: dict[tuple[int, int], Namespace] = {}      # (layer, rule's declaration) -> what shows of the rule from outside
        self.states: dict[str, Cell] = {}                      # tensors that the block declares, by name
        self.layer_states: dict[str, LayerInstance] = {}       # copies of layers that the block declares
        self.made: dict[Cell, Value] = {}                      # first values, while `init` is elaborated
        self.keep: list[object] = []                           # whose ids are keys here

    def add_model(self, name: str, value: object) -> None:
        """A layer, or list of layers, bound by a setting."""
        new = list({id(i): (p, i) for p, i in reversed(list(walk_layers(value, name))) if id(i) not in self.paths}.values())[::-1]    # a shared layer goes by its first path
        if not new:
            return
        self.models.append((name, value))
        for path, inst in new:
            self.paths[id(inst)] = path
            self.keep.append(inst)
            for slot in inst.own.values():
                if slot.kind != "cache":
                    self.add_slot(path, slot)

    def add_slot(self, path: str, slot: Slot) -> Place:
        full = f"{path}.{slot.name}" if path else slot.name
        el = self.el
        t = slot.type or el.cell_types[slot]
        return self.add(Place(full, slot, slot.kind, t, lambda key, path: slot_value(el, slot, path, key, t), slot.span))

    def add(self, place: Place) -> Place:
        self.places[place.cell] = place
        self.taken.add(place.path)
        return place

    def add_own(self, prefix: str, own: Own) -> Cell:
        """A place for a rule's own state."""
        cell = Cell(own.path, own.type, "own", own.span)
        el = self.el
        self.add(Place(f"{prefix}.{own.path}", cell, "own", own.type,
                       lambda key, path: keyed_value(el, key, path, own.type, own.init, own.scope, own.span), own.span))
        return cell

    def prefix(self, owner: str, rule: str) -> str:
        """A path for one more application of a rule: `model.w.adam`, `model.w.adam2` ..."""
        base = path = f"{owner}.{rule}" if owner else rule
        k = 1
        while path in self.taken:
            k += 1
            path = f"{base}{k}"
        self.taken.add(path)
        return path

    def root_of(self, inst: LayerInstance) -> LayerInstance | None:
        """The model that a layer belongs to."""
        for _, value in self.models:
            for _, root in walk_layers(value, ""):
                if any(i is inst for _, i in root.walk()):
                    return root
        return None

    def models_as_roots(self) -> list[tuple[str, LayerInstance]]:
        """Where the models' layers are, for the paths of calls."""
        return [*((path, inst) for name, value in self.models for path, inst in _tops(value, name)), *self.layer_states.items()]

    def ordered(self) -> list[Place]:
        order = {"param": 0, "state": 1, "cache": 2, "own": 3}
        return sorted(self.places.values(), key=lambda p: order[p.kind])


def keyed_value(el: Elaborator, key: Value, path: str, t: TensorType, init: A.Expr | None, scope: Scope, span: Span) -> Value:
    """An initial value whose draws use a key of this path."""
    frame = el.frame
    b = el.b(span)
    if not (init is None or isinstance(init, A.Int | A.Float)):                # a number draws nothing
        frame.key = b.op("random.fold_in", [key, b.constant(path_number(path), TensorType(i64))]).result
        frame.sites = 0
    return initial_value(el, t, init, scope, span, f"`{path}`")


def _tops(value: object, path: str) -> Iterator[tuple[str, LayerInstance]]:
    if isinstance(value, LayerInstance):
        yield path, value
    elif isinstance(value, list | tuple):
        for i, v in enumerate(value):
            yield from _tops(v, f"{path}.{i}")


class TrainElaborator(Elaborator):
    """An elaborator that knows which rule and which step it is in."""

    def __init__(self, program_scope: Scope):
        super().__init__()
        self.statements = TRAIN_STATEMENTS
        self.program_scope = program_scope
        self.rule = None
        self.run: StepRun | None = None
        self.attribute_hook = namespace_cells


def namespace_cells(el: Elaborator, base: object, name: str, span: Span) -> object:
    """State behind a name, `model.c1.three_factor.m`, `conv.w` in a rule: its current value."""
    if isinstance(base, LoadedData):
        el.fail(span, "the whole data is not at hand while training", hint=f"`{name}` is the batch's part of it"
                if name in base.dataset.fields else f"its fields are: {', '.join(base.dataset.fields)}")
    if isinstance(base, Namespace):
        v = base.scope.names.get(name)
        if isinstance(v, Cell):
            return el.read(v, None, span)
    return MISSING


class StepRun:
    """One function being elaborated from the block's statements: a phase's step, or a measure (`training` false)."""

    def __init__(self, training: Training, frame: Frame, settings: dict, fields: dict[str, Value], step: Value | None):
        self.training, self.frame, self.settings, self.fields, self.step = training, frame, settings, fields, step
        self.losses: list[Cell] = []
        self.measures: list[tuple[str, Value]] = []
        self.readings: list[tuple[str, Value, Value]] = []     # (name, class numbers that are read, those that are right)
        self.readouts: list[tuple[str, Value]] = []            # the accuracies of the layers' own readouts
        self.versions: dict[Value, Cell] = {}                  # every value that a parameter has had in this step
        self.stash: dict[Cell, Value] = {}                     # signals of the model's implicit call
        self.counted: list[A.Minimize] = []                    # those whose loss is recorded
        self.reads_layers = False                              # when measuring: whether the layers' own readouts are wanted
        self.learns = 0                                        # learn and minimize statements seen

    @property
    def measuring(self) -> bool:
        return not self.frame.training

    def note_versions(self, el: Elaborator, seal: bool = False) -> None:
        """Remembers the parameters' values.  New ones (`seal`) become constants to differentiation: an update is not differentiated,
        so that each value of a parameter is a variable of its own."""
        frame = self.frame
        for place in self.training.places.values():
            if place.kind == "param":
                v = frame.value_of(place.cell)
                if v is not None and v not in self.versions:
                    if seal:
                        v = frame.b.op("tensor.stop_gradient", [v]).result
                        frame.write(place.cell, v)
                    self.versions[v] = place.cell

    def first(self, value: float, t: TensorType) -> Value:
        """A constant at the function's very beginning."""
        block = Block()
        v = Builder(block, self.frame.b.loc).constant(value, t)
        self.frame.block.ops[:0] = block.ops
        return v


# ---- what a loss depends on -------------------------------------------------------------------------------------------

def reached(run: StepRun, y: Value) -> dict[Cell, list[Value]]:
    """The parameters that a value depends on, each with those of its values that it saw, in order of the parameters."""
    found: dict[Cell, list[Value]] = {}
    seen: set[Value] = set()
    todo = [y]
    while todo:
        v = todo.pop()
        if v in seen:
            continue
        seen.add(v)
        cell = run.versions.get(v)
        if cell is not None:
            found.setdefault(cell, []).append(v)
            continue
        op = v.owner
        if isinstance(op, Op) and op.name != "tensor.stop_gradient":
            todo += op.operands
            for r in op.regions:
                todo += free_values(r)
    return {c: found[c] for c in run.training.places if c in found}


# ---- naming layers and parameters -------------------------------------------------------------------------------------

def resolve(el: Elaborator, node: A.Expr, scope: Scope) -> object:
    """A layer, a list of layers, or a parameter's place; parameters are not read."""
    if isinstance(node, A.Tuple | A.List):
        return [resolve(el, x, scope) for x in node.items]
    if isinstance(node, A.Name):
        v = scope.lookup(node.id)
        if isinstance(v, Cell):
            return v
        return el.value(node, scope)
    if isinstance(node, A.Attr):
        base = resolve(el, node.value, scope)
        if isinstance(base, LayerInstance) and node.name in base.own:
            return base.own[node.name]
        return attribute(el, base, node.name, node.name_span, scope)
    return el.value(node, scope)


def params_of(el: Elaborator, node: A.Expr, scope: Scope) -> list[Slot]:
    """The parameters that `wrt` names."""
    out: dict[Slot, None] = {}

    def add(v: object) -> None:
        if isinstance(v, Slot) and v.kind == "param":
            out[v] = None
        elif isinstance(v, LayerInstance):
            out.update(dict.fromkeys(s for _, s in v.params))
        elif isinstance(v, list | tuple):
            for x in v:
                add(x)
        else:
            el.fail(node.span, f"`wrt` takes a model, layers or parameters, got {describe(v)}")

    add(resolve(el, node, scope))
    if not out:
        el.fail(node.span, "this has no parameters")
    known = el.run.training.places
    for slot in out:
        if slot not in known:
            el.fail(node.span, f"`{slot.name}` belongs to no model of this train block")
    return list(out)


# ---- statements -------------------------------------------------------------------------------------------------------

def not_in_loops(el: TrainElaborator, s: A.Stmt, word: str) -> None:
    """One step is one update: what learns cannot stand in a loop."""
    if el.frame.key_steps:
        el.fail(s.span, f"`{word}` cannot stand in a loop", hint="a training step makes one update; `epochs` and the data repeat it")


@train_statement(A.Phase)
def phase(el: TrainElaborator, s: A.Phase, scope: Scope) -> object:
    el.fail(s.name_span, "a phase cannot stand in another one, or in a branch")


@train_statement(A.Minimize)
def minimize(el: TrainElaborator, s: A.Minimize, scope: Scope) -> object:
    run = el.run
    not_in_loops(el, s, "minimize")
    run.learns += 1
    if run.measuring and any(s is x for x in run.counted):                         # in a branch: evaluated before
        return UNIT
    run.counted.append(s)
    loss = scalar_loss(el, s.loss, scope)
    record_loss(el, loss, s.loss.span)
    if run.measuring:
        return UNIT
    run.note_versions(el)
    saw = reached(run, loss)
    chosen: list[tuple[RuleUse, list[Cell]]] = []
    taken: dict[Cell, Span] = {}
    for o in s.objectives:
        use = evaluate_rule(el, o.using, scope)
        cells = list(saw)
        if o.wrt is not None:
            wanted = params_of(el, o.wrt, scope)
            cells = [c for c in wanted if c in saw]
            if not cells:
                el.fail(o.wrt.span, "the loss depends on no parameter of this", marks=[(s.loss.span, "the loss")])
        for c in cells:
            if c in taken:
                el.fail((o.wrt or o.using).span, f"`{run.training.places[c].path}` would learn twice in this statement",
                        notes=[(taken[c], "first here")])
            taken[c] = (o.wrt or o.using).span
        chosen.append((use, cells))
    if not taken:
        hint = "it uses no parameter of a model, or only behind `stop_gradient`" if run.training.places else "bind a model first: `model = Mlp(..)`"
        el.fail(s.loss.span, "this depends on no parameter, so there is nothing to learn", hint=hint)
    grads = gradients(el, loss, {c: saw[c] for c in taken}, s.span)
    pairs = [(use, c, run.training.prefix(run.training.places[c].path, use.name)) for use, cells in chosen for c in cells]
    k = run.settings["accumulate"]
    if k == 1:
        update(el, pairs, grads, s.span)
    else:
        accumulate(el, pairs, grads, k, s.span)
    return UNIT


def record_loss(el: TrainElaborator, loss: Value, span: Span) -> None:
    run = el.run
    n = len(run.losses)
    cell = Cell("loss" if n == 0 else f"loss{n + 1}", TensorType(f32), "loss", span)
    run.losses.append(cell)
    if el.frame.depth:                                             # in a branch: zero where it is not taken
        el.frame.arg_cells[cell] = run.first(0.0, cell.type)
    el.frame.write(cell, el.b(span).cast(loss, f32))


def gradients(el: Elaborator, loss: Value, saw: dict[Cell, list[Value]], span: Span) -> dict[Cell, Value]:
    """The derivative of the loss by each parameter: by the value that the loss saw (the sum, where it saw several)."""
    b = el.b(span)
    values = [v for vs in saw.values() for v in vs]
    results = b.op("autodiff.gradient", [loss, b.constant(1, loss.type), *values], {"n_y": 1, "n_x": len(values)}).results
    it: Iterator[Value] = iter(results)
    out = {}
    for cell, vs in saw.items():
        parts = [next(it) for _ in vs]
        total = parts[0]
        for p in parts[1:]:
            total = b.add(total, p)
        out[cell] = total
    return out


def update(el: TrainElaborator, pairs: list[tuple[RuleUse, Cell, str]], grads: dict[Cell, Value], span: Span) -> None:
    """One step of the optimisers."""
    run = el.run
    if run.settings["clip_norm"] is not None:
        grads = clip(el, grads, run.settings["clip_norm"], span)
    for use, cell, prefix in pairs:
        optimize(el, use, cell, CallArgs.of([grads[cell]], use.span), prefix, span)


def optimize(el: TrainElaborator, use: RuleUse, cell: Cell, given: CallArgs, prefix: str, span: Span) -> None:
    """Applies an optimiser to a parameter; its own state lives below `prefix`."""
    run, frame = el.run, el.frame
    new = apply_optimizer(el, use, read_cell(frame, cell), given, lambda own: run.training.add_own(prefix, own), span)
    new = el.b(span).op("tensor.stop_gradient", [new]).result
    run.versions[new] = cell
    frame.write(cell, new)


def clip(el: Elaborator, grads: dict[Cell, Value], limit: float, span: Span) -> dict[Cell, Value]:
    """Scales all gradients so that their common norm is at most `limit`, as torch.nn.utils.clip_grad_norm_ does."""
    b = el.b(span)
    total = None
    for g in grads.values():
        x = b.cast(g, f32)
        part = b.sum(b.mul(x, x), range(x.type.rank)) if x.type.rank else b.mul(x, x)
        total = part if total is None else b.add(total, part)
    scale = b.min(b.div(b.constant(limit, total.type), b.add(b.sqrt(total), 1e-6)), 1.0)
    return {c: b.mul(g, b.broadcast(b.cast(scale, g.type.dtype), g.type.shape)) for c, g in grads.items()}


def accumulate(el: TrainElaborator, pairs, grads: dict[Cell, Value], k: int, span: Span) -> None:
    """Sums the means of k batches; the optimisers run after the last of them."""
    run, frame = el.run, el.frame
    b = el.b(span)
    sums: dict[Cell, Cell] = {}
    totals: dict[Cell, Value] = {}
    for _, cell, prefix in pairs:
        own = Own("sum", cell.type, None, el.program_scope, span)
        sums[cell] = run.training.add_own(prefix, own)
        old = read_cell(frame, sums[cell])
        totals[cell] = b.add(old, b.mul(grads[cell], 1 / k))
    last = b.compare("eq", b.ew("mod", run.step, k), k - 1)
    with frame.region() as r:
        update(el, pairs, totals, span)
        for c in sums.values():
            frame.write(c, frame.b.zeros(c.type))
    for c, v in sums.items():
        frame.write(v, totals[c])
    cells = list(r.changed)
    r.terminate([r.changed[c] for c in cells])
    other = Block()
    Builder(other, Loc(*span)).op("scf.yield", [read_cell(frame, c) for c in cells])
    op = el.b(span).op("scf.if", [last], {}, [r.block, other])
    for c, v in zip(cells, op.results):
        frame.write(c, v)
    run.note_versions(el, seal=True)


@train_statement(A.Measure)
def measure(el: TrainElaborator, s: A.Measure, scope: Scope) -> object:
    """Measures are evaluated when measuring only."""
    run = el.run
    if el.frame.depth:
        el.fail(s.span, "`measure` cannot stand in a branch or loop")
    if not run.measuring:
        return UNIT
    v = el.tensor(s.value, scope)
    b = el.b(s.span)
    read_classes(el, s, scope)
    if not v.type.dtype.is_float or v.type.dtype is not f32:
        v = b.cast(v, f32)
    if v.type.rank:
        n = v.type.numel
        v = b.div(b.sum(v, range(v.type.rank)), float(n))
    run.measures.append((measure_name(s, [n for n, _ in run.measures]), v))
    return UNIT


def read_classes(el: TrainElaborator, s: A.Measure, scope: Scope) -> None:
    """`measure accuracy(logits, y)`: which classes are read, for whoever wants to see where they are wrong."""
    call, run = s.value, el.run
    if not isinstance(call, A.Call) or not isinstance(call.func, A.Name) or scope.lookup(call.func.id) is not TABLE["accuracy"]:
        return
    pos = evaluate_args(el, call.args, scope).pos
    if len(pos) == 2 and all(isinstance(v, Value) for v in pos) and pos[0].type.rank == 2 and pos[1].type.rank == 1 and pos[1].type.dtype.is_int:
        run.readings.append((measure_name(s, [n for n, _ in run.measures]), *classes(el, *pos, s.span)))


def classes(el: Elaborator, logits: Value, label: Value, span: Span) -> tuple[Value, Value]:
    """The classes that logits [B, C] say, and those that are right, as i64[B]."""
    b = el.b(span)
    return b.op("tensor.argmax", [logits], {"dim": 1}).result, b.cast(label, i64)


def measure_name(s: A.Measure, taken: list[str]) -> str:
    """The name a measure is shown by: its own, or that of what it calls."""
    name = s.name
    if name is None:
        node = s.value
        while isinstance(node, A.Call | A.Pipe):
            node = node.func if isinstance(node, A.Call) else node.right
        name = node.id if isinstance(node, A.Name) else node.name if isinstance(node, A.Attr) else "measure"
    base, k = name, 1
    while name in taken:
        k += 1
        name = f"{base}{k}"
    return name


__all__ = ["Training", "TrainElaborator", "StepRun", "Place", "TRAIN_STATEMENTS", "train_statement", "resolve", "params_of", "reached",
           "optimize", "type_text"]
