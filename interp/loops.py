"""The interpreter of the loop stage: kernels over buffers.

A function is turned once into closures over a list of slots (one per SSA value), which are then run. Iterations of loop.parallel
run in a shuffled order, so that a race shows. Reading what was never written, any access out of bounds, overlapping copies and a
result left unwritten are LoopErrors: bugs of the lowering. Errors of the user's program are kept as in compiled code: the first one of a
launch is raised when the launch ends.
"""
from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import reduce
from itertools import product

import numpy as np

from ..compiler.diagnostics import RuntimeError_
from ..compiler.ir.core import Block, Func, Module, Op, Value
from .memory import Buffer, LoopError, Private, RaceLog, TypedMemory, overlap, span
from .numerics import Array, RunTimeFault, bitcast, cast, rounding, rounding_one
from .semantics_packed import packed, products
from .semantics_random import words
from .semantics_scalar import COMPARE, maximum, minimum, steps
from .semantics_tensor import contraction, exact_dot, exact_sum, int_dot, sorted_order, wrapping_mul

FRAME = 0                                               # slot 0 of an environment: where the function's arena frame starts


class Launcher:
    """Runs functions of one loop-stage module. See Interpreter for the options."""

    def __init__(self, module: Module, seed: int = 0, arena: bool = False, shadow: bool = False, check_races: bool = False,
                 step_done: Callable[[], bool] = lambda: False):
        self.step_done = step_done                       # told after each turn of a loop with `progress`; True ends it
        self.module, self.use_arena, self.shadow, self.check_races = module, arena, shadow, check_races
        self.random = random.Random(seed)
        self.arena = np.zeros(0, np.uint8)
        self.races: RaceLog | None = None
        self.error: RuntimeError_ | None = None
        self._compiled: dict[str, _Function] = {}

    def launch(self, func: Func, inputs: list[Array]) -> list[Array]:
        donated = {r: a for a, r in func.attrs.get("donate", [])}
        buffers = [self._argument(v, x.data) for v, x in zip(func.args, inputs)]
        outputs = []
        for i, v in enumerate(func.args[len(inputs):]):
            memory = buffers[donated[i]].memory if i in donated else self._argument(v, None).memory
            outputs.append(Buffer.of(memory, v.type))
        if self.use_arena:
            self.arena = np.full(func.attrs.get("arena", 0), 0xFF, np.uint8)         # garbage: NaN, -1
        self.error = None
        self.function(func.name).run([*buffers, *outputs], 0)
        if self.error is not None:
            raise self.error
        out = []
        for i, b in enumerate(outputs):
            data = b.read()
            if None in data:
                raise LoopError(f"@{func.name} never writes element {data.index(None)} of result {i}")
            out.append(Array(b.dtype, b.shape, data))
        return out

    def _argument(self, v: Value, data: list | None) -> Buffer:
        if not self.use_arena:
            return Buffer.of(list(data) if data is not None else [None] * v.type.numel, v.type)
        raw = np.full(v.type.nbytes, 0xFF, np.uint8)
        memory = TypedMemory(raw, 0, v.type.numel, v.type.dtype)
        if data:
            memory.array[:] = data
        return Buffer.of(memory, v.type)

    def function(self, name: str) -> _Function:
        if name not in self._compiled:
            self._compiled[name] = _Function(self, self.module.funcs[name])
        return self._compiled[name]

    def fail(self, op: Op, message: str) -> None:
        """An error of the user's program: the first one counts, execution goes on."""
        if self.error is None:
            self.error = RuntimeError_(message, op.loc)


