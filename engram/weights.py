"""Weight files for a layer: which reader a file needs, and the layer's own and foreign names for what is in it."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from . import checkpoint


def read_weights(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file, or of a `.bin` file of llama2.c."""
    if Path(path).suffix == ".bin":
        from . import llama2c
        return llama2c.read(path)
    return checkpoint.read(path)


def fit(instance, arrays: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """Own path -> array for every parameter and state of a layer instance; one CheckpointError lists all that does not fit."""
    from .foreign_names import foreign_names
    foreign = foreign_names(instance)
    expected = [checkpoint.Expected(p, tuple(s.type.shape), s.type.dtype.numpy, foreign.keys[p])
                for p, s in instance.cells if s.kind in ("param", "state")]
    return checkpoint.match(arrays, expected, foreign.ignore, source=source)
