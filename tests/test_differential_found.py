"""Small programs that generated ones failed on, each on every backend and through every pass."""
import numpy as np
import pytest
from engram.compiler.driver import build, lower, random_arguments
from engram.compiler.ir.parser import parse_module
from engram.compiler.ir.verifier import verify
from engram.interp.interpreter import Interpreter
from test_differential import backend_missing
from tolerance import agree, tolerances

PROGRAMS = {
    # folding gave a constant of shape [1] for a rank-0 type
    "rank 0 constant": """func @main(%x: f32[3]) -> (f32[3], i64[]) {
      %a = tensor.constant() {value = dense<i64[], "0500000000000000">, type = i64[]} : i64[]
      %b = tensor.constant() {value = 3, type = i64[]} : i64[]
      %c = tensor.and(%a, %b) : i64[]
      func.return(%x, %c)
    }""",
    # max_first took the first of -0 and +0; as reduce_max, +0 is larger
    "zeros of both signs": """func @main(%x: f32[4]) -> (f32[], f32[]) {
      %a = tensor.constant() {value = dense<f32[2,2], "00000080000000000000000000000080">, type = f32[2,2]} : f32[2,2]
      %b = nn.max_first(%a) : f32[2]
      %y = tensor.slice(%b) {start = [0], limit = [1], stride = [1]} : f32[1]
      %z = tensor.slice(%b) {start = [1], limit = [2], stride = [1]} : f32[1]
      %p = tensor.reshape(%y) {shape = []} : f32[]
      %q = tensor.reshape(%z) {shape = []} : f32[]
      func.return(%p, %q)
    }""",
    # a transposed argument was copied to its own memory, which is donated: elements were overwritten before they were read
    "transpose of a donated argument carried": """func @main(%x: f32[6,6]) -> (f32[6,6]) attributes {donate = [[0, 0]]} {
      %t = tensor.transpose(%x) {perm = [1, 0]} : f32[6,6]
      %y = scf.scan(%t) {length = 3, n_carry = 1, reverse = false} ({
      ^(%i: i64[], %c: f32[6,6]):
        %s, %o = tensor.sort(%c) {dim = 0, descending = true} : f32[6,6], i64[6,6]
        scf.yield(%s)
      }) : f32[6,6]
      func.return(%y)
    }""",
    "transpose of a donated argument updated": """func @main(%x: f32[6,6], %u: f32[2,6], %i: i64[]) -> (f32[6,6]) attributes {donate = [[0, 0]]} {
      %t = tensor.transpose(%x) {perm = [1, 0]} : f32[6,6]
      %y = tensor.dynamic_update_slice(%t, %u, %i, %i) : f32[6,6]
      func.return(%y)
    }""",
    "transpose of a donated argument in a while loop": """func @main(%x: f32[6,6]) -> (f32[6,6]) attributes {donate = [[0, 0]]} {
      %t = tensor.transpose(%x) {perm = [1, 0]} : f32[6,6]
      %z = tensor.constant() {value = 0, type = i64[]} : i64[]
      %k, %y = scf.while(%z, %t) ({
      ^(%i: i64[], %c: f32[6,6]):
        %n = tensor.constant() {value = 3, type = i64[]} : i64[]
        %go = tensor.compare(%i, %n) {predicate = "lt"} : bool[]
        scf.yield(%go)
      }, {
      ^(%i: i64[], %c: f32[6,6]):
        %one = tensor.constant() {value = 1, type = i64[]} : i64[]
        %j = tensor.add(%i, %one) : i64[]
        %d = tensor.cumsum(%c) {dim = 0, reverse = false} : f32[6,6]
        scf.yield(%j, %d)
      }) : i64[], f32[6,6]
      func.return(%y)
    }""",
    # a kernel that touches no memory has no arguments, which no OpenCL runtime takes
    "nothing to write": """func @main(%x: f32[0,2,2], %u: f32[0,1,2], %i: i64[]) -> (f32[0,2,2], i64[]) {
      %y = tensor.dynamic_update_slice(%x, %u, %i, %i, %i) : f32[0,2,2]
      %t = tensor.tanh(%y) : f32[0,2,2]
      func.return(%t, %i)
    }""",
    "nothing to write at a known place": """func @main(%x: f32[0,2,2], %u: f32[0,1,2]) -> (f32[0,2,2], f32[2,2]) {
      %zero = tensor.constant() {value = 0, type = i64[]} : i64[]
      %one = tensor.constant() {value = 1, type = i64[]} : i64[]
      %y = tensor.dynamic_update_slice(%x, %u, %zero, %one, %zero) : f32[0,2,2]
      %s = tensor.reduce_sum(%y) {dims = [0]} : f32[2,2]
      func.return(%y, %s)
    }""",
}


@pytest.mark.parametrize("backend", ["interp", "cpu", "opencl"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name, backend):
    if backend != "interp" and (why := backend_missing(backend)):
        pytest.skip(why)
    m = parse_module('module attributes {stage = "nn", entries = ["main"]} {\n' + PROGRAMS[name] + "\n}")
    verify(m)
    args = [np.zeros_like(a) if a.dtype == np.int64 else a for a in random_arguments(m, "main")]
    want = Interpreter(m).call("main", args)
    p = Interpreter(lower(m, "loop"), arena=True, check_races=True) if backend == "interp" else build(m, backend)
    got = [np.asarray(p.to_host(r)) for r in p.call("main", [a.copy() for a in args])]
    agree(got, want, tolerances(m, "main", args, want), ["zeros" in name] * len(want), name)
