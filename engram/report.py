"""What a training run leaves behind: metrics.json, the learning curve as a picture, the weights."""
from __future__ import annotations

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
    folder.mkdir(parents=True, exist_ok=True)
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
    if content["epochs"] and plot_curve(content, folder / "curve.png"):
        files.append(folder / "curve.png")
    return files


def plot_curve(content: dict[str, Any], path: Path) -> bool:
    """Losses above, measures below, over the epochs. False where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure  # not pyplot: no display, no global state
    except ImportError:
        return False
    rows = content["epochs"]
    keys = [k for k in dict.fromkeys(k for r in rows for k in r) if k not in ("epoch", "seconds", "phase")]
    losses = [k for k in keys if "loss" in k]
    others = [k for k in keys if k not in losses]
    panels = [p for p in (losses, others) if p]
    if not panels:
        return False
    figure = Figure(figsize=(7, 3 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, names in zip(figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0], panels):
        for k in names:
            points = [(r["epoch"], r[k]) for r in rows if r.get(k) is not None]
            axes.plot([e for e, _ in points], [v for _, v in points], label=k, marker="." if len(points) < 40 else None)
        if names is losses and all((r.get(k) or 1) > 0 for r in rows for k in names):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend()
    axes.set_xlabel("epoch")
    figure.suptitle(f"{content['train']} ({content['backend']}, seed {content['seed']})")
    figure.savefig(path, dpi=120)
    return True
