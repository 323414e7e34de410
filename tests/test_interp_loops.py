"""The interpreter's loop stage: kernels, memory that shows misuse, the arena, races, run-time errors of a launch."""
import numpy as np
import pytest
from engram.compiler.diagnostics import RuntimeError_
from engram.compiler.ir.parser import parse_module
from engram.compiler.ir.verifier import verify
from engram.interp.interpreter import Interpreter, interpret
from engram.interp.memory import LoopError
from engram.interp.semantics_random import words


def loop_module(*funcs: str):
    m = parse_module("module attributes {stage = \"loop\"} {\n" + "\n".join(funcs) + "\n}")
    verify(m)
    return m


def func(args: str, body: str, n_inputs: int, n_outputs: int, name: str = "f", attrs: str = "") -> str:
    return f"func @{name}({args}) -> () attributes {{n_inputs = {n_inputs}, n_outputs = {n_outputs}{attrs}}} {{ {body} func.return() }}"


SAXPY = func("%x: buf<f32[3,4]>, %w: buf<f32[4]>, %y: buf<f32[3,4]>", """
  loop.parallel() {extents = [3, 4]} ({^(%i: i64, %j: i64):
    %a = loop.load(%x, %i, %j) : f32
    %b = loop.load(%w, %j) : f32
    %c = scalar.mul(%a, %b) : f32
    loop.store(%c, %y, %i, %j)
    scf.yield()})""", 2, 1)

X = np.arange(12, dtype=np.float32).reshape(3, 4) / 7
W = np.array([1, 2, 3, 5], np.float32)


@pytest.mark.parametrize("options", [{}, {"arena": True}, {"check_races": True}, {"seed": 5}])
def test_kernel(options):
    m = loop_module(SAXPY.replace("n_outputs = 1", "n_outputs = 1, arena = 0"))
    assert interpret(m, "f", [X, W], **options)[0].tolist() == (X * W).tolist()


def test_shadow():
    y, = interpret(loop_module(SAXPY), "f", [X, W], dtype_shadow="f64")
    assert y.dtype == np.float64 and y.tolist() == (X.astype(float) * W).tolist()


STATISTICS = func("%x: buf<f32[3,4]>, %y: buf<f32[3]>, %z: buf<f32[3]>, %k: buf<i64[]>", """
  %zero = scalar.constant() {value = 0, dtype = i64} : i64
  %one = scalar.constant() {value = 1, dtype = i64} : i64
  %four = scalar.constant() {value = 4, dtype = i64} : i64
  %fz = scalar.constant() {value = 0.0, dtype = f32} : f32
  loop.parallel() {extents = [3]} ({^(%i: i64):
    %t = loop.alloc() {type = buf<f32[4]>} : buf<f32[4]>
    loop.for(%zero, %four) {step = 1, independent = true} ({^(%j: i64):
      %a = loop.load(%x, %i, %j) : f32
      loop.store(%a, %t, %j)
      scf.yield()})
    %s, %m = loop.reduce(%zero, %four) {kinds = ["add", "max"]} ({^(%j: i64):
      %a = loop.load(%t, %j) : f32
      scf.yield(%a, %a)}) : f32, f32
    loop.store(%s, %y, %i)
    %even = loop.for(%zero, %four, %fz) {step = 2} ({^(%j: i64, %c: f32):
      %a = loop.load(%t, %j) : f32
      %d = scalar.add(%c, %a) : f32
      scf.yield(%d)}) : f32
    %big = scalar.compare(%even, %m) {predicate = "gt"} : bool
    %r = loop.if(%big) ({^(): scf.yield(%even)}, {^(): scf.yield(%m)}) : f32
    loop.store(%r, %z, %i)
    scf.yield()})
  loop.parallel() {extents = []} ({^():
    loop.store(%zero, %k)
    loop.while() ({^():
      %n = loop.load(%k) : i64
      %more = scalar.compare(%n, %four) {predicate = "lt"} : bool
      scf.yield(%more)}, {^():
      %n = loop.load(%k) : i64
      %n2 = scalar.add(%n, %one) : i64
      loop.store(%n2, %k)
      scf.yield()})
    scf.yield()})""", 1, 3, attrs=", arena = 0")


