"""Runs passes over a module: verification, printing, timing, checking against an interpreter, reproducers.

It knows no pass and no pipeline (those are in pipelines.py); a pass is anything with `name`, `apply(module)` and, optionally,
`exact` (keeps every result bit for bit), `redefines` (changes what is computed, by request) and `stage_after` (the stage the module is in when it has run).
"""
from __future__ import annotations

import difflib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

from .diagnostics import CompileError
from .ir.collector import paused
from .ir.core import Module, clone_module
from .ir.printer import print_module
from .ir.verifier import verify

EACH = False                # verify after each pass, as the tests do; otherwise where the stage changes, and again after each if anything fails


class Pass(Protocol):
    """One transformation. The IR is valid before and after; `name` is kebab-case, its file the same in snake_case."""

    name: str

    def apply(self, module: Module) -> Module: ...


class PassFailure(Exception):
    """A pass broke: our bug. `reproducer` is the path of a file with the IR before it and the command that shows it again."""

    def __init__(self, pass_name: str, reproducer: str | None, cause: BaseException):
        self.pass_name, self.reproducer, self.cause = pass_name, reproducer, cause
        super().__init__(f"internal error in pass {pass_name}: {type(cause).__name__}: {cause}"
                         + (f" (reproducer: {reproducer})" if reproducer else ""))


@dataclass
class Options:
    """What to do besides running. `check(before, after, pass)` raises when the two modules compute different things."""

    verify: bool = False                          # after each pass
    print_after: frozenset[str] = frozenset()     # pass names, or {"all"}
    print_diff: bool = False
    time_passes: bool = False
    check: Callable[[Module, Module, Pass], None] | None = None
    stop_after: str | None = None
    profiler: Any = None                          # `add(program)` of every program built: they then count their kernels' times
    out: TextIO = field(default_factory=lambda: sys.stderr)


@dataclass
class Timing:
    """Seconds per pass, in order of running."""

    rows: list[tuple[str, float]] = field(default_factory=list)

    def text(self) -> str:
        total = sum(s for _, s in self.rows) or 1e-12
        lines = [f"{s * 1e3:9.2f} ms {100 * s / total:5.1f} %  {n}" for n, s in self.rows]
        return "\n".join(["===== time per pass =====", *lines, f"{total * 1e3:9.2f} ms total"])


def run(module: Module, passes: Iterable[Pass], options: Options | None = None) -> Module:
    """Apply the passes in order. CompileError (the user's) goes through; anything else becomes a PassFailure."""
    with paused():
        return _run(module, passes, options or Options())


def _run(module: Module, passes: Iterable[Pass], o: Options) -> Module:
    passes, given = list(passes), clone_module(module)
    if not (EACH or o.verify or o.print_after or o.print_diff or o.check):
        try:
            return _apply(module, passes, o, None)
        except Exception:
            module = clone_module(given)                     # once more, to see which pass it was
    return _apply(module, passes, o, given)


def _apply(module: Module, passes: list[Pass], o: Options, given: Module | None) -> Module:
    """All passes. With `given`, the module as it was, each is verified, watched, and blamed for what it does; otherwise verification
    comes where the stage changes and at the end."""
    timing, done = Timing(), []
    for k, p in enumerate(passes):
        last = k + 1 == len(passes) or o.stop_after == p.name
        before = clone_module(module) if o.print_after or o.print_diff or o.check else None
        start = time.perf_counter()
        try:
            module = p.apply(module)
            if getattr(p, "stage_after", None):
                module.attrs["stage"] = p.stage_after
            timing.rows.append((p.name, time.perf_counter() - start))
            if given is not None or last or getattr(p, "stage_after", None):
                verify(module, p.name)
        except CompileError:
            raise
        except Exception as e:
            if given is None:
                raise
            # a failing pass leaves a half-changed module: its reproducer shows what it was given
            raise PassFailure(p.name, _reproducer(p.name, print_module(before or _again(given, done)), e), e) from e
        done.append(p)
        if o.print_after & {p.name, "all"}:
            if o.print_diff:
                print(_diff(before, module, p.name), file=o.out)
            else:
                print(f"// ----- IR after {p.name} -----\n{print_module(module, elide=16)}", file=o.out)
        elif o.print_diff and not o.print_after:
            print(_diff(before, module, p.name), file=o.out)
        if o.check:
            try:
                o.check(before, module, p)
            except AssertionError as e:
                raise PassFailure(p.name, _reproducer(p.name, print_module(before), e, " --check-passes"), e) from e
        if last:
            break
    if o.time_passes:
        print(timing.text(), file=o.out)
    return module


def _again(module: Module, passes: list[Pass]) -> Module:
    """The module after passes that have run on it before."""
    for p in passes:
        module = p.apply(module)
        if getattr(p, "stage_after", None):
            module.attrs["stage"] = p.stage_after
    return module


def _diff(before: Module, after: Module, name: str) -> str:
    a, b = (print_module(m, locs=False, elide=16).splitlines(keepends=True) for m in (before, after))
    return "".join(difflib.unified_diff(a, b, f"before {name}", f"after {name}")) or f"// {name}: no change\n"


def _reproducer(pass_name: str, text: str, error: BaseException, flags: str = "") -> str | None:
    """Write the IR before the failing pass; its head says how to run it again."""
    try:
        fd, path = tempfile.mkstemp(prefix=f"engram-{pass_name}-", suffix=".ir")
        with os.fdopen(fd, "w") as f:
            first = (str(error).splitlines() or [""])[0]
            f.write(f"// engram opt {path} -p {pass_name}{flags}\n// {type(error).__name__}: {first}\n{text}")
        return path
    except OSError:
        return None
