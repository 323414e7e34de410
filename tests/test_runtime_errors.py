"""What fails only while running: an index out of range, an integer division by zero, an assert.  The user sees the line, with the same
words on every backend; what memory cannot hold is refused before."""
from __future__ import annotations

import engram as eg
import numpy as np
import pytest
from engram.compiler.diagnostics import CompileError, RuntimeError_
from engram.compiler.driver import lower
from engram.compiler.memory import check_memory, human

PROGRAM = """fn pick(x: f32[n, d], i: i64) -> f32[d] { x[i] }
fn rows(x: f32[n, d], i: i64[k]) -> f32[k, d] { x[i] }
fn part(x: f32[n], k: i64) -> f32[3] { x[k : k + 3] }
fn divide(a: i64[n], b: i64[n]) -> i64[n] { a // b }
fn rest(a: i64[n], b: i64) -> i64[n] { a % b }
fn checked(x: f32[n]) -> f32[n] { assert sum(x) > 0, "the sum has to be positive"; sqrt(x) }
fn nested(x: f32[n], i: i64) -> f32 { 2 * helper(x, i) }
fn helper(x: f32[n], i: i64) -> f32 { x[i] + 1 }
fn loss(x: f32[n, c], y: i64[n]) -> f32 { cross_entropy(x, y) }
fn loop(x: f32[n], k: i64) -> f32 { scan t in 0..5 with s = 0.0 { s + x[k + t] } }
fn put(x: f32[n], i: i64[k]) -> f32[n] { scatter_add(x, 0, i, ones(k)) }
fn table(w: f32[v, d], i: i64[k]) -> f32[k, d] { embedding(i, w) }
"""
X, V, I = np.arange(12, dtype=np.float32).reshape(4, 3), np.arange(6, dtype=np.float32), np.array([0, 9, 1])
CASES = [                                                        # function, arguments, line:column, message
    ("pick", (X, 7), "1:43", "index 7 is out of range 0..4"),
    ("rows", (X, I), "2:49", "index 9 is out of range 0..4"),
    ("part", (V, 5), "3:40", "slice start 5 is out of range 0..4"),
    ("divide", (np.array([1, 2]), np.array([1, 0])), "4:47", "integer division by zero"),
    ("rest", (np.array([1, 2]), 0), "5:42", "integer division by zero"),
    ("checked", (-V,), "6:42", "the sum has to be positive"),
    ("nested", (V, -9), "8:39", "index -9 is out of range 0..6"),
    ("loss", (X, np.array([0, 1, 3, 2])), "9:43", "index 3 is out of range 0..3"),
    ("loop", (V, 3), "10:71", "index 6 is out of range 0..6"),
    ("put", (V, I), "11:42", "index 9 is out of range 0..6"),
    ("table", (X, I), "12:50", "index 9 is out of range 0..4"),
]


@pytest.fixture(scope="module", params=["interp", "cpu", "opencl"])
def program(request):
    try:
        return eg.compile(PROGRAM, backend=request.param)
    except CompileError as e:
        pytest.skip(str(e))


@pytest.mark.parametrize("name, args, place, message", CASES, ids=[c[0] for c in CASES])
def test_the_users_line_is_shown(program, name, args, place, message):
    try:
        with pytest.raises(RuntimeError_) as info:
            getattr(program, name)(*args)
    except CompileError as e:
        pytest.skip(str(e))                                      # no OpenCL device
    line = int(place.split(":")[0])
    shown = str(info.value).split("\n")
    assert shown[0] == f"<string>:{place}: error: {message}"
    assert shown[1] == f"{line:>{2 + len(str(line))}} | {PROGRAM.splitlines()[line - 1]}" and shown[2].rstrip().endswith("^") and len(shown) == 3


def test_a_program_goes_on_after_an_error():
    p = eg.compile(PROGRAM, backend="cpu")
    with pytest.raises(RuntimeError_):
        p.pick(X, 4)
    assert (p.pick(X, 3) == X[3]).all()


@pytest.mark.parametrize("text, args, wanted", [
    ("fn f() { arange(10000000000000) }", (), "needs 72.8 TB of memory; this machine has"),
    ("fn f(x: f32[n]) { let y = outer(x, x); sort(y) }", (np.ones(1_000_000, np.float32),), "needs "),
    ("fn f(x: f32[n]) { scan t in 0..1000000000000 with s = x { yield s; s + 1 } }", (np.ones(10, np.float32),), "36.4 TB"),
    ("fn f() { sum(sort(zeros(30000000000000))) }", (), "the largest tensor is an intermediate"),
    ("fn f() { zeros(1000000, 1000000, 1000) }", (), "no machine holds that many elements"),
])
@pytest.mark.parametrize("backend", ["cpu", "interp"])
def test_memory_is_counted_before_it_is_taken(text, args, wanted, backend):
    if backend == "interp" and "largest" in wanted:
        pytest.skip("the interpreter's intermediates are not planned")
    with pytest.raises(CompileError, match=wanted.replace("(", r"\(")):
        eg.compile(text + "\n", backend=backend).f(*args)


def test_memory_limit_is_exact():
    from engram.compiler.ir import TensorType, f32
    from engram.frontend import elaborate_function, load
    module = lower(elaborate_function(load("m.nn", "fn f(x: f32[n]) { x * 2 }\n"), "f", [TensorType(f32, (1000,))]).module, "loop")
    check_memory(module, 8000)
    with pytest.raises(CompileError, match="`f` needs 7.8 KB of memory; this machine has 7.8 KB"):
        check_memory(module, 7999)
    assert [human(n) for n in (5, 2048, 200 << 30)] == ["5 bytes", "2.0 KB", "200 GB"]


def test_no_derivative_through_while():
    text = "fn root(x: f32) -> f32 {\n  while abs(x * x - 2) > 1e-6 with y = x { y - (y * y - 2) / (2 * y) }\n}\nfn f(x: f32) -> f32 { grad(root)(x) }\n"
    with pytest.raises(CompileError, match="<string>:2:3: error: cannot differentiate through a `while` loop"):
        eg.compile(text).f(2.0)
