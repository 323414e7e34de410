"""Engram's side of the benchmarks: the `.nn` programs of this folder, given the weights and data that every side gets.

A subject has `results()`, which is compared, and `run(n)`, which does n units of work and returns when they are done; `first()`
is the clock of a first step. Nothing here is faster than what a user's program gets: the same plans, passes and calls.
"""
from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import models
from .workloads import Workload

FOLDERS = (Path(__file__).parent, Path(__file__).parent.parent / "examples")


def version() -> str:
    from .. import __version__
    return f"engram {__version__}"


def program_path(name: str) -> Path:
    """Where a workload's program lies."""
    for folder in FOLDERS:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"the program {name} is not in {FOLDERS[0]} (examples come with a checkout only)")


@dataclass(frozen=True)
class Where:
    """What a subject runs on; `options` are the pass manager's, for a profiler."""

    threads: int | None
    backend: str = "cpu"
    options: object = None

    def build(self, e, quantize: str = ""):
        """An elaborated call's program, as engram.Model builds it."""
        from ..cheap import mark_call
        from ..compiler import driver
        mark_call(e, quantize or None)
        return driver.build(e.module, self.backend, threads=self.threads, options=self.options, inference=True)


def prepare(w: Workload, threads: int | None, backend: str = "cpu", options=None):
    """The subject for a workload, compiled (but for a first step, where compiling is what is timed)."""
    return {"call": Call, "train": Step, "loop": Loop, "generate": Generate, "first": First}[w.kind](w, Where(threads, backend, options))


class _Training:
    """A train block with the benchmark's data and weights in its slots."""

    def __init__(self, w: Workload, where: Where, repeat: int = 1):
        from ..compiler import driver
        from ..datasets import Dataset
        from ..session import load_program, train_plan
        driver.begin(where.backend)                              # as `engram run` does
        fields = models.data(w.model, w.size)
        if repeat > 1:
            fields = {k: np.tile(v, (repeat,) + (1,) * (v.ndim - 1)) for k, v in fields.items()}
        self.fields, self.where = fields, where
        program = load_program(str(program_path(w.program)))
        settings = {**w.settings, **{setting: w.size[dial] for dial, setting in w.dials.items()}}
        data = Dataset("benchmark", fields)
        self.plan = train_plan(program, w.block, settings, given={name: data for name in ("random", "xor", "text", "mnist")})

    def trainer(self, weights: dict[str, np.ndarray]):
        from ..train import Trainer
        t = Trainer(self.plan, self.where.backend, self.where.threads, self.where.options)
        t.initialise(0)
        own = t.names(("own",))                              # a rule's own readouts are the benchmark's, too
        mine = {k: v for k, v in weights.items() if k in own}
        if mine:
            t.set_values({**t.values(("own",)), **mine}, "the benchmark's values", ("own",))
        t.set_values({k: v for k, v in weights.items() if k not in own}, "the benchmark's parameters")
        return t


class Step(_Training):
    """One training step after the other, called from Python, on one batch."""

    def __init__(self, w: Workload, where: Where):
        super().__init__(w, where)
        self.begin(models.parameter_values(w.model, w.size))

    def begin(self, weights: dict[str, np.ndarray]) -> None:
        from ..frontend import reachable
        from ..train import key_of
        t, phase = self.trainer(weights), self.plan.phases[0]
        self.program, self.entry = t.program(reachable(phase.module, [phase.entry])), phase.entry       # without `init`, as training builds it
        self.slots, self.count, self.key = t._slots_for(self.program), 0, key_of(0, 3, 0)
        self.names = {k: i for k, i in t.names(("param", "own")).items() if k in weights}
        self.inputs = [self.program.to_device(v) for v in self.fields.values()]

    def step(self) -> float:
        n = len(self.slots)
        r = self.program.call(self.entry, [*self.slots, np.array(self.count, np.int64), np.array(0, np.int64), self.key, *self.inputs])
        self.slots, self.count = r[:n], self.count + 1
        return float(self.program.to_host(r[n])) if len(r) > n else 0.0          # local rules have no loss

    def results(self) -> dict[str, np.ndarray]:
        losses = np.array([self.step() for _ in range(models.COMPARED_STEPS)])
        if self.plan.losses:
            return {"losses of the first steps": losses}
        return {f"{k} after the first steps": np.array(self.program.to_host(self.slots[i])) for k, i in self.names.items()}

    def run(self, n: int) -> None:
        for _ in range(n):
            self.step()


