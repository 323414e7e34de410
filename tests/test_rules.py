"""Learning rules of layers: written-out updates against NumPy, local losses against written-out rules, composition, mistakes."""
import numpy as np
import pytest
from engram.compiler import driver
from engram.compiler.diagnostics import CompileError
from test_train import DATA, Run, error_of, plan_of, weights

LAYERS = """
import "std/nn.nn"
layer Net(i, h, o) {
  hidden = Dense(i, h)
  out    = Linear(h, o)
  fn (x: f32[B, i]) -> f32[B, o] { out(hidden(x)) }
}
layer Deep(i, h, o) {
  body = [Dense(i, h), Dense(h, h)]
  head = Linear(h, o)
  fn (x: f32[B, i]) -> f32[B, o] { x |> body |> head }
}
rule written(classes, lr) sees pre: f32[B, i], out: f32[B, n], w: f32[i, n], b: f32[n] given label: int[B] {
  own m: f32[classes, n] = normal(0, 1 / sqrt(n))
  let e = (softmax(out @ m.T, dim = -1) - one_hot(label, classes)) / B
  let d = (e @ m) * (out > 0)
  w -= lr * pre.T @ d;  b -= lr * sum(d, dim = 0);  m -= lr * e.T @ out
}
rule local(classes, lr) sees out: f32[B, n] given label: int[B] {
  own m: f32[classes, n] = normal(0, 1 / sqrt(n))
  fn readout(h: f32[S, n]) { h @ m.T }
  minimize cross_entropy(readout(out), label) using sgd(lr)
}
"""


def net(body, **kw):
    text = "train t {\n model = Net(6, 5, 3)\n data = dataset(\"toy\")\n batch = 8\n" + body + "\n}\n"
    return plan_of(text, layers=kw.pop("layers", LAYERS), **kw)


def net_error(body, layers=LAYERS):
    return error_of("train t {\n model = Net(6, 5, 3)\n data = dataset(\"toy\")\n batch = 8\n" + body + "\n}\n", layers=layers)


def set_slot(run, path, value):
    run.slots[[s.path for s in run.plan.slots].index(path)] = np.asarray(value, np.float32)


def test_hebb_is_the_formula():
    run = Run(net("learn model.hidden by hebb(lr = 0.1, decay = 0.01)"))
    before = weights(run)
    x, _ = run.batch(0)
    h = np.maximum(x @ before["hidden.w"] + before["hidden.b"], 0)
    run.step()
    assert np.allclose(run["model.hidden.w"], before["hidden.w"] + 0.1 * (x.T @ h / 8 - 0.01 * before["hidden.w"]), atol=1e-6)
    assert np.array_equal(run["model.out.w"], before["out.w"])


def test_update_is_recorded_with_its_roles():
    plan = net("learn model.hidden by written(3, lr = 0.1 * step) given y\n learn model.out by delta(lr = 0.1) given one_hot(y, 3)")
    ops = [op for op in plan.module.funcs["step"].walk() if op.name == "learn.update"]
    assert [op.attrs["layer"] for op in ops] == ["model.hidden", "model.out"]
    assert ops[0].attrs["roles"] == ["signal:pre", "signal:out", "param:model.hidden.w", "param:model.hidden.b", "given:label", "arg:lr",
                                     "own:model.hidden.written.m"]
    assert ops[0].attrs["writes"] == [2, 3, 6] and ops[1].attrs["rule_name"] == "delta"
    lowered = driver.lower(plan.module, "definition")
    report = lowered.attrs["locality"]
    assert {r["parameter"] for r in report} == {"model.hidden.w", "model.hidden.b", "model.out.w", "model.out.b"}
    assert all(r["verdict"] == "local" for r in report)
    assert not any(op.name.startswith("learn.") for op in lowered.walk())


