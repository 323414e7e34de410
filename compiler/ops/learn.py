"""Rows by which learning is written in the IR: gradients of values, and local rules. The passes `grad` and `plasticity` remove them.

What `plasticity` needs from the front end, precisely:

1. learn.update stands in a *step function* (at its top level or in a region): a function with the attribute `arg_roles`, one text
   per argument: `param:PATH`, `state:PATH`, `own:PATH` (a rule's state: layer path, then what names it), `data:NAME`, `step`, `epoch`, `key`.
   Its first results are the new values of its param, state and own arguments, in the order of the arguments (this is how state is
   followed from step to step). `arg_locs` (optional): where each is declared, texts "file:line:col" or "".
2. The call of a layer's forward function carries `instance`: the instance's path *relative to the instance in whose forward function
   the call stands*; in the step function, and in plain functions called from it, that is the path as in arg_roles. The path of a call
   within calls is the join of all with "."; "" joins to nothing (a model whose parameters are just `hidden.w` is called with
   instance = ""). A forward function takes the layer's parameters and state as values, and may return signals behind its other results;
   the call then names them in `signals`: the last len(signals) results. A function that hands a sub-layer's signal on does so by
   returning it, whatever the name.
3. Roles of a learn.update's operands, each checked: `signal:pre` is (by identity, through returns, arguments, scan's stacking) an
   operand of a call whose path is `layer`; `signal:out` its result 0, `signal:NAME` another one. `param:PATH` and `own:PATH` are the step's
   argument of that role, or a result of an earlier learn.update of the same layer that writes this role. `given:NAME`, `arg:NAME`,
   `capture:NAME` and `key` may be any value and are followed by data dependence.
4. The rule's function takes the operands in order and returns the values of `writes` in order. It is closed: it sees nothing else.
   A rule with a local loss holds learn.local_gradient; then `forward` = {callee, args, results} describes the layer's forward function:
   args[i] is the index of the rule's argument (= operand of the learn.update) that is argument i of @callee; results[j] the index of the
   rule's argument that holds its result j, or -1. plasticity calls @callee in the rule with these, uses its results in the
   arguments' place, and differentiates. `pre` and all else that is no variable is thereby constant.

    func @dense(%w: f32[4,3], %x: f32[2,4]) -> (f32[2,3]) {...}
    func @hebb(%pre: f32[2,4], %out: f32[2,3], %w: f32[4,3]) -> (f32[4,3]) {...}
    func @step(%w: f32[4,3], %v: f32[3,3], %x: f32[2,4]) -> (f32[4,3], f32[3,3]) attributes {arg_roles = ["param:hidden.w", "param:out.w", "data:x"]} {
      %h = func.call(%w, %x) {callee = "dense", instance = "hidden", result_types = [f32[2,3]]} : f32[2,3]
      %w1 = learn.update(%x, %h, %w) {rule = "hebb", rule_name = "hebb", layer = "hidden", nonlocal = false,
                                      roles = ["signal:pre", "signal:out", "param:hidden.w"], writes = [2]} : f32[4,3]
      func.return(%w1, %v)
    }
    func @pred(%out: f32[2,3], %y: i32[2], %w: f32[4,3], %m: f32[3,3], %pre: f32[2,4]) -> (f32[4,3], f32[3,3]) {
      ...loss of %out, %m, %y...
      %dw, %dm = learn.local_gradient(%loss, %w, %m) : f32[4,3], f32[3,3]
      ...
    }   // used with roles = ["signal:out", "given:label", "param:hidden.w", "own:hidden.pred.m", "signal:pre"], writes = [2, 3],
        //           forward = {callee = "dense", args = [2, 4], results = [0]}
"""
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


def _vmap(types, attrs, regions):
    dims, size = attrs["in_dims"], attrs["size"]
    need(len(dims) == len(types), f"{len(dims)} in_dims for {len(types)} operands")
    for i, (d, t) in enumerate(zip(dims, types)):
        need(d == -1 or (0 <= d < tensor(t, i).rank and t.shape[d] == size), f"cannot map over dim {d} of {t} in {size} steps", i)
    need(len(attrs["out_dims"]) == len(attrs["result_types"]), "one entry of out_dims per result")
    for d, t in zip(attrs["out_dims"], attrs["result_types"]):
        need(0 <= d < t.rank and t.shape[d] == size, f"a result {t} cannot hold {size} values along dim {d}")
    return list(attrs["result_types"])


row("autodiff.vmap", "@callee for every index along in_dims of the operands (-1: the same for all), results stacked along out_dims. "
    "`result_types` are those with the new dim. The pass `grad` expands it, callees first, into a function that works on all at once.",
    "*xs", _vmap, "the pass grad expands it first",
    attrs={"callee": "function", "in_dims": "dim or -1 per operand", "out_dims": "dim per result", "size": "int", "result_types": "types"}, stages=FRONT,
    example='%y = autodiff.vmap(%w, %x) {callee = "f", in_dims = [-1, 0], out_dims = [0], size = 8, result_types = [f32[8,3]]} : f32[8,3]')


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
    stages=FRONT, example='%w2 = learn.update(%pre, %out, %w) {rule = "hebb", rule_name = "hebb", layer = "hidden", nonlocal = false, roles = ["signal:pre", "signal:out", "param:hidden.w"], writes = [2]} : f32[64,128]')


def _local(types, attrs, regions):
    need(len(types) >= 1 and tensor(types[0]).rank == 0, f"expected a scalar local loss, got {types[0]}", 0)
    return list(types[1:])


row("learn.local_gradient", "Inside a rule's function: the derivative of a local loss with respect to the layer's own parameters and the rule's own state, "
    "through the layer's forward function only, its input held constant. `plasticity` derives it.", "loss *variables", _local,
    "a rule's update is not differentiated", stages=FRONT, example="%dw = learn.local_gradient(%loss, %w) : f32[64,10]")
