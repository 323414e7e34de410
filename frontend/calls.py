"""Calls: elaborating each function once per specialisation, and calling the IR function. Arguments are bound in arguments.py.

A specialisation is a function (or method of layers of one structure), its compile-time arguments, and the types of the others.
Its IR function takes the cells of the layers it works on (the receiver's whole subtree for a layer's own `fn`, else those it
reads), then the tensors among the arguments, then a random key if it needs one; it returns its results, then the new values
of the cells it writes.  Functions given closures over run-time values are elaborated inline instead.
"""
from __future__ import annotations

import math
from collections.abc import Iterable

from ..compiler.diagnostics import CompileError, Diagnostic, Span
from ..compiler.ir import Func, Loc, Op, TensorType, Value
from ..compiler.ir.opdef import TypeMismatch
from . import ast as A
from .arguments import (
    NeedsInline,
    abstract,
    bind_signature,
    captures,
    fn_text,
    holds_closures,
    is_key,
    rebuild,
)
from .elaborator import Elaborator, no_value
from .frame import Frame
from .operations import call_builtin
from .signature import Signature, Unknown
from .tensors import cast, is_weak
from .trees import flatten, statics, unflatten
from .values import (
    POISON,
    UNIT,
    Builtin,
    CallArgs,
    Cell,
    DType,
    FnValue,
    LayerClass,
    LayerInstance,
    Poisoned,
    QuantType,
    RuleValue,
    Scope,
    Slot,
    Transform,
    Tree,
    describe,
    type_text,
)

MAX_ELEMENTS = 1 << 47           # of one tensor: what addresses can reach
MAX_CALLS = 200                  # functions and layers in progress at one time


class FuncInfo:
    """What callers need to know of an elaborated function."""

    __slots__ = ("name", "spec", "types", "reads", "writes", "needs_key", "cell_types", "signal_names", "keep")

    def __init__(self, name, spec, types, reads, writes, needs_key, cell_types, signal_names, keep):
        self.name, self.spec, self.types = name, spec, types
        self.reads, self.writes = reads, writes              # indices into the call's list of cells
        self.needs_key, self.cell_types, self.signal_names = needs_key, cell_types, signal_names
        self.keep = keep                                     # objects whose ids the memo key uses


# ---- calling anything -------------------------------------------------------------------------------------------------

def call(el: Elaborator, f: object, ca: CallArgs, span: Span) -> object:
    """The value of `f(...)`."""
    if isinstance(f, FnValue):
        return call_fn(el, f, ca, span)
    if isinstance(f, Builtin):
        return call_builtin(el, f, ca, span)
    if isinstance(f, LayerInstance):
        return call_layer(el, f, ca, span)
    if isinstance(f, LayerClass):
        from .layers import instantiate
        return instantiate(el, f, ca, span)
    if isinstance(f, DType):
        if len(ca.pos) != 1 or ca.kw or not (isinstance(ca.pos[0], Value) or is_weak(ca.pos[0])):
            el.fail(span, f"`{f}(x)` converts one tensor")
        try:
            return cast(el.b(span), ca.pos[0], f)
        except (TypeMismatch, OverflowError, ValueError) as e:
            el.fail(span, str(e))
    if isinstance(f, Transform):
        return f.call(el, ca, span)
    if isinstance(f, Tree):
        with overlay(el, f.values):
            return call_layer(el, f.layer, ca, span)
    if isinstance(f, QuantType) and f.name == "pow2" and f.bits is None:
        if len(ca.pos) != 1 or not isinstance(ca.pos[0], int):
            el.fail(span, "`pow2(n)` needs the number of exponents")
        return QuantType("pow2", ca.pos[0])
    if isinstance(f, list | tuple) and f and all(_applies(x) for x in f):
        for g in f:                                            # a list of layers: in order
            out = call(el, g, ca, span)
            ca = CallArgs.of([out], span)
        return out
    if isinstance(f, list) and not f and len(ca.pos) == 1:
        return ca.pos[0]
    hint = None
    if isinstance(f, RuleValue):
        hint = f"`learn LAYER by {f.decl.name}(..)` and `minimize LOSS using ..` apply rules, in a train block"
    elif is_weak(f) or isinstance(f, Value):
        hint = "`*` multiplies; `[ ]` takes elements"
    el.fail(span, f"{describe(f)} cannot be called", hint=hint)


