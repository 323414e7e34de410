"""Cheap weights beside f32 on this machine: one row through a square matrix, as `Model` calls run it.

    python -m engram.benchmarks.cheap [--size 4096] [--threads N]

Results are compared with the definition of the weight type in NumPy first. A row has the median time and its ratio to f32's. Decoding of GPT-2 with cheap
weights is among the workloads of `engram bench`.
"""
from __future__ import annotations

import argparse
import time

import numpy as np

KINDS = (None, "int8", "int4", "pow2(7)", "ternary")
LAYER = "layer Matrix(i, o) { param w: f32[i, o] = normal(0, 1 / sqrt(i)); fn (x: f32[B, i]) -> f32[B, o] { x @ w } }\n"


def values(w: np.ndarray, kind: str | None) -> np.ndarray:
    """What the option makes of w, by its definition."""
    a = np.abs(w)
    if kind is None:
        return w
    if kind == "ternary":
        return np.clip(np.round(w / a.mean()), -1, 1) * a.mean()
    if kind.startswith("pow2"):
        n, km = int(kind[5:-1]), np.floor(np.log2(4 / 3 * a.max()))
        k = np.minimum(np.round(np.log2(np.maximum(a, 1e-30))), km)
        return np.where(k <= km - n, 0, np.sign(w) * 2.0 ** k)
    scale = a.max(0) / {"int8": 127, "int4": 7}[kind]
    return np.round(w / scale) * scale


def matvec(threads: int | None, size: int, turns: int = 400) -> list[tuple]:
    """(kind, ms, bytes of weights read) for one row."""
    from .. import Model
    x = np.random.default_rng(0).standard_normal((1, size), np.float32)
    runs = {}
    for kind in KINDS:
        model = Model(LAYER, "Matrix", size, size, threads=threads, quantize=kind)
        w, top = model.parameters["w"].astype(float), np.abs(x).max()
        rows = x if kind is None else np.round(127 * x / top) * top / 127
        want = rows @ values(w, kind)
        worst = np.abs(model(x) - want).max() / np.abs(want).max()
        if worst > 1e-3:
            raise SystemExit(f"{kind}: off by {worst:.2g} of the largest result")
        program, e = next(iter(model._forwards.values()))
        args = [{"x": x}.get(a.name, model._values[0]) for a in e.args]
        runs[kind] = lambda program=program, e=e, args=args: program.call(e.entry, args)
    bits = {None: 32, "int8": 8, "int4": 4, "pow2(7)": 4, "ternary": 2}
    # each kind's turns lie together, so that what fits a cache may stay there, as it would in use
    return [(kind, _median(run, turns if kind else turns // 4) * 1e3, size * size * bits[kind] // 8) for kind, run in runs.items()]


def _median(run, turns: int) -> float:
    times = []
    for _ in range(turns):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m engram.benchmarks.cheap", description=__doc__.splitlines()[0])
    p.add_argument("--size", type=int, default=4096)
    p.add_argument("--threads", type=int)
    args = p.parse_args()
    rows = matvec(args.threads, args.size)
    print(f"{f'{args.size} x {args.size}, one row':24}{'ms':>10}{'x f32':>8}{'GB/s':>8}")
    for kind, ms, size in rows:
        print(f"{kind or 'f32':24}{ms:10.4f}{rows[0][1] / ms:8.1f}{size / ms / 1e6:8.1f}")


if __name__ == "__main__":
    main()
