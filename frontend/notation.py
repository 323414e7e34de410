"""Index notation: `tensor[i, j](sum[r](a[i, r] * b[r, j]))`.

Every index name is an axis.  Inside a body all values are ordinary tensors in one layout: the axes of the innermost brackets come
first, those of the outermost last, and an axis that a value does not depend on has size 1.  So NumPy's broadcasting does the rest:
`i` itself is an iota along its axis, and every elementwise operation works as it stands.  A `sum` of products becomes
contractions (dot_general); accesses become slices, windows or gathers.  A guarded access is clamped, because what it reads is masked.
"""
from __future__ import annotations

import math

from ..compiler.diagnostics import Span
from ..compiler.ir import Dim, TensorType, Value, bool_, i64
from ..compiler.ir.dims import divide, maybe_equal, product
from ..compiler.ir.opdef import TypeMismatch
from . import ast as A
from .elaborator import Elaborator
from .index_access import Affine, IndexVar, access, affine, axes_of
from .signature import source_text
from .tensors import as_tensor, constant, is_weak
from .values import MISSING, Builtin, Cell, Opaque, RangeValue, Scope, Undecidable, describe, type_text

HEADS = {"tensor", "sum", "max", "min", "prod", "mean", "any", "all"}
INDEX = TensorType(i64)


class Level:
    """One pair of brackets."""

    __slots__ = ("vars", "guarded")

    def __init__(self, vars_: list[IndexVar], guarded: bool):
        self.vars, self.guarded = vars_, guarded


def is_notation(node: A.Expr, scope: Scope) -> bool:
    """Whether `name[..]` opens index notation: the name is a reduction or `tensor`, not a value of the program."""
    if not isinstance(node, A.Index) or not isinstance(node.value, A.Name) or node.value.id not in HEADS:
        return False
    return isinstance(scope.lookup(node.value.id), Builtin)


def notation(el: Elaborator, node: A.Call, scope: Scope) -> Value:
    """The value of `head[indices](body)`."""
    head = node.func.value.id
    if len(node.args) != 1 or node.args[0].name is not None:
        el.fail(node.span, f"`{head}[..]` takes one expression in parentheses")
    body = node.args[0].value
    levels = el.notation
    if head == "tensor" and levels:
        el.fail(node.span, "`tensor[..]` cannot stand inside index notation", hint="bind it with `let` before")
    outer = sum(len(level.vars) for level in levels)
    inner = Scope(scope)
    vars_, guards, ranges = declare(el, node.func, inner, scope)
    for i, v in enumerate(vars_):
        v.axis = outer + len(vars_) - i
    shape = el.result_hint[1] if el.result_hint is not None and el.result_hint[0] is node else None
    infer_ranges(el, vars_, ranges, body, inner, bool(guards), shape if shape is not None and len(shape) == len(vars_) else None)
    level = Level(vars_, bool(guards) or any(v.limit is not None for v in vars_))
    levels.append(level)
    try:
        masks = masks_of(el, vars_, guards, inner, node.span)
        if head == "tensor":
            if masks:
                el.fail(node.func.span, "the sizes of a result are known when compiling: no guards, no run-time ranges",
                        hint="`if condition { .. } else { 0 }` in the body leaves elements out")
            return whole(el, el.value(body, inner), vars_, node.span)
        return reduction(el, head, body, inner, vars_, masks, node.span)
    except TypeMismatch as e:
        el.fail(node.span, f"{head}[..]: {e}", hint=e.hint)
    finally:
        levels.pop()


def declare(el: Elaborator, node: A.Index, inner: Scope, scope: Scope):
    """The index names in the brackets, their guards, their written ranges."""
    vars_: list[IndexVar] = []
    guards: list[A.Expr] = []
    ranges: dict[str, A.Expr] = {}
    for s in node.subscripts:
        if isinstance(s, A.Guarded):
            guards.append(s.cond)
            s = s.index
        if isinstance(s, A.IndexIn):
            name, span = s.name, s.name_span
            ranges[name] = s.iterable
        elif isinstance(s, A.Name):
            name, span = s.id, s.span
        else:
            el.fail(s.span, "an index name is expected here", hint=f"`{node.value.id}[i, j in 0..n](..)`")
        if name in inner.names:
            el.fail(span, f"index `{name}` is named twice")
        v = IndexVar(name, span)
        vars_.append(v)
        inner.bind(name, v, span)
    return vars_, guards, ranges


# ---- ranges -----------------------------------------------------------------------------------------------------------

class Access:
    """A subscripted tensor in a body, with the scope its subscripts are read in."""

    __slots__ = ("node", "type", "scope")

    def __init__(self, node: A.Index, type: TensorType, scope: Scope):
        self.node, self.type, self.scope = node, type, scope


