"""The syntax tree of a `.nn` program: one class per construct, each with the span of its text.

Nodes hold what was written and nothing that is worked out later (no types, no resolved names).  Comparing two nodes with
`==` ignores where they stand, so the formatter's promise "same program" is plain equality of trees.

Conventions: `span` comes first in every constructor; lists are Python lists, never None; an absent part is None.
Parentheses do not make a node: they widen the span of what they hold and set its `parens`.
"""
from __future__ import annotations

from ..compiler.diagnostics import Span
from .nodes import Node, children, dump, field_names, flag, node, place, walk  # noqa: F401


@node
class Expr(Node):
    parens: bool = flag()       # written in parentheses: `(a + b)`


@node
class Stmt(Node):
    pass


@node
class Type(Node):
    pass


@node
class Pattern(Node):
    pass


# ---- the file ----------------------------------------------------------------------------------------------------

@node
class Module(Node):
    """A whole file.  Items: Import, FnDef, Layer, Rule, Train, Run, Let."""
    file: str = place()
    items: list[Node]


@node
class Import(Node):
    """`import "std/nn.nn" as nn`"""
    path: str
    alias: str | None
    path_span: Span = place()


@node
class Param(Node):
    """`name: type = default`, of a function, layer or rule."""
    name: str
    type: Type | None
    default: Expr | None


@node
class FnDef(Node):
    """`fn name(params) -> result { body }`; a layer's unnamed `fn` (what calling the layer does) has name None."""
    name: str | None
    params: list[Param]
    result: Type | None
    body: Block
    name_span: Span = place()                                          # of `fn` where there is no name


@node
class Layer(Node):
    """`layer Name(params) { items }`.  Items: ParamDecl, SubLayer, StateDecl, Let, Assert, FnDef, Names, LayerIf."""
    name: str
    params: list[Param]
    items: list[Node]
    name_span: Span = place()


@node
class Rule(Node):
    """`[nonlocal] rule name(params) sees ... given ... { items }`.  Items: StateDecl (own), FnDef, statements."""
    name: str
    params: list[Param]
    sees: list[Signal]
    given: list[Signal]
    items: list[Node]
    nonlocal_: bool
    name_span: Span = place()


@node
class Train(Node):
    """`train name { items }`.  Items: StateDecl (state), Phase, Until, statements (a setting is an Assign)."""
    name: str
    items: list[Node]
    name_span: Span = place()


@node
class Run(Node):
    """`run name { statements }`"""
    name: str
    stmts: list[Node]
    name_span: Span = place()


# ---- inside layers, rules and train blocks -----------------------------------------------------------------------

@node
class ParamDecl(Node):
    """`param w: f32[i, o] = init`: trainable."""
    name: str
    type: Type
    init: Expr | None
    name_span: Span = place()


@node
class SubLayer(Node):
    """`hidden = Linear(i, h)`"""
    name: str
    value: Expr
    name_span: Span = place()


@node
class StateDecl(Node):
    """`state x: T = init` (layer or train), `cache x: T = init` (layer), `own x: T = init` (rule)."""
    kind: str                                                           # "state" | "cache" | "own"
    name: str
    type: Type
    init: Expr | None
    name_span: Span = place()


@node
class Names(Node):
    """`names { w.T = "weight"; ... }`: how a checkpoint calls the layer's paths."""
    keys: list[NameKey]


@node
class NameKey(Node):
    """`path = "key" | "or this one"`.  The path is a Name, Attr or Index; the name `_` lists keys to ignore."""
    path: Expr
    keys: list[str]


@node
class LayerIf(Node):
    """`if cond { layer items } else { layer items }`; `else if` is an orelse of one LayerIf."""
    cond: Expr
    then: list[Node]
    orelse: list[Node] | None


@node
class Signal(Node):
    """What a rule sees or is given: `pre: f32[B, i]`, `conv.w`."""
    path: tuple[str, ...]
    type: Type | None


@node
class Phase(Node):
    """`phase name { items }` of a train block."""
    name: str
    items: list[Node]
    name_span: Span = place()


@node
class Until(Node):
    """`until cond`: ends a phase or the training early."""
    cond: Expr


# ---- statements --------------------------------------------------------------------------------------------------

@node
class Let(Stmt):
    """`let pattern: type = value`; `let a, b = ...` has a TuplePattern."""
    pattern: Pattern
    type: Type | None
    value: Expr


@node
class Assign(Stmt):
    """`target op value`, op one of = += -= *= /= //= %= **= @= &= |= ^=; the target is a postfix expression."""
    target: Expr
    op: str
    value: Expr
    op_span: Span = place()


@node
class Yield(Stmt):
    value: Expr


@node
class Assert(Stmt):
    cond: Expr
    message: str | None


@node
class Learn(Stmt):
    """`learn target by rule given args`"""
    target: Expr
    rule: Expr
    given: list[Arg]


@node
class Objective(Node):
    """One `wrt x using optimiser` of a minimize."""
    wrt: Expr | None
    using: Expr


