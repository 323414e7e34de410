"""Rules: from a `rule` and what it is applied to, to one IR function.

Optimisers and local learning rules are the same thing here: a function of what the rule sees, what it is given, its run-time
arguments and its own state, which returns the new values of what it writes, in order.  Applications with equal static
arguments and types share the function; each has its own state.  Who calls it, and with what, is train_step.py's business;
`learn` and `minimize` inside a rule are in rule_statements.py.
"""
from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field

from ..compiler.diagnostics import CompileError, Diagnostic, Source, Span, did_you_mean
from ..compiler.ir import TensorType, Value
from . import ast as A
from .arguments import abstract, bind_params, captures, evaluate_args, rebuild
from .calls import MAX_CALLS, make_func
from .elaborator import STATEMENTS, Elaborator
from .frame import Frame
from .program import not_found
from .signature import Signature, Unknown, source_text
from .statements import fit
from .tensors import as_tensor, is_weak
from .values import (
    MISSING,
    POISON,
    Builtin,
    CallArgs,
    Cell,
    FnValue,
    LayerInstance,
    Namespace,
    Poisoned,
    RuleValue,
    Scope,
    Transform,
    describe,
)

RULE_STATEMENTS: MutableMapping[type, Callable] = ChainMap({}, STATEMENTS)
RULE_FUNCTIONS: dict[str, Builtin] = {}        # operations that only rules know


def rule_statement(*nodes: type):
    """Registers the execution of a statement inside rules."""
    def add(f):
        for n in nodes:
            RULE_STATEMENTS[n] = f
        return f
    return add


@dataclass(frozen=True)
class RuleUse:
    """`adam(lr = 3e-3)`: a rule and the arguments it was given."""

    rule: RuleValue
    args: CallArgs
    span: Span

    @property
    def name(self) -> str:
        return self.rule.decl.name


@dataclass(frozen=True)
class Seen:
    """One thing that a rule sees: `role` is "signal", "param" (which it may write) or "capture"; `place` is where it is outside.
    A hidden one is an operand without a name in the rule: what a local loss differentiates through."""

    name: str
    type: TensorType
    role: str = "signal"
    place: object = None
    hidden: bool = False


@dataclass
class Own:
    """A rule's own state: where it belongs below the rule, its type, and how it begins."""

    path: str
    type: TensorType
    init: A.Expr | None
    scope: Scope
    span: Span


@dataclass
class Operand:
    """An operand of a rule's function: first what it sees, then what it is given, arguments, its own state, a key.
    role: signal | param | capture | given | arg | own | key; `ref` its name, or an own's number."""

    role: str
    ref: object
    value: Value
    hidden: bool = False


@dataclass
class RuleFunction:
    """An elaborated rule: the function, what its operands are, which of them its results replace."""

    name: str
    operands: list[Operand]
    owns: list[Own]
    writes: list[int]
    types: list[TensorType]
    functions: dict[str, FnValue]
    scope: Scope
    base: Scope
    cells: dict[str, Cell]                  # parameters by path, own state by path: what the rule's scope binds
    forward: dict | None = None
    keep: tuple = ()


@dataclass
class RuleContext:
    """What the statements inside a rule's body work on."""

    use: RuleUse
    sig: Signature
    frame: Frame
    cells: dict[str, Cell] = field(default_factory=dict)       # "w" -> its cell, "own m" -> its cell
    owns: dict[Cell, Own] = field(default_factory=dict)
    params: list[Cell] = field(default_factory=list)           # in the order in which they were seen
    functions: dict[str, FnValue] = field(default_factory=dict)
    local: object = None                                       # LocalForward of the layer, for a local loss
    paths: set[str] = field(default_factory=set)
    uses_local: bool = False


# ---- uses -------------------------------------------------------------------------------------------------------------

