"""Matrix multiplication: LLVM text for one packed GEMM per dtype, made from the target description.

`C = A @ B` or `C += A @ B` over two batch dimensions with run-time sizes and arbitrary strides of A and B, so one
compiled function serves every contraction of a dtype (and is compiled once per machine: the object is cached).

* Register tiles: MR x (NW vectors) accumulators; MR x NW x lanes from the register count. Rows are spread evenly over
  panels of even height <= MR, so no more than one row of a matrix is wasted.
* A is packed to panels of h rows (a panel stays in L1), B to panels of NR columns (a block stays in L2); packing takes
  any strides.
* Convolutions and other contractions over several dims: rows, columns and k may be given by tables of offsets.
* Edges: masked loads and stores where they are free (AVX-512), else a temporary tile.
* Bits: every element is one chain of fused multiply-adds in ascending k from 0 (or from C): blocks load C back into the
  accumulators. So neither blocking nor the number of threads changes a bit. The one exception is a matrix-vector product
  with both sides contiguous in k, which adds in vector lanes (a fixed order that depends on K alone).
* Threads: each works on its own rectangle of C (or its own matrices of the batch) and packs for itself: no barrier inside.

Arguments come as an array of 64-bit words (`ARGS`), so that a caller stores constants and passes one pointer.
"""
from __future__ import annotations

import functools
from contextlib import contextmanager
from dataclasses import dataclass

from .irtext import Fn, Module, splat, vec
from .target import CpuTarget, Library, compile_text, host_target

ARGS = ("batch0", "batch1", "m", "n", "k",
        "a", "a_b0", "a_b1", "a_rs", "a_cs",
        "b", "b_b0", "b_b1", "b_rs", "b_cs",
        "c", "c_b0", "c_b1", "c_rs", "c_cs", "accumulate", "tables")
ARG_INDEX = {name: i for i, name in enumerate(ARGS)}

PREFETCH = 16      # rows of B ahead of the one being packed
LLVM_TYPE = {"f32": "float", "f64": "double", "i32": "i32", "i64": "i64"}
SIZE = {"f32": 4, "f64": 8, "i32": 4, "i64": 8}


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
    def heights(self) -> range:
        return range(2, self.mr + 1, 2)