def test_written_out_equals_its_local_loss():
    a = Run(net("learn model.hidden by written(3, lr = 0.5) given y"))
    b = Run(net("learn model.hidden by local(3, lr = 0.5) given label = y"))
    set_slot(b, "model.hidden.local.m", a["model.hidden.written.m"])
    first = a["model.hidden.w"]
    for _ in range(4):
        a.step()
        b.step()
    assert np.abs(a["model.hidden.w"] - first).max() > 1e-3
    for x, y in (("w", "w"), ("b", "b"), ("written.m", "local.m")):
        assert np.allclose(a[f"model.hidden.{x}"], b[f"model.hidden.{y}"], atol=1e-5), x


def test_layers_see_the_values_of_the_steps_one_call():
    """Learning `hidden` first changes nothing for `out`, whose signals are those of the same call."""
    both = Run(net("learn model.hidden by hebb(0.5)\n learn model.out by delta(0.1) given one_hot(y, 3)"))
    alone = Run(net("learn model.out by delta(0.1) given one_hot(y, 3)"))
    both.step()
    alone.step()
    assert np.array_equal(both["model.out.w"], alone["model.out.w"])
    assert not np.array_equal(both["model.hidden.w"], alone["model.hidden.w"])


def test_the_call_may_be_written():
    written = Run(net("let z = model(2 * x)\n learn model.hidden by hebb(0.1)\n minimize cross_entropy(z, y) wrt model.out using sgd(0.1)"))
    before = weights(written)
    x, _ = written.batch(0)
    h = np.maximum(2 * x @ before["hidden.w"] + before["hidden.b"], 0)
    written.step()
    assert np.allclose(written["model.hidden.w"], before["hidden.w"] + 0.1 * (2 * x).T @ h / 8, atol=1e-5)
    assert not np.array_equal(written["model.out.w"], before["out.w"])


def test_minimize_after_learning_sees_the_new_weights():
    run = Run(net("learn model.hidden by hebb(0.5)\n minimize cross_entropy(model(x), y) wrt model.out using sgd(0.0)"))
    w = weights(run)
    x, y = run.batch(0)
    loss, = run.step()
    w = weights(run)
    z = np.maximum(x @ w["hidden.w"] + w["hidden.b"], 0) @ w["out.w"] + w["out.b"]
    z = z - z.max(1, keepdims=True)
    assert loss == pytest.approx(np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(8), y]), rel=1e-4)


def test_a_list_learns_layer_by_layer():
    plan = plan_of("""train t { model = Deep(6, 5, 3); data = dataset("toy"); batch = 8
      learn model.body by three_factor(3, lr = 0.1) given y
      minimize cross_entropy(model(x), y) wrt model.head using adam(0.1)
      measure accuracy(log_softmax(model.body[0].three_factor.readout(model.body[0](x)), dim = -1), y) }""", layers=LAYERS)
    own = [s.path for s in plan.slots if s.kind == "own"]
    assert "model.body.0.three_factor.m" in own and "model.body.1.three_factor.m" in own
    assert "model.body.0.three_factor.w.sgd.v" in own and "model.body.1.three_factor.m.sgd.v" in own
    run = Run(plan)
    assert run["model.body.0.three_factor.m"].std() > 0 and not np.array_equal(run["model.body.0.three_factor.m"], run["model.body.1.three_factor.m"])
    before = weights(run)
    run.step()
    assert all(not np.array_equal(before[k], w) for k, w in weights(run).items())
    x = DATA["x"][:8]
    h = np.maximum(x @ run["model.body.0.w"] + run["model.body.0.b"], 0)
    right = (h @ run["model.body.0.three_factor.m"].T).argmax(1) == DATA["y"][:8]
    assert run.measure()["accuracy"] == pytest.approx(right.mean())
    assert run.measure(5)["accuracy"] == pytest.approx(right[:5].mean())             # another batch size than the rule's


