"""The runner of train blocks: splits, shuffles, batches, runs epochs, measures on held-out data.

What a step computes is the front end's plan (frontend/train.py), how steps become calls is epochs.py's business; this file only moves
arrays, counts and listens to Ctrl-C.
Showing progress is progress.py's business, files are report.py's and checkpoint.py's.
"""
from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .checkpoint import Expected, match
from .epochs import StepLoop, stages_of
from .progress import Listener

HOLDOUT = 0.2                              # a train block that says nothing holds out a fifth
MEASURE_CHUNK = 1024                       # samples measured in one call
TOGETHER_SECONDS = 0.25                    # how long a call that makes several epochs may take
FIRST_LOSSES = 10                          # steps whose losses go into the report, to compare backends by


# ---- splitting ------------------------------------------------------------------------------------------------------

def split_sizes(n: int, holdout: float | int | None, limit: int | None = None) -> tuple[int, int]:
    """How many samples are learned from and how many held out."""
    share = HOLDOUT if holdout is None else holdout
    if isinstance(share, bool) or not isinstance(share, int | float) or share < 0 or (isinstance(share, float) and share >= 1):
        raise ValueError(f"holdout = {share!r}: expected a share from 0.0 to below 1.0, or a number of samples")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ValueError(f"limit = {limit!r}: expected a positive number of samples")
    if isinstance(share, float):
        n = min(n, limit or n)
        held = min(round(share * n), n - 1)
    else:
        if share >= n:
            raise ValueError(f"holdout = {share:,}: the data has only {n:,} sample{'s' * (n != 1)}, so none would be left to learn from")
        held = min(share, limit or share)
        n = held + min(n - share, limit or n)
    return n - held, held


def split(n: int, holdout: float | int | None, seed: int, limit: int | None = None, order: str = "shuffled") -> tuple[np.ndarray, np.ndarray]:
    """Indices to learn from and indices held out.

    A float holds out that share, drawn by the seed; an integer, the last so many samples. `limit` takes a drawn subset first
    (with an integer holdout, of both sides). Streams are cut in order: their end is held out.
    """
    train, held = split_sizes(n, holdout, limit)
    rng = np.random.default_rng([seed, 0x5911])
    if order == "streams":
        return np.arange(train), np.arange(train, train + held)
    if isinstance(holdout, int):
        cut = n - holdout
        if limit is None:
            return np.arange(cut), np.arange(cut, n)
        return rng.permutation(cut)[:train], cut + rng.permutation(holdout)[:held]
    chosen = rng.permutation(n)[:train + held]
    return chosen[held:], chosen[:held]


def batches(train: np.ndarray, size: int, seed: int, phase: int, epoch: int, order: str) -> list[np.ndarray]:
    """One epoch's batches. A partial last one is dropped unless it is the only one; streams keep row b going on from batch to batch."""
    steps = max(1, len(train) // size)
    if order == "streams":
        return list(train[:steps * size].reshape(size, steps).T) if len(train) >= size else [train]
    shuffled = np.random.default_rng([seed, 0xE90C, phase, epoch]).permutation(train)
    return [shuffled[k * size:(k + 1) * size] for k in range(steps)]


def key_of(seed: int, *parts: int) -> np.ndarray:
    """A random key from the seed and what it is for: SplitMix64 over the parts, so that near seeds give unrelated keys."""
    mask = (1 << 64) - 1
    z = seed & mask
    for p in (0, *parts):
        z = (z + 0x9E3779B97F4A7C15 * (p + 1)) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        z ^= z >> 31
    return np.array(z, np.uint64)


# ---- results --------------------------------------------------------------------------------------------------------

@dataclass
class Result:
    """What a training run gave: a row per finished epoch, and the measures of the final weights."""

    epochs: list[dict[str, Any]] = field(default_factory=list)
    final: dict[str, float] = field(default_factory=dict)
    first_losses: list[float] = field(default_factory=list)
    interrupted: bool = False
    stopped: str | None = None             # why training ended before its last epoch
    seconds: float = 0.0


class Interrupts:
    """Ctrl-C as a flag that is looked at between steps, so that no result is lost half-way; the second one raises. `running`: the
    program whose call is to be told; `closing`: from here on nothing raises, so that the old handler comes back for certain."""

    def __enter__(self):
        self.seen, self._old, self.running, self.closing = False, None, None, False
        if threading.current_thread() is threading.main_thread():
            self._old = signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, number, frame):
        if self.seen and not self.closing:
            self.closing = True
            raise KeyboardInterrupt
        self.seen = True
        if self.running is not None:
            self.running.cancel()

    def __exit__(self, *_):
        if self._old is not None:
            signal.signal(signal.SIGINT, self._old)


