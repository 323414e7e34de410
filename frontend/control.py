"""Control flow: `if`, `while`, `scan`.  What is known when compiling is decided here; the rest becomes scf ops.

State written in a branch or a loop's body is carried out of it: branches give the cell's value as an extra result, loops carry
it.  A loop's body is elaborated again when the first attempt shows that more has to be carried (or with another dtype).
"""
from __future__ import annotations

from ..compiler.diagnostics import CompileError, Span
from ..compiler.ir import Block, Dim, TensorType, Value, bool_, i64
from ..compiler.ir.opdef import TypeMismatch
from . import ast as A
from .carries import Carries, count_leaves, parts_of, to_type
from .elaborator import Elaborator, expression, no_value, statement
from .notation import choose
from .statements import bind_pattern
from .tensors import as_tensor, broadcast_shapes, common_dtype, is_weak
from .trees import flatten, unflatten
from .values import (
    UNIT,
    Cell,
    LayerInstance,
    Opaque,
    Poisoned,
    RangeValue,
    Reversed,
    Scope,
    Signal,
    Tree,
    Undecidable,
    describe,
    type_text,
)

INDEX = TensorType(i64)
BOOL = TensorType(bool_)
MAX_UNROLL = 10_000


# ---- if ---------------------------------------------------------------------------------------------------------------

def condition(el: Elaborator, node: A.Expr, scope: Scope) -> object:
    """A condition: a Python bool, or a bool[] value."""
    c = el.value(node, scope)
    if isinstance(c, bool):
        return c
    if isinstance(c, Opaque) and c.kind == "bool":
        raise Undecidable
    if isinstance(c, Value):
        if not c.type.dtype.is_bool:
            el.fail(node.span, f"a condition is a bool, got {type_text(c.type)}", hint="compare it: `x != 0`")
        if c.type.rank:
            el.fail(node.span, f"a condition is one bool, got {type_text(c.type)}",
                    hint="`where(condition, a, b)` chooses for each element; `any` and `all` reduce")
        return c
    el.fail(node.span, f"a condition is a bool, got {describe(c)}",
            hint="compare it: `x != 0`" if is_weak(c) else "compare it: `x == none`" if c is None else None)


@expression(A.If)
def if_(el: Elaborator, node: A.If, scope: Scope) -> object:
    if el.notation:
        c = el.value(node.cond, scope)
        if isinstance(c, Value) and c.type.dtype.is_bool and c.type.rank:
            return choose(el, node, c, scope)
    c = condition(el, node.cond, scope)
    if isinstance(c, bool):
        chosen = node.then if c else node.orelse
        return el.eval(chosen, scope) if chosen is not None else UNIT
    frame = el.frame
    expected = frame.expected
    sides = []
    keys = frame.used_keys
    all_keys = dict(keys)
    for branch in (node.then, node.orelse):
        with frame.region() as r:
            frame.expected = expected
            frame.used_keys = dict(keys)                       # one branch runs: both may use a key
            yields, frame.yields = frame.yields, None
            try:
                value = el.eval(branch, scope) if branch is not None else UNIT
            finally:
                frame.yields = yields
        all_keys.update(frame.used_keys)
        sides.append((r, value))
    frame.expected = expected
    frame.used_keys = all_keys
    (r1, v1), (r2, v2) = sides
    if node.orelse is None:
        if v1 is not UNIT and not r1.changed:
            el.fail(node.span, "an `if` without `else` gives no value", hint="add `else { .. }`")
        v1 = v2 = UNIT
    elif (v1 is UNIT) != (v2 is UNIT):
        el.fail(*no_value(node.then if v1 is UNIT else node.orelse))
    v1, v2 = unify(el, (r1, v1, node.then), (r2, v2, node.orelse), node.span)
    spec, leaves1 = flatten(v1)
    _, leaves2 = flatten(v2)
    cells = list({**r1.changed, **r2.changed})
    extra: list[list[Value]] = [[], []]
    for c_ in cells:
        if isinstance(c_, Signal) and (c_ not in r1.changed or c_ not in r2.changed):
            el.fail(node.span, "a layer that a rule learns is called in one branch only", hint="call it before the `if`")
        for i, r in enumerate((r1, r2)):
            v = r.changed.get(c_)
            if v is None:
                v = frame.value_of(c_)
            extra[i].append(v if v is not None else frame.take_argument(c_, el.cell_type(c_, None, node.span), c_.name))
    r1.terminate(leaves1 + extra[0])
    r2.terminate(leaves2 + extra[1])
    op = el.b(node.span).op("scf.if", [c], {}, [r1.block, r2.block])
    for c_, v in zip(cells, op.results[len(leaves1):]):
        frame.write(c_, v)
    return unflatten(spec, op.results[:len(leaves1)])


