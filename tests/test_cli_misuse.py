"""Anything that a user can get wrong on the command line: an exit status of 1 (2 for usage), a message, no traceback, no reproducer."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from engram.cli import main

ROOT = Path(__file__).resolve().parent.parent
DIGITS = str(ROOT / "examples/digits.nn")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with files that are not what they should be."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bytes.nn").write_bytes(b"fn f(x\xff\xfe\n")
    (tmp_path / "nul.nn").write_bytes(b"\0\1ab")
    (tmp_path / "folder.nn").mkdir()
    (tmp_path / "empty.nn").write_text("")
    (tmp_path / "good.nn").write_text("fn f(x: f32[n]) -> f32[n] { x + 1 }\n")
    (tmp_path / "wrong.nn").write_text("fn f(x: f32[n]) -> f32[n] { y }\nfn g(x: f32[n]) { z }\n")
    (tmp_path / "bad.ir").write_text('module attributes {entries = 3, stage = [1]} { func @f(%x: f32[nan]) -> () { func.return() } }')
    (tmp_path / "kinds.ir").write_text('module attributes {stage = [1]} { func @f(%x: f32[3]) -> (f32[3]) { func.return(%x) } }')
    return tmp_path


@pytest.mark.parametrize("argv, wanted", [
    (["run", "nothere.nn"], "cannot read nothere.nn: No such file or directory"),
    (["run", "folder.nn"], "cannot read folder.nn: it is a folder"),
    (["run", "bytes.nn"], "bytes.nn:1:7: error: this file is not UTF-8 text: byte 0xff"),
    (["run", "nul.nn"], "nul.nn:1:1: error: unexpected NUL byte"),
    (["run", "empty.nn"], "empty.nn has no train or run block"),
    (["run", "good.nn"], "good.nn has no train or run block"),
    (["run", DIGITS, "nope"], "has no train or run block called `nope`"),
    (["run", DIGITS, "--set", "epochs"], "--set epochs: expected key=value"),
    (["run", DIGITS, "--set", "epochs=abc"], '`epochs` is the string "abc", expected a positive whole number'),
    (["run", DIGITS, "--set", "limit=0"], "the value is the command line's, not this line's"),
    (["run", DIGITS, "--set", "batch=[1, 2]"], "expected a positive number of samples"),
    (["run", DIGITS, "--set", "nope=1"], "has no setting `nope`"),
    (["run", DIGITS, "--set", "model=3"], "--set model can replace a literal only"),
    (["run", DIGITS, "--set", "data=3"], "expected a path"),
    (["run", DIGITS, "--set", "data=/nowhere"], "is bundled"),
    (["run", DIGITS, "--set", "seed=-1"], "`seed` is the number -1, expected a whole number from 0"),
    (["run", DIGITS, "--seed", "-1"], "`seed` is the number -1, expected a whole number from 0"),
    (["run", DIGITS, "--weights", "nothere"], "cannot read nothere: No such file or directory"),
    (["run", DIGITS, "--weights", "bytes.nn"], "bytes.nn is not a safetensors file"),
    (["run", DIGITS, "--weights", "folder.nn"], "folder.nn"),
    (["run", DIGITS, "--out", "good.nn"], "error: good.nn: it is a file, not a folder"),
    (["run", DIGITS, "--out", "good.nn/x"], "error: good.nn/x: Not a directory"),
    (["run", DIGITS, "--print-ir-after", "nope"], "there is no pass 'nope'"),
    (["check", "folder.nn"], "it is a folder"),
    (["fmt", "bytes.nn"], "not UTF-8"),
    (["ir", "empty.nn"], "empty.nn has no train block"),
    (["ir", "good.nn", "--fn", "g"], "has no function or train block 'g'"),
    (["ir", "good.nn", "--dims", "n=x"], "expected NAME=SIZE"),
    (["ir", "good.nn", "--dims", "m=3"], "--dims m: no function of good.nn has a dimension of this name"),
    (["ir", "good.nn", "--dims", "n=99999999999999999999"], "is too large: no machine holds that many elements"),
    (["diff", "good.nn", "--backends", "foo"], "unknown backend 'foo'"),
    (["diff", "good.nn", "--backends", ","], "--backends names none"),
    (["diff", "good.nn", "--backends", "cpu,cpu"], "--backends names only cpu: one to compare with is missing"),
    (["opt", "good.nn", "-p", "cse"], "good.nn: 1:"),
    (["opt", "-p", "cse"], "which file?"),
    (["opt", "bytes.nn", "-p", "cse"], "bytes.nn: 'utf-8' codec can't decode byte 0xff"),
    (["opt", "folder.nn", "-p", "cse"], "folder.nn: Is a directory"),
    (["opt", "bad.ir", "-p", "cse"], "bad.ir: "),
    (["opt", "kinds.ir", "-p", "cse"], "kinds.ir: malformed IR"),
    (["opt", "kinds.ir", "-p", "nope"], "there is no pass 'nope'"),
    (["bench", "nope"], "unknown workload 'nope'"), (["bench", "--vs", "nope"], "--vs nope: unknown peer; known: torch, jax"),
    (["bench", "mpl"], "did you mean 'mlp'?"), (["bench", "mlp", "--out", "nowhere/R.md"], "there is no folder nowhere"),
], ids=lambda v: " ".join(v).replace(str(ROOT), "") if isinstance(v, list) else "")
def test_status_1_and_a_message(place, argv, wanted, capsys):
    assert main(argv) == 1
    out = capsys.readouterr()
    assert wanted in out.err and "error: " in out.err and "Traceback" not in out.err and "internal error" not in out.err
    assert "epoch" not in out.out, "nothing is trained before the mistake shows"


@pytest.mark.parametrize("argv", [["run", DIGITS, "--threads", "100000"], ["run", DIGITS, "--threads", "-1"], ["run", DIGITS, "--threads", "9" * 40],
                                  ["run", DIGITS, "--backend", ""], ["run", DIGITS, "--out", ""], ["run", DIGITS, "--weights", ""], ["check"], ["fmt"], ["ir"], ["diff", "good.nn", "--seed", "a"]])
def test_usage(argv, capsys):
    with pytest.raises(SystemExit) as e:
        main(argv)
    assert e.value.code == 2 and "usage: engram" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable(place, capsys):
    (place / "locked").mkdir(mode=0o500)
    assert main(["run", DIGITS, "--out", "locked"]) == 1
    assert "locked: Permission denied" in capsys.readouterr().err


def test_no_opencl_device():
    r = subprocess.run([sys.executable, "-m", "engram", "run", DIGITS, "--backend", "opencl"], capture_output=True, text=True, cwd=ROOT,
                       env={**os.environ, "OCL_ICD_VENDORS": "/nonexistent"})
    if r.returncode == 0:
        pytest.skip("this OpenCL loader finds its devices in another way")
    assert r.returncode == 1 and "error: no OpenCL device on this machine" in r.stderr and "pocl-opencl-icd" in r.stderr and "Traceback" not in r.stderr


def test_check_goes_on_to_the_other_files(place, capsys):
    assert main(["check", "good.nn", "wrong.nn", "nothere.nn", "bytes.nn"]) == 1
    err = capsys.readouterr().err
    assert [x for x in err.splitlines() if "error: " in x] == [
        "wrong.nn:1:29: error: unknown name `y`", "wrong.nn:2:19: error: unknown name `z`", "error: cannot read nothere.nn: No such file or directory",
        "bytes.nn:1:7: error: this file is not UTF-8 text: byte 0xff"]
    assert main(["check", "good.nn", "empty.nn"]) == 0 and "2 files checked: no errors" in capsys.readouterr().out


def test_check_json(place, capsys):
    assert main(["check", "--json", "good.nn"]) == 0 and json.loads(capsys.readouterr().out) == []
    assert main(["check", "--json", "wrong.nn", "nothere.nn"]) == 1
    out = capsys.readouterr()
    found = json.loads(out.out)
    assert out.err == "" and [(d["file"], d["line"], d["column"], d["end_column"], d["severity"], d["message"]) for d in found] == [
        ("wrong.nn", 1, 29, 30, "error", "unknown name `y`"), ("wrong.nn", 2, 19, 20, "error", "unknown name `z`"),
        (None, None, None, None, "error", "cannot read nothere.nn: No such file or directory")]
    assert set(found[0]) == {"file", "line", "column", "end_line", "end_column", "severity", "message", "label", "hint", "notes", "marks"}


def test_opt_list_needs_no_file(capsys):
    assert main(["opt", "-p", "list"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "cse" in out and any(line.startswith("loop: ") for line in out)
