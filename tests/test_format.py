"""The formatter: it never changes a program, it agrees with itself, and its style is what is shown here."""
import random
import re
from pathlib import Path

import pytest
from engram.compiler.diagnostics import CompileError
from engram.frontend import lalr
from engram.frontend.build_ast import CALLBACKS
from engram.frontend.format import WIDTH, comments, format_source
from engram.frontend.parse import parse

ROOT = Path(__file__).parent.parent
HAND_WRITTEN = sorted((ROOT / "tests/programs").glob("*.nn")) + sorted((ROOT / "frontend/std").glob("*.nn"))
PROGRAMS = HAND_WRITTEN + sorted((ROOT / "examples").rglob("*.nn"))


def check(text):
    """Formats, and holds the formatter to its promises."""
    out = format_source(text)
    assert parse(out) == parse(text)
    assert sorted(comments(out)) == sorted(comments(text))
    assert format_source(out) == out
    lines = out.split("\n")
    assert all(line == line.rstrip() for line in lines)
    assert "\n\n\n" not in out and not out.startswith("\n") and (out == "" or out.endswith("\n") and not out.endswith("\n\n"))
    return out


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda p: p.name)
def test_programs(path):
    check(path.read_text(encoding="utf-8"))


def test_programs_are_nearly_in_style_already():
    """What people wrote by hand is the style; if this grows, the formatter fights its users."""
    changed = total = 0
    for path in HAND_WRITTEN:
        text = path.read_text(encoding="utf-8")
        kept = set(format_source(text).split("\n"))
        total += text.count("\n")
        changed += sum(line not in kept for line in text.split("\n"))
    assert changed < 0.06 * total


CASES = {
    "spaces": ("fn   f( x:f32[ n ],y = 1 )->f32[n]{ x+y*2**-k@z  //3 }", "fn f(x: f32[n], y = 1) -> f32[n] { x + y * 2 ** -k @ z // 3 }\n"),
    "unary": ("let x = - 1 + ~ y - -z", "let x = -1 + ~y - -z\n"),
    "not": ("let x = not(a)and b or(c)", "let x = not (a) and b or (c)\n"),
    "products in dims and arguments stay tight": (
        "fn f(x: f32[3*d, h * k, L-1]) { g(2*d, 3 * d, (a+b)*c)[k*i + 1] }",
        "fn f(x: f32[3*d, h * k, L-1]) { g(2*d, 3 * d, (a + b) * c)[k*i + 1] }\n"),
    "products in statements get spaces": ("let y = a*b", "let y = a * b\n"),
    "slices": ("fn f(x) { x[ : , 1 : , a:b, 0 :: 2, pos:pos+n, -1 :, .., none] }",
               "fn f(x) { x[:, 1:, a:b, 0::2, pos : pos + n, -1:, .., none] }\n"),
    "ranges": ("fn f(x) { scan i in 0 .. n with s=s0 { s } }", "fn f(x) { scan i in 0..n with s = s0 { s } }\n"),
    "packs": ("fn f(x: f32[ .. , n, .. N]) { x[ .. ,0] }", "fn f(x: f32[.., n, ..N]) { x[.., 0] }\n"),
    "calls": ("let y = f (x) [0] . T |> g (2,a = 3)", "let y = f(x)[0].T |> g(2, a = 3)\n"),
    "function types and lambdas": ("fn f(g: fn (f32)->f32) { h(fn(x){x}) }", "fn f(g: fn(f32) -> f32) { h(fn (x) { x }) }\n"),
    "names": ("layer L() { names{a.T=\"x\"|\"y\";blocks[i]=\"h.{i}\"} }", 'layer L() { names { a.T = "x" | "y"; blocks[i] = "h.{i}" } }\n'),
    "empty braces": ("run r {\n\n}", "run r { }\n"),
    "indentation": ("run r {\n      let a = 1\n\tif a {\n b\n }\n  else { c }\n}",
                    "run r {\n  let a = 1\n  if a {\n    b\n  }\n  else { c }\n}\n"),
    "opening up": ("fn f(x) { let y = x\n  y }", "fn f(x) {\n  let y = x\n  y\n}\n"),
    "joined statements stay joined": ("fn f(x) { let y = x;let z = y ;; z }", "fn f(x) { let y = x; let z = y; z }\n"),
    "needless semicolons": ("let x = 1;\nlet y = 2;;\n", "let x = 1\nlet y = 2\n"),
    "blank lines": ("\n\nlet x = 1\n\n\n\nlet y = 2\n\nrun r {\n\n  a\n\n\n  b\n\n}\n\n", "let x = 1\n\nlet y = 2\n\nrun r {\n  a\n\n  b\n}\n"),
    "continuations": ("let y = a +\nb\nfn f(x) {\nx\n|> g\n|> h(1,\n2)\n}", "let y = a +\n  b\nfn f(x) {\n  x\n    |> g\n    |> h(1,\n      2)\n}\n"),
    "headers": ("rule r(lr)\n    sees p: f32[..]\n    given g {\np -= g\n}", "rule r(lr)\n  sees p: f32[..]\n  given g {\n  p -= g\n}\n"),
    "comments": ("# a\nlet x = 1 # b\n   # c\nrun r {# d\n# e\n  y # f\n# g\n}# h", "# a\nlet x = 1  # b\n# c\nrun r {  # d\n  # e\n  y  # f\n  # g\n}  # h\n"),
    "comment columns": ("let x = 1      # b\nlet long = 2   # c\n", "let x = 1      # b\nlet long = 2   # c\n"),
    "comment columns move together": ("let x = 1  # b\nlet y=2    # c\nlet z=a+b  # d\n", "let x = 1      # b\nlet y = 2      # c\nlet z = a + b  # d\n"),
    "aligned": ("train t {\n  model  = A()\n  data   = b\n  epochs = 3\n}", "train t {\n  model  = A()\n  data   = b\n  epochs = 3\n}\n"),
    "aligned after widening": ("let a   = f(x,y)+1\nlet bcd = g(x)\n", "let a   = f(x, y) + 1\nlet bcd = g(x)\n"),
    "not aligned": ("let a    = 1\nlet bc = 2\n", "let a = 1\nlet bc = 2\n"),
    "columns of words": ("train t {\n  minimize a using b\n  measure  c\n}", "train t {\n  minimize a using b\n  measure  c\n}\n"),
    "strings are untouched": (r'let s = "a  # b ;{\"  "', r'let s = "a  # b ;{\"  "' + "\n"),
    "arguments over lines": ("let x = f(\na,\n[1,\n2],\n)", "let x = f(\n  a,\n  [1,\n    2],\n)\n"),
    "lambda over lines": ("let x = f(a, fn (v) {\nlet y = v\ny\n}, b)", "let x = f(a, fn (v) {\n  let y = v\n  y\n}, b)\n"),
    "line ends": ("let x = 1\r\nlet y = 2\r\n", "let x = 1\nlet y = 2\n"),
    "nothing": ("\n \n", ""),
    "only a comment": ("  # a  ", "# a\n"),
}


