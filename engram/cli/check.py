"""`engram check` and `engram fmt`."""
from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from . import OK, WRONG
from .errors import colours, wrong
from .options import settings


def check_command(args) -> int:
    """All diagnostics of all files; 1 if one is an error."""
    from ..compiler.diagnostics import render, to_json
    overrides, found, tables = settings(args.set), [], []
    for file in args.files:
        diagnostics, table = check_file(file, overrides)
        found += diagnostics
        tables += [{"file": file, **row} for row in table]
    failed = any(d.severity == "error" for d in found)
    if args.json:
        print(json.dumps(to_json(found), indent=1))
    elif found:
        print(render(found, colours(sys.stderr)), file=sys.stderr)
    if args.locality and not args.json:
        print(locality_table(tables) if tables else "no learning rules")
    elif not failed and not args.json:
        print(f"{len(args.files)} file{'s' if len(args.files) > 1 else ''} checked: no errors")
    return WRONG if failed else OK


def check_file(file: str, overrides: dict) -> tuple[list, list[dict]]:
    """The diagnostics of one program and its locality table. Train blocks are elaborated with their data and lowered as far as the
    proof of locality; a data set whose files are not here is a warning, since the program may be right: one whose shapes are known
    is checked with these."""
    from ..compiler import driver
    from ..compiler.diagnostics import CompileError
    from ..frontend import ast as A
    from ..frontend import check
    from ..session import load_program, train_plan
    found: list = []
    rows: list[dict] = []
    try:
        program = load_program(file)
        found += _diagnostics(check(program))
    except CompileError as e:
        return [*found, *e.diagnostics], rows
    for name, block in program.blocks.items():
        absent: list = []
        if isinstance(block, A.Run):
            found += _check_run(program, name, overrides, absent)
            continue
        try:
            plan = train_plan(program, name, overrides, absent=absent)
            rows += locality_rows(plan, name)
            modules = {id(p.module): p.module for p in plan.phases}.values()
            proved = [driver.lower(m, "definition").attrs.get("locality", []) for m in modules]
            _take_proof(rows, [r for report in proved for r in report])
            found += [replace(d, severity="warning", span=block.name_span, message=f"{d.message}: `{name}` was checked with the shapes of {e.shapes.name}")
                      for e in absent for d in e.diagnostics if e.shapes is not None]
        except CompileError as e:
            if any(a.shapes is None for a in absent):
                found += [replace(d, severity="warning", message=f"{d.message}: train block `{name}` was not checked") for d in e.diagnostics]
                continue
            found += e.diagnostics
            for r in rows:
                if r["train"] == name:
                    r["verdict"] = "refused"
    return found, rows


def _check_run(program, name: str, overrides: dict, absent: list) -> list:
    """A run block's diagnostics; files that are not here are warnings."""
    from ..compiler.diagnostics import Diagnostic
    from ..run_block import check
    found = check(program, name, overrides, absent)
    missing = {e.message for e in absent}
    said = {d.message for d in found}
    out = [replace(d, severity="warning", message=f"{d.message}: run block `{name}` was checked up to here") if d.message in missing else d
           for d in found]
    place = program.blocks[name].name_span
    return out + [Diagnostic("warning", d.span or place, d.message, hint=d.hint) for e in absent for d in e.diagnostics if d.message not in said]


def _diagnostics(result) -> list:
    """check answers diagnostics, a collector of them, or nothing."""
    return list(getattr(result, "items", result) or [])


def locality_rows(plan, train: str) -> list[dict]:
    """One row per parameter that a rule writes: what the update reads, and what was broadcast to it."""
    rows = []
    seen = set()
    for module in {id(p.module): p.module for p in plan.phases}.values():
        for op in module.walk():
            if op.name != "learn.update":
                continue
            roles, layer = op.attrs["roles"], op.attrs["layer"]
            reads = [tuple(r.partition(":")[::2]) for r in roles]
            for w in op.attrs["writes"]:
                kind, path = reads[w]
                if kind != "param":                          # the rule's own state has the same update: no news
                    continue
                row = {"train": train, "layer": layer, "parameter": path if path.startswith(layer) else f"{layer}.{path}", "rule": op.attrs["rule_name"],
                       "reads": [n.removeprefix(layer + ".") for k, n in reads if k in ("signal", "param", "own")],
                       "broadcast": [n for k, n in reads if k == "given"],
                       "verdict": "declared non-local" if op.attrs.get("nonlocal") else "local"}
                if row["parameter"] not in seen:
                    seen.add(row["parameter"])
                    rows.append(row)
    return rows


def _take_proof(rows: list[dict], proof: list[dict]) -> None:
    """What the plasticity pass found out says more than the update's declaration: where broadcast values come from."""
    for p in proof:                                          # one per parameter, all of an update alike
        for row in rows:
            if row["layer"] == p["layer"] and row["rule"] == p["rule"]:
                row |= {k: p[k] for k in ("reads", "broadcast", "verdict")}


def _short(row: dict) -> str:
    """What is read; a rule's own state as one item where there is much of it."""
    own = [n for n in row["reads"] if n.startswith(f"{row['rule']}.")]
    if len(own) <= 2:
        return " ".join(row["reads"])
    return " ".join([*(n for n in row["reads"] if n not in own), f"{row['rule']}.* ({len(own)})"])


def locality_table(rows: list[dict]) -> str:
    """The rows as aligned text."""
    head = ["parameter", "rule", "reads", "broadcast", "verdict"]
    table = [head] + [[r["parameter"], r["rule"], _short(r), "; ".join(r["broadcast"]) or "-", r["verdict"]] for r in rows]
    files, blocks = ({tuple(r[k] for k in keys) for r in rows} for keys in (("file",), ("file", "train")))
    for k, several in (("train", len(blocks) > len(files)), ("file", len(files) > 1)):
        if several:
            table = [[name, *row] for name, row in zip([k, *(r[k] for r in rows)], table)]
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in table)


def fmt_command(args) -> int:
    """Format in place, or with --check only tell."""
    from ..checkpoint import atomic_write
    from ..compiler.diagnostics import CompileError, render
    from ..frontend.format import format_source
    from ..frontend.parse import decode, read_source
    status = OK
    for file in args.files:
        try:
            text = decode(sys.stdin.buffer.read(), "<stdin>") if file == "-" else read_source(file)
            new = format_source(text, "<stdin>" if file == "-" else file)
        except CompileError as e:
            print(render(e.diagnostics, colours(sys.stderr)), file=sys.stderr)
            status = WRONG
            continue
        if args.check:
            if new != text:
                status = wrong(f"{file} is not formatted")
        elif file == "-":
            sys.stdout.write(new)
        elif new != text and not os.access(file, os.W_OK):                 # replacing it would succeed all the same
            status = wrong(f"{file}: it may not be written to")
        elif new != text:
            atomic_write(Path(file).resolve(), new.encode())
            print(f"formatted {file}")
    return status
