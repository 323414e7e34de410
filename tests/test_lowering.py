"""Every op of the table, lowered alone, fused and not, for several dtypes, against the interpreter's definition."""
import numpy as np
import pytest
from engram.compiler.ir import bf16, bool_, f16, f64, i8, i32, i64, u8
from engram.compiler.ops import OPS, TENSOR
from helpers import fits, make_op_module, sample_arrays, with_dtype
from lowering_cases import check

ROWS = [n for n, r in OPS.items() if TENSOR in r.stages and r.samples]
EXTRA = [f64, f16, bf16, i64, i32, i8, u8, bool_]


@pytest.mark.parametrize("name", ROWS)
def test_every_op(name):
    for sample in OPS[name].samples:
        for fuse in (False, True):
            check(make_op_module(name, sample), fuse, sample_arrays(sample), tol=1e-5)


@pytest.mark.parametrize("name", ROWS)
def test_other_dtypes(name):
    for sample in OPS[name].samples[:2]:
        if not sample.inputs:
            continue
        for dtype in EXTRA:
            s = with_dtype(sample, dtype)
            if str(dtype) == sample.inputs[0][0].split("[")[0] or not fits(OPS[name], s):
                continue
            tol = {"f16": 1e-2, "bf16": 5e-2}.get(dtype.name, 1e-6)
            check(make_op_module(name, s), True, sample_arrays(s), tol=tol)


@pytest.mark.parametrize("name, text, args", [
    ("take", "tensor.take(%x, %i) {dim = 0} : f32[3]", [4, 0, -1]),
    ("take_along", "tensor.take_along(%x, %i) {dim = 0} : f32[3]", [0, 9, 0]),
])
def test_index_out_of_range_is_an_error(name, text, args):
    from engram.compiler.diagnostics import RuntimeError_
    from engram.interp.interpreter import Interpreter
    from lowering_cases import function, to_loops
    m = to_loops(function(f"func @f(%x: f32[4], %i: i64[3]) -> (f32[3]) {{\n %y = {text}\n func.return(%y)\n}}"))
    with pytest.raises(RuntimeError_, match=r"index (4|-1|9) is out of range 0\.\.4"):
        Interpreter(m).call("f", [np.zeros(4, np.float32), np.array(args)])


def test_integer_division_reports_zero_and_never_traps():
    from engram.compiler.diagnostics import RuntimeError_
    from engram.interp.interpreter import Interpreter
    from lowering_cases import function, to_loops
    m = function("func @f(%x: i32[3], %y: i32[3]) -> (i32[3], i32[3]) {\n %q = tensor.floordiv(%x, %y) : i32[3]\n"
                 " %r = tensor.mod(%x, %y) : i32[3]\n func.return(%q, %r)\n}")
    least = np.iinfo(np.int32).min
    check(m, args=[np.array([least, 7, -7], np.int32), np.array([-1, -2, 2], np.int32)])
    with pytest.raises(RuntimeError_, match="integer division by zero"):
        Interpreter(to_loops(m)).call("f", [np.ones(3, np.int32), np.array([1, 0, 1], np.int32)])


def test_slice_start_out_of_range_is_an_error_at_the_op():
    from engram.compiler.diagnostics import RuntimeError_
    from engram.interp.interpreter import Interpreter
    from lowering_cases import function, to_loops
    m = to_loops(function("func @f(%x: f32[4], %u: f32[2], %i: i64[]) -> (f32[4], f32[2]) {\n"
                          ' %a = tensor.dynamic_update_slice(%x, %u, %i) : f32[4] loc("p.nn":3:5:3:9)\n'
                          " %b = tensor.dynamic_slice(%x, %i) {sizes = [2]} : f32[2]\n func.return(%a, %b)\n}"))
    with pytest.raises(RuntimeError_, match=r"slice start 3 is out of range 0\.\.3") as e:
        Interpreter(m).call("f", [np.zeros(4, np.float32), np.zeros(2, np.float32), np.array(3)])
    assert e.value.loc.line == 3
