"""docs/FROM_PYTORCH.md: every name in its tables exists, its programs compile, and they have the losses of the PyTorch programs beside them."""
import re
from pathlib import Path

import numpy as np
import pytest
from engram.datasets import Dataset
from engram.frontend.builtins import builtin_scope
from engram.frontend.from_pytorch import ATTRIBUTES, NAMES
from engram.frontend.library import library_names
from engram.session import load_program, train_plan
from engram.train import Trainer

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "FROM_PYTORCH.md").read_text(encoding="utf-8")
PROGRAMS = dict(zip(re.findall(r"^train (\w+)", PAGE, re.M), zip(re.findall(r"^```python\n(.*?)^```$", PAGE, re.S | re.M), re.findall(r"^```nn\n(.*?)^```$", PAGE, re.S | re.M))))
LOCAL = {"f", "b", "attn", "attend", "fn", "names", "using", "Block", "compile", "fit", "Model"}             # what the rows themselves name


def ours():
    for row in re.findall(r"^\| `?.*\|$", PAGE, re.M):
        yield from re.findall(r"`([^`]*)`", row.rsplit(" | ", 1)[-1])


def known() -> set[str]:
    return {*builtin_scope().names, *library_names()}


def test_the_tables_name_what_exists():
    called = {name for code in ours() for name in re.findall(r"(\w+)\(", code)}
    assert len(called) > 80 and not called - known() - LOCAL


def test_hints_name_what_exists():
    called = {name for text in [*NAMES.values(), *ATTRIBUTES.values()] for code in re.findall(r"`([^`]*)`", text) for name in re.findall(r"(\w+)\(", code)}
    assert not called - known() - LOCAL - {"Net", "name"}, "a hint sends a user to what is not there"
    assert not set(NAMES) & known(), "the name exists: no hint is needed"


def fields(name):
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)       # noqa: E731
    return {"mnist": lambda: {"x": normal(8, 1, 28, 28), "y": rng.integers(0, 10, 8)}, "lm": lambda: {"x": rng.integers(0, 20, (4, 6)), "y": rng.integers(0, 20, (4, 6))},
            "gan": lambda: {"x": normal(8, 1, 8, 8), "z": normal(8, 5, 1, 1)}}[name]()


def trainer(name):
    data = Dataset("sample", fields(name), "streams")                        # row b stays row b, as the language model's state needs it
    out = Trainer(train_plan(load_program(f"{name}.nn", PROGRAMS[name][1]), name, given={"npz": data}), "cpu", threads=1)
    out.initialise(0)
    return out, data


@pytest.mark.parametrize("name", PROGRAMS)
def test_program_runs(name):
    t, data = trainer(name)
    losses = t.run(data.fields, order=data.order, final=False).first_losses
    assert len(losses) == 3 and np.isfinite(losses).all()


@pytest.mark.parametrize("name", PROGRAMS)
def test_both_sides_agree(name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: the programs beside ours are run where it is")
    torch.manual_seed(0)
    scope: dict = {}
    exec(compile(PROGRAMS[name][0], f"{name}.py", "exec"), scope)
    t, data = trainer(name)
    models = [n for n, _ in t.plan.models]
    prefix = "{}." if len(models) > 1 else ""
    t.load_weights({prefix.format(n) + k: v.detach().numpy() for n in models for k, v in scope[n].state_dict().items()}, "PyTorch's")
    mine = t.run(data.fields, order=data.order, final=False).first_losses
    theirs = [scope["train"](*(torch.tensor(v) for v in data.fields.values())).item() for _ in range(3)]
    np.testing.assert_allclose(mine, theirs, rtol=1e-4)
