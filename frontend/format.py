"""The formatter behind `engram fmt`: same program, one style.

It works on the tokens of a program that parses, keeps the user's line breaks and comments, and decides what stands
between tokens: indentation (two spaces a level), spaces, blank lines (at most one), columns.  What the user aligned on
neighbouring lines (`=`, comments) stays aligned.  Braces that span several lines are opened up; a line wider than
`WIDTH` is broken at its `;` and its outermost braces, and otherwise left alone.  The result is parsed again and compared:
a formatter must never change a program.
"""
from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from . import ast as A
from . import lalr
from .build_ast import CALLBACKS
from .lalr import Tok
from .parse import normalise, parse

WIDTH = 100
_OPENERS = {"LPAR": "RPAR", "LSQB": "RSQB", "LBRACE": "RBRACE"}
_CLOSERS = set(_OPENERS.values())
_OPERAND_END = {"NAME", "INT", "FLOAT", "STRING", "TRUE", "FALSE", "NONE", "RPAR", "RSQB", "RBRACE"}
_BINARY = {"+", "-", "*", "/", "//", "%", "@", "**", "|", "^", "&", "<<", ">>", "==", "!=", "<", "<=", ">", ">="}
_SIGNS = {"EQUAL", "AUGMENTED", "COMPARE", "SHIFT", "SUM", "PRODUCT", "COLON", "COMMA", "VBAR"}
_HEADER_WORDS = {"sees", "given", "with", "->"}              # lines that start so still belong to what the brace opens
_IN_GAP = re.compile(r"#[^\n]*|\n|;")


def format_source(text: str, file: str = "<string>") -> str:
    """The program in standard style.  Raises CompileError where it does not parse."""
    text = normalise(text)
    before = parse(text, file)
    after = _Formatter(text, file, before).run()
    if parse(after, file) != before or sorted(comments(after)) != sorted(comments(text)):
        raise AssertionError(f"formatting would change the meaning of {file}")
    return after


def comments(text: str) -> list[str]:
    """All comments of a program, without trailing blanks."""
    return [m[0].rstrip() for m in re.finditer(r'"(?:[^"\\\n]|\\.)*+"|#[^\n]*', text) if m[0][0] == "#"]


@dataclass(slots=True)
class Gap:
    """What stands between two tokens: a separator or not, comments, line breaks."""

    separates: bool = False                                  # a statement ends here
    newline: bool = False                                    # the user broke the line here
    semicolon: bool = False
    trailing: str | None = None                              # a comment behind the token before
    trailing_col: int = 0
    own: list[tuple[str, bool]] = field(default_factory=list)        # comments on lines of their own, blank line before?
    blank: bool = False                                      # a blank line before the next token
    original: int = 0                                        # blanks the user put here, where there is no line break


@dataclass(slots=True)
class Line:
    """One line of the result: tokens first .. last - 1, or a comment."""

    indent: int
    first: int = 0
    last: int = 0
    comment: str | None = None                               # the whole line, or behind the tokens
    comment_col: int = 0                                     # where the user had it
    blank: bool = False                                      # a blank line before


