"""Operators on any two values: tensors (broadcast, promoted), compile-time numbers, lists; and what to say when they do not fit."""
from __future__ import annotations

import math
import operator

from ..compiler.diagnostics import CompileError, Span
from ..compiler.ir import Dim, DType, TensorType, Value, f32
from ..compiler.ir.dims import divide, divide_exact
from ..compiler.ir.opdef import TypeMismatch
from . import ast as A
from .elaborator import Elaborator, expression
from .tensors import binary, broadcast_shapes, common_dtype, is_weak, promote, together
from .values import (
    Cell,
    FnValue,
    LayerInstance,
    Opaque,
    Quotient,
    Scope,
    Slot,
    Tree,
    Undecidable,
    describe,
    type_text,
)

MAX_BITS = 4096                  # of a compile-time integer
MAX_LIST = 100_000


TENSOR_OPS = {"+": "add", "-": "sub", "*": "mul", "/": "div", "//": "floordiv", "%": "mod", "**": "pow",
              "&": "and", "|": "or", "^": "xor", "<<": "shl", ">>": "shr"}
VERBS = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide", "//": "divide", "%": "divide", "**": "raise",
         "@": "multiply", "&": "combine", "|": "combine", "^": "combine", "<<": "shift", ">>": "shift"}
PYTHON = {"+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod,
          "&": operator.and_, "|": operator.or_, "^": operator.xor, "<<": operator.lshift, ">>": operator.rshift}
PREDICATES = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}


@expression(A.Binary)
def binary_(el: Elaborator, node: A.Binary, scope: Scope) -> object:
    op = node.op
    if op == "*" and isinstance(node.left, A.List):            # [Block(d)] * n makes n blocks of their own
        n = el.value(node.right, scope)
        if isinstance(n, int) and not isinstance(n, bool):
            if n * len(node.left.items) > MAX_LIST:
                el.fail(node.span, f"a list of {n * len(node.left.items)} is too long")
            out: list = []
            for _ in range(n):
                out += el.value(node.left, scope)
            return out
        if isinstance(n, Dim | Opaque):
            raise Undecidable
        el.fail(node.right.span, f"a list is repeated a whole number of times, got {describe(n)}")
    if op == "+" and isinstance(node.left, A.Binary) and node.left.op == "+" and not node.left.parens:
        return sum_chain(el, node, scope)
    x = el.value(node.left, scope)
    y = el.value(node.right, scope)
    return binary_op(el, op, x, y, node.op_span, (node.left, node.right), scope)


def sum_chain(el: Elaborator, node: A.Binary, scope: Scope) -> object:
    """a + b + c + ... without recursing once per term."""
    terms = [node]
    while isinstance(terms[-1].left, A.Binary) and terms[-1].left.op == "+" and not terms[-1].left.parens \
            and not isinstance(terms[-1].left.left, A.List):
        terms.append(terms[-1].left)
    x = el.value(terms[-1].left, scope)
    for t in reversed(terms):
        x = binary_op(el, "+", x, el.value(t.right, scope), t.op_span, (t.left, t.right), scope)
    return x


def binary_op(el: Elaborator, op: str, x: object, y: object, span: Span, nodes: tuple[A.Expr, A.Expr], scope: Scope) -> object:
    """x op y for any two values; `nodes` are the operands' expressions, for messages."""
    xt, yt = isinstance(x, Value), isinstance(y, Value)
    if not xt and not yt:
        return static_op(el, op, x, y, span, nodes)
    for v, node in ((x, nodes[0]), (y, nodes[1])):
        if not isinstance(v, Value) and not is_weak(v):
            if isinstance(v, Tree | LayerInstance):
                el.fail(node.span, f"cannot {VERBS[op]} {describe(v)} as a whole", hint="`tree_map(fn (a, b) { .. }, x, y)` works on each parameter")
            if isinstance(v, list | tuple):
                el.fail(node.span, f"cannot {VERBS[op]} {describe(v)}", hint="`tensor([..])` makes a tensor of numbers, `stack([..])` of tensors")
            el.fail(node.span, f"cannot {VERBS[op]} {describe(v)}")
    if op == "@":
        return matmul(el, x, y, span, nodes, scope)
    if op in ("//", "%") and type(y) is int and y == 0 and xt and x.type.dtype.is_int:
        el.fail(nodes[1].span, "integer division by zero")
    b = el.b(span)
    try:
        if op == "/":
            dtype = common_dtype((x, y))
            xv, yv = together(b, (x, y), dtype if dtype.is_float else f32)
            return b.op("tensor.div", [xv, yv]).result
        if op == "**":
            return power(b, x, y)
        if op in ("<<", ">>"):
            dtype = x.type.dtype if xt else common_dtype((x, y))
            xv, yv = together(b, (x, y), dtype)
            return b.op("tensor." + TENSOR_OPS[op], [xv, yv]).result
        if op in "+-*" and common_dtype((x, y)).is_bool:
            what = {"+": "`or`", "*": "`and`", "-": "`!=`"}[op]
            el.fail(span, f"cannot {VERBS[op]} bools", hint=f"{what} combines conditions; `i32(x)` or `f32(x)` converts")
        return binary(b, TENSOR_OPS[op], x, y)
    except TypeMismatch as e:
        raise operand_error(el, op, x, y, span, nodes, scope, str(e), e.hint) from None


