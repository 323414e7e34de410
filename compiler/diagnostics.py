"""What a user sees when their program is wrong: spans, diagnostics, and how both are shown.

Everything that rejects a user's program raises `CompileError`, carrying one or more `Diagnostic`s; each points at a
`Span` of the user's own text.  This module holds no knowledge of the language and imports nothing of Engram, so that
every other folder may use it.  Bugs of Engram itself are plain Python exceptions, never diagnostics.
"""
from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_ERRORS = 20            # a collector stops here: the rest is usually noise caused by the first ones
MAX_WIDTH = 160            # a longer source line is shown as a window around its caret
TAB = 4


class Span(NamedTuple):
    """A piece of a source file.  Lines and columns count from 1; the end column is the one after the last character."""

    file: str
    line: int
    col: int
    end_line: int
    end_col: int

    def to(self, other: Span) -> Span:
        """From the start of this span to the end of `other`."""
        return Span(self.file, self.line, self.col, other.end_line, other.end_col)

    def start(self) -> Span:
        """The first character only."""
        return Span(self.file, self.line, self.col, self.line, self.col + 1)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.col}"


# ---- source texts ------------------------------------------------------------------------------------------------

class Source:
    """The texts that spans point into, by file name.  Registered by the parser; read from disk where it was not."""

    _lines: OrderedDict[str, list[str]] = OrderedDict()
    _LIMIT = 1024                                            # oldest texts are forgotten: a service may compile forever

    @classmethod
    def register(cls, file: str, text: str) -> None:
        cls._lines[file] = text.split("\n")
        cls._lines.move_to_end(file)
        if len(cls._lines) > cls._LIMIT:
            cls._lines.popitem(last=False)

    @classmethod
    def line(cls, file: str, number: int) -> str | None:
        """One line without its end, or None when the text is not to be had."""
        lines = cls._lines.get(file)
        if lines is None:
            lines = cls._read(file)
        if lines is None or not 1 <= number <= len(lines):
            return None
        return lines[number - 1].rstrip("\r")

    @classmethod
    def _read(cls, file: str) -> list[str] | None:
        try:
            if not os.path.isfile(file) or os.path.getsize(file) > 1 << 24:
                return None
            with open(file, encoding="utf-8-sig", errors="replace") as f:
                cls.register(file, f.read())
        except (OSError, ValueError):
            return None
        return cls._lines[file]


# ---- diagnostics -------------------------------------------------------------------------------------------------

@dataclass(slots=True)
class Diagnostic:
    """One message.  `span` gets the caret, `marks` are further spans underlined with `~`; `label` and the marks' labels
    stand after the underlines; `notes` follow (with a source line of their own where they have a span), then `hint`."""

    severity: str                                            # "error" | "warning"
    span: Span | None
    message: str
    notes: list[tuple[Span | None, str]] = field(default_factory=list)
    label: str | None = None
    hint: str | None = None
    marks: list[tuple[Span, str | None]] = field(default_factory=list)

    def __str__(self) -> str:
        return render([self])


class CompileError(Exception):
    """The user's program is wrong.  `str()` is the text to show them."""

    def __init__(self, diagnostics: Diagnostic | Iterable[Diagnostic]):
        self.diagnostics = [diagnostics] if isinstance(diagnostics, Diagnostic) else list(diagnostics)
        super().__init__(self.diagnostics)

    def __str__(self) -> str:
        return render(self.diagnostics)


class RuntimeError_(Exception):
    """The user's program failed while running: an index out of range, an integer division by zero, a failed assert.
    `loc` (a compiler.ir.Loc, or None) is where; `str()` shows the user's own line, as a Diagnostic does."""

    def __init__(self, message: str, loc=None):
        self.message, self.loc = message, loc
        super().__init__(message, loc)

    @property
    def diagnostic(self) -> Diagnostic:
        loc = self.loc
        if loc is None:
            return Diagnostic("error", None, self.message)
        end_line = loc.end_line or loc.line
        end_col = loc.end_col or loc.col + 1
        return Diagnostic("error", Span(loc.file, loc.line, loc.col, end_line, end_col), self.message)

    def __str__(self) -> str:
        return render([self.diagnostic])


class BackendUnavailable(CompileError):
    """A backend that this machine cannot run; the diagnostic's hint tells how to get it."""

    def __init__(self, message: str, hint: str | None = None):
        super().__init__(Diagnostic("error", None, message, hint=hint))