def test_inner_rules():
    """three_factor with momentum is the written rule with momentum."""
    a = Run(net("learn model.hidden by three_factor(3, lr = 0.1, momentum = 0.0) given y"))
    b = Run(net("learn model.hidden by written(3, lr = 0.1) given y"))
    set_slot(b, "model.hidden.written.m", a["model.hidden.three_factor.m"])
    for _ in range(3):
        a.step()
        b.step()
    assert np.allclose(a["model.hidden.w"], b["model.hidden.w"], atol=1e-6)
    plan = net("minimize cross_entropy(model(x), y) using adamw(1e-2)")
    assert "model.out.w.adamw.adam.m" in [s.path for s in plan.slots]


def test_local_loss_with_an_adaptive_optimizer_and_a_wide_view():
    run = Run(net("learn model by pred(3, lr = 0.05) given y"))
    own = [s.path for s in run.plan.slots if s.kind == "own"]
    assert "model.pred.m" in own and "model.pred.hidden.w.adam.m" in own and "model.pred.m.adam.t" in own
    before = weights(run)
    run.step()
    assert all(not np.array_equal(before[k], w) for k, w in weights(run).items())


def test_rule_functions_are_shared():
    plan = plan_of("""train t { model = Deep(6, 6, 3); data = dataset("toy"); batch = 8
      learn model.body by three_factor(3, lr = 0.1) given y }""", layers=LAYERS)
    rules = [op.attrs["rule"] for op in plan.module.funcs["step"].walk() if op.name == "learn.update"]
    assert len(rules) == 2 and rules[0] == rules[1]


def test_optimizing_with_a_gradient_of_ones_own():
    a = Run(plan_of("let g = grad(fn (m) { cross_entropy(m(x), y) })(model)\n learn model by sgd(0.1) given g"))
    b = Run(plan_of("minimize cross_entropy(model(x), y) using sgd(0.1)"))
    a.step()
    b.step()
    for k, w in weights(a).items():
        assert np.allclose(w, weights(b)[k], atol=1e-6), k


def test_random_rule():
    rule = "rule shake(s) sees w: f32[i, o] { w += s * normal(0, 1, size = [i, o]) }\n"
    run = Run(net("learn model.hidden by shake(0.1)\n learn model.out by shake(0.1)", layers=LAYERS + rule))
    w = [run["model.hidden.w"]]
    for _ in range(2):
        run.step()
        w.append(run["model.hidden.w"])
    assert 0.05 < np.std(w[1] - w[0]) < 0.2 and not np.allclose(w[1] - w[0], w[2] - w[1])


def test_phases_share_a_rules_state():
    plan = net("phase a { epochs = 1\n learn model.hidden by written(3, 0.1) given y }\n"
               "phase b { epochs = 1\n learn model.hidden by written(3, 0.1) given y }")
    assert [s.path for s in plan.slots if s.kind == "own"] == ["model.hidden.written.m"]


def test_local_loss_uses_signals_between():
    rule = """rule tap(lr) sees u: f32[B, n] given label: int[B] {
      own m: f32[3, n] = 0.1
      minimize cross_entropy(u @ m.T, label) using sgd(lr)
    }\n"""
    run = Run(net("learn model.hidden by tap(0.5) given y", layers=LAYERS + rule))
    w0, m0 = weights(run), np.full((3, 5), 0.1)
    m0 = m0 + np.arange(15).reshape(3, 5) / 100
    set_slot(run, "model.hidden.tap.m", m0)
    x, y = run.batch(0)
    u = x @ w0["hidden.w"] + w0["hidden.b"]
    z = u @ m0.T
    p = np.exp(z - z.max(1, keepdims=True))
    d = (p / p.sum(1, keepdims=True) - np.eye(3)[y]) / 8
    run.step()
    assert np.allclose(run["model.hidden.w"], w0["hidden.w"] - 0.5 * x.T @ (d @ m0), atol=1e-5)
    assert np.allclose(run["model.hidden.tap.m"], m0 - 0.5 * d.T @ u, atol=1e-5)


