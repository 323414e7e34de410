"""From text to tokens to reductions: LALR tables made by lark, and the loop that runs them.

lark reads `grammar.lark` and computes the tables; that takes about half a second, so those of the grammar as it is come with
Engram (`grammar.json`, plain numbers and strings; `make tables` writes it, a test says when it is old) and lark is not even
imported. For a grammar that was changed since they are computed, once, and kept in the user's cache.
The loop is ours for three reasons: every reduction gets the span of its text, punctuation included; words such as `state`
become keywords only where the tables accept them; and the nesting of the result is bounded while it is built.
It knows nothing of what a rule means (build_ast.py) and makes no error messages (syntax_errors.py).
"""
from __future__ import annotations

import functools
import hashlib
import io
import json
import pickle
import re
import sys
from pathlib import Path
from typing import NamedTuple

from ..compiler.cache_dir import read_cached, write_cached
from ..compiler.diagnostics import Span, error

GRAMMAR = Path(__file__).with_name("grammar.lark")
TABLES = GRAMMAR.with_suffix(".json")
MAX_DEPTH = 1000                                             # levels of the finished tree, long operator chains included
_FORMAT = 3                                                  # of the stored tables: raise when their layout changes


class Tok(NamedTuple):
    """A token: its terminal in the grammar, its text, its place."""

    type: str
    text: str
    span: Span


class Seq(list):
    """Children of a repetition in the grammar, on their way into the rule that holds it."""

    @property
    def span(self) -> Span:
        return self[0].span.to(self[-1].span)


class Unexpected(Exception):
    """The tables have no action for a token.  Holds what syntax_errors.py needs for its message."""

    def __init__(self, tokens: list[Tok], token: Tok, accepted: set[str], offset: int):
        self.tokens, self.token, self.accepted, self.offset = tokens, token, accepted, offset
        super().__init__(token)


class BadCharacter(Exception):
    """No token starts here."""

    def __init__(self, offset: int, span: Span):
        self.offset, self.span = offset, span
        super().__init__(span)


class IndentedMinus(Exception):
    """A line that starts with `-` or `+` deeper than the statement before it: almost surely meant to continue it."""

    def __init__(self, token: Tok, previous: Tok):
        self.token, self.previous = token, previous
        super().__init__(token)


# ---- tables ------------------------------------------------------------------------------------------------------

UNIT, HELPER, NODE = 0, 1, 2                                 # what a reduction does: pass on, collect, build


class Tables:
    """The LALR automaton.  `states[s][symbol]` is a state to go to (>= 0) or ~rule to reduce by."""

    def __init__(self, data: dict):
        self.states: list[dict[str, int]] = data["states"]
        self.rules: list[tuple[str, int, int, str]] = data["rules"]        # left side, length, kind, callback
        self.start, self.end = data["start"], data["end"]
        self.keywords: dict[str, str] = data["keywords"]
        self.punctuation: dict[str, str] = data["punctuation"]              # terminal -> its text
        self.match = re.compile(data["pattern"]).match


@functools.cache
def tables() -> Tables:
    """The tables of this grammar."""
    grammar = GRAMMAR.read_text(encoding="utf-8")
    key = table_key(grammar)
    try:
        data = json.loads(TABLES.read_bytes())
    except (OSError, ValueError):
        data = {}
    if data.get("key") == key:
        return Tables(data)
    raw = read_cached("frontend", "lalr-" + key)
    if raw is not None:
        return Tables(json.loads(raw))
    text = tables_text(grammar)
    write_cached("frontend", "lalr-" + key, text.encode())
    return Tables(json.loads(text))


def table_key(grammar: str) -> str:
    """What the tables of a grammar are known by."""
    return hashlib.sha256(f"{_FORMAT}\n{grammar}".encode()).hexdigest()[:24]


def tables_text(grammar: str) -> str:
    """The tables of a grammar as JSON, a state to a line."""
    data = {"key": table_key(grammar)} | _build(grammar)
    states = ",\n".join(json.dumps(s, separators=(",", ":"), sort_keys=True) for s in data.pop("states"))
    return json.dumps(data)[:-1] + f', "states": [\n{states}\n]}}\n'


def write_tables() -> None:
    """For `make tables`."""
    TABLES.write_text(tables_text(GRAMMAR.read_text(encoding="utf-8")), encoding="utf-8")