def unify(el: Elaborator, first, second, span: Span) -> tuple[object, object]:
    """Values of two branches, made alike: weak numbers take the other side's type, tensors promote and broadcast."""
    (r1, a, n1), (r2, b, n2) = first, second
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        if len(a) != len(b):
            el.fail(span, f"the branches give {describe(a)} and {describe(b)}")
        pairs = [unify(el, (r1, x, n1), (r2, y, n2), span) for x, y in zip(a, b)]
        return type(a)(p[0] for p in pairs), type(a)(p[1] for p in pairs)
    if isinstance(a, Tree) and isinstance(b, Tree) and a.layer is b.layer:
        return a, b
    ta, tb = isinstance(a, Value), isinstance(b, Value)
    if (ta or is_weak(a)) and (tb or is_weak(b)):
        if not ta and not tb and type(a) is type(b) and a == b:
            return a, b
        dtype = common_dtype((a, b))
        try:
            shape = broadcast_shapes(*[v.type.shape for v in (a, b) if isinstance(v, Value)] or [()])
        except TypeMismatch as e:
            el.fail(span, f"the branches give {describe(a)} and {describe(b)}: {e}",
                    marks=[(n.span, describe(v)) for n, v in ((n1, a), (n2, b)) if n is not None])
        return to_type(el, r1, a, TensorType(dtype, shape), span), to_type(el, r2, b, TensorType(dtype, shape), span)
    if a is b or type(a) is type(b) and not ta and a == b:
        return a, b
    el.fail(span, f"the branches give {describe(a)} and {describe(b)}", hint="which one is known only when the program runs")


def open_cells(el: Elaborator, region) -> list[Cell]:
    """Cells written in a region, state before signals."""
    return [c for c in region.changed if not isinstance(c, Signal)]


def keys_in_loop(el: Elaborator, block: Block, before: dict[Value, Span]) -> None:
    """Warns of keys from outside that a loop's body uses: every step draws the same."""
    new = {k: s for k, s in el.frame.used_keys.items() if k not in before}
    if new:
        inside = {id(r) for op in block.walk() for r in op.results} | {id(a) for a in block.args}
        for op in block.walk():
            inside |= {id(a) for r in op.regions for a in r.args}
        for key, span in new.items():
            if id(key) not in inside:
                el.diags.warn(span, "this key is the same in every step: it gives the same random numbers again",
                              hint="`fold_in(key, t)` makes one for step t")


# ---- while ------------------------------------------------------------------------------------------------------------

@expression(A.While)
def while_(el: Elaborator, node: A.While, scope: Scope) -> object:
    carries = Carries(el, node.carries, scope)
    frame = el.frame
    if frame is None:
        return static_while(el, node, scope, carries)
    cells: list[Cell] = []
    keys = frame.used_keys
    counter: Cell | None = None                                # counts the steps where random keys depend on them
    for _ in range(8):
        errors = len(el.diags.errors)
        frame.used_keys = dict(keys)
        specs, leaves = carries.start(node.span)
        cell_values = [el.b(node.span).constant(0, INDEX) if c is counter else el.read(c, scope, node.span) for c in cells]
        types = [v.type for v in leaves]
        all_types = types + [v.type for v in cell_values]

        def enter(r, inner, types=types, specs=specs, cells=cells):
            args = r.block.args
            k = 0
            values = []
            for s in specs:
                n = count_leaves(s)
                values.append(unflatten(s, args[k:k + n]))
                k += n
            carries.bind(inner, values)
            for c, v in zip(cells, args[len(types):]):
                frame.cells[c] = v

        with frame.region(all_types) as test:
            inner = Scope(scope)
            enter(test, inner)
            c = condition(el, node.cond, inner)
            if isinstance(c, bool):
                if c:
                    el.fail(node.cond.span, "this loop never ends: its condition is always true")
                c = as_tensor(el.b(node.cond.span), c)
        if test.changed:
            changed = [x for x in test.changed if x not in cells]
            if changed:
                el.fail(node.cond.span, f"a condition cannot write state (`{changed[0].name}`)")
        test.terminate([c])
        yields, frame.yields = frame.yields, None
        steps, draws = frame.key_steps, frame.sites
        with frame.region(all_types) as body:
            inner = Scope(scope)
            enter(body, inner)
            if counter is not None:
                frame.key_steps = [*steps, frame.cells[counter]]
            try:
                value = el.run_block(node.body.stmts, inner)
                if counter is not None:
                    b = el.b(node.span)
                    frame.write(counter, b.add(frame.cells[counter], b.constant(1, INDEX)))
            finally:
                frame.yields, frame.key_steps = yields, steps
        if frame.sites > draws and counter is None:
            counter = Cell("step", INDEX, "counter")
            cells = [*cells, counter]
            continue
        if any(isinstance(x, Signal) for x in body.changed):
            el.fail(node.span, "a layer that a rule learns cannot be called in a `while`", hint="`scan` keeps its signals, stacked over time")
        written = [x for x in open_cells(el, body) if x not in cells]
        nexts = carries.next(value, node.body, specs, types, body)
        if written or nexts is None:
            if len(el.diags.errors) > errors:
                raise Poisoned
            cells = cells + written
            continue
        if not leaves and not cells:
            el.fail(node.span, "this loop changes nothing, so it never ends once it runs",
                    hint="`while condition with x = x0 { .. }` carries a value from turn to turn")
        body.terminate(nexts + [body.changed.get(c, a) for c, a in zip(cells, body.block.args[len(types):])])
        keys_in_loop(el, body.block, keys)
        op = el.b(node.span).op("scf.while", leaves + cell_values, {}, [test.block, body.block])
        for c, v in zip(cells, op.results[len(types):]):
            if c is not counter:
                frame.write(c, v)
        frame.effects += 1 if not node.carries else 0
        return carries.result(parts_of(specs, op.results)) if node.carries else UNIT
    el.fail(node.span, "the types of this loop's values do not settle")