def test_parameters_of_sub_layers():
    layers = LAYERS + """
layer Block(i, o) {
  lin = Linear(i, o)
  fn (x: f32[B, i]) -> f32[B, o] { let u = lin(x); relu(u) }
}
layer Two() {
  a = Block(6, 5)
  b = Linear(5, 3)
  fn (x: f32[B, 6]) { b(a(x)) }
}
rule inner(lr) sees pre: f32[B, i], u: f32[B, o], lin.w: f32[i, o], lin.b {
  lin.w += lr * (pre.T @ u) / B
  learn lin.b by sgd(lr) given sum(u, dim = 0)
}
rule guess(lr) sees out: f32[B, n] given label: int[B] {
  own m: f32[3, n] = 0.1
  minimize cross_entropy(out @ m.T, label) wrt m using sgd(lr)
}
"""
    head = "train t { model = Two(); data = dataset(\"toy\"); batch = 8\n"
    run = Run(plan_of(head + "learn model.a by inner(0.1) }", layers=layers))
    w = weights(run)
    x, _ = run.batch(0)
    u = x @ w["a.lin.w"] + w["a.lin.b"]
    run.step()
    assert np.allclose(run["model.a.lin.w"], w["a.lin.w"] + 0.1 * x.T @ u / 8, atol=1e-5)
    assert np.allclose(run["model.a.lin.b"], w["a.lin.b"] - 0.1 * u.sum(0), atol=1e-5)
    run = Run(plan_of(head + "learn model.a by guess(0.1) given y }", layers=layers))
    run.step()
    assert np.array_equal(run["model.a.lin.w"], w["a.lin.w"]) and np.abs(run["model.a.guess.m"] - 0.1).max() > 0
    run = Run(plan_of(head + "learn model.a by pred(3, 0.1) given y }", layers=layers))
    run.step()
    assert np.abs(run["model.a.lin.w"] - w["a.lin.w"]).max() > 1e-3


def test_a_layer_with_state_and_noise_learns_from_a_local_loss():
    layers = LAYERS + """
layer Noisy(i, o) {
  bn = BatchNorm(i)
  lin = Linear(i, o)
  drop = Dropout(0.2)
  fn (x: f32[B, i]) -> f32[B, o] { relu(lin(drop(bn(x)))) }
}
layer Two() {
  a = Noisy(6, 5)
  b = Linear(5, 3)
  fn (x: f32[B, 6]) { b(a(x)) }
}
"""
    run = Run(plan_of("train t { model = Two(); data = dataset(\"toy\"); batch = 8\n learn model.a by pred(3, 0.1) given y }", layers=layers))
    before = weights(run)
    run.step()
    after = weights(run)
    assert all(np.abs(after[k] - before[k]).max() > 1e-3 for k in ("a.lin.w", "a.lin.b", "a.bn.w"))
    assert run["model.a.bn.running_mean"].any()


def test_a_reward_from_the_models_output_is_broadcast():
    layers = LAYERS + """
layer Shaky(i, o) {
  param w: f32[i, o] = kaiming_uniform(i)
  fn (x: f32[B, i]) -> f32[B, o] { let noise = 0.1 * normal(0, 1, size = [B, o]); tanh(x @ w + noise) }
}
layer Two() {
  a = Shaky(6, 5)
  b = Shaky(5, 3)
  fn (x: f32[B, 6]) { b(a(x)) }
}
"""
    run = Run(plan_of("""train t { model = Two(); data = dataset("toy"); batch = 8
      let z = model(x)
      let reward = -cross_entropy(z, y, reduction = "none")
      learn model.a by node_perturbation(0.01, 0.1) given reward = reward, baseline = zeros(batch)
      learn model.b by reward_hebb(0.1) given reward }""", layers=layers))
    before = weights(run)
    run.step()
    assert all(not np.array_equal(before[k], w) for k, w in weights(run).items())
    report = driver.lower(run.plan.module, "definition").attrs["locality"]
    assert [r["verdict"] for r in report if r["parameter"].endswith(".w")] == ["local", "local"]
    assert any("from the model's output" in t for r in report for t in r["broadcast"])


