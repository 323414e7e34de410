"""The functions of std/functional.nn and `interpolate`: PyTorch's values and gradients, stored (functional_cases.py makes them)."""
import json

import engram as eg
import numpy as np
import pytest
from functional_cases import CASES, INPUTS, STORED, cotangent, used

REFERENCE = json.loads(STORED.read_text())


def array(stored):
    return np.array(stored["data"]).reshape(stored["shape"])


def source(expression):
    names = used(expression)
    params = [f"{n}: {'f32' if INPUTS[n].dtype == np.float32 else 'i64'}[{', '.join(map(str, INPUTS[n].shape))}]" for n in names]
    return f"fn f({', '.join(params + ['key: key'] * ('key = key' in expression))}) {{ {expression} }}", [INPUTS[n] for n in names]


@pytest.mark.parametrize("expression", [ours for ours, _ in CASES])
def test_as_pytorch(expression):
    want = REFERENCE[expression]
    text, arrays = source(expression)
    p = eg.compile(text)
    if "grad" not in want:
        np.testing.assert_allclose(p.f(*arrays), array(want["value"]), rtol=1e-5, atol=2e-6)
        return
    value, found = p.vjp("f", wrt=list(want["grad"]))(*arrays, cotangent=cotangent(want["value"]["shape"]))
    np.testing.assert_allclose(value, array(want["value"]), rtol=1e-5, atol=2e-6)
    found = found if isinstance(found, tuple) else (found,)
    for (name, g), mine in zip(want["grad"].items(), found):              # sums of a few dozen f32 products
        np.testing.assert_allclose(mine, array(g), rtol=2e-4, atol=1e-5, err_msg=f"gradient by {name}")


@pytest.mark.parametrize("expression", ["interpolate(img, [7, 5], mode = \"bicubic\")", "pixel_shuffle(img, 2)", "logcumsumexp(x)", "quantile(x, 0.3)",
                                        "segment_softmax(x, lab * 0, 1)"])
@pytest.mark.parametrize("backend", ["interp", "opencl"])
def test_other_backends(expression, backend):
    if backend == "opencl":
        pytest.importorskip("pyopencl")
    text, arrays = source(expression)
    np.testing.assert_allclose(eg.compile(text, backend=backend).f(*arrays), array(REFERENCE[expression]["value"]), rtol=1e-5, atol=2e-6)


def test_random_functions():
    p = eg.compile("""
fn soft(x: f32[n, k], key: key) { gumbel_softmax(x, tau = 0.5, hard = true, key = key) }
fn slope(x: f32[n, k], key: key) { grad(fn (v) { sum(gumbel_softmax(v, hard = true, key = key) * tensor([1.0, 2.0, 3.0])) })(x) }
fn draw(x: f32[n, k], key: key) { multinomial(x, 2, key = key) }
""")
    x = np.tile(np.log(np.array([0.2, 0.3, 0.5], np.float32)), (20000, 1))
    y = p.soft(x, key=1)
    assert set(np.unique(y)) <= {0.0, 1.0} and np.all(y.sum(1) == 1)
    np.testing.assert_allclose(y.mean(0), [0.2, 0.3, 0.5], atol=0.015)                    # 4 standard deviations of 20,000 draws
    assert np.abs(p.slope(x[:4], key=1)).max() > 0.01
    i = p.draw(np.exp(x), key=2)
    assert np.all(i[:, 0] != i[:, 1])
    np.testing.assert_allclose(np.bincount(i[:, 0], minlength=3) / len(i), [0.2, 0.3, 0.5], atol=0.015)


@pytest.mark.parametrize("call, message", [
    ("interpolate(x, size = 3, mode = \"biliner\")", "did you mean \"bilinear\"?"),
    ("interpolate(x)", "needs either `size` or `scale_factor`"),
    ("interpolate(x, size = [3, 3, 3])", "one for each of the 2 dimensions"),
    ("interpolate(x, size = 3, mode = \"linear\")", "resizes 1 dimension after batch and channels"),
    ("interpolate(x[0, 0], size = 3)", "`x[none, none]` adds two dimensions in front"),
    ("interpolate(x, scale_factor = 0)", "`scale_factor` is positive"),
    ("soft_margin_loss(x, x, reduction = \"avg\")", "reduction is one of"),
])
def test_mistakes(call, message):
    with pytest.raises(eg.CompileError, match="<string>:1:") as e:
        eg.compile(f"fn f(x: f32[2, 3, 4, 4]) {{ {call} }}").f(np.zeros((2, 3, 4, 4), np.float32))
    assert message in str(e.value)
