"""Which matrices of a training program multiply the samples themselves: only their columns are pictures of what a unit looks for.

Follows values through the program as the front end made it. The size alone does not tell: a recurrent layer of 64 units that reads
digits of 64 pixels has a 64 x 64 matrix, too, and its rows are no pixels.
"""
from __future__ import annotations

from typing import NamedTuple

from .compiler.ir.core import Block, Module, Op, Value

_LAYOUT = {"tensor.transpose", "tensor.reshape", "tensor.cast", "nn.quantize", "tensor.stop_gradient", "autodiff.watch"}      # still the same parameter


class _Origin(NamedTuple):
    """Where a value comes from."""

    slot: int | None = None            # this parameter and nothing else
    data: bool = False                 # the samples have a part in it
    learned: bool = False              # so has the product with a parameter


_NOTHING = _Origin()


def first_matrices(plan) -> set[str]:
    """Paths of the parameters that are multiplied by values made of samples, before any other parameter was."""
    found: set[int] = set()
    for phase in plan.phases:
        func = phase.module.funcs[phase.entry]
        n = len(plan.slots)
        origins = [_Origin(slot=k) if k < n else _Origin(data=True) if k >= n + 3 else _NOTHING for k in range(len(func.args))]
        _Walk(phase.module, found).block(func.body, origins, {}, True)
    return {plan.slots[k].path for k in found}


class _Walk:
    def __init__(self, module: Module, found: set[int]):
        self.module, self.found = module, found

    def block(self, block: Block, args: list[_Origin], outer: dict[Value, _Origin], note: bool) -> list[_Origin]:
        """The origins of what the terminator hands over. `note`: this is the walk that counts."""
        env = {**outer, **dict(zip(block.args, args))}
        for op in block.ops[:-1]:
            env.update(zip(op.results, self.op(op, [env[v] for v in op.operands], env, note)))
        return [env[v] for v in block.terminator.operands]

    def op(self, op: Op, xs: list[_Origin], env: dict[Value, _Origin], note: bool) -> list[_Origin]:
        if op.name == "func.call":
            return self.block(self.module.funcs[op.attrs["callee"]].body, xs, {}, note)
        if op.name == "scf.if":
            a, b = (self.block(r, [], env, note) for r in op.regions)
            return [_joined([p, q, xs[0]]) for p, q in zip(a, b)]
        if op.name == "scf.scan":
            n = op.attrs["n_carry"]
            rest = [x._replace(slot=None) for x in xs[n:]]
            once = self.block(op.regions[0], [_NOTHING, *xs[:n], *rest], env, False)           # what a later step is handed
            carries = [_joined([a, b]) for a, b in zip(xs[:n], once)]
            return self.block(op.regions[0], [_NOTHING, *carries, *rest], env, note)
        if op.name in _LAYOUT:
            return xs[:1]
        inside = _joined([*xs, *(env[v] for r in op.regions for o in r.walk() for v in o.operands if v in env)])
        if op.name == "tensor.dot_general":
            for w, x in ((xs[1], xs[0]), (xs[0], xs[1])):
                if w.slot is not None:
                    if note and x.data and not x.learned:
                        self.found.add(w.slot)
                    inside = inside._replace(learned=True)
        return [inside] * len(op.results)


def _joined(origins: list[_Origin]) -> _Origin:
    return _Origin(None, any(o.data for o in origins), any(o.learned for o in origins))
