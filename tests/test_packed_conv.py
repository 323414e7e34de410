"""Convolutions with cheap weights: integer products of windows, the same numbers on every backend; straight-through gradients; what the loop stage holds.

Weights are multiples of 1/8, so that their mean, ternary's scale, is exact in any order: all else is integers and a few products of the same numbers,
and backends agree bit for bit."""
import itertools

import engram as eg
import numpy as np
import pytest
from engram.codegen.cpu.compile import optimise_and_emit
from engram.codegen.opencl.device import available
from engram.compiler import driver
from engram.compiler.ir.parser import parse_module
from engram.interp.interpreter import Interpreter

RNG = np.random.default_rng(5)
OK, WHY = available()
needs_opencl = pytest.mark.skipif(not OK, reason=f"no OpenCL device: {WHY}")
WEIGHTS = ["ternary", "int8", "int4", "pow2(7)", "pow2(12)"]
CASES = [  # x, filter, stride, dilation, zeros before, zeros behind
    ((2, 3, 6, 7), (5, 3, 3, 3), (1, 1), (1, 1), (1, 1), (1, 1)),
    ((2, 1, 12, 13), (33, 1, 5, 5), (1, 1), (1, 1), (2, 2), (2, 2)),
    ((2, 16, 9, 9), (17, 16, 3, 3), (2, 2), (1, 1), (1, 0), (0, 1)),
    ((1, 8, 11, 30), (20, 8, 3, 2), (1, 3), (1, 2), (1, 1), (2, 2)),
    ((1, 24, 5, 29), (4, 24, 3, 3), (1, 1), (2, 1), (2, 1), (2, 1)),
    ((3, 5, 20), (7, 5, 4), (2,), (1,), (3,), (1,)),
    ((3, 5, 20), (7, 5, 4), (1,), (3,), (3,), (1,)),
    ((2, 2, 4, 5, 6), (9, 2, 2, 3, 2), (1, 1, 2), (1, 1, 1), (0, 1, 0), (1, 1, 0)),
    ((2, 6, 4, 5), (9, 6, 1, 1), (1, 1), (1, 1), (0, 0), (0, 0)),
    ((1, 4, 3, 3), (9, 4, 3, 3), (1, 1), (1, 1), (0, 0), (0, 0)),
]


