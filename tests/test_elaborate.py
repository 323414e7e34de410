"""Expressions and statements of the language: elaborated, run by the interpreter, compared with NumPy."""
from __future__ import annotations

import math

import numpy as np
import pytest
from engram.compiler import driver
from engram.compiler.ir import DTYPES, TensorType, f32, f64, i64
from engram.compiler.ir.types import dtype_of
from engram.compiler.ir.verifier import verify
from engram.frontend import elaborate_function, elaborate_grad, elaborate_jvp, elaborate_vjp, load

R = np.random.default_rng(0)
X = R.normal(size=(4, 5)).astype(np.float32)
E = np.exp


def run_entry(e, arrays):
    verify(e.module)
    program = driver.build(e.module, "interp")
    args, it = [], iter(arrays)
    for a in e.args:
        args.append(np.array(7, np.uint64) if a.kind == "key" else next(it))
    return e.pack([np.asarray(r) for r in program.call(e.entry, args)])


def run(text: str, name: str, *args):
    """Calls a function of a program; arrays are tensors, other values compile-time ones."""
    arrays = [a for a in args if isinstance(a, np.ndarray)]
    types = [TensorType(dtype_of(a.dtype), a.shape) if isinstance(a, np.ndarray) else a for a in args]
    return run_entry(elaborate_function(load("t.nn", text), name, types), arrays)


