"""Whole pipelines on differentiated programs: no pass changes a result, every stage prints and parses, all under the verifier."""
import re
from pathlib import Path

import numpy as np
import pytest
from engram.compiler.driver import PassChecker
from engram.compiler.ir import Module, i64
from engram.compiler.ir.core import clone_module
from engram.compiler.ir.parser import parse_module
from engram.compiler.ir.printer import print_module
from engram.compiler.pass_manager import Options, PassFailure, run
from engram.compiler.pipelines import learning, optimising
from engram.interp.interpreter import Interpreter
from test_grad import T, add_gradient, branchy, func, mlp, rnn, total

ROOT = Path(__file__).resolve().parent.parent


def second_order():
    m = Module()
    mlp(m)
    add_gradient(m, "loss")
    types = [a.type for a in m.funcs["loss"].args]
    results = [a.type for a in m.funcs["loss"].args]

    def f(b, *args):
        gs = b.op("func.call", args, {"callee": "loss.grad", "result_types": results}).results
        out = total(b, b.mul(gs[0], gs[0]))
        for g in gs[1:]:
            out = b.add(out, total(b, b.mul(g, g)))
        return out

    func(m, "penalty", types, f)
    add_gradient(m, "penalty")
    return m, "penalty.grad"


def recurrent():
    m = Module()
    func(m, "f", [T(4, 2, 3), T(3, 2), T(2, 2), T(2), T(2, 2)], lambda b, *a: total(b, rnn(b, m, *a)[1]))
    add_gradient(m, "f")
    return m, "f.grad"


def classifier():
    m = Module()

    def f(b, x, w, v):
        h = b.op("nn.gelu", [dot(b, x, w)], {"approximate": "none"}).result
        p = b.op("nn.log_softmax", [dot(b, h, v)], {"dim": 1}).result
        y = b.constant(np.array([1, 0, 2]), T(3, dtype=i64))
        loss = b.op("nn.cross_entropy", [p, y]).result
        return b.add(total(b, loss), total(b, b.op("nn.softmax", [h], {"dim": 0}).result))

    func(m, "f", [T(3, 4), T(4, 5), T(5, 3)], f)
    add_gradient(m, "f")
    return m, "f.grad"


def dot(b, x, y):
    return b.op("tensor.dot_general", [x, y], {"lhs_batch": [], "rhs_batch": [], "lhs_contract": [1], "rhs_contract": [0]}).result


def branching():
    m = Module()

    def f(b, x, w):
        p, q = branchy(b, m, x, w)
        return b.mul(total(b, p), q)

    func(m, "f", [T(3), T(3)], f)
    add_gradient(m, "f")
    return m, "f.grad"


@pytest.mark.parametrize("make", [second_order, recurrent, classifier, branching])
def test_no_pass_changes_a_result(make):
    m, entry = make()
    m.attrs.update(entries=[entry], stage="nn")
    derived = run(clone_module(m), learning())
    out = run(clone_module(derived), optimising(), Options(check=PassChecker()))
    text = print_module(out)
    assert print_module(parse_module(text)) == text
    rng = np.random.default_rng(0)
    args = [rng.normal(size=a.type.shape) for a in out.funcs[entry].args]
    for a, b in zip(*(Interpreter(k).call(entry, [x.copy() for x in args]) for k in (derived, out))):
        np.testing.assert_array_equal(a, b)


class _Change:
    """Swaps the operands of the last op of a name: a bug where the op does not commute."""

    def __init__(self, op: str):
        self.name, self.op = f"swap-{op}", op

    def apply(self, module):
        op = [o for o in module.walk() if o.name == self.op][-1]
        op.operands[:] = [op.operands[1], op.operands[0]]
        return module


def test_a_pass_that_changes_a_result_is_named():
    """Also after passes whose results were kept from the pass before, and after one that changed nothing."""
    m, entry = classifier()
    m.attrs.update(entries=[entry], stage="nn")
    derived = run(clone_module(m), learning())
    said = []
    with pytest.raises(PassFailure, match=f"swap-tensor.sub: AssertionError: pass swap-tensor.sub changes result 0 of @{entry}"):
        run(derived, [_Change("tensor.mul"), *optimising()[:1], *optimising()[:1], _Change("tensor.sub")], Options(check=PassChecker(tell=said.append)))
    assert [s.partition(" (")[0] for s in said] == [f"swap-tensor.mul: same results of @{entry}", f"dce: same results of @{entry}", "dce: nothing changed"]


def test_a_group_has_the_place_of_its_last_op():
    """Not of the op that memory happens to hold last: the same program is printed in the same way each time."""
    from engram.compiler import driver
    from engram.session import load_program, train_plan
    program = load_program(str(ROOT / "examples/digits_local.nn"))
    module = driver.lower(train_plan(program, "digits").module, "fused")
    groups = [op for f in module.funcs.values() for op in f.body.walk() if op.name == "tensor.fused"]
    assert len(groups) > 5
    for op in groups:
        *inside, end = op.regions[0].ops
        assert op.loc == end.loc == next(o.loc for o in reversed(inside) if o.loc is not None)


@pytest.mark.parametrize("each", [False, True])
def test_the_pass_that_broke_the_module_is_named(each, monkeypatch):
    """Without verification after each pass, too: what fails is done again with it."""
    from engram.compiler import pass_manager

    class Fine:
        name = "fine"

        def apply(self, module):
            return module

    class Breaks(Fine):
        name = "breaks"

        def apply(self, module):
            op = module.funcs["f"].body.ops[-1]
            op.operands = op.operands[:0]
            return module

    class Trips(Fine):
        name = "trips"

        def apply(self, module):
            return {len(f.returns.operands): module for f in module.funcs.values()}[1]

    m = Module(attrs={"stage": "tensor", "entries": ["f"]})
    func(m, "f", [T(2)], lambda b, x: b.mul(x, 2.0))
    monkeypatch.setattr(pass_manager, "EACH", each)
    for passes in ([Fine(), Breaks(), Fine()], [Breaks(), Trips(), Fine()]):
        with pytest.raises(pass_manager.PassFailure) as e:
            run(clone_module(m), passes)
        assert e.value.pass_name == "breaks" and "returns (), declared (f64[2])" in str(e.value)
        text = Path(e.value.reproducer).read_text()
        assert "engram opt" in text and "-p breaks" in text and re.search(r"func\.return\(%\d", text)
        Path(e.value.reproducer).unlink()
    assert run(clone_module(m), [Fine(), Fine()]).funcs["f"].result_types == [T(2)]
