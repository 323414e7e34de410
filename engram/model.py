"""`engram.Model`: one layer with its parameters, to be called, trained, saved and loaded from Python.

`fit` writes a small train block against the user's program and goes the way of every train block: what Python says and what
the language says cannot drift apart.
"""
from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np

from . import checkpoint
from .api import (
    OMITTED,
    _hashable,
    _tensor_type,
    _type_of,
    bind,
    check_rank,
    checked_backend,
    checked_program,
    checked_threads,
    entry_arguments,
    plain_key,
    plain_value,
    same,
)
from .arguments import KINDS, ArgumentError, to_array
from .fit_block import BLOCK, CompiledFit, FitBlock
from .optim import Rule, Verbatim, literal
from .session import load_program, load_with_text


class History:
    """What `fit` returns: `history["loss"][epoch]`, with Keras's names; `epoch` lists the epochs' numbers, from 0."""

    def __init__(self):
        self.history: dict[str, list[float]] = {}
        self.epoch: list[int] = []

    def add(self, row: Mapping[str, Any]) -> None:
        self.epoch.append(len(self.epoch))
        for k, v in row.items():
            if isinstance(v, float) and k != "seconds":
                self.history.setdefault(k, []).append(v)

    def __repr__(self) -> str:
        return f"<History of {len(self.epoch)} epochs: {', '.join(self.history)}>"


class Parameters(MutableMapping):
    """A model's parameters by path. Reading gives copies; writing checks shape and dtype."""

    def __init__(self, model: Model):
        self._model = model

    def _index(self, path: str) -> int:
        index = {p: k for k, (p, s) in enumerate(self._model._slots) if s.kind == "param"}
        if path not in index:
            from .compiler.diagnostics import did_you_mean
            near = did_you_mean(str(path), index)
            raise KeyError(f"{path!r}" + (f": did you mean {near!r}?" if near else f"; there are {', '.join(index)}"))
        return index[path]

    def __getitem__(self, path: str) -> np.ndarray:
        return self._model._values[self._index(path)].copy()

    def __setitem__(self, path: str, value) -> None:
        k = self._index(path)
        t = self._model._slots[k][1].type
        a = to_array(path, value, str(t.dtype))
        if a.shape != tuple(t.shape):
            raise ArgumentError(f"{path}: expected shape {list(t.shape)}, got {list(a.shape)}")
        self._model._write(k, np.array(a, order="C"))

    def __delitem__(self, path: str) -> None:
        raise TypeError("a model's parameters cannot be deleted")

    def __iter__(self) -> Iterator[str]:
        return (p for p, s in self._model._slots if s.kind == "param")

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{p!r}: {s.type}" for p, s in self._model._slots if s.kind == "param") + "}"


