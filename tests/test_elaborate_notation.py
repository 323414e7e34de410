"""Index notation against NumPy; what it becomes; its errors."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engram.compiler import driver
from engram.compiler.diagnostics import CompileError
from engram.compiler.ir import TensorType
from engram.compiler.ir.types import dtype_of
from engram.compiler.ir.verifier import verify
from engram.frontend import check, elaborate_function, elaborate_grad, load

PATH = Path(__file__).parent / "programs" / "index.nn"
R = np.random.default_rng(0)


def A(*shape):
    return R.normal(size=shape).astype(np.float32)


def elaborated(name, *args, text=None, how=elaborate_function):
    types = [TensorType(dtype_of(a.dtype), a.shape) if isinstance(a, np.ndarray) else a for a in args]
    e = how(load("index.nn", text or PATH.read_text()), name, types)
    verify(e.module)
    return e


def run(name, *args, text=None, how=elaborate_function):
    e = elaborated(name, *args, text=text, how=how)
    out = driver.build(e.module, "interp").call(e.entry, [a for a in args if isinstance(a, np.ndarray)])
    return e.pack([np.asarray(o) for o in out])


def ops(e):
    return [op.name for op in e.module.walk()]


def close(got, want):
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def softmax(s):
    z = np.exp(s - s.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def test_matmul_is_one_contraction():
    a, b = A(3, 4), A(4, 5)
    close(run("matmul", a, b), a @ b)
    assert ops(elaborated("matmul", a, b)).count("tensor.dot_general") == 1
    assert not {"tensor.mul", "tensor.reduce_sum"} & set(ops(elaborated("matmul", a, b)))


def test_convolutions_and_pools():
    x, w = A(2, 3, 10), A(4, 3, 3)
    close(run("conv1d_dilated", x, w, 2), sum(np.einsum("bcl,oc->bol", x[:, :, 2 * r:2 * r + 6], w[:, :, r]) for r in range(3)))
    assert {"tensor.windows", "tensor.dot_general"} <= set(ops(elaborated("conv1d_dilated", x, w, 2)))
    xp = np.pad(x, [(0, 0), (0, 0), (1, 1)])
    close(run("conv1d_same", x, w), sum(np.einsum("bcl,oc->bol", xp[:, :, r:r + 10], w[:, :, r]) for r in range(3)))
    x = A(2, 3, 5, 6)
    close(run("max_pool", x, 2), x[:, :, :4].reshape(2, 3, 2, 2, 3, 2).max((3, 5)))


def test_attention_with_biases():
    q, k, v, table = A(2, 3, 4), A(2, 5, 4), A(2, 5, 4), A(2, 6)
    i, j = np.arange(3)[:, None], np.arange(5)
    s = np.einsum("htd,hsd->hts", q, k) / 2 - (2.0 ** (-8 * (np.arange(2) + 1) / 2))[:, None, None] * abs(i - j)
    close(run("alibi", q, k, v), softmax(np.where(j <= i, s, -np.inf)) @ v)
    k = A(2, 3, 4)
    close(run("relative", q, k, table), np.einsum("htd,hsd->hts", q, k) + table[:, np.clip(i - np.arange(3) + 3, 0, 5)])


def test_gathers_triangles_and_run_time_ranges():
    logits, y, z = A(4, 3), np.array([0, 2, 1, 1]), A(6)
    close(run("pick", logits, y), logits[np.arange(4), y])
    close(run("cumsum", z), z.cumsum())
    u, w = A(3, 4), A(5, 4)
    close(run("pairwise", u, w), np.sqrt(((u[:, None] - w[None]) ** 2).sum(-1)))
    q, ks, vs = A(2, 4), A(2, 5, 4), A(2, 5, 4)
    want = np.einsum("hs,hsd->hd", softmax(np.einsum("hd,hsd->hs", q, ks)[:, :3] / 2), vs[:, :3])
    close(run("decode", q, ks, vs, np.array(3)), want)


MORE = """
fn trace(a: float[n, n]) { sum[i](a[i, i]) }
fn diagonal(a: float[n, n]) { tensor[i](a[i, i]) }
fn transpose(a: float[n, m]) { tensor[j, i](a[i, j]) }
fn shift(x: float[n]) -> float[n] { tensor[i](if i > 0 { x[i - 1] } else { 0 }) }
fn inner(x: float[n]) { tensor[i in 1..n - 1](x[i - 1] + x[i + 1]) }
fn every(x: float[n, m]) { tensor[i](x[i, 0] + mean[j](x[i, j]) + prod[j](x[i, j]) + min[j](x[i, j])) }
fn counts(x: float[n], k) { tensor[c in 0..k](sum[i in 0..n](i64(x[i] == c))) }
fn bilinear(a: float[b, n], w: float[o, n, m], c: float[b, m]) { tensor[s, o](sum[i, j](a[s, i] * w[o, i, j] * c[s, j])) }
fn outside(a: float[n], k) { tensor[i in 0..n](a[i] + k * i) }
fn energy(a: float[n, m]) { sum[i, j](a[i, j] * a[i, j]) }
"""


def test_more_forms():
    a, x, m = A(4, 4), A(6), A(3, 5)
    close(run("trace", a, text=MORE), np.asarray(np.trace(a)))
    close(run("diagonal", a, text=MORE), np.diag(a))
    close(run("transpose", m, text=MORE), m.T)
    close(run("shift", x, text=MORE), np.concatenate([[0], x[:-1]]).astype(np.float32))
    close(run("inner", x, text=MORE), x[:-2] + x[2:])
    close(run("every", m, text=MORE), m[:, 0] + m.mean(1) + m.prod(1) + m.min(1))
    close(run("counts", np.float32([0, 2, 2, 1, 2]), 3, text=MORE), np.array([1, 1, 3]))
    b, w, c = A(2, 3), A(4, 3, 5), A(2, 5)
    close(run("bilinear", b, w, c, text=MORE), np.einsum("bn,onm,bm->bo", b, w, c))
    close(run("outside", x, 2, text=MORE), x + 2 * np.arange(6, dtype=np.float32))
    close(run("energy", m, text=MORE, how=elaborate_grad), 2 * m)


@pytest.mark.parametrize("text, wanted", [
    ("fn f(a: f32[n, k], b: f32[m, j]) { tensor[i, l](sum[r](a[i, r] * b[r, l])) }", "index `r` runs over k (dimension 1 of `a`)"),
    ("fn f(a: f32[4]) { tensor[i in 0..5](a[i]) }", "`i` runs from 0 to 4, outside of dimension 0 of f32[4]"),
    ("fn f(a: f32[n]) { tensor[i](1.0) }", "the range of index `i` cannot be worked out"),
    ("fn f(a: f32[n]) { tensor[i, i](a[i]) }", "index `i` is named twice"),
    ("fn f(a: f32[n, m]) { tensor[i](a[i]) }", "every dimension of f32[n, m] gets a subscript"),
    ("fn f(a: f32[n]) { tensor[i if i > 2](a[i]) }", "no guards, no run-time ranges"),
    ("fn f(a: f32[n]) { sum[i] }", "index notation needs its expression in parentheses"),
])
def test_errors(text, wanted):
    with pytest.raises(CompileError) as e:
        check(load("t.nn", text + "\n"))
    assert wanted in str(e.value)
