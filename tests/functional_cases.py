"""Calls of std/functional.nn and of `interpolate` beside PyTorch's own, on fixed inputs.  `python -m functional_cases` (in tests/, needs torch) writes
functional.json: PyTorch's values, and its gradients for cotangents made by `cotangent`; test_functional.py compares with these, without torch."""
from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

STORED = Path(__file__).with_name("functional.json")
_rng = np.random.default_rng(0)
_f = np.float32
INPUTS = {
    "x": _rng.normal(size=(3, 4)).astype(_f), "y": _rng.normal(size=(3, 4)).astype(_f), "p": _rng.uniform(.1, .9, size=(3, 4)).astype(_f),
    "img": _rng.normal(size=(1, 4, 4, 6)).astype(_f), "sq": _rng.normal(size=(2, 3, 3)).astype(_f), "v3": _rng.normal(size=(5, 3)).astype(_f),
    "w3": _rng.normal(size=(5, 3)).astype(_f), "tab": _rng.normal(size=(5, 3)).astype(_f), "srt": np.array([-1., 0., .5, 2.], _f),
    "sgn": np.array([1., -1., 1.], _f), "s2": np.sign(_rng.normal(size=(3, 4))).astype(_f), "cnt": np.abs(np.round(2 * _rng.normal(size=(3, 4)))).astype(_f),
    "theta": (np.array([[[.9, .2, .1], [-.3, 1.1, -.2]], [[.5, 0, 0], [0, .5, .3]]]) + .01 * _rng.normal(size=(2, 2, 3))).astype(_f),
    "pic": _rng.normal(size=(2, 2, 4, 5)).astype(_f), "speech": _rng.normal(size=(6, 3, 4)).astype(_f), "spell": np.array([[1, 2, 2], [3, 1, 0], [2, 0, 0]]),
    "heard": np.array([6, 5, 6]), "letters": np.array([3, 2, 1]),
    "lab": np.array([1, 0, 3]), "iv": np.array([1, 4, 0, 1]), "ib": np.array([[0, 1], [2, 2]]),
}

