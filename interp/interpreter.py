"""The interpreter: runs a module of any stage. The tensor stage, run by it, is the definition of the language.

Here: the face that every backend has, functions, calls and control flow of the tensor stage. What single ops compute is in
semantics*.py; the loop stage is in loops.py.
"""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..compiler.diagnostics import RuntimeError_
from ..compiler.ir.core import Block, Func, Module, Op, Value
from ..compiler.ir.types import BufferType, DType, Type, dtype_of
from .numerics import Array, RunTimeFault, from_numpy, rounding, to_numpy
from .semantics import NO_SEMANTICS, SEMANTICS

MAX_DEPTH = 200                                         # calls do not recurse; deeper nesting is a bug of ours


class Evaluator:
    """Evaluates single ops without regions. `shadow`: floats keep f64 precision whatever their dtype."""

    def __init__(self, shadow: bool = False):
        self.shadow = shadow

    def round(self, elements: list, dtype: DType) -> list:
        return rounding(dtype, self.shadow)(elements)

    def evaluate(self, op: Op, operands: list[Array]) -> list[Array]:
        fn = SEMANTICS.get(op.name)
        if fn is None:
            raise NotImplementedError(f"the interpreter cannot run {op.name}: {NO_SEMANTICS.get(op.name, 'it has no semantics')}")
        try:
            out = fn(self, op, operands)
        except RunTimeFault as fault:
            raise RuntimeError_(str(fault), op.loc) from None
        return [Array(r.type.dtype, tuple(r.type.shape), data) for r, data in zip(op.results, out, strict=True)]


class Interpreter(Evaluator):
    """Runs functions of a module of any stage.

    dtype_shadow="f64" evaluates all floats without rounding to their dtype: results then are float64 arrays, a yardstick for
    rounding errors. on_op(op, results) is called after each tensor-stage op, with Arrays (to find the first NaN, say).
    For the loop stage: `seed` shuffles loop.parallel; arena=True places allocs at their planned offsets in one byte arena;
    check_races=True watches all loads and stores for iterations that disturb each other.
    """

    def __init__(self, module: Module, threads: int | None = None, *, dtype_shadow: str | None = None, seed: int = 0,
                 arena: bool = False, check_races: bool = False, on_op: Callable[[Op, list[Array]], None] | None = None):
        if dtype_shadow not in (None, "f64"):
            raise ValueError(f"dtype_shadow is None or 'f64', got {dtype_shadow!r}")
        if dtype_shadow and arena:
            raise ValueError("the f64 shadow has no memory layout: arena=True does not go with it")
        super().__init__(shadow=dtype_shadow is not None)
        self.module, self.seed, self.arena, self.check_races, self.on_op = module, seed, arena, check_races, on_op
        self._constants: dict[Op, list[Array]] = {}
        self._launcher = None
        self._depth = 0
        self.progress, self._cancelled = 0, False

    # ---- the face of a Program ----

    def call(self, name: str, args: list) -> list[np.ndarray]:
        """Runs @name. ValueError when the arguments do not fit its types, RuntimeError_ when the program fails."""
        func = self.module.funcs.get(name)
        if func is None:
            raise ValueError(f"no function named {name!r}: the module has {', '.join(self.module.funcs)}")
        inputs = func.args[:func.attrs.get("n_inputs", len(func.args))]
        if len(args) != len(inputs):
            raise ValueError(f"{name} takes {len(inputs)} arguments, got {len(args)}")
        names = func.attrs.get("arg_names") or []
        self.progress, self._cancelled = 0, False
        arrays = []
        for i, (a, v) in enumerate(zip(args, inputs)):
            label = names[i] if i < len(names) else v.name or f"argument {i}"
            arrays.append(self._checked(a, v.type, f"{name}: {label}"))
        if any(isinstance(v.type, BufferType) for v in func.args):
            if self._launcher is None:
                from .loops import Launcher
                self._launcher = Launcher(self.module, self.seed, self.arena, self.shadow, self.check_races, self._step_done)
            out = self._launcher.launch(func, arrays)
        else:
            out = self.run_func(func, arrays)
        return [to_numpy(a, self.shadow) for a in out]

    def cancel(self, now: bool = False) -> None:
        """From another thread or a signal handler: the call that runs returns after its current step (of a loop with `progress`); what
        later steps would have given is 0. `progress`: the steps that were done."""
        self._cancelled = True

    def _step_done(self) -> bool:
        self.progress += 1
        return self._cancelled

    def to_device(self, array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array)

    def to_host(self, handle: np.ndarray) -> np.ndarray:
        return np.asarray(handle)

    def _checked(self, a, type: Type, label: str) -> Array:
        a = np.asarray(a)
        want = np.dtype(np.float64) if self.shadow and type.dtype.is_float and a.dtype == np.float64 else type.dtype.numpy
        if a.dtype != want:
            try:
                got = dtype_of(a.dtype).name
            except KeyError:
                got = str(a.dtype)
            raise ValueError(f"{label} is {type}, got an array of {got}")
        if tuple(a.shape) != tuple(type.shape):
            raise ValueError(f"{label} is {type}, got shape {list(a.shape)}")
        return from_numpy(a, type.dtype) if want == type.dtype.numpy else Array(type.dtype, a.shape, a.ravel().tolist())

    # ---- functions and blocks of the tensor stage ----

    def run_func(self, func: Func, args: list[Array]) -> list[Array]:
        if self._depth >= MAX_DEPTH:
            raise RecursionError(f"calls nest deeper than {MAX_DEPTH} at @{func.name}")
        self._depth += 1
        try:
            return self.run_block(func.body, args, {})
        finally:
            self._depth -= 1

    def run_block(self, block: Block, args: list[Array], outer: dict[Value, Array]) -> list[Array]:
        """Runs a block to its terminator and gives the terminator's operands. `outer`: values of enclosing blocks."""
        env = dict(outer)
        env.update(zip(block.args, args, strict=True))
        for op in block.ops[:-1]:
            results = self.run_op(op, [env[v] for v in op.operands], env)
            env.update(zip(op.results, results, strict=True))
            if self.on_op is not None:
                self.on_op(op, results)
        return [env[v] for v in block.terminator.operands]

    def run_op(self, op: Op, operands: list[Array], env: dict[Value, Array]) -> list[Array]:
        run = _CONTROL.get(op.name)
        if run is not None:
            return run(self, op, operands, env)
        if op.name == "tensor.constant":
            if op not in self._constants:
                self._constants[op] = self.evaluate(op, operands)
            return self._constants[op]
        return self.evaluate(op, operands)


