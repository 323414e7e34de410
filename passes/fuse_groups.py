"""Clusters: what a group may hold and when two of them may become one."""
from __future__ import annotations

from dataclasses import dataclass, field

from ..compiler.ir.core import Loc, Op
from ..compiler.ir.dims import product
from ..compiler.ir.opdef import OPS
from .cost import COLUMN_BYTES, COLUMN_CHUNKS, COLUMN_SIZE, MAX_GROUP, SPLIT_KEPT, SPLIT_SIZE, enough_rows
from .fuse_graph import ALIGNED, INDEXED, OTHER, REDUCTIONS, ROWS, Edge, Graph, is_product, trailing

MAP, ROW, REDUCE, PRODUCT = "elementwise", "rows", "reduce", "product"
FULL, KEPT = "full", "kept"          # an op works on every element of the domain, or on one per row (per kept element)
COLUMN = "column"                    # in a rows cluster: on one per column (a reduction over the rows, what is computed from it)


@dataclass(eq=False)
class Cluster:
    """`full`: elements of the domain; `kept`: rows, or results of the reduction (equal to full for a map). `reduction`: the shape
    and dims of a reduce cluster, the shape and number of row dims of a rows cluster."""

    ops: list[Op]
    kind: str
    full: int
    kept: int
    roles: dict[Op, str]
    reduction: tuple | None = None
    members: set[Op] = field(init=False)

    def __post_init__(self):
        self.members = set(self.ops)

    @staticmethod
    def single(op: Op, graph: Graph) -> Cluster:
        size = op.results[0].type.numel
        if op.name not in REDUCTIONS or op.operands[0].type.numel == size:
            return Cluster([op], MAP, size, size, {op: FULL})
        shape, full = op.operands[0].type.shape, op.operands[0].type.numel
        rows = trailing(op)
        if rows is not None and enough_rows(size, full):
            return Cluster([op], ROW, full, size, {op: KEPT}, (shape, rows))
        dims = op.attrs["dims"] if "dims" in op.attrs else [op.attrs["dim"]]
        return Cluster([op], REDUCE, full, size, {op: KEPT}, (shape, tuple(dims)))

    def attrs(self, along_rows: bool) -> dict:
        """What lowering needs to know."""
        out: dict = {"kind": PRODUCT if any(map(is_product, self.ops)) else self.kind}
        if self.kind == ROW:
            shape, rows = self.reduction
            out |= {"domain": list(shape), "rows": rows}
            if COLUMN in self.roles.values():
                out["chunks"] = COLUMN_CHUNKS
        elif along_rows and self.along_rows():
            shape, dims = self.reduction
            out |= {"kind": ROW, "domain": list(shape), "rows": len(dims), "chunks": COLUMN_CHUNKS}
        elif self.kind == REDUCE and self.full >= SPLIT_SIZE and self.kept <= SPLIT_KEPT:
            sums = [op for op in self.ops if op.name in REDUCTIONS]
            if all("dims" in op.attrs and (op.operands[0].type.shape, tuple(op.attrs["dims"])) == self.reduction for op in sums):
                out["split"] = 64 if self.full < 1 << 22 else 256
        return out

    def along_rows(self) -> bool:
        """Whether this is a reduction over rows to rather few columns, which is faster along the rows than down each column."""
        if self.kind != REDUCE or self.full < COLUMN_SIZE or self.kept <= SPLIT_KEPT:
            return False
        shape, dims = self.reduction
        sums = [op for op in self.ops if op.name in REDUCTIONS]
        bits = sum(op.operands[0].type.dtype.bytes for op in sums)
        return (dims == tuple(range(len(dims))) and product(shape[:len(dims)]) >= 4 * COLUMN_CHUNKS and self.kept * bits <= COLUMN_BYTES
                and all("dims" in op.attrs and (op.operands[0].type.shape, tuple(op.attrs["dims"])) == self.reduction for op in sums))

    def loc(self) -> Loc | None:
        return next((op.loc for op in reversed(self.ops) if op.loc is not None), None)