def _applies(x: object) -> bool:
    return isinstance(x, FnValue | Builtin | LayerInstance | Transform | Tree) or isinstance(x, list) and all(_applies(y) for y in x)


class overlay:
    """Cells have other values for a while; what is written to *other* cells stays."""

    def __init__(self, el: Elaborator, values: dict[Cell, Value]):
        self.frame, self.values = el.frame, values

    def __enter__(self):
        cells = self.frame.cells
        self.saved = {c: cells.get(c) for c in self.values}
        cells.update(self.values)

    def __exit__(self, *exc):
        cells = self.frame.cells
        for c, v in self.saved.items():
            if v is None:
                cells.pop(c, None)
            else:
                cells[c] = v


def call_layer(el: Elaborator, inst: LayerInstance, ca: CallArgs, span: Span) -> object:
    if inst.forward is None:
        near = ", ".join(f"`{m}`" for m in inst.methods)
        el.fail(span, f"layer {inst.cls.name} has no `fn (..)`, so it cannot be called", hint=f"it has {near}" if near else None)
    return call_fn(el, inst.forward, ca, span)


# ---- functions of the program -----------------------------------------------------------------------------------------

def call_fn(el: Elaborator, fn: FnValue, ca: CallArgs, span: Span) -> object:
    expected = None
    frame = el.frame
    if frame is not None:
        expected, frame.expected = frame.expected, None
    scope, sig = bind_signature(el, fn, ca, span)
    for p in fn.decl.params:
        if is_key(p) and frame is not None:
            el.use_key(scope.names[p.name], span)
    if frame is None or fn.inline or expected is not None:
        return inline(el, fn, scope, sig, span, expected)
    insts: list[LayerInstance] = []
    leaves: list[Value] = []
    names = [p.name for p in fn.decl.params]
    try:
        keys = tuple([abstract(el, scope.names[n], leaves, insts) for n in names])
    except NeedsInline:
        return inline(el, fn, scope, sig, span, None)
    owner = fn.owner
    if owner is None and not leaves and not insts:
        return inline(el, fn, scope, sig, span, None)
    if owner is not None and holds_closures(owner):
        return inline(el, fn, scope, sig, span, None)
    cells: dict[Cell, None] = {}
    roots = [] if owner is None else [owner]
    for inst in [*roots, *insts]:
        for _, slot in inst.cells:
            cells[slot] = None
        for signal in inst.signals():
            cells[signal] = None
    cell_list = list(cells)
    key = (id(fn.decl), id(fn.scope) if owner is None else owner.key, frame.training, keys, len(cell_list), _watch_key([*roots, *insts]),
           tuple(map(id, insts)))
    info = el.memo.get(key) or el.memo.get((key, id(owner)))
    if info is None:
        info = elaborate(el, fn, scope, sig, names, insts, cell_list, span)
        if info is None:
            return inline(el, fn, scope, sig, span, None)
        own = any(isinstance(s, LayerInstance) for s in statics(info.spec))    # the result names its layer: no other shares it
        el.memo[(key, id(owner)) if own else key] = info
    return emit_call(el, fn, info, cell_list, leaves, span)


def _watch_key(insts: list[LayerInstance]) -> tuple:
    """Which signals of which layers below are wanted: where the layer stands, and the signal's name."""
    return tuple((k, path, *i.watched) for k, inst in enumerate(insts) for path, i in inst.walk() if i.watched)


