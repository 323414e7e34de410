"""Layers: cells, calls, initial values, state and caches, sharing; and the large example programs."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engram.compiler import driver
from engram.compiler.ir import TensorType, f32, i64
from engram.compiler.ir.verifier import verify
from engram.frontend import (
    check,
    elaborate_cache_init,
    elaborate_call,
    elaborate_function,
    elaborate_grad,
    elaborate_init,
    instantiate,
    load,
    slots,
)

PROGRAMS = Path(__file__).parent / "programs"
STD = 'import "std/nn.nn"\n'
R = np.random.default_rng(1)


def A(*shape):
    return R.normal(size=shape).astype(np.float32)


def init(inst, seed=0):
    e = elaborate_init(inst)
    verify(e.module)
    values = driver.build(e.module, "interp").call(e.entry, [np.array(seed, np.uint64)])
    return {r.name: np.asarray(v) for r, v in zip(e.results, values)}


def call(inst, values, *arrays, method="", training=False, key=3):
    """A call's result; `values` (by path) are updated with the states and caches it writes."""
    types = [TensorType({"f": f32, "i": i64}[a.dtype.kind], a.shape) for a in arrays]
    e = elaborate_call(inst, types, method=method, training=training)
    verify(e.module)
    fresh = {a.name: a.type for a in e.args if a.kind == "cache" and a.name not in values}
    if fresh:
        c = elaborate_cache_init(inst, fresh)
        made = driver.build(c.module, "interp").call(c.entry, [np.array(0, np.uint64)])
        values.update({r.name: np.asarray(v) for r, v in zip(c.results, made)})
    it = iter(arrays)
    args = [next(it) if a.kind == "arg" else np.array(key, np.uint64) if a.kind == "key" else values[a.name] for a in e.args]
    out = [np.asarray(v) for v in driver.build(e.module, "interp").call(e.entry, args)]
    n = sum(r.kind == "result" for r in e.results)
    values.update({r.name: v for r, v in zip(e.results[n:], out[n:])})
    return e.pack(out[:n])


def layer(name, *args, text=STD, **kwargs):
    return instantiate(load("t.nn", text), name, args, kwargs)


MLP = STD + """
layer Mlp(i, h, o) {
  hidden = Linear(i, h)
  out    = Linear(h, o)
  fn (x: f32[B, i]) -> f32[B, o] { out(relu(hidden(x))) }
}
fn loss(model: Mlp, x: f32[B, i], y: i64[B]) -> f32 { cross_entropy(model(x), y) }
fn sgd(model: Mlp, x: f32[B, i], y: i64[B], lr: f32) -> Mlp { tree_map(fn (p, g) { p - lr * g }, model, grad(loss)(model, x, y)) }
"""


def test_mlp():
    m = layer("Mlp", 6, 5, 3, text=MLP)
    assert [(s.path, str(s.type), s.kind) for s in slots(m)] == [
        ("hidden.w", "f32[6,5]", "param"), ("hidden.b", "f32[5]", "param"), ("out.w", "f32[5,3]", "param"), ("out.b", "f32[3]", "param")]
    v, x = init(m), A(4, 6)
    want = (x @ v["hidden.w"] + v["hidden.b"]).clip(0) @ v["out.w"] + v["out.b"]
    np.testing.assert_allclose(call(m, v, x), want, rtol=1e-5, atol=1e-6)
    bound = 1 / np.sqrt(6)
    assert np.abs(v["hidden.w"]).max() <= bound < 1.2 * np.abs(v["hidden.w"]).max()
    again, other = init(m), init(m, seed=1)
    assert all(np.array_equal(v[k], again[k]) for k in v) and not np.array_equal(v["hidden.w"], other["hidden.w"])


def test_gradient_of_a_layer_is_a_tree():
    p = load("t.nn", MLP)
    m = instantiate(p, "Mlp", (6, 5, 3))
    v, x, y = init(m), A(4, 6), np.array([0, 1, 2, 1])
    types = [m, TensorType(f32, x.shape), TensorType(i64, y.shape)]

    def run(e, *extra):
        verify(e.module)
        it = iter([x, y, *extra])
        out = driver.build(e.module, "interp").call(e.entry, [next(it) if a.kind == "arg" else v[a.name] for a in e.args])
        return e.pack([np.asarray(o) for o in out])

    value, g = run(elaborate_grad(p, "loss", types, value=True))
    assert set(g) == set(v)
    d = 1e-3
    old = v["out.w"][2, 1]
    v["out.w"][2, 1] = old + d
    hi = run(elaborate_function(p, "loss", types))
    v["out.w"][2, 1] = old
    assert abs((hi - value) / d - g["out.w"][2, 1]) < 1e-2
    assert set(run(elaborate_grad(p, "loss", types, wrt=["model.out", "x"]))[0]) == {"w", "b"}
    new = run(elaborate_function(p, "sgd", [*types, TensorType(f32)]), np.float32(0.1) * np.ones((), np.float32))
    np.testing.assert_allclose(new["hidden.b"], v["hidden.b"] - 0.1 * g["hidden.b"], atol=1e-6)


