"""grad, value_and_grad, vjp, jvp, custom_grad: functions made from functions.

`grad(f)(x)` watches x, calls f, and asks for the gradient in the same block (autodiff.gradient); the pass `grad` does the work.
A layer is differentiated with respect to its parameters: its gradient is a Tree with the same paths.
"""
from __future__ import annotations

from ..compiler.diagnostics import Span, did_you_mean
from ..compiler.ir import Block, Func, Value
from ..compiler.ir.opdef import TypeMismatch
from .arguments import bind_params, captures, fn_text
from .calls import call, make_func, overlay
from .elaborator import Elaborator
from .frame import Frame
from .tensors import as_tensor, is_weak
from .trees import flatten, leaf_names, unflatten
from .values import (
    Builtin,
    CallArgs,
    FnValue,
    LayerInstance,
    Slot,
    Transform,
    Tree,
    describe,
    type_text,
)


class Grad(Transform):
    """`grad(f, wrt = ...)`, `value_and_grad(f, wrt = ...)`."""

    __slots__ = ("f", "wrt", "value")

    def __init__(self, f: object, wrt: list[str] | str | None, value: bool):
        self.f, self.wrt, self.value = f, wrt, value

    def captured(self) -> tuple:
        return (self.f,)

    def call(self, el: Elaborator, args: CallArgs, span: Span) -> object:
        one = not isinstance(self.wrt, list)
        wanted = [self.wrt] if one else self.wrt
        loss, grads = gradient(el, self.f, args, wanted, span)
        g = grads[0] if one else tuple(grads)
        return (loss, g) if self.value else g


def parameter_names(f: object) -> list[str] | None:
    if isinstance(f, FnValue):
        return [p.name for p in f.decl.params]
    if isinstance(f, LayerInstance) and f.forward is not None:
        return [p.name for p in f.forward.decl.params]
    if isinstance(f, Tree):
        return parameter_names(f.layer)
    if isinstance(f, Builtin):
        return list(f.params)
    if isinstance(f, Grad):
        return parameter_names(f.f)
    if isinstance(f, Custom):
        return parameter_names(f.forward)
    return None


class Variable:
    """One thing to differentiate with respect to: which argument, and which part of it."""

    __slots__ = ("at", "key", "path")

    def __init__(self, at: int | None, key: str | None, path: list[str]):
        self.at, self.key, self.path = at, key, path


def find_variable(el: Elaborator, f: object, args: CallArgs, wrt: str | int | None, span: Span) -> Variable:
    """What `wrt` means in this call: a parameter's name with a path behind it, a position, or none for the first."""
    if isinstance(wrt, int):
        return Variable(wrt, None, [])
    names = parameter_names(f)
    if wrt is None:
        if args.pos:
            return Variable(0, None, [])
        if args.kw and names and names[0] in args.kw:
            return Variable(None, names[0], [])
        el.fail(span, "`grad` differentiates the first argument; there is none", hint="`wrt = \"name\"` names another one")
    head, *path = wrt.split(".")
    if names is None or head not in names:
        near = did_you_mean(head, names or [])
        el.fail(span, f"`wrt = \"{wrt}\"`: {fn_text(f) if isinstance(f, FnValue) else 'the function'} has no parameter `{head}`",
                hint=f"did you mean `{near}`?" if near else f"its parameters are: {', '.join(names or [])}")
    i = names.index(head)
    if i < len(args.pos):
        return Variable(i, None, path)
    if head in args.kw:
        return Variable(None, head, path)
    el.fail(span, f"`wrt = \"{wrt}\"`: the argument `{head}` is not given")


