"""The syntax tree of a `.nn` program: one class per construct, each with the span of its text.

Nodes hold what was written and nothing that is worked out later (no types, no resolved names).  Comparing two nodes with
`==` ignores where they stand, so the formatter's promise "same program" is plain equality of trees.

Conventions: `span` comes first in every constructor; lists are Python lists, never None; an absent part is None.
Parentheses do not make a node: they widen the span of what they hold and set its `parens`.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from ..compiler.diagnostics import Span


@dataclass(slots=True)
class Node:
    span: Span = field(compare=False, repr=False)


def _place() -> Span:
    """A field for the span of a part (an operator, a name) that has no node of its own."""
    return field(compare=False, repr=False)


@dataclass(slots=True)
class Expr(Node):
    parens: bool = field(default=False, kw_only=True, repr=False)       # written in parentheses: `(a + b)`


@dataclass(slots=True)
class Stmt(Node):
    pass


@dataclass(slots=True)
class Type(Node):
    pass


@dataclass(slots=True)
class Pattern(Node):
    pass


# ---- the file ----------------------------------------------------------------------------------------------------

@dataclass(slots=True)
class Module(Node):
    """A whole file.  Items: Import, FnDef, Layer, Rule, Train, Run, Let."""
    file: str = field(compare=False)
    items: list[Node]


@dataclass(slots=True)
class Import(Node):
    """`import "std/nn.nn" as nn`"""
    path: str
    alias: str | None
    path_span: Span = _place()


@dataclass(slots=True)
class Param(Node):
    """`name: type = default`, of a function, layer or rule."""
    name: str
    type: Type | None
    default: Expr | None


@dataclass(slots=True)
class FnDef(Node):
    """`fn name(params) -> result { body }`; a layer's unnamed `fn` (what calling the layer does) has name None."""
    name: str | None
    params: list[Param]
    result: Type | None
    body: Block
    name_span: Span = _place()                                          # of `fn` where there is no name


@dataclass(slots=True)
class Layer(Node):
    """`layer Name(params) { items }`.  Items: ParamDecl, SubLayer, StateDecl, Let, Assert, FnDef, Names, LayerIf."""
    name: str
    params: list[Param]
    items: list[Node]
    name_span: Span = _place()


@dataclass(slots=True)
class Rule(Node):
    """`[nonlocal] rule name(params) sees ... given ... { items }`.  Items: StateDecl (own), FnDef, statements."""
    name: str
    params: list[Param]
    sees: list[Signal]
    given: list[Signal]
    items: list[Node]
    nonlocal_: bool
    name_span: Span = _place()


@dataclass(slots=True)
class Train(Node):
    """`train name { items }`.  Items: StateDecl (state), Phase, Until, statements (a setting is an Assign)."""
    name: str
    items: list[Node]
    name_span: Span = _place()


@dataclass(slots=True)
class Run(Node):
    """`run name { statements }`"""
    name: str
    stmts: list[Node]
    name_span: Span = _place()


# ---- inside layers, rules and train blocks -----------------------------------------------------------------------

@dataclass(slots=True)
class ParamDecl(Node):
    """`param w: f32[i, o] = init`: trainable."""
    name: str
    type: Type
    init: Expr | None
    name_span: Span = _place()


@dataclass(slots=True)
class SubLayer(Node):
    """`hidden = Linear(i, h)`"""
    name: str
    value: Expr
    name_span: Span = _place()


@dataclass(slots=True)
class StateDecl(Node):
    """`state x: T = init` (layer or train), `cache x: T = init` (layer), `own x: T = init` (rule)."""
    kind: str                                                           # "state" | "cache" | "own"
    name: str
    type: Type
    init: Expr | None
    name_span: Span = _place()


@dataclass(slots=True)
class Names(Node):
    """`names { w.T = "weight"; ... }`: how a checkpoint calls the layer's paths."""
    keys: list[NameKey]


@dataclass(slots=True)
class NameKey(Node):
    """`path = "key" | "or this one"`.  The path is a Name, Attr or Index; the name `_` lists keys to ignore."""
    path: Expr
    keys: list[str]


@dataclass(slots=True)
class LayerIf(Node):
    """`if cond { layer items } else { layer items }`; `else if` is an orelse of one LayerIf."""
    cond: Expr
    then: list[Node]
    orelse: list[Node] | None


@dataclass(slots=True)
class Signal(Node):
    """What a rule sees or is given: `pre: f32[B, i]`, `conv.w`."""
    path: tuple[str, ...]
    type: Type | None


@dataclass(slots=True)
class Phase(Node):
    """`phase name { items }` of a train block."""
    name: str
    items: list[Node]
    name_span: Span = _place()


@dataclass(slots=True)
class Until(Node):
    """`until cond`: ends a phase or the training early."""
    cond: Expr


