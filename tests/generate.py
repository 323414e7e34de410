"""Random whole programs for the differential tests: functions with calls, control flow, nn and base ops, mixed dtypes, donation.

`modules(...)` is a Hypothesis strategy of `Generated`: a module that verifies, and arguments for its entry @main. How operands are
found and kept in their domains is in generate_values.py, the single steps are in generate_steps.py, and what results may differ
by is decided in tolerance.py.
"""
from __future__ import annotations

import random
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from engram.compiler.ir import Block, Func, Loc, Module, TensorType, Value, bool_, f32, f64, i64
from engram.compiler.ir.builder import Builder
from engram.compiler.ir.types import u32, u64
from generate_steps import Steps
from generate_values import ARGUMENT, FULL, INTS, MAX_NUMEL, Info, Options, Scope
from hypothesis import strategies as st


@dataclass
class Generated:
    """A program, arguments for @main, and per result of @main whether its bits are the same everywhere."""

    module: Module
    args: list[np.ndarray]
    exact: list[bool]

    def __repr__(self):
        return f"<{len(list(self.module.walk()))} ops, {len(self.module.funcs)} functions>"


class Maker(Steps):
    """Builds one module: functions, control flow, and @main."""

    def __init__(self, draw, options: Options):
        super().__init__(draw, options)
        self.actions = self._actions()

    def _actions(self):
        o = self.o
        table = [(16, self.unary), (22, self.binary), (8, self.select), (6, self.cast_step), (6, self.reshape), (6, self.transpose), (5, self.broadcast),
                 (6, self.slice), (4, self.pad), (4, self.concat), (3, self.reverse), (10, self.reduce), (4, self.index), (2, self.iota), (3, self.dynamic)]
        if not o.smooth:
            table += [(5, self.compare), (6, self.integer), (2, self.sort), (2, self.arg), (2, self.bits)]
        if not o.smooth and not o.wild:
            table += [(1, self.bitcast), (1, self.stop)]
        if not o.wild:
            table += [(10, self.dot), (4, self.product), (3, self.windows), (3, self.cumulate)]
        if o.nn and not o.wild:
            table += [(8, self.activation), (6, self.softmax)]
            table += [] if o.smooth else [(3, self.cross_entropy), (2, self.one_hot), (2, self.random_floats)]
        if o.control:
            table += [(6, self.call), (4, self.scan)] + ([] if o.smooth else [(4, self.branch)])
            table += [] if o.smooth or o.gradient else [(2, self.loop)]
        return table

    def steps(self, s: Scope, n: int) -> None:
        table = [(a, w) for w, a in self.actions if s.depth < 2 or a not in (self.call, self.scan, self.branch, self.loop)]
        for _ in range(n):
            self.weighted(table)(s)

    # ---- functions and control flow ----
    def arguments(self, s: Scope, n: int) -> list[Value]:
        """Values to hand to a function or to carry, floats within +-ARGUMENT."""
        out = []
        for _ in range(n):
            v = self.value(s, ok=lambda v: v.type.dtype is not u32)
            out.append(self.within(s, v, -ARGUMENT, ARGUMENT) if v.type.dtype.is_float else v)
        return out

    def carried(self, v: Value) -> Info:
        if self.o.wild and v.type.dtype.is_float:
            return self.info[v]
        return Info(-ARGUMENT, ARGUMENT, False) if v.type.dtype.is_float else FULL[v.type.dtype]

    def call(self, s: Scope) -> None:
        """A call of a function there is, when values of its types are at hand, else of a new one."""
        for name in self.helpers:
            f = self.module.funcs[name]
            if self.chance(50):
                found = [self.find(s, lambda v, t=a.type: v.type == t) for a in f.args]
                if None not in found:
                    return self.call_op(s, name, [self.within(s, v, -ARGUMENT, ARGUMENT) if v.type.dtype.is_float else v for v in found])
        args = self.arguments(s, self.int(1, 3))
        f = Func("", [v.type for v in args], result_types=[])
        inner = Scope(Builder(f.body), list(f.args), s.depth + 1)
        for a, v in zip(f.args, args):
            self.info[a] = self.carried(v)
        self.steps(inner, self.int(1, 5))
        out = self.results(inner, self.int(1, 2))
        f.result_types = [v.type for v in out]
        Builder(f.body).op("func.return", out)
        f.name = name = self.module.unique_name(self.pick(("helper", "dense.forward")))     # (the body may have added functions)
        self.module.add(f)
        self.helpers[name] = [self.info[v] for v in out]
        self.call_op(s, name, args)

    def call_op(self, s: Scope, name: str, args: list[Value]) -> None:
        self.line += 1
        types = list(self.module.funcs[name].result_types)
        op = s.b.at(Loc("generated.nn", self.line, 1, self.line, 9)).op("func.call", args, {"callee": name, "result_types": types})
        for r, i in zip(op.results, self.helpers[name]):
            self.info[r] = i
        s.values += op.results

    def results(self, s: Scope, n: int) -> list[Value]:
        """Values to return, later ones more often; floats within LIMIT."""
        return [self.tame(s, self.value(s, ok=lambda v: v.type.dtype is not u64)) for _ in range(n)]

    def inner(self, s: Scope, block: Block) -> Scope:
        # enclosing values are visible; a few of them, so that regions mostly work on what they are given
        seen = [v for v in s.values if self.chance(30)]
        return Scope(Builder(block), [*seen, *block.args], s.depth + 1)

    def branch(self, s: Scope) -> None:
        c = self.find(s, lambda v: v.type == TensorType(bool_)) or self.condition(s)
        blocks, outs = [Block(), Block()], []
        a = self.inner(s, blocks[0])
        self.steps(a, self.int(1, 3))
        outs.append(self.results(a, self.int(1, 2)))
        b = self.inner(s, blocks[1])
        self.steps(b, self.int(0, 2))
        outs.append([self.conform(b, v.type) for v in outs[0]])
        for block, out in zip(blocks, outs):
            Builder(block).op("scf.yield", out)
        self.line += 1
        op = s.b.at(Loc("generated.nn", self.line, 1, self.line, 9)).op("scf.if", [c], None, blocks)
        for r, x, y in zip(op.results, *outs):
            i, j = self.info[x], self.info[y]
            self.info[r] = Info(min(i.lo, j.lo), max(i.hi, j.hi), i.exact and j.exact)
        s.values += op.results

    def condition(self, s: Scope) -> Value:
        x = self.conform(s, TensorType(i64))
        return self.ew(s, "compare", x, self.constant(s, x.type, -2, 2), predicate=self.pick(("lt", "ge")))

    def scan(self, s: Scope) -> None:
        xs = []
        if self.chance(70):
            x = self.find(s, lambda v: v.type.rank > 0 and 0 <= v.type.shape[0] <= 6)
            if x is not None:
                xs = [x]
        length = xs[0].type.shape[0] if xs else self.int(0, 4)
        inits = self.arguments(s, self.int(1, 2))
        body = Block([TensorType(i64), *(v.type for v in inits), *(x.type.with_shape(x.type.shape[1:]) for x in xs)])
        self.info[body.args[0]] = Info(0, max(length - 1, 0))
        for a, v in zip(body.args[1:], inits):
            self.info[a] = self.carried(v)
        for a, x in zip(body.args[1 + len(inits):], xs):
            self.info[a] = self.info[x]
        t = self.inner(s, body)
        self.steps(t, self.int(1, 4))
        carries = [self.carry(t, v.type) for v in inits]
        ys = [v for v in self.results(t, self.int(0, 2)) if v.type.numel * max(length, 1) <= MAX_NUMEL]
        Builder(body).op("scf.yield", [*carries, *ys])
        self.line += 1
        attrs = {"length": length, "n_carry": len(inits), "reverse": self.chance(40)}
        op = s.b.at(Loc("generated.nn", self.line, 1, self.line, 9)).op("scf.scan", [*inits, *xs], attrs, [body])
        for r, v in zip(op.results, inits):
            self.info[r] = self.carried(v)
        for r, y in zip(op.results[len(inits):], ys):
            self.info[r] = self.info[y]
        s.values += op.results

    def carry(self, s: Scope, t: TensorType) -> Value:
        """The next value of a carry: something computed, combined with something of its type; floats within +-ARGUMENT."""
        v = self.conform(s, t)
        if not t.dtype.is_float:
            return v
        own = self.find(s, lambda v: v.type == t)
        if own is not None and own is not v:
            v = self.ew(s, "add", self.scaled(s, v, 4), self.scaled(s, own, 4), bounds=(-8.1, 8.1))
        return self.within(s, v, -ARGUMENT, ARGUMENT)

    def loop(self, s: Scope) -> None:
        """while: at most 4 steps by a counter, possibly fewer by an integer the body changes."""
        inits = self.arguments(s, self.int(1, 2))
        start = self.ew(s, "and", self.conform(s, TensorType(i64)), self.number(s, 3, TensorType(i64)), bounds=(0, 3))
        types = [TensorType(i64), *(v.type for v in inits)]
        cond, body = Block(types), Block(types)
        for block in (cond, body):
            self.info[block.args[0]] = Info(0, 4)
            for a, v in zip(block.args[1:], inits):
                self.info[a] = self.carried(v)
        c = Scope(Builder(cond), list(cond.args), 9)
        go = self.ew(c, "compare", cond.args[0], self.number(c, 4, TensorType(i64)), predicate="lt")
        n = self.find(c, lambda v: v.type.dtype in INTS and v.type.rank == 0 and v is not cond.args[0])
        if n is not None and self.chance(50):
            go = self.ew(c, "and", go, self.ew(c, "compare", n, self.constant(c, n.type, -2, 2), predicate="ne"))
        c.b.op("scf.yield", [go])
        t = self.inner(s, body)
        self.steps(t, self.int(1, 3))
        carries = [self.carry(t, v.type) for v in inits]
        following = self.ew(t, "add", body.args[0], self.number(t, 1, TensorType(i64)), bounds=(1, 4))
        t.b.op("scf.yield", [following, *carries])
        op = s.b.op("scf.while", [start, *inits], None, [cond, body])
        for r, v in zip(op.results[1:], inits):
            self.info[r] = self.carried(v)
        self.info[op.results[0]] = Info(0, 4)
        s.values += op.results

    # ---- the whole ----
    def main(self) -> Generated:
        o = self.o
        n_args = self.int(1, 6)
        types = [self.type() for _ in range(n_args)]
        if o.gradient or o.smooth:
            types[0] = TensorType(f64 if o.smooth else self.pick((f32, f32, f64)), self.shape())
        elif self.chance(30):
            types.append(TensorType(u64))
        f = Func("main", types, [f"x{i}" for i in range(len(types))])
        f.attrs["arg_names"] = [f"x{i}" for i in range(len(types))]
        args = []
        for a in f.args:
            arr, info = self.argument(a.type)
            args.append(arr)
            self.info[a] = info
        s = Scope(Builder(f.body), list(f.args))
        if o.gradient or o.smooth:
            out = self.differentiated(s, f)
        else:
            self.steps(s, self.int(1, o.ops))
            out = self.loose_ends(s) or self.results(s, 1)
        f.result_types = [v.type for v in out]
        s.b.op("func.return", out)
        if o.donate:
            taken = set()
            for r, v in enumerate(out):
                a = next((i for i, t in enumerate(types) if t == v.type and i not in taken), None)
                if a is not None and self.chance(75):
                    taken.add(a)
                    f.attrs.setdefault("donate", []).append([a, r])
        self.module.add(f)
        return Generated(self.module, args, [self.info[v].exact for v in out])

    def loose_ends(self, s: Scope) -> list[Value]:
        """Values nothing uses: returned, so that little of the program is dead."""
        used = {v for op in s.b.block.walk() for v in op.operands}
        loose = [v for v in s.values if v not in used and v.type.dtype is not u64 and not (v in s.b.block.args and self.chance(90))]
        return loose[-9:]

    def differentiated(self, s: Scope, f: Func) -> list[Value]:
        """[a scalar loss, its gradients with respect to the float arguments]."""
        xs = []
        for a in f.args:
            if a.type.dtype.is_float and a.type.dtype.bits >= 32:
                v = s.b.op("autodiff.watch", [a]).result
                self.info[v] = self.info[a]
                s.values.remove(a)
                s.values.append(v)
                xs.append(v)
        self.steps(s, self.int(1, self.o.ops))
        dt = xs[0].type.dtype
        total = self.number(s, 0.0, TensorType(dt))
        for v in [xs[0]] + [v for v in s.values[-6:] if v.type.dtype is dt]:
            v = self.tame(s, v)
            part = self.emit(s, "tensor.reduce_sum", [v], {"dims": list(range(v.type.rank))}, (-500, 500)) if v.type.rank else v
            total = self.ew(s, "add", total, part, bounds=(-500, 500))
        one = s.b.constant(1, total.type)
        grads = s.b.op("autodiff.gradient", [total, one, *xs], {"n_y": 1, "n_x": len(xs)}).results
        for g in grads:
            self.info[g] = Info(-1e6, 1e6, False)
        self.info[total] = Info(-1e6, 1e6, False)
        return [total, *grads]

    def argument(self, t: TensorType) -> tuple[np.ndarray, Info]:
        dt, rng = t.dtype, self.rng
        if dt.is_float:
            x = rng.uniform(-2, 2, t.shape)
            if self.o.wild:
                tiny, huge = float(ml_dtypes.finfo(dt.numpy).smallest_subnormal), float(ml_dtypes.finfo(dt.numpy).max)
                special = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, tiny, -5 * tiny, huge, -huge, 2.5, -0.5, 1 - 2**-24, 2.0**31, -2.0**63]
                x = np.where(rng.random(t.shape) < 0.6, rng.choice(special, t.shape), x)
                with np.errstate(over="ignore"):
                    return x.astype(dt.numpy), Info(-np.inf, np.inf)
            if not self.o.smooth:                          # ties, zeros of both signs, whole numbers
                x = np.where(rng.random(t.shape) < 0.15, np.round(x), x)
                x = np.where(rng.random(t.shape) < 0.05, -0.0, x)
            return np.asarray(x).astype(dt.numpy), Info(-2, 2)
        if dt is bool_:
            return np.asarray(rng.integers(0, 2, t.shape)).astype(bool), FULL[dt]
        if dt is u64:
            return np.asarray(rng.integers(0, 2**40, t.shape)).astype(np.uint64), FULL[dt]
        x = np.asarray(rng.integers(-9, 10, t.shape)).astype(dt.numpy)
        ends = rng.random(t.shape) < (0.3 if self.o.wild else 0.03)
        return np.where(ends, rng.choice([dt.min, dt.max, dt.min + 1], t.shape), x).astype(dt.numpy), FULL[dt]


@st.composite
def modules(draw, options: Options | None = None) -> Generated:
    """Programs with arguments for @main. With options.gradient (or smooth): results are a loss and its gradients."""
    return Maker(draw, options or Options()).main()


def program(seed: int, options: Options | None = None) -> Generated:
    """The program of a seed, without Hypothesis: for counting, and for looking at one."""
    rng = random.Random(seed)
    maker = Maker.__new__(Maker)
    maker.int = lambda lo, hi: rng.randint(lo, hi)
    maker.__init__(None, options or Options())
    return maker.main()


WILD = modules(Options(wild=True, ops=24))
GRADIENT = Options(gradient=True, ops=16)
# Hypothesis prefers small and repetitive choices, which shrink; programs of a seed are as varied as can be, and do not.
SEEDS = st.integers(0, 2**32)
ANY = st.one_of(modules(), modules(Options(nn=False)), modules(GRADIENT), WILD, SEEDS.map(program), SEEDS.map(lambda s: program(s, GRADIENT)))
SMOOTH = modules(Options(dtypes=((f64, 1),), smooth=True, gradient=True, donate=False, ops=12))
