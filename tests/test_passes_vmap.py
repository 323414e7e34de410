"""autodiff.vmap: every op's sample, with every choice of batched operands, against one example after the other; control flow, gradients."""
import itertools

import numpy as np
import pytest
from engram.compiler.ir import Module, TensorType, bool_, f64, i64
from engram.compiler.ir.parser import parse_module
from engram.compiler.ops import OPS, TENSOR
from engram.interp.interpreter import Interpreter
from test_grad import T, add_gradient, branchy, call, derive, func, loop_to_zero, mlp, rnn, scan, total

SIZE = 3


def type_of(text: str) -> TensorType:
    return parse_module(f"module {{ func @t(%x: {text}) -> () {{ func.return() }} }}").funcs["t"].args[0].type


def vmap(m: Module, name: str, mask, in_dims=None, out_dims=None) -> str:
    """@name.v: @name mapped over the arguments in the mask, along dim 0 unless told."""
    f = m.funcs[name]
    dims = in_dims or [0 if on else -1 for on in mask]
    outs = out_dims or [0] * len(f.result_types)

    def put(t, d):
        return t.with_shape((*t.shape[:d], SIZE, *t.shape[d:])) if d >= 0 else t

    types = [put(a.type, d) for a, d in zip(f.args, dims)]
    attrs = {"callee": name, "in_dims": dims, "out_dims": outs, "size": SIZE, "result_types": [put(t, d) for t, d in zip(f.result_types, outs)]}
    func(m, name + ".v", types, lambda b, *args: b.op("autodiff.vmap", args, attrs).results)
    return name + ".v"


def against_loop(m: Module, name: str, mask, args, exact=True, in_dims=None, out_dims=None):
    v = vmap(m, name, mask, in_dims, out_dims)
    run = Interpreter(derive(m))
    got = run.call(v, args)
    dims = in_dims or [0 if on else -1 for on in mask]
    rows = [run.call(name, [np.take(a, i, d) if d >= 0 else a for a, d in zip(args, dims)]) for i in range(SIZE)]
    for k, g in enumerate(got):
        want = np.stack([row[k] for row in rows], (out_dims or [0] * len(got))[k])
        (np.testing.assert_array_equal if exact else np.testing.assert_allclose)(g, want, **({} if exact else {"rtol": 1e-12}))


def cases():
    for name, row in OPS.items():
        if TENSOR in row.stages and not row.terminator and row.n_regions == 0 and name.startswith(("tensor.", "random.")):
            for k, sample in enumerate(row.samples):
                if sample.inputs:
                    yield pytest.param(name, sample, id=f"{name}-{k}")


@pytest.mark.parametrize("name, sample", list(cases()))
def test_every_op(name, sample):
    types = [type_of(t) for t, *_ in sample.inputs]
    rng = np.random.default_rng(0)
    for mask in itertools.product([False, True], repeat=len(types)):
        if not any(mask):
            continue
        m = Module()
        func(m, "f", types, lambda b, *args: b.op(name, args, dict(sample.attrs)).results)
        args = []
        for on, t, (_, lo, hi) in zip(mask, types, sample.inputs):
            shape = (SIZE, *t.shape) if on else t.shape
            values = rng.uniform(lo, hi, shape) if t.dtype.is_float else rng.integers(int(lo), (1 if t.dtype is bool_ else int(hi)) + 1, shape)
            args.append(np.asarray(values).astype(t.dtype.numpy))
        against_loop(m, "f", mask, args)


