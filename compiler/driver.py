"""From a module of the front end to a program that runs: picks the pipeline and the backend. Front end and files are not its business."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from . import ops  # noqa: F401  (registers the op table)
from .ir.collector import paused
from .ir.core import Module, clone_module
from .ir.printer import print_module
from .memory import check_memory
from .pass_manager import Options, run
from .pipelines import PIPELINES

BACKENDS = ("interp", "cpu", "opencl")


class Program(Protocol):
    """What every backend gives: see docs/ARCHITECTURE.md section 5."""

    def call(self, name: str, args: list) -> list: ...
    def to_device(self, array: np.ndarray) -> Any: ...
    def to_host(self, handle: Any) -> np.ndarray: ...


def lower(module: Module, to: str = "loop", options: Options | None = None) -> Module:
    """A new module at stage `to`: nn, definition, tensor, fused or loop (gpu: the loop stage for GPUs). The one given stays as it is."""
    return run(clone_module(module), PIPELINES[to](), options)


def prove(module: Module) -> None:
    """Raises CompileError where a learning rule of the module is not local. Parts of a training program (the epochs of one phase) do not
    show what the others do, so whoever takes it apart has it proved whole before. The module stays as it is."""
    if any(op.name == "learn.update" for op in module.walk()):
        from ..passes.plasticity import Plasticity
        run(clone_module(module), [Plasticity()])


def prove_cut(module: Module) -> None:
    """Raises CompileError where a loop of the module is to be a pipeline and its step cannot be cut into stages. The module stays as it is."""
    lower(module, "fused")


@paused()
def begin(backend: str, modules: Iterable[Module] | None = None) -> None:
    """Starts compiling what programs for a backend need whatever they are, beside what comes next: for whoever is about to read a program and
    to run it. `modules`: those that are to be built, where they are known; one without a matrix product needs nothing."""
    if backend == "cpu" and (modules is None or any(op.name == "tensor.dot_general" for m in modules for op in m.walk())):
        from ..codegen.cpu.program import prepare
        prepare()


def abandon(backend: str) -> None:
    """Ends what `begin` started: the program cannot be built."""
    if backend == "cpu":
        from ..codegen.cpu.compile import abandon
        abandon()


@paused()
def build(module: Module, backend: str = "cpu", threads: int | None = None, options: Options | None = None, inference: bool = False,
          once: bool = False) -> Program:
    """Compile a module of the front end for a backend. `threads` (cpu only): None takes all cores. `inference`: parameters (the arguments that entries
    list in `weights`) come as the same arrays call after call, and cheap ones are packed once. `once`: the program is to be called a single time, so that little work is not worth good code."""
    if inference and backend != "interp" and any("weights" in f.attrs for f in module.funcs.values()):
        module, packs = _packed_once(module)
        if packs:
            from .prepacked import Prepacked
            return Prepacked(build(module, backend, threads, options), packs, backend, lambda m: build(m, backend, threads))
    if backend == "interp":
        from ..interp.interpreter import Interpreter
        return Interpreter(_fits(lower(module, "definition", options)))
    if backend == "cpu":
        return _build_cpu(module, threads, options, once)
    if backend == "opencl":
        from ..codegen.opencl.program import OpenClProgram
        return _watched(OpenClProgram(_fits(lower(module, _opencl_pipeline(), options)), profile=_profiler(options) is not None), options)
    raise ValueError(f"unknown backend {backend!r}: expected one of {', '.join(BACKENDS)}")


def _packed_once(module: Module):
    """The module with packed weights as arguments, and which these are."""
    from ..passes.prepack import Prepack
    from ..passes.quantize import Quantize
    module = run(clone_module(module), [Quantize(), Prepack()])
    return module, {n: [(i, f.args[i].type, *how) for i, *how in f.attrs["packs"]]
                    for n, f in module.funcs.items() if "packs" in f.attrs}


def _build_cpu(module: Module, threads: int | None, options: Options | None, once: bool):
    """Machine code, from the cache where an equal module was compiled before: then no pass runs."""
    from ..codegen.cpu.program import CpuProgram, compile_module, prepare
    from .warm import program_key, read_program, write_program
    key = program_key(module, threads, once) if options is None or options == Options(out=options.out) else None
    compiled = read_program(key) if key else None
    if compiled is None:
        if any(op.name == "tensor.dot_general" for op in module.walk()):
            prepare()                        # the matrix product compiles beside the passes
        compiled = compile_module(_fits(lower(module, "loop", options)), threads, profile=_profiler(options) is not None, once=once)
        if key:
            write_program(key, compiled)
    return _watched(CpuProgram(compiled), options)


def _opencl_pipeline() -> str:
    """By the device in use; without one, code is for a common GPU."""
    from ..codegen.opencl import device as devices
    return "loop" if devices.available()[0] and devices.device().caps.cpu else "gpu"


def _profiler(options: Options | None):
    return options.profiler if options is not None else None


def _watched(program, options: Options | None):
    """The program; a profiler that was asked for knows it from now on."""
    if (profiler := _profiler(options)) is not None:
        profiler.add(program)
    return program


def _fits(module: Module) -> Module:
    check_memory(module)
    return module


def code(module: Module, backend: str = "cpu", options: Options | None = None) -> str:
    """The backend's target text: LLVM IR for cpu, OpenCL C for opencl."""
    if backend == "cpu":
        from ..codegen.cpu.program import llvm_text
        return llvm_text(lower(module, "loop", options))
    from ..codegen.opencl.program import source_text
    return source_text(lower(module, _opencl_pipeline(), options))


