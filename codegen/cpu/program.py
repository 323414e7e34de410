"""CpuProgram: a loop-stage module compiled for this machine, with the face every backend has (docs/ARCHITECTURE.md, 5).

Owns the machine code, the arena and the constants; arrays are NumPy's. No code generation here: see emit.py.
"""
from __future__ import annotations

import ctypes
import functools
import math
import operator
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import compress, count

import numpy as np

from ...compiler.diagnostics import RuntimeError_
from ...compiler.ir.core import Func, Module
from ...compiler.ops.work import Kernel
from . import contract
from .compile import Library, finish, load, submit
from .emit import Emitter, n_inputs
from .gemm import compile_gemm, gemm_address, scratch_bytes, symbol
from .gemm_base import FEW, with_pairs
from .runtime import (
    HUGE_PAGE,
    Interruptible,
    Memory,
    Runtime,
    compile_runtime,
    default_threads,
    huge_buffer,
    runtime,
    symbols,
)
from .target import CpuTarget, host_target

ALIGN = 64
REPEATING = ("loop.for", "loop.while", "loop.reduce", "loop.contract", "loop.sort")
BRIEF = 4 << 20             # elements computed up to which one call is over before good code would have been made
REUSED = 1 << 20            # bytes of a result from which on its memory is kept for the next call


def llvm_text(module: Module, target: CpuTarget | None = None, threads: int = 1) -> str:
    """The LLVM IR of a loop-stage module."""
    texts: list[str] = []
    Emitter(module, target or host_target(), threads, ready=lambda text, quick: texts.append(text)).run(_entries(module))
    return "\n; ---- next module\n".join(texts)


def _entries(module: Module) -> list[str]:
    wanted = module.attrs.get("entries") or list(module.funcs)
    return [name for name in wanted if name in module.funcs]


def prepare(dtypes: tuple[str, ...] = ("f32",), target: CpuTarget | None = None) -> None:
    """Start compiling (or loading) what every program needs, beside whatever comes next."""
    compile_runtime()
    for d in dtypes:
        compile_gemm(d, target)


def _contracted(module: Module, target: CpuTarget) -> tuple[str, ...]:
    """The kinds of GEMM that the module probably needs."""
    kinds = set()
    for op in module.walk():
        if op.name == "loop.contract" and (kind := contract.kind(op)) is not None and (groups := contract.contraction_groups(op, contract.SMALL_INSIDE)) is not None:
            kind = with_pairs(kind, target)
            few = contract.is_few(*(math.prod(d.size for d in groups[i]) for i in (1, 2)))
            kinds |= {kind, kind + FEW} if few else {kind}
    return tuple(sorted(kinds))


def _is_brief(module: Module) -> bool:
    """Whether a call is surely over soon: few elements, and nothing that repeats."""
    ops = list(module.walk())
    return (not any(op.name in REPEATING for op in ops)
            and sum(math.prod(op.attrs["extents"]) for op in ops if op.name == "loop.parallel") <= BRIEF)


