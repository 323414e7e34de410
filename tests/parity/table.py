"""Which operation of PyTorch is which of ours, and how its arguments are written in the language.

An entry's writer gets (w, input, args, kwargs) and returns the expression; most are made by `call`, which names positional
arguments as PyTorch does.  Differences of the languages (not of the results) are bridged here, each with its reason in a comment.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .programs import Inexpressible, Writer

F32, I64, BOOL = torch.float32, torch.int64, torch.bool
DROPPED = {"device": None, "requires_grad": None, "layout": torch.strided, "pin_memory": False, "memory_format": torch.preserve_format}


@dataclass
class Entry:
    """An operation of op_db (`name`, maybe one `variant`) and how to say it."""

    name: str
    write: Callable
    family: str
    variant: str | None = None
    dtypes: tuple = (F32,)
    gradients: bool = True
    result: Callable | None = None               # what of PyTorch's result is compared (all of it)

    @property
    def key(self) -> str:
        return f"{self.name}.{self.variant}" if self.variant else self.name


OPS: list[Entry] = []
SKIPPED: dict[str, str] = {}                       # operations of the list that cannot be compared, with the reason


def add(family: str, name: str, write=None, **kw) -> None:
    short = name.split(".")[-1]
    OPS.append(Entry(name, write or call(short), family, **kw))


def call(ours: str, params: str = "", drop: str = "", **rename) -> Callable:
    """ours(input, p = a, ...): `params` are PyTorch's names behind the input; `drop` names those that change nothing here."""
    names, dropped = params.split(), drop.split()

    def write(w: Writer, x, args, kwargs) -> str:
        parts = [w(x)]
        pairs = [(names[i] if i < len(names) else None, v) for i, v in enumerate(args)] + list(kwargs.items())
        for n, v in pairs:
            if n in dropped or n in DROPPED and (DROPPED[n] is None or DROPPED[n] == v):
                continue
            n = rename.get(n, n)
            parts.append(f"{n} = {w(v)}" if n else w(v))
        return f"{ours}({', '.join(parts)})"
    return write


def nullary(ours: str, params: str) -> Callable:
    """For functions of numbers only."""
    inner = call(ours, params)
    return lambda w, x, args, kwargs: inner(w, x, args, kwargs)


def operator(symbol: str) -> Callable:
    return lambda w, x, args, kwargs: f"{w(x)} {symbol} {w(args[0])}"


def _names(text: str) -> list[str]:
    return text.split()


# ---- elementwise ------------------------------------------------------------------------------------------------------

E = "elementwise"
for _n in _names("neg exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal square sin cos tan asin acos atan sinh cosh tanh asinh "
                 "acosh atanh erf erfc sigmoid abs sign isnan isinf isfinite"):
    add(E, _n, dtypes=(F32, I64))
for _n in _names("floor ceil trunc frac"):
    add(E, _n)
add(E, "round", call("round", "decimals"))
for _n, _p in {"relu": "", "leaky_relu": "negative_slope", "elu": "alpha", "selu": "", "silu": "", "gelu": "approximate", "softplus": "beta threshold",
               "mish": "", "hardswish": "", "hardtanh": "min_val max_val", "relu6": "", "celu": "alpha", "hardsigmoid": "", "logsigmoid": "",
               "softsign": "", "softshrink": "lambd", "hardshrink": "lambd", "tanhshrink": "", "threshold": "threshold value", "glu": "dim",
               "prelu": "weight"}.items():
    add(E, f"nn.functional.{_n}", call(_n, _p, drop="inplace"))


def _alpha(symbol: str) -> Callable:
    def write(w, x, args, kwargs):
        a, b = w(x), w(args[0])
        return f"{a} {symbol} {w(kwargs['alpha'])} * {b}" if "alpha" in kwargs else f"{a} {symbol} {b}"
    return write


def _div(w, x, args, kwargs):
    a, b, mode = w(x), w(args[0]), kwargs.get("rounding_mode")
    return {None: f"{a} / {b}", "floor": f"{a} // {b}", "trunc": f"trunc({a} / {b})"}[mode]


