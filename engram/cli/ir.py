"""`engram ir` prints a program at any stage; `engram opt` runs passes over a file of IR."""
from __future__ import annotations

import sys

from . import OK
from .errors import UserError
from .options import dims, known_passes, pass_options, settings
from .programs import Target, read_ir, targets

STAGES = ("ast", "nn", "plasticity", "tensor", "fused", "loop", "llvm", "opencl")


def ir_command(args) -> int:
    """Print one stage of one function or train block."""
    from ..compiler import driver
    from ..compiler.ir.printer import print_module
    from ..session import load_program
    stage = args.stage
    after = args.after
    if stage is not None and stage not in STAGES:
        after, stage = stage, None                           # a pass's name is taken for "after it"
    explain = stage == "plasticity"
    if explain:
        after, stage = after or "plasticity", None
    if after is not None:
        if stage not in (None, "tensor", "fused", "loop", "nn"):
            raise UserError(f"--after {after} and --stage {stage} exclude each other")
        _known(after, args.stage)
    program = load_program(args.file)
    if stage == "ast":
        from ..frontend.ast import dump
        print(dump(program.main.tree, spans=not args.no_locs))
        return OK
    target = targets(program, args.fn, dims(args.dims), 8, settings(args.set))[0]
    if target.plan is not None and target.plan.phases[0].settings.get("pipeline"):
        target = epoch_of(target)
    if args.quantize and target.plan is not None:
        from ..cheap import mark_plan
        mark_plan(target.module, target.plan, args.quantize)
    options = pass_options(args)
    if args.diff:
        options.print_diff, options.out = True, sys.stdout
        options.print_after = frozenset([after]) if after else frozenset()
    if after is not None:
        options.stop_after = after
        module = driver.lower(target.module, "loop", options)
    elif stage in ("llvm", "opencl"):
        print(driver.code(target.module, "cpu" if stage == "llvm" else "opencl", options))
        return OK
    else:
        module = driver.lower(target.module, stage or "tensor", options)
    if explain:
        print(updates_text(module.attrs.get("locality", [])))
    if not args.diff:
        sys.stdout.write(print_module(module, locs=not args.no_locs, elide=None if args.full else 16))
    return OK


def epoch_of(target: Target) -> Target:
    """A train block's first epoch, in which the stages of `pipeline` are, in place of its step."""
    from ..epochs import stages_of
    from ..frontend import epoch_module
    plan, phase = target.plan, target.plan.phases[0]
    steps = phase.settings["steps_per_epoch"] * phase.settings["accumulate"]
    module, names = epoch_module(phase.module, phase.entry, len(plan.slots), plan.dataset.n, [(steps, steps)], stages_of(phase, "cpu", None))
    return Target(target.name, module, names[0], plan)


def updates_text(report: list[dict]) -> str:
    """What each learning rule updates and reads, as comments above the IR."""
    if not report:
        return "// no learning rules: nothing learns but by minimize"
    groups: dict[tuple, list[dict]] = {}
    for row in report:
        groups.setdefault((row["layer"], row["function"]), []).append(row)
    out = []
    for (layer, function), rows in groups.items():
        first = rows[0]
        out += [f"// {first['rule']} teaches {layer or 'the model'}: {first['verdict']}",
                f"//   updates    {', '.join(r['parameter'] for r in rows)}   by @{function}",
                f"//   reads      {', '.join(first['reads']) or '-'}",
                f"//   broadcast  {'; '.join(first['broadcast']) or '-'}"]
    return "\n".join(out)


def _known(name: str, stage: str | None) -> None:
    from ..compiler.diagnostics import did_you_mean
    from ..compiler.pipelines import passes
    known = passes()
    if name in known:
        return
    if stage == name:
        near = did_you_mean(name, [*STAGES, *known])
        raise UserError(f"there is no stage or pass {name!r}{f': did you mean {near!r}?' if near else ''}\n  stages: {', '.join(STAGES)}\n"
                        f"  passes: {', '.join(known)}")
    known_passes([name])


def opt_command(args) -> int:
    """Read IR, run passes, print IR."""
    from ..compiler.ir.printer import print_module
    from ..compiler.pass_manager import run
    from ..compiler.pipelines import PIPELINES, passes
    known = passes()
    if args.passes == "list":
        print("\n".join([*known, *(f"{name}: {', '.join(p.name for p in make())}" for name, make in PIPELINES.items())]))
        return OK
    if args.file is None:
        raise UserError("which file? `engram opt FILE.ir -p cse`; `-p list` needs none")
    names = [n for n in args.passes.replace(" ", "").split(",") if n]
    known_passes([n for n in names if n not in PIPELINES])
    module = read_ir(args.file)
    todo: list = []
    for n in names:
        todo += PIPELINES[n]() if n in PIPELINES else [known[n]]
    if module.attrs.get("stage") == "loop":
        for p in todo:
            if p.name in ("grad", "fuse", "lower-to-loops"):
                raise UserError(f"{args.file} is at stage loop already, behind the pass {p.name}: `-p hoist-layouts,plan-buffers` is what is left to run")
    sys.stdout.write(print_module(run(module, todo, pass_options(args))))
    return OK
