"""The standard library, std/*.nn: the scope of each of its files, and the prelude around every program.

An item (fn, layer, rule) is parsed when its name is first used: a program uses a few of hundreds, and parsing all of them took
longer than everything else before the first training step of a small net.  Items start at the beginning of a line; a scan for these
tells their names and where their text ends.  A library file holds imports of other library files and items, and nothing else.
"""
from __future__ import annotations

import functools
import re
from pathlib import Path

from ..compiler.diagnostics import Source
from .parse import normalise, parse_item, read_source
from .values import Lazy, Scope, declared

STD = Path(__file__).with_name("std")
PRELUDE = ("init.nn", "optim.nn", "rules.nn", "rules_conv.nn", "augment.nn", "functional.nn")
_ITEM = re.compile(r"^(?:nonlocal[ \t]+)?(?:fn|rule|layer)[ \t]+(\w+)", re.M)
_IMPORT = re.compile(r'^import[ \t]+"std/([^"]+)"', re.M)


@functools.cache
def std_files() -> tuple[str, ...]:
    """The library's file names."""
    return tuple(sorted(p.name for p in STD.glob("*.nn")))


@functools.cache
def _text(file: str) -> str:
    return normalise(read_source(STD / file, f"std/{file}"))


@functools.cache
def _names(file: str) -> tuple[str, ...]:
    """The names that a library file declares."""
    return tuple(_ITEM.findall(_text(file)))


@functools.cache
def library_scope(file: str) -> Scope:
    """The names of a library file, in a scope within those of the files it imports."""
    text, imports = _text(file), Scope(prelude_scope())
    Source.register(f"std/{file}", text)
    for other in _IMPORT.findall(text):
        _promise(imports, other)
    scope = Scope(imports)
    items = list(_ITEM.finditer(text))
    for item, end in zip(items, [*(i.start() for i in items[1:]), len(text)]):
        scope.bind(item[1], Lazy(functools.partial(_item, scope, file, item.start(), end)))
    return scope


def _item(scope: Scope, file: str, start: int, end: int) -> object:
    text = _text(file)
    return declared(parse_item(text[start:end], f"std/{file}", text.count("\n", 0, start) + 1), scope)


@functools.cache
def prelude_scope() -> Scope:
    """Operations and types, and around every program: initialisers, optimisers, schedules and rules of the library."""
    from .builtins import builtin_scope

    scope = Scope(builtin_scope())
    for file in PRELUDE:
        _promise(scope, file)
    return scope


def _promise(scope: Scope, file: str) -> None:
    for name in _names(file):
        scope.names.setdefault(name, Lazy(functools.partial(_from_library, file, name)))


def _from_library(file: str, name: str) -> object:
    return library_scope(file).lookup(name)


@functools.cache
def library_names() -> dict[str, str]:
    """Name -> library file, for "import "std/nn.nn"" hints."""
    out: dict[str, str] = {}
    for file in std_files():
        for name in _names(file):
            out.setdefault(name, file)
    return out
