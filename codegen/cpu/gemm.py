"""Matrix multiplication: LLVM text for one packed GEMM per dtype, made from the target description.

`C = A @ B` or `C += A @ B` over two batch dimensions with run-time sizes and arbitrary strides of A and B, so one
compiled function serves every contraction of a dtype (and is compiled once per machine: the object is cached). The code for one
or two rows is a function of its own (a kind with `FEW`), which only programs with such products load.

* Register tiles: MR x (NW vectors) accumulators; MR x NW x lanes from the register count. Rows are spread evenly over
  panels of even height <= MR, so no more than one row of a matrix is wasted.
* A is packed to panels of h rows (a panel stays in L1), B to panels of NR columns (a block stays in L2); packing takes
  any strides. B is packed by the first row of tiles that uses it, whose arithmetic goes on while the next panel comes from memory;
  the other rows of tiles bring the next block meanwhile (m <= mc, where the first row is a large part of all).
* An A that lies along k under few columns (`few_columns`) is read where it is, 14 rows at a time: packing it would take up to a fifth of the time.
  Its next rows come from L3 while the last tile of a panel is multiplied. x86 with masks only; not where all rows would share a set of L1.
* Products of bf16 on targets that multiply pairs (`CpuTarget.bf16_dot`): packed panels hold pairs of neighbouring k's as 32-bit words. Such
  an instruction takes subnormal numbers for 0 and rounds after each pair; other targets widen to f32 while packing.
* Convolutions and other contractions over several dims: rows, columns and k may be given by tables of offsets.
* Edges: masked loads and stores where they are free (AVX-512), else a temporary tile.
* Bits: every element is one chain of fused multiply-adds in ascending k from 0 (or from C): blocks load C back into the
  accumulators. So neither blocking nor the number of threads changes a bit. The one exception is a matrix-vector product
  with both sides contiguous in k, which adds in vector lanes (a fixed order that depends on K alone).
* Epilogue: a function (`epilogue`, with its `env`) that is called for every panel of rows of C when its last block of k is
  done and it is still in the cache; with `discard` the sums are needed by it alone and stay with the thread where they can. What it
  reads beside C (`streams`: how many, then pointer and elements from row to row of each) comes from memory while the panel's tiles are multiplied.
* Threads: each works on its own rectangle of C (or its own matrices of the batch) and packs for itself: no barrier inside.

Arguments come as an array of 64-bit words (`ARGS`), so that a caller stores constants and passes one pointer.
"""
from __future__ import annotations

import functools
import threading
from concurrent.futures import Future

from .compile import Library, finish, submit
from .gemm_base import ARG_INDEX, ARGS, CHUNK, FEW, SETS_BYTES, Tiling, scratch_bytes, symbol, tiling
from .gemm_few import FewRows
from .gemm_pack import Pack
from .gemm_tile import RowsOfA, Tile, Tiles, Walk, WalkSlot
from .irtext import Fn
from .target import CpuTarget, host_target


