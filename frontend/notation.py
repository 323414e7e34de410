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
from .tensors import as_tensor, constant, is_weak, together
from .values import MISSING, Builtin, Cell, Opaque, RangeValue, Scope, Undecidable, describe, type_text

HEADS = {"tensor", "sum", "max", "min", "prod", "mean", "any", "all"}
INDEX = TensorType(i64)


class IndexVar:
    """An index name: runs over start .. start + size.  `axis` counts from the end of the layout: 1 is the last axis.  `limit`: a
    run-time stop, beyond which terms are left out."""

    __slots__ = ("name", "start", "size", "axis", "limit", "span")

    def __init__(self, name: str, span: Span):
        self.name, self.span = name, span
        self.start: int | Dim = 0
        self.size: int | Dim | None = None
        self.axis = 0
        self.limit: Value | None = None

    def read(self, el: Elaborator, span: Span) -> Value:
        """The index as a tensor in the layout: i64[.., size, 1, ..]."""
        if self.size is None:
            el.fail(span, f"the range of index `{self.name}` is not known here", hint=f"write it: `{self.name} in 0..n`")
        b = el.b(span)
        shape = (self.size, *[1] * (self.axis - 1))
        x = b.iota(shape, 0, i64)
        return x if self.start == 0 else b.add(x, constant(b, self.start, i64, shape))


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
                el.fail(s.span, f"index `{v.name}` runs over {m} (dimension {k} of `{_text(first.value)}`), but dimension {d} of "
                        f"`{_text(a.node.value)}` is {n}", notes=[(first.span, f"`{v.name}` gets its range here")])
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


def _text(node: A.Expr) -> str:
    from .signature import source_text
    return source_text(node)


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


class Affine:
    """constant + sum of coefficient * index."""

    __slots__ = ("terms", "constant")

    def __init__(self, terms: dict[IndexVar, int | Dim], constant):
        self.terms, self.constant = terms, constant

    def plus(self, other: Affine, sign: int) -> Affine:
        terms = dict(self.terms)
        for v, k in other.terms.items():
            terms[v] = terms.get(v, 0) + (k if sign > 0 else -k)
        return Affine({v: k for v, k in terms.items() if not (isinstance(k, int) and k == 0)},
                      self.constant + other.constant if sign > 0 else self.constant - other.constant)

    def bounds(self) -> tuple:
        """Least and greatest value; needs sizes."""
        lo = hi = self.constant
        for v, k in self.terms.items():
            a, z = v.start, v.start + v.size - 1
            if k >= 0:
                lo, hi = lo + k * a, hi + k * z
            else:
                lo, hi = lo + k * z, hi + k * a
        return lo, hi


def affine(el: Elaborator, node: A.Expr, scope: Scope) -> Affine | None:
    """A subscript as a whole-number combination of indices, or None.  Emits nothing."""
    if isinstance(node, A.Int):
        return Affine({}, node.value)
    if isinstance(node, A.Name):
        v = scope.lookup(node.id)
        if isinstance(v, IndexVar):
            return Affine({v: 1}, 0)
        return Affine({}, v) if isinstance(v, int | Dim) and not isinstance(v, bool) else None
    if isinstance(node, A.Unary) and node.op == "-":
        x = affine(el, node.operand, scope)
        return None if x is None else Affine({}, 0).plus(x, -1)
    if isinstance(node, A.Binary) and node.op in ("+", "-", "*", "//", "/"):
        x, y = affine(el, node.left, scope), affine(el, node.right, scope)
        if x is None or y is None:
            return None
        if node.op in ("+", "-"):
            return x.plus(y, 1 if node.op == "+" else -1)
        if node.op == "*":
            if not x.terms:
                x, y = y, x
            if y.terms:
                return None
            k = y.constant
            return Affine({v: c * k if isinstance(c, Dim) else k * c for v, c in x.terms.items()}, x.constant * k)
        if not x.terms and not y.terms and not (isinstance(y.constant, int) and y.constant == 0):
            return Affine({}, divide(x.constant, y.constant))
    return None


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
            from .expressions import binary_op
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
        axes = _axes(k)
        hit = [i for i, v in enumerate(values) if axes <= _axes(v)] or [0]
        for i in hit:
            shape = _common(k, values[i])
            values[i] = b.select(b.broadcast(k, shape), b.broadcast(values[i], shape), constant(b, 0, values[i].type.dtype, shape))
    return values


