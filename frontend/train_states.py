"""`state` of a train block: tensors that live from step to step, and copies of layers (`state average: Net = model`).

A tensor's state is a measure's own, beginning anew; a layer's state is what training made of it, and a measure does not write it.
"""
from __future__ import annotations

from ..compiler.diagnostics import CompileError
from ..compiler.ir import Value
from . import ast as A
from .rules import declared_type, initial_value
from .signature import Signature
from .statements import assign
from .train_step import Place, TrainElaborator, keyed_value, train_statement
from .values import POISON, UNIT, Cell, FnValue, LayerClass, LayerInstance, Poisoned, Scope, Slot, Tree, describe


def declare_state(el: TrainElaborator, item: A.StateDecl, scope: Scope) -> None:
    """Binds a `state` of the block; an error is recorded and poisons the name."""
    try:
        sig = Signature(el, scope)
        if isinstance(item.type, A.TensorType) and isinstance(sig.element(item.type), LayerClass):
            layer_state(el, item, sig.element(item.type), scope)
        else:
            tensor_state(el, item, sig, scope)
        return
    except CompileError as e:
        el.diags.extend(e)
    except Poisoned:
        pass
    scope.bind(item.name, POISON, item.name_span)


def tensor_state(el: TrainElaborator, item: A.StateDecl, sig: Signature, scope: Scope) -> None:
    run, training = el.run, el.run.training
    t = declared_type(el, sig, item.type, scope)
    if run.measuring:
        cell = Cell(item.name, t, "state", item.name_span)
        run.frame.arg_cells[cell] = initial_value(el, t, item.init, scope, item.name_span, f"`{item.name}`")
    else:
        cell = training.states.get(item.name)
        if cell is None or cell.type != t:                         # phases share it where their batches are alike
            cell = training.states[item.name] = Cell(item.name, t, "state", item.name_span)
            training.add(Place(training.prefix("", item.name), cell, "state", t,
                               lambda key, path: keyed_value(el, key, path, t, item.init, scope, item.name_span), item.name_span))
    scope.bind(item.name, cell, item.name_span)


def layer_state(el: TrainElaborator, item: A.StateDecl, cls: LayerClass, scope: Scope) -> None:
    training = el.run.training
    made = training.layer_states.get(item.name)
    if made is None:
        source = el.value(item.init, scope) if item.init is not None else None
        if not isinstance(source, LayerInstance) or source.cls.decl is not cls.decl:
            el.fail((item.init or item).span, f"`{item.name}` is {describe(source)}, expected a layer {cls.name} to copy")
        made = training.layer_states[item.name] = copy_layer(source, {})
        made.label = item.name
        for (path, slot), (_, old) in zip(made.cells, source.cells):
            if slot.kind == "cache":
                continue
            if old not in training.places:
                el.fail(item.init.span, "only a model of this train block can be copied")
            training.add(Place(f"{item.name}.{path}", slot, "state", slot.type, lambda key, path, old=old: training.made[old], item.name_span))
        for path, inst in made.walk(item.name):
            training.paths.setdefault(id(inst), path)
        el.frame.roots.append((item.name, made))
    scope.bind(item.name, made, item.name_span)


def copy_layer(value: object, done: dict[int, object]) -> object:
    """A layer of the same structure with places of its own; sharing inside it is kept."""
    if isinstance(value, list | tuple):
        return type(value)(copy_layer(v, done) for v in value)
    if isinstance(value, FnValue) and isinstance(value.owner, LayerInstance):
        owner = copy_layer(value.owner, done)
        return FnValue(value.decl, owner.scope, value.name, owner, value.inline)
    if isinstance(value, Slot):
        return done.get(id(value), value)
    if not isinstance(value, LayerInstance):
        return value
    if id(value) in done:
        return done[id(value)]
    scope = Scope(value.scope.parent)
    new = done[id(value)] = LayerInstance(value.cls, value.args, scope, value.span)
    new.names, new.key, new.label = value.names, value.key, value.label
    for name, slot in value.own.items():
        new.own[name] = done[id(slot)] = Slot(slot.decl, slot.type, slot.kind, new, slot.weight)
    new.children = {n: copy_layer(c, done) for n, c in value.children.items()}
    new.args = {n: copy_layer(a, done) for n, a in value.args.items()}
    scope.names.update((n, copy_layer(v, done)) for n, v in value.scope.names.items())
    scope.spans = value.scope.spans
    new.methods = {n: copy_layer(m, done) for n, m in value.methods.items()}
    if value.forward is not None:
        new.forward = copy_layer(value.forward, done)
    return new


@train_statement(A.Assign)
def assign_state(el: TrainElaborator, s: A.Assign, scope: Scope) -> object:
    """`average = tree_map(..)`: a layer's state as a whole; the rest is as anywhere."""
    name = s.target.id if isinstance(s.target, A.Name) else None
    target = scope.lookup(name) if name else None
    if not isinstance(target, LayerInstance) or target is not el.run.training.layer_states.get(name):
        return assign(el, s, scope)
    if s.op != "=":
        el.fail(s.op_span, f"`{name}` is written as a whole: `{name} = tree_map(..)`")
    if el.run.measuring:
        return UNIT
    value = el.value(s.value, scope)
    new = layer_values(el, value)
    if new is None:
        el.fail(s.value.span, f"`{name}` is a layer {target.cls.name}, got {describe(value)}", hint="`tree_map(f, a, b)` maps over layers")
    for path, slot in target.params:
        if path not in new or new[path].type != slot.type:
            el.fail(s.value.span, f"this has no value for `{name}.{path}`: {slot.type}")
        el.frame.write(slot, new[path])
    return UNIT


def layer_values(el: TrainElaborator, value: object) -> dict[str, Value] | None:
    """The values of a layer or tree by path."""
    if isinstance(value, Tree):
        return {p: value.values[s] for p, s in value.layer.cells if s in value.values}
    if isinstance(value, LayerInstance):
        return {p: el.read(s, None, value.span) for p, s in value.params}
    return None