def operand_error(el: Elaborator, op: str, x, y, span: Span, nodes, scope: Scope, why: str, hint: str | None = None) -> CompileError:
    from ..compiler.diagnostics import error
    if why.startswith("dimension "):
        why = f"these shapes do not broadcast: {why}"
    if hint is None and isinstance(x, Value) and isinstance(y, Value):
        hint = broadcast_hint(x.type, y.type)
    verb = VERBS[op]
    between = f" {op} " if op == "@" else {"add": " and ", "subtract": " and ", "multiply": " and ", "divide": " by ", "raise": " to ",
                                         "combine": " and ", "shift": " by "}[verb]
    a, c = describe(x), describe(y)
    return error(span, f"cannot {verb} {a}{between}{c}: {why}", hint=hint, marks=operand_marks(el, (x, y), nodes, scope))


def broadcast_hint(a: TensorType, c: TensorType) -> str | None:
    """What would make two shapes broadcast."""
    def ok(p, q):
        try:
            broadcast_shapes(p, q)
            return True
        except TypeMismatch:
            return False

    for first, p, q in (("left", a.shape, c.shape), ("right", c.shape, a.shape)):
        if len(p) < len(q) and len(p) >= 1 and ok((*p, 1), q):
            return f"add a last dimension to the {first} operand: `x[{':, ' * len(p)}none]`"
    if len(a.shape) == 2 and ok(a.shape[::-1], c.shape):
        return "one operand looks transposed: `.T` swaps the last two dimensions"
    return None


def operand_marks(el: Elaborator, values, nodes, scope: Scope) -> list[tuple[Span, str | None]]:
    """The operands of a failed operation, underlined with their types; for the right one, where it was declared."""
    out = []
    for v, n in zip(values, nodes):
        label = None
        if isinstance(v, Value) and n is nodes[-1]:
            where = origin(el, n, scope)
            label = describe(v) + (f", declared at {where}" if where is not None else "")
        out.append((n.span, label))
    return out


def origin(el: Elaborator, node: A.Expr, scope: Scope) -> Span | None:
    """Where the value of an expression was declared, as far as a name leads there."""
    if isinstance(node, A.Name):
        v = scope.lookup(node.id)
        return v.span if isinstance(v, Cell) else scope.span_of(node.id)
    if isinstance(node, A.Attr):
        if node.name == "T":
            return origin(el, node.value, scope)
        base = static_base(el, node.value, scope)
        if isinstance(base, LayerInstance):
            slot = base.own.get(node.name)
            if slot is not None and slot.span.file.startswith("std/"):
                return base.span                               # the library's line says nothing: show where the layer was made
            if slot is not None:
                return slot.span
    return None


def static_base(el: Elaborator, node: A.Expr, scope: Scope) -> object:
    """The layer that `a.b.c` leads to, without emitting anything; None when it leads elsewhere."""
    if isinstance(node, A.Name):
        v = scope.lookup(node.id)
        return v if isinstance(v, LayerInstance) else None
    if isinstance(node, A.Attr):
        base = static_base(el, node.value, scope)
        if isinstance(base, LayerInstance):
            return base.children.get(node.name)
    return None


