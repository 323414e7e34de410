"""Rules that try to reach further than their own layer (tests/wrong/cheat_*.nn) are refused; statistics over a layer's own batch are not
reaching further, and the table of `engram check --locality` lists them."""
from __future__ import annotations

from pathlib import Path

import pytest
from engram.cli import main

CHEATS = sorted((Path(__file__).parent / "wrong").glob("cheat_*.nn"))
ELSEWHERE = {"cheat_capture": "is a function that uses run-time values", "cheat_sees": "which layer `model.first` (Linear) does not have",
             "cheat_layer": "`v`, given to rule `tap`, is a layer", "cheat_pullback": "`v`, given to rule `tap`, is a function",
             "cheat_derivative_input": "for layer `t.first2` is not local: its call is handed a derivative"}
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


def test_a_batch_norm_inside_the_layer_is_listed(tmp_path, capsys):
    file = tmp_path / "inner.nn"
    file.write_text("""import "std/nn.nn"
layer Block(i, o) {
  bn = BatchNorm(i, affine = false)
  param w: f32[i, o] = normal(0, 0.1)
  fn (x: f32[B, i]) -> f32[B, o] { relu(bn(x) @ w) }
}
layer Net() {
  first  = Block(64, 32)
  second = Block(32, 10)
  fn (x: f32[B, 64]) -> f32[B, 10] { second(first(x)) }
}
train digits {
  model = Net()
  data  = dataset("digits")
  learn model.first by pred(10, 1e-3) given y
  measure accuracy(model(x), y)
}
""")
    assert main(["check", "--locality", str(file)]) == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert "bn.running_mean bn.running_var" in row and row.endswith("  local")


def test_recurrence_is_no_feedback(tmp_path, capsys):
    """A layer's own output may come back to it, and what is before it may come in by any argument; a local loss of a whole block is said to be one."""
    file = tmp_path / "stack.nn"
    file.write_text("""import "std/nn.nn"
layer Cell(i, n) {
  param w: f32[i, n] = normal(0, 0.1)
  param v: f32[n, n] = normal(0, 0.1)
  fn (x: f32[B, i], h: f32[B, n]) -> f32[B, n] { tanh(x @ w + h @ v) }
}
layer Net() {
  first  = Cell(16, 20)
  second = Cell(20, 12)
  out    = Linear(12, 10)
  fn (x: f32[B, 64]) -> f32[B, 10] {
    let (_, s) = scan t in 0..4 with final (a, b) = (zeros(B, 20), zeros(B, 12)) {
      let a = first(x[:, 16 * t : 16 * t + 16], a)
      let b = second(a, b)
      yield 0.0
      (a, b)
    }
    out(s[1])
  }
}
layer Whole() {
  net = Net()
  fn (x: f32[B, 64]) -> f32[B, 10] { net(x) }
}
rule correlate(lr) sees pre: f32[T, B, i], out: f32[T, B, o], w: f32[i, o] { w += lr * hebbian(pre, out, out, w) / (T * B) }
train stack {
  model = Net()
  data  = dataset("digits")
  learn model.first by correlate(0.01)
  learn model.second by correlate(0.01)
  learn model.out by delta(0.01) given one_hot(y, 10)
  measure accuracy(model(x), y)
}
train block {
  model = Whole()
  data  = dataset("digits")
  learn model.net by pred(10, 1e-3) given y
  measure accuracy(model(x), y)
}
""")
    assert main(["check", "--locality", str(file)]) == 0
    rows = [line.rsplit("  ", 1) for line in capsys.readouterr().out.splitlines()[1:]]
    verdicts = {r[0].split()[1]: r[1].strip() for r in rows}          # behind the block's name
    assert verdicts["model.first.w"] == verdicts["model.second.w"] == verdicts["model.out.w"] == "local"
    assert verdicts["model.net.first.w"] == "local to a block of 3 layers"
