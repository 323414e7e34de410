"""Kernels that read the other way round than they write: tiles (codegen/cpu/tiles.py) and backwards rows, at all ends and for all widths."""
from __future__ import annotations

import engram
import numpy as np
import pytest
from engram.codegen.cpu.program import llvm_text
from engram.codegen.cpu.target import host_target
from engram.compiler import driver
from engram.compiler.ir import TensorType, f32
from engram.frontend import elaborate_function, load

NUMPY = {"f16": "f2", "f32": "f4", "f64": "f8", "i8": "i1", "i32": "i4", "i64": "i8"}
SIZES = [(64, 64), (130, 97), (33, 1000), (257, 16), (16, 257), (1000, 5)]


def numbers(dtype: str, shape) -> np.ndarray:
    return (np.random.default_rng(1).standard_normal(shape) * 50).astype(NUMPY[dtype])


@pytest.mark.parametrize("dtype", NUMPY)
@pytest.mark.parametrize("shape", SIZES)
def test_transposes(dtype, shape):
    x = numbers(dtype, shape)
    np.testing.assert_array_equal(engram.compile(f"fn f(x: {dtype}[a, b]) {{ x.T + x.T }}").f(x), x.T + x.T)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("perm", [(0, 2, 3, 1), (0, 3, 1, 2), (3, 2, 1, 0), (2, 0, 3, 1), (1, 0, 2, 3)])
def test_permutations(perm, threads):
    x = numbers("f32", (7, 18, 20, 37))
    got = engram.compile(f"fn f(x: f32[a, b, c, d]) {{ permute(x, {list(perm)}) * 2 }}", threads=threads).f(x)
    np.testing.assert_array_equal(got, x.transpose(perm) * 2)


def test_a_matrix_and_its_transpose_and_two_transposes_at_once():
    x, y = numbers("f32", (150, 150)), numbers("f32", (150, 150))
    p = engram.compile("fn f(x: f32[a, a], y: f32[a, a]) { x + y.T * x.T }\nfn g(x: f32[a, a], y: f32[a, a]) { where(x.T > y, y, x.T) }")
    np.testing.assert_array_equal(p.f(x, y), x + y.T * x.T)
    np.testing.assert_array_equal(p.g(x, y), np.where(x.T > y, y, x.T))


@pytest.mark.parametrize("dtype", ["f32", "f64", "i8"])
@pytest.mark.parametrize("n", [16, 61, 200])
def test_backwards(dtype, n):
    x = numbers(dtype, (9, n))
    np.testing.assert_array_equal(engram.compile(f"fn f(x: {dtype}[a, b]) {{ flip(x, dims = [1]) }}").f(x), x[:, ::-1])


def test_neither_gathers():
    def text(source: str) -> str:
        e = elaborate_function(load("<test>", source), "f", [TensorType(f32, (512, 512))])
        return llvm_text(driver.lower(e.module, "loop"))
    w = host_target().lanes("f32")
    turned = text("fn f(x: f32[a, b]) { x.T + 0.5 }")
    assert "gather" not in turned and turned.count("shufflevector") >= w * (w.bit_length() - 1)
    assert "gather" not in text("fn f(x: f32[a, b]) { flip(x, dims = [1]) }")


def test_rows_that_lie_across_are_copied_first():
    x = numbers("f32", (300, 200)) / 50
    p = engram.compile("fn f(x: f32[a, b]) { softmax(x.T, dim = 1) }")
    e = np.exp(x.T - x.T.max(1, keepdims=True))
    np.testing.assert_allclose(p.f(x), e / e.sum(1, keepdims=True), rtol=2e-6)
    module = driver.lower(elaborate_function(load("<test>", "fn f(x: f32[a, b]) { softmax(x.T, dim = 1) }"), "f", [TensorType(f32, (300, 200))]).module, "loop")
    assert [op.attrs["extents"] for f in module.funcs.values() for op in f.walk() if op.name == "loop.parallel"] == [[200, 300], [200]]


@pytest.mark.parametrize("equation, shapes", [("a,a->", [(100_000,), (100_000,)]), ("ab,ab->a", [(30, 900), (30, 900)]), ("ab,ba->b", [(300, 90), (90, 300)]),
                                              ("ab,ab->", [(300, 90), (300, 90)]), ("abc,cba->b", [(30, 9, 70), (70, 9, 30)])])
def test_products_of_vectors_are_sums(equation, shapes):
    x, y = (np.random.default_rng(k).standard_normal(s).astype(np.float32) for k, s in enumerate(shapes))
    names = [", ".join(part) for part in equation.split("->")[0].split(",")]
    got = engram.compile(f'fn f(x: f32[{names[0]}], y: f32[{names[1]}]) {{ einsum("{equation}", x, y) }}').f(x, y)
    np.testing.assert_allclose(got, np.einsum(equation, x.astype(np.float64), y.astype(np.float64)), rtol=1e-5, atol=2e-3)


def test_a_lone_sum_is_shared():
    module = driver.lower(elaborate_function(load("<test>", "fn f(x: f32[a, b]) { sum(x) }"), "f", [TensorType(f32, (2048, 2048))]).module, "loop")
    assert [op.attrs["extents"] for f in module.funcs.values() for op in f.walk() if op.name == "loop.parallel"] == [[256], [1]]
