"""Local learning rules: what the locality proof accepts and refuses, its report, and the rules derived from local losses."""
import numpy as np
import pytest
from engram.compiler.diagnostics import CompileError
from engram.compiler.ir.parser import parse_module
from engram.compiler.ir.printer import print_module
from engram.compiler.ir.verifier import verify
from engram.interp.interpreter import Interpreter
from engram.passes.decompose import Decompose
from engram.passes.grad import Grad
from engram.passes.plasticity import Plasticity

# Two layers inside a model: hidden 4 -> 3, out 3 -> 3; the model hands hidden's signals on behind its result.
LAYERS = """
  func @dense(%w: f64[4,3], %x: f64[2,4]) -> (f64[2,3], f64[2,3]) {
    %u = tensor.dot_general(%x, %w) {lhs_batch = [], rhs_batch = [], lhs_contract = [1], rhs_contract = [0]} : f64[2,3]
    %y = tensor.tanh(%u) : f64[2,3]
    func.return(%y, %u)
  }
  func @head(%w: f64[3,3], %x: f64[2,3]) -> (f64[2,3]) {
    %u = tensor.dot_general(%x, %w) {lhs_batch = [], rhs_batch = [], lhs_contract = [1], rhs_contract = [0]} : f64[2,3]
    func.return(%u)
  }
  func @net(%w: f64[4,3], %v: f64[3,3], %x: f64[2,4]) -> (f64[2,3], f64[2,3], f64[2,3]) {
    %h, %u = func.call(%w, %x) {callee = "dense", instance = "hidden", signals = ["u"], result_types = [f64[2,3], f64[2,3]]} : f64[2,3], f64[2,3]
    %y = func.call(%v, %h) {callee = "head", instance = "out", result_types = [f64[2,3]]} : f64[2,3]
    func.return(%y, %h, %u)
  }
  func @hebb(%pre: f64[2,4], %u: f64[2,3], %w: f64[4,3], %g: f64[2,3]) -> (f64[4,3]) {
    %e = tensor.mul(%u, %g) : f64[2,3]
    %d = tensor.dot_general(%pre, %e) {lhs_batch = [], rhs_batch = [], lhs_contract = [0], rhs_contract = [0]} : f64[4,3]
    %n = tensor.add(%w, %d) : f64[4,3]
    func.return(%n)
  }
  func @scaled(%pre: f64[2,4], %u: f64[2,3], %w: f64[4,3], %r: f64[2]) -> (f64[4,3]) {
    func.return(%w)
  }
"""
HEAD = '%y, %h, %u = func.call(%w, %v, %x) {callee = "net", instance = "", result_types = [f64[2,3], f64[2,3], f64[2,3]]} : f64[2,3], f64[2,3], f64[2,3] loc("net.nn":3:5)\n'
ARGS = "%w: f64[4,3], %v: f64[3,3], %s: f64[2,3], %x: f64[2,4], %t: f64[2,3], %i: i64[]"
ROLES = '["param:hidden.w", "param:out.v", "state:memory", "data:x", "data:t", "step"]'


def update(g="%t", rule="hebb", w="%w", pre="%x", u="%u", layer="hidden", nonlocal_="false", role="given:g", param="param:hidden.w", name="%n", n="u") -> str:
    return (f'{name} = learn.update({pre}, {u}, {w}, {g}) {{rule = "{rule}", rule_name = "{rule}", layer = "{layer}", nonlocal = {nonlocal_}, '
            f'roles = ["signal:pre", "signal:{n}", "{param}", "{role}"], writes = [2]}} : f64[4,3] loc("net.nn":9:3)\n')


def step(body: str, new_state="%s", new_w="%n", extra="", head=HEAD, args=ARGS, roles=ROLES, returns=None) -> str:
    results = "f64[4,3], f64[3,3], f64[2,3]"
    returns = returns or f"func.return({new_w}, %v, {new_state})"
    return (f'module attributes {{stage = "nn", entries = ["step"]}} {{\n{LAYERS}{extra}\n  func @step({args}) -> ({results}) '
            f'attributes {{arg_roles = {roles}}} {{\n{head}{body}{returns}\n  }}\n}}')


def plastic(text: str):
    m = parse_module(text)
    verify(m)
    m = Plasticity().apply(m)
    verify(m, "plasticity")
    assert not any(op.name.startswith("learn.") for op in m.walk())
    assert print_module(parse_module(print_module(m))) == print_module(m)
    return m


def refused(text: str):
    with pytest.raises(CompileError) as e:
        plastic(text)
    (d,) = e.value.diagnostics
    assert d.span.line == 9 and d.message.startswith("rule `") and "is not local" in d.message
    return d


def test_signals_through_the_model_and_batch_data():
    m = plastic(step(update()))
    assert m.attrs["locality"] == [{"parameter": "hidden.w", "layer": "hidden", "rule": "hebb", "function": "hebb", "reads": ["pre", "u", "w"],
                                    "broadcast": ["g: f64[2,3] from the batch's t"], "verdict": "local"}]
    rng = np.random.default_rng(0)
    w, v, s, x, t = (rng.normal(size=n) for n in ((4, 3), (3, 3), (2, 3), (2, 4), (2, 3)))
    got = Interpreter(m).call("step", [w, v, s, x, t, np.int64(0)])[0]
    np.testing.assert_allclose(got, w + x.T @ (x @ w * t), rtol=1e-12)


