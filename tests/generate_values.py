"""Values of random programs: choices, operands of wanted types and bounds. See generate.py for the whole.

A value carries an `Info`: bounds of its elements, so that operands stay inside an op's domain and nothing overflows, and whether
it is `exact`: no inexact op (exp, a float sum ...) is in its history, so that every backend must give the same bits.
"""
from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import numpy as np
from engram.compiler.ir import Loc, Module, TensorType, Value, bf16, bool_, f16, f32, f64, i32, i64
from engram.compiler.ir.builder import Builder
from engram.compiler.ir.types import DType, u32, u64
from engram.compiler.ops import OPS
from hypothesis import strategies as st

MAX_NUMEL = 640          # elements of one value: the interpreter is plain Python
LIMIT = 64.0             # floats beyond this are scaled down before they go on
ARGUMENT = 4.0           # floats handed to a function or carried by a loop are within +-ARGUMENT


@dataclass(frozen=True)
class Info:
    """Bounds of a value's elements, and whether every backend must give its bits."""

    lo: float
    hi: float
    exact: bool = True

    @property
    def size(self) -> float:
        return max(abs(self.lo), abs(self.hi))


@dataclass(frozen=True)
class Options:
    """`smooth`: only functions with a derivative everywhere, for finite differences. `nn`: ops of the nn stage.
    `gradient`: @main returns a loss and its gradients (no scf.while then). `wild`: NaN, infinities, subnormal numbers and the ends
    of the integers as arguments, exact ops only, no bounds. `ops`: the largest number of steps in @main."""

    dtypes: tuple[tuple[DType, int], ...] = ((f32, 74), (f64, 10), (i32, 6), (i64, 6), (bool_, 3), (f16, 1), (bf16, 1))
    smooth: bool = False
    nn: bool = True
    gradient: bool = False
    wild: bool = False
    control: bool = True
    donate: bool = True
    ops: int = 28


@dataclass
class Scope:
    """Where ops are appended, and the values they may use."""

    b: Builder
    values: list[Value]
    depth: int = 0
    path: list[Value] = field(default_factory=list)       # floats of @main to differentiate with respect to

FULL = {d: Info(float(d.min), float(d.max)) for d in (i64, i32, u32, u64)} | {bool_: Info(0, 1)}
FLOATS, INTS = (f32, f64, f16, bf16), (i32, i64)

# name -> (domain, range given the operand's bounds). None as domain: everything up to LIMIT.

@functools.cache
def _between(lo: int, hi: int):
    return st.integers(lo, hi)


