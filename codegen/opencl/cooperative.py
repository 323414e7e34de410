"""A loop.parallel over rows as one work-group per row (GPUs): the items of a group share the row's reductions and independent loops.

Softmax, layer norm and their like have few rows and long loops; an item per row would leave a GPU idle and read memory across rows.
At the body's own level every item computes the same scalars; `loop.reduce` and independent `loop.for` are dealt out to the items,
sums are combined in a tree whose shape follows the loop's length alone, private buffers live in local memory. Anything else at that
level (ifs, sequential loops, sorts) makes the emitter choose the plain form, an item per iteration.
"""
from __future__ import annotations

from ...compiler.ir.core import Block, Op, Value
from ...compiler.ir.dims import product
from ...compiler.ir.types import BufferType
from . import ctext, ranges
from .ctext import MEMORY, REGISTER, narrow
from .device import Caps
from .kernel import Kernel, KernelEmitter, combine_text, identity
from .scalars import round_to

LOCAL_LIMIT = 16384            # bytes of a row kept in local memory
SHORTEST = 32                  # loops below this are not worth a group
_AT_ROOT = {"loop.alloc", "loop.constant", "loop.view", "loop.load", "loop.store", "loop.reduce", "loop.for", "loop.assert"}


def group_width(op: Op, caps: Caps) -> int:
    """Work-items per row, or 0 when the plain form suits the loop better."""
    if caps.cpu:
        return 0
    body, rows = op.regions[0], product([int(e) for e in op.attrs["extents"]])
    loops, local = [], 0
    for o in body.ops[:-1]:
        if not o.name.startswith("scalar.") and o.name not in _AT_ROOT:
            return 0
        if o.name == "loop.for" and not o.attrs.get("independent"):
            return 0
        if o.name in ("loop.for", "loop.reduce"):
            n = _length(o)
            if n is None:
                return 0
            loops.append((o, n))
        elif o.name == "loop.alloc":
            local += ctext.span(o.result.type) * o.result.type.dtype.bytes
    longest = max((n for _, n in loops), default=0)
    if longest < SHORTEST or local > LOCAL_LIMIT or not any(o.name == "loop.reduce" for o, _ in loops):
        return 0
    if rows > caps.units * 64 and not _runs_along_memory([o for o, _ in loops]):
        return 0                                        # enough rows, and neighbouring rows are neighbours in memory
    width = SHORTEST
    while width < longest and width * 2 <= min(256, caps.max_group):
        width *= 2
    return width


def _length(loop: Op) -> int | None:
    """The number of iterations, when constant."""
    bounds = [v.owner.attrs["value"] if isinstance(v.owner, Op) and v.owner.name == "scalar.constant" else None for v in loop.operands[:2]]
    return None if None in bounds else max(0, int(bounds[1]) - int(bounds[0]))


def _runs_along_memory(loops: list[Op]) -> bool:
    """Whether most loads in the loops step to the next element with the loop's own index."""
    along = other = 0
    for loop in loops:
        indices = {loop.regions[0].args[0], *(o.regions[0].args[0] for o in loop.regions[0].walk() if o.name in ("loop.for", "loop.reduce"))}
        for o in loop.regions[0].walk():
            if o.name == "loop.load":
                unit = [i for i, s in zip(o.operands[1:], o.operands[0].type.element_strides) if s == 1]
                if any(i in indices for i in unit):
                    along += 1
                elif unit:
                    other += 1
    return along >= other


