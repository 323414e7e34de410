"""Matching values against written types: binds named dims left to right, solves linear sizes, checks results.

One `Signature` is one use of a signature: a call of a function, an annotated `let`.  Its `dims`, `packs` and `dtypes` are what
names stand for in this use; each remembers where it came from, for messages.
"""
from __future__ import annotations

from ..compiler.diagnostics import Source, Span, did_you_mean
from ..compiler.ir import DTYPES, Dim, DType, TensorType, Value, f32, i64, u64
from ..compiler.ir.dims import divide, divide_exact, maybe_equal, product
from ..compiler.ir.opdef import TypeMismatch
from . import ast as A
from .tensors import cast, constant, is_weak, weak_dtype
from .values import (
    MISSING,
    LayerClass,
    LayerInstance,
    Namespace,
    Opaque,
    QuantType,
    Quotient,
    Scope,
    Tree,
    Undecidable,
    describe,
    is_callable,
    type_text,
)

GENERIC = {"float": lambda d: d.is_float, "int": lambda d: d.is_int, "num": lambda d: d.is_int or d.is_float}
KEY = TensorType(u64)


class Unknown(Exception):
    """A size names a dim that is not bound (yet)."""

    def __init__(self, name: str):
        self.name = name


class Signature:
    """`scope`: where names in types are looked up after the signature's own dims."""

    def __init__(self, el, scope: Scope):
        self.el, self.scope = el, scope
        self.owner: LayerInstance | None = None              # the layer whose method's signature this is, for messages
        self.dims: dict[str, int | Dim] = {}
        self.packs: dict[str | None, tuple] = {}
        self.dtypes: dict[str, DType] = {}
        self.origins: dict[str, tuple[str, Span]] = {}       # dim -> (what bound it, where)
        self.later: list[tuple] = []                         # sizes with two unknowns: tried again at the end

    # ---- sizes ----
    def dim_value(self, name: str) -> int | Dim | None:
        """What a name stands for as a size, or None when it is free."""
        n = self.dims.get(name)
        if n is not None:
            return n
        v = self.scope.lookup(name)
        if v is MISSING:
            return None
        return as_size(v)

    def size(self, node: A.Expr) -> int | Dim:
        """A size expression whose names are all known; Unknown names the first that is not."""
        t = type(node)
        if t is A.Name:
            n = self.dim_value(node.id)
            if n is None:
                raise Unknown(node.id)
            return n
        if t is A.Int:
            return node.value
        if t is A.Binary and node.op in ("+", "-", "*", "/", "//"):
            return self.arith(node, self.size(node.left), self.size(node.right))
        if t is A.Unary and node.op == "-":
            n = self.size(node.operand)
            if type(n) is int and n > 0:
                self.el.fail(node.span, f"a size cannot be negative: {-n}")
            return -n
        names = [n.id for n in A.walk(node) if isinstance(n, A.Name)]
        inner = Scope(self.scope, dict(self.dims))
        for name in names:
            if inner.lookup(name) is MISSING:
                raise Unknown(name)
        v = self.el.value(node, inner)
        n = as_size(v)
        if n is None:
            self.el.fail(node.span, f"a size is a whole number, got {describe(v)}")
        return n

    def arith(self, node: A.Binary, a, b):
        if node.op == "+": return a + b
        if node.op == "-": return a - b
        if node.op == "*": return a * b
        if isinstance(b, int) and b == 0:
            self.el.fail(node.span, "division by zero in a size")
        if node.op == "//":
            return divide(a, b)
        q = divide_exact(a, b)
        if q is None:
            if isinstance(a, int) and isinstance(b, int):
                self.el.fail(node.op_span, f"{a} / {b} is no whole number, so it cannot be a size",
                             hint="`//` rounds down")
            return divide(a, b)
        return q

    def polynomial(self, node: A.Expr):
        """A size as a polynomial in which unknown names are symbols `?name`."""
        t = type(node)
        if t is A.Name:
            n = self.dim_value(node.id)
            return Dim.symbol("?" + node.id) if n is None else n
        if t is A.Binary and node.op in ("+", "-", "*", "/"):
            a, b = self.polynomial(node.left), self.polynomial(node.right)
            if node.op == "/" and divide_exact(a, b) is None and any(_unknowns(x) for x in (a, b)):
                raise Unknown(next(u for x in (a, b) for u in _unknowns(x))[1:])
            return self.arith(node, a, b)
        return self.size(node)

    def solve(self, node: A.Expr, actual, origin) -> bool | None:
        """Makes a size equal to `actual`, binding one unknown name; None when it must wait, False when it cannot hold."""
        if type(node) is A.Name:
            n = self.dim_value(node.id)
            if n is None:
                own = self.scope.names.get(node.id)              # an untyped parameter of the same name
                if isinstance(own, float | str | bool | list | tuple):
                    self.el.fail(node.span, f"`{node.id}` is {describe(own)}, so it cannot be a size", hint="a size is a whole number known when compiling")
                self.dims[node.id] = actual
                self.origins[node.id] = origin
                return True
            return maybe_equal(n, actual)
        try:
            return maybe_equal(self.size(node), actual)
        except Unknown:
            pass
        p = self.polynomial(node)
        free = _unknowns(p)
        if len(free) != 1:
            return None
        name = next(iter(free))
        slope = p.terms.get((name,), 0)
        if any(name in m and m != (name,) for m in p.terms) or not slope:
            return None
        rest = p - Dim._make({(name,): slope})
        n = divide_exact(actual - rest, slope)
        if n is None or isinstance(n, int) and n < 0:
            return False
        self.dims[name[1:]] = n
        self.origins[name[1:]] = origin
        return True

    def shape(self, dims: list[A.Expr], expected: tuple | None = None) -> tuple:
        """A written shape whose names are all known; `expected` gives the pack where it is free."""
        out: list = []
        for i, d in enumerate(dims):
            if type(d) is A.Pack:
                pack = self.packs.get(d.name)
                if pack is None:
                    if expected is None:
                        raise Unknown(".." + (d.name or ""))
                    pack = expected[i:len(expected) - (len(dims) - i - 1)]
                out.extend(pack)
                continue
            n = self.size(d)
            if isinstance(n, int) and n < 0:
                self.el.fail(d.span, f"a size cannot be negative: {n}")
            out.append(n)
        return tuple(out)

    # ---- dtypes and named types ----
    def element(self, t: A.TensorType):
        """What the name in front of the brackets stands for: DType, generic name, "key", LayerClass, QuantType."""
        if t.name in GENERIC:
            return t.name
        d = DTYPES.get(t.name)
        if d is not None:
            return d
        if t.name == "key":
            return "key"
        v = resolve_dotted(self.el, t.name, self.scope, t.span)
        if t.args is not None:
            from .arguments import evaluate_args
            v = self.el.call(v, evaluate_args(self.el, t.args, self.scope), t.span)
        if isinstance(v, DType | QuantType | LayerClass):
            return v
        layer = v.cls.name if isinstance(v, LayerInstance) else None
        self.el.fail(t.span, f"`{t.name}` is no type: it is {describe(v)}",
                     hint=f"the layer's name alone is the type, its arguments are the value's: `{layer}`" if layer else None)

    def dtype(self, t: A.TensorType, actual: DType | None) -> DType | None:
        """The dtype a tensor type asks for; a generic name takes the actual one.  None for layers."""
        e = self.element(t)
        if isinstance(e, DType):
            return e
        if e == "key":
            return u64
        if isinstance(e, QuantType):
            return f32
        if isinstance(e, LayerClass):
            return None
        bound = self.dtypes.get(e)
        if bound is None and actual is not None and GENERIC[e](actual):
            bound = self.dtypes[e] = actual
        return bound or (i64 if e == "int" else f32)

    # ---- matching ----
    def match(self, t: A.Type, v: object, span: Span, who: str, result: bool = False, broadcast: bool = False) -> object:
        """The value as the type wants it (weak numbers become tensors); a diagnostic at `span` when it does not fit.
        `who` names it: "argument `x` of `attend`".  `result`: names are checked, not bound."""
        if isinstance(t, A.TupleType):
            if not isinstance(v, tuple | list) or len(v) != len(t.items):
                self.el.fail(span, f"{who} is {describe(v)}, expected a tuple of {len(t.items)}", notes=[(t.span, "declared here")])
            return tuple(self.match(x, y, span, f"{who}, part {i}", result, broadcast) for i, (x, y) in enumerate(zip(t.items, v)))
        if isinstance(t, A.FnType):
            if not is_callable(v):
                self.el.fail(span, f"{who} is {describe(v)}, expected a function", notes=[(t.span, "declared here")])
            return v
        e = self.element(t)
        if isinstance(e, LayerClass):
            return self.match_layer(t, e, v, span, who)
        if v is None or not (isinstance(v, Value) or is_weak(v)):
            self.el.fail(span, f"{who} is {describe(v)}, expected {source_text(t)}", notes=[(t.span, "declared here")])
        actual = v.type.dtype if isinstance(v, Value) else None
        if actual is None and isinstance(e, str) and e in GENERIC:
            actual = weak_dtype(v, self.dtypes.get(e))
        dtype = self.dtype(t, actual)
        if isinstance(v, Value):
            if v.type.dtype is not dtype or isinstance(e, str) and e in GENERIC and not GENERIC[e](v.type.dtype):
                self.wrong_dtype(t, e, dtype, v, span, who)
            self.match_shape(t, v.type, span, who, result)
            return v
        return self.match_number(t, v, dtype, span, who, result or broadcast)

    def match_number(self, t: A.TensorType, v, dtype: DType, span: Span, who: str, broadcast: bool) -> Value:
        shape: tuple = ()
        if t.dims:
            try:
                shape = self.shape(t.dims)
            except Unknown:
                shape = ()
                self.match_shape(t, TensorType(dtype, ()), span, who, False)
            if not broadcast and shape and not all(type(n) is int and n == 1 for n in shape):
                self.el.fail(span, f"{who} is {describe(v)}, expected {self.text(t)}", hint="`full(shape, value)` makes a tensor of one number",
                             notes=[(t.span, "declared here")])
        kind = v.kind if isinstance(v, Opaque) else "float" if isinstance(v, float) else "bool" if isinstance(v, bool) else "int"
        if kind == "float" and not dtype.is_float or kind == "bool" and not dtype.is_bool or kind == "int" and dtype.is_bool:
            self.el.fail(span, f"{who} is {describe(v)}, expected {self.text(t)}", notes=[(t.span, "declared here")])
        try:
            return constant(self.el.b(span), v, dtype, shape)
        except TypeMismatch as x:
            self.el.fail(span, f"{who}: {x}")

    def wrong_dtype(self, t: A.TensorType, e, dtype: DType, v: Value, span: Span, who: str) -> None:
        hint = None
        if e == "key":
            hint = "a key comes from a parameter `k: key`, `split` or `fold_in`"
        elif v.type.dtype is not dtype and dtype is not None:
            hint = f"`{dtype}(..)` converts"
        extra = f" (`{e}` is {dtype} in this call)" if isinstance(e, str) and e in self.dtypes and self.dtypes[e] is not v.type.dtype else ""
        self.el.fail(span, f"{who} is {type_text(v.type)}, expected {self.text(t)}: element types differ{extra}", hint=hint,
                     notes=[(t.span, "declared here")] if t.span != span else [])

    def match_layer(self, t: A.TensorType, cls: LayerClass, v: object, span: Span, who: str) -> object:
        inst = v.layer if isinstance(v, Tree) else v
        if not isinstance(inst, LayerInstance) or inst.cls.decl is not cls.decl:
            self.el.fail(span, f"{who} is {describe(v)}, expected a layer {cls.name}", notes=[(t.span, "declared here")])
        return v

    def match_shape(self, t: A.TensorType, actual: TensorType, span: Span, who: str, result: bool) -> None:
        dims, shape = t.dims or [], actual.shape
        at = next((i for i, d in enumerate(dims) if type(d) is A.Pack), None)
        if at is None:
            if len(dims) != len(shape):
                self.wrong_rank(t, actual, span, who)
            pairs = list(zip(dims, shape, range(len(shape))))
        else:
            tail = len(dims) - at - 1
            if len(shape) < at + tail:
                self.wrong_rank(t, actual, span, who)
            middle = shape[at:len(shape) - tail]
            name = dims[at].name
            bound = self.packs.get(name)
            if bound is None:
                self.packs[name] = middle
            elif len(bound) != len(middle) or not all(maybe_equal(p, q) for p, q in zip(bound, middle)):
                pack = ".." + (name or "")
                self.el.fail(span, f"{who} is {type_text(actual)}, expected {self.text(t)}: `{pack}` is "
                             f"[{', '.join(map(str, bound))}], not [{', '.join(map(str, middle))}]", notes=[(t.span, "declared here")])
            pairs = list(zip(dims[:at], shape[:at], range(at)))
            pairs += [(dims[at + 1 + k], shape[len(shape) - tail + k], len(shape) - tail + k) for k in range(tail)]
        for d, n, i in pairs:
            if type(d) is A.Name and self.dims.get(d.id) == n:
                continue
            if result:
                self.check_size(t, d, n, i, actual, span, who)
                continue
            try:
                ok = self.solve(d, n, (who, span))
            except Unknown:
                ok = None
            if ok is None:
                self.later.append((t, d, n, i, actual, span, who))
            elif not ok:
                self.wrong_size(t, d, n, i, actual, span, who)

    def check_size(self, t, d, n, i, actual, span, who) -> None:
        try:
            want = self.size(d)
        except Unknown as u:
            near = did_you_mean(u.name, self.dims)
            self.el.fail(d.span, f"size `{u.name}` is not bound by any parameter",
                         hint=f"did you mean `{near}`?" if near else "an untyped parameter, or a dim of a parameter's type, can be a size here")
        if not maybe_equal(want, n):
            self.wrong_size(t, d, n, i, actual, span, who)

    def settle(self) -> None:
        """Checks the sizes that had to wait for later parameters."""
        waiting, self.later = self.later, []
        for t, d, n, i, actual, span, who in waiting:
            try:
                ok = self.solve(d, n, (who, span))
            except Unknown:
                ok = None
            if ok is None:
                self.el.fail(d.span, f"cannot work out the names in the size `{source_text(d)}`",
                             hint="only one unknown name, in a linear expression, can be solved for")
            if not ok:
                self.wrong_size(t, d, n, i, actual, span, who)

    def wrong_rank(self, t, actual: TensorType, span: Span, who: str) -> None:
        k, n = len(t.dims or []), actual.rank
        more = "at least " if any(type(d) is A.Pack for d in t.dims or []) else ""
        k -= bool(more)
        hint = None
        if n == k - 1 and n >= 0 and not more:
            hint = "a missing dimension can be added: `x[none]` in front, `x[:, none]` in second place"
        self.el.fail(span, f"{who} is {type_text(actual)}, expected {self.text(t)}: {n} dimension{'s' if n != 1 else ''}, expected {more}{k}",
                     hint=hint, notes=[(t.span, "declared here")] if t.span != span else [])

    def wrong_size(self, t, d: A.Expr, n, i: int, actual: TensorType, span: Span, who: str) -> None:
        names = [x.id for x in A.walk(d) if isinstance(x, A.Name)]
        notes: list[tuple[Span | None, str]] = []
        hint = None
        try:
            want = str(self.size(d))
        except Unknown:
            want = source_text(d)
        for name in names:
            if name in self.origins:
                text, where = self.origins[name]
                what = f"is {self.dims[name]} from" if str(self.dims[name]) != name else "is a dimension of"
                notes.append((where if where != span else None, f"`{name}` {what} {text.rstrip(',')}"))
            elif self.owner is not None and name in self.owner.args and not self.owner.span.file.startswith("std/"):
                from .operators import layer_fix_text
                size = as_size(self.owner.args[name])
                if str(size) == name:                          # a layer that is checked without arguments
                    notes.append((self.scope.span_of(name), f"`{name}` is an argument of layer `{self.owner.cls.name}`"))
                    continue
                hint = layer_fix_text(self.owner, name, n, None) if isinstance(d, A.Name) else None
                notes.append((self.owner.span, f"`{self.owner.label or self.owner.cls.name}` is made here with {name} = {size}"))
            else:
                where = self.scope.span_of(name)
                v = self.scope.lookup(name)
                if v is not MISSING:
                    notes.append((where, f"`{name}` is {as_size(v)}"))
        if not names or len(names) == 1 and notes == []:
            notes.append((t.span, "declared here"))
        self.el.fail(span, f"{who} is {type_text(actual)}, expected {self.text(t)}: dimension {i} is {n}, not {want}", notes=notes, hint=hint)

    # ---- for people, and for generic checks ----
    def text(self, t: A.TensorType) -> str:
        """A written type with what is known filled in: `f32[B, 128]`."""
        out = []
        for d in t.dims or []:
            if type(d) is A.Pack:
                out.append(".." + (d.name or ""))
                continue
            try:
                out.append(str(self.size(d)))
            except Unknown:
                out.append(source_text(d))
        try:
            e = self.element(t)
        except Exception:                                      # a type that is itself wrong: show it as written
            e = t.name
        name = str(self.dtypes.get(e, e)) if isinstance(e, str) else e.name if not isinstance(e, DType) else str(e)
        return f"{name}[{', '.join(out)}]" if out else name

    def symbolic(self, t: A.TensorType) -> TensorType | None:
        """A tensor type in which unknown names become rigid symbols; None when it is a layer."""
        dtype = self.dtype(t, None)
        if dtype is None:
            return None
        e = self.element(t)
        if isinstance(e, str) and e in GENERIC:
            self.dtypes[e] = dtype
        out: list = []
        for d in t.dims or []:
            if type(d) is A.Pack:
                out.extend(self.packs.setdefault(d.name, (Dim.symbol(".." + (d.name or "")),)))
                continue
            while True:
                try:
                    out.append(self.size(d))
                    break
                except Unknown as u:
                    self.dims[u.name] = Dim.symbol(u.name)
        return TensorType(dtype, tuple(out))


