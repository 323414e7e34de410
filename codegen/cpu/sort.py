"""Stable sort of a strided row with its indices, in LLVM text: bottom-up merges through memory."""
from __future__ import annotations

from ...compiler.ir.types import DType
from .irtext import Fn, Module
from .scalars import Ops, mem_elem, reg_elem


def require_sort(m: Module, dt: DType, descending: bool) -> str:
    """`void @sort(ptr values, i64 stride, ptr indices, i64 stride, i64 n)`; NaN last (first when descending)."""
    symbol = f"engram_sort_{dt.name}_{'down' if descending else 'up'}"
    if symbol in m.have:
        return symbol
    m.have.add(symbol)
    m.declare("declare ptr @malloc(i64)")
    m.declare("declare void @free(ptr)")
    elem = mem_elem(dt)
    f = Fn(m, f"internal void @{symbol}(ptr %v, i64 %sv, ptr %x, i64 %sx, i64 %n)", "#2")
    ops = Ops(f, 1)
    size = f.imul("%n", "16")
    work = f.op(f"call ptr @malloc(i64 {f.imul(size, '2')})")
    # two arrays of (value, index) pairs, 16 bytes each
    other = f.gep("i8", work, size)
    with f.loop("0", "%n") as i:
        at = f.gep("i8", work, f.imul(i.index, "16"))
        f.store(elem, f.load(elem, f.gep(elem, "%v", f.imul(i.index, "%sv")), dt.bytes), at, 8)
        f.store("i64", f.load("i64", f.gep("i64", "%x", f.imul(i.index, "%sx")), 8), f.gep("i8", at, "8"), 8)

    def before(a: str, b: str) -> str:
        """b must come before a (strictly)."""
        x, y = (ops.from_memory(f.load(elem, p, 8), dt) for p in (a, b))
        e = reg_elem(dt)
        if descending:
            x, y = y, x
        if dt.is_float:                                      # y < x, NaN above everything
            less = ops.cmp("olt", e, y, x)
            nan = f.both(ops.cmp("uno", e, x, x), ops.cmp("ord", e, y, y))
            return f.either(less, nan)
        return ops.cmp("slt" if dt.kind == "int" else "ult", e, y, x)

    def move(src: str, dst: str) -> None:
        f.store("i128", f.load("i128", src, 8), dst, 8)

    # width doubles; src and dst swap
    head, body, done = f.new_label("width"), f.new_label("merge"), f.new_label("sorted")
    start = f.block
    f.jump(head)
    f.label(head)
    width, src, dst = f.name("w"), f.name("src"), f.name("dst")
    phis = len(f.lines)
    f.branch(f.icmp("slt", width, "%n"), body, done)
    f.label(body)
    double = f.imul(width, "2")
    with f.loop("0", "%n", double) as run:
        mid = f.imin(f.iadd(run.index, width), "%n")
        end = f.imin(f.iadd(run.index, double), "%n")
        with f.loop(run.index, end, carried=[("i64", run.index), ("i64", mid)]) as k:
            i, j = k.values
            i_ok, j_ok = f.icmp("slt", i, mid), f.icmp("slt", j, end)
            a = f.gep("i8", src, f.imul(f.op(f"select i1 {i_ok}, i64 {i}, i64 {j}"), "16"))
            b = f.gep("i8", src, f.imul(f.op(f"select i1 {j_ok}, i64 {j}, i64 {i}"), "16"))
            right = f.both(j_ok, f.either(f.op(f"xor i1 {i_ok}, true"), before(a, b)))
            move(f.op(f"select i1 {right}, ptr {b}, ptr {a}"), f.gep("i8", dst, f.imul(k.index, "16")))
            step = f.op(f"zext i1 {right} to i64")
            k.next = [f.iadd(i, f.isub("1", step)), f.iadd(j, step)]
    last = f.block
    f.jump(head)
    f.lines[phis:phis] = [f"  {width} = phi i64 [ 1, %{start} ], [ {double}, %{last} ]",
                          f"  {src} = phi ptr [ {work}, %{start} ], [ {dst}, %{last} ]",
                          f"  {dst} = phi ptr [ {other}, %{start} ], [ {src}, %{last} ]"]
    f.label(done)
    with f.loop("0", "%n") as i:
        at = f.gep("i8", src, f.imul(i.index, "16"))
        f.store(elem, f.load(elem, at, 8), f.gep(elem, "%v", f.imul(i.index, "%sv")), dt.bytes)
        f.store("i64", f.load("i64", f.gep("i8", at, "8"), 8), f.gep("i64", "%x", f.imul(i.index, "%sx")), 8)
    f.do(f"call void @free(ptr {work})")
    f.finish()
    return symbol
