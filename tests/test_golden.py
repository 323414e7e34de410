"""Golden files: tests/golden/*.ir say what is done to them and what must come of it (see filecheck.py). `make bless` accepts changes."""
import re
from pathlib import Path

import pytest
from engram.compiler.pipelines import passes
from filecheck import check_file, check_section

FILES = sorted((Path(__file__).parent / "golden").glob("*.ir"))

SAMPLE = """// RUN: cse
// CHECK: count tensor.exp = 1
module attributes {stage = "tensor", entries = ["f"]} {
  func @f(%x: f32[3]) -> (f32[3]) {
    %a = tensor.exp(%x) : f32[3]
    %b = tensor.exp(%x) : f32[3]
    %c = tensor.add(%a, %b) : f32[3]
    func.return(%c)
  }
}
"""


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_golden(path):
    check_file(path)


def test_every_pass_has_a_golden_file():
    run = {name for path in FILES for spec in re.findall(r"^// RUN: *(.*)$", path.read_text(encoding="utf-8"), re.M) for name in re.split(r"[,\s]+", spec)}
    through_stages = {"grad"}                              # needs decompose before it: `definition`
    assert set(passes()) - through_stages <= run, "tests/golden: one file a pass"


def test_a_wrong_count_shows_a_diff_and_the_command(tmp_path, monkeypatch):
    path = tmp_path / "sample.ir"
    path.write_text(SAMPLE.replace("= 1", "= 2"))
    monkeypatch.delenv("ENGRAM_BLESS", raising=False)
    with pytest.raises(AssertionError) as e:
        check_file(path)
    assert "-// CHECK: count tensor.exp = 2" in str(e.value) and "+// CHECK: count tensor.exp = 1" in str(e.value)
    assert "ENGRAM_BLESS=1 python -m pytest tests/test_golden.py -k sample" in str(e.value)
    monkeypatch.setenv("ENGRAM_BLESS", "1")
    check_file(path)
    assert path.read_text() == SAMPLE


@pytest.mark.parametrize("line, problem", [("count tensor.exp >= 2", "there are 1"), ("count tensor.exp <= 0", "there are 1"), ("no tensor.add", "there are 1"),
                                           ("order tensor.add, tensor.exp", "found at"), ("has tensor.mul", "not in"), ("count tensor.exp = 1 in @g", "there is no @g"),
                                           ("nonsense", "not understood")])
def test_an_expectation_can_fail(line, problem):
    out = check_section(SAMPLE.replace("count tensor.exp = 1", line))
    assert len(out.problems) == 1 and problem in out.problems[0]


def test_missing_and_unexpected_errors_fail():
    wrong = SAMPLE.replace("%a = tensor.exp(%x) : f32[3]", "%a = tensor.exp(%x) : f32[4]").replace("func.return(%c)", "func.return(%c)  // expected-error: returns")
    problems = check_section(wrong).problems
    assert any("line 5: unexpected error: results are (f32[4])" in p for p in problems)
    assert any("expected error: returns" in p for p in problems)


def test_a_pass_that_changes_results_is_found(monkeypatch):
    import filecheck

    class Wrong:
        name, exact = "wrong", True

        def apply(self, module):
            for op in module.walk():
                if op.name == "tensor.add":
                    op.name = "tensor.mul"
            return module

    monkeypatch.setattr(filecheck, "passes", lambda: {"wrong": Wrong()})
    out = check_section(SAMPLE.replace("RUN: cse", "RUN: wrong").replace("= 1", "= 2"))
    assert "the passes change a result" in out.problems[0]