def evaluate_rule(el: Elaborator, node: A.Expr, scope: Scope) -> RuleUse:
    """The rule and arguments that `by` or `using` names."""
    target = node.func if isinstance(node, A.Call) else node
    if isinstance(target, A.Name) and scope.lookup(target.id) is MISSING:
        names = Scope(None, {n: None for n in scope.all_names() if isinstance(_peek(scope, n), RuleValue)})
        raise not_found(target.id, target.span, names, "rule")
    rule = el.value(target, scope)
    if not isinstance(rule, RuleValue):
        el.fail(target.span, f"expected a learning rule, got {describe(rule)}",
                hint="optimisers and rules are declared with `rule`; the library has sgd, adam, adamw, hebb, three_factor ...")
    args = evaluate_args(el, node.args, scope) if isinstance(node, A.Call) else CallArgs()
    return RuleUse(rule, args, node.span)


def _peek(scope: Scope, name: str) -> object:
    """The value of a name; what fails to evaluate is no rule."""
    from ..compiler.diagnostics import CompileError
    try:
        return scope.lookup(name)
    except CompileError:
        return None


def seen_text(s: A.Signal) -> str:
    return ".".join(s.path)


# ---- elaboration ------------------------------------------------------------------------------------------------------

def rule_function(el: Elaborator, use: RuleUse, sees: list[Seen], given: list[tuple[A.Signal, object, Span]], label: str,
                  span: Span, local=None) -> tuple[RuleFunction, list[Value]]:
    """The function of a rule for operands of these types, and the tensors among arguments and given signals (in operand order)."""
    leaves: list[Value] = []
    bound = bind_params(el, f"rule `{use.name}`", use.rule.decl.params, use.args, use.span, use.rule.decl.name_span)
    for p, v, at in bound:
        if captures_tensors(v):
            el.fail(at, f"argument `{p.name}` of rule `{use.name}` is {'a layer' if isinstance(v, LayerInstance) else 'a function that uses run-time values'}",
                    hint="pass the values themselves as arguments")
    keys = [abstract(el, v, leaves, []) for _, v, _ in bound]
    values: list[Value] = []
    given_keys = [abstract(el, v, values, []) for _, v, _ in given]
    key = ("rule", id(use.rule.decl), id(use.rule.scope), tuple(keys), tuple(given_keys), local.key if local is not None else None,
           tuple((s.name, s.role, s.hidden, s.type) for s in sees))
    made = el.memo.get(key)
    if made is None:
        before = len(el.diags.errors)
        made = _elaborate(el, use, bound, sees, given, label, span, local)
        if len(el.diags.errors) > before:
            raise Poisoned
        el.memo[key] = made
    return made, [*values, *leaves]


def captures_tensors(v: object) -> bool:
    return isinstance(v, FnValue | LayerInstance | Transform) and captures(v) or isinstance(v, list | tuple) and any(map(captures_tensors, v))


