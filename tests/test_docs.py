"""The reference page: up to date, complete, and every example on it parses, verifies, prints back and runs."""
from pathlib import Path

import numpy as np
import pytest
from engram.compiler.driver import lower, random_arguments
from engram.compiler.ir.parser import parse_module
from engram.compiler.ir.printer import print_module
from engram.compiler.ir.verifier import verify
from engram.compiler.ops import NN, OPS
from engram.docs import CONTEXT, FAMILIES, example_module, family, main, page, twin
from engram.interp.interpreter import Interpreter
from helpers import parse_type, random_array

DOCS = Path(__file__).resolve().parent.parent / "docs"
NOT_RUN = ("learn.",)                                      # needs the roles of a whole step function: test_plasticity.py


@pytest.mark.parametrize("name", OPS)
def test_example(name):
    row = OPS[name]
    assert "..." not in row.example, "an example is whole"
    m = example_module(row)
    verify(m)
    assert any(op.name == name for op in m.walk())
    text = print_module(m)
    assert print_module(parse_module(text)) == text
    if name.startswith(NOT_RUN):
        return
    args = random_arguments(m, "main")
    for sample in row.samples:                             # values the op takes: indices in range, positive logarithms
        if [str(parse_type(t)) for t, _, _ in sample.inputs] == [str(a.type) for a in m.funcs["main"].args]:
            args = [random_array(parse_type(t), lo, hi, np.random.default_rng(0)) for t, lo, hi in sample.inputs]
            break
    run = lower(m, "definition") if NN in row.stages else m
    results = Interpreter(run).call("main", args)
    if m.attrs["stage"] != "loop":
        assert [str(r.dtype) for r in results] == [str(t.dtype.numpy) for t in m.funcs["main"].result_types]


def test_the_page_is_up_to_date():
    assert (DOCS / "reference" / "ops.md").read_text(encoding="utf-8") == page(), "`make docs` writes it"


def test_check_says_what_is_stale(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("engram.docs.PAGES", {"ops.md": page})
    assert main(["--check", str(tmp_path)]) == 1 and "out of date" in capsys.readouterr().out
    assert main([str(tmp_path)]) == 0 and (tmp_path / "ops.md").read_text(encoding="utf-8") == page()
    assert main(["--check", str(tmp_path)]) == 0


def test_every_op_is_on_the_page():
    text = page()
    for name, row in OPS.items():
        assert family(row) in FAMILIES, f"{name}: give the family of compiler/ops/{family(row)}.py a title"
        assert f"### `{(twin(row) or row).name}`" in text
    assert set(CONTEXT) <= set(OPS)
