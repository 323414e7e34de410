"""std/rules.nn: what each rule does, in a setting small enough to know the answer, and that every backend computes the same.

That the rules are their formulas for one step is in test_rules.py; here they run for a while, on the cpu.
"""
from __future__ import annotations

import numpy as np
import pytest
from engram.codegen.opencl import device as devices
from engram.compiler import driver
from engram.compiler.diagnostics import CompileError
from engram.datasets import Dataset, dataset
from engram.session import load_program, train_plan
from engram.train import Trainer

pytest.importorskip("llvmlite")
f4 = np.float32


def plan(layers, body, **fields):
    """The plan of a train block over these arrays."""
    text = f'import "std/nn.nn"\n{layers}\ntrain t {{\n data = dataset("mine")\n holdout = 0\n{body}\n}}\n'
    return train_plan(load_program("t.nn", text), "t", given={"mine": Dataset("mine", fields)})


def learn(layers, body, start=None, **fields):
    """Trains on the cpu and returns the values by name."""
    p = plan(layers, body, **fields)
    trainer = Trainer(p, "cpu", 1)
    trainer.initialise(0)
    if start:
        trainer.set_values(start, kinds=("param",))
    trainer.run(p.dataset.fields, final=False)
    return trainer.values(("param", "own")), trainer


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def components():
    """Samples, and their principal components, strongest first."""
    rng = np.random.default_rng(1)
    basis, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    x = rng.standard_normal((2048, 6)) @ (basis * [3, 2, 1.3, 0.5, 0.4, 0.3]).T
    values, vectors = np.linalg.eigh(x.T @ x)
    return x.astype(f4), vectors[:, ::-1].T


# ---- correlation ------------------------------------------------------------------------------------------------------

LINEAR = "model = Linear({}, {}, bias = false)\n batch = {}\n epochs = {}\n measure size = mean(model(x))\n"


def test_hebb_grows_along_the_first_component(components):
    x, v = components
    w, _ = learn("", LINEAR.format(6, 1, 64, 2) + "learn model by hebb(0.01)", x=x)
    assert abs(cosine(w["w"][:, 0], v[0])) > 0.99 and np.linalg.norm(w["w"]) > 50


def test_oja_finds_the_first_component_and_stays_at_unit_length(components):
    x, v = components
    w, _ = learn("", LINEAR.format(6, 1, 64, 15) + "learn model by oja(linear_decay(step, steps, 0.02))", x=x)
    assert abs(cosine(w["w"][:, 0], v[0])) > 0.999 and abs(np.linalg.norm(w["w"]) - 1) < 0.02


def test_sanger_finds_the_kth_component(components):
    x, v = components
    w, _ = learn("", LINEAR.format(6, 3, 64, 60) + "learn model by sanger(linear_decay(step, steps, 0.02))", x=x)
    for k in range(3):
        assert abs(cosine(w["w"][:, k], v[k])) > 0.99 and abs(np.linalg.norm(w["w"][:, k]) - 1) < 0.05, k


def test_bcm_makes_units_selective():
    """Four patterns that overlap: every unit starts by answering to all of them and ends by answering to one."""
    patterns = np.array([[1, 0.4, 0.1, 0.4], [0.4, 1, 0.4, 0.1], [0.1, 0.4, 1, 0.4], [0.4, 0.1, 0.4, 1]], f4)
    x = patterns[np.random.default_rng(0).integers(0, 4, 4000)]
    w, _ = learn("", "model = Dense(4, 6)\n batch = 10\n epochs = 10\n learn model by bcm(0.03, rate = 0.1)\n measure m = mean(model(x))",
                 start={"w": np.full((4, 6), 0.3, f4) + 0.05 * np.random.default_rng(1).standard_normal((4, 6)).astype(f4), "b": np.zeros(6, f4)}, x=x)
    out = np.maximum(patterns @ w["w"], 0)
    selectivity = 1 - out.mean(0) / out.max(0)                      # 0: the same for all; 3/4: for one of four alone
    assert (selectivity > 0.7).all()
    assert len(set(out.argmax(0))) > 1                              # and not all to the same one


