"""What the rest of Engram asks of the front end: check a program, elaborate a function, a layer's call, its initial values.

Every `elaborate_*` gives an `Elaborated`: an IR module at stage "nn" with one entry function, and what its arguments and results
are.  Nothing here knows of training; see train.py.
"""
from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from ..compiler.diagnostics import CompileError, Span, did_you_mean, error
from ..compiler.ir import Module, TensorType, Value, i64
from . import ast as A
from . import evaluate  # noqa: F401
from .arguments import bind_signature, is_key
from .calls import call, finish, make_func, place_errors, run_body
from .derivatives import gradient, push_forward
from .elaborator import Elaborator, deep_recursion
from .frame import KEY, Frame
from .layers import instantiate as make_layer
from .program import Program
from .signature import source_text
from .tensors import as_tensor, is_weak
from .trees import flatten, leaf_names
from .values import (
    CallArgs,
    FnValue,
    LayerClass,
    LayerInstance,
    Poisoned,
    Slot,
    Tree,
    type_text,
)
from .values import (
    Value as _Value,
)

NOWHERE = Span("<call>", 1, 1, 1, 2)
INDEX = TensorType(i64)


@dataclass
class Info:
    """One argument or result of an entry function.  kind: "param" | "state" | "cache" (path as in the layer's slots), "arg", "key",
    "result"."""

    kind: str
    name: str
    type: TensorType
    slot: Slot | None = None


@dataclass
class Elaborated:
    """A module with an entry function.  `spec` is the structure of its value: see `pack`."""

    module: Module
    entry: str
    args: list[Info]
    results: list[Info]
    spec: tuple
    warnings: list = field(default_factory=list)
    written: list[int] = field(default_factory=list)         # which params and states (numbered in slot order) the last results replace

    @property
    def structure(self) -> object:
        """The value's tensors as nested tuples of None; None itself for one tensor."""
        return _nest(self.spec)

    def pack(self, arrays: list) -> object:
        """The results proper (without new states) in the structure the program gave them: a tuple for a tuple, a dict path -> array
        for a layer's values, one array for one tensor."""
        return _pack(self.spec, iter(arrays))


def _nest(spec: tuple) -> object:
    if spec[0] == "v":
        return None
    return tuple(None for _ in spec[2]) if spec[0] == "tree" else tuple(_nest(s) for s in spec[1]) if spec[0] in ("t", "l") else ()


def _pack(spec: tuple, it) -> object:
    kind = spec[0]
    if kind == "v":
        return next(it)
    if kind == "s":
        return spec[1] if not isinstance(spec[1], LayerInstance) else None
    if kind == "tree":
        paths = {s: p for p, s in spec[1].cells}
        return {paths[s]: next(it) for s in spec[2]}
    items = [_pack(s, it) for s in spec[1]]
    return tuple(items) if kind == "t" else items


@dataclass
class SlotInfo:
    """A parameter, state or cache of a layer instance.  `type` is None for a cache whose dims a call fixes."""

    path: str
    type: TensorType | None
    kind: str
    slot: Slot


@dataclass
class Signature_:
    """A top-level function for people and for binding by name: parameter names, written types (None: a compile-time value)."""

    name: str
    params: list[tuple[str, str | None, bool]]               # name, type text, has a default
    result: str | None
    span: Span


# ---- looking at programs ----------------------------------------------------------------------------------------------

def functions(program: Program) -> dict[str, Signature_]:
    """The top-level functions of the main file."""
    return {name: Signature_(name, [(p.name, source_text(p.type) if p.type else None, p.default is not None or is_key(p)) for p in d.params],
                             source_text(d.result) if d.result else None, d.name_span)
            for name, d in program.functions.items()}


def find(program: Program, name: str, kind: type, what: str) -> object:
    """A top-level value of the program (or of what it imports)."""
    v = program.scope.lookup(name)
    if not isinstance(v, kind):
        names = [n for n, i in program.main.items.items() if isinstance(i, A.FnDef if kind is FnValue else A.Layer)]
        near = did_you_mean(name, names)
        raise error(None, f"{program.file}: there is no {what} `{name}`",
                    hint=f"did you mean `{near}`?" if near else f"it has: {', '.join(names)}" if names else None)
    return v


# ---- entry functions --------------------------------------------------------------------------------------------------

def _run(el: Elaborator, body: Callable[[], object]) -> object:
    """Runs one elaboration step with room to recurse; raises all diagnostics there are."""
    try:
        with deep_recursion():
            out = body()
    except CompileError as e:
        el.diags.extend(e)
        out = None
    except Poisoned:
        out = None
    el.finish()
    return out


