"""loop.contract and loop.copy: as a call of the packed GEMM, or as an ordinary kernel when small or of another kind.

The letters fall into batch, m (out and lhs), n (out and rhs) and k (lhs and rhs). Letters of a group that step through
memory as one dim in every buffer are merged. When several are left (a convolution over a view of windows), rows, columns
and k are described by tables of offsets; letters of m and n that do not step evenly through out become batch dims.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ...compiler.ir.builder import Builder
from ...compiler.ir.core import Block, Op, Value
from ...compiler.ir.types import ScalarType, f32, i64
from ..epilogue import inline_epilogue
from .gemm_base import ARG_INDEX, ARGS, FEW, MEMORY_TYPE, dtypes_of, kind_of, symbol, with_pairs
from .scalars import mem_elem
from .target import CpuTarget

SMALL = 4096                 # multiplications up to which code in place beats the GEMM's call and packing
SMALL_INSIDE = 256           # and inside a kernel, where such code is not vectorised
GEMM_DTYPES = ("f32", "f64", "i32", "i64")


@dataclass(frozen=True)
class Dim:
    """A (merged) letter: its size and element strides in lhs, rhs and out (0 where it does not occur)."""

    size: int
    a: int
    b: int
    c: int
    letters: tuple[tuple[str, int], ...] = ()      # and sizes, outermost first

    def swapped(self) -> Dim:
        """With lhs and rhs exchanged."""
        return replace(self, a=self.b, b=self.a)


def is_few(m: int, n: int) -> bool:
    """Whether a product may be for the GEMM's code for one or two rows."""
    return min(m, n) <= 2


@dataclass
class GemmPlan:
    """`swapped`: lhs and rhs (and the roles of m and n) change places. `tables`: offsets a(m), a(k), b(k), b(n)."""

    kind: str
    m: Dim
    n: Dim
    k: Dim
    batch: list[Dim]
    swapped: bool = False
    tables: tuple[np.ndarray, ...] = ()

    @property
    def callee(self) -> str:
        """The kind that is called: with few rows (or columns, which may become rows), that with code for them."""
        return self.kind + FEW if is_few(self.m.size, self.n.size) and not self.tables else self.kind

    def cycles(self, target: CpuTarget) -> float:
        work = self.m.size * self.n.size * self.k.size
        for d in self.batch:
            work *= d.size
        return work / target.lanes(dtypes_of(self.kind)[0])


def _letters(op: Op) -> dict[str, Dim]:
    out, lhs, rhs = op.operands
    strides = {}
    for key, v in (("a", lhs), ("b", rhs), ("c", out)):
        names = op.attrs[{"a": "lhs", "b": "rhs", "c": "out"}[key]]
        for name, size, stride in zip(names, v.type.shape, v.type.element_strides):
            strides.setdefault(name, {"size": size})[key] = stride
    return {x: Dim(s["size"], s.get("a", 0), s.get("b", 0), s.get("c", 0), ((x, s["size"]),)) for x, s in strides.items()}


def _merge(dims: list[Dim]) -> list[Dim]:
    """Neighbours that step as one become one."""
    dims = sorted((d for d in dims if d.size != 1), key=lambda d: (-d.c, -d.a, -d.b))
    out: list[Dim] = []
    for d in dims:
        p = out[-1] if out else None
        if p and all(x == y * d.size for x, y in ((p.a, d.a), (p.b, d.b), (p.c, d.c))):
            out[-1] = Dim(p.size * d.size, d.a, d.b, d.c, p.letters + d.letters)
        else:
            out.append(d)
    return out


def kind(op: Op) -> str | None:
    """The kind of GEMM for the op's dtypes, operands not swapped; None when there is none."""
    dtype, *sides = (v.type.dtype.name for v in op.operands)
    return kind_of(dtype, *sides) if dtype in GEMM_DTYPES and all(d in MEMORY_TYPE for d in sides) else None


