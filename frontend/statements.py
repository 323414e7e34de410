"""Statements that every block may hold: let, assignment to state, assert, expressions.  Others (learn, minimize, measure, settings
of a train block) are added by whoever runs such blocks."""
from __future__ import annotations

from ..compiler.diagnostics import Span
from ..compiler.ir import TensorType, Value, i64
from ..compiler.ir.opdef import TypeMismatch
from . import ast as A
from .elaborator import Elaborator, statement
from .signature import Signature
from .tensors import is_weak
from .values import MISSING, UNIT, Cell, LayerInstance, Namespace, Opaque, Scope, Tree, describe, type_text


@statement(A.Let)
def let(el: Elaborator, s: A.Let, scope: Scope) -> object:
    value = el.value(s.value, scope)
    if s.type is not None:
        sig = Signature(el, scope)
        value = sig.match(s.type, value, s.value.span, f"`{pattern_text(s.pattern)}`", broadcast=True)
        sig.settle()
        for name, n in sig.dims.items():
            scope.names.setdefault(name, n)
    bind_pattern(el, s.pattern, value, scope, s.value.span)
    return UNIT


def pattern_text(p: A.Pattern) -> str:
    if isinstance(p, A.NamePattern):
        return p.name
    return "(" + ", ".join(pattern_text(q) for q in p.items) + ")"


def bind_pattern(el: Elaborator, p: A.Pattern, value: object, scope: Scope, span: Span) -> None:
    """Binds the names of a pattern to the parts of a value."""
    if isinstance(p, A.NamePattern):
        if p.name != "_":
            if isinstance(value, Value) and value.name is None:
                value.name = p.name
            scope.bind(p.name, value, p.span)
        return
    for q, part in zip(p.items, unpack(el, value, p, span)):
        bind_pattern(el, q, part, scope, span)


def unpack(el: Elaborator, value: object, p: A.TuplePattern, span: Span) -> list:
    """The parts of a tuple, list or tensor of known length."""
    n = len(p.items)
    if isinstance(value, tuple | list):
        if len(value) != n:
            el.fail(p.span, f"cannot unpack {describe(value)} into {n} names", marks=[(span, None)])
        return list(value)
    if isinstance(value, Value) and value.type.rank > 0:
        size = value.type.shape[0]
        if size != n:
            el.fail(p.span, f"cannot unpack {type_text(value.type)} into {n} names: it has {size} parts", marks=[(span, None)])
        from .indexing import static_part
        return [static_part(el, value, 0, i, span) for i in range(n)]
    el.fail(p.span, f"cannot unpack {describe(value)} into {n} names", marks=[(span, None)])


@statement(A.ExprStmt)
def expr_stmt(el: Elaborator, s: A.ExprStmt, scope: Scope) -> object:
    return el.eval(s.value, scope)


@statement(A.Assert)
def assert_(el: Elaborator, s: A.Assert, scope: Scope) -> object:
    v = el.value(s.cond, scope)
    if isinstance(v, bool):
        if not v:
            el.fail(s.cond.span, s.message or "this does not hold", label="false")
        return UNIT
    if isinstance(v, Opaque) and v.kind == "bool":
        return UNIT                                            # depends on a dim: checked at specialisation
    if isinstance(v, Value) and v.type.dtype.is_bool:
        b = el.b(s.cond.span)
        if v.type.rank:
            v = b.reduce("min", v, range(v.type.rank))
        b.op("tensor.assert", [v], {"message": s.message or "assertion failed"})
        el.frame.effects += 1
        return UNIT
    el.fail(s.cond.span, f"`assert` needs a condition, got {describe(v)}")


# ---- writing state ----------------------------------------------------------------------------------------------------

