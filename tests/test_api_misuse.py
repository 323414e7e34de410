"""What Python callers get wrong: an error that names the argument, and no wrong result."""
from __future__ import annotations

import copy
import pickle

import engram as eg
import numpy as np
import pytest

PROGRAM = """
fn two(x: f32[n], y: f32[n]) -> f32[n] { x + y }
fn scaled(n, x: f32[n]) -> f32[n] { x * n }
fn times(k, x: f32[n]) -> f32[n] { x * k }
fn e(x: f32[..]) -> f32[..] { exp(x) }
"""


@pytest.fixture(scope="module")
def p():
    return eg.compile(PROGRAM)


@pytest.fixture(scope="module")
def digits():
    d = eg.dataset("digits").fields
    return d["x"][:200], d["y"][:200]


@pytest.fixture
def mlp(request):
    return eg.Model(request.config.rootpath / "examples/digits.nn", "Mlp", 64, 16, 10, seed=0)


X = np.ones(2, np.float32)


@pytest.mark.parametrize("call, message", [
    (lambda p: p.two(np.ma.masked_array(X, [0, 1]), X), "argument x: a masked array"),
    (lambda p: p.two(np.array([object(), None]), X), "argument x: expected numbers, got an array of Python objects"),
    (lambda p: p.times(np.array([3, 4]), X), r"argument k: what is known when compiling is a number, .* got an array of shape \[2\]"),
    (lambda p: p.times([3, np.ones(1)], X), r"argument k\[1\]: what is known"), (lambda p: p.times({}, X), "argument k: expected a number, .* got dict"),
    (lambda p: p.scaled(2.5, X), "`n` is the number 2.5, so it cannot be a size"), (lambda p: p.scaled("a", X), '`n` is the string "a", so it cannot be'),
    (lambda p: p.vmap("two", in_dims="a"), "in_dims: expected a whole number, or one or None for each parameter, got 'a'"),
    (lambda p: p.vmap("two", in_dims=(0, 0.5)), "in_dims: expected"), (lambda p: p.vmap("two", in_dims=None), "in_dims: expected"),
    (lambda p: p.vmap("two", in_dims=(0,))(np.ones((2, 3)), np.ones((2, 3))), "`in_dims` has 1 entry for 2 arguments"),
    (lambda p: p.vmap("e", out_dims=7)(np.ones((3, 4))), "`out_dims` is 7, but with the mapped one the result has 2 dimensions"),
    (lambda p: p.vmap("e", out_dims=None), "out_dims: expected a whole number"),
    (lambda p: eg.compile(""), "a program's text, got an empty one"), (lambda p: eg.compile(" \n"), "got an empty one"),
    (lambda p: eg.compile(b"fn f() { 1 }"), "a program's text, got bytes"), (lambda p: eg.compile(None), "a program's text, got NoneType"),
    (lambda p: eg.Model(None, "L"), "a program's text, got NoneType"),
])
def test_calls(p, call, message):
    with pytest.raises((eg.ArgumentError, eg.CompileError, TypeError, ValueError), match=message):
        call(p)


def test_what_is_fine(p):
    assert p.two(np.ma.masked_array(X, [0, 0]), X).tolist() == [2, 2]
    assert p.times(np.array(3), X).tolist() == p.times(np.int8(3), X).tolist() == [3, 3] and p.scaled(np.int64(2), X).tolist() == [2, 2]
    assert p.vmap("e", in_dims=np.int64(-1), out_dims=-1)(np.zeros((3, 4))).shape == (3, 4)


@pytest.mark.parametrize("args, message", [
    (("a", 16, 10), '`i` is the string "a", so it cannot be a size'), ((1.5, 16, 10), "`i` is the number 1.5"), ((None, 16, 10), "`i` is none"),
    ((np.array([64]), 16, 10), "argument 1 of Mlp: what is known when compiling"),
])
def test_sizes_of_a_model(args, message, request):
    path = request.config.rootpath / "examples/digits.nn"
    with pytest.raises((eg.ArgumentError, eg.CompileError), match=message) as info:
        eg.Model(path, "Mlp", *args)
    if isinstance(info.value, eg.CompileError):
        assert "digits.nn:7:12: note: layer `Linear` is made here" in str(info.value)
    assert eg.Model(path, "Mlp", np.int64(64), np.int32(16), 10).count == 1210


@pytest.mark.parametrize("seed", [-1, 1.5, "a", True])
def test_seeds(seed, request, mlp):
    for make in (lambda: eg.Model(request.config.rootpath / "examples/digits.nn", "Mlp", 64, 16, 10, seed=seed), lambda: mlp.reset(seed)):
        with pytest.raises(eg.ArgumentError, match="seed: expected a whole number from 0"):
            make()


@pytest.mark.parametrize("options, message", [
    ({"validation_split": "a"}, "validation_split: expected a share between 0 and 1, got 'a'"), ({"validation_split": True}, "got True"),
    ({"callbacks": [3]}, r"callbacks: expected functions \(epoch, logs\) or objects with on_epoch_end, got 3"), ({"callbacks": 3}, "callbacks: expected .* got 3"),
    ({"validation_data": (np.ones((3, 5)), np.ones(3, int))}, r"argument validation x: expected samples of f32\[64\] as x has, got samples of f32\[5\]"),
    ({"validation_data": (np.ones((3, 64)), np.ones((3, 2), int))}, "argument validation y: expected samples of"),
    ({"validation_data": (np.ones((3, 64, 1)), np.ones(3, int))}, "argument validation x: expected f32"),
])
def test_fit_options(mlp, digits, options, message):
    mlp.compile(loss="cross_entropy")
    with pytest.raises(eg.ArgumentError, match=message):
        mlp.fit(*digits, verbose=0, **options)


def test_one_callback_is_a_list_of_one(mlp, digits):
    mlp.compile(loss="cross_entropy")
    assert mlp.fit(*digits, verbose=0, epochs=5, callbacks=lambda epoch, logs: epoch == 1).epoch == [0, 1]


@pytest.mark.parametrize("metrics, message", [
    (3, "metrics: expected a list or"), ([lambda a, b: 0], "metrics: a Python function cannot be compiled"), ([3], "metrics: expected names"),
    ({3: eg.expr("1.0")}, "metrics: 3 cannot be a metric's name"),
])
def test_metrics(mlp, metrics, message):
    with pytest.raises(TypeError, match=message):
        mlp.compile(loss="cross_entropy", metrics=metrics)
    mlp.compile(loss="cross_entropy", metrics=None)


def test_copies(p, mlp, digits):
    """A copy has the same values and goes its own way; code cannot be pickled, and says so."""
    x, y = digits
    mlp.compile(loss="cross_entropy")
    mlp.fit(x, y, verbose=0)
    before = mlp(x)
    for make in (copy.copy, copy.deepcopy):
        other = make(mlp)
        np.testing.assert_array_equal(other(x), before)
        other.fit(x, y, verbose=0)
        assert np.abs(other(x) - before).max() > 0
        np.testing.assert_array_equal(mlp(x), before)
    assert copy.copy(p) is copy.deepcopy(p) is p
    for v, what in ((mlp, "an engram.Model cannot be pickled"), (p, "an engram program cannot be pickled")):
        with pytest.raises(TypeError, match=what):
            pickle.dumps(v)
