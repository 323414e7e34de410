"""What a wrong program's author sees: tests/diagnostics/NAME.nn is wrong, NAME.txt is the message.  ENGRAM_BLESS=1 rewrites the
messages."""
from __future__ import annotations

import os
from pathlib import Path

import pytest
from engram.compiler.diagnostics import CompileError
from engram.frontend import check, load

CASES = sorted((Path(__file__).parent / "diagnostics").glob("*.nn"))


def message(path: Path) -> str:
    try:
        check(load(path.name, path.read_text()))
    except CompileError as e:
        return str(e) + "\n"
    return "no error\n"


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_diagnostic(path: Path):
    got = message(path)
    expected = path.with_suffix(".txt")
    if os.environ.get("ENGRAM_BLESS"):
        expected.write_text(got)
    assert got == expected.read_text(), f"accept with: ENGRAM_BLESS=1 pytest {Path(__file__).name}"
    assert "error:" in got and "Traceback" not in got


@pytest.mark.parametrize("text, wanted", [
    ("fn f(x: f32[n]) { x.T }", "`.T` swaps the last two dimensions"),
    ("fn f(x: f32[n]) { x[0, 0] }", "too many subscripts"),
    ("fn f(x: f32[n]) { x[n] }", "index n is out of range"),
    ("fn f(x: f32[4]) { x[5] }", "index 5 is out of range"),
    ("fn f(x: f32[4]) { x[2:9] }", "slice bound 9 is out of range"),
    ("fn f(x: f32[4]) { reshape(x, [3, -1]) }", "4 elements do not divide by 3"),
    ("fn f(x: f32[4]) { let (a, b) = x; a + b }", "cannot unpack f32[4] into 2 names"),
    ("fn f(x: f32[4]) { x and x }", "`and` needs conditions"),
    ("fn f(x: i64) -> i64 { while true with k = x { k + 1 } }", "this loop never ends"),
    ("fn f(x: f32[a], y: f32[b]) -> f32[a] { y }", "dimension 0 is b, not a"),
    ("fn f(x: f32[n]) -> f32[n, m] { x }", "expected f32[n, m]: 1 dimension, expected 2"),
    ("fn f(x: f31[n]) { x }", "unknown type `f31`"),
    ("fn f(x: f32[n]) { yield x; x }", "`yield` belongs in the body of a `scan`"),
    ("fn f(x: f32[n]) { learn x by x; x }", "`learn` belongs in a train block or a rule"),
    ("fn f(x: f32[n]) { x + 1 / 0 }", "division by zero"),
    ("fn f(x: f32[n]) { 10 ** 100000 + x }", "too large"),
    ("fn f(x: f32[n]) { sum(x, axis = 0) + sum(x, dim = 0, axis = 0) }", "is given twice"),
    ("let a = b\nlet b = a\nfn f(x: f32[n]) { x + a }", "in terms of itself"),
    ("layer L(d) { fn (x: f32[d]) { x }; fn (y: f32[d]) { y } }", "two unnamed `fn`s"),
    ("fn f(x: f32[n]) { if sum(x) > 0 { x } }", "`if` without `else` gives no value"),
    ("fn f(x: u8[n]) { x + 300 }", "300 does not fit u8"),
    ("fn f(x: f32[n]) -> f32[n] { let y: f32[3, n] = x; x }", "expected f32[3, n]"),
    ("fn f(x: f32[n], k: key) { normal(0, 1, size = [2], key = x) }", "`key` is a random key"),
    ("fn f(x: i64[n]) { grad(fn (v) { sum(v) })(x) }", "only floats have derivatives"),
    ("fn f(x: f32[n]) { scan t in 0..i64(sum(x)) { yield t } }", "has to be known when compiling"),
    ("fn f(x: f32[2, 3]) { cat([x, x.T]) }", "cannot join"),
    ("fn f(x: f32[n]) { foo.bar(x) }", "unknown name `foo`"),
])
def test_message(text: str, wanted: str):
    with pytest.raises(CompileError) as e:
        check(load("t.nn", text + "\n"))
    assert wanted in str(e.value)


def test_several_errors_in_one_run():
    text = "fn f(x: f32[n]) { let a = x + q; let b = x @ x.T; a * r }\nfn g(x: f32[n]) -> f32[n] { s }\n"
    with pytest.raises(CompileError) as e:
        check(load("t.nn", text))
    assert [d.message for d in e.value.diagnostics if "unknown" in d.message] == ["unknown name `q`", "unknown name `r`", "unknown name `s`"] \
        or len(e.value.diagnostics) >= 3


def test_import_cycles_and_missing_files(tmp_path):
    (tmp_path / "a.nn").write_text('import "b.nn"\nfn f(x: f32) { x }\n')
    (tmp_path / "b.nn").write_text('import "a.nn"\n')
    with pytest.raises(CompileError, match="circle"):
        load(tmp_path / "a.nn")
    (tmp_path / "c.nn").write_text('import "nothere.nn"\nimport "std/nnn.nn"\n')
    with pytest.raises(CompileError) as e:
        load(tmp_path / "c.nn")
    assert "cannot find `nothere.nn`" in str(e.value) and "did you mean `std/nn.nn`?" in str(e.value)


@pytest.mark.parametrize("text, wanted", [
    ("fn f(key: key) { let a = normal(0, 1, size = [2], key = key); a + normal(0, 1, size = [2], key = key) }", "used a second time"),
    ("fn f(key: key) { scan t in 0..3 { yield normal(0, 1, size = [2], key = key) } }", "the same in every step"),
    ("fn f(key: key) { scan t in 0..3 { yield normal(0, 1, size = [2], key = fold_in(key, t)) } }", None),
    ("fn f(x: f32, key: key) { if x > 0 { normal(0, 1, size = [], key = key) } else { uniform(0, 1, size = [], key = key) } }", None),
    ("fn f(key: key) { let (a, b) = split(key); normal(0, 1, size = [2], key = a) + normal(0, 1, size = [2], key = b) }", None),
])
def test_warnings_about_keys(text: str, wanted: str | None):
    warnings = [d.message for d in check(load("t.nn", text + "\n"))]
    assert bool(warnings) == (wanted is not None) and all(wanted in w for w in warnings)
