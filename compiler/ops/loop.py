"""The loop IR: loops over explicit buffers and scalars. Indices are i64 scalars. See docs/ARCHITECTURE.md section 4."""
from __future__ import annotations

from ..ir.types import BufferType, ScalarType, accumulator, bool_, i64, widens
from .common import LOOPS, need, row, scalar

NONE = "the loop IR comes after differentiation"
REDUCERS = ("add", "mul", "max", "min", "and", "or")
I64 = ScalarType(i64)


def buffer(t, i=0) -> BufferType:
    need(isinstance(t, BufferType), f"expected a buffer, got {t}", i)
    return t


def _loop(name, doc, operands, infer, **kw):
    row("loop." + name, doc, operands, infer, NONE, stages=LOOPS, **kw)


def _indices(types, first, rank):
    need(len(types) == first + rank, f"expected {rank} indices, got {len(types) - first}")
    for i, t in enumerate(types[first:], first):
        need(t == I64, f"expected an i64 index, got {t}", i)


def _alloc(types, attrs, regions):
    need(isinstance(attrs.get("type"), BufferType), "needs a buffer type")
    return [attrs["type"]]


_loop("alloc", "A temporary buffer. At a function's top level (or in a top-level loop.for) it lives in the function's arena (plan-buffers "
      "adds `offset`, bytes, a multiple of 64); inside loop.parallel it is private to the iteration.", "", _alloc, attrs={"type": "BufferType", "offset": "bytes, after plan-buffers"},
      pure=False, example="%t = loop.alloc() {type = buf<f32[32,64]>} : buf<f32[32,64]>")


def _global(types, attrs, regions):
    return [attrs["type"]]


_loop("constant", "A read-only buffer with the given elements (an ndarray of its shape).", "", _global, attrs={"type": "BufferType", "value": "ndarray"},
      example='%c = loop.constant() {value = dense<f32[2], "0000803f00000040">, type = buf<f32[2]>} : buf<f32[2]>')


def _view(types, attrs, regions):
    b = buffer(types[0])
    need(len(types) == 2 and types[1] == I64, "expected a buffer and an i64 offset (elements)")
    return [BufferType(b.dtype, tuple(attrs["shape"]), tuple(attrs["strides"]))]


_loop("view", "The same memory from `offset` elements on (counted from the operand's own start, whatever its strides), under another shape and "
      "element strides. Never out of the operand's bounds.", "buffer offset", _view, attrs={"shape": "sizes", "strides": "elements"},
      example="%v = loop.view(%b, %o) {shape = [64], strides = [1]} : buf<f32[64], [1]>")


def _load(types, attrs, regions):
    b = buffer(types[0])
    _indices(types, 1, b.rank)
    return [ScalarType(b.dtype)]


def _store(types, attrs, regions):
    b = buffer(types[1], 1)
    need(types[0] == ScalarType(b.dtype), f"expected {b.dtype}, got {types[0]}", 0)
    _indices(types, 2, b.rank)
    return []


_loop("load", "One element; with `ahead`, what lies so many elements further is fetched into the caches, too, where the target can (pass prefetch-rows).", "buffer *indices",
      _load, attrs={"ahead": "elements, optional"}, pure=False, example="%x = loop.load(%b, %i, %j) : f32")
_loop("store", "Writes one element; with `stream`, past the caches where the target can (pass stream-stores).", "value buffer *indices", _store,
      attrs={"stream": "bool, optional"}, pure=False, example="loop.store(%x, %b, %i, %j)")


def _prefetch(types, attrs, regions):
    _load(types, attrs, regions)
    return []


_loop("prefetch", "Fetches the element, which is in bounds, and the lanes' neighbours into the caches where the target can. Not an access: it computes and orders nothing.",
      "buffer *indices", _prefetch, pure=False, example="loop.prefetch(%b, %i, %j)")


def _parallel(types, attrs, regions):
    need(not types, "takes no operands")
    need([a.type for a in regions[0].args] == [I64] * len(attrs["extents"]), "one i64 region argument per extent")
    return []


