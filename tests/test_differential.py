"""Generated whole programs (generate.py) run in every way there is: interpreter, cpu, opencl; before and after each pass; from their
printed text; on several numbers of threads. Results agree within what the ops state (tolerance.py), exact ones bit for bit.

100 programs a test where it matters, 2,000 with ENGRAM_NIGHTLY=1 (`make nightly`), which also draws new ones each night.
"""
from __future__ import annotations

import dataclasses
import importlib.util
import os

import numpy as np
import pytest
from engram.compiler.driver import build, lower
from engram.compiler.ir import Block, Func, Module, TensorType, f32, f64, i64
from engram.compiler.ir.builder import Builder
from engram.compiler.ir.core import clone_module, rewrite
from engram.compiler.ir.parser import parse_module
from engram.compiler.ir.printer import print_module
from engram.compiler.ir.verifier import verify
from engram.compiler.pass_manager import run
from engram.compiler.pipelines import PIPELINES, learning
from engram.interp.interpreter import Interpreter
from generate import ANY, SMOOTH, WILD, Generated, Maker, Options, Scope, modules, program
from hypothesis import HealthCheck, Phase, assume, currently_in_test_context, given, note, settings
from hypothesis import strategies as st
from tolerance import agree, tolerances

NIGHTLY = os.environ.get("ENGRAM_NIGHTLY") == "1"
NO_SEMANTICS = ("autodiff.gradient", "autodiff.vmap")


