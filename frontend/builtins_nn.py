"""Operations of neural networks: softmax, losses, normalisation, attention, convolution, pooling, einsum."""
from __future__ import annotations

import math

from ..compiler.ir import TensorType, Value, f32, i64
from ..compiler.ir.dims import maybe_equal, product
from .builtins import builtin
from .builtins_math import _number
from .builtins_reduce import mean_of, scale
from .builtins_shape import band
from .tensors import as_tensor, broadcast_shapes, constant, is_weak, together
from .values import describe, type_text


@builtin()
def softmax(cx, x, dim=-1):
    """exp(x) / sum(exp(x)) along dim, without overflow."""
    x = cx.float(x)
    return cx.op("nn.softmax", [x], {"dim": cx.dim(dim, x.type.rank)})


@builtin()
def log_softmax(cx, x, dim=-1):
    """log(softmax(x)) along dim."""
    x = cx.float(x)
    return cx.op("nn.log_softmax", [x], {"dim": cx.dim(dim, x.type.rank)})


# ---- losses -----------------------------------------------------------------------------------------------------------

def reduced(cx, loss: Value, reduction) -> Value:
    kind = cx.choice(reduction, "reduction", "mean", "sum", "none")
    dims = list(range(loss.type.rank))
    if kind == "none" or not dims:
        return loss
    return cx.b.sum(loss, dims) if kind == "sum" else mean_of(cx.b, loss, dims)


@builtin()
def cross_entropy(cx, logits, target, reduction="mean", label_smoothing=0.0, ignore_index=None):
    """-log softmax(logits)[target] along the last dim; the target holds class indices, or probabilities of the logits' shape."""
    b = cx.b
    x, y = cx.float(logits, "logits"), cx.tensor(target, "target")
    s = _number(cx, label_smoothing, "label_smoothing")
    if x.type.rank == 0:
        cx.fail(f"`logits` needs a last dimension of classes, got {type_text(x.type)}", "logits")
    last = x.type.rank - 1
    classes = x.type.shape[last]
    if y.type.dtype.is_float:
        if not (y.type.rank == x.type.rank and all(maybe_equal(p, q) for p, q in zip(x.type.shape, y.type.shape))):
            cx.fail(f"probabilities {type_text(y.type)} do not fit logits {type_text(x.type)}", "target")
        if s:
            y = b.add(b.mul(y, 1 - s), s / (classes if isinstance(classes, int) else 1))
        z = b.op("nn.log_softmax", [x], {"dim": last}).result
        y = b.cast(y, x.type.dtype)
        return reduced(cx, b.neg(b.sum(b.mul(y, z), [last])), reduction)
    if not y.type.dtype.is_int:
        cx.fail(f"`target` holds class indices or probabilities, got {type_text(y.type)}", "target")
    if y.type.rank != last or not all(maybe_equal(p, q) for p, q in zip(y.type.shape, x.type.shape)):
        want = TensorType(y.type.dtype, x.type.shape[:-1])
        hint = "`flatten` or `reshape` brings them together"
        if y.type.rank == x.type.rank and y.type.shape[:-1] == x.type.shape[:-1] and y.type.shape[-1] == 1:
            hint = "`target[:, 0]` drops the last dimension"
        cx.fail(f"logits {type_text(x.type)} need class indices {type_text(want)}, got {type_text(y.type)}", hint=hint,
                marks=[(cx.spans[n], describe(v)) for n, v in (("logits", x), ("target", y)) if n in cx.spans])
    keep = None
    if ignore_index is not None:
        keep = b.compare("ne", y, cx.int(ignore_index, "ignore_index"))
        y = b.select(keep, y, 0)
    loss = b.op("nn.cross_entropy", [x, y]).result
    if s:
        z = b.op("nn.log_softmax", [x], {"dim": last}).result
        loss = b.sub(b.mul(loss, 1 - s), b.mul(mean_of(b, z, [last]), s))
    if keep is None:
        return reduced(cx, loss, reduction)
    loss = b.select(keep, loss, 0.0)
    if reduction == "mean":
        dims = list(range(loss.type.rank))
        n = b.sum(b.cast(keep, loss.type.dtype), dims) if dims else b.cast(keep, loss.type.dtype)
        return b.div(b.sum(loss, dims) if dims else loss, n)
    return reduced(cx, loss, reduction)


