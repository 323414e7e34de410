"""The caches under bad luck: several processes at once, damaged files, folders that are full or not to be written, and their size."""
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from engram.compiler import cache_dir, driver, ops  # noqa: F401
from engram.compiler.cache_dir import read_cached, sweep, write_cached

PROGRAM = """
import hashlib, numpy as np, engram as eg
p = eg.compile("fn f(x: f32[n, m], w: f32[m, k]) -> f32[n, k] { softmax(tanh(x @ w)) }")
print(hashlib.sha256(p.f(np.linspace(-1, 1, 3200, dtype="f4").reshape(40, 80), np.linspace(-1, 1, 4000, dtype="f4").reshape(80, 50)).tobytes()).hexdigest())
"""


def start(folder, **more) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PROGRAM], env=os.environ | {"ENGRAM_CACHE_DIR": str(folder)} | more,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(p: subprocess.Popen) -> str:
    out, err = p.communicate(timeout=600)
    assert p.returncode == 0 and not err, err
    return out


def files(folder):
    return sorted(f for f in folder.rglob("*") if f.is_file())


def test_processes_at_once_and_damage(tmp_path):
    """All begin with nothing, and write the same files; then every file is cut, or has a bit turned, in turn."""
    answers = {answer(p) for p in [start(tmp_path) for _ in range(3)]}
    assert len(answers) == 1
    kept = files(tmp_path)
    assert len(kept) > 3 and not [f for f in kept if f.name.endswith(cache_dir.TEMPORARY)]
    contents = [f.read_bytes() for f in kept]
    for i, (f, data) in enumerate(zip(kept, contents)):
        f.write_bytes([data[:len(data) // 2], data[:-1] + bytes([data[-1] ^ 1]), b""][i % 3])
    assert {answer(p) for p in [start(tmp_path) for _ in range(2)]} == answers
    assert [f.read_bytes()[:32] for f in files(tmp_path)] and {answer(start(tmp_path))} == answers


def test_without_room_for_the_cache(tmp_path):
    """Nothing can be written: files may not grow (as on a full disk), the folder is none, or caching is off."""
    (tmp_path / "file").write_text("")
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n" + PROGRAM
    runs = [subprocess.Popen([sys.executable, "-c", full], env=os.environ | {"ENGRAM_CACHE_DIR": str(tmp_path / "full")},
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True),
            start(tmp_path / "file"), start("")]
    assert len({answer(p) for p in runs}) == 1
    assert not files(tmp_path / "full")


def test_a_folder_that_can_only_be_read_is_still_read(tmp_path, monkeypatch):
    monkeypatch.setenv("ENGRAM_CACHE_DIR", str(tmp_path))
    assert write_cached("obj", "x", b"data")

    def refuse(*a, **k):
        raise PermissionError(13, "read-only")
    monkeypatch.setattr(cache_dir.tempfile, "mkstemp", refuse)
    monkeypatch.setattr(cache_dir.os, "utime", refuse)
    assert read_cached("obj", "x") == b"data" and not write_cached("obj", "y", b"data")


def test_the_cache_is_bounded(tmp_path, monkeypatch):
    """The least recently used go first; what a process left half-written goes after a day."""
    monkeypatch.setenv("ENGRAM_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("ENGRAM_CACHE_MB", "2")
    monkeypatch.setattr(cache_dir, "SWEEP_EVERY", 1)
    now = time.time()
    for i in range(40):
        assert write_cached("obj" if i % 2 else "programs", f"n{i}", bytes(100_000))
        for f in files(tmp_path):
            if f.name == f"n{i}":
                os.utime(f, (now - 1000 + i, now - 1000 + i))
        assert sum(f.stat().st_size for f in files(tmp_path)) <= 2 << 20
    left = {f.name for f in files(tmp_path)}
    assert "n39" in left and "n0" not in left and len(left) > 10
    (tmp_path / "obj" / f"n0.abc{cache_dir.TEMPORARY}").write_bytes(b"half")
    os.utime(tmp_path / "obj" / f"n0.abc{cache_dir.TEMPORARY}", (now - 1e6, now - 1e6))
    sweep(tmp_path)
    assert {f.name for f in files(tmp_path)} == left


def test_what_is_used_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("ENGRAM_CACHE_DIR", str(tmp_path))
    write_cached("obj", "old", b"1")
    os.utime(tmp_path / "obj/old", (0, 0))
    assert read_cached("obj", "old") == b"1" and (tmp_path / "obj/old").stat().st_mtime > time.time() - 100


def test_programs_that_are_equal_but_for_names_compile_once(tmp_path, monkeypatch):
    """The machine code of a kernel does not depend on what its function is called, or on the lines it came from."""
    pytest.importorskip("llvmlite")
    from engram.codegen.cpu import compile as c
    monkeypatch.setenv("ENGRAM_CACHE_DIR", str(tmp_path))
    seen = []
    monkeypatch.setattr(c, "optimise_and_emit", lambda text, *a, _f=c.optimise_and_emit, **k: (seen.append(text), _f(text, *a, **k))[1])
    c._recent.clear()
    import engram as eg
    x = np.ones((100, 300), np.float32)
    a = eg.compile("fn f(x: f32[n, m]) -> f32[n, m] { exp(x) * tanh(x) + sqrt(x) }").f(x)
    before = len(seen)
    b = eg.compile("\n\nfn g(y: f32[p, q]) -> f32[p, q] { exp(y) * tanh(y) + sqrt(y) }").g(x)
    assert a.tobytes() == b.tobytes()
    assert not [t for t in seen[before:] if "@k" in t and "define" in t and "vm_exp" in t], "the kernel was compiled again"
