"""gather-products: which products move to the table's side, and that no result changes but for how sums are grouped."""
import math

import numpy as np
import pytest
from engram.codegen.opencl.device import available
from engram.compiler.ir import Module, f64, i64
from engram.compiler.ir.core import clone_module
from engram.compiler.ir.types import TensorType
from engram.compiler.ir.verifier import verify
from engram.interp.interpreter import Interpreter
from engram.passes.dce import Dce
from engram.passes.gather_products import GatherProducts
from hypothesis import given, settings
from hypothesis import strategies as st
from test_grad import func


def build(types, body) -> Module:
    m = Module()
    func(m, "f", types, body)
    m.attrs.update(stage="tensor", entries=["f"])
    verify(m, "test")
    return m


def apply(m: Module) -> Module:
    after = clone_module(m)
    for p in (GatherProducts(), Dce()):
        after = p.apply(after)
        verify(after, p.name)
    return after


def same(m: Module, after: Module, rows: int, seed: int = 0) -> None:
    """In f64, whose sums differ by 1e-13 of a result of some hundred terms of size 1 when they are regrouped."""
    rng = np.random.default_rng(seed)
    args = [rng.integers(0, rows, a.type.shape) if a.type.dtype.is_int else rng.normal(size=a.type.shape) for a in m.funcs["f"].args]
    for x, y in zip(Interpreter(m).call("f", args), Interpreter(after).call("f", args), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-10, atol=1e-10)


def products(m: Module) -> list[int]:
    """Multiplications of each product."""
    return [op.result.type.numel * math.prod(op.operands[0].type.shape[d] for d in op.attrs["lhs_contract"])
            for op in m.funcs["f"].walk() if op.name == "tensor.dot_general"]


def dot(b, x, y, lc, rc, lb=(), rb=()):
    return b.op("tensor.dot_general", [x, y], {"lhs_batch": list(lb), "rhs_batch": list(rb), "lhs_contract": list(lc), "rhs_contract": list(rc)}).result


def take(b, t, i, dim):
    return b.op("tensor.take", [t, i], {"dim": dim}).result


@st.composite
def cases(draw):
    """A table of some rank with rows along some dim, an index of rank 1 or 2, and another operand with a batch dim, a contracted dim and a free one, in any order, on either side."""
    rows, index = draw(st.integers(1, 4)), draw(st.lists(st.integers(3, 5), min_size=1, max_size=2))
    batch = draw(st.booleans())
    roles = ["k", "row", *(["batch"] if batch else []), *(["free"] if draw(st.booleans()) else [])]
    return rows, index, draw(st.permutations(roles)), draw(st.permutations(["k", "n", *(["batch"] if batch else [])])), draw(st.booleans())


SIZE = {"k": 5, "batch": 2, "free": 3, "n": 40}


