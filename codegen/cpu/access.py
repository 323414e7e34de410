"""Loads and stores of a kernel: contiguous, uniform, strided by shuffles, gathered, under masks; views and private buffers."""
from __future__ import annotations

from ...compiler.ir.core import Op, Value
from ...compiler.ir.types import DType, i64
from .radix import SHORTEST, require_radix
from .scalars import mem_elem
from .sort import require_sort
from .values import Buf, Val, num

LINE = 64                   # bytes of a cache line
MAX_PIECES = 4              # vectors that a strided access may be put together from


class Access:
    """The memory ops of emit_kernel.Body, which brings `f`, `l` (its lanes), `w`, `mask`, `count`, `env`, `get`, `target`."""

    def buffer(self, v: Value) -> Buf:
        found = self.env[v]
        assert isinstance(found, Buf)
        return found

    def _alloc(self, op: Op) -> None:
        t = op.attrs["type"]
        slot = self.f.alloca(f"[{max(t.numel, 1)} x {mem_elem(t.dtype)}]")
        self.env[op.result] = Buf(slot, t, num(0))

    def _view(self, op: Op) -> None:
        base = self.buffer(op.operands[0])
        offset = self.l.add(base.offset, self.get(op.operands[1]))
        self.env[op.result] = Buf(base.ptr, op.result.type, offset)

    def _load(self, op: Op) -> None:
        if (ready := self.ready.get(op)) is not None:
            dt = op.operands[0].type.dtype
            self.env[op.result] = Val("v", self.l.ops.from_memory(ready, dt), dt)
            return
        buf = self.buffer(op.operands[0])
        at = self.l.address(buf, [self.get(v) for v in op.operands[1:]])
        dt = buf.type.dtype
        elem, f = mem_elem(dt), self.f
        if at.kind == "u":
            raw = f.load(elem, f.gep(elem, buf.ptr, at.text), dt.bytes)
            self.env[op.result] = Val("u", self.l.one.from_memory(raw, dt), dt)
            return
        if (ahead := op.attrs.get("ahead")) and at.contiguous and self.mask is None:
            self._fetch(f.gep(elem, buf.ptr, f.iadd(at.text, str(ahead))), self.w * dt.bytes)
        raw = self._load_lanes(buf.ptr, at, dt)
        self.env[op.result] = Val("v", self.l.ops.from_memory(raw, dt), dt)

    def _prefetch(self, op: Op) -> None:
        buf = self.buffer(op.operands[0])
        at = self.l.address(buf, [self.get(v) for v in op.operands[1:]])
        if at.contiguous and self.mask is None:
            self._fetch(self.f.gep(mem_elem(buf.type.dtype), buf.ptr, at.text), self.w * buf.type.dtype.bytes)

    def _fetch(self, start: str, nbytes: int) -> None:
        """The cache lines of so many bytes into the first cache."""
        for line in range(0, nbytes, LINE):
            self.f.prefetch(self.f.gep("i8", start, str(line)))

    def _load_lanes(self, base: str, at: Val, dt: DType) -> str:
        f, w, elem = self.f, self.w, mem_elem(dt)
        t, m = f"<{w} x {elem}>", f"<{w} x i1>"
        short = {"float": "f32", "double": "f64"}.get(elem, elem)
        if at.contiguous:
            return self._neighbours(f.gep(elem, base, at.text), elem, dt.bytes, self.mask)
        if at.kind == "l" and at.offs == tuple(range(0, -w, -1)):
            return self._load_backwards(f.gep(elem, base, f.iadd(at.text, str(1 - w))), elem, dt.bytes)
        if at.kind == "l" and (found := self._pieces(at)):
            return self._load_pieces(base, at, found, t, elem, dt.bytes)
        ptrs = self._pointers(base, at, elem)
        name = f.module.intrinsic(t, f"llvm.masked.gather.v{w}{short}.v{w}p0", f"<{w} x ptr>", "i32", m, t)
        mask = self.mask or "splat (i1 true)"
        return f.op(f"call {t} {name}(<{w} x ptr> {ptrs}, i32 {dt.bytes}, {m} {mask}, {t} zeroinitializer)", "l")

    def _neighbours(self, ptr: str, elem: str, align: int, mask: str | None) -> str:
        """A vector from `ptr` on; zeros where the mask is not set."""
        f, w = self.f, self.w
        t, m, short = f"<{w} x {elem}>", f"<{w} x i1>", {"float": "f32", "double": "f64"}.get(elem, elem)
        if mask is None:
            return f.load(t, ptr, align)
        name = f.module.intrinsic(t, f"llvm.masked.load.v{w}{short}.p0", "ptr", "i32", m, t)
        return f.op(f"call {t} {name}(ptr {ptr}, i32 {align}, {m} {mask}, {t} zeroinitializer)", "l")

    def _load_backwards(self, start: str, elem: str, align: int) -> str:
        """Neighbours from `start` on, the last one for the first lane."""
        f, w = self.f, self.w

        def turned(x: str, t: str) -> str:
            return f.op(f"shufflevector {t} {x}, {t} poison, <{w} x i32> <{', '.join(f'i32 {i}' for i in reversed(range(w)))}>")
        mask = self.mask and turned(self.mask, f"<{w} x i1>")
        return turned(self._neighbours(start, elem, align, mask), f"<{w} x {elem}>")

    # Lanes at constant distances, close together: whole vectors and shuffles instead of gather and scatter. A piece is a
    # vector's worth of neighbouring elements; `needs[i]` is the lane from which on element i is needed, w if it never is.

    def _pieces(self, at: Val) -> list[tuple[int, list[int]]] | None:
        """(first element, needs) of each piece, or None where this does not pay or a mask forbids it."""
        lo, hi, w = min(at.offs), max(at.offs), self.w
        if hi - lo >= MAX_PIECES * w or (self.mask is not None and self.count is None) or sorted(at.offs) != list(at.offs):
            return None
        out = []
        for first in range(lo, hi + 1, w):
            needs = [next((lane for lane, o in enumerate(at.offs) if o >= e), w) for e in range(first, first + w)]
            out.append((first, needs))
        return out

    def _piece_mask(self, lanes: list[int]) -> str | None:
        """Which elements to touch, given the lane each belongs to (w: none); None for all."""
        if self.mask is None:
            if all(x < self.w for x in lanes):
                return None
            return "<" + ", ".join(f"i1 {int(x < self.w)}" for x in lanes) + ">"
        constant_lanes = "<" + ", ".join(f"i32 {x}" for x in lanes) + ">"
        return self.f.op(f"icmp slt <{self.w} x i32> {constant_lanes}, {self.count}", "m")

    def _load_pieces(self, base: str, at: Val, pieces, t: str, elem: str, align: int) -> str:
        f, w = self.f, self.w
        start = f.gep(elem, base, at.text)
        vectors = []
        for first, needs in pieces:
            ptr, mask = f.gep(elem, start, str(first)), self._piece_mask(needs)
            vectors.append(self._neighbours(ptr, elem, align, mask))
        out, lo = "", pieces[0][0]
        for i in range(0, len(vectors), 2):                   # two pieces at a time into their lanes
            pair = (vectors[i], vectors[i + 1] if i + 1 < len(vectors) else "poison")
            pick = [o - lo - i * w for o in at.offs]
            inside = [0 <= x < 2 * w for x in pick]
            text = ", ".join(f"i32 {x}" if ok else "i32 poison" for x, ok in zip(pick, inside))
            part = f.op(f"shufflevector {t} {pair[0]}, {t} {pair[1]}, <{w} x i32> <{text}>")
            if not out:
                out = part
            else:
                text = ", ".join(f"i32 {lane + w if ok else lane}" for lane, ok in enumerate(inside))
                out = f.op(f"shufflevector {t} {out}, {t} {part}, <{w} x i32> <{text}>")
        return out

    def _store_pieces(self, base: str, at: Val, raw: str, t: str, elem: str, align: int) -> bool:
        """Masked stores of spread-out lanes; False where lanes share an element or masks are dear."""
        pieces = self._pieces(at) if self.target.masked and len(set(at.offs)) == len(at.offs) else None
        if not pieces:
            return False
        f, w = self.f, self.w
        m, short = f"<{w} x i1>", {"float": "f32", "double": "f64"}.get(elem, elem)
        start = f.gep(elem, base, at.text)
        lane_of = {o: lane for lane, o in enumerate(at.offs)}
        for first, _ in pieces:
            lanes = [lane_of.get(e, w) for e in range(first, first + w)]
            if min(lanes) == w:
                continue
            text = ", ".join(f"i32 {x}" if x < w else "i32 poison" for x in lanes)
            part = f.op(f"shufflevector {t} {raw}, {t} poison, <{w} x i32> <{text}>")
            mask = self._piece_mask(lanes) or "splat (i1 true)"
            name = f.module.intrinsic("void", f"llvm.masked.store.v{w}{short}.p0", t, "ptr", "i32", m)
            f.do(f"call void {name}({t} {part}, ptr {f.gep(elem, start, str(first))}, i32 {align}, {m} {mask})")
        return True

    def _pointers(self, base: str, at: Val, elem: str) -> str:
        f, w = self.f, self.w
        if at.kind == "l":
            index = "i32" if max(map(abs, at.offs)) < 1 << 31 else "i64"
            offsets = "<" + ", ".join(f"{index} {o}" for o in at.offs) + ">"
            return f.op(f"getelementptr {elem}, ptr {f.gep(elem, base, at.text)}, <{w} x {index}> {offsets}")
        return f.op(f"getelementptr {elem}, ptr {base}, <{w} x i64> {at.text}")

    def _store(self, op: Op) -> None:
        value, buf = self.get(op.operands[0]), self.buffer(op.operands[1])
        at = self.l.address(buf, [self.get(v) for v in op.operands[2:]])
        dt = buf.type.dtype
        elem, f, w = mem_elem(dt), self.f, self.w
        if self.w == 1 or (at.kind == "u" and value.kind == "u" and self.mask is None):
            f.store(elem, self.l.one.to_memory(value.text, dt), f.gep(elem, buf.ptr, at.text), dt.bytes)
            return
        t, m = f"<{w} x {elem}>", f"<{w} x i1>"
        raw = self.l.ops.to_memory(self.l.vector(value), dt)
        short = {"float": "f32", "double": "f64"}.get(elem, elem)
        if at.contiguous:
            ptr = f.gep(elem, buf.ptr, at.text)
            if self.mask is None:
                if op.attrs.get("stream") and (at.aligned % w == 0 or op is self.peeled):
                    self.streams = True
                    f.stream(t, raw, ptr, min(w * dt.bytes, 64))
                else:
                    f.store(t, raw, ptr, dt.bytes)
                return
            name = f.module.intrinsic("void", f"llvm.masked.store.v{w}{short}.p0", t, "ptr", "i32", m)
            f.do(f"call void {name}({t} {raw}, ptr {ptr}, i32 {dt.bytes}, {m} {self.mask})")
            return
        at = at if at.kind != "u" else Val("l", at.text, i64, (0,) * w)
        if at.kind == "l" and self._store_pieces(buf.ptr, at, raw, t, elem, dt.bytes):
            return
        ptrs = self._pointers(buf.ptr, at, elem)
        name = f.module.intrinsic("void", f"llvm.masked.scatter.v{w}{short}.v{w}p0", t, f"<{w} x ptr>", "i32", m)
        f.do(f"call void {name}({t} {raw}, <{w} x ptr> {ptrs}, i32 {dt.bytes}, {m} {self.mask or 'splat (i1 true)'})")

    def _sort(self, op: Op) -> None:
        values, indices = (self.buffer(v) for v in op.operands)
        dt, descending = values.type.dtype, bool(op.attrs.get("descending"))
        require = require_radix if values.type.numel >= SHORTEST else require_sort
        symbol = require(self.f.module, dt, descending)
        ptrs = [self.f.gep(mem_elem(b.type.dtype), b.ptr, b.offset.text) for b in (values, indices)]
        steps = [b.type.element_strides[0] for b in (values, indices)]
        self.f.do(f"call void @{symbol}(ptr {ptrs[0]}, i64 {steps[0]}, ptr {ptrs[1]}, i64 {steps[1]}, i64 {values.type.numel})")