# ---- statements --------------------------------------------------------------------------------------------------

@dataclass(slots=True)
class Let(Stmt):
    """`let pattern: type = value`; `let a, b = ...` has a TuplePattern."""
    pattern: Pattern
    type: Type | None
    value: Expr


@dataclass(slots=True)
class Assign(Stmt):
    """`target op value`, op one of = += -= *= /= //= %= **= @= &= |= ^=; the target is a postfix expression."""
    target: Expr
    op: str
    value: Expr
    op_span: Span = _place()


@dataclass(slots=True)
class Yield(Stmt):
    value: Expr


@dataclass(slots=True)
class Assert(Stmt):
    cond: Expr
    message: str | None


@dataclass(slots=True)
class Learn(Stmt):
    """`learn target by rule given args`"""
    target: Expr
    rule: Expr
    given: list[Arg]


@dataclass(slots=True)
class Objective(Node):
    """One `wrt x using optimiser` of a minimize."""
    wrt: Expr | None
    using: Expr


@dataclass(slots=True)
class Minimize(Stmt):
    """`minimize loss [wrt x] using optimiser, ...`"""
    loss: Expr
    objectives: list[Objective]


@dataclass(slots=True)
class Measure(Stmt):
    """`measure [name =] value`"""
    name: str | None
    value: Expr


@dataclass(slots=True)
class ExprStmt(Stmt):
    value: Expr


# ---- patterns and types ------------------------------------------------------------------------------------------

@dataclass(slots=True)
class NamePattern(Pattern):
    """A name to bind; `_` binds nothing."""
    name: str


@dataclass(slots=True)
class TuplePattern(Pattern):
    items: list[Pattern]


@dataclass(slots=True)
class TensorType(Type):
    """`f32[B, 3*d]`, `i64`, `key`, `Mlp`, `weight[i, o]`, `pow2(7)[i, o]`: a name, arguments, dimensions.
    `dims` is None without brackets (`i64`) and empty for `f32[]`; a dim is an Expr or a Pack."""
    name: str                                                           # dotted, `nn.Linear`
    args: list[Arg] | None
    dims: list[Expr] | None


@dataclass(slots=True)
class FnType(Type):
    """`fn(f32) -> f32`"""
    params: list[Type]
    result: Type | None


@dataclass(slots=True)
class TupleType(Type):
    items: list[Type]


# ---- expressions -------------------------------------------------------------------------------------------------

@dataclass(slots=True)
class Name(Expr):
    id: str


@dataclass(slots=True)
class Int(Expr):
    value: int


@dataclass(slots=True)
class Float(Expr):
    value: float


@dataclass(slots=True)
class Str(Expr):
    value: str


@dataclass(slots=True)
class Bool(Expr):
    value: bool


@dataclass(slots=True)
class NoneLit(Expr):
    """`none`"""


@dataclass(slots=True)
class Unary(Expr):
    op: str                                                             # "-" | "+" | "~"
    operand: Expr
    op_span: Span = _place()


@dataclass(slots=True)
class Not(Expr):
    operand: Expr
    op_span: Span = _place()


@dataclass(slots=True)
class Binary(Expr):
    """op one of + - * / // % @ ** & | ^ << >>"""
    op: str
    left: Expr
    right: Expr
    op_span: Span = _place()


@dataclass(slots=True)
class BoolOp(Expr):
    op: str                                                             # "and" | "or"
    left: Expr
    right: Expr
    op_span: Span = _place()


@dataclass(slots=True)
class Compare(Expr):
    """`a <= b < c`: operands[k] ops[k] operands[k + 1], all of them."""
    operands: list[Expr]
    ops: list[str]                                                      # == != < <= > >=
    op_spans: list[Span] = _place()


@dataclass(slots=True)
class Arg(Node):
    """One argument of a call, positional (name None) or `name = value`."""
    name: str | None
    value: Expr


@dataclass(slots=True)
class Call(Expr):
    func: Expr
    args: list[Arg]

    @property
    def positional(self) -> list[Expr]:
        return [a.value for a in self.args if a.name is None]

    @property
    def keywords(self) -> dict[str, Arg]:
        return {a.name: a for a in self.args if a.name is not None}


@dataclass(slots=True)
class Index(Expr):
    """`value[subscripts]`: each an Expr, Slice, Pack (`..`), IndexIn or Guarded; the last two in index notation."""
    value: Expr
    subscripts: list[Expr]


@dataclass(slots=True)
class Slice(Expr):
    start: Expr | None
    stop: Expr | None
    step: Expr | None


@dataclass(slots=True)
class Pack(Expr):
    """`..` or `..N` in a shape, a subscript or a list."""
    name: str | None


@dataclass(slots=True)
class IndexIn(Expr):
    """`i in 0..n` in index notation."""
    name: str
    iterable: Expr
    name_span: Span = _place()