class GroupEmitter(KernelEmitter):
    """Emits the body of a loop.parallel for a group of `width` items per iteration."""

    def __init__(self, helpers, caps: Caps, width: int):
        super().__init__(helpers, caps)
        self.width = width
        self.shared: dict[str, str] = {}               # register type -> local array for combining partial results
        self.locals: list[str] = []                    # declarations, which must stand at the kernel's own level
        self.level = 0                                 # 0: the body's own level, where all items do the same
        self.unsettled = False                         # root loads that other items may not have done yet

    def parallel(self, op: Op) -> Kernel:
        extents = [int(e) for e in op.attrs["extents"]]
        total, body = product(extents), op.regions[0]
        k = self.kernel
        k.global_size, k.local_size = (total * self.width,), (self.width,)
        rest = "(ulong)get_group_id(0)"
        for d in range(len(extents) - 1, -1, -1):
            a, name = body.args[d], self.fresh("i")
            small = extents[d] <= ranges.HIGH
            self.line(f"const {'int' if small else 'long'} {name} = ({'int' if small else 'long'})({rest if d == 0 else f'{rest} % {extents[d]}ul'});")
            rest = f"({rest} / {extents[d]}ul)"
            self.names[a], self.bounds[a] = name, (0, max(extents[d] - 1, 0))
            if small:
                self.is_int.add(a)
        self.line("const int lane = (int)get_local_id(0);")
        self.block(body)
        k.text = self.wrap("\n".join([*("  " + d for d in self.locals), *self.lines]))
        return k

    def barrier(self) -> None:
        self.line("barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);")
        self.unsettled = False

    def settle(self) -> None:
        """Before a write: every item has done its earlier reads."""
        if self.unsettled:
            self.barrier()

    def inner(self, body: Block) -> list[Value]:
        """A region that one item runs by itself."""
        self.level += 1
        self.depth += 1
        out = self.block(body)
        return out

    def leave(self) -> None:
        self.level -= 1
        self.depth -= 1

    def dealt_loop(self, op: Op) -> None:
        """The head of a loop whose iterations the items take in turn."""
        step = int(op.attrs.get("step", 1))
        t, i, low, high = self.index_variable(op, op.regions[0].args[0], step * self.width)
        self.line(f"for ({t} {i} = {low} + lane * {step}; {i} < {high}; {i} += {step * self.width}) {{")

    def op_load(self, op: Op) -> None:
        super().op_load(op)
        self.unsettled |= self.level == 0

    def op_store(self, op: Op) -> None:
        if self.level:
            super().op_store(op)
            return
        v, b, *indices = op.operands
        p, i = self.element(b, indices)
        value = self.x(v)
        self.settle()
        self.line(f"if (lane == 0) {{ {ctext.store(value, p, i, b.type.dtype, self.h)} }}")
        self.barrier()

    def op_alloc(self, op: Op) -> None:
        if self.level:
            super().op_alloc(op)
            return
        t: BufferType = op.result.type
        memory, name = MEMORY[t.dtype.name], self.fresh("p")
        stored = "ushort" if memory == "half" else memory
        self.locals.append(f"__local {stored} {name}_[{max(ctext.span(t), 1)}]; __local {memory} *{name} = (__local {memory} *){name}_;")
        self.names[op.result], self.spaces[op.result] = name, "__local"

    def op_for(self, op: Op) -> None:
        if self.level:
            super().op_for(op)
            return
        self.settle()
        self.dealt_loop(op)
        self.inner(op.regions[0])
        self.leave()
        self.line("}")
        self.barrier()

    def op_reduce(self, op: Op) -> None:
        if self.level:
            super().op_reduce(op)
            return
        kinds = op.attrs["kinds"]
        dtypes = [r.type.dtype for r in op.results]
        names = [self.carried(r, ctext.literal(identity(k, d), d)) for r, k, d in zip(op.results, kinds, dtypes)]
        self.dealt_loop(op)
        yielded = self.inner(op.regions[0])
        for n, k, y, d in zip(names, kinds, yielded, dtypes):
            self.line(f"{n} = {self.combined(k, n, y, d)};")
        self.leave()
        self.line("}")
        for r, n, k, d in zip(op.results, names, kinds, dtypes):
            shared = self.shared_array("int" if d.is_bool else REGISTER[d.name])
            self.line(f"{shared}[lane] = {n};")
            self.line("barrier(CLK_LOCAL_MEM_FENCE);")
            self.line(f"for (int half_ = {self.width // 2}; half_ > 0; half_ >>= 1) {{")
            self.line(f"  if (lane < half_) {shared}[lane] = {combine_text(k, f'{shared}[lane]', f'{shared}[lane + half_]', d, self.h)};")
            self.line("  barrier(CLK_LOCAL_MEM_FENCE);")
            self.line("}")
            out = f"{shared}[0]"
            if narrow(d) and k in ("add", "mul"):
                out = round_to(out, d, self.h)
            self.declare(r, out)
            self.barrier()                              # the array is free again, and all reads are done

    def shared_array(self, type_: str) -> str:
        if type_ not in self.shared:
            self.shared[type_] = self.fresh("red")
            self.locals.append(f"__local {type_} {self.shared[type_]}[{self.width}];")
        return self.shared[type_]
