"""What a learning rule reads, proved by data dependence: which arguments of the step every value depends on, and by which way.

Only the analysis; plasticity.py judges with it. Terms: a *frame* is a function as called at one place; the *origin* of a value is
where it really is made, seen through calls, arguments, identities and stacking by scans. A *label* is what a value depends on:
the text of a step argument's role (`param:out.w`, `data:x`, `step` ...), SIGNAL (the layer's own call, opaque), Via(instance, label):
the label, but only through the activations of that instance, Back(instance): what the layer gave, after that other layer has worked
on it, or DERIVED: a derivative.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ..compiler.ir.core import Block, Func, Module, Op, Value

SIGNAL = "signal"
DERIVED = "derivative"
IDENTITIES = ("tensor.stop_gradient", "autodiff.watch")


class Via(NamedTuple):
    """A label that arrives only through the activations of a layer instance."""

    instance: str
    label: object


class Back(NamedTuple):
    """The layer's own output, come back through another layer."""

    instance: str


class Arg(NamedTuple):
    """In the summary of a function: depends on its argument `index`."""

    index: int


class Hop(NamedTuple):
    """The last step of a shortest way by which a label reaches a value: from `value`, with `label` there, by `op`."""

    distance: int
    value: Value | None = None
    label: object = None
    op: Op | None = None


Labels = dict[object, Hop]


def join(prefix: str, instance: str) -> str:
    return f"{prefix}.{instance}" if prefix and instance else prefix or instance


def inside(path: str, instance: str) -> bool:
    """Whether a parameter, state or instance path belongs to the instance."""
    return instance == "" or path == instance or path.startswith(instance + ".")


def carried(label) -> bool:
    """A label that turns into Via at a layer's result: what is learned or kept, not batch data, step, epoch or key."""
    return isinstance(label, Via) or str(label).startswith(("param:", "state:", "own:"))


# ---- frames and origins ---------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Frame:
    """A function at one place of call. `path` is the full path of the layer instance it runs for."""

    func: Func
    parent: Frame | None = None
    call: Op | None = None
    path: str = ""


class Calls:
    """All frames below a step function, and the origins of values in them."""

    def __init__(self, module: Module, step: Func):
        self.module, self.root = module, Frame(step)
        self.children: dict[tuple[Frame, Op], Frame] = {}
        self.xs: dict[Value, Value] = {}                     # argument of a scan's body -> the operand it slices
        self._seen: set[Func] = set()
        self.list: list[tuple[Frame, Op]] = list(self._walk(self.root))

    def _walk(self, frame: Frame) -> Iterator[tuple[Frame, Op]]:
        if frame.func not in self._seen:
            self._seen.add(frame.func)
            for op in frame.func.walk():
                if op.name == "scf.scan":
                    n = op.attrs["n_carry"]
                    self.xs.update(zip(op.regions[0].args[1 + n:], op.operands[n:]))
        for op in frame.func.walk():
            if op.name == "func.call":
                child = Frame(self.module.funcs[op.attrs["callee"]], frame, op, join(frame.path, op.attrs.get("instance") or ""))
                self.children[frame, op] = child
                yield frame, op
                yield from self._walk(child)

    def instances(self) -> Iterator[tuple[str, Frame, Op]]:
        """(full path, frame, call) of every call of a layer."""
        for frame, op in self.list:
            if op.attrs.get("instance") is not None:
                yield self.children[frame, op].path, frame, op

    def origin(self, frame: Frame, v: Value) -> tuple[Frame, Value, int]:
        """(frame, value, how many times it is stacked by scans, less how many times it is a slice of a scan)."""
        depth = 0
        while True:
            op = v.owner
            if isinstance(op, Op):
                if op.name in IDENTITIES:
                    v = op.operands[0]
                    continue
                if op.name == "func.call":
                    k = op.results.index(v)
                    frame = self.children[frame, op]
                    v = frame.func.returns.operands[k]
                    continue
                if op.name == "scf.scan" and op.results.index(v) >= op.attrs["n_carry"]:
                    v = op.regions[0].terminator.operands[op.results.index(v)]
                    depth += 1
                    continue
            elif v in self.xs:
                v = self.xs[v]
                depth -= 1
                continue
            elif frame.parent is not None and v in frame.func.args:
                v = frame.call.operands[frame.func.args.index(v)]
                frame = frame.parent
                continue
            return frame, v, depth


# ---- dependence -----------------------------------------------------------------------------------------------------


