"""Optimisers, schedules and layers of the library that no sample in tests/pytorch uses, compared with PyTorch's.  Needs torch, a peer."""
from __future__ import annotations

import numpy as np
import pytest
from engram.datasets import Dataset
from engram.session import load_program, train_plan
from engram.train import Trainer
from engram.weights import fit

torch = pytest.importorskip("torch", reason="PyTorch is not installed: the library is compared where it is")
from pytorch_peer import learn, numbers  # noqa: E402

nn, F = torch.nn, torch.nn.functional


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# ---- optimisers and schedules ---------------------------------------------------------------------------------------------

REGRESSION = """
import "std/nn.nn"
train regression {
  model   = Sequential([Linear(3, 4), PReLU(4), Linear(4, 1)])
  data    = dataset("npz", "sample.npz")
  batch   = 12
  epochs  = 8
  holdout = 0
  minimize mse(model(x), y) using %s
}
"""
OPTIMISERS = {
    "adam(0.05, weight_decay = 0.1)": lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.1),
    "adamax(0.05, weight_decay = 0.1)": lambda p: torch.optim.Adamax(p, 0.05, weight_decay=0.1),
    "nadam(0.05, weight_decay = 0.1)": lambda p: torch.optim.NAdam(p, 0.05, weight_decay=0.1),
    "radam(0.05, weight_decay = 0.1)": lambda p: torch.optim.RAdam(p, 0.05, weight_decay=0.1),
    "adadelta(0.5, weight_decay = 0.1)": lambda p: torch.optim.Adadelta(p, 0.5, weight_decay=0.1),
    "rmsprop(0.02, momentum = 0.5, weight_decay = 0.1)": lambda p: torch.optim.RMSprop(p, 0.02, momentum=0.5, weight_decay=0.1),
    "rmsprop(0.02, centered = true)": lambda p: torch.optim.RMSprop(p, 0.02, centered=True),
    "sgd(one_cycle(step, 8, 0.5))": lambda p: (o := torch.optim.SGD(p, 0.5), torch.optim.lr_scheduler.OneCycleLR(o, 0.5, 8, cycle_momentum=False)),
    "sgd(step_lr(epoch, 0.1, every = 3, factor = 0.5))": lambda p: (o := torch.optim.SGD(p, 0.1), torch.optim.lr_scheduler.StepLR(o, 3, 0.5)),
    "sgd(cosine(step, 8, 0.1))": lambda p: (o := torch.optim.SGD(p, 0.1), torch.optim.lr_scheduler.CosineAnnealingLR(o, 8)),
}


@pytest.mark.parametrize("ours", OPTIMISERS)
def test_optimisers(ours):
    model = nn.Sequential(nn.Linear(3, 4), nn.PReLU(4), nn.Linear(4, 1))
    x, y = numbers(12, 3), numbers(12, 1)
    data = Dataset("sample", {"x": x.numpy(), "y": y.numpy()})
    t = Trainer(train_plan(load_program("regression.nn", REGRESSION % ours), "regression", given={"npz": data}), "cpu", threads=1)
    t.initialise(0)
    t.load_weights({k: v.detach().numpy() for k, v in model.state_dict().items()}, "PyTorch's")
    mine = t.run(data.fields, final=False).first_losses
    made = OPTIMISERS[ours](model.parameters())
    optimiser, schedule = made if isinstance(made, tuple) else (made, None)
    theirs = learn(model, optimiser, lambda: F.mse_loss(model(x), y), after=schedule, steps=8)
    np.testing.assert_allclose(mine, theirs, rtol=2e-4)


# ---- layers ---------------------------------------------------------------------------------------

LAYERS = """
import "std/nn.nn"
layer Net(first) {
  decoder = TransformerDecoderLayer(8, 2, 16, dropout = 0, norm_first = first)
  conv    = Conv1d(8, 4, 3, padding = 1, groups = 2)
  fn (x: f32[B, T, 8], memory: f32[B, S, 8], seen: bool[B, 1, 1, S]) { conv(decoder(x, memory, seen).T) }
}
"""


@pytest.mark.parametrize("first", [False, True])
def test_decoder_layer_with_a_mask_and_conv1d(first):
    import engram as eg
    model = nn.ModuleDict({"decoder": nn.TransformerDecoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=first), "conv": nn.Conv1d(8, 4, 3, padding=1, groups=2)})
    x, memory, seen = numbers(3, 5, 8), numbers(3, 6, 8), torch.arange(6) < torch.tensor([[6], [4], [2]])
    y = model["decoder"](x, memory, tgt_mask=nn.Transformer.generate_square_subsequent_mask(5), memory_key_padding_mask=~seen)
    want = model["conv"](y.mT).detach().numpy()
    m = eg.Model(LAYERS, "Net", first)
    for k, v in fit(m._instance, {k: v.numpy() for k, v in model.state_dict().items()}, "PyTorch's").items():
        m.parameters[k] = v
    np.testing.assert_allclose(m(x.numpy(), memory.numpy(), seen[:, None, None].numpy()), want, rtol=1e-4, atol=1e-5)
