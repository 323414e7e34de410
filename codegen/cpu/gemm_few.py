"""The GEMM's code for one or two rows (a kind with `FEW`), and what it shares with the code for more: arguments, shares of threads, epilogue calls."""
from __future__ import annotations

from .gemm_base import ARG_INDEX, FEW, Base, symbol
from .irtext import Fn

AHEAD = 6144                # bytes of a matrix read in order that are fetched ahead: its rows end where the processor does not see that the next begins


class FewRows(Base):
    """Writes the functions for one or two rows."""

    def call_epilogue(self, f: Fn, function: str, env: str, panel: str, ldc: str, *box: str) -> None:
        """What is to be done to a finished panel of C: rows and columns of a matrix of the batch (b0, b1, r0, r1, c0, c1)."""
        f.do(f"call void {function}(ptr {env}, ptr {panel}, i64 {ldc}, {', '.join(f'i64 {x}' for x in box)})")

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
            xs = [[self.load_side(f, "a", f.gep(self.ea, "%a", f.iadd(f.imul("%ars", str(i)), f.imul(f.iadd(k, str(d)), "%acs"))))
                   for d in range(count)] for i in range(m)]
            vs = [[self.splat(f, x) for x in row] for row in xs]
            bs = [f.gep(self.eb, "%b", f.imul(f.iadd(k, str(d)), "%brs")) for d in range(count)]
            whole = f.iadd(j0, f.op(f"and i64 {f.isub(j1, j0)}, -{w}"))
            with f.loop(j0, whole, str(w)) as j:
                acc = [self.vload(f, f.gep(e, "%c", f.iadd(f.imul("%ldc", str(i)), j.index))) for i in range(m)]
                for d in range(count):
                    line = self.vload_side(f, "b", f.gep(self.eb, bs[d], j.index))
                    acc = [self.fma(f, vs[i][d], line, acc[i]) for i in range(m)]
                for i in range(m):
                    self.vstore(f, acc[i], f.gep(e, "%c", f.iadd(f.imul("%ldc", str(i)), j.index)))
            with f.loop(whole, j1) as j:
                for i in range(m):
                    at = f.gep(e, "%c", f.iadd(f.imul("%ldc", str(i)), j.index))
                    acc1 = f.load(e, at, self.size)
                    for d in range(count):
                        acc1 = self.fma(f, xs[i][d], self.load_side(f, "b", f.gep(self.eb, bs[d], j.index)), acc1, e)
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
        """One row, A and B contiguous along k: dot products. Columns n0..n1, four at a time with eight sums in flight; those that come from
        memory one after the other, so that B is read in order (four streams reach nine tenths of the bandwidth). The bits are the same."""
        e, w, v = self.e, self.w, self.v
        f = Fn(self.m, "internal void @dots(i64 %n0, i64 %n1, i64 %k, ptr %a, ptr %b, i64 %bcs, ptr %c, "
                       "i1 %overwrite)", "#2")
        whole = f.op(f"and i64 %k, -{2 * w}")

        def columns(j: str, count: int) -> None:
            bs = [f.gep(self.eb, "%b", f.imul(f.iadd(j, str(d)), "%bcs")) for d in range(count)]
            zero = "zeroinitializer"
            with f.loop("0", whole, str(2 * w), carried=[(v, zero)] * (2 * count)) as k:
                out = []
                for half in range(2):
                    at = f.iadd(k.index, str(half * w))
                    x = self.vload_side(f, "a", f.gep(self.ea, "%a", at))
                    if count == 1:
                        f.prefetch(f.gep("i8", f.gep(self.eb, bs[0], at), str(AHEAD)))
                    out += [self.fma(f, x, self.vload_side(f, "b", f.gep(self.eb, bs[d], at)), k.values[half * count + d])
                            for d in range(count)]
                k.next = out
            add = "fadd" if self.float else "add"
            sums = [self.tree(f, f.op(f"{add} {v} {k.results[d]}, {k.results[count + d]}")) for d in range(count)]
            with f.loop(whole, "%k", carried=[(e, s) for s in sums]) as tail:
                x = self.load_side(f, "a", f.gep(self.ea, "%a", tail.index))
                tail.next = [self.fma(f, x, self.load_side(f, "b", f.gep(self.eb, bs[d], tail.index)), tail.values[d], e)
                             for d in range(count)]
            for d in range(count):
                at = f.gep(e, "%c", f.iadd(j, str(d)))
                old = self.old(f, at)
                f.store(e, f.op(f"{add} {e} {old}, {tail.results[d]}"), at, self.size)
        fours = f.op(f"and i64 {f.isub('%n1', '%n0')}, -4")
        far = f.icmp("sgt", f.imul("%k", fours), str(2 * self.target.l2 // self.size))
        four = f.iadd("%n0", f.op(f"select i1 {far}, i64 0, i64 {fours}"))
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

    def begin(self, f: Fn) -> tuple[dict[str, str], dict[str, str], str]:
        """Reads the arguments: (as they are, with A and B swapped where C's columns do not have unit stride, whether C is overwritten)."""
        raw = {name: f.load("i64", f.gep("i64", "%args", str(i)), 8) for name, i in ARG_INDEX.items()}
        overwrite = f.op(f"icmp eq i64 {raw['accumulate']}, 0")
        # C must have unit column stride: otherwise compute its transpose. A column vector becomes a row vector.
        one_col = f.both(f.icmp("eq", raw["n"], "1"), f.icmp("eq", raw["c_rs"], "1"))
        swap = f.both(f.either(f.icmp("ne", raw["c_cs"], "1"), one_col), f.icmp("eq", raw["tables"], "0"))
        if self.ea != self.eb or self.side["a"] != self.side["b"]:        # the caller has swapped them
            swap = "false"
        pairs = [("m", "n"), ("a", "b"), ("a_b0", "b_b0"), ("a_b1", "b_b1"), ("a_rs", "b_cs"), ("a_cs", "b_rs"),
                 ("c_rs", "c_cs")]
        g = dict(raw)
        for x, y in pairs:
            g[x] = f.op(f"select i1 {swap}, i64 {raw[y]}, i64 {raw[x]}")
            g[y] = f.op(f"select i1 {swap}, i64 {raw[x]}, i64 {raw[y]}")
        return raw, g, overwrite

    def team(self, f: Fn, g: dict[str, str]) -> tuple[str, str, str, str]:
        """Threads take whole matrices when there are enough of them, else share each matrix: (first, last + 1 of this thread's
        matrices, how many threads share one, this one's number among them)."""
        batch = f.imul(g["batch0"], g["batch1"])
        rest = f.urem(batch, "%threads")
        even = f.both(f.icmp("eq", rest, "0"), f.icmp("sge", batch, "%threads"))
        many = f.icmp("sge", batch, f.imul("%threads", "4"))
        by_batch = f.either(even, many)
        b_lo = f.udiv(f.imul("%tid", batch), "%threads")
        b_hi = f.udiv(f.imul(f.iadd("%tid", "1"), batch), "%threads")
        return (f.op(f"select i1 {by_batch}, i64 {b_lo}, i64 0"), f.op(f"select i1 {by_batch}, i64 {b_hi}, i64 {batch}"),
                f.op(f"select i1 {by_batch}, i64 1, i64 %threads"), f.op(f"select i1 {by_batch}, i64 0, i64 %tid"))

    def matrix(self, f: Fn, g: dict[str, str], index: str) -> tuple[str, ...]:
        """Where the matrices of a batch position start: (its two indices, A, B, C)."""
        i0, i1 = f.udiv(index, g["batch1"]), f.urem(index, g["batch1"])

        def base(x: str) -> str:
            off = f.iadd(f.imul(i0, g[f"{x}_b0"]), f.imul(i1, g[f"{x}_b1"]))
            return f.gep({"a": self.ea, "b": self.eb, "c": self.e}[x], f.op(f"inttoptr i64 {g[x]} to ptr"), off)
        return i0, i1, base("a"), base("b"), base("c")

    def few_entry(self) -> None:
        """Matrix-vector shapes, split along n only; everything else is passed on."""
        e = self.e
        args = "(i64 %tid, i64 %threads, ptr %scratch, ptr %args)"
        f = Fn(self.m, f"void @{symbol(self.kind)}{args}")
        plain = symbol(self.kind.removesuffix(FEW))
        f.module.declare(f"declare void @{plain}(i64, i64, ptr, ptr)")
        raw, g, overwrite = self.begin(f)
        single = f.icmp("sle", g["m"], "1")
        is_stream = f.both(f.icmp("sle", g["m"], "2"), f.icmp("eq", g["b_cs"], "1"))
        k_unit = f.both(f.icmp("eq", g["a_cs"], "1"), f.icmp("eq", g["b_rs"], "1"))
        is_few = f.both(f.either(is_stream, f.both(single, k_unit)), f.icmp("eq", raw["tables"], "0"))
        with f.when(f.op(f"xor i1 {is_few}, true")):
            f.do(f"call void @{plain}{args}")
        b_lo, b_hi, team, rank = self.team(f, g)
        b_hi = f.op(f"select i1 {is_few}, i64 {b_hi}, i64 {b_lo}")
        v0, v1 = self.share(f, g["n"], rank, team, 2 * self.t.lanes)
        epi, env = (f.op(f"inttoptr i64 {raw[x]} to ptr") for x in ("epilogue", "env"))
        with f.loop(b_lo, b_hi) as b:
            i0, i1, pa, pb, pc = self.matrix(f, g, b.index)
            labels = {x: f.new_label(x) for x in ("pick", "stream1", "stream2", "dots", "rows")}
            f.branch(is_stream, labels["pick"], labels["dots"])
            f.label(labels["pick"])
            f.branch(single, labels["stream1"], labels["stream2"])
            for m in (1, 2):
                f.label(labels[f"stream{m}"])
                f.do(f"call void @stream{m}(i64 {v0}, i64 {v1}, i64 {g['k']}, ptr {pa}, i64 {g['a_rs']}, "
                     f"i64 {g['a_cs']}, ptr {pb}, i64 {g['b_rs']}, ptr {pc}, i64 {g['c_rs']}, i1 {overwrite})")
                f.jump(labels["rows"])
            f.label(labels["dots"])
            f.do(f"call void @dots(i64 {v0}, i64 {v1}, i64 {g['k']}, ptr {pa}, ptr {pb}, i64 {g['b_cs']}, ptr {pc}, "
                 f"i1 {overwrite})")
            f.jump(labels["rows"])
            f.label(labels["rows"])
            with f.when(f.both(f.op(f"icmp ne ptr {epi}, null"), f.icmp("slt", v0, v1))):
                self.call_epilogue(f, epi, env, f.gep(e, pc, v0), g["c_rs"], i0, i1, "0", g["m"], v0, v1)
        f.finish()

    def share(self, f: Fn, total: str, rank: str, team: str, unit: int) -> tuple[str, str]:
        """The rank-th of `team` contiguous shares of 0..total, cut at multiples of `unit`."""
        units = f.udiv(f.iadd(total, str(unit - 1)), str(unit))
        lo = f.imul(f.udiv(f.imul(rank, units), team), str(unit))
        hi = f.imul(f.udiv(f.imul(f.iadd(rank, "1"), units), team), str(unit))
        return f.imin(lo, total), f.imin(hi, total)
