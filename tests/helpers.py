"""Shared by tests of the op table: inputs from a row's samples, and modules that hold one op."""
import re

import numpy as np
from engram.compiler.ir import DTYPES, Func, Loc, Module, ScalarType, TensorType, bool_, i64
from engram.compiler.ir.builder import Builder
from engram.compiler.ir.core import Block
from engram.compiler.ir.types import BufferType
from engram.compiler.ops import NN, OPS, TENSOR, OpDef, Sample, TypeMismatch


def parse_type(text: str) -> TensorType:
    """`f32[3,5]` as a TensorType."""
    name, dims = re.fullmatch(r"(\w+)\[([\d,]*)\]", text).groups()
    return TensorType(DTYPES[name], tuple(int(d) for d in dims.split(",") if d))


def sample_types(sample: Sample) -> list[TensorType]:
    return [parse_type(text) for text, _, _ in sample.inputs]


def sample_arrays(sample: Sample, seed: int = 0) -> list[np.ndarray]:
    """Inputs for a sample: uniform in its ranges (integers: both ends included), the same for the same seed."""
    rng = np.random.default_rng(seed)
    return [random_array(parse_type(text), lo, hi, rng) for text, lo, hi in sample.inputs]


def random_array(type: TensorType, lo: float, hi: float, rng: np.random.Generator) -> np.ndarray:
    dt = type.dtype
    if dt.is_float:
        return np.asarray(rng.uniform(lo, hi, type.shape)).astype(dt.numpy)
    if dt is bool_:
        return np.asarray(rng.integers(0, 2, type.shape)).astype(bool)
    low = max(int(lo), dt.min)
    return np.asarray(rng.integers(low, max(low, int(hi)), type.shape, dt.numpy, endpoint=True))


def with_dtype(sample: Sample, dtype) -> Sample:
    """The sample with the dtype of its first input changed, everywhere that dtype stands."""
    first = sample.inputs[0][0].split("[")[0]
    return Sample(tuple((t.replace(first + "[", f"{dtype}[", 1), lo, hi) for t, lo, hi in sample.inputs), sample.attrs)


def fits(row: OpDef, sample: Sample) -> bool:
    try:
        row.infer(sample_types(sample), sample.attrs, [])
    except TypeMismatch:
        return False
    return True


def make_op_module(row: OpDef | str, sample: Sample, loc: Loc | None = None) -> Module:
    """A module whose function @f is the op alone, on arguments of the sample's types."""
    row = OPS[row] if isinstance(row, str) else row
    f = Func("f", sample_types(sample))
    op = Builder(f.body, loc).op(row.name, f.args, dict(sample.attrs))
    f.result_types = [r.type for r in op.results]
    Builder(f.body).op("func.return", op.results)
    return Module([f], {"stage": TENSOR if TENSOR in row.stages else NN, "entries": ["f"]})


def make_scalar_module(row: OpDef | str, sample: Sample) -> Module:
    """The loop-stage function @f that applies scalar.NAME to every element of inputs of an elementwise row's sample."""
    row = OPS[row] if isinstance(row, str) else row
    name = "scalar." + row.name.partition(".")[2]
    ins = sample_types(sample)
    out, = row.infer(ins, sample.attrs, [])
    shape = ins[0].shape
    f = Func("f", [BufferType(t.dtype, shape) for t in [*ins, out]], attrs={"n_inputs": len(ins), "n_outputs": 1, "arena": 0})
    body = Block([ScalarType(i64)] * len(shape))
    b = Builder(body)
    loaded = [b.op("loop.load", [a, *body.args]).result for a in f.args[:-1]]
    b.op("loop.store", [b.op(name, loaded, dict(sample.attrs)).result, f.args[-1], *body.args])
    b.op("scf.yield")
    top = Builder(f.body)
    top.op("loop.parallel", [], {"extents": list(shape)}, [body])
    top.op("func.return")
    return Module([f], {"stage": "loop", "entries": ["f"]})


FLOATS = tuple(DTYPES[n] for n in ("f32", "f64", "f16", "bf16"))
INTS = tuple(DTYPES[n] for n in ("i32", "i64", "i16", "i8", "u64", "u32", "u16", "u8"))
