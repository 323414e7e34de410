"""The group `memory`: work that memory bounds, on arrays larger than the last cache. Per kind its arrays, the bytes that have to pass
between memory and caches (what is read once, plus what is written once), and PyTorch's way to do it."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np

UPDATES = ("adamw_update", "momentum_update")
CALLS = ("softmax_rows", "cross_entropy_rows", "layer_norm_rows", "layer_norm_grad", "rms_norm_rows", "rms_norm_grad", "embedding_rows", "embedding_grad",
         "matrix_vector", "vector_matrix", "sum_rows", "mean_columns")
KINDS = (*UPDATES, *CALLS)


def data(kind: str, s: Mapping[str, int], seed: int = 1) -> dict[str, np.ndarray]:
    """The arguments, by the names that memory.nn has for them."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)
    if kind in UPDATES:
        return {"x": normal(1, s["n"])}
    r, c = s["rows"], s["columns"]
    if kind == "cross_entropy_rows":
        return {"x": normal(r, c), "y": rng.integers(0, c, r)}
    if kind.startswith(("layer_norm", "rms_norm")):
        out = {"x": normal(r, c), "w": normal(c)}
        if kind.startswith("layer"):
            out["b"] = normal(c)
        return out | ({"g": normal(r, c)} if kind.endswith("grad") else {})
    if kind == "embedding_rows":
        return {"w": normal(r, c), "i": rng.permutation(r)[:s["taken"]]}
    if kind == "embedding_grad":
        return {"w": normal(r, c), "i": rng.permutation(r)[:s["taken"]], "g": normal(s["taken"], c)}
    if kind in ("matrix_vector", "vector_matrix"):
        return {"a": normal(r, c), "x": normal(c if kind == "matrix_vector" else r)}
    return {"x": normal(r, c)}


def traffic(kind: str, s: Mapping[str, int]) -> tuple[float, float]:
    """Bytes that no way to do it can avoid: all, and those of them that are written."""
    if kind in UPDATES:                                      # the gradient is read, parameters and state are read and written
        arrays = 2 if kind == "momentum_update" else 3
        return 4.0 * s["n"] * (1 + 2 * arrays), 4.0 * s["n"] * arrays
    whole = 4.0 * s["rows"] * s["columns"]
    if kind == "embedding_rows":
        return 2 * 4.0 * s["taken"] * s["columns"], 4.0 * s["taken"] * s["columns"]
    if kind == "embedding_grad":
        return 4.0 * s["taken"] * s["columns"] + whole, whole
    if kind in ("layer_norm_grad", "rms_norm_grad"):
        return 3 * whole, whole
    return (whole, 0.0) if kind in ("matrix_vector", "vector_matrix", "sum_rows", "mean_columns") else (2 * whole, whole)


def torch_call(kind: str, args: list):
    """A function of no arguments that does one unit with PyTorch and gives the results."""
    import torch
    import torch.nn.functional as F
    x, *more = args

    def gradient(f, leaves):                                 # the forward pass is not timed
        with torch.inference_mode(False), torch.enable_grad():
            leaves, given = [t.detach().clone().requires_grad_() for t in leaves], args[-1].clone()
            out = f(*leaves)

        def call():
            with torch.inference_mode(False):
                return list(torch.autograd.grad(out, leaves, given, retain_graph=True))
        return call
    if kind == "cross_entropy_rows":
        def loss():
            with torch.inference_mode(False), torch.enable_grad():
                logits = x.detach().requires_grad_()
                out = F.cross_entropy(logits, more[0])
                return [out, *torch.autograd.grad(out, logits)]
        return loss
    if kind == "layer_norm_grad":                            # the statistics are made once, as in training; the forward pass is not timed
        mean, rstd = torch.native_layer_norm(x, x.shape[1:], *more[:2], 1e-5)[1:]
        return lambda: list(torch.ops.aten.native_layer_norm_backward(more[2], x, x.shape[1:], mean, rstd, *more[:2], [True] * 3))
    if kind == "rms_norm_grad":
        return gradient(lambda x, w: F.rms_norm(x, x.shape[1:], w, 1e-5), args[:2])
    return {"softmax_rows": lambda: [x.softmax(-1)], "layer_norm_rows": lambda: [F.layer_norm(x, x.shape[1:], *more)],
            "rms_norm_rows": lambda: [F.rms_norm(x, x.shape[1:], *more, 1e-5)], "embedding_rows": lambda: [F.embedding(more[0], x)],
            "embedding_grad": lambda: [torch.ops.aten.embedding_dense_backward(more[1], more[0], x.shape[0], -1, False)],
            "matrix_vector": lambda: [x @ more[0]], "vector_matrix": lambda: [more[0] @ x], "sum_rows": lambda: [x.sum(1)],
            "mean_columns": lambda: [x.mean(0)]}[kind]