def test_own_activations_may_be_given():
    plastic(step(update(g="%h")))


def test_output_of_another_layer_is_refused_and_named():
    d = refused(step(update(g="%y")))
    assert "`out.v` is a parameter of layer `out`" in d.message and "activations" in d.message and "f64[2,3]" in d.message


def test_weight_of_another_layer_through_a_helper():
    helper = "func @mix(%a: f64[2,3], %b: f64[3,3]) -> (f64[2,3]) { %c = tensor.dot_general(%a, %b) {lhs_batch = [], rhs_batch = [], lhs_contract = [1], rhs_contract = [0]} : f64[2,3] func.return(%c) }"
    body = '%g = func.call(%t, %v) {callee = "mix", result_types = [f64[2,3]]} : f64[2,3] loc("net.nn":7:9)\n%k = tensor.neg(%g) : f64[2,3] loc("net.nn":8:1)\n'
    d = refused(step(body + update(g="%k"), extra=helper))
    assert "`out.v` is a parameter of layer `out`" in d.message and "reached through `mix` (net.nn:7:9)" in d.message
    assert [t for _, t in d.notes] == ["`mix`", "neg"]


def test_scalars_and_rows_of_the_models_output_are_broadcast():
    body = "%r = tensor.reduce_sum(%y) {dims = [1]} : f64[2]\n"
    m = plastic(step(body + update(g="%r", rule="scaled")))
    assert m.attrs["locality"][0]["broadcast"] == ["g: f64[2] from the model's output"]


def test_a_scalar_read_off_a_weight_is_refused():
    body = "%r = tensor.reduce_sum(%v) {dims = [1]} : f64[3]\n%q = tensor.slice(%r) {start = [0], limit = [2], stride = [1]} : f64[2]\n"
    d = refused(step(body + update(g="%q", rule="scaled")))
    assert "`out.v`" in d.message and "only through the model's output" in d.hint


def test_nonlocal_rules_are_exempt_and_listed():
    m = plastic(step(update(g="%y", nonlocal_="true")))
    assert m.attrs["locality"][0]["verdict"] == "non-local" and m.attrs["locality"][0]["broadcast"] == ["g: f64[2,3] from out.v"]


def test_state_is_followed_from_step_to_step():
    assert plastic(step(update(g="%s"), new_state="%t"))                       # holds the targets of the step before
    d = refused(step(update(g="%s"), new_state="%y"))                          # holds the model's output of the step before
    assert "`out.v`" in d.message


def test_control_dependence_counts():
    body = ("%a = tensor.reduce_sum(%v) {dims = [0, 1]} : f64[]\n%z = tensor.constant() {value = 0.0, type = f64[]} : f64[]\n"
            '%c = tensor.compare(%a, %z) {predicate = "gt"} : bool[]\n'
            "%g = scf.if(%c) ({ ^(): scf.yield(%t) }, { ^(): scf.yield(%s) }) : f64[2,3]\n")
    assert "`out.v`" in refused(step(body + update(g="%g"))).message


def test_dependence_through_scan():
    body = ("%g = scf.scan(%t) {length = 2, n_carry = 1, reverse = false} ({ ^(%k: i64[], %a: f64[2,3]):\n"
            "%b = tensor.dot_general(%a, %v) {lhs_batch = [], rhs_batch = [], lhs_contract = [1], rhs_contract = [0]} : f64[2,3]\nscf.yield(%b) }) : f64[2,3]\n")
    assert "`out.v`" in refused(step(body + update(g="%g"))).message


def test_a_derivative_runs_through_other_layers():
    body = ("%l = tensor.reduce_sum(%y) {dims = [0, 1]} : f64[]\n%o = tensor.constant() {value = 1.0, type = f64[]} : f64[]\n"
            "%g = autodiff.gradient(%l, %o, %h) {n_y = 1, n_x = 1} : f64[2,3]\n")
    assert "`out.v`" in refused(step(body + update(g="%g"))).message


def test_a_derivative_within_the_own_layer_is_its_own():
    head = HEAD.replace('%x) {callee', '%p) {callee').replace("%y, %h", '%p = tensor.neg(%x) : f64[2,4]\n%y, %h', 1)
    body = ("%l = tensor.reduce_sum(%h) {dims = [0, 1]} : f64[]\n%o = tensor.constant() {value = 1.0, type = f64[]} : f64[]\n"
            "%g4 = autodiff.gradient(%l, %o, %p) {n_y = 1, n_x = 1} : f64[2,4]\n"
            "%g = tensor.slice(%g4) {start = [0, 0], limit = [2, 3], stride = [1, 1]} : f64[2,3]\n")
    assert plastic(step(body + update(g="%g", pre="%p"), head=head))


def test_a_signal_of_another_layer_is_refused():
    d = refused(step(update(u="%y")))
    assert "its signal `u` is not a signal of this layer" in d.message


