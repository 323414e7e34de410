"""Subscripts: reading and writing parts of tensors, lists and tuples.

Static parts become tensor.slice / reverse / reshape; a run-time start with a static length becomes dynamic_slice (out of range
is a run-time error, never clamped); an integer tensor gathers with tensor.take.
"""
from __future__ import annotations

from ..compiler.diagnostics import Span
from ..compiler.ir import Dim, TensorType, Value, i64
from ..compiler.ir.dims import product
from ..compiler.ir.opdef import TypeMismatch
from . import ast as A
from .elaborator import Elaborator, expression
from .notation import access, is_notation
from .values import UNIT, Cell, Opaque, Quotient, RangeValue, Scope, Tree, Undecidable, describe, type_text

INDEX = TensorType(i64)


class Part:
    """What a subscript does to one dim. kind: "all"; "one" (static index); "slice" (start, stop, step); "at" (run-time index);
    "window" (run-time start, static size); "take" (integer tensor)."""

    __slots__ = ("kind", "start", "stop", "step", "value", "span")

    def __init__(self, kind: str, span: Span, start=0, stop=None, step=1, value=None):
        self.kind, self.span, self.start, self.stop, self.step, self.value = kind, span, start, stop, step, value


@expression(A.Index)
def index(el: Elaborator, node: A.Index, scope: Scope) -> object:
    if is_notation(node, scope):
        el.fail(node.span, "index notation needs its expression in parentheses", hint=f"`{node.value.id}[i, j](..)`")
    base = el.value(node.value, scope)
    if isinstance(base, list | tuple):
        return list_item(el, node, base, scope)
    if isinstance(base, str):
        el.fail(node.span, "strings have no parts here")
    if not isinstance(base, Value):
        el.fail(node.value.span, f"{describe(base)} has no parts")
    if el.notation:
        return access(el, node, base, scope)
    return read_parts(el, node, base, scope)


def list_item(el: Elaborator, node: A.Index, base: list | tuple, scope: Scope) -> object:
    if len(node.subscripts) != 1:
        el.fail(node.span, f"{describe(base)} takes one subscript")
    s = node.subscripts[0]
    n = len(base)
    if isinstance(s, A.Slice):
        bounds = [None if x is None else _static_int(el, x, scope) for x in (s.start, s.stop, s.step)]
        if bounds[2] == 0:
            el.fail(s.span, "a slice's step cannot be zero")
        return base[bounds[0]:bounds[1]:bounds[2]]
    i = el.value(s, scope)
    if isinstance(i, Value):
        el.fail(s.span, f"{describe(base)} is indexed by a number known when compiling",
                hint="`stack(list)` makes a tensor, which takes run-time indices; `scan k in [k for k in 0..n]`, over a list, is unrolled: k is known in it")
    if isinstance(i, Opaque | Dim):
        raise Undecidable
    if isinstance(i, bool) or not isinstance(i, int):
        el.fail(s.span, f"an index is a whole number, got {describe(i)}")
    if not -n <= i < n:
        el.fail(s.span, f"index {i} is out of range for {describe(base)}")
    return base[i]


def _static_int(el: Elaborator, node: A.Expr, scope: Scope) -> int:
    v = el.value(node, scope)
    if isinstance(v, Dim | Opaque):
        raise Undecidable
    if isinstance(v, bool) or not isinstance(v, int):
        el.fail(node.span, f"a whole number known when compiling is needed here, got {describe(v)}")
    return v


# ---- understanding subscripts -----------------------------------------------------------------------------------------

def parts_of(el: Elaborator, node: A.Index, t: TensorType, scope: Scope) -> tuple[list[Part], list[tuple[int, str]]]:
    """The part for each dim of a tensor, and the result's new dims: (position among subscripts' results, "none")."""
    subs = node.subscripts
    used = 0
    values: list[object] = []
    for s in subs:
        if isinstance(s, A.IndexIn | A.Guarded):
            el.fail(s.span, "`in` and `if` belong in index notation", hint="`tensor[i in 0..n](...)`")
        if isinstance(s, A.Slice | A.Pack):
            values.append(None)
            used += isinstance(s, A.Slice)
            continue
        v = el.value(s, scope)
        values.append(v)
        used += v is not None
    packs = [s for s in subs if isinstance(s, A.Pack)]
    if len(packs) > 1:
        el.fail(packs[1].span, "one `..` a subscript")
    if used > t.rank:
        el.fail(node.span, f"too many subscripts: {type_text(t)} has {t.rank} dimension{'s' if t.rank != 1 else ''}, got {used}",
                hint="`none` adds a dimension")
    parts: list[Part] = []
    news: list[int] = []                                       # where a new dim of size 1 goes: after so many parts
    for s, v in zip(subs, values):
        d = len(parts)
        if isinstance(s, A.Pack):
            parts += [Part("all", s.span) for _ in range(t.rank - used)]
        elif isinstance(s, A.Slice):
            parts.append(slice_part(el, s, t, d, scope))
        elif v is None:
            news.append(d)
        else:
            parts.append(item_part(el, s, v, t, d))
    parts += [Part("all", node.span) for _ in range(t.rank - len(parts))]
    return parts, news


