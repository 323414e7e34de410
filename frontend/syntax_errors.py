"""Turns a failed parse into a message in the user's words: what was expected, what came, and the likely slip."""
from __future__ import annotations

import unicodedata

from ..compiler.diagnostics import CompileError, Diagnostic, Span
from .brackets import Suspect
from .lalr import BadCharacter, IndentedMinus, Tok, Unexpected, tables

_OPERATORS = {"SUM", "PRODUCT", "COMPARE", "SHIFT", "AUGMENTED", "AND", "OR", "NOT"}
_OPERATOR_TEXT = {"|>", "..", "**", "|", "^", "&", ".", "[", "("}
_ITEMS = ("import", "let", "fn", "layer", "rule", "train", "run")
_ITEM_WORDS = {"fn", "layer", "train", "run", "rule", "nonlocal", "import"}
# words of other languages -> what to write here
_FOREIGN = {
    "def": "functions are written `fn name(x: f32[n]) -> f32[n] { ... }`",
    "func": "functions are written `fn name(x: f32[n]) -> f32[n] { ... }`",
    "function": "functions are written `fn name(x: f32[n]) -> f32[n] { ... }`",
    "return": "there is no `return`: a block's last expression is its value",
    "elif": "write `else if`",
    "elsif": "write `else if`",
    "lambda": "unnamed functions are written `fn (x) { x + 1 }`",
    "class": "a layer is written `layer Name(arguments) { ... }`",
    "module": "a layer is written `layer Name(arguments) { ... }`",
    "from": 'imports are written `import "file.nn"` or `import "file.nn" as name`',
    "var": "names are bound with `let`",
    "val": "names are bound with `let`",
    "const": "names are bound with `let`",
    "mut": "`let` can bind the same name again; only state is written with `=`",
    "pass": "an empty block is written `{ }`",
    "break": "loops end by their condition: `while condition with x = x0 { ... }`",
    "continue": "there is no `continue`: use `if`",
    "then": "write `if condition { a } else { b }`",
    "do": "blocks are written in braces",
    "end": "blocks are written in braces",
    "begin": "blocks are written in braces",
}
_DTYPES = {"f64", "f32", "bf16", "f16", "i64", "i32", "i8", "u8", "bool", "float", "int", "num", "key"}
_LOOP = "loops that carry values are written `scan i in 0..n with s = s0 { ... }`; a list is `[f(i) for i in 0..n]`"
_CHARACTERS = {
    "'": "strings are written in double quotes",
    "`": "strings are written in double quotes",
    "!": "negation is written `not x`, inequality `a != b`",
    "?": "a choice is written `if condition { a } else { b }`",
    "\\": "no backslash is needed: a line goes on after an operator or comma, and inside brackets",
    "$": "names are letters, digits and `_`",
    "\0": "is this a text file?",
}


def explain(problem: Exception, text: str, file: str, suspect: Suspect | None) -> CompileError:
    """The diagnostic for what `lalr.run` raised; a bracket problem explains what happens after it."""
    if isinstance(problem, IndentedMinus):
        return _indented_operator(problem)
    offset = problem.offset
    if isinstance(problem, BadCharacter):
        found = _bad_character(problem, text)
    else:
        found = _unexpected(problem, text)
    # The parser's own message is better where it stopped for a reason of its own, before the brackets go wrong.
    if suspect is not None and _blames_bracket(problem, text, offset, suspect):
        found = Diagnostic("error", suspect.span, suspect.message, hint=suspect.hint)
        if suspect.other:
            found.notes.append(suspect.other)
    return CompileError(found)


def _blames_bracket(problem: Exception, text: str, offset: int, suspect: Suspect) -> bool:
    if offset < suspect.offset or isinstance(problem, BadCharacter):
        return False
    token = problem.token
    if token.type == "$END" or token.type in ("RPAR", "RSQB", "RBRACE"):
        return True
    # a declaration in the middle of something, at the start of a line: what stands before it was not closed
    line_start = text.rfind("\n", 0, offset) + 1
    if not text[line_start:offset].strip():
        return token.text in _ITEM_WORDS
    previous = problem.tokens[-1]
    return previous.text in _ITEM_WORDS and not text[line_start:line_start + previous.span.col - 1].strip()


def _indented_operator(problem: IndentedMinus) -> CompileError:
    op = problem.token.text
    return CompileError(Diagnostic(
        "error", problem.token.span, f"this line starts with `{op}` and is indented as if it continued the statement above",
        hint=f"a line that starts with `{op}` is a statement of its own: put the `{op}` at the end of the line before, "
             "or the whole expression in parentheses",
        notes=[(problem.previous.span, "the statement above starts here")]))


