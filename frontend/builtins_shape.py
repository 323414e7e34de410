"""Operations that move data without computing: reshaping, joining, cutting, padding, gathering."""
from __future__ import annotations

from ..compiler.ir import Dim, TensorType, Value, i64, u64
from ..compiler.ir.dims import divide, divide_exact, maybe_equal, product
from .builtins import builtin
from .tensors import as_tensor, common_dtype, is_weak
from .values import RangeValue, Reversed, Undecidable, describe, type_text


@builtin("reshape", "view")
def reshape(cx, x, shape):
    """The same elements under another shape; one size may be -1."""
    x = cx.tensor(x)
    t = x.type
    sizes = [cx.int(n, "shape") for n in (shape if isinstance(shape, list | tuple) else [shape])]
    free = [i for i, n in enumerate(sizes) if isinstance(n, int) and n == -1]
    if len(free) > 1:
        cx.fail("only one size can be -1", "shape")
    for n in sizes:
        if isinstance(n, int) and n < -1:
            cx.fail(f"a size cannot be negative: {n}", "shape")
    if free:
        rest = product([n for i, n in enumerate(sizes) if i != free[0]])
        if isinstance(rest, int) and rest == 0:
            cx.fail("-1 cannot be worked out beside a size of 0", "shape")
        n = divide_exact(t.numel, rest)
        if n is None:
            if isinstance(rest, int) and isinstance(t.numel, int):
                cx.fail(f"cannot reshape {type_text(t)} to [{', '.join(map(str, sizes))}]: {t.numel} elements do not divide by {rest}", "shape")
            n = divide(t.numel, rest)
        sizes[free[0]] = n
    if not maybe_equal(t.numel, product(sizes)):
        cx.fail(f"cannot reshape {type_text(t)} to [{', '.join(map(str, sizes))}]: {t.numel} elements against {product(sizes)}", "shape",
                hint="-1 stands for the size that fits")
    return cx.b.reshape(x, sizes)


@builtin()
def flatten(cx, x, start_dim=0, end_dim=-1):
    """Dims start_dim .. end_dim as one."""
    x = cx.tensor(x)
    if x.type.rank == 0:
        return cx.b.reshape(x, (1,))
    a, z = cx.dim(start_dim, x.type.rank, "start_dim"), cx.dim(end_dim, x.type.rank, "end_dim")
    if a > z:
        cx.fail(f"`start_dim` {a} is behind `end_dim` {z}", "start_dim")
    s = x.type.shape
    return cx.b.reshape(x, (*s[:a], product(s[a:z + 1]), *s[z + 1:]))


@builtin()
def unflatten(cx, x, dim, sizes):
    """One dim as several."""
    x = cx.tensor(x)
    d = cx.dim(dim, x.type.rank)
    s = x.type.shape
    return reshape(cx, x, [*s[:d], *(sizes if isinstance(sizes, list | tuple) else [sizes]), *s[d + 1:]])


@builtin()
def permute(cx, x, dims):
    """Dims in another order."""
    x = cx.tensor(x)
    perm = [cx.dim(d, x.type.rank, "dims") for d in (dims if isinstance(dims, list | tuple) else [dims])]
    if sorted(perm) != list(range(x.type.rank)):
        cx.fail(f"`dims` is no order of the {x.type.rank} dimensions of {type_text(x.type)}", "dims")
    return cx.b.transpose(x, perm)


@builtin("transpose", "swapaxes")
def transpose(cx, x, dim0, dim1):
    """Two dims swapped."""
    x = cx.tensor(x)
    if x.type.rank == 0 and all(cx.dim(d, 1) == 0 for d in (dim0, dim1)):
        return x
    a, c = cx.dim(dim0, x.type.rank, "dim0"), cx.dim(dim1, x.type.rank, "dim1")
    perm = list(range(x.type.rank))
    perm[a], perm[c] = c, a
    return cx.b.transpose(x, perm)


