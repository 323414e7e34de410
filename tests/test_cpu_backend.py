"""CpuProgram against the interpreter: every op of the table at several dtypes, and loop programs written out by hand, on
several machine descriptions and thread counts (which must agree bit for bit)."""
import os
import pickle
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from engram.codegen.cpu.program import CpuProgram, compile_module, llvm_text
from engram.compiler.diagnostics import RuntimeError_
from engram.compiler.ir import DTYPES
from engram.compiler.ir.core import clone_module
from engram.compiler.ir.parser import parse_module
from engram.compiler.ops import NN, OPS, TENSOR
from engram.interp.interpreter import Interpreter
from engram.passes.decompose import Decompose
from engram.passes.lower_to_loops import LowerToLoops
from engram.passes.plan_buffers import PlanBuffers
from helpers import fits, make_op_module, make_scalar_module, sample_arrays, with_dtype

RTOL = {"f64": 1e-13, "f32": 1e-6, "f16": 2e-3, "bf16": 1e-2}
DTYPE_NAMES = ["f32", "f64", "f16", "bf16", "i32", "i64", "u8", "bool"]


def lowered(module):
    module = clone_module(module)
    for p in (Decompose, LowerToLoops, PlanBuffers):
        module = p().apply(module) or module
    return module


def assert_close(got, want, what=""):
    assert got.dtype == want.dtype and got.shape == want.shape, (what, got.dtype, want.dtype, got.shape, want.shape)
    name = str(want.dtype).replace("bfloat", "bf").replace("float", "f")
    if name not in RTOL:
        np.testing.assert_array_equal(got, want, err_msg=str(what))
        return
    a, b = got.astype(np.float64), want.astype(np.float64)
    scale = np.max(np.abs(b[np.isfinite(b)]), initial=0.0)
    np.testing.assert_allclose(a, b, rtol=4 * RTOL[name], atol=2 * RTOL[name] * scale, err_msg=str(what))


def same_bits(a, b):
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


SAMPLED = [name for name, row in OPS.items()
           if row.samples and row.stages & {NN, TENSOR} and not name.startswith(("autodiff.", "learn."))]


@pytest.mark.parametrize("name", SAMPLED)
def test_op(name):
    """Through decomposition and lowering; all dtypes the op takes."""
    row, ran = OPS[name], 0
    for sample in row.samples:
        for dtype in [None, *DTYPE_NAMES] if sample.inputs else [None]:
            s = with_dtype(sample, dtype) if dtype else sample
            if not fits(row, s):
                continue
            module = make_op_module(row, s)
            xs = sample_arrays(s)
            try:
                loops = lowered(module)
                want = Interpreter(module).call("f", [x.copy() for x in xs])
            except (TypeError, NotImplementedError) as e:
                if dtype in ("f32", "i32", None):
                    raise
                pytest.skip(f"{dtype}: {e}")
            got = CpuProgram(loops, threads=2).call("f", xs)
            for g, w in zip(got, want, strict=True):
                if name.startswith("random."):
                    assert g.tobytes() == w.tobytes(), (name, s.attrs)
                assert_close(g, w, (name, dtype, s.attrs))
            ran += 1
    assert ran or not row.samples


ELEMENTWISE = sorted({n.partition(".")[2] for n, r in OPS.items() if n.startswith("tensor.") and r.elementwise and r.samples})
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.5, -2.5, 1e-40, 3e38, -3e38, np.inf, -np.inf, np.nan, 65504.0, 65520.0, 1e-7]


