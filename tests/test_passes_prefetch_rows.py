"""The pass prefetch-rows: which loads fetch the row after theirs, how far it is, and that no number changes."""
from __future__ import annotations

import numpy as np
import pytest
from engram.compiler import driver
from engram.compiler.ir import TensorType, f32
from engram.frontend import elaborate_function, load
from engram.passes import prefetch_rows

SOURCE = """
fn soft(x: f32[r, c]) -> f32[r, c] { softmax(x, dim = -1) }
fn norm(x: f32[r, c], g: f32[c]) -> f32[r, c] { x * rsqrt(mean(x * x, dim = -1, keepdim = true) + 1e-5) * g }
fn seen(x: f32[r, c], g: f32[c]) -> f32[] { sum(norm(x, g) * x) }
fn slope(x: f32[r, c], g: f32[c]) { grad(seen, wrt = ["x", "g"])(x, g) }
fn total(x: f32[r, c]) -> f32[r] { sum(x, dim = 1) }
"""


def elaborated(name: str, rows: int, columns: int):
    shapes = [(rows, columns), *([(columns,)] if name in ("norm", "slope") else [])]
    return elaborate_function(load("<test>", SOURCE), name, [TensorType(f32, s) for s in shapes])


def ahead(name: str, rows: int, columns: int, stage: str = "loop") -> list[int]:
    module = driver.lower(elaborated(name, rows, columns).module, stage)
    return [op.attrs["ahead"] for f in module.funcs.values() for op in f.walk() if op.name == "loop.load" and "ahead" in op.attrs]


@pytest.mark.parametrize("name, columns, expected", [
    ("soft", 2048, [2048]), ("norm", 2048, [2048]), ("slope", 2048, [2048]),
    ("norm", 512, [1024]),                               # rows shorter than a page: the one that is a page further
    ("norm", 64, []), ("norm", 1 << 17, []),             # in one page with others; longer than what a cache keeps
    ("total", 2048, []),                                 # swept once
])
def test_large_rows_that_are_swept_again_are_fetched(name, columns, expected):
    assert ahead(name, (64 << 20) // (4 * columns), columns) == expected


def test_small_arrays_and_gpus_fetch_nothing():
    assert ahead("soft", 128, 2048) == []
    assert ahead("soft", 8192, 2048, "gpu") == []


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows, columns", [(40, 1024), (7, 1029), (17, 5000)])
def test_no_number_changes_and_nothing_is_fetched_in_vain(monkeypatch, tmp_path, threads, rows, columns):
    monkeypatch.setenv("ENGRAM_CACHE_DIR", str(tmp_path))
    rng = np.random.default_rng(columns)
    x, g = rng.standard_normal((rows, columns), np.float32), rng.standard_normal(columns, np.float32)
    found = []
    for limit in (1 << 30, 1):
        monkeypatch.setattr(prefetch_rows, "STREAM_BYTES", limit)
        for name, args in (("soft", [x]), ("norm", [x, g]), ("slope", [x, g])):
            e = elaborated(name, rows, columns)
            found.append([np.array(y) for y in driver.build(e.module, "cpu", threads=threads).call(e.entry, args)])
            assert bool(ahead(name, rows, columns)) == (limit == 1)
    for a, b in zip(found[:3], found[3:]):
        assert [y.tobytes() for y in a] == [y.tobytes() for y in b]
