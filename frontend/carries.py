"""What a loop carries from step to step: its patterns and initial values, and making a body's value fit them."""
from __future__ import annotations

from ..compiler.diagnostics import Span
from ..compiler.ir import TensorType, Value
from ..compiler.ir.opdef import TypeMismatch
from . import ast as A
from .elaborator import Elaborator, no_value
from .statements import bind_pattern, pattern_text
from .tensors import as_tensor, broadcast_shapes, is_weak, promote, weak_dtype
from .trees import flatten, unflatten
from .values import UNIT, Scope, Tree, describe, type_text


def to_type(el: Elaborator, region, v: object, t: TensorType, span: Span) -> Value:
    """Converts a value inside a region that was left already."""
    b = el.b(span)
    outer, b.block = b.block, region.block
    try:
        v = as_tensor(b, v, t.dtype)
        return b.broadcast(b.cast(v, t.dtype), t.shape)
    finally:
        b.block = outer


class Carries:
    """The values after `with`: patterns, initial values as tensors, and which of them started as weak numbers."""

    def __init__(self, el: Elaborator, carries: list[A.Carry], scope: Scope):
        self.el, self.nodes = el, carries
        self.values = [el.value(c.init, scope) for c in carries]
        self.retyped: dict[int, TensorType] = {}

    def start(self, span: Span) -> tuple[list[tuple], list[Value]]:
        """Specs and tensors of the initial values."""
        specs, leaves = [], []
        b = self.el.b(span)
        k = 0
        for v in self.values:
            v, k = self.tensors(b, v, k)
            spec, own = flatten(v)
            specs.append(spec)
            leaves += own
        return specs, leaves

    def tensors(self, b, v: object, k: int) -> tuple[object, int]:
        if isinstance(v, tuple | list):
            out = []
            for x in v:
                x, k = self.tensors(b, x, k)
                out.append(x)
            return type(v)(out), k
        if is_weak(v):
            t = self.retyped.get(k)
            v = as_tensor(b, v, t.dtype if t else None)
            return (b.broadcast(v, t.shape) if t else v), k + 1
        if isinstance(v, Tree):
            return v, k + len(v.values)
        return v, k + isinstance(v, Value)

    def bind(self, scope: Scope, values: list[object]) -> None:
        for c, v in zip(self.nodes, values):
            bind_pattern(self.el, c.pattern, v, scope, c.init.span)

    def result(self, values: list[object]) -> object:
        return values[0] if len(values) == 1 else tuple(values)

    def next(self, value: object, body: A.Block, specs: list[tuple], types: list[TensorType], region) -> list[Value] | None:
        """The body's value as the next carries; None when the loop has to start with other types."""
        el = self.el
        if not self.nodes:
            return []
        span = body.value.span if body.value is not None else body.span
        if value is UNIT:
            el.fail(*no_value(body))
        parts = [value] if len(self.nodes) == 1 else value
        if not isinstance(parts, tuple | list) or len(parts) != len(self.nodes):
            el.fail(span, f"the body gives {describe(value)}, but the loop carries {len(self.nodes)} values",
                    notes=[(self.nodes[0].span, "carried from here")])
        leaves: list[Value] = []
        again = False
        weak: set[int] = set()
        flat_init: list[object] = []
        for v in self.values:
            _weak_leaves(v, weak, flat_init)
        for part, spec, node in zip(parts, specs, self.nodes):
            for v in self.pieces(part, spec, node, span):
                k = len(leaves)
                t = types[k]
                if isinstance(v, Value) and v.type != t:
                    wider = None
                    try:
                        wider = TensorType(promote(t.dtype, v.type.dtype), broadcast_shapes(t.shape, v.type.shape))
                    except TypeMismatch:
                        pass
                    if k in weak and self.retyped.get(k) != v.type and wider is not None:
                        self.retyped[k] = wider
                        again = True
                    elif v.type.dtype is t.dtype and wider is not None and wider.shape == t.shape:
                        v = to_type(el, region, v, t, span)
                    else:
                        el.fail(span, f"`{pattern_text(node.pattern)}` starts as {type_text(t)}, but the body gives {type_text(v.type)}",
                                notes=[(node.span, "carried from here")])
                elif not isinstance(v, Value):
                    w = weak_dtype(v, t.dtype)
                    if w is not t.dtype:
                        el.fail(span, f"`{pattern_text(node.pattern)}` starts as {type_text(t)}, but the body gives {describe(v)}",
                                notes=[(node.span, "carried from here")])
                    v = to_type(el, region, v, t, span)
                leaves.append(v)
        return None if again else leaves

    def pieces(self, part: object, spec: tuple, node: A.Carry, span: Span) -> list[object]:
        kind = spec[0]
        if kind == "v":
            if not (isinstance(part, Value) or is_weak(part)):
                self.el.fail(span, f"`{pattern_text(node.pattern)}` is a tensor, but the body gives {describe(part)}",
                             notes=[(node.span, "carried from here")])
            return [part]
        if kind in ("t", "l"):
            if not isinstance(part, tuple | list) or len(part) != len(spec[1]):
                self.el.fail(span, f"`{pattern_text(node.pattern)}` has {len(spec[1])} parts, but the body gives {describe(part)}",
                             notes=[(node.span, "carried from here")])
            return [x for p, s in zip(part, spec[1]) for x in self.pieces(p, s, node, span)]
        if kind == "tree":
            if isinstance(part, Tree) and list(part.values) == list(spec[2]):
                return list(part.values.values())
        elif part is spec[1] or part == spec[1]:
            return []
        self.el.fail(span, f"`{pattern_text(node.pattern)}` starts as {describe(spec[1])}, but the body gives {describe(part)}",
                     hint="a carried value keeps its structure; what changes has to be a tensor", notes=[(node.span, "carried from here")])


def _weak_leaves(v: object, weak: set[int], flat: list[object]) -> None:
    if isinstance(v, tuple | list):
        for x in v:
            _weak_leaves(x, weak, flat)
    elif isinstance(v, Tree):
        flat.extend(v.values.values())
    elif isinstance(v, Value) or is_weak(v):
        if is_weak(v):
            weak.add(len(flat))
        flat.append(v)


def count_leaves(spec: tuple) -> int:
    if spec[0] == "v":
        return 1
    if spec[0] == "tree":
        return len(spec[2])
    return sum(count_leaves(s) for s in spec[1]) if spec[0] in ("t", "l") else 0


def parts_of(specs: list[tuple], leaves: list[Value]) -> list[object]:
    out, k = [], 0
    for s in specs:
        n = count_leaves(s)
        out.append(unflatten(s, leaves[k:k + n]))
        k += n
    return out
