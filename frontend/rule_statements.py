"""`learn` and `minimize` inside a rule, the operations that only rules know, and applying an optimiser to one value.

An optimiser is a rule that sees one thing, the parameter, and is given its gradient.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..compiler.diagnostics import CompileError, Span, did_you_mean
from ..compiler.ir import Value
from . import ast as A
from .arguments import evaluate_args
from .elaborator import Elaborator
from .rules import (
    RULE_FUNCTIONS,
    Own,
    RuleUse,
    Seen,
    add_own,
    evaluate_rule,
    rule_function,
    rule_statement,
    seen_text,
)
from .statements import find_cell
from .values import UNIT, Builtin, CallArgs, Cell, Scope, describe, type_text

# ---- given signals ----------------------------------------------------------------------------------------------------

def bind_given(el: Elaborator, use: RuleUse, ca: CallArgs, span: Span) -> list[tuple[A.Signal, object, Span]]:
    """What a rule is given, by position or name."""
    wanted = use.rule.decl.given
    names = [seen_text(s) for s in wanted]
    notes = [(use.rule.decl.name_span, f"rule `{use.name}` is declared here")] if not use.rule.decl.span.file.startswith("std/") else []
    if len(ca.pos) > len(wanted):
        el.fail(ca.spans[len(wanted)], f"rule `{use.name}` is given {len(wanted) or 'nothing'}{f': {chr(44).join(names)}' if names else ''}; "
                f"got {len(ca.pos)} signals", notes=notes)
    for k in ca.kw:
        if k not in names:
            near = did_you_mean(k, names)
            el.fail(ca.kw_spans[k], f"rule `{use.name}` is given no `{k}`",
                    hint=f"did you mean `{near}`?" if near else f"it is given: {', '.join(names) or 'nothing'}", notes=notes)
    out = []
    for i, (s, name) in enumerate(zip(wanted, names)):
        if i < len(ca.pos):
            out.append((s, ca.pos[i], ca.spans[i]))
        elif name in ca.kw:
            out.append((s, ca.kw[name], ca.kw_spans[name]))
        else:
            t = f": {type_of(s)}" if s.type is not None else ""
            el.fail(span, f"rule `{use.name}` needs to be given `{name}`{t}", hint=f"add it to the statement: `given {name} = ...`", notes=notes)
    return out


def type_of(s: A.Signal) -> str:
    from .signature import source_text
    return source_text(s.type)


# ---- optimisers -------------------------------------------------------------------------------------------------------

def optimizer_signal(el: Elaborator, use: RuleUse) -> str:
    """The name by which an optimiser sees its parameter."""
    sees = use.rule.decl.sees
    if len(sees) != 1 or len(sees[0].path) != 1:
        el.fail(use.span, f"rule `{use.name}` is no optimiser: it sees {', '.join(f'`{seen_text(s)}`' for s in sees) or 'nothing'}",
                hint="an optimiser is a rule that sees one parameter `p` and is given its gradient; `learn LAYER by RULE` applies rules of layers")
    return sees[0].path[0]


def apply_optimizer(el: Elaborator, use: RuleUse, p: Value, given: CallArgs, place: Callable[[Own], Cell], span: Span) -> Value:
    """The new value of p; the rule's own state is read from and written to the cells that `place` names."""
    signal = optimizer_signal(el, use)
    bound = bind_given(el, use, given, span)
    fn, leaves = rule_function(el, use, [Seen(signal, p.type, "param")], bound, "", span)
    frame = el.frame
    cells = [place(o) for o in fn.owns]
    operands = [p, *leaves, *[read_cell(frame, c) for c in cells]]
    if fn.operands and fn.operands[-1].role == "key":
        operands.append(el.key(span, draw=False))
    results = el.b(span).op("func.call", operands, {"callee": fn.name, "result_types": list(fn.types)}).results
    new = p
    for k, r in zip(fn.writes, results):
        if fn.operands[k].role == "own":
            frame.write(cells[fn.operands[k].ref], r)
        else:
            new = r
    return new


def read_cell(frame, cell: Cell) -> Value:
    v = frame.value_of(cell)
    return v if v is not None else frame.take_argument(cell, cell.type, cell.name)