def static_while(el: Elaborator, node: A.While, scope: Scope, carries: Carries) -> object:
    values = carries.values
    for _ in range(MAX_UNROLL):
        inner = Scope(scope)
        carries.bind(inner, values)
        c = condition(el, node.cond, inner)
        if not c:
            return carries.result(values) if values else UNIT
        value = el.run_block(node.body.stmts, inner)
        values = [value] if len(values) == 1 else list(value) if isinstance(value, tuple | list) else el.fail(*no_value(node.body))
    el.fail(node.span, f"this loop runs more than {MAX_UNROLL} times when compiling")


# ---- scan -------------------------------------------------------------------------------------------------------------

@statement(A.Yield)
def yield_(el: Elaborator, s: A.Yield, scope: Scope) -> object:
    frame = el.frame
    if frame is None or frame.yields is None:
        el.fail(s.span, "`yield` belongs in the body of a `scan`, not in an `if`, a function or another loop inside it")
    frame.yields.append((el.value(s.value, scope), s.value.span))
    return UNIT


def static_items(el: Elaborator, v: object, span: Span) -> list:
    """The elements of something that can be unrolled."""
    if isinstance(v, list | tuple):
        return list(v)
    if isinstance(v, RangeValue) and v.is_static:
        if not (isinstance(v.start, int) and isinstance(v.stop, int)):
            raise Undecidable
        if v.stop - v.start > MAX_UNROLL:
            el.fail(span, f"this range is too long to unroll ({v.stop - v.start})")
        return list(range(v.start, v.stop))
    if isinstance(v, Reversed):
        return static_items(el, v.of, span)[::-1]
    if isinstance(v, Value) and v.type.rank and isinstance(v.type.shape[0], int) and v.type.shape[0] <= MAX_UNROLL:
        from .indexing import static_part
        return [static_part(el, v, 0, i, span) for i in range(v.type.shape[0])]
    el.fail(span, f"cannot go through {describe(v)}", hint="lists, tuples and ranges `a..b` known when compiling can be unrolled")


@expression(A.Scan)
def scan(el: Elaborator, node: A.Scan, scope: Scope) -> object:
    over = el.value(node.iterable, scope)
    reverse = False
    items = over
    while isinstance(items, Reversed):
        reverse, items = not reverse, items.of
    if isinstance(items, list | tuple) and not (items and isinstance(items, tuple) and all(isinstance(x, Value) for x in items)
                                                and not isinstance(node.pattern, A.NamePattern)):
        return unrolled(el, node, list(items)[::-1] if reverse else list(items), scope)
    return loop(el, node, items, reverse, scope)


