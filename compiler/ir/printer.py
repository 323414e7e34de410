"""The textual form of the IR: one generic syntax for every op. `parser.parse_module` is its exact inverse.

    %r, %s = name(%a, %b) {key = value, ...} ({^(%i: i64[]): ops}, {...}) : types loc("file":line:col:end line:end col)
"""
from __future__ import annotations

import math
import re

import numpy as np

from .core import Block, Func, Module, Op, Value
from .types import DType, Type, dtype_of

_BAD = re.compile(r"[^\w.]")
_WORD = re.compile(r"[A-Za-z_]\w*$")
_NUMBER = re.compile(r"^\d+$")


class _Names:
    """Unique names within one function: hints where there are any, else 0, 1, 2 ..."""

    def __init__(self):
        self.names: dict[Value, str] = {}
        self.used: set[str] = set()
        self.next = 0

    def define(self, v: Value) -> str:
        hint = _BAD.sub("_", v.name) if v.name else None
        if hint and not _NUMBER.match(hint):
            name, n = hint, 0
            while name in self.used:
                n += 1
                name = f"{hint}_{n}"
        else:
            name = str(self.next)
            self.next += 1
        self.used.add(name)
        self.names[v] = "%" + name
        return "%" + name

    def get(self, v: Value) -> str:
        return self.names.get(v) or f"%<{v.name or 'undefined'}>"


class Printer:
    """`locs`: print locations; `elide`: dense constants with more elements than this are printed as `dense<type, ...>`,
    which does not parse (for people); None prints everything."""

    def __init__(self, locs: bool = True, elide: int | None = None):
        self.locs, self.elide = locs, elide
        self.lines: list[str] = []

    def module(self, m: Module) -> str:
        attrs = f" attributes {attr_text(m.attrs, self.elide)}" if m.attrs else ""
        self.lines.append(f"module{attrs} {{")
        for f in m.funcs.values():
            self.func(f, 1)
        self.lines.append("}")
        return "\n".join(self.lines) + "\n"

    def func(self, f: Func, depth: int = 0) -> None:
        names = _Names()
        args = ", ".join(f"{names.define(a)}: {a.type}" for a in f.args)
        attrs = f" attributes {attr_text(f.attrs, self.elide)}" if f.attrs else ""
        pad = "  " * depth
        results = ", ".join(map(str, f.result_types))
        self.lines.append(f"{pad}func @{f.name}({args}) -> ({results}){attrs}{self.loc(f.loc)} {{")
        self.ops(f.body, names, depth + 1)
        self.lines.append(pad + "}")

    def loc(self, loc) -> str:
        if loc is None or not self.locs:
            return ""
        return f" loc({quote(loc.file)}:{loc.line}:{loc.col}:{loc.end_line}:{loc.end_col})"

    def ops(self, block: Block, names: _Names, depth: int) -> None:
        for op in block.ops:
            self.op(op, names, depth)

    def op(self, op: Op, names: _Names, depth: int) -> None:
        pad = "  " * depth
        operands = ", ".join(names.get(v) for v in op.operands)
        attrs = " " + attr_text(op.attrs, self.elide) if op.attrs else ""
        types = " : " + ", ".join(str(r.type) for r in op.results) if op.results else ""
        tail = types + self.loc(op.loc)
        if not op.regions:
            head = ", ".join(names.define(r) for r in op.results)
            self.lines.append(f"{pad}{head}{' = ' if head else ''}{op.name}({operands}){attrs}{tail}")
            return
        slot = len(self.lines)
        self.lines.append("")                      # results are numbered after the region, as the parser meets them first in text
        head = ", ".join(names.define(r) for r in op.results)
        self.lines[slot] = f"{pad}{head}{' = ' if head else ''}{op.name}({operands}){attrs} ({{"
        for i, r in enumerate(op.regions):
            args = ", ".join(f"{names.define(a)}: {a.type}" for a in r.args)
            self.lines.append(f"{pad}^({args}):")
            self.ops(r, names, depth + 1)
            self.lines.append(f"{pad}}}, {{" if i + 1 < len(op.regions) else f"{pad}}}){tail}")


def print_module(m: Module, locs: bool = True, elide: int | None = None) -> str:
    return Printer(locs, elide).module(m)


def print_func(f: Func, locs: bool = True, elide: int | None = None) -> str:
    p = Printer(locs, elide)
    p.func(f)
    return "\n".join(p.lines) + "\n"


def quote(s: str) -> str:
    """A double-quoted text with \\-escapes for quotes, backslashes, newlines and tabs."""
    return '"' + s.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r") + '"'


def value_text(v, elide: int | None = None) -> str:
    """An attribute value. Plain values only: numbers, texts, bools, None, lists, dicts, DTypes, types, ndarrays."""
    if isinstance(v, bool) or v is None:
        return {True: "true", False: "false", None: "none"}[v]
    if isinstance(v, int | np.integer):
        return str(int(v))
    if isinstance(v, float | np.floating):
        v = float(v)
        return "nan" if math.isnan(v) else ("inf" if v > 0 else "-inf") if math.isinf(v) else repr(v)
    if isinstance(v, str):
        return quote(v)
    if isinstance(v, list | tuple):
        return "[" + ", ".join(value_text(x, elide) for x in v) + "]"
    if isinstance(v, dict):
        return attr_text(v, elide)
    if isinstance(v, DType):
        return v.name
    if isinstance(v, Type):
        return str(v)
    if isinstance(v, np.ndarray):
        kind = f"{dtype_of(v.dtype)}[{','.join(map(str, v.shape))}]"
        if elide is not None and v.size > elide:
            return f"dense<{kind}, ...>"
        return f'dense<{kind}, "{np.ascontiguousarray(v).tobytes().hex()}">'
    from .dims import Dim
    if isinstance(v, Dim):
        return f"dim<{v}>"
    raise TypeError(f"attribute values cannot be {type(v).__name__}: {v!r}")


def attr_text(attrs: dict, elide: int | None = None) -> str:
    return "{" + ", ".join(f"{k if _WORD.match(k) else quote(k)} = {value_text(v, elide)}" for k, v in attrs.items()) + "}"
