"""The outer cache: an equal module compiled before runs no pass, and gives the same bits."""
import numpy as np
from engram.compiler import driver, ops  # noqa: F401
from engram.compiler.ir import Func, Module, TensorType, f32
from engram.compiler.ir.builder import Builder


def module(scale: float) -> Module:
    f = Func("f", [TensorType(f32, (4, 5))], ["x"], [TensorType(f32, (4, 5))])
    b = Builder(f.body)
    b.op("func.return", [b.mul(b.op("nn.softmax", f.args, {"dim": 1}).result, scale)])
    return Module([f], {"stage": "nn", "entries": ["f"]})


def test_a_warm_start_runs_no_pass(tmp_path, monkeypatch):
    monkeypatch.setenv("ENGRAM_CACHE_DIR", str(tmp_path))
    x = np.random.default_rng(0).normal(size=(4, 5)).astype("f4")
    cold = driver.build(module(2.0), "cpu", threads=1).call("f", [x])[0]

    def refuse(*a, **k):
        raise AssertionError("a pass ran")

    monkeypatch.setattr(driver, "lower", refuse)
    warm = driver.build(module(2.0), "cpu", threads=1).call("f", [x])[0]
    assert warm.tobytes() == cold.tobytes()
    for other, threads in ((module(3.0), 1), (module(2.0), 2)):
        try:
            driver.build(other, "cpu", threads=threads)
        except AssertionError:
            continue
        raise AssertionError("another module, or another number of threads, is no hit")


def test_damaged_entries_are_compiled_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("ENGRAM_CACHE_DIR", str(tmp_path))
    x = np.ones((4, 5), "f4")
    cold = driver.build(module(2.0), "cpu", threads=1).call("f", [x])[0]
    for f in (tmp_path / "programs").iterdir():
        f.write_bytes(b"garbage")
    assert driver.build(module(2.0), "cpu", threads=1).call("f", [x])[0].tobytes() == cold.tobytes()


def test_what_runs_once_is_compiled_the_quick_way_to_the_same_bits(tmp_path, monkeypatch):
    from engram.codegen.cpu import program
    monkeypatch.setenv("ENGRAM_CACHE_DIR", str(tmp_path))
    f = Func("f", [TensorType(f32, (40, 37))], ["x"], [TensorType(f32, (40, 37))])
    b = Builder(f.body)
    b.op("func.return", [b.mul(b.op("tensor.exp", f.args).result, 3.0)])
    m, ways = Module([f], {"stage": "nn", "entries": ["f"]}), []
    submit = program.submit
    monkeypatch.setattr(program, "submit", lambda text, target, quick, **how: ways.append(quick) or submit(text, target, quick, **how))
    x = np.random.default_rng(0).normal(size=(40, 37)).astype("f4")
    good = driver.build(m, "cpu", threads=1).call("f", [x])[0]
    assert ways and not any(ways)
    ways.clear()
    assert driver.build(m, "cpu", threads=1, once=True).call("f", [x])[0].tobytes() == good.tobytes()
    assert ways and all(ways)
    ways.clear()
    monkeypatch.setattr(program, "BRIEF", 1000)                # as for what has much to do
    driver.build(module(2.5), "cpu", threads=1, once=True)     # and a softmax, which sums
    program.compile_module(driver.lower(m), 1, once=True)
    assert not any(ways)


def test_what_was_begun_can_be_abandoned(monkeypatch):
    """A wrong program does not wait for machine code that nobody will run; the next program gets its own."""
    from threading import Event

    from engram.codegen.cpu import compile as c
    began, gate, made = Event(), Event(), []

    def slowly(text, *_):
        made.append(text)
        began.set()
        assert gate.wait(60)
        return text.encode()

    c.finish(list(c._recent.values()))
    monkeypatch.setattr(c, "compile_text", slowly)
    first = [c.submit(text, c.host_target()) for text in ("; a", "; b", "; c")][0]
    assert began.wait(60)
    c.abandon()
    gate.set()
    assert first.result() == b"; a" and c.finish([c.submit("; b", c.host_target())]) == [b"; b"]
    assert made == ["; a", "; b"]
    c.abandon()