def examples(n: int, shrink: bool = True):
    """n programs, the same in every run; nightly 20 times as many, new ones each time. `shrink`: where running one is quick."""
    phases = [Phase.explicit, Phase.generate] + [Phase.shrink] * (shrink or NIGHTLY)
    return settings(phases=phases, max_examples=20 * n if NIGHTLY else n, derandomize=not NIGHTLY, deadline=None, database=None, print_blob=True,
                    suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """Thousands of programs are no use to anybody's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGRAM_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def backend_missing(name: str) -> str | None:
    """Why a backend cannot run here; None when it must. A backend whose code is there but broken is no reason to skip."""
    if importlib.util.find_spec(f"engram.codegen.{name}.program") is None:
        return f"codegen/{name} has no program.py"
    if name == "opencl":
        from engram.codegen.opencl.device import available
        works, why = available()
        return None if works else f"no OpenCL device: {why}"
    return None


def copies(args: list[np.ndarray]) -> list[np.ndarray]:
    return [a.copy() for a in args]


@dataclasses.dataclass
class Reference:
    """What a program's results must be: the definition's, how far others may be off, and which are exact."""

    want: list[np.ndarray]
    atol: list
    exact: list[bool]

    @staticmethod
    def of(g: Generated) -> Reference:
        if currently_in_test_context():
            note(print_module(g.module, locs=False, elide=32))
        d = lower(g.module, "definition")
        want = Interpreter(d).call("main", copies(g.args))
        return Reference(want, tolerances(d, "main", g.args, want), g.exact)

    def check(self, got: list, what: str) -> None:
        agree(got, self.want, self.atol, self.exact, what)


def on_backend(g: Generated, name: str, ref: Reference) -> None:
    """Two calls of one program: with arrays, and with handles; the same bits both times."""
    p = build(g.module, name)
    first = [np.array(p.to_host(r)) for r in p.call("main", copies(g.args))]
    ref.check(first, name)
    second = [np.array(p.to_host(r)) for r in p.call("main", [p.to_device(a) for a in g.args])]
    agree(second, first, [0.0] * len(first), [True] * len(first), f"{name}, called again")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu", "opencl"])
def test_backends_agree_with_the_definition(name):
    if why := backend_missing(name):
        pytest.skip(why)

    @examples(100, shrink=name == "cpu")                   # (minutes on a device whose compiler takes its time)
    @given(ANY)
    def check(g):
        on_backend(g, name, Reference.of(g))

    check()


@examples(100)
@given(ANY)
@pytest.mark.slow
def test_no_pass_changes_a_result_and_every_stage_is_text(g):
    """Each pass gets what was read back from the text of the one before it. Exact passes keep every bit."""
    ref = Reference.of(g)
    module, last = g.module, None
    for p in PIPELINES["loop"]():
        module = run(clone_module(module), [p])
        text = print_module(module)
        module = parse_module(text)
        verify(module, f"{p.name}, printed and parsed")
        assert print_module(module) == text, f"after {p.name}"
        if any(op.name in NO_SEMANTICS for op in module.walk()):
            continue
        options = {"arena": True, "check_races": True} if p.name == "plan-buffers" else {}
        got = Interpreter(module, seed=len(text), **options).call("main", copies(g.args))
        ref.check(got, f"after {p.name}")
        if last is not None and p.exact:
            agree(got, last, [0.0] * len(got), [True] * len(got), f"{p.name} is exact, but")
        last = got


@pytest.mark.slow
def test_threads_give_the_same_bits():
    if why := backend_missing("cpu"):
        pytest.skip(why)
    from engram.codegen.cpu import emit
    from engram.codegen.cpu.program import CpuProgram

    @examples(20)
    @given(st.one_of(modules(), modules(Options(gradient=True, ops=16))))
    def check(g):
        loops = lower(g.module, "loop")
        results = [CpuProgram(loops, threads=n).call("main", copies(g.args)) for n in (1, 2, 3)]
        for n, r in zip((2, 3), results[1:]):
            agree(r, results[0], [0.0] * len(r), [True] * len(r), f"{n} threads")

    rule, emit.SINGLE_CYCLES = emit.SINGLE_CYCLES, 0.0      # small kernels too are split among threads
    try:
        check()
    finally:
        emit.SINGLE_CYCLES = rule


# ---- derivatives ------------------------------------------------------------------------------------------------------


@examples(100)
@given(SMOOTH)
@pytest.mark.slow
def test_gradients_against_central_differences(g):
    """Along a random direction per argument, in f64; two step sizes tell how good the difference quotient itself is."""
    d = lower(g.module, "definition")
    run_ = Interpreter(d)
    base = run_.call("main", copies(g.args))
    floats = [i for i, a in enumerate(g.args) if a.dtype == np.float64]
    assume(all(np.all(np.isfinite(b)) for b in base) and abs(base[0]) < 1e6)
    note(print_module(g.module, locs=False, elide=32))
    rng = np.random.default_rng(0)
    for i, gradient in zip(floats, base[1:], strict=True):
        v = rng.choice([-1.0, 1.0], g.args[i].shape) * rng.uniform(0.5, 1, g.args[i].shape)

        def slope(h, i=i, v=v):
            ends = []
            for sign in (1, -1):
                moved = copies(g.args)
                moved[i] = np.asarray(moved[i] + sign * h * v)
                ends.append(float(run_.call("main", moved)[0]))
            return (ends[0] - ends[1]) / (2 * h)

        coarse, fine = slope(2e-5), slope(1e-5)
        want = (4 * fine - coarse) / 3                     # Richardson: the h^2 term cancels
        size = float(np.sum(np.abs(gradient * v)))
        tolerance = 2 * abs(fine - coarse) + 1e-6 * size + 1e-8 * (1 + abs(float(base[0])))
        assert abs(float(np.sum(gradient * v)) - want) <= tolerance, f"argument {i}: {float(np.sum(gradient * v))}, expected {want} +- {tolerance}"


@st.composite
def mapped(draw) -> tuple[Module, Module, list[np.ndarray], list[bool]]:
    """A generated function over a batch, by autodiff.vmap and by a loop of calls."""
    make = Maker(draw, Options(ops=8))
    n, size = make.int(1, 3), make.int(1, 4)
    types = [make.type() for _ in range(n)]
    f = Func("f", types)
    args, scope = [], Scope(Builder(f.body), list(f.args))
    dims = [make.int(-1, t.rank) if k else make.int(0, t.rank) for k, t in enumerate(types)]
    for a, d in zip(f.args, dims):
        parts = [make.argument(a.type) for _ in range(size if d >= 0 else 1)]
        make.info[a] = parts[0][1]
        args.append(np.stack([p for p, _ in parts], d) if d >= 0 else parts[0][0])
    make.steps(scope, make.int(1, 8))
    out = make.loose_ends(scope)[-4:] or make.results(scope, 1)
    f.result_types = [v.type for v in out]
    scope.b.op("func.return", out)
    make.module.add(f)
    make.module.attrs["entries"] = ["main"]
    outs = [make.int(0, v.type.rank) for v in out]
    front = [v.type.with_shape((size, *v.type.shape)) for v in out]
    results = [v.type.with_shape((*v.type.shape[:d], size, *v.type.shape[d:])) for v, d in zip(out, outs)]
    pair = []
    for vmapped in (True, False):
        m = clone_module(make.module)
        main = Func("main", [TensorType(a.type.dtype, x.shape) for a, x in zip(f.args, args)], result_types=results)
        b = Builder(main.body)
        if vmapped:
            attrs = {"callee": "f", "in_dims": dims, "out_dims": outs, "size": size, "result_types": results}
            ys = b.op("autodiff.vmap", main.args, attrs).results
        else:
            xs = [b.transpose(a, [d, *(k for k in range(a.type.rank) if k != d)]) for a, d in zip(main.args, dims) if d >= 0]
            body = Block([TensorType(i64), *(x.type.with_shape(x.type.shape[1:]) for x in xs)])
            inner, taken = Builder(body), iter(body.args[1:])
            call = inner.op("func.call", [next(taken) if d >= 0 else a for a, d in zip(main.args, dims)], {"callee": "f", "result_types": f.result_types})
            inner.op("scf.yield", call.results)
            ys = b.op("scf.scan", xs, {"length": size, "n_carry": 0, "reverse": False}, [body]).results
            assert [y.type for y in ys] == front
            ys = [b.transpose(y, [*range(1, d + 1), 0, *range(d + 1, y.type.rank)]) for y, d in zip(ys, outs)]
        b.op("func.return", ys)
        m.add(main)
        verify(m)
        pair.append(m)
    return *pair, args, [make.info[v].exact for v in out]


@examples(60)
@given(mapped())
def test_vmap_is_a_loop_of_calls(case):
    by_vmap, by_loop, args, exact = case
    note(print_module(by_vmap, locs=False, elide=32))
    loop = lower(by_loop, "definition")
    want = Interpreter(loop).call("main", copies(args))
    got = Interpreter(lower(by_vmap, "definition")).call("main", copies(args))
    agree(got, want, tolerances(loop, "main", args, want), exact, "vmap")


# ---- the tests themselves ---------------------------------------------------------------------------------------------


@examples(50)
@given(ANY)
def test_what_is_generated_verifies_and_runs(g):
    verify(g.module)
    text = print_module(g.module)
    assert print_module(parse_module(text)) == text
    results = Interpreter(lower(g.module, "definition")).call("main", copies(g.args))
    for r, t in zip(results, g.module.funcs["main"].result_types, strict=True):
        assert r.dtype == t.dtype.numpy and r.shape == t.shape


@examples(50)
@given(modules())
def test_generated_values_stay_tame(g):
    for r in Interpreter(lower(g.module, "definition")).call("main", copies(g.args)):
        if r.dtype.kind in "fV":
            assert np.all(np.isfinite(r.astype(np.float64)))


class _Wrong:
    """A pass that is wrong on purpose: `op` gives its result times `factor`."""

    name, exact = "wrong", False

    def __init__(self, op: str, factor: float):
        self.op, self.factor = op, factor

    def apply(self, module: Module) -> Module:
        def change(op, out):
            if op.name != self.op or op.result.type.dtype not in (f32, f64):
                return None
            out.append(op)
            return [Builder(out, op.loc).mul(op.result, self.factor)]

        for f in module.funcs.values():
            rewrite(f.body, change)
        return module


@pytest.mark.parametrize("op, factor", [("tensor.tanh", 1 + 3e-6), ("tensor.add", 1 + 2**-20), ("tensor.reduce_sum", 1 + 1e-4)])
def test_a_wrong_pass_is_found(op, factor):
    """The comparison must be able to fail: an op off by a few ulp is seen."""
    found = ran = 0
    for seed in range(60):
        g = program(seed, Options(nn=False, control=False))
        d = run(clone_module(g.module), learning())
        if any(o.name == op and o.result.type.dtype is f32 for o in d.walk()):
            ran += 1
            ref = Reference.of(g)
            try:
                ref.check(Interpreter(_Wrong(op, factor).apply(d)).call("main", copies(g.args)), "wrong")
            except AssertionError:
                found += 1
    assert ran >= 15 and found >= ran / 4, f"{found} of {ran} programs show it"


@examples(40)
@given(WILD)
def test_exact_ops_keep_their_bits_for_any_number(g):
    """NaN, infinities, subnormal numbers, ends of the integers: through every pass, and on the cpu."""
    want = Interpreter(lower(g.module, "definition")).call("main", copies(g.args))
    assert all(g.exact)
    for stage in ("tensor", "fused", "loop"):
        got = Interpreter(lower(g.module, stage)).call("main", copies(g.args))
        agree(got, want, [0.0] * len(want), g.exact, stage)
    if not backend_missing("cpu"):
        p = build(g.module, "cpu")
        agree(p.call("main", copies(g.args)), want, [0.0] * len(want), g.exact, "cpu")
