"""A kernel under construction: scopes (which loop body an op belongs in), scalar ops with folding and sharing, index algebra.

Every scalar op is put into the outermost loop body in which its operands exist, so code that does not depend on an inner
loop's index ends up outside it without a later pass. What tensor ops mean is in lower_elemental.py.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..compiler.ir.core import Block, Loc, Op, Value
from ..compiler.ir.opdef import OPS
from ..compiler.ir.types import DType, ScalarType, i64
from .lower_buffers import equal_groups

I64 = ScalarType(i64)


class Scope:
    """A loop body being filled. `memo` shares equal pure ops."""

    __slots__ = ("parent", "block", "depth", "memo")

    def __init__(self, parent: Scope | None, block: Block):
        self.parent, self.block = parent, block
        self.depth = parent.depth + 1 if parent else 0
        self.memo: dict = {}


class Index(NamedTuple):
    """A position in an array: one i64 scalar per dim of `shape`, which may be any shape with the array's number of elements
    (row-major), so that reshapes cost nothing until a single dim's index is needed."""

    shape: tuple[int, ...]
    at: tuple[Value, ...]


class Kernel:
    """Scopes start at the body of a top-level loop.parallel with the given extents (see `indices` for its region arguments)."""

    def __init__(self, extents: Sequence[int], loc: Loc | None):
        self.extents, self.loc = list(extents), loc
        self.root = Scope(None, Block([I64] * len(self.extents)))
        self.home: dict[Value, Scope] = {}             # scalars defined inside; those from outside live at the root
        self.consts: dict[Value, int] = {}             # i64 constants, for folding
        self.merged: dict[Value, tuple] = {}           # scalar -> (sizes, parts) it is the row-major number of
        self.parts: dict[tuple, Value] = {}            # parts got by splitting a scalar -> that scalar

    @property
    def indices(self) -> list[Value]:
        return self.root.block.args

    def finish(self) -> Op:
        """The loop.parallel op."""
        self.root.block.append(Op("scf.yield", [], {}, (), (), self.loc))
        return Op("loop.parallel", [], {"extents": list(self.extents)}, (), [self.root.block], self.loc)

    # ---- scopes ----
    def scope_of(self, values: Sequence[Value]) -> Scope:
        """The outermost scope in which all the values exist."""
        best = self.root
        for v in values:
            s = self.home.get(v)
            if s is not None and s.depth > best.depth:
                best = s
        return best

    def open(self, parent: Scope, arg_types: Sequence = (I64,)) -> Scope:
        """A new loop body inside `parent`; the loop op is appended by `close`."""
        scope = Scope(parent, Block(list(arg_types)))
        for a in scope.block.args:
            self.home[a] = scope
        return scope

    def close(self, scope: Scope, name: str, operands: Sequence[Value], attrs: dict, yields: Sequence[Value], loc: Loc | None) -> list[Value]:
        """End a body with its yields and append the loop op to the parent."""
        scope.block.append(Op("scf.yield", list(yields), {}, (), (), loc))
        types = OPS[name].infer([v.type for v in operands], attrs, [scope.block])
        op = scope.parent.block.append(Op(name, operands, attrs, types, [scope.block], loc))
        for r in op.results:
            self.home[r] = scope.parent
        return op.results

    # ---- scalar ops ----
    def emit(self, name: str, operands: Sequence[Value], attrs: dict | None, loc: Loc | None, scope: Scope | None = None) -> Op:
        """Append an op with effects (or several results) to `scope`, by default the outermost one possible."""
        scope = scope or self.scope_of(operands)
        types = OPS[name].infer([v.type for v in operands], attrs or {}, [])
        op = scope.block.append(Op(name, operands, attrs or {}, types, (), loc))
        for r in op.results:
            self.home[r] = scope
        return op

    def pure(self, name: str, operands: Sequence[Value], attrs: dict | None = None, loc: Loc | None = None) -> Value:
        """The result of a pure op (or of a load that no store can change), shared with an equal one."""
        scope = self.scope_of(operands)
        key = (name, tuple(operands), tuple(sorted(attrs.items(), key=lambda kv: kv[0])) if attrs else ())
        found = scope.memo.get(key)
        if found is None:
            found = scope.memo[key] = self.emit(name, operands, attrs, loc, scope).result
        return found

    def constant(self, value, dtype: DType) -> Value:
        key = ("constant", dtype, repr(value))
        found = self.root.memo.get(key)
        if found is None:
            found = self.emit("scalar.constant", (), {"value": value, "dtype": dtype}, None, self.root).result
            self.root.memo[key] = found
            if dtype is i64:
                self.consts[found] = int(value)
        return found

    def index(self, value: int) -> Value:
        return self.constant(int(value), i64)

    # ---- index arithmetic: constants folded, x + 0 and x * 1 dropped ----
    def add(self, x: Value, y: Value | int) -> Value:
        a, b = self._number(x), self._number(y)
        if a is not None and b is not None:
            return self.index(a + b)
        if b == 0:
            return x
        if a == 0:
            return self._value(y)
        return self.pure("scalar.add", [x, self._value(y)])

    def sub(self, x: Value | int, y: Value) -> Value:
        a, b = self._number(x), self._number(y)
        if a is not None and b is not None:
            return self.index(a - b)
        if b == 0:
            return self._value(x)
        return self.pure("scalar.sub", [self._value(x), y])

    def mul(self, x: Value, n: int) -> Value:
        a = self._number(x)
        if a is not None:
            return self.index(a * n)
        return x if n == 1 else self.index(0) if n == 0 else self.pure("scalar.mul", [x, self.index(n)])

    def div(self, x: Value, n: int) -> Value:
        """x // n for x >= 0, n > 0."""
        a = self._number(x)
        if a is not None:
            return self.index(a // n)
        if n == 1:
            return x
        if n & (n - 1) == 0:
            return self.pure("scalar.shr", [x, self.index(n.bit_length() - 1)])
        return self.pure("scalar.floordiv", [x, self.index(n)])

    def mod(self, x: Value, n: int) -> Value:
        """x % n for x >= 0, n > 0."""
        a = self._number(x)
        if a is not None:
            return self.index(a % n)
        if n == 1:
            return self.index(0)
        if n & (n - 1) == 0:
            return self.pure("scalar.and", [x, self.index(n - 1)])
        return self.pure("scalar.mod", [x, self.index(n)])

    def clamp(self, x: Value, lo: int, hi: int) -> Value:
        a = self._number(x)
        if a is not None:
            return self.index(min(max(a, lo), hi))
        return self.pure("scalar.min", [self.pure("scalar.max", [x, self.index(lo)]), self.index(hi)])

    def between(self, x: Value, lo: int | None, hi: int | None) -> Value | None:
        """lo <= x <= hi as a bool scalar; a bound that is None always holds; None when nothing is left to check."""
        checks = [self.pure("scalar.compare", [x, self.index(b)], {"predicate": p}) for b, p in ((lo, "ge"), (hi, "le")) if b is not None]
        return self.all(checks)

    def all(self, conds: Sequence[Value | None]) -> Value | None:
        out = None
        for c in conds:
            if c is not None:
                out = c if out is None else self.pure("scalar.and", [out, c])
        return out

    def _number(self, x: Value | int) -> int | None:
        return x if isinstance(x, int) else self.consts.get(x)

    def _value(self, x: Value | int) -> Value:
        return self.index(x) if isinstance(x, int) else x

    # ---- changing an index's shape ----
    def resolve(self, index: Index, shape: Sequence[int]) -> tuple[Value, ...]:
        """The index as one scalar per dim of `shape` (the same number of elements). Dims are matched in the smallest groups of
        equal size, so that division is needed only where a dim is really cut."""
        shape = tuple(shape)
        if index.shape == shape:
            return index.at
        src = [(n, v) for n, v in zip(index.shape, index.at) if n != 1]
        dst = [(n, d) for d, n in enumerate(shape) if n != 1]
        out: list[Value] = [self.index(0)] * len(shape)
        for i0, i, j0, j in equal_groups([n for n, _ in src], [n for n, _ in dst]):
            sizes, parts = [n for n, _ in src[i0:i]], [v for _, v in src[i0:i]]
            for (_, d), v in zip(dst[j0:j], self._regroup(sizes, parts, [n for n, _ in dst[j0:j]])):
                out[d] = v
        return tuple(out)

    def _regroup(self, sizes: list[int], parts: list[Value], want: list[int]) -> list[Value]:
        if sizes == want:
            return parts
        linear = parts[0] if len(parts) == 1 else self._merge(sizes, parts)
        if len(want) == 1:
            return [linear]
        known = self.merged.get(linear)
        if known and len(parts) == 1 and known[0] != sizes:
            return list(self.resolve(Index(tuple(known[0]), tuple(known[1])), want))
        out, step = [], 1
        for k, n in enumerate(reversed(want)):
            q = self.div(linear, step)
            out.append(q if k == len(want) - 1 else self.mod(q, n))
            step *= n
        out.reverse()
        self.parts[(tuple(want), tuple(out))] = linear
        return out

    def _merge(self, sizes: list[int], parts: list[Value]) -> Value:
        base = self.parts.get((tuple(sizes), tuple(parts)))
        if base is not None:
            return base
        linear = parts[0]
        for n, p in zip(sizes[1:], parts[1:]):
            linear = self.add(self.mul(linear, n), p)
        if linear not in self.consts:
            self.merged[linear] = (tuple(sizes), tuple(parts))
        return linear
