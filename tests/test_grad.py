"""The pass grad on whole programs: calls, control flow, higher derivatives, what is kept for the backward functions, errors."""
import numpy as np
import pytest
from engram.compiler.diagnostics import CompileError
from engram.compiler.ir import Block, Func, Loc, Module, TensorType, bool_, f32, f64, i64
from engram.compiler.ir.builder import Builder
from engram.compiler.ir.core import clone_module
from engram.compiler.ir.parser import parse_module
from engram.compiler.ir.printer import print_module
from engram.compiler.ir.verifier import verify
from engram.interp.interpreter import Interpreter
from engram.passes.decompose import Decompose
from engram.passes.grad import Grad
from engram.passes.inline import Inline


def T(*shape, dtype=f64):
    return TensorType(dtype, shape)


def func(m: Module, name: str, types, fn, names=None) -> Func:
    """A function whose body is fn(builder, *args) -> results."""
    f = Func(name, types, names)
    b = Builder(f.body, Loc("t.nn", 1, 1, 1, 2))
    out = fn(b, *f.args)
    out = list(out) if isinstance(out, tuple | list) else [out]
    f.result_types = [v.type for v in out]
    b.op("func.return", out)
    return m.add(f)


def call(b: Builder, m: Module, name: str, *args):
    r = b.op("func.call", args, {"callee": name, "result_types": list(m.funcs[name].result_types)}).results
    return r[0] if len(r) == 1 else r


def region(types, fn) -> Block:
    block = Block(types)
    b = Builder(block, Loc("t.nn", 2, 1, 2, 2))
    out = fn(b, *block.args)
    b.op("scf.yield", out if isinstance(out, tuple | list) else [out])
    return block


def scan(b: Builder, length, carries, xs, fn, reverse=False):
    body = region([T(dtype=i64), *(c.type for c in carries), *(x.type.with_shape(x.type.shape[1:]) for x in xs)], fn)
    return b.op("scf.scan", [*carries, *xs], {"length": length, "n_carry": len(carries), "reverse": reverse}, [body]).results


def matmul(b, x, y):
    return b.op("tensor.dot_general", [x, y], {"lhs_batch": [], "rhs_batch": [], "lhs_contract": [1], "rhs_contract": [0]}).result


def gradient(b, y, *xs, seed=None):
    return b.op("autodiff.gradient", [y, seed or b.constant(1, y.type), *xs], {"n_y": 1, "n_x": len(xs)}).results


def total(b, x):
    return b.sum(x, range(x.type.rank))


def derive(m: Module) -> Module:
    m = clone_module(m)
    verify(m)
    for p in (Decompose(), Grad()):
        m = p.apply(m)
        verify(m, p.name)
    m.attrs["stage"] = "tensor"
    verify(m)
    assert print_module(parse_module(print_module(m))) == print_module(m)
    return m


def add_gradient(m: Module, name: str) -> None:
    """@name.grad: the adjoints of all float arguments of the scalar function @name."""
    f = m.funcs[name]

    def body(b, *args):
        watched = [b.op("autodiff.watch", [a]).result if a.type.dtype.is_float else a for a in args]
        return gradient(b, call(b, m, name, *watched), *(v for v in watched if v.type.dtype.is_float))

    func(m, name + ".grad", [a.type for a in f.args], body)


def check(m: Module, name: str, seed=0, args=None, rtol=1e-6, scale=1.0) -> Module:
    """@name.grad against central differences of @name."""
    add_gradient(m, name)
    rng = np.random.default_rng(seed)
    f = m.funcs[name]
    if args is None:
        args = [rng.uniform(-scale, scale, a.type.shape) if a.type.dtype.is_float else np.ones(a.type.shape, a.type.dtype.numpy) for a in f.args]
    out = derive(m)
    run = Interpreter(out)
    got = run.call(name + ".grad", args)
    floats = [i for i, a in enumerate(f.args) if a.type.dtype.is_float]
    for i, g in zip(floats, got):
        want = np.zeros_like(args[i])
        for at in np.ndindex(want.shape):
            values = []
            for step in (1e-6, -1e-6):
                moved = [a.copy() for a in args]
                moved[i][at] += step
                values.append(run.call(name, moved)[0])
            want[at] = (values[0] - values[1]) / 2e-6
        np.testing.assert_allclose(g, want, rtol=rtol, atol=1e-7)
    return out


