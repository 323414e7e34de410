"""Train blocks: what the plan holds, that a step computes what the statements say, settings, phases, states, errors."""
from types import SimpleNamespace

import numpy as np
import pytest
from engram.compiler import driver
from engram.compiler.diagnostics import CompileError
from engram.frontend.program import load
from engram.frontend.train import elaborate_train

LAYERS = """
import "std/nn.nn"
layer Mlp(i, h, o) {
  hidden = Linear(i, h)
  out    = Linear(h, o)
  fn (x: f32[B, i]) -> f32[B, o] { out(relu(hidden(x))) }
}
"""
RNG = np.random.default_rng(0)
DATA = {"x": RNG.normal(size=(40, 6)).astype(np.float32), "y": RNG.integers(0, 3, 40).astype(np.int32)}


class DatasetError(Exception):
    def __init__(self, message, hint=None):
        super().__init__(message)
        self.message, self.hint = message, hint


def dataset(name, *args, **kwargs):
    if name != "toy":
        raise DatasetError(f"unknown data set {name!r}", "did you mean 'toy'?")
    return SimpleNamespace(fields=DATA, n=40)


def plan_of(body, name=None, overrides=None, layers=LAYERS):
    text = layers + (body if "train " in body else "train t {\n model = Mlp(6, 5, 3)\n data = dataset(\"toy\")\n batch = 8\n" + body + "\n}\n")
    return elaborate_train(load("test.nn", text), name, overrides or {}, dataset)


def error_of(body, **kw):
    with pytest.raises(CompileError) as e:
        plan_of(body, **kw)
    return str(e.value)


class Run:
    """A plan on the interpreter."""

    def __init__(self, plan, seed=1):
        self.plan = plan
        self.program = driver.build(plan.module, "interp")
        self.slots = self.program.call("init", [np.array(seed, np.uint64)])
        self.count = 0

    def __getitem__(self, path):
        return self.slots[[s.path for s in self.plan.slots].index(path)]

    def batch(self, k):
        n = self.plan.settings["batch"]
        return [f[k * n % 32:k * n % 32 + n] for f in DATA.values()]

    def step(self, phase=0, batch=None, epoch=0):
        p = self.plan.phases[phase]
        out = self.program.call(p.entry, [*self.slots, np.array(self.count, np.int64), np.array(epoch, np.int64), np.array(3, np.uint64),
                                          *(self.batch(self.count) if batch is None else batch)])
        self.slots = out[:len(self.slots)]
        self.count += 1
        return [float(v) for v in out[len(self.slots):]]

    def measure(self, n=8):
        module, entry = self.plan.measure(n)
        names = module.funcs[entry].attrs["result_names"]
        out = driver.build(module, "interp").call(entry, [*self.slots, np.array(3, np.uint64), *[f[:n] for f in DATA.values()]])
        return dict(zip(names, map(float, out)))


def gradients(w, x, y):
    """Loss and gradients of cross_entropy(Mlp(x), y) in float64."""
    w = {k: np.asarray(v, np.float64) for k, v in w.items()}
    u = x @ w["hidden.w"] + w["hidden.b"]
    h = np.maximum(u, 0)
    z = h @ w["out.w"] + w["out.b"]
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    d = (p - np.eye(3)[y]) / len(y)
    dh = d @ w["out.w"].T * (u > 0)
    return loss, {"hidden.w": x.T @ dh, "hidden.b": dh.sum(0), "out.w": h.T @ d, "out.b": d.sum(0)}


def weights(run):
    return {s.path.removeprefix("model."): run[s.path] for s in run.plan.slots if s.kind == "param"}


# ---- the plan ---------------------------------------------------------------------------------------------------------

def test_plan():
    plan = plan_of("epochs = 3\n minimize cross_entropy(model(x), y) using adam(1e-2)\n measure accuracy(model(x), y)")
    kinds = [(s.path, s.kind) for s in plan.slots]
    assert kinds[:4] == [("model.hidden.w", "param"), ("model.hidden.b", "param"), ("model.out.w", "param"), ("model.out.b", "param")]
    assert ("model.out.b.adam.t", "own") in kinds and len(kinds) == 16
    assert plan.losses == ["loss"] and plan.measures == ["accuracy"] and plan.model_paths == ["model"]
    assert plan.settings["steps_per_epoch"] == 4 and plan.settings["steps"] == 12          # a fifth of 40 is held out
    step = plan.module.funcs["step"]
    names = step.attrs["arg_names"]
    assert names[-5:] == ["step", "epoch", "key", "x", "y"]
    assert step.attrs["arg_roles"][0] == "param:model.hidden.w" and step.attrs["arg_roles"][-2:] == ["data:x", "data:y"]
    assert step.attrs["donate"] == [[i, i] for i in range(16)]
    assert step.attrs["result_names"][-1] == "loss" and len(names) == len(step.args)