def _pairwise(cx, x, y):
    x, y = cx.float(x), cx.float(y, "target")
    return together(cx.b, (x, y))


@builtin("mse", "mse_loss")
def mse(cx, x, target, reduction="mean"):
    """Mean of (x - target)^2."""
    x, y = _pairwise(cx, x, target)
    d = cx.b.sub(x, y)
    return reduced(cx, cx.b.mul(d, d), reduction)


@builtin("l1", "l1_loss")
def l1(cx, x, target, reduction="mean"):
    """Mean of |x - target|."""
    x, y = _pairwise(cx, x, target)
    return reduced(cx, cx.b.abs(cx.b.sub(x, y)), reduction)


@builtin("smooth_l1", "smooth_l1_loss", "huber")
def smooth_l1(cx, x, target, beta=1.0, reduction="mean"):
    """Quadratic near 0, linear beyond beta."""
    b = cx.b
    x, y = _pairwise(cx, x, target)
    k = _number(cx, beta, "beta")
    d = b.abs(b.sub(x, y))
    return reduced(cx, b.select(b.compare("lt", d, k), b.mul(b.mul(d, d), 0.5 / k), b.sub(d, 0.5 * k)), reduction)


@builtin("bce_with_logits", "binary_cross_entropy_with_logits")
def bce_with_logits(cx, x, target, reduction="mean"):
    """Binary cross-entropy of sigmoid(x), without overflow."""
    b = cx.b
    x, y = _pairwise(cx, x, target)
    loss = b.add(b.sub(b.max(x, 0.0), b.mul(x, y)), b.log1p(b.exp(b.neg(b.abs(x)))))
    return reduced(cx, loss, reduction)


@builtin("bce", "binary_cross_entropy")
def bce(cx, x, target, reduction="mean"):
    """Binary cross-entropy of probabilities x; logs are at least -100, as in PyTorch."""
    b = cx.b
    x, y = _pairwise(cx, x, target)
    p = b.max(b.log(x), -100.0)
    q = b.max(b.log1p(b.neg(x)), -100.0)
    return reduced(cx, b.neg(b.add(b.mul(y, p), b.mul(b.sub(b.like(1.0, y), y), q))), reduction)


@builtin("nll", "nll_loss")
def nll(cx, log_probs, target, reduction="mean"):
    """-log_probs[target] along the last dim."""
    b = cx.b
    x, y = cx.float(log_probs, "log_probs"), cx.tensor(target, "target")
    if not y.type.dtype.is_int or y.type.rank != x.type.rank - 1:
        cx.fail(f"log-probabilities {type_text(x.type)} need class indices {type_text(TensorType(i64, x.type.shape[:-1]))}, got {type_text(y.type)}")
    at = b.op("tensor.take_along", [x, b.reshape(y, (*y.type.shape, 1))], {"dim": x.type.rank - 1}).result
    return reduced(cx, b.neg(b.reshape(at, y.type.shape)), reduction)


@builtin("kl_div")
def kl_div(cx, log_q, p, reduction="mean"):
    """p * (log p - log_q), with log_q given as logs."""
    b = cx.b
    x, y = cx.float(log_q, "log_q"), cx.float(p, "p")
    x, y = together(b, (x, y))
    safe = b.select(b.compare("gt", y, 0.0), y, 1.0)
    return reduced(cx, b.select(b.compare("gt", y, 0.0), b.mul(y, b.sub(b.log(safe), x)), 0.0), reduction)


@builtin()
def accuracy(cx, logits, target):
    """The share of rows whose largest logit is at the target; a target of probabilities or one-hot rows counts by its largest."""
    b = cx.b
    x, y = cx.tensor(logits, "logits"), cx.tensor(target, "target")
    if x.type.rank == 0:
        cx.fail(f"`logits` needs a last dimension of classes, got {type_text(x.type)}", "logits")
    if y.type.rank == x.type.rank and y.type.dtype.is_float:
        y = b.op("tensor.argmax", [y], {"dim": y.type.rank - 1}).result
    if y.type.rank != x.type.rank - 1 or not all(maybe_equal(p, q) for p, q in zip(y.type.shape, x.type.shape)):
        cx.fail(f"logits {type_text(x.type)} need class indices {type_text(TensorType(i64, x.type.shape[:-1]))}, got {type_text(y.type)}")
    guess = b.op("tensor.argmax", [x], {"dim": x.type.rank - 1}).result
    hit = b.cast(b.compare("eq", guess, b.cast(y, i64)), f32)
    return mean_of(b, hit, range(hit.type.rank)) if hit.type.rank else hit


