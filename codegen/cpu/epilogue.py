"""The region of a loop.contract as a function that the GEMM calls for finished panels of C.

`void @e(ptr env, ptr panel, i64 ld, i64 b0, i64 b1, i64 r0, i64 r1, i64 c0, i64 c1)`: the sums of rows r0..r1 and columns c0..c1 (c0 a
multiple of the vector's lanes) of matrix (b0, b1) lie at `panel`, rows `ld` elements apart. `env` holds 64-bit slots: the runtime, what the
region uses from outside, and the indices of batch dims beyond two.
"""
from __future__ import annotations

from dataclasses import dataclass

from ...compiler.ir.builder import Builder
from ...compiler.ir.core import Block, Op, Value
from ...compiler.ir.types import BufferType, ScalarType, i64
from ..epilogue import inline_epilogue
from .emit_kernel import NAME, Body, Errors, _decompose, captured, param_type
from .irtext import Fn, Module
from .lanes import Plan, Strides, base_lanes, can_vectorise, varying
from .scalars import mem_elem
from .values import Buf, Val, num

EPILOGUE_TYPES = ["ptr", "ptr", *["i64"] * 7]


@dataclass
class EpilogueCode:
    """Text with NAME for its name; what it takes from outside, in the order of env's slots after the runtime; cycles in all; those of
    the captured buffers that it reads at its element's own place: (position, elements from row to row)."""

    text: str
    captured: list[Value]
    cost: float
    streams: list[tuple[int, int]]


def _streams(op: Op, plan, outside: list[Value]) -> list[tuple[int, int]]:
    """Buffers with a row for every row of C and an element for every one of C's: what the GEMM can fetch ahead (see EpilogueCode)."""
    if plan.batch or len(plan.m.letters) != 1 or len(plan.n.letters) != 1:
        return []
    region, out = op.regions[0], op.operands[0].type
    index = dict(zip(op.attrs["out"], region.args[1:]))
    row, column = index[plan.m.letters[0][0]], index[plan.n.letters[0][0]]
    found = {}
    for o in region.ops:
        if o.name == "loop.load" and o.operands[0] in outside and o.operands[0].type.dtype.bits == out.dtype.bits:
            step = dict(zip(o.operands[1:], o.operands[0].type.element_strides))
            if set(step) == {row, column} and len(step) == len(o.operands) - 1 and step[column] == 1:
                found[outside.index(o.operands[0])] = step[row]
    return list(found.items())


def emit_epilogue(module: Module, op: Op, plan, errors: Errors) -> EpilogueCode:
    """The function for op's region, called by the GEMM as `plan` (contract.GemmPlan) says."""
    out, target = op.operands[0].type, module.target
    letters = op.attrs["out"]
    column = plan.n.letters[0][0] if plan.n.letters else ""
    block = Block([ScalarType(i64)] * (len(letters) + 1))              # the last one: a column where C has none
    index = dict(zip(letters, block.args))
    panel = Value(BufferType(out.dtype, (plan.n.size,)), block)
    here = index.get(column, block.args[-1])
    b = Builder(block, op.loc)
    inline_epilogue(b, op, b.op("loop.load", [panel, here]).result, block.args[:-1], [panel, here])
    b.op("scf.yield", [])
    kernel = Op("loop.parallel", [], {"extents": [1] * len(block.args)}, (), [block], op.loc)
    outside = [v for v in captured(kernel) if v is not panel]

    f = Fn(module, f"void {NAME}(ptr %env, ptr %panel, i64 %ld, i64 %b0, i64 %b1, i64 %r0, i64 %r1, i64 %c0, i64 %c1)", "#2")
    how = Plan(target)
    vary = varying(block, here)
    lanes = base_lanes(block, target) if can_vectorise(block, vary) else 1
    how.over, how.lanes = here, lanes
    how.cost = out.numel / lanes * (how._vector(block, Strides(here, vary), lanes) + 1.0)
    body = Body(f, target, how, errors)
    f.do("%rt = load ptr, ptr %env, align 8")
    for i, v in enumerate(outside):
        text = f.load(param_type(v), f.gep("i64", "%env", str(i + 1)), 8)
        body.env[v] = Buf(text, v.type, num(0)) if isinstance(v.type, BufferType) else Val("u", text, v.type.dtype)
    for v in block.args:
        body.env[v] = num(0)

    def place(flat: str, dim) -> None:
        if dim.letters:
            _decompose(f, body, flat, [index[x] for x, _ in dim.letters], [n for _, n in dim.letters])
    for i, dim in enumerate(plan.batch):
        place(f"%b{i}" if i < 2 else f.load("i64", f.gep("i64", "%env", str(len(outside) + i - 1)), 8), dim)
    elem = mem_elem(out.dtype)
    with f.loop("%r0", "%r1") as row:
        place(row.index, plan.m)
        start = f.isub(f.imul(f.isub(row.index, "%r0"), "%ld"), "%c0")
        body.env[panel] = Buf(f.gep(elem, "%panel", start), panel.type, num(0))
        if lanes > 1:
            body.row(block, here, "%c0", "%c1", lanes, None)
        else:
            with f.loop("%c0", "%c1") as c:
                body.env[here] = Val("u", c.index, i64, small=True)
                body.block(block)
    f.finish()
    return EpilogueCode(module.functions.pop(), outside, how.cost, _streams(op, plan, outside))
