"""Runs the commands in docs/tour.md and writes what they print below them: `python docs/regenerate.py [--check] [FILE...]`.

A fenced block marked `nn` or `python` whose first line is `# NAME` becomes the file NAME in a temporary folder; in a block marked
`console`, each line `$ command` runs there (only `engram` and `python` are known) and the lines below it are replaced by its output.
"""
from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.S | re.M)


def regenerate(text: str) -> str:
    """The document with fresh outputs."""
    with tempfile.TemporaryDirectory() as folder:
        def block(m: re.Match) -> str:
            kind, body = m.group(1), m.group(2)
            named = re.match(r"# ([\w.]+\.(?:nn|py|ir))\b", body)
            if kind in ("nn", "python") and named:
                (Path(folder) / named.group(1)).write_text(body)
            if kind != "console":
                return m.group(0)
            out = [f"$ {c}\n{run(c, folder)}" for c in re.findall(r"^\$ (.*)$", body, re.M)]
            return f"```console\n{''.join(out)}```"

        return FENCE.sub(block, text)


def run(command: str, folder: str) -> str:
    """What the command prints on both streams; the target is fixed, so that the text is the same on every machine."""
    programs = {"engram": [sys.executable, "-m", "engram"], "python": [sys.executable]}
    name, *args = command.split()
    tail = None
    if "|" in args:                                     # `| head -n N` alone is understood
        cut = args.index("|")
        tail, args = int(args[cut + 3]), args[:cut]
    env = {**os.environ, "NO_COLOR": "1", "COLUMNS": "120", "ENGRAM_CPU": "avx2", "PYTHONIOENCODING": "utf-8"}
    r = subprocess.run([*programs[name], *args], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    lines = r.stdout.replace(folder + os.sep, "").splitlines()
    if tail is not None and len(lines) > tail:
        lines = [*lines[:tail], f"... {len(lines) - tail} more lines"]
    if r.returncode:
        lines.append(f"(exit status {r.returncode})")
    return "".join(line.rstrip() + "\n" for line in lines)


def main(argv: list[str]) -> int:
    check = "--check" in argv
    files = [Path(a) for a in argv if not a.startswith("-")] or [HERE / "tour.md"]
    stale = 0
    for f in files:
        old = f.read_text()
        new = regenerate(old)
        if new != old:
            stale += 1
            if check:
                print(f"{f} is not what its commands print now: run `python docs/regenerate.py`")
            else:
                f.write_text(new)
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