@dataclass(slots=True)
class Guarded(Expr):
    """`r if 0 <= t + r < L` in index notation; index is an Expr or an IndexIn."""
    index: Expr
    cond: Expr


@dataclass(slots=True)
class Attr(Expr):
    value: Expr
    name: str
    name_span: Span = _place()


@dataclass(slots=True)
class Tuple(Expr):
    items: list[Expr]


@dataclass(slots=True)
class List(Expr):
    """`[a, b]`; an item is an Expr or a Pack."""
    items: list[Expr]


@dataclass(slots=True)
class Comprehension(Expr):
    """`[element for pattern in iterable if cond]`"""
    element: Expr
    pattern: Pattern
    iterable: Expr
    cond: Expr | None


@dataclass(slots=True)
class Lambda(Expr):
    """`fn (x, g) { ... }`"""
    params: list[Param]
    result: Type | None
    body: Block


@dataclass(slots=True)
class Block(Expr):
    """`{ statements }`"""
    stmts: list[Node]

    @property
    def value(self) -> Expr | None:
        """The last expression, which is the block's value; None when the block ends in another statement."""
        return self.stmts[-1].value if self.stmts and isinstance(self.stmts[-1], ExprStmt) else None


@dataclass(slots=True)
class If(Expr):
    cond: Expr
    then: Block
    orelse: If | Block | None


@dataclass(slots=True)
class Carry(Node):
    """`[final] pattern = init` after `with`."""
    pattern: Pattern
    init: Expr
    final: bool


@dataclass(slots=True)
class While(Expr):
    """`while cond with carries { body }`"""
    cond: Expr
    carries: list[Carry]
    body: Block


@dataclass(slots=True)
class Scan(Expr):
    """`scan pattern in iterable with carries { body }`"""
    pattern: Pattern
    iterable: Expr
    carries: list[Carry]
    body: Block


@dataclass(slots=True)
class Pipe(Expr):
    """`left |> right`"""
    left: Expr
    right: Expr
    op_span: Span = _place()


@dataclass(slots=True)
class Range(Expr):
    """`start..stop`"""
    start: Expr
    stop: Expr
    op_span: Span = _place()


# ---- looking at trees --------------------------------------------------------------------------------------------

_FIELDS: dict[type, tuple[str, ...]] = {}


def field_names(node: Node) -> tuple[str, ...]:
    """The names of a node's own parts: without spans and `parens`."""
    names = _FIELDS.get(type(node))
    if names is None:
        names = tuple(f.name for f in fields(node) if f.compare and f.name not in ("span", "parens"))
        _FIELDS[type(node)] = names
    return names


def children(node: Node) -> Iterator[Node]:
    """The nodes directly below, in source order."""
    for name in field_names(node):
        value = getattr(node, name)
        if isinstance(value, Node):
            yield value
        elif type(value) is list:
            for item in value:
                if isinstance(item, Node):
                    yield item


def walk(node: Node) -> Iterator[Node]:
    """The node and all below it, parents first, in source order.  No recursion: depth does not matter."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(reversed(list(children(node))))


def dump(node: Node, spans: bool = False) -> str:
    """The tree as an indented s-expression; one line where it fits 100 columns."""
    return _dump(node, 0, spans)


def _dump(value: object, indent: int, spans: bool) -> str:
    if isinstance(value, Node):
        head = type(value).__name__ + (f"@{value.span.line}:{value.span.col}" if spans else "")
        parts = []
        for name in field_names(value):
            part = getattr(value, name)
            if part is None or part is False and name != "value" or (part == [] and name in ("params", "given", "sees", "carries")):
                continue
            if name in _SPLICED:
                parts += [_dump(item, indent + 2, spans) for item in part]
                continue
            text = _dump(part, indent + 2, spans)
            parts.append(text if name in _PLAIN else f":{name} {text}")
        opening, closing = "(" + head, ")"
    elif isinstance(value, list):
        parts = [_dump(v, indent + 2, spans) for v in value]
        opening, closing = "[", "]"
    elif isinstance(value, str):
        return value if value.isidentifier() else '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    elif isinstance(value, tuple):
        return ".".join(value)
    else:
        return str(value).lower() if isinstance(value, bool) else repr(value)
    lead = " " if opening != "[" else ""
    flat = opening + (lead + " ".join(parts) if parts else "") + closing
    if "\n" not in flat and indent + len(flat) <= 100:
        return flat
    pad = "\n" + " " * (indent + 2)
    return opening + pad + pad.join(parts) + closing


# parts that need no label in a dump: their place says what they are
_PLAIN = {"id", "value", "name", "op", "left", "right", "operand", "func", "path", "pattern"}
_SPLICED = {"items", "stmts", "operands", "subscripts"}                # lists whose elements follow without brackets
