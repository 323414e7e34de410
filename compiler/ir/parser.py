"""Parser of the IR's textual form: the exact inverse of printer.print_module. Static dims only."""
from __future__ import annotations

import re
from bisect import bisect_right

import numpy as np

from .core import Block, Func, Loc, Module, Op, Value
from .types import DTYPES, BufferType, ScalarType, TensorType, Type

_TOKEN = re.compile(r"""\s*(?:
    (?P<string>"(?:[^"\\]|\\.)*")
  | (?P<number>-?(?:\d+\.?\d*(?:[eE][+-]?\d+)?|inf\b|nan\b))
  | (?P<value>%[\w.]+)
  | (?P<symbol>@[\w.$<>~-]+)
  | (?P<name>[A-Za-z_][\w.]*)
  | (?P<arrow>->)
  | (?P<punct>[{}()\[\],:=^<>])
  | (?P<comment>//[^\n]*)
)""", re.X)


class IrSyntaxError(ValueError):
    """Text that is no IR; the message starts with its line and column."""


class _Tokens:
    def __init__(self, text: str, file: str | None = None):
        self.text, self.file, self.items, pos = text, file, [], 0
        self.lines: list[int] = []                         # where each line starts, made when first needed
        end = len(text)
        while pos < end:
            m = _TOKEN.match(text, pos)
            if m is None:
                if text[pos:].strip() == "":
                    break
                self.pos = 0
                raise IrSyntaxError(f"{_where(text, pos)}: unexpected text {text[pos:pos + 20]!r}")
            if m.lastgroup != "comment":
                self.items.append((m.lastgroup, m.group(m.lastgroup), m.start(m.lastgroup)))
            pos = m.end()
        self.items.append(("end", "", end))
        self.pos = 0

    def peek(self) -> str:
        return self.items[self.pos][1]

    def kind(self) -> str:
        return self.items[self.pos][0]

    def next(self) -> str:
        t = self.items[self.pos]
        self.pos += 1
        return t[1]

    def accept(self, text: str) -> bool:
        if self.items[self.pos][1] == text and self.items[self.pos][0] != "string":
            self.pos += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.accept(text):
            self.fail(f"expected {text!r}, got {self.peek()!r}")

    def take(self, kind: str) -> str:
        if self.kind() != kind:
            self.fail(f"expected a {kind}, got {self.peek()!r}")
        return self.next()

    def here(self) -> Loc | None:
        """The next token's place in the text, when a file name was given."""
        if self.file is None:
            return None
        if not self.lines:
            self.lines = [0, *(i + 1 for i, c in enumerate(self.text) if c == "\n")]
        pos = self.items[self.pos][2]
        line = bisect_right(self.lines, pos)
        col = pos - self.lines[line - 1] + 1
        end = (self.lines[line] if line < len(self.lines) else len(self.text) + 1) - self.lines[line - 1]
        return Loc(self.file, line, col, line, max(end, col + 1))

    def fail(self, message: str):
        raise IrSyntaxError(f"{_where(self.text, self.items[min(self.pos, len(self.items) - 1)][2])}: {message}")


def _where(text: str, pos: int) -> str:
    line = text.count("\n", 0, pos) + 1
    return f"{line}:{pos - (text.rfind(chr(10), 0, pos) + 1) + 1}"


def unquote(s: str) -> str:
    return re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t", "r": "\r"}.get(m.group(1), m.group(1)), s[1:-1])


def parse_module(text: str, file: str | None = None) -> Module:
    """Raises IrSyntaxError. The result is not verified. With `file`, ops that carry no location get their place in this text."""
    t = _Tokens(text, file)
    t.expect("module")
    m = Module()
    if t.accept("attributes"):
        m.attrs = _dict(t)
    t.expect("{")
    while not t.accept("}"):
        m.add(_func(t))
    if t.kind() != "end":
        t.fail(f"unexpected {t.peek()!r} after the module")
    return m


def _func(t: _Tokens) -> Func:
    place = t.here()
    t.expect("func")
    name = t.take("symbol")[1:]
    env: dict[str, Value] = {}
    body = Block()
    t.expect("(")
    _args(t, body, env)
    t.expect("->")
    t.expect("(")
    results = _types(t, ")")
    attrs = _dict(t) if t.accept("attributes") else {}
    f = Func(name, result_types=results, attrs=attrs, loc=_loc(t) or place)
    f.body = body
    t.expect("{")
    _ops(t, body, env)
    return f