def aligned_empty(shape, dtype: np.dtype) -> np.ndarray:
    """An uninitialised array whose data starts on a cache line."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    return _shaped(_raw(size), shape, dtype)[0] if size else np.empty(shape, dtype)


def _raw(size: int) -> np.ndarray:
    """Uninitialised bytes with room for `size` from a cache line on."""
    pages = huge_buffer(size)
    return np.empty(size + ALIGN, np.uint8) if pages is None else np.frombuffer(pages, np.uint8)


def zeros(kinds: list[tuple[tuple[int, ...], np.dtype]]) -> list[np.ndarray]:
    """Arrays of zeros of these shapes and dtypes, for what lives and dies together: one piece of memory, which the system gives zeroed,
    by large pages, to whoever first touches it."""
    sizes = [-(-math.prod(shape) * np.dtype(dtype).itemsize // ALIGN) * ALIGN for shape, dtype in kinds]
    raw, out = Memory(max(sum(sizes), ALIGN)).array(), []
    for (shape, dtype), size in zip(kinds, sizes):
        out.append(raw[:math.prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape))
        raw = raw[size:]
    return out


def _shaped(raw: np.ndarray, shape, dtype: np.dtype) -> tuple[np.ndarray, int]:
    """An array in the bytes of `raw`, from the first cache line on; its address."""
    address = _address(raw)
    start = -address % ALIGN
    return np.ndarray(shape, dtype, raw, start), address + start


def _address(a: np.ndarray) -> int:
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(a))     # a quarter of the time, which counts in a call of microseconds
    except (TypeError, ValueError, BufferError):                  # read only, empty, or of a dtype that buffers don't know
        return a.__array_interface__["data"][0]


@functools.cache
def tick_seconds() -> float:
    """Seconds of one tick of the counter that profiled code reads."""
    target = host_target()
    text = "declare i64 @llvm.readcyclecounter()\ndefine i64 @engram_clock() {\n  %t = call i64 @llvm.readcyclecounter()\n  ret i64 %t\n}\n"
    library = load(text, ["engram_clock"], target=target)
    clock = ctypes.CFUNCTYPE(ctypes.c_int64)(library.address("engram_clock"))
    ticks, start = clock(), time.perf_counter()
    while time.perf_counter() - start < 0.02:
        pass
    ticks, seconds = clock() - ticks, time.perf_counter() - start
    return seconds / max(ticks, 1)


@dataclass
class Signature:
    """What a call of one function needs to know."""

    name: str
    symbol: str
    inputs: list[tuple[np.dtype, tuple[int, ...], str]]           # dtype, shape, as text
    outputs: list[tuple[int, np.dtype, tuple[int, ...]]]          # the argument whose memory it takes or -1, dtype, shape
    names: list[str]
    arena: int
    single: bool                                                  # one thread does it all
    interruptible: bool
    steps: bool                                                   # it tells how far it is, and may be left between its steps


@dataclass
class Compiled:
    """Machine code and all that running it takes: picklable, so that a later process can skip every pass."""

    target: CpuTarget
    threads: int
    objects: list[bytes]
    imports: list[str]                                            # symbols it needs, of those the process has to offer
    signatures: list[Signature]
    constants: dict[str, np.ndarray]
    gemms: list[str]
    errors: list[tuple[object, str]]                              # (location, message) by error code - 1
    steps: list[Kernel]                                           # those whose time is counted


def compile_module(module: Module, threads: int | None = None, profile: bool = False, once: bool = False) -> Compiled:
    """Code generation; nothing is loaded yet. `once`: for a single call; when that has little to do, compiling quickly is what counts."""
    target, threads = host_target(), threads or default_threads()
    if dtypes := _contracted(module, target):
        prepare(dtypes, target)                                   # the GEMM compiles while this module's text is written
    names = _entries(module)
    brief = once and _is_brief(module)
    texts: list[str] = []
    objects: list[Future[bytes]] = []

    def ready(text: str, quick: bool) -> None:
        texts.append(text)
        objects.append(submit(text, target, quick or brief, first=True))      # kernels: any size; the GEMM's texts are all small
    emitter = Emitter(module, target, threads, profile, ready)
    emitter.run(names)
    offered = ["engram_barrier", "engram_fail", "engram_pointers", "engram_profile", *emitter.constants, *(symbol(d) for d in emitter.gemms)]
    return Compiled(target, threads, finish(objects),
                    [x for x in offered if any(f"@{x}" in text for text in texts)],
                    [_signature(emitter, module.funcs[name]) for name in names],
                    emitter.constants, sorted(emitter.gemms), emitter.errors.items, emitter.steps)


def _signature(emitter: Emitter, func: Func) -> Signature:
    n = n_inputs(func)
    donated = {r: a for a, r in func.attrs.get("donate", [])}
    kinds = [(v.type.dtype.numpy, tuple(v.type.shape)) for v in func.args]
    texts = [str(v.type).removeprefix("buf<").removesuffix(">") for v in func.args]
    return Signature(func.name, emitter.entries[func.name], [(*k, t) for k, t in zip(kinds[:n], texts)],
                     [(donated.get(i, -1), *k) for i, k in enumerate(kinds[n:])],
                     func.attrs.get("arg_names") or [f"argument {i}" for i in range(n)], func.attrs.get("arena", 0),
                     emitter.summaries[func.name].single, emitter.interruptible(func.name), emitter.counts(func.name))


def _holders(arrays: list[np.ndarray]) -> list[int]:
    """References to each array: every view of it counts as one."""
    return [sys.getrefcount(a) for a in arrays]


_ALONE = _holders([np.empty(1, np.uint8)])[0]                     # only in the list; what the count itself adds differs between Pythons


_NOTHING = object()
MANY = 48                                                         # arguments from which on NumPy compares them faster than a loop


class _Entry:
    """A loaded function: its signature, its address and the table of pointers it is called with."""

    def __init__(self, s: Signature, address: int, team: Runtime):
        self.name, self.inputs, self.names, self.arena = s.name, s.inputs, s.names, s.arena
        self.outputs = [(kind, np.dtype(d), shape, math.prod(shape) * np.dtype(d).itemsize) for kind, d, shape in s.outputs]
        self.address, self.team, self.interruptible, self.steps = address, team, s.interruptible, s.steps
        self.donated = sorted({kind for kind, *_ in s.outputs if kind >= 0})
        self.table = (ctypes.c_uint64 * (len(s.inputs) + len(s.outputs) + 1))()      # arena, arguments, results
        self.pointers = ctypes.addressof(self.table)
        self.last: list = [_NOTHING] * len(s.inputs)
        n = len(s.inputs)                                         # first address and the one after the last, of each argument
        self.spans = ([0] * n, [0] * n) if n < MANY else np.zeros((2, n), np.int64)
        self.kept: dict[int, list[np.ndarray]] = {}               # memory of large results, by number

    def touching(self, i: int) -> list[int]:
        """The arguments whose memory overlaps that of argument i, itself among them."""
        starts, ends = self.spans
        lo, hi = starts[i], ends[i]
        if isinstance(starts, list):
            return [j for j, (a, b) in enumerate(zip(starts, ends)) if a < hi and lo < b]
        return np.flatnonzero((starts < hi) & (lo < ends)).tolist()

    def result(self, i: int, dtype: np.dtype, shape: tuple[int, ...], size: int) -> tuple[np.ndarray, int]:
        """Memory for result i, its address: that of an earlier call, once nobody holds its result any more (fresh pages of a large array
        cost more than a kernel that fills it)."""
        if size <= ALIGN:
            out = np.empty(shape, dtype)
            return out, _address(out)
        if size < REUSED:
            return _shaped(np.empty(size + ALIGN, np.uint8), shape, dtype)
        kept = self.kept.setdefault(i, [])
        for raw, holders in zip(kept, _holders(kept)):
            if holders == _ALONE:
                return _shaped(raw, shape, dtype)
        raw = _raw(size)
        self.kept[i] = [raw, *kept[:1]]                           # two, for a caller who still holds the last one
        return _shaped(raw, shape, dtype)


class CpuProgram:
    """Machine code for every entry function of a module at stage loop, with planned buffers."""

    def __init__(self, module: Module | Compiled, threads: int | None = None, profile: bool = False):
        c = self.compiled = module if isinstance(module, Compiled) else compile_module(module, threads, profile)
        if c.target != host_target():
            raise ValueError(f"compiled for {c.target.name} {c.target.cpu}, this is {host_target().name} {host_target().cpu}")
        self.threads = c.threads
        self._counters = np.empty((len(c.steps) + 1, 3), np.int64)
        self._reset()
        known = symbols() | {name: _address(value) for name, value in c.constants.items()}
        known |= {symbol(d): gemm_address(d, c.target) for d in c.gemms} | {"engram_profile": _address(self._counters)}
        self._library = Library(c.objects, [s.symbol for s in c.signatures], {x: known[x] for x in c.imports}, c.target)
        self._one, self._team = runtime(1), runtime(c.threads)
        for d in c.gemms:
            self._one.reserve(scratch_bytes(c.target, d))
            self._team.reserve(scratch_bytes(c.target, d))
        self._functions = {s.name: _Entry(s, self._library.address(s.symbol), self._one if s.single else self._team)
                           for s in c.signatures}
        self._arena: Memory | None = None
        self._lock = threading.Lock()
        self._running: Runtime | None = None
        self._done = 0

    # ---- arrays

    def to_device(self, array: np.ndarray) -> np.ndarray:
        """A C-contiguous copy on cache-line boundaries."""
        array = np.asarray(array)
        out = aligned_empty(array.shape, array.dtype)
        out[...] = array
        return out

    def together(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        """Arrays that every call reads: copies of the smaller ones side by side, on huge pages; a large one has such pages of its own."""
        room = [-(-a.nbytes // ALIGN) * ALIGN if a.nbytes < 2 * HUGE_PAGE else 0 for a in arrays]
        raw = _shaped(_raw(sum(room)), (sum(room),), np.dtype(np.uint8))[0]
        out, at = list(arrays), 0
        for k, (a, n) in enumerate(zip(arrays, room)):
            if n:
                out[k] = raw[at:at + a.nbytes].view(a.dtype).reshape(a.shape)
                out[k][...] = a
                at += n
        return out

    def to_host(self, handle: np.ndarray) -> np.ndarray:
        return handle

    def profile(self) -> list[tuple[Kernel, int, float, float]]:
        """With profile=True: (kernel, times run, seconds in all, seconds at best) since the last call, by thread 0's clock;
        waiting for other threads counts."""
        tick = tick_seconds()
        out = [(k, n, spent * tick, best * tick if n else 0.0) for k, (n, spent, best) in zip(self.compiled.steps, self._counters.tolist())]
        self._reset()
        return out

    def _reset(self) -> None:
        self._counters[:] = (0, 0, 1 << 62)

    # ---- calls

    def call(self, name: str, args: list) -> list[np.ndarray]:
        """Run a function. A donated argument's memory holds the result that was declared to replace it."""
        entry = self._functions.get(name)
        if entry is None:
            raise ValueError(f"no function {name!r}; there are: {', '.join(self._functions)}")
        if len(args) != len(entry.inputs):
            raise ValueError(f"{name} takes {len(entry.inputs)} arguments, got {len(args)}")
        with self._lock:
            # an array that was passed here last time, too, needs neither checks nor a look at its address
            arrays, p, table = entry.last, entry.pointers, entry.table
            changed = list(compress(count(), map(operator.is_not, args, arrays)))
            for i, a in [(i, self._checked(entry, i, args[i])) for i in changed]:        # all of them are right before one is taken over
                arrays[i] = a
                table[i + 1] = _address(a)
            if changed and entry.donated:
                self._separate(entry, changed)
            outputs, at = [], len(arrays)
            for kind, dtype, shape, size in entry.outputs:
                at += 1
                if kind >= 0:
                    out = arrays[kind]
                    if changed:
                        table[at] = table[kind + 1]
                else:
                    out, table[at] = entry.result(at, dtype, shape, size)
                outputs.append(out)
            if self._arena is None or self._arena.nbytes < entry.arena:
                self._arena = Memory(max(entry.arena, 4096))
            table[0] = self._arena.address
            if entry.steps:
                code, value = self._launch_steps(entry)
            elif entry.interruptible:
                with Interruptible(entry.team):
                    code, value = entry.team.launch(entry.address, p)
            else:
                code, value = entry.team.launch(entry.address, p)
        if code:
            loc, message = self.compiled.errors[code - 1]
            raise RuntimeError_(message.replace("{}", str(value)), loc)
        return outputs

    def _launch_steps(self, entry: _Entry) -> tuple[int, int]:
        team, self._running = entry.team, entry.team
        team.progress.value = 0
        try:
            with Interruptible(team, steps=True) as interruptible:
                result = team.launch(entry.address, entry.pointers)
        finally:
            self._running, self._done = None, team.progress.value
        if interruptible.torn:                   # a second Ctrl-C: the last step may be half done
            raise KeyboardInterrupt
        return result

    @property
    def progress(self) -> int:
        """Steps done by the call that runs, or by the last one: of functions with a loop of whole steps (scf.scan with `progress`)."""
        running = self._running
        return self._done if running is None else running.progress.value

    def cancel(self, now: bool = False) -> None:
        """From another thread: the call that runs returns after its current step (`now`: leaves it where it is, and raises
        KeyboardInterrupt). To be said again until it has returned."""
        running = self._running
        if running is not None:
            running.cancel(now)

    def _separate(self, entry: _Entry, changed: list[int]) -> None:
        """A donated argument that shares memory with another one is copied: writing it must not change the other. What has not changed
        since the last call was looked at then."""
        arrays, table, donated, (starts, ends) = entry.last, entry.table, set(entry.donated), entry.spans
        for i in changed:
            starts[i] = table[i + 1]
            ends[i] = starts[i] + arrays[i].nbytes
        for i in changed:
            for j in entry.touching(i):
                if j != i and (i in donated or j in donated) and starts[j] < ends[i] and starts[i] < ends[j]:
                    k = i if i in donated else j
                    arrays[k] = self.to_device(arrays[k])
                    table[k + 1] = starts[k] = _address(arrays[k])
                    ends[k] = starts[k] + arrays[k].nbytes

    def _checked(self, entry: _Entry, i: int, a) -> np.ndarray:
        dtype, shape, text = entry.inputs[i]
        if not isinstance(a, np.ndarray):
            a = np.asarray(a)
        if a.dtype != dtype or a.shape != shape:
            raise ValueError(f"{entry.name}: {entry.names[i]} expects {text}, got {a.dtype}{list(a.shape)}")
        if not a.flags.c_contiguous or (i in entry.donated and not a.flags.writeable):
            a = self.to_device(a)
        return a
