"""Arguments of calls: evaluating and binding them, and how they enter a function of the IR: as tensors, as part of what it is specialised for."""
from __future__ import annotations

from ..compiler.diagnostics import Span, did_you_mean
from ..compiler.ir import Value
from . import ast as A
from .elaborator import Elaborator
from .frame import Frame
from .operations import count_text
from .signature import Signature
from .values import (
    MISSING,
    POISON,
    CallArgs,
    Cell,
    FnValue,
    LayerInstance,
    RangeValue,
    Reversed,
    Scope,
    Transform,
    Tree,
)


def evaluate_args(el: Elaborator, args: list[A.Arg], scope: Scope) -> CallArgs:
    """Evaluates the arguments of a call, left to right."""
    frame = el.frame
    expected = None
    if frame is not None:
        expected, frame.expected = frame.expected, None
    ca = CallArgs()
    try:
        for a in args:
            v = el.value(a.value, scope)
            if a.name is None:
                ca.pos.append(v)
                ca.spans.append(a.value.span)
            else:
                ca.kw[a.name] = v
                ca.kw_spans[a.name] = a.value.span
                ca.names[a.name] = a.span._replace(end_line=a.span.line, end_col=a.span.col + len(a.name))
    finally:
        if frame is not None:
            frame.expected = expected
    return ca


def bind_params(el: Elaborator, what: str, params: list[A.Param], ca: CallArgs, span: Span,
                declared: Span | None) -> list[tuple[A.Param, object, Span]]:
    """Each parameter with its argument (MISSING where none was given)."""
    notes = [(declared, f"{what} is declared here")] if declared is not None and not declared.file.startswith("std/") else []
    if len(ca.pos) > len(params):
        el.fail(ca.spans[len(params)], f"{what} takes {count_text(len(params), 'argument')}, got {len(ca.pos) + len(ca.kw)}",
                hint=f"its parameters are: {', '.join(p.name for p in params)}" if params else None, notes=notes)
    if len({p.name for p in params}) != len(params):
        twice_named = next(p for i, p in enumerate(params) if p.name in [q.name for q in params[:i]])
        el.fail(twice_named.span, f"parameter `{twice_named.name}` is declared twice")
    out: list[tuple[A.Param, object, Span]] = []
    kw = ca.kw
    used = 0
    for i, p in enumerate(params):
        if i < len(ca.pos):
            if p.name in kw:
                el.fail(ca.kw_spans[p.name], f"argument `{p.name}` of {what} is given twice")
            out.append((p, ca.pos[i], ca.spans[i]))
        elif p.name in kw:
            used += 1
            out.append((p, kw[p.name], ca.kw_spans[p.name]))
        else:
            out.append((p, MISSING, span))
    if used != len(kw):
        names = [p.name for p in params]
        bad = next(k for k in kw if k not in names)
        near = did_you_mean(bad, names)
        el.fail(ca.name_span(bad), f"{what} has no parameter `{bad}`",
                hint=f"did you mean `{near}`?" if near else f"its parameters are: {', '.join(names) or 'none'}", notes=notes)
    for p, v, _ in out:
        if v is MISSING and p.default is None and not is_key(p):
            el.fail(span, f"{what} needs argument `{p.name}`", notes=notes)
    return out


def is_key(p: A.Param) -> bool:
    return isinstance(p.type, A.TensorType) and p.type.name == "key" and p.type.dims is None


