"""Pictures of a training run: what is in them, and the accuracy of each layer's own readout that they show."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from engram import plots
from engram.cli import main

pytest.importorskip("matplotlib")
LOCAL = """import "std/nn.nn"
layer Net() {
  l1 = Dense(64, 40)
  body = [Dense(40, 30), Dense(30, 30)]
  fn (x: f32[B, 64]) -> f32[B, 30] { x |> l1 |> body }
}
train local {
  model  = Net()
  data   = dataset("digits")
  epochs = 3
  learn model.l1 by three_factor(10, lr = 0.1) given y
  learn model.body by pred(10, lr = 3e-3) given label = y
  MEASURE
}
"""


def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("measure", ["", "measure accuracy(log_softmax(model.l1.three_factor.readout(model.l1(x)), dim = -1), y)"])
def test_layers_are_measured_and_drawn(tmp_path, capsys, measure):
    program = tmp_path / "local.nn"
    program.write_text(LOCAL.replace("MEASURE", measure))
    out = tmp_path / "out"
    assert main(["run", str(program), "--plot", "--threads", "1", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "l1.accuracy 0." in said and "body.0.accuracy 0." in said and "weights.png, errors.png" in said
    rows = json.loads((out / "metrics.json").read_text())
    assert {"l1.accuracy", "body.0.accuracy", "body.1.accuracy"} <= set(rows["epochs"][0]) and rows["final"]["l1.accuracy"] > 0.7
    if measure:
        assert rows["final"]["accuracy"] == pytest.approx(rows["final"]["l1.accuracy"])
    assert all(is_png(out / name) for name in ("curve.png", "weights.png", "errors.png"))


def test_readings_are_what_the_measures_count(tmp_path):
    from engram.session import load_program, train_plan
    from engram.train import Trainer
    plan = train_plan(load_program("local.nn", LOCAL.replace("MEASURE", "")), "local")
    trainer = Trainer(plan, "cpu", 1)
    trainer.initialise(0)
    fields, part = plan.dataset.fields, np.arange(1500, 1797)
    readings = trainer.readings(fields, part)
    measured = trainer.measure(fields, part)
    assert list(readings) == ["l1", "body.0", "body.1"]
    for name, (read, right) in readings.items():
        assert np.array_equal(right, fields["y"][part]) and (read == right).mean() == pytest.approx(measured[f"{name}.accuracy"])


def test_a_layer_that_is_called_in_a_loop_is_not_asked(tmp_path):
    """What cannot be measured by itself is left out; the program's own measures stay."""
    from engram.session import load_program, train_plan
    text = """import "std/nn.nn"
layer Net() {
  l1 = Dense(16, 16)
  fn (x: f32[B, 64]) -> f32[B, 16] { scan t in 0..4 with s = zeros(B, 16) { let y = l1(x[:, 16 * t : 16 * t + 16]); yield y; s + y } |> mean(dim = 0) }
}
train t { model = Net(); data = dataset("digits"); batch = 50
  learn model.l1 by three_factor(10, lr = 0.1) given y
  measure size = mean(model(x)) }
"""
    assert train_plan(load_program("t.nn", text), "t").measures == ["size"]


def test_weights_are_pictures_where_they_look_like_samples():
    assert plots.picture_shape(784, (28, 28)) == (28, 28) and plots.picture_shape(64, (64,)) == (8, 8)
    assert plots.picture_shape(3072, (3, 32, 32)) == (3, 32, 32) and plots.picture_shape(784, (1, 28, 28)) == (28, 28)
    assert plots.picture_shape(1000, (28, 28)) is None and plots.picture_shape(60, (60,)) is None and plots.picture_shape(4, (4,)) is None
    w = np.arange(784 * 100, dtype=np.float32).reshape(784, 100)
    tiles, what = plots.unit_pictures(w, (28, 28))
    assert tiles.shape == (64, 28, 28) and what == ": 64 of 100 units" and np.array_equal(tiles[3].ravel(), w[:, 3])
    filters, _ = plots.unit_pictures(np.ones((4, 3, 5, 5), np.float32), (3, 32, 32))
    assert filters.shape == (4, 5, 5, 3)
    kernels, what = plots.unit_pictures(np.ones((32, 64, 3, 3), np.float32), (28, 28))
    assert kernels.shape == (64, 3, 3) and what == ": 64 of 2048 kernels"
    assert plots.unit_pictures(np.ones((8, 8, 1, 1), np.float32), ())[0] is None