add(E, "add", _alpha("+"), dtypes=(F32, I64))
add(E, "sub", _alpha("-"), dtypes=(F32, I64))
add(E, "mul", operator("*"), dtypes=(F32, I64))
add(E, "div", _div)
add(E, "true_divide", operator("/"), dtypes=(F32, I64))
add(E, "floor_divide", operator("//"))
add(E, "remainder", operator("%"))
add(E, "pow", operator("**"))
add(E, "fmod", call("fmod"))
add(E, "atan2", call("atan2"), dtypes=(F32, I64))
add(E, "hypot", call("hypot"))
for _n in _names("maximum minimum"):
    add(E, _n, dtypes=(F32, I64))
add(E, "max", call("maximum"), variant="binary")
add(E, "min", call("minimum"), variant="binary")
add(E, "clamp", call("clamp", "min max"))
add(E, "where", lambda w, x, args, kwargs: f"where({w(args[0])}, {w(x)}, {w(args[1])})")
add(E, "lerp", call("lerp", "end weight", end="y"))
add(E, "nan_to_num", call("nan_to_num", "nan posinf neginf"))
for _n, _s in {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}.items():
    add(E, _n, operator(_s), dtypes=(F32, I64))
for _n in _names("logical_and logical_or logical_xor logical_not"):
    add(E, _n, dtypes=(F32, BOOL))
for _n, _s in {"bitwise_and": "&", "bitwise_or": "|", "bitwise_xor": "^"}.items():
    add(E, _n, operator(_s), dtypes=(I64, BOOL))
add(E, "bitwise_not", lambda w, x, args, kwargs: f"~{w(x)}", dtypes=(I64, BOOL))
add(E, "bitwise_left_shift", operator("<<"), dtypes=(I64,))
add(E, "bitwise_right_shift", operator(">>"), dtypes=(I64,))
for _n, _t in {"double": "f64", "float": "f32", "half": "f16", "bfloat16": "bf16", "long": "i64", "int": "i32", "short": "i16", "char": "i8",
               "byte": "u8", "bool": "bool"}.items():
    add(E, _n, lambda w, x, args, kwargs, t=_t: f"{t}({w(x)})", dtypes=(F32, I64, BOOL))


# ---- reductions -------------------------------------------------------------------------------------------------------

R = "reduction"


def _correction(name: str) -> Callable:
    """`unbiased` is `correction = 1` or 0; a correction of none is 1."""
    inner = call(name, "dim")

    def write(w, x, args, kwargs):
        kwargs = dict(kwargs)
        if args and isinstance(args[0], bool):
            kwargs["unbiased"], args = args[0], args[1:]
        if "unbiased" in kwargs:
            kwargs["correction"] = 1 if kwargs.pop("unbiased") else 0
        if kwargs.get("correction", 1) is None:
            del kwargs["correction"]
        return inner(w, x, args, kwargs)
    return write


def _pair(kind: str) -> Callable:
    """torch's max(x, dim) gives values and indices; ours are two operations."""
    values, indices = call(kind, "dim keepdim"), call(f"arg{kind}", "dim keepdim")
    return lambda w, x, args, kwargs: f"({values(w, x, args, kwargs)}, {indices(w, x, args, kwargs)})"


for _n in _names("sum prod mean"):
    add(R, _n, call(_n, "dim keepdim"), dtypes=(F32, I64))
for _n in _names("amax amin argmax argmin any all logsumexp count_nonzero nansum nanmean"):
    add(R, _n, call(_n, "dim keepdim"), dtypes=(F32, I64) if _n not in ("logsumexp", "nansum", "nanmean") else (F32,))
add(R, "var", _correction("var"))
add(R, "std", _correction("std"))
for _n in ("max", "min"):
    add(R, _n, call(_n), variant="reduction_no_dim")
    add(R, _n, _pair(_n), variant="reduction_with_dim")
add(R, "aminmax", lambda w, x, args, kwargs: f"({call('amin', 'dim keepdim')(w, x, args, kwargs)}, {call('amax', 'dim keepdim')(w, x, args, kwargs)})")


def _norm(w, x, args, kwargs):
    kwargs = dict(kwargs)
    p = args[0] if args else kwargs.pop("p", 2)
    if p == "nuc":
        raise Inexpressible("the nuclear norm (singular values)")
    p = 2 if p in ("fro", None) else p
    return call("norm", "p dim keepdim")(w, x, (p, *args[1:]), kwargs)


