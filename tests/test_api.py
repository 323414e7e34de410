"""`engram.compile` and `engram.Model`: the contract with Python callers."""
from __future__ import annotations

import engram as eg
import numpy as np
import pytest

PROGRAM = """
fn matmul(x: f32[n, d], y: f32[d, k]) -> f32[n, k] { x @ y }
fn energy(w: f32[n, n], s: f32[n]) -> f32 { -0.5 * sum(s * (w @ s)) }
fn power(x: f32[..], n = 2) -> f32[..] { x ** n }
fn nested(x: f32[n]) -> (f32[n], (f32, f32[n])) { (x + 1, (sum(x), x * 2)) }
fn wide(x: float[n]) -> float[n] { x / 3 }
fn count(x: int[n]) -> i64 { sum(i64(x)) }
fn noise(n, key: key) -> f32[n] { normal(0, 1, size = [n], key = key) }
fn at(x: f32[n], i: i64) -> f32 { x[i] }
"""
DIGITS = "examples/digits.nn"


@pytest.fixture(scope="module")
def p():
    return eg.compile(PROGRAM)


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def digits():
    d = eg.dataset("digits").fields
    order = np.random.default_rng(0).permutation(len(d["x"]))
    return d["x"][order], d["y"][order]


@pytest.fixture
def mlp(request):
    return eg.Model(request.config.rootpath / DIGITS, "Mlp", 64, 32, 10, seed=0)


# ---- functions ---------------------------------------------------------------------------------------------------------

def test_call(p, rng):
    x, y = rng.normal(size=(3, 4)), rng.normal(size=(4, 5))
    out = p.matmul(x, y)
    assert out.dtype == np.float32 and np.allclose(out, x @ y, atol=1e-5)
    assert np.allclose(p.matmul(x[:2], y=y[:, :1]), x[:2] @ y[:, :1], atol=1e-5)      # another specialisation
    assert p["matmul"] is p.matmul


def test_numbers_lists_defaults_and_tuples(p):
    assert p.power(3.0) == 9.0 and p.power([1, 2], n=3).tolist() == [1, 8] and p.power(2.0, 3).shape == ()
    a, (b, c) = p.nested([1, 2])
    assert a.tolist() == [2, 3] and b == 3 and c.tolist() == [2, 4]


def test_dtypes(p):
    assert p.wide(np.ones(2)).dtype == np.float64 and p.wide(np.ones(2, np.float32)).dtype == np.float32
    assert p.count(np.array([1, 2], np.int8)) == 3


def test_keys():
    p = eg.compile(PROGRAM)
    a, b = p.noise(5), p.noise(5)
    assert a.shape == (5,) and not np.array_equal(a, b)
    assert np.array_equal(p.noise(5, key=7), p.noise(5, key=7))
    assert np.array_equal(eg.compile(PROGRAM).noise(5), a)


def test_signatures_are_compiled_once(p, rng, monkeypatch):
    from engram.compiler import driver
    p.matmul(np.ones((7, 2)), np.ones((2, 2)))
    monkeypatch.setattr(driver, "build", lambda *a, **k: pytest.fail("compiled again"))
    p.matmul(np.zeros((7, 2)), np.ones((2, 2)))


@pytest.mark.parametrize("call, error, message", [
    (lambda p: p.energi, AttributeError, "did you mean 'energy'"),
    (lambda p: p["nope_at_all"], KeyError, "it has: matmul"),
    (lambda p: p.matmul(np.ones((2, 2))), eg.ArgumentError, "missing argument y"),
    (lambda p: p.matmul(1, 2, 3), eg.ArgumentError, r"takes 2 arguments \(x, y\), got 3"),
    (lambda p: p.matmul(np.ones((2, 2)), z=1), eg.ArgumentError, "no parameter 'z'"),
    (lambda p: p.matmul(np.ones(2), np.ones((2, 2))), eg.ArgumentError, r"argument x: expected f32\[n, d\], got shape \[2\]"),
    (lambda p: p.matmul(np.ones((2, 3)), np.ones((2, 3))), eg.CompileError, r"argument `y` of `matmul` is f32\[2, 3\], expected f32\[3, k\]"),
    (lambda p: p.matmul(np.full((2, 2), 1e39), np.ones((2, 2))), eg.ArgumentError, r"argument x: the value 1e\+39 does not fit f32"),
    (lambda p: p.count([1.5]), eg.ArgumentError, r"argument x: expected int, got f64\[1\]"),
    (lambda p: p.grad("energy", wrt="q"), ValueError, "no parameter 'q'"),
    (lambda p: p.grad("matmul")(np.ones((2, 2)), np.ones((2, 2))), eg.CompileError, "only a scalar can be differentiated"),
    (lambda p: p.vjp("matmul")(np.ones((2, 2)), np.ones((2, 2))), eg.ArgumentError, "cotangent= is missing"),
])
def test_mistakes(p, call, error, message):
    with pytest.raises(error, match=message):
        call(p)


