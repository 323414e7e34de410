"""Disks that are full and streams that are closed: said plainly, nothing learned is lost, and never called a bug of Engram."""
from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from engram.cli import main

ROOT = Path(__file__).resolve().parent.parent
DIGITS = str(ROOT / "examples/digits.nn")
RUN = f"{sys.executable} -m engram run {DIGITS} --set epochs=1"


def shell(command: str, folder: Path):
    env = {**{k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=folder, env=env, timeout=120)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@pytest.mark.parametrize("command", [f"{RUN} > /dev/full", f"{sys.executable} -m engram ir {DIGITS} > /dev/full", f"{sys.executable} -m engram check {DIGITS} > /dev/full"])
def test_a_full_standard_output(command, tmp_path):
    r = shell(command, tmp_path)
    assert (r.returncode, r.stderr) == (1, "error: standard output: No space left on device\n")


def test_closed_streams(tmp_path):
    r = shell(f"{RUN} --out o >&-", tmp_path)
    assert (r.returncode, r.stderr) == (0, "") and (tmp_path / "o/weights.safetensors").exists()
    r = shell(f"{sys.executable} -m engram check nowhere.nn 2>&-", tmp_path)
    assert (r.returncode, r.stdout) == (1, "")
    assert shell(f"{sys.executable} -m engram ir {DIGITS} >&-", tmp_path).returncode == 0


def full(path: str):
    """os.replace, but into this folder nothing fits."""
    real = os.replace

    def replace(a, b):
        if str(b).startswith(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(a, b)
    return replace


def test_results_that_do_not_fit_go_elsewhere(tmp_path, capsys, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(os, "replace", full(str(tmp_path / "o")))
    assert main(["run", DIGITS, "-q", "--set", "epochs=1", "--out", str(tmp_path / "o")]) == 1
    err = capsys.readouterr().err
    place, = (tmp_path / "tmp").glob("engram-digits-*")
    assert err == f"error: {tmp_path / 'o/metrics.json'}: No space left on device; the results are in {place} instead\n"
    assert {p.name for p in place.iterdir()} - {"curve.png"} == {"metrics.json", "weights.safetensors"} and not list((tmp_path / "o").iterdir())
    assert main(["run", DIGITS, "-q", "--set", "epochs=1", "--weights", str(place / "weights.safetensors"), "--out", str(tmp_path / "p")]) == 0
    monkeypatch.setattr(os, "replace", full(str(tmp_path)))
    assert main(["run", DIGITS, "-q", "--set", "epochs=1", "--out", str(tmp_path / "o")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'o/metrics.json'}: No space left on device\n"


def test_an_output_folder_that_is_a_file(tmp_path, capsys):
    (tmp_path / "o").write_text("")
    assert main(["run", DIGITS, "-q", "--out", str(tmp_path / "o")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'o'}: it is a file, not a folder\n"
    assert main(["run", DIGITS, "-q", "--out", str(tmp_path / "o/p")]) == 1
    assert "Not a directory" in capsys.readouterr().err


def test_weights_that_are_cut_short_or_no_file(tmp_path, capsys):
    assert main(["run", DIGITS, "-q", "--set", "epochs=1", "--out", str(tmp_path)]) == 0
    whole = (tmp_path / "weights.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-1000])
    for weights, message in ((str(tmp_path / "cut.safetensors"), "a damaged one: its header and its length do not agree"), ("/dev/zero", "it is a device")):
        assert main(["run", DIGITS, "-q", "--weights", weights, "--out", str(tmp_path / "o")]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
