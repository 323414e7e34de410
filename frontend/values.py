"""What names and expressions stand for while a program is evaluated.

Compile-time values are plain Python ones (int, float, bool, str, None, tuple, list, DType) and the classes below; a run-time
value is an IR `Value` (a tensor).  Python numbers, dims and `Opaque`s are *weak*: beside a tensor they take its dtype.
Nothing here emits IR or reads syntax beyond holding on to declarations.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator

from ..compiler.diagnostics import Span
from ..compiler.ir import Dim, DType, TensorType, Value
from . import ast as A


class _Singleton:
    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __repr__(self):
        return self.name


UNIT = _Singleton("no value")              # what a block ending in `let` or an assignment gives
POISON = _Singleton("poison")              # bound to names whose definition had an error that is already reported
TRAINING = _Singleton("training")          # the name `training`, whose value depends on the call
MISSING = _Singleton("missing")


class Poisoned(Exception):
    """Evaluation met a value whose error has been reported already: give up silently."""


class Undecidable(Exception):
    """A generic check met something that depends on a dim's size: it is checked at specialisation instead."""


class Opaque:
    """A compile-time number that depends on an unknown dim, while a generic function is checked.  `size` is its value as a
    dimension where it can be one."""

    __slots__ = ("kind", "size")

    def __init__(self, kind: str, size: int | Dim | None = None):
        self.kind, self.size = kind, size

    def __repr__(self):
        return str(self.size) if self.size is not None else "unknown number"


class Quotient(float):
    """int / int: a float that remembers its exact whole value, so that `d/h` can be a size."""

    __slots__ = ("whole",)

    def __new__(cls, num: int, den: int):
        self = super().__new__(cls, num / den)
        self.whole = num // den if num % den == 0 else None
        return self


class Scope:
    """Names of one level; `parent` is the enclosing one.  A `Lazy` binding is evaluated when first looked up."""

    __slots__ = ("names", "parent", "spans")

    def __init__(self, parent: Scope | None = None, names: dict | None = None):
        self.names = {} if names is None else names
        self.parent = parent
        self.spans: dict[str, Span] = {}

    def bind(self, name: str, value: object, span: Span | None = None) -> None:
        self.names[name] = value
        if span is not None:
            self.spans[name] = span

    def lookup(self, name: str) -> object:
        """The value, or MISSING."""
        scope = self
        while scope is not None:
            v = scope.names.get(name, MISSING)
            if v is not MISSING:
                return v.force(scope, name) if type(v) is Lazy else v
            scope = scope.parent
        return MISSING

    def span_of(self, name: str) -> Span | None:
        """Where the name was bound."""
        scope = self
        while scope is not None:
            if name in scope.names:
                return scope.spans.get(name)
            scope = scope.parent
        return None

    def all_names(self) -> Iterator[str]:
        scope = self
        while scope is not None:
            yield from scope.names
            scope = scope.parent


class Lazy:
    """A binding that `make` computes at its first use."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], object]):
        self.make = make

    def force(self, scope: Scope, name: str) -> object:
        v = self.make()
        if type(scope.names.get(name)) is Lazy:
            scope.names[name] = v
        return v


# ---- cells: what can be written ---------------------------------------------------------------------------------------

class Cell:
    """A place whose value changes while a step runs: a parameter, state, cache, a train block's state, a signal.  The value
    it has at a point of the program is the frame's business.  `type` is None while a cache's dims are not known."""

    __slots__ = ("name", "type", "kind", "span", "writable")

    def __init__(self, name: str, type: TensorType | None, kind: str, span: Span | None = None, writable: bool = True):
        self.name, self.type, self.kind, self.span, self.writable = name, type, kind, span, writable

    def __repr__(self):
        return f"<{self.kind} {self.name}: {self.type}>"


class Slot(Cell):
    """A cell of a layer: `kind` is "param", "state" or "cache".  `weight`: the quantised type it is read through, if any."""

    __slots__ = ("decl", "owner", "weight")

    def __init__(self, decl, type, kind: str, owner: LayerInstance, weight=None):
        super().__init__(decl.name, type, kind, decl.name_span, writable=kind != "param")
        self.decl, self.owner, self.weight = decl, owner, weight


class Signal(Cell):
    """A local signal of a layer instance that a learning rule asked for: `pre`, `out` or a top-level `let` of its fn."""

    __slots__ = ("owner",)

    def __init__(self, owner: LayerInstance, name: str):
        super().__init__(name, None, "signal")
        self.owner = owner


# ---- callables --------------------------------------------------------------------------------------------------------

class FnValue:
    """A function: declaration plus the scope it was written in.  `owner` is the layer instance of a method; `inline`: its scope
    may hold run-time values (lambdas, functions of rules), so it is elaborated anew at each call."""

    __slots__ = ("decl", "scope", "name", "owner", "inline")

    def __init__(self, decl: A.FnDef | A.Lambda, scope: Scope, name: str | None = None, owner: LayerInstance | None = None,
                 inline: bool | None = None):
        self.decl, self.scope, self.name, self.owner = decl, scope, name, owner
        self.inline = isinstance(decl, A.Lambda) if inline is None else inline

    def __eq__(self, other):
        return type(other) is FnValue and self.decl is other.decl and self.scope is other.scope

    def __hash__(self):
        return hash((id(self.decl), id(self.scope)))

    def __repr__(self):
        return f"fn {self.name or '(..)'}"


class Builtin:
    """An operation implemented in Python: `run(cx, ...)` with the language's argument names."""

    __slots__ = ("name", "run", "params", "required", "defaults", "variadic", "named", "doc", "draws")

    def __init__(self, name: str, run: Callable, draws: bool = False):
        code = run.__code__
        self.name, self.run, self.doc, self.draws = name, run, run.__doc__ or "", draws
        self.params = code.co_varnames[1:code.co_argcount]
        defaults = run.__defaults__ or ()
        self.required = len(self.params) - len(defaults)
        self.defaults = dict(zip(self.params[self.required:], defaults))
        self.variadic = bool(code.co_flags & 4)
        self.named = code.co_varnames[code.co_argcount:code.co_argcount + code.co_kwonlyargcount]       # parameters behind *args

    def __repr__(self):
        return f"operation {self.name}"


