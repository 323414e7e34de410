"""Where Engram keeps what it may rebuild at any time: parser tables, parsed library files, machine code.

The place is $ENGRAM_CACHE_DIR, else $XDG_CACHE_HOME/engram, else ~/.cache/engram.  Setting ENGRAM_CACHE_DIR to an empty
string turns caching off.  Whoever uses it must work without it: `cache_dir` answers None where there is no such place.

Several processes may use it at once: a file appears complete or not at all, and one that was damaged counts as absent. It holds
at most ENGRAM_CACHE_MB megabytes (by default 1024): what was not used for longest goes first.
"""
from __future__ import annotations

import hashlib
import os
import tempfile
import time
import zlib
from pathlib import Path

DAY = 86400.0
SWEEP_EVERY = 64               # files written, on average, between looks at the cache's size
TEMPORARY = ".part"            # of files being written


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
    return path


def read_cached(sub: str, name: str) -> bytes | None:
    """What `write_cached` stored; None where there is nothing, or a file that was damaged since."""
    folder = cache_dir(sub)
    if folder is None:
        return None
    path, data = folder / name, b""
    try:
        data = path.read_bytes()
        if time.time() - path.stat().st_mtime > DAY:         # when it was last used, roughly
            os.utime(path)
    except OSError:
        pass
    return data[32:] if data[:32] == hashlib.sha256(data[32:]).digest() else None


def write_cached(sub: str, name: str, data: bytes) -> bool:
    """Stores a file in one step (a reader sees all of it or nothing); False when that was not possible."""
    folder = cache_dir(sub)
    if folder is None:
        return False
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=name + ".", suffix=TEMPORARY)
        with os.fdopen(handle, "wb") as f:
            f.write(hashlib.sha256(data).digest() + data)
        os.replace(temporary, folder / name)
        if zlib.crc32(name.encode()) % SWEEP_EVERY == 0:
            sweep(folder.parent)
        return True
    except OSError:
        if temporary is not None:
            try:
                os.unlink(temporary)
            except OSError:
                pass
        return False


def sweep(root: Path) -> None:
    """Removes what was not used for longest until the cache is within three quarters of its bounds, and what killed processes left."""
    limit = os.environ.get("ENGRAM_CACHE_MB", "")
    limit = (int(limit) if limit.isdigit() else 1024) << 20
    files = []
    for folder in os.scandir(root):
        for f in os.scandir(folder) if folder.is_dir(follow_symlinks=False) else ():
            try:
                info = f.stat(follow_symlinks=False)
                if f.name.endswith(TEMPORARY) and time.time() - info.st_mtime > DAY:
                    os.unlink(f)
                elif f.is_file(follow_symlinks=False):
                    files.append((info.st_mtime, info.st_size, f.path))
            except OSError:                                  # another process was faster
                pass
    total = sum(size for _, size, _ in files)
    if total <= limit:
        return
    for _, size, path in sorted(files):
        if total <= limit * 3 // 4:
            break
        try:
            os.unlink(path)
        except OSError:
            continue
        total -= size
