"""The interpreter's base ops against independent NumPy computations, control flow, and errors of the running program."""
import math

import numpy as np
import pytest
from engram.compiler.diagnostics import RuntimeError_, Source
from engram.compiler.ir import (
    Block,
    Func,
    Loc,
    Module,
    TensorType,
    bf16,
    bool_,
    f16,
    f32,
    f64,
    i8,
    i32,
    i64,
    u8,
    u32,
    u64,
)
from engram.compiler.ir.builder import Builder
from engram.compiler.ir.core import Op
from engram.compiler.ir.opdef import OPS, Sample
from engram.compiler.ir.verifier import verify
from engram.interp.compare import assert_close, ulp_distance
from engram.interp.evaluate import evaluate_op
from engram.interp.interpreter import Interpreter, interpret
from engram.interp.nans import first_nan
from engram.interp.numerics import rounding
from helpers import (
    FLOATS,
    INTS,
    fits,
    make_op_module,
    make_scalar_module,
    random_array,
    sample_arrays,
    sample_types,
    with_dtype,
)

EDGES = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.0, 2.5, -2.5, 3.0, 7.0, math.inf, -math.inf, math.nan, 1e-7, -6e-8, 88.8, -104.0, 1e30, 6e4, -3e38]


def bools_or(fn, other):
    """`other` for bools (NumPy refuses arithmetic on them)."""
    return lambda *xs: other(*xs) if xs[0].dtype == bool else fn(*xs)


def np_maximum(x, y):
    return np.where(x == y, np.where(np.signbit(x), y, x), np.maximum(x, y)) if x.dtype.kind not in "iub" else np.maximum(x, y)


def np_minimum(x, y):
    return np.where(x == y, np.where(np.signbit(x), x, y), np.minimum(x, y)) if x.dtype.kind not in "iub" else np.minimum(x, y)


def np_sign(x):                                         # ml_dtypes keeps the sign of a zero
    return np.sign(x if x.dtype.kind in "iu" else x.astype(np.float64)).astype(x.dtype)


def np_floordiv(x, y):
    return np.floor_divide(x, y) if x.dtype.kind in "iu" else np.floor(x / y)


def np_erf(fn):
    return np.vectorize(fn, otypes=[np.float64])


# Each computes in the dtype of its operands; exact rows must agree with it bit for bit.
EXACT = {"neg": np.negative, "abs": np.abs, "sign": np_sign, "sqrt": np.sqrt, "rsqrt": lambda x: np.ones_like(x) / np.sqrt(x),
         "floor": np.floor, "ceil": np.ceil, "round": np.rint, "trunc": np.trunc, "not": np.invert,
         "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "floordiv": np_floordiv, "mod": np.remainder,
         "fmod": np.fmod, "max": np_maximum, "min": np_minimum, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
         "shl": np.left_shift, "shr": np.right_shift}
# Computed in f64, then compared after rounding.
INEXACT = {"exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log2": np.log2, "log1p": np.log1p, "sin": np.sin, "cos": np.cos,
           "tan": np.tan, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "sinh": np.sinh, "cosh": np.cosh, "tanh": np.tanh,
           "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh, "erf": np_erf(math.erf), "erfc": np_erf(math.erfc),
           "pow": np.power, "atan2": np.arctan2}
SPECIAL = {"compare", "select", "cast", "bitcast"}     # tested below, one by one
ELEMENTWISE = [n.partition(".")[2] for n, row in OPS.items() if row.elementwise and n.startswith("tensor.")]


def elementwise_inputs(row, dtype, arity):
    """Random values of the sample's range, then edge values in all pairs."""
    sample = next(s for s in row.samples if s.inputs)
    rng = np.random.default_rng(7)
    if dtype.is_float:
        edges = np.array(EDGES)
    elif dtype is bool_:
        edges = np.array([0, 1])
    else:
        edges = np.array([v for v in (0, 1, -1, 2, 7, 31, 64, dtype.min, dtype.max, dtype.max - 1) if dtype.min <= v <= dtype.max], dtype.numpy)
    grids = np.meshgrid(*[edges] * arity)
    out = []
    for (_, lo, hi), g in zip(sample.inputs, grids):
        part = random_array(TensorType(dtype, (40,)), lo, hi, rng)
        with np.errstate(over="ignore"):
            out.append(np.concatenate([part, g.ravel().astype(dtype.numpy)]))
    return out