add(R, "norm", _norm)
add(R, "linalg.vector_norm", call("norm", "ord dim keepdim", ord="p"))
for _n in _names("cumsum cumprod"):
    add(R, _n, call(_n, "dim"), dtypes=(F32, I64))
add(R, "median", lambda w, x, args, kwargs: call("median", "dim keepdim")(w, x, args, kwargs), result=lambda out: out if isinstance(out, torch.Tensor) else out[0])
add(R, "sort", call("sort", "dim descending"))
add(R, "argsort", call("argsort", "dim descending"))
add(R, "topk", call("topk", "k dim largest sorted"))
SKIPPED["msort"] = "sort(x, dim = 0)"


# ---- contractions -----------------------------------------------------------------------------------------------------

C = "contraction"
for _n in ("matmul", "mm", "bmm", "mv", "__rmatmul__"):
    add(C, _n, operator("@") if _n != "__rmatmul__" else lambda w, x, args, kwargs: f"{w(args[0])} @ {w(x)}", dtypes=(F32, I64))
for _n in _names("dot outer inner vdot"):
    add(C, _n, call("dot" if _n == "vdot" else _n))
add(C, "einsum", lambda w, x, args, kwargs: f'einsum("{args[0]}", {", ".join(w(t) for t in x)})')
add(C, "tensordot", call("tensordot", "other"))
for _n in _names("addmm addmv baddbmm addbmm addr"):
    add(C, _n, call(_n, "x1 x2"))
add(C, "kron", call("kron"))
add(C, "trace", call("trace"))
add(C, "nn.functional.linear", call("linear", "weight bias"))
add(C, "nn.functional.bilinear", call("bilinear", "x2 weight bias"))
for _d in (1, 2, 3):
    add(C, f"nn.functional.conv{_d}d", call(f"conv{_d}d", "weight bias stride padding dilation groups"))
    add(C, f"nn.functional.conv_transpose{_d}d", call(f"conv_transpose{_d}d", "weight bias stride padding output_padding groups dilation"))
    add(C, f"nn.functional.max_pool{_d}d", call(f"max_pool{_d}d", "kernel_size stride padding dilation ceil_mode return_indices"))
    add(C, f"nn.functional.avg_pool{_d}d", call(f"avg_pool{_d}d", "kernel_size stride padding ceil_mode count_include_pad divisor_override"))
    add(C, f"nn.functional.adaptive_avg_pool{_d}d", call(f"adaptive_avg_pool{_d}d", "output_size"))
    add(C, f"nn.functional.adaptive_max_pool{_d}d", call(f"adaptive_max_pool{_d}d", "output_size return_indices"))
add(C, "nn.functional.unfold", call("unfold", "kernel_size dilation padding stride"))


# ---- movement ---------------------------------------------------------------------------------------------------------

M = "movement"


def _sizes(ours: str, arg: str) -> Callable:
    """shapes come as one list, or as several numbers"""
    def write(w, x, args, kwargs):
        v = args[0] if len(args) == 1 and isinstance(args[0], list | tuple) else list(args)
        return f"{ours}({w(x)}, {w(v)})"
    return write


for _n in _names("reshape view expand broadcast_to permute tile repeat"):
    add(M, _n, _sizes({"view": "view", "tile": "tile"}.get(_n, _n), "shape"))
