"""One kernel (a top-level loop.parallel) as an LLVM function over a range of its iterations.

`void @k(ptr runtime, i64 lo, i64 hi, captured...)` runs units lo..hi; what a unit is (`KernelCode.units` of them) is
decided here from the plan: one iteration, one row of the innermost dim, or a block of a row. Vector code is emitted
directly; what is left over of a row is masked (AVX-512) or done by scalars.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

from ...compiler.ir.core import Block, Op, Value
from ...compiler.ir.types import BufferType, i64
from . import contract
from .access import Access
from .gemm_base import symbol
from .irtext import Fn, Module
from .lanes import Plan, base_lanes, constant, trips, varying
from .row_contract import emit_row, in_place
from .runtime_ir import CANCELLED, RT_CANCEL
from .scalars import Ops, mem_elem, reg_elem
from .target import CpuTarget
from .tiles import Tile, emit_rows, emit_tile, plan_tile, unit_extents
from .values import Buf, Lanes, Val, num

NAME = "@KERNEL"            # stands for the function's name until equal kernels have been merged
TARGET_UNITS = 64           # blocks a long single row is cut into


@dataclass
class KernelCode:
    """A kernel ready to be placed: text with NAME for its name, its parameters and how many units it has."""

    text: str
    captured: list[Value]
    units: int
    cost: float
    polls: bool = False         # has loops that look for Ctrl-C
    gemms: frozenset[str] = frozenset()    # the matrix products it calls
    tid: bool = False           # has a last parameter, the thread's number: whose packing memory the products use


class Errors:
    """Numbers of the places that can raise a run-time error, for the error word: code = index + 1."""

    def __init__(self):
        self.items: list[tuple[object, str]] = []
        self._known: dict[tuple, int] = {}
        self.asked = 0

    def code(self, loc, message: str) -> int:
        self.asked += 1
        key = (loc, message)
        if key not in self._known:
            self.items.append(key)
            self._known[key] = len(self.items)
        return self._known[key]


def captured(op: Op) -> list[Value]:
    """Values from outside that a kernel uses, in order of first use; constants are not parameters."""
    inside: set[Value] = set()
    out: dict[Value, None] = {}

    def visit(block: Block) -> None:
        inside.update(block.args)
        for o in block.ops:
            for v in o.operands:
                if v not in inside and constant(v) is None:
                    out[v] = None
            inside.update(o.results)
            for r in o.regions:
                visit(r)
    for r in op.regions:
        visit(r)
    return list(out)


def contracts(op: Op) -> bool:
    """Whether a kernel has matrix products of its own."""
    return any(o.name == "loop.contract" for o in op.regions[0].walk())


def param_type(v: Value) -> str:
    return "ptr" if isinstance(v.type, BufferType) else reg_elem(v.type.dtype)


def emit_kernel(module: Module, op: Op, errors: Errors, team: int) -> KernelCode:
    """The function for a loop.parallel. `team`: how many threads may share it."""
    target = module.target
    plan = Plan.parallel(op, target)
    args = captured(op)
    params = "".join(f", {param_type(v)} %c{i}" for i, v in enumerate(args))
    if contracts(op):
        params += ", i64 %tid"
    f = Fn(module, f"void {NAME}(ptr %rt, i64 %lo, i64 %hi{params})", "#2")
    body = Body(f, target, plan, errors)
    for i, v in enumerate(args):
        body.env[v] = Buf(f"%c{i}", v.type, num(0)) if isinstance(v.type, BufferType) else Val("u", f"%c{i}", v.type.dtype)
    units = _units(f, body, op, plan, team)
    if body.streams:
        f.fence()
    f.finish()
    polls = any(o.name == "loop.while" for o in op.regions[0].walk())
    return KernelCode(module.functions.pop(), args, units, plan.cost, polls, frozenset(body.gemms), contracts(op))


def _units(f: Fn, body: Body, op: Op, plan: Plan, team: int) -> int:
    """Emit the loop over units; returns their number."""
    region, extents = op.regions[0], list(op.attrs["extents"])
    if plan.over is None:
        total = 1
        for n in extents:
            total *= n
        with f.loop("%lo", "%hi") as unit:
            _decompose(f, body, unit.index, region.args, extents)
            body.block(region)
        return total
    outer = 1
    for n in extents[:-1]:
        outer *= n
    n, lanes = extents[-1], plan.lanes
    block = n
    if team > 1 and outer < 8 * team and n > 4 * lanes:       # few rows: threads share within a row
        per_row = max(1, TARGET_UNITS // max(outer, 1))
        block = -(-max(-(-n // per_row), 4 * lanes) // lanes) * lanes
    blocks = -(-n // block)
    if blocks == 1 and (tile := plan_tile(op, plan, team)) is not None:
        outer, rows = unit_extents(extents, tile), region.args[tile.dim]
        with f.loop("%lo", "%hi") as unit:
            _decompose(f, body, unit.index, region.args[:-1], outer)
            body.tile = (tile, f.imul(body.env[rows].text, str(tile.size)), extents[tile.dim])
            body.row(region, plan.over, "0", str(n), lanes, n)
        return math.prod(outer)
    with f.loop("%lo", "%hi") as unit:
        row = f.udiv(unit.index, str(blocks))
        _decompose(f, body, row, region.args[:-1], extents[:-1])
        if blocks == 1:
            body.row(region, plan.over, "0", str(n), lanes, n)
        else:
            start = f.imul(f.urem(unit.index, str(blocks)), str(block))
            body.row(region, plan.over, start, f.imin(f.iadd(start, str(block)), str(n)), lanes, None if n % block else block)
    return outer * blocks


def _decompose(f: Fn, body: Body, flat: str, args: list[Value], extents: list[int]) -> None:
    rest = flat
    for k in range(len(args) - 1, -1, -1):
        n = extents[k]
        if k == 0:
            at = rest
        else:
            at, rest = f.urem(rest, str(n)), f.udiv(rest, str(n))
        body.env[args[k]] = Val("u", at, i64, small=True)


class Body(Access):
    """Emits the ops of a kernel in a context of `w` lanes (1: scalars) under a mask of active lanes (None: all)."""

    def __init__(self, f: Fn, target: CpuTarget, plan: Plan, errors: Errors):
        self.f, self.target, self.plan, self.errors = f, target, plan, errors
        self.env: dict[Value, Val | Buf] = {}
        self.w, self.mask = 1, None
        self.count: str | None = None     # as a vector of i32: how many lanes are active, when they are the first ones
        self.vary: set[Value] = set()
        self.l = Lanes(f, 1)
        self.skip: set[Op] = set()        # multiplications folded into a reduction
        self.gemms: set[str] = set()
        self.tile: tuple[Tile, str, int] | None = None    # which rows are done together, the first, and how many there are in all
        self.ready: dict[Op, str] = {}    # what loads of a tile's row give
        self.streams = False              # whether there are stores past the caches
        self.peeled: Op | None = None     # one of them that is on whole vectors in the loop that is being emitted

    # ---- contexts

    def enter(self, w: int, mask: str | None, vary: set[Value]):
        saved = (self.w, self.mask, self.count, self.vary, self.l)
        self.w, self.mask, self.count, self.vary, self.l = w, mask, None, vary, Lanes(self.f, w)
        return saved

    def leave(self, saved) -> None:
        self.w, self.mask, self.count, self.vary, self.l = saved

    def row(self, region: Block, index: Value, start: str, stop: str, lanes: int, static: int | None) -> None:
        """The region for index in start..stop, `lanes` at a time; start is a multiple of lanes. `static`: stop - start."""
        vary = varying(region, index)
        alike = self._alike(region, vary) if self.tile is None else set()
        for op in region.ops:
            if op in alike:
                self.op(op)
        self.skip |= alike
        self._row(region, index, start, stop, lanes, static, vary)
        self.skip -= alike

    @staticmethod
    def _alike(region: Block, vary: set[Value]) -> set[Op]:
        """What is the same in all turns of a row, up to the first store: it is done once in front of them (no iteration reads what another
        writes). LLVM moves no loads and no checks past stores."""
        out: set[Op] = set()
        for op in region.ops[:-1]:
            if op.name in ("loop.store", "loop.contract") or op.regions:
                break
            if (op.name.startswith("scalar.") or op.name in ("loop.assert", "loop.load")) and not any(v in vary for v in op.operands):
                out.add(op)
        return out

    def _row(self, region: Block, index: Value, start: str, stop: str, lanes: int, static: int | None, vary: set[Value]) -> None:
        f = self.f
        whole = (f.iadd(start, str(static // lanes * lanes)) if static is not None else
                 f.iadd(start, f.op(f"and i64 {f.isub(stop, start)}, -{lanes}") if lanes & (lanes - 1) == 0 else "0"))
        if static is None or static >= lanes:
            with f.loop(start, whole, str(lanes)) as i:
                saved = self.enter(lanes, None, vary)
                self.env[index] = Val("l", i.index, i64, tuple(range(lanes)), lanes, True)
                if self.tile is None:
                    self.block(region)
                else:
                    emit_tile(self, region, *self.tile)
                self.leave(saved)
        if static is not None and static % lanes == 0:
            return
        if self.target.masked:
            base = base_lanes(region, self.target)
            with f.loop(whole, stop, str(base)) as i:         # a wide row's rest in ordinary vectors
                saved = self.enter(base, None, vary)
                self.mask = self.first_lanes(f.isub(stop, i.index))
                self.env[index] = Val("l", i.index, i64, tuple(range(base)), base, True)
                self._rest(region)
                self.leave(saved)
        else:
            with f.loop(whole, stop) as i:
                saved = self.enter(1, None, set())
                self.env[index] = Val("u", i.index, i64, small=True)
                self._rest(region)
                self.leave(saved)

    def _rest(self, region: Block) -> None:
        if self.tile is None:
            self.block(region)
        else:
            emit_rows(self, region, *self.tile)

    def first_lanes(self, count: str) -> str:
        """A mask of the lanes below count (i64); noted in self.count."""
        f, w = self.f, self.w
        self.count = self.l.splat("i32", f.op(f"trunc i64 {f.imin(count, str(w))} to i32"))
        return f.op(f"icmp slt <{w} x i32> {self.l.steps(1, 'i32')}, {self.count}", "m")

    # ---- ops

    def block(self, block: Block) -> list[Val]:
        """Emit all ops; the terminator's operands."""
        for op in block.ops[:-1]:
            if op not in self.skip:
                self.op(op)
        return [self.get(v) for v in block.terminator.operands]

    def get(self, v: Value) -> Val:
        found = self.env.get(v)
        if found is None:
            c = constant(v)
            if c is None:
                raise KeyError(f"value {v} is used before it is defined")
            from .scalars import const
            dt = v.type.dtype
            found = Val("u", const(dt, c), dt, small=dt is i64)
            self.env[v] = found
        return found

    def op(self, op: Op) -> None:
        kind, _, name = op.name.partition(".")
        if kind == "scalar":
            self.scalar(op, name)
        else:
            getattr(self, "_" + name)(op)

    def scalar(self, op: Op, name: str) -> None:
        if name == "constant":
            self.get(op.result)
            return
        xs = [self.get(v) for v in op.operands]
        dt = op.operands[0].type.dtype if op.operands else None
        if dt is i64 and name in ("add", "sub", "mul", "floordiv", "mod", "shr", "and"):
            known = self._index_op(name, xs)
            if known is not None:
                self.env[op.result] = known
                return
        if name == "compare" and dt is i64 and self.w > 1 and sorted((x.kind, x.kind == "u" or x.small) for x in xs) == [("l", True), ("u", True)]:
            self.env[op.result] = Val("v", self.l.compared(op.attrs["predicate"], *xs), op.result.type.dtype)
            return
        uniform = all(x.kind == "u" for x in xs) or self.w == 1
        ops = self.l.one if uniform else self.l.ops
        texts = [x.text if uniform else self.l.vector(x) for x in xs]
        kind = "u" if uniform else "v"
        if name == "philox":
            for r, t in zip(op.results, ops.philox(*texts, op.attrs["domain"])):
                self.env[r] = Val(kind, t, r.type.dtype)
            return
        out = op.result.type.dtype
        if name == "select":
            text = ops.select(out, *texts)
        elif name == "cast":
            text = ops.cast(texts[0], dt, out)
        elif name == "bitcast":
            text = ops.bitcast(texts[0], dt, out)
        else:
            text = ops.emit(name, dt, texts, op.attrs, lambda bad: self._failed(op, "integer division by zero", bad, None, ops))
        small = out is i64 and name in ("min", "max", "select") and all(x.small for x in xs if x.dtype is i64)
        self.env[op.result] = Val(kind, text, out, small=small)

    def _index_op(self, name: str, xs: list[Val]) -> Val | None:
        a, b = xs
        if name in ("add", "sub") and (a.kind != "v" and b.kind != "v"):
            return self.l._sum(name, a, b)
        if name == "mul":
            for x, y in ((a, b), (b, a)):
                if y.number is not None and x.kind != "v":
                    return self.l.scaled(x, y.number)
        n = b.number
        if n is not None and n > 0 and a.kind in ("l", "v") and self.w > 1 and a.small:
            if name == "floordiv" or (name == "shr" and n < 52):
                return self.l.quotient(a, n if name == "floordiv" else 1 << n, False)
            if name == "mod":
                return self.l.quotient(a, n, True)
            if name == "and" and n & (n + 1) == 0 and a.kind == "l":
                return self.l.quotient(a, n + 1, True)
        if a.kind == b.kind == "u" and name in ("floordiv", "mod") and n is not None and n > 0 and a.small:
            op = self.f.udiv if name == "floordiv" else self.f.urem
            return Val("u", op(a.text, str(n)), i64, small=True)
        return None

    # ---- errors

    def _failed(self, op: Op, message: str, bad: str, value: Val | None, ops: Ops) -> None:
        """Report when any active lane of `bad` is set."""
        f = self.f
        code = self.errors.code(op.loc, message)
        if ops.w > 1 and self.mask is not None:
            bad = f.op(f"and <{ops.w} x i1> {bad}, {self.mask}")
        any_ = bad if ops.w == 1 else self._any(bad, ops.w)
        with f.when(any_):
            if value is None:
                text = "0"
            elif value.kind == "u" or ops.w == 1:
                text = value.text
            else:
                bits = f.op(f"bitcast <{ops.w} x i1> {bad} to i{ops.w}")
                name = f.module.intrinsic(f"i{ops.w}", f"llvm.cttz.i{ops.w}", f"i{ops.w}", "i1")
                lane = f.op(f"call i{ops.w} {name}(i{ops.w} {bits}, i1 true)")
                text = f.op(f"extractelement <{ops.w} x i64> {self.l.vector(value)}, i{ops.w} {lane}")
            f.module.declare("declare void @engram_fail(ptr, i64, i64)")
            f.do(f"call void @engram_fail(ptr %rt, i64 {code}, i64 {text})")

    def _any(self, mask: str, w: int) -> str:
        name = self.f.module.intrinsic("i1", f"llvm.vector.reduce.or.v{w}i1", f"<{w} x i1>")
        return self.f.op(f"call i1 {name}(<{w} x i1> {mask})")

    def _assert(self, op: Op) -> None:
        cond, value = (self.get(v) for v in op.operands)
        if cond.text in ("true", "1"):
            return
        ops = self.l.one if cond.kind == "u" else self.l.ops
        bad = ops.bin("xor", "i1", cond.text, ops.splat_const("i1", "true"))
        if ops.w == 1 and self.w > 1 and value.kind != "u":   # all lanes fail alike: any lane's value will do
            value = Val("u", self.f.op(f"extractelement <{self.w} x i64> {self.l.vector(value)}, i64 0"), i64)
        self._failed(op, op.attrs["message"], bad, value, ops)

    # ---- matrix products

    def pointer(self, v: Value) -> str:
        """Where a buffer starts."""
        b = self.buffer(v)
        return self.f.gep(mem_elem(b.type.dtype), b.ptr, b.offset.text)

    def _contract(self, op: Op) -> None:
        """A contraction inside an iteration: this thread does all of it."""
        if op.operands[0].type.numel == 0:
            return
        plan = contract.plan(op, self.target, contract.SMALL_INSIDE)
        if plan is None or plan.tables:
            for o in contract.loop_nest(op):
                self.op(o)
            return
        if in_place(plan, self.target):
            emit_row(self, op, plan)
            return
        self.gemms.add(plan.callee)
        self.f.module.declare(f"declare void @{symbol(plan.callee)}(i64, i64, ptr, ptr)")
        contract.emit_gemm(self, op, plan, "0", "1", "%tid")

    # ---- control

    def _for(self, op: Op) -> None:
        lo, hi, *inits = (self.get(v) for v in op.operands)
        body, f = op.regions[0], self.f
        if self.w == 1 and op in self.plan.loops:
            n = trips(op)
            self._vector_for(op, lo.text, hi.text, n)
            return
        wide = [self.w > 1 and a in self.vary for a in body.args[1:]]
        types = [(self.l.ops if v else self.l.one).type(a.type.dtype) for v, a in zip(wide, body.args[1:])]
        starts = [self.l.vector(x) if v else x.text for v, x in zip(wide, inits)]
        with f.loop(lo.text, hi.text, str(op.attrs.get("step", 1)), carried=list(zip(types, starts))) as loop:
            self.env[body.args[0]] = Val("u", loop.index, i64, small=lo.small)
            for a, v, name in zip(body.args[1:], wide, loop.values):
                self.env[a] = Val("v" if v else "u", name, a.type.dtype)
            out = self.block(body)
            loop.next = [self.l.vector(x) if v else x.text for v, x in zip(wide, out)]
        for r, v, name in zip(op.results, wide, loop.results):
            self.env[r] = Val("v" if v else "u", name, r.type.dtype)

    def _vector_for(self, op: Op, lo: str, hi: str, n: int | None) -> None:
        """Independent iterations, `lanes` at a time."""
        body, f = op.regions[0], self.f
        lanes = base_lanes(body, self.target)
        vary = varying(body, body.args[0])
        peel = self._peel(op, lanes) if self.target.masked and lo == "0" else None
        if peel is not None:                                  # up to where the stores past the caches are on whole vectors
            store, lead = peel
            lead = f.imin(lead, hi)
            with f.when(f.icmp("sgt", lead, "0")):
                self._vector_turn(op, "0", lanes, 1, vary, lead)
            lo, n, self.peeled = lead, None, store
        aligned = lanes if lo == "0" else 1
        count = f.isub(hi, lo)
        whole = f.iadd(lo, str(n // lanes * lanes) if n is not None else f.op(f"and i64 {count}, -{lanes}"))
        if n is None or n >= lanes:
            with f.loop(lo, whole, str(lanes)) as i:
                self._vector_turn(op, i.index, lanes, aligned, vary)
        self.peeled = None
        if n is not None and n % lanes == 0:
            return
        if self.target.masked:
            with f.loop(whole, hi, str(lanes)) as i:
                self._vector_turn(op, i.index, lanes, aligned, vary, f.isub(hi, i.index))
        else:
            with f.loop(whole, hi) as i:
                self.env[body.args[0]] = Val("u", i.index, i64, small=True)
                self.block(body)

    def _vector_turn(self, op: Op, index: str, lanes: int, aligned: int, vary: set[Value], active: str | None = None) -> None:
        """Iterations index .. index + lanes of an independent loop, `active` of them."""
        body = op.regions[0]
        saved = self.enter(lanes, None, vary)
        if active is not None:
            self.mask = self.first_lanes(active)
        self.env[body.args[0]] = Val("l", index, i64, tuple(range(lanes)), aligned, True)
        self.block(body)
        self.leave(saved)

    def _peel(self, op: Op, lanes: int) -> tuple[Op, str] | None:
        """The store past the caches in a loop's body whose rows may begin anywhere, and how many iterations come before its first whole vector."""
        body = op.regions[0]
        found = [o for o in body.ops if o.name == "loop.store" and o.attrs.get("stream")]
        if len(found) != 1:
            return None
        _, buffer, *indices = found[0].operands
        if not indices or indices[-1] is not body.args[0] or buffer.type.element_strides[-1] != 1 or buffer not in self.env:
            return None
        if any(v not in self.env and constant(v) is None for v in indices[:-1]):
            return None
        start = self.l.address(self.buffer(buffer), [*map(self.get, indices[:-1]), num(0)])
        if start.kind != "u" or start.aligned % lanes == 0:
            return None
        return found[0], self.f.op(f"and i64 {self.f.isub('0', start.text)}, {lanes - 1}")

    def _reduce(self, op: Op) -> None:
        from .reduce import emit_reduce
        emit_reduce(self, op)

    def _if(self, op: Op) -> None:
        cond = self.get(op.operands[0])
        f = self.f
        if cond.kind == "u":
            self._branch(op, cond.text)
            return
        outer, count = self.mask, self.count
        results = []
        for region, invert in ((op.regions[0], False), (op.regions[1], True)):
            mask = cond.text
            if invert:
                mask = f.op(f"xor <{self.w} x i1> {mask}, splat (i1 true)")
            if outer is not None:
                mask = f.op(f"and <{self.w} x i1> {mask}, {outer}")
            if len(region.ops) == 1:                          # nothing but the yield
                results.append([self.l.vector(self.get(v)) for v in region.terminator.operands])
                continue
            then, done = f.new_label("lanes"), f.new_label("joined")
            before = f.block
            f.branch(self._any(mask, self.w), then, done)
            f.label(then)
            self.mask, self.count = mask, None
            out = [self.l.vector(x) for x in self.block(region)]
            last = f.block
            f.jump(done)
            f.label(done)
            types = [self.l.ops.type(r.type.dtype) for r in op.results]
            results.append([f.op(f"phi {t} [ {x}, %{last} ], [ zeroinitializer, %{before} ]") for t, x in zip(types, out)])
        self.mask, self.count = outer, count
        for r, a, b in zip(op.results, *results):
            self.env[r] = Val("v", self.l.ops.sel(cond.text, reg_elem(r.type.dtype), a, b), r.type.dtype)

    def _branch(self, op: Op, cond: str) -> None:
        f = self.f
        labels = [f.new_label("then"), f.new_label("else")]
        done = f.new_label("join")
        f.branch(cond, *labels)
        wide = [self.w > 1 and r in self.vary for r in op.results]
        ends = []
        for region, label in zip(op.regions, labels):
            f.label(label)
            out = [self.l.vector(x) if v else x.text for v, x in zip(wide, self.block(region))]
            ends.append((out, f.block))
            f.jump(done)
        f.label(done)
        for i, (r, v) in enumerate(zip(op.results, wide)):
            t = (self.l.ops if v else self.l.one).type(r.type.dtype)
            text = f.op(f"phi {t} " + ", ".join(f"[ {out[i]}, %{block} ]" for out, block in ends))
            self.env[r] = Val("v" if v else "u", text, r.type.dtype)

    def _while(self, op: Op) -> None:
        f = self.f
        head, body, done = f.new_label("while"), f.new_label("do"), f.new_label("end")
        f.jump(head)
        f.label(head)
        cond, = self.block(op.regions[0])
        cancel = f.op(f"load atomic i32, ptr {f.op(f'getelementptr i8, ptr %rt, i64 {RT_CANCEL}')} monotonic, align 4")
        f.branch(f.both(cond.text, f.op(f"icmp slt i32 {cancel}, {CANCELLED}")), body, done)
        f.label(body)
        self.block(op.regions[1])
        f.jump(head)
        f.label(done)
