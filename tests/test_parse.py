"""The parser: what it accepts, the trees it gives, its messages, and that no input can make it crash or hang."""
import os
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from engram.compiler.cache_dir import cache_dir, read_cached, write_cached
from engram.compiler.diagnostics import CompileError
from engram.frontend import ast as A
from engram.frontend import lalr
from engram.frontend.build_ast import CALLBACKS
from engram.frontend.library import STD, library_scope, std_files
from engram.frontend.parse import parse, parse_file

ROOT = Path(__file__).parent.parent
HAND_WRITTEN = sorted((ROOT / "tests/programs").glob("*.nn")) + sorted((ROOT / "frontend/std").glob("*.nn"))
PROGRAMS = HAND_WRITTEN + sorted((ROOT / "examples").rglob("*.nn"))


def expr(text):
    """The tree of an expression, as text."""
    return A.dump(parse("fn f() { " + text + " }").items[0].body.stmts[-1].value)


def stmt(text):
    return parse("fn f() { " + text + " }").items[0].body.stmts[0]


# ---- what is accepted --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("path", PROGRAMS, ids=lambda p: p.name)
def test_programs_parse(path):
    module = parse_file(path)
    assert module.items
    assert pickle.loads(pickle.dumps(module)) == module


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda p: p.name)
def test_spans_hold_their_text(path):
    """Every node's span lies inside its parent's, and a name's text is found exactly there."""
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    for node in A.walk(parse(text, str(path))):
        s = node.span
        assert (s.line, s.col) <= (s.end_line, s.end_col)
        for child in A.children(node):
            c = child.span
            assert (s.line, s.col) <= (c.line, c.col) and (c.end_line, c.end_col) <= (s.end_line, s.end_col), (node, child)
        if isinstance(node, (A.Name, A.NamePattern)) and not getattr(node, "parens", False):
            name = node.id if isinstance(node, A.Name) else node.name
            assert lines[s.line - 1][s.col - 1:s.end_col - 1] == name
        if isinstance(node, A.Binary):
            o = node.op_span
            assert lines[o.line - 1][o.col - 1:o.end_col - 1] == node.op


@pytest.mark.parametrize("text", ["", "\n", "  \n\n# only a comment", "\ufeff", "let x = 1;", ";\n;", "\r\n\r\n"])
def test_empty_files_are_fine(text):
    assert len(parse(text).items) == text.count("let")


def test_plain_lark_accepts_the_same_programs():
    from lark import Lark

    class Newlines:
        always_accept = ()

        def process(self, stream):
            closers = []
            for token in stream:
                if token.type in ("LPAR", "LSQB", "LBRACE"):
                    closers.append(token.type)
                elif token.type in ("RPAR", "RSQB", "RBRACE") and closers:
                    closers.pop()
                if token.type == "_SEP" and closers and closers[-1] != "LBRACE" and token[0] == "\n":
                    continue
                yield token

    plain = Lark(lalr.GRAMMAR.read_text(), parser="lalr", postlex=Newlines(), keep_all_tokens=True)
    for path in PROGRAMS:
        text = path.read_text(encoding="utf-8")
        recorded = []
        lalr.run(text, "x", CALLBACKS, recorded)
        tokens = plain.parse(text).scan_values(lambda v: v is not None)
        assert [(t.type, t.text.strip()) for t in recorded] == [(t.type, str(t).strip()) for t in tokens], path


def test_line_ends_and_blanks_do_not_matter():
    text = (ROOT / "tests/programs/gpt2.nn").read_text()
    module = parse(text)
    assert parse("\ufeff" + text.replace("\n", "\r\n")) == module
    assert parse(text.replace("\n", "\r")) == module
    assert parse(text.replace("  ", "\t")) == module


