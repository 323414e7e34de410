"""Derivatives of ops that hold other code: calls, custom derivatives, scf.if, scf.scan. The tables MARK and BACKWARD are
read by grad.py; every function here gets its Differentiator `d`.
"""
from __future__ import annotations

from ..compiler.ir.builder import Builder
from ..compiler.ir.core import Block, Op, Value, clone_block, free_values
from ..compiler.ir.types import TensorType
from .grad import accumulate, rebuild
from .grad_residuals import choose
from .util import is_float, nbytes, prune

# ---- which results can carry a derivative ---------------------------------------------------------------------------


def _mark_call(d, op: Op, active: set[Value]) -> None:
    mask = tuple(v in active for v in op.operands)
    if any(mask):
        active.update(r for r, on in zip(op.results, d.summary(op.attrs["callee"], mask)) if on and is_float(r))


def _mark_if(d, op: Op, active: set[Value]) -> None:
    for r in op.regions:
        d.mark(r.ops, active)
    for k, res in enumerate(op.results):
        if is_float(res) and any(r.terminator.operands[k] in active for r in op.regions):
            active.add(res)


def _mark_scan(d, op: Op, active: set[Value]) -> None:
    body, n = op.regions[0], op.attrs["n_carry"]
    active.update(a for a, v in zip(body.args[1:], op.operands) if v in active)
    _mark_loop(d, body, body.args[1:1 + n], active)
    for k, (res, v) in enumerate(zip(op.results, body.terminator.operands)):
        if v in active or (k < n and body.args[1 + k] in active):
            active.add(res)


def _mark_while(d, op: Op, active: set[Value]) -> None:
    body = op.regions[1]
    active.update(a for a, v in zip(body.args, op.operands) if v in active)
    _mark_loop(d, body, body.args, active)
    active.update(res for res, a in zip(op.results, body.args) if a in active)


def _mark_loop(d, body: Block, carries: list[Value], active: set[Value]) -> None:
    """To a fixpoint: a carry is active when its initial value is or when the body yields an active value for it."""
    while True:
        d.mark(body.ops, active)
        more = [a for a, v in zip(carries, body.terminator.operands) if v in active and a not in active]
        if not more:
            return
        active.update(more)


MARK = {"func.call": _mark_call, "scf.if": _mark_if, "scf.scan": _mark_scan, "scf.while": _mark_while}


# ---- calls ----------------------------------------------------------------------------------------------------------


def _call(d, b: Builder, op: Op, dys, active):
    """The call becomes one of the forward function (in place: its results stay, what is kept comes behind them)."""
    mask = tuple(v in active for v in op.operands)
    cot = tuple(g is not None for g in dys)
    callee = op.attrs["callee"]
    if op in d.forwarded:                                # differentiated before, e.g. with respect to other variables
        base, n = d.forwarded[op]
        if not any(cot[n:]) and (base, mask, cot[:n]) in d.pairs and d.pairs[base, mask, cot[:n]].fwd == callee:
            callee, cot = base, cot[:n]
    p = d.pair(callee, mask, cot)
    if p.fwd != op.attrs["callee"]:
        d.forwarded[op] = (callee, len(op.results))
        op.attrs = {**op.attrs, "callee": p.fwd, "result_types": list(p.fwd_types)}
        op.results += [Value(t, op) for t in p.fwd_types[len(op.results):]]
    if not p.wrt:
        return []
    inputs = [op.operands[i] if kind == "arg" else op.results[i] for kind, i in p.sources]
    inputs += [g for g in dys if g is not None]
    types = [op.operands[i].type for i in p.wrt]
    adjoints = b.op("func.call", inputs, {"callee": p.bwd, "result_types": types}).results
    return list(zip([op.operands[i] for i in p.wrt], adjoints))


def _custom(d, b: Builder, op: Op, dys, active):
    """autodiff.custom: @backward(xs..., results..., cotangents of float results...) gives one adjoint per float x."""
    cotangents = [g if g is not None else b.zeros(r.type) for g, r in zip(dys, op.results) if is_float(r)]
    xs = [v for v in op.operands if is_float(v)]
    attrs = {"callee": op.attrs["backward"], "result_types": [v.type for v in xs]}
    return zip(xs, b.op("func.call", [*op.operands, *op.results, *cotangents], attrs).results)


# ---- scf.if ---------------------------------------------------------------------------------------------------------


