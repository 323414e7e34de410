"""Epochs as functions: a loop of training steps over a data set in memory, so that an epoch is one native call.

`epoch_module` wraps a phase's step function. What a step computes is train.py's business; in which order the samples come and how
many steps one call makes is the runner's (engram/epochs.py).
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..compiler.diagnostics import Span
from ..compiler.ir import Block, Func, Loc, Module, TensorType, i64
from ..compiler.ir.builder import Builder
from ..compiler.ir.core import clone_func

INDEX = TensorType(i64)


def reachable(module: Module, names: list[str]) -> Module:
    """A module of copies of the functions that `names`, its entries, need."""
    out = Module()

    def add(name: str) -> None:
        if name in out.funcs:
            return
        out.funcs[name] = clone_func(module.funcs[name])
        for op in module.funcs[name].walk():
            for callee in _named(op.attrs):
                if callee in module.funcs:
                    add(callee)
    for name in names:
        add(name)
    out.attrs["entries"] = list(names)
    return out


def _named(attrs: dict) -> Iterator[str]:
    """What may be functions among an op's attributes (func.call, learn.update, autodiff.*; some name them one level down)."""
    for v in attrs.values():
        if isinstance(v, dict):
            yield from _named(v)
        elif isinstance(v, str):
            yield v


@dataclass(frozen=True)
class Stages:
    """What `pipeline` asks for: to be cut into `count` stages, or at most so many (not `exactly`); `span`: where it stands."""

    count: int
    exactly: bool
    span: Span | None = None


def epoch_module(module: Module, entry: str, n_slots: int, samples: int, lengths: list[tuple[int, int]],
                 stages: Stages | None = None) -> tuple[Module, list[str]]:
    """Loops around the step function `entry` of a phase, which takes `n_slots` slots: one per (steps, steps of an epoch) in `lengths`.

    Gives a module and the names of its entries, each of which is `(slots..., step, epoch, key, order: i64[steps, batch],
    fields [samples, ...]..., losses f32[steps]...) -> (slots..., losses f32[steps]...)`. Its step number i works on the samples order[i]
    as the step function does when it is called with them, with step + i and with epoch + i / (steps of an epoch): bit for bit. Slots
    and losses are donated, so losses can be read while the loop runs; the loop is the launch's progress (see scf.scan). With `stages` the
    pass `pipeline` cuts the step.
    """
    out = reachable(module, [entry])
    step = out.funcs[entry]
    step.attrs["noinline"] = True              # one function whatever surrounds it: its kernels, and so its bits, are those of a step called alone
    names = [_epoch(out, step, n_slots, samples, *n, stages) for n in lengths]
    out.attrs["entries"] = names
    return out, names


def _epoch(module: Module, step: Func, n_slots: int, samples: int, steps: int, per_epoch: int, stages: Stages | None) -> str:
    slots, fields = step.args[:n_slots], step.args[n_slots + 3:]
    batch = fields[0].type.shape[0]
    order = TensorType(i64, (steps, batch))
    data = [v.type.with_shape((samples, *v.type.shape[1:])) for v in fields]
    losses = [t.with_shape((steps, *t.shape)) for t in step.result_types[n_slots:]]
    labels, results = step.attrs["arg_names"], step.attrs["result_names"]
    names = [*labels[:n_slots + 3], "order", *labels[n_slots + 3:], *(f"{n} of each step" for n in results[n_slots:])]
    func = Func(module.unique_name(f"{step.name}.x{steps}"), [*(v.type for v in step.args[:n_slots + 3]), order, *data, *losses], names, loc=step.loc)
    first, (counter, epoch, key, order_arg), data_args = func.args[:n_slots], func.args[n_slots:n_slots + 4], func.args[n_slots + 4:][:len(data)]

    body = Block([INDEX, *(v.type for v in slots), order.with_shape((batch,))])
    i, *carried, row = body.args
    b = Builder(body, step.loc)
    now = epoch if per_epoch >= steps else b.add(epoch, b.ew("floordiv", i, per_epoch))
    samples_of_step = [b.op("tensor.take", [x, row], {"dim": 0}).result for x in data_args]
    call = b.op("func.call", [*carried, b.add(counter, i), now, key, *samples_of_step],
                {"callee": step.name, "result_types": list(step.result_types)})
    b.op("scf.yield", call.results)

    b = Builder(func.body, step.loc)
    attrs = {"length": steps, "n_carry": n_slots, "reverse": False, "progress": True}
    if stages is not None:
        attrs |= {"pipeline": stages.count, "pipeline_exactly": stages.exactly}
        b.loc = Loc(*stages.span) if stages.span else step.loc
    scan = b.op("scf.scan", [*first, order_arg], attrs, [body])
    b.op("func.return", scan.results)
    func.result_types = [v.type for v in scan.results]
    func.attrs = {"arg_names": names, "result_names": list(results),
                  "donate": [[k, k] for k in range(n_slots)] + [[len(names) - len(losses) + k, n_slots + k] for k in range(len(losses))]}
    module.add(func)
    return func.name


__all__ = ["Stages", "epoch_module", "reachable"]
