"""Where Engram keeps what it may rebuild at any time: parser tables, parsed library files, machine code.

The place is $ENGRAM_CACHE_DIR, else $XDG_CACHE_HOME/engram, else ~/.cache/engram.  Setting ENGRAM_CACHE_DIR to an empty
string turns caching off.  Whoever uses it must work without it: `cache_dir` answers None where nothing can be written.
"""
from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path


def cache_dir(sub: str) -> Path | None:
    """The folder for one kind of cached things, made if need be; None when there is none to be had.

    What lies there is loaded without further checks (tables, pickles, machine code), so a folder that belongs to another
    user, or that others may write to, is refused."""
    root = os.environ.get("ENGRAM_CACHE_DIR")
    if root is None:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        root = os.path.join(base, "engram")
    if not root:
        return None
    path = Path(root) / sub
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in {Path(root), path}:
            info = folder.stat()
            if hasattr(os, "getuid") and (info.st_uid != os.getuid() or info.st_mode & 0o022):
                return None
    except (OSError, ValueError):
        return None
    return path if os.access(path, os.W_OK) else None


def read_cached(sub: str, name: str) -> bytes | None:
    """What `write_cached` stored; None where there is nothing, or a file that was damaged since."""
    folder = cache_dir(sub)
    if folder is None:
        return None
    try:
        data = (folder / name).read_bytes()
    except OSError:
        return None
    return data[32:] if data[:32] == hashlib.sha256(data[32:]).digest() else None


def write_cached(sub: str, name: str, data: bytes) -> bool:
    """Stores a file in one step (a reader sees all of it or nothing); False when that was not possible."""
    folder = cache_dir(sub)
    if folder is None:
        return False
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=name + ".")
        with os.fdopen(handle, "wb") as f:
            f.write(hashlib.sha256(data).digest() + data)
        os.replace(temporary, folder / name)
        return True
    except OSError:
        if temporary is not None:
            try:
                os.unlink(temporary)
            except OSError:
                pass
        return False