class Model:
    """A layer of a program, made with the given arguments: `Model("mlp.nn", "Mlp", 64, 128, 10, seed=0)`.

    `quantize`: "ternary", "int4", "int8" or "pow2(n)" makes every product with a matrix of parameters one of small integers, the weights packed
    once for calls; `fit` learns through it (straight to the stored floats).
    """

    def __init__(self, path_or_source: str | os.PathLike, layer: str, *args, seed: int = 0, backend: str = "cpu",
                 threads: int | None = None, quantize: str | None = None, **kwargs):
        from .cheap import checked, weight_argument
        from .frontend import instantiate
        self._quantize = checked(quantize)
        args = tuple(weight_argument(plain_value(f"{i + 1} of {layer}", v)) for i, v in enumerate(args))
        kwargs = {k: weight_argument(plain_value(k, v)) for k, v in kwargs.items()}
        self._backend, self._threads, self.seed = checked_backend(backend), checked_threads(threads), _seed(seed)
        self._program, self._source = load_with_text(path_or_source)
        checked_program(self._program)
        self._layer, self._args, self._kwargs = layer, args, kwargs
        self._instance = instantiate(self._program, layer, args, kwargs)
        self._slots = [(p, s) for p, s in self._instance.cells if s.kind in ("param", "state")]
        self._forwards: dict[tuple, tuple[Any, Any]] = {}
        self._plain: dict[tuple, tuple[Any, Any, list]] = {}     # the same by plain_key, where nothing has to be converted or written back
        self._plan: CompiledFit | None = None
        self._trainer = None
        self._trainer_key: tuple | None = None
        self._block: FitBlock | None = None                  # the trainer's train block
        self.stop_training = False
        self._values: list[np.ndarray] = []
        self._handles: tuple[Any, list] | None = None        # (program, the values on its device)
        self._caches: dict[str, np.ndarray] = {}
        self._calls = 0
        self.reset(seed)

    def __copy__(self) -> Model:
        """Another model with these values; compiled code is shared, an optimizer begins anew."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._replace([v.copy() for v in self._values])
        other._caches = {k: v.copy() for k, v in self._caches.items()}
        other._forwards, other._plain, other._trainer_key, other._block = dict(self._forwards), dict(self._plain), None, None
        return other

    def __deepcopy__(self, memo) -> Model:
        return self.__copy__()

    def __reduce_ex__(self, protocol):
        raise TypeError("an engram.Model cannot be pickled: it holds compiled code; save(path) writes its values, load(path) reads them")

    def __repr__(self) -> str:
        return f"<engram.Model {self._text()}: {self.count:,} parameter{'s' * (self.count != 1)}; {self._backend}>"

    def _text(self) -> str:
        parts = [_shown(a) for a in self._args] + [f"{k} = {_shown(v)}" for k, v in self._kwargs.items()]
        return f"{self._layer}({', '.join(parts)})"

    @property
    def count(self) -> int:
        """The number of parameters."""
        return sum(int(np.prod(s.type.shape, dtype=np.int64)) for _, s in self._slots if s.kind == "param")

    def reset(self, seed: int | None = None) -> None:
        """Fresh parameters and state, as the layer's initialisers give them."""
        from .compiler import driver
        from .first_values import make
        from .frontend import elaborate_init
        from .train import key_of
        if seed is not None:
            self.seed = _seed(seed)
        e = elaborate_init(self._instance)
        self._replace(make(e.module, e.entry, key_of(self.seed, 1), self._backend,
                           lambda m: driver.build(m, self._backend, threads=self._threads)))

    # -- values

    @property
    def parameters(self) -> Parameters:
        """path -> array. Reading copies; `m.parameters["hidden.w"] = a` writes."""
        return Parameters(self)

    def _replace(self, values: list[np.ndarray]) -> None:
        self._values, self._handles, self._trainer = list(values), None, None

    def _write(self, k: int, value: np.ndarray) -> None:
        self._values[k], self._handles = value, None
        if self._trainer is not None:                        # optimiser state stays, the weights are taken over at the next fit
            self._trainer.stale = True

    def summary(self) -> str:
        """The parameters and states as a table; printed and returned."""
        rows = [("path", "type", "number")]
        rows += [(p, f"{s.type}" + ("" if s.kind == "param" else f" ({s.kind})"), f"{int(np.prod(s.type.shape, dtype=np.int64)):,}")
                 for p, s in self._slots]
        widths = [max(len(r[k]) for r in rows) for k in range(3)]
        lines = [self._text(), *(f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows)]
        size = sum(v.nbytes for (_, s), v in zip(self._slots, self._values) if s.kind == "param")
        lines.append(f"{self.count:,} parameter{'s' * (self.count != 1)}, {_size(size)}")
        text = "\n".join(lines)
        print(text)
        return text

    # -- calling

    def __call__(self, *args, **kwargs):
        """The layer's own `fn`, with `training` false. State that the call writes is kept."""
        plain = None if kwargs or self._backend == "opencl" else plain_key(args)
        if plain is not None and plain in self._plain:
            program, e, places = self._plain[plain]
            values = self._values
            results = program.call(e.entry, [args[k] if given else values[k] for given, k in places])
            return e.pack([np.asarray(program.to_host(r)) for r in results])
        forward = self._instance.forward
        if forward is None:
            raise TypeError(f"layer {self._layer} has no unnamed fn, so it cannot be called")
        types: dict[str, Any] = {}
        arrays: list[np.ndarray] = []
        for p, v in zip(forward.decl.params, bind(self._layer, forward.decl, args, kwargs)):
            if v is not OMITTED:
                types[p.name] = _layer_argument(p, v, arrays)
        key = tuple((n, _hashable(t)) for n, t in types.items())
        if key not in self._forwards:
            from .cheap import mark_call
            from .compiler import driver
            from .frontend import elaborate_call
            e = elaborate_call(self._instance, kwargs=types)
            mark_call(e, self._quantize)
            self._forwards[key] = (driver.build(e.module, self._backend, threads=self._threads, inference=True), e)
        program, e = self._forwards[key]
        if plain is not None and same(args, arrays):
            self._remember(plain, program, e)
        results = program.call(e.entry, entry_arguments(e, arrays, self._for_call(program, e), self._key))
        out = []
        for info, r in zip(e.results, results):
            if info.kind == "result":
                out.append(np.asarray(program.to_host(r)))
            else:
                # a cache comes back where it was: nothing to copy
                self._write_path(info.name, info.kind, r if info.kind == "cache" and self._backend == "cpu" else np.array(program.to_host(r)))
        return e.pack(out)

    def _remember(self, plain: tuple, program, e) -> None:
        """Calls of this kind need no more than the caller's arrays and the slots, in this order, and write nothing back."""
        if any(a.kind not in ("arg", "param", "state") for a in e.args) or any(r.kind != "result" for r in e.results):
            return
        slots, given = {p: k for k, (p, _) in enumerate(self._slots)}, iter(range(len(plain)))
        self._plain[plain] = (program, e, [(True, next(given)) if a.kind == "arg" else (False, slots[a.name]) for a in e.args])

    def _key(self) -> np.ndarray:
        """A fresh key for layers that draw when they are called."""
        from .train import key_of
        self._calls += 1
        return key_of(self.seed, 4, self._calls)

    def _for_call(self, program, e) -> dict[str, Any]:
        """Slot values by path; caches of other sizes than the call's begin anew."""
        if self._backend != "opencl":
            values = dict(self._named())
        else:
            if self._handles is None or self._handles[0] is not program:
                self._handles = (program, [program.to_device(v) for v in self._values])
            values = dict(zip((p for p, _ in self._slots), self._handles[1]))
        fresh = {a.name: a.type for a in e.args if a.kind == "cache"
                 and (a.name not in self._caches or self._caches[a.name].shape != tuple(a.type.shape))}
        if fresh:
            from .compiler import driver
            from .frontend import elaborate_cache_init
            first = elaborate_cache_init(self._instance, fresh)
            maker = driver.build(first.module, self._backend, threads=self._threads)
            made = maker.call(first.entry, entry_arguments(first, []))
            self._caches.update((r.name, np.array(maker.to_host(v))) for r, v in zip(first.results, made))
        return {**values, **self._caches}

    def _write_path(self, path: str, kind: str, value: np.ndarray) -> None:
        if kind == "cache":
            self._caches[path] = value
        else:
            self._write(next(k for k, (p, _) in enumerate(self._slots) if p == path), value)

    def reset_caches(self) -> None:
        """Empty the caches that calls have filled."""
        self._caches.clear()

    def predict(self, x, batch_size: int = 1024):
        """The layer's results for all rows of x, computed in batches."""
        x = self._inputs(x)
        _positive("batch_size", batch_size)
        parts = [self(x[k:k + batch_size]) for k in range(0, len(x), batch_size)]
        if isinstance(parts[0], tuple):
            return tuple(np.concatenate(column) for column in zip(*parts))
        return np.concatenate(parts)

    def _inputs(self, x, name: str = "x") -> np.ndarray:
        forward = self._instance.forward
        if forward is None or not forward.decl.params:
            raise TypeError(f"layer {self._layer} cannot be called with one input")
        p = forward.decl.params[0]
        a = to_array(name, x, _declared(p.type))
        if a.ndim == 0 or not len(a):
            raise ArgumentError(f"argument {name}: expected one row per sample, got shape {list(a.shape)}")
        if p.type is not None and getattr(p.type, "dims", None) is not None:
            check_rank(name, p.type, a)
        return a

    # -- training

    def compile(self, loss: str | Verbatim | None = None, optimizer: Rule | str | None = None, metrics: Sequence | Mapping = (), *,
                learn: Mapping[str, Rule] | None = None) -> None:
        """How the model learns: a loss and an optimizer, or local rules by layer path (`learn`), or both: then the loss teaches the layers that
        have no rule.

        loss: "cross_entropy" (integer targets), "mse", "mae", "bce_with_logits", a function of the program by name (of the output and
        y), or eg.expr. metrics: "accuracy" and the like, functions of the program, or {name: eg.expr("... out ... y ...")}.
        """
        compiled = CompiledFit(self._program, self._instance, loss, optimizer, metrics, learn)
        if compiled != self._plan:
            self._trainer = None
        self._plan = compiled

    def fit(self, x, y, epochs: int = 1, batch_size: int = 32, validation_data: tuple | None = None, validation_split: float = 0.0,
            shuffle: bool = True, verbose: int = 1, callbacks: Sequence = (), pipeline: bool | int = False) -> History:
        """Train; the History of losses and metrics per epoch. Called again, it goes on: optimizer state is kept.

        validation_split holds out the last part of the data. A partial last batch is dropped unless it is the only one. Callbacks are
        functions (epoch, logs), or objects with on_epoch_end; one that returns True, or `model.stop_training = True`, ends the training.
        `pipeline`: layers that all learn by local rules do so in stages, each on a thread and a batch of its own (True: a stage a thread); same numbers.
        """
        _positive("epochs", epochs)
        _positive("batch_size", batch_size)
        callbacks = _callbacks(callbacks)
        fields = self._fields(x, y)
        held = None
        n = len(fields["x"])
        if validation_data is not None:
            if not isinstance(validation_data, tuple | list) or len(validation_data) != 2:
                raise ArgumentError("validation_data: expected (x, y)")
            held = self._fields(*validation_data, names=("validation x", "validation y"))
            for k, v in held.items():
                if v.shape[1:] != fields[k].shape[1:] or v.dtype != fields[k].dtype:
                    raise ArgumentError(f"argument validation {k}: expected {_samples(fields[k])} as {k} has, got {_samples(v)}")
        elif validation_split:
            if isinstance(validation_split, bool) or not isinstance(validation_split, float | int | np.floating) or not 0 < validation_split < 1:
                raise ArgumentError(f"validation_split: expected a share between 0 and 1, got {validation_split!r}")
            cut = n - round(n * validation_split)
            if not 0 < cut < n:
                from .progress import counted
                raise ArgumentError(f"validation_split = {validation_split} of {counted(n, 'sample')} leaves one side empty")
            held = {k: v[cut:] for k, v in fields.items()}
            fields = {k: v[:cut] for k, v in fields.items()}
        if not isinstance(pipeline, bool) and (not isinstance(pipeline, int) or pipeline < 2):
            raise ArgumentError(f"pipeline: expected True, False or a number of stages from 2, got {pipeline!r}")
        trainer = self._trainer_for(fields, epochs, min(batch_size, len(fields["x"])), pipeline=pipeline)
        history = History()
        self.stop_training = False

        def hook(row: dict) -> bool:
            history.add(row)
            logs = {k: v for k, v in row.items() if isinstance(v, float) and k != "seconds"}
            if callbacks:
                self._take(trainer)
            for c in callbacks:
                done = c(history.epoch[-1], logs) if callable(c) else c.on_epoch_end(history.epoch[-1], logs)
                self.stop_training |= done is True
            if callbacks and trainer.stale:
                trainer.set_values(self._named())
                trainer.stale = False
            return self.stop_training

        from .progress import listener_for
        with self._block.telling():
            result = trainer.run(fields, held_fields=held, listener=listener_for(quiet=not verbose), epoch_hook=hook, measure_train=True,
                                 shuffle=shuffle, final=False)
        self._take(trainer)
        if result.interrupted:
            raise KeyboardInterrupt
        return history

    def evaluate(self, x, y) -> dict[str, float]:
        """{"loss": .., "accuracy": ..} of the current weights."""
        fields = self._fields(x, y)
        trainer = self._trainer_for(fields, 1, min(32, len(fields["x"])), keep=True)
        with self._block.telling():
            measured = trainer.measure(fields, seed=self.seed)
        return {k: measured[k] for k in sorted(measured, key=lambda k: k != "loss")}

    def _fields(self, x, y, names: tuple[str, str] = ("x", "y")) -> dict[str, np.ndarray]:
        x = self._inputs(x, names[0])
        y = to_array(names[1], y, "num")
        if y.dtype == np.float64:
            y = to_array(names[1], y, "f32")
        if y.ndim == 0 or len(y) != len(x):
            raise ArgumentError(f"argument {names[1]}: expected one row per sample of {names[0]} ({len(x):,}), got shape {list(y.shape)}")
        return {"x": np.ascontiguousarray(x), "y": np.ascontiguousarray(y)}

    def _trainer_for(self, fields: dict[str, np.ndarray], epochs: int, batch: int, keep: bool = False, pipeline: bool | int = False):
        """The trainer for data of these types: the one there is, where it fits; optimizer state moves to a new one."""
        if self._plan is None:
            raise RuntimeError("call m.compile(loss=..., optimizer=...) first")
        from .datasets import Dataset
        from .session import train_plan
        from .train import Trainer
        signature = tuple((k, v.dtype.str, v.shape[1:]) for k, v in fields.items())
        key = (signature, epochs, batch, len(fields["x"]), pipeline)
        old = self._trainer
        if old is not None and (key == self._trainer_key or keep and signature == self._trainer_key[0]):
            if old.stale:
                old.set_values(self._named())
                old.stale = False
            return old
        block = self._plan.block(self._text(), epochs, batch, self.seed, pipeline, self._program.file, self._source)
        with block.telling():
            program = load_program(self._program.file, f"{self._source}\n{block.text}")
            plan = train_plan(program, BLOCK, given={BLOCK: Dataset("data", fields)})
            trainer = Trainer(plan, self._backend, self._threads, quantize=self._quantize)
            trainer.initialise(self.seed)
        if old is not None:
            trainer.set_values(old.values(kinds=("own",)), kinds=("own",))
        trainer.set_values(self._named())
        self._trainer, self._trainer_key, self._block = trainer, key, block
        return trainer

    def _named(self) -> dict[str, np.ndarray]:
        return {p: v for (p, _), v in zip(self._slots, self._values)}

    def _take(self, trainer) -> None:
        values = trainer.values()
        self._values, self._handles = [values[p] for p, _ in self._slots], None

    # -- files

    def save(self, path: str | os.PathLike) -> None:
        """Parameters and state as safetensors, under the layer's own paths; the file is replaced in one step."""
        checkpoint.write(path, self._named(), {"layer": self._text()})

    def load(self, path: str | os.PathLike) -> None:
        """Weights from safetensors (or llama2.c's `.bin`), by own paths or by the names that the layers' `names` give. Nothing changes if anything is amiss."""
        from .weights import fit, read_weights
        found = fit(self._instance, read_weights(path), os.fspath(path))
        for k, (p, _) in enumerate(self._slots):
            self._write(k, found[p])