@pytest.mark.parametrize("machine", ["", "avx2", "generic"])
@pytest.mark.parametrize("name", ["max", "min", "sign", "round", "floor", "mod", "fmod", "floordiv", "compare", "abs", "neg", "div", "sqrt"])
def test_special_values(name, machine, monkeypatch):
    """Every pair of special values, exactly as the interpreter has them."""
    monkeypatch.setenv("ENGRAM_CPU", machine)
    row = OPS[f"tensor.{name}"]
    for dtype in ("f32", "f64", "f16", "bf16"):
        sample = with_dtype(row.samples[0], dtype)
        n = len(SPECIAL)
        shape = f"{dtype}[{n * n}]"
        sample = type(sample)(tuple((shape, lo, hi) for _, lo, hi in sample.inputs), sample.attrs)
        module = make_scalar_module(row, sample)
        with np.errstate(all="ignore"):
            values = np.array(SPECIAL).astype(DTYPES[dtype].numpy)
        xs = [np.repeat(values, n), np.tile(values, n)][:len(sample.inputs)]
        want, = Interpreter(module).call("f", [x.copy() for x in xs])
        got, = CpuProgram(module, threads=1).call("f", xs)
        same = (got == want) | ((got != got) & (want != want))
        same &= (got != got) | (np.signbit(got) == np.signbit(want))
        assert same.all(), (name, dtype, [(x[~same][0], ) for x in xs], got[~same][0], want[~same][0])


@pytest.mark.parametrize("source", ["f64", "f32", "f16", "bf16", "i64", "i32", "u8", "bool"])
def test_casts(source, monkeypatch):
    """All targets, with values that overflow, saturate and round twice if one is careless."""
    row = OPS["tensor.cast"]
    rng = np.random.default_rng(0)
    for target in ("f64", "f32", "f16", "bf16", "i64", "i32", "i8", "u64", "u8", "bool"):
        a, b = DTYPES[source], DTYPES[target]
        if a.is_float:
            wide = np.concatenate([SPECIAL, rng.standard_normal(300) * 10.0 ** rng.integers(-8, 12, 300), [1 + 2**-8 + 2**-30, 1 + 2**-11 + 2**-40]])
            with np.errstate(all="ignore"):
                x = wide.astype(a.numpy)
        else:
            x = rng.integers(a.min, a.max, 320, a.numpy, endpoint=True) if not a.is_bool else rng.integers(0, 2, 320).astype(bool)
        module = make_scalar_module(row, type(row.samples[0] if row.samples else OPS["tensor.add"].samples[0])(
            ((f"{source}[{x.size}]", -9, 9),), {"dtype": b}))
        want, = Interpreter(module).call("f", [x.copy()])
        got, = CpuProgram(module, threads=1).call("f", [x])
        assert np.array_equal(got.astype(np.float64), want.astype(np.float64), equal_nan=True) if b.is_float else np.array_equal(got, want), target


# ---- loop programs ------------------------------------------------------------------------------------------------------

def program(args: str, body: str, n_inputs: int, n_outputs: int, attrs: str = "", more: str = ""):
    return parse_module(f"""module attributes {{stage = "loop"}} {{
{more}
  func @f({args}) -> () attributes {{n_inputs = {n_inputs}, n_outputs = {n_outputs}{attrs}}} {{
{body}
    func.return()
  }}
}}
""")


def const(name, value, dtype="i64"):
    return f"%{name} = scalar.constant() {{value = {value}, dtype = {dtype}}} : {dtype}"


