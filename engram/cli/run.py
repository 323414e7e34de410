"""`engram run`: train, show progress, write the results; or carry out a run block."""
from __future__ import annotations

import sys
from pathlib import Path

from . import INTERRUPTED, OK
from .errors import UserError, colours
from .options import pass_options, settings

MOST_READ = 10_000                         # samples whose misreadings --plot shows


def run_command(args) -> int:
    from ..compiler import driver
    driver.begin(args.backend)
    try:
        return _run(args)
    except BaseException:
        driver.abandon(args.backend)
        raise


def _run(args) -> int:
    from ..session import first_block, load_program
    program = load_program(args.file)
    block = first_block(program, args.block)
    overrides = settings(args.set)
    from ..frontend import ast as A
    if isinstance(block, A.Run):
        return statements(program, block, overrides, args)
    if args.seed is not None:
        overrides["seed"] = args.seed
    return train(program, block.name, overrides, args)


def statements(program, block, overrides: dict, args) -> int:
    """Carry out a run block."""
    from ..compiler.diagnostics import render
    from ..run_block import RunBlock
    profiler = _profiler(args)
    run = RunBlock(program, block, overrides, args.backend, args.threads, args.seed, args.weights, options=pass_options(args, profiler=profiler),
                   quantize=args.quantize)
    try:
        run.run()
        if profiler is not None:
            _tell(profiler.take(), args, f"run {block.name}", "call", None, Path(args.out) if args.out else None)
    finally:
        if run.warnings:
            print(render(run.warnings, colours(sys.stderr)), file=sys.stderr)
    return OK


def train(program, name: str, overrides: dict, args) -> int:
    """Train one block and report."""
    from .. import report
    from ..compiler.diagnostics import render
    from ..progress import counted, listener_for
    from ..progress import numbers as in_words
    from ..session import train_plan
    from ..train import Trainer, split
    from ..weights import read_weights

    if args.plot:
        from ..plots import available
        if not available():
            raise UserError("--plot draws with matplotlib, which is not installed: pip install matplotlib")
    weights = read_weights(args.weights) if args.weights else None   # before anything slow: a wrong path should show at once
    plan = train_plan(program, name, overrides)
    if plan.warnings:
        print(render(plan.warnings, colours(sys.stderr)), file=sys.stderr)
    s, data = plan.settings, plan.dataset
    seed = int(s.get("seed") or 0)
    learn, held = split(data.n, s.get("holdout"), seed, s.get("limit"), getattr(data, "order", "shuffled"))
    profiler = _profiler(args)
    trainer = Trainer(plan, args.backend, args.threads, pass_options(args, profiler=profiler), args.quantize)
    trainer.initialise(seed)
    if weights is not None:
        trainer.load_weights(weights, source=args.weights)
    if not args.quiet:
        print(_headline(name, plan, args.backend, trainer.threads, len(learn), len(held), seed), flush=True)
    out = Path(args.out) if args.out else Path("out") / name
    report.prepare(out)
    listener = listener_for(quiet=args.quiet)
    if profiler is not None:
        trainer.complete()
        profiler.take()                                      # the initial weights are no part of a step
    result = trainer.run(data.fields, learn, held, order=getattr(data, "order", "shuffled"), listener=listener)

    where = f"on {counted(len(held), 'held-out sample')}" if len(held) else "on the data it learned from (nothing was held out)"
    numbers = "  ".join(in_words(dict(sorted(result.final.items(), key=lambda kv: kv[0] != "loss"))))
    print(f"final  {numbers}  {where}  in {result.seconds:.2f} s" if numbers else f"done in {result.seconds:.2f} s")
    content = report.metrics(name, args.backend, trainer.threads, seed, result,
                             {"learned_from": len(learn), "held_out": len(held)})
    results = content, trainer.values(), {"program": Path(program.file).name, "train": name}
    try:
        files = report.write_results(out, *results)
    except OSError as e:                                     # hours of training may be in it
        return _rescue(e, name, results)
    if profiler is not None:
        steps = _steps(plan, result, len(learn))
        measures = [p for p, _ in trainer._measures.values()]
        learning = [p for p in profiler.programs if not any(p is m for m in measures)]
        files.append(_tell(profiler.take(learning), args, f"train {name}", "step", steps, out))
        measuring = profiler.take()
        print(f"measuring took {measuring.wall * 1e3:.4g} ms in {measuring.calls:,} calls")
    if args.plot:
        from ..first_matrices import first_matrices
        shown, part = (data.fields, held) if len(held) else (data.fields, learn)
        part = part[:MOST_READ]
        readings = trainer.readings(shown, part, seed)
        samples = next(iter(shown.values()))
        files += report.write_pictures(out, trainer.values(("param",)), first_matrices(plan), readings, samples[part], samples.shape[1:])
    if not args.quiet:
        print(f"wrote {', '.join(f.name for f in files)} to {out}{'' if args.out else ' (--out DIR writes elsewhere)'}")
    sys.stdout.flush()
    return INTERRUPTED if result.interrupted else OK


def _rescue(problem: OSError, name: str, results: tuple) -> int:
    """Results that do not fit where they were to go (a full disk) go to the folder for temporary files."""
    import tempfile

    from .. import report
    from .errors import wrong
    try:
        place = Path(tempfile.mkdtemp(prefix=f"engram-{name}-"))
        report.write_results(place, *results)
    except OSError:
        raise problem from None
    return wrong(f"{problem.filename}: {problem.strerror}; the results are in {place} instead")


def _profiler(args):
    """For --profile."""
    if not args.profile:
        return None
    from ..profiler import Profiler
    from .errors import UserError
    if args.backend == "interp":
        raise UserError("--profile: the interpreter has no kernels; --backend cpu or opencl")
    return Profiler(args.backend)


def _tell(profile, args, title: str, unit: str, n: int | None, out: Path | None) -> Path | None:
    """Show a profile, and write all of it where there is a folder for it."""
    import json

    from .. import profiler, report
    limits = profiler.limits_for(args.backend, args.threads)
    profiler.show(profile, limits, title, unit, n)
    if out is None:
        return None
    report.prepare(out)
    file = out / "profile.json"
    report.atomic_write(file, (json.dumps(profiler.as_json(profile, limits, f"{unit}s", n), indent=1) + "\n").encode())
    return file


def _steps(plan, result, samples: int) -> int:
    """Training steps in all finished epochs."""
    from ..train import _batch_of
    epochs = {p.name: sum(row.get("phase", p.name) == p.name for row in result.epochs) for p in plan.phases}
    return sum(epochs[p.name] * max(1, samples // _batch_of(p, len(plan.slots))) for p in plan.phases)


def _headline(name: str, plan, backend: str, threads: int | None, learn: int, held: int, seed: int) -> str:
    from ..progress import counted
    count = sum(_numel(s.type.shape) for s in plan.slots if s.kind == "param")
    on = f"{backend}, {counted(threads, 'thread')}" if backend == "cpu" else backend
    stand_in = plan.dataset.info.get("test") if getattr(plan.dataset, "info", None) else None
    note = f"; {stand_in}" if stand_in and "stand in" in stand_in else ""
    return f"{name}: {counted(count, 'parameter')}, {counted(learn, 'sample')} to learn from, {held:,} held out; seed {seed}; {on}{note}"


def _numel(shape) -> int:
    n = 1
    for d in shape:
        n *= int(d)
    return n