class Watched:
    """A call of a function whose wanted arguments are watched: its value, and what to differentiate with respect to."""

    def __init__(self, el: Elaborator, f: object, args: CallArgs, wanted: list[str | int | None], span: Span):
        args = CallArgs(args.pos, args.spans, dict(args.kw), args.kw_spans)
        variables = [find_variable(el, f, args, w, span) for w in wanted]
        watched: dict[object, object] = {}                     # argument place -> watched value (tensors, tuples)
        cells: dict[Slot, Value] = {}                          # watched parameters of layers
        self.targets: list[tuple] = []                         # (part of a layer, its slots) or (structure of a value, None)
        self.xs: list[Value] = []
        for v in variables:
            place = v.at if v.at is not None else v.key
            value = watched.get(place, args.pos[v.at] if v.at is not None else args.kw[v.key])
            if isinstance(value, LayerInstance):
                part = layer_part(el, value, v.path, span)
                slots = [part] if isinstance(part, Slot) else [s for _, s in _params_of(part)]
                watch_cells(el, slots, cells, span)
                self.targets.append((part, slots))
                self.xs += [cells[s] for s in slots]
                continue
            if v.path and not isinstance(value, Tree):
                el.fail(span, f"`{'.'.join(v.path)}`: {describe(value)} has no parts to differentiate with respect to")
            if place not in watched:
                value = watched[place] = watch_value(el, value, span)
                if v.at is not None:
                    args.pos[v.at] = value
                else:
                    args.kw[v.key] = value
            part = value
            for name in v.path:
                from .expressions import tree_attribute
                part = tree_attribute(el, part, name, span)
            spec, leaves = flatten(part)
            self.targets.append((spec, None))
            self.xs += leaves
        with overlay(el, cells):
            self.out = call(el, f, args, span)
        if is_weak(self.out):
            self.out = as_tensor(el.b(span), self.out)
        self.spec, self.ys = flatten(self.out)

    def pack(self, values: list[Value]) -> list[object]:
        """One value per x in the structures of the wanted variables."""
        results: list[object] = []
        k = 0
        for part, slots in self.targets:
            if slots is not None:
                results.append(layer_tree(part, dict(zip(slots, values[k:k + len(slots)]))))
                k += len(slots)
            else:
                n = sum(1 for _ in leaf_names(part, ""))
                results.append(unflatten(part, values[k:k + n]))
                k += n
        return results


def watch_cells(el: Elaborator, slots: list[Slot], cells: dict[Slot, Value], span: Span) -> None:
    b = el.b(span)
    for s in slots:
        if s not in cells:
            old = el.frame.value_of(s)
            cells[s] = b.op("autodiff.watch", [old if old is not None else el.frame.take_argument(s, s.type, s.name)]).result


def gradient(el: Elaborator, f: object, args: CallArgs, wanted: list[str | int | None], span: Span,
             seed: object = None) -> tuple[object, list[object]]:
    """Calls f and differentiates it: its value, and one gradient per wanted variable.  Without a seed the value is a scalar."""
    w = Watched(el, f, args, wanted, span)
    ys = w.ys
    if seed is None:
        if isinstance(w.out, Value) and not w.out.type.dtype.is_float:
            el.fail(span, f"only floats have derivatives; {fn_text(f) if isinstance(f, FnValue) else 'the function'} gives {describe(w.out)}",
                    hint="comparisons, counts and indices are constant wherever they do not jump")
        if len(ys) != 1 or not isinstance(w.out, Value) or ys[0].type.rank != 0 or not ys[0].type.dtype.is_float:
            el.fail(span, f"only a scalar can be differentiated; {fn_text(f) if isinstance(f, FnValue) else 'the function'} gives {describe(w.out)}",
                    hint="`sum` or `mean` makes a scalar; `vjp(f, x)[1](g)` takes a cotangent of any shape")
        seeds = [el.b(span).constant(1.0, ys[0].type)]
    else:
        seeds = match_seed(el, ys, flatten(seed)[1] or [seed], span)
    return w.out, w.pack(vjp_op(el, ys, seeds, w.xs, span))