PROGRAMS = {
    "rows": ("%x: buf<f32[33,70]>, %y: buf<f32[33,70]>, %s: buf<f32[33]>", """
    loop.parallel() {extents = [33]} ({^(%i: i64):
      ZERO
      %n = scalar.constant() {value = 70, dtype = i64} : i64
      %t = loop.alloc() {type = buf<f32[70]>} : buf<f32[70]>
      %m = loop.reduce(%z, %n) {kinds = ["max"]} ({^(%k: i64):
        %a = loop.load(%x, %i, %k) : f32
        scf.yield(%a)}) : f32
      loop.for(%z, %n) {step = 1, independent = true} ({^(%k: i64):
        %a = loop.load(%x, %i, %k) : f32
        %b = scalar.sub(%a, %m) : f32
        %e = scalar.exp(%b) : f32
        loop.store(%e, %t, %k)
        scf.yield()})
      %sum = loop.reduce(%z, %n) {kinds = ["add"]} ({^(%k: i64):
        %a = loop.load(%t, %k) : f32
        scf.yield(%a)}) : f32
      loop.store(%sum, %s, %i)
      loop.for(%z, %n) {step = 1, independent = true} ({^(%k: i64):
        %a = loop.load(%t, %k) : f32
        %q = scalar.div(%a, %sum) : f32
        loop.store(%q, %y, %i, %k)
        scf.yield()})
      scf.yield()})""", 1, 2),
    "columns": ("%x: buf<f32[40,75]>, %s: buf<f32[75]>, %p: buf<f32[75]>", """
    loop.parallel() {extents = [75]} ({^(%j: i64):
      ZERO
      %n = scalar.constant() {value = 40, dtype = i64} : i64
      %sum, %big = loop.reduce(%z, %n) {kinds = ["add", "min"]} ({^(%k: i64):
        %a = loop.load(%x, %k, %j) : f32
        %b = scalar.mul(%a, %a) : f32
        scf.yield(%b, %a)}) : f32, f32
      loop.store(%sum, %s, %j)
      loop.store(%big, %p, %j)
      scf.yield()})""", 1, 2),
    "guarded": ("%x: buf<f32[9,50]>, %y: buf<f32[9,54]>", """
    loop.parallel() {extents = [9, 54]} ({^(%i: i64, %j: i64):
      ZERO
      %two = scalar.constant() {value = 2, dtype = i64} : i64
      %n = scalar.constant() {value = 50, dtype = i64} : i64
      %pad = scalar.constant() {value = -3.5, dtype = f32} : f32
      %k = scalar.sub(%j, %two) : i64
      %lo = scalar.compare(%k, %z) {predicate = "ge"} : bool
      %hi = scalar.compare(%k, %n) {predicate = "lt"} : bool
      %in = scalar.and(%lo, %hi) : bool
      %v = loop.if(%in) ({^(): %a = loop.load(%x, %i, %k) : f32
         scf.yield(%a)}, {^(): scf.yield(%pad)}) : f32
      loop.store(%v, %y, %i, %j)
      scf.yield()})""", 1, 1),
    "gather": ("%t: buf<f32[20,37]>, %at: buf<i32[50]>, %y: buf<f32[50,37]>, %z2: buf<f32[50]>", """
    loop.parallel() {extents = [50, 37]} ({^(%i: i64, %j: i64):
      %r = loop.load(%at, %i) : i32
      %k = scalar.cast(%r) {dtype = i64} : i64
      %v = loop.load(%t, %k, %j) : f32
      loop.store(%v, %y, %i, %j)
      scf.yield()})
    loop.parallel() {extents = [50]} ({^(%i: i64):
      %three = scalar.constant() {value = 3, dtype = i64} : i64
      %r = loop.load(%at, %i) : i32
      %k = scalar.cast(%r) {dtype = i64} : i64
      %v = loop.load(%t, %k, %three) : f32
      loop.store(%v, %z2, %i)
      scf.yield()})""", 2, 2),
    "split_index": ("%x: buf<f32[6,30]>, %y: buf<f32[180]>, %w: buf<f32[180]>", """
    loop.parallel() {extents = [180]} ({^(%i: i64):
      %n = scalar.constant() {value = 30, dtype = i64} : i64
      %sixteen = scalar.constant() {value = 4, dtype = i64} : i64
      %low = scalar.constant() {value = 15, dtype = i64} : i64
      %a = scalar.floordiv(%i, %n) : i64
      %b = scalar.mod(%i, %n) : i64
      %v = loop.load(%x, %a, %b) : f32
      loop.store(%v, %y, %i)
      %c = scalar.shr(%i, %sixteen) : i64
      %d = scalar.and(%i, %low) : i64
      %e = scalar.mul(%c, %d) : i64
      %g = scalar.cast(%e) {dtype = f32} : f32
      loop.store(%g, %w, %i)
      scf.yield()})""", 1, 2),
    "while_and_sort": ("%x: buf<f32[5,33]>, %y: buf<f32[5,33]>, %at: buf<i64[5,33]>, %steps: buf<i64[5]>", """
    loop.parallel() {extents = [5]} ({^(%i: i64):
      ZERO
      %n = scalar.constant() {value = 33, dtype = i64} : i64
      %one = scalar.constant() {value = 1, dtype = i64} : i64
      %off = scalar.mul(%i, %n) : i64
      %row = loop.view(%y, %off) {shape = [33], strides = [1]} : buf<f32[33], [1]>
      %idx = loop.view(%at, %off) {shape = [33], strides = [1]} : buf<i64[33], [1]>
      loop.for(%z, %n) {step = 1, independent = true} ({^(%k: i64):
        %a = loop.load(%x, %i, %k) : f32
        loop.store(%a, %row, %k)
        loop.store(%k, %idx, %k)
        scf.yield()})
      loop.sort(%row, %idx) {descending = false}
      loop.store(%z, %steps, %i)
      loop.while() ({^(): %c = loop.load(%steps, %i) : i64
        %more = scalar.compare(%c, %i) {predicate = "lt"} : bool
        scf.yield(%more)}, {^(): %c = loop.load(%steps, %i) : i64
        %d = scalar.add(%c, %one) : i64
        loop.store(%d, %steps, %i)
        scf.yield()})
      scf.yield()})""", 1, 3),
    "scan": ("%x: buf<f32[7,40]>, %y: buf<f32[7,40]>, %last: buf<f32[40]>", """
    ZERO
    %n = scalar.constant() {value = 7, dtype = i64} : i64
    %w = scalar.constant() {value = 40, dtype = i64} : i64
    %state = loop.alloc() {type = buf<f32[40]>, offset = 0} : buf<f32[40]>
    loop.parallel() {extents = [40]} ({^(%j: i64):
      %o = scalar.constant() {value = 0.0, dtype = f32} : f32
      loop.store(%o, %state, %j)
      scf.yield()})
    loop.for(%z, %n) {step = 1} ({^(%t: i64):
      %off = scalar.mul(%t, %w) : i64
      %row = loop.view(%x, %off) {shape = [40], strides = [1]} : buf<f32[40], [1]>
      %out = loop.view(%y, %off) {shape = [40], strides = [1]} : buf<f32[40], [1]>
      loop.parallel() {extents = [40]} ({^(%j: i64):
        %a = loop.load(%row, %j) : f32
        %s = loop.load(%state, %j) : f32
        %b = scalar.add(%a, %s) : f32
        %c = scalar.tanh(%b) : f32
        loop.store(%c, %state, %j)
        loop.store(%c, %out, %j)
        scf.yield()})
      scf.yield()})
    loop.copy(%last, %state)""", 1, 2),
    "spread": ("%x: buf<f32[5,140]>, %p: buf<f32[5,35,2,2]>, %y: buf<f32[5,47]>, %w: buf<f32[5,70]>, %q: buf<f32[5,140]>", """
    loop.parallel() {extents = [5, 47]} ({^(%i: i64, %j: i64):
      %three = scalar.constant() {value = 3, dtype = i64} : i64
      %k = scalar.mul(%j, %three) : i64
      %v = loop.load(%x, %i, %k) : f32
      loop.store(%v, %y, %i, %j)
      scf.yield()})
    loop.parallel() {extents = [5, 70]} ({^(%i: i64, %j: i64):
      %one = scalar.constant() {value = 1, dtype = i64} : i64
      %two = scalar.constant() {value = 2, dtype = i64} : i64
      %a = scalar.shr(%j, %one) : i64
      %b = scalar.and(%j, %one) : i64
      %c = scalar.mod(%j, %two) : i64
      %v = loop.load(%p, %i, %a, %c, %b) : f32
      loop.store(%v, %w, %i, %j)
      scf.yield()})
    loop.parallel() {extents = [5, 70]} ({^(%i: i64, %j: i64):
      %one = scalar.constant() {value = 1, dtype = i64} : i64
      %two = scalar.constant() {value = 2, dtype = i64} : i64
      %k = scalar.mul(%j, %two) : i64
      %k1 = scalar.add(%k, %one) : i64
      %v = loop.load(%x, %i, %k) : f32
      %u = loop.load(%x, %i, %k1) : f32
      %s = scalar.max(%v, %u) : f32
      loop.store(%s, %q, %i, %k)
      loop.store(%u, %q, %i, %k1)
      scf.yield()})""", 2, 3),
    "sum_to": ("%x: buf<f32[100]>, %len: buf<i64[]>, %s: buf<f32[1]>", """
    ZERO
    %n = loop.load(%len) : i64
    loop.parallel() {extents = [1]} ({^(%i: i64):
      %r = loop.reduce(%z, %n) {kinds = ["add"]} ({^(%k: i64):
        %a = loop.load(%x, %k) : f32
        scf.yield(%a)}) : f32
      loop.store(%r, %s, %i)
      scf.yield()})""", 2, 1),
    "contractions": ("%a: buf<f32[4,21,30]>, %b: buf<f32[4,30,9]>, %h: buf<bf16[5,6]>, %y: buf<f32[4,21,9]>, %v: buf<f32[21,4]>, %g: buf<bf16[5,5]>", """
    loop.contract(%y, %a, %b) {out = "bmn", lhs = "bmk", rhs = "bkn", accumulate = false}
    loop.contract(%y, %a, %b) {out = "bmn", lhs = "bmk", rhs = "bkn", accumulate = true}
    loop.contract(%v, %a, %b) {out = "mb", lhs = "bmk", rhs = "bkn", accumulate = false}
    loop.contract(%g, %h, %h) {out = "mn", lhs = "mk", rhs = "nk", accumulate = false}""", 3, 3),
}


