"""How much work a kernel of the loop IR is: floating-point operations, and the bytes it has to read and write.

Counted on the IR, so they are what the program asks for, not what a backend makes of it:
* FLOPs: one for every addition, multiplication, division, maximum, minimum and elementary function of floats; a matrix product's
  multiply and add are two, whatever the dtype; a reduction counts its combinations. Casts, signs, selects, comparisons, integer and index
  arithmetic: none.
* Bytes: of every buffer from outside the kernel the elements that are read, and those that are written, each once: at most as many as
  there are, however often a loop comes by. So they are the least traffic; a cache may take all of it.
A loop whose bounds depend on outer indices counts its mean over them. Bounds known at run time only (taken as 64 turns), indices with too many
values (taken in the middle) and branches that differ (the longer one) make a count an estimate: `exact` is False.
"""
from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..ir.core import Block, Func, Loc, Op, Value
from ..ir.types import BufferType

KERNELS = ("loop.parallel", "loop.contract", "loop.contract_packed", "loop.copy", "loop.pack", "loop.sort")
COUNTED = {"exp", "exp2", "expm1", "log", "log2", "log1p", "sqrt", "rsqrt", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh",
           "acosh", "atanh", "erf", "erfc", "add", "sub", "mul", "div", "floordiv", "mod", "fmod", "pow", "atan2", "max", "min"}
UNKNOWN_TRIPS = 64
MOST_VALUES = 4096                         # combinations of outer indices over which a loop's length is averaged

At = dict[Value, Sequence[float]]          # an index -> the values it takes; one value, its mean, where they are many or not known


@dataclass(frozen=True)
class Kernel:
    """One kernel of a function: where it comes from in the user's text, and the work of one run of it."""

    function: str
    op: str                                # parallel, contract, copy, sort ...
    what: str                              # its shape, for people
    loc: Loc | None
    lines: tuple[tuple[str, int], ...]     # every (file, line) that went into it
    flops: float
    bytes_read: float
    bytes_written: float
    exact: bool

    @property
    def bytes(self) -> float:
        return self.bytes_read + self.bytes_written


def kernel_of(func: Func, op: Op) -> Kernel:
    """The work of a host-level kernel op of that function."""
    c = _Count()
    c.op(op, 1.0, {})
    read, written = (sum(min(n, elements(v)) * v.type.dtype.bytes for v, n in side.items()) for side in (c.read, c.written))
    inner = [o.loc for o in _all(op) if o.loc is not None and o.name.startswith(("scalar.", "loop.store", "loop.contract")) and o.name != "scalar.constant"]
    loc = op.loc or next(iter(inner), None)
    lines = dict.fromkeys((x.file, x.line) for x in ([loc] if loc else []) + inner)
    return Kernel(func.name, op.name.removeprefix("loop."), describe(op), loc, tuple(lines), c.flops, read, written, c.exact)


def _all(op: Op):
    yield op
    for r in op.regions:
        yield from r.walk()


def describe(op: Op) -> str:
    """A kernel's shape: `mk,kn->mn 128x784 784x512`, `over 128 x 512: max add`."""
    if op.name == "loop.contract":
        out, lhs, rhs = (op.attrs[x] for x in ("out", "lhs", "rhs"))
        shapes = " ".join("x".join(map(str, v.type.shape)) or "1" for v in op.operands[1:])
        return f"{lhs},{rhs}->{out} {shapes} {op.operands[1].type.dtype}" + (" +=" if op.attrs.get("accumulate") else "") + (" fused" if op.regions else "")
    if op.name == "loop.parallel":
        done: dict[str, int] = {}
        for o in _all(op):
            short = o.name.partition(".")[2]
            if o.name in ("loop.contract", "loop.reduce") or short in COUNTED and o.operands[0].type.dtype.is_float:
                done[short] = done.get(short, 0) + 1
        over = " x ".join(map(str, op.attrs["extents"])) or "1"
        return f"over {over}" + (": " if done else "") + " ".join(sorted(done, key=lambda n: (n not in ("contract", "reduce"), -done[n]))[:5])
    return " ".join(str(v.type).removeprefix("buf<").removesuffix(">") for v in op.operands)