# ---- normalisation and dropout ----------------------------------------------------------------------------------------

def _last_dims(cx, x: Value, shape) -> list[int]:
    if shape is None:
        return [x.type.rank - 1]
    sizes = cx.shape(shape, "normalized_shape")
    if len(sizes) > x.type.rank or not all(maybe_equal(p, q) for p, q in zip(sizes, x.type.shape[x.type.rank - len(sizes):])):
        cx.fail(f"`normalized_shape` [{', '.join(map(str, sizes))}] is not how {type_text(x.type)} ends", "normalized_shape")
    return list(range(x.type.rank - len(sizes), x.type.rank))


def _affine(cx, y: Value, weight, bias) -> Value:
    b = cx.b
    if weight is not None:
        y, w = together(b, (y, cx.tensor(weight, "weight")))
        y = b.mul(y, w)
    if bias is not None:
        y, v = together(b, (y, cx.tensor(bias, "bias")))
        y = b.add(y, v)
    return y


@builtin()
def layer_norm(cx, x, normalized_shape=None, weight=None, bias=None, eps=1e-5):
    """(x - mean) / sqrt(var + eps) over the last dims (by default the last one)."""
    b = cx.b
    x = cx.float(x)
    dims = _last_dims(cx, x, normalized_shape)
    c = b.sub(x, b.broadcast(mean_of(b, x, dims, True), x.type.shape))
    v = mean_of(b, b.mul(c, c), dims, True)
    y = b.mul(c, b.broadcast(b.rsqrt(b.add(v, _number(cx, eps, "eps"))), x.type.shape))
    return _affine(cx, y, weight, bias)


@builtin()
def rms_norm(cx, x, normalized_shape=None, weight=None, eps=1e-5):
    """x / sqrt(mean(x^2) + eps) over the last dims (by default the last one)."""
    b = cx.b
    x = cx.float(x)
    dims = _last_dims(cx, x, normalized_shape)
    v = mean_of(b, b.mul(x, x), dims, True)
    y = b.mul(x, b.broadcast(b.rsqrt(b.add(v, _number(cx, eps, "eps"))), x.type.shape))
    return _affine(cx, y, weight, None)


@builtin()
def normalize(cx, x, p=2, dim=-1, eps=1e-12):
    """x divided by its p-norm along dim."""
    from .builtins_reduce import norm
    b = cx.b
    x = cx.float(x)
    n = norm(cx, x, p, dim, True)
    return b.div(x, b.broadcast(b.max(n, _number(cx, eps, "eps")), x.type.shape))


@builtin()
def dropout(cx, x, p=0.5, training=None, key=None):
    """In training, elements become 0 with probability p and the others grow by 1 / (1 - p)."""
    x = cx.float(x)
    on = cx.el.training if training is None else cx.flag(training, "training")
    rate = _number(cx, p, "p")
    if not 0 <= rate <= 1:
        cx.fail(f"`p` of `dropout` is a probability, got {rate}", "p")
    if not on or rate == 0:
        return x
    from .builtins_make import key_of, unit
    b = cx.b
    keep = b.compare("lt", unit(cx, "uniform", key_of(cx, key), x.type.shape, f32), 1 - rate)
    return b.select(keep, b.mul(x, 1 / (1 - rate) if rate < 1 else 0.0), 0.0)


# ---- attention --------------------------------------------------------------------------------------------------------

