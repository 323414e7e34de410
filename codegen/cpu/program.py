"""CpuProgram: a loop-stage module compiled for this machine, with the face every backend has (docs/ARCHITECTURE.md, 5).

Owns the machine code, the arena and the constants; arrays are NumPy's. No code generation here: see emit.py.
"""
from __future__ import annotations

import ctypes
import math
import threading

import numpy as np

from ...compiler.diagnostics import RuntimeError_
from ...compiler.ir.core import Func, Module
from .contract import GEMM_DTYPES
from .emit import Emitter, n_inputs
from .gemm import gemm_address, scratch_bytes, symbol
from .runtime import Interruptible, Memory, Runtime, default_threads, runtime, symbols
from .target import CpuTarget, Library, compile_many, host_target

ALIGN = 64


def llvm_text(module: Module, target: CpuTarget | None = None, threads: int = 1) -> str:
    """The LLVM IR of a loop-stage module."""
    return "\n; ---- next module\n".join(Emitter(module, target or host_target(), threads).run(_entries(module)))


def _entries(module: Module) -> list[str]:
    wanted = module.attrs.get("entries") or list(module.funcs)
    return [name for name in wanted if name in module.funcs]


def prepare(dtypes: tuple[str, ...] = ("f32",), target: CpuTarget | None = None) -> None:
    """Start compiling (or loading) what every program needs, beside whatever comes next."""
    target = target or host_target()

    def work() -> None:
        symbols()
        for d in dtypes:
            gemm_address(d, target)
    threading.Thread(target=work).start()


def _contracted(module: Module) -> tuple[str, ...]:
    return tuple(sorted({op.operands[0].type.dtype.name for op in module.walk() if op.name == "loop.contract"} & set(GEMM_DTYPES)))


