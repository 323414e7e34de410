"""examples/mnist_shift.nn and mnist_integer.nn: what their steps are made of, and that they learn (the bundled digits, drawn larger)."""
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from engram.compiler import driver
from engram.datasets import Dataset, dataset
from engram.session import load_program, train_plan
from engram.train import Trainer

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = ["mnist_shift", "mnist_integer"]


@cache
def digits() -> Dataset:
    """8 x 8 scans of 0 .. 16 as 28 x 28 bytes."""
    d = dataset("digits")
    x = np.asarray(d.fields["x"], np.float64).reshape(-1, 8, 8)
    big = np.kron(x / x.max() * 255, np.ones((3, 3))).round().astype(np.uint8)
    return Dataset("mnist", {"x": np.pad(big, ((0, 0), (2, 2), (2, 2))), "y": np.asarray(d.fields["y"], np.int64)})


def plan(name: str, **settings):
    return train_plan(load_program(str(EXAMPLES / f"{name}.nn")), name, settings, given={"mnist": digits()})


@cache
def step(name: str):
    """The loop stage of a training step: its functions but `init`."""
    module = driver.lower(plan(name, holdout=300).module)
    todo, seen = ["step"], {}
    while todo:
        f = module.funcs[todo.pop()]
        seen[f.name] = f
        todo += [op.attrs["callee"] for op in f.walk() if op.name == "loop.call" and op.attrs["callee"] not in seen]
    return list(seen.values())


@pytest.mark.parametrize("name", NAMES)
def test_products_are_of_packed_integers(name):
    names = [op.name for f in step(name) for op in f.walk()]
    assert names.count("loop.contract_packed") == 10 and "loop.contract" not in names      # forward, readout, e m, e^T h, d^T x; two layers
    for f in step(name):
        for op in f.walk():
            if op.name == "loop.contract_packed":
                assert [v.type.dtype.is_int for v in op.operands] == [True] * 3


def test_an_integer_step_holds_no_float():
    functions = step("mnist_integer")
    for f in functions:
        values = [*f.args, *(v for op in f.walk() for v in [*op.operands, *op.results, *(a for r in op.regions for a in r.args)])]
        assert not [v for v in values if v.type.dtype.is_float], f.name


@pytest.mark.parametrize("name", NAMES)
def test_they_learn_and_threads_do_not_matter(name):
    p = plan(name, holdout=300, epochs=4, batch=50)
    data = p.dataset.fields
    learned = {}
    for threads in (1, 2):
        t = Trainer(p, "cpu", threads)
        t.initialise(0)
        result = t.run(data, np.arange(1400), np.arange(1400, 1700), final=True)
        learned[threads] = t.values()
        assert result.final["accuracy"] > 0.85
    for key, v in learned[1].items():
        np.testing.assert_array_equal(v, learned[2][key], err_msg=key)
