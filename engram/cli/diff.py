"""`engram diff`: run functions and training steps on every backend and compare with the first one's results."""
from __future__ import annotations

import numpy as np

from . import OK, WRONG
from .errors import UserError
from .options import dims, pass_options, settings
from .programs import Target, build, read_ir, targets


def diff_command(args) -> int:
    """A line per function and backend; 1 when results differ by more than the reference's own rounding explains."""
    from ..compiler import ops  # noqa: F401  (registers the op table)
    backends = [b for b in args.backends.replace(" ", "").split(",") if b]
    if not backends:
        raise UserError("--backends names none")
    for b in backends:
        if b not in ("interp", "cpu", "opencl"):
            raise UserError(f"unknown backend {b!r}")
    if len(set(backends)) < 2:
        raise UserError(f"--backends names only {backends[0]}: one to compare with is missing")
    if args.file.endswith(".ir"):
        todo = _from_ir(args.file, args.fn)
    else:
        from ..session import load_program
        program = load_program(args.file)
        overrides = {"batch": 4, **settings(args.set)} if program.blocks else settings(args.set)
        todo = targets(program, args.fn, dims(args.dims), 3, overrides, every=True)
    if not todo:
        raise UserError(f"{args.file} has nothing to run: no function whose parameters are tensors, no train block")
    compared, apart = (sum(column) for column in zip(*(compare(target, backends, args) for target in todo)))
    if not compared:
        raise UserError("nothing was compared: only one of the backends can run here")
    print(f"{len(todo)} compared on {', '.join(backends)}: " + (f"{apart} differ" if apart else "no differences"))
    return WRONG if apart else OK


def _from_ir(path: str, fn: str | None) -> list[Target]:
    module = read_ir(path)
    entries = module.attrs.get("entries") or list(module.funcs)
    if fn is not None and fn not in module.funcs:
        raise UserError(f"{path} has no function {fn!r}")
    return [Target(e, module, e) for e in ([fn] if fn else entries)]


def compare(target: Target, backends: list[str], args) -> tuple[int, int]:
    """How many backends were compared with the first that can run, and how many of them differ."""
    from ..compiler.diagnostics import BackendUnavailable
    from ..interp.compare import assert_close
    values = arguments(target, args.seed)
    options = pass_options(args)
    reference, tolerance, steep = None, None, None
    compared = apart = 0
    for backend in backends:
        try:
            program = build(target.module, backend, args.threads, options)
        except BackendUnavailable as e:
            print(f"{target.name:24s} {backend:8s} skipped: {e.diagnostics[0].message}")
            continue
        results = [np.asarray(program.to_host(r)) for r in program.call(target.entry, [np.array(v, order="C") for v in values])]
        if reference is None:
            reference, tolerance = results, _tolerance(target, values, results)
            print(f"{target.name:24s} {backend:8s} reference")
            continue
        compared += 1
        try:
            try:
                assert_close(results, reference, rtol=1e-5, atol=tolerance)
            except AssertionError:
                if target.module.attrs.get("stage") == "loop":
                    raise
                if steep is None:                                   # a second opinion: several interpretations
                    steep = [np.maximum(a, b) for a, b in zip(tolerance, _steep_tolerance(target, values))]
                assert_close(results, reference, rtol=1e-5, atol=steep)
            exact = all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(results, reference))
            worst = 0.0 if exact else max(_distance(a, b) for a, b in zip(results, reference) if a.dtype.kind == "f")
            print(f"{target.name:24s} {backend:8s} same" + ("" if exact else f" within tolerance (largest difference {worst:.2g})"))
        except AssertionError as e:
            apart += 1
            print(f"{target.name:24s} {backend:8s} DIFFERS: {e}")
    return compared, apart


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of two results that agree: what is not finite is the same in both."""
    finite = np.isfinite(a) & np.isfinite(b)
    return float(np.max(np.abs(a[finite].astype(np.float64) - b[finite].astype(np.float64)), initial=0.0))


def _tolerance(target: Target, values: list[np.ndarray], results: list[np.ndarray]) -> list:
    """One absolute tolerance per result, from an interpretation in f64 beside the one in the program's own dtypes."""
    from ..compiler import driver
    from ..interp.compare import reference_with_tolerance
    if target.module.attrs.get("stage") == "loop":           # no shadow of buffers: a multiple of the largest result's rounding
        return [1e-4 * float(np.max(np.abs(r[np.isfinite(r)]), initial=0.0)) if r.dtype.kind == "f" else 0.0 for r in results]
    module = driver.lower(target.module, "definition")
    return reference_with_tolerance(module, target.entry, values)[1]


def _steep_tolerance(target: Target, values: list[np.ndarray]) -> list:
    """A tolerance per element, wide only where the program magnifies rounding: sqrt near 0, say."""
    from ..compiler import driver
    from ..interp.disturbed import element_tolerances
    return element_tolerances(driver.lower(target.module, "definition"), target.entry, values)


def arguments(target: Target, seed: int) -> list[np.ndarray]:
    """Arguments by type; for a training step, initialised slots and the first batch of the data."""
    from ..compiler import driver
    if target.plan is None:
        return driver.random_arguments(target.module, target.entry, seed)
    from ..train import _batch_of, key_of
    plan, phase = target.plan, target.plan.phases[0]
    program = driver.build(plan.module, "cpu")
    slots = [np.array(program.to_host(r)) for r in program.call("init", [key_of(seed, 1)])]
    n = _batch_of(phase, len(plan.slots))
    return [*slots, np.array(0, np.int64), np.array(0, np.int64), key_of(seed, 3, 0), *(v[:n] for v in plan.dataset.fields.values())]