class First(Step):
    """The first training step of a process: from weights in memory to the loss, every compilation included."""

    def __init__(self, w: Workload, where: Where):
        self.arguments = (w, where)
        self.weights = models.parameter_values(w.model, w.size)

    def first(self) -> tuple[float, float]:
        start = time.perf_counter()
        _Training.__init__(self, *self.arguments)
        self.begin(self.weights)
        loss = self.step()
        return time.perf_counter() - start, loss


class Loop(_Training):
    """Steps of a training run over a data set that repeats the batch: what `engram run` does with an epoch."""

    def __init__(self, w: Workload, where: Where):
        super().__init__(w, where, repeat=models.LOOP_STEPS)
        self.work = w
        self._trainer = self.trainer(models.parameter_values(w.model, w.size))

    def epoch(self):
        return self._trainer.run(self.fields, shuffle=False, final=False)

    def results(self) -> dict[str, np.ndarray]:
        self._trainer.set_values(models.parameter_values(self.work.model, self.work.size))
        losses = self.epoch().first_losses[:models.COMPARED_STEPS]
        return {"losses of the first steps": np.array(losses), **{f"{k} after the loop": v for k, v in self._trainer.values(("param",)).items()}}

    def run(self, n: int) -> None:
        self.timed(n)

    def timed(self, n: int) -> float:
        """Seconds that n steps take (a multiple of a loop's): the epochs' own clock, since an epoch also measures."""
        return sum(self.epoch().epochs[-1]["seconds"] for _ in range(n // models.LOOP_STEPS))

    unit = models.LOOP_STEPS


class Call:
    """A function of the program, or a layer's forward pass, on arrays in memory."""

    def __init__(self, w: Workload, where: Where):
        from ..compiler.ir import TensorType, f32, i64
        from ..frontend import elaborate_call, elaborate_function, instantiate
        from ..session import load_program
        program = load_program(str(program_path(w.program)))
        inputs = models.data(w.model, w.size)
        if w.model == "gpt":
            layer = instantiate(program, w.block, (), gpt_arguments(w.size))
            tokens = TensorType(i64, inputs["x"].shape)
            e = elaborate_call(layer, [tokens], method="last" if w.size.get("last") else "")
            values = models.parameter_values(w.model, w.size)
            self.run_program = p = where.build(e)
            self.args = [p.to_device(inputs["x"] if a.kind == "arg" else values[a.name]) for a in e.args]
        else:
            e = elaborate_function(program, w.block, [TensorType(f32 if v.dtype.kind == "f" else i64, v.shape) for v in inputs.values()])
            self.run_program = p = where.build(e)
            self.args = [p.to_device(v) for v in inputs.values()]
        self.entry, self.e = e.entry, e

    def call(self):
        return self.run_program.call(self.entry, self.args)

    def results(self) -> dict[str, np.ndarray]:
        return {f"result{k or ''}": np.array(self.run_program.to_host(x)) for k, x in enumerate(self.call())}

    def run(self, n: int) -> None:
        for _ in range(n):
            out = self.call()
        self.run_program.to_host(out[0])


class Generate:
    """Tokens of a model with caches: one compiled loop, as the peer's that has one."""

    def __init__(self, w: Workload, where: Where):
        from ..compiler.ir import TensorType, i64
        from ..frontend import elaborate_call, instantiate
        from ..session import load_program
        self.unit = w.size["tokens"]
        layer = instantiate(load_program(str(program_path(w.program))), w.block, (), gpt_arguments(w.size))
        self.e = e = elaborate_call(layer, [TensorType(i64, (1,)), self.unit], method="generate")
        self.program = where.build(e, w.quantize)
        values = models.parameter_values("gpt", w.size)
        self.cells = {a.name: self.program.to_device(np.zeros(a.type.shape, a.type.dtype.numpy) if a.kind == "cache" else values[a.name])
                      for a in e.args if a.kind != "arg"}

    def generate(self) -> np.ndarray:
        """The tokens after token 0, from empty caches on."""
        self.cells["pos"] = np.zeros((), np.int64)
        token = np.zeros(1, np.int64)
        results = self.program.call(self.e.entry, [token if a.kind == "arg" else self.cells[a.name] for a in self.e.args])
        for info, r in zip(self.e.results, results):
            if info.kind != "result":
                self.cells[info.name] = r
        return self.program.to_host(results[0])[:, 0]

    def results(self) -> dict[str, np.ndarray]:
        return {"tokens": np.array(self.generate())}

    def run(self, n: int) -> None:
        for _ in range(n // self.unit):
            self.generate()


def gpt_arguments(s) -> dict[str, int]:
    """A GPT layer's arguments by its own names."""
    return {"vocab": s["vocab"], "ctx": s["context"], "d": s["width"], "h": s["heads"], "depth": s["layers"]}
