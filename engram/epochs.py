"""Training steps in long calls: a phase's loop over its data, compiled; how it is cut into calls, and what is seen while one runs.

The loop itself is the front end's (frontend/train_epoch.py), the order of the samples is train.py's.
"""
from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

LIVE = 0.1                                 # seconds between looks at a call that runs
PART_BYTES = 64 << 20                      # of samples in one call, where the whole data set does not go to the device
INTERP_BYTES = 1 << 20                     # the interpreter turns every number into an object
TOGETHER = 4096                            # steps of several epochs in one call, at most


def stages_of(phase, backend: str, threads: int | None):
    """What the phase's `pipeline` asks for, None where it says nothing: `true` means a stage for each thread, and there is one where the
    backend has none."""
    from .codegen.cpu.runtime import default_threads
    from .frontend import Stages
    asked = phase.settings.get("pipeline")
    if not asked:
        return None
    count = asked if asked is not True else 1 if backend != "cpu" else threads or default_threads()
    return Stages(int(count), asked is not True, phase.pipeline_at)


class StepLoop:
    """One phase's steps, `steps` to an epoch of batches of `batch` samples, as calls of compiled loops.

    The data are passed as they are, never copied: on the cpu the machine code reads the caller's arrays (files mapped into memory
    too), a device gets one copy. Where they are too large for the device, each call brings the samples that it needs.
    """

    def __init__(self, trainer, phase, fields: Mapping[str, np.ndarray], train: np.ndarray, steps: int, batch: int, together: int = 1):
        self.trainer, self.phase, self.steps, self.batch = trainer, phase, steps, batch
        self.n_slots = len(trainer.plan.slots)
        self.rows: np.ndarray | None = None
        data = [np.ascontiguousarray(f) for f in fields.values()]
        if trainer.backend != "cpu" and 2 * len(train) < len(data[0]):           # a small part of the data: only that
            self.rows = np.sort(train)
            data = [f[self.rows] for f in data]
        most, per_call = self._limits()
        sample = sum(f.nbytes for f in data) / len(data[0])
        self.whole = sample * len(data[0]) <= most
        self.together = 1
        if self.whole:
            sizes = [(steps, steps)]
            if together > 10 and 2 * steps <= TOGETHER:
                self.together = max(1, min(together // 10, TOGETHER // steps))     # a look at how it goes ten times in all
                if self.together > 1:
                    sizes.append((steps * self.together, steps))
            samples = len(data[0])
        else:
            n = max(1, min(steps, int(per_call / max(1, sample * batch))))
            sizes = [(k, k) for k in dict.fromkeys([n, steps % n]) if k]
            samples = n * batch
        self.stages = trainer.stages_of(phase)
        self.programs: dict[int, tuple[Any, str]] = {}                           # steps -> program and entry
        if self.whole:
            self._build(samples, sizes)
        else:
            for k, _ in sizes:
                self._build(k * batch, [(k, k)])
        self.sizes = [k for k, _ in sizes]
        self.losses = len(phase.module.funcs[phase.entry].result_types) - self.n_slots
        self.loss_names = phase.module.funcs[phase.entry].attrs["result_names"][self.n_slots:]
        program = self.programs[self.sizes[0]][0]
        self.data = [program.to_device(f) for f in data] if self.whole and trainer.backend == "opencl" else data

    def _build(self, samples: int, sizes: list[tuple[int, int]]) -> None:
        module, names = self.trainer.epochs_of(self.phase, samples, sizes)
        program = self.trainer.program(module)
        self.programs |= {k: (program, name) for (k, _), name in zip(sizes, names)}

    def _limits(self) -> tuple[float, float]:
        """Bytes of data that may live where the program runs, and bytes that one call brings otherwise."""
        if self.trainer.backend == "cpu":
            return float("inf"), float("inf")
        if self.trainer.backend == "interp":
            return INTERP_BYTES, INTERP_BYTES
        from .codegen.opencl.device import device
        return int(device().cl_device.max_mem_alloc_size) // 4, PART_BYTES

    # -- running

    def run(self, order: np.ndarray, step: int, epoch: int, key: np.ndarray, interrupts, watch: Callable[[int, Any], None] | None = None) -> np.ndarray:
        """Steps over order[n, batch]: an epoch's, or those of `together` epochs. The trainer's slots are the new ones.

        Gives the losses [steps done, number of losses]: fewer rows than there are in `order` when Ctrl-C came. `watch` hears the number
        of steps done, and their losses so far (None where they are still on a device), several times a second.
        """
        if self.rows is not None:
            order = np.searchsorted(self.rows, order)
        if len(order) in self.programs and self.whole:
            return self._call(order, self.data, step, epoch, key, interrupts, watch)
        done, losses = 0, []
        while done < len(order):
            part = order[done:done + self.sizes[0]]
            data = [f[part.reshape(-1)] for f in self.data]
            shown = None if watch is None else lambda n, values, before=done: watch(before + n, values)
            losses.append(self._call(np.arange(part.size).reshape(part.shape), data, step + done, epoch, key, interrupts, shown))
            done += len(part)
            if len(losses[-1]) < len(part) or interrupts.seen:
                break
        return np.concatenate(losses)

    def _call(self, order, data, step, epoch, key, interrupts, watch) -> np.ndarray:
        trainer = self.trainer
        program, entry = self.programs[len(order)]
        slots = trainer._slots_for(program)
        losses = [np.zeros(len(order), np.float32) for _ in range(self.losses)]
        args = [*slots, np.array(step, np.int64), np.array(epoch, np.int64), key, np.ascontiguousarray(order, np.int64), *data, *losses]
        interrupts.running = program
        try:
            late = self.stages.count - 1 if self.stages else 0                   # steps begun whose losses may not be there yet
            results = program.call(entry, args) if watch is None else _watched(program, entry, args, interrupts, watch, losses, late)
        finally:
            interrupts.running = None
        trainer.slots = results[:len(slots)]
        done = program.progress
        return np.stack([np.asarray(program.to_host(v))[:done] for v in results[len(slots):]], axis=1).astype(np.float64) if losses \
            else np.zeros((done, 0))


def _watched(program, entry: str, args: list, interrupts, watch, losses: list[np.ndarray], late: int) -> list:
    """The call on a thread of its own, so that this one can show how far it is."""
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["results"] = program.call(entry, args)
        except BaseException as e:
            outcome["error"] = e
    thread = threading.Thread(target=work)
    thread.start()
    now = False
    try:
        while True:
            thread.join(LIVE)
            if not thread.is_alive():
                break
            if interrupts.seen:
                program.cancel()
            done = program.progress
            known = done - late
            watch(done, [x[:known] for x in losses] if known > 0 and any(x[known - 1] for x in losses) else None)
    except KeyboardInterrupt:
        now = True
        raise
    finally:
        while thread.is_alive():
            program.cancel(now)
            thread.join(LIVE)
    if "error" in outcome:
        raise outcome["error"]
    return outcome["results"]