def _entry(el: Elaborator, frame: Frame, name: str, value: object, args: list[tuple[Info, Value]], slots: list[tuple[str, Slot]],
           span: Span | None) -> Elaborated:
    """Closes an entry: cells first, then the arguments, then the key."""
    with el.in_frame(frame):
        spec, results = flatten(_concrete(el, value, span or NOWHERE))
    infos: list[Info] = []
    values: list[Value] = []
    known = {s for _, s in slots}
    for path, s in slots:
        v = frame.arg_cells.get(s)
        if v is None and s.kind != "cache":
            v = frame.take_argument(s, s.type, path)
        if v is not None:
            v.name = path
            infos.append(Info(s.kind, path, v.type, s))
            values.append(v)
    for c in [*frame.arg_cells, *frame.cells]:
        if c not in known:
            raise AssertionError(f"{name} uses {c}, which is not an argument")
    for info, v in args:
        infos.append(info)
        values.append(v)
    if frame.key_is_argument:
        infos.append(Info("key", "key", KEY))
        values.append(frame.key)
    outs = [Info("result", n, v.type) for n, v in zip(leaf_names(spec, "out"), results)]
    written = [(p, s) for p, s in slots if s in frame.cells]
    outs += [Info(s.kind, p, frame.cells[s].type, s) for p, s in written]
    places = {info.slot: i for i, info in enumerate(infos) if info.kind == "cache"}
    donate = [[places[s], len(results) + k] for k, (_, s) in enumerate(written) if s in places]     # caches are updated where they are
    func = make_func(el, frame, name, values, [*results, *[frame.cells[s] for _, s in written]], span,
                     {"result_names": [o.name for o in outs], **({"donate": donate} if donate else {})})
    el.module.attrs["entries"].append(func.name)
    kept = [s for _, s in slots if s.kind != "cache"]
    return Elaborated(el.module, func.name, infos, outs, spec, el.diags.warnings, [i for i, s in enumerate(kept) if s in frame.cells])


def _concrete(el: Elaborator, value: object, span: Span) -> object:
    """The value of an entry: a layer stands for its parameters, numbers for tensors where a tuple mixes them."""
    if isinstance(value, LayerInstance):
        return Tree(value, {s: el.read(s, None, span) for _, s in value.params})
    if isinstance(value, tuple | list):
        return type(value)(_concrete(el, v, span) for v in value)
    if is_weak(value):
        return as_tensor(el.b(span), value)
    return value


def _arguments(frame: Frame, names: list[str], given: list[object]) -> tuple[list[object], list[tuple[Info, Value]], list[tuple[str, LayerInstance]]]:
    """Values for given arguments: a TensorType becomes an argument of the entry, tuples of them too; the rest stays."""
    infos: list[tuple[Info, Value]] = []
    layers: list[tuple[str, LayerInstance]] = []

    def make(v: object, name: str) -> object:
        if isinstance(v, TensorType):
            x = Value(v, frame.block, name)
            infos.append((Info("arg", name, v), x))
            return x
        if isinstance(v, tuple | list):
            return type(v)(make(x, f"{name}.{i}") for i, x in enumerate(v))
        if isinstance(v, LayerInstance):
            layers.append((name, v))
        if isinstance(v, dict):
            raise TypeError("a dict is no argument of a function")
        return v

    return [make(v, n) for n, v in zip(names, given)], infos, layers


def _slots_of(layers: list[tuple[str, LayerInstance]], prefix: bool = True) -> list[tuple[str, Slot]]:
    out: dict[Slot, str] = {}
    for name, inst in layers:
        for path, s in inst.cells:
            out.setdefault(s, f"{name}.{path}" if prefix else path)
    return [(p, s) for s, p in out.items()]


def _bind(program: Program | None, fn: FnValue, args, kwargs: dict | None, what: str) -> tuple[list[str], list[object]]:
    """Names and values of the given arguments, in order; wrong counts and names are diagnostics that name them."""
    params = fn.decl.params
    args = list(args)
    names = [p.name for p in params]
    if len(args) > len(params):
        raise error(fn.decl.span.start(), f"{what} takes {len(params)} argument{'s' if len(params) != 1 else ''}, got {len(args)}",
                    hint=f"its parameters are: {', '.join(names)}" if names else None)
    given = {n: v for n, v in zip(names, args) if not left_out(v)}
    for k, v in (kwargs or {}).items():
        if left_out(v):
            continue
        if k not in names:
            near = did_you_mean(k, names)
            raise error(fn.decl.span.start(), f"{what} has no parameter `{k}`",
                        hint=f"did you mean `{near}`?" if near else f"its parameters are: {', '.join(names)}")
        if k in given:
            raise error(fn.decl.span.start(), f"argument `{k}` of {what} is given twice")
        given[k] = v
    for p in params:
        if p.name not in given and p.default is None and not is_key(p):
            raise error(p.span, f"{what} needs argument `{p.name}`")
    return [n for n in names if n in given], [given[n] for n in names if n in given]