def infer_ranges(el: Elaborator, vars_: list[IndexVar], ranges: dict[str, A.Expr], body: A.Expr, scope: Scope,
                 guarded: bool, shape: tuple | None) -> None:
    """The range of each index: as written, else the size of a dim it is the subscript of, else what keeps the accesses inside, else
    the size of the declared result (`shape`).  Indices of brackets further in count, because accesses mix them: `x[t + r]`."""
    for v in vars_:
        if v.name in ranges:
            written_range(el, v, ranges[v.name], scope)
    everything = list(vars_)
    accesses: list[Access] = []
    find_accesses(el, body, scope, accesses, everything)
    sized: dict[IndexVar, tuple] = {}
    for a in accesses:
        for d, (s, n) in enumerate(zip(a.node.subscripts, a.type.shape)):
            v = a.scope.lookup(s.id) if isinstance(s, A.Name) else None
            if not isinstance(v, IndexVar) or v not in everything:
                continue
            if v.size is None:
                v.size = n
                sized[v] = (n, a.node, d)
            elif v in sized and not maybe_equal(sized[v][0], n):
                m, first, k = sized[v]
                el.fail(s.span, f"index `{v.name}` runs over {m} (dimension {k} of `{source_text(first.value)}`), but dimension {d} of "
                        f"`{source_text(a.node.value)}` is {n}", notes=[(first.span, f"`{v.name}` gets its range here")])
    for _ in everything:
        for a in accesses:
            for s, n in zip(a.node.subscripts, a.type.shape):
                solve_range(el, s, n, everything, a.scope, guarded)
    for i, v in enumerate(vars_):
        if v.size is None and shape is not None:
            v.size = shape[i]
        if v.size is None:
            if el.generic and any(isinstance(k, Dim) for a in accesses for s in a.node.subscripts
                                  for k in (affine(el, s, a.scope) or Affine({}, 0)).terms.values()):
                raise Undecidable                              # a factor of unknown size: known at specialisation
            el.fail(v.span, f"the range of index `{v.name}` cannot be worked out", hint=f"write it: `{v.name} in 0..n`")
        if isinstance(v.size, int) and v.size < 0:
            v.size = 0


def find_accesses(el: Elaborator, node: A.Node, scope: Scope, out: list[Access], vars_: list[IndexVar]) -> None:
    """The accesses of a body whose base is a value known outside of it; indices of brackets inside are added to `vars_`."""
    if isinstance(node, A.Call) and is_notation(node.func, scope):
        inner = Scope(scope)
        new, guards, ranges = declare(el, node.func, inner, scope)
        for v in new:
            r = ranges.get(v.name)
            if r is not None and all(not isinstance(scope.lookup(n.id), IndexVar) for n in A.walk(r) if isinstance(n, A.Name)):
                written_range(el, v, r, inner)
        vars_ += new
        for x in [*guards, *node.args]:
            find_accesses(el, x, inner, out, vars_)
        return
    if isinstance(node, A.Index):
        base = node.value
        if isinstance(base, A.Name):
            v = scope.lookup(base.id)
            if isinstance(v, Value):
                out.append(Access(node, v.type, scope))
            elif isinstance(v, Cell):
                out.append(Access(node, el.read(v, scope, base.span).type, scope))
        elif isinstance(base, A.Attr) and all(isinstance(n, A.Attr | A.Name) for n in A.walk(base)):
            v = el.value(base, scope)
            if isinstance(v, Value):
                out.append(Access(node, v.type, scope))
    for child in A.children(node):
        find_accesses(el, child, scope, out, vars_)


def written_range(el: Elaborator, v: IndexVar, node: A.Expr, scope: Scope) -> None:
    r = el.value(node, scope.parent)
    if not isinstance(r, RangeValue):
        el.fail(node.span, f"the range of an index is `a..b`, got {describe(r)}")
    if isinstance(r.start, Value):
        el.fail(node.span, "a range starts at a number known when compiling", hint=f"`{v.name} in 0..b if {v.name} >= a`")
    v.start = r.start
    if isinstance(r.stop, Value):
        v.limit = r.stop                                       # the size comes from what the index reads
        if r.start != 0:
            el.fail(node.span, "a range with a run-time stop starts at 0")
    else:
        v.size = r.stop - r.start


def solve_range(el: Elaborator, s: A.Expr, n, vars_: list[IndexVar], scope: Scope, guarded: bool) -> None:
    """An access with one index of unknown range, such as `t + dil * r`, keeps inside: 0 .. (n - 1 - greatest of the rest) / k."""
    if isinstance(s, A.Slice | A.Pack):
        return
    a = affine(el, s, scope)
    if a is None:
        return
    free = [v for v in a.terms if v.size is None]
    if len(free) != 1 or free[0] not in vars_:
        return
    v = free[0]
    k = a.terms[v]
    if not isinstance(k, int) or k < 1:
        return
    rest = Affine({u: c for u, c in a.terms.items() if u is not v}, a.constant)
    lo, hi = rest.bounds()
    if isinstance(lo, int) and lo < 0 or guarded:
        return                                                 # where it would start is not clear: the range has to be written
    v.size = n - hi if k == 1 else divide(n - 1 - hi, k) + 1


