"""Completeness of the op table: every row has documentation, semantics, samples, a gradient rule and a lowering, or a reason why not.

Adding an op makes these tests ask for what is missing.
"""
import math
import re

import numpy as np
import pytest
from engram.compiler.ir import bf16, dtype_of, f16, f64
from engram.compiler.ir.parser import parse_module
from engram.compiler.ir.printer import print_module
from engram.compiler.ir.verifier import verify
from engram.compiler.ops import LOOP, NN, OPS, STAGES, TENSOR, Sample
from engram.compiler.pass_manager import run
from engram.compiler.pipelines import lowering
from engram.interp.compare import assert_close, eps
from engram.interp.evaluate import evaluate_op
from engram.interp.interpreter import interpret
from engram.interp.semantics import CONTROL, LOOPS, NO_SEMANTICS, SEMANTICS
from engram.passes.decompose import Decompose
from helpers import fits, make_op_module, make_scalar_module, parse_type, sample_arrays, with_dtype

ROWS = [pytest.param(row, id=name) for name, row in OPS.items()]
WITH_SAMPLES = [pytest.param(row, k, id=f"{name}-{k}") for name, row in OPS.items() for k in range(len(row.samples))]

# Rows without sample inputs, by pattern, and the test that covers them instead.
NO_SAMPLES = {
    r"scalar\..*": "the tensor row's samples are run through it (test_interp.py, and below)",
    r"loop\..*": "needs buffers: test_interp_loops.py",
    r"func\..*|scf\..*|tensor\.fused": "needs regions or functions: test_interp.py",
    r"tensor\.assert": "has no result: test_interp.py",
    r"tensor\.stop_gradient|autodiff\.watch": "an identity, whose derivative is not that of its values: test_interp.py",
    r"autodiff\.custom": "needs functions: test_interp.py",
    r"autodiff\..*|learn\..*": "means a transformation of the program: the tests of the pass that removes it",
}


def exempt(table: dict[str, str], name: str) -> str | None:
    return next((reason for pattern, reason in table.items() if re.fullmatch(pattern, name)), None)


@pytest.mark.parametrize("row", ROWS)
def test_row_is_documented(row):
    assert row.doc.endswith(".") and len(row.doc) >= 3, "doc: a sentence"
    assert row.name in row.example, f"the example shows {row.name}"
    for attr in row.attrs:
        assert attr in row.doc or re.search(rf"\b{attr}\b", row.example) or "optional" in row.attrs[attr] or "after" in row.attrs[attr], \
            f"attribute {attr} is in neither doc nor example"
    assert row.stages and row.stages <= set(STAGES)


@pytest.mark.parametrize("row", ROWS)
def test_row_has_semantics_or_a_reason(row):
    places = [row.name in where for where in (SEMANTICS, CONTROL, LOOPS, NO_SEMANTICS)]
    assert sum(places) == 1, f"{row.name} must be in exactly one of SEMANTICS, CONTROL, LOOPS, NO_SEMANTICS of interp/semantics.py"
    if row.name in NO_SEMANTICS:
        assert TENSOR not in row.stages and LOOP not in row.stages, "only ops that passes remove may lack semantics"


@pytest.mark.parametrize("row", ROWS)
def test_row_has_a_gradient_or_a_reason(row):
    assert callable(row.grad) or (isinstance(row.grad, str) and len(row.grad) > 10)


@pytest.mark.parametrize("row", ROWS)
def test_row_has_samples_or_is_exempt(row):
    assert bool(row.samples) != bool(exempt(NO_SAMPLES, row.name)), "give samples, or an entry in NO_SAMPLES (not both)"


@pytest.mark.parametrize("row", ROWS)
def test_stated_accuracy(row):
    if row.elementwise and row.ulp:
        assert not row.exact
    if row.exact:
        assert row.ulp == 0
    if row.name.startswith("scalar.") and row.elementwise:
        twin = OPS["tensor." + row.name[7:]]
        assert (row.exact, row.ulp, row.doc, row.operands) == (twin.exact, twin.ulp, twin.doc, twin.operands)


@pytest.mark.parametrize("row, k", WITH_SAMPLES)
def test_sample_prints_parses_and_runs(row, k):
    sample = row.samples[k]
    m = make_op_module(row, sample)
    m.attrs["stage"] = NN if NN in row.stages else m.attrs["stage"]
    verify(m)
    text = print_module(m)
    again = parse_module(text)
    assert print_module(again) == text
    args = sample_arrays(sample)
    got = interpret(m, "f", args)
    assert_close(interpret(again, "f", args), got)
    assert_close(evaluate_op(m.funcs["f"].body.ops[0], args), got)
    for g, t in zip(got, m.funcs["f"].result_types, strict=True):
        assert g.dtype == t.dtype.numpy and g.shape == t.shape
        assert not t.dtype.is_float or np.all(np.isfinite(g.astype(np.float64))), "sample ranges avoid poles"