@builtin()
def squeeze(cx, x, dim=None):
    """Without dims of size 1 (all of them, or `dim`)."""
    x = cx.tensor(x)
    s = x.type.shape
    dims = [d for d, n in enumerate(s) if isinstance(n, int) and n == 1] if dim is None else cx.dims(dim, x.type.rank)
    return cx.b.reshape(x, [n for d, n in enumerate(s) if not (d in dims and isinstance(n, int) and n == 1)])


@builtin("unsqueeze", "expand_dims")
def unsqueeze(cx, x, dim):
    """With a dim of size 1 before `dim`."""
    x = cx.tensor(x)
    d = cx.dim(dim, x.type.rank + 1)
    s = x.type.shape
    return cx.b.reshape(x, (*s[:d], 1, *s[d:]))


@builtin("broadcast_to", "expand")
def broadcast_to(cx, x, shape):
    """Repeated along dims of size 1 and new leading dims; -1 keeps a size."""
    x = cx.tensor(x)
    sizes = [cx.int(n, "shape") for n in (shape if isinstance(shape, list | tuple) else [shape])]
    lead = len(sizes) - x.type.rank
    if lead < 0:
        cx.fail(f"cannot broadcast {type_text(x.type)} to fewer dimensions", "shape")
    out = tuple(x.type.shape[i - lead] if isinstance(n, int) and n == -1 and i >= lead else n for i, n in enumerate(sizes))
    return cx.b.broadcast(x, out)


@builtin()
def expand_as(cx, x, y):
    """Broadcast to y's shape."""
    return cx.b.broadcast(cx.tensor(x), cx.tensor(y, "y").type.shape)


@builtin()
def flip(cx, x, dim):
    """Reversed along dims."""
    x = cx.tensor(x)
    return cx.op("tensor.reverse", [x], {"dims": cx.dims(dim, x.type.rank)})


def cut(b, x: Value, d: int, start, limit, stride: int = 1) -> Value:
    """x[.., start:limit:stride, ..] along dim d."""
    n = x.type.rank
    lo, hi, st = [0] * n, list(x.type.shape), [1] * n
    lo[d], hi[d], st[d] = start, limit, stride
    if start == 0 and limit == x.type.shape[d] and stride == 1:
        return x
    return b.op("tensor.slice", [x], {"start": lo, "limit": hi, "stride": st}).result


@builtin()
def roll(cx, x, shifts, dim=None):
    """Elements moved along dim, those leaving one end entering at the other."""
    b = cx.b
    x = cx.tensor(x)
    shape = x.type.shape
    if dim is None:
        x = b.reshape(x, (x.type.numel,))
        pairs = [(0, cx.int(shifts, "shifts"))]
    else:
        dims = dim if isinstance(dim, list | tuple) else [dim]
        many = shifts if isinstance(shifts, list | tuple) else [shifts]
        if len(dims) != len(many):
            cx.fail("`roll` needs one shift per dim", "shifts")
        pairs = [(cx.dim(d, x.type.rank), cx.int(s, "shifts")) for d, s in zip(dims, many)]
    for d, s in pairs:
        n = x.type.shape[d]
        k = s % n if isinstance(n, int) and n else 0 if isinstance(n, int) else s
        if isinstance(k, int) and k == 0:
            continue
        x = b.op("tensor.concat", [cut(b, x, d, n - k, n), cut(b, x, d, 0, n - k)], {"dim": d}).result
    return b.reshape(x, shape)


def _tensors(cx, xs, arg: str = "tensors") -> list[Value]:
    if isinstance(xs, Value) and xs.type.rank and isinstance(xs.type.shape[0], int):
        from .indexing import static_part
        return [static_part(cx.el, xs, 0, i, cx.span) for i in range(xs.type.shape[0])]
    if not isinstance(xs, list | tuple) or not xs or not all(isinstance(v, Value) or is_weak(v) for v in xs):
        cx.fail(f"`{cx.name}` joins a list of tensors, got {describe(xs)}", arg, hint=f"`{cx.name}([a, b])`")
    dtype = common_dtype(list(xs))
    return [cx.b.cast(as_tensor(cx.b, v, dtype), dtype) for v in xs]


