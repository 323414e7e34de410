"""What is wrong with `compile` and `fit` is said by the Python argument's name, never by a line of the train block they write."""
from __future__ import annotations

import engram as eg
import numpy as np
import pytest
from engram.compiler.diagnostics import Span
from engram.fit_block import FitBlock, Piece


@pytest.fixture(scope="module")
def digits():
    d = eg.dataset("digits").fields
    return d["x"][:200], d["y"][:200]


@pytest.fixture
def mlp(request):
    return eg.Model(request.config.rootpath / "examples/digits.nn", "Mlp", 64, 16, 10, seed=0)


@pytest.mark.parametrize("compile_, change, text", [
    ({}, lambda x, y: (x[:, :3], y), "<argument x>:1:7: error: argument `x` of `model` is f32[32, 3], expected f32[32, 64]"),
    ({}, lambda x, y: (x, y.astype(float)), "<argument loss>:1:20: error: probabilities f32[32] do not fit logits"),
    ({}, lambda x, y: (x, y + 1), "<argument loss>:1:1: error: index 10 is out of range 0..10\n  1 | cross_entropy(out, y)\n    | ^"),
    ({"loss": eg.expr("cross_entropy(out,\n  y) + sum(zog)")}, None, "<argument loss>:2:12: error: unknown name `zog`\n  2 |   y) + sum(zog)\n    |            ^^^"),
    ({"optimizer": eg.Adam(eg.expr("cosin(step, steps, 3e-3)"))}, None, "<argument optimizer>:1:11: error: unknown name `cosin`"),
    ({"optimizer": eg.rule("adam", foo=3)}, None, "<argument optimizer>:1:6: error: rule `adam` has no parameter `foo`"),
    ({"metrics": {"a": eg.expr("accuracy(out, y, 3)")}}, None, '<argument metrics["a"]>:1:18: error: `accuracy` takes 2 arguments, got 3'),
    ({"learn": {"hidden": eg.rule("oja")}}, None, '<argument learn["hidden"]>:1:17: error: rule `oja` needs argument `lr`'),
])
def test_fit(mlp, digits, compile_, change, text):
    mlp.compile(**{"loss": "cross_entropy", **compile_})
    x, y = change(*digits) if change else digits
    with pytest.raises((eg.CompileError, eg.RuntimeError_)) as e:
        mlp.fit(x, y, verbose=0)
    assert text in str(e.value) and "digits.nn:" not in str(e.value)


def test_evaluate_says_the_same_and_the_model_learns_on(mlp, digits):
    x, y = digits
    mlp.compile(loss="cross_entropy")
    mlp.fit(x, y, verbose=0)
    for wrong in (lambda: mlp.evaluate(x, y + 1), lambda: mlp.fit(x, y + 1, verbose=0)):
        with pytest.raises(eg.RuntimeError_, match="<argument loss>:1:1: error: index 10 is out of range"):
            wrong()
    assert np.isfinite(mlp.fit(x, y, verbose=0).history["loss"][0])


@pytest.mark.parametrize("compile_, text", [
    ({"loss": eg.expr("cross_entropy(out, y) +")}, "<argument loss>:1:24: error: expected an expression, got the end"),
    ({"loss": eg.expr("cross_entropy(out, y)\nbatch = 3")}, "<argument loss>:2:1: error: expected `,` or `)`, got `batch`"),
    ({"loss": eg.expr("1)\nbatch = (3")}, "<argument loss>:"),
    ({"learn": {"hidden": eg.rule("three_factor", classes=10, lr=0.1, given=eg.expr("f32(y"))}}, "<argument given>:1:1: error: this `(` is never closed"),
    ({"learn": {"hiden": eg.rule("three_factor", 10, lr=0.1)}}, "learn: there is no layer 'hiden' with parameters: did you mean 'hidden'?"),
    ({"learn": {"hidden.w": eg.rule("three_factor", 10, lr=0.1)}}, "learn: 'hidden.w' is a parameter, not a layer: did you mean 'hidden'?"),
])
def test_compile(mlp, compile_, text):
    with pytest.raises((eg.CompileError, ValueError)) as e:
        mlp.compile(**compile_)
    assert text in str(e.value)


def test_a_place_in_the_users_own_program_stays(digits):
    m = eg.Model("layer L() {\n  param w: f32[3]\n  fn (x: f32[B, 64]) -> f32[B, 64] { x * w }\n}", "L")
    m.compile(loss="mse")
    with pytest.raises(eg.CompileError, match=r"<string>:3:\d+: error: cannot multiply"):
        m.fit(digits[0], digits[0], verbose=0)


def test_places_in_a_block():
    block = FitBlock([[Piece("a = "), Piece("one\n  two", "p"), Piece(" by "), Piece("three", "q")]], "f.nn", 10)
    assert block.text == "train _python_fit {\n  a = one\n  two by three\n}\n"
    at = lambda line, col, end: block.moved(Span("f.nn", line, col, line, end))
    assert at(11, 7, 10) == Span("<argument p>", 1, 1, 1, 4) and at(12, 3, 6) == Span("<argument p>", 2, 3, 2, 6)
    assert at(12, 10, 15) == Span("<argument q>", 1, 1, 1, 6) and at(12, 11, 99) == Span("<argument q>", 1, 2, 1, 6)
    assert at(10, 1, 3) is None and at(9, 1, 3) == Span("f.nn", 9, 1, 9, 3) and block.moved(None) is None


@pytest.mark.parametrize("make, message", [
    (lambda: eg.Adam(-1), "adam: lr is -1, expected a number from 0"), (lambda: eg.Adam("a"), "lr is 'a', expected a number"),
    (lambda: eg.AdamW(b2=1.0), "b2 is 1.0, expected a number from 0 to below 1"), (lambda: eg.SGD(float("nan")), "sgd: lr is nan"),
    (lambda: eg.SGD(momentum=True), "momentum is True"), (lambda: eg.SGD(nesterov=1), "nesterov is 1, expected true or false"),
    (lambda: eg.RMSprop(lr=float("inf")), "lr is inf"), (lambda: eg.Lion(weight_decay=-0.1), "weight_decay is -0.1"),
])
def test_numbers_that_no_optimizer_can_have(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
    assert eg.Adam(0).text == "adam(lr = 0, b1 = 0.9, b2 = 0.999, eps = 1e-08)" and eg.SGD(np.float32(0.5), nesterov=np.True_)


@pytest.mark.parametrize("threads", [0, -1, 2.5, True, "2"])
def test_threads(threads, request):
    for make in (lambda: eg.compile("fn f(x: f32[n]) { x }", threads=threads),
                 lambda: eg.Model(request.config.rootpath / "examples/digits.nn", "Mlp", 64, 16, 10, threads=threads)):
        with pytest.raises((ValueError, TypeError), match="threads: expected a positive integer"):
            make()
    assert eg.compile("fn f(x: f32[n]) { x }", threads=np.int64(1)).f([1.0]) == 1


def test_unknown_names_are_found_at_compile():
    with pytest.raises(eg.CompileError, match=r"(?s)<string>:1:19: error: unknown name `y`.*<string>:2:15: error: unknown name `z`"):
        eg.compile("fn f(x: f32[n]) { y }\nfn g(a) { a + z }\n")
    with pytest.raises(eg.CompileError, match="unknown name `v`"):
        eg.Model("layer L() {\n  param w: f32[3]\n  fn (x: f32[3]) { x * v }\n}", "L")