def elements(v: Value) -> int:
    """How many elements of memory a buffer can reach: a view repeats none (stride 0) and none beyond what it looks at (windows)."""
    t: BufferType = v.type
    n = math.prod(s for s, stride in zip(t.shape, t.element_strides) if stride != 0) if t.shape else 1
    op = v.owner
    return min(n, elements(op.operands[0])) if isinstance(op, Op) and op.name == "loop.view" else n


@dataclass
class _Count:
    """Sums over a kernel's ops, each multiplied by how often it runs."""

    flops: float = 0.0
    exact: bool = True
    read: dict[Value, float] = field(default_factory=dict)
    written: dict[Value, float] = field(default_factory=dict)
    inside: set[Value] = field(default_factory=set)          # private memory: costs no traffic
    behind: dict[Value, Value] = field(default_factory=dict)   # a view made inside the kernel -> the buffer it looks at

    def block(self, block: Block, times: float, at: At) -> None:
        for op in block.ops:
            self.op(op, times, at)

    def op(self, op: Op, times: float, at: At) -> None:
        name, short = op.name, op.name.partition(".")[2]
        if name.startswith("scalar."):
            if short in COUNTED and op.operands[0].type.dtype.is_float:
                self.flops += times
        elif name == "loop.load":
            self.touch(self.read, op.operands[0], times)
        elif name == "loop.store":
            self.touch(self.written, op.operands[1], times)
        elif name == "loop.alloc":
            self.inside.add(op.result)
        elif name == "loop.view":
            self.behind[op.result] = self.behind.get(op.operands[0], op.operands[0])
        elif name == "loop.parallel":
            extents = op.attrs["extents"]
            self.block(op.regions[0], times * math.prod(extents), {**at, **{a: values(0, n) for a, n in zip(op.regions[0].args, extents)}})
        elif name in ("loop.for", "loop.reduce"):
            self.loop(op, times, at)
        elif name == "loop.if":
            self.branches(op, times, at)
        elif name == "loop.while":
            self.exact = False
            for r in op.regions:
                self.block(r, times, at)
        elif name == "loop.contract":
            self.contract(op, times, at)
        elif name == "loop.contract_packed":
            self.flops += times * 2.0 * math.prod(op.operands[1].type.shape) * op.operands[0].type.shape[-1]
            self.whole(op, times)
        elif name in ("loop.copy", "loop.pack"):
            self.whole(op, times)
        elif name == "loop.sort":
            self.exact = False
            for v in op.operands:
                self.touch(self.read, v, times * elements(v))
                self.touch(self.written, v, times * elements(v))

    def touch(self, side: dict[Value, float], v: Value, times: float) -> None:
        """An access of `times` elements."""
        v = self.behind.get(v, v)
        if v not in self.inside:
            side[v] = side.get(v, 0.0) + times

    def whole(self, op: Op, times: float) -> None:
        for i, v in enumerate(op.operands):
            self.touch(self.read if i else self.written, v, times * elements(v))

    def contract(self, op: Op, times: float, at: At) -> None:
        sizes: dict[str, int] = {}
        for v, letters in zip(op.operands, (op.attrs["out"], op.attrs["lhs"], op.attrs["rhs"])):
            sizes.update(zip(letters, v.type.shape))
        self.flops += times * 2.0 * math.prod(sizes.values())
        for v in op.operands[1:]:
            self.touch(self.read, v, times * elements(v))
        if not op.regions or op.regions[0].terminator.operands:              # else the sums need not reach memory
            self.touch(self.written, op.operands[0], times * elements(op.operands[0]))
        if op.attrs.get("accumulate"):
            self.touch(self.read, op.operands[0], times * elements(op.operands[0]))
        for r in op.regions:                                 # what is done to each element before it is stored
            n = op.operands[0].type.shape
            self.block(r, times * math.prod(n), {**at, **{a: values(0, s) for a, s in zip(r.args[1:], n)}})

    def loop(self, op: Op, times: float, at: At) -> None:
        step, body, bounds = op.attrs.get("step", 1), op.regions[0], op.operands[:2]
        outer = list(dict.fromkeys(i for v in bounds for i in indices(v, at)))
        if any(isinstance(at[i], Mean) for i in outer):
            self.exact = False
        if math.prod(len(at[i]) for i in outer) > MOST_VALUES:
            self.exact, at = False, {**at, **{i: Mean([sum(at[i]) / len(at[i])]) for i in outer}}
        lows, counts = [], []
        for chosen in itertools.product(*(at[i] for i in outer)):
            now = dict(zip(outer, chosen))
            lo, hi = (value(v, now) for v in bounds)
            if lo is None or hi is None:
                self.exact, lo, hi = False, 0.0, float(UNKNOWN_TRIPS * step)
            lows.append(lo)
            counts.append(max(0, math.ceil((hi - lo) / step)))
        n = sum(counts) / max(len(counts), 1)
        if op.name == "loop.reduce":
            floats = [r for r, kind in zip(op.results, op.attrs["kinds"]) if r.type.dtype.is_float and kind in ("add", "mul", "max", "min")]
            self.flops += times * n * len(floats)
        own = values(lows[0], counts[0], step) if len(counts) == 1 else Mean([sum(lows) / max(len(lows), 1) + (n - 1) * step / 2])
        self.block(body, times * n, {**at, body.args[0]: own})

    def branches(self, op: Op, times: float, at: At) -> None:
        found = []
        for r in op.regions:
            c = _Count(inside=self.inside, behind=self.behind)
            c.block(r, times, at)
            found.append(c)
        a, b = found
        if (a.flops, a.read, a.written) != (b.flops, b.read, b.written):
            self.exact = False
        longer = max(found, key=lambda c: (c.flops, sum(c.read.values()) + sum(c.written.values())))
        self.exact &= longer.exact
        self.flops += longer.flops
        for mine, theirs in ((self.read, longer.read), (self.written, longer.written)):
            for v, n in theirs.items():
                mine[v] = mine.get(v, 0.0) + n


