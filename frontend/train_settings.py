"""Settings of a train block: which lines are settings, `--set`, what a setting may be, how many steps there are, and `until`.

A setting is a line `name = expression` whose name is no `state` of the block; it is evaluated once, when compiling.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable

from ..compiler.diagnostics import CompileError, Span, did_you_mean, error
from . import ast as A
from .elaborator import Elaborator
from .values import CallArgs, LayerInstance, Namespace, Scope, Transform, describe

DEFAULTS = {"batch": 32, "epochs": 1, "holdout": None, "seed": 0, "limit": None, "accumulate": 1, "clip_norm": None, "patience": None,
            "pipeline": False}
SETTABLE = ("batch", "epochs", "holdout", "limit", "pipeline", "seed")     # may be given from outside even where the block says nothing
HOLDOUT = 0.2                                                  # the share held out where the block says nothing


# ---- the data ---------------------------------------------------------------------------------------------------------

class HostLoader(Transform):
    """A name that stands for files in a train block (`bpe`): calls the loader that the runner gave."""

    __slots__ = ("load",)

    def __init__(self, load: Callable):
        self.load = load

    def call(self, el: Elaborator, args: CallArgs, span: Span) -> object:
        return Loaded(self.made(args, span))

    def made(self, args: CallArgs, span: Span) -> object:
        """What the loader makes; its complaints become diagnostics."""
        plain = [v.value if isinstance(v, Loaded) else v for v in args.pos]
        named = {k: v.value if isinstance(v, Loaded) else v for k, v in args.kw.items()}
        try:
            return self.load(*plain, **named)
        except CompileError as e:                              # the loader's own: only the place is missing
            for d in e.diagnostics:
                d.span = d.span or span
            raise
        except (ValueError, OSError) as e:
            raise error(span, str(e)) from None
        except Exception as e:
            if not getattr(e, "is_dataset_error", False) and type(e).__name__ != "DatasetError":
                raise
            hint = getattr(e, "hint", None)
            raise error(span, getattr(e, "message", None) or str(e), hint=hint) from None


class Loaded:
    """What a HostLoader made, such as a tokenizer: opaque here, handed on to `dataset`."""

    __slots__ = ("value",)

    def __init__(self, value: object):
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)


class DatasetLoader(HostLoader):
    """The name `dataset` in a train block."""

    __slots__ = ()

    def call(self, el: Elaborator, args: CallArgs, span: Span) -> object:
        names = args.pos[:1] or [args.kw.get("name")]
        if not isinstance(names[0], str):
            raise error(span, "`dataset` needs the name of a data set" + (f", got {describe(names[0])}" if names[0] is not None else ""),
                        hint='for example `dataset("digits")`')
        for v, at in [*zip(args.pos, args.spans), *((v, args.kw_spans[k]) for k, v in args.kw.items())]:
            if not _plain(v):
                raise error(at, f"an argument of `dataset` is a string, a number or a list of them, got {describe(v)}")
        return LoadedData(self.made(args, span), span)


def _plain(v: object) -> bool:
    return v is None or isinstance(v, str | int | float | Loaded) or isinstance(v, list | tuple) and all(map(_plain, v))


class LoadedData(Namespace):
    """A data set: `data.x` is not available when compiling, only the batch's fields are."""

    __slots__ = ("dataset", "span")

    def __init__(self, dataset, span: Span):
        super().__init__("data", Scope())
        self.dataset, self.span = dataset, span

    def __repr__(self) -> str:
        return "a data set"


# ---- which items are what ---------------------------------------------------------------------------------------------

def is_setting(item: A.Node, states: Iterable[str]) -> bool:
    return isinstance(item, A.Assign) and item.op == "=" and isinstance(item.target, A.Name) and item.target.id not in states


def state_names(items: list[A.Node]) -> set[str]:
    return {i.name for i in items if isinstance(i, A.StateDecl)}


def literal(node: A.Expr) -> bool:
    """Whether a setting's value is a literal, which `--set` may replace."""
    if isinstance(node, A.Unary):
        return literal(node.operand)
    if isinstance(node, A.List | A.Tuple):
        return all(map(literal, node.items))
    return isinstance(node, A.Int | A.Float | A.Str | A.Bool | A.NoneLit)


class Overrides:
    """`--set key=value`: replaces literal settings; every key has to be used."""

    def __init__(self, values: dict[str, object], block: A.Train):
        self.values, self.used = dict(values or {}), set()
        self.block = block

    def take(self, item: A.Assign) -> object:
        """The value that replaces a setting's, or KeyError."""
        name = item.target.id
        value = self.values[name]
        self.used.add(name)
        if not literal(item.value):
            raise error(item.value.span, f"--set {name} can replace a literal only, and this is computed")
        return value

    def check(self, known: Iterable[str]) -> None:
        """Every key named a setting."""
        for name in self.values:
            if name not in self.used and name not in SETTABLE:
                known = sorted({*known, *SETTABLE})
                near = did_you_mean(name, known)
                raise error(None, f"--set {name}: train block `{self.block.name}` has no setting `{name}`",
                            hint=f"did you mean `{near}`?" if near else f"it has: {', '.join(known)}")


def evaluate_settings(el: Elaborator, items: list[A.Node], scope: Scope, overrides: Overrides, states: set[str]) -> dict[str, Span]:
    """Binds the settings among the items in `scope`; where each was written."""
    places: dict[str, Span] = {}
    for item in items:
        if not is_setting(item, states):
            continue
        name = item.target.id
        if name in places:
            el.fail(item.target.span, f"`{name}` is set twice", notes=[(places[name], "first here")])
        places[name] = item.target.span
        if name in overrides.values:
            value = overrides.take(item)
        else:
            value = el.value(item.value, scope)
        if isinstance(value, LayerInstance) and value.label is None:
            value.label = name
        scope.bind(name, value, item.target.span)
    return places


