"""One row of the table: results compared first, then time taken in turns, then set beside the limit and what has to be reached."""
from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .machine import Limits, Probe, best_of, limits_known, measure
from .models import Part
from .worker import PEERS, Side, SideFailed, installed
from .workloads import Workload, count

SLICE = 0.12               # seconds that a side runs in one turn, where a unit of work is shorter
TURNS = (3, 15)            # at least and at most
ROW_LIMITS = 0.3           # seconds for measuring the machine's limits before a row
FIRST_TURNS = 3            # of first steps, each a process of its own
FIRST_MEMORY = 8           # times the parameters: about what the first step of any side takes


@dataclass
class Peer:
    """What a peer did in a row: its seconds a unit, ours beside them in the same turns, or why there is nothing."""

    name: str
    seconds: float | None = None
    ratios: list[float] = field(default_factory=list)        # its time / ours, turn by turn
    difference: float | None = None                          # of the results, relative to their largest magnitude
    memory: int | None = None                                # bytes of resident memory at most, of its process
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return statistics.median(self.ratios) if self.ratios else None


@dataclass(frozen=True)
class Bar:
    """Something to be reached. `met` is None where it could not be seen; `limit`: what the machine's own limit, measured in the same run, comes
    to, where that already falls short of it."""

    what: str
    met: bool | None
    limit: str | None = None


@dataclass
class Row:
    """A workload's outcome. `seconds` is the median time of a unit; `note` says why a row is empty."""

    workload: Workload
    seconds: float | None = None
    spread: tuple[float, float] | None = None
    peers: list[Peer] = field(default_factory=list)
    turns: int = 0
    memory: int | None = None
    note: str = ""
    parts: list[Part] = field(default_factory=list)          # of the limit
    limits: Limits | None = None                             # the medians of what was measured around our turns
    shares: list[float] = field(default_factory=list)        # of the limit just then, turn by turn

    @property
    def unit(self) -> str:
        return self.workload.unit

    def value(self, seconds: float | None) -> float | None:
        """Seconds a unit of work as the row's number."""
        return None if seconds is None else number(self.workload, seconds)

    def limit(self, limits: Limits) -> float | None:
        """The least seconds that this machine could take for a unit."""
        s = (self.limits or limits).seconds(self.parts)
        return s if s > 0 else None

    def share(self, limits: Limits) -> float | None:
        """Of the limit that is reached."""
        least = self.limit(limits)
        if self.seconds is None or least is None:
            return None
        return statistics.median(self.shares) if self.shares else least / self.seconds

    def bars(self, limits: Limits) -> list[Bar]:
        """What had to be reached, and whether it was."""
        out: list[Bar] = []
        value, found = self.value(self.seconds), {p.name: p for p in self.peers}
        least = (best_of(limits, self.limits) if self.limits else limits).seconds(self.parts) or None       # the most that this run has seen
        for what, bar in self.workload.bars.items():
            best = None                                      # what the machine's limit would give, of what the bar is about
            if what == "limit":
                share = self.share(limits)
                ok = None if share is None else share >= bar
            elif what == "memory":
                theirs = next((p.memory for p in self.peers if p.name == "torch" and p.memory), None)
                ok = None if theirs is None or self.memory is None else self.memory <= bar * theirs
            elif what in ("most", "least"):
                ok = None if value is None else value <= bar if what == "most" else value >= bar
                best = None if least is None else self.value(least)
                beyond = best is not None and (best > bar if what == "most" else best < bar)
                best = f"{best:.4g} {self.unit}" if beyond else None
            else:
                peer = found.get(what)
                ok = None if peer is None or peer.ratio is None else peer.ratio >= bar
                if ok is not None and least is not None and peer.seconds / least < bar:
                    best = f"{peer.seconds / least:.2f}x {what}"
            out.append(Bar(self.workload.bar(what), ok, best if ok is False else None))
        return out


def number(w: Workload, seconds: float) -> float:
    """Seconds a unit of work, in the workload's own unit."""
    if w.unit == "GFLOP/s":
        return sum(p.flops for p in w.parts(0)) / seconds / 1e9
    return {"s": seconds, "ms": seconds * 1e3, "us": seconds * 1e6, "tokens/s": 1 / seconds}[w.unit]