def power(b, x: object, y: object) -> Value:
    """x ** y; small whole exponents of floats become products."""
    dtype = common_dtype((x, y))
    if isinstance(x, Value) and isinstance(y, int) and not isinstance(y, bool) and x.type.dtype.is_float:
        if y == 0:
            return b.constant(1.0, x.type)
        if y == 1:
            return x
        if 2 <= y <= 4:
            out = b.mul(x, x)
            return out if y == 2 else b.mul(out, x) if y == 3 else b.mul(out, out)
        if y == -1:
            return b.div(b.like(1.0, x), x)
    if isinstance(y, float) and not isinstance(y, Quotient) and y == 0.5 and isinstance(x, Value) and x.type.dtype.is_float:
        return b.sqrt(x)
    if dtype.is_bool:
        raise TypeMismatch("expected numbers, got bools")
    if not isinstance(x, Value) and not dtype.is_float and isinstance(x, int) and isinstance(y, Value) and y.type.dtype.is_int:
        dtype = y.type.dtype
    xv, yv = together(b, (x, y), dtype)
    return b.op("tensor.pow", [xv, yv]).result


def matmul(el: Elaborator, x: object, y: object, span: Span, nodes, scope: Scope) -> Value:
    """torch.matmul: last dim of x with the one before last of y; leading dims broadcast; vectors have no free dim."""
    from ..compiler.diagnostics import error
    b = el.b(span)
    for v, n in ((x, nodes[0]), (y, nodes[1])):
        if not isinstance(v, Value) or v.type.rank == 0:
            el.fail(n.span, f"`@` multiplies matrices and vectors, got {describe(v)}", hint="`*` multiplies by a number")
    try:
        return matmul_values(b, x, y)
    except TypeMismatch as e:
        hint = matmul_hint(el, x.type, y.type, nodes, scope)
        why = str(e)
        message = f"cannot multiply {type_text(x.type)} @ {type_text(y.type)}: {why}"
        raise error(span, message, hint=hint, marks=operand_marks(el, (x, y), nodes, scope)) from None


def matmul_values(b, x: Value, y: Value) -> Value:
    dtype = promote(x.type.dtype, y.type.dtype)
    if dtype.is_bool:
        raise TypeMismatch("expected numbers, got bools")
    if x.type.rank == 0 or y.type.rank == 0:
        raise TypeMismatch("expected matrices or vectors, got a number", hint="`*` multiplies by a number")
    x, y = b.cast(x, dtype), b.cast(y, dtype)
    xs, ys = x.type.shape, y.type.shape
    kx, ky = len(xs) - 1, max(len(ys) - 2, 0)
    from ..compiler.ir.dims import maybe_equal
    if not maybe_equal(xs[kx], ys[ky]):
        raise TypeMismatch(f"inner dimensions differ ({xs[kx]} vs {ys[ky]})")
    if len(ys) <= 2:
        return dot(b, x, y, [], [], [kx], [ky])
    if len(xs) == 1:
        return dot(b, y, x, [], [], [ky], [0]) if len(ys) > 1 else dot(b, x, y, [], [], [0], [0])
    try:
        batch = broadcast_shapes(xs[:-2], ys[:-2])
    except TypeMismatch:
        raise TypeMismatch(f"leading dimensions [{', '.join(map(str, xs[:-2]))}] and [{', '.join(map(str, ys[:-2]))}] do not broadcast") from None
    x = b.broadcast(x, (*batch, *xs[-2:]))
    y = b.broadcast(y, (*batch, *ys[-2:]))
    n = len(batch)
    lead = list(range(n))
    return dot(b, x, y, lead, lead, [n + 1], [n])


def dot(b, x: Value, y: Value, xb, yb, xc, yc) -> Value:
    return b.op("tensor.dot_general", [x, y], {"lhs_batch": list(xb), "rhs_batch": list(yb), "lhs_contract": list(xc), "rhs_contract": list(yc)}).result