@builtin("cat", "concat", "concatenate")
def cat(cx, tensors, dim=0):
    """Tensors joined along dim."""
    xs = _tensors(cx, tensors)
    if any(x.type.rank > 1 for x in xs):
        xs = [x for x in xs if x.type.shape != (0,)]           # PyTorch: an empty vector goes with everything
    d = cx.dim(dim, xs[0].type.rank)
    for x in xs[1:]:
        bad = x.type.rank != xs[0].type.rank or any(k != d and not maybe_equal(p, q) for k, (p, q) in enumerate(zip(xs[0].type.shape, x.type.shape)))
        if bad:
            a, c = xs[0].type, x.type
            other = [k for k in range(a.rank) if a.rank == c.rank and k != d and all(maybe_equal(p, q) for j, (p, q) in enumerate(zip(a.shape, c.shape)) if j != k)]
            cx.fail(f"cannot join {type_text(a)} and {type_text(c)} along dimension {d}: the other dimensions differ", "tensors",
                    hint=f"they fit along another one: `dim = {other[0]}`" if other else None)
    return xs[0] if len(xs) == 1 else cx.op("tensor.concat", xs, {"dim": d})


@builtin()
def stack(cx, tensors, dim=0):
    """Tensors of one shape joined along a new dim."""
    xs = _tensors(cx, tensors)
    d = cx.dim(dim, xs[0].type.rank + 1)
    for x in xs[1:]:
        if x.type.shape != xs[0].type.shape:
            cx.fail(f"cannot stack {type_text(xs[0].type)} and {type_text(x.type)}: the shapes differ", "tensors")
    s = xs[0].type.shape
    parts = [cx.b.reshape(x, (*s[:d], 1, *s[d:])) for x in xs]
    return parts[0] if len(parts) == 1 else cx.op("tensor.concat", parts, {"dim": d})


