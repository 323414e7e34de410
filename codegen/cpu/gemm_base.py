"""What the parts of the GEMM generator share: tile and block sizes from the target description, and small instructions."""
from __future__ import annotations

from dataclasses import dataclass

from ...compiler.ir.types import DTYPES
from .irtext import Fn, Module, vec
from .scalars import Ops
from .target import CpuTarget

ARGS = ("batch0", "batch1", "m", "n", "k",
        "a", "a_b0", "a_b1", "a_rs", "a_cs",
        "b", "b_b0", "b_b1", "b_rs", "b_cs",
        "c", "c_b0", "c_b1", "c_rs", "c_cs", "accumulate", "tables",
        "epilogue", "env", "discard", "streams")
ARG_INDEX = {name: i for i, name in enumerate(ARGS)}

SETS_BYTES = 4096  # after which addresses come round to the same set of L1: 64 sets on nearly all processors
CHUNK = 16         # k's of a column-major A that are packed at a time
PREFETCH = 16      # rows of B ahead of the one being packed
LLVM_TYPE = {"f32": "float", "f64": "double", "i32": "i32", "i64": "i64"}
SIZE = {"f32": 4, "f64": 8, "i32": 4, "i64": 8}
# operands as they lie in memory; those that are narrower than the sums are widened while they are packed
MEMORY_TYPE = {**LLVM_TYPE, "bf16": "i16", "f16": "i16", "i16": "i16", "i8": "i8", "u16": "i16", "u8": "i8", "u32": "i32"}
MEMORY_SIZE = {**SIZE, "bf16": 2, "f16": 2, "i16": 2, "i8": 1, "u16": 2, "u8": 1, "u32": 4}


PAIRS = ":pairs"   # of a kind whose packed panels hold pairs of neighbouring k's, for instructions that multiply pairs
WITH_TABLES = "/tables"                # of a kind that can also take offsets from tables: more code, which few programs need
FEW = "+few"       # of the code for one or two rows of a kind, which leaves everything else to that kind; many programs need none


def kind_of(acc: str, lhs: str, rhs: str, tables: bool = False) -> str:
    """The name of the GEMM that adds up products of lhs and rhs elements in `acc`: "f32", "f32:bf16:bf16" or "f32/tables"."""
    return (acc if lhs == rhs == acc else f"{acc}:{lhs}:{rhs}") + WITH_TABLES * tables


def dtypes_of(kind: str) -> tuple[str, str, str]:
    """(sums, lhs, rhs) of a kind."""
    acc, *sides = kind.removesuffix(FEW).removesuffix(WITH_TABLES).removesuffix(PAIRS).split(":")
    return (acc, *(sides or (acc, acc)))


def with_pairs(kind: str, target: CpuTarget) -> str:
    """The kind for products without tables of offsets: multiplying pairs where the target does."""
    return kind + PAIRS if kind == "f32:bf16:bf16" and target.bf16_dot else kind


