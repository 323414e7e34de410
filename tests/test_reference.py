"""The reference pages of the language: complete, up to date, and every example on them checked and run."""
from __future__ import annotations

import ast
import re
from pathlib import Path

import engram as eg
import numpy as np
import pytest
from engram.cli import main
from engram.cli.check import check_file
from engram.compiler.ir import DTYPES
from engram.docs import PAGES
from engram.frontend import ast as A
from engram.frontend.builtin_examples import INPUTS
from engram.reference import (
    FRONTEND,
    LANGUAGE,
    SETTINGS,
    builtins,
    document,
    examples,
    examples_of,
    format_value,
    grammar_rules,
    parse_value,
    run_examples,
    same,
    std_items,
)
from engram.session import load_program, train_plan
from engram.train import Trainer, split

BLOCKS = [m[1] for m in re.finditer(r"^```nn\n(.*?)^```$", LANGUAGE.read_text(encoding="utf-8"), re.S | re.M)]
CALL = re.compile(r"^# (\w+)(\(.*\)) -> (.*)$", re.M)
TRAINED = re.compile(r"^# (\w+): (\w+) -> (.*)$", re.M)
PRINTED = re.compile(r"^# (\w+) prints: (.*)$", re.M)
ERROR = re.compile(r"^# error: (.*)$", re.M)


# ---- the pages ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["builtins.md", "std.md", "language.md"])
def test_page_is_up_to_date(name):
    assert (LANGUAGE.parent / name).read_text(encoding="utf-8") == PAGES[name](), "`make docs` writes it"


# ---- operations --------------------------------------------------------------------------------------------------------

def test_every_operation_has_a_doc_and_an_example():
    rows = [row for found in builtins().values() for row in found]
    shown = examples_of()
    bare = [names[0] for names, op in rows if not document(op)]
    assert not bare, f"no doc: {bare}"
    assert all(document(op).endswith((".", ".)")) for _, op in rows), "a doc is a sentence"
    without = [names[0] for names, _ in rows if not any(n in shown for n in names)]
    assert not without, f"no example in frontend/builtin_examples.py: {without}"
    known = {n for names, _ in rows for n in names}
    assert set(shown) <= known, f"examples of what does not exist: {set(shown) - known}"


@pytest.mark.parametrize("backend", ["cpu", "interp"])
def test_examples_of_operations(backend):
    found = examples()
    wrong = [f"{e.text} -> {format_value(got)}, not {e.value}" for e, got in zip(found, run_examples(found, backend), strict=True)
             if not e.value or not same(got, parse_value(e.value))]
    assert not wrong, "\n".join(wrong)


def test_same_can_fail():
    assert same(np.float32([1, np.nan]), [1.0, "nan"]) and same((np.int64(1), np.float32([2])), (1, [2.0]))
    assert not same(np.float32(1.01), 1.0) and not same(np.float32([1]), 1.0) and not same(np.float32(1), 1) and not same(np.int64(1), True)
    assert format_value((np.float32([0.125, -0.0, 1e9]), np.bool_(True), np.int64(3))) == "([0.125, 0.0, 1e+09], true, 3)"


# ---- the standard library ----------------------------------------------------------------------------------------------

def test_the_library_is_commented():
    for path in (FRONTEND / "std").glob("*.nn"):
        items = std_items(path)
        program = load_program(f"std/{path.name}", path.read_text(encoding="utf-8"))
        assert items and {name for _, name, _, _ in items} >= {n for n, f in program.functions.items() if f.span.file == f"std/{path.name}"}
        assert not (bare := [name for _, name, comment, _ in items if not comment]), f"std/{path.name}: no comment above {bare}"


# ---- the language ------------------------------------------------------------------------------------------------------

def arguments(text: str) -> tuple[list, dict]:
    """`(1.0, [2.0], n = 3)` as values."""
    call = ast.parse("f" + re.sub(r"\btrue\b", "True", re.sub(r"\bfalse\b", "False", text)), mode="eval").body
    return [ast.literal_eval(a) for a in call.args], {k.arg: ast.literal_eval(k.value) for k in call.keywords}


