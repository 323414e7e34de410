"""A scan whose body is cut into stages (passes/pipeline.py), as a software pipeline: at turn t of the loop, stage s makes step t - s.

The stages of a turn are sections (`loop.sections`). What one stage hands to a later one lives in a ring with a row for every step that is
between the two; what they read of the data each takes for itself. Steps that were begun are finished behind the loop, also when it is
left early, so that carries and stacked results are those of whole steps one after the other.
"""
from __future__ import annotations

from ..compiler.ir.core import Block, Op, Value, clone_op
from ..compiler.ir.types import TensorType, i64, row_major
from .lower_buffers import Host, Place, Splat, Storage, whole
from .lower_control import _end, _inner, _row, carried
from .lower_kernel import I64


def pipeline(body, op: Op, pos: int) -> None:
    Pipelined(body, op, pos).run()


class Pipelined:
    """One scan being lowered."""

    def __init__(self, body, op: Op, pos: int):
        self.body, self.op, self.region = body, op, op.regions[0]
        self.n, self.length, self.loc = op.attrs["n_carry"], op.attrs["length"], op.loc
        if op.attrs["reverse"]:
            raise NotImplementedError("a pipeline that runs backwards")
        self.calls = [o for o in self.region.ops if o.name == "func.call"]
        self.stage = {r: s for s, c in enumerate(self.calls) for r in c.results}
        self.carries = carried(body, op, pos, self.n)
        self.ys = [body.destination(r, pos, op.loc) for r in op.results[self.n:]]
        body.env.update(zip(op.results[self.n:], self.ys))
        self.xs = [body.env[v] for v in op.operands[self.n:]]
        self.rings: dict[Value, Storage] = {}
        last = {v: s for s, c in enumerate(self.calls) for v in c.operands if v in self.stage}
        for v, s in last.items():
            self.rings[v] = body.temporary(TensorType(v.type.dtype, (s - self.stage[v] + 1, *v.type.shape)), op.loc)

    def run(self) -> None:
        outer, stages = self.body.host, len(self.calls)
        done = outer.alloc(TensorType(i64), self.loc)            # steps begun
        self.store(outer, outer.index(0), done)
        host = Host(Block([I64]), outer)
        turn = host.block.args[0]
        self.sections(host, [turn if s == 0 else host.scalar("scalar.sub", [turn, host.index(s)]) for s in range(stages)], range(stages))
        self.store(host, host.scalar("scalar.add", [turn, host.index(1)]), done)
        attrs = {"step": 1, **({"progress": True} if self.op.attrs.get("progress") else {})}
        outer.op("loop.for", [outer.index(0), outer.index(self.length)], attrs, [_end(host, (), self.loc)], self.loc)
        begun = outer.load(done, self.loc)
        host = Host(Block([I64]), outer)
        turn = host.scalar("scalar.add", [begun, host.block.args[0]])
        rest = range(1, stages)
        self.sections(host, [host.scalar("scalar.sub", [turn, host.index(s)]) for s in rest], rest, begun)
        outer.op("loop.for", [outer.index(0), outer.index(stages - 1)], {"step": 1}, [_end(host, (), self.loc)], self.loc)

    def store(self, host: Host, value: Value, cell: Storage) -> None:
        """A kernel that writes one number."""
        inner = Host(Block([]), host)
        inner.op("loop.store", [value, cell.buffer])
        host.op("loop.parallel", (), {"extents": []}, [_end(inner, (), self.loc)], self.loc)

    def sections(self, host: Host, steps: list[Value], stages: range, begun: Value | None = None) -> None:
        """Each of the stages at its step, where there is one: from 0, and below `begun`."""
        zero = host.index(0)
        regions = []
        for s, i in zip(stages, steps):
            section = Host(Block([]), host)
            if begun is not None:
                there = section.scalar("scalar.and", [self.compare(section, "ge", i, zero), self.compare(section, "lt", i, begun)])
            elif s:
                there = self.compare(section, "ge", i, zero)
            else:
                there = None
            if there is None:
                self.make(section, s, i)
            else:
                inner = Host(Block([]), section)
                self.make(inner, s, i)
                section.op("loop.if", [there], None, [_end(inner, (), self.loc), _end(Host(Block([])), (), self.loc)], self.loc)
            regions.append(_end(section, (), self.loc))
        host.op("loop.sections", (), {}, regions, self.loc)

    def compare(self, host: Host, predicate: str, a: Value, b: Value) -> Value:
        return host.scalar("scalar.compare", [a, b], {"predicate": predicate})

    def make(self, host: Host, s: int, i: Value) -> None:
        """Stage s of step i: its call and what its operands need, on the memory that is this step's."""
        call, args, n = self.calls[s], self.region.args, self.n
        env: dict[Value, Place] = {args[0]: Splat(i, i64, ()), **dict(zip(args[1:1 + n], self.carries))}
        env.update((a, _row(host, x, i)) for a, x in zip(args[1 + n:], self.xs))
        copies: dict[Value, Value] = {}
        block = Block([])
        needed = self.needed(call)
        for o in self.region.ops:
            if o in needed or o is call:
                block.append(clone_op(o, copies))
        env.update((v, self.ring(host, v, i)) for v in call.operands if v in self.rings)
        yields, results, donated = [], [], {}
        for k, v in enumerate(self.region.terminator.operands):
            if self.stage.get(v) == s:
                if k < n:
                    donated[len(results)] = args[1 + k]
                yields.append(v)
                results.append(self.carries[k] if k < n else _row(host, self.ys[k - n], i))
        for v in call.results:
            if v in self.rings:
                yields.append(v)
                results.append(self.ring(host, v, i))
        block.append(Op("scf.yield", [copies[v] for v in yields], {}, (), (), self.loc))
        _inner(self.body, host, block, env, results, donated)

    def needed(self, call: Op) -> set[Op]:
        """The ops of the body, no calls among them, that a call's operands come from."""
        out: set[Op] = set()
        todo = list(call.operands)
        while todo:
            o = todo.pop().owner
            if isinstance(o, Op) and o in self.inner and o not in out and o.name != "func.call":
                out.add(o)
                todo += [*o.operands, *(v for r in o.regions for x in r.walk() for v in x.operands)]
        return out

    @property
    def inner(self) -> set[Op]:
        return set(self.region.ops)

    def ring(self, host: Host, v: Value, i: Value) -> Storage:
        """The row of what is handed on at step i, as a buffer of its own."""
        ring = self.rings[v]
        row = host.scalar("scalar.mod", [i, host.index(ring.shape[0])])
        at = host.scalar("scalar.mul", [row, host.index(v.type.numel)])
        view = host.op("loop.view", [ring.buffer, at], {"shape": list(v.type.shape), "strides": list(row_major(v.type.shape))}).result
        return whole(view)


__all__ = ["pipeline"]