def push_forward(el: Elaborator, f: object, args: CallArgs, wanted: list[str | int | None], tangents: list[object],
                 span: Span) -> tuple[object, object]:
    """(f(..), its derivative along the tangents): the pullback is linear in its cotangent, so its own pullback pushes forward."""
    w = Watched(el, f, args, wanted, span)
    if not w.ys or any(not y.type.dtype.is_float for y in w.ys):
        el.fail(span, f"the function gives {describe(w.out)}, which has no derivative")
    b = el.b(span)
    zeros = [b.op("autodiff.watch", [b.constant(0.0, y.type)]).result for y in w.ys]
    adjoints = vjp_op(el, w.ys, zeros, w.xs, span)
    vs = [x for t in tangents for x in (flatten(t)[1] or [t])]
    if len(vs) != len(adjoints):
        el.fail(span, f"{len(adjoints)} tensors need {len(adjoints)} tangents, got {len(vs)}")
    from .statements import fit
    vs = [fit(el, v, x.type, span, "the tangent") for v, x in zip(vs, adjoints)]
    return w.out, unflatten(w.spec, vjp_op(el, adjoints, vs, zeros, span))


def vjp_op(el: Elaborator, ys: list[Value], seeds: list[Value], xs: list[Value], span: Span) -> list[Value]:
    try:
        return list(el.b(span).op("autodiff.gradient", [*ys, *seeds, *xs], {"n_y": len(ys), "n_x": len(xs)}).results)
    except TypeMismatch as e:
        el.fail(span, str(e))


def watch_value(el: Elaborator, v: object, span: Span) -> object:
    """The tensors of an argument as fresh values."""
    if is_weak(v):
        v = as_tensor(el.b(span), float(v) if isinstance(v, int) and not isinstance(v, bool) else v)
    spec, leaves = flatten(v)
    if not leaves:
        el.fail(span, f"cannot differentiate with respect to {describe(v)}")
    for x in leaves:
        if not x.type.dtype.is_float:
            el.fail(span, f"cannot differentiate with respect to {type_text(x.type)}: only floats have derivatives",
                    hint="`wrt = \"name\"` names another argument")
    b = el.b(span)
    return unflatten(spec, [b.op("autodiff.watch", [x]).result for x in leaves])


def match_seed(el: Elaborator, ys: list[Value], seeds: list[object], span: Span) -> list[Value]:
    if len(seeds) != len(ys):
        el.fail(span, f"the function gives {len(ys)} tensors, but there are {len(seeds)} cotangents")
    from .statements import fit
    return [fit(el, s, y.type, span, "the cotangent") for s, y in zip(seeds, ys)]


def layer_part(el: Elaborator, inst: LayerInstance, path: list[str], span: Span) -> object:
    part: object = inst
    for name in path:
        if isinstance(part, list | tuple) and name.isdigit() and int(name) < len(part):
            part = part[int(name)]
            continue
        if not isinstance(part, LayerInstance):
            el.fail(span, f"`{'.'.join(path)}` is no part of layer {inst.cls.name}")
        nxt = part.own.get(name) or part.children.get(name)
        if nxt is None:
            near = did_you_mean(name, [*part.own, *part.children])
            el.fail(span, f"layer {part.cls.name} has no `{name}`", hint=f"did you mean `{near}`?" if near else None)
        part = nxt
    return part


def _params_of(part: object) -> list[tuple[str, Slot]]:
    if isinstance(part, LayerInstance):
        return part.params
    if isinstance(part, list | tuple):
        return [p for x in part for p in _params_of(x)]
    return []


def layer_tree(part: object, values: dict[Slot, Value]) -> object:
    """The gradient of a layer (or list of layers, or one parameter) in its own structure."""
    if isinstance(part, Slot):
        return values[part]
    if isinstance(part, LayerInstance):
        return Tree(part, {s: values[s] for _, s in part.params})
    return [layer_tree(p, values) for p in part]


# ---- vjp, jvp ---------------------------------------------------------------------------------------------------------

