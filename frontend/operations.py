"""Calling operations that are implemented in Python: binding their arguments, and what an implementation can ask for."""
from __future__ import annotations

import re

from ..compiler.diagnostics import Span, did_you_mean
from ..compiler.ir import DType, Value
from ..compiler.ir.opdef import TypeMismatch
from .elaborator import Elaborator
from .signature import as_size
from .tensors import as_tensor, is_weak, to_float
from .values import Builtin, CallArgs, describe

ALIASES = {"axis": "dim", "keepdims": "keepdim", "input": "x", "dims": "dim", "other": "y", "a": "x", "axes": "dim",
           "classes": "num_classes", "fill_value": "value", "indices": "index"}


class BuiltinContext:
    """What an operation's implementation gets first: the elaborator, the call's span, the spans of its arguments."""

    __slots__ = ("el", "span", "spans", "name")

    def __init__(self, el: Elaborator, span: Span, spans: dict[str, Span], name: str):
        self.el, self.span, self.spans, self.name = el, span, spans, name

    @property
    def b(self):
        return self.el.b(self.span)

    def fail(self, message: str, arg: str | None = None, **parts):
        self.el.fail(self.spans.get(arg, self.span), message, **parts)

    def op(self, name: str, operands=(), attrs: dict | None = None) -> Value:
        return self.b.op(name, operands, attrs).result

    def call(self, f: object, *args) -> object:
        """Calls a function value."""
        return self.el.call(f, CallArgs.of(args, self.span), self.span)

    def tensor(self, v: object, arg: str = "x", dtype: DType | None = None) -> Value:
        """An argument as a tensor (numbers become scalars)."""
        if isinstance(v, Value):
            return v
        if not is_weak(v):
            self.fail(f"`{arg}` of `{self.name}` is {describe(v)}, expected a tensor", arg,
                      hint="`tensor([..])` makes a tensor of numbers, `stack([..])` of tensors" if isinstance(v, list | tuple) else None)
        return as_tensor(self.b, v, dtype)

    def float(self, v: object, arg: str = "x") -> Value:
        """An argument as a float tensor; integers become f32."""
        v = self.tensor(v, arg)
        return to_float(self.b, v)

    def int(self, v: object, arg: str) -> int:
        """A compile-time whole number (maybe a dim)."""
        n = None if isinstance(v, Value) else as_size(v)
        if n is None:
            self.fail(f"`{arg}` of `{self.name}` is a whole number known when compiling, got {describe(v)}", arg)
        return n

    def flag(self, v: object, arg: str) -> bool:
        if not isinstance(v, bool):
            self.fail(f"`{arg}` of `{self.name}` is true or false, got {describe(v)}", arg)
        return v

    def choice(self, v: object, arg: str, *allowed: str) -> str:
        if v not in allowed:
            near = did_you_mean(v, allowed) if isinstance(v, str) else None
            self.fail(f"`{arg}` of `{self.name}` is one of {', '.join(repr(a) for a in allowed)}, got {describe(v)}".replace("'", '"'), arg,
                      hint=f'did you mean "{near}"?' if near else None)
        return v

    def shape(self, v: object, arg: str = "size") -> tuple:
        """Sizes known when compiling."""
        items = v if isinstance(v, list | tuple) else [v]
        out = tuple(self.int(n, arg) for n in items)
        for n in out:
            if isinstance(n, int) and n < 0:
                self.fail(f"a size cannot be negative: {n}", arg)
        return out

    def dim(self, v: object, rank: int, arg: str = "dim") -> int:
        """A dim, counted from the end where negative."""
        d = self.int(v, arg)
        if not isinstance(d, int) or not -rank <= d < rank:
            self.fail(f"`{arg} = {d}` is out of range for {rank} dimension{'s' if rank != 1 else ''}", arg)
        return d % rank

    def dims(self, v: object, rank: int, arg: str = "dim") -> list[int]:
        """Several dims; none means all."""
        if v is None:
            return list(range(rank))
        items = v if isinstance(v, list | tuple) else [v]
        if rank == 0:                                          # a scalar counts as one element along dim 0, as in PyTorch
            for d in items:
                self.dim(d, 1, arg)
            return []
        out = [self.dim(d, rank, arg) for d in items]
        if len(set(out)) != len(out):
            self.fail(f"`{arg}` names a dimension twice", arg)
        return sorted(out)

    def dtype(self, v: object, arg: str = "dtype") -> DType:
        if not isinstance(v, DType):
            self.fail(f"`{arg}` of `{self.name}` is a type such as f32, got {describe(v)}", arg)
        return v