def test_init_follows_seed_and_path_only():
    one = Run(plan_of("minimize cross_entropy(model(x), y) using sgd(0.1)"))
    other = Run(plan_of("minimize cross_entropy(m(x), y) using adam(0.1)".join(
        ["train t {\n m = Mlp(6, 5, 3)\n data = dataset(\"toy\")\n", "\n}"])))
    again = Run(plan_of("minimize cross_entropy(model(x), y) using sgd(0.1)"), seed=2)
    assert np.array_equal(one["model.hidden.w"], other["m.hidden.w"])
    assert not np.array_equal(one["model.hidden.w"], again["model.hidden.w"])
    assert not np.array_equal(one["model.hidden.b"][:3], one["model.out.b"])


def test_first_step_of_adam_is_the_formula():
    run = Run(plan_of("minimize cross_entropy(model(x), y) using adam(lr = 1e-2)"))
    before = weights(run)
    x, y = run.batch(0)
    loss, g = gradients(before, x, y)
    assert run.step()[0] == pytest.approx(loss, rel=1e-5)
    for name, w in weights(run).items():
        want = before[name] - 1e-2 * g[name] / (np.abs(g[name]) + 1e-8)
        assert np.allclose(w, want, rtol=1e-3, atol=1e-6), name
        assert np.allclose(run[f"model.{name}.adam.m"], 0.1 * g[name], rtol=1e-3, atol=1e-7)
    assert run["model.out.b.adam.t"] == 1


def test_loss_falls():
    run = Run(plan_of("minimize cross_entropy(model(x), y) using adam(0.05)"))
    batch = run.batch(0)
    losses = [run.step(batch=batch)[0] for _ in range(15)]
    assert losses[-1] < 0.5 * losses[0]


def test_measure():
    run = Run(plan_of("let logits = model(x)\n minimize cross_entropy(logits, y) using sgd(0.1)\n measure accuracy(logits, y)\n"
                      "measure wrong = argmax(logits, dim = -1) != y"))
    loss, _ = gradients(weights(run), DATA["x"][:8], DATA["y"][:8])
    m = run.measure()
    assert list(m) == ["accuracy", "wrong", "loss"] and m["loss"] == pytest.approx(loss, rel=1e-5)
    assert m["accuracy"] == pytest.approx(1 - m["wrong"])
    assert run.measure(5) != m


# ---- what minimize does -----------------------------------------------------------------------------------------------

def test_momentum_state_is_made_only_when_used():
    assert len(plan_of("minimize cross_entropy(model(x), y) using sgd(0.1)").slots) == 4
    plan = plan_of("minimize cross_entropy(model(x), y) using sgd(0.1, momentum = 0.9)")
    assert [s.path for s in plan.slots if s.kind == "own"][0] == "model.hidden.w.sgd.v"


def test_wrt():
    run = Run(plan_of("minimize cross_entropy(model(x), y) wrt model.out using sgd(0.5), wrt model.hidden.b using sgd(0.25)"))
    before = weights(run)
    _, g = gradients(before, *run.batch(0))
    run.step()
    after = weights(run)
    assert np.array_equal(after["hidden.w"], before["hidden.w"])
    assert np.allclose(after["out.w"], before["out.w"] - 0.5 * g["out.w"], atol=1e-6)
    assert np.allclose(after["hidden.b"], before["hidden.b"] - 0.25 * g["hidden.b"], atol=1e-6)


def test_a_let_keeps_the_weights_it_saw():
    body = "let a = cross_entropy(model(x), y)\n minimize cross_entropy(model(x), y) using sgd(0.5)\n minimize {} using sgd(0.5)"
    old, new = Run(plan_of(body.format("a"))), Run(plan_of(body.format("cross_entropy(model(x), y)")))
    x, y = old.batch(0)
    w = {k: v.astype(np.float64) for k, v in weights(old).items()}
    l0, g0 = gradients(w, x, y)
    w1 = {k: w[k] - 0.5 * g0[k] for k in w}
    l1, g1 = gradients(w1, x, y)
    assert old.step() == pytest.approx([l0, l0], rel=1e-5)
    assert new.step() == pytest.approx([l0, l1], rel=1e-5)
    for k in w:
        assert np.allclose(weights(old)[k], w1[k] - 0.5 * g0[k], atol=1e-6)
        assert np.allclose(weights(new)[k], w1[k] - 0.5 * g1[k], atol=1e-6)
    assert old.plan.losses == ["loss", "loss2"]