def mlp(m: Module) -> None:
    func(m, "layer", [T(3, 4), T(4, 4), T(4)], lambda b, x, w, c: b.tanh(b.add(matmul(b, x, w), b.broadcast(c, (3, 4)))), ["x", "w", "c"])

    def loss(b, x, w1, c1, w2, c2):
        h = call(b, m, "layer", x, w1, c1)
        y = call(b, m, "layer", h, w2, c2)
        return total(b, b.mul(y, y))

    func(m, "loss", [T(3, 4), T(4, 4), T(4), T(4, 4), T(4)], loss, ["x", "w1", "c1", "w2", "c2"])


def test_calls_share_their_forward_and_backward_functions():
    m = Module()
    mlp(m)
    out = check(m, "loss")
    # tanh's own result is enough, so layer needs no forward function of its own
    calls = [op.attrs["callee"] for f in ("loss.fwd", "loss.bwd") for op in out.funcs[f].walk() if op.name == "func.call"]
    assert calls == ["layer", "layer", "layer.bwd", "layer.bwd"]
    assert [n for n in out.funcs if n.startswith("layer")] == ["layer", "layer.bwd"]


def test_locations_are_those_of_the_forward_ops():
    m = Module()
    mlp(m)
    add_gradient(m, "loss")
    assert all(op.loc is not None for op in derive(m).walk() if op.name not in ("func.return", "scf.yield"))


def test_hessian_vector_product():
    m = Module()
    mlp(m)
    add_gradient(m, "loss")
    types = [a.type for a in m.funcs["loss"].args]

    def directional(b, *args):
        xs, vs = args[:len(types)], args[len(types):]
        gs = call(b, m, "loss.grad", *xs)
        parts = [total(b, b.mul(g, v)) for g, v in zip(gs, vs)]
        out = parts[0]
        for p in parts[1:]:
            out = b.add(out, p)
        return out

    func(m, "dir", types * 2, directional)
    check(m, "dir", rtol=2e-5)


def test_third_derivative_of_a_scalar_function():
    m = Module()
    func(m, "f", [T()], lambda b, x: b.mul(b.sin(x), b.exp(x)))
    for n in ("f", "f.grad", "f.grad.grad"):
        add_gradient(m, n)
    x = np.float64(0.7)
    (y,) = Interpreter(derive(m)).call("f.grad.grad.grad", [np.array(x)])
    np.testing.assert_allclose(y, 2 * np.exp(x) * (np.cos(x) - np.sin(x)), rtol=1e-12)


def test_gradient_within_a_block_uses_intermediate_values():
    m = Module()

    def body(b, x):
        a = b.mul(x, x)
        y = total(b, b.mul(a, x))
        da, dx = gradient(b, y, a, x)                  # dy/da = x at a fixed; dy/dx along every path
        return da, dx

    func(m, "f", [T(3)], body)
    x = np.array([1.0, 2.0, -3.0])
    da, dx = Interpreter(derive(m)).call("f", [x])
    np.testing.assert_allclose(da, x)
    np.testing.assert_allclose(dx, 3 * x * x)


def test_watch_separates_equal_arguments():
    m = Module()

    def body(b, x):
        v, w = b.op("autodiff.watch", [x]).result, b.op("autodiff.watch", [x]).result
        return gradient(b, b.mul(b.mul(v, v), w), v, w)

    func(m, "f", [T()], body)
    dv, dw = Interpreter(derive(m)).call("f", [np.array(3.0)])
    assert (dv, dw) == (18.0, 9.0)


def test_no_dependence_gives_zeros_and_stop_gradient_blocks():
    m = Module()
    func(m, "f", [T(2), T(2)], lambda b, x, z: gradient(b, total(b, b.mul(x, b.op("tensor.stop_gradient", [x]).result)), x, z))
    dx, dz = Interpreter(derive(m)).call("f", [np.array([2.0, 5.0]), np.ones(2)])
    assert dx.tolist() == [2.0, 5.0] and dz.tolist() == [0.0, 0.0]