def inline(el: Elaborator, fn: FnValue, scope: Scope, sig: Signature, span: Span, expected: TensorType | None) -> object:
    """The body, evaluated right here."""
    frame = el.frame
    enter(el, fn, span, check=frame is None or not fn.inline and expected is None and not any(
        isinstance(v, FnValue) for v in scope.names.values()))
    before = len(el.diags.items)
    yields = None
    if frame is not None:
        yields, frame.yields = frame.yields, None
    try:
        value = run_body(el, fn, scope, sig, expected)
    finally:
        el.active.pop()
        if frame is not None:
            frame.yields = yields
            frame.expected = expected
        place_errors(el, fn, before, span)
    return value


def enter(el: Elaborator, fn: FnValue, span: Span, check: bool = True) -> None:
    """Notes that a function is being elaborated; a diagnostic when it is already."""
    ident = (id(fn.decl), id(fn.owner) if fn.owner is not None else None)
    name = fn_name(fn)
    if check:
        for k, (other, _, _) in enumerate(el.active):
            if other == ident:
                cycle = [n for _, n, _ in el.active[k:]] + [name]
                el.fail(span, f"`{name}` calls itself: {' -> '.join(cycle)}", hint="functions cannot be recursive; `while` and `scan` repeat")
    if len(el.active) >= MAX_CALLS:
        el.fail(span, f"more than {MAX_CALLS} calls inside each other: ... -> {' -> '.join(n for _, n, _ in el.active[-3:])} -> {name}",
                hint="functions cannot be recursive; `while` and `scan` repeat")
    el.active.append((ident, name, span))


def fn_name(fn: FnValue) -> str:
    if fn.owner is not None:
        return f"{fn.owner.cls.name}.{fn.name or 'forward'}"
    return fn.name or "fn"


def run_body(el: Elaborator, fn: FnValue, scope: Scope, sig: Signature, expected: TensorType | None = None) -> object:
    """Evaluates a function's body in the bound scope and checks its result."""
    decl, owner = fn.decl, fn.owner
    watch = owner if owner is not None and fn.name is None and owner.watched else None
    if watch is not None and decl.params:
        from .layers import INPUT, write_signal
        for name in ("pre", INPUT):
            if name in watch.watched:
                write_signal(el, watch, name, scope.names[decl.params[0].name], decl.span)
        for p in decl.params:
            if p.name in watch.watched and p.name != "pre" and isinstance(scope.names[p.name], Value):
                write_signal(el, watch, p.name, scope.names[p.name], decl.span)
    frame = el.frame
    if frame is not None:
        frame.expected = expected
    hint = el.result_hint
    el.result_hint = declared_shape(decl, sig)
    try:
        value = el.run_block(decl.body.stmts, scope, watch)
    finally:
        el.result_hint = hint
    if frame is not None:
        frame.expected = None
    if decl.result is not None:
        if value is UNIT:
            span, message = no_value(decl.body)
            el.fail(span, message.replace("a value is expected here, but", f"{fn_text(fn)} declares a result, but"),
                    notes=[(decl.result.span, "declared here")])
        last = decl.body.value
        if not (expected is not None and _is_any(decl.result)):
            value = sig.match(decl.result, value, last.span if last is not None else decl.body.span,
                              f"the result of {fn_text(fn)}", result=True)
    if watch is not None and "out" in watch.watched:
        from .layers import write_signal
        write_signal(el, watch, "out", value[0] if isinstance(value, tuple) else value, decl.span)
    return value


def declared_shape(decl: A.FnDef | A.Lambda, sig: Signature) -> tuple | None:
    """The last expression of a body that is index notation, and the shape that the result's type declares."""
    last = decl.body.value
    if not isinstance(last, A.Call) or not isinstance(last.func, A.Index) or not isinstance(decl.result, A.TensorType):
        return None
    try:
        return last, sig.shape(decl.result.dims or [])
    except Unknown:
        return None


