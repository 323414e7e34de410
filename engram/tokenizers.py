"""Tokenizers that programs make with `bpe(..)` and `llama_tokenizer(..)`: text to token numbers and back.

Byte-level byte-pair encoding as GPT-2 defines it, and the score-driven merging of Llama's tokenizers, from llama2.c's files.
Reads the two formats and no others; training a tokenizer is not its business.
"""
from __future__ import annotations

import functools
import heapq
import json
import re
import struct
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .datasets import DatasetError

MAX_FILE = 1 << 28                         # no vocabulary is larger
WORDS = 1 << 16                            # words whose tokens are remembered


class Piece(str):
    """Text of decoded tokens. `raw` are its bytes: a token may be part of a character, which the next one completes."""

    raw: bytes

    def __new__(cls, raw: bytes):
        self = super().__new__(cls, raw.decode("utf-8", errors="replace"))
        self.raw = raw
        return self


class Tokenizer:
    """What a program sees: `.encode(text)`, `.decode(tokens)`, `.id(token)`, `.size`."""

    methods = ("encode", "decode", "id")
    attributes = ("size",)

    def __init__(self, path: Path, pieces: list[bytes]):
        self.path, self.pieces = path, pieces

    @property
    def size(self) -> int:
        """The number of tokens."""
        return len(self.pieces)

    def encode(self, text: str) -> np.ndarray:
        """Token numbers, i64[n]."""
        raise NotImplementedError

    def decode(self, tokens, after=None) -> Piece:
        """The text of a token or an array of tokens. `after`: the token before them."""
        if isinstance(tokens, str):
            raise ValueError("`decode` takes token numbers; `encode` takes text")
        numbers = np.asarray(tokens)
        if numbers.dtype.kind not in "iu":
            raise ValueError(f"tokens are whole numbers, got {numbers.dtype}")
        numbers = numbers.reshape(-1)
        if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < self.size:
            bad = next(int(t) for t in numbers if not 0 <= t < self.size)
            raise ValueError(f"there is no token {bad}: the vocabulary has {self.size:,}")
        return Piece(self._join([int(t) for t in numbers], None if after is None else int(np.asarray(after).reshape(-1)[-1])))

    def _join(self, tokens: list[int], after: int | None) -> bytes:
        return b"".join(self.pieces[t] for t in tokens)

    def id(self, token: str) -> int:
        """The number of a token given by its text."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"a tokenizer of {self.size:,} tokens"


# ---- GPT-2's byte-level BPE -----------------------------------------------------------------------------------------

def bpe(vocab: Path, merges: Path) -> BytePair:
    """GPT-2's tokenizer from vocab.json (token -> number) and merges.txt (pairs, best first)."""
    table = _json(vocab)
    if not isinstance(table, dict) or not all(type(v) is int for v in table.values()):
        raise DatasetError(f"{vocab} is not a vocabulary: expected an object of token numbers")
    if sorted(table.values()) != list(range(len(table))):
        raise DatasetError(f"{vocab}: the token numbers are not 0 to {len(table) - 1:,}, each once")
    ranks: dict[tuple[str, str], int] = {}
    for k, line in enumerate(_text(merges).split("\n"), 1):
        if line.startswith("#version") or not line.strip():
            continue
        pair = tuple(line.rstrip("\r").split(" "))
        if len(pair) != 2 or "".join(pair) not in table:
            raise DatasetError(f"{merges}, line {k}: expected two tokens whose union is in {vocab.name}, got {line[:40]!r}")
        ranks.setdefault(pair, len(ranks))
    return BytePair(vocab, table, ranks)


