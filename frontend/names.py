"""Unknown names, found without elaborating anything: in functions that no call has specialised yet, and all those of one expression.

Coarse on purpose: a name that is bound anywhere in a function or layer counts as known in all of it, and rules, train and run blocks are
left to elaboration, which knows what they are given. So a name that is reported here is unknown whatever the arguments are.
"""
from __future__ import annotations

from collections.abc import Iterator

from ..compiler.diagnostics import Diagnostic
from . import ast as A
from .program import Program, not_found
from .values import MISSING, Scope


def unknown_names(program: Program) -> list[Diagnostic]:
    """An error for every unknown name in the functions and layers of the program's main file, in order."""
    out: list[Diagnostic] = []
    for item in program.main.tree.items:
        if isinstance(item, A.FnDef | A.Layer):
            known = Scope(program.scope, dict.fromkeys(_bound(item)))
            out += [d for n in _used(item) if not _has(known, n.id) for d in not_found(n.id, n.span, known).diagnostics]
    return out


def _has(scope: Scope | None, name: str) -> bool:
    """Whether the name is bound; its value is not computed."""
    while scope is not None:
        if scope.names.get(name, MISSING) is not MISSING:
            return True
        scope = scope.parent
    return False


def _bound(item: A.Node) -> Iterator[str]:
    for n in A.walk(item):
        if isinstance(n, A.Param | A.ParamDecl | A.SubLayer | A.StateDecl | A.IndexIn):
            yield n.name
        elif isinstance(n, A.FnDef | A.NamePattern | A.Pack):
            if n.name is not None:
                yield n.name
        elif isinstance(n, A.Assign) and isinstance(n.target, A.Name):
            yield n.target.id
        elif isinstance(n, A.Call) and isinstance(n.func, A.Index):                      # `sum[k, i if i < k](..)`: index notation
            indices = (i.index if isinstance(i, A.Guarded) else i for i in n.func.subscripts)
            yield from (i.id for i in indices if isinstance(i, A.Name))
        elif isinstance(n, A.TensorType):                      # the names of its sizes
            yield from (d.id for top in n.dims or [] for d in A.walk(top) if isinstance(d, A.Name))


def _used(item: A.Node) -> Iterator[A.Name]:
    """In source order. Not what a checkpoint's names speak of: paths of the layer, of which `names` itself takes care."""
    stack = [item]
    while stack:
        n = stack.pop()
        if isinstance(n, A.Names):
            continue
        if isinstance(n, A.Name):
            yield n
        stack.extend(reversed(list(A.children(n))))
