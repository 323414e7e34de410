"""Data sets: what they hold, and what is said about files that are missing or broken."""
from __future__ import annotations

import gzip
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from engram.datasets import Dataset, DatasetError, dataset

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def idx(array: np.ndarray, code: int = 8) -> bytes:
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def mnist_dir(tmp_path):
    rng = np.random.default_rng(0)
    for which, n in (("train", 60), ("t10k", 12)):
        (tmp_path / f"{which}-images-idx3-ubyte").write_bytes(idx(rng.integers(0, 256, (n, 28, 28)).astype(np.uint8)))
        with gzip.open(tmp_path / f"{which}-labels-idx1-ubyte.gz", "wb") as f:
            f.write(idx(rng.integers(0, 10, n).astype(np.uint8)))
    return tmp_path


def test_digits():
    d = dataset("digits")
    x, y = d.fields["x"], d.fields["y"]
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((1797, 64), np.float32, (1797,), np.int32)
    assert x.min() == 0 and x.max() == 1 and set(y) == set(range(10)) and d.n == 1797
    assert np.array_equal(x * 16, np.round(x * 16))


def test_xor():
    d = dataset("xor")
    assert [int(v) for v in d.fields["y"][:, 0]] == [0, 1, 1, 0]


def test_unknown_name_suggests():
    with pytest.raises(DatasetError, match="unknown data set 'digit'.*did you mean 'digits'"):
        dataset("digit")
    with pytest.raises(DatasetError, match="known: digits"):
        dataset("qqqqqqq")
    with pytest.raises(DatasetError, match='dataset\\("npz", "data/mine.npz"\\)'):
        dataset("data/mine.npz")


def test_wrong_arguments_show_the_usage():
    with pytest.raises(DatasetError, match='dataset\\("mnist", path, part = "all", first = none\\)'):
        dataset("mnist")
    with pytest.raises(DatasetError, match="expected a path, got 3"):
        dataset("mnist", 3)


def test_mnist(mnist_dir):
    d = dataset("mnist", mnist_dir)
    assert d.fields["x"].shape == (72, 28, 28) and d.fields["x"].dtype == np.uint8
    assert d.fields["y"].dtype == np.int64 and d.info["test"] == "t10k"
    test = dataset("mnist", str(mnist_dir), part="test")
    assert np.array_equal(test.fields["x"], d.fields["x"][-12:])


def test_the_first_of_mnist(mnist_dir):
    whole, d = dataset("mnist", mnist_dir), dataset("mnist", mnist_dir, part="train", first=7)
    assert d.n == 7 and d.test is None and np.array_equal(d.fields["x"], whole.fields["x"][:7])
    assert dataset("fashion_mnist", mnist_dir).test == 12
    with pytest.raises(DatasetError, match="first = 0, expected a positive integer"):
        dataset("mnist", mnist_dir, first=0)


def test_mnist_stand_in(mnist_dir):
    for f in mnist_dir.glob("t10k*"):
        f.unlink()
    d = dataset("mnist", mnist_dir)
    assert d.n == 60 and "stand in" in d.info["test"]
    assert dataset("mnist", mnist_dir, "test").n == 10 and dataset("mnist", mnist_dir, "train").n == 50


def test_path_is_looked_for_beside_the_program(mnist_dir):
    assert dataset("mnist", mnist_dir.name, base=[mnist_dir.parent]).n == 72


