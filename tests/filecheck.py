"""Golden files: IR with what is done to it and what must come of it, in comments of the same file.

    // RUN: canonicalize,cse            passes, or a stage (definition, tensor, fused, loop), in order
    // CHECK: kernels = 1 in @f         top-level loop.parallel, contract, copy and sort of a loop-stage function
    // CHECK: count tensor.exp = 2      how often an op stands in the module (or `in @f`); also <= and >=
    // CHECK: no tensor.mul             it is gone
    // CHECK: functions = f, f.bwd      the module's functions, in order
    // CHECK: attr arena = 0 in @f      an attribute of a function
    // CHECK: order tensor.exp, tensor.add      first occurrences, in this order
    // CHECK: has loop.parallel() {extents = [3]}      text in the printed result; {{...}} is a regular expression
    //| ...                             the whole result, printed: for small peepholes only
    %0 = tensor.add(%x, %y) : f32[3]  // expected-error: equal types      the verifier (or a pass) refuses the op on this line

`// -----` alone on a line separates independent modules. What runs is also interpreted before and after: results must agree. `=` and
`//|` lines are rewritten by ENGRAM_BLESS=1; the other expectations are edited by hand.
"""
from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from engram.compiler.diagnostics import CompileError, RuntimeError_
from engram.compiler.driver import random_arguments
from engram.compiler.ir import Module
from engram.compiler.ir.core import clone_module
from engram.compiler.ir.parser import parse_module
from engram.compiler.ir.printer import print_module, value_text
from engram.compiler.ir.verifier import VerificationError, verify
from engram.compiler.pass_manager import run
from engram.compiler.pipelines import PIPELINES, passes
from engram.interp.interpreter import Interpreter
from tolerance import agree, tolerances

SEPARATOR = re.compile(r"^// -----\n", re.M)
KERNELS = ("loop.parallel", "loop.contract", "loop.copy", "loop.sort")
NO_SEMANTICS = ("autodiff.gradient", "autodiff.vmap", "learn.update", "learn.local_gradient")
EXPECTED = re.compile(r"// expected-error: (.*?)\s*$")


@dataclass
class Outcome:
    """`text`: the section with its `=` and `//|` lines as they are now; `problems`: expectations that do not hold."""

    text: str
    problems: list[str] = field(default_factory=list)


def check_file(path: Path) -> None:
    """AssertionError with a diff and the command that accepts it; with ENGRAM_BLESS=1 the file is rewritten instead."""
    before = path.read_text(encoding="utf-8")
    outcomes, line = [], 0
    for section in SEPARATOR.split(before):
        outcomes.append(check_section(section, path.name, line))
        line += section.count("\n") + 1
    after = "// -----\n".join(o.text for o in outcomes)
    problems = [p for o in outcomes for p in o.problems]
    if os.environ.get("ENGRAM_BLESS") and after != before:
        path.write_text(after, encoding="utf-8")
        before = after
    if after != before:
        diff = "".join(difflib.unified_diff(before.splitlines(True), after.splitlines(True), f"{path.name}, expected", "now"))
        problems.append(f"{diff}accept with: ENGRAM_BLESS=1 python -m pytest tests/test_golden.py -k {path.stem}")
    assert not problems, "\n" + "\n".join(problems)


def check_section(text: str, name: str = "test.ir", above: int = 0) -> Outcome:
    """`above`: lines of the file before this section."""
    lines = text.splitlines()
    wanted = [(i + 1, m.group(1)) for i, line in enumerate(lines) if (m := EXPECTED.search(line))]
    module = parse_module(text, name)
    if wanted:
        return Outcome(text, errors(module, wanted, text, above))
    verify(module)
    before = parse_module(text)
    todo = pipeline(text)
    after = run(clone_module(before), todo)
    out = Outcome("", [] if any(getattr(p, "redefines", False) for p in todo) else interpreted(before, after))
    printed = print_module(after, locs=False).rstrip("\n").split("\n")
    kept, done = [], False
    for line in lines:
        if line.startswith("//|"):
            if not done:
                kept += ["//| " + p for p in printed]
            done = True
        elif line.startswith("// CHECK:"):
            kept.append("// CHECK: " + expectation(line[9:].strip(), after, out.problems))
        else:
            kept.append(line)
    out.text = "\n".join(kept) + ("\n" if text.endswith("\n") else "")
    return out


