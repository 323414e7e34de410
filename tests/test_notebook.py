"""The notebooks in examples/: valid JSON of format 4, no stored outputs, and their cells run in order."""
from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "examples").glob("*.ipynb"))


def run_cell(source: str, scope: dict) -> object:
    """The value of the cell's last expression, as a notebook shows it."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), scope)
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), scope) if last is not None else None


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(file, capsys, monkeypatch):
    pytest.importorskip("matplotlib").use("Agg")
    pytest.importorskip("llvmlite")
    book = json.loads(file.read_text(encoding="utf-8"))
    assert book["nbformat"] == 4 and len({c["id"] for c in book["cells"]}) == len(book["cells"])
    scope: dict = {"__name__": "__main__"}
    shown = None
    for cell in book["cells"]:
        assert cell["cell_type"] in ("markdown", "code") and isinstance(cell["source"], list)
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            shown = run_cell("".join(cell["source"]), scope)
    assert shown == 1                                               # the cheat is refused
    said = capsys.readouterr()
    assert "is not local: the given signal `back`" in said.err and "local rules" in said.out
    assert scope["local"].history["val_accuracy"][-1] > 0.9 and scope["deep"].history["val_accuracy"][-1] > 0.9


def test_there_is_one():
    assert NOTEBOOKS
