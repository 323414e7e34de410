"""tests/programs/local_blocks.nn: every way of combining rules in a train block learns the digits, from one seed, on one thread."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
from engram.cli import main

pytest.importorskip("llvmlite")
FILE = Path(__file__).parent / "programs" / "local_blocks.nn"
AT_LEAST = {"at_once": 0.9, "in_order": 0.95, "unsupervised_then_head": 0.94, "votes": 0.95, "mixed": 0.94, "forward": 0.88}


@pytest.mark.parametrize("name", AT_LEAST)
def test_block_learns(name, tmp_path):
    assert main(["run", str(FILE), name, "-q", "--threads", "1", "--out", str(tmp_path)]) == 0
    m = json.loads((tmp_path / "metrics.json").read_text())
    assert m["final"]["sum" if name == "votes" else "accuracy"] >= AT_LEAST[name]
    first = [k for k in m["final"] if k.endswith(".accuracy")]
    assert first == {"at_once": ["l1.accuracy", "l2.accuracy"], "votes": ["l1.accuracy", "l2.accuracy"], "mixed": ["l1.accuracy"]}.get(name, [])


def test_phases_watch_their_own_layers(tmp_path):
    """Each phase is given the signals of the layer that learns in it, though the layers' functions are alike."""
    program = tmp_path / "p.nn"
    program.write_text(FILE.read_text().replace("Dense(64, n)", "Dense(64, 64)").replace("Dense(n, n)", "Dense(64, 64)").replace("Linear(n, 10)", "Linear(64, 10)"))
    assert main(["ir", str(program), "--fn", "in_order", "--stage", "plasticity", "--no-locs"]) == 0
    assert main(["run", str(program), "in_order", "-q", "--threads", "1", "--out", str(tmp_path / "o")]) == 0
    assert json.loads((tmp_path / "o" / "metrics.json").read_text())["final"]["accuracy"] >= 0.95
