"""A program whose weights are packed once: what passes/prepack.py asks for, made when an array is first used and kept as long as it lives."""
from __future__ import annotations

import weakref
from typing import Any

from .ir.types import TensorType

_packed: dict[tuple, tuple[Any, list]] = {}          # (array, backend, how) -> (a weak reference to the array, what was made of it)


class Prepacked:
    """A Program (driver.py) that takes the arguments from before prepack. `packs`: entry -> [(argument, its type, weight, contract)].

    Arrays that hold weights are known by identity: whoever changes one in place has to pass a new one.
    """

    def __init__(self, program, packs: dict[str, list[tuple[int, TensorType, str, int]]], backend: str, build):
        self._program, self._packs, self._backend, self._build = program, packs, backend, build

    def __getattr__(self, name: str):
        return getattr(self._program, name)

    def call(self, name: str, args: list) -> list:
        more = self._packs.get(name)
        return self._program.call(name, [*args, *(x for i, *how in more for x in self._of(args[i], *how))] if more else args)

    def _of(self, array, type: TensorType, weight: str, contract: int) -> list:
        key = (id(array), self._backend, weight, contract)
        found = _packed.get(key)
        if found is None or found[0]() is not array:
            found = _packed[key] = (weakref.ref(array, lambda _: _packed.pop(key, None)), self._packer(type, weight, contract).call("pack", [array]))
        return found[1]

    def _packer(self, type: TensorType, weight: str, contract: int):
        from ..passes.prepack import packer
        key = (self._backend, type, weight, contract)
        if key not in _packers:
            _packers[key] = self._build(packer(type, weight, contract))
        return _packers[key]


_packers: dict[tuple, Any] = {}