add(M, "reshape_as", lambda w, x, args, kwargs: f"reshape({w(x)}, {w(args[0])}.shape)")
add(M, "view_as", lambda w, x, args, kwargs: f"view({w(x)}, {w(args[0])}.shape)")
add(M, "expand_as", call("expand_as"))
add(M, "flatten", call("flatten", "start_dim end_dim"))
add(M, "unflatten", call("unflatten", "dim sizes"))
add(M, "ravel", call("flatten"))
add(M, "transpose", call("transpose", "dim0 dim1"))
add(M, "T", lambda w, x, args, kwargs: f"{w(x)}.T" if x.dim() == 2 else f"permute({w(x)}, {list(range(x.dim()))[::-1]})")
add(M, "mT", lambda w, x, args, kwargs: f"{w(x)}.T")
add(M, "t", lambda w, x, args, kwargs: f"{w(x)}.T" if x.dim() == 2 else w(x))
add(M, "movedim", call("movedim", "source destination"))
add(M, "squeeze", call("squeeze", "dim"))
add(M, "unsqueeze", call("unsqueeze", "dim"))
add(M, "flip", call("flip", "dims", dims="dim"))
add(M, "fliplr", lambda w, x, args, kwargs: f"flip({w(x)}, 1)")
add(M, "flipud", lambda w, x, args, kwargs: f"flip({w(x)}, 0)")
add(M, "rot90", call("rot90", "k dims"))
add(M, "roll", call("roll", "shifts dims", dims="dim"))
add(M, "nn.functional.pad", call("pad", "pad mode value"))
add(M, "constant_pad_nd", call("pad", "pad value"))
for _n in _names("cat stack"):
    add(M, _n, call(_n, "dim"))
add(M, "hstack", lambda w, x, args, kwargs: f"hstack({w(x)})")
add(M, "vstack", lambda w, x, args, kwargs: f"vstack({w(x)})")
add(M, "split", call("split", "sizes dim"))
add(M, "split_with_sizes", call("split", "sizes dim"))
add(M, "chunk", call("chunk", "chunks dim"))
add(M, "unbind", call("unbind", "dim"))
def _diagonal(w, x, args, kwargs):
    """PyTorch's dims are 0 and 1, ours the last two."""
    if len(args) < 2 and "dim1" not in kwargs and x.dim() > 2:
        kwargs = {**kwargs, "dim1": 0, "dim2": 1}
    return call("diagonal", "offset dim1 dim2")(w, x, args, kwargs)


add(M, "tril", call("tril", "diagonal"))
add(M, "triu", call("triu", "diagonal"))
add(M, "diag", call("diag", "diagonal"))
add(M, "diagonal", _diagonal)
add(M, "diag_embed", call("diag_embed", "offset dim1 dim2"))
add(M, "narrow", call("narrow", "dim start length"))
add(M, "select", call("select", "dim index"))


def _subscript(w, v) -> str:
    if v is None or v is Ellipsis:
        raise Inexpressible("none and ... as subscripts")
    if isinstance(v, slice):
        return ":".join("" if p is None else str(p) for p in ((v.start, v.stop) if v.step is None else (v.start, v.stop, v.step)))
    if isinstance(v, torch.Tensor) and v.dtype is torch.bool or isinstance(v, bool):
        raise Inexpressible("a mask as a subscript: the size of the result depends on the data")
    return w(v)


def _getitem(w, x, args, kwargs):
    index = args[0]
    if isinstance(index, list) and all(isinstance(i, int) for i in index) or not isinstance(index, list | tuple):
        index = [index]                            # a list of numbers is one index tensor
    at = [k for k, i in enumerate(index) if isinstance(i, list | torch.Tensor)]
    if at and at[-1] - at[0] >= len(at):
        raise Inexpressible("index tensors apart from each other: an error in the language")
    return f"{w(x)}[{', '.join(_subscript(w, v) for v in index)}]"


add(M, "__getitem__", _getitem)
add(M, "gather", call("gather", "dim index"))
add(M, "scatter", call("scatter", "dim index src"))
add(M, "scatter_add", call("scatter_add", "dim index src"))
add(M, "index_select", call("index_select", "dim index"))
add(M, "index_add", call("index_add", "dim index src"))
add(M, "index_fill", call("index_fill", "dim index value"))
add(M, "index_copy", call("index_copy", "dim index src"))
add(M, "masked_fill", call("masked_fill", "mask value"))
add(M, "take_along_dim", call("take_along_dim", "index dim", indices="index"))
add(M, "take", call("take", "index"))
def _repeat_interleave(w, x, args, kwargs):
    if isinstance(args[0] if args else kwargs["repeats"], torch.Tensor):
        raise Inexpressible("repeats as a tensor: the size of the result depends on the data")
    return call("repeat_interleave", "repeats dim")(w, x, args, kwargs)


