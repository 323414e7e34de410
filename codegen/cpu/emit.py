"""Functions of the loop IR as LLVM functions that every thread of a team runs (SPMD).

Host-level scalars and control flow are computed by all threads alike. A kernel is split among them by contiguous shares of
its units, or left to thread 0 when it is too small to be worth a barrier; sync.py says where barriers go. Kernels that are
equal up to names become one LLVM function.
"""
from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import numpy as np

from ...compiler.ir.core import Block, Func, Module, Op, Value
from ...compiler.ir.types import BufferType, i64
from ...compiler.ops import work
from ..epilogue import split_epilogue
from . import contract, packed
from .direct import plan as plan_direct
from .direct_code import emit_direct
from .emit_kernel import NAME, Body, Errors, KernelCode, captured, emit_kernel, param_type
from .epilogue import EPILOGUE_TYPES, EpilogueCode, emit_epilogue
from .equal import structure
from .gemm_base import symbol
from .irtext import Fn
from .irtext import Module as Text
from .lanes import Plan, constant, trips
from .runtime_ir import CANCELLED, RT_CANCEL, RT_ERROR, RT_PROGRESS
from .sync import WHOLE, Access, Place, Places, Summary, Sync, as_single, touched
from .target import CpuTarget
from .values import Buf, Val, num

QUICK_CHARS = 20_000         # a host level without loops that is longer than this is compiled the quick way
POLL_TURNS = 256             # turns of a host-level loop between looks for Ctrl-C; shorter loops do not look (a power of 2)
PART_CHARS = 30_000          # of LLVM text in one module: some 40 ms of compiling, side by side with the others
KERNEL_TYPES = ["ptr", "i64", "i64"]            # the run-time and a range of units, before what the kernel takes
TABLED = 8                   # pointers from which on a call's are data, not code
SINGLE_CYCLES = 5000.0       # a kernel below this runs on thread 0: a barrier costs about a fifth of it


def n_inputs(func: Func) -> int:
    return func.attrs.get("n_inputs", len(func.args))


