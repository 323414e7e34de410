"""loop.pack and loop.contract_packed as kernels: a work-item per stored code byte, and per element of the result."""
from __future__ import annotations

from math import prod

from ...compiler.ir.core import Op
from ...compiler.ops.packed import COLUMNS, FORMATS, STEP_BYTES, Format, row_dims
from .device import Caps
from .kernel import Kernel, local_size


def _kernel(body: str, parameters: str, op: Op, total: int, caps: Caps) -> Kernel:
    local = local_size(total, caps)
    text = (f"__kernel __attribute__((reqd_work_group_size({local}, 1, 1)))\n"
            f"void @NAME@({parameters}) {{\n  const ulong g = get_global_id(0);\n  if (g >= {total}ul) return;\n{body}}}\n")
    return Kernel(text, [("buffer", v) for v in op.operands], (-(-total // local) * local,), (local,))


def _value(fmt: Format) -> str:
    """The number that `code` stands for."""
    if fmt.powers:
        return "(code & 8 ? -1 : 1) * ((1 << (code & 7)) >> 1)"
    return f"code - {fmt.offset}" if fmt.bits < 16 else "code"


def _code(fmt: Format) -> str:
    """The code of `value`."""
    if fmt.powers:
        return "(32 - (int)clz(abs(value))) | (value < 0 ? 8 : 0)"
    return f"(value + {fmt.offset}) & {(1 << fmt.bits) - 1}"


def contract_kernel(op: Op, caps: Caps) -> Kernel:
    """Columns run fastest: neighbours read neighbouring codes and the same activations."""
    fmt = FORMATS[op.attrs["format"]]
    out, x = (v.type for v in op.operands[:2])
    n = out.shape[-1]
    lead, depth = row_dims(x, op.attrs)
    steps, per = prod(depth) // fmt.group, depth[-1] // fmt.group
    if fmt.bits == 16:
        inner = "    acc += (int)xs[0] * (short)(word & 0xffff) + (int)xs[1] * (short)(word >> 16);\n"
    else:
        parts = 8 // fmt.bits
        inner = (f"    for (int j = 0; j < {parts}; j++) for (int b = 0; b < 4; b++) {{\n"
                 f"      const int code = (int)(word >> (8 * b + {fmt.bits} * j)) & {(1 << fmt.bits) - 1};\n"
                 f"      acc += (int)xs[j * 4 + b] * ({_value(fmt)});\n    }}\n")
    kind = "short" if fmt.bits == 16 else "char"
    unit = "short" if fmt.bits == 16 else "uchar"
    start, end = (_place("row", lead, t.element_strides) for t in (x, out))
    run = f"t / {per}" if depth[:-1] else "0"
    here = f"{_place(run, depth[:-1], x.element_strides[len(lead):])} + (long)({f't % {per}' if depth[:-1] else 't'}) * {fmt.group}"
    body = (f"  const uint row = g / {n}, col = g % {n};\n  x += ox + {start};\n"
            f"  __global const uint *words = (__global const uint *)(w + ow) + (ulong)(col / {COLUMNS}) * {steps * COLUMNS} + col % {COLUMNS};\n"
            f"  int acc = 0;\n  for (int t = 0; t < {steps}; t++) {{\n    const uint word = words[(ulong)t * {COLUMNS}];\n    __global const {kind} *xs = x + {here};\n{inner}  }}\n  c[oc + {end} + (long)col * {out.element_strides[-1]}] = acc;\n")
    return _kernel(body, f"__global int *c, const long oc, __global const {kind} *x, const long ox, __global const {unit} *w, const long ow", op, out.numel, caps)


def _place(index: str, sizes, strides) -> str:
    """The elements before position `index` of a row-major nest of dims."""
    terms, inner = [], 1
    for i in range(len(sizes) - 1, -1, -1):
        at = f"({index}) / {inner}" if inner > 1 else f"({index})"
        terms.append(f"(long)({at}{f' % {sizes[i]}' if i else ''}) * {strides[i]}")
        inner *= sizes[i]
    return " + ".join(terms) or "0"


def pack_kernel(op: Op, caps: Caps) -> Kernel:
    fmt = FORMATS[op.attrs["format"]]
    values = op.operands[1].type
    (k, n), (sk, sn) = values.shape, values.element_strides
    steps = -(-k // fmt.group)
    at = f"k < {k} && col < {n} ? (int)v[ov + (long)k * {sk} + (long)col * {sn}] : 0"
    if fmt.bits == 16:
        body = (f"  const uint e = g % 32, step = g / 32 % {steps}, col = g / {32 * steps} * {COLUMNS} + e / 2, k = step * 2 + e % 2;\n"
                f"  out[oo + g] = (short)({at});\n")
    else:
        parts = 8 // fmt.bits
        body = (f"  const uint e = g % {STEP_BYTES}, step = g / {STEP_BYTES} % {steps}, col = g / {STEP_BYTES * steps} * {COLUMNS} + e / 4;\n"
                f"  int byte = 0;\n  for (int j = 0; j < {parts}; j++) {{\n    const uint k = step * {fmt.group} + j * 4 + e % 4;\n"
                f"    const int value = {at};\n    byte |= ({_code(fmt)}) << ({fmt.bits} * j);\n  }}\n  out[oo + g] = (uchar)byte;\n")
    unit, kind = ("short", "short") if fmt.bits == 16 else ("uchar", "char")
    return _kernel(body, f"__global {unit} *out, const long oo, __global const {kind} *v, const long ov", op, op.operands[0].type.numel, caps)