def _shown(value) -> str:
    """An argument as the language writes it."""
    from .frontend.values import QuantType
    return repr(value) if isinstance(value, QuantType) else literal(value)


def _layer_argument(p, value, arrays: list):
    """As a function's argument; but `float` inputs of a layer are f32, which its parameters are, and so are untyped arrays."""
    t = p.type
    if t is None and not isinstance(value, np.ndarray | list):
        return _type_of(p, value, arrays)
    name = _declared(t)
    if name is None:
        return _type_of(p, value, arrays)
    a = to_array(p.name, value, name)
    if t is not None:
        check_rank(p.name, t, a)
    arrays.append(np.ascontiguousarray(a) if a.ndim else a)
    return _tensor_type(arrays[-1])


def _declared(t) -> str | None:
    """The dtype that an input of a layer converts to."""
    from .compiler.ir import DTYPES
    if t is None:
        return "num"
    name = getattr(t, "name", None)
    if name == "float":
        return "f32"
    return name if name in DTYPES or name in KINDS else None


def _size(n: int) -> str:
    for unit in ("bytes", "KB", "MB"):
        if n < 1024:
            return f"{n:,.0f} {unit}" if unit == "bytes" else f"{n:,.1f} {unit}"
        n /= 1024
    return f"{n:,.2f} GB"


def _samples(a: np.ndarray) -> str:
    from .arguments import dtype_name
    return f"samples of {dtype_name(a.dtype)}{list(a.shape[1:])}"


def _seed(value) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise ArgumentError(f"seed: expected a whole number from 0, got {value!r}")
    return int(value)


def _callbacks(given) -> list:
    """A list of functions or of objects with on_epoch_end; one alone is a list of one."""
    out = [given] if callable(given) or hasattr(given, "on_epoch_end") else list(given) if isinstance(given, Sequence) else None
    bad = [given] if out is None else [c for c in out if not callable(c) and not hasattr(c, "on_epoch_end")]
    if bad:
        raise ArgumentError(f"callbacks: expected functions (epoch, logs) or objects with on_epoch_end, got {bad[0]!r}")
    return out


def _positive(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ArgumentError(f"{name}: expected a positive integer, got {value!r}")
