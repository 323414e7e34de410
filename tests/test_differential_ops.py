"""Every sample of every row of the op table, through the whole pipeline, on cpu and opencl against the definition.

All samples go through one module a backend, so that its compiler starts once. In the sample's own dtype and in f64; nightly in
every dtype the row takes.
"""
from __future__ import annotations

import numpy as np
import pytest
from engram.compiler.driver import build, lower
from engram.compiler.ir import Module
from engram.compiler.ops import NN, OPS, TENSOR
from engram.interp.interpreter import Interpreter
from helpers import FLOATS, INTS, fits, make_op_module, parse_type, sample_arrays, with_dtype
from test_differential import NIGHTLY, backend_missing
from tolerance import agree, tolerances

SPECIAL = ("autodiff.", "learn.")                          # transformations of programs, not computations
SAME_BITS = ("random.uniform", "random.normal")            # built from exact ops only


def cases():
    """(function name, row, sample)"""
    for name, row in OPS.items():
        if not row.stages & {NN, TENSOR} or name.startswith(SPECIAL):
            continue
        for k, sample in enumerate(row.samples):
            dtypes = [None]
            if sample.inputs and not name.startswith("random."):
                own = parse_type(sample.inputs[0][0]).dtype
                others = [d for d in (*FLOATS, *INTS) if d is not own and d.is_float == own.is_float]
                dtypes += [d for d in others if NIGHTLY or (d.name == "f64" and k == 0)]
            for d in dtypes:
                s = sample if d is None else with_dtype(sample, d)
                if d is None or fits(row, s) and "bitcast" not in name:
                    yield f"{name}.{k}.{d or 'own'}", row, s


@pytest.fixture(scope="module")
def everything() -> Module:
    m = Module(attrs={"stage": "nn", "entries": []})
    for key, row, s in cases():
        f = make_op_module(row, s).funcs["f"]
        f.name = key
        m.add(f)
        m.attrs["entries"].append(key)
    return m


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "opencl"])
def test_every_sample(everything, backend):
    if why := backend_missing(backend):
        pytest.skip(why)
    definition = Interpreter(lower(everything, "definition"))
    program = build(everything, backend)
    problems = []
    for key, row, s in cases():
        args = sample_arrays(s)
        want = definition.call(key, [a.copy() for a in args])
        exact = row.exact or row.name in SAME_BITS
        try:
            got = [np.asarray(program.to_host(r)) for r in program.call(key, [a.copy() for a in args])]
            agree(got, want, tolerances(definition.module, key, args, want), [exact] * len(want), key)
        except Exception as e:                             # all of them are reported, not the first
            problems.append(f"{key}: {type(e).__name__}: {e}")
    assert not problems, f"{len(problems)} samples:\n" + "\n".join(problems)


def test_every_row_with_samples_is_run():
    rows = {row.name for _, row, _ in cases()}
    left = [n for n, r in OPS.items() if r.samples and r.stages & {NN, TENSOR} and n not in rows and not n.startswith(SPECIAL)]
    assert not left and len(rows) > 90
