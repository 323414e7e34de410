"""grad: reverse-mode differentiation. Expands autodiff.gradient (and, in the same order, autodiff.vmap) into ordinary ops,
functions and regions included.

What an op's derivative is stands in its row of the op table; here is how contributions are gathered: which ops lie between x
and y, in which order adjoints add up, and how calls get a forward function that keeps what the backward function needs.
Control flow is in grad_control.py, the choice of what to keep in grad_residuals.py.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..compiler.diagnostics import error
from ..compiler.ir.builder import Builder
from ..compiler.ir.core import Block, Func, Module, Op, Value, clone_func, free_values, replace_uses, rewrite
from ..compiler.ir.opdef import OPS
from .decompose import expand
from .grad_residuals import carry_over, choose
from .util import callees_first, is_float, prune, span
from .vmap import Batcher


@dataclass(frozen=True)
class Grad:
    """Expands every autodiff.gradient and autodiff.vmap, callees first and in program order, so that each may be applied to the
    other and gradients of gradients work; then removes autodiff.watch, tensor.stop_gradient and autodiff.custom, and
    decomposes the nn.* ops that have gradient rules. Valid IR before (no learn.* ops; `decompose` has run) and after.

    Differentiating a call makes `@f.fwd` (results and what is kept for later) and `@f.bwd`, shared by all calls of f that
    differentiate the same arguments and results. Exact: every other result keeps its bits.
    """

    name: ClassVar[str] = "grad"
    exact: ClassVar[bool] = True

    def apply(self, module: Module) -> Module:
        if any(op.name.startswith("autodiff.") or op.name == "tensor.stop_gradient" for op in module.walk()):
            d = Differentiator(module)
            for f in callees_first(module):
                d.expand(f.body, [])
            for f in module.funcs.values():
                if any(OPS[op.name].decompose for op in f.walk()):
                    rewrite(f.body, expand)
                rewrite(f.body, _remove_markers)
        return module


def _remove_markers(op: Op, out: Block) -> list[Value] | None:
    if op.name in ("autodiff.watch", "tensor.stop_gradient"):
        return [op.operands[0]]
    if op.name == "autodiff.custom":
        attrs = {"callee": op.attrs["forward"], "result_types": op.attrs["result_types"]}
        return Builder(out, op.loc).op("func.call", op.operands, attrs).results
    return None


@dataclass(frozen=True)
class Pair:
    """How a call of some function is differentiated. `fwd` is called instead of it (it has the function's results, then
    what is kept); `bwd` gets the values `sources` and the cotangents of the results in the mask, and gives adjoints of the
    arguments `wrt`. A source is ("arg", i) or ("result", j) of the forward call."""

    fwd: str
    fwd_types: tuple
    bwd: str
    sources: tuple[tuple[str, int], ...]
    wrt: tuple[int, ...]


class Differentiator:
    """State of one run of the pass: the forward/backward functions made so far and what depends on what through calls."""

    def __init__(self, module: Module):
        self.module, self.batcher = module, Batcher(module)
        self.pairs: dict[tuple, Pair] = {}
        self.summaries: dict[tuple, tuple[bool, ...]] = {}
        self.forwarded: dict[Op, tuple] = {}            # a call made a forward call -> (the callee before, its number of results)

    # ---- expansion ----
    def expand(self, block: Block, before: list[Op]) -> None:
        """Expand the gradient ops of a block and its regions; `before`: the ops of enclosing blocks that precede it."""
        env: dict[Value, Value] = {}
        ops, block.ops = block.ops, []
        for op in ops:
            if env:
                op.operands = [env.get(v, v) for v in op.operands]
            for r in op.regions:
                replace_uses(r, env)
                self.expand(r, before + block.ops)
            if op.name not in ("autodiff.gradient", "autodiff.vmap"):
                block.ops.append(op)
                continue
            new = Block()
            if op.name == "autodiff.vmap":
                results = self.batcher.expand(Builder(new, op.loc), op)
            else:
                results = self.gradient(before + block.ops, op, new)
                prune(new, results)
            block.ops.extend(new.ops)
            env.update(zip(op.results, results))

    def gradient(self, ops: list[Op], op: Op, out: Block) -> list[Value]:
        """The adjoints of one autodiff.gradient, computed by ops appended to `out`."""
        k = op.attrs["n_y"]
        ys, seeds, xs = op.operands[:k], op.operands[k:2 * k], op.operands[2 * k:]
        active = set(xs)
        self.mark(ops, active)
        adj: dict[Value, Value] = {}
        b = Builder(out, op.loc)
        for y, seed in zip(ys, seeds):
            if y in active:
                accumulate(b, adj, y, seed)
        self.backward(ops, adj, active, out)
        return [adj[x] if x in adj else b.zeros(x.type) for x in xs]

    # ---- what depends on x ----
    def mark(self, ops: Iterable[Op], active: set[Value]) -> None:
        """Add to `active` every float value of `ops` (regions included) through which a derivative can flow from it."""
        from .grad_control import MARK
        for op in ops:
            if op.name == "tensor.stop_gradient":
                continue
            if op.name in MARK:
                MARK[op.name](self, op, active)
            elif any(v in active for v in op.operands):
                active.update(r for r in op.results if is_float(r))

    def summary(self, callee: str, mask: tuple[bool, ...]) -> tuple[bool, ...]:
        """Which results of a function are active when the arguments in the mask are."""
        key = (callee, mask)
        if key not in self.summaries:
            f = self.module.funcs[callee]
            active = {a for a, m in zip(f.args, mask) if m}
            self.mark(f.body.ops, active)
            self.summaries[key] = tuple(v in active for v in f.returns.operands)
        return self.summaries[key]

    # ---- from results to operands ----
    def backward(self, ops: Sequence[Op], adj: dict[Value, Value], active: set[Value], out: Block) -> None:
        """Go through `ops` from the last to the first; `adj` holds cotangents and learns the adjoints, in this fixed order."""
        from .grad_control import BACKWARD
        for op in reversed(ops):
            dys = [adj.get(r) if r in active else None for r in op.results]
            if all(d is None for d in dys):
                continue
            b = Builder(out, op.loc)
            if op.name in BACKWARD:
                pairs = BACKWARD[op.name](self, b, op, dys, active)
            else:
                rule = OPS[op.name].grad
                if isinstance(rule, str):
                    raise _not_differentiable(op, rule)
                pairs = zip(op.operands, rule(b, op, dys))
            for v, g in pairs:
                if g is not None and v in active:
                    if g.type != v.type:
                        raise TypeError(f"the gradient rule of {op.name} gives {g.type} for an operand {v.type}")
                    accumulate(b, adj, v, g)

    # ---- functions ----
    def pair(self, callee: str, mask: tuple[bool, ...], cot: tuple[bool, ...]) -> Pair:
        """The forward and backward functions of `callee` for active arguments `mask` and results with cotangents `cot`."""
        key = (callee, mask, cot)
        if key not in self.pairs:
            self.pairs[key] = self._make_pair(callee, mask, cot)
        return self.pairs[key]

    def _make_pair(self, callee: str, mask, cot) -> Pair:
        m = self.module
        fwd = clone_func(m.funcs[callee], m.unique_name(callee + ".fwd"))
        fwd.attrs = _derived_attrs(fwd.attrs)
        active = {a for a, on in zip(fwd.args, mask) if on}
        self.mark(fwd.body.ops, active)
        grads = Block()
        b = Builder(grads, fwd.loc)
        results = list(fwd.returns.operands)
        adj: dict[Value, Value] = {}
        seeds = []
        for v, on in zip(results, cot):
            if on:
                seeds.append(Value(v.type, grads, f"{v.name}_adj" if v.name else None))
                accumulate(b, adj, v, seeds[-1])
        self.backward(fwd.body.ops[:-1], adj, active, grads)
        wrt = tuple(i for i, a in enumerate(fwd.args) if a in adj and mask[i])
        outs = [adj[fwd.args[i]] for i in wrt]
        prune(grads, outs)
        grads.append(Op("func.return", outs, loc=fwd.returns.loc))
        # What the adjoints need of the forward values: arguments as they are, the rest kept or computed again.
        seeded = set(seeds)
        needed = [v for v in free_values(grads) if v not in seeded]
        kept, again = choose(needed, fwd.body, sources=())
        carried = carry_over(needed, kept, again)
        used_args = [a for a in fwd.args if a in carried]
        sources = [("arg", fwd.args.index(a)) for a in used_args]
        for v in kept:
            if v not in results:
                results.append(v)
            sources.append(("result", results.index(v)))
        inputs = [*used_args, *kept, *seeds]
        bwd = Func(m.unique_name(callee + ".bwd"), [v.type for v in inputs], [v.name for v in inputs],
                   [v.type for v in outs], _derived_attrs(fwd.attrs), fwd.loc)
        env = dict(zip(inputs, bwd.args))
        bwd.body.ops = rebuild(again, grads.ops, env)
        if len(results) > len(cot):
            fwd.returns.operands = results
            fwd.result_types = [v.type for v in results]
            m.add(fwd)
            name = fwd.name
        else:
            name = callee                                          # nothing is kept: the function itself is enough
        m.add(bwd)
        return Pair(name, tuple(v.type for v in results), bwd.name, tuple(sources), wrt)


def rebuild(again: list[Op], ops: list[Op], env: dict[Value, Value]) -> list[Op]:
    """Copies of the ops to compute again, then `ops`, with values mapped through `env`."""
    from ..compiler.ir.core import clone_op
    out = [clone_op(op, env) for op in again]
    block = Block()
    block.ops = list(ops)
    replace_uses(block, env)
    return out + block.ops


def accumulate(b: Builder, adj: dict[Value, Value], v: Value, g: Value) -> None:
    """Add a contribution to the adjoint of v."""
    adj[v] = b.add(adj[v], g) if v in adj else g
    if adj[v].name is None and v.name:
        adj[v].name = v.name if v.name.endswith("_adj") else v.name + "_adj"


def _derived_attrs(attrs: dict) -> dict:
    """The attributes that a forward or backward function takes over: none that count or name arguments and results."""
    return {k: v for k, v in attrs.items() if k not in ("donate", "arg_names", "result_names", "arg_roles", "entry")}


def _not_differentiable(op: Op, reason: str):
    hint = "if its input is to count as a constant, wrap it: stop_gradient(...)"
    if op.name == "scf.while":
        hint = "a `scan` of fixed length is differentiable; " + hint
    reason = re.sub(r"^not differentiable[^:]*: ", "", reason)
    what = "a `while` loop" if op.name == "scf.while" else op.name
    return error(span(op.loc), f"cannot differentiate through {what}: {reason}", hint=hint)
