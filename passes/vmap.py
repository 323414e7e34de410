"""vmap: a function on one example becomes a function on a batch. Used by the pass grad, which expands autodiff.vmap in program
order together with gradients, so that each may contain the other.

Inside, a batched value has the batch as its dim 0. Ops without a rule of their own run example by example in an scf.scan.
"""
from __future__ import annotations

from collections.abc import Callable

from ..compiler.ir.builder import Builder
from ..compiler.ir.core import Block, Func, Module, Op, Value, clone_op, free_values
from ..compiler.ir.opdef import OPS
from ..compiler.ir.types import TensorType, bool_, i64
from .util import Purity

Env = dict[Value, tuple[Value, bool]]                    # value of the function -> (value of the batched one, has it the batch?)
RULES: dict[str, Callable] = {}


def rule(*names: str):
    def enter(fn):
        for n in names:
            RULES[n if "." in n else "tensor." + n] = fn
        return fn
    return enter


class Batcher:
    """Makes batched functions, one per (function, which arguments are batched, size)."""

    def __init__(self, module: Module):
        self.module = module
        self.made: dict[tuple, tuple[str, tuple[bool, ...]]] = {}

    def expand(self, b: Builder, op: Op) -> list[Value]:
        """The results of one autodiff.vmap."""
        a = op.attrs
        mask = tuple(d >= 0 for d in a["in_dims"])
        operands = [_to_front(b, v, d) if d >= 0 else v for v, d in zip(op.operands, a["in_dims"])]
        results = self.call(b, a["callee"], operands, mask, a["size"])
        out = []
        for (v, on), d in zip(results, a["out_dims"]):
            v = v if on else _stretch(b, v, a["size"])
            out.append(_from_front(b, v, d))
        return out

    def call(self, b: Builder, callee: str, operands, mask, size: int, attrs: dict | None = None) -> list[tuple[Value, bool]]:
        name, outs = self.function(callee, tuple(mask), size)
        types = list(self.module.funcs[name].result_types)
        results = b.op("func.call", operands, {**(attrs or {}), "callee": name, "result_types": types}).results
        return list(zip(results, outs))

    def function(self, callee: str, mask: tuple[bool, ...], size: int, all_out: bool = False) -> tuple[str, tuple[bool, ...]]:
        """(name of the batched function, which of its results are batched). `all_out`: make all of them so."""
        if not any(mask) and not all_out:
            return callee, (False,) * len(self.module.funcs[callee].result_types)
        key = (callee, mask, size, all_out)
        if key not in self.made:
            f = self.module.funcs[callee]
            attrs = {k: v for k, v in f.attrs.items() if k in ("arg_names", "result_names")}
            new = Func(self.module.unique_name(f"{callee}.vmap"), [_batched(a.type, size) if on else a.type for a, on in zip(f.args, mask)],
                       [a.name for a in f.args], [], attrs, f.loc)
            env: Env = {a: (n, on) for a, n, on in zip(f.args, new.args, mask)}
            run = Run(self, size, env)
            run.block(f.body, new.body)
            b = Builder(new.body, f.returns.loc)
            outs = [run.full(b, v) if all_out else env[v][0] for v in f.returns.operands]
            b.op("func.return", outs)
            new.result_types = [v.type for v in outs]
            self.module.add(new)
            self.made[key] = new.name, tuple(all_out or env[v][1] for v in f.returns.operands)
        return self.made[key]