def test_a_loss_over_two_versions_of_the_weights():
    """d(a + b): a saw the old weights, b the new ones; the update itself is constant."""
    run = Run(plan_of("let a = cross_entropy(model(x), y)\n minimize a using sgd(0.5)\n minimize a + cross_entropy(model(x), y) using sgd(0.5)"))
    x, y = run.batch(0)
    w = {k: v.astype(np.float64) for k, v in weights(run).items()}
    _, g0 = gradients(w, x, y)
    w1 = {k: w[k] - 0.5 * g0[k] for k in w}
    _, g1 = gradients(w1, x, y)
    run.step()
    for k in w:
        assert np.allclose(weights(run)[k], w1[k] - 0.5 * (g0[k] + g1[k]), atol=1e-6)


def test_clip_norm():
    run = Run(plan_of("clip_norm = 0.01\n minimize cross_entropy(model(x), y) using sgd(1.0)"))
    before = weights(run)
    _, g = gradients(before, *run.batch(0))
    norm = np.sqrt(sum((v ** 2).sum() for v in g.values()))
    run.step()
    for k, w in weights(run).items():
        assert np.allclose(w, before[k] - g[k] * 0.01 / (norm + 1e-6), atol=1e-7)


def test_accumulate():
    run = Run(plan_of("accumulate = 2\n epochs = 2\n minimize cross_entropy(model(x), y) using sgd(0.1 * (step + 1))"))
    assert run.plan.settings["steps"] == 4
    before = weights(run)
    gs = [gradients(before, *run.batch(k))[1] for k in range(2)]
    run.step()
    assert all(np.array_equal(weights(run)[k], before[k]) for k in before)
    run.step()
    middle = weights(run)
    for k in before:
        assert np.allclose(middle[k], before[k] - 0.1 * (gs[0][k] + gs[1][k]) / 2, atol=1e-6)
    assert not run["model.out.w.sgd.sum"].any()
    gs = [gradients(middle, *run.batch(k))[1] for k in (2, 3)]
    run.step()
    run.step()
    for k in before:                                                 # `step` counts updates
        assert np.allclose(weights(run)[k], middle[k] - 0.2 * (gs[0][k] + gs[1][k]) / 2, atol=1e-6)


def test_schedules_see_step_and_epoch():
    run = Run(plan_of("minimize cross_entropy(model(x), y) using sgd(if epoch > 0 { 0.0 } else { 0.1 * step })"))
    first = weights(run)
    run.step()
    assert all(np.array_equal(first[k], w) for k, w in weights(run).items())               # 0.1 * 0
    run.step()
    second = weights(run)
    assert not np.array_equal(second["out.b"], first["out.b"])
    run.step(epoch=1)
    assert all(np.array_equal(second[k], w) for k, w in weights(run).items())


def test_minimize_in_a_branch():
    run = Run(plan_of("if step % 2 == 1 {\n minimize cross_entropy(model(x), y) using adam(0.1)\n }"))
    first = weights(run)
    assert run.step() == [0.0]
    assert all(np.array_equal(first[k], w) for k, w in weights(run).items())
    _, g = gradients(first, *run.batch(1))
    assert run.step()[0] > 0
    assert np.allclose(weights(run)["out.w"], first["out.w"] - 0.1 * np.sign(g["out.w"]), atol=1e-4)
    assert run["model.out.w.adam.t"] == 1
    assert run.measure()["loss"] > 0


# ---- state ------------------------------------------------------------------------------------------------------------

def test_state_of_the_block():
    run = Run(plan_of("state h: f32[batch, 3] = 0\n if step % 3 == 0 { h = 1 }\n let z = model(x) + h\n h = z\n"
                      "minimize mean(square(z)) using sgd(0.0)\n measure mean(h)"))
    assert [s.kind for s in run.plan.slots if s.path == "h"] == ["state"]
    w = weights(run)

    def model(x):
        return np.maximum(x @ w["hidden.w"] + w["hidden.b"], 0) @ w["out.w"] + w["out.b"]

    h = 1.0
    for k in range(4):
        h = model(run.batch(k)[0]) + (1.0 if k == 3 else h)
        assert run.step()[0] == pytest.approx((h ** 2).mean(), rel=1e-4)
        assert np.allclose(run["h"], h, rtol=1e-4, atol=1e-5)
    assert run.measure(5)["mean"] == pytest.approx((model(DATA["x"][:5]) + 1).mean(), rel=1e-3)    # its own h, from the beginning


