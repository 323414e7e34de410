"""The public face of Engram: `compile`, `Model`, optimisers and rules for Python programs, and the command line.

The sibling folders of a checkout (compiler/, frontend/, ...) install as `engram.compiler`, `engram.frontend`, ...
"""
from pathlib import Path as _Path

# Python started inside a checkout finds ./engram first, without its mapped siblings: look for them beside it.
_root = _Path(__file__).resolve().parent.parent
if (_root / "compiler" / "ir").is_dir() and (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))
