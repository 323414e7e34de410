"""canonicalize: algebraic identities that keep every bit (NaN, -0 and infinities included), each with its line of algebra.

Rules on control flow are here too; folding of constants is in fold.py. A rule is `rule(b, op) -> value | list | None`: it looks
at producers through Value.owner and builds with `b`.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..compiler.ir.builder import Builder
from ..compiler.ir.core import Block, Module, Op, Value, clone_op, rewrite
from ..compiler.ir.types import DType, TensorType, bool_, f32, i64

ROUNDS = 10
RULES: dict[str, list[Callable]] = {}


@dataclass(frozen=True)
class Canonicalize:
    """Applies the rules until nothing changes. Valid IR before and after, at any tensor stage."""

    name: ClassVar[str] = "canonicalize"
    exact: ClassVar[bool] = True

    def apply(self, module: Module) -> Module:
        for f in module.funcs.values():
            for _ in range(ROUNDS):
                if not rewrite(f.body, _apply):
                    break
        return module


def _apply(op: Op, out: Block) -> list[Value] | None:
    for rule in RULES.get(op.name, ()):
        new = rule(Builder(out, op.loc), op)
        if new is not None:
            return new if isinstance(new, list) else [new]
    return None


def rule(*names: str):
    def enter(fn):
        for n in names:
            RULES.setdefault(n if "." in n else "tensor." + n, []).append(fn)
        return fn
    return enter


# ---- looking at values ----------------------------------------------------------------------------------------------


def made_by(v: Value, name: str) -> Op | None:
    """The op `tensor.<name>` that makes v."""
    op = v.owner
    return op if isinstance(op, Op) and op.name == "tensor." + name else None


def const(v: Value):
    """The number that all elements of v are, else None."""
    op = made_by(v, "constant")
    if op is None:
        return None
    x = op.attrs["value"]
    if isinstance(x, np.ndarray):
        return x.reshape(-1)[0].item() if x.size == 1 and x.dtype.kind in "fiub" else None
    return x


def is_zero(c, negative: bool = False) -> bool:
    """+0 (or an integer 0); -0 when `negative`."""
    return c is not None and c == 0 and (math.copysign(1, c) < 0) == negative


def lossless(a: DType, b: DType) -> bool:
    """Every value of a is a value of b."""
    mantissa = {"f64": 53, "f32": 24, "bf16": 8, "f16": 11}
    if a is b or a.is_bool:
        return True
    if a.is_float:
        return (a.name, b.name) in {("f32", "f64"), ("bf16", "f32"), ("bf16", "f64"), ("f16", "f32"), ("f16", "f64")}
    if b.is_float:
        return b.name in ("f64", "f32", "bf16") and a.bits - (a.kind == "int") <= mantissa[b.name]
    return b.is_int and b.min <= a.min and a.max <= b.max


def size_one_free(shape) -> list[int]:
    return [d for d, n in enumerate(shape) if n != 1]


# ---- arithmetic -----------------------------------------------------------------------------------------------------


@rule("add")
def add_zero(b, op):
    for x, c in (op.operands, op.operands[::-1]):
        k = const(c)
        if is_zero(k, negative=x.type.dtype.is_float):     # x + -0 = x (but -0 + 0 = 0); integers: x + 0 = x
            return x
    x, y = op.operands
    if (n := made_by(y, "neg")) is not None:               # x + (-y) = x - y
        return b.sub(x, n.operands[0])
    if (n := made_by(x, "neg")) is not None:               # (-x) + y = y - x
        return b.sub(y, n.operands[0])


@rule("sub")
def sub_zero(b, op):
    x, y = op.operands
    if is_zero(const(y)):                                  # x - 0 = x
        return x
    if (n := made_by(y, "neg")) is not None:               # x - (-y) = x + y
        return b.add(x, n.operands[0])


@rule("mul")
def mul_one(b, op):
    for x, c in (op.operands, op.operands[::-1]):
        if const(c) == 1:                                  # x * 1 = x
            return x
        if x.type.dtype.is_int and is_zero(const(c)):      # n * 0 = 0 (integers only: NaN * 0 is NaN)
            return c
    x, y = op.operands
    if (m := made_by(x, "neg")) is not None and (n := made_by(y, "neg")) is not None:      # (-x) * (-y) = x * y
        return b.mul(m.operands[0], n.operands[0])


@rule("div")
def div_power_of_two(b, op):
    x, y = op.operands
    c = const(y)
    if c == 1:                                             # x / 1 = x
        return x
    if c and x.type.dtype in (f32,) and math.isfinite(c) and abs(math.frexp(c)[0]) == 0.5 and 2.0**-126 <= abs(1 / c) <= 2.0**126:
        return b.mul(x, 1 / c)                             # x / 2^k = x * 2^-k, both rounded once from the same number


@rule("neg")
def neg_neg(b, op):
    if (n := made_by(op.operands[0], "neg")) is not None:  # -(-x) = x
        return n.operands[0]


@rule("not")
def not_not(b, op):
    if (n := made_by(op.operands[0], "not")) is not None:  # !(!x) = x
        return n.operands[0]


@rule("abs")
def abs_abs(b, op):
    x = op.operands[0]
    if made_by(x, "abs") is not None:                      # ||x|| = |x|
        return x
    if (n := made_by(x, "neg")) is not None and x.type.dtype.is_float:     # |-x| = |x|
        return b.abs(n.operands[0])


@rule("floor", "ceil", "round", "trunc")
def round_round(b, op):
    x = op.operands[0]
    if any(made_by(x, n) is not None for n in ("floor", "ceil", "round", "trunc")):        # a whole number stays
        return x


@rule("max", "min")
def max_same(b, op):
    x, y = op.operands
    if x is y:                                             # max(x, x) = x
        return x
    neutral = x.type.dtype.min if op.name == "tensor.max" else x.type.dtype.max
    for v, c in ((x, y), (y, x)):
        if const(c) is not None and const(c) == neutral:   # max(x, least) = x, NaN stays NaN
            return v


@rule("pow")
def pow_whole(b, op):
    x, y = op.operands
    c = const(y)
    if c == 1:                                             # x ** 1 = x
        return x
    if c == 2 and (x.type.dtype is f32 or x.type.dtype.is_int):    # x ** 2 = x * x: a pow in f64, rounded to f32, is the rounded square
        return b.mul(x, x)


@rule("and", "or")
def and_same(b, op):
    x, y = op.operands
    if x is y:                                             # x & x = x
        return x
    if x.type.dtype.is_bool:
        for v, c in ((x, y), (y, x)):
            k = const(c)
            if k is not None:                              # x & true = x, x & false = false; x | false = x, x | true = true
                return v if bool(k) == (op.name == "tensor.and") else c


@rule("compare")
def compare_same(b, op):
    x, y = op.operands
    p = op.attrs["predicate"]
    if x is y and (p in ("lt", "gt") or not x.type.dtype.is_float):        # x < x is false, NaN too; n = n is true
        return b.constant(p in ("eq", "le", "ge"), op.result.type)


@rule("select")
def select_known(b, op):
    c, x, y = op.operands
    if x is y:                                             # c ? x : x = x
        return x
    k = const(c)
    if k is not None:                                      # true ? x : y = x
        return x if k else y
    if (n := made_by(c, "not")) is not None:               # !c ? x : y = c ? y : x
        return b.select(n.operands[0], y, x)
    if x.type.dtype is bool_ and const(x) is True and const(y) is False:   # c ? true : false = c
        return c


@rule("cast")
def cast_cast(b, op):
    x, to = op.operands[0], op.attrs["dtype"]
    if x.type.dtype is to:
        return x
    c = made_by(x, "cast")
    if c is not None and lossless(c.operands[0].type.dtype, x.type.dtype):     # nothing was lost on the way: cast directly
        return b.cast(c.operands[0], to)


@rule("bitcast")
def bitcast_bitcast(b, op):
    x, to = op.operands[0], op.attrs["dtype"]
    while (c := made_by(x, "bitcast")) is not None:
        x = c.operands[0]
    if x.type.dtype is to:
        return x
    if x is not op.operands[0]:
        return b.ew("bitcast", x, dtype=to)


# ---- movement -------------------------------------------------------------------------------------------------------


@rule("reshape")
def reshape_reshape(b, op):
    x = op.operands[0]
    if (r := made_by(x, "reshape")) is not None:           # only the last shape counts
        return b.reshape(r.operands[0], op.attrs["shape"])
    if x.type == op.result.type:
        return x


@rule("transpose")
def transpose_transpose(b, op):
    x, perm = op.operands[0], list(op.attrs["perm"])
    if perm == sorted(perm):
        return x
    if (t := made_by(x, "transpose")) is not None:         # permutations compose
        return b.transpose(t.operands[0], [t.attrs["perm"][p] for p in perm])
    wide = [p for p in perm if x.type.shape[p] != 1]
    if wide == sorted(wide):                               # only dims of size 1 move: the same memory
        return b.reshape(x, op.result.type.shape)


@rule("transpose")
def transpose_of_dot(b, op):
    d = made_by(op.operands[0], "dot_general")
    if d is None:
        return None
    x, y = d.operands
    a = d.attrs
    nb, nk = len(a["lhs_batch"]), len(a["lhs_contract"])
    nl = x.type.rank - nb - nk
    rank = op.operands[0].type.rank
    if nl == 0 or nl + nb == rank:
        return None
    if list(op.attrs["perm"]) == [*range(nb), *range(nb + nl, rank), *range(nb, nb + nl)]:     # (x y)^T = y^T x^T: swap the operands
        swapped = {**a, "lhs_batch": a["rhs_batch"], "rhs_batch": a["lhs_batch"], "lhs_contract": a["rhs_contract"], "rhs_contract": a["lhs_contract"]}
        return b.op("tensor.dot_general", [y, x], swapped).result


@rule("broadcast")
def broadcast_broadcast(b, op):
    x, shape, dims = op.operands[0], tuple(op.attrs["shape"]), list(op.attrs["dims"])
    if x.type.shape == shape:
        return x
    if x.type.numel == op.result.type.numel:               # only dims of size 1 appear
        return b.reshape(x, shape)
    if (t := made_by(x, "broadcast")) is not None:         # dims compose
        return b.broadcast(t.operands[0], shape, [dims[d] for d in t.attrs["dims"]])
    r = made_by(x, "reshape")
    if r is not None:                                      # dims of size 1 put in by a reshape need no reshape
        src = r.operands[0]
        wide = size_one_free(x.type.shape)
        if all(n != 1 for n in src.type.shape) and [x.type.shape[d] for d in wide] == list(src.type.shape):
            return b.broadcast(src, shape, [dims[d] for d in wide])


@rule("slice")
def slice_whole(b, op):
    x, a = op.operands[0], op.attrs
    if op.result.type == x.type:                           # x[:] = x
        return x
    s = made_by(x, "slice")
    if s is not None:                                      # starts add, strides multiply
        p = s.attrs
        start = [i + j * st for i, j, st in zip(p["start"], a["start"], p["stride"])]
        stride = [i * j for i, j in zip(p["stride"], a["stride"])]
        limit = [min(lo + (n - 1) * st + 1, top) if n else lo for lo, n, st, top in
                 zip(start, op.result.type.shape, stride, s.operands[0].type.shape)]
        return b.op("tensor.slice", [s.operands[0]], {"start": start, "limit": limit, "stride": stride}).result


@rule("reverse")
def reverse_reverse(b, op):
    x, dims = op.operands[0], [d for d in op.attrs["dims"] if op.result.type.shape[d] != 1]
    if not dims:                                           # nothing to turn round
        return x
    if (r := made_by(x, "reverse")) is not None:           # twice in the same dim is not at all
        dims = sorted(set(dims) ^ set(r.attrs["dims"]))
        return b.op("tensor.reverse", [r.operands[0]], {"dims": dims}).result if dims else r.operands[0]


@rule("pad")
def pad_nothing(b, op):
    if op.result.type == op.operands[0].type and not any(op.attrs["low"]) and not any(op.attrs["high"]):
        return op.operands[0]


@rule("concat")
def concat_one(b, op):
    d = op.attrs["dim"]
    parts = [x for x in op.operands if x.type.shape[d] != 0] or op.operands[:1]
    if len(parts) == 1:                                    # one part, or empty ones beside it
        return parts[0]
    if len(parts) < len(op.operands):
        return b.op("tensor.concat", parts, dict(op.attrs)).result


@rule("iota")
def iota_one(b, op):
    if op.attrs["shape"][op.attrs["dim"]] == 1:            # the only index is 0
        return b.zeros(op.result.type)


@rule("dynamic_slice", "dynamic_update_slice")
def static_slice(b, op):
    update = op.name == "tensor.dynamic_update_slice"
    x, starts = op.operands[0], [const(v) for v in op.operands[2 if update else 1:]]
    sizes = op.operands[1].type.shape if update else op.attrs["sizes"]
    if any(s is None for s in starts) or any(not 0 <= s <= n - k for s, k, n in zip(starts, sizes, x.type.shape)):
        return None
    if update:                                             # all of x is overwritten
        return op.operands[1] if tuple(sizes) == x.type.shape else None
    return b.op("tensor.slice", [x], {"start": starts, "limit": [s + k for s, k in zip(starts, sizes)], "stride": [1] * len(sizes)}).result


# ---- reductions and contractions ------------------------------------------------------------------------------------


@rule("reduce_sum", "reduce_prod", "reduce_max", "reduce_min")
def reduce_one(b, op):
    x, dims = op.operands[0], list(op.attrs["dims"])
    wide = [d for d in dims if x.type.shape[d] != 1]
    if len(wide) == len(dims) and dims:
        return None
    if not wide:                                           # one element: itself, but a sum starts from +0, so -0 becomes 0
        y = b.reshape(x, op.result.type.shape)
        return b.add(y, 0) if op.name == "tensor.reduce_sum" and x.type.dtype.is_float else y
    narrow = [d for d in dims if d not in wide]            # dims of size 1 need no reduction
    shape = [n for d, n in enumerate(x.type.shape) if d not in narrow]
    kept = [d for d in range(x.type.rank) if d not in narrow]
    return b.reduce(op.name.removeprefix("tensor.reduce_"), b.reshape(x, shape), [kept.index(d) for d in wide])


@rule("reduce_max", "reduce_min")
def reduce_reduce(b, op):
    r = op.operands[0].owner
    if isinstance(r, Op) and r.name == op.name:            # max over max: over all dims at once
        kept = [d for d in range(r.operands[0].type.rank) if d not in r.attrs["dims"]]
        return b.reduce(op.name.removeprefix("tensor.reduce_"), r.operands[0], [*r.attrs["dims"], *(kept[d] for d in op.attrs["dims"])])


@rule("dot_general")
def dot_of_transpose(b, op):
    """Reading an operand through its transpose is free where its other dims stay in order."""
    new, attrs, changed = [], dict(op.attrs), False
    for side, v in zip(("lhs", "rhs"), op.operands):
        t = made_by(v, "transpose")
        if t is not None:
            perm = t.attrs["perm"]
            used = [*attrs[side + "_batch"], *attrs[side + "_contract"]]
            free = [perm[d] for d in range(len(perm)) if d not in used]
            if free == sorted(free):
                attrs[side + "_batch"] = [perm[d] for d in attrs[side + "_batch"]]
                attrs[side + "_contract"] = [perm[d] for d in attrs[side + "_contract"]]
                v, changed = t.operands[0], True
        new.append(v)
    return b.op("tensor.dot_general", new, attrs).result if changed else None


# ---- control flow ---------------------------------------------------------------------------------------------------


@rule("scf.if")
def if_known(b, op):
    k = const(op.operands[0])
    if k is not None:                                      # the branch that is taken
        return _splice(b, op.regions[0 if k else 1], {})


@rule("scf.scan")
def scan_short(b, op):
    length, n, body = op.attrs["length"], op.attrs["n_carry"], op.regions[0]
    if length == 0:                                        # no step: the initial carries and empty stacks
        return op.operands[:n] + [b.zeros(r.type) for r in op.results[n:]]
    if length == 1 and not op.attrs.get("progress"):      # one step: the body itself
        xs = [b.reshape(x, x.type.shape[1:]) for x in op.operands[n:]]
        out = _splice(b, body, dict(zip(body.args, [b.constant(0, TensorType(i64)), *op.operands[:n], *xs])))
        return out[:n] + [b.reshape(y, r.type.shape) for y, r in zip(out[n:], op.results[n:])]


def _splice(b: Builder, body: Block, env: dict[Value, Value]) -> list[Value]:
    """Copy the ops of a region to where `b` builds; its yields."""
    for o in body.ops[:-1]:
        b.block.append(clone_op(o, env))
    return [env.get(v, v) for v in body.terminator.operands]
