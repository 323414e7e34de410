"""Pictures of a training run for `engram run --plot`: learning curves layer by layer, the weights, and where readouts are wrong.

Draws what it is given, with matplotlib's Figure (no pyplot: no display, no global state). The numbers come from report.py and train.py.
"""
from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MOST_TILES = 64                            # units shown of a layer
MOST_LAYERS = 8                            # layers shown in one picture
MOST_MISREAD = 24                          # samples shown with what was read
MOST_CLASSES = 40                          # a larger confusion matrix is not legible


def available() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    f = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(f)
    return f


# ---- curves ---------------------------------------------------------------------------------------------------------

def curves(content: Mapping[str, Any], path: Path) -> bool:
    """Losses, measures, and the accuracy of each layer's own readout, over the epochs. False where there is nothing to show."""
    rows = content["epochs"]
    keys = [k for k in dict.fromkeys(k for r in rows for k in r) if k not in ("epoch", "seconds", "phase")]
    losses = [k for k in keys if "loss" in k]
    layers = [k for k in keys if k.endswith(".accuracy")]
    others = [k for k in keys if k not in losses and k not in layers]
    panels = [(names, title) for names, title in ((losses, "loss"), (others, "measures"), (layers, "accuracy of each layer's own readout")) if names]
    if not panels:
        return False
    f = figure(7, 3 * len(panels))
    for axes, (names, title) in zip(f.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0], panels):
        for k in names:
            points = [(r["epoch"], r[k]) for r in rows if r.get(k) is not None]
            axes.plot([e for e, _ in points], [v for _, v in points], label=k.removesuffix(".accuracy") if names is layers else k,
                      marker="." if len(points) < 40 else None)
        if names is losses and all((r.get(k) or 1) > 0 for r in rows for k in names):
            axes.set_yscale("log")
        axes.set_ylabel(title if len(title) < 12 else "accuracy")
        if names is layers:
            axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend()
    from matplotlib.ticker import MaxNLocator
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    f.suptitle(f"{content['train']} ({content['backend']}, seed {content['seed']})")
    f.savefig(path, dpi=120)
    return True


# ---- weights --------------------------------------------------------------------------------------------------------