def unrolled(el: Elaborator, node: A.Scan, items: list, scope: Scope) -> object:
    """A scan over a list: the body once for each element."""
    carries = Carries(el, node.carries, scope)
    values = carries.values
    frame = el.frame
    ys: list[list] = []
    for x in items:
        inner = Scope(scope)
        bind_pattern(el, node.pattern, x, inner, node.iterable.span)
        carries.bind(inner, values)
        outer = None
        if frame is not None:
            outer, frame.yields = frame.yields, []
        try:
            value = el.run_block(node.body.stmts, inner)
            if frame is not None:
                ys.append(frame.yields)
        finally:
            if frame is not None:
                frame.yields = outer
        if carries.nodes:
            if value is UNIT:
                el.fail(*no_value(node.body))
            values = [value] if len(carries.nodes) == 1 else list(value) if isinstance(value, tuple | list) else []
            if len(values) != len(carries.nodes):
                el.fail(node.body.span, f"the body gives {describe(value)}, but the loop carries {len(carries.nodes)} values")
    stacked = None
    if any(ys):
        stacked = stack_yields(el, node, ys)
    return outcome(el, node, stacked, values)


def stack_yields(el: Elaborator, node: A.Scan, ys: list[list]) -> object:
    for y in ys:
        _one_yield(el, y)
    if any(not y for y in ys):
        el.fail(node.span, "every step has to yield")
    rows = []
    spec = None
    for y in ys:
        v, span = y[0]
        b = el.b(span)
        v = _to_tensors(el, v, span)
        s, leaves = flatten(v)
        if spec is None:
            spec = s
        elif len(leaves) != len(rows[0]) or any(p.type != q.type for p, q in zip(leaves, rows[0])):
            el.fail(span, f"the steps yield different types: {describe(unflatten(spec, rows[0]))} and {describe(v)}")
        rows.append(leaves)
    out = []
    for column in zip(*rows):
        parts = [b.reshape(v, (1, *v.type.shape)) for v in column]
        out.append(b.op("tensor.concat", parts, {"dim": 0}).result)
    return unflatten(spec, out)


def _one_yield(el: Elaborator, ys: list) -> None:
    if len(ys) > 1:
        el.fail(ys[1][1], "a step yields once", hint="yield a tuple: `yield (a, b)`", notes=[(ys[0][1], "first here")])


def _to_tensors(el: Elaborator, v: object, span: Span) -> object:
    if isinstance(v, tuple | list):
        return type(v)(_to_tensors(el, x, span) for x in v)
    if is_weak(v):
        return as_tensor(el.b(span), v)
    if not isinstance(v, Value | Tree):
        el.fail(span, f"cannot yield {describe(v)}: only tensors can be stacked")
    return v


def outcome(el: Elaborator, node: A.Scan, ys: object | None, values: list[object]) -> object:
    """Stacked yields; without them the last carry; with `final`, both."""
    finals = [v for c, v in zip(node.carries, values) if c.final]
    if ys is None:
        if not node.carries:
            return UNIT
        return values[0] if len(values) == 1 else tuple(values)
    if finals:
        return (ys, finals[0] if len(finals) == 1 else tuple(finals))
    return ys


