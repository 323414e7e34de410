"""PyTorch's side of the benchmarks: the same networks in its own modules, in eager mode, as its tutorials write them."""
from __future__ import annotations

import time

import numpy as np

from . import memory, models
from .workloads import Workload


def version() -> str:
    import torch
    return f"torch {torch.__version__}"


def prepare(w: Workload, threads: int):
    """The subject for a workload; None where this peer does not take part in it."""
    import torch
    torch.set_num_threads(threads)
    if w.model == "local":
        return Local(w)
    if w.model in memory.UPDATES:
        return Update(w)
    kinds = {"call": Call, "train": Step, "loop": Loop, "generate": Generate, "first": First}
    return kinds[w.kind](w)


def network(model: str, s, values: dict[str, np.ndarray]):
    """(module or function, loss(x, y)) with these parameters."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    def give(module, path: str):
        """Copies a layer's own parameters in; PyTorch keeps matrices [out, in]."""
        with torch.no_grad():
            w = torch.from_numpy(values[f"{path}.w"])
            module.weight.copy_(w.T if isinstance(module, nn.Linear) else w)
            if getattr(module, "bias", None) is not None:
                module.bias.copy_(torch.from_numpy(values[f"{path}.b"]))
        return module

    if model == "mlp":
        m = nn.Sequential(give(nn.Linear(784, 512), "a"), nn.ReLU(), give(nn.Linear(512, 256), "b"), nn.ReLU(), give(nn.Linear(256, 10), "c"))
        return m, lambda x, y: F.cross_entropy(m(x), y)
    if model == "xor":
        m = nn.Sequential(give(nn.Linear(2, 8), "hidden"), nn.Tanh(), give(nn.Linear(8, 1), "out"))
        return m, lambda x, y: F.mse_loss(m(x), y)
    if model == "cnn":
        m = nn.Sequential(give(nn.Conv2d(1, 32, 3), "c1"), nn.ReLU(), nn.MaxPool2d(2), give(nn.Conv2d(32, 64, 3), "c2"), nn.ReLU(), nn.MaxPool2d(2),
                          nn.Flatten(), give(nn.Linear(1600, 128), "fc1"), nn.ReLU(), give(nn.Linear(128, 10), "fc2"))
        return m, lambda x, y: F.cross_entropy(m(x), y)
    if model == "rnn":
        class Reader(nn.Module):
            def __init__(self):
                super().__init__()
                self.emb = give(nn.Embedding(s["vocab"], s["width"]), "emb")
                self.rnn = nn.RNN(s["width"], s["width"], batch_first=True)
                self.head = give(nn.Linear(s["width"], s["vocab"]), "head")
                with torch.no_grad():
                    for name, path in (("weight_ih_l0", "wx"), ("weight_hh_l0", "wh"), ("bias_ih_l0", "bx"), ("bias_hh_l0", "bh")):
                        getattr(self.rnn, name).copy_(torch.from_numpy(np.ascontiguousarray(values[f"rnn.{path}"].T)))

            def forward(self, i):
                return self.head(self.rnn(self.emb(i))[0])
        m = Reader()
        return m, lambda x, y: F.cross_entropy(m(x).flatten(0, 1), y.flatten())

    class Block(nn.Module):
        def __init__(self, k: int):
            super().__init__()
            d, b = s["width"], f"blocks.{k}"
            self.ln1, self.ln2 = give(nn.LayerNorm(d), f"{b}.ln1"), give(nn.LayerNorm(d), f"{b}.ln2")
            self.qkv, self.proj = give(nn.Linear(d, 3 * d), f"{b}.attn.qkv"), give(nn.Linear(d, d), f"{b}.attn.proj")
            self.up, self.down = give(nn.Linear(d, 4 * d), f"{b}.up"), give(nn.Linear(4 * d, d), f"{b}.down")

        def heads(self, x):
            b, t, d = x.shape
            return [h.view(b, t, s["heads"], d // s["heads"]).transpose(1, 2) for h in self.qkv(self.ln1(x)).split(d, 2)]

        def rest(self, x, y):
            x = x + self.proj(y.transpose(1, 2).reshape(x.shape))
            return x + self.down(F.gelu(self.up(self.ln2(x)), approximate="tanh"))

        def forward(self, x):
            return self.rest(x, F.scaled_dot_product_attention(*self.heads(x), is_causal=True))

    class Gpt(nn.Module):
        def __init__(self):
            super().__init__()
            d = s["width"]
            self.wte, self.wpe = give(nn.Embedding(s["vocab"], d), "wte"), give(nn.Embedding(s["context"], d), "wpe")
            self.blocks, self.ln = nn.ModuleList(Block(k) for k in range(s["layers"])), give(nn.LayerNorm(d), "ln")

        def logits(self, x):
            return F.linear(self.ln(x), self.wte.weight)

        def forward(self, i, last: bool = False):
            x = self.wte(i) + self.wpe(torch.arange(i.shape[1]))
            for b in self.blocks:
                x = b(x)
            return self.logits(x[:, -1] if last else x)
    m = Gpt()
    return m, lambda x, y: F.cross_entropy(m(x).flatten(0, 1), y.flatten())


class Step:
    """One training step after the other on one batch."""

    def __init__(self, w: Workload):
        self.begin(w, models.parameter_values(w.model, w.size))

    def begin(self, w: Workload, values: dict[str, np.ndarray]) -> None:
        import torch
        self.module, self.loss = m, _ = network(w.model, w.size, values)
        make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[w.optimizer]
        self.optimizer = make(m.parameters(), lr=w.lr)
        self.batch = [torch.from_numpy(v) for v in models.data(w.model, w.size).values()]

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(*self.batch)
        loss.backward()
        self.optimizer.step()
        return loss

    def results(self) -> dict[str, np.ndarray]:
        return {"losses of the first steps": np.array([self.step().item() for _ in range(models.COMPARED_STEPS)])}

    def run(self, n: int) -> None:
        for _ in range(n):
            self.step()


class Loop(Step):
    """The same: eager PyTorch has no loop that could be compiled."""

    unit = models.LOOP_STEPS

    def results(self) -> dict[str, np.ndarray]:
        found = super().results()
        self.run(self.unit - models.COMPARED_STEPS)
        for path, layer in (("hidden", self.module[0]), ("out", self.module[2])):
            found |= {f"{path}.w after the loop": layer.weight.detach().numpy().T, f"{path}.b after the loop": layer.bias.detach().numpy()}
        return found


class Local:
    """Two layers of 1000 units that learn by the rule three_factor, as one would write it here: no autograd, updates in place, momentum in fused calls."""

    def __init__(self, w: Workload):
        import torch
        self.work, self.count = w, 0
        values = {k: torch.from_numpy(v) for k, v in models.parameter_values("local", w.size).items()}
        self.layers = [(values[f"l{k}.w"].T.contiguous(), values[f"l{k}.b"], values[f"l{k}.three_factor.m"]) for k in (1, 2)]
        self.params = [p for layer in self.layers for p in layer]
        self.speeds = [torch.zeros_like(p) for p in self.params]
        self.x, self.y = (torch.from_numpy(v) for v in models.data("local", w.size).values())

    def step(self) -> None:
        import torch
        import torch.nn.functional as F
        h, grads = (self.x.flatten(1).float() / 255 - 0.1307) / 0.3081, []
        for k, (w, b, m) in enumerate(self.layers):
            x = F.layer_norm(h, h.shape[1:]) if k else h
            h = F.relu(F.linear(x, w, b))
            e = F.linear(h, m).softmax(1)
            e[torch.arange(len(self.y)), self.y] -= 1
            e /= len(self.y)
            d = (e @ m) * (h > 0)
            grads += [d.T @ x, d.sum(0), e.T @ h]
        torch._foreach_mul_(self.speeds, 0.9)
        torch._foreach_add_(self.speeds, grads)
        torch._foreach_add_(self.params, self.speeds, alpha=-self.work.lr * (1 - self.count / self.work.size["steps"]))
        self.count += 1

    def results(self) -> dict[str, np.ndarray]:
        self.run(models.COMPARED_STEPS)
        return {f"l{k}.{name} after the first steps": (v.T if name == "w" else v).numpy()
                for k, layer in zip((1, 2), self.layers) for name, v in zip(("w", "b", "three_factor.m"), layer)}

    def run(self, n: int) -> None:
        import torch
        with torch.no_grad():
            for _ in range(n):
                self.step()


class Update:
    """An optimiser's steps on one large parameter, whose gradient is given."""

    def __init__(self, w: Workload):
        import torch
        self.w = torch.from_numpy(models.parameter_values(w.model, w.size)["w"]).requires_grad_()
        self.w.grad = torch.from_numpy(models.data(w.model, w.size)["x"][0])
        make = {"adamw": torch.optim.AdamW, "momentum": lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)}[w.optimizer]
        self.optimizer = make([self.w], lr=w.lr)

    def results(self) -> dict[str, np.ndarray]:
        self.run(models.COMPARED_STEPS)
        return {"w after the first steps": self.w.detach().numpy()}

    def run(self, n: int) -> None:
        for _ in range(n):
            self.optimizer.step()


class First(Step):
    """The first step of a process, the module and its weights being there."""

    def __init__(self, w: Workload):
        self.begin(w, models.parameter_values(w.model, w.size))

    def first(self) -> tuple[float, float]:
        start = time.perf_counter()
        loss = self.step().item()
        return time.perf_counter() - start, loss


class Call:
    """A function or a model's forward pass, without gradients."""

    def __init__(self, w: Workload):
        import torch
        import torch.nn.functional as F
        args = [torch.from_numpy(v) for v in models.data(w.model, w.size).values()]
        if w.model == "matmul":
            self.call = lambda: [torch.mm(*args)]
        elif w.model in memory.CALLS:
            self.call = memory.torch_call(w.model, args)
        elif w.model == "attention":
            batched = [a[None] for a in args]
            self.call = lambda: F.scaled_dot_product_attention(*batched, is_causal=True)
        else:
            m, _ = network(w.model, w.size, models.parameter_values(w.model, w.size))
            self.call = lambda: [m(args[0], bool(w.size.get("last")))]

    def results(self) -> dict[str, np.ndarray]:
        import torch
        with torch.inference_mode():
            return {f"result{k or ''}": x.numpy() for k, x in enumerate(self.call())}

    def run(self, n: int) -> None:
        import torch
        with torch.inference_mode():
            for _ in range(n):
                self.call()


class Generate:
    """Greedy decoding with preallocated key and value caches: one module call a token."""

    def __init__(self, w: Workload):
        self.size = w.size
        self.m, _ = network("gpt", w.size, models.parameter_values("gpt", w.size))
        self.m.eval()

    def tokens(self, n: int) -> list[int]:
        import torch
        import torch.nn.functional as F
        s, m = self.size, self.m
        capacity = s["tokens"] * 2
        keys, values = (torch.zeros(s["layers"], 1, s["heads"], capacity, s["width"] // s["heads"]) for _ in range(2))
        token, out = torch.zeros(1, 1, dtype=torch.long), []
        with torch.inference_mode():
            for at in range(n):
                pos, mask = torch.tensor([at]), (torch.arange(capacity) <= at)[None, None, None]
                x = m.wte(token) + m.wpe(pos)
                for k, b in enumerate(m.blocks):
                    q, key, value = b.heads(x)
                    keys[k].index_copy_(2, pos, key)
                    values[k].index_copy_(2, pos, value)
                    x = b.rest(x, F.scaled_dot_product_attention(q, keys[k], values[k], attn_mask=mask))
                token = m.logits(x).argmax(-1)
                out.append(int(token))
        return out

    def results(self) -> dict[str, np.ndarray]:
        return {"tokens": np.array(self.tokens(self.size["tokens"]))}

    @property
    def unit(self) -> int:
        return self.size["tokens"]

    def run(self, n: int) -> None:
        for _ in range(n // self.unit):
            self.tokens(self.unit)
