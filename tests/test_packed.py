"""Cheap weights: packed codes and integer products against NumPy on every kind of processor; straight-through gradients; what the loop stage holds."""
import engram as eg
import numpy as np
import pytest
from engram.codegen.cpu.compile import optimise_and_emit
from engram.codegen.opencl.device import available
from engram.compiler import driver
from engram.compiler.ir.parser import parse_module
from engram.compiler.ir.printer import print_module
from engram.compiler.ops.packed import FORMATS, packed_shape

RNG = np.random.default_rng(3)
OK, WHY = available()
needs_opencl = pytest.mark.skipif(not OK, reason=f"no OpenCL device: {WHY}")


def module(body: str, args: str, result: str):
    return parse_module(f'module attributes {{entries = ["f"]}} {{ func @f({args}) -> ({result}) {{ {body} func.return(%y) }} }}')


def matrix(fmt, k, n):
    if fmt.powers:
        return (RNG.choice([0, 1, 2, 4, 8, 16, 32, 64], (k, n)) * RNG.choice([-1, 1], (k, n))).astype(np.int8)
    return RNG.integers(max(fmt.low, -4000), min(fmt.high, 4000) + 1, (k, n)).astype(fmt.memory[1].numpy)


def dot_program(fmt, m, k, n, backend="cpu", threads=None):
    """Packs a k x n matrix and multiplies m rows with it."""
    t, p = fmt.memory[1], f"{fmt.memory[0]}[{','.join(map(str, packed_shape(fmt, k, n)))}]"
    body = (f'%p = tensor.pack(%w) {{format = "{fmt.name}"}} : {p} '
            f'%y = tensor.dot_packed(%x, %p) {{format = "{fmt.name}", n = {n}}} : i32[{m},{n}]')
    return driver.build(module(body, f"%x: {t}[{m},{k}], %w: {t}[{k},{n}]", f"i32[{m},{n}]"), backend, threads)


SIZES = [(1, 48, 70), (1, 160, 64), (1, 656, 40), (2, 32, 16), (13, 64, 50), (40, 96, 33)]


@pytest.mark.parametrize("cpu", ["", "avx2", "generic"])
@pytest.mark.parametrize("name", list(FORMATS))
def test_products_are_exact(name, cpu, monkeypatch):
    monkeypatch.setenv("ENGRAM_CPU", cpu)
    fmt = FORMATS[name]
    for m, k, n in SIZES:
        x = RNG.integers(-128, 128, (m, k)).astype(fmt.memory[1].numpy)
        w = matrix(fmt, k, n)
        y, = dot_program(fmt, m, k, n).call("f", [x, w])
        np.testing.assert_array_equal(y, x.astype(np.int64) @ w.astype(np.int64), err_msg=f"{m} x {k} x {n}")


