"""loop.pack and loop.contract_packed: codes of cheap weights, and integer rows times them. One function per format and size.

A register holds the codes of 4 (16 bytes) to 16 (64 bytes) columns, four k each; an activation is broadcast as four k of one row. The units that
threads share are tiles of the result: a few panels of 16 columns by a few rows; integer sums are the same in any order. Rows of windows overlap in
memory: a tile's rows are neighbours along the innermost dim of positions, and what is summed over comes in runs of neighbours.

* One row: codes are read once, so the order in memory is what counts: panel by panel, one line after the other, as a read of plain memory
  (four panels side by side reached two thirds of it). A few steps at a time have sums of their own, to hide their latency. Codes of two and four bits
  are not shifted: masked in place they are multiplied as 1, 4, 16 and 64 times themselves into sums of their own, which are shifted once at the end.
* More rows: codes are unpacked once for all rows of the tile.
"""
from __future__ import annotations

from math import prod

from ...compiler.ir.core import Op
from ...compiler.ops.packed import COLUMNS, FORMATS, STEP_BYTES, Format, row_dims
from .emit_kernel import NAME
from .gemm_pack import Pack as Columns
from .irtext import Fn, Module
from .packed_dot import Dot
from .target import CpuTarget


def contract_cost(op: Op, target: CpuTarget) -> float:
    """Cycles, about."""
    return op.operands[1].type.numel * op.operands[0].type.shape[-1] / target.vector_bytes * 1.5