# ---- competition ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("rule", ["krotov_hopfield(0.02 * (1 - step / steps))", "soft_hebb(0.05, t = 8.0)"])
def test_competing_units_come_to_unit_length_and_share_the_clusters(rule):
    rng = np.random.default_rng(2)
    centres = np.linalg.qr(rng.standard_normal((8, 8)))[0][:4]
    x = (centres[rng.integers(0, 4, 2000)] + 0.1 * rng.standard_normal((2000, 8))).astype(f4)
    start = {"w": (0.5 * rng.standard_normal((8, 8))).astype(f4)}
    w, _ = learn("", LINEAR.format(8, 8, 50, 30) + f"learn model by {rule}", start=start, x=x)
    near = centres @ (w["w"] / np.linalg.norm(w["w"], axis=0))
    won = set((x @ w["w"]).argmax(1))                               # units that win nothing learn nothing
    lengths = np.linalg.norm(w["w"], axis=0)[sorted(won)]
    assert (near.max(1) > 0.95).all() and np.abs(lengths - 1).max() < 0.15, (near.max(1), lengths)


# ---- error and reward -------------------------------------------------------------------------------------------------

def test_delta_is_least_squares():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((512, 5)).astype(f4)
    t = (x @ rng.standard_normal((5, 2)) + [1.0, -2.0] + 0.1 * rng.standard_normal((512, 2))).astype(f4)
    w, _ = learn("", "model = Linear(5, 2)\n batch = 64\n epochs = 40\n learn model by delta(linear_decay(step, steps, 0.3)) given t\n measure e = mean(model(x))",
                 x=x, t=t)
    best = np.linalg.lstsq(np.c_[x, np.ones(512)], t, rcond=None)[0]
    assert np.abs(w["w"] - best[:5]).max() < 0.01 and np.abs(w["b"] - best[5]).max() < 0.01


BANDIT = """
layer Arms(i, o) {                                   # draws an arm; its fn binds what was added to the units
  param w: f32[i, o] = 0
  fn (x: f32[B, i]) -> f32[B, o] {
    let noise = NOISE
    let u = x @ w
    one_hot(argmax(u + noise, dim = 1), o)
  }
}
layer Two() { arms = Arms(3, 4)
  fn (x: f32[B, 3]) -> f32[B, 4] { arms(x) } }
"""
BEST = [2, 0, 3]                                     # the arm that pays, for each of three contexts


def bandit(noise, rule):
    context = np.random.default_rng(4).integers(0, 3, 2000)
    w, _ = learn(BANDIT.replace("NOISE", noise), f"""model = Two(); batch = 20; epochs = 4
      let arm = model(x)
      let reward = sum(arm * pays, dim = 1)
      learn model.arms by {rule}
      measure paid = mean(reward)""", x=np.eye(3, dtype=f4)[context], pays=np.eye(4, dtype=f4)[np.array(BEST)[context]])
    return w["arms.w"].argmax(1).tolist()


def test_reward_hebb_learns_a_bandit():
    assert bandit("-log(-log(uniform(0, 1, size = [B, o]) + 1e-9) + 1e-9)", "reward_hebb(0.5) given reward") == BEST


def test_node_perturbation_learns_a_bandit():
    assert bandit("0.5 * normal(0, 1, size = [B, o])", "node_perturbation(0.1, 0.5) given reward = reward, baseline = 0.25 * ones(batch)") == BEST


# ---- readouts ---------------------------------------------------------------------------------------------------------

NET = """
layer Net(n) {
  hidden = Dense(64, n)
  out    = Linear(n, 10)
  fn (x: f32[B, 64]) -> f32[B, 10] { out(hidden(x)) }
}
"""


@pytest.fixture(scope="module")
def digits():
    d = dataset("digits").fields
    return {"x": d["x"][:1500], "y": d["y"][:1500]}, d["x"][1500:], d["y"][1500:]


def hidden(w, x):
    return np.maximum(x @ w["hidden.w"] + w["hidden.b"], 0)


HEAD = "model = Net(100); batch = 50; epochs = 10\n learn model.hidden by {} given y\n measure m = mean(model(x))"


@pytest.mark.parametrize("rule", ["three_factor(10, 0.1)", "three_factor(10, 0.1, feedback = true)", "pred(10, 3e-3)", "predsim(10, 3e-3)"])
def test_readouts_read_digits(digits, rule):
    fields, x, y = digits
    name = rule.partition("(")[0]
    w, _ = learn(NET, HEAD.format(rule), **fields)
    z = hidden(w, x) @ w[f"hidden.{name}.m"].T + w.get(f"hidden.{name}.c", 0)
    assert (z.argmax(1) == y).mean() > 0.85


def test_separate_feedback_comes_to_agree_with_the_readout(digits):
    before, _ = learn(NET, HEAD.replace("epochs = 10", "epochs = 1").format("three_factor(10, 0.0, feedback = true)"), **digits[0])
    after, _ = learn(NET, HEAD.format("three_factor(10, 0.1, feedback = true, shrink = 1e-2)"), **digits[0])
    m, f = "hidden.three_factor.m", "hidden.three_factor.f"
    assert abs(cosine(before[m].ravel(), before[f].ravel())) < 0.1 and cosine(after[m].ravel(), after[f].ravel()) > 0.9
    without, _ = learn(NET, HEAD.replace("epochs = 10", "epochs = 1").format("three_factor(10, 0.1)"), **digits[0])
    assert f not in without


