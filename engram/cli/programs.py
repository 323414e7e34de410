"""Picks what `ir`, `diff` and `bench` work on: a function or a train block of a program, with sizes for its named dimensions."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import UserError


@dataclass
class Target:
    """A module to look at: `entry` is the function to call in it; `plan` the train plan it comes from, if any."""

    name: str
    module: Any
    entry: str
    plan: Any = None


def read_ir(path: str):
    """A module from textual IR, verified; a UserError says what is wrong with the text."""
    import sys

    from ..compiler import ops  # noqa: F401  (registers the op table)
    from ..compiler.ir.parser import IrSyntaxError, parse_module
    from ..compiler.ir.verifier import VerificationError, verify
    try:
        if path == "-":
            text = sys.stdin.read()
        else:
            with open(path, encoding="utf-8") as f:
                text = f.read()
        module = parse_module(text)
        try:
            verify(module, "reading the file")
        except VerificationError:
            verify(parse_module(text, path), "reading the file")       # again, with places in this file
            raise
    except (IrSyntaxError, VerificationError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: {str(e).replace(' after pass reading the file', '')}") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as e:            # attributes of the wrong kind
        raise UserError(f"{path}: malformed IR: {type(e).__name__}: {e}") from None
    return module


def build(module, backend: str, threads: int | None, options):
    """A program from a module of any stage: what is loops already goes straight to the backend."""
    from ..compiler import driver
    if module.attrs.get("stage") != "loop":
        return driver.build(module, backend, threads=threads, options=options)
    if backend == "cpu":
        from ..codegen.cpu.program import CpuProgram
        return CpuProgram(module, threads=threads)
    if backend == "opencl":
        from ..codegen.opencl.program import OpenClProgram
        return OpenClProgram(module)
    from ..interp.interpreter import Interpreter
    return Interpreter(module)


def targets(program, fn: str | None, dims: dict[str, int], default: int, overrides: dict[str, Any], every: bool = False) -> list[Target]:
    """The named function or train block; by default the first train block, else the first function; with `every`, all that can be had."""
    from ..compiler.diagnostics import did_you_mean
    from ..frontend import ast as A
    from ..session import train_plan
    _known_dims(program, dims)
    trains = {n: b for n, b in program.blocks.items() if isinstance(b, A.Train)}

    def block(name: str) -> Target:
        plan = train_plan(program, name, overrides, absent=[])         # shapes are enough here
        return Target(name, plan.module, plan.phases[0].entry, plan)

    if fn is not None:
        if fn in trains:
            return [block(fn)]
        if fn in program.functions:
            return [_function(program, fn, dims, default, overrides)]
        near = did_you_mean(fn, [*program.functions, *trains])
        raise UserError(f"{program.file} has no function or train block {fn!r}" + (f": did you mean {near!r}?" if near else ""))
    if every:
        return [*(_function(program, n, dims, default, overrides) for n, d in program.functions.items() if _callable(d, overrides)),
                *map(block, trains)]
    if trains:
        return [block(next(iter(trains)))]
    for name, decl in program.functions.items():
        if _callable(decl, overrides):
            return [_function(program, name, dims, default, overrides)]
    raise UserError(f"{program.file} has no train block and no function that can be specialised without more information; --fn names one, "
                    "--set gives its compile-time parameters")


def _known_dims(program, dims: dict[str, int]) -> None:
    """An error where `--dims` gives a name that no function's parameters have."""
    from ..compiler.diagnostics import did_you_mean
    from ..frontend import ast as A
    known = dict.fromkeys(n.id for d in program.functions.values() for p in d.params if isinstance(p.type, A.TensorType)
                          for dim in p.type.dims or [] if not isinstance(dim, A.Pack) for n in A.walk(dim) if isinstance(n, A.Name))
    for name in dims:
        if name not in known:
            near = did_you_mean(name, known)
            raise UserError(f"--dims {name}: no function of {program.file} has a dimension of this name" + (f": did you mean {near!r}?" if near else ""))


def _callable(decl, overrides: dict) -> bool:
    """Whether every parameter is a tensor, given with --set, or has a default."""
    from ..frontend import ast as A
    return all(p.name in overrides or p.default is not None or _is_tensor(p.type, A) for p in decl.params)


def _is_tensor(t, A) -> bool:
    from ..arguments import KINDS
    from ..compiler.ir import DTYPES
    return isinstance(t, A.TensorType) and (t.name in DTYPES or t.name in KINDS or t.name == "key")


def _function(program, name: str, dims: dict[str, int], default: int, overrides: dict) -> Target:
    from ..frontend import ast as A
    from ..frontend import elaborate_function
    args: list = []
    kwargs: dict = {}
    for p in program.functions[name].params:
        if _is_tensor(p.type, A):
            args.append(tensor_type(p, dims, default))
        elif p.name in overrides:
            args.append(overrides[p.name])
        elif p.default is not None:
            break
        else:
            raise UserError(f"{name}: parameter {p.name} is a compile-time value; give it with --set {p.name}=VALUE")
    e = elaborate_function(program, name, args, **kwargs)
    return Target(name, e.module, e.entry)


def tensor_type(p, dims: dict[str, int], default: int):
    """A tensor parameter's type with sizes for its names: from `dims`, else `default`; a leading `..` is taken as no dims."""
    from ..compiler.ir import DTYPES, TensorType, f32, i64, u64
    from ..frontend import ast as A
    t = p.type
    dtype = {"float": f32, "num": f32, "int": i64, "key": u64}.get(t.name) or DTYPES[t.name]
    return TensorType(dtype, tuple(_size(d, dims, default) for d in t.dims or [] if not isinstance(d, A.Pack)))


def _size(node, dims: dict[str, int], default: int) -> int:
    from ..frontend import ast as A
    if isinstance(node, A.Int):
        return node.value
    if isinstance(node, A.Name):
        return dims.get(node.id, default)
    if isinstance(node, A.Binary):
        a, b = _size(node.left, dims, default), _size(node.right, dims, default)
        ops = {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "//": lambda: a // max(b, 1), "/": lambda: a // max(b, 1)}
        if node.op in ops:
            return max(0, ops[node.op]())
    raise UserError("a size is too involved to guess; --dims gives the names in it")