def test_parameter_of_another_layer_or_changed_elsewhere():
    assert "belongs to another layer" in refused(step(update(param="param:out.w"))).message
    d = refused(step("%w0 = tensor.neg(%w) : f64[4,3] loc(\"net.nn\":5:1)\n" + update(w="%w0")))
    assert "is changed in this step by something else" in d.message and d.notes[0][0].line == 5


def test_rules_of_one_layer_update_one_after_the_other():
    m = plastic(step(update(name="%m") + update(w="%m")))
    assert len(m.attrs["locality"]) == 2


def test_shared_weights_are_refused():
    head = HEAD + '%h2, %u2 = func.call(%w, %x) {callee = "dense", instance = "twin", result_types = [f64[2,3], f64[2,3]]} : f64[2,3], f64[2,3] loc("net.nn":4:2)\n'
    d = refused(step(update(), head=head))
    assert "`hidden.w` is shared with layer `twin`" in d.message and d.notes[0][0].line == 4


def test_stacked_signals_of_a_layer_called_in_a_scan():
    text = f"""module attributes {{stage = "nn", entries = ["step"]}} {{ {LAYERS}
      func @stdp(%pre: f64[5,2,4], %out: f64[5,2,3], %w: f64[4,3]) -> (f64[4,3]) {{ func.return(%w) }}
      func @step(%w: f64[4,3], %xs: f64[5,2,4]) -> (f64[4,3]) attributes {{arg_roles = ["param:l.w", "data:x"]}} {{
        %ys = scf.scan(%xs) {{length = 5, n_carry = 0, reverse = false}} ({{ ^(%i: i64[], %x: f64[2,4]):
          %y, %u = func.call(%w, %x) {{callee = "dense", instance = "l", result_types = [f64[2,3], f64[2,3]]}} : f64[2,3], f64[2,3]
          scf.yield(%y) }}) : f64[5,2,3]
        %n = learn.update(%xs, %ys, %w) {{rule = "stdp", layer = "l", roles = ["signal:pre", "signal:out", "param:l.w"], writes = [2]}} : f64[4,3] loc("net.nn":9:1)
        func.return(%n) }} }}"""
    assert plastic(text).attrs["locality"][0]["reads"] == ["pre", "out", "w"]


PRED = """
  func @pred(%out: f64[2,3], %label: i64[2], %w: f64[4,3], %m: f64[3,3], %pre: f64[2,4]) -> (f64[4,3], f64[3,3]) {
    %o = tensor.dot_general(%out, %m) {lhs_batch = [], rhs_batch = [], lhs_contract = [1], rhs_contract = [1]} : f64[2,3]
    %c = nn.cross_entropy(%o, %label) : f64[2]
    %l = tensor.reduce_sum(%c) {dims = [0]} : f64[]
    %dw, %dm = learn.local_gradient(%l, %w, %m) : f64[4,3], f64[3,3]
    %w1 = tensor.sub(%w, %dw) : f64[4,3]
    %m1 = tensor.sub(%m, %dm) : f64[3,3]
    func.return(%w1, %m1)
  }
"""
PRED_STEP = f"""module attributes {{stage = "nn", entries = ["step"]}} {{ {LAYERS} {PRED}
  func @step(%w: f64[4,3], %m: f64[3,3], %x: f64[2,4], %y: i64[2]) -> (f64[4,3], f64[3,3]) attributes {{arg_roles = ["param:l.w", "own:l.pred.m", "data:x", "data:y"]}} {{
    %h, %u = func.call(%w, %x) {{callee = "dense", instance = "l", result_types = [f64[2,3], f64[2,3]]}} : f64[2,3], f64[2,3]
    %n, %k = learn.update(%h, %y, %w, %m, %x) {{rule = "pred", layer = "l", roles = ["signal:out", "given:label", "param:l.w", "own:l.pred.m", "signal:pre"], writes = [2, 3],
        forward = {{callee = "dense", args = [2, 4], results = [0, -1]}}}} : f64[4,3], f64[3,3] loc("net.nn":9:1)
    func.return(%n, %k) }} }}"""


def test_local_loss_gives_the_rule_written_out():
    m = plastic(PRED_STEP)
    assert "pred" not in m.funcs and m.attrs["locality"][0]["reads"] == ["out", "w", "pred.m", "pre"]
    for p in (Decompose(), Grad()):
        m = p.apply(m)
        verify(m, p.name)
    rng = np.random.default_rng(1)
    w, r, x, y = rng.normal(size=(4, 3)), rng.normal(size=(3, 3)), rng.normal(size=(2, 4)), np.array([2, 0])
    w1, r1 = Interpreter(m).call("step", [w, r, x, y])
    h = np.tanh(x @ w)
    o = h @ r.T
    p = np.exp(o) / np.exp(o).sum(1, keepdims=True)
    e = p - np.eye(3)[y]
    np.testing.assert_allclose(w1, w - x.T @ ((e @ r) * (1 - h * h)), rtol=1e-12)
    np.testing.assert_allclose(r1, r - e.T @ h, rtol=1e-12)
