"""Layers: making instances of them, and what belongs to their cells (types of caches, signals that rules watch)."""
from __future__ import annotations

from ..compiler.diagnostics import CompileError, Span
from ..compiler.ir import Dim, TensorType, Value
from . import ast as A
from .arguments import bind_params
from .calls import check_size
from .elaborator import Elaborator, pattern_names
from .signature import Signature, Unknown, source_text
from .values import (
    MISSING,
    POISON,
    Builtin,
    CallArgs,
    Cell,
    FnValue,
    LayerClass,
    LayerInstance,
    Opaque,
    Poisoned,
    QuantType,
    RangeValue,
    Scope,
    Signal,
    Slot,
    Transform,
    Tree,
    Undecidable,
    describe,
)


def instantiate(el: Elaborator, cls: LayerClass, ca: CallArgs, span: Span) -> LayerInstance:
    """`Linear(784, 10)`: evaluates the layer's items with these arguments."""
    decl = cls.decl
    ident = ("layer", id(decl))
    for k, (other, _, _) in enumerate(el.active):
        if other == ident:
            cycle = [n for i, n, _ in el.active[k:] if i[0] == "layer"] + [cls.name]
            el.fail(span, f"layer `{cls.name}` contains itself: {' -> '.join(cycle)}",
                    notes=[(decl.name_span, "declared here")])
    scope = Scope(cls.scope)
    with el.in_frame(None):
        bound = bind_params(el, f"layer `{cls.name}`", decl.params, ca, span, decl.name_span)
        for p, v, at in bound:
            if v is MISSING:
                v = el.value(p.default, scope)
            if isinstance(v, Value | Cell | Tree):
                el.fail(at, f"argument `{p.name}` of layer `{cls.name}` is known only when the program runs",
                        hint="layers are made when compiling: their arguments are numbers, strings, types, functions, layers")
            scope.bind(p.name, v, p.span)
        inst = LayerInstance(cls, {p.name: scope.names[p.name] for p in decl.params}, scope, span)
        for name, v in inst.args.items():
            if has_layers(v):
                inst.children[name] = v
        el.active.append((ident, cls.name, span))
        before = len(el.diags.items)
        try:
            for item in decl.items:
                add_item(el, inst, item, scope)
        finally:
            el.active.pop()
            for d in el.diags.items[before:]:                  # in another file (the library), on account of the arguments
                if d.span is not None and d.span.file != span.file and not any(text.endswith("is made here") for _, text in d.notes):
                    d.notes.append((span, f"layer `{cls.name}` is made here"))
    seen: dict[int, int] = {}
    inst.key = (id(decl), tuple(static_key(v, seen) for v in inst.args.values()))
    return inst


def static_key(v: object, seen: dict[int, int]) -> object:
    """A hashable stand-in for a layer's argument; layers count by structure and by which of them are the same one."""
    if isinstance(v, LayerInstance):
        return ("layer", v.key, seen.setdefault(id(v), len(seen)))
    if isinstance(v, tuple | list):
        return (type(v).__name__, *[static_key(x, seen) for x in v])
    if isinstance(v, RangeValue):
        return ("range", v.start, v.stop)
    if isinstance(v, FnValue) and v.owner is not None:
        return ("method", v.name, static_key(v.owner, seen))
    return (type(v).__name__, v)


def has_layers(v: object) -> bool:
    return isinstance(v, LayerInstance) or isinstance(v, list | tuple) and any(has_layers(x) for x in v)


def add_item(el: Elaborator, inst: LayerInstance, item: A.Node, scope: Scope) -> None:
    """One item of a layer's declaration; an error is recorded and the item's name poisoned."""
    try:
        _ITEMS[type(item)](el, inst, item, scope)
        return
    except CompileError as e:
        el.diags.extend(e)
    except Poisoned:
        pass
    if isinstance(item, A.Let):
        for p in pattern_names(item.pattern):
            scope.bind(p.name, POISON, p.span)
    elif isinstance(item, A.ParamDecl | A.SubLayer | A.StateDecl):
        scope.bind(item.name, POISON, item.name_span)
    elif isinstance(item, A.Assert):
        raise Poisoned


def _declare(el: Elaborator, inst: LayerInstance, name: str, span: Span, value: object, scope: Scope) -> None:
    if name in scope.names and name not in inst.args:
        el.fail(span, f"`{name}` is declared twice in layer {inst.cls.name}",
                notes=[(scope.spans[name], "first here")] if name in scope.spans else [])
    scope.bind(name, value, span)