class Run:
    """Batches ops, one after the other; `env` learns their results."""

    def __init__(self, batcher: Batcher, size: int, env: Env):
        self.batcher, self.size, self.env = batcher, size, env

    def block(self, block: Block, out: Block) -> None:
        """All ops but the terminator."""
        for op in block.ops[:-1]:
            self.op(op, out)

    def on(self, v: Value) -> bool:
        return self.env[v][1] if v in self.env else False

    def get(self, v: Value) -> Value:
        return self.env[v][0] if v in self.env else v

    def full(self, b: Builder, v: Value) -> Value:
        """v with the batch, repeated if it has none."""
        return self.get(v) if self.on(v) else _stretch(b, self.get(v), self.size)

    def op(self, op: Op, out: Block) -> None:
        b = Builder(out, op.loc)
        reads = list(op.operands) + [v for r in op.regions for v in free_values(r)]
        if not any(self.on(v) for v in reads):
            new = clone_op(op, {v: self.get(v) for v in reads})
            out.append(new)
            results = [(v, False) for v in new.results]
        elif op.name in RULES:
            results = RULES[op.name](self, b, op)
        elif OPS[op.name].elementwise:
            results = b.op(op.name, [self.full(b, v) for v in op.operands], dict(op.attrs)).results
        else:
            results = self.one_by_one(b, op)
        if isinstance(results, Value):
            results = [results]
        for old, new in zip(op.results, results, strict=True):
            v, on = new if isinstance(new, tuple) else (new, True)
            v.name = v.name or old.name
            self.env[old] = (v, on)

    def one_by_one(self, b: Builder, op: Op) -> list[Value]:
        """An scf.scan over the batch, with the op as its body."""
        reads = dict.fromkeys([*op.operands, *(v for g in op.regions for v in free_values(g))])
        xs = [v for v in reads if self.on(v)]
        body = Block([TensorType(i64), *(v.type for v in xs)])
        env = {v: self.get(v) for v in reads if not self.on(v)}
        env.update(zip(xs, body.args[1:]))
        new = clone_op(op, env)
        body.append(new)
        body.append(Op("scf.yield", new.results, loc=op.loc))
        return b.op("scf.scan", [self.get(v) for v in xs], {"length": self.size, "n_carry": 0, "reverse": False}, [body]).results

    def region(self, args, block: Block, outs: list[bool] | None = None, loc=None) -> tuple[Block, list[bool]]:
        """A batched region. `args`: which of its arguments are batched; `outs`: which yields must be (default: as they come)."""
        new = Block([_batched(a.type, self.size) if on else a.type for a, on in zip(block.args, args)])
        self.env.update((a, (n, on)) for a, n, on in zip(block.args, new.args, args))
        self.block(block, new)
        b = Builder(new, loc)
        yields = block.terminator.operands
        got = [self.on(v) or bool(outs and outs[i]) for i, v in enumerate(yields)]
        b.op("scf.yield", [self.full(b, v) if on else self.get(v) for v, on in zip(yields, got)])
        return new, got


def _batched(t: TensorType, size: int) -> TensorType:
    return t.with_shape((size, *t.shape))


def _stretch(b: Builder, v: Value, size: int) -> Value:
    return b.broadcast(v, (size, *v.type.shape))


def _to_front(b: Builder, v: Value, d: int) -> Value:
    return b.transpose(v, [d, *(i for i in range(v.type.rank) if i != d)])


def _from_front(b: Builder, v: Value, d: int) -> Value:
    rest = list(range(1, v.type.rank))
    return b.transpose(v, [*rest[:d], 0, *rest[d:]])


def _each(r: Run, b: Builder, op: Op, **attrs) -> list[Value]:
    """The same op on operands with the batch, with changed attributes."""
    return b.op(op.name, [r.full(b, v) for v in op.operands], {**op.attrs, **attrs}).results


# ---- movement and reductions ----------------------------------------------------------------------------------------


@rule("broadcast")
def _broadcast(r, b, op):
    return _each(r, b, op, shape=[r.size, *op.attrs["shape"]], dims=[0, *(d + 1 for d in op.attrs["dims"])])


@rule("reshape")
def _reshape(r, b, op):
    return _each(r, b, op, shape=[r.size, *op.attrs["shape"]])


@rule("transpose")
def _transpose(r, b, op):
    return _each(r, b, op, perm=[0, *(p + 1 for p in op.attrs["perm"])])


@rule("slice")
def _slice(r, b, op):
    a = op.attrs
    return _each(r, b, op, start=[0, *a["start"]], limit=[r.size, *a["limit"]], stride=[1, *a["stride"]])


@rule("reverse", "reduce_sum", "reduce_prod", "reduce_max", "reduce_min")
def _dims(r, b, op):
    return _each(r, b, op, dims=[d + 1 for d in op.attrs["dims"]])


@rule("concat", "argmax", "argmin", "cumsum", "cumprod", "sort", "take_along", "put_along_add", "nn.softmax", "nn.log_softmax")
def _dim(r, b, op):
    return _each(r, b, op, dim=op.attrs["dim"] + 1)