def run(w: Workload, peers: list[str], threads: int, cache: int, backend: str = "cpu", say: Callable[[str], None] = lambda text: None,
        budget: float | None = None) -> Row:
    """Measure one workload. A side that fails leaves a note in the row; the others go on. `backend` is Engram's."""
    row = Row(w)
    try:
        row.parts = w.parts(cache) if limits_known(backend) else []
        for p in peers:
            row.peers.append(Peer(p, note="" if installed(p) or p not in w.peers else f"{p} is not installed"))
        present = [p for p in row.peers if not p.note and p.name in w.peers]
        if w.kind == "first":
            _first(row, present, threads, backend, say)
        else:
            _turns(row, present, threads, backend, say, w.seconds if budget is None else budget)
    except SideFailed as e:
        row.seconds, row.note = None, str(e)
    except Exception as e:                                   # ours: it must not cost the other rows
        row.seconds, row.note = None, f"internal error: {type(e).__name__}: {e}"
    return row


# ---- work that repeats --------------------------------------------------------------------------------------------------------

def _turns(row: Row, peers: list[Peer], threads: int, backend: str, say, budget: float) -> None:
    w, sides, units = row.workload, {}, {}
    try:
        for name in ["engram", *(p.name for p in peers)]:
            sides[name] = Side(name, threads)
        for name, side in list(sides.items()):               # one at a time: who builds must not hold up who answers
            say(f"{w.name}: {name} prepares")
            try:
                units[name] = side.ask(do="prepare", workload=w.name, size=dict(w.size), backend=backend)["unit"]
            except SideFailed as e:
                if name == "engram":
                    raise
                _drop(sides, name, peers, str(e))
        _compare(row, sides, peers)
        plans = {name: _plan(side, units[name]) for name, side in sides.items()}
        say(f"{w.name}: in turns")
        _take_turns(row, sides, plans, peers, threads, budget)
    finally:
        for side in sides.values():
            side.close()


def _drop(sides: dict[str, Side], name: str, peers: list[Peer], why: str) -> None:
    sides.pop(name).close()
    next(p for p in peers if p.name == name).note = why


def _compare(row: Row, sides: dict[str, Side], peers: list[Peer]) -> None:
    """Drops the peers whose results are not ours."""
    with tempfile.TemporaryDirectory(prefix="engram-bench-") as folder:
        found = {}
        for name, side in list(sides.items()):
            path = os.path.join(folder, f"{name}.npz")
            try:
                side.ask(do="results", path=path)
            except SideFailed as e:
                if name == "engram":
                    raise
                _drop(sides, name, peers, str(e))
                continue
            with np.load(path) as z:
                found[name] = {k: z[k] for k in z.files}
        ours = found.pop("engram")
        for name, theirs in found.items():
            peer = next(p for p in peers if p.name == name)
            peer.difference, where = difference(ours, theirs)
            if not peer.difference <= row.workload.tolerance:            # NaN among them
                _drop(sides, name, peers, f"not timed: {where} differ by {peer.difference:.2g} of the largest (tolerance {row.workload.tolerance:g})")


