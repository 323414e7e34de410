"""What each rule of the grammar becomes: one callback per rule, from children to a node of ast.py.

A callback takes the span of the rule's text and its children: tokens (`Tok`, punctuation and keywords included), nodes,
and `Group`s (what list-like rules such as `args` gave).  Optional parts are simply absent.
"""
from __future__ import annotations

import re

from ..compiler.diagnostics import Span, error
from . import ast as A
from .lalr import Tok

MAX_INT = 2**64 - 1
RESERVED = frozenset("let if else while scan fn yield learn minimize measure assert true false none and or not".split())


class Group:
    """The items of a list-like rule, for the rule around it."""

    __slots__ = ("span", "items", "kind")

    def __init__(self, span: Span, items: list, kind: str):
        self.span, self.items, self.kind = span, items, kind


CALLBACKS: dict = {}


def _rule(f):
    CALLBACKS[f.__name__.removeprefix("on_")] = f
    return f


def _nodes(c: list) -> list:
    """The children that are not tokens."""
    return [x for x in c if type(x) is not Tok]


def _pattern(x) -> A.Pattern:
    return A.NamePattern(x.span, bound_name(x)) if type(x) is Tok else x


def bound_name(x: Tok) -> str:
    """A name that is bound here: the reserved words could never be used."""
    if x.text in RESERVED:
        raise error(x.span, f"`{x.text}` is a word of the language, so it cannot be a name")
    return x.text


def _group(c: list, kind: str) -> list:
    for x in c:
        if type(x) is Group and x.kind == kind:
            return x.items
    return []


def _after(c: list, text: str):
    """The child after a token with this text, or None."""
    for k, x in enumerate(c):
        if type(x) is Tok and x.text == text:
            return c[k + 1]
    return None


def _body(c: list) -> list:
    """The statements between the braces of a rule that has exactly one pair."""
    for k, x in enumerate(c):
        if type(x) is Tok and x.type == "LBRACE":
            return _nodes(c[k + 1:])
    return []


def string(tok: Tok) -> str:
    """The value of a string token."""
    body = tok.text[1:-1]
    return body if "\\" not in body else _ESCAPE.sub(lambda m: _unescape(m, tok), body)


_ESCAPE = re.compile(r"\\(?:u\{([0-9a-fA-F]{1,6})\}|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|(.))", re.S)
_SIMPLE = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\\": "\\", '"': '"', "'": "'"}


def _unescape(m: re.Match, tok: Tok) -> str:
    code = m[1] or m[2] or m[3]
    if code:
        value = int(code, 16)
        if value < 0x110000 and not 0xD800 <= value < 0xE000:
            return chr(value)
    elif m[4] in _SIMPLE:
        return _SIMPLE[m[4]]
    col = tok.span.col + 1 + m.start()
    raise error(tok.span._replace(col=col, end_col=col + len(m[0])), f"unknown escape `{m[0]}` in a string",
                hint=r"escapes are \n \t \r \0 \\ \" \xHH \u{H...}; write `\\` for a backslash")


# ---- the file and its items --------------------------------------------------------------------------------------

@_rule
def on_start(s: Span, c: list):
    return A.Module(s, s.file, _nodes(c))


@_rule
def on_import_(s, c):
    return A.Import(s, string(c[1]), c[3].text if len(c) > 2 else None, c[1].span)


@_rule
def on_fn_def(s, c):
    return A.FnDef(s, bound_name(c[1]), _group(c, "params"), _after(c, "->"), c[-1], c[1].span)


@_rule
def on_forward(s, c):
    return A.FnDef(s, None, _group(c, "params"), _after(c, "->"), c[-1], c[0].span)


@_rule
def on_layer(s, c):
    return A.Layer(s, bound_name(c[1]), _group(c, "params"), c[-1].items, c[1].span)


@_rule
def on_rule(s, c):
    at = 1 if c[0].type == "NONLOCAL" else 0
    sees = _after(c, "sees")
    given = _after(c, "given")
    return A.Rule(s, c[at + 1].text, _group(c, "params"), sees.items if sees else [], given.items if given else [],
                  _body(c), at == 1, c[at + 1].span)


@_rule
def on_train(s, c):
    return A.Train(s, c[1].text, c[-1].items, c[1].span)


@_rule
def on_run(s, c):
    return A.Run(s, c[1].text, c[-1].items, c[1].span)


# ---- inside layers, rules and train blocks -----------------------------------------------------------------------

def _block_group(s, c):
    return Group(s, _nodes(c), "block")


CALLBACKS["layer_block"] = CALLBACKS["train_block"] = CALLBACKS["run_block"] = _block_group


