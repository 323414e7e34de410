"""A contraction inside a kernel with a few rows, written in place: what a call of the GEMM costs (arguments in memory, choice of a path, packing)
is several times such a product's own work. Attention of one new token is made of two: scores of a row with each key, and values weighted and summed.

* `dots`: the matrix lies along k. As many columns at a time as a vector has lanes, each with a sum of its own, which are then added across in a tree
  that leaves column j's sum in lane j.
* `sums`: the matrix lies along n. Vectors of columns stay in registers, k by k; where there are few of them, several k have sums of their own.

What follows the matrix in memory is fetched meanwhile, as far ahead as the matrix is large: a cache of keys comes block by block, and between blocks
the processor's own prefetching begins anew. What would be left over (of k for dots, of n for sums) is not done here: such contractions call the GEMM.
"""
from __future__ import annotations

from contextlib import ExitStack

from ...compiler.ir.core import Op
from .contract import GemmPlan
from .gemm_base import MEMORY_TYPE, SIZE, Base, dtypes_of
from .target import CpuTarget

ROWS = 7                    # from more on the GEMM gains by what its rows share
MATRIX_BYTES = 1 << 16      # code in place does not choose blocks for caches
L2 = 2                      # where to prefetch to
SUMS = 8                    # vectors of sums: enough to hide an addition's latency


def _along_k(p: GemmPlan, lanes: int) -> bool:
    return p.k.b == 1 and p.k.a == 1 and p.k.size % lanes == 0


def in_place(p: GemmPlan, target: CpuTarget) -> bool:
    """Whether a contraction is one for this file."""
    acc = dtypes_of(p.kind)[0]
    if p.tables or p.m.size > ROWS or p.k.size * p.n.size * SIZE[acc] > MATRIX_BYTES or p.n.size > 1 and p.n.c != 1:
        return False
    lanes = target.lanes(acc)
    return _along_k(p, lanes) or p.n.b == 1 and p.n.size % lanes == 0


def emit_row(host, op: Op, p: GemmPlan) -> None:
    """The code, in a kernel's iteration."""
    out, lhs, rhs = op.operands
    if p.swapped:
        lhs, rhs = rhs, lhs
    row = _Row(host, p, bool(op.attrs.get("accumulate")))
    at = {x: host.pointer(v) for x, v in (("a", lhs), ("b", rhs), ("c", out))}
    with ExitStack() as loops:
        for d in [*p.batch, *[p.m] * (p.m.size > 1)]:
            i = loops.enter_context(host.f.loop("0", str(d.size)))
            steps = {"a": d.a, "b": d.b if d is not p.m else 0, "c": d.c}
            at = {x: row.step(x, at[x], host.f.imul(i.index, str(steps[x]))) for x in at}
        row.write(**at)


class _Row(Base):
    """One row `a` times the matrix `b`, into or onto `c`."""

    def __init__(self, host, p: GemmPlan, accumulate: bool):
        super().__init__(host.target, p.kind)
        self.f, self.p, self.accumulate = host.f, p, accumulate
        self.elem = {"a": self.ea, "b": self.eb, "c": MEMORY_TYPE[self.dtype]}

    def step(self, side: str, ptr: str, elements: str) -> str:
        return self.f.gep(self.elem[side], ptr, elements)

    def write(self, a: str, b: str, c: str) -> None:
        n, dots = self.p.n.size, _along_k(self.p, self.w)
        whole = self.w if dots else min(SUMS, n // self.w) * self.w
        with self.f.loop("0", str(n // whole * whole), str(whole)) as j:
            self.columns(dots, a, self.step("b", b, self.f.imul(j.index, str(self.p.n.b))), self.step("c", c, j.index), whole)
        if n % whole:
            first = n // whole * whole
            self.columns(dots, a, self.step("b", b, str(first * self.p.n.b)), self.step("c", c, str(first)), n % whole)

    def columns(self, dots: bool, a: str, b: str, c: str, count: int) -> None:
        """The next `count` columns."""
        if dots:
            self.store(c, self.dots(a, b, count), self.first_lanes(count))
        else:
            for i, x in enumerate(self.sums(a, b, count // self.w)):
                self.store(self.step("c", c, str(i * self.w)), x, None)

    def store(self, c: str, x: str, mask: str | None) -> None:
        if self.accumulate:
            x = self.plus(self.vload(self.f, c, mask), x)
        self.vstore(self.f, x, c, mask)

    def plus(self, x: str, y: str) -> str:
        return self.f.op(f"{'fadd' if self.float else 'add'} {self.v} {x}, {y}")

    def dots(self, a: str, b: str, count: int) -> str:
        f = self.f
        with f.loop("0", str(self.p.k.size), str(self.w), carried=[(self.v, "zeroinitializer")] * count, nonempty=True) as k:
            x = self.vload_side(f, "a", self.step("a", a, k.index))
            y = self.step("b", b, k.index)
            for j in range(count):
                f.prefetch(self.step("b", y, str((self.p.n.size + j) * self.p.n.b)), L2)
            k.next = [self.fma(f, x, self.vload_side(f, "b", self.step("b", y, str(j * self.p.n.b))), s) for j, s in enumerate(k.values)]
        sums = list(k.results) + ["zeroinitializer"] * (self.w - count)
        picks = [f"<{self.w} x i32> <{', '.join(f'i32 {i}' for i in range(odd, 2 * self.w, 2))}>" for odd in (0, 1)]
        while len(sums) > 1:                                  # neighbouring lanes of each two vectors: in the end one has all sums in order
            sums = [self.plus(*(f.op(f"shufflevector {self.v} {x}, {self.v} {y}, {p}") for p in picks)) for x, y in zip(sums[::2], sums[1::2])]
        return sums[0]

    def sums(self, a: str, b: str, vectors: int) -> list[str]:
        f, k = self.f, self.p.k
        ways = max(1, min(SUMS // vectors, k.size))

        def rows(first: str, sums: list[str], count: int) -> list[str]:
            out = list(sums)
            for w in range(count):
                at = f.iadd(first, str(w))
                x = self.splat(f, self.load_side(f, "a", self.step("a", a, f.imul(at, str(k.a)))))
                y = self.step("b", b, f.imul(at, str(k.b)))
                for i in range(vectors):
                    f.prefetch(self.step("b", y, str(k.size * k.b + i * self.w)), L2)
                for i in range(vectors):
                    s = w * vectors + i
                    out[s] = self.fma(f, x, self.vload_side(f, "b", self.step("b", y, str(i * self.w))), out[s])
            return out
        whole = k.size // ways * ways
        with f.loop("0", str(whole), str(ways), carried=[(self.v, "zeroinitializer")] * (ways * vectors), nonempty=True) as loop:
            loop.next = rows(loop.index, loop.values, ways)
        sums = rows(str(whole), loop.results, k.size - whole)
        total = sums[:vectors]
        for w in range(1, ways):
            total = [self.plus(x, y) for x, y in zip(total, sums[w * vectors:(w + 1) * vectors])]
        return total
