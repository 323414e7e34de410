"""Addresses in the arena: alignment, reuse, and that no two buffers share bytes while both are needed."""
import itertools

import pytest
from lowering_cases import check, function, to_loops
from test_lowering_random import Generator


def chain(n: int) -> str:
    ops = "\n".join(f"  %v{i + 1} = tensor.{'sin' if i % 2 else 'exp'}(%v{i}) : f32[100]" for i in range(n))
    return f"func @f(%v0: f32[100]) -> (f32[100]) {{\n{ops}\n  func.return(%v{n})\n}}"


def test_a_chain_needs_two_buffers():
    m = to_loops(function(chain(9)), fuse=False)
    assert m.funcs["f"].attrs["arena"] == 2 * 448           # 400 bytes, rounded up to a multiple of 64
    assert {op.attrs["offset"] for op in m.walk() if op.name == "loop.alloc"} == {0, 448}


def test_fused_it_needs_none():
    assert to_loops(function(chain(9))).funcs["f"].attrs["arena"] == 0


def test_callees_frames_lie_above_what_is_live():
    m = check(function("""
func @g(%x: f32[40]) -> (f32[]) {
  %s = tensor.sort(%x) {dim = 0, descending = false}
  func.return(%t)
}""".replace("%s = tensor.sort(%x) {dim = 0, descending = false}\n  func.return(%t)",
             "%v, %i = tensor.sort(%x) {dim = 0, descending = false} : f32[40], i64[40]\n  %t = tensor.reduce_max(%v) {dims = [0]} : f32[]\n"
             "  func.return(%t)") + """
func @f(%x: f32[40]) -> (f32[], f32[40]) {
  %c = tensor.cumsum(%x) {dim = 0, reverse = false} : f32[40]
  %d = tensor.cumsum(%c) {dim = 0, reverse = true} : f32[40]
  %a = func.call(%d) {callee = "g", result_types = [f32[]]} : f32[]
  %b = tensor.reverse(%d) {dims = [0]} : f32[40]
  func.return(%a, %b)
}"""))
    call = next(op for op in m.walk() if op.name == "loop.call")
    frame, size = call.attrs["frame"], m.funcs["g"].attrs["arena"]
    assert frame % 64 == 0 and size > 0 and m.funcs["f"].attrs["arena"] >= frame + size
    live = next(op for op in m.funcs["f"].body.ops if op.name == "loop.alloc" and op.result in call.operands)
    at, end = live.attrs["offset"], live.attrs["offset"] + live.attrs["type"].nbytes
    assert end <= frame or frame + size <= at


def lifetimes(block, clock, lives, of):
    """[first, last] moments at which each alloc's memory is needed, by walking the host level as it runs (loops twice: an alloc in
    a loop is a new one each time)."""
    for op in block.ops:
        clock[0] += 1
        if op.name == "loop.alloc":
            lives.setdefault(op, []).append([1 << 60, -1])
            of[op.result] = op
            continue
        if op.name == "loop.view":
            of[op.result] = of.get(op.operands[0])
            continue
        used = list(op.operands)
        if op.name in ("loop.for", "loop.while", "loop.if"):
            for _ in range(2):
                for r in op.regions:
                    lifetimes(r, clock, lives, of)
        else:
            used += [v for r in op.regions for o in r.walk() for v in o.operands]
        for v in used:
            alloc = of.get(v)
            if alloc is not None:
                life = lives[alloc][-1]
                life[:] = min(life[0], clock[0]), max(life[1], clock[0])


@pytest.mark.parametrize("seed", range(30))
def test_live_buffers_are_apart(seed):
    m = to_loops(Generator(seed).module(control=True), fuse=seed % 2 == 0)
    for f in m.funcs.values():
        lives, of = {}, {}
        lifetimes(f.body, [0], lives, of)
        for a, b in itertools.combinations(lives, 2):
            p, q = a.attrs["offset"], b.attrs["offset"]
            if p + a.attrs["type"].nbytes <= q or q + b.attrs["type"].nbytes <= p:
                continue
            assert all(s[1] < t[0] or t[1] < s[0] for s in lives[a] for t in lives[b]), (f.name, a.attrs, b.attrs)
        for a in lives:
            assert a.attrs["offset"] % 64 == 0 and a.attrs["offset"] + a.attrs["type"].nbytes <= f.attrs["arena"]
