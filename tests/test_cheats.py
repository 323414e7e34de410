"""Rules that try to reach further than their own layer (tests/wrong/cheat_*.nn) are refused; statistics over a layer's own batch are not
reaching further, and the table of `engram check --locality` lists them."""
from __future__ import annotations

from pathlib import Path

import pytest
from engram.cli import main

CHEATS = sorted((Path(__file__).parent / "wrong").glob("cheat_*.nn"))
ELSEWHERE = {"cheat_capture": "is a function that uses run-time values", "cheat_sees": "which layer `model.first` (Linear) does not have"}
BATCH_NORM = """import "std/nn.nn"

layer Norm(i, o) {
  param w: f32[i, o] = normal(0, 0.1)
  fn (x: f32[B, i]) -> f32[B, o] {
    let z = (x - mean(x, dim = 0)) / sqrt(var(x, dim = 0, correction = 0) + 1e-5)
    z @ w
  }
}

layer Net() {
  first  = Norm(64, 32)
  second = Linear(32, 10, bias = false)
  fn (x: f32[B, 64]) -> f32[B, 10] { second(relu(first(x))) }
}

rule hebbian(lr) sees z: f32[B, i], out: f32[B, o], w: f32[i, o] { w += lr * (z.T @ out / B - 0.01 * w) }

train digits {
  model = Net()
  data  = dataset("digits")
  learn model.first by hebbian(0.01)
  measure accuracy(model(x), y)
}
"""


def test_there_are_enough():
    assert {p.stem.removeprefix("cheat_") for p in CHEATS} >= {"weights", "activations", "error", "helper", "capture", "layer_state", "given", "shared"}


@pytest.mark.parametrize("file", CHEATS, ids=lambda p: p.stem)
def test_cheats_are_refused(file, capsys):
    assert main(["check", str(file)]) == 1
    assert ELSEWHERE.get(file.stem, "for layer `model.first` is not local: ") in capsys.readouterr().err


def test_batch_statistics_are_local_and_listed(tmp_path, capsys):
    file = tmp_path / "norm.nn"
    file.write_text(BATCH_NORM)
    assert main(["check", "--locality", str(file)]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["parameter", "rule", "reads", "broadcast", "verdict"]
    assert row.split() == ["model.first.w", "hebbian", "z", "out", "w", "-", "local"]
