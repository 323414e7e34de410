"""Teams of threads that run generated code: made once per process and size, parked between launches.

Workers are raw OS threads (they never touch Python), started at the first launch that needs them and ended at exit,
before the machine code they run could be unmapped. After a fork the child makes its own. A launch is one ctypes call.
"""
from __future__ import annotations

import atexit
import ctypes
import functools
import mmap
import os
import signal
import threading

import numpy as np

from . import runtime_ir as ir
from .compile import load, submit
from .target import host_target

DEFAULT_SCRATCH = 4 << 20


@functools.cache
def _library():
    with _loading:
        return _load()


_loading = threading.Lock()


@functools.cache
def _load():
    lib = load(ir.runtime_text(host_target()), list(ir.EXPORTS))
    return lib, {name: lib.address(name) for name in ir.EXPORTS}


def compile_runtime() -> None:
    """Start compiling the thread runtime beside whatever comes next."""
    submit(ir.runtime_text(host_target()), host_target())


def symbols() -> dict[str, int]:
    """What generated code calls, for the linker."""
    known = _library()[1]
    return {name: known[name] for name in ("engram_barrier", "engram_fail", "engram_pointers")}


def default_threads() -> int:
    """The processors this process may use (`ENGRAM_THREADS` overrides)."""
    wanted = os.environ.get("ENGRAM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) > 0 else _processors()


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


HUGE_PAGE = 2 << 20
FAULTS = {getattr(signal, s) for s in ("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGABRT") if hasattr(signal, s)}


class Memory:
    """Zeroed memory from the system, 64-byte aligned (2 MB where it is large, with huge pages asked for)."""

    def __init__(self, nbytes: int):
        huge = nbytes >= 2 * HUGE_PAGE
        align = HUGE_PAGE if huge else 4096
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        self._map = mmap.mmap(-1, nbytes + align, **private)
        if huge and hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                self._map.madvise(mmap.MADV_HUGEPAGE)
            except OSError:
                pass
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.address = -(-base // align) * align
        self.nbytes = nbytes

    def array(self) -> np.ndarray:
        """All of it as bytes; lives as long as any array that shares it."""
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        return np.frombuffer(self._map, np.uint8, self.nbytes, self.address - base)


def huge_buffer(nbytes: int) -> memoryview | None:
    """Memory of its own on huge pages, which it fills but for an end of less than one; None where there are none, or no whole one would be filled.

    Reading it needs so few address translations that memory is what bounds it: 4 KB pages cost 10 % of the bandwidth and more.
    """
    if nbytes < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    pages = mmap.mmap(-1, nbytes + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(pages)) % HUGE_PAGE
    try:
        pages.madvise(mmap.MADV_HUGEPAGE, start, nbytes // HUGE_PAGE * HUGE_PAGE)
    except OSError:                                              # a kernel without them
        return None
    return memoryview(pages)[start:start + nbytes]


class Runtime:
    """A team of `threads` threads; `launch` runs a job on it, one at a time."""

    def __init__(self, threads: int):
        self.threads = threads
        self._lib, addresses = _library()
        self._block = Memory(ir.RT_BYTES)
        self.address = self._block.address
        self._scratch: Memory | None = None
        self._scratch_each = 0
        self._write(ir.RT_THREADS, threads)
        ctypes.c_int32.from_address(self.address + ir.RT_APART).value = threads <= _processors()
        self._launch = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(addresses["engram_launch"])
        self._error = ctypes.c_int64.from_address(self.address + ir.RT_ERROR)
        self._error_value = ctypes.c_int64.from_address(self.address + ir.RT_ERROR + 8)
        self._cancel = ctypes.c_int32.from_address(self.address + ir.RT_CANCEL)
        self._ctrl_c = ctypes.c_int32.from_address(self.address + ir.RT_CTRL_C)
        self.progress = ctypes.c_int64.from_address(self.address + ir.RT_PROGRESS)
        self._workers: list[ctypes.c_ulong] = []
        self._started = threads == 1
        self._lock = threading.Lock()
        self.reserve(DEFAULT_SCRATCH)

    def _write(self, offset: int, value: int) -> None:
        ctypes.c_int64.from_address(self.address + offset).value = value

    def reserve(self, scratch: int) -> None:
        """At least `scratch` bytes of working memory for each thread."""
        if scratch > self._scratch_each:
            with self._lock:
                each = -(-scratch // (2 << 20)) * (2 << 20)
                self._scratch = Memory(each * self.threads)
                self._scratch_each = each
                self._write(ir.RT_SCRATCH, self._scratch.address)
                self._write(ir.RT_SCRATCH + 8, each)

    def _start(self) -> None:
        """Start the workers with signals blocked, which are the main thread's business; not those of a fault of their own, which would
        then end the process without a word (faulthandler's included)."""
        libc = ctypes.CDLL(None, use_errno=True)
        worker = self._lib.address("engram_worker")
        self._worker_args = (ctypes.c_uint64 * (2 * self.threads))()
        base = ctypes.addressof(self._worker_args)
        blocked = hasattr(signal, "pthread_sigmask")
        old = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - FAULTS) if blocked else None
        try:
            for tid in range(1, self.threads):
                self._worker_args[2 * tid], self._worker_args[2 * tid + 1] = self.address, tid
                handle = ctypes.c_ulong()
                code = libc.pthread_create(ctypes.byref(handle), None, ctypes.c_void_p(worker),
                                           ctypes.c_void_p(base + 16 * tid))
                if code:
                    raise OSError(code, f"cannot start thread {tid} of {self.threads}: {os.strerror(code)}")
                self._workers.append(handle)
        finally:
            if blocked:
                signal.pthread_sigmask(signal.SIG_SETMASK, old)
        self._started = True

    def launch(self, fn: int, args: int) -> tuple[int, int]:
        """Run `fn(runtime, tid, threads, args)` on every thread; (error code, value), code 0 when all went well."""
        with self._lock:
            if not self._started:
                self._start()
            self._launch(self.address, fn, args)
            code = self._error.value
            if code:
                self._error.value = 0
                return code, self._error_value.value
            return 0, 0

    def cancel(self, now: bool = False) -> None:
        """Ask the launch that runs to end: after its current step, or `now` in the middle of it."""
        self._cancel.value = max(self._cancel.value, ir.CANCELLED if now else 1)

    def stop(self) -> None:
        """End the workers (they are parked, so they end at once)."""
        with self._lock:
            if self._workers:
                stop = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._lib.address("engram_stop"))
                stop(self.address)
                libc = ctypes.CDLL(None)
                for handle in self._workers:
                    libc.pthread_join(handle, None)
                self._workers.clear()
                ctypes.c_int32.from_address(self.address + ir.RT_EPOCH).value = 0
            self._started = self.threads == 1


class Interruptible:
    """While entered (main thread only), Ctrl-C also raises the runtime's cancel word, which native loops poll. Python's own
    handler runs as ever: KeyboardInterrupt comes when the launch returns. `steps`: the first Ctrl-C lets a loop of whole steps end
    after its step; `torn` then tells whether there was a second one, which leaves everything where it is."""

    def __init__(self, runtime: Runtime, steps: bool = False):
        self.runtime, self.steps, self.torn = runtime, steps, False

    def __enter__(self) -> Interruptible:
        self.active = threading.current_thread() is threading.main_thread()
        self.runtime._cancel.value = 0
        if not self.active:
            return self
        self.state, handler = _signals()
        self.runtime._ctrl_c.value = 1 if self.steps else ir.CANCELLED
        old = _handler()
        if (old or 0) <= 1:                                      # SIG_DFL, SIG_IGN: as the user wants it
            self.active = False
            return self
        if old != handler:                                       # else an interrupted __exit__ left it in place
            self.state[1] = old                                  # before the signal can come to us
        self.state[0] = self.runtime.address
        _set_handler(handler)
        return self

    def __exit__(self, *exc) -> None:
        if self.active:
            self.state[0] = None
            found = _set_handler(self.state[1])
            if found != _signals()[1]:           # the handler we passed the signal on to has taken itself away (LLVM's in PoCL does)
                _set_handler(found)
        self.torn = self.steps and self.runtime._cancel.value >= ir.CANCELLED
        self.runtime._cancel.value = 0


@functools.cache
def _signals():
    """The two words that the native handler works with, and its address."""
    _, addresses = _library()
    return (ctypes.c_void_p * 2).from_address(addresses["engram_signal_state"]), addresses["engram_sigint"]


@functools.cache
def _libc_signal():
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    return libc.signal, libc.siginterrupt, libc.sigaction, (ctypes.c_void_p * 64)()


def _handler() -> int | None:
    """The handler of SIGINT as it is: the first word of a struct sigaction."""
    *_, sigaction, action = _libc_signal()
    sigaction(signal.SIGINT, None, action)
    return action[0]


def _set_handler(address: int | None) -> int | None:
    set_handler, interrupts_calls, *_ = _libc_signal()
    old = set_handler(signal.SIGINT, address)
    interrupts_calls(signal.SIGINT, 1)                           # as Python has it: system calls end
    return old


_runtimes: dict[int, Runtime] = {}


def runtime(threads: int) -> Runtime:
    """The process's team of that size."""
    if threads < 1:
        raise ValueError(f"expected at least one thread, got {threads}")
    if threads not in _runtimes:
        if not _runtimes:
            atexit.register(_stop_all)
        _runtimes[threads] = Runtime(threads)
    return _runtimes[threads]


def _stop_all() -> None:
    for r in _runtimes.values():
        r.stop()


def _after_fork() -> None:
    """The workers stayed with the parent. Addresses stay valid, so teams are kept and start anew when needed."""
    for r in _runtimes.values():
        r._workers.clear()
        r._lock = threading.Lock()
        r._started = r.threads == 1
        for offset in (ir.RT_GENERATION, ir.RT_ARRIVED, ir.RT_EPOCH, ir.RT_SLEEPERS):
            ctypes.c_int32.from_address(r.address + offset).value = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
