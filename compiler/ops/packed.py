"""Cheap weights: rows for quantised parameters, their packed codes, and integer products of int8 activations with packed codes.

A packed matrix of k x n codes is u8[panels, steps, 64] (i16[panels, steps, 32] for format "int16"): a panel holds 16 columns, a step 64 bytes,
four for each column, which hold `group` consecutive k: byte b of a column has, from its lowest bits up, the codes of k = b, b + 4, b + 8 ...
of the step. What is beyond k and n has the code of the value 0. So a vector of 4 n bytes is n / 4 columns whatever the target's width.
"""
from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ..ir.types import BufferType, TensorType, f32, i8, i16, i32, row_major, u8, u32
from .common import FRONT, LOOPS, S, count, need, row, tensor
from .loop import NONE, buffer

COLUMNS = 16          # of a panel
STEP_BYTES = 64       # of a panel's step


@dataclass(frozen=True)
class Format:
    """How the codes of one kind of weight are stored. A stored number is value + offset, or an entry of a table of them."""

    name: str
    bits: int
    offset: int               # stored code = value + offset, unsigned; with `powers`, of what the table gives
    low: int                  # the least and greatest value
    high: int
    powers: bool = False      # 4 bits: 0 or sign and 1 + exponent; values 0, +-1, +-2 .. +-64

    @property
    def group(self) -> int:
        """k values of a step."""
        return STEP_BYTES // COLUMNS * 8 // self.bits

    @property
    def memory(self):
        """The dtype of packed codes, and of the activations they meet."""
        return (i16, i16) if self.bits == 16 else (u8, i8)


FORMATS = {f.name: f for f in (
    Format("ternary", 2, 1, -1, 1), Format("pow2", 4, 64, -64, 64, powers=True), Format("int4", 4, 8, -8, 7),
    Format("int8", 8, 128, -128, 127), Format("int16", 16, 0, -32768, 32767))}


