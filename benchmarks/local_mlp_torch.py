"""examples/mnist_local.nn against the same recipe in PyTorch, in one run: seconds an epoch and accuracy of both.

    python benchmarks/local_mlp_torch.py DIR [--epochs 10] [--threads 2]      # DIR holds MNIST's IDX files

The PyTorch side is written as one would: no autograd, updates in place, the momentum of each parameter in one fused call; data on the
host, the batch gathered and scaled in each step as Engram does. An epoch is the training alone; measuring is not in it. Each side runs in
a process of its own, one after the other, so that neither's waiting threads disturb the other.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

BATCH, UNITS, CLASSES, ETA = 100, 1000, 10, 0.05
EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "mnist_local.nn"


def with_engram(folder: str, epochs: int, threads: int, seed: int) -> tuple[list[float], float]:
    """Seconds of each epoch, and the accuracy on what was held out."""
    from engram.session import load_program, train_plan
    from engram.train import Trainer, split
    plan = train_plan(load_program(str(EXAMPLE)), "mnist_local", {"data": folder, "epochs": epochs, "seed": seed})
    data, trainer = plan.dataset, Trainer(plan, "cpu", threads)
    trainer.initialise(seed)
    learn, held = split(data.n, plan.settings["holdout"], seed, None)
    result = trainer.run(data.fields, learn, held)
    return [r["seconds"] for r in result.epochs], result.final["accuracy"]


def with_torch(folder: str, epochs: int, threads: int, seed: int) -> tuple[list[float], float]:
    """The same in PyTorch."""
    import torch
    import torch.nn.functional as F
    from engram.datasets import dataset
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    data = dataset("mnist", folder)
    x, y = torch.from_numpy(data.fields["x"].copy()).flatten(1), torch.from_numpy(data.fields["y"].copy())
    cut = len(x) - data.test
    sizes = [(784, UNITS), (UNITS, UNITS)]
    ws = [torch.randn(o, i) * (2 / i) ** 0.5 for i, o in sizes]
    bs = [torch.zeros(o) for _, o in sizes]
    ms = [torch.randn(CLASSES, o) / o ** 0.5 for _, o in sizes]
    params = [p for layer in zip(ws, bs, ms) for p in layer]
    speeds = [torch.zeros_like(p) for p in params]

    def images(index):
        return (x[index].float() / 255 - 0.1307) / 0.3081

    def inputs(h, k):
        return F.layer_norm(h, h.shape[1:]) if k else h

    def step(index, eta):
        h, label, grads = images(index), y[index], []
        for k, (w, b, m) in enumerate(zip(ws, bs, ms)):
            xi = inputs(h, k)
            h = F.relu(F.linear(xi, w, b))
            e = F.linear(h, m).softmax(1)
            e[torch.arange(len(label)), label] -= 1
            e /= len(label)
            d = (e @ m) * (h > 0)
            grads += [d.T @ xi, d.sum(0), e.T @ h]
        torch._foreach_mul_(speeds, 0.9)
        torch._foreach_add_(speeds, grads)
        torch._foreach_add_(params, speeds, alpha=-eta)

    def votes(index):
        h, total = images(index), 0
        for k, (w, b, m) in enumerate(zip(ws, bs, ms)):
            h = F.relu(F.linear(inputs(h, k), w, b))
            total = total + F.linear(h, m).log_softmax(1)
        return total

    seconds, done, steps = [], 0, epochs * (cut // BATCH)
    with torch.no_grad():
        for _ in range(epochs):
            began = time.perf_counter()
            order = torch.randperm(cut)
            for k in range(cut // BATCH):
                step(order[k * BATCH:(k + 1) * BATCH], ETA * (1 - done / steps))
                done += 1
            seconds.append(time.perf_counter() - began)
        held = torch.arange(cut, len(x))
        return seconds, (votes(held).argmax(1) == y[held]).float().mean().item()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", metavar="DIR")
    p.add_argument("--epochs", type=int, default=2)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--only", choices=SIDES, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.only:
        print(json.dumps(SIDES[args.only](args.folder, args.epochs, args.threads, args.seed)))
        return
    rows = {}
    for name in SIDES:
        out = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", name], check=True, stdout=subprocess.PIPE, text=True).stdout
        seconds, accuracy = json.loads(out.splitlines()[-1])
        rows[name] = float(np.median(seconds))
        print(f"{name:8} {rows[name]:6.2f} s an epoch   accuracy {accuracy:.4f} after {args.epochs}", flush=True)
    print(f"ratio {rows['PyTorch'] / rows['Engram']:.2f}")


SIDES = {"Engram": with_engram, "PyTorch": with_torch}

if __name__ == "__main__":
    main()