@node
class Minimize(Stmt):
    """`minimize loss [wrt x] using optimiser, ...`"""
    loss: Expr
    objectives: list[Objective]


@node
class Measure(Stmt):
    """`measure [name =] value`"""
    name: str | None
    value: Expr


@node
class ExprStmt(Stmt):
    value: Expr


# ---- patterns and types ------------------------------------------------------------------------------------------

@node
class NamePattern(Pattern):
    """A name to bind; `_` binds nothing."""
    name: str


@node
class TuplePattern(Pattern):
    items: list[Pattern]


@node
class TensorType(Type):
    """`f32[B, 3*d]`, `i64`, `key`, `Mlp`, `weight[i, o]`, `pow2(7)[i, o]`: a name, arguments, dimensions.
    `dims` is None without brackets (`i64`) and empty for `f32[]`; a dim is an Expr or a Pack."""
    name: str                                                           # dotted, `nn.Linear`
    args: list[Arg] | None
    dims: list[Expr] | None


@node
class FnType(Type):
    """`fn(f32) -> f32`"""
    params: list[Type]
    result: Type | None


@node
class TupleType(Type):
    items: list[Type]


# ---- expressions -------------------------------------------------------------------------------------------------

@node
class Name(Expr):
    id: str


@node
class Int(Expr):
    value: int


@node
class Float(Expr):
    value: float


@node
class Str(Expr):
    value: str


@node
class Bool(Expr):
    value: bool


@node
class NoneLit(Expr):
    """`none`"""


@node
class Unary(Expr):
    op: str                                                             # "-" | "+" | "~"
    operand: Expr
    op_span: Span = place()


@node
class Not(Expr):
    operand: Expr
    op_span: Span = place()


@node
class Binary(Expr):
    """op one of + - * / // % @ ** & | ^ << >>"""
    op: str
    left: Expr
    right: Expr
    op_span: Span = place()


@node
class BoolOp(Expr):
    op: str                                                             # "and" | "or"
    left: Expr
    right: Expr
    op_span: Span = place()


@node
class Compare(Expr):
    """`a <= b < c`: operands[k] ops[k] operands[k + 1], all of them."""
    operands: list[Expr]
    ops: list[str]                                                      # == != < <= > >=
    op_spans: list[Span] = place()


@node
class Arg(Node):
    """One argument of a call, positional (name None) or `name = value`."""
    name: str | None
    value: Expr


@node
class Call(Expr):
    func: Expr
    args: list[Arg]

    @property
    def positional(self) -> list[Expr]:
        return [a.value for a in self.args if a.name is None]

    @property
    def keywords(self) -> dict[str, Arg]:
        return {a.name: a for a in self.args if a.name is not None}


@node
class Index(Expr):
    """`value[subscripts]`: each an Expr, Slice, Pack (`..`), IndexIn or Guarded; the last two in index notation."""
    value: Expr
    subscripts: list[Expr]


@node
class Slice(Expr):
    start: Expr | None
    stop: Expr | None
    step: Expr | None


@node
class Pack(Expr):
    """`..` or `..N` in a shape, a subscript or a list."""
    name: str | None


@node
class IndexIn(Expr):
    """`i in 0..n` in index notation."""
    name: str
    iterable: Expr
    name_span: Span = place()


@node
class Guarded(Expr):
    """`r if 0 <= t + r < L` in index notation; index is an Expr or an IndexIn."""
    index: Expr
    cond: Expr


@node
class Attr(Expr):
    value: Expr
    name: str
    name_span: Span = place()


@node
class Tuple(Expr):
    items: list[Expr]


@node
class List(Expr):
    """`[a, b]`; an item is an Expr or a Pack."""
    items: list[Expr]


@node
class Comprehension(Expr):
    """`[element for pattern in iterable if cond]`"""
    element: Expr
    pattern: Pattern
    iterable: Expr
    cond: Expr | None


@node
class Lambda(Expr):
    """`fn (x, g) { ... }`"""
    params: list[Param]
    result: Type | None
    body: Block


@node
class Block(Expr):
    """`{ statements }`"""
    stmts: list[Node]

    @property
    def value(self) -> Expr | None:
        """The last expression, which is the block's value; None when the block ends in another statement."""
        return self.stmts[-1].value if self.stmts and isinstance(self.stmts[-1], ExprStmt) else None


@node
class If(Expr):
    cond: Expr
    then: Block
    orelse: If | Block | None


@node
class Carry(Node):
    """`[final] pattern = init` after `with`."""
    pattern: Pattern
    init: Expr
    final: bool


@node
class While(Expr):
    """`while cond with carries { body }`"""
    cond: Expr
    carries: list[Carry]
    body: Block


@node
class Scan(Expr):
    """`scan pattern in iterable with carries { body }`"""
    pattern: Pattern
    iterable: Expr
    carries: list[Carry]
    body: Block


@node
class Pipe(Expr):
    """`left |> right`"""
    left: Expr
    right: Expr
    op_span: Span = place()


@node
class Range(Expr):
    """`start..stop`"""
    start: Expr
    stop: Expr
    op_span: Span = place()
