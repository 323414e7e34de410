"""gather-products: products with rows taken from a small table become products with the table.

A row of a product depends on its own row only. Where `i` has several times as many elements as the table T has rows,

* take(T, i) . w              ->  take(T . w, i)                  an embedding and the layer that reads it
* scatter_add(z, i, g . w)    ->  z + scatter_add(0, i, g) . w    its gradient
* take(T, i) . g, over i      ->  T . scatter_add(0, i, g)        the layer's gradient, where that sum is made anyway

do the product once a row of the table: a character RNN's input product for 65 rows, not for 2048 characters. The last two regroup sums, and
rows of T that i does not name meet zeros there: not exact, and not for tables with infinities in such rows.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir.builder import Builder
from ..compiler.ir.core import Block, Module, Op, Value, rewrite, uses
from ..compiler.ir.types import TensorType
from .cost import SMALL_CONTRACTION, TABLE_REUSE, cost

Side = tuple[str, str]                                           # the names of an operand's batch and contracted dims
SIDES: tuple[Side, Side] = (("lhs_batch", "lhs_contract"), ("rhs_batch", "rhs_contract"))


@dataclass(frozen=True)
class GatherProducts:
    """Before and after: tensor stage, learning derived."""

    name: ClassVar[str] = "gather-products"
    exact: ClassVar[bool] = False

    def apply(self, module: Module) -> Module:
        for f in module.funcs.values():
            names = {op.name for op in f.walk()}
            if "tensor.dot_general" in names and names & {"tensor.take", "tensor.scatter_add"}:
                _Rewrites(f.body).run()
        return module


@dataclass(frozen=True)
class _Merged:
    """Dims dim .. dim + rank - 1 of a value, which become one of `rows` rows."""

    value: Value
    index: Value
    dim: int
    rows: int

    @property
    def rank(self) -> int:
        return self.index.type.rank

    @property
    def dims(self) -> range:
        return range(self.dim, self.dim + self.rank)

    @property
    def type(self) -> TensorType:
        s = self.value.type.shape
        return self.value.type.with_shape((*s[:self.dim], self.rows, *s[self.dim + self.rank:]))

    def after(self, d: int) -> int:
        """Where dim d is when they are one."""
        return d if d < self.dim + self.rank else d - self.rank + 1


def _often(index: Value, rows: int) -> bool:
    return index.type.rank > 0 and rows > 0 and index.type.numel >= TABLE_REUSE * rows


def _made_by(v: Value, name: str) -> bool:
    return isinstance(v.owner, Op) and v.owner.name == name


def _taken(v: Value) -> _Merged | None:
    """v as rows of a table that is much smaller."""
    if not _made_by(v, "tensor.take"):
        return None
    (table, index), d = v.owner.operands, v.owner.attrs["dim"]
    return _Merged(v, index, d, table.type.shape[d]) if _often(index, table.type.shape[d]) else None


def _free(op: Op, side: int) -> list[int]:
    batch, contract = (op.attrs[k] for k in SIDES[side])
    return [d for d in range(op.operands[side].type.rank) if d not in batch and d not in contract]


def _large(op: Op) -> bool:
    return op.result.type.numel * cost(op) > 2 * SMALL_CONTRACTION


def _product(b: Builder, op: Op, side: int, m: _Merged, merged: Value, contract: Sequence[tuple[int, int]] | None = None,
             other: tuple[_Merged, Value] | None = None) -> Value:
    """The product `op` with `merged` in place of its operand `side`, whose dims m are one, and (value, dims) for the other operand. `contract`: pairs
    of dims (of this operand, of the other one) as they are before."""
    operands, attrs = list(op.operands), dict(op.attrs)
    pairs = contract if contract is not None else list(zip(op.attrs[SIDES[side][1]], op.attrs[SIDES[1 - side][1]]))
    operands[side] = merged
    after = [m.after, lambda d: d]
    if other is not None:
        after[1], operands[1 - side] = other[0].after, other[1]
    for k, s in enumerate((side, 1 - side)):
        attrs[SIDES[s][0]] = [after[k](d) for d in op.attrs[SIDES[s][0]]]
        attrs[SIDES[s][1]] = [after[k](p[k]) for p in pairs]
    return b.op("tensor.dot_general", operands, attrs).result


class _Rewrites:
    """Of one function body."""

    def __init__(self, body: Block):
        self.body = body
        self.used = uses(body)
        self.summed = {key for op in body.walk() if (key := self._scattered_product(op)) is not None}
        self.sums: dict[tuple, Value] = {}

    def run(self) -> None:
        rewrite(self.body, self._step)

    def _step(self, op: Op, out: Block) -> list[Value] | None:
        if op.name == "tensor.dot_general":
            return self._of_taken(op, out)
        return self._scatter(op, out) if op.name == "tensor.scatter_add" else None

    # ---- rows taken

    def _of_taken(self, op: Op, out: Block) -> list[Value] | None:
        for side in (0, 1):
            m = _taken(op.operands[side])
            if m is None or not _large(op):
                continue
            batch, contract = (op.attrs[k] for k in SIDES[side])
            table = m.value.owner.operands[0]
            if not set(m.dims) & {*batch, *contract}:
                b = Builder(out, op.loc)
                place = len(batch) + side * len(_free(op, 0)) + _free(op, side).index(m.dim)
                return [b.op("tensor.take", [_product(b, op, side, m, table), m.index], {"dim": place}, loc=m.value.owner.loc).result]
            if set(m.dims) <= set(contract):
                return self._over_index(op, side, m, table, out)
        return None

    def _over_index(self, op: Op, side: int, m: _Merged, table: Value, out: Block) -> list[Value] | None:
        pairs = list(zip(op.attrs[SIDES[side][1]], op.attrs[SIDES[1 - side][1]]))
        partner = dict(pairs)
        g = _Merged(op.operands[1 - side], m.index, partner[m.dim], m.rows)
        if [partner[d] for d in m.dims] != list(g.dims) or self._key(g) not in self.summed:
            return None
        left = [p for p in pairs if p[0] not in m.dims or p[0] == m.dim]
        b = Builder(out, op.loc)
        return [_product(b, op, side, m, table, left, (g, self._sum(g, out)))]

    # ---- rows added

    def _key(self, g: _Merged) -> tuple:
        return g.value, g.index, g.dim, g.rows

    def _scattered_product(self, op: Op) -> tuple | None:
        found = self._find(op)
        return None if found is None else self._key(found[1])

    def _find(self, op: Op) -> tuple[int, _Merged] | None:
        """Of scatter_add(z, i, g . w): which operand of the product g is, and the dims of it that i is for."""
        if op.name != "tensor.scatter_add" or not _made_by(op.operands[2], "tensor.dot_general"):
            return None
        (z, index, u), d = op.operands, op.attrs["dim"]
        product, rows = u.owner, z.type.shape[d]
        if len(self.used[u]) != 1 or not _often(index, rows) or not _large(product):
            return None
        batch, left = len(product.attrs["lhs_batch"]), len(_free(product, 0))
        side = int(d >= batch + left)
        free, at = _free(product, side), d - batch - side * left
        dims = free[at:at + index.type.rank] if at >= 0 else []
        g = product.operands[side]
        if len(dims) != index.type.rank or dims != list(range(dims[0], dims[0] + len(dims))) or not g.type.dtype.is_float or g.type.dtype.bits < 32:
            return None
        return side, _Merged(g, index, dims[0], rows)

    def _scatter(self, op: Op, out: Block) -> list[Value] | None:
        found = self._find(op)
        if found is None:
            return None
        (side, g), z = found, op.operands[0]
        b = Builder(out, op.loc)
        total = _product(b, op.operands[2].owner, side, g, self._sum(g, out))
        zero = _made_by(z, "tensor.constant") and not hasattr(z.owner.attrs["value"], "shape") and z.owner.attrs["value"] == 0
        return [total if zero else b.add(z, total)]

    def _sum(self, g: _Merged, out: Block) -> Value:
        """scatter_add(0, i, g), made once in a block."""
        key = (*self._key(g), id(out))
        if key not in self.sums:
            b = Builder(out, g.value.owner.loc if isinstance(g.value.owner, Op) else None)
            self.sums[key] = b.op("tensor.scatter_add", [b.zeros(g.type), g.index, g.value], {"dim": g.dim}).result
        return self.sums[key]