def contraction_groups(op: Op, small: int = SMALL) -> tuple[list[Dim], list[Dim], list[Dim], list[Dim]] | None:
    """(batch, m, n, k), merged; None for what is too small for more than code in place or sums a letter of one operand alone."""
    dims = _letters(op)
    out, lhs, rhs = (set(op.attrs[x]) for x in ("out", "lhs", "rhs"))
    total = 1
    for d in dims.values():
        total *= d.size
    if total <= small or any(dims[x].size != 1 for x in (lhs ^ rhs) - out):
        return None
    return tuple(_merge([dims[x] for x in names]) for names in (out & lhs & rhs, out & lhs - rhs, out & rhs - lhs, (lhs & rhs) - out))


def plan(op: Op, target: CpuTarget, small: int = SMALL) -> GemmPlan | None:
    """How to call the GEMM, or None for `loop_kernel`."""
    if kind(op) is None:
        return None
    dtype, *sides = (v.type.dtype.name for v in op.operands)
    found = contraction_groups(op, small)
    if found is None:
        return None
    batch, ms, ns, ks = found
    unit = Dim(1, 1, 1, 1)

    if len(ms) <= 1 and len(ns) <= 1 and len(ks) <= 1:
        m, n, k = (g[0] if g else unit for g in (ms, ns, ks))
        if m.c != 1 and n.c != 1:
            return None
        # n runs along C; a column is computed as a row
        swapped = n.c != 1 or (n.size == 1 and m.c == 1)
        if swapped:
            m, n, k, *batch = (d.swapped() for d in (n, m, k, *batch))
        return GemmPlan(with_pairs(_kind(dtype, sides, swapped), target), m, n, k, batch, swapped)
    # out's unit stride has to be n's; rows and columns of out have to step evenly
    swapped = not any(d.c == 1 for d in ns) and any(d.c == 1 for d in ms)
    if swapped:
        ms, ns = ([d.swapped() for d in g] for g in (ns, ms))
        ks, batch = ([d.swapped() for d in g] for g in (ks, batch))
    m_dims, ms = _even(ms)
    n_dims, ns = _even(ns)
    if n_dims and n_dims[-1].c != 1:
        return None
    batch = sorted([*batch, *ms, *ns], key=lambda d: -d.size)
    m, n, k = (_flat(g) for g in (m_dims, n_dims, ks))
    if m.size * n.size * k.size < 512:
        return None
    if len(m_dims) <= 1 and len(n_dims) <= 1 and len(ks) <= 1:
        return GemmPlan(with_pairs(_kind(dtype, sides, swapped), target), m, n, k, batch, swapped)
    tables = tuple(_offsets(g, x) for g, x in ((m_dims, "a"), (ks, "a"), (ks, "b"), (n_dims, "b")))
    if any(t is None for t in tables):
        return None
    return GemmPlan(_kind(dtype, sides, swapped, True), m, n, k, batch, swapped, tables)


def _kind(dtype: str, sides: list[str], swapped: bool, tables: bool = False) -> str:
    return kind_of(dtype, *(reversed(sides) if swapped else sides), tables)


def _even(dims: list[Dim]) -> tuple[list[Dim], list[Dim]]:
    """The innermost dims that step through out as one, and the others."""
    kept = dims[-1:]
    for i in range(len(dims) - 2, -1, -1):
        if dims[i].c != kept[0].c * kept[0].size:
            return kept, dims[:i + 1]
        kept.insert(0, dims[i])
    return kept, []


def _flat(dims: list[Dim]) -> Dim:
    """Several dims as one: its size, and the strides of the innermost."""
    size = 1
    for d in dims:
        size *= d.size
    last = dims[-1] if dims else Dim(1, 1, 1, 1)
    return Dim(size, last.a, last.b, last.c, sum((d.letters for d in dims), ()))


def _offsets(dims: list[Dim], operand: str) -> np.ndarray | None:
    """Element offsets of all positions, row-major; None when they do not fit 32 bits."""
    out = np.zeros(1, np.int64)
    for d in dims:
        out = (out[:, None] + np.arange(d.size) * getattr(d, operand)).reshape(-1)
    return out.astype(np.int32) if abs(out).max() < 1 << 31 else None


def fits_epilogue(p: GemmPlan) -> bool:
    """Whether the columns of C are one index of the result, along which an epilogue can be vectorised."""
    return len(p.n.letters) <= 1


