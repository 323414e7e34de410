"""merge-calls: updates join the function that makes their gradient, where every call agrees; results keep their bits."""
import numpy as np
import pytest
from engram.compiler import driver
from engram.compiler.ir.core import clone_module
from engram.compiler.ir.parser import parse_module
from engram.compiler.ir.verifier import verify
from engram.frontend import load
from engram.interp.interpreter import Interpreter
from engram.passes.merge_calls import MergeCalls
from engram.session import train_plan

DOT = "{lhs_batch = [], rhs_batch = [], lhs_contract = [%d], rhs_contract = [%d]}"
BWD = f"""func @bwd(%w: f32[6,6], %x: f32[4,6], %dy: f32[4,6]) -> (f32[6,6], f32[4,6]) {{
  %dw = tensor.dot_general(%x, %dy) {DOT % (0, 0)} : f32[6,6]
  %dx = tensor.dot_general(%dy, %w) {DOT % (1, 1)} : f32[4,6]
  func.return(%dw, %dx)
}}
func @sgd(%p: f32[6,6], %g: f32[6,6]) -> (f32[6,6]) {{ %0 = tensor.sub(%p, %g) : f32[6,6] func.return(%0) }}
func @plus(%p: f32[6,6], %g: f32[6,6]) -> (f32[6,6]) {{ %0 = tensor.add(%p, %g) : f32[6,6] func.return(%0) }}
"""
CALLS = """%a, %da = func.call(%v, %x, %dy) {callee = "bwd", result_types = [f32[6,6], f32[4,6]]} : f32[6,6], f32[4,6]
%b, %db = func.call(%w, %x, %da) {callee = "bwd", result_types = [f32[6,6], f32[4,6]]} : f32[6,6], f32[4,6]
"""


def call(result: str, operands: str, callee: str = "sgd") -> str:
    return f'%{result} = func.call({operands}) {{callee = "{callee}", result_types = [f32[6,6]]}} : f32[6,6]\n'


def merged(body: str, functions: str = BWD):
    text = (f'module attributes {{stage = "tensor", entries = ["f"]}} {{\n{functions}\nfunc @f(%v: f32[6,6], %w: f32[6,6], %x: f32[4,6], %dy: f32[4,6]) '
            f"-> (f32[6,6], f32[6,6]) {{\n{body}func.return(%p, %q) }} }}")
    before = parse_module(text)
    verify(before)
    after = MergeCalls().apply(clone_module(before))
    verify(after, "merge-calls")
    rng = np.random.default_rng(1)
    args = [rng.standard_normal(a.type.shape, np.float32) for a in before.funcs["f"].args]
    for x, y in zip(*(Interpreter(m).call("f", [a.copy() for a in args]) for m in (before, after))):
        assert x.tobytes() == y.tobytes()
    return after


def callees(m, func="f"):
    return [op.attrs["callee"] for op in m.funcs[func].walk() if op.name == "func.call"]


def test_updates_of_all_calls_join():
    m = merged(CALLS + call("p", "%v, %a") + call("q", "%w, %b"))
    assert callees(m) == ["bwd", "bwd"] and callees(m, "bwd") == ["sgd"]
    assert len(m.funcs["bwd"].args) == 3, "the parameter is an argument once"


@pytest.mark.parametrize("body", [
    CALLS + call("p", "%v, %a") + "%q = tensor.add(%w, %b) : f32[6,6]\n",                                           # one call's result goes elsewhere
    CALLS + call("p", "%v, %a") + call("q", "%w, %b", "plus"),                                                      # two kinds of update
    CALLS + call("p", "%v, %a") + call("q", "%b, %w"),                                                              # the same one, other places
    CALLS + call("p", "%v, %a") + call("r", "%w, %b") + "%q = tensor.add(%r, %a) : f32[6,6]\n",                     # somebody else reads a gradient
    CALLS + call("p", "%b, %a") + call("q", "%a, %b"),                                                              # an update of gradients by each other
    CALLS + f"%s = tensor.dot_general(%db, %x) {DOT % (0, 0)} : f32[6,6]\n" + call("p", "%v, %a") + call("q", "%s, %b"),   # it needs another result of the call
    CALLS + call("p", "%v, %a") + call("q", "%p, %b"),                                                              # an update of what another one gave
    CALLS + call("q", "%w, %b") + "%t = tensor.add(%q, %q) : f32[6,6]\n" + call("p", "%t, %a"),                      # the same, and in front of it
], ids=["elsewhere", "kinds", "places", "readers", "crossed", "late", "chained", "chained back"])
def test_disagreement_keeps_the_calls(body):
    m = merged(body)
    assert len(callees(m)) == len([1 for line in body.splitlines() if "func.call" in line]) and not callees(m, "bwd")


