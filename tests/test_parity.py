"""PyTorch's sample inputs through Engram: values and gradients agree.  See tests/parity; needs torch, which is a peer, never a dependency.

The first samples of every operation on cpu; with ENGRAM_NIGHTLY=1 all of them, and on interp and opencl too.
"""
import os

import numpy as np
import pytest

NIGHTLY = bool(os.environ.get("ENGRAM_NIGHTLY"))
torch = pytest.importorskip("torch", reason="PyTorch is not installed: parity with it is checked where it is (pip install torch expecttest)")
pytest.importorskip("expecttest", reason="torch.testing._internal needs the package expecttest")

import engram as eg  # noqa: E402
from parity.runner import OPS, run  # noqa: E402

LIMIT = None if NIGHTLY else 4
OTHERS = 3                                                     # samples an operation on interp


@pytest.mark.parametrize("entry", OPS, ids=[e.key for e in OPS])
def test_agrees_on_cpu(entry):
    check(run(entry, "cpu", LIMIT))


@pytest.mark.skipif(not NIGHTLY, reason="nightly only")
@pytest.mark.parametrize("backend", ["interp", "opencl"])
@pytest.mark.parametrize("entry", OPS, ids=[e.key for e in OPS])
def test_agrees_on(entry, backend):
    if backend == "opencl":
        pytest.importorskip("pyopencl")
    check(run(entry, backend, None if backend == "opencl" else OTHERS))


def check(result):
    assert result.passed == result.expressible, "\n".join(f"sample {i}: {source}\n    {why}" for i, source, why in result.failures[:5])


# ---- where samples say nothing: ties, zeros, kinks ------------------------------------------------------------------------

TIES = np.array([[0.0, -0.0, 1.0, 1.0, -2.0, 2.0], [3.0, 3.0, 3.0, -1.0, 0.0, 6.0]], np.float32)
F = torch.nn.functional
KINKS = {
    "abs(x)": torch.abs, "relu(x)": torch.relu, "sign(x)": torch.sign, "clamp(x, 0, 1)": lambda x: x.clamp(0, 1), "clamp(x, min = 1)": lambda x: x.clamp(min=1),
    "maximum(x, flip(x, 1))": lambda x: torch.maximum(x, x.flip(1)), "minimum(x, 1.0)": lambda x: torch.minimum(x, torch.tensor(1.0)),
    "amax(x, dim = 1)": lambda x: x.amax(1), "amin(x)": lambda x: x.amin(), "max(x)": torch.max, "prod(x, dim = 1)": lambda x: x.prod(1),
    "cumprod(x, dim = 1)": lambda x: x.cumprod(1), "norm(x * 0)": lambda x: (x * 0).norm(), "norm(x, p = 1)": lambda x: x.norm(1),
    "norm(x, p = 3, dim = 0)": lambda x: x.norm(3, 0), "std(x * 0)": lambda x: (x * 0).std(), "sqrt(abs(x))": lambda x: x.abs().sqrt(),
    "hardtanh(x)": F.hardtanh, "relu6(x)": F.relu6, "leaky_relu(x)": F.leaky_relu, "elu(x)": F.elu, "selu(x)": F.selu, "celu(x)": F.celu,
    "hardswish(x * 3)": lambda x: F.hardswish(x * 3), "hardsigmoid(x * 3)": lambda x: F.hardsigmoid(x * 3), "softsign(x)": F.softsign,
    "softshrink(x, 1)": lambda x: F.softshrink(x, 1), "hardshrink(x, 1)": lambda x: F.hardshrink(x, 1), "threshold(x, 1, 5)": lambda x: F.threshold(x, 1, 5),
    "softplus(x)": F.softplus, "silu(x)": F.silu, "mish(x)": F.mish, "logsigmoid(x)": F.logsigmoid, "max_pool1d(x, 2)": lambda x: F.max_pool1d(x, 2),
    "max_pool1d(x, 3, stride = 1, padding = 1)": lambda x: F.max_pool1d(x, 3, 1, 1), "l1_loss(x, flip(x, 1))": lambda x: F.l1_loss(x, x.flip(1)),
    "smooth_l1_loss(x, x + 1)": lambda x: F.smooth_l1_loss(x, x + 1), "huber_loss(x, x - 1)": lambda x: F.huber_loss(x, x - 1),
    "bce_with_logits(x, abs(sign(x)))": lambda x: F.binary_cross_entropy_with_logits(x, x.sign().abs()), "sort(x)[0]": lambda x: x.sort(stable=True)[0],
    "logsumexp(x, dim = 1)": lambda x: x.logsumexp(1), "x ** 2": lambda x: x ** 2, "x ** 0": lambda x: x ** 0, "x % 2.0": lambda x: x % 2.0,
    "fmod(x, 2.0)": lambda x: torch.fmod(x, 2.0), "atan2(x, x * x + 1)": lambda x: torch.atan2(x, x * x + 1), "where(x > 0, x, x * x)": lambda x: torch.where(x > 0, x, x * x),
    "normalize(x)": lambda x: F.normalize(x, dim=-1), "softmax(x)": lambda x: x.softmax(-1), "median(x, dim = 1)": lambda x: x.median(1)[0],
}


@pytest.mark.parametrize("source", KINKS)
def test_gradient_at_ties_and_zeros(source):
    x = torch.tensor(TIES, requires_grad=True)
    y = KINKS[source](x)
    g = torch.linspace(0.5, 1.5, max(1, y.numel())).reshape(y.shape)
    (want,) = torch.autograd.grad(y, x, g)
    got, dx = eg.compile(f"fn f(x: f32[a, b]) {{ {source} }}").vjp("f")(TIES, cotangent=g.numpy())
    np.testing.assert_allclose(got, y.detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dx, want.numpy(), rtol=1e-5, atol=1e-6, equal_nan=True)


# (sign is not here: sign(NaN) is NaN, as in NumPy and JAX; PyTorch gives 0)
SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.5, -2.5, 0.5, 1e30, -1e-30], np.float32)


@pytest.mark.parametrize("name", ["floor", "ceil", "round", "trunc", "abs", "exp", "log", "sqrt", "rsqrt", "sin", "tanh", "erf", "atan", "isnan", "isinf",
                                  "isfinite", "relu", "sigmoid", "amax", "amin", "sum", "argmax", "argmin", "nan_to_num", "logsumexp", "sort", "cumsum"])
def test_values_at_special_numbers(name):
    kw = {"dim": 0} if name in ("logsumexp", "cumsum") else {}
    want = getattr(torch, name)(torch.tensor(SPECIAL), **kw)
    want = want[0] if name == "sort" else want
    got = eg.compile(f"fn f(x: f32[n]) {{ {name}(x){'[0]' if name == 'sort' else ''} }}").f(SPECIAL)
    np.testing.assert_allclose(got, want.numpy(), rtol=2e-6, atol=1e-6, equal_nan=True)
