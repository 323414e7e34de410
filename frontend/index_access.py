"""Subscripted tensors in index notation: affine subscripts, and reading what they select into the layout of axes (notation.py)."""
from __future__ import annotations

from ..compiler.diagnostics import Span
from ..compiler.ir import Dim, TensorType, Value, i64
from ..compiler.ir.dims import divide
from . import ast as A
from .elaborator import Elaborator
from .signature import source_text
from .tensors import constant, together
from .values import Scope, describe, type_text

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
                el.fail(s.span, f"`{source_text(s)}` runs from {lo} to {hi}, outside of dimension {d} of {type_text(t)}",
                        hint="shorten a range (`i in 0..n`), or add a guard: `i if 0 <= i + 1 < n`")
        elif guarded:
            forms[d] = clamped(b, f, n)
    uses = [set(f.terms) if isinstance(f, Affine) else axes_of(f) for f in forms]
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
        own = sorted(axes_of(index), reverse=True)
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


def axes_of(v: Value) -> set[int]:
    """Which axes (counted from the end) a value runs over."""
    s = v.type.shape
    return {len(s) - i for i, n in enumerate(s) if not (isinstance(n, int) and n == 1)}