# ---- control flow -------------------------------------------------------------------------------------------------------


def _call(run: Interpreter, op: Op, operands, env):
    return run.run_func(run.module.funcs[op.attrs["callee"]], operands)


def _custom(run: Interpreter, op: Op, operands, env):
    return run.run_func(run.module.funcs[op.attrs["forward"]], operands)


def _if(run: Interpreter, op: Op, operands, env):
    return run.run_block(op.regions[0 if operands[0].item else 1], [], env)


def _while(run: Interpreter, op: Op, operands, env):
    cond, body = op.regions
    while run.run_block(cond, operands, env)[0].item:
        operands = run.run_block(body, operands, env)
    return operands


def _scan(run: Interpreter, op: Op, operands, env):
    n, length, body = op.attrs["n_carry"], op.attrs["length"], op.regions[0]
    carries, xs = operands[:n], operands[n:]
    index_type = body.args[0].type
    stacked = [[None] * length for _ in op.results[n:]]
    for i in reversed(range(length)) if op.attrs["reverse"] else range(length):
        slices = [_at(x, i) for x in xs]
        out = run.run_block(body, [Array(index_type.dtype, (), [i]), *carries, *slices], env)
        carries = out[:n]
        for ys, y in zip(stacked, out[n:]):
            ys[i] = y.data
        if op.attrs.get("progress") and run._step_done():
            stacked = [[y if y is not None else [r.type.dtype.numpy.type(0).item()] * (r.type.numel // length) for y in ys]
                       for ys, r in zip(stacked, op.results[n:])]
            break
    ys = [Array(r.type.dtype, tuple(r.type.shape), [v for y in parts for v in y]) for r, parts in zip(op.results[n:], stacked)]
    return [*carries, *ys]


def _at(x: Array, i: int) -> Array:
    size = len(x.data) // x.shape[0]
    return Array(x.dtype, x.shape[1:], x.data[i * size:(i + 1) * size])


def _fused(run: Interpreter, op: Op, operands, env):
    return run.run_block(op.regions[0], operands, {})


_CONTROL = {"func.call": _call, "autodiff.custom": _custom, "scf.if": _if, "scf.while": _while, "scf.scan": _scan, "tensor.fused": _fused}


def interpret(module: Module, name: str, args: list[np.ndarray], **options) -> list[np.ndarray]:
    """One call: `Interpreter(module, **options).call(name, args)`."""
    return Interpreter(module, **options).call(name, args)



