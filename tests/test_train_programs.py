"""Every train block of the example programs becomes a plan whose functions pass the verifier."""
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from engram.compiler.ir.verifier import verify
from engram.frontend import ast as A
from engram.frontend import elaborate_train, load

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "tests/programs").glob("*.nn"), *(ROOT / "examples").glob("*.nn")])
RNG = np.random.default_rng(0)
FIELDS = {
    "digits": lambda n: {"x": RNG.random((n, 64)).astype(np.float32), "y": RNG.integers(0, 10, n).astype(np.int32)},
    "xor": lambda n: {"x": np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32), "y": np.array([[0], [1], [1], [0]], np.float32)},
    "mnist": lambda n: {"x": np.zeros((n, 28, 28), np.uint8), "y": np.zeros(n, np.int64)},
    "cifar10": lambda n: {"x": np.zeros((n, 3, 32, 32), np.uint8), "y": np.zeros(n, np.int64)},
    "text": lambda n: {"x": np.zeros((n, 64), np.int64), "y": np.zeros((n, 64), np.int64)},
}


def dataset(name, *args, **kwargs):
    fields = FIELDS[name](400)
    return SimpleNamespace(fields=fields, n=len(fields["x"]))


def blocks():
    for file in FILES:
        text = file.read_text(encoding="utf-8").replace('tokens = bpe("vocab.json", "merges.txt")', 'tokens = "bpe"').replace("= 10_000", "= 100")
        program = load(str(file), text)
        for name, block in program.blocks.items():
            if isinstance(block, A.Train):
                yield pytest.param(program, name, id=f"{file.stem}-{name}")


@pytest.mark.parametrize("program, name", list(blocks()))
def test_plan(program, name):
    if not dataset_known(program.blocks[name]):
        pytest.skip("reads a file of its own")
    plan = elaborate_train(program, name, {}, dataset)
    verify(plan.module)
    measure, entry = plan.measure(7 if len(dataset_of(plan)) > 7 else 4)
    verify(measure)
    assert len(measure.funcs[entry].returns.operands) == len(plan.measures) + (bool(plan.losses) and "loss" not in plan.measures)
    for phase in plan.phases:
        step = plan.module.funcs[phase.entry]
        assert len(step.args) == len(step.attrs["arg_roles"]) == len(plan.slots) + 3 + len(plan.dataset.fields)
        assert [a.type for a in step.args[:len(plan.slots)]] == [s.type for s in plan.slots] == step.result_types[:len(plan.slots)]
    assert len({s.path for s in plan.slots}) == len(plan.slots)


def dataset_of(plan):
    return plan.dataset.fields["x"]


def dataset_known(block) -> bool:
    return all(n.value in FIELDS for item in block.items for c in A.walk(item) if isinstance(c, A.Call) and getattr(c.func, "id", "") == "dataset"
               for n in c.positional[:1])
