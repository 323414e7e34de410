"""scatter_add into a large table of zeros: sorted by row first, with the bits of the plain way; which programs it is for."""
from __future__ import annotations

import numpy as np
import pytest
from engram.compiler import driver
from engram.compiler.diagnostics import RuntimeError_
from engram.compiler.ir import TensorType, f16, f32, i32, i64
from engram.frontend import elaborate_function, load
from engram.passes import lower_scatter, prefetch_rows

SOURCE = """
fn rows(w: f32[v, d], i: i64[n]) -> f32[n, d] { w[i] }
fn seen(w: f32[v, d], i: i64[n], g: f32[n, d]) -> f32[] { sum(w[i] * g) }
fn slope(w: f32[v, d], i: i64[n], g: f32[n, d]) -> f32[v, d] { grad(seen)(w, i, g) }
fn seen2(w: f16[v, 8, d], i: i32[n, m], g: f16[n, m, 8, d]) -> f16[] { sum(w[i] * g) }
fn slope2(w: f16[v, 8, d], i: i32[n, m], g: f16[n, m, 8, d]) -> f16[v, 8, d] { grad(seen2)(w, i, g) }
"""


def built(name: str, args: list[np.ndarray], threads: int = 2):
    kinds = {"f": {2: f16, 4: f32}, "i": {4: i32, 8: i64}}
    e = elaborate_function(load("<test>", SOURCE), name, [TensorType(kinds[a.dtype.kind][a.dtype.itemsize], a.shape) for a in args])
    return driver.build(e.module, "cpu", threads=threads), e


def kernels(name: str, args: list[np.ndarray], stage: str = "loop") -> int:
    module = driver.lower(built(name, args)[1].module, stage)
    return sum(op.name == "loop.parallel" for f in module.funcs.values() for op in f.walk())


def case(name: str, rng, v: int = 50, n: int = 40):
    if name == "slope":
        return [rng.standard_normal((v, 70)).astype(np.float32), rng.integers(0, v, n), rng.standard_normal((n, 70)).astype(np.float32)]
    return [rng.standard_normal((v, 8, 9)).astype(np.float16), rng.integers(0, v, (n // 4, 4)).astype(np.int32), rng.standard_normal((n // 4, 4, 8, 9)).astype(np.float16)]


@pytest.fixture
def always_sorted(monkeypatch, tmp_path):
    monkeypatch.setenv("ENGRAM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(lower_scatter, "STREAM_BYTES", 1)
    monkeypatch.setattr(prefetch_rows, "STREAM_BYTES", 1)


@pytest.mark.parametrize("name", ["slope", "slope2"])
@pytest.mark.parametrize("n", [8, 40, 400])
def test_the_same_bits_as_without_sorting(monkeypatch, tmp_path, name, n):
    args = case(name, np.random.default_rng(n), n=n)
    p, e = built(name, args)
    expected = p.call(e.entry, args)[0].copy()
    want = np.zeros(args[0].shape, np.float64)
    np.add.at(want, args[1], args[2].astype(np.float64))
    np.testing.assert_allclose(expected, want, rtol=1e-5 if name == "slope" else 1e-2, atol=1e-5 if name == "slope" else 5e-2)
    plain = kernels(name, args)
    monkeypatch.setenv("ENGRAM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(lower_scatter, "STREAM_BYTES", 1)
    monkeypatch.setattr(prefetch_rows, "STREAM_BYTES", 1)
    assert kernels(name, args) == plain + 1, "zeros and sums became counts, their sort and rows"
    assert kernels(name, args, "gpu") == plain, "one work-item is no thread"
    for threads in (1, 2):
        p, e = built(name, args, threads)
        assert p.call(e.entry, args)[0].tobytes() == expected.tobytes()


def test_an_index_out_of_range_is_reported(always_sorted):
    args = case("slope", np.random.default_rng(0))
    args[1][7] = 50
    p, e = built("slope", args)
    with pytest.raises(RuntimeError_, match="index 50 is out of range 0..50"):
        p.call(e.entry, args)


def test_few_updates_and_narrow_rows_are_not_sorted(always_sorted):
    rng = np.random.default_rng(0)
    few, narrow = case("slope", rng, n=5), case("slope", rng)
    narrow = [narrow[0][:, :8].copy(), narrow[1], narrow[2][:, :8].copy()]
    assert kernels("slope", few) == kernels("slope", narrow) == 2


def test_rows_taken_by_index_fetch_a_later_one(always_sorted):
    rng = np.random.default_rng(0)
    args = [rng.standard_normal((50, 70)).astype(np.float32), rng.integers(0, 50, 40)]
    p, e = built("rows", args)
    module = driver.lower(e.module, "loop")
    assert sum(op.name == "loop.prefetch" for f in module.funcs.values() for op in f.walk()) == 1
    np.testing.assert_array_equal(p.call(e.entry, args)[0], args[0][args[1]])