def out_shape(case):
    x, w, stride, dilation, low, high = case
    return (x[0], w[0], *((s + p + q - d * (k - 1) - 1) // t + 1 for s, k, t, d, p, q in zip(x[2:], w[2:], stride, dilation, low, high)))


def op_text(case, weight, result="%y", x="%x", w="%w"):
    attrs = ", ".join(f"{a} = {list(v)}" for a, v in zip(("stride", "dilation", "low", "high"), case[2:]))
    return f'{result} = nn.quantized_conv({x}, {w}) {{weight = "{weight}", {attrs}}} : {tensor(out_shape(case))}'


def tensor(shape):
    return f"f32[{','.join(map(str, shape))}]"


def module(case, weight):
    return parse_module(f'module attributes {{entries = ["f"]}} {{ func @f(%x: {tensor(case[0])}, %w: {tensor(case[1])}) -> ({tensor(out_shape(case))}) '
                        f'{{ {op_text(case, weight)} func.return(%y) }} }}')


def arrays(case):
    return RNG.standard_normal(case[0]).astype(np.float32), (RNG.integers(-16, 17, case[1]) / 8).astype(np.float32)


def rounded(x):
    """In f32, so that what is near a half falls to the same side."""
    x = x.astype(np.float32)
    top = np.abs(x).max(tuple(range(1, x.ndim)), keepdims=True)
    return np.clip(np.round(127 * x / top), -128, 127).astype(float), (top / 127).astype(float)


def weights(w, weight):
    w = w.astype(np.float32)
    a = np.abs(w)
    if weight == "ternary":
        return np.clip(np.round(w / a.mean()), -1, 1) * a.mean()
    top = {"int8": 127, "int4": 7}[weight]
    return np.round(w / (a.max() / top)) * a.max() / top


def windows(x, case):
    """[B, in, o.., k..] of x with its zeros."""
    _, w, stride, dilation, low, high = case
    x = np.ascontiguousarray(np.pad(x, [(0, 0), (0, 0), *zip(low, high)]))
    at = x.strides[2:]
    return np.lib.stride_tricks.as_strided(x, (*x.shape[:2], *out_shape(case)[2:], *w[2:]),
                                           (*x.strides[:2], *(a * s for a, s in zip(at, stride)), *(a * d for a, d in zip(at, dilation))), writeable=False)


def convolved(x, w, case):
    o, k = "yxz"[:len(w.shape) - 2], "jkl"[:len(w.shape) - 2]
    return np.einsum(f"bc{o}{k},oc{k}->bo{o}", windows(x, case), w)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_backends_agree_bit_for_bit(case):
    x, w = arrays(case)
    for weight in WEIGHTS:
        want, = driver.build(module(case, weight), "interp").call("f", [x, w])
        for backend in ["cpu", "opencl"] if OK else ["cpu"]:
            got, = driver.build(module(case, weight), backend).call("f", [x, w])
            np.testing.assert_array_equal(got, want, err_msg=f"{weight} on {backend}")


@pytest.mark.parametrize("weight", ["ternary", "int8", "int4"])
def test_the_interpreter_follows_the_equations(weight):
    for case in CASES:
        x, w = arrays(case)
        q, step = rounded(x.astype(float))
        want = convolved(q * step, weights(w.astype(float), weight), case)
        got, = driver.build(module(case, weight), "interp").call("f", [x, w])
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("cpu", ["avx2", "generic"])
def test_other_processors(cpu, monkeypatch):
    monkeypatch.setenv("ENGRAM_CPU", cpu)
    for case, weight in itertools.product(CASES[:4], WEIGHTS):
        x, w = arrays(case)
        want, = driver.build(module(case, weight), "interp").call("f", [x, w])
        np.testing.assert_array_equal(driver.build(module(case, weight), "cpu").call("f", [x, w])[0], want, err_msg=f"{case} {weight}")


def test_the_interpreter_runs_the_loop_stage():
    for case, weight in ((CASES[0], "int8"), (CASES[3], "pow2(7)")):
        x, w = arrays(case)
        want, = driver.build(module(case, weight), "interp").call("f", [x, w])
        np.testing.assert_array_equal(Interpreter(driver.lower(module(case, weight))).call("f", [x, w])[0], want)


def test_threads_share_a_convolution():
    case = ((6, 16, 14, 14), (40, 16, 3, 3), (1, 1), (1, 1), (1, 1), (1, 1))
    x, w = arrays(case)
    results = [driver.build(module(case, "ternary"), "cpu", n).call("f", [x, w])[0] for n in (1, 2, 3, 4)]
    q, step = rounded(x.astype(float))
    np.testing.assert_allclose(results[0], convolved(q * step, weights(w.astype(float), "ternary"), case), rtol=1e-5, atol=1e-4)
    for y in results[1:]:
        np.testing.assert_array_equal(y, results[0])


def test_code_for_neon_assembles():
    from engram.codegen.cpu.emit import Emitter
    from engram.codegen.cpu.target import CpuTarget
    target = CpuTarget("neon", "aarch64-unknown-linux-gnu", "generic", "+dotprod", 16, 32, True, False)
    for weight in WEIGHTS:
        texts: list[str] = []
        Emitter(driver.lower(module(CASES[2], weight)), target, 1, ready=lambda text, *_, texts=texts: texts.append(text)).run(["f"])
        assembly = "\n".join(optimise_and_emit(text, target, assembly=True) for text in texts)
        assert weight == "pow2(12)" or "sdot" in assembly


@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[3], CASES[5]], ids=str)
def test_gradients_pass_straight_through(case):
    """Those of the float convolution of the rounded x with the rounded w."""
    y, xs, ws = (tensor(s) for s in (out_shape(case), *case[:2]))
    text = (f'module attributes {{entries = ["f"]}} {{ func @f(%x: {xs}, %w: {ws}, %g: {y}) -> ({xs}, {ws}) {{ {op_text(case, "ternary")} '
            f'%dx, %dw = autodiff.gradient(%y, %g, %x, %w) {{n_y = 1, n_x = 2}} : {xs}, {ws} func.return(%dx, %dw) }} }}')
    x, w = arrays(case)
    g = RNG.standard_normal(out_shape(case)).astype(np.float32)
    dx, dw = driver.build(parse_module(text)).call("f", [x, w, g])
    q, step = rounded(x.astype(float))
    v, wq = windows(q * step, case), weights(w.astype(float), "ternary")
    o, k = "yxz"[:len(w.shape) - 2], "jkl"[:len(w.shape) - 2]
    np.testing.assert_allclose(dw, np.einsum(f"bo{o},bc{o}{k}->oc{k}", g, v), rtol=1e-4, atol=1e-4)
    probe = RNG.standard_normal(x.shape)                     # <dx, p> = <g, conv(p, Q(w))>
    np.testing.assert_allclose((dx * probe).sum(), (g * convolved(probe, wq, case)).sum(), rtol=1e-4)


# ---- as users say it ----

NET = """
import "std/nn.nn"
layer Net(weight = f32, groups = 1) {
  a = Conv2d(3, 8, 3, padding = 1, weight = weight)
  b = Conv2d(8, 12, 3, stride = 2, groups = groups, weight = weight)
  fn (x: f32[B, 3, 9, 9]) { b(relu(a(x))) }
}
"""