def test_three_factor_is_pred_with_sgd(digits):
    """Written out and derived: the same numbers to 1e-5 after an epoch; and for tanh units, told their slope."""
    fields = {k: v[:300] for k, v in digits[0].items()}
    for act, slope in (("relu", ""), ("tanh", ", slope = fn (h) { 1 - h * h }")):
        net = NET.replace("Dense(64, n)", f"Dense(64, n, act = {act})")
        pred = "rule pred_m(classes, lr) sees out: f32[B, n] given label: int[B] {\n own m: f32[classes, n] = normal(0, 1 / sqrt(n))\n" \
               " minimize cross_entropy(out @ m.T, label) using sgd(lr, momentum = 0.9)\n}\n"
        a = plan(net, HEAD.format(f"three_factor(10, 0.05{slope})"), **fields)
        b = plan(net + pred, HEAD.format("pred_m(10, 0.05)"), **fields)
        ends, m = [], None
        for p, name in ((a, "three_factor"), (b, "pred_m")):
            t = Trainer(p, "cpu", 1)
            t.initialise(0)
            if name == "pred_m":
                t.set_values({**t.values(("own",)), "hidden.pred_m.m": m}, kinds=("own",))
            m = t.values(("own",))[f"hidden.{name}.m"]
            t.run(fields, final=False)
            w = t.values(("param", "own"))
            ends.append([w["hidden.w"], w["hidden.b"], w[f"hidden.{name}.m"]])
        for p, q in zip(*ends):
            assert np.abs(p - q).max() <= 1e-5 * np.abs(q).max()


def test_predsim_makes_the_similarities_those_of_the_classes(digits):
    fields, x, y = digits

    def match(rule):
        w, _ = learn(NET, HEAD.format(rule), **fields)
        h = hidden(w, x)
        s = np.corrcoef(h)
        same = y[:, None] == y[None]
        return s[same].mean() - s[~same].mean()

    assert match("predsim(10, 3e-3)") > match("pred(10, 3e-3)") + 0.1


def test_feedback_alignment_teaches_what_is_below_and_says_that_it_is_not_local(digits):
    body = """model = Net(20); batch = 50; epochs = 8
      let z = model(x)
      LEARN
      minimize cross_entropy(z, y) wrt model.out using sgd(0.3)
      measure accuracy(z, y)"""
    aligned = "learn model.hidden by feedback_alignment(0.5) given (softmax(z, dim = -1) - one_hot(y, 10)) / batch"
    scores = []
    for line in (aligned, ""):
        _, t = learn(NET, body.replace("LEARN", line), **digits[0])
        scores.append(t.measure({"x": digits[1], "y": digits[2]})["accuracy"])
    assert scores[0] > scores[1] + 0.05
    p = plan(NET, body.replace("LEARN", aligned), **digits[0])
    assert {r["verdict"] for r in driver.lower(p.module, "definition").attrs["locality"]} == {"non-local"}


def test_forward_forward_tells_real_from_made_up(digits):
    """Digits with their own label drawn in, against digits with another: goodness tells which, for samples never seen."""
    rng = np.random.default_rng(5)

    def labelled(x, y):
        return np.concatenate([3 * np.eye(10, dtype=f4)[y], x], 1)

    fields, x, y = digits
    other = (fields["y"] + rng.integers(1, 10, len(fields["y"]))) % 10
    both = np.concatenate([labelled(fields["x"], fields["y"]), labelled(fields["x"], other)])
    real = np.concatenate([np.ones(1500), np.zeros(1500)]).astype(f4)
    w, _ = learn(NET.replace("64", "74"), "model = Net(150); batch = 100; epochs = 25\n learn model.hidden by forward_forward(3e-3) given real\n measure m = mean(model(x))",
                 x=both, real=real)
    goodness = np.stack([(hidden(w, labelled(x, np.full(len(x), k))) ** 2).mean(1) for k in range(10)], 1)
    assert (goodness.argmax(1) == y).mean() > 0.8


# ---- spikes -----------------------------------------------------------------------------------------------------------

