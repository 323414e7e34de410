"""From the text of a `.nn` file to its syntax tree: the front door of the parser.

    parse(text, "mlp.nn")     parse_file("mlp.nn")    -> ast.Module, or CompileError with one diagnostic
    parse_item(text, "std/nn.nn", 120)                 -> one declaration of a library file

Whatever the input (megabytes of noise, 10^5 open brackets, bytes that are no text), the answer is a tree or a diagnostic,
in time proportional to the input's length.
"""
from __future__ import annotations

import os
from pathlib import Path

from ..compiler.diagnostics import CompileError, Source, Span, error
from . import ast as A
from . import lalr
from .brackets import check_brackets
from .build_ast import CALLBACKS
from .syntax_errors import explain

MAX_BYTES = 8 << 20


def parse(text: str, file: str = "<string>") -> A.Module:
    """The syntax tree of a program.  `file` is the name that its spans and messages carry."""
    text = normalise(text)
    Source.register(file, text)
    if len(text) > MAX_BYTES:
        raise error(Span(file, 1, 1, 1, 2), f"this file is larger than {MAX_BYTES >> 20} MB", hint="is it a program?")
    suspect = check_brackets(text, file)                     # raises when they nest too deep
    try:
        module = lalr.run(text, file, CALLBACKS)
    except (lalr.Unexpected, lalr.BadCharacter, lalr.IndentedMinus) as problem:
        raise explain(problem, text, file, suspect) from None
    lines = text.count("\n") + 1
    module.span = Span(file, 1, 1, lines, len(text) - text.rfind("\n"))
    return module


def parse_file(path: str | os.PathLike, name: str | None = None) -> A.Module:
    """The syntax tree of a file; `name` is what messages call it (by default the path as given)."""
    name = name or os.fspath(path)
    return parse(read_source(path, name), name)


def parse_item(text: str, file: str, line: int) -> A.Node:
    """The tree of one declaration of a library file; `text` is its own part of the file, from line `line` on."""
    try:
        [item] = lalr.run(text, file, CALLBACKS, line=line).items
    except (lalr.Unexpected, lalr.BadCharacter, lalr.IndentedMinus) as problem:
        raise explain(problem, text, file, None) from None
    return item


def read_source(path: str | os.PathLike, name: str | None = None) -> str:
    """The text of a source file; a diagnostic where it cannot be read or is not UTF-8."""
    name = name or os.fspath(path)
    try:
        if Path(path).is_dir():
            raise error(None, f"cannot read {name}: it is a folder")
        with open(path, "rb") as f:
            data = f.read(MAX_BYTES + 1)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise error(None, f"cannot read {name}: {reason}") from None
    return decode(data, name)


def decode(data: bytes, name: str) -> str:
    """Source bytes as text; a diagnostic at the first byte that is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        at, before = problem.start, data[:problem.start]
        line = before.count(b"\n") + 1
        col = len(before[before.rfind(b"\n") + 1:].decode("utf-8", "replace")) + 1
        Source.register(name, normalise(data.decode("utf-8", "replace")))
        hint = "this looks like UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "save the file as UTF-8"
        raise error(Span(name, line, col, line, col + 1),
                    f"this file is not UTF-8 text: byte 0x{data[at]:02x}", hint=hint) from None


def normalise(text: str) -> str:
    """Without a byte-order mark, all line ends as `\\n`."""
    text = text.removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def parses(text: str, file: str = "<string>") -> bool:
    """Whether the text is a syntactically right program."""
    try:
        parse(text, file)
    except CompileError:
        return False
    return True