def packed_shape(fmt: Format, k: int, n: int) -> tuple[int, int, int]:
    """Panels, steps, elements of a step."""
    return -(-n // COLUMNS), -(-k // fmt.group), STEP_BYTES // fmt.memory[0].bytes


def _format(attrs) -> Format:
    need(attrs.get("format") in FORMATS, f"format is one of {' '.join(FORMATS)}")
    return FORMATS[attrs["format"]]


# ---- weights ---------------------------------------------------------------------------------------------------------------


def weight_format(weight: str) -> tuple[Format, int]:
    """The packed format of a weight type, and the number of levels that its scale refers to: `ternary`, `int8`, `int4`, `pow2(n)`."""
    if weight.startswith("pow2("):
        n = int(weight[5:-1])
        need(1 <= n <= 15, f"pow2({n}): from 1 to 15 exponents")
        return FORMATS["pow2" if n <= 7 else "int16"], n
    need(weight in ("ternary", "int8", "int4"), f"expected ternary, int8, int4 or pow2(n), got {weight!r}")
    return FORMATS[weight], {"ternary": 1, "int4": 7, "int8": 127}[weight]


COLUMN_SCALES = ("int8", "int4")       # the weight types whose columns may have scales of their own


def codes(b, w, weight: str, along: int | None = None):
    """(integer codes as the format's activation dtype, the f32[] they are to be multiplied with). `along` (int8, int4): each column along this
    dim of a matrix has a scale of its own, so that there are f32[n] of them."""
    fmt, levels = weight_format(weight)
    dtype = fmt.memory[1]
    if weight.startswith("pow2("):
        return _powers(b, w, levels, dtype)
    if weight == "ternary":
        return _ternary(b, w, dtype)
    scale = b.div(b.max(b.reduce("max", b.abs(w), range(w.type.rank) if along is None else [along]), 1e-30), float(levels))
    q = b.round(b.div(w, _over(b, scale, w.type.shape, along)))
    return b.cast(b.max(b.min(q, float(levels)), float(-levels)), dtype), scale


def _over(b, scale, shape, along: int | None):
    """The scale, or each column's, for every element."""
    return b.broadcast(scale, shape) if along is None else b.broadcast(scale, shape, [1 - along])


def _ternary(b, w, dtype):
    """BitNet b1.58: scale by the mean of |w|, round to -1, 0, 1; that is, to the sign of what is larger than half the scale."""
    n = w.type.numel if isinstance(w.type.numel, int) else 1             # a generic function is only checked
    scale = b.max(b.div(b.sum(b.abs(w), range(w.type.rank)), float(n)), 1e-12)
    half = b.broadcast(b.mul(scale, 0.5), w.type.shape)
    up, down = (b.cast(x, dtype) for x in (b.compare("gt", w, half), b.compare("lt", w, b.neg(half))))
    return b.sub(up, down), scale


_SQRT2 = 0x3504F4          # the first f32 mantissa above that of the root of 2


def exponent(b, x, nearest: bool):
    """floor(log2 x), or round(log2 x), of positive f32 as i32, by their bits: the same on every machine."""
    bits = b.ew("bitcast", x, dtype=u32)
    e = b.sub(b.cast(b.ew("shr", bits, 23), i32), 127)
    return b.add(e, b.cast(b.compare("ge", b.ew("and", bits, (1 << 23) - 1), _SQRT2), i32)) if nearest else e


def power(b, k):
    """2^k as f32, for whole numbers -126 .. 127."""
    k = b.max(b.min(k, 127), -126)
    return b.ew("bitcast", b.ew("shl", b.cast(b.add(k, 127), u32), 23), dtype=f32)


def _powers(b, w, n: int, dtype):
    """sign(w) 2^k with the n exponents km - n + 1 .. km, km = floor(log2(4/3 max|w|)), k = round(log2 |w|), 0 below them."""
    a = b.abs(w)
    top = b.max(b.reduce("max", a, range(w.type.rank)), 1e-30)
    low = b.sub(exponent(b, b.mul(top, 4 / 3), False), n - 1)
    step = b.min(b.sub(exponent(b, a, True), b.broadcast(low, w.type.shape)), n - 1)
    size = b.ew("shl", b.like(1, step), b.max(step, 0))
    size = b.select(b.compare("lt", step, 0), 0, size)
    return b.cast(b.select(b.compare("lt", w, 0.0), b.neg(size), size), dtype), power(b, low)


def rows(b, x, dtype, levels: int = 127):
    """Activations by row: (round(levels x / max|x|) as `dtype`, max|x| / levels with a last dim of 1)."""
    top = b.max(b.reduce("max", b.abs(x), [x.type.rank - 1], keepdim=True), 1e-30)
    q = b.round(b.div(b.mul(x, float(levels)), b.broadcast(top, x.type.shape)))
    return b.cast(b.max(b.min(q, float(levels)), float(-levels - 1)), dtype), b.div(top, float(levels))


def sums_fit(weight: str, k) -> bool:
    """Whether a sum of k products with int8 activations is sure to fit i32."""
    _, levels = weight_format(weight)
    return not isinstance(k, int) or k * 127 * (1 << (levels - 1) if weight.startswith("pow2(") else levels) < 1 << 31


def _quantize(types, attrs, regions):
    count(1, types)
    need(tensor(types[0]).dtype is f32, f"expected f32, got {types[0]}", 0)
    weight_format(str(attrs.get("weight")))
    along = attrs.get("along")
    need(along is None or attrs["weight"] in COLUMN_SCALES and types[0].rank == 2 and along in (0, 1), "along = 0 or 1: for matrices of int8 or int4")
    return [types[0]]


def _quantize_expand(b, op):
    w = op.operands[0]
    q, scale = codes(b, w, op.attrs["weight"], op.attrs.get("along"))
    return [b.mul(b.cast(q, f32), _over(b, scale, w.type.shape, op.attrs.get("along")))]


_WEIGHTS = ("ternary", "int8", "int4", "pow2(7)", "pow2(12)")

row("nn.quantize", "The nearest value that a cheap weight can have; the gradient passes straight through. weight = ternary: -1, 0 or 1 times the mean of |w|; "
    "int8 and int4: whole numbers times max |w| / 127 or 7, with `along` the maximum of each column along that dim; pow2(n): 0 or a sign and one of the n powers of two up to "
    "4/3 max |w|.", "w", _quantize, lambda b, op, dys: [dys[0]], stages=FRONT, decompose=_quantize_expand,
    attrs={"weight": "ternary int8 int4 pow2(n)", "along": "0 or 1 (optional)"}, exact=False,
    example='%q = nn.quantize(%w) {weight = "ternary"} : f32[6,5]',
    samples=[S("f32[6,5]", weight=w) for w in _WEIGHTS] + [S("f32[6,5]", weight=w, along=d) for w in COLUMN_SCALES for d in (0, 1)])


def _quantized_dot(types, attrs, regions):
    count(2, types)
    x, w = tensor(types[0]), tensor(types[1], 1)
    need(x.dtype is f32 and w.dtype is f32, f"expected f32, got {x} and {w}", 0, 1)
    need(x.rank >= 1 and w.rank == 2 and attrs.get("contract") in (0, 1), "expected rows and a matrix, contract = 0 or 1")
    k, n = w.shape[attrs["contract"]], w.shape[1 - attrs["contract"]]
    need(not attrs.get("columns") or attrs["weight"] in COLUMN_SCALES, f"columns of {attrs['weight']} have no scales of their own")
    need(sums_fit(str(attrs.get("weight")), k), f"sums of {k} products with {attrs['weight']} weights do not fit i32")
    need(x.shape[-1] == k, f"cannot multiply {x} and {w} over dim {attrs['contract']}: {x.shape[-1]} vs {k}", 0, 1)
    return [x.with_shape((*x.shape[:-1], n))]


def product(b, x, packed, scale, weight: str, n: int):
    """x @ (packed codes times scale): x in int8 per row, summed exactly, scaled once. `scale`: f32[], or f32[n] of the columns."""
    fmt, _ = weight_format(weight)
    k = x.type.shape[-1]
    q, sx = rows(b, x, fmt.memory[1])
    more = -k % fmt.group
    if more:
        zeros = [0] * (x.type.rank - 1)
        q = b.op("tensor.pad", [q, b.constant(0, TensorType(q.type.dtype, ()))], {"low": [*zeros, 0], "high": [*zeros, more], "interior": [*zeros, 0]}).result
    sums = b.op("tensor.dot_packed", [q, packed], {"format": fmt.name, "n": n}).result
    shape = sums.type.shape if scale.type.rank else sx.type.shape
    step = b.mul(b.broadcast(sx, shape), b.broadcast(scale, shape))
    return b.mul(b.cast(sums, f32), b.broadcast(step, sums.type.shape))


def pack(b, w, weight: str, contract: int, columns: bool = False):
    """(packed codes, scale or those of the columns) of a matrix."""
    fmt, _ = weight_format(weight)
    q, scale = codes(b, w, weight, contract if columns else None)
    return b.op("tensor.pack", [b.transpose(q, [1, 0]) if contract else q], {"format": fmt.name}).result, scale


def _quantized_dot_expand(b, op):
    x, w = op.operands
    packed, scale = pack(b, w, op.attrs["weight"], op.attrs["contract"], bool(op.attrs.get("columns")))
    return [product(b, x, packed, scale, op.attrs["weight"], op.results[0].type.shape[-1])]


def _quantized_dot_grad(b, op, dys):
    """Straight through both roundings: dx = g Q(w)^T, dw = Q(x)^T g."""
    (x, w), g, c = op.operands, dys[0], op.attrs["contract"]
    fmt, _ = weight_format(op.attrs["weight"])
    wq = b.op("nn.quantize", [w], {"weight": op.attrs["weight"], **({"along": c} if op.attrs.get("columns") else {})}).result
    lead = list(range(x.type.rank - 1))
    attrs = {"lhs_batch": [], "rhs_batch": []}
    dx = b.op("tensor.dot_general", [g, wq], {**attrs, "lhs_contract": [g.type.rank - 1], "rhs_contract": [1 - c]}).result
    q, sx = rows(b, x, fmt.memory[1])
    xq = b.mul(b.cast(q, f32), b.broadcast(sx, x.type.shape))
    pair = [g, xq] if c else [xq, g]
    dw = b.op("tensor.dot_general", pair, {**attrs, "lhs_contract": lead, "rhs_contract": lead}).result
    return [dx, dw]


row("nn.quantized_dot", "x @ w over w's dim `contract`, w as nn.quantize has it and each row of x rounded to whole numbers of max |x| / 127 (BitNet b1.58): a sum of products "
    "of small integers, exact, scaled once; with `columns` (int8, int4) each column of w has a scale of its own. Gradients pass straight through both roundings.", "x w",
    _quantized_dot, _quantized_dot_grad, stages=FRONT,
    decompose=_quantized_dot_expand, attrs={"weight": "ternary int8 int4 pow2(n)", "contract": "0 or 1", "columns": "true (optional)"}, exact=False,
    example='%y = nn.quantized_dot(%x, %w) {weight = "ternary", contract = 0} : f32[3,5]',
    samples=[S("f32[3,6]", "f32[6,5]" if c == 0 else "f32[5,6]", weight=w, contract=c) for w in _WEIGHTS for c in (0, 1)]
    + [S("f32[3,6]", "f32[6,5]" if c == 0 else "f32[5,6]", weight=w, contract=c, columns=True) for w in COLUMN_SCALES for c in (0, 1)]
    + [S("f32[2,3,21]", "f32[21,18]", weight="ternary", contract=0), S("f32[7]", "f32[7,40]", weight="int8", contract=0)])


# ---- packed codes ----------------------------------------------------------------------------------------------------------

INTEGERS = "not differentiable: it takes integers"


def _pack(types, attrs, regions):
    count(1, types)
    fmt, t = _format(attrs), tensor(types[0])
    need(t.rank == 2 and t.dtype is fmt.memory[1], f"expected a matrix of {fmt.memory[1]}, got {t}", 0)
    return [TensorType(fmt.memory[0], packed_shape(fmt, *t.shape))]


row("tensor.pack", "The codes of a k x n matrix of small integers, 16 columns a panel, for tensor.dot_packed: format = ternary (2 bits), pow2 (4 bits: 0, +-1, +-2 .. +-64), "
    "int4, int8, int16. A value that the format does not have gives an unspecified value of it.", "values", _pack, INTEGERS, attrs={"format": " ".join(FORMATS)},
    example='%p = tensor.pack(%w) {format = "ternary"} : u8[2,1,64]',
    samples=[S(("i8[10,20]", -1, 1), format="ternary"), S(("i8[21,18]", 1, 2), format="pow2"), S(("i8[9,16]", -8, 7), format="int4"),
             S(("i8[6,33]", -128, 127), format="int8"), S(("i16[5,7]", -30000, 30000), format="int16")])


def _dot_packed(types, attrs, regions):
    count(2, types)
    fmt, x, p, dims = _format(attrs), tensor(types[0]), tensor(types[1], 1), attrs.get("dims", 1)
    need(x.dtype is fmt.memory[1] and x.rank >= dims >= 1, f"expected {fmt.memory[1]} of {dims} dims or more, got {x}", 0)
    want = packed_shape(fmt, prod(x.shape[x.rank - dims:]), attrs["n"])
    need(p.dtype is fmt.memory[0] and tuple(p.shape) == want, f"expected {fmt.memory[0]}{list(want)}, got {p}", 1)
    need(x.shape[-1] % fmt.group == 0, f"rows of {fmt.name} come in groups of {fmt.group}, got {x.shape[-1]}", 0)
    at = attrs.get("at", x.rank - dims)
    need(0 <= at <= x.rank - dims, f"the result has no dim {at}")
    return [TensorType(i32, (*x.shape[:at], attrs["n"], *x.shape[at:x.rank - dims]))]


row("tensor.dot_packed", "Rows of integers, of x's last dims, times n columns of packed codes, summed exactly in i32 (wrapping). No float, no multiplication but of small "
    "integers.", "x packed", _dot_packed, INTEGERS, attrs={"format": " ".join(FORMATS), "n": "columns", "dims": "optional: how many of x's last dims are summed over (1)",
                                        "at": "optional: which dim of the result the columns are (the last)"},
    example='%y = tensor.dot_packed(%x, %p) {format = "ternary", n = 20} : i32[3,20]',
    samples=[S(("i8[3,32]", -128, 127), ("u8[2,2,64]", 0, 255), format=f, n=n) for f, n in (("ternary", 20),)]
    + [S(("i8[2,16]", -128, 127), ("u8[2,2,64]", 0, 255), format=f, n=20) for f in ("pow2", "int4")]
    + [S(("i8[2,2,8]", -128, 127), ("u8[2,2,64]", 0, 255), format="int8", n=32), S(("i8[3,2,4]", -128, 127), ("u8[1,2,64]", 0, 255), format="int8", n=9, dims=2, at=0), S(("i16[3,4]", -3000, 3000), ("i16[1,2,32]", -3000, 3000), format="int16", n=9)])


# ---- loop stage ------------------------------------------------------------------------------------------------------------


def _fits(t: BufferType, dtype, shape) -> bool:
    """Row-major memory of this type."""
    return t.dtype is dtype and tuple(t.shape) == tuple(shape) and tuple(t.element_strides) == row_major(shape)


def _loop_pack(types, attrs, regions):
    count(2, types)
    out, v = buffer(types[0]), buffer(types[1], 1)
    fmt = _format(attrs)
    need(v.rank == 2 and v.dtype is fmt.memory[1], f"expected a matrix of {fmt.memory[1]}, got {v}", 1)
    need(_fits(out, fmt.memory[0], packed_shape(fmt, *v.shape)), f"expected {fmt.memory[0]}{list(packed_shape(fmt, *v.shape))}, got {out}", 0)
    return []


row("loop.pack", "out = the packed codes of `values` (any strides), as tensor.pack.", "out values", _loop_pack, NONE, stages=LOOPS, attrs={"format": " ".join(FORMATS)}, pure=False,
    example='loop.pack(%p, %w) {format = "ternary"}')


def _loop_contract(types, attrs, regions):
    count(3, types)
    out, x, p = (buffer(t, i) for i, t in enumerate(types))
    fmt = _format(attrs)
    rows, depth = row_dims(x, attrs)
    need(rows and depth and out.rank == len(rows) + 1 and tuple(out.shape[:-1]) == rows and out.dtype is i32 and x.dtype is fmt.memory[1]
         and x.shape[-1] % fmt.group == 0 and x.element_strides[-1] == 1,
         f"expected i32[m..,n] and {fmt.memory[1]}[m..,k..], the last dim of neighbours and in groups of {fmt.group}; got {out} and {x}", 0, 1)
    need(_fits(p, fmt.memory[0], packed_shape(fmt, prod(depth), out.shape[-1])), f"packed codes do not fit: {p}", 2)
    return []


def row_dims(x: BufferType, attrs) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The sizes of a loop.contract_packed's rows: of the dims that tell them apart, and of those that are summed over."""
    at = x.rank - attrs.get("dims", 1)
    return tuple(x.shape[:at]), tuple(x.shape[at:])


row("loop.contract_packed", "out[m..,n] = x[m..,k..] times packed codes, as tensor.dot_packed; x may be a view whose rows overlap (windows). out overlaps no operand.",
    "out x packed", _loop_contract, NONE, stages=LOOPS, attrs={"format": " ".join(FORMATS), "dims": "optional: how many of x's last dims are summed over (1)"}, pure=False, example='loop.contract_packed(%y, %x, %p) {format = "ternary"}')