class Dependence:
    """Labels of every value of the step function. Results of calls of `layer` are cut: they carry SIGNAL only."""

    def __init__(self, module: Module, step: Func, roles: list[str]):
        self.module, self.step, self.roles = module, step, roles
        self.others = [(f, f.attrs["arg_roles"]) for f in module.funcs.values() if f is not step and "arg_roles" in f.attrs]
        self.envs: dict[tuple, dict[Value, Labels]] = {}
        self._of_layer: dict[str, dict[Value, Labels]] = {}

    def of(self, layer: str) -> dict[Value, Labels]:
        """Labels of the step's values as seen by a rule of `layer`; state is followed from step to step, of every phase, to a fixpoint."""
        if layer not in self._of_layer:
            kept: dict[str, Labels] = {}                     # what state carries from one step to the next
            steps = [(self.step, self.roles), *self.others]
            while True:
                grew = False
                for f, roles in steps[::-1]:
                    for key in [k for k in self.envs if k[0] == f.name]:
                        del self.envs[key]
                    env = self.env(f, layer, True, [{r: Hop(0), **kept.get(r, {})} for r in roles])
                    state = [r for r in roles if r.startswith(("param:", "state:", "own:"))]
                    for role, v in zip(state, f.returns.operands):
                        if not role.startswith("state:") or (layer and inside(role[6:], layer)):
                            continue
                        carried_on = kept.setdefault(role, {})
                        for label, hop in env[v].items():
                            if label not in carried_on and label != role:
                                carried_on[label] = Hop(hop.distance + 1, v if f is self.step else None, label, f.returns)
                                grew = True
                if not grew:
                    self._of_layer[layer] = env
                    break
        return self._of_layer[layer]

    def at(self, frame: Frame, v: Value, layer: str) -> set:
        """Labels, in terms of the step's arguments, of a value inside a function that the step calls."""
        if frame.parent is None:
            return set(self.of(layer).get(v, {}))
        rest, outside = _seen_from(frame, layer)
        out: set = set()
        for label in self.env(frame.func, rest, outside).get(v, {}):
            base = label.label if isinstance(label, Via) else label
            if not isinstance(base, Arg):
                out.add(label)
                continue
            for x in self.at(frame.parent, frame.call.operands[base.index], layer):
                out.add(Via(label.instance, x) if isinstance(label, Via) and carried(x) and not isinstance(x, Via) else x)
        return out

    def env(self, f: Func, rest: str | None, outside: bool, start: list[Labels] | None = None) -> dict[Value, Labels]:
        """Labels of all values of f. `rest`: path, seen from here, of the layer that is cut (None: no cut); `outside`: not within a
        layer's forward function, so results of layers become Via."""
        key = (f.name, rest, outside)
        if key not in self.envs:
            env: dict[Value, Labels] = {}
            for i, a in enumerate(f.args):
                env[a] = dict(start[i]) if start else {Arg(i): Hop(0)}
            self.envs[key] = env                              # before the walk: an uncut walk may look at itself
            _Walk(self, f, env, rest, outside, start).block(f.body)
        return self.envs[key]


def _seen_from(frame: Frame, layer: str) -> tuple[str | None, bool]:
    """The layer's path as seen from a frame, None where it is not inside; and whether the frame is outside of all layers."""
    rest: str | None = layer
    outside = True
    for f in _ancestors(frame):
        instance = f.call.attrs.get("instance")
        if instance is not None:
            outside = False
            if rest is not None and instance:
                rest = rest[len(instance) + 1:] if rest.startswith(instance + ".") else None
    return rest, outside


def _ancestors(frame: Frame) -> list[Frame]:
    out = []
    while frame.parent is not None:
        out.append(frame)
        frame = frame.parent
    return out[::-1]


class _Walk:
    def __init__(self, d: Dependence, f: Func, env, rest, outside, start):
        self.d, self.f, self.env, self.rest, self.outside, self.start = d, f, env, rest, outside, start
        self.uncut: _Walk | None = None

    def labels(self, v: Value) -> Labels:
        return self.env.setdefault(v, {})

    def block(self, block: Block) -> None:
        for op in block.ops:
            run = _SPECIAL.get(op.name)
            if run:
                run(self, op)
            else:
                self.flow(op.operands, op.results, op)

    def flow(self, sources, targets, op: Op) -> bool:
        """Everything in `sources` reaches every target. True if a target learned something."""
        grew = False
        for t in targets:
            out = self.labels(t)
            for s in sources:
                for label, hop in self.labels(s).items():
                    grew |= _learn(out, label, Hop(hop.distance + 1, s, label, op))
        return grew


