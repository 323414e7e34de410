"""topk, which keeps the first few of each row's order in one pass: the results of the full stable sort, and when it is taken."""
from __future__ import annotations

import engram
import numpy as np
import pytest
from engram.codegen.opencl import device as devices
from engram.compiler import driver
from engram.compiler.ir import Module, TensorType, bf16, bool_, f16, f32, f64, i8, i16, i32, i64, u8, u32, u64
from engram.compiler.ops import Sample
from engram.frontend import elaborate_function, load
from engram.interp.compare import assert_close
from helpers import make_op_module

DTYPES = (f64, f32, bf16, f16, i64, i32, i16, i8, u64, u32, u8, bool_)


def module(dtype, shape, dim: int, keep: int, descending: bool) -> Module:
    text = f"{dtype}[{','.join(map(str, shape))}]"
    return make_op_module("tensor.sort", Sample(((text, 0, 1),), {"dim": dim, "descending": descending, "keep": keep}))


def difficult(dtype, shape, seed: int) -> np.ndarray:
    """Many ties; zeros of both signs, infinities and NaN among floats, the extremes among integers."""
    rng = np.random.default_rng(seed)
    if dtype.is_bool:
        return rng.integers(0, 2, shape).astype(bool)
    if not dtype.is_float:
        lo, hi = max(dtype.min, -9), min(dtype.max, 9)
        return np.where(rng.random(shape) < 0.1, rng.choice(np.array([dtype.min, dtype.max], dtype.numpy), shape), rng.integers(lo, hi, shape).astype(dtype.numpy))
    x = rng.integers(-20, 20, shape) / 4
    special = rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0], shape)
    return np.where(rng.random(shape) < 0.2, special, x).astype(dtype.numpy)


def expected(x: np.ndarray, dim: int, keep: int, descending: bool):
    """By numpy's stable sort, to which NaN is the largest; descending order is that of the reversed row, reversed."""
    y = x if x.dtype.kind in "biuf" else x.astype(np.float32)
    if descending:
        order = np.flip(x.shape[dim] - 1 - np.argsort(np.flip(y, dim), dim, kind="stable"), dim)
    else:
        order = np.argsort(y, dim, kind="stable")
    order = order.take(range(keep), dim)
    return np.take_along_axis(x, order, dim), order


def check(m: Module, x: np.ndarray, dim: int, keep: int, descending: bool, backend: str = "cpu", threads: int = 2) -> None:
    got = driver.build(m, backend, **({"threads": threads} if backend == "cpu" else {})).call("f", [x])
    for a, e in zip(got, expected(x, dim, keep, descending)):
        assert_close(np.asarray(a), e, bits_exact=True, what=f"{x.dtype} {x.shape} {dim} {keep} {descending}")


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype, descending):
    for shape, dim, keep in (((3, 700), 1, 5), ((3, 700), 1, 21), ((3, 700), 1, 70), ((40, 30), 1, 3), ((30, 40), 0, 3), ((3, 90, 2), 1, 17)):
        check(module(dtype, shape, dim, keep, descending), difficult(dtype, shape, 3), dim, keep, descending)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("keep", [0, 1, 2, 8, 9, 16, 17, 64, 65, 150, 256, 257, 300])
def test_every_number_kept(keep, threads):
    for n in (300, 600):
        for descending in (False, True):
            check(module(f32, (5, n), 1, keep, descending), difficult(f32, (5, n), keep), 1, keep, descending, threads=threads)


