"""What all nodes of the syntax tree have in common: how they are made, compared, walked and shown. The constructs are in ast.py."""
from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import dataclass_transform

from ..compiler.diagnostics import Span


class Part:
    """How a field of a node differs from a part of the tree that its constructor takes by position."""

    __slots__ = ("compare", "flag")

    def __init__(self, compare: bool = True, flag: bool = False):
        self.compare, self.flag = compare, flag


def place() -> Span:
    """A field for the span of a part (an operator, a name) that has no node of its own; any field that is not compared."""
    return Part(compare=False)


def flag() -> bool:
    """A field that is False unless the constructor is told otherwise, by name."""
    return Part(compare=False, flag=True)


@functools.cache
def _init(names: tuple[str, ...], flags: tuple[str, ...]):
    """The constructor of classes with these fields."""
    params = ", ".join(("self", *names, *(["*"] if flags else []), *(f"{n}=False" for n in flags)))
    scope: dict = {}
    exec(f"def __init__({params}):\n" + "\n".join(f" self.{n} = {n}" for n in names + flags), scope)
    return scope["__init__"]


@dataclass_transform(field_specifiers=(place, flag))
def node(cls):
    """Makes a class of the tree from its annotations, as dataclass(slots=True) would, in a third of the time: there are sixty, and every
    program waits for them.  Comparison and repr are Node's; recursive ones would fail on very deep trees."""
    own = {n: cls.__dict__.get(n, _PART) for n in cls.__dict__.get("__annotations__", ())}
    parts = {**getattr(cls, "__parts__", {}), **own}
    space = {k: v for k, v in cls.__dict__.items() if k not in own and k not in ("__dict__", "__weakref__")}
    init = _init(tuple(n for n, p in parts.items() if not p.flag), tuple(n for n, p in parts.items() if p.flag))
    return type(cls)(cls.__name__, cls.__bases__,
                     {**space, "__qualname__": cls.__qualname__, "__slots__": tuple(own), "__parts__": parts, "__init__": init})


_PART = Part()


@node
class Node:
    span: Span = place()

    def __eq__(self, other: object) -> bool:
        """The same tree, wherever it stands."""
        if not isinstance(other, Node):
            return NotImplemented
        todo = [(self, other)]
        while todo:
            a, b = todo.pop()
            if isinstance(a, Node):
                if type(a) is not type(b) or getattr(a, "parens", False) != getattr(b, "parens", False):
                    return False
                todo += [(getattr(a, name), getattr(b, name)) for name in field_names(a)]
            elif type(a) is list:
                if type(b) is not list or len(a) != len(b):
                    return False
                todo += zip(a, b)
            elif type(a) is not type(b) or a != b:
                return False
        return True

    __hash__ = None

    def __repr__(self) -> str:
        return dump(self)


# ---- looking at trees --------------------------------------------------------------------------------------------

_FIELDS: dict[type, tuple[str, ...]] = {}


def field_names(node: Node) -> tuple[str, ...]:
    """The names of a node's own parts: without spans and `parens`."""
    names = _FIELDS.get(type(node))
    if names is None:
        names = tuple(n for n, p in node.__parts__.items() if p.compare)
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
        return value if value.isidentifier() else json.dumps(value, ensure_ascii=False)
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
_SPLICED = {"items", "stmts", "operands", "subscripts", "args"}                # lists whose elements follow without brackets
