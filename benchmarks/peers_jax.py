"""JAX's side of the benchmarks: the same networks as pure functions, jitted, the whole training step with its donated state."""
from __future__ import annotations

import math
import time

import numpy as np

from . import models
from .workloads import Workload


def version() -> str:
    import jax
    return f"jax {jax.__version__}"


def prepare(w: Workload, threads: int):
    """The subject for a workload. XLA takes as many threads as the process has processors (worker.py sees to that)."""
    import jax
    jax.config.update("jax_platforms", "cpu")
    kinds = {"call": Call, "train": Step, "loop": Loop, "generate": Generate, "first": First}
    return kinds[w.kind](w)


def _linear(p, path: str, x):
    return x @ p[f"{path}.w"] + p[f"{path}.b"]


def _norm(p, path: str, x):
    import jax
    c = x - x.mean(-1, keepdims=True)
    return c * jax.lax.rsqrt((c * c).mean(-1, keepdims=True) + 1e-5) * p[f"{path}.w"] + p[f"{path}.b"]


def _cross_entropy(logits, y):
    import jax
    import jax.numpy as jnp
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[..., None], -1).mean()


def _heads(p, b: str, x, s):
    import jax.numpy as jnp
    n, t, d = x.shape
    return [h.reshape(n, t, s["heads"], d // s["heads"]).swapaxes(1, 2) for h in jnp.split(_linear(p, f"{b}.attn.qkv", _norm(p, f"{b}.ln1", x)), 3, -1)]


def _rest(p, b: str, x, y):
    import jax
    x = x + _linear(p, f"{b}.attn.proj", y.swapaxes(1, 2).reshape(x.shape))
    return x + _linear(p, f"{b}.down", jax.nn.gelu(_linear(p, f"{b}.up", _norm(p, f"{b}.ln2", x)), approximate=True))


def _attend(q, k, v, mask):
    import jax
    import jax.numpy as jnp
    scores = jnp.where(mask, q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]), -1e30)
    return jax.nn.softmax(scores) @ v


def _gpt(p, i, s, last: bool = False):
    import jax.numpy as jnp
    t = i.shape[1]
    x, mask = p["wte.w"][i] + p["wpe.w"][:t], jnp.tril(jnp.ones((t, t), bool))
    for k in range(s["layers"]):
        b = f"blocks.{k}"
        x = _rest(p, b, x, _attend(*_heads(p, b, x, s), mask))
    return _norm(p, "ln", x[:, -1] if last else x) @ p["wte.w"].T


def forward(model: str, s):
    """f(parameters, x) -> predictions."""
    import jax
    import jax.numpy as jnp

    def mlp(p, x):
        return _linear(p, "c", jax.nn.relu(_linear(p, "b", jax.nn.relu(_linear(p, "a", x)))))

    def xor(p, x):
        return _linear(p, "out", jnp.tanh(_linear(p, "hidden", x)))

    def rnn(p, i):
        us = p["emb.w"][i] @ p["rnn.wx"] + p["rnn.bx"]

        def step(h, u):
            h = jnp.tanh(u + h @ p["rnn.wh"] + p["rnn.bh"])
            return h, h
        _, hs = jax.lax.scan(step, jnp.zeros((i.shape[0], s["width"])), us.swapaxes(0, 1))
        return _linear(p, "head", hs.swapaxes(0, 1))

    def cnn(p, x):
        def stage(x, path):
            x = jax.nn.relu(jax.lax.conv(x, p[f"{path}.w"], (1, 1), "VALID") + p[f"{path}.b"][:, None, None])
            return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        x = stage(stage(x, "c1"), "c2").reshape(x.shape[0], -1)
        return _linear(p, "fc2", jax.nn.relu(_linear(p, "fc1", x)))

    return {"mlp": mlp, "xor": xor, "rnn": rnn, "cnn": cnn, "gpt": lambda p, i: _gpt(p, i, s, bool(s.get("last")))}[model]


def train_step(w: Workload):
    """step(state, x, y) -> state, loss; the state is (parameters, first moments, second moments, steps done)."""
    import jax
    import jax.numpy as jnp
    f = forward(w.model, w.size)

    def loss(p, x, y):
        return ((f(p, x) - y) ** 2).mean() if w.model == "xor" else _cross_entropy(f(p, x), y)

    def step(state, x, y):
        p, m, v, t = state
        value, g = jax.value_and_grad(loss)(p, x, y)
        if w.optimizer == "sgd":
            return (jax.tree.map(lambda p, g: p - w.lr * g, p, g), m, v, t), value
        if w.optimizer == "adamw":
            p = jax.tree.map(lambda p: p * (1 - w.lr * 0.01), p)
        t = t + 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        p = jax.tree.map(lambda p, m, v: p - w.lr * (m / (1 - 0.9 ** t)) / (jnp.sqrt(v / (1 - 0.999 ** t)) + 1e-8), p, m, v)
        return (p, m, v, t), value
    return step


