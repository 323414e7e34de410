"""Everyday operations beside PyTorch's, one call each from Python: `python -m engram.benchmarks.operations [NAME ...] [--out FILE]`.

The workloads of workloads.py are whole networks; here are the single operations that programs outside are made of, on sizes of a few
megabytes, so that a slow one shows. Results are compared first. Each side is timed several times in turns of 10 ms; the least counts.
"""
from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Case = tuple[str, list[tuple], Callable]                     # the program, its arguments (kind, shape), PyTorch's way
TURN, TURNS = 0.01, 6
SAME = 1e-4                                                  # of the largest element, by which f32 sums in another order may differ


def cases() -> dict[str, Case]:
    """`f` is what is called; a gradient's is that of sum(operation * g)."""
    import torch
    import torch.nn.functional as F

    def given(names: str, args: tuple) -> str:
        return ", ".join(f"{n}: {'i64' if a[0] == 'i' else a[0]}[{', '.join(map(str, a[1]))}]" for n, a in zip(names, args))

    def one(body: str, *args: tuple, torch: Callable) -> Case:
        return f"fn f({given('xyz', args)}) {{ {body} }}", list(args), torch

    def slope(body: str, *args: tuple, torch: Callable, wrt: str) -> Case:
        names = "xyz"[:len(args) - 1] + "g"                  # g has the result's shape
        wanted = ", ".join(f'"{n}"' for n in wrt)
        source = (f"fn seen({given(names, args)}) -> f32[] {{ sum(({body}) * g) }}\n"
                  f"fn f({given(names, args)}) {{ grad(seen, wrt = [{wanted}])({', '.join(names)}) }}")
        return source, list(args), _gradient(torch, [names.index(n) for n in wrt])

    def f32(*shape: int) -> tuple:
        return "f32", shape
    square, images, small = f32(2048, 2048), f32(32, 64, 28, 28), f32(2048, 512)
    halves = f32(32, 64, 14, 14)
    out = {
        "sum of all": one("sum(x)", square, torch=lambda x: x.sum()),
        "sum over rows": one("sum(x, dim = 0)", square, torch=lambda x: x.sum(0)),
        "argmax along rows": one("argmax(x, dim = 1)", square, torch=lambda x: x.argmax(1)),
        "variance along rows": one("var(x, dim = 1)", square, torch=lambda x: x.var(1)),
        "logsumexp": one("logsumexp(x, dim = 1)", square, torch=lambda x: x.logsumexp(1)),
        "cumsum along rows": one("cumsum(x, dim = 1)", square, torch=lambda x: x.cumsum(1)),
        "cumsum along columns": one("cumsum(x, dim = 0)", square, torch=lambda x: x.cumsum(0)),
        "sort of 2048 rows": one("sort(x, dim = 1)", square, torch=lambda x: x.sort(dim=1, stable=True)),
        "top 5 of 2048 rows": one("topk(x, 5)", square, torch=lambda x: x.topk(5)),
        "transpose": one("x.T + 0.5", square, torch=lambda x: (x.T + 0.5).contiguous()),
        "channels last": one("permute(x, [0, 2, 3, 1])", images, torch=lambda x: x.permute(0, 2, 3, 1).contiguous()),
        "softmax of a transpose": one("softmax(x.T, dim = 1)", f32(1024, 1024), torch=lambda x: x.T.softmax(1)),
        "softmax along columns": one("softmax(x, dim = 0)", square, torch=lambda x: x.softmax(0)),
        "flip": one("flip(x, dims = [1])", square, torch=lambda x: x.flip(1)),
        "roll": one("roll(x, 3, dims = 1)", small, torch=lambda x: x.roll(3, 1)),
        "repeat_interleave": one("repeat_interleave(x, 4, dim = 0)", small, torch=lambda x: x.repeat_interleave(4, 0)),
        "concat": one("concat([x, y], dim = 1)", square, square, torch=lambda x, y: torch.cat([x, y], 1)),
        "where": one("where(x > y, x, y * 2.0)", square, square, torch=lambda x, y: torch.where(x > y, x, y * 2)),
        "tril": one("tril(x)", square, torch=lambda x: x.tril()),
        "take of columns": one("take(x, y, dim = 1)", square, ("i", (512,), 2048), torch=lambda x, i: x.index_select(1, i)),
        "gather": one("gather(x, 1, y)", f32(500, 500), ("i", (500, 500), 500), torch=lambda x, i: x.gather(1, i)),
        "scatter_add": one("scatter_add(x, 1, y, z)", f32(500, 500), ("i", (500, 500), 500), f32(500, 500), torch=lambda x, i, y: x.scatter_add(1, i, y)),
        "one_hot": one("one_hot(x, 1000)", ("i", (4096,), 1000), torch=lambda i: F.one_hot(i, 1000)),
        "gelu": one("gelu(x)", square, torch=F.gelu),
        "silu": one("silu(x)", square, torch=F.silu),
        "sigmoid": one("sigmoid(x)", square, torch=torch.sigmoid),
        "sin": one("sin(x)", square, torch=torch.sin),
        "power": one("(x * x + 1.0) ** 2.7", square, torch=lambda x: (x * x + 1) ** 2.7),
        "atan2": one("atan2(x, y)", square, square, torch=torch.atan2),
        "bias and relu": one("relu(x + y)", square, f32(2048), torch=lambda x, y: (x + y).relu()),
        "dot of a million": one("x @ y", f32(1_000_000), f32(1_000_000), torch=torch.dot),
        "matrix by vector": one("x @ y", f32(1000, 1000), f32(1000), torch=torch.mv),
        "matmul 100": one("x @ y", f32(100, 100), f32(100, 100), torch=torch.mm),
        "matmul 1000": one("x @ y", f32(1000, 1000), f32(1000, 1000), torch=torch.mm),
        "matmul 20000x64x64": one("x @ y", f32(20000, 64), f32(64, 64), torch=torch.mm),
        "matmul 64x20000x64": one("x @ y", f32(64, 20000), f32(20000, 64), torch=torch.mm),
        "transposed matmul 1024": one("x.T @ y", f32(1024, 1024), f32(1024, 1024), torch=lambda x, y: x.T @ y),
        "64 matmuls of 128": one("x @ y", f32(64, 128, 128), f32(64, 128, 128), torch=torch.bmm),
        "4096 matmuls of 8": one("x @ y", f32(4096, 8, 8), f32(4096, 8, 8), torch=torch.bmm),
        "row dots": one('einsum("ab,ab->a", x, y)', small, small, torch=lambda x, y: torch.einsum("ab,ab->a", x, y)),
        "cdist": one("cdist(x, y)", f32(500, 64), f32(400, 64), torch=torch.cdist),
        "conv 3x3": one("conv2d(x, y, padding = 1)", images, f32(64, 64, 3, 3), torch=lambda x, k: F.conv2d(x, k, padding=1)),
        "conv 1x1": one("conv2d(x, y)", images, f32(64, 64, 1, 1), torch=F.conv2d),
        "conv 3x3, stride 2": one("conv2d(x, y, stride = 2, padding = 1)", images, f32(64, 64, 3, 3), torch=lambda x, k: F.conv2d(x, k, stride=2, padding=1)),
        "conv 3x3, depthwise": one("conv2d(x, y, padding = 1, groups = 64)", images, f32(64, 1, 3, 3), torch=lambda x, k: F.conv2d(x, k, padding=1, groups=64)),
        "conv 1d of 5": one("conv1d(x, y, padding = 2)", f32(16, 64, 512), f32(64, 64, 5), torch=lambda x, k: F.conv1d(x, k, padding=2)),
        "transposed conv, stride 2": one("conv_transpose2d(x, y, stride = 2, padding = 1)", f32(16, 64, 14, 14), f32(64, 32, 4, 4),
                                         torch=lambda x, k: F.conv_transpose2d(x, k, stride=2, padding=1)),
        "max pool": one("max_pool2d(x, 2)", images, torch=lambda x: F.max_pool2d(x, 2)),
        "average pool": one("avg_pool2d(x, 2)", images, torch=lambda x: F.avg_pool2d(x, 2)),
        "group norm": one("group_norm(x, 8, y, z)", images, f32(64), f32(64), torch=lambda x, w, b: F.group_norm(x, 8, w, b)),
        "bilinear, twice the size": one('interpolate(x, scale_factor = 2, mode = "bilinear")', f32(8, 16, 28, 28), torch=lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")),
        "unfold": one("unfold(x, 3, padding = 1)", f32(8, 16, 28, 28), torch=lambda x: F.unfold(x, 3, padding=1)),
        "causal attention": one("scaled_dot_product_attention(x, y, z, is_causal = true)", *[f32(4, 8, 256, 64)] * 3,
                                torch=lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
    }
    slopes = {
        "causal attention": slope("scaled_dot_product_attention(x, y, z, is_causal = true)", *[f32(4, 8, 256, 64)] * 4,
                                  torch=lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), wrt="xyz"),
        "linear": slope("x @ y.T", small, f32(512, 512), small, torch=lambda x, w: x @ w.T, wrt="xy"),
        "64 matmuls of 64": slope("x @ y", *[f32(64, 64, 64)] * 3, torch=torch.bmm, wrt="xy"),
        "softmax": slope("softmax(x, dim = 1)", small, small, torch=lambda x: x.softmax(1), wrt="x"),
        "gelu": slope("gelu(x)", small, small, torch=F.gelu, wrt="x"),
        "layer norm": slope("layer_norm(x, [512], y, z)", small, f32(512), f32(512), small, torch=lambda x, w, b: F.layer_norm(x, (512,), w, b), wrt="xyz"),
        "conv 3x3": slope("conv2d(x, y, padding = 1)", images, f32(64, 64, 3, 3), images, torch=lambda x, k: F.conv2d(x, k, padding=1), wrt="xy"),
        "conv 3x3, stride 2": slope("conv2d(x, y, stride = 2, padding = 1)", images, f32(64, 64, 3, 3), halves,
                                    torch=lambda x, k: F.conv2d(x, k, stride=2, padding=1), wrt="xy"),
        "conv 3x3, depthwise": slope("conv2d(x, y, padding = 1, groups = 64)", images, f32(64, 1, 3, 3), images,
                                     torch=lambda x, k: F.conv2d(x, k, padding=1, groups=64), wrt="xy"),
        "max pool": slope("max_pool2d(x, 2)", images, halves, torch=lambda x: F.max_pool2d(x, 2), wrt="x"),
        "max pool 3, stride 2": slope("max_pool2d(x, 3, stride = 2, padding = 1)", images, halves, torch=lambda x: F.max_pool2d(x, 3, 2, 1), wrt="x"),
        "average pool": slope("avg_pool2d(x, 2)", images, halves, torch=lambda x: F.avg_pool2d(x, 2), wrt="x"),
        "cumsum": slope("cumsum(x, dim = 1)", small, small, torch=lambda x: x.cumsum(1), wrt="x"),
    }
    return out | {f"gradient: {name}": case for name, case in slopes.items()}


def _gradient(f: Callable, wrt: list[int]) -> Callable:
    def call(*args):
        import torch
        with torch.inference_mode(False), torch.enable_grad():
            args = [a.detach().requires_grad_(i in wrt) for i, a in enumerate(args)]
            return torch.autograd.grad((f(*args[:-1]) * args[-1]).sum(), [args[i] for i in wrt])
    return call


def arguments(kinds: list[tuple]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, a[2], a[1]) if a[0] == "i" else rng.standard_normal(a[1], np.float32) for a in kinds]