# ---- trees -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, tree", [
    ("a + b * c ** -d", '(Binary "+" (Name a) (Binary "*" (Name b) (Binary "**" (Name c) (Unary "-" (Name d)))))'),
    ("a - b - c", '(Binary "-" (Binary "-" (Name a) (Name b)) (Name c))'),
    ("a @ b / c", '(Binary "/" (Binary "@" (Name a) (Name b)) (Name c))'),
    ("-a ** 2", '(Unary "-" (Binary "**" (Name a) (Int 2)))'),
    ("a <= b < c", '(Compare (Name a) (Name b) (Name c) :ops ["<=" "<"])'),
    ("(a < b) < c", '(Compare (Compare (Name a) (Name b) :ops ["<"]) (Name c) :ops ["<"])'),
    ("not a and b or c", "(BoolOp or (BoolOp and (Not (Name a)) (Name b)) (Name c))"),
    ("a | b ^ c & d << e", '(Binary "|" (Name a) (Binary "^" (Name b) (Binary "&" (Name c) (Binary "<<" (Name d) (Name e)))))'),
    ("~a", '(Unary "~" (Name a))'),
    ("x |> f |> g(2)", "(Pipe (Pipe (Name x) (Name f)) (Call (Name g) (Arg (Int 2))))"),
    ("0..n + 1", '(Range :start (Int 0) :stop (Binary "+" (Name n) (Int 1)))'),
    ("f(x, lr = 1e-3)", "(Call (Name f) (Arg (Name x)) (Arg lr (Float 0.001)))"),
    ("x[.., 1:, ::2]", "(Index (Name x) (Pack) (Slice :start (Int 1)) (Slice :step (Int 2)))"),
    ("x[none, a:b]", "(Index (Name x) (NoneLit) (Slice :start (Name a) :stop (Name b)))"),
    ("sum[j in 0..n if j <= i](x[j])", "(Call\n  (Index"),
    ("w.T", "(Attr (Name w) T)"),
    ("()", "(Tuple)"), ("(a,)", "(Tuple (Name a))"), ("(a, b)", "(Tuple (Name a) (Name b))"), ("(a)", "(Name a)"),
    ("[]", "(List)"), ("[.., 1]", "(List (Pack) (Int 1))"),
    ("[f(i) for i in 0..n if i > 2]", "(Comprehension"),
    ("fn (x) { x }", "(Lambda :params [(Param x)] :body (Block (ExprStmt (Name x))))"),
    ("if a { b } else if c { d }", "(If"),
    ('"a\\n\\"\\u{e9}"', '(Str "a\\n\\"é")'),
    ("true", "(Bool true)"), ("false", "(Bool false)"),
    ("1_000", "(Int 1000)"), ("0xFF", "(Int 255)"), (".5", "(Float 0.5)"), ("1e3", "(Float 1000.0)"),
    ("18446744073709551615", "(Int 18446744073709551615)"),
])
def test_expressions(text, tree):
    assert expr(text).startswith(tree)


def test_parentheses_widen_spans_and_are_noted():
    value = stmt("(a + b) @ c").value
    assert value.left.parens and not value.parens and not value.right.parens
    assert (value.left.span.col, value.left.span.end_col) == (10, 17)
    assert value.op_span.col == 18
    assert stmt("(a) + b").value != stmt("a + b").value


def test_statements():
    let = stmt("let (a, (b, _)): (f32, (f32, f32)) = x")
    assert [type(p).__name__ for p in let.pattern.items] == ["NamePattern", "TuplePattern"]
    assert isinstance(let.type, A.TupleType)
    assert [p.name for p in stmt("let a, b = x").pattern.items] == ["a", "b"]
    assert isinstance(stmt("let (a) = x").pattern, A.NamePattern)
    assert isinstance(stmt("let (a,) = x").pattern, A.TuplePattern)
    for op in "= += -= *= /= //= %= **= @= &= |= ^=".split():
        assert stmt(f"x[0] {op} y").op == op
    scan = stmt("scan (a, b) in xs with final (h, c) = (h0, c0), k = 0 { yield h; (h, c, k) }").value
    assert [c.final for c in scan.carries] == [True, False]
    assert isinstance(scan.body.stmts[0], A.Yield) and isinstance(scan.body.value, A.Tuple)
    assert stmt("yield x").value.id == "x" and parse("fn f() { yield x }").items[0].body.value is None
    assert stmt('assert a, "why"').message == "why"
    learn = stmt("learn (w, b) by sgd(lr) given (x, y), label = z")
    assert [a.name for a in learn.given] == [None, "label"]
    minimize = stmt("minimize l wrt a using sgd(1), wrt b using adam()")
    assert [o.wrt.id for o in minimize.objectives] == ["a", "b"]
    assert stmt("minimize l using sgd(1)").objectives[0].wrt is None
    assert stmt("measure x").name is None and stmt("measure top = x").name == "top"