@functools.cache
def _byte_symbols() -> list[str]:
    """The printable character that stands for each byte in GPT-2's files: itself where it is one, else one from 256 on."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    out, more = [], 256
    for b in range(256):
        out.append(chr(b if b in plain else more))
        more += b not in plain
    return out


_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"      # Unicode's White_Space
_WORD = "'s|'t|'re|'ve|'m|'ll|'d| ?[{L}]+| ?[{N}]+| ?[^{S}{L}{N}]+|[{S}]+(?![^{S}])|[{S}]+"
_ASCII = re.compile(_WORD.format(L="A-Za-z", N="0-9", S="\t-\r "))


@functools.cache
def _unicode_words() -> re.Pattern:
    """GPT-2's pattern of words: Python's `re` has no classes for letters (L) and numbers (N), so they are spelt out."""
    classes = {"L": [], "N": []}
    kind, start = "", 0
    for c in range(sys.maxunicode + 2):
        now = unicodedata.category(chr(c))[0] if c <= sys.maxunicode else ""
        if now != kind:
            if kind in classes:
                classes[kind].append(f"\\U{start:08x}-\\U{c - 1:08x}")
            kind, start = now, c
    return re.compile(_WORD.format(L="".join(classes["L"]), N="".join(classes["N"]), S=_SPACE))


class BytePair(Tokenizer):
    """Byte-level byte-pair encoding. Text is text: what looks like a special token (`<|endoftext|>`) is encoded like any other."""

    def __init__(self, path: Path, table: dict[str, int], ranks: dict[tuple[str, str], int]):
        back = {s: b for b, s in enumerate(_byte_symbols())}
        tokens = sorted(table, key=table.__getitem__)
        super().__init__(path, [bytes(back[c] for c in t) if all(c in back for c in t) else t.encode() for t in tokens])
        missing = [s for s in back if s not in table]
        if missing:
            raise DatasetError(f"{path} has no token for byte 0x{back[missing[0]]:02x}: it is no byte-level vocabulary")
        self.table, self.ranks = table, ranks
        self._word = functools.lru_cache(WORDS)(self._merge)

    def encode(self, text: str) -> np.ndarray:
        words = (_ASCII if text.isascii() else _unicode_words()).findall(text)
        return np.array([t for w in words for t in self._word(w)], np.int64)

    def _merge(self, word: str) -> tuple[int, ...]:
        """The tokens of one word: the pair that stands highest in the list merges first, wherever it stands."""
        symbols = _byte_symbols()
        parts = [symbols[b] for b in word.encode("utf-8", errors="replace")]
        while len(parts) > 1:
            best = min(zip(parts, parts[1:]), key=lambda p: self.ranks.get(p, len(self.ranks)))
            if best not in self.ranks:
                break
            merged, k = [], 0
            while k < len(parts):
                two = k + 1 < len(parts) and (parts[k], parts[k + 1]) == best
                merged.append(parts[k] + parts[k + 1] if two else parts[k])
                k += 1 + two
            parts = merged
        return tuple(self.table[p] for p in parts)

    def id(self, token: str) -> int:
        plain = "".join(_byte_symbols()[b] for b in token.encode())
        for name in (token, plain):
            if name in self.table:
                return self.table[name]
        raise ValueError(f"the vocabulary has no token {token!r}")


# ---- Llama's, as llama2.c stores it ---------------------------------------------------------------------------------

def llama_tokenizer(path: Path) -> Llama:
    """A SentencePiece-like tokenizer from llama2.c's binary file: scores and pieces."""
    data = _bytes(path)
    scores, pieces, at = [], [], 4
    while at < len(data):
        if at + 8 > len(data):
            raise DatasetError(f"{path} is cut short in token {len(pieces)}")
        score, n = struct.unpack_from("<fi", data, at)
        if n < 0 or at + 8 + n > len(data):
            raise DatasetError(f"{path} is no tokenizer of llama2.c: token {len(pieces)} would have {n:,} bytes")
        scores.append(score)
        pieces.append(data[at + 8:at + 8 + n])
        at += 8 + n
    if len(pieces) < 3 + 256:
        raise DatasetError(f"{path} is no tokenizer of llama2.c: it has {len(pieces)} tokens, expected 3 special ones, 256 bytes and more")
    return Llama(path, pieces, scores)


