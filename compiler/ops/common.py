"""Helpers for writing rows of the op table: checks, and the `row` function with its defaults."""
from __future__ import annotations

from ..ir.opdef import LOOP, NN, TENSOR, OpDef, Sample, TypeMismatch, register
from ..ir.types import ScalarType, TensorType

BASE = frozenset({NN, TENSOR})
FRONT = frozenset({NN})
LOOPS = frozenset({LOOP})
ALL = frozenset({NN, TENSOR, LOOP})


def row(name, doc, operands, infer, grad, *, example="", attrs=None, stages=BASE, samples=(), **traits) -> OpDef:
    """Register a row. `operands`: "x y" or "x *xs"."""
    return register(OpDef(name=name, doc=doc, example=example, operands=tuple(operands.split()), attrs=attrs or {},
                          infer=infer, grad=grad, stages=frozenset(stages), samples=tuple(samples), **traits))


def S(*inputs, **attrs) -> Sample:
    """S(("f32[2,3]", -1, 1), dims=[0]); a bare text takes the range -2..2."""
    return Sample(tuple((i, -2, 2) if isinstance(i, str) else tuple(i) for i in inputs), attrs)


def need(cond: bool, message: str, *operands: int, hint: str | None = None) -> None:
    if not cond:
        raise TypeMismatch(message, operands, hint)


def tensor(t, i: int = 0) -> TensorType:
    if not isinstance(t, TensorType):
        need(False, f"expected a tensor, got {t}", i)
    return t


def scalar(t, i: int = 0) -> ScalarType:
    if not isinstance(t, ScalarType):
        need(False, f"expected a scalar, got {t}", i)
    return t


def norm_dims(dims, rank: int) -> list[int]:
    out = sorted(int(d) for d in dims)
    need(all(0 <= d < rank for d in out), f"dims {list(dims)} out of range for rank {rank}")
    need(len(set(out)) == len(out), f"dims {list(dims)} repeat")
    return out


def count(n: int, types) -> None:
    need(len(types) == n, f"expected {n} operands, got {len(types)}")