def random_arguments(module: Module, entry: str, seed: int = 0) -> list[np.ndarray]:
    """Arguments for an entry function by its types: floats in -1..1, integers 0 or 1."""
    rng = np.random.default_rng(seed)
    out = []
    f = module.funcs[entry]
    for a in f.args[:f.attrs.get("n_inputs", len(f.args))]:
        dt, shape = a.type.dtype, tuple(a.type.shape)
        out.append((rng.uniform(-1, 1, shape) if dt.is_float else rng.integers(0, 2, shape)).astype(dt.numpy))
    return out


class PassChecker:
    """For `--check-passes`: interprets every entry before and after each pass and names the first pass that changes a result.

    A pass that says `exact` must keep every bit; another one may move a result by `rtol` of the largest magnitude in it.
    One that `redefines` what is computed is not compared. Modules that hold ops without semantics (learn.*, autodiff.gradient) are compared from the pass on that removes them.
    `tell` hears of every pass: the interpreter takes seconds for what the compiler does in milliseconds.
    """

    def __init__(self, inputs: dict[str, list[np.ndarray]] | None = None, rtol: float = 1e-4, tell: Callable[[str], None] | None = None):
        self.inputs, self.rtol, self.tell = inputs or {}, rtol, tell or (lambda text: None)
        self._last: tuple[str, dict[str, list[np.ndarray]]] | None = None       # the module interpreted last, and its results by entry

    def __call__(self, before: Module, after: Module, p) -> None:
        if getattr(p, "redefines", False) or any(op.name in _NO_SEMANTICS for op in before.walk()):
            self.tell(f"{p.name}: not compared")
            return
        entries = before.attrs.get("entries", [])
        old, new = (print_module(m, locs=False) for m in (before, after))
        if old == new:
            self.tell(f"{p.name}: nothing changed")
            return
        start = time.perf_counter()
        inputs = {e: self.inputs.get(e) or random_arguments(before, e) for e in entries}
        expected = self._last[1] if self._last and self._last[0] == old else _interpret(before, inputs)
        got = _interpret(after, inputs)
        self._last = new, got
        for entry in entries:
            self._compare(p, entry, expected[entry], got[entry])
        self.tell(f"{p.name}: same results of {', '.join('@' + e for e in entries)} ({time.perf_counter() - start:.1f} s)")

    def _compare(self, p, entry: str, a: list[np.ndarray], b: list[np.ndarray]) -> None:
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            if getattr(p, "exact", False) or x.dtype.kind not in "fV":
                same = np.array_equal(x.view(np.uint8) if x.ndim else x, y.view(np.uint8) if y.ndim else y) or np.array_equal(x, y, equal_nan=True)
            else:
                x64, y64 = x.astype(np.float64), y.astype(np.float64)
                scale = np.max(np.abs(x64[np.isfinite(x64)]), initial=0.0)
                same = np.allclose(x64, y64, rtol=self.rtol, atol=self.rtol * scale, equal_nan=True)
            if not same:
                raise AssertionError(f"pass {p.name} changes result {i} of @{entry}")


_NO_SEMANTICS = ("autodiff.gradient", "learn.update", "learn.local_gradient", "autodiff.vmap")


def _interpret(module: Module, inputs: dict[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    from ..interp.interpreter import Interpreter
    return {entry: Interpreter(module).call(entry, [a.copy() for a in args]) for entry, args in inputs.items()}
