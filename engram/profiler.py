"""Time per kernel of whatever runs: for `--profile`. Counts are the IR's (compiler/ops/work.py), times the backend's own clocks.

A Profiler goes into the pass manager's options; programs that are built with them register here and count. What bounds a kernel is told
by its work beside the machine's measured peaks (benchmarks/machine.py):
  compute   its FLOPs at the FMA peak would take longer than its bytes at the read bandwidth
  memory    the other way round; `cache` where it is faster than memory could be, so its data came from a cache
  launch    it is over before either matters: the price of starting it, of a barrier, of a short loop
"""
from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

LAUNCH = {"cpu": 4e-6, "opencl": 40e-6}          # seconds below which a run is mostly its start, when its work explains little of it


@dataclass
class Row:
    """A kernel's times: all runs together, and the fastest one."""

    kernel: Any                                  # compiler.ops.work.Kernel
    runs: int
    seconds: float
    best: float

    @property
    def each(self) -> float:
        return self.seconds / max(self.runs, 1)

    @property
    def flop_rate(self) -> float:
        return self.kernel.flops * self.runs / self.seconds if self.seconds else 0.0

    @property
    def byte_rate(self) -> float:
        return self.kernel.bytes * self.runs / self.seconds if self.seconds else 0.0

    def bound(self, limits, backend: str = "cpu") -> tuple[str, float | None]:
        """(what bounds it, the share of that bound it reaches); ("-", None) where the machine's limits are not known."""
        if limits is None or not self.seconds:
            return "-", None
        compute, memory = self.kernel.flops / limits.fma, self.kernel.bytes / limits.read
        need = max(compute, memory)
        if self.each < LAUNCH[backend] and (need < self.each / 4 or self.each < LAUNCH[backend] / 4):
            return "launch", None
        if compute >= memory:
            return ("compute", compute / self.each) if compute else ("launch", None)
        return ("cache" if memory > self.each else "memory"), memory / self.each


class Profiler:
    """Collects the programs that are built while it is in the options, and what their kernels cost."""

    def __init__(self, backend: str = "cpu"):
        self.backend = backend
        self.programs: list[Any] = []
        self._calls: list[list] = []                 # of each program: how many, and their seconds

    def add(self, program) -> None:
        """A program just built: its calls are timed as a whole, too."""
        call, counted = program.call, [0, 0.0]
        self.programs.append(program)
        self._calls.append(counted)

        def timed(*args, **kwargs):
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                counted[0] += 1
                counted[1] += time.perf_counter() - start
        program.call = timed

    def take(self, programs: list | None = None) -> Profile:
        """What ran since the last look: of all programs, or of these."""
        found: dict[Any, Row] = {}
        calls, wall, built = 0, 0.0, 0.0
        for p, counted in zip(self.programs, self._calls):
            if programs is not None and not any(p is q for q in programs):
                continue
            for kernel, runs, seconds, best in p.profile():
                if runs:
                    r = found.setdefault(kernel, Row(kernel, 0, 0.0, best))
                    r.runs, r.seconds, r.best = r.runs + runs, r.seconds + seconds, min(r.best, best)
            late = p.built() if hasattr(p, "built") else 0.0        # OpenCL drivers build kernels when they first run
            calls, wall, built = calls + counted[0], wall + counted[1] - late, built + late
            counted[:] = 0, 0.0
        return Profile(self.backend, sorted(found.values(), key=lambda r: -r.seconds), calls, max(wall, 0.0), built)


@dataclass
class Profile:
    """Kernels, the dearest first (equal ones of several programs are one row), and the calls of compiled code they ran in."""

    backend: str
    rows: list[Row]
    calls: int
    wall: float                                  # seconds in those calls, but for
    built: float = 0.0                           # seconds in which kernels were still being built

    @property
    def seconds(self) -> float:
        """In kernels."""
        return sum(r.seconds for r in self.rows)


def limits_for(backend: str, threads: int | None):
    """The peaks of the machine that a backend's kernels run on; None where they are not measured (an OpenCL device that is no processor)."""
    from .benchmarks import machine
    from .codegen.cpu.runtime import default_threads
    if not machine.limits_known(backend):
        return None
    if backend == "opencl":
        threads = None
    return machine.measure(threads or default_threads())


