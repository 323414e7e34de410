"""The `quantize` option: which arguments of a module's entries are parameters, and what kind of weight they are to be."""
from __future__ import annotations

from collections.abc import Iterable

WEIGHTS = "ternary, int4, int8 or pow2(n)"


def checked(weight: str | None) -> str | None:
    """A weight type as the option spells it; ValueError where there is no such."""
    from .compiler.ir.opdef import TypeMismatch
    from .compiler.ops.packed import weight_format
    if weight is None:
        return None
    try:
        weight_format(str(weight))
    except (TypeMismatch, ValueError):
        raise ValueError(f"quantize: expected {WEIGHTS}, got {weight!r}") from None
    return str(weight)


def mark(module, entries: Iterable[str], parameters: Iterable[int], weight: str | None) -> None:
    """Tells the passes quantize and prepack which arguments of these entries are parameters; all matrices among them become `weight`, if one is given."""
    parameters = list(parameters)
    if weight is None and not any(op.name == "nn.quantize" for op in module.walk()):
        return
    for name in entries:
        module.funcs[name].attrs["weights"] = parameters
    if weight is not None:
        module.attrs["quantize"] = weight


def mark_call(e, weight: str | None) -> None:
    """`mark` for one elaborated call of a layer or expression of a run block."""
    mark(e.module, [e.entry], [i for i, a in enumerate(e.args) if a.kind == "param"], weight)


def mark_plan(module, plan, weight: str | None) -> None:
    """`mark` for a module of a train plan, where one is asked for: the slots are the first arguments of every entry but `init`."""
    if weight is not None:
        mark(module, [n for n in module.attrs["entries"] if n != "init"], [k for k, s in enumerate(plan.slots) if s.kind == "param"], weight)


def weight_argument(value):
    """A layer's argument from Python: "ternary", "int4", "int8" and "pow2(7)" name weight types, as in `Model(.., weight="ternary")`."""
    from .frontend.values import QuantType
    if not isinstance(value, str):
        return value
    name, bracket, n = value.partition("(")
    if name == "pow2" and n.endswith(")") and n[:-1].isdigit():
        return QuantType("pow2", int(n[:-1]))
    return QuantType(name) if name in ("ternary", "int4", "int8") and not bracket else value
