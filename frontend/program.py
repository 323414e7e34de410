"""Programs: files, what they import, and the scope of top-level names.  No evaluation here: `let`s are evaluated on demand by
whoever elaborates.

The prelude (initialisers, optimisers, schedules, rules of std/*.nn) is known without an import: see library.py.
"""
from __future__ import annotations

import functools
import os
from pathlib import Path

from ..compiler.diagnostics import Diagnostics, Span, did_you_mean, error
from ..compiler.ir.collector import paused
from . import ast as A
from .from_pytorch import NAMES
from .library import STD, library_names, library_scope, prelude_scope, std_files
from .parse import parse, parse_file
from .values import Lazy, Namespace, Scope, declared


class SourceModule:
    """One file: its tree and the scope of its top-level names (imported ones are in a scope around it)."""

    def __init__(self, tree: A.Module, outer: Scope):
        self.tree, self.file = tree, tree.file
        self.imports = Scope(outer)
        self.scope = Scope(self.imports)
        self.items: dict[str, A.Node] = {}


class Program:
    """A program: its main module and all it imports.  `blocks` are the train and run blocks by name, in order."""

    def __init__(self, main: SourceModule):
        self.main = main
        self.blocks: dict[str, A.Train | A.Run] = {}
        for item in main.tree.items:
            if isinstance(item, A.Train | A.Run):
                self.blocks[item.name] = item

    @property
    def file(self) -> str:
        return self.main.file

    @property
    def scope(self) -> Scope:
        return self.main.scope

    @property
    def functions(self) -> dict[str, A.FnDef]:
        return {n: i for n, i in self.main.items.items() if isinstance(i, A.FnDef)}

    @property
    def layers(self) -> dict[str, A.Layer]:
        return {n: i for n, i in self.main.items.items() if isinstance(i, A.Layer)}


@paused()
def load(path_or_source: str | os.PathLike, text: str | None = None) -> Program:
    """Reads and parses a program and what it imports.  `path_or_source` is a path, or the program's text itself; with `text`
    given, that is the source and `path_or_source` its name."""
    problems = Diagnostics()
    if text is None:
        source = os.fspath(path_or_source)
        if "\n" in source or "{" in source:
            tree, base = parse(source), Path(".")
        else:
            tree, base = parse_file(source), Path(source).parent
    else:
        name = os.fspath(path_or_source)
        tree, base = parse(text, name), Path(name).parent
    main = _module(tree, base, prelude_scope(), [], {}, problems)
    problems.raise_if_errors()
    return Program(main)


def _module(tree: A.Module, base: Path, outer: Scope, chain: list[str], done: dict[str, SourceModule],
            problems: Diagnostics) -> SourceModule:
    module = SourceModule(tree, outer)
    for item in tree.items:
        if isinstance(item, A.Import):
            imported = _import(item, tree.file, base, outer, chain, done, problems)
            if imported is None:
                continue
            if item.alias:
                module.imports.bind(item.alias, Namespace(item.alias, imported), item.span)
                continue
            for name, v in imported.names.items():
                # looked up through the module it belongs to, so that a `let` is evaluated there, once
                module.imports.bind(name, Lazy(functools.partial(imported.lookup, name)) if type(v) is Lazy else v, imported.spans.get(name))
    for item in tree.items:
        _declare(module, item, problems)
    return module


def _declare(module: SourceModule, item: A.Node, problems: Diagnostics) -> None:
    scope = module.scope
    if isinstance(item, A.Import | A.Train | A.Run):
        if not isinstance(item, A.Import):
            _once(module, item.name, item, item.name_span, problems)
        return
    if isinstance(item, A.Let):
        module_let(scope, item)
        return
    name, span = item.name, item.name_span
    if not _once(module, name, item, span, problems):
        return
    scope.bind(name, declared(item, scope), span)


def _once(module: SourceModule, name: str, item: A.Node, span: Span, problems: Diagnostics) -> bool:
    if name in module.items:
        first = module.items[name]
        problems.error(span, f"`{name}` is defined twice", notes=[(first.name_span, "first here")])
        return False
    module.items[name] = item
    return True


def module_let(scope: Scope, item: A.Let) -> None:
    """Binds the names of a top-level `let`: the value is computed when one of them is first used."""
    from .elaborator import evaluate_constant

    def bind(pattern: A.Pattern, path: tuple[int, ...]) -> None:
        if isinstance(pattern, A.NamePattern):
            if pattern.name != "_":
                scope.bind(pattern.name, Lazy(functools.partial(evaluate_constant, item, scope, path)), pattern.span)
        else:
            for i, p in enumerate(pattern.items):
                bind(p, (*path, i))

    bind(item.pattern, ())


# ---- imports ----------------------------------------------------------------------------------------------------------

def _import(item: A.Import, file: str, base: Path, outer: Scope, chain: list[str], done: dict[str, SourceModule],
            problems: Diagnostics) -> Scope | None:
    """The top-level names of an imported file."""
    path = item.path
    if path.startswith("std/"):
        name = path[4:]
        if name not in std_files():
            near = did_you_mean(path, ["std/" + f for f in std_files()])
            problems.error(item.path_span, f"there is no library file `{path}`", hint=f"did you mean `{near}`?" if near else
                           "the library holds " + ", ".join("std/" + f for f in std_files()))
            return None
        return library_scope(name)
    target = base / path
    key = os.path.realpath(target)
    if key in chain or key == os.path.realpath(file):
        names = [os.path.basename(p) for p in chain[chain.index(key):]] if key in chain else []
        problems.error(item.path_span, "files import each other in a circle: " + " -> ".join(
            [*names, os.path.basename(file), os.path.basename(key)][-6:]))
        return None
    if key in done:
        return done[key].scope
    if not target.is_file():
        problems.error(item.path_span, f"cannot find `{path}`", hint=f"it is looked for next to {os.path.basename(file)}"
                       + ("; library files start with `std/`" if (STD / os.path.basename(path)).exists() else ""))
        return None
    tree = parse_file(target, os.path.normpath(target))
    module = _module(tree, target.parent, outer, [*chain, os.path.realpath(file)], done, problems)
    done[key] = module
    return module.scope


FOREIGN_TYPES = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64", "double": "f64", "half": "f16", "int8": "i8", "int16": "i16",
                 "int32": "i32", "int64": "i64", "long": "i64", "uint8": "u8", "uint32": "u32", "uint64": "u64", "boolean": "bool", "Tensor": "f32[n, m]"}


def not_found(name: str, span: Span, scope: Scope, what: str = "name"):
    """The error for an unknown name, with what may have been meant."""
    file = library_names().get(name)
    if name in ("torch", "np", "numpy", "jnp", "jax", "nn", "F", "tf"):
        return error(span, f"unknown {what} `{name}`", hint="operations need no prefix: `relu(x)`, `sum(x, dim = 0)`")
    if what == "type" and name in FOREIGN_TYPES:
        return error(span, f"unknown type `{name}`", hint=f"did you mean `{FOREIGN_TYPES[name]}`?")
    if file:
        return error(span, f"unknown {what} `{name}`", hint=f'`{name}` is in the library: add `import "std/{file}"`')
    if what == "name" and name in NAMES:
        return error(span, f"unknown {what} `{name}`", hint=NAMES[name])
    near = did_you_mean(name, scope.all_names())
    if near is None:
        near = did_you_mean(name, library_names())
    return error(span, f"unknown {what} `{name}`", hint=f"did you mean `{near}`?" if near else None)
