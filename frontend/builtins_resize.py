"""Resizing images: torch.nn.functional.interpolate."""
from __future__ import annotations

import numpy as np

from ..compiler.ir import TensorType, Value, i64
from .builtins import TABLE, builtin
from .values import Undecidable, describe, type_text

MODES = ("nearest", "nearest-exact", "linear", "bilinear", "trilinear", "bicubic", "area")
SPATIAL = {"linear": 1, "bilinear": 2, "trilinear": 3, "bicubic": 2}


@builtin("interpolate", "upsample")
def interpolate(cx, x, size=None, scale_factor=None, mode="nearest", align_corners=False, recompute_scale_factor=False):
    """Resized to `size`, or by `scale_factor`, along the dims after the first two; both are a number or one for each dim.  mode: "nearest",
    "nearest-exact", "linear", "bilinear", "trilinear", "bicubic", "area", as torch.nn.functional.interpolate."""
    b = cx.b
    x = cx.tensor(x)
    mode = cx.choice(mode, "mode", *MODES)
    corners = cx.flag(align_corners, "align_corners") if align_corners is not None else False
    if x.type.rank < 3:
        cx.fail(f"`{cx.name}` needs [batch, channels, sizes ..], got {describe(x)}", "x", hint="`x[none, none]` adds two dimensions in front")
    n = x.type.rank - 2
    if SPATIAL.get(mode, n) != n:
        cx.fail(f'mode "{mode}" resizes {SPATIAL[mode]} dimension{"s" if SPATIAL[mode] > 1 else ""} after batch and channels, got {type_text(x.type)}', "mode")
    if (size is None) == (scale_factor is None):
        cx.fail(f"`{cx.name}` needs either `size` or `scale_factor`", hint="`size = [H, W]`, or `scale_factor = 2`")
    if not mode.startswith("nearest"):
        x = cx.float(x)
    old = x.type.shape[2:]
    if size is not None:
        new, ratio = cx.shape(_each(cx, size, n, "size"), "size"), [None] * n
    else:
        ratio = [_factor(cx, s) for s in _each(cx, scale_factor, n, "scale_factor")]
        new = tuple(_scaled(o, s) for o, s in zip(old, ratio))
        if recompute_scale_factor not in (None, False):
            ratio = [None] * n
    if mode == "area":
        return TABLE[f"adaptive_avg_pool{n}d"].run(cx, x, list(new))
    for d, (o, m, s) in enumerate(zip(old, new, ratio)):
        if mode.startswith("nearest") and s is not None and not isinstance(s, float):
            x = _repeated(b, x, d + 2, s)
        elif o != m or s not in (None, 1):
            if not isinstance(o, int) or not isinstance(m, int):
                raise Undecidable
            x = _resized(b, x, d + 2, _taps(mode, o, m, s, corners))
    return x


@builtin()
def upsample_nearest(cx, x, size=None, scale_factor=None):
    """interpolate(x, size, scale_factor, mode = "nearest")."""
    return interpolate(cx, x, size, scale_factor)


@builtin()
def upsample_bilinear(cx, x, size=None, scale_factor=None):
    """interpolate(x, size, scale_factor, mode = "bilinear", align_corners = true)."""
    return interpolate(cx, x, size, scale_factor, "bilinear", True)


def _each(cx, v, n: int, arg: str) -> list:
    items = list(v) if isinstance(v, list | tuple) else [v] * n
    if len(items) != n:
        cx.fail(f"`{arg}` of `{cx.name}` is one number, or one for each of the {n} dimensions after batch and channels, got {describe(v)}", arg)
    return items


def _factor(cx, s):
    if isinstance(s, float) and s > 0:
        return int(s) if s == int(s) else s
    s = cx.int(s, "scale_factor")
    if isinstance(s, int) and s <= 0:
        cx.fail(f"`scale_factor` is positive, got {s}", "scale_factor")
    return s


def _scaled(o, s):
    if isinstance(s, float):
        if not isinstance(o, int):
            raise Undecidable
        return int(o * s)
    return o * s


def _repeated(b, x: Value, d: int, k) -> Value:
    shape = x.type.shape
    y = b.broadcast(b.reshape(x, (*shape[:d + 1], 1, *shape[d + 1:])), (*shape[:d + 1], k, *shape[d + 1:]))
    return b.reshape(y, (*shape[:d], shape[d] * k, *shape[d + 1:]))


def _taps(mode: str, old: int, new: int, factor, corners: bool) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """For each output place the input places it is a weighted sum of: (indices, weights), once a tap."""
    at = np.arange(new, dtype=np.float64)
    step = 1 / factor if factor is not None else old / new
    if mode == "nearest":
        return [(np.minimum(np.floor(np.float32(step) * at.astype(np.float32)), old - 1), None)]
    if mode == "nearest-exact":
        return [(np.minimum(np.floor(np.float32(step) * (at + 0.5).astype(np.float32)), old - 1), None)]
    if corners:
        place = at * ((old - 1) / (new - 1)) if new > 1 else at * 0
    else:
        place = (at + 0.5) * step - 0.5
    if mode == "bicubic":
        low = np.floor(place)
        t = place - low
        return [(np.clip(low + k, 0, old - 1), _cubic(np.abs(t - k))) for k in (-1, 0, 1, 2)]
    place = np.maximum(place, 0)
    low = np.minimum(np.floor(place), old - 1)
    t = np.clip(place - low, 0, 1)
    return [(low, 1 - t), (np.minimum(low + 1, old - 1), t)]


def _cubic(d: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys' kernel of cubic convolution, with PyTorch's a."""
    return np.where(d <= 1, ((a + 2) * d - (a + 3)) * d * d + 1, ((a * d - 5 * a) * d + 8 * a) * d - 4 * a)


def _resized(b, x: Value, d: int, taps) -> Value:
    total = None
    for index, weight in taps:
        y = b.op("tensor.take", [x, b.constant(index.astype(np.int64), TensorType(i64, index.shape))], {"dim": d}).result
        if weight is not None:
            shape = [1] * y.type.rank
            shape[d] = len(weight)
            w = b.reshape(b.constant(weight, TensorType(y.type.dtype, weight.shape)), shape)
            y = b.mul(y, b.broadcast(w, y.type.shape))
        total = y if total is None else b.add(total, y)
    return total