def difference(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> tuple[float, str]:
    """The largest difference between equally named arrays, relative to their largest magnitude, and the array's name."""
    worst = (0.0, next(iter(a), "results"))
    for name, x in a.items():
        y = b.get(name)
        if y is None or y.shape != x.shape:
            return float("inf"), name
        scale = max(float(np.abs(x).max(initial=0)), float(np.abs(y).max(initial=0)), 1e-30)
        d = float(np.abs(x.astype(np.float64) - y).max(initial=0)) / scale
        if np.isnan(d):
            return float("nan"), name
        worst = max(worst, (d, name))
    return worst


def _plan(side: Side, unit: int) -> tuple[int, int]:
    """(units in a turn, units that go before it untimed): enough to fill a slice; long work needs no warming up each time."""
    side.ask(do="time", n=unit)
    seconds = side.ask(do="time", n=unit)["seconds"]
    n = unit * max(1, round(SLICE / max(seconds, 1e-9)))
    if n > unit:                                             # the first call may have been slower than the rest
        seconds = side.ask(do="time", n=n)["seconds"] * unit / n
        n = unit * max(1, round(SLICE / max(seconds, 1e-9)))
    return n, 0 if seconds > SLICE else max(unit, n // 8 // unit * unit)


def _take_turns(row: Row, sides: dict[str, Side], plans: dict[str, tuple[int, int]], peers: list[Peer], threads: int, budget: float) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    probe, moments = Probe(threads) if row.parts else None, []       # a row without parts has no limit
    base = measure(threads, ROW_LIMITS) if row.parts else None
    began = time.perf_counter()
    for turn in range(TURNS[1]):
        if turn >= TURNS[0] and time.perf_counter() - began > budget:
            break
        order = list(sides) if turn % 2 == 0 else list(sides)[::-1]      # so that none is always the first after a pause
        taken = {}
        for name in order:
            n, warm = plans[name]
            around = [probe.now()] if probe and name == "engram" else []
            taken[name] = sides[name].ask(do="time", n=n, warm=warm)["seconds"] / n
            if around:                                       # other users of the machine come and go: its limits at this moment
                fma, read = (statistics.fmean(x) for x in zip(*around, probe.now()))
                moments.append(base.moment(fma, read))
                row.shares.append(moments[-1].seconds(row.parts) / taken[name])
        for name, s in taken.items():
            seconds[name].append(s)
    _conclude(row, seconds, peers)
    if moments:
        row.limits = base.moment(statistics.median(m.fma for m in moments), statistics.median(m.read for m in moments))
    for name, side in sides.items():
        found = next((p for p in peers if p.name == name), row)
        found.memory = side.ask(do="peak_memory")["bytes"]


def _conclude(row: Row, seconds: dict[str, list[float]], peers: list[Peer]) -> None:
    ours = seconds["engram"]
    row.seconds, row.spread, row.turns = statistics.median(ours), (min(ours), max(ours)), len(ours)
    for p in peers:
        if p.name in seconds:
            p.seconds = statistics.median(seconds[p.name])
            p.ratios = [theirs / mine for theirs, mine in zip(seconds[p.name], ours)]


# ---- first steps ----------------------------------------------------------------------------------------------------------------

def _first(row: Row, peers: list[Peer], threads: int, backend: str, say) -> None:
    """Each in a fresh process. Cold: an empty cache folder every time. Warm: a folder that one run has filled (and JAX's own cache)."""
    w = row.workload
    seconds: dict[str, list[float]] = {}
    losses: dict[str, float] = {}
    names = ["engram", *(p.name for p in peers)]
    memory = FIRST_MEMORY * 4 * count(w.model, w.size)
    with tempfile.TemporaryDirectory(prefix="engram-bench-") as folder:
        bytecode = _bytecode(folder, threads, backend)
        for turn in range(FIRST_TURNS + w.warm):
            for name in list(names):
                cache = os.path.join(folder, "warm" if w.warm else f"cold{turn}")
                env = {"ENGRAM_CACHE_DIR": cache, **(bytecode if name == "engram" else {}), **({"ENGRAM_BENCH_JAX_CACHE": cache + "-jax"} if w.warm else {})}
                say(f"{w.name}: {name}")
                side = Side(name, threads, env)
                try:
                    side.ask(do="prepare", workload=w.name, size=dict(w.size), backend=backend)
                    answer = side.ask(do="first", memory=memory)
                except SideFailed as e:
                    if name == "engram":
                        raise
                    names.remove(name)
                    seconds.pop(name, None)
                    next(p for p in peers if p.name == name).note = str(e)
                    continue
                finally:
                    side.close()
                losses.setdefault(name, answer["loss"])
                if not w.warm or turn:                       # the run that fills the cache does not count
                    seconds.setdefault(name, []).append(answer["seconds"])
    for p in peers:
        if p.name in losses:
            p.difference, _ = difference({"loss": np.array(losses["engram"])}, {"loss": np.array(losses[p.name])})
            if not p.difference <= w.tolerance:
                p.note = f"not compared: the loss differs by {p.difference:.2g} (tolerance {w.tolerance:g})"
                seconds.pop(p.name, None)
    _conclude(row, seconds, peers)


def _bytecode(folder: str, threads: int, backend: str) -> dict[str, str]:
    """What our process needs to find Python's bytecode, as after an installation: a checkout may never have been run, or be told
    not to keep any (PYTHONDONTWRITEBYTECODE). The smallest first step makes it."""
    env = {"PYTHONPYCACHEPREFIX": os.path.join(folder, "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}
    side = Side("engram", threads, {**env, "ENGRAM_CACHE_DIR": os.path.join(folder, "thrown-away")})
    try:
        side.ask(do="prepare", workload="mlp_first_cold", backend=backend)
        side.ask(do="first")
    finally:
        side.close()
    return env


__all__ = ["PEERS", "Bar", "Peer", "Row", "difference", "number", "run"]