@pytest.mark.parametrize("dtype", [*FLOATS, *INTS, bool_], ids=str)
@pytest.mark.parametrize("name", [n for n in ELEMENTWISE if n not in SPECIAL])
def test_elementwise_against_numpy(name, dtype):
    row = OPS["tensor." + name]
    arity = len(row.operands)
    sample = Sample(((f"{dtype}[1]", 0, 1),) * arity, {})
    if not fits(row, sample):
        return
    xs = elementwise_inputs(row, dtype, arity)
    if dtype.is_int and name in ("floordiv", "mod", "fmod"):
        xs[1] = np.where(xs[1] == 0, 3, xs[1]).astype(dtype.numpy)
    if dtype.is_int and name == "pow":
        xs[1] = np.where(xs[1] < 0, 3, xs[1]).astype(dtype.numpy)
    sample = Sample(tuple((f"{dtype}[{len(xs[0])}]", 0, 1) for _ in xs), {})
    got, = interpret(make_op_module(row, sample), "f", xs)
    with np.errstate(all="ignore"):
        if name in EXACT:
            want = EXACT[name](*xs)
        elif dtype.is_int:
            want = np.power(*xs)
        else:
            want = INEXACT[name](*(x.astype(np.float64) for x in xs))
            want = want.astype(dtype.numpy)
    assert got.dtype == want.dtype == dtype.numpy
    assert_close(got, want, bits_exact=name in EXACT, ulp=None if name in EXACT or dtype.is_int else 2, what=f"{name} {dtype}")
    loop, = interpret(make_scalar_module(row, sample), "f", xs)
    assert_close(loop, got, bits_exact=True, what=f"scalar.{name} {dtype}")


def test_every_elementwise_row_is_in_one_of_the_tables():
    assert set(ELEMENTWISE) == set(EXACT) | set(INEXACT) | SPECIAL


@pytest.mark.parametrize("dtype", [f32, f16, bf16], ids=str)
def test_arithmetic_is_the_exact_ieee_answer(dtype):
    """+ - * / sqrt on random bit patterns, subnormals included: the bits of the hardware (f16, bf16: of f32 rounded once more)."""
    rng = np.random.default_rng(3)
    bits = {32: np.uint32, 16: np.uint16}[dtype.bits]
    x, y = (rng.integers(0, 2**dtype.bits, 3000, dtype=np.uint64).astype(bits).view(dtype.numpy) for _ in range(2))
    m = lambda n, *xs: interpret(make_op_module("tensor." + n, Sample(((f"{dtype}[3000]", 0, 1),) * len(xs), {})), "f", list(xs))[0]
    with np.errstate(all="ignore"):
        for n in ("add", "sub", "mul", "div"):
            assert_close(m(n, x, y), EXACT[n](x, y), bits_exact=True, what=n)
        assert_close(m("sqrt", np.abs(x)), np.sqrt(np.abs(x)), bits_exact=True)


def test_bf16_is_rounded_once():
    # 1 + 2^-8 is half way between two bf16; a hair above it in f64 vanishes in f32, and must still round up
    assert rounding(bf16)([1 + 2**-8 + 2**-40, 1 + 2**-8, 1 + 3 * 2**-8 - 2**-40]) == [1 + 2**-7, 1.0, 1 + 2**-7]
    assert rounding(bf16)([3.4e38, -1e300, math.inf, 1e-45, -1e-60]) == [math.inf, -math.inf, math.inf, 0.0, -0.0]
    exact = np.array([0.1, 1e-40, 9.3e-41, 70000.3], np.float32)
    import ml_dtypes
    assert rounding(bf16)(exact.tolist()) == exact.astype(ml_dtypes.bfloat16).astype(float).tolist()


def test_integer_rules():
    run = lambda n, dt, *xs: interpret(make_op_module("tensor." + n, Sample(((f"{dt}[{len(xs[0])}]", 0, 1),) * len(xs), {})), "f",
                                       [np.array(x, dt.numpy) for x in xs])[0].tolist()
    assert run("pow", i32, [0, 1, -1, -1, 5, 3], [-1, -7, -3, -4, -2, 40]) == [0, 1, -1, 1, 0, (3**40 + 2**31) % 2**32 - 2**31]
    assert run("floordiv", i32, [7, -7, 7, -7, -2**31], [2, 2, -2, -2, -1]) == [3, -4, -4, 3, -2**31]
    assert run("mod", i32, [7, -7, 7, -7], [2, 2, -2, -2]) == [1, 1, -1, -1]
    assert run("fmod", i32, [7, -7, 7, -7, -2**31], [2, 2, -2, -2, -1]) == [1, -1, 1, -1, 0]
    assert run("shl", u8, [1, 1, 1], [7, 8, 200]) == [128, 0, 0]
    assert run("shr", i8, [-128, -128, 64, 64], [7, 100, 100, -1]) == [-1, -1, 0, 0]


