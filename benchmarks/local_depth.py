"""What depth costs when every layer learns by itself, beside backpropagation of the same net: memory and time of a training step.

    python benchmarks/local_depth.py [--width 512,1000] [--depth 4,8,16,32] [--no-time]

The net is 784-width-...-width with ReLUs, batch 100; each layer learns by `three_factor` with a readout of its own, against SGD on a
cross entropy behind one more linear layer. Memory is the step's arena: everything but parameters, the rules' own state and the batch.
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

BATCH, CLASSES = 100, 10
PROGRAM = """import "std/nn.nn"
layer Unit(i, o) {
  param w: f32[i, o] = normal(0, sqrt(2 / i))
  param b: f32[o] = 0
  fn (x: f32[B, i]) -> f32[B, o] { let pre = x
    relu(pre @ w + b) }
}
layer Net(n, depth) {
  first = Unit(784, n)
  rest = [Unit(n, n)] * (depth - 1)
  head = Linear(n, 10)
  fn (x: f32[B, 784]) -> f32[B, n] { x |> first |> rest }
  fn classes(x: f32[B, 784]) -> f32[B, 10] { head(x |> first |> rest) }
}
train local {
  model = Net(WIDTH, DEPTH)
  data = dataset("bench")
  batch = 100
  holdout = 0
  let h = model(x)
  learn model.first by three_factor(10, lr = 0.05, momentum = 0) given y
  learn model.rest by three_factor(10, lr = 0.05, momentum = 0) given y
}
train backprop {
  model = Net(WIDTH, DEPTH)
  data = dataset("bench")
  batch = 100
  holdout = 0
  minimize cross_entropy(model.classes(x), y) using sgd(0.05)
}
"""


def plan_of(block: str, width: int, depth: int):
    """The train block's plan and its one batch."""
    from engram.datasets import Dataset
    from engram.session import load_program, train_plan
    rng = np.random.default_rng(0)
    fields = {"x": rng.standard_normal((BATCH, 784)).astype(np.float32), "y": rng.integers(0, CLASSES, BATCH).astype(np.int32)}
    program = load_program("<bench>", PROGRAM.replace("WIDTH", str(width)).replace("DEPTH", str(depth)))
    return train_plan(program, block, given={"bench": Dataset("bench", fields)}), fields


def flops(block: str, width: int, depth: int) -> float:
    """Of the matrix products of one step: forward, weight gradient and, for backpropagation behind the first layer, input gradient."""
    back = block == "backprop"
    macs = 784 * width * 2 + (depth - 1) * width * width * (3 if back else 2)
    return 2.0 * BATCH * (macs + 3 * width * CLASSES * (1 if back else depth))


def arena(block: str, width: int, depth: int) -> int:
    from engram.compiler import driver
    return driver.lower(plan_of(block, width, depth)[0].module).funcs["step"].attrs["arena"]


def stepper(block: str, width: int, depth: int):
    """A call that makes one step."""
    from engram.compiler import driver
    from engram.train import key_of
    plan, fields = plan_of(block, width, depth)
    program = driver.build(plan.module, "cpu")
    slots = [np.array(v) for v in program.call("init", [key_of(0, 1)])]
    args = [*slots, np.array(0, np.int64), np.array(0, np.int64), key_of(0, 3, 0), *fields.values()]
    return lambda: program.call("step", args)


def seconds(calls: list, repeats: int = 20) -> list[float]:
    """The best of each, taken in turn."""
    best = [float("inf")] * len(calls)
    for call in calls:
        call()
    for _ in range(repeats):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = lambda text: [int(v) for v in text.split(",")]                     # noqa: E731
    parser.add_argument("--width", type=numbers, default=[512, 1000])
    parser.add_argument("--depth", type=numbers, default=[4, 8, 16, 32])
    parser.add_argument("--no-time", action="store_true", help="memory only: nothing is compiled")
    args = parser.parse_args()
    blocks = ("local", "backprop")
    print("| width | layers | memory, local | memory, backprop |" + ("" if args.no_time else " step, local | step, backprop | ratio | ratio of FLOP | between them |"))
    print("|---|---|---|---|" + ("" if args.no_time else "---|---|---|---|---|"))
    for width in args.width:
        for depth in args.depth:
            row = [str(width), str(depth), *(f"{arena(b, width, depth) / 1e6:.2f} MB" for b in blocks)]
            if not args.no_time:
                local, back = seconds([stepper(b, width, depth) for b in blocks])
                share = flops("local", width, depth) / flops("backprop", width, depth)
                row += [f"{local * 1e3:.2f} ms", f"{back * 1e3:.2f} ms", f"{local / back:.3f}", f"{share:.3f}", f"{local / back / share:.3f}"]
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