class _Function:
    """One function as closures. `slot` numbers its values; a step is called with the environment, a list of values by slot."""

    def __init__(self, launcher: Launcher, func: Func):
        self.launcher, self.func = launcher, func
        self.slots: dict[Value, int] = {}
        self.parallel = False
        self.args = [self.slot(v) for v in func.args]
        self.body = self.block(func.body)[0]

    def run(self, buffers: list[Buffer], frame: int) -> None:
        env = [None] * (len(self.slots) + 1)
        env[FRAME] = frame
        for slot, b, v in zip(self.args, buffers, self.func.args, strict=True):
            if not b.fits(v.type):
                raise LoopError(f"@{self.func.name} takes {v.type}, got shape {b.shape} with strides {b.strides} of {b.dtype}")
            env[slot] = b
        self.body(env)

    def slot(self, v: Value) -> int:
        return self.slots.setdefault(v, len(self.slots) + 1)

    def block(self, block: Block):
        """A function that runs the block in an environment, and the slots of the terminator's operands."""
        for a in block.args:
            self.slot(a)
        pairs = [(self.step(op), op) for op in block.ops[:-1]]

        def run(env):
            op = None
            try:
                for step, op in pairs:  # noqa: B007  (op is for the message)
                    step(env)
            except LoopError as e:
                if not getattr(e, "placed", False):
                    e.placed = True
                    e.args = (f"{op.name} in @{self.func.name}{f' ({op.loc})' if op.loc else ''}: {e}",)
                raise
            except (TypeError, ValueError, IndexError, ArithmeticError) as e:
                placed = LoopError(f"{op.name} in @{self.func.name}{f' ({op.loc})' if op.loc else ''}: {e}")
                placed.placed = True
                raise placed from e

        return run, [self.slot(v) for v in block.terminator.operands]

    def step(self, op: Op):
        operands = [self.slot(v) for v in op.operands]
        results = [self.slot(v) for v in op.results]
        make = _STEPS.get(op.name)
        if make is None and op.name.startswith("scalar."):
            make = _elementwise
        if make is None:
            raise NotImplementedError(f"the interpreter cannot run {op.name} in a loop-stage function")
        return make(self, op, operands, results)


# ---- scalars -----------------------------------------------------------------------------------------------------------


def _elementwise(f: _Function, op: Op, xs, rs):
    dtype = op.operands[0].type.dtype
    fns = steps(op.name.partition(".")[2], dtype)
    rnd, r = rounding_one(dtype, f.launcher.shadow), rs[0]
    first = fns[0]
    if len(xs) == 1:
        x, = xs
        if len(fns) == 1:
            def step(env):
                env[r] = rnd(first(env[x]))
        else:
            def step(env):
                env[r] = rnd(fns[1](rnd(first(env[x]))))
        return step
    x, y = xs
    if len(fns) > 1:
        def step(env):
            env[r] = rnd(fns[1](rnd(first(env[x], env[y]))))
    elif dtype.is_int and op.name in ("scalar.floordiv", "scalar.mod", "scalar.fmod"):
        def step(env):
            try:
                env[r] = rnd(first(env[x], env[y]))
            except RunTimeFault as fault:
                f.launcher.fail(op, str(fault))
                env[r] = 0
    else:
        def step(env):
            env[r] = rnd(first(env[x], env[y]))
    return step


def _constant(f, op, xs, rs):
    r, value = rs[0], rounding_one(op.attrs["dtype"], f.launcher.shadow)(op.attrs["value"])

    def step(env):
        env[r] = value
    return step


def _compare(f, op, xs, rs):
    (x, y), r, fn = xs, rs[0], COMPARE[op.attrs["predicate"]]

    def step(env):
        env[r] = fn(env[x], env[y])
    return step


def _select(f, op, xs, rs):
    (c, a, b), r = xs, rs[0]

    def step(env):
        env[r] = env[a] if env[c] else env[b]
    return step


def _cast(f, op, xs, rs):
    x, r, source, target, shadow = xs[0], rs[0], op.operands[0].type.dtype, op.attrs["dtype"], f.launcher.shadow

    def step(env):
        env[r] = cast([env[x]], source, target, shadow)[0]
    return step


def _bitcast(f, op, xs, rs):
    x, r, source, target = xs[0], rs[0], op.operands[0].type.dtype, op.attrs["dtype"]

    def step(env):
        env[r] = bitcast([env[x]], source, target)[0]
    return step


