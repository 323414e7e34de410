"""Layers that learn by themselves in a pipeline over threads: the bits of steps one after the other, whatever the stages, threads and
backend; what cannot be cut is refused; a section meets no barrier."""
from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from engram import epochs as epochs_module
from engram import train as train_module
from engram.codegen.cpu.program import llvm_text
from engram.codegen.opencl.device import available
from engram.compiler import driver
from engram.compiler.diagnostics import CompileError, RuntimeError_
from engram.compiler.ir.parser import parse_module
from engram.compiler.ir.printer import print_module
from engram.frontend import Stages, epoch_module
from engram.frontend.program import load
from engram.frontend.train import elaborate_train
from engram.interp.interpreter import Interpreter
from engram.passes.pipeline import _balanced, _circles
from engram.train import Trainer
from test_epochs import Losses, Stopper, check, stepwise

HEAD = """
import "std/nn.nn"
layer Local(i, o) {
  param w: f32[i, o] = normal(0, sqrt(2 / i))
  param b: f32[o] = 0
  fn (x: f32[B, i]) -> f32[B, o] { let pre = stop_gradient(x)
    relu(pre @ w + b) }
}
layer Net(i, n, more) {
  first = Local(i, n)
  rest = [Local(n, n)] * more
  fn (x: f32[B, i]) -> f32[B, n] { x |> first |> rest }
}
layer Cnn() {
  c1 = LocalConv(1, 3, 5, pool = 2, norm = false)
  c2 = LocalConv(3, 4, 3)
  fn (x: f32[B, 1, 8, 8]) { x |> c1 |> c2 }
}
train t {
  data = dataset("toy")
  batch = 8
  epochs = 3
"""
RNG = np.random.default_rng(0)
DATA = {"x": RNG.normal(size=(40, 6)).astype(np.float32), "y": RNG.integers(0, 3, 40).astype(np.int32)}
IMAGES = {"x": RNG.normal(size=(40, 1, 8, 8)).astype(np.float32), "y": RNG.integers(0, 3, 40).astype(np.int32)}
NET = "model = Net(6, 5, 3)\n let h = model({})\n"
LEARN = "learn model.first by three_factor(3, lr = {lr}) given y\n learn model.rest by three_factor(3, lr = {lr}) given y"
PROGRAMS = {
    "plain": NET.format("x") + LEARN.format(lr=0.1),
    "counters": NET.format("x") + LEARN.format(lr="linear_decay(step, steps, 0.1) / (1 + f32(epoch))"),
    "drawn": NET.format("dropout(x, 0.3)") + LEARN.format(lr=0.1),
    "own losses": NET.format("x") + "learn model.first by pred(3, lr = 0.01) given y\n learn model.rest by predsim(3, lr = 0.01) given y",
    "a head behind": "head = Linear(5, 3)\n" + NET.format("x") + LEARN.format(lr=0.1) +
                     "\n minimize cross_entropy(head(stop_gradient(h)), y) using adam(1e-2)",
    "state of the block": NET.format("x") + "state seen: f32[] = 0\n seen = 0.9 * seen + mean(abs(h))\n" + LEARN.format(lr=0.1),
    "phases": NET.format("x") + "phase a { learn model.first by three_factor(3, lr = 0.1) given y\n learn model.rest by hebb(lr = 0.01, decay = 0.001) }\n"
              "phase b { pipeline = false\n batch = 4\n epochs = 2\n learn model.rest by three_factor(3, lr = 0.1) given y }",
    "convolutions": "model = Cnn()\n let h = model(random_shift(x, 1))\n learn model.c1 by three_factor_conv(3, lr = 0.01, grid = 2) given y\n"
                    "learn model.c2 by three_factor_conv(3, lr = 0.01, grid = 2) given y",
}


def plan_of(name, stages, body=None, batch=8, **overrides):
    body = PROGRAMS[name] if body is None else body
    data = IMAGES if name == "convolutions" else DATA
    text = f"{HEAD if batch == 8 else HEAD.replace('batch = 8', f'batch = {batch}')}pipeline = {stages}\n{body}\n}}\n"
    return elaborate_train(load("test.nn", text), None, overrides, lambda _: SimpleNamespace(fields=data, n=40))


def epoch_of(plan, steps=5, stages=2):
    module, (entry,) = epoch_module(plan.module, "step", len(plan.slots), plan.dataset.n, [(steps, steps)], Stages(stages, True))
    return module, entry


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_bits_of_steps_one_after_the_other(name):
    check(plan_of(name, 2), "cpu", np.arange(40)[::-1])


@pytest.mark.parametrize(("stages", "samples"), [(3, 40), (4, 40), (4, 16), (2, 8), ("true", 24)])
def test_numbers_of_stages_and_steps(stages, samples):
    """As many steps as stages, more, and fewer."""
    check(plan_of("counters", stages), "cpu", np.arange(samples))


