"""The elaborator: evaluates syntax trees at compile time and emits IR for what is left to run time.

`Elaborator` holds what one elaboration shares: the module being filled, the memo of functions, diagnostics, the current
frame.  Evaluation itself is in tables filled by the sibling modules: EXPRESSIONS and STATEMENTS map a node class to
`f(el, node, scope)`.  A train block adds statements of its own by passing `statements` (node class -> function).
"""
from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager

from ..compiler import ops  # noqa: F401  (fills the op table)
from ..compiler.diagnostics import CompileError, Diagnostic, Diagnostics, Span, error
from ..compiler.ir import Loc, Module, TensorType, Value
from ..compiler.ir.builder import Builder
from ..compiler.ir.opdef import TypeMismatch
from . import ast as A
from .frame import Frame
from .values import MISSING, POISON, UNIT, Cell, Poisoned, Scope, Slot, Undecidable, describe

EXPRESSIONS: dict[type, Callable] = {}
STATEMENTS: dict[type, Callable] = {}
RECURSION = 30_000           # Python frames: trees are up to 1000 levels deep, a level takes several


def expression(*nodes: type):
    """Registers the evaluation of expression nodes."""
    def add(f):
        for n in nodes:
            EXPRESSIONS[n] = f
        return f
    return add


def statement(*nodes: type):
    """Registers the execution of statement nodes; the function returns the statement's value (UNIT for none)."""
    def add(f):
        for n in nodes:
            STATEMENTS[n] = f
        return f
    return add


class Elaborator:
    """One elaboration: everything that ends up in one IR module.

    `generic`: symbolic dims are checked (`check`); what depends on their sizes is skipped.  `statements`: more statement kinds.
    """

    def __init__(self, *, generic: bool = False, statements: dict[type, Callable] | None = None):
        self.module = Module(attrs={"stage": "nn", "entries": []})
        self.generic = generic
        self.statements = {**STATEMENTS, **statements} if statements else STATEMENTS
        self.diags = Diagnostics()
        self.memo: dict = {}
        self.frame: Frame | None = None
        self.active: list[tuple[object, str, Span]] = []      # functions and layers being elaborated, for recursion
        self.cell_types: dict[Cell, TensorType] = {}          # caches whose dims a call has fixed
        self.notation: list = []                              # brackets of index notation around the current point
        self.result_hint: tuple | None = None                 # (index notation that is a function's result, its declared shape)
        self.guarded_branches = 0                             # `if`s on elements around the current point, in index notation
        self.attribute_hook: Callable | None = None           # (el, value, name, span) -> value | MISSING: more attributes

    # ---- errors ----
    def fail(self, span: Span | None, message: str, **parts):
        """Raises a diagnostic."""
        raise error(span, message, **parts)

    def finish(self) -> None:
        """Raises when anything went wrong."""
        self.diags.raise_if_errors()

    # ---- the current function ----
    def b(self, span: Span) -> Builder:
        """The builder, with its location set."""
        if self.frame is None:
            self.fail(span, "this has to be known when compiling: it cannot run here",
                      hint="sizes, layer arguments and top-level `let`s are computed before anything runs")
        b = self.frame.b
        b.loc = Loc(*span)
        return b

    def op(self, span: Span, name: str, operands=(), attrs: dict | None = None) -> Value:
        """Emits an op with one result; a type error becomes a diagnostic at `span`."""
        try:
            return self.b(span).op(name, operands, attrs).result
        except TypeMismatch as e:
            raise error(span, str(e), hint=e.hint) from None

    @contextmanager
    def in_frame(self, frame: Frame | None):
        """Emits into another function for a while."""
        outer, self.frame = self.frame, frame
        try:
            yield frame
        finally:
            self.frame = outer

    @property
    def training(self) -> bool:
        return self.frame.training if self.frame is not None else False

    def key(self, span: Span, draw: bool = True) -> Value:
        """A key for a draw (or a layer's call: `draw` false) that was given none."""
        if self.frame is None:
            self.b(span)
        key = self.frame.implicit_key(span, draw)
        if key is None:
            self.fail(span, "random numbers need a key here",
                      hint="declare a parameter `key: key` and pass it (`key = key`); callers may leave it out")
        return key

    def use_key(self, key: Value, span: Span) -> None:
        """Notes that a draw or a call takes a key; a second one gets the same random numbers, which is hardly meant."""
        used = self.frame.used_keys
        if key in used:
            self.diags.warn(span, "this key is used a second time: it gives the same random numbers again",
                            hint="`split(key)` makes two keys", notes=[(used[key], "used first here")] if used[key] != span else [])
        used.setdefault(key, span)

    # ---- cells ----
    def cell_type(self, cell: Cell, scope: Scope | None, span: Span) -> TensorType:
        """A cell's type; a cache's unknown dims are taken from the scope of the method that uses it."""
        if cell.type is not None:
            return cell.type
        t = self.cell_types.get(cell)
        if t is None:
            if not isinstance(cell, Slot) or scope is None:
                self.fail(span, f"`{cell.name}` has no value here")
            from .layers import cache_type
            t = self.cell_types[cell] = cache_type(self, cell, scope, span)
        return t

    def read(self, cell: Cell, scope: Scope | None, span: Span) -> Value:
        """The current value of a cell."""
        frame = self.frame
        if frame is None:
            self.fail(span, f"`{cell.name}` is known only when the program runs; a compile-time value is needed here")
        v = frame.value_of(cell)
        if v is None:
            v = frame.take_argument(cell, self.cell_type(cell, scope, span), cell.name)
        if isinstance(cell, Slot) and cell.weight is not None:
            from .quantized import quantize_read
            return quantize_read(self, v, cell.weight, span)
        return v

    # ---- evaluation ----
    def eval(self, node: A.Expr, scope: Scope) -> object:
        """The value of an expression; UNIT where it gives none."""
        f = EXPRESSIONS.get(type(node))
        if f is None:
            self.fail(node.span, "this cannot stand here")
        return f(self, node, scope)

    def value(self, node: A.Expr, scope: Scope) -> object:
        """The value of an expression that has to have one."""
        v = self.eval(node, scope)
        if v is UNIT:
            self.fail(*no_value(node))
        return v

    def tensor(self, node: A.Expr, scope: Scope) -> Value:
        """The value of an expression that has to be a tensor or a number."""
        from .tensors import as_tensor
        v = self.value(node, scope)
        try:
            return as_tensor(self.b(node.span), v)
        except TypeMismatch:
            self.fail(node.span, f"expected a tensor, got {describe(v)}")

    def run_block(self, stmts: list[A.Node], scope: Scope, watch=None) -> object:
        """Executes statements in order in `scope`; the value of the last one.  `watch`: the layer whose fn's body this is."""
        value = UNIT
        last = len(stmts) - 1
        for i, s in enumerate(stmts):
            scope, value = self.step(s, scope, i == last, watch)
        if value is POISON:
            raise Poisoned
        return value

    def step(self, s: A.Node, scope: Scope, last: bool = False, watch=None) -> tuple[Scope, object]:
        """Executes one statement; the scope after it (a `let` that shadows makes a new one) and its value.  An error is recorded,
        and evaluation goes on behind it."""
        f = self.statements.get(type(s))
        if f is None:
            self.diags.error(s.span, MISPLACED.get(type(s), "this statement cannot stand here"))
            return scope, POISON
        if type(s) is A.Let:
            for p in pattern_names(s.pattern):
                if p.name in scope.names:                      # closures made so far keep the old one
                    scope = Scope(scope)
                    break
        frame = self.frame
        effects = frame.effects if frame is not None else 0
        expected = None
        if frame is not None:
            expected = frame.expected
            if not last:
                frame.expected = None
        try:
            value = f(self, s, scope)
            if not last and type(s) is A.ExprStmt and value is not UNIT and (frame is None or frame.effects == effects):
                self.diags.error(s.span, "this value is not used",
                                 hint="bind it with `let`, or remove it; only the last expression of a block is its value")
        except CompileError as e:
            self.diags.extend(e)
            value = POISON
        except Poisoned:
            value = POISON
        finally:
            if frame is not None:
                frame.expected = expected
        if type(s) is A.Let:
            if value is POISON:
                for p in pattern_names(s.pattern):
                    scope.bind(p.name, POISON, p.span)
            elif watch is not None and watch.watched:
                from .layers import note_signals
                note_signals(self, watch, s, scope)
        return scope, value