@dataclass(frozen=True)
class Tiling:
    """Tile and block sizes of one dtype on one target."""

    lanes: int
    mr: int      # rows of the register tile
    nw: int      # vectors across it
    kc: int      # depth of a block: an A panel of kc x mr stays in L1
    mc: int      # rows of a packed A block
    nc: int      # columns of a packed B block: it stays in L2

    @property
    def nr(self) -> int:
        return self.nw * self.lanes

    @property
    def few_rows(self) -> int:
        """Rows of A up to which a B that lies row by row is read in place: packing it would cost more than it gains."""
        return 10 * self.mr

    @property
    def few_columns(self) -> int:
        """Columns up to which an A that lies row by row is read in place: a panel's rows then come from L2 for every tile, which costs less than packing."""
        return 16 * self.nr

    @property
    def heights(self) -> range:
        return range(2, self.mr + 1, 2)

    # the packing memory, in elements: a block of A, a block of B, then

    @property
    def panel_at(self) -> int:
        """where a panel of C is kept that nobody needs but its epilogue,"""
        return -(-((self.mc + self.nc + self.mr + self.nr) * self.kc + 3 * (64 * self.lanes + self.mr * self.nr)) // 64) * 64

    @property
    def panel_stride(self) -> int:
        """from row to row of it (no power of two),"""
        return self.nc + self.lanes

    @property
    def kept_at(self) -> int:
        """where a whole packed A is kept,"""
        return -(-(self.panel_at + self.mr * self.panel_stride + 64 * self.lanes) // 64) * 64

    @property
    def kept_elements(self) -> int:
        """and how large that may be: eight rows of blocks."""
        return 8 * self.mc * self.kc


def tiling(target: CpuTarget, kind: str) -> Tiling:
    """Sizes that follow the register count and the caches."""
    dtype = dtypes_of(kind)[0]
    lanes, size = target.lanes(dtype), SIZE[dtype]
    nw = 2
    mr = 14 if target.registers >= 32 else 6        # mr * nw accumulators + nw of B + 1 broadcast <= registers
    nr = nw * lanes
    kc = max(64, min(512, int(target.l1 * 0.45) // (mr * size)) // lanes * lanes)
    nc = max(nr, min(1024, target.l2 // 2 // (kc * size)) // nr * nr)
    return Tiling(lanes, mr, nw, kc, 16 * mr, nc)


def scratch_bytes(target: CpuTarget, kind: str) -> int:
    """Packing memory one thread needs (64-byte aligned)."""
    t, size = tiling(target, kind), SIZE[dtypes_of(kind)[0]]
    return (t.kept_at + t.kept_elements + 64 * t.lanes) * size


def symbol(kind: str) -> str:
    return f"engram_gemm_{kind.replace(':', '_').replace('/', '_').replace('+', '_')}"


class Base:
    """Small instructions on vectors of the sums' dtype, and reading operands as such."""

    def __init__(self, target: CpuTarget, kind: str):
        self.target, self.kind, self.few = target, kind, kind.endswith(FEW)
        kind = kind.removesuffix(FEW)
        self.with_tables = kind.endswith(WITH_TABLES)
        self.t = tiling(target, kind)
        self.m, self.tiles = Module(target), Module(target)
        dtype, *sides = dtypes_of(kind)
        self.side = dict(zip("ab", sides))
        self.ea, self.eb = (MEMORY_TYPE[d] for d in sides)
        self.bytes = {x: MEMORY_SIZE[d] for x, d in self.side.items()}
        self.same = {x: d == dtype for x, d in self.side.items()}
        self.dtype = dtype
        self.pairs = kind.endswith(PAIRS)
        self.e, self.size = LLVM_TYPE[dtype], SIZE[dtype]
        self.w = self.t.lanes
        self.v = vec(self.e, self.w)
        self.float = dtype in ("f32", "f64")
        self.reads_rows = self.float and self.same["a"] and target.masked and target.x86 and not self.pairs     # see gemm_tile.micro's `in_rows`
        self.zero = "0.0" if self.float else "0"
        self.suffix = f"v{self.w}{'f' if self.float else 'i'}{self.size * 8}"

    def fma(self, f: Fn, a: str, b: str, c: str, type_: str | None = None) -> str:
        v = type_ or self.v
        if not self.float:
            return f.op(f"add {v} {c}, {f.op(f'mul {v} {a}, {b}')}")
        if self.target.fma:
            name = "llvm.fma." + (self.suffix if v == self.v else f"f{self.size * 8}")
            return f.op(f"call {v} {f.module.intrinsic(v, name, v, v, v)}({v} {a}, {v} {b}, {v} {c})")
        return f.op(f"fadd {v} {c}, {f.op(f'fmul {v} {a}, {b}')}")

    def packed_row(self, f: Fn, ptr: str) -> str:
        """A vector of a panel of B, which is whole: a load under a mask costs one of the FMA's turns on Zen 4."""
        return f.load(vec("i32", self.w), ptr, 4) if self.pairs else self.vload(f, ptr)

    def packed_splat(self, f: Fn, ptr: str) -> str:
        """One element of a packed panel of A, in all lanes."""
        if not self.pairs:
            return self.splat(f, f.load(self.e, ptr, self.size))
        v = vec("i32", self.w)
        one = f.op(f"insertelement {v} poison, i32 {f.load('i32', ptr, 4)}, i64 0")
        return f.op(f"shufflevector {v} {one}, {v} poison, <{self.w} x i32> zeroinitializer")

    def packed_fma(self, f: Fn, a: str, b: str, c: str) -> str:
        """c + a * b on packed elements."""
        if not self.pairs:
            return self.fma(f, a, b, c)
        words, halves = vec("i32", self.w), vec("bfloat", 2 * self.w)
        x, y = (f.op(f"bitcast {words} {z} to {halves}") for z in (a, b))
        name = f.module.intrinsic(self.v, f"llvm.x86.avx512bf16.dpbf16ps.{32 * self.w}", self.v, halves, halves)
        return f.op(f"call {self.v} {name}({self.v} {c}, {halves} {x}, {halves} {y})")

    def splat(self, f: Fn, scalar: str) -> str:
        one = f.op(f"insertelement {self.v} poison, {self.e} {scalar}, i64 0")
        return f.op(f"shufflevector {self.v} {one}, {self.v} poison, <{self.w} x i32> zeroinitializer")

    def mask(self, f: Fn, count: str) -> str:
        """Lanes below `count` (i64)."""
        c32 = f.op(f"trunc i64 {f.imin(count, str(self.w))} to i32")
        one = f.op(f"insertelement <{self.w} x i32> poison, i32 {c32}, i64 0")
        all_ = f.op(f"shufflevector <{self.w} x i32> {one}, <{self.w} x i32> poison, <{self.w} x i32> zeroinitializer")
        steps = "<" + ", ".join(f"i32 {i}" for i in range(self.w)) + ">"
        return f.op(f"icmp slt <{self.w} x i32> {steps}, {all_}", "m")

    def first_lanes(self, count: int) -> str | None:
        """A constant mask of the first lanes; None for all."""
        return None if count == self.w else "<" + ", ".join(f"i1 {int(i < count)}" for i in range(self.w)) + ">"

    def vload(self, f: Fn, ptr: str, mask: str | None = None, other: str = "zeroinitializer") -> str:
        """`other`: what inactive lanes are."""
        if mask is None:
            return f.load(self.v, ptr, self.size)
        m = f"<{self.w} x i1>"
        name = f.module.intrinsic(self.v, f"llvm.masked.load.{self.suffix}.p0", "ptr", "i32", m, self.v)
        return f.op(f"call {self.v} {name}(ptr {ptr}, i32 {self.size}, {m} {mask}, {self.v} {other})", "l")

    def load_side(self, f: Fn, side: str, ptr: str) -> str:
        """One element of operand a or b, as the sums' type."""
        d = self.side[side]
        x = f.load(MEMORY_TYPE[d], ptr, MEMORY_SIZE[d])
        return x if self.same[side] else self.widened(f, d, x, 1)

    def vload_side(self, f: Fn, side: str, ptr: str, mask: str | None = None, other: str = "zeroinitializer") -> str:
        """A vector's worth of operand a or b, as the sums' type."""
        if self.same[side]:
            return self.vload(f, ptr, mask, other)
        d = self.side[side]
        elem, size = MEMORY_TYPE[d], MEMORY_SIZE[d]
        v = vec(elem, self.w)
        if mask is None:
            return self.widened(f, d, f.load(v, ptr, size), self.w)
        m, suffix = f"<{self.w} x i1>", f"v{self.w}{'f' if elem in ('float', 'double') else 'i'}{size * 8}"
        name = f.module.intrinsic(v, f"llvm.masked.load.{suffix}.p0", "ptr", "i32", m, v)
        x = self.widened(f, d, f.op(f"call {v} {name}(ptr {ptr}, i32 {size}, {m} {mask}, {v} zeroinitializer)", "l"), self.w)
        return x if other == "zeroinitializer" else f.op(f"select {m} {mask}, {self.v} {x}, {self.v} {other}")

    def widened(self, f: Fn, dtype: str, x: str, lanes: int) -> str:
        """Elements of `dtype` as the sums' type."""
        d, ops = DTYPES[dtype], Ops(f, lanes)
        return ops.cast(ops.from_memory(x, d), d, DTYPES[self.dtype])

    def vstore(self, f: Fn, value: str, ptr: str, mask: str | None = None) -> None:
        if mask is None:
            return f.store(self.v, value, ptr, self.size)
        m = f"<{self.w} x i1>"
        name = f.module.intrinsic("void", f"llvm.masked.store.{self.suffix}.p0", self.v, "ptr", "i32", m)
        f.do(f"call void {name}({self.v} {value}, ptr {ptr}, i32 {self.size}, {m} {mask})")

    def tree(self, f: Fn, x: str) -> str:
        """Sum of the lanes: halves added pairwise, a fixed tree."""
        lanes, add = self.w, "fadd" if self.float else "add"
        while lanes > 1:
            half = lanes // 2
            type_, out = vec(self.e, lanes), f"<{half} x i32>"
            pick = [", ".join(f"i32 {i}" for i in rng) for rng in (range(half), range(half, lanes))]
            lo, hi = (f.op(f"shufflevector {type_} {x}, {type_} poison, {out} <{p}>") for p in pick)
            x = f.op(f"{add} <{half} x {self.e}> {lo}, {hi}")
            lanes = half
        return f.op(f"extractelement <1 x {self.e}> {x}, i64 0")