@rule("pad")
def _pad(r, b, op):
    x, value = op.operands
    attrs = {k: [0, *op.attrs[k]] for k in ("low", "high", "interior")}
    if not r.on(value):
        return b.op("tensor.pad", [r.full(b, x), r.get(value)], attrs).results
    full = r.full(b, x)                                   # each example has its own padding value: where x is not
    inside = b.op("tensor.pad", [b.constant(True, full.type.with_dtype(bool_)), b.constant(False, TensorType(bool_))], attrs).result
    moved = b.op("tensor.pad", [full, b.zeros(value.type)], attrs).result
    return b.select(inside, moved, b.broadcast(r.get(value), moved.type.shape, [0]))


@rule("stop_gradient", "autodiff.watch", "random.bits", "windows", "fold_windows")
def _same(r, b, op):
    return _each(r, b, op)


@rule("random.fold_in", "nn.cross_entropy")
def _all_on(r, b, op):
    return _each(r, b, op)


@rule("dynamic_slice", "dynamic_update_slice")
def _dynamic(r, b, op):
    n = 1 if op.name.endswith("dynamic_slice") else 2
    if any(r.on(v) for v in op.operands[n:]):
        return r.one_by_one(b, op)
    zero = b.constant(0, TensorType(i64))
    attrs = {"sizes": [r.size, *op.attrs["sizes"]]} if n == 1 else {}
    return b.op(op.name, [*(r.full(b, v) for v in op.operands[:n]), zero, *(r.get(v) for v in op.operands[n:])], attrs).results


@rule("take")
def _take(r, b, op):
    x, i = op.operands
    d = op.attrs["dim"]
    if r.on(x) and r.on(i):
        return r.one_by_one(b, op)
    if r.on(x):
        return b.op("tensor.take", [r.get(x), r.get(i)], {"dim": d + 1}).results
    return _to_front(b, b.op("tensor.take", [r.get(x), r.get(i)], {"dim": d}).result, d)


@rule("scatter_add")
def _scatter_add(r, b, op):
    x, i, u = op.operands
    if r.on(i):
        return r.one_by_one(b, op)
    return b.op("tensor.scatter_add", [r.full(b, x), r.get(i), r.full(b, u)], {"dim": op.attrs["dim"] + 1}).results


@rule("attention", "attention_grad")
def _attention(r, b, op):
    n = 3 if op.name == "tensor.attention" else 6
    if any(r.on(v) for v in op.operands[n:]):             # each example has its own length
        return r.one_by_one(b, op)
    return b.op(op.name, [*(r.full(b, v) for v in op.operands[:n]), *(r.get(v) for v in op.operands[n:])], dict(op.attrs)).results


@rule("dot_general")
def _dot(r, b, op):
    x, y = op.operands
    a = dict(op.attrs)
    nb = len(a["lhs_batch"])
    for side, v in (("lhs", x), ("rhs", y)):
        if r.on(v):
            for k in (side + "_batch", side + "_contract"):
                a[k] = [d + 1 for d in a[k]]
    if r.on(x) and r.on(y):
        a["lhs_batch"], a["rhs_batch"] = [0, *a["lhs_batch"]], [0, *a["rhs_batch"]]
        return b.op(op.name, [r.get(x), r.get(y)], a).results
    out = b.op(op.name, [r.get(x), r.get(y)], a).result
    free = x.type.rank - nb - len(a["lhs_contract"])
    return _to_front(b, out, nb if r.on(x) else nb + free)


@rule("tensor.assert")
def _assert(r, b, op):
    b.op("tensor.assert", [b.reduce("min", r.full(b, op.operands[0]), [0])], dict(op.attrs))
    return []


# ---- calls and control flow -----------------------------------------------------------------------------------------


@rule("func.call")
def _call(r, b, op):
    attrs = {k: v for k, v in op.attrs.items() if k not in ("callee", "result_types")}
    return r.batcher.call(b, op.attrs["callee"], [r.get(v) for v in op.operands], [r.on(v) for v in op.operands], r.size, attrs)