def _elaborate(el, use: RuleUse, bound, sees: list[Seen], given, label: str, span: Span, local) -> RuleFunction:
    decl = use.rule.decl
    frame = Frame(f"rule.{use.name}.{label}" if label else f"rule.{use.name}", training=True)
    base = use.rule.scope
    scope = Scope(base)
    scope.names.update({n: f for n, f in RULE_FUNCTIONS.items() if base.lookup(n) is MISSING})
    sig = Signature(el, scope)
    cx = RuleContext(use, sig, frame, local=local)
    declared = {seen_text(s): s for s in decl.sees}
    operands: list[Operand] = []

    def operand(role: str, ref: object, v: Value) -> Value:
        operands.append(Operand(role, ref, v))
        return v

    outer_frame, el.frame = el.frame, frame
    outer_statements, el.statements = el.statements, RULE_STATEMENTS
    outer_rule, el.rule = el.rule, cx
    if len(el.active) >= MAX_CALLS or any(k == id(decl) for k, _, _ in el.active):
        el.frame, el.statements, el.rule = outer_frame, outer_statements, outer_rule
        el.fail(span, f"rule `{use.name}` uses itself")
    el.active.append((id(decl), f"rule {use.name}", span))
    before = len(el.diags.items)
    try:
        for p, v, _ in bound:                                      # numbers first: they can be sizes in the types of signals
            if v is not MISSING and p.type is None and not _holds_values(v):
                scope.bind(p.name, v, p.span)
        for s in sees:
            v = operand(s.role, s.name, Value(s.type, frame.block, s.name))
            seen: object = v
            if s.role == "param":
                seen = Cell(s.name, v.type, "param", declared[s.name].span if s.name in declared else None)
                frame.arg_cells[seen] = v
                cx.params.append(seen)
                cx.cells[s.name] = seen
            if s.hidden:
                operands[-1].hidden = True
                continue
            bind_dotted(scope, s.name, seen)
            t = declared[s.name].type if s.name in declared else None
            if t is not None:
                sig.match(t, v, declared[s.name].span, f"`{s.name}`, which rule `{use.name}` sees,")
        tensors: list[Value] = []
        for signal, v, at in given:
            name = seen_text(signal)
            v = rebuild(v, frame, tensors, name)
            for t in tensors:
                operand("given", name, t)
            tensors.clear()
            if signal.type is not None:
                classes_wanted(el, signal, v, at, use)
                v = sig.match(signal.type, v, at, f"`{name}`, given to rule `{use.name}`,")
            elif is_weak(v):
                v = as_tensor(el.b(at), v)
            scope.bind(name, v, signal.span)
        for p, v, at in bound:
            if v is MISSING:
                v = el.value(p.default, Scope(scope))
            else:
                v = rebuild(v, frame, tensors, p.name)
                for t in tensors:
                    operand("arg", p.name, t)
                tensors.clear()
            if p.type is not None:
                v = sig.match(p.type, v, at, f"argument `{p.name}` of rule `{use.name}`", broadcast=True)
            scope.bind(p.name, v, p.span)
        sig.settle()
        for name, n in sig.dims.items():
            scope.names.setdefault(name, n)
        inner = scope
        for item in decl.items:
            inner, _ = el.step(item, inner)
    except CompileError as e:
        el.diags.extend(e)
        raise Poisoned from None
    finally:
        el.frame, el.statements, el.rule = outer_frame, outer_statements, outer_rule
        el.active.pop()
        place_rule_errors(el, use, before, span)
    return _finish(el, cx, operands, inner, base, span)


def _finish(el, cx: RuleContext, operands: list[Operand], scope: Scope, base: Scope, span: Span) -> RuleFunction:
    frame, decl = cx.frame, cx.use.rule.decl
    if not cx.uses_local:                                           # what a local loss would have needed
        operands = [o for o in operands if not o.hidden]
        visible = {id(o.value) for o in operands}
        cx.params = [c for c in cx.params if id(frame.arg_cells[c]) in visible]
    owns: list[Own] = []
    index: dict[Cell, int] = {}
    for k, o in enumerate(operands):
        if o.role == "param":
            index[cx.params[len(index)]] = k
    for cell, own in cx.owns.items():                              # own state that nothing uses is not made
        v = frame.arg_cells.get(cell)
        if v is None and cell in frame.cells:
            v = frame.take_argument(cell, own.type, cell.name)
        if v is not None:
            index[cell] = len(operands)
            operands.append(Operand("own", len(owns), v))
            owns.append(own)
    if frame.key_is_argument:
        operands.append(Operand("key", None, frame.key))
    cells = {c: i for c, i in index.items() if c in frame.cells and frame.cells[c] is not frame.arg_cells.get(c)}
    if not cells and not el.diags.errors:
        el.diags.error(decl.name_span, f"rule `{decl.name}` changes nothing",
                       hint="a rule writes parameters that it sees, `w += ...`, or minimizes a local loss")
    results = [frame.cells[c] for c in cells]
    if el.diags.errors:
        raise Poisoned
    func = make_func(el, frame, frame.name, [o.value for o in operands], results, decl.name_span)
    forward = cx.local.describe(operands) if cx.uses_local else None
    named = dict(cx.cells) | {f"own {o.path}": c for c, o in cx.owns.items() if c in index}
    return RuleFunction(func.name, operands, owns, list(cells.values()), func.result_types, cx.functions, scope, base, named,
                        forward, (cx.use.rule.decl, cx))