class Omitted:
    """An argument that was left out: the parameter's default serves.  Callers may use an `_Omitted` of their own."""


OMITTED = Omitted()


def left_out(v: object) -> bool:
    return isinstance(v, Omitted) or type(v).__name__ == "_Omitted"


def elaborate_function(program: Program, name: str, args=(), kwargs: dict | None = None, training: bool = False) -> Elaborated:
    """One specialisation of a top-level function.  Arguments: a TensorType for an array, a Python value for a compile-time
    parameter (number, string, bool, none), a LayerInstance for a layer, tuples of these."""
    fn = find(program, name, FnValue, "function")
    return _elaborate(program, fn, name, args, kwargs, training, None)


def _elaborate(program: Program, fn: FnValue, name: str, args, kwargs, training: bool, transform: Callable | None,
               kind: str = "", extra=()) -> Elaborated:
    names, given = _bind(program, fn, args, kwargs, f"`{name}`")
    el = Elaborator()
    frame = Frame(f"{name}.{kind}" if kind else name, training=training, plain=True)
    more_names = [f"{'cotangent' if kind == 'vjp' else 'tangent'}{i or ''}" for i in range(len(extra))]
    values, infos, layers = _arguments(frame, [*names, *more_names], [*given, *extra])
    frame.roots = layers if len(layers) != 1 else [("", layers[0][1])]
    spans = {p.name: p.span for p in fn.decl.params}

    def body() -> object:
        with el.in_frame(frame):
            ca = CallArgs([], [], dict(zip(names, values)), {n: spans[n] for n in names})
            frame.plain = not any(is_key(p) and p.name not in ca.kw for p in fn.decl.params)    # a key left out: the entry's argument
            if transform is not None:
                return transform(el, fn, ca, fn.decl.span.start(), values[len(names):])
            scope, sig = bind_signature(el, fn, ca, fn.decl.span)
            frame.plain = True
            for p in fn.decl.params:
                v = scope.names[p.name]
                if is_key(p) and isinstance(v, Value) and not frame.key_is_argument:
                    frame.key = v
            el.active.append(((id(fn.decl), None), name, fn.decl.span))
            out = run_body(el, fn, scope, sig)
            el.active.pop()
            return out

    value = _run(el, body)
    return _entry(el, frame, frame.name, value, infos, _slots_of(layers, len(layers) != 1), fn.decl.name_span)


def elaborate_grad(program: Program, name: str, args=(), kwargs: dict | None = None, wrt: str | list[str] | None = None,
                   value: bool = False, training: bool = False) -> Elaborated:
    """The entry computes the gradient of function `name` at its arguments (with `value`: (value, gradient)); a list of names in `wrt`
    gives a tuple of gradients."""
    return elaborate_derivative(program, name, args, "value_and_grad" if value else "grad", wrt, (), kwargs, training)


def elaborate_derivative(program: Program, name: str, args, kind: str, wrt: str | int | list | None = None, extra=(),
                         kwargs: dict | None = None, training: bool = False) -> Elaborated:
    """kind: "grad" -> gradient; "value_and_grad" -> (value, gradient); "vjp" -> (value, adjoints), `extra` the cotangent's type; "jvp" ->
    (value, derivative), `extra` one tangent's type per `wrt`.  The extra arguments come behind the function's own."""
    many = isinstance(wrt, list | tuple)
    wanted = list(wrt) if many else [wrt]

    def transform(el: Elaborator, fn: FnValue, ca: CallArgs, span: Span, more: list[Value]) -> object:
        ca = _positional(fn, ca)
        if kind == "jvp":
            return push_forward(el, fn, ca, wanted, more, span)
        seed = None if kind != "vjp" else more[0] if len(more) == 1 else tuple(more)
        out, grads = gradient(el, fn, ca, wanted, span, seed)
        g = tuple(grads) if many else grads[0]
        return g if kind == "grad" else (out, g)

    fn = find(program, name, FnValue, "function")
    return _elaborate(program, fn, name, args, kwargs, training, transform, kind, list(extra))