@pytest.mark.parametrize("row, k", [p for p in WITH_SAMPLES if p.values[0].elementwise and "scalar." + p.values[0].name[7:] in OPS])
def test_scalar_twin_agrees(row, k):
    sample = row.samples[k]
    args = sample_arrays(sample)
    m = make_scalar_module(row, sample)
    verify(m)
    assert_close(interpret(m, "f", args, check_races=True), interpret(make_op_module(row, sample), "f", args))


# ---- decompositions ------------------------------------------------------------------------------------------------------

DECOMPOSED = [p for p in WITH_SAMPLES if p.values[0].decompose]


@pytest.mark.parametrize("dtype", [None, f64, f16, bf16], ids=lambda d: str(d or "own"))
@pytest.mark.parametrize("row, k", DECOMPOSED)
def test_decomposition_computes_the_op(row, k, dtype):
    """The op's own semantics against its decomposition: within the row's ulp, of the larger of input and result.

    (A result near 0 of larger inputs, as gelu's left tail, is off by ulps of the inputs.)
    """
    sample = row.samples[k]
    if dtype is not None:
        if row.name.startswith("random.") or not parse_type(sample.inputs[0][0]).dtype.is_float:
            pytest.skip("its result does not follow its operand's dtype")
        sample = with_dtype(sample, dtype)
        if not fits(row, sample):
            pytest.skip("takes one dtype only")
    m = make_op_module(row, sample)
    expanded = Decompose().apply(make_op_module(row, sample))
    verify(expanded)
    assert all(OPS[op.name].decompose is None for op in expanded.walk())
    for seed in range(5):
        args = sample_arrays(sample, seed)
        want, got = interpret(m, "f", args), interpret(expanded, "f", args)
        agree(row, args, got, want)


X = [0.0, -0.0, 20.0, -20.0, math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("name, attrs", [("nn.relu", {}), ("nn.sigmoid", {}), ("nn.silu", {}), ("nn.softplus", {}), ("nn.gelu", {"approximate": "none"}),
                                         ("nn.gelu", {"approximate": "tanh"})])
def test_activations_at_their_limits(name, attrs):
    m = make_op_module(name, Sample((("f32[7]", 0, 1),), attrs))
    got = interpret(m, "f", [np.float32(X)])[0]
    expanded = interpret(Decompose().apply(make_op_module(name, Sample((("f32[7]", 0, 1),), attrs))), "f", [np.float32(X)])[0]
    np.testing.assert_allclose(got, expanded, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name, attrs", [("nn.softmax", {"dim": 1}), ("nn.log_softmax", {"dim": 1}), ("nn.logsumexp", {"dims": [1]})])
def test_softmax_family_at_its_limits(name, attrs):
    x = np.float32([[1e30, -1e30, 0], [-np.inf, 0, 1], [-np.inf] * 3, [np.inf, 0, 1], [np.nan, 0, 1], [1000, 1000, 1000]])
    sample = Sample((("f32[6,3]", 0, 1),), attrs)
    got = interpret(make_op_module(name, sample), "f", [x])[0]
    expanded = interpret(Decompose().apply(make_op_module(name, sample)), "f", [x])[0]
    np.testing.assert_allclose(got, expanded, rtol=1e-6)


# ---- lowering -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row, k", [p for p in WITH_SAMPLES if NN in p.values[0].stages])
def test_lowered_row_computes_the_op(row, k):
    """The row alone, lowered without any optimisation, interpreted with watched and with planned memory."""
    try:
        passes = lowering()
    except ModuleNotFoundError as e:
        pytest.skip(f"{e.name} is not there")
    sample = row.samples[k]
    m = make_op_module(row, sample)
    loops = Decompose().apply(make_op_module(row, sample))
    loops.attrs["stage"] = TENSOR
    loops = run(loops, passes)
    for seed in range(2):
        args = sample_arrays(sample, seed)
        want = interpret(m, "f", args)
        for options in ({"check_races": True}, {"arena": True}):
            agree(row, args, interpret(loops, "f", args, **options), want)


def agree(row, args, got, want):
    """Within what the row states: the same bits, or its ulp; sums within a few eps of the inputs' magnitude."""
    for g, w in zip(got, want, strict=True):
        dt = dtype_of(w.dtype)
        if row.exact or not dt.is_float:
            assert_close(g, w, bits_exact=True, what=row.name)
        else:
            scale = max([1.0] + [float(np.max(np.abs(a.astype(np.float64)), initial=0)) for a in args if dtype_of(a.dtype).is_float])
            terms = 1 if row.elementwise else max((a.size for a in args), default=1)      # what a sum may have: n * eps * |x|
            assert_close(g, w, ulp=max(row.ulp, 1), atol=max(row.ulp, 2) * eps(dt) * scale * terms / 2, what=row.name)
