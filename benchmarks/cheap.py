"""Cheap weights beside f32 on this machine: one row through a 4096 x 4096 matrix, and tokens a second of GPT-2 124M (random weights, KV cache).

    python -m engram.benchmarks.cheap [matvec] [decode] [--threads N] [--tokens N]

Results are compared first: with the definition of the weight type in NumPy (matvec), with the tokens of the other kinds' own first run (decode). All
kinds take turns; a row has the median time and its ratio to f32's.
"""
from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

KINDS = (None, "int8", "int4", "pow2(7)", "ternary")
LAYER = "layer Matrix(i, o) { param w: f32[i, o] = normal(0, 1 / sqrt(i)); fn (x: f32[B, i]) -> f32[B, o] { x @ w } }\n"


def values(w: np.ndarray, kind: str | None) -> np.ndarray:
    """What the weight type makes of w, by its definition."""
    a = np.abs(w)
    if kind is None:
        return w
    if kind == "ternary":
        return np.clip(np.round(w / a.mean()), -1, 1) * a.mean()
    if kind.startswith("pow2"):
        n, km = int(kind[5:-1]), np.floor(np.log2(4 / 3 * a.max()))
        k = np.minimum(np.round(np.log2(np.maximum(a, 1e-30))), km)
        return np.where(k <= km - n, 0, np.sign(w) * 2.0 ** k)
    top = {"int8": 127, "int4": 7}[kind]
    return np.round(w / (a.max() / top)) * a.max() / top


def matvec(threads: int | None, size: int = 4096, turns: int = 400) -> list[tuple]:
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


def decode(threads: int | None, tokens: int) -> list[tuple]:
    """(kind, tokens/s)."""
    from ..cheap import mark_call
    from ..compiler import driver
    from ..compiler.ir import TensorType, i64
    from ..frontend import elaborate_call, elaborate_init, instantiate
    from ..session import load_program
    from ..train import key_of
    layer = instantiate(load_program(str(Path(__file__).parent / "gpt2.nn")), "GPT2", (), {})
    first = elaborate_init(layer)
    weights = dict(zip((r.name for r in first.results), driver.build(first.module, threads=threads).call(first.entry, [key_of(0, 1)])))
    out = []
    for kind in KINDS:
        e = elaborate_call(layer, [TensorType(i64, (1,))], method="greedy")
        mark_call(e, kind)
        place = {a.name: i for i, a in enumerate(e.args)}
        e.module.funcs[e.entry].attrs["donate"] = [[place[r.name], i] for i, r in enumerate(e.results) if r.kind == "cache"]
        program = driver.build(e.module, threads=threads, inference=True)

        def generate(n: int, e=e, program=program) -> tuple[list[int], list[float]]:
            cells = {a.name: np.zeros(a.type.shape, a.type.dtype.numpy) for a in e.args if a.kind == "cache"}
            token, said, times = np.zeros(1, np.int64), [], []
            for _ in range(n):
                start = time.perf_counter()
                results = program.call(e.entry, [token if a.kind == "arg" else cells[a.name] if a.kind == "cache" else weights[a.name] for a in e.args])
                times.append(time.perf_counter() - start)
                cells.update((r.name, v) for r, v in zip(e.results, results) if r.kind == "cache")
                token = results[0]
                said.append(int(token[0]))
            return said, times
        said, _ = generate(4)
        again, times = generate(tokens)
        if said != again[:4]:
            raise SystemExit(f"{kind}: other tokens the second time")
        out.append((kind, 1 / float(np.median(times))))
    return out


def _median(run, turns: int) -> float:
    times = []
    for _ in range(turns):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m engram.benchmarks.cheap", description=__doc__.splitlines()[0])
    p.add_argument("what", nargs="*", choices=["matvec", "decode", []], help="default: both")
    p.add_argument("--threads", type=int)
    p.add_argument("--tokens", type=int, default=64)
    args = p.parse_args()
    if "matvec" in args.what or not args.what:
        rows = matvec(args.threads)
        print(f"\n{'4096 x 4096, one row':24}{'ms':>10}{'x f32':>8}{'GB/s':>8}")
        for kind, ms, size in rows:
            print(f"{kind or 'f32':24}{ms:10.4f}{rows[0][1] / ms:8.1f}{size / ms / 1e6:8.1f}")
    if "decode" in args.what or not args.what:
        rows = decode(args.threads, args.tokens)
        print(f"\n{'GPT-2 124M, decode':24}{'tokens/s':>10}{'x f32':>8}")
        for kind, rate in rows:
            print(f"{kind or 'f32':24}{rate:10.1f}{rate / rows[0][1]:8.1f}")


if __name__ == "__main__":
    main()