class Emitter:
    """One module of the loop stage to LLVM modules. After `run`: errors, constants, and per function what it takes.

    A function is `void @f(ptr runtime, i64 tid, i64 threads, ptr args)`: args points to the addresses of its frame in the arena,
    its arguments and its results. `ready(text, quick)` gets each module as soon as it is complete: they can be compiled side by
    side, and `quick` says that the code runs too rarely to be worth much time.
    """

    def __init__(self, module: Module, target: CpuTarget, team: int, profile: bool = False,
                 ready: Callable[[str, bool], object] = lambda text, quick: None):
        self.module, self.target, self.team = module, target, team
        self.profile = profile
        self.steps: list[work.Kernel] = []               # with profile: what each counter of `engram_profile` counts
        self.ready = ready
        self.text, self.part = Text(target), Text(target)          # of the host level being written; of kernels
        self.written: set[str] = set()                   # functions that have a module of their own
        self.errors = Errors()
        self.codes: dict[object, KernelCode] = {}        # structure -> code
        self.kernels: dict[str, str] = {}                # text -> name
        self.constants: dict[str, np.ndarray] = {}       # symbol -> value
        self.gemms: set[str] = set()
        self.summaries: dict[str, Summary] = {}
        self.polls: set[str] = set()                     # functions with loops that may be long: they look for Ctrl-C
        self.progress: set[str] = set()                  # functions whose loop counts as the launch's progress
        self.entries: dict[str, str] = {}                # function -> exported symbol
        self.alone: set[str] = set()                     # functions that a thread runs by itself, called in sections
        self.together: set[str] = set()                  # functions that all threads run
        self.twice: set[str] = set()                     # those of both kinds that have code for each

    def run(self, entries: list[str]) -> None:
        """Emit these functions and all they call."""
        self.entries = {name: symbol_of(name) for name in entries}
        self._who_calls(entries)
        host = Text(self.target)
        for name in self._callees_first(entries):
            func = self.module.funcs[name]
            steps = len(self.steps)
            self.text = Text(self.target)
            self.summaries[name] = _Host(self, func).emit()
            shared, alone = not self.summaries[name].single, name in self.alone
            if not shared or alone and name not in self.together:      # no kernel is to be shared: once more for one thread
                self.text.functions.pop()
                del self.steps[steps:]
            elif alone:
                self.twice.add(name)
            if not shared or alone:
                _Host(self, func, solo=True).emit()
            loops = any(op.name in ("loop.for", "loop.while") for op in func.body.ops)
            if self.text.size > QUICK_CHARS and not loops and not self.summaries[name].single:
                self.ready(self.text.text(), True)
            else:
                host.take(self.text)
                host = self._full(host, PART_CHARS)
        self._full(self.part, 0)
        self._full(host, 0)

    def _full(self, text: Text, limit: int) -> Text:
        """Hands a module over once it holds more than `limit`; the one to go on with."""
        if text.size <= limit:
            return text
        self.ready(text.text(), False)
        return Text(self.target)

    def _callees_first(self, entries: list[str]) -> list[str]:
        out: dict[str, None] = {}

        def visit(name: str) -> None:
            if name in out:
                return
            for op in self.module.funcs[name].walk():
                if op.name == "loop.call":
                    visit(op.attrs["callee"])
            out[name] = None
        for name in entries:
            visit(name)
        return list(out)

    def _who_calls(self, entries: list[str]) -> None:
        """Fills `alone` and `together`."""
        def visit(name: str, alone: bool) -> None:
            seen = self.alone if alone else self.together
            if name not in seen:
                seen.add(name)
                block(self.module.funcs[name].body, alone)

        def block(b: Block, alone: bool) -> None:
            for op in b.ops:
                if op.name == "loop.call":
                    visit(op.attrs["callee"], alone)
                for r in op.regions:
                    block(r, alone or op.name == "loop.sections")
        for name in entries:
            visit(name, False)

    def interruptible(self, name: str) -> bool:
        """Whether a launch of the function looks for Ctrl-C."""
        return any(f in self.polls for f in self._callees_first([name]))

    def counts(self, name: str) -> bool:
        """Whether a launch of the function tells how far it is, and may be left between steps."""
        return any(f in self.progress for f in self._callees_first([name]))

    def kernel(self, op: Op) -> tuple[str, object]:
        """(function name, its code)."""
        key = structure(op)
        code = self.codes.get(key) if key is not None else None
        if code is not None:
            code = replace(code, captured=captured(op))
        else:
            asked = self.errors.asked
            code = emit_kernel(self.kernel_module(), op, self.errors, self.team)
            if self.errors.asked == asked:                  # else it knows its place in the source
                self.codes[key] = code
        self.gemms |= code.gemms
        return self.shared(code.text, [*KERNEL_TYPES, *(param_type(v) for v in code.captured), *["i64"] * code.tid]), code

    def kernel_module(self) -> Text:
        """The module that the next kernel goes to."""
        self.part = self._full(self.part, PART_CHARS)
        return self.part

    def shared(self, text: str, types: list[str]) -> str:
        """The name of a kernel's function, which takes arguments of these types; equal ones are one."""
        name = self.kernels.get(text)
        if name is None:
            name = self.kernels[text] = f"@k{len(self.kernels)}"
            self.part.functions.append(text.replace(NAME, name))
        self.text.declare(f"declare void {name}({', '.join(types)})")
        return name

    def epilogue(self, op: Op, plan) -> tuple[str, EpilogueCode]:
        """(function name, its code) for a contraction's region."""
        code = emit_epilogue(self.kernel_module(), op, plan, self.errors)
        return self.shared(code.text, EPILOGUE_TYPES), code

    def add_module(self, name: str, make: Callable[[], Text]) -> None:
        """A module of its own for a function that is written for one shape, unless it is there already."""
        if name not in self.written:
            self.written.add(name)
            self.ready(make().text(), False)

    def constant(self, value: np.ndarray) -> str:
        value = np.ascontiguousarray(value)
        key = hashlib.sha256(value.tobytes() + str((value.dtype, value.shape)).encode()).hexdigest()[:20]
        symbol = f"engram_const_{key}"
        self.constants[symbol] = value
        self.text.declare(f"@{symbol} = external constant i8")
        return f"@{symbol}"


def symbol_of(name: str, alone: bool = False) -> str:
    """A function's name for the linker; in LLVM text it stands in quotes. `alone`: of the code for one thread by itself."""
    return ("alone." if alone else "f.") + name.replace('"', "'").replace("\\", "/")