@builtin()
def scaled_dot_product_attention(cx, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False,
                                 length=None):
    """softmax(query @ key.T * scale + mask) @ value over [.., tokens, features].  attn_mask: bools (true: may be seen) or numbers to
    add.  is_causal: a query sees no later key; the last query is aligned with the last key.  length: only the first `length` keys
    count (a run-time number); the last query is then aligned with key length - 1."""
    from .expressions import matmul_values
    b = cx.b
    q, k, v = cx.float(query, "query"), cx.float(key, "key"), cx.float(value, "value")
    if min(q.type.rank, k.type.rank, v.type.rank) < 2:
        cx.fail(f"attention needs [.., tokens, features], got {type_text(q.type)}, {type_text(k.type)}, {type_text(v.type)}")
    d = q.type.shape[-1]
    out_shape = None
    if cx.flag(enable_gqa, "enable_gqa") and q.type.rank >= 3 and q.type.shape[-3] != k.type.shape[-3]:
        h, g = q.type.shape[-3], k.type.shape[-3]
        if not isinstance(h, int) or not isinstance(g, int) or h % g:
            cx.fail(f"{h} query heads do not divide among {g} key heads", "query")
        out_shape = (*q.type.shape[:-1], v.type.shape[-1])
        q = b.reshape(q, (*q.type.shape[:-3], g, h // g, *q.type.shape[-2:]))
        k = b.reshape(k, (*k.type.shape[:-2], 1, *k.type.shape[-2:]))
        v = b.reshape(v, (*v.type.shape[:-2], 1, *v.type.shape[-2:]))
    t, s = q.type.shape[-2], k.type.shape[-2]
    kt = b.transpose(k, [*range(k.type.rank - 2), k.type.rank - 1, k.type.rank - 2])
    factor = _number(cx, scale, "scale") if scale is not None else 1 / math.sqrt(d) if isinstance(d, int) else 1.0
    scores = b.mul(matmul_values(b, q, kt), factor)
    st = scores.type
    if length is not None:
        n = length if isinstance(length, Value) else constant(b, cx.int(length, "length"), i64)
        n = b.broadcast(b.cast(n, i64), (t, s))
        cols = b.iota((t, s), 1)
        ok = b.compare("lt", cols, n)
        if cx.flag(is_causal, "is_causal"):
            rows = b.iota((t, s), 0)
            last = b.sub(b.add(n, rows), constant(b, t, i64, (t, s)))
            ok = b.compare("le", cols, last)
        scores = b.select(b.broadcast(ok, st.shape), scores, float("-inf"))
    elif cx.flag(is_causal, "is_causal"):
        scores = b.select(band(b, st, s - t, True), scores, float("-inf"))
    if attn_mask is not None:
        mask = cx.tensor(attn_mask, "attn_mask")
        if mask.type.dtype.is_bool:
            scores = b.select(b.broadcast(mask, st.shape), scores, float("-inf"))
        else:
            scores = b.add(scores, b.broadcast(b.cast(mask, st.dtype), st.shape))
    weights = b.op("nn.softmax", [scores], {"dim": st.rank - 1}).result
    if dropout_p:
        weights = dropout(cx, weights, dropout_p)
    y = matmul_values(b, weights, v)
    return y if out_shape is None else b.reshape(y, out_shape)


# ---- products ---------------------------------------------------------------------------------------------------------

@builtin()
def matmul(cx, x, y):
    """x @ y."""
    from .expressions import matmul_values
    return matmul_values(cx.b, cx.tensor(x), cx.tensor(y, "y"))


builtin("mm")(matmul)
builtin("bmm")(matmul)


@builtin()
def dot(cx, x, y):
    """The sum of products of two vectors."""
    from .expressions import matmul_values
    x, y = cx.tensor(x), cx.tensor(y, "y")
    if x.type.rank != 1 or y.type.rank != 1:
        cx.fail(f"`dot` takes two vectors, got {type_text(x.type)} and {type_text(y.type)}", hint="`@` multiplies matrices")
    return matmul_values(cx.b, x, y)


@builtin()
def outer(cx, x, y):
    """x[i] * y[j]."""
    b = cx.b
    x, y = cx.tensor(x), cx.tensor(y, "y")
    if x.type.rank != 1 or y.type.rank != 1:
        cx.fail(f"`outer` takes two vectors, got {type_text(x.type)} and {type_text(y.type)}")
    x, y = b.broadcast(x, (x.type.shape[0], y.type.shape[0]), [0]), b.broadcast(y, (x.type.shape[0], y.type.shape[0]), [1])
    x, y = together(b, (x, y))
    return b.mul(x, y)


@builtin()
def linear(cx, x, weight, bias=None):
    """x @ weight.T + bias, torch.nn.functional.linear."""
    from .expressions import matmul_values
    b = cx.b
    w = cx.tensor(weight, "weight")
    y = matmul_values(b, cx.tensor(x), b.transpose(w, [*range(w.type.rank - 2), w.type.rank - 1, w.type.rank - 2]))
    return y if bias is None else _affine(cx, y, None, bias)


@builtin()
def einsum(cx, equation, *operands):
    """Einstein summation: einsum("bij,bjk->bik", a, b)."""
    if not isinstance(equation, str):
        cx.fail("`einsum` needs an equation such as \"ij,jk->ik\"")
    xs = [cx.tensor(x) for x in operands]
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if "." in text:
        return _einsum_ellipsis(cx, terms, right if arrow else None, xs)
    return _einsum(cx, terms, right if arrow else None, xs)


def _einsum_ellipsis(cx, terms, right, xs):
    wide = max((x.type.rank - len(t.replace("...", "")) for t, x in zip(terms, xs) if "..." in t), default=0)
    if wide < 0 or any(t.count("...") > 1 or "." in t.replace("...", "") for t in terms):
        cx.fail("`...` stands for the leading dimensions, once a term")
    letters = "αβγδεζηθ"[:wide]
    out = []
    for t, x in zip(terms, xs):
        k = x.type.rank - len(t.replace("...", ""))
        out.append(t.replace("...", letters[wide - k:]) if "..." in t else t)
    if right is None:
        names = sorted({c for t in out for c in t if c not in letters and sum(u.count(c) for u in out) == 1})
        right = letters + "".join(names)
    return _einsum(cx, out, right.replace("...", letters), xs)


def _einsum(cx, terms, right, xs):
    if len(terms) != len(xs):
        cx.fail(f"the equation has {len(terms)} operands, {len(xs)} are given")
    if not xs:
        cx.fail("`einsum` needs operands")
    sizes: dict = {}
    for t, x in zip(terms, xs):
        if not t.isalpha() and t or len(t) != x.type.rank:
            cx.fail(f"`{t}` names {len(t)} dimensions of {type_text(x.type)}")
        for c, n in zip(t, x.type.shape):
            if not maybe_equal(sizes.setdefault(c, n), n):
                cx.fail(f"`{c}` is {sizes[c]} and {n}")
    if right is None:
        right = "".join(sorted(c for c in sizes if sum(t.count(c) for t in terms) == 1))
    if len(set(right)) != len(right) or any(c not in sizes for c in right):
        cx.fail(f"`{right}` names a dimension twice or one that no operand has")
    b = cx.b
    from .tensors import common_dtype
    dtype = common_dtype(xs)
    parts = [_diagonals(b, t, b.cast(x, dtype)) for t, x in zip(terms, xs)]
    t, x = parts[0]
    for k, (u, y) in enumerate(parts[1:], 1):
        later = set(right).union(*(set(v) for v, _ in parts[k + 1:]))
        t, x = _contract(b, t, x, u, y, later)
    drop = [i for i, c in enumerate(t) if c not in right]
    if drop:
        x = b.sum(x, drop)
        t = "".join(c for c in t if c in right)
    return b.transpose(x, [t.index(c) for c in right])


def _diagonals(b, t: str, x: Value) -> tuple[str, Value]:
    for c in dict.fromkeys(t):
        while t.count(c) > 1:
            i = t.index(c)
            j = t.index(c, i + 1)
            n = x.type.shape[i]
            shape = x.type.shape
            eye = b.compare("eq", b.iota(shape, i), b.iota(shape, j))
            x = b.sum(b.select(eye, x, b.zeros(x.type)), [j])
            t = t[:j] + t[j + 1:]
            del n
    return t, x


def _contract(b, t: str, x: Value, u: str, y: Value, later: set[str]) -> tuple[str, Value]:
    """Two operands into one; letters that nobody needs later are summed."""
    alone = [i for i, c in enumerate(t) if c not in u and c not in later]
    if alone:
        x, t = b.sum(x, alone), "".join(c for i, c in enumerate(t) if i not in alone)
    alone = [i for i, c in enumerate(u) if c not in t and c not in later]
    if alone:
        y, u = b.sum(y, alone), "".join(c for i, c in enumerate(u) if i not in alone)
    both = [c for c in t if c in u]
    batch, inner = [c for c in both if c in later], [c for c in both if c not in later]
    out = b.op("tensor.dot_general", [x, y], {"lhs_batch": [t.index(c) for c in batch], "rhs_batch": [u.index(c) for c in batch],
                                              "lhs_contract": [t.index(c) for c in inner], "rhs_contract": [u.index(c) for c in inner]}).result
    return "".join(batch) + "".join(c for c in t if c not in both) + "".join(c for c in u if c not in both), out


# ---- convolution and pooling ------------------------------------------------------------------------------------------

def _spread(cx, v, n: int, arg: str) -> list:
    """One number for all spatial dims, or a list of n."""
    if isinstance(v, list | tuple):
        if len(v) != n:
            cx.fail(f"`{arg}` of `{cx.name}` needs {n} numbers, got {len(v)}", arg)
        return [cx.int(k, arg) for k in v]
    return [cx.int(v, arg)] * n


def windows(b, x: Value, size: list, stride: list, dilation: list) -> Value:
    return b.op("tensor.windows", [x], {"size": list(size), "stride": list(stride), "dilation": list(dilation)}).result


def padded(b, x: Value, pads: list[tuple], value: float = 0.0) -> Value:
    """More elements before and after the trailing dims."""
    if not any(p or q for p, q in pads):
        return x
    lead = x.type.rank - len(pads)
    low = [0] * lead + [p for p, _ in pads]
    high = [0] * lead + [q for _, q in pads]
    return b.op("tensor.pad", [x, b.constant(value, TensorType(x.type.dtype))], {"low": low, "high": high, "interior": [0] * x.type.rank}).result


def _conv(n: int):
    name = f"conv{n}d"

    def run(cx, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        b = cx.b
        x, w = cx.float(x), cx.float(weight, "weight")
        if w.type.rank != n + 2:
            cx.fail(f"`{name}` needs weights [out, in, {', '.join(['k'] * n)}], got {type_text(w.type)}", "weight")
        if x.type.rank < n + 1:
            cx.fail(f"`{name}` needs [.., channels, {', '.join('HWD'[:n])}], got {type_text(x.type)}", "x")
        x, w = (b.cast(v, x.type.dtype) for v in (x, w))
        g = cx.int(groups, "groups")
        ci, co = x.type.shape[-n - 1], w.type.shape[0]
        size = list(w.type.shape[2:])
        if not maybe_equal(ci, w.type.shape[1] * g):
            cx.fail(f"`{name}` of {type_text(x.type)} with weights {type_text(w.type)}: {ci} channels, but the weights take {w.type.shape[1] * g}",
                    marks=[(cx.spans[k], None) for k in ("x", "weight") if k in cx.spans])
        st, di = _spread(cx, stride, n, "stride"), _spread(cx, dilation, n, "dilation")
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(di, size)]
            pads = [(t // 2, t - t // 2) for t in total]
        elif padding == "valid":
            pads = [(0, 0)] * n
        else:
            pads = [(p, p) for p in _spread(cx, padding, n, "padding")]
        lead = x.type.shape[:-n - 1]
        x = b.reshape(x, (product(lead), *x.type.shape[-n - 1:]))
        p = windows(b, padded(b, x, pads), size, st, di)      # [B, ci, o.., k..]
        o = list(p.type.shape[2:2 + n])
        if g == 1:
            kdims = list(range(2 + n, 2 + 2 * n))
            y = b.op("tensor.dot_general", [w, p], {"lhs_batch": [], "rhs_batch": [], "lhs_contract": [1, *range(2, 2 + n)],
                                                    "rhs_contract": [1, *kdims]}).result       # [co, B, o..]
            y = b.transpose(y, [1, 0, *range(2, 2 + n)])
        else:
            if isinstance(co, int) and co % g:
                cx.fail(f"{co} output channels do not divide by {g} groups", "groups")
            p = b.reshape(p, (p.type.shape[0], g, ci // g, *o, *size))
            w = b.reshape(w, (g, co // g, *w.type.shape[1:]))
            kdims = list(range(3 + n, 3 + 2 * n))
            y = b.op("tensor.dot_general", [w, p], {"lhs_batch": [0], "rhs_batch": [1], "lhs_contract": [2, *range(3, 3 + n)],
                                                    "rhs_contract": [2, *kdims]}).result       # [g, co/g, B, o..]
            y = b.transpose(y, [2, 0, 1, *range(3, 3 + n)])
        y = b.reshape(y, (*lead, co, *o))
        if bias is not None:
            v = cx.tensor(bias, "bias")
            y, v = together(b, (y, b.reshape(v, (*v.type.shape, *[1] * n))))
            y = b.add(y, v)
        return y

    run.__doc__ = f"torch.nn.functional.conv{n}d; padding may also be \"same\"."
    builtin(name)(run)


for _n in (1, 2, 3):
    _conv(_n)


def _pool(n: int, kind: str):
    name = f"{kind}_pool{n}d"

    def run(cx, x, kernel_size, stride=None, padding=0):
        b = cx.b
        x = cx.float(x)
        if x.type.rank < n:
            cx.fail(f"`{name}` needs {n} trailing dimensions, got {type_text(x.type)}", "x")
        size = _spread(cx, kernel_size, n, "kernel_size")
        st = size if stride is None else _spread(cx, stride, n, "stride")
        pads = [(p, p) for p in _spread(cx, padding, n, "padding")]
        for (p, _), k in zip(pads, size):
            if isinstance(p, int) and isinstance(k, int) and 2 * p > k:
                cx.fail(f"`padding` {p} is more than half the window {k}", "padding")
        w = windows(b, padded(b, x, pads, -math.inf if kind == "max" else 0.0), size, st, [1] * n)
        dims = list(range(x.type.rank, x.type.rank + n))
        return b.reduce("max", w, dims) if kind == "max" else scale(b, b.sum(w, dims), product(size))

    run.__doc__ = f"torch.nn.functional.{kind}_pool{n}d."
    builtin(name)(run)


for _n in (1, 2, 3):
    _pool(_n, "max")
    _pool(_n, "avg")


def _adaptive(n: int):
    name = f"adaptive_avg_pool{n}d"

    def run(cx, x, output_size):
        b = cx.b
        x = cx.float(x)
        out = _spread(cx, output_size, n, "output_size")
        for i, o in enumerate(out):
            d = x.type.rank - n + i
            size = x.type.shape[d]
            if not isinstance(size, int) or not isinstance(o, int):
                from .values import Undecidable
                raise Undecidable
            if o <= 0:
                cx.fail("an output size is positive", "output_size")
            if size % o == 0:
                k = size // o
                s = x.type.shape
                x = mean_of(b, b.reshape(x, (*s[:d], o, k, *s[d + 1:])), [d + 1])
                continue
            # uneven cells: a matrix of averaging weights
            import numpy as np
            m = np.zeros((o, size), x.type.dtype.numpy)
            for j in range(o):
                lo, hi = j * size // o, -(-(j + 1) * size // o)
                m[j, lo:hi] = 1 / (hi - lo)
            w = b.constant(m, TensorType(x.type.dtype, (o, size)))
            y = b.op("tensor.dot_general", [x, w], {"lhs_batch": [], "rhs_batch": [], "lhs_contract": [d], "rhs_contract": [1]}).result
            x = b.transpose(y, [*range(d), y.type.rank - 1, *range(d, y.type.rank - 1)])
        return x

    run.__doc__ = f"torch.nn.functional.adaptive_avg_pool{n}d."
    builtin(name)(run)


for _n in (1, 2):
    _adaptive(_n)


@builtin("interpolate", "upsample_nearest")
def upsample_nearest(cx, x, scale_factor):
    """Each element of the last two dims repeated scale_factor times."""
    b = cx.b
    x = cx.tensor(x)
    k = _spread(cx, scale_factor, 2, "scale_factor")
    *lead, h, w = x.type.shape
    y = b.broadcast(b.reshape(x, (*lead, h, 1, w, 1)), (*lead, h, k[0], w, k[1]))
    return b.reshape(y, (*lead, h * k[0], w * k[1]))


__all__ = ["as_tensor", "broadcast_shapes", "is_weak"]
