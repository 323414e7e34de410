"""The OpenCL backend on hand-written loop IR, against the interpreter of the same module: loops, memory, control flow at both levels,
calls, sorting, run-time errors, donation. Scalar ops are in test_opencl_scalars.py, contractions in test_opencl_contract.py."""
import dataclasses

import numpy as np
import pytest
from engram.codegen.opencl import device as devices
from engram.compiler.diagnostics import RuntimeError_
from engram.compiler.ir.parser import parse_module
from engram.interp.interpreter import Interpreter

OK, WHY = devices.available()
pytestmark = pytest.mark.skipif(not OK, reason=f"no OpenCL device: {WHY}")

f4 = np.float32


def program(text, as_gpu=False):
    """`as_gpu`: the code a GPU would get (work-groups that share rows, tiles in local memory), wherever it runs."""
    from engram.codegen.opencl.program import OpenClProgram
    d = devices.device()
    caps = dataclasses.replace(d.caps, cpu=not as_gpu)
    return OpenClProgram(parse_module('module attributes {stage = "loop"} {\n' + text + "\n}"), dataclasses.replace(d, caps=caps))


def check(text, *args, name="f", rtol=0.0, atol=0.0, as_gpu=False):
    """Runs @f on the device and in the interpreter; gives the device's results."""
    p = program(text, as_gpu)
    got = [np.asarray(a) for a in p.call(name, list(args))]
    want = Interpreter(p.module, check_races=True).call(name, [a.copy() for a in args])
    assert len(got) == len(want)
    for g, w in zip(got, want):
        assert g.dtype == w.dtype and g.shape == w.shape
        np.testing.assert_allclose(g, w, rtol=rtol, atol=atol)
    return got