@pytest.mark.parametrize("mask", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("kind", ["if", "scan", "while"])
def test_control_flow(kind, mask):
    m = Module()
    fns = {"if": lambda b, x, w: list(branchy(b, m, x, w)),
           "scan": lambda b, x, w: list(scan(b, 3, [w], [b.broadcast(x, (3, 3))], lambda c, i, s, v: [c.add(c.sin(s), v), c.mul(s, c.cast(c.broadcast(i, (3,)), f64))])),
           "while": lambda b, x, w: [b.add(loop_to_zero(b, x), w)]}
    func(m, "f", [T(3), T(3)], fns[kind])
    rng = np.random.default_rng(1)
    against_loop(m, "f", mask, [rng.uniform(-2, 4, (SIZE, 3) if on else (3,)) for on in mask])


def test_dims_other_than_the_first():
    m = Module()
    func(m, "f", [T(2, 4)], lambda b, x: [b.exp(x), b.sum(x, [0])])
    against_loop(m, "f", (True,), [np.random.default_rng(0).normal(size=(2, SIZE, 4))], in_dims=[1], out_dims=[2, 1])


def test_results_that_do_not_vary_are_repeated():
    m = Module()
    func(m, "f", [T(2), T(2)], lambda b, x, w: [b.sin(w), b.mul(x, w)])
    against_loop(m, "f", (True, False), [np.ones((SIZE, 2)), np.array([1.0, 2.0])])


def test_gradient_of_each_example_and_gradient_through_vmap():
    m = Module()
    mlp(m)
    add_gradient(m, "loss")
    rng = np.random.default_rng(3)
    args = [rng.normal(size=(SIZE, *a.type.shape) if i == 0 else a.type.shape) for i, a in enumerate(m.funcs["loss"].args)]
    against_loop(m, "loss.grad", (True, *[False] * 4), args, exact=False)
    v = vmap(m, "loss", (True, *[False] * 4))
    func(m, "sum", [a.type for a in m.funcs[v].args], lambda b, *xs: total(b, call(b, m, v, *xs)))
    add_gradient(m, "sum")
    run = Interpreter(derive(m))
    each, whole = run.call("loss.grad.v", args), run.call("sum.grad", args)
    np.testing.assert_allclose(each[0], whole[0], rtol=1e-12)
    for e, w in zip(each[1:], whole[1:]):
        np.testing.assert_allclose(e.sum(0), w, rtol=1e-10)


def test_recurrent_nets_and_nested_vmap():
    m = Module()
    func(m, "f", [T(4, 2, 3), T(3, 2), T(2, 2), T(2), T(2, 2)], lambda b, *a: total(b, rnn(b, m, *a)[1]))
    add_gradient(m, "f")
    rng = np.random.default_rng(4)
    args = [rng.normal(size=(SIZE, *a.type.shape) if i in (0, 4) else a.type.shape) for i, a in enumerate(m.funcs["f"].args)]
    against_loop(m, "f.grad", (True, False, False, False, True), args, exact=False)
    m = Module()
    func(m, "g", [T(2), T(2)], lambda b, x, y: total(b, b.mul(x, y)))
    vmap(m, "g", (True, False))
    vmap(m, "g.v", (False, True))
    x, y = rng.normal(size=(SIZE, 2)), rng.normal(size=(SIZE, 2))
    np.testing.assert_allclose(Interpreter(derive(m)).call("g.v.v", [x, y])[0], y @ x.T)


def test_custom_derivative_of_each_example():
    m = Module()
    func(m, "step", [T(2), T()], lambda b, v, w: b.mul(b.cast(b.compare("gt", v, 0.0), f64), b.broadcast(w, (2,))))
    func(m, "back", [T(2), T(), T(2), T(2)], lambda b, v, w, out, g: [b.div(g, b.add(b.mul(v, v), 1.0)), b.constant(2, T())])
    attrs = {"forward": "step", "backward": "back", "result_types": [T(2)]}
    func(m, "f", [T(2), T()], lambda b, v, w: total(b, b.op("autodiff.custom", [v, w], attrs).result))
    add_gradient(m, "f")
    against_loop(m, "f.grad", (True, False), [np.array([[1.0, -1], [2, 3], [0.5, 0]]), np.array(1.5)])


def test_keys_give_each_example_its_own_numbers():
    m = Module()
    func(m, "f", [type_of("u64[]"), T(dtype=i64)], lambda b, k, i: b.op("random.normal", [b.op("random.fold_in", [k, i]).result], {"shape": [5], "dtype": f64}).result)
    against_loop(m, "f", (False, True), [np.array(7, np.uint64), np.arange(SIZE)])
