"""Wrong programs: what `engram run` or `check` says about each, word for word (golden files beside the programs).

Every message must point at file:line:col of the user's text, show the line with a caret, come with exit status 1 and without a
traceback. `make bless` accepts new wordings; look at the diff first.
"""
from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from engram.cli import main

WRONG = Path(__file__).with_name("wrong")


@pytest.mark.parametrize("file", sorted(WRONG.glob("*.nn")), ids=lambda p: p.stem)
def test_golden_message(file, capsys, monkeypatch):
    monkeypatch.chdir(WRONG)
    command = "run" if "\ntrain " in file.read_text() else "check"
    assert main([command, file.name]) == 1
    out = capsys.readouterr()
    assert out.out == "" and "Traceback" not in out.err
    lines = out.err.splitlines()
    assert re.match(rf"{file.name}:\d+:\d+: error: ", lines[0]), lines[0]
    assert re.match(r" *\d+ \| ", lines[1]) and "^" in lines[2], out.err
    golden = file.with_suffix(".err")
    if os.environ.get("ENGRAM_BLESS"):
        golden.write_text(out.err)
    assert golden.exists(), f"no {golden.name}: `make bless` writes it"
    assert out.err == golden.read_text(), "the message changed; `make bless` accepts it"
