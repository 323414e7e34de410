"""Rendering of diagnostics: the exact text a user sees, and that nothing in a source line can break it."""
import json

import pytest
from engram.compiler.diagnostics import (
    CompileError,
    Diagnostic,
    Diagnostics,
    Source,
    Span,
    did_you_mean,
    error,
    render,
    to_json,
)


def at(file, line, col, end):
    return Span(file, line, col, line, end)


def test_the_message_of_the_design():
    Source.register("mlp.nn", "\n" * 6 + "  fn (x: f32[B, i]) -> f32[B, o] { hidden(x) @ out.w }\n")
    e = error(at("mlp.nn", 7, 46, 47),
              "cannot multiply f32[B, 128] @ f32[64, 10]: inner dimensions differ (128 vs 64)",
              marks=[(at("mlp.nn", 7, 36, 45), None), (at("mlp.nn", 7, 48, 53), None)],
              label="f32[64, 10], declared at mlp.nn:5:3",
              hint="`hidden` gives 128 features, so `out` would be Linear(128, 10)")
    assert str(e) == """\
mlp.nn:7:46: error: cannot multiply f32[B, 128] @ f32[64, 10]: inner dimensions differ (128 vs 64)
  7 |   fn (x: f32[B, i]) -> f32[B, o] { hidden(x) @ out.w }
    |                                    ~~~~~~~~~ ^ ~~~~~  f32[64, 10], declared at mlp.nn:5:3
    = help: `hidden` gives 128 features, so `out` would be Linear(128, 10)"""


def test_notes_and_marks_on_other_lines():
    Source.register("a.nn", "one\ntwo\nthree four\nfive\nsix\n")
    d = Diagnostic("warning", at("a.nn", 3, 7, 11), "odd", marks=[(at("a.nn", 1, 1, 4), "first")], label="here",
                   notes=[(at("a.nn", 5, 1, 4), "declared here"), (None, "in general")])
    assert render([d]) == """\
a.nn:3:7: warning: odd
  1 | one
    | ~~~  first
...
  3 | three four
    |       ^^^^  here
    = note: in general
a.nn:5:1: note: declared here
  5 | six
    | ^^^"""


def test_gutter_grows_with_the_line_number():
    Source.register("long.nn", "\n" * 999 + "abc")
    text = str(error(at("long.nn", 1000, 1, 4), "m", hint="h"))
    assert text.splitlines()[1:] == ["  1000 | abc", "       | ^^^", "       = help: h"]


def test_a_span_over_several_lines_is_underlined_to_the_end_of_the_first():
    Source.register("m.nn", "f(a,\n  b)  \n")
    assert str(error(Span("m.nn", 1, 1, 2, 5), "m")).splitlines()[2] == "    | ^^^^"


def test_tabs_are_expanded_and_marks_follow():
    Source.register("tab.nn", "\tx\t= y")
    lines = str(error(at("tab.nn", 1, 4, 5), "m")).splitlines()
    assert lines[1] == "  1 |     x   = y"
    assert lines[2].index("^") == lines[1].index("=")


def test_wide_and_invisible_characters():
    Source.register("w.nn", "日本 x \u202e\x1b[31m")
    lines = str(error(at("w.nn", 1, 4, 5), "m")).splitlines()
    assert lines[2] == "    |      ^"                         # each of the two characters takes two columns
    assert "\x1b" not in lines[1] and "\u202e" not in lines[1]


@pytest.mark.parametrize("col", [1, 500, 9990])
def test_long_lines_are_shown_as_a_window(col):
    text = "".join(chr(97 + k % 26) for k in range(10000))
    Source.register("wide.nn", text)
    lines = str(error(at("wide.nn", 1, col, col + 3), "m")).splitlines()
    assert max(map(len, lines)) < 175
    start = lines[2].index("^")
    assert lines[1][start:start + 3] == text[col - 1:col + 2]


@pytest.mark.parametrize("span", [
    at("missing.nn", 3, 1, 2), at("short.nn", 99, 1, 2), at("short.nn", 1, 50, 60), at("short.nn", 1, 1, 1),
    Span("short.nn", 0, 0, 0, 0), at("nul\0name", 1, 1, 2), None])
def test_spans_without_text_still_render(span):
    Source.register("short.nn", "ab")
    text = str(error(span, "the message", hint="a hint", notes=[(span, "a note")]))
    assert "error: the message" in text and "help: a hint" in text and "note: a note" in text


def test_source_is_read_from_disk_when_nobody_registered_it(tmp_path):
    path = tmp_path / "x.nn"
    path.write_bytes(b"\xef\xbb\xbflet a\r\nlet b\r\n")
    assert Source.line(str(path), 1) == "let a"
    assert Source.line(str(path), 2) == "let b"
    assert Source.line(str(tmp_path), 1) is None


def test_colours_only_when_asked():
    Source.register("c.nn", "abc")
    e = error(at("c.nn", 1, 1, 2), "m", hint="h")
    assert "\x1b" not in str(e)
    coloured = render(e.diagnostics, color=True)
    assert "\x1b[1;31merror\x1b[0m" in coloured


def test_json():
    e = error(at("j.nn", 2, 3, 5), "m", hint="h", notes=[(None, "n"), (at("j.nn", 1, 1, 2), "o")])
    [d] = json.loads(json.dumps(to_json(e.diagnostics)))
    assert {k: d[k] for k in ("file", "line", "column", "end_line", "end_column", "severity", "message", "hint")} == {
        "file": "j.nn", "line": 2, "column": 3, "end_line": 2, "end_column": 5, "severity": "error", "message": "m",
        "hint": "h"}
    assert [n["message"] for n in d["notes"]] == ["n", "o"] and d["notes"][1]["line"] == 1
    assert to_json([Diagnostic("error", None, "m")])[0]["file"] is None


def test_collector_keeps_warnings_raises_errors_and_stops():
    c = Diagnostics(limit=3)
    c.warn(None, "w")
    c.raise_if_errors()
    c.error(at("k.nn", 1, 1, 2), "same")
    c.error(at("k.nn", 1, 1, 2), "same")
    assert len(c.errors) == 1 and len(c.warnings) == 1
    with pytest.raises(CompileError) as info:
        c.raise_if_errors()
    assert [d.message for d in info.value.diagnostics] == ["w", "same"]
    c.error(at("k.nn", 2, 1, 2), "two")
    with pytest.raises(CompileError, match="stopped after 3 errors"):
        c.error(at("k.nn", 3, 1, 2), "three")
    with pytest.raises(CompileError) as again:
        c.raise_if_errors()
    with pytest.raises(CompileError) as info:                # whoever goes on hears the same, once
        c.extend(again.value)
        c.error(at("k.nn", 4, 1, 2), "four")
    assert [d.message for d in info.value.diagnostics] == ["w", "same", "two", "three", "stopped after 3 errors"]


def test_did_you_mean():
    names = ["Linear", "relu", "softmax", "B", "hidden"]
    assert did_you_mean("Liner", names) == "Linear"
    assert did_you_mean("Relu", names) == "relu"
    assert did_you_mean("b", names) == "B"
    assert did_you_mean("zzz", names) is None
    assert did_you_mean("relu", ["relu"]) is None