def test_items():
    module = parse('''
import "std/nn.nn" as nn
let n = 3
fn f(x: f32[.., 3*d] = 0, g: fn(f32, i64) -> f32, h) -> (f32[], i64) { x }
layer L(i, o = 2) {
  param w: pow2(7)[i, o] = 0
  state s: f32[o]; cache c: f32[B, ..N] = 0
  sub = nn.Linear(i, o)
  if o > 1 { param b: f32[o] } else if o { b = sub } else { let z = 1 }
  assert i % 2 == 0, "even"
  fn (x) { x }
  fn step(x) { x }
  names { w.T = "weight"; blocks[i] = "h.{i}" | "t.h.{i}"; _ = "skip" }
}
nonlocal rule r(lr) sees pre: f32[B, i], conv.w given y: int[B], e {
  own m: f32[..] = 0
  fn read(h) { h @ m }
  pre
}
train t { data = x; state h: f32[2] = 0; phase p { epochs = 1; until a > b }; until c }
run go { print(1) }
''')
    imp, let, fn, layer, rule, train, run = module.items
    assert (imp.path, imp.alias) == ("std/nn.nn", "nn")
    assert isinstance(let, A.Let)
    x, g, h = fn.params
    assert isinstance(x.type.dims[0], A.Pack) and isinstance(x.type.dims[1], A.Binary) and x.default.value == 0
    assert isinstance(g.type, A.FnType) and len(g.type.params) == 2 and g.type.result.name == "f32"
    assert h.type is None and h.default is None
    assert fn.result.items[0].dims == [] and fn.result.items[1].dims is None
    kinds = [type(i).__name__ for i in layer.items]
    assert kinds == ["ParamDecl", "StateDecl", "StateDecl", "SubLayer", "LayerIf", "Assert", "FnDef", "FnDef", "Names"]
    assert layer.items[0].type.args[0].value.value == 7 and layer.items[0].init.value == 0
    assert [s.kind for s in layer.items[1:3]] == ["state", "cache"] and layer.items[2].type.dims[1].name == "N"
    branch = layer.items[4]
    assert isinstance(branch.orelse[0], A.LayerIf) and isinstance(branch.orelse[0].orelse[0], A.Let)
    assert layer.items[6].name is None and layer.items[7].name == "step"
    keys = layer.items[8].keys
    assert keys[0].path.name == "T" and keys[1].keys == ["h.{i}", "t.h.{i}"] and keys[2].path.id == "_"
    assert rule.nonlocal_ and [s.path for s in rule.sees] == [("pre",), ("conv", "w")]
    assert [s.path for s in rule.given] == [("y",), ("e",)] and rule.given[1].type is None
    assert [type(i).__name__ for i in rule.items] == ["StateDecl", "FnDef", "ExprStmt"]
    assert [type(i).__name__ for i in train.items] == ["Assign", "StateDecl", "Phase", "Until"]
    assert run.name == "go" and isinstance(run.stmts[0].value, A.Call)


def test_words_are_names_where_no_declaration_can_stand():
    layer = parse("layer L() { state = A(); cache = B(); names = C(); param = D(); fn (x) { x |> state |> names } }").items[0]
    assert [i.name for i in layer.items[:4]] == ["state", "cache", "names", "param"]
    parse("train t { phase = 3; until = 4; state = 5; let own = phase + until }")
    parse("fn f(data, rule, train, layer, run, by, given, import, phase: f32) { rule + train.layer.fn.let }")
    parse("fn f(x) { scan i in xs with final = 3 { final } }")


def test_newlines():
    assert len(parse("fn f() { a\n  |> b\n  .c\n  * d }").items[0].body.stmts) == 1
    assert len(parse("fn f() { if a { b }\n  else { c }\n d }").items[0].body.stmts) == 2
    assert len(parse("fn f() { a\n-b }").items[0].body.stmts) == 2
    assert len(parse("fn f() { g(a,\n\n# c\n  b\n)\n}").items[0].body.stmts) == 1
    assert len(parse("fn f() { g(fn (x) { let a = 1\n a }) }").items[0].body.stmts[0].value.args[0].value.body.stmts) == 2
    with pytest.raises(CompileError):
        parse("fn f() { g(a; b) }")


