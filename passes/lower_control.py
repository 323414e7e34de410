"""Calls and control flow at the host level: regions become bodies of loop.for, loop.while and loop.if; carried values live in buffers
that the body reads and overwrites (in place where that is safe, else through a copy at the end of an iteration)."""
from __future__ import annotations

from ..compiler.ir.core import Block, Op, Value
from ..compiler.ir.dims import product
from ..compiler.ir.types import TensorType, bool_, i64, row_major
from .lower_buffers import Host, Place, Splat, Storage, whole
from .lower_kernel import I64


def _inner(body, host: Host, region: Block, env: dict[Value, Place], results: list[Storage], donated: dict[int, Value], placed=()) -> None:
    """Lowers a region. `placed`: results that are where they belong when the others are."""
    from .lower_to_loops import Body
    inner = Body(host, region, {**body.env, **env}, results, donated, body.module, body.serial)
    for r in placed:
        inner.placed[r] = True
    inner.run()


def _end(host: Host, values=(), loc=None) -> Block:
    host.block.append(Op("scf.yield", list(values), {}, (), (), loc))
    return host.block


def carried(body, op: Op, pos: int, n: int, elsewhere=()) -> list[Storage | None]:
    """Memory for the first n results, holding the first n operands; None for those that have theirs `elsewhere`."""
    out = []
    for i in range(n):
        if i in elsewhere:
            out.append(None)
            continue
        init, result = op.operands[i], op.results[i]
        place = None if result in body.wanted else body.reusable(init, op, i, pos)
        if place is None:
            over = body.shown(init) if body.unused_by(init, op, (i,)) else None
            place = body.destination(result, pos, op.loc, over)
            if body.env[init] != place:
                body.written(body.env[init], place, op.loc)
        body.env[result] = place
        out.append(place)
    return out


def scan(body, op: Op, pos: int) -> None:
    if op.attrs.get("stages", 1) > 1 and op.attrs["length"]:
        from .lower_pipeline import pipeline
        return pipeline(body, op, pos)
    n, length, region = op.attrs["n_carry"], op.attrs["length"], op.regions[0]
    stacks = {c: _Stack(body, op, c) for c in range(n) if length and not op.attrs.get("progress") and keeps_history(op, c)}      # one left early has its last value elsewhere
    carries = carried(body, op, pos, n, set(stacks))
    shared = {k for s in stacks.values() for k in s.yields}
    ys = [None if n + k in shared else body.destination(r, pos, op.loc) for k, r in enumerate(op.results[n:])]
    body.env.update((r, y) for r, y in zip(op.results[n:], ys) if y is not None)
    xs = [body.env[v] for v in op.operands[n:]]
    lo, hi = body.host.index(0), body.host.index(length)
    last = body.host.index(length - 1) if op.attrs["reverse"] else None
    host = Host(Block([I64]), body.host)
    i = host.block.args[0]
    if last is not None:
        i = host.scalar("scalar.sub", [last, i])
    env: dict[Value, Place] = {region.args[0]: Splat(i, i64, ())}
    env.update(zip(region.args[1:1 + n], carries))
    env.update((a, _row(host, x, i)) for a, x in zip(region.args[1 + n:], xs))
    for c, s in stacks.items():
        env[region.args[1 + c]], carries[c] = s.rows(host, i)
    if length:
        results = carries + [carries[0] if y is None else _row(host, y, i) for y in ys]      # those of a stack are `placed`
        _inner(body, host, region, env, results, {c: region.args[1 + c] for c in range(n) if c not in stacks}, shared)
        attrs = {"step": 1, **({"progress": True} if op.attrs.get("progress") else {})}
        body.host.op("loop.for", [lo, hi], attrs, [_end(host, (), op.loc)], op.loc)


def keeps_history(op: Op, c: int) -> bool:
    """Whether carry c of a scan, whose new value is yielded too, is better kept in the stack of its values than copied to and fro:
    its old value is yielded as well, or a product reads it and so cannot write over it."""
    n, region = op.attrs["n_carry"], op.regions[0]
    old, term = region.args[1 + c], region.terminator.operands
    new = term[c]
    if new not in term[n:] or new is old or term[:n].count(new) != 1 or new in region.args:
        return False
    made = new.owner
    return old in term[n:] or (isinstance(made, Op) and made.name == "tensor.fused" and made.attrs["kind"] == "product" and old in made.operands)


class _Stack:
    """All values of a carry, one after the other: what a step reads is the row beside the one it writes. `yields`: the scan's
    results (their positions among all results) that show parts of it."""

    def __init__(self, body, op: Op, c: int):
        n, length, term = op.attrs["n_carry"], op.attrs["length"], op.regions[0].terminator.operands
        t = op.results[c].type
        self.reverse, self.size = op.attrs["reverse"], t.numel
        self.all = body.temporary(TensorType(t.dtype, (length + 1, *t.shape)), op.loc)
        old, new = op.regions[0].args[1 + c], term[c]
        self.yields = [k for k in range(n, len(term)) if term[k] in (old, new)]
        first, last = (length, 0) if self.reverse else (0, length)
        body.written(body.env[op.operands[c]], self.part(first, t.shape), op.loc)
        body.env[op.results[c]] = self.part(last, t.shape)
        for k in self.yields:                          # row i of old values is row i + reverse, of new ones the other neighbour
            skip = int(self.reverse) if term[k] is old else 1 - int(self.reverse)
            body.env[op.results[k]] = self.part(skip, (length, *t.shape))

    def part(self, row: int, shape: tuple[int, ...]) -> Storage:
        return Storage(self.all.buffer, row * self.size, shape, row_major(shape))

    def rows(self, host: Host, i: Value) -> tuple[Storage, Storage]:
        """(old, new) of step i, as buffers of their own: they do not overlap."""
        shape = self.all.shape[1:]
        low = host.scalar("scalar.mul", [i, host.index(self.size)])
        high = host.scalar("scalar.add", [low, host.index(self.size)])
        pair = [whole(host.op("loop.view", [self.all.buffer, at], {"shape": list(shape), "strides": list(row_major(shape))}).result) for at in (low, high)]
        return (pair[1], pair[0]) if self.reverse else (pair[0], pair[1])