@_rule
def on_param_decl(s, c):
    return A.ParamDecl(s, c[1].text, c[3], c[5] if len(c) > 4 else None, c[1].span)


@_rule
def on_sublayer(s, c):
    return A.SubLayer(s, c[0].text, c[2], c[0].span)


@_rule
def on_state(s, c):
    return A.StateDecl(s, c[0].text, c[1].text, c[3], c[5] if len(c) > 4 else None, c[1].span)


CALLBACKS["cache"] = CALLBACKS["own"] = on_state


@_rule
def on_names(s, c):
    return A.Names(s, _nodes(c))


@_rule
def on_key(s, c):
    return A.NameKey(s, c[0], [string(x) for x in c[2:] if x.type == "STRING"])


@_rule
def on_layer_if(s, c):
    orelse = None
    if len(c) > 3:
        orelse = c[4].items if type(c[4]) is Group else [c[4]]
    return A.LayerIf(s, c[1], c[2].items, orelse)


@_rule
def on_signals(s, c):
    return Group(s, _nodes(c), "signals")


@_rule
def on_signal(s, c):
    return A.Signal(s, tuple(c[0].items), c[2] if len(c) > 1 else None)


@_rule
def on_phase(s, c):
    return A.Phase(s, c[1].text, c[2].items, c[1].span)


@_rule
def on_until(s, c):
    return A.Until(s, c[1])


# ---- statements --------------------------------------------------------------------------------------------------

@_rule
def on_block(s, c):
    return A.Block(s, _nodes(c))


@_rule
def on_let(s, c):
    return A.Let(s, c[1], _after(c, ":"), c[-1])


@_rule
def on_assign(s, c):
    return A.Assign(s, c[0], c[1].text, c[2], c[1].span)


@_rule
def on_yield_(s, c):
    return A.Yield(s, c[1])


@_rule
def on_assert_(s, c):
    return A.Assert(s, c[1], string(c[3]) if len(c) > 2 else None)


@_rule
def on_learn(s, c):
    return A.Learn(s, c[1], c[3], _group(c, "args"))


@_rule
def on_minimize(s, c):
    return A.Minimize(s, c[1], _nodes(c[2:]))


@_rule
def on_objective(s, c):
    return A.Objective(s, c[1] if len(c) > 2 else None, c[-1])


@_rule
def on_measure(s, c):
    return A.Measure(s, c[1].text if len(c) > 2 else None, c[-1])


@_rule
def on_expr_stmt(s, c):
    return A.ExprStmt(s, c[0])


# ---- patterns, parameters, types ---------------------------------------------------------------------------------

def _patterns(c: list) -> list[A.Pattern]:
    return [_pattern(x) for x in c if type(x) is not Tok or x.type == "NAME"]


@_rule
def on_patterns(s, c):
    items = _patterns(c)
    return items[0] if len(items) == 1 else A.TuplePattern(s, items)


@_rule
def on_pattern_tuple(s, c):
    items = _patterns(c)
    one = len(items) == 1 and len(c) == 3                    # `(a)` is a, `(a,)` a tuple of one
    return items[0] if one else A.TuplePattern(s, items)


@_rule
def on_params(s, c):
    return Group(s, _nodes(c), "params")


@_rule
def on_param(s, c):
    return A.Param(s, bound_name(c[0]), _after(c, ":"), _after(c, "="))


@_rule
def on_tensor_type(s, c):
    args = dims = None
    for x in c[1:]:
        if type(x) is Tok:
            if x.type == "LPAR":
                args = []
            elif x.type == "LSQB":
                dims = []
        elif x.kind == "args":
            args = x.items
        else:
            dims = x.items
    return A.TensorType(s, ".".join(c[0].items), args, dims)


@_rule
def on_fn_type(s, c):
    return A.FnType(s, _group(c, "types"), _after(c, "->"))


@_rule
def on_tuple_type(s, c):
    return A.TupleType(s, c[1].items)


@_rule
def on_types(s, c):
    return Group(s, _nodes(c), "types")


@_rule
def on_dims(s, c):
    return Group(s, _nodes(c), "dims")


@_rule
def on_dotted(s, c):
    return Group(s, [x.text for x in c if x.type == "NAME"], "dotted")


@_rule
def on_pack(s, c):
    return A.Pack(s, c[1].text if len(c) > 1 else None)


# ---- expressions -------------------------------------------------------------------------------------------------

@_rule
def on_pipe(s, c):
    return A.Pipe(s, c[0], c[2], c[1].span)


@_rule
def on_range(s, c):
    return A.Range(s, c[0], c[2], c[1].span)


def _binary(s, c):
    return A.Binary(s, c[1].text, c[0], c[2], c[1].span)


