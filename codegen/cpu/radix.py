"""Stable sort of a long strided row with its indices, in LLVM text: least significant digits first, a byte a pass.

Keys are unsigned integers in the order wanted, so that all dtypes and both directions are one sort. Short rows: sort.py.
"""
from __future__ import annotations

from ...compiler.ir.types import DType
from .irtext import Fn, Module
from .scalars import Ops, mem_elem, reg_elem

SHORTEST = 64               # elements from which on passes over 256 counts are faster than merges


def require_radix(m: Module, dt: DType, descending: bool) -> str:
    """`void @sort(ptr values, i64 stride, ptr indices, i64 stride, i64 n)`, n < 2^32; NaN last (first when descending), -0 equals +0."""
    symbol = f"engram_radix_{dt.name}_{'down' if descending else 'up'}"
    if symbol in m.have:
        return symbol
    m.have.add(symbol)
    m.declare("declare ptr @malloc(i64)")
    m.declare("declare void @free(ptr)")
    memset = m.intrinsic("void", "llvm.memset.p0.i64", "ptr", "i8", "i64", "i1")
    elem, wide = mem_elem(dt), dt.bits == 64
    entry, digits = 16 if wide else 8, 8 if wide else 4      # an entry: key and place, side by side or in the halves of one i64
    f = Fn(m, f"internal void @{symbol}(ptr %v, i64 %sv, ptr %x, i64 %sx, i64 %n)", "#2")
    size = f.imul("%n", str(entry))
    work = f.op(f"call ptr @malloc(i64 {f.imul('%n', str(2 * entry + 16))})")
    values = f.gep("i8", work, f.imul(size, "2"))
    indices = f.gep("i64", values, "%n")
    counts = f.alloca(f"[{digits * 256} x i32]")
    source, target = f.alloca("ptr", 8), f.alloca("ptr", 8)
    f.store("ptr", work, source, 8)
    f.store("ptr", f.gep("i8", work, size), target, 8)
    f.do(f"call void {memset}(ptr {counts}, i8 0, i64 {digits * 1024}, i1 false)")
    with f.loop("0", "%n") as i:
        raw = f.load(elem, f.gep(elem, "%v", f.imul(i.index, "%sv")), dt.bytes)
        f.store(elem, raw, f.gep("i64", values, i.index), 8)
        f.store("i64", f.load("i64", f.gep("i64", "%x", f.imul(i.index, "%sx")), 8), f.gep("i64", indices, i.index), 8)
        key = _key(f, raw, dt, descending)
        at = f.gep("i8", work, f.imul(i.index, str(entry)))
        if wide:
            f.store("i64", i.index, f.gep("i8", at, "8"), 8)
            f.store("i64", key, at, 8)
        else:
            key = f.op(f"shl i64 {f.op(f'zext i32 {key} to i64')}, 32")
            f.store("i64", f.op(f"or i64 {key}, {i.index}"), at, 8)
        for d in range(digits):
            slot = f.gep("i32", counts, f.iadd(str(256 * d), _digit(f, key, str(8 * d + (0 if wide else 32)))))
            f.store("i32", f.op(f"add i32 {f.load('i32', slot, 4)}, 1"), slot, 4)
    with f.loop("0", str(digits)) as d:
        shift = f.iadd(f.imul(d.index, "8"), "0" if wide else "32")
        mine = f.gep("i32", counts, f.imul(d.index, "256"))
        src, dst = f.load("ptr", source, 8), f.load("ptr", target, 8)
        alike = f.load("i32", f.gep("i32", mine, _digit(f, f.load("i64", src, 8), shift)), 4)
        with f.when(f.icmp("ne", f.op(f"zext i32 {alike} to i64"), "%n")):           # else all have this digit
            with f.loop("0", "256", carried=[("i32", "0")]) as b:
                slot = f.gep("i32", mine, b.index)
                count = f.load("i32", slot, 4)
                f.store("i32", b.values[0], slot, 4)
                b.next = [f.op(f"add i32 {b.values[0]}, {count}")]
            kind = "i128" if wide else "i64"
            with f.loop("0", "%n") as i:
                at = f.gep("i8", src, f.imul(i.index, str(entry)))
                slot = f.gep("i32", mine, _digit(f, f.load("i64", at, 8), shift))
                place = f.load("i32", slot, 4)
                f.store("i32", f.op(f"add i32 {place}, 1"), slot, 4)
                to = f.gep("i8", dst, f.imul(f.op(f"zext i32 {place} to i64"), str(entry)))
                f.store(kind, f.load(kind, at, 8), to, 8)
            f.store("ptr", dst, source, 8)
            f.store("ptr", src, target, 8)
    src = f.load("ptr", source, 8)
    with f.loop("0", "%n") as i:
        found = f.load("i64", f.gep("i8", src, f.iadd(f.imul(i.index, str(entry)), "8" if wide else "0")), 8)
        place = found if wide else f.op(f"and i64 {found}, 4294967295")
        f.store(elem, f.load(elem, f.gep("i64", values, place), 8), f.gep(elem, "%v", f.imul(i.index, "%sv")), dt.bytes)
        f.store("i64", f.load("i64", f.gep("i64", indices, place), 8), f.gep("i64", "%x", f.imul(i.index, "%sx")), 8)
    f.do(f"call void @free(ptr {work})")
    f.finish()
    return symbol


def _digit(f: Fn, key: str, shift: str) -> str:
    return f.op(f"and i64 {f.op(f'lshr i64 {key}, {shift}')}, 255")


def _key(f: Fn, raw: str, dt: DType, descending: bool) -> str:
    """An unsigned i32 (i64 for dtypes of 64 bits) in the order of the values."""
    ops, e, i = Ops(f, 1), reg_elem(dt), "i64" if dt.bits == 64 else "i32"
    value, top = ops.from_memory(raw, dt), -1 << (63 if dt.bits == 64 else 31)
    if dt.is_float:                                          # negative ones turned round, below the positive ones
        bits = ops.conv("bitcast", e, value, i)
        key = ops.bin("xor", i, bits, ops.bin("or", i, ops.bin("ashr", i, bits, "63" if i == "i64" else "31"), str(top)))
        key = ops.sel(ops.cmp("oeq", e, value, "0.0"), i, str(top), key)
        key = ops.sel(ops.cmp("uno", e, value, value), i, "-1", key)
    elif dt.bits < 32 or dt.is_bool:
        key = ops.conv("sext" if dt.kind == "int" else "zext", e, value, i)
        key = ops.bin("xor", i, key, str(top)) if dt.kind == "int" else key
    else:
        key = ops.bin("xor", i, value, str(top)) if dt.kind == "int" else value
    return ops.bin("xor", i, key, "-1") if descending else key