def _build(grammar: str) -> dict:
    from lark import Lark

    buffer = io.BytesIO()
    Lark(grammar, parser="lalr", lexer="basic", keep_all_tokens=True, maybe_placeholders=False).save(buffer)
    saved = pickle.loads(buffer.getvalue())                  # our own bytes of a moment ago
    memo, lalr = saved["memo"], saved["data"]["parser"]["parser"]

    rules, number = [], {}
    for ref, item in memo.items():
        if item["__type__"] == "Rule":
            left, size = item["origin"]["name"], len(item["expansion"])
            kind = HELPER if left.startswith("__") else NODE
            if kind == NODE and item["options"]["expand1"] and size == 1 and not item["alias"]:
                kind = UNIT
            number[ref] = len(rules)
            rules.append((left, size, kind, item["alias"] or left))
    states = [{} for _ in lalr["states"]]
    for state, actions in lalr["states"].items():
        for symbol, (action, to) in actions.items():
            states[state][lalr["tokens"][symbol]] = to if action == 0 else ~number[to["@"]]

    keywords, punctuation, patterns = {}, {}, {}
    for item in memo.values():
        if item["__type__"] == "TerminalDef":
            name, value = item["name"], item["pattern"]["value"]
            if item["pattern"]["__type__"] == "PatternRE":
                patterns[name] = value
            elif value.isidentifier():
                keywords[value] = name
            else:
                punctuation[name] = value
    blank = patterns.pop("BLANK")
    comment, newline = patterns.pop("COMMENT"), patterns.pop("_NEWLINE")
    # One pattern for all tokens, by first match: separators, then what is longest.  `->` comes before `-`.
    fixed = sorted(punctuation, key=lambda t: -len(punctuation[t]))
    order = ([(t, patterns.pop(t)) for t in ("_SEP",)] + [("_NEWLINE", newline)]
             + [(t, patterns.pop(t)) for t in ("NAME", "FLOAT", "INT", "STRING", "AUGMENTED")]
             + [(t, re.escape(punctuation[t])) for t in fixed if len(punctuation[t]) > 1]
             + list(patterns.items())
             + [(t, re.escape(punctuation[t])) for t in fixed if len(punctuation[t]) == 1])
    pattern = f"(?:{blank}|{comment})*+(?:" + "|".join(f"(?P<{t.lstrip('_') if t.startswith('__') else t}>{p})"
                                                       for t, p in order) + ")"
    states, start, end = _numbered(states, lalr["start_states"]["start"], lalr["end_states"]["start"])
    # group names may not repeat or start with two underscores in lark's anonymous terminals: ANON_0 stands for __ANON_0
    return {"states": states, "rules": rules, "start": start, "end": end,
            "keywords": keywords, "punctuation": punctuation, "pattern": pattern}


def _numbered(states: list[dict[str, int]], start: int, end: int) -> tuple[list[dict[str, int]], int, int]:
    """The states in the order in which a walk from the start meets them: lark's numbers depend on the hash seed."""
    number = {start: 0}
    for old in (order := [start]):
        for symbol in sorted(states[old]):
            to = states[old][symbol]
            if to >= 0 and to not in number:
                number[to] = len(order)
                order.append(to)
    return [{x: number[to] if to >= 0 else to for x, to in states[old].items()} for old in order], 0, number[end]


# ---- the loop ----------------------------------------------------------------------------------------------------

# Words that name a declaration: before one of these they are an ordinary name (`state = Linear(2, 3)`, `names.x`).
_SOFT = {"PARAM", "STATE", "CACHE", "OWN", "PHASE", "NAMES", "FINAL", "UNTIL"}
_ASSIGNED = re.compile(r"[ \t]*(?:=(?!=)|(?:\*\*|//|[-+*/@%&|^])=)").match
_USED = re.compile(r"[ \t]*(?:=(?!=)|(?:\*\*|//|[-+*/@%&|^])=|\.|\[|\()").match
_OPEN = {"LPAR": ")", "LSQB": "]", "LBRACE": "}"}
_CLOSE = {"RPAR", "RSQB", "RBRACE"}