@pytest.mark.parametrize("content, message", [
    (b"", "is not an IDX file: it begins with nothing"),
    (b"PK\x03\x04", "is not an IDX file: it begins with 504b0304"),
    (b"\0\0\x08\x01\0\0\0\x01\0", "has 1 dimensions, expected 3"),
    (b"\0\0\x08\x03\0\0\0\x3c", "ends within its header"),
    (b"\0\0\x08\x03" + struct.pack(">3I", 60, 28, 28) + b"\0" * 10, "more than a file of 26 bytes can hold"),
    (b"\0\0\x08\x03" + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1), "expected at most"),
    (b"\0\0\x08\x03" + struct.pack(">3I", 2, 2, 2) + b"\0" * 9, "take 8 bytes, it holds more"),
    (b"\0\0\x08\x03" + struct.pack(">3I", 59, 28, 28) + b"\0" * 59 * 784, "59 train images but 60 labels"),
])
def test_broken_idx(mnist_dir, content, message):
    (mnist_dir / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        dataset("mnist", mnist_dir)


def test_broken_gzip(mnist_dir):
    file = mnist_dir / "train-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:30])
    with pytest.raises(DatasetError, match="cannot read .*labels"):
        dataset("mnist", mnist_dir)


def test_missing_files(tmp_path):
    with pytest.raises(DatasetError, match="no train-images-idx3-ubyte or train-images-idx3-ubyte.gz in") as e:
        dataset("mnist", tmp_path)
    assert "engram data mnist --to" in e.value.hint
    with pytest.raises(DatasetError, match="no such folder"):
        dataset("mnist", tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="no such file"):
        dataset("npz", tmp_path / "nowhere.npz")
    with pytest.raises(DatasetError, match="no data_batch_1.bin"):
        dataset("cifar10", tmp_path)


def test_cifar10(tmp_path):
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (5, 3073)).astype(np.uint8)
    a[:, 0] %= 10
    (tmp_path / "data_batch_1.bin").write_bytes(a.tobytes())
    (tmp_path / "test_batch.bin").write_bytes(a[:2].tobytes())
    d = dataset("cifar10", tmp_path)
    assert d.fields["x"].shape == (7, 3, 32, 32) and np.array_equal(d.fields["y"][5:], d.fields["y"][:2])
    assert d.fields["x"][1, 2, 31, 31] == a[1, -1]
    (tmp_path / "test_batch.bin").write_bytes(b"x")
    with pytest.raises(DatasetError, match="not a whole number of"):
        dataset("cifar10", tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(b"\xff" * 3073)
    with pytest.raises(DatasetError, match="label 255 is not one of"):
        dataset("cifar10", tmp_path)


def test_npz(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.asfortranarray(np.arange(6, dtype=">f8").reshape(3, 2)), y=[1, 2, 3])
    d = dataset("npz", tmp_path / "a.npz")
    assert d.fields["x"].tolist() == [[0, 1], [2, 3], [4, 5]] and d.fields["x"].dtype == np.float64 and d.n == 3


@pytest.mark.parametrize("arrays, message", [
    ({"x": np.zeros(3), "y": np.zeros(4)}, "different lengths: x 3, y 4"),
    ({"x": np.array([object()])}, "Python objects"),
    ({"x": np.array(["a"])}, "expected numbers"),
    ({"x": np.array(1.0)}, "a single number"),
    ({"x": np.zeros((0, 3))}, "holds no samples"),
    ({"no identifier": np.zeros(3)}, "not an identifier"),
])
def test_bad_npz(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DatasetError, match=message):
        dataset("npz", tmp_path / "a.npz")


def test_npz_header_lies(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(4))
    raw = (tmp_path / "x.npy").read_bytes().replace(b"'shape': (4,), }", b"'shape': (1<<40,)}").replace(b"(1<<40,)}", b"(99999,)}")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as z:
        z.writestr("x.npy", raw)
    with pytest.raises(DatasetError, match="takes 799,992 bytes, the file holds|not a NumPy array"):
        dataset("npz", tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes(b"nonsense")
    with pytest.raises(DatasetError, match="not a readable .npz file"):
        dataset("npz", tmp_path / "b.npz")


def test_text(tmp_path):
    f = tmp_path / "t.txt"
    f.write_text("abcabcabcä")
    d = dataset("text", f, context=3, order="streams")
    assert d.info["vocabulary"] == ["a", "b", "c", "ä"] and d.order == "streams"
    assert d.fields["x"].tolist() == [[0, 1, 2]] * 3 and d.fields["y"].tolist() == [[1, 2, 0], [1, 2, 0], [1, 2, 3]]
    assert dataset("text", f, context=10, tokens="byte").fields["x"][0, -1] == "abcabcabcä".encode()[9]
    with pytest.raises(DatasetError, match="too few for a window of 99"):
        dataset("text", f, context=99)
    f.write_bytes(b"ab\xff")
    with pytest.raises(DatasetError, match="not UTF-8 text: byte 0xff at 2"):
        dataset("text", f, context=1)


def test_fields_must_agree():
    with pytest.raises(DatasetError, match="no samples"):
        Dataset("mine", {})


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="no ../shared/data/mnist")
def test_the_real_mnist():
    d = dataset("mnist", SHARED / "mnist")
    assert d.n == 60_000 and d.fields["y"][:5].tolist() == [5, 0, 4, 1, 9]
    assert abs(d.fields["x"].mean() / 255 - 0.1307) < 1e-4
