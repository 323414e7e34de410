"""docs/EXTENDING.md does what it says: its op, pass, backend and rule are added to a process of their own and put to the tests."""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "EXTENDING.md").read_text(encoding="utf-8")


def blocks(kind: str, heading: str) -> list[str]:
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{kind}\n(.*?)^```$", section, re.S | re.M)


def run(code: str) -> str:
    """The code in a fresh interpreter: rows and rules it registers must not reach other tests."""
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "tests", timeout=300)
    assert r.returncode == 0, r.stderr[-3000:]
    return r.stdout


def test_the_op_passes_the_tests_of_the_table():
    run("\n".join(blocks("python", "An op")) + """
import numpy as np
from engram.compiler.ops import OPS
from test_ops_complete import test_row_is_documented, test_row_has_semantics_or_a_reason, test_sample_prints_parses_and_runs, test_lowered_row_computes_the_op
from test_grad_ops import test_rule_against_finite_differences
from test_docs import test_example
from helpers import make_op_module
new = OPS["tensor.antidiagonal"]
test_row_is_documented(new)
test_row_has_semantics_or_a_reason(new)
for k, sample in enumerate(new.samples):
    test_sample_prints_parses_and_runs(new, k)
    test_lowered_row_computes_the_op(new, k)
    test_rule_against_finite_differences(new.name, sample)
test_example(new.name)
from engram.compiler.driver import build
x = np.arange(9, dtype=np.float32).reshape(3, 3)
y, = build(make_op_module(new, new.samples[0]), "cpu").call("f", [x])
assert y.tolist() == [2, 4, 6], y
try:
    make_op_module(new, type(new.samples[0])((("f32[2,3]", 0, 1),), {}))
except ValueError as e:
    assert "expected a square matrix, got f32[2,3]" in str(e)
else:
    raise AssertionError("a wrong shape was taken")
""")


def test_the_pass_does_what_its_golden_file_says():
    golden, = blocks("ir", "A pass")
    run("\n".join(blocks("python", "A pass")) + f"""
import filecheck
known = filecheck.passes()
filecheck.passes = lambda: {{**known, "abs-of-neg": AbsOfNeg()}}
text = {golden!r}
out = filecheck.check_section(text)
assert not out.problems and out.text == text, (out.problems, out.text)
""")


def test_the_backend_agrees_with_the_definition():
    run("\n".join(blocks("python", "A backend")) + """
from hypothesis import given
from engram.compiler.driver import lower
from test_differential import ANY, Reference, copies, examples

@examples(10)
@given(ANY)
def check(g):
    p = LoopProgram(lower(g.module, "loop"))
    Reference.of(g).check([p.to_host(r) for r in p.call("main", [p.to_device(a) for a in copies(g.args)])], "loops")

check()
""")


def test_the_rule_is_local_and_learns(tmp_path):
    program, = blocks("nn", "A rule")
    (tmp_path / "oja.nn").write_text(program, encoding="utf-8")
    for args, wanted in ((["check", "--locality"], "local"), (["run", "--out", str(tmp_path)], "accuracy")):
        command, *rest = args
        r = subprocess.run([sys.executable, "-m", "engram", command, str(tmp_path / "oja.nn"), *rest], capture_output=True, text=True, timeout=300)
        assert r.returncode == 0 and wanted in r.stdout + r.stderr, r.stdout + r.stderr


def test_every_path_it_names_exists():
    new = {"tests/golden/abs_of_neg.ir"}                       # what the reader would add
    for path in re.findall(r"`((?:compiler|passes|interp|codegen|frontend|engram|tests)/[\w./*]*)`", TEXT):
        assert path in new or list(ROOT.glob(path)), path