# ---- showing ------------------------------------------------------------------------------------------------------------------

def as_json(p: Profile, limits, unit: str = "calls", n: int | None = None) -> dict:
    """All of it, as data; `unit` and `n`: what the work is counted in, such as 20 "steps"."""
    return {
        "backend": p.backend, unit: p.calls if n is None else n, "calls": p.calls, "seconds_in_calls": p.wall, "seconds_in_kernels": p.seconds,
        "seconds_building": p.built,
        "limits": None if limits is None else {"threads": limits.threads, "fma_flops": limits.fma, "read_bytes_per_s": limits.read,
                                               "last_level_cache": limits.cache},
        "kernels": [{
            "file": r.kernel.loc.file if r.kernel.loc else None, "line": r.kernel.loc.line if r.kernel.loc else None,
            "lines": [f"{f}:{n}" for f, n in r.kernel.lines], "function": r.kernel.function, "op": r.kernel.op, "what": r.kernel.what,
            "runs": r.runs, "seconds": r.seconds, "seconds_best": r.best, "share": r.seconds / p.seconds if p.seconds else 0.0,
            "flops": r.kernel.flops, "bytes_read": r.kernel.bytes_read, "bytes_written": r.kernel.bytes_written, "exact": r.kernel.exact,
            "flops_per_s": r.flop_rate, "bytes_per_s": r.byte_rate, "bound": r.bound(limits, p.backend)[0],
            "share_of_bound": r.bound(limits, p.backend)[1]} for r in p.rows]}


def show(p: Profile, limits, title: str, unit: str = "call", n: int | None = None, most: int = 40, file=None) -> None:
    """Print the table. `unit` and `n`: times are given for one of n steps, say."""
    import sys

    from rich.console import Console
    from rich.table import Table
    console = Console(file=file or sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = 180
    total, n = p.seconds, max(p.calls if n is None else n, 1)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head, justify in (("share", "right"), (f"ms/{unit}", "right"), ("runs", "right"), ("us/run", "right"), ("GFLOP/s", "right"), ("GB/s", "right"),
                          ("bound", "left"), ("line", "left"), ("function", "left"), ("kernel", "left")):
        table.add_column(head, justify=justify, no_wrap=True, overflow="ellipsis")
    for r in p.rows[:most]:
        what, share = r.bound(limits, p.backend)
        about = "" if r.kernel.exact else "~"
        table.add_row(f"{r.seconds / total:.1%}" if total else "-", f"{r.seconds / n * 1e3:.4g}", f"{r.runs:,}", f"{r.each * 1e6:,.4g}",
                      about + f"{r.flop_rate / 1e9:,.4g}" if r.kernel.flops else "-", about + f"{r.byte_rate / 1e9:,.3g}",
                      what + (f" {share:.0%}" if share is not None and what != "cache" else ""), where(r.kernel), r.kernel.function, f"{r.kernel.op} {r.kernel.what}")
    console.print(f"profile of {title}: {n:,} {unit}{'s' * (n != 1)}, {p.calls:,} calls of compiled code; {total / n * 1e3:.4g} ms a {unit} in kernels, "
                  f"{max(p.wall - total, 0) / n * 1e3:.4g} ms outside them"
                  + (f"; building kernels at their first run took {p.built:.3g} s" if p.built >= 5e-4 else ""), soft_wrap=True)
    if limits is not None:
        console.print(limits.text(), soft_wrap=True)
    console.print(table)
    if len(p.rows) > most:
        rest = sum(r.seconds for r in p.rows[most:])
        console.print(f"... and {len(p.rows) - most} more kernels with {rest / max(total, 1e-12):.1%} of the time (profile.json has all)", soft_wrap=True)


def where(k) -> str:
    """`mlp.nn:12`, and how many other lines of the program are part of the kernel."""
    if k.loc is None:
        return "-"
    file = k.loc.file if k.loc.file.startswith("std/") else k.loc.file.rsplit("/", 1)[-1]
    return f"{file}:{k.loc.line}" + (f" +{len(k.lines) - 1}" if len(k.lines) > 1 else "")
