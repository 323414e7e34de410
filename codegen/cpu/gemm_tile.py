"""The GEMM's register tiles: one function per height and width, and how the drivers call them."""
from __future__ import annotations

from dataclasses import dataclass, replace

from .gemm_base import PREFETCH, Base
from .irtext import Fn

WALK_PARAMS = ", ptr %far, i64 %lines, i64 %hop, i64 %beside"


@dataclass(frozen=True)
class Tile:
    """What one turn of the innermost loop works on: depth, A's panel, where B's panel is packed, C's tile, its part that exists, whether
    C is overwritten, the height of the panel."""

    k: str
    a: str
    b: str
    c: str
    ldc: str
    cols: str
    rows: str
    first: str
    height: str


@dataclass(frozen=True)
class Walk:
    """What a tile brings to L2 while it multiplies, with each k a line (64 bytes) at `far` and, where B's rows are longer than that, one
    `beside` bytes further: `lines` lines of a row, then those of the row `hop` bytes further, and so on."""

    far: str
    lines: str = "1"
    hop: str = "0"
    beside: str = "0"

    def unless(self, f: Fn, cond: str, other: Walk) -> Walk:
        """`other` where `cond` holds."""
        return Walk(f.op(f"select i1 {cond}, ptr {other.far}, ptr {self.far}"),
                    *(f.op(f"select i1 {cond}, i64 {y}, i64 {x}") for x, y in
                      ((self.lines, other.lines), (self.hop, other.hop), (self.beside, other.beside))))


@dataclass(frozen=True)
class RowsOfA:
    """A panel of A that is not packed where `holds`: its rows lie `lda` bytes apart from `at` on."""

    holds: str
    at: str
    lda: str


class WalkSlot:
    """A walk in memory, for functions that choose one."""

    def __init__(self, f: Fn, slot: str = ""):
        self.f, self.slot = f, slot or f.alloca("[4 x i64]", 8)

    def _places(self) -> list[str]:
        return [self.f.gep("i64", self.slot, str(i)) for i in range(4)]

    def set(self, walk: Walk) -> None:
        far, *rest = self._places()
        self.f.store("ptr", walk.far, far, 8)
        for place, value in zip(rest, (walk.lines, walk.hop, walk.beside)):
            self.f.store("i64", value, place, 8)

    def get(self) -> Walk:
        far, *rest = self._places()
        return Walk(self.f.load("ptr", far, 8), *(self.f.load("i64", place, 8) for place in rest))


