"""`engram bench`: times the workloads of benchmarks/ on this machine, beside PyTorch and JAX where they are wanted and installed."""
from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from . import OK, WRONG
from .errors import UserError

PROFILED = 1.0                 # seconds of work that --profile looks at

def bench_command(args) -> int:
    """Measure, print a line per workload, write RESULTS.md or JSON; or look at the kernels."""
    from ..benchmarks import workloads
    peers = _peers(args.vs)
    if args.scaling:
        return _scaling(args, peers)
    try:
        chosen = workloads.choose(args.workload)
    except KeyError as e:
        known = [*workloads.WORKLOADS, *workloads.GROUPS]
        from ..compiler.diagnostics import did_you_mean
        near = did_you_mean(e.args[0], known)
        raise UserError(f"unknown workload {e.args[0]!r}: " + (f"did you mean {near!r}?" if near else f"known: {', '.join(known)}")) from None
    if args.list:
        _list(chosen)
        return OK
    if args.backend == "interp":
        raise UserError("the interpreter defines what programs mean; it is nothing to time")
    return _profile(chosen, args) if args.profile else _measure(chosen, peers, args)


def _peers(text: str) -> list[str]:
    from ..benchmarks.worker import PEERS
    peers = list(dict.fromkeys(p.strip() for p in text.split(",") if p.strip()))
    for p in peers:
        if p not in PEERS:
            raise UserError(f"--vs {p}: unknown peer; known: {', '.join(PEERS)}")
    return peers


def _list(chosen) -> None:
    from ..benchmarks.workloads import GROUPS
    for w in chosen:
        bars = "; ".join(w.bar(what) for what in w.bars)
        print(f"{w.name:18s} {w.what}" + (f"  [{bars}]" if bars else ""))
    print("groups: " + "; ".join(f"{k} = {' '.join(v)}" for k, v in GROUPS.items()))


def _measure(chosen, peers: list[str], args) -> int:
    from ..benchmarks import compare, machine, tables
    from ..codegen.cpu.runtime import default_threads
    threads = args.threads or default_threads()
    out = _destination(args, peers, len(args.workload) or None, "RESULTS.md")
    shown = sys.stderr if args.json else sys.stdout
    live = shown.isatty()
    began = time.perf_counter()
    limits = machine.measure(threads)
    report = tables.Report(threads, args.backend, limits, tables.versions(peers), peers)
    print(f"{report.machine()}; {threads} thread{'s' * (threads > 1)}, backend {args.backend}; {', '.join(report.versions)}\n{report.measured()}",
          file=shown, flush=True)

    def say(text: str) -> None:
        if live:
            print(f"\r\x1b[K{text}", end="", file=shown, flush=True)

    for w in chosen:
        row = compare.run(w, peers, threads, limits.cache, args.backend, say)
        say("")
        report.rows.append(row)
        report.limits = machine.best_of(report.limits, row.limits or limits)
        print(tables.line(row, limits), file=shown, flush=True)
    report.limits = machine.best_of(limits, machine.measure(threads))
    report.seconds = time.perf_counter() - began
    if args.json:
        print(json.dumps(tables.as_json(report), indent=1))
    if out is not None:
        from ..checkpoint import atomic_write
        atomic_write(out, tables.markdown(report).encode())
        print(f"wrote {out}", file=shown)
    return OK if all(row.seconds is not None for row in report.rows) else WRONG


def _profile(chosen, args) -> int:
    """Engram alone, kernel by kernel: as many units as fill a second."""
    from .. import profiler
    from ..benchmarks import ours
    from ..compiler.pass_manager import Options
    limits = profiler.limits_for(args.backend, args.threads)
    found = {}
    for w in chosen:
        if w.kind == "first":
            continue
        p = profiler.Profiler(args.backend)
        subject = ours.prepare(w, args.threads, args.backend, Options(profiler=p))
        unit = n = getattr(subject, "unit", 1)
        subject.run(unit)
        p.take()                                             # what runs once, and what is slow the first time
        start = time.perf_counter()
        subject.run(unit)
        while time.perf_counter() - start < PROFILED and n < 10_000 * unit:
            subject.run(unit)
            n += unit
        profile, name = p.take(), {"train": "step", "loop": "step", "generate": "token"}.get(w.kind, "call")
        found[w.name] = profiler.as_json(profile, limits, f"{name}s", n)
        profiler.show(profile, limits, f"{w.name} ({w.what})", name, n, file=sys.stderr if args.json else sys.stdout)
    text = json.dumps(found, indent=1)
    if args.json:
        print(text)
    if args.out:
        from ..checkpoint import atomic_write
        atomic_write(Path(args.out), (text + "\n").encode())
    return OK


def _scaling(args, peers: list[str]) -> int:
    """How cost grows, written to SCALING.md and scaling.png beside it."""
    from ..benchmarks import machine, scaling, tables
    from ..codegen.cpu.runtime import default_threads
    for n in args.workload:
        if n not in scaling.CURVES:
            raise UserError(f"unknown curve {n!r}; known: {', '.join(scaling.CURVES)}")
    if args.list:
        print("\n".join(f"{c.name:10s} {c.what}: {c.axis} = {', '.join(map(str, c.points))}" for c in scaling.CURVES.values()))
        return OK
    out = _destination(args, peers, len(args.workload) or None, "SCALING.md")
    threads, began = args.threads or default_threads(), time.perf_counter()
    limits = machine.measure(threads)
    report = tables.Report(threads, args.backend, limits, tables.versions(peers), peers)
    results = scaling.run(args.workload, peers, threads, limits, args.backend, lambda text: print(text, flush=True))
    report.limits, report.seconds = machine.best_of(limits, machine.measure(threads)), time.perf_counter() - began
    if out is not None:
        from ..checkpoint import atomic_write
        text = scaling.markdown(results, report)
        if scaling.picture(results, out.with_suffix(".png")):
            text = text.replace("\n## ", f"\n![curves]({out.with_suffix('.png').name})\n\n## ", 1)
        atomic_write(out, text.encode())
        print(f"wrote {out}")
    return OK if all(p.row.seconds is not None for r in results for p in r.points) else WRONG


def _destination(args, peers: list[str], chosen: int | None, name: str) -> Path | None:
    """Where a table goes: --out; in a checkout, beside the workloads when all of them (`chosen` is None) were run against a peer."""
    from ..benchmarks import workloads
    if args.out:
        out = Path(args.out)
        if out.is_dir():
            out = out / name
        if not out.parent.is_dir():
            raise UserError(f"--out {args.out}: there is no folder {out.parent}")
        return out
    folder = Path(workloads.__file__).parent
    in_checkout = (folder.parent / "pyproject.toml").is_file()
    return folder / name if in_checkout and peers and chosen is None else None