def test_equal_layers_share_functions_and_shared_layers_count_once():
    text = STD + """
    layer Block(d) { a = Linear(d, d); fn (x: f32[B, d]) -> f32[B, d] { relu(a(x)) } }
    layer Net(d, n) {
      blocks = [Block(d)] * n
      same   = blocks[0]
      more   = [Block(d) for _ in 0..2] + [relu, Block(d)]
      fn (x: f32[B, d]) -> f32[B, d] { x |> blocks |> same |> more }
    }
    """
    m = layer("Net", 4, 3, text=text)
    assert [s.path for s in slots(m)][::2] == ["blocks.0.a.w", "blocks.1.a.w", "blocks.2.a.w", "more.0.a.w", "more.1.a.w", "more.3.a.w"]
    e = elaborate_call(m, [TensorType(f32, (2, 4))])
    assert sorted(e.module.funcs) == ["Block.forward", "Linear.forward", "Net.forward"]
    calls = [op.attrs["instance"] for op in e.module.funcs["Net.forward"].walk() if op.name == "func.call"]
    assert calls == ["blocks.0", "blocks.1", "blocks.2", "blocks.0", "more.0", "more.1", "more.3"]
    v, x = init(m), A(2, 4)
    y = x
    for i in ("blocks.0", "blocks.1", "blocks.2", "blocks.0", "more.0", "more.1", "more.3"):
        y = (y @ v[f"{i}.a.w"] + v[f"{i}.a.b"]).clip(0)
    np.testing.assert_allclose(call(m, v, x), y, rtol=1e-4, atol=1e-6)


def test_state_caches_and_training():
    text = STD + """
    layer Count(d) {
      param w: f32[d] = 2
      state calls: i64 = 0
      cache last: f32[B, d] = -1
      fn (x: f32[B, d]) -> f32[B, d] { calls += 1; let y = last * w; last = x; y }
      fn peek() { calls }
    }
    layer Twice(d) { c = Count(d); fn (x: f32[B, d]) { let a = c(x); if sum(x) > 0 { c(2 * x) } else { a } } }
    """
    m = layer("Twice", 2, text=text)
    v = init(m)
    x = np.float32([[1, 2]])
    assert np.allclose(call(m, v, x), [[2, 4]]) and v["c.calls"] == 2 and np.allclose(v["c.last"], [[2, 4]])
    assert np.allclose(call(m, v, -x), [[4, 8]]) and v["c.calls"] == 3 and np.allclose(v["c.last"], [[-1, -2]])
    c = layer("Count", 2, text=text)
    assert call(c, init(c), method="peek") == 0


def test_state_in_loops():
    text = """
    layer Sum(d) {
      state total: f32[d] = 0
      fn (x: f32[d]) { total += x; total }
    }
    layer Run(d) {
      s = Sum(d)
      fn (xs: f32[T, d]) { let ys = scan x in xs { yield s(x) }; ys }
      fn until(x: f32[d]) { while s.total[0] < 5 { s.total += x }; s.total }
    }
    """
    m = layer("Run", 2, text=text)
    v, xs = init(m), A(3, 2)
    np.testing.assert_allclose(call(m, v, xs), xs.cumsum(0), rtol=1e-5)
    np.testing.assert_allclose(v["s.total"], xs.sum(0), rtol=1e-5)
    v = init(m)
    assert np.allclose(call(m, v, np.float32([2, 1]), method="until"), [6, 3]) and np.allclose(v["s.total"], [6, 3])


