"""`engram bench`: times the headline workloads on this machine, the best of several repeats. Peers are in benchmarks/."""
from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import OK
from .errors import UserError


@dataclass
class Workload:
    """`source`: the program; `run(program arguments)` gives (value, unit) through `measure`."""

    what: str
    run: Callable[[object], tuple[float, str]]


def bench_command(args) -> int:
    """Print a table, or JSON."""
    unknown = [w for w in args.workload if w not in WORKLOADS]
    if unknown:
        raise UserError(f"unknown workload {unknown[0]!r}; known: {', '.join(WORKLOADS)}")
    if args.list:
        print("\n".join(f"{k:14s} {w.what}" for k, w in WORKLOADS.items()))
        return OK
    rows = []
    if not args.json:
        print(machine(args))
    for name in args.workload or WORKLOADS:
        value, unit = WORKLOADS[name].run(args)
        rows.append({"workload": name, "value": value, "unit": unit, "what": WORKLOADS[name].what})
        if not args.json:
            print(f"{name:14s} {value:12,.3f} {unit:10s} {WORKLOADS[name].what}", flush=True)
    if args.json:
        print(json.dumps({"machine": machine(args), "backend": args.backend, "threads": args.threads, "results": rows}, indent=1))
    return OK


def machine(args) -> str:
    """The processor, which every number depends on."""
    import os
    import platform
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            name = next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {os.cpu_count()} cores; backend {args.backend}, {args.threads or 'all'} threads"


def best(f: Callable[[], object], seconds: float = 1.0, repeats: int = 5) -> float:
    """Seconds a call, the best of several repeats that together take about `seconds`."""
    f()
    start = time.perf_counter()
    f()
    n = max(1, int(seconds / repeats / max(time.perf_counter() - start, 1e-7)))
    out = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(n):
            f()
        out = min(out, (time.perf_counter() - start) / n)
    return out


def matmul(args) -> tuple[float, str]:
    """GFLOP/s of f32 1024^3."""
    from ..compiler import driver
    from ..compiler.ir import TensorType, f32
    from ..frontend import elaborate_function
    from ..session import load_program
    n = 1024
    e = elaborate_function(load_program("fn f(a: f32[m, k], b: f32[k, n]) -> f32[m, n] { a @ b }\n"), "f", [TensorType(f32, (n, n))] * 2)
    program = driver.build(e.module, args.backend, threads=args.threads)
    rng = np.random.default_rng(0)
    a, b = (program.to_device(rng.standard_normal((n, n), np.float32)) for _ in range(2))
    return 2 * n**3 / best(lambda: program.to_host(program.call(e.entry, [a, b])[0])) / 1e9, "GFLOP/s"


def step(source: str, x: np.ndarray, y: np.ndarray):
    """Times one training step of a train block `t` over one batch."""
    def run(args) -> float:
        from ..datasets import Dataset
        from ..session import load_program, train_plan
        from ..train import Trainer, key_of
        plan = train_plan(load_program(source), "t", given={"bench": Dataset("bench", {"x": x, "y": y})})
        trainer = Trainer(plan, args.backend, args.threads)
        trainer.initialise(0)
        phase = plan.phases[0]
        program = trainer.program(phase.module)
        state = {"slots": trainer._slots_for(program), "step": 0}
        key = key_of(0, 3, 0)
        fields = [program.to_device(v) for v in (x, y)]

        def once():
            s = state["slots"]
            r = program.call(phase.entry, [*s, np.array(state["step"], np.int64), np.array(0, np.int64), key, *fields])
            state["slots"], state["step"] = r[:len(s)], state["step"] + 1
            return float(program.to_host(r[len(s)]))

        return best(once)
    return run


def _mlp(args) -> tuple[float, str]:
    rng = np.random.default_rng(0)
    source = '''import "std/nn.nn"
layer M() {
  a = Linear(784, 512)
  b = Linear(512, 256)
  c = Linear(256, 10)
  fn (x: f32[B, 784]) -> f32[B, 10] { x |> a |> relu |> b |> relu |> c }
}
train t { model = M(); data = dataset("bench"); batch = 128; holdout = 0
  minimize cross_entropy(model(x), y) using adam(1e-3) }
'''
    return step(source, rng.standard_normal((128, 784), np.float32), rng.integers(0, 10, 128))(args) * 1e3, "ms/step"


def _xor(args) -> tuple[float, str]:
    from ..datasets import dataset
    source = '''import "std/nn.nn"
layer M() {
  a = Linear(2, 8)
  b = Linear(8, 1)
  fn (x: f32[B, 2]) -> f32[B, 1] { x |> a |> tanh |> b }
}
train t { model = M(); data = dataset("bench"); batch = 4; holdout = 0
  minimize mse_loss(model(x), y) using sgd(0.5) }
'''
    d = dataset("xor").fields
    return step(source, d["x"], d["y"])(args) * 1e6, "us/step"


def _digits(args) -> tuple[float, str]:
    from ..datasets import dataset
    source = '''import "std/nn.nn"
layer M() {
  a = Linear(64, 128)
  b = Linear(128, 10)
  fn (x: f32[B, 64]) -> f32[B, 10] { x |> a |> relu |> b }
}
train t { model = M(); data = dataset("bench"); batch = 32; holdout = 0
  minimize cross_entropy(model(x), y) using adam(3e-3) }
'''
    d = dataset("digits").fields
    return step(source, d["x"][:32], d["y"][:32])(args) * 1e6, "us/step"


def _rnn(args) -> tuple[float, str]:
    source = '''import "std/nn.nn"
layer M() {
  emb = Embedding(65, 256)
  param wx: f32[256, 256] = kaiming_uniform(256)
  param wh: f32[256, 256] = uniform(-1 / 16, 1 / 16)
  param b: f32[256] = 0
  head = Linear(256, 65)
  fn (i: int[B, T]) -> f32[T, B, 65] {
    let us = emb(i.T) @ wx + b
    head(scan u in us with s = zeros(B, 256) { let s = tanh(u + s @ wh); yield s; s })
  }
}
train t { model = M(); data = dataset("bench"); batch = 32; holdout = 0
  minimize cross_entropy(model(x), y.T) using adam(1e-3) }
'''
    rng = np.random.default_rng(0)
    return step(source, rng.integers(0, 65, (32, 64)), rng.integers(0, 65, (32, 64)))(args) * 1e3, "ms/step"


WORKLOADS = {
    "matmul": Workload("f32 1024 x 1024 x 1024", matmul),
    "mlp": Workload("784-512-256-10, batch 128, Adam: one training step", _mlp),
    "digits": Workload("64-128-10, batch 32, Adam: one training step", _digits),
    "xor": Workload("2-8-1, batch 4, SGD: one training step, called from Python", _xor),
    "rnn": Workload("h = 256, T = 64, B = 32, Adam: one training step", _rnn),
}
