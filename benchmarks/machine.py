"""What this machine can do at most, measured with generated code: fused multiply-adds a second, and bytes a second from memory.

    fma_peak(threads)      FLOP/s of f32 multiply-adds on full vectors held in registers: as many chains as hide the latency
    read_bandwidth(...)    bytes a second read from a buffer far larger than the caches
    triad_bandwidth(...)   the same for a = b + s * c (McCalpin's STREAM), reads and writes added

Each thread runs the same code on its own data; ctypes lets go of Python's lock, so plain Python threads do. The best of several
repeats counts: other work on the machine only ever takes away. What is left of a shared machine at one moment, a Probe tells: the mean of a few repeats.
"""
from __future__ import annotations

import ctypes
import functools
import os
import threading
import time
from dataclasses import dataclass, replace

import numpy as np

from ..codegen.cpu.compile import load
from ..codegen.cpu.target import CpuTarget, host_target

CHAINS = 24                    # independent multiply-adds: latency 4, two a cycle, with registers to spare of 32 (12 of 16)
FMA_TURNS = 400_000
BUFFER = 128 << 20             # bytes read by each thread, several times any last-level cache share
MOMENT = 0.03                  # seconds that a probe takes for each of its two numbers


@dataclass(frozen=True)
class Limits:
    """FLOP/s and bytes/s of the threads in use; `one` thread's FMA peak beside them; bytes of the last-level cache. `both` is what memory gives
    and takes together where reading and writing go on at once, stores past the caches: more than reading alone, on machines that have ways of
    their own for each."""

    threads: int
    fma: float
    fma_one: float
    read: float
    triad: float
    both: float
    cache: int

    def seconds(self, parts) -> float:
        """The least time that the parts of a workload can take, one after the other: each bound by arithmetic, by what it reads, or by all that
        it reads and writes."""
        return sum(max(p.flops / self.fma, (p.bytes - p.written) / self.read, p.bytes / max(self.both, self.read)) for p in parts)

    def moment(self, fma: float, read: float) -> Limits:
        """These limits at another moment, when the two that a probe measures were so high."""
        return replace(self, fma=fma, read=read, both=self.both * read / self.read)

    def text(self) -> str:
        return (f"FMA peak {self.fma / 1e9:,.0f} GFLOP/s on {self.threads} thread{'s' * (self.threads > 1)} ({self.fma_one / 1e9:,.0f} on one), "
                f"memory {self.read / 1e9:.1f} GB/s read, {self.triad / 1e9:.1f} GB/s triad, {self.both / 1e9:.1f} GB/s read and written at once; last-level cache {self.cache >> 20} MB")


def limits_known(backend: str) -> bool:
    """Whether the limits that are measured here, the processor's, are those of what `backend` runs on."""
    if backend != "opencl":
        return True
    from ..codegen.opencl.device import device
    return device().caps.cpu


def measure(threads: int, seconds: float = 0.8) -> Limits:
    """All limits, in about `seconds`."""
    share = seconds / 6
    return Limits(threads, fma_peak(threads, share), fma_peak(1, share) if threads > 1 else fma_peak(threads, share),
                  bandwidth("read", threads, share), bandwidth("triad", threads, share),
                  max(bandwidth("past", threads, share), bandwidth("copy", threads, share)), last_level_cache())


def best_of(a: Limits, b: Limits) -> Limits:
    """The higher of two measurements, number by number."""
    return Limits(a.threads, max(a.fma, b.fma), max(a.fma_one, b.fma_one), max(a.read, b.read), max(a.triad, b.triad), max(a.both, b.both), a.cache)