def item_part(el: Elaborator, s: A.Expr, v: object, t: TensorType, d: int) -> Part:
    n = t.shape[d]
    if isinstance(v, Quotient) and v.whole is not None:
        v = v.whole
    if isinstance(v, bool) or isinstance(v, float):
        el.fail(s.span, f"an index is a whole number, got {describe(v)}")
    if isinstance(v, int):
        if isinstance(n, int):
            if not -n <= v < n:
                el.fail(s.span, f"index {v} is out of range for dimension {d} of {type_text(t)}")
            v = v + n if v < 0 else v
        elif v < 0:
            v = n + v
        return Part("one", s.span, v)
    if isinstance(v, Dim):
        if not v + 1 <= n:
            el.fail(s.span, f"index {v} is out of range for dimension {d} of {type_text(t)}")
        return Part("one", s.span, v)
    if isinstance(v, Opaque):
        raise Undecidable
    if isinstance(v, Value):
        if v.type.dtype.is_bool:
            el.fail(s.span, "a tensor of bools cannot select: the result's size would not be known",
                    hint="`where(mask, x, 0)` keeps the shape")
        if not v.type.dtype.is_int:
            el.fail(s.span, f"an index is a whole number, got {type_text(v.type)}")
        if v.type.rank == 0:
            return Part("at", s.span, value=el.b(s.span).cast(v, i64))
        return Part("take", s.span, value=v)
    if isinstance(v, list | tuple) and v and all(isinstance(x, int) and not isinstance(x, bool) for x in v):
        from .builtins_make import tensor_from_list
        return Part("take", s.span, value=tensor_from_list(el.b(s.span), list(v), i64))
    if isinstance(v, RangeValue) and v.is_static:
        return Part("slice", s.span, v.start, v.stop, 1)
    el.fail(s.span, f"an index is a whole number, got {describe(v)}")


def slice_part(el: Elaborator, s: A.Slice, t: TensorType, d: int, scope: Scope) -> Part:
    n = t.shape[d]
    if s.start is None and s.stop is None and s.step is None:
        return Part("all", s.span)
    step = 1 if s.step is None else _static_int(el, s.step, scope)
    if step == 0:
        el.fail(s.step.span, "a slice's step cannot be zero")
    lo = None if s.start is None else linear(el, s.start, scope)
    hi = None if s.stop is None else linear(el, s.stop, scope)
    if (lo is None or not lo.values) and (hi is None or not hi.values):
        a = None if lo is None else lo.constant
        c = None if hi is None else hi.constant
        return static_slice(el, s, t, d, a, c, step)
    # run-time bounds: the difference has to be static
    lo = lo or Linear({}, 0)
    hi = hi or Linear({}, n)
    size = hi.minus(lo)
    if size.values:
        el.fail(s.span, "the length of this slice is known only when the program runs",
                hint="write the stop as `start + length` with a length known when compiling")
    size = size.constant
    if step != 1:
        el.fail(s.step.span, "a slice with a run-time start has step 1")
    if isinstance(size, int) and isinstance(n, int) and not 0 <= size <= n:
        el.fail(s.span, f"a slice of length {size} does not fit dimension {d} of {type_text(t)}")
    b = el.b(s.span)
    return Part("window", s.span, stop=size, value=lo.emit(el, b))


def static_slice(el: Elaborator, s: A.Slice, t: TensorType, d: int, a, c, step: int) -> Part:
    """Python's meaning of a:c:step, but a bound that is out of range is an error."""
    n = t.shape[d]

    def bound(v, default):
        if v is None:
            return default
        if isinstance(v, int) and isinstance(n, int):
            if not -n <= v <= n:
                el.fail(s.span, f"slice bound {v} is out of range for dimension {d} of {type_text(t)}")
            return v + n if v < 0 else v
        return n + v if isinstance(v, int) and v < 0 else v

    if step > 0:
        a, c = bound(a, 0), bound(c, n)
        if isinstance(a, int) and isinstance(c, int):
            c = max(a, c)
        return Part("slice", s.span, a, c, step)
    if not isinstance(n, int):
        if a is None and c is None and step == -1:
            return Part("slice", s.span, 0, n, -1)
        raise Undecidable
    picked = range(n)[a:c:step] if True else ()
    if not picked:
        return Part("slice", s.span, 0, 0, 1)
    return Part("slice", s.span, picked[-1], picked[0] + 1, step)


