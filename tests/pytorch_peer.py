"""PyTorch's side of the tests that compare trainings with it: data, and losses of the first steps.  To be imported where torch is installed."""
import torch

STEPS = 3


def numbers(*shape, low=None, high=None):
    """Normal numbers, or uniform ones."""
    return torch.randn(*shape) if low is None else torch.rand(*shape) * (high - low) + low


def learn(module, optimiser, loss, after=None, clip=None, steps=STEPS):
    """PyTorch's losses of the first steps."""
    out = []
    for _ in range(steps):
        optimiser.zero_grad()
        value = loss()
        value.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimiser.step()
        out.append(value.item())
        if after:
            after.step()
    return out
