"""`check`: elaborates what can be elaborated without arguments, with symbolic dims, for the sake of its diagnostics.

Functions get arguments of their parameters' types, layers get symbols for the arguments that are sizes.  What depends on the size
of an unknown dim is left to specialisation: a check never rejects a program that some sizes make right.
"""
from __future__ import annotations

from collections.abc import Callable

from ..compiler.diagnostics import CompileError, Diagnostic, Diagnostics
from ..compiler.ir import Dim, Value
from . import ast as A
from . import evaluate  # noqa: F401
from .api import initial_value
from .arguments import bind_signature, is_key
from .calls import check_sizes, run_body
from .elaborator import Elaborator, deep_recursion
from .frame import KEY, Frame
from .layers import instantiate as make_layer
from .names import unknown_names
from .program import Program
from .signature import Signature
from .values import MISSING, CallArgs, FnValue, LayerClass, LayerInstance, Poisoned, Undecidable


class Once(Diagnostics):
    """One message for each place: a body that is checked for several sizes says the same thing in several ways."""

    def add(self, diagnostic: Diagnostic) -> None:
        if diagnostic.span is None or all(d.span != diagnostic.span for d in self.items):
            super().add(diagnostic)


def check(program: Program, observer: Callable | None = None) -> list:
    """Elaborates every top-level function whose parameters all have types, with symbolic dims, and every layer that can be made
    without arguments (or whose arguments are numbers used as sizes).  Raises CompileError with all diagnostics; gives the
    warnings.  `observer(name, module)` sees each module."""
    problems = Once()
    items = program.main.items.items()

    def needs_arguments(item: A.Node) -> bool:
        return isinstance(item, A.Layer) and any(p.default is None for p in item.params)

    # layers with definite sizes first: `128` in a message says more than `h`
    for name, item in sorted(items, key=lambda pair: needs_arguments(pair[1])):
        try:
            if isinstance(item, A.FnDef):
                check_function(program, program.scope.lookup(name), problems, observer)
            elif isinstance(item, A.Layer):
                check_layer_class(program.scope.lookup(name), problems, observer)
        except CompileError as e:
            problems.extend(e)
    for d in unknown_names(program):                               # elaboration meets the first one of an expression
        problems.add(d)
    for item in program.main.tree.items:
        if isinstance(item, A.Let):
            try:
                for p in _names(item.pattern):
                    program.scope.lookup(p)
            except CompileError as e:
                problems.extend(e)
    problems.items.sort(key=lambda d: (d.span is not None, d.span[1:3] if d.span is not None and d.span.file == program.file else (0, 0)))
    problems.raise_if_errors()
    return problems.warnings


def _names(p: A.Pattern) -> list[str]:
    return [p.name] if isinstance(p, A.NamePattern) else [n for q in p.items for n in _names(q)]


def _symbolic_run(fn: FnValue, frame: Frame) -> Elaborator | None:
    """Elaborates a body with symbolic dims, its diagnostics in the elaborator; None where a parameter is a compile-time value."""
    el = Elaborator(generic=True)
    try:
        with deep_recursion():
            args = symbolic_arguments(el, fn, frame)
            if args is None:
                return None
            with el.in_frame(frame):
                _check_body(el, fn, frame, args)
    except (Undecidable, Poisoned):
        pass
    except CompileError as e:
        el.diags.extend(e)
    return el


def check_function(program: Program, fn: FnValue, problems: Diagnostics, observer: Callable | None = None) -> None:
    """A function with symbolic dims; does nothing when a parameter is a compile-time value without default."""
    frame = Frame(fn.name, plain=True)
    el = _symbolic_run(fn, frame)
    if el is None:
        return
    unknown = [f"{inst.cls.name}.{p.name}" for _, inst in frame.roots for p in inst.cls.decl.params]
    for d in el.diags.items:
        if not any(name in text for name in unknown for text in (d.message, d.label or "", *[label or "" for _, label in d.marks])):
            problems.add(d)                                    # what depends on the sizes of a layer that is passed in is not known yet
    if observer is not None and not el.diags.errors:
        observer(fn.name, el.module)


def _check_body(el: Elaborator, fn: FnValue, frame: Frame, args: dict[str, object]) -> None:
    spans = {p.name: p.span for p in fn.decl.params}
    ca = CallArgs([], [], args, {n: spans[n] for n in args})
    frame.plain = False
    scope, sig = bind_signature(el, fn, ca, fn.decl.span)
    frame.plain = fn.owner is None
    for p in fn.decl.params:
        if is_key(p):
            frame.key = scope.names[p.name]
    el.active.append(((id(fn.decl), id(fn.owner) if fn.owner is not None else None), fn.name or fn.owner.cls.name, fn.decl.span))
    run_body(el, fn, scope, sig)
    check_sizes(el, list(frame.block.args), frame.block.walk(), fn.decl.span)


def symbolic_arguments(el: Elaborator, fn: FnValue, frame: Frame) -> dict[str, object] | None:
    """An argument of each parameter's type with its dims as rigid symbols; None when a parameter's value decides too much."""
    sig = Signature(el, fn.scope)
    out: dict[str, object] = {}
    sizes = _sizes_in([p.type for p in fn.decl.params] + [fn.decl.result])
    sig.dims.update((p.name, Dim.symbol(p.name)) for p in fn.decl.params if p.type is None and p.default is None and p.name in sizes)
    for p in fn.decl.params:
        if p.type is None:
            if p.default is None:
                if p.name not in sizes:
                    return None
                out[p.name] = Dim.symbol(p.name)               # an untyped parameter that is a size: any size
            continue
        v = _symbolic(el, sig, p.type, p.name, frame)
        if v is MISSING:
            return None
        out[p.name] = v
    return out


