"""hoist: what leaves a scan's body, and that no result changes."""
import numpy as np
import pytest
from engram.compiler.ir import Module, f64
from engram.compiler.ir.core import clone_module
from engram.compiler.ir.verifier import verify
from engram.interp.interpreter import Interpreter
from engram.passes.canonicalize import Canonicalize
from engram.passes.cse import Cse
from engram.passes.dce import Dce
from engram.passes.hoist import Hoist
from engram.passes.inline import Inline
from test_grad import T, add_gradient, derive, func, matmul, rnn, scan, total


def run(m: Module, entry: str):
    """(module before, module after), checked to give the same bits."""
    m.attrs["entries"] = [entry]
    before = derive(m)
    for p in (Inline(all=True), Canonicalize(), Cse(), Dce()):
        before = p.apply(before)
    after = clone_module(before)
    for p in (Hoist(), Canonicalize(), Dce()):
        after = p.apply(after)
        verify(after, p.name)
    rng = np.random.default_rng(0)
    args = [rng.normal(size=a.type.shape) for a in before.funcs[entry].args]
    for x, y in zip(*(Interpreter(k).call(entry, [a.copy() for a in args]) for k in (before, after))):
        np.testing.assert_array_equal(x, y)
    return before, after


def loops(m, entry):
    return [[op.name.removeprefix("tensor.") for op in s.regions[0].walk()] for s in m.funcs[entry].walk() if s.name == "scf.scan"]


@pytest.mark.parametrize("reverse", [False, True])
def test_a_recurrent_net_keeps_one_product_a_step_and_direction(reverse):
    m = Module()
    func(m, "f", [T(4, 2, 3), T(3, 2), T(2, 2), T(2), T(2, 2)], lambda b, *a: total(b, rnn(b, m, *a, reverse=reverse)[1]))
    add_gradient(m, "f")
    before, after = run(m, "f.grad")
    assert [b.count("dot_general") for b in loops(before, "f.grad")] == [2, 2]
    assert [b.count("dot_general") for b in loops(after, "f.grad")] == [1, 1]


def test_invariants_leave_and_moves_stay():
    m = Module()

    def f(b, xs, w, c):
        def step(d, i, s, x):
            e = d.exp(d.sin(w))
            return [d.add(matmul(d, s, e), d.add(x, d.broadcast(c, (2, 2))))]
        return scan(b, 3, [w], [xs], step)

    func(m, "f", [T(3, 2, 2), T(2, 2), T(2)], f)
    _, after = run(m, "f")
    (names,) = loops(after, "f")
    assert "exp" not in names and "sin" not in names and "broadcast" in names


def test_products_of_inputs_by_inputs_and_of_the_index():
    m = Module()

    def f(b, xs, w):
        def step(d, i, s, x):
            k = d.broadcast(d.cast(i, f64), (2, 2))
            return [d.add(s, d.add(matmul(d, x, x), matmul(d, w, d.add(x, k))))]
        return scan(b, 3, [w], [xs], step)

    func(m, "f", [T(3, 2, 2), T(2, 2)], f)
    _, after = run(m, "f")
    (names,) = loops(after, "f")
    assert "dot_general" not in names


def test_a_product_that_is_carried_stays():
    m = Module()
    func(m, "f", [T(3, 2, 2), T(2, 2)], lambda b, xs, w: scan(b, 3, [w], [xs], lambda d, i, s, x: [matmul(d, s, x), matmul(d, s, w)]))
    _, after = run(m, "f")
    (names,) = loops(after, "f")
    assert names.count("dot_general") == 1                      # the stacked product with w follows the loop