class Mean(list):
    """One value that stands for many."""


def values(lo: float, n: int, step: int = 1) -> Sequence[float]:
    """What an index runs through; its mean where that is too much to go through."""
    return [lo + k * step for k in range(n)] if n <= MOST_VALUES else Mean([lo + (n - 1) * step / 2])


def indices(v: Value, at: At) -> list[Value]:
    """The loop indices that a value comes from."""
    if v in at:
        return [v]
    return [i for x in v.owner.operands for i in indices(x, at)] if isinstance(v.owner, Op) and v.owner.name.startswith("scalar.") else []


_SIMPLE = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "min": min, "max": max, "floordiv": lambda a, b: a // b if b else 0.0,
           "shr": lambda a, b: a // 2 ** b, "shl": lambda a, b: a * 2 ** b, "cast": lambda a: a, "neg": lambda a: -a, "mod": lambda a, b: a % b if b else 0.0,
           "select": lambda c, a, b: a if c else b, "and": lambda a, b: float(int(a) & int(b)), "or": lambda a, b: float(int(a) | int(b)),
           "xor": lambda a, b: float(int(a) ^ int(b))}
_COMPARED = {"lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b, "eq": lambda a, b: a == b,
             "ne": lambda a, b: a != b}


def value(v: Value, now: dict[Value, float]) -> float | None:
    """An index computation's value, for these values of the indices; None where only a run can tell."""
    if v in now:
        return now[v]
    op = v.owner
    if not isinstance(op, Op) or not op.name.startswith("scalar."):
        return None
    if op.name == "scalar.constant":
        return float(op.attrs["value"])
    f = _COMPARED.get(op.attrs["predicate"]) if op.name == "scalar.compare" else _SIMPLE.get(op.name.removeprefix("scalar."))
    args = [value(x, now) for x in op.operands]
    return None if f is None or any(a is None for a in args) else f(*args)