def _symbolic(el: Elaborator, sig: Signature, t: A.Type, name: str, frame: Frame) -> object:
    if isinstance(t, A.TupleType):
        parts = [_symbolic(el, sig, x, f"{name}.{i}", frame) for i, x in enumerate(t.items)]
        return MISSING if MISSING in parts else tuple(parts)
    if isinstance(t, A.FnType):
        return MISSING
    e = sig.element(t)
    if isinstance(e, LayerClass):
        inst = symbolic_layer(el, e)
        if inst is None:
            return MISSING
        frame.roots.append((name, inst))
        return inst
    try:
        tt = sig.symbolic(t)
    except Undecidable:
        return MISSING
    return Value(tt, frame.block, name)


def symbolic_layer(el: Elaborator, cls: LayerClass) -> LayerInstance | None:
    """An instance whose size arguments are rigid symbols; None when some argument is more than a size."""
    args: dict[str, object] = {}
    sizes = _size_parameters(cls)
    for p in cls.decl.params:
        if p.default is not None:
            continue
        if p.name not in sizes:
            return None
        args[p.name] = Dim.symbol(f"{cls.name}.{p.name}")
    quiet = Elaborator(generic=True)
    try:
        inst = make_layer(quiet, cls, CallArgs([], [], args, dict.fromkeys(args, cls.decl.name_span)), cls.decl.name_span)
    except (CompileError, Undecidable, Poisoned):
        return None
    return inst if not quiet.diags.errors else None


def _size_parameters(cls: LayerClass, visiting: tuple = ()) -> set[str]:
    """Names of a layer that are sizes: they stand in types, or are handed to sub-layers whose parameters are sizes."""
    decl = cls.decl
    names = _sizes_in([decl])
    if any(decl is d for d in visiting):
        return names
    handed: list[A.Expr] = []
    for node in A.walk(decl):
        if not isinstance(node, A.Call) or not isinstance(node.func, A.Name):
            continue
        sub = cls.scope.lookup(node.func.id)
        if not isinstance(sub, LayerClass):
            continue
        inner = _size_parameters(sub, (*visiting, decl))
        params = [p.name for p in sub.decl.params]
        for name, arg in [*zip(params, node.positional), *((k, a.value) for k, a in node.keywords.items())]:
            if name in inner:
                handed.append(arg)
    names |= _numbers_in(handed)
    for item in reversed(decl.items):                          # `let k = d // h`: where k is a size, d and h are
        if isinstance(item, A.Let) and isinstance(item.pattern, A.NamePattern) and item.pattern.name in names:
            names |= {n.id for n in A.walk(item.value) if isinstance(n, A.Name)}
    return names


def _sizes_in(nodes: list) -> set[str]:
    """The names that stand in sizes of tensor types."""
    return _numbers_in([d for top in nodes if top is not None for node in A.walk(top) if isinstance(node, A.TensorType) for d in node.dims or []])


def _numbers_in(nodes: list[A.Node]) -> set[str]:
    """The names in expressions of sizes; not `widths` of `widths[0]`, which is a list."""
    parts = [n for x in nodes for n in A.walk(x)]
    lists = {n.value.id for n in parts if isinstance(n, A.Index) and isinstance(n.value, A.Name)}
    return {n.id for n in parts if isinstance(n, A.Name)} - lists


def check_layer_class(cls: LayerClass, problems: Diagnostics, observer: Callable | None = None) -> None:
    """A layer's own items and functions, as far as they can be checked without knowing its arguments."""
    el = Elaborator(generic=True)
    params = cls.decl.params
    symbolic = any(p.default is None for p in params)
    sizes = _size_parameters(cls) if symbolic else set()
    args: dict[str, object] = {}
    for p in params:
        if p.default is None:
            if p.name not in sizes:
                return
            args[p.name] = Dim.symbol(p.name)
    try:
        inst = make_layer(el, cls, CallArgs([], [], args, dict.fromkeys(args, cls.decl.name_span)), cls.decl.name_span)
    except (Undecidable, Poisoned):
        inst = None
    except CompileError as e:
        el.diags.extend(e)
        inst = None
    if symbolic and el.diags.errors and any("symbol" in d.message for d in el.diags.errors):
        return
    for d in el.diags.items:
        problems.add(d)
    if inst is not None and not el.diags.errors:
        check_initial_values(inst, problems)
        check_layer(inst, problems, observer)


def check_initial_values(inst: LayerInstance, problems: Diagnostics) -> None:
    """What the layer's own parameters and states begin with."""
    for name, slot in inst.own.items():
        if slot.kind == "cache" or slot.type is None:
            continue
        el = Elaborator(generic=True)
        frame = Frame("init")
        frame.key = Value(KEY, frame.block, "key")
        try:
            with deep_recursion(), el.in_frame(frame):
                initial_value(el, slot, name, frame.key)
        except (Undecidable, Poisoned):
            pass
        except CompileError as e:
            el.diags.extend(e)
        for d in el.diags.items:
            problems.add(d)


def check_layer(inst: LayerInstance, problems: Diagnostics, observer: Callable | None = None) -> None:
    """The functions of a layer instance, with the dims of their calls as rigid symbols."""
    for fn in [inst.forward, *inst.methods.values()]:
        if fn is None:
            continue
        frame = Frame(f"{inst.cls.name}.{fn.name or 'forward'}", roots=[("", inst)])
        el = _symbolic_run(fn, frame)
        if el is None:
            continue
        for d in el.diags.items:
            problems.add(d)
        if observer is not None and not el.diags.errors:
            observer(frame.name, el.module)
