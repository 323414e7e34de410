"""`engram.compile`: a program whose functions are called with NumPy arrays; and its derivatives.

Each combination of argument types and compile-time values is compiled once and kept. Models are model.py's business.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .arguments import KINDS, ArgumentError, to_array
from .cheap import checked, mark
from .session import BACKENDS, load_program


def compile(path_or_source: str | os.PathLike, backend: str = "cpu", threads: int | None = None, quantize: str | None = None) -> CompiledProgram:
    """Load a program: a path to a .nn file, or its text. Its top-level functions are the result's attributes. `quantize`: "ternary", "int4",
    "int8" or "pow2(n)" makes products with matrices among a function's arguments products of small integers (the right one of two)."""
    return CompiledProgram(path_or_source, backend, threads, quantize)


def checked_backend(backend: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: expected one of {', '.join(BACKENDS)}")
    return backend


def checked_threads(threads: int | None) -> int | None:
    if threads is None:
        return None
    if isinstance(threads, bool) or not isinstance(threads, int | np.integer):
        raise TypeError(f"threads: expected a positive integer or None for all cores, got {threads!r}")
    if threads < 1:
        raise ValueError(f"threads: expected a positive integer or None for all cores, got {threads}")
    return int(threads)


def checked_program(program) -> None:
    """Functions are elaborated when they are called, but a name that nothing can make known is wrong now."""
    from .compiler.diagnostics import CompileError
    from .frontend import unknown_names
    if problems := unknown_names(program):
        raise CompileError(problems)


class CompiledProgram:
    """A program's functions as attributes: `p.f(x, y)`; `p.grad("f", wrt="x")(x, y)` and so on."""

    def __init__(self, path_or_source: str | os.PathLike, backend: str = "cpu", threads: int | None = None, quantize: str | None = None):
        self._backend, self._threads, self._quantize = checked_backend(backend), checked_threads(threads), checked(quantize)
        self._program = load_program(path_or_source)
        checked_program(self._program)
        self._functions: dict[tuple, Function] = {}
        self._calls = 0

    def _key(self) -> np.ndarray:
        """For functions whose random key the caller leaves out: another one at each call, the same ones in each run."""
        from .train import key_of
        self._calls += 1
        return key_of(0, 5, self._calls)

    def __getattr__(self, name: str) -> Function:
        if name.startswith("__") or name.startswith("_ipython") or name == "_repr_html_":
            raise AttributeError(name)
        return self._function(name, AttributeError)

    def __getitem__(self, name: str) -> Function:
        return self._function(name, KeyError)

    def __dir__(self):
        return sorted({*object.__dir__(self), *self._program.functions})

    def __copy__(self) -> CompiledProgram:
        return self                                          # it does not change

    def __deepcopy__(self, memo) -> CompiledProgram:
        return self

    def __reduce_ex__(self, protocol):
        raise TypeError("an engram program cannot be pickled: it is compiled code; keep its text and compile that again")

    def __repr__(self) -> str:
        return f"<engram program {self._program.file}: {', '.join(self._program.functions) or 'no functions'}; {self._backend}>"

    def _function(self, name: str, error: type[Exception] = AttributeError, kind: str = "value", wrt: tuple[str, ...] = ()) -> Function:
        decl = self._program.functions.get(name)
        if decl is None:
            from .compiler.diagnostics import did_you_mean
            near = did_you_mean(name, self._program.functions)
            other = "it is a layer: use engram.Model" if name in self._program.layers else "it is a train block: use `engram run`" \
                if name in self._program.blocks else f"did you mean {near!r}?" if near else f"it has: {', '.join(self._program.functions) or 'none'}"
            raise error(f"{self._program.file} has no function {name!r}: {other}")
        key = (name, kind, wrt)
        if key not in self._functions:
            self._functions[key] = Function(self, name, decl, kind, wrt)
        return self._functions[key]

    # -- derivatives

    def grad(self, name: str, wrt: str | Sequence[str] | None = None) -> Function:
        """The gradient of a function with a scalar result; with respect to its first parameter unless `wrt` names others.
        One name gives an array, a list of names a tuple."""
        return self._derivative(name, "grad", wrt)

    def value_and_grad(self, name: str, wrt: str | Sequence[str] | None = None) -> Function:
        """(value, gradient) in one computation."""
        return self._derivative(name, "value_and_grad", wrt)

    def vjp(self, name: str, wrt: str | Sequence[str] | None = None) -> Function:
        """Called with the function's arguments and `cotangent=`: (value, the cotangent pulled back to `wrt`)."""
        return self._derivative(name, "vjp", wrt)

    def jvp(self, name: str, wrt: str | Sequence[str] | None = None) -> Function:
        """Called with the function's arguments and `tangent=` (one, or a tuple for a list `wrt`): (value, its derivative along it)."""
        return self._derivative(name, "jvp", wrt)

    def vmap(self, name: str, in_dims: int | Sequence[int | None] = 0, out_dims: int = 0) -> Function:
        """The function for every index along a dim of its arguments: `in_dims` is one dim for all arrays, or one per parameter (None: not
        mapped); the results are stacked along `out_dims`."""
        each = list(in_dims) if isinstance(in_dims, list | tuple) else [in_dims]
        for d in each:
            if not isinstance(d, int | np.integer) and (d is not None or in_dims is None):
                raise TypeError(f"in_dims: expected a whole number, or one or None for each parameter, got {in_dims!r}")
        if not isinstance(out_dims, int | np.integer):
            raise TypeError(f"out_dims: expected a whole number, got {out_dims!r}")
        dims = ("each" if isinstance(in_dims, list | tuple) else "all", *(None if d is None else int(d) for d in each))
        return self._function(name, kind="vmap", wrt=(*dims, int(out_dims)))

    def _derivative(self, name: str, kind: str, wrt) -> Function:
        f = self._function(name)
        names = [p.name for p in f.decl.params]
        if wrt is None:
            if not names:
                raise ValueError(f"{name} has no parameters to differentiate with respect to")
            wrt = names[0]
        single = isinstance(wrt, str)
        for w in [wrt] if single else wrt:
            if not isinstance(w, str):
                raise TypeError(f"wrt: expected names of parameters, got {w!r}")
            if w not in names:
                from .compiler.diagnostics import did_you_mean
                near = did_you_mean(w, names)
                raise ValueError(f"{name} has no parameter {w!r}: " + (f"did you mean {near!r}?" if near else f"it has {', '.join(names)}"))
        return self._function(name, kind=kind, wrt=("one", wrt) if single else ("many", *wrt))


class Function:
    """One function of a program, or a derivative of it; calling it compiles for the arguments' types once."""

    def __init__(self, owner: CompiledProgram, name: str, decl, kind: str, wrt: tuple[str, ...]):
        self.owner, self.name, self.decl, self.kind, self.wrt = owner, name, decl, kind, wrt
        self._cache: dict[tuple, tuple[Any, Any]] = {}
        self._plain: dict[tuple, tuple[Any, Any]] = {}       # the same by plain_key, where nothing has to be converted

    def __repr__(self) -> str:
        what = self.name if self.kind == "value" else f"vmap of {self.name}" if self.kind == "vmap" else \
            f"{self.kind} of {self.name} with respect to {', '.join(self.wrt[1:])}"
        return f"<engram function {what}({', '.join(p.name for p in self.decl.params)})>"

    def __call__(self, *args, **kwargs):
        plain = None if kwargs else plain_key(args)
        if plain is not None and plain in self._plain:
            program, e = self._plain[plain]
            return e.pack([np.asarray(program.to_host(r)) for r in program.call(e.entry, list(args))])
        extra = {"vjp": "cotangent", "jvp": "tangent"}.get(self.kind)
        direction = kwargs.pop(extra, None) if extra else None
        arrays: list[np.ndarray] = []
        types = {}
        for p, v in zip(self.decl.params, bind(self.name, self.decl, args, kwargs)):
            if v is not OMITTED:
                types[p.name] = _type_of(p, v, arrays, self.kind != "vmap")
        along = self._direction(extra, direction, types, arrays) if extra else ()
        key = (tuple((n, _hashable(t)) for n, t in types.items()), _hashable(along))
        if key not in self._cache:
            self._cache[key] = self._compile(types, along)
        program, e = self._cache[key]
        if plain is not None and same(args, arrays) and all(a.kind == "arg" for a in e.args):
            self._plain[plain] = (program, e)
        results = program.call(e.entry, entry_arguments(e, arrays, key=self.owner._key))
        return e.pack([np.asarray(program.to_host(r)) for r in results])

    def _direction(self, name: str, given, types: dict, arrays: list) -> list:
        """Types of the cotangents, or of one tangent per name of `wrt`; their arrays go to `arrays`, behind the arguments."""
        if given is None:
            raise ArgumentError(f"{self.kind} of {self.name}: the argument {name}= is missing")
        out = []
        if self.kind == "vjp":
            parts = list(given) if isinstance(given, tuple) else [given]
            for k, (v, d) in enumerate(zip(parts, self._result_dtypes(types, len(parts)))):
                arrays.append(to_array(f"{name}[{k}]" if len(parts) > 1 else name, v, d))
                out.append(_tensor_type(arrays[-1]))
            return out
        names = self.wrt[1:]
        parts = [given] if self.wrt[0] == "one" else list(given)
        if len(parts) != len(names):
            raise ArgumentError(f"{name}: expected {len(names)} arrays, one for each of {', '.join(names)}")
        for n, v in zip(names, parts):
            t = types.get(n)
            if not hasattr(t, "dtype") or not t.dtype.is_float:
                raise ArgumentError(f"{self.kind} of {self.name}: {n} is no float array")
            a = to_array(f"{name} of {n}", v, str(t.dtype))
            if a.shape != tuple(t.shape):
                raise ArgumentError(f"{name} of {n}: expected shape {list(t.shape)}, got {list(a.shape)}")
            arrays.append(a)
            out.append(t)
        return out

    def _result_dtypes(self, types: dict, n: int) -> list[str]:
        """The dtypes of the function's results as declared; where it declares none, the widest of its arguments'."""
        from .compiler.ir import DTYPES
        floats = [t.dtype for t in types.values() if hasattr(t, "dtype") and t.dtype.is_float]
        widest = str(max(floats, key=lambda d: d.bits)) if floats else "f32"
        declared = getattr(self.decl.result, "items", [self.decl.result])
        return [t.name if getattr(t, "name", None) in DTYPES else widest for t in (declared if len(declared) == n else [None] * n)]

    def _compile(self, types: dict, along):
        from . import frontend as F
        from .compiler import driver
        program, wrt = self.owner._program, self.wrt[1] if self.wrt[:1] == ("one",) else list(self.wrt[1:])
        if self.kind == "value":
            e = F.elaborate_function(program, self.name, kwargs=types)
        elif self.kind == "vmap":
            how, *dims, out = self.wrt
            e = F.elaborate_vmap(program, self.name, (), dims[0] if how == "all" else dims, out, kwargs=types)
        else:
            e = F.elaborate_derivative(program, self.name, (), self.kind, wrt, along, kwargs=types)
        if self.owner._quantize is not None:
            mark(e.module, [e.entry], [i for i, a in enumerate(e.args) if a.kind == "arg"], self.owner._quantize)
        return driver.build(e.module, self.owner._backend, threads=self.owner._threads), e


def plain_key(args: tuple) -> tuple | None:
    """Dtypes and shapes of arguments that are all arrays: calls that agree in them are checked and converted alike. None for others."""
    out = []
    for a in args:
        if type(a) is not np.ndarray:
            return None
        out.append((a.dtype, a.shape))
    return tuple(out)


def same(args: tuple, arrays: list) -> bool:
    """Whether the arrays a program gets are the caller's own, unchanged."""
    return len(args) == len(arrays) and all(a is b for a, b in zip(args, arrays))


def entry_arguments(e, arrays: list, slots: dict | None = None, key: Callable[[], np.ndarray] | None = None) -> list:
    """What an entry function is called with: the slots' values by path, the caller's arrays in order, a key where one is drawn from."""
    it = iter(arrays)
    return [(np.array(0, np.uint64) if key is None else key()) if a.kind == "key" else next(it) if a.kind == "arg" else slots[a.name]
            for a in e.args]


class _Omitted:
    """An argument that was left out: the function's own default serves."""

    def __repr__(self) -> str:
        return "OMITTED"


OMITTED = _Omitted()


def bind(name: str, decl, args: tuple, kwargs: dict) -> list[Any]:
    """One value per parameter, as Python binds them; OMITTED where a default serves."""
    names = [p.name for p in decl.params]
    if len(args) > len(names):
        raise ArgumentError(f"{name} takes {len(names)} argument{'s' if len(names) != 1 else ''} ({', '.join(names)}), got {len(args)}")
    values = dict(zip(names, args))
    for k, v in kwargs.items():
        if k not in names:
            from .compiler.diagnostics import did_you_mean
            near = did_you_mean(k, names)
            raise ArgumentError(f"{name} has no parameter {k!r}" + (f": did you mean {near!r}?" if near else f"; it has {', '.join(names)}"))
        if k in values:
            raise ArgumentError(f"{name}: argument {k} is given twice")
        values[k] = v
    missing = [p.name for p in decl.params if p.name not in values and p.default is None and not _is_key(p)]
    if missing:
        raise ArgumentError(f"{name}: missing argument{'s' if len(missing) > 1 else ''} {', '.join(missing)}")
    return [values.get(n, OMITTED) for n in names]


def _is_key(p) -> bool:
    return getattr(p.type, "name", None) == "key"


def _type_of(p, value, arrays: list, ranked: bool = True) -> Any:
    """What the front end is told about one argument: its tensor type (the array goes to `arrays`), or its compile-time value."""
    from .compiler.ir import DTYPES
    from .frontend import ast as A
    t = p.type
    if t is None:
        return plain_value(p.name, value)
    if isinstance(t, A.TupleType):
        if not isinstance(value, tuple | list) or len(value) != len(t.items):
            raise ArgumentError(f"argument {p.name}: expected a tuple of {len(t.items)}")
        return tuple(_type_of(A.Param(p.span, f"{p.name}[{k}]", x, None), v, arrays, ranked) for k, (x, v) in enumerate(zip(t.items, value)))
    if isinstance(t, A.TensorType) and (t.name in DTYPES or t.name in KINDS or t.name == "key"):
        a = to_array(p.name, value, t.name)
        if ranked:
            check_rank(p.name, t, a)
        arrays.append(np.ascontiguousarray(a) if a.ndim else a)
        return _tensor_type(a)
    raise ArgumentError(f"argument {p.name}: a parameter of this kind cannot be passed from Python yet; write a function of the program "
                        "that calls this one")


def plain_value(name: str, value) -> Any:
    """A compile-time value: NumPy's numbers as Python's; ArgumentError for what the language has no such values of."""
    if isinstance(value, np.generic) or isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, np.ndarray):
        raise ArgumentError(f"argument {name}: what is known when compiling is a number, text, True or False, None or a list of such, "
                            f"got an array of shape {list(value.shape)}; only a parameter with a type takes arrays")
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(plain_value(f"{name}[{k}]", v) for k, v in enumerate(value))
    if isinstance(value, dict | set | bytes | bytearray | complex):
        raise ArgumentError(f"argument {name}: expected a number, text, True or False, None or a list, got {type(value).__name__}")
    return value