def _learn(out: Labels, label, hop: Hop) -> bool:
    old = out.get(label)
    if old is None or hop.distance < old.distance:
        out[label] = hop
    return old is None


def _call(w: _Walk, op: Op) -> None:
    instance, rest = op.attrs.get("instance"), w.rest
    if instance is not None:
        if rest is not None and instance == rest:                       # the layer itself: its signals are opaque
            for r in op.results:
                w.labels(r)[SIGNAL] = Hop(0)
            return
        if rest is not None and instance:
            rest = rest[len(instance) + 1:] if rest.startswith(instance + ".") else None
    callee = w.d.module.funcs[op.attrs["callee"]]
    inner = w.d.env(callee, rest, w.outside and instance is None)
    for r, v in zip(op.results, callee.returns.operands):
        out = w.labels(r)
        for label, hop in inner.get(v, {}).items():
            via = label.instance if isinstance(label, Via) else None
            base = label.label if via is not None else label
            if not isinstance(base, Arg):
                _learn(out, label, Hop(hop.distance + 1, None, label, op))
                continue
            operand = op.operands[base.index]
            for arriving, before in w.labels(operand).items():
                new = arriving
                if instance is not None and rest is None and w.rest is not None and (arriving == SIGNAL or isinstance(arriving, Back)):
                    _learn(out, Back(instance), Hop(before.distance + hop.distance + 1, operand, arriving, op))
                if w.outside and instance is not None:
                    via = instance
                if via is not None and (carried(arriving) or isinstance(arriving, Arg)):
                    new = Via(via, arriving.label if isinstance(arriving, Via) else arriving)
                _learn(out, new, Hop(before.distance + hop.distance + 1, operand, arriving, op))


def _gradient(w: _Walk, op: Op) -> None:
    """A derivative runs through the inside of layers, so nothing is cut on its way."""
    if w.rest is not None:
        if w.uncut is None:
            w.uncut = _Walk(w.d, w.f, {}, None, w.outside, w.start)
            for i, a in enumerate(w.f.args):
                w.uncut.env[a] = dict(w.start[i]) if w.start else {Arg(i): Hop(0)}
            w.uncut.block(w.f.body)
        for r in op.results:
            for label, hop in w.uncut.labels(r).items():
                _learn(w.labels(r), label, hop)
            _learn(w.labels(r), DERIVED, Hop(1, op.operands[0], None, op))
    else:
        w.flow(op.operands, op.results, op)


def _if(w: _Walk, op: Op) -> None:
    for r in op.regions:
        w.block(r)
        for res, v in zip(op.results, r.terminator.operands):
            w.flow([v], [res], op)
    w.flow(op.operands, op.results, op)                                  # which branch runs says something too


def _scan(w: _Walk, op: Op) -> None:
    body, n = op.regions[0], op.attrs["n_carry"]
    for a, v in zip(body.args[1:], op.operands):
        w.flow([v], [a], op)
    w.labels(body.args[0])
    _loop(w, op, body, body.args[1:1 + n])
    for r, v in zip(op.results, body.terminator.operands):
        w.flow([v], [r], op)
    for r, v in zip(op.results[:n], op.operands):
        w.flow([v], [r], op)


def _while(w: _Walk, op: Op) -> None:
    cond, body = op.regions
    for v, *args in zip(op.operands, cond.args, body.args):
        w.flow([v], args, op)
    _loop(w, op, body, body.args)
    for a, v in zip(cond.args, body.terminator.operands):
        w.flow([v], [a], op)
    w.block(cond)
    for r, v, init in zip(op.results, body.terminator.operands, op.operands):
        w.flow([v, init, *cond.terminator.operands], [r], op)


def _loop(w: _Walk, op: Op, body: Block, carries: list[Value]) -> None:
    while True:
        w.block(body)
        if not any([w.flow([v], [a], op) for a, v in zip(carries, body.terminator.operands)]):
            return


_SPECIAL = {"func.call": _call, "autodiff.gradient": _gradient, "scf.if": _if, "scf.scan": _scan, "scf.while": _while}


def way(env: dict[Value, Labels], v: Value, label) -> list[Op]:
    """The ops of a shortest way from the step's arguments to v, in the order of the data."""
    out: list[Op] = []
    while v is not None:
        hop = env.get(v, {}).get(label)
        if hop is None or hop.op is None:
            break
        out.append(hop.op)
        v, label = hop.value, hop.label
        if len(out) > 10_000:
            break
    return out[::-1]