class Llama(Tokenizer):
    """Characters, joined where the joint piece scores best. Token 1 (BOS) begins a text, 2 (EOS) ends it; bytes are tokens 3 to 258."""

    BOS, EOS, BYTES = 1, 2, 3
    attributes = ("size", "bos", "eos")
    bos, eos = BOS, EOS

    def __init__(self, path: Path, pieces: list[bytes], scores: list[float]):
        self.names = pieces
        joined = [b"", b"", b""] + [bytes([k]) for k in range(256)] + pieces[self.BYTES + 256:]
        super().__init__(path, joined)
        self.scores = scores
        self.numbers = {p: k for k, p in reversed(list(enumerate(pieces)))}

    def encode(self, text: str) -> np.ndarray:
        """BOS, then the text with a space before it, as Llama's tokenizers have it."""
        tokens: list[int] = []
        for c in f" {text}" if text else "":
            raw = c.encode("utf-8", errors="replace")
            tokens += [self.numbers[raw]] if raw in self.numbers else [b + self.BYTES for b in raw]
        return np.array([self.BOS, *self._join_best(tokens)], np.int64)

    def _join_best(self, tokens: list[int]) -> list[int]:
        """Joins neighbours, the best score first, the leftmost of equals; a heap of pairs, stale ones are skipped."""
        after = [*range(1, len(tokens)), -1]
        before = list(range(-1, len(tokens) - 1))
        alive: list[int | None] = list(tokens)
        heap: list[tuple[float, int, int, int, int]] = []

        def offer(i: int) -> None:
            j = after[i]
            if j >= 0:
                joint = self.numbers.get(self.names[alive[i]] + self.names[alive[j]])
                if joint is not None:
                    heapq.heappush(heap, (-self.scores[joint], i, alive[i], alive[j], joint))

        for i in range(len(tokens) - 1):
            offer(i)
        while heap:
            _, i, left, right, joint = heapq.heappop(heap)
            j = after[i]
            if alive[i] != left or j < 0 or alive[j] != right:
                continue
            alive[i], alive[j] = joint, None
            after[i] = after[j]
            if after[j] >= 0:
                before[after[j]] = i
            offer(i)
            if before[i] >= 0:
                offer(before[i])
        return [t for t in alive if t is not None]

    def _join(self, tokens: list[int], after: int | None) -> bytes:
        out = []
        for t in tokens:
            piece = self.pieces[t]
            out.append(piece[1:] if after == self.BOS and piece[:1] == b" " else piece)
            after = t
        return b"".join(out)

    def id(self, token: str) -> int:
        special = {"<unk>": 0, "<s>": 1, "</s>": 2}.get(token)
        number = special if special is not None else self.numbers.get(token.encode())
        if number is None:
            raise ValueError(f"the vocabulary has no token {token!r}")
        return number


# ---- files ----------------------------------------------------------------------------------------------------------

def _bytes(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE:
            raise DatasetError(f"{path} is too large to be a vocabulary: {path.stat().st_size:,} bytes")
        return path.read_bytes()
    except FileNotFoundError:
        raise DatasetError(f"no such file: {path}", absent=True) from None
    except OSError as e:
        raise DatasetError(f"cannot read {path}: {e.strerror}") from None


def _text(path: Path) -> str:
    try:
        return _bytes(path).decode("utf-8")
    except UnicodeDecodeError as e:
        raise DatasetError(f"{path} is not UTF-8 text: byte 0x{e.object[e.start]:02x} at {e.start:,}") from None


def _json(path: Path):
    try:
        return json.loads(_text(path))
    except (json.JSONDecodeError, RecursionError) as e:
        raise DatasetError(f"{path} is not JSON: {e}") from None


MAKERS = {"bpe": bpe, "llama_tokenizer": llama_tokenizer}


def tokenizer(kind: str, *files: str, base: Iterable[Path] = (), **more: str) -> Tokenizer:
    """What `bpe("vocab.json", "merges.txt")` makes; files are looked for in the `base` folders, then here."""
    import inspect
    maker = MAKERS[kind]
    wanted = list(inspect.signature(maker).parameters)
    try:
        bound = inspect.signature(maker).bind(*files, **more)
    except TypeError as e:
        raise DatasetError(f"{kind}: {e}", f"it is used as {kind}({', '.join(wanted)})") from None
    return maker(*[find_file(f, base, kind) for f in bound.args])


def find_file(name: object, base: Iterable[Path], what: str) -> Path:
    """The file of that name in the first folder that has it."""
    if not isinstance(name, str | Path):
        raise DatasetError(f"{what}: expected a path, got {name!r}")
    path = Path(name).expanduser()
    candidates = [path] if path.is_absolute() else [Path(folder) / path for folder in base] or [path]
    found = next((c for c in candidates if c.exists()), None)
    if found is None:
        folders = " or ".join(dict.fromkeys(str(c.parent) for c in candidates))
        raise DatasetError(f"{what}: no such file: {name}", f"it is looked for in {folders}" if not path.is_absolute() else None, absent=True)
    return found
