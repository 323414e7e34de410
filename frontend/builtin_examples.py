"""Examples of the operations in builtins*.py, one or more each: what docs/reference/builtins.md shows and its test runs.

A line is `expression -> value`; it belongs to the operation that its expression begins with, or to the one named before a `|`.
The names of INPUTS are run-time tensors; `key` is a random key.  `python -m engram.docs --examples` prints the lines with the values
that come out now, four digits each.
"""
from __future__ import annotations

import re

INPUTS = {
    "x": "[-1.5, 0.0, 2.0]",
    "y": "[0.5, 2.0, -1.0]",
    "p": "[0.1, 0.5, 0.9]",
    "z": "[1.0, nan, -inf]",
    "m": "[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]",
    "a": "[[1.0, 2.0], [3.0, 4.0]]",
    "b": "[[0.0, 1.0], [2.0, -1.0]]",
    "i": "[2, 0, 1]",
    "j": "[6, 3, -5]",
    "t": "[true, false, true]",
    "u": "[true, true, false]",
    "logits": "[[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]]",
    "label": "[0, 2]",
    "line": "[[[1.0, 2.0, 3.0, 4.0]]]",
    "image": "[[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]]]",
    "solid": "[[[[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]]]",
    "w1": "[[[1.0, -1.0]]]",
    "w2": "[[[[1.0, 0.0], [0.0, -1.0]]]]",
    "w3": "[[[[[1.0, 1.0]]]]]",
}