add(M, "repeat_interleave", _repeat_interleave)
add(M, "meshgrid", lambda w, x, args, kwargs: f"meshgrid({', '.join(w(t) for t in [x, *args])}{''.join(f', {k} = {w(v)}' for k, v in kwargs.items())})"
    if isinstance(x, torch.Tensor) else f"meshgrid({', '.join(w(t) for t in x)}{''.join(f', {k} = {w(v)}' for k, v in kwargs.items())})")
add(M, "nn.functional.embedding", lambda w, x, args, kwargs: call("embedding", "")(w, args[0], (x,), kwargs))


def _one_hot(w, x, args, kwargs):
    n = kwargs.get("num_classes", -1)
    if n == -1:
        raise Inexpressible("num_classes = -1: the size of the result depends on the data")
    return f"one_hot({w(x)}, {n}, dtype = i64)"


add(M, "nn.functional.one_hot", _one_hot, dtypes=(I64,))


def _arange(w, x, args, kwargs):
    if any(isinstance(v, bool) for v in (x, *args)):
        raise Inexpressible("bools as numbers")
    return call("arange")(w, x, args, kwargs)


def _linspace(w, x, args, kwargs):
    return call("linspace", "end steps")(w, x, args, kwargs)


add(M, "arange", _arange)
add(M, "linspace", _linspace, variant="")
add(M, "eye", lambda w, x, args, kwargs: call("eye", "m")(w, x, args, kwargs), gradients=False)
add(M, "zeros", call("zeros"), gradients=False)
add(M, "ones", call("ones"), gradients=False)
add(M, "full", call("full", "value"), gradients=False)
for _n in _names("zeros_like ones_like"):
    add(M, _n, call(_n))
add(M, "full_like", call("full_like", "value", fill_value="value"))


# ---- neural networks --------------------------------------------------------------------------------------------------

N = "nn"
for _n in _names("softmax log_softmax nn.functional.softmin"):
    add(N, _n, call(_n.split(".")[-1], "dim dtype"))


def _class_dim(name: str, params: str) -> Callable:
    """Classes are in the last dim here, in dim 1 in PyTorch: for more than two dims the call says so."""
    inner = call(name, params, drop="size_average reduce")

    def write(w, x, args, kwargs):
        if x.dim() > 2:
            kwargs = {**kwargs, "dim": 1}
        return inner(w, x, args, kwargs)
    return write


def _default_dim(inner: Callable, dim: int) -> Callable:
    """Ours counts from the end: PyTorch's default is written out."""
    return lambda w, x, args, kwargs: inner(w, x, args, kwargs if "dim" in kwargs or len(args) > 1 else {**kwargs, "dim": dim})


add(N, "nn.functional.cross_entropy", _class_dim("cross_entropy", "target"))
add(N, "nn.functional.nll_loss", _class_dim("nll_loss", "target"))
for _n, _p in {"mse_loss": "target", "l1_loss": "target", "smooth_l1_loss": "target", "huber_loss": "target", "binary_cross_entropy": "target weight",
               "binary_cross_entropy_with_logits": "target weight", "kl_div": "target"}.items():
    add(N, f"nn.functional.{_n}", call(_n, _p, drop="size_average reduce"))
add(N, "nn.functional.layer_norm", call("layer_norm", "normalized_shape weight bias eps"))
add(N, "nn.functional.rms_norm", call("rms_norm", "normalized_shape weight eps"))
def _batch_norm(w, x, args, kwargs):
    if x.dim() < 2:
        raise Inexpressible("a batch without channels")
    return call("batch_norm", "running_mean running_var weight bias training momentum eps", drop="momentum")(w, x, args, kwargs)


add(N, "nn.functional.batch_norm", _batch_norm)
add(N, "nn.functional.group_norm", call("group_norm", "num_groups weight bias eps"))
add(N, "nn.functional.instance_norm", call("instance_norm", "running_mean running_var weight bias use_input_stats momentum eps", drop="momentum"))
add(N, "nn.functional.normalize", _default_dim(call("normalize", "p dim eps"), 1))