MISPLACED = {
    A.Yield: "`yield` belongs in the body of a `scan`",
    A.Learn: "`learn` belongs in a train block or a rule",
    A.Minimize: "`minimize` belongs in a train block or a rule",
    A.Measure: "`measure` belongs in a train block",
    A.Assign: "`=` without `let` writes state; there is none here",
}


def no_value(node: A.Expr) -> tuple[Span, str]:
    """Span and message for a block that should give a value and does not."""
    while isinstance(node, A.Block) and node.stmts:
        last = node.stmts[-1]
        if isinstance(last, A.ExprStmt):
            node = last.value
            continue
        what = {A.Let: "`let`", A.Assign: "assignment", A.Assert: "`assert`", A.Yield: "`yield`"}.get(type(last), "statement")
        return last.span, f"a value is expected here, but the block ends in {'an' if what[0] in 'a' else 'a'} {what}"
    if isinstance(node, A.Block):
        return node.span, "a value is expected here, but the block is empty"
    if isinstance(node, A.If) and node.orelse is None:
        return node.span, "an `if` without `else` gives no value"
    return node.span, "this gives no value"


def pattern_names(p: A.Pattern):
    """The NamePatterns of a pattern, left to right."""
    if isinstance(p, A.NamePattern):
        yield p
    else:
        for q in p.items:
            yield from pattern_names(q)


@contextmanager
def deep_recursion():
    """Room for deeply nested programs; a program nested deeper still is the user's mistake."""
    limit = sys.getrecursionlimit()
    if limit < RECURSION:
        sys.setrecursionlimit(RECURSION)
    try:
        yield
    except RecursionError:
        raise CompileError(Diagnostic("error", None, "the program nests too deeply")) from None
    finally:
        sys.setrecursionlimit(limit)


def evaluate_constant(item: A.Let, scope: Scope, path: tuple[int, ...]) -> object:
    """The part of a top-level `let`'s value that one of its names stands for."""
    from . import evaluate  # noqa: F401
    el = Elaborator()
    for name in pattern_names(item.pattern):                   # `let a = a` and circles of lets
        scope.names[name.name] = POISON
    try:
        value = el.value(item.value, scope)
    except Poisoned:
        raise error(item.span, "this `let` is defined in terms of itself") from None
    finally:
        from .program import module_let
        module_let(scope, item)
    el.finish()
    from .statements import unpack
    for i in path:
        value = unpack(el, value, item.pattern, item.span)[i]
    return value


__all__ = ["Elaborator", "EXPRESSIONS", "STATEMENTS", "expression", "statement", "no_value", "pattern_names", "deep_recursion",
           "evaluate_constant", "MISSING", "Undecidable"]
