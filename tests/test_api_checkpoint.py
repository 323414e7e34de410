"""Checkpoints: exact round trips, every mismatch listed, files replaced in one step, hostile files refused."""
from __future__ import annotations

import json
import os

import ml_dtypes
import numpy as np
import pytest
from engram.checkpoint import CheckpointError, Expected, convert, match, read, write

ARRAYS = {"a.w": np.arange(6, dtype=np.float32).reshape(2, 3), "s": np.array(3, np.int64), "e": np.zeros((0, 4), np.float16),
          "b": np.array([1.5, -2], ml_dtypes.bfloat16), "t": np.array([True, False])}


def want(**shapes) -> list[Expected]:
    return [Expected(k, s, np.dtype(np.float32)) for k, s in shapes.items()]


def test_round_trip(tmp_path):
    write(tmp_path / "w.safetensors", ARRAYS, {"train": "digits"})
    back = read(tmp_path / "w.safetensors")
    assert set(back) == set(ARRAYS)
    for k, a in ARRAYS.items():
        assert back[k].dtype == a.dtype and back[k].shape == a.shape and back[k].tobytes() == a.tobytes()


def test_the_safetensors_package_reads_it(tmp_path):
    from safetensors.numpy import load_file
    write(tmp_path / "w.safetensors", {"a": ARRAYS["a.w"].T})
    assert np.array_equal(load_file(tmp_path / "w.safetensors")["a"], ARRAYS["a.w"].T)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.safetensors"
    write(path, {"a": np.zeros(2, np.float32)})
    old = path.read_bytes()
    with pytest.raises(TypeError, match="no complex128"):
        write(path, {"a": np.zeros(2, np.float32), "b": np.zeros(2, complex)})
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["w.safetensors"]


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, b"\x05\0\0\0\0\0\0\0{bad}", b"\x02\0\0\0\0\0\0\0{}" + b"x" * 8,
                                  (lambda h: len(h).to_bytes(8, "little") + h)(json.dumps(
                                      {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode())])
def test_broken_files(tmp_path, data):
    (tmp_path / "w").write_bytes(data)
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        read(tmp_path / "w")


def test_pickles_are_refused(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"PK\x03\x04 whatever")
    with pytest.raises(CheckpointError, match="pickle"):
        read(tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="cannot read .*nowhere"):
        read(tmp_path / "nowhere")


def test_every_mismatch_is_listed():
    arrays = {"a": np.zeros((2, 3)), "c": np.zeros(2, np.int32), "d": np.array([1e39]), "x": np.zeros(4)}
    with pytest.raises(CheckpointError) as e:
        match(arrays, want(a=(3, 2), b=(1,), c=(2,), d=(1,)), source="w.safetensors")
    assert e.value.problems == ["a: expected shape [3, 2], got [2, 3]", "missing: b [1]", "c: expected float32, got int32",
                                "d: values of float64 that do not fit float32", "unexpected: x [4]"]
    assert str(e.value).startswith("w.safetensors does not fit the model:\n  a: expected")


def test_foreign_keys_and_layouts():
    w = np.arange(6.0).reshape(3, 2)
    got = match({"fc.weight": w, "steps": np.array(3)}, [Expected("hidden.w", (2, 3), np.dtype(np.float32), [("fc.weight", True)])], ["steps"])
    assert got["hidden.w"].dtype == np.float32 and got["hidden.w"].flags.c_contiguous and np.array_equal(got["hidden.w"], w.T)
    with pytest.raises(CheckpointError, match="after swapping its last two dims"):
        match({"fc.weight": w}, [Expected("hidden.w", (3, 2), np.dtype(np.float32), [("fc.weight", True)])])


def test_convert_copies():
    a = np.zeros(2, np.float32)
    assert convert(a, a.dtype) is not a
    with pytest.raises(ValueError, match="do not fit int8"):
        convert(np.array([300]), np.dtype(np.int8))
