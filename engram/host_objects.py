"""What run blocks have that the language has not: functions of the host, what of tokenizers and data sets a program sees, printing."""
from __future__ import annotations

import codecs
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from .compiler.diagnostics import CompileError, did_you_mean, error
from .datasets import Dataset
from .tokenizers import Piece, Tokenizer


class HostFunction:
    """A function that runs on the host. `pure`: it only computes. `abstract`: its result while checking, for arguments not known then."""

    def __init__(self, name: str, run: Callable, pure: bool = False, abstract: Any = None):
        self.name, self.run, self.pure, self.abstract = name, run, pure, abstract

    def call(self, args: list, kw: dict, span) -> Any:
        """The result; what is wrong with the arguments becomes a diagnostic at the call."""
        import inspect
        try:
            inspect.signature(self.run).bind(*args, **kw)
        except TypeError as e:
            raise error(span, f"{self.name}: {e}") from None
        try:
            return self.run(*args, **kw)
        except CompileError as e:                              # a file's: only the place is missing
            for d in e.diagnostics:
                d.span = d.span or span
            raise
        except BrokenPipeError:                                # `engram run .. | head`
            raise
        except (ValueError, TypeError, OSError) as e:
            raise error(span, f"{self.name}: {e}") from None

    def when_abstract(self, span) -> Any:
        """The result of a call in a check, where an argument's value is not known."""
        if self.abstract is None:
            raise error(span, f"`{self.name}` needs values that are known before the block runs")
        return self.abstract

    def __repr__(self) -> str:
        return f"the function `{self.name}`"


def file_objects(run) -> dict[str, HostFunction]:
    """`dataset`, `bpe`, `llama_tokenizer`: what is read from files, for one run block."""
    from .session import dataset_loader, tokenizers
    makers = {"dataset": dataset_loader(run.program.file, run.where), **tokenizers(run.program.file, run.where)}
    return {name: HostFunction(name, make, pure=True) for name, make in makers.items()}


def attribute(base: Tokenizer | Dataset, name: str, span) -> Any:
    """`data.x`, `data.n`, `text.encode`."""
    if isinstance(base, Dataset):
        if name in base.fields:
            return base.fields[name]
        if name == "n":
            return base.n
        known = [*base.fields, "n"]
    else:
        if name in base.attributes:
            return getattr(base, name)
        if name in base.methods:
            return HostFunction(name, getattr(base, name), pure=True, abstract=Piece(b"") if name == "decode" else None)
        known = [*base.methods, *base.attributes]
    near = did_you_mean(name, known)
    raise error(span, f"{text(base)} has no `.{name}`", hint=f"did you mean `.{near}`?" if near else f"it has {', '.join(known)}")


# ---- arrays and their text --------------------------------------------------------------------------------------------

def is_array(v: Any) -> bool:
    """Whether it is an array of ours, on the host or on a device."""
    return isinstance(v, np.ndarray) or hasattr(v, "numpy") and hasattr(v, "shape")


def numpy(v: Any) -> np.ndarray:
    """An array or number on the host."""
    return np.asarray(v)


def text(v: Any) -> str:
    """A value as `print` shows it: numbers as the language writes them, arrays as NumPy does."""
    if isinstance(v, str):
        return str(v)
    if is_array(v):
        a = numpy(v)
        if a.ndim == 0:
            return text(bool(a)) if a.dtype == bool else str(a[()])
        return np.array2string(a, separator=", ", threshold=1000, formatter={"bool": lambda x: "true" if x else "false"})
    if v is None or isinstance(v, bool):
        return {None: "none", True: "true", False: "false"}[v]
    if isinstance(v, tuple):
        return f"({', '.join(map(_quoted, v))})"
    if isinstance(v, list):
        return f"[{', '.join(map(_quoted, v))}]"
    if isinstance(v, Dataset):
        fields = ", ".join(f"{k}: {a.dtype}{list(a.shape)}" for k, a in v.fields.items())
        return f"data set {v.name} ({fields})"
    return str(v)


def _quoted(v: Any) -> str:
    return f'"{v}"' if isinstance(v, str) else text(v)


class Printer:
    """`print` of run blocks: at once and in order.

    As Python's, but for one thing: decoded text printed alone ends no line, since what a model writes comes token by token. A line
    left open that way is ended before anything else is printed, and at the end.
    """

    def __init__(self, out=None):
        self._out = out
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")       # a token may end within a character
        self._open = False
        self._fresh = True

    @property
    def out(self):
        return self._out if self._out is not None else sys.stdout

    def print(self, values: tuple, sep: str, end: str | None) -> None:
        """One call of `print`."""
        if not isinstance(sep, str) or not isinstance(end, str | None):
            raise ValueError("`sep` and `end` are strings")
        if len(values) == 1 and isinstance(values[0], Piece):
            self._write(self._bytes.decode(values[0].raw) + (end or ""))
            self._open = end is None
            return
        self._end_line()
        self._write(sep.join(map(text, values)) + ("\n" if end is None else end))

    def _end_line(self) -> None:
        rest = self._bytes.decode(b"", final=True)
        self._bytes.reset()
        if self._open and not (self._fresh and not rest):
            rest += "\n"
        self._open = False
        self._write(rest)

    def _write(self, s: str) -> None:
        if s:
            self.out.write(s)
            self.out.flush()
            self._fresh = s.endswith("\n")

    def close(self) -> None:
        """Ends a line left open."""
        self._end_line()