def branchy(b, m, x, w):
    cond = b.compare("gt", total(b, x), 0.0)
    yes = region([], lambda c: [c.sin(c.mul(x, w)), total(c, w)])
    no = region([], lambda c: [c.mul(c.exp(x), 2.0), total(c, c.mul(c.mul(x, x), w))])
    return b.op("scf.if", [cond], {}, [yes, no]).results


@pytest.mark.parametrize("sign", [1, -1])
def test_if(sign):
    m = Module()

    def f(b, x, w):
        p, q = branchy(b, m, x, w)
        return b.mul(total(b, p), q)

    func(m, "f", [T(3), T(3)], f)
    check(m, "f", args=[sign * np.array([0.5, 0.2, 0.9]), np.array([0.3, -0.7, 1.1])])


def rnn(b, m, xs, wx, wh, bias, s0, reverse=False):
    def step(c, i, s, x):
        u = c.add(matmul(c, x, wx), matmul(c, s, wh))
        s = c.tanh(c.add(u, c.broadcast(bias, u.type.shape)))
        return [s, c.mul(s, s)]
    return scan(b, xs.type.shape[0], [s0], [xs], step, reverse)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("use", ["final", "ys", "both"])
def test_scan(reverse, use):
    m = Module()

    def f(b, xs, wx, wh, bias, s0):
        s, ys = rnn(b, m, xs, wx, wh, bias, s0, reverse)
        parts = [total(b, s)] if use == "final" else [total(b, ys)] if use == "ys" else [total(b, s), total(b, ys)]
        return parts[0] if len(parts) == 1 else b.mul(*parts)

    func(m, "f", [T(4, 2, 3), T(3, 2), T(2, 2), T(2), T(2, 2)], f)
    check(m, "f")


def test_scan_matrix_adjoints_are_one_contraction_after_the_loop():
    m = Module()
    func(m, "f", [T(6, 2, 32), T(32, 32), T(32, 32), T(32), T(2, 32)], lambda b, *a: total(b, rnn(b, m, *a)[1]))
    add_gradient(m, "f")
    bwd = derive(m).funcs["f.bwd"]
    (loop,) = [op for op in bwd.body.ops if op.name == "scf.scan"]
    assert loop.attrs["n_carry"] == 1 and loop.attrs["reverse"]
    dots = [op for op in bwd.body.ops if op.name == "tensor.dot_general"]
    assert [op.result.type for op in dots] == [T(32, 32)] * 2 and all(len(op.attrs["lhs_contract"]) == 2 for op in dots)


def test_scan_captures_index_integer_carries_and_nested_scan():
    m = Module()

    def f(b, xs, w):
        zero = b.constant(0, T(dtype=i64))

        def outer(c, i, s, n, x):
            def inner(d, j, t):
                k = d.add(d.cast(j, f64), d.cast(n, f64))
                return [d.add(d.mul(d.sin(t), w), d.mul(x, d.broadcast(k, (3,))))]
            (t,) = scan(c, 3, [s], [], inner)
            return [t, c.add(n, c.constant(1, T(dtype=i64))), c.mul(t, x)]

        s, _, ys = scan(b, 4, [b.mul(w, w), zero], [xs], outer)
        return b.add(total(b, s), total(b, ys))

    func(m, "f", [T(4, 3), T(3)], f)
    check(m, "f")


def test_second_order_through_scan_and_if():
    m = Module()

    def f(b, xs, w):
        def step(c, i, s, x):
            cond = c.compare("gt", total(c, x), 0.0)
            (y,) = c.op("scf.if", [cond], {}, [region([], lambda d: d.mul(d.sin(s), w)), region([], lambda d: d.mul(d.mul(s, w), x))]).results
            return [y]
        (s,) = scan(b, 3, [w], [xs], step)
        return total(b, s)

    func(m, "f", [T(3, 2), T(2)], f)
    add_gradient(m, "f")
    func(m, "g", [T(3, 2), T(2)], lambda b, xs, w: (lambda gs: b.add(total(b, b.mul(gs[0], gs[0])), total(b, b.mul(gs[1], xs_sum(b, xs)))))(call(b, m, "f.grad", xs, w)))
    check(m, "g", rtol=2e-5)


def xs_sum(b, xs):
    return b.sum(xs, [0])