def rand(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(f4)


SOFTMAX = """
func @f(%x: buf<f32[6,50]>, %y: buf<f32[6,50]>) -> () attributes {n_inputs = 1, n_outputs = 1} {
  loop.parallel() {extents = [6]} ({^(%i: i64):
    %z = scalar.constant() {value = 0, dtype = i64} : i64
    %n = scalar.constant() {value = 50, dtype = i64} : i64
    %m = loop.reduce(%z, %n) {kinds = ["max"]} ({^(%k: i64):
      %a = loop.load(%x, %i, %k) : f32
      scf.yield(%a)
    }) : f32
    %s, %q = loop.reduce(%z, %n) {kinds = ["add", "add"]} ({^(%k: i64):
      %a = loop.load(%x, %i, %k) : f32
      %b = scalar.sub(%a, %m) : f32
      %e = scalar.exp(%b) : f32
      %p = scalar.mul(%a, %a) : f32
      scf.yield(%e, %p)
    }) : f32, f32
    loop.for(%z, %n) {step = 1} ({^(%k: i64):
      %a = loop.load(%x, %i, %k) : f32
      %b = scalar.sub(%a, %m) : f32
      %e = scalar.exp(%b) : f32
      %d = scalar.div(%e, %s) : f32
      %r = scalar.add(%d, %q) : f32
      loop.store(%r, %y, %i, %k)
      scf.yield()
    })
    scf.yield()
  })
  func.return()
}
"""


@pytest.mark.parametrize("as_gpu", [False, True])
def test_reduce_and_loops_inside_a_kernel(as_gpu):
    check(SOFTMAX, rand(6, 50), rtol=2e-6, as_gpu=as_gpu)
    assert "barrier" not in program(SOFTMAX, as_gpu).source()            # the last loop does not say that it is independent


# In place, with a row kept in a private buffer, a value stored at the row's own level and read again, and bool and bf16 reductions.
ROWS = """
func @f(%x: buf<f32[6,100]>, %y: buf<f32[6,100]>, %mean: buf<f32[6]>, %any: buf<bool[6]>, %h: buf<bf16[6]>) -> ()
    attributes {n_inputs = 1, n_outputs = 4, donate = [[0, 0]]} {
  loop.parallel() {extents = [6]} ({^(%i: i64):
    %z = scalar.constant() {value = 0, dtype = i64} : i64
    %n = scalar.constant() {value = 100, dtype = i64} : i64
    %row = loop.alloc() {type = buf<f32[100]>} : buf<f32[100]>
    loop.for(%z, %n) {step = 1, independent = true} ({^(%k: i64):
      %a = loop.load(%x, %i, %k) : f32
      %e = scalar.exp(%a) : f32
      loop.store(%e, %row, %k)
      scf.yield()
    })
    %s, %any0, %top = loop.reduce(%z, %n) {kinds = ["add", "or", "max"]} ({^(%k: i64):
      %a = loop.load(%row, %k) : f32
      %nine = scalar.constant() {value = 9.0, dtype = f32} : f32
      %c = scalar.compare(%a, %nine) {predicate = "gt"} : bool
      scf.yield(%a, %c, %a)
    }) : f32, bool, f32
    %hs = loop.reduce(%z, %n) {kinds = ["add"]} ({^(%k: i64):
      %a = loop.load(%row, %k) : f32
      %b = scalar.cast(%a) {dtype = bf16} : bf16
      scf.yield(%b)
    }) : bf16
    loop.store(%hs, %h, %i)
    loop.store(%any0, %any, %i)
    loop.store(%s, %mean, %i)
    %s2 = loop.load(%mean, %i) : f32
    %first = loop.load(%x, %i, %z) : f32
    loop.for(%z, %n) {step = 3, independent = true} ({^(%k: i64):
      %a = loop.load(%row, %k) : f32
      %d = scalar.div(%a, %s2) : f32
      %f = scalar.add(%d, %first) : f32
      %g = scalar.add(%f, %top) : f32
      loop.store(%g, %y, %i, %k)
      scf.yield()
    })
    scf.yield()
  })
  func.return()
}
"""


@pytest.mark.parametrize("as_gpu", [False, True])
def test_rows_shared_by_a_work_group(as_gpu):
    assert ("barrier" in program(ROWS, as_gpu).source()) == as_gpu
    check(ROWS, rand(6, 100), rtol=1e-6, as_gpu=as_gpu)


def test_carried_values_views_private_memory_and_branches():
    """Fibonacci into a private buffer, seen through a strided view; a swap of carried values; an if with results; a while."""
    check("""
func @f(%x: buf<i64[8]>, %y: buf<i64[8]>) -> () attributes {n_inputs = 1, n_outputs = 1} {
  loop.parallel() {extents = [8]} ({^(%i: i64):
    %z = scalar.constant() {value = 0, dtype = i64} : i64
    %one = scalar.constant() {value = 1, dtype = i64} : i64
    %n = scalar.constant() {value = 12, dtype = i64} : i64
    %t = loop.alloc() {type = buf<i64[24]>} : buf<i64[24]>
    %v = loop.view(%t, %one) {shape = [12], strides = [2]} : buf<i64[12], [2]>
    %x0 = loop.load(%x, %i) : i64
    %a, %b = loop.for(%z, %n, %x0, %one) {step = 1} ({^(%k: i64, %p: i64, %q: i64):
      loop.store(%p, %v, %k)
      %s = scalar.add(%p, %q) : i64
      scf.yield(%q, %s)
    }) : i64, i64
    %c0 = scalar.compare(%x0, %z) {predicate = "lt"} : bool
    %w = loop.if(%c0) ({^():
      %neg = scalar.neg(%a) : i64
      scf.yield(%neg)
    }, {^():
      scf.yield(%b)
    }) : i64
    %cell = loop.alloc() {type = buf<i64[]>} : buf<i64[]>
    loop.store(%w, %cell)
    %limit = scalar.constant() {value = 100, dtype = i64} : i64
    loop.while() ({^():
      %c = loop.load(%cell) : i64
      %big = scalar.compare(%c, %limit) {predicate = "gt"} : bool
      scf.yield(%big)
    }, {^():
      %c = loop.load(%cell) : i64
      %five = scalar.constant() {value = 5, dtype = i64} : i64
      %d = scalar.floordiv(%c, %five) : i64
      loop.store(%d, %cell)
      scf.yield()
    })
    %e = loop.load(%cell) : i64
    %last = loop.load(%v, %i) : i64
    %r = scalar.add(%e, %last) : i64
    loop.store(%r, %y, %i)
    scf.yield()
  })
  func.return()
}
""", np.array([0, 1, -3, 4, 7, -100, 2**40, -(2**62)]))


def test_large_private_memory_is_scratch():
    """300 floats (1200 bytes) an iteration, more iterations than work-items that get scratch memory."""
    n = 5000
    (y,) = check(f"""
func @f(%x: buf<f32[{n}]>, %y: buf<f32[{n}]>) -> () attributes {{n_inputs = 1, n_outputs = 1}} {{
  loop.parallel() {{extents = [{n}]}} ({{^(%i: i64):
    %z = scalar.constant() {{value = 0, dtype = i64}} : i64
    %n = scalar.constant() {{value = 300, dtype = i64}} : i64
    %t = loop.alloc() {{type = buf<f32[300]>}} : buf<f32[300]>
    %x0 = loop.load(%x, %i) : f32
    loop.for(%z, %n) {{step = 299}} ({{^(%k: i64):
      %kf = scalar.cast(%k) {{dtype = f32}} : f32
      %s = scalar.add(%kf, %x0) : f32
      loop.store(%s, %t, %k)
      scf.yield()
    }})
    %last = scalar.constant() {{value = 299, dtype = i64}} : i64
    %r = loop.load(%t, %last) : f32
    loop.store(%r, %y, %i)
    scf.yield()
  }})
  func.return()
}}
""", rand(n))
    assert y.shape == (n,)


HOST = """
func @double(%x: buf<f32[4]>, %y: buf<f32[4]>) -> () attributes {n_inputs = 1, n_outputs = 1} {
  %t = loop.alloc() {type = buf<f32[4]>} : buf<f32[4]>
  loop.parallel() {extents = [4]} ({^(%i: i64):
    %a = loop.load(%x, %i) : f32
    %b = scalar.add(%a, %a) : f32
    loop.store(%b, %t, %i)
    scf.yield()
  })
  loop.copy(%y, %t)
  func.return()
}
func @f(%n: buf<i64[]>, %x: buf<f32[3,4]>, %y: buf<f32[4,3]>, %count: buf<i64[]>) -> () attributes {n_inputs = 2, n_outputs = 2} {
  %a = loop.alloc() {type = buf<f32[4]>} : buf<f32[4]>
  %b = loop.alloc() {type = buf<f32[3,4]>} : buf<f32[3,4]>
  %z = scalar.constant() {value = 0, dtype = i64} : i64
  %one = scalar.constant() {value = 1, dtype = i64} : i64
  %hi = loop.load(%n) : i64
  %steps = loop.for(%z, %hi, %z) {step = 1} ({^(%i: i64, %s: i64):
    %four = scalar.constant() {value = 4, dtype = i64} : i64
    %at = scalar.mul(%i, %four) : i64
    %row = loop.view(%x, %at) {shape = [4], strides = [1]} : buf<f32[4], [1]>
    %out = loop.view(%b, %at) {shape = [4], strides = [1]} : buf<f32[4], [1]>
    %even0 = scalar.and(%i, %one) : i64
    %even = scalar.compare(%even0, %z) {predicate = "eq"} : bool
    %k = loop.if(%even) ({^():
      loop.call(%row, %a) {callee = "double"}
      loop.call(%a, %out) {callee = "double"}
      %two = scalar.constant() {value = 2, dtype = i64} : i64
      scf.yield(%two)
    }, {^():
      loop.parallel() {extents = [4]} ({^(%j: i64):
        %v = loop.load(%row, %j) : f32
        %f = scalar.cast(%i) {dtype = f32} : f32
        %w = scalar.mul(%v, %f) : f32
        loop.store(%w, %out, %j)
        scf.yield()
      })
      scf.yield(%one)
    }) : i64
    %s2 = scalar.add(%s, %k) : i64
    scf.yield(%s2)
  }) : i64
  %bt = loop.view(%b, %z) {shape = [4,3], strides = [1,4]} : buf<f32[4,3], [1,4]>
  loop.copy(%y, %bt)
  loop.parallel() {extents = []} ({^():
    loop.store(%steps, %count)
    scf.yield()
  })
  func.return()
}
"""


def test_host_level_loops_calls_views_and_copies():
    _, count = check(HOST, np.array(3), rand(3, 4))
    assert count == 5


def test_host_level_while():
    check("""
func @f(%x: buf<f32[]>, %y: buf<f32[]>) -> () attributes {n_inputs = 1, n_outputs = 1} {
  loop.copy(%y, %x)
  loop.while() ({^():
    %v = loop.load(%y) : f32
    %limit = scalar.constant() {value = 100.0, dtype = f32} : f32
    %c = scalar.compare(%v, %limit) {predicate = "lt"} : bool
    scf.yield(%c)
  }, {^():
    loop.parallel() {extents = []} ({^():
      %v = loop.load(%y) : f32
      %r = scalar.add(%v, %v) : f32
      loop.store(%r, %y)
      scf.yield()
    })
    scf.yield()
  })
  func.return()
}
""", np.array(1.5, f4))


@pytest.mark.parametrize("n,descending", [(1, False), (7, True), (32, False), (33, True), (200, False), (200, True)])
@pytest.mark.parametrize("dtype", ["f32", "i32", "bf16"])
def test_sort_inside_and_at_host_level(n, descending, dtype):
    from engram.compiler.ir.types import DTYPES
    rng = np.random.default_rng(n)
    x = rng.integers(-5, 5, (3, n)).astype(DTYPES[dtype].numpy)
    if dtype == "f32" and n > 5:
        x[0, [1, 4]], x[1, 2], x[2, 3] = np.nan, -0.0, np.inf
    flag = str(descending).lower()
    check(f"""
func @f(%x: buf<{dtype}[3,{n}]>, %v: buf<{dtype}[3,{n}]>, %i: buf<i64[3,{n}]>, %w: buf<{dtype}[{n}]>, %j: buf<i64[{n}]>) -> ()
    attributes {{n_inputs = 1, n_outputs = 4}} {{
  loop.copy(%v, %x)
  %z = scalar.constant() {{value = 0, dtype = i64}} : i64
  loop.parallel() {{extents = [3,{n}]}} ({{^(%a: i64, %b: i64):
    loop.store(%b, %i, %a, %b)
    scf.yield()
  }})
  loop.parallel() {{extents = [{n}]}} ({{^(%b: i64):
    loop.store(%b, %j, %b)
    scf.yield()
  }})
  loop.parallel() {{extents = [3]}} ({{^(%r: i64):
    %n = scalar.constant() {{value = {n}, dtype = i64}} : i64
    %at = scalar.mul(%r, %n) : i64
    %vr = loop.view(%v, %at) {{shape = [{n}], strides = [1]}} : buf<{dtype}[{n}], [1]>
    %ir = loop.view(%i, %at) {{shape = [{n}], strides = [1]}} : buf<i64[{n}], [1]>
    loop.sort(%vr, %ir) {{descending = {flag}}}
    scf.yield()
  }})
  %x0 = loop.view(%x, %z) {{shape = [{n}], strides = [1]}} : buf<{dtype}[{n}], [1]>
  loop.copy(%w, %x0)
  loop.sort(%w, %j) {{descending = {flag}}}
  func.return()
}}
""", x)


GATHER = """
func @f(%x: buf<f32[10]>, %i: buf<i64[5]>, %y: buf<f32[5]>) -> () attributes {n_inputs = 2, n_outputs = 1} {
  loop.parallel() {extents = [5]} ({^(%k: i64):
    %z = scalar.constant() {value = 0, dtype = i64} : i64
    %top = scalar.constant() {value = 9, dtype = i64} : i64
    %j = loop.load(%i, %k) : i64
    %a = scalar.compare(%j, %z) {predicate = "ge"} : bool
    %b = scalar.compare(%j, %top) {predicate = "le"} : bool
    %ok = scalar.and(%a, %b) : bool
    loop.assert(%ok, %j) {message = "index {} is out of range 0..10"} loc("a.nn":7:3)
    %l = scalar.max(%j, %z) : i64
    %c = scalar.min(%l, %top) : i64
    %v = loop.load(%x, %c) : f32
    loop.store(%v, %y, %k)
    scf.yield()
  })
  func.return()
}
"""


def test_a_failed_assert_is_raised_with_its_place_and_value():
    p = program(GATHER)
    x = rand(10)
    with pytest.raises(RuntimeError_) as e:
        p.call("f", [x, np.array([0, 3, -(2**40) - 5, 9, 2])])
    assert e.value.message == f"index {-(2**40) - 5} is out of range 0..10" and (e.value.loc.line, e.value.loc.col) == (7, 3)
    i = np.array([0, 3, 4, 9, 2])
    np.testing.assert_array_equal(p.call("f", [x, i])[0], x[i])          # the error does not stick


def test_integer_division_by_zero_is_a_run_time_error():
    text = """
func @f(%x: buf<i32[6]>, %y: buf<i32[6]>, %q: buf<i32[6]>) -> () attributes {n_inputs = 2, n_outputs = 1} {
  loop.parallel() {extents = [6]} ({^(%i: i64):
    %a = loop.load(%x, %i) : i32
    %b = loop.load(%y, %i) : i32
    %c = scalar.floordiv(%a, %b) : i32 loc("d.nn":2:5)
    loop.store(%c, %q, %i)
    scf.yield()
  })
  func.return()
}
"""
    x = np.arange(6, dtype=np.int32)
    p = program(text)
    with pytest.raises(RuntimeError_, match="integer division by zero") as e:
        p.call("f", [x, x])
    assert e.value.loc.line == 2
    check(text, x, x + 1)


def test_donated_memory_is_the_results():
    p = program("""
func @f(%w: buf<f32[3]>, %g: buf<f32[3]>, %out: buf<f32[3]>) -> () attributes {n_inputs = 2, n_outputs = 1, donate = [[0, 0]]} {
  loop.parallel() {extents = [3]} ({^(%i: i64):
    %a = loop.load(%w, %i) : f32
    %b = loop.load(%g, %i) : f32
    %c = scalar.sub(%a, %b) : f32
    loop.store(%c, %out, %i)
    scf.yield()
  })
  func.return()
}
""")
    w, g = p.to_device(np.array([5, 6, 7], f4)), p.to_device(np.array([1, 2, 3], f4))
    memory = w.memory
    (r,) = p.call("f", [w, g])
    assert r.memory is memory
    np.testing.assert_array_equal(p.to_host(r), [4, 4, 4])
    with pytest.raises(ValueError, match="donated"):
        p.call("f", [w, g])
    (twice,) = p.call("f", [g, g])                                       # given twice: the result must not write into the other one
    np.testing.assert_array_equal(twice, [0, 0, 0])
    array = np.ones(3, f4)
    p.call("f", [array, array])
    np.testing.assert_array_equal(array, [1, 1, 1])                      # host arrays stay as they are


def test_constants_and_zero_sizes():
    check("""
func @f(%x: buf<f32[0,3]>, %y: buf<f32[0,3]>, %z: buf<i8[4]>) -> () attributes {n_inputs = 1, n_outputs = 2} {
  loop.copy(%y, %x)
  %c = loop.constant() {type = buf<i8[4]>, value = dense<i8[4], "01ff7f80">} : buf<i8[4]>
  %d = loop.constant() {type = buf<i8[4]>, value = dense<i8[4], "01ff7f80">} : buf<i8[4]>
  loop.parallel() {extents = [0]} ({^(%i: i64):
    scf.yield()
  })
  loop.parallel() {extents = [4]} ({^(%i: i64):
    %a = loop.load(%c, %i) : i8
    %b = loop.load(%d, %i) : i8
    %e = scalar.add(%a, %b) : i8
    loop.store(%e, %z, %i)
    scf.yield()
  })
  func.return()
}
""", np.zeros((0, 3), f4))


def test_equal_kernels_are_emitted_once():
    text = "\n".join(f"""
func @f{n}(%x: buf<f32[7]>, %y: buf<f32[7]>) -> () attributes {{n_inputs = 1, n_outputs = 1}} {{
  loop.parallel() {{extents = [7]}} ({{^(%i: i64):
    %a = loop.load(%x, %i) : f32
    %b = scalar.neg(%a) : f32
    loop.store(%b, %y, %i)
    scf.yield()
  }})
  func.return()
}}""" for n in range(3))
    p = program(text)
    assert p.source().count("__kernel ") == 1
    for n in range(3):
        np.testing.assert_array_equal(p.call(f"f{n}", [np.ones(7, f4)])[0], -np.ones(7))


def test_random_words_on_device_and_host():
    a, b = check("""
func @f(%k: buf<u64[]>, %r: buf<u32[8]>, %s: buf<u32[4]>) -> () attributes {n_inputs = 1, n_outputs = 2} {
  %k0 = loop.load(%k) : u64
  loop.parallel() {extents = [2]} ({^(%i: i64):
    %c = scalar.cast(%i) {dtype = u64} : u64
    %w0, %w1, %w2, %w3 = scalar.philox(%k0, %c) {domain = 0} : u32, u32, u32, u32
    %four = scalar.constant() {value = 4, dtype = i64} : i64
    %at = scalar.mul(%i, %four) : i64
    %v = loop.view(%r, %at) {shape = [4], strides = [1]} : buf<u32[4], [1]>
    %i0 = scalar.constant() {value = 0, dtype = i64} : i64
    %i1 = scalar.constant() {value = 1, dtype = i64} : i64
    %i2 = scalar.constant() {value = 2, dtype = i64} : i64
    %i3 = scalar.constant() {value = 3, dtype = i64} : i64
    loop.store(%w0, %v, %i0)
    loop.store(%w1, %v, %i1)
    loop.store(%w2, %v, %i2)
    loop.store(%w3, %v, %i3)
    scf.yield()
  })
  %one = scalar.constant() {value = 1, dtype = u64} : u64
  %h0, %h1, %h2, %h3 = scalar.philox(%k0, %one) {domain = 0} : u32, u32, u32, u32
  loop.parallel() {extents = [4]} ({^(%i: i64):
    %two = scalar.constant() {value = 2, dtype = i64} : i64
    %low = scalar.compare(%i, %two) {predicate = "lt"} : bool
    %bit0 = scalar.and(%i, %two) : i64
    %odd0 = scalar.mod(%i, %two) : i64
    %z = scalar.constant() {value = 0, dtype = i64} : i64
    %even = scalar.compare(%odd0, %z) {predicate = "eq"} : bool
    %p = scalar.select(%even, %h0, %h1) : u32
    %q = scalar.select(%even, %h2, %h3) : u32
    %w = scalar.select(%low, %p, %q) : u32
    loop.store(%w, %s, %i)
    scf.yield()
  })
  func.return()
}
""", np.array(2**40 + 17, np.uint64))
    np.testing.assert_array_equal(a[4:], b)


def test_wrong_arguments_are_value_errors():
    p = program(GATHER)
    i = np.zeros(5, np.int64)
    with pytest.raises(ValueError, match="takes 2 arrays, got 1"):
        p.call("f", [rand(10)])
    with pytest.raises(ValueError, match=r"argument x .*expected f32\[10\], got f32\[9\]"):
        p.call("f", [rand(9), i])
    with pytest.raises(ValueError, match=r"expected f32\[10\], got f64\[10\]"):
        p.call("f", [rand(10).astype(np.float64), i])
    with pytest.raises(ValueError, match="no function"):
        p.call("g", [])


def test_the_environment_names_the_device(monkeypatch):
    from engram.compiler.diagnostics import BackendUnavailable
    monkeypatch.setenv("ENGRAM_OPENCL_DEVICE", "no such device")
    with pytest.raises(BackendUnavailable, match="names none of the OpenCL devices"):
        devices.device()
    monkeypatch.setenv("ENGRAM_OPENCL_DEVICE", "0")
    working = [c for c in devices.candidates() if c.problem is None]
    assert working
    monkeypatch.setenv("ENGRAM_OPENCL_DEVICE", str(working[0].index))
    assert devices.device().caps.name == working[0].label


def test_memory_is_checked_before_it_is_taken():
    p = program("""
func @f(%x: buf<f32[1]>, %y: buf<f32[2000000,2000000]>) -> () attributes {n_inputs = 1, n_outputs = 1} {
  func.return()
}
""")
    with pytest.raises(MemoryError, match="in one piece"):
        p.call("f", [rand(1)])


def test_a_kernel_that_allows_small_groups_only_is_emitted_again(monkeypatch):
    from engram.codegen.opencl import host
    prepare = host.Launch.prepare
    monkeypatch.setattr(host.Launch, "prepare", lambda self, *a: prepare(self, *a) and 32)
    p = program(ROWS, as_gpu=True)
    assert "reqd_work_group_size(32, 1, 1)" in p.source()
    x = rand(6, 100)
    np.testing.assert_array_equal(p.call("f", [x])[2], (np.exp(x) > 9).any(1))