def _if(d, b: Builder, op: Op, dys, active):
    """An scf.if on the same condition; each branch computes its forward values again, then its adjoints."""
    captured = [v for v in dict.fromkeys(free_values(op.regions[0]) + free_values(op.regions[1])) if v in active]
    branches, adjoints = [], []
    for r in op.regions:
        body = clone_block(r, {})
        yields = body.ops.pop().operands
        d.mark(body.ops, active)
        adj: dict[Value, Value] = {}
        grads = Block()
        inner = Builder(grads, op.loc)
        for v, g in zip(yields, dys):
            if g is not None and v in active:
                accumulate(inner, adj, v, g)
        d.backward(body.ops, adj, active, grads)
        body.ops += grads.ops
        branches.append(body)
        adjoints.append(adj)
    used = [v for v in captured if any(v in adj for adj in adjoints)]
    if not used:
        return []
    for body, adj in zip(branches, adjoints):
        inner = Builder(body, op.loc)
        outs = [adj[v] if v in adj else inner.zeros(v.type) for v in used]
        prune(body, outs)
        inner.op("scf.yield", outs)
    return zip(used, b.op("scf.if", [op.operands[0]], {}, branches).results)


# ---- scf.scan -------------------------------------------------------------------------------------------------------


def _scan(d, b: Builder, op: Op, dys, active):
    """A scan in the other direction. Its carries are the adjoints of the carries and the sums of the captured values'
    adjoints; it reads the stacked values that the forward scan keeps, and yields the adjoints of the xs."""
    body, n, length = op.regions[0], op.attrs["n_carry"], op.attrs["length"]
    term = body.terminator
    index, carry_args, x_args = body.args[0], body.args[1:1 + n], body.args[1 + n:]
    grads = Block()
    inner = Builder(grads, op.loc)
    adj: dict[Value, Value] = {}
    carries = [j for j in range(n) if carry_args[j] in active]
    cts = {j: Value(carry_args[j].type, grads, "ct") for j in carries}
    slots = {k: Value(term.operands[k].type, grads, "dy") for k in range(n, len(dys)) if dys[k] is not None and term.operands[k] in active}
    for k, v in [*cts.items(), *slots.items()]:
        if term.operands[k] in active:
            accumulate(inner, adj, term.operands[k], v)
    captured = [v for v in free_values(body) if v in active]
    d.backward(body.ops[:-1], adj, active, grads)
    captured = [v for v in captured if v in adj]
    x_adj = [k for k, a in enumerate(x_args) if a in active and a in adj]
    carry_out = [adj[carry_args[j]] if carry_args[j] in adj else inner.zeros(carry_args[j].type) for j in carries]
    prune(grads, [*carry_out, *(adj[v] for v in captured), *(adj[x_args[k]] for k in x_adj)])

    inside = set(body.args) | {r for o in body.ops for r in o.results} | set(cts.values()) | set(slots.values())
    deferred = _deferrable(captured, adj, grads, inside)
    summed = [v for v in captured if v not in deferred]
    parts = list(dict.fromkeys(u for plan in deferred.values() for u in plan.operands))
    outs = [*carry_out, *(adj[v] for v in summed), *(adj[x_args[k]] for k in x_adj)]
    prune(grads, [*outs, *parts])

    # What the reverse body reads of the forward body: kept stacked, or computed again.
    grads.append(Op("scf.yield", [*outs, *parts]))
    inside -= {*cts.values(), *slots.values()}
    needed = [v for v in free_values(grads) if v in inside]
    grads.ops.pop()
    kept, again = choose(needed, body, sources=set(carry_args))
    stacks = {v: _stack(op, v, n) for v in kept}
    read = set(needed) | {v for o in again for v in o.operands}
    xs = {a: x for a, x in zip(x_args, op.operands[n:]) if a in read}

    operands = [dys[j] if dys[j] is not None else b.zeros(carry_args[j].type) for j in carries]
    operands += [b.zeros(v.type) for v in summed]
    operands += [*stacks.values(), *xs.values(), *(dys[k] for k in slots)]
    rev = Block([TensorType(index.type.dtype), *(carry_args[j].type for j in carries), *(v.type for v in summed),
                 *(v.type for v in stacks), *(a.type for a in xs), *(v.type for v in slots.values())])
    for a, v in zip(rev.args[1:], [*cts.values(), *summed, *stacks, *xs, *slots.values()]):
        a.name = v.name
    args = iter(rev.args[1:])
    env = {index: rev.args[0]}
    env.update((v, next(args)) for v in cts.values())
    sums = [next(args) for _ in summed]
    env.update((v, next(args)) for v in [*stacks, *xs, *slots.values()])
    # Values used in several places become results through one yield, so that their mapping is known afterwards.
    tail = Op("scf.yield", [*outs, *parts], loc=op.loc)
    rev.ops = rebuild(again, [*grads.ops, tail], env)
    rev.ops.pop()
    end = Builder(rev, op.loc)
    outs, n_out = tail.operands, len(carries)
    totals = [end.add(acc, g) for acc, g in zip(sums, outs[n_out:n_out + len(summed)])]
    have = {env.get(v): s for v, s in [*stacks.items(), *((a, x) for a, x in xs.items())]}
    part_values = outs[n_out + len(summed) + len(x_adj):]
    fresh = [v for v in dict.fromkeys(part_values) if v not in have]
    end.op("scf.yield", [*outs[:n_out], *totals, *outs[n_out + len(summed):n_out + len(summed) + len(x_adj)], *fresh])
    attrs = {"length": length, "n_carry": n_out + len(summed), "reverse": not op.attrs.get("reverse", False)}
    results = b.op("scf.scan", operands, attrs, [rev]).results

    have.update(zip(fresh, results[len(results) - len(fresh):]))
    stacked = {p: have[v] for p, v in zip(parts, part_values)}
    pairs = list(zip([op.operands[j] for j in carries], results))
    pairs += list(zip(summed, results[n_out:]))
    pairs += [(v, plan.emit(b, stacked)) for v, plan in deferred.items()]
    pairs += list(zip([op.operands[n + k] for k in x_adj], results[n_out + len(summed):]))
    return pairs


