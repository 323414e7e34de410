"""loop.reduce: sequential in each lane of a vectorised kernel; otherwise over lanes of its own index, several accumulators
wide, joined by a fixed tree. The order of additions depends on the range alone, never on threads.
"""
from __future__ import annotations

from ...compiler.ir.core import Op, uses
from ...compiler.ir.types import i64
from .lanes import base_lanes, trips, varying
from .scalars import Ops, reg_elem
from .values import Val

LIGHT = 10            # ops in a body up to which several accumulators are worth the code


def fused_products(op: Op) -> dict[int, Op]:
    """Position of a yield -> the multiplication that feeds a sum and nothing else: it becomes a fused multiply-add."""
    body = op.regions[0]
    count = uses(body)
    out = {}
    for i, (v, kind) in enumerate(zip(body.terminator.operands, op.attrs["kinds"])):
        m = v.owner
        if (kind == "add" and isinstance(m, Op) and m.name == "scalar.mul" and v.type.dtype.name in ("f32", "f64")
                and len(count.get(v, [])) == 1 and m in body.ops):
            out[i] = m
    return out


def emit_reduce(b, op: Op) -> None:
    """`b` is the kernel's Body."""
    b_fused = fused_products(op)
    added = set(b_fused.values()) - b.skip
    b.skip |= added
    if b.w == 1 and op in b.plan.loops:
        _across(b, op, b_fused)
    else:
        _within(b, op, b_fused)
    b.skip -= added


def _step(b, op: Op, ops: Ops, fused: dict[int, Op], accs: list[str]) -> list[str]:
    """The body once, combined into the accumulators."""
    body = op.regions[0]
    for o in body.ops[:-1]:
        if o not in b.skip:
            b.op(o)
    out = []
    text = (lambda v: b.l.vector(b.get(v))) if ops.w > 1 else (lambda v: b.get(v).text)
    for i, (v, kind, acc) in enumerate(zip(body.terminator.operands, op.attrs["kinds"], accs)):
        dt = v.type.dtype
        if i in fused:
            x, y = fused[i].operands
            out.append(ops.fma(dt, text(x), text(y), acc))
        else:
            out.append(ops.combine(kind, dt, acc, text(v)))
    return out


def _within(b, op: Op, fused: dict[int, Op]) -> None:
    """One chain per lane, in ascending order."""
    lo, hi = b.get(op.operands[0]), b.get(op.operands[1])
    body, f = op.regions[0], b.f
    wide = b.w > 1 and any(r in b.vary for r in op.results)
    ops = b.l.ops if wide else b.l.one
    types = [ops.type(r.type.dtype) for r in op.results]
    starts = [ops.splat_const(reg_elem(r.type.dtype), Ops.identity(k, r.type.dtype)) for r, k in zip(op.results, op.attrs["kinds"])]
    with f.loop(lo.text, hi.text, carried=list(zip(types, starts))) as loop:
        b.env[body.args[0]] = Val("u", loop.index, i64, small=lo.small)
        loop.next = _step(b, op, ops, fused, loop.values)
    for r, name in zip(op.results, loop.results):
        b.env[r] = Val("v" if wide else "u", name, r.type.dtype)


def _across(b, op: Op, fused: dict[int, Op]) -> None:
    """Lanes over the reduction's own index."""
    lo, hi = b.get(op.operands[0]).text, b.get(op.operands[1]).text
    body, f, n = op.regions[0], b.f, trips(op)
    kinds, dts = op.attrs["kinds"], [r.type.dtype for r in op.results]
    w = base_lanes(body, b.target)
    many = 4 if len(list(body.walk())) <= LIGHT and (n is None or n >= 8 * w) else 1
    vary = varying(body, body.args[0])
    aligned = w if lo == "0" else 1
    saved = b.enter(w, None, vary)
    ops = b.l.ops
    types = [ops.type(dt) for dt in dts]
    starts = [ops.splat_const(reg_elem(dt), Ops.identity(k, dt)) for k, dt in zip(kinds, dts)]
    size = len(kinds)

    def step(index: str, accs: list[str]) -> list[str]:
        b.env[body.args[0]] = Val("l", index, i64, tuple(range(w)), aligned, True)
        return _step(b, op, ops, fused, accs)

    count = str(n) if n is not None else f.isub(hi, lo)
    at, accs = lo, starts

    def upto(block: int) -> str:
        return f.iadd(lo, str(n // block * block) if n is not None else f.op(f"and i64 {count}, -{block}"))
    if many > 1:
        stop = upto(many * w)
        with f.loop(lo, stop, str(many * w), carried=list(zip(types * many, starts * many))) as loop:
            nxt = []
            for u in range(many):
                nxt += step(f.iadd(loop.index, str(u * w)), loop.values[u * size:(u + 1) * size])
            loop.next = nxt
        groups = [loop.results[u * size:(u + 1) * size] for u in range(many)]
        while len(groups) > 1:
            groups = [[ops.combine(k, dt, x, y) for k, dt, x, y in zip(kinds, dts, p, q)]
                      for p, q in zip(groups[::2], groups[1::2])]
        at, accs = stop, groups[0]
    if n is None or n % (many * w) >= w or many == 1:
        stop = upto(w)
        if not (n is not None and n < w):
            with f.loop(at, stop, str(w), carried=list(zip(types, accs))) as loop:
                loop.next = step(loop.index, loop.values)
            at, accs = stop, loop.results
    rest = n is None or n % w != 0
    if rest and b.target.masked:
        at = upto(w)
        with f.loop(at, hi, str(w), carried=list(zip(types, accs))) as loop:
            b.mask = b.first_lanes(f.isub(hi, loop.index))
            new = step(loop.index, loop.values)
            loop.next = [ops.sel(b.mask, reg_elem(dt), x, old) for dt, x, old in zip(dts, new, loop.values)]
            b.mask = b.count = None
        accs = loop.results
    sums = [_tree(b, ops, kind, dt, x) for kind, dt, x in zip(kinds, dts, accs)]
    b.leave(saved)
    if rest and not b.target.masked:
        one = b.l.one
        with f.loop(upto(w), hi, carried=[(one.type(dt), s) for dt, s in zip(dts, sums)]) as loop:
            b.env[body.args[0]] = Val("u", loop.index, i64, small=True)
            loop.next = _step(b, op, one, fused, loop.values)
        sums = loop.results
    for r, s in zip(op.results, sums):
        b.env[r] = Val("u", s, r.type.dtype)


def _tree(b, ops: Ops, kind: str, dt, x: str) -> str:
    """All lanes combined: halves pairwise."""
    f, lanes, elem = b.f, ops.w, reg_elem(dt)
    while lanes > 1:
        half = lanes // 2
        t = f"<{lanes} x {elem}>"
        parts = []
        for first in (0, half):
            pick = ", ".join(f"i32 {first + i}" for i in range(half))
            parts.append(f.op(f"shufflevector {t} {x}, {t} poison, <{half} x i32> <{pick}>"))
        if half == 1:
            parts = [f.op(f"extractelement <1 x {elem}> {p}, i64 0") for p in parts]
        x = Ops(f, half).combine(kind, dt, *parts)
        lanes = half
    return x
