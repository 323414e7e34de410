"""Control flow and calls. Regions may use values of enclosing blocks; functions may not."""
from __future__ import annotations

from ..ir.types import TensorType, bool_, i64
from .common import ALL, BASE, count, need, row

SPECIAL = "handled by the pass itself: regions and calls"


def _call(types, attrs, regions):
    need("result_types" in attrs, "a call carries result_types")
    return list(attrs["result_types"])


row("func.call", "Calls @callee. `instance` (optional) is the path of the layer instance whose forward function it is, relative to the instance in "
    "whose forward function the call stands (see ops/learn.py), `signals` the names of its extra results, the last ones.", "*args", _call, SPECIAL, attrs={"callee": "function name", "result_types": "types", "instance": "path, optional"},
    example='%y = func.call(%x) {callee = "f", result_types = [f32[3]]} : f32[3]', stages=BASE)
row("func.return", "Ends a function.", "*values", lambda t, a, r: [], SPECIAL, terminator=True, stages=ALL, example="func.return(%y)")
row("scf.yield", "Ends a region.", "*values", lambda t, a, r: [], SPECIAL, terminator=True, stages=ALL, example="scf.yield(%y)")


def _types(block):
    return [v.type for v in block.ops[-1].operands]


def _if(types, attrs, regions):
    count(1, types)
    need(types[0] == TensorType(bool_), f"expected a condition bool[], got {types[0]}", 0)
    need(len(regions) == 2, "needs two regions")
    a, b = _types(regions[0]), _types(regions[1])
    need(a == b, f"the branches give different types: {', '.join(map(str, a))} and {', '.join(map(str, b))}")
    return a


row("scf.if", "The first region's yields when the condition holds, else the second's.", "cond", _if, SPECIAL, n_regions=2,
    example="%y = scf.if(%c) ({^(): scf.yield(%a)}, {^(): scf.yield(%b)}) : f32[]")


def _while(types, attrs, regions):
    need(len(regions) == 2, "needs a condition and a body region")
    cond, body = regions
    need([a.type for a in cond.args] == types and [a.type for a in body.args] == types, "region arguments differ from the carried values")
    need(_types(cond) == [TensorType(bool_)], "the condition region yields bool[]")
    need(_types(body) == types, "the body yields other types than it carries: "
         f"{', '.join(map(str, _types(body)))} for {', '.join(map(str, types))}")
    return list(types)


row("scf.while", "Repeats body(carries) while cond(carries) holds; gives the last carries.", "*inits", _while,
    "not differentiable in reverse mode: the number of steps is known only while running", n_regions=2,
    example="""%y = scf.while(%x) ({
^(%a: f32[]):
  %c = tensor.compare(%a, %limit) {predicate = "lt"} : bool[]
  scf.yield(%c)
}, {
^(%a: f32[]):
  %b = tensor.add(%a, %a) : f32[]
  scf.yield(%b)
}) : f32[]""")


def _scan(types, attrs, regions):
    n, length = attrs["n_carry"], attrs["length"]
    need(len(regions) == 1, "needs one region")
    body = regions[0]
    need(len(types) >= n and len(body.args) == 1 + len(types), f"the body takes {len(body.args)} arguments for {len(types)} operands")
    need(body.args[0].type == TensorType(i64), "the body's first argument is the index i64[]")
    for i, (t, a) in enumerate(zip(types, body.args[1:])):
        if i < n:
            need(a.type == t, f"carry {i} is {t}, the body takes {a.type}", i)
        else:
            need(t.rank > 0 and t.shape[0] == length and a.type == t.with_shape(t.shape[1:]), f"cannot scan over {t} in {length} steps", i)
    out = _types(body)
    need(out[:n] == types[:n], f"the body yields carries {', '.join(map(str, out[:n]))} for {', '.join(map(str, types[:n]))}")
    return out[:n] + [t.with_shape((length, *t.shape)) for t in out[n:]]


row("scf.scan", "A loop of `length` steps: body(index, carries..., x[index]...) yields (carries..., ys...); results are the last carries and the ys "
    "stacked along a new first dim. `reverse` runs index from length - 1 down to 0 (ys stay at their index). Operands: n_carry initial carries, then xs. `progress = true` (optional): its "
    "steps are what a launch counts as progress, and a launch that is cancelled ends after one of them, with the carries as they are then. "
    "`pipeline = n` (optional): its body is one call of a step, which the pass `pipeline` is to cut into n stages (at most n, unless `pipeline_exactly`). After it `stages = n`: "
    "the body is n calls in order, with what their operands need; stage s may work on step i while stage s + 1 works on step i - 1.",
    "*operands", _scan, SPECIAL, attrs={"length": "int", "n_carry": "int", "reverse": "bool", "progress": "bool, optional",
                                        "pipeline": "int, optional", "pipeline_exactly": "bool, optional", "stages": "int, optional"}, n_regions=1,
    example="""%s, %ys = scf.scan(%s0, %xs) {length = 5, n_carry = 1, reverse = false} ({
^(%i: i64[], %a: f32[], %x: f32[]):
  %b = tensor.add(%a, %x) : f32[]
  %y = tensor.tanh(%b) : f32[]
  scf.yield(%b, %y)
}) : f32[], f32[5]""")


def _assert(types, attrs, regions):
    count(1, types)
    need(types[0] == TensorType(bool_), f"expected bool[], got {types[0]}", 0)
    return []


row("tensor.assert", "A run-time error with the op's location and `message` when the condition is false.", "cond", _assert, lambda b, op, dys: [None],
    attrs={"message": "text"}, pure=False, example='tensor.assert(%c) {message = "too large"}')


def _fused(types, attrs, regions):
    need([a.type for a in regions[0].args] == list(types), "region arguments differ from the operands")
    return _types(regions[0])


row("tensor.fused", "A group of base ops that becomes one kernel: its region sees the operands only, its yields are the results. Made by the pass `fuse`.",
    "*operands", _fused, SPECIAL, n_regions=1, attrs={"kind": "elementwise, product, rows or reduce", "domain": "sizes, for rows; optional", "rows": "leading dims of domain that are rows; optional", "split": "chunks of a reduction, optional", "chunks": "of rows, where results add up over them; optional"}, stages=BASE,
    example="""%y = tensor.fused(%x) {kind = "elementwise"} ({
^(%a: f32[8]):
  %b = tensor.mul(%a, %a) : f32[8]
  %c = tensor.exp(%b) : f32[8]
  scf.yield(%c)
}) : f32[8]""")
