"""Compiles, runs and compares samples: many functions of one program in one module, so that a batch costs one build."""
from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
from engram.compiler import driver
from engram.compiler.diagnostics import CompileError
from engram.compiler.ir import TensorType
from engram.compiler.ir.core import Module, clone_module
from engram.compiler.ir.types import dtype_of
from engram.frontend import elaborate_function, load
from torch.testing._internal.common_methods_invocations import op_db

from .programs import Case, Inexpressible, build
from .table import OPS, Entry

VALUE = dict(rtol=1e-5, atol=1e-5)              # beside PyTorch's f32 result, or ...
GRADIENT = dict(rtol=1e-4, atol=1e-5)
SHADOW = 4.0                                    # ... at most this many times as far from PyTorch's f64 result as its own f32 result is
BATCH = 24


@dataclass
class Result:
    """What became of the samples of one operation."""

    name: str
    samples: int = 0
    inexpressible: list[tuple[int, str]] = field(default_factory=list)
    failures: list[tuple[int, str, str]] = field(default_factory=list)       # index, the call, why
    passed: int = 0

    @property
    def expressible(self) -> int:
        return self.samples - len(self.inexpressible)


def op_infos(entry: Entry) -> list:
    found = [o for o in op_db if o.name == entry.name and (entry.variant is None or o.variant_test_name == entry.variant)]
    if not found:
        raise LookupError(f"PyTorch has no operation {entry.name} {entry.variant or ''}")
    return found


def samples_of(entry: Entry):
    """(op, dtype, sample) of every variant of an operation, always the same ones."""
    for o in op_infos(entry):
        dtypes = [d for d in entry.dtypes if d in o.dtypes]
        for d in dtypes:
            torch.manual_seed(0)
            np.random.seed(0)
            grad = d.is_floating_point and o.supports_autograd
            for s in o.sample_inputs("cpu", d, requires_grad=grad):
                yield o, s


def prepare(entry: Entry, limit: int | None = None) -> tuple[Result, list[tuple[int, Case]]]:
    result, cases = Result(entry.key), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i, (o, s) in enumerate(samples_of(entry)):
            if limit is not None and result.expressible >= limit:
                break
            result.samples += 1
            try:
                cases.append((i, build(f"s{i}", o.op, s, entry.write, entry.gradients, entry.result)))
            except Inexpressible as e:
                result.inexpressible.append((i, str(e)))
    return result, cases


def run(entry: Entry, backend: str = "cpu", limit: int | None = None) -> Result:
    result, cases = prepare(entry, limit)
    for k in range(0, len(cases), BATCH):
        _run_batch(result, cases[k:k + BATCH], backend)
    return result


def _run_batch(result: Result, cases: list[tuple[int, Case]], backend: str) -> None:
    modules = []
    for i, c in cases:
        try:
            program = load("<sample>", c.text)
            types = [TensorType(dtype_of(a.dtype), a.shape) for a in c.inputs]
            modules.append((i, c, elaborate_function(program, c.name, types)))
        except CompileError as e:
            result.failures.append((i, c.source, e.diagnostics[0].message if hasattr(e, "diagnostics") else str(e)))
        except Exception as e:
            result.failures.append((i, c.source, f"front end: {type(e).__name__}: {e}"))
    _run_modules(result, modules, backend)


def _run_modules(result: Result, items: list, backend: str) -> None:
    if not items:
        return
    try:
        program = driver.build(_merged([e for _, _, e in items]), backend, threads=1)
    except Exception as e:
        if len(items) == 1:
            result.failures.append((items[0][0], items[0][1].source, f"compiler: {type(e).__name__}: {e}"))
            return
        half = len(items) // 2
        _run_modules(result, items[:half], backend)
        _run_modules(result, items[half:], backend)
        return
    for i, c, e in items:
        try:
            arrays = iter(c.inputs)
            args = [np.array(0, np.uint64) if a.kind == "key" else next(arrays) for a in e.args]
            got = [np.asarray(program.to_host(r)) for r in program.call(e.entry, args)]
        except Exception as error:
            result.failures.append((i, c.source, f"run: {type(error).__name__}: {error}"))
            continue
        why = compare(c, got)
        if why is None:
            result.passed += 1
        else:
            result.failures.append((i, c.source, why))


def _merged(elaborated: list) -> Module:
    """One module with every entry; helper functions are told apart by a prefix."""
    out = Module(attrs={"stage": "nn", "entries": []})
    for k, e in enumerate(elaborated):
        module = clone_module(e.module)
        names = {n: n if n == e.entry else f"m{k}.{n}" for n in module.funcs}
        for op in module.walk():
            callee = op.attrs.get("callee")
            if callee in names:
                op.attrs["callee"] = names[callee]
        for n, f in module.funcs.items():
            f.name = names[n]
            out.funcs[f.name] = f
        out.attrs["entries"].append(e.entry)
    return out


def compare(c: Case, got: list[np.ndarray]) -> str | None:
    """None when all results agree, else the first difference."""
    want = [*c.expected, *c.gradients]
    wide = [*c.wide[0], *c.wide[1]] if c.wide else [None] * len(want)
    if len(got) != len(want):
        return f"{len(got)} results, expected {len(want)}"
    for k, (g, w, ref) in enumerate(zip(got, want, wide, strict=True)):
        grad = k >= len(c.expected)
        what = f"gradient {k - len(c.expected)}" if grad else f"value {k}"
        if g.shape != w.shape:
            return f"{what}: shape {list(g.shape)}, PyTorch gives {list(w.shape)}"
        if g.dtype != w.dtype:
            return f"{what}: dtype {g.dtype}, PyTorch gives {w.dtype}"
        if w.dtype.kind in "biu":
            if not np.array_equal(g, w):
                return f"{what}: {_first(g, w, g != w)}"
            continue
        tol = GRADIENT if grad else VALUE
        if w.dtype.itemsize == 2:
            tol = dict(rtol=1e-2, atol=1e-2)
        a, b = g.astype(np.float64), w.astype(np.float64)
        with np.errstate(invalid="ignore"):
            ok = (np.abs(a - b) <= tol["atol"] + tol["rtol"] * np.abs(b)) | (a == b) | (np.isnan(a) & np.isnan(b))
            if not np.all(ok) and ref is not None and ref.shape == b.shape:
                r = ref.astype(np.float64)
                ok |= np.abs(a - r) <= SHADOW * np.max(np.abs(b - r)[np.isfinite(b - r)], initial=0.0)
        if not np.all(ok):
            return f"{what}: {_first(a, b, ~ok)}"
    return None


def _first(a, b, bad) -> str:
    at = tuple(int(i) for i in np.argwhere(bad)[0]) if a.ndim else ()
    return f"{list(at)} is {a[at]}, PyTorch gives {b[at]} ({int(np.sum(bad))} of {a.size} differ)"


__all__ = ["OPS", "run", "prepare", "Result"]