def error(span: Span | None, message: str, *, hint: str | None = None, label: str | None = None,
          notes: Iterable[tuple[Span | None, str]] = (), marks: Iterable[tuple[Span, str | None]] = ()) -> CompileError:
    """A `CompileError` of one error, to be raised: `raise error(span, "...")`."""
    return CompileError(Diagnostic("error", span, message, list(notes), label, hint, list(marks)))


class Diagnostics:
    """Collects messages, so that one run reports several mistakes.  Stops (raises) after `limit` errors."""

    def __init__(self, limit: int = MAX_ERRORS):
        self.items: list[Diagnostic] = []
        self.limit = limit
        self._seen: set[tuple[Span | None, str]] = set()

    def error(self, span: Span | None, message: str, *, hint: str | None = None, label: str | None = None,
              notes: Iterable[tuple[Span | None, str]] = (), marks: Iterable[tuple[Span, str | None]] = ()) -> None:
        self.add(Diagnostic("error", span, message, list(notes), label, hint, list(marks)))

    def warn(self, span: Span | None, message: str, *, hint: str | None = None, label: str | None = None,
             notes: Iterable[tuple[Span | None, str]] = (), marks: Iterable[tuple[Span, str | None]] = ()) -> None:
        self.add(Diagnostic("warning", span, message, list(notes), label, hint, list(marks)))

    def add(self, diagnostic: Diagnostic) -> None:
        key = (diagnostic.span, diagnostic.message)
        if key in self._seen or diagnostic.message.startswith(_STOPPED):      # a generic body checked twice says the same thing twice
            return
        if len(self.errors) < self.limit:
            self._seen.add(key)
            self.items.append(diagnostic)
        if len(self.errors) >= self.limit:
            raise self._problem()

    def extend(self, problem: CompileError) -> None:
        """Takes over what a nested step raised."""
        for d in problem.diagnostics:
            self.add(d)

    @property
    def errors(self) -> list[Diagnostic]:
        return [d for d in self.items if d.severity == "error"]

    @property
    def warnings(self) -> list[Diagnostic]:
        return [d for d in self.items if d.severity == "warning"]

    def raise_if_errors(self) -> None:
        if self.errors:
            raise self._problem()

    def _problem(self) -> CompileError:
        stopped = Diagnostic("error", None, f"{_STOPPED} {self.limit} errors")       # said once, last, however often steps went on
        return CompileError([*self.items, stopped] if len(self.errors) >= self.limit else self.items)


_STOPPED = "stopped after"