def call_of(text: str, name: str, args: str):
    """The value of `f(1.0)`, a function, or of `Layer(2, 1)([1.0])`, a layer made and called."""
    if name not in load_program("block.nn", text).layers:
        given, named = arguments(args)
        return eg.compile(text)[name](*given, **named)
    made = ast.parse(name + args, mode="eval").body.func
    (given, named), (inputs, _) = arguments(args[:made.end_col_offset - len(name)]), arguments(args[made.end_col_offset - len(name):])
    return eg.Model(text, name, *given, **named)(*[np.float32(x) for x in inputs])


@pytest.mark.parametrize("k", range(len(BLOCKS)), ids=[re.sub(r"\W+", " ", b)[:24].strip() for b in BLOCKS])
def test_block(k, tmp_path, capsys):
    text = BLOCKS[k]
    (tmp_path / "block.nn").write_text(text)
    found, _ = check_file(str(tmp_path / "block.nn"), {})
    errors = [d for d in found if d.severity == "error"]
    if wanted := ERROR.findall(text):
        assert len(errors) == len(wanted) and all(w in d.message for w, d in zip(wanted, errors)), [d.message for d in errors]
        return
    assert not errors, [str(d) for d in errors]
    for name, args, value in CALL.findall(text):
        got = call_of(text, name, args)
        assert same(got, parse_value(value)), f"{name}{args} -> {format_value(got)}, not {value}"
    for name, measure, value in TRAINED.findall(text):
        plan = train_plan(load_program("block.nn", text), name)
        train, held = split(plan.dataset.n, plan.settings["holdout"], 0)
        got = Trainer(plan).run(plan.dataset.fields, train, held if len(held) else train).final[measure]
        assert got == pytest.approx(float(value)), f"{name}: {measure} is {got}"
    for name, line in PRINTED.findall(text):
        assert main(["run", str(tmp_path / "block.nn"), name, "--out", str(tmp_path / "out")]) == 0
        assert line in capsys.readouterr().out.splitlines()


def test_inputs_of_the_operations_page_and_the_dtypes_are_right():
    page = (LANGUAGE.parent / "builtins.md").read_text(encoding="utf-8")
    lets = re.search(r"^```nn\n((?:let .*\n)+)```$", page, re.M)[1]
    names = re.findall(r"^let (\w+)", lets, re.M)
    got = eg.compile(f"fn inputs() {{\n{lets}({', '.join(names)})\n}}\n").inputs()
    assert names == list(INPUTS) and same(got, tuple(parse_value(v) for v in INPUTS.values()))
    listed = re.search(r"Dtypes are `([\w ]+)`", LANGUAGE.read_text(encoding="utf-8"))[1].split()
    assert listed == list(DTYPES)


def test_every_section_has_an_example_and_functions_are_run():
    sections = re.split(r"^## ", LANGUAGE.read_text(encoding="utf-8"), flags=re.M)[1:-1]
    assert len(sections) >= 14 and all("```nn" in s for s in sections)
    assert sum(len(CALL.findall(b)) for b in BLOCKS) > 50


def test_the_grammar_is_there_and_settings_are_explained():
    rules = grammar_rules()
    source = (FRONTEND / "grammar.lark").read_text(encoding="utf-8")
    assert set(rules) == set(re.findall(r"^\??([a-z_]+):", source, re.M)) and all("//" not in r.replace('"//"', "") and " -> " not in r for r in rules.values())
    from engram.frontend.train_settings import DEFAULTS
    assert set(SETTINGS) == set(DEFAULTS)
    assert {c.__name__ for c in vars(A).values() if isinstance(c, type)} >= {"Train", "Rule", "Layer", "FnDef", "Run"}


def test_docs_folder_is_this_checkout():
    assert LANGUAGE.is_relative_to(Path(__file__).resolve().parent.parent)
