"""Rows by which learning is written in the IR: gradients of values, and local rules. The passes `grad` and `plasticity` remove them."""
from __future__ import annotations

from .common import FRONT, need, row, tensor

SELF = "the pass grad expands it first"


def _gradient(types, attrs, regions):
    k, m = attrs["n_y"], attrs["n_x"]
    need(len(types) == 2 * k + m, f"expected {k} values, {k} cotangents and {m} variables, got {len(types)} operands")
    for i in range(k):
        need(types[i] == types[k + i], f"cotangent {types[k + i]} for a value of type {types[i]}", k + i)
    for i, t in enumerate(types[2 * k:], 2 * k):
        need(tensor(t, i).dtype.is_float, f"cannot differentiate with respect to {t}: not a float", i)
    return types[2 * k:]


row("autodiff.gradient", "Vector-Jacobian product inside one block: cotangents of the y's in, adjoints of the x's out (zeros where y does not "
    "depend on x). Operands: n_y values, n_y cotangents, n_x variables. Each x is a block argument or an earlier result; every path "
    "from x to y inside the block counts.", "*operands", _gradient, SELF, attrs={"n_y": "int", "n_x": "int"}, stages=FRONT,
    example="%dw = autodiff.gradient(%loss, %one, %w) {n_y = 1, n_x = 1} : f32[64,10]")
row("autodiff.watch", "x itself, as a fresh value to differentiate with respect to.", "x", lambda t, a, r: [t[0]], lambda b, op, dys: [dys[0]],
    example="%v = autodiff.watch(%x) : f32[3]")


def _custom(types, attrs, regions):
    return list(attrs["result_types"])


row("autodiff.custom", "A function with a derivative of its own: the results of @forward(xs); backwards, the adjoints of the float xs are "
    "@backward(xs..., results..., cotangents...), one per x.", "*xs", _custom, "the pass grad calls `backward`",
    attrs={"forward": "function", "backward": "function", "result_types": "types"}, stages=FRONT,
    example='%y = autodiff.custom(%x) {forward = "f", backward = "g", result_types = [f32[3]]} : f32[3]')


def _update(types, attrs, regions):
    roles, writes = attrs["roles"], attrs["writes"]
    need(len(roles) == len(types), f"{len(roles)} roles for {len(types)} operands")
    for w in writes:
        need(roles[w].split(":")[0] in ("param", "own"), f"operand {w} ({roles[w]}) cannot be written by a rule", w)
    return [types[w] for w in writes]


row("learn.update", "One application of a learning rule to one layer instance; results are the new values of operands `writes`. "
    "`rule` is the function @rule(operands...) -> new values. roles, one per operand: `signal:NAME` (pre, out or a let of the layer's forward "
    "function), `param:PATH` and `own:PATH` (the layer's parameters, the rule's state), `given:NAME` (broadcast signals), `arg:NAME` (rule arguments), "
    "`capture:NAME` (values of enclosing scopes), `key`. `layer`: the instance's path. `rule_name`, `nonlocal`: for messages and the exception. "
    "`forward`: the layer's forward function (for rules with a local loss: learn.local_gradient).",
    "*operands", _update, "a rule's update is not differentiated",
    attrs={"rule": "function", "layer": "path", "roles": "texts", "writes": "operand indices", "rule_name": "text", "nonlocal": "bool",
           "forward": "call description, optional"},
    stages=FRONT, example='%w2 = learn.update(%pre, %out, %w) {rule = "hebb", layer = "hidden", roles = ["signal:pre", "signal:out", "param:hidden.w"], writes = [2]} : f32[64,128]')


def _local(types, attrs, regions):
    need(len(types) >= 1 and tensor(types[0]).rank == 0, f"expected a scalar local loss, got {types[0]}", 0)
    return list(types[1:])


row("learn.local_gradient", "Inside a rule's function: the derivative of a local loss with respect to the layer's own parameters and the rule's own state, "
    "through the layer's forward function only, its input held constant. `plasticity` derives it.", "loss *variables", _local,
    "a rule's update is not differentiated", stages=FRONT, example="%dw = learn.local_gradient(%loss, %w) : f32[64,10]")