def test_run_time_errors_point_at_the_line(p):
    assert p.at([1, 2, 3], 1) == 2
    with pytest.raises(eg.RuntimeError_, match=r"<string>:9:.*\n.*x\[i\]"):
        p.at([1, 2, 3], 10)


def test_wrong_backend():
    with pytest.raises(ValueError, match="expected one of interp, cpu, opencl"):
        eg.compile(PROGRAM, backend="gpu")


def test_derivatives(p, rng):
    w, s = rng.normal(size=(4, 4)), rng.normal(size=4)
    expected_s, expected_w = -0.5 * (w + w.T) @ s, -0.5 * np.outer(s, s)
    assert np.allclose(p.grad("energy", wrt="s")(w, s), expected_s, atol=1e-5)
    assert np.allclose(p.grad("energy")(w, s), expected_w, atol=1e-5)
    gs, gw = p.grad("energy", wrt=["s", "w"])(w, s)
    assert np.allclose(gs, expected_s, atol=1e-5) and np.allclose(gw, expected_w, atol=1e-5)
    v, g = p.value_and_grad("energy", wrt="s")(w, s)
    assert np.allclose(v, -0.5 * s @ w @ s, atol=1e-5) and np.allclose(g, expected_s, atol=1e-5)


def test_vjp_and_jvp(p, rng):
    x, y, c = rng.normal(size=(3, 4)), rng.normal(size=(4, 5)), rng.normal(size=(3, 5))
    out, dy = p.vjp("matmul", wrt="y")(x, y, cotangent=c)
    assert np.allclose(out, x @ y, atol=1e-5) and np.allclose(dy, x.T @ c, atol=1e-5)
    _, (dx, _) = p.vjp("matmul", wrt=["x", "y"])(x, y, cotangent=c)
    assert np.allclose(dx, c @ y.T, atol=1e-5)
    t, u = rng.normal(size=(3, 4)), rng.normal(size=(4, 5))
    assert np.allclose(p.jvp("matmul", wrt="x")(x, y, tangent=t)[1], t @ y, atol=1e-5)
    assert np.allclose(p.jvp("matmul", wrt=["y", "x"])(x, y, tangent=(u, t))[1], t @ y + x @ u, atol=1e-5)
    assert p.vjp("at", wrt="x")([1, 2, 3], 1, cotangent=2.0)[1].tolist() == [0, 2, 0]       # integers have no cotangent
    assert p.jvp("at", wrt="x")([1, 2, 3], 1, tangent=[4, 5, 6]) == (2, 5)
    with pytest.raises(eg.ArgumentError, match="i is no float array"):
        p.jvp("at", wrt="i")([1, 2, 3], 1, tangent=1)


@pytest.mark.parametrize("backend", ["interp", "opencl"])
def test_other_backends(backend, p, rng):
    try:
        q = eg.compile(PROGRAM, backend=backend)
        x, y = rng.normal(size=(3, 4)), rng.normal(size=(4, 5))
        assert np.allclose(q.matmul(x, y), p.matmul(x, y), atol=1e-5)
    except eg.BackendUnavailable as e:
        pytest.skip(str(e))


# ---- models ------------------------------------------------------------------------------------------------------------

def test_call_and_predict(mlp, digits):
    x, _ = digits
    w = mlp.parameters
    expected = np.maximum(x @ w["hidden.w"] + w["hidden.b"], 0) @ w["out.w"] + w["out.b"]
    assert np.allclose(mlp(x[:5]), expected[:5], atol=1e-5)
    assert np.allclose(mlp.predict(x[:100], batch_size=32), expected[:100], atol=1e-5)
    assert np.allclose(mlp(x[:5].astype(np.float64)), expected[:5], atol=1e-5)