def test_mosaic():
    m = plots.mosaic(np.stack([np.full((2, 3), v, np.float32) for v in (2, -4, 1, 1, 1)]))
    assert m.shape == (8, 7) and m[0, 0] == 1 and m[0, 4] == -1 and m[2, 0] == 0 and m[6, 0] == 1 and m[6, 4] == 0
    assert plots.mosaic(np.zeros((3, 4, 4), np.float32)).max() == 0


def test_confusion():
    m = plots.confusion(np.array([0, 2, 2, 1]), np.array([0, 2, 1, 1]))
    assert m.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]


@pytest.mark.parametrize("readings", [{}, {"a": (np.zeros(0, np.int64),) * 2}, {"a": (np.array([100]), np.array([3]))}])
def test_nothing_to_show(readings, tmp_path):
    assert not plots.errors(readings, None, tmp_path / "e.png") and not plots.weights({"b": np.ones(3)}, (3,), tmp_path / "w.png", ())
    assert not list(tmp_path.iterdir())


def test_samples_that_are_no_pictures_and_weights_that_are_not_finite(tmp_path):
    readings = {"a": (np.array([0, 1, 1]), np.array([0, 1, 0]))}
    assert plots.errors(readings, np.zeros((3, 5)), tmp_path / "e.png") and is_png(tmp_path / "e.png")
    assert plots.weights({"w": np.full((64, 3), np.nan)}, (64,), tmp_path / "w.png", {"w"})


def test_without_matplotlib_it_is_said_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    program = tmp_path / "local.nn"
    program.write_text(LOCAL.replace("MEASURE", ""))
    assert main(["run", str(program), "--plot", "--out", str(tmp_path / "o")]) == 1
    assert "matplotlib, which is not installed" in capsys.readouterr().err and not (tmp_path / "o").exists()


def test_only_what_multiplies_samples_is_drawn_as_their_pictures(tmp_path, monkeypatch):
    """rnn.nn has 64 units and reads digits of 64 pixels: its 64 x 64 matrix is no stack of pictures."""
    from engram.first_matrices import first_matrices
    from engram.session import load_program, train_plan
    root = Path(__file__).resolve().parent.parent / "examples"
    plan = lambda f: train_plan(load_program(str(root / f)), None)
    assert first_matrices(plan("rnn.nn")) == {"model.rnn.wx"} and first_matrices(plan("digits_local.nn")) == {"model.hidden.w"}
    given = []
    real = plots.unit_pictures
    monkeypatch.setattr(plots, "unit_pictures", lambda a, sample: given.append((a.shape, tuple(sample))) or real(a, sample))
    w = np.random.default_rng(0).standard_normal
    assert plots.weights({"a": w((64, 64)), "b": w((64, 32))}, (64,), tmp_path / "w.png", {"b"})
    assert given == [((64, 64), ()), ((64, 32), (64,))]


CARRIED = """train t {
  model = Net()
  data  = dataset("digits")
  batch = 8
  minimize cross_entropy(model(x), y) using sgd(0.1)
}
layer Net() {
  param p: f32[64, 64] = normal(0, 0.1)
  param q: f32[64, 64] = normal(0, 0.1)
  param r: f32[64, 10] = normal(0, 0.1)
  fn (x: f32[B, 64]) -> f32[B, 10] {
    let z = scan i in 0..3 with s = x { BODY }
    z @ r
  }
}
"""


@pytest.mark.parametrize("body, first", [("tanh(s @ p + x @ q)", {"model.q"}), ("if i > 1 { s @ p } else { x * 2 }", set()), ("s * 0.5", {"model.r"})])
def test_what_a_loop_hands_on_counts(body, first):
    from engram.first_matrices import first_matrices
    from engram.session import load_program, train_plan
    assert first_matrices(train_plan(load_program("t.nn", CARRIED.replace("BODY", body)), None)) == first
