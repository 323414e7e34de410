"""The order of a step's groups: local learning takes memory that does not grow with depth, and computes the same."""
from types import SimpleNamespace

import numpy as np
import pytest
from engram.compiler import driver
from engram.compiler.ir.core import clone_module
from engram.frontend.program import load
from engram.frontend.train import elaborate_train
from engram.interp.interpreter import Interpreter
from engram.passes.schedule import Schedule

NET = """
import "std/nn.nn"
layer Local(i, o) {
  param w: f32[i, o] = normal(0, sqrt(2 / i))
  param b: f32[o] = 0
  fn (x: f32[B, i]) -> f32[B, o] { let pre = x
    relu(pre @ w + b) }
}
layer Net(n, more) {
  first = Local(n, n)
  rest = [Local(n, n)] * more
  head = Linear(n, 3)
  fn (x: f32[B, n]) -> f32[B, n] { x |> first |> rest }
  fn classes(x: f32[B, n]) -> f32[B, 3] { head(x |> first |> rest) }
}
train t {
  model = Net(N, DEPTH)
  data = dataset("toy")
  batch = 12
  RULE
}
"""
LOCAL = """let h = model(x)
  learn model.first by three_factor(3, lr = 0.1) given y
  learn model.rest by three_factor(3, lr = 0.1) given y"""
BACK = "minimize cross_entropy(model.classes(x), y) using sgd(0.1)"


def module_of(rule, depth, n=16):
    rng = np.random.default_rng(0)
    data = SimpleNamespace(fields={"x": rng.normal(size=(20, n)).astype(np.float32), "y": rng.integers(0, 3, 20).astype(np.int32)}, n=20)
    text = NET.replace("RULE", rule).replace("DEPTH", str(depth - 1)).replace("N,", f"{n},")
    return elaborate_train(load("test.nn", text), None, {}, lambda name: data).module


def arena(rule, depth):
    return driver.lower(module_of(rule, depth, 32)).funcs["step"].attrs["arena"]


def test_memory_of_local_learning_does_not_grow_with_depth():
    local = [arena(LOCAL, d) for d in (4, 8, 12)]
    back = [arena(BACK, d) for d in (4, 8, 12)]
    assert local[0] == local[1] == local[2]
    assert back[2] - back[1] == back[1] - back[0] >= 4 * 12 * 32 * 4


def test_updates_in_place_copy_nothing():
    """Who reads the old weights comes first."""
    for rule in (LOCAL, BACK):
        step = driver.lower(module_of(rule, 6)).funcs["step"]
        assert not any(op.name == "loop.copy" and op.operands[0].type.numel > 16 for op in step.walk())


@pytest.mark.parametrize("rule", [LOCAL, BACK])
def test_the_order_changes_no_bit(rule):
    module = driver.lower(module_of(rule, 5, 6), "tensor")
    module.funcs = {n: f for n, f in module.funcs.items() if n != "init"}
    module.attrs["entries"] = ["step"]
    args = driver.random_arguments(module, "step")
    after = Schedule().apply(clone_module(module))
    if rule is LOCAL:
        assert [op.name for op in after.funcs["step"].body.ops] != [op.name for op in module.funcs["step"].body.ops]
    for a, b in zip(Interpreter(module).call("step", args), Interpreter(after).call("step", args)):
        assert np.array_equal(a, b)