def emit_gemm(host, op: Op, p: GemmPlan, tid: str, threads: str, memory_of: str | None = None) -> None:
    """The call(s), from the host level or from inside a kernel. `memory_of`: the thread whose scratch memory serves (None: tid)."""
    f = host.f
    out, lhs, rhs = op.operands
    if p.swapped:
        lhs, rhs = rhs, lhs
    elems = {x: mem_elem(v.type.dtype) for x, v in (("a", lhs), ("b", rhs), ("c", out))}
    args = f.alloca(f"[{len(ARGS)} x i64]")
    base = {"a": host.pointer(lhs), "b": host.pointer(rhs), "c": host.pointer(out)}
    scratch = thread_scratch(f, memory_of or tid)

    def put(name: str, value: str | int) -> None:
        f.store("i64", str(value), f.gep("i64", args, str(ARG_INDEX[name])), 8)
    inner = [*p.batch[:2], *[Dim(1, 0, 0, 0)] * (2 - len(p.batch[:2]))]
    put("batch0", inner[0].size)
    put("batch1", inner[1].size)
    for name, d in (("m", p.m), ("n", p.n), ("k", p.k)):
        put(name, d.size)
    for x in "abc":
        put(f"{x}_b0", getattr(inner[0], x))
        put(f"{x}_b1", getattr(inner[1], x))
    if p.tables:
        for name, table in zip(("a_rs", "a_cs", "b_rs", "b_cs"), p.tables):
            put(name, f.op(f"ptrtoint ptr {host.e.constant(table)} to i64"))
    else:
        for name, stride in (("a_rs", p.m.a), ("a_cs", p.k.a), ("b_rs", p.k.b), ("b_cs", p.n.b)):
            put(name, stride)
    put("tables", int(bool(p.tables)))
    outer = []                                     # the env's slots for indices of batch dims looped over here
    if op.regions:
        name, slots, outer, streams = host.epilogue(op, p, len(p.batch[2:]))
        put("epilogue", f.op(f"ptrtoint ptr {name} to i64"))
        put("env", f.op(f"ptrtoint ptr {slots} to i64"))
        put("streams", f.op(f"ptrtoint ptr {streams} to i64"))
    else:
        put("epilogue", 0)
        put("streams", 0)
    put("discard", int(bool(op.regions) and not op.regions[0].terminator.operands))
    put("accumulate", int(bool(op.attrs.get("accumulate"))))
    put("c_rs", p.m.c if p.m.size > 1 else 1)
    put("c_cs", p.n.c if p.n.size > 1 else 1)

    def nest(dims: list[Dim], offsets: dict[str, str]) -> None:
        if dims:
            with f.loop("0", str(dims[0].size)) as i:
                if outer:
                    f.store("i64", i.index, outer[len(p.batch) - 2 - len(dims)], 8)
                nest(dims[1:], {x: f.iadd(offsets[x], f.imul(i.index, str(getattr(dims[0], x)))) for x in "abc"})
            return
        for x in "abc":
            put(x, f.op(f"ptrtoint ptr {f.gep(elems[x], base[x], offsets[x])} to i64"))
        f.do(f"call void @{symbol(p.callee)}(i64 {tid}, i64 {threads}, ptr {scratch}, ptr {args})")
    nest(p.batch[2:], dict.fromkeys("abc", "0"))


def thread_scratch(f, tid: str) -> str:
    """This thread's packing memory."""
    from .runtime_ir import RT_SCRATCH
    at = f.op(f"getelementptr i8, ptr %rt, i64 {RT_SCRATCH}")
    each = f.load("i64", f.gep("i8", at, "8"), 8)
    return f.op(f"getelementptr i8, ptr {f.load('ptr', at, 8)}, i64 {f.imul(each, tid)}")


def _indexed(names: str, env: dict[str, Value]) -> list[Value]:
    return [env[x] for x in names]