# ---- bodies -----------------------------------------------------------------------------------------------------------

def masks_of(el: Elaborator, vars_: list[IndexVar], guards: list[A.Expr], scope: Scope, span: Span) -> list[Value]:
    """bool tensors in the layout: which terms count."""
    out = []
    for v in vars_:
        if v.limit is not None:
            b = el.b(span)
            shape = (v.size, *[1] * (v.axis - 1))
            fits = b.compare("le", v.limit, constant(b, v.size, i64))
            b.op("tensor.assert", [fits], {"message": f"the range of index `{v.name}` is longer than what it reads"})
            out.append(b.compare("lt", v.read(el, span), b.broadcast(v.limit, shape)))
    for g in guards:
        c = el.value(g, scope)
        if c is True:
            continue
        if c is False:
            c = el.b(g.span).constant(False, TensorType(bool_))
        if isinstance(c, Opaque):
            raise Undecidable
        if not isinstance(c, Value) or not c.type.dtype.is_bool:
            el.fail(g.span, f"a guard is a condition, got {describe(c)}")
        out.append(c)
    return out


def whole(el: Elaborator, v: object, vars_: list[IndexVar], span: Span) -> Value:
    """A body's value spread over all axes of `tensor[..]`."""
    b = el.b(span)
    shape = tuple(x.size for x in vars_)
    if is_weak(v):
        return constant(b, v, as_tensor(b, v).type.dtype, shape)
    if not isinstance(v, Value):
        el.fail(span, f"the body gives {describe(v)}, expected a number for each element")
    if v.type.rank > len(shape):
        el.fail(span, f"the body gives {type_text(v.type)}, expected a number for each element", hint="subscript tensors: `x[i]`")
    return b.broadcast(v, shape)


def reduction(el: Elaborator, head: str, body: A.Expr, scope: Scope, vars_: list[IndexVar], masks: list[Value], span: Span) -> Value:
    outer = sum(len(level.vars) for level in el.notation[:-1])
    m = len(vars_)
    if head == "sum":
        factors = [el.value(f, scope) for f in product_factors(body)]
        b = el.b(span)
        if all(isinstance(f, Value) or is_weak(f) for f in factors):
            values = together_dtype(b, [f for f in factors if isinstance(f, Value)])
            weak = [f for f in factors if not isinstance(f, Value)]
            if values and len(values) >= 2 and not values[0].type.dtype.is_bool:
                y = contract(b, mask_factors(b, values, masks), vars_, outer)
                for w in weak:
                    from .tensors import binary
                    y = binary(b, "mul", y, w)
                return y
        x: object = factors[0]
        for f, node in zip(factors[1:], product_factors(body)[1:]):
            from .operators import binary_op
            x = binary_op(el, "*", x, f, span, (body, node), scope)
    else:
        x = el.value(body, scope)
    b = el.b(span)
    x = as_tensor(b, x)
    if x.type.rank > outer + m:
        el.fail(body.span, f"the body gives {type_text(x.type)}, expected a number for each index", hint="subscript tensors: `x[i]`")
    if head in ("any", "all"):
        if not x.type.dtype.is_bool:
            el.fail(body.span, f"`{head}` needs conditions, got {describe(x)}")
    elif x.type.dtype.is_bool:
        x = b.cast(x, i64)
    if head == "mean" and not x.type.dtype.is_float:
        from ..compiler.ir import f32
        x = b.cast(x, f32)
    shape = (*[v.size for v in vars_], *_layout(x, outer))
    x = b.broadcast(x, shape)
    t = x.type
    identity = {"sum": 0, "mean": 0, "prod": 1, "max": t.dtype.min, "min": t.dtype.max, "any": False, "all": True}[head]
    for k in masks:
        x = b.select(b.broadcast(k, _common(k, x)), b.broadcast(x, _common(k, x)), constant(b, identity, t.dtype, _common(k, x)))
    dims = range(m)
    kind = {"sum": "sum", "mean": "sum", "prod": "prod", "max": "max", "min": "min", "any": "max", "all": "min"}[head]
    y = b.reduce(kind, x, dims)
    if head == "mean":
        if masks:
            el.fail(span, "`mean` with a guard: divide a `sum` by the count")
        n = product([v.size for v in vars_])
        y = b.div(y, float(n) if isinstance(n, int) else 1.0)
    return y