def _row(host: Host, x: Place, i: Value) -> Place:
    """x[i]."""
    if isinstance(x, Splat):
        return Splat(x.value, x.dtype, x.shape[1:])
    offset = i if x.strides[0] == 1 else host.scalar("scalar.mul", [i, host.index(x.strides[0])])
    if x.offset != 0:
        offset = host.scalar("scalar.add", [offset, x.offset if isinstance(x.offset, Value) else host.index(x.offset)])
    return Storage(x.buffer, offset, x.shape[1:], x.strides[1:])


def while_(body, op: Op, pos: int) -> None:
    cond, step = op.regions
    n = len(op.operands)
    carries = carried(body, op, pos, n)
    flag = body.temporary(TensorType(bool_), op.loc)
    host = Host(Block(), body.host)
    _inner(body, host, cond, dict(zip(cond.args, carries)), [flag], {})
    test = _end(host, [host.load(flag, op.loc)], op.loc)
    host = Host(Block(), body.host)
    _inner(body, host, step, dict(zip(step.args, carries)), carries, {i: step.args[i] for i in range(n)})
    body.host.op("loop.while", (), None, [test, _end(host, (), op.loc)], op.loc)


def if_(body, op: Op, pos: int) -> None:
    """A result that takes the place of a value (one branch hands it through) stays in that value's memory: an update that is only
    made sometimes copies nothing."""
    places, takes = [], {}
    for i, result in enumerate(op.results):
        place, through = None, list(dict.fromkeys(r.terminator.operands[i] for r in op.regions))
        made = {r: v for r in body.wanted.get(result, ()) for v in through if body.placed[r] and body.env.get(v) == body.as_type(body.results[r], v.type)}
        if made:                                       # the value to hand through lies where the result belongs
            takes[i] = next(iter(made.values()))
            places.append(body.env[takes[i]])
            continue
        for v in through:
            if v not in takes.values() and v not in op.operands and body.dies(v, pos) and v.type == result.type:
                place = _taken(body, v, result)
                if place is not None:
                    takes[i] = v
                    break
        places.append(place or body.destination(result, pos, op.loc))
    body.env.update(zip(op.results, places))
    cond = body.scalar(op.operands[0], op.loc)
    blocks = []
    for region in op.regions:
        host = Host(Block(), body.host)
        _inner(body, host, region, {}, places, takes)
        blocks.append(_end(host, (), op.loc))
    body.host.op("loop.if", [cond], None, blocks, op.loc)


def _taken(body, v: Value, result: Value) -> Storage | None:
    """v's memory for `result`: v is donated for the result that this one becomes, or a temporary of this block."""
    for r in body.wanted.get(result, ()):
        if not body.placed[r] and body.donated.get(r) is v:
            body.placed[r] = True
            return body.as_type(body.results[r], result.type)
    place = body.env.get(v)
    if result not in body.wanted and isinstance(place, Storage) and place.buffer in body.owned and place.contiguous and place.offset == 0 \
            and product(place.shape) == place.buffer.type.numel and v not in body.rep:
        return place
    return None


def call(body, op: Op, pos: int) -> None:
    """Arguments, then results. An argument donated to the callee is passed as that result's memory, which has to hold it."""
    callee = body.module.funcs[op.attrs["callee"]]
    donated = {a: r for a, r in callee.attrs.get("donate", [])}
    places: dict[int, Storage] = {}
    for a, r in donated.items():
        v, result = op.operands[a], op.results[r]
        place = None if result in body.wanted else body.reusable(v, op, a, pos)
        if place is None:
            over = body.shown(v) if body.unused_by(v, op, (a,)) else None
            place = body.destination(result, pos, op.loc, over)
            if body.env[v] != place:
                body.written(body.env[v], place, op.loc)
        places[r] = place
    for r, result in enumerate(op.results):
        if r not in places:
            places[r] = body.destination(result, pos, op.loc)
    args = [places[donated[a]] if a in donated else body.contiguous(v, op.loc) for a, v in enumerate(op.operands)]
    buffers = [body.host.buffer(s) for s in args + [places[r] for r in range(len(op.results))]]
    body.host.op("loop.call", buffers, {"callee": op.attrs["callee"]}, (), op.loc)
    body.env.update((result, places[r]) for r, result in enumerate(op.results))


CONTROL = {"scf.scan": scan, "scf.while": while_, "scf.if": if_, "func.call": call}
