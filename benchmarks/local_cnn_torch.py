"""examples/mnist_local_cnn.nn beside a straightforward PyTorch prototype of the same recipe (LOCAL_LEARNING.md): time of a training step.

    python -m engram.benchmarks.local_cnn_torch [--threads 2] [--rounds 15]

First without dropout and shifts, from equal weights: the change of every parameter in one step is compared. Then both, as the recipe has them,
take turns in one process, a pause before each turn so that the other's threads sleep; what is printed is the median of the ratios.
"""
from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

EXAMPLE = Path(__file__).parent.parent / "examples" / "mnist_local_cnn.nn"
LAYERS = [("c1", 1, 32, 5, 2), ("c2", 32, 64, 3, 2), ("c3", 64, 128, 3, 1)]      # name, channels in, out, kernel, pool
BATCH, CLASSES, GRID, RATE = 100, 10, 7, 2e-3


class Ours:
    """The example's compiled step on one batch; `plain`: without dropout and shifts."""

    def __init__(self, x: np.ndarray, y: np.ndarray, threads: int, plain: bool):
        from ..datasets import Dataset
        from ..session import load_program, train_plan
        from ..train import Trainer, key_of
        text = EXAMPLE.read_text(encoding="utf-8")
        if plain:
            text = text.replace("random_shift(x, 2)", "x").replace("lr = rate", "lr = rate, drop = 0")
        plan = train_plan(load_program(str(EXAMPLE), text), "mnist_local_cnn", {"holdout": 0}, given={"mnist": Dataset("mnist", {"x": x, "y": y})})
        self.names = [s.path.removeprefix("model.") for s in plan.slots]
        trainer, phase = Trainer(plan, "cpu", threads), plan.phases[0]
        trainer.initialise(0)
        self.program, self.entry, self.key = trainer.program(phase.module), phase.entry, key_of(0, 3, 0)
        self.slots, self.count = trainer._slots_for(self.program), 0
        self.fields = [self.program.to_device(v) for v in (x[:BATCH], y[:BATCH])]

    def values(self) -> dict[str, np.ndarray]:
        return {n: np.array(self.program.to_host(s)) for n, s in zip(self.names, self.slots)}

    def step(self) -> None:
        self.slots = self.program.call(self.entry, [*self.slots, np.array(self.count, np.int64), np.array(0, np.int64), self.key, *self.fields])
        self.count += 1


class Torch:
    """The recipe as one writes it down in PyTorch: no graph, the layers' own updates."""

    def __init__(self, x: np.ndarray, y: np.ndarray, start: dict[str, np.ndarray], plain: bool):
        import torch
        self.x, self.y, self.plain = torch.tensor(x[:BATCH]), torch.tensor(y[:BATCH]), plain
        self.layers = []
        for name, ci, _, k, pool in LAYERS:
            p = {"w": start[f"{name}.w"], "b": start[f"{name}.b"], "m": start[f"{name}.three_factor_conv.m"], "c": start[f"{name}.three_factor_conv.c"]}
            p = {n: torch.nn.Parameter(torch.tensor(v)) for n, v in p.items()}
            self.layers.append((name, p, k, pool, torch.zeros(ci), torch.ones(ci), torch.optim.Adam(p.values(), lr=RATE)))

    def shifted(self, x):
        """Each image by up to two pixels either way."""
        import torch
        p = torch.nn.functional.pad(x, (2, 2, 2, 2))
        d = torch.randint(0, 5, (2, len(x), 1, 1))
        i, j = d[0] + torch.arange(28)[:, None], d[1] + torch.arange(28)
        return p[torch.arange(len(x))[:, None, None], i, j]

    def step(self) -> None:
        import torch
        import torch.nn.functional as F
        with torch.no_grad():
            x = self.x if self.plain else self.shifted(self.x)
            h = ((x[:, None].float() / 255 - 0.1307) / 0.3081)
            target = F.one_hot(self.y, CLASSES)
            for name, p, k, pool, mean, var, adam in self.layers:
                xn = h if name == "c1" else F.batch_norm(h, mean, var, training=True, momentum=0.1, eps=1e-5)
                u = F.conv2d(xn, p["w"], p["b"], padding=k // 2)
                r, at = F.max_pool2d(u, pool, return_indices=True) if pool > 1 else (u, None)
                h = F.relu(r)
                f = F.adaptive_avg_pool2d(h, GRID).flatten(1)
                if not self.plain:
                    keep = (torch.rand_like(f) < 0.8) / 0.8
                    f = f * keep
                e = (torch.softmax(f @ p["m"].T + p["c"], 1) - target) / BATCH
                d = e @ p["m"]
                if not self.plain:
                    d = d * keep
                s = h.shape[-1] // GRID
                d = d.reshape(BATCH, -1, GRID, GRID)
                if s > 1:
                    d = d.repeat_interleave(s, 2).repeat_interleave(s, 3) / (s * s)
                d = d * (r > 0)
                if at is not None:
                    d = F.max_unpool2d(d, at, pool)
                p["w"].grad = torch.nn.grad.conv2d_weight(xn, p["w"].shape, d, padding=k // 2)
                p["b"].grad, p["m"].grad, p["c"].grad = d.sum((0, 2, 3)), e.T @ f, e.sum(0)
                adam.step()

    def values(self) -> dict[str, np.ndarray]:
        own = {"w": "w", "b": "b", "m": "three_factor_conv.m", "c": "three_factor_conv.c"}
        return {f"{name}.{own[n]}": v.detach().numpy().copy() for name, p, *_ in self.layers for n, v in p.items()}


def compare(x: np.ndarray, y: np.ndarray, threads: int) -> float:
    """The largest difference of the parameters after one step, relative to the step (Adam's first is of size RATE everywhere). Parameters
    whose gradient is lost in rounding may step either way: the worst thousandth of each array is left out."""
    ours = Ours(x, y, threads, plain=True)
    start = ours.values()
    torch_ = Torch(x, y, start, plain=True)
    ours.step()
    torch_.step()
    a, b = ours.values(), torch_.values()
    return max(float(np.quantile(np.abs(a[n] - b[n]), 0.999)) / RATE for n in b)


def per_step(subject, seconds: float = 0.25) -> float:
    time.sleep(0.3)
    subject.step()
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        subject.step()
        n += 1
    return (time.perf_counter() - start) / n


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    import torch
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(0)
    x = np.clip(rng.normal(33, 78, (BATCH, 28, 28)), 0, 255).astype(np.uint8)
    y = rng.integers(0, CLASSES, BATCH)
    off = compare(x, y, args.threads)
    print(f"one step, same weights, no dropout: parameters agree to {off:.1e} of the step")
    if off > 1e-2:
        return 1
    ours = Ours(x, y, args.threads, plain=False)
    torch_ = Torch(x, y, ours.values(), plain=False)
    rounds = [(per_step(ours), per_step(torch_)) for _ in range(args.rounds)]
    ratios = [b / a for a, b in rounds]
    print(f"engram {min(a for a, _ in rounds) * 1e3:.2f} ms a step, torch {torch.__version__} {min(b for _, b in rounds) * 1e3:.2f} ms; "
          f"{statistics.median(ratios):.2f} times as fast (median of {args.rounds}; {min(ratios):.2f} .. {max(ratios):.2f}), {args.threads} threads")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