class _Formatter:
    def __init__(self, text: str, file: str, module: A.Module):
        recorded: list[Tok] = []
        lalr.run(text, file, CALLBACKS, recorded)
        self.text = text
        self.starts = [0] + [m.end() for m in re.finditer("\n", text)]
        self.toks = [t for t in recorded if t.type != "_SEP"]
        separated, at = set(), 0
        for t in recorded:
            if t.type == "_SEP":
                separated.add(at)
            else:
                at += 1
        self.gaps = [self._gap(k, k in separated) for k in range(len(self.toks) + 1)]
        self.pair = self._pairs()
        self.fn_types, self.dims = self._types(module)
        self.slices = self._slice_colons()
        self._open_up()

    # ---- reading -------------------------------------------------------------------------------------------------

    def _offset(self, line: int, col: int) -> int:
        return self.starts[line - 1] + col - 1

    def _gap(self, k: int, separates: bool) -> Gap:
        toks = self.toks
        begin = self._offset(*toks[k - 1].span[3:5]) if k else 0
        end = self._offset(*toks[k].span[1:3]) if k < len(toks) else len(self.text)
        gap = Gap(separates, original=end - begin)
        newlines = 0 if k else 1
        for m in _IN_GAP.finditer(self.text, begin, end):
            if m[0] == "\n":
                newlines += 1
            elif m[0] == ";":
                gap.semicolon = True
            elif newlines == 0:
                gap.trailing = m[0].rstrip()
                gap.trailing_col = m.start() - self.text.rfind("\n", 0, m.start()) - 1
            else:
                gap.own.append((m[0].rstrip(), newlines > 1))
                newlines = 0
                gap.newline = True
        # a comment runs to the end of its line, so the count starts anew behind it
        gap.newline = gap.newline or newlines > 0 and k > 0 or gap.trailing is not None
        gap.blank = newlines > 1
        return gap

    def _pairs(self) -> dict[int, int]:
        stack, pair = [], {}
        for k, t in enumerate(self.toks):
            if t.type in _OPENERS:
                stack.append(k)
            elif t.type in _CLOSERS:
                pair[stack[-1]] = k
                pair[k] = stack.pop()
        return pair

    def _types(self, module: A.Module) -> tuple[set, set[int]]:
        """Where function types start, and the tokens that stand in the dimensions of a type."""
        fn_types, dims = set(), set()
        at = {t.span[1:3]: k for k, t in enumerate(self.toks)}
        for node in A.walk(module):
            if isinstance(node, A.FnType):
                fn_types.add(node.span[1:3])
            elif isinstance(node, A.TensorType) and node.dims:
                first = at[node.dims[0].span[1:3]]
                while self.toks[first].type != "LSQB":
                    first -= 1
                dims.update(range(first, self.pair[first]))
        return fn_types, dims

    def _slice_colons(self) -> dict[int, bool]:
        """The colons of slices, and whether they are spaced: `x[1:n]` but `x[pos : pos + n]`."""
        result = {}
        for opener, t in enumerate(self.toks):
            if t.type != "LSQB" or opener in self.dims:
                continue
            colons, parts, spaced, k = [], [0], False, opener + 1
            closer = self.pair[opener]
            while k <= closer:
                tok = self.toks[k]
                if tok.type == "COMMA" or k == closer:
                    wide = spaced and all(parts)
                    result.update((c, wide) for c in colons)
                    colons, parts, spaced = [], [0], False
                elif tok.type == "COLON":
                    colons.append(k)
                    parts.append(0)
                else:
                    parts[-1] += 1
                    spaced = spaced or self._is_binary(k)
                    if k in self.pair:
                        k = self.pair[k]
                k += 1
        return result

    def _open_up(self) -> None:
        """Braces over several lines: a line break after `{` and before `}`."""
        for k, t in enumerate(self.toks):
            if t.type == "LBRACE":
                end = self.pair[k]
                inside = self.gaps[end]
                if end == k + 1 and not inside.own and inside.trailing is None:
                    inside.newline = False                   # nothing in them
                elif any(self.gaps[j].newline for j in range(k + 1, end + 1)):
                    self.gaps[k + 1].newline = self.gaps[end].newline = True

    # ---- lines ---------------------------------------------------------------------------------------------------

    def run(self) -> str:
        while True:
            lines = self._lines()
            if not any([self._shorten(line) for line in lines]):
                break
        out = []
        for line, text in zip(lines, self._render(lines)):
            if line.blank and out:
                out.append("")
            out.append(text)
        return "\n".join(out) + "\n" if out else ""

    def _lines(self) -> list[Line]:
        toks, gaps = self.toks, self.gaps
        lines: list[Line] = []
        stack: list[tuple[str, int]] = []                    # open brackets, each with the indentation of its line
        current: Line | None = None
        for k in range(len(toks) + 1):
            gap, end = gaps[k], k == len(toks)
            if current is not None and gap.trailing is not None:
                current.comment, current.comment_col = gap.trailing, gap.trailing_col
            if not (k == 0 or gap.newline or end):
                self._track(k, stack, current)
                continue
            after_opener = k > 0 and toks[k - 1].type == "LBRACE"
            before_closer = not end and toks[k].type in _CLOSERS
            indent = 0 if end else self._indent(k, stack)
            inner = stack[-1][1] + 2 if before_closer else indent
            for n, (comment, blank) in enumerate(gap.own):
                lines.append(Line(inner, comment=comment, blank=blank and not (after_opener and n == 0)))
            if end:
                break
            blank = gap.blank and not before_closer and not (after_opener and not gap.own)
            current = Line(indent, k, blank=blank)
            lines.append(current)
            self._track(k, stack, current)
        for line in lines:
            if line.last == 0:
                line.last = line.first
        return lines

    def _track(self, k: int, stack: list[tuple[str, int]], line: Line) -> None:
        """Takes token k into its line."""
        t = self.toks[k]
        line.last = k + 1
        if t.type in _CLOSERS:
            stack.pop()
        elif t.type in _OPENERS:
            indent = line.indent
            if t.type == "LBRACE" and self.toks[line.first].text in _HEADER_WORDS and not any(
                    self.toks[j].type in _OPENERS and self.pair[j] > k for j in range(line.first, k)):
                indent = stack[-1][1] + 2 if stack else 0
            stack.append((t.type, indent))

    def _indent(self, k: int, stack: list[tuple[str, int]]) -> int:
        """The indentation of a line that starts with token k."""
        t = self.toks[k]
        if t.type in _CLOSERS:
            depth = 1
            while (k + depth < len(self.toks) and self.toks[k + depth].type in _CLOSERS and depth < len(stack)
                   and not self.gaps[k + depth].newline):
                depth += 1
            return stack[-depth][1]
        base = stack[-1][1] + 2 if stack else 0
        if stack and stack[-1][0] != "LBRACE":
            return base
        starts = k == 0 or self.gaps[k].separates or self.toks[k - 1].type == "LBRACE"
        return base if starts or t.text in ("else", "{") else base + 2

    def _shorten(self, line: Line) -> bool:
        """Adds line breaks to a line that is too wide, where statements allow it."""
        first, last = line.first, line.last
        if first == last or self._width(line) <= WIDTH:
            return False
        groups, semicolons, k = [], [], first
        while k < last:
            if k > first and self.gaps[k].semicolon and not self.gaps[k].newline:
                semicolons.append(k)
            if self.toks[k].type in _OPENERS and self.pair[k] < last:
                # braces inside parentheses stay: opening up a `fn (x) { x * 2 }` among arguments helps nobody
                if self.toks[k].type == "LBRACE" and self.pair[k] > k + 1:
                    groups.append((k, self.pair[k]))
                k = self.pair[k]
            k += 1
        if semicolons:
            for k in semicolons:
                self.gaps[k].newline = True
            return True
        for a, b in groups:
            self.gaps[a + 1].newline = self.gaps[b].newline = True
            for k in range(a + 1, b):
                if self.gaps[k].semicolon and self._innermost_brace(k) == a:
                    self.gaps[k].newline = True
        if groups and line.comment is not None and self.gaps[last].trailing is not None:
            opened, closed = self.gaps[groups[0][0] + 1], self.gaps[last]
            if opened.trailing is None:                      # what was said of the whole goes to its first line
                opened.trailing, opened.trailing_col = closed.trailing, 0
                closed.trailing = None
        return bool(groups)

    def _innermost_brace(self, k: int) -> int:
        k -= 1
        while k >= 0:
            if self.toks[k].type in _CLOSERS:
                k = self.pair[k]
            elif self.toks[k].type in _OPENERS:
                return k
            k -= 1
        return -1

    def _width(self, line: Line) -> int:
        col = line.indent
        for k in range(line.first, line.last):
            col += len(self.toks[k].text) + (self._space(k) if k > line.first else 0)
            if k > line.first and self.gaps[k].semicolon:
                col += 1
        return col

    # ---- columns -------------------------------------------------------------------------------------------------

    def _render(self, lines: list[Line]) -> Iterator[str]:
        """The lines as text.  Tokens that stood in one column on neighbouring lines, with more than one blank before some
        of them, stay in one column; so do comments."""
        group_of: dict[tuple[int, int], int] = {}            # (line, token or -1 for the comment) -> group
        target: list[int] = []
        for n in range(1, len(lines)):
            a, b = lines[n - 1], lines[n]
            if b.blank or a.first == a.last or b.first == b.last:
                continue
            above = {self._column(k): k for k in range(a.first + 1, a.last) if self._space(k)}
            for k in range(b.first + 1, b.last):
                other = above.get(self._column(k))
                if other is not None and self._space(k) and self._alike(other, k) and max(self.gaps[k].original, self.gaps[other].original) > 1 \
                        and self._neighbours(a, b):
                    self._join(group_of, target, (n - 1, other), (n, k))
            if a.comment and b.comment and a.comment_col == b.comment_col > 0:
                self._join(group_of, target, (n - 1, -1), (n, -1))
        while True:
            changed, texts = False, []
            for n, line in enumerate(lines):
                text = " " * line.indent
                for k in range(line.first, line.last):
                    if k > line.first:
                        text += ";" if self.gaps[k].semicolon else ""
                        text += " " * self._space(k)
                    text, grew = self._place(text, group_of.get((n, k)), target)
                    changed |= grew
                    text += self.toks[k].text
                if line.comment is not None:
                    if line.first < line.last:
                        gap = line.comment_col - self._end_column(line)
                        text += "  "
                        if gap > 2 and line.comment_col:     # a column the user chose
                            text = text.ljust(line.comment_col)
                        text, grew = self._place(text, group_of.get((n, -1)), target)
                        changed |= grew
                    text += line.comment
                texts.append(text)
            if not changed:
                return iter(texts)

    def _column(self, k: int) -> int:
        return self.toks[k].span.col

    def _alike(self, a: int, b: int) -> bool:
        """Whether two tokens can have been aligned on purpose: `=` under `=`, an operand under an operand."""
        a_type, b_type = self.toks[a].type, self.toks[b].type
        return a_type == b_type or a_type not in _SIGNS and b_type not in _SIGNS

    def _end_column(self, line: Line) -> int:
        return self.toks[line.last - 1].span.end_col - 1

    def _neighbours(self, a: Line, b: Line) -> bool:
        """Whether two lines of the result were neighbours before, too."""
        return self.toks[b.first].span.line == self.toks[a.first].span.line + 1

    @staticmethod
    def _join(group_of: dict, target: list[int], a: tuple, b: tuple) -> None:
        if a not in group_of:
            group_of[a] = len(target)
            target.append(0)
        group_of[b] = group_of[a]

    @staticmethod
    def _place(text: str, group: int | None, target: list[int]) -> tuple[str, bool]:
        """Pads a line up to the column of a group, or moves the group's column to the right."""
        if group is None:
            return text, False
        if len(text) > target[group]:
            target[group] = len(text)
            return text, True
        return text.ljust(target[group]), False

    # ---- spaces --------------------------------------------------------------------------------------------------

    def _is_binary(self, k: int) -> bool:
        return self.toks[k].text in _BINARY and k > 0 and self.toks[k - 1].type in _OPERAND_END

    def _tight(self, k: int) -> bool:
        """Whether binary operator k stands without spaces: in dimensions and arguments, `3*d` stays as written."""
        if not self._is_binary(k) or self.gaps[k].original or self.gaps[k + 1].original:
            return False
        if k in self.dims:
            return True
        simple = {"NAME", "INT", "FLOAT"}
        return (self.toks[k].text in ("*", "/", "//", "**") and self.toks[k - 1].type in simple
                and self.toks[k + 1].type in simple and self._bracketed(k))

    def _bracketed(self, k: int) -> bool:
        opener = self._innermost_brace(k)
        return opener >= 0 and self.toks[opener].type != "LBRACE"

    def _space(self, k: int) -> int:
        """The blanks between tokens k - 1 and k of one line."""
        a, b = self.toks[k - 1], self.toks[k]
        if self.gaps[k].semicolon:
            return 1
        if a.type in ("LPAR", "LSQB") or b.type in ("RPAR", "RSQB", "COMMA"):
            return 0
        if a.text in (".", "..") or b.text in (".", ".."):
            if b.text == ".." and a.type not in _OPERAND_END or a.text == ".." and b.type == "LBRACE":
                return 1                                     # `, ..` and `in ..`; `0..n` otherwise
            return 0 if b.text != "." or a.type in _OPERAND_END else 1
        if k in self.slices or k - 1 in self.slices:
            return int(self.slices.get(k, self.slices.get(k - 1)) and a.type != "COMMA" or a.type == "COMMA")
        if b.type == "COLON":
            return 0
        if a.text in ("-", "+", "~") and not self._is_binary(k - 1):
            return 0
        if self._is_binary(k):
            return 0 if self._tight(k) else 1
        if self._is_binary(k - 1):
            return 0 if self._tight(k - 1) else 1
        if b.type == "LPAR":
            if a.type == "FN":
                return 0 if a.span[1:3] in self.fn_types else 1
            return 0 if a.type in _OPERAND_END else 1
        if b.type == "LSQB":
            return 0 if a.type in _OPERAND_END else 1
        return 1
