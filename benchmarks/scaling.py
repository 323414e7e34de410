"""How cost grows: with the size of a product, the length of a sequence, the batch, the number of layers. Writes SCALING.md and a picture.

Each point is a workload at another size (workloads.py), compared and timed as in compare.py. `layers` also has the first step of a fresh
process with nothing cached: equal layers share code, so compiling should hardly grow with their number.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import compare, tables
from .machine import Limits
from .workloads import WORKLOADS

POINT_BUDGET = 1.5             # seconds of turns at one point, beyond the least number of them


@dataclass(frozen=True)
class Curve:
    """A workload over one of its sizes. `per`: the table has the time divided by that many (tokens, samples), too."""

    name: str
    what: str
    workload: str
    axis: str
    points: tuple[int, ...]
    size: Callable[[int], dict[str, int]]
    per: Callable[[int], int] | None = None
    per_what: str = ""


CURVES = {c.name: c for c in (
    Curve("matmul", "f32 n x n x n", "matmul_1024", "n", (64, 100, 128, 192, 255, 256, 384, 500, 512, 777, 1000, 1024, 1536, 2048, 3001, 4096),
          lambda n: {"m": n, "k": n, "n": n}),
    Curve("attention", "causal attention alone, forward, 12 heads of 64, T tokens", "attention", "T", (64, 128, 256, 512, 1024, 2048),
          lambda t: {"time": t}, lambda t: t, "token"),
    Curve("time", "char-GPT, 4 layers, 128 wide, one sequence of T tokens, a training step", "char_gpt", "T", (64, 128, 256, 512, 1024, 2048),
          lambda t: {"time": t, "context": t, "batch": 1}, lambda t: t, "token"),
    Curve("batch", "MLP 784-512-256-10, Adam, a training step", "mlp", "batch", (1, 2, 4, 8, 16, 32, 64, 128, 256), lambda b: {"batch": b},
          lambda b: b, "sample"),
    Curve("layers", "GPT blocks, 128 wide, B = 12, T = 64, AdamW, a training step", "char_gpt", "layers", (1, 2, 4, 8, 12, 24), lambda n: {"layers": n},
          lambda n: n, "layer"),
)}
FIRST = {"layers": "char_gpt_first"}           # curves that have a first step beside each point


@dataclass
class Point:
    """A size, its row, and the row of its first step where there is one."""

    at: int
    row: compare.Row
    first: compare.Row | None = None


@dataclass
class Result:
    """A curve that was measured."""

    curve: Curve
    points: list[Point] = field(default_factory=list)


def run(names: list[str], peers: list[str], threads: int, limits: Limits, backend: str, say: Callable[[str], None]) -> list[Result]:
    """Measure curves, point by point; a point that fails says so in its line."""
    out = []
    for curve in (CURVES[n] for n in names or CURVES):
        out.append(Result(curve))
        say(f"{curve.name}: {curve.what}")
        for at in curve.points:
            size = curve.size(at)
            row = compare.run(WORKLOADS[curve.workload].sized(**size), peers, threads, limits.cache, backend, budget=POINT_BUDGET)
            first = None
            if curve.name in FIRST:
                first = compare.run(WORKLOADS[FIRST[curve.name]].sized(**size), peers, threads, limits.cache, backend)
            out[-1].points.append(Point(at, row, first))
            say("  " + "  ".join(_cells(curve, out[-1].points[-1], peers, limits)))
    return out


def heads(curve: Curve, peers: list[str]) -> list[str]:
    """The columns of a curve's table."""
    unit = WORKLOADS[curve.workload].unit
    head = [curve.axis, f"Engram, {unit}"]
    if curve.per:
        head.append(f"us a {curve.per_what}")
    head.append("of the limit")
    for p in peers:
        head += [f"{p}, {unit}", f"{p} / Engram"]
    if curve.name in FIRST:
        head += ["first step, s", *(f"{p}'s, s" for p in peers)]
    if curve.name in ("time", "layers"):
        head += ["peak memory, MB", *(f"{p}'s, MB" for p in peers)]
    return head