def _is_any(t: A.Type) -> bool:
    """`f32[..]`: any shape; a number returned for it stays one."""
    return isinstance(t, A.TensorType) and t.dims is not None and len(t.dims) == 1 and isinstance(t.dims[0], A.Pack)


def elaborate(el: Elaborator, fn: FnValue, scope: Scope, sig: Signature, names: list[str], insts: list[LayerInstance],
              cells: list[Cell], span: Span) -> FuncInfo | None:
    """Makes the IR function of a specialisation; None when its result cannot leave it (a closure)."""
    owner, decl = fn.owner, fn.decl
    outer = el.frame
    roots = [("", owner)] if owner is not None else []
    for n in names:                                            # a plain function sees a layer under its caller's path
        v = scope.names[n]
        if isinstance(v, LayerInstance):
            path = outer.path_of(v) if owner is None else None
            roots.append((n if path is None else path, v))
    frame = Frame(fn_name(fn), training=outer.training, plain=owner is None, roots=roots)
    args: list[Value] = []
    inner = Scope(fn.scope, dict(scope.names))
    inner.spans = scope.spans
    for p in decl.params:
        v = rebuild(scope.names[p.name], frame, args, p.name)
        inner.names[p.name] = v
        if is_key(p) and isinstance(v, Value):
            frame.key = v
    inner_sig = Signature(el, inner)
    inner_sig.dims, inner_sig.packs, inner_sig.dtypes, inner_sig.origins = sig.dims, sig.packs, sig.dtypes, sig.origins
    enter(el, fn, span)
    before, errors = len(el.diags.items), len(el.diags.errors)
    value: object = POISON
    try:
        with el.in_frame(frame):
            value = run_body(el, fn, inner, inner_sig)
    except CompileError as e:
        el.diags.extend(e)
    finally:
        el.active.pop()
        place_errors(el, fn, before, span)
    if value is POISON or len(el.diags.errors) > errors:
        raise Poisoned
    spec, results = flatten(value)
    if any(isinstance(s, FnValue | Transform) and captures(s) for s in statics(spec)):
        return None
    return finish(el, fn, frame, spec, results, args, cells)


def finish(el: Elaborator, fn: FnValue, frame: Frame, spec: tuple, results: list[Value], args: list[Value],
           cells: list[Cell]) -> FuncInfo:
    """Closes a function: arguments in order, return, registration."""
    whole = fn.owner is not None and fn.name is None
    paths = {s: p for p, s in fn.owner.cells} if fn.owner is not None else {}
    own = {s for s in paths if s.kind != "cache"} if whole else ()
    index = {c: i for i, c in enumerate(cells)}
    for c in [*frame.cells, *frame.arg_cells]:
        if c not in index:
            raise AssertionError(f"{frame.name} uses {c} of an outer function")
    reads, func_args, cell_types = [], [], {}
    for i, c in enumerate(cells):
        v = frame.arg_cells.get(c)
        if v is None and c in own:
            v = frame.take_argument(c, c.type, c.name)
        if v is not None:
            v.name = paths.get(c, v.name)
            reads.append(i)
            func_args.append(v)
        if c.type is None and c in el.cell_types:
            cell_types[i] = el.cell_types[c]
    writes = [i for i, c in enumerate(cells) if c in frame.cells]
    written = [frame.cells[cells[i]] for i in writes]
    func_args += args
    if frame.key_is_argument:
        func_args.append(frame.key)
    func = make_func(el, frame, frame.name, func_args, [*results, *written], fn.decl.span)
    names = [cells[i].name for i in writes if not isinstance(cells[i], Slot)]
    return FuncInfo(func.name, spec, func.result_types, reads, writes, frame.key_is_argument, cell_types, names, (fn, fn.owner))