def results(plan, backend, threads, steps=7, stages=None):
    module, (entry,) = epoch_module(plan.module, "step", len(plan.slots), 40, [(steps, steps)], stages)
    program = driver.build(module, backend, threads=threads)
    args = driver.random_arguments(module, entry, 1)
    order = module.funcs[entry].attrs["arg_names"].index("order")
    args[order] = np.random.default_rng(2).integers(0, 40, args[order].shape)
    return [np.array(program.to_host(v)) for v in program.call(entry, args)]


def test_any_number_of_threads():
    """Wide enough for kernels that threads would share."""
    body = "model = Net(6, 300, 3)\n let h = model(x)\n" + LEARN.format(lr=0.1)
    plan = plan_of(None, "true", body, 40)
    want = results(plan, "cpu", 2)
    for threads in (1, 2, 3, 4):
        for stages in (2, 3, 4):
            assert all(np.array_equal(a, b) for a, b in zip(want, results(plan, "cpu", threads, stages=Stages(stages, True)), strict=True))


@pytest.mark.parametrize("name", ["counters", "a head behind"])
def test_interpreter(name):
    check(plan_of(name, 3, epochs=2), "interp", np.arange(16))


@pytest.mark.skipif(not available()[0], reason="no OpenCL device")
@pytest.mark.parametrize("name", ["counters", "a head behind"])
def test_opencl(name):
    check(plan_of(name, 3), "opencl", np.arange(24))


@pytest.mark.parametrize("name", ["plain", "a head behind"])
def test_every_stage_of_the_compiler_computes_the_same(name):
    """What the interpreter makes of the cut step, and of its loops with planned memory, in which sections may not share a byte."""
    plan = plan_of(name, 2)
    plain, (entry,) = epoch_module(plan.module, "step", len(plan.slots), 40, [(4, 4)])
    module, _ = epoch_of(plan, 4, 3)
    args = driver.random_arguments(module, entry)
    want = Interpreter(driver.lower(plain, "fused")).call(entry, [a.copy() for a in args])
    fused = driver.lower(module, "fused")
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(want, Interpreter(fused).call(entry, [a.copy() for a in args])))
    text = print_module(driver.lower(module))
    assert "loop.sections" in text and print_module(parse_module(text)) == text
    loops = Interpreter(driver.lower(plain)).call(entry, [a.copy() for a in args])
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(loops, Interpreter(parse_module(text)).call(entry, [a.copy() for a in args])))


def test_several_epochs_in_one_call():
    check(plan_of("counters", 2, epochs=57), "cpu", np.arange(40))


def test_sections_share_no_memory():
    module, entry = epoch_of(plan_of("convolutions", 3), stages=2)
    lowered = driver.lower(module)
    count = 0
    for op in lowered.walk():
        if op.name == "loop.sections":
            count += 1
            taken = []
            for number, region in enumerate(op.regions):
                for o in region.walk():
                    if o.name == "loop.alloc" and "offset" in o.attrs:
                        taken.append((number, o.attrs["offset"], o.attrs["offset"] + o.attrs["type"].nbytes))
                    elif o.name == "loop.call":
                        taken.append((number, o.attrs["frame"], o.attrs["frame"] + lowered.funcs[o.attrs["callee"]].attrs["arena"]))
            assert all(a[0] == b[0] or a[2] <= b[1] or b[2] <= a[1] for a in taken for b in taken)
            assert len({n for n, *_ in taken}) == len(op.regions)
    assert count == 2                                        # of the loop, and behind it


