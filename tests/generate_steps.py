"""The steps random programs are made of: each appends an op or a few to a scope. See generate.py for the whole.

Ops that jump (floor, comparisons, sort, float to integer) take exact values only: after an inexact op one last bit would decide
their result.
"""
from __future__ import annotations

import math
from collections.abc import Callable

from engram.compiler.ir import TensorType, Value, bool_, f32, f64, i32, i64
from engram.compiler.ir.types import DType, u32, u64
from engram.compiler.ops import OPS
from generate_values import FLOATS, INTS, LIMIT, MAX_NUMEL, Info, Scope, Values

UNARY: dict[str, tuple[tuple[float, float] | None, Callable[[float, float], tuple[float, float]]]] = {
    "neg": (None, lambda a, b: (-b, -a)), "exp": ((-8, 3.5), lambda a, b: (math.exp(a), math.exp(b))),
    "exp2": ((-9, 5), lambda a, b: (2**a, 2**b)), "expm1": ((-8, 3.5), lambda a, b: (math.expm1(a), math.expm1(b))),
    "log": ((0.1, LIMIT), lambda a, b: (math.log(a), math.log(b))), "log2": ((0.1, LIMIT), lambda a, b: (math.log2(a), math.log2(b))),
    "log1p": ((-0.8, LIMIT), lambda a, b: (math.log1p(a), math.log1p(b))), "sqrt": ((0.1, LIMIT), lambda a, b: (0, b**0.5)),
    "rsqrt": ((0.1, LIMIT), lambda a, b: (0, a**-0.5)), "sin": (None, lambda a, b: (-1, 1)), "cos": (None, lambda a, b: (-1, 1)),
    "tan": ((-1.2, 1.2), lambda a, b: (-2.6, 2.6)), "asin": ((-0.9, 0.9), lambda a, b: (-1.2, 1.2)), "acos": ((-0.9, 0.9), lambda a, b: (0.4, 2.7)),
    "atan": (None, lambda a, b: (-1.6, 1.6)), "sinh": ((-4, 4), lambda a, b: (math.sinh(a), math.sinh(b))),
    "cosh": ((-4, 4), lambda a, b: (1, math.cosh(max(-a, b)))), "tanh": (None, lambda a, b: (-1, 1)), "asinh": (None, lambda a, b: (math.asinh(a), math.asinh(b))),
    "acosh": ((1.1, LIMIT), lambda a, b: (0.4, math.acosh(b))), "atanh": ((-0.9, 0.9), lambda a, b: (-1.5, 1.5)), "erf": (None, lambda a, b: (-1, 1)),
    "erfc": (None, lambda a, b: (0, 2)),
    "abs": (None, lambda a, b: (0, max(-a, b))),
    "floor": (None, lambda a, b: (a - 1, b)), "ceil": (None, lambda a, b: (a, b + 1)), "round": (None, lambda a, b: (a - 1, b + 1)),
    "trunc": (None, lambda a, b: (a - 1, b + 1)), "sign": (None, lambda a, b: (-1, 1)),
}
JUMPS = ("floor", "ceil", "round", "trunc", "sign")
KINKS = ("abs", *JUMPS)
ACTIVATIONS = ("relu", "sigmoid", "silu", "softplus", "gelu")
INDEXING = ("take", "take_along", "scatter_add", "put_along_add")