class Linear:
    """A run-time whole number as a sum: constant + coefficient * value ..."""

    __slots__ = ("values", "constant")

    def __init__(self, values: dict[Value, int], constant):
        self.values, self.constant = values, constant

    def plus(self, other: Linear, sign: int = 1) -> Linear:
        values = dict(self.values)
        for v, k in other.values.items():
            values[v] = values.get(v, 0) + sign * k
        return Linear({v: k for v, k in values.items() if k}, self.constant + other.constant if sign == 1 else self.constant - other.constant)

    def minus(self, other: Linear) -> Linear:
        return self.plus(other, -1)

    def emit(self, el: Elaborator, b) -> Value:
        from .tensors import constant
        out = None
        for v, k in self.values.items():
            v = b.cast(v, i64)
            if k != 1:
                v = b.mul(v, b.constant(k, INDEX))
            out = v if out is None else b.add(out, v)
        if out is None:
            return constant(b, self.constant, i64)
        return out if type(self.constant) is int and self.constant == 0 else b.add(out, constant(b, self.constant, i64))


def linear(el: Elaborator, node: A.Expr, scope: Scope) -> Linear:
    """A bound as a sum of run-time values, so that `pos : pos + T` shows its static length."""
    if isinstance(node, A.Binary) and node.op in ("+", "-"):
        return linear(el, node.left, scope).plus(linear(el, node.right, scope), 1 if node.op == "+" else -1)
    if isinstance(node, A.Binary) and node.op == "*":
        x, y = linear(el, node.left, scope), linear(el, node.right, scope)
        for p, q in ((x, y), (y, x)):
            if not p.values and isinstance(p.constant, int):
                return Linear({v: k * p.constant for v, k in q.values.items() if p.constant}, q.constant * p.constant)
        b = el.b(node.span)
        return Linear({b.mul(x.emit(el, b), y.emit(el, b)): 1}, 0)
    v = el.value(node, scope)
    if isinstance(v, Value):
        if v.type.rank or not v.type.dtype.is_int:
            el.fail(node.span, f"a slice bound is a whole number, got {type_text(v.type)}")
        return Linear({v: 1}, 0)
    if isinstance(v, Quotient) and v.whole is not None:
        v = v.whole
    if isinstance(v, Opaque):
        if v.size is None:
            raise Undecidable
        v = v.size
    if v is None:
        return Linear({}, 0)
    if isinstance(v, bool) or not isinstance(v, int | Dim):
        el.fail(node.span, f"a slice bound is a whole number, got {describe(v)}")
    return Linear({}, v)


# ---- reading ----------------------------------------------------------------------------------------------------------

def static_part(el: Elaborator, x: Value, d: int, i, span: Span) -> Value:
    """x[.., i, ..] along dim d with a static index; the dim goes."""
    b = el.b(span)
    shape = list(x.type.shape)
    start, limit = [0] * len(shape), list(shape)
    start[d], limit[d] = i, i + 1
    y = b.op("tensor.slice", [x], {"start": start, "limit": limit, "stride": [1] * len(shape)}).result
    return b.reshape(y, shape[:d] + shape[d + 1:])


def read_parts(el: Elaborator, node: A.Index, x: Value, scope: Scope) -> Value:
    t = x.type
    parts, news = parts_of(el, node, t, scope)
    b = el.b(node.span)
    try:
        x = static_cut(b, x, parts)
        x = run_time_cut(b, x, parts)
        takes = [d for d, p in enumerate(parts) if p.kind == "take"]
        if takes:
            return gather(el, node, b, x, parts, news, takes)
        shape: list = []
        for d in range(len(parts) + 1):
            shape += [1] * news.count(d)
            if d < len(parts) and parts[d].kind not in ("one", "at"):
                shape.append(x.type.shape[d])
        return b.reshape(x, shape)
    except TypeMismatch as e:
        el.fail(node.span, f"{type_text(t)}: {e}", hint=e.hint)


def static_cut(b, x: Value, parts: list[Part]) -> Value:
    shape = x.type.shape
    start, limit, stride = [0] * len(shape), list(shape), [1] * len(shape)
    flips = []
    cut = False
    for d, p in enumerate(parts):
        if p.kind == "one":
            start[d], limit[d] = p.start, p.start + 1
            cut = True
        elif p.kind == "slice":
            if p.step < 0:
                # elements picked from the top down: slice them upwards from the lowest, then reverse
                start[d], limit[d], stride[d] = p.start, p.stop, -p.step
                flips.append(d)
            else:
                start[d], limit[d], stride[d] = p.start, p.stop, p.step
            cut = cut or p.start != 0 or p.stop != shape[d] or abs(p.step) != 1
    if cut:
        x = b.op("tensor.slice", [x], {"start": start, "limit": limit, "stride": stride}).result
    return b.op("tensor.reverse", [x], {"dims": flips}).result if flips else x