def net(model, x, weight):
    """NumPy's idea of NET."""
    p = {k: v.astype(float) for k, v in model.parameters.items()}
    for name, stride, pad in (("a", 1, 1), ("b", 2, 0)):
        q, step = rounded(x)
        case = (x.shape, p[f"{name}.w"].shape, (stride, stride), (1, 1), (pad, pad), (pad, pad))
        x = convolved(q * step, weights(p[f"{name}.w"], weight), case) + p[f"{name}.b"][:, None, None]
        x = np.maximum(x, 0) if name == "a" else x
    return x


@pytest.mark.parametrize("backend", ["cpu", "interp", pytest.param("opencl", marks=needs_opencl)])
@pytest.mark.parametrize("weight", ["ternary", "int8"])
def test_models_are_quantised_on_request_and_as_declared(weight, backend):
    """Within what one step of an activation makes: a rounded half may fall to the other side."""
    m = eg.Model(NET, "Net", quantize=weight, backend=backend, seed=1)
    x = RNG.standard_normal((2, 3, 9, 9)).astype(np.float32)
    np.testing.assert_allclose(m(x), net(m, x.astype(float), weight), rtol=1e-4, atol=2e-2)
    assert np.abs(m(x) - eg.Model(NET, "Net", backend=backend, seed=1)(x)).max() > 1e-3
    np.testing.assert_array_equal(eg.Model(NET, "Net", seed=1, weight=weight, backend=backend)(x), m(x))


def test_filters_are_packed_once_and_again_when_they_change():
    m = eg.Model(NET, "Net", quantize="ternary")
    x = RNG.standard_normal((2, 3, 9, 9)).astype(np.float32)
    y = m(x)
    (_, e), = m._forwards.values()
    loop = driver.lower(driver._packed_once(e.module)[0])
    assert [op.name for op in loop.walk() if "pack" in op.name or "contract" in op.name] == ["loop.contract_packed"] * 2
    read = {v for op in loop.walk() for v in op.operands}
    stored = [v for v in loop.funcs[e.entry].args if v.name in ("a.w", "b.w")]
    assert len(stored) == 2 and not read & set(stored)
    m.parameters["a.w"] = -m.parameters["a.w"]
    z = m(x)
    assert not np.array_equal(y, z)
    np.testing.assert_allclose(z, net(m, x.astype(float), "ternary"), rtol=1e-4, atol=2e-2)


def test_windows_are_not_written_out():
    """The largest buffer is the result: no im2col."""
    case = ((2, 32, 20, 20), (32, 32, 3, 3), (1, 1), (1, 1), (1, 1), (1, 1))
    loop = driver.lower(module(case, "ternary"))
    assert max(op.attrs["type"].numel * op.attrs["type"].dtype.bytes for op in loop.walk() if op.name == "loop.alloc") <= 4 * 2 * 32 * 20 * 20


def test_a_local_layer_multiplies_integers():
    """The step of a ternary LocalConv: its forward convolutions are packed; what multiplies floats are gradients and readouts."""
    text = """import "std/nn.nn"
layer Net() { c1 = LocalConv(1, 8, 5, pool = 2, norm = false, weight = ternary, int8_inputs = true)
  c2 = LocalConv(8, 16, 3, weight = ternary, int8_inputs = true)
  fn (x: f32[B, 1, 12, 12]) { c2(c1(x)) } }"""
    m = eg.Model(text, "Net")
    m(RNG.standard_normal((2, 1, 12, 12)).astype(np.float32))
    (_, e), = m._forwards.values()
    names = [op.name for op in driver.lower(e.module).walk() if op.name.startswith("loop.contract")]
    assert names == ["loop.contract_packed"] * 2


def test_groups_read_quantised_floats():
    """A group's few channels are no product worth packing: the filter's rounded values, activations as they are."""
    m = eg.Model(NET, "Net", weight="ternary", groups=4, seed=2)
    x = RNG.standard_normal((2, 3, 9, 9)).astype(np.float32)
    m(x)
    (_, e), = m._forwards.values()
    assert sum(op.name == "loop.contract_packed" for op in driver.lower(e.module).walk()) == 1


def test_training_learns_through_the_rounding():
    x = RNG.standard_normal((128, 3, 9, 9)).astype(np.float32)
    y = np.argmax(x.mean((2, 3)), axis=1)
    text = NET.replace("{ b(relu(a(x))) }", "{ mean(b(relu(a(x))), dim = [2, 3]) }")
    models = [eg.Model(text, "Net", seed=2, quantize="ternary"), eg.Model(text, "Net", seed=2, weight="ternary")]
    for m in models:
        m.compile(loss="cross_entropy", optimizer=eg.Adam(1e-2), metrics=["accuracy"])
        h = m.fit(x, y, epochs=30, batch_size=32, verbose=0)
        assert h.history["accuracy"][-1] > 0.8
    for path, v in models[0].parameters.items():
        np.testing.assert_array_equal(v, models[1].parameters[path], err_msg=path)