def matmul_hint(el: Elaborator, a: TensorType, c: TensorType, nodes, scope: Scope) -> str | None:
    """What would make `a @ c` fit."""
    if c.rank >= 2 and a.shape[-1] == c.shape[-1]:
        return f"the right operand looks transposed: `{_short(nodes[1])}.T` is {type_text(c.with_shape((*c.shape[:-2], c.shape[-1], c.shape[-2])))}"
    if a.rank >= 2 and c.rank >= 2 and a.shape[-2] == c.shape[-2]:
        return f"the left operand looks transposed: `{_short(nodes[0])}.T` is {type_text(a.with_shape((*a.shape[:-2], a.shape[-1], a.shape[-2])))}"
    node = nodes[1]
    if isinstance(node, A.Attr):
        inst = static_base(el, node.value, scope)
        if isinstance(inst, LayerInstance):
            return fix_layer(inst, inst.own.get(node.name), 0, a.shape[-1], _short(nodes[0]))
    return None


def fix_layer(inst: LayerInstance, slot: Slot | None, dim: int, want, giver: str | None) -> str | None:
    """ "`hidden` gives 128 features, so `out` would be Linear(128, 10)" """
    if slot is None or not slot.decl.type.dims or not isinstance(slot.decl.type.dims[dim], A.Name):
        return None
    return layer_fix_text(inst, slot.decl.type.dims[dim].id, want, giver)


def layer_fix_text(inst: LayerInstance, param: str, want, giver: str | None) -> str | None:
    params = [p for p in inst.cls.decl.params]
    if param not in [p.name for p in params] or inst.label is None:
        return None
    args = []
    for p in params:
        v = inst.args.get(p.name)
        if p.name == param:
            args.append(str(want))
        elif p.default is None and isinstance(v, int | Dim):
            args.append(str(v))
        elif p.default is None:
            return None
    text = f"{inst.cls.name}({', '.join(args)})"
    lead = f"`{giver}` gives {want} features, so " if giver else ""
    return f"{lead}`{inst.label}` would be {text}"


def _short(node: A.Expr) -> str:
    if isinstance(node, A.Call) and isinstance(node.func, A.Name):
        return node.func.id
    if isinstance(node, A.Name):
        return node.id
    if isinstance(node, A.Attr):
        return f"{_short(node.value)}.{node.name}"
    return "it"


def static_op(el: Elaborator, op: str, x: object, y: object, span: Span, nodes) -> object:
    """x op y of compile-time values."""
    if is_weak(x) and is_weak(y):
        return weak_op(el, op, x, y, span)
    if op == "+":
        if isinstance(x, list) and isinstance(y, list):
            return x + y
        if isinstance(x, tuple) and isinstance(y, tuple):
            return x + y
        if isinstance(x, str) and isinstance(y, str):
            return x + y
    if op == "*" and isinstance(x, list | tuple) and isinstance(y, int) and not isinstance(y, bool) and len(x) * y <= MAX_LIST:
        return x * y
    for v, n in ((x, nodes[0]), (y, nodes[1])):
        if isinstance(v, LayerInstance | Tree):
            el.fail(n.span, f"cannot {VERBS[op]} {describe(v)} as a whole", hint="`tree_map(fn (a, b) { .. }, x, y)` works on each parameter")
    el.fail(span, f"cannot {VERBS[op]} {describe(x)} and {describe(y)}", marks=[(n.span, None) for n in nodes])


def weak_op(el: Elaborator, op: str, x, y, span: Span):
    """Arithmetic on compile-time numbers; / gives floats that remember whole quotients."""
    if op == "@":
        el.fail(span, "`@` multiplies matrices and vectors, got numbers", hint="`*` multiplies numbers")
    if isinstance(x, Opaque) or isinstance(y, Opaque):
        return opaque_op(op, x, y)
    try:
        if isinstance(x, Dim) or isinstance(y, Dim):
            return dim_op(op, x, y)
        if op == "/":
            if type(x) is int and type(y) is int:
                return Quotient(x, y)
            if isinstance(x, Quotient) and type(y) is int and x.whole is not None:
                return Quotient(x.whole, y)
            return float(x) / float(y)
        if isinstance(x, Quotient) and x.whole is not None and op in ("*", "+", "-", "//", "%"):
            x = x.whole if isinstance(y, int) or isinstance(y, Quotient) and y.whole is not None else x
        if isinstance(y, Quotient) and y.whole is not None and op in ("*", "+", "-", "//", "%") and isinstance(x, int):
            y = y.whole
        if op == "**":
            return static_power(el, x, y, span)
        if op in ("<<", ">>") and isinstance(y, int) and y > MAX_BITS:
            el.fail(span, f"a shift by {y} is too far")
        if op in ("&", "|", "^", "<<", ">>") and (isinstance(x, float) or isinstance(y, float)):
            el.fail(span, f"`{op}` works on whole numbers, got {describe(x)} and {describe(y)}")
        v = PYTHON[op](x, y)
    except ZeroDivisionError:
        el.fail(span, "division by zero")
    except (OverflowError, ValueError) as e:
        el.fail(span, str(e))
    if isinstance(v, int) and v.bit_length() > MAX_BITS:
        el.fail(span, "this number is too large")
    return v