class Values:
    """Choices (each a Hypothesis draw, so that failures shrink to small programs) and operands."""

    def __init__(self, draw, options: Options):
        self.draw, self.o = draw, options
        self.module = Module(attrs={"stage": "nn", "entries": ["main"]})
        self.info: dict[Value, Info] = {}
        self.helpers: dict[str, list[Info]] = {}           # function -> infos of its results
        self.line = 0
        self.common = [self.any_dim() or 2, self.int(2, 6), self.int(2, 6), self.int(9, 24)]
        self.common.append(self.common[1])               # square ones too
        self.rng = np.random.default_rng(self.int(0, 2**20))

    # ---- choices ----
    def int(self, lo: int, hi: int) -> int:
        return self.draw(_between(lo, hi))

    def chance(self, percent: int) -> bool:
        return self.int(0, 99) >= 100 - percent            # shrinks to False

    def pick(self, items):
        return items[self.int(0, len(items) - 1)]

    def weighted(self, pairs):
        at = self.int(0, sum(w for _, w in pairs) - 1)
        for item, w in pairs:
            if at < w:
                return item
            at -= w
        raise AssertionError

    def dim(self) -> int:
        """A size: one of the program's own few, so that shapes meet, or any."""
        if self.chance(70):
            return self.pick(self.common)
        return self.any_dim()

    def any_dim(self) -> int:
        k = self.int(0, 99)
        return 1 + k % 6 if k < 80 else 0 if k < 86 else self.int(7, 19) if k < 91 else self.int(20, 70)

    def shape(self, most: int = 4) -> tuple[int, ...]:
        out, n = [], 1
        for _ in range(self.weighted([(1, 30), (2, 40), (0, 10), (3, 15), (4, 5)])):
            d = self.dim()
            if n * max(d, 1) > MAX_NUMEL or len(out) == most:
                break
            out.append(d)
            n *= max(d, 1)
        return tuple(out)

    def type(self) -> TensorType:
        return TensorType(self.weighted(self.o.dtypes), self.shape())

    # ---- values ----
    def emit(self, s: Scope, name: str, operands, attrs=None, bounds=None, regions=()) -> Value:
        """Append an op with one result; bounds of a float or integer result (None: all of its type)."""
        self.line += 1
        op = s.b.at(Loc("generated.nn", self.line, 1, self.line, 9)).op(name, operands, attrs, regions)
        exact = OPS[name].exact and all(self.info[v].exact for v in operands)
        for r in op.results:
            self.note(r, bounds, exact)
        s.values += op.results
        return op.results[0]

    def note(self, r: Value, bounds, exact: bool) -> None:
        dt = r.type.dtype
        full = FULL.get(dt)
        if dt.is_float and self.o.wild:
            self.info[r] = Info(-math.inf, math.inf, exact)
        elif dt.is_float:
            lo, hi = bounds
            pad = 1e-2 * max(abs(lo), abs(hi))             # rounding never leaves the bounds
            self.info[r] = Info(lo - pad if lo else 0.0, hi + pad, exact)
        elif bounds is None or not (full.lo <= bounds[0] and bounds[1] <= full.hi):
            self.info[r] = full
        else:
            self.info[r] = Info(*bounds)

    def constant(self, s: Scope, type: TensorType, lo: float = -2, hi: float = 2) -> Value:
        """A splat or a dense constant within lo..hi."""
        dt = type.dtype
        if dt.is_float:
            values = np.round(self.rng.uniform(lo, hi, type.shape) * 8) / 8 if hi - lo >= 1 else self.rng.uniform(lo, hi, type.shape)
        elif dt.is_bool:
            values = self.rng.integers(0, 2, type.shape).astype(bool)
        else:
            lo = max(int(lo), dt.min)
            values = self.rng.integers(lo, int(hi) + 1, type.shape)
        values = np.clip(values, lo, hi) if not dt.is_bool else values
        splat = type.numel == 0 or self.chance(60)
        first = np.ravel(values)[0].item() if type.numel else (0.5 * (lo + hi) if dt.is_float else bool(lo) if dt.is_bool else int(lo))
        v = s.b.constant(first if splat else np.asarray(values), type)
        self.note(v, (lo, hi), True)
        s.values.append(v)
        return v

    def find(self, s: Scope, ok) -> Value | None:
        """One of the values that qualify, later ones more often."""
        fit = [v for v in s.values if ok(v)]
        if not fit:
            return None
        n = len(fit)
        return fit[n - 1 - min(self.int(0, n - 1), self.int(0, n - 1))]

    def value(self, s: Scope, ok=lambda v: True, dtypes=None, rank: int = 0, exact: bool = False) -> Value:
        """A value of the scope, or a new constant, with the properties wanted."""
        def fits(v):
            t = v.type
            return (dtypes is None or t.dtype in dtypes) and t.rank >= rank and (not exact or self.info[v].exact) and ok(v)
        v = self.find(s, fits)
        if v is not None:
            return v
        for _ in range(8):
            t = TensorType(self.pick(dtypes) if dtypes else self.weighted(self.o.dtypes), self.shape())
            if t.rank >= rank and ok(Value(t)):
                return self.constant(s, t)
        t = TensorType(dtypes[0] if dtypes else f32, (3,) * max(rank, 1))
        return self.constant(s, t)

    def float_value(self, s: Scope, **kw) -> Value:
        return self.value(s, dtypes=tuple(d for d, _ in self.o.dtypes if d.is_float), **kw)

    def conform(self, s: Scope, t: TensorType, beside: Value | None = None) -> Value:
        """A value of exactly this type: one there is (rather not `beside`), one broadcast or cast to it, else a constant."""
        same = self.chance(5)
        v = self.find(s, lambda v: v.type == t and (same or v is not beside)) if self.chance(85) else None
        if v is not None:
            return v

        def broadcasts(v):
            shape = v.type.shape
            return v.type.dtype is t.dtype and len(shape) <= t.rank and all(a in (1, b) for a, b in zip(shape[::-1], t.shape[::-1]))
        v = self.find(s, broadcasts)
        if v is not None:
            return self.spread(s, v, t.shape)
        v = self.find(s, lambda v: v.type.shape == t.shape and self.castable(v, t.dtype))
        if v is not None and self.chance(50):
            return self.cast(s, v, t.dtype)
        return self.constant(s, t)

    def spread(self, s: Scope, v: Value, shape) -> Value:
        """v broadcast (NumPy's rule) to shape."""
        if v.type.shape == tuple(shape):
            return v
        lead = len(shape) - v.type.rank
        return self.emit(s, "tensor.broadcast", [v], {"shape": list(shape), "dims": list(range(lead, len(shape)))}, self.bounds(v))

    def bounds(self, *vs: Value) -> tuple[float, float]:
        return min(self.info[v].lo for v in vs), max(self.info[v].hi for v in vs)

    def castable(self, v: Value, to: DType) -> bool:
        if self.o.smooth:
            return v.type.dtype.is_float and to.is_float
        return self.info[v].exact and (v.type.dtype not in (u32, u64)) or (v.type.dtype.is_float and to in (f32, f64))

    def cast(self, s: Scope, v: Value, to: DType) -> Value:
        if v.type.dtype is to:
            return v
        lo, hi = self.bounds(v)
        if not to.is_float:
            return self.emit(s, "tensor.cast", [v], {"dtype": to}, (lo - 1, hi + 1) if v.type.dtype.is_float else (lo, hi))
        if not self.o.wild and max(abs(lo), abs(hi)) > 1000:                   # an integer of any size: only its low digits
            v = self.emit(s, "tensor.mod", [v, self.constant(s, v.type, 7, 7)], None, (0, 6))
            lo, hi = 0, 6
        return self.emit(s, "tensor.cast", [v], {"dtype": to}, (lo, hi))

    def number(self, s: Scope, value: float, type: TensorType) -> Value:
        v = s.b.constant(value, type)
        self.note(v, (value, value), True)
        return v

    def ew(self, s: Scope, name: str, *xs, bounds=None, **attrs) -> Value:
        return self.emit(s, "tensor." + name, list(xs), attrs, bounds)

    def scaled(self, s: Scope, v: Value, size: float = 2.0) -> Value:
        """v times a power of two, so that it is within +-size: exact, and smooth."""
        k = self.info[v].size
        if self.o.wild or k <= size:
            return v
        factor = 2.0 ** math.floor(math.log2(size / k))
        lo, hi = self.bounds(v)
        return self.ew(s, "mul", v, self.number(s, factor, v.type), bounds=(lo * factor, hi * factor))

    def tame(self, s: Scope, v: Value) -> Value:
        return self.scaled(s, v, 8.0) if v.type.dtype.is_float and self.info[v].size > LIMIT else v

    def within(self, s: Scope, v: Value, lo: float, hi: float) -> Value:
        """v, moved into lo..hi where it may leave it: by an affine map, tanh or clamping."""
        i = self.info[v]
        if self.o.wild or lo <= i.lo and i.hi <= hi:
            return v
        how = self.int(0, 2)
        # a margin for the bounds' own padding
        a, b = lo + 0.02 * (hi - lo), hi - 0.02 * (hi - lo)
        if lo == 0.1 and hi == LIMIT:
            b = 4.0
        if how == 0 and not self.o.smooth:
            v = self.ew(s, "max", v, self.number(s, a, v.type), bounds=(max(i.lo, a), max(i.hi, a)))
            v = self.ew(s, "min", v, self.number(s, b, v.type), bounds=(a, b))
        else:
            mid, half = (a + b) / 2, (b - a) / 2
            v = self.ew(s, "tanh", v, bounds=(-1, 1)) if how == 1 else self.scaled(s, v, 0.98)
            v = self.ew(s, "mul", v, self.number(s, half, v.type), bounds=(-half, half))
            v = self.ew(s, "add", v, self.number(s, mid, v.type), bounds=(a, b))
        self.info[v] = Info(max(self.info[v].lo, lo), min(self.info[v].hi, hi), self.info[v].exact)
        return v