def test_seeds(mlp, request):
    same, other = (eg.Model(request.config.rootpath / DIGITS, "Mlp", 64, 32, 10, seed=s) for s in (0, 1))
    assert np.array_equal(same.parameters["out.w"], mlp.parameters["out.w"])
    assert not np.array_equal(other.parameters["out.w"], mlp.parameters["out.w"])


def test_parameters(mlp):
    w = mlp.parameters
    assert list(w) == ["hidden.w", "hidden.b", "out.w", "out.b"] and len(w) == 4 and "out.b" in w
    w["out.b"][:] = 7
    assert not np.any(mlp.parameters["out.b"] == 7)                                    # a copy was changed
    w["out.b"] = np.arange(10)
    assert mlp.parameters["out.b"].tolist() == list(range(10))
    with pytest.raises(eg.ArgumentError, match=r"out.b: expected shape \[10\], got \[3\]"):
        w["out.b"] = np.zeros(3)
    with pytest.raises(KeyError, match="did you mean 'out.b'"):
        w["out.bb"]
    with pytest.raises(TypeError):
        del w["out.b"]


def test_summary(mlp, capsys):
    text = mlp.summary()
    assert capsys.readouterr().out == text + "\n" and "hidden.w  f32[64,32]" in text and "2,410 parameters" in text


def test_fit(mlp, digits):
    x, y = digits
    mlp.compile(loss="cross_entropy", optimizer=eg.Adam(3e-3), metrics=["accuracy"])
    h = mlp.fit(x[:1400], y[:1400], epochs=3, batch_size=32, validation_data=(x[1400:], y[1400:]), verbose=0)
    assert set(h.history) == {"loss", "accuracy", "val_loss", "val_accuracy"} and h.epoch == [0, 1, 2]
    assert h.history["loss"][2] < h.history["loss"][0] / 2 and h.history["val_accuracy"][-1] > 0.85
    got = mlp.evaluate(x[1400:], y[1400:])
    assert list(got) == ["loss", "accuracy"] and got["accuracy"] == pytest.approx(h.history["val_accuracy"][-1], abs=1e-6)
    assert got["accuracy"] == pytest.approx(np.mean(mlp.predict(x[1400:]).argmax(1) == y[1400:]), abs=1e-6)
    more = mlp.fit(x[:1400], y[:1400], epochs=1, validation_split=0.1, verbose=0)        # goes on from here
    assert more.history["loss"][0] < h.history["loss"][1]


@pytest.mark.parametrize("optimizer", [eg.SGD(0.1, momentum=0.9, nesterov=True), eg.AdamW(3e-3), eg.RMSprop(1e-3), eg.Lion(1e-3),
                                       eg.Adam(eg.expr("cosine(step, steps, 1e-2)")), eg.rule("adagrad", lr=0.03)], ids=lambda o: o.name)
def test_optimizers(mlp, digits, optimizer):
    mlp.compile(loss="cross_entropy", optimizer=optimizer)
    h = mlp.fit(*digits, epochs=3, verbose=0).history["loss"]
    assert h[2] < h[0] * 0.6


def test_fit_twice_equals_the_optimizer_going_on(request, digits):
    x, y = digits[0][:320], digits[1][:320]

    def train(*epochs):
        m = eg.Model(request.config.rootpath / DIGITS, "Mlp", 64, 16, 10, seed=0)
        m.compile(loss="cross_entropy", optimizer=eg.SGD(0.1, momentum=0.9))
        for e in epochs:
            m.fit(x, y, epochs=e, shuffle=False, verbose=0)
        return m.parameters["out.w"]

    assert np.array_equal(train(2), train(1, 1))


