"""Contractions of a few rows inside a kernel: written in place, on every machine description."""
import re

import engram as eg
import numpy as np
import pytest

pytest.importorskip("llvmlite")

from engram.codegen.cpu.compile import optimise_and_emit
from engram.codegen.cpu.program import CpuProgram, llvm_text
from engram.codegen.cpu.target import CpuTarget
from engram.compiler import driver
from engram.compiler.ir import TensorType, f32
from engram.compiler.ir.parser import parse_module
from engram.compiler.ir.types import DTYPES, i64
from engram.frontend import elaborate_function
from engram.session import load_program

RNG = np.random.default_rng(0)
SUMS = {"f32": "f32", "f64": "f64", "i32": "i32", "bf16": "f32"}


def module(m: int, n: int, k: int, dtype: str, along_k: bool, accumulate: bool):
    """Five products, each by one iteration: c[i] = a[i] @ b[i] (or a[i] @ b[i].T), or added to what c[i] was."""
    shape = [n, k] if along_k else [k, n]
    sums = SUMS[dtype]
    return parse_module(f"""module attributes {{stage = "loop"}} {{
  func @f(%a: buf<{dtype}[5,{m},{k}]>, %b: buf<{dtype}[5,{shape[0]},{shape[1]}]>, %c: buf<{sums}[5,{m},{n}]>, %o: buf<{sums}[5,{m},{n}]>) -> ()
      attributes {{n_inputs = 3, n_outputs = 1, donate = [[2, 0]]}} {{
    loop.parallel() {{extents = [5]}} ({{^(%i: i64):
      %ma = scalar.constant() {{value = {m * k}, dtype = i64}} : i64
      %mb = scalar.constant() {{value = {n * k}, dtype = i64}} : i64
      %mc = scalar.constant() {{value = {m * n}, dtype = i64}} : i64
      %ia = scalar.mul(%i, %ma) : i64
      %ib = scalar.mul(%i, %mb) : i64
      %ic = scalar.mul(%i, %mc) : i64
      %va = loop.view(%a, %ia) {{shape = [{m}, {k}], strides = [{k}, 1]}} : buf<{dtype}[{m},{k}]>
      %vb = loop.view(%b, %ib) {{shape = {shape}, strides = [{shape[1]}, 1]}} : buf<{dtype}[{shape[0]},{shape[1]}]>
      %vc = loop.view(%o, %ic) {{shape = [{m}, {n}], strides = [{n}, 1]}} : buf<{sums}[{m},{n}]>
      loop.contract(%vc, %va, %vb) {{out = "mn", lhs = "mk", rhs = "{'nk' if along_k else 'kn'}", accumulate = {str(accumulate).lower()}}}
      scf.yield()}})
    func.return()
  }}
}}
""")


def in_place(text: str) -> bool:
    return not re.search(r"call void @engram_gemm", text)


@pytest.mark.parametrize("machine", ["avx512", "avx2", "generic"])
@pytest.mark.parametrize("dtype", SUMS)
@pytest.mark.parametrize("along_k", [True, False])
def test_values(monkeypatch, machine, dtype, along_k):
    monkeypatch.setenv("ENGRAM_CPU", machine)
    sums = SUMS[dtype]
    whole = [(1, 32, 64), (1, 5, 64), (1, 33, 128), (2, 7, 64), (7, 16, 64)] if along_k else [(1, 64, 32), (1, 64, 5), (1, 192, 33), (2, 64, 7), (7, 64, 16), (1, 16, 19)]
    for m, n, k in whole:
        for accumulate in (False, True):
            loops = module(m, n, k, dtype, along_k, accumulate)
            assert in_place(llvm_text(loops))
            a, b = (RNG.integers(-8, 9, x).astype(DTYPES[dtype].numpy) for x in ((5, m, k), (5, n, k) if along_k else (5, k, n)))
            c = RNG.integers(-9, 9, (5, m, n)).astype(DTYPES[sums].numpy)
            wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
            want = wide_a @ (wide_b.transpose(0, 2, 1) if along_k else wide_b) + accumulate * c       # whole numbers: exact
            for threads in (1, 2):
                p = CpuProgram(loops, threads=threads)
                np.testing.assert_array_equal(p.call("f", [a, b, p.to_device(c)])[0], want)


def test_what_is_left_to_the_gemm():
    """Eight rows, a large matrix, and ends that are no whole vector."""
    for m, n, k, along_k in ((8, 32, 64, True), (1, 64, 1024, False), (1, 32, 65, True), (1, 65, 32, False)):
        assert not in_place(llvm_text(module(m, n, k, "f32", along_k, False)))


def test_code_for_neon_assembles():
    target = CpuTarget("neon", "aarch64-unknown-linux-gnu", "generic", "", 16, 32, True, False)
    for along_k in (True, False):
        texts = llvm_text(module(1, 32, 64, "f32", along_k, True), target).split("\n; ---- next module\n")
        assert in_place("".join(texts)) and "fmla" in "".join(optimise_and_emit(text, target, assembly=True) for text in texts)


def test_attention_of_one_token_calls_no_gemm(tmp_path):
    """With keys and values in a cache of which a run-time length is filled."""
    source = tmp_path / "a.nn"
    source.write_text("fn f(q: f32[H, 1, d], k: f32[H, S, d], v: f32[H, S, d], n: i64) { scaled_dot_product_attention(q, k, v, is_causal = true, length = n) }")
    q, k, v = (RNG.standard_normal(s).astype(np.float32) for s in ((3, 1, 64), (3, 90, 64), (3, 90, 64)))
    types = [TensorType(f32, x.shape) for x in (q, k, v)]
    m = elaborate_function(load_program(str(source)), "f", [*types, TensorType(i64, ())]).module
    assert in_place(llvm_text(driver.lower(m)))
    p = eg.compile(str(source))
    for n in (1, 31, 32, 33, 65, 90):
        s = np.einsum("hid,hjd->hij", q, k[:, :n]).astype(np.float64) / 8
        w = np.exp(s - s.max(-1, keepdims=True))
        np.testing.assert_allclose(p.f(q, k, v, n), w / w.sum(-1, keepdims=True) @ v[:, :n], rtol=1e-4, atol=1e-5)