def test_stdp_goes_by_the_order_of_spikes():
    """Input 0 fires two steps before the unit, input 1 two steps after, input 2 never; the unit fires when it is told to (input 3)."""
    x = np.zeros((8, 20, 4), f4)                                    # samples, time, inputs
    x[:, [3, 13], 0] = 1
    x[:, [5, 15], 3] = 1
    x[:, [7, 17], 1] = 1
    layer = """
layer Told() {
  param w: f32[4, 1] = 0.5
  fn (xs: f32[T, B, 4]) -> f32[T, B, 1] { xs[:, :, 3 : 4] }
}
"""
    w, _ = learn(layer, "model = Told(); batch = 8; epochs = 1\n let spikes = model(transpose(x, 0, 1))\n learn model by stdp(0.1, 0.12, tau_pre = 3.0, tau_post = 3.0)\n"
                        " measure rate = mean(spikes)", x=x)
    grown = w["w"][:, 0] - 0.5
    t = np.exp(-1 / 3)
    pairs = lambda gaps: sum(t ** g for g in gaps)                  # noqa: E731  (of one spike train with the other)
    assert grown[0] == pytest.approx(0.1 * pairs([2, 12, 2]) - 0.12 * pairs([8]), abs=1e-5) and grown[0] > 0
    assert grown[1] == pytest.approx(0.1 * pairs([8]) - 0.12 * pairs([2, 12, 2]), abs=1e-5) and grown[1] < 0
    assert grown[2] == 0


# ---- every layer, every backend ---------------------------------------------------------------------------------------

LAYERS = """
layer Dense2() { l = Dense(6, 5)
  fn (x: f32[B, 6]) { l(x) } }
layer Lin2() { l = Linear(6, 5)
  fn (x: f32[B, 6]) { l(x) } }
layer Conv2() { l = Conv2d(2, 3, 3, stride = 2, padding = 1)
  fn (x: f32[B, 6]) { l(reshape(concat([x, x * x, x[:, :3] - 1, x[:, 3:], 0.5 - x, x, x[:, :2]], dim = 1), [B, 2, 4, 4])) } }
layer Pooled(c, o) {
  param w: f32[o, c, 3, 3] = normal(0, 0.3)
  param b: f32[o] = 0
  fn (x: f32[B, c, H, W]) { let u = conv2d(x, w, padding = 1) + b[:, none, none]; relu(max_pool2d(u, 2)) } }
layer Pool2() { l = Pooled(2, 3)
  fn (x: f32[B, 6]) { l(reshape(concat([x, x * x, x[:, :3] - 1, x[:, 3:], 0.5 - x, x, x[:, :2]], dim = 1), [B, 2, 4, 4])) } }
layer Cell(i, n) {
  param w: f32[i, n] = normal(0, 0.5)
  param b: f32[n] = 0
  cache v: f32[B, n] = 0
  fn (x: f32[B, i]) -> f32[B, n] { let u = 0.5 * v + x @ w + b; v = u; relu(u) } }
layer Seq2() { l = Cell(6, 5)
  fn (x: f32[B, 6]) { scan t in 0..4 { let s = l(x * (1 + t)); yield s } } }
layer Noisy(i, o) {
  param w: f32[i, o] = normal(0, 0.5)
  fn (x: f32[B, i]) -> f32[B, o] { let noise = 0.1 * normal(0, 1, size = [B, o]); tanh(x @ w + noise) } }
layer Noisy2() { l = Noisy(6, 5)
  fn (x: f32[B, 6]) { l(x) } }
layer Rec2(cell) { l = cell
  fn (x: f32[B, 6]) { l(stack([x, x * x, -x]))[0] } }
"""
MAPS = ["Dense2()", "Conv2()", "Seq2()"]
CASES = [
    *[(m, r) for m in [*MAPS, "Pool2()", "Lin2()"] for r in ("hebb(0.1, 0.1)",)],
    *[(m, r) for m in MAPS for r in ("oja(0.1)", "sanger(0.1)", "krotov_hopfield(0.1)", "soft_hebb(0.1, 2.0, anti = true)")],
    *[(m, r) for m in ("Seq2()", "Pool2()") for r in ("bcm(0.1)", "reward_hebb(0.1) given f32(y == 1)")],
    ("Dense2()", "delta(0.1) given one_hot(y, 5)"), ("Seq2()", "delta(0.1) given 0.1 * ones(4, batch, 5)"), ("Conv2()", "delta(0.1) given 0.1 * ones(batch, 3, 2, 2)"),
    *[(m, "three_factor(3, 0.1, feedback = true) given y") for m in ("Dense2()", "Lin2()", "Seq2()")],
    *[(m, r) for m in ("Dense2()", "Pool2()") for r in ("pred(3, 0.1) given y", "predsim(3, 0.1) given y", "forward_forward(0.1) given f32(y == 1)")],
    *[(m, "pred(3, 0.1, features = fn (h) { h[-1] }) given y") for m in ("Rec2(RNN(6, 5))", "Rec2(GRU(6, 5))", "Rec2(LSTM(6, 5))")],
    ("Noisy2()", "node_perturbation(0.1, 0.1) given reward = f32(y == 1), baseline = 0.3 * ones(batch)"),
    ("Seq2()", "stdp(0.1, 0.08)"), ("Dense2()", "feedback_alignment(0.1) given one_hot(y, 5) - 0.2"), ("Conv2()", "feedback_alignment(0.1) given one_hot(y, 5) - 0.2"),
]