def test_two_gradients_of_one_call_share_the_forward_function():
    m = Module()
    mlp(m)

    def both(b, x, w1, c1, w2, c2):
        y = call(b, m, "loss", x, w1, c1, w2, c2)
        (a,) = gradient(b, y, w1)
        (c,) = gradient(b, y, w1, seed=b.constant(2, T()))
        return y, a, c

    func(m, "both", [a.type for a in m.funcs["loss"].args], both)
    out = derive(m)
    calls = [op.attrs["callee"] for op in out.funcs["both"].walk() if op.name == "func.call"]
    assert calls == ["loss.fwd", "loss.bwd", "loss.bwd"]
    rng = np.random.default_rng(0)
    _, a, c = Interpreter(out).call("both", [rng.uniform(-1, 1, v.type.shape) for v in out.funcs["both"].args])
    np.testing.assert_array_equal(2 * a, c)


def test_two_gradients_of_one_call_with_different_variables():
    m = Module()
    mlp(m)

    def both(b, x, w1, c1, w2, c2):
        y = call(b, m, "loss", x, w1, c1, w2, c2)
        return gradient(b, y, w1) + gradient(b, y, w2, x)

    func(m, "both", [a.type for a in m.funcs["loss"].args], both)
    add_gradient(m, "loss")
    run = Interpreter(derive(m))
    rng = np.random.default_rng(0)
    args = [rng.uniform(-1, 1, v.type.shape) for v in m.funcs["both"].args]
    want = run.call("loss.grad", args)
    for g, k in zip(run.call("both", args), (1, 3, 0)):
        np.testing.assert_allclose(g, want[k], rtol=1e-12)


def test_custom_derivative():
    m = Module()
    func(m, "step", [T(3)], lambda b, v: b.cast(b.compare("gt", v, 0.0), f64))
    func(m, "surrogate", [T(3), T(3), T(3)], lambda b, v, out, g: b.div(g, b.add(b.mul(v, v), 1.0)))
    attrs = {"forward": "step", "backward": "surrogate", "result_types": [T(3)]}
    func(m, "f", [T(3)], lambda b, v: total(b, b.mul(b.op("autodiff.custom", [v], attrs).result, 3.0)))
    add_gradient(m, "f")
    x = np.array([-1.0, 0.5, 2.0])
    out = derive(m)
    assert Interpreter(out).call("f", [x])[0] == 6.0
    np.testing.assert_allclose(Interpreter(out).call("f.grad", [x])[0], 3 / (1 + x * x))


def test_integers_on_the_way_carry_nothing():
    m = Module()

    def f(b, x):
        n = b.cast(b.cast(x, i64), f64)                # no derivative, and no error
        return total(b, b.mul(x, n))

    func(m, "f", [T(2)], f)
    add_gradient(m, "f")
    np.testing.assert_array_equal(Interpreter(derive(m)).call("f.grad", [np.array([2.5, -3.5])])[0], [2.0, -3.0])


def loop_to_zero(b, x):
    cond = region([x.type], lambda c, v: c.compare("gt", total(c, v), 0.0))
    body = region([x.type], lambda c, v: [c.sub(v, 1.0)])
    return b.op("scf.while", [x], {}, [cond, body]).result


def test_while_is_an_error_only_on_a_differentiable_path():
    m = Module()
    func(m, "f", [T(2)], lambda b, x: total(b, loop_to_zero(b, x)))
    add_gradient(m, "f")
    with pytest.raises(CompileError) as e:
        derive(m)
    (d,) = e.value.diagnostics
    assert d.message.startswith("cannot differentiate through a `while` loop: ") and "stop_gradient" in d.hint and d.span.line == 1
    m = Module()
    func(m, "f", [T(2)], lambda b, x: total(b, b.mul(x, loop_to_zero(b, b.op("tensor.stop_gradient", [x]).result))))
    add_gradient(m, "f")
    np.testing.assert_array_equal(Interpreter(derive(m)).call("f.grad", [np.array([1.5, 0.5])])[0], [0.5, -0.5])


def test_a_chain_costs_linear_work():
    def ops(n):
        m = Module()
        func(m, "f0", [T(4)], lambda b, x: b.sin(x))
        for i in range(n):
            func(m, f"f{i + 1}", [T(4)], lambda b, x, i=i: b.sin(call(b, m, f"f{i}", x)))
        func(m, "f", [T(4)], lambda b, x: total(b, call(b, m, f"f{n}", x)))
        add_gradient(m, "f")
        return sum(1 for _ in derive(m).walk())
    a, b, c = ops(4), ops(8), ops(12)
    assert c - b == b - a