def test_fit_equals_a_train_block(request, digits):
    """The same data, seed and settings give the same weights as the language's own train block."""
    x, y = digits[0][:256], digits[1][:256]
    m = eg.Model(request.config.rootpath / DIGITS, "Mlp", 64, 16, 10, seed=3)
    m.compile(loss="cross_entropy", optimizer=eg.Adam(1e-2))
    m.fit(x, y, epochs=2, batch_size=64, verbose=0)
    from engram.session import load_program, train_plan
    from engram.train import Trainer
    text = (request.config.rootpath / DIGITS).read_text().split("train digits")[0]
    program = load_program("x.nn", text + 'train t { model = Mlp(64, 16, 10); data = dataset("mine"); batch = 64; epochs = 2; seed = 3\n'
                                          "  holdout = 0; minimize cross_entropy(model(x), y) using adam(1e-2) }\n")
    trainer = Trainer(train_plan(program, "t", given={"mine": eg.Dataset("mine", {"x": x, "y": y})}))
    trainer.run({"x": x, "y": y})
    assert np.allclose(trainer.values()["out.w"], m.parameters["out.w"], atol=1e-6)


def test_regression_and_binary_losses(digits):
    text = 'import "std/nn.nn"\nlayer Lin(i, o) {\n  l = Linear(i, o)\n  fn (x: f32[B, i]) -> f32[B, o] { l(x) }\n}\nfn half(p: f32[B, o], y: f32[B, o]) -> f32 { 0.5 * mean(square(p - y)) }\n'
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 3))
    target = x @ [[1.0], [-2.0], [0.5]] + 1
    for loss in ("mse", "mae", "half"):
        m = eg.Model(text, "Lin", 3, 1)
        m.compile(loss=loss, optimizer=eg.Adam(0.05), metrics=["mae"] if loss != "mae" else [])
        h = m.fit(x, target, epochs=40, verbose=0)
        assert h.history["loss"][-1] < 0.02 * h.history["loss"][0] + 0.02, loss
    m = eg.Model(text, "Lin", 3, 1)
    m.compile(loss="bce_with_logits", optimizer=eg.Adam(0.05), metrics=["accuracy"])
    m.fit(x, (target > 1).astype(float), epochs=20, verbose=0)
    assert m.evaluate(x, (target > 1).astype(float))["accuracy"] > 0.9


def test_local_rules(request, digits):
    x, y = digits
    m = eg.Model(request.config.rootpath / "examples/digits_local.nn", "Mlp", 64, 64, 10)
    m.compile(learn={"hidden": eg.rule("three_factor", classes=10, lr=1.0), "out": eg.rule("delta", lr=0.03)}, metrics=["accuracy"])
    h = m.fit(x, y, epochs=5, validation_split=0.2, verbose=0)
    assert h.history["val_accuracy"][-1] > 0.85 and "loss" not in h.history


RULED = """
import "std/nn.nn"
layer Noisy(i, o) {
  param w: f32[i, o] = kaiming_uniform(i)
  fn (x: f32[B, i]) -> f32[B, o] { let noise = 0.1 * normal(0, 1, size = [B, o]); x @ w + noise }
}
layer Spiking(i, o) {
  param w: f32[i, o] = uniform(0, 0.1)
  fn (xs: f32[T, B, i]) -> f32[T, B, o] { f32(xs @ w > 0.5) }
}
layer Net(kind) {
  hidden = if kind == "noisy" { Noisy(64, 20) } else { Dense(64, 20) }
  body = [Dense(20, 20)] * 2
  out = Linear(20, 10)
  fn (x: f32[B, 64]) -> f32[B, 10] { x |> hidden |> body |> out }
}
layer Seq() {
  cell = Spiking(64, 20)
  out = Linear(20, 10)
  fn (x: f32[B, 64]) -> f32[B, 10] { out(mean(cell(stack([x, 0 * x, x])), dim = 0)) }
}
"""