def tiling(target: CpuTarget, dtype: str) -> Tiling:
    """Sizes that follow the register count and the caches."""
    lanes, size = target.lanes(dtype), SIZE[dtype]
    nw = 2
    mr = 14 if target.registers >= 32 else 6        # mr * nw accumulators + nw of B + 1 broadcast <= registers
    nr = nw * lanes
    kc = max(64, min(512, int(target.l1 * 0.35) // (mr * size)) // 8 * 8)
    nc = max(nr, min(1024, target.l2 // 2 // (kc * size)) // nr * nr)
    return Tiling(lanes, mr, nw, kc, 16 * mr, nc)


def scratch_bytes(target: CpuTarget, dtype: str) -> int:
    """Packing memory one thread needs (64-byte aligned)."""
    t, size = tiling(target, dtype), SIZE[dtype]
    slack = 64 * t.lanes * size + t.mr * t.nr * size
    return (t.mc + t.nc + t.mr + t.nr) * t.kc * size + 4 * slack


def symbol(dtype: str) -> str:
    return f"engram_gemm_{dtype}"


class _Gen:
    """Writes the functions of one dtype."""

    def __init__(self, target: CpuTarget, dtype: str):
        self.target, self.dtype = target, dtype
        self.t = tiling(target, dtype)
        self.m = Module(target)
        self.e, self.size = LLVM_TYPE[dtype], SIZE[dtype]
        self.w = self.t.lanes
        self.v = vec(self.e, self.w)
        self.float = dtype in ("f32", "f64")
        self.zero = "0.0" if self.float else "0"
        self.suffix = f"v{self.w}{'f' if self.float else 'i'}{self.size * 8}"

    # -------- small instructions

    def fma(self, f: Fn, a: str, b: str, c: str, type_: str | None = None) -> str:
        v = type_ or self.v
        if not self.float:
            return f.op(f"add {v} {c}, {f.op(f'mul {v} {a}, {b}')}")
        if self.target.fma:
            name = "llvm.fma." + (self.suffix if v == self.v else f"f{self.size * 8}")
            return f.op(f"call {v} {self.m.intrinsic(v, name, v, v, v)}({v} {a}, {v} {b}, {v} {c})")
        return f.op(f"fadd {v} {c}, {f.op(f'fmul {v} {a}, {b}')}")

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

    def vload(self, f: Fn, ptr: str, mask: str | None = None) -> str:
        if mask is None:
            return f.load(self.v, ptr, self.size)
        m = f"<{self.w} x i1>"
        name = self.m.intrinsic(self.v, f"llvm.masked.load.{self.suffix}.p0", "ptr", "i32", m, self.v)
        return f.op(f"call {self.v} {name}(ptr {ptr}, i32 {self.size}, {m} {mask}, {self.v} zeroinitializer)", "l")

    def vstore(self, f: Fn, value: str, ptr: str, mask: str | None = None) -> None:
        if mask is None:
            return f.store(self.v, value, ptr, self.size)
        m = f"<{self.w} x i1>"
        name = self.m.intrinsic("void", f"llvm.masked.store.{self.suffix}.p0", self.v, "ptr", "i32", m)
        f.do(f"call void {name}({self.v} {value}, ptr {ptr}, i32 {self.size}, {m} {mask})")

    def prefetch(self, f: Fn, ptr: str, level: int = 3) -> None:
        """Into L1 (3) or L2 (2)."""
        name = self.m.intrinsic("void", "llvm.prefetch.p0", "ptr", "i32", "i32", "i32")
        f.do(f"call void {name}(ptr {ptr}, i32 0, i32 {level}, i32 1)")

    # -------- the register tile

    def micro(self, h: int, nw: int, packs: bool = False) -> str:
        """C[h x nw vectors] (+)= Apanel[k][h] @ B[k][ldb]; `cols`, `rows` = what of the tile exists (masked targets).
        With `packs`, B (a whole panel, unpacked) is also written to `packed` on the way: packing hides behind arithmetic."""
        name = f"tile_{h}x{nw}" + ("_packing" if packs else "")
        f = Fn(self.m, f"internal void @{name}(i64 %k, ptr noalias %a, ptr noalias %b, i64 %ldb, ptr noalias %c, "
                       f"i64 %ldc, i64 %cols, i64 %rows, i1 %first{', ptr noalias %packed' if packs else ''})", "#2")
        masks: list[str | None] = [None] * nw
        last: list[str | None] = [None] * nw
        if self.target.masked:
            masks = [self.mask(f, f.isub("%cols", str(j * self.w))) for j in range(nw)]
            if packs:
                masks = ["splat (i1 true)"] * nw
            full = f.op(f"icmp sge i64 %rows, {h}")
            last = [f.op(f"select i1 {full}, <{self.w} x i1> {m}, <{self.w} x i1> zeroinitializer") for m in masks]
        rows = ["%c"]
        for _ in range(1, h):
            rows.append(f.gep(self.e, rows[-1], "%ldc"))

        def at(i: int, j: int) -> tuple[str, str | None]:
            return f.gep(self.e, rows[i], str(j * self.w)), (last if i == h - 1 else masks)[j]
        init, go = f.new_label("load"), f.new_label("go")
        f.branch("%first", go, init)
        f.label(init)
        loaded = [self.vload(f, *at(i, j)) for i in range(h) for j in range(nw)]
        f.jump(go)
        f.label(go)
        start = [f.op(f"phi {self.v} [ zeroinitializer, %entry ], [ {x}, %{init} ]") for x in loaded]
        # A's pointer and B's pointer advance; the accumulators stay in registers
        carried = [("ptr", "%a"), ("ptr", "%b"), *((self.v, x) for x in start)]
        ahead = f.imul("%ldb", str(PREFETCH // 2))

        def step(a: str, b: str, acc: list[str], packed: str = "") -> list[str]:
            soon = f.gep(self.e, b, ahead)                     # B's panels come from L2
            for j in range(nw):
                self.prefetch(f, f.gep(self.e, soon, str(j * self.w)))
            bs = [self.vload(f, f.gep(self.e, b, str(j * self.w)), None if packs else masks[j]) for j in range(nw)]
            for j in range(nw if packs else 0):
                self.vstore(f, bs[j], f.gep(self.e, packed, str(j * self.w)))
            out = []
            for i in range(h):
                x = self.splat(f, f.load(self.e, f.gep(self.e, a, str(i)), self.size))
                out += [self.fma(f, x, bs[j], acc[i * nw + j]) for j in range(nw)]
            return out

        with f.loop("0", "%k", carried=carried) as loop:
            a, b, *acc = loop.values
            packed = f.gep(self.e, "%packed", f.imul(loop.index, str(self.t.nr))) if packs else ""
            loop.next = [f.gep(self.e, a, str(h)), f.gep(self.e, b, "%ldb"), *step(a, b, acc, packed)]
        for i in range(h):
            for j in range(nw):
                self.vstore(f, loop.results[2 + i * nw + j], *at(i, j))
        f.finish()
        return name

    # -------- packing

    def transpose(self, f: Fn, rows: list[str]) -> list[str]:
        """lanes x lanes: small transposes within 128-bit lanes, then of the 128-bit lanes (one-uop shuffles on x86)."""
        w, unit = self.w, 16 // self.size

        def shuffle(x: str, y: str, pick: list[int]) -> str:
            return f.op(f"shufflevector {self.v} {x}, {self.v} {y}, <{w} x i32> <{', '.join(f'i32 {i}' for i in pick)}>")

        def unpack(x: str, y: str, run: int, high: bool) -> str:
            """Runs of `run` elements from the low or high half of every lane, alternately from x and y."""
            pick = []
            for lane in range(0, w, unit):
                start = lane + (unit // 2 if high else 0)
                for i in range(start, start + unit // 2, run):
                    pick += [*range(i, i + run), *range(w + i, w + i + run)]
            return shuffle(x, y, pick)

        def in_lane(r: list[str]) -> list[str]:
            if unit == 2:
                return [unpack(r[0], r[1], 1, False), unpack(r[0], r[1], 1, True)]
            t = [unpack(r[i], r[i + 1], 1, high) for i in (0, 2) for high in (False, True)]
            return [unpack(t[i], t[i + 2], 2, high) for i in (0, 1) for high in (False, True)]

        def lanes(vs: list[str]) -> list[str]:
            if len(vs) == 1:
                return vs
            out = [""] * len(vs)
            for odd in (0, 1):
                pick = [i for lane in range(odd, 2 * w // unit, 2) for i in range(lane * unit, lane * unit + unit)]
                out[odd::2] = lanes([shuffle(vs[i], vs[i + 1], pick) for i in range(0, len(vs), 2)])
            return out
        groups = [in_lane(rows[q:q + unit]) for q in range(0, w, unit)]
        out = [""] * w
        for i in range(unit):
            out[i::unit] = lanes([g[i] for g in groups])
        return out

    def pack(self, name: str, parts: int) -> None:
        """dst[k * h + i] = src[i * si + k * sk] for i < valid (what lies above is anything), k < kc. Whole vectors are
        stored in ascending k, each overwriting what the one before wrote beyond its h elements."""
        f = Fn(self.m, f"internal void @{name}(ptr noalias %dst, ptr noalias %src, i64 %si, i64 %sk, i64 %h, "
                       "i64 %valid, i64 %kc)", "#2")
        w, e = self.w, self.e
        unit_i, unit_k, other = f.new_label("unit_i"), f.new_label("unit_k"), f.new_label("other")
        test, out = f.new_label("test"), f.new_label("out")
        masked = self.target.masked
        ok_i = f.op("icmp eq i64 %si, 1")
        if not masked:     # whole vectors may be read only where all lanes exist
            ok_i = f.both(ok_i, f.icmp("sge", "%valid", str(parts * w)))
        f.branch(ok_i, unit_i, test)

        f.label(unit_i)
        masks = [self.mask(f, f.isub("%valid", str(p * w))) if masked else None for p in range(parts)]
        with f.loop("0", "%kc") as loop:
            src = f.gep(e, "%src", f.imul(loop.index, "%sk"))
            dst = f.gep(e, "%dst", f.imul(loop.index, "%h"))
            ahead = f.gep(e, src, f.imul("%sk", str(PREFETCH)))
            for p in range(parts):
                self.prefetch(f, f.gep(e, ahead, str(p * w)), 2)
                self.vstore(f, self.vload(f, f.gep(e, src, str(p * w)), masks[p]), f.gep(e, dst, str(p * w)))
        f.jump(out)

        f.label(test)
        f.branch(f.op("icmp eq i64 %sk, 1"), unit_k, other)
        f.label(unit_k)
        top = f.isub("%valid", "1")
        bases = [f.gep(e, "%src", f.imul(f.imin(str(i), top), "%si")) for i in range(parts * w)]
        whole = "%kc" if masked else f.op(f"and i64 %kc, -{w}")
        with f.loop("0", whole, str(w)) as loop:
            m = self.mask(f, f.isub("%kc", loop.index)) if masked else None
            ahead = f.iadd(loop.index, f.imul("%si", "%h"))           # the next panel
            for i in range(parts * w):
                self.prefetch(f, f.gep(e, bases[i], ahead), 2)
            cols = [self.transpose(f, [self.vload(f, f.gep(e, bases[p * w + i], loop.index), m) for i in range(w)])
                    for p in range(parts)]
            for k in range(w):
                dst = f.gep(e, "%dst", f.imul(f.iadd(loop.index, str(k)), "%h"))
                for p in range(parts):
                    self.vstore(f, cols[p][k], f.gep(e, dst, str(p * w)))
        if masked:
            f.jump(out)
            from_k, before = "0", test
        else:
            before = f.block
            f.jump(other)
            from_k = whole
        f.label(other)
        first = f.op(f"phi i64 [ 0, %{test} ]" + ("" if masked else f", [ {from_k}, %{before} ]"))
        with f.loop(first, "%kc") as loop:
            src = f.gep(e, "%src", f.imul(loop.index, "%sk"))
            dst = f.gep(e, "%dst", f.imul(loop.index, "%h"))
            with f.loop("0", f.imin("%valid", "%h")) as inner:
                value = f.load(e, f.gep(e, src, f.imul(inner.index, "%si")), self.size)
                f.store(e, value, f.gep(e, dst, inner.index), self.size)
            with f.loop(f.imin("%valid", "%h"), "%h") as inner:
                f.store(e, self.zero, f.gep(e, dst, inner.index), self.size)
        f.jump(out)
        f.label(out)
        f.finish()

    def run_length(self, f: Fn, table: str, start: str, limit: str) -> str:
        """How many entries from `start` on (at most `limit`, at least 1) follow one another by 1."""
        first = f.load("i32", f.gep("i32", table, start), 4)
        head, more, out = f.new_label("scan"), f.new_label("more"), f.new_label("run")
        before = f.block
        f.jump(head)
        f.label(head)
        n, after = f.name("n"), f.name("n")
        f.lines.append(f"  {n} = phi i64 [ 1, %{before} ], [ {after}, %{more} ]")
        inside = f.icmp("slt", n, limit)
        probe = f.op(f"select i1 {inside}, i64 {n}, i64 0")
        value = f.load("i32", f.gep("i32", table, f.iadd(start, probe)), 4)
        want = f.op(f"add i32 {first}, {f.op(f'trunc i64 {n} to i32')}")
        goes_on = f.both(inside, f.op(f"icmp eq i32 {value}, {want}"))
        f.branch(goes_on, more, out)
        f.label(more)
        f.lines.append(f"  {after} = add i64 {n}, 1")
        f.jump(head)
        f.label(out)
        return n

    def pack_tables(self, name: str, parts: int) -> None:
        """dst[k * h + i] = src[it[i] + kt[k]]: by runs of neighbouring i, or transposing runs of neighbouring k."""
        f = Fn(self.m, f"internal void @{name}(ptr noalias %dst, ptr noalias %src, ptr %it, ptr %kt, i64 %h, i64 %most, i64 %kc)", "#2")
        w, e = self.w, self.e
        valid = f.imin("%most", "%h")

        def offset(table: str, index: str) -> str:
            return f.op(f"sext i32 {f.load('i32', f.gep('i32', table, index), 4)} to i64")

        @contextmanager
        def runs(table: str, total: str, limit: str):
            """for each run: (start, length)."""
            head, body, out = f.new_label("runs"), f.new_label("run"), f.new_label("end")
            before = f.block
            f.jump(head)
            f.label(head)
            at = f.name("at")
            place = len(f.lines)
            f.branch(f.icmp("slt", at, total), body, out)
            f.label(body)
            length = self.run_length(f, table, at, f.imin(f.isub(total, at), limit))
            yield at, length
            after = f.iadd(at, length)
            f.lines[place:place] = [f"  {at} = phi i64 [ 0, %{before} ], [ {after}, %{f.block} ]"]
            f.jump(head)
            f.label(out)
        by_i, by_k, done = f.new_label("by_i"), f.new_label("by_k"), f.new_label("done")
        run_i = self.run_length(f, "%it", "0", valid)
        run_k = self.run_length(f, "%kt", "0", f.imin("%kc", str(w)))
        if not self.target.masked:
            f.jump(by_i)
        else:
            f.branch(f.either(f.icmp("sge", run_i, "8"), f.icmp("sge", run_i, run_k)), by_i, by_k)
        f.label(by_i)
        with runs("%it", valid, str(parts * w)) as (at, length):
            base = f.gep(e, "%src", offset("%it", at))
            masks = [self.mask(f, f.isub(length, str(p * w))) for p in range(parts)] if self.target.masked else []
            with f.loop("0", "%kc") as k:
                src = f.gep(e, base, offset("%kt", k.index))
                dst = f.gep(e, "%dst", f.iadd(f.imul(k.index, "%h"), at))
                for p, mask in enumerate(masks):
                    self.vstore(f, self.vload(f, f.gep(e, src, str(p * w)), mask), f.gep(e, dst, str(p * w)), mask)
                if not masks:
                    with f.loop("0", length) as i:
                        f.store(e, f.load(e, f.gep(e, src, i.index), self.size), f.gep(e, dst, i.index), self.size)
        f.jump(done)
        f.label(by_k)
        if self.target.masked:
            top = f.isub(valid, "1")
            bases = [f.gep(e, "%src", offset("%it", f.imin(str(i), top))) for i in range(parts * w)]
            with runs("%kt", "%kc", str(w)) as (at, length):
                shift = offset("%kt", at)
                mask = self.mask(f, length)
                cols = [self.transpose(f, [self.vload(f, f.gep(e, bases[p * w + i], shift), mask) for i in range(w)])
                        for p in range(parts)]
                for k in range(w):                            # rows beyond the run are overwritten by the next one
                    dst = f.gep(e, "%dst", f.imul(f.iadd(at, str(k)), "%h"))
                    for p in range(parts):
                        self.vstore(f, cols[p][k], f.gep(e, dst, str(p * w)))
        f.jump(done)
        f.label(done)
        f.finish()

    def whole_panels(self, f: Fn, n: str) -> str:
        return f.imul(f.udiv(n, str(self.t.nr)), str(self.t.nr))

    # -------- one matrix, one thread

    def packing_heights(self) -> list[int]:
        """Heights of the panels of a matrix that is tall enough for packing B (see `few` in `single`)."""
        return [self.t.mr - 2, self.t.mr]

    def packing_tile(self, f: Fn, height: str, args: str) -> None:
        """The first tile of a column of tiles: packs its panel of B."""
        done = f.new_label("packed")
        labels = {h: f.new_label("packing") for h in self.packing_heights()}
        f.do(f"switch i64 {height}, label %{done} [ {' '.join(f'i64 {h}, label %{x}' for h, x in labels.items())} ]")
        for h, label in labels.items():
            f.label(label)
            f.do(f"call void @tile_{h}x{self.t.nw}_packing({args})")
            f.jump(done)
        f.label(done)

    def call_tile(self, f: Fn, k: str, a: str, b: str, ldb: str, c: str, ldc: str, cols: str, rows: str, first: str,
                  height: str) -> None:
        """Pick the register tile for this height and width."""
        done = f.new_label("tiled")
        narrow = f.icmp("sle", cols, str(self.w))
        key = f.iadd(f.op(f"mul i64 {height}, 2"), f.op(f"zext i1 {narrow} to i64"))
        labels = {(h, nw): f.new_label("tile") for h in self.t.heights for nw in (1, self.t.nw)}
        cases = " ".join(f"i64 {h * 2 + (nw == 1)}, label %{lab}" for (h, nw), lab in labels.items())
        f.do(f"switch i64 {key}, label %{done} [ {cases} ]")
        for (h, nw), lab in labels.items():
            f.label(lab)
            f.do(f"call void @tile_{h}x{nw}(i64 {k}, ptr {a}, ptr {b}, i64 {ldb}, ptr {c}, i64 {ldc}, i64 {cols}, "
                 f"i64 {rows}, i1 {first})")
            f.jump(done)
        f.label(done)

    def any_tile(self, f: Fn, temporary: str, *args: str) -> None:
        if self.target.masked:
            self.call_tile(f, *args)
        else:
            self.edge_tile(f, temporary, *args)

    def edge_tile(self, f: Fn, temporary: str, k: str, a: str, b: str, ldb: str, c: str, ldc: str, cols: str,
                  rows: str, first: str, height: str) -> None:
        """Targets without cheap masks: a tile that sticks out is computed in a temporary one."""
        nr = self.t.nr
        part = f.either(f.icmp("slt", cols, str(nr)), f.icmp("slt", rows, height))
        edge, whole, done = f.new_label("edge"), f.new_label("whole"), f.new_label("done")
        f.branch(part, edge, whole)
        f.label(whole)
        self.call_tile(f, k, a, b, ldb, c, ldc, str(nr), rows, first, height)
        f.jump(done)
        f.label(edge)

        def copy(src: str, lds: str, dst: str, ldd: str) -> None:
            with f.loop("0", rows) as i, f.loop("0", cols) as j:
                value = f.load(self.e, f.gep(self.e, src, f.iadd(f.imul(i.index, lds), j.index)), self.size)
                f.store(self.e, value, f.gep(self.e, dst, f.iadd(f.imul(i.index, ldd), j.index)), self.size)
        with f.when(f.op(f"xor i1 {first}, true")):
            copy(c, ldc, temporary, str(nr))
        self.call_tile(f, k, a, b, ldb, temporary, str(nr), str(nr), rows, first, height)
        copy(temporary, str(nr), c, ldc)
        f.jump(done)
        f.label(done)

    def single(self, tables: bool = False) -> None:
        """C[m x n] (+)= A @ B for one thread: the blocked loops. C has unit column stride. With `tables`, the strides of
        A and B are pointers to i32 element offsets per row and per k."""
        t, e = self.t, self.e
        kind = "ptr" if tables else "i64"
        f = Fn(self.m, f"internal void @single{'_tables' if tables else ''}(ptr %scratch, i64 %m, i64 %n, i64 %k, ptr %a, "
                       f"{kind} %ars, {kind} %acs, ptr %b, {kind} %brs, {kind} %bcs, ptr %c, i64 %ldc, i1 %overwrite)", "#2")
        packed_a = "%scratch"
        slack = 64 * t.lanes
        packed_b = f.gep(e, "%scratch", str((t.mc + t.mr) * t.kc + slack))
        temporary = f.alloca(f"[{t.mr * t.nr} x {e}]") if not self.target.masked else ""
        blocks = f.udiv(f.iadd("%k", str(t.kc - 1)), str(t.kc))
        blocks = f.op(f"call i64 {self.m.intrinsic('i64', 'llvm.smax.i64', 'i64', 'i64')}(i64 {blocks}, i64 1)")
        kc = f.udiv(f.iadd("%k", f.isub(blocks, "1")), blocks)        # even blocks: no short last one
        # B that few rows use and that already lies contiguous is read where it is
        few = f.icmp("sle", "%m", str(5 * t.mr))
        direct, unit_b = "false", "false"
        if not tables:
            unit_b = f.icmp("eq", "%bcs", "1")
            direct = f.both(few, unit_b)
            if not self.target.masked:
                direct = f.both(direct, f.icmp("eq", f.urem("%n", str(t.nr)), "0"))
        step = f.op(f"call i64 {self.m.intrinsic('i64', 'llvm.smax.i64', 'i64', 'i64')}(i64 {kc}, i64 1)")
        with f.loop("0", "%n", str(t.nc)) as jc:
            n_here = f.imin(str(t.nc), f.isub("%n", jc.index))
            # k == 0 still has to clear C: one turn with an empty block
            with f.loop("0", f.op("call i64 @llvm.smax.i64(i64 %k, i64 1)"), step) as pc:
                k_here = f.imin(kc, f.isub("%k", pc.index))
                first = f.both("%overwrite", f.icmp("eq", pc.index, "0"))
                b_block = "%b" if tables else f.gep(e, "%b", f.iadd(f.imul(pc.index, "%brs"), f.imul(jc.index, "%bcs")))
                # whole panels that lie row by row are packed by the first tiles that use them
                late = f.both(f.op(f"xor i1 {few}, true"), unit_b)
                unpacked = f.op(f"select i1 {late}, i64 {self.whole_panels(f, n_here)}, i64 0")
                with f.when(f.op(f"xor i1 {direct}, true")):
                    with f.loop(unpacked, n_here, str(t.nr)) as j:
                        if tables:
                            src = (f"ptr %b, ptr {f.gep('i32', '%bcs', f.iadd(jc.index, j.index))}, "
                                   f"ptr {f.gep('i32', '%brs', pc.index)}")
                        else:
                            src = f"ptr {f.gep(e, b_block, f.imul(j.index, '%bcs'))}, i64 %bcs, i64 %brs"
                        f.do(f"call void @pack_b{'_tables' if tables else ''}(ptr {f.gep(e, packed_b, f.imul(j.index, k_here))}, "
                             f"{src}, i64 {t.nr}, i64 {f.isub(n_here, j.index)}, i64 {k_here})")
                with f.loop("0", "%m", str(t.mc)) as ic:
                    m_here = f.imin(str(t.mc), f.isub("%m", ic.index))
                    pairs = f.udiv(f.iadd(m_here, "1"), "2")
                    panels = f.udiv(f.iadd(pairs, str(t.mr // 2 - 1)), str(t.mr // 2))
                    a_block = "%a" if tables else f.gep(e, "%a", f.iadd(f.imul(ic.index, "%ars"), f.imul(pc.index, "%acs")))
                    c_block = f.gep(e, "%c", f.iadd(f.imul(ic.index, "%ldc"), jc.index))

                    def panel(index: str) -> tuple[str, str, str]:
                        row = f.imul("2", f.udiv(f.imul(index, pairs), panels))
                        end = f.imul("2", f.udiv(f.imul(f.iadd(index, "1"), pairs), panels))
                        return row, f.isub(end, row), f.isub(m_here, row)
                    with f.loop("0", panels) as p:
                        row, height, valid = panel(p.index)
                        if tables:
                            src = (f"ptr %a, ptr {f.gep('i32', '%ars', f.iadd(ic.index, row))}, "
                                   f"ptr {f.gep('i32', '%acs', pc.index)}")
                        else:
                            src = f"ptr {f.gep(e, a_block, f.imul(row, '%ars'))}, i64 %ars, i64 %acs"
                        f.do(f"call void @pack_a{'_tables' if tables else ''}(ptr {f.gep(e, packed_a, f.imul(row, k_here))}, "
                             f"{src}, i64 {height}, i64 {f.imin(valid, height)}, i64 {k_here})")
                    # A's panel stays in L1 and B's come from L2, so C is walked along its rows: down its columns, a
                    # power-of-two row length would put every tile into the same few cache sets
                    with f.loop("0", panels) as p:
                        row, height, valid = panel(p.index)
                        a_panel = f.gep(e, packed_a, f.imul(row, k_here))
                        c_panel = f.gep(e, c_block, f.imul(row, "%ldc"))
                        with f.loop("0", n_here, str(t.nr)) as j:
                            cols = f.imin(str(t.nr), f.isub(n_here, j.index))
                            packed = f.gep(e, packed_b, f.imul(j.index, k_here))
                            c_tile = f.gep(e, c_panel, j.index)
                            rows = f.imin(valid, height)
                            if tables:
                                self.any_tile(f, temporary, k_here, a_panel, packed, str(t.nr), c_tile, "%ldc", cols, rows,
                                              first, height)
                            else:
                                self.first_or_any_tile(f, temporary, b_block, direct, unpacked, j.index, f.iadd(ic.index, p.index),
                                                       packed, k_here, a_panel, c_tile, cols, rows, first, height)
        f.finish()

    def first_or_any_tile(self, f, temporary, b_block, direct, unpacked, j, row, packed, k, a_panel, c_tile, cols, rows, first,
                          height) -> None:
        """A tile of the plain kind: the first row of tiles finds B unpacked and packs it."""
        e, t = self.e, self.t
        here = f.gep(e, b_block, j)
        packs, plain, done = f.new_label("packs"), f.new_label("plain"), f.new_label("tile.done")
        f.branch(f.both(f.icmp("eq", row, "0"), f.icmp("slt", j, unpacked)), packs, plain)
        f.label(packs)
        self.packing_tile(f, height, f"i64 {k}, ptr {a_panel}, ptr {here}, i64 %brs, ptr {c_tile}, i64 %ldc, i64 {cols}, "
                          f"i64 {rows}, i1 {first}, ptr {packed}")
        f.jump(done)
        f.label(plain)
        b_panel = f.op(f"select i1 {direct}, ptr {here}, ptr {packed}")
        ldb = f.op(f"select i1 {direct}, i64 %brs, i64 {t.nr}")
        self.any_tile(f, temporary, k, a_panel, b_panel, ldb, c_tile, "%ldc", cols, rows, first, height)
        f.jump(done)
        f.label(done)

    # -------- matrix-vector

    def stream(self, m: int) -> None:
        """m <= 2 rows, B contiguous along n: rows of B are read in order, C's row stays in L1. Columns n0..n1."""
        depth = 8 // m
        e, w = self.e, self.w
        f = Fn(self.m, f"internal void @stream{m}(i64 %n0, i64 %n1, i64 %k, ptr %a, i64 %ars, i64 %acs, ptr %b, "
                       "i64 %brs, ptr %c, i64 %ldc, i1 %overwrite)", "#2")
        with f.when("%overwrite"), f.loop("%n0", "%n1") as j:
            for i in range(m):
                f.store(e, self.zero, f.gep(e, "%c", f.iadd(f.imul("%ldc", str(i)), j.index)), self.size)

        def rows(k: str, count: int, j0: str, j1: str) -> None:
            xs = [[f.load(e, f.gep(e, "%a", f.iadd(f.imul("%ars", str(i)), f.imul(f.iadd(k, str(d)), "%acs"))),
                          self.size) for d in range(count)] for i in range(m)]
            vs = [[self.splat(f, x) for x in row] for row in xs]
            bs = [f.gep(e, "%b", f.imul(f.iadd(k, str(d)), "%brs")) for d in range(count)]
            whole = f.iadd(j0, f.op(f"and i64 {f.isub(j1, j0)}, -{w}"))
            with f.loop(j0, whole, str(w)) as j:
                acc = [self.vload(f, f.gep(e, "%c", f.iadd(f.imul("%ldc", str(i)), j.index))) for i in range(m)]
                for d in range(count):
                    line = self.vload(f, f.gep(e, bs[d], j.index))
                    acc = [self.fma(f, vs[i][d], line, acc[i]) for i in range(m)]
                for i in range(m):
                    self.vstore(f, acc[i], f.gep(e, "%c", f.iadd(f.imul("%ldc", str(i)), j.index)))
            with f.loop(whole, j1) as j:
                for i in range(m):
                    at = f.gep(e, "%c", f.iadd(f.imul("%ldc", str(i)), j.index))
                    acc1 = f.load(e, at, self.size)
                    for d in range(count):
                        acc1 = self.fma(f, xs[i][d], f.load(e, f.gep(e, bs[d], j.index), self.size), acc1, e)
                    f.store(e, acc1, at, self.size)
        with f.loop("%n0", "%n1", "4096") as chunk:
            stop = f.imin(f.iadd(chunk.index, "4096"), "%n1")
            deep = f.imul(f.udiv("%k", str(depth)), str(depth))
            with f.loop("0", deep, str(depth)) as k:
                rows(k.index, depth, chunk.index, stop)
            with f.loop(deep, "%k") as k:
                rows(k.index, 1, chunk.index, stop)
        f.finish()

    def dots(self) -> None:
        """One row, A and B contiguous along k: dot products, eight lanes-wide sums in flight. Columns n0..n1."""
        e, w, v = self.e, self.w, self.v
        f = Fn(self.m, "internal void @dots(i64 %n0, i64 %n1, i64 %k, ptr %a, ptr %b, i64 %bcs, ptr %c, "
                       "i1 %overwrite)", "#2")
        whole = f.op(f"and i64 %k, -{2 * w}")

        def columns(j: str, count: int) -> None:
            bs = [f.gep(e, "%b", f.imul(f.iadd(j, str(d)), "%bcs")) for d in range(count)]
            zero = "zeroinitializer"
            with f.loop("0", whole, str(2 * w), carried=[(v, zero)] * (2 * count)) as k:
                out = []
                for half in range(2):
                    at = f.iadd(k.index, str(half * w))
                    x = self.vload(f, f.gep(e, "%a", at))
                    out += [self.fma(f, x, self.vload(f, f.gep(e, bs[d], at)), k.values[half * count + d])
                            for d in range(count)]
                k.next = out
            add = "fadd" if self.float else "add"
            sums = [self.tree(f, f.op(f"{add} {v} {k.results[d]}, {k.results[count + d]}")) for d in range(count)]
            with f.loop(whole, "%k", carried=[(e, s) for s in sums]) as tail:
                x = f.load(e, f.gep(e, "%a", tail.index), self.size)
                tail.next = [self.fma(f, x, f.load(e, f.gep(e, bs[d], tail.index), self.size), tail.values[d], e)
                             for d in range(count)]
            for d in range(count):
                at = f.gep(e, "%c", f.iadd(j, str(d)))
                old = self.old(f, at)
                f.store(e, f.op(f"{add} {e} {old}, {tail.results[d]}"), at, self.size)
        four = f.iadd("%n0", f.op(f"and i64 {f.isub('%n1', '%n0')}, -4"))
        with f.loop("%n0", four, "4") as j:
            columns(j.index, 4)
        with f.loop(four, "%n1") as j:
            columns(j.index, 1)
        f.finish()

    def old(self, f: Fn, at: str) -> str:
        """C's old value, or 0 (without reading it: it may be anything) when it is overwritten."""
        read, done = f.new_label("read"), f.new_label("have")
        before = f.block
        f.branch("%overwrite", done, read)
        f.label(read)
        value = f.load(self.e, at, self.size)
        f.jump(done)
        f.label(done)
        return f.op(f"phi {self.e} [ {self.zero}, %{before} ], [ {value}, %{read} ]")

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

    # -------- the entry point

    def entry(self) -> None:
        """Reads the arguments, picks the path and this thread's share."""
        t, e = self.t, self.e
        f = Fn(self.m, f"void @{symbol(self.dtype)}(i64 %tid, i64 %threads, ptr %scratch, ptr %args)")
        raw = {name: f.load("i64", f.gep("i64", "%args", str(i)), 8) for name, i in ARG_INDEX.items()}
        overwrite = f.op(f"icmp eq i64 {raw['accumulate']}, 0")
        # C must have unit column stride: otherwise compute its transpose. A column vector becomes a row vector.
        one_col = f.both(f.icmp("eq", raw["n"], "1"), f.icmp("eq", raw["c_rs"], "1"))
        swap = f.both(f.either(f.icmp("ne", raw["c_cs"], "1"), one_col), f.icmp("eq", raw["tables"], "0"))
        pairs = [("m", "n"), ("a", "b"), ("a_b0", "b_b0"), ("a_b1", "b_b1"), ("a_rs", "b_cs"), ("a_cs", "b_rs"),
                 ("c_rs", "c_cs")]
        g = dict(raw)
        for x, y in pairs:
            g[x] = f.op(f"select i1 {swap}, i64 {raw[y]}, i64 {raw[x]}")
            g[y] = f.op(f"select i1 {swap}, i64 {raw[x]}, i64 {raw[y]}")
        batch = f.imul(g["batch0"], g["batch1"])
        # Threads take whole matrices when there are enough of them, else share each matrix
        rest = f.urem(batch, "%threads")
        even = f.both(f.icmp("eq", rest, "0"), f.icmp("sge", batch, "%threads"))
        many = f.icmp("sge", batch, f.imul("%threads", "4"))
        by_batch = f.either(even, many)
        b_lo = f.udiv(f.imul("%tid", batch), "%threads")
        b_hi = f.udiv(f.imul(f.iadd("%tid", "1"), batch), "%threads")
        b_lo = f.op(f"select i1 {by_batch}, i64 {b_lo}, i64 0")
        b_hi = f.op(f"select i1 {by_batch}, i64 {b_hi}, i64 {batch}")
        team = f.op(f"select i1 {by_batch}, i64 1, i64 %threads")
        rank = f.op(f"select i1 {by_batch}, i64 0, i64 %tid")
        tm, tn = self.grid(f, g["m"], g["n"], g["k"], team)
        rank_m, rank_n = f.udiv(rank, tn), f.urem(rank, tn)
        m0, m1 = self.share(f, g["m"], rank_m, tm, 2)
        n0, n1 = self.share(f, g["n"], rank_n, tn, t.nr)
        # matrix-vector shapes split along n only
        v0, v1 = self.share(f, g["n"], rank, team, 2 * t.lanes)
        tables = f.icmp("ne", raw["tables"], "0")
        few = f.icmp("sle", g["m"], "2")
        single = f.icmp("sle", g["m"], "1")
        is_stream = f.both(few, f.icmp("eq", g["b_cs"], "1"))
        k_unit = f.both(f.icmp("eq", g["a_cs"], "1"), f.icmp("eq", g["b_rs"], "1"))
        is_dots = f.both(single, k_unit)
        with f.loop(b_lo, b_hi) as b:
            i0, i1 = f.udiv(b.index, g["batch1"]), f.urem(b.index, g["batch1"])

            def base(x: str) -> str:
                off = f.iadd(f.imul(i0, g[f"{x}_b0"]), f.imul(i1, g[f"{x}_b1"]))
                return f.gep(e, f.op(f"inttoptr i64 {g[x]} to ptr"), off)
            pa, pb, pc = base("a"), base("b"), base("c")
            labels = {x: f.new_label(x) for x in ("stream1", "stream2", "trydots", "dots", "tiles", "tables", "plain", "done")}
            pick = f.new_label("pick")
            f.branch(tables, labels["tables"], labels["plain"])
            f.label(labels["tables"])
            at = [f.op(f"inttoptr i64 {raw[x]} to ptr") for x in ("a_rs", "a_cs", "b_rs", "b_cs")]
            c_here = f.gep(e, pc, f.iadd(f.imul(m0, raw["c_rs"]), n0))
            f.do(f"call void @single_tables(ptr %scratch, i64 {f.isub(m1, m0)}, i64 {f.isub(n1, n0)}, i64 {raw['k']}, ptr {pa}, "
                 f"ptr {f.gep('i32', at[0], m0)}, ptr {at[1]}, ptr {pb}, ptr {at[2]}, ptr {f.gep('i32', at[3], n0)}, "
                 f"ptr {c_here}, i64 {raw['c_rs']}, i1 {overwrite})")
            f.jump(labels["done"])
            f.label(labels["plain"])
            f.branch(is_stream, pick, labels["trydots"])
            f.label(pick)
            f.branch(single, labels["stream1"], labels["stream2"])
            for m in (1, 2):
                f.label(labels[f"stream{m}"])
                f.do(f"call void @stream{m}(i64 {v0}, i64 {v1}, i64 {g['k']}, ptr {pa}, i64 {g['a_rs']}, "
                     f"i64 {g['a_cs']}, ptr {pb}, i64 {g['b_rs']}, ptr {pc}, i64 {g['c_rs']}, i1 {overwrite})")
                f.jump(labels["done"])
            f.label(labels["trydots"])
            f.branch(is_dots, labels["dots"], labels["tiles"])
            f.label(labels["dots"])
            f.do(f"call void @dots(i64 {v0}, i64 {v1}, i64 {g['k']}, ptr {pa}, ptr {pb}, i64 {g['b_cs']}, ptr {pc}, "
                 f"i1 {overwrite})")
            f.jump(labels["done"])
            f.label(labels["tiles"])
            a_at = f.gep(e, pa, f.imul(m0, g["a_rs"]))
            b_at = f.gep(e, pb, f.imul(n0, g["b_cs"]))
            c_at = f.gep(e, pc, f.iadd(f.imul(m0, g["c_rs"]), n0))
            f.do(f"call void @single(ptr %scratch, i64 {f.isub(m1, m0)}, i64 {f.isub(n1, n0)}, i64 {g['k']}, "
                 f"ptr {a_at}, i64 {g['a_rs']}, i64 {g['a_cs']}, ptr {b_at}, i64 {g['b_rs']}, i64 {g['b_cs']}, "
                 f"ptr {c_at}, i64 {g['c_rs']}, i1 {overwrite})")
            f.jump(labels["done"])
            f.label(labels["done"])
        f.finish()

    def share(self, f: Fn, total: str, rank: str, team: str, unit: int) -> tuple[str, str]:
        """The rank-th of `team` contiguous shares of 0..total, cut at multiples of `unit`."""
        units = f.udiv(f.iadd(total, str(unit - 1)), str(unit))
        lo = f.imul(f.udiv(f.imul(rank, units), team), str(unit))
        hi = f.imul(f.udiv(f.imul(f.iadd(rank, "1"), units), team), str(unit))
        return f.imin(lo, total), f.imin(hi, total)

    def grid(self, f: Fn, m: str, n: str, k: str, team: str) -> tuple[str, str]:
        """team = tm x tn, such that a thread's work (its tiles and what it packs) is least."""
        t = self.t
        mp = f.udiv(f.iadd(m, "1"), "2")
        np_ = f.udiv(f.iadd(n, str(t.nr - 1)), str(t.nr))
        big = str(1 << 62)
        with f.loop("1", f.iadd(team, "1"), carried=[("i64", big), ("i64", "1")]) as tm:
            rest = f.urem(team, tm.index)
            tn = f.udiv(team, tm.index)
            rows = f.udiv(f.iadd(mp, f.isub(tm.index, "1")), tm.index)       # pairs of rows
            cols = f.udiv(f.iadd(np_, f.isub(tn, "1")), tn)                  # panels
            # per k: a pair of rows x a panel is 2 * nw FMAs = 2 cycles; packing a panel ~ 8, a pair of rows ~ 1
            cost = f.iadd(f.imul(f.imul(rows, cols), "2"), f.iadd(f.imul(cols, "8"), rows))
            better = f.both(f.icmp("eq", rest, "0"), f.icmp("slt", cost, tm.values[0]))
            tm.next = [f.op(f"select i1 {better}, i64 {cost}, i64 {tm.values[0]}"),
                       f.op(f"select i1 {better}, i64 {tm.index}, i64 {tm.values[1]}")]
        best = tm.results[1]
        return best, f.udiv(team, best)

    def text(self) -> str:
        for h in self.t.heights:
            for nw in sorted({1, self.t.nw}):
                self.micro(h, nw)
        for h in self.packing_heights():
            self.micro(h, self.t.nw, packs=True)
        self.pack("pack_a", -(-self.t.mr // self.w))
        self.pack("pack_b", self.t.nw)
        self.pack_tables("pack_a_tables", -(-self.t.mr // self.w))
        self.pack_tables("pack_b_tables", self.t.nw)
        self.single()
        self.single(tables=True)
        self.stream(1)
        self.stream(2)
        self.dots()
        self.entry()
        return self.m.text()


@functools.cache
def gemm_text(target: CpuTarget, dtype: str) -> str:
    """LLVM text of the module that defines `engram_gemm_<dtype>(tid, threads, scratch, args)`."""
    return _Gen(target, dtype).text()


@functools.cache
def _library(target: CpuTarget, dtype: str) -> Library:
    return Library([compile_text(gemm_text(target, dtype), target)], [symbol(dtype)], target=target)


def gemm_address(dtype: str, target: CpuTarget | None = None) -> int:
    """The compiled GEMM of a dtype; loaded once per process."""
    return _library(target or host_target(), dtype).address(symbol(dtype))


__all__ = ["ARGS", "ARG_INDEX", "Tiling", "gemm_address", "gemm_text", "scratch_bytes", "splat", "symbol", "tiling"]
