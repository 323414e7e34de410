"""`loop.contract` as kernels: batch x M x N x K whatever the letters and strides, one of four forms.

* plain: a work-item per element; for small products, and thin ones whose right operand runs along n.
* staged: for GPUs, M < 8 and a right operand that runs along k: a work-item per column, tiles read along k into local memory.
* tiled: for GPUs. A group of 16 x 16 work-items stages tiles of both operands in local memory, each item keeps T x T sums in registers.
* blocked: for processors. A work-item per block of the result; the right operand is packed into a private tile, sums are vectors.

All add in ascending k per element with fused multiply-adds (integers wrap), so they give the same bits.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from ...compiler.ir.types import BufferType, DType
from . import ctext
from .ctext import MEMORY, REGISTER, UNSIGNED
from .device import Caps
from .kernel import Kernel, local_size
from .library import Helpers
from .ranges import HIGH
from .scalars import round_to


@dataclass(frozen=True)
class Dim:
    """One index: its size and its strides in out, lhs and rhs (0 where an operand does not have it)."""

    size: int | str            # a str: the kernel argument that holds it
    out: int | str
    lhs: int | str
    rhs: int | str


@dataclass
class Problem:
    """The contraction, normalised: lists of dims per role, outermost first. `swap`: lhs and rhs have changed places."""

    dtype: DType
    accumulate: bool
    batch: list[Dim]
    m: list[Dim]
    n: list[Dim]
    k: list[Dim]
    swap: bool
    narrow: tuple[DType, DType]    # of lhs and rhs
    wide: bool                 # offsets need 64 bits

    def sizes(self) -> tuple[int, int, int, int]:
        return tuple(prod(d.size for d in role) for role in (self.batch, self.m, self.n, self.k))

    def swapped(self) -> Problem:
        """The same with lhs and rhs exchanged: products commute, bit for bit."""
        batch, m, n, k = ([Dim(d.size, d.out, d.rhs, d.lhs) for d in role] for role in (self.batch, self.n, self.m, self.k))
        return replace(self, batch=batch, m=m, n=n, k=k, swap=not self.swap, narrow=self.narrow[::-1])


def normalise(out: BufferType, lhs: BufferType, rhs: BufferType, attrs: dict) -> Problem:
    """Letters sorted into roles; neighbours that are one run of memory in every operand are merged."""
    strides = [dict(zip(attrs[k], t.element_strides)) for k, t in (("out", out), ("lhs", lhs), ("rhs", rhs))]
    sizes = {c: n for k, t in (("out", out), ("lhs", lhs), ("rhs", rhs)) for c, n in zip(attrs[k], t.shape)}
    roles: dict[str, list[Dim]] = {"batch": [], "m": [], "n": [], "k": []}
    for c in dict.fromkeys(attrs["out"] + attrs["lhs"] + attrs["rhs"]):     # summed letters in lhs order, then rhs
        o, a, b = (c in s for s in strides)
        role = "k" if not o else "batch" if a and b else "m" if a else "n"
        if sizes[c] != 1:
            roles[role].append(Dim(sizes[c], *(s.get(c, 0) for s in strides)))
    p = Problem(out.dtype, bool(attrs.get("accumulate")), *(_merge(roles[r]) for r in ("batch", "m", "n", "k")), False, (lhs.dtype, rhs.dtype),
                any(sum((n - 1) * abs(s) for n, s in zip(t.shape, t.element_strides)) > HIGH for t in (out, lhs, rhs)))
    inner = lambda dims: dims[-1].out if dims else 0
    return p.swapped() if inner(p.m) == 1 and inner(p.n) != 1 else p      # n runs along the result's memory


def _merge(dims: list[Dim]) -> list[Dim]:
    out: list[Dim] = []
    for d in dims:
        if out and (out[-1].out, out[-1].lhs, out[-1].rhs) == (d.out * d.size, d.lhs * d.size, d.rhs * d.size):
            out[-1] = Dim(out[-1].size * d.size, d.out, d.lhs, d.rhs)
        else:
            out.append(d)
    return out


def contract_kernel(op, helpers: Helpers, caps: Caps) -> Kernel | None:
    """The kernel of a loop.contract; None when its result is empty. Its buffers are out, lhs, rhs in that order."""
    out, lhs, rhs = (v.type for v in op.operands)
    if out.numel == 0:
        return None
    p = normalise(out, lhs, rhs, op.attrs)
    batch, m, n, k = p.sizes()
    if k == 0:
        p.k = [Dim(0, 0, 0, 0)]
    if n < 8 <= m:                                       # a matrix times a vector: the long side becomes the columns
        p = p.swapped()
        m, n = n, m
    e = _Emitter(p, helpers, caps)
    if k < 8 or n < 8 or m * n * k < 1 << 12 or batch >= 65536:
        kernel = e.plain()
    elif caps.cpu:
        kernel = e.blocked() if p.dtype.is_float else e.plain()
    elif m >= 8:
        kernel = e.tiled() if caps.max_group >= 256 else e.plain()
    else:
        kernel = e.staged() if p.k[-1].rhs == 1 else e.plain()
    o, a, b = op.operands
    kernel.params = [("buffer", o), ("buffer", b if p.swap else a), ("buffer", a if p.swap else b), *(("number", v) for v in e.arguments.values())]
    return kernel


class _Emitter:
    def __init__(self, p: Problem, helpers: Helpers, caps: Caps):
        self.p, self.h, self.caps = p, helpers, caps
        d = p.dtype
        self.int = "long" if p.wide else "int"
        self.acc = UNSIGNED[d.name] if d.is_int else REGISTER[d.name]
        self.memory = MEMORY[d.name]
        self.types = {"c": d, "a": p.narrow[0], "b": p.narrow[1]}
        self.arguments: dict[str, int] = {}

    def generalise(self) -> tuple:
        """Sizes and strides become kernel arguments where every role is one dim, so that products of other sizes share the kernel.
        Strides of 0 and 1 stay: they decide what code is good. Gives the sizes of batch, m, n, k as the text shall name them."""
        p, roles = self.p, {"B": "batch", "M": "m", "N": "n", "K": "k"}
        if p.wide or any(len(getattr(p, r)) > 1 for r in roles.values()):
            return p.sizes()

        def argument(name: str, value: int) -> str:
            self.arguments[name] = value
            return name

        names = []
        for letter, role in roles.items():
            dims = getattr(p, role)
            if not dims:
                names.append(1)
                continue
            d = dims[0]
            strides = (s if s in (0, 1) else argument(f"{o}{letter}", s) for o, s in (("c", d.out), ("a", d.lhs), ("b", d.rhs)))
            names.append(argument(letter, d.size))
            p = replace(p, **{role: [Dim(letter, *strides)]})
        self.p = p
        return tuple(names)

    # ---- text pieces ----
    def offset(self, dims: list[Dim], which: str, index: str) -> str:
        """The element offset of a flattened index in an operand."""
        terms, inner = [], 1
        for i in range(len(dims) - 1, -1, -1):
            d, stride = dims[i], getattr(dims[i], which)
            part = index if inner == 1 else f"({index} / {inner})"
            if i > 0:
                part = f"({part} % {d.size})"
            if stride:
                by = stride if isinstance(stride, str) else ctext.index_literal(stride)
                terms.append(f"({self.int}){part}" + ("" if stride == 1 else f" * {by}"))
            if i > 0:
                inner *= d.size
        return " + ".join(reversed(terms)) or "0"

    def fma(self, a: str, b: str, acc: str) -> str:
        return f"fma({a}, {b}, {acc})" if self.p.dtype.is_float and self.caps.fma else f"{acc} + {a} * {b}"

    def load(self, pointer: str, index: str) -> str:
        d = self.types[pointer]
        x = ctext.load(pointer, index, d, self.h)
        return f"({self.acc}){x}" if d.is_int or REGISTER[d.name] != self.acc else x

    def store(self, index: str, acc: str) -> str:
        d = self.p.dtype
        value = f"({REGISTER[d.name]}){acc}" if d.is_int else round_to(acc, d, self.h) if not self.p.accumulate else acc
        if self.p.accumulate:
            old = ctext.load("c", index, d, self.h)
            value = f"({REGISTER[d.name]})({acc} + ({self.acc}){old})" if d.is_int else f"{old} + {acc}"
        return ctext.store(value, "c", index, d, self.h)

    def kernel(self, body: str, global_size: tuple[int, ...], local: tuple[int, ...]) -> Kernel:
        size = ", ".join(str(x) for x in (*local, 1, 1)[:3])
        t, ta, tb = (MEMORY[self.types[x].name] for x in "cab")
        text = (f"__kernel __attribute__((reqd_work_group_size({size})))\n"
                f"void @NAME@(__global {t} *c, const long oc, const __global {ta} *a, const long oa, const __global {tb} *b, const long ob"
                f"{''.join(f', const int {name}' for name in self.arguments)}) {{\n"
                f"  c += oc; a += oa; b += ob;\n{body}}}\n")
        return Kernel(text, [], global_size, local)

    # ---- forms ----
    def plain(self) -> Kernel:
        p = self.p
        batch, m, n, _ = p.sizes()
        total = batch * m * n
        local = local_size(total, self.caps)
        groups = -(-total // local)
        t = "ulong" if total > HIGH else "uint"
        guard = f"  if (g >= {total}) return;\n" if groups * local != total else ""
        lines, depth, ao, bo = [], "  ", "a0", "b0"
        for i, d in enumerate(p.k):
            lines.append(f"{depth}for ({self.int} k{i} = 0; k{i} < {d.size}; k{i}++) {{")
            depth += "  "
            ao += f" + k{i} * {ctext.index_literal(d.lhs)}" if d.lhs else ""
            bo += f" + k{i} * {ctext.index_literal(d.rhs)}" if d.rhs else ""
        lines.append(f"{depth}acc = {self.fma(self.load('a', ao), self.load('b', bo), 'acc')};")
        lines += ["  " * (i + 1) + "}" for i in range(len(p.k) - 1, -1, -1)]
        body = (f"  const {t} g = get_global_id(0);\n{guard}"
                f"  const {t} gb = g / {m * n}, gm = g / {n} % {m}, gn = g % {n};\n"
                f"  const {self.int} a0 = {self.offset(p.batch, 'lhs', 'gb')} + {self.offset(p.m, 'lhs', 'gm')};\n"
                f"  const {self.int} b0 = {self.offset(p.batch, 'rhs', 'gb')} + {self.offset(p.n, 'rhs', 'gn')};\n"
                f"  const {self.int} c0 = {self.offset(p.batch, 'out', 'gb')} + {self.offset(p.m, 'out', 'gm')} + {self.offset(p.n, 'out', 'gn')};\n"
                f"  {self.acc} acc = 0;\n" + "\n".join(lines) + f"\n  {self.store('c0', 'acc')}\n")
        return self.kernel(body, (groups * local,), (local,))

    def tiled(self) -> Kernel:
        """Tiles of 16 T rows and columns; T as large as still leaves every unit a group."""
        p = self.p
        batch, m, n, k = p.sizes()
        big = p.dtype.bits == 64
        t = next((t for t in ((4, 2) if big else (8, 4, 2)) if batch * -(-m // (16 * t)) * -(-n // (16 * t)) >= self.caps.units), 2)
        bn, bm, bb = -(-n // (16 * t)) * 16, -(-m // (16 * t)) * 16, batch
        side, depth = 16 * t, 16
        while 2 * depth * (side + 1) * (8 if big else 4) > self.caps.local_bytes:
            depth //= 2
        acc = self.acc
        _, m, n, k = self.generalise()
        p = self.p

        def stage(tile: str, source: str, which: str, role: list[Dim], size, start: str) -> str:
            # the 256 items read along whichever of k and m (n) is contiguous in memory
            along_k = p.k[-1].__getattribute__(which) == 1
            kk, rr = (f"e % {depth}", f"e / {depth}") if along_k else (f"e / {side}", f"e % {side}")
            at = f"{source}0 + {self.offset(role, which, 'r')} + {self.offset(p.k, which, 'kx')}"
            return (f"    for (int e = item; e < {side * depth}; e += 256) {{\n"
                    f"      const int kk = {kk}, rr = {rr}, kx = kt + kk, r = {start} + rr;\n"
                    f"      {acc} x = 0;\n      if (kx < {k} && r < {size}) x = {self.load(source, at)};\n"
                    f"      {tile}[kk * {side + 1} + rr] = x;\n    }}\n")

        body = (f"  __local {acc} ta[{depth * (side + 1)}], tb[{depth * (side + 1)}];\n"
                f"  const int tx = get_local_id(0), ty = get_local_id(1), item = ty * 16 + tx;\n"
                f"  const int n0 = (int)get_group_id(0) * {side}, m0 = (int)get_group_id(1) * {side}, gb = (int)get_group_id(2);\n"
                f"  const {self.int} a0 = {self.offset(p.batch, 'lhs', 'gb')}, b0 = {self.offset(p.batch, 'rhs', 'gb')}, "
                f"c0 = {self.offset(p.batch, 'out', 'gb')};\n"
                f"  {acc} acc[{t}][{t}];\n"
                f"  for (int i = 0; i < {t}; i++) for (int j = 0; j < {t}; j++) acc[i][j] = 0;\n"
                f"  for (int kt = 0; kt < {k}; kt += {depth}) {{\n"
                + stage("ta", "a", "lhs", p.m, m, "m0") + stage("tb", "b", "rhs", p.n, n, "n0") +
                f"    barrier(CLK_LOCAL_MEM_FENCE);\n"
                f"    for (int kk = 0; kk < {depth}; kk++) {{\n"
                f"      {acc} x[{t}], y[{t}];\n"
                f"      for (int i = 0; i < {t}; i++) {{ x[i] = ta[kk * {side + 1} + ty + 16 * i]; y[i] = tb[kk * {side + 1} + tx + 16 * i]; }}\n"
                f"      for (int i = 0; i < {t}; i++) for (int j = 0; j < {t}; j++) acc[i][j] = {self.fma('x[i]', 'y[j]', 'acc[i][j]')};\n"
                f"    }}\n    barrier(CLK_LOCAL_MEM_FENCE);\n  }}\n"
                f"  for (int i = 0; i < {t}; i++) for (int j = 0; j < {t}; j++) {{\n"
                f"    const int r = m0 + ty + 16 * i, s = n0 + tx + 16 * j;\n"
                f"    if (r < {m} && s < {n}) {{\n"
                f"      const {self.int} at = c0 + {self.offset(p.m, 'out', 'r')} + {self.offset(p.n, 'out', 's')};\n"
                f"      {self.store('at', 'acc[i][j]')}\n    }}\n  }}\n")
        return self.kernel(body, (bn, bm, bb), (16, 16, 1))

    def staged(self) -> Kernel:
        """64 columns a group; the right operand comes in tiles of 64 x 32, read along k by neighbouring items."""
        p = self.p
        batch, m, n, k = p.sizes()
        acc, cols, depth = self.acc, 64, 32
        groups = (-(-n // cols) * cols, batch)
        _, _, n, k = self.generalise()
        p = self.p
        lines = [
            f"  __local {acc} tb[{cols * (depth + 1)}];",
            f"  const int item = get_local_id(0), n0 = (int)get_group_id(0) * {cols}, s = n0 + item, gb = (int)get_group_id(1);",
            f"  const {self.int} a0 = {self.offset(p.batch, 'lhs', 'gb')}, b0 = {self.offset(p.batch, 'rhs', 'gb')}, c0 = {self.offset(p.batch, 'out', 'gb')};",
            "  " + " ".join(f"{acc} s{i} = 0;" for i in range(m)),
            f"  for (int kt = 0; kt < {k}; kt += {depth}) {{",
            f"    for (int e = item; e < {cols * depth}; e += {cols}) {{",
            f"      const int kk = e % {depth}, rr = e / {depth}, kx = kt + kk, r = n0 + rr;",
            f"      if (kx < {k} && r < {n}) tb[rr * {depth + 1} + kk] = {self.load('b', 'b0 + ' + self.offset(p.n, 'rhs', 'r') + ' + ' + self.offset(p.k, 'rhs', 'kx'))};",
            "    }", "    barrier(CLK_LOCAL_MEM_FENCE);",
            f"    const int kn = {k} - kt < {depth} ? {k} - kt : {depth};",
            f"    if (s < {n}) for (int kk = 0; kk < kn; kk++) {{",
            f"      const int kx = kt + kk; const {acc} y = tb[item * {depth + 1} + kk]; const {self.int} ka = a0 + {self.offset(p.k, 'lhs', 'kx')};",
        ]
        for i in range(m):
            a = self.load("a", f"ka + {self.offset(p.m, 'lhs', str(i))}")
            lines.append(f"      s{i} = {self.fma(a, 'y', f's{i}')};")
        lines += ["    }", "    barrier(CLK_LOCAL_MEM_FENCE);", "  }", f"  if (s < {n}) {{"]
        for i in range(m):
            lines.append(f"    {{ const {self.int} at = c0 + {self.offset(p.m, 'out', str(i))} + {self.offset(p.n, 'out', 's')}; {self.store('at', f's{i}')} }}")
        lines.append("  }")
        return self.kernel("\n".join(lines) + "\n", groups, (cols, 1))

    def blocked(self) -> Kernel:
        """A work-item computes `rows` x `cols`; per slice of k it packs the right operand once and runs down its rows, `mr` at a time."""
        p = self.p
        batch, m, n, k = p.sizes()
        acc = self.acc
        lanes = max(4, min(16, self.caps.vector * 4 // (8 if acc == "double" else 4)))
        mr, nv = (8, 2) if lanes * (8 if acc == "double" else 4) >= 64 else (6, 2)
        mr = min(mr, m)
        cols = lanes * nv
        rows = mr
        while rows < 8 * mr and rows < m and batch * -(-m // (2 * rows)) * -(-n // cols) >= 4 * self.caps.units:
            rows *= 2
        depth = 128
        groups = (-(-m // rows), -(-n // cols), batch)
        tail = n % cols
        _, m, n, k = self.generalise()
        p = self.p
        tail = tail or isinstance(n, str)                 # an argument: other sizes will use the kernel too
        vec = f"{acc}{lanes}"
        cells = [(i, j) for i in range(mr) for j in range(nv)]
        zero = ctext.literal(0, p.dtype)
        lines = [
            f"  const int gb = (int)get_group_id(2), n0 = (int)get_group_id(1) * {cols}, m0 = (int)get_group_id(0) * {rows};",
            f"  const {self.int} a0 = {self.offset(p.batch, 'lhs', 'gb')}, b0 = {self.offset(p.batch, 'rhs', 'gb')}, c0 = {self.offset(p.batch, 'out', 'gb')};",
            f"  {acc} sums[{rows * cols}] __attribute__((aligned(64))), pack[{depth * cols}] __attribute__((aligned(64)));",
            f"  {self.int} ka[{depth}];",
            f"  for (int i = 0; i < {rows * cols}; i++) sums[i] = {zero};",
            f"  for (int kt = 0; kt < {k}; kt += {depth}) {{",
            f"    const int kn = {k} - kt < {depth} ? {k} - kt : {depth};",
            "    for (int kk = 0; kk < kn; kk++) {",
            "      const int kx = kt + kk;",
            f"      ka[kk] = {self.offset(p.k, 'lhs', 'kx')};",
        ]
        contiguous = len(p.n) == 1 and p.n[0].rhs == 1 and acc == self.memory == MEMORY[self.types["b"].name]
        fill = [f"      const {self.int} kb = b0 + {self.offset(p.k, 'rhs', 'kx')};"]
        scalar_fill = f"for (int j = 0; j < {cols}; j++) {{ const int s = n0 + j; pack[kk * {cols} + j] = s < {n} ? {self.load('b', 'kb + ' + self.offset(p.n, 'rhs', 's'))} : {zero}; }}"
        if contiguous:
            vector_fill = " ".join(f"vstore{lanes}(vload{lanes}(0, b + kb + n0 + {j * lanes}), 0, pack + kk * {cols} + {j * lanes});" for j in range(nv))
            fill.append(f"      if (n0 + {cols} <= {n}) {{ {vector_fill} }} else {scalar_fill}" if tail else f"      {vector_fill}")
            lines += fill + ["    }"]
        elif p.k[-1].rhs == 1:                            # along k in memory: column by column
            lines += ["    }", f"    for (int j = 0; j < {cols}; j++) {{", "      const int s = n0 + j;",
                      f"      if (s < {n}) {{", f"        const {self.int} nb = b0 + {self.offset(p.n, 'rhs', 's')};",
                      f"        for (int kk = 0; kk < kn; kk++) {{ const int kx = kt + kk; pack[kk * {cols} + j] = {self.load('b', 'nb + ' + self.offset(p.k, 'rhs', 'kx'))}; }}",
                      f"      }} else for (int kk = 0; kk < kn; kk++) pack[kk * {cols} + j] = {zero};", "    }"]
        else:
            lines += fill + [f"      {scalar_fill}", "    }"]
        lines += [f"    for (int i0 = 0; i0 < {rows} && m0 + i0 < {m}; i0 += {mr}) {{"]
        for i in range(mr):                               # rows past the end repeat the last one; they are not stored
            lines.append(f"      const int r{i} = min(m0 + i0 + {i}, {m} - 1); const {self.int} q{i} = a0 + {self.offset(p.m, 'lhs', f'r{i}')};")
        lines += [f"      {vec} s{i}_{j} = vload{lanes}(0, sums + (i0 + {i}) * {cols} + {j * lanes});" for i, j in cells]
        lines.append("      for (int kk = 0; kk < kn; kk++) {")
        lines.append(f"        const {self.int} x = ka[kk];")
        lines += [f"        const {vec} w{j} = vload{lanes}(0, pack + kk * {cols} + {j * lanes});" for j in range(nv)]
        for i in range(mr):
            lines.append(f"        const {vec} x{i} = ({vec})({self.load('a', f'q{i} + x')});")
            lines += [f"        s{i}_{j} = {self.fma(f'x{i}', f'w{j}', f's{i}_{j}')};" for j in range(nv)]
        lines.append("      }")
        lines += [f"      vstore{lanes}(s{i}_{j}, 0, sums + (i0 + {i}) * {cols} + {j * lanes});" for i, j in cells]
        lines += ["    }", "  }",
                  f"  for (int i = 0; i < {rows} && m0 + i < {m}; i++) {{",
                  "    const int r = m0 + i;", f"    const {self.int} cr = c0 + {self.offset(p.m, 'out', 'r')};",
                  f"    for (int j = 0; j < {cols} && n0 + j < {n}; j++) {{ const int s = n0 + j; const {self.int} at = cr + {self.offset(p.n, 'out', 's')}; "
                  f"{self.store('at', f'sums[i * {cols} + j]')} }}", "  }"]
        return self.kernel("\n".join(lines) + "\n", groups, (1, 1, 1))
