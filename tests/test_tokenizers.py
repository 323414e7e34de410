"""Tokenizers: known encodings, round trips, broken files; text data sets made with them."""
from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from engram.datasets import DatasetError, dataset
from engram.tokenizers import _byte_symbols, bpe, llama_tokenizer, tokenizer

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="module")
def gpt2():
    if not (DATA / "gpt2" / "vocab.json").is_file():
        pytest.skip("GPT-2's vocabulary is not here")
    return bpe(DATA / "gpt2" / "vocab.json", DATA / "gpt2" / "merges.txt")


@pytest.fixture(scope="module")
def stories():
    if not (DATA / "stories260K" / "tok512.bin").is_file():
        pytest.skip("the tokenizer of stories260K is not here")
    return llama_tokenizer(DATA / "stories260K" / "tok512.bin")


@pytest.fixture()
def tiny(tmp_path):
    """A vocabulary of the 256 bytes and two merges: `ab`, then `abc`."""
    names = [*_byte_symbols(), "ab", "abc", "<|end|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({s: k for k, s in enumerate(names)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nab c\n")
    return tmp_path


def make(folder):
    return bpe(folder / "vocab.json", folder / "merges.txt")


# ---- GPT-2's --------------------------------------------------------------------------------------------------------

KNOWN = [("Hello world", [15496, 995]), ("Hello, world!", [15496, 11, 995, 0]), ("I've", [40, 1053]), ("héllo", [71, 2634, 18798]),
         ("你好", [19526, 254, 25001, 121]), ("<|endoftext|>", [27, 91, 437, 1659, 5239, 91, 29]), ("  a  b\n\n c", [220, 257, 220, 275, 628, 269]),
         ("", [])]


@pytest.mark.parametrize("text, tokens", KNOWN)
def test_known_encodings(gpt2, text, tokens):
    assert gpt2.encode(text).tolist() == tokens and gpt2.encode(text).dtype == np.int64
    assert gpt2.decode(np.array(tokens, np.int64)) == text


def test_whole_text(gpt2):
    text = (DATA / "tinyshakespeare.txt").read_text(encoding="utf-8")
    tokens = gpt2.encode(text)
    assert len(tokens) == 338_025                              # as published with nanoGPT (301,966 + 36,059)
    assert gpt2.decode(tokens) == text and gpt2.size == 50_257
    assert gpt2.id("<|endoftext|>") == 50_256 and gpt2.id(" time") == 640


def test_unicode_round_trip(gpt2):
    for text in ("½ Ⅷ ²x १२", "a\u00a0b\u3000c\u2028d", "\x1c\x1f\t", "🙂 naïve café", "1'll don't 'S"):
        assert gpt2.decode(gpt2.encode(text)) == text


def test_parts_of_a_character(gpt2):
    parts = [gpt2.decode(t) for t in gpt2.encode("你")]
    assert len(parts) > 1 and b"".join(p.raw for p in parts).decode() == "你"


def test_merges_go_by_rank(tiny):
    t = make(tiny)
    assert t.encode("abcab").tolist() == [257, 256] and t.encode("bca").tolist() == [t.id(c) for c in "bca"]
    assert t.id("<|end|>") == 258 and t.decode(258) == "<|end|>" and t.size == 259


def test_wrong_tokens(tiny):
    t = make(tiny)
    with pytest.raises(ValueError, match="there is no token 259: the vocabulary has 259"):
        t.decode([3, 259])
    with pytest.raises(ValueError, match="whole numbers"):
        t.decode(np.ones(2, np.float32))
    with pytest.raises(ValueError, match="no token 'zz'"):
        t.id("zz")


@pytest.mark.parametrize("file, content, message", [
    ("vocab.json", "[1, 2", "is not JSON"), ("vocab.json", "[1, 2]", "not a vocabulary"), ("vocab.json", '{"a": 0, "b": 2}', "not 0 to 1"),
    ("vocab.json", '{"a": 0}', "no token for byte"), ("vocab.json", "\xff", "UTF-8"), ("merges.txt", "a b c\n", "line 1: expected two tokens"),
    ("merges.txt", "x y\n", "whose union is in vocab.json")])
