"""cse: equal computations are done once, within functions (regions see the values of enclosing blocks) and between equal functions."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..compiler.ir.core import Block, Func, Module, Op, Value
from ..compiler.ir.opdef import OPS
from ..compiler.ir.types import DType, Type
from .util import Purity, callees, callees_first

LABELS = ("arg_names", "result_names", "arg_locs", "arg_roles")     # function attributes that do not change what it computes


@dataclass(frozen=True)
class Cse:
    """Ops without effects that are equal in name, attributes, operands and regions become the first of them; functions with
    equal bodies are called under one name. Valid IR before and after, at any tensor stage."""

    name: ClassVar[str] = "cse"
    exact: ClassVar[bool] = True

    def apply(self, module: Module) -> Module:
        pure = Purity(module)
        first: dict = {}
        same: dict[str, str] = {}
        for f in callees_first(module):
            for op in f.walk():
                if op.name == "func.call" and op.attrs["callee"] in same:
                    op.attrs = {**op.attrs, "callee": same[op.attrs["callee"]]}
            _Table(pure).run(f.body)
            name = first.setdefault(_func_key(f), f.name)
            if name != f.name:
                same[f.name] = name
        entries = set(module.attrs.get("entries") or module.funcs)
        still = {name for op in module.walk() for name in callees(op)}
        for name in same:
            if name not in entries and name not in still:
                del module.funcs[name]
        return module


class _Table:
    """Expressions seen so far; one scope per block."""

    def __init__(self, pure: Purity):
        self.pure, self.scopes, self.env = pure, [], {}

    def run(self, block: Block) -> None:
        self.scopes.append({})
        out = []
        for op in block.ops:
            op.operands = [self.env.get(v, v) for v in op.operands]
            if op.regions:
                for r in op.regions:
                    self.run(r)
            if op.results and self.pure(op):
                key = _op_key(op, {})
                seen = next((s[key] for s in reversed(self.scopes) if key in s), None)
                if seen is not None:
                    self.env.update(zip(op.results, seen.results))
                    continue
                self.scopes[-1][key] = op
            out.append(op)
        block.ops = out
        self.scopes.pop()


def _op_key(op: Op, local: dict[Value, int]) -> tuple:
    """Equal keys: equal computations. `local` numbers values that are defined inside what is being compared."""
    operands = [local.get(v, v) for v in op.operands]
    if OPS[op.name].commutative:
        operands.sort(key=lambda v: v if isinstance(v, int) else id(v))
    regions = tuple(_block_key(r, local) for r in op.regions)
    skip = ("instance", "signals")
    attrs = tuple((k, _attr_key(v)) for k, v in sorted(op.attrs.items()) if k not in skip)
    return op.name, tuple(operands), attrs, regions, tuple(r.type for r in op.results)


def _block_key(block: Block, outer: dict[Value, int]) -> tuple:
    local = dict(outer)
    for a in block.args:
        local[a] = len(local)
    keys = [tuple(a.type for a in block.args)]
    for op in block.ops:
        keys.append(_op_key(op, local))
        for r in op.results:
            local[r] = len(local)
    return tuple(keys)


def _func_key(f: Func) -> tuple:
    attrs = tuple((k, _attr_key(v)) for k, v in sorted(f.attrs.items()) if k not in LABELS)
    return _block_key(f.body, {}), tuple(f.result_types), attrs


def _attr_key(v):
    """A hashable stand-in, equal only for values that mean the same (0.0 and -0.0, 1 and true differ)."""
    if isinstance(v, np.ndarray):
        return v.dtype.str, v.shape, v.tobytes() if v.nbytes <= 1 << 16 else id(v)
    if isinstance(v, list | tuple):
        return tuple(map(_attr_key, v))
    if isinstance(v, dict):
        return tuple((k, _attr_key(x)) for k, x in sorted(v.items()))
    if isinstance(v, float | np.floating):
        return "float", repr(float(v))
    if isinstance(v, bool | np.bool_):
        return "bool", bool(v)
    if isinstance(v, DType):
        return v.name
    if isinstance(v, Type):
        return v
    return v
