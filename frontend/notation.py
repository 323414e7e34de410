"""Index notation, `tensor[i, j](sum[r](a[i, r] * b[r, j]))`: recognised, not elaborated yet."""
from __future__ import annotations

from . import ast as A
from .values import MISSING, Builtin, Scope

HEADS = {"tensor", "sum", "max", "min", "prod", "mean", "any", "all"}


def is_notation(node: A.Index, scope: Scope) -> bool:
    """Whether `name[..]` opens index notation: the name is a reduction or `tensor`, not a value of the program."""
    if not isinstance(node.value, A.Name) or node.value.id not in HEADS:
        return False
    v = scope.lookup(node.value.id)
    return v is MISSING or isinstance(v, Builtin)


def notation(el, node: A.Index, scope: Scope) -> object:
    el.fail(node.span, "index notation is not supported yet", hint="`einsum`, broadcasting and `scan` cover most of it")
