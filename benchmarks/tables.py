"""How results are shown: a line per row while they come, RESULTS.md, JSON. No measuring here."""
from __future__ import annotations

import datetime
import math
import os
import platform
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from .compare import Bar, Peer, Row
from .machine import Limits, limits_known

HOW = """Each side runs in a process of its own, with the same weights and data (benchmarks/models.py), on the same processors. First the results
are compared (the losses of the first three training steps, or the whole result) within the tolerance of the row; a side that
disagrees is not timed. Then the sides take turns (ours, torch, jax, jax, torch, ours, ...), each turn as many units as fill {slice:.2f} s after
a warm-up; who is not in turn is stopped (SIGSTOP), so that no spinning thread of one counts against another. A ratio is the
peer's time over ours *within a turn*; the table has the median of the turns and, in brackets, the least and the largest. First steps
run in fresh processes, with an empty or a filled cache folder (Python's bytecode is there), and the clock goes from the first call, weights in memory, to the loss; just before,
each takes memory of eight times the parameters and gives it back, since a virtual machine's host may have taken away what was free.
The limit is what this machine could do at best: the FLOPs of the matrix products at the measured FMA peak, and the bytes that must pass
between memory and caches (none where everything stays in the last-level cache), what is read at the measured read bandwidth and all of it at the rate of reading and
writing past the caches at once (the best of a copy and a triad), part by part, whichever is slowest; they are measured just before and just after each of our turns, as long as a turn's probe takes and not as the best of it, since the host of a virtual machine gives more
at one moment than at the next: "of the limit" is the median of the turns, the limit shown that of the probes. The line on top has the best of the whole run."""