def elaborate_vmap(program: Program, name: str, args=(), in_dims: object = 0, out_dims: int = 0, kwargs: dict | None = None) -> Elaborated:
    """Function `name` for every index along a dim of its arguments, whose types have that dim: `in_dims` is one int for all or one
    (or None: not mapped) per argument."""
    def transform(el: Elaborator, fn: FnValue, ca: CallArgs, span: Span, more: list[Value]) -> object:
        from .vectorize import Vmap
        dims = tuple(in_dims) if isinstance(in_dims, list | tuple) else in_dims
        return call(el, Vmap(fn, dims, out_dims), _positional(fn, ca), span)

    fn = find(program, name, FnValue, "function")
    return _elaborate(program, fn, name, args, kwargs, False, transform, "vmap")


def elaborate_vjp(program: Program, name: str, args=(), kwargs: dict | None = None, seed=None) -> Elaborated:
    """(value, adjoints of all arguments; of the only one alone) for a cotangent of the value: `seed` is its type, or a tuple of types."""
    n = len(list(args)) + len(kwargs or {})
    wrt = list(range(n)) if n != 1 else 0
    return elaborate_derivative(program, name, args, "vjp", wrt, list(seed) if isinstance(seed, tuple) else [seed], kwargs)


def elaborate_jvp(program: Program, name: str, args=(), kwargs: dict | None = None, tangents=None) -> Elaborated:
    """(value, its derivative) along tangents of all arguments, given as types."""
    args = list(args)
    return elaborate_derivative(program, name, args, "jvp", list(range(len(args) + len(kwargs or {}))),
                                list(args if tangents is None else tangents), kwargs)


def _positional(fn: FnValue, ca: CallArgs) -> CallArgs:
    """Arguments given by name, in order, as far as they go by position."""
    pos, spans = list(ca.pos), list(ca.spans)
    kw = dict(ca.kw)
    for p in fn.decl.params[len(pos):]:
        if p.name not in kw:
            break
        pos.append(kw.pop(p.name))
        spans.append(p.span)
    return CallArgs(pos, spans, kw, {k: ca.kw_spans[k] for k in kw})


# ---- layers -----------------------------------------------------------------------------------------------------------

def instantiate(program: Program, name: str, args=(), kwargs: dict | None = None) -> LayerInstance:
    """A layer with compile-time arguments."""
    cls = find(program, name, LayerClass, "layer")
    el = Elaborator()
    span = cls.decl.name_span
    ca = CallArgs(list(args), [span] * len(args), dict(kwargs or {}), dict.fromkeys(kwargs or {}, span))
    inst = _run(el, lambda: make_layer(el, cls, ca, span))
    inst.label = inst.label or name
    return inst


def slots(inst: LayerInstance) -> list[SlotInfo]:
    """Parameters, then states, then caches of a layer, each in order of declaration."""
    return [SlotInfo(p, s.type, s.kind, s) for p, s in inst.cells]


def path_number(path: str) -> int:
    """The number that is folded into a key for a path: stable across runs and versions."""
    return int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "little") >> 1


def elaborate_init(inst: LayerInstance) -> Elaborated:
    """init(key) -> parameters and states (not caches) in slot order.  A value depends on the key and its path only."""
    el = Elaborator()
    frame = Frame("init", training=False)
    frame.key = Value(KEY, frame.block, "key")
    wanted = [(p, s) for p, s in inst.cells if s.kind != "cache"]

    def body() -> object:
        with el.in_frame(frame):
            return [initial_value(el, s, p, frame.key) for p, s in wanted]

    values = _run(el, body)
    func = make_func(el, frame, "init", [frame.key], values, inst.span, {"result_names": [p for p, _ in wanted]})
    el.module.attrs["entries"].append(func.name)
    return Elaborated(el.module, func.name, [Info("key", "key", KEY)], [Info(s.kind, p, s.type, s) for p, s in wanted],
                      ("l", (("v",),) * len(wanted)))


def initial_value(el: Elaborator, slot: Slot, path: str, key: Value, type: TensorType | None = None) -> Value:
    """The value a cell of a layer starts with, emitted into the current frame.  Cells that start alike (the weights of twelve equal
    blocks) share a function."""
    decl = slot.decl
    t = type or slot.type
    span = decl.init.span if decl.init is not None else decl.span
    b = el.b(span)
    if decl.init is None:
        return b.zeros(t)
    if isinstance(decl.init, A.Int | A.Float):
        from .statements import fit
        return fit(el, decl.init.value, t, span, f"`{decl.name}`", decl.name_span)
    memo = ("init", id(decl), slot.owner.key, t)
    made = el.memo.get(memo)
    if made is None:
        made = el.memo[memo] = _init_function(el, slot, t, span)
    func, draws = made
    operands = []
    if draws:
        number = el.b(span).constant(path_number(path), INDEX)
        operands = [el.b(span).op("random.fold_in", [key, number]).result]
    return el.b(span).op("func.call", operands, {"callee": func.name, "result_types": [t]}).result


