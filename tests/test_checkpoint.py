"""checkpoint(f): the same values and gradients, less memory kept; recurrent layers of the library against their formulas."""
import engram as eg
import numpy as np
import pytest
from engram.compiler.driver import lower
from engram.compiler.ir import TensorType, f64
from engram.frontend import elaborate_grad, load

CELL = """
fn cell(s: f64[B, h], u: f64[B, h], w: f64[h, h]) -> f64[B, h] { tanh(sin(s @ w) + tanh(u) * exp(-s * s)) }
fn both(s: f64[B, h], i: i64[B]) -> (f64[B, h], i64[B]) { (tanh(s) * f64(i)[:, none], i + 1) }
fn kept(us: f64[T, B, h], w: f64[h, h]) -> f64 { sum(scan u in us with s = zeros(B, h, dtype = f64) { cell(s, u, w) }) }
fn again(us: f64[T, B, h], w: f64[h, h]) -> f64 { sum(scan u in us with s = zeros(B, h, dtype = f64) { checkpoint(cell)(s, u, w) }) }
fn mixed(s: f64[B, h], i: i64[B]) -> f64 { let (y, k) = checkpoint(both)(s, i); sum(y * f64(k)[:, none]) }
fn mixed_kept(s: f64[B, h], i: i64[B]) -> f64 { let (y, k) = both(s, i); sum(y * f64(k)[:, none]) }
"""


@pytest.mark.parametrize("backend", ["interp", "cpu"])
def test_checkpointing_changes_no_gradient(backend):
    p = eg.compile(CELL, backend=backend)
    rng = np.random.default_rng(0)
    us, w = rng.standard_normal((6, 2, 3)), rng.standard_normal((3, 3))
    for a, b in zip(p.grad("kept", wrt=["us", "w"])(us, w), p.grad("again", wrt=["us", "w"])(us, w)):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
    s, i = us[0], np.array([2, 5])
    assert p.mixed(s, i) == p.mixed_kept(s, i)
    np.testing.assert_allclose(p.grad("mixed", wrt="s")(s, i), p.grad("mixed_kept", wrt="s")(s, i), rtol=1e-12)


def test_a_checkpointed_scan_keeps_its_carries_only():
    program = load("<ck>", CELL)
    types = [TensorType(f64, (200, 4, 8)), TensorType(f64, (8, 8))]
    arena = {}
    for name in ("kept", "again"):
        e = elaborate_grad(program, name, types, wrt="w")
        arena[name] = lower(e.module, "loop").funcs[e.entry].attrs["arena"]
    assert arena["again"] < 0.6 * arena["kept"]


def test_captured_values_are_refused():
    p = eg.compile("fn f(x: f32[n], w: f32[n]) -> f32 { sum(checkpoint(fn (v) { v * w })(x)) }")
    with pytest.raises(Exception, match="pass them as arguments"):
        p.f(np.ones(3), np.ones(3))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_gru_and_rnn_are_their_formulas():
    rng = np.random.default_rng(1)
    xs = rng.standard_normal((5, 2, 3)).astype("f4")
    for layer in ("GRU", "RNN"):
        m = eg.Model(f'import "std/nn.nn"\nlayer M() {{ r = {layer}(3, 4); fn (xs: f32[T, B, 3]) {{ r(xs) }} }}', "M", seed=3)
        q = {k.removeprefix("r."): v.astype("f8") for k, v in m.parameters.items()}
        hs, last = m(xs)
        h, want = np.zeros((2, 4)), []
        for x in xs:
            a, b = x @ q["wx"] + q["bx"], h @ q["wh"] + q["bh"]
            if layer == "RNN":
                h = np.tanh(a + b)
            else:                                       # torch.nn.GRU's equations; gates in the order r, z, n
                (ar, az, an), (br, bz, bn) = np.split(a, 3, -1), np.split(b, 3, -1)
                z = sigmoid(az + bz)
                h = (1 - z) * np.tanh(an + sigmoid(ar + br) * bn) + z * h
            want.append(h)
        np.testing.assert_allclose(hs, want, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(last, hs[-1])


def test_group_norm_and_schedules():
    x = np.random.default_rng(2).standard_normal((2, 6, 5)).astype("f4")
    y = eg.Model('import "std/nn.nn"\nlayer M() { n = GroupNorm(3, 6); fn (x: f32[B, 6, L]) { n(x) } }', "M")(x)
    g = x.reshape(2, 3, -1)
    want = ((g - g.mean(-1, keepdims=True)) / np.sqrt(g.var(-1, keepdims=True) + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    p = eg.compile("fn f(step: i64) -> f32 { linear_warmup(step, 0.5, 10) }\nfn g(step: i64) -> f32 { f32(constant(step, 0.25)) }")
    assert [round(float(p.f(s)), 6) for s in (0, 4, 9, 50)] == [0.05, 0.25, 0.5, 0.5] and p.g(7) == 0.25
