"""A look at the brackets alone, before parsing: how deep they nest, and which one was probably forgotten.

The LALR automaton notices a missing `}` only at the end of the file, far from the mistake; indentation tells more.
"""
from __future__ import annotations

import re
from typing import NamedTuple

from ..compiler.diagnostics import Span, error

MAX_NESTING = 200
_TOKENS = re.compile(r'[()\[\]{}]|"(?:[^"\\\n]|\\.)*+"?|#[^\n]*+|\n[ \t]*+').finditer
_ITEM = re.compile(r"(?:layer|train|run|rule|nonlocal|import)\b(?=[ \t]+[\w\"])|fn[ \t]+\w").match
_CLOSER = {"(": ")", "[": "]", "{": "}"}


class Suspect(NamedTuple):
    """What is wrong with the brackets: a message, the place to show, and from where on the text cannot be right."""

    message: str
    span: Span
    offset: int
    hint: str | None
    other: tuple[Span, str] | None


def check_brackets(text: str, file: str) -> Suspect | None:
    """Raises when brackets nest too deep; otherwise the first thing wrong with them, or None."""
    line, line_start, indent = 1, 0, len(text) - len(text.lstrip(" \t"))
    stack: list[tuple[str, int, int, int, int]] = []         # bracket, offset, line, column, indentation of its line
    unclosed = None                                          # an opener that indentation says was forgotten
    wrong: Suspect | None = None

    def span(row: int, col: int) -> Span:
        return Span(file, row, col, row, col + 1)

    for m in _TOKENS(text):
        ch, at = text[m.start()], m.start()
        if ch == "\n":
            line, line_start, indent = line + 1, at + 1, m.end() - at - 1
            if stack and unclosed is None and indent <= stack[-1][4] and _ITEM(text, m.end()):
                unclosed = stack[-1]
        elif ch in "([{":
            stack.append((ch, at, line, at - line_start + 1, indent))
            if len(stack) > MAX_NESTING:
                raise error(span(line, at - line_start + 1), f"brackets nest more than {MAX_NESTING} deep",
                            hint="give parts of it a name with `let`, or move them to functions of their own")
        elif ch in ")]}" and wrong is None:
            here = span(line, at - line_start + 1)
            if not stack:
                wrong = Suspect(f"`{ch}` closes nothing", here, at, "remove it, or add the opening bracket", None)
                continue
            opener, o_at, o_line, o_col, o_indent = stack[-1]
            if _CLOSER[opener] != ch:
                wrong = Suspect(f"expected `{_CLOSER[opener]}`, got `{ch}`", here, o_at, None,
                                (span(o_line, o_col), f"`{opener}` is still open"))
                continue
            starts_line = text[line_start:at].isspace() or line_start == at
            if ch == "}" and starts_line and indent < o_indent and unclosed is None:
                unclosed = stack[-1]                         # the closer belongs to a brace further out
            stack.pop()
    if wrong is None and stack:
        opener, at, row, col, _ = unclosed or stack[-1]
        wrong = Suspect(f"this `{opener}` is never closed", span(row, col), at,
                        f"add the missing `{_CLOSER[opener]}`", None)
    return wrong
