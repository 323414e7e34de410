"""The public face of Engram: `compile`, `Model`, optimisers and rules for Python programs, and the command line.

The sibling folders of a checkout (compiler/, frontend/, ...) install as `engram.compiler`, `engram.frontend`, ...  Names are
imported when they are first used, so that `import engram` and `engram --help` answer at once.
"""
from pathlib import Path as _Path

__version__ = "0.1.0"

# Python started inside a checkout finds ./engram first, without its mapped siblings: look for them beside it.
_root = _Path(__file__).resolve().parent.parent
if (_root / "compiler" / "ir").is_dir() and (_root / "pyproject.toml").is_file():
    __path__.append(str(_root))

_HOME = {
    "compile": "api", "CompiledProgram": "api", "Model": "model", "History": "model",
    "SGD": "optim", "Adam": "optim", "AdamW": "optim", "RMSprop": "optim", "Lion": "optim", "rule": "optim", "expr": "optim",
    "Dataset": "datasets", "DatasetError": "datasets", "dataset": "datasets",
    "ArgumentError": "arguments", "CheckpointError": "checkpoint",
    "CompileError": "compiler.diagnostics", "RuntimeError_": "compiler.diagnostics", "BackendUnavailable": "compiler.diagnostics",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'engram' has no attribute {name!r}")
    from importlib import import_module
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