def _random_free(ours: str, params: str, arg: str) -> Callable:
    inner = call(ours, params, drop="inplace")

    def write(w, x, args, kwargs):
        on = kwargs.get("training", True) if arg == "p" else True
        if kwargs.get(arg, 0.5 if arg == "p" else 0.0) not in (0.0, 1.0) and on:
            raise Inexpressible("random numbers: other bits than PyTorch's")
        return inner(w, x, args, kwargs)
    return write


add(N, "nn.functional.dropout", _random_free("dropout", "", "p"))


def _sdpa(w, x, args, kwargs):
    """PyTorch aligns the first query with the first key, here the last with the last: the same where they are as many."""
    kwargs = dict(kwargs)
    if kwargs.get("dropout_p", 0.0):
        raise Inexpressible("random numbers: other bits than PyTorch's")
    if kwargs.get("is_causal") and x.shape[-2] != args[0].shape[-2]:
        kwargs["is_causal"] = False
        kwargs["attn_mask"] = torch.ones(x.shape[-2], args[0].shape[-2], dtype=torch.bool).tril()
    return call("scaled_dot_product_attention", "key value attn_mask dropout_p is_causal scale enable_gqa")(w, x, args, kwargs)


add(N, "nn.functional.scaled_dot_product_attention", _sdpa)

for _n in _names("uniform normal bernoulli multinomial randn randint rand_like randn_like nn.functional.dropout2d nn.functional.alpha_dropout"):
    SKIPPED[_n] = "random numbers: counter-based, other bits than PyTorch's; their distributions and bits are tested elsewhere"


# ---- the library's functions (std/functional.nn) and resizing ----------------------------------------------------------------

L = "library"


def _ranks(low: int, inner: Callable) -> Callable:
    """The library's functions say how many dimensions they take."""
    def write(w, x, args, kwargs):
        if x.dim() < low:
            raise Inexpressible(f"fewer than {low} dimensions")
        return inner(w, x, args, kwargs)
    return write


OLD_REDUCTION = "size_average reduce"
add(L, "nn.functional.cosine_similarity", _default_dim(call("cosine_similarity", "x2 dim eps"), 1))
add(L, "nn.functional.pairwise_distance", call("pairwise_distance", "x2 p eps keepdim"))
add(L, "dist", call("dist", "y p"))
for _n, _p in {"margin_ranking_loss": "x2 target margin", "soft_margin_loss": "target", "hinge_embedding_loss": "target margin",
               "cosine_embedding_loss": "x2 target margin", "triplet_margin_loss": "positive negative margin p eps swap",
               "multilabel_soft_margin_loss": "target weight",
               "poisson_nll_loss": "target log_input full size_average eps", "gaussian_nll_loss": "target var full eps"}.items():
    add(L, f"nn.functional.{_n}", call(_n, _p, drop=OLD_REDUCTION))
for _n in _names("pixel_shuffle pixel_unshuffle channel_shuffle"):
    add(L, f"nn.functional.{_n}", call(_n, "groups" if _n == "channel_shuffle" else "r", upscale_factor="r", downscale_factor="r"))
add(L, "nn.functional.multi_margin_loss", _ranks(2, call("multi_margin_loss", "target p margin weight", drop=OLD_REDUCTION)))
add(L, "logcumsumexp", _ranks(1, call("logcumsumexp", "dim")))
add(L, "nn.functional.local_response_norm", call("local_response_norm", "size alpha beta k"))
for _n, _p in {"logaddexp": "y", "logaddexp2": "y", "logit": "eps", "xlogy": "y", "sinc": "", "addcmul": "tensor1 tensor2", "addcdiv": "tensor1 tensor2",
               "deg2rad": "", "rad2deg": "", "isclose": "y rtol atol equal_nan", "fliplr": "", "flipud": "", "mv": "y",
               }.items():
    add(L, _n, call(_n, _p, other="y", vec="y"))
add(L, "linalg.cross", call("cross", "y dim", other="y"))
for _v in _names("nearest linear bilinear bicubic trilinear area nearest-exact"):
    add(L, "nn.functional.interpolate", call("interpolate", "size scale_factor mode align_corners recompute_scale_factor", drop="antialias"), variant=_v)
add(L, "nn.functional.upsample_nearest", call("upsample_nearest", "size scale_factor"))
add(L, "nn.functional.upsample_bilinear", call("upsample_bilinear", "size scale_factor"))
