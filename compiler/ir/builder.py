"""Builder: appends ops to a block, inferring result types from the op table. Also sugar used by gradient rules and passes."""
from __future__ import annotations

import numpy as np

from .core import Block, Loc, Op, Value
from .opdef import OPS, TypeMismatch
from .types import DType, ScalarType, TensorType, bool_, i64


class Builder:
    """Appends to `block`; every op gets `loc`. `b.add(x, y)` is `b.op("tensor.add", [x, y]).result` ("scalar.add" on scalars);
    a Python number beside a value becomes a constant of its type."""

    def __init__(self, block: Block, loc: Loc | None = None):
        self.block, self.loc = block, loc

    def at(self, loc: Loc | None) -> Builder:
        """The same block with another location."""
        return Builder(self.block, loc)

    def op(self, name: str, operands=(), attrs: dict | None = None, regions=(), loc: Loc | None = None) -> Op:
        """Append an op; TypeMismatch when it does not type-check."""
        row = OPS.get(name)
        if row is None:
            raise KeyError(f"no op named {name}")
        attrs = attrs or {}
        types = row.infer([v.type for v in operands], attrs, list(regions))
        return self.block.append(Op(name, operands, attrs, types, regions, loc or self.loc))

    # ---- constants ----
    def constant(self, value, type) -> Value:
        """A splat (number) or dense (ndarray) constant of a TensorType, or a scalar constant of a ScalarType."""
        if isinstance(type, ScalarType):
            return self.op("scalar.constant", (), {"value": _plain(value, type.dtype), "dtype": type.dtype}).result
        if isinstance(value, np.ndarray):
            if value.shape != tuple(type.shape):
                raise TypeMismatch(f"constant of shape {value.shape} for {type}")
            return self.op("tensor.constant", (), {"value": np.array(value, type.dtype.numpy, order="C"), "type": type}).result
        return self.op("tensor.constant", (), {"value": _plain(value, type.dtype), "type": type}).result

    def index(self, value: int) -> Value:
        """An i64 scalar constant (loop IR)."""
        return self.constant(value, ScalarType(i64))

    def like(self, value, other: Value) -> Value:
        """`value` itself, or the number as a constant of other's type."""
        return value if isinstance(value, Value) else self.constant(value, other.type)

    # ---- elementwise sugar ----
    def ew(self, name: str, *xs, **attrs) -> Value:
        ref = next(x for x in xs if isinstance(x, Value))
        prefix = "scalar." if isinstance(ref.type, ScalarType) else "tensor."
        return self.op(prefix + name, [self.like(x, ref) for x in xs], attrs).result

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        key = name.rstrip("_")
        if "tensor." + key not in OPS or not OPS["tensor." + key].elementwise:
            raise AttributeError(f"Builder has no method {name}")
        return lambda *xs, **attrs: self.ew(key, *xs, **attrs)

    def compare(self, predicate: str, x, y) -> Value:
        """predicate: eq ne lt le gt ge."""
        return self.ew("compare", x, y, predicate=predicate)

    def select(self, cond: Value, a, b) -> Value:
        ref = a if isinstance(a, Value) else b
        prefix = "scalar." if isinstance(cond.type, ScalarType) else "tensor."
        return self.op(prefix + "select", [cond, self.like(a, ref), self.like(b, ref)]).result

    def cast(self, x: Value, dtype: DType) -> Value:
        return x if x.type.dtype is dtype else self.ew("cast", x, dtype=dtype)

    # ---- movement and reduction sugar (tensors) ----
    def broadcast(self, x: Value, shape, dims=None) -> Value:
        """x's dim j becomes result dim dims[j] (default: trailing dims, as NumPy); sizes are equal or 1."""
        shape = tuple(shape)
        if tuple(x.type.shape) == shape and (dims is None or tuple(dims) == tuple(range(len(shape)))):
            return x
        dims = list(dims) if dims is not None else list(range(len(shape) - x.type.rank, len(shape)))
        return self.op("tensor.broadcast", [x], {"shape": list(shape), "dims": dims}).result

    def reshape(self, x: Value, shape) -> Value:
        return x if tuple(x.type.shape) == tuple(shape) else self.op("tensor.reshape", [x], {"shape": list(shape)}).result

    def transpose(self, x: Value, perm) -> Value:
        perm = list(perm)
        return x if perm == list(range(len(perm))) else self.op("tensor.transpose", [x], {"perm": perm}).result

    def reduce(self, kind: str, x: Value, dims, keepdim: bool = False) -> Value:
        """kind: sum prod max min. keepdim reshapes back with ones."""
        dims = sorted(d % x.type.rank for d in dims)
        y = self.op(f"tensor.reduce_{kind}", [x], {"dims": dims}).result if dims else x
        return self.reshape(y, [1 if i in dims else n for i, n in enumerate(x.type.shape)]) if keepdim else y

    def sum(self, x: Value, dims, keepdim: bool = False) -> Value:
        return self.reduce("sum", x, dims, keepdim)

    def zeros(self, type: TensorType) -> Value:
        return self.constant(False if type.dtype is bool_ else 0, type)

    def unbroadcast(self, x: Value, shape) -> Value:
        """Sum x down to `shape`, the adjoint of broadcasting `shape` (trailing dims, ones) to x's."""
        shape = tuple(shape)
        if tuple(x.type.shape) == shape:
            return x
        lead = x.type.rank - len(shape)
        dims = list(range(lead)) + [i + lead for i, n in enumerate(shape) if n == 1 and x.type.shape[i + lead] != 1]
        return self.reshape(self.sum(x, dims), shape)

    def iota(self, shape, dim: int, dtype: DType = i64) -> Value:
        return self.op("tensor.iota", (), {"shape": list(shape), "dim": dim, "dtype": dtype}).result


def _plain(value, dtype: DType):
    """The Python number stored for a constant, rounded to dtype so that printing it is exact."""
    if dtype.is_bool:
        return bool(value)
    if dtype.is_float:
        if (v := float(value)).is_integer() and abs(v) <= 256:       # every dtype has it
            return v
        with np.errstate(over="ignore"):                       # beyond the dtype is infinity, as in arithmetic
            return float(np.asarray(float(value)).astype(dtype.numpy)) if dtype.bits < 64 else float(value)
    v = int(value)
    if not dtype.min <= v <= dtype.max:
        raise TypeMismatch(f"{v} does not fit {dtype}")
    return v