def bind_signature(el: Elaborator, fn: FnValue, ca: CallArgs, span: Span) -> tuple[Scope, Signature]:
    """The scope of a call's body: parameters as their types want them, dims bound."""
    decl = fn.decl
    what = fn_text(fn)
    scope = Scope(fn.scope)
    sig = Signature(el, scope)
    sig.owner = fn.owner
    bound = bind_params(el, what, decl.params, ca, span, decl.name_span if isinstance(decl, A.FnDef) else decl.span)
    for p, v, _ in bound:
        if v is not MISSING and p.type is None:
            scope.bind(p.name, v, p.span)
    for p, v, at in bound:
        given = v is not MISSING
        if not given:
            v = el.key(span) if p.default is None else el.value(p.default, Scope(fn.scope, {**sig.dims, **scope.names}))
        elif p.type is None:
            continue
        if p.type is not None:
            v = sig.match(p.type, v, at, f"argument `{p.name}` of {what}", broadcast=not given)
        scope.bind(p.name, v, p.span)
    sig.settle()
    for name, n in sig.dims.items():
        scope.names.setdefault(name, n)
    return scope, sig


def fn_text(fn: FnValue) -> str:
    """A function in a message."""
    if fn.owner is not None and fn.name is None:
        return f"`{fn.owner.label or fn.owner.cls.name}`"
    return f"`{fn.name}`" if fn.name else "this function"


# ---- into a function of the IR -----------------------------------------------------------------------------------------

class NeedsInline(Exception):
    """An argument holds run-time values that cannot be passed to another function."""


def abstract(el: Elaborator, v: object, leaves: list[Value], insts: list[LayerInstance]) -> object:
    """A hashable stand-in for an argument in the memo's key; collects its tensors and layers."""
    if isinstance(v, Value):
        leaves.append(v)
        return v.type
    if isinstance(v, tuple | list):
        return (type(v).__name__, *[abstract(el, x, leaves, insts) for x in v])
    if isinstance(v, LayerInstance):
        insts.append(v)
        return v.key
    if isinstance(v, Tree):
        leaves.extend(v.values.values())
        return ("tree", id(v.layer))
    if isinstance(v, FnValue | Transform):
        if captures(v):
            raise NeedsInline
        return v
    if isinstance(v, RangeValue):
        if not v.is_static:
            raise NeedsInline
        return ("range", v.start, v.stop)
    if isinstance(v, Reversed):
        raise NeedsInline
    return (type(v).__name__, v)


def captures(v: object) -> bool:
    """Whether a compile-time value holds run-time ones: a closure over tensors, a layer."""
    if isinstance(v, Value | Cell | LayerInstance | Tree):
        return True
    if isinstance(v, tuple | list):
        return any(captures(x) for x in v)
    if isinstance(v, Transform):
        return any(captures(x) for x in v.captured())
    if isinstance(v, FnValue):
        if v.owner is not None:
            return True
        if not v.inline:
            return False
        bound = {p.name for p in v.decl.params}
        for node in A.walk(v.decl.body):
            if isinstance(node, A.Name) and node.id not in bound:
                bound.add(node.id)
                found = v.scope.lookup(node.id)
                if found is not MISSING and found is not POISON and found is not v and captures(found):
                    return True
    return False


def holds_closures(inst: LayerInstance) -> bool:
    """Whether a layer was given closures over run-time values (possible where layers are made inside functions)."""
    if "closures" not in inst.extras:
        inst.extras["closures"] = any(
            captures(f) for _, i in inst.walk() for a in i.args.values() for f in _functions(a))
    return inst.extras["closures"]


def _functions(v: object):
    if isinstance(v, FnValue | Transform):
        yield v
    elif isinstance(v, tuple | list):
        for x in v:
            yield from _functions(x)


def rebuild(v: object, frame: Frame, args: list[Value], name: str) -> object:
    """An argument as the callee sees it: its tensors become the function's arguments."""
    if isinstance(v, Value):
        a = Value(v.type, frame.block, name)
        args.append(a)
        return a
    if isinstance(v, tuple | list):
        return type(v)(rebuild(x, frame, args, f"{name}.{i}") for i, x in enumerate(v))
    if isinstance(v, Tree):
        paths = {s: p for p, s in v.layer.cells}
        return Tree(v.layer, {s: rebuild(x, frame, args, f"{name}.{paths[s]}") for s, x in v.values.items()})
    return v
