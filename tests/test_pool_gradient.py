"""The gradient of relu and a max pool behind it: the mask is one of maxima, borders are zeros behind the windows, and every bit is the interpreter's."""
import engram as eg
import numpy as np
import pytest
from engram.compiler import driver
from engram.frontend import elaborate_function, load

PROGRAM = """
import "std/nn.nn"
fn f(x: f32[B, C, H, W], y: f32[B, C, P, Q]) -> f32 { sum(max_pool2d(relu(x), %s) * y) }
fn g(x: f32[B, C, H, W], y: f32[B, C, P, Q]) { grad(f, wrt = "x")(x, y) }
"""


def arrays(size, window, stride, seed=0):
    """Few different numbers, so that windows have ties, and all of some windows are negative."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-3, 3, (2, 3, *size)).astype(np.float32)
    out = [(n - window) // stride + 1 for n in size]
    return x, rng.normal(size=(2, 3, *out)).astype(np.float32)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (11, 11), (5, 40)])
@pytest.mark.parametrize("window, stride", [(2, 2), (3, 3), (2, 3), (3, 2)])
def test_bits(size, window, stride):
    text = PROGRAM % (window if stride == window else f"{window}, stride = {stride}")
    x, y = arrays(size, window, stride)
    got, want = (eg.compile(text, backend=b).g(x, y) for b in ("cpu", "interp"))
    if stride >= window:
        np.testing.assert_array_equal(got, want)               # each element is one of y's or zero
    else:
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_not_a_number_wins_its_window():
    x, y = arrays((9, 9), 2, 2)
    x[0, 0, 2, 3] = x[1, 2, 8, 8] = np.nan                     # one in a window, one in the border
    x[0, 1] = -1                                               # nothing passes relu
    got, want = (eg.compile(PROGRAM % 2, backend=b).g(x, y) for b in ("cpu", "interp"))
    np.testing.assert_array_equal(got, want)
    assert got[0, 0, 2, 3] == y[0, 0, 1, 1] and not got[0, 1].any() and not got[:, :, 8].any()


def kernels(text, **dims):
    """The extents of the kernels of g."""
    from engram.compiler.ir import TensorType, f32
    b, c, h, w, p, q = (dims[k] for k in "bchwpq")
    e = elaborate_function(load("test.nn", text), "g", [TensorType(f32, (b, c, h, w)), TensorType(f32, (b, c, p, q))])
    m = driver.lower(e.module, "loop")
    return [op.attrs["extents"] for op in m.funcs[e.entry].body.ops if op.name == "loop.parallel"]


def test_the_mask_is_of_maxima():
    import math
    sizes = [math.prod(k) for k in kernels(PROGRAM % 2, b=8, c=8, h=26, w=26, p=13, q=13)]
    assert sizes.count(8 * 8 * 26 * 26) <= 1                   # relu itself; neither its mask nor the windows' places
    sizes = [math.prod(k) for k in kernels(PROGRAM % 2, b=8, c=8, h=11, w=11, p=5, q=5)]
    assert 8 * 8 * 10 * 10 in sizes or 8 * 8 * 5 * 5 in sizes  # a border costs zeros, no reads at clamped places