def _param(el: Elaborator, inst: LayerInstance, item: A.ParamDecl, scope: Scope) -> None:
    t, weight = cell_type(el, item.type, scope, item.span)
    if t is None:
        raise AssertionError("a parameter's size is always known")
    check_size(el, t, inst.span if item.span.file.startswith("std/") else item.type.span)
    slot = Slot(item, t, "param", inst, weight)
    _declare(el, inst, item.name, item.name_span, slot, scope)
    inst.own[item.name] = slot


def _state(el: Elaborator, inst: LayerInstance, item: A.StateDecl, scope: Scope) -> None:
    t, _ = cell_type(el, item.type, scope, item.span, open_dims=item.kind == "cache")
    slot = Slot(item, t, item.kind, inst)
    _declare(el, inst, item.name, item.name_span, slot, scope)
    inst.own[item.name] = slot


def cell_type(el: Elaborator, t: A.Type, scope: Scope, span: Span, open_dims: bool = False) -> tuple[TensorType | None, QuantType | None]:
    """The type of a declared param, state or cache, and the quantised type it is read through.  None where a dim is only known
    at a call (`open_dims` allows that)."""
    if not isinstance(t, A.TensorType):
        el.fail(t.span, "a tensor type is expected here", hint="for example `f32[i, o]`")
    sig = Signature(el, scope)
    e = sig.element(t)
    if isinstance(e, str) and e != "key":
        el.fail(t.span, f"`{e}` is no definite type: name one, such as f32 or i64")
    if isinstance(e, LayerClass):
        el.fail(t.span, f"`{t.name}` is a layer: bind it without `param` (`name = {t.name}(..)`)")
    dtype = sig.dtype(t, None)
    try:
        return TensorType(dtype, sig.shape(t.dims or [])), e if isinstance(e, QuantType) else None
    except Unknown as u:
        if open_dims:
            return None, None
        from .program import not_found
        if u.name.startswith(".."):
            el.fail(t.span, "`..` cannot stand here: the size of a layer's own tensors has to be known")
        where = next((n.span for n in A.walk(t) if isinstance(n, A.Name) and n.id == u.name), t.span)
        known = scope.lookup(u.name)
        if known is not MISSING:
            el.fail(where, f"`{u.name}` is {describe(known)}, so it cannot be a size", hint="a size is a whole number known when compiling")
        raise not_found(u.name, where, scope, "size") from None


def cache_type(el: Elaborator, slot: Slot, scope: Scope, span: Span) -> TensorType:
    """The type of a cache whose dims a call fixes: names that the layer does not know are dims of the method that uses it."""
    t = slot.decl.type
    layer = slot.owner.scope
    sig = Signature(el, layer)
    while scope.parent is not None and scope.parent is not layer:
        scope = scope.parent
    if scope.parent is layer:
        for n in A.walk(t):
            if isinstance(n, A.Name) and layer.lookup(n.id) is MISSING and isinstance(scope.names.get(n.id), int | Dim):
                sig.dims[n.id] = scope.names[n.id]
    try:
        return TensorType(sig.dtype(t, None), sig.shape(t.dims or []))
    except Unknown as u:
        el.fail(span, f"the size `{u.name}` of cache `{slot.name}` is not known here",
                hint=f"use it in a method whose parameters have a dimension `{u.name}`", notes=[(slot.span, "declared here")])


def _sublayer(el: Elaborator, inst: LayerInstance, item: A.SubLayer, scope: Scope) -> None:
    v = el.value(item.value, scope)
    if not _is_layer(v):
        if isinstance(v, LayerClass):
            el.fail(item.value.span, f"{describe(v)}", hint=f"write `{item.name} = {v.name}({', '.join(p.name for p in v.decl.params)})`")
        el.fail(item.value.span, f"`{item.name}` is {describe(v)}, expected a layer or a list of layers",
                hint=f"`let {item.name} = ..` binds a constant of the layer")
    _declare(el, inst, item.name, item.name_span, v, scope)
    inst.children[item.name] = v
    if isinstance(v, LayerInstance) and v.label is None:
        v.label, v.span = item.name, item.span
    elif isinstance(v, list):
        for i, x in enumerate(v):
            if isinstance(x, LayerInstance) and x.label is None:
                x.label, x.span = f"{item.name}[{i}]", item.span


def _is_layer(v: object) -> bool:
    return isinstance(v, LayerInstance | FnValue | Builtin | Transform) or isinstance(v, list) and all(_is_layer(x) for x in v)


