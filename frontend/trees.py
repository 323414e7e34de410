"""Structured values as lists of tensors and back: results of functions, carries of loops, arguments.

`flatten` gives a spec and the tensors in it; `unflatten` builds the value again from other tensors.  Specs are plain nested
tuples: ("v",) a tensor, ("t" | "l", specs) a tuple or list, ("tree", layer, slots) a Tree, ("s", value) anything static.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ..compiler.ir import Value
from .values import LayerInstance, Slot, Tree

LEAF = ("v",)


def flatten(v: object) -> tuple[tuple, list[Value]]:
    leaves: list[Value] = []
    return _flatten(v, leaves), leaves


def _flatten(v: object, leaves: list[Value]) -> tuple:
    if isinstance(v, Value):
        leaves.append(v)
        return LEAF
    if isinstance(v, tuple | list):
        return ("t" if isinstance(v, tuple) else "l", tuple(_flatten(x, leaves) for x in v))
    if isinstance(v, Tree):
        leaves.extend(v.values.values())
        return ("tree", v.layer, tuple(v.values))
    return ("s", v)


def unflatten(spec: tuple, leaves: Iterable, tree: Callable[[LayerInstance, dict], object] = Tree) -> object:
    """The value of that spec with `leaves` for its tensors (Values, or arrays of a run); `tree` makes what stands for a Tree."""
    it = iter(leaves)

    def build(spec: tuple) -> object:
        kind = spec[0]
        if kind == "v":
            return next(it)
        if kind == "s":
            return spec[1]
        if kind == "tree":
            return tree(spec[1], {slot: next(it) for slot in spec[2]})
        items = [build(s) for s in spec[1]]
        return tuple(items) if kind == "t" else items
    return build(spec)


def statics(spec: tuple) -> Iterator[object]:
    """The static parts of a spec; a Tree's layer counts as one."""
    if spec[0] == "s":
        yield spec[1]
    elif spec[0] == "tree":
        yield spec[1]
    elif spec[0] in ("t", "l"):
        for s in spec[1]:
            yield from statics(s)


def leaf_names(spec: tuple, name: str) -> list[str]:
    """A name for each tensor of a spec: `out`, `out.0`, `g.hidden.w`."""
    if spec[0] == "v":
        return [name]
    if spec[0] == "tree":
        paths = {slot: path for path, slot in spec[1].cells}
        return [f"{name}.{paths[s]}" for s in spec[2]]
    if spec[0] in ("t", "l"):
        return [n for i, s in enumerate(spec[1]) for n in leaf_names(s, f"{name}.{i}")]
    return []


def tree_of(layer: LayerInstance, read: Callable[[Slot], Value]) -> Tree:
    """The parameters of a layer as a Tree of values."""
    return Tree(layer, {slot: read(slot) for _, slot in layer.params})
