"""From a program's file and a user's options to something that runs: the part that the command line and the Python API share."""
from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .datasets import Dataset, DatasetError, dataset

BACKENDS = ("interp", "cpu", "opencl")


def load_program(path_or_source, text: str | None = None):
    """Read and parse a program and what it imports."""
    from .compiler.ir.collector import paused
    with paused():                                           # importing makes many objects that stay, too
        from .compiler import ops  # noqa: F401  (registers the op table)
        from .frontend import load
        return load(path_or_source if text is not None else checked_source(path_or_source), text)


def checked_source(path_or_source) -> str:
    """A path or a program's text, as text; TypeError, ValueError for what is neither."""
    source = os.fspath(path_or_source) if isinstance(path_or_source, os.PathLike) else path_or_source
    if not isinstance(source, str):
        raise TypeError(f"expected the path of a .nn file or a program's text, got {type(source).__name__}")
    if not source.strip():
        raise ValueError("expected the path of a .nn file or a program's text, got an empty one")
    return source


def load_with_text(path_or_source) -> tuple[Any, str]:
    """A program and its own text, for whoever wants to add to it. A text has a newline or a brace in it; all else is a path."""
    source = checked_source(path_or_source)
    if "\n" in source or "{" in source:
        return load_program("<string>", source), source
    from .frontend.parse import read_source
    text = read_source(source)
    return load_program(source, text), text


def dataset_loader(file: str, where: str | None = None, given: Mapping[str, Dataset] | None = None,
                   absent: list | None = None) -> Callable[..., Dataset]:
    """What a train block's `dataset(name, ...)` calls. Paths are relative to the program's file, or to the current folder.

    `where` (from `--set data=DIR`) replaces the path; `given` holds data sets that exist already, by name; `absent` learns of data
    sets whose files are not here, for which zeros of their shapes serve where these are known: to check a program, not to run it.
    """
    folder = Path(file).parent if not file.startswith("<") else Path(".")

    def load(name: str, *args, **kwargs) -> Dataset:
        try:
            return find(name, *args, **kwargs)
        except DatasetError as e:
            if absent is not None and e.absent:
                absent.append(e)
                if e.shapes is not None:
                    return e.shapes
            raise

    def find(name: str, *args, **kwargs) -> Dataset:
        if given and name in given:
            return given[name]
        if where is not None:
            from .datasets import LOADERS, takes_path
            if name in LOADERS and not takes_path(name):
                raise DatasetError(f"data set {name!r} is bundled: it has no path that `data={where}` could replace")
            kwargs.pop("path", None)
            return dataset(name, where, *args[1:], base=[Path(".")], **kwargs)
        return dataset(name, *args, base=[folder, Path(".")], **kwargs)

    return load


def train_plan(program, name: str, overrides: Mapping[str, Any] | None = None, given: Mapping[str, Dataset] | None = None,
               absent: list | None = None):
    """The plan of a train block, its data loaded. `overrides` are `--set` values; `data` among them is a path."""
    from .frontend import elaborate_train
    overrides = dict(overrides or {})
    where = overrides.pop("data", None)
    if where is not None and not isinstance(where, str):
        raise DatasetError(f"data = {where!r}: expected a path")
    return elaborate_train(program, name, overrides, dataset_loader(program.file, where, given, absent),
                           tokenizers(program.file, where, absent))


def folders(file: str, where: str | None = None) -> list[Path]:
    """Where a program's files are looked for: where `--set data=..` points, next to the program, in the current folder."""
    first = [] if where is None else [Path(where) if Path(where).is_dir() else Path(where).parent]
    return [*first, Path(".") if file.startswith("<") else Path(file).parent, Path(".")]


def tokenizers(file: str, where: str | None = None, absent: list | None = None) -> dict[str, Callable]:
    """`bpe("vocab.json", "merges.txt")` and the like for a program's blocks."""
    from .tokenizers import MAKERS, tokenizer
    base = folders(file, where)

    def maker(kind: str) -> Callable:
        def make(*files, **more):
            try:
                return tokenizer(kind, *files, base=base, **more)
            except DatasetError as e:
                if absent is not None and e.absent:
                    absent.append(e)
                raise
        return make

    return {kind: maker(kind) for kind in MAKERS}


def first_block(program, name: str | None):
    """The train or run block to run: the named one, or the first; a CompileError where there is none."""
    from .compiler.diagnostics import did_you_mean, error
    if name is None:
        if program.blocks:
            return next(iter(program.blocks.values()))
        raise error(None, f"{program.file} has no train or run block: nothing to run",
                    hint="`engram check` checks a program, and Python calls its functions: engram.compile(path).name(...)")
    if name not in program.blocks:
        near = did_you_mean(name, program.blocks)
        known = ", ".join(program.blocks) or "none"
        raise error(None, f"{program.file} has no train or run block called `{name}`", hint=f"did you mean `{near}`?" if near else f"it has: {known}")
    return program.blocks[name]
