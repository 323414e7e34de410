"""Losses.  Classes are the last dimension unless `dim` says otherwise (PyTorch: dimension 1; the same for [batch, classes])."""
from __future__ import annotations

from ..compiler.ir import TensorType, Value, f32, i64
from ..compiler.ir.dims import maybe_equal
from .builtins import builtin
from .builtins_math import _number
from .builtins_reduce import count, mean_of, scale
from .tensors import together
from .values import describe, type_text


def reduced(cx, loss: Value, reduction) -> Value:
    kind = cx.choice(reduction, "reduction", "mean", "sum", "none")
    dims = list(range(loss.type.rank))
    if kind == "none" or not dims:
        return loss
    return cx.b.sum(loss, dims) if kind == "sum" else mean_of(cx.b, loss, dims)


def total(b, x: Value) -> Value:
    """The sum of all elements."""
    return b.sum(x, range(x.type.rank)) if x.type.rank else x


# ---- classes ----------------------------------------------------------------------------------------------------------

def _classes_last(cx, x: Value, dim, arg: str) -> tuple[Value, int]:
    """The class scores with the classes as last dim, and the dim they were."""
    if x.type.rank == 0:
        cx.fail(f"`{arg}` needs a dimension of classes, got {type_text(x.type)}", arg)
    d = cx.dim(dim, x.type.rank)
    return move_last(cx.b, x, d), d


def move_last(b, x: Value, d: int) -> Value:
    if d == x.type.rank - 1:
        return x
    return b.transpose(x, [*[k for k in range(x.type.rank) if k != d], d])


def _check_targets(cx, x: Value, y: Value, what: str) -> None:
    """Class indices of the scores' shape without the classes."""
    if y.type.rank == x.type.rank - 1 and all(maybe_equal(p, q) for p, q in zip(y.type.shape, x.type.shape)):
        return
    want = TensorType(y.type.dtype, x.type.shape[:-1])
    hint = "`flatten` or `reshape` brings them together"
    if y.type.rank == x.type.rank and y.type.shape[:-1] == x.type.shape[:-1] and y.type.shape[-1] == 1:
        hint = "`target[:, 0]` drops the last dimension"
    cx.fail(f"{what} {type_text(x.type)} need class indices {type_text(want)}, got {type_text(y.type)}", hint=hint,
            marks=[(cx.spans[n], describe(v)) for n, v in (("logits", x), ("log_probs", x), ("target", y)) if n in cx.spans])


def _class_weights(cx, weight, x: Value) -> Value:
    w = cx.float(weight, "weight")
    if w.type.rank != 1 or not maybe_equal(w.type.shape[0], x.type.shape[-1]):
        cx.fail(f"`weight` holds one number a class, {x.type.shape[-1]} in all, got {type_text(w.type)}", "weight")
    return cx.b.cast(w, x.type.dtype)


def _kept(cx, y: Value, ignore_index) -> tuple[Value, Value | None]:
    """The class indices with 0 for the ignored ones, and which are kept (None: all)."""
    if ignore_index is None:
        return y, None
    keep = cx.b.compare("ne", y, cx.int(ignore_index, "ignore_index"))
    return cx.b.select(keep, y, 0), keep


def _weighted_mean(cx, loss: Value, counts: Value | None, keep: Value | None, reduction) -> Value:
    """The loss with ignored targets 0, reduced; a mean is taken over the weights `counts` of the targets (None: 1 each)."""
    b = cx.b
    if keep is not None:
        loss = b.select(keep, loss, 0.0)
    if reduction != "mean" or counts is None and keep is None:
        return reduced(cx, loss, reduction)
    if counts is None:
        counts = b.cast(keep, loss.type.dtype)
    elif keep is not None:
        counts = b.select(keep, counts, 0.0)
    return b.div(total(b, loss), total(b, counts))


@builtin()
def cross_entropy(cx, logits, target, weight=None, ignore_index=None, reduction="mean", label_smoothing=0.0, dim=-1):
    """-log softmax(logits)[target] along dim; the target holds class indices, or probabilities of the logits' shape.  weight: a factor for
    each class; targets equal to ignore_index do not count."""
    b = cx.b
    x, y = cx.float(logits, "logits"), cx.tensor(target, "target")
    s = _number(cx, label_smoothing, "label_smoothing")
    x, d = _classes_last(cx, x, dim, "logits")
    last = x.type.rank - 1
    classes = x.type.shape[last]
    w = None if weight is None else _class_weights(cx, weight, x)
    if y.type.dtype.is_float:
        y = move_last(b, y, d) if y.type.rank == x.type.rank else y
        if not (y.type.rank == x.type.rank and all(maybe_equal(p, q) for p, q in zip(x.type.shape, y.type.shape))):
            numbers = y.type.rank == x.type.rank - 1
            cx.fail(f"probabilities {type_text(y.type)} do not fit logits {type_text(x.type)}", "target",
                    hint="class numbers are integers: `i64(..)` converts" if numbers else None)
        y = b.cast(y, x.type.dtype)
        if s:
            y = b.add(b.mul(y, 1 - s), s / (classes if isinstance(classes, int) else 1))
        if w is not None:
            y = b.mul(y, b.broadcast(w, y.type.shape))
        z = b.op("nn.log_softmax", [x], {"dim": last}).result
        return reduced(cx, b.neg(b.sum(b.mul(y, z), [last])), reduction)
    if not y.type.dtype.is_int:
        cx.fail(f"`target` holds class indices or probabilities, got {type_text(y.type)}", "target")
    _check_targets(cx, x, y, "logits")
    y, keep = _kept(cx, y, ignore_index)
    loss = b.op("nn.cross_entropy", [x, y]).result
    counts = None
    if w is not None:
        counts = b.op("tensor.take", [w, y], {"dim": 0}).result
        loss = b.mul(loss, counts)
    if s:
        z = b.op("nn.log_softmax", [x], {"dim": last}).result
        smooth = b.sum(z if w is None else b.mul(z, b.broadcast(w, z.type.shape)), [last])
        loss = b.sub(b.mul(loss, 1 - s), b.mul(scale(b, smooth, classes), s))
    return _weighted_mean(cx, loss, counts, keep, reduction)


