"""plasticity: proves that every learning rule is local, then turns its applications into calls of the rule's function.

What is local is judged here, by the data dependence of locality.py: an update may read its layer's own signals, parameters and
rule state, batch data, step, epoch and random keys; and values of shape [] or [B] from the model's output, which are listed as
broadcast. Everything else is an error that names the way by which it arrives.

A layer's input is opaque: any activity that comes before it. What is no activity (parameters handed beside the input, a derivative) or
comes after it (what other layers made of this layer's own output, in this step or the one before) is not input, but a message.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..compiler.diagnostics import Diagnostics, Span
from ..compiler.ir.builder import Builder
from ..compiler.ir.core import Block, Func, Module, Op, Value, clone_func, replace_uses, rewrite
from .locality import DERIVED, IDENTITIES, SIGNAL, Back, Calls, Dependence, Via, inside, way
from .util import callees, span

BROADCAST = ("given", "arg", "capture", "key")
MAX_OUTPUTS = 3                            # values from the model's output for one rule: a reward and what was expected, not an error vector


@dataclass(frozen=True)
class Plasticity:
    """Proves locality (CompileError at the learn statement otherwise), writes the proof as a list of dicts (parameter, layer,
    rule, function, reads, broadcast, verdict) into the module's attribute `locality`, and replaces learn.update by func.call and
    learn.local_gradient by autodiff.gradient. Valid IR before (see ops/learn.py) and after; no learn.* op is left.
    """

    name: ClassVar[str] = "plasticity"
    exact: ClassVar[bool] = True

    def apply(self, module: Module) -> Module:
        problems = Diagnostics()
        report: list[dict] = []
        for f in list(module.funcs.values()):
            updates = [op for op in f.walk() if op.name == "learn.update"]
            if updates:
                if "arg_roles" not in f.attrs:
                    raise ValueError(f"@{f.name} applies learning rules but has no arg_roles")
                proof = _Proof(module, f, problems)
                for op in updates:
                    report += proof.check(op)
        problems.raise_if_errors()
        if report:
            module.attrs["locality"] = report
        rules = _Rules(module, report)
        for f in list(module.funcs.values()):
            if any(op.name == "learn.update" for op in f.walk()):
                rewrite(f.body, rules.to_call)
        used = {name for op in module.walk() for name in callees(op)}
        module.funcs = {n: f for n, f in module.funcs.items() if n in used or not any(op.name == "learn.local_gradient" for op in f.walk())}
        return module


# ---- from updates to calls ------------------------------------------------------------------------------------------


class _Rules:
    """Rule functions; one with a local loss gets a copy per forward function that it is used with."""

    def __init__(self, module: Module, report: list[dict]):
        self.module, self.report, self.derived = module, report, {}

    def to_call(self, op: Op, out: Block) -> list[Value] | None:
        if op.name != "learn.update":
            return None
        rule = self.module.funcs[op.attrs["rule"]]
        if any(o.name == "learn.local_gradient" for o in rule.walk()):
            rule = self.derive(rule, op.attrs.get("forward"))
            for row in self.report:
                if row["layer"] == op.attrs["layer"] and row["function"] == op.attrs["rule"]:
                    row["function"] = rule.name
        attrs = {"callee": rule.name, "result_types": [r.type for r in op.results]}
        return Builder(out, op.loc).op("func.call", op.operands, attrs).results

    def derive(self, rule: Func, forward: dict | None) -> Func:
        """The rule with its local loss differentiated: the layer's forward function is called at the top, its results stand for
        the signals, so that the loss depends on the parameters; everything that is no variable is constant."""
        key = (rule.name, repr(forward))
        if key not in self.derived:
            new = clone_func(rule, self.module.unique_name(rule.name + ".derived"))
            if forward:
                callee = self.module.funcs[forward["callee"]]
                head = Block()
                call = Builder(head, new.loc).op("func.call", [new.args[i] for i in forward["args"]],
                                                 {"callee": callee.name, "result_types": list(callee.result_types)})
                replace_uses(new.body, {new.args[i]: r for i, r in zip(forward["results"], call.results) if i >= 0})
                new.body.ops = head.ops + new.body.ops
            rewrite(new.body, _local_gradient)
            self.derived[key] = self.module.add(new)
        return self.derived[key]


def _local_gradient(op: Op, out: Block) -> list[Value] | None:
    if op.name != "learn.local_gradient":
        return None
    b = Builder(out, op.loc)
    loss, *variables = op.operands
    return b.op("autodiff.gradient", [loss, b.constant(1, loss.type), *variables], {"n_y": 1, "n_x": len(variables)}).results


# ---- the proof ------------------------------------------------------------------------------------------------------


class _Proof:
    """Checks the updates of one step function and describes what they read."""

    def __init__(self, module: Module, step: Func, problems: Diagnostics):
        self.step, self.problems = step, problems
        self.roles: list[str] = list(step.attrs["arg_roles"])
        self.locs: list[str] = list(step.attrs.get("arg_locs") or [])
        if len(self.roles) != len(step.args):
            raise ValueError(f"@{step.name} has {len(step.args)} arguments and {len(self.roles)} arg_roles")
        self.dependence = Dependence(module, step, self.roles)
        self.calls = Calls(module, step)
        self.batch = {a.type.shape[0] for a, r in zip(step.args, self.roles) if r.startswith("data:") and a.type.rank}
        self.by_layer: dict[str, list] = {}
        self.shared: dict[str, tuple[str, Op]] = {}
        top: set[str] = set()
        for path, frame, op in self.calls.instances():
            self.by_layer.setdefault(path, []).append((frame, op))
            if frame.path == "":
                top.add(path)
            for v in op.operands:
                role = self.role_of(self.calls.origin(frame, v))
                if role.startswith("param:") and not inside(role[6:], path):
                    self.shared.setdefault(role[6:], (path, op))
        self.conditions = dict(_conditions(step.body, []))
        self.from_output = 0
        self.outputs = {p for p in top if not any(q != p and inside(p, q) for q in top)}

    def role_of(self, origin) -> str:
        """The role of the step's argument that a value is, or ""."""
        frame, v, _ = origin
        return self.roles[self.step.args.index(v)] if frame is self.calls.root and v in self.step.args else ""

    def check(self, op: Op) -> list[dict]:
        a = op.attrs
        layer, rule, roles = a["layer"], a.get("rule_name") or a["rule"], a["roles"]
        reads, broadcast = [], []
        if not a.get("nonlocal"):
            self.undisturbed(op, layer)
        for condition in self.conditions.get(op, ()):
            if not a.get("nonlocal"):
                self.given(op, condition, "condition", "condition")
        self.from_output = 0
        for v, role in zip(op.operands, roles):
            kind, _, name = role.partition(":")
            if kind in BROADCAST:
                broadcast.append(self.describe(op, v, name or kind) if a.get("nonlocal") else self.given(op, v, kind, name or kind))
                if kind == "capture" and f"state:{layer}.{name}".replace(":.", ":") in self.roles:
                    reads.append(name)                           # the layer's own state, such as a batch norm's running statistics
            else:
                reads.append(name.removeprefix(layer + ".") if kind in ("param", "own") else name)
                if not a.get("nonlocal"):
                    {"signal": self.signal, "param": self.kept, "own": self.kept}[kind](op, v, role)
        verdict = "non-local" if a.get("nonlocal") else self.verdict(op, layer, roles)
        return [{"parameter": roles[w].partition(":")[2], "layer": layer, "rule": rule, "function": a["rule"], "reads": reads,
                 "broadcast": [t for t in broadcast if t], "verdict": verdict} for w in a["writes"] if roles[w].startswith("param:")]

    def verdict(self, op: Op, layer: str, roles: list[str]) -> str:
        """`local`; a local loss of a layer that holds layers is backpropagation among these, which is said."""
        if not op.attrs.get("forward"):
            return "local"
        inner = {r.partition(":")[2].rpartition(".")[0] for r in roles if r.startswith("param:")}
        return f"local to a block of {len(inner)} layers" if len(inner) > 1 else "local"

    def refuse(self, op: Op, what: str, *, hint: str | None = None, notes=()) -> None:
        rule = op.attrs.get("rule_name") or op.attrs["rule"]
        self.problems.error(span(op.loc), f"rule `{rule}` for layer `{op.attrs['layer']}` is not local: {what}", hint=hint, notes=notes)

    # ---- what belongs to the layer ----

    def undisturbed(self, op: Op, layer: str) -> None:
        """A layer's signals are opaque, so nobody may slip anything into it: its state is written from within, its call is handed no
        other layer's parameters, no derivative, and nothing that other layers made of its own output."""
        for i, role in enumerate(self.roles):
            if role.startswith("state:") and layer and inside(role[6:], layer):
                self.written_within(op, layer, i)
        watched = any(call.attrs.get("signals") for _, call in self.by_layer.get(layer, []))
        for frame, call in self.by_layer.get(layer, []):
            values = [v for v in call.operands if not inside(self.role_of(self.calls.origin(frame, v)).partition(":")[2] or "-", layer)]
            entry = self.input_of(frame, call, values) if call.attrs.get("signals") or not watched else None     # a method has no input
            for v in values:
                if not self.fit_to_hand(op, layer, frame, call, v, v is entry):
                    return

    def written_within(self, op: Op, layer: str, i: int) -> bool:
        """Whether state, the step's argument i, is kept by what a rule of the layer may know; a diagnostic otherwise."""
        env, v = self.dependence.of(layer), self.kept_value(i)
        bad = [x for x in env.get(v, {}) if not self.own(x.label if isinstance(x, Via) else x, layer)]
        if bad:
            path = self.roles[i][6:]
            what = f"its state `{path}` is" if inside(path, layer) else f"its call is handed the state `{path}`, which is"
            self.refuse(op, f"{what} written from outside: it depends on {self.whose(bad[0])[0]}", notes=self.steps(env, v, bad[0]),
                        hint="a layer's state is its own while a rule teaches it: what the layer itself writes there is local")
        return not bad

    def kept_value(self, i: int) -> Value | None:
        """What the step returns for its argument i, which is kept from step to step."""
        kept = [k for k, r in enumerate(self.roles) if r.startswith(("param:", "state:", "own:"))]
        values = self.step.returns.operands
        return values[kept.index(i)] if i in kept and kept.index(i) < len(values) else None

    def input_of(self, frame, call: Op, values: list[Value]) -> Value | None:
        """The operand that is the layer's input: the one handed on as the signal `pre`, or else the first that is no state."""
        callee, names = self.dependence.module.funcs[call.attrs["callee"]], list(call.attrs.get("signals", ()))
        for name in ("<input>", "pre"):
            if name in names:
                v = callee.returns.operands[len(call.results) - len(names) + names.index(name)]
                if v in callee.args and call.operands[callee.args.index(v)] in values:
                    return call.operands[callee.args.index(v)]
        plain = [v for v in values if not self.role_of(self.calls.origin(frame, v)).startswith("state:")]
        return next(iter([*plain, *values]), None)

    def fit_to_hand(self, op: Op, layer: str, frame, call: Op, v: Value, entry: bool) -> bool:
        """Whether the layer's call may be handed this value."""
        here = _at(call, "it is called here")
        role = self.role_of(self.calls.origin(frame, v))
        if role.startswith("state:") and not entry and not self.written_within(op, layer, self.roles.index(role)):
            return False
        path = None if entry else next((p for p in self.handed(frame, v) if not inside(layer, p.rpartition(".")[0]) and not inside(p, layer)), None)
        if path is not None:
            self.refuse(op, f"its call is handed `{path}`, a parameter of another layer", notes=here,
                        hint="a layer's input may be any activity that comes before it; further arguments of its call may not be other layers' parameters")
            return False
        labels = sorted(self.dependence.at(frame, v, layer), key=str)
        back = next((x.instance for x in labels if isinstance(x, Back)), None)
        if back is not None:
            self.refuse(op, f"its call is handed what layer `{back}` made of this layer's own output", notes=here,
                        hint="a layer's input is what comes before it; feedback from the layers behind it is a message, and a rule that learns from it "
                             "has to say so: `nonlocal rule ...`")
            return False
        if DERIVED in labels:
            foreign = [x for x in labels if not self.own(x.label if isinstance(x, Via) else x, layer)]
            if foreign:
                self.refuse(op, f"its call is handed a derivative that depends on {self.whose(foreign[0])[0]}", notes=here,
                            hint="an error that was propagated through another layer is no activity")
                return False
        return True

    def handed(self, frame, v: Value) -> list[str]:
        """Paths of the parameters that a value is computed from directly, not by way of a layer's activations; a derivative runs
        through layers, so its way counts; what is kept from the step before counts as what was put there."""
        found, todo, seen = [], [(frame, v, False)], set()
        while todo:
            f, v, derived = todo.pop()
            f, v, _ = self.calls.origin(f, v)
            if (f, v, derived) in seen:
                continue
            seen.add((f, v, derived))
            role = self.role_of((f, v, 0))
            if role.startswith(("param:", "own:")):
                found.append(role.partition(":")[2])
            elif role.startswith("state:"):
                kept = self.kept_value(self.roles.index(role))
                if kept is not None:
                    todo.append((self.calls.root, kept, derived))
            if not derived and f.path != frame.path and inside(f.path, frame.path):
                continue                                     # made inside another layer: its activations
            if isinstance(v.owner, Op):
                todo += [(f, x, derived or v.owner.name == "autodiff.gradient") for x in v.owner.operands]
        return found

    def signal(self, op: Op, v: Value, role: str) -> None:
        layer, name = op.attrs["layer"], role.partition(":")[2]
        frame, origin, depth = self.calls.origin(self.calls.root, v)
        for f, call in self.by_layer.get(layer, []):
            # `pre` is the call's input, or a `let pre` of the layer; both are its own
            candidates = [*call.operands, *call.results] if name in ("pre", "<input>") else call.results[:1] if name == "out" else call.results
            for c in candidates:
                cf, co, cd = self.calls.origin(f, c)
                if cf is frame and co is origin and depth >= cd:
                    return
        if layer not in self.by_layer:
            self.refuse(op, f"its signal `{name}` does not exist: layer `{layer}` is not called in this step")
            return
        self.refuse(op, f"its signal `{name}` is not a signal of this layer", notes=_place(v, "it is computed here"),
                    hint="a rule sees the input, the result and the top-level `let`s of its own layer")

    def kept(self, op: Op, v: Value, role: str) -> None:
        """A parameter of the layer, or state of its rule: the step's argument, or its value after an earlier rule of the layer."""
        layer, (kind, _, path) = op.attrs["layer"], role.partition(":")
        what = f"`{path}`" if kind == "param" else f"the rule state `{path}`"
        if not inside(path, layer):
            self.refuse(op, f"{what} belongs to another layer", hint="a rule updates parameters and state of its own layer only")
            return
        if kind == "param" and path in self.shared:
            other, call = self.shared[path]
            self.refuse(op, f"`{path}` is shared with layer `{other}`, so no layer has it to itself", notes=_at(call, f"layer `{other}` takes it here"),
                        hint="give the layers weights of their own, or learn the shared ones by backpropagation")
            return
        last = self.kept_value(self.roles.index(role)) if role in self.roles else None
        for value in (v, last):                              # as it is read, and as it is left for the next step
            other = None if value is None else self.changed(value, role, layer)
            if other is not None:
                self.refuse(op, f"{what} is changed in this step by something else than a local rule of this layer", notes=_place(other, "it is changed here"),
                            hint="what a rule reads has to be the layer's own: let one of them alone change it")
                return

    def changed(self, v: Value, role: str, layer: str) -> Value | None:
        """Where the value of a parameter or rule state has come from anything but the step's argument and the layer's local rules."""
        todo, seen = [v], set()
        while todo:
            v = todo.pop()
            if v in seen:
                continue
            seen.add(v)
            made = v.owner
            if isinstance(made, Op) and made.name in IDENTITIES:
                todo.append(made.operands[0])
            elif isinstance(made, Op) and made.name == "scf.if":
                todo += [r.terminator.operands[made.results.index(v)] for r in made.regions]
            elif isinstance(made, Op) and made.name == "learn.update" and made.attrs["layer"] == layer and not made.attrs.get("nonlocal"):
                k = made.attrs["writes"][made.results.index(v)]
                if made.attrs["roles"][k] != role:
                    return v
                todo.append(made.operands[k])
            elif self.role_of((self.calls.root, v, 0)) != role:
                return v
        return None

    # ---- what is broadcast ----
    def given(self, op: Op, v: Value, kind: str, name: str) -> str | None:
        """Judge a value from outside; a text for the report where it is worth listing."""
        layer = op.attrs["layer"]
        env = self.dependence.of(layer)
        labels = env.get(v, {})
        small = v.type.rank == 0 or (v.type.rank == 1 and v.type.shape[0] in self.batch)
        bad, outputs = [], []
        for label in labels:
            if self.own(label.label if isinstance(label, Via) else label, layer):
                continue
            if small and isinstance(label, Via) and label.instance in self.outputs:
                outputs.append(label)
            else:
                bad.append(label)
        if bad:
            bad.sort(key=lambda x: (isinstance(x, Via), labels[x].distance))
            self.refuse_given(op, v, kind, name, bad[0], env, small)
            return None
        self.from_output += bool(outputs)
        if self.from_output == MAX_OUTPUTS + 1:
            self.refuse(op, f"more than {MAX_OUTPUTS} values from the model's output are broadcast to it", notes=self.steps(env, v, outputs[0]),
                        hint="a reward and what was expected of it are broadcast signals; an error for every unit of the output is not, in one tensor or in many")
        return self.describe(op, v, name, bool(outputs))

    def own(self, label, layer: str) -> bool:
        """Whether a rule of the layer may read what carries this label."""
        if label == SIGNAL or label == DERIVED or isinstance(label, Back):
            return True
        kind, _, path = str(label).partition(":")
        if kind in ("param", "own"):
            return inside(path, layer)
        if kind == "state":                                 # state of no layer: what it depends on counts
            return inside(path, layer) or not any(inside(path, p) for p in self.by_layer if p)
        return True

    def refuse_given(self, op: Op, v: Value, kind: str, name: str, label, env, small: bool) -> None:
        what = self.whose(label)[1]
        steps = self.way(env, v, label)
        hops = [f"{t} ({o.loc})" for o, t in steps if o.name == "func.call"]
        if isinstance(label, Via):
            what += f", and it arrives through the activations of layer `{label.instance}`" if label.instance else ", and it arrives through the model's activations"
        elif hops:
            what += f", reached through {', then '.join(hops)}"
        subject = {"given": f"the given signal `{name}`", "arg": f"its argument `{name}`", "capture": f"`{name}`", "key": "its random key",
                   "condition": "the condition under which it learns"}[kind]
        hint = ("only batch data, and values of shape [] or [B] computed from the model's output, may be broadcast to a rule; "
                "a rule that needs more has to say so: `nonlocal rule ...`")
        if small and not isinstance(label, Via):
            hint = "a broadcast value may depend on parameters only through the model's output"
        self.refuse(op, f"{subject} ({v.type}) depends on another layer: {what}", hint=hint,
                    notes=self.steps(env, v, label))

    def whose(self, label) -> tuple[str, str]:
        """What a label stands for, as a noun and as a clause."""
        role = label.label if isinstance(label, Via) else label
        path = str(role).partition(":")[2]
        owner = max((p for p in self.by_layer if inside(path, p)), key=len, default="")
        word = {"param": "a parameter", "own": "the state of a rule", "state": "state"}[str(role).partition(":")[0]]
        where = self.locs[self.roles.index(role)] if role in self.roles and self.roles.index(role) < len(self.locs) else ""
        text = word + (f" of layer `{owner}`" if owner else "")
        return f"`{path}`, {text}", f"`{path}` is {text}" + (f" ({where})" if where else "")

    def way(self, env, v: Value, label) -> list[tuple[Op, str]]:
        """The ops by which a label reaches a value, each with a word for it."""
        steps, last = [], None
        for o in way(env, v, label):
            text = _step(o)
            if (text, o.loc) != last and o.loc is not None and o.name != "autodiff.watch":
                steps.append((o, text))
            last = (text, o.loc)
        return steps

    def steps(self, env, v: Value, label) -> list[tuple[Span | None, str]]:
        return [(span(o.loc), t) for o, t in self.way(env, v, label)[-6:]]

    def describe(self, op: Op, v: Value, name: str, from_output: bool = False) -> str | None:
        labels = self.dependence.of(op.attrs["layer"]).get(v, {})
        if from_output:
            return f"{name}: {v.type} from the model's output"
        foreign = sorted({str(x.label if isinstance(x, Via) else x).partition(":")[2] for x in labels if not self.own(x.label if isinstance(x, Via) else x, op.attrs["layer"])})
        if foreign:
            return f"{name}: {v.type} from {', '.join(foreign)}"
        data = [str(x).removeprefix("data:") for x in labels if str(x).startswith("data:")]
        return f"{name}: {v.type} from the batch's {', '.join(sorted(data))}" if data else None