# ---- messages ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, place, message, hint", [
    ("fn f(x) {\n  if x = 3 { 1 } else { 2 }\n}", (2, 8), "expected `{`, got `=`", "equality is written `==`"),
    ("fn f(x) { f(a b) }", (1, 15), "expected `,` or `)`, got `b`", None),
    ("fn f(x) { x[1 2] }", (1, 15), "expected `,`, `:` or `]`, got `2`", None),
    ("fn f(x) { let y = }", (1, 19), "expected an expression, got `}`", None),
    ("let x = 3 4", (1, 11), "expected a new line, got `4`", "separated by `;`"),
    ("let x =", (1, 8), "expected an expression, got the end of the file", None),
    ("x = 3", (1, 1), "expected `import`, `let`, `fn`, `layer`, `rule`, `train` or `run`, got `x`", "declarations"),
    ("fn f(x: ) { x }", (1, 9), "expected a type, got `)`", None),
    ("fn f(f32 x) { x }", (1, 10), "expected `,`, `:` or `)`, got `x`", "`x: f32`"),
    ("layer L(i) { param w f32[i] }", (1, 22), "expected `:`, got `f32`", "`w: type`"),
    ("fn f(x)", (1, 8), "expected `{` or `->`, got the end of the file", None),
    ("train t { minimize x }", (1, 22), "expected `using`, `wrt` or `|>`, got `}`", None),
    ("import std", (1, 8), "expected a string, got `std`", None),
    ("fn f(x) { let g = (1,\n let y = 3\n }", (2, 6), None, None),
    # brackets
    ("fn f(x) { g(x] }", (1, 14), "expected `)`, got `]`", None),
    ("fn f(x) { g(x }", (1, 15), "expected `)`, got `}`", None),
    ("fn f(x) }", (1, 9), "`}` closes nothing", None),
    ("fn f(x) {\n  if x { 1\n}\n\nlayer B() { }", (2, 8), "this `{` is never closed", "add the missing `}`"),
    ("layer A() {\n  fn f(x) {\n    x\n\n  fn g(x) { x }\n}", (2, 11), "this `{` is never closed", None),
    ("fn f(x) {\n  x\nlayer B() { }\n", (1, 9), "this `{` is never closed", None),
    ("fn f(x) { [1, 2", (1, 11), "this `[` is never closed", None),
    # other languages
    ("def f(x):\n  return x", (1, 1), "`def` is not a word", "fn name"),
    ("fn f(x) { return x }", (1, 11), "`return` is not a word", "last expression"),
    ("fn f(x) { for i in xs { i } }", (1, 11), "`for` only stands in a list", "scan"),
    ("fn f(x) { if a { 1 } elif b { 2 } }", (1, 22), "`elif` is not a word", "else if"),
    ("fn f(x) { lambda y: y }", (1, 11), "`lambda` is not a word", "fn (x)"),
    ("class A {}", (1, 1), "`class` is not a word", "layer"),
    ("fn f(x) { if x: y }", (1, 15), None, "without `:`"),
    ("fn f(x) { a && b }", (1, 13), "`&&` is not an operator", "`and`"),
    ("fn f(x) { a || b }", (1, 13), "`||` is not an operator", "`or`"),
    ("fn f(x) { !a }", (1, 11), "unexpected `!`", "`not x`"),
    ("fn f(x) { x++ }", (1, 12), "`++` is not an operator", "+="),
    ("fn f(x) { let g = x => x }", (1, 21), "`=>` is not an operator", "fn (x)"),
    ("fn f(x) { x ? 1 : 2 }", (1, 13), "unexpected `?`", "if condition"),
    ("// hello\nfn f(x) { x }", (1, 1), "unexpected `//`", "`#`"),
    ("fn f() { x /* c */ }", (1, 12), None, "`#`"),
    ("fn f(x) { 'a' }", (1, 11), "unexpected `'`", "double quotes"),
    ("fn f(x) { else { 1 } }", (1, 16), None, "`else` follows"),
    ("fn f(x) { 3x }", (1, 12), None, "cannot start with a digit"),
    # characters, strings, numbers
    ('fn f(x) { "abc }\n', (1, 11), "this string is not closed", None),
    ("fn f(x) { x \u2013 1 }", (1, 13), "U+2013", "minus"),
    ("fn f(x) { x\u00a0+ 1 }", (1, 12), "NO-BREAK SPACE", "plain spaces"),
    ("fn f(x) { \0 }", (1, 11), "NUL", "text file"),
    (r'fn f(x) { "a\q" }', (1, 13), r"unknown escape `\q`", None),
    ("let x = " + "9" * 100_000, (1, 9), "does not fit 64 bits", None),
    ("let x = 18446744073709551616", (1, 9), "does not fit 64 bits", None),
    ("let x = 1e999", (1, 9), "number too large", None),
    # arguments
    ("fn f(x) { f(a = 1, 2) }", (1, 20), "a positional argument cannot follow", None),
    ("fn f(x) { f(a = 1, a = 2) }", (1, 20), "`a` is given twice", None),
    # a line that looks like a continuation
    ("fn f(x) {\n  let y = x\n      - 3\n  y\n}", (3, 7), "this line starts with `-`", "end of the line before"),
    ("fn f(x) {\n  x\n    + 3\n}", (3, 5), "this line starts with `+`", None),
])
def test_messages(text, place, message, hint):
    with pytest.raises(CompileError) as info:
        parse(text, "t.nn")
    [d] = info.value.diagnostics
    shown = str(info.value)
    assert (d.span.line, d.span.col) == place, shown
    assert message is None or message in d.message, shown
    assert hint is None or hint in (d.hint or ""), shown
    assert shown.startswith(f"t.nn:{place[0]}:{place[1]}: error: ") and len(shown) < 2000


