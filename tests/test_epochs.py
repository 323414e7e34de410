"""Epochs as one call: the same bits as step after step, on every backend; Ctrl-C, progress, data that are not copied."""
from __future__ import annotations

import os
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from engram import epochs as epochs_module
from engram.codegen.cpu.program import llvm_text
from engram.codegen.opencl.device import available
from engram.compiler import driver
from engram.compiler.diagnostics import RuntimeError_
from engram.compiler.ir.parser import parse_module
from engram.compiler.ir.printer import print_module
from engram.frontend import epoch_module
from engram.frontend.program import load
from engram.frontend.train import elaborate_train
from engram.progress import Listener
from engram.train import Trainer, batches, key_of

HEAD = """
import "std/nn.nn"
layer Mlp(i, h, o) {
  hidden = Linear(i, h)
  out    = Linear(h, o)
  fn (x: f32[B, i]) -> f32[B, o] { out(relu(hidden(x))) }
}
train t {
  model = Mlp(6, 5, 3)
  data = dataset("toy")
  batch = 8
  epochs = 3
"""
RNG = np.random.default_rng(0)
DATA = {"x": RNG.normal(size=(40, 6)).astype(np.float32), "y": RNG.integers(0, 3, 40).astype(np.int32)}
PROGRAMS = {
    "plain": "minimize cross_entropy(model(x), y) using adam(1e-2)",
    "drawn": "minimize cross_entropy(model(dropout(x, 0.3)), y) using sgd(0.1)",
    "counters": "minimize cross_entropy(model(x), y) using sgd(lr = linear_decay(step, steps, 0.1) / (1 + f32(epoch)))",
    "accumulate": "accumulate = 2\n minimize cross_entropy(model(x), y) using adam(1e-2)",
    "two losses": "minimize cross_entropy(model(x), y) using sgd(0.1)\n if step % 2 == 0 { minimize mean(model(x) ** 2) using sgd(0.01) }",
    "phases": "phase a { minimize cross_entropy(model(x), y) wrt model.out using sgd(0.1) }\n"
              "phase b { epochs = 2\n batch = 4\n minimize cross_entropy(model(x), y) using adam(1e-2) }",
    "local": "let out = model(x)\n learn model.hidden by hebb(lr = 0.01, decay = 0.001)\n"
             "minimize cross_entropy(out, y) wrt model.out using sgd(0.1)\n measure accuracy(out, y)",
}


def plan_of(body, data=None, **overrides):
    data = DATA if data is None else data
    return elaborate_train(load("test.nn", HEAD + body + "\n}\n"), None, overrides, lambda name: SimpleNamespace(fields=data, n=len(data["x"])))