def test_a_section_meets_no_barrier():
    """Large kernels: the plain step has barriers, the code of the stages has none, and a turn of the loop two at most."""
    plan = plan_of(None, 2, "model = Net(6, 300, 3)\n let h = model(x)\n" + LEARN.format(lr=0.1), 40)
    plain, (entry,) = epoch_module(plan.module, "step", len(plan.slots), 40, [(9, 9)])
    module, _ = epoch_of(plan, 9, 2)

    def barriers(module):
        text = llvm_text(driver.lower(module), threads=2)
        return {name: body.count("call void @engram_barrier") for name, body in re.findall(r'define void @"f\.([^"]+)"\(.*?\{\n(.*?)\n\}', text, re.S)}
    assert barriers(plain)["step"] > 4
    counts = barriers(module)
    assert counts["step.stage1"] == counts["step.stage2"] == 0 and "step" not in counts
    assert 0 < counts[entry] <= 6


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_finishes_the_steps_that_were_begun(monkeypatch):
    monkeypatch.setattr(epochs_module, "LIVE", 0.001)
    n = 120_000
    data = {"x": np.tile(DATA["x"], (n // 40, 1)), "y": np.tile(DATA["y"], n // 40)}
    text = f"{HEAD}pipeline = 3\nholdout = 0\n{PROGRAMS['a head behind']}\n}}\n"
    plan = elaborate_train(load("test.nn", text), None, {}, lambda _: SimpleNamespace(fields=data, n=n))
    trainer, seen, train = Trainer(plan, "cpu"), Stopper(), np.arange(n)
    trainer.initialise(0)
    result = trainer.run(data, train, listener=seen, final=False)
    assert result.interrupted and not result.epochs
    done = int(seen.notes[0].split("after ")[1].split()[0])
    assert max(1, seen.heard[0][0]) <= done < 15_000
    slots, losses = stepwise(plan, "cpu", train, stop=done)
    assert all(np.array_equal(a, b) for a, b in zip(trainer.slots, slots))


def test_a_failing_step_ends_the_epoch():
    plan = plan_of("plain", 2, PROGRAMS["plain"].replace("model(x)", "model(x + f32(7 // (2 - step)) * 0.0)"))
    trainer = Trainer(plan, "cpu")
    trainer.initialise(0)
    with pytest.raises(RuntimeError_, match="integer division by zero"):
        trainer.run(plan.dataset.fields, listener=Losses(), final=False)


BACK = "model = Sequential([Linear(6, 50), Linear(50, 50), Linear(50, 3)])\n minimize cross_entropy(model(x), y) using sgd(0.1)"
LATE = "state last: f32[5, 5] = 0\n" + NET.format("x + mean(last)") + "last = model.rest[2].w\n" + LEARN.format(lr=0.1)
REFUSED = {
    "backprop": (BACK, "true", r"`model.layers.0.w` learns from what is computed with `model.layers.2.[wb]`, behind it"),
    "accumulate": ("accumulate = 2\n" + BACK, "true", "cannot be cut into stages"),
    "an earlier layer reads a later one's weights": (LATE, 2, "cannot be cut into stages"),
    "one layer": ("model = Local(6, 30)\n let h = model(x)\n learn model by three_factor(3, lr = 0.1) given y", "true", "all that learns is `model`"),
    "too many stages": (PROGRAMS["plain"], 9, "`pipeline = 9`: this step falls apart into 4 parts only"),
}


@pytest.mark.parametrize("backend", ["cpu", "interp"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_cut_is_refused(name, backend):
    body, stages, message = REFUSED[name]
    for threads in (1, 2):
        with pytest.raises(CompileError, match=message) as e:
            Trainer(plan_of(None, stages, body), backend, threads).initialise(0)
        span = e.value.diagnostics[0].span
        assert (span.file, span.line) == ("test.nn", HEAD.count("\n") + 1)


@pytest.mark.parametrize("value", ["1", "0", "1.5", '"yes"', "none"])
def test_what_the_setting_may_be(value):
    with pytest.raises(CompileError, match="`pipeline` is .*, expected true, false, or a number of stages from 2"):
        plan_of("plain", value)


def test_set_turns_it_on_and_off():
    assert plan_of("plain", 2, pipeline=False).phases[0].settings["pipeline"] is False
    plan = elaborate_train(load("test.nn", f"{HEAD}{PROGRAMS['plain']}\n}}\n"), None, {"pipeline": 3}, lambda _: SimpleNamespace(fields=DATA, n=40))
    assert plan.phases[0].settings["pipeline"] == 3
    check(plan, "cpu", np.arange(40))


def test_fit(monkeypatch):
    import engram as eg
    seen = []
    make = train_module.stages_of
    monkeypatch.setattr(train_module, "stages_of", lambda *a: seen.append(make(*a)) or seen[-1])
    weights = []
    for pipeline in (False, 2):
        m = eg.Model(HEAD.split("train t")[0] + "layer Main() { net = Net(6, 5, 3)\n fn (x: f32[B, 6]) -> f32[B, 5] { net(x) } }", "Main")
        rule = eg.rule("three_factor", 3, lr=0.1, given=eg.expr("y"))
        m.compile(learn={"net.first": rule, "net.rest.0": rule, "net.rest.1": rule, "net.rest.2": rule})
        m.fit(DATA["x"], DATA["y"], epochs=2, batch_size=8, verbose=0, pipeline=pipeline)
        weights.append([m.parameters[p] for p in m.parameters])
    assert list(dict.fromkeys(s and s.count for s in seen)) == [None, 2]
    assert all(np.array_equal(a, b) for a, b in zip(weights[0], weights[1]))


def test_circles_and_balance():
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a"}}
    order = [sorted(c) for c in _circles(list("abcde"), edges, lambda c: min(c))]
    assert order == [["e"], ["a"], ["b", "c"], ["d"]]
    assert _balanced([3, 1, 1, 3], 2) == [(0, 2), (2, 4)]
    assert _balanced([1, 1, 1], 3) == [(0, 1), (1, 2), (2, 3)]
