"""`learn LAYER by RULE given ...`: from a layer's one call in the step to a learn.update.

Which signals are needed is found before the step is elaborated (`watch_learners`), so that the layers' functions return them.
Whether a rule is local is not judged here: the pass `plasticity` proves it.
"""
from __future__ import annotations

from dataclasses import dataclass

from ..compiler.diagnostics import CompileError, Span, did_you_mean
from ..compiler.ir import Block, Func, Op, TensorType, Value, f32, u64
from . import ast as A
from .arguments import captures, evaluate_args
from .elaborator import Elaborator, pattern_names
from .layers import INPUT, signal_names, watch
from .rule_statements import NoForward, bind_given, read_cell, split_given
from .rules import (
    RULE_FUNCTIONS,
    Operand,
    RuleFunction,
    RuleUse,
    Seen,
    evaluate_rule,
    outside_view,
    rule_function,
    seen_text,
)
from .train_step import StepRun, TrainElaborator, Training, classes, not_in_loops, optimize, resolve, train_statement
from .values import UNIT, CallArgs, Cell, LayerInstance, Poisoned, RuleValue, Scope, Slot, Tree, describe, walk_layers

# ---- which signals are wanted -----------------------------------------------------------------------------------------

def watch_learners(el: TrainElaborator, training: Training, items: list[A.Node], scope: Scope) -> None:
    """Asks the layers that learn in these statements for their signals; no other layer gives any."""
    for _, value in training.models:
        for _, inst in walk_layers(value, ""):
            inst.watched.clear()
    for s in (n for item in items for n in A.walk(item) if isinstance(n, A.Learn)):
        try:
            target = s.rule.func if isinstance(s.rule, A.Call) else s.rule
            rule = el.value(target, scope)
            found = resolve(el, s.target, scope)
        except (CompileError, Poisoned):
            continue                                               # reported where the statement is executed
        if isinstance(rule, RuleValue):
            for inst in instances(found):
                wanted = {"pre", *further_arguments(inst)} if has_local_loss(rule) else set()
                wanted |= {seen.path[0] for seen in rule.decl.sees if len(seen.path) == 1 and param_at(inst, seen.path) is None}
                hidden = [INPUT] if has_local_loss(rule) and _lets_pre(inst) else []
                watch(inst, [*[n for n in signal_names(inst) if n in wanted], *hidden])


def further_arguments(inst: LayerInstance) -> list[str]:
    """What the layer's fn takes beside its input."""
    return [p.name for p in inst.forward.decl.params[1:]] if inst.forward is not None else []


def _lets_pre(inst: LayerInstance) -> bool:
    """Whether the layer's fn has a `let pre`, so that the signal `pre` is not its input."""
    return inst.forward is not None and any(
        isinstance(s, A.Let) and "pre" in [p.name for p in pattern_names(s.pattern)] for s in inst.forward.decl.body.stmts)


def instances(found: object) -> list[LayerInstance]:
    """The layers that each get the rule: one, or those of a list."""
    if isinstance(found, LayerInstance):
        return [found]
    if isinstance(found, list | tuple):
        return [i for x in found for i in instances(x)]
    return []


def has_local_loss(rule: RuleValue) -> bool:
    return any(isinstance(n, A.Minimize) or isinstance(n, A.Call) and isinstance(n.func, A.Name) and n.func.id in RULE_FUNCTIONS
               for item in rule.decl.items for n in A.walk(item))


def param_at(inst: LayerInstance, path: tuple[str, ...]) -> Slot | None:
    """The layer's own parameter, `w`, or a sub-layer's, `conv.w`."""
    where: object = inst
    for name in path[:-1]:
        where = where.children.get(name) if isinstance(where, LayerInstance) else None
    slot = where.own.get(path[-1]) if isinstance(where, LayerInstance) else None
    return slot if slot is not None and slot.kind == "param" else None


# ---- the statement ----------------------------------------------------------------------------------------------------

@train_statement(A.Learn)
def learn(el: TrainElaborator, s: A.Learn, scope: Scope) -> object:
    run = el.run
    not_in_loops(el, s, "learn")
    run.learns += 1
    if run.measuring:
        if run.reads_layers:
            read_layers(el, s, scope)
        return UNIT
    use = evaluate_rule(el, s.rule, scope)
    found = resolve(el, s.target, scope)
    given = evaluate_args(el, s.given, scope)
    if is_optimizing(use, found, given):
        return learn_values(el, s, use, found, given)
    insts = instances(found)
    if not insts:
        el.fail(s.target.span, f"`learn` needs a layer or a list of layers, got {describe(found)}")
    for inst in insts:
        if id(inst) not in run.training.paths:
            el.fail(s.target.span, "this layer belongs to no model of the train block", hint="bind the model with `model = ..`")
        learn_layer(el, s, use, inst, given)
    return UNIT


