"""Stable sorting in OpenCL C: inside a work-item (insertion, then merges), and a whole buffer by parallel merge passes.

NaN counts as the largest value; -0 equals +0. Both forms move an i64 index along with each value.
"""
from __future__ import annotations

from string import Template

from ...compiler.ir.types import BufferType, DType
from . import ctext
from .ctext import MEMORY, REGISTER

INSERTION = 32                 # longest slice sorted by insertion alone; also the length of the runs that are merged

_SLICE = Template("""static inline void $name($vspace $T *v, $xspace long *x, $tspace $T *tv, $tspace long *tx) {
  for (int low = 0; low < $n; low += $run) {
    const int high = low + $run < $n ? low + $run : $n;
    for (int i = low + 1; i < high; i++) {
      const $R a = $load_i;
      const long ia = x[i * $xs];
      int j = i;
      for (; j > low; j--) {
        const $R b = $load_before_j;
        if (!($a_before_b)) break;
        $store_b
        x[j * $xs] = x[(j - 1) * $xs];
      }
      $store_a
      x[j * $xs] = ia;
    }
  }
$merge}""")

_MERGE = Template("""  for (int width = $run; width < $n; width *= 2) {
    for (int i = 0; i < $n; i++) { const $R b = $load_i; $store_t tx[i] = x[i * $xs]; }
    for (int low = 0; low < $n; low += 2 * width) {
      const int mid = low + width < $n ? low + width : $n, high = low + 2 * width < $n ? low + 2 * width : $n;
      int p = low, q = mid;
      for (int j = low; j < high; j++) {
        int left = q >= high;
        if (p < mid && q < high) { const $R a = $load_q; const $R b = $load_p; left = !($a_before_b); }
        const int from = left ? p++ : q++;
        const $R b = $load_from;
        $store_b
        x[j * $xs] = tx[from];
      }
    }
  }
""")

# One pass over runs of `width`: each element finds its place by binary search in the neighbouring run.
_PASS = Template("""__kernel __attribute__((reqd_work_group_size($local, 1, 1)))
void @NAME@(__global $T *v, const long ov, __global long *x, const long ox, __global $T *w, const long ow, __global long *y, const long oy,
            const long vs, const long xs, const long ws, const long ys, const long n, const long width) {
  const long i = (long)get_global_id(0);
  if (i >= n) return;
  v += ov; x += ox; w += ow; y += oy;
  const long run = i / width, start = (run ^ 1) * width;
  const int right = (int)(run & 1);
  long low = start < n ? start : n, high = start + width < n ? start + width : n;
  const long first = low;
  const $R c = $load_c;
  while (low < high) {                                     /* equal elements of the left run go first */
    const long mid = low + (high - low) / 2;
    const $R d = $load_mid;
    const int before = right ? !($c_before_d) : ($d_before_c);
    if (before) low = mid + 1; else high = mid;
  }
  const long j = run / 2 * 2 * width + (i - run * width) + (low - first);
  const $R b = c;
  $store_b
  y[j * ys] = x[i * xs];
}
""")


def before(a: str, b: str, dtype: DType, descending: bool) -> str:
    """C: a stands before b and is not equal to it."""
    if dtype.is_float:
        return f"{a} > {b} || ({a} != {a} && {b} == {b})" if descending else f"{a} < {b} || ({b} != {b} && {a} == {a})"
    return f"{a} {'>' if descending else '<'} {b}"


def sort_call(k, op) -> str:
    """Inside a work-item: the call that sorts a slice. `k` is the KernelEmitter."""
    values, indices = op.operands
    vt: BufferType = values.type
    dtype, n, descending = vt.dtype, int(vt.shape[0]), bool(op.attrs["descending"])
    if n < 2:
        return ";"
    memory, (vs,), (xs,) = MEMORY[dtype.name], vt.element_strides, indices.type.element_strides
    h = k.h
    vspace, xspace = k.spaces[values], k.spaces[indices]
    name = f"sort_{dtype}_{'d' if descending else 'a'}{n}_{vs}_{xs}_{vspace[2]}{xspace[2]}"
    long_slice = n > INSERTION
    fill = {"name": name, "vspace": vspace, "xspace": xspace, "tspace": "__global", "T": memory, "R": REGISTER[dtype.name], "n": n, "xs": xs,
            "run": INSERTION, "a_before_b": before("a", "b", dtype, descending),
            "load_i": ctext.load("v", f"i * {vs}", dtype, h), "load_before_j": ctext.load("v", f"(j - 1) * {vs}", dtype, h),
            "load_p": ctext.load("tv", "p", dtype, h), "load_q": ctext.load("tv", "q", dtype, h), "load_from": ctext.load("tv", "from", dtype, h),
            "store_a": ctext.store("a", "v", f"j * {vs}", dtype, h), "store_b": ctext.store("b", "v", f"j * {vs}", dtype, h),
            "store_t": ctext.store("b", "tv", "i", dtype, h)}
    merge = _MERGE.substitute(fill) if long_slice else ""
    h.add(name, _SLICE.substitute(fill, merge=merge))
    tv = tx = "0"
    if long_slice:
        tx = f"(__global long *){k.scratch(n * 8)}"
        tv = f"(__global {memory} *){k.scratch(n * dtype.bytes)}"
    return f"{name}({k.names[values]}, {k.names[indices]}, {tv}, {tx});"


def pass_kernel(dtype: DType, descending: bool, local: int, helpers) -> str:
    """The text of the kernel that merges neighbouring runs of a buffer into another."""
    return _PASS.substitute(
        local=local, T=MEMORY[dtype.name], R=REGISTER[dtype.name],
        load_c=ctext.load("v", "i * vs", dtype, helpers), load_mid=ctext.load("v", "mid * vs", dtype, helpers),
        c_before_d=before("c", "d", dtype, descending), d_before_c=before("d", "c", dtype, descending),
        store_b=ctext.store("b", "w", "j * ws", dtype, helpers))
