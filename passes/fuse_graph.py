"""The data flow of one block as fusion sees it: which ops can be grouped, and through what movement each reads its producers."""
from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..compiler.ir.core import Block, Op, Value
from ..compiler.ir.dims import product
from ..compiler.ir.opdef import OPS
from .cost import DEPTHWISE, INLINE_COST, SMALL_CONTRACTION, cost

FREE = {"tensor.iota", "tensor.broadcast", "tensor.reshape", "tensor.transpose", "tensor.slice", "tensor.reverse", "tensor.stop_gradient"}
REDUCTIONS = {"tensor.reduce_sum", "tensor.reduce_prod", "tensor.reduce_max", "tensor.reduce_min", "tensor.argmax", "tensor.argmin"}
# ops whose elements can be generated inside a group, but which read operands at other positions than their own
INDEXED = {"tensor.take", "tensor.take_along", "tensor.dynamic_slice", "tensor.put_along_add", "tensor.dot_general", "tensor.fold_windows"}

ALIGNED, ROWS, OTHER = "aligned", "rows", "other"


class Edge(NamedTuple):
    """An operand of a groupable op, traced back through copied ops. `source`: the op that makes `value` (None: a leaf). `kind`: ALIGNED:
    element i is read for element i, in row-major order; ROWS: element i of `value` for row i of the consumer; OTHER: anything."""

    source: Op | None
    value: Value
    kind: str
    slot: int


class Graph:
    """Facts about one block, computed once."""

    def __init__(self, block: Block, along_rows: bool = True):
        self.block, self.along_rows = block, along_rows
        self.arguments = set(block.args)
        self._inner: dict[Op, list[Value]] = {}
        self.order = list(block.ops)
        self.position = {op: i for i, op in enumerate(self.order)}
        self.defined: dict[Value, Op] = {r: op for op in self.order for r in op.results}
        self.users: dict[Op, list[Op]] = {op: [] for op in self.order}
        for op in self.order:
            for v in dict.fromkeys(self.all_operands(op)):
                source = self.defined.get(v)
                if source is not None:
                    self.users[source].append(op)
        self.copied: set[Op] = set()
        self.far = False
        self._edges: dict[Op, list[Edge]] = {}
        self._find_copied()
        self.readers = {op: self._readers(op) for op in self.order if op not in self.copied}

    def _readers(self, op: Op) -> list[Op]:
        """Ops that need op's results, directly or through copied ops."""
        out: dict[Op, None] = {}
        seen: set[Op] = set()
        todo = list(self.users[op])
        while todo:
            u = todo.pop()
            if u not in self.copied:
                out[u] = None
            elif u not in seen:
                seen.add(u)
                todo.extend(self.users[u])
        return list(out)

    def all_operands(self, op: Op) -> list[Value]:
        """Operands of the op and what its regions use from this block."""
        if not op.regions:
            return op.operands
        found = self._inner.get(op)
        if found is None:
            inner = [v for r in op.regions for o in r.walk() for v in o.operands if v in self.defined or v in self.arguments]
            found = self._inner[op] = list(dict.fromkeys([*op.operands, *inner]))
        return found

    # ---- which ops ----
    def fusible(self, op: Op) -> bool:
        """Whether the op can be in a group."""
        if op in self.copied or not op.results or not op.results[0].type.numel or not op.operands:
            return False
        name = op.name
        if name == "tensor.put_along_add":
            x, i = op.operands[0].type.shape, op.operands[1].type.shape
            return all(n == (1 if d == op.attrs["dim"] else m) for d, (m, n) in enumerate(zip(x, i)))
        if name == "tensor.dot_general":
            return small_contraction(op) or has_epilogue(op)
        if name == "tensor.fold_windows":
            return separate_windows(op)
        if name in REDUCTIONS:
            return op.operands[0].type.numel > 0
        return OPS[name].elementwise or name in INDEXED or name in ("random.fold_in",)

    def _find_copied(self) -> None:
        """Movement and small constants; then cheap ops that read at most one array and are used by groupable ops only."""
        loads: dict[Op, tuple[int, int]] = {}          # (cost, arrays read) when copied
        for op in self.order:
            if op.name in FREE or (op.name == "tensor.constant" and not hasattr(op.attrs["value"], "shape")):
                self.copied.add(op)
            elif not (OPS[op.name].elementwise and op.operands and op.results[0].type.numel):
                continue
            total, reads = cost(op), 0
            for v in dict.fromkeys(op.operands):
                source = self.defined.get(v)
                c, n = loads[source] if source in loads else (0, int(2 * v.type.numel > op.results[0].type.numel))
                total, reads = total + c, reads + n
            loads[op] = (total, reads)
        for op in reversed(self.order):
            if op.name == "tensor.fold_windows" and separate_windows(op) and self.users[op] and all(self._takes(u) for u in self.users[op]):
                self.copied.add(op)
            if op in self.copied or op not in loads or not self.users[op]:
                continue
            total, reads = loads[op]
            if total <= INLINE_COST and reads <= 1 and op.results[0].type.numel > 1 and all(self._takes(u) for u in self.users[op]):
                self.copied.add(op)
        for op in self.order:                          # a copied op's costs hold only if its producers are copied as well
            if op in self.copied and op.name not in FREE and op.operands:
                arrays = [v for v in dict.fromkeys(op.operands) if 2 * v.type.numel > op.results[0].type.numel]
                if sum(self.defined.get(v) not in self.copied for v in arrays) > 1:
                    self.copied.discard(op)

    def _takes(self, user: Op) -> bool:
        """Whether `user` is computed inside groups wherever it is used."""
        if user in self.copied:
            return user.name != "tensor.constant" and bool(self.users[user]) and all(self._takes(u) for u in self.users[user])
        return self.fusible(user) and not is_product(user)

    # ---- edges ----
    def edges(self, op: Op) -> list[Edge]:
        """Where a groupable op's operands come from."""
        found = self._edges.get(op)
        if found is None:
            if is_product(op):                             # its operands are whole arrays in memory
                found = [Edge(self.defined.get(v), v, OTHER, slot) for slot, v in enumerate(op.operands)]
            else:
                found = [e for slot, v in enumerate(op.operands) for e in self._trace(v, ALIGNED, slot)]
            self._edges[op] = found
        return found

    def _trace(self, v: Value, kind: str, slot: int) -> Iterator[Edge]:
        op = self.defined.get(v)
        if op is None or op not in self.copied:
            yield Edge(op, v, kind, slot)
            return
        step = self._step(op)
        for x in op.operands:
            yield from self._trace(x, step if kind is ALIGNED else kind if step is ALIGNED else OTHER, slot)

    @staticmethod
    def _step(op: Op) -> str:
        if op.name == "tensor.broadcast":
            return broadcast_kind(op)
        if op.name in ("tensor.transpose", "tensor.slice", "tensor.reverse", "tensor.fold_windows"):
            return OTHER
        return ALIGNED

    def cyclic(self, a, b, home) -> bool:
        """Whether a path leads from one cluster to the other through something that is in neither.  The search ends behind the last op of the two, which
        overlooks a way on through a later op of some group and back through another group's earlier op: with `far` it goes everywhere."""
        last = len(self.order) if self.far else max(max(self.position[o] for o in a.ops), max(self.position[o] for o in b.ops))
        both = a.members | b.members
        seen: set[Op] = set()
        todo = [u for o in both for u in self.readers[o] if u not in both]
        while todo:
            op = todo.pop()
            if op in seen:
                continue
            group = home[op].ops if op in home else [op]
            seen.update(group)
            for o in group:
                if self.position[o] > last:
                    continue
                for u in self.readers[o]:
                    if u in both:
                        return True
                    if u not in seen:
                        todo.append(u)
        return False