def is_optimizing(use: RuleUse, found: object, given: CallArgs) -> bool:
    """Whether an optimiser is applied to parameters with gradients that the program worked out itself."""
    values = [*given.pos, *given.kw.values()]
    return isinstance(found, Slot) or isinstance(found, list) and any(isinstance(x, Slot) for x in found) \
        or any(isinstance(v, Tree) for v in values)


def learn_values(el: TrainElaborator, s: A.Learn, use: RuleUse, found: object, given: CallArgs) -> object:
    """`learn model by adam(1e-3) given g`, where g holds a gradient for every parameter."""
    targets = found if isinstance(found, list) else [found]
    training = el.run.training
    for target, g in zip(targets, split_given(el, given, len(targets))):
        slots = [target] if isinstance(target, Slot) else [x for _, x in target.params] if isinstance(target, LayerInstance) else None
        if slots is None or any(x not in training.places for x in slots):
            el.fail(s.target.span, f"`learn` needs a layer or a parameter of a model, got {describe(target)}")
        for slot in slots:
            def part(v: object, at: Span, slot: Slot = slot) -> object:
                if not isinstance(v, Tree):
                    return v
                if slot not in v.values:
                    el.fail(at, f"no value for `{training.places[slot].path}` is given")
                return v.values[slot]

            ca = CallArgs([part(v, at) for v, at in zip(g.pos, g.spans)], g.spans, {k: part(v, g.kw_spans[k]) for k, v in g.kw.items()}, g.kw_spans)
            optimize(el, use, slot, ca, training.prefix(training.places[slot].path, use.name), s.span)
    return UNIT


def learn_layer(el: TrainElaborator, s: A.Learn, use: RuleUse, inst: LayerInstance, given: CallArgs) -> None:
    """One layer's update."""
    run, frame, training = el.run, el.frame, el.run.training
    path = training.paths[id(inst)]
    signals(el, inst, s.span)
    sees = [see(el, use, inst, signal, s) for signal in use.rule.decl.sees]
    local = None
    if has_local_loss(use.rule):
        try:
            local = local_forward(el, inst, path, sees, s.span)
            sees += local.hidden
        except CompileError as e:                                  # no error unless the rule comes to need it
            local = NoForward(e)
    bound = bind_given(el, use, given, s.span)
    for signal, v, at in bound:
        if not_a_signal(v):
            el.fail(at, f"`{seen_text(signal)}`, given to rule `{use.name}`, is {describe(v)}", hint="what is broadcast to a rule are tensors and numbers")
    fn, leaves = rule_function(el, use, sees, bound, path, s.span, local)
    cells = own_cells(el, training, use, inst, path, fn)
    operands: list[Value] = []
    roles: list[str] = []
    rest = iter(leaves)
    for k, o in enumerate(fn.operands):
        if o.role in ("signal", "param", "capture"):
            place = sees[k].place
            operands.append(place if isinstance(place, Value) else read_cell(frame, place))
            name = training.places[place].path if o.role == "param" else sees[k].name
            roles.append(f"{o.role}:{name}")
        elif o.role == "own":
            operands.append(read_cell(frame, cells[o.ref]))
            roles.append(f"own:{training.places[cells[o.ref]].path}")
        elif o.role == "key":
            operands.append(el.key(s.span, draw=False))
            roles.append("key")
        else:
            operands.append(next(rest))
            roles.append(f"{o.role}:{o.ref}")
    attrs = {"rule": fn.name, "rule_name": use.name, "layer": path, "nonlocal": use.rule.decl.nonlocal_, "roles": roles, "writes": list(fn.writes)}
    if fn.forward is not None:
        attrs["forward"] = fn.forward
    b = el.b(s.span)
    results = b.op("learn.update", operands, attrs).results
    for k, r in zip(fn.writes, results):
        o = fn.operands[k]
        if o.role == "own":
            frame.write(cells[o.ref], r)
        else:
            r = b.op("tensor.stop_gradient", [r]).result
            run.versions[r] = sees[k].place
            frame.write(sees[k].place, r)


def not_a_signal(v: object) -> bool:
    """What cannot be broadcast to a rule: a layer, or a function that uses run-time values."""
    return isinstance(v, LayerInstance) or captures(v) and not isinstance(v, Value | Tree | tuple | list) \
        or isinstance(v, tuple | list) and any(map(not_a_signal, v))