def inputs(module, seed=0):
    f, rng, out = module.funcs["f"], np.random.default_rng(seed), []
    for v in f.args[:f.attrs["n_inputs"]]:
        dt = v.type.dtype
        out.append(np.asarray(rng.standard_normal(v.type.shape)).astype(dt.numpy) if dt.is_float
                   else np.asarray(rng.integers(0, 20, v.type.shape)).astype(dt.numpy))
    return out


def parsed(name):
    args, body, n_in, n_out = PROGRAMS[name]
    body = re.sub(r"\bZERO\b", const("z", 0), body)
    return program(args, body, n_in, n_out, ", arena = 256")


@pytest.mark.parametrize("machine", ["", "avx2", "generic"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name, machine, monkeypatch):
    monkeypatch.setenv("ENGRAM_CPU", machine)
    module = parsed(name)
    xs = inputs(module)
    want = Interpreter(module).call("f", [x.copy() for x in xs])
    results = [CpuProgram(module, threads=t).call("f", xs) for t in (1, 2, 4)]
    for g, w in zip(results[0], want, strict=True):
        assert_close(g, w, name)
    assert all(same_bits(results[0], r) for r in results[1:])


def test_threads_share_large_kernels(monkeypatch):
    """With the small-kernel rule off, every kernel is split and every barrier matters."""
    from engram.codegen.cpu import emit
    monkeypatch.setattr(emit, "SINGLE_CYCLES", 0.0)
    for name in PROGRAMS:
        module = parsed(name)
        xs = inputs(module)
        want = CpuProgram(module, threads=1).call("f", xs)
        split = CpuProgram(module, threads=3)
        for _ in range(20):
            assert same_bits(want, split.call("f", xs)), name


def test_assert_reports_location_and_value():
    module = program("%at: buf<i64[40]>, %y: buf<i64[40]>", """
    loop.parallel() {extents = [40]} ({^(%i: i64):
      %n = scalar.constant() {value = 10, dtype = i64} : i64
      %v = loop.load(%at, %i) : i64
      %ok = scalar.compare(%v, %n) {predicate = "lt"} : bool
      loop.assert(%ok, %v) {message = "index {} is out of range 0..10"} loc("a.nn":3:5)
      loop.store(%v, %y, %i)
      scf.yield()})""", 1, 1)
    p = CpuProgram(module, threads=2)
    x = np.arange(40) % 10
    np.testing.assert_array_equal(p.call("f", [x])[0], x)
    x[37] = 12
    with pytest.raises(RuntimeError_, match="index 12 is out of range") as e:
        p.call("f", [x])
    assert (e.value.loc.file, e.value.loc.line) == ("a.nn", 3)
    x[37] = 2
    p.call("f", [x])                                     # the next launch starts without the error


@pytest.mark.parametrize("op", ["floordiv", "mod", "fmod"])
def test_division_by_zero(op):
    module = program("%a: buf<i32[20]>, %b: buf<i32[20]>, %y: buf<i32[20]>", f"""
    loop.parallel() {{extents = [20]}} ({{^(%i: i64):
      %v = loop.load(%a, %i) : i32
      %w = loop.load(%b, %i) : i32
      %q = scalar.{op}(%v, %w) : i32
      loop.store(%q, %y, %i)
      scf.yield()}})""", 2, 1)
    p = CpuProgram(module, threads=1)
    a, b = np.arange(-10, 10, dtype=np.int32), np.where(np.arange(20) % 2, 3, -3).astype(np.int32)
    a[0], b[0] = -2**31, -1                              # the quotient that does not fit wraps
    with np.errstate(all="ignore"):
        want = {"floordiv": np.floor_divide, "mod": np.mod, "fmod": np.fmod}[op](a.astype(np.int64), b).astype(np.int32)
    np.testing.assert_array_equal(p.call("f", [a, b])[0], want)
    b[7] = 0
    with pytest.raises(RuntimeError_, match="integer division by zero"):
        p.call("f", [a, b])


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_calls_with_many_pointers(threads, repeated):
    """Arguments, views of them, parts of the arena: as data filled in by the run-time, or as code where a loop repeats the call."""
    n = 40000                                                # so that two threads share the work
    adds = "\n".join(f"""      %a{k} = loop.load(%x{k}, %i) : f32
      %s{k} = scalar.add({f"%s{k - 1}" if k else "%z"}, %a{k}) : f32""" for k in range(8))
    call = """loop.call(%v, %v, %t, %v, %t, %t, %v, %t, %y) {callee = "sum", frame = 320000}"""
    body = f"""%lo = scalar.constant() {{value = 0, type = i64}} : i64
    %hi = scalar.constant() {{value = 3, type = i64}} : i64
    loop.for(%lo, %hi) ({{^(%k: i64):
      {call}
      scf.yield()}})""" if repeated else call
    callee = f"""
  func @sum({", ".join(f"%x{k}: buf<f32[{n}]>" for k in range(8))}, %y: buf<f32[{n}]>) -> () attributes {{n_inputs = 8, n_outputs = 1, arena = 64}} {{
    loop.parallel() {{extents = [{n}]}} ({{^(%i: i64):
      %z = scalar.constant() {{value = 0.0, type = f32}} : f32
{adds}
      loop.store(%s7, %y, %i)
      scf.yield()}})
    func.return()
  }}"""
    module = program(f"%x: buf<f32[{n + 2}]>, %y: buf<f32[{n}]>", f"""
    %one = scalar.constant() {{value = 1, type = i64}} : i64
    %w = loop.view(%x, %one) {{shape = [{n + 1}], strides = [1]}} : buf<f32[{n + 1}], [1]>
    %v = loop.view(%w, %one) {{shape = [{n}], strides = [1]}} : buf<f32[{n}], [1]>
    %t = loop.alloc() {{type = buf<f32[{n}]>, offset = 64}} : buf<f32[{n}]>
    loop.copy(%t, %v)
    {body}""", 1, 1, ", arena = 320064", callee)
    x = np.random.default_rng(0).normal(size=n + 2).astype("f4")
    p = CpuProgram(module, threads)
    want = np.zeros(n, "f4")
    for _ in range(8):
        want = want + x[2:]
    np.testing.assert_array_equal(p.call("f", [x])[0], want)


def test_donation_and_calls():
    """A result takes an argument's memory; callees have their own frames."""
    module = program("%x: buf<f32[64]>, %y: buf<f32[64]>, %s: buf<f32[64]>", """
    %t = loop.alloc() {type = buf<f32[64]>, offset = 0} : buf<f32[64]>
    loop.call(%x, %t) {callee = "twice", frame = 256}
    loop.call(%t, %s) {callee = "twice", frame = 256}
    loop.parallel() {extents = [64]} ({^(%i: i64):
      %a = loop.load(%x, %i) : f32
      %b = loop.load(%s, %i) : f32
      %c = scalar.add(%a, %b) : f32
      loop.store(%c, %y, %i)
      scf.yield()})""", 1, 2, ", arena = 512, donate = [[0, 0]]", """
  func @twice(%x: buf<f32[64]>, %y: buf<f32[64]>) -> () attributes {n_inputs = 1, n_outputs = 1, arena = 256} {
    %t = loop.alloc() {type = buf<f32[64]>, offset = 0} : buf<f32[64]>
    loop.copy(%t, %x)
    loop.parallel() {extents = [64]} ({^(%i: i64):
      %a = loop.load(%t, %i) : f32
      %b = scalar.add(%a, %a) : f32
      loop.store(%b, %y, %i)
      scf.yield()})
    func.return()
  }""")
    module.attrs["entries"] = ["f"]
    p = CpuProgram(module, threads=2)
    x = p.to_device(np.arange(64, dtype=np.float32))
    y, s = p.call("f", [x])
    assert y is x or y.ctypes.data == x.ctypes.data
    np.testing.assert_array_equal(s, 4 * np.arange(64))
    np.testing.assert_array_equal(y, 5 * np.arange(64))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="POSIX signals")
