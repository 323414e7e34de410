"""First values apart: an `init` function, which makes them all, as few functions that make one value each.

Twelve equal layers begin alike: their weights are one function of a key and a path's number, called for each of them. So what
is compiled depends on how many different beginnings there are, not on how many layers; and a value that comes from a file is not drawn.
"""
from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from ..compiler.ir import Block, Func, Module, Op, TensorType, Value
from ..compiler.ir.core import clone_op, free_values
from .train_epoch import reachable


@dataclass(frozen=True)
class First:
    """How a value begins: a number everywhere (`entry` is empty), or `entry(key, numbers...)`."""

    type: TensorType
    value: object = None
    entry: str = ""
    numbers: tuple[int, ...] = ()


def first_values(module: Module, entry: str = "init", wanted: Iterable[int] | None = None) -> tuple[Module, list[First]]:
    """The results of `entry(key)`, or the `wanted` ones, in order, and a module with the functions that they need. Each gives the bits that
    `entry` gives."""
    func = module.funcs[entry]
    key, = func.args
    order = {op: k for k, op in enumerate(func.body.ops)}
    out, made = Module(list(module.funcs.values())), {}
    results = func.returns.operands
    firsts = []
    for k in range(len(results)) if wanted is None else wanted:
        value = results[k]
        if value.owner in order and value.owner.name == "tensor.constant" and not isinstance(value.owner.attrs["value"], np.ndarray):
            firsts.append(First(value.type, value.owner.attrs["value"]))
            continue
        ops = sorted(_needed(value, order), key=order.get)
        folded = _folded(ops, key)
        structure = _structure(ops, value, key, folded)
        if structure not in made:
            f = _function(out.unique_name("first"), ops, value, key, folded)
            made[structure] = out.add(f).name
        firsts.append(First(value.type, entry=made[structure], numbers=tuple(int(v.owner.attrs["value"]) for v in folded)))
    return reachable(out, list(made.values())), firsts


def _needed(value: Value, order: dict[Op, int]) -> set[Op]:
    """The ops of the function's body that the value is computed by."""
    found: set[Op] = set()
    todo = [value]
    while todo:
        op = todo.pop().owner
        if op in order and op not in found:
            found.add(op)
            todo += op.operands
            for region in op.regions:
                todo += free_values(region)
    return found


def _folded(ops: list[Op], key: Value) -> list[Value]:
    """The numbers that are folded into the key: what tells equal beginnings apart."""
    numbers = [op.operands[1] for op in ops if op.name == "random.fold_in" and op.operands[0] is key]
    return list(dict.fromkeys(v for v in numbers if isinstance(v.owner, Op) and v.owner.name == "tensor.constant"))


def _structure(ops: list[Op], value: Value, key: Value, folded: list[Value]) -> Hashable:
    """Equal for values that the same function makes from other numbers."""
    names: dict[Value, int] = {v: k for k, v in enumerate([key, *folded])}
    out: list[Hashable] = []

    def visit(op: Op) -> None:
        if op.results and op.results[0] in names:
            return
        out.append((op.name, _plain(op.attrs), tuple(names[v] for v in op.operands), tuple(r.type for r in op.results)))
        for region in op.regions:
            block(region)
        for r in op.results:
            names[r] = len(names)

    def block(b: Block) -> None:
        for a in b.args:
            names[a] = len(names)
        out.append(tuple(a.type for a in b.args))
        for op in b.ops:
            visit(op)
        out.append(None)
    for op in ops:
        visit(op)
    return (*out, names[value])


def _plain(x: object) -> Hashable:
    if isinstance(x, dict):
        return tuple((k, _plain(v)) for k, v in x.items())
    if isinstance(x, list | tuple):
        return tuple(map(_plain, x))
    if isinstance(x, np.ndarray):
        return x.dtype.str, x.shape, x.tobytes()
    return (type(x), repr(x)) if isinstance(x, float | bool) else x       # 0.0 is not -0.0, nor is it 0


def _function(name: str, ops: list[Op], value: Value, key: Value, folded: list[Value]) -> Func:
    names = ["key", *(f"number {k}" for k in range(len(folded)))]
    func = Func(name, [key.type, *(v.type for v in folded)], names, [value.type], {"arg_names": names})
    env = dict(zip([key, *folded], func.args))
    func.body.ops = [clone_op(op, env) for op in ops if op.results[0] not in env]
    func.body.append(Op("func.return", [env[value]]))
    return func


__all__ = ["First", "first_values"]