def make_func(el: Elaborator, frame: Frame, name: str, args: list[Value], results: list[Value], span: Span | None,
              attrs: dict | None = None) -> Func:
    """The finished IR function of a frame, added to the module."""
    func = Func(el.module.unique_name(name), loc=Loc(*span) if span is not None else None)
    func.body = frame.block
    frame.block.args = list(args)
    frame.b.loc = func.loc
    frame.b.op("func.return", list(results))
    func.result_types = [v.type for v in results]
    check_sizes(el, func.args, func.walk(), span)
    func.attrs = {"arg_names": [a.name or "" for a in args], **(attrs or {})}
    return el.module.add(func)


def check_sizes(el: Elaborator, args: list[Value], ops: Iterable[Op], span: Span | None) -> None:
    """Refuses tensors that no machine can hold, before anything works on them."""
    for a in args:
        check_size(el, a.type, span)
    for op in ops:
        for r in op.results:
            check_size(el, r.type, Span(*op.loc) if op.loc else span)


def check_size(el: Elaborator, t: object, span: Span | None) -> None:
    shape = t.shape if isinstance(t, TensorType) else ()
    if len(shape) and math.prod(n for n in shape if type(n) is int) > MAX_ELEMENTS and all(shape):
        el.fail(span, f"{type_text(t)} is too large: no machine holds that many elements")


def emit_call(el: Elaborator, fn: FnValue, info: FuncInfo, cells: list[Cell], leaves: list[Value], span: Span) -> object:
    frame = el.frame
    operands = []
    for i, t in info.cell_types.items():
        cell = cells[i]
        if el.cell_types.setdefault(cell, t) != t:
            el.fail(span, f"cache `{cell.name}` is {el.cell_types[cell]} in another call, {t} in this one")
    for i in info.reads:
        c = cells[i]
        v = frame.value_of(c)
        operands.append(v if v is not None else frame.take_argument(c, c.type or el.cell_types[c], c.name))
    operands += leaves
    if info.needs_key:
        operands.append(el.key(span, draw=False))
    attrs: dict = {"callee": info.name, "result_types": list(info.types)}
    if fn.owner is not None:
        attrs["instance"] = frame.path_of(fn.owner) or ""
        if info.signal_names:
            attrs["signals"] = list(info.signal_names)
    results = el.b(span).op("func.call", operands, attrs).results
    n = len(info.types) - len(info.writes)
    for i, v in zip(info.writes, results[n:]):
        c = cells[i]
        if not isinstance(c, Slot) and c in frame.cells:
            if not frame.training:                                 # when measuring, the first call is as good as another
                continue
            twice(el, c, span)
        frame.write(c, v)
    return unflatten(info.spec, results[:n])


def twice(el: Elaborator, signal: Cell, span: Span) -> None:
    el.fail(span, "this layer is called twice in a step, so a rule cannot tell which call to learn from",
            hint="concatenate the two inputs in the batch and call it once")


def place_errors(el: Elaborator, fn: FnValue, before: int, span: Span) -> None:
    """Errors inside the library are shown at the user's call; others say which call led to them."""
    if fn.decl.span.file == span.file:
        std = False
    else:
        std = fn.decl.span.file.startswith("std/") and not span.file.startswith("std/")
    items = el.diags.items
    for k in range(before, len(items)):
        d = items[k]
        if std and d.span is not None and d.span.file.startswith("std/"):
            items[k] = Diagnostic(d.severity, span, f"in {fn_text(fn)}: {d.message}",
                                  [(d.span, "this operation of the library"), *[n for n in d.notes if n[0] is None]], None, d.hint)
        elif d.span is not None and d.span.file == fn.decl.span.file and not isinstance(fn.decl, A.Lambda) and sum(
                1 for _, text in d.notes if text.startswith("in this call")) < 2 and d.span != span:
            d.notes.append((span, f"in this call of {fn_text(fn)}"))


Elaborator.call = lambda self, f, ca, span: call(self, f, ca, span)