def run(text: str, file: str, callbacks: dict, tokens: list[Tok] | None = None, line: int = 1):
    """Parses; returns what the callback of the start rule gave.  A callback takes (span, children).
    `tokens`, where given, receives all tokens (the formatter wants them).  `line`: where in the file the text starts."""
    tab = tables()
    states, match, keywords = tab.states, tab.match, tab.keywords
    rules = [(left, size, kind, callbacks.get(name)) for left, size, kind, name in tab.rules]
    stack, values, depths = [tab.start], [], []
    tokens = [] if tokens is None else tokens                # for messages, too
    brackets: list[str] = []                                 # open ( [ {
    starts: list[Tok | None] = [None]                        # per open brace: the first token of the latest statement
    fresh = True                                             # the next token starts a statement
    pos, line_start, size_of_text = 0, 0, len(text)

    while True:
        # -- the next token
        m = match(text, pos)
        if m is None:
            pos = _skip_blank(text, pos)
            here = Span(file, line, pos - line_start + 1, line, pos - line_start + 2)
            if pos < size_of_text:
                raise BadCharacter(pos, here)
            kind, word, span, begin = "$END", "", Span(file, line, here.col, line, here.col), pos
        else:
            kind = m.lastgroup
            begin, pos = m.span(kind)
            word = m.group(kind)
            if kind == "NAME":
                keyword = keywords.get(word)
                if keyword is not None and keyword in states[stack[-1]]:
                    soft = keyword in _SOFT and "NAME" in states[stack[-1]] and (
                        _ASSIGNED if keyword in ("UNTIL", "FINAL") else _USED)(text, pos)
                    if not soft:
                        kind = keyword
            elif kind == "_SEP" or kind == "_NEWLINE":
                newline = word[0] == "\n"
                inside = bool(brackets) and brackets[-1] != "}"
                if newline and (kind == "_NEWLINE" or inside or "_SEP" not in states[stack[-1]]):
                    pos = _skip_newlines(text, begin)
                    line += text.count("\n", begin, pos)
                    line_start = text.rfind("\n", begin, pos) + 1
                    continue
                span = Span(file, line, begin - line_start + 1, line, begin - line_start + 2)
                breaks = word.count("\n")
                if breaks:
                    line += breaks
                    line_start = text.rfind("\n", begin, pos) + 1
            elif kind.startswith("ANON_"):
                kind = "__" + kind
            if kind != "_SEP":
                col = begin - line_start + 1
                span = Span(file, line, col, line, col + pos - begin)
        token = Tok(kind, word, span)

        # -- lines that start with an operator deeper than the statement before
        if kind == "_SEP":
            fresh = True
        elif kind in _OPEN:
            if fresh:
                starts[-1], fresh = token, False
            brackets.append(_OPEN[kind])
            if kind == "LBRACE":
                starts.append(None)
                fresh = True
        else:
            if fresh and kind not in _CLOSE:
                previous = starts[-1]
                if (kind == "SUM" and previous is not None and span.line > previous.span.line
                        and span.col > previous.span.col):
                    raise IndentedMinus(token, previous)
                starts[-1], fresh = token, False
            if kind in _CLOSE and brackets:
                if brackets.pop() == "}" and len(starts) > 1:
                    starts.pop()
                    fresh = False

        # -- actions until the token is shifted
        while True:
            action = states[stack[-1]].get(kind)
            if action is None:
                raise Unexpected(tokens, token, accepted(tab, stack), begin)
            if action >= 0:
                stack.append(action)
                values.append(token)
                depths.append(0)
                tokens.append(token)
                break
            left, size, sort, callback = rules[~action]
            if sort == UNIT:
                stack.pop()
                stack.append(states[stack[-1]][left])
                continue
            if size:
                children = values[-size:]
                depth = max(depths[-size:])
                del stack[-size:], values[-size:], depths[-size:]
            else:
                children, depth = [], 0
            if sort == HELPER:
                if type(children[0]) is Seq:
                    value = children[0]
                    value += children[1:]
                else:
                    value = Seq(children)
            else:
                if children:
                    a, b = children[0].span, children[-1].span
                    place = Span(file, a[1], a[2], b[3], b[4])
                else:
                    place = Span(file, 1, 1, 1, 1)
                for child in children:
                    if type(child) is Seq:
                        children = [x for c in children for x in (c if type(c) is Seq else (c,))]
                        break
                value = callback(place, children)
                depth += 1
                if depth > MAX_DEPTH:
                    raise error(place.start(), f"this expression is nested more than {MAX_DEPTH} levels deep",
                                hint="give parts of it a name with `let`")
            stack.append(states[stack[-1]][left])
            values.append(value)
            depths.append(depth)
            if kind == "$END" and stack[-1] == tab.end:
                _make_room(depth)
                return value


_blanks = re.compile(r"(?:[ \t\f\r]|#[^\n]*+)*+").match
_newlines = re.compile(r"(?:[ \t\f\r\n]|#[^\n]*+)*+").match


def _skip_blank(text: str, pos: int) -> int:
    return _blanks(text, pos).end()


def _skip_newlines(text: str, pos: int) -> int:
    return _newlines(text, pos).end()


def _make_room(depth: int) -> None:
    """Later stages walk trees by recursion, some frames a level: lets them, for the rare program that is this deep."""
    if depth > 60:
        sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000 + 25 * depth))


def accepted(tab: Tables, stack: list[int]) -> set[str]:
    """The terminals that could come next: LALR tables reduce on more than that, so each one is tried."""
    result = set()
    for symbol in tab.states[stack[-1]]:
        if not symbol.isupper():                             # a rule, not a terminal
            continue
        trial = list(stack)
        while True:
            action = tab.states[trial[-1]].get(symbol)
            if action is None:
                break
            if action >= 0:
                result.add(symbol)
                break
            left, size, _, _ = tab.rules[~action]
            if size:
                del trial[-size:]
            trial.append(tab.states[trial[-1]][left])
            if symbol == "$END" and trial[-1] == tab.end:
                result.add(symbol)
                break
    return result