def test_what_an_update_needs_moves_up():
    rate = "%one = tensor.add(%v, %w) : f32[6,6]\n%two = tensor.mul(%one, %one) : f32[6,6]\n"
    m = merged(CALLS + rate + call("p", "%two, %a") + call("q", "%two, %b"))
    assert callees(m) == ["bwd", "bwd"] and callees(m, "bwd") == ["sgd"] and len(m.funcs["bwd"].args) == 4


def test_a_result_that_is_no_product_stays():
    functions = BWD.replace(f"tensor.dot_general(%x, %dy) {DOT % (0, 0)}", "tensor.exp(%w)")
    assert callees(merged(CALLS + call("p", "%v, %a") + call("q", "%w, %b"), functions)) == ["bwd", "bwd", "sgd", "sgd"]


def test_an_update_goes_on_to_where_the_product_is():
    functions = BWD + """func @block(%w: f32[6,6], %x: f32[4,6], %dy: f32[4,6]) -> (f32[6,6], f32[6,6], f32[4,6]) {
  %a, %da = func.call(%w, %x, %dy) {callee = "bwd", result_types = [f32[6,6], f32[4,6]]} : f32[6,6], f32[4,6]
  %b, %db = func.call(%w, %x, %da) {callee = "bwd", result_types = [f32[6,6], f32[4,6]]} : f32[6,6], f32[4,6]
  func.return(%a, %b, %db)
}"""
    types = "f32[6,6], f32[6,6], f32[4,6]"
    body = (f'%a, %b, %d = func.call(%v, %x, %dy) {{callee = "block", result_types = [{types}]}} : {types}\n'
            f'%s, %t, %e = func.call(%w, %x, %d) {{callee = "block", result_types = [{types}]}} : {types}\n'
            + call("k", "%v, %a") + call("l", "%v, %b") + call("m", "%w, %s") + call("n", "%w, %t")
            + "%p = tensor.add(%k, %l) : f32[6,6]\n%q = tensor.add(%m, %n) : f32[6,6]\n")
    m = merged(body, functions)
    assert callees(m) == ["block", "block"] and callees(m, "block") == ["bwd", "bwd"] and callees(m, "bwd") == ["sgd"]


NET = """
import "std/nn.nn"
layer Deep(d) {
  blocks = [Sequential([LayerNorm(d), Linear(d, 2 * d), gelu, Linear(2 * d, d), tanh]) for _ in 0..4]
  fn (x: f32[B, d]) -> f32[B, d] { scan b in blocks with x = x { x + b(x) } }
}
train deep {
  batch = 32
  model = Deep(48)
  data = dataset("random", n = 32, x = [48], y = [48])
  holdout = 0
  epochs = 1
  minimize mean((model(x) - y) ** 2) using adam(1e-3)
}
"""


def test_adam_of_repeated_layers_is_the_epilogue_of_their_gradients():
    """Four blocks of two products each; the first one has no input's gradient, and so a function of its own, which is inlined."""
    plan = train_plan(load("<net>", NET), "deep")
    loop = driver.lower(plan.module, "loop")
    adam = [f.name for f in loop.funcs.values() if f.name.startswith("rule.adam") and any(a.type.rank == 2 for a in f.args)]
    assert not adam, "an update of a matrix is a function of its own"
    adam = [f.name for f in loop.funcs.values() for op in f.walk() if op.name == "loop.contract" and any("sqrt" in o.name for r in op.regions for o in r.walk())]
    assert sorted(adam) == ["Sequential.forward.bwd"] * 2 + ["step"] * 2, "the products of the shared block and those of the first one end with Adam"