def own_cells(el: TrainElaborator, training: Training, use: RuleUse, inst: LayerInstance, path: str, fn: RuleFunction) -> list[Cell]:
    """Where the rule's own state of this layer lives; phases that apply the same rule to the layer share it."""
    key = (id(inst), id(use.rule.decl), fn.name)
    if key not in training.applied:
        prefix = training.prefix(path, use.name)
        cells = [training.add_own(prefix, o) for o in fn.owns]
        training.applied[key] = cells
        inside = {fn.cells[name]: cell for name, cell in zip((f"own {o.path}" for o in fn.owns), cells) if name in fn.cells}
        inside |= {fn.cells[".".join(s.path)]: slot for s in use.rule.decl.sees if (slot := param_at(inst, s.path)) is not None
                   and ".".join(s.path) in fn.cells}
        inst.extras[prefix.rpartition(".")[2]] = training.views[id(inst), id(use.rule.decl)] = outside_view(fn, inside)
    return training.applied[key]


# ---- when measuring: what the layers themselves would say -------------------------------------------------------------

def watch_readouts(el: TrainElaborator, training: Training) -> None:
    """Asks the layers whose rules have a readout for their output."""
    for _, value in training.models:
        for _, inst in walk_layers(value, ""):
            if any(id(inst) == i and view.scope.names.get("readout") is not None for (i, _), view in training.views.items()):
                watch(inst, ["out"])


def read_layers(el: TrainElaborator, s: A.Learn, scope: Scope) -> None:
    """The accuracy of each layer's own readout, where its rule has one and is given class numbers."""
    run, training = el.run, el.run.training
    use = evaluate_rule(el, s.rule, scope)
    given = evaluate_args(el, s.given, scope)
    labels = [v for v in [*given.pos, *given.kw.values()] if isinstance(v, Value) and v.type.rank == 1 and v.type.dtype.is_int]
    for inst in instances(resolve(el, s.target, scope)):
        view = training.views.get((id(inst), id(use.rule.decl)))
        readout = view.scope.names.get("readout") if view is not None else None
        if readout is None or len(labels) != 1:
            continue
        signals(el, inst, s.span)
        cell = inst.watched["out"]
        out = run.stash.get(cell) or el.frame.cells.get(cell)
        logits = el.call(readout, CallArgs.of([out], s.span), s.span) if out is not None else None
        if not isinstance(logits, Value) or logits.type.rank != 2 or logits.type.shape[:1] != labels[0].type.shape:
            continue
        path = training.paths[id(inst)]
        name = path.removeprefix(f"{training.models[0][0]}.") if len(training.models) == 1 else path
        read, right = classes(el, logits, labels[0], s.span)
        b = el.b(s.span)
        hits = b.cast(b.compare("eq", read, right), f32)
        run.readings.append((name, read, right))
        run.readouts.append((f"{name}.accuracy", b.div(b.sum(hits, [0]), float(hits.type.numel))))


# ---- what the rule sees -----------------------------------------------------------------------------------------------

def see(el: TrainElaborator, use: RuleUse, inst: LayerInstance, signal: A.Signal, s: A.Learn) -> Seen:
    """The layer's parameter or signal of this name."""
    name = seen_text(signal)
    slot = param_at(inst, signal.path)
    if slot is not None:
        return Seen(name, slot.type, "param", slot)
    watched = inst.watched.get(name)
    if watched is None:
        has = list(dict.fromkeys([*signal_names(inst), *[p for p, _ in inst.params]]))
        near = did_you_mean(name, has)
        layer = el.run.training.paths[id(inst)]
        el.fail(s.target.span, f"rule `{use.name}` sees `{name}`, which layer `{layer}` ({inst.cls.name}) does not have",
                hint=(f"did you mean `{near}`? " if near else "") + f"it has: {', '.join(has)}; a top-level `let {name} = ..` in its `fn` would give it",
                notes=[(signal.span, "seen here"), (inst.cls.decl.name_span, f"layer {inst.cls.name} is declared here")])
    v = el.run.stash.get(watched) or el.frame.cells.get(watched)
    if v is None:
        el.fail(s.span, f"`{name}` of layer `{el.run.training.paths[id(inst)]}` has no value in this step", hint="it is bound in a branch that is not taken")
    return Seen(name, v.type, "signal", v)


def signals(el: TrainElaborator, inst: LayerInstance, span: Span) -> None:
    """Sees to it that the layer has been called in this step: by the program, or else by `model(x)`."""
    run, frame = el.run, el.frame
    if not inst.watched or any(c in run.stash or c in frame.cells for c in inst.watched.values()):
        return
    root = run.training.root_of(inst)
    if not run.fields:
        el.fail(span, "this layer is not called in this step, and there is no data to call the model with")
    x = run.fields.get("x", next(iter(run.fields.values())))
    el.call(root, CallArgs.of([x], span), span)
    for _, i in root.walk():
        for c in i.watched.values():
            v = frame.cells.pop(c, None)                           # a later call of the program's own is another matter
            if v is not None:
                run.stash[c] = v
    if not any(c in run.stash for c in inst.watched.values()):
        el.fail(span, f"calling `{run.training.paths[id(root)]}` does not call this layer", hint="call it before this statement: `let _ = model(..)`")


