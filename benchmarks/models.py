"""The networks that are timed, by their sizes: parameters, data and the arithmetic that one step of them takes.

Numbers only (NumPy): every side draws the same values here, by the same seed, so nothing has to be sent between processes.
Parameters go by Engram's paths in Engram's layouts (`Linear.w` is [in, out]); a peer turns them into its own.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from . import memory

LOOP_STEPS = 20_000            # steps of one compiled training loop
COMPARED_STEPS = 3             # whose losses are compared

Shapes = dict[str, tuple[tuple[int, ...], float, float]]        # path -> shape, standard deviation, mean


@dataclass(frozen=True)
class Part:
    """A stretch of the work that cannot overlap with the next one: its arithmetic and the bytes that must pass between memory and caches,
    `written` of them to memory."""

    what: str
    flops: float = 0.0
    bytes: float = 0.0
    written: float = 0.0


# ---- parameters and data --------------------------------------------------------------------------------------------------

def _linear(path: str, i: int, o: int) -> Shapes:
    return {f"{path}.w": ((i, o), i ** -0.5, 0.0), f"{path}.b": ((o,), 0.02, 0.0)}


def _norm(path: str, d: int) -> Shapes:
    return {f"{path}.w": ((d,), 0.1, 1.0), f"{path}.b": ((d,), 0.02, 0.0)}


def parameters(model: str, s: Mapping[str, int]) -> Shapes:
    """What the network's parameters are called, their shapes, and how their values are spread."""
    if model == "mlp":
        return {**_linear("a", 784, 512), **_linear("b", 512, 256), **_linear("c", 256, 10)}
    if model == "xor":
        return {**_linear("hidden", 2, 8), **_linear("out", 8, 1)}
    if model == "local":
        return {"l1.w": ((784, 1000), 784 ** -0.5, 0.0), "l1.b": ((1000,), 0.02, 0.0), "l2.w": ((1000, 1000), 1000 ** -0.5, 0.0), "l2.b": ((1000,), 0.02, 0.0),
                "l1.three_factor.m": ((10, 1000), 1000 ** -0.5, 0.0), "l2.three_factor.m": ((10, 1000), 1000 ** -0.5, 0.0)}
    if model == "rnn":
        v, h = s["vocab"], s["width"]
        return {"emb.w": ((v, h), 1.0, 0.0), "rnn.wx": ((h, h), h ** -0.5, 0.0), "rnn.wh": ((h, h), h ** -0.5, 0.0),
                "rnn.bx": ((h,), 0.02, 0.0), "rnn.bh": ((h,), 0.02, 0.0), **_linear("head", h, v)}
    if model == "cnn":
        return {"c1.w": ((32, 1, 3, 3), 1 / 3, 0.0), "c1.b": ((32,), 0.02, 0.0), "c2.w": ((64, 32, 3, 3), 288 ** -0.5, 0.0),
                "c2.b": ((64,), 0.02, 0.0), **_linear("fc1", 1600, 128), **_linear("fc2", 128, 10)}
    if model in memory.UPDATES:
        return {"w": ((s["n"],), 0.5, 1.0)}
    if model == "gpt":
        d = s["width"]
        out: Shapes = {"wte.w": ((s["vocab"], d), 0.02, 0.0), "wpe.w": ((s["context"], d), 0.02, 0.0)}
        for k in range(s["layers"]):
            b = f"blocks.{k}"
            out |= {**_norm(f"{b}.ln1", d), **_linear(f"{b}.attn.qkv", d, 3 * d), **_linear(f"{b}.attn.proj", d, d),
                    **_norm(f"{b}.ln2", d), **_linear(f"{b}.up", d, 4 * d), **_linear(f"{b}.down", 4 * d, d)}
        return {**out, **_norm("ln", d)}
    return {}