def test_signals_of_calls_in_a_scan_are_stacked():
    layers = LAYERS + """
layer Lif(i, n) {
  param w: f32[i, n] = kaiming_uniform(i)
  cache v: f32[B, n] = 0
  fn (x: f32[B, i]) -> f32[B, n] {
    let u = 0.9 * v + x @ w
    let s = f32(u > 0.5)
    v = u - s * 0.5
    s
  }
}
layer Seq(i, n) {
  cell = Lif(i, n)
  fn (x: f32[B, i]) { scan t in 0..4 { let s = cell(x); yield s } }
}
rule correlate(lr) sees pre: f32[T, B, i], out: f32[T, B, o], w: f32[i, o] { w += lr * sum(transpose(pre, 1, 2) @ out, dim = 0) }
"""
    run = Run(plan_of("""train t { model = Seq(6, 5); data = dataset("toy"); batch = 8
      learn model.cell by correlate(0.1)
      measure rate = mean(model(x)) }""", layers=layers))
    assert [(s.path, s.kind) for s in run.plan.slots][-1] == ("model.cell.v", "cache")
    w, (x, _) = run["model.cell.w"], run.batch(0)
    v, total, spikes = 0, 0, 0
    for _ in range(4):
        u = 0.9 * v + x @ w
        s = (u > 0.5).astype(np.float32)
        v, total, spikes = u - s * 0.5, total + x.T @ s, spikes + s[:5].mean()
    rate = run.measure(5)["rate"]
    run.step()
    assert np.allclose(run["model.cell.w"], w + 0.1 * total, atol=1e-5)
    assert np.allclose(run["model.cell.v"], v, atol=1e-5)
    assert rate == pytest.approx(spikes / 4)


@pytest.mark.parametrize("body", [
    "clip_norm = 0.1\n accumulate = 2\n minimize cross_entropy(model(x), y) using sgd(cosine(step, steps, 0.1), momentum = 0.9)",
    "learn model.hidden by three_factor(3, lr = 0.1) given y\n learn model.out by pred(3, 0.1) given y",
])
def test_compiled_steps_agree_with_the_interpreter(body):
    pytest.importorskip("llvmlite")
    a = Run(net(body))
    b = Run(a.plan)
    b.program = driver.build(a.plan.module, "cpu", threads=2)
    b.slots = [b.program.to_device(np.array(s)) for s in a.slots]
    for _ in range(4):
        assert a.step() == pytest.approx(b.step(batch=[np.ascontiguousarray(f) for f in b.batch(b.count)]), rel=1e-5)
    for s, x, y in zip(a.plan.slots, a.slots, b.slots):
        assert np.allclose(x, b.program.to_host(y), atol=1e-5), s.path