def bind_dotted(scope: Scope, name: str, v: object) -> None:
    """`conv.w` becomes `w` behind the name `conv`."""
    *front, last = name.split(".")
    for part in front:
        inner = scope.names.get(part)
        if not isinstance(inner, Namespace):
            inner = Namespace(part, Scope(None))
            scope.bind(part, inner)
        scope = inner.scope
    scope.bind(last, v)


def classes_wanted(el: Elaborator, signal: A.Signal, v: object, at: Span, use: RuleUse) -> None:
    """Class numbers where a one-hot target is wanted: a common slip."""
    t = signal.type
    if isinstance(v, Value) and v.type.dtype.is_int and isinstance(t, A.TensorType) and t.dims and len(t.dims) == v.type.rank + 1 \
            and t.name in ("f32", "f64", "float"):
        el.fail(at, f"`{seen_text(signal)}`, given to rule `{use.name}`, is {describe(v)}, expected {source_text(t)}",
                hint=f"class numbers become such a target by `one_hot({source_text_at(at)}, classes)`", notes=[(signal.span, "declared here")])


def source_text_at(at: Span) -> str:
    line = Source.line(at.file, at.line)
    return line[at.col - 1:at.end_col - 1] if line and at.line == at.end_line else "labels"


def _holds_values(v: object) -> bool:
    return isinstance(v, Value) or isinstance(v, tuple | list) and any(map(_holds_values, v))


def place_rule_errors(el, use: RuleUse, before: int, span: Span) -> None:
    """Errors inside a rule say which use led to them; for a rule of the library, they are shown at the use."""
    decl = use.rule.decl.span
    std = use.rule.decl.span.file.startswith("std/") and not span.file.startswith("std/")
    items = el.diags.items
    for k in range(before, len(items)):
        d = items[k]
        if std and d.span is not None and d.span.file.startswith("std/"):
            items[k] = Diagnostic(d.severity, span, f"in rule `{use.name}`: {d.message}",
                                  [(d.span, "here in the library"), *[(None, text) for _, text in d.notes]], None, d.hint)
        elif not std and d.span is not None and d.span.file == decl.file and decl.line <= d.span.line <= decl.end_line \
                and not any("used here" in text for _, text in d.notes):
            d.notes.append((span, f"rule `{use.name}` is used here"))


# ---- own state and functions ------------------------------------------------------------------------------------------

def declared_type(el: Elaborator, sig: Signature, t: A.Type, scope: Scope) -> TensorType:
    """The type that `own`, `state` wrote, all sizes known."""
    if not isinstance(t, A.TensorType):
        el.fail(t.span, "expected a tensor type such as f32[B, 10]")
    s = Signature(el, scope)
    s.dims, s.packs, s.dtypes, s.origins = dict(sig.dims), dict(sig.packs), dict(sig.dtypes), sig.origins
    dtype = s.dtype(t, None)
    if dtype is None:
        el.fail(t.span, "expected a tensor type, got a layer")
    try:
        return TensorType(dtype, s.shape(t.dims or []))
    except Unknown as u:
        known = scope.lookup(u.name)
        if known is not MISSING:
            el.fail(t.span, f"`{u.name}` is {describe(known)}, so it cannot be a size", hint="a size is a whole number known when compiling")
        near = did_you_mean(u.name, [*s.dims, *scope.names])
        el.fail(t.span, f"size `{u.name}` is not known here", hint=f"did you mean `{near}`?" if near else
                "sizes are numbers, arguments, and names in the types of signals")