def measure(case: Case) -> tuple[float, float, float]:
    """Seconds a call of ours and of PyTorch's, and by how much the results differ, relative to the largest element."""
    import engram
    import torch
    source, kinds, theirs = case
    args = arguments(kinds)
    ours, tensors = engram.compile('import "std/nn.nn"\n' + source).f, [torch.from_numpy(a) for a in args]
    with torch.inference_mode():
        sides = (lambda: ours(*args)), (lambda: theirs(*tensors))
        first = [x if isinstance(x, (tuple, list)) else [x] for x in (side() for side in sides)]
        differ = max(_difference(np.asarray(a), np.asarray(b)) for a, b in zip(*first))
        best = [np.inf, np.inf]
        for turn in range(TURNS):
            for k in (0, 1) if turn % 2 else (1, 0):
                best[k] = min(best[k], _time(sides[k]))
    return best[0], best[1], differ


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} and {b.shape}")
    return float(np.max(np.abs(a.astype(np.float64) - b), initial=0.0) / max(np.max(np.abs(b), initial=0.0), 1e-30))


def _time(f: Callable) -> float:
    f()
    n, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < TURN or not n:
        f()
        n += 1
    return spent / n


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("name", nargs="*", help="operations (default: all)")
    p.add_argument("--out", type=Path, help="write the table as Markdown")
    args = p.parse_args()
    import torch

    from ..codegen.cpu.runtime import default_threads
    from .tables import processor, versions
    torch.set_num_threads(default_threads())
    known = cases()
    if unknown := [n for n in args.name if n not in known]:
        p.error(f"no operation {unknown[0]!r}; there are: {', '.join(known)}")
    rows = ["| operation | Engram, ms | PyTorch, ms | ratio |", "|---|---|---|---|"]
    for name in args.name or known:
        ours, theirs, differ = measure(known[name])
        text = f"{theirs / ours:.2f}x" if differ <= SAME else f"differs by {differ:.1e}"
        print(f"{name:28s} {ours * 1e3:9.4f} ms   torch {theirs * 1e3:9.4f} = {text}", flush=True)
        rows.append(f"| {name} | {ours * 1e3:.3g} | {theirs * 1e3:.3g} | {text} |")
    if args.out:
        about = f"{time.strftime('%Y-%m-%d')}. {processor()}, {default_threads()} threads; {', '.join(versions(['torch']))}."
        args.out.write_text(f"# Operations\n\n{about} `python -m engram.benchmarks.operations --out FILE`: f32 unless named otherwise, called from Python, least of several "
                            "turns; the ratio is PyTorch's time over ours.\n\n" + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