def _axes(v: Value) -> set[int]:
    """Which axes (counted from the end) a value runs over."""
    s = v.type.shape
    return {len(s) - i for i, n in enumerate(s) if not (isinstance(n, int) and n == 1)}


def contract(b, values: list[Value], vars_: list[IndexVar], outer: int) -> Value:
    """The sum over the new axes of a product: pairwise contractions."""
    sizes = {v.axis: v.size for v in vars_}
    summed = set(sizes)
    parts = [(sorted(_axes(v), reverse=True), v) for v in values]
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


# ---- accesses ---------------------------------------------------------------------------------------------------------

def access(el: Elaborator, node: A.Index, x: Value, scope: Scope) -> Value:
    """`x[subscripts]` inside a body: its value in the layout."""
    t = x.type
    if len(node.subscripts) != t.rank or any(isinstance(s, A.Slice | A.Pack) for s in node.subscripts):
        el.fail(node.span, f"inside index notation every dimension of {type_text(t)} gets a subscript", hint=f"it has {t.rank}")
    guarded = any(level.guarded for level in el.notation) or el.guarded_branches > 0
    forms: list[object] = []                                   # per dim: Affine, or an index tensor in the layout
    for s in node.subscripts:
        a = affine(el, s, scope)
        if a is not None:
            forms.append(a)
            continue
        v = el.value(s, scope)
        if isinstance(v, Value) and v.type.dtype.is_int:
            forms.append(el.b(s.span).cast(v, i64))
        else:
            el.fail(s.span, f"an index is a whole number, got {describe(v)}")
    b = el.b(node.span)
    for d, (f, s) in enumerate(zip(forms, node.subscripts)):
        n = t.shape[d]
        if isinstance(f, Affine):
            lo, hi = f.bounds()
            outside = isinstance(lo, int) and lo < 0 or not hi + 1 <= n
            if outside and guarded:
                forms[d] = clamped(b, emit_affine(el, b, f, s.span), n)
            elif outside:
                el.fail(s.span, f"`{_text(s)}` runs from {lo} to {hi}, outside of dimension {d} of {type_text(t)}",
                        hint="shorten a range (`i in 0..n`), or add a guard: `i if 0 <= i + 1 < n`")
        elif guarded:
            forms[d] = clamped(b, f, n)
    uses = [set(f.terms) if isinstance(f, Affine) else _axes(f) for f in forms]
    flat_axes = [{v.axis for v in u} if isinstance(f, Affine) else u for f, u in zip(forms, uses)]
    total = sum(len(a) for a in flat_axes)
    if total != len(set().union(*flat_axes)) or not forms:
        return flat_gather(el, b, x, forms, node)
    return stepwise(el, b, x, forms, node)


def clamped(b, index: Value, n) -> Value:
    hi = constant(b, n - 1, i64, index.type.shape)
    return b.min(b.max(index, 0), hi)


def emit_affine(el: Elaborator, b, f: Affine, span: Span) -> Value:
    """An affine subscript as an index tensor in the layout."""
    out: Value | None = None
    for v, k in f.terms.items():
        x = v.read(el, span)
        if not (isinstance(k, int) and k == 1):
            x = b.mul(x, constant(b, k, i64, x.type.shape))
        out = x if out is None else b.add(*together(b, (out, x)))
    if out is None:
        return constant(b, f.constant, i64)
    return out if isinstance(f.constant, int) and f.constant == 0 else b.add(out, constant(b, f.constant, i64, out.type.shape))


