"""Generated data flow: random graphs of base ops, calls, loops and ifs, fused and lowered, against the interpreter. Donated
arguments included."""
import numpy as np
import pytest
from engram.compiler.ir import Block, Func, Module, TensorType, bool_, f32, i64
from engram.compiler.ir.builder import Builder
from engram.compiler.ir.verifier import verify
from lowering_cases import check

UNARY = ["neg", "abs", "exp", "tanh", "sqrt", "log", "floor"]


class Generator:
    """Random ops over a pool of values; f32 results are kept in about -1..1."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        shapes = [(3, 4), (2, 3, 4), (4,), (3,), (), (12,), (6, 4), (1, 4), (20, 30)]
        n = int(self.rng.integers(2, 6))
        self.types = [TensorType(f32, shapes[self.rng.integers(len(shapes))]) for _ in range(n)]
        self.func = Func("f", self.types)
        self.b = Builder(self.func.body)
        self.pool = list(self.func.args)
        self.made = []                                 # values of the block being filled
        self.depth = 0
        self.others: list[Func] = []

    def pick(self, test=lambda v: True):
        found = [v for v in self.pool if test(v)]
        return found[self.rng.integers(len(found))] if found else None

    def floats(self):
        return self.pick(lambda v: v.type.dtype is f32)

    # ---- control flow ----
    def inside(self, types, steps, pool=None):
        """A block with arguments of `types`, filled at random; returns it and the values made in it."""
        saved = self.b, self.pool, self.made
        block = Block(types)
        self.b, self.pool, self.made = Builder(block), (list(self.pool) if pool is None else pool) + list(block.args), list(block.args)
        self.depth += 1
        self.fill(steps)
        self.depth -= 1
        made = self.made
        self.b, self.pool, self.made = saved
        return block, made

    def value_of(self, block, made, t):
        """A value of type t to yield: made in the block if there is one."""
        b = Builder(block)
        found = [v for v in made if v.type == t] + [v for v in self.pool if v.type == t][:1]
        return found[self.rng.integers(len(found))] if found else b.zeros(t)

    def some(self, n):
        return [v for v in (self.floats() for _ in range(n))]

    def scan(self):
        carries, length = self.some(int(self.rng.integers(1, 3))), int(self.rng.integers(0, 4))
        xs = [v for v in self.pool if v.type.dtype is f32 and v.type.rank and v.type.shape[0] == length][:1]
        types = [TensorType(i64), *(v.type for v in carries), *(v.type.with_shape(v.type.shape[1:]) for v in xs)]
        block, made = self.inside(types, int(self.rng.integers(1, 6)))
        floats = [v for v in made if v.type.dtype is f32]
        b = Builder(block)
        out = [b.tanh(v) if self.rng.integers(2) else v for v in (self.value_of(block, made, c.type) for c in carries)]
        ys = [floats[self.rng.integers(len(floats))]] if self.rng.integers(2) else []
        b.op("scf.yield", [*out, *ys])
        return self.b.op("scf.scan", [*carries, *xs], {"length": length, "n_carry": len(carries), "reverse": bool(self.rng.integers(2))}, [block]).results

    def if_(self):
        x = self.floats()
        cond = self.b.compare("gt", self.b.reduce("sum", x, range(x.type.rank)), 0.1)
        likes = self.some(int(self.rng.integers(1, 3)))
        blocks = []
        for _ in range(2):
            block, made = self.inside([], int(self.rng.integers(0, 4)))
            out = [self.value_of(block, made, v.type) if self.rng.integers(2) else v for v in likes]
            Builder(block).op("scf.yield", out)
            blocks.append(block)
        return self.b.op("scf.if", [cond], {}, blocks).results

    def while_(self):
        carries = self.some(int(self.rng.integers(1, 3)))
        start = self.b.constant(0, TensorType(i64))
        types = [TensorType(i64), *(v.type for v in carries)]
        cond = Block(types)
        Builder(cond).op("scf.yield", [Builder(cond).compare("lt", cond.args[0], int(self.rng.integers(0, 4)))])
        body, made = self.inside(types, int(self.rng.integers(1, 5)))
        b = Builder(body)
        b.op("scf.yield", [b.add(body.args[0], 1), *(b.tanh(self.value_of(body, made, c.type)) for c in carries)])
        return self.b.op("scf.while", [start, *carries], {}, [cond, body]).results[1:]

    def call(self):
        args = self.some(int(self.rng.integers(1, 4)))
        if self.others and self.rng.integers(2):           # a function called twice
            g = self.others[self.rng.integers(len(self.others))]
            args = [self.pick(lambda v, t=t: v.type == t.type) for t in g.args]
            if any(a is None for a in args):
                return []
        else:
            block, made = self.inside([v.type for v in args], int(self.rng.integers(1, 6)), pool=[])
            floats = [v for v in made if v.type.dtype is f32]
            out = [floats[self.rng.integers(len(floats))] for _ in range(self.rng.integers(1, 4))]
            g = Func(f"g{len(self.others)}_{self.depth}_{len(self.pool)}", [], result_types=[v.type for v in out])
            g.body = block
            Builder(block).op("func.return", out)
            self.others.append(g)
        return self.b.op("func.call", args, {"callee": g.name, "result_types": list(g.result_types)}).results

    def fill(self, steps):
        for _ in range(steps):
            if self.depth < 2 and self.control and self.rng.integers(6) == 0:
                new = [self.scan, self.if_, self.while_, self.call][self.rng.integers(4)]()
            else:
                v = self.step()
                new = [v] if v is not None else []
            self.pool.extend(new)
            self.made.extend(new)

    control = False

    def step(self):
        b, rng = self.b, self.rng
        x = self.floats()
        kind = rng.integers(22)
        rank, shape = x.type.rank, x.type.shape
        d = int(rng.integers(rank)) if rank else 0
        if kind <= 2:
            name = UNARY[rng.integers(len(UNARY))]
            return b.tanh(x) if name in ("tanh", "exp") and rng.integers(2) else \
                getattr(b, name)(b.abs(b.tanh(x)) if name == "sqrt" else b.add(b.abs(x), 1.0) if name == "log" else b.tanh(x) if name == "exp" else x)
        if kind <= 5:
            y = self.pick(lambda v: v.type == x.type)
            return getattr(b, ["add", "sub", "mul", "max", "min"][rng.integers(5)])(x, y)
        if kind == 6:
            y = self.pick(lambda v: v.type == x.type)
            return b.select(b.compare(["lt", "ge"][rng.integers(2)], x, y), x, b.neg(y))
        if kind == 7:
            target = [(3, 4), (2, 3, 4), (6, 4), (5, 3), (20, 30)][rng.integers(5)]
            for start in range(len(target) - rank + 1):
                if all(n in (1, m) for n, m in zip(shape, target[start:])):
                    return b.broadcast(x, target, range(start, start + rank))
            return None
        if kind == 8:
            return b.reshape(x, [(x.type.numel,), (x.type.numel, 1), (1, *shape)][rng.integers(3)]) if x.type.numel != 12 \
                else b.reshape(x, [(12,), (3, 4), (2, 6)][rng.integers(3)])
        if kind == 9 and rank > 1:
            return b.transpose(x, [int(p) for p in rng.permutation(rank)])
        if kind == 10 and rank and x.type.numel:
            n = shape[d]
            lo = int(rng.integers(n))
            start, limit = [0] * rank, list(shape)
            start[d], limit[d] = lo, int(rng.integers(lo + 1, n + 1))
            return b.op("tensor.slice", [x], {"start": start, "limit": limit, "stride": [1] * rank}).result
        if kind in (11, 12) and rank:
            dims = sorted(int(v) for v in rng.choice(rank, rng.integers(1, rank + 1), replace=False))
            return b.tanh(b.reduce(["sum", "max", "min"][rng.integers(3)], x, dims))
        if kind == 13 and rank:
            m = b.reduce("max", x, [rank - 1], keepdim=True)
            e = b.exp(b.sub(x, b.broadcast(m, shape)))
            return b.div(e, b.broadcast(b.reduce("sum", e, [rank - 1], keepdim=True), shape))
        if kind == 14 and rank == 2:
            y = self.pick(lambda v: v.type.dtype is f32 and v.type.rank == 2 and v.type.shape[0] == shape[1])
            if y is not None:
                return b.tanh(b.op("tensor.dot_general", [x, y], {"lhs_batch": [], "rhs_batch": [], "lhs_contract": [1], "rhs_contract": [0]}).result)
        if kind == 15 and rank and x.type.numel:
            i = b.op("tensor.argmax", [x], {"dim": d}).result
            return b.tanh(b.cast(i, f32))
        if kind == 16 and rank and x.type.numel:
            i = b.iota(shape[:d] + (1,) + shape[d + 1:], d)
            u = b.broadcast(b.constant(0.5, TensorType(f32)), i.type.shape, [])
            name = ["tensor.take_along", "tensor.put_along_add"][rng.integers(2)]
            return b.op(name, [x, i] + ([u] if name.endswith("add") else []), {"dim": d}).result
        if kind == 17 and rank:
            y = self.pick(lambda v: v.type.dtype is f32 and v.type.rank == rank and all(
                k == d or n == m for k, (n, m) in enumerate(zip(v.type.shape, shape))))
            return b.op("tensor.concat", [x, y, x][:rng.integers(1, 4)], {"dim": d}).result
        if kind == 18 and rank:
            low = [int(rng.integers(0, 3)) if k == d else 0 for k in range(rank)]
            y = b.op("tensor.pad", [x, b.constant(0, TensorType(f32))], {"low": low, "high": [2 - n if n else 0 for n in low], "interior": [0] * rank}).result
            return b.add(y, b.op("tensor.pad", [x, b.constant(0, TensorType(f32))], {"low": [2 - n if n else 0 for n in low], "high": low, "interior": [0] * rank}).result) \
                if rng.integers(2) else y
        if kind == 19 and rank:
            return b.tanh(b.op(["tensor.cumsum", "tensor.cumprod"][rng.integers(2)], [x], {"dim": d, "reverse": bool(rng.integers(2))}).result)
        if kind == 20 and rank and x.type.numel:
            zero = b.constant(0, TensorType(i64))
            sizes = [max(1, n - 1) if k == d else n for k, n in enumerate(shape)]
            y = b.op("tensor.dynamic_slice", [x] + [zero] * rank, {"sizes": sizes}).result
            return b.op("tensor.dynamic_update_slice", [x, b.tanh(y)] + [zero] * rank).result if rng.integers(2) else y
        if kind == 21 and rank and x.type.numel:
            i = b.cast(b.op("tensor.argmax", [x], {"dim": d}).result, i64)
            i = b.reshape(i, (i.type.numel,))
            u = b.broadcast(b.constant(0.25, TensorType(f32)), shape[:d] + i.type.shape + shape[d + 1:], [])
            zero = b.zeros(x.type) if rng.integers(2) else x
            return b.add(b.op("tensor.scatter_add", [zero, i, u], {"dim": d}).result, x)
        return None

    def module(self, control: bool = False) -> Module:
        self.control = control
        self.fill(int(self.rng.integers(4, 22)))
        made = [v for v in self.pool if v.owner is not self.func.body] or [self.b.neg(self.pool[0])]
        results = [made[-1]] + [made[self.rng.integers(len(made))] for _ in range(self.rng.integers(0, 4))]
        donate, free = [], list(range(len(self.types)))
        for r, v in enumerate(results):
            a = next((a for a in free if self.types[a] == v.type), None)
            if a is not None and self.rng.integers(3):
                donate.append([a, r])
                free.remove(a)
        self.b.op("func.return", results)
        self.func.result_types = [v.type for v in results]
        self.func.attrs["donate"] = donate
        m = Module([*self.others, self.func], {"stage": "tensor", "entries": ["f"]})
        verify(m)
        assert not any(v.type.dtype in (bool_, i64) for v in results)
        return m


@pytest.mark.parametrize("block", range(12))
def test_generated_graphs(block):
    for seed in range(block * 20, block * 20 + 20):
        m = Generator(seed).module(control=block % 2 == 1)
        for fuse in (True, False):
            try:
                check(m, fuse, seed=seed, tol=1e-4)
            except Exception as e:
                raise AssertionError(f"seed {seed}, fuse={fuse}: {type(e).__name__}: {e}") from e
