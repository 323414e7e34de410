"""A program whose weights are packed once: what passes/prepack.py asks for, made when an array is first used and kept as long as it lives."""
from __future__ import annotations

import weakref
from operator import is_
from typing import Any

from .ir.types import TensorType

_packed: dict[tuple, tuple[Any, list]] = {}          # (array, backend, how) -> (a weak reference to the array, what was made of it)


class Prepacked:
    """A Program (driver.py) that takes the arguments from before prepack. `packs`: entry -> [(argument, its type, weight, contract, columns)].

    Arrays that hold weights are known by identity: whoever changes one in place has to pass a new one.
    """

    def __init__(self, program, packs: dict[str, list[tuple[int, TensorType, str, int, bool]]], backend: str, build):
        self._program, self._packs, self._backend, self._build = program, packs, backend, build
        self._last: dict[str, tuple[list, list]] = {}        # entry -> (references to the arrays of its last call, what was made of them)

    def __getattr__(self, name: str):
        return getattr(self._program, name)

    def call(self, name: str, args: list) -> list:
        packs = self._packs.get(name)
        return self._program.call(name, [*args, *self._all(name, packs, args)] if packs else args)

    def _all(self, name: str, packs: list, args: list) -> list:
        """What is made of all weights; those of the last call are not looked up one by one (a decoded token has no time for it)."""
        arrays = [args[p[0]] for p in packs]
        refs, made = self._last.get(name, ((), []))
        if not refs or not all(map(is_, [r() for r in refs], arrays)):
            made = self._make(arrays, [how for _, *how in packs])
            self._last[name] = [weakref.ref(a) for a in arrays], made
        return made

    def _make(self, arrays: list, hows: list) -> list:
        made, fresh = [], []
        for array, how in zip(arrays, hows):
            key = (id(array), self._backend, *how)
            found = _packed.get(key)
            if found is None or found[0]() is not array:
                found = _packed[key] = (weakref.ref(array, lambda _, key=key: _packed.pop(key, None)), self._packer(*how).call("pack", [array]))
                fresh.append(found[1])
            made.append(found[1])
        if hasattr(self._program, "together"):
            for parts, codes in zip(fresh, self._program.together([parts[0] for parts in fresh])):
                parts[0] = codes
        return [x for parts in made for x in parts]

    def _packer(self, *how):
        from ..passes.prepack import packer
        key = (self._backend, *how)
        if key not in _packers:
            _packers[key] = self._build(packer(*how))
        return _packers[key]


_packers: dict[tuple, Any] = {}