def _bad_character(problem: BadCharacter, text: str) -> Diagnostic:
    ch, span = text[problem.offset], problem.span
    if ch == '"':
        end = text.find("\n", problem.offset)
        length = (end if end >= 0 else len(text)) - problem.offset
        return Diagnostic("error", span._replace(end_col=span.col + length), "this string is not closed on its line",
                          hint=r'add the closing `"`; a line break inside a string is written `\n`')
    if ch == ";":
        return Diagnostic("error", span, "a statement ends at this `;`, but what follows can only continue one",
                          hint="remove the `;`")
    code = f"U+{ord(ch):04X}"
    name = unicodedata.name(ch, "")
    if ch == "\0":
        shown = "NUL byte"
    elif ch.isprintable() and ch < "\x7f":
        shown = f"`{ch}`"
    else:
        shown = f"`{ch}` ({code} {name})" if ch.isprintable() else f"character {code} {name}".rstrip()
    hint = _CHARACTERS.get(ch)
    if ch == "!" and text[problem.offset + 1:problem.offset + 2] == "=":
        hint = None
    if hint is None and not ch.isascii():
        plain = unicodedata.normalize("NFKC", ch)
        if "QUOTATION MARK" in name:
            hint = 'strings are written in plain double quotes: `"`'
        elif "DASH" in name or "MINUS" in name:
            hint = "minus is written `-`"
        elif "SPACE" in name:
            hint = "use plain spaces"
        elif ch in "×·⋅∗":
            hint = "products are written `*`, matrix products `@`"
        elif plain != ch and plain.isascii():
            hint = f"did you mean `{plain}`?"
    return Diagnostic("error", span, f"unexpected {shown}", hint=hint)


def _unexpected(problem: Unexpected, text: str) -> Diagnostic:
    token, accepted, tokens = problem.token, problem.accepted, problem.tokens
    previous = tokens[-1] if tokens else None
    slip = _slip(problem, text, previous)
    if slip is not None:
        return slip
    expected = _expected(accepted, previous)
    got = _got(token)
    span = token.span
    if token.type in ("$END", "_SEP") and previous is not None:
        # the end of a line shows nothing: the caret goes right behind what stands before it
        p = previous.span
        span = Span(p.file, p.end_line, p.end_col, p.end_line, p.end_col + 1)
    message = f"expected {expected}, got {got}" if expected else f"unexpected {got}"
    opener = _innermost(tokens)
    notes = []
    if opener is not None and opener.type != "LBRACE" and opener.span.line < token.span.line:
        notes.append((opener.span, f"`{opener.text}` is still open"))
    return Diagnostic("error", span, message, notes, hint=_hint(problem, text, previous))


def _innermost(tokens: list[Tok]) -> Tok | None:
    """The bracket that is open at the end of the tokens."""
    closed = 0
    for t in reversed(tokens):
        if t.type in ("RPAR", "RSQB", "RBRACE"):
            closed += 1
        elif t.type in ("LPAR", "LSQB", "LBRACE"):
            if not closed:
                return t
            closed -= 1
    return None


def _slip(problem: Unexpected, text: str, previous: Tok | None) -> Diagnostic | None:
    """Slips whose message should not speak of expectations at all."""
    token, at = problem.token, problem.offset
    pair = (previous.text if previous else "") + token.text
    adjacent = previous is not None and previous.span[3:] == token.span[1:3]
    if adjacent and pair in ("&&", "||"):
        word = "and" if pair == "&&" else "or"
        return Diagnostic("error", previous.span.to(token.span), f"`{pair}` is not an operator",
                          hint=f"write `{word}`; bitwise operations are `&` and `|`")
    if token.text == "=" and text[at + 1:at + 2] == ">":
        return Diagnostic("error", token.span._replace(end_col=token.span.col + 2), "`=>` is not an operator",
                          hint="unnamed functions are written `fn (x) { x + 1 }`")
    if adjacent and pair == ":=":
        return Diagnostic("error", previous.span.to(token.span), "`:=` is not an operator", hint="names are bound by `let y = x`")
    if adjacent and pair == "===":
        return Diagnostic("error", previous.span.to(token.span), f"`{pair}` is not an operator",
                          hint="write `==`")
    if len(problem.tokens) > 2 and previous.type == "SUM":
        before = problem.tokens[-2]
        if before.text == previous.text and before.span[3:] == previous.span[1:3]:
            return Diagnostic("error", before.span.to(previous.span), f"`{previous.text * 2}` is not an operator",
                              hint=f"state is updated by `x {previous.text}= 1`")
    if token.type == "PRODUCT" and ("LET" in problem.accepted or previous is None or text[at:at + 2] == "/*"
                                    or (adjacent and pair == "/*")):
        span = previous.span.to(token.span) if adjacent and pair == "/*" else token.span
        return Diagnostic("error", span, "unexpected `/*`" if pair == "/*" else f"unexpected `{token.text}`",
                          hint="comments start with `#`")
    for word in (previous, token):
        if word is not None and word.type == "NAME" and word.text in _FOREIGN and (
                word is token or _begins_statement(problem.tokens)):
            return Diagnostic("error", word.span, f"`{word.text}` is not a word of the language",
                              hint=_FOREIGN[word.text])
    for word in (previous, token):
        if word is not None and word.text == "for" and (word is token or word.type == "NAME"):
            return Diagnostic("error", word.span, "`for` only stands in a list, `[f(i) for i in 0..n]`", hint=_LOOP)
    return None