def test_batch_norm_and_dropout():
    m, x = layer("BatchNorm", 3), A(4, 3, 5)
    v = init(m)
    y = call(m, v, x, training=True)
    want = (x - x.mean((0, 2), keepdims=True)) / np.sqrt(x.var((0, 2), keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(v["running_mean"], 0.1 * x.mean((0, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(v["running_var"], 0.9 + 0.1 * x.var((0, 2), ddof=1), rtol=1e-4)
    d = layer("Dropout", 0.5)
    x = np.ones((50, 40), np.float32)
    assert np.array_equal(call(d, {}, x), x)
    y = call(d, {}, x, training=True)
    assert set(np.unique(y)) == {0.0, 2.0} and abs((y == 0).mean() - 0.5) < 0.05
    assert not np.array_equal(y, call(d, {}, x, training=True, key=4))


@pytest.mark.parametrize("name, args, shape, out", [
    ("LayerNorm", (5,), (3, 5), (3, 5)), ("RMSNorm", (5,), (3, 5), (3, 5)), ("MultiHeadAttention", (8, 2), (2, 3, 8), (2, 3, 8)),
    ("Dense", (5, 4), (2, 5), (2, 4)), ("Conv2d", (2, 3, 3), (2, 2, 5, 5), (2, 3, 3, 3))])
def test_standard_layers(name, args, shape, out):
    m = layer(name, *args)
    assert call(m, init(m), A(*shape)).shape == out


def test_lstm_matches_numpy():
    m = layer("LSTM", 3, 4)
    v, xs = init(m), A(5, 2, 3)
    hs, (h1, c1) = call(m, v, xs)
    h, c = np.zeros((2, 4)), np.zeros((2, 4))
    sig = lambda z: 1 / (1 + np.exp(-z))
    for t in range(5):
        a, f, g, o = np.split(xs[t] @ v["wx"] + v["bx"] + v["bh"] + h @ v["wh"], 4, axis=1)
        c = sig(f) * c + sig(a) * np.tanh(g)
        h = sig(o) * np.tanh(c)
        np.testing.assert_allclose(hs[t], h, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(c1, c, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(h1, h, rtol=1e-4, atol=1e-5)


def test_conv2d_matches_direct_sum():
    m = instantiate(load("t.nn", STD), "Conv2d", (4, 6, 3), dict(stride=2, padding=1, groups=2))
    v, x = init(m), A(2, 4, 5, 6)
    y = call(m, v, x)
    xp = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    want = np.zeros((2, 6, 3, 3))
    for o in range(6):
        g = o // 3
        for i in range(3):
            for j in range(3):
                want[:, o, i, j] = (xp[:, 2 * g:2 * g + 2, 2 * i:2 * i + 3, 2 * j:2 * j + 3] * v["w"][o]).sum((1, 2, 3)) + v["b"][o]
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


def test_gpt2_decodes_as_it_reads():
    p = load("gpt2.nn", (PROGRAMS / "gpt2.nn").read_text())
    m = instantiate(p, "GPT2", (), dict(vocab=11, ctx=8, dim=8, heads=2, depth=2))
    v = init(m)
    tokens = np.array([[1, 5, 3, 7]])
    logits = call(m, v, tokens)
    np.testing.assert_allclose(call(m, v, tokens[:, :3], method="step"), logits[:, 2], rtol=1e-3, atol=1e-4)
    assert v["pos"] == 3 and v["blocks.0.attn.ks"].shape == (1, 2, 8, 4)
    np.testing.assert_allclose(call(m, v, tokens[:, 3:], method="step"), logits[:, 3], rtol=1e-3, atol=1e-4)


def test_llama_step_by_step():
    p = load("llama.nn", (PROGRAMS / "llama.nn").read_text())
    m = instantiate(p, "Llama", (), dict(vocab=11, ctx=8, d=8, h=4, kv=2, hidden=6, depth=2))
    v, w = init(m), init(m)
    tokens = np.array([[1, 5, 3]])
    whole = call(m, v, tokens, method="step")
    for t in range(3):
        one = call(m, w, tokens[:, t:t + 1], method="step")
    np.testing.assert_allclose(one, whole, rtol=1e-3, atol=1e-4)


def test_quantised_weights_read_through_their_type():
    m = instantiate(load("t.nn", STD + "layer T(i, o) { l = Linear(i, o, weight = ternary, bias = false); fn (x: f32[B, i]) { l(x) } }\n"), "T", (6, 4))
    v, x = init(m), A(3, 6)
    w = v["l.w"]
    g, top = np.abs(w).mean(), np.abs(x).max(1, keepdims=True)
    rows = np.clip(np.round(127 * x / top), -128, 127) * top / 127          # a product with a cheap weight takes its rows in int8
    np.testing.assert_allclose(call(m, v, x), rows @ (np.clip(np.round(w / g), -1, 1) * g), rtol=1e-4, atol=1e-5)


def test_a_whole_gpt2_shares_its_functions():
    """Twelve blocks are one function called twelve times: the module does not grow with depth."""
    p = load("gpt2.nn", (PROGRAMS / "gpt2.nn").read_text())
    counts = [len(elaborate_call(instantiate(p, "GPT2", kwargs={"depth": d}), [TensorType(i64, (4, 64))], training=True).module.funcs)
              for d in (2, 12)]
    assert counts[0] == counts[1] < 20


@pytest.mark.parametrize("name", sorted(p.stem for p in PROGRAMS.glob("*.nn")))
def test_programs_check(name):
    path = PROGRAMS / f"{name}.nn"
    check(load(path.name, path.read_text()))


def test_a_result_that_is_a_tree_belongs_to_its_layer():
    text = STD + """
    layer Cell(d) { l = Linear(d, d, bias = false); fn (x: f32[B, d]) { sum(l(x)) }; fn slope(x: f32[B, d]) { grad(fn (m) { sum(m(x)) })(l) } }
    layer Pair(d) { a = Cell(d); b = Cell(d); fn (x: f32[B, d]) { (a.slope(x), b.slope(2 * x)) } }
    """
    m = layer("Pair", 2, text=text)
    x = np.float32([[1, 2]])
    ga, gb = call(m, init(m), x)
    assert np.allclose(ga["w"], x.T @ np.ones((1, 2))) and np.allclose(gb["w"], 2 * ga["w"])