class Tiles(Base):
    """Writes the tile functions (into a module of their own, compiled beside the rest) and the calls of them."""

    def micro(self, h: int, nw: int, packs: bool = False, in_rows: bool = False) -> str:
        """C[h x nw vectors] (+)= Apanel[k][h] @ B[k][ldb]; `cols`, `rows` = what of the tile exists (masked targets).
        With `packs`, B (a whole panel, unpacked) is also written to `packed` on the way: packing hides behind arithmetic.
        With `in_rows`, A lies unpacked: rows `lda` bytes apart (all h exist), along k without gaps.
        It also walks over what is to come to L2 meanwhile, two lines of memory with each k (see Walk)."""
        name = f"tile_{h}x{nw}" + ("_packing" if packs else "_rows" if in_rows else "")
        f = Fn(self.tiles, f"void @{name}(i64 %k, ptr noalias %a{', i64 %lda' if in_rows else ''}, ptr noalias %b, i64 %ldb, ptr noalias %c, "
                       f"i64 %ldc, i64 %cols, i64 %rows, i1 %first{', ptr noalias %packed' if packs else WALK_PARAMS})", "#2")
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
        init, fresh, go = f.new_label("load"), f.new_label("fresh"), f.new_label("go")
        lines = range(0, nw * self.w, max(1, 64 // self.size))
        f.branch("%first", fresh, init)
        f.label(init)
        loaded = [self.vload(f, *at(i, j)) for i in range(h) for j in range(nw)]
        for i in range(h):                                     # the next tile's sums: they were last used a block of k ago
            for j in lines:
                f.prefetch(f.gep(self.e, rows[i], str(nw * self.w + j)))
        f.jump(go)
        f.label(fresh)
        for i in range(h):                                     # these sums' places: stores of lines that are not there would queue up
            for j in lines:
                f.prefetch(f.gep(self.e, rows[i], str(j)), write=True)
        f.jump(go)
        f.label(go)
        start = [f.op(f"phi {self.v} [ zeroinitializer, %{fresh} ], [ {x}, %{init} ]") for x in loaded]
        # A's pointer and B's pointer advance; the accumulators stay in registers
        # (rows: one pointer for several of them, from which x86 addresses those 1, 2, 4 and 8 times lda further)
        bases = range(0, h, 3) if in_rows else (0,)
        reach = {b + d: (n, d) for n, b in reversed(list(enumerate(bases))) for d in (8, 4, 2, 1, 0)} if in_rows else {}
        heads = [f.op(f"getelementptr i8, ptr %a, i64 {f.imul('%lda', str(b))}") if b else "%a" for b in bases]
        carried = [*(("ptr", x) for x in heads), ("ptr", "%b"), *((self.v, x) for x in start)]
        walks = nw == self.t.nw and not packs
        if walks:
            carried += [("ptr", "%far"), ("ptr", "%far"), ("i64", "%lines")]
        ahead = f.imul("%ldb", str(PREFETCH // 2))
        eb = self.eb if packs else self.e

        def element(heads: list[str], i: int) -> str:
            """Where row i's element of A lies."""
            if not in_rows:
                return f.gep(self.e, heads[0], str(i))
            n, d = reach[i]
            return f.op(f"getelementptr i{8 * d}, ptr {heads[n]}, i64 %lda") if d else heads[n]

        def step(heads: list[str], b: str, acc: list[str], packed: str = "") -> list[str]:
            if not in_rows:
                f.prefetch(f.gep(self.e, heads[0], str(PREFETCH // 2 * h)))    # B's panels pass through L1 and push A's out
            soon = f.gep(eb, b, ahead)                         # B's panels come from L2
            for j in lines:
                f.prefetch(f.gep(eb, soon, str(j)))
                if packs:                                      # the next panel, which the next tile packs, comes from far
                    f.prefetch(f.gep(eb, b, str(nw * self.w + j)), 2)
            bs = [self.vload_side(f, "b", f.gep(eb, b, str(j * self.w))) if packs else
                  self.packed_row(f, f.gep(eb, b, str(j * self.w))) for j in range(nw)]
            for j in range(nw if packs else 0):
                self.vstore(f, bs[j], f.gep(self.e, packed, str(j * self.w)))
            out = []
            for i in range(h):
                x = self.packed_splat(f, element(heads, i))
                out += [self.packed_fma(f, x, bs[j], acc[i * nw + j]) for j in range(nw)]
                if in_rows:                                    # LLVM would load all rows' elements at once and run out of registers
                    out[-nw:] = self.in_order(f, out[-nw:])
            return out

        with f.loop("0", "%k", carried=carried) as loop:
            heads, b, acc = loop.values[:len(bases)], loop.values[len(bases)], loop.values[len(bases) + 1:]
            acc, walk = (acc[:-3], acc[-3:]) if walks else (acc, [])
            packed = f.gep(self.e, "%packed", f.imul(loop.index, str(self.t.nr))) if packs else ""
            walk = self.walk(f, *walk)                         # in front: LLVM loads nothing earlier than a prefetch before it
            by = "1" if in_rows else str(h)
            after = [f.gep(self.e, x, by) for x in heads]
            if in_rows:                                        # opaque: LLVM would keep a pointer for every row
                after = [f.op(f'call ptr asm "", "=r,0"(ptr {x})') for x in after]
            loop.next = [*after, f.gep(eb, b, "%ldb"), *step(heads, b, acc, packed), *walk]
        for i in range(h):
            for j in range(nw):
                self.vstore(f, loop.results[len(bases) + 1 + i * nw + j], *at(i, j))
        f.finish()
        return name

    def in_order(self, f: Fn, values: list[str]) -> list[str]:
        """The values, of which LLVM believes that memory changes once they are there: it loads later what comes later."""
        n = len(values)
        type_ = "{ " + ", ".join([self.v] * n) + " }"
        shape = ",".join(["=v"] * n + [str(i) for i in range(n)] + ["~{memory}"])
        out = f.op(f'call {type_} asm sideeffect "", "{shape}"({", ".join(f"{self.v} {x}" for x in values)})')
        return [f.op(f"extractvalue {type_} {out}, {i}") for i in range(n)]

    def walk(self, f: Fn, at: str = "", row: str = "", left: str = "") -> list[str]:
        """A step of the walk of a tile (none: it has none); where it is then."""
        if not at:
            return []
        f.prefetch(at, 2)
        if self.t.nr * self.size > 64:
            f.prefetch(f.gep("i8", at, "%beside"), 2)
        further, below = f.gep("i8", at, "64"), f.gep("i8", row, "%hop")
        left = f.isub(left, "1")
        turn = f.icmp("eq", left, "0")
        return [f.op(f"select i1 {turn}, ptr {below}, ptr {further}"), f.op(f"select i1 {turn}, ptr {below}, ptr {row}"),
                f.op(f"select i1 {turn}, i64 %lines, i64 {left}")]

    def walk_streams(self) -> None:
        """Tile number `tile` of a panel walks over its share of what the panel's epilogue will read beside C (`streams`, see gemm.py): as many
        whole rows as its k's are enough for. No walk where they are not enough for one, and for tiles that are left over."""
        f = Fn(self.m, "internal void @walk_streams(ptr %slot, ptr %streams, i64 %tile, i64 %height, i64 %k, i64 %row, i64 %col, i64 %n)", "#2")
        size = str(self.size)
        lines = f.iadd(f.udiv(f.imul("%n", size), "64"), "1")
        each = f.udiv("%k", lines)
        with f.when(f.icmp("ne", each, "0")):
            half = f.udiv("%height", "2")                            # the other half is `beside`
            share = f.udiv(f.iadd(half, f.isub(each, "1")), each)
            stream = f.udiv("%tile", share)
            with f.when(f.icmp("slt", stream, f.load("i64", "%streams", 8))):
                entry = f.gep("i64", "%streams", f.iadd(f.imul(stream, "2"), "1"))
                stride = f.load("i64", f.gep("i64", entry, "1"), 8)
                row = f.iadd("%row", f.imul(f.urem("%tile", share), each))
                far = f.gep(self.e, f.load("ptr", entry, 8), f.iadd(f.imul(row, stride), "%col"))
                hop = f.imul(stride, size)
                WalkSlot(f, "%slot").set(Walk(far, lines, hop, f.imul(hop, half)))
        f.finish()

    def walk_block(self) -> None:
        """Tile number `tile` of `tiles` walks over its share of a block of B that lies row by row (k rows of n, `hop` bytes apart) and is needed next: left
        to the first row of tiles that reads it, all of it would have to come at once, while the others need nothing from far."""
        f = Fn(self.m, "internal void @walk_block(ptr %slot, ptr %b, i64 %hop, i64 %tile, i64 %tiles, i64 %k, i64 %n)", "#2")
        size = self.bytes["b"]
        part = f.udiv(f.iadd("%k", "1"), "2") if self.t.nr * self.size > 64 else "%k"      # where there is a `beside`
        share = f.udiv(f.iadd(part, f.isub("%tiles", "1")), "%tiles")
        row = f.imul("%tile", share)
        with f.when(f.icmp("slt", row, part)):
            far = f.op(f"getelementptr i8, ptr %b, i64 {f.imul(row, '%hop')}")
            lines = f.iadd(f.udiv(f.imul("%n", str(size)), "64"), "1")
            WalkSlot(f, "%slot").set(Walk(far, lines, "%hop", f.imul("%hop", part)))
        f.finish()

    def packing_heights(self) -> list[int]:
        """Heights of the panels of a matrix that is tall enough for packing B (see `few` in `single`)."""
        return [self.t.mr - 2, self.t.mr]

    def packing_tile(self, f: Fn, tile: Tile, b: str) -> None:
        """The first tile of a column of tiles: packs its panel of B, which lies at `b`."""
        done = f.new_label("packed")
        labels = {h: f.new_label("packing") for h in self.packing_heights()}
        f.do(f"switch i64 {tile.height}, label %{done} [ {' '.join(f'i64 {h}, label %{x}' for h, x in labels.items())} ]")
        for h, label in labels.items():
            f.label(label)
            f.do(f"call void @tile_{h}x{self.t.nw}_packing(i64 {tile.k}, ptr {tile.a}, ptr {b}, i64 %brs, ptr {tile.c}, i64 {tile.ldc}, "
                 f"i64 {tile.cols}, i64 {tile.rows}, i1 {tile.first}, ptr {tile.b})")
            f.jump(done)
        f.label(done)

    def rows_tile(self, f: Fn, a: RowsOfA, tile: Tile, b: str, ldb: str, walk: Walk, done: str) -> None:
        """Where A's panel is not packed: its tile, and on to `done`."""
        rows, other = f.new_label("rows"), f.new_label("panel")
        labels = {h: f.new_label("rows.tile") for h in self.packing_heights()}
        f.branch(a.holds, rows, other)
        f.label(rows)
        f.do(f"switch i64 {tile.height}, label %{done} [ {' '.join(f'i64 {h}, label %{x}' for h, x in labels.items())} ]")
        for h, label in labels.items():
            f.label(label)
            f.do(f"call void @tile_{h}x{self.t.nw}_rows(i64 {tile.k}, ptr {a.at}, i64 {a.lda}, ptr {b}, i64 {ldb}, ptr {tile.c}, i64 {tile.ldc}, "
                 f"i64 {tile.cols}, i64 {tile.rows}, i1 {tile.first}, ptr {walk.far}, i64 {walk.lines}, i64 {walk.hop}, i64 {walk.beside})")
            f.jump(done)
        f.label(other)

    def call_tile(self, f: Fn, tile: Tile, b: str, ldb: str, walk: Walk) -> None:
        """Pick the register tile for this height and width."""
        done = f.new_label("tiled")
        narrow = f.icmp("sle", tile.cols, str(self.w))
        key = f.iadd(f.op(f"mul i64 {tile.height}, 2"), f.op(f"zext i1 {narrow} to i64"))
        labels = {(h, nw): f.new_label("tile") for h in self.t.heights for nw in (1, self.t.nw)}
        cases = " ".join(f"i64 {h * 2 + (nw == 1)}, label %{lab}" for (h, nw), lab in labels.items())
        f.do(f"switch i64 {key}, label %{done} [ {cases} ]")
        for (h, nw), lab in labels.items():
            f.label(lab)
            f.do(f"call void @tile_{h}x{nw}(i64 {tile.k}, ptr {tile.a}, ptr {b}, i64 {ldb}, ptr {tile.c}, i64 {tile.ldc}, i64 {tile.cols}, "
                 f"i64 {tile.rows}, i1 {tile.first}, ptr {walk.far}, i64 {walk.lines}, i64 {walk.hop}, i64 {walk.beside})")
            f.jump(done)
        f.label(done)

    def any_tile(self, f: Fn, temporary: str, tile: Tile, b: str, ldb: str, walk: Walk) -> None:
        """A tile whose B lies at `b`, rows `ldb` apart."""
        if self.target.masked:
            self.call_tile(f, tile, b, ldb, walk)
        else:
            self.edge_tile(f, temporary, tile, b, ldb, walk)

    def edge_tile(self, f: Fn, temporary: str, tile: Tile, b: str, ldb: str, walk: Walk) -> None:
        """Targets without cheap masks: a tile that sticks out is computed in a temporary one."""
        nr = str(self.t.nr)
        part = f.either(f.icmp("slt", tile.cols, nr), f.icmp("slt", tile.rows, tile.height))
        edge, whole, done = f.new_label("edge"), f.new_label("whole"), f.new_label("done")
        f.branch(part, edge, whole)
        f.label(whole)
        self.call_tile(f, replace(tile, cols=nr), b, ldb, walk)
        f.jump(done)
        f.label(edge)

        def copy(src: str, lds: str, dst: str, ldd: str) -> None:
            with f.loop("0", tile.rows) as i, f.loop("0", tile.cols) as j:
                value = f.load(self.e, f.gep(self.e, src, f.iadd(f.imul(i.index, lds), j.index)), self.size)
                f.store(self.e, value, f.gep(self.e, dst, f.iadd(f.imul(i.index, ldd), j.index)), self.size)
        with f.when(f.op(f"xor i1 {tile.first}, true")):
            copy(tile.c, tile.ldc, temporary, nr)
        self.call_tile(f, replace(tile, c=temporary, ldc=nr, cols=nr), b, ldb, walk)
        copy(temporary, nr, tile.c, tile.ldc)
        f.jump(done)
        f.label(done)
