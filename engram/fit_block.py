"""The train block that `Model.compile` and `fit` write against a program, and how its errors are told: by the Python argument they come from.

The block is made of pieces. One that an argument was turned into carries the argument's name, so that a diagnostic in the block,
which no user has ever seen, becomes one in `<argument loss>`, with the argument's text below it.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from .compiler.diagnostics import CompileError, Diagnostic, RuntimeError_, Source, Span, did_you_mean, error
from .optim import Rule, Verbatim, optimizer

BLOCK = "_python_fit"
LOSSES = {"cross_entropy": "cross_entropy(out, y)", "mse": "mse_loss(out, y)", "mae": "l1_loss(out, y)",
          "bce_with_logits": "binary_cross_entropy_with_logits(out, y)"}
METRICS = {"accuracy": "accuracy(out, y)", "mse": "mse_loss(out, y)", "mae": "l1_loss(out, y)", "cross_entropy": "cross_entropy(out, y)"}
_BINARY_ACCURACY = "mean(f32((out > 0) == (y > 0.5)))"


class Piece(NamedTuple):
    """Text of the block; `argument` is what it was made from, None where it is ours."""

    text: str
    argument: str | None = None


class FitBlock:
    """One train block as text, behind `first - 1` lines of the program `file`."""

    def __init__(self, lines: list[list[Piece]], file: str, first: int):
        self.file, self.first = file, first
        self.text = f"train {BLOCK} {{\n" + "".join(f"  {''.join(p.text for p in line)}\n" for line in lines) + "}\n"
        self._places: list[tuple[int, int, Piece]] = []                  # where each argument's text begins: line and column from 1
        number = first + 1
        for line in lines:
            at = [number, 3]
            for p in line:
                if p.argument is not None:
                    self._places.append((*at, p))
                *before, last = p.text.split("\n")
                at = [at[0] + len(before), len(last) + 1 if before else at[1] + len(last)]
            number = at[0] + 1

    def moved(self, span: Span | None) -> Span | None:
        """The place in the argument; places outside of the block stay, and our own part of it is nowhere."""
        if span is None or span.file != self.file or span.line < self.first:
            return span
        inside = [(line, col, p) for line, col, p in self._places if (line, col) <= span[1:3] and span.line <= line + p.text.count("\n")]
        if not inside:
            return None
        line, col, p = inside[-1]
        rows = p.text.split("\n")
        file = f"<argument {p.argument}>"
        Source.register(file, p.text)

        def place(row: int, column: int) -> tuple[int, int]:
            row, column = (row - line + 1, column - col + 1 if row == line else column)
            end = (len(rows), len(rows[-1]) + 1)
            return min((row, column), end)

        start, end = place(*span[1:3]), place(*span[3:5])
        return Span(file, *start, *max(end, (start[0], start[1] + 1)))

    def _told(self, d: Diagnostic) -> Diagnostic:
        marks = [(m, label) for span, label in d.marks if (m := self.moved(span)) is not None]
        return replace(d, span=self.moved(d.span), marks=marks, notes=[(self.moved(span), text) for span, text in d.notes])

    @contextmanager
    def telling(self) -> Iterator[None]:
        """What goes wrong inside is said in terms of the arguments."""
        try:
            yield
        except CompileError as e:
            raise CompileError(map(self._told, e.diagnostics)) from None
        except RuntimeError_ as e:
            place = self.moved(e.diagnostic.span)
            raise RuntimeError_(e.message, None if place is None else type(e.loc)(*place)) from None


class CompiledFit:
    """What `Model.compile` was told, checked, and the lines of the train block it stands for."""

    def __init__(self, program, instance, loss, optimizer_, metrics, learn):
        self.lines: list[list[Piece]] = []
        functions = program.functions
        term = None if loss is None else _term("loss", loss, LOSSES, functions, "loss")
        if learn is not None:
            if not isinstance(learn, Mapping) or not learn:
                raise TypeError('learn: expected {"layer path": eg.rule(...)}')
            for path, r in learn.items():
                self.lines.append([Piece("learn "), _learn(program, instance, path, r)])
        if optimizer_ is not None and term is None:
            raise ValueError("an optimizer needs a loss")
        if term is not None and (optimizer_ is not None or learn is None):
            rest = [p for p, _ in instance.params if not any(p.startswith(f"{path}.") for path in learn or ())]
            if not rest:
                raise ValueError("every layer has a rule of its own: there is nothing left for the optimizer")
            wrt = f" wrt ({', '.join(map(_place, rest))},)" if learn else ""
            by = optimizer(optimizer_ if optimizer_ is not None else "adam").text
            self.lines.append([Piece("minimize "), term, Piece(f"{wrt} using "), Piece(_expression("optimizer", by), "optimizer")])
        elif term is not None:
            self.lines.append([Piece("measure loss = "), term])
        if not self.lines:
            raise ValueError("compile needs a loss, or learn={...}")
        if isinstance(metrics, str):
            raise TypeError(f'metrics: expected a list, as in metrics=["{metrics}"]')
        if not isinstance(metrics, Mapping | Sequence | type(None)):
            raise TypeError(f'metrics: expected a list or {{name: eg.expr("...")}}, got {metrics!r}')
        named = metrics.items() if isinstance(metrics, Mapping) else ((m, m) for m in metrics or ())
        for name, m in named:
            if name is m and not isinstance(m, str):
                why = "a Python function cannot be compiled; write it in the program and give its name" if isinstance(m, Callable) else \
                    f"expected names, or {{name: eg.expr(...)}}, got {m!r}"
                raise TypeError(f"metrics: {why}")
            if not isinstance(name, str):
                raise TypeError(f"metrics: {name!r} cannot be a metric's name: expected text")
            table = {**METRICS, "accuracy": _BINARY_ACCURACY} if loss == "bce_with_logits" else METRICS
            if not name.isidentifier() or name == "loss":
                raise ValueError(f"metrics: {name!r} cannot be a metric's name" + ("" if name == "loss" else "; use {name: eg.expr(...)}"))
            self.lines.append([Piece(f"measure {name} = "), _term("metric", m, table, functions, f'metrics["{name}"]')])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CompiledFit) and self.lines == other.lines

    __hash__ = None

    def block(self, model: str, epochs: int, batch: int, seed: int, pipeline: bool | int, file: str, source: str) -> FitBlock:
        """The train block, to be put behind the program's text."""
        head = [f"model = {model}", f'data = dataset("{BLOCK}")', f"batch = {batch}", f"epochs = {epochs}", f"seed = {seed}", "holdout = 0"]
        stages = [[Piece("pipeline = "), Piece(str(pipeline).lower(), "pipeline")]] if pipeline else []
        return FitBlock([*([Piece(line)] for line in head), *stages, [Piece("let out = "), Piece("model(x)", "x")], *self.lines], file, source.count("\n") + 2)


