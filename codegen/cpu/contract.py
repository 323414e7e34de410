"""loop.contract and loop.copy: as a call of the packed GEMM, or as an ordinary kernel when small or of another kind.

The letters fall into batch, m (out and lhs), n (out and rhs) and k (lhs and rhs). Letters of a group that step through
memory as one dim in every buffer are merged; of what is left one letter each becomes the GEMM's m, n and k, the others
batch dims (m, n: with stride 0 in the operand that lacks them) or loops around the call (k: later turns accumulate).
"""
from __future__ import annotations

from dataclasses import dataclass

from ...compiler.ir.builder import Builder
from ...compiler.ir.core import Block, Op, Value
from ...compiler.ir.types import ScalarType, f32, i64
from .gemm import ARG_INDEX, ARGS
from .scalars import mem_elem
from .target import CpuTarget

SMALL = 4096                 # multiplications up to which code in place beats the GEMM's call and packing
GEMM_DTYPES = ("f32", "f64", "i32", "i64")


@dataclass(frozen=True)
class Dim:
    """A (merged) letter: its size and element strides in lhs, rhs and out (0 where it does not occur)."""

    size: int
    a: int
    b: int
    c: int


@dataclass
class GemmPlan:
    dtype: str
    m: Dim
    n: Dim
    k: Dim
    batch: list[Dim]
    outer_k: list[Dim]

    def cycles(self, target: CpuTarget) -> float:
        work = self.m.size * self.n.size * self.k.size
        for d in (*self.batch, *self.outer_k):
            work *= d.size
        return work / target.lanes(self.dtype)


def _letters(op: Op) -> dict[str, Dim]:
    out, lhs, rhs = op.operands
    strides = {}
    for key, v in (("a", lhs), ("b", rhs), ("c", out)):
        names = op.attrs[{"a": "lhs", "b": "rhs", "c": "out"}[key]]
        for name, size, stride in zip(names, v.type.shape, v.type.element_strides):
            strides.setdefault(name, {"size": size})[key] = stride
    return {x: Dim(s["size"], s.get("a", 0), s.get("b", 0), s.get("c", 0)) for x, s in strides.items()}


def _merge(dims: list[Dim]) -> list[Dim]:
    """Neighbours that step as one become one."""
    dims = sorted((d for d in dims if d.size != 1), key=lambda d: (-d.c, -d.a, -d.b))
    out: list[Dim] = []
    for d in dims:
        p = out[-1] if out else None
        if p and all(x == y * d.size for x, y in ((p.a, d.a), (p.b, d.b), (p.c, d.c))):
            out[-1] = Dim(p.size * d.size, d.a, d.b, d.c)
        else:
            out.append(d)
    return out


def plan(op: Op, target: CpuTarget) -> GemmPlan | None:
    """How to call the GEMM, or None for `loop_kernel`."""
    dtype = op.operands[0].type.dtype.name
    if dtype not in GEMM_DTYPES or any(v.type.dtype.name != dtype for v in op.operands):
        return None
    dims = _letters(op)
    out, lhs, rhs = (set(op.attrs[x]) for x in ("out", "lhs", "rhs"))
    total = 1
    for d in dims.values():
        total *= d.size
    if total <= SMALL or any(dims[x].size != 1 for x in (lhs ^ rhs) - out):
        return None
    group = lambda names: _merge([dims[x] for x in names])
    batch, ms, ns, ks = group(out & lhs & rhs), group(out & lhs - rhs), group(out & rhs - lhs), group((lhs & rhs) - out)
    unit = Dim(1, 1, 1, 1)

    def main(group: list[Dim]) -> Dim:
        """The dim with unit stride in out if it is worth it, else the longest."""
        if not group:
            return unit
        units = [d for d in group if d.c == 1 and d.size >= 8]
        best = units[0] if units else max(group, key=lambda d: d.size)
        group.remove(best)
        return best
    m, n = main(ms), main(ns)
    k = max(ks, key=lambda d: d.size) if ks else unit
    if ks:
        ks.remove(k)
    if m.c != 1 and n.c != 1:
        return None
    batch = sorted([*batch, *ms, *ns], key=lambda d: -d.size)
    tiles = m.size * n.size * k.size
    return GemmPlan(dtype, m, n, k, batch, ks) if tiles >= 512 else None


def emit_gemm(host, op: Op, p: GemmPlan, tid: str, threads: str) -> None:
    """The call(s), from the host level."""
    f = host.f
    out, lhs, rhs = op.operands
    elem = mem_elem(out.type.dtype)
    args = f.alloca(f"[{len(ARGS)} x i64]")
    base = {"a": host.pointer(lhs), "b": host.pointer(rhs), "c": host.pointer(out)}
    scratch_at = f.op("getelementptr i8, ptr %rt, i64 " + str(_scratch_offset()))
    each = f.load("i64", f.gep("i8", scratch_at, "8"), 8)
    scratch = f.op(f"getelementptr i8, ptr {f.load('ptr', scratch_at, 8)}, i64 {f.imul(each, tid)}")

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
    put("a_rs", p.m.a)
    put("a_cs", p.k.a)
    put("b_rs", p.k.b)
    put("b_cs", p.n.b)
    put("c_rs", p.m.c if p.m.size > 1 else 1)
    put("c_cs", p.n.c if p.n.size > 1 else 1)

    def call(offsets: dict[str, str], accumulate: str) -> None:
        for x in "abc":
            put(x, f.op(f"ptrtoint ptr {f.gep(elem, base[x], offsets[x])} to i64"))
        put("accumulate", accumulate)
        f.do(f"call void @engram_gemm_{p.dtype}(i64 {tid}, i64 {threads}, ptr {scratch}, ptr {args})")

    def nest(dims: list[tuple[Dim, bool]], offsets: dict[str, str], accumulate: str) -> None:
        if not dims:
            call(offsets, accumulate)
            return
        (d, is_k), *rest = dims
        with f.loop("0", str(d.size)) as i:
            moved = {x: f.iadd(offsets[x], f.imul(i.index, str(getattr(d, x)))) for x in "abc"}
            acc = accumulate
            if is_k:
                later = f.op(f"zext i1 {f.icmp('ne', i.index, '0')} to i64")
                acc = f.op(f"or i64 {accumulate}, {later}")
            nest(rest, moved, acc)
    loops = [(d, False) for d in p.batch[2:]] + [(d, True) for d in p.outer_k]
    nest(loops, dict.fromkeys("abc", "0"), "1" if op.attrs.get("accumulate") else "0")


def _scratch_offset() -> int:
    from .runtime_ir import RT_SCRATCH
    return RT_SCRATCH


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
    b.op("loop.store", [b.cast(total, dt), out, *_indexed(names, env)])
    b.op("scf.yield", [])
    extents = [dims[x].size for x in names] or [1]
    return Op("loop.parallel", [], {"extents": extents}, (), [body], op.loc)


def copy_kernel(op: Op) -> Op:
    """loop.copy as a loop.parallel; dims that step as one in both buffers are merged."""
    to, frm = op.operands
    merged: list[tuple[int, int, int]] = []
    for n, s, t in zip(to.type.shape, frm.type.element_strides, to.type.element_strides):
        if n == 1:
            continue
        if merged and merged[-1][1] == s * n and merged[-1][2] == t * n:
            merged[-1] = (merged[-1][0] * n, s, t)
        else:
            merged.append((n, s, t))
    merged = merged or [(1, 1, 1)]
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