# ---- mistakes ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("body, message", [
    ("learn model.hidden by heb(0.1)", "did you mean `hebb`"),
    ("learn model.hiden by hebb(0.1)", "did you mean `hidden`"),
    ("learn model by sanger(0.1)", "sees `u`, which layer `model` (Net) does not have"),
    ("learn model.out by stdp(0.1, 0.1)", "`pre`, which rule `stdp` sees, is f32[8, 5]"),
    ("learn model by sanger(0.1)", "it has: pre, out, x, hidden.w, hidden.b, out.w, out.b; a top-level `let u = ..` in its `fn` would give it"),
    ("learn model by hebb(0.1)", "sees `w`, which layer `model` (Net) does not have"),
    ("learn x by hebb(0.1)", "needs a layer"),
    ("learn model.out by delta(0.1)", "needs to be given `target`"),
    ("learn model.out by delta(0.1) given y", "given to rule `delta`"),
    ("learn model.out by delta(0.1) given one_hot(y, 4)", "expected f32[..]: `..` is [8, 3], not [8, 4]"),
    ("learn model.out by delta(0.1) given targt = y", "did you mean `target`"),
    ("learn model.out by delta(0.1) given y, y", "got 2 signals"),
    ("learn model.hidden by hebb()", "needs argument `lr`"),
    ("let a = model(x)\n let b = model(x)\n learn model.hidden by hebb(0.1)", "called twice in a step"),
    ("learn model.hidden by sgd(0.1)", "sees `p`"),
    ("learn model.hidden by hebb(0.1) given y", "is given nothing"),
    ("learn model.hidden by written(classes = 2.5, lr = 0.1) given y", "`classes` is the number 2.5, so it cannot be a size"),
    ("learn model.hidden.w by sgd(0.1) given x", "`..` is [6, 5], not [8, 6]"),
    ("if step > 2 { let z = model(x)\n learn model.hidden by hebb(0.1) }", "called in one branch only"),
    ("learn 3 by hebb(0.1)", "got the number 3"),
    ("scan t in 0..3 { learn model.hidden by hebb(0.1) }", "`learn` cannot stand in a loop"),
])
def test_errors(body, message):
    text = net_error(body)
    assert message in text and "test.nn:" in text, text


@pytest.mark.parametrize("rule, message", [
    ("rule r(lr) sees pre: f32[B, i], w: f32[i, o] { pre = 2 }", "`pre` is not state, so it cannot be written"),
    ("rule r(lr) sees pre: f32[B, i], w: f32[o, i] { w *= 2 }", "which rule `r` sees, is f32[6, 5]"),
    ("rule r(lr) sees w { let a = w }", "changes nothing"),
    ("rule r(lr) sees w { w += b }", "unknown name `b`"),
    ("rule r(lr) sees w: f32[i, o] { own m: f32[q] = 0\n m += 1 }", "size `q` is not known"),
    ("rule r(lr) sees pre: f32[B, i], w { own m: f32[B, i] = pre\n m += 1 }", "not known when the rule's state begins"),
    ("rule r(lr) sees w { learn (w, w) by sgd(lr) given w }", "needs a tuple of 2"),
    ("rule r(lr) sees w { w += sum(w, dim = 0) @ w }", "cannot multiply"),
])
def test_errors_in_rules(rule, message):
    text = net_error("learn model.hidden by r(0.1)", layers=LAYERS + rule + "\n")
    assert message in text and "test.nn:" in text and ("rule `r` is used here" in text or "changes nothing" in text), text


def test_a_rule_that_is_not_local():
    body = "let z = model(x)\n learn model.hidden by feedback_alignment(0.1) given softmax(z, dim = -1) - one_hot(y, 3)"
    plan = net(body)
    assert driver.lower(plan.module, "definition").attrs["locality"][0]["verdict"] == "non-local"
    smuggle = "rule s(lr) sees w: f32[i, o] given other: f32[o, c] { w += lr * sum(other) }\n"
    plan = net("learn model.hidden by s(0.1) given model.out.w", layers=LAYERS + smuggle)
    with pytest.raises(CompileError, match="is not local"):
        driver.lower(plan.module, "definition")


# ---- the library ------------------------------------------------------------------------------------------------------

def library(rule, given="", rules=LAYERS):
    return Run(net(f"learn model.hidden by {rule}{given}", layers=rules))


def dense(run):
    w = weights(run)
    x, y = run.batch(0)
    u = x @ w["hidden.w"] + w["hidden.b"]
    return x, y, u, np.maximum(u, 0), w["hidden.w"]