class Pullback(Transform):
    """The second part of `vjp(f, x)`: cotangents in, adjoints out."""

    __slots__ = ("ys", "xs_spec", "xs")

    def __init__(self, ys: list[Value], xs_spec: tuple, xs: list[Value]):
        self.ys, self.xs_spec, self.xs = ys, xs_spec, xs

    def captured(self) -> tuple:
        return tuple(self.ys)

    def call(self, el: Elaborator, args: CallArgs, span: Span) -> object:
        if args.kw or not args.pos:
            el.fail(span, "the second part of `vjp(f, x)` takes the cotangents of f's results")
        _, seeds = flatten(tuple(args.pos) if len(args.pos) > 1 else args.pos[0])
        if not seeds:
            seeds = list(args.pos)                             # numbers
        grads = vjp_op(el, self.ys, match_seed(el, self.ys, seeds, span), self.xs, span)
        out = unflatten(self.xs_spec, grads)
        return out[0] if len(out) == 1 else out


def vjp(el: Elaborator, f: object, values: list[object], span: Span) -> tuple[object, Pullback]:
    """(f(x, ..), pullback)."""
    inputs: list[object] = []
    cells: dict[Slot, Value] = {}
    watched: list[object] = []
    for v in values:
        if isinstance(v, LayerInstance):
            watch_cells(el, [s for _, s in v.params], cells, span)
            watched.append(Tree(v, {s: cells[s] for _, s in v.params}))
            inputs.append(v)
        else:
            w = watch_value(el, v, span)
            inputs.append(w)
            watched.append(w)
    with overlay(el, cells):
        out = call(el, f, CallArgs.of(inputs, span), span)
    _, ys = flatten(out)
    if not ys:
        el.fail(span, f"the function gives {describe(out)}, which has no derivative")
    spec, xs = flatten(tuple(watched))
    return out, Pullback(ys, spec, xs)


def jvp(el: Elaborator, f: object, values: list[object], tangents: list[object], span: Span) -> tuple[object, object]:
    """(f(x, ..), its derivative along the tangents of all arguments)."""
    return push_forward(el, f, CallArgs.of(values, span), list(range(len(values))), tangents, span)


# ---- custom_grad ------------------------------------------------------------------------------------------------------

class Custom(Transform):
    """`custom_grad(forward, backward)`: backward takes the inputs, the output, and its gradient."""

    __slots__ = ("forward", "backward")

    def __init__(self, forward: object, backward: object):
        self.forward, self.backward = forward, backward

    def captured(self) -> tuple:
        return (self.forward, self.backward)

    def call(self, el: Elaborator, args: CallArgs, span: Span) -> object:
        if el.frame is None:
            return call(el, self.forward, args, span)
        values = list(args.pos)
        if isinstance(self.forward, FnValue):
            bound = bind_params(el, "this function", self.forward.decl.params, args, span, None)
            values = [v for _, v, _ in bound]
        b = el.b(span)
        spec, leaves = flatten(tuple(as_tensor(b, v) if is_weak(v) else v for v in values))
        for f, what in ((self.forward, "forward"), (self.backward, "backward")):
            if captures(f):
                el.fail(span, f"the {what} function of `custom_grad` uses values from outside", hint="pass them as arguments")
        forward, out_spec = separate(el, self.forward, spec, leaves, "forward", span)
        out_types = forward.result_types
        b = el.b(span)
        # the backward function sees inputs, results, cotangents
        probe = Block([v.type for v in leaves] + list(out_types) * 2)
        n, m = len(leaves), len(out_types)
        res = unflatten(out_spec, probe.args[n:n + m])
        cot = unflatten(out_spec, probe.args[n + m:])
        packed = (*unflatten(spec, probe.args[:n]), res, cot)
        pspec, pleaves = flatten(packed)
        backward, _ = separate(el, self.backward, pspec, pleaves, "backward", span)
        want = [v.type for v in leaves if v.type.dtype.is_float]
        if list(backward.result_types) != want:
            el.fail(span, f"the backward function gives ({', '.join(map(type_text, backward.result_types))}), expected one gradient for "
                          f"each input: ({', '.join(map(type_text, want))})")
        op = b.op("autodiff.custom", leaves, {"forward": forward.name, "backward": backward.name, "result_types": list(out_types)})
        return unflatten(out_spec, op.results)