def test_unreadable_files(tmp_path):
    for data, message in ((b"let x = 1\nlet y\xff = 2", "not UTF-8"), (b"\xff\xfel\0e\0t\0", "not UTF-8")):
        path = tmp_path / "a.nn"
        path.write_bytes(data)
        with pytest.raises(CompileError, match=message):
            parse_file(path)
    path.write_bytes(b"let x = 1\nlet y\xff = 2")
    with pytest.raises(CompileError) as info:
        parse_file(path)
    assert info.value.diagnostics[0].span[1:3] == (2, 6)
    with pytest.raises(CompileError, match="cannot read"):
        parse_file(tmp_path / "missing.nn")
    with pytest.raises(CompileError, match="a folder"):
        parse_file(tmp_path)
    with pytest.raises(CompileError, match="cannot read"):
        parse_file("a\0b")


# ---- hostile input -----------------------------------------------------------------------------------------------

def noise(seed, size, low, high):
    rng = random.Random(seed)
    return "".join(chr(rng.randrange(low, high)) for _ in range(size))


DEEP = {
    "parentheses": "fn f(x) { " + "(" * 10**5 + "x" + ")" * 10**5 + " }",
    "open parentheses": "(" * 10**5,
    "braces": "fn f(x) { " + "{" * 10**5,
    "closers": "}" * 10**5,
    "operators": "fn f(x) { " + "+".join(["x"] * 10**5) + " }",
    "minus": "fn f(x) { " + "-" * 10**5 + "x }",
    "attributes": "fn f(x) { x" + ".a" * 10**5 + " }",
    "calls": "fn f(x) { x" + "()" * 10**5 + " }",
    "else if": "fn f(x) { if x {1} " + "else if x {1} " * 10**4 + "}",
    "powers": "let x = " + "2**" * 10**5 + "2",
    "function types": "fn f() -> " + "fn() -> " * 10**4 + "f32 {}",
}
NOISE = {
    "ascii": noise(1, 10**6, 32, 127), "bytes": noise(2, 10**6, 0, 256), "unicode": noise(3, 10**5, 0, 0xD000),
    "words": " ".join(random.Random(4).choices("fn let ( ) { } x = + 1 if else , \n ; [ ] : \"".split(" "), k=10**5)),
    "quotes": '"' * 10**6, "backslashes": '"\\' * 10**5, "surrogates": "let \ud800 = 1",
    "float": "let x = 1e" + "9" * 10**5,
}


@pytest.mark.parametrize("text", [*DEEP.values(), *NOISE.values()], ids=[*DEEP, *NOISE])
def test_hostile_input_gets_a_diagnostic_quickly(text):
    start = time.perf_counter()
    with pytest.raises(CompileError) as info:
        parse(text, "noise.nn")
    assert len(str(info.value).encode("utf-8", "replace")) < 4000
    assert time.perf_counter() - start < 120                # a hang, not a speed


@pytest.mark.parametrize("text", [
    "fn f(x) { x" + "\n" * 10**5 + "|> y }", "fn f(x) { (x" + "\n" * 10**5 + ") }", "#\n" * 10**5, ";" * 10**5,
    "fn f(x) { x" + "\n#a" * 10**5 + "\n|> y }", " " * 10**6, "let " + "a" * 10**6 + " = 1",
    "let x = [" + "1," * 20000 + "]", "fn f(x) { " + "+".join(["x"] * 900) + " }",
    "fn f(x) { " + "if x { " * 190 + "}" * 190 + " }"], ids=lambda t: t[:12].strip())