TEXT = """
exp(x) -> [0.2231, 1.0, 7.389]
exp2(x) -> [0.3536, 1.0, 4.0]
expm1(x) -> [-0.7769, 0.0, 6.389]
log(p) -> [-2.303, -0.6931, -0.1054]
log2(p) -> [-3.322, -1.0, -0.152]
log10(p) -> [-1.0, -0.301, -0.04576]
log1p(p) -> [0.09531, 0.4055, 0.6419]
sqrt(p) -> [0.3162, 0.7071, 0.9487]
rsqrt(p) -> [3.162, 1.414, 1.054]
sin(x) -> [-0.9975, 0.0, 0.9093]
cos(x) -> [0.07074, 1.0, -0.4161]
tan(x) -> [-14.1, 0.0, -2.185]
asin(p) -> [0.1002, 0.5236, 1.12]
acos(p) -> [1.471, 1.047, 0.451]
atan(x) -> [-0.9828, 0.0, 1.107]
sinh(x) -> [-2.129, 0.0, 3.627]
cosh(x) -> [2.352, 1.0, 3.762]
tanh(x) -> [-0.9051, 0.0, 0.964]
asinh(x) -> [-1.195, 0.0, 1.444]
acosh(p + 1) -> [0.4436, 0.9624, 1.257]
atanh(p) -> [0.1003, 0.5493, 1.472]
erf(x) -> [-0.9661, 0.0, 0.9953]
erfc(x) -> [1.966, 1.0, 0.004678]
abs(x) -> [1.5, 0.0, 2.0]
neg(x) -> [1.5, 0.0, -2.0]
sign(x) -> [-1.0, 0.0, 1.0]
floor(x) -> [-2.0, 0.0, 2.0]
ceil(x) -> [-1.0, 0.0, 2.0]
trunc(x) -> [-1.0, 0.0, 2.0]
round(x) -> [-2.0, 0.0, 2.0]
round(p * 3, decimals = 1) -> [0.3, 1.5, 2.7]
square(x) -> [2.25, 0.0, 4.0]
reciprocal(y) -> [2.0, 0.5, -1.0]
frac(x) -> [-0.5, 0.0, 0.0]
sigmoid(x) -> [0.1824, 0.5, 0.8808]
silu(x) -> [-0.2736, 0.0, 1.762]
softplus(x) -> [0.2014, 0.6931, 2.127]
relu(x) -> [0.0, 0.0, 2.0]
gelu(x) -> [-0.1002, 0.0, 1.954]
gelu(x, approximate = "tanh") -> [-0.1004, 0.0, 1.955]
leaky_relu(x) -> [-0.015, 0.0, 2.0]
leaky_relu(x, 0.2) -> [-0.3, 0.0, 2.0]
elu(x) -> [-0.7769, 0.0, 2.0]
celu(x, alpha = 2.0) -> [-1.055, 0.0, 2.0]
selu(x) -> [-1.366, 0.0, 2.101]
relu6(4 * x) -> [0.0, 0.0, 6.0]
hardtanh(x) -> [-1.0, 0.0, 1.0]
hardsigmoid(x) -> [0.25, 0.5, 0.8333]
hardswish(x) -> [-0.375, 0.0, 1.667]
mish(x) -> [-0.2981, 0.0, 1.944]
softsign(x) -> [-0.6, 0.0, 0.6667]
logsigmoid(x) -> [-1.701, -0.6931, -0.1269]
softshrink(x) -> [-1.0, 0.0, 1.5]
hardshrink(x, lambd = 1.7) -> [0.0, 0.0, 2.0]
tanhshrink(x) -> [-0.5949, 0.0, 1.036]
threshold(x, 1.0, -1.0) -> [-1.0, -1.0, 2.0]
glu(a) -> [[0.8808], [2.946]]
prelu(x, 0.1) -> [-0.15, 0.0, 2.0]
maximum(x, y) -> [0.5, 2.0, 2.0]
minimum(x, 0) -> [-1.5, 0.0, 0.0]
pow(y, 2) -> [0.25, 4.0, 1.0]
atan2(x, y) -> [-1.249, 0.0, 2.034]
fmod(j, 4) -> [2, 3, -1]
remainder(j, 4) -> [2, 3, 3]
bitwise_and(i, 3) -> [2, 0, 1]
bitwise_or(i, 4) -> [6, 4, 5]
bitwise_xor(i, j) -> [4, 3, -6]
bitwise_not(i) -> [-3, -1, -2]
bitwise_left_shift(i, 2) -> [8, 0, 4]
bitwise_right_shift(j, 1) -> [3, 1, -3]
logical_and(t, u) -> [true, false, false]
logical_or(t, u) -> [true, true, true]
logical_xor(t, u) -> [false, true, true]
logical_not(t) -> [false, true, false]
add(x, y) -> [-1.0, 2.0, 1.0]
sub(x, y) -> [-2.0, -2.0, 3.0]
mul(x, y) -> [-0.75, 0.0, -2.0]
floor_divide(j, 4) -> [1, 0, -2]
div(x, y) -> [-3.0, 0.0, -2.0]
div(j, 4, rounding_mode = "trunc") -> [1, 0, -1]
eq(x, 0) -> [false, true, false]
ne(x, 0) -> [true, false, true]
lt(x, y) -> [true, true, false]
le(x, 0) -> [true, true, false]
gt(x, y) -> [false, false, true]
ge(x, 0) -> [false, true, true]
hypot(x, y) -> [1.581, 2.0, 2.236]
clamp(x, -1, 1) -> [-1.0, 0.0, 1.0]
clamp(x, max = 0.5) -> [-1.5, 0.0, 0.5]
lerp(x, y, 0.5) -> [-0.5, 1.0, 0.5]
where(x > 0, x, y) -> [0.5, 2.0, 2.0]
isnan(z) -> [false, true, false]
isinf(z) -> [false, false, true]
isfinite(z) -> [true, false, false]
nan_to_num(z, neginf = -9.0) -> [1.0, 0.0, -9.0]
sum(m) -> 21.0
sum(m, dim = 0) -> [5.0, 7.0, 9.0]
prod(m, dim = 1) -> [6.0, 120.0]
mean(m, dim = -1, keepdim = true) -> [[2.0], [5.0]]
var(m, dim = 1) -> [1.0, 1.0]
var(m, dim = 1, correction = 0) -> [0.6667, 0.6667]
std(m) -> 1.871
count_nonzero(x) -> 2
nansum(z[:2]) -> 1.0
nanmean(z[:2]) -> 1.0
amax(m, dim = 0) -> [4.0, 5.0, 6.0]
amin(m) -> 1.0
max(x, y) -> [0.5, 2.0, 2.0]
max(m, dim = 1) -> [3.0, 6.0]
min(x, 0.5) -> [-1.5, 0.0, 0.5]
min(m) -> 1.0
argmax(m, dim = 1) -> [2, 2]
argmin(x) -> 0
any(t) -> true
all(t) -> false
logsumexp(x) -> 2.153
norm(m) -> 9.539
norm(m, p = 1, dim = 0) -> [5.0, 7.0, 9.0]
global_norm((x, y)) -> 3.391
cumsum(m, dim = 1) -> [[1.0, 3.0, 6.0], [4.0, 9.0, 15.0]]
cumsum(x, reverse = true) -> [0.5, 2.0, 2.0]
cumprod(m, dim = 1) -> [[1.0, 2.0, 6.0], [4.0, 20.0, 120.0]]
sort(y) -> ([-1.0, 0.5, 2.0], [2, 0, 1])
sort(y, descending = true)[0] -> [2.0, 0.5, -1.0]
argsort(y) -> [2, 0, 1]
topk(y, 2) -> ([2.0, 0.5], [1, 0])
median(y) -> 0.5
conv1d(line, w1) -> [[[-1.0, -1.0, -1.0]]]
conv1d(line, w1, stride = 2) -> [[[-1.0, -1.0]]]
conv1d(line, w1, padding = "same") -> [[[-1.0, -1.0, -1.0, 4.0]]]
conv_transpose1d(line, w1) -> [[[1.0, 1.0, 1.0, 1.0, -4.0]]]
conv2d(image, w2) -> [[[[-4.0, -4.0], [-4.0, -4.0]]]]
conv2d(image, w2, padding = 1, stride = 2) -> [[[[-1.0, -3.0], [-7.0, -4.0]]]]
conv_transpose2d(image[.., :2, :2], w2) -> [[[[1.0, 2.0, 0.0], [4.0, 4.0, -2.0], [0.0, -4.0, -5.0]]]]
conv3d(solid, w3) -> [[[[[3.0], [7.0]], [[11.0], [15.0]]]]]
conv_transpose3d(solid[:, :, :1, :1], w3) -> [[[[[1.0, 3.0, 2.0]]]]]
max_pool1d(line, 2) -> [[[2.0, 4.0]]]
max_pool1d(line, 3, stride = 1, padding = 1) -> [[[2.0, 3.0, 4.0, 4.0]]]
avg_pool1d(line, 2) -> [[[1.5, 3.5]]]
adaptive_avg_pool1d(line, 2) -> [[[1.5, 3.5]]]
adaptive_max_pool1d(line, 2) -> [[[2.0, 4.0]]]
max_pool2d(image, 2, stride = 1) -> [[[[5.0, 6.0], [8.0, 9.0]]]]
max_pool2d(image, 2, stride = 1, return_indices = true)[1] -> [[[[4, 5], [7, 8]]]]
avg_pool2d(image, 2, stride = 1) -> [[[[3.0, 4.0], [6.0, 7.0]]]]
adaptive_avg_pool2d(image, 1) -> [[[[5.0]]]]
adaptive_max_pool2d(image, [1, 3]) -> [[[[7.0, 8.0, 9.0]]]]
max_pool3d(solid, 2) -> [[[[[8.0]]]]]
avg_pool3d(solid, 2) -> [[[[[4.5]]]]]
adaptive_avg_pool3d(solid, [1, 1, 2]) -> [[[[[4.0, 5.0]]]]]
adaptive_max_pool3d(solid, 1) -> [[[[[8.0]]]]]
unfold(image, 2) -> [[[1.0, 2.0, 4.0, 5.0], [2.0, 3.0, 5.0, 6.0], [4.0, 5.0, 7.0, 8.0], [5.0, 6.0, 8.0, 9.0]]]
fold(unfold(image, 2), [3, 3], 2) -> [[[[1.0, 4.0, 3.0], [8.0, 20.0, 12.0], [7.0, 16.0, 9.0]]]]
interpolate(image[.., :2, :2], scale_factor = 2) -> [[[[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0], [4.0, 4.0, 5.0, 5.0], [4.0, 4.0, 5.0, 5.0]]]]
interpolate(line, size = 3, mode = "linear") -> [[[1.167, 2.5, 3.833]]]
upsample_nearest(image[.., :1, :2], scale_factor = [1, 2]) -> [[[[1.0, 1.0, 2.0, 2.0]]]]
upsample_bilinear(image, size = [1, 2]) -> [[[[1.0, 3.0]]]]
grad(fn (v) { sum(v ** 2) })(x) -> [-3.0, 0.0, 4.0]
grad(fn (v, w) { sum(v * w) }, wrt = "w")(x, y) -> [-1.5, 0.0, 2.0]
value_and_grad(fn (v) { sum(v ** 2) })(x) -> (6.25, [-3.0, 0.0, 4.0])
vjp(fn (v) { v ** 2 }, x)[1](y) -> [-1.5, 0.0, -4.0]
jvp(fn (v) { v ** 2 }, x, y) -> ([2.25, 0.0, 4.0], [-1.5, 0.0, -4.0])
checkpoint | grad(fn (v) { sum(checkpoint(fn (t) { tanh(t) * t })(v)) })(tensor([0.0])) -> [0.0]
custom_grad | grad(fn (v) { sum(custom_grad(round, fn (v, out, g) { g })(v)) })(x) -> [1.0, 1.0, 1.0]
stop_gradient | grad(fn (v) { sum(stop_gradient(v) * v) })(x) -> [-1.5, 0.0, 2.0]
vmap(fn (row) { row / sum(row) })(m) -> [[0.1667, 0.3333, 0.5], [0.2667, 0.3333, 0.4]]
vmap(fn (row, v) { row @ v }, in_dims = (0, none))(m, x) -> [4.5, 6.0]
tree_map(fn (s, t) { s + t }, (x, p), (y, p)) -> ([-1.0, 2.0, 1.0], [0.2, 1.0, 1.8])
tree_leaves((x, (y, p)))[2] -> [0.1, 0.5, 0.9]
take(x, i) -> [2.0, -1.5, 0.0]
index_select(m, 1, i) -> [[3.0, 1.0, 2.0], [6.0, 4.0, 5.0]]
gather(m, 1, tensor([[0], [2]])) -> [[1.0], [6.0]]
take_along_dim(m, argsort(-m, dim = 1), dim = 1) -> [[3.0, 2.0, 1.0], [6.0, 5.0, 4.0]]
scatter_add(x, 0, tensor([0, 0, 2]), y) -> [1.0, 0.0, 1.0]
scatter(x, 0, tensor([0, 2]), 9.0) -> [9.0, 0.0, 9.0]
index_add(m, 0, tensor([1]), m[:1]) -> [[1.0, 2.0, 3.0], [5.0, 7.0, 9.0]]
index_fill(m, 1, tensor([0, 2]), 0.0) -> [[0.0, 2.0, 0.0], [0.0, 5.0, 0.0]]
index_copy(m, 0, tensor([1]), m[:1]) -> [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
masked_fill(x, x < 0, 0.0) -> [0.0, 0.0, 2.0]
embedding(i, a[:, :1] |> pad([0, 0, 0, 1])) -> [[0.0], [1.0], [3.0]]
cross_entropy(logits, label) -> 1.751
cross_entropy(logits, label, reduction = "none", label_smoothing = 0.1) -> [0.5076, 2.995]
nll(log_softmax(logits), label) -> 1.751
accuracy(logits, label) -> 0.5
mse(x, y) -> 5.667
l1(x, y) -> 2.333
smooth_l1(x, y) -> 1.833
huber(x, y, delta = 2.0) -> 2.667
bce_with_logits(x, f32(t)) -> 0.8405
bce(p, f32(t)) -> 1.034
kl_div(log(p), p + 0.05, reduction = "sum") -> 0.1646
tensor([[1, 2], [3, 4]]) -> [[1, 2], [3, 4]]
tensor([1, 2], dtype = f32) -> [1.0, 2.0]
zeros(2, 2) -> [[0.0, 0.0], [0.0, 0.0]]
ones(2, dtype = i64) -> [1, 1]
full([2, 2], 7) -> [[7, 7], [7, 7]]
zeros_like(x) -> [0.0, 0.0, 0.0]
ones_like(i) -> [1, 1, 1]
full_like(x, 3) -> [3.0, 3.0, 3.0]
arange(4) -> [0, 1, 2, 3]
arange(1, 2, 0.25) -> [1.0, 1.25, 1.5, 1.75]
linspace(0, 1, 5) -> [0.0, 0.25, 0.5, 0.75, 1.0]
eye(2) -> [[1.0, 0.0], [0.0, 1.0]]
one_hot(i, 3) -> [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
uniform(-1, 1, size = [3], key = key) -> [0.9092, 0.5003, -0.7716]
normal(0, 1, size = [3], key = key) -> [0.2618, -0.6323, 0.5848]
rand(3, key = key) -> [0.9546, 0.7502, 0.1142]
randn(3, key = key) -> [0.2618, -0.6323, 0.5848]
bernoulli(p, key = key) -> [false, false, true]
randint(1, 7, size = [5], key = key) -> [6, 5, 1, 1, 3]
categorical(logits, key = key) -> [0, 1]
permutation(5, key = key) -> [3, 2, 4, 1, 0]
fold_in | uniform(size = [2], key = fold_in(key, 1)) -> [0.7675, 0.8068]
layer_norm(m) -> [[-1.225, 0.0, 1.225], [-1.225, 0.0, 1.225]]
rms_norm(m) -> [[0.4629, 0.9258, 1.389], [0.7895, 0.9869, 1.184]]
group_norm(m, 1) -> [[-1.225, 0.0, 1.225], [-1.225, 0.0, 1.225]]
instance_norm(line) -> [[[-1.342, -0.4472, 0.4472, 1.342]]]
batch_norm(a, training = true) -> [[-1.0, -1.0], [1.0, 1.0]]
normalize(m) -> [[0.2673, 0.5345, 0.8018], [0.4558, 0.5698, 0.6838]]
dropout(x, 0.5, training = true, key = key) -> [0.0, 0.0, 4.0]
dropout(x, training = false) -> [-1.5, 0.0, 2.0]
reshape(m, [3, 2]) -> [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
reshape(m, [-1]) -> [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
flatten(image, 2) -> [[[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]]]
unflatten(x, 0, [3, 1]) -> [[-1.5], [0.0], [2.0]]
permute(m, [1, 0]) -> [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]
transpose(m, 0, 1) -> [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]
squeeze(line) -> [1.0, 2.0, 3.0, 4.0]
unsqueeze(x, 1) -> [[-1.5], [0.0], [2.0]]
broadcast_to(x, [2, 3]) -> [[-1.5, 0.0, 2.0], [-1.5, 0.0, 2.0]]
expand_as(x, m) -> [[-1.5, 0.0, 2.0], [-1.5, 0.0, 2.0]]
flip(m, 1) -> [[3.0, 2.0, 1.0], [6.0, 5.0, 4.0]]
roll(x, 1) -> [2.0, -1.5, 0.0]
cat([x, y]) -> [-1.5, 0.0, 2.0, 0.5, 2.0, -1.0]
cat([m, m], dim = 1) -> [[1.0, 2.0, 3.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 4.0, 5.0, 6.0]]
stack([x, y]) -> [[-1.5, 0.0, 2.0], [0.5, 2.0, -1.0]]
split(x, 2) -> ([-1.5, 0.0], [2.0])
split(x, [1, 2]) -> ([-1.5], [0.0, 2.0])
chunk(m, 3, dim = 1) -> ([[1.0], [4.0]], [[2.0], [5.0]], [[3.0], [6.0]])
pad(x, [1, 2]) -> [0.0, -1.5, 0.0, 2.0, 0.0, 0.0]
pad(x, [1, 1], mode = "reflect") -> [0.0, -1.5, 0.0, 2.0, 0.0]
tril(a) -> [[1.0, 0.0], [3.0, 4.0]]
triu(a, 1) -> [[0.0, 2.0], [0.0, 0.0]]
causal(a) -> [[1.0, -inf], [3.0, 4.0]]
diagonal(m) -> [1.0, 5.0]
diag_embed(x) -> [[-1.5, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 2.0]]
diag(x[:2]) -> [[-1.5, 0.0], [0.0, 0.0]]
trace(a) -> 5.0
repeat(x, 2) -> [-1.5, 0.0, 2.0, -1.5, 0.0, 2.0]
repeat_interleave(x, 2) -> [-1.5, -1.5, 0.0, 0.0, 2.0, 2.0]
numel(m) -> 6
len(m) -> 2
reversed | scan v in reversed(x) with s = 0.0 { yield s + v; s + v } -> [2.0, 2.0, 0.5]
meshgrid(x[:2], y) -> ([[-1.5, -1.5, -1.5], [0.0, 0.0, 0.0]], [[0.5, 2.0, -1.0], [0.5, 2.0, -1.0]])
movedim(image, 3, 0)[.., 0] -> [[[1.0]], [[2.0]], [[3.0]]]
unbind(m) -> ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
narrow(m, 1, 0, 2) -> [[1.0, 2.0], [4.0, 5.0]]
select(m, 1, 0) -> [1.0, 4.0]
rot90(a) -> [[2.0, 4.0], [1.0, 3.0]]
hstack([x, y]) -> [-1.5, 0.0, 2.0, 0.5, 2.0, -1.0]
vstack([x, y]) -> [[-1.5, 0.0, 2.0], [0.5, 2.0, -1.0]]
softmax(x) -> [0.02591, 0.1161, 0.858]
softmax(m, dim = 0) -> [[0.04743, 0.04743, 0.04743], [0.9526, 0.9526, 0.9526]]
log_softmax(x) -> [-3.653, -2.153, -0.1532]
softmin(x) -> [0.7979, 0.178, 0.02409]
scaled_dot_product_attention(a, a, b) -> [[1.972, -0.9717], [2.0, -0.9999]]
scaled_dot_product_attention(a, a, b, is_causal = true) -> [[0.0, 1.0], [2.0, -0.9999]]
rotary_embedding(a) -> [[1.0, 2.0], [-1.745, 4.686]]
matmul(m, x) -> [4.5, 6.0]
dot(x, y) -> -2.75
outer(x, y) -> [[-0.75, -3.0, 1.5], [0.0, 0.0, 0.0], [1.0, 4.0, -2.0]]
inner(a, b) -> [[2.0, 0.0], [4.0, 2.0]]
tensordot(m, m, dims = 2) -> 91.0
addmm(a, a, b) -> [[5.0, 1.0], [11.0, 3.0]]
addmv(x[:2], a, x[:2]) -> [-3.0, -4.5]
baddbmm(image[0], image[0], image[0])[:, 0] -> [[31.0, 38.0, 45.0]]
addbmm(image[0, 0], image[0], image[0])[0] -> [31.0, 38.0, 45.0]
addr(a, x[:2], y[:2]) -> [[0.25, -1.0], [3.0, 4.0]]
kron(a, b) -> [[0.0, 1.0, 0.0, 2.0], [2.0, -1.0, 4.0, -2.0], [0.0, 3.0, 0.0, 4.0], [6.0, -3.0, 8.0, -4.0]]
bilinear(x[:2], y[:2], image[0, :, :2, :2]) -> [-6.75]
linear(x, m) -> [4.5, 6.0]
einsum("ij,j->i", m, x) -> [4.5, 6.0]
codes(x, pow2(4)) -> ([-8, 0, 8], 0.25)
int8_rows(x) -> ([-95, 0, 127], [0.01575])
"""


class Example:
    """One line: the operation it is for, the expression, and its value as text (empty: not known yet)."""

    def __init__(self, line: str):
        head, bar, rest = line.partition(" | ")
        self.text, _, self.value = (rest if bar else line).partition(" -> ")
        self.of = head if bar else re.match(r"\w+", line).group()

    def line(self) -> str:
        """The line as the table has it."""
        head = "" if re.match(rf"{self.of}\b", self.text) else f"{self.of} | "
        return f"{head}{self.text}" + (f" -> {self.value}" if self.value else "")


def examples() -> list[Example]:
    return [Example(line) for line in TEXT.strip().splitlines()]
