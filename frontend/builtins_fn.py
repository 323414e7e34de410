"""Operations on functions and trees: derivatives, vmap, tree_map."""
from __future__ import annotations

from ..compiler.ir import Value
from .builtins import builtin
from .derivatives import Checkpoint, Custom, Grad, jvp, vjp
from .tensors import as_tensor, is_weak
from .trees import flatten, unflatten
from .values import LayerInstance, Tree, describe, is_callable


def _function(cx, f, arg: str = "f"):
    if not is_callable(f):
        cx.fail(f"`{cx.name}` needs a function, got {describe(f)}", arg,
                hint=f"`{cx.name}(f)(x)` differentiates the function, then calls it" if isinstance(f, Value) else None)
    return f


def _wrt(cx, wrt):
    if wrt is None or isinstance(wrt, str):
        return wrt
    if isinstance(wrt, list | tuple) and wrt and all(isinstance(w, str) for w in wrt):
        return list(wrt)
    cx.fail(f"`wrt` is a parameter's name or a list of names, got {describe(wrt)}", "wrt")


@builtin()
def grad(cx, f, wrt=None):
    """The gradient of a scalar function with respect to its first parameter, or to those that `wrt` names."""
    return Grad(_function(cx, f), _wrt(cx, wrt), False)


@builtin()
def value_and_grad(cx, f, wrt=None):
    """(value, gradient)."""
    return Grad(_function(cx, f), _wrt(cx, wrt), True)


@builtin("vjp")
def vjp_(cx, f, *xs):
    """(f(xs), a function from cotangents to adjoints)."""
    if not xs:
        cx.fail("`vjp(f, x)` needs the point to differentiate at")
    return vjp(cx.el, _function(cx, f), list(xs), cx.span)


@builtin("jvp")
def jvp_(cx, f, x, v):
    """(f(x), the derivative of f at x along v)."""
    xs = list(x) if isinstance(x, tuple | list) else [x]
    vs = list(v) if isinstance(v, tuple | list) and isinstance(x, tuple | list) else [v]
    return jvp(cx.el, _function(cx, f), xs, vs, cx.span)


@builtin()
def custom_grad(cx, forward, backward):
    """A function with a derivative of its own: backward(inputs ..., output, gradient) -> gradient(s)."""
    return Custom(_function(cx, forward, "forward"), _function(cx, backward, "backward"))


@builtin()
def checkpoint(cx, f):
    """f, whose intermediate values are computed again for the derivative instead of being kept: memory for time."""
    return Checkpoint(_function(cx, f))


@builtin("stop_gradient", "detach")
def stop_gradient(cx, x):
    """x; nothing is differentiated through it."""
    if is_weak(x):
        return x
    if isinstance(x, LayerInstance):
        x = tree_value(cx, x)
    spec, leaves = flatten(x)
    if not leaves:
        cx.fail(f"`stop_gradient` needs tensors, got {describe(x)}", "x")
    return unflatten(spec, [cx.op("tensor.stop_gradient", [v]) for v in leaves])


@builtin()
def vmap(cx, f, in_dims=0, out_dims=0):
    """f for every index along a dim of its arguments (`in_dims`: 0 for all, or one per argument, none for those not mapped)."""
    from .vectorize import Vmap
    return Vmap(_function(cx, f), in_dims, out_dims)


# ---- trees ------------------------------------------------------------------------------------------------------------

def tree_value(cx, v):
    """A layer as the tree of its parameters' current values; other values as they are."""
    if isinstance(v, LayerInstance):
        return Tree(v, {s: cx.el.read(s, None, cx.span) for _, s in v.params})
    if isinstance(v, list | tuple):
        return type(v)(tree_value(cx, x) for x in v)
    return v


@builtin()
def tree_map(cx, f, *trees):
    """f of the corresponding tensors of trees (layers, gradients, tuples), in the structure of the first."""
    _function(cx, f)
    if not trees:
        cx.fail("`tree_map` needs a tree")
    values = [tree_value(cx, t) for t in trees]
    parts = [flatten(v) for v in values]
    spec, first = parts[0]
    for (_, leaves), t in zip(parts[1:], trees[1:]):
        if len(leaves) != len(first):
            cx.fail(f"the trees differ: {describe(trees[0])} has {len(first)} tensors, {describe(t)} has {len(leaves)}")
    out = []
    for xs in zip(*[leaves for _, leaves in parts]):
        y = cx.call(f, *xs)
        if is_weak(y):
            y = as_tensor(cx.b, y, xs[0].type.dtype)
        if not isinstance(y, Value):
            cx.fail(f"the function of `tree_map` gives {describe(y)}, expected a tensor", "f")
        out.append(y)
    return unflatten(spec, out)


@builtin()
def tree_leaves(cx, tree):
    """The tensors of a tree as a list."""
    return list(flatten(tree_value(cx, tree))[1])