def check_rank(name: str, t, a: np.ndarray) -> None:
    """The rank must be the declared one, and written sizes must agree; named sizes are the front end's to bind."""
    from .frontend import ast as A
    dims = t.dims or []
    packs = sum(isinstance(d, A.Pack) for d in dims)
    want = len(dims) - packs
    if (a.ndim < want) if packs else (a.ndim != want):
        raise ArgumentError(f"argument {name}: expected {_source(t)}, got shape {list(a.shape)}: "
                            f"{a.ndim} dimension{'s' if a.ndim != 1 else ''}, expected {'at least ' if packs else ''}{want}")
    if not packs:
        for k, (d, n) in enumerate(zip(dims, a.shape)):
            if isinstance(d, A.Int) and d.value != n:
                raise ArgumentError(f"argument {name}: expected {_source(t)}, got shape {list(a.shape)}: dimension {k} is {n}, expected {d.value}")


def _source(t) -> str:
    """A type as the user wrote it."""
    from .compiler.diagnostics import Source
    line = Source.line(t.span.file, t.span.line)
    return line[t.span.col - 1:t.span.end_col - 1] if line and t.span.line == t.span.end_line else t.name


def _tensor_type(a: np.ndarray):
    from .compiler.ir import TensorType
    from .compiler.ir.types import dtype_of
    return TensorType(dtype_of(a.dtype), a.shape)


def _hashable(v):
    if isinstance(v, list):
        return ("list", *map(_hashable, v))
    if isinstance(v, tuple):
        return tuple(map(_hashable, v))
    return (type(v), v)
