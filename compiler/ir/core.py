"""SSA with regions: Value, Op, Block, Func, Module, and walking, cloning and rewriting them.

A region is one block. No op semantics here: those are rows of the op table (compiler/ops).
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from .types import Type


class Loc(NamedTuple):
    """Where an op comes from in the user's text (1-based)."""

    file: str
    line: int
    col: int
    end_line: int = 0
    end_col: int = 0

    def __str__(self):
        return f"{self.file}:{self.line}:{self.col}"


class Value:
    """An SSA value: a result of `owner` (an Op) or an argument of it (a Block or Func). `name` is a hint for printing."""

    __slots__ = ("type", "owner", "name")

    def __init__(self, type: Type, owner=None, name: str | None = None):
        self.type, self.owner, self.name = type, owner, name

    def __repr__(self):
        return f"<%{self.name or '?'}: {self.type}>"


class Op:
    """One operation. `attrs` holds plain values only (see printer); `regions` are blocks."""

    __slots__ = ("name", "operands", "attrs", "results", "regions", "loc")

    def __init__(self, name: str, operands, attrs: dict | None = None, result_types=(), regions=(), loc: Loc | None = None):
        self.name = name
        self.operands: list[Value] = list(operands)
        self.attrs: dict = attrs or {}
        self.results: list[Value] = [Value(t, self) for t in result_types]
        self.regions: list[Block] = list(regions)
        self.loc = loc

    @property
    def result(self) -> Value:
        """The only result."""
        if len(self.results) != 1:
            raise ValueError(f"{self.name} has {len(self.results)} results")
        return self.results[0]

    def __repr__(self):
        return f"<{self.name} at {self.loc}>"


class Block:
    """A list of ops with arguments; the last op is its terminator."""

    __slots__ = ("args", "ops")

    def __init__(self, arg_types=(), arg_names=None):
        names = arg_names or [None] * len(arg_types)
        self.args: list[Value] = [Value(t, self, n) for t, n in zip(arg_types, names)]
        self.ops: list[Op] = []

    def append(self, op: Op) -> Op:
        self.ops.append(op)
        return op

    @property
    def terminator(self) -> Op:
        return self.ops[-1]

    def walk(self) -> Iterator[Op]:
        """All ops, outer before inner, in order."""
        for op in self.ops:
            yield op
            for r in op.regions:
                yield from r.walk()


class Func:
    """A function: `args` are its body block's arguments, `result_types` the types it returns.

    attrs: `donate` [[arg, result], ...]; `arg_names`/`result_names` lists of str for people and for binding by name.
    """

    __slots__ = ("name", "body", "result_types", "attrs", "loc")

    def __init__(self, name: str, arg_types=(), arg_names=None, result_types=(), attrs=None, loc=None):
        self.name = name
        self.body = Block(arg_types, arg_names)
        self.result_types: list[Type] = list(result_types)
        self.attrs: dict = attrs or {}
        self.loc = loc

    @property
    def args(self) -> list[Value]:
        return self.body.args

    @property
    def returns(self) -> Op:
        return self.body.ops[-1]

    def walk(self) -> Iterator[Op]:
        return self.body.walk()


class Module:
    """Functions by name, in definition order. `attrs["stage"]` names the stage whose legality the verifier checks."""

    __slots__ = ("funcs", "attrs")

    def __init__(self, funcs=(), attrs=None):
        self.funcs: dict[str, Func] = {f.name: f for f in funcs}
        self.attrs: dict = attrs or {}

    def add(self, func: Func) -> Func:
        if func.name in self.funcs:
            raise ValueError(f"function @{func.name} exists")
        self.funcs[func.name] = func
        return func

    def unique_name(self, base: str) -> str:
        if base not in self.funcs:
            return base
        n = 1
        while f"{base}.{n}" in self.funcs:
            n += 1
        return f"{base}.{n}"

    def walk(self) -> Iterator[Op]:
        for f in self.funcs.values():
            yield from f.walk()


# ---- cloning and rewriting ------------------------------------------------------------------------------------------


def clone_op(op: Op, env: dict[Value, Value]) -> Op:
    """A copy whose operands are mapped through `env` (values not in it stay); env learns the results. Regions are copied too."""
    new = Op.__new__(Op)
    new.name, new.attrs, new.loc = op.name, dict(op.attrs), op.loc
    new.operands = [env.get(v, v) for v in op.operands]
    new.results = [Value(r.type, new, r.name) for r in op.results]
    env.update(zip(op.results, new.results))
    new.regions = [clone_block(r, env) for r in op.regions]
    return new


def clone_block(block: Block, env: dict[Value, Value]) -> Block:
    new = Block()
    new.args = [Value(a.type, new, a.name) for a in block.args]
    env.update(zip(block.args, new.args))
    new.ops = [clone_op(op, env) for op in block.ops]
    return new


def clone_func(func: Func, name: str | None = None) -> Func:
    new = Func(name or func.name, result_types=func.result_types, attrs=dict(func.attrs), loc=func.loc)
    new.body = clone_block(func.body, {})
    return new


def clone_module(module: Module) -> Module:
    return Module([clone_func(f) for f in module.funcs.values()], dict(module.attrs))


def replace_uses(block: Block, env: dict[Value, Value]) -> None:
    """Rewrite every operand in the block (and nested regions) through `env`, following chains."""
    if not env:
        return

    def final(v: Value) -> Value:
        while v in env:
            v = env[v]
        return v

    for op in block.walk():
        ops = op.operands
        for i, v in enumerate(ops):
            if v in env:
                ops[i] = final(v)


def uses(block: Block) -> dict[Value, list[Op]]:
    """Value -> the ops (nested ones too) that have it as an operand, in order; an op once per operand slot."""
    out: dict[Value, list[Op]] = {}
    for op in block.walk():
        for v in op.operands:
            out.setdefault(v, []).append(op)
    return out


def free_values(block: Block) -> list[Value]:
    """Values used in the block but defined outside it, in order of first use."""
    defined: set[Value] = set()
    out: dict[Value, None] = {}

    def visit(b: Block):
        defined.update(b.args)
        for op in b.ops:
            for v in op.operands:
                if v not in defined:
                    out[v] = None
            for r in op.regions:
                visit(r)
            defined.update(op.results)

    visit(block)
    return list(out)


def rewrite(block: Block, fn: Callable[[Op, Block], list[Value] | None]) -> bool:
    """One forward sweep over `block` and its regions.

    `fn(op, out)` may append new ops to `out` and return one replacement value per result (the op is dropped), or return None
    to keep the op. Operands are already rewritten when fn sees an op. True if anything changed.
    """
    env: dict[Value, Value] = {}
    changed = _rewrite(block, fn, env)
    return changed


def _rewrite(block, fn, env) -> bool:
    changed = False
    out = Block()
    for op in block.ops:
        if env:
            op.operands = [env.get(v, v) for v in op.operands]
        for r in op.regions:
            changed |= _rewrite(r, fn, env)
        new = fn(op, out)
        if new is None:
            out.ops.append(op)
        else:
            changed = True
            for r, v in zip(op.results, new, strict=True):
                if v.name is None:
                    v.name = r.name
                env[r] = v
    block.ops = out.ops
    return changed