@pytest.mark.parametrize("place", ["host", "kernel"])
@pytest.mark.parametrize("threads", [1, 2])
def test_endless_loop_ends_on_interrupt(place, threads, monkeypatch):
    from engram.codegen.cpu import emit
    monkeypatch.setattr(emit, "SINGLE_CYCLES", 0.0)
    count = """
      %c = loop.load(%n) : i64
      %more = scalar.compare(%c, %z) {predicate = "ge"} : bool
      scf.yield(%more)"""
    if place == "host":
        body = f"""
    ZERO
    loop.while() ({{^(): {count}}}, {{^():
      loop.parallel() {{extents = [4]}} ({{^(%i: i64):
        loop.store(%i, %y, %i)
        scf.yield()}})
      scf.yield()}})"""
    else:
        body = f"""
    loop.parallel() {{extents = [4]}} ({{^(%i: i64):
      ZERO
      loop.while() ({{^(): {count}}}, {{^():
        loop.store(%i, %y, %i)
        scf.yield()}})
      scf.yield()}})"""
    module = program("%n: buf<i64[]>, %y: buf<i64[4]>", body.replace("ZERO", const("z", 0)), 1, 1, ", arena = 64")
    p = CpuProgram(module, threads=threads)
    done = np.array(-1)
    p.call("f", [done])                                  # not entered at all
    before = signal.getsignal(signal.SIGINT)
    for _ in range(2):
        killer = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(0.3); os.kill({os.getpid()}, 2)"])
        with pytest.raises(KeyboardInterrupt):
            p.call("f", [np.array(1)])
            time.sleep(0.5)
        killer.wait()
    assert signal.getsignal(signal.SIGINT) is before
    p.call("f", [done])


