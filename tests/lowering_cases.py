"""Tensor-stage functions for the lowering tests, and how one is checked: interpreted before and after, with arena and race checks."""
from __future__ import annotations

import numpy as np
from engram.compiler.ir import Module
from engram.compiler.ir.core import clone_module
from engram.compiler.ir.parser import parse_module
from engram.compiler.ir.verifier import verify
from engram.interp.interpreter import Interpreter
from engram.passes.fuse import Fuse
from engram.passes.lower_to_loops import LowerToLoops
from engram.passes.plan_buffers import PlanBuffers
from helpers import random_array


def function(text: str) -> Module:
    """A verified module from the text of its functions."""
    m = parse_module('module attributes {stage = "tensor", entries = ["f"]} {\n' + text + "\n}")
    verify(m)
    return m


def to_loops(module: Module, fuse: bool = True) -> Module:
    """Fused, lowered and planned; verified after each pass. The one given stays as it is."""
    m = clone_module(module)
    for p in ([Fuse()] if fuse else []) + [LowerToLoops(), PlanBuffers()]:
        m = p.apply(m)
        verify(m, p.name)
    return m


def inputs(module: Module, name: str = "f", seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [random_array(a.type, -1 if a.type.dtype.is_float else 0, 1 if a.type.dtype.is_float else 3, rng) for a in module.funcs[name].args]


def check(module: Module, fuse: bool = True, args: list | None = None, tol: float = 1e-5, seed: int = 0) -> Module:
    """Lower and compare with the definition; returns the loop module."""
    args = inputs(module, seed=seed) if args is None else args
    before = Interpreter(module).call("f", args)
    lowered = to_loops(module, fuse)
    after = Interpreter(lowered, arena=True, check_races=True, seed=seed).call("f", args)
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        assert a.shape == b.shape and a.dtype == b.dtype
        if a.dtype.kind in "iub":
            np.testing.assert_array_equal(b, a, err_msg=f"result {i}")
        else:
            np.testing.assert_allclose(b.astype(np.float64), a.astype(np.float64), rtol=tol, atol=tol, err_msg=f"result {i}")
    return lowered


def kernels(module: Module, name: str = "f") -> dict[str, int]:
    """How many of each kernel (and copies, calls, loops) stand at a function's top level."""
    out: dict[str, int] = {}
    for op in module.funcs[name].body.ops:
        if op.name.startswith("loop.") and op.name not in ("loop.view", "loop.constant", "loop.load"):
            short = op.name.removeprefix("loop.")
            out[short] = out.get(short, 0) + 1
    return out
