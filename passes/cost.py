"""The cost model of fusion and lowering: rough costs of scalar ops, in cheap operations, and the sizes at which decisions turn.

Deliberately small: it has to tell an exp from an add, and something that fits a cache from something that does not.
"""
from __future__ import annotations

from ..compiler.ir.core import Module, Op
from ..compiler.ir.dims import product

ROW_BUFFER_BYTES = 16 * 1024        # a row intermediate is kept rather than computed again up to this size
EXPENSIVE = 4                       # a row's value from this cost on is kept rather than computed again
UNROLLED = 9                        # reductions of at most so many elements get no loop
UNROLLED_STORES = 4                 # and row loops of at most so many iterations
SMALL_CONTRACTION = 2048            # multiplications up to which a contraction is a plain sum per element, fused with what follows
DEPTHWISE = 64                      # places of a window up to which a convolution within one channel is a plain sum, too

COSTS = {
    "div": 4, "sqrt": 4, "rsqrt": 8, "floordiv": 6, "mod": 8, "fmod": 8, "exp": 10, "exp2": 10, "expm1": 14, "log": 12, "log2": 12,
    "log1p": 14, "sin": 16, "cos": 16, "tan": 24, "asin": 24, "acos": 24, "atan": 20, "atan2": 30, "sinh": 20, "cosh": 20, "tanh": 16,
    "asinh": 30, "acosh": 30, "atanh": 24, "erf": 20, "erfc": 30, "pow": 40, "bits": 100, "fold_in": 100, "take": 4, "take_along": 4,
    "dynamic_slice": 4, "dynamic_update_slice": 6, "pad": 4, "concat": 4,
}


def cost(op: Op) -> int:
    """Cheap operations per element of the result; movement is free."""
    short = op.name.split(".", 1)[1]
    if short in ("broadcast", "reshape", "transpose", "slice", "reverse", "constant", "iota", "stop_gradient", "bitcast"):
        return 0
    if short in ("floordiv", "mod", "fmod", "pow") and op.results[0].type.dtype.is_int:
        return 20
    if short == "dot_general":
        return 2 * product(op.operands[0].type.shape[d] for d in op.attrs["lhs_contract"])
    return COSTS.get(short, 1)


# ---- fusion ----
# Elementwise ops on the result of a contraction above SMALL_CONTRACTION always become its epilogue, as far as they fit MAX_GROUP: an
# element in the cache costs a load; in a kernel of its own it costs a write and a read of memory, and the threads meet once more.
INLINE_COST = 3                     # ops reading one array are copied into all their users up to this total cost
MAX_GROUP = 128                     # ops in one group: bounds compile time and registers
SPLIT_SIZE, SPLIT_KEPT = 1 << 16, 63   # a reduction of at least this many elements to at most so many is split
COLUMN_SIZE, COLUMN_CHUNKS = 1 << 20, 64    # a reduction over rows of at least this many elements to a row of results goes along the rows, in so many chunks of them
COLUMN_BYTES = 32 * 1024            # results of a chunk, which stay in the first cache
SEQUENTIAL = 4096                   # elements up to which one thread may do it all
FAR = 16                            # elements between neighbours of a row from which on it is copied before it is gone through


def enough_rows(rows: int, elements: int) -> bool:
    """Whether a rows group has enough rows for threads to share, or is too small for that to matter."""
    return rows >= 16 or (rows >= 4 and elements <= 1 << 16) or elements <= SEQUENTIAL


# ---- attention ----
ATTENTION_QUERIES, ATTENTION_KEYS = 64, 64    # a block of scores and what it is made of fit the first caches
ATTENTION_FEW_KEYS = 16                       # of a block for fewer queries than lanes: a cache is read up to the end of the block it is filled to
ATTENTION_LANES = 8                           # from so many queries on they are the lanes, else the keys of one query

ATTENTION_APART = 8                           # batch elements from which on each one's gradient is one thread's


# ---- a vector by a matrix ----
MATRIX_CHUNKS = 4                   # chunks of rows that threads read each from start to end
MATRIX_ELEMENTS = 1 << 17           # smaller matrices stay in the caches


# ---- rows of a table ----
TABLE_REUSE = 2                     # uses of each row, on average, from which on a product is done with the table before its rows are taken
SORTED_REUSE = 8                    # rows per update, at most, for which updates of a large table of zeros are sorted by row first
SORTED_ROW = 64                     # and elements a row at least
KEPT = 256                      # the first so many of a sorted row are kept by insertion: even when every element enters, that costs no more than to sort
KEPT_SHARE = 2                  # .. if the row is at least so many times longer


# ---- stores ----
STREAM_BYTES = 32 << 20             # results from this size on do not stay in a last cache until they are read


# ---- rows fetched beforehand ----
FETCHED_ROW_BYTES = 256 << 10       # longer rows, this one and the next, are no longer in a second cache when they are wanted
LINE_BYTES = 64
PAGE_BYTES = 4096                   # within which processors prefetch by themselves: shorter rows are fetched so much earlier


# ---- loops ----
FEW_ROWS = 64                       # rows of a product up to which its right operand is read about once
WORTH_TRANSPOSING = 4               # turns of a loop from which transposing that operand in front of it pays


# ---- a pipeline's stages ----
BYTE_COST, SCALAR_COST = 4.0, 3.0   # in operations of a product, which a core does at its peak: a byte read or written, a cheap operation elsewhere


def part_cost(op: Op, module: Module) -> float:
    """The work of a group, call or loop, in operations of a product."""
    memory = BYTE_COST * sum(v.type.numel * v.type.dtype.bytes for v in [*op.operands, *op.results])
    return memory + _inside(op, module)


def _inside(op: Op, module: Module) -> float:
    if op.name == "func.call":
        return sum(part_cost(o, module) for o in module.funcs[op.attrs["callee"]].body.ops[:-1])
    if op.regions:
        inner = _inside if op.name == "tensor.fused" else part_cost
        return op.attrs.get("length", 1) * sum(inner(o, module) for r in op.regions for o in r.ops[:-1])
    if not op.results or op.name.startswith("func."):
        return 0.0
    if op.name == "tensor.dot_general":
        return float(cost(op) * op.result.type.numel)
    return SCALAR_COST * cost(op) * max(v.type.numel for v in [*op.operands, *op.results])