def static_power(el: Elaborator, x, y, span: Span):
    if isinstance(x, int) and isinstance(y, int) and abs(x) > 1 and abs(y) * x.bit_length() > MAX_BITS:
        el.fail(span, "this number is too large")
    v = x ** y
    if isinstance(v, complex):
        el.fail(span, f"{x} ** {y} is no real number")
    return v


def dim_op(op: str, x, y):
    if isinstance(x, float) or isinstance(y, float) or op in ("**", "&", "|", "^", "<<", ">>"):
        if op == "**" and isinstance(y, int) and 0 <= y <= 4:
            return math.prod([x] * y)
        return Opaque("float" if isinstance(x, float) or isinstance(y, float) else "int")
    if op == "/":
        if isinstance(y, int) and y == 0:
            raise ZeroDivisionError
        q = divide_exact(x, y)
        return Opaque("float", q if q is not None else divide(x, y))
    if op == "//":
        return divide(x, y)
    if op == "%":
        return x % y
    return PYTHON[op](x, y)


def opaque_op(op: str, x, y):
    def size(v):
        return v.size if isinstance(v, Opaque) else v if isinstance(v, int | Dim) and not isinstance(v, bool) else None

    a, c = size(x), size(y)
    kinds = [v.kind if isinstance(v, Opaque) else "float" if isinstance(v, float) else "int" for v in (x, y)]
    kind = "float" if op == "/" or "float" in kinds else "int"
    if a is not None and c is not None and op in ("+", "-", "*", "/"):
        s = {"+": lambda: a + c, "-": lambda: a - c, "*": lambda: a * c, "/": lambda: divide(a, c)}[op]()
        return Opaque(kind, s)
    return Opaque(kind)


@expression(A.Unary)
def unary(el: Elaborator, node: A.Unary, scope: Scope) -> object:
    v = el.value(node.operand, scope)
    if isinstance(v, Value):
        if node.op == "+":
            return v
        if node.op == "~":
            return el.op(node.op_span, "tensor.not", [v])
        if v.type.dtype.is_bool:
            el.fail(node.op_span, "cannot negate bools", hint="`not` inverts a condition")
        return el.op(node.op_span, "tensor.neg", [v])
    if isinstance(v, Opaque):
        return Opaque(v.kind, -v.size if v.size is not None and node.op == "-" else None)
    if isinstance(v, bool) and node.op == "~":
        return not v
    if not is_weak(v) or node.op == "~" and not isinstance(v, int):
        el.fail(node.span, f"cannot negate {describe(v)}" if node.op == "-" else f"`{node.op}` does not work on {describe(v)}")
    if node.op == "-":
        return Quotient(-v.whole, 1) if isinstance(v, Quotient) and v.whole is not None else -v
    return ~v if node.op == "~" else v


@expression(A.Not)
def not_(el: Elaborator, node: A.Not, scope: Scope) -> object:
    v = el.value(node.operand, scope)
    if isinstance(v, bool):
        return not v
    if isinstance(v, Opaque) and v.kind == "bool":
        return v
    if isinstance(v, Value) and v.type.dtype.is_bool:
        return el.op(node.op_span, "tensor.not", [v])
    el.fail(node.operand.span, f"`not` needs a condition, got {describe(v)}", hint=_bool_hint(v))


def _bool_hint(v: object) -> str | None:
    return "compare it: `x != 0`" if is_weak(v) or isinstance(v, Value) else "compare it: `x == none`" if v is None else None


