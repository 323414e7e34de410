"""What parameters, states and rules begin with: the values of an `init` function, made one by one by the functions of frontend/first_values.py.

Numbers that are the same everywhere (an optimiser's zeros) need no code, and on the cpu no writing: the system's memory is zero.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .compiler.ir import Module, TensorType

PIECE = 8 << 20                # bytes that one thread copies at a time


def make(module: Module, entry: str, key: np.ndarray, backend: str, build: Callable[[Module], Any],
         wanted: Iterable[int] | None = None) -> list[np.ndarray]:
    """The results of `entry(key)`, or the `wanted` ones, as arrays of the host. `build` compiles, for a backend of this name."""
    from .frontend import first_values
    module, firsts = first_values(module, entry, wanted)
    plain = [f.type for f in firsts if not f.entry]
    blank = iter(places(plain) if backend == "cpu" else [np.zeros(t.shape, t.dtype.numpy) for t in plain])
    program = build(module) if module.funcs else None
    out = []
    for f in firsts:
        if f.entry:
            result, = program.call(f.entry, [key, *(np.array(n, np.int64) for n in f.numbers)])
            out.append(np.asarray(program.to_host(result)))
            continue
        a = next(blank)
        if f.value or math.copysign(1.0, f.value) < 0:
            a[...] = f.value
        out.append(a)
    return out


def places(types: Sequence[TensorType]) -> list[np.ndarray]:
    """Memory of zeros for values of these types on the cpu."""
    from .codegen.cpu.program import zeros
    return zeros([(tuple(t.shape), t.dtype.numpy) for t in types])


def fill(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Copies arrays to places; large ones by all threads, since the first touch of memory costs more than the copy."""
    from .codegen.cpu.runtime import default_threads
    if sum(to.nbytes for to, _ in pairs) < 2 * PIECE:
        for to, a in pairs:
            to[...] = a
        return
    jobs = []
    for to, a in pairs:
        a = np.broadcast_to(a, to.shape)
        rows = max(1, PIECE * len(to) // to.nbytes) if to.ndim and to.nbytes > PIECE else 0
        jobs += [(to[i:i + rows], a[i:i + rows]) for i in range(0, len(to), rows)] if rows else [(to, a)]
    with ThreadPoolExecutor(default_threads()) as pool:
        for _ in pool.map(lambda job: np.copyto(*job), jobs):
            pass


__all__ = ["fill", "make", "places"]