def call_builtin(el: Elaborator, f: Builtin, ca: CallArgs, span: Span) -> object:
    params = f.params
    args: list = []
    spans: dict[str, Span] = {}
    if f.variadic:
        args = list(ca.pos)
        spans = {str(i): s for i, s in enumerate(ca.spans)}
        kwargs = dict(ca.kw)
        for name in kwargs:
            if name not in f.named:
                near = did_you_mean(name, f.named)
                el.fail(ca.name_span(name), f"`{f.name}` has no parameter `{name}`",
                        hint=f"did you mean `{near}`?" if near else f"its named parameters are: {', '.join(f.named)}" if f.named else None)
        spans.update(ca.kw_spans)
        if len(args) < len(params):
            el.fail(span, f"`{f.name}` needs argument `{params[len(args)]}`")
    else:
        if len(ca.pos) > len(params):
            el.fail(ca.spans[len(params)], f"`{f.name}` takes {count_text(len(params), 'argument')}, got {len(ca.pos) + len(ca.kw)}",
                    hint=f"its parameters are: {', '.join(params)}" if params else None)
        values = dict(zip(params, ca.pos))
        spans = dict(zip(params, ca.spans))
        for name, v in ca.kw.items():
            key = name
            if key not in params and ALIASES.get(key) in params:
                key = ALIASES[key]
            if key not in params:
                near = did_you_mean(name, params)
                el.fail(ca.name_span(name), f"`{f.name}` has no parameter `{name}`",
                        hint=f"did you mean `{near}`?" if near else f"its parameters are: {', '.join(params)}")
            if key in values:
                el.fail(ca.kw_spans[name], f"argument `{name}` of `{f.name}` is given twice")
            values[key] = v
            spans[key] = ca.kw_spans[name]
        kwargs = {}
        for i, p in enumerate(params):
            if p in values:
                args.append(values[p])
            elif i >= f.required:
                args.append(f.defaults[p])
            else:
                el.fail(span, f"`{f.name}` needs argument `{p}`", hint=f"its parameters are: {', '.join(params)}")
    cx = BuiltinContext(el, span, spans, f.name)
    frame = el.frame
    expected = None
    if frame is not None:
        expected = frame.expected
        if not f.draws:
            frame.expected = None
    try:
        return f.run(cx, *args, **kwargs)
    except TypeMismatch as e:
        at = [cx.spans.get(p) for p in params]
        where = [(s, describe(v)) for s, v in zip(at, args) if s is not None and isinstance(v, Value)]
        what = f"{f.name}: " + re.sub(r",(?=\S)", ", ", str(e))
        if str(e).startswith("dimension ") and len(where) > 1:
            what = f"`{f.name}` of {', '.join(t for _, t in where[:-1])} and {where[-1][1]}: these shapes do not broadcast: {e}"
            where = []
        el.fail(span, what, hint=e.hint, marks=where)
    except (ZeroDivisionError, OverflowError) as e:
        el.fail(span, f"{f.name}: {e}")
    finally:
        if frame is not None:
            frame.expected = expected


def count_text(n: int, what: str) -> str:
    """ "no arguments", "1 argument", "3 arguments" """
    return f"{n or 'no'} {what}{'s' if n != 1 else ''}"