def small(model, rule):
    rng = np.random.default_rng(6)
    return plan(LAYERS, f"model = {model}; batch = 8\n learn model.l by {rule}\n measure m = mean(model(x))",
                x=rng.uniform(-1, 1, (16, 6)).astype(f4), y=rng.integers(0, 3, 16).astype(np.int32))


@pytest.mark.parametrize("model, rule", CASES, ids=lambda v: v.split(" given")[0])
def test_backends_agree(model, rule):
    p = small(model, rule)
    runs = []
    for backend in ("interp", "cpu", *(("opencl",) if devices.available()[0] else ())):
        program = driver.build(p.module, backend, threads=2 if backend == "cpu" else None)
        slots = first = [np.asarray(program.to_host(s)) for s in program.call("init", [np.array(5, np.uint64)])]
        for k in range(2):
            args = [program.to_device(np.array(s)) for s in slots]
            args += [np.array(k, np.int64), np.array(0, np.int64), np.array(7, np.uint64), *(v[8 * k:8 * k + 8] for v in p.dataset.fields.values())]
            slots = [np.asarray(program.to_host(s)) for s in program.call("step", args)[:len(slots)]]
        runs.append(slots)
    names = [s.path for s in p.slots]
    changed = [n for n, a, b in zip(names, first, runs[0]) if not np.array_equal(a, b)]
    assert any(n in changed for n, s in zip(names, p.slots) if s.kind == "param")
    for other in runs[1:]:
        for n, a, b in zip(names, runs[0], other):
            assert np.isfinite(a).all()
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5, err_msg=n)


def test_hebbs_product_of_a_convolution():
    """The sum over samples and places of input patches times outputs."""
    p = small("Conv2()", "hebb(0.5)")
    program = driver.build(p.module, "interp")
    slots = program.call("init", [np.array(5, np.uint64)])
    w0, b0 = (np.asarray(s, np.float64) for s in slots[:2])
    x = p.dataset.fields["x"][:8].astype(np.float64)
    after = program.call("step", [*slots, np.array(0, np.int64), np.array(0, np.int64), np.array(7, np.uint64), p.dataset.fields["x"][:8], p.dataset.fields["y"][:8]])
    image = np.concatenate([x, x * x, x[:, :3] - 1, x[:, 3:], 0.5 - x, x, x[:, :2]], 1).reshape(8, 2, 4, 4)
    image = np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1)))
    dw = np.zeros_like(w0)
    for r in range(2):
        for c in range(2):
            patch = image[:, :, 2 * r:2 * r + 3, 2 * c:2 * c + 3]
            out = np.einsum("bihw,oihw->bo", patch, w0) + b0
            dw += np.einsum("bihw,bo->oihw", patch, out)
    assert np.allclose(after[0], w0 + 0.5 * dw / 32, atol=1e-5)


# ---- what is missing is said ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("model, rule, message", [
    ("Noisy2()", "oja(0.1)", "rule `oja` sees `u`, which layer `model.l` (Noisy) does not have"),
    ("Noisy2()", "oja(0.1)", "a top-level `let u = ..` in its `fn` would give it"),
    ("Rec2(GRU(6, 5))", "hebb(0.1)", "it has: pre, out, us, xs, h0, wx, wh, bx, bh"),
    ("Seq2()", "pred(3, 0.1, features = fn (h) { h[-1] }) given y", "a local loss cannot learn a layer with a cache"),
    ("Conv2()", "three_factor(3, 0.1) given y", "`out`, which rule `three_factor` sees, is f32[8, 3, 2, 2]"),
    ("Dense2()", "node_perturbation(0.1, 0.1) given f32(y), f32(y)", "sees `noise`, which layer `model.l` (Dense) does not have"),
    ("Dense2()", "reward_hebb(0.1) given ones(3)", "in rule `reward_hebb`"),
])
def test_what_is_missing_is_said(model, rule, message):
    with pytest.raises(CompileError) as e:
        small(model, rule)
    assert message in str(e.value), str(e.value)
