"""vmap: a function for every index along a dim of its arguments.

The mapped function becomes an IR function of its own; run-time values that it captures become further arguments that are the
same for every index.  The pass `grad` expands autodiff.vmap.
"""
from __future__ import annotations

from ..compiler.diagnostics import Span
from ..compiler.ir import Value, free_values
from ..compiler.ir.opdef import TypeMismatch
from .calls import call, make_func
from .elaborator import Elaborator
from .frame import Frame
from .operations import count_text
from .tensors import as_tensor, is_weak
from .trees import flatten, unflatten
from .values import CallArgs, LayerInstance, Transform, Tree, describe, type_text


class Vmap(Transform):
    __slots__ = ("f", "in_dims", "out_dims")

    def __init__(self, f: object, in_dims: object, out_dims: object):
        self.f, self.in_dims, self.out_dims = f, in_dims, out_dims

    def captured(self) -> tuple:
        return (self.f,)

    def call(self, el: Elaborator, args: CallArgs, span: Span) -> object:
        if args.kw:
            el.fail(span, "a mapped function takes its arguments by position")
        dims = self.in_dims
        if isinstance(dims, list | tuple):
            if len(dims) != len(args.pos):
                el.fail(span, f"`in_dims` has {len(dims)} entr{'y' if len(dims) == 1 else 'ies'} for {count_text(len(args.pos), 'argument')}")
        else:
            dims = [dims] * len(args.pos)
        leaves: list[Value] = []
        leaf_dims: list[int] = []
        specs: list[tuple | None] = []
        size = None
        for d, v, at in zip(dims, args.pos, args.spans):
            if isinstance(v, LayerInstance) and d is None:
                specs.append(None)                             # a layer that is not mapped is used as it is
                continue
            if isinstance(v, LayerInstance):
                v = Tree(v, {s: el.read(s, None, at) for _, s in v.params})
            if is_weak(v):
                if d is not None:
                    el.fail(at, f"cannot map over {describe(v)}", hint="`in_dims` none: the same for every index")
                specs.append(("s", v))
                continue
            if d is not None and (isinstance(d, bool) or not isinstance(d, int)):
                el.fail(span, f"`in_dims` are whole numbers or none, got {describe(d)}")
            spec, own = flatten(v)
            specs.append(spec)
            for x in own:
                k = -1
                if d is not None:
                    if not -x.type.rank <= d < x.type.rank:
                        el.fail(at, f"cannot map over dimension {d} of {type_text(x.type)}")
                    k = d % x.type.rank
                    if size is None:
                        size = x.type.shape[k]
                    elif size != x.type.shape[k]:
                        el.fail(at, f"the mapped dimensions differ: {size} and {x.type.shape[k]}")
                leaves.append(x)
                leaf_dims.append(k)
        if size is None:
            el.fail(span, "`vmap` needs an argument to map over")
        outer = el.frame
        frame = Frame("vmap", training=outer.training, plain=True, roots=outer.roots)
        frame.expected = None
        inner = [Value(x.type.with_shape(n for i, n in enumerate(x.type.shape) if i != k) if k >= 0 else x.type, frame.block, x.name)
                 for x, k in zip(leaves, leaf_dims)]
        it = iter(inner)
        values = [v if s is None else unflatten(s, it) for s, v in zip(specs, args.pos)]
        cells = {**outer.arg_cells, **outer.cells}
        frame.cells = dict(cells)
        with el.in_frame(frame):
            out = call(el, self.f, CallArgs.of(values, span), span)
            if is_weak(out):
                out = as_tensor(el.b(span), out)
        written = [c for c, v in frame.cells.items() if cells.get(c) is not v]
        if written:
            el.fail(span, f"a mapped function cannot write state (`{written[0].name}`)")
        if frame.key_is_argument:
            el.fail(span, "a mapped function that draws random numbers needs a key for each index",
                    hint="`vmap(fn (x, k) { .. })(x, split(key, n))`")
        spec, results = flatten(out)
        if not results:
            el.fail(span, f"the mapped function gives {describe(out)}, expected tensors")
        # what the body takes from outside becomes an argument that is the same for every index
        own = {*inner, *(r for op in frame.block.ops for r in op.results)}
        free = [v for v in dict.fromkeys([*free_values(frame.block), *results]) if v not in own]
        shared = {v: Value(v.type, frame.block, v.name) for v in free}
        entry_cells = {v: c for c, v in frame.arg_cells.items()}
        operands = []
        for v in free:
            c = entry_cells.get(v)
            if c is None:
                operands.append(v)
            else:                                              # a cell first read inside: the outer function reads it too
                outer_value = outer.value_of(c)
                operands.append(outer_value if outer_value is not None else outer.take_argument(c, v.type, c.name))
        for op in frame.block.walk():
            op.operands = [shared.get(v, v) for v in op.operands]
        results = [shared.get(v, v) for v in results]
        out_dim = self.out_dims
        if isinstance(out_dim, bool) or not isinstance(out_dim, int):
            el.fail(span, f"`out_dims` is a whole number, got {describe(out_dim)}")
        func = make_func(el, frame, "vmap", [*inner, *shared.values()], results, span)
        types, out_dims = [], []
        for r in results:
            if not -r.type.rank - 1 <= out_dim <= r.type.rank:
                el.fail(span, f"`out_dims` is {out_dim}, but with the mapped one the result has {count_text(r.type.rank + 1, 'dimension')}")
            k = out_dim % (r.type.rank + 1)
            types.append(r.type.with_shape((*r.type.shape[:k], size, *r.type.shape[k:])))
            out_dims.append(k)
        try:
            op = el.b(span).op("autodiff.vmap", [*leaves, *operands], {
                "callee": func.name, "in_dims": leaf_dims + [-1] * len(operands), "out_dims": out_dims, "size": size, "result_types": types})
        except TypeMismatch as e:
            el.fail(span, str(e))
        return unflatten(spec, op.results)

