"""Which values of a kernel differ between the lanes of a vectorised loop, how accesses then look, and what that costs.

`Plan.parallel` decides between vectorising over a kernel's innermost parallel dim and over the loops inside its
iterations, by a rough cost model in machine cycles. Nothing is emitted here.
"""
from __future__ import annotations

from ...compiler.ir.core import Block, Op, Value
from ...compiler.ir.dims import product
from .target import CpuTarget

HEAVY = {"exp": 6, "exp2": 20, "expm1": 20, "log": 8, "log2": 25, "log1p": 25, "sin": 10, "cos": 10, "tan": 40, "asin": 40,
         "acos": 40, "atan": 35, "sinh": 25, "cosh": 25, "tanh": 12, "asinh": 40, "acosh": 40, "atanh": 40, "erf": 12,
         "erfc": 30, "pow": 50, "atan2": 40, "div": 10, "sqrt": 12, "rsqrt": 20, "mod": 40, "fmod": 40, "floordiv": 12,
         "philox": 60}
GUESSED_TRIPS = 64
UNVECTORISABLE = ("loop.while", "loop.alloc", "loop.sort", "loop.call", "loop.contract")


def constant(v: Value) -> int | float | None:
    """The number a value is, if it is a scalar.constant."""
    op = v.owner
    return op.attrs["value"] if isinstance(op, Op) and op.name == "scalar.constant" else None


