"""Attention as one op: found in what users write, right on every backend, in memory that does not grow with the number of scores."""
import engram as eg
import numpy as np
import pytest
from engram import frontend as F
from engram.codegen.cpu.program import CpuProgram
from engram.compiler import driver
from engram.compiler.ir import TensorType, f32, f64
from engram.compiler.ir.types import bool_, i64
from engram.interp.compare import assert_close
from engram.interp.interpreter import interpret
from engram.session import load_program

SOURCE = """
fn plain(q: float[.., T, d], k: float[.., S, d], v: float[.., S, e]) { softmax(q @ k.T / sqrt(d)) @ v }
fn masked(q: float[.., T, d], k: float[.., S, d], v: float[.., S, e]) { softmax(causal(q @ k.T / sqrt(d))) @ v }
fn after(q: float[.., T, d], k: float[.., S, d], v: float[.., S, e]) { softmax(0.5 * causal(q @ k.T)) @ v }
fn sdpa(q: float[.., T, d], k: float[.., S, d], v: float[.., S, e]) { scaled_dot_product_attention(q, k, v, is_causal = true) }
fn cached(q: float[.., T, d], k: float[.., S, d], v: float[.., S, e], n: i64) { scaled_dot_product_attention(q, k, v, is_causal = true, length = n) }
fn first(q: float[.., T, d], k: float[.., S, d], v: float[.., S, e], n: i64) { scaled_dot_product_attention(q, k, v, length = n) }
fn groups(q: float[B, H, T, d], k: float[B, G, S, d], v: float[B, G, S, d]) { scaled_dot_product_attention(q, k, v, is_causal = true, enable_gqa = true) }
fn heads_last(q: f32[B, T, H, d], k: f32[B, S, H, d], v: f32[B, S, H, d]) { einsum("bhts,bshd->bthd", softmax(causal(einsum("bthd,bshd->bhts", q, k))), v) }
fn dropped(q: f32[T, d], k: f32[S, d], v: f32[S, d], key: key) { dropout(softmax(q @ k.T), 0.5, key = key) @ v }
fn looked_at(q: f32[T, d], k: f32[S, d], v: f32[S, d]) { let p = softmax(q @ k.T); (p @ v, p) }
fn own_mask(q: f32[T, d], k: f32[S, d], v: f32[S, d], m: bool[T, S]) { softmax(where(m, q @ k.T, -inf)) @ v }
fn negative(q: f32[T, d], k: f32[S, d], v: f32[S, d]) { softmax(-0.5 * causal(q @ k.T)) @ v }
fn loss(q: f32[.., T, d], k: f32[.., S, d], v: f32[.., S, d]) -> f32 { sum(masked(q, k, v) ** 2) }
fn slope(q: f32[.., T, d], k: f32[.., S, d], v: f32[.., S, d]) -> f32 {
  let (a, b, c) = grad(loss, wrt = ["q", "k", "v"])(q, k, v)
  sum(a * q) + sum(b * b) + sum(c * v)
}
fn train_like(x: f32[T, d], w: f32[d, d]) -> f32 { let h = x @ w; sum(masked(h, h, x)) }
"""
rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("attention") / "a.nn"
    path.write_text(SOURCE)
    return str(path)


def close(got, want):
    """Sums of values of order 1, so that an absolute tolerance says what a relative one cannot."""
    assert_close(got, want, rtol=1e-4, atol=5e-6)


def arrays(*shapes, dtype=np.float32):
    return [rng.standard_normal(s).astype(dtype) for s in shapes]


def module_of(path, name, args, kind=None):
    p = load_program(path)
    types = [TensorType({"float32": f32, "float64": f64, "int64": i64}[str(a.dtype)], a.shape) for a in args]
    return F.elaborate_derivative(p, name, types, "grad", kind).module if kind else F.elaborate_function(p, name, types).module


SHAPES = [((2, 3, 4), (2, 5, 4), (2, 5, 3)), ((2, 2, 7, 8), (2, 2, 7, 8), (2, 2, 7, 8)), ((1, 4), (9, 4), (9, 4))]