class Step:
    """One jitted training step after the other, called from Python, on one batch."""

    def __init__(self, w: Workload):
        import jax
        self.begin(w)
        self.jitted = jax.jit(train_step(w), donate_argnums=0)

    def begin(self, w: Workload) -> None:
        import jax
        import jax.numpy as jnp
        p = {k: jnp.array(v) for k, v in models.parameter_values(w.model, w.size).items()}
        zeros = [{} if w.optimizer == "sgd" else jax.tree.map(jnp.zeros_like, p) for _ in range(2)]
        self.state = (p, *zeros, jnp.float32(0))
        self.batch = [jnp.array(v) for v in models.data(w.model, w.size).values()]
        jax.block_until_ready((self.state, self.batch))

    def step(self):
        self.state, loss = self.jitted(self.state, *self.batch)
        return loss

    def results(self) -> dict[str, np.ndarray]:
        return {"losses of the first steps": np.array([float(self.step()) for _ in range(models.COMPARED_STEPS)])}

    def run(self, n: int) -> None:
        for _ in range(n):
            self.step().block_until_ready()


class First(Step):
    """The first step of a process; a warm one has JAX's own compilation cache on disk."""

    def __init__(self, w: Workload):
        import os

        import jax
        if folder := os.environ.get("ENGRAM_BENCH_JAX_CACHE"):
            jax.config.update("jax_compilation_cache_dir", folder)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        super().__init__(w)

    def first(self) -> tuple[float, float]:
        start = time.perf_counter()
        loss = float(self.step())
        return time.perf_counter() - start, loss


class Loop(Step):
    """Steps within one compiled loop."""

    unit = models.LOOP_STEPS

    def __init__(self, w: Workload):
        import jax
        super().__init__(w)
        step = train_step(w)
        self.loop = jax.jit(lambda state, x, y: jax.lax.fori_loop(0, self.unit, lambda _, s: step(s, x, y)[0], state), donate_argnums=0)

    def results(self) -> dict[str, np.ndarray]:
        found = super().results()
        for _ in range(self.unit - models.COMPARED_STEPS):
            self.step()
        return {**found, **{f"{k} after the loop": np.asarray(v) for k, v in self.state[0].items()}}

    def run(self, n: int) -> None:
        import jax
        for _ in range(n // self.unit):
            self.state = self.loop(self.state, *self.batch)
        jax.block_until_ready(self.state)


class Call:
    """A jitted function on arrays in memory."""

    def __init__(self, w: Workload):
        import jax
        import jax.numpy as jnp
        args = [jnp.array(v) for v in models.data(w.model, w.size).values()]
        if w.model == "matmul":
            f = jax.jit(jnp.matmul)
        elif w.model == "attention":
            t = w.size["time"]
            f = jax.jit(lambda q, k, v: _attend(q, k, v, jnp.tril(jnp.ones((t, t), bool))))
        else:
            g = jax.jit(forward(w.model, w.size))
            p = {k: jnp.array(v) for k, v in models.parameter_values(w.model, w.size).items()}
            args, f = args[:1], lambda x: g(p, x)
        self.call = lambda: f(*args).block_until_ready()

    def results(self) -> dict[str, np.ndarray]:
        return {"result": np.asarray(self.call())}

    def run(self, n: int) -> None:
        for _ in range(n):
            self.call()


class Generate:
    """Greedy decoding, all tokens in one jitted scan over preallocated caches."""

    def __init__(self, w: Workload):
        import jax
        import jax.numpy as jnp
        s = self.size = w.size
        capacity, k = s["tokens"] * 2, s["width"] // s["heads"]
        self.p = {name: jnp.array(v) for name, v in models.parameter_values("gpt", s).items()}

        def step(carry, at, p):
            token, keys, values = carry
            x = p["wte.w"][token][None] + p["wpe.w"][at]
            mask = jnp.arange(capacity) <= at
            for n in range(s["layers"]):
                b = f"blocks.{n}"
                q, key, value = _heads(p, b, x, s)
                keys = jax.lax.dynamic_update_slice(keys, key[None], (n, 0, 0, at, 0))
                values = jax.lax.dynamic_update_slice(values, value[None], (n, 0, 0, at, 0))
                x = _rest(p, b, x, _attend(q, keys[n], values[n], mask))
            token = jnp.argmax(_norm(p, "ln", x[:, -1]) @ p["wte.w"].T, -1)
            return (token, keys, values), token[0]

        def generate(p):
            cache = jnp.zeros((s["layers"], 1, s["heads"], capacity, k))
            start = (jnp.zeros(1, int), cache, cache)
            return jax.lax.scan(lambda c, at: step(c, at, p), start, jnp.arange(s["tokens"]))[1]
        self.generate = jax.jit(generate)

    def results(self) -> dict[str, np.ndarray]:
        return {"tokens": np.asarray(self.generate(self.p))}

    @property
    def unit(self) -> int:
        return self.size["tokens"]

    def run(self, n: int) -> None:
        for _ in range(n // self.unit):
            self.generate(self.p).block_until_ready()
