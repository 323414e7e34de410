"""What the README shows must be so: its Python runs, its program is the example, its commands exist."""
from __future__ import annotations

import re

import engram as eg
import numpy as np
from engram.cli import parser


def blocks(text: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.M | re.S)


def test_python(request, monkeypatch, tmp_path, capsys):
    root = request.config.rootpath
    monkeypatch.chdir(root)
    rng = np.random.default_rng(0)
    d = eg.dataset("digits").fields
    for code in blocks((root / "README.md").read_text(), "python"):
        scope = {"w": rng.normal(size=(4, 4)), "s": rng.normal(size=4), "x": d["x"], "y": d["y"], "path": tmp_path / "m.safetensors"}
        exec(compile(code, "README.md", "exec"), scope)
        assert scope["h"].history["val_accuracy"][-1] > 0.8 and (tmp_path / "m.safetensors").exists()


def test_the_program_is_the_example(request):
    root = request.config.rootpath
    shown = next(b for b in blocks((root / "README.md").read_text(), "") if b.startswith("# examples/digits.nn"))
    body = (root / "examples/digits.nn").read_text()
    assert shown.split("\n", 1)[1] == body[body.index("import"):]


def test_the_commands_parse(request):
    root = request.config.rootpath
    text = (root / "README.md").read_text()
    commands = re.findall(r"^(?:\$ |.*&& )?engram ((?:run|check|ir|diff|bench|fmt|opt)\b[^#\n]*)", text, re.M)
    assert len(commands) >= 8
    for c in commands:
        args = parser().parse_args(c.split())
        for file in [getattr(args, "file", None), *(getattr(args, "files", None) or [])]:
            assert file is None or (root / file).exists(), c
