"""Host expressions: one expression (or writing statement) of a run block as a compiled function of the values it uses.

Whoever runs the block keeps the values.  Arrays, and parameters, states and caches of layers, are arguments of the function;
numbers, strings, functions and the layers themselves are compile-time values.  What the expression writes comes back as results.
"""
from __future__ import annotations

from collections.abc import Callable

from ..compiler.diagnostics import Span
from ..compiler.ir import TensorType, Value
from . import ast as A
from . import evaluate  # noqa: F401
from .api import Elaborated, Info, _run, _slots_of
from .arguments import captures
from .calls import make_func
from .elaborator import Elaborator
from .frame import KEY, Frame
from .program import Program
from .trees import flatten, leaf_names, statics
from .values import UNIT, Cell, FnValue, LayerInstance, RangeValue, Scope, Slot, Transform, Tree, walk_layers


class Closure:
    """A `fn (..) { .. }` of a run block with the host values that it uses."""

    __slots__ = ("node", "names")

    def __init__(self, node: A.Lambda, names: dict[str, object]):
        self.node, self.names = node, names


class TreeType:
    """The types of a layer's values (a gradient, a copy of the weights): to arguments what TensorType is to an array."""

    __slots__ = ("layer", "types")

    def __init__(self, layer: LayerInstance, types: dict[Slot, TensorType]):
        self.layer, self.types = layer, types


class HostElaborator(Elaborator):
    """`caches(slot)`: the type that earlier calls have given to a cache (or None), for expressions that only look at it."""

    def __init__(self, caches: Callable[[Slot], TensorType | None]):
        super().__init__()
        self.caches = caches

    def cell_type(self, cell: Cell, scope: Scope | None, span: Span) -> TensorType:
        if cell.type is None and scope is None and cell not in self.cell_types:
            t = self.caches(cell)
            if t is None:
                self.fail(span, f"cache `{cell.name}` is empty: its sizes are known after a call")
            self.cell_types[cell] = t
        return super().cell_type(cell, scope, span)


def elaborate_expression(program: Program, node: A.Node, names: dict[str, object], caches: Callable[[Slot], TensorType | None] = lambda slot: None,
                         name: str = "expression") -> Elaborated:
    """One function for `node`, in which `names` stand for what they map to: TensorTypes and TreeTypes are arguments of the function, in
    order (tuples and lists of them part by part), everything else is known when compiling.  The function's arguments are the cells
    that are used, then those, then a key where random numbers are drawn."""
    el = HostElaborator(caches)
    frame = Frame(name)
    layers = [(p, i) for n, v in names.items() for p, i in _layers(v, n)]
    frame.roots = layers
    infos: list[tuple[Info, Value]] = []
    scope = Scope(program.scope, {n: _value(frame, program, v, n, infos) for n, v in names.items()})

    def body() -> object:
        with el.in_frame(frame):
            out = el.run_block([node], scope) if isinstance(node, A.Stmt) else el.eval(node, scope)
            for v in statics(flatten(out)[0]):
                if isinstance(v, FnValue | Transform) and captures(v) or isinstance(v, RangeValue) and not v.is_static:
                    el.fail(node.span, "this holds on to values that are known only when it runs, so it cannot be bound in a run block",
                            hint="use it where it is made")
            return out

    value = _run(el, body)
    spec, results = flatten(value)
    slots = _slots_of(layers)
    known = {s for _, s in slots}
    for cell in [*frame.arg_cells, *frame.cells]:
        if cell not in known:
            el.fail(node.span, f"a layer is made and used at one go, so its `{cell.name}` has no place to live", hint="bind it first: `model = ..`")
    arguments = [(Info(s.kind, p, frame.arg_cells[s].type, s), frame.arg_cells[s]) for p, s in slots if s in frame.arg_cells]
    for info, v in arguments:
        v.name = info.name
    arguments += infos
    if frame.key_is_argument:
        arguments.append((Info("key", "key", KEY), frame.key))
    outs = [Info("result", n, v.type) for n, v in zip(leaf_names(spec, "out"), results)]
    written = [(p, s) for p, s in slots if s in frame.cells]
    places = {info.slot: k for k, (info, _) in enumerate(arguments) if info.slot is not None}
    donate = [[places[s], len(outs) + k] for k, (_, s) in enumerate(written) if s in places]
    outs += [Info(s.kind, p, frame.cells[s].type, s) for p, s in written]
    func = make_func(el, frame, name, [v for _, v in arguments], [*results, *[frame.cells[s] for _, s in written]], node.span,
                     {"result_names": [o.name for o in outs], "donate": donate})
    el.module.attrs["entries"].append(func.name)
    return Elaborated(el.module, func.name, [i for i, _ in arguments], outs, spec, el.diags.warnings)


def _layers(v: object, name: str) -> list[tuple[str, LayerInstance]]:
    """The layers that a host value reaches, by path; only the roots."""
    if isinstance(v, LayerInstance):
        return [(name, v)]
    if isinstance(v, tuple | list):
        return [found for i, x in enumerate(v) for found in _layers(x, f"{name}.{i}")]
    if isinstance(v, Closure):
        return [found for n, x in v.names.items() for found in _layers(x, n)]
    if isinstance(v, TreeType):
        return [(name, v.layer)]
    if isinstance(v, FnValue) and isinstance(v.owner, LayerInstance):
        return [(name, v.owner)]
    return []


def _value(frame: Frame, program: Program, v: object, name: str, infos: list[tuple[Info, Value]]) -> object:
    """What a name stands for inside the function."""
    if isinstance(v, TensorType):
        x = Value(v, frame.block, name)
        infos.append((Info("arg", name, v), x))
        return x
    if isinstance(v, tuple | list):
        return type(v)(_value(frame, program, x, f"{name}.{i}", infos) for i, x in enumerate(v))
    if isinstance(v, TreeType):
        return Tree(v.layer, {s: _value(frame, program, t, f"{name}.{s.name}", infos) for s, t in v.types.items()})
    if isinstance(v, Closure):
        inner = {n: _value(frame, program, x, f"{name}.{n}", infos) for n, x in v.names.items()}
        return FnValue(v.node, Scope(program.scope, inner))
    return v


__all__ = ["Closure", "TreeType", "elaborate_expression", "UNIT", "walk_layers"]