class _Host(Body):
    """Emits one function; scalars and control flow as in a kernel on one lane, kernels as calls. `solo`: for one thread alone, which
    does all of it and meets no barrier (thread 0 where no kernel is large enough to be shared, any in a section)."""

    def __init__(self, e: Emitter, func: Func, solo: bool = False):
        self.e, self.func, self.solo = e, func, solo
        f = Fn(e.text, f'void @"{symbol_of(func.name, solo and func.name in e.twice)}"(ptr %rt, i64 %tid, i64 %n, ptr %args)', "#2")
        super().__init__(f, e.target, Plan(e.target), e.errors)
        self.places = Places(func, n_inputs(func))
        self.sync = Sync()
        self.accesses: set[Access] = set()
        self.params: dict[int, bool] = {}
        self.single = True
        self.position = {v: i for i, v in enumerate(func.args)}
        self.turns = 0                                   # loops around what is being written
        self.called = 0                                  # the most pointers any callee takes

    def emit(self) -> Summary:
        self.f.do("%arena = load ptr, ptr %args, align 8")
        self.block(self.func.body)
        if self.called:
            self.f.entry.append(f"  %callee = alloca [{self.called} x ptr], align 8")
        self.f.finish()
        position: dict[object, list[int]] = {}
        for i, v in enumerate(self.func.args):
            position.setdefault(self.places.of[v].root, []).append(i)
        for a in self.accesses:
            for i in position.get(a.place.root, ()):
                self.params[i] = self.params.get(i, False) or a.write
        return Summary(self.params, self.func.attrs.get("arena", 0), self.single)

    def op(self, op: Op) -> None:
        if not self.e.profile or op.name not in work.KERNELS:
            super().op(op)
            return
        f = self.f
        clock = f.module.intrinsic("i64", "llvm.readcyclecounter")
        at = len(self.e.steps)
        self.e.steps.append(work.kernel_of(self.func, op))
        f.module.declare("@engram_profile = external global i8")
        start = f.op(f"call i64 {clock}()")
        super().op(op)
        if any(not a.single for a in self.sync.pending):     # so that waiting for the last thread counts here, not with the next kernel
            self.barrier()
        spent = f.isub(f.op(f"call i64 {clock}()"), start)
        with self.first():
            slot = f.gep("i64", "@engram_profile", str(3 * at))
            f.store("i64", f.iadd(f.load("i64", slot, 8), "1"), slot, 8)
            slot = f.gep("i64", slot, "1")
            f.store("i64", f.iadd(f.load("i64", slot, 8), spent), slot, 8)
            slot = f.gep("i64", slot, "1")
            f.store("i64", f.imin(f.load("i64", slot, 8), spent), slot, 8)

    # ---- order between threads

    def step(self, accesses: list[Access], single: bool) -> None:
        """A barrier if the accesses need one. `single`: all the work of the step is thread 0's."""
        if not self.solo and self.sync.needs_barrier(accesses):
            self.barrier()
        self.sync.add(accesses)
        self.accesses.update(accesses)
        self.single = self.single and single

    def first(self):
        """For thread 0 alone."""
        return nullcontext() if self.solo else self.f.when(self.f.icmp("eq", "%tid", "0"))

    def barrier(self) -> None:
        if self.solo:
            return
        self.f.module.declare("declare void @engram_barrier(ptr)")
        self.f.do("call void @engram_barrier(ptr %rt)")
        self.sync.clear()

    def of_kernel(self, op: Op, single: bool) -> list[Access]:
        return [Access(self.places.of[v], write, single) for v, write in touched(op) if v in self.places.of]

    def share(self, units: int) -> tuple[str, str]:
        if self.solo:
            return "0", str(units)
        f = self.f
        lo = f.udiv(f.imul("%tid", str(units)), "%n")
        return lo, f.udiv(f.imul(f.iadd("%tid", "1"), str(units)), "%n")

    # ---- kernels

    def _parallel(self, op: Op) -> None:
        name, code = self.e.kernel(op)
        if code.polls:
            self.e.polls.add(self.func.name)
        self.launch(op, name, code.units, code.cost, code.captured, ", i64 %tid" * code.tid)

    def launch(self, op: Op, name: str, units: int, cost: float, arguments: list[Value], more: str = "") -> None:
        """A kernel's function: shares of its units for all threads, or thread 0 does it."""
        f = self.f
        if units == 0:
            return
        single = cost < SINGLE_CYCLES or units == 1
        self.step(self.of_kernel(op, single), single)

        def call(lo: str, hi: str) -> None:
            args = "".join(f", {param_type(v)} {self.argument(v)}" for v in arguments) + more
            f.do(f"call void {name}(ptr %rt, i64 {lo}, i64 {hi}{args})")
        if single:
            with self.first():
                call("0", str(units))
        else:
            call(*self.share(units))

    def _pack(self, op: Op) -> None:
        p = packed.Pack(self.target, op)
        self.launch(op, self.e.shared(p.text(self.e.kernel_module()), [*KERNEL_TYPES, "ptr", "ptr"]), p.units, p.cost, op.operands)

    def _contract_packed(self, op: Op) -> None:
        p = packed.Contract(self.target, op)
        self.launch(op, self.e.shared(p.text(self.e.kernel_module()), [*KERNEL_TYPES, "ptr", "ptr", "ptr"]), p.units, packed.contract_cost(op, self.target), op.operands)

    def argument(self, v: Value) -> str:
        if isinstance(v.type, BufferType):
            return self.pointer(v)
        return self.get(v).text

    def _copy(self, op: Op) -> None:
        if op.operands[0].type.numel:
            self._parallel(contract.copy_kernel(op))

    def _contract(self, op: Op) -> None:
        if op.operands[0].type.numel == 0:
            return
        plan, emit = plan_direct(op, self.target, self.e.team), emit_direct
        if plan is None:
            plan, emit = contract.plan(op, self.target), contract.emit_gemm
            apart = plan is not None and not contract.fits_epilogue(plan)
        else:
            apart = True
        if op.regions and apart:
            plain, after = split_epilogue(op)
            self._contract(plain)
            self._parallel(after)
            return
        if plan is None:
            self._parallel(contract.loop_kernel(op))
            return
        self.e.gemms.add(plan.callee)                         # whose packing memory both use
        self.f.module.declare(f"declare void @{symbol(plan.callee)}(i64, i64, ptr, ptr)")
        cycles = plan.cycles(self.target) + (self.e.epilogue(op, plan)[1].cost if op.regions else 0.0)
        single = cycles < SINGLE_CYCLES
        self.step(self.of_kernel(op, single), single)
        if single or self.solo:
            with self.first():
                emit(self, op, plan, "0", "1", "%tid")
        else:
            emit(self, op, plan, "%tid", "%n")

    def epilogue(self, op: Op, plan, outer: int) -> tuple[str, str, list[str], str]:
        """The function for a contraction's region, its filled env, the env's slots of `outer` loop indices to be set, and what it reads
        beside C (GEMM argument "streams")."""
        f = self.f
        name, code = self.e.epilogue(op, plan)
        n = 1 + len(code.captured)
        env = f.alloca(f"[{n + outer} x i64]")
        f.store("ptr", "%rt", env, 8)
        given = [self.argument(v) for v in code.captured]
        for i, (v, argument) in enumerate(zip(code.captured, given)):
            f.store(param_type(v), argument, f.gep("i64", env, str(i + 1)), 8)
        streams = "null"
        if code.streams:
            streams = f.alloca(f"[{1 + 2 * len(code.streams)} x i64]")
            f.store("i64", str(len(code.streams)), streams, 8)
            for i, (k, stride) in enumerate(code.streams):
                f.store("ptr", given[k], f.gep("i64", streams, str(1 + 2 * i)), 8)
                f.store("i64", str(stride), f.gep("i64", streams, str(2 + 2 * i)), 8)
        return name, env, [f.gep("i64", env, str(n + i)) for i in range(outer)], streams

    def _call(self, op: Op) -> None:
        summary = self.e.summaries[op.attrs["callee"]]
        self.step(summary.accesses(op, self.places), summary.single)
        f = self.f
        callee = op.attrs["callee"]
        symbol = symbol_of(callee, self.solo and callee in self.e.twice)
        f.module.declare(f'declare void @"{symbol}"(ptr, i64, i64, ptr)')
        with self.first() if summary.single else nullcontext():
            self.called = max(self.called, len(op.operands) + 1)
            if (table := self.table(op)) is not None:
                f.do(f"call void @engram_pointers(ptr {table}, i64 {len(op.operands) + 1}, ptr %args, ptr %callee)")
            else:
                pointers = [f.gep("i8", "%arena", str(op.attrs.get("frame", 0))), *[self.pointer(v) for v in op.operands]]
                for i, p in enumerate(pointers):
                    f.store("ptr", p, f.gep("ptr", "%callee", str(i)), 8)
            f.do(f'call void @"{symbol}"(ptr %rt, i64 %tid, i64 %n, ptr %callee)')

    def table(self, op: Op) -> str | None:
        """A call's pointers as data, (which of %args, bytes further) for each, for a loop in the run-time to fill in: a model of many layers
        passes thousands. None where they are few, are computed, or where the call repeats: code is faster."""
        if len(op.operands) < TABLED or self.turns:
            return None
        found = [(0, int(op.attrs.get("frame", 0)))]
        for v in op.operands:
            further = 0
            while v not in self.position and isinstance(v.owner, Op) and v.owner.name == "loop.view":
                by = constant(v.owner.operands[1])
                if by is None:
                    return None
                further += int(by) * v.type.dtype.bytes
                v = v.owner.operands[0]
            if v in self.position:
                found.append((self.position[v] + 1, further))
            elif isinstance(v.owner, Op) and v.owner.name == "loop.alloc":
                found.append((0, v.owner.attrs["offset"] + further))
            else:
                return None
        values = ", ".join(f"i64 {a}, i64 {b}" for a, b in found)
        name = f"@table.{hashlib.sha256(values.encode()).hexdigest()[:16]}"
        self.f.module.declare(f"{name} = private unnamed_addr constant [{2 * len(found)} x i64] [{values}], align 8")
        self.f.module.declare("declare void @engram_pointers(ptr, i64, ptr, ptr)")
        return name

    def _sections(self, op: Op) -> None:
        """Section s is thread s's, or where there are fewer threads, those take turns."""
        self.step([replace(a, single=False) for a in self.inside(op)], False)
        f = self.f
        outer, self.solo, sync = self.solo, True, self.sync
        for s, region in enumerate(op.regions):
            self.sync = Sync()
            with nullcontext() if outer else f.when(f.icmp("eq", "%tid", f.op(f"urem i64 {s}, %n"))):
                self.block(region)
        self.solo, self.sync = outer, sync
        self.single = False

    def _sort(self, op: Op) -> None:
        self.step([Access(self.places.of[v], True, True) for v in op.operands], True)
        with self.first():
            super()._sort(op)

    # ---- memory

    def buffer(self, v: Value) -> Buf:
        """A function's own arguments are looked up where they are used: there may be a thousand of them."""
        if (i := self.position.get(v)) is not None:
            return Buf(self.f.load("ptr", self.f.gep("ptr", "%args", str(i + 1)), 8), v.type, num(0))
        return super().buffer(v)

    def _alloc(self, op: Op) -> None:
        self.env[op.result] = Buf(self.f.gep("i8", "%arena", str(op.attrs["offset"])), op.attrs["type"], num(0))

    def _constant(self, op: Op) -> None:
        self.env[op.result] = Buf(self.e.constant(op.attrs["value"]), op.attrs["type"], num(0))

    def _load(self, op: Op) -> None:
        self.step([Access(self.places.of[op.operands[0]], False, False)], True)
        super()._load(op)

    def _store(self, op: Op) -> None:
        self.step([Access(self.places.of[op.operands[1]], True, True)], True)
        with self.first():
            super()._store(op)

    # ---- control

    def cancelled(self, turn: str, between_steps: bool = False) -> str:
        """Whether to stop: Ctrl-C (between steps: also an error), as thread 0 sees it and all threads agree. Two slots in turn:
        thread 0 cannot get to writing one again before everybody has read it."""
        f = self.f
        base = f.op(f"getelementptr i8, ptr %rt, i64 {RT_CANCEL}")
        self.e.polls.add(self.func.name)

        def seen() -> str:
            now = f.op(f"load atomic i32, ptr {base} monotonic, align 4")
            stop = f.op(f"icmp sge i32 {now}, {1 if between_steps else CANCELLED}")
            if between_steps:
                error = f.op(f"load atomic i64, ptr {f.op(f'getelementptr i8, ptr %rt, i64 {RT_ERROR}')} monotonic, align 8")
                stop = f.op(f"or i1 {stop}, {f.icmp('ne', error, '0')}")
            return stop
        if self.solo:
            return seen()
        slot = f.gep("i32", base, f.iadd(f.op(f"and i64 {turn}, 1"), "1"))
        with f.when(f.icmp("eq", "%tid", "0")):
            f.store("i32", f.op(f"zext i1 {seen()} to i32"), slot, 4)
        self.barrier()
        return f.op(f"icmp ne i32 {f.load('i32', slot, 4)}, 0")

    def enter_loop(self, op: Op) -> None:
        """What the previous turn left behind counts at the head of a loop: thread 0's steps as such, the rest is waited for."""
        if any(not a.single for a in self.sync.pending):
            self.barrier()
        self.sync.add(as_single(self.inside(op)))
        self.turns += 1

    def leave_turn(self) -> None:
        self.turns -= 1
        if any(not a.single for a in self.sync.pending):
            self.barrier()

    def inside(self, op: Op) -> set[Access]:
        out: set[Access] = set()

        def visit(block: Block) -> None:
            for o in block.ops:
                if o.name == "loop.parallel" or o.name in WHOLE:
                    out.update(self.of_kernel(o, True))
                elif o.name == "loop.call":
                    out.update(self.e.summaries[o.attrs["callee"]].accesses(o, self.places))
                elif o.name in ("loop.store", "loop.sort"):
                    out.update(Access(self.places.of[v], True, True) for v in o.operands if v in self.places.of)
                if o.name in ("loop.for", "loop.if", "loop.while", "loop.sections"):
                    for r in o.regions:
                        visit(r)
        for r in op.regions:
            visit(r)
        return out

    def _for(self, op: Op) -> None:
        lo, hi, *inits = (self.get(v) for v in op.operands)
        body, f = op.regions[0], self.f
        self.enter_loop(op)
        types = [self.l.one.type(a.type.dtype) for a in body.args[1:]]
        with f.loop(lo.text, hi.text, str(op.attrs.get("step", 1)), carried=list(zip(types, [x.text for x in inits]))) as loop:
            self.env[body.args[0]] = Val("u", loop.index, i64, small=lo.small)
            for a, name in zip(body.args[1:], loop.values):
                self.env[a] = Val("u", name, a.type.dtype)
            if not op.attrs.get("progress") and (trips(op) or POLL_TURNS) >= POLL_TURNS:
                limit = f.alloca("i64", 8)
                f.store("i64", hi.text, limit, 8)
                with f.when(f.icmp("eq", f.op(f"and i64 {loop.index}, {POLL_TURNS - 1}"), "0")):
                    with f.when(self.cancelled(f.udiv(loop.index, str(POLL_TURNS)))):
                        f.store("i64", str(-1 << 63), limit, 8)
                loop.stop = f.load("i64", limit, 8)
            loop.next = [x.text for x in self.block(body)]
            if op.attrs.get("progress"):
                loop.stop = self.step_done(loop.index, hi.text)
            self.leave_turn()
        for r, name in zip(op.results, loop.results):
            self.env[r] = Val("u", name, r.type.dtype)

    def step_done(self, turn: str, stop: str) -> str:
        """Publishes that the turn is done; where the loop ends: at once when the launch is to stop."""
        f = self.f
        self.e.progress.add(self.func.name)
        with self.first():
            done = f.iadd(turn, "1")
            f.do(f"store atomic i64 {done}, ptr {f.op(f'getelementptr i8, ptr %rt, i64 {RT_PROGRESS}')} monotonic, align 8")
        return f.op(f"select i1 {self.cancelled(turn, True)}, i64 {-1 << 63}, i64 {stop}")

    def _reduce(self, op: Op) -> None:
        self.step([Access(self.places.of[v], False, False) for v, _ in touched(op)], True)
        super()._reduce(op)

    def _if(self, op: Op) -> None:
        f = self.f
        cond = self.get(op.operands[0]).text
        labels = [f.new_label("then"), f.new_label("else")]
        done = f.new_label("join")
        before, after, ends = set(self.sync.pending), set(), []
        f.branch(cond, *labels)
        for region, label in zip(op.regions, labels):
            f.label(label)
            self.sync = Sync(before)
            ends.append(([x.text for x in self.block(region)], f.block))
            after |= self.sync.pending
            f.jump(done)
        self.sync = Sync(after)
        f.label(done)
        for i, r in enumerate(op.results):
            t = self.l.one.type(r.type.dtype)
            text = f.op(f"phi {t} " + ", ".join(f"[ {out[i]}, %{block} ]" for out, block in ends))
            self.env[r] = Val("u", text, r.type.dtype)

    def _while(self, op: Op) -> None:
        f = self.f
        self.enter_loop(op)
        head, body, done = f.new_label("while"), f.new_label("do"), f.new_label("end")
        turn = f.alloca("i64", 8)
        f.store("i64", "0", turn, 8)
        f.jump(head)
        f.label(head)
        at = f.load("i64", turn, 8)
        f.store("i64", f.iadd(at, "1"), turn, 8)
        stop = self.cancelled(at)
        cond, = self.block(op.regions[0])
        after_cond = set(self.sync.pending)
        f.branch(f.both(cond.text, f.op(f"xor i1 {stop}, true")), body, done)
        f.label(body)
        self.block(op.regions[1])
        self.leave_turn()
        f.jump(head)
        f.label(done)
        self.sync = Sync(after_cond)


__all__ = ["Emitter", "Place", "constant", "n_inputs"]