@pytest.mark.parametrize("before, after", CASES.values(), ids=CASES)
def test_style(before, after):
    assert check(before) == after


def test_wide_lines_are_opened_up():
    body = " + ".join(f"abcdefg{k}" for k in range(8))
    out = check(f"fn f(x: f32[n]) -> f32[n] {{ let y = {body}; y }}   # what it does")
    assert out == f"fn f(x: f32[n]) -> f32[n] {{  # what it does\n  let y = {body}\n  y\n}}\n"
    narrow = "fn f(x) { let y = x; y * " + "z" * 50 + " }"
    assert len(narrow) <= WIDTH and check(narrow) == narrow + "\n"
    out = check(f"fn f(x) {{ if a {{ {body} }} else {{ {body} }} }}")
    assert out == f"fn f(x) {{\n  if a {{\n    {body}\n  }} else {{\n    {body}\n  }}\n}}\n"
    inner = f"let x = g(fn (v) {{ v }}, {body}, {body})"
    assert check(inner) == inner + "\n"                       # nothing to break at: left alone


def test_a_program_with_errors_is_not_formatted():
    with pytest.raises(CompileError, match="expected"):
        format_source("fn f( {")


def disturb(text, how, rng):
    return [
        lambda t: re.sub(r"(?<=\S) {2,}(?=[^#\s])", " ", t),
        lambda t: re.sub(r" ", lambda m: " " * rng.choice([1, 1, 1, 2, 3]), t),
        lambda t: re.sub(r"\n", lambda m: rng.choice(["\n", "\n\n", "\n\n\n", "\n# own\n", "  # behind\n", "\n\n  # own\n\n"]), t),
        lambda t: re.sub(r"([,({\[])", lambda m: m[1] + rng.choice(["", "", "\n", "  ", " # c\n"]), t),
        lambda t: re.sub(r"(?m)^ +", lambda m: " " * rng.randrange(9), t),
        lambda t: re.sub(r"(?<=[*/=+]) ", lambda m: rng.choice(["", " ", "  "]), t),
    ][how](text)


def test_disturbed_programs():
    """Blanks, line breaks and comments put at random into programs: the promises hold, the tokens too."""
    tried = 0
    for seed in range(36):
        rng = random.Random(seed)
        text = disturb(rng.choice(HAND_WRITTEN).read_text(encoding="utf-8"), seed % 6, rng)
        try:
            before = tokens(text)
        except (CompileError, lalr.Unexpected, lalr.BadCharacter, lalr.IndentedMinus):
            continue                                         # a break in the wrong place
        assert tokens(check(text)) == before
        tried += 1
    assert tried > 20


def tokens(text):
    recorded = []
    lalr.run(text, "x", CALLBACKS, recorded)
    return [t.text for t in recorded if t.type != "_SEP"]