class Steps(Values):
    """One method a step."""

    def unary(self, s: Scope) -> None:
        names = [n for n in UNARY if not (self.o.smooth and n in KINKS or self.o.wild and not OPS["tensor." + n].exact)]
        name = self.pick(names)
        v = self.tame(s, self.float_value(s, exact=name in JUMPS))
        domain, out = UNARY[name]
        if domain is not None:
            v = self.within(s, v, *domain)
        i = self.info[v]
        self.ew(s, name, v, bounds=None if self.o.wild else out(i.lo, i.hi))

    def binary(self, s: Scope) -> None:
        smooth = self.o.smooth
        x = self.value(s, dtypes=FLOATS if smooth or self.chance(85) else (*FLOATS, *INTS))
        if x.type.dtype in INTS:
            return self.integer(s)
        x = self.tame(s, x)
        names = ["add", "sub", "mul", "div", "pow", "atan2"] + ([] if smooth else ["max", "min", "floordiv", "mod", "fmod"])
        if self.o.wild:
            names = [n for n in names if OPS["tensor." + n].exact]
        name = self.weighted([(n, 6 if n in ("add", "sub", "mul") else 2) for n in names])
        y = self.tame(s, self.conform(s, x.type, x))
        if name in ("floordiv", "mod", "fmod") and not (self.info[x].exact and self.info[y].exact):
            name = "div"
        if name == "mul":
            x, y = self.scaled(s, x, 16), self.scaled(s, y, 16)
        if name == "pow":
            x, y = self.within(s, x, 0.2, 2), self.within(s, y, -2, 2)
        elif name == "atan2":
            y = self.within(s, y, 0.2, 4)
        elif name in ("div", "floordiv", "mod", "fmod"):
            y = self.within(s, y, 0.4, 4)
        a, b = self.info[x], self.info[y]
        corners = [p * q for p in (a.lo, a.hi) for q in (b.lo, b.hi)]
        if self.o.wild:
            return self.emit(s, "tensor." + name, [x, y])
        bounds = {"add": (a.lo + b.lo, a.hi + b.hi), "sub": (a.lo - b.hi, a.hi - b.lo), "mul": (min(corners), max(corners)),
                  "div": (-a.size / 0.39, a.size / 0.39), "pow": (0, 27), "atan2": (-1.6, 1.6), "max": (max(a.lo, b.lo), max(a.hi, b.hi)),
                  "min": (min(a.lo, b.lo), min(a.hi, b.hi)), "floordiv": (-a.size / 0.39 - 1, a.size / 0.39), "mod": (0, 4.1),
                  "fmod": (-4.1, 4.1)}[name]
        self.ew(s, name, x, y, bounds=bounds)

    def integer(self, s: Scope) -> None:
        if self.chance(25):
            x = self.value(s, dtypes=(bool_,))
            y = self.conform(s, x.type, x)
            name = self.pick(["and", "or", "xor", "not", "max", "min"])
            self.ew(s, name, *([x] if name == "not" else [x, y]))
            return
        x = self.value(s, dtypes=INTS)
        y = self.conform(s, x.type, x)
        name = self.pick(["add", "sub", "mul", "floordiv", "mod", "fmod", "pow", "max", "min", "and", "or", "xor", "shl", "shr", "neg", "abs", "sign", "not"])
        if name in ("neg", "abs", "sign", "not"):
            self.ew(s, name, x, bounds=(-1, 1) if name == "sign" else None)
            return
        if name in ("floordiv", "mod", "fmod"):            # never by zero: or with 1 makes it odd
            y = self.ew(s, "or", y, self.number(s, 1, y.type))
        if name == "pow":
            y = self.ew(s, "and", y, self.number(s, 3, y.type), bounds=(0, 3))
        self.ew(s, name, x, y)

    def compare(self, s: Scope) -> None:
        x = self.value(s, exact=True, ok=lambda v: v.type.dtype not in (u32, u64))
        self.ew(s, "compare", x, self.exact_partner(s, x), predicate=self.pick(["lt", "le", "gt", "ge", "eq", "ne"]))

    def exact_partner(self, s: Scope, x: Value) -> Value:
        v = self.find(s, lambda v: v.type == x.type and self.info[v].exact and v is not x)
        return v if v is not None else self.constant(s, x.type, *((-2, 2) if x.type.dtype is not bool_ else (0, 1)))

    def select(self, s: Scope) -> None:
        x = self.value(s, ok=lambda v: v.type.dtype not in (u64,))
        c = self.conform(s, TensorType(bool_, x.type.shape))
        y = self.conform(s, x.type, x)
        self.ew(s, "select", c, x, y, bounds=self.bounds(x, y))

    def cast_step(self, s: Scope) -> None:
        to = self.weighted(self.o.dtypes)
        v = self.find(s, lambda v: v.type.dtype is not to and self.castable(v, to))
        if v is not None:
            self.cast(s, v, to)

    # movement
    def reshape(self, s: Scope) -> None:
        v = self.value(s)
        n, out = v.type.numel, []
        if n == 0:
            out = list(v.type.shape) + [1] * self.int(0, 1)
        else:
            while n > 1 and len(out) < 3:
                d = self.pick([d for d in range(2, n + 1) if n % d == 0])
                out.append(d)
                n //= d
            out.append(n)
            if n == 1 and self.chance(50):
                out.pop()
        self.emit(s, "tensor.reshape", [v], {"shape": out}, self.bounds(v))

    def transpose(self, s: Scope) -> None:
        v = self.value(s, rank=2)
        perm = list(range(v.type.rank))
        for i in range(len(perm) - 1):
            j = self.int(i, len(perm) - 1)
            perm[i], perm[j] = perm[j], perm[i]
        self.emit(s, "tensor.transpose", [v], {"perm": perm}, self.bounds(v))

    def broadcast(self, s: Scope) -> None:
        v = self.value(s)
        shape, dims = [], []
        for d in v.type.shape:
            if self.chance(25) and math.prod(shape) * v.type.numel <= MAX_NUMEL // 6:
                shape.append(self.int(1, 6))
            dims.append(len(shape))
            shape.append(self.int(1, 5) if d == 1 and math.prod(shape) * v.type.numel <= MAX_NUMEL // 6 else d)
        if self.chance(50) and math.prod(shape) <= MAX_NUMEL // 6:
            shape.append(self.int(1, 6))
        if math.prod(shape) <= MAX_NUMEL:
            self.emit(s, "tensor.broadcast", [v], {"shape": shape, "dims": dims}, self.bounds(v))

    def slice(self, s: Scope) -> None:
        v = self.value(s, rank=1)
        start, limit, stride = [], [], []
        for n in v.type.shape:
            lo = self.int(0, max(n - 1, 0))
            hi = n if self.chance(50) else self.int(lo, n)
            start.append(lo)
            limit.append(hi)
            stride.append(self.weighted([(1, 6), (2, 2), (3, 1)]))
        self.emit(s, "tensor.slice", [v], {"start": start, "limit": limit, "stride": stride}, self.bounds(v))

    def pad(self, s: Scope) -> None:
        v = self.value(s, rank=1)
        zero = self.conform(s, TensorType(v.type.dtype))
        low, high, inner, shape = [], [], [], []
        for n in v.type.shape:
            k = self.weighted([(0, 5), (1, 1)])
            n = n + max(n - 1, 0) * k
            a = self.int(-min(n, 2), 3)
            b = self.int(-min(n + a, 2), 3)
            low.append(a)
            high.append(b)
            inner.append(k)
            shape.append(n + a + b)
        if math.prod(shape) <= MAX_NUMEL:
            self.emit(s, "tensor.pad", [v, zero], {"low": low, "high": high, "interior": inner}, self.bounds(v, zero))

    def concat(self, s: Scope) -> None:
        v = self.value(s, rank=1)
        d = self.int(0, v.type.rank - 1)
        parts = [v]
        for _ in range(self.int(1, 2)):
            w = self.find(s, lambda w: w.type.dtype is v.type.dtype and w.type.rank == v.type.rank
                          and all(k == d or p == q for k, (p, q) in enumerate(zip(w.type.shape, v.type.shape))))
            parts.append(w)
        if sum(p.type.numel for p in parts) <= MAX_NUMEL:
            self.emit(s, "tensor.concat", parts, {"dim": d}, self.bounds(*parts))

    def reverse(self, s: Scope) -> None:
        v = self.value(s, rank=1)
        self.emit(s, "tensor.reverse", [v], {"dims": self.dims(v.type.rank)}, self.bounds(v))

    def dims(self, rank: int) -> list[int]:
        """At least one dim, in order."""
        out = [d for d in range(rank) if self.chance(45)]
        return out or [self.int(0, rank - 1)]

    def iota(self, s: Scope) -> None:
        shape = list(self.shape()) or [3]
        dt = self.weighted([p for p in self.o.dtypes if p[0] is not bool_ and p[0].bits >= 32])
        self.emit(s, "tensor.iota", [], {"shape": shape, "dim": self.int(0, len(shape) - 1), "dtype": dt}, (0, max(shape)))

    # reductions, contractions
    def reduce(self, s: Scope) -> None:
        smooth = self.o.smooth
        kind = self.weighted([("sum", 6), ("prod", 1)] + ([] if smooth else [("max", 2), ("min", 2)]))
        kinds = (f64, f32) if smooth else INTS if self.o.wild and kind in ("sum", "prod") else (*FLOATS, *INTS, *((bool_,) if kind in ("max", "min") else ()))
        x = self.value(s, rank=1, dtypes=kinds)
        dims = self.dims(x.type.rank)
        n = math.prod(x.type.shape[d] for d in dims)
        i, bounds = self.info[x], None
        if x.type.dtype.is_float:
            if kind in ("max", "min") and n == 0 and not self.o.wild:              # an infinity
                return
            x = self.within(s, x, -1.2, 1.2) if kind == "prod" else self.tame(s, x)
            i = self.info[x]
            bounds = {"sum": (n * min(i.lo, 0), n * max(i.hi, 0)), "prod": (-max(1, 1.22**n), max(1, 1.22**n)), "max": (i.lo, i.hi), "min": (i.lo, i.hi)}[kind]
            if kind == "prod" and n > 12:
                return
        y = self.emit(s, f"tensor.reduce_{kind}", [x], {"dims": dims}, bounds)
        if self.chance(40):                                # back to the operand's shape, as means and softmax do
            keep = [d for d in range(x.type.rank) if d not in dims]
            self.emit(s, "tensor.broadcast", [y], {"shape": list(x.type.shape), "dims": keep}, self.bounds(y))

    def cumulate(self, s: Scope) -> None:
        x = self.value(s, rank=1, dtypes=(*FLOATS, *INTS) if not self.o.smooth else (f64, f32))
        d, n = self.int(0, x.type.rank - 1), 0
        n = x.type.shape[d]
        name = "cumprod" if self.chance(25) and n <= 12 else "cumsum"
        bounds = None
        if x.type.dtype.is_float:
            x = self.scaled(s, x, 1.2) if name == "cumprod" else self.tame(s, x)
            k = max(1, 1.22**n) if name == "cumprod" else n * self.info[x].size
            bounds = (-k, k)
        self.emit(s, "tensor." + name, [x], {"dim": d, "reverse": self.chance(50)}, bounds)

    def dot(self, s: Scope) -> None:
        x = self.value(s, rank=1, dtypes=(f32, f64) if self.o.smooth or self.chance(92) else (*FLOATS, *INTS))
        dims = list(range(x.type.rank))
        contract = [d for d in dims if self.chance(40)] or dims[-1:]
        batch = [d for d in dims if d not in contract and self.chance(25)]
        free = [d for d in dims if d not in contract and d not in batch]
        # the other operand: batch and contracted dims of x in any order, and free dims of its own
        own = [self.dim() for _ in range(self.weighted([(1, 6), (0, 2), (2, 1)]))]
        if math.prod(own) * math.prod(x.type.shape[d] for d in batch + free) > MAX_NUMEL or math.prod(own) * x.type.numel > 25 * MAX_NUMEL:
            own = []
        slots = [("b", d) for d in batch] + [("c", d) for d in contract] + [("f", n) for n in own]
        for i in range(len(slots) - 1):
            j = self.int(i, len(slots) - 1)
            slots[i], slots[j] = slots[j], slots[i]
        shape = tuple(n if k == "f" else x.type.shape[n] for k, n in slots)
        if math.prod(shape) > MAX_NUMEL:
            return
        y = self.conform(s, TensorType(x.type.dtype, shape))
        n, bounds = math.prod(x.type.shape[d] for d in contract), None
        if x.type.dtype.is_float:
            x, y = self.scaled(s, x, 4), self.scaled(s, y, 4)
            k = n * self.info[x].size * self.info[y].size
            bounds = (-k, k)
        attrs = {"lhs_batch": batch, "rhs_batch": [slots.index(("b", d)) for d in batch], "lhs_contract": contract,
                 "rhs_contract": [slots.index(("c", d)) for d in contract]}
        if self.chance(30):                                # the other way round
            x, y = y, x
            attrs = {"lhs_batch": attrs["rhs_batch"], "rhs_batch": batch, "lhs_contract": attrs["rhs_contract"], "rhs_contract": contract}
        self.emit(s, "tensor.dot_general", [x, y], attrs, bounds)

    def product(self, s: Scope) -> None:
        """A matrix product, or a batch of two, too large to be a plain loop: by transposes of operands and bias as they come."""
        dt = self.weighted([(d, w) for d, w in self.o.dtypes if d.is_float])
        big = self.find(s, lambda v: v.type.dtype is dt and v.type.rank == 2 and min(v.type.shape) >= 9 and v.type.numel >= 150)
        batch = [2] if self.chance(20) else []
        m, k = big.type.shape if big is not None else (self.int(9, 24), self.int(9, 24))
        n = self.int(2100 // (m * k) + 1, 2100 // (m * k) + 9)
        flips, sides = [], []
        for rows, cols in ((m, k), (k, n)):
            flip = self.chance(30)
            shape = (*batch, cols, rows) if flip else (*batch, rows, cols)
            sides.append(self.scaled(s, self.conform(s, TensorType(dt, shape)), 2))
            flips.append(flip)
        c = len(batch)
        attrs = {"lhs_batch": list(range(c)), "rhs_batch": list(range(c)), "lhs_contract": [c + (not flips[0])], "rhs_contract": [c + flips[1]]}
        size = k * self.info[sides[0]].size * self.info[sides[1]].size
        y = self.emit(s, "tensor.dot_general", sides, attrs, (-size, size))
        if self.chance(50):
            y = self.ew(s, "add", y, self.conform(s, y.type, y), bounds=(-size - LIMIT, size + LIMIT)) if self.info[y].size < LIMIT else self.tame(s, y)

    # indexing
    def indices(self, s: Scope, shape, n: int, dtype: DType = i64) -> Value:
        """Integers in 0..n-1: a constant, or run-time values modulo n."""
        t = TensorType(dtype, tuple(shape))
        if self.chance(50) or self.o.smooth:
            return self.constant(s, t, 0, n - 1)
        return self.ew(s, "mod", self.conform(s, t), self.number(s, n, t), bounds=(0, n - 1))

    def stop(self, s: Scope) -> None:
        x = self.float_value(s)
        self.emit(s, "tensor.stop_gradient", [x], None, self.bounds(x))

    def bitcast(self, s: Scope) -> None:
        x = self.value(s, dtypes=(f32, i32), exact=True)
        if x.type.dtype is i32:                            # (any bits at all would make NaNs and huge numbers)
            one = self.number(s, 0x3F800000, x.type)
            x = self.ew(s, "or", self.ew(s, "and", x, self.number(s, 0x7FFFFF, x.type)), one)
            self.emit(s, "tensor.bitcast", [x], {"dtype": f32}, (1, 2))
        else:
            self.emit(s, "tensor.bitcast", [x], {"dtype": i32})

    def index(self, s: Scope) -> None:
        name = self.pick(INDEXING)
        x = self.value(s, rank=1, ok=lambda v: v.type.numel > 0 and v.type.dtype not in (bool_, u32, u64), dtypes=FLOATS if self.o.smooth else None)
        if x.type.numel == 0 or x.type.dtype in (bool_, u32, u64):
            return
        d = self.int(0, x.type.rank - 1)
        n = x.type.shape[d]
        dt = self.pick((i64, i32))
        if name in ("take", "scatter_add"):
            shape = self.weighted([((self.int(1, 6),), 6), ((), 1), ((self.int(1, 3), self.int(1, 3)), 2)])
            full = x.type.shape[:d] + shape + x.type.shape[d + 1:]
        else:
            full = shape = tuple(self.int(1, 6) if k == d else self.int(max(1, m - 1), m) for k, m in enumerate(x.type.shape))
        if math.prod(full) > MAX_NUMEL:
            return
        i = self.indices(s, shape, n, dt)
        if name.startswith("take") or self.o.wild:
            name = name if name.startswith("take") else "take" if name == "scatter_add" else "take_along"
            self.emit(s, "tensor." + name, [x, i], {"dim": d}, self.bounds(x))
            return
        x = self.tame(s, x)
        u = self.tame(s, self.conform(s, TensorType(x.type.dtype, full)))
        k = self.info[x].size + max(1, math.prod(shape)) * self.info[u].size
        self.emit(s, "tensor." + name, [x, i, u], {"dim": d}, (-k, k) if x.type.dtype.is_float else None)

    def dynamic(self, s: Scope) -> None:
        x = self.value(s, rank=1, dtypes=FLOATS if self.o.smooth else None)
        sizes = [self.int(0 if n == 0 else 1, n) for n in x.type.shape]
        starts = [self.indices(s, (), n - k + 1) for n, k in zip(x.type.shape, sizes)]
        if self.chance(50):
            self.emit(s, "tensor.dynamic_slice", [x, *starts], {"sizes": sizes}, self.bounds(x))
        else:
            u = self.conform(s, x.type.with_shape(sizes))
            self.emit(s, "tensor.dynamic_update_slice", [x, u, *starts], None, self.bounds(x, u))

    def windows(self, s: Scope) -> None:
        x = self.value(s, rank=1, dtypes=(f32, f64))
        n = self.int(1, min(2, x.type.rank))
        space = x.type.shape[x.type.rank - n:]
        if 0 in space:
            return
        size, stride, dil = [], [], []
        for m in space:
            k = self.int(1, min(m, 3))
            size.append(k)
            dil.append(self.int(1, 2) if 2 * (k - 1) + 1 <= m else 1)
            stride.append(self.int(1, 3))
        attrs = {"size": size, "stride": stride, "dilation": dil}
        t = OPS["tensor.windows"].infer([x.type], attrs, [])[0]
        if t.numel > MAX_NUMEL:
            return
        if self.chance(60):
            y = self.emit(s, "tensor.windows", [x], attrs, self.bounds(x))
            if self.chance(60):                            # pools and convolutions reduce them
                y = self.tame(s, y)
                k = math.prod(size) * self.info[y].size
                self.emit(s, "tensor.reduce_sum", [y], {"dims": list(range(t.rank - n, t.rank))}, (-k, k))
        else:
            y = self.tame(s, self.conform(s, t))
            k = math.prod(size) * self.info[y].size
            self.emit(s, "tensor.fold_windows", [y], {**attrs, "shape": list(space)}, (-k, k))

    def sort(self, s: Scope) -> None:
        x = self.value(s, rank=1, dtypes=(*FLOATS, *INTS), exact=True)
        self.emit(s, "tensor.sort", [x], {"dim": self.int(0, x.type.rank - 1), "descending": self.chance(50)}, self.bounds(x))
        self.info[s.values[-1]] = Info(0, max(x.type.shape))

    def arg(self, s: Scope) -> None:
        x = self.value(s, rank=1, dtypes=(*FLOATS, *INTS, bool_), exact=True)
        d = self.int(0, x.type.rank - 1)
        if x.type.shape[d]:
            self.emit(s, self.pick(["tensor.argmax", "tensor.argmin"]), [x], {"dim": d}, (0, x.type.shape[d] - 1))

    # random numbers
    def key(self, s: Scope) -> Value:
        k = self.find(s, lambda v: v.type == TensorType(u64))
        if k is None or self.chance(30):
            k = s.b.constant(self.int(0, 2**40), TensorType(u64))
            self.note(k, None, True)
        if self.chance(40):
            k = self.emit(s, "random.fold_in", [k, self.conform(s, TensorType(i64))])
        return k

    def bits(self, s: Scope) -> None:
        v = self.emit(s, "random.bits", [self.key(s)], {"shape": list(self.shape(2))})
        v = self.emit(s, "tensor.shr", [v, self.number(s, 20, v.type)], None, (0, 4095))
        self.emit(s, "tensor.cast", [v], {"dtype": self.pick((i32, i64))}, (0, 4095))

    def random_floats(self, s: Scope) -> None:
        name = self.pick(("uniform", "normal"))
        self.emit(s, "random." + name, [self.key(s)], {"shape": list(self.shape(2)), "dtype": self.pick((f32, f32, f64))}, (0, 1) if name == "uniform" else (-7, 7))

    # nn
    def activation(self, s: Scope) -> None:
        name = self.pick(ACTIVATIONS[1:] if self.o.smooth else ACTIVATIONS)
        x = self.tame(s, self.float_value(s))
        i = self.info[x]
        bounds = (0, 1) if name == "sigmoid" else (min(0, i.lo), max(i.hi, 0) + 1)
        self.emit(s, "nn." + name, [x], {"approximate": self.pick(("none", "tanh"))} if name == "gelu" else {}, bounds)

    def softmax(self, s: Scope) -> None:
        x = self.tame(s, self.float_value(s, rank=1))
        if x.type.numel == 0:
            return
        name = self.pick(["softmax", "log_softmax", "logsumexp"] + ["max_first"] * (not self.o.smooth))
        if name == "max_first":
            if x.type.shape[-1]:
                self.emit(s, "nn.max_first", [x], None, self.bounds(x))
            return
        d, k = self.int(0, x.type.rank - 1), self.info[x].size + 6
        if name == "logsumexp":
            self.emit(s, "nn.logsumexp", [x], {"dims": self.dims(x.type.rank)}, (-k, k))
        else:
            self.emit(s, "nn." + name, [x], {"dim": d}, (0, 1) if name == "softmax" else (-2 * k, 0))

    def cross_entropy(self, s: Scope) -> None:
        x = self.tame(s, self.float_value(s, rank=1))
        if x.type.numel:
            y = self.indices(s, x.type.shape[:-1], x.type.shape[-1], self.pick((i64, i32)))
            self.emit(s, "nn.cross_entropy", [x, y], None, (0, 2 * self.info[x].size + 6))

    def one_hot(self, s: Scope) -> None:
        x = self.value(s, dtypes=INTS, ok=lambda v: v.type.numel <= MAX_NUMEL // 6 and v.type.rank < 4)
        if x.type.numel <= MAX_NUMEL // 6:
            self.emit(s, "nn.one_hot", [x], {"classes": self.int(1, 6), "dtype": self.pick((f32, f64, i32))}, (0, 1))
