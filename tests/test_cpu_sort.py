"""Sorting long rows on the CPU (by digits, codegen/cpu/radix.py): the order NumPy's stable sort gives, bit for bit, for every dtype and direction."""
from __future__ import annotations

import engram
import numpy as np
import pytest

NUMPY = {"f16": "f2", "f32": "f4", "f64": "f8", "i8": "i1", "i16": "i2", "i32": "i4", "i64": "i8", "u8": "u1"}


def rows(dtype: str, n: int) -> np.ndarray:
    """Three rows with what is special: NaN, zeros of both signs, infinities, equal ones."""
    rng = np.random.default_rng(n)
    if dtype[0] != "f":
        info = np.iinfo(NUMPY[dtype])
        x = rng.integers(info.min, info.max, (3, n), dtype=info.dtype, endpoint=True)
        x[1] //= 3
        return x
    x = rng.standard_normal((3, n)).astype(NUMPY[dtype])
    x[0, ::7], x[1, ::5], x[1, 1::5], x[2, ::9], x[2, 3::9] = np.nan, 0.0, -0.0, np.inf, -np.inf
    x[:, 10:20] = 1
    return x


def order(x: np.ndarray, descending: bool) -> np.ndarray:
    """NaN last, or first; equal ones as they came."""
    if not descending:
        return np.argsort(x, 1, kind="stable")
    return np.array([sorted(range(x.shape[1]), key=lambda j: (row[j] == row[j], -row[j].item() if row[j] == row[j] else 0, j)) for row in x])


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("n", [63, 64, 1000])
@pytest.mark.parametrize("dtype", NUMPY)
def test_long_rows(dtype, n, descending):
    x = rows(dtype, n)
    values, indices = engram.compile(f"fn f(x: {dtype}[a, b]) {{ sort(x, dim = 1, descending = {str(descending).lower()}) }}").f(x)
    expected = order(x, descending)
    np.testing.assert_array_equal(indices, expected)
    assert np.asarray(values).tobytes() == np.take_along_axis(x, expected, 1).tobytes()


@pytest.mark.parametrize("threads", [1, 2])
def test_columns(threads):
    x = rows("f32", 500).T.copy()
    values, indices = engram.compile("fn f(x: f32[a, b]) { sort(x, dim = 0) }", threads=threads).f(x)
    np.testing.assert_array_equal(indices, np.argsort(x, 0, kind="stable"))
    np.testing.assert_array_equal(values, np.sort(x, 0))
