"""Attention on OpenCL: contractions inside a work-item's iteration, against the cpu."""
import engram as eg
import numpy as np
import pytest
from engram.codegen.opencl import device as devices
from engram.interp.compare import assert_close

OK, WHY = devices.available()
pytestmark = pytest.mark.skipif(not OK, reason=f"no OpenCL device: {WHY}")

SOURCE = """
fn attend(q: f32[B, T, d], k: f32[B, S, d], v: f32[B, S, d]) { softmax(causal(q @ k.T / sqrt(d))) @ v }
fn loss(q: f32[B, T, d], k: f32[B, S, d], v: f32[B, S, d]) -> f32 { sum(attend(q, k, v) ** 2) }
"""


def test_agrees_with_the_cpu():
    rng = np.random.default_rng(0)
    args = [rng.standard_normal((2, n, 8)).astype(np.float32) for n in (70, 140, 140)]
    here, there = (eg.compile(SOURCE, backend=b) for b in ("cpu", "opencl"))
    assert_close(there.attend(*args), here.attend(*args), rtol=1e-4, atol=5e-6)
    assert_close(*([*p.grad("loss", wrt=["q", "k", "v"])(*args)] for p in (there, here)), rtol=1e-4, atol=2e-5)