def stepwise(plan, backend, train, order="shuffled", stop=None):
    """The slots and losses of training by calls of the step function, as (handles as arrays, rows of losses)."""
    program = driver.build(plan.module, backend)
    slots = [np.array(program.to_host(v)) for v in program.call("init", [key_of(0, 1)])]
    losses = []
    for number, phase in enumerate(plan.phases):
        s = {**plan.settings, **phase.settings}
        step, accumulate = 0, s["accumulate"]
        for epoch in range(s["epochs"]):
            todo = batches(train, s["batch"], 0, number, epoch, order) if order != "given" else \
                [train[k * s["batch"]:(k + 1) * s["batch"]] for k in range(len(train) // s["batch"])]
            for index in todo[:len(todo) // accumulate * accumulate]:
                args = [*slots, np.array(step, np.int64), np.array(epoch, np.int64), key_of(0, 3, number)]
                out = [np.array(program.to_host(v)) for v in program.call(phase.entry, [*args, *(f[index] for f in plan.dataset.fields.values())])]
                slots, row = out[:len(slots)], [float(v) for v in out[len(slots):]]
                losses.append(row)
                step += 1
                if step == stop:
                    return slots, losses
    return slots, losses


def test_one_run_after_the_other_compiles_once():
    trainer = Trainer(plan_of("minimize cross_entropy(model(x), y) using adam(0.01)"), "cpu")
    trainer.run(DATA, np.arange(40), final=False)
    programs, first = list(trainer._programs), np.array(trainer.slots[0])
    trainer.run(DATA, np.arange(40), final=False)
    assert trainer._programs == programs and not np.array_equal(trainer.slots[0], first)
    trainer.run(DATA, np.arange(30), final=False)             # other loops
    assert len(trainer._programs) == len(programs) + 1


class Losses(Listener):
    """Collects every epoch's loss."""

    def __init__(self):
        self.rows, self.notes = [], []

    def epoch_end(self, row, rate):
        self.rows.append(row)

    def note(self, text):
        self.notes.append(text)


def check(plan, backend, train, order="shuffled"):
    trainer, seen = Trainer(plan, backend), Losses()
    trainer.initialise(0)
    trainer.run(plan.dataset.fields, train, order=order if order != "given" else "shuffled", shuffle=order != "given", listener=seen, final=False)
    slots, losses = stepwise(plan, backend, train, order)
    for s, got, want in zip(plan.slots, trainer.slots, slots):
        assert np.array_equal(np.asarray(trainer._owner.to_host(got)), want), s.path
    at = 0
    for row in seen.rows:
        number = next((i for i, p in enumerate(plan.phases) if p.name == row.get("phase")), 0)
        s = {**plan.settings, **plan.phases[number].settings}
        n = len(train) // s["batch"] // s["accumulate"] * s["accumulate"]
        if plan.losses:
            assert row["loss"] == np.array(losses[at:at + n]).sum(axis=1).mean()
        at += n
    assert at == len(losses)


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_epoch_is_the_steps_bit_for_bit(name):
    check(plan_of(PROGRAMS[name]), "cpu", np.arange(40)[::-1])


@pytest.mark.parametrize("order", ["streams", "given"])
def test_other_orders(order):
    check(plan_of(PROGRAMS["plain"]), "cpu", np.arange(3, 37), order)


@pytest.mark.parametrize("name", ["drawn", "accumulate"])
def test_interpreter(name):
    check(plan_of(PROGRAMS[name]), "interp", np.arange(16))


@pytest.mark.skipif(not available()[0], reason="no OpenCL device")
@pytest.mark.parametrize("name", ["counters", "phases"])
def test_opencl(name):
    check(plan_of(PROGRAMS[name]), "opencl", np.arange(16))


def test_data_that_do_not_fit_come_with_the_calls(monkeypatch):
    """Three batches of 8 a call: 5 steps are two calls."""
    monkeypatch.setattr(epochs_module.StepLoop, "_limits", lambda self: (0, 3 * 8 * (6 * 4 + 4)))
    check(plan_of(PROGRAMS["counters"]), "cpu", np.arange(40))


def test_several_epochs_in_one_call():
    plan = plan_of(PROGRAMS["counters"], epochs=57)
    sizes = []
    run = epochs_module.StepLoop.run
    try:
        epochs_module.StepLoop.run = lambda self, order, *args: sizes.append(len(order)) or run(self, order, *args)
        check(plan, "cpu", np.arange(40))
    finally:
        epochs_module.StepLoop.run = run
    assert sum(sizes) == 57 * 5 and len(sizes) < 30 and max(sizes) == 25


def test_a_tiny_step_meets_no_barrier():
    plan = plan_of(PROGRAMS["plain"])
    module, (entry,) = epoch_module(plan.module, "step", len(plan.slots), 40, [(5, 5)])
    text = llvm_text(driver.lower(module), threads=4)
    assert "call void @engram_barrier" not in text and "%tid, 0" not in text
    program = driver.build(module, "cpu", threads=4)
    assert program._functions[entry].team.threads == 1


def test_the_loop_survives_the_passes_and_its_text():
    """One step is still a loop: it counts as progress."""
    plan = plan_of(PROGRAMS["plain"])
    module, (entry,) = epoch_module(plan.module, "step", len(plan.slots), 40, [(1, 1)])
    for stage in ("nn", "loop"):
        text = print_module(driver.lower(module, stage))
        assert "progress = true" in text and print_module(parse_module(text)) == text


def test_data_are_read_where_they_are(tmp_path):
    """Bytes in a mapped file go to the machine code as they are."""
    path = tmp_path / "x.npy"
    np.save(path, RNG.integers(0, 255, (40, 6), np.uint8))
    data = {"x": np.load(path, mmap_mode="r"), "y": DATA["y"]}
    plan = plan_of("minimize cross_entropy(model(f32(x) / 255), y) using sgd(0.1)", data)
    seen = []
    call = epochs_module.StepLoop._call
    try:
        epochs_module.StepLoop._call = lambda self, order, given, *args: seen.append(given[0]) or call(self, order, given, *args)
        check(plan, "cpu", np.arange(40))
    finally:
        epochs_module.StepLoop._call = call
    assert all(np.shares_memory(x, data["x"]) and x.dtype == np.uint8 for x in seen)


class Stopper(Losses):
    """Presses Ctrl-C at the first look at a running epoch."""

    live = True

    def __init__(self, presses=1):
        super().__init__()
        self.presses, self.heard = presses, []

    def batch(self, done, loss, rate):
        self.heard.append((done, loss))
        if len(self.heard) <= self.presses:
            os.kill(os.getpid(), signal.SIGINT)


def long_plan():
    n = 120_000
    return plan_of("minimize cross_entropy(model(x), y) using sgd(0.01)", {"x": np.tile(DATA["x"], (n // 40, 1)), "y": np.tile(DATA["y"], n // 40)})


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("backend", ["cpu", "interp"])
def test_ctrl_c_ends_an_epoch_after_a_step(backend, monkeypatch):
    monkeypatch.setattr(epochs_module, "LIVE", 0.001)
    monkeypatch.setattr(epochs_module, "INTERP_BYTES", 1 << 13)
    plan, seen = long_plan(), Stopper()
    trainer = Trainer(plan, backend)
    trainer.initialise(0)
    train = np.arange(plan.dataset.n)
    result = trainer.run(plan.dataset.fields, train, listener=seen, final=False)
    assert result.interrupted and not result.epochs and "interrupted in epoch 1, after" in seen.notes[0]
    done = int(seen.notes[0].split("after ")[1].split()[0])
    assert max(1, seen.heard[0][0]) <= done < 15_000
    slots, losses = stepwise(plan, backend, train, stop=done)
    assert all(np.array_equal(a, b) for a, b in zip(trainer.slots, slots))


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_the_second_ctrl_c_raises(monkeypatch):
    monkeypatch.setattr(epochs_module, "LIVE", 0.0005)
    plan = long_plan()
    trainer = Trainer(plan, "interp")
    trainer.initialise(0)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(plan.dataset.fields, listener=Stopper(2), final=False)


def test_ctrl_c_without_a_live_display(monkeypatch):
    """Then the call is the main thread's own, and the signal is caught in machine code."""
    import threading
    plan = long_plan()
    trainer, seen = Trainer(plan, "cpu"), Losses()
    trainer.initialise(0)
    started = threading.Event()

    def press():
        started.wait(20)
        while trainer.slots is not None and loop["program"].progress == 0:
            pass
        os.kill(os.getpid(), signal.SIGINT)
    loop = {}
    build = trainer._build

    def noted(module):
        loop["program"] = build(module)
        started.set()
        return loop["program"]
    monkeypatch.setattr(trainer, "_build", noted)
    presser = threading.Thread(target=press)
    presser.start()
    result = trainer.run(plan.dataset.fields, listener=seen, final=False)
    presser.join()
    assert result.interrupted and len(result.epochs) < 3


def test_a_failing_step_ends_the_epoch():
    plan = plan_of("minimize cross_entropy(model(x), y) + f32(7 // (2 - step)) * 0.0 using sgd(0.1)")
    trainer = Trainer(plan, "cpu")
    trainer.initialise(0)
    with pytest.raises(RuntimeError_, match="integer division by zero"):
        trainer.run(plan.dataset.fields, final=False)
    assert trainer.program(trainer._programs[-1][0]).progress == 3
