"""Whatever the text, the front end answers with a tree, a plan or diagnostics: never another exception, never late.

Three kinds of texts: what the grammar itself generates (hypothesis.extra.lark), real programs with mistakes put in (mutate.py), and
joined halves of two programs.  100-odd of each here, thousands with ENGRAM_NIGHTLY=1.  A text that once broke something is
kept in tests/diagnostics or in BROKE below.
"""
from __future__ import annotations

import random
import resource

import pytest
from engram.compiler.diagnostics import CompileError
from engram.frontend import lalr
from engram.frontend.format import format_source
from engram.frontend.parse import parse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.lark import from_lark
from lark import Lark
from mutate import NAMES, NIGHTLY, NUMBERS, TEXTS, attempt, mutant, splice, tokens

SECONDS = 20.0                   # for one text: hundreds of times what it takes, so that a busy machine does not fail the test


def runs(n: int) -> settings:
    return settings(max_examples=30 * n if NIGHTLY else n, derandomize=not NIGHTLY, deadline=None, database=None, print_blob=True,
                    suppress_health_check=list(HealthCheck))


# ---- texts of the grammar -----------------------------------------------------------------------------------------------

def grammar_for_generation() -> Lark:
    """The grammar with tokens that a generator can make: a newline for _SEP, no look-ahead, no priorities."""
    text = lalr.GRAMMAR.read_text(encoding="utf-8")
    lines = []
    for line in text.split("\n"):
        if line.startswith("_SEP"):
            line = '_SEP: "\\n"'
        elif line.startswith(("_NEWLINE", "COMMENT:", "BLANK:", "%ignore")):
            continue
        elif line.startswith("NAME:"):
            line = "NAME: " + " | ".join(f'"{n}"' for n in [*NAMES[:60], "q"])
        elif line.startswith("FLOAT"):
            line = 'FLOAT: "0.5" | "1e3" | "2.0"'
        elif line.startswith("INT"):
            line = "INT: " + " | ".join(f'"{n}"' for n in NUMBERS if n.isdigit())
        elif line.startswith("STRING"):
            line = 'STRING: "\\"a\\"" | "\\"mean\\"" | "\\"digits\\""'
        lines.append(line)
    return Lark("\n".join(lines) + "\nBLANK: \" \"\n%ignore BLANK\n", parser="earley")


GRAMMAR = grammar_for_generation()


@runs(25)
@given(st.one_of([from_lark(GRAMMAR, start=s) for s in ("expr", "stmt", "item")]), st.integers(0, 3))
def test_texts_of_the_grammar(text, frame):
    wrapped = ["{}", "fn f(x: f32[n], y: i64[n], w: f32[n, n]) {{ {} }}", "layer L(d) {{ param w: f32[d] = 0; fn (x: f32[B, d]) {{ {} }} }}",
               'train t {{ model = Linear(64, 10); data = dataset("digits"); {} }}'][frame].format(text)
    attempt(wrapped, SECONDS)
    attempt(" ".join(tokens(wrapped)), SECONDS)


# ---- mistakes in real programs ------------------------------------------------------------------------------------------

@runs(400)
@given(st.integers(0, 2**32))
def test_mutated_programs(seed):
    attempt(mutant(random.Random(seed)), SECONDS)


@runs(60)
@given(st.integers(0, 2**32))
def test_spliced_programs(seed):
    rng = random.Random(seed)
    attempt(splice(rng, rng.choice(TEXTS), rng.choice(TEXTS)), SECONDS)


@runs(60)
@given(st.integers(0, 2**32))
def test_what_parses_is_formatted_to_the_same_program(seed):
    text = mutant(random.Random(seed))
    try:
        tree = parse(text, "fuzz.nn")
    except CompileError:
        return
    once = format_source(text, "fuzz.nn")
    assert parse(once, "fuzz.nn") == tree and format_source(once, "fuzz.nn") == once


# ---- texts that broke something -----------------------------------------------------------------------------------------

BROKE = [
    "fn f(x, x) { x }",
    'train t { model = f(3); data = dataset(5); minimize model using sgd(1) }',
    'train t { data = dataset(); minimize 1.0 using sgd(1) }',
    'import "std/nn.nn"\ntrain t { model = Linear(64, 10); data = dataset("digits", model); minimize mean(model(x)) using sgd(1.0) }',
    "layer L() { param w: f32[3] = normal(relu, 1); fn (x: f32[3]) { x * w } }",
    "fn f(x: f32[n]) { einsum(x, equation = 3) }",
    'import "std/nn.nn"\ntrain t { model = Linear(64, 10); data = kaiming_uniform("digits"); minimize mean(model(x)) using sgd(1.0) }',
    "fn f() { sum(zeros(9223372036854775807, 9223372036854775807)) }",
    "layer L(d) { param w: f32[d] = uniform(-1 / d, 1 / d); fn (x: f32[d]) { x * w } }",
]


@pytest.mark.parametrize("text", BROKE)
def test_what_broke_once(text):
    attempt(text, SECONDS)


def test_memory_stays_small():
    """Behind all of the above in this process: programs that name huge tensors take no memory for them."""
    attempt("fn f() { zeros(100000, 1000000) @ zeros(1000000, 100000) }\nfn g() { sort(normal(0, 1, size = [30000000000], key = 1)) }\n", SECONDS)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 2 << 20            # KB