def _conditions(block: Block, around: list[Value]):
    """(op, the conditions that decide whether it runs) of every learn.update."""
    for op in block.ops:
        if op.name == "learn.update" and around:
            yield op, tuple(around)
        for r in op.regions:
            inner = [op.operands[0]] if op.name == "scf.if" else list(op.regions[0].terminator.operands[:1]) if op.name == "scf.while" else []
            yield from _conditions(r, [*around, *inner])


WORDS = {"dot_general": "a matrix product", "reduce_sum": "a sum", "reduce_max": "a maximum", "add": "a sum", "sub": "a difference", "mul": "a product",
         "div": "a quotient", "broadcast": "spread over a shape", "transpose": "transposed", "reshape": "reshaped", "convolution": "a convolution"}


def _step(op: Op) -> str:
    if op.name == "func.call":
        instance = op.attrs.get("instance")
        return f"layer `{instance}`" if instance else f"`{op.attrs['callee']}`"
    return {"func.return": "kept from the step before", "autodiff.gradient": "a derivative"}.get(op.name, WORDS.get(op.name.partition(".")[2], op.name.partition(".")[2]))


def _at(op: Op, text: str) -> list[tuple[Span | None, str]]:
    return [(span(op.loc), text)] if op.loc else []


def _place(v: Value, text: str) -> list[tuple[Span | None, str]]:
    return _at(v.owner, text) if isinstance(v.owner, Op) else []
