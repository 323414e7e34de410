"""quantize: products and convolutions with cheap weights become sums of products of small integers (nn.quantized_dot, nn.quantized_conv).

A cheap weight is what nn.quantize makes: reads of parameters declared `ternary`, `int8`, `pow2(n)`, and, when the module's attribute `quantize`
names a weight type, every float matrix and filter among the parameters that products and convolutions use; int8 and int4 matrices then have a scale for each
column that is summed along. Parameters are the arguments that an entry function lists in its attribute `weights`, followed through calls.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir.builder import Builder
from ..compiler.ir.core import Block, Func, Module, Op, Value, rewrite
from ..compiler.ir.dims import product
from ..compiler.ir.types import f32
from ..compiler.ops.packed import COLUMN_SCALES, sums_fit, weight_format
from .util import callees_first

CONTRACT = ("lhs_contract", "rhs_contract")
THROUGH = ("tensor.transpose", "autodiff.watch")       # what a matrix may pass on its way to a product


@dataclass(frozen=True)
class Quantize:
    """Before and after: nn stage. Without the attribute `quantize`, what a program means does not change but that activations of products and convolutions with
    quantised parameters are rounded to int8: that is how these products are defined, so every backend has this pass."""

    name: ClassVar[str] = "quantize"
    exact: ClassVar[bool] = False
    redefines: ClassVar[bool] = True       # what a program computes changes, because it was asked for: not for --check-passes

    def apply(self, module: Module) -> Module:
        weight = module.attrs.get("quantize")
        if weight:
            weight_format(weight)
            for name, args in parameters(module).items():
                _mark(module.funcs[name], args, weight)
        for f in module.funcs.values():
            if any(op.name == "nn.quantize" for op in f.walk()):
                rewrite(f.body, _product)
        return module


def parameters(module: Module, carried: bool = True) -> dict[str, set[int]]:
    """The arguments of each function that are parameters wherever it is called; `carried`: what loops make of parameters counts as such."""
    found: dict[str, set[int]] = {n: set(f.attrs["weights"]) for n, f in module.funcs.items() if "weights" in f.attrs}
    for f in reversed(callees_first(module)):
        mine = values(f, found.setdefault(f.name, set()), carried)
        for op in f.walk():
            if op.name == "func.call":
                here = {i for i, v in enumerate(op.operands) if source(v)[0] in mine and not source(v)[1]}
                callee = op.attrs["callee"]
                found[callee] = found[callee] & here if callee in found else here
    return found


def values(f: Func, args: set[int], carried: bool) -> set[Value]:
    """These arguments of f, and the values that loops carry on from them."""
    mine = {f.args[i] for i in args}
    if carried and mine:
        for op in f.walk():                                # outer loops come before inner ones
            first = {"scf.scan": 1, "scf.while": 0}.get(op.name)
            n = op.attrs["n_carry"] if op.name == "scf.scan" else len(op.operands)
            if first is not None:
                mine |= {r.args[first + i] for r in op.regions for i, v in enumerate(op.operands[:n]) if source(v)[0] in mine}
    return mine


def source(v: Value) -> tuple[Value, bool]:
    """The value that v shows, and whether transposed (a matrix)."""
    turned = False
    while isinstance(v.owner, Op) and v.owner.name in THROUGH:
        turned ^= v.owner.name == "tensor.transpose"
        v = v.owner.operands[0]
    return v, turned


def matrix(op: Op, side: int) -> Value | None:
    """The operand on this side of a product of rows and one f32 matrix, when it can be the matrix."""
    if op.name != "tensor.dot_general" or op.attrs["lhs_batch"] or len(op.attrs["lhs_contract"]) != 1:
        return None
    w, x = op.operands[side], op.operands[1 - side]
    return w if w.type.rank == 2 and w.type.dtype is f32 and x.type.dtype is f32 and op.result.type.dtype is f32 and x.type.rank >= 1 else None


def convolved(op: Op) -> bool:
    """Whether this is a convolution without groups, an f32 filter [out, in, k..] times windows [B, in, o.., k..], as the front end writes it."""
    if op.name != "tensor.dot_general" or op.attrs["lhs_batch"] or op.result.type.dtype is not f32:
        return False
    w, v = op.operands
    n = w.type.rank - 2
    return n > 0 and isinstance(v.owner, Op) and v.owner.name == "tensor.windows" and len(v.owner.attrs["size"]) == n and v.type.rank == 2 * n + 2 \
        and w.type.dtype is f32 and v.type.dtype is f32 and list(op.attrs["lhs_contract"]) == [1, *range(2, n + 2)] \
        and list(op.attrs["rhs_contract"]) == [1, *range(n + 2, 2 * n + 2)]


def _mark(f: Func, args: set[int], weight: str) -> None:
    """Puts nn.quantize between parameters and products; of two parameters the right one is the weight."""
    mine = values(f, args, True)

    def visit(op: Op, out: Block) -> None:
        if convolved(op) and source(op.operands[0])[0] in mine:
            op.operands[0] = Builder(out, op.loc).op("nn.quantize", [op.operands[0]], {"weight": weight}).result
            return
        for side in (1, 0):
            w = matrix(op, side)
            if w is not None and source(w)[0] in mine:
                along = {"along": op.attrs[CONTRACT[side]][0]} if weight in COLUMN_SCALES else {}
                op.operands[side] = Builder(out, op.loc).op("nn.quantize", [w], {"weight": weight, **along}).result
                return
    if mine:
        rewrite(f.body, visit)


def _product(op: Op, out: Block) -> list[Value] | None:
    if convolved(op):
        return _convolution(Builder(out, op.loc), op)
    for side in (1, 0):
        w = matrix(op, side)
        y = None if w is None else _quantized(Builder(out, op.loc), op, side, *_unturned(w))
        if y is not None:
            return [y]
    return None


def _quantized(b: Builder, op: Op, side: int, w: Value, turned: bool) -> Value | None:
    """The product, with the matrix on this side; on the left one its rows are the result's first dim."""
    if not isinstance(w.owner, Op) or w.owner.name != "nn.quantize":
        return None
    weight, along = w.owner.attrs["weight"], w.owner.attrs.get("along")
    x, dims = op.operands[1 - side], [op.attrs[a][0] for a in CONTRACT]
    if along is not None and along != dims[side] ^ turned:  # the scales would stay in the sums
        return None
    w, again = _unturned(w.owner.operands[0])              # the codes of a transposed matrix are its codes, transposed
    d, n = dims[1 - side], x.type.rank
    if not x.type.shape[d] or not sums_fit(weight, x.type.shape[d]):
        return None
    x = b.transpose(x, [*(i for i in range(n) if i != d), d])
    y = b.op("nn.quantized_dot", [x, w], {"weight": weight, "contract": dims[side] ^ turned ^ again, **({} if along is None else {"columns": True})}).result
    return y if side else b.transpose(y, [n - 1, *range(n - 1)])