def test_large_but_right_input_parses_quickly(text):
    start = time.perf_counter()
    module = parse(text)
    A.dump(module)
    assert module == pickle.loads(pickle.dumps(module))
    assert time.perf_counter() - start < 120                # a hang, not a speed


def test_mutated_programs_never_crash():
    rng = random.Random(7)
    texts = [p.read_text(encoding="utf-8") for p in HAND_WRITTEN]
    pieces = list("(){}[];,:.=+-*/@|<>#\"\n 1x") + ["let ", "fn ", "if ", "else ", "..", "|>", "yield ", "\\", "\0", "é"]
    outcomes = set()
    for _ in range(300):
        text = rng.choice(texts)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(["", rng.choice(pieces)]) + text[at + rng.randrange(3):]
        try:
            parse(text, "mutant.nn")
            outcomes.add("parsed")
        except CompileError as e:
            assert "error: " in str(e)
            outcomes.add("refused")
    assert outcomes == {"parsed", "refused"}


# ---- speed and caches --------------------------------------------------------------------------------------------

def test_the_tables_that_come_with_engram_are_those_of_the_grammar():
    expected = lalr.tables_text(lalr.GRAMMAR.read_text(encoding="utf-8"))
    assert lalr.TABLES.read_text(encoding="utf-8") == expected, "frontend/grammar.lark was changed: run `make tables`"


def test_tables_of_a_changed_grammar_are_cached_and_damage_is_repaired(tmp_path, monkeypatch):
    monkeypatch.setenv("ENGRAM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(lalr, "TABLES", tmp_path / "old.json")
    lalr.TABLES.write_text('{"key": "of another grammar"}')
    lalr.tables.cache_clear()
    try:
        lalr.tables()
        [file] = (tmp_path / "cache/frontend").iterdir()
        good = file.read_bytes()
        for bad in (good[:1000], good[:-1] + b"?", b""):
            file.write_bytes(bad)
            lalr.tables.cache_clear()
            assert parse("let x = 1").items
            assert len(file.read_bytes()) > len(good) // 2 and file.read_bytes() != bad
        monkeypatch.setenv("ENGRAM_CACHE_DIR", "")
        lalr.tables.cache_clear()
        assert parse("let x = 1").items
    finally:
        lalr.tables.cache_clear()


def test_library_items_are_the_files_declarations():
    """library.py takes a library file apart by its lines; each part gives the tree and the places that the whole file gives."""
    for name in std_files():
        file = parse_file(STD / name, f"std/{name}")
        items = [i for i in file.items if not isinstance(i, A.Import)]
        assert all(i.path.startswith("std/") and i.alias is None for i in file.items if isinstance(i, A.Import))
        scope = library_scope(name)
        assert [i.name for i in items] == list(scope.names)
        for item in items:
            got = scope.lookup(item.name).decl
            assert got == item and got.span == item.span and got.name_span == item.name_span
            assert [n.span for n in A.walk(got)] == [n.span for n in A.walk(item)]



def test_cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("ENGRAM_CACHE_DIR", str(tmp_path))
    assert write_cached("a", "x", b"1") and read_cached("a", "x") == b"1"
    assert os.listdir(tmp_path / "a") == ["x"]
    assert read_cached("a", "y") is None
    (tmp_path / "a").chmod(0o777)
    assert cache_dir("a") is None and not write_cached("a", "x", b"2") and read_cached("a", "x") is None
    (tmp_path / "file").write_text("")
    assert cache_dir("file") is None
    monkeypatch.setenv("ENGRAM_CACHE_DIR", "")
    assert cache_dir("a") is None
    monkeypatch.delenv("ENGRAM_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir("b") == tmp_path / "xdg/engram/b"


def test_a_warm_parser_starts_without_lark():
    """What makes the start quick: the tables come from the cache."""
    parse("let x = 1")                                       # the cache is warm from here on
    code = ("import sys; from engram.frontend.parse import parse; parse('let x = 1'); "
            "print(any(m == 'lark' or m.startswith('lark.') for m in sys.modules))")
    env = dict(os.environ)
    if cache_dir("frontend") is None:
        pytest.skip("no cache folder can be written here")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert out.stdout.strip() == "False"