# ---- inside rules -----------------------------------------------------------------------------------------------------

def split_given(el: Elaborator, ca: CallArgs, n: int) -> list[CallArgs]:
    """`given (a, b, c)` for n targets: one for each."""
    if n == 1:
        return [ca]

    def parts(v, at):
        if not isinstance(v, tuple | list) or len(v) != n:
            el.fail(at, f"{n} parameters learn here, so `given` needs a tuple of {n}, got {describe(v)}")
        return v

    pos = [parts(v, at) for v, at in zip(ca.pos, ca.spans)]
    kw = {k: parts(v, ca.kw_spans[k]) for k, v in ca.kw.items()}
    return [CallArgs([v[i] for v in pos], ca.spans, {k: v[i] for k, v in kw.items()}, ca.kw_spans) for i in range(n)]


@rule_statement(A.Learn)
def learn_statement(el: Elaborator, s: A.Learn, scope: Scope) -> object:
    """`learn (w, b, m) by sgd(lr) given (gw, gb, gm)`: rules compose."""
    targets = s.target.items if isinstance(s.target, A.Tuple) else [s.target]
    cells = []
    for t in targets:
        cell = find_cell(el, t, scope) if isinstance(t, A.Name | A.Attr) else None
        if cell is None:
            el.fail(t.span, "inside a rule, `learn` changes parameters that the rule sees, or its own state")
        cells.append(cell)
    use = evaluate_rule(el, s.rule, scope)
    given = split_given(el, evaluate_args(el, s.given, scope), len(cells))
    for cell, g in zip(cells, given):
        _apply(el, use, cell, g, s.span)
    return UNIT


def _apply(el: Elaborator, use: RuleUse, cell: Cell, given: CallArgs, span: Span) -> None:
    """An inner rule on one of the outer rule's cells; its state belongs to the outer rule."""
    cx, frame = el.rule, el.frame
    prefix = use.name if len(cx.params) == 1 and cell is cx.params[0] and len(cx.use.rule.decl.sees) == 1 else f"{cell_path(cx, cell)}.{use.name}"

    def place(own: Own) -> Cell:
        inner = Cell(own.path, own.type, "inner", own.span)
        add_own(el, cx, inner, Own(f"{prefix}.{own.path}", own.type, own.init, own.scope, own.span))
        return inner

    frame.write(cell, apply_optimizer(el, use, read_cell(frame, cell), given, place, span))


def cell_path(cx, cell: Cell) -> str:
    return cx.owns[cell].path if cell in cx.owns else cell.name


def scalar_loss(el: Elaborator, node: A.Expr, scope: Scope) -> Value:
    """A value to minimize: one float."""
    v = el.tensor(node, scope)
    if not v.type.dtype.is_float:
        el.fail(node.span, f"what is minimized has to be a float, got {type_text(v.type)}", hint="comparisons and counts have no derivative")
    if v.type.rank:
        if v.type.numel == 1:
            return el.b(node.span).reshape(v, ())
        el.fail(node.span, f"what is minimized has to be one number, got {type_text(v.type)}", hint="`mean(..)` makes one of it")
    return v


def local_variables(el: Elaborator, cells: list[Cell], span: Span) -> list[Value]:
    """What a local loss is differentiated by, and that the rule uses the layer's forward function."""
    cx, frame = el.rule, el.frame
    if cx.local is None:
        el.fail(span, "a local loss needs a layer; this rule is applied to a parameter",
                hint="`learn LAYER by RULE` applies a rule to a layer")
    if isinstance(cx.local, NoForward):
        cx.local.refuse(el, span)
    cx.uses_local = True
    if cx.local.needs_key and frame.key is None:
        el.key(span, draw=False)
    for c in cells:
        if c in cx.params and frame.value_of(c) is not frame.arg_cells.get(c):
            el.fail(span, f"`{c.name}` has been changed already: the layer computed with its value before",
                    hint="a local loss comes first in its rule, writes after it")
    return [read_cell(frame, c) for c in cells]


@dataclass(frozen=True)
class NoForward:
    """Why a layer's forward function cannot be differentiated for a local loss; said when one is needed."""

    error: CompileError
    key: tuple = ("no forward",)

    def refuse(self, el: Elaborator, span: Span) -> None:
        d = self.error.diagnostics[0]
        el.fail(span, d.message, hint=d.hint, notes=d.notes)


