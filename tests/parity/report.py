"""docs/PARITY.md: what became of PyTorch's samples, operation by operation."""
from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from .runner import GRADIENT, SHADOW, VALUE
from .table import SKIPPED


def write(path: str, results: list, backend: str) -> None:
    """The table of numbers, then what the language cannot say and what fails, with reasons."""
    Path(path).write_text(text(results, backend), encoding="utf-8")


def text(results: list, backend: str) -> str:
    shares = [r.passed / r.expressible for _, r in results if r.expressible]
    total = {k: sum(getattr(r, k) for _, r in results) for k in ("samples", "expressible", "passed")}
    lines = [
        "# Parity with PyTorch", "",
        f"PyTorch {torch.__version__.split('+')[0]}'s own sample inputs (`torch.testing._internal.common_methods_invocations.op_db`; f32, and i64 or bool where an",
        f"operation takes them), written as `.nn` programs and run on the backend `{backend}`. Values and gradients (vector-Jacobian products with the same",
        "random cotangents) are compared with PyTorch's. Regenerate with `cd tests && python -m parity --report ../docs/PARITY.md` (needs torch).", "",
        f"Tolerances: values rtol {VALUE['rtol']:g} and atol {VALUE['atol']:g}, gradients rtol {GRADIENT['rtol']:g} and atol {GRADIENT['atol']:g} of PyTorch's f32 result, or at most "
        f"{SHADOW:g} times as far", "from PyTorch's f64 result as its f32 result is anywhere in that tensor; integers and bools are equal; shapes and dtypes too.", "",
        f"**{len(shares)} operations, {total['samples']} samples, {total['expressible']} expressible, {total['passed']} passed; every operation weighing the same: "
        f"{100 * sum(shares) / max(1, len(shares)):.2f} %.**", "",
    ]
    for family in dict.fromkeys(e.family for e, _ in results):
        lines += [f"## {family}", "", "| operation | samples | expressible | passed |", "|---|---:|---:|---:|"]
        for e, r in results:
            if e.family == family:
                lines.append(f"| {r.name} | {r.samples} | {r.expressible} | {r.passed} |")
        lines.append("")
    lines += ["## Samples that the language cannot express", ""]
    for _, r in results:
        for why, n in Counter(w for _, w in r.inexpressible).items():
            lines.append(f"- {r.name} ({n}): {why}")
    lines += ["", "## Operations that are not compared", ""]
    lines += [f"- {name}: {why}" for name, why in SKIPPED.items()]
    failures = [(r.name, *f) for _, r in results for f in r.failures]
    lines += ["", "## Failures", ""]
    lines += [f"- {name} sample {i}: `{source[:120]}`: {' '.join(why.split())[:200]}" for name, i, source, why in failures] or ["None."]
    return "\n".join(lines) + "\n"
