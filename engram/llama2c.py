"""Weights in llama2.c's legacy format (`stories260K.bin` and its like), under the names that Hugging Face gives a Llama's parameters.

The file stores rotary positions as interleaved pairs: a program uses it with `half = false`.
"""
from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from .checkpoint import CheckpointError

_LAYER = ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "post_attention_layernorm",
          "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj")


def read(path: Path | str) -> dict[str, np.ndarray]:
    """All arrays of the file; CheckpointError where its header and its size disagree."""
    try:
        data = Path(path).read_bytes()
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror}") from None
    if len(data) < 28:
        raise CheckpointError(f"{path} is no llama2.c checkpoint: it has {len(data)} bytes")
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack_from("<7i", data)
    tied, vocab = vocab > 0, abs(vocab)
    if min(dim, hidden, layers, heads, kv_heads, vocab, length) < 1 or dim % heads or heads % kv_heads:
        raise CheckpointError(f"{path} is no llama2.c checkpoint: its header says dim {dim}, hidden {hidden}, layers {layers}, heads {heads}, "
                              f"kv heads {kv_heads}, vocabulary {vocab}, length {length}")
    kv, head = dim // heads * kv_heads, dim // heads
    shapes = [(dim,), (dim, dim), (kv, dim), (kv, dim), (dim, dim), (dim,), (hidden, dim), (dim, hidden), (hidden, dim)]
    sizes = [("model.embed_tokens", 1, (vocab, dim))]
    sizes += [(name, layers, shape) for name, shape in zip(_LAYER, shapes)]
    sizes += [("model.norm", 1, (dim,)), ("", 1, (2, length, head // 2))]        # unnamed: tables of sines, which a program computes
    if not tied:
        sizes.append(("lm_head", 1, (vocab, dim)))
    want = 28 + 4 * sum(n * _numel(shape) for _, n, shape in sizes)
    if want != len(data):
        raise CheckpointError(f"{path}: a llama2.c checkpoint of these sizes has {want:,} bytes, this file {len(data):,}")
    out, at = {}, 28
    for name, n, shape in sizes:
        a = np.frombuffer(data, "<f4", n * _numel(shape), at).reshape(n, *shape)
        at += a.nbytes
        if name in _LAYER:
            out.update((f"model.layers.{k}.{name}.weight", a[k]) for k in range(n))
        elif name:
            out[f"{name}.weight"] = a[0]
    return out


def _numel(shape: tuple[int, ...]) -> int:
    n = 1
    for d in shape:
        n *= d
    return n