def _philox(f, op, xs, rs):
    (key, counter), domain = xs, op.attrs["domain"]

    def step(env):
        for r, w in zip(rs, words(env[key], env[counter], domain)):
            env[r] = w
    return step


# ---- memory ------------------------------------------------------------------------------------------------------------


def _alloc(f: _Function, op: Op, xs, rs):
    r, type, launcher, n = rs[0], op.attrs["type"], f.launcher, span(op.attrs["type"])
    if f.parallel:
        def step(env):
            env[r] = Buffer.of(Private([None] * n), type)
    elif not launcher.use_arena:
        def step(env):
            env[r] = Buffer.of([None] * n, type)
    else:
        offset = op.attrs.get("offset")
        if offset is None or offset % 64:
            raise LoopError(f"loop.alloc in @{f.func.name} has arena offset {offset}")

        def step(env):
            start = env[FRAME] + offset
            if start < 0 or start + n * type.dtype.bytes > len(launcher.arena):
                raise LoopError(f"bytes {start}..{start + n * type.dtype.bytes} are outside of the arena of {len(launcher.arena)}")
            env[r] = Buffer.of(TypedMemory(launcher.arena, start, n, type.dtype), type)
    return step


def _memory_constant(f, op, xs, rs):
    type, a = op.attrs["type"], np.asarray(op.attrs["value"])
    flat = (a.astype(np.float64) if type.dtype.is_float else a).ravel().tolist()
    if len(flat) == 1 and type.numel != 1:
        flat *= type.numel
    r, buffer = rs[0], Buffer.of(tuple(flat), type)

    def step(env):
        env[r] = buffer
    return step


def _view(f, op, xs, rs):
    (b, o), r = xs, rs[0]
    shape, strides = tuple(op.attrs["shape"]), tuple(op.attrs["strides"])

    def step(env):
        env[r] = env[b].view(env[o], shape, strides)
    return step


def _address(op: Op, type, indices):
    """Computes the position of an element in a buffer's memory, checking every index."""
    dims = tuple(zip(indices, type.shape, type.element_strides))

    def position(env, buffer):
        p = buffer.offset
        for slot, n, s in dims:
            i = env[slot]
            if not 0 <= i < n:
                raise LoopError(f"indices {[env[k] for k in indices]} are out of bounds for {type}")
            p += i * s
        return p
    return position


def _load(f: _Function, op: Op, xs, rs):
    b, r, launcher = xs[0], rs[0], f.launcher
    address = _address(op, op.operands[0].type, xs[1:])

    def step(env):
        buffer = env[b]
        p = address(env, buffer)
        v = buffer.memory[p]
        if v is None:
            raise LoopError(f"reads element {[env[k] for k in xs[1:]]}, which was never written")
        if launcher.races is not None and not isinstance(buffer.memory, Private):
            launcher.races.load(buffer, p)
        env[r] = v
    return step


def _store(f: _Function, op: Op, xs, rs):
    x, b, launcher = xs[0], xs[1], f.launcher
    address = _address(op, op.operands[1].type, xs[2:])

    def step(env):
        buffer = env[b]
        p = address(env, buffer)
        if launcher.races is not None and not isinstance(buffer.memory, Private):
            launcher.races.store(buffer, p)
        buffer.memory[p] = env[x]
    return step


def _copy(f, op, xs, rs):
    d, s = xs

    def step(env):
        if overlap(env[d], env[s]):
            raise LoopError("source and destination overlap")
        env[d].write(env[s].read())
    return step


# ---- control flow -------------------------------------------------------------------------------------------------------


def _parallel(f: _Function, op: Op, xs, rs):
    if f.parallel:
        raise LoopError(f"nested loop.parallel in @{f.func.name}")
    launcher, body, extents = f.launcher, op.regions[0], op.attrs["extents"]
    f.parallel = True
    run, _ = f.block(body)
    f.parallel = False
    slots = [f.slot(a) for a in body.args]

    def step(env):
        points = list(product(*map(range, extents)))
        launcher.random.shuffle(points)
        launcher.races = RaceLog() if launcher.check_races else None
        for n, point in enumerate(points):
            if launcher.races is not None:
                launcher.races.iteration = n
            for slot, i in zip(slots, point):
                env[slot] = i
            run(env)
        launcher.races = None
    return step


