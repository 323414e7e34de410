"""The command line: exit statuses, messages on the right stream, no tracebacks."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from engram.cli import main, parser
from engram.cli.errors import UserError
from engram.cli.options import dims, settings, value

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.nn"))


def engram(*args: str, **kw) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "engram", *map(str, args)], capture_output=True, text=True, cwd=ROOT, **kw)


def test_help_loads_nothing_heavy():
    """What makes it answer at once."""
    r = engram("--help")
    assert r.returncode == 0 and all(c in r.stdout for c in ("run", "check", "fmt", "ir", "opt", "diff", "bench"))
    code = ("import sys; from engram.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
            "print('heavy:', [m for m in ('numpy', 'lark', 'llvmlite', 'pyopencl', 'rich', 'matplotlib') if m in sys.modules])")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert out.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize("argv", [[], ["bogus"], ["run"], ["run", "a.nn", "--threads", "0"], ["run", "a.nn", "--backend", "tpu"],
                                  ["run", "a.nn", "--seed", "x"], ["opt", "a.ir"]])
def test_usage_errors_are_2(argv, capsys):
    with pytest.raises(SystemExit) as e:
        main(argv)
    assert e.value.code == 2 and "usage: engram" in capsys.readouterr().err


def test_a_missing_file_is_1(capsys):
    assert main(["run", "no/such.nn"]) == 1
    out = capsys.readouterr()
    assert out.out == "" and out.err == "error: cannot read no/such.nn: No such file or directory\n"
    assert main(["opt", "no/such.ir", "-p", "dce"]) == 1
    assert "no/such.ir" in capsys.readouterr().err


def test_debugging_options_stand_before_or_after_the_command():
    for argv in (["--time-passes", "run", "a.nn"], ["run", "a.nn", "--time-passes"]):
        assert parser().parse_args(argv).time_passes
    assert not hasattr(parser().parse_args(["run", "a.nn"]), "time_passes")


def test_settings():
    assert settings(["epochs=1", "lr = 3e-3", "data=data/mnist", 'name="a b"', "x=true", "y=none", "z=-2", "at=[1, 2]", "url=a=b"]) == {
        "epochs": 1, "lr": 3e-3, "data": "data/mnist", "name": "a b", "x": True, "y": None, "z": -2, "at": [1, 2], "url": "a=b"}
    for bad in ("epochs", "=3", "a b=3"):
        with pytest.raises(UserError, match="expected key=value"):
            settings([bad])
    assert value("1; let b = 2") == "1; let b = 2" and value("f(x)") == "f(x)" and value("") == ""


def test_dims():
    assert dims("B=32, T=8") == {"B": 32, "T": 8} and dims("") == {}
    with pytest.raises(UserError, match="expected NAME=SIZE"):
        dims("B=x")


def test_fmt(tmp_path, capsys):
    file = tmp_path / "a.nn"
    file.write_text("fn   f(x:f32[n])->f32[n]{x+1}\n")
    assert main(["fmt", "--check", str(file)]) == 1
    assert "is not formatted" in capsys.readouterr().err
    assert main(["fmt", str(file)]) == 0 and main(["fmt", "--check", str(file)]) == 0
    assert file.read_text() == "fn f(x: f32[n]) -> f32[n] { x + 1 }\n"
    file.write_text("fn f( {\n")
    assert main(["fmt", str(file)]) == 1
    assert "a.nn:1:" in capsys.readouterr().err and file.read_text() == "fn f( {\n"


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda p: p.stem)
def test_the_examples_are_formatted(file):
    assert main(["fmt", "--check", str(file)]) == 0


def test_fmt_keeps_the_mode_of_a_file_and_leaves_one_alone_that_may_not_be_written(tmp_path, capsys, monkeypatch):
    file = tmp_path / "a.nn"
    file.write_text("let  a=1\n")
    file.chmod(0o750)
    monkeypatch.setattr("os.access", lambda path, mode: False)           # (root may write to everything)
    assert main(["fmt", str(file)]) == 1 and file.read_text() == "let  a=1\n"
    assert capsys.readouterr().err == f"error: {file}: it may not be written to\n"
    monkeypatch.undo()
    assert main(["fmt", str(file)]) == 0 and file.read_text() == "let a = 1\n" and file.stat().st_mode & 0o777 == 0o750


def test_fmt_reads_standard_input():
    r = engram("fmt", "-", input="let  a=1\n")
    assert (r.returncode, r.stdout) == (0, "let a = 1\n")


def test_ast(capsys):
    assert main(["ir", str(ROOT / "examples/xor.nn"), "--stage", "ast", "--no-locs"]) == 0
    assert "(Train" in capsys.readouterr().out


def test_unknown_passes_and_stages(capsys):
    for argv, message in ([["ir", "examples/xor.nn", "--after", "gard"], "no pass 'gard': did you mean 'grad'"],
                          [["ir", "examples/xor.nn", "--stage", "tensr"], "no stage or pass 'tensr': did you mean 'tensor'"],
                          [["ir", "examples/xor.nn", "--stage", "qqqqq"], "no stage or pass 'qqqqq'\n  stages: ast, nn, plasticity, tensor, fused, loop"],
                          [["run", "examples/xor.nn", "--print-ir-after=nothing"], "no pass 'nothing'"]):
        assert main([argv[0], str(ROOT / argv[1]), *argv[2:]]) == 1
        assert message in capsys.readouterr().err


def test_a_bug_is_70_with_a_reproducer(monkeypatch, capsys):
    import engram.cli.ir as module

    def broken(args):
        raise AssertionError("impossible\nreally")
    monkeypatch.setattr(module, "ir_command", broken)
    assert main(["ir", str(ROOT / "examples/xor.nn")]) == 70
    out = capsys.readouterr()
    assert out.out == "" and out.err.count("\n") == 1 and "Traceback" not in out.err
    path = Path(out.err.rsplit("(reproducer: ", 1)[1].rstrip(")\n"))
    text = path.read_text()
    path.unlink()
    assert "AssertionError" in text and "train xor" in text and "engram ir" in text


def test_interrupts_are_130(monkeypatch, capsys):
    import engram.cli.ir as module
    monkeypatch.setattr(module, "ir_command", lambda args: (_ for _ in ()).throw(KeyboardInterrupt()))
    assert main(["ir", "x"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