def weights(values: Mapping[str, np.ndarray], sample: Sequence[int], path: Path, first: Collection[str]) -> bool:
    """Matrices and filters, a panel each: units as pictures where their weights have the shape of a sample or are filters, else the matrix
    itself. `sample` is the shape of one sample, `first` the matrices that multiply samples. False where there is none."""
    shown = [(name, a) for name, a in values.items() if a.ndim in (2, 4) and a.size > 1 and np.issubdtype(a.dtype, np.floating)][:MOST_LAYERS]
    if not shown:
        return False
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    f = figure(5.5 * columns, 5 * rows)
    grid = f.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, a) in zip(grid, shown):
        tiles, what = unit_pictures(np.asarray(a, np.float32), sample if name in first else ())
        image = mosaic(tiles) if tiles is not None else a[:512, :512]
        limit = float(np.nanmax(np.abs(image))) if np.isfinite(image).any() else 1.0
        colour = image.ndim == 3
        axes.imshow(np.clip(image / (2 * limit or 1) + 0.5, 0, 1) if colour else image, cmap=None if colour else "RdBu_r", vmin=-limit, vmax=limit,
                    interpolation="nearest", aspect="equal" if tiles is not None else "auto")
        axes.set_title(f"{name}  {list(a.shape)}{what}", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in grid[len(shown):]:
        axes.axis("off")
    f.savefig(path, dpi=120)
    return True


def unit_pictures(a: np.ndarray, sample: Sequence[int]) -> tuple[np.ndarray | None, str]:
    """[n, h, w] or [n, h, w, 3] pictures of up to MOST_TILES units, and what they are; None where weights are no pictures."""
    if a.ndim == 4:                                          # filters [o, c, kh, kw]: colours, or the channels one by one
        o, c, h, w = a.shape
        if h * w < 4:
            return None, ""
        if c == 3:
            return a[:MOST_TILES].transpose(0, 2, 3, 1), "" if o <= MOST_TILES else f": {MOST_TILES} of {o} filters"
        tiles = a.reshape(o * c, h, w)
        return tiles[:MOST_TILES], "" if o * c <= MOST_TILES else f": {MOST_TILES} of {o * c} kernels"
    i, o = a.shape
    shape = picture_shape(i, sample)
    if shape is None:
        return None, "" if max(i, o) <= 512 else ": a corner"
    tiles = a.T[:MOST_TILES].reshape(-1, *shape)
    if len(shape) == 3:
        tiles = tiles.transpose(0, 2, 3, 1)
    return tiles, "" if o <= MOST_TILES else f": {MOST_TILES} of {o} units"


def picture_shape(n: int, sample: Sequence[int]) -> tuple[int, ...] | None:
    """The shape of a picture of n numbers: that of a sample, (3, h, w) in colours, or a square where samples are flat squares."""
    sample = tuple(d for d in sample if d != 1)
    if math.prod(sample) != n or n < 9:
        return None
    if len(sample) == 2 and min(sample) > 2:
        return sample
    if len(sample) == 3 and sample[0] == 3:
        return sample
    side = math.isqrt(n)
    return (side, side) if len(sample) == 1 and side * side == n else None


def mosaic(tiles: np.ndarray) -> np.ndarray:
    """Pictures side by side, each by its own largest weight, with a gap of one pixel between them."""
    n, h, w = tiles.shape[:3]
    columns = math.ceil(math.sqrt(n * h / w))
    rows = -(-n // columns)
    out = np.zeros((rows * (h + 1) - 1, columns * (w + 1) - 1, *tiles.shape[3:]), np.float32)
    for k, t in enumerate(tiles):
        r, c = divmod(k, columns)
        out[r * (h + 1):r * (h + 1) + h, c * (w + 1):c * (w + 1) + w] = t / (np.abs(t).max() or 1)
    return out


# ---- where readouts are wrong ---------------------------------------------------------------------------------------

def errors(readings: Mapping[str, tuple[np.ndarray, np.ndarray]], samples: np.ndarray | None, path: Path) -> bool:
    """For every readout which classes it takes for which; below, samples that the last one misreads, where they are pictures.
    `readings`: name -> (classes read, classes right). False where there are none, or more classes than can be shown."""
    shown = [(name, confusion(*both)) for name, both in readings.items() if len(both[0]) and max(b.max() for b in both) < MOST_CLASSES][:MOST_LAYERS]
    if not shown:
        return False
    last = shown[-1][0]                                      # what the program itself measures comes last
    said, right = readings[last]
    wrong = np.flatnonzero(said != right)[:MOST_MISREAD]
    shape = picture_shape(math.prod(samples.shape[1:]), samples.shape[1:]) if samples is not None and len(wrong) else None
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    strip = -(-len(wrong) // 12) if shape else 0
    f = figure(max(4.2 * columns, 9 if strip else 0), 4.2 * rows + 1.1 * strip)
    above, below = f.subfigures(2, 1, height_ratios=[4.2 * rows, 1.1 * strip]) if strip else (f, None)
    grid = above.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, m) in zip(grid, shown):
        _confusion(axes, name, m)
    for axes in grid[len(shown):]:
        axes.axis("off")
    if below is not None:
        below.suptitle(f"misread by {last}: right \N{RIGHTWARDS ARROW} read", fontsize=10)
        small = below.subplots(strip, 12, squeeze=False).ravel()
        for axes in small:
            axes.axis("off")
        for axes, k in zip(small, wrong):
            picture = samples[k].reshape(shape)
            axes.imshow(picture.transpose(1, 2, 0) if picture.ndim == 3 else picture, cmap="gray_r")
            axes.set_title(f"{right[k]} \N{RIGHTWARDS ARROW} {said[k]}", fontsize=8, pad=2)
    f.savefig(path, dpi=120, bbox_inches="tight")            # else the panels' titles would be cut off
    return True


def confusion(read: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Counts [right, read]."""
    n = int(max(read.max(), right.max())) + 1
    return np.bincount(right * n + read, minlength=n * n).reshape(n, n)


def _confusion(axes, name: str, m: np.ndarray) -> None:
    """The mistakes as numbers on colours; the diagonal is left out, or nothing else would show."""
    n, total = len(m), m.sum()
    off = np.where(np.eye(n, dtype=bool), 0, m)
    axes.imshow(off, cmap="Oranges", vmax=max(1, off.max()))
    if n <= 12:
        for r in range(n):
            for c in range(n):
                if m[r, c]:
                    axes.text(c, r, str(m[r, c]), ha="center", va="center", fontsize=6, color="0.6" if r == c else "black")
    axes.set_title(f"{name}: {off.sum():,} of {total:,} wrong ({100 * off.sum() / total:.2f} %)", fontsize=9)
    axes.set_xlabel("read", fontsize=8)
    axes.set_ylabel("right", fontsize=8)
    step = 1 if n <= 12 else 5
    axes.set_xticks(range(0, n, step))
    axes.set_yticks(range(0, n, step))
    axes.tick_params(labelsize=7)