@pytest.mark.parametrize("options", [{}, {"arena": True}, {"check_races": True}])
def test_control_flow_and_reductions(options):
    total, top, count = interpret(loop_module(STATISTICS), "f", [X], **options)
    np.testing.assert_allclose(total, X.sum(1), rtol=1e-6)
    assert top.tolist() == np.maximum(X[:, 0] + X[:, 2], X.max(1)).tolist() and count == 4


MATMUL = func("%x: buf<f32[3,4]>, %w: buf<f32[4,5]>, %y: buf<f32[5,3]>", """
  %zero = scalar.constant() {value = 0, dtype = i64} : i64
  %t = loop.alloc() {type = buf<f32[3,5]>, offset = 64} : buf<f32[3,5]>
  loop.contract(%t, %x, %w) {out = "mn", lhs = "mk", rhs = "kn", accumulate = false}
  loop.contract(%t, %x, %w) {out = "mn", lhs = "mk", rhs = "kn", accumulate = true}
  %v = loop.view(%t, %zero) {shape = [5, 3], strides = [1, 5]} : buf<f32[5,3], [1,5]>
  loop.copy(%y, %v)""", 2, 1, attrs=", arena = 256")


@pytest.mark.parametrize("options", [{}, {"arena": True}])
def test_contract_view_copy(options):
    w = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    y, = interpret(loop_module(MATMUL), "f", [X, w], **options)
    np.testing.assert_allclose(y, 2 * (X @ w).T, rtol=1e-5)


CALLER = func("%x: buf<f32[4]>, %y: buf<f32[4]>", """
  %t = loop.alloc() {type = buf<f32[4]>, offset = 0} : buf<f32[4]>
  loop.call(%x, %t) {callee = "double", frame = FRAME}
  loop.call(%t, %y) {callee = "double", frame = FRAME}""", 1, 1, attrs=", arena = 128")
DOUBLE = func("%x: buf<f32[4]>, %y: buf<f32[4]>", """
  %t = loop.alloc() {type = buf<f32[4]>, offset = 0} : buf<f32[4]>
  loop.copy(%t, %x)
  loop.parallel() {extents = [4]} ({^(%i: i64):
    %a = loop.load(%t, %i) : f32
    %b = scalar.add(%a, %a) : f32
    loop.store(%b, %y, %i)
    scf.yield()})""", 1, 1, name="double", attrs=", arena = 64")


def test_calls_place_their_frame_in_the_callers_arena():
    m = loop_module(CALLER.replace("FRAME", "64"), DOUBLE)
    for options in ({}, {"arena": True}):
        assert interpret(m, "f", [W], **options)[0].tolist() == (4 * W).tolist()


def test_a_wrong_plan_shows():
    """The callee's frame over the caller's buffer: seen only when allocs really lie in the arena."""
    m = loop_module(CALLER.replace("FRAME", "0"), DOUBLE)
    assert interpret(m, "f", [W])[0].tolist() == (4 * W).tolist()
    with pytest.raises(LoopError, match="source and destination overlap"):
        interpret(m, "f", [W], arena=True)
    with pytest.raises(LoopError, match="outside of the arena"):
        interpret(loop_module(CALLER.replace("FRAME", "128"), DOUBLE), "f", [W], arena=True)


def test_donated_arguments_are_updated_in_place():
    text = func("%x: buf<f32[4]>, %y: buf<f32[4]>", """
      loop.parallel() {extents = [4]} ({^(%i: i64):
        %a = loop.load(%x, %i) : f32
        %b = scalar.add(%a, %a) : f32
        loop.store(%b, %y, %i)
        scf.yield()})""", 1, 1, attrs=", donate = [[0, 0]], arena = 0")
    for options in ({}, {"arena": True}, {"check_races": True}):
        w = W.copy()
        assert interpret(loop_module(text), "f", [w], **options)[0].tolist() == (2 * W).tolist()
        assert w.tolist() == W.tolist()                 # the interpreter copies: a handle stays what it was