def _let(el: Elaborator, inst: LayerInstance, item: A.Let, scope: Scope) -> None:
    from .statements import let
    let(el, item, scope)
    for p in pattern_names(item.pattern):
        v = scope.names.get(p.name)
        if has_layers(v):
            inst.children[p.name] = v


def _assert(el: Elaborator, inst: LayerInstance, item: A.Assert, scope: Scope) -> None:
    v = el.value(item.cond, scope)
    if v is False:
        args = ", ".join(f"{n} = {source_of(v)}" for n, v in inst.args.items() if isinstance(v, int | float | str))
        el.fail(inst.span, f"{item.message or 'an assertion does not hold'} (layer {inst.cls.name}{': ' + args if args else ''})",
                notes=[(item.cond.span, "required here")])
    if v is not True and not isinstance(v, Opaque):
        el.fail(item.cond.span, f"`assert` needs a condition, got {describe(v)}")


def source_of(v: object) -> str:
    return f'"{v}"' if isinstance(v, str) else "true" if v is True else "false" if v is False else str(v)


def _method(el: Elaborator, inst: LayerInstance, item: A.FnDef, scope: Scope) -> None:
    fn = FnValue(item, scope, item.name, inst)
    if item.name is None:
        if inst.forward is not None:
            el.fail(item.name_span, f"layer {inst.cls.name} has two unnamed `fn`s", hint="give one of them a name",
                    notes=[(inst.forward.decl.name_span, "first here")])
        inst.forward = fn
        return
    _declare(el, inst, item.name, item.name_span, fn, scope)
    inst.methods[item.name] = fn


def _names(el: Elaborator, inst: LayerInstance, item: A.Names, scope: Scope) -> None:
    inst.names.extend(item.keys)


def _if(el: Elaborator, inst: LayerInstance, item: A.LayerIf, scope: Scope) -> None:
    c = el.value(item.cond, scope)
    if isinstance(c, Opaque):
        raise Undecidable
    if not isinstance(c, bool):
        el.fail(item.cond.span, f"`if` needs a condition known when compiling here, got {describe(c)}",
                hint="compare it: `n != 0`" if isinstance(c, int) else None)
    for x in (item.then if c else item.orelse or []):
        add_item(el, inst, x, scope)


_ITEMS = {A.ParamDecl: _param, A.SubLayer: _sublayer, A.StateDecl: _state, A.Let: _let, A.Assert: _assert, A.FnDef: _method,
          A.Names: _names, A.LayerIf: _if}


# ---- signals ----------------------------------------------------------------------------------------------------------

INPUT = "<input>"           # the layer's first argument, where a `let pre` of its own hides it


def watch(inst: LayerInstance, names) -> dict[str, Signal]:
    """Asks for local signals of an instance: every call of it made from now on writes them (cells like any state).  Names are
    `pre`, `out` and top-level `let`s of the layer's fn."""
    for n in names:
        inst.watched.setdefault(n, Signal(inst, n))
    return {n: inst.watched[n] for n in names}


def signal_names(inst: LayerInstance) -> list[str]:
    """The signals an instance offers."""
    if inst.forward is None:
        return []
    lets = [p.name for s in inst.forward.decl.body.stmts if isinstance(s, A.Let) for p in pattern_names(s.pattern) if p.name != "_"]
    return list(dict.fromkeys(["pre", "out", *lets, *[p.name for p in inst.forward.decl.params]]))


def note_signals(el: Elaborator, inst: LayerInstance, s: A.Let, scope: Scope) -> None:
    """After a top-level `let` of a watched layer's fn: its names are signals."""
    for p in pattern_names(s.pattern):
        if p.name in inst.watched:
            write_signal(el, inst, p.name, scope.names[p.name], p.span, again=True)


def write_signal(el: Elaborator, inst: LayerInstance, name: str, value: object, span: Span, again: bool = False) -> None:
    signal = inst.watched[name]
    if not isinstance(value, Value):
        el.fail(span, f"signal `{name}` of `{inst.label or inst.cls.name}` is {describe(value)}, not a tensor")
    if signal in el.frame.cells and not again:
        if not el.frame.training:
            return
        from .calls import twice
        twice(el, signal, span)
    el.frame.write(signal, value)


__all__ = ["instantiate", "cache_type", "cell_type", "watch", "INPUT", "signal_names", "note_signals", "write_signal", "has_layers", "source_text"]