@pytest.mark.parametrize("name", ["plain", "masked", "after", "sdpa"])
@pytest.mark.parametrize("shapes", SHAPES)
def test_agrees_with_its_parts(program, name, shapes):
    args = arrays(*shapes)
    m = module_of(program, name, args)
    want = interpret(m, name, args)                     # the parts, as they are written
    assert [o.name for o in driver.lower(m, "tensor").walk()].count("tensor.attention") == 1
    for backend in ("interp", "cpu"):
        close(driver.build(m, backend).call(name, args), want)
    loops = driver.lower(m, "loop")
    for seed in (0, 1):
        close(interpret(loops, name, args, seed=seed, check_races=True), want)


def test_gpus_keep_the_scores_in_memory(program):
    """As products over all batch elements, which a GPU shares out better than one work-item's block."""
    args = arrays((2, 2, 20, 8), (2, 2, 20, 8), (2, 2, 20, 8))
    m = module_of(program, "masked", args)
    loops = driver.lower(m, "gpu")
    assert [o.name for o in loops.funcs["masked"].body.ops].count("loop.contract") == 2
    close(interpret(loops, "masked", args), interpret(m, "masked", args))


# whole and partial blocks of queries and of keys, on both sides of the diagonal
BLOCKS = [(64, 64), (64, 128), (1, 300), (65, 300), (130, 130), (200, 256), (3, 129)]


