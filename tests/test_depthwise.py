"""Convolutions in groups on the CPU: plain sums where a channel meets its own kernel, and no windows in memory for gradients."""
from __future__ import annotations

import engram
import numpy as np
import pytest
from engram.compiler import driver
from engram.compiler.ir import TensorType, f32
from engram.frontend import elaborate_function, load

SOURCE = """
import "std/nn.nn"
fn f(x: f32[b, c, h, w], k: f32[o, i, p, q]) { conv2d(x, k, stride = STRIDE, padding = PADDING, dilation = DILATION, groups = GROUPS) }
fn seen(x: f32[b, c, h, w], k: f32[o, i, p, q], g: f32[b, o, y, z]) -> f32[] { sum(f(x, k) * g) }
fn slopes(x: f32[b, c, h, w], k: f32[o, i, p, q], g: f32[b, o, y, z]) { grad(seen, wrt = ["x", "k"])(x, k, g) }
"""
CASES = {                                              # channels, outputs, groups, kernel, stride, padding, dilation
    "depthwise": (6, 6, 6, (3, 3), 1, 1, 1), "depthwise, stride 2": (6, 6, 6, (3, 3), 2, 1, 1), "depthwise, dilated": (6, 6, 6, (3, 3), 1, 2, 2),
    "two a channel": (4, 8, 4, (3, 5), 1, 1, 1), "groups of three": (6, 4, 2, (3, 3), 1, 0, 1), "one by one": (6, 6, 6, (1, 1), 1, 0, 1),
    "one group, stride 2": (3, 5, 1, (4, 4), 2, 1, 1), "one group, stride 3": (3, 5, 1, (5, 5), 3, 2, 1), "wide": (3, 3, 3, (7, 7), 1, 3, 1),
}


def reference(x, k, groups: int, stride: int, padding: int, dilation: int, g=None):
    """The convolution in f64; with g also the gradients of sum(conv * g)."""
    x, k = x.astype(np.float64), k.astype(np.float64)
    p = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    o, i, m, n = k.shape
    size = [(p.shape[d] - dilation * (s - 1) - 1) // stride + 1 for d, s in ((2, m), (3, n))]
    out, dp, dk = np.zeros((len(x), o, *size)), np.zeros_like(p), np.zeros_like(k)
    for c in range(o):
        first = c // (o // groups) * i
        for a in range(m):
            for b in range(n):
                rows = slice(a * dilation, a * dilation + stride * (size[0] - 1) + 1, stride)
                columns = slice(b * dilation, b * dilation + stride * (size[1] - 1) + 1, stride)
                for j in range(i):
                    out[:, c] += p[:, first + j, rows, columns] * k[c, j, a, b]
                    if g is not None:
                        dp[:, first + j, rows, columns] += g[:, c] * k[c, j, a, b]
                        dk[c, j, a, b] = (g[:, c] * p[:, first + j, rows, columns]).sum()
    inside = slice(padding, -padding or None)
    return out if g is None else (dp[:, :, inside, inside], dk)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_against_the_definition(name, threads):
    c, o, groups, kernel, stride, padding, dilation = CASES[name]
    rng = np.random.default_rng(0)
    x, k = rng.standard_normal((5, c, 19, 23), np.float32), rng.standard_normal((o, c // groups, *kernel), np.float32)
    source = SOURCE.replace("STRIDE", str(stride)).replace("PADDING", str(padding)).replace("DILATION", str(dilation)).replace("GROUPS", str(groups))
    p = engram.compile(source, threads=threads)
    expected = reference(x, k, groups, stride, padding, dilation)
    np.testing.assert_allclose(p.f(x, k), expected, rtol=1e-5, atol=1e-4)
    g = rng.standard_normal(expected.shape).astype(np.float32)
    for got, want in zip(p.slopes(x, k, g), reference(x, k, groups, stride, padding, dilation, g)):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


def test_a_channel_and_its_kernel_are_no_matrix_product():
    source = SOURCE.replace("STRIDE", "1").replace("PADDING", "1").replace("DILATION", "1").replace("GROUPS", "64")
    types = [TensorType(f32, s) for s in ((8, 64, 28, 28), (64, 1, 3, 3), (8, 64, 28, 28))]

    def products(name: str, n: int) -> int:
        module = driver.lower(elaborate_function(load("<test>", source), name, types[:n]).module, "loop")
        return sum(op.name == "loop.contract" for f in module.funcs.values() for op in f.walk())
    assert products("f", 2) == 0
    assert products("slopes", 3) == 1, "the kernel's gradient, which sums over the images"