@pytest.mark.parametrize("rule", [
    eg.rule("hebb", 1e-3), eg.rule("oja", 1e-3), eg.rule("sanger", 1e-3), eg.rule("bcm", 1e-3), eg.rule("krotov_hopfield", 1e-3),
    eg.rule("soft_hebb", 1e-2, t=2.0), eg.rule("reward_hebb", 0.01, given=eg.expr("f32(argmax(out, dim = 1) == y)")), eg.rule("three_factor", 10, 0.1),
    eg.rule("three_factor", 10, 0.1, feedback=True), eg.rule("pred", 10, 1e-3), eg.rule("predsim", 10, 1e-3), eg.rule("forward_forward", 1e-3),
    eg.rule("node_perturbation", 0.01, 0.1, given={"baseline": eg.expr("zeros(out.shape[0])"), "reward": eg.expr("f32(argmax(out, dim = 1) == y)")}),
    eg.rule("stdp", 1e-3, 1e-3), eg.rule("feedback_alignment", 0.01), eg.rule("delta", 0.01, given=eg.expr("one_hot(y, 20)")),
], ids=lambda r: r.text.partition(",")[0])
def test_every_rule_from_python(digits, rule):
    """Rules for the layers below, Adam for the rest; what has a rule learns by it alone."""
    x, y = digits[0][:256], digits[1][:256]
    m = eg.Model(RULED, *(["Seq"] if rule.name == "stdp" else ["Net", "noisy" if rule.name == "node_perturbation" else "plain"]), threads=1)
    path = "cell" if rule.name == "stdp" else "hidden"
    m.compile(loss="cross_entropy", optimizer=eg.Adam(1e-2), metrics=["accuracy"], learn={path: rule})
    before = dict(m.parameters.items())
    h = m.fit(x, y, epochs=2, verbose=0)
    changed = {k for k, v in m.parameters.items() if not np.array_equal(v, before[k])}
    assert f"{path}.w" in changed and "out.w" in changed and h.history["loss"][-1] < h.history["loss"][0]
    assert ("hidden.accuracy" in h.history) == (rule.name in ("three_factor", "pred", "predsim"))


def test_rules_for_lists_of_layers(digits):
    x, y = digits[0][:256], digits[1][:256]
    m = eg.Model(RULED, "Net", "plain", threads=1)
    m.compile(learn={"hidden": eg.rule("pred", 10, 1e-3), "body.0": eg.rule("three_factor", 10, 0.1), "body.1": eg.rule("pred", 10, 1e-3),
                     "out": eg.rule("delta", 0.01)}, metrics=["accuracy"])
    h = m.fit(x, y, epochs=2, verbose=0)
    assert {"hidden.accuracy", "body.0.accuracy", "body.1.accuracy"} <= set(h.history)
    m.compile(learn={"body": eg.rule("pred", 10, 1e-3)}, loss="cross_entropy", optimizer="adam")
    before = dict(m.parameters.items())
    m.fit(x, y, verbose=0)
    assert all(not np.array_equal(v, before[k]) for k, v in m.parameters.items())
    with pytest.raises(ValueError, match="nothing left for the optimizer"):
        m.compile(learn={p: eg.rule("hebb", 0.1) for p in ("hidden", "body", "out")}, loss="cross_entropy", optimizer="adam")
    with pytest.raises(ValueError, match="rule node_perturbation is given reward, baseline: say what they are"):
        m.compile(learn={"hidden": eg.rule("node_perturbation", 0.1, 0.1)})
    with pytest.raises(TypeError, match="given is eg.expr"):
        eg.rule("hebb", given="y")


def test_callbacks_stop(mlp, digits):
    x, y = digits
    mlp.compile(loss="cross_entropy", optimizer="sgd")
    seen = []

    class Stop:
        def on_epoch_end(self, epoch, logs):
            seen.append((epoch, logs["loss"], mlp.parameters["out.w"].copy()))
            mlp.stop_training = epoch == 1

    h = mlp.fit(x, y, epochs=10, verbose=0, callbacks=[Stop()])
    assert len(h.epoch) == len(seen) == 2 and not np.array_equal(seen[0][2], seen[1][2])
    assert np.array_equal(seen[1][2], mlp.parameters["out.w"])


@pytest.mark.parametrize("compile_, message", [
    (dict(loss="cross_entropi"), "did you mean 'cross_entropy'"), (dict(loss="cross_entropy", optimizer="adan"), "did you mean 'adam'"),
    (dict(), "needs a loss"), (dict(optimizer="adam"), "needs a loss"), (dict(loss="mse", metrics="accuracy"), "expected a list"),
    (dict(loss="mse", metrics=["acuracy"]), "did you mean 'accuracy'"), (dict(loss=lambda a, b: 0), "Python function"),
    (dict(learn={"hidden": eg.rule("three_facto", lr=1)}), "did you mean `three_factor`"), (dict(learn={"hidden": "hebb"}), "expected eg.rule"),
])
def test_compile_mistakes(mlp, compile_, message):
    with pytest.raises((ValueError, TypeError, eg.CompileError), match=message):
        mlp.compile(**compile_)