def check_unused(el: Elaborator, block: A.Train, places: dict[str, Span], scope: Scope) -> None:
    """A setting that is none of ours and that nothing uses is misspelt, most likely."""
    used = {n.id for item in block.items for n in A.walk(item) if isinstance(n, A.Name)
            and not any(n is s for s in _targets(block.items))}
    for name, span in places.items():
        if name in DEFAULTS or name in used or isinstance(scope.names.get(name), LoadedData | LayerInstance | list):
            continue
        if name == "data":
            el.fail(span, f"`data` is {describe(scope.names.get(name))}, expected a data set", hint='for example `data = dataset("digits")`')
        near = did_you_mean(name, DEFAULTS)
        el.fail(span, f"unknown setting `{name}`, and nothing uses it",
                hint=f"did you mean `{near}`?" if near else f"settings are: {', '.join(DEFAULTS)}")


def _targets(items: list[A.Node]) -> list[A.Node]:
    out = [i.target for i in items if isinstance(i, A.Assign) and i.op == "="]
    for i in items:
        if isinstance(i, A.Phase):
            out += _targets(i.items)
    return out


# ---- values -----------------------------------------------------------------------------------------------------------

def settings_of(el: Elaborator, scope: Scope, overrides: Overrides, block: A.Train) -> dict[str, object]:
    """All known settings as the scope has them, checked."""
    out = {}
    for name, default in DEFAULTS.items():
        value, s = default, scope
        while s is not None and s is not el.program_scope:
            if name in s.names:
                value = s.names[name]
                break
            s = s.parent
        else:
            value = overrides.values.get(name, default)
        out[name] = _checked(name, value, scope.span_of(name) or block.name_span, name in overrides.values)
    return out


def _checked(name: str, v: object, span: Span, outside: bool) -> object:
    whole = isinstance(v, int) and not isinstance(v, bool)
    number = whole or isinstance(v, float)
    ok, want = {
        "batch": (whole and v >= 1, "a positive number of samples"),
        "epochs": (whole and v >= 1, "a positive whole number"),
        "holdout": (v is None or whole and v >= 0 or number and 0 <= v < 1, "a share from 0.0 to below 1.0, or a number of samples"),
        "seed": (whole and v >= 0, "a whole number from 0"),
        "limit": (v is None or whole and v >= 1, "a positive number of samples"),
        "accumulate": (whole and v >= 1, "a positive number of batches"),
        "clip_norm": (v is None or number and v > 0, "a positive number"),
        "patience": (v is None or whole and v >= 1, "a positive number of epochs"),
        "pipeline": (isinstance(v, bool) or whole and v >= 2, "true, false, or a number of stages from 2"),
    }[name]
    if not ok:
        raise error(span, f"`{name}` is {describe(v)}, expected {want}", hint="the value is the command line's, not this line's" if outside else None)
    return float(v) if type(v) is not int and isinstance(v, float) else v


def train_size(n: int, s: dict[str, object], span: Span) -> int:
    """How many of n samples are learned from."""
    share, limit = s["holdout"], s["limit"]
    share = HOLDOUT if share is None else share
    if isinstance(share, float):
        n = min(n, limit or n)
        return n - min(round(share * n), n - 1)
    if share >= n:
        raise error(span, f"holdout = {share:,}: the data has only {n:,} sample{'s' * (n != 1)}, so none would be left to learn from")
    return min(n - share, limit or n)


# ---- until ------------------------------------------------------------------------------------------------------------

_COMPARE = {"==": lambda a, b: a == b, "!=": lambda a, b: a != b, "<": lambda a, b: a < b, "<=": lambda a, b: a <= b,
            ">": lambda a, b: a > b, ">=": lambda a, b: a >= b}
_ARITH = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b}


def until_condition(el: Elaborator, node: A.Expr, names: list[str], scope: Scope) -> Callable[[dict], bool]:
    """`until accuracy >= 0.995` as a function of an epoch's row of numbers (on held-out data where there is any)."""
    def build(n: A.Expr) -> Callable[[dict], object]:
        if isinstance(n, A.Name):
            if n.id in names or n.id in ("loss", "epoch"):
                return lambda row: row.get(f"val_{n.id}", row.get(n.id, float("nan")))
            v = scope.lookup(n.id)
            if isinstance(v, int | float):
                return lambda row: v
            near = did_you_mean(n.id, [*names, "loss", "epoch"])
            el.fail(n.span, f"`until` knows no `{n.id}`", hint=f"did you mean `{near}`?" if near else
                    f"it may use the measures: {', '.join([*names, 'loss', 'epoch'])}")
        if isinstance(n, A.Int | A.Float | A.Bool):
            return lambda row: n.value
        if isinstance(n, A.Unary) and n.op == "-":
            inner = build(n.operand)
            return lambda row: -inner(row)
        if isinstance(n, A.Not):
            inner = build(n.operand)
            return lambda row: not inner(row)
        if isinstance(n, A.Binary) and n.op in _ARITH:
            f, a, b = _ARITH[n.op], build(n.left), build(n.right)
            return lambda row: f(a(row), b(row))
        if isinstance(n, A.BoolOp):
            a, b = build(n.left), build(n.right)
            return (lambda row: a(row) and b(row)) if n.op == "and" else (lambda row: a(row) or b(row))
        if isinstance(n, A.Compare):
            parts = [build(x) for x in n.operands]
            tests = [_COMPARE[o] for o in n.ops]
            return lambda row: all(t(parts[i](row), parts[i + 1](row)) for i, t in enumerate(tests))
        el.fail(n.span, "`until` takes comparisons of measures with numbers")

    f = build(node)
    return lambda row: bool(f(row))