def aligned_empty(shape, dtype: np.dtype) -> np.ndarray:
    """An uninitialised array whose data starts on a cache line."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size <= ALIGN:
        return np.empty(shape, dtype)
    raw = np.empty(size + ALIGN, np.uint8)
    start = -_address(raw) % ALIGN
    return raw[start:start + size].view(dtype).reshape(shape)


def _address(a: np.ndarray) -> int:
    return a.__array_interface__["data"][0]


class _Entry:
    """What a call of one function needs."""

    def __init__(self, func: Func, address: int, team: Runtime, interruptible: bool):
        self.name, self.address, self.team, self.interruptible = func.name, address, team, interruptible
        n = n_inputs(func)
        self.inputs = [(v.type.dtype.numpy, tuple(v.type.shape), str(v.type).removeprefix("buf<").removesuffix(">")) for v in func.args[:n]]
        self.donated = {r: a for a, r in func.attrs.get("donate", [])}
        # (the argument whose memory it takes or -1, dtype, shape)
        self.outputs = [(self.donated.get(i, -1), v.type.dtype.numpy, tuple(v.type.shape)) for i, v in enumerate(func.args[n:])]
        self.names = func.attrs.get("arg_names") or [f"argument {i}" for i in range(n)]
        self.arena = func.attrs.get("arena", 0)
        self.table = (ctypes.c_uint64 * (len(func.args) + 1))()      # what the machine code gets: arena, arguments, results
        self.pointers = ctypes.addressof(self.table)
        self.last: list = [None] * n


class CpuProgram:
    """Machine code for every entry function of a module at stage loop, with planned buffers."""

    def __init__(self, module: Module, threads: int | None = None, profile: bool = False):
        self.threads = threads or default_threads()
        target = host_target()
        if dtypes := _contracted(module):
            prepare(dtypes, target)                             # the GEMM compiles while this module's text is written
        emitter = Emitter(module, target, self.threads, profile)
        names = _entries(module)
        texts = emitter.run(names)
        self._errors = emitter.errors.items
        self._constants = emitter.constants                     # keeps the memory alive
        imports = symbols()
        imports.update({name: value.ctypes.data for name, value in self._constants.items()})
        self._counters = np.empty((len(emitter.steps) + 1, 3), np.int64)
        self._reset()
        self._steps = emitter.steps
        imports["engram_profile"] = self._counters.ctypes.data
        imports.update({symbol(d): gemm_address(d, target) for d in emitter.gemms})
        used = {k: v for k, v in imports.items() if any(f"@{k}" in text for text in texts)}
        self._library = Library(compile_many(texts, target), list(emitter.entries.values()), used, target)
        self._one = runtime(1)
        self._team = runtime(self.threads)
        for d in emitter.gemms:
            self._one.reserve(scratch_bytes(target, d))
            self._team.reserve(scratch_bytes(target, d))
        self._functions = {name: _Entry(module.funcs[name], self._library.address(emitter.entries[name]),
                                        self._one if emitter.summaries[name].single else self._team,
                                        emitter.interruptible(name)) for name in names}
        self._arena: Memory | None = None
        self._lock = threading.Lock()

    # ---- arrays

    def to_device(self, array: np.ndarray) -> np.ndarray:
        """A C-contiguous copy on cache-line boundaries."""
        array = np.asarray(array)
        out = aligned_empty(array.shape, array.dtype)
        out[...] = array
        return out

    def to_host(self, handle: np.ndarray) -> np.ndarray:
        return handle

    def profile(self) -> list[tuple[str, int, int, int]]:
        """With profile=True: (step, times run, cycles in all, cycles at best) since the last call, by thread 0's time-stamp
        counter; waiting for other threads counts."""
        out = [(name, *row) for name, row in zip(self._steps, self._counters.tolist())]
        self._reset()
        return out

    def _reset(self) -> None:
        self._counters[:] = (0, 0, 1 << 62)

    # ---- calls

    def call(self, name: str, args: list) -> list[np.ndarray]:
        """Run a function. A donated argument's memory holds the result that was declared to replace it."""
        entry = self._functions.get(name)
        if entry is None:
            raise ValueError(f"no function {name!r}; there are: {', '.join(self._functions)}")
        if len(args) != len(entry.inputs):
            raise ValueError(f"{name} takes {len(entry.inputs)} arguments, got {len(args)}")
        with self._lock:
            # an array that was passed here last time, too, needs neither checks nor a look at its address
            arrays, p, table = entry.last, entry.pointers, entry.table
            for i, a in enumerate(args):
                if a is not arrays[i]:
                    arrays[i] = a = self._checked(entry, i, a)
                    table[i + 1] = _address(a)
            outputs, at = [], len(arrays)
            for kind, dtype, shape in entry.outputs:
                at += 1
                if kind >= 0:
                    out = arrays[kind]
                    table[at] = table[kind + 1]
                else:
                    out = aligned_empty(shape, dtype)
                    table[at] = _address(out)
                outputs.append(out)
            if self._arena is None or self._arena.nbytes < entry.arena:
                self._arena = Memory(max(entry.arena, 4096))
            table[0] = self._arena.address
            if entry.interruptible:
                with Interruptible(entry.team):
                    code, value = entry.team.launch(entry.address, p)
            else:
                code, value = entry.team.launch(entry.address, p)
        if code:
            loc, message = self._errors[code - 1]
            raise RuntimeError_(message.replace("{}", str(value)), loc)
        return outputs

    def _checked(self, entry: _Entry, i: int, a) -> np.ndarray:
        dtype, shape, text = entry.inputs[i]
        if not isinstance(a, np.ndarray):
            a = np.asarray(a)
        if a.dtype != dtype or a.shape != shape:
            raise ValueError(f"{entry.name}: {entry.names[i]} expects {text}, got {a.dtype}{list(a.shape)}")
        if not a.flags.c_contiguous or (i in entry.donated.values() and not a.flags.writeable):
            a = self.to_device(a)
        return a