def test_broken_files(tiny, file, content, message):
    if file == "vocab.json" and content == '{"a": 0}':
        (tiny / "merges.txt").write_text("")
    (tiny / file).write_bytes(content.encode("latin-1"))
    with pytest.raises(DatasetError, match=message):
        make(tiny)


def test_absent_files(tmp_path):
    with pytest.raises(DatasetError, match="no such file: v.json") as e:
        tokenizer("bpe", "v.json", "m.txt", base=[tmp_path])
    assert e.value.absent
    with pytest.raises(DatasetError, match="missing a required argument"):
        tokenizer("bpe", "v.json", base=[tmp_path])


# ---- Llama's --------------------------------------------------------------------------------------------------------

def test_llama(stories):
    tokens = stories.encode("Once upon a time")
    assert tokens.tolist() == [1, 403, 407, 261, 378] and stories.size == 512
    for text in ("Once upon a time", " two  spaces", "é 你 \n", ""):
        assert stories.decode(stories.encode(text)) == text     # after BOS the space that encode added goes
    assert stories.decode(403) == " Once" and stories.decode(403, after=stories.bos) == "Once" and stories.decode(403, after=[5]) == " Once"
    assert stories.id("<s>") == 1


def naive(t, text: str) -> list[int]:
    """llama2.c's own way: search all pairs for the best one, again and again."""
    tokens = [n for c in f" {text}" for n in ([t.numbers[c.encode()]] if c.encode() in t.numbers else [b + 3 for b in c.encode()])]
    while True:
        pairs = [(t.scores[k], -i, k) for i in range(len(tokens) - 1) for k in [t.numbers.get(t.names[tokens[i]] + t.names[tokens[i + 1]])] if k]
        if not pairs:
            return [1, *tokens]
        _, i, k = max(pairs)
        tokens[-i:-i + 2] = [k]


def test_llama_merges_as_llama2c(stories):
    text = (DATA / "tinyshakespeare.txt").read_text(encoding="utf-8")
    for k in range(0, 20_000, 500):
        assert stories.encode(text[k:k + 120]).tolist() == naive(stories, text[k:k + 120])


@pytest.mark.parametrize("content, message", [(b"", "it has 0 tokens"), (struct.pack("<ifi", 4, 0.0, 50) + b"abc", "no tokenizer of llama2.c"),
                                              (struct.pack("<if", 4, 0.0), "cut short in token 0")])
def test_broken_llama_files(tmp_path, content, message):
    (tmp_path / "t.bin").write_bytes(content)
    with pytest.raises(DatasetError, match=message):
        llama_tokenizer(tmp_path / "t.bin")


# ---- text data ------------------------------------------------------------------------------------------------------

def test_text_data(tiny):
    (tiny / "input.txt").write_text("abcabxyz" * 10)
    data = dataset("text", str(tiny / "input.txt"), tokens=make(tiny), context=4)
    assert data.fields["x"].dtype == np.int64 and data.fields["x"].shape == (12, 4)
    flat = data.fields["x"].reshape(-1)
    assert flat[:5].tolist() == [257, 256, *make(tiny).encode("xyz")] and np.array_equal(flat[1:], data.fields["y"].reshape(-1)[:-1])


def test_train_block_with_tokens(tiny, capsys):
    from engram.cli import main
    (tiny / "input.txt").write_text("abcab" * 200)
    (tiny / "m.nn").write_text('''import "std/nn.nn"
layer M(v) { emb = Embedding(v, 8)
  head = Linear(8, v)
  fn (t: int[B, T]) -> f32[B, T, v] { head(emb(t)) } }
train t {
  model = M(259)
  text  = bpe("vocab.json", "merges.txt")
  data  = dataset("text", "input.txt", tokens = text, context = 5)
  epochs = 40
  minimize cross_entropy(model(x), y) using adam(1e-1)
}
''')
    assert main(["check", str(tiny / "m.nn")]) == 0
    assert main(["run", str(tiny / "m.nn"), "-q", "--out", str(tiny / "out")]) == 0
    assert json.loads((tiny / "out" / "metrics.json").read_text())["final"]["loss"] < 0.5
    (tiny / "vocab.json").unlink()
    assert main(["check", str(tiny / "m.nn")]) == 0
    assert "no such file: vocab.json: train block `t` was not checked" in capsys.readouterr().err
