"""A vector by a large matrix is summed in chunks of rows, which depend on the shape alone; contractions inside an iteration."""
import numpy as np
import pytest
from engram import frontend as F
from engram.codegen.cpu.program import CpuProgram
from engram.compiler import driver
from engram.compiler.ir import TensorType, f32
from engram.compiler.ir.parser import parse_module
from engram.compiler.ir.verifier import verify
from engram.interp.compare import assert_close
from engram.interp.interpreter import interpret
from engram.session import load_program

SOURCE = "fn f(x: f32[B, T, k], w: f32[k, n], b: f32[n]) { relu(x @ w + b) }"
rng = np.random.default_rng(0)


@pytest.mark.parametrize("batch, k, n, chunks", [(1, 512, 256, 4), (2, 256, 520, 4), (3, 512, 256, 0), (1, 511, 300, 0), (1, 64, 64, 0)])
def test_chunks_of_rows(batch, k, n, chunks, tmp_path):
    (tmp_path / "f.nn").write_text(SOURCE)
    m = F.elaborate_function(load_program(str(tmp_path / "f.nn")), "f", [TensorType(f32, s) for s in ((batch, 1, k), (k, n), (n,))]).module
    loop = driver.lower(m, "loop")
    shapes = [op.operands[2].type.shape for op in loop.walk() if op.name == "loop.contract"]
    assert (shapes and len(shapes[0]) == 3 and shapes[0][0] == chunks) == bool(chunks)
    args = [rng.standard_normal(s).astype(np.float32) for s in ((batch, 1, k), (k, n), (n,))]
    one, *more = (CpuProgram(driver.lower(m, "loop"), threads=t).call("f", args)[0] for t in (1, 2, 4))
    assert all(np.array_equal(one, x) for x in more)
    x, w, b = (a.astype(np.float64) for a in args)
    np.testing.assert_allclose(one, np.maximum(x @ w + b, 0), rtol=1e-4, atol=1e-4)


# an outer product, a product through the packed GEMM and a small one, each by one thread, some added to what is there
NESTED = """module attributes {{stage = "loop", entries = ["f"]}} {{
  func @f(%x: buf<{t}[3,{m},{k}]>, %y: buf<{t}[{k},{n}]>, %z: buf<{t}[3,{m},{n}]>) -> () attributes {{n_inputs = 2, n_outputs = 1, arena = 64}} {{
    %0 = scalar.constant() {{value = 0, dtype = i64}} : i64
    %m = scalar.constant() {{value = {m}, dtype = i64}} : i64
    %n = scalar.constant() {{value = {n}, dtype = i64}} : i64
    %s = scalar.constant() {{value = {mk}, dtype = i64}} : i64
    %two = scalar.constant() {{value = {two}, dtype = {t}}} : {t}
    loop.parallel() {{extents = [3]}} ({{
    ^(%i: i64):
      %at = scalar.mul(%i, %s) : i64
      %a = loop.view(%x, %at) {{shape = [{m},{k}], strides = [{k},1]}} : buf<{t}[{m},{k}], [{k},1]>
      %t = loop.alloc() {{type = buf<{t}[{m},{n}]>}} : buf<{t}[{m},{n}]>
      loop.contract(%t, %a, %y) {{out = "mn", lhs = "mk", rhs = "kn", accumulate = false}}
      loop.contract(%t, %a, %y) {{out = "mn", lhs = "mk", rhs = "kn", accumulate = true}}
      loop.for(%0, %m) {{step = 1}} ({{
      ^(%p: i64):
        loop.for(%0, %n) {{step = 1, independent = true}} ({{
        ^(%q: i64):
          %v = loop.load(%t, %p, %q) : {t}
          %w = scalar.mul(%v, %two) : {t}
          loop.store(%w, %z, %i, %p, %q)
          scf.yield()
        }})
        scf.yield()
      }})
      scf.yield()
    }})
    func.return()
  }}
}}"""


@pytest.mark.parametrize("dtype", ["f32", "f64", "i32"])
@pytest.mark.parametrize("m, n, k", [(2, 3, 4), (16, 20, 18), (1, 40, 9), (5, 1, 80)])
def test_contractions_inside_an_iteration(dtype, m, n, k):
    module = parse_module(NESTED.format(t=dtype, m=m, n=n, k=k, mk=m * k, two=2 if dtype == "i32" else 2.0))
    verify(module)
    numpy = {"f32": np.float32, "f64": np.float64, "i32": np.int32}[dtype]
    x, y = (rng.integers(-4, 5, s).astype(numpy) for s in ((3, m, k), (k, n)))       # exact in every order
    want = 4 * (x @ y)
    assert_close(interpret(module, "f", [x, y], check_races=True), [want])
    assert_close(CpuProgram(module, threads=2).call("f", [x, y]), [want])
    from engram.codegen.opencl import device
    if device.available()[0] and dtype != "f64":
        from engram.codegen.opencl.program import OpenClProgram
        p = OpenClProgram(module)
        assert_close([p.to_host(r) for r in p.call("f", [x, y])], [want])