class Contract:
    """Writes the function of one loop.contract_packed: rows `m`, columns `n`, depth `k` are constants in it. The rows are `outer` (sizes,
    strides of x in bytes, of the result in elements) runs of `near` rows, `step` bytes and `row` elements apart; the depth is `taps` (sizes, strides
    of x) of `run` neighbours. Columns are `column` elements apart."""

    def __init__(self, target: CpuTarget, op: Op):
        self.fmt: Format = FORMATS[op.attrs["format"]]
        self.target, self.d, self.turn = target, Dot(target, self.fmt), Columns(target, "i32")
        out, x = (v.type for v in op.operands[:2])
        (lead, depth), size = row_dims(x, op.attrs), x.dtype.bytes
        strides = [s * size for s in x.element_strides]
        self.m, self.n, (*steps, self.row, self.column) = prod(lead), out.shape[-1], out.element_strides
        self.outer, self.near, self.step = list(zip(lead[:-1], strides, steps)), lead[-1], strides[len(lead) - 1]
        self.taps, self.run, self.x_size = list(zip(depth[:-1], strides[len(lead):])), depth[-1], size
        self.k = prod(depth)
        self.steps, self.run_steps = self.k // self.fmt.group, self.run // self.fmt.group
        self.panels = -(-self.n // COLUMNS)
        self.vectors = COLUMNS // self.d.lanes              # of a panel
        self.parts = 1 if self.fmt.bits >= 8 else 8 // self.fmt.bits
        many = target.registers >= 32
        # codes masked in place are bytes up to 240: as they are for instructions that take them unsigned and do not saturate
        whole_bytes = self.fmt.bits == 2 or not self.fmt.powers and (self.d.vnni or target.name != "avx2")
        self.line = self.m == 1 and not self.taps
        self.own_sums = self.line and self.parts > 1 and whole_bytes and not self.d.sdot and self.k < 1 << 17
        if self.line:
            self.rows, self.across = 1, 1
        else:
            self.across = 2 if many and self.vectors == 1 else 1
            room = (24 if many else 8) // (self.across * self.vectors)
            blocks = -(-self.near // room)
            self.rows = -(-self.near // blocks)
        self.blocks = -(-self.near // self.rows)                # of a run of rows
        self.groups = -(-self.panels // self.across)

    @property
    def units(self) -> int:
        return self.m // self.near * self.blocks * self.groups

    def text(self, module: Module) -> str:
        """The function under the placeholder name; its tiles are written out for the few shapes that occur."""
        f = Fn(module, f"void {NAME}(ptr %rt, i64 %lo, i64 %hi, ptr noalias %c, ptr noalias %x, ptr noalias %w)", "#2")
        self.edge = f.alloca(f"[{COLUMNS} x i32]")
        if self.line and self.d.offset:
            self.row_sum = self.sum_of_row(f, "%x")
        with f.loop("%lo", "%hi") as u:
            across = str(self.m // self.near * self.blocks)
            group, at = f.udiv(u.index, across), f.urem(u.index, across)
            run, block = f.udiv(at, str(self.blocks)), f.urem(at, str(self.blocks))
            first, panel = f.imul(block, str(self.rows)), f.imul(group, str(self.across))
            x, c = f.gep("i8", "%x", f.imul(first, str(self.step))), f.gep("i32", "%c", f.imul(first, str(self.row)))
            for i, (n, stride, step) in reversed(list(enumerate(self.outer))):
                here = f.urem(run, str(n)) if i else run
                x, c = f.gep("i8", x, f.imul(here, str(stride))), f.gep("i32", c, f.imul(here, str(step)))
                run = f.udiv(run, str(n)) if i else run
            shapes = [(r, a) for r in {self.rows, self.near - (self.blocks - 1) * self.rows}
                      for a in {self.across, self.panels - (self.groups - 1) * self.across}]
            for r, a in sorted(shapes):
                here = f.icmp("eq", f.imin(str(self.rows), f.isub(str(self.near), first)), str(r))
                here = f.both(here, f.icmp("eq", f.imin(str(self.across), f.isub(str(self.panels), panel)), str(a)))
                with f.when(here):
                    if self.line:
                        self.one_row(f, panel)
                    else:
                        self.tile(f, r, a, x, c, panel)
        f.do("ret void")
        body = "\n".join(["entry:", *f.entry, *f.lines])
        return f"define {f.header} {f.attrs} {{\n{body}\n}}"

    def one_row(self, f: Fn, panel: str) -> None:
        """One row times one panel: its lines in order, `turns` of them with sums of their own."""
        d, v = self.d, self.d.v
        w = f.gep("i8", "%w", f.imul(panel, str(self.steps * STEP_BYTES)))
        sums = self.parts if self.own_sums else 1
        turns = max(1, min(8 // (sums * self.vectors), self.steps))
        whole = self.steps // turns * turns

        def step(s: str, acc: list[str]) -> None:
            """Adds a step's products to acc: [vector of the panel][part]."""
            at = f.imul(s, str(STEP_BYTES))
            codes = [f.load(v, f.gep("i8", w, f.iadd(at, str(i * self.target.vector_bytes))), 16) for i in range(self.vectors)]
            for j in range(self.parts):
                x = d.splat(f, f.load("i32", f.gep("i8", "%x", f.imul(f.iadd(f.imul(s, str(self.parts)), str(j)), "4")), self.x_size))
                for i, c in enumerate(codes):
                    cell = i * sums + (j if self.own_sums else 0)
                    acc[cell] = d.dot(f, acc[cell], d.masked(f, c, j) if self.own_sums else d.unpack(f, c, j), x)

        each = self.vectors * sums
        first = [self.start(f, 1, ["%x"])[0] if c % sums == 0 else "zeroinitializer" for c in range(each)]
        carried = [(v, x) for x in first + ["zeroinitializer"] * (each * (turns - 1))]
        with f.loop("0", str(whole), str(turns), carried=carried, nonempty=True) as loop:
            acc = list(loop.values)
            for t in range(turns):
                part = acc[t * each:(t + 1) * each]
                step(f.iadd(loop.index, str(t)), part)
                acc[t * each:(t + 1) * each] = part
            loop.next = acc
        total = loop.results[:each]
        for t in range(1, turns):
            total = [f.op(f"add {v} {a}, {b}") for a, b in zip(total, loop.results[t * each:(t + 1) * each])]
        for s in range(whole, self.steps):
            step(str(s), total)
        for i in range(self.vectors):
            out = total[i * sums]
            for j in range(1, sums):
                out = f.op(f"add {v} {out}, {f.op(f'ashr {v} {total[i * sums + j]}, splat (i32 {self.fmt.bits * j})')}")
            self.store(f, [out], "%c", panel, i)

    def tile(self, f: Fn, rows: int, across: int, x: str, c: str, panel: str) -> None:
        """`rows` rows that begin at x, their results at c, by `across` panels: codes are unpacked once for all rows."""
        d, v = self.d, self.d.v
        xs = [f.gep("i8", x, str(i * self.step)) for i in range(rows)]
        ws = [f.gep("i8", "%w", f.imul(f.iadd(panel, str(a)), str(self.steps * STEP_BYTES))) for a in range(across)]
        cells = [(i, a, s) for i in range(rows) for a in range(across) for s in range(self.vectors)]
        start = self.start(f, rows, xs)
        carried = [(v, start[i]) for i, _, _ in cells]

        def step(here: str, steps: str, acc: list[str]) -> list[str]:
            """The step of codes number `steps`, for activations `here` bytes from a row's start."""
            at = f.imul(steps, str(STEP_BYTES))
            codes = [f.load(v, f.gep("i8", w, f.iadd(at, str(s * self.target.vector_bytes))), 16) for w in ws for s in range(self.vectors)]
            for j in range(self.parts):
                now = [d.unpack(f, c, j) for c in codes]
                k = f.iadd(here, str(4 * j))
                for i in range(rows):
                    value = d.splat(f, f.load("i32", f.gep("i8", xs[i], k), self.x_size))
                    for c in range(across * self.vectors):
                        cell = i * across * self.vectors + c
                        acc[cell] = d.dot(f, acc[cell], now[c], value)
            return acc
        results = self.along(f, self.run_steps, 4 * self.parts, carried, step)
        tiles: dict[tuple[int, int], list[str]] = {}
        for out, (_, a, s) in zip(results, cells):
            tiles.setdefault((a, s), []).append(out)
        for (a, s), values in tiles.items():
            self.store(f, values, c, f.iadd(panel, str(a)), s)

    def along(self, f: Fn, count: int, bytes_each: int, carried: list[tuple[str, str]], body) -> list[str]:
        """The taps, and `count` steps of `bytes_each` in each: body(bytes from a row's start, number of the step, carried) gives what is carried on."""
        def nest(level: int, base: str, before: str, values: list[str]) -> list[str]:
            inner = level == len(self.taps)
            size = count if inner else self.taps[level][0]
            stride = bytes_each if inner else self.taps[level][1]
            with f.loop("0", str(size), carried=[(t, x) for (t, _), x in zip(carried, values)], nonempty=True) as loop:
                here = f.iadd(base, f.imul(loop.index, str(stride)))
                number = f.iadd(f.imul(before, str(size)), loop.index) if level else loop.index
                loop.next = body(here, number, list(loop.values)) if inner else nest(level + 1, here, number, list(loop.values))
            return list(loop.results)
        return nest(0, "0", "0", [x for _, x in carried])

    def start(self, f: Fn, rows: int, xs: list[str]) -> list[str]:
        """Codes are values plus an offset: sums begin with - offset times the row's sum."""
        if not self.d.offset:
            return ["zeroinitializer"] * rows
        out = []
        for x in xs:
            total = self.row_sum if self.line else self.sum_of_row(f, x)
            out.append(self.d.splat(f, f.op(f"mul i32 {total}, {-self.d.offset}")))
        return out

    def sum_of_row(self, f: Fn, x: str) -> str:
        """The sum of a row of int8: products with ones, whole vectors and the rest of each run (a multiple of 4)."""
        d, size = self.d, self.target.vector_bytes
        whole, rest = divmod(self.run, size)
        ones = f"splat (i32 {d.one * 0x01010101 - (1 << 32 if d.one > 127 else 0)})"

        def vector(here: str, _: str, acc: list[str]) -> list[str]:
            return [d.dot(f, acc[0], ones, f.load(d.v, f.gep("i8", x, here), 1))]

        def shorter(here: str, _: str, acc: list[str]) -> list[str]:
            y = f.load(f"<{rest} x i8>", f.gep("i8", x, f.iadd(here, str(whole * size))), 1)
            at = ", ".join(f"i32 {min(i, rest)}" for i in range(size))
            y = f.op(f"shufflevector <{rest} x i8> {y}, <{rest} x i8> zeroinitializer, <{size} x i32> <{at}>")
            return [d.dot(f, acc[0], ones, f.op(f"bitcast {d.bytes} {y} to {d.v}"))]
        acc = "zeroinitializer"
        if whole:
            acc, = self.along(f, whole, size, [(d.v, acc)], vector)
        if rest:
            acc, = self.along(f, 1, 0, [(d.v, acc)], shorter)
        name = f.module.intrinsic("i32", f"llvm.vector.reduce.add.v{d.lanes}i32", d.v)
        return f.op(f"call i32 {name}({d.v} {acc})")

    def store(self, f: Fn, values: list[str], c: str, panel: str, part: int) -> None:
        """The sums of neighbouring rows for the part-th vector of a panel's columns."""
        d = self.d
        column = f.iadd(f.imul(panel, str(COLUMNS)), str(part * d.lanes))
        to = f.gep("i32", c, f.imul(column, str(self.column)))
        last = max(0, min(d.lanes, self.n - (self.panels - 1) * COLUMNS - part * d.lanes))
        if last == d.lanes:
            self.store_columns(f, values, to, last)
            return
        whole, partial, done = (f.new_label(x) for x in ("whole", "partial", "stored"))
        f.branch(f.icmp("slt", panel, str(self.panels - 1)), whole, partial)
        f.label(whole)
        self.store_columns(f, values, to, d.lanes)
        f.jump(done)
        f.label(partial)
        self.store_columns(f, values, to, last)
        f.jump(done)
        f.label(done)

    def store_columns(self, f: Fn, values: list[str], to: str, count: int) -> None:
        """The first `count` columns: whole vectors where columns are neighbours in the result, or, turned in registers, where rows are."""
        d, turn = self.d, self.turn
        if self.column == 1 and count == d.lanes:
            for i, x in enumerate(values):
                f.store(d.v, x, f.gep("i32", to, str(i * self.row)), 4)
        elif self.row == 1 and len(values) > 1:
            for first in range(0, len(values), d.lanes):
                rows = values[first:first + d.lanes]
                columns = turn.transpose(f, rows + ["zeroinitializer"] * (d.lanes - len(rows)))
                for j in range(count):
                    turn.vstore(f, columns[j], f.gep("i32", to, str(j * self.column + first)), turn.first_lanes(len(rows)))
        else:
            for i, x in enumerate(values):
                f.store(d.v, x, self.edge, 64)
                for j in range(count):
                    f.store("i32", f.load("i32", f.gep("i32", self.edge, str(j)), 4), f.gep("i32", to, str(i * self.row + j * self.column)), 4)


class Pack:
    """Writes the function of one loop.pack; its units are panels."""

    def __init__(self, target: CpuTarget, op: Op):
        self.fmt = FORMATS[op.attrs["format"]]
        values = op.operands[1].type
        self.k, self.n = values.shape
        self.sk, self.sn = values.element_strides
        self.size = values.dtype.bytes
        self.steps = -(-self.k // self.fmt.group)
        self.units = -(-self.n // COLUMNS)
        self.cost = self.units * self.steps * self.fmt.group * (1.5 if self.sn == 1 else 16.0)

    def text(self, module: Module) -> str:
        """Blocks of group x 16 values, from where they are or (at edges, or when columns are not neighbours) from a copy with zeros around."""
        f = Fn(module, f"void {NAME}(ptr %rt, i64 %lo, i64 %hi, ptr noalias %out, ptr noalias %values)", "#2")
        group, size = self.fmt.group, self.size
        e = f"i{8 * size}"
        copy = f.alloca(f"[{group * COLUMNS} x {e}]")
        with f.loop("%lo", "%hi") as p, f.loop("0", str(self.steps), nonempty=True) as s:
            j0, k0 = f.imul(p.index, str(COLUMNS)), f.imul(s.index, str(group))
            here = f.gep(e, "%values", f.iadd(f.imul(k0, str(self.sk)), f.imul(j0, str(self.sn))))
            inside = f.both(f.icmp("sle", f.iadd(k0, str(group)), str(self.k)), f.icmp("sle", f.iadd(j0, str(COLUMNS)), str(self.n)))
            if self.sn != 1:
                inside = f.both(inside, "false")
            with f.when(f.op(f"xor i1 {inside}, true")):
                f.store(f"<{group * COLUMNS} x {e}>", "zeroinitializer", copy, 64)
                with f.loop("0", f.imin(str(group), f.isub(str(self.k), k0))) as i, f.loop("0", f.imin(str(COLUMNS), f.isub(str(self.n), j0))) as j:
                    x = f.load(e, f.gep(e, here, f.iadd(f.imul(i.index, str(self.sk)), f.imul(j.index, str(self.sn)))), size)
                    f.store(e, x, f.gep(e, copy, f.iadd(f.imul(i.index, str(COLUMNS)), j.index)), size)
            source = f.op(f"select i1 {inside}, ptr {here}, ptr {copy}")
            step = f.op(f"select i1 {inside}, i64 {self.sk}, i64 {COLUMNS}")
            rows = [f.load(f"<{COLUMNS} x {e}>", f.gep(e, source, f.imul(step, str(i))), size) for i in range(group)]
            to = f.gep("i8", "%out", f.imul(f.iadd(f.imul(p.index, str(self.steps)), s.index), str(STEP_BYTES)))
            if size == 2:
                f.store("<32 x i16>", self.interleave(f, rows, e), to, 2)
            else:
                parts = [self.encode(f, self.interleave(f, rows[4 * i:4 * i + 4], e)) for i in range(group // 4)]
                out = parts[0]
                for i, x in enumerate(parts[1:], 1):
                    out = f.op(f"or <64 x i8> {out}, {f.op(f'shl <64 x i8> {x}, splat (i8 {self.fmt.bits * i})')}")
                f.store("<64 x i8>", out, to, 16)
        f.do("ret void")
        body = "\n".join(["entry:", *f.entry, *f.lines])
        return f"define {f.header} {f.attrs} {{\n{body}\n}}"

    def interleave(self, f: Fn, rows: list[str], e: str) -> str:
        """Element c of row i to place c * len(rows) + i."""
        n = len(rows)
        while len(rows) > 1:                                          # neighbours are put end to end, then sorted at one go
            w = COLUMNS * n // len(rows)
            at = ", ".join(f"i32 {i}" for i in range(2 * w))
            rows = [f.op(f"shufflevector <{w} x {e}> {a}, <{w} x {e}> {b}, <{2 * w} x i32> <{at}>") for a, b in zip(rows[::2], rows[1::2])]
        at = ", ".join(f"i32 {i * COLUMNS + c}" for c in range(COLUMNS) for i in range(n))
        w = COLUMNS * n
        return f.op(f"shufflevector <{w} x {e}> {rows[0]}, <{w} x {e}> poison, <{w} x i32> <{at}>")

    def encode(self, f: Fn, x: str) -> str:
        v, fmt = "<64 x i8>", self.fmt
        if fmt.powers:
            size = f.op(f"call {v} {f.module.intrinsic(v, 'llvm.abs.v64i8', v, 'i1')}({v} {x}, i1 false)")
            lead = f.op(f"call {v} {f.module.intrinsic(v, 'llvm.ctlz.v64i8', v, 'i1')}({v} {size}, i1 false)")
            sign = f.op(f"and {v} {f.op(f'ashr {v} {x}, splat (i8 7)')}, splat (i8 8)")
            code = f.op(f"or {v} {f.op(f'sub {v} splat (i8 8), {lead}')}, {sign}")
        else:
            offset = fmt.offset - 256 if fmt.offset > 127 else fmt.offset
            code = f.op(f"add {v} {x}, splat (i8 {offset})")
        return code if fmt.bits == 8 else f.op(f"and {v} {code}, splat (i8 {(1 << fmt.bits) - 1})")
