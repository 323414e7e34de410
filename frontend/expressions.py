"""Expressions except calls, control flow and subscripts: literals, names, operators, attributes, lists, pipes, ranges."""
from __future__ import annotations

from ..compiler.diagnostics import Span
from ..compiler.ir import Dim, Value, i64
from . import ast as A
from .arguments import evaluate_args
from .calls import call
from .elaborator import Elaborator, expression
from .from_pytorch import ATTRIBUTES
from .notation import IndexVar, is_notation, notation
from .operators import matmul_values, power, weak_op  # noqa: F401  (what operations build on)
from .tensors import is_weak
from .values import (
    MISSING,
    POISON,
    TRAINING,
    CallArgs,
    Cell,
    FnValue,
    LayerClass,
    LayerInstance,
    Namespace,
    Opaque,
    Poisoned,
    Quotient,
    RangeValue,
    Scope,
    Tree,
    Undecidable,
    describe,
    type_text,
)

# ---- literals and names -----------------------------------------------------------------------------------------------

@expression(A.Int, A.Float, A.Str, A.Bool)
def literal(el: Elaborator, node, scope: Scope) -> object:
    return node.value


@expression(A.NoneLit)
def none(el: Elaborator, node: A.NoneLit, scope: Scope) -> object:
    return None


@expression(A.Name)
def name(el: Elaborator, node: A.Name, scope: Scope) -> object:
    v = scope.lookup(node.id)
    if type(v) is Value:
        return v
    if isinstance(v, Cell):
        return el.read(v, scope, node.span)
    if v is MISSING:
        from .program import not_found
        raise not_found(node.id, node.span, scope)
    if v is POISON:
        raise Poisoned
    if v is TRAINING:
        return el.training
    if isinstance(v, IndexVar):
        return v.read(el, node.span)
    return v


@expression(A.Block)
def block(el: Elaborator, node: A.Block, scope: Scope) -> object:
    return el.run_block(node.stmts, Scope(scope))


@expression(A.Lambda)
def lambda_(el: Elaborator, node: A.Lambda, scope: Scope) -> object:
    return FnValue(node, scope)


@expression(A.Tuple)
def tuple_(el: Elaborator, node: A.Tuple, scope: Scope) -> object:
    return tuple([el.value(x, scope) for x in node.items])


@expression(A.List)
def list_(el: Elaborator, node: A.List, scope: Scope) -> object:
    out: list = []
    for x in node.items:
        if isinstance(x, A.Pack):
            v = pack_value(el, x, scope)
            out.extend(v)
        else:
            out.append(el.value(x, scope))
    return out


def pack_value(el: Elaborator, node: A.Pack, scope: Scope) -> tuple:
    el.fail(node.span, "`..` cannot stand in a list yet", hint="`x.shape` is a tuple of sizes")


@expression(A.Comprehension)
def comprehension(el: Elaborator, node: A.Comprehension, scope: Scope) -> object:
    from .control import static_items
    from .statements import bind_pattern
    items = static_items(el, el.value(node.iterable, scope), node.iterable.span)
    out = []
    for x in items:
        inner = Scope(scope)
        bind_pattern(el, node.pattern, x, inner, node.iterable.span)
        if node.cond is not None:
            c = el.value(node.cond, inner)
            if not isinstance(c, bool):
                el.fail(node.cond.span, f"a condition known when compiling is needed here, got {describe(c)}")
            if not c:
                continue
        out.append(el.value(node.element, inner))
    return out


@expression(A.Range)
def range_(el: Elaborator, node: A.Range, scope: Scope) -> object:
    bounds = []
    for side in (node.start, node.stop):
        v = el.value(side, scope)
        if isinstance(v, Quotient) and v.whole is not None:
            v = v.whole
        if isinstance(v, Value):
            if v.type.rank or not v.type.dtype.is_int:
                el.fail(side.span, f"a range's bound is a whole number, got {type_text(v.type)}")
            v = el.b(side.span).cast(v, i64)
        elif isinstance(v, Opaque):
            if v.size is None:
                raise Undecidable
            v = v.size
        elif isinstance(v, bool) or not isinstance(v, int | Dim):
            el.fail(side.span, f"a range's bound is a whole number, got {describe(v)}")
        bounds.append(v)
    return RangeValue(*bounds)


# ---- calls and pipes --------------------------------------------------------------------------------------------------

@expression(A.Call)
def call_(el: Elaborator, node: A.Call, scope: Scope) -> object:
    if isinstance(node.func, A.Index) and is_notation(node.func, scope):
        return notation(el, node, scope)
    f = el.value(node.func, scope)
    ca = evaluate_args(el, node.args, scope)
    return call(el, f, ca, node.span)


