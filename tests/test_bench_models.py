"""The transformer programs under benchmarks/: at small sizes they train, and prefill, decoding and reading agree."""
from pathlib import Path

import numpy as np
import pytest
from engram.api import entry_arguments
from engram.compiler import driver
from engram.compiler.ir import TensorType
from engram.compiler.ir.types import i64
from engram.datasets import Dataset
from engram.frontend import elaborate_cache_init, elaborate_call, elaborate_init, instantiate
from engram.session import load_program, train_plan
from engram.train import Trainer, key_of

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TINY = {"vocab": 11, "ctx": 8, "d": 8, "h": 2, "depth": 2}


@pytest.fixture(scope="module")
def model():
    return instantiate(load_program(str(BENCHMARKS / "gpt2.nn")), "GPT2", kwargs=TINY)


def values_of(model):
    e = elaborate_init(model)
    return dict(zip((r.name for r in e.results), driver.build(e.module, "cpu").call(e.entry, [key_of(0, 1)])))


def run(model, values, method, tokens):
    e = elaborate_call(model, [TensorType(i64, tokens.shape)], method=method)
    new = {a.name: a.type for a in e.args if a.kind == "cache" and a.name not in values}
    if new:
        made = elaborate_cache_init(model, new)
        values.update(zip((r.name for r in made.results), driver.build(made.module, "cpu").call(made.entry, entry_arguments(made, []))))
    out = driver.build(e.module, "cpu").call(e.entry, [tokens if a.kind == "arg" else values[a.name] for a in e.args])
    values.update((r.name, v) for r, v in zip(e.results, out) if r.kind == "cache")
    return out[0]


def test_prefill_and_decoding_agree_with_reading(model):
    v, tokens = values_of(model), np.array([[1, 5, 3, 7, 2]])
    logits = run(model, v, "", tokens)
    assert logits.shape == (1, 5, 11)
    np.testing.assert_allclose(run(model, v, "last", tokens), logits[:, -1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run(model, v, "step", tokens[:, :3]), logits[:, 2], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run(model, v, "step", tokens[:, 3:4]), logits[:, 3], rtol=1e-4, atol=1e-5)
    assert run(model, v, "greedy", tokens[:, 4]) == logits[:, 4].argmax(-1) and v["pos"] == 5


def test_one_loop_generates_what_single_tokens_do(model):
    v, token, singly = values_of(model), np.array([3]), []
    for _ in range(6):
        token = run(model, v, "greedy", token)
        singly.append(int(token[0]))
    e = elaborate_call(model, [TensorType(i64, (1,)), 6], method="generate")
    caches = {a.name: np.zeros(a.type.shape, a.type.dtype.numpy) for a in e.args if a.kind == "cache"}
    out = driver.build(e.module, "cpu").call(e.entry, [np.array([3]) if a.kind == "arg" else {**values_of(model), **caches}[a.name] for a in e.args])
    assert out[0][:, 0].tolist() == singly


@pytest.mark.parametrize("name, made, small, batch", [("char_gpt", "GPT2(vocab = 65, ctx = time, d = 128, h = 4, depth = depth)", "GPT2(11, 8, 8, 2, depth)", 12),
                                                      ("gpt2", "GPT2(ctx = time)", "GPT2(11, 8, 8, 2, 2)", 4)])
def test_training_lowers_the_loss(name, made, small, batch):
    source = (BENCHMARKS / f"{name}.nn").read_text()
    assert made in source
    x = np.random.default_rng(0).integers(0, 11, (12, 8))
    plan = train_plan(load_program(str(BENCHMARKS / f"{name}.nn"), source.replace(made, small).replace("adamw(1e-3)", "adamw(1e-2)")), name,
                      given={"random": Dataset("bench", {"x": x, "y": (x + 1) % 11})})
    trainer = Trainer(plan, "cpu", None)
    trainer.initialise(0)
    program, phase = trainer.program(plan.phases[0].module), plan.phases[0]
    slots, losses = trainer._slots_for(program), []
    for step in range(40):
        r = program.call(phase.entry, [*slots, np.array(step, np.int64), np.array(0, np.int64), key_of(0, 3, 0), x[:batch], (x[:batch] + 1) % 11])
        slots = r[:len(slots)]
        losses.append(float(r[len(slots)]))
    assert losses[-1] < losses[0] / 2