def run_op(name, inputs, **attrs):
    """One op on NumPy arrays."""
    types = ",".join(map(str, inputs[0].shape)) if inputs else ""
    sample = Sample(tuple((f"{_name(a)}[{','.join(map(str, a.shape))}]", 0, 1) for a in inputs), attrs)
    assert types is not None
    m = make_op_module(name, sample)
    verify(m)
    out = interpret(m, "f", inputs)
    return out[0] if len(out) == 1 else out


def _name(a):
    from engram.compiler.ir import dtype_of
    return dtype_of(a.dtype).name


def test_casts():
    x = np.array([1.9, -1.9, 300.0, -300.0, np.inf, -np.inf, np.nan, 2.0**40], np.float32)
    assert run_op("tensor.cast", [x], dtype=i8).tolist() == [1, -1, 127, -128, 127, -128, 0, 127]
    assert run_op("tensor.cast", [x], dtype=u8).tolist() == [1, 0, 255, 0, 255, 0, 0, 255]
    assert run_op("tensor.cast", [x], dtype=i64).tolist()[-1] == 2**40
    assert run_op("tensor.cast", [np.array([2.0**63, -2.0**63, 1e300])], dtype=i64).tolist() == [2**63 - 1, -2**63, 2**63 - 1]
    assert run_op("tensor.cast", [np.array([0.0, -0.0, 1e-45, np.nan], np.float32)], dtype=bool_).tolist() == [False, False, True, True]
    ints = np.array([300, -1, -129, 2**31 - 1], np.int32)
    for dt in (i8, u8, i64, u64, u32):
        assert run_op("tensor.cast", [ints], dtype=dt).tolist() == ints.astype(dt.numpy).tolist()
    wide = np.array([2**24 + 1, 2**60 + 2**36 + 1, -(2**60 + 2**36 + 1), 2**63 - 1, 2**53 + 1], np.int64)
    for dt in (f32, f64, f16, bf16):                     # rounded once, straight from the integer
        got = run_op("tensor.cast", [wide], dtype=dt)
        if dt is not bf16:
            with np.errstate(over="ignore"):
                assert got.tolist() == wide.astype(dt.numpy).tolist()
    assert run_op("tensor.cast", [np.array([True, False])], dtype=f32).tolist() == [1.0, 0.0]
    assert run_op("tensor.cast", [np.array([1 + 2**-11, 70000.0])], dtype=f16).tolist() == [1.0, math.inf]


def test_bitcasts():
    x = np.array([1.0, -0.0, np.inf, 1e-45], np.float32)
    assert run_op("tensor.bitcast", [x], dtype=u32).tolist() == x.view(np.uint32).tolist()
    assert run_op("tensor.bitcast", [x.view(np.int32)], dtype=f32).tolist() == x.tolist()
    assert run_op("tensor.bitcast", [np.array([0x3F80], np.uint16)], dtype=bf16).astype(float).tolist() == [1.0]
    assert run_op("tensor.bitcast", [np.array([0x3C00], np.int16)], dtype=f16).tolist() == [1.0]
    assert run_op("tensor.bitcast", [np.array([-1], np.int8)], dtype=u8).tolist() == [255]
    assert run_op("tensor.bitcast", [np.array([1.5])], dtype=u64).tolist() == [0x3FF8000000000000]


# ---- tensor rows: name -> (arrays, attrs) -> what NumPy computes, in f64 ------------------------------------------------


def np_dot(x, y, a):
    lb, rb, lc, rc = (a[k] for k in ("lhs_batch", "rhs_batch", "lhs_contract", "rhs_contract"))
    lhs, rhs, new = [None] * x.ndim, [None] * y.ndim, iter(range(50))
    for i, j in [*zip(lb, rb), *zip(lc, rc)]:
        lhs[i] = rhs[j] = next(new)
    lhs = [next(new) if c is None else c for c in lhs]
    rhs = [next(new) if c is None else c for c in rhs]
    out = [lhs[d] for d in lb] + [lhs[d] for d in range(x.ndim) if d not in lb + lc] + [rhs[d] for d in range(y.ndim) if d not in rb + rc]
    return np.einsum(x, lhs, y, rhs, out)