def test_donated_argument_passed_twice():
    """The other use of the same array keeps its value."""
    module = program("%x: buf<f32[40]>, %w: buf<f32[40]>, %y: buf<f32[40]>, %z: buf<f32[40]>", """
    loop.parallel() {extents = [40]} ({^(%i: i64):
      %a = loop.load(%x, %i) : f32
      %b = scalar.add(%a, %a) : f32
      loop.store(%b, %y, %i)
      scf.yield()})
    loop.parallel() {extents = [40]} ({^(%i: i64):
      %a = loop.load(%w, %i) : f32
      loop.store(%a, %z, %i)
      scf.yield()})""", 2, 2, ", donate = [[0, 0]]")
    p = CpuProgram(module, threads=1)
    x = np.ones(40, np.float32)
    y, z = p.call("f", [x, x])
    assert set(y) == {2} and set(z) == {1}


def test_compiled_code_survives_pickling():
    compiled = pickle.loads(pickle.dumps(compile_module(parsed("rows"), threads=2)))
    xs = inputs(parsed("rows"))
    assert same_bits(CpuProgram(compiled).call("f", xs), CpuProgram(parsed("rows"), threads=2).call("f", xs))


def test_wrong_arguments():
    p = CpuProgram(parsed("rows"), threads=1)
    for bad in ([], [np.zeros((33, 71), np.float32)], [np.zeros((33, 70), np.float64)], [np.zeros((33, 70), np.float32)] * 2):
        with pytest.raises(ValueError):
            p.call("f", bad)
    with pytest.raises(ValueError):
        p.call("g", [])