def test_kept_bytes_are_minimal_for_gelu_and_softmax():
    m = Module()
    func(m, "gelu", [T(3, 8), T(8, 8)], lambda b, x, w: b.op("nn.gelu", [matmul(b, x, w)], {"approximate": "tanh"}).result)
    func(m, "soft", [T(3, 8), T(8, 8)], lambda b, x, w: b.op("nn.softmax", [matmul(b, x, w)], {"dim": 1}).result)
    for n in ("gelu", "soft"):
        func(m, n + "_loss", [T(3, 8), T(8, 8)], lambda b, x, w, n=n: total(b, call(b, m, n, x, w)))
        add_gradient(m, n + "_loss")
    out = derive(m)
    assert out.funcs["gelu.fwd"].result_types == [T(3, 8), T(3, 8)]          # the matmul's result
    assert "soft.fwd" not in out.funcs and "soft.bwd" in out.funcs           # softmax's own result is enough


def test_differentiating_inside_regions():
    m = Module()

    def f(b, x):
        def step(c, i, v):
            (g,) = gradient(c, total(c, c.mul(c.mul(v, v), v)), v)
            return [c.sub(v, c.mul(g, 0.1))]
        return scan(b, 3, [x], [], step)

    func(m, "f", [T(2)], f)
    x = want = np.array([0.5, 1.0])
    for _ in range(3):
        want = want - 0.1 * 3 * want * want
    np.testing.assert_allclose(Interpreter(derive(m)).call("f", [x])[0], want)


def test_bool_and_f32_residuals_survive():
    m = Module()
    func(m, "clip", [T(4, dtype=f32)], lambda b, x: b.select(b.compare("gt", x, 0.25), b.mul(x, x), b.constant(0, x.type)))
    func(m, "f", [T(4, dtype=f32)], lambda b, x: total(b, call(b, m, "clip", b.exp(x))))
    add_gradient(m, "f")
    x = np.array([-2.0, -1.0, 0.0, 1.0], np.float32)
    want = np.where(np.exp(x) > 0.25, 2 * np.exp(2 * x), 0)
    np.testing.assert_allclose(Interpreter(derive(m)).call("f.grad", [x])[0], want, rtol=1e-6)
    assert bool_.is_bool


def test_heads_are_kept_without_copies():
    """What is only read through a transpose by matmuls is kept as it was made."""
    m = Module()

    def f(b, x, w):
        q = b.transpose(b.reshape(matmul(b, x, w), (4, 2, 3)), [1, 0, 2])
        s = b.op("tensor.dot_general", [q, q], {"lhs_batch": [0], "rhs_batch": [0], "lhs_contract": [2], "rhs_contract": [2]}).result
        return total(b, b.sin(s))

    func(m, "f", [T(4, 6), T(6, 6)], f)
    out = check(m, "f")
    assert out.funcs["f.fwd"].result_types[1:] == [T(4, 6), T(2, 4, 4)]


def test_slices_that_make_a_whole_are_kept_as_one():
    """Queries, keys and values of one product: views that attention reads in place, so the product's result is kept and not three copies."""
    m = Module()

    def heads(b, x):
        return b.transpose(b.reshape(x, (4, 2, 3)), [1, 0, 2])
    func(m, "heads", [T(4, 6)], heads)

    def f(b, x, w):
        u = matmul(b, x, w)
        q, k, v = (call(b, m, "heads", b.op("tensor.slice", [u], {"start": [0, 6 * i], "limit": [4, 6 * i + 6], "stride": [1, 1]}).result) for i in range(3))
        return total(b, b.op("tensor.attention", [q, k, v], {"causal": True, "scale": 0.5}).results[0])

    func(m, "f", [T(4, 6), T(6, 18)], f)
    add_gradient(m, "f")
    m = Inline(moves=True).apply(m)
    assert "heads" not in m.funcs or not any(op.name == "func.call" for op in m.funcs["f"].walk())
    out = derive(m)
    assert T(4, 18) in out.funcs["f.fwd"].result_types and out.funcs["f.fwd"].result_types.count(T(2, 4, 3)) <= 1
