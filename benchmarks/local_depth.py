"""What depth costs when every layer learns by itself, beside backpropagation of the same net: memory and time of a training step.

    python benchmarks/local_depth.py [--width 512,1000] [--depth 4,8,16,32] [--no-time]
    python benchmarks/local_depth.py --pipeline [--width 128,1000] [--depth 2,8] [--batch 32,100]

The net is 784-width-...-width with ReLUs, batch 100; each layer learns by `three_factor` with a readout of its own, against SGD on a
cross entropy behind one more linear layer. Memory is the step's arena: everything but parameters, the rules' own state and the batch.
`--pipeline`: a step's share of an epoch, the layers learning one after the other or (`pipeline = true`) as stages on two threads.
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

BATCH, CLASSES, SAMPLES = 100, 10, 6000
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
  batch = BATCH
  holdout = 0
  let h = model(x)
  learn model.first by three_factor(10, lr = 0.05, momentum = 0) given y
  learn model.rest by three_factor(10, lr = 0.05, momentum = 0) given y
}
train backprop {
  model = Net(WIDTH, DEPTH)
  data = dataset("bench")
  batch = BATCH
  holdout = 0
  minimize cross_entropy(model.classes(x), y) using sgd(0.05)
}
"""


def plan_of(block: str, width: int, depth: int, batch: int = BATCH, samples: int = BATCH):
    """The train block's plan and its samples, one batch unless more are asked for."""
    from engram.datasets import Dataset
    from engram.session import load_program, train_plan
    rng = np.random.default_rng(0)
    fields = {"x": rng.standard_normal((samples, 784)).astype(np.float32), "y": rng.integers(0, CLASSES, samples).astype(np.int32)}
    program = load_program("<bench>", PROGRAM.replace("WIDTH", str(width)).replace("DEPTH", str(depth)).replace("BATCH", str(batch)))
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


def epoch(block: str, width: int, depth: int, batch: int, stages: int = 0):
    """A call that makes an epoch over SAMPLES samples on two threads, and how many steps it makes."""
    from engram.compiler import driver
    from engram.frontend import Stages, epoch_module
    from engram.train import key_of
    plan, fields = plan_of(block, width, depth, batch, SAMPLES)
    steps = SAMPLES // batch
    module, (entry,) = epoch_module(plan.module, "step", len(plan.slots), SAMPLES, [(steps, steps)], Stages(stages, True) if stages else None)
    program = driver.build(module, "cpu", threads=2)
    slots = [np.array(v) for v in driver.build(plan.module, "cpu", once=True).call("init", [key_of(0, 1)])]
    order = np.arange(steps * batch, dtype=np.int64).reshape(steps, batch)
    args = [*slots, np.array(0, np.int64), np.array(0, np.int64), key_of(0, 3, 0), order, *fields.values()]
    args += [np.zeros(steps, np.float32) for _ in plan.losses]
    return lambda: program.call(entry, args), steps


def pipelines(widths: list[int], depths: list[int], batches: list[int]) -> None:
    print("| width | layers | batch | in sequence | pipeline | gain | backprop | pipeline / backprop | ratio of FLOP |\n|---|---|---|---|---|---|---|---|---|")
    for width in widths:
        for depth in depths:
            for batch in batches:
                (a, steps), (b, _), (c, _) = (epoch("local", width, depth, batch), epoch("local", width, depth, batch, 2), epoch("backprop", width, depth, batch))
                apart, piped, back = (t / steps for t in seconds([a, b, c], 5))
                share = flops("local", width, depth) / flops("backprop", width, depth)
                print(f"| {width} | {depth} | {batch} | {apart * 1e6:.0f} us | {piped * 1e6:.0f} us | {apart / piped:.2f}x | {back * 1e6:.0f} us | {piped / back:.3f} | {share:.3f} |",
                      flush=True)


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
    parser.add_argument("--width", type=numbers, default=None)
    parser.add_argument("--depth", type=numbers, default=None)
    parser.add_argument("--no-time", action="store_true", help="memory only: nothing is compiled")
    parser.add_argument("--batch", type=numbers, default=[32, 100])
    parser.add_argument("--pipeline", action="store_true", help="steps in sequence beside steps in a pipeline over two threads")
    args = parser.parse_args()
    if args.pipeline:
        pipelines(args.width or [128, 1000], args.depth or [2, 8], args.batch)
        return
    blocks = ("local", "backprop")
    print("| width | layers | memory, local | memory, backprop |" + ("" if args.no_time else " step, local | step, backprop | ratio | ratio of FLOP | between them |"))
    print("|---|---|---|---|" + ("" if args.no_time else "---|---|---|---|---|"))
    for width in args.width or [512, 1000]:
        for depth in args.depth or [4, 8, 16, 32]:
            row = [str(width), str(depth), *(f"{arena(b, width, depth) / 1e6:.2f} MB" for b in blocks)]
            if not args.no_time:
                local, back = seconds([stepper(b, width, depth) for b in blocks])
                share = flops("local", width, depth) / flops("backprop", width, depth)
                row += [f"{local * 1e3:.2f} ms", f"{back * 1e3:.2f} ms", f"{local / back:.3f}", f"{share:.3f}", f"{local / back / share:.3f}"]
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