class Transform:
    """A function made from functions (`grad(f)`); subclasses have `call(el, args, span)`."""

    __slots__ = ()

    def call(self, el, args: CallArgs, span: Span) -> object:
        raise NotImplementedError

    def captured(self) -> tuple:
        """The values it holds on to, for the search of captured run-time values."""
        return ()


class CallArgs:
    """The evaluated arguments of a call: values with the spans they were written at."""

    __slots__ = ("pos", "spans", "kw", "kw_spans", "names")

    def __init__(self, pos=(), spans=(), kw=None, kw_spans=None):
        self.pos, self.spans = list(pos), list(spans)
        self.kw, self.kw_spans = kw or {}, kw_spans or {}
        self.names: dict[str, Span] = {}                       # where the names of `kw` stand, if they were written

    def name_span(self, name: str) -> Span:
        return self.names.get(name) or self.kw_spans[name]

    @staticmethod
    def of(values, span: Span) -> CallArgs:
        values = list(values)
        return CallArgs(values, [span] * len(values))


class QuantType:
    """A quantised weight type: latent values are f32, reads go through the quantiser."""

    __slots__ = ("name", "bits")

    def __init__(self, name: str, bits: int | None = None):
        self.name, self.bits = name, bits

    def __eq__(self, other):
        return type(other) is QuantType and (self.name, self.bits) == (other.name, other.bits)

    def __hash__(self):
        return hash((self.name, self.bits))

    def __repr__(self):
        return self.name if self.bits is None else f"{self.name}({self.bits})"


class RangeValue:
    """`a..b`; the bounds are compile-time ints (or dims), or run-time i64[] values."""

    __slots__ = ("start", "stop")

    def __init__(self, start, stop):
        self.start, self.stop = start, stop

    @property
    def is_static(self) -> bool:
        return not isinstance(self.start, Value) and not isinstance(self.stop, Value)


class Reversed:
    """`reversed(x)`, for scan."""

    __slots__ = ("of",)

    def __init__(self, of):
        self.of = of


class Namespace:
    """`import ... as nn`: names behind a dot."""

    __slots__ = ("name", "scope")

    def __init__(self, name: str, scope: Scope):
        self.name, self.scope = name, scope


class RuleValue:
    """A `rule`, before it is given arguments."""

    __slots__ = ("decl", "scope")

    def __init__(self, decl: A.Rule, scope: Scope):
        self.decl, self.scope = decl, scope

    def __repr__(self):
        return f"rule {self.decl.name}"


# ---- layers -----------------------------------------------------------------------------------------------------------

class LayerClass:
    """A `layer` declaration."""

    __slots__ = ("decl", "scope")

    def __init__(self, decl: A.Layer, scope: Scope):
        self.decl, self.scope = decl, scope

    @property
    def name(self) -> str:
        return self.decl.name

    def __repr__(self):
        return f"layer {self.decl.name}"


def declared(item: A.FnDef | A.Layer | A.Rule, scope: Scope) -> FnValue | LayerClass | RuleValue:
    """What a top-level declaration in a file with these names stands for."""
    if isinstance(item, A.FnDef):
        return FnValue(item, scope, item.name)
    return LayerClass(item, scope) if isinstance(item, A.Layer) else RuleValue(item, scope)