@rule_statement(A.StateDecl)
def own_statement(el: Elaborator, s: A.StateDecl, scope: Scope) -> None:
    """`own m: f32[classes, n] = normal(0, 1)`"""
    cx = el.rule
    scope.bind(s.name, POISON, s.name_span)                        # should it be wrong, uses of it are not wrong as well
    t = declared_type(el, cx.sig, s.type, scope)
    if s.init is not None:
        for node in A.walk(s.init):
            if isinstance(node, A.Name):
                v = scope.lookup(node.id)
                if isinstance(v, Value | Cell):
                    el.fail(node.span, f"`{node.id}` is not known when the rule's state begins",
                            hint="an initial value may use arguments and sizes, not signals")
    cell = Cell(s.name, t, "own", s.name_span)
    add_own(el, cx, cell, Own(s.name, t, s.init, scope, s.name_span))
    scope.bind(s.name, cell, s.name_span)


def add_own(el: Elaborator, cx: RuleContext, cell: Cell, own: Own) -> None:
    """Notes a cell of the rule's own; a path that is taken gets a number."""
    base, k = own.path, 1
    while own.path in cx.paths:
        k += 1
        own.path = f"{base}{k}"
    cx.paths.add(own.path)
    cx.owns[cell] = own


@rule_statement(A.FnDef)
def function_statement(el: Elaborator, s: A.FnDef, scope: Scope) -> None:
    """`fn readout(h) { h @ m.T }`"""
    f = FnValue(s, scope, s.name)
    f.inline = True
    el.rule.functions[s.name] = f
    scope.bind(s.name, f, s.name_span)


def outside_view(rule: RuleFunction, cells: dict[Cell, Cell]) -> Namespace:
    """A rule's functions and own state as seen from outside, `model.c1.three_factor.readout(h)`; `cells` maps the function's
    cells to the places of this application."""
    decl, cx = rule.keep
    lasting = [s.type for s in decl.sees if seen_text(s) in cx.cells] + [i.type for i in decl.items if isinstance(i, A.StateDecl)]
    known = {n.id for t in lasting if t is not None for n in A.walk(t) if isinstance(n, A.Name)}
    free = {n for n in cx.sig.dims if n not in known}          # sizes of signals, such as the batch: another call has others
    scope = Scope(rule.base)
    done: dict[int, FnValue] = {}

    def outside(v: object) -> object:
        if isinstance(v, Cell):
            return cells.get(v, MISSING)
        if isinstance(v, FnValue) and v.inline:
            if id(v) not in done:
                done[id(v)] = f = FnValue(v.decl, scope, v.name)
                f.inline = True
            return done[id(v)]
        return MISSING if _holds_values(v) or v is POISON else v

    chain = []
    s = rule.scope
    while s is not None and s is not rule.base:
        chain.append(s)
        s = s.parent
    for s in reversed(chain):
        for name, v in s.names.items():
            v = outside(v)
            if v is not MISSING and not (name in free and v == cx.sig.dims[name]):
                scope.bind(name, v, s.spans.get(name))
    shown = {n: outside(f) for n, f in rule.functions.items()}
    shown |= {o.path: cells[c] for o, c in ((o, rule.cells.get(f"own {o.path}")) for o in rule.owns) if c in cells}
    return Namespace(decl.name, Scope(None, shown))


def initial_value(el: Elaborator, t: TensorType, init: A.Expr | None, scope: Scope, span: Span, what: str) -> Value:
    """The value that state of this type begins with, emitted into the current function."""
    frame = el.frame
    if init is None:
        return frame.b.zeros(t)
    outer, frame.expected = frame.expected, t
    try:
        v = el.value(init, scope)
    finally:
        frame.expected = outer
    return fit(el, v, t, init.span, what, span)