def merged(a: Cluster, b: Cluster, graph: Graph) -> Cluster | None:
    """The two clusters as one (without looking at other paths between them), or None."""
    if len(a.ops) + len(b.ops) > MAX_GROUP or ({a.kind, b.kind} == {ROW, REDUCE} and not graph.along_rows):
        return None
    c = _combined(a, b, graph)
    if c is None:
        return None
    products = [op for op in c.ops if is_product(op)]
    if products and not _epilogue_fits(products, c):
        return None
    for op in c.ops:
        for e in graph.edges(op):
            if e.source in c.members and not _fits(e, op, c):
                return None
    if c.kind == REDUCE and _full_escapes(c, graph):
        return None
    return c


def _epilogue_fits(products: list[Op], c: Cluster) -> bool:
    """One product and elementwise ops: what can be done to an element of its result while that is at hand."""
    return len(products) == 1 and c.kind == MAP and all(op is products[0] or OPS[op.name].elementwise for op in c.ops)


def _combined(a: Cluster, b: Cluster, graph: Graph) -> Cluster | None:
    """Kinds and sizes that go together, with each op's role."""
    ops = sorted(a.ops + b.ops, key=graph.position.__getitem__)
    if a.kind == MAP and b.kind == MAP:
        return Cluster(ops, MAP, a.full, a.full, {**a.roles, **b.roles}) if a.full == b.full else None
    if {a.kind, b.kind} == {ROW, REDUCE}:
        r, c = (a, b) if a.kind == ROW else (b, a)
        if not c.along_rows() or (r.full, r.reduction) != (c.full, (c.reduction[0], len(c.reduction[1]))):
            return None
        columns = {op: COLUMN if role is KEPT else role for op, role in c.roles.items()}
        return Cluster(ops, ROW, r.full, r.kept, {**r.roles, **columns}, r.reduction)
    if a.kind != MAP and b.kind != MAP:
        if (a.kind, a.full, a.kept) != (b.kind, b.full, b.kept) or (a.kind == REDUCE and a.reduction != b.reduction):
            return None
        return Cluster(ops, a.kind, a.full, a.kept, {**a.roles, **b.roles}, a.reduction)
    m, r = (a, b) if a.kind == MAP else (b, a)
    role = FULL if m.full == r.full else KEPT if m.full == r.kept else None
    if role is None:
        return None
    return Cluster(ops, r.kind, r.full, r.kept, {**r.roles, **dict.fromkeys(m.ops, role)}, r.reduction)


def _fits(e: Edge, op: Op, c: Cluster) -> bool:
    """Whether op can read e.source's result inside the cluster."""
    made, used = c.roles[e.source], c.roles[op]
    if op.name in REDUCTIONS and used is not FULL:
        return made is FULL and e.kind is ALIGNED
    if op.name in INDEXED:
        return _fits_indexed(e, op, c, made, used)
    if made is used:
        return e.kind is ALIGNED
    # a row's value, for all elements of the row
    return c.kind == ROW and made is KEPT and used is FULL and e.kind is ROWS and e.source.results[0].type.numel == c.kept


def _fits_indexed(e: Edge, op: Op, c: Cluster, made: str, used: str) -> bool:
    if e.kind is OTHER or e.kind is ROWS:
        return False
    if op.name == "tensor.put_along_add":
        if e.slot == 0:
            return made is used
        return c.kind == ROW and used is FULL and made is KEPT and _rows_before(op, c)
    if op.name == "tensor.take_along":
        if e.slot == 1:
            return made is used
        # one element of a row that is computed here anyway: cheaper to compute that element again than to store the row
        return c.kind == ROW and made is FULL and used is KEPT and 4 * c.kept <= c.full and _rows_before(op, c)
    return False


def _rows_before(op: Op, c: Cluster) -> bool:
    """Whether the dims before op's `dim` are exactly the cluster's rows."""
    shape = op.operands[0].type.shape
    return product(shape[:op.attrs["dim"]]) == c.kept and product(shape) == c.full


def _full_escapes(c: Cluster, graph: Graph) -> bool:
    """Whether a value of the whole domain is used outside."""
    return c.full != c.kept and any(c.roles[op] is FULL and any(u not in c.members for u in graph.readers[op]) for op in c.ops)
