"""Reductions over rows go along the rows, in chunks, with what else is done to them: one pass over memory, the interpreter's numbers."""
from __future__ import annotations

import numpy as np
import pytest
from engram.compiler import driver
from engram.compiler.ir import TensorType, f32
from engram.compiler.pipelines import PIPELINES
from engram.frontend import elaborate_function, load
from engram.passes import fuse_groups

SOURCE = """
fn norm(x: f32[r, c], w: f32[c], b: f32[c], g: f32[r, c]) -> f32[] { sum(layer_norm(x, [c], w, b) * g) }
fn norm_grad(x: f32[r, c], w: f32[c], b: f32[c], g: f32[r, c]) { grad(norm, wrt = ["x", "w", "b"])(x, w, b, g) }
fn means(x: f32[a, b, c]) -> f32[c] { mean(x * x, dim = [0, 1]) + 1 }
fn most(x: f32[r, c], y: f32[c]) -> f32[r, c] { let m = amax(x, dim = 0); exp(x - m) * y + sum(x, dim = 1, keepdim = true) }
fn both(x: f32[r, c]) { (sum(x, dim = 0), amax(x, dim = 0), softmax(x, dim = 1)) }
"""


def elaborated(name: str, *shapes: tuple[int, ...]):
    return elaborate_function(load("<test>", SOURCE), name, [TensorType(f32, s) for s in shapes])


def chunked(module) -> list:
    return [op for f in module.funcs.values() for op in f.walk() if op.name == "tensor.fused" and "chunks" in op.attrs]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Decisions of large arrays at sizes that the interpreter manages; nothing from a cache that was filled under others."""
    monkeypatch.setenv("ENGRAM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(fuse_groups, "COLUMN_SIZE", 1 << 9)
    monkeypatch.setattr(fuse_groups, "COLUMN_CHUNKS", 4)
    monkeypatch.setattr(fuse_groups, "SPLIT_KEPT", 8)


def test_a_norms_gradient_reads_its_arrays_once():
    shapes = [(4096, 512), (512,), (512,), (4096, 512)]
    group, = chunked(driver.lower(elaborated("norm_grad", *shapes).module, "fused"))
    assert group.attrs["rows"] == 1 and len(group.results) == 3
    loops = driver.lower(elaborated("norm_grad", *shapes).module, "loop")
    assert sum(op.name == "loop.parallel" for f in loops.funcs.values() for op in f.walk()) == 2, "the rows, and the sums of their chunks"


def test_small_reductions_and_those_for_gpus_stay_as_they_are():
    assert not chunked(driver.lower(elaborated("means", (4, 16, 128)).module, "fused"))
    e = elaborated("means", (64, 256, 128))
    assert chunked(driver.lower(e.module, "fused"))
    fuse = next(p for p in PIPELINES["gpu"]() if p.name == "fuse")
    assert not fuse.along_rows and next(p for p in PIPELINES["loop"]() if p.name == "fuse").along_rows


@pytest.mark.parametrize("name, shapes", [
    ("norm_grad", [(33, 32), (32,), (32,), (33, 32)]), ("norm_grad", [(64, 48), (48,), (48,), (64, 48)]), ("means", [(5, 7, 33)]), ("means", [(8, 8, 16)]),
    ("most", [(40, 17), (17,)]), ("both", [(37, 40)])])
def test_numbers_are_the_interpreters_and_the_same_for_any_number_of_threads(small, name, shapes):
    e = elaborated(name, *shapes)
    assert chunked(driver.lower(e.module, "fused"))
    rng = np.random.default_rng(0)
    args = [rng.standard_normal(s, np.float32) for s in shapes]
    want = driver.build(e.module, "interp").call(e.entry, args)
    one, two, three = (driver.build(e.module, "cpu", threads=n).call(e.entry, args) for n in (1, 2, 3))
    for w, a, b, c in zip(want, one, two, three):
        np.testing.assert_allclose(a, w, rtol=2e-5, atol=2e-5)
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
