"""The pass stream-stores: which stores go past the caches, and that what they write is there for whoever reads it next."""
from __future__ import annotations

import numpy as np
import pytest
from engram.compiler import driver
from engram.compiler.ir import TensorType, f32
from engram.frontend import elaborate_function, load
from engram.passes import stream_stores

SOURCE = """
fn norm(x: f32[r, c]) -> f32[r, c] { x * rsqrt(mean(x * x, dim = -1, keepdim = true) + 1e-5) }
fn twice(x: f32[r, c]) -> f32[r, c] { sum(norm(x) @ norm(x).T, dim = 0, keepdim = true).T * norm(x) }
fn total(x: f32[r, c]) -> f32[r] { sum(x, dim = 1) }
"""


def lowered(name: str, rows: int, columns: int):
    e = elaborate_function(load("<test>", SOURCE), name, [TensorType(f32, (rows, columns))])
    return driver.lower(e.module, "loop"), e


def marked(module) -> int:
    return sum(bool(op.attrs.get("stream")) for f in module.funcs.values() for op in f.walk() if op.name == "loop.store")


def test_large_results_are_streamed_and_small_ones_are_not():
    assert marked(lowered("norm", 4096, 2048)[0]) == 1
    assert marked(lowered("norm", 512, 2048)[0]) == 0
    assert marked(lowered("total", 16384, 2048)[0]) == 0, "what is large is only read"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("columns", [64, 48, 61])
def test_streamed_results_are_there_for_the_next_kernel(monkeypatch, tmp_path, threads, columns):
    monkeypatch.setenv("ENGRAM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(stream_stores, "STREAM_BYTES", 1 << 10)
    module, e = lowered("twice", 96, columns)
    assert marked(module)
    x = np.random.default_rng(0).standard_normal((96, columns), np.float32)
    got = driver.build(e.module, "cpu", threads=threads).call(e.entry, [x])[0]
    y = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(got, (y @ y.T).sum(0)[:, None] * y, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("columns", [64, 61])
def test_whole_vectors_go_past_the_caches_wherever_rows_begin(monkeypatch, columns):
    from engram.codegen.cpu.program import llvm_text
    from engram.codegen.cpu.target import host_target
    monkeypatch.setattr(stream_stores, "STREAM_BYTES", 1 << 10)
    text = llvm_text(lowered("norm", 96, columns)[0])
    if columns % 16 and not host_target().masked:
        assert "!nontemporal" not in text, "rows begin anywhere, and without masks nothing leads up to a whole vector"
    else:
        assert text.count("!nontemporal") == 1 and ("sfence" in text) == host_target().x86


def test_what_a_kernel_reads_or_a_caller_gives_is_not_streamed(monkeypatch):
    monkeypatch.setattr(stream_stores, "STREAM_BYTES", 1)
    from engram.compiler.ir.parser import parse_module
    module = parse_module("""module attributes {stage = "loop"} {
  func @inner(%a: buf<f32[64]>, %r: buf<f32[64]>) -> () attributes {n_inputs = 1, n_outputs = 1} {
    loop.parallel() {extents = [64]} ({
    ^(%i: i64):
      %x = loop.load(%a, %i) : f32
      loop.store(%x, %r, %i)
      scf.yield()
    })
    func.return()
  }
  func @outer(%a: buf<f32[64]>, %b: buf<f32[64]>, %r: buf<f32[64]>, %s: buf<f32[64]>) -> () attributes {n_inputs = 2, n_outputs = 2, donate = [[1, 1]]} {
    loop.call(%a, %r) {callee = "inner"}
    loop.parallel() {extents = [64]} ({
    ^(%i: i64):
      %x = loop.load(%r, %i) : f32
      loop.store(%x, %r, %i)
      loop.store(%x, %s, %i)
      scf.yield()
    })
    func.return()
  }
}""")
    assert marked(stream_stores.StreamStores().apply(module)) == 0