def pipeline(text: str) -> list:
    todo: list = []
    for spec in re.findall(r"^// RUN: *(.*?) *$", text, re.M):
        for n in spec.split(","):
            todo += PIPELINES[n]() if n in PIPELINES else [passes()[n]]
    assert todo, "a golden file says what is done to it: // RUN: pass,pass"
    return todo


def errors(module: Module, wanted: list[tuple[int, str]], text: str, above: int) -> list[str]:
    """Each expected error is reported on its line, and nothing else is."""
    got: list[tuple[int, str]] = []
    try:
        verify(module)
        if "// RUN:" in text:
            run(module, pipeline(text))
    except VerificationError as e:
        got = [(op.loc.line if op is not None else module.funcs[f].loc.line if f in module.funcs else 0, message) for f, op, message in e.errors]
    except CompileError as e:
        got = [(d.span.line if d.span else 0, d.message) for d in e.diagnostics]
    problems = []
    for line, message in got:
        match = next((w for w in wanted if w[0] == line and w[1] in message), None)
        if match is None:
            problems.append(f"line {line + above}: unexpected error: {message}")
        else:
            wanted = [w for w in wanted if w is not match]
    return problems + [f"line {line + above}: expected error: {message}" for line, message in wanted]


def interpreted(before: Module, after: Module) -> list[str]:
    """Entries give the same results before and after, where both can be run."""
    out = []
    for entry in before.attrs.get("entries", []):
        if entry not in after.funcs or any(op.name in NO_SEMANTICS for m in (before, after) for op in m.walk()):
            continue
        args = random_arguments(before, entry)
        want, error = _run(before, entry, args)
        got, now = _run(after, entry, args)
        if error or now:
            out += [] if error == now else [f"@{entry} fails with {now}, before the passes with {error}"]
            continue
        try:
            agree(got, want, tolerances(before, entry, args, want), [False] * len(want), f"@{entry}")
        except AssertionError as e:
            out.append(f"the passes change a result: {e}")
    return out


def _run(module: Module, entry: str, args: list) -> tuple[list | None, str | None]:
    """Results, or the message of the run-time error."""
    try:
        return Interpreter(module).call(entry, [np.array(a) for a in args]), None
    except RuntimeError_ as e:
        return None, str(e)


def expectation(text: str, module: Module, problems: list[str]) -> str:
    """Check one; the text as it would be blessed."""
    body, _, where = text.partition(" in @")
    if where and where not in module.funcs:
        problems.append(f"CHECK: {text}: there is no @{where}: the module has {', '.join(module.funcs)}")
        return text
    ops = list(module.funcs[where].walk() if where else module.walk())
    if m := re.fullmatch(r"(?:count (\S+)|kernels) (=|<=|>=) (\d+)", body):
        op, relation, n = m.group(1), m.group(2), int(m.group(3))
        top = [o for f in ([module.funcs[where]] if where else module.funcs.values()) for o in f.body.ops]
        now = sum(o.name == op for o in ops) if op else sum(o.name in KERNELS for o in top)
        if relation == "=":
            return text.replace(f"= {n}", f"= {now}", 1)
        if not (now <= n if relation == "<=" else now >= n):
            problems.append(f"CHECK: {text}: there are {now}")
    elif m := re.fullmatch(r"no (\S+)", body):
        if now := sum(o.name == m.group(1) for o in ops):
            problems.append(f"CHECK: {text}: there are {now}")
    elif body.startswith("functions ="):
        return "functions = " + ", ".join(module.funcs)
    elif m := re.fullmatch(r"attr (\S+) = .*", body):
        attrs = module.funcs[where].attrs
        return f"attr {m.group(1)} = {value_text(attrs[m.group(1)]) if m.group(1) in attrs else 'absent'} in @{where}"
    elif body.startswith("order "):
        names, all_names = [n.strip() for n in body[6:].split(",")], [o.name for o in ops]
        at = [all_names.index(n) if n in all_names else -1 for n in names]
        if -1 in at or at != sorted(at):
            problems.append(f"CHECK: {text}: found at {at}")
    elif body.startswith("has "):
        parts = re.split(r"\{\{(.*?)\}\}", text[4:])
        pattern = "".join(p if i % 2 else re.escape(p) for i, p in enumerate(parts))
        if not re.search(pattern, print_module(module, locs=False)):
            problems.append(f"CHECK: {text}: not in\n{print_module(module, locs=False, elide=16)}")
    else:
        problems.append(f"CHECK: {text}: not understood")
    return text