@builtin("nll", "nll_loss")
def nll(cx, log_probs, target, weight=None, ignore_index=None, reduction="mean", dim=-1):
    """-log_probs[target] along dim; weight and ignore_index as in cross_entropy."""
    b = cx.b
    x, y = cx.float(log_probs, "log_probs"), cx.tensor(target, "target")
    x, _ = _classes_last(cx, x, dim, "log_probs")
    if not y.type.dtype.is_int:
        cx.fail(f"`target` holds class indices, got {type_text(y.type)}", "target")
    _check_targets(cx, x, y, "log-probabilities")
    y, keep = _kept(cx, y, ignore_index)
    at = b.op("tensor.take_along", [x, b.reshape(y, (*y.type.shape, 1))], {"dim": x.type.rank - 1}).result
    loss = b.neg(b.reshape(at, y.type.shape))
    counts = None
    if weight is not None:
        counts = b.op("tensor.take", [_class_weights(cx, weight, x), y], {"dim": 0}).result
        loss = b.mul(loss, counts)
    return _weighted_mean(cx, loss, counts, keep, reduction)


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


# ---- numbers ----------------------------------------------------------------------------------------------------------

def _pairwise(cx, x, y):
    x, y = cx.float(x), cx.float(y, "target")
    return together(cx.b, (x, y))


def _weighted(cx, loss: Value, weight) -> Value:
    if weight is None:
        return loss
    loss, w = together(cx.b, (loss, cx.float(weight, "weight")))
    return cx.b.mul(loss, w)


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


@builtin("smooth_l1", "smooth_l1_loss")
def smooth_l1(cx, x, target, beta=1.0, reduction="mean"):
    """d^2 / (2 beta) for differences |d| < beta, |d| - beta / 2 beyond."""
    b = cx.b
    k = _number(cx, beta, "beta")
    if k == 0:
        return l1(cx, x, target, reduction)
    x, y = _pairwise(cx, x, target)
    d = b.abs(b.sub(x, y))
    return reduced(cx, b.select(b.compare("lt", d, k), b.mul(b.mul(d, d), 0.5 / k), b.sub(d, 0.5 * k)), reduction)


@builtin("huber", "huber_loss")
def huber(cx, x, target, delta=1.0, reduction="mean"):
    """d^2 / 2 for differences |d| <= delta, delta (|d| - delta / 2) beyond."""
    b = cx.b
    x, y = _pairwise(cx, x, target)
    k = _number(cx, delta, "delta")
    d = b.abs(b.sub(x, y))
    return reduced(cx, b.select(b.compare("le", d, k), b.mul(b.mul(d, d), 0.5), b.mul(b.sub(d, 0.5 * k), k)), reduction)


@builtin("bce_with_logits", "binary_cross_entropy_with_logits")
def bce_with_logits(cx, x, target, weight=None, pos_weight=None, reduction="mean"):
    """Binary cross-entropy of sigmoid(x), without overflow; pos_weight: a factor for the positive class."""
    b = cx.b
    x, y = _pairwise(cx, x, target)
    # log(1 + exp(-x)) = max(-x, 0) + log(1 + exp(-|x|)); twice the tail would be wrong in the derivative at 0
    soft = b.op("nn.softplus", [b.neg(x)]).result
    if pos_weight is not None:
        y2, p = together(b, (y, cx.float(pos_weight, "pos_weight")))
        soft = b.mul(soft, b.add(b.mul(y2, b.sub(p, 1.0)), 1.0))
    loss = b.add(b.mul(b.sub(b.like(1.0, y), y), x), soft)
    return reduced(cx, _weighted(cx, loss, weight), reduction)


@builtin("bce", "binary_cross_entropy")
def bce(cx, x, target, weight=None, reduction="mean"):
    """Binary cross-entropy of probabilities x; logs are at least -100, as in PyTorch."""
    b = cx.b
    x, y = _pairwise(cx, x, target)
    p = b.max(b.log(x), -100.0)
    q = b.max(b.log1p(b.neg(x)), -100.0)
    loss = b.neg(b.add(b.mul(y, p), b.mul(b.sub(b.like(1.0, y), y), q)))
    return reduced(cx, _weighted(cx, loss, weight), reduction)


@builtin("kl_div")
def kl_div(cx, x, target, reduction="mean", log_target=False):
    """target * (log(target) - x), with x given as logs, and the target too with log_target; "batchmean" divides by the first dim."""
    b = cx.b
    kind = cx.choice(reduction, "reduction", "mean", "batchmean", "sum", "none")
    x, y = _pairwise(cx, x, target)
    if cx.flag(log_target, "log_target"):
        loss = b.mul(b.exp(y), b.sub(y, x))
    else:
        safe = b.select(b.compare("gt", y, 0.0), y, 1.0)
        loss = b.select(b.compare("gt", y, 0.0), b.mul(y, b.sub(b.log(safe), x)), 0.0)
        loss = b.select(b.compare("ne", y, y), y, loss)
    if kind == "batchmean":
        return scale(b, total(b, loss), count(loss.type, [0]) if loss.type.rank else 1)
    return reduced(cx, loss, kind)