def _for(f: _Function, op: Op, xs, rs):
    (lo, hi, *inits), by = xs, op.attrs.get("step", 1)
    counts = op.attrs.get("progress", False)
    independent = op.attrs.get("independent", False)    # a promise, checked by running in a shuffled order too
    run, yields = f.block(op.regions[0])
    index, *carried = [f.slot(a) for a in op.regions[0].args]

    def step(env):
        values = [env[i] for i in inits]
        points = range(env[lo], env[hi], by)
        if independent:
            points = f.launcher.random.sample(points, len(points))
        for i in points:
            env[index] = i
            for slot, v in zip(carried, values):
                env[slot] = v
            run(env)
            values = [env[y] for y in yields]
            if counts and f.launcher.step_done():
                break
        for r, v in zip(rs, values):
            env[r] = v
    return step


def combine(kind: str, values: list, dtype, shadow: bool = False):
    """loop.reduce of one yielded scalar: sums and products of floats are rounded once."""
    if kind == "add":
        exact = exact_sum(values) if dtype.is_float else sum(values)
    elif kind == "mul":
        exact = math.prod(values) if dtype.is_float else reduce(wrapping_mul, values, 1)
    elif kind in ("max", "min"):
        fn = (maximum if kind == "max" else minimum) if dtype.is_float else (max if kind == "max" else min)
        return reduce(fn, values, dtype.min if kind == "max" else dtype.max)
    elif dtype.is_bool:
        return all(values) if kind == "and" else any(values)
    else:
        exact = reduce(int.__and__, values, -1) if kind == "and" else reduce(int.__or__, values, 0)
    return rounding(dtype, shadow)([exact])[0]


def _reduce(f: _Function, op: Op, xs, rs):
    lo, hi = xs
    run, yields = f.block(op.regions[0])
    index = f.slot(op.regions[0].args[0])
    dtypes = [r.type.dtype for r in op.results]

    def step(env):
        columns = [[] for _ in rs]
        for i in range(env[lo], env[hi]):
            env[index] = i
            run(env)
            for column, y in zip(columns, yields):
                column.append(env[y])
        for r, kind, column, dtype in zip(rs, op.attrs["kinds"], columns, dtypes):
            env[r] = combine(kind, column, dtype, f.launcher.shadow)
    return step


def _if(f, op, xs, rs):
    branches = [f.block(r) for r in op.regions]
    c, = xs

    def step(env):
        run, yields = branches[0 if env[c] else 1]
        run(env)
        for r, y in zip(rs, yields):
            env[r] = env[y]
    return step


def _sections(f, op, xs, rs):
    sections = [f.block(r)[0] for r in op.regions]

    def step(env):
        for run in sections:
            run(env)
    return step


def _while(f, op, xs, rs):
    (cond, (flag,)), (body, _) = (f.block(r) for r in op.regions)

    def step(env):
        while True:
            cond(env)
            if not env[flag]:
                break
            body(env)
    return step


def _call(f: _Function, op: Op, xs, rs):
    frame = op.attrs.get("frame")
    if frame is None and f.launcher.use_arena:
        raise LoopError(f"loop.call in @{f.func.name} has no arena frame")
    callee = f.launcher.function(op.attrs["callee"])

    def step(env):
        callee.run([env[x] for x in xs], env[FRAME] + (frame or 0))
    return step


# ---- whole-buffer ops and asserts ---------------------------------------------------------------------------------------


