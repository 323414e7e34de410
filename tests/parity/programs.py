"""From a sample of PyTorch's op_db to the text of a `.nn` function that calls our operation with the same arguments."""
from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch

DTYPES = {torch.float64: "f64", torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.int64: "i64", torch.int32: "i32",
          torch.int16: "i16", torch.int8: "i8", torch.uint8: "u8", torch.bool: "bool"}


class Inexpressible(Exception):
    """The language cannot say this sample; the text is the reason."""


@dataclass
class Case:
    """One sample as a program: `text` defines fn `name`; `inputs` are its arguments, cotangents last."""

    name: str
    text: str
    inputs: list[np.ndarray]
    expected: list[np.ndarray]
    gradients: list[np.ndarray]
    source: str                                   # the call, for messages
    wide: tuple | None = field(default=None)      # the same computed by PyTorch in f64: (values, gradients)


def to_numpy(t: torch.Tensor) -> np.ndarray:
    t = t.detach()
    if t.dtype is torch.bfloat16:
        import ml_dtypes
        return t.float().numpy().astype(ml_dtypes.bfloat16)
    return np.array(t.resolve_conj().resolve_neg().numpy())


def type_text(t: torch.Tensor) -> str:
    if t.dtype not in DTYPES:
        raise Inexpressible(f"{str(t.dtype).removeprefix('torch.')} tensors")
    dims = f"[{', '.join(map(str, t.shape))}]" if t.dim() else ""
    return DTYPES[t.dtype] + dims


class Writer:
    """Collects the tensors of a sample as parameters and writes the other values as literals."""

    def __init__(self):
        self.tensors: list[torch.Tensor] = []

    def __call__(self, v) -> str:
        if isinstance(v, torch.Tensor):
            if v.layout is not torch.strided:
                raise Inexpressible("sparse tensors")
            type_text(v)
            for i, t in enumerate(self.tensors):
                if t is v:
                    return f"x{i}"
            self.tensors.append(v)
            return f"x{len(self.tensors) - 1}"
        if v is None:
            return "none"
        if isinstance(v, bool):
            return "true" if v else "false"
        if isinstance(v, int | np.integer):
            return str(int(v))
        if isinstance(v, float):
            return "nan" if math.isnan(v) else ("inf" if v > 0 else "-inf") if math.isinf(v) else repr(v)
        if isinstance(v, str):
            return f'"{v}"'
        if isinstance(v, torch.dtype):
            if v not in DTYPES:
                raise Inexpressible(f"the dtype {str(v).removeprefix('torch.')}")
            return DTYPES[v]
        if isinstance(v, list | tuple):
            return f"[{', '.join(self(x) for x in v)}]"
        if isinstance(v, complex):
            raise Inexpressible("complex numbers")
        if isinstance(v, torch.memory_format | torch.layout | torch.device | torch.Generator):
            raise Inexpressible("memory formats, layouts, devices and generators")
        raise Inexpressible(f"an argument of type {type(v).__name__}")


def flat(out) -> list[torch.Tensor] | None:
    """The tensors of a result; None where it holds something else."""
    if isinstance(out, torch.Tensor):
        return [out]
    if isinstance(out, list | tuple) and all(isinstance(x, torch.Tensor) for x in out):
        return list(out)
    return None


def _leaf(v):
    """Detached copies, so that gradients arrive at the tensors that the program sees."""
    if isinstance(v, torch.Tensor):
        return v.detach().clone().requires_grad_(v.requires_grad) if v.dtype.is_floating_point else v.detach().clone()
    if isinstance(v, list | tuple):
        return type(v)(_leaf(x) for x in v) if type(v) in (list, tuple) else v
    if isinstance(v, dict):
        return {k: _leaf(x) for k, x in v.items()}
    return v


def _wide(v):
    if isinstance(v, torch.Tensor):
        return v.detach().double().requires_grad_(v.requires_grad) if v.dtype is torch.float32 else v
    if type(v) in (list, tuple):
        return type(v)(_wide(x) for x in v)
    if isinstance(v, dict):
        return {k: _wide(x) for k, x in v.items()}
    return torch.float64 if v is torch.float32 else v


def build(name: str, op, sample, write, gradients: bool = True, result=None) -> Case:
    """`write(w, input, args, kwargs)` gives the expression; `op` PyTorch's function; `result(out)`: what of its result is compared."""
    given = (_leaf(sample.input), _leaf(sample.args), _leaf(sample.kwargs))
    w = Writer()
    source = write(w, *given)
    pick = result or (lambda out: out)
    out = pick(op(given[0], *given[1], **given[2]))
    outs = flat(out)
    if outs is None:
        raise Inexpressible("a result that is no tensor")
    many = not isinstance(out, torch.Tensor)
    for o in outs:
        type_text(o)
    keep = list(range(len(outs)))
    inputs = list(w.tensors)
    active = [i for i, t in enumerate(inputs) if t.requires_grad]
    live = [k for k in keep if outs[k].requires_grad and outs[k].dtype.is_floating_point] if gradients and active else []
    rng = np.random.default_rng(len(source))
    seeds = [torch.as_tensor(rng.uniform(0.5, 1.5, tuple(outs[k].shape)) * rng.choice([-1, 1], tuple(outs[k].shape))).to(outs[k].dtype) for k in live]
    params = ", ".join(f"x{i}: {type_text(t)}" for i, t in enumerate(inputs))
    names = ", ".join(f"x{i}" for i in range(len(inputs)))
    pattern = f"({', '.join(f'o{k}' for k in range(len(outs)))},)" if many else "o0"
    lines = [f"fn {name}_f({params}) {{ {source} }}"]
    grads, wides = [], []
    if live:
        for k, s in enumerate(seeds):
            params += f", g{k}: {type_text(s)}"
        xs = ", ".join(f"x{i}" for i in active)
        back = ", ".join(f"d{i}" for i in active)
        chosen = ", ".join(f"o{k}" for k in live)
        cot = ", ".join(f"g{k}" for k in range(len(live)))
        if len(live) > 1:
            chosen, cot = f"({chosen})", f"({cot})"
        body = [f"  let {pattern} = {name}_f({names})",
                f"  let (y, back) = vjp(fn ({xs}) {{ let {pattern} = {name}_f({names}); {chosen} }}, {xs})",
                f"  let {f'({back})' if len(active) > 1 else back} = back({cot})",
                f"  ({', '.join(f'o{k}' for k in keep)}, {back})"]
        grads = _grads([outs[k] for k in live], [inputs[i] for i in active], seeds)
    else:
        body = [f"  let {pattern} = {name}_f({names})", f"  ({', '.join(f'o{k}' for k in keep)},)"]
    lines += [f"fn {name}({params}) {{", *body, "}"]
    try:
        wide = _wide((sample.input, sample.args, sample.kwargs))
        w2 = Writer()
        write(w2, *wide)
        ref = flat(pick(op(wide[0], *wide[1], **wide[2])))
        wides = ([to_numpy(ref[k]) for k in keep],
                 [to_numpy(g) for g in _grads([ref[k] for k in live], [w2.tensors[i] for i in active], [s.double() for s in seeds])] if live else [])
    except Exception:                              # no f64 shadow: PyTorch's f32 result alone decides
        wides = None
    return Case(name, "\n".join(lines), [to_numpy(t) for t in [*inputs, *seeds]], [to_numpy(outs[k]) for k in keep],
                [to_numpy(g) for g in grads], source, wides)


def _grads(outs, inputs, seeds):
    found = torch.autograd.grad(outs, inputs, seeds, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs)]
