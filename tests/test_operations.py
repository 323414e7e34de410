"""Operations whose meaning a formula or another operation states: adjoints, pools at ties, scatters, losses, rotary positions.

tests/parity compares far more of them with PyTorch, where that is installed.
"""
import engram as eg
import numpy as np
import pytest
from engram.compiler.diagnostics import CompileError

RNG = np.random.default_rng(0)


def f32(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def run(source, *args, backend="cpu", **kw):
    return eg.compile(source, backend=backend).f(*args, **kw)


@pytest.mark.parametrize("backend", ["cpu", "interp"])
def test_transposed_convolution_is_the_adjoint_of_convolution(backend):
    """<conv(x), y> = <x, conv_transpose(y)> for every stride, padding and dilation that fits."""
    x, w, y = f32(2, 4, 9, 8), f32(6, 2, 3, 2), f32(2, 6, 5, 4)
    p = eg.compile("""
fn a(x: f32[B, 4, 9, 8], w: f32[6, 2, 3, 2]) { conv2d(x, w, stride = 2, padding = [1, 0], groups = 2) }
fn b(y: f32[B, 6, 5, 4], w: f32[6, 2, 3, 2]) { conv_transpose2d(y, w, stride = 2, padding = [1, 0], groups = 2) }
""", backend=backend)
    out = p.a(x, w)
    assert out.shape == y.shape
    back = p.b(y, w)
    assert back.shape == x.shape
    assert np.isclose(np.vdot(out, y), np.vdot(x, back), rtol=1e-4)


def test_fold_is_the_adjoint_of_unfold():
    x = f32(2, 3, 6, 5)
    p = eg.compile("""
fn a(x: f32[B, C, 6, 5]) { unfold(x, [2, 3], padding = 1, stride = [2, 1]) }
fn b(c: f32[B, k, L]) { fold(c, [6, 5], [2, 3], padding = 1, stride = [2, 1]) }
""")
    cols = p.a(x)
    y = f32(*cols.shape)
    assert np.isclose(np.vdot(cols, y), np.vdot(x, p.b(y)), rtol=1e-4)


@pytest.mark.parametrize("backend", ["cpu", "interp"])
def test_a_max_pool_sends_its_gradient_to_the_first_maximum(backend):
    x = np.array([[1, 1, 0, 0], [1, 1, 0, 2]], np.float32)
    g = np.array([[10, 20]], np.float32)
    y, dx = eg.compile("fn f(x: f32[2, 4]) { max_pool2d(x, 2) }", backend=backend).vjp("f")(x, cotangent=g)
    assert y.tolist() == [[1, 2]]
    assert dx.tolist() == [[10, 0, 0, 0], [0, 0, 0, 20]]


def test_pool_indices_and_ceil_mode():
    x = np.array([[3, 1, 2, 5, 4]], np.float32)
    y, i = run("fn f(x: f32[1, 5]) { max_pool1d(x, 2, ceil_mode = true, return_indices = true) }", x)
    assert y.tolist() == [[3, 5, 4]] and i.tolist() == [[0, 3, 4]]
    y = run("fn f(x: f32[1, 5]) { avg_pool1d(x, 2, padding = 1, count_include_pad = false) }", x)
    assert y.tolist() == [[3, 1.5, 4.5]]


@pytest.mark.parametrize("backend", ["cpu", "interp"])
def test_of_equal_indices_the_last_is_written(backend):
    y = run("fn f(x: f32[4], i: i64[n], s: f32[n]) { scatter(x, 0, i, s) }", np.zeros(4, np.float32), np.array([1, 3, 1]), np.array([5, 6, 7], np.float32),
            backend=backend)
    assert y.tolist() == [0, 7, 0, 6]
    y = run("fn f(x: f32[3, 2], i: i64[n], s: f32[n, 2]) { index_copy(x, 0, i, s) }", np.zeros((3, 2), np.float32), np.array([2, 2]),
            np.array([[1, 2], [3, 4]], np.float32), backend=backend)
    assert y.tolist() == [[0, 0], [0, 0], [3, 4]]


def test_take_counts_from_the_end():
    x = np.arange(6, dtype=np.float32)
    assert run("fn f(x: f32[n], i: i64[k]) { take(x, i, 0) }", x, np.array([-1, 0, -6])).tolist() == [5, 0, 0]


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.25])
def test_weighted_cross_entropy(smoothing):
    x, y, w = f32(5, 3), np.array([0, 2, 1, 2, 0]), np.array([1, 2, 0.5], np.float32)
    got = run(f"fn f(x: f32[B, c], y: i64[B], w: f32[c]) {{ cross_entropy(x, y, weight = w, ignore_index = 1, label_smoothing = {smoothing}) }}", x, y, w)
    z, keep = log_softmax(x.astype(np.float64)), y != 1
    rows = -(1 - smoothing) * z[np.arange(5), y] * w[y] - smoothing / 3 * (z * w).sum(-1)
    assert np.isclose(got, rows[keep].sum() / w[y][keep].sum(), rtol=1e-5)


def test_classes_in_another_dimension():
    x, y = f32(2, 3, 4), RNG.integers(0, 3, (2, 4))
    p = eg.compile("fn a(x: f32[B, c, T], y: i64[B, T]) { cross_entropy(x, y, dim = 1) }\nfn b(x: f32[B, T, c], y: i64[B, T]) { cross_entropy(x, y) }")
    assert np.isclose(p.a(x, y), p.b(np.ascontiguousarray(x.transpose(0, 2, 1)), y), rtol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_positions(interleaved):
    x, pos = f32(2, 3, 5, 8), 7
    got = run(f"fn f(x: f32[.., T, k], pos: i64) {{ rotary_embedding(x, pos, interleaved = {str(interleaved).lower()}) }}", x, pos)
    z = x[..., 0::2] + 1j * x[..., 1::2] if interleaved else x[..., :4] + 1j * x[..., 4:]
    z = z * np.exp(1j * (pos + np.arange(5))[:, None] * 10000.0 ** (-np.arange(4) / 4))
    want = np.stack([z.real, z.imag], -1).reshape(x.shape) if interleaved else np.concatenate([z.real, z.imag], -1)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_diagonals():
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    for k in range(-3, 5):
        assert run(f"fn f(x: f32[3, 4]) {{ diagonal(x, {k}) }}", x).tolist() == np.diagonal(x, k).tolist()
        assert run(f"fn f(x: f32[3]) {{ diag(x, {k}) }}", x[0, :3]).tolist() == np.diag(x[0, :3], k).tolist()


@pytest.mark.parametrize("source, message", [
    ('einsum("ij->i", x, axis = 1)', "`einsum` has no parameter `axis`"), ("zeros(3, dtyp = f32)", "did you mean `dtype`"), ("einsum()", "needs argument `equation`"),
    ('conv1d(x, x, padding = "sam")', 'needs weights'), ("avg_pool1d(x, 2, divisor_override = 0)", "cannot be 0"), ("max_pool1d(x, 2, padding = 2)", "more than half"),
    ("cross_entropy(x, i64(x))", "drops the last dimension|need class indices"), ("scatter(i32(x), 0, i64(x), 1)", "writes floats only"),
    ("rotary_embedding(x)", "is odd"), ("group_norm(x, 2)", "do not divide into 2 groups"), ("pad(x, [-3, -3], \"reflect\")", "takes away more"),
])
def test_mistakes_are_diagnostics(source, message):
    with pytest.raises(CompileError, match=message):
        run(f"fn f(x: f32[3, 5]) {{ {source} }}", f32(3, 5))
