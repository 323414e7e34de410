"""Whether a compiled module fits the memory of this machine: told before any is taken, at the user's line.

Counts what the loop stage has fixed: a function's arguments, results and its arena of intermediates.  What is fused away takes nothing.
Before that stage (the interpreter's modules) only single values can be judged.
"""
from __future__ import annotations

import os
from collections.abc import Iterable

from .diagnostics import CompileError, Span, error
from .ir.core import Func, Loc, Module
from .ir.types import BufferType, TensorType


def machine_memory() -> int | None:
    """Bytes of memory that this process may have, or None where the system does not tell."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
    try:
        with open("/sys/fs/cgroup/memory.max") as f:           # a container's share
            text = f.read().strip()
        return min(total, int(text)) if text.isdigit() else total
    except OSError:
        return total


def check_memory(module: Module, limit: int | None = None) -> None:
    """A CompileError for the first entry function that needs more than `limit` bytes (by default: than there are)."""
    limit = limit or machine_memory()
    if limit is None:
        return
    for name in module.attrs.get("entries") or module.funcs:
        f = module.funcs.get(name)
        if f is not None and needs(f) > limit:
            raise _too_large(module, f, limit)
        if f is not None and "n_outputs" not in f.attrs:           # the interpreter's: nothing is planned, every value is made
            for op in f.walk():
                for r in op.results:
                    if _bytes(r.type) > limit:
                        raise _too_large(module, f, limit, (_bytes(r.type), r.type, None, op.loc))


def check_kept(name: str, types: Iterable[TensorType], loc: Loc | None) -> None:
    """A CompileError where what training keeps from step to step does not fit."""
    types, limit = list(types), machine_memory()
    total = sum(map(_bytes, types))
    if limit is not None and total > limit:
        largest = max(types, key=_bytes)
        raise error(_span(loc), f"`{name}` keeps {human(total)} of parameters and state; this machine has {human(limit)}",
                    hint=f"the largest tensor is {largest.dtype}[{', '.join(map(str, largest.shape))}]: {human(_bytes(largest))}")


def needs(f: Func) -> int:
    """Bytes of a function's arguments, results and intermediates; a result that takes over an argument's memory counts once."""
    n = f.attrs.get("n_inputs", len(f.args))
    reused = {n + r for _, r in f.attrs.get("donate") or []}
    return sum(_bytes(a.type) for i, a in enumerate(f.args) if i not in reused) + int(f.attrs.get("arena") or 0)


def _bytes(t) -> int:
    if isinstance(t, BufferType):
        return t.nbytes
    return t.numel * t.dtype.bytes if isinstance(t, TensorType) else 0


def _too_large(module: Module, f: Func, limit: int, one: tuple | None = None) -> CompileError:
    n = f.attrs.get("n_inputs", len(f.args))
    tensors = [(_bytes(a.type), a.type, f"argument `{a.name}`" if i < n else "a result", f.loc) for i, a in enumerate(f.args)]
    todo, seen = [f], set()
    while todo:
        g = todo.pop()
        if g.name in seen:
            continue
        seen.add(g.name)
        for op in g.walk():
            if op.name == "loop.alloc":
                tensors.append((_bytes(op.results[0].type), op.results[0].type, None, op.loc))
            callee = module.funcs.get(op.attrs.get("callee"))
            if callee is not None:
                todo.append(callee)
    size, t, role, loc = one or max(tensors, key=lambda x: x[0])
    what = f"{t.dtype}[{', '.join(map(str, t.shape))}]"
    return error(_span(loc), f"`{f.name}` needs {human(max(needs(f), size))} of memory; this machine has {human(limit)}",
                 hint=f"the largest tensor is {role or 'an intermediate'}, {what}: {human(size)}")


def human(n: int) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "KB", "MB", "GB", "TB", "PB"):
        if n < 1024 or unit == "PB":
            return f"{n:,.0f} {unit}" if unit == "bytes" or n >= 100 else f"{n:.1f} {unit}"
        n /= 1024
    raise AssertionError


def _span(loc: Loc | None) -> Span | None:
    return None if loc is None else Span(loc.file, loc.line, loc.col, loc.end_line or loc.line, loc.end_col or loc.col + 1)