def _cells(curve: Curve, p: Point, peers: list[str], limits: Limits) -> list[str]:
    row = p.row
    if row.seconds is None:
        return [str(p.at), f"failed: {row.note}", *[""] * (len(heads(curve, peers)) - 2)]
    share = row.share(limits)
    out = [str(p.at), tables.text_of(row.value(row.seconds))]
    if curve.per:
        out.append(tables.text_of(row.seconds / curve.per(p.at) * 1e6))
    out.append(f"{share:.0%}" if share else "-")
    for peer in row.peers:
        out += [tables.text_of(row.value(peer.seconds)), tables.ratio_of(peer)]
    if curve.name in FIRST:
        first = p.first
        out += [tables.text_of(first.seconds if first else None), *(tables.text_of(x.seconds) for x in (first.peers if first else []))]
    if curve.name in ("time", "layers"):
        out += [f"{m / 2**20:,.0f}" if m else "-" for m in (row.memory, *(x.memory for x in row.peers))]
    return out


def growth(points: list[tuple[float, float]]) -> float:
    """The exponent e of y ~ x^e by least squares over the upper half of the points; NaN with fewer than two."""
    points = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y and y > 0][-max(2, len(points) // 2):]
    if len(points) < 2:
        return float("nan")
    mx, my = (sum(c) / len(points) for c in zip(*points))
    return sum((x - mx) * (y - my) for x, y in points) / sum((x - mx) ** 2 for x, _ in points)


def markdown(results: list[Result], report: tables.Report) -> str:
    """SCALING.md."""
    lines = ["# How cost grows", "", f"{report.date}. {report.machine()}; {report.threads} threads, f32. {', '.join(report.versions)}. "
             "Written by `engram bench --scaling`.", "",
             "Each point is a workload of [RESULTS.md](RESULTS.md) at another size, measured in the same way: results are compared with the peer's first, then both take turns, and",
             "the table has medians; brackets hold the least and the largest ratio of a turn. First steps run in fresh processes with nothing cached, compilation included.", "",
             f"Measured limits: {report.limits.text()}.", ""]
    for r in results:
        head = heads(r.curve, report.peers)
        lines += [f"## {r.curve.name}: {r.curve.what}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        lines += ["| " + " | ".join(_cells(r.curve, p, report.peers, report.limits)) + " |" for p in r.points]
        e = growth([(p.at, p.row.seconds or 0.0) for p in r.points])
        if not math.isnan(e):
            lines += ["", f"Over the upper half of the points time grows as {r.curve.axis}^{e:.2f}."]
        firsts = [p.first.seconds for p in r.points if p.first and p.first.seconds]
        if len(firsts) > 1:
            lines += [f"The first step takes {firsts[-1] / firsts[0]:.2f}x as long with {r.points[-1].at} layers as with {r.points[0].at}."]
            compiling = [p.first.seconds - p.row.seconds for p in r.points if p.first and p.first.seconds and p.row.seconds]
            if len(compiling) == len(firsts) and min(compiling) > 0:
                lines[-1] += f" Less a later step's time, {compiling[-1] / compiling[0]:.2f}x: {compiling[0]:.2f} and {compiling[-1]:.2f} s."
        notes = dict.fromkeys(x.note for p in r.points for row in (p.row, p.first) if row for x in row.peers if x.note)
        lines += ["", *(f"* {n}" for n in notes), ""] if notes else [""]
    return "\n".join(lines)


def picture(results: list[Result], path: Path) -> bool:
    """All curves, logarithmic both ways; False where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(4.2 * len(results), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, r in zip(figure.subplots(1, len(results), squeeze=False)[0], results):
        sides = {"Engram": [(p.at, p.row.seconds) for p in r.points]}
        for p in r.points:
            for peer in p.row.peers:
                sides.setdefault(peer.name, []).append((p.at, peer.seconds))
        firsts = [("Engram", lambda p: p.first.seconds), *((peer.name, lambda p, k=k: p.first.peers[k].seconds) for k, peer in enumerate(r.points[0].row.peers))]
        if r.curve.name in FIRST:
            sides |= {f"{name}, first step": [(p.at, of(p)) for p in r.points if p.first] for name, of in firsts}
        for name, points in sides.items():
            points = [(x, y * 1e3) for x, y in points if y]
            axes.plot([x for x, _ in points], [y for _, y in points], "--" if name.endswith("first step") else "-", marker=".", label=name)
        axes.set(xscale="log", yscale="log", xlabel=r.curve.axis, ylabel="ms", title=r.curve.name)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
    return True