def as_size(v: object) -> int | Dim | None:
    """A compile-time value as a size, or None."""
    if isinstance(v, bool):
        return None
    if isinstance(v, int | Dim):
        return v
    if isinstance(v, Quotient):
        return v.whole
    if isinstance(v, Opaque):
        if v.size is None:
            raise Undecidable
        return v.size
    return None


def _unknowns(p) -> set[str]:
    return {a for a in p.atoms() if a.startswith("?")} if isinstance(p, Dim) else set()


def resolve_dotted(el, name: str, scope: Scope, span: Span) -> object:
    """The value of `a.b.c` as used in types."""
    from .program import not_found
    first, *rest = name.split(".")
    v = scope.lookup(first)
    if v is MISSING:
        raise not_found(first, span, _with_types(scope), "type" if not rest else "name")
    for part in rest:
        if not isinstance(v, Namespace):
            el.fail(span, f"`{first}` has no types inside")
        inner = v.scope.lookup(part)
        if inner is MISSING:
            raise not_found(part, span, v.scope, "type")
        v = inner
    return v


def _with_types(scope: Scope) -> Scope:
    return Scope(scope, dict.fromkeys([*DTYPES, *GENERIC, "key"]))


def source_text(node: A.Node) -> str:
    """The text of a node as the user wrote it, on one line."""
    s = node.span
    lines = [Source.line(s.file, n) or "" for n in range(s.line, s.end_line + 1)]
    if not lines:
        return "?"
    lines[-1] = lines[-1][:s.end_col - 1]
    lines[0] = lines[0][s.col - 1:]
    return " ".join(x.strip() for x in lines)


__all__ = ["Signature", "Unknown", "as_size", "source_text", "resolve_dotted", "cast", "product"]