# ours | PyTorch's, in which the inputs are tensors of these names
TEXT = r"""
cosine_similarity(x, y) | F.cosine_similarity(x, y, -1)
pairwise_distance(x, y) | F.pairwise_distance(x, y)
pairwise_distance(x, y, p = 1, keepdim = true) | F.pairwise_distance(x, y, 1, keepdim=True)
cdist(v3, w3) | torch.cdist(v3, w3)
cdist(v3, w3, p = 1) | torch.cdist(v3, w3, 1)
dist(x, y) | torch.dist(x, y)
affine_grid(theta, [2, 2, 3, 4]) | F.affine_grid(theta, [2, 2, 3, 4], align_corners=False)
affine_grid(theta, [2, 2, 3, 4], align_corners = true) | F.affine_grid(theta, [2, 2, 3, 4], align_corners=True)
grid_sample(pic, affine_grid(theta, [2, 2, 3, 4])) | F.grid_sample(pic, F.affine_grid(theta, [2, 2, 3, 4], align_corners=False), align_corners=False)
grid_sample(pic, 1.3 * affine_grid(theta, [2, 2, 3, 4], align_corners = true), padding_mode = "border", align_corners = true) | F.grid_sample(pic, 1.3 * F.affine_grid(theta, [2, 2, 3, 4], align_corners=True), padding_mode="border", align_corners=True)
grid_sample(pic, stop_gradient(affine_grid(theta, [2, 2, 3, 4])), mode = "nearest") | F.grid_sample(pic, F.affine_grid(theta, [2, 2, 3, 4], align_corners=False).detach(), mode="nearest", align_corners=False)
ctc_loss(log_softmax(speech), spell, heard, letters) | F.ctc_loss(speech.log_softmax(-1), spell, heard, letters)
ctc_loss(log_softmax(speech), spell, heard, letters, reduction = "none") | F.ctc_loss(speech.log_softmax(-1), spell, heard, letters, reduction="none")
margin_ranking_loss(x, y, s2, margin = 0.2) | F.margin_ranking_loss(x, y, s2, .2)
hinge_embedding_loss(x, s2) | F.hinge_embedding_loss(x, s2)
cosine_embedding_loss(x, y, sgn, margin = 0.1) | F.cosine_embedding_loss(x, y, sgn, .1)
triplet_margin_loss(x, y, p) | F.triplet_margin_loss(x, y, p)
triplet_margin_loss(x, y, p, swap = true, reduction = "none") | F.triplet_margin_loss(x, y, p, swap=True, reduction="none")
soft_margin_loss(x, stop_gradient(s2), reduction = "sum") | F.soft_margin_loss(x, s2.detach(), reduction="sum")
multi_margin_loss(x, lab) | F.multi_margin_loss(x, lab)
multi_margin_loss(x, lab, p = 2, weight = stop_gradient(p[0])) | F.multi_margin_loss(x, lab, p=2, weight=p[0].detach())
multilabel_soft_margin_loss(x, p) | F.multilabel_soft_margin_loss(x, p)
poisson_nll_loss(x, cnt) | F.poisson_nll_loss(x, cnt)
poisson_nll_loss(p, stop_gradient(cnt), log_input = false, full = true) | F.poisson_nll_loss(p, cnt.detach(), False, True)
gaussian_nll_loss(x, y, p, full = true) | F.gaussian_nll_loss(x, y, p, full=True)
pixel_shuffle(img, 2) | F.pixel_shuffle(img, 2)
pixel_unshuffle(img, 2) | F.pixel_unshuffle(img, 2)
channel_shuffle(img, 2) | F.channel_shuffle(img, 2)
local_response_norm(img, 3) | F.local_response_norm(img, 3)
local_response_norm(img, 4, alpha = 0.1) | F.local_response_norm(img, 4, alpha=.1)
lp_pool2d(img, 2, 2) | F.lp_pool2d(img, 2, 2)
embedding_bag(ib, tab) | F.embedding_bag(ib, tab)
embedding_bag(ib, tab, mode = "max") | F.embedding_bag(ib, tab, mode="max")
dropout2d(img, key = key) | F.dropout2d(img, training=False)
logaddexp(x, y) | torch.logaddexp(x, y)
logaddexp2(x, y) | torch.logaddexp2(x, y)
logit(p) | torch.logit(p)
logit(x, eps = 0.1) | torch.logit(x, .1)
xlogy(x, p) | torch.xlogy(x, p)
sinc(x) | torch.sinc(x)
heaviside(x, y) | torch.heaviside(x.detach(), y.detach())
addcmul(x, y, p, value = 0.5) | torch.addcmul(x, y, p, value=.5)
addcdiv(x, y, p, value = 0.5) | torch.addcdiv(x, y, p, value=.5)
deg2rad(x) | torch.deg2rad(x)
rad2deg(x) | torch.rad2deg(x)
diff(x) | torch.diff(x)
diff(x, n = 2, dim = 0) | torch.diff(x, 2, 0)
cross(v3, w3) | torch.linalg.cross(v3, w3)
std_mean(x, dim = 1)[1] | torch.std_mean(x, 1)[1]
var_mean(x)[0] | torch.var_mean(x)[0]
aminmax(x, dim = 0)[1] | torch.aminmax(x, dim=0)[1]
isclose(x, x + 1e-7) | torch.isclose(x, x + 1e-7)
allclose(x, y) | torch.tensor(torch.allclose(x, y))
fliplr(x) | torch.fliplr(x)
flipud(x) | torch.flipud(x)
bincount(iv, 6) | torch.bincount(iv, minlength=6)
bincount(iv, 5, weights = p[0]) | torch.bincount(iv, p[0].detach(), minlength=5)
searchsorted(srt, x) | torch.searchsorted(srt, x)
searchsorted(srt, srt, right = true) | torch.searchsorted(srt, srt, right=True)
bucketize(x, srt) | torch.bucketize(x, srt)
quantile(x, 0.3) | torch.quantile(x, .3)
quantile(x, 0.75, dim = 1, keepdim = true) | torch.quantile(x, .75, 1, keepdim=True)
quantile(x, 1.0, dim = 0) | torch.quantile(x, 1., 0)
kthvalue(x, 2)[0] | torch.kthvalue(x, 2)[0]
kthvalue(x, 2, dim = 0, keepdim = true)[1] | torch.kthvalue(x, 2, 0, True)[1]
logcumsumexp(x) | torch.logcumsumexp(x, -1)
logcumsumexp(x, dim = 0) | torch.logcumsumexp(x, 0)
matrix_power(sq, 3) | torch.linalg.matrix_power(sq, 3)
cov(x) | torch.cov(x)
corrcoef(x) | torch.corrcoef(x)
mv(x, y[0]) | torch.mv(x, y[0])
segment_sum(x, lab, 4) | torch.zeros(4, 4).index_add(0, lab, x)
segment_max(x, lab, 4) | torch.full((4, 4), -float("inf")).scatter_reduce(0, lab[:, None].expand(3, 4), x, "amax")
segment_softmax(x, lab * 0, 1) | torch.softmax(x, 0)
interpolate(img, scale_factor = 2) | F.interpolate(img, scale_factor=2)
interpolate(img, scale_factor = 1.5) | F.interpolate(img, scale_factor=1.5)
interpolate(img, size = [7, 5]) | F.interpolate(img, [7, 5])
interpolate(img, [7, 5], mode = "nearest-exact") | F.interpolate(img, [7, 5], mode="nearest-exact")
interpolate(img, [7, 5], mode = "bilinear") | F.interpolate(img, [7, 5], mode="bilinear")
interpolate(img, [2, 12], mode = "bilinear", align_corners = true) | F.interpolate(img, [2, 12], mode="bilinear", align_corners=True)
interpolate(img, scale_factor = [1.7, 0.6], mode = "bilinear") | F.interpolate(img, scale_factor=[1.7, .6], mode="bilinear")
interpolate(img, [7, 5], mode = "bicubic") | F.interpolate(img, [7, 5], mode="bicubic")
interpolate(img, [2, 12], mode = "bicubic", align_corners = true) | F.interpolate(img, [2, 12], mode="bicubic", align_corners=True)
interpolate(img, [3, 4], mode = "area") | F.interpolate(img, [3, 4], mode="area")
interpolate(img[:, 0], 9, mode = "linear") | F.interpolate(img[:, 0], 9, mode="linear")
interpolate(img[:, :2][:, none], scale_factor = 2, mode = "trilinear") | F.interpolate(img[:, :2][:, None], scale_factor=2, mode="trilinear")
upsample_bilinear(img, scale_factor = 2) | F.interpolate(img, scale_factor=2, mode="bilinear", align_corners=True)
"""
CASES = [tuple(part.strip() for part in line.split(" | ", 1)) for line in TEXT.strip().splitlines()]


