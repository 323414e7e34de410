"""The parameters, states and caches of the layers of a run block, with their current values.

A new layer's values are made when one is first needed; caches are made anew for calls of other sizes. Files and expressions are
run_block.py's business.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from .compiler.ir import TensorType
from .frontend.values import LayerInstance, Slot
from .run_values import type_of


class Cells:
    """`build(module)` compiles for `backend`, `key()` gives a fresh random key; initial values come from `seed` alone."""

    def __init__(self, seed: int, backend: str, build: Callable, key: Callable[[], np.ndarray]):
        self.seed, self._backend, self._build, self._key = seed, backend, build, key
        self.models: list[LayerInstance] = []                  # roots, in the order they were made
        self._values: dict[Slot, Any] = {}
        self._placed: set[Slot] = set()                        # those whose values are the backend's handles
        self._roots: dict[Slot, tuple[LayerInstance, str, int]] = {}
        self._cache_makers: dict[tuple, tuple] = {}

    def type(self, slot: Slot) -> TensorType | None:
        """The type of a value that is there: of a cache that a call has filled."""
        return type_of(self._values.get(slot))

    def register(self, layer: LayerInstance) -> None:
        """Remembers where each cell lives in its tree: initial values depend on the path."""
        if any(s in self._roots for _, s in layer.cells):
            return
        self.models.append(layer)
        for path, slot in layer.cells:
            self._roots[slot] = (layer, path, len(self.models) - 1)

    def handle(self, slot: Slot, program) -> Any:
        """The current value as a handle of that program."""
        if slot not in self._values:
            self._initialise(*self._roots[slot][::2])
        if slot not in self._placed:
            self._values[slot] = program.to_device(self._values[slot])
            self._placed.add(slot)
        return self._values[slot]

    def update(self, values: Iterable[tuple[Slot, Any]]) -> None:
        """What a call gave for cells that it was passed."""
        self._values.update(values)

    def write(self, values: Mapping[Slot, np.ndarray]) -> None:
        """Host arrays for cells."""
        self._values.update(values)
        self._placed.difference_update(values)

    def forget(self, slots: Iterable[Slot]) -> None:
        """These begin anew."""
        for slot in slots:
            self._values.pop(slot, None)
            self._placed.discard(slot)

    def _initialise(self, layer: LayerInstance, number: int) -> None:
        """Values for the cells of a layer that have none: what was loaded is not drawn."""
        from .first_values import make
        from .frontend import elaborate_init
        from .train import key_of
        e = elaborate_init(layer)
        wanted = [k for k, info in enumerate(e.results) if info.slot not in self._values]
        made = make(e.module, e.entry, key_of(self.seed, *((1, number) if number else (1,))), self._backend, self._build, wanted)
        self.write({e.results[k].slot: v for k, v in zip(wanted, made)})

    def make_caches(self, e) -> None:
        """Caches that are empty, or of other sizes than this call's, begin anew."""
        from .frontend import elaborate_cache_init
        wanted: dict[int, tuple[LayerInstance, dict]] = {}
        for info in e.args:
            if info.kind == "cache" and (info.slot not in self._values or tuple(self._values[info.slot].shape) != tuple(info.type.shape)):
                root, path, number = self._roots[info.slot]
                wanted.setdefault(number, (root, {}))[1][path] = info.type
        for number, (root, types) in wanted.items():
            key = (number, tuple(types.items()))
            if key not in self._cache_makers:
                first = elaborate_cache_init(root, types)
                self._cache_makers[key] = (first, self._build(first.module))
            first, program = self._cache_makers[key]
            for info, v in zip(first.results, program.call(first.entry, [self._key()])):
                self._values[info.slot] = v
                self._placed.add(info.slot)