def loop_kernel(op: Op) -> Op:
    """The contraction as a loop.parallel over out with sums inside."""
    out, lhs, rhs = op.operands
    names, a_names, b_names = op.attrs["out"], op.attrs["lhs"], op.attrs["rhs"]
    dims = _letters(op)
    summed = [x for x in dict.fromkeys(a_names + b_names) if x not in names]
    dt = out.type.dtype
    acc = f32 if dt.is_float and dt.bits == 16 else dt
    body = Block([ScalarType(i64)] * max(len(names), 1))
    b = Builder(body, op.loc)
    env = dict(zip(names, body.args))

    def term(b: Builder) -> Value:
        x = b.op("loop.load", [lhs, *_indexed(a_names, env)]).result
        y = b.op("loop.load", [rhs, *_indexed(b_names, env)]).result
        return b.mul(b.cast(x, acc), b.cast(y, acc))

    def nest(b: Builder, rest: list[str]) -> Value:
        if not rest:
            return term(b)
        region = Block([ScalarType(i64)])
        env[rest[0]] = region.args[0]
        inner = Builder(region, op.loc)
        inner.op("scf.yield", [nest(inner, rest[1:])])
        return b.op("loop.reduce", [b.index(0), b.index(dims[rest[0]].size)], {"kinds": ["add"]}, [region]).result
    total = nest(b, summed)
    if op.attrs.get("accumulate"):
        old = b.op("loop.load", [out, *_indexed(names, env)]).result
        total = b.add(b.cast(old, acc), total)
    inline_epilogue(b, op, b.cast(total, dt), _indexed(names, env))
    b.op("scf.yield", [])
    extents = [dims[x].size for x in names] or [1]
    return Op("loop.parallel", [], {"extents": extents}, (), [body], op.loc)


def loop_nest(op: Op) -> list[Op]:
    """The contraction as sequential loops, for the inside of a kernel."""
    kernel = loop_kernel(op)
    body = kernel.regions[0]
    indices, extents = body.args, kernel.attrs["extents"]
    zero = Op("scalar.constant", [], {"value": 0, "dtype": i64}, [ScalarType(i64)], (), op.loc)
    ops = body.ops
    for index, n in reversed(list(zip(indices, extents))):
        block = Block([])
        block.args, index.owner = [index], block
        block.ops = ops
        hi = Op("scalar.constant", [], {"value": n, "dtype": i64}, [ScalarType(i64)], (), op.loc)
        loop = Op("loop.for", [zero.result, hi.result], {"step": 1}, (), [block], op.loc)
        ops = [hi, loop, Op("scf.yield", [], {}, (), (), op.loc)]
    return [zero, *ops[:-1]]


def _blocked(dims: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """A transposing copy (contiguous along its last dim in the destination, along another one in the source) in strips of 16: the
    lines of the source that a strip's rows read stay in the cache until they are used up."""
    rows = [i for i, (n, s, t) in enumerate(dims[:-1]) if s == 1 and n > 1]
    if not rows or dims[-1][2] != 1 or dims[-1][1] == 1 or dims[-1][0] % 16:
        return dims
    n, s, t = dims[-1]
    i = rows[0]
    return [*dims[:i], *dims[i + 1:-1], (n // 16, 16 * s, 16 * t), dims[i], (16, s, t)]


def copy_kernel(op: Op) -> Op:
    """loop.copy as a loop.parallel; dims that step as one in both buffers are merged."""
    to, frm = op.operands
    merged: list[tuple[int, int, int]] = []
    for n, s, t in sorted(zip(to.type.shape, frm.type.element_strides, to.type.element_strides), key=lambda d: -d[2]):
        if n == 1:
            continue
        if merged and merged[-1][1] == s * n and merged[-1][2] == t * n:
            merged[-1] = (merged[-1][0] * n, s, t)
        else:
            merged.append((n, s, t))
    merged = _blocked(merged) or [(1, 1, 1)]
    shape = [n for n, _, _ in merged]
    body = Block([ScalarType(i64)] * len(shape))
    b = Builder(body, op.loc)
    zero = b.index(0)
    src = b.op("loop.view", [frm, zero], {"shape": shape, "strides": [s for _, s, _ in merged]}).result
    dst = b.op("loop.view", [to, zero], {"shape": shape, "strides": [t for _, _, t in merged]}).result
    x = b.op("loop.load", [src, *body.args]).result
    b.op("loop.store", [x, dst, *body.args])
    b.op("scf.yield", [])
    return Op("loop.parallel", [], {"extents": shape}, (), [body], op.loc)