@rule("autodiff.custom")
def _custom(r, b, op):
    f, g = r.batcher.module.funcs[op.attrs["forward"]], r.batcher.module.funcs[op.attrs["backward"]]
    forward, _ = r.batcher.function(f.name, (True,) * len(f.args), r.size, all_out=True)
    backward, _ = r.batcher.function(g.name, (True,) * len(g.args), r.size, all_out=True)
    types = [_batched(t, r.size) for t in op.attrs["result_types"]]
    return _each(r, b, op, forward=forward, backward=backward, result_types=types)


@rule("scf.if")
def _if(r, b, op):
    cond = op.operands[0]
    if not r.on(cond):
        probe = [r.region([], region)[1] for region in op.regions]
        outs = [p or q for p, q in zip(*probe)]
        regions = [r.region([], region, outs, op.loc)[0] for region in op.regions]
        return list(zip(b.op("scf.if", [r.get(cond)], {}, regions).results, outs))
    pure = Purity(r.batcher.module)
    if not all(pure(o) for region in op.regions for o in region.ops[:-1]):
        return r.one_by_one(b, op)
    for region in op.regions:                              # some examples take one branch, some the other: both, and select
        r.block(region, b.block)
    c = r.get(cond)
    out = []
    for v, w in zip(*(region.terminator.operands for region in op.regions)):
        v, w = r.full(b, v), r.full(b, w)
        out.append(b.select(b.broadcast(c, v.type.shape, [0]), v, w))
    return out


def _carries(r: Run, body: Block, carries: list[bool], rest: list[bool], lead: int) -> list[bool]:
    """Which carries are batched: a fixpoint, as one that is batched may make another one so."""
    while True:
        _, got = r.region([*[False] * lead, *carries, *rest], body)
        grown = [a or g for a, g in zip(carries, got)]
        if grown == carries:
            return carries
        carries = grown


@rule("scf.scan")
def _scan(r, b, op):
    n, body = op.attrs["n_carry"], op.regions[0]
    xs = [r.on(v) for v in op.operands[n:]]
    carries = _carries(r, body, [r.on(v) for v in op.operands[:n]], xs, 1)
    ys = r.region([False, *carries, *xs], body)[1][n:]
    new, outs = r.region([False, *carries, *xs], body, [*carries, *ys], op.loc)
    operands = [r.full(b, v) if on else r.get(v) for v, on in zip(op.operands, carries)]
    operands += [_from_front(b, r.get(v), 1) if on else r.get(v) for v, on in zip(op.operands[n:], xs)]        # the steps come first
    results = b.op("scf.scan", operands, dict(op.attrs), [new]).results
    return [(v, on) for v, on in zip(results[:n], outs)] + [(_to_front(b, v, 1) if on else v, on) for v, on in zip(results[n:], outs[n:])]


@rule("scf.while")
def _while(r, b, op):
    cond, body = op.regions
    carries = _carries(r, body, [r.on(v) for v in op.operands], [], 0)
    if not r.region(carries, cond)[1][0]:
        new = [r.region(carries, cond, None, op.loc)[0], r.region(carries, body, carries, op.loc)[0]]
        operands = [r.full(b, v) if on else r.get(v) for v, on in zip(op.operands, carries)]
        return list(zip(b.op("scf.while", operands, {}, new).results, carries))
    # Examples stop at different times: go on while any does, and change only those that do.
    carries = [True] * len(carries)
    test = r.region(carries, cond, [True], op.loc)[0]
    end = test.ops.pop()
    inner = Builder(test, op.loc)
    inner.op("scf.yield", [inner.reduce("max", end.operands[0], [0])])
    step = Block([_batched(a.type, r.size) for a in body.args])
    inner = Builder(step, op.loc)
    r.env.update((a, (v, True)) for a, v in zip(cond.args, step.args))
    r.block(cond, step)
    going = r.full(inner, cond.terminator.operands[0])
    r.env.update((a, (v, True)) for a, v in zip(body.args, step.args))
    r.block(body, step)
    outs = [r.full(inner, v) for v in body.terminator.operands]
    inner.op("scf.yield", [inner.select(inner.broadcast(going, v.type.shape, [0]), v, old) for v, old in zip(outs, step.args)])
    return b.op("scf.while", [r.full(b, v) for v in op.operands], {}, [test, step]).results