def _convolution(b: Builder, op: Op) -> list[Value] | None:
    """The product of a filter and windows, which takes the zeros around its input upon itself: [out, B, o..]."""
    w, v = op.operands
    if not isinstance(w.owner, Op) or w.owner.name != "nn.quantize" or not product(w.type.shape[1:]) or not product(v.type.shape[:2]) \
            or not sums_fit(w.owner.attrs["weight"], product(w.type.shape[1:])):
        return None
    x, n = v.owner.operands[0], w.type.rank - 2
    low, high = [0] * n, [0] * n
    if (p := _zeros_around(x)) is not None and not any([*p.attrs["low"][:2], *p.attrs["high"][:2]]):
        x, low, high = p.operands[0], list(p.attrs["low"][2:]), list(p.attrs["high"][2:])
    y = b.op("nn.quantized_conv", [x, w.owner.operands[0]], {"weight": w.owner.attrs["weight"], "stride": list(v.owner.attrs["stride"]),
                                                             "dilation": list(v.owner.attrs["dilation"]), "low": low, "high": high}).result
    return [b.transpose(y, [1, 0, *range(2, n + 2)])]


def _zeros_around(x: Value) -> Op | None:
    """The pad that only puts zeros around x."""
    op = x.owner
    if not isinstance(op, Op) or op.name != "tensor.pad" or any(op.attrs["interior"]) or min(*op.attrs["low"], *op.attrs["high"]) < 0:
        return None
    fill = op.operands[1].owner
    zero = isinstance(fill, Op) and fill.name == "tensor.constant" and not hasattr(fill.attrs["value"], "shape") and fill.attrs["value"] == 0
    return op if zero else None


def _unturned(w: Value) -> tuple[Value, bool]:
    turned = False
    while isinstance(w.owner, Op) and w.owner.name == "tensor.transpose":
        w, turned = w.owner.operands[0], not turned
    return w, turned