def test_sort_and_philox():
    text = func("%x: buf<f32[5]>, %k: buf<u64[]>, %v: buf<f32[5]>, %i: buf<i64[5]>, %r: buf<u32[4]>", """
      loop.copy(%v, %x)
      loop.parallel() {extents = [5]} ({^(%j: i64):
        loop.store(%j, %i, %j)
        scf.yield()})
      loop.sort(%v, %i) {descending = false}
      loop.parallel() {extents = []} ({^():
        %key = loop.load(%k) : u64
        %n = scalar.constant() {value = 7, dtype = u64} : u64
        %a, %b, %c, %d = scalar.philox(%key, %n) {domain = 0} : u32, u32, u32, u32
        %i0 = scalar.constant() {value = 0, dtype = i64} : i64
        %i1 = scalar.constant() {value = 3, dtype = i64} : i64
        %i2 = scalar.constant() {value = 1, dtype = i64} : i64
        %i3 = scalar.constant() {value = 2, dtype = i64} : i64
        loop.store(%a, %r, %i0)
        loop.store(%b, %r, %i2)
        loop.store(%c, %r, %i3)
        loop.store(%d, %r, %i1)
        scf.yield()})""", 2, 3)
    x = np.array([3, np.nan, 1, 3, -1], np.float32)
    v, i, r = interpret(loop_module(text), "f", [x, np.uint64(2**40 + 5)])
    assert v[:4].tolist() == [-1, 1, 3, 3] and np.isnan(v[4]) and i.tolist() == [4, 2, 0, 3, 1]
    assert tuple(r.tolist()) == words(2**40 + 5, 7, 0)


# ---- what must not happen ------------------------------------------------------------------------------------------------


def kernel(body: str, extents="[4]", inner="%i: i64") -> str:
    return func("%x: buf<f32[4]>, %n: buf<i64[4]>, %y: buf<f32[4]>", f"""
      %zero = scalar.constant() {{value = 0, dtype = i64}} : i64
      %ten = scalar.constant() {{value = 10, dtype = i64}} : i64
      loop.parallel() {{extents = {extents}}} ({{^({inner}): {body} scf.yield()}})""", 2, 1)


N = np.array([0, 1, 2, 3])


@pytest.mark.parametrize("body, message", [
    ("%a = loop.load(%x, %ten) : f32  loop.store(%a, %y, %i)", r"loop.load in @f: indices \[10\] are out of bounds"),
    ("%a = loop.load(%x, %i) : f32  loop.store(%a, %y, %ten)", r"loop.store in @f: indices \[10\] are out of bounds"),
    ("%a = loop.load(%y, %i) : f32  loop.store(%a, %y, %i)", "which was never written"),
    ("%t = loop.alloc() {type = buf<f32[2]>} : buf<f32[2]>  %a = loop.load(%t, %zero) : f32  loop.store(%a, %y, %i)", "which was never written"),
    ("%a = loop.load(%x, %zero) : f32  loop.store(%a, %y, %zero)", "never writes element 1 of result 0"),
    ("%v = loop.view(%x, %i) {shape = [2], strides = [1]} : buf<f32[2], [1]>  %a = loop.load(%v, %zero) : f32  loop.store(%a, %y, %i)",
     "view of elements 3..4 of a buffer that has 0..3"),
])
def test_misuse_of_memory_is_an_internal_error(body, message):
    with pytest.raises(LoopError, match=message):
        interpret(loop_module(kernel(body)), "f", [W, N])