@expression(A.BoolOp)
def bool_op(el: Elaborator, node: A.BoolOp, scope: Scope) -> object:
    x = el.value(node.left, scope)
    if isinstance(x, bool):                                    # a compile-time left side decides, as in Python
        if x != (node.op == "and"):
            return x
        y = el.value(node.right, scope)
        if not (isinstance(y, bool) or isinstance(y, Opaque) and y.kind == "bool" or isinstance(y, Value) and y.type.dtype.is_bool):
            el.fail(node.right.span, f"`{node.op}` needs conditions, got {describe(y)}", hint=_bool_hint(y))
        return y
    y = el.value(node.right, scope)
    for v, n in ((x, node.left), (y, node.right)):
        if not (isinstance(v, bool) or isinstance(v, Opaque) and v.kind == "bool" or isinstance(v, Value) and v.type.dtype.is_bool):
            el.fail(n.span, f"`{node.op}` needs conditions, got {describe(v)}", hint=_bool_hint(v))
    if isinstance(x, Opaque) or isinstance(y, Opaque):
        if isinstance(y, bool) and y != (node.op == "and"):
            return y
        if not isinstance(x, Value) and not isinstance(y, Value):
            return Opaque("bool")
    if isinstance(y, bool):
        return x if y == (node.op == "and") else y
    b = el.b(node.op_span)
    try:
        return binary(b, node.op, x, y)
    except TypeMismatch as e:
        el.fail(node.op_span, f"cannot combine {describe(x)} and {describe(y)}: {e}",
                marks=operand_marks(el, (x, y), (node.left, node.right), scope))


@expression(A.Compare)
def compare(el: Elaborator, node: A.Compare, scope: Scope) -> object:
    """a <= b < c: every operand is evaluated once; all comparisons have to hold."""
    values = [el.value(n, scope) for n in node.operands]
    out: object = True
    for i, (op, span) in enumerate(zip(node.ops, node.op_spans)):
        c = compare_op(el, op, values[i], values[i + 1], span, (node.operands[i], node.operands[i + 1]), scope)
        if out is True:
            out = c
        elif c is True or out is False:
            pass
        elif c is False:
            out = False
        elif isinstance(out, Opaque) or isinstance(c, Opaque):
            out = Opaque("bool")
        else:
            out = binary(el.b(span), "and", out, c)
    return out


def compare_op(el: Elaborator, op: str, x: object, y: object, span: Span, nodes, scope: Scope) -> object:
    if isinstance(x, Value) or isinstance(y, Value):
        if all(isinstance(v, Value) or is_weak(v) for v in (x, y)):
            b = el.b(span)
            try:
                return binary(b, "compare", x, y, predicate=PREDICATES[op])
            except TypeMismatch as e:
                el.fail(span, f"cannot compare {describe(x)} and {describe(y)}: {e}", marks=operand_marks(el, (x, y), nodes, scope),
                        hint=broadcast_hint(x.type, y.type) if isinstance(x, Value) and isinstance(y, Value) else None)
        if op in ("==", "!=") and (x is None or y is None):
            return op == "!="                                  # a tensor is never none
        el.fail(span, f"cannot compare {describe(x)} and {describe(y)}")
    if is_weak(x) and is_weak(y):
        return compare_numbers(op, x, y)
    if op in ("==", "!="):
        same = x is y or type(x) is type(y) and _equal(x, y)
        return same == (op == "==")
    if isinstance(x, str) and isinstance(y, str):
        return {"<": x < y, "<=": x <= y, ">": x > y, ">=": x >= y}[op]
    el.fail(span, f"cannot compare {describe(x)} and {describe(y)}")


def _equal(x: object, y: object) -> bool:
    if isinstance(x, tuple | list):
        return len(x) == len(y) and all(a == b for a, b in zip(x, y))
    return isinstance(x, str | DType | FnValue) and x == y


def compare_numbers(op: str, x, y):
    """Of compile-time numbers; what depends on an unknown dim's size stays unknown."""
    if isinstance(x, Opaque) or isinstance(y, Opaque):
        return Opaque("bool")
    if isinstance(x, Dim) or isinstance(y, Dim):
        d = x - y if not isinstance(x, float) and not isinstance(y, float) else None
        if not isinstance(d, int):
            return Opaque("bool")
        x, y = d, 0
    return {"==": x == y, "!=": x != y, "<": x < y, "<=": x <= y, ">": x > y, ">=": x >= y}[op]
