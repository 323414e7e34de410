"""Packing for the GEMM: panels of rows or columns, from any strides or from tables of offsets."""
from __future__ import annotations

from contextlib import contextmanager

from .gemm_base import PREFETCH, Base
from .irtext import Fn


class Pack(Base):
    """Writes the packing functions."""

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

    def pack(self, side: str, parts: int) -> None:
        """dst[k * h + i] = src[i * si + k * sk] for i < valid (what lies above is anything), k < kc. Whole vectors are
        stored in ascending k, each overwriting what the one before wrote beyond its h elements."""
        f = Fn(self.m, f"internal void @pack_{side}(ptr noalias %dst, ptr noalias %src, i64 %si, i64 %sk, i64 %h, "
                       "i64 %valid, i64 %kc)", "#2")
        w, e, src_e = self.w, self.e, self.ea if side == "a" else self.eb
        unit_i, unit_k, other = f.new_label("unit_i"), f.new_label("unit_k"), f.new_label("other")
        test, out = f.new_label("test"), f.new_label("out")
        masked = self.target.masked
        ok_i = f.op("icmp eq i64 %si, 1")
        if not masked:     # whole vectors may be read only where all lanes exist
            ok_i = f.both(ok_i, f.icmp("sge", "%valid", str(parts * w)))
        f.branch(ok_i, unit_i, test)

        f.label(unit_i)
        masks = [self.mask(f, f.isub("%valid", str(p * w))) if masked else None for p in range(parts)]
        # A's panels are packed in turns (see `single`): none may write into the next one
        own = [self.mask(f, f.isub("%h", str(p * w))) if masked and side == "a" else None for p in range(parts)]
        with f.loop("0", "%kc") as loop:
            src = f.gep(src_e, "%src", f.imul(loop.index, "%sk"))
            dst = f.gep(e, "%dst", f.imul(loop.index, "%h"))
            ahead = f.gep(src_e, src, f.imul("%sk", str(PREFETCH)))
            for p in range(parts):
                f.prefetch(f.gep(src_e, ahead, str(p * w)), 2)
                self.vstore(f, self.vload_side(f, side, f.gep(src_e, src, str(p * w)), masks[p]), f.gep(e, dst, str(p * w)), own[p])
        f.jump(out)

        f.label(test)
        f.branch(f.op("icmp eq i64 %sk, 1"), unit_k, other)
        f.label(unit_k)
        whole = "%kc" if masked else f.op(f"and i64 %kc, -{w}")
        if side == "a" and parts > 1:          # a vector reaches beyond its h elements, to where the next k's first one is put later
            self.transposed(f, side, parts, whole)
        else:                                  # panels are whole vectors wide: one after the other
            with f.loop("0", str(parts)) as part:
                at = f.imul(part.index, str(w))
                f.do(f"call void @{self.pack_rows(self.sides(side))}(ptr {f.gep(e, '%dst', at)}, ptr {f.gep(src_e, '%src', f.imul(at, '%si'))}, "
                     f"i64 %si, i64 %h, i64 {f.isub('%valid', at)}, i64 {whole})")
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
            src = f.gep(src_e, "%src", f.imul(loop.index, "%sk"))
            dst = f.gep(e, "%dst", f.imul(loop.index, "%h"))
            with f.loop("0", f.imin("%valid", "%h")) as inner:
                value = self.load_side(f, side, f.gep(src_e, src, f.imul(inner.index, "%si")))
                f.store(e, value, f.gep(e, dst, inner.index), self.size)
            with f.loop(f.imin("%valid", "%h"), "%h") as inner:
                f.store(e, self.zero, f.gep(e, dst, inner.index), self.size)
        f.jump(out)
        f.label(out)
        f.finish()

    def transposed(self, f: Fn, side: str, parts: int, whole: str) -> None:
        """dst[k * h + i] = src[i * si + k] for i < parts * w, k < whole: rows from `valid` on are the last one again."""
        w, e, src_e = self.w, self.e, self.ea if side == "a" else self.eb
        top = f.isub("%valid", "1")
        bases = [[f.gep(src_e, "%src", f.imul(f.imin(str(p * w + i), top), "%si")) for i in range(w)] for p in range(parts)]
        with f.loop("0", whole, str(w)) as loop:
            m = self.mask(f, f.isub(whole, loop.index)) if self.target.masked else None
            ahead = f.iadd(loop.index, f.imul("%si", "%h"))               # the next panel
            for base in sum(bases, []):
                f.prefetch(f.gep(src_e, base, ahead), 2)
            cols = [self.transpose(f, [self.vload_side(f, side, f.gep(src_e, base, loop.index), m) for base in rows]) for rows in bases]
            for k in range(w):
                dst = f.gep(e, "%dst", f.imul(f.iadd(loop.index, str(k)), "%h"))
                for p, col in enumerate(cols):
                    self.vstore(f, col[k], f.gep(e, dst, str(p * w)))

    def sides(self, side: str) -> str:
        """The first side whose elements are kept as this one's are: what is written for it serves both."""
        return "a" if self.side["a"] == self.side["b"] else side

    def pack_rows(self, side: str) -> str:
        """The function that packs w rows whose k's lie side by side. One for both sides where it can be: a transpose takes LLVM
        longer than all else here."""
        name = f"pack_rows_{side}"
        if name not in self.m.have:
            self.m.have.add(name)
            f = Fn(self.m, f"internal void @{name}(ptr noalias %dst, ptr noalias %src, i64 %si, i64 %h, i64 %valid, i64 %whole)", "#2")
            self.transposed(f, side, 1, "%whole")
            f.finish()
        return name

    def pack_pairs(self, side: str, parts: int) -> None:
        """Pairs of 16-bit elements as 32-bit words: dst[w * h + i] = (src[i * si + 2 w * sk], the next one along k), w < kc, where `left`
        k's are left in src; what is beyond is 0. Words are stored in ascending w as in `pack`."""
        f = Fn(self.m, f"internal void @pack_{side}(ptr noalias %dst, ptr noalias %src, i64 %si, i64 %sk, i64 %h, "
                       "i64 %valid, i64 %kc, i64 %left)", "#2")
        w, e = self.w, "i16"
        words, halves, lanes = f"<{w} x i32>", f"<{w} x i16>", f"<{w} x i1>"
        labels = {x: f.new_label(x) for x in ("unit_i", "test", "unit_k", "other", "out")}
        load = f.module.intrinsic(halves, f"llvm.masked.load.v{w}i16.p0", "ptr", "i32", lanes, halves)
        load_words = f.module.intrinsic(words, f"llvm.masked.load.v{w}i32.p0", "ptr", "i32", lanes, words)
        store = f.module.intrinsic("void", f"llvm.masked.store.v{w}i32.p0", words, "ptr", "i32", lanes)
        valid = [self.mask(f, f.isub("%valid", str(p * w))) for p in range(parts)]
        own = [self.mask(f, f.isub("%h", str(p * w))) for p in range(parts)]

        def put(value: str, word: str, p: int) -> None:
            ptr = f.gep("i32", "%dst", f.iadd(f.imul(word, "%h"), str(p * w)))
            f.do(f"call void {store}({words} {value}, ptr {ptr}, i32 4, {lanes} {own[p]})")
        f.branch(f.op("icmp eq i64 %si, 1"), labels["unit_i"], labels["test"])
        f.label(labels["unit_i"])
        with f.loop("0", "%kc") as loop:
            k = f.imul(loop.index, "2")
            both = f.icmp("slt", f.iadd(k, "1"), "%left")
            first = f.gep(e, "%src", f.imul(k, "%sk"))
            second = f.gep(e, first, f.op(f"select i1 {both}, i64 %sk, i64 0"))
            keep = f.op(f"select i1 {both}, {lanes} splat (i1 true), {lanes} zeroinitializer")
            for p in range(parts):
                pair = []
                for row, mask in ((first, valid[p]), (second, f.op(f"and {lanes} {valid[p]}, {keep}"))):
                    f.prefetch(f.gep(e, row, f.iadd(f.imul("%sk", str(PREFETCH)), str(p * w))), 2)
                    x = f.op(f"call {halves} {load}(ptr {f.gep(e, row, str(p * w))}, i32 2, {lanes} {mask}, {halves} zeroinitializer)", "l")
                    pair.append(f.op(f"zext {halves} {x} to {words}"))
                high = f.op(f"shl {words} {pair[1]}, splat (i32 16)")
                put(f.op(f"or {words} {pair[0]}, {high}"), loop.index, p)
        f.jump(labels["out"])
        f.label(labels["test"])
        f.branch(f.op("icmp eq i64 %sk, 1"), labels["unit_k"], labels["other"])
        f.label(labels["unit_k"])                           # pairs lie side by side: words are transposed
        top = f.isub("%valid", "1")
        bases = [f.gep(e, "%src", f.imul(f.imin(str(i), top), "%si")) for i in range(parts * w)]
        whole = f.imin("%kc", f.udiv("%left", "2"))
        with f.loop("0", "%kc", str(w)) as loop:
            mask = self.mask(f, f.isub(whole, loop.index))
            ahead = f.imul("2", f.iadd(loop.index, str(w)))
            for i in range(parts * w):
                f.prefetch(f.gep(e, bases[i], ahead), 2)
            at = f.imul("2", loop.index)
            for p in range(parts):
                rows = []
                for i in range(w):
                    x = f.op(f"call {words} {load_words}(ptr {f.gep(e, bases[p * w + i], at)}, i32 2, {lanes} {mask}, {words} zeroinitializer)", "l")
                    rows.append(f.op(f"bitcast {words} {x} to {self.v}"))
                for i, col in enumerate(self.transpose(f, rows)):
                    word = f.iadd(loop.index, str(i))
                    with f.when(f.icmp("slt", word, "%kc")):
                        put(f.op(f"bitcast {self.v} {col} to {words}"), word, p)
        with f.when(f.icmp("slt", whole, "%kc")), f.loop("0", f.imin("%valid", "%h")) as i:         # an odd k at the end
            x = f.load(e, f.gep(e, "%src", f.iadd(f.imul(i.index, "%si"), f.imul("2", whole))), 2)
            f.store("i32", f.op(f"zext i16 {x} to i32"), f.gep("i32", "%dst", f.iadd(f.imul(whole, "%h"), i.index)), 4)
        f.jump(labels["out"])
        f.label(labels["other"])
        with f.loop("0", "%kc") as loop:
            k = f.imul(loop.index, "2")
            both = f.icmp("slt", f.iadd(k, "1"), "%left")
            next_ = f.op(f"select i1 {both}, i64 %sk, i64 0")
            with f.loop("0", f.imin("%valid", "%h")) as i:
                ptr = f.gep(e, "%src", f.iadd(f.imul(i.index, "%si"), f.imul(k, "%sk")))
                low, high = (f.op(f"zext i16 {f.load(e, x, 2)} to i32") for x in (ptr, f.gep(e, ptr, next_)))
                high = f.op(f"select i1 {both}, i32 {f.op(f'shl i32 {high}, 16')}, i32 0")
                f.store("i32", f.op(f"or i32 {low}, {high}"), f.gep("i32", "%dst", f.iadd(f.imul(loop.index, "%h"), i.index)), 4)
            with f.loop(f.imin("%valid", "%h"), "%h") as i:
                f.store("i32", "0", f.gep("i32", "%dst", f.iadd(f.imul(loop.index, "%h"), i.index)), 4)
        f.jump(labels["out"])
        f.label(labels["out"])
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

    def few_runs(self, f: Fn, side: str, parts: int, valid: str, offset, done: str) -> None:
        """The usual case of a convolution: every vector of a panel is made of at most three runs of neighbouring i. Each k
        takes one load per run, merged by masks, and one store. Leaves to `done` when it applied."""
        w, e, src_e = self.w, self.e, self.ea if side == "a" else self.eb
        vectors, complete = [], "true"
        smax = f.module.intrinsic("i64", "llvm.smax.i64", "i64", "i64")
        for p in range(parts):
            room = f.op(f"call i64 {smax}(i64 {f.imin(f.isub(valid, str(p * w)), str(w))}, i64 0)")
            start, segments = "0", []
            for _ in range(3):
                at = f.imin(f.iadd(start, str(p * w)), f.isub(valid, "1"))
                left = f.isub(room, start)
                run = f.imin(self.run_length(f, "%it", at, left), left)
                stop = f.iadd(start, run)
                below = self.mask(f, stop)
                mask = below if not segments else f.op(f"and <{w} x i1> {below}, {f.op(f'xor <{w} x i1> {self.mask(f, start)}, splat (i1 true)')}")
                segments.append((f.isub(offset("%it", at), start), mask))
                start = stop
            vectors.append(segments)
            complete = f.both(complete, f.icmp("sge", start, room))
        fast, other = f.new_label("few_runs"), f.new_label("many_runs")
        enough = f.either(f.icmp("sge", self.run_length(f, "%it", "0", f.imin(valid, "8")), "8"), f.icmp("sle", "%kc", "8"))
        first_long = f.icmp("sge", self.run_length(f, "%kt", "0", f.imin("%kc", "8")), "8")
        wanted = f.either(enough, f.op(f"xor i1 {first_long}, true"))
        f.branch(f.both(complete, wanted), fast, other)
        f.label(fast)
        with f.loop("0", "%kc") as k:
            src = f.gep(src_e, "%src", offset("%kt", k.index))
            dst = f.gep(e, "%dst", f.imul(k.index, "%h"))
            for p, segments in enumerate(vectors):
                value = "zeroinitializer"
                for shift, mask in segments:
                    value = self.vload_side(f, side, f.gep(src_e, src, shift), mask, value)
                self.vstore(f, value, f.gep(e, dst, str(p * w)))
        f.jump(done)
        f.label(other)

    def pack_tables(self, side: str, parts: int) -> None:
        """dst[k * h + i] = src[it[i] + kt[k]]: by runs of neighbouring i, or transposing runs of neighbouring k."""
        f = Fn(self.m, f"internal void @pack_{side}_tables(ptr noalias %dst, ptr noalias %src, ptr %it, ptr %kt, i64 %h, i64 %most, i64 %kc)", "#2")
        w, e, src_e = self.w, self.e, self.ea if side == "a" else self.eb
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
        if self.target.masked:
            self.few_runs(f, side, parts, valid, offset, done)
        run_i = self.run_length(f, "%it", "0", valid)
        run_k = self.run_length(f, "%kt", "0", f.imin("%kc", str(w)))
        if not self.target.masked:
            f.jump(by_i)
        else:
            f.branch(f.either(f.icmp("sge", run_i, "8"), f.icmp("sge", run_i, run_k)), by_i, by_k)
        f.label(by_i)
        with runs("%it", valid, str(parts * w)) as (at, length):
            base = f.gep(src_e, "%src", offset("%it", at))
            masks = [self.mask(f, f.isub(length, str(p * w))) for p in range(parts)] if self.target.masked else []
            with f.loop("0", "%kc") as k:
                src = f.gep(src_e, base, offset("%kt", k.index))
                dst = f.gep(e, "%dst", f.iadd(f.imul(k.index, "%h"), at))
                for p, mask in enumerate(masks):
                    self.vstore(f, self.vload_side(f, side, f.gep(src_e, src, str(p * w)), mask), f.gep(e, dst, str(p * w)), mask)
                if not masks:
                    with f.loop("0", length) as i:
                        f.store(e, self.load_side(f, side, f.gep(src_e, src, i.index)), f.gep(e, dst, i.index), self.size)
        f.jump(done)
        f.label(by_k)
        if self.target.masked:
            top = f.isub(valid, "1")
            bases = [f.gep(src_e, "%src", offset("%it", f.imin(str(i), top))) for i in range(parts * w)]
            with runs("%kt", "%kc", str(w)) as (at, length):
                shift = offset("%kt", at)
                mask = self.mask(f, length)
                cols = [self.transpose(f, [self.vload_side(f, side, f.gep(src_e, bases[p * w + i], shift), mask) for i in range(w)])
                        for p in range(parts)]
                for k in range(w):                            # rows beyond the run are overwritten by the next one
                    dst = f.gep(e, "%dst", f.imul(f.iadd(at, str(k)), "%h"))
                    for p in range(parts):
                        self.vstore(f, cols[p][k], f.gep(e, dst, str(p * w)))
        f.jump(done)
        f.label(done)
        f.finish()
