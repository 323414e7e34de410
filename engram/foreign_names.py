"""What a checkpoint may call a layer's parameters: the layers' `names { ... }` resolved for a whole tree of instances.

An entry's path is relative to its layer; of several entries that match, the deepest wins, and a parent's wins over a child's.
Without an entry a parameter or sub-layer goes by its own name.
"""
from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Foreign:
    """keys: own path -> [(foreign key, its last two dims are swapped)]; ignore: keys that a file may hold beside them."""

    keys: dict[str, list[tuple[str, bool]]] = field(default_factory=dict)
    ignore: list[str] = field(default_factory=list)


def foreign_names(instance) -> Foreign:
    """The foreign keys of every cell of the instance's tree."""
    out = Foreign()
    for path, _ in instance.cells:
        out.keys[path] = _keys(instance, path.split("."))
    for path, layer in instance.walk():
        prefixes = [""] if not path else _prefixes(instance, path.split("."))
        for entry in layer.names:
            if getattr(entry.path, "id", None) == "_":
                out.ignore += [_join(p, k) for p in prefixes for k in entry.keys]
    return out


def _prefixes(instance, path: list[str]) -> list[str]:
    """What a sub-layer may be called."""
    return [k for k, _ in _keys(instance, path, whole=False)]


def _keys(instance, path: list[str], whole: bool = True) -> list[tuple[str, bool]]:
    best = None
    for entry in instance.names:
        parts, swap = _pattern(entry.path)
        bound = _match(parts, path)
        if bound is not None and (best is None or len(parts) > best[0]):
            best = (len(parts), [_fill(k, bound) for k in entry.keys], swap)
    used, prefixes, swap = best or (1, [path[0]], False)
    rest = path[used:]
    at = instance
    for part in path[:used]:
        at = _step(at, part)
    while isinstance(at, list | tuple) and rest:             # an entry, or a name, for the list as a whole
        prefixes = [_join(p, rest[0]) for p in prefixes]
        at, rest = at[int(rest[0])], rest[1:]
    if not rest:
        return [(p, swap) for p in prefixes]
    return [(_join(p, k), s) for p in prefixes for k, s in _keys(at, rest, whole)]


def _step(at, part: str):
    if isinstance(at, list | tuple):
        return at[int(part)]
    return at.children.get(part, at.own.get(part))


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix and key else prefix or key


def _pattern(node) -> tuple[list, bool]:
    """`blocks[i].attn.w.T` -> (["blocks", ("i",), "attn", "w"], True)"""
    parts: list = []
    while True:
        kind = type(node).__name__
        if kind == "Name":
            parts.append(node.id)
            break
        if kind == "Attr":
            parts.append(node.name)
            node = node.value
        else:                                                # Index
            for s in reversed(node.subscripts):
                parts.append(str(s.value) if type(s).__name__ == "Int" else (s.id,))
            node = node.value
    parts.reverse()
    swap = len(parts) > 1 and parts[-1] == "T"
    return (parts[:-1] if swap else parts), swap


def _match(parts: list, path: list[str]) -> dict[str, str] | None:
    if len(parts) > len(path):
        return None
    bound: dict[str, str] = {}
    for want, have in zip(parts, path):
        if isinstance(want, tuple):
            if not have.isdigit() or bound.setdefault(want[0], have) != have:
                return None
        elif want != have:
            return None
    return bound


def _fill(key: str, bound: dict[str, str]) -> str:
    for name, value in bound.items():
        key = key.replace("{" + name + "}", value)
    return key