def test_user_arithmetic_is_not_contracted():
    text = llvm_text(program("%x: buf<f32[64]>, %y: buf<f32[64]>", """
    loop.parallel() {extents = [64]} ({^(%i: i64):
      %a = loop.load(%x, %i) : f32
      %b = scalar.mul(%a, %a) : f32
      %c = scalar.add(%b, %a) : f32
      loop.store(%c, %y, %i)
      scf.yield()})""", 1, 1))
    assert "fmul" in text and "llvm.fma" not in text and "contract" not in text


def test_equal_kernels_are_compiled_once():
    body = "".join(f"""
    loop.parallel() {{extents = [64]}} ({{^(%i: i64):
      %a = loop.load(%{x}, %i) : f32
      %b = scalar.exp(%a) : f32
      loop.store(%b, %{y}, %i)
      scf.yield()}})""" for x, y in (("x", "y"), ("y", "z"), ("z", "w")))
    text = llvm_text(program("%x: buf<f32[64]>, %y: buf<f32[64]>, %z: buf<f32[64]>, %w: buf<f32[64]>", body, 1, 3))
    assert len(re.findall(r"define void @k\d+", text)) == 1


@pytest.mark.parametrize("machine", ["avx512", "avx2", "generic"])
def test_floats_become_integers_in_vectors(monkeypatch, machine):
    """With every edge: what is beyond, halves, infinities, NaN; and not element by element."""
    monkeypatch.setenv("ENGRAM_CPU", machine)
    edges = [s * (2.0 ** n + d) for n in (7, 8, 15, 16, 31, 32, 63, 64) for d in (-1, -0.5, 0, 0.5, 1) for s in (1, -1)]
    edges += [s * np.nextafter(np.float32(2.0 ** n), np.float32(0)) for n in (31, 32, 63, 64) for s in (1, -1)]
    x = np.array([*edges, 0.0, -0.0, 0.99, -0.99, 1e30, -1e30, np.inf, -np.inf, np.nan])
    for frm in ("f64", "f32", "f16", "bf16"):
        with np.errstate(over="ignore"):
            y = x.astype(DTYPES[frm].numpy)
        for to in ("i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64"):
            module = parse_module(f"""module attributes {{stage = "tensor"}} {{
  func @f(%x: {frm}[{len(y)}]) -> ({to}[{len(y)}]) {{
    %o = tensor.cast(%x) {{dtype = {to}}} : {to}[{len(y)}]
    func.return(%o)
  }}
}}""")
            loops = lowered(module)
            np.testing.assert_array_equal(CpuProgram(loops, threads=1).call("f", [y])[0], Interpreter(module).call("f", [y])[0], err_msg=f"{frm} to {to}")
            assert not re.search(r"fpto[su]i\.sat\.v", llvm_text(loops))


def test_small_arrays_lie_within_a_cache_line():
    """One that crosses two lines costs two accesses each time."""
    from engram.codegen.cpu.program import aligned_empty
    kept = [aligned_empty(shape, np.float32) for shape in [(), (1,), (8,), (16,), (2, 4), (17,), (0,)] * 8]
    assert all(a.ctypes.data % 64 == 0 for a in kept if a.size)