@pytest.mark.parametrize("n", [1, 2, 3, 16, 17, 63, 64, 65, 66, 127, 128, 129, 130, 257])
def test_rows_of_every_length(n):
    for keep in {1, n // 2, min(n, 20), n}:
        for shape, dim in (((7, n), 1), ((n, 7), 0), ((n,), 0)):
            check(module(f32, shape, dim, keep, True), difficult(f32, shape, n), dim, keep, True)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("keep", [3, 40])
def test_orders(keep, descending):
    """In order, against it, all equal, all NaN, all of the value that nothing comes after."""
    up = np.arange(1000, dtype=np.float32)
    rows = np.stack([up, -up, 0 * up, up * np.nan, 0 * up - np.inf, 0 * up + np.inf, np.where(up % 300 == 7, np.nan, -np.inf), np.where(up < 990, np.nan, up)])
    check(module(f32, rows.shape, 1, keep, descending), rows.astype(np.float32), 1, keep, descending)


def test_nothing_to_sort():
    for shape, dim, keep in (((0, 100), 1, 5), ((4, 0), 1, 0), ((100, 0), 0, 5)):
        check(module(f32, shape, dim, keep, True), np.zeros(shape, np.float32), dim, keep, True)


def test_of_a_transposed_array_and_of_one_number():
    p = engram.compile('fn t(x: f32[a, b]) { topk(transpose(x, 0, 1), 3) }\nfn one() { topk(full((2, 900), 1.5), 4) }')
    x = difficult(f32, (600, 5), 1)
    for a, e in zip(p.t(x), expected(np.ascontiguousarray(x.T), 1, 3, True)):
        assert_close(np.asarray(a), e, bits_exact=True)
    v, i = p.one()
    assert np.asarray(v).tolist() == [[1.5] * 4] * 2 and np.asarray(i).tolist() == [[0, 1, 2, 3]] * 2


def test_used_inside_a_program():
    """The results meet other ops, and may be results themselves as well."""
    p = engram.compile("fn f(x: f32[a, b]) { let v, i = topk(x, 300); (v, sum(v * 2.0, dim = 1), i[:, 1:3]) }")
    x = np.random.default_rng(0).standard_normal((4, 400)).astype(np.float32)
    v, s, i = map(np.asarray, p.f(x))
    e, order = expected(x, 1, 300, True)
    assert np.array_equal(v, e) and np.array_equal(i, order[:, 1:3])
    assert np.allclose(s, 2 * e.sum(1), atol=1e-3)


def loop_names(source: str, type: TensorType) -> list[str]:
    m = driver.lower(elaborate_function(load("<test>", source), "f", [type]).module, "loop")
    return [op.name for f in m.funcs.values() for op in f.walk()]


@pytest.mark.parametrize("shape, k, dim, private", [((8, 1000), 5, 1, True), ((8, 100), 5, 1, False), ((1000, 8), 5, 0, False), ((8, 1000), 200, 1, True)])
def test_one_kernel_and_no_sort(shape, k, dim, private):
    """A long row's list lies in private memory; few of short or strided rows are scalars, so that rows may be lanes."""
    names = loop_names(f"fn f(x: f32[a, b]) {{ topk(x, {k}, dim = {dim}) }}", TensorType(f32, shape))
    assert "loop.sort" not in names and names.count("loop.parallel") == 1 and ("loop.alloc" in names) == private


@pytest.mark.parametrize("call", ["topk(x, 300)", "topk(x, 600)", "topk(x, 1000)", "sort(x)"])
def test_many_are_sorted(call):
    assert "loop.sort" in loop_names(f"fn f(x: f32[a, b]) {{ {call} }}", TensorType(f32, (8, 1000)))


def test_gradient():
    p = engram.compile("fn f(x: f32[a, b], g: f32[a, k]) { sum(topk(x, k)[0] * g) }")
    rng = np.random.default_rng(5)
    x, g = rng.standard_normal((6, 500)).astype(np.float32), rng.standard_normal((6, 7)).astype(np.float32)
    e = np.zeros_like(x)
    np.put_along_axis(e, expected(x, 1, 7, True)[1], g, 1)
    assert np.array_equal(np.asarray(p.grad("f", wrt="x")(x, g)), e)


def test_over_examples():
    p = engram.compile("fn f(x: f32[n]) { topk(x, 3) }")
    x = difficult(f32, (5, 300), 2)
    for a, e in zip(p.vmap("f")(x), expected(x, 1, 3, True)):
        assert_close(np.asarray(a), e, bits_exact=True)


@pytest.mark.skipif(not devices.available()[0], reason="no OpenCL device")
def test_opencl():
    for dtype, shape, dim, keep in ((f32, (6, 700), 1, 5), (f32, (6, 700), 1, 40), (i32, (90, 6), 0, 3), (f32, (3, 70), 1, 60)):
        check(module(dtype, shape, dim, keep, True), difficult(dtype, shape, 4), dim, keep, True, "opencl")