def _layout(x: Value, outer: int) -> tuple:
    """The sizes of the outer axes of a value."""
    s = x.type.shape
    return (*[1] * (outer - len(s)), *s[max(len(s) - outer, 0):])


def _common(k: Value, x: Value) -> tuple:
    from .tensors import broadcast_shapes
    return broadcast_shapes(k.type.shape, x.type.shape)


def product_factors(node: A.Expr) -> list[A.Expr]:
    """a * b * c as its factors."""
    out: list[A.Expr] = []
    while isinstance(node, A.Binary) and node.op == "*" and not isinstance(node.left, A.List):
        out.append(node.right)
        node = node.left
    return [node, *reversed(out)]


def together_dtype(b, values: list[Value]) -> list[Value]:
    from .tensors import common_dtype
    if not values:
        return []
    dtype = common_dtype(values)
    return [b.cast(v, dtype) for v in values]


def mask_factors(b, values: list[Value], masks: list[Value]) -> list[Value]:
    """Zeros where terms do not count: in every factor that runs over all of a mask's axes, in the first one if there is none."""
    for k in masks:
        axes = axes_of(k)
        hit = [i for i, v in enumerate(values) if axes <= axes_of(v)] or [0]
        for i in hit:
            shape = _common(k, values[i])
            values[i] = b.select(b.broadcast(k, shape), b.broadcast(values[i], shape), constant(b, 0, values[i].type.dtype, shape))
    return values


def contract(b, values: list[Value], vars_: list[IndexVar], outer: int) -> Value:
    """The sum over the new axes of a product: pairwise contractions."""
    sizes = {v.axis: v.size for v in vars_}
    summed = set(sizes)
    parts = [(sorted(axes_of(v), reverse=True), v) for v in values]
    parts = [(axes, b.reshape(v, [v.type.shape[len(v.type.shape) - a] for a in axes])) for axes, v in parts]
    axes, x = parts[0]
    for i, (other, y) in enumerate(parts[1:], 1):
        later = set(range(1, outer + 1)).union(*(set(p[0]) for p in parts[i + 1:])) - (summed - set().union(*(set(p[0]) for p in parts[i + 1:])))
        axes, x = _pair(b, axes, x, other, y, later)
    left = [k for k, a in enumerate(axes) if a in summed]
    if left:
        x = b.sum(x, left)
        axes = [a for a in axes if a not in summed]
    missing = [n for a, n in sizes.items() if not any(a in p[0] for p in parts) and not (isinstance(n, int) and n == 1)]
    if missing:                                                # an axis that no factor runs over: the same term many times
        n = product(missing)
        x = b.mul(x, constant(b, n, x.type.dtype, x.type.shape))
    order = sorted(axes, reverse=True)
    x = b.transpose(x, [axes.index(a) for a in order])
    rank = max(order, default=0)
    shape, it = [], iter(x.type.shape)
    for a in range(rank, 0, -1):
        shape.append(next(it) if a in order else 1)
    return b.reshape(x, shape)


def _pair(b, t: list[int], x: Value, u: list[int], y: Value, later: set[int]) -> tuple[list[int], Value]:
    alone = [i for i, a in enumerate(t) if a not in u and a not in later]
    if alone:
        x, t = b.sum(x, alone), [a for i, a in enumerate(t) if i not in alone]
    alone = [i for i, a in enumerate(u) if a not in t and a not in later]
    if alone:
        y, u = b.sum(y, alone), [a for i, a in enumerate(u) if i not in alone]
    both = [a for a in t if a in u]
    batch, inner = [a for a in both if a in later], [a for a in both if a not in later]
    out = b.op("tensor.dot_general", [x, y], {"lhs_batch": [t.index(a) for a in batch], "rhs_batch": [u.index(a) for a in batch],
                                              "lhs_contract": [t.index(a) for a in inner], "rhs_contract": [u.index(a) for a in inner]}).result
    return batch + [a for a in t if a not in both] + [a for a in u if a not in both], out


def choose(el: Elaborator, node: A.If, c: Value, scope: Scope) -> Value:
    """`if` on a condition for each element: both sides are computed, accesses that leave a tensor are clamped."""
    if node.orelse is None:
        el.fail(node.span, "an `if` in index notation needs `else`")
    el.guarded_branches += 1
    try:
        x, y = el.value(node.then, scope), el.value(node.orelse, scope)
    finally:
        el.guarded_branches -= 1
    for v in (x, y):
        if not isinstance(v, Value) and not is_weak(v):
            el.fail(node.span, f"the branches give {describe(x)} and {describe(y)}, expected numbers")
    from .builtins_math import where
    from .operations import BuiltinContext
    return where(BuiltinContext(el, node.span, {}, "if"), c, x, y)


__all__ = ["is_notation", "notation", "access", "choose", "IndexVar", "MISSING", "math"]