def _term(what: str, value, table: Mapping[str, str], functions: Mapping, argument: str) -> Piece:
    if isinstance(value, Verbatim):
        return Piece(_expression(argument, value.text), argument)
    if isinstance(value, Callable):
        raise TypeError(f"{what}: a Python function cannot be compiled; write it in the program and give its name")
    if not isinstance(value, str):
        raise TypeError(f"{what}: expected a name, got {value!r}")
    if value in functions:
        return Piece(f"{value}(out, y)", argument)
    if value in table:
        return Piece(table[value], argument)
    near = did_you_mean(value, [*table, *functions])
    raise ValueError(f"unknown {what} {value!r}: " + (f"did you mean {near!r}?" if near else f"known: {', '.join([*table, *functions])}"))


def _expression(argument: str, text: str) -> str:
    """The text, which must be one expression: what is not would be read as other lines of the block."""
    from .frontend.parse import parse
    file = f"<argument {argument}>"
    try:
        parse(f"let _ = (\n{text}\n)", file)
    except CompileError as e:
        rows = text.split("\n")

        def place(row: int, column: int) -> tuple[int, int]:
            return min(max((row - 1, column), (1, 1)), (len(rows), len(rows[-1]) + 1))

        def told(d: Diagnostic) -> Diagnostic:
            behind = d.span.line > len(rows) + 1                         # at our own bracket
            return replace(d, span=Span(file, *place(*d.span[1:3]), *place(*d.span[3:5])), marks=[], notes=[],
                           message=d.message.replace("got `)`", "got the end") if behind else d.message)

        Source.register(file, text)
        raise CompileError([d if d.span is None else told(d) for d in e.diagnostics]) from None
    return text


def _learn(program, instance, path, r) -> Piece:
    """`model.hidden by three_factor(...) given ...`"""
    argument = f'learn["{path}"]'
    if not isinstance(r, Rule):
        raise TypeError(f"learn[{path!r}]: expected eg.rule(...), got {r!r}")
    if not isinstance(path, str):
        raise TypeError(f"learn: expected the path of a layer, got {path!r}")
    inside = [p for p, s in instance.cells if s.kind in ("param", "state")]
    if path and not any(p.startswith(f"{path}.") for p in inside):
        layers = sorted({p[:k] for p in inside for k, c in enumerate(p) if c == "."})
        near = did_you_mean(path, layers)
        what = f"{path!r} is a parameter, not a layer" if path in inside else f"there is no layer {path!r} with parameters"
        raise ValueError(f"learn: {what}: " + (f"did you mean {near!r}?" if near else f"there are {', '.join(map(repr, layers)) or 'none'}"))
    given = _given(program, r)
    return Piece(f"{_place(path)} by {_expression(argument, r.text)}{given}", argument)


def _given(program, r: Rule) -> str:
    """What a rule is given: what its user says, or else y in the shape that the rule's type asks for."""
    from .frontend.ast import Name
    decl = getattr(program.scope.lookup(r.name), "decl", None)
    signals = getattr(decl, "given", None)
    if signals is None:
        near = did_you_mean(r.name, program.scope.all_names())
        raise error(None, f"there is no rule `{r.name}`", hint=f"did you mean `{near}`?" if near else None)
    if not signals:
        return ""
    if isinstance(r.given, Verbatim):
        return f" given {_expression('given', r.given.text)}"
    names = [".".join(s.path) for s in signals]
    if r.given is not None:
        return " given " + ", ".join(f"{k} = {_expression(f'given[{k!r}]', v.text)}" for k, v in r.given.items())
    if len(signals) > 1:
        raise ValueError(f"rule {r.name} is given {', '.join(names)}: say what they are, eg.rule({r.name!r}, ..., given={{{names[0]!r}: eg.expr('...'), ...}})")
    t = signals[0].type
    dims = getattr(t, "dims", None)
    if dims is None or t.name not in ("f32", "float", "f64", "f16", "bf16"):
        return " given y"
    if len(dims) == 1 and isinstance(dims[0], Name):
        return " given f32(y)"
    rows = "one_hot(y, out.shape[1])"
    if names == ["error"]:
        return f" given (softmax(out, dim = -1) - {rows}) / out.shape[0]"
    return f" given if y.ndim == 1 {{ {rows} }} else {{ y }}"


def _place(path: str) -> str:
    """A layer's or parameter's path as a program writes it: `body.0.w` is `model.body[0].w`."""
    return "model" + "".join(f"[{p}]" if p.isdigit() else f".{p}" for p in path.split(".") if p)
