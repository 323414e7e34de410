"""May a kernel write a buffer that it also reads? Decided on the finished kernel, by its index expressions."""
from __future__ import annotations

from collections.abc import Callable

from ..compiler.ir.core import Block, Op, Value
from .lower_buffers import Host, Storage


def accesses(kernel: Op, root: Value, host: Host) -> tuple[list, list]:
    """(loads, stores) of root's memory in the kernel, each as (storage shown, index operands, path of (block, position))."""
    loads, stores = [], []

    def visit(block: Block, path: tuple) -> None:
        for i, op in enumerate(block.ops):
            here = path + ((block, i),)
            if op.name in ("loop.load", "loop.store"):
                first = 1 if op.name == "loop.load" else 2
                s = host.storage(op.operands[first - 1])
                if s.buffer is root:
                    (loads if first == 1 else stores).append((s, tuple(op.operands[first:]), here))
            elif op.name in ("loop.view", "loop.sort", "loop.copy") and any(host.storage(v).buffer is root for v in op.operands if hasattr(v.type, "strides")):
                stores.append((None, (), here))
            for r in op.regions:
                visit(r, here)

    visit(kernel.regions[0], ())
    return loads, stores


def in_place(kernel: Op, root: Value, host: Host) -> bool:
    """True when every element that is stored is read, if at all, only before it is stored: at the same place in the same iteration,
    or in an earlier loop of the same row (the parallel indices pick the row)."""
    if any(host.storage(v).buffer is root for v in kernel.operands):      # a product's own operand or result
        return False
    loads, stores = accesses(kernel, root, host)
    if not loads or not stores:
        return True
    ivs = kernel.regions[0].args
    for s, at, path in stores:
        if s is None:
            return False
        for t, index, before in loads:
            if s != t or not _earlier(before, path):
                return False
            if at == index and before[-1][0] is path[-1][0]:
                continue
            # a row: leading indices equal, all of the kernel's parallel indices among them, and the load's loop comes first
            n = next((i for i, (p, q) in enumerate(zip(at, index)) if p is not q), len(at))
            if not set(ivs) <= set(at[:n]) and kernel.attrs.get("extents") != [1]:
                return False
            if before[0][1] == path[0][1]:
                return False
    return True


def _earlier(a: tuple, b: tuple) -> bool:
    """Whether op path a comes before b in program order."""
    for (x, i), (y, j) in zip(a, b):
        if x is not y or i != j:
            return x is y and i < j
    return False


def retarget(kernels: list[Op], old: Storage, make: Callable[[], Storage], host: Host) -> Storage:
    """Let the kernels (already in the host's list) store to new memory instead of `old`'s; returns it."""
    ops = host.block.ops
    count, first = len(ops), ops.index(kernels[0])
    new = make()
    for k in kernels:
        for op in k.regions[0].walk():
            if op.name == "loop.store":
                s = host.storage(op.operands[1])
                if s.buffer is old.buffer:
                    op.operands[1] = host.buffer(Storage(new.buffer, 0, s.shape, s.strides))
    made = ops[count:]                                 # the allocation and its views: they belong before the kernels
    del ops[count:]
    ops[first:first] = made
    return new