class _Gen(Pack, Tiles, FewRows):
    """Writes the functions of one dtype."""

    def packed_panel(self, f: Fn, packed_b: str, j: str, k: str, once: str) -> str:
        """Where the panel of B from column j on is packed: always in the same place where no other row of tiles will read it, or where B is
        read where it lies and only the ragged last one is packed."""
        return f.gep(self.e, packed_b, f.op(f"select i1 {once}, i64 0, i64 {f.imul(j, k)}"))

    def single(self, tables: bool = False) -> None:
        """C[m x n] (+)= A @ B for one thread: the blocked loops. C has unit column stride. With `tables`, the strides of
        A and B are pointers to i32 element offsets per row and per k."""
        t, e = self.t, self.e
        kind = "ptr" if tables else "i64"
        f = Fn(self.m, f"internal void @single{'_tables' if tables else ''}(ptr %scratch, i64 %m, i64 %n, i64 %k, ptr %a, "
                       f"{kind} %ars, {kind} %acs, ptr %b, {kind} %brs, {kind} %bcs, ptr %c, i64 %ldc, i1 %overwrite, ptr %epi, ptr %env, i64 %b0, i64 %b1, i64 %row0, "
                       "i64 %col0, i1 %discard, ptr %streams)", "#2")
        slack = 64 * t.lanes
        packed_b = f.gep(e, "%scratch", str((t.mc + t.mr) * t.kc + slack))
        temporary = f.alloca(f"[{t.mr * t.nr} x {e}]") if not self.target.masked else ""
        walk = WalkSlot(f)
        # from here on k counts packed elements
        total = f.udiv(f.iadd("%k", "1"), "2") if self.pairs else "%k"
        per = "2" if self.pairs else "1"
        one_panel = f.icmp("sle", "%m", str(t.mr))        # of A: what is packed of B is used once, and longer runs of it come faster
        deepest = f.op(f"select i1 {one_panel}, i64 {4 * t.kc}, i64 {t.kc}")
        blocks = f.udiv(f.iadd(total, f.isub(deepest, "1")), deepest)
        blocks = f.op(f"call i64 {f.module.intrinsic('i64', 'llvm.smax.i64', 'i64', 'i64')}(i64 {blocks}, i64 1)")
        # even blocks of whole cache lines: no short last one, no line of A's rows read for two of them
        kc = f.imul(f.udiv(f.iadd(f.udiv(f.iadd(total, f.isub(blocks, "1")), blocks), str(t.lanes - 1)), str(t.lanes)), str(t.lanes))
        has_epilogue = f.op("icmp ne ptr %epi, null")
        # sums that only the epilogue needs stay with the thread, unless later blocks of k add to them
        own = f.both("%discard", f.icmp("eq", blocks, "1"))
        own_panel = f.gep(e, "%scratch", str(t.panel_at))
        # B that few rows use and that already lies contiguous is read where it is, but for a ragged last panel
        few = f.icmp("sle", "%m", str(t.few_rows))
        direct, unit_b = "false", "false"
        if not tables:
            unit_b = f.icmp("eq", "%bcs", "1")
            direct = f.both(few, unit_b) if self.same["b"] else "false"
            if not self.target.masked and self.same["b"]:
                direct = f.both(direct, f.icmp("eq", f.urem("%n", str(t.nr)), "0"))
        step = f.op(f"call i64 {f.module.intrinsic('i64', 'llvm.smax.i64', 'i64', 'i64')}(i64 {kc}, i64 1)")
        spans = f.udiv(f.iadd("%n", str(t.nc - 1)), str(t.nc))
        spans = f.op(f"call i64 @llvm.smax.i64(i64 {spans}, i64 1)")
        nc = f.imul(f.udiv(f.iadd(f.udiv(f.iadd("%n", f.isub(spans, "1")), spans), str(t.nr - 1)), str(t.nr)), str(t.nr))
        nc = f.op(f"call i64 @llvm.smax.i64(i64 {nc}, i64 1)")
        if direct != "false":                          # nothing is packed and read again: along the whole rows of B
            along = f.both(direct, one_panel)
            nc = f.op(f"select i1 {along}, i64 {f.op('call i64 @llvm.smax.i64(i64 %n, i64 1)')}, i64 {nc}")
            own = f.both(own, f.icmp("sle", nc, str(t.nc)))
        # an A that several column blocks use is packed for all of them, where there is memory for it
        rows_a = f.imul(f.udiv(f.iadd("%m", "1"), "2"), "2")
        keep = f.both(f.icmp("slt", nc, "%n"), f.icmp("sle", f.imul(rows_a, total), str(t.kept_elements)))
        once = f.either(direct, one_panel)
        # an A that few columns use is read where it is, but for the first panel, whose tiles pack B
        in_rows = "false"
        if self.reads_rows and not tables:
            lda = f.imul("%ars", str(self.size))
            whole_rows = f.both(f.icmp("eq", "%acs", "1"), f.icmp("eq", f.op("and i64 %m, 1"), "0"))
            apart = f.icmp("ne", f.op(f"and i64 {lda}, {SETS_BYTES - 1}"), "0")         # in different sets of L1
            in_rows = f.both(f.both(whole_rows, apart), f.icmp("sle", "%n", str(t.few_columns)))
            keep = f.both(keep, f.op(f"xor i1 {in_rows}, true"))
        block_a = f.op(f"select i1 {keep}, ptr {f.gep(e, '%scratch', str(t.kept_at))}, ptr %scratch")
        with f.loop("0", "%n", nc) as jc:
            n_here = f.imin(nc, f.isub("%n", jc.index))
            # k == 0 still has to clear C: one turn with an empty block
            with f.loop("0", f.op(f"call i64 @llvm.smax.i64(i64 {total}, i64 1)"), step) as pc:
                k_here = f.imin(kc, f.isub(total, pc.index))
                first = f.both("%overwrite", f.icmp("eq", pc.index, "0"))
                last = f.both(has_epilogue, f.icmp("sge", f.iadd(pc.index, step), total))
                ahead = f.both(last, f.op("icmp ne ptr %streams, null"))
                b_block = "%b" if tables else f.gep(self.eb, "%b", f.iadd(f.imul(f.imul(pc.index, per), "%brs"), f.imul(jc.index, "%bcs")))
                left = f.isub("%k", f.imul(pc.index, per))
                if not tables and not self.pairs:          # the block of B that comes next: further down, or the first one of the columns to the right
                    deeper, right = f.iadd(pc.index, step), f.iadd(jc.index, nc)
                    below = f.icmp("slt", deeper, total)
                    k_next = f.imin(kc, f.op(f"select i1 {below}, i64 {f.isub(total, deeper)}, i64 {total}"))
                    at = f.op(f"select i1 {below}, i64 {f.iadd(f.imul(deeper, '%brs'), jc.index)}, i64 {right}")
                    b_next = f.gep(self.eb, "%b", at)
                    one_block = f.icmp("sle", "%m", str(t.mc))
                    fetch = f.both(f.both(unit_b, one_block), f.either(below, f.icmp("slt", right, "%n")))
                    b_hop = f.imul("%brs", str(self.bytes["b"]))
                with f.loop("0", "%m", str(t.mc)) as ic:
                    m_here = f.imin(str(t.mc), f.isub("%m", ic.index))
                    pairs = f.udiv(f.iadd(m_here, "1"), "2")
                    panels = f.udiv(f.iadd(pairs, str(t.mr // 2 - 1)), str(t.mr // 2))
                    block_in_rows = "false"                    # there is code for panels of the usual heights
                    if in_rows != "false":
                        block_in_rows = f.both(in_rows, f.icmp("sge", f.udiv(pairs, panels), str(t.mr // 2 - 1)))
                    a_block = "%a" if tables else f.gep(self.ea, "%a", f.iadd(f.imul(ic.index, "%ars"), f.imul(f.imul(pc.index, per), "%acs")))
                    c_block = f.gep(e, "%c", f.iadd(f.imul(ic.index, "%ldc"), jc.index))

                    def panel(index: str) -> tuple[str, str, str]:
                        row = f.imul("2", f.udiv(f.imul(index, pairs), panels))
                        end = f.imul("2", f.udiv(f.imul(f.iadd(index, "1"), pairs), panels))
                        return row, f.isub(end, row), f.isub(m_here, row)
                    # a column-major A is packed a few k at a time, so that its columns are read along and not in pieces
                    chunk = k_here
                    if not tables and self.target.masked:
                        chunk = f.op(f"select i1 {f.icmp('eq', '%ars', '1')}, i64 {CHUNK}, i64 {k_here}")
                        chunk = f.op(f"call i64 @llvm.smax.i64(i64 {chunk}, i64 1)")
                    packed_a = f.gep(e, block_a, f.op(f"select i1 {keep}, i64 {f.iadd(f.imul(pc.index, rows_a), f.imul(ic.index, k_here))}, i64 0"))
                    with f.when(f.either(f.icmp("eq", jc.index, "0"), f.op(f"xor i1 {keep}, true"))):
                        packed_panels = panels
                        if in_rows != "false":
                            first_panel = f.op(f"zext i1 {f.icmp('eq', ic.index, '0')} to i64")
                            packed_panels = f.op(f"select i1 {block_in_rows}, i64 {first_panel}, i64 {panels}")
                        with f.loop("0", k_here, chunk) as kk, f.loop("0", packed_panels) as p:
                            row, height, valid = panel(p.index)
                            here = f.iadd(f.imul(row, k_here), f.imul(kk.index, height))
                            if tables:
                                src = (f"ptr %a, ptr {f.gep('i32', '%ars', f.iadd(ic.index, row))}, "
                                       f"ptr {f.gep('i32', '%acs', pc.index)}")
                            else:
                                at = f.iadd(f.imul(row, "%ars"), f.imul(f.imul(kk.index, per), "%acs"))
                                src = f"ptr {f.gep(self.ea, a_block, at)}, i64 %ars, i64 %acs"
                            f.do(f"call void @pack_a{'_tables' if tables else ''}(ptr {f.gep(e, packed_a, here)}, "
                                 f"{src}, i64 {height}, i64 {f.imin(valid, height)}, i64 {f.imin(chunk, f.isub(k_here, kk.index))}"
                                 f"{f', i64 {f.isub(left, f.imul(kk.index, per))}' if self.pairs else ''})")
                    # A's panel stays in L1 and B's come from L2, so C is walked along its rows: down its columns, a
                    # power-of-two row length would put every tile into the same few cache sets
                    with f.loop("0", panels) as p:
                        row, height, valid = panel(p.index)
                        a_panel = f.gep(e, packed_a, f.imul(row, k_here))
                        c_panel = f.op(f"select i1 {own}, ptr {own_panel}, ptr {f.gep(e, c_block, f.imul(row, '%ldc'))}")
                        ldc = f.op(f"select i1 {own}, i64 {t.panel_stride}, i64 %ldc")
                        with f.loop("0", n_here, str(t.nr)) as j:
                            cols = f.imin(str(t.nr), f.isub(n_here, j.index))
                            packed = self.packed_panel(f, packed_b, j.index, k_here, once)
                            c_tile = f.gep(e, c_panel, j.index)
                            rows = f.imin(valid, height)
                            tile = Tile(k_here, a_panel, packed, c_tile, ldc, cols, rows, first, height)
                            walk.set(Walk(packed))
                            with f.when(ahead):
                                f.do(f"call void @walk_streams(ptr {walk.slot}, ptr %streams, i64 {f.udiv(j.index, str(t.nr))}, i64 {height}, "
                                     f"i64 {k_here}, i64 {f.iadd('%row0', f.iadd(ic.index, row))}, i64 {f.iadd('%col0', jc.index)}, i64 {n_here})")
                            top = f.icmp("eq", f.iadd(ic.index, p.index), "0")
                            if not tables and not self.pairs:
                                across = f.udiv(f.iadd(n_here, str(t.nr - 1)), str(t.nr))
                                with f.when(f.both(fetch, f.both(f.op(f"xor i1 {top}, true"), f.op(f"xor i1 {ahead}, true")))):
                                    number = f.iadd(f.imul(f.isub(p.index, "1"), across), f.udiv(j.index, str(t.nr)))
                                    f.do(f"call void @walk_block(ptr {walk.slot}, ptr {b_next}, i64 {b_hop}, i64 {number}, "
                                         f"i64 {f.imul(f.isub(panels, '1'), across)}, i64 {k_next}, i64 {n_here})")
                            a_rows = None
                            if in_rows != "false":
                                here = f.both(block_in_rows, f.op(f"xor i1 {top}, true"))
                                at = f.gep(self.ea, a_block, f.imul(row, "%ars"))
                                a_rows = RowsOfA(here, at, lda)
                                with f.when(f.both(here, f.icmp("sge", f.iadd(j.index, str(t.nr)), n_here))):        # the last tile walks over the next panel's rows
                                    lines = f.iadd(f.udiv(f.imul(k_here, str(self.size)), "64"), "1")
                                    walk.set(Walk(f.gep("i8", at, f.imul(lda, height)), lines, lda, f.imul(lda, f.udiv(height, "2"))))
                            if tables:
                                with f.when(top):
                                    f.do(f"call void @pack_b_tables(ptr {packed}, ptr %b, ptr {f.gep('i32', '%bcs', f.iadd(jc.index, j.index))}, "
                                         f"ptr {f.gep('i32', '%brs', pc.index)}, i64 {t.nr}, i64 {f.isub(n_here, j.index)}, i64 {k_here})")
                                self.any_tile(f, temporary, tile, packed, str(t.nr), walk.get())
                            else:
                                self.first_or_any_tile(f, temporary, tile, walk.get(), f.gep(self.eb, b_block, f.imul(j.index, "%bcs")), top, direct,
                                                       f.both(unit_b, f.op(f"xor i1 {few}, true")), f.isub(n_here, j.index), left, a_rows)
                        with f.when(last):
                            r0, c0 = f.iadd("%row0", f.iadd(ic.index, row)), f.iadd("%col0", jc.index)
                            self.call_epilogue(f, "%epi", "%env", c_panel, ldc, "%b0", "%b1", r0,
                                               f.iadd(r0, f.imin(valid, height)), c0, f.iadd(c0, n_here))
        f.finish()

    def first_or_any_tile(self, f: Fn, temporary: str, tile: Tile, walk: Walk, b: str, top: str, direct: str, unit: str, n_left: str, k_left: str,
                          a_rows: RowsOfA | None) -> None:
        """A tile of the plain kind. The first row of tiles (`top`) finds B (at `b`) unpacked and packs it: within the tile where it is a
        whole panel that lies row by row (`unit`), and otherwise in front of it."""
        t, size = self.t, str(self.bytes["b"])
        whole = f.icmp("sge", tile.cols, str(t.nr))
        in_place = f.both(direct, whole)
        packs, plain, other, done = (f.new_label(x) for x in ("packs", "plain", "other", "tile.done"))
        inside = "false" if self.pairs else f.both(top, f.both(unit, whole))
        f.branch(inside, packs, other)
        f.label(packs)
        if not self.pairs:
            self.packing_tile(f, tile, b)
        f.jump(done)
        f.label(other)
        now = f.both(top, f.op(f"xor i1 {in_place}, true"))
        with f.when(now):
            f.do(f"call void @pack_b(ptr {tile.b}, ptr {b}, i64 %bcs, i64 %brs, i64 {t.nr}, i64 {n_left}, i64 {tile.k}"
                 f"{f', i64 {k_left}' if self.pairs else ''})")
        f.jump(plain)
        f.label(plain)
        b_panel = f.op(f"select i1 {in_place}, ptr {b}, ptr {tile.b}")
        ldb = f.op(f"select i1 {in_place}, i64 %brs, i64 {t.nr}")
        # what comes from far while this tile is multiplied: the next panel, which is read in place or packed by the next tile
        column = f.imul("%bcs", size)
        half = str(t.nr // 2)
        long = f.op(f"call i64 @llvm.smax.i64(i64 {f.udiv(f.imul(tile.k, size), '64')}, i64 1)")
        walk = walk.unless(f, f.both(now, f.icmp("eq", "%brs", "1")),
                           Walk(f.op(f"getelementptr i8, ptr {b}, i64 {f.imul(column, str(t.nr))}"), long, column, f.imul(column, half)))
        walk = walk.unless(f, f.both(in_place, top), Walk(f.gep(self.eb, b, str(t.nr)), "1", f.imul("%brs", size), "64"))
        if a_rows:
            self.rows_tile(f, a_rows, tile, b_panel, ldb, walk, done)
        self.any_tile(f, temporary, tile, b_panel, ldb, walk)
        f.jump(done)
        f.label(done)

    def entry(self) -> None:
        """Reads the arguments and picks this thread's share."""
        t, e = self.t, self.e
        f = Fn(self.m, f"void @{symbol(self.kind)}(i64 %tid, i64 %threads, ptr %scratch, ptr %args)")
        raw, g, overwrite = self.begin(f)
        b_lo, b_hi, team, rank = self.team(f, g)
        tm, tn = self.grid(f, g["m"], g["n"], g["k"], team, self.in_place(f, g))
        rank_m, rank_n = f.udiv(rank, tn), f.urem(rank, tn)
        m0, m1 = self.share(f, g["m"], rank_m, tm, 2)
        n0, n1 = self.share(f, g["n"], rank_n, tn, t.nr)
        tables = f.icmp("ne", raw["tables"], "0")
        epi, env = (f.op(f"inttoptr i64 {raw[x]} to ptr") for x in ("epilogue", "env"))
        discard = f.icmp("ne", raw["discard"], "0")
        streams = f.op(f"inttoptr i64 {raw['streams']} to ptr")
        with f.loop(b_lo, b_hi) as b:
            i0, i1, pa, pb, pc = self.matrix(f, g, b.index)
            rest = f"i1 {overwrite}, ptr {epi}, ptr {env}, i64 {i0}, i64 {i1}, i64 {m0}, i64 {n0}, i1 {discard}, ptr {streams}"
            sizes = f"i64 {f.isub(m1, m0)}, i64 {f.isub(n1, n0)}, i64 {g['k']}"
            done = f.new_label("done")
            if self.with_tables:
                offsets, plain = f.new_label("tables"), f.new_label("plain")
                f.branch(tables, offsets, plain)
                f.label(offsets)
                at = [f.op(f"inttoptr i64 {raw[x]} to ptr") for x in ("a_rs", "a_cs", "b_rs", "b_cs")]
                c_here = f.gep(e, pc, f.iadd(f.imul(m0, raw["c_rs"]), n0))
                f.do(f"call void @single_tables(ptr %scratch, {sizes}, ptr {pa}, ptr {f.gep('i32', at[0], m0)}, ptr {at[1]}, ptr {pb}, ptr {at[2]}, "
                     f"ptr {f.gep('i32', at[3], n0)}, ptr {c_here}, i64 {raw['c_rs']}, {rest})")
                f.jump(done)
                f.label(plain)
            a_at = f.gep(self.ea, pa, f.imul(m0, g["a_rs"]))
            b_at = f.gep(self.eb, pb, f.imul(n0, g["b_cs"]))
            c_at = f.gep(e, pc, f.iadd(f.imul(m0, g["c_rs"]), n0))
            f.do(f"call void @single(ptr %scratch, {sizes}, ptr {a_at}, i64 {g['a_rs']}, i64 {g['a_cs']}, ptr {b_at}, i64 {g['b_rs']}, "
                 f"i64 {g['b_cs']}, ptr {c_at}, i64 {g['c_rs']}, {rest})")
            f.jump(done)
            f.label(done)
        f.finish()

    def in_place(self, f: Fn, g: dict[str, str]) -> str:
        """Whether a thread may read all of B where it is (see `few` in `single`) at little cost: it fits the cache beside C."""
        if not self.same["b"]:
            return "false"
        few = f.both(f.icmp("sle", g["m"], str(self.t.few_rows)), f.icmp("eq", g["b_cs"], "1"))
        return f.both(few, f.icmp("sle", f.imul(g["k"], g["n"]), str(self.target.l2 // 2 // self.size)))

    def grid(self, f: Fn, m: str, n: str, k: str, team: str, in_place: str) -> tuple[str, str]:
        """team = tm x tn, such that a thread's work (its tiles and what it packs) is least."""
        t = self.t
        panel_cost = f.op(f"select i1 {in_place}, i64 1, i64 8")
        mp = f.udiv(f.iadd(m, "1"), "2")
        np_ = f.udiv(f.iadd(n, str(t.nr - 1)), str(t.nr))
        big = str(1 << 62)
        with f.loop("1", f.iadd(team, "1"), carried=[("i64", big), ("i64", "1")]) as tm:
            rest = f.urem(team, tm.index)
            tn = f.udiv(team, tm.index)
            rows = f.udiv(f.iadd(mp, f.isub(tm.index, "1")), tm.index)       # pairs of rows
            cols = f.udiv(f.iadd(np_, f.isub(tn, "1")), tn)                  # panels
            # per k: a pair of rows x a panel is 2 * nw FMAs = 2 cycles; packing a panel ~ 8 (reading it ~ 1), a pair of rows ~ 1
            cost = f.iadd(f.imul(f.imul(rows, cols), "2"), f.iadd(f.imul(cols, panel_cost), rows))
            better = f.both(f.icmp("eq", rest, "0"), f.icmp("slt", cost, tm.values[0]))
            tm.next = [f.op(f"select i1 {better}, i64 {cost}, i64 {tm.values[0]}"),
                       f.op(f"select i1 {better}, i64 {tm.index}, i64 {tm.values[1]}")]
        best = tm.results[1]
        return best, f.udiv(team, best)

    def texts(self) -> list[tuple[str, bool]]:
        """The modules, to be compiled side by side, and whether quickly: what only leads from panel to panel runs rarely, and is what LLVM takes
        longest for."""
        if self.few:
            self.stream(1)
            self.stream(2)
            self.dots()
            self.few_entry()
            return [(self.m.text(), False)]
        for h in self.t.heights:
            for nw in sorted({1, self.t.nw}):
                self.micro(h, nw)
        for h in self.packing_heights() if not self.pairs else ():
            self.micro(h, self.t.nw, packs=True)
        for h in self.packing_heights() if self.reads_rows else ():
            self.micro(h, self.t.nw, in_rows=True)
        for line in self.tiles.functions:
            header = line[:line.index(" #")].removeprefix("define ")
            self.m.declare("declare " + header.replace("noalias ", ""))
        for side, parts in (("a", -(-self.t.mr // self.w)), ("b", self.t.nw)):
            if self.pairs:
                self.pack_pairs(side, parts)
            else:
                self.pack(side, parts)
            if self.with_tables:
                self.pack_tables(side, parts)
        leading = len(self.m.functions)
        self.walk_streams()
        self.walk_block()
        self.single()
        if self.with_tables:
            self.single(tables=True)
        self.entry()
        working = self.tiles.parts(60_000) + self.m.parts(60_000, 0, leading)
        return [*((text, False) for text in working), *((text, True) for text in self.m.parts(60_000, leading))]


@functools.cache
def gemm_texts(target: CpuTarget, kind: str) -> list[tuple[str, bool]]:
    """LLVM text of the modules that make up `engram_gemm_<kind>(tid, threads, scratch, args)`, and whether each is to be compiled quickly."""
    return _Gen(target, kind).texts()


_loaded: dict[tuple[CpuTarget, str], Library] = {}
_loading = threading.Lock()


def compile_gemm(kind: str, target: CpuTarget | None = None) -> None:
    """Start compiling the GEMM of a kind (gemm_base.kind_of) beside whatever comes next."""
    target = target or host_target()
    if (target, kind) not in _loaded:
        _submit(kind, target)


def _submit(kind: str, target: CpuTarget) -> list[Future[bytes]]:
    return [submit(text, target, quick) for text, quick in reversed(gemm_texts(target, kind))]


def gemm_address(kind: str, target: CpuTarget | None = None) -> int:
    """The compiled GEMM of a kind; loaded once per process."""
    target = target or host_target()
    plain = kind.removesuffix(FEW)
    needs = {symbol(plain): gemm_address(plain, target)} if plain != kind else {}
    with _loading:
        if (target, kind) not in _loaded:
            blobs = finish(_submit(kind, target))
            _loaded[target, kind] = Library(blobs, [symbol(kind)], needs, target=target)
    return _loaded[target, kind].address(symbol(kind))


__all__ = ["ARGS", "ARG_INDEX", "Tiling", "gemm_address", "gemm_texts", "scratch_bytes", "symbol", "tiling"]
