"""Direct contractions of windows against NumPy in f64: strides, dilation, groups, 1d to 3d, all three passes of a convolution, blocks of
k, partial tiles; the same bits for any number of threads; nothing outside the result is written."""
import ctypes
import itertools

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from engram.codegen.cpu import direct, direct_code, gemm
from engram.codegen.cpu.compile import Library, compile_many
from engram.codegen.cpu.target import _describe
from engram.compiler.ir.core import Block, Op
from engram.compiler.ir.types import BufferType, f32, f64

MACHINES = ["", "avx2", "generic"]
DTYPES = {"f32": (f32, np.float32), "f64": (f64, np.float64)}


def op_of(arrays, text, dtype, accumulate=False) -> Op:
    """loop.contract over buffers laid out as the arrays (out, lhs, rhs) are."""
    types = [BufferType(dtype, a.shape, tuple(s // a.itemsize for s in a.strides)) for a in arrays]
    out, lhs, rhs = text
    return Op("loop.contract", list(Block(types).args), {"out": out, "lhs": lhs, "rhs": rhs, "accumulate": accumulate})


def run(arrays, text, name="f32", machine="", accumulate=False):
    """The contraction into arrays[0] by 1, 2, 3 and 4 threads, one after the other: any partition without barriers allows that."""
    target = _describe(machine)
    if machine and target.name != machine:
        pytest.skip(f"this processor cannot stand in for {machine}")
    op = op_of(arrays, text, DTYPES[name][0], accumulate)
    out, start, results = arrays[0], arrays[0].copy(), []
    raw = np.zeros(gemm.scratch_bytes(target, name) + 64, np.uint8)
    scratch = -(-raw.ctypes.data // 64) * 64
    for threads in (1, 2, 3, 4):
        p = direct.plan(op, target, threads)
        assert p is not None
        symbol = direct_code.direct_name(p, threads)
        code = Library(compile_many([direct_code.direct_module(p, target, threads).text()], target), [symbol], target=target)
        call = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, *[ctypes.c_void_p] * 4)(code.address(symbol))
        out[...] = start
        a, b = arrays[2:0:-1] if p.swapped else arrays[1:]
        for tid in range(threads):
            call(tid, threads, scratch, a.ctypes.data, b.ctypes.data, out.ctypes.data)
        results.append(out.tobytes())
    assert len(set(results)) == 1
    wide = [a.astype(np.longdouble) for a in arrays[1:]]
    equation = f"{text[1]},{text[2]}->{text[0]}"
    start = start if accumulate else np.zeros(1)
    want = np.einsum(equation, *wide) + start
    depth = np.prod([n for x, n in zip(text[1], arrays[1].shape) if x not in text[0]])
    bound = (depth + 2) * np.finfo(DTYPES[name][1]).eps * (np.einsum(equation, *map(abs, wide)) + np.abs(start))
    assert np.all(np.abs(out - want) <= bound + 1e-30)


def windows(x, size, stride, dilation):
    """[.., o.., k..], as tensor.windows."""
    n = len(size)
    at = x.strides[-n:]
    shape = [(m - d * (k - 1) - 1) // s + 1 for m, k, s, d in zip(x.shape[-n:], size, stride, dilation)]
    strides = (*x.strides[:-n], *(a * s for a, s in zip(at, stride)), *(a * d for a, d in zip(at, dilation)))
    return np.lib.stride_tricks.as_strided(x, (*x.shape[:-n], *shape, *size), strides, writeable=False)


CASES = [  # samples, channels in, out, spatial sizes, kernel, stride, dilation
    (3, 3, 32, (9, 11), (3, 3), (1, 1), (1, 1)),
    (2, 32, 64, (13, 13), (3, 3), (1, 1), (1, 1)),
    (2, 1, 32, (28, 30), (5, 5), (1, 1), (1, 1)),
    (2, 5, 40, (19, 17), (3, 2), (2, 3), (1, 2)),
    (2, 30, 20, (7, 9), (3, 3), (1, 1), (2, 1)),
    (3, 7, 16, (50,), (4,), (2,), (3,)),
    (1, 3, 33, (5, 6, 8), (2, 3, 3), (1, 1, 2), (1, 1, 1)),
    (1, 300, 17, (5, 5), (3, 3), (1, 1), (1, 1)),
    (1, 2, 16, (4, 120), (3, 3), (1, 1), (1, 1)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_and_weight_gradient(case):
    batch, ci, co, space, kernel, stride, dilation = case
    rng, n = np.random.default_rng(0), len(space)
    x = windows(rng.standard_normal((batch, ci, *space), np.float32), kernel, stride, dilation)
    w = rng.standard_normal((co, ci, *kernel), np.float32)
    places, taps = "yxz"[:n], "jkl"[:n]
    y = np.full((batch, co, *x.shape[2:2 + n]), np.nan, np.float32)
    run([y, w, x], (f"bo{places}", f"oc{taps}", f"bc{places}{taps}"))
    dw = np.full(w.shape, np.nan, np.float32)
    run([dw, y, x], (f"oc{taps}", f"bo{places}", f"bc{places}{taps}"))


@pytest.mark.parametrize(("name", "machine"), [*itertools.product(["f64"], MACHINES), ("f32", "avx2"), ("f32", "generic")])
def test_other_machines_and_f64(name, machine):
    rng, kind = np.random.default_rng(1), DTYPES[name][1]
    x = windows(rng.standard_normal((2, 6, 12, 11)).astype(kind), (3, 3), (1, 1), (1, 1))
    w = rng.standard_normal((27, 6, 3, 3)).astype(kind)
    y = np.zeros((2, 27, *x.shape[2:4]), kind)
    run([y, w, x], ("boyx", "ocjk", "bcyxjk"), name, machine)
    run([np.zeros(w.shape, kind), y, x], ("ocjk", "boyx", "bcyxjk"), name, machine)


@pytest.mark.parametrize("deep", [32, 2048])
def test_blocks_of_k_accumulation_and_groups(monkeypatch, deep):
    """Blocks of k go on from what is in C; groups are batch dims; C with the channels last is stored as it is."""
    monkeypatch.setattr(direct, "DEEP", deep)
    rng = np.random.default_rng(2)
    x = windows(rng.standard_normal((2, 3, 10, 9, 9), np.float32), (3, 3), (1, 1), (1, 1))
    w = rng.standard_normal((3, 35, 10, 3, 3), np.float32)
    y = rng.standard_normal((2, 3, 35, 7, 7), np.float32)
    for accumulate in (False, True):
        run([y, w, x], ("bgoyx", "gocjk", "bgcyxjk"), accumulate=accumulate)
    last = np.zeros((2, 3, 7, 7, 35), np.float32)
    run([last, w, x], ("bgyxo", "gocjk", "bgcyxjk"))
    run([rng.standard_normal(w.shape, np.float32), y, x], ("gocjk", "bgoyx", "bgcyxjk"), accumulate=True)


def test_nothing_outside_the_result_is_written():
    rng = np.random.default_rng(3)
    x = windows(rng.standard_normal((2, 4, 9, 9), np.float32), (3, 3), (1, 1), (1, 1))
    w = rng.standard_normal((19, 4, 3, 3), np.float32)
    memory = np.full((2, 21, 9, 7), 5, np.float32)
    run([memory[:, 1:20, 1:8], w, x], ("boyx", "ocjk", "bcyxjk"))
    memory[:, 1:20, 1:8] = 5
    assert (memory == 5).all()


def test_plain_products_and_single_channels_are_left_to_others():
    target, rng = _describe(""), np.random.default_rng(4)
    a, b = rng.standard_normal((64, 64), np.float32), rng.standard_normal((64, 64), np.float32)
    assert direct.plan(op_of([a, a, b], ("mn", "mk", "kn"), f32), target, 2) is None
    x = windows(rng.standard_normal((4, 8, 20, 20), np.float32), (3, 3), (1, 1), (1, 1))
    depthwise = op_of([np.zeros((4, 8, 18, 18), np.float32), rng.standard_normal((8, 3, 3), np.float32), x], ("bcyx", "cjk", "bcyxjk"), f32)
    assert direct.plan(depthwise, target, 2) is None