def trips(op: Op) -> int | None:
    """Static trip count of a loop.for or loop.reduce."""
    lo, hi = constant(op.operands[0]), constant(op.operands[1])
    if lo is None or hi is None:
        return None
    step = op.attrs.get("step", 1)
    return max(0, -(-(int(hi) - int(lo)) // step))


def varying(block: Block, seed: Value) -> set[Value]:
    """The values in the block that depend on `seed`, a lane-varying index."""
    out = {seed}

    def visit(b: Block) -> None:
        for op in b.ops:
            differs = any(v in out for v in op.operands)
            if op.name in ("loop.for", "loop.reduce"):
                body = op.regions[0]
                bounds = any(v in out for v in op.operands[:2])
                if bounds:
                    out.add(body.args[0])
                while True:                                   # carried values: until nothing changes
                    before = len(out)
                    for a, init in zip(body.args[1:], op.operands[2:]):
                        if init in out:
                            out.add(a)
                    visit(body)
                    ends = body.terminator.operands
                    for a, y in zip(body.args[1:], ends):
                        if y in out or bounds:
                            out.add(a)
                    if len(out) == before:
                        break
                for r, y in zip(op.results, ends):
                    if y in out or bounds:
                        out.add(r)
                for r, a in zip(op.results, body.args[1:]):
                    if a in out:
                        out.add(r)
            elif op.name == "loop.if":
                for region in op.regions:
                    visit(region)
                yields = [region.terminator.operands for region in op.regions]
                for i, r in enumerate(op.results):
                    if differs or any(y[i] in out for y in yields):
                        out.add(r)
            else:
                for region in op.regions:
                    visit(region)
                if differs:
                    out.update(op.results)
    visit(block)
    return out


class Strides:
    """How i64 values move with the index `seed`: a number of elements per step, 0 for uniform ones, None for anything else."""

    def __init__(self, seed: Value, vary: set[Value]):
        self.seed, self.vary = seed, vary
        self.memo: dict[Value, int | None] = {seed: 1}

    def of(self, v: Value) -> int | None:
        if v not in self.vary:
            return 0
        if v not in self.memo:
            self.memo[v] = self._compute(v)
        return self.memo[v]

    def _compute(self, v: Value) -> int | None:
        op = v.owner
        if not isinstance(op, Op):
            return None
        xs = op.operands
        if op.name in ("scalar.add", "scalar.sub"):
            a, b = self.of(xs[0]), self.of(xs[1])
            return None if a is None or b is None else a + b if op.name == "scalar.add" else a - b
        if op.name == "scalar.mul":
            for x, y in ((xs[0], xs[1]), (xs[1], xs[0])):
                c = constant(x)
                if c is not None:
                    s = self.of(y)
                    return None if s is None else s * int(c)
        return None

    def near(self, v: Value) -> bool:
        """Whether the lanes' values lie at constant distances although they do not step evenly: index // 2, index % 4."""
        op = v.owner
        if self.of(v) is not None:
            return True
        if not isinstance(op, Op) or not op.name.startswith("scalar."):
            return False
        short, c = op.name.partition(".")[2], constant(op.operands[-1])
        if short in ("add", "sub"):
            return all(self.near(x) for x in op.operands)
        if c is None or not self.near(op.operands[0]):
            return False
        n = {"shr": 1 << int(c) if c < 5 else 64, "and": int(c) + 1, "floordiv": int(c), "mod": int(c)}.get(short, 0)
        return short == "mul" or (n > 0 and 16 % n == 0)

    def access(self, buffer: Value, indices: list[Value]) -> int | None:
        """Elements between the addresses of neighbouring lanes."""
        total = 0
        view = buffer.owner
        if buffer in self.vary:
            if not (isinstance(view, Op) and view.name == "loop.view"):
                return None
            total = self.access_view(view)
            if total is None:
                return None
        for v, stride in zip(indices, buffer.type.element_strides):
            s = self.of(v)
            if s is None:
                return None
            total += s * stride
        return total

    def access_view(self, view: Op) -> int | None:
        s = self.of(view.operands[1])
        if s is None:
            return None
        inner = view.operands[0]
        return s if inner not in self.vary else None


class Plan:
    """The vectorisation of one kernel: `over` is the region argument (innermost parallel index) or None; `loops` the
    loop.for / loop.reduce ops that are vectorised over their own index; `lanes`; `cost` in cycles for all iterations."""

    def __init__(self, target: CpuTarget):
        self.target = target
        self.loops: set[Op] = set()
        self.over: Value | None = None
        self.lanes = 1
        self.cost = 0.0

    @staticmethod
    def parallel(op: Op, target: CpuTarget) -> Plan:
        body, extents = op.regions[0], op.attrs["extents"]
        total = 1
        for n in extents:
            total *= n
        inside = Plan(target)
        inside.cost = total * (inside._scalar(body) + 2.0)
        if not body.args or not can_vectorise(body, varying(body, body.args[-1])):
            return inside
        over = Plan(target)
        over.over = body.args[-1]
        lanes = base_lanes(body, target)
        n = extents[-1]
        vary = varying(body, over.over)
        if any(o.name in ("loop.reduce", "loop.for") for o in body.ops) and len(list(body.walk())) <= 40:
            while lanes < 4 * base_lanes(body, target) and n >= 2 * lanes:
                lanes *= 2                                    # more chains in flight
        over.lanes = lanes
        steps = -(-n // lanes)
        factor = lanes / base_lanes(body, target)
        over.cost = total / max(n, 1) * (steps * (over._vector(body, Strides(over.over, vary), lanes) * factor + 1.0) + 6.0)
        return over if over.cost <= inside.cost else inside

    def _scalar(self, block: Block) -> float:
        """One execution of the block on scalars, its loops vectorised where that pays (noted in self.loops)."""
        cost = 0.0
        for op in block.ops:
            if op.name in ("loop.for", "loop.reduce"):
                n = trips(op)
                n = GUESSED_TRIPS if n is None else n
                before = set(self.loops)
                latency = 4.0 if op.name == "loop.reduce" and op.results and op.results[0].type.dtype.is_float else 1.0
                plain = n * max(self._scalar(op.regions[0]) + 1.0, latency)
                chosen = self.loops
                best = plain
                if self._loop_legal(op):
                    body = op.regions[0]
                    seed = body.args[0]
                    lanes = base_lanes(body, self.target)
                    vector = -(-n // lanes) * (self._vector(body, Strides(seed, varying(body, seed)), lanes) + 1.0) + 4.0
                    if op.name == "loop.reduce":
                        vector += 12.0 * len(op.results)
                    if vector < plain:
                        chosen, best = before | {op}, vector
                self.loops = chosen
                cost += best
            elif op.name in ("loop.if", "loop.while"):
                cost += 3.0 + sum(self._scalar(r) for r in op.regions)
            elif op.name == "loop.contract":
                sizes = {c: n for key, v in zip(("out", "lhs", "rhs"), op.operands) for c, n in zip(op.attrs[key], v.type.shape)}
                cost += 100.0 + product(sizes.values()) / self.target.lanes(op.operands[0].type.dtype.name)
            elif op.name == "loop.sort":
                n = op.operands[0].type.numel
                cost += 10.0 * n * max(1, n.bit_length())
            else:
                cost += _scalar_cost(op)
        return cost

    def _loop_legal(self, op: Op) -> bool:
        body = op.regions[0]
        if op.name == "loop.for" and not (op.attrs.get("independent") and not op.results and op.attrs.get("step", 1) == 1):
            return False
        if op.name == "loop.reduce" and any(o.name == "loop.store" for o in body.walk()):
            return False
        return can_vectorise(body, varying(body, body.args[0]))

    def _vector(self, block: Block, strides: Strides, lanes: int) -> float:
        cost = 0.0
        for op in block.ops:
            if op.name in ("loop.for", "loop.reduce"):
                n = trips(op)
                cost += (GUESSED_TRIPS if n is None else n) * (self._vector(op.regions[0], strides, lanes) + 1.0)
            elif op.name == "loop.if":
                cost += 4.0 + sum(self._vector(r, strides, lanes) for r in op.regions)
            elif op.name in ("loop.load", "loop.store"):
                first = 1 if op.name == "loop.load" else 2
                s = strides.access(op.operands[first - 1], op.operands[first:])
                wide = op.operands[first - 1].type.dtype.bits / 32
                close = s is not None and 1 < s <= 4 or s is None and all(strides.near(v) for v in op.operands[first:])
                cost += (0.7 if s == 0 else max(0.5, wide) if s == 1 else 4.0 * wide if close else
                         lanes * (0.8 if first == 1 else 1.3))
            elif any(v in strides.vary for v in op.operands):
                short = op.name.partition(".")[2]
                dt = op.operands[0].type.dtype if op.operands[0].type else None
                if dt is not None and dt.name == "i64" and op.results and strides.of(op.results[0]) is not None:
                    cost += 0.3
                    continue
                each = HEAVY.get(short, 1.0)
                if dt is not None and dt.is_int and short in ("floordiv", "mod", "fmod"):
                    each = 12.0 if constant(op.operands[1]) is not None else 6.0 * lanes
                cost += each * (2.0 if dt is not None and dt.bits == 64 else 1.0)
            elif op.name not in ("scalar.constant", "scf.yield"):
                cost += _scalar_cost(op) * 0.5
        return cost


def _scalar_cost(op: Op) -> float:
    if op.name in ("scalar.constant", "scf.yield", "loop.view"):
        return 0.0
    short = op.name.partition(".")[2]
    if short in HEAVY:
        return HEAVY[short] * (1.0 if short in ("div", "sqrt") else 1.5)
    return 0.7


def can_vectorise(block: Block, vary: set[Value]) -> bool:
    """Whether lanes can run the block in step: loops inside have bounds that are alike in all lanes."""
    for op in block.walk():
        if op.name in UNVECTORISABLE:
            return False
        if op.name in ("loop.for", "loop.reduce") and any(v in vary for v in op.operands[:2]):
            return False
        if op.name == "loop.store" and op.operands[1].type.rank == 0 and op.operands[1] not in vary:
            return False
        if op.name == "scalar.pow" and op.operands[0].type.dtype.is_int:
            return False
    return True


def base_lanes(block: Block, target: CpuTarget) -> int:
    """Lanes that fill one register with the data the block works on."""
    bits = []
    for op in block.walk():
        if op.name == "loop.load":
            bits.append(op.results[0].type.dtype.bits)
        elif op.name == "loop.store":
            bits.append(op.operands[0].type.dtype.bits)
    narrow = min((max(32, b) for b in bits), default=32)
    return target.vector_bytes * 8 // narrow