def run_time_cut(b, x: Value, parts: list[Part]) -> Value:
    if not any(p.kind in ("at", "window") for p in parts):
        return x
    zero = b.constant(0, INDEX)
    starts = [p.value if p.kind in ("at", "window") else zero for p in parts]
    sizes = [1 if p.kind == "at" else p.stop if p.kind == "window" else n for p, n in zip(parts, x.type.shape)]
    return b.op("tensor.dynamic_slice", [x, *starts], {"sizes": sizes}).result


def gather(el: Elaborator, node: A.Index, b, x: Value, parts: list[Part], news: list[int], takes: list[int]) -> Value:
    """x[.., i, ..] with integer tensors: one, or several next to each other (which broadcast together, as in NumPy)."""
    shape = x.type.shape
    if len(takes) == 1:
        d = takes[0]
        index = parts[d].value
        y = b.op("tensor.take", [x, index], {"dim": d}).result
        wide = index.type.rank
    else:
        if takes != list(range(takes[0], takes[0] + len(takes))):
            el.fail(node.span, "index tensors have to stand next to each other", hint="`transpose` brings the dimensions together")
        from .tensors import broadcast_shapes
        d = takes[0]
        indices = [b.cast(parts[k].value, i64) for k in takes]
        common = broadcast_shapes(*[v.type.shape for v in indices])
        flat = None
        for k, v in zip(takes, indices):
            n = shape[k]
            v = b.broadcast(v, common)
            inside = b.ew("and", b.compare("ge", v, 0), b.compare("lt", v, n if isinstance(n, int) else 1))
            ok = b.reduce("min", inside, range(len(common))) if common else inside
            b.op("tensor.assert", [ok], {"message": f"an index is out of range for dimension {k} of size {n}"})
            flat = v if flat is None else b.add(b.mul(flat, n if isinstance(n, int) else 1), v)
        merged = product(shape[k] for k in takes) if all(isinstance(shape[k], int) for k in takes) else _times([shape[k] for k in takes])
        y = b.op("tensor.take", [b.reshape(x, (*shape[:d], merged, *shape[takes[-1] + 1:])), flat], {"dim": d}).result
        wide = len(common)
    out: list = []
    at = 0
    for k in range(len(parts) + 1):
        out += [1] * news.count(k)
        if k == len(parts):
            break
        kind = parts[k].kind
        if kind == "take":
            if k == takes[0]:
                out += y.type.shape[at:at + wide]
                at += wide
            continue
        if kind not in ("one", "at"):
            out.append(y.type.shape[at])
        at += 1
    return b.reshape(y, out)


def _times(dims: list):
    out = 1
    for n in dims:
        out = n * out if isinstance(n, Dim) else out * n
    return out


# ---- writing ----------------------------------------------------------------------------------------------------------

def write_slice(el: Elaborator, s: A.Assign, cell: Cell, scope: Scope) -> object:
    """`cell[parts] = value` (and `+=` ...): the cell's new value has the part replaced."""
    target = s.target
    x = el.read(cell, scope, target.value.span)
    parts, news = parts_of(el, target, x.type, scope)
    if news:
        el.fail(target.span, "`none` cannot stand in a place that is written")
    for p in parts:
        if p.kind == "take":
            el.fail(p.span, "writing at the positions of an index tensor is not supported", hint="`scatter_add` adds at many positions")
        if p.kind == "slice" and p.step != 1:
            el.fail(p.span, "a part that is written has step 1")
    sizes = [1 if p.kind in ("one", "at") else p.stop if p.kind == "window" else p.stop - p.start if p.kind == "slice" else n
             for p, n in zip(parts, x.type.shape)]
    kept = [n for p, n in zip(parts, sizes) if p.kind not in ("one", "at")]
    value = el.value(s.value, scope)
    if s.op != "=":
        from .operators import binary_op
        value = binary_op(el, s.op[:-1], read_parts(el, target, x, scope), value, s.op_span, (target, s.value), scope)
    from .statements import fit
    part = fit(el, value, TensorType(x.type.dtype, tuple(kept)), s.value.span, f"this part of `{cell.name}`", cell.span)
    b = el.b(s.span)
    if all(p.kind == "all" for p in parts):
        el.frame.write(cell, part)
        return UNIT
    from .tensors import constant
    starts = [p.value if p.kind in ("at", "window") else constant(b, p.start, i64) for p in parts]
    try:
        new = b.op("tensor.dynamic_update_slice", [x, b.reshape(part, sizes), *starts]).result
    except TypeMismatch as e:
        el.fail(s.span, str(e))
    el.frame.write(cell, new)
    return UNIT


__all__ = ["static_part", "read_parts", "write_slice", "index", "Tree"]