# ---- local losses -----------------------------------------------------------------------------------------------------

@dataclass
class LocalForward:
    """How the layer's forward function is called again, for the derivative of a local loss.  `args`: for each argument of the
    function the operand it is, (role, name); `results`: for each result the signal it is, or None."""

    key: tuple
    callee: str
    args: list[tuple[str, str]]
    results: list[str | None]
    hidden: list[Seen]

    @property
    def needs_key(self) -> bool:
        return ("key", "") in self.args

    def describe(self, operands: list[Operand]) -> dict:
        index = {(o.role, o.ref): i for i, o in enumerate(operands)}
        key = next((i for i, o in enumerate(operands) if o.role == "key"), None)
        return {"callee": self.callee, "args": [key if a == ("key", "") else index[a] for a in self.args],
                "results": [-1 if r is None else index.get(("signal", r), -1) for r in self.results]}


def local_forward(el: TrainElaborator, inst: LayerInstance, path: str, sees: list[Seen], span: Span) -> LocalForward:
    call = find_call(el, el.frame.block, path)
    if call is None:
        el.fail(span, f"a local loss cannot learn layer `{path}`: its call is no function of its own here",
                hint="it is in another branch, or the layer was given a closure over other layers")
    func: Func = el.module.funcs[call.attrs["callee"]]
    cells = inst.cells
    names = {id(s.place): s.name for s in sees if s.role == "param"}
    hidden: list[Seen] = []
    args: list[tuple[str, str]] = []
    for p, slot in cells:
        if slot.kind == "cache":
            el.fail(span, f"a local loss cannot learn a layer with a cache (`{p}`)")
        if slot.kind == "param":
            if id(slot) not in names:
                names[id(slot)] = p
                hidden.append(Seen(p, slot.type, "param", slot, hidden=True))
            args.append(("param", names[id(slot)]))
        else:
            hidden.append(Seen(p, slot.type, "capture", slot, hidden=True))
            args.append(("capture", p))
    rest = func.args[len(cells):]
    wants_key = bool(rest) and rest[-1].type == TensorType(u64) and rest[-1].name == "key"
    further = [a.name for a in rest[1:len(rest) - wants_key]]
    values = {n: el.run.stash.get(inst.watched[n]) or el.frame.cells.get(inst.watched[n]) for n in further if n in inst.watched}
    if any(values.get(n) is None for n in further) or not rest:
        el.fail(span, f"a local loss needs a layer that is called with tensors; `{path}` takes {', '.join(f'`{a.name}`' for a in rest) or 'nothing'}")
    name = INPUT if INPUT in inst.watched else "pre"
    pre = inst.watched[name]
    v = el.run.stash.get(pre) or el.frame.cells[pre]
    if v.type != rest[0].type:
        el.fail(span, f"a local loss cannot learn layer `{path}`, which is called in a loop: its input is {rest[0].type} there, {v.type} in all",
                hint="a rule for it writes its update out; or `learn` the layer that holds the loop")
    if not any(s.name == name and s.role == "signal" for s in sees):
        hidden.append(Seen(name, v.type, "signal", v, hidden=True))
    args.append(("signal", name))
    for n in further:
        if not any(s.name == n and s.role == "signal" for s in sees):
            hidden.append(Seen(n, values[n].type, "signal", values[n], hidden=True))
        args.append(("signal", n))
    if wants_key:
        args.append(("key", ""))
    signal_results = list(call.attrs.get("signals", ()))
    results: list[str | None] = [None] * len(func.result_types)
    results[0] = "out"
    for i, signal in enumerate(signal_results, len(results) - len(signal_results)):
        results[i] = signal if signal != name and signal not in further else None
    if "out" in signal_results:
        results[0] = None
    return LocalForward((func.name, tuple(args), tuple(results)), func.name, args, results, hidden)


def find_call(el: Elaborator, block: Block, path: str) -> Op | None:
    """The call of a layer instance below a block, by its path."""
    for op in block.walk():
        if op.name != "func.call":
            continue
        instance = op.attrs.get("instance")
        if instance == path:
            return op
        rest = path
        if instance:
            if not path.startswith(instance + "."):
                continue
            rest = path[len(instance) + 1:]
        found = find_call(el, el.module.funcs[op.attrs["callee"]].body, rest)
        if found is not None:
            return found
    return None


__all__ = ["watch_learners", "learn", "StepRun"]
