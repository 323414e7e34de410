"""The host schedule: what the host does, step by step, to run a function of the loop IR.

A function is a list of steps over numbered slots: a slot holds a buffer, as (memory, offset in elements), or a number. Kernels are
enqueued in order on one in-order queue; only loads and assertions at host level wait for the device. Made by emit.py.
"""
from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...compiler.diagnostics import RuntimeError_
from ...compiler.ir.core import Loc
from ...compiler.ir.types import DType
from ...compiler.ops.work import Kernel
from .ctext import NUMPY_ARGUMENT
from .hostmath import DivisionByZero, evaluate, philox

Site = tuple[Loc | None, str]
EVENTS = 1024                              # launches whose times are kept before they are added up
HOST_LEAD = 0.05                           # seconds that the host enqueues steps before it waits for the device


class Frame:
    """One activation of a function: its slots, where its part of the arena starts, and the running program."""

    __slots__ = ("env", "base", "rt")

    def __init__(self, size: int, base: int, rt):
        self.env: list[Any] = [None] * size
        self.base, self.rt = base, rt


@dataclass
class HostFunc:
    """A function ready to run. `arena`: bytes it and its callees need; `fails`: whether a kernel of it or its callees may report an error."""

    name: str
    n_slots: int = 0
    steps: list = field(default_factory=list)
    arena: int = 0
    fails: bool = False

    def run(self, buffers: list, base: int, rt) -> None:
        frame = Frame(self.n_slots, base, rt)
        frame.env[:len(buffers)] = buffers
        run_steps(self.steps, frame)


def run_steps(steps: list, frame: Frame) -> None:
    for s in steps:
        s.run(frame)