def _contract(f: _Function, op: Op, xs, rs):
    (o, l, r), a = xs, op.attrs
    types = [v.type for v in op.operands]
    sizes = {c: n for letters, t in zip((a["out"], a["lhs"], a["rhs"]), types) for c, n in zip(letters, t.shape)}
    rnd = rounding(types[0].dtype, f.launcher.shadow)
    dot = exact_dot if types[0].dtype.is_float else int_dot
    finish = _epilogue(f, op) if op.regions else None

    def step(env):
        out, lhs, rhs = env[o], env[l], env[r]
        if overlap(out, lhs) or overlap(out, rhs):
            raise LoopError("the result overlaps an operand")
        sums = contraction(a["out"], a["lhs"], a["rhs"], sizes, (lhs.memory, lhs.offset, lhs.strides),
                           (rhs.memory, rhs.offset, rhs.strides), dot)
        if a.get("accumulate"):
            sums = [x + y for x, y in zip(out.read(), sums)]
        out.write(rnd(sums))
        if finish is not None:
            finish(env, out)
    return step


def _epilogue(f: _Function, op: Op):
    """Runs a contraction's region on every element, in shuffled order like loop.parallel."""
    launcher, body, shape = f.launcher, op.regions[0], op.operands[0].type.shape
    f.parallel, outer = True, f.parallel
    run, yields = f.block(body)
    f.parallel = outer
    value, *indices = [f.slot(a) for a in body.args]

    def finish(env, out: Buffer):
        points = list(zip(product(*map(range, shape)), out.positions()))
        launcher.random.shuffle(points)
        sums = {p: out.memory[p] for _, p in points}
        if not yields:                                    # nobody may rely on what the sums' memory holds from now on
            out.write([None if not isinstance(out.memory, TypedMemory) else 0] * len(points))
        launcher.races = RaceLog() if launcher.check_races else None
        for n, (point, p) in enumerate(points):
            if launcher.races is not None:
                launcher.races.iteration = n
            env[value] = sums[p]
            for slot, i in zip(indices, point):
                env[slot] = i
            run(env)
            if yields:
                out.memory[p] = env[yields[0]]
        launcher.races = None
    return finish


def _pack(f: _Function, op: Op, xs, rs):
    (o, v), (k, n) = xs, op.operands[1].type.shape

    def step(env):
        values = env[v].read()
        env[o].write(packed(op.attrs["format"], lambda t, j: values[t * n + j], k, n))
    return step


def _contract_packed(f: _Function, op: Op, xs, rs):
    (o, x, p), (*lead, n) = xs, op.operands[0].type.shape
    m = math.prod(lead)
    k = op.operands[1].type.numel // max(m, 1)
    rnd = rounding(op.operands[0].type.dtype)

    def step(env):
        if overlap(env[o], env[x]) or overlap(env[o], env[p]):
            raise LoopError("the result overlaps an operand")
        rows, codes = env[x].read(), env[p].read()
        env[o].write(rnd(products(op.attrs["format"], lambda i, t: rows[i * k + t], m, k, codes.__getitem__, n)))
    return step


def _sort(f, op, xs, rs):
    v, i = xs

    def step(env):
        values, indices = env[v].read(), env[i].read()
        order = sorted_order(values, op.attrs["descending"])
        env[v].write([values[k] for k in order])
        env[i].write([indices[k] for k in order])
    return step


def _assert(f: _Function, op: Op, xs, rs):
    c, v = xs

    def step(env):
        if not env[c]:
            f.launcher.fail(op, op.attrs["message"].replace("{}", str(env[v])))
    return step


_STEPS = {
    "scalar.constant": _constant, "scalar.compare": _compare, "scalar.select": _select, "scalar.cast": _cast,
    "scalar.bitcast": _bitcast, "scalar.philox": _philox,
    "loop.alloc": _alloc, "loop.constant": _memory_constant, "loop.view": _view, "loop.load": _load, "loop.store": _store,
    "loop.copy": _copy, "loop.parallel": _parallel, "loop.for": _for, "loop.reduce": _reduce, "loop.if": _if, "loop.while": _while,
    "loop.sections": _sections,
    "loop.call": _call, "loop.contract": _contract, "loop.sort": _sort, "loop.pack": _pack, "loop.contract_packed": _contract_packed, "loop.assert": _assert,
    "loop.prefetch": lambda f, op, xs, rs: lambda env: None,
}
