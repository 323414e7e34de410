"""LLVM text of a direct contraction (direct.py): register tiles with all distances as constants, and the loops around them."""
from __future__ import annotations

import hashlib

from .direct import UNROLLED, DirectPlan
from .gemm_pack import Pack
from .irtext import Fn, Module
from .target import CpuTarget

TOGETHER = 16                # units that go through one panel of the lanes side before the next panel


def direct_name(p: DirectPlan, team: int) -> str:
    return "engram_direct_" + hashlib.sha256(repr((p, team)).encode()).hexdigest()[:20]


def direct_module(p: DirectPlan, target: CpuTarget, team: int) -> Module:
    """The module that defines `void NAME(tid, threads, scratch, a, b, c)`, with a the rows side."""
    return _Gen(p, target, team).module(direct_name(p, team))


class _Gen(Pack):
    """Writes the functions of one plan."""

    def __init__(self, p: DirectPlan, target: CpuTarget, team: int):
        super().__init__(target, p.dtype)
        self.p, self.team = p, team
        self.nr = p.nw * self.w
        self.kinds: dict[tuple, int] = {}
        for t in p.tiles:
            self.kinds.setdefault((t.a_rows, t.c_rows), len(self.kinds))

    def module(self, name: str) -> Module:
        p = self.p
        self.pack("b", p.nw)
        last = p.n.size - (p.panels(self.target) - 1) * self.nr
        for (a_rows, c_rows), i in self.kinds.items():
            for channels in sorted({self.nr, last}):
                self.tile(f"tile{i}_{channels}", a_rows, c_rows, channels)
        self.driver(name, last)
        return self.m

    # ---- register tiles

    def tile(self, name: str, a_rows: tuple[int, ...], c_rows: tuple[int, ...], channels: int) -> None:
        """C[rows x channels] (+)= A[rows, k] B[k, channels] over a block of k: `count` turns of the dim that is cut, all of those inside."""
        p, h, nw, v = self.p, len(a_rows), self.p.nw, self.v
        f = Fn(self.m, f"internal void @{name}(ptr noalias %a, ptr noalias %b, ptr noalias %c, i64 %count, i1 %first)", "#2")
        init, go = f.new_label("load"), f.new_label("go")
        f.branch("%first", go, init)
        f.label(init)
        old = self.c_tile(f, c_rows, channels, None)
        f.jump(go)
        f.label(go)
        start = [f.op(f"phi {v} [ zeroinitializer, %entry ], [ {x}, %{init} ]") for x in old]

        def step(a: str, b: str, acc: list[str]) -> list[str]:
            bs = [self.vload(f, f.gep(self.e, b, str(j * self.w))) for j in range(nw)]
            out = []
            for i, offset in enumerate(a_rows):
                x = self.splat(f, f.load(self.e, f.gep(self.e, a, str(offset)), self.size))
                out += [self.fma(f, x, bs[j], acc[i * nw + j]) for j in range(nw)]
            return out

        dims = p.k[p.cut:]
        turns = [d.size for d in dims]
        unroll = 1                                     # of the innermost dim
        if len(dims) > 1:
            fits = [u for u in range(1, turns[-1] + 1) if turns[-1] % u == 0 and u * h * nw <= UNROLLED]
            unroll = max(fits, default=1)

        def nest(level: int, a: str, b: str, acc: list[str]) -> tuple[str, list[str]]:
            """The loop over dims[level] and those inside; gives b behind what was read, and the sums."""
            inner = level == len(dims) - 1
            if inner and level and unroll == turns[-1]:
                return body(a, b, acc)
            stop = "%count" if level == 0 else str(turns[level])
            by = unroll if inner else 1
            with f.loop("0", stop, str(by), carried=[("ptr", a), ("ptr", b), *((v, x) for x in acc)], nonempty=True) as loop:
                a1, b1, *acc1 = loop.values
                b2, acc2 = body(a1, b1, acc1) if inner else nest(level + 1, a1, b1, acc1)
                loop.next = [f.gep(self.e, a1, str(dims[level].a * by)), b2, *acc2]
            return loop.results[1], loop.results[2:]

        def body(a: str, b: str, acc: list[str]) -> tuple[str, list[str]]:
            for u in range(unroll):
                if u:                                  # an opaque pointer: LLVM would keep what neighbouring windows share in registers
                    a = f.op(f'call ptr asm "", "=r,0"(ptr {f.gep(self.e, a, str(dims[-1].a))})')
                acc = step(a, f.gep(self.e, b, str(u * self.nr)), acc)
            return f.gep(self.e, b, str(unroll * self.nr)), acc

        _, sums = nest(0, "%a", "%b", start)
        self.c_tile(f, c_rows, channels, sums)
        f.finish()

    def c_tile(self, f: Fn, c_rows: tuple[int, ...], channels: int, sums: list[str] | None) -> list[str]:
        """Store `sums` (row by row, nw vectors each) to C's tile, or load them from there."""
        p, w, nw, h = self.p, self.w, self.p.nw, len(c_rows)
        out = [""] * (h * nw)
        for j in range(nw):
            valid = min(w, channels - j * w)
            if valid <= 0:
                if sums is None:
                    out[j::nw] = ["zeroinitializer"] * h
                continue
            if not p.transposed:
                for i, offset in enumerate(c_rows):
                    at = f.gep(self.e, "%c", str(offset + j * w))
                    if sums is None:
                        out[i * nw + j] = self.vload(f, at, self.first_lanes(valid))
                    else:
                        self.vstore(f, sums[i * nw + j], at, self.first_lanes(valid))
                continue
            for first in range(0, h, w):               # C is contiguous along rows: w channels of w rows at a time
                rows = range(first, min(first + w, h))
                mask = self.first_lanes(len(rows))
                spots = [f.gep(self.e, "%c", str((j * w + x) * p.n.c + c_rows[first])) for x in range(valid)]
                if sums is None:
                    lines = [self.vload(f, at, mask) for at in spots] + ["zeroinitializer"] * (w - valid)
                    for i, x in zip(rows, self.transpose(f, lines)):
                        out[i * nw + j] = x
                else:
                    lines = [sums[i * nw + j] for i in rows] + ["zeroinitializer"] * (w - len(rows))
                    for at, x in zip(spots, self.transpose(f, lines)):
                        self.vstore(f, x, at, mask)
        return out

    # ---- the loops around

    def driver(self, name: str, last: int) -> None:
        """This thread's panels and units: blocks of k, each packed once and used by all units."""
        p, e = self.p, self.e
        f = Fn(self.m, f"void @{name}(i64 %tid, i64 %threads, ptr %scratch, ptr %a, ptr %b, ptr %c)", "#2")
        panels, units = p.panels(self.target), p.units
        across = f.op(f"select i1 {f.icmp('eq', '%threads', str(self.team))}, i64 {p.across}, i64 1")
        along = f.udiv("%threads", across)
        p_rank, u_rank = f.urem("%tid", across), f.udiv("%tid", across)

        def share(total: int, rank: str, of: str) -> tuple[str, str]:
            lo = f.udiv(f.imul(rank, str(total)), of)
            return lo, f.udiv(f.imul(f.iadd(rank, "1"), str(total)), of)
        p0, p1 = share(panels, p_rank, across)
        u0, u1 = share(units, u_rank, along)
        block = p.cut_step * self.inner_k()

        def units_of(a: str, c: str, panel: str, j: str, count: str, first: str) -> None:
            """All of this thread's units of one panel in one chunk are done by the caller's loops; here one unit."""
            for t in p.tiles:
                kind = self.kinds[t.a_rows, t.c_rows]
                args = f"(ptr {f.gep(e, a, str(t.a))}, ptr {panel}, ptr {f.gep(e, c, str(t.c))}, i64 {count}, i1 {first})"
                if last == self.nr:
                    f.do(f"call void @tile{kind}_{self.nr}{args}")
                    continue
                whole, part, done = f.new_label("whole"), f.new_label("part"), f.new_label("done")
                f.branch(f.icmp("slt", j, str(panels - 1)), whole, part)
                f.label(whole)
                if panels > 1:
                    f.do(f"call void @tile{kind}_{self.nr}{args}")
                f.jump(done)
                f.label(part)
                f.do(f"call void @tile{kind}_{last}{args}")
                f.jump(done)
                f.label(done)

        def block_of(a: str, b: str, c: str, pg: str, here: str, count: str, first: str) -> None:
            """Pack `here` panels from `pg` on for this block of k, then all units."""
            with f.loop("0", here) as i:
                j = f.iadd(pg, i.index)
                columns = f.imul(j, str(self.nr))
                valid = f.imin(str(self.nr), f.isub(str(p.n.size), columns))
                self.pack_block(f, f.gep(e, "%scratch", f.imul(i.index, str(block * self.nr))),
                                f.gep(e, b, f.imul(columns, str(p.n.b))), count, valid)
            with f.loop(u0, u1, str(TOGETHER)) as chunk:
                stop = f.imin(f.iadd(chunk.index, str(TOGETHER)), u1)
                with f.loop("0", here) as i:
                    j = f.iadd(pg, i.index)
                    panel = f.gep(e, "%scratch", f.imul(i.index, str(block * self.nr)))
                    c_panel = f.gep(e, c, f.imul(j, str(self.nr * p.n.c)))
                    with f.loop(chunk.index, stop) as unit:
                        at_a, at_c = self.place(f, unit.index, p.outer, ("a", "c"))
                        units_of(f.gep(e, a, at_a), f.gep(e, c_panel, at_c), panel, j, count, first)

        def blocks(level: int, a: str, b: str, c: str, pg: str, here: str, fresh: list[str]) -> None:
            """Loops over the dims of k outside the cut, then over the cut."""
            d = p.k[level]
            if level < p.cut:
                with f.loop("0", str(d.size)) as i:
                    blocks(level + 1, f.gep(e, a, f.imul(i.index, str(d.a))), f.gep(e, b, f.imul(i.index, str(d.b))), c, pg, here,
                           [*fresh, i.index])
                return
            with f.loop("0", str(d.size), str(p.cut_step)) as i:
                first = "true"
                for x in [*fresh, i.index]:
                    first = f.both(first, f.icmp("eq", x, "0"))
                if p.accumulate:
                    first = "false"
                block_of(f.gep(e, a, f.imul(i.index, str(d.a))), f.gep(e, b, f.imul(i.index, str(d.b))), c, pg, here,
                         f.imin(str(p.cut_step), f.isub(str(d.size), i.index)), first)

        batch = 1
        for d in p.batch:
            batch *= d.size
        with f.loop("0", str(batch)) as s:
            a, b, c = (f.gep(e, base, at) for base, at in zip(("%a", "%b", "%c"), self.place(f, s.index, p.batch, ("a", "b", "c"))))
            with f.loop(p0, p1, str(p.groups)) as pg:
                blocks(0, a, b, c, pg.index, f.imin(str(p.groups), f.isub(p1, pg.index)), [])
        f.finish()

    def inner_k(self) -> int:
        out = 1
        for d in self.p.k[self.p.cut + 1:]:
            out *= d.size
        return out

    def place(self, f: Fn, index: str, dims, which: tuple[str, ...]) -> list[str]:
        """Element offsets of position `index` of a row-major nest of dims."""
        out = ["0"] * len(which)
        for n, d in reversed(list(enumerate(dims))):
            at = f.urem(index, str(d.size)) if n else index
            index = f.udiv(index, str(d.size)) if n else index
            out = [f.iadd(o, f.imul(at, str(getattr(d, x)))) for o, x in zip(out, which)]
        return out

    def pack_block(self, f: Fn, dst: str, b: str, count: str, valid: str) -> None:
        """dst[k][nr] for one panel: `count` of the cut dim and all dims of k inside, one call for what steps evenly through B."""
        p = self.p
        dims = list(p.k[p.cut:])
        run = len(dims) - 1                            # dims[run:] step as one
        while run > 0 and dims[run - 1].b == dims[run].b * dims[run].size:
            run -= 1
        each = 1
        for d in dims[run:]:
            each *= d.size
        length = str(each) if run else f.imul(count, str(self.inner_k()))
        step = dims[-1].b

        def nest(level: int, src: str, at: str) -> None:
            if level == run:
                f.do(f"call void @pack_b(ptr {f.gep(self.e, dst, f.imul(at, str(self.nr)))}, ptr {src}, i64 {p.n.b}, i64 {step}, "
                     f"i64 {self.nr}, i64 {valid}, i64 {length})")
                return
            inner = 1
            for d in dims[level + 1:]:
                inner *= d.size
            with f.loop("0", count if level == 0 else str(dims[level].size)) as i:
                nest(level + 1, f.gep(self.e, src, f.imul(i.index, str(dims[level].b))), f.iadd(at, f.imul(i.index, str(inner))))
        nest(0, b, "0")


def emit_direct(host, op, p: DirectPlan, tid: str, threads: str, memory_of: str | None = None) -> None:
    """The call, from the host level; its function is added to the program's modules once. `memory_of`: the thread whose scratch memory
    serves (None: tid)."""
    from .contract import thread_scratch
    f = host.f
    name = direct_name(p, host.e.team)
    host.e.add_module(name, lambda: direct_module(p, host.e.target, host.e.team))
    f.module.declare(f"declare void @{name}(i64, i64, ptr, ptr, ptr, ptr)")
    out, lhs, rhs = (host.pointer(v) for v in op.operands)
    if p.swapped:
        lhs, rhs = rhs, lhs
    f.do(f"call void @{name}(i64 {tid}, i64 {threads}, ptr {thread_scratch(f, memory_of or tid)}, ptr {lhs}, ptr {rhs}, ptr {out})")

