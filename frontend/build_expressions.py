"""What the grammar's rules for expressions become, and what all callbacks (see build_ast.py) are made with."""
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


def rule(f):
    CALLBACKS[f.__name__.removeprefix("on_")] = f
    return f


def nodes(c: list) -> list:
    """The children that are not tokens."""
    return [x for x in c if type(x) is not Tok]


def pattern(x) -> A.Pattern:
    return A.NamePattern(x.span, bound_name(x)) if type(x) is Tok else x


def bound_name(x: Tok) -> str:
    """A name that is bound here: the reserved words could never be used."""
    if x.text in RESERVED:
        raise error(x.span, f"`{x.text}` is a word of the language, so it cannot be a name")
    return x.text


def group(c: list, kind: str) -> list:
    for x in c:
        if type(x) is Group and x.kind == kind:
            return x.items
    return []


def after(c: list, text: str):
    """The child after a token with this text, or None."""
    for k, x in enumerate(c):
        if type(x) is Tok and x.text == text:
            return c[k + 1]
    return None


def body(c: list) -> list:
    """The statements between the braces of a rule that has exactly one pair."""
    for k, x in enumerate(c):
        if type(x) is Tok and x.type == "LBRACE":
            return nodes(c[k + 1:])
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


# ---- expressions -------------------------------------------------------------------------------------------------

@rule
def on_pipe(s, c):
    return A.Pipe(s, c[0], c[2], c[1].span)


@rule
def on_range(s, c):
    return A.Range(s, c[0], c[2], c[1].span)


def _binary(s, c):
    return A.Binary(s, c[1].text, c[0], c[2], c[1].span)


def _bool_op(s, c):
    return A.BoolOp(s, c[1].text, c[0], c[2], c[1].span)


for _name in ("bitor", "bitxor", "bitand", "shift", "sum", "product", "power"):
    CALLBACKS[_name] = _binary
CALLBACKS["or_"] = CALLBACKS["and_"] = _bool_op


@rule
def on_not_(s, c):
    return A.Not(s, c[1], c[0].span)


@rule
def on_compare(s, c):
    signs = c[1::2]
    return A.Compare(s, c[0::2], [t.text for t in signs], [t.span for t in signs])


@rule
def on_unary(s, c):
    return A.Unary(s, c[0].text, c[1], c[0].span)


@rule
def on_call(s, c):
    return A.Call(s, c[0], c[2].items if len(c) > 3 else [])


@rule
def on_index(s, c):
    return A.Index(s, c[0], c[2].items)


@rule
def on_attr(s, c):
    return A.Attr(s, c[0], c[2].text, c[2].span)


@rule
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


@rule
def on_kwarg(s, c):
    return A.Arg(s, c[0].text, c[2])


@rule
def on_subscripts(s, c):
    return Group(s, nodes(c), "subscripts")


@rule
def on_guarded(s, c):
    return A.Guarded(s, c[0], c[2])


@rule
def on_slice(s, c):
    parts, at = [None, None, None], 0
    for x in c:
        if type(x) is Tok:
            at += 1
        else:
            parts[at] = x
    return A.Slice(s, *parts)


@rule
def on_index_in(s, c):
    return A.IndexIn(s, c[0].text, c[2], c[0].span)


@rule
def on_name(s, c):
    return A.Name(s, c[0].text)


@rule
def on_float(s, c):
    value = float(c[0].text.replace("_", ""))
    if value in (float("inf"), float("-inf")):
        raise error(s, "number too large: not even f64 can hold it", hint="write `inf` for infinity")
    return A.Float(s, value)


@rule
def on_int(s, c):
    text = c[0].text.replace("_", "")
    value = None
    if len(text) <= 400:                                     # longer ones would take Python quadratic time, or be refused
        value = int(text, 16) if text[:2] in ("0x", "0X") else int(text)
    if value is None or value > MAX_INT:
        raise error(s, "integer literal does not fit 64 bits",
                    hint="write it as a float (`1e20`) where an exact integer is not needed")
    return A.Int(s, value)


@rule
def on_string(s, c):
    return A.Str(s, string(c[0]))


@rule
def on_true(s, c):
    return A.Bool(s, True)


@rule
def on_false(s, c):
    return A.Bool(s, False)


@rule
def on_none(s, c):
    return A.NoneLit(s)


@rule
def on_paren(s, c):
    node = c[1]
    node.span, node.parens = s, True
    return node


@rule
def on_tuple(s, c):
    return A.Tuple(s, nodes(c))


@rule
def on_list(s, c):
    return A.List(s, c[1].items if len(c) > 2 else [])


@rule
def on_elements(s, c):
    return Group(s, nodes(c), "elements")


@rule
def on_comprehension(s, c):
    return A.Comprehension(s, c[1], c[3], c[5], c[7] if len(c) > 7 else None)


@rule
def on_lambda_(s, c):
    return A.Lambda(s, group(c, "params"), after(c, "->"), c[-1])


@rule
def on_if_(s, c):
    return A.If(s, c[1], c[2], c[4] if len(c) > 3 else None)


@rule
def on_while_(s, c):
    return A.While(s, c[1], group(c, "carries"), c[-1])


@rule
def on_scan(s, c):
    return A.Scan(s, c[1], c[3], group(c, "carries"), c[-1])


@rule
def on_carries(s, c):
    return Group(s, nodes(c), "carries")


@rule
def on_carry(s, c):
    final = type(c[0]) is Tok and c[0].type == "FINAL"
    return A.Carry(s, pattern(c[1 if final else 0]), c[-1], final)