# ---- the trainer ----------------------------------------------------------------------------------------------------

class Trainer:
    """One plan on one backend, with the current values of its slots (parameters, state, the rules' own state)."""

    def __init__(self, plan, backend: str = "cpu", threads: int | None = None, options=None, quantize: str | None = None):
        from .cheap import checked
        self._quantize = checked(quantize)
        self.plan, self.backend, self.options = plan, backend, options
        self._threads = threads
        self._programs: list[tuple[Any, Any]] = []           # (module, program): a phase may have a module of its own
        self._measures: dict[int, tuple[Any, str]] = {}
        self._epochs: dict[tuple, tuple[Any, list[str]]] = {}
        self._slots: list[Any] | None = None                 # None in it: what nobody has asked for yet
        self._first_key: np.ndarray | None = None            # of the values that slots begin with
        self._owner = None                                   # the program whose handles the slots are; None: arrays
        self.stale = False                                   # someone else holds newer weights
        from .compiler import driver
        driver.begin(backend, self._modules())

    def _modules(self) -> list[Any]:
        """The plan's modules, each once: a phase may have one of its own."""
        return list({id(m): m for m in (self.plan.module, *(p.module for p in self.plan.phases))}.values())

    def _build(self, module, once: bool = False):
        from .cheap import mark_plan
        from .compiler import driver
        mark_plan(module, self.plan, self._quantize)
        return driver.build(module, self.backend, threads=self._threads, options=self.options, once=once)

    def stages_of(self, phase):
        """What the phase's `pipeline` asks for (frontend's Stages), None where it says nothing."""
        return stages_of(phase, self.backend, self._threads)

    @property
    def threads(self) -> int | None:
        """Threads in use; None where the backend decides."""
        if self.backend == "interp":
            return 1
        program = self._programs[0][1] if self._programs else None
        return getattr(program, "threads", None) or (self._threads or os.cpu_count() if self.backend == "cpu" else None)

    def program(self, module):
        """The module's program, compiled once."""
        for m, p in self._programs:
            if m is module:
                return p
        p = self._build(module)
        self._programs.append((module, p))
        return p

    def epochs_of(self, phase, samples: int, sizes: list[tuple[int, int]]) -> tuple[Any, list[str]]:
        """The module with a phase's loops over that many samples, and its entries: made once, for one run after the other."""
        from .frontend import epoch_module
        key = (phase.module, phase.entry, samples, tuple(sizes))
        if key not in self._epochs:
            self._epochs[key] = epoch_module(phase.module, phase.entry, len(self.plan.slots), samples, sizes, self.stages_of(phase))
        return self._epochs[key]

    def initialise(self, seed: int) -> None:
        """Fresh values for every slot, made when they are first needed: one that is given before is not drawn. CompileError where a learning
        rule is not local, where a step has no stages for `pipeline`, or where the slots do not fit the memory."""
        from .compiler import driver
        from .compiler.memory import check_kept
        from .frontend import epoch_module
        for module in self._modules():
            driver.prove(module)
        for phase in self.plan.phases:
            if (stages := self.stages_of(phase)) is not None:
                slots = len(self.plan.slots)
                driver.prove_cut(epoch_module(phase.module, phase.entry, slots, _batch_of(phase, slots), [(1, 1)], stages)[0])
        check_kept(self.plan.name, [s.type for s in self.plan.slots], self.plan.module.funcs["init"].loc)
        self._own(None, [None] * len(self.plan.slots))
        self._first_key = key_of(seed, 1)

    @property
    def slots(self) -> list[Any] | None:
        """The current values, as handles of the program that had them last."""
        self.complete()
        return self._slots

    def complete(self) -> None:
        """Makes the values that nobody has given."""
        if self._slots is not None and any(v is None for v in self._slots):
            from .compiler import driver
            from .first_values import make
            missing = [k for k, v in enumerate(self._slots) if v is None]
            made = make(self.plan.module, "init", self._first_key, self.backend,
                        lambda m: driver.build(m, self.backend, threads=self._threads, options=self.options, once=True), missing)
            for k, v in zip(missing, made):
                self._slots[k] = v if self._owner is None else self._owner.to_device(v)

    @slots.setter
    def slots(self, values: Sequence[Any]) -> None:
        self._slots = list(values)

    def _own(self, program, handles: Sequence[Any]) -> None:
        self._slots, self._owner = list(handles), program

    def _host(self, handle) -> np.ndarray:
        return handle if self._owner is None else np.asarray(self._owner.to_host(handle))

    def _slots_for(self, program) -> list[Any]:
        """The slots as handles of that program; they cross between programs through the host, one after the other. On the cpu they
        are there already."""
        if self._owner is not program:
            slots = self.slots
            for k, h in enumerate(slots):
                host = self._host(h)
                slots[k] = host if self.backend == "cpu" else program.to_device(host)
            self._owner = program
        return self.slots

    # -- values by name

    def names(self, kinds: Sequence[str] = ("param", "state")) -> dict[str, int]:
        """Public path -> slot index: a single model's own prefix is left off, so its weights load into the bare layer."""
        models = list(self.plan.model_paths)
        prefix = f"{models[0]}." if len(models) == 1 else ""
        return {s.path.removeprefix(prefix): k for k, s in enumerate(self.plan.slots) if s.kind in kinds}

    def values(self, kinds: Sequence[str] = ("param", "state")) -> dict[str, np.ndarray]:
        """Copies of the slots of these kinds."""
        slots = self.slots
        return {name: np.array(self._host(slots[k])) for name, k in self.names(kinds).items()}

    def load_weights(self, arrays: Mapping[str, np.ndarray], source: str) -> None:
        """A file's weights: under the models' own paths or the names that their layers' `names` give (PyTorch's). What the block itself
        keeps from step to step may be missing, and then begins as it would without the file."""
        from .foreign_names import foreign_names
        keys, ignore = {}, []
        for model, value in self.plan.models:
            prefix = f"{model}." if len(self.plan.model_paths) > 1 else ""
            for place, layer in [(f"{prefix}{k}.", x) for k, x in enumerate(value)] if isinstance(value, list) else [(prefix, value)]:
                foreign = foreign_names(layer)
                keys |= {place + path: [(place + key, swap) for key, swap in known] for path, known in foreign.keys.items()}
                ignore += [place + key for key in foreign.ignore]
        self.set_values(arrays, source, keys=keys, ignore=ignore, optional=[n for n in self.names() if n not in keys])

    def set_values(self, arrays: Mapping[str, np.ndarray], source: str = "the checkpoint", kinds: Sequence[str] = ("param", "state"),
                   keys: Mapping[str, list] | None = None, ignore: Sequence[str] = (), optional: Sequence[str] = ()) -> None:
        """Write slots by name, or by one of its other `keys`; every mismatch is listed and nothing changed when there is one."""
        names = self.names(kinds)
        expected = []
        for name, k in names.items():
            t = self.plan.slots[k].type
            expected.append(Expected(name, tuple(t.shape), t.dtype.numpy, (keys or {}).get(name, [])))
        found = match(arrays, expected, ignore, source=source, optional=optional, fresh=self.backend == "interp")
        from .first_values import fill, places
        if self.backend == "cpu":                              # where they are: a large model is not held twice more
            absent = [names[n] for n in found if self._slots[names[n]] is None or not self._slots[names[n]].flags.writeable]
            for k, a in zip(absent, places([self.plan.slots[k].type for k in absent])):
                self._slots[k] = a
            fill([(self._slots[names[n]], a) for n, a in found.items()])
            return
        for name in list(found):
            a = found.pop(name)
            self._slots[names[name]] = np.array(a) if self._owner is None else self._owner.to_device(a)

    # -- measuring

    def measure(self, fields: Mapping[str, np.ndarray], indices: np.ndarray | None = None, seed: int = 0) -> dict[str, float]:
        """Means over the samples of every measure and of the loss, with `training` off."""
        n = len(next(iter(fields.values()))) if indices is None else len(indices)
        totals: np.ndarray | None = None
        names = self.measure_names()
        start = 0
        for size in _chunks(n, max(MEASURE_CHUNK, int(self.plan.settings.get("batch") or 1))):
            part = slice(start, start + size) if indices is None else indices[start:start + size]
            start += size
            program, entry = self._measure_program(size)
            args = [*self._slots_for_measuring(program), key_of(seed, 2), *(np.ascontiguousarray(f[part]) for f in fields.values())]
            values = np.array([float(program.to_host(v)) for v in program.call(entry, args)]) * size
            totals = values if totals is None else totals + values
        return dict(zip(names, (totals / n).tolist())) if totals is not None else {}

    def readings(self, fields: Mapping[str, np.ndarray], indices: np.ndarray, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """For every readout, `measure accuracy(..)` or a layer's own: the classes it reads in these samples, and those that are right."""
        parts: dict[str, list[np.ndarray]] = {}
        start = 0
        for size in _chunks(len(indices), max(MEASURE_CHUNK, int(self.plan.settings.get("batch") or 1))):
            part = indices[start:start + size]
            start += size
            module, entry = self.plan.readings(size)
            names = module.funcs[entry].attrs["result_names"]
            if not names:
                return {}
            program = self.program(module)
            args = [*self._slots_for_measuring(program), key_of(seed, 2), *(np.ascontiguousarray(f[part]) for f in fields.values())]
            for name, v in zip(names, program.call(entry, args)):
                parts.setdefault(name, []).append(np.asarray(program.to_host(v)))
        whole = {name: np.concatenate(p) for name, p in parts.items()}
        return {name: (v, whole[f"{name} right"]) for name, v in whole.items() if not name.endswith(" right")}

    def measure_names(self) -> list[str]:
        """In the order of the measure function's results."""
        names = list(self.plan.measures)
        if self.plan.losses and "loss" not in names:
            names.append("loss")
        return names

    def _measure_program(self, n: int):
        if n not in self._measures:
            module, entry = self.plan.measure(n)
            self._measures[n] = (self._build(module), entry)
        return self._measures[n]

    def _slots_for_measuring(self, program) -> list[Any]:
        """Measuring donates nothing, so the owner's arrays serve; a device backend gets copies of its own."""
        if self.backend != "opencl" or self._owner is program:
            return [self._host(h) for h in self.slots]
        return [program.to_device(self._host(h)) for h in self.slots]

    # -- training

    def run(self, fields: Mapping[str, np.ndarray], train: np.ndarray | None = None, held: np.ndarray | None = None, *,
            held_fields: Mapping[str, np.ndarray] | None = None, order: str = "shuffled", listener: Listener | None = None,
            epoch_hook: Callable[[dict], bool | None] | None = None, measure_train: bool = False, shuffle: bool = True,
            final: bool = True) -> Result:
        """All phases. `held` are indices into `fields`, or `held_fields` other data; epoch_hook may stop by returning True.
        measure_train: Keras's names, `accuracy` on what was learned from and `val_accuracy` on what was not."""
        listener = listener or Listener()
        train = np.arange(len(next(iter(fields.values())))) if train is None else train
        if held_fields is None and held is not None and len(held):
            held_fields = {k: v[held] for k, v in fields.items()}
        seed = int(self.plan.settings.get("seed") or 0)
        if self._slots is None:
            self.initialise(seed)
        self.complete()                                      # before the clock starts
        result, start = Result(), time.perf_counter()
        with Interrupts() as interrupts:
            try:
                for number, phase in enumerate(self.plan.phases):
                    self._phase(number, phase, fields, train, held_fields, order if shuffle else "given", listener, epoch_hook,
                                measure_train, seed, result, interrupts)
                    if result.interrupted or result.stopped == "hook":
                        break
            finally:
                interrupts.closing = True
                listener.close()
        if final:
            result.final = self.measure(held_fields, seed=seed) if held_fields is not None else self.measure(fields, train, seed=seed)
        result.seconds = time.perf_counter() - start
        return result

    def _phase(self, number, phase, fields, train, held_fields, order, listener, epoch_hook, measure_train, seed, result, interrupts) -> None:
        settings = {**self.plan.settings, **(phase.settings or {})}
        size = _batch_of(phase, len(self.plan.slots))
        epochs = int(settings.get("epochs") or 1)
        patience, accumulate = settings.get("patience"), int(settings.get("accumulate") or 1)
        best, best_slots, waited = None, None, 0
        key = key_of(seed, 3, number)
        title = phase.name if len(self.plan.phases) > 1 else None
        listener.begin(epochs, max(1, len(train) // size), title)

        def order_of(epoch: int) -> np.ndarray:
            todo = _in_order(train, size) if order == "given" else batches(train, size, seed, number, epoch, order)
            if len(todo[0]) != size:
                raise ValueError(f"the step was compiled for batches of {size}, but there are fewer to learn from: {len(todo[0])}")
            return np.stack(todo[:max(1, len(todo) // accumulate * accumulate)])      # an update needs all of its batches

        first = order_of(0)
        steps = len(first)
        measured = [m for m in self.measure_names() if m != "loss"]
        alone = bool(measured or held_fields is not None or patience is not None or phase.until is not None or epoch_hook is not None)
        loop = StepLoop(self, phase, fields, train, steps, size, 1 if alone else epochs - 1)
        epoch = at_once = 0
        while epoch < epochs:
            group = loop.together if at_once and epochs - epoch >= loop.together else 1
            began = time.perf_counter()
            listener.epoch_begin(epoch + 1, steps)
            todo = first if epoch == 0 else np.concatenate([order_of(e) for e in range(epoch, epoch + group)])
            watch = _watch(listener, steps, size, began) if listener.live and group == 1 else None
            losses = loop.run(todo, epoch * steps, epoch, key, interrupts, watch)
            seconds = (time.perf_counter() - began) / group
            at_once = loop.together > 1 and seconds * loop.together < TOGETHER_SECONDS
            totals = losses.sum(axis=1)
            if len(result.first_losses) < FIRST_LOSSES:
                result.first_losses += totals[:FIRST_LOSSES - len(result.first_losses)].tolist()
            for k in range(len(losses) // steps):
                row = self._row(result, phase.name if title else None, losses[k * steps:(k + 1) * steps], listener, epoch)
                if measure_train and measured:
                    row |= {k: v for k, v in self.measure(fields, train, seed=seed).items() if k != "loss"}
                if held_fields is not None:
                    held_values = self.measure(held_fields, seed=seed)
                    row |= {(f"val_{k}" if measure_train or k == "loss" and "loss" in row else k): v for k, v in held_values.items()}
                elif measured and not measure_train:
                    row |= {k: v for k, v in self.measure(fields, train, seed=seed).items() if k != "loss"}
                row["seconds"] = seconds
                if k:
                    listener.epoch_begin(epoch + 1, steps)
                result.epochs.append(row)
                listener.epoch_end(row, steps * size / max(seconds, 1e-9))
                epoch += 1
            if len(losses) < len(todo):
                result.interrupted = True
                listener.note(f"interrupted in epoch {epoch + 1}, after {len(losses) % steps} of {steps} steps")
                return
            if patience is not None:
                name = next((m for m in self.measure_names() if m in row or f"val_{m}" in row), "loss")
                value = row.get(f"val_{name}", row.get(name, float("nan")))
                if best is None or _better(name, value, best):
                    best, waited = value, 0
                    best_slots = [np.array(self._host(h)) for h in self.slots]
                else:
                    waited += 1
                    if waited >= patience:
                        listener.note(f"stopped: no better {name} than {best:.4f} for {patience} epochs")
                        result.stopped = "patience"
                        break
            if phase.until is not None and phase.until(row):
                listener.note(f"stopped: the condition of `until` holds after epoch {epoch}")
                result.stopped = "until"
                break
            if epoch_hook is not None and epoch_hook(row):
                result.stopped = "hook"
                break
            if interrupts.seen:
                result.interrupted = True
                listener.note(f"interrupted after epoch {epoch}")
                break
        if best_slots is not None:                           # the weights of the best epoch, as `patience` promises
            self._own(self._owner, [self._owner.to_device(a) for a in best_slots])

    def _row(self, result: Result, phase: str | None, losses: np.ndarray, listener: Listener, epoch: int) -> dict[str, Any]:
        """An epoch's numbers, as far as its steps' losses give them."""
        row: dict[str, Any] = {"epoch": len(result.epochs) + 1, **({"phase": phase} if phase else {})}
        if losses.shape[1]:
            totals = losses.sum(axis=1)
            row["loss"] = float(totals.mean())
            _warn_nan(listener, totals, epoch, result)
        if losses.shape[1] > 1:
            row |= {name: float(v) for name, v in zip(self.plan.losses, losses.mean(axis=0)) if name != "loss"}
        return row


def _watch(listener: Listener, steps: int, size: int, began: float) -> Callable[[int, Any], None]:
    def watch(done: int, losses: list[np.ndarray] | None) -> None:
        loss = None if losses is None else float(sum(x[-1] for x in losses))
        listener.batch(done, loss, done * size / max(time.perf_counter() - began, 1e-9))
    return watch


def _batch_of(phase, n_slots: int) -> int:
    """The batch size that the step was compiled for."""
    func = phase.module.funcs[phase.entry]
    shape = func.args[n_slots + 3].type.shape                # after the slots: step, epoch, key, then the fields
    return int(shape[0])


def _in_order(train: np.ndarray, size: int) -> list[np.ndarray]:
    return [train[k * size:(k + 1) * size] for k in range(max(1, len(train) // size))]


def _chunks(n: int, most: int) -> list[int]:
    """Sizes that add up to n, few of them different: each is a compilation."""
    if n <= most:
        return [n] if n else []
    for size in range(most, most // 4, -1):
        if n % size == 0:
            return [size] * (n // size)
    return [most] * (n // most) + [n % most]


def _warn_nan(listener: Listener, totals: np.ndarray, epoch: int, result: Result) -> None:
    bad = np.flatnonzero(~np.isfinite(totals))
    if len(bad) and all(math.isfinite(r.get("loss", 0.0)) for r in result.epochs):
        listener.warn(f"the loss is {totals[bad[0]]} from step {bad[0] + 1} of epoch {epoch + 1} on; a smaller learning rate or clip_norm may help")


_LESS_IS_BETTER = ("loss", "error", "entropy", "mse", "mae", "perplexity")


def _better(name: str, value: float, best: float) -> bool:
    if math.isnan(value):
        return False
    return math.isnan(best) or (value < best if any(w in name for w in _LESS_IS_BETTER) else value > best)