def test_fit_mistakes(mlp, digits):
    x, y = digits
    with pytest.raises(RuntimeError, match="compile"):
        mlp.fit(x, y)
    mlp.compile(loss="cross_entropy")
    for args, message in (((x, y[:-1]), "expected one row per sample"), ((x[:, :3], y), None), ((x[0], y), "expected f32"),
                          ((x, y.astype(float)), None)):
        with pytest.raises((eg.ArgumentError, eg.CompileError), match=message):
            mlp.fit(*args, verbose=0)
    with pytest.raises(eg.ArgumentError, match="epochs: expected a positive integer"):
        mlp.fit(x, y, epochs=0)


def test_save_and_load(mlp, tmp_path, request):
    mlp.save(tmp_path / "m.safetensors")
    other = eg.Model(request.config.rootpath / DIGITS, "Mlp", 64, 32, 10, seed=1)
    other.load(tmp_path / "m.safetensors")
    assert all(np.array_equal(other.parameters[k], v) for k, v in mlp.parameters.items())
    small = eg.Model(request.config.rootpath / DIGITS, "Mlp", 64, 16, 10, seed=1)
    before = dict(small.parameters)
    with pytest.raises(eg.CheckpointError) as e:
        small.load(tmp_path / "m.safetensors")
    assert [p.split(":")[0] for p in e.value.problems] == ["hidden.w", "hidden.b", "out.w"]
    assert all(np.array_equal(small.parameters[k], v) for k, v in before.items())


def test_torch_names_load(mlp, tmp_path, rng):
    """Linear's `names` say how PyTorch calls and lays out its parameters."""
    from engram.checkpoint import write
    torch_like = {"hidden.weight": rng.normal(size=(32, 64)), "hidden.bias": np.zeros(32), "out.weight": rng.normal(size=(10, 32)), "out.bias": np.ones(10)}
    write(tmp_path / "t.safetensors", {k: v.astype(np.float32) for k, v in torch_like.items()})
    mlp.load(tmp_path / "t.safetensors")
    assert np.allclose(mlp.parameters["hidden.w"], torch_like["hidden.weight"].T) and mlp.parameters["out.b"][0] == 1
    write(tmp_path / "bad.safetensors", {"hidden.weight": np.zeros((32, 64), np.float32), "extra": np.zeros(1, np.float32)})
    with pytest.raises(eg.CheckpointError) as e:
        mlp.load(tmp_path / "bad.safetensors")
    assert e.value.problems == ["missing: hidden.b or hidden.bias [32]", "missing: out.w or out.weight [32, 10]",
                                "missing: out.b or out.bias [10]", "unexpected: extra [1]"]


NAMES = """
import "std/nn.nn"
layer Block(d) {
  attn = Linear(d, d)
  fn (x: f32[B, d]) -> f32[B, d] { x + attn(x) }
  names { attn = "self_attn.proj" }
}
layer Net(d, n) {
  blocks = [Block(d)] * n
  head = Linear(d, d, bias = false)
  fn (x: f32[B, d]) -> f32[B, d] { head(blocks(x)) }
  names { blocks[i] = "h.{i}" | "transformer.h.{i}"; blocks[1].attn.b = "odd"; head.w = "lm_head"; _ = "mask" }
}
"""


def test_names_of_nested_layers_and_lists():
    from engram.foreign_names import foreign_names
    m = eg.Model(NAMES, "Net", 4, 2)
    f = foreign_names(m._instance)
    assert f.keys["blocks.0.attn.w"] == [("h.0.self_attn.proj.weight", True), ("transformer.h.0.self_attn.proj.weight", True)]
    assert f.keys["blocks.1.attn.b"] == [("odd", False)] and f.keys["head.w"] == [("lm_head", False)] and f.ignore == ["mask"]


def test_state_is_kept_between_calls():
    text = 'layer Count() {\n  state n: f32[1] = 0\n  fn (x: f32[1]) -> f32[1] {\n    n = n + x\n    n\n  }\n}\n'
    m = eg.Model(text, "Count")
    assert [float(m(np.ones(1))[0]) for _ in range(3)] == [1, 2, 3] and len(m.parameters) == 0


def test_unknown_layer(request):
    with pytest.raises(eg.CompileError, match="did you mean `Mlp`"):
        eg.Model(request.config.rootpath / DIGITS, "Mpl", 64, 32, 10)