def _args(t: _Tokens, block: Block, env: dict) -> None:
    while not t.accept(")"):
        name = t.take("value")
        t.expect(":")
        v = Value(_type(t), block, _hint(name))
        env[name] = v
        block.args.append(v)
        t.accept(",")


def _hint(name: str) -> str | None:
    return None if name[1:].isdigit() else name[1:]


def _ops(t: _Tokens, block: Block, env: dict) -> None:
    while not t.accept("}"):
        names, place = [], t.here()
        while t.kind() == "value":
            names.append(t.next())
            t.accept(",")
        if names:
            t.expect("=")
        op = Op(t.take("name"), [])
        t.expect("(")
        while not t.accept(")"):
            v = t.take("value")
            if v not in env:
                t.pos -= 1
                t.fail(f"{v} is not defined here")
            op.operands.append(env[v])
            t.accept(",")
        if t.peek() == "{" :
            op.attrs = _dict(t)
        if t.accept("("):
            while True:
                t.expect("{")
                region, inner = Block(), dict(env)
                t.expect("^")
                t.expect("(")
                _args(t, region, inner)
                t.expect(":")
                _ops(t, region, inner)
                op.regions.append(region)
                if not t.accept(","):
                    break
            t.expect(")")
        if t.accept(":"):
            types = [_type(t)]
            while t.accept(","):
                types.append(_type(t))
        else:
            types = []
        op.loc = _loc(t) or place
        if len(types) != len(names):
            t.fail(f"{op.name} has {len(types)} types for {len(names)} results")
        for n, ty in zip(names, types):
            v = Value(ty, op, _hint(n))
            op.results.append(v)
            env[n] = v
        block.ops.append(op)


def _loc(t: _Tokens) -> Loc | None:
    if t.peek() != "loc" or t.kind() != "name":
        return None
    t.next()
    t.expect("(")
    file, nums = unquote(t.take("string")), []
    while t.accept(":"):
        nums.append(int(t.take("number")))
    t.expect(")")
    return Loc(file, *nums)


def _types(t: _Tokens, close: str) -> list[Type]:
    out = []
    while not t.accept(close):
        out.append(_type(t))
        t.accept(",")
    return out


def _type(t: _Tokens) -> Type:
    name = t.take("name")
    if name == "buf":
        t.expect("<")
        dt, shape = DTYPES[t.take("name")], _shape(t)
        strides = _shape(t) if t.accept(",") else None
        t.expect(">")
        return BufferType(dt, shape, strides)
    if name not in DTYPES:
        t.pos -= 1
        t.fail(f"unknown type {name!r}")
    return TensorType(DTYPES[name], _shape(t)) if t.peek() == "[" else ScalarType(DTYPES[name])


def _shape(t: _Tokens) -> tuple[int, ...]:
    t.expect("[")
    out = []
    while not t.accept("]"):
        if t.kind() != "number":
            t.fail(f"expected a size, got {t.peek()!r} (symbolic dims are for reading only)")
        out.append(int(t.next()))
        t.accept(",")
    return tuple(out)


def _dict(t: _Tokens) -> dict:
    t.expect("{")
    out = {}
    while not t.accept("}"):
        key = unquote(t.next()) if t.kind() == "string" else t.take("name")
        t.expect("=")
        out[key] = _value(t)
        t.accept(",")
    return out


def _value(t: _Tokens):
    kind, text = t.kind(), t.peek()
    if kind == "number":
        t.next()
        return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
    if kind == "string":
        return unquote(t.next())
    if text == "[":
        t.next()
        out = []
        while not t.accept("]"):
            out.append(_value(t))
            t.accept(",")
        return out
    if text == "{":
        return _dict(t)
    if kind == "name":
        if text in ("true", "false", "none", "inf", "nan"):
            t.next()
            return {"true": True, "false": False, "none": None, "inf": float("inf"), "nan": float("nan")}[text]
        if text == "dense":
            t.next()
            t.expect("<")
            ty = _type(t)
            t.expect(",")
            data = bytes.fromhex(unquote(t.take("string")))
            t.expect(">")
            return np.frombuffer(data, ty.dtype.numpy).reshape(ty.shape).copy()
        if text in DTYPES or text == "buf":
            ty = _type(t)
            return ty.dtype if isinstance(ty, ScalarType) else ty
    t.fail(f"expected an attribute value, got {text!r}")