def loop(el: Elaborator, node: A.Scan, items: object, reverse: bool, scope: Scope) -> object:
    """A scan over a range or tensors: scf.scan."""
    span = node.iterable.span
    frame = el.frame
    xs_spec: tuple | None = None
    xs: list[Value] = []
    start: object = 0
    if isinstance(items, RangeValue):
        if not items.is_static:
            return run_time_range(el, node, items, reverse, scope)
        start, length = items.start, items.stop - items.start
        if isinstance(length, int) and length < 0:
            length = 0
        if frame is None:
            return unrolled(el, node, static_items(el, Reversed(items) if reverse else items, span), scope)
    elif isinstance(items, Value | tuple | Tree):
        xs_spec, xs = flatten(items)
        if not xs or any(v.type.rank == 0 for v in xs):
            el.fail(span, f"cannot go through {describe(items)}: it has no dimension to go along")
        length = xs[0].type.shape[0]
        for v in xs[1:]:
            if v.type.shape[0] != length:
                el.fail(span, f"the tensors differ in their first dimension: {length} and {v.type.shape[0]}")
    else:
        el.fail(span, f"cannot go through {describe(items)}", hint="`scan` goes through ranges `a..b`, tensors and lists")
    b = el.b(node.span)
    carries = Carries(el, node.carries, scope)
    cells: list[Cell] = []
    keys = frame.used_keys
    for _ in range(8):
        errors = len(el.diags.errors)
        frame.used_keys = dict(keys)
        specs, leaves = carries.start(node.span)
        cell_values = [el.read(c, scope, node.span) for c in cells]
        types = [v.type for v in leaves]
        carried = leaves + cell_values
        arg_types = [INDEX, *[v.type for v in carried], *[v.type.with_shape(v.type.shape[1:]) for v in xs]]
        outer_yields, frame.yields = frame.yields, []
        steps = frame.key_steps
        with frame.region(arg_types) as body:
            args = body.block.args
            inner = Scope(scope)
            index = args[0]
            frame.key_steps = [*steps, index]
            for c, v in zip(cells, args[1 + len(types):]):
                frame.cells[c] = v
            if xs_spec is None:
                at: object = index
                if start != 0:
                    bb = el.b(span)
                    at = bb.add(index, bb.constant(start if isinstance(start, int) else 1, INDEX))
            else:
                at = unflatten(xs_spec, args[1 + len(carried):])
            bind_pattern(el, node.pattern, at, inner, span)
            carries.bind(inner, parts_of(specs, args[1:1 + len(types)]))
            try:
                value = el.run_block(node.body.stmts, inner)
                ys = frame.yields
                _one_yield(el, ys)
                y = _to_tensors(el, *ys[0]) if ys else None
            finally:
                frame.yields, frame.key_steps = outer_yields, steps
        written = [x for x in open_cells(el, body) if x not in cells]
        nexts = carries.next(value, node.body, specs, types, body)
        if written or nexts is None:
            if len(el.diags.errors) > errors:
                raise Poisoned
            cells = cells + written
            continue
        y_spec, y_leaves = flatten(y) if ys else (None, [])
        signals = [x for x in body.changed if isinstance(x, Signal)]
        stacked = y_leaves + [body.changed[x] for x in signals]
        body.terminate(nexts + [body.changed.get(c, a) for c, a in zip(cells, args[1 + len(types):])] + stacked)
        keys_in_loop(el, body.block, keys)
        try:
            op = el.b(node.span).op("scf.scan", carried + xs, {"length": length, "n_carry": len(carried), "reverse": reverse}, [body.block])
        except TypeMismatch as e:
            el.fail(node.span, str(e))
        n = len(carried)
        for c, v in zip(cells, op.results[len(types):n]):
            frame.write(c, v)
        outs = list(op.results[n:])
        if reverse:                                            # yields are stacked in the order they were made
            b = el.b(node.span)
            outs[:len(y_leaves)] = [b.op("tensor.reverse", [v], {"dims": [0]}).result for v in outs[:len(y_leaves)]]
        for c, v in zip(signals, outs[len(y_leaves):]):
            if c in frame.cells:
                from .calls import twice
                twice(el, c, node.span)
            frame.write(c, v)
        ys_value = unflatten(y_spec, outs[:len(y_leaves)]) if ys else None
        if ys_value is None and not node.carries:
            frame.effects += 1
        return outcome(el, node, ys_value, parts_of(specs, op.results[:len(types)]))
    el.fail(node.span, "the types of this loop's values do not settle")


def run_time_range(el: Elaborator, node: A.Scan, items: RangeValue, reverse: bool, scope: Scope) -> object:
    """A scan whose bounds are known only when running, written as the `while` that it is; so it cannot yield."""
    for n in node.body.stmts:
        if isinstance(n, A.Yield):
            el.fail(node.iterable.span, "the length of a `scan` that yields has to be known when compiling",
                    notes=[(n.span, "its yields would be stacked")])
    span = node.iterable.span
    b = el.b(span)
    start, stop = (as_tensor(b, v) for v in (items.start, items.stop))
    inner = Scope(scope, {"$start": b.sub(stop, 1) if reverse else start, "$stop": start if reverse else stop})

    def name(text: str) -> A.Name:
        return A.Name(span, text)

    def number(k: int) -> A.Int:
        return A.Int(span, k)

    parts = [f"${k}" for k in range(len(node.carries))]
    test = A.Compare(span, [name("$i"), name("$stop")], [">=" if reverse else "<"], [span])
    step = A.Binary(span, "-" if reverse else "+", name("$i"), number(1), span)
    body: list[A.Node] = [A.Let(span, node.pattern, None, name("$i"))]
    if len(parts) == 1:
        body.append(A.Let(node.body.span, A.NamePattern(span, parts[0]), None, node.body))
    elif parts:
        body.append(A.Let(node.body.span, A.TuplePattern(span, [A.NamePattern(span, p) for p in parts]), None, node.body))
    else:
        body += node.body.stmts
    value = A.Tuple(span, [step, *map(name, parts)]) if parts else step
    block = A.Block(node.body.span, [*body, A.ExprStmt(span, value)])
    index = A.Carry(span, A.NamePattern(span, "$i"), name("$start"), False)
    out = while_(el, A.While(node.span, test, [index, *node.carries], block), inner)
    el.frame.effects += 0 if parts else 1
    return UNIT if not parts else out[1] if len(parts) == 1 else out[1:]


__all__ = ["condition", "static_items", "Block", "Dim", "CompileError", "LayerInstance"]