def find_cell(el: Elaborator, target: A.Expr, scope: Scope) -> Cell | None:
    """The cell that an assignment's target names, without reading it; None when it names none."""
    if isinstance(target, A.Name):
        v = scope.lookup(target.id)
        if v is MISSING:
            from .program import not_found
            problem = not_found(target.id, target.span, scope)
            if problem.diagnostics[0].hint is None:
                problem.diagnostics[0].hint = f"`let {target.id} = ..` binds a new name"
            raise problem
        return v if isinstance(v, Cell) else None
    if isinstance(target, A.Attr):
        base = el.eval(target.value, scope)
        if isinstance(base, LayerInstance):
            return base.own.get(target.name)
        if isinstance(base, Namespace):                        # a sub-layer's parameter that a rule sees: `conv.w`
            v = base.scope.names.get(target.name)
            return v if isinstance(v, Cell) else None
    return None


@statement(A.Assign)
def assign(el: Elaborator, s: A.Assign, scope: Scope) -> object:
    target = s.target
    base = target
    while isinstance(base, A.Index):
        base = base.value
    if not isinstance(base, A.Name | A.Attr):
        el.fail(target.span, "this cannot be written", hint="`let` binds a name; `=` writes state, cache or a rule's parameters")
    v = scope.lookup(base.id) if isinstance(base, A.Name) else None
    cell = find_cell(el, base, scope)
    if cell is None:
        name = base.id if isinstance(base, A.Name) else base.name
        if isinstance(v, LayerInstance | Tree):
            el.fail(target.span, f"`{name}` is {describe(v)}; it cannot be written as a whole")
        el.fail(target.span, f"`{name}` is not state, so it cannot be written",
                hint=f"`let {name} = ..` binds the name anew; `state {name}: type` declares state")
    if not cell.writable:
        el.fail(target.span, f"`{cell.name}` is a parameter: only learning rules change it",
                hint=f"declare `state {cell.name}` for a value that the layer itself changes",
                notes=[(cell.span, "declared here")] if cell.span else [])
    if isinstance(target, A.Index):
        from .indexing import write_slice
        if isinstance(target.value, A.Index):
            el.fail(target.span, "write one subscript: `x[i, j] = ..`")
        return write_slice(el, s, cell, scope)
    value = el.value(s.value, scope)
    if s.op != "=":
        from .operators import binary_op
        value = binary_op(el, s.op[:-1], el.read(cell, scope, target.span), value, s.op_span, (target, s.value), scope)
    write_cell(el, cell, value, scope, s.value.span)
    return UNIT


def write_cell(el: Elaborator, cell: Cell, value: object, scope: Scope | None, span: Span) -> None:
    """Gives a cell a new value; numbers and smaller shapes broadcast to its declared type."""
    t = el.cell_type(cell, scope, span)
    el.frame.write(cell, fit(el, value, t, span, f"`{cell.name}`", cell.span))


def fit(el: Elaborator, value: object, t: TensorType, span: Span, what: str, declared: Span | None = None) -> Value:
    """A value as exactly this type: weak numbers convert, shapes broadcast; anything else is a diagnostic."""
    from .tensors import constant
    b = el.b(span)
    notes = [(declared, "declared here")] if declared is not None else []
    if is_weak(value):
        if isinstance(value, float) and not t.dtype.is_float or isinstance(value, bool) != t.dtype.is_bool:
            el.fail(span, f"{what} is {type_text(t)}, got {describe(value)}", notes=notes)
        try:
            return constant(b, value, t.dtype, t.shape)
        except TypeMismatch as e:
            el.fail(span, f"{what}: {e}", notes=notes)
    if not isinstance(value, Value):
        el.fail(span, f"{what} is {type_text(t)}, got {describe(value)}", notes=notes)
    if value.type == t:
        return value
    if value.type.dtype is not t.dtype:
        el.fail(span, f"{what} is {type_text(t)}, got {type_text(value.type)}: element types differ",
                hint=f"`{t.dtype}(..)` converts", notes=notes)
    try:
        if value.type.rank > t.rank:
            raise TypeMismatch("rank")
        return b.broadcast(value, t.shape)
    except TypeMismatch:
        el.fail(span, f"{what} is {type_text(t)}, got {type_text(value.type)}", notes=notes)


INDEX = TensorType(i64)
