"""`p.vmap` from Python: the function for every index along a dim of its arguments."""
import engram as eg
import numpy as np
import pytest

SOURCE = """
fn f(x: f64[n], w: f64[n, m]) -> f64[m] { tanh(x @ w) }
fn slope(x: f64[n], w: f64[n, m]) { grad(fn (w, x) { sum(f(x, w)) })(w, x) }
fn scaled(x: f64[n], s) -> f64 { sum(x) * s }
"""


def test_vmap_is_a_loop():
    p = eg.compile(SOURCE)
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(5, 3)), rng.normal(size=(3, 2))
    np.testing.assert_allclose(p.vmap("f", in_dims=(0, None))(x, w), [p.f(r, w) for r in x], rtol=1e-13)
    np.testing.assert_allclose(p.vmap("f", in_dims=(0, None), out_dims=1)(x, w), np.stack([p.f(r, w) for r in x], 1), rtol=1e-13)
    np.testing.assert_allclose(p.vmap("slope", in_dims=(0, None))(x, w), [p.slope(r, w) for r in x], rtol=1e-13)   # per-example gradients
    ws = rng.normal(size=(5, 3, 2))
    np.testing.assert_allclose(p.vmap("f")(x, ws), [p.f(a, b) for a, b in zip(x, ws)], rtol=1e-13)
    np.testing.assert_allclose(p.vmap("scaled", in_dims=(0, None))(x, 2.0), 2 * x.sum(1))


def test_wrong_dims_are_errors():
    p = eg.compile(SOURCE)
    with pytest.raises(Exception, match="the mapped dimensions differ: 5 and 3"):
        p.vmap("f")(np.ones((5, 3)), np.ones((3, 2)))
    with pytest.raises(Exception, match="1 entry for 2 arguments"):
        p.vmap("f", in_dims=(0,))(np.ones((5, 3)), np.ones((3, 2)))
    with pytest.raises(AttributeError, match="no function 'g'"):
        p.vmap("g")