def _stack(op: Op, v: Value, n: int) -> Value:
    """The values of `v` in all steps, as a result of the forward scan."""
    term = op.regions[0].terminator
    if v in term.operands[n:]:
        return op.results[term.operands.index(v, n)]
    term.operands.append(v)
    op.results.append(Value(v.type.with_shape((op.attrs["length"], *v.type.shape)), op, v.name))
    return op.results[-1]


class _Deferred:
    """A sum over the steps of `dot_general(a, c)` (then transposed) or `reduce_sum(a)`: one contraction after the loop, over
    the steps too, instead of an addition to a whole matrix in every step."""

    def __init__(self, op: Op, perm: list[int] | None):
        self.op, self.perm = op, perm
        self.operands = op.operands

    def emit(self, b: Builder, stacked: dict[Value, Value]) -> Value:
        xs, b = [stacked[v] for v in self.operands], b.at(self.op.loc)
        if self.op.name == "tensor.reduce_sum":
            y = b.sum(xs[0], [0] + [i + 1 for i in self.op.attrs["dims"]])
        else:
            attrs = {k: [0, *(i + 1 for i in v)] if k.endswith("contract") else v for k, v in self.op.attrs.items()}
            y = b.op("tensor.dot_general", xs, attrs).result
        return y if self.perm is None else b.transpose(y, self.perm)


def _deferrable(captured: list[Value], adj: dict[Value, Value], grads: Block, inside: set[Value]) -> dict[Value, _Deferred]:
    """Plans for the contributions of one step that are such contractions, where the operands vary with the step and are not
    much larger than the contribution. A sum (a bias's adjoint) is deferred when its operand is stacked anyway."""
    own = set(grads.ops)
    varies = inside | {r for o in own for r in o.results}
    plans: dict[Value, _Deferred] = {}
    sums: dict[Value, _Deferred] = {}
    for v in captured:
        op, perm = adj[v].owner, None
        if op in own and op.name == "tensor.transpose":
            perm, op = list(op.attrs["perm"]), op.operands[0].owner
        if op not in own or any(u not in varies for u in op.operands):
            continue
        if op.name == "tensor.dot_general" and not op.attrs["lhs_batch"] and sum(map(nbytes, op.operands)) <= 2 * nbytes(adj[v]):
            plans[v] = _Deferred(op, perm)
        elif op.name == "tensor.reduce_sum" and op.attrs["dims"]:
            sums[v] = _Deferred(op, perm)
    stacked = {u for p in plans.values() for u in p.operands}
    plans.update((v, p) for v, p in sums.items() if p.operands[0] in stacked)
    return plans


BACKWARD = {"func.call": _call, "autodiff.custom": _custom, "scf.if": _if, "scf.scan": _scan}