class LayerInstance:
    """A layer with its arguments: cells of its own (`own`, in order), children (sub-layers, lists of them, functions), methods.
    Two instances with equal `key` have the same structure, so they share functions; each has its own cells."""

    __slots__ = ("cls", "args", "scope", "own", "children", "forward", "methods", "names", "key", "span", "label",
                 "extras", "watched", "_cells")

    def __init__(self, cls: LayerClass, args: dict[str, object], scope: Scope, span: Span):
        self.cls, self.args, self.scope, self.span = cls, args, scope, span
        self.own: dict[str, Slot] = {}
        self.children: dict[str, object] = {}
        self.forward: FnValue | None = None
        self.methods: dict[str, FnValue] = {}
        self.names: list[A.NameKey] = []
        self.key: object = None
        self.label: str | None = None                  # what it was bound to, for messages
        self.extras: dict[str, object] = {}            # attributes that others add (a rule's readout)
        self.watched: dict[str, Signal] = {}           # signals that a rule asked for
        self._cells: list[tuple[str, Slot]] | None = None

    def __repr__(self):
        return f"layer {self.cls.name}"

    def walk(self, prefix: str = "") -> Iterator[tuple[str, LayerInstance]]:
        """Itself and all layers below with their paths, in order of declaration; a shared one may come twice."""
        yield prefix, self
        for name, child in self.children.items():
            yield from walk_layers(child, f"{prefix}.{name}" if prefix else name)

    @property
    def cells(self) -> list[tuple[str, Slot]]:
        """All (path, slot) of the subtree: parameters, then states, then caches, each in order of declaration.  A layer that is
        reached twice counts once, under its first path."""
        if self._cells is None:
            found: dict[Slot, str] = {}
            for path, inst in self.walk():
                for name, slot in inst.own.items():
                    found.setdefault(slot, f"{path}.{name}" if path else name)
            self._cells = [(p, s) for kind in ("param", "state", "cache") for s, p in found.items() if s.kind == kind]
        return self._cells

    @property
    def params(self) -> list[tuple[str, Slot]]:
        return [(p, s) for p, s in self.cells if s.kind == "param"]

    def signals(self) -> list[Signal]:
        """The requested signals of the subtree, in a fixed order."""
        out: dict[Signal, None] = {}
        for _, inst in self.walk():
            for s in inst.watched.values():
                out[s] = None
        return list(out)


def walk_layers(value: object, path: str) -> Iterator[tuple[str, LayerInstance]]:
    """The layers in a value that is a layer or a (nested) list of layers and functions."""
    if isinstance(value, LayerInstance):
        yield from value.walk(path)
    elif isinstance(value, list | tuple):
        for i, v in enumerate(value):
            yield from walk_layers(v, f"{path}.{i}" if path else str(i))


class Tree:
    """Values for the parameters of a layer: a gradient, an average of weights.  Paths are the layer's: `g.hidden.w`."""

    __slots__ = ("layer", "values", "prefix")

    def __init__(self, layer: LayerInstance, values: dict[Slot, Value]):
        self.layer, self.values = layer, values

    def __repr__(self):
        return f"values of layer {self.layer.cls.name}"


# ---- for people -------------------------------------------------------------------------------------------------------

def type_text(t: TensorType) -> str:
    """A type as the language writes it: `f32[B, 128]`, and `f32` for a scalar."""
    return f"{t.dtype}[{', '.join(map(str, t.shape))}]" if t.shape else str(t.dtype)


def describe(v: object) -> str:
    """A value in a message."""
    if isinstance(v, Value):
        return type_text(v.type)
    if v is None:
        return "none"
    if isinstance(v, bool):
        return "true" if v else "false"
    if isinstance(v, str):
        return f'the string "{v}"' if len(v) < 30 else "a string"
    if isinstance(v, Quotient) and v.whole is not None:
        return str(v.whole)
    if isinstance(v, int | float | Dim):
        return f"the number {v}"
    if isinstance(v, Opaque):
        return "a number"
    if isinstance(v, tuple):
        return f"a tuple ({', '.join(describe(x) for x in v)})" if len(v) < 4 else f"a tuple of {len(v)}"
    if isinstance(v, list):
        return f"a list of {len(v)}"
    if isinstance(v, FnValue):
        return f"the function `{v.name}`" if v.name else "a function"
    if isinstance(v, Builtin):
        return f"the operation `{v.name}`"
    if isinstance(v, LayerClass):
        return f"the layer `{v.name}` without its arguments"
    if isinstance(v, LayerInstance):
        return f"a layer {v.cls.name}"
    if isinstance(v, Tree):
        return f"values of a layer {v.layer.cls.name}"
    if isinstance(v, DType):
        return f"the type {v}"
    if isinstance(v, RuleValue):
        return f"the rule `{v.decl.name}`"
    if isinstance(v, RangeValue):
        return "a range"
    if isinstance(v, Transform):
        return "a function"
    if v is UNIT:
        return "no value"
    return str(v)


def is_number(v: object) -> bool:
    """A compile-time number (bools excluded)."""
    return isinstance(v, int | float | Dim | Opaque) and not isinstance(v, bool)


def is_callable(v: object) -> bool:
    return isinstance(v, FnValue | Builtin | LayerInstance | Tree | Transform | DType)