def used(expression: str) -> list[str]:
    return [n for n in INPUTS if re.search(rf"\b{n}\b", expression)]


def cotangent(shape) -> np.ndarray:
    """Small numbers that are exact in f32, other ones in every place."""
    n = int(np.prod(shape, dtype=int))
    return ((np.arange(n) * 37 % 17 - 8) / 8).astype(_f).reshape(shape)


def main() -> None:
    import torch

    out = {}
    for ours, theirs in CASES:
        names = used(ours)
        ts = {n: torch.tensor(INPUTS[n], requires_grad=INPUTS[n].dtype == _f) for n in names}
        r = eval(theirs, {"torch": torch, "F": torch.nn.functional}, ts)
        entry = {"value": _plain(r)}
        wrt = [n for n in names if ts[n].requires_grad]
        if r.requires_grad and torch.isfinite(r).all():
            g = torch.autograd.grad(r, [ts[n] for n in wrt], torch.tensor(cotangent(r.shape)), allow_unused=True)
            entry["grad"] = {n: _plain(torch.zeros_like(ts[n]) if v is None else v) for n, v in zip(wrt, g)}
        out[ours] = entry
    STORED.write_text("{\n" + ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in out.items()) + "\n}\n")


def _plain(t) -> dict:
    a = t.detach().numpy()
    return {"shape": list(a.shape), "data": [float(f"{v:.7g}") if a.dtype.kind == "f" else v for v in a.ravel().tolist()]}


if __name__ == "__main__":
    main()
