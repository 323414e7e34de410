"""Scalar ops on the OpenCL device against the interpreter: every elementwise row, every dtype, special values included."""
import numpy as np
import pytest
from engram.codegen.opencl.device import available
from engram.compiler.ir import DTYPES, Func, Module, ScalarType, i64
from engram.compiler.ir.builder import Builder
from engram.compiler.ir.core import Block
from engram.compiler.ir.types import BufferType
from engram.compiler.ops import OPS, TypeMismatch
from engram.interp.interpreter import Interpreter
from helpers import FLOATS, INTS

OK, WHY = available()
pytestmark = pytest.mark.skipif(not OK, reason=f"no OpenCL device: {WHY}")

ROWS = sorted(n.removeprefix("tensor.") for n, r in OPS.items() if r.elementwise and n.startswith("tensor."))
PREDICATES = ("eq", "ne", "lt", "le", "gt", "ge")
BY_ZERO = ("floordiv", "mod", "fmod")
SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 0.5, -0.5, 1.5, 2.5, -2.5, 88.0, 100.0, -100.0, 1e-30, 6e4, 1e20, -1e20, 3.0]


def variants(dtype):
    """(label, op name, attributes) of every scalar op that takes the dtype."""
    for name in ROWS:
        if name == "compare":
            yield from ((f"compare_{p}", name, {"predicate": p}) for p in PREDICATES)
        elif name in ("cast", "bitcast"):
            yield from ((f"{name}_{d}", name, {"dtype": d}) for d in DTYPES.values() if d is not dtype and (name == "cast" or d.bits == dtype.bits))
        else:
            yield name, name, {}


def all_ops_module(dtype, n, skip=()):
    """@f(x, y) with one result per scalar op, computed by one loop.parallel."""
    body = Block([ScalarType(i64)])
    b = Builder(body)
    x, y = Func("f", [BufferType(dtype, (n,))] * 2).args
    vx, vy = (b.op("loop.load", [a, body.args[0]]).result for a in (x, y))
    outs, labels = [], []
    for label, name, attrs in variants(dtype):
        row = OPS["scalar." + name]
        cond = b.compare("gt", vx, vy) if name == "select" else None
        operands = [cond, vx, vy] if cond is not None else [vx, vy][:len(row.operands)]
        if label in skip:
            continue
        try:
            outs.append(b.op("scalar." + name, operands, attrs).result)
            labels.append(label)
        except TypeMismatch:
            continue
    f = Func("f", [x.type, y.type, *(BufferType(v.type.dtype, (n,)) for v in outs)], attrs={"n_inputs": 2, "n_outputs": len(outs), "arena": 0})
    for op in body.ops[:2]:
        op.operands[0] = f.args[0 if op is body.ops[0] else 1]
    for v, a in zip(outs, f.args[2:]):
        b.op("loop.store", [v, a, body.args[0]])
    b.op("scf.yield")
    top = Builder(f.body)
    top.op("loop.parallel", [], {"extents": [n]}, [body])
    top.op("func.return")
    return Module([f], {"stage": "loop", "entries": ["f"]}), labels


def operands(dtype):
    rng = np.random.default_rng(1)
    if dtype.is_float:
        x = np.concatenate([np.repeat(SPECIAL, len(SPECIAL)), rng.uniform(-4, 4, 200), rng.uniform(-1, 1, 200), rng.uniform(0, 1e3, 200)])
        y = np.concatenate([np.tile(SPECIAL, len(SPECIAL)), rng.uniform(-4, 4, 600)])
        with np.errstate(over="ignore"):
            return x.astype(dtype.numpy), y.astype(dtype.numpy)
    if dtype.is_bool:
        return np.array([0, 0, 1, 1], bool), np.array([0, 1, 0, 1], bool)
    edge = [v for v in (dtype.min, dtype.min + 1, -1, 0, 1, 2, 7, dtype.bits - 1, dtype.bits, 100, dtype.max - 1, dtype.max) if dtype.min <= v <= dtype.max]
    low, high = max(dtype.min, -1000), min(dtype.max, 1000)
    x = np.array(edge * len(edge) + rng.integers(low, high, 200).tolist(), dtype.numpy)
    y = np.array([e for e in edge for _ in edge] + rng.integers(low, high, 200).tolist(), dtype.numpy)
    return x, y


