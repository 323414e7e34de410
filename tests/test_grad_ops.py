"""Gradient rules of the op table, row by row: every differentiable sample against central finite differences, in f64."""
import numpy as np
import pytest
from engram.compiler.ir import Func, Module, TensorType, bool_
from engram.compiler.ir.builder import Builder
from engram.compiler.ir.parser import parse_module
from engram.compiler.ir.types import f32, f64
from engram.compiler.ir.verifier import verify
from engram.compiler.ops import NN, OPS
from engram.interp.interpreter import Interpreter
from engram.passes.decompose import Decompose
from engram.passes.grad import Grad

STEP = 1e-6
# their gradient is by definition not the derivative of what they compute: tests/test_packed.py and test_packed_conv.py hold it against the straight-through formula
STRAIGHT_THROUGH = {"nn.quantize", "nn.quantized_dot", "nn.quantized_conv"}


def type_of(text: str) -> TensorType:
    m = parse_module(f"module {{ func @t(%x: {text}) -> () {{ func.return() }} }}")
    t = m.funcs["t"].args[0].type
    return t.with_dtype(f64) if t.dtype is f32 else t


def cases():
    for name, row in OPS.items():
        if NN not in row.stages or not row.samples or name in STRAIGHT_THROUGH:
            continue
        if callable(row.grad) or name.startswith("nn."):
            for k, sample in enumerate(row.samples):
                if any("f32" in t for t, *_ in sample.inputs):
                    yield pytest.param(name, sample, id=f"{name}-{k}")


def build(name, sample) -> tuple[Module, list[TensorType]]:
    """@f(inputs) -> results and @g(inputs, cotangents of the float results) -> adjoints of the float inputs."""
    types = [type_of(t) for t, *_ in sample.inputs]
    attrs = {k: f64 if v is f32 else v for k, v in sample.attrs.items()}
    f = Func("f", types)
    op = Builder(f.body).op(name, f.args, attrs)
    outs = [r for r in op.results if r.type.dtype.is_float]
    f.result_types = [r.type for r in outs]
    Builder(f.body).op("func.return", outs)
    g = Func("g", types + [r.type for r in outs])
    xs = [a for a in g.args[:len(types)] if a.type.dtype.is_float]
    b = Builder(g.body)
    ys = [r for r in b.op(name, g.args[:len(types)], attrs).results if r.type.dtype.is_float]
    grads = b.op("autodiff.gradient", [*ys, *g.args[len(types):], *xs], {"n_y": len(ys), "n_x": len(xs)}).results
    g.result_types = [v.type for v in grads]
    b.op("func.return", grads)
    return Module([f, g], {"stage": "nn", "entries": ["f", "g"]}), types


@pytest.mark.parametrize("name, sample", list(cases()))
def test_rule_against_finite_differences(name, sample):
    m, types = build(name, sample)
    verify(m)
    for p in (Decompose(), Grad()):
        m = p.apply(m)
        verify(m, p.name)
    m.attrs["stage"] = "tensor"
    verify(m, "grad")
    rng = np.random.default_rng(len(name))
    args = []
    for t, (_, lo, hi) in zip(types, sample.inputs):
        if t.dtype.is_float:
            args.append(rng.uniform(lo, hi, t.shape))
        else:
            high = 1 if t.dtype is bool_ else hi
            args.append(rng.integers(int(lo), int(high) + 1, t.shape).astype(t.dtype.numpy))
    run = Interpreter(m)
    cots = [rng.uniform(0.5, 1.5, t.shape) for t in m.funcs["f"].result_types]
    got = run.call("g", args + cots)

    def loss(values):
        return sum(float(np.sum(y * c)) for y, c in zip(run.call("f", values), cots))

    floats = [i for i, t in enumerate(types) if t.dtype.is_float]
    for i, g in zip(floats, got):
        want = np.zeros(types[i].shape)
        for at in np.ndindex(*types[i].shape):
            h = []
            for s in (STEP, -STEP):
                moved = [a.copy() for a in args]
                moved[i][at] += s
                h.append(loss(moved))
            want[at] = (h[0] - h[1]) / (2 * STEP)
        np.testing.assert_allclose(g, want, rtol=2e-6, atol=2e-7)


def test_every_row_with_floats_has_a_rule_or_a_reason():
    for name, row in OPS.items():
        assert callable(row.grad) or (isinstance(row.grad, str) and row.grad), name