def np_pad(x, v, a):
    shape = [max(0, n + max(n - 1, 0) * i + lo + hi) for n, lo, hi, i in zip(x.shape, a["low"], a["high"], a["interior"])]
    out = np.full(shape, v)
    for at in np.ndindex(*x.shape):
        to = tuple(lo + i * (gap + 1) for i, lo, gap in zip(at, a["low"], a["interior"]))
        if all(0 <= t < n for t, n in zip(to, shape)):
            out[to] = x[at]
    return out


def np_running(fn):
    def run(x, a):
        d = a["dim"]
        return np.flip(fn(np.flip(x, d), d), d) if a["reverse"] else fn(x, d)
    return run


def np_sort(x, a):
    order = np.argsort(-x if a["descending"] else x, a["dim"], kind="stable").take(range(a.get("keep", x.shape[a["dim"]])), a["dim"])
    return np.take_along_axis(x, order, a["dim"]), order


def np_scatter(x, i, u, a):
    out = x.copy()
    np.add.at(np.moveaxis(out, a["dim"], 0), i.ravel(),
              np.moveaxis(u.reshape(*x.shape[:a["dim"]], -1, *x.shape[a["dim"] + 1:]), a["dim"], 0))
    return out


def np_along(x, i, a):
    d = a["dim"]
    cut = tuple(slice(None) if k == d else slice(n) for k, n in enumerate(i.shape))
    return np.take_along_axis(x[cut], i, d)


def np_put(x, i, u, a):
    out = x.copy()
    for at in np.ndindex(*i.shape):
        to = list(at)
        to[a["dim"]] = i[at]
        out[tuple(to)] += u[at]
    return out


def np_block(x, starts, sizes):
    return tuple(slice(int(s), int(s) + n) for s, n in zip(starts, sizes))


def np_update(x, u, *rest):
    out = x.copy()
    out[np_block(x, rest[:-1], u.shape)] = u
    return out


def np_broadcast(x, a):
    shape = [1] * len(a["shape"])
    for d, n in zip(a["dims"], x.shape):
        shape[d] = n
    return np.broadcast_to(x.reshape(shape), a["shape"])


def np_windows(x, a):
    n = len(a["size"])
    lead, space = x.shape[:-n], x.shape[-n:]
    counts = [len(range(0, m - d * (k - 1), s)) for m, k, s, d in zip(space, a["size"], a["stride"], a["dilation"])]
    out = np.empty((*lead, *counts, *a["size"]), x.dtype)
    for o in np.ndindex(*counts):
        for k in np.ndindex(*a["size"]):
            at = tuple(i * s + j * d for i, j, s, d in zip(o, k, a["stride"], a["dilation"]))
            out[(..., *o, *k)] = x[(..., *at)]
    return out


def np_fold_windows(y, a):
    """The adjoint, from windows of one-hot tensors."""
    n = len(a["size"])
    lead, space = y.shape[:y.ndim - 2 * n], tuple(a["shape"])
    out = np.zeros((*lead, *space), y.dtype)
    for at in np.ndindex(*space):
        unit = np.zeros(space, y.dtype)
        unit[at] = 1
        out[(..., *at)] = (np_windows(unit, a) * y).sum(tuple(range(len(lead), y.ndim)))
    return out


def np_probabilities(q, k, a, length, lse=None):
    t, n = q.shape[-2], k.shape[-2] if length is None else int(length)
    s = a["scale"] * q @ np.swapaxes(k, -1, -2)
    j = np.arange(k.shape[-2])
    s = np.where(j <= n + np.arange(t)[:, None] - t if a["causal"] else j < n, s, -np.inf)
    lse = np.log(np.exp(s).sum(-1)) if lse is None else lse
    return np.exp(s - lse[..., None]), lse


def np_attention(q, k, v, *rest):
    p, lse = np_probabilities(q, k, rest[-1], rest[0] if len(rest) > 1 else None)
    return p @ v, lse


def np_attention_grad(q, k, v, lse, do, delta, *rest):
    p, _ = np_probabilities(q, k, rest[-1], rest[0] if len(rest) > 1 else None, lse)
    ds = p * (do @ np.swapaxes(v, -1, -2) - delta[..., None]) * rest[-1]["scale"]
    return ds @ k, np.swapaxes(ds, -1, -2) @ q, np.swapaxes(p, -1, -2) @ do


PACKED = {"ternary": np.arange(4) - 1, "int4": np.arange(16) - 8, "int8": np.arange(256) - 128,          # the value of each code
          "pow2": np.concatenate([[0], 2 ** np.arange(7), [0], -(2 ** np.arange(7))])}


