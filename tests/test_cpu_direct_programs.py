"""Convolutions of programs, forward and both gradients, as direct contractions: the front end's ops through all passes to machine code, beside the interpreter.

Tolerance: both add up `depth` products in some order, so they differ by at most depth * eps times the sum of the products' sizes."""
import engram as eg
import numpy as np
import pytest

pytest.importorskip("llvmlite")

from engram.codegen.cpu import direct, emit

CASES = [  # samples, channels in, out, sizes, kernel, options
    (2, 3, 16, (9, 11), (3, 3), {}),
    (2, 16, 17, (7, 6), (3, 3), {"padding": 1}),
    (2, 4, 20, (11, 9), (3, 3), {"stride": 2, "padding": 1}),
    (2, 5, 16, (10, 9), (3, 2), {"stride": [1, 2], "dilation": [2, 1]}),
    (1, 4, 32, (8, 8), (5, 5), {"padding": 2}),
    (3, 8, 16, (30,), (4,), {"stride": 3}),
    (1, 2, 16, (5, 4, 6), (2, 3, 2), {"padding": [1, 0, 1]}),
]


def program(case) -> str:
    batch, ci, co, space, kernel, options = case
    n = len(space)
    call = f"conv{n}d(x, w, {', '.join(f'{k} = {v}' for k, v in options.items())})" if options else f"conv{n}d(x, w)"
    x, w = (f"f32[{', '.join(map(str, s))}]" for s in ((batch, ci, *space), (co, ci, *kernel)))
    bias = f"b[:, {', '.join(['none'] * n)}]"
    return f"""
fn forward(x: {x}, w: {w}, b: f32[{co}]) {{ relu({call} + {bias}) }}
fn all(x: {x}, w: {w}, b: f32[{co}], g: f32[{', '.join(map(str, output(case)))}]) {{
  let back = vjp(fn (x, w, b) {{ relu({call} + {bias}) }}, x, w, b)
  let d = back[1](g)
  (back[0], d[0], d[1], d[2])
}}
"""


def output(case) -> tuple[int, ...]:
    batch, _, co, space, kernel, options = case

    def each(name: str, default: int) -> list[int]:
        v = options.get(name, default)
        return v if isinstance(v, list) else [v] * len(space)
    return (batch, co, *((s + 2 * p - d * (k - 1) - 1) // t + 1 for s, k, t, d, p in zip(space, kernel, each("stride", 1), each("dilation", 1), each("padding", 0))))


def arguments(case):
    (batch, ci, co, space, kernel, _), rng = case, np.random.default_rng(11)
    return [rng.standard_normal(s).astype(np.float32) for s in ((batch, ci, *space), (co, ci, *kernel), (co,), output(case))]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_gradients(case):
    args, text = arguments(case), program(case)
    want = eg.compile(text, backend="interp").all(*args)
    sizes = eg.compile(text.replace("relu(", "abs("), backend="interp").all(*[np.abs(a) for a in args])     # the sums of the products' sizes
    _, _, co, _, kernel, _ = case
    depths = [np.prod(args[1].shape[1:]), co * np.prod(kernel), np.prod([output(case)[0], *output(case)[2:]]), np.prod([output(case)[0], *output(case)[2:]])]
    results = [eg.compile(text, threads=n).all(*args) for n in (1, 2, 4)]
    for got in results[1:]:
        for a, b in zip(got, results[0]):
            assert a.tobytes() == b.tobytes()                # whatever the number of threads
    for got, w, size, depth in zip(results[0], want, sizes, depths):
        assert np.all(np.abs(got - w) <= (depth + 3) * np.finfo(np.float32).eps * size)
    np.testing.assert_array_equal(eg.compile(text).forward(*args[:3]), results[0][0])


def test_they_are_direct(monkeypatch, tmp_path):
    """One contraction reads windows for the forward pass, one for each gradient: none is left to the packed GEMM."""
    done: list[str] = []

    def counted(op, target, team):
        p = direct.plan(op, target, team)
        if max(len(op.attrs[s]) for s in ("lhs", "rhs")) > 3:
            done.append("other" if p is None else "direct")
        return p
    monkeypatch.setattr(emit, "plan_direct", counted)
    monkeypatch.setenv("ENGRAM_CACHE_DIR", str(tmp_path))
    case = (2, 16, 24, (13, 12), (3, 3), {"padding": 1})
    eg.compile(program(case)).all(*arguments(case))
    assert done.count("direct") >= 3 and "other" not in done
