"""The outer cache: programs compiled for the cpu, by the front end's module, so that a warm start runs no pass.

The key covers the module's text (types, constants, locations), Engram's own source files, the target and the number of threads. Entries
are pickles in the user's own cache folder, which cache_dir.py guards (owner, permissions, checksum); nothing else is ever unpickled.
"""
from __future__ import annotations

import hashlib
import pickle
from functools import cache
from pathlib import Path

from .cache_dir import cache_dir, read_cached, write_cached
from .ir.core import Module
from .ir.printer import print_module

FOLDER = "programs"


@cache
def _sources() -> bytes:
    """Engram's code as it is: name, size and time of every source file that shapes machine code."""
    root = Path(__file__).parent
    folders = [root, *(root.parent / n for n in ("passes", "codegen", "interp"))]
    h = hashlib.blake2b(digest_size=16)
    for folder in folders:
        for f in sorted(folder.rglob("*.py")):
            s = f.stat()
            h.update(f"{f.relative_to(root.parent)} {s.st_size} {s.st_mtime_ns}\n".encode())
    return h.digest()


def program_key(module: Module, threads: int | None, once: bool = False) -> str | None:
    """The cache's name for a compiled module; None where there is no cache folder."""
    if cache_dir(FOLDER) is None:
        return None
    import llvmlite

    from ..codegen.cpu.runtime import default_threads
    from ..codegen.cpu.target import host_target
    h = hashlib.blake2b(_sources(), digest_size=20)
    h.update(f"{llvmlite.__version__} {host_target()!r} {threads or default_threads()} {once}\n".encode())
    h.update(print_module(module).encode())
    return h.hexdigest()


def read_program(key: str):
    """The compiled program, or None."""
    data = read_cached(FOLDER, key)
    if data is None:
        return None
    try:
        return pickle.loads(data)
    except Exception:
        return None                          # written by something else: compile anew


def write_program(key: str, compiled) -> None:
    write_cached(FOLDER, key, pickle.dumps(compiled, protocol=pickle.HIGHEST_PROTOCOL))