_loop("parallel", "Independent iterations over 0..extent in each dim (row-major order of nesting, any order of execution, implicit join). No iteration "
      "reads what another writes.", "", _parallel, attrs={"extents": "sizes"}, n_regions=1, pure=False,
      example="""loop.parallel() {extents = [32, 64]} ({
^(%i: i64, %j: i64):
  %x = loop.load(%a, %i, %j) : f32
  %y = scalar.exp(%x) : f32
  loop.store(%y, %b, %i, %j)
  scf.yield()
})""")


def _for(types, attrs, regions):
    need(types[:2] == [I64, I64], "expected bounds i64, i64")
    need([a.type for a in regions[0].args] == [I64, *types[2:]], "the body takes the index and the carried scalars")
    out = [v.type for v in regions[0].ops[-1].operands]
    need(out == types[2:], "the body yields other types than it carries")
    return out


_loop("for", "Sequential: index lo, lo + step ... below hi, carrying scalars. `independent = true` (optional; never with carried scalars) promises that no "
      "iteration reads what another writes, so that they may become lanes of a vector. `progress = true` (optional; at host level, from 0, "
      "without carried scalars): the turns done are the launch's progress, and a launch that is cancelled or has failed ends between two of them.", "lo hi *inits", _for,
      attrs={"step": "int > 0", "independent": "bool, optional", "progress": "bool, optional"}, n_regions=1, pure=False,
      example="""%s = loop.for(%lo, %hi, %s0) {step = 1} ({
^(%i: i64, %t: f32):
  %x = loop.load(%a, %i) : f32
  %u = scalar.add(%t, %x) : f32
  scf.yield(%u)
}) : f32""")


def _reduce(types, attrs, regions):
    need(types == [I64, I64], "expected bounds i64, i64")
    out = [scalar(v.type) for v in regions[0].ops[-1].operands]
    need(len(out) == len(attrs["kinds"]) and all(k in REDUCERS for k in attrs["kinds"]), f"one kind of {' '.join(REDUCERS)} per yielded scalar")
    need([a.type for a in regions[0].args] == [I64], "the body takes the index")
    return out


_loop("reduce", "Combines the scalars yielded for lo <= index < hi with `kinds` (identity over an empty range; max and min propagate NaN). The order is the "
      "backend's, fixed by the shapes alone; add and mul of floats may regroup, the others are exact.", "lo hi", _reduce, attrs={"kinds": " ".join(REDUCERS)}, n_regions=1, pure=False,
      example="""%s = loop.reduce(%lo, %hi) {kinds = ["add"]} ({
^(%k: i64):
  %x = loop.load(%a, %k) : f32
  scf.yield(%x)
}) : f32""")


def _if(types, attrs, regions):
    need(types == [ScalarType(bool_)], "expected a bool condition")
    a, b = ([v.type for v in r.ops[-1].operands] for r in regions)
    need(a == b, "the branches yield different types")
    return a


def _while(types, attrs, regions):
    need(not types, "takes no operands")
    need([v.type for v in regions[0].ops[-1].operands] == [ScalarType(bool_)], "the condition yields bool")
    return []


_loop("if", "The first region when the condition holds, else the second; their yields are the results.", "cond", _if, n_regions=2, pure=False,
      example="""loop.if(%c) ({
^():
  loop.copy(%d, %s)
  scf.yield()
}, {
^():
  scf.yield()
})""")
_loop("while", "Repeats the second region while the first yields true; state lives in buffers.", "", _while, n_regions=2, pure=False,
      example="""loop.while() ({
^():
  %x = loop.load(%cell) : f32
  %c = scalar.compare(%x, %limit) {predicate = "lt"} : bool
  scf.yield(%c)
}, {
^():
  loop.parallel() {extents = []} ({
  ^():
    %y = loop.load(%cell) : f32
    %z = scalar.add(%y, %y) : f32
    loop.store(%z, %cell)
    scf.yield()
  })
  scf.yield()
})""")


def _sections(types, attrs, regions):
    need(not types and regions, "takes regions and no operands")
    need(all(not r.args and not r.ops[-1].operands for r in regions), "sections take and yield nothing")
    return []


