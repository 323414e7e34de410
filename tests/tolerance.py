"""What two correct ways of running a program may differ by: the yardstick of the differential tests.

The definition is run in an f64 shadow a few times, each time disturbed (interp/disturbed.py): what the results move by, and what
rounding to their dtypes itself moved them by, is the tolerance. Programs that jump right after inexact ops have no such bound: generate.py makes none.
"""
from __future__ import annotations

import numpy as np
from engram.compiler.ir import Module
from engram.compiler.ir.types import dtype_of
from engram.interp.compare import assert_close, eps
from engram.interp.disturbed import Disturbed
from engram.interp.interpreter import Interpreter


def tolerances(module: Module, name: str, args: list[np.ndarray], results: list[np.ndarray], runs: int = 3, factor: float = 4.0) -> list:
    """One absolute tolerance per result of the interpreter's `results`; 0 for integers and bools."""
    plain = Interpreter(module, dtype_shadow="f64").call(name, args)
    others = [Disturbed(module, seed).call(name, args) for seed in range(runs)]
    out = []
    for i, (r, s) in enumerate(zip(results, plain)):
        dt = dtype_of(r.dtype)
        if not dt.is_float:
            out.append(0.0)
            continue
        wide = r.astype(np.float64)
        fine = np.isfinite(wide) & np.isfinite(s)
        size = float(np.max(np.abs(wide[fine]), initial=0.0))
        moved = max(float(np.max(np.abs(x - s)[fine], initial=0.0)) for x in (wide, *(o[i] for o in others)))
        out.append(factor * (moved + eps(dt) * size) + float(np.finfo(np.float32).tiny))
    return out


def agree(got: list, want: list[np.ndarray], atol: list, exact: list[bool], what: str) -> None:
    """Results within their tolerances, those of exact programs (and integers, bools) bit for bit."""
    assert len(got) == len(want)
    for i, (g, w) in enumerate(zip(got, want)):
        g = np.asarray(g)
        assert g.dtype == w.dtype, f"{what}: result {i} is {g.dtype}, expected {w.dtype}"
        if exact[i] or not dtype_of(w.dtype).is_float:
            assert_close(g, w, bits_exact=True, what=f"{what}: result {i}")
        else:
            assert_close(g, w, atol=atol[i], what=f"{what}: result {i} (tolerance {atol[i]:.3g})")