@dataclass
class Alloc:
    slot: int
    offset: int
    itemsize: int

    def run(self, f: Frame) -> None:
        f.env[self.slot] = (f.rt.arena, (f.base + self.offset) // self.itemsize)


@dataclass
class Constant:
    slot: int
    number: int

    def run(self, f: Frame) -> None:
        f.env[self.slot] = (f.rt.constants[self.number], 0)


@dataclass
class View:
    slot: int
    source: int
    offset: int

    def run(self, f: Frame) -> None:
        memory, at = f.env[self.source]
        f.env[self.slot] = (memory, at + f.env[self.offset])


@dataclass
class Number:
    slot: int
    value: Any

    def run(self, f: Frame) -> None:
        f.env[self.slot] = self.value


@dataclass
class Scalar:
    slot: int
    name: str
    dtype: DType
    attrs: dict
    args: list[int]
    result: DType
    loc: Loc | None

    def run(self, f: Frame) -> None:
        try:
            f.env[self.slot] = evaluate(self.name, self.dtype, self.attrs, [f.env[a] for a in self.args], self.result)
        except DivisionByZero:
            f.rt.fail_here(self.loc, "integer division by zero")


@dataclass
class Philox:
    slots: list[int]
    args: list[int]
    domain: int

    def run(self, f: Frame) -> None:
        for s, w in zip(self.slots, philox(f.env[self.args[0]], f.env[self.args[1]], self.domain)):
            f.env[s] = w


@dataclass
class Load:
    """One element of a buffer: waits for the device."""

    slot: int
    buffer: int
    indices: list[int]
    strides: tuple[int, ...]
    dtype: DType

    def run(self, f: Frame) -> None:
        memory, at = f.env[self.buffer]
        at += sum(f.env[i] * s for i, s in zip(self.indices, self.strides))
        f.env[self.slot] = f.rt.read(memory, at, self.dtype)


@dataclass
class Launch:
    """One kernel. params as in kernel.Kernel, values replaced by slots and constants by their numbers."""

    name: str
    params: list[tuple[str, Any]]
    global_size: tuple[int, ...]
    local_size: tuple[int, ...]
    scratch: int
    sites: list[Site]
    dtypes: list                           # of the arguments: None for memory
    first_site: int = 0
    kernel: Any = None
    last: list = field(default_factory=list)
    work: Kernel | None = None             # what it is of the user's program

    def prepare(self, program, cl_device) -> int:
        """Makes the kernel; gives the largest work-group it can run in."""
        import pyopencl as cl
        self.kernel = cl.Kernel(program, self.name)
        self.kernel.set_scalar_arg_dtypes(self.dtypes)
        self.last = [None] * len(self.dtypes)
        return int(self.kernel.get_work_group_info(cl.kernel_work_group_info.WORK_GROUP_SIZE, cl_device))

    def run(self, f: Frame) -> None:
        env, rt, args = f.env, f.rt, []
        for kind, p in self.params:
            if kind == "buffer":
                args += env[p]
            elif kind == "scalar":
                args.append(int(env[p]) if env[p] is True or env[p] is False else env[p])
            elif kind == "number":
                args.append(p)
            elif kind == "constant":
                args.append(rt.constants[p])
            elif kind == "error":
                args += (rt.errors, self.first_site)
            else:
                args.append(rt.scratch(self.scratch))
        rt.enqueue(self, args)


@dataclass
class CopyBytes:
    """A contiguous copy."""

    target: int
    source: int
    nbytes: int
    itemsize: int
    work: Kernel | None = None

    def run(self, f: Frame) -> None:
        (d, do), (s, so) = f.env[self.target], f.env[self.source]
        f.rt.copy(d, do * self.itemsize, s, so * self.itemsize, self.nbytes, self.work)


@dataclass
class Sort:
    """Stable merge sort of a whole buffer: log2(n) passes between it and a temporary one."""

    values: int
    indices: int
    n: int
    strides: tuple[int, int]
    itemsize: int
    launch: Launch

    def run(self, f: Frame) -> None:
        v, x = f.env[self.values], f.env[self.indices]
        tv, tx = ((f.rt.allocate(self.n * size), 0) for size in (self.itemsize, 8))
        (vs, xs), width, inside = self.strides, 1, True
        passes = (self.n - 1).bit_length()
        for _ in range(passes + passes % 2):             # an even number of passes ends in the buffer itself; a wide one copies
            a, b = ((v, x, vs, xs), (tv, tx, 1, 1)) if inside else ((tv, tx, 1, 1), (v, x, vs, xs))
            f.rt.enqueue(self.launch, [*a[0], *a[1], *b[0], *b[1], a[2], a[3], b[2], b[3], self.n, width])
            width, inside = width * 2, not inside


@dataclass
class Call:
    func: HostFunc
    args: list[int]
    frame: int

    def run(self, f: Frame) -> None:
        self.func.run([f.env[a] for a in self.args], f.base + self.frame, f.rt)


@dataclass
class Assert:
    cond: int
    value: int
    message: str
    loc: Loc | None

    def run(self, f: Frame) -> None:
        if not f.env[self.cond]:
            f.rt.fail_here(self.loc, self.message.replace("{}", str(f.env[self.value])))


@dataclass
class For:
    low: int
    high: int
    step: int
    index: int
    inits: list[int]
    carried: list[int]
    yields: list[int]
    results: list[int]
    body: list
    progress: bool = False

    def run(self, f: Frame) -> None:
        env = f.env
        if self.progress:
            self.steps(f)
            return
        values = [env[i] for i in self.inits]
        for i in range(env[self.low], env[self.high], self.step):
            env[self.index] = i
            for s, v in zip(self.carried, values):
                env[s] = v
            run_steps(self.body, f)
            values = [env[y] for y in self.yields]
        for s, v in zip(self.results, values):
            env[s] = v

    def steps(self, f: Frame) -> None:
        """The loop whose turns are the launch's progress: the host stays close to the device, so that it can end between two turns."""
        rt, waited = f.rt, time.perf_counter()
        for i in range(f.env[self.low], f.env[self.high], self.step):
            f.env[self.index] = i
            run_steps(self.body, f)
            rt.progress = i + 1
            if time.perf_counter() - waited > HOST_LEAD:
                rt.queue.finish()
                waited = time.perf_counter()
            if rt.cancelled:
                return


@dataclass
class If:
    cond: int
    branches: list[tuple[list, list[int]]]         # steps and yielded slots
    results: list[int]

    def run(self, f: Frame) -> None:
        steps, yields = self.branches[0 if f.env[self.cond] else 1]
        run_steps(steps, f)
        for r, y in zip(self.results, yields):
            f.env[r] = f.env[y]


@dataclass
class Sections:
    sections: list[list]

    def run(self, f: Frame) -> None:
        for steps in self.sections:
            run_steps(steps, f)


@dataclass
class While:
    cond: list
    flag: int
    body: list

    def run(self, f: Frame) -> None:
        while True:
            run_steps(self.cond, f)
            if not f.env[self.flag]:
                return
            run_steps(self.body, f)


class Runtime:
    """What steps need of the device while a program runs: queue, arena, constants, error words, scratch memory."""

    def __init__(self, device, sites: list[Site], profile: bool = False):
        import pyopencl as cl
        self.cl, self.device, self.queue = cl, device, device.queue
        self.sites = sites
        self.largest = int(device.cl_device.max_mem_alloc_size)
        self.arena: Any = None
        self.arena_bytes = 0
        self.constants: list = []
        self.profiling = profile
        self._events: list = []                          # of launches whose times have not been added up
        self._times: dict[Kernel, list] = {}             # times run, seconds in all, seconds at best
        self._started: set[str] = set()                  # kernels that have run
        self.built = 0.0                                 # seconds that their first runs took besides running
        self.errors = cl.Buffer(device.context, cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR, hostbuf=np.zeros(4, np.int32))
        self._scratch: Any = None
        self._scratch_bytes = 0
        self.progress, self.cancelled = 0, False        # of the call that runs
        self._steady: set[int] = {id(self.errors)}      # memory that lives as long as we do: its arguments need not be set again

    def allocate(self, nbytes: int):
        self._fits(nbytes)
        return self.device.pool.allocate(max(int(nbytes), 64))

    def _fits(self, nbytes: int) -> None:
        """MemoryError before memory is taken that the device does not have in one piece."""
        if nbytes > self.largest:
            raise MemoryError(f"the OpenCL device {self.device.caps.name} gives at most {self.largest / 2**20:.0f} MiB in one piece, "
                              f"this program needs {nbytes / 2**20:.0f} MiB")

    def reserve(self, nbytes: int) -> None:
        """Make the arena at least this large."""
        if self.arena is None or self.arena_bytes < nbytes:
            self._forget(self.arena)
            self.arena = self._fixed(max(nbytes, 64))
            self.arena_bytes = nbytes

    def scratch(self, nbytes: int):
        if self._scratch is None or self._scratch_bytes < nbytes:
            self._forget(self._scratch)
            self._scratch, self._scratch_bytes = self._fixed(nbytes), nbytes
        return self._scratch

    def _fixed(self, nbytes: int):
        self._fits(nbytes)
        self.queue.finish()                             # the memory it replaces may be in use
        b = self.cl.Buffer(self.device.context, self.cl.mem_flags.READ_WRITE, nbytes)
        self._steady.add(id(b))
        return b

    def keep(self, buffers: list) -> None:
        """These live as long as the program."""
        self._steady.update(map(id, buffers))

    def _forget(self, b) -> None:
        self._steady.discard(id(b))

    def upload(self, array: np.ndarray):
        memory = self.allocate(array.nbytes)
        if array.nbytes:
            self.cl.enqueue_copy(self.queue, memory, np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        return memory

    def download(self, memory, shape: tuple[int, ...], dtype: DType) -> np.ndarray:
        out = np.empty(shape, dtype.numpy)
        if out.nbytes:
            self.cl.enqueue_copy(self.queue, out.reshape(-1).view(np.uint8), memory)
        return out

    def read(self, memory, at: int, dtype: DType):
        raw = np.empty(dtype.bytes, np.uint8)
        self.cl.enqueue_copy(self.queue, raw, memory, src_offset=at * dtype.bytes)
        x = raw.view(dtype.numpy)[0]
        return bool(x) if dtype.is_bool else float(x) if dtype.is_float else int(x)

    def copy(self, target, target_at: int, source, source_at: int, nbytes: int, work: Kernel | None = None) -> None:
        self._note(work, self.cl.enqueue_copy(self.queue, target, source, byte_count=nbytes, src_offset=source_at, dst_offset=target_at))

    def enqueue(self, launch: Launch, args: list) -> None:
        kernel, last, steady = launch.kernel, launch.last, self._steady
        for i, (a, dtype) in enumerate(zip(args, launch.dtypes)):
            if last[i] is not None and (a is last[i] if dtype is None else a == last[i]):
                continue
            if dtype is None:
                kernel.set_arg(i, a)
                last[i] = a if id(a) in steady else None
            else:
                kernel.set_arg(i, dtype(a))
                last[i] = a if isinstance(a, int) else None     # -0.0 equals 0.0, and NaN nothing
        if self.profiling and launch.name not in self._started:
            self._start(launch)
        else:
            self._note(launch.work, self.cl.enqueue_nd_range_kernel(self.queue, kernel, launch.global_size, launch.local_size))

    def _start(self, launch: Launch) -> None:
        """A kernel's first run, alone: drivers finish building it only now, and that is no part of a step."""
        self.queue.finish()
        start = time.perf_counter()
        event = self.cl.enqueue_nd_range_kernel(self.queue, launch.kernel, launch.global_size, launch.local_size)
        event.wait()
        self.built += time.perf_counter() - start - (event.profile.end - event.profile.start) * 1e-9
        self._started.add(launch.name)
        self._note(launch.work, event)

    # ---- times ----
    def _note(self, work: Kernel | None, event) -> None:
        if self.profiling and work is not None:
            self._events.append((work, event))
            if len(self._events) >= EVENTS:
                self._add_up()

    def _add_up(self) -> None:
        self.queue.finish()
        for work, event in self._events:
            seconds = (event.profile.end - event.profile.start) * 1e-9
            row = self._times.setdefault(work, [0, 0.0, float("inf")])
            row[0], row[1], row[2] = row[0] + 1, row[1] + seconds, min(row[2], seconds)
        self._events.clear()

    def profile(self) -> list[tuple[Kernel, int, float, float]]:
        """(kernel, times run, seconds in all, seconds at best) since the last call."""
        self._add_up()
        out = [(work, n, total, best) for work, (n, total, best) in self._times.items()]
        self._times.clear()
        return out

    # ---- run-time errors ----
    def check(self) -> None:
        """Waits for the device and raises what its kernels reported."""
        words = np.empty(4, np.int32)
        self.cl.enqueue_copy(self.queue, words, self.errors)
        if words[0] == 0:
            return
        self.cl.enqueue_copy(self.queue, self.errors, np.zeros(4, np.int32))
        loc, message = self.sites[int(words[0]) - 1]
        value = int(np.uint32(words[2])) | int(words[3]) << 32
        raise RuntimeError_(message.replace("{}", str(value)), loc)

    def fail_here(self, loc: Loc | None, message: str) -> None:
        self.check()                                    # an earlier kernel's report comes first
        raise RuntimeError_(message, loc)


def argument_dtypes(kinds: list[tuple[str, DType | None]]) -> list:
    """For pyopencl: the NumPy types of a kernel's arguments, None for memory."""
    out: list = []
    for kind, dtype in kinds:
        if kind == "buffer":
            out += [None, np.int64]
        elif kind == "scalar":
            out.append(np.dtype(NUMPY_ARGUMENT[dtype.name]).type)
        elif kind == "number":
            out.append(np.int32)
        elif kind == "error":
            out += [None, np.int32]
        else:
            out.append(None)
    return out
