"""The table of workloads (DESIGN.md, section 5): what is timed, on which sizes, how exact the sides must agree, what has to be reached."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .models import Part, call_parts, count, decode_parts, train_parts, working_set

GPT2 = {"vocab": 50257, "layers": 12, "heads": 12, "width": 768, "context": 1024}
CHAR_GPT = {"vocab": 65, "layers": 4, "heads": 4, "width": 128, "context": 64}


@dataclass(frozen=True)
class Workload:
    """One row. `kind`: "call" a function or a model forward; "train" a step called from Python; "loop" a step within a compiled loop;
    "generate" a token; "first" the first training step of a fresh process, code generation included.

    `bars`: a peer's name -> the least ratio (its time / ours); "limit" -> the least share of the physical limit; "most" / "least" ->
    bounds of our own number in the row's unit; "memory" -> our peak memory over PyTorch's at most. `tolerance` is relative to the largest magnitude of the result compared.
    """

    name: str
    what: str
    kind: str
    model: str
    program: str
    size: Mapping[str, int] = field(default_factory=dict)
    block: str = ""                              # the train block, function or layer
    settings: Mapping[str, object] = field(default_factory=dict)
    optimizer: str = ""
    lr: float = 1e-3
    unit: str = "ms"
    tolerance: float = 1e-4
    bars: Mapping[str, float] = field(default_factory=dict)
    warm: bool = False                           # first: from a cache that an earlier process has filled
    quantize: str = ""                           # the weight type that products with parameters get
    peers: tuple[str, ...] = ("torch", "jax")    # who takes part
    dials: Mapping[str, str] = field(default_factory=dict)       # a size -> the setting of the block that says it
    seconds: float = 6.0                         # that the turns may take, beyond the least number of them

    def sized(self, **size: int) -> Workload:
        """The same work at other sizes."""
        return replace(self, size={**self.size, **size})

    @property
    def training(self) -> bool:
        return self.kind in ("train", "loop", "first")

    def bar(self, what: str) -> str:
        """One of the bars, for people."""
        value = self.bars[what]
        if what == "limit":
            return f">= {value:.0%} of the limit"
        if what == "memory":
            return f"peak memory <= {value:.4g}x torch's"
        return f"{'<=' if what == 'most' else '>='} {value:.4g} {self.unit}" if what in ("most", "least") else f">= {value:.4g}x {what}"

    def parts(self, cache: float) -> list[Part]:
        """The work of one unit; bytes count where they do not stay in `cache` bytes of last-level cache."""
        if self.kind == "first":
            return []
        if self.kind == "generate":
            parts = decode_parts(self.size)
        else:
            parts = train_parts(self.model, self.size, self.optimizer) if self.training else call_parts(self.model, self.size)
        if working_set(self.model, self.size, self.training) > cache or self.kind == "generate":
            return parts
        return [replace(p, bytes=0.0) for p in parts]


def _train(name: str, what: str, model: str, optimizer: str, *, lr: float = 1e-3, kind: str = "train", program: str | None = None, **more) -> Workload:
    return Workload(name, what, kind, model, program or f"{model}.nn", block=more.pop("block", model), optimizer=optimizer, lr=lr, **more)


_MATMUL = {n: Workload(f"matmul_{n}", f"f32 {n} x {n} x {n}", "call", "matmul", "matmul.nn", {"m": n, "k": n, "n": n}, "matmul",
                       unit="GFLOP/s", tolerance=1e-5, bars={"torch": 1.9, **({"limit": 0.87} if n >= 1024 else {})})
           for n in (512, 1024, 2048)}

_UPDATE = {"adamw_update": ("AdamW", "adamw"), "momentum_update": ("SGD with momentum", "momentum")}
_MEMORY = {                                      # sizes beyond the last cache: 64 MB an array and more
    "softmax_rows": ("softmax of 16384 rows of 1024", 16384, 1024), "softmax_long": ("softmax of 512 rows of 50257", 512, 50257),
    "cross_entropy_rows": ("cross entropy of 512 rows of 50257 and its gradient", 512, 50257),
    "layer_norm_rows": ("layer norm, 16384 x 1024", 16384, 1024), "layer_norm_grad": ("its gradient", 16384, 1024),
    "rms_norm_rows": ("RMS norm, 16384 x 1024", 16384, 1024), "rms_norm_grad": ("its gradient", 16384, 1024),
    "embedding_rows": ("32768 rows of an embedding, 50257 x 768", 50257, 768), "embedding_grad": ("its gradient", 50257, 768),
    "matrix_vector": ("8192 x 4096 by a vector", 8192, 4096), "vector_matrix": ("a vector by 8192 x 4096", 8192, 4096),
    "sum_rows": ("sums of 16384 rows of 2048", 16384, 2048), "mean_columns": ("means of 2048 columns of 16384", 16384, 2048)}
MEMORY = [
    *(_train(name, f"{what}: 16M parameters, the gradient given", name, rule, program="memory.nn", size={"n": 1 << 24}, dials={"n": "n"}, peers=("torch",),
             bars={"limit": 0.85}, seconds=0.5)
      for name, (what, rule) in _UPDATE.items()),
    *(Workload(name, what, "call", "softmax_rows" if name == "softmax_long" else name, "memory.nn",
               {"rows": rows, "columns": columns, **({"taken": 32768} if name.startswith("embedding") else {})},
               "softmax_rows" if name == "softmax_long" else name, peers=("torch",), bars={"limit": 0.85}, seconds=0.5)
      for name, (what, rows, columns) in _MEMORY.items())]

TABLE: list[Workload] = [
    *_MATMUL.values(),
    _train("mlp", "MLP 784-512-256-10, batch 128, Adam: a step", "mlp", "adam", size={"batch": 128}, dials={"batch": "batch"},
           bars={"jax": 1.15, "torch": 2.5, "limit": 0.65}),
    _train("xor_loop", "XOR net 2-8-1, SGD: a step of a compiled training loop", "xor", "sgd", lr=0.1, kind="loop", settings={"epochs": 1}, unit="us", tolerance=1e-3, bars={"most": 0.2}),
    _train("xor_call", "the same step, called from Python", "xor", "sgd", lr=0.1, unit="us"),
    _train("rnn", "RNN h = 256, T = 64, B = 32, Adam: a step", "rnn", "adam", size={"vocab": 65, "width": 256, "batch": 32, "time": 64},
           bars={"jax": 2.5}),
    _train("cnn", "CNN (32, 64 3x3; 128; 10), batch 64 of 28 x 28, Adam: a step", "cnn", "adam", size={"batch": 64}, bars={"torch": 2.8}),
    _train("char_gpt", "char-GPT, 4 layers, 128 wide, B = 12, T = 64, AdamW: a step", "gpt", "adamw", program="char_gpt.nn", block="char_gpt",
           size={**CHAR_GPT, "batch": 12, "time": 64}, dials={"batch": "batch", "time": "time", "layers": "depth"}, bars={"torch": 2.4}),
    _train("gpt2_train", "GPT-2 124M, B = 4, T = 64, AdamW: a step", "gpt", "adamw", program="gpt2.nn", block="gpt2",
           size={**GPT2, "context": 64, "batch": 4, "time": 64}, bars={"jax": 1.45, "torch": 2.8, "memory": 1.0}, tolerance=1e-3),
    Workload("gpt2_prefill", "GPT-2 124M, 512 tokens, all logits", "call", "gpt", "gpt2.nn", {**GPT2, "batch": 1, "time": 512}, "GPT2",
             tolerance=1e-4, bars={"jax": 1.15, "limit": 0.80}),
    Workload("gpt2_prefill_last", "GPT-2 124M, 512 tokens, the last token's logits", "call", "gpt", "gpt2.nn",
             {**GPT2, "batch": 1, "time": 512, "last": 1}, "GPT2", tolerance=1e-4, bars={"most": 361 / 1.7}),
    Workload("gpt2_decode", "GPT-2 124M, f32 decode, greedy, 64 tokens", "generate", "gpt", "gpt2.nn", {**GPT2, "batch": 1, "time": 1, "tokens": 64},
             "GPT2", unit="tokens/s", tolerance=0.0, bars={"limit": 0.90}),
    *(Workload(f"gpt2_decode_{kind}", f"the same with {what} weights", "generate", "gpt", "gpt2.nn", {**GPT2, "batch": 1, "time": 1, "tokens": 64, "bits": bits},
               "GPT2", unit="tokens/s", quantize=kind, peers=(), bars={"least": bar})
      for kind, what, bits, bar in (("int8", "8-bit", 8, 300), ("int4", "4-bit", 4, 500), ("ternary", "ternary (2-bit)", 2, 900))),
    _train("local_mlp", "MNIST MLP 784-1000-1000, batch 100, local rule (mnist_local.nn): a step", "local", "momentum", program="mnist_local.nn",
           block="mnist_local", lr=0.05, size={"batch": 100, "steps": 100_000}, dials={"batch": "batch", "steps": "epochs"}, settings={"holdout": 0}, peers=("torch",),
           bars={"torch": 2.0}),
    _train("gpt2_first_cold", "GPT-2 124M: the first training step, nothing cached", "gpt", "adamw", kind="first", program="gpt2.nn", block="gpt2",
           size={**GPT2, "context": 64, "batch": 4, "time": 64}, unit="s", bars={"most": 6.0}),
    _train("gpt2_first_warm", "GPT-2 124M: the first training step, cache warm", "gpt", "adamw", kind="first", program="gpt2.nn", block="gpt2",
           size={**GPT2, "context": 64, "batch": 4, "time": 64}, unit="s", bars={"most": 1.5}, warm=True),
    _train("mlp_first_cold", "MLP: the first training step, nothing cached", "mlp", "adam", kind="first", size={"batch": 128}, unit="s",
           bars={"most": 0.4}),
    *MEMORY,
]
HIDDEN = [                                       # not in the table: what scaling.py needs besides
    Workload("attention", "causal attention alone, forward, 12 heads of 64", "call", "attention", "attention.nn", {"heads": 12, "width": 768, "time": 512}, "attention"),
    _train("char_gpt_first", "char-GPT: the first training step, nothing cached", "gpt", "adamw", kind="first", program="char_gpt.nn", block="char_gpt",
           size={**CHAR_GPT, "batch": 12, "time": 64}, dials={"batch": "batch", "time": "time", "layers": "depth"}, unit="s"),
]
WORKLOADS: dict[str, Workload] = {w.name: w for w in [*TABLE, *HIDDEN]}
GROUPS = {"matmul": [f"matmul_{n}" for n in _MATMUL], "xor": ["xor_loop", "xor_call"], "memory": [w.name for w in MEMORY],
          "gpt2": [w.name for w in TABLE if w.program == "gpt2.nn"], "first": [w.name for w in TABLE if w.kind == "first"]}


def choose(names: list[str]) -> list[Workload]:
    """The workloads of these names or groups, in the table's order; KeyError with the name that is none."""
    wanted: set[str] = set()
    for n in names:
        if n not in {w.name for w in TABLE} and n not in GROUPS:
            raise KeyError(n)
        wanted.update(GROUPS.get(n, [n]))
    return [w for w in TABLE if not names or w.name in wanted]


__all__ = ["GROUPS", "TABLE", "WORKLOADS", "Workload", "choose", "count"]
