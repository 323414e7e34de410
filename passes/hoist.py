"""hoist: work that a scan's steps need not do one after the other is done for all steps at once.

What no step changes is computed before the loop; matrix products of the scanned inputs become one product before it; those
that are only stacked become one product after it. A recurrent net then does one large matmul instead of many small ones.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir.builder import Builder
from ..compiler.ir.core import Block, Module, Op, Value, clone_op, uses
from .util import Purity, nbytes
from .vmap import Batcher, Env, Run

LIMIT = 1 << 28                                          # bytes that a value of all steps may take
MOVES = frozenset("tensor." + n for n in ("constant iota broadcast reshape transpose slice reverse concat pad windows cast").split())


@dataclass(frozen=True)
class Hoist:
    """Takes invariant ops and products of scanned inputs out of scf.scan, at the tensor stage. Valid IR before and after (unused
    ops may be left: dce). Exact: every element is the same sum in the same order."""

    name: ClassVar[str] = "hoist"
    exact: ClassVar[bool] = True

    def apply(self, module: Module) -> Module:
        pure = Purity(module)
        batcher = Batcher(module)
        for f in module.funcs.values():
            _block(f.body, pure, batcher)
        return module


def _block(block: Block, pure: Purity, batcher: Batcher) -> None:
    out: list[Op] = []
    for op in block.ops:
        for r in op.regions:
            _block(r, pure, batcher)
        if op.name == "scf.scan" and op.attrs["length"] > 1:
            before, after = Block(), Block()
            _invariant(op, before, pure)
            _inputs(op, before, pure, batcher)
            _outputs(op, after, batcher)
            out += [*before.ops, op, *after.ops]
        else:
            out.append(op)
    block.ops = out


# ---- before the loop ------------------------------------------------------------------------------------------------


def _invariant(scan: Op, before: Block, pure: Purity) -> None:
    """Ops whose operands all come from outside. Moves of data alone stay: they cost nothing inside the kernels that read them."""
    body = scan.regions[0]
    inside = set(body.args) | {r for op in body.ops for r in op.results}
    movable: dict[Op, None] = {}
    for op in body.ops[:-1]:
        if not op.regions and pure(op) and all(v not in inside for v in op.operands):
            movable[op] = None
            inside.difference_update(op.results)
    wanted: set[Op] = set()
    todo = [op for op in movable if op.name not in MOVES]
    while todo:
        op = todo.pop()
        if op not in wanted:
            wanted.add(op)
            todo.extend(v.owner for v in op.operands if v.owner in movable)
    env: dict[Value, Value] = {}
    for op in movable:
        if op in wanted:
            before.append(clone_op(op, env))
    taken = {r for op in wanted if op.name not in MOVES for r in op.results}
    _substitute(body, {v: env[v] for v in taken})
    body.ops = [op for op in body.ops if op not in wanted or op.name in MOVES]


def _inputs(scan: Op, before: Block, pure: Purity, batcher: Batcher) -> None:
    """dot_general of values that depend on the scanned inputs and the index only: computed for all steps, scanned as a new input."""
    body, n, length = scan.regions[0], scan.attrs["n_carry"], scan.attrs["length"]
    x_args = body.args[1 + n:]
    inside = set(body.args) | {r for op in body.ops for r in op.results}
    mapped: set[Value] = {body.args[0], *x_args}
    chain: dict[Op, None] = {}
    for op in body.ops[:-1]:
        if not op.regions and op.name != "func.call" and pure(op) and all(v in mapped or v not in inside for v in op.operands):
            mapped.update(op.results)
            chain[op] = None
    dots = [op for op in chain if op.name == "tensor.dot_general" and nbytes(op.result) * length <= LIMIT]
    needed: set[Op] = set()
    todo: list[Op] = list(dots)
    while todo:
        op = todo.pop()
        if op not in needed:
            needed.add(op)
            todo.extend(v.owner for v in op.operands if v.owner in chain)
    if not dots or any(nbytes(r) * length > LIMIT for op in needed for r in op.results):
        return
    env: Env = {a: (x, True) for a, x in zip(x_args, scan.operands[n:])}
    b = Builder(before, scan.loc)
    if any(body.args[0] in op.operands for op in needed):
        env[body.args[0]] = (b.iota([length], 0), True)
    run = Run(batcher, length, env)
    for op in chain:
        if op in needed:
            run.op(op, before)
    replaced = {}
    for op in dots:
        if not run.on(op.result):                        # an invariant one
            replaced[op.result] = run.get(op.result)
            continue
        arg = Value(op.result.type, body, op.result.name)
        body.args.append(arg)
        scan.operands.append(run.get(op.result))
        replaced[op.result] = arg
    _substitute(body, replaced)
    body.ops = [op for op in body.ops if op not in dots]


# ---- after the loop -------------------------------------------------------------------------------------------------


def _outputs(scan: Op, after: Block, batcher: Batcher) -> None:
    """A yielded dot_general with an operand from outside, that nothing else in the body reads: its other operand is stacked
    instead, and one product over all steps follows the loop."""
    body, n, length = scan.regions[0], scan.attrs["n_carry"], scan.attrs["length"]
    term = body.terminator
    inside = set(body.args) | {r for op in body.ops for r in op.results}
    readers = uses(body)
    for k in range(n, len(term.operands)):
        op = term.operands[k].owner
        if not isinstance(op, Op) or op.name != "tensor.dot_general" or op.result not in inside or readers[op.result] != [term]:
            continue
        varying = [v for v in op.operands if v in inside]
        if len(varying) != 1 or nbytes(varying[0]) > 4 * nbytes(op.result) or nbytes(varying[0]) * length > LIMIT:
            continue
        (v,) = varying
        old = scan.results[k]
        if v in term.operands[n:]:
            stacked = scan.results[term.operands.index(v, n)]
        else:
            stacked = Value(v.type.with_shape((length, *v.type.shape)), scan, v.name)
            term.operands.append(v)
            scan.results.append(stacked)
        run = Run(batcher, length, {v: (stacked, True)})
        run.op(op, after)
        made = run.get(op.result).owner
        made.results[0] = old                            # the product takes the place of the old result
        old.owner = made
        del term.operands[k], scan.results[k]
        body.ops.remove(op)
        _outputs(scan, after, batcher)                   # the positions have changed
        return


def _substitute(body: Block, env: dict[Value, Value]) -> None:
    for op in body.walk():
        op.operands = [env.get(v, v) for v in op.operands]