_loop("sections", "Host-level lists of which none reads or writes what another writes: they may run side by side, each on one thread, and all are "
      "done when the op is. A stage of a pipeline is one.", "", _sections, n_regions=None, pure=False,
      example="""loop.sections() ({
^():
  loop.copy(%d, %s)
  scf.yield()
}, {
^():
  loop.copy(%e, %s)
  scf.yield()
})""")


def _contract(types, attrs, regions):
    need(len(types) == 3, "expected out, lhs, rhs")
    sizes: dict[str, int] = {}
    for i, (t, names) in enumerate(zip(types, (attrs["out"], attrs["lhs"], attrs["rhs"]))):
        need(buffer(t, i).rank == len(names) and len(set(names)) == len(names), f"index letters {names!r} do not fit {t}", i)
        for n, s in zip(names, t.shape):
            need(sizes.setdefault(n, s) == s, f"index {n} has sizes {sizes[n]} and {s}", i)
    need(set(attrs["out"]) <= set(attrs["lhs"]) | set(attrs["rhs"]), "an index of the result is in no operand")
    if regions:
        args, yields = [a.type for a in regions[0].args], [v.type for v in regions[0].ops[-1].operands]
        element = ScalarType(types[0].dtype)
        need(args == [element, *[I64] * len(attrs["out"])], f"the region takes the sum ({element}) and an i64 for each index of the result")
        need(yields in ([], [element]), f"the region yields what is stored ({element}) or nothing")
    for i in (1, 2):
        need(widens(types[i].dtype, accumulator(types[0].dtype)), f"{types[i].dtype} does not fit the sums of a result of {types[0].dtype}", i)
    return []


_loop("contract", "out[..] = (or += when accumulate) sum over the letters missing from `out` of lhs[..] * rhs[..], an einsum of two operands; adds in "
      "ascending order of the summed indices, fused multiply-add allowed. bf16/f16 accumulate in f32. Operands may be narrower than the result: they are "
      "widened first (i8 * i8 to i32, bf16 * bf16 to f32). out overlaps no operand. An optional region is run for every element of the result, as the body "
      "of a loop.parallel would be after the contraction: it takes the sum and the element's indices, may load and store other buffers, and yields what is "
      "stored in out (then out is neither loaded nor stored in it otherwise) or nothing: then out was needed for the sums alone, and what it holds afterwards is undefined.", "out lhs rhs", _contract,
      attrs={"out": "index letters", "lhs": "index letters", "rhs": "index letters", "accumulate": "bool"}, pure=False, optional_region=True,
      example='loop.contract(%c, %a, %b) {out = "mn", lhs = "mk", rhs = "kn", accumulate = false}')


def _copy(types, attrs, regions):
    need(len(types) == 2 and buffer(types[0]).dtype is buffer(types[1], 1).dtype and types[0].shape == types[1].shape, "expected two buffers of one shape")
    return []


_loop("copy", "destination = source, elementwise; they do not overlap.", "destination source", _copy, pure=False, example="loop.copy(%d, %s)")
_loop("call", "Runs another function of the module on buffers. Its arena starts at `frame` bytes in the caller's.", "*buffers", lambda t, a, r: [],
      attrs={"callee": "function name", "frame": "bytes, after plan-buffers"}, pure=False, example='loop.call(%x, %y) {callee = "f", frame = 4096}')


def _assert(types, attrs, regions):
    need(types == [ScalarType(bool_), I64], "expected bool, i64")
    return []


_loop("assert", "When the condition is false, a run-time error at this op's location with `message`, where {} stands for the i64 value; the first error "
      "of a launch wins, execution goes on (so indices must be clamped by the code around it).", "cond value", _assert, attrs={"message": "text"}, pure=False,
      example='loop.assert(%ok, %i) {message = "index {} is out of range 0..10"}')


def _sort(types, attrs, regions):
    v, i = buffer(types[0]), buffer(types[1], 1)
    need(v.rank == 1 and i.rank == 1 and v.shape == i.shape and i.dtype is i64, "expected values [n] and indices i64[n]")
    return []


_loop("sort", "Sorts the values in place, stably, NaN last (first when descending), moving the indices along.", "values indices", _sort, attrs={"descending": "bool"},
      pure=False, example="loop.sort(%v, %i) {descending = false}")
