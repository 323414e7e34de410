"""From an exception to what the user sees and an exit status. A bug of Engram leaves a reproducer file behind."""
from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback

from . import BUG, OK, WRONG

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def colours(stream) -> bool:
    """Whether to paint: on a terminal, unless NO_COLOR is set (no-color.org) or the terminal is dumb."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def report(problem: BaseException, argv: list[str], args) -> int:
    """Print what went wrong; the exit status."""
    from ..arguments import ArgumentError
    from ..checkpoint import CheckpointError
    from ..compiler.diagnostics import CompileError, RuntimeError_, render
    from ..datasets import DatasetError

    if isinstance(problem, DatasetError | CompileError):
        print(render(problem.diagnostics, colours(sys.stderr)), file=sys.stderr)
        return WRONG
    if isinstance(problem, RuntimeError_):
        print(render([problem.diagnostic], colours(sys.stderr)), file=sys.stderr)
        return WRONG
    if isinstance(problem, CheckpointError | ArgumentError | UserError):
        return wrong(str(problem))
    if isinstance(problem, MemoryError):
        return wrong("not enough memory")
    if isinstance(problem, OSError) and problem.filename is not None:
        return wrong(f"{problem.filename}: {problem.strerror}")
    if isinstance(problem, OSError) and problem.errno in _FULL:                  # with files their names come along
        from . import _mute
        _mute()
        return wrong(f"standard output: {problem.strerror}")
    return bug(problem, argv, args)


class UserError(Exception):
    """An input that is wrong in a way the command line alone knows about."""


def wrong(message: str) -> int:
    paint = "\x1b[1;31merror\x1b[0m" if colours(sys.stderr) else "error"
    print(f"{paint}: {message}", file=sys.stderr)
    return WRONG


def bug(problem: BaseException, argv: list[str], args) -> int:
    """One line, and a file that holds all that is needed to see it again."""
    from ..compiler.pass_manager import PassFailure
    if os.environ.get("ENGRAM_DEBUG"):
        traceback.print_exception(problem)
    text = " ".join(str(problem).split()) or type(problem).__name__
    if isinstance(problem, PassFailure) and problem.reproducer:
        print(f"engram: {text[:400]}", file=sys.stderr)
        return BUG
    path = _reproducer(problem, argv, args)
    where = f" (reproducer: {path})" if path else ""
    print(f"engram: internal error: {type(problem).__name__}: {text[:300]}{where}", file=sys.stderr)
    return BUG


def _reproducer(problem: BaseException, argv: list[str], args) -> str | None:
    import platform
    import shlex

    from .. import __version__
    parts = [f"# engram {shlex.join(argv)}", f"# engram {__version__}, Python {platform.python_version()}, {platform.platform()}", ""]
    parts += ["# " + line for line in "".join(traceback.format_exception(problem)).rstrip().splitlines()]
    for file in [getattr(args, "file", None), *(getattr(args, "files", None) or [])]:
        try:
            if file and file != "-" and os.path.getsize(file) < 1 << 20:
                with open(file, encoding="utf-8", errors="replace") as f:
                    parts += ["", f"# ---- {file} ----", f.read()]
        except OSError:
            pass
    try:
        handle, path = tempfile.mkstemp(prefix="engram-bug-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8") as f:
            f.write("\n".join(parts) + "\n")
        return path
    except OSError:
        return None


__all__ = ["OK", "UserError", "bug", "colours", "report", "wrong"]