def test_constants_are_read_only():
    text = func("%y: buf<f32[2]>", """
      %c = loop.constant() {value = 1.5, type = buf<f32[2]>} : buf<f32[2]>
      loop.copy(%y, %c)
      loop.copy(%c, %y)""", 0, 1)
    with pytest.raises(LoopError, match="loop.copy in @f"):
        interpret(loop_module(text), "f", [])
    assert interpret(loop_module(text.replace("loop.copy(%c, %y)", "")), "f", [])[0].tolist() == [1.5, 1.5]


NEIGHBOUR = """
  %last = scalar.compare(%i, %zero) {predicate = "eq"} : bool
  %one = scalar.constant() {value = 1, dtype = i64} : i64
  %p = scalar.sub(%i, %one) : i64
  %q = scalar.select(%last, %zero, %p) : i64
  %fz = scalar.constant() {value = 1.0, dtype = f32} : f32
  loop.store(%fz, %y, %i)
  %a = loop.load(%y, %q) : f32
"""


def test_races_show():
    with pytest.raises(LoopError, match="reads what another one writes|writes what another one reads"):
        text = kernel(NEIGHBOUR).replace("loop.parallel", "loop.copy(%y, %x)  loop.parallel", 1)
        interpret(loop_module(text), "f", [W, N], check_races=True)
    twice = "%a = loop.load(%x, %i) : f32  loop.store(%a, %y, %zero)  loop.store(%a, %y, %i)"
    with pytest.raises(LoopError, match="two iterations of loop.parallel write the same element"):
        interpret(loop_module(kernel(twice)), "f", [W, N], check_races=True)
    results = {tuple(interpret(loop_module(kernel(twice)), "f", [W, N], seed=s)[0].tolist()) for s in range(8)}
    assert len(results) > 1                             # the shuffled order alone shows it too


def test_shuffled_order_of_independent_loops():
    text = kernel("""loop.for(%zero, %ten) {step = 3, independent = true} ({^(%j: i64):
      %a = scalar.cast(%j) {dtype = f32} : f32
      loop.store(%a, %y, %i)
      scf.yield()})""")
    assert len({interpret(loop_module(text), "f", [W, N], seed=s)[0].tolist()[0] for s in range(10)}) > 1


ASSERTED = """
  %k = loop.load(%n, %i) : i64
  %four = scalar.constant() {value = 4, dtype = i64} : i64
  %ok = scalar.compare(%k, %four) {predicate = "lt"} : bool
  loop.assert(%ok, %k) {message = "index {} is out of range 0..4"} loc("a.nn":3:7)
  %three = scalar.constant() {value = 3, dtype = i64} : i64
  %safe = scalar.min(%k, %three) : i64
  %a = loop.load(%x, %safe) : f32
  loop.store(%a, %y, %i)"""


def test_asserts_are_raised_at_the_end_of_the_launch():
    run = Interpreter(loop_module(kernel(ASSERTED)))
    assert run.call("f", [W, N[::-1].copy()])[0].tolist() == W[::-1].tolist()
    with pytest.raises(RuntimeError_, match="a.nn:3:7: error: index 9 is out of range 0..4"):
        run.call("f", [W, np.array([0, 9, 1, 2])])
    unguarded = ASSERTED.replace("loop.load(%x, %safe)", "loop.load(%x, %k)")
    with pytest.raises(LoopError, match="out of bounds"):        # execution goes on, so the code around must clamp
        interpret(loop_module(kernel(unguarded)), "f", [W, np.array([0, 9, 1, 2])])


def test_integer_division_by_zero_goes_on_to_the_end():
    text = kernel("""%k = loop.load(%n, %i) : i64
      %q = scalar.floordiv(%ten, %k) : i64 loc("a.nn":1:2)
      %a = scalar.cast(%q) {dtype = f32} : f32
      loop.store(%a, %y, %i)""")
    assert interpret(loop_module(text), "f", [W, N + 1])[0].tolist() == [10, 5, 3, 2]
    with pytest.raises(RuntimeError_, match="a.nn:1:2: error: integer division by zero"):
        interpret(loop_module(text), "f", [W, N])