def broadcast_kind(op: Op) -> str:
    """ROWS when the operand's dims come first and the new ones last; ALIGNED when nothing is repeated."""
    shape, x = op.result.type.shape, op.operands[0].type.shape
    kept = {d for n, d in zip(x, op.attrs["dims"]) if n != 1}
    new = [d for d, n in enumerate(shape) if n != 1 and d not in kept]
    if not new:
        return ALIGNED
    return ROWS if not kept or max(kept) < min(new) else OTHER


def has_epilogue(op: Op) -> bool:
    """Whether elementwise ops on a large product's result may be done as the product's epilogue."""
    return not op.result.type.dtype.is_bool


def is_product(op: Op) -> bool:
    """A contraction that is a kernel with whole arrays for operands."""
    return op.name == "tensor.dot_general" and not small_contraction(op)


def small_contraction(op: Op) -> bool:
    """Whether a dot_general is better computed element by element than packed: small, or without sums."""
    x = op.operands[0].type.shape
    dims = op.attrs["lhs_contract"]
    return not dims or op.result.type.numel * product(x[d] for d in dims) <= SMALL_CONTRACTION or _depthwise(op)


def _depthwise(op: Op) -> bool:
    """Whether each product is used once, so that there is nothing to pack: a column by a row; or in a batch (channels), one row of numbers by a
    few places of each window. (A convolution's contraction has several dims: what else is multiplied once has one, and neighbours along it.)"""
    a = op.attrs
    summed = product(op.operands[0].type.shape[d] for d in a["lhs_contract"])
    if summed == 1:
        return True
    free = [product(n for d, n in enumerate(v.type.shape) if d not in a[side + "_batch"] and d not in a[side + "_contract"])
            for side, v in zip(("lhs", "rhs"), op.operands)]
    return summed <= DEPTHWISE and len(a["lhs_contract"]) > 1 and bool(a["lhs_batch"]) and 1 in free


def separate_windows(op: Op) -> bool:
    """Whether the windows of a fold_windows do not overlap, so that it only moves elements (and puts zeros between them)."""
    a = op.attrs
    return all(d == 1 and k <= s for k, s, d in zip(a["size"], a["stride"], a["dilation"]))


def trailing(op: Op) -> int | None:
    """How many leading dims a reduction keeps when it reduces all that follow (dims of size 1 apart), else None."""
    shape = op.operands[0].type.shape
    dims = op.attrs["dims"] if "dims" in op.attrs else [op.attrs["dim"]]
    real = [d for d in dims if shape[d] != 1]
    if not real:
        return len(shape)
    first = min(real)
    return first if product(shape[first:]) == product(shape[d] for d in real) else None