class Checkpoint(Transform):
    """`checkpoint(f)`: f, whose intermediate values are not kept for the derivative but computed again from its arguments
    (gradient checkpointing: Chen et al. 2016, arXiv 1604.06174).  Inside a scan's body only the arguments of each step are kept."""

    __slots__ = ("forward",)

    def __init__(self, forward: object):
        self.forward = forward

    def captured(self) -> tuple:
        return (self.forward,)

    def call(self, el: Elaborator, args: CallArgs, span: Span) -> object:
        if el.frame is None:
            return call(el, self.forward, args, span)
        if captures(self.forward) or isinstance(self.forward, LayerInstance) or getattr(self.forward, "owner", None) is not None:
            el.fail(span, "the function of `checkpoint` uses values from outside", hint="pass them as arguments: checkpoint(fn (w, x) { .. })(w, x)")
        values = list(args.pos)
        if isinstance(self.forward, FnValue):
            values = [v for _, v, _ in bind_params(el, "this function", self.forward.decl.params, args, span, None)]
        b = el.b(span)
        spec, leaves = flatten(tuple(as_tensor(b, v) if is_weak(v) else v for v in values))
        forward, out_spec = separate(el, self.forward, spec, leaves, "forward", span)
        backward = self._backward(el, forward, leaves, span)
        op = el.b(span).op("autodiff.custom", leaves, {"forward": forward.name, "backward": backward.name,
                                                       "result_types": list(forward.result_types)})
        return unflatten(out_spec, op.results)

    def _backward(self, el: Elaborator, forward: Func, leaves: list[Value], span: Span) -> Func:
        """(xs, results, cotangents) -> adjoints of the float xs, from a forward pass of its own."""
        key = ("checkpoint", forward.name)
        found = el.memo.get(key)
        if found is not None:
            return found
        frame = Frame("recompute", training=el.training, plain=True)
        types = [*(v.type for v in leaves), *forward.result_types, *(t for t in forward.result_types if t.dtype.is_float)]
        args = [Value(t, frame.block, f"x{i}") for i, t in enumerate(types)]
        n, m = len(leaves), len(forward.result_types)
        with el.in_frame(frame):
            b = el.b(span)
            again = b.op("func.call", args[:n], {"callee": forward.name, "result_types": list(forward.result_types)}).results
            flows = list(zip([y for y in again if y.type.dtype.is_float], args[n + m:]))
            xs = [x for x in args[:n] if x.type.dtype.is_float]
            grads = b.op("autodiff.gradient", [*[y for y, _ in flows], *[g for _, g in flows], *xs],
                         {"n_y": len(flows), "n_x": len(xs)}).results if flows and xs else []
        # not inlined: beside the forward pass, equal ops would be merged and their values kept after all
        el.memo[key] = made = make_func(el, frame, "recompute", args, list(grads), span, {"noinline": True})
        return made


def separate(el: Elaborator, f: object, spec: tuple, leaves: list[Value], name: str, span: Span) -> tuple[Func, tuple]:
    """A function value as an IR function of its own over tensors of these types, and the structure of its result."""
    key = ("separate", f if isinstance(f, FnValue | Transform | Builtin) else id(f), spec, tuple(v.type for v in leaves), el.training)
    found = el.memo.get(key)
    if found is not None:
        return found
    frame = Frame(name, training=el.training, plain=True)
    args = [Value(v.type, frame.block, f"x{i}") for i, v in enumerate(leaves)]
    with el.in_frame(frame):
        out = call(el, f, CallArgs.of(unflatten(spec, args), span), span)
        if is_weak(out):
            out = as_tensor(el.b(span), out)
    out_spec, results = flatten(out)
    el.memo[key] = made = (make_func(el, frame, name, args, results, span), out_spec)
    return made


__all__ = ["Grad", "vjp", "jvp", "Custom", "Checkpoint", "gradient", "push_forward"]