def did_you_mean(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate closest to a misspelt name, or None when none is close."""
    import difflib

    pool = list(dict.fromkeys(c for c in candidates if c != name))
    for c in pool:                                           # `Relu` for `relu`: difflib would not find short ones
        if c.lower() == name.lower():
            return c
    if len(name) < 2:                                        # every short name is near to one letter
        return None
    close = difflib.get_close_matches(name, [c for c in pool if len(c) > 1], n=1, cutoff=0.6 if len(name) > 3 else 0.5)
    return close[0] if close else None


# ---- rendering ---------------------------------------------------------------------------------------------------

_COLOURS = {"error": "\x1b[1;31m", "warning": "\x1b[1;35m", "note": "\x1b[1;36m", "help": "\x1b[1;32m",
            "mark": "\x1b[1;32m", "gutter": "\x1b[34m", "bold": "\x1b[1m"}


def render(diags: Iterable[Diagnostic], color: bool = False) -> str:
    """The text of all diagnostics, in order, without a final newline."""
    def paint(kind: str, text: str) -> str:
        return f"{_COLOURS[kind]}{text}\x1b[0m" if color else text

    return "\n".join(_render_one(d, paint) for d in diags)


def _render_one(d: Diagnostic, paint) -> str:
    out = [_headline(d.span, d.severity, d.message, paint)]
    gutter = 3
    if d.span is not None:
        shown, gutter = _excerpt(d.span, d.label, d.marks, paint)
        out += shown
    for span, text in d.notes:
        if span is None:
            out.append(f"{' ' * gutter} {paint('gutter', '=')} {paint('note', 'note')}: {_indent(text, gutter + 9)}")
    if d.hint:
        out.append(f"{' ' * gutter} {paint('gutter', '=')} {paint('help', 'help')}: {_indent(d.hint, gutter + 9)}")
    for span, text in d.notes:
        if span is not None:
            out.append(_headline(span, "note", text, paint))
            out += _excerpt(span, None, [], paint)[0]
    return "\n".join(out)


def _headline(span: Span | None, severity: str, message: str, paint) -> str:
    place = paint("bold", f"{span}: ") if span is not None else ""
    return f"{place}{paint(severity, severity)}: {message}"


def _indent(text: str, by: int) -> str:
    return text.replace("\n", "\n" + " " * by)


def _excerpt(span: Span, label: str | None, marks: list[tuple[Span, str | None]], paint) -> tuple[list[str], int]:
    """The source lines of a span and of its marks, with underlines; and the gutter's width."""
    by_line: dict[int, list[tuple[Span, str, str | None]]] = {span.line: [(span, "^", label)]}
    elsewhere = []
    for mark, text in marks:
        if mark.file == span.file:
            by_line.setdefault(mark.line, []).append((mark, "~", text))
        else:
            elsewhere.append((mark, text))
    gutter = 2 + len(str(max(by_line)))
    out, last = [], None
    for number in sorted(by_line):
        text = Source.line(span.file, number)
        if text is None:
            continue
        if last is not None and number > last + 1:
            out.append(paint("gutter", "..."))
        last = number
        shown, underline, labels = _underline(text, number, by_line[number])
        out.append(f"{paint('gutter', f'{number:>{gutter}} |')} {shown}".rstrip())
        tail = "  " + _indent("; ".join(labels), gutter + 3) if labels else ""
        out.append(f"{paint('gutter', ' ' * gutter + ' |')} {paint('mark', underline + tail)}")
    for mark, text in elsewhere:
        out.append(f"{' ' * gutter} {paint('gutter', '=')} {paint('note', 'note')}: {mark}: {text or 'see here'}")
    return out, gutter


def _underline(text: str, number: int, marks: list[tuple[Span, str, str | None]]) -> tuple[str, str, list[str]]:
    """A source line as shown (tabs expanded, long lines windowed), the line of marks under it, and the labels."""
    import unicodedata

    cells: list[str] = []                                    # what each character is shown as
    columns = [0]                                            # where each character starts on the screen
    for ch in text:
        if ch == "\t":
            cell = " " * (TAB - columns[-1] % TAB)
        elif unicodedata.category(ch) in ("Cc", "Cf", "Cs"):
            cell = "\N{REPLACEMENT CHARACTER}"               # invisible and direction-changing characters must show
        else:
            cell = ch
        width = len(cell)
        if width == 1 and ord(ch) > 0x2FF:
            width = 0 if unicodedata.combining(ch) else 2 if unicodedata.east_asian_width(ch) in "WF" else 1
        cells.append(cell)
        columns.append(columns[-1] + width)

    first, last = 0, len(cells)
    if len(cells) > MAX_WIDTH:
        at = min(marks[0][0].col - 1, len(cells))
        first = max(0, min(at - MAX_WIDTH // 3, len(cells) - (MAX_WIDTH - 20)))
        last = min(len(cells), first + MAX_WIDTH - 20)
    before = "..." if first else ""
    shown = before + "".join(cells[first:last]) + ("..." if last < len(cells) else "")

    paper = [" "] * (columns[last] - columns[first] + 2)
    for span, char, _ in reversed(marks):                    # the caret is drawn last, over the others
        begin = min(max(span.col - 1, first), last)
        end = span.end_col - 1 if span.end_line == number else len(text.rstrip())
        end = min(max(end, begin), last)
        a = columns[begin] - columns[first]
        b = max(columns[end] - columns[first], a + 1)
        for k in range(a, min(b, len(paper))):
            paper[k] = char
    labels = [label for _, _, label in marks if label]
    return shown, " " * len(before) + "".join(paper).rstrip(), labels


def to_json(diags: Iterable[Diagnostic]) -> list[dict]:
    """The same as data, for editors and other programs."""
    def place(span: Span | None) -> dict:
        if span is None:
            return {"file": None, "line": None, "column": None, "end_line": None, "end_column": None}
        return {"file": span.file, "line": span.line, "column": span.col,
                "end_line": span.end_line, "end_column": span.end_col}

    return [{**place(d.span), "severity": d.severity, "message": d.message, "label": d.label, "hint": d.hint,
             "notes": [{**place(s), "message": text} for s, text in d.notes],
             "marks": [{**place(s), "label": text} for s, text in d.marks]} for d in diags]