@rule_statement(A.Minimize)
def minimize_statement(el: Elaborator, s: A.Minimize, scope: Scope) -> object:
    """A local loss: its derivative with respect to the layer's own parameters and the rule's own state, no further."""
    cx, frame = el.rule, el.frame
    loss = scalar_loss(el, s.loss, scope)
    everything = [c for c in cx.params if c.type.dtype.is_float]
    everything += [c for c in cx.owns if c.kind == "own" and c.type.dtype.is_float and frame.value_of(c) is not None]
    chosen: list[tuple[RuleUse, list[Cell]]] = []
    for o in s.objectives:
        cells = everything
        if o.wrt is not None:
            cells = []
            for t in (o.wrt.items if isinstance(o.wrt, A.Tuple) else [o.wrt]):
                cell = find_cell(el, t, scope) if isinstance(t, A.Name | A.Attr) else None
                if cell is None or cell not in everything:
                    el.fail(t.span, "`wrt` takes parameters that the rule sees, and its own state")
                cells.append(cell)
        chosen.append((evaluate_rule(el, o.using, scope), cells))
    cells = list(dict.fromkeys(c for _, cs in chosen for c in cs))
    variables = local_variables(el, cells, s.span)
    if not cells:
        el.fail(s.loss.span, "nothing here can learn: the layer has no parameters and the rule no state of its own")
    grads = el.b(s.span).op("learn.local_gradient", [loss, *variables]).results
    table = dict(zip(cells, grads))
    for use, cs in chosen:
        for c in cs:
            _apply(el, use, c, CallArgs.of([table[c]], s.span), s.span)
    return UNIT


# ---- operations that only rules know ------------------------------------------------------------------------------------

def rule_function_named(f: Callable) -> Callable:
    RULE_FUNCTIONS[f.__name__] = Builtin(f.__name__, f)
    return f


@rule_function_named
def local_gradient(cx, value, w):
    """The derivative of a number by a parameter of the layer, through the layer's own function; its input is constant."""
    value = cx.float(value, "value")
    if value.type.rank:
        cx.fail(f"`local_gradient` needs one number, got {type_text(value.type)}", "value", hint="`sum(..)` makes one of it")
    rule, frame = cx.el.rule, cx.el.frame
    if rule is None or rule.frame is not frame or frame.depth:
        cx.fail("`local_gradient` stands in a rule itself, not in a branch, a loop or a function that it calls")
    cell = next((c for c in [*rule.params, *rule.owns] if w is not None and frame.value_of(c) is w), None)
    if cell is None:
        cx.fail("`local_gradient` is taken by a parameter that the rule sees, or by its own state", "w")
    return cx.b.op("learn.local_gradient", [value, *local_variables(cx.el, [cell], cx.span)]).result


@rule_function_named
def hebbian(cx, pre, y, u, w):
    """What Hebb's rule learns where the units' part is y: the sum over samples of y times what w meets in u, in the shape of w.
    For u = pre @ w that is pre.T @ y (over all leading dims); for any other map, such as a convolution, local_gradient(sum(y * u), w), y constant."""
    pre, y, u, w = cx.float(pre, "pre"), cx.float(y, "y"), cx.float(u, "u"), cx.float(w, "w")
    if y.type.shape != u.type.shape:
        cx.fail(f"`y` is {type_text(y.type)}, expected one number for each of `u`: {type_text(u.type)}", "y")
    b, rows, cols = cx.b, pre.type.shape[-1:], u.type.shape[-1:]
    if w.type.rank == 2 and pre.type.rank >= 2 and pre.type.shape[:-1] == u.type.shape[:-1] and rows + cols == w.type.shape:
        pre, y = (b.reshape(v, (v.type.numel // v.type.shape[-1], v.type.shape[-1])) for v in (pre, y))
        return cx.op("tensor.dot_general", [pre, y], {"lhs_batch": [], "rhs_batch": [], "lhs_contract": [0], "rhs_contract": [0]})
    product = b.mul(cx.op("tensor.stop_gradient", [y]), u)
    return local_gradient(cx, b.sum(product, range(product.type.rank)), w)
