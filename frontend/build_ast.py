"""What each rule of the grammar becomes: one callback per rule, from children to a node of ast.py.

A callback takes the span of the rule's text and its children: tokens (`Tok`, punctuation and keywords included), nodes,
and `Group`s (what list-like rules such as `args` gave).  Optional parts are simply absent.
"""
from __future__ import annotations

from ..compiler.diagnostics import Span
from . import ast as A
from .build_expressions import CALLBACKS, Group, after, body, bound_name, group, nodes, pattern, rule, string
from .lalr import Tok

# ---- the file and its items --------------------------------------------------------------------------------------

@rule
def on_start(s: Span, c: list):
    return A.Module(s, s.file, nodes(c))


@rule
def on_import_(s, c):
    return A.Import(s, string(c[1]), c[3].text if len(c) > 2 else None, c[1].span)


@rule
def on_fn_def(s, c):
    return A.FnDef(s, bound_name(c[1]), group(c, "params"), after(c, "->"), c[-1], c[1].span)


@rule
def on_forward(s, c):
    return A.FnDef(s, None, group(c, "params"), after(c, "->"), c[-1], c[0].span)


@rule
def on_layer(s, c):
    return A.Layer(s, bound_name(c[1]), group(c, "params"), c[-1].items, c[1].span)


@rule
def on_rule(s, c):
    at = 1 if c[0].type == "NONLOCAL" else 0
    sees = after(c, "sees")
    given = after(c, "given")
    return A.Rule(s, c[at + 1].text, group(c, "params"), sees.items if sees else [], given.items if given else [],
                  body(c), at == 1, c[at + 1].span)


@rule
def on_train(s, c):
    return A.Train(s, c[1].text, c[-1].items, c[1].span)


@rule
def on_run(s, c):
    return A.Run(s, c[1].text, c[-1].items, c[1].span)


# ---- inside layers, rules and train blocks -----------------------------------------------------------------------

def _block_group(s, c):
    return Group(s, nodes(c), "block")


CALLBACKS["layer_block"] = CALLBACKS["train_block"] = CALLBACKS["run_block"] = _block_group


@rule
def on_param_decl(s, c):
    return A.ParamDecl(s, c[1].text, c[3], c[5] if len(c) > 4 else None, c[1].span)


@rule
def on_sublayer(s, c):
    return A.SubLayer(s, c[0].text, c[2], c[0].span)


@rule
def on_state(s, c):
    return A.StateDecl(s, c[0].text, c[1].text, c[3], c[5] if len(c) > 4 else None, c[1].span)


CALLBACKS["cache"] = CALLBACKS["own"] = on_state


@rule
def on_names(s, c):
    return A.Names(s, nodes(c))


@rule
def on_key(s, c):
    return A.NameKey(s, c[0], [string(x) for x in c[2:] if x.type == "STRING"])


@rule
def on_layer_if(s, c):
    orelse = None
    if len(c) > 3:
        orelse = c[4].items if type(c[4]) is Group else [c[4]]
    return A.LayerIf(s, c[1], c[2].items, orelse)


@rule
def on_signals(s, c):
    return Group(s, nodes(c), "signals")


@rule
def on_signal(s, c):
    return A.Signal(s, tuple(c[0].items), c[2] if len(c) > 1 else None)


@rule
def on_phase(s, c):
    return A.Phase(s, c[1].text, c[2].items, c[1].span)


@rule
def on_until(s, c):
    return A.Until(s, c[1])


# ---- statements --------------------------------------------------------------------------------------------------

@rule
def on_block(s, c):
    return A.Block(s, nodes(c))


@rule
def on_let(s, c):
    return A.Let(s, c[1], after(c, ":"), c[-1])


@rule
def on_assign(s, c):
    return A.Assign(s, c[0], c[1].text, c[2], c[1].span)


@rule
def on_yield_(s, c):
    return A.Yield(s, c[1])


@rule
def on_assert_(s, c):
    return A.Assert(s, c[1], string(c[3]) if len(c) > 2 else None)


@rule
def on_learn(s, c):
    return A.Learn(s, c[1], c[3], group(c, "args"))


@rule
def on_minimize(s, c):
    return A.Minimize(s, c[1], nodes(c[2:]))


@rule
def on_objective(s, c):
    return A.Objective(s, c[1] if len(c) > 2 else None, c[-1])


@rule
def on_measure(s, c):
    return A.Measure(s, c[1].text if len(c) > 2 else None, c[-1])


@rule
def on_expr_stmt(s, c):
    return A.ExprStmt(s, c[0])


# ---- patterns, parameters, types ---------------------------------------------------------------------------------

def _patterns(c: list) -> list[A.Pattern]:
    return [pattern(x) for x in c if type(x) is not Tok or x.type == "NAME"]


@rule
def on_patterns(s, c):
    items = _patterns(c)
    return items[0] if len(items) == 1 else A.TuplePattern(s, items)


@rule
def on_pattern_tuple(s, c):
    items = _patterns(c)
    one = len(items) == 1 and len(c) == 3                    # `(a)` is a, `(a,)` a tuple of one
    return items[0] if one else A.TuplePattern(s, items)


@rule
def on_params(s, c):
    return Group(s, nodes(c), "params")


@rule
def on_param(s, c):
    return A.Param(s, bound_name(c[0]), after(c, ":"), after(c, "="))


@rule
def on_tensor_type(s, c):
    args = dims = None
    for x in c[1:]:
        if type(x) is Tok:
            if x.type == "LPAR":
                args = []
            elif x.type == "LSQB":
                dims = []
        elif x.kind == "args":
            args = x.items
        else:
            dims = x.items
    return A.TensorType(s, ".".join(c[0].items), args, dims)


@rule
def on_fn_type(s, c):
    return A.FnType(s, group(c, "types"), after(c, "->"))


@rule
def on_tuple_type(s, c):
    return A.TupleType(s, c[1].items)


@rule
def on_types(s, c):
    return Group(s, nodes(c), "types")


@rule
def on_dims(s, c):
    return Group(s, nodes(c), "dims")


@rule
def on_dotted(s, c):
    return Group(s, [x.text for x in c if x.type == "NAME"], "dotted")


@rule
def on_pack(s, c):
    return A.Pack(s, c[1].text if len(c) > 1 else None)
