"""Train blocks: from a block of the program to functions that a runner calls, and the names of everything they take and give.

`elaborate_train` gives a TrainPlan: `init` makes the first values, `step` (one per phase) takes them to the next, `measure` looks at
them.  What statements mean is in train_step.py and train_learn.py, settings are in train_settings.py, rules in rules.py.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..compiler.diagnostics import CompileError, Diagnostic, Span, did_you_mean, error
from ..compiler.ir import Loc, Module, TensorType, Value, i64, u64
from ..compiler.ir.collector import paused
from ..compiler.ir.types import dtype_of
from . import ast as A
from . import evaluate, rule_statements, train_learn  # noqa: F401  (expressions and statements)
from .calls import make_func
from .elaborator import deep_recursion
from .frame import Frame
from .program import Program
from .rules import initial_value
from .train_learn import watch_learners, watch_readouts
from .train_settings import (
    DatasetLoader,
    HostLoader,
    LoadedData,
    Overrides,
    check_unused,
    evaluate_settings,
    is_setting,
    settings_of,
    state_names,
    train_size,
    until_condition,
)
from .train_states import declare_state
from .train_step import Place, StepRun, TrainElaborator, Training
from .values import LayerInstance, Poisoned, Scope

KEY, INDEX = TensorType(u64), TensorType(i64)


@dataclass(frozen=True)
class Slot:
    """A value that lives from step to step.  `kind`: "param", "state", "cache" or "own" (a rule's)."""

    path: str
    type: TensorType
    kind: str


@dataclass
class Phase:
    """One stretch of training.  `entry` is its step function; `until` tells from an epoch's row of numbers whether to stop."""

    name: str
    settings: dict
    module: Module
    entry: str
    until: Callable[[dict], bool] | None = None
    pipeline_at: Span | None = None        # where the setting of that name stands


@dataclass
class TrainPlan:
    """All that a runner needs.  Functions: `init(key) -> slots`; a phase's step
    `(slots..., step, epoch, key, batch fields...) -> (slots..., losses...)`; `measure(n)`: a module and its entry
    `(slots..., key, fields of n samples...) -> (measures..., loss)`, every result one f32.  The sum of the losses comes last,
    where the block minimizes anything and no measure is called loss; a layer whose rule has a readout is measured by its name."""

    name: str
    settings: dict
    dataset: object
    slots: list[Slot]
    module: Module
    losses: list[str]
    measures: list[str]
    phases: list[Phase]
    model_paths: list[str]
    models: list[tuple[str, LayerInstance | list]]             # for what layers say about themselves, such as names in checkpoints
    warnings: list[Diagnostic] = field(default_factory=list)
    build_measure: Callable[..., Module] = field(default=None, repr=False)
    _measures: dict[tuple, Module] = field(default_factory=dict, repr=False)

    def measure(self, n: int) -> tuple[Module, str]:
        """The function that measures n samples at a time."""
        return self._measure(n, False), "measure"

    def readings(self, n: int) -> tuple[Module, str]:
        """The function that reads n samples: pairs of i64[n], the classes that a readout says and those that are right; the names of the
        results are the readouts'. A readout is what `measure accuracy(logits, y)` names, or a layer's own."""
        return self._measure(n, True), "measure"

    def _measure(self, n: int, readings: bool) -> Module:
        if (n, readings) not in self._measures:
            self._measures[n, readings] = self.build_measure(n, readings)
        return self._measures[n, readings]


@paused()
def elaborate_train(program: Program, name: str | None = None, overrides: dict | None = None,
                    load_dataset: Callable | None = None, loaders: dict[str, Callable] | None = None) -> TrainPlan:
    """The plan of a train block: the one called `name`, or the program's first.  `overrides` replace literal settings;
    `load_dataset(name, ...)` gives an object with `fields` (name -> array) and `n`; `loaders` make what else a block reads from files
    and hands to its data set (`bpe`)."""
    block = find_block(program, name)
    builder = _Builder(program, block, overrides or {}, load_dataset, loaders or {})
    try:
        with deep_recursion():
            return builder.plan()
    except Poisoned:                                           # what is wrong has been recorded
        builder.el.finish()
        raise


def find_block(program: Program, name: str | None) -> A.Train:
    blocks = {n: b for n, b in program.blocks.items() if isinstance(b, A.Train)}
    if not blocks:
        raise error(None, f"{program.file} has no train block")
    if name is None:
        return next(iter(blocks.values()))
    if name not in blocks:
        near = did_you_mean(name, blocks)
        raise error(None, f"{program.file} has no train block called `{name}`",
                    hint=f"did you mean `{near}`?" if near else f"it has: {', '.join(blocks)}")
    return blocks[name]


def location(span: Span | None) -> str:
    return str(span) if span is not None else ""


class _Builder:
    """One elaboration of a train block."""

    def __init__(self, program: Program, block: A.Train, overrides: dict, load: Callable | None, loaders: dict[str, Callable]):
        self.program, self.block, self.load, self.loaders = program, block, load, loaders
        self.el = TrainElaborator(program.scope)
        self.overrides = Overrides(overrides, block)
        self.training = Training(self.el, block.name)
        self.reads_layers = True                                   # whether measuring asks the layers' own readouts too
        self.frames: list[tuple[A.Phase | None, dict, StepRun, dict[str, Value]]] = []

    # ---- the whole ----
    def plan(self) -> TrainPlan:
        el, block = self.el, self.block
        self.state_names = state_names(block.items)
        self.scope = Scope(self.program.scope)
        self.scope.bind("dataset", DatasetLoader(self.load))
        for name, loader in self.loaders.items():
            self.scope.bind(name, HostLoader(loader))
        places = evaluate_settings(el, block.items, self.scope, self.overrides, self.state_names)
        self.phase_nodes = [i for i in block.items if isinstance(i, A.Phase)]
        self.phase_scopes = []
        self.phase_states = []
        for p in self.phase_nodes:
            if any(q.name == p.name for q in self.phase_nodes[:len(self.phase_scopes)]):
                el.fail(p.name_span, f"there are two phases called `{p.name}`")
            scope = Scope(self.scope)
            states = self.state_names | state_names(p.items)
            places |= evaluate_settings(el, p.items, scope, self.overrides, states)
            self.phase_scopes.append(scope)
            self.phase_states.append(states)
        el.finish()
        self.overrides.check([*places, *self.scope.names.keys() - {"dataset", *self.loaders}])
        check_unused(el, block, places, self.scope)
        self.data = self.find_data()
        for scope in [self.scope, *self.phase_scopes]:
            for name, v in scope.names.items():
                self.add_models(name, v)
        if not any(isinstance(n, A.Minimize | A.Learn) for i in block.items for n in A.walk(i)):
            el.fail(block.name_span, f"train block `{block.name}` learns nothing",
                    hint="`minimize LOSS using adam(1e-3)` or `learn LAYER by RULE` says how")
        settings = self.settings(self.scope)
        for k in range(max(1, len(self.phase_nodes))):
            self.step(k)
        el.finish()
        return self.assemble(settings)

    def find_data(self) -> object:
        for scope in [self.scope, *self.phase_scopes]:
            for v in scope.names.values():
                if isinstance(v, LoadedData):
                    self.data_span = v.span
                    return v.dataset
        self.el.fail(self.block.name_span, f"train block `{self.block.name}` has no data", hint='add a line `data = dataset("digits")`')

    def add_models(self, name: str, v: object) -> None:
        if isinstance(v, LayerInstance) or isinstance(v, list) and v and all(isinstance(x, LayerInstance) for x in v):
            self.training.add_model(name, v)

    def settings(self, scope: Scope) -> dict:
        """A scope's settings, with what follows from them and the data."""
        s = settings_of(self.el, scope, self.overrides, self.block)
        if s["holdout"] is None:
            s["holdout"] = getattr(self.data, "test", None)        # the data's own test part
        n = train_size(self.data.n, s, scope.span_of("holdout") or self.block.name_span)
        s["batch"] = min(s["batch"], n)
        s["steps_per_epoch"] = max(1, n // s["batch"] // s["accumulate"])
        s["steps"] = s["steps_per_epoch"] * s["epochs"]
        return s

    # ---- the block's statements ----
    def statements(self, phase: A.Phase | None) -> list[A.Node]:
        """What runs at every step of a phase, in order."""
        out = []
        for item in self.block.items:
            if isinstance(item, A.Phase):
                if item is phase:
                    states = self.state_names | state_names(item.items)
                    out += [i for i in item.items if not is_setting(i, states) and not isinstance(i, A.Until)]
            elif not is_setting(item, self.state_names) and not isinstance(item, A.Until):
                out.append(item)
        return out

    def body_scope(self, settings: dict, outer: Scope, fields: dict[str, Value], step: object, epoch: object) -> Scope:
        scope = Scope(outer, {**fields, "step": step, "epoch": epoch})
        for name in ("steps", "steps_per_epoch", "batch", "epochs"):
            scope.names[name] = settings[name]
        return scope

    def fields(self, frame: Frame, n: int) -> dict[str, Value]:
        """One batch of the data, as arguments."""
        return {name: Value(TensorType(dtype_of(a.dtype), (n, *a.shape[1:])), frame.block, name) for name, a in self.data.fields.items()}

    def execute(self, run: StepRun, items: list[A.Node], scope: Scope) -> None:
        el = self.el
        el.run = run
        with el.in_frame(run.frame):
            inner = Scope(scope)
            for item in items:
                if isinstance(item, A.StateDecl):
                    declare_state(el, item, inner)
                    continue
                if run.measuring:
                    self.losses_in_branches(run, item, inner)
                inner, _ = el.step(item, inner)
                if not run.measuring:
                    run.note_versions(el, seal=True)

    def losses_in_branches(self, run: StepRun, item: A.Node, scope: Scope) -> None:
        """When measuring, losses minimized in some steps only, `if step % 2 == 0 { minimize .. }`, are evaluated all the same."""
        if not isinstance(item, A.ExprStmt) or not isinstance(item.value, A.If) or not any(isinstance(n, A.Minimize) for n in A.walk(item)):
            return
        branch = item.value
        while branch is not None:
            block = branch.then if isinstance(branch, A.If) else branch
            before = dict(run.frame.cells)
            try:
                self.el.run_block(block.stmts, Scope(scope))
            except Poisoned:
                pass
            run.frame.cells = before | {c: run.frame.cells[c] for c in run.losses if c in run.frame.cells}
            branch = branch.orelse if isinstance(branch, A.If) else None

    # ---- steps ----
    def step(self, k: int) -> None:
        """Elaborates the statements of phase k."""
        el, training = self.el, self.training
        phase = self.phase_nodes[k] if self.phase_nodes else None
        outer = self.phase_scopes[k] if self.phase_nodes else self.scope
        settings = self.settings(outer)
        frame = Frame("step", training=True, roots=training.models_as_roots())
        for place in training.places.values():
            frame.take_argument(place.cell, place.type, place.path)
        fields = self.fields(frame, settings["batch"])
        arguments = {n: Value(t, frame.block, n) for n, t in (("step", INDEX), ("epoch", INDEX), ("key", KEY))}
        b = el_builder(frame, self.block.name_span)
        frame.key = b.op("random.fold_in", [arguments["key"], arguments["step"]]).result
        run = StepRun(training, frame, settings, fields, arguments["step"])
        step = arguments["step"] if settings["accumulate"] == 1 else b.ew("floordiv", arguments["step"], settings["accumulate"])
        scope = self.body_scope(settings, outer, fields, step, arguments["epoch"])
        items = self.statements(phase)
        run.note_versions(el)
        watch_learners(el, training, items, scope)
        self.execute(run, items, scope)
        if not run.learns and not el.diags.errors:
            el.fail(phase.name_span if phase else self.block.name_span, f"{'phase' if phase else 'train block'} learns nothing",
                    hint="`minimize LOSS using adam(1e-3)` or `learn LAYER by RULE` says how")
        for cell in el.cell_types:                      # caches that the step's calls use
            if cell not in training.places and id(cell.owner) in training.paths and (cell in frame.cells or cell in frame.arg_cells):
                training.add_slot(training.paths[id(cell.owner)], cell)
        self.frames.append((phase, settings, run, {**arguments, **fields}))

    def assemble(self, settings: dict) -> TrainPlan:
        """Finishes all functions, now that everything that lives between steps is known."""
        el, training = self.el, self.training
        places = training.ordered()
        self.init(places)
        phases = []
        losses: list[str] = []
        until = next((i for i in self.block.items if isinstance(i, A.Until)), None)
        for k, (phase, s, run, arguments) in enumerate(self.frames):
            entry = "step" if k == 0 else f"step.{phase.name}"
            self.finish_step(entry, run, arguments, places)
            losses += [c.name for c in run.losses if c.name not in losses]
            scope = self.phase_scopes[k] if phase else self.scope
            phases.append(Phase(phase.name if phase else "main", s, el.module, entry, pipeline_at=scope.span_of("pipeline") or self.block.name_span))
        slots = [Slot(p.path, p.type, p.kind) for p in places]
        el.module.attrs["entries"] = ["init", *[p.entry for p in phases]]
        plan = TrainPlan(self.block.name, settings, self.data, slots, el.module, losses, [], phases,
                         [n for n, _ in training.models], list(training.models), el.diags.warnings, self.build_measure)
        self.measured: list[str] | None = None
        plan.measure(settings["batch"])                            # errors in measures show now
        plan.measures = self.measured
        for p, (phase, *_), in zip(phases, self.frames):
            node = next((i for i in phase.items if isinstance(i, A.Until)), until) if phase else until
            if node is not None:
                p.until = until_condition(el, node.cond, plan.measures, self.phase_scopes[phases.index(p)] if phase else self.scope)
        return plan

    def init(self, places: list[Place]) -> None:
        """`init(key)`: every place's first value, each from a key of its own."""
        el = self.el
        frame = Frame("init", training=True)
        key = Value(KEY, frame.block, "key")
        single = f"{self.training.models[0][0]}." if len(self.training.models) == 1 else ""
        values = []
        with el.in_frame(frame):
            for p in places:
                try:
                    values.append(p.init(key, p.path.removeprefix(single)))
                    self.training.made[p.cell] = frame.cells[p.cell] = values[-1]      # later ones may begin with it
                    if frame.arg_cells:
                        missing = next(iter(frame.arg_cells))
                        frame.arg_cells.clear()
                        el.fail(p.span, f"`{p.path}` begins with `{missing.name}`, which has no value yet",
                                hint="states begin in the order in which they are declared")
                except CompileError as e:
                    el.diags.extend(e)
                except Poisoned:                               # recorded already
                    pass
        el.finish()
        make_func(el, frame, "init", [key], values, self.block.name_span, {"result_names": [p.path for p in places]})

    def finish_step(self, entry: str, run: StepRun, arguments: dict[str, Value], places: list[Place]) -> None:
        el, frame = self.el, run.frame
        args, results = [], []
        for p in places:
            v = frame.arg_cells.get(p.cell)
            if v is None:
                v = frame.take_argument(p.cell, p.type, p.path)
            v.name = p.path
            args.append(v)
            results.append(frame.cells.get(p.cell, v))
        names = [p.path for p in places]
        roles = [f"{'state' if p.kind == 'cache' else p.kind}:{p.path}" for p in places]
        roles += [n if n in ("step", "epoch", "key") else f"data:{n}" for n in arguments]
        attrs = {
            "arg_names": [*names, *arguments], "result_names": [*names, *[c.name for c in run.losses]],
            "arg_roles": roles, "arg_locs": [*[location(p.span) for p in places], *[""] * len(arguments)],
            "donate": [[i, i] for i in range(len(places))],
        }
        make_func(el, frame, entry, [*args, *arguments.values()], [*results, *[frame.cells[c] for c in run.losses]],
                  self.block.name_span, attrs)

    # ---- measuring ----
    def build_measure(self, n: int, readings: bool = False) -> Module:
        """A module whose function `measure` looks at n samples; with `readings`, one whose function tells for every readout the classes
        that it reads in them, and for each those that are right."""
        if self.reads_layers:
            try:
                return self.measuring(n, readings)
            except (CompileError, Poisoned):                   # the layers are called in a way of which a readout makes nothing
                self.reads_layers = False
        return self.measuring(n, readings)

    def measuring(self, n: int, readings: bool) -> Module:
        training = self.training
        outer_el = self.el
        el = self.el = TrainElaborator(self.program.scope)
        try:
            frame = Frame("measure", training=False, roots=training.models_as_roots())
            places = training.ordered()
            phase = next((p for kinds in (A.Minimize | A.Measure, A.Learn) for p in reversed(self.phase_nodes)
                          if any(isinstance(x, kinds) for x in A.walk(p))), None)
            outer = self.phase_scopes[self.phase_nodes.index(phase)] if phase else self.scope
            for p in places:
                frame.take_argument(p.cell, p.type, p.path)
            settings = {**self.settings(outer), "batch": n}
            fields = self.fields(frame, n)
            key = Value(KEY, frame.block, "key")
            frame.key = key
            run = StepRun(training, frame, settings, fields, None)
            watch_learners(el, training, [], outer)
            run.reads_layers = self.reads_layers
            if run.reads_layers:
                watch_readouts(el, training)
            for c in [c for c in frame.arg_cells if c.kind in ("cache",)]:
                del frame.arg_cells[c]
            self.execute(run, self.statements(phase), self.body_scope(settings, outer, fields, 0, 0))
            el.finish()
            b = el_builder(frame, self.block.name_span)
            values = run.measures = [*run.measures, *run.readouts]
            if readings:
                values = [(f"{name}{end}", v) for name, *both in run.readings for end, v in zip(("", " right"), both)]
            elif run.losses and not any(name == "loss" for name, _ in values):
                total = None
                for c in run.losses:
                    v = frame.cells[c]
                    total = v if total is None else b.add(total, v)
                values = [*values, ("loss", total)]
            if self.measured is None and not readings:
                self.measured = [name for name, _ in run.measures]
            self.fresh_caches(frame)
            args = [frame.arg_cells.get(p.cell) if p.kind != "cache" else None for p in places]
            args = [v if v is not None else Value(p.type, frame.block, p.path) for v, p in zip(args, places)]
            make_func(el, frame, "measure", [*args, key, *fields.values()], [v for _, v in values], self.block.name_span,
                      {"arg_names": [*[p.path for p in places], "key", *fields], "result_names": [name for name, _ in values]})
            el.module.attrs["entries"] = ["measure"]
            return el.module
        finally:
            self.el = outer_el

    def fresh_caches(self, frame: Frame) -> None:
        """A measure's caches begin empty: their sizes go with its own batch."""
        el = self.el
        head = Frame("head", training=False)
        for cell, v in list(frame.arg_cells.items()):
            if cell.kind == "cache":
                with el.in_frame(head):
                    first = initial_value(el, v.type, cell.decl.init, cell.owner.scope, cell.span, f"`{cell.name}`")
                for op in frame.block.walk():
                    op.operands = [first if x is v else x for x in op.operands]
        frame.block.ops[:0] = head.block.ops


def el_builder(frame: Frame, span: Span):
    frame.b.loc = Loc(*span)
    return frame.b


__all__ = ["elaborate_train", "TrainPlan", "Phase", "Slot"]