@builtin()
def split(cx, x, sizes=None, dim=0):
    """A tuple of parts along dim, each of `sizes` (the last may be smaller), or of the sizes in a list.  Of a key: two new keys, or
    `sizes` of them."""
    b = cx.b
    x = cx.tensor(x)
    t = x.type
    if t.dtype is u64 and t.rank == 0:
        n = 2 if sizes is None else cx.int(sizes, "sizes")
        keys = b.broadcast(x, (n,))
        return b.op("random.fold_in", [keys, b.iota((n,), 0, i64)]).result
    if sizes is None:
        cx.fail("`split` needs the size of a part", hint="`split(x, size, dim = -1)`; `chunk(x, n)` makes n parts")
    d = cx.dim(dim, t.rank)
    n = t.shape[d]
    if isinstance(sizes, list | tuple):
        parts = [cx.int(s, "sizes") for s in sizes]
        total = sum(parts[1:], parts[0]) if parts else 0
        if not maybe_equal(total, n):
            cx.fail(f"the sizes add up to {total}, but dimension {d} of {type_text(t)} is {n}", "sizes")
    else:
        size = cx.int(sizes, "sizes")
        if isinstance(size, int) and size <= 0:
            cx.fail("a part's size has to be positive", "sizes")
        k = divide_exact(n, size)
        if isinstance(k, int):
            parts = [size] * k
        elif isinstance(n, int) and isinstance(size, int):
            parts = [size] * (n // size) + [n % size]
        else:
            cx.fail(f"cannot tell how many parts of size {size} dimension {d} of {type_text(t)} has", "sizes")
    return _parts(b, x, d, parts)


def _parts(b, x: Value, d: int, sizes: list) -> tuple:
    out, at = [], 0
    for s in sizes:
        out.append(cut(b, x, d, at, at + s))
        at = at + s
    return tuple(out)


@builtin()
def chunk(cx, x, chunks, dim=0):
    """A tuple of parts along dim, as even as possible."""
    x = cx.tensor(x)
    d = cx.dim(dim, x.type.rank)
    n, k = x.type.shape[d], cx.int(chunks, "chunks")
    if not isinstance(k, int) or k <= 0:
        cx.fail("the number of parts has to be positive and known", "chunks")
    size = divide_exact(n, k)
    if size is None:
        if not isinstance(n, int):
            size = divide(n, k)
        else:
            size = -(-n // k)
            return _parts(cx.b, x, d, [min(size, n - i) for i in range(0, n, size)])
    return _parts(cx.b, x, d, [size] * k)


@builtin()
def pad(cx, x, pad, mode="constant", value=0):
    """More elements around x: `pad` lists before and after for the last dim, then for the one before it, as in PyTorch.  mode:
    "constant", "reflect", "replicate", "circular"."""
    b = cx.b
    x = cx.tensor(x)
    mode = cx.choice(mode, "mode", "constant", "reflect", "replicate", "circular")
    amounts = [cx.int(p, "pad") for p in (pad if isinstance(pad, list | tuple) else [pad])]
    if len(amounts) % 2 or len(amounts) > 2 * x.type.rank:
        cx.fail("`pad` lists two amounts for each of the last dimensions: [left, right, top, bottom ...]", "pad")
    rank = x.type.rank
    if mode == "constant":
        low, high = [0] * rank, [0] * rank
        for i in range(0, len(amounts), 2):
            d = rank - 1 - i // 2
            low[d], high[d] = amounts[i], amounts[i + 1]
        v = as_tensor(b, value, x.type.dtype)
        return b.op("tensor.pad", [x, b.cast(v, x.type.dtype)], {"low": low, "high": high, "interior": [0] * rank}).result
    for i in range(0, len(amounts), 2):
        d = rank - 1 - i // 2
        lo, hi = amounts[i], amounts[i + 1]
        crop = [max(-v, 0) if isinstance(v, int) else 0 for v in (lo, hi)]
        lo, hi = (max(v, 0) if isinstance(v, int) else v for v in (lo, hi))
        n = x.type.shape[d]
        if any(crop) and isinstance(n, int) and sum(crop) > n:
            cx.fail(f"`pad` takes away more than the {n} elements of dimension {d}", "pad")
        if mode == "circular" and any(crop):                   # what is left goes round; the other modes take away last
            x, n, crop = cut(b, x, d, crop[0], n - crop[1]), n - sum(crop), [0, 0]
        limit = n - 1 if mode == "reflect" else n
        if isinstance(lo, int) and isinstance(hi, int) and isinstance(n, int) and mode != "replicate" and max(lo, hi) > limit:
            cx.fail(f'padding by {max(lo, hi)} with mode "{mode}" needs more than {n} elements', "pad")
        parts = []
        if mode == "circular":
            parts = [cut(b, x, d, n - lo, n), x, cut(b, x, d, 0, hi)]
        elif mode == "reflect":
            flipped = [b.op("tensor.reverse", [p], {"dims": [d]}).result for p in (cut(b, x, d, 1, lo + 1), cut(b, x, d, n - 1 - hi, n - 1))]
            parts = [flipped[0], x, flipped[1]]
        else:
            def edge(k, at, d=d, n=n, x=x):
                shape = list(x.type.shape)
                shape[d] = k
                return b.broadcast(cut(b, x, d, at, at + 1), shape)
            parts = [edge(lo, 0), x, edge(hi, n - 1)]
        sizes = [lo, n, hi]
        parts = [p for p, s in zip(parts, sizes) if not (isinstance(s, int) and s == 0)]
        x = parts[0] if len(parts) == 1 else b.op("tensor.concat", parts, {"dim": d}).result
        if any(crop):                                          # negative amounts take away from what padding the others gave
            x = cut(b, x, d, crop[0], x.type.shape[d] - crop[1])
    return x


# ---- repeating, cutting ------------------------------------------------------------------------------------------------

@builtin("repeat", "tile")
def repeat(cx, x, sizes):
    """x repeated `sizes` times along each dim (torch's tensor.repeat, NumPy's tile)."""
    b = cx.b
    x = cx.tensor(x)
    times = [cx.int(n, "sizes") for n in (sizes if isinstance(sizes, list | tuple) else [sizes])]
    shape = [1] * (len(times) - x.type.rank) + list(x.type.shape)
    times = [1] * (len(shape) - len(times)) + times
    wide: list = []
    full: list = []
    for n, k in zip(shape, times):
        wide += [1, n]
        full += [k, n]
    return b.reshape(b.broadcast(b.reshape(x, wide), full), [k * n if not isinstance(n, Dim) else n * k for k, n in zip(times, shape)])


@builtin()
def repeat_interleave(cx, x, repeats, dim=None):
    """Each slice along dim repeated; each element, without dim."""
    b = cx.b
    x = cx.tensor(x)
    if dim is None:
        x, dim = b.reshape(x, (x.type.numel,)), 0
    d, k = cx.dim(dim, x.type.rank), cx.int(repeats, "repeats")
    s = x.type.shape
    y = b.broadcast(b.reshape(x, (*s[:d + 1], 1, *s[d + 1:])), (*s[:d + 1], k, *s[d + 1:]))
    return b.reshape(y, (*s[:d], s[d] * k, *s[d + 1:]))


@builtin()
def numel(cx, x):
    """How many elements x has."""
    return cx.tensor(x).type.numel


@builtin("len")
def len_(cx, x):
    """The length of a list, or of a tensor's first dim."""
    if isinstance(x, list | tuple | str):
        return len(x)
    if isinstance(x, RangeValue) and x.is_static:
        return x.stop - x.start
    x = cx.tensor(x)
    if not x.type.rank:
        cx.fail("a scalar has no length", "x")
    return x.type.shape[0]


@builtin("reversed")
def reversed_(cx, x):
    """For `scan`: from the end."""
    if isinstance(x, list | tuple):
        return x[::-1]
    return Reversed(x)


@builtin()
def meshgrid(cx, *xs, indexing="ij"):
    """Of vectors, tensors of all combinations: the i-th varies along dim i; with indexing = "xy" the first two dims are swapped."""
    b = cx.b
    if len(xs) == 1 and isinstance(xs[0], list | tuple):
        xs = xs[0]
    swap = cx.choice(indexing, "indexing", "ij", "xy") == "xy" and len(xs) > 1
    vs = [cx.tensor(x) for x in xs]
    for v in vs:
        if v.type.rank > 1:
            cx.fail(f"`meshgrid` takes vectors, got {type_text(v.type)}")
    vs = [b.reshape(v, (1,)) if not v.type.rank else v for v in vs]
    at = [1, 0, *range(2, len(vs))] if swap else list(range(len(vs)))
    shape = [vs[at[i]].type.shape[0] for i in range(len(vs))]
    return tuple(b.broadcast(v, shape, [at[i]]) for i, v in enumerate(vs))


@builtin()
def movedim(cx, x, source, destination):
    """Dims moved to other places, the others in order."""
    x = cx.tensor(x)
    src, dst = ([cx.dim(d, x.type.rank, a) for d in (v if isinstance(v, list | tuple) else [v])] for v, a in ((source, "source"), (destination, "destination")))
    if len(src) != len(dst) or len(set(src)) != len(src) or len(set(dst)) != len(dst):
        cx.fail("`source` and `destination` list as many different dimensions", "source")
    rest = iter(d for d in range(x.type.rank) if d not in src)
    return cx.b.transpose(x, [src[dst.index(d)] if d in dst else next(rest) for d in range(x.type.rank)])


@builtin()
def unbind(cx, x, dim=0):
    """A tuple of the slices along dim, which goes."""
    from .indexing import static_part
    x = cx.tensor(x)
    d = cx.dim(dim, x.type.rank)
    n = x.type.shape[d]
    if not isinstance(n, int):
        raise Undecidable
    return tuple(static_part(cx.el, x, d, i, cx.span) for i in range(n))


@builtin()
def narrow(cx, x, dim, start, length):
    """`length` elements along dim, from start (which may be known only at run time)."""
    b = cx.b
    x = cx.tensor(x)
    d = cx.dim(dim, x.type.rank)
    if isinstance(start, Value):
        if start.type.rank or not start.type.dtype.is_int:
            cx.fail(f"`start` of `narrow` is a whole number, got {type_text(start.type)}", "start")
        at = b.cast(start, i64)
        if isinstance(x.type.shape[d], int):
            at = b.select(b.compare("lt", at, 0), b.add(at, x.type.shape[d]), at)
        sizes = list(x.type.shape)
        sizes[d] = cx.int(length, "length")
        starts = [at if k == d else b.constant(0, TensorType(i64)) for k in range(x.type.rank)]
        return b.op("tensor.dynamic_slice", [x, *starts], {"sizes": sizes}).result
    n, lo, k = x.type.shape[d], cx.int(start, "start"), cx.int(length, "length")
    if all(isinstance(v, int) for v in (n, lo, k)):
        lo = lo + n if lo < 0 else lo
        if not 0 <= lo <= lo + k <= n:
            cx.fail(f"{k} elements from {lo} do not lie in dimension {d} of {type_text(x.type)}", "length")
    return cut(cx.b, x, d, lo, lo + k)


@builtin()
def select(cx, x, dim, index):
    """The slice at `index` along dim, which goes."""
    from .indexing import static_part
    x = cx.tensor(x)
    d = cx.dim(dim, x.type.rank)
    n, i = x.type.shape[d], cx.int(index, "index")
    if isinstance(n, int) and isinstance(i, int) and not -n <= i < n:
        cx.fail(f"index {i} is out of range for dimension {d} of {type_text(x.type)}", "index")
    return static_part(cx.el, x, d, i + n if isinstance(i, int) and i < 0 else i, cx.span)


@builtin()
def rot90(cx, x, k=1, dims=(0, 1)):
    """Turned k times by a quarter, from the first of two dims towards the second."""
    b = cx.b
    x = cx.tensor(x)
    if not isinstance(dims, list | tuple) or len(dims) != 2:
        cx.fail("`dims` names the two dimensions of the plane", "dims")
    i, j = (cx.dim(d, x.type.rank, "dims") for d in dims)
    turn = cx.int(k, "k") % 4
    perm = list(range(x.type.rank))
    perm[i], perm[j] = j, i
    if turn == 2:
        return b.op("tensor.reverse", [x], {"dims": sorted([i, j])}).result
    if turn == 1:
        return b.transpose(b.op("tensor.reverse", [x], {"dims": [j]}).result, perm)
    return b.op("tensor.reverse", [b.transpose(x, perm)], {"dims": [j]}).result if turn else x


def _joined(name: str, doc: str, rank: int, dim: int):
    def run(cx, tensors):
        b = cx.b
        xs = _tensors(cx, tensors)
        xs = [v if v.type.rank >= rank else b.reshape(v, [1] * (rank - v.type.rank) + list(v.type.shape)) for v in xs]
        return cat(cx, xs, min(dim, xs[0].type.rank - 1))
    run.__doc__ = doc
    builtin(name)(run)


_joined("hstack", "Tensors joined along dim 1 (vectors: along dim 0).", 1, 1)
_joined("vstack", "Tensors joined along dim 0, vectors as rows.", 2, 0)