@pytest.mark.parametrize("cpu", ["", "avx2"])
@pytest.mark.parametrize("name", list(FORMATS))
def test_the_largest_sums_of_one_row(name, cpu, monkeypatch):
    """Codes that are not shifted count up to 64 times: their sums have to fit all the same, and no pair of them may saturate."""
    monkeypatch.setenv("ENGRAM_CPU", cpu)
    fmt = FORMATS[name]
    for a, value in ((-128, fmt.low), (127, fmt.high), (-128, fmt.high)):
        value, k = (value, 4096) if fmt.bits < 16 else (value // 32, 256)
        x, w = (np.full(s, v, fmt.memory[1].numpy) for s, v in (((1, k), a), ((k, 20), value)))
        y, = dot_program(fmt, 1, k, 20).call("f", [x, w])
        np.testing.assert_array_equal(y, x.astype(np.int64) @ w.astype(np.int64))


@pytest.mark.parametrize("m", [1, 70])
def test_threads_share_a_product(m):
    fmt = FORMATS["ternary"]
    x, w = RNG.integers(-128, 128, (m, 512)).astype(np.int8), matrix(fmt, 512, 700)
    results = [dot_program(fmt, m, 512, 700, threads=n).call("f", [x, w])[0] for n in (1, 2, 3)]
    for y in results:
        np.testing.assert_array_equal(y, x.astype(np.int64) @ w.astype(np.int64))


@pytest.mark.parametrize("features", ["", "+dotprod"])
def test_code_for_neon_assembles(features):
    from engram.codegen.cpu.emit import Emitter
    from engram.codegen.cpu.target import CpuTarget
    target = CpuTarget("neon", "aarch64-unknown-linux-gnu", "generic", features, 16, 32, True, False)
    for fmt in FORMATS.values():
        t, p = fmt.memory[1], f"{fmt.memory[0]}[{','.join(map(str, packed_shape(fmt, 64, 20)))}]"
        body = f'%p = tensor.pack(%w) {{format = "{fmt.name}"}} : {p} %y = tensor.dot_packed(%x, %p) {{format = "{fmt.name}", n = 20}} : i32[3,20]'
        loop = driver.lower(module(body, f"%x: {t}[3,64], %w: {t}[64,20]", "i32[3,20]"))
        texts: list[str] = []
        Emitter(loop, target, 1, ready=lambda text, *_, texts=texts: texts.append(text)).run(["f"])
        assembly = "\n".join(optimise_and_emit(text, target, assembly=True) for text in texts)
        assert not features or fmt.bits == 16 or "sdot" in assembly


def quantised(weight: str, contract: int = 0, shape="[33,20]", rows="[5,33]", n=20, columns=False):
    more = ", columns = true" if columns else ""
    return module(f'%y = nn.quantized_dot(%x, %w) {{weight = "{weight}", contract = {contract}{more}}} : f32[5,{n}]', f"%x: f32{rows}, %w: f32{shape}", f"f32[5,{n}]")


def definition(x, w, weight, columns=False):
    """The equations of docs/CHEAP.md; `columns`: each of w's has a scale of its own."""
    a = np.abs(w)
    if weight == "ternary":
        q = np.clip(np.round(w / a.mean()), -1, 1) * a.mean()
    elif weight.startswith("pow2"):
        n, km = int(weight[5:-1]), np.floor(np.log2(4 / 3 * a.max()))
        k = np.minimum(np.round(np.log2(a)), km)
        q = np.where(k <= km - n, 0, np.sign(w) * 2.0 ** k)
    else:
        top = {"int8": 127, "int4": 7}[weight]
        largest = a.max(0) if columns else a.max()
        q = np.round(w / (largest / top)) * largest / top
    top = np.abs(x).max(1, keepdims=True)
    return np.clip(np.round(127 * x / top), -128, 127) * top / 127 @ q


@pytest.mark.parametrize("backend", ["cpu", "interp", pytest.param("opencl", marks=needs_opencl)])
@pytest.mark.parametrize("weight, columns", [*((w, False) for w in ("ternary", "int8", "int4", "pow2(7)", "pow2(4)", "pow2(12)")), ("int8", True), ("int4", True)])
def test_quantised_products_follow_their_equations(weight, columns, backend):
    x, w = RNG.standard_normal((5, 33)).astype(np.float32), (RNG.standard_normal((33, 20)) * 2.0 ** np.arange(-10, 10)).astype(np.float32)
    for contract, v in ((0, w), (1, np.ascontiguousarray(w.T))):
        m = quantised(weight, contract, f"[{v.shape[0]},{v.shape[1]}]", columns=columns)
        y, = driver.build(m, backend).call("f", [x, v])
        want = definition(x.astype(float), w.astype(float), weight, columns)
        np.testing.assert_allclose(y, want, rtol=2e-5, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("weight", ["int8", "int4"])
def test_columns_are_quantised_by_themselves(weight):
    w = (RNG.standard_normal((7, 5)) * 10.0 ** np.arange(5)).astype(np.float32)
    for along, v in ((0, w), (1, np.ascontiguousarray(w.T))):
        shape = f"f32[{v.shape[0]},{v.shape[1]}]"
        for backend in ("cpu", "interp"):
            q, = driver.build(module(f'%y = nn.quantize(%w) {{weight = "{weight}", along = {along}}} : {shape}', f"%w: {shape}", shape), backend).call("f", [v])
            np.testing.assert_allclose(q, definition(np.eye(7), w.astype(float), weight, True) if along == 0 else definition(np.eye(7), w.astype(float), weight, True).T, rtol=1e-6)


@pytest.mark.parametrize("turned", [False, True])
def test_the_option_gives_columns_their_scales_on_either_side(turned):
    """Whichever way a matrix is stored and multiplied: what one result is summed from shares a scale."""
    body = "w @ x" if turned else "x @ w"
    dims = ("f32[i]", "f32[o, i]", "f32[o]") if turned else ("f32[B, i]", "f32[i, o]", "f32[B, o]")
    p = eg.compile(f"fn f(x: {dims[0]}, w: {dims[1]}) -> {dims[2]} {{ {body} }}\n", quantize="int4")
    x, w = RNG.standard_normal((3, 24)).astype(np.float32), (RNG.standard_normal((24, 9)) * 3.0 ** np.arange(9)).astype(np.float32)
    y = np.stack([p.f(r, np.ascontiguousarray(w.T)) for r in x]) if turned else p.f(x, w)
    np.testing.assert_allclose(y, definition(x.astype(float), w.astype(float), "int4", True), rtol=2e-4, atol=1e-3)


def test_pow2_has_as_many_exponents_as_it_says():
    w = (2.0 ** -np.arange(20) * np.where(np.arange(20) % 2, -1, 1)).astype(np.float32)
    for n in (1, 4, 7, 12):
        q, = driver.build(module(f'%y = nn.quantize(%w) {{weight = "pow2({n})"}} : f32[20]', "%w: f32[20]", "f32[20]")).call("f", [w])
        np.testing.assert_array_equal(q, np.where(np.arange(20) < n, w, 0))


def test_no_float_product_remains():
    text = print_module(driver.lower(quantised("ternary")), locs=False)
    assert "loop.contract_packed" in text and "loop.contract(" not in text


def test_rows_of_zeros_and_weights_of_zeros():
    y, = driver.build(quantised("ternary")).call("f", [np.zeros((5, 33), np.float32), np.zeros((33, 20), np.float32)])
    assert not y.any()


PROGRAM = """
import "std/nn.nn"
layer Net(weight = f32) {
  a = Linear(12, 20, weight = weight)
  b = Linear(20, 3, weight = weight, bias = false)
  fn (x: f32[B, 12]) -> f32[B, 3] { b(relu(a(x))) }
}
"""


def test_gradients_pass_straight_through():
    """d loss / dw = Q(x)^T g and dx = g Q(w)^T."""
    text = module('%y0 = nn.quantized_dot(%x, %w) {weight = "ternary", contract = 0} : f32[5,20] '
                  '%dx, %dw = autodiff.gradient(%y0, %g, %x, %w) {n_y = 1, n_x = 2} : f32[5,33], f32[33,20] %y = tensor.stop_gradient(%y0) : f32[5,20]',
                  "%x: f32[5,33], %w: f32[33,20], %g: f32[5,20]", "f32[5,20]")
    f = text.funcs["f"]
    dx, dw = f.body.ops[1].results
    f.returns.operands = [dx, dw]
    f.result_types = [dx.type, dw.type]
    x, w, g = (RNG.standard_normal(s).astype(np.float32) for s in ((5, 33), (33, 20), (5, 20)))
    got = driver.build(text).call("f", [x, w, g])
    eye = np.eye(33)
    q = definition(eye, w.astype(float), "ternary")
    top = np.abs(x).max(1, keepdims=True)
    np.testing.assert_allclose(got[0], g @ q.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got[1], (np.round(127 * x / top) * top / 127).T @ g, rtol=1e-4, atol=1e-4)


# ---- as users say it ----

def forward(model, x, weight):
    """NumPy's idea of PROGRAM with quantised weights."""
    p = {k: v.astype(float) for k, v in model.parameters.items()}
    columns = weight in ("int8", "int4")
    h = np.maximum(definition(x.astype(float), p["a.w"], weight, columns) + p["a.b"], 0)
    return definition(h, p["b.w"], weight, columns)


@pytest.mark.parametrize("backend", ["cpu", "interp", pytest.param("opencl", marks=needs_opencl)])
@pytest.mark.parametrize("weight", ["ternary", "int8", "pow2(7)", "int4"])
def test_a_float_model_is_quantised_on_request(weight, backend):
    m = eg.Model(PROGRAM, "Net", quantize=weight, backend=backend)
    x = RNG.standard_normal((5, 12)).astype(np.float32)
    np.testing.assert_allclose(m(x), forward(m, x, weight), rtol=1e-4, atol=2e-2)
    assert np.abs(m(x) - eg.Model(PROGRAM, "Net", backend=backend)(x)).max() > 1e-4


def test_declared_weights_and_the_option_agree():
    x = RNG.standard_normal((4, 12)).astype(np.float32)
    a = eg.Model(PROGRAM.replace("weight = f32", "weight = ternary"), "Net", seed=3)
    np.testing.assert_array_equal(a(x), eg.Model(PROGRAM, "Net", seed=3, quantize="ternary")(x))


def test_weights_are_packed_once_and_again_when_they_change():
    m = eg.Model(PROGRAM, "Net", quantize="ternary")
    x = RNG.standard_normal((2, 12)).astype(np.float32)
    y = m(x)
    (_, e), = m._forwards.values()
    loop = driver.lower(driver._packed_once(e.module)[0])
    assert [op.name for op in loop.walk() if "pack" in op.name] == ["loop.contract_packed"] * 2
    read = {v for op in loop.walk() for v in op.operands}
    stored = [v for v in loop.funcs[e.entry].args if v.name in ("a.w", "b.w")]
    assert len(stored) == 2 and not read & set(stored)                # the floats are arguments that nothing reads
    m.parameters["a.w"] = -m.parameters["a.w"]
    z = m(x)
    assert not np.array_equal(y, z)
    np.testing.assert_allclose(z, forward(m, x, "ternary"), rtol=1e-4, atol=2e-2)
    m.parameters["a.w"] = -m.parameters["a.w"]
    np.testing.assert_array_equal(m(x), y)


def test_quantised_training_learns():
    x = RNG.standard_normal((256, 12)).astype(np.float32)
    y = np.argmax(x[:, :3], axis=1)
    m = eg.Model(PROGRAM, "Net", quantize="ternary")
    m.compile(loss="cross_entropy", optimizer=eg.Adam(1e-2), metrics=["accuracy"])
    h = m.fit(x, y, epochs=25, batch_size=32, verbose=0)
    assert h.history["accuracy"][-1] > 0.9 and h.history["loss"][-1] < h.history["loss"][0] / 2
    np.testing.assert_allclose(m.evaluate(x, y)["accuracy"], np.mean(np.argmax(m(x), axis=1) == y), atol=1e-6)


def test_declared_weights_and_the_option_learn_alike():
    """In the loops over the data too: bit for bit."""
    x = RNG.standard_normal((96, 12)).astype(np.float32)
    y = np.argmax(x[:, :3], axis=1)
    models = [eg.Model(PROGRAM, "Net", seed=2, quantize="pow2(7)"), eg.Model(PROGRAM, "Net", seed=2, weight="pow2(7)")]
    for m in models:
        m.compile(loss="cross_entropy", optimizer=eg.SGD(0.1))
        m.fit(x, y, epochs=2, batch_size=16, verbose=0)
    for path, v in models[0].parameters.items():
        np.testing.assert_array_equal(v, models[1].parameters[path], err_msg=path)
    plain = eg.Model(PROGRAM, "Net", seed=2)
    plain.compile(loss="cross_entropy", optimizer=eg.SGD(0.1))
    plain.fit(x, y, epochs=2, batch_size=16, verbose=0)
    assert not np.array_equal(plain.parameters["a.w"], models[0].parameters["a.w"])


def test_arguments_of_functions_are_quantised_on_request():
    """Also under a derivative: dw = Q(x)^T g, as g = 1."""
    x, w = RNG.standard_normal((5, 33)).astype(np.float32), RNG.standard_normal((33, 20)).astype(np.float32)
    p = eg.compile("fn f(x: f32[B, i], w: f32[i, o]) -> f32[B, o] { x @ w }\nfn s(x: f32[B, i], w: f32[i, o]) -> f32[] { sum(x @ w) }\n", quantize="ternary")
    np.testing.assert_allclose(p.f(x, w), definition(x.astype(float), w.astype(float), "ternary"), rtol=2e-5, atol=2e-5)
    top = np.abs(x).max(1, keepdims=True)
    np.testing.assert_allclose(p.grad("s", wrt="w")(x, w), np.tile((np.round(127 * x / top) * top / 127).sum(0)[:, None], (1, 20)), rtol=1e-4, atol=1e-4)


def test_a_matrix_on_the_left():
    m = eg.Model("layer L(i, o) { param w: ternary[o, i] = normal(0, 1); fn (x: f32[i]) -> f32[o] { w @ x } }", "L", 33, 20)
    x = RNG.standard_normal(33).astype(np.float32)
    np.testing.assert_allclose(m(x), definition(x[None].astype(float), m.parameters["w"].T.astype(float), "ternary")[0], rtol=2e-5, atol=2e-5)


def test_an_unknown_weight_is_named():
    with pytest.raises(ValueError, match=r"quantize: expected ternary, int4, int8 or pow2\(n\), got 'int3'"):
        eg.Model(PROGRAM, "Net", quantize="int3")
