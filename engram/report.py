"""What a training run leaves behind: metrics.json, pictures (drawn by plots.py), the weights."""
from __future__ import annotations

import errno
import json
import math
from pathlib import Path
from typing import Any

from .checkpoint import atomic_write, write


def metrics(name: str, backend: str, threads: int | None, seed: int, result, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """The content of metrics.json. Numbers that are not finite become null: JSON has none."""
    out: dict[str, Any] = {"train": name, "backend": backend, "threads": threads, "seed": seed, "epochs": result.epochs, "final": result.final,
                           "first_losses": result.first_losses, "seconds": round(result.seconds, 3), **(extra or {})}
    if result.interrupted:
        out["interrupted"] = True
    if result.stopped:
        out["stopped"] = result.stopped
    return _finite(out)


def _finite(v):
    if isinstance(v, float):
        return v if math.isfinite(v) else None
    if isinstance(v, dict):
        return {k: _finite(x) for k, x in v.items()}
    return [_finite(x) for x in v] if isinstance(v, list) else v


def prepare(folder: Path) -> None:
    """Make the folder, and an OSError now, rather than after the training, where nothing can be written into it."""
    import tempfile
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OSError(errno.ENOTDIR, "it is a file, not a folder", str(folder)) from None
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(folder)) from None


def write_results(folder: Path, content: dict[str, Any], weights: dict, metadata: dict[str, str] | None = None) -> list[Path]:
    """Write the files and return their paths; curve.png only where matplotlib is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "metrics.json", folder / "weights.safetensors"]
    atomic_write(files[0], (json.dumps(content, indent=1) + "\n").encode())
    write(files[1], weights, metadata)
    from . import plots
    if content["epochs"] and plots.available() and plots.curves(content, folder / "curve.png"):
        files.append(folder / "curve.png")
    return files


def write_pictures(folder: Path, values: dict, first: set[str], readings: dict, samples, sample_shape) -> list[Path]:
    """weights.png and errors.png, beside the curves; those that there is something to draw for. `first`: the matrices that multiply samples."""
    from . import plots
    files = []
    if plots.weights(values, sample_shape, folder / "weights.png", first):
        files.append(folder / "weights.png")
    if plots.errors(readings, samples, folder / "errors.png"):
        files.append(folder / "errors.png")
    return files