@dataclass
class Report:
    """A whole run: rows in order, and all that a number depends on."""

    threads: int
    backend: str
    limits: Limits
    versions: list[str]
    peers: list[str]
    rows: list[Row] = field(default_factory=list)
    date: str = field(default_factory=lambda: datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"))
    seconds: float = 0.0

    def machine(self) -> str:
        where = f"{processor()}, {os.cpu_count()} processors, {memory_gb()}{platform.system()} {platform.release()}"
        if self.backend == "opencl":
            from ..codegen.opencl.device import device
            where += f", OpenCL on {device().caps.name}"
        return where

    def measured(self) -> str:
        """The machine's limits; of a device that is no processor none is measured."""
        return self.limits.text() + ("" if limits_known(self.backend) else " (the processor's: the device's are not known, so no row has a limit)")


def processor() -> str:
    """The processor's name, which every number depends on."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            return next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def memory_gb() -> str:
    from ..compiler.memory import machine_memory
    n = machine_memory()
    return f"{n / 2**30:.0f} GB, " if n else ""


def versions(peers: list[str]) -> list[str]:
    """Ours, Python's, the peers' where they are installed; the commit where there is one."""
    from importlib import metadata

    from .. import __version__
    out = [f"Engram {__version__}{commit()}", f"Python {platform.python_version()}", f"NumPy {metadata.version('numpy')}",
           f"llvmlite {metadata.version('llvmlite')}"]
    for name in peers:
        try:
            out.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            out.append(f"{name} not installed")
    return out


def commit() -> str:
    try:
        r = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, timeout=5)
        return f" ({r.stdout.strip()})" if r.returncode == 0 and r.stdout.strip() else ""
    except (OSError, subprocess.SubprocessError):
        return ""


# ---- numbers ------------------------------------------------------------------------------------------------------------------

def text_of(v: float | None) -> str:
    """Three or four digits that matter."""
    if v is None or not math.isfinite(v):
        return "-"
    if v >= 100:
        return f"{v:,.0f}"
    return f"{v:.3g}" if v >= 1e-3 else f"{v:.2e}"


def ratio_of(p: Peer) -> str:
    if p.ratio is None:
        return "-"
    return f"{p.ratio:.2f}x ({min(p.ratios):.2f}-{max(p.ratios):.2f})"


def line(row: Row, limits: Limits) -> str:
    """A row while the run goes on."""
    w = row.workload
    if row.seconds is None:
        return f"{w.name:18s} failed: {row.note}"
    share = row.share(limits)
    parts = [f"{w.name:18s} {text_of(row.value(row.seconds)):>7s} {row.unit:9s}", f"{share:6.1%} of the limit" if share and share >= 0.01 else " " * 19]
    parts += [f"{p.name} {text_of(row.value(p.seconds))} = {ratio_of(p)}" if p.ratio else f"{p.name}: {p.note or '-'}" for p in row.peers]
    return "  ".join(parts) + "".join(f"  [{_verdict(b)}]" for b in row.bars(limits) if b.met is not None)


def _verdict(b: Bar) -> str:
    if b.limit is not None:
        return f"out of reach: {b.what}, the limit is {b.limit}"
    return f"{'met' if b.met else 'MISSED'}: {b.what}"


def _cell(b: Bar) -> str:
    if b.met is None:
        return f"{b.what} (not seen)"
    return f"{b.what} {'✓' if b.met else '✗'}" + (f" (out of reach: the limit is {b.limit})" if b.limit is not None else "")


# ---- files ----------------------------------------------------------------------------------------------------------------------

def markdown(r: Report) -> str:
    """RESULTS.md."""
    from .compare import SLICE
    head = ["workload", "unit", "Engram", *(x for p in r.peers for x in (p, f"{p} / Engram")), "limit", "of the limit", "to reach"]
    lines = ["# Results", "", f"{r.date}. {r.machine()}; {r.threads} thread{'s' * (r.threads > 1)}, f32, backend {r.backend}. {', '.join(r.versions)}. "
             f"Written by `engram bench`, in {r.seconds:.0f} s.", "", f"Measured limits: {r.measured()}.", "",
             "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in r.rows:
        w, limit, share = row.workload, row.limit(r.limits), row.share(r.limits)
        cells = [w.what, w.unit, f"**{text_of(row.value(row.seconds))}**" if row.seconds is not None else "failed"]
        for p in row.peers:
            cells += [text_of(row.value(p.seconds)), ratio_of(p)]
        cells += [text_of(row.value(limit) if limit else None), f"{share:.0%}" if share and share >= 0.01 else "-",
                  "; ".join(map(_cell, row.bars(r.limits))) or "-"]
        lines.append("| " + " | ".join(cells) + " |")
    notes = [f"* {row.workload.what}: {row.note}" for row in r.rows if row.note]
    notes += [f"* {row.workload.what}: {p.name}: {p.note}" for row in r.rows for p in row.peers if p.note]
    agreed = [p.difference for row in r.rows for p in row.peers if p.difference is not None and p.seconds is not None]
    if agreed:
        notes.append(f"* Results compared before timing: the largest difference is {max(agreed):.1e} of the largest magnitude in the result.")
    for row in r.rows:
        sides = [("Engram", row.memory), *((p.name, p.memory) for p in row.peers)]
        if "memory" in row.workload.bars and row.memory:
            notes.append(f"* {row.workload.what}: peak resident memory of the process: " + ", ".join(f"{n} {m / 2**30:.2f} GB" for n, m in sides if m) + ".")
    if not r.peers:
        notes.append("* No peer was asked for: `--vs torch,jax`.")
    lines += ["", *([*notes, ""] if notes else []), "## How", "", HOW.format(slice=SLICE), ""]
    return "\n".join(lines)


def as_json(r: Report) -> dict:
    """Everything, as data."""
    def peer(row: Row, p: Peer) -> dict:
        return {"name": p.name, "seconds": p.seconds, "value": row.value(p.seconds), "ratio": p.ratio, "ratios": p.ratios, "peak_memory": p.memory,
                "difference": p.difference if p.difference is None or math.isfinite(p.difference) else None, "note": p.note or None}
    rows = [{"workload": row.workload.name, "what": row.workload.what, "unit": row.unit, "value": row.value(row.seconds), "seconds": row.seconds,
             "spread": row.spread, "turns": row.turns, "peak_memory": row.memory, "limit_seconds": row.limit(r.limits), "read_bytes_per_s": (row.limits or r.limits).read,
             "fma_flops": (row.limits or r.limits).fma, "share_of_limit": row.share(r.limits),
             "flops": sum(p.flops for p in row.parts), "bytes": sum(p.bytes for p in row.parts), "peers": [peer(row, p) for p in row.peers],
             "bars": [{"bar": b.what, "met": b.met, "out_of_reach": b.limit} for b in row.bars(r.limits)], "note": row.note or None} for row in r.rows]
    x = r.limits
    return {"date": r.date, "machine": r.machine(), "backend": r.backend, "threads": r.threads, "versions": r.versions, "seconds": round(r.seconds, 1),
            "limits": {"fma_flops": x.fma, "fma_flops_one_thread": x.fma_one, "read_bytes_per_s": x.read, "triad_bytes_per_s": x.triad, "both_bytes_per_s": x.both,
                       "last_level_cache": x.cache}, "results": rows}