def flat_gather(el: Elaborator, b, x: Value, forms: list, node: A.Index) -> Value:
    """An index that stands in several subscripts (`a[i, i]`, `x[i, y[i]]`): one position in the flattened tensor."""
    from .tensors import broadcast_shapes
    indices = [emit_affine(el, b, f, node.span) if isinstance(f, Affine) else f for f in forms]
    shape = broadcast_shapes(*[v.type.shape for v in indices])
    flat = None
    for d, (v, n) in enumerate(zip(indices, x.type.shape)):
        if not isinstance(forms[d], Affine):
            inside = b.ew("and", b.compare("ge", v, 0), b.compare("lt", v, constant(b, n, i64, v.type.shape)))
            ok = b.reduce("min", inside, range(v.type.rank)) if v.type.rank else inside
            b.op("tensor.assert", [ok], {"message": f"an index is out of range for dimension {d} of size {n}"})
        v = b.broadcast(v, shape)
        flat = v if flat is None else b.add(b.mul(flat, constant(b, n, i64, shape)), v)
    return b.op("tensor.take", [b.reshape(x, (x.type.numel,)), flat], {"dim": 0}).result


def stepwise(el: Elaborator, b, x: Value, forms: list, node: A.Index) -> Value:
    """Each dim by itself: a slice for one index, windows for two, a gather for the rest.  Axes follow the dims."""
    axes: list[list[int]] = []                                 # per original dim: the axes it became
    d = 0                                                      # where the dim is by now
    windows: list[tuple[int, IndexVar, IndexVar, Affine]] = []
    for f, s in zip(forms, node.subscripts):
        if isinstance(f, Affine) and not f.terms:
            x = _cut(b, x, d, f.constant, 1, 1)
            x = b.reshape(x, (*x.type.shape[:d], *x.type.shape[d + 1:]))
            axes.append([])
            continue
        if isinstance(f, Affine) and len(f.terms) == 1:
            (v, k), = f.terms.items()
            if isinstance(k, int) and k > 0:
                x = _cut(b, x, d, f.constant + k * v.start, v.size, k)
                axes.append([v.axis])
                d += 1
                continue
        if isinstance(f, Affine) and len(f.terms) == 2 and all(isinstance(k, int) and k > 0 for k in f.terms.values()):
            u, w = sorted(f.terms, key=lambda v: v.axis)       # the inner index is the window's
            windows.append((d, u, w, f))
            axes.append([u.axis, w.axis])
            d += 1
            continue
        index = emit_affine(el, b, f, s.span) if isinstance(f, Affine) else f
        own = sorted(_axes(index), reverse=True)
        compact = b.reshape(index, [index.type.shape[index.type.rank - a] for a in own])
        x = b.op("tensor.take", [x, compact], {"dim": d}).result
        axes.append(own)
        d += len(own)
    order = [a for own in axes for a in own]
    if windows:
        at = [w[0] for w in windows]
        keep = [i for i in range(x.type.rank) if i not in at]
        for dim, _, _, f in windows:
            lo, hi = f.bounds()
            x = _cut(b, x, dim, lo, hi - lo + 1, 1)
        x = b.transpose(x, keep + at)
        x = b.op("tensor.windows", [x], {"size": [w.size for _, _, w, _ in windows], "stride": [f.terms[u] for _, u, _, f in windows],
                                         "dilation": [f.terms[w] for _, _, w, f in windows]}).result
        taken = {a for _, u, w, _ in windows for a in (u.axis, w.axis)}
        order = [a for a in order if a not in taken] + [u.axis for _, u, _, _ in windows] + [w.axis for _, _, w, _ in windows]
    wanted = sorted(order, reverse=True)
    x = b.transpose(x, [order.index(a) for a in wanted])
    shape, it = [], iter(x.type.shape)
    for a in range(max(wanted, default=0), 0, -1):
        shape.append(next(it) if a in wanted else 1)
    return b.reshape(x, shape)


def _cut(b, x: Value, d: int, start, count, step: int) -> Value:
    n = x.type.shape[d]
    if isinstance(start, int) and start == 0 and step == 1 and count == n:
        return x
    lo, hi, st = [0] * x.type.rank, list(x.type.shape), [1] * x.type.rank
    lo[d], hi[d], st[d] = start, start + (count - 1) * step + 1, step
    return b.op("tensor.slice", [x], {"start": lo, "limit": hi, "stride": st}).result


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
    from .calls import BuiltinContext
    return where(BuiltinContext(el, node.span, {}, "if"), c, x, y)


__all__ = ["is_notation", "notation", "access", "choose", "IndexVar", "MISSING", "math"]