CASES = [
    ("x[1]", X[1]), ("x[-1]", X[-1]), ("x[:, 1:3]", X[:, 1:3]), ("x[::-1]", X[::-1]), ("x[:, ::2]", X[:, ::2]),
    ("x[:, 4:0:-2]", X[:, 4:0:-2]), ("x[:, -2:]", X[:, -2:]), ("x[none]", X[None]), ("x[:, none, 1:2]", X[:, None, 1:2]),
    ("x[.., 0]", X[..., 0]), ("x[[0, 2]]", X[[0, 2]]), ("x[[0, 2], [1, 3]]", X[[0, 2], [1, 3]]), ("x[:, [1, 1, 0]]", X[:, [1, 1, 0]]),
    ("let i = argmax(x[0]); x[:, i]", X[:, X[0].argmax()]),
    ("let i = argmax(x[0, :3]); x[:, i : i + 2]", X[:, X[0, :3].argmax():X[0, :3].argmax() + 2]),
    ("x.T", X.T), ("-x + 2 * x - 1 / x", -X + 2 * X - 1 / X), ("x ** 2 + 1", X**2 + 1), ("2 ** x", 2**X), ("x // 1", X // 1), ("x % 1", X % 1),
    ("i32(x * 10) // 3", (X * 10).astype(np.int32) // 3), ("0 < x < 1", (X > 0) & (X < 1)), ("not (x > 0)", ~(X > 0)),
    ("x > 0 and x < 1 or x == x", X == X), ("i64(x) << 2 | 1", X.astype(np.int64) << 2 | 1), ("f32(true)", 1.0), ("1 / 4 * x", X / 4),
    ("sum(x)", X.sum()), ("sum(x, dim = 0)", X.sum(0)), ("mean(x, dim = -1, keepdim = true)", X.mean(-1, keepdims=True)),
    ("var(x)", X.var(ddof=1)), ("std(x, dim = 1, correction = 0)", X.std(1)), ("max(x)", X.max()), ("amin(x, axis = 0)", X.min(0)),
    ("max(x, 0)", np.maximum(X, 0)), ("argmax(x, dim = 1)", X.argmax(1)), ("norm(x)", np.linalg.norm(X)), ("prod(x, dim = 0)", X.prod(0)),
    ("norm(x, p = 1, dim = 1)", np.abs(X).sum(1)), ("any(x > 2)", (X > 2).any()), ("all(x > -9, dim = 0)", (X > -9).all(0)),
    ("cumsum(x, dim = 1)", X.cumsum(1)), ("cumprod(x, dim = 0)", X.cumprod(0)), ("sort(x, dim = 1)[0]", np.sort(X, 1)),
    ("topk(x, 2)[0]", -np.sort(-X, 1)[:, :2]), ("median(x, dim = 1)", np.sort(X, 1)[:, 2]), ("logsumexp(x, dim = 1)", np.log(E(X).sum(1))),
    ("where(x > 0, x, 0)", np.where(X > 0, X, 0)), ("clamp(x, -0.5, 0.5)", X.clip(-.5, .5)), ("lerp(x, 2 * x, 0.5)", 1.5 * X),
    ("x |> flatten |> reshape([2, 10])", X.reshape(2, 10)), ("reshape(x, [-1, 2])", X.reshape(-1, 2)), ("permute(x, [1, 0])", X.T),
    ("unsqueeze(x, 1)", X[:, None]), ("squeeze(x[:, none])", X), ("roll(x, 1, 1)", np.roll(X, 1, 1)), ("roll(x, -2)", np.roll(X, -2)), ("flip(x, 0)", X[::-1]),
    ("pad(x, [1, 2])", np.pad(X, [(0, 0), (1, 2)])), ('pad(x, [1, 2, 1, 0], mode = "reflect")', np.pad(X, [(1, 0), (1, 2)], mode="reflect")),
    ('pad(x, [1, 2], mode = "replicate")', np.pad(X, [(0, 0), (1, 2)], mode="edge")),
    ('pad(x, [1, 2], mode = "circular")', np.pad(X, [(0, 0), (1, 2)], mode="wrap")),
    ("cat([x, x], dim = 1)", np.concatenate([X, X], 1)), ("stack([x, x], dim = 1)", np.stack([X, X], 1)),
    ("let (a, b) = split(x, [2, 3], dim = 1); a", X[:, :2]), ("let (a, b, c, d, e) = chunk(x, 5, dim = 1); c", X[:, 2:3]),
    ("tril(x)", np.tril(X)), ("triu(x, 1)", np.triu(X, 1)), ("repeat(x, [2, 1])", np.tile(X, (2, 1))), ("trace(x @ x.T)", np.trace(X @ X.T)),
    ('einsum("ij,kj->ik", x, x)', X @ X.T), ('einsum("ij->j", x)', X.sum(0)), ('einsum("ii", x @ x.T)', np.trace(X @ X.T)),
    ('einsum("...j,kj->...k", x, x)', X @ X.T), ("outer(x[0], x[1])", np.outer(X[0], X[1])), ("x[0] @ x[1]", X[0] @ X[1]), ("x @ x[0]", X @ X[0]),
    ("one_hot(argmax(x, dim = 1), 5)", np.eye(5)[X.argmax(1)]), ("arange(5)", np.arange(5)), ("arange(2, 10, 3)", np.arange(2, 10, 3)),
    ("arange(5, 0, -2)", np.arange(5, 0, -2)), ("linspace(0, 1, 5)", np.linspace(0, 1, 5)), ("eye(3)", np.eye(3)), ("full([2], 3.0)", np.full(2, 3.0)),
    ("tensor([[1, 2], [3, 4]])", [[1, 2], [3, 4]]), ("zeros_like(x) + ones(4, 5)", np.ones((4, 5))), ("gather(x, 1, argsort(x, dim = 1))", np.sort(X, 1)),
    ("softmax(x)", E(X) / E(X).sum(-1, keepdims=True)), ("sigmoid(x)", 1 / (1 + E(-X))), ("relu(x)", X.clip(0)), ("leaky_relu(x, 0.2)", np.where(X > 0, X, .2 * X)),
    ("elu(x)", np.where(X > 0, X, E(X) - 1)), ("softplus(x)", np.log1p(E(X))), ("silu(x)", X / (1 + E(-X))), ("tanh(x)", np.tanh(X)),
    ("layer_norm(x)", (X - X.mean(-1, keepdims=True)) / np.sqrt(X.var(-1, keepdims=True) + 1e-5)),
    ("bce_with_logits(x, ones_like(x))", np.log1p(E(-X)).mean()), ("mse(x, 0)", (X**2).mean()), ("l1(x, 1)", np.abs(X - 1).mean()),
    ("cross_entropy(x, argmax(x, dim = 1))", (np.log(E(X).sum(1)) - X.max(1)).mean()),
    ("cross_entropy(x, softmax(x))", -(E(X) / E(X).sum(1, keepdims=True) * np.log(E(X) / E(X).sum(1, keepdims=True))).sum(1).mean()),
    ('cross_entropy(x, arange(4), reduction = "none")', np.log(E(X).sum(1)) - X[range(4), range(4)]),
    ("cross_entropy(x, arange(4), ignore_index = 0)", (np.log(E(X).sum(1)) - X[range(4), range(4)])[1:].mean()),
    ("accuracy(x, argmax(x, dim = 1))", 1.0), ("global_norm([x, x])", np.sqrt(2 * (X**2).sum())),
    ("max_pool1d(x, 2)", np.maximum(X[:, 0:4:2], X[:, 1:4:2])), ("avg_pool1d(x, 2, stride = 1)", (X[:, 1:] + X[:, :-1]) / 2),
    ("adaptive_avg_pool1d(x, 2)", np.stack([X[:, :3].mean(1), X[:, 2:].mean(1)], 1)),
    ("conv1d(x[:, none], ones(1, 1, 3), padding = 1)[:, 0]", np.stack([np.convolve(r, [1, 1, 1], "same") for r in X])),
    ("if sum(x) > 100 { x } else { -x }", -X), ("let y = if true { x } else { x @ x }; y", X),
    ("let s = scan i in 0..3 with a = 0.0 { a + x[i, 0] }; s", X[:3, 0].sum()),
    ("let (ys, s) = scan r in x with final a = 0.0 { yield a; a + sum(r) }; ys", np.concatenate([[0], X.sum(1).cumsum()[:-1]])),
    ("let (ys, s) = scan r in x with final a = 0.0 { yield a; a + sum(r) }; s", X.sum()),
    ("scan r in reversed(x) with a = zeros(5) { yield a + r; a + r }", X[::-1].cumsum(0)),
    ("scan y in [x, 2 * x] with s = 0.0 { s + sum(y) }", 3 * X.sum()), ("scan (i, r) in (arange(4), x) { yield r * i }", X * np.arange(4)[:, None]),
    ("let (n, _) = while v > 0.1 with n = 0, v = 1.0 { (n + 1, v / 2) }; n", 4),
    ("tree_map(fn (a, b) { a + b }, (x, x), (x, x))[1]", 2 * X), ("[i * i for i in 0..5 if i % 2 == 1][1] * x", 9 * X),
    ("vmap(fn (r) { sum(r) })(x)", X.sum(1)), ("vmap(fn (r) { r * x[0] })(x)", X * X[0]), ("vmap(fn (a, b) { a @ b }, in_dims = (0, none))(x, x[0])", X @ X[0]),
    ("vjp(fn (v) { v * v }, x)[1](ones_like(x))", 2 * X), ("jvp(fn (v) { v * v * v }, x, ones_like(x))[1]", 3 * X * X),
    ("grad(fn (v) { sum(v ** 3) })(x)", 3 * X * X), ("jvp(grad(fn (v) { sum(v ** 3) }), x, ones_like(x))[1]", 6 * X),
    ("grad(fn (v) { sum(stop_gradient(v) * v) })(x)", X), ("value_and_grad(fn (a, b) { sum(a * b) }, wrt = [\"a\", \"b\"])(x, 2 * x)[1][1]", X),
    ("custom_grad(fn (v) { round(v) }, fn (v, out, g) { 3 * g })(x) |> round", np.round(X)),
    ("grad(fn (v) { sum(custom_grad(fn (u) { round(u) }, fn (u, out, g) { 3 * g })(v)) })(x)", np.full_like(X, 3)),
    ("x.shape[1] + x.ndim", 7), ("sqrt(16) + len(x)", 8.0), ("\"a\" == \"a\"", True), ("none == none", True),
]


@pytest.mark.parametrize("text, want", CASES, ids=[c[0] for c in CASES])
def test_expression(text, want):
    got = np.asarray(run(f"fn f(x: f32[n, m]) {{ {text} }}\n", "f", X))
    want = np.asarray(want)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_dtypes_promote_as_in_pytorch():
    d = {n: DTYPES[n] for n in ("f32", "f64", "f16", "bf16", "i64", "i32", "i8", "u8", "bool")}

    def result(text, *types):
        params = ", ".join(f"{n}: {t}[2]" for n, t in zip("xy", types))
        e = elaborate_function(load("t.nn", f"fn f({params}) {{ {text} }}\n"), "f", [TensorType(d[t], (2,)) for t in types])
        return str(e.results[0].type.dtype)

    assert result("x + y", "f32", "i64") == "f32" and result("x + y", "f16", "bf16") == "f32" and result("x + y", "u8", "i8") == "i16"
    assert result("x + y", "i32", "i64") == "i64" and result("x + 1", "i8") == "i8" and result("x + 1.5", "i8") == "f32"
    assert result("x / y", "i32", "i32") == "f32" and result("x * 2.0", "bf16") == "bf16" and result("x + 1", "bool") == "i64"
    assert result("x + y", "f64", "f32") == "f64" and result("mean(x)", "u8") == "f32" and result("sum(x)", "u8") == "i64"


def test_functions_dims_and_defaults():
    text = """
    fn pair(x: f32[2*d], y: f32[d]) -> f32[d] { x[:d] + x[d:] * y }
    fn generic(x: float[.., k], w: float[k]) -> float[..] { x @ w }
    fn twice(f: fn(f32) -> f32, x: f32) -> f32 { f(f(x)) }
    fn quad(x: f32) -> f32 { twice(fn (v) { v * v + x }, x) }
    fn with_default(x: f32[n], scale = 2, shift: f32[n] = 1) -> f32[n] { x * scale + shift }
    fn caller(x: f32[n]) { with_default(x, shift = x) - with_default(x) }
    fn sized(x: f32[B], n) -> f32[n, B] { scan t in 0..n { yield x * t } }
    fn scopes(x: f32[n]) { let a = x; let f = fn () { a }; let a = 2 * a; f() + a }
    """
    assert np.allclose(run(text, "pair", np.arange(4, dtype=np.float32), np.float32([2, 3])), [0 + 2 * 2, 1 + 3 * 3])
    x = R.normal(size=(2, 3, 4)).astype(np.float64)
    assert np.allclose(run(text, "generic", x, x[0, 0]), x @ x[0, 0])
    assert np.allclose(run(text, "quad", np.array(2, np.float32)), (4 + 2) ** 2 + 2)
    assert np.allclose(run(text, "caller", np.float32([3, 4])), [2, 3])
    assert run(text, "sized", np.float32([1, 2]), 3).shape == (3, 2)
    assert np.allclose(run(text, "scopes", np.float32([1, 2])), [3, 6])


def test_random_numbers_need_and_use_keys():
    text = """
    fn noise(x: f32[n], key: key) -> f32[n] { x + normal(0, 1, size = [n]) - normal(0, 1, size = [n]) }
    fn two(x: f32[n], key: key) { let (a, b) = split(key); (noise(x, a), noise(x, b), noise(x, a)) }
    fn steps(key: key) { scan t in 0..3 with s = 0 { yield uniform(0, 1, size = []); s } }
    fn dice(key: key) { randint(1, 7, size = [1000]) }
    fn draw(p: f32[n], key: key) { vmap(fn (k) { categorical(log(p), key = k) })(split(key, 400)) }
    """
    x = np.zeros(5, np.float32)
    a, b, c = run(text, "two", x)
    assert np.array_equal(a, c) and not np.array_equal(a, b) and np.abs(a).min() > 0
    s = run(text, "steps")
    assert len(set(s.tolist())) == 3
    d = run(text, "dice")
    assert set(d.tolist()) == {1, 2, 3, 4, 5, 6}
    share = np.bincount(run(text, "draw", np.float32([.5, .25, .25])), minlength=3) / 400
    assert np.abs(share - [.5, .25, .25]).max() < .1


def test_newton_conjugate_gradients_and_hessians():
    text = """
    fn root(f: fn(f64) -> f64, x0: f64) -> f64 { while abs(f(x)) > 1e-12 with x = x0 { x - f(x) / grad(f)(x) } }
    fn sqrt2(x0: f64) -> f64 { root(fn (v) { v * v - 2 }, x0) }
    fn hvp(f, x, v) { jvp(grad(f), x, v)[1] }
    fn hessian(f, x: float[n]) -> float[n, n] { vmap(fn (v) { hvp(f, x, v) })(eye(n, dtype = x.dtype)) }
    fn q(x: f64[n]) -> f64 { sum(x ** 4) + prod(x) }
    fn hq(x: f64[n]) -> f64[n, n] { hessian(q, x) }
    """
    assert abs(run(text, "sqrt2", np.ones(())) - math.sqrt(2)) < 1e-12
    x = np.array([1., 2., 3.])
    assert np.allclose(run(text, "hq", x), np.diag(12 * x * x) + [[0, 3, 2], [3, 0, 1], [2, 1, 0]])


def test_derivatives_from_python():
    p = load("t.nn", "fn f(x: f64[n], y: f64[n]) -> f64 { sum(x * x * y) }\nfn g(x: f64[n]) -> f64[n] { x * x }\n")
    t = TensorType(f64, (3,))
    x, y = np.array([1., 2., 3.]), np.array([4., 5., 6.])
    assert np.allclose(run_entry(elaborate_grad(p, "f", [t, t]), [x, y]), 2 * x * y)
    value, (gy, gx) = run_entry(elaborate_grad(p, "f", [t, t], wrt=["y", "x"], value=True), [x, y])
    assert np.allclose(value, (x * x * y).sum()) and np.allclose(gx, 2 * x * y) and np.allclose(gy, x * x)
    assert np.allclose(run_entry(elaborate_jvp(p, "g", [t]), [x, y])[1], 2 * x * y)
    assert np.allclose(run_entry(elaborate_vjp(p, "g", [t], seed=t), [x, y])[1], 2 * x * y)


def test_gradient_through_scan_matches_differences():
    text = """
    fn rnn(xs: f64[T, i], wx: f64[i, h], wh: f64[h, h]) -> f64[T, h] {
      scan x in xs with s = zeros(h, dtype = f64) { let s = tanh(x @ wx + s @ wh); yield s; s }
    }
    fn loss(xs: f64[T, i], wx: f64[i, h], wh: f64[h, h]) -> f64 { mean(square(rnn(xs, wx, wh)[-1])) }
    """
    p = load("t.nn", text)
    xs, wx, wh = R.normal(size=(4, 2)), R.normal(size=(2, 3)), R.normal(size=(3, 3))
    types = [TensorType(f64, a.shape) for a in (xs, wx, wh)]
    g = run_entry(elaborate_grad(p, "loss", types, wrt="wh"), [xs, wx, wh])
    for i, j in ((0, 0), (2, 1)):
        d = np.zeros_like(wh)
        d[i, j] = 1e-6
        lo, hi = (run_entry(elaborate_function(p, "loss", types), [xs, wx, wh + s * d]) for s in (-1, 1))
        assert abs((hi - lo) / 2e-6 - g[i, j]) < 1e-6


def test_ops_carry_locations():
    e = elaborate_function(load("t.nn", "fn f(x: f32[n]) -> f32[n] {\n  let y = x + 1\n  exp(y)\n}\n"), "f", [TensorType(f32, (3,))])
    lines = {op.name: (op.loc.file, op.loc.line) for op in e.module.funcs["f"].walk()}
    assert lines["tensor.add"] == ("t.nn", 2) and lines["tensor.exp"] == ("t.nn", 3)


def test_equal_calls_share_a_function():
    text = "fn g(x: f32[n]) -> f32[n] { exp(x) }\nfn f(x: f32[n]) -> f32[n] { g(g(x)) + g(x) }\n"
    e = elaborate_function(load("t.nn", text), "f", [TensorType(f32, (3,))])
    assert sorted(e.module.funcs) == ["f", "g"]
    assert sum(op.name == "func.call" for op in e.module.walk()) == 3


def test_compile_time_parameters_specialise():
    text = "fn f(x: f32[n], mode, k = 2) { if mode == \"up\" { x * k } else { x[:k] } }\n"
    assert np.allclose(run(text, "f", np.float32([1, 2, 3]), "up"), [2, 4, 6])
    assert run(text, "f", np.float32([1, 2, 3]), "cut", 1).shape == (1,)


def test_integers_and_indices():
    text = """
    fn f(x: f32[n, m], i: i64, j: int[k]) { (x[i, 1:], x[j], x[j, j], x[1, j], embedding(j, x)) }
    """
    j = np.array([2, 0, 1])
    out = run(text, "f", X, np.array(2), j)
    for got, want in zip(out, (X[2, 1:], X[j], X[j, j], X[1, j], X[j])):
        assert np.allclose(got, want)


assert i64 is DTYPES["i64"]


def test_loops_of_run_time_length():
    text = """
    fn total(x: f32[n], len: i64) { scan t in 0..len with s = 0.0 { s + x[t] } }
    fn backwards(x: f32[n], len: i64) { let (s, k) = scan t in reversed(1..len) with s = 0.0, k = 1.0 { (s + k * x[t], 2 * k) }; s }
    fn walk(n: i64, key: key) { while abs(x) < 3 with x = 0.0 { x + normal(0, 1, size = []) } }
    """
    x = np.float32([1, 2, 3, 4])
    assert run(text, "total", x, np.array(3)) == 6 and run(text, "total", x, np.array(0)) == 0
    assert run(text, "backwards", x, np.array(4)) == 4 + 2 * 3 + 4 * 2
    assert abs(run(text, "walk", np.array(1))) >= 3


def test_parameters_named_twice():
    from engram.compiler.diagnostics import CompileError
    with pytest.raises(CompileError, match="declared twice"):
        run("fn f(x: f32, x: f32) { x }\n", "f", np.array(1, np.float32), np.array(1, np.float32))