def _bool_op(s, c):
    return A.BoolOp(s, c[1].text, c[0], c[2], c[1].span)


for _name in ("bitor", "bitxor", "bitand", "shift", "sum", "product", "power"):
    CALLBACKS[_name] = _binary
CALLBACKS["or_"] = CALLBACKS["and_"] = _bool_op


@_rule
def on_not_(s, c):
    return A.Not(s, c[1], c[0].span)


@_rule
def on_compare(s, c):
    signs = c[1::2]
    return A.Compare(s, c[0::2], [t.text for t in signs], [t.span for t in signs])


@_rule
def on_unary(s, c):
    return A.Unary(s, c[0].text, c[1], c[0].span)


@_rule
def on_call(s, c):
    return A.Call(s, c[0], c[2].items if len(c) > 3 else [])


@_rule
def on_index(s, c):
    return A.Index(s, c[0], c[2].items)


@_rule
def on_attr(s, c):
    return A.Attr(s, c[0], c[2].text, c[2].span)


@_rule
def on_args(s, c):
    items, seen = [], {}
    for x in c:
        if type(x) is Tok:
            continue
        if type(x) is not A.Arg:
            if seen:
                last = list(seen.values())[-1]
                raise error(x.span, "a positional argument cannot follow a named one", marks=[(last.span, None)])
            x = A.Arg(x.span, None, x)
        elif x.name in seen:
            raise error(x.span, f"argument `{x.name}` is given twice", marks=[(seen[x.name].span, None)])
        else:
            seen[x.name] = x
        items.append(x)
    return Group(s, items, "args")


@_rule
def on_kwarg(s, c):
    return A.Arg(s, c[0].text, c[2])


@_rule
def on_subscripts(s, c):
    return Group(s, _nodes(c), "subscripts")


@_rule
def on_guarded(s, c):
    return A.Guarded(s, c[0], c[2])


@_rule
def on_slice(s, c):
    parts, at = [None, None, None], 0
    for x in c:
        if type(x) is Tok:
            at += 1
        else:
            parts[at] = x
    return A.Slice(s, *parts)


@_rule
def on_index_in(s, c):
    return A.IndexIn(s, c[0].text, c[2], c[0].span)


@_rule
def on_name(s, c):
    return A.Name(s, c[0].text)


@_rule
def on_float(s, c):
    value = float(c[0].text.replace("_", ""))
    if value in (float("inf"), float("-inf")):
        raise error(s, "number too large: not even f64 can hold it", hint="write `inf` for infinity")
    return A.Float(s, value)


@_rule
def on_int(s, c):
    text = c[0].text.replace("_", "")
    value = None
    if len(text) <= 400:                                     # longer ones would take Python quadratic time, or be refused
        value = int(text, 16) if text[:2] in ("0x", "0X") else int(text)
    if value is None or value > MAX_INT:
        raise error(s, "integer literal does not fit 64 bits",
                    hint="write it as a float (`1e20`) where an exact integer is not needed")
    return A.Int(s, value)


@_rule
def on_string(s, c):
    return A.Str(s, string(c[0]))


@_rule
def on_true(s, c):
    return A.Bool(s, True)


@_rule
def on_false(s, c):
    return A.Bool(s, False)


@_rule
def on_none(s, c):
    return A.NoneLit(s)


@_rule
def on_paren(s, c):
    node = c[1]
    node.span, node.parens = s, True
    return node


@_rule
def on_tuple(s, c):
    return A.Tuple(s, _nodes(c))


@_rule
def on_list(s, c):
    return A.List(s, c[1].items if len(c) > 2 else [])


@_rule
def on_elements(s, c):
    return Group(s, _nodes(c), "elements")


@_rule
def on_comprehension(s, c):
    return A.Comprehension(s, c[1], c[3], c[5], c[7] if len(c) > 7 else None)


@_rule
def on_lambda_(s, c):
    return A.Lambda(s, _group(c, "params"), _after(c, "->"), c[-1])


@_rule
def on_if_(s, c):
    return A.If(s, c[1], c[2], c[4] if len(c) > 3 else None)


@_rule
def on_while_(s, c):
    return A.While(s, c[1], _group(c, "carries"), c[-1])


@_rule
def on_scan(s, c):
    return A.Scan(s, c[1], c[3], _group(c, "carries"), c[-1])


@_rule
def on_carries(s, c):
    return Group(s, _nodes(c), "carries")


@_rule
def on_carry(s, c):
    final = type(c[0]) is Tok and c[0].type == "FINAL"
    return A.Carry(s, _pattern(c[1 if final else 0]), c[-1], final)
