"""What a row of the op table is, and the registry the rows are put in (by compiler/ops). Builder and verifier read it."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .types import Type

# Stages: what the frontend emits, what the passes leave, and the loop IR. A row lists where it is legal.
NN, TENSOR, LOOP = "nn", "tensor", "loop"
STAGES = (NN, TENSOR, LOOP)


class TypeMismatch(ValueError):
    """Operands, attributes or regions do not fit an op. `operands` lists the indices to blame, when known."""

    def __init__(self, message: str, operands: tuple[int, ...] = (), hint: str | None = None):
        super().__init__(message)
        self.operands, self.hint = operands, hint


@dataclass(frozen=True)
class Sample:
    """Input arrays' types and value ranges, attributes: what the property tests run an op on. `inputs`: (type text, low, high)."""

    inputs: tuple[tuple[str, float, float], ...]
    attrs: dict


@dataclass(frozen=True)
class OpDef:
    """One row. `infer(types, attrs, regions) -> result types` raises TypeMismatch. `grad(b, op, dys) -> [adjoint | None]`
    per operand, or a str: "not differentiable, because ...". `operands`: names; a last one starting with `*` is variadic."""

    name: str
    doc: str
    example: str
    operands: tuple[str, ...]
    attrs: dict[str, str]
    infer: Callable[[list[Type], dict, list], list[Type]]
    grad: Callable | str
    stages: frozenset[str]
    elementwise: bool = False
    pure: bool = True           # no effects: may be removed, merged, moved
    commutative: bool = False
    exact: bool = True          # every backend gives the interpreter's bits; else within `ulp`
    ulp: float = 0.0            # stated bound for an elementwise op on f32
    terminator: bool = False
    n_regions: int | None = 0   # None: any number
    optional_region: bool = False   # may have one more
    decompose: Callable | None = None   # decompose(b, op) -> results, in base ops; for nn.* and the derived random.*
    samples: tuple[Sample, ...] = ()


OPS: dict[str, OpDef] = {}


def register(row: OpDef) -> OpDef:
    if row.name in OPS:
        raise ValueError(f"op {row.name} is registered twice")
    OPS[row.name] = row
    return row