def _init_function(el: Elaborator, slot: Slot, t: TensorType, span: Span):
    from .statements import fit
    decl = slot.decl
    frame = Frame(f"{slot.owner.cls.name}.{decl.name}.init")
    before = len(el.diags.items)
    with el.in_frame(frame):
        frame.expected = t
        value = el.value(decl.init, slot.owner.scope)
        frame.expected = None
        if isinstance(value, Value) and value.type.dtype is not t.dtype and value.type.dtype.is_float and t.dtype.is_float:
            value = el.b(span).cast(value, t.dtype)
        value = fit(el, value, t, span, f"`{decl.name}`", decl.name_span)
    del before
    if frame.arg_cells:
        el.fail(span, f"the initial value of `{decl.name}` uses `{next(iter(frame.arg_cells)).name}`, which has no value yet")
    args = [frame.key] if frame.key_is_argument else []
    return make_func(el, frame, frame.name, args, [value], decl.span), frame.key_is_argument


def elaborate_cache_init(inst: LayerInstance, types: dict[str, TensorType]) -> Elaborated:
    """init() -> the starting values of caches, given their types (as an elaborated call tells them)."""
    el = Elaborator()
    frame = Frame("cache_init")
    frame.key = Value(KEY, frame.block, "key")
    wanted = [(p, s) for p, s in inst.cells if p in types]

    def body() -> object:
        with el.in_frame(frame):
            return [initial_value(el, s, p, frame.key, types[p]) for p, s in wanted]

    values = _run(el, body)
    func = make_func(el, frame, "cache_init", [frame.key], values, inst.span, {"result_names": [p for p, _ in wanted]})
    el.module.attrs["entries"].append(func.name)
    return Elaborated(el.module, func.name, [Info("key", "key", KEY)], [Info(s.kind, p, types[p], s) for p, s in wanted],
                      ("l", (("v",),) * len(wanted)))


def elaborate_call(inst: LayerInstance, args=(), kwargs: dict | None = None, method: str = "", training: bool = False) -> Elaborated:
    """A call of a layer (or of one of its methods).  Arguments of the entry: parameters and states, the caches that the call uses,
    the call's arguments, a key where random numbers are drawn.  Results: the call's, then new states and caches.  A cache that the call
    writes is donated: its array holds the new values afterwards."""
    fn = inst.forward if not method else inst.methods.get(method)
    if fn is None:
        near = did_you_mean(method, inst.methods) if method else None
        raise error(inst.span, f"layer {inst.cls.name} has no {f'method `{method}`' if method else '`fn (..)`, so it cannot be called'}",
                    hint=f"did you mean `{near}`?" if near else None)
    what = f"`{inst.label or inst.cls.name}`" if not method else f"`{method}`"
    names, given = _bind(None, fn, args, kwargs, what)
    el = Elaborator()
    frame = Frame(f"{inst.cls.name}.{method or 'forward'}", training=training, roots=[("", inst)])
    values, infos, layers = _arguments(frame, names, given)
    spans = {p.name: p.span for p in fn.decl.params}

    def body() -> object:
        with el.in_frame(frame):
            ca = CallArgs([], [], dict(zip(names, values)), {n: spans[n] for n in names})
            scope, sig = bind_signature(el, fn, ca, fn.decl.span)
            el.active.append(((id(fn.decl), id(inst)), frame.name, fn.decl.span))
            before = len(el.diags.items)
            try:
                out = run_body(el, fn, scope, sig)
            finally:
                el.active.pop()
                place_errors(el, fn, before, inst.span)
            return out

    value = _run(el, body)
    return _entry(el, frame, frame.name, value, infos, _slots_of([("", inst), *layers], False), fn.decl.name_span)


__all__ = ["Elaborated", "Info", "SlotInfo", "functions", "elaborate_function", "elaborate_grad", "elaborate_derivative", "elaborate_vjp", "elaborate_jvp",
           "OMITTED", "instantiate", "slots", "elaborate_init", "elaborate_cache_init", "elaborate_call", "initial_value",
           "path_number", "type_text", "call", "finish", "_Value"]
