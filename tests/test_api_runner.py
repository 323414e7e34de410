"""What the runner decides by itself: who is held out, in what order samples come, which measure is better."""
from __future__ import annotations

import json
import math

import numpy as np
import pytest
from engram.plots import curves
from engram.progress import Lines, epoch_line
from engram.report import metrics
from engram.train import Result, _better, _chunks, batches, key_of, split, split_sizes


def test_a_share_is_drawn_by_the_seed():
    train, held = split(100, 0.2, seed=0)
    assert (len(train), len(held)) == (80, 20)
    assert sorted([*train, *held]) == list(range(100)) and list(held) != sorted(held)
    again, other = split(100, None, seed=0), split(100, 0.2, seed=1)
    assert np.array_equal(again[1], held) and not np.array_equal(other[1], held)


def test_an_integer_holds_out_the_last_samples():
    train, held = split(100, 10, seed=0)
    assert list(train) == list(range(90)) and list(held) == list(range(90, 100))
    train, held = split(100, 10, seed=0, limit=4)
    assert len(train) == len(held) == 4 and max(train) < 90 <= min(held)


def test_limit_comes_before_the_split():
    assert split_sizes(1797, 0.2, 64) == (51, 13)
    assert split_sizes(1797, None) == (1438, 359)
    assert split_sizes(4, 0) == (4, 0) and split_sizes(4, 0.0) == (4, 0) and split_sizes(2, 0.9) == (1, 1)


@pytest.mark.parametrize("n, holdout, limit, message", [
    (10, 1.5, None, "expected a share"), (10, -1, None, "expected a share"), (10, True, None, "expected a share"),
    (10, 10, None, "none would be left"), (10, 0.2, 0, "expected a positive number"), (10, "a", None, "expected a share"),
])
def test_wrong_splits(n, holdout, limit, message):
    with pytest.raises(ValueError, match=message):
        split_sizes(n, holdout, limit)


def test_batches_drop_a_partial_last_one_unless_it_is_the_only_one():
    train = np.arange(10) + 5
    got = batches(train, 4, seed=0, phase=0, epoch=0, order="shuffled")
    assert [len(b) for b in got] == [4, 4] and set(np.concatenate(got)) <= set(train)
    assert [len(b) for b in batches(train, 64, 0, 0, 0, "shuffled")] == [10]
    assert not np.array_equal(got[0], batches(train, 4, 0, 0, 1, "shuffled")[0])


def test_streams_go_on_from_batch_to_batch():
    got = batches(np.arange(11), 3, 0, 0, 0, "streams")
    assert [b.tolist() for b in got] == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    train, held = split(10, 0.2, 0, order="streams")
    assert list(train) == list(range(8)) and list(held) == [8, 9]


def test_keys_differ_in_every_part():
    keys = {int(key_of(s, *p)) for s in (0, 1, -1, 2**63) for p in ((), (0,), (1,), (1, 0), (0, 1))}
    assert len(keys) == 20 and key_of(3, 1).dtype == np.uint64


def test_chunks():
    assert _chunks(359, 1024) == [359] and _chunks(10_000, 1024) == [1000] * 10 and _chunks(0, 8) == []
    assert sum(_chunks(10_007, 1024)) == 10_007 and len(set(_chunks(10_007, 1024))) == 2


def test_which_measure_is_better():
    assert _better("accuracy", 0.9, 0.8) and not _better("accuracy", math.nan, 0.1) and _better("accuracy", 0.1, math.nan)
    assert _better("val_loss", 0.1, 0.2) and not _better("cross_entropy", 0.3, 0.2)


def test_lines(capsys):
    row = {"epoch": 3, "loss": 0.25, "accuracy": 1e-5, "seconds": 0.5}
    many = {"accuracy": 0.9, **{f"body.{k}.accuracy": 0.5 + k / 100 for k in range(32)}, "seconds": 1.0}
    assert epoch_line(3, 20, many, 10) == "epoch  3/20  accuracy 0.9000  32 layers 0.5000 .. 0.8100  1.00 s  10 samples/s"
    assert epoch_line(3, 20, row, 28740) == "epoch  3/20  loss 0.2500  accuracy 1.000e-05  0.50 s  28,740 samples/s"
    lines = Lines(most=4)
    lines.begin(10, 1)
    for e in range(1, 11):
        lines.epoch_begin(e, 1)
        lines.epoch_end({**row, "epoch": e}, 1.0)
    lines.warn("look out")
    out = capsys.readouterr()
    assert [line.split()[1] for line in out.out.splitlines()] == ["1/10", "3/10", "6/10", "9/10", "10/10"] and out.err == "warning: look out\n"


def test_metrics_are_json_even_with_nan(tmp_path):
    r = Result([{"epoch": 1, "loss": math.nan, "accuracy": 0.5, "seconds": 0.1}], {"loss": math.inf, "accuracy": 0.5}, [1.0], interrupted=True)
    content = metrics("digits", "cpu", 2, 0, r)
    assert json.loads(json.dumps(content, allow_nan=False))["epochs"][0]["loss"] is None
    assert content["final"] == {"loss": None, "accuracy": 0.5} and content["interrupted"] and "stopped" not in content
    pytest.importorskip("matplotlib")
    assert curves(content, tmp_path / "curve.png") and (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