def distance(a, b):
    """In units of the last place of b; 0 where both are NaN, the same zero or the same infinity."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        d = np.abs(wide_a - wide_b) / np.abs(np.spacing(b).astype(np.float64)) if a.dtype != np.dtype(DTYPES["bf16"].numpy) else \
            np.abs(wide_a - wide_b) / np.maximum(2.0 ** (np.floor(np.log2(np.abs(wide_b))) - 7), 2.0 ** -133)
    d[(wide_a == wide_b) & ((wide_b != 0) | (np.signbit(wide_a) == np.signbit(wide_b)))] = 0
    d[np.isnan(wide_a) & np.isnan(wide_b)] = 0
    return np.where(np.isnan(d), np.inf, d)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTS, DTYPES["bool"]], ids=str)
def test_scalar_ops(dtype):
    from engram.codegen.opencl.program import OpenClProgram
    x, y = operands(dtype)
    skip = BY_ZERO if dtype.is_int else ()
    module, labels = all_ops_module(dtype, len(x), skip)
    got = [np.asarray(a) for a in OpenClProgram(module).call("f", [x, y])]
    want = Interpreter(module).call("f", [x, y])
    wrong = []
    for label, g, w in zip(labels, got, want, strict=True):
        row = OPS["scalar." + label.partition("_")[0]]
        if w.dtype.kind in "fV" and not label.startswith("bitcast"):
            bound = row.ulp if dtype.name != "f64" else max(row.ulp, SPEC64.get(label, 4)) if row.ulp else 0
            d = distance(g, w)
            if d.max() > bound:
                i = int(d.argmax())
                wrong.append(f"{label}({x[i]}, {y[i]}): {g[i]}, expected {w[i]} ({d[i]} ulp, bound {bound})")
        else:
            # a NaN's payload is not kept, so its bits are no one's promise
            bad = g.view(np.uint8) != w.view(np.uint8) if g.dtype == bool else g != w
            if label.startswith("bitcast"):
                nan = np.isnan(x.astype(np.float64)) | (np.isnan(w.astype(np.float64)) & np.isnan(g.astype(np.float64)))
                bad = bad & ~nan
            if bad.any():
                i = int(bad.argmax())
                wrong.append(f"{label}({x[i]}, {y[i]}): {g[i]}, expected {w[i]}")
    assert not wrong, "\n".join(wrong)


# f64 functions are the device's own: the bounds of the OpenCL C specification
SPEC64 = {"exp": 3, "exp2": 3, "expm1": 3, "log": 3, "log2": 3, "pow": 16, "erf": 16, "erfc": 16, "tan": 5, "atan": 5, "atan2": 6, "tanh": 5, "atanh": 5}


@pytest.mark.parametrize("dtype", INTS, ids=str)
def test_integer_division(dtype):
    """Where the divisor is not zero; zero is a run-time error (test_opencl.py)."""
    from engram.codegen.opencl.program import OpenClProgram
    x, y = operands(dtype)
    x, y = x[y != 0], y[y != 0]
    module, labels = all_ops_module(dtype, len(x), skip=[label for label, _, _ in variants(dtype) if label not in BY_ZERO])
    got = OpenClProgram(module).call("f", [x, y])
    for label, g, w in zip(labels, got, Interpreter(module).call("f", [x, y]), strict=True):
        np.testing.assert_array_equal(np.asarray(g), w, err_msg=label)


@pytest.mark.parametrize("name", ["exp", "log", "tanh", "exp2", "expm1", "log1p", "sin", "cos", "erf", "pow"])
def test_f32_functions_within_their_bounds(name):
    """Many values against double precision: the table's bound holds over the whole range."""
    from engram.codegen.opencl.program import OpenClProgram
    row = OPS["tensor." + name]
    rng = np.random.default_rng(3)
    n = 1 << 16
    x = np.concatenate([rng.uniform(-1, 1, n), rng.uniform(-90, 90, n), np.exp(rng.uniform(-80, 80, n))]).astype(np.float32)
    y = rng.uniform(-3, 3, x.size).astype(np.float32)
    if name in ("log", "log1p", "pow"):
        x = np.abs(x)
    module, labels = all_ops_module(DTYPES["f32"], x.size, skip=[label for label, _, _ in variants(DTYPES["f32"]) if label != name])
    got = np.asarray(OpenClProgram(module).call("f", [x, y])[0]).astype(np.float64)
    import math
    fn = np.vectorize(math.erf) if name == "erf" else np.power if name == "pow" else getattr(np, name)
    with np.errstate(all="ignore"):
        want = fn(x.astype(np.float64), y.astype(np.float64)) if name == "pow" else fn(x.astype(np.float64))
        d = np.abs(got - want) / np.spacing(np.abs(want).astype(np.float32)).astype(np.float64)
    over = np.abs(want) >= 2.0**128
    assert np.array_equal(got[over], np.sign(want[over]) * np.inf)
    assert d[~over].max() <= row.ulp, f"{d[~over].max()} at {x[~over][d[~over].argmax()]}"


def test_a_device_without_double_precision():
    """f32 code then holds no double and stays within the OpenCL bounds; f64 is refused with a hint."""
    import dataclasses

    from engram.codegen.opencl import device as devices
    from engram.codegen.opencl.library import SPEC_ULP_WITHOUT_FP64
    from engram.codegen.opencl.program import OpenClProgram
    from engram.compiler.diagnostics import BackendUnavailable
    d = devices.device()
    weak = dataclasses.replace(d, caps=dataclasses.replace(d.caps, fp64=False))
    f32, f64 = DTYPES["f32"], DTYPES["f64"]
    x = np.random.default_rng(0).uniform(0.1, 0.9, 1000).astype(np.float32)
    module, labels = all_ops_module(f32, x.size, skip=["cast_f64"])
    p = OpenClProgram(module, weak)
    assert "double" not in p.source().replace("no double precision", "") and "exp2 3" in p.source()
    for label, g, w in zip(labels, p.call("f", [x, x[::-1].copy()]), Interpreter(module).call("f", [x, x[::-1].copy()]), strict=True):
        if w.dtype == np.float32 and not label.startswith("bitcast"):
            bound = max(OPS["scalar." + label.partition("_")[0]].ulp, SPEC_ULP_WITHOUT_FP64.get(label, 0))
            assert distance(np.asarray(g), w).max() <= bound + 0.5, label
    with pytest.raises(BackendUnavailable, match="no double precision") as e:
        OpenClProgram(all_ops_module(f64, 4)[0], weak)
    assert "ENGRAM_OPENCL_DEVICE" in str(e.value)


def test_code_without_a_device():
    """`engram ir --stage opencl` needs none: the text for a common GPU."""
    from engram.codegen.opencl.device import Caps
    from engram.codegen.opencl.program import source_text
    module, _ = all_ops_module(DTYPES["f32"], 8, skip=[label for label, _, _ in variants(DTYPES["f32"]) if label != "add"])
    text = source_text(module, Caps())
    assert text.count("__kernel ") == 1 and "FP_CONTRACT OFF" in text