@pytest.mark.parametrize("t, s", BLOCKS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks(program, t, s, dtype):
    q, k, v = arrays((2, t, 8), (2, s, 8), (2, s, 16), dtype=dtype)
    n = max(t, 2 * s // 3)
    p = eg.compile(program)
    scores = q.astype(np.float64) @ k.astype(np.float64).swapaxes(1, 2) / np.sqrt(8)
    for got, seen in ((p.masked(q, k, v), np.tri(t, s, s - t)), (p.cached(q, k, v, n), np.tri(t, s, n - t)), (p.first(q, k, v, n), np.arange(s) < n),
                      (p.plain(q, k, v), np.ones((t, s)))):
        e = np.where(np.broadcast_to(seen, (t, s)), np.exp(scores - scores.max(-1, keepdims=True)), 0)
        np.testing.assert_allclose(got, e @ v / e.sum(-1, keepdims=True), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("t, s, batch", [(5, 5, 2), (64, 64, 2), (65, 140, 2), (130, 200, 2), (5, 6, 9), (65, 140, 9), (130, 200, 9), (200, 200, 1)])
def test_gradient(program, t, s, batch):
    """In one kernel over many batch elements, or in two over blocks."""
    args = arrays((batch, t, 8), (batch, s, 8), (batch, s, 8))
    m = module_of(program, "loss", args, ["q", "k", "v"])
    assert [o.name for o in driver.lower(m, "tensor").walk()].count("tensor.attention_grad") == 1
    e = next(iter(m.attrs["entries"]))
    got = driver.build(m, "cpu").call(e, args)
    q, k, v = (a.astype(np.float64) for a in args)
    c = np.tri(t, s, s - t)
    p = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(8)) * c
    p /= p.sum(-1, keepdims=True)
    g = 2 * (p @ v)
    dp = g @ v.swapaxes(1, 2)
    ds = p * (dp - (dp * p).sum(-1, keepdims=True)) / np.sqrt(8)
    for x, want in zip(got, (ds @ k, ds.swapaxes(1, 2) @ q, p.swapaxes(1, 2) @ g)):
        np.testing.assert_allclose(x, want, rtol=1e-3, atol=1e-4)
    if t < 64:
        close(interpret(driver.lower(m, "loop"), e, args, check_races=True), got)


def test_second_derivative(program):
    """Against differences of the first, in the direction of q."""
    args = arrays((2, 3, 4), (2, 5, 4), (2, 5, 4))
    p = eg.compile(program)
    dq, = arrays((2, 3, 4))
    h = 1e-2
    slope = (p.slope(args[0] + h * dq, *args[1:]) - p.slope(args[0] - h * dq, *args[1:])) / (2 * h)
    np.testing.assert_allclose((p.grad("slope")(*args) * dq).sum(), slope, rtol=2e-2)
    close([eg.compile(program, backend="interp").grad("slope")(*args)], [p.grad("slope")(*args)])


def test_vmap(program):
    q, k, v = arrays((3, 4, 8), (3, 6, 8), (3, 6, 8))
    p = eg.compile(program)
    each = np.stack([p.masked(*x) for x in zip(q, k, v)])
    np.testing.assert_allclose(p.vmap("masked")(q, k, v), each, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(p.vmap("masked", (None, 0, 0))(q[0], k, v), np.stack([p.masked(q[0], *x) for x in zip(k, v)]), rtol=1e-5, atol=1e-6)
    lengths = np.array([4, 5, 6])
    np.testing.assert_allclose(p.vmap("cached")(q, k, v, lengths), np.stack([p.cached(*x) for x in zip(q, k, v, lengths)]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name, shapes", [("groups", ((2, 4, 70, 8), (2, 2, 70, 8), (2, 2, 70, 8))), ("heads_last", ((2, 6, 3, 4), (2, 9, 3, 4), (2, 9, 3, 4)))])
def test_layouts(program, name, shapes):
    args = arrays(*shapes)
    m = module_of(program, name, args)
    assert [o.name for o in driver.lower(m, "tensor").walk()].count("tensor.attention") == 1
    if name == "groups":
        q, k, v = args
        want = eg.compile(program).masked(q, k.repeat(2, 1), v.repeat(2, 1))
    else:
        q, k, v = (a.transpose(0, 2, 1, 3) for a in args)
        want = eg.compile(program).masked(q * 2, k, v).transpose(0, 2, 1, 3)
    close(driver.build(m, "cpu").call(name, args), [want])


@pytest.mark.parametrize("name", ["looked_at", "own_mask", "negative"])
def test_other_things_stay_as_they_are(program, name):
    args = arrays((3, 4), (3, 4), (3, 4))
    if name == "own_mask":
        args.append(np.eye(3, dtype=bool))
    p = load_program(program)
    types = [TensorType(f32 if a.dtype == np.float32 else bool_, a.shape) for a in args]
    m = F.elaborate_function(p, name, types).module
    assert "tensor.attention" not in [o.name for o in driver.lower(m, "tensor").walk()]


def test_queries_that_see_nothing_give_nan(program):
    q, k, v = arrays((1, 3, 4), (1, 2, 4), (1, 2, 4))
    for backend in ("interp", "cpu"):
        got = eg.compile(program, backend=backend).masked(q, k, v)
        assert np.isnan(got[0, 0]).all() and np.isfinite(got[0, 1:]).all()


# ---- structure ------------------------------------------------------------------------------------------------------------


def test_one_kernel_and_no_array_of_scores(program):
    """The forward pass is one kernel; the arena of a gradient grows as the number of tokens does, and holds no array of scores."""
    args = arrays((2, 64, 8), (2, 64, 8), (2, 64, 8))
    loop = driver.lower(module_of(program, "masked", args), "loop")
    f = loop.funcs["masked"]
    assert [o.name for o in f.body.ops if o.name in ("loop.parallel", "loop.contract", "loop.copy", "loop.alloc")] == ["loop.parallel"]
    arenas = {}
    for t in (256, 1024):
        m = module_of(program, "loss", arrays(*[(2, t, 8)] * 3), ["q", "k", "v"])
        arenas[t] = max(g.attrs["arena"] for g in driver.lower(m, "loop").funcs.values())
    assert arenas[1024] <= 4 * arenas[256] + 4096 and arenas[1024] < 2 * 1024 * 1024


def test_the_same_bits_for_any_number_of_threads(program):
    args = arrays((3, 130, 16), (3, 200, 16), (3, 200, 16))
    m = module_of(program, "loss", args, ["q", "k", "v"])
    e = next(iter(m.attrs["entries"]))
    one, *others = (CpuProgram(driver.lower(m, "loop"), threads=n).call(e, args) for n in (1, 2, 4))
    for other in others:
        assert all(np.array_equal(a, b) for a, b in zip(one, other))


def test_operands_are_checked():
    from engram.compiler.ir.builder import Builder
    from engram.compiler.ir.core import Block
    from engram.compiler.ir.opdef import TypeMismatch
    block = Block([TensorType(f32, (2, 3, 4)), TensorType(f32, (2, 5, 6)), TensorType(f32, (2, 5, 4))])
    with pytest.raises(TypeMismatch, match="different numbers of features"):
        Builder(block).op("tensor.attention", block.args, {"causal": False, "scale": 1.0})

