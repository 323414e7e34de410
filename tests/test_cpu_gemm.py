"""The generated GEMM against NumPy in f64: odd sizes, all layouts, batches, accumulation; the same bits for any thread count."""
import ctypes
import itertools

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from engram.codegen.cpu import gemm
from engram.codegen.cpu.gemm_base import FEW
from engram.codegen.cpu.target import _describe

NUMPY = {"f32": np.float32, "f64": np.float64, "i32": np.int32}
MACHINES = ["", "avx2", "generic"]


class Gemm:
    """Runs the function of one dtype on one machine description; threads take their turns one after the other, which any
    partition without barriers allows."""

    def __init__(self, dtype: str, machine: str):
        target = _describe(machine)
        if machine and target.name != machine:
            pytest.skip(f"this processor cannot stand in for {machine}")
        self.dtype = dtype.split("/")[0]
        address = gemm.gemm_address(dtype + FEW, target)
        self.call = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)(address)
        self.raw = np.zeros(gemm.scratch_bytes(target, dtype) + 64, np.uint8)
        self.scratch = -(-self.raw.ctypes.data // 64) * 64

    def __call__(self, a, b, c, accumulate=False, threads=1, tables=None):
        """a: [b0, b1, m, k], b: [b0, b1, k, n], c: [b0, b1, m, n], any strides."""
        args = np.zeros(len(gemm.ARGS), np.int64)

        def put(**values):
            for name, v in values.items():
                args[gemm.ARG_INDEX[name]] = v
        put(epilogue=0, discard=0, streams=0, batch0=c.shape[0], batch1=c.shape[1], m=c.shape[2], n=c.shape[3], k=a.shape[3], accumulate=accumulate)
        for x, array in (("a", a), ("b", b), ("c", c)):
            s = [v // array.itemsize for v in array.strides]
            put(**{x: array.ctypes.data, f"{x}_b0": s[0], f"{x}_b1": s[1], f"{x}_rs": s[2], f"{x}_cs": s[3]})
        if tables is not None:
            put(tables=1, **{n: t.ctypes.data for n, t in zip(("a_rs", "a_cs", "b_rs", "b_cs"), tables)})
        for tid in range(threads):
            self.call(tid, threads, self.scratch, args.ctypes.data)
        return c


def random(rng, dtype, *shape):
    if dtype == "i32":
        return rng.integers(-50, 50, shape).astype(np.int32)
    return rng.standard_normal(shape).astype(NUMPY[dtype])


def check(dtype, got, a, b, start=0):
    if dtype == "i32":
        np.testing.assert_array_equal(got, a.astype(np.int64) @ b + start)
        return
    wide = a.astype(np.longdouble), b.astype(np.longdouble)
    eps = np.finfo(NUMPY[dtype]).eps
    bound = (a.shape[-1] + 1) * eps * (np.abs(wide[0]) @ np.abs(wide[1]) + np.abs(start)) + 1e-30
    assert np.all(np.abs(got - (wide[0] @ wide[1] + start)) <= bound)


SIZES = [(1, 1, 1), (3, 5, 7), (14, 32, 16), (15, 33, 17), (1, 100, 50), (100, 1, 50), (2, 77, 33), (71, 40, 9), (33, 47, 310),
         (230, 30, 20), (90, 900, 40), (5, 7, 0), (16, 96, 1), (128, 70, 300)]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", ["f32", "f64", "i32"])
def test_sizes_layouts_and_threads(dtype, machine):
    run, rng = Gemm(dtype, machine), np.random.default_rng(0)
    for (m, n, k), ta, tb in itertools.product(SIZES, (False, True), (False, True)):
        a = random(rng, dtype, 1, 1, k, m).swapaxes(2, 3) if ta else random(rng, dtype, 1, 1, m, k)
        b = random(rng, dtype, 1, 1, n, k).swapaxes(2, 3) if tb else random(rng, dtype, 1, 1, k, n)
        results = []
        for threads in (1, 2, 3, 4):
            c = np.full((1, 1, m, n), 77, a.dtype)
            results.append(run(a, b, c, threads=threads).tobytes())
        assert len(set(results)) == 1, (m, n, k, ta, tb)
        check(dtype, c, a, b)


@pytest.mark.parametrize("dtype", ["f32", "i32"])
def test_accumulate_batches_and_strides(dtype):
    run, rng = Gemm(dtype, ""), np.random.default_rng(1)
    for m, n, k in [(9, 20, 30), (1, 40, 64), (40, 1, 64), (80, 65, 33)]:
        big_a, big_b = random(rng, dtype, 3, m, 2, k), random(rng, dtype, 2, k + 1, 3, n + 2)
        a, b = big_a.transpose(0, 2, 1, 3), big_b.transpose(2, 0, 1, 3)[:, :, :k, 1:n + 1]
        start = random(rng, dtype, 3, 2, m, n)
        for threads in (1, 2):
            c = run(a, b, start.copy(), accumulate=True, threads=threads)
            check(dtype, c, a, b, start)


def test_output_in_columns():
    """C with unit row stride is computed as its transpose."""
    run, rng = Gemm("f32", ""), np.random.default_rng(2)
    a, b = random(rng, "f32", 1, 1, 40, 30), random(rng, "f32", 1, 1, 30, 50)
    c = np.zeros((1, 1, 50, 40), np.float32).swapaxes(2, 3)
    check("f32", run(a, b, c), a, b)


@pytest.mark.parametrize("machine", MACHINES)
def test_offset_tables(machine):
    """Rows, columns and k scattered over memory, in runs and singly."""
    run, rng = Gemm("f32/tables", machine), np.random.default_rng(3)
    m, n, k = 37, 75, 340
    memory = random(rng, "f32", 4000)
    for step_k, step_n in ((1, 11), (3, 1), (2, 5)):
        am, ak = rng.integers(0, 3000, m).astype(np.int32), np.arange(k, dtype=np.int32) * 2
        bk = (np.arange(k) * step_k + (np.arange(k) // 9) * 2).astype(np.int32)
        bn = (np.arange(n) * step_n + (np.arange(n) // 26) * 3).astype(np.int32)
        a, b = memory[am[:, None] + ak][None, None], memory[bk[:, None] + bn][None, None]
        base = memory[None, None, None, :]
        results = []
        for threads in (1, 2, 4):
            c = np.zeros((1, 1, m, n), np.float32)
            fake_a, fake_b = np.broadcast_to(base[..., :1], (1, 1, m, k)), np.broadcast_to(base[..., :1], (1, 1, k, n))
            results.append(run(fake_a, fake_b, c, threads=threads, tables=(am, ak, bk, bn)).tobytes())
        assert len(set(results)) == 1
        check("f32", c, a, b)


def test_nothing_outside_c_is_written():
    run, rng = Gemm("f32", ""), np.random.default_rng(4)
    for machine in MACHINES:
        run = Gemm("f32", machine)
        for m, n, k in [(13, 30, 20), (75, 33, 300), (1, 17, 5), (2, 50, 9)]:
            frame = np.full((1, 1, m + 2, n + 40), 5, np.float32)
            a, b = random(rng, "f32", 1, 1, m, k), random(rng, "f32", 1, 1, k, n)
            run(a, b, frame[:, :, 1:m + 1, 20:n + 20])
            frame[:, :, 1:m + 1, 20:n + 20] = 5
            assert np.all(frame == 5)


@pytest.mark.parametrize("shape,few", [((1, 64, 128), True), ((64, 128, 2), True), ((64, 64, 64), False)])
def test_code_for_few_rows_is_for_programs_that_need_it(shape, few):
    from engram.codegen.cpu.program import CpuProgram
    from engram.compiler import driver
    from engram.compiler.ir import Func, Module, TensorType, f32
    from engram.compiler.ir.builder import Builder
    m, k, n = shape
    f = Func("f", [TensorType(f32, (m, k)), TensorType(f32, (k, n))], ["a", "b"], [TensorType(f32, (m, n))])
    b = Builder(f.body)
    b.op("func.return", [b.op("tensor.dot_general", f.args, {"lhs_batch": [], "rhs_batch": [], "lhs_contract": [1], "rhs_contract": [0]}).result])
    program = CpuProgram(driver.lower(Module([f], {"stage": "nn", "entries": ["f"]})))
    assert program.compiled.gemms == (["f32+few"] if few else ["f32"])
    x, y = (np.random.default_rng(i).normal(size=s).astype("f4") for i, s in enumerate(((m, k), (k, n))))
    np.testing.assert_allclose(program.call("f", [x, y])[0], x.astype("f8") @ y, rtol=0, atol=1e-4)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_an_a_packed_for_several_column_blocks(dtype, machine):
    """Wide products keep A packed (several blocks of rows, k and columns); a few columns at a time, nothing is kept: the same bits."""
    run, rng = Gemm(dtype, machine), np.random.default_rng(3)
    t = gemm.tiling(_describe(machine), dtype)
    m, n, k = t.mc + 15, 2 * t.nc + 7, t.kc + 9
    assert 2 * -(-m // 2) * k <= t.kept_elements
    for ta, tb in itertools.product((False, True), (False, True)):
        a = random(rng, dtype, 1, 1, k, m).swapaxes(2, 3) if ta else random(rng, dtype, 1, 1, m, k)
        b = random(rng, dtype, 1, 1, n, k).swapaxes(2, 3) if tb else random(rng, dtype, 1, 1, k, n)
        c, narrow = np.full((1, 1, m, n), 77, a.dtype), np.full((1, 1, m, n), 55, a.dtype)
        run(a, b, c)
        for j in range(0, n, t.nc):
            run(a, b[..., j:j + t.nc], narrow[..., j:j + t.nc])
        assert c.tobytes() == narrow.tobytes(), (ta, tb)
        np.testing.assert_allclose(c[0, 0, ::97], a[0, 0, ::97].astype(np.float64) @ b[0, 0], rtol=0, atol=k * 4 * np.finfo(a.dtype).eps)


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_an_a_that_is_read_in_rows_has_the_bits_of_a_packed_one(dtype):
    """Few columns: A's rows are read where they lie, unless they are odd in number, share a set of L1 or do not lie along k."""
    run, rng = Gemm(dtype, ""), np.random.default_rng(5)
    for m, n, k in ((96, 40, 300), (240, 130, 70), (384, 64, 513), (84, 16, 17), (97, 33, 40), (100, 32, 1024)):
        wide = random(rng, dtype, 1, 1, m, k + 24)
        b = random(rng, dtype, 1, 1, k, n)
        a, start = wide[..., :k], random(rng, dtype, 1, 1, m, n)
        columns = np.ascontiguousarray(a.swapaxes(2, 3)).swapaxes(2, 3)
        want = run(columns, b, start.copy(), accumulate=True)          # along m: packed
        check(dtype, want, a, b, start)
        for x in (a, a.copy()):
            for threads in (1, 3):
                got = run(x, b, start.copy(), accumulate=True, threads=threads)
                assert got.tobytes() == want.tobytes(), (m, n, k)
        got = run(a, np.ascontiguousarray(b.swapaxes(2, 3)).swapaxes(2, 3), start.copy(), accumulate=True)
        assert got.tobytes() == want.tobytes()


def walk_streams():
    """(the function that gives a tile its walk over an epilogue's streams, columns of a tile)."""
    from engram.codegen.cpu.compile import load
    target = _describe("")
    gen = gemm._Gen(target, "f32")
    gen.walk_streams()
    library = load(gen.m.text().replace("internal void @walk_streams", "void @walk_streams"), ["walk_streams"], target=target)
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 6)(library.address("walk_streams"))
    call.library = library
    return call, gen.t.nr


@pytest.mark.parametrize("height, k, n, strides", [(14, 128, 512, (512, 520)), (12, 100, 500, (1000, 1000)), (2, 40, 10, (10, 10)), (14, 256, 256, (2304, 2304))])
def test_tiles_walk_over_what_an_epilogue_reads(height, k, n, strides):
    """Together the tiles of a panel touch every line of both streams that lies beside the panel."""
    call, nr = walk_streams()
    bases, row, col, touched = (1 << 30, 1 << 40), 28, 64, set()
    streams = np.array([2, bases[0], strides[0], bases[1], strides[1]], np.int64)
    for tile in range(-(-n // nr)):
        slot = np.array([0, 1, 0, 0], np.int64)
        call(slot.ctypes.data, streams.ctypes.data, tile, height, k, row, col, n)
        far, lines, hop, beside = (int(x) for x in slot)
        for step in range(k if far else 0):
            at = far + step % lines * 64 + step // lines * hop
            touched |= {at // 64, (at + beside) // 64}
    covered = 2 if -(-n // nr) > 1 else 1                             # a panel of one tile has no tile for a second stream
    for base, stride in list(zip(bases, strides))[:covered]:
        for r in range(row, row + height):
            first = base + 4 * (r * stride + col)
            assert {x // 64 for x in range(first, first + 4 * n, 4)} <= touched, r


def test_a_walk_that_cannot_end_a_row_is_none():
    """Rows of more lines than the tile has k's are not fetched: the slot stays as it was."""
    call, _ = walk_streams()
    slot, streams = np.array([5, 1, 0, 0], np.int64), np.array([1, 1 << 30, 512], np.int64)
    call(slot.ctypes.data, streams.ctypes.data, 0, 14, 16, 0, 0, 512)
    assert slot.tolist() == [5, 1, 0, 0]
