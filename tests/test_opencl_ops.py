"""Every op of the table, lowered and run on the OpenCL device, against the interpreter of its definition.

All samples of all rows go through one module, so that the device's compiler starts once."""
import dataclasses
import warnings

import numpy as np
import pytest
from engram.codegen.opencl import device as devices
from engram.compiler.driver import lower
from engram.compiler.ir import Module
from engram.compiler.ops import OPS, Sample
from engram.interp.compare import assert_close, reference_with_tolerance
from helpers import make_op_module, sample_arrays

OK, WHY = devices.available()
pytestmark = pytest.mark.skipif(not OK, reason=f"no OpenCL device: {WHY}")
EXACT = ("random.",)                                   # the same bits everywhere, though built from inexact-looking pieces


def build(module, as_gpu):
    """`as_gpu`: with the code that a GPU would get, wherever it runs."""
    from engram.codegen.opencl.program import OpenClProgram
    d = devices.device()
    return OpenClProgram(module, dataclasses.replace(d, caps=dataclasses.replace(d.caps, cpu=not as_gpu)))


def cases():
    for name, row in OPS.items():
        if name.partition(".")[0] in ("tensor", "nn", "random"):
            for i, s in enumerate(row.samples):
                yield f"{name}.{i}", name, s


def all_samples() -> Module:
    """One function per sample."""
    m = Module(attrs={"stage": "nn", "entries": []})
    for key, name, s in cases():
        f = make_op_module(name, s).funcs["f"]
        f.name = key
        m.add(f)
        m.attrs["entries"].append(key)
    return m


def test_every_op():
    module = all_samples()
    p = build(lower(module, "loop"), as_gpu=not devices.device().caps.cpu)
    problems = []
    for key, name, s in cases():
        args = sample_arrays(s)
        try:
            got = [np.asarray(a) for a in p.call(key, args)]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                want, tolerance = reference_with_tolerance(module, key, args)
            for g, w, t in zip(got, want, tolerance, strict=True):
                row = OPS[name]
                exact = row.exact or name.startswith(EXACT)
                if exact:
                    assert_close(g, w, bits_exact=True)
                else:
                    assert_close(g, w, ulp=row.ulp or None, atol=0.0 if name.startswith("tensor.") and row.elementwise else t)
        except Exception as e:                         # all of them are reported, not the first
            problems.append(f"{key}: {type(e).__name__}: {e}")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_long_rows_as_a_gpu_runs_them(dtype):
    """Rows of 70 elements: softmax and its kind become work-groups that share a row."""
    samples = {"nn.softmax": {"dim": 1}, "nn.logsumexp": {"dims": [1]}, "tensor.reduce_max": {"dims": [1]}, "tensor.reduce_sum": {"dims": [0, 1]},
               "tensor.argmax": {"dim": 1}, "tensor.cumsum": {"dim": 1, "reverse": False}, "tensor.sort": {"dim": 1, "descending": True}}
    module = Module(attrs={"stage": "nn", "entries": list(samples)})
    for name, attrs in samples.items():
        f = make_op_module(name, Sample(((f"{dtype}[5,70]", -4, 4),), attrs)).funcs["f"]
        f.name = name
        module.add(f)
    p = build(lower(module, "loop"), True)
    assert "barrier" in p.source()
    (x,) = sample_arrays(Sample(((f"{dtype}[5,70]", -4, 4),), {}))
    for name in samples:
        want, tolerance = reference_with_tolerance(module, name, [x])
        for g, w, t in zip(p.call(name, [x]), want, tolerance, strict=True):
            assert_close(np.asarray(g), w, atol=t, what=name)