class Probe:
    """This moment's FMA rate and read bandwidth, all threads together: what a workload timed just before or after could have had."""

    def __init__(self, threads: int):
        from ..codegen.cpu.runtime import Memory
        self.threads = threads
        self._read = [Memory(BUFFER // 2) for _ in range(threads)]
        self._small = [Memory(4096) for _ in range(threads)]
        for m in self._small:
            (ctypes.c_float * 1024).from_address(m.address)[:] = [0.5] * 1024
        for m in self._read:
            ctypes.memset(m.address, 0, m.nbytes)            # the pages must be there, and not be the one page of zeros

    def now(self) -> tuple[float, float]:
        """(FLOP/s, bytes/s)."""
        read = [(m.nbytes, m.address, s.address, s.address) for m, s in zip(self._read, self._small)]
        add = [(FMA_TURNS, s.address, s.address + 128, s.address + 256) for s in self._small]
        return (_fma_flops(self.threads) / _mean(_times("engram_peak_fma", add, MOMENT, alone=True)),
                sum(m.nbytes for m in self._read) / _mean(_times("engram_peak_read", read, MOMENT)))


def _mean(times: list[float]) -> float:
    return sum(times) / len(times)


def last_level_cache() -> int:
    """Bytes of the largest cache that the first processor uses; 32 MB where the system does not tell."""
    from pathlib import Path
    sizes = []
    for f in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = f.read_text().strip()
        try:
            sizes.append(int(text[:-1]) << {"K": 10, "M": 20}[text[-1]])
        except (ValueError, KeyError):
            continue
    return max(sizes, default=32 << 20)


# ---- the code ---------------------------------------------------------------------------------------------------------------

@functools.cache
def _library():
    t = host_target()
    return load(_text(t), ["engram_peak_fma", "engram_peak_read", "engram_peak_triad", "engram_peak_past", "engram_peak_copy"], target=t)


def _loop(symbol: str, step: int, entry: list[str], phis: list[str], body: list[str], done: list[str]) -> str:
    """`void symbol(i64 n, ptr a, ptr b, ptr c)`: the body for i = 0, step, ... below n."""
    lines = ["entry:", *entry, "br label %loop", "loop:", "%i = phi i64 [ 0, %entry ], [ %next, %loop ]", *phis, *body, f"%next = add i64 %i, {step}",
             "%more = icmp ult i64 %next, %n", "br i1 %more, label %loop, label %done", "done:", *done, "ret void"]
    text = "\n".join(x if x.endswith(":") else f"  {x}" for x in lines)
    return f"define void @{symbol}(i64 %n, ptr %a, ptr %b, ptr %c) #0 {{\n{text}\n}}"


def _text(t: CpuTarget) -> str:
    lanes, unroll = t.lanes("f32"), 8
    v, size = f"<{lanes} x float>", lanes * 4

    def total(name: str, n: int, to: str) -> list[str]:
        """The sum of n accumulators, so that none is left out."""
        sums = [f"%t0 = fadd {v} %{name}0, %{name}1", *(f"%t{k} = fadd {v} %t{k - 1}, %{name}{k + 1}" for k in range(1, n - 1))]
        return [*sums, f"store {v} %t{n - 2}, ptr {to}, align {size}"]

    def at(base: str, k: int) -> list[str]:
        return [f"%{base}{k}i = add i64 %i, {k * size}", f"%{base}{k}p = getelementptr i8, ptr %{base}, i64 %{base}{k}i"]

    def load(base: str, k: int) -> list[str]:
        return [*at(base, k), f"%{base}{k} = load {v}, ptr %{base}{k}p, align {size}"]
    fma, read, triad, copy = [], [], [], []
    for k in range(chains()):
        fma += [f"%y{k} = call {v} @llvm.fma.v{lanes}f32({v} %x{k}, {v} %m, {v} %m)"] if t.fma else [f"%p{k} = fmul {v} %x{k}, %m", f"%y{k} = fadd {v} %p{k}, %m"]
    for k in range(unroll):
        read += [*load("a", k), f"%u{k} = fadd {v} %s{k}, %a{k}"]
        triad += [*load("b", k), *load("c", k), f"%m{k} = fmul {v} %c{k}, %k", f"%r{k} = fadd {v} %b{k}, %m{k}", *at("a", k),
                  f"store {v} %r{k}, ptr %a{k}p, align {size}"]
        copy += [*load("b", k), *at("a", k), f"store {v} %b{k}, ptr %a{k}p, align {size}, !nontemporal !0"]
    scaled = ["%first = load float, ptr %c, align 4", f"%one = insertelement {v} zeroinitializer, float 0x3FE0000000000000, i64 0",
              f"%k = shufflevector {v} %one, {v} zeroinitializer, <{lanes} x i32> zeroinitializer"]
    return "\n".join([
        f"declare {v} @llvm.fma.v{lanes}f32({v}, {v}, {v})",
        _loop("engram_peak_fma", 1, [f"%start = load {v}, ptr %b, align {size}", f"%m = load {v}, ptr %c, align {size}"],
              [f"%x{k} = phi {v} [ %start, %entry ], [ %y{k}, %loop ]" for k in range(chains())], fma, total("y", chains(), "%a")),
        _loop("engram_peak_read", unroll * size, [], [f"%s{k} = phi {v} [ zeroinitializer, %entry ], [ %u{k}, %loop ]" for k in range(unroll)], read,
              total("u", unroll, "%b")),
        _loop("engram_peak_triad", unroll * size, scaled, [], triad, []),
        _loop("engram_peak_past", unroll * size, scaled, [], [x + ", !nontemporal !0" if x.startswith("store") else x for x in triad], []),
        _loop("engram_peak_copy", unroll * size, [], [], copy, []),
        "!0 = !{i32 1}",
        t.fn_attrs])


def chains() -> int:
    """Multiply-adds in a turn of the peak loop."""
    return CHAINS if host_target().registers >= 32 else 12


def fma_peak(threads: int, seconds: float = 0.2) -> float:
    """FLOP/s of f32 multiply-adds, two operations each, over all threads."""
    buffers = [np.full(3 * 64, 0.5, np.float32) for _ in range(threads)]
    each = [_aligned(b.ctypes.data) for b in buffers]
    return _fma_flops(threads) / min(_times("engram_peak_fma", [(FMA_TURNS, p, p + 128, p + 256) for p in each], seconds))


def _fma_flops(threads: int) -> float:
    """Of one run of the loop on all threads."""
    return 2.0 * chains() * host_target().lanes("f32") * FMA_TURNS * threads


def bandwidth(kind: str, threads: int, seconds: float = 0.2) -> float:
    """Bytes a second over all threads: "read", "triad" (two arrays read, one written), and with stores past the caches "past" (a triad) and "copy"."""
    from ..codegen.cpu.runtime import Memory
    arrays = {"read": 1, "copy": 2}.get(kind, 3)
    each = BUFFER // arrays // 4096 * 4096
    memory = [[Memory(each) for _ in range(arrays)] for _ in range(threads)]
    sink = [Memory(4096) for _ in range(threads)]
    for part in memory:
        for m in part:
            ctypes.memset(m.address, 0, each)                # the pages must be there, and not be the one page of zeros
    jobs = [(each, *[m.address for m in part], *[s.address] * (3 - arrays)) for part, s in zip(memory, sink)]
    return float(each) * arrays * threads / min(_times(f"engram_peak_{kind}", jobs, seconds))


def _aligned(address: int) -> int:
    return -(-address // 64) * 64


def _times(symbol: str, jobs: list[tuple], seconds: float, alone: bool = False) -> list[float]:
    """How long all threads, begun together, took for their jobs, again and again for about `seconds`. `alone`: they share nothing, so that
    the slower one's time counts, not when Python let it begin."""
    f = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(_library().address(symbol))
    places = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    taken, until = [], time.perf_counter() + seconds
    f(*jobs[0])
    while not taken or time.perf_counter() < until:
        if len(jobs) == 1:
            start = time.perf_counter()
            f(*jobs[0])
            taken.append(time.perf_counter() - start)
            continue
        gate, spans = threading.Barrier(len(jobs)), [None] * len(jobs)

        def work(k: int, gate=gate, spans=spans) -> None:
            if len(places) >= len(jobs):                     # what lasts a millisecond must not begin with two threads on one processor
                os.sched_setaffinity(0, {places[k]})
            gate.wait()
            start = time.perf_counter()
            f(*jobs[k])
            spans[k] = (start, time.perf_counter())
        threads = [threading.Thread(target=work, args=(k,)) for k in range(len(jobs))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        taken.append(max(e - s for s, e in spans) if alone else max(e for _, e in spans) - min(s for s, _ in spans))
    return taken