FORMULAS = {
    "oja(0.1)": lambda x, u, h, w: w + 0.1 * (x.T @ u - w * (u * u).sum(0)) / 8,
    "sanger(0.1)": lambda x, u, h, w: w + 0.1 * (x.T @ u - w @ np.triu(u.T @ u)) / 8,
    "bcm(0.1)": lambda x, u, h, w: w + 0.1 * x.T @ (h * (h - 1)) / 8,
    "hebb(0.1, 0.01)": lambda x, u, h, w: w + 0.1 * (x.T @ h / 8 - 0.01 * w),
    "soft_hebb(0.1, 2.0)": lambda x, u, h, w: w + 0.1 * np.sqrt(np.abs(np.linalg.norm(w, axis=0) - 1)) * largest(soft_hebb(x, soft(2 * u), u, w)),
    "soft_hebb(0.1, 2.0, p = 0, anti = true)": lambda x, u, h, w: w + 0.1 * largest(soft_hebb(x, np.where(u == u.max(1, keepdims=True), 1, -1) * soft(2 * u), u, w)),
    "krotov_hopfield(0.1)": lambda x, u, h, w: w + 0.1 * krotov(x, u, w) / np.abs(krotov(x, u, w)).max(),
}


def soft(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def soft_hebb(x, y, u, w):
    return x.T @ y - w * (y * u).sum(0)


def largest(d):
    return d / np.abs(d).max()


def krotov(x, u, w):
    order = np.argsort(-u, axis=1)
    g = np.eye(5)[order[:, 0]] - 0.4 * np.eye(5)[order[:, 1]]
    return x.T @ g - w * (g * u).sum(0)


@pytest.mark.parametrize("rule", FORMULAS)
def test_library_rules_are_their_formulas(rule):
    run = library(rule)
    x, _, u, h, w = dense(run)
    run.step()
    assert np.allclose(run["model.hidden.w"], FORMULAS[rule](x, u, h, w), atol=1e-5)


@pytest.mark.parametrize("rule, given", [
    ("pred(3, 0.01)", " given y"), ("predsim(3, 0.01)", " given y"), ("forward_forward(0.01)", " given f32(y > 0)"),
    ("reward_hebb(0.1)", " given f32(y == 1)"), ("three_factor(3, 0.1)", " given y"), ("three_factor(3, 0.1, feedback = true)", " given y"),
])
def test_library_rules_learn_and_are_local(rule, given):
    run = library(rule, given)
    before = run["model.hidden.w"]
    run.step()
    assert np.isfinite(run["model.hidden.w"]).all() and not np.array_equal(before, run["model.hidden.w"])
    report = driver.lower(run.plan.module, "definition").attrs["locality"]
    assert report and all(r["verdict"] == "local" for r in report)


def test_forward_forward_raises_the_goodness_of_real_samples():
    run = library("forward_forward(0.05)", " given f32(y > 0)")
    batch = run.batch(0)
    real = batch[1] > 0

    def goodness():
        w = weights(run)
        return (np.maximum(batch[0] @ w["hidden.w"] + w["hidden.b"], 0) ** 2).mean(1)

    before = goodness()
    for _ in range(10):
        run.step(batch=batch)
    after = goodness()
    assert (after - before)[real].mean() > (after - before)[~real].mean() + 0.05


TORCH = {       # the formulas of torch.optim, in float64
    "rmsprop(0.01)": lambda g, s: (s.__setitem__("v", 0.99 * s.get("v", 0) + 0.01 * g * g), 0.01 * g / (np.sqrt(s["v"]) + 1e-8))[1],
    "adagrad(0.1)": lambda g, s: (s.__setitem__("v", s.get("v", 0) + g * g), 0.1 * g / (np.sqrt(s["v"]) + 1e-10))[1],
    "sgd(0.1, momentum = 0.9)": lambda g, s: (s.__setitem__("v", 0.9 * s.get("v", 0) + g), 0.1 * s["v"])[1],
    "sgd(0.1, momentum = 0.9, nesterov = true)": lambda g, s: (s.__setitem__("v", 0.9 * s.get("v", 0) + g), 0.1 * (g + 0.9 * s["v"]))[1],
    "adam(0.01)": lambda g, s: adam(g, s),
}


def adam(g, s):
    s["t"] = s.get("t", 0) + 1
    s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
    s["v"] = 0.999 * s.get("v", 0) + 0.001 * g * g
    return 0.01 * (s["m"] / (1 - 0.9 ** s["t"])) / (np.sqrt(s["v"] / (1 - 0.999 ** s["t"])) + 1e-8)


@pytest.mark.parametrize("rule", TORCH)
def test_optimizers_are_their_formulas(rule):
    """The gradient of sum(c * w) by w is c, so that the optimiser's own arithmetic shows."""
    run = Run(plan_of(f"minimize sum(x[0, :5] * model.hidden.b) using {rule}"))
    want, s = run["model.hidden.b"].astype(np.float64), {}
    for k in range(4):
        want = want - TORCH[rule](run.batch(k)[0][0, :5].astype(np.float64), s)
        run.step()
    assert np.allclose(run["model.hidden.b"], want, atol=2e-5)


def test_schedules():
    text = "sgd(cosine(step, steps, 1.0, warmup = 2)), wrt model.out.b using sgd(linear_decay(step, steps, 1.0))"
    run = Run(plan_of(f"epochs = 2\n minimize sum(model.hidden.b) + sum(model.out.b) wrt model.hidden.b using {text}"))
    steps = run.plan.settings["steps"]
    for k in range(5):
        b = run["model.hidden.b"][0], run["model.out.b"][0]
        run.step()
        cosine = (k + 1) / 2 if k < 2 else 0.5 * (1 + np.cos(np.pi * (k - 2) / (steps - 2)))
        assert b[0] - run["model.hidden.b"][0] == pytest.approx(cosine, abs=1e-5)
        assert b[1] - run["model.out.b"][0] == pytest.approx(1 - k / steps, abs=1e-5)


LET_PRE = """
rule pred_local(classes) sees out: f32[B, n] given label: int[B] {
  own m: f32[classes, n] = normal(0, 1 / sqrt(n))
  minimize cross_entropy(out @ m.T, label) using sgd(0.1)
}
rule sees_pre(lr) sees pre: f32[B, i], out: f32[B, o], w: f32[i, o] { w += lr * pre.T @ out }
layer L(i, o) {
  param w: f32[i, o] = normal(0, sqrt(2 / i))
  fn (x: f32[B, i]) -> f32[B, o] { let NAME = stop_gradient(layer_norm(x, [i])) * 2.0; relu(NAME @ w) }
}
train t { model = L(64, 32); data = dataset("digits"); batch = 32; epochs = 1; learn model by RULE; measure loss = mean(model(x)) }
"""


def test_a_let_called_pre_is_what_a_rule_sees_and_not_what_a_local_loss_runs_from(tmp_path):
    """The signal is the let; a local loss still differentiates from the layer's input on."""
    from engram.compiler.driver import build
    from engram.datasets import dataset
    from engram.frontend import elaborate_train, load

    def stepped(name: str, rule: str) -> list:
        plan = elaborate_train(load("t.nn", LET_PRE.replace("NAME", name).replace("RULE", rule)), "t", {}, dataset)
        p = build(plan.module, "cpu", threads=1)
        values = p.call("init", [np.array(3, np.uint64)])
        batch = {n: np.ascontiguousarray(a[:32]) for n, a in plan.dataset.fields.items()}
        args = [np.array(0), np.array(0), np.array(1, np.uint64), *batch.values()]
        return p.call(plan.phases[0].entry, [*values, *args])[0]

    np.testing.assert_array_equal(stepped("pre", "pred_local(10) given y"), stepped("xi", "pred_local(10) given y"))
    seen, unseen = stepped("pre", "sees_pre(0.01)"), stepped("xi", "sees_pre(0.01)")
    assert np.abs(seen - unseen).max() > 1e-3                   # the normalised input against the raw one
