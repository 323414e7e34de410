"""One `loop.parallel` as one OpenCL C kernel: a work-item per iteration, statements in order.

What a kernel needs from outside becomes parameters, in order of first use; names are counters, so that equal loops give equal text.
`loop.contract` and `loop.copy` have files of their own (contract.py, emit.py).
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...compiler.ir.core import Block, Loc, Op, Value
from ...compiler.ir.dims import product
from ...compiler.ir.types import BufferType, DType
from . import ctext, ranges
from .ctext import ARGUMENT, MEMORY, REGISTER, narrow
from .device import Caps
from .library import Helpers
from .scalars import Unsupported, round_to, scalar_expression
from .sort import sort_call

PRIVATE_LIMIT = 1024           # bytes of a private array; larger ones are slices of a scratch buffer
SCRATCH_ITEMS = 4096           # work-items of a kernel that needs scratch memory: they loop over the iterations


@dataclass
class Kernel:
    """A kernel's text, with @NAME@ for its name, and what a launch gives it, in parameter order.

    params: ("buffer", Value) -> memory and element offset; ("scalar", Value); ("number", int); ("constant", Op); ("error", first op number) -> error
    words and number; ("scratch", None).
    """

    text: str = ""
    params: list[tuple[str, Any]] = field(default_factory=list)
    global_size: tuple[int, ...] = (0,)
    local_size: tuple[int, ...] = (1,)
    sites: list[tuple[Loc | None, str]] = field(default_factory=list)
    scratch: int = 0               # bytes of the scratch buffer


def local_size(total: int, caps: Caps) -> int:
    """Work-items a group: enough groups for every unit first, then wide groups."""
    top = min(64 if caps.cpu else 256, caps.max_group)
    want = max(1, total // (caps.units * 4))
    size = 1 if caps.cpu else min(32, top)
    while size * 2 <= min(top, want):
        size *= 2
    return size


class KernelEmitter:
    """Emits the body of one loop.parallel."""

    def __init__(self, helpers: Helpers, caps: Caps):
        self.h, self.caps = helpers, caps
        self.kernel = Kernel()
        self.signature: list[str] = []
        self.lines: list[str] = []
        self.depth = 1
        self.counter = 0
        self.names: dict[Value, str] = {}              # scalars: an atomic C expression; buffers: a pointer
        self.spaces: dict[Value, str] = {}             # buffers: address space
        self.bounds: dict[Value, ranges.Interval] = {}
        self.is_int: set[Value] = set()                # i64 values held in an int
        self.item = "0"                                # this work-item's number, for scratch
        self.item_scratch = 0

    # ---- small things ----
    def line(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)

    def fresh(self, prefix: str = "v") -> str:
        self.counter += 1
        return f"{prefix}{self.counter}"

    def x(self, v: Value) -> str:
        """The C expression of a scalar; one from the host level becomes a literal or a parameter."""
        if v not in self.names:
            self.outer(v)
        return self.names[v]

    def outer(self, v: Value) -> None:
        if isinstance(v.type, BufferType):
            kind, payload = ("constant", v.owner) if isinstance(v.owner, Op) and v.owner.name == "loop.constant" else ("buffer", v)
            p = self.fresh("p")
            self.signature += [f"__global {MEMORY[v.type.dtype.name]} *{p}"] + ([f"const long o{p}"] if kind == "buffer" else [])
            self.kernel.params.append((kind, payload))
            self.names[v] = p
            self.spaces[v] = "__global"
            return
        if isinstance(v.owner, Op) and v.owner.name == "scalar.constant":
            self.constant(v.owner)
            return
        name = self.fresh("s")
        self.signature.append(f"const {ARGUMENT[v.type.dtype.name]} {name}")
        self.kernel.params.append(("scalar", v))
        self.names[v] = f"({name} != 0)" if v.type.dtype.is_bool else name
        self.bounds[v] = None

    def wide(self, v: Value) -> str:
        """An i64 value as a long."""
        x = self.x(v)
        return f"(long){x}" if v in self.is_int else x

    def range(self, v: Value) -> ranges.Interval:
        self.x(v)
        return self.bounds.get(v) if v in self.bounds else ranges.OF_DTYPE.get(v.type.dtype.name)

    def declare(self, v: Value, expr: str, interval: ranges.Interval = None, as_int: bool = False) -> None:
        name = self.fresh()
        dtype = v.type.dtype
        if as_int:
            self.is_int.add(v)
        self.line(f"const {'int' if as_int else REGISTER[dtype.name]} {name} = {expr};")
        self.names[v] = name
        if dtype.name == "i64":
            self.bounds[v] = interval

    # ---- the kernel around the body ----
    def parallel(self, op: Op) -> Kernel:
        extents = [int(e) for e in op.attrs["extents"]]
        total = product(extents)
        body = op.regions[0]
        wide = total >= ranges.HIGH
        number = "const ulong g = g0;" if wide else "const uint g = g0;"
        parts, rest = [], "g"
        suffix = "ul" if wide else "u"
        for d in range(len(extents) - 1, -1, -1):
            a = body.args[d]
            parts.append(f"const {'long' if extents[d] > ranges.HIGH else 'int'} {(name := self.fresh('i'))} = "
                         f"{'(int)' if extents[d] <= ranges.HIGH else '(long)'}({rest if d == 0 else f'{rest} % {extents[d]}{suffix}'});")
            rest = f"({rest} / {extents[d]}{suffix})"
            self.names[a] = name
            self.bounds[a] = (0, max(extents[d] - 1, 0))
            if extents[d] <= ranges.HIGH:
                self.is_int.add(a)
        self.depth = 2
        self.block(body)
        k = self.kernel
        local = local_size(total, self.caps)
        groups = -(-total // local)
        t = "ulong" if wide else "uint"
        if self.item_scratch:
            groups = min(groups, max(1, SCRATCH_ITEMS // local))
            k.scratch = groups * local * self.item_scratch
        loop = groups * local < total
        head = [f"  for ({t} g0 = get_global_id(0); g0 < {total}{suffix}; g0 += {groups * local}{suffix}) {{" if loop else
                f"  const {t} g0 = get_global_id(0);", f"    {number}"]
        if not loop and groups * local != total:
            head.append(f"    if (g >= {total}{suffix}) return;")
        head += ["    " + p for p in parts]
        k.global_size, k.local_size = (groups * local,), (local,)
        k.text = self.wrap("\n".join(head + self.lines + (["  }"] if loop else [])))
        return k

    def wrap(self, body: str) -> str:
        """Signature, pointer offsets and body."""
        offsets = "".join(f"  {n} += o{n};\n" for (kind, v) in self.kernel.params if kind == "buffer" for n in [self.names[v]])
        local = ", ".join(str(n) for n in (*self.kernel.local_size, 1, 1)[:3])
        body = body.replace("@SCRATCH@", f"{self.item_scratch}ul")
        return (f"__kernel __attribute__((reqd_work_group_size({local})))\n"
                f"void @NAME@({', '.join(self.signature) or 'const int unused'}) {{\n{offsets}{body}\n}}\n")

    # ---- ops ----
    def block(self, block: Block) -> list[Value]:
        """The statements of a region; gives what it yields."""
        for op in block.ops[:-1]:
            self.op(op)
        return block.ops[-1].operands

    def op(self, op: Op) -> None:
        if op.name == "scalar.constant":
            self.constant(op)
        elif op.name == "scalar.philox":
            self.philox(op)
        elif op.name.startswith("scalar."):
            self.scalar(op)
        else:
            fn = getattr(self, "op_" + op.name.removeprefix("loop.").replace(".", "_"), None)
            if fn is None:
                raise Unsupported(f"{op.name} inside loop.parallel")
            fn(op)

    def constant(self, op: Op) -> None:
        v, dtype = op.result, op.attrs["dtype"]
        if dtype.name == "i64":
            n = int(op.attrs["value"])
            self.names[v] = ctext.index_literal(n)
            self.bounds[v] = (n, n)
            if ranges.LOW < n <= ranges.HIGH:
                self.is_int.add(v)
        else:
            self.names[v] = ctext.literal(op.attrs["value"], dtype)
            if not dtype.is_float:
                self.bounds[v] = (int(op.attrs["value"]),) * 2

    def philox(self, op: Op) -> None:
        name = self.fresh("r")
        self.line(f"const uint4 {name} = {self.h.use('philox')}({self.x(op.operands[0])}, {self.x(op.operands[1])}, {int(op.attrs['domain'])}u);")
        for v, c in zip(op.results, "xyzw"):
            self.names[v] = f"{name}.{c}"

    def scalar(self, op: Op) -> None:
        name, v = op.name.removeprefix("scalar."), op.result
        xs, attrs = op.operands, op.attrs
        dtype = (xs[1] if name == "select" else xs[0]).type.dtype
        if dtype.is_int and name in ("floordiv", "mod", "fmod"):
            self.check_divisor(op, xs[1])
        if dtype.name == "i64" and self.index_op(op, name):
            return
        if name == "cast" and v.type.dtype.name == "i64" and not dtype.is_float:
            interval = self.range(xs[0])
            small = ranges.fits_int(interval)
            self.declare(v, f"({'int' if small else 'long'}){self.x(xs[0])}", interval, small)
            return
        args = [self.wide(x) if x.type.dtype.name == "i64" else self.x(x) for x in xs]
        if name == "bitcast" and dtype.name == "i64":
            args = [f"({args[0]})"]
        self.declare(v, scalar_expression(name, dtype, attrs, args, v.type.dtype, self.h))

    def index_op(self, op: Op, name: str) -> bool:
        """i64 arithmetic with known bounds, in 32 bits where that is exact. False: emit it the general way."""
        v, xs = op.result, op.operands
        if name == "compare":
            args = [self.x(x) for x in xs]
            if all(x in self.is_int for x in xs):
                self.declare(v, scalar_expression(name, xs[0].type.dtype, op.attrs, args, v.type.dtype, self.h))
                return True
            return False
        if v.type.dtype.name != "i64" or name in ("bitcast",):
            return False
        if name == "select":
            interval = ranges.union(self.range(xs[1]), self.range(xs[2]))
            small = ranges.fits_int(interval) and xs[1] in self.is_int and xs[2] in self.is_int
            a, b = (self.x(x) if small else self.wide(x) for x in xs[1:])
            self.declare(v, f"{self.x(xs[0])} ? {a} : {b}", interval, small)
            return True
        interval = self.clamp_range(op) or ranges.of_op(name, [self.range(x) for x in xs])
        if not ranges.fits_int(interval) or name not in ("add", "sub", "mul", "max", "min", "floordiv", "mod", "fmod", "and", "neg"):
            self.declare(v, scalar_expression(name, v.type.dtype, op.attrs, [f"({self.wide(x)})" for x in xs], v.type.dtype, self.h), interval)
            return True
        if not all(x in self.is_int for x in xs):
            # a long goes in, an int comes out: a clamp of a run-time index, or its remainder
            e = scalar_expression(name, v.type.dtype, op.attrs, [f"({self.wide(x)})" for x in xs], v.type.dtype, self.h)
            self.declare(v, f"(int)({e})", interval, True)
            return True
        a, b = self.x(xs[0]), self.x(xs[-1])
        if name in ("floordiv", "mod", "fmod"):
            if self.range(xs[0])[0] >= 0 and self.range(xs[1])[0] > 0:
                self.declare(v, f"(int)((uint){a} {'/' if name == 'floordiv' else '%'} (uint){b})", interval, True)
            else:
                fn = {"floordiv": "floordiv", "mod": "modulo", "fmod": "remainder"}[name]
                self.declare(v, f"{self.h.use(fn, 'int')}({a}, {b})", interval, True)
        elif name in ("max", "min"):
            self.declare(v, f"{a} {'>' if name == 'max' else '<'} {b} ? {a} : {b}", interval, True)
        elif name == "neg":
            self.declare(v, f"-{a}", interval, True)
        else:
            self.declare(v, f"{a} {dict(add='+', sub='-', mul='*')[name] if name != 'and' else '&'} {b}", interval, True)
        return True

    def clamp_range(self, op: Op) -> ranges.Interval:
        """min(max(x, low), high) of an unknown x: the inner op bounds one side, this one the other."""
        name = op.name.removeprefix("scalar.")
        if name not in ("max", "min"):
            return None
        (a, b), (c, d) = (self.range(x) or (-(1 << 63), (1 << 63) - 1) for x in op.operands)
        return (max(a, c), max(b, d)) if name == "max" else (min(a, c), min(b, d))

    def check_divisor(self, op: Op, divisor: Value) -> None:
        r = self.range(divisor)
        if r is not None and (r[0] > 0 or r[1] < 0):
            return
        n = self.site(op.loc, "integer division by zero")
        self.line(f"if ({self.x(divisor)} == 0) {self.h.use('fail')}(err, err0 + {n}, 0);")

    def site(self, loc: Loc | None, message: str) -> int:
        """The number of a place that can fail, from 0 within this kernel."""
        if not self.kernel.sites:
            self.signature += ["volatile __global int *err", "const int err0"]
            self.kernel.params.append(("error", None))
        self.kernel.sites.append((loc, message))
        return len(self.kernel.sites) - 1

    # ---- memory ----
    def element(self, buffer: Value, indices: list[Value]) -> tuple[str, str]:
        """Pointer and index expression. Indices are in bounds, so 32 bits do when the buffer's span fits them."""
        if buffer not in self.names:
            self.outer(buffer)
        t: BufferType = buffer.type
        span = sum((n - 1) * abs(s) for n, s in zip(t.shape, t.element_strides))
        terms = []
        for v, stride, n in zip(indices, t.element_strides, t.shape):
            if stride == 0 or n == 1:
                continue
            x = self.x(v)
            if span <= ranges.HIGH:
                x = x if v in self.is_int else f"(int){x}"
            else:
                x = self.wide(v)
            terms.append(x if stride == 1 else f"{x} * {ctext.index_literal(stride)}")
        return self.names[buffer], " + ".join(terms) or "0"

    def op_load(self, op: Op) -> None:
        b, *indices = op.operands
        p, i = self.element(b, indices)
        self.declare(op.result, ctext.load(p, i, b.type.dtype, self.h))

    def op_store(self, op: Op) -> None:
        v, b, *indices = op.operands
        p, i = self.element(b, indices)
        self.line(ctext.store(self.x(v), p, i, b.type.dtype, self.h))

    def op_view(self, op: Op) -> None:
        b, offset = op.operands
        if b not in self.names:
            self.outer(b)
        name = self.fresh("p")
        self.line(f"{self.spaces[b]} {MEMORY[b.type.dtype.name]} *{name} = {self.names[b]} + {self.x(offset)};")
        self.names[op.result], self.spaces[op.result] = name, self.spaces[b]

    def op_constant(self, op: Op) -> None:
        """Read on first use, as a parameter."""

    def op_alloc(self, op: Op) -> None:
        t: BufferType = op.result.type
        memory, v, n = MEMORY[t.dtype.name], op.result, ctext.span(t)
        name = self.fresh("p")
        if n * t.dtype.bytes <= PRIVATE_LIMIT:
            if memory == "half":                       # no half arrays without fp16, only pointers to it
                self.line(f"ushort {name}_[{max(n, 1)}]; __private half *{name} = (__private half *){name}_;")
            else:
                self.line(f"{memory} {name}[{max(n, 1)}];")
            self.spaces[v] = "__private"
        else:
            self.line(f"__global {memory} *{name} = (__global {memory} *){self.scratch(n * t.dtype.bytes)};")
            self.spaces[v] = "__global"
        self.names[v] = name

    def scratch(self, nbytes: int) -> str:
        """An address in this work-item's part of the scratch buffer."""
        if not self.item_scratch:
            self.signature.append("__global uchar *scratch")
            self.kernel.params.append(("scratch", None))
        at = self.item_scratch
        self.item_scratch += -(-nbytes // 16) * 16
        # @SCRATCH@: the size of a work-item's part, known only at the end
        return f"(scratch + (size_t)get_global_id(0) * @SCRATCH@ + {at})"

    def op_contract(self, op: Op) -> None:
        """A contraction inside an iteration: plain loops over the result, a sum inside."""
        out, lhs, rhs = op.operands
        names = [op.attrs[x] for x in ("out", "lhs", "rhs")]
        sizes = {c: n for text, v in zip(names, op.operands) for c, n in zip(text, v.type.shape)}
        for b in op.operands:
            if b not in self.names:
                self.outer(b)
        at = {c: self.fresh("i") for c in sizes}
        dtype = out.type.dtype
        acc_type = "float" if narrow(dtype) else REGISTER[dtype.name]

        def place(b: Value, text: str) -> str:
            return " + ".join(f"(long){at[c]} * {s}" for c, s in zip(text, b.type.element_strides) if s) or "0"

        def loops(letters: list[str]) -> None:
            for c in letters:
                self.line(f"for (int {at[c]} = 0; {at[c]} < {sizes[c]}; {at[c]}++) {{")
                self.depth += 1

        def close(letters: list[str]) -> None:
            for _ in letters:
                self.depth -= 1
                self.line("}")
        kept, summed = list(names[0]), [c for c in sizes if c not in names[0]]
        loops(kept)
        acc = self.fresh("a")
        self.line(f"{acc_type} {acc} = 0;")
        loops(summed)
        x, y = (ctext.load(self.names[b], place(b, text), b.type.dtype, self.h) for b, text in ((lhs, names[1]), (rhs, names[2])))
        fused = dtype.is_float and (self.caps.fma or narrow(dtype))
        self.line(f"{acc} = fma({x}, {y}, {acc});" if fused else f"{acc} += ({acc_type}){x} * ({acc_type}){y};")
        close(summed)
        if op.attrs.get("accumulate"):
            self.line(f"{acc} = {ctext.load(self.names[out], place(out, names[0]), dtype, self.h)} + {acc};")
        value = round_to(acc, dtype, self.h) if narrow(dtype) else acc
        self.line(ctext.store(value, self.names[out], place(out, names[0]), dtype, self.h))
        close(kept)

    # ---- control ----
    def index_variable(self, op: Op, v: Value, step: int) -> tuple[str, str, str, str]:
        """Declares a loop's index: its C type, name and bounds."""
        lo, hi = op.operands[:2]
        a, b = self.range(lo), self.range(hi)
        name = self.fresh("i")
        if a is not None and b is not None and ranges.LOW < a[0] and b[1] + step < ranges.HIGH and lo in self.is_int and hi in self.is_int:
            self.bounds[v] = (a[0], max(b[1] - 1, a[0]))
            self.is_int.add(v)
            t, low, high = "int", self.x(lo), self.x(hi)
        else:
            self.bounds[v] = (a[0], max(b[1] - 1, a[0])) if a is not None and b is not None else None
            t, low, high = "long", self.wide(lo), self.wide(hi)
        self.names[v] = name
        return t, name, low, high

    def carried(self, v: Value, init: str) -> str:
        name = self.fresh("c")
        self.line(f"{REGISTER[v.type.dtype.name]} {name} = {init};")
        return name

    def op_for(self, op: Op) -> None:
        body = op.regions[0]
        inits = op.operands[2:]
        names = [self.carried(a, self.x(i)) for a, i in zip(body.args[1:], inits)]
        step = int(op.attrs["step"])
        t, i, low, high = self.index_variable(op, body.args[0], step)
        self.line(f"for ({t} {i} = {low}; {i} < {high}; {i} += {step}) {{")
        self.depth += 1
        for a, n in zip(body.args[1:], names):
            self.names[a] = n
            self.bounds[a] = None
        out = [self.x(v) for v in self.block(body)]
        self.assign(names, out, [a.type.dtype for a in body.args[1:]])
        self.depth -= 1
        self.line("}")
        for r, n in zip(op.results, names):
            self.names[r] = n
            self.bounds[r] = None

    def assign(self, names: list[str], values: list[str], dtypes: list[DType]) -> None:
        """Parallel assignment: through copies where a carried value is read after it was written."""
        if len(names) > 1 and any(v in names[:i] for i, v in enumerate(values)):
            copies = [self.fresh("t") for _ in values]
            for c, v, d in zip(copies, values, dtypes):
                self.line(f"const {REGISTER[d.name]} {c} = {v};")
            values = copies
        for n, v in zip(names, values):
            if n != v:
                self.line(f"{n} = {v};")

    def op_reduce(self, op: Op) -> None:
        body, kinds = op.regions[0], op.attrs["kinds"]
        yielded = body.ops[-1].operands
        names = [self.carried(r, ctext.literal(identity(k, r.type.dtype), r.type.dtype)) for r, k in zip(op.results, kinds)]
        t, i, low, high = self.index_variable(op, body.args[0], 1)
        self.line(f"for ({t} {i} = {low}; {i} < {high}; {i} += 1) {{")
        self.depth += 1
        self.block(body)
        for n, k, y, r in zip(names, kinds, yielded, op.results):
            self.line(f"{n} = {self.combined(k, n, y, r.type.dtype)};")
        self.depth -= 1
        self.line("}")
        for r, n, k in zip(op.results, names, kinds):
            self.bounds[r] = None
            self.names[r] = n
            if narrow(r.type.dtype) and k in ("add", "mul"):     # accumulated in f32, rounded once
                self.declare(r, round_to(n, r.type.dtype, self.h))

    def combined(self, kind: str, acc: str, y: Value, dtype: DType) -> str:
        """The accumulator after one more value; a product added to a float sum is one fused multiply-add, as the loop IR allows."""
        times = y.owner if isinstance(y.owner, Op) and y.owner.name == "scalar.mul" else None
        if kind == "add" and dtype.name in ("f32", "f64") and times is not None and self.caps.fma:
            return f"fma({self.x(times.operands[0])}, {self.x(times.operands[1])}, {acc})"
        return combine_text(kind, acc, f"({self.wide(y)})" if dtype.name == "i64" else self.x(y), dtype, self.h)

    def op_if(self, op: Op) -> None:
        names = [self.fresh("c") for _ in op.results]
        for r, n in zip(op.results, names):
            self.line(f"{REGISTER[r.type.dtype.name]} {n};")
        self.line(f"if ({self.x(op.operands[0])}) {{")
        for i, region in enumerate(op.regions):
            if i and len(region.ops) == 1 and not names:
                break
            if i:
                self.line("} else {")
            self.depth += 1
            for n, v in zip(names, self.block(region)):
                self.line(f"{n} = {self.x(v)};")
            self.depth -= 1
        self.line("}")
        for r, n in zip(op.results, names):
            self.names[r] = n
            self.bounds[r] = None

    def op_while(self, op: Op) -> None:
        self.line("for (;;) {")
        self.depth += 1
        cond = self.block(op.regions[0])[0]
        self.line(f"if (!({self.x(cond)})) break;")
        self.block(op.regions[1])
        self.depth -= 1
        self.line("}")

    def op_assert(self, op: Op) -> None:
        cond, value = op.operands
        n = self.site(op.loc, op.attrs["message"])
        self.line(f"if (!({self.x(cond)})) {self.h.use('fail')}(err, err0 + {n}, {self.wide(value)});")

    def op_sort(self, op: Op) -> None:
        for b in op.operands:
            if b not in self.names:
                self.outer(b)
        self.line(sort_call(self, op))


def identity(kind: str, dtype: DType):
    """What a reduction over nothing gives."""
    return {"add": 0, "mul": 1, "max": dtype.min, "min": dtype.max, "and": -1 if dtype.kind == "int" else dtype.max, "or": 0}[kind]


def combine_text(kind: str, acc: str, value: str, dtype: DType, helpers: Helpers) -> str:
    """Two partial results as one; sums and products of f16 and bf16 stay in f32."""
    if narrow(dtype) and kind in ("add", "mul"):
        return f"{acc} {'+' if kind == 'add' else '*'} {value}"
    return scalar_expression(kind, dtype, {}, [acc, value], dtype, helpers)