def test_state_of_a_layer():
    layers = LAYERS + "layer Norm() {\n bn = BatchNorm(6)\n out = Linear(6, 3)\n fn (x: f32[B, 6]) { out(bn(x)) }\n}\n"
    run = Run(plan_of("train t { model = Norm(); data = dataset(\"toy\"); batch = 8\n minimize cross_entropy(model(x), y) using sgd(0.1)\n"
                      "measure accuracy(model(x), y) }", layers=layers))
    before = run.measure()["loss"]
    x, _ = run.batch(0)
    run.step()
    assert np.allclose(run["model.bn.running_mean"], 0.1 * x.mean(0), atol=1e-6)
    assert run.measure()["loss"] != before


def test_a_copy_of_a_layer_as_state():
    run = Run(plan_of("state average: Mlp = model\n minimize cross_entropy(model(x), y) using sgd(0.5)\n"
                      "average = tree_map(fn (a, p) { lerp(a, p, 0.1) }, average, model)\n measure accuracy(average(x), y)\n"
                      "measure gap = mean(average(x) - model(x))"))
    first = weights(run)
    assert [s.kind for s in run.plan.slots if s.path == "average.out.w"] == ["state"] and run.plan.model_paths == ["model"]
    assert np.array_equal(run["average.hidden.w"], first["hidden.w"]) and run.measure()["gap"] == 0
    run.step()
    assert np.allclose(run["average.hidden.w"], 0.9 * first["hidden.w"] + 0.1 * run["model.hidden.w"], atol=1e-6)
    x = DATA["x"][:8]

    def model(w):
        return np.maximum(x @ run[w + ".hidden.w"] + run[w + ".hidden.b"], 0) @ run[w + ".out.w"] + run[w + ".out.b"]

    assert run.measure()["gap"] == pytest.approx((model("average") - model("model")).mean(), abs=1e-6)


def test_a_gradient_is_a_value():
    run = Run(plan_of("let (l, g) = value_and_grad(fn (m) { cross_entropy(m(x), y) })(model)\n let norm = global_norm(g)\n"
                      "if norm > 0.0 { learn model by sgd(0.5) given tree_map(fn (t) { t / norm }, g) }\n measure l"))
    before = weights(run)
    _, g = gradients(before, *run.batch(0))
    norm = np.sqrt(sum((v ** 2).sum() for v in g.values()))
    run.step()
    for k, w in weights(run).items():
        assert np.allclose(w, before[k] - 0.5 * g[k] / norm, atol=1e-6)
    assert list(run.measure()) == ["l"]


# ---- phases and settings ----------------------------------------------------------------------------------------------

def test_phases():
    plan = plan_of("""
      phase warm { epochs = 2
        minimize cross_entropy(model(x), y) wrt model.out using sgd(0.1, momentum = 0.9) }
      phase main { epochs = 5; patience = 3; batch = 16
        minimize cross_entropy(model(x), y) using adam(1e-2)
        until accuracy >= 0.9 and loss < 1 }
      measure accuracy(model(x), y)""")
    warm, main = plan.phases
    assert (warm.name, warm.settings["epochs"], warm.settings["batch"], warm.until) == ("warm", 2, 8, None)
    assert main.settings["patience"] == 3 and main.settings["batch"] == 16 and plan.settings["patience"] is None
    assert main.until({"accuracy": 0.95, "loss": 0.5}) and not main.until({"accuracy": 0.95, "loss": 2.0})
    assert main.until({"accuracy": 0.95, "val_loss": 0.5, "loss": 3.0})
    run = Run(plan)
    first = weights(run)
    run.step(0)
    assert np.array_equal(weights(run)["hidden.w"], first["hidden.w"]) and run["model.out.w.sgd.v"].any()
    assert not run["model.out.w.adam.m"].any()
    run.step(1, batch=[f[:16] for f in DATA.values()])
    assert not np.array_equal(weights(run)["hidden.w"], first["hidden.w"])


def test_overrides():
    plan = plan_of("epochs = 3\n width = 2.0\n minimize cross_entropy(model(x), y) using sgd(width)",
                   overrides={"epochs": 7, "width": 0.5, "seed": 4, "holdout": 8})
    assert plan.settings["epochs"] == 7 and plan.settings["seed"] == 4 and plan.settings["holdout"] == 8
    assert "did you mean `epochs`" in error_of("epochs = 3\n minimize cross_entropy(model(x), y) using sgd(0.1)", overrides={"epoch": 1})
    assert "computed" in error_of("n = 1 + 1\n minimize cross_entropy(model(x), y) using sgd(0.1 * n)", overrides={"n": 1})