def parameter_values(model: str, s: Mapping[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """The parameters' values: equal in every process."""
    out = {}
    for k, (path, (shape, spread, mean)) in enumerate(parameters(model, s).items()):
        a = np.random.default_rng([seed, k]).standard_normal(shape, np.float32)
        a *= np.float32(spread)
        a += np.float32(mean)
        out[path] = a
    return out


def data(model: str, s: Mapping[str, int], seed: int = 1) -> dict[str, np.ndarray]:
    """The arrays the work is done on: a batch (x, y), or a function's arguments."""
    if model in memory.KINDS:
        return memory.data(model, s, seed)
    rng = np.random.default_rng(seed)
    batch = s.get("batch", 1)
    if model == "matmul":
        return {"a": rng.standard_normal((s["m"], s["k"]), np.float32), "b": rng.standard_normal((s["k"], s["n"]), np.float32)}
    if model == "attention":
        shape = (s["heads"], s["time"], s["width"] // s["heads"])
        return {name: rng.standard_normal(shape, np.float32) for name in "qkv"}
    if model == "mlp":
        return {"x": rng.standard_normal((batch, 784), np.float32), "y": rng.integers(0, 10, batch)}
    if model == "xor":
        x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
        return {"x": x, "y": (x[:, :1] != x[:, 1:]).astype(np.float32)}
    if model == "local":
        return {"x": rng.integers(0, 256, (batch, 28, 28)).astype(np.uint8), "y": rng.integers(0, 10, batch)}
    if model == "cnn":
        return {"x": rng.standard_normal((batch, 1, 28, 28), np.float32), "y": rng.integers(0, 10, batch)}
    return {name: rng.integers(0, s["vocab"], (batch, s["time"])) for name in "xy"}


# ---- arithmetic and memory --------------------------------------------------------------------------------------------------

def count(model: str, s: Mapping[str, int]) -> int:
    """The number of parameters."""
    return sum(int(np.prod(shape)) for shape, _, _ in parameters(model, s).values())


def _attention(s: Mapping[str, int]) -> float:
    """FLOPs of causal attention's two products, forward, for one sequence: half of the square is needed."""
    t = s["time"]
    return 2 * 2 * s["width"] * t * (t + 1) / 2


def forward_flops(model: str, s: Mapping[str, int]) -> tuple[float, float]:
    """FLOPs of the products of a forward pass, and those among them whose input's gradient nobody needs (a first layer's)."""
    batch = s.get("batch", 1)
    if model == "matmul":
        return 2.0 * s["m"] * s["k"] * s["n"], 0.0
    if model == "attention":
        return _attention(s), 0.0
    if model == "mlp":
        return 2.0 * batch * (784 * 512 + 512 * 256 + 2560), 2.0 * batch * 784 * 512
    if model == "xor":
        return 2.0 * 4 * 24, 2.0 * 4 * 16
    if model == "rnn":
        n = batch * s["time"]
        return 2.0 * n * s["width"] * (2 * s["width"] + s["vocab"]), 0.0
    if model == "cnn":
        first = 2.0 * batch * 26 * 26 * 32 * 9
        return first + 2.0 * batch * (11 * 11 * 64 * 288 + 1600 * 128 + 1280), first
    d, n = s["width"], batch * s["time"]
    block = 2.0 * n * 12 * d * d + batch * _attention(s)
    if s.get("last"):                        # the last block's other tokens end with their keys and values
        return (s["layers"] - 1) * block + 2.0 * (2 * n + 10 * batch) * d * d + 2.0 * batch * d * s["vocab"], 0.0
    return s["layers"] * block + 2.0 * n * d * s["vocab"], 0.0


def train_parts(model: str, s: Mapping[str, int], optimizer: str) -> list[Part]:
    """A training step: the products of all three passes, then the optimiser, which reads and writes a parameter and its state once."""
    if model in memory.UPDATES:
        return [Part("update", 0.0, *memory.traffic(model, s))]
    n, passes = count(model, s), {"sgd": 2, "momentum": 4, "adam": 6, "adamw": 6}[optimizer]
    if model == "local":                                     # forward and weights' update of each layer, and three small products of its readout
        return [Part("products", 2.0 * s["batch"] * (2 * (784_000 + 1_000_000) + 2 * 3 * 10_000), 8.0 * n), Part("optimiser", 0.0, 4.0 * passes * n, 2.0 * passes * n)]
    all_, first = forward_flops(model, s)
    return [Part("products", 3 * all_ - first, 8.0 * n), Part("optimiser", 0.0, 4.0 * passes * n, 2.0 * passes * n)]


def call_parts(model: str, s: Mapping[str, int]) -> list[Part]:
    """One call forward: every parameter (or argument) read once, the result written once."""
    if model in memory.CALLS:
        return [Part("call", 0.0, *memory.traffic(model, s))]
    flops, _ = forward_flops(model, s)
    if model == "matmul":
        size = 4.0 * (s["m"] * s["k"] + s["k"] * s["n"] + s["m"] * s["n"])
    elif model == "attention":
        size = 4.0 * 4 * s["time"] * s["width"]
    else:
        size = 4.0 * (count(model, s) + (1 if s.get("last") else s["time"]) * s.get("vocab", 0))
    return [Part("forward", flops, size)]


def decode_parts(s: Mapping[str, int]) -> list[Part]:
    """One token: every weight but the embeddings' other rows is read once, and the keys and values of the positions so far, on average."""
    n = count("gpt", s) - s["context"] * s["width"]
    caches = 2 * s["layers"] * s["width"] * (s["tokens"] + 1) / 2
    return [Part("weights and caches", 2.0 * n, n * s.get("bits", 32) / 8 + 4 * caches)]


def working_set(model: str, s: Mapping[str, int], training: bool) -> float:
    """Bytes that come round again at every call: within the last cache they cost no memory traffic."""
    if model in ("matmul", "attention", *memory.CALLS):
        return call_parts(model, s)[0].bytes
    return 4.0 * count(model, s) * (4 if training else 1)