def np_pack(v, a):
    """Codes of [k, n] as [panel, step, column, byte]: byte b holds k = b, b + 4, ... of its step, from its lowest bits up."""
    if a["format"] == "int16":
        v = np.pad(v, [(0, -v.shape[0] % 2), (0, -v.shape[1] % 16)])
        return v.reshape(-1, 2, v.shape[1] // 16, 16).transpose(2, 0, 3, 1).reshape(v.shape[1] // 16, -1, 32)
    values = PACKED[a["format"]]
    per = {4: 4, 16: 2, 256: 1}[len(values)]
    v = np.pad(v, [(0, -v.shape[0] % (4 * per)), (0, -v.shape[1] % 16)])
    codes = np.argmax(values == v[..., None], axis=-1).reshape(-1, per, 4, v.shape[1] // 16, 16)
    shifts = (8 // per * np.arange(per))[None, :, None, None, None]
    return (codes << shifts).sum(1).transpose(2, 0, 3, 1).reshape(v.shape[1] // 16, -1, 64)


def np_dot_packed(x, p, a):
    lead = x.ndim - a.get("dims", 1)
    x = x.reshape(*x.shape[:lead], -1)
    if a["format"] == "int16":
        w = p.reshape(*p.shape[:2], 16, 2).transpose(1, 3, 0, 2)
    else:
        values = PACKED[a["format"]]
        per = {4: 4, 16: 2, 256: 1}[len(values)]
        codes = p.reshape(*p.shape[:2], 16, 4)[..., None] >> (8 // per * np.arange(per)) & len(values) - 1
        w = values[codes].transpose(1, 4, 3, 0, 2)
    return np.moveaxis(x.astype(np.int64) @ w.reshape(x.shape[-1], -1)[:, :a["n"]], -1, a.get("at", lead))


TENSOR = {
    "pack": np_pack, "dot_packed": np_dot_packed,
    "attention": np_attention, "attention_grad": np_attention_grad,
    "windows": np_windows, "fold_windows": np_fold_windows,
    "compare": lambda x, y, a: {"eq": x == y, "ne": x != y, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y}[a["predicate"]],
    "select": lambda c, x, y, a: np.where(c, x, y),
    "cast": lambda x, a: x.astype(a["dtype"].numpy), "bitcast": lambda x, a: (x.astype(np.float32) if x.dtype == np.float64 else x).view(a["dtype"].numpy),
    "constant": lambda a: np.full(a["type"].shape, a["value"], a["type"].dtype.numpy),
    "iota": lambda a: np.broadcast_to(np.arange(a["shape"][a["dim"]]).reshape([-1 if d == a["dim"] else 1 for d in range(len(a["shape"]))]), a["shape"]),
    "broadcast": np_broadcast, "reshape": lambda x, a: x.reshape(a["shape"]), "transpose": lambda x, a: x.transpose(a["perm"]),
    "slice": lambda x, a: x[tuple(map(slice, a["start"], a["limit"], a["stride"]))], "reverse": lambda x, a: np.flip(x, a["dims"]),
    "pad": np_pad, "concat": lambda *xs: np.concatenate(xs[:-1], xs[-1]["dim"]),
    "reduce_sum": lambda x, a: x.sum(tuple(a["dims"])), "reduce_prod": lambda x, a: x.prod(tuple(a["dims"])),
    "reduce_max": lambda x, a: x.max(tuple(a["dims"])), "reduce_min": lambda x, a: x.min(tuple(a["dims"])),
    "argmax": lambda x, a: x.argmax(a["dim"]), "argmin": lambda x, a: x.argmin(a["dim"]),
    "cumsum": np_running(np.cumsum), "cumprod": np_running(np.cumprod), "sort": np_sort, "dot_general": np_dot,
    "dynamic_slice": lambda x, *r: x[np_block(x, r[:-1], r[-1]["sizes"])], "dynamic_update_slice": np_update,
    "take": lambda x, i, a: np.take(x, i, a["dim"]), "scatter_add": np_scatter, "take_along": np_along, "put_along_add": np_put,
}


def tensor_cases():
    for name, row in OPS.items():
        if name.startswith("tensor.") and not (row.elementwise and name[7:] not in SPECIAL):
            for k, s in enumerate(row.samples):
                for dtype in dict.fromkeys([None, f64, bf16, i32]) if s.inputs and s.inputs[0][0].startswith("f32") else [None]:
                    variant = s if dtype is None else with_dtype(s, dtype)
                    if fits(row, variant) and not (name == "tensor.bitcast" and dtype):
                        yield pytest.param(name, variant, id=f"{name}-{k}-{dtype or ''}")


@pytest.mark.parametrize("name, sample", list(tensor_cases()))
def test_tensor_row_against_numpy(name, sample):
    m = make_op_module(name, sample)
    verify(m)
    xs = sample_arrays(sample)
    got = interpret(m, "f", xs)
    wide = [x.astype(np.float64) if t.dtype.is_float and name != "tensor.cast" else x for x, t in zip(xs, sample_types(sample))]
    want = TENSOR[name[7:]](*wide, sample.attrs)
    want = want if isinstance(want, tuple) else (want,)
    for g, w in zip(got, want, strict=True):
        # NumPy's own sums in f64 are not exact
        assert_close(g, np.asarray(w).astype(g.dtype), ulp=None if OPS[name].exact else 1, bits_exact=OPS[name].exact,
                     rtol=1e-13 if g.dtype == np.float64 else 0, what=name)


def test_rows_without_samples_are_identities():
    x = np.array([1.5, -0.0], np.float32)
    for name in ("tensor.stop_gradient", "autodiff.watch"):
        assert_close(run_op(name, [x]), x)


def test_dense_constants_and_iota():
    value = np.array([[0.1, -0.0], [np.inf, 3e-45]], np.float32)
    assert_close(run_op("tensor.constant", [], value=value, type=TensorType(f32, (2, 2))), value)
    assert run_op("tensor.iota", [], shape=[2, 3], dim=0, dtype=f16).tolist() == [[0, 0, 0], [1, 1, 1]]
    assert run_op("tensor.iota", [], shape=[300], dim=0, dtype=u8).tolist() == [i % 256 for i in range(300)]


def test_reductions_of_nothing_and_of_nan():
    empty = np.zeros((2, 0), np.float32)
    assert run_op("tensor.reduce_sum", [empty], dims=[1]).tolist() == [0, 0]
    assert run_op("tensor.reduce_prod", [empty], dims=[1]).tolist() == [1, 1]
    assert run_op("tensor.reduce_max", [empty], dims=[1]).tolist() == [-math.inf] * 2
    assert run_op("tensor.reduce_min", [empty.astype(np.int8)], dims=[1]).tolist() == [127, 127]
    assert run_op("tensor.reduce_max", [empty.astype(bool)], dims=[1]).tolist() == [False, False]
    x = np.array([[1, np.nan, 3], [np.inf, -np.inf, 0]], np.float32)
    assert_close(run_op("tensor.reduce_max", [x], dims=[1]), np.array([np.nan, np.inf], np.float32))
    assert_close(run_op("tensor.reduce_sum", [x], dims=[1]), np.array([np.nan, np.nan], np.float32))
    assert run_op("tensor.argmin", [x], dim=1).tolist() == [1, 1]
    assert run_op("tensor.argmax", [np.array([2, 5, 5], np.int32)], dim=0).tolist() == 1
    big = np.array([1e38] * 9 + [-1e38] * 9, np.float32)
    assert run_op("tensor.reduce_sum", [big], dims=[0]) == 0
    assert run_op("tensor.reduce_prod", [np.full(70, 3, np.int64)], dims=[0]) == (3**70 + 2**63) % 2**64 - 2**63


def test_sort_puts_nan_last_and_is_stable():
    x = np.array([2, np.nan, 1, 2, -0.0, 0.0], np.float32)
    v, i = run_op("tensor.sort", [x], dim=0, descending=False)
    assert i.tolist() == [4, 5, 2, 0, 3, 1]
    v, i = run_op("tensor.sort", [x], dim=0, descending=True)
    assert i.tolist() == [1, 0, 3, 2, 4, 5] and math.isnan(v[0])


# ---- control flow, functions --------------------------------------------------------------------------------------------


def block(args, fill):
    body = Block(args)
    b = Builder(body)
    b.op("scf.yield", fill(b, *body.args))
    return body


def test_scan_if_while_call():
    square = Func("square", [TensorType(f32)], None, [TensorType(f32)])
    b = Builder(square.body)
    b.op("func.return", [b.mul(square.args[0], square.args[0])])
    s = TensorType(f32)
    f = Func("f", [s, TensorType(f32, (4, 2)), TensorType(bool_)])
    x, xs, c = f.args
    b = Builder(f.body)
    scan = b.op("scf.scan", [x, xs], {"length": 4, "n_carry": 1, "reverse": True}, [block(
        [TensorType(i64), s, TensorType(f32, (2,))], lambda b, i, carry, row: [b.add(carry, b.sum(row, [0])), b.mul(row, b.broadcast(carry, (2,))), i])])
    branch = b.op("scf.if", [c], {}, [block([], lambda b: [x]), block([], lambda b: [b.mul(x, 10)])])
    loop = b.op("scf.while", [x], {}, [block([s], lambda b, v: [b.compare("lt", v, 100.0)]),
                                       block([s], lambda b, v: [b.op("func.call", [b.add(v, 1.0)], {"callee": "square", "result_types": [s]}).result])])
    fused = b.op("tensor.fused", [x], {"kind": "elementwise"}, [block([s], lambda b, v: [b.neg(v)])])
    outs = [*scan.results, branch.result, loop.result, fused.result]
    f.result_types = [v.type for v in outs]
    b.op("func.return", outs)
    m = Module([square, f], {"stage": "tensor"})
    verify(m)
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    carry, ys, index, branch, loop, fused = interpret(m, "f", [np.float32(1), rows, np.array(False)])
    want, c = np.zeros((4, 2)), 1.0
    for i in (3, 2, 1, 0):
        want[i], c = rows[i] * c, c + rows[i].sum()
    assert carry == c == 29 and ys.tolist() == want.tolist() and index.tolist() == [0, 1, 2, 3]
    assert branch == 10 and fused == -1 and loop == 676


def test_scan_of_no_steps():
    s = TensorType(f32)
    f = Func("f", [s], None, [s, TensorType(f32, (0,))])
    b = Builder(f.body)
    b.op("func.return", b.op("scf.scan", [f.args[0]], {"length": 0, "n_carry": 1, "reverse": False},
                             [block([TensorType(i64), s], lambda b, i, c: [c, c])]).results)
    last, ys = interpret(Module([f]), "f", [np.float32(3)])
    assert last == 3 and ys.shape == (0,)


def test_custom_runs_its_forward_function():
    g = Func("g", [TensorType(f32)], None, [TensorType(f32)])
    b = Builder(g.body)
    b.op("func.return", [b.exp(g.args[0])])
    f = Func("f", [TensorType(f32)], None, [TensorType(f32)])
    b = Builder(f.body)
    b.op("func.return", b.op("autodiff.custom", [f.args[0]], {"forward": "g", "backward": "g", "result_types": [TensorType(f32)]}).results)
    assert interpret(Module([g, f]), "f", [np.float32(0)])[0] == 1


# ---- errors --------------------------------------------------------------------------------------------------------------

HERE = Loc("t.nn", 2, 3, 2, 8)
I3 = np.array([0, 3, 1])


@pytest.mark.parametrize("name, inputs, attrs, message", [
    ("tensor.floordiv", [np.int32([1, 2]), np.int32([1, 0])], {}, "integer division by zero"),
    ("tensor.mod", [np.int64([1]), np.int64([0])], {}, "integer division by zero"),
    ("tensor.fmod", [np.uint8([1]), np.uint8([0])], {}, "integer division by zero"),
    ("tensor.take", [np.float32([1, 2, 3]), I3], {"dim": 0}, "index 3 is out of range 0..3"),
    ("tensor.take", [np.float32([1, 2, 3]), -I3], {"dim": 0}, "index -3 is out of range 0..3"),
    ("tensor.take_along", [np.float32([1, 2, 3]), I3], {"dim": 0}, "index 3 is out of range 0..3"),
    ("tensor.scatter_add", [np.float32([1, 2, 3]), I3, np.float32([1, 1, 1])], {"dim": 0}, "index 3 is out of range 0..3"),
    ("tensor.put_along_add", [np.float32([1, 2, 3]), I3, np.float32([1, 1, 1])], {"dim": 0}, "index 3 is out of range 0..3"),
    ("tensor.dynamic_slice", [np.float32([1, 2, 3]), np.array(2)], {"sizes": [2]}, "slice start 2 is out of range 0..2"),
    ("tensor.dynamic_update_slice", [np.float32([1, 2, 3]), np.float32([1, 2]), np.array(-1)], {}, "slice start -1 is out of range 0..2"),
    ("tensor.assert", [np.array(False)], {"message": "too large"}, "too large"),
    ("nn.cross_entropy", [np.float32([[1, 2, 3]]), np.array([3])], {}, "index 3 is out of range 0..3"),
])
def test_run_time_errors_show_the_users_line(name, inputs, attrs, message):
    Source.register("t.nn", "fn f() {\n  x // y\n}")
    sample = Sample(tuple((f"{_name(a)}[{','.join(map(str, a.shape))}]", 0, 1) for a in inputs), attrs)
    m = make_op_module(name, sample, loc=HERE)
    with pytest.raises(RuntimeError_) as e:
        interpret(m, "f", inputs)
    assert e.value.loc == HERE and e.value.message == message
    assert str(e.value).splitlines()[0] == f"t.nn:2:3: error: {message}" and "x // y" in str(e.value)
    op = m.funcs["f"].body.ops[0]
    with pytest.raises(RuntimeError_):
        evaluate_op(op, inputs)


def test_arguments_are_checked():
    m = make_op_module("tensor.add", Sample((("f32[2]", 0, 1),) * 2, {}))
    x = np.zeros(2, np.float32)
    run = Interpreter(m)
    for args, message in (([x], "takes 2 arguments, got 1"), ([x, x.astype(np.float64)], "argument 1 is f32.2., got an array of f64"),
                          ([x, np.zeros(3, np.float32)], r"got shape \[3\]"), ([x, np.zeros(2, complex)], "complex128")):
        with pytest.raises(ValueError, match=message):
            run.call("f", args)
    with pytest.raises(ValueError, match="no function named 'g'"):
        run.call("g", [])
    assert run.to_host(run.to_device(x)) is not None


def test_ops_without_semantics_say_why():
    m = make_op_module("autodiff.gradient", Sample((("f32[]", 0, 1),) * 3, {"n_y": 1, "n_x": 1}))
    with pytest.raises(NotImplementedError, match="the pass grad replaces it"):
        interpret(m, "f", [np.float32(1)] * 3)


# ---- evaluate_op, the shadow, hooks --------------------------------------------------------------------------------------


def test_evaluate_op():
    x = np.array([1, 2], np.float32)
    op = make_op_module("tensor.div", Sample((("f32[2]", 0, 1),) * 2, {})).funcs["f"].body.ops[0]
    assert_close(evaluate_op(op, [x, x * 3]), [x / (x * 3)])
    constant = Op("tensor.constant", [], {"value": 0.5, "type": TensorType(bf16, (2,))}, [TensorType(bf16, (2,))])
    assert evaluate_op(constant, [])[0].dtype == bf16.numpy


def test_shadow_does_not_round():
    m = make_op_module("tensor.div", Sample((("f32[1]", 0, 1),) * 2, {}))
    args = [np.ones(1, np.float32), np.full(1, 3, np.float32)]
    assert interpret(m, "f", args)[0][0] == np.float32(1) / np.float32(3)
    shadow, = interpret(m, "f", args, dtype_shadow="f64")
    assert shadow.dtype == np.float64 and shadow[0] == 1 / 3
    assert interpret(m, "f", [a.astype(np.float64) for a in args], dtype_shadow="f64")[0][0] == 1 / 3
    with pytest.raises(ValueError):
        Interpreter(m, dtype_shadow="f16")


def test_on_op_sees_every_result():
    seen = []
    m = make_op_module("tensor.log", Sample((("f32[2]", 0, 1),), {}))
    interpret(m, "f", [np.float32([1, -1])], on_op=lambda op, results: seen.append((op.name, any(v != v for r in results for v in r.data))))
    assert seen == [("tensor.log", True)]


def test_first_nan_names_the_op():
    f = Func("f", [TensorType(f32, (2,))], None, [TensorType(f32, (2,))])
    b = Builder(f.body, HERE)
    y = b.log(b.neg(b.abs(f.args[0])))
    b.op("func.return", [b.select(b.compare("eq", y, y), y, 0.0)])
    m = Module([f])
    assert first_nan(m, "f", [np.zeros(2, np.float32)]) is None
    op = first_nan(m, "f", [np.float32([0, 1])])
    assert op.name == "tensor.log" and op.loc == HERE


def test_products_of_a_training_step():
    """A 64-128-10 MLP on a batch of 32, forward and backward: the products that dominate it."""
    x, w, h, v = (np.random.default_rng(0).normal(size=s).astype(np.float32) for s in ((32, 64), (64, 128), (32, 128), (128, 10)))
    for a, b, lc, rc in ((x, w, [1], [0]), (h, v, [1], [0]), (h, h @ v, [0], [0]), (x, h, [0], [0]), (h @ v, v, [1], [1])):
        got = run_op("tensor.dot_general", [a, b], lhs_batch=[], rhs_batch=[], lhs_contract=lc, rhs_contract=rc)
        np.testing.assert_allclose(got, np.tensordot(a, b, (lc, rc)), rtol=1e-3, atol=1e-4)


def test_ulp_distance_of_the_interpreters_sum_is_half():
    x = np.random.default_rng(1).normal(size=1000).astype(np.float32)
    got = run_op("tensor.reduce_sum", [x], dims=[0])
    assert ulp_distance(got, np.float32(math.fsum(x.tolist()))) == 0