@expression(A.Pipe)
def pipe(el: Elaborator, node: A.Pipe, scope: Scope) -> object:
    """`x |> f` is f(x); `x |> f(2)` is f(x, 2)."""
    left = el.value(node.left, scope)
    right = node.right
    if isinstance(right, A.Call) and not right.parens:
        f = el.value(right.func, scope)
        ca = evaluate_args(el, right.args, scope)
        ca.pos.insert(0, left)
        ca.spans.insert(0, node.left.span)
        return call(el, f, ca, right.span)
    f = el.value(right, scope)
    return call(el, f, CallArgs([left], [node.left.span]), right.span)


# ---- attributes -------------------------------------------------------------------------------------------------------

@expression(A.Attr)
def attr(el: Elaborator, node: A.Attr, scope: Scope) -> object:
    if isinstance(node.value, A.Attr | A.Name | A.Index):
        base = el.value(node.value, scope)
    else:
        base = el.value(node.value, scope)
    return attribute(el, base, node.name, node.name_span, scope)


def attribute(el: Elaborator, base: object, name: str, span: Span, scope: Scope) -> object:
    from ..compiler.diagnostics import did_you_mean
    if el.attribute_hook is not None:
        v = el.attribute_hook(el, base, name, span)
        if v is not MISSING:
            return v
    if isinstance(base, Value):
        t = base.type
        if name == "T":
            if t.rank < 2:
                el.fail(span, f"`.T` swaps the last two dimensions; {type_text(t)} has {t.rank}")
            return el.b(span).transpose(base, [*range(t.rank - 2), t.rank - 1, t.rank - 2])
        if name == "shape":
            return tuple(t.shape)
        if name == "dtype":
            return t.dtype
        if name == "ndim":
            return t.rank
        near = did_you_mean(name, ["T", "shape", "dtype", "ndim"])
        known = scope.lookup(name)
        hint = ATTRIBUTES[name] if name in ATTRIBUTES else f"did you mean `.{near}`?" if near else f"operations are functions: `{name}(x)`" if known is not MISSING else \
            "tensors have .T .shape .dtype .ndim"
        el.fail(span, f"a tensor has no `.{name}`", hint=hint)
    if isinstance(base, LayerInstance):
        return layer_attribute(el, base, name, span, scope)
    if isinstance(base, Tree):
        return tree_attribute(el, base, name, span)
    if isinstance(base, Namespace):
        v = base.scope.lookup(name)
        if v is MISSING or name not in base.scope.names:
            from .program import not_found
            raise not_found(name, span, base.scope)
        return v
    if isinstance(base, tuple | list) and base and name == "shape":
        el.fail(span, f"{describe(base)} has no `.shape`", hint="`tensor(list)` makes a tensor of numbers")
    if isinstance(base, LayerClass):
        el.fail(span, f"{describe(base)} has no `.{name}`", hint=f"make one first: `let m = {base.name}(..)`")
    if is_weak(base) and name == "dtype":
        from .tensors import weak_dtype
        return weak_dtype(base, None)
    if is_weak(base) and name in ("shape", "ndim"):
        return () if name == "shape" else 0
    el.fail(span, f"{describe(base)} has no `.{name}`")


def layer_attribute(el: Elaborator, inst: LayerInstance, name: str, span: Span, scope: Scope) -> object:
    from ..compiler.diagnostics import did_you_mean
    slot = inst.own.get(name)
    if slot is not None:
        return el.read(slot, None, span)
    for table in (inst.children, inst.methods, inst.extras):
        if name in table and not (table is inst.extras and name == "closures"):
            return table[name]
    v = inst.scope.names.get(name, MISSING)                    # a `let`, an argument
    if v is not MISSING:
        return v
    near = did_you_mean(name, [*inst.own, *inst.children, *inst.methods])
    el.fail(span, f"layer {inst.cls.name} has no `{name}`", hint=f"did you mean `{near}`?" if near else
            "it has " + ", ".join(f"`{n}`" for n in [*inst.own, *inst.children, *inst.methods]) if inst.own or inst.children else None)


def tree_attribute(el: Elaborator, tree: Tree, name: str, span: Span) -> object:
    """`g.hidden` is the part of a tree that belongs to a sub-layer, `g.hidden.w` the value for a parameter."""
    inst = tree.layer
    slot = inst.own.get(name)
    if slot is not None and slot in tree.values:
        return tree.values[slot]
    child = inst.children.get(name)
    if child is None:
        from ..compiler.diagnostics import did_you_mean
        near = did_you_mean(name, [*inst.own, *inst.children])
        el.fail(span, f"layer {inst.cls.name} has no parameter `{name}`", hint=f"did you mean `{near}`?" if near else None)
    return part_of(tree, child)


def part_of(tree: Tree, child: object) -> object:
    if isinstance(child, LayerInstance):
        return Tree(child, {s: tree.values[s] for _, s in child.params if s in tree.values})
    if isinstance(child, list | tuple):
        return [part_of(tree, c) for c in child]
    return child


@expression(A.Pack)
def pack(el: Elaborator, node: A.Pack, scope: Scope) -> object:
    el.fail(node.span, "`..` cannot stand here", hint="`..` belongs in shapes, subscripts and ranges `a..b`")