def _begins_statement(tokens: list[Tok]) -> bool:
    return len(tokens) < 2 or tokens[-2].type in ("_SEP", "LBRACE", "RBRACE")


def _got(token: Tok) -> str:
    if token.type == "$END":
        return "the end of the file"
    if token.type == "_SEP":
        return "`;`" if token.text[0] == ";" else "the end of the line"
    if token.type == "STRING":
        return "a string"
    text = token.text if len(token.text) <= 40 else token.text[:37] + "..."
    return f"the word `{text}`" if token.type != "NAME" and text.isidentifier() else f"`{text}`"


def _expected(accepted: set[str], previous: Tok | None) -> str:
    """What could come, in words; empty where that would be a long list."""
    if "IMPORT" in accepted and "$END" in accepted:
        return _any_of([f"`{w}`" for w in _ITEMS])
    if "INT" in accepted:
        if "LET" in accepted:
            return "a statement or `}`" if "RBRACE" in accepted else "a statement"
        closers = [f"`{tables().punctuation[t]}`" for t in ("RPAR", "RSQB", "RBRACE") if t in accepted]
        return _any_of(["an expression", *closers])
    texts = {t: tables().punctuation.get(t) or t.lower() for t in accepted}
    if previous is not None and previous.text in (":", "->", "fn") and accepted <= {"NAME", "FN", "LPAR"} and "FN" in accepted:
        return "a type"
    words = []
    for terminal in sorted(accepted, key=lambda t: (t != "COMMA", t)):
        shown = texts[terminal]
        if terminal in _OPERATORS or shown in _OPERATOR_TEXT and len(accepted) > 6:
            continue
        if terminal == "_SEP":
            words.append("a new line")
        elif terminal == "$END":
            words.append("the end of the file")
        elif terminal == "NAME":
            words.append("a name")
        elif terminal in ("STRING", "INT", "FLOAT"):
            words.append({"STRING": "a string", "INT": "a number", "FLOAT": "a number"}[terminal])
        else:
            words.append(f"`{shown}`")
    if "a new line" in words:                                # after a whole statement: that is what one would say
        words = ["a new line" if "`}`" not in words else "a new line or `}`"]
    if "COMMA" in accepted and {"RPAR", "RSQB"} & accepted:  # inside brackets: what closes them
        words = [w for w in words if w in ("`,`", "`)`", "`]`", "`:`", "a name")]
    if "LBRACE" in accepted and "`{`" in words and len(words) > 3:
        words = ["`{`"]
    return _any_of(words) if len(words) <= 5 else ""


def _any_of(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1] if words else ""


def _hint(problem: Unexpected, text: str, previous: Tok | None) -> str | None:
    token, accepted, tokens = problem.token, problem.accepted, problem.tokens
    if token.text == "=":
        if accepted & {"COMPARE"}:
            if _line_word(tokens, token) in ("if", "while", "until", "assert", "else"):
                return "equality is written `==`"
            return "equality is written `==`; a new name is bound with `let name = value`"
        return None
    if token.text == ":":
        if _line_word(tokens, token) in ("if", "else", "while", "scan", "fn", "layer", "for", "train", "run", "rule"):
            return "blocks are written in braces, `{ ... }`, without `:`"
        return "a slice stands in `[ ]`; a type after the name in `let name: type = value`" if "COMPARE" in accepted else None
    if "COLON" in accepted and len(accepted) <= 2 and previous is not None:
        return f"write `{previous.text}: type`, for example `{previous.text}: f32[n]`"
    if token.type == "NAME" and previous is not None and previous.type in ("INT", "FLOAT"):
        if previous.span[3:] == token.span[1:3]:
            return "a name cannot start with a digit; a product needs its `*`"
    if token.type == "_SEP" and previous is not None and previous.type == "EQUAL":
        return None
    if token.type in ("NAME", "INT", "FLOAT", "STRING") and "_SEP" in accepted and previous is not None \
            and previous.span.line == token.span.line:
        return "two statements on one line are separated by `;`"
    if token.text == "let" and "IMPORT" not in accepted and "INT" in accepted:
        return "`let` is a statement: put it on a line of its own, inside `{ }`"
    if "else" in (token.text, previous.text if previous else ""):
        return "`else` follows the `}` of an `if`"
    if token.type == "NAME" and previous is not None and previous.text in _DTYPES and "COLON" in accepted:
        return f"the name comes first: `{token.text}: {previous.text}`"
    if "IMPORT" in accepted and token.type == "NAME":
        return "at the top of a file stand declarations; statements go into `fn`, `train` or `run` blocks"
    if token.text in ("+=", "-=", "*=", "/=") and "_SEP" not in accepted:
        return "an update is a statement: put it on a line of its own"
    return None


def _line_word(tokens: list[Tok], token: Tok) -> str:
    """The first word of the statement on the token's line."""
    first = ""
    for t in reversed(tokens):
        if t.type in ("_SEP", "LBRACE", "RBRACE") or t.span.line != token.span.line:
            break
        first = t.text
    return first