@settings(max_examples=60, deadline=None)
@given(cases())
def test_a_product_with_rows_taken_is_made_once_a_row(case):
    rows, index, table, other, swap = case
    d, r = table.index("row"), len(index)
    expanded = [*table[:d], *(f"i{k}" for k in range(r)), *table[d + 1:]]

    def body(b, t, w, i):
        x = take(b, t, i, d)
        pick = ("batch",) if "batch" in table else ()
        sides = [(x, expanded), (w, other)]
        (p, pn), (q, qn) = sides[::-1] if swap else sides
        return [dot(b, p, q, [pn.index("k")], [qn.index("k")], [pn.index(c) for c in pick], [qn.index(c) for c in pick])]
    m = build([TensorType(f64, tuple(rows if c == "row" else SIZE[c] for c in table)), TensorType(f64, tuple(SIZE[c] for c in other)),
               TensorType(i64, tuple(index))], body)
    after = apply(m)
    same(m, after, rows)
    (before,), (now,) = products(m), products(after)
    n = math.prod(index)
    moved = n >= 2 * rows and before > 2048
    assert now == (before * rows // n if moved else before)


@settings(max_examples=60, deadline=None)
@given(cases(), st.booleans())
def test_its_gradients_sum_first(case, from_zero):
    rows, index, table, other, swap = case
    table = [c for c in table if c != "k"]                    # here g's dims: what the product has besides k
    d, r = table.index("row"), len(index)
    expanded = [*table[:d], *(f"i{k}" for k in range(r)), *table[d + 1:]]
    shape = [index[int(c[1])] if c[0] == "i" and c[1:].isdigit() else SIZE[c] for c in expanded]
    pick = ("batch",) if "batch" in table else ()

    def body(b, g, w, i, t, z):
        gk, gn = [*expanded, "k"], other
        sides = [(g, gk), (w, gn)]
        (p, pn), (q, qn) = sides[::-1] if swap else sides
        u = dot(b, p, q, [pn.index("k")], [qn.index("k")], [pn.index(c) for c in pick], [qn.index(c) for c in pick])
        names = [*pick, *(c for c in pn if c not in ("k", *pick)), *(c for c in qn if c not in ("k", *pick))]
        at = names.index("i0")
        start = b.zeros(z.type) if from_zero else z
        total = b.op("tensor.scatter_add", [start, i, u], {"dim": at}).result
        x = take(b, t, i, 0)
        over = [gk.index(f"i{k}") for k in range(r)]
        return [total, dot(b, x, g, list(range(r)), over)]
    names = [*pick, *(["n"] if swap else []), *(c for c in expanded if c not in pick), *([] if swap else ["n"])]
    at = names.index("i0")
    zshape = [SIZE[c] if c in SIZE else 0 for c in names[:at]] + [rows] + [SIZE[c] for c in names[at + r:]]
    m = build([TensorType(f64, (*shape, SIZE["k"])), TensorType(f64, tuple(SIZE[c] for c in other)), TensorType(i64, tuple(index)),
               TensorType(f64, (rows, 7)), TensorType(f64, tuple(zshape))], body)
    after = apply(m)
    same(m, after, rows)
    before, now = products(m), products(after)
    n = math.prod(index)
    if n >= 2 * rows and before[0] > 2048:
        assert now[1] * n == before[0] * rows or now[0] * n == before[0] * rows
        assert sum(op.name == "tensor.scatter_add" for op in after.funcs["f"].walk()) == 1
    else:
        assert now == before


def test_a_product_that_others_read_and_a_frozen_table_stay():
    def shared(b, g, w, i):
        u = dot(b, g, w, [1], [0])
        return [b.op("tensor.scatter_add", [b.zeros(TensorType(f64, (4, 30))), i, u], {"dim": 0}).result, u]
    m = build([TensorType(f64, (50, 20)), TensorType(f64, (20, 30)), TensorType(i64, (50,))], shared)
    assert products(apply(m)) == products(m)

    def frozen(b, t, g, i):                                   # no sum over equal words is there already, and making one is slower than a product of few columns
        return [dot(b, take(b, t, i, 0), g, [0], [0])]
    m = build([TensorType(f64, (4, 30)), TensorType(f64, (50, 20)), TensorType(i64, (50,))], frozen)
    assert products(apply(m)) == products(m)


PROGRAM = """
fn loss(emb: f32[11, 24], w: f32[24, 40], i: int[T, B], y: f32[T, B, 40]) -> f32 { sum((tanh(emb[i] @ w) - y) ** 2) }
"""


@pytest.mark.parametrize("backend", ["cpu", pytest.param("opencl", marks=pytest.mark.skipif(not available()[0], reason="no OpenCL device"))])
def test_the_program_gives_what_the_interpreter_gives(backend):
    import engram as eg
    rng = np.random.default_rng(1)
    args = [rng.normal(size=s).astype(np.float32) for s in ((11, 24), (24, 40))]
    args += [rng.integers(0, 11, (9, 6)), rng.normal(size=(9, 6, 40)).astype(np.float32)]
    p, q = (eg.compile(PROGRAM, backend=b) for b in (backend, "interp"))
    np.testing.assert_allclose(p.loss(*args), q.loss(*args), rtol=1e-5)       # 54 x 40 terms
    for x, y in zip(p.grad("loss", wrt=["emb", "w"])(*args), q.grad("loss", wrt=["emb", "w"])(*args), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4 * np.abs(y).max())


def test_an_index_out_of_range_is_still_an_error():
    import engram as eg
    p = eg.compile(PROGRAM)
    i = np.zeros((9, 6), np.int64)
    i[3, 2] = 11
    with pytest.raises(eg.RuntimeError_, match="index"):
        p.loss(np.ones((11, 24), np.float32), np.ones((24, 40), np.float32), i, np.ones((9, 6, 40), np.float32))
