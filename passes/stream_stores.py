"""The pass stream-stores: marks the stores of large results, which then go to memory past the caches.

Before and after: loop stage. A store into a line that is not in the cache reads it first; of an array larger than the last cache nothing is left
there for whoever reads it next, so that this read, and what the line pushes out, are for nothing. Elements and their values stay the same.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir.core import Block, Func, Module, Value
from .cost import STREAM_BYTES


@dataclass(frozen=True)
class StreamStores:
    """Before and after: loop stage."""

    name: ClassVar[str] = "stream-stores"
    exact: ClassVar[bool] = True

    def apply(self, module: Module) -> Module:
        called = {op.attrs["callee"] for f in module.funcs.values() for op in f.walk() if op.name == "loop.call"}
        for f in module.funcs.values():
            _mark(f, f.name not in called)
        return module


def _mark(func: Func, is_entry: bool) -> None:
    """Memory that starts on a cache line: allocations, and an entry's own results (a callee's may be anywhere within another buffer)."""
    root: dict[Value, Value] = {}
    donated = {r for _, r in func.attrs.get("donate", [])}
    first = func.attrs.get("n_inputs", len(func.args))
    if is_entry:
        root = {v: v for i, v in enumerate(func.args[first:]) if i not in donated}
    for op in func.walk():
        if op.name == "loop.alloc":
            root[op.result] = op.result
        elif op.name == "loop.view" and op.operands[0] in root:
            root[op.result] = root[op.operands[0]]
    for op in func.walk():
        if op.name == "loop.parallel":
            _kernel(op.regions[0], root)


def _kernel(body: Block, root: dict[Value, Value]) -> None:
    ops = list(body.walk())
    read = {root.get(op.operands[0]) for op in ops if op.name == "loop.load"}
    for op in ops:
        if op.name == "loop.store" and _large(op.operands[1]) and root.get(op.operands[1]) not in (None, *read):
            op.attrs["stream"] = True


def _large(v: Value) -> bool:
    return v.type.numel * v.type.dtype.bytes >= STREAM_BYTES
