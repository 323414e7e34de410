"""Values of command-line options: `--set key=value`, `--dims B=32`, and what the pass manager is told to show."""
from __future__ import annotations

import sys
from typing import Any

from .errors import UserError


def settings(items: list[str]) -> dict[str, Any]:
    """`--set` items. A value is a literal of the language (0.1, true, "text", [1, 2]); anything else is taken as text."""
    out = {}
    for item in items:
        key, sign, text = item.partition("=")
        key = key.strip()
        if not sign or not key.isidentifier():
            raise UserError(f"--set {item}: expected key=value")
        out[key] = value(text)
    return out


def value(text: str) -> Any:
    """A literal of the language, or the text itself."""
    from ..compiler.diagnostics import CompileError
    from ..frontend.parse import parse
    try:
        tree = parse(f"let _ = {text}", "<--set>")
        return _literal(tree.items[0].value) if len(tree.items) == 1 else text
    except (CompileError, _NotLiteral):
        return text


class _NotLiteral(Exception):
    pass


def _literal(node) -> Any:
    from ..frontend import ast as A
    if isinstance(node, A.Int | A.Float | A.Str | A.Bool):
        return node.value
    if isinstance(node, A.NoneLit):
        return None
    if isinstance(node, A.Unary) and node.op in "+-" and isinstance(node.operand, A.Int | A.Float):
        return -node.operand.value if node.op == "-" else node.operand.value
    if isinstance(node, A.List | A.Tuple):
        return (list if isinstance(node, A.List) else tuple)(_literal(x) for x in node.items)
    raise _NotLiteral


def dims(text: str) -> dict[str, int]:
    """`B=32,T=8`"""
    out = {}
    for item in filter(None, text.replace(" ", "").split(",")):
        name, sign, number = item.partition("=")
        if not sign or not name.isidentifier() or not number.isdigit():
            raise UserError(f"--dims {item}: expected NAME=SIZE")
        out[name] = int(number)
    return out


def pass_options(args, **more):
    """Options of the pass manager, or None when nothing was asked for."""
    from ..compiler.pass_manager import Options
    after = frozenset(filter(None, (getattr(args, "print_ir_after", "") or "").split(",")))
    checking = getattr(args, "check_passes", False)
    if after - {"all"}:
        known_passes(after - {"all"})
    check = None
    if checking:
        from ..compiler.driver import PassChecker
        check = PassChecker(tell=lambda text: print(f"check: {text}", file=sys.stderr, flush=True))
    return Options(print_after=after, print_diff=getattr(args, "print_ir_diff", False), time_passes=getattr(args, "time_passes", False),
                   check=check, **more)


def known_passes(names) -> None:
    """An error where a name is no pass."""
    from ..compiler.diagnostics import did_you_mean
    from ..compiler.pipelines import passes
    known = passes()
    for name in names:
        if name not in known:
            near = did_you_mean(name, known)
            raise UserError(f"there is no pass {name!r}: " + (f"did you mean {near!r}?" if near else f"known: {', '.join(known)}"))