def test_one_small_batch():
    plan = plan_of("minimize cross_entropy(model(x), y) using sgd(0.1)", overrides={"batch": 1000, "limit": 20})
    assert plan.settings["batch"] == 16 and plan.settings["steps"] == 1
    assert plan.module.funcs["step"].args[-1].type.shape == (16,)


# ---- mistakes ---------------------------------------------------------------------------------------------------------

GOOD = "minimize cross_entropy(model(x), y) using sgd(0.1)"


@pytest.mark.parametrize("body, message", [
    ("minimize cross_entropy(model(x), y) using adamm(0.1)", "unknown rule `adamm`"),
    ("minimize cross_entropy(model(x), y) using adamm(0.1)", "did you mean `adam`"),
    ("minimize cross_entropy(model(x), y) using relu(0.1)", "expected a learning rule, got the operation `relu`"),
    ("minimize cross_entropy(model(x), y) using hebb(0.1)", "is no optimiser: it sees `pre`"),
    ("minimize model(x) using sgd(0.1)", "has to be one number, got f32[8, 3]"),
    ("minimize sum(y) using sgd(0.1)", "has to be a float"),
    ("minimize mean(x) using sgd(0.1)", "depends on no parameter"),
    ("minimize cross_entropy(stop_gradient(model(x)), y) using sgd(0.1)", "depends on no parameter"),
    ("minimize cross_entropy(model(x), y) wrt model.middle using sgd(0.1)", "no `middle`"),
    ("minimize cross_entropy(model(x), y) wrt x using sgd(0.1)", "`wrt` takes a model"),
    ("minimize cross_entropy(model(x), y) wrt model using sgd(0.1), wrt model.out using sgd(0.1)", "would learn twice"),
    ("minimize cross_entropy(model(x), y) using sgd(rate = 0.1)", "no parameter `rate`"),
    ("minimize cross_entropy(model(x), y) using sgd()", "needs argument `lr`"),
    ("measure accuracy(model(x), y)", "learns nothing"),
    ("epoch = 3\n" + GOOD, "did you mean `epochs`"),
    ("epochs = 0\n" + GOOD, "expected a positive whole number"),
    ("holdout = 1.5\n" + GOOD, "expected a share"),
    ("holdout = 40\n" + GOOD, "none would be left"),
    ("epochs = 1\n epochs = 2\n" + GOOD, "set twice"),
    (GOOD + "\n measure accuracy(model(y), y)", "argument `x`"),
    ("phase a { epochs = 1 }\n" + "phase b { " + GOOD + "}", "learns nothing"),
    ("phase a { " + GOOD + " }\n phase a { " + GOOD + " }", "two phases called `a`"),
    ("phase a { phase b { " + GOOD + " } }", "a phase cannot stand in another"),
    ("scan t in 0..3 { " + GOOD + " }", "`minimize` cannot stand in a loop"),
    (GOOD + "\n if step > 2 { measure accuracy(model(x), y) }", "`measure` cannot stand in a branch"),
    (GOOD.replace("(x)", "(data.x)"), "`x` is the batch's part of it"),
    ("model.hidden.w = 3\n" + GOOD, "only learning rules change it"),
    ("state h: f32[3] = 0\n h = model(x)\n" + GOOD, "`h` is f32[3], got f32[8, 3]"),
    ("state h: Mlp = model\n h = 3\n" + GOOD, "`h` is a layer Mlp, got the number 3"),
    (GOOD + "\n until accurcy > 0.5\n measure accuracy(model(x), y)", "did you mean `accuracy`"),
])
def test_errors(body, message):
    text = error_of(body)
    assert message in text and "test.nn:" in text


def test_dataset_error_is_shown_where_it_is_named():
    text = error_of('train t { model = Mlp(6, 5, 3); data = dataset("tyo"); ' + GOOD + " }")
    assert "unknown data set 'tyo'" in text and "did you mean 'toy'" in text and "test.nn:" in text
    assert "has no data" in error_of("train t { model = Mlp(6, 5, 3)\n " + GOOD + " }")


def test_unknown_block():
    assert "did you mean `t`" in error_of("train t { }", name="tt") or "it has: t" in error_of("train t { }", name="tt")
