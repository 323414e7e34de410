"""Wrong programs by the thousand: real ones with tokens dropped, doubled, swapped and replaced, parts of two joined; and everything that
the front end can do with one.

Shared by test_fuzz.py.  `attempt` answers "accepted" or "refused"; any exception but a CompileError is a bug of Engram, and so is
one that takes long.
"""
from __future__ import annotations

import os
import random
import re
import signal
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from engram.compiler.diagnostics import CompileError
from engram.compiler.ir import DTYPES, TensorType, f32, i64, u64
from engram.compiler.ir.verifier import verify
from engram.frontend import ast as A
from engram.frontend import (
    check,
    elaborate_call,
    elaborate_function,
    elaborate_grad,
    elaborate_init,
    elaborate_train,
    instantiate,
    load,
)

ROOT = Path(__file__).parent.parent
FOLDERS = ("examples", "tests/programs", "tests/diagnostics", "tests/wrong", "frontend/std")
TEXTS = [p.read_text(encoding="utf-8") for d in FOLDERS for p in sorted((ROOT / d).glob("*.nn"))]

TOKEN = re.compile(r'#[^\n]*|"(?:[^"\\\n]|\\.)*"|\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?|[^\W\d]\w*|\n[ \t]*|[ \t]+|\.\.|\|>|->|\*\*|//|[-+*/@%&|^<>=!]=|<<|>>|.', re.S)
NUMBERS = ["0", "1", "2", "3", "-1", "7", "0.5", "1e30", "1e999", "400", "100000000000", "99999999999999999999", "true", "none", "()", "[]", '"a"']
NAMES = """f32 f16 bf16 f64 i8 i64 u8 bool key float int x y w b n d h B T i o zeros ones normal uniform sum mean max softmax relu reshape permute
  transpose cat stack split where grad value_and_grad vjp jvp vmap stop_gradient custom_grad tensor arange einsum conv2d cross_entropy
  layer_norm dropout one_hot embedding gather scatter_add cumsum sort topk range reversed len enumerate zip training step steps epoch self
  Linear LayerNorm adam sgd adamw three_factor delta hebb cosine pow2 ternary model data dataset batch epochs accuracy causal sqrt exp reset
  split fold_in pad flip roll tril outer matmul any all argmax topk full eye linspace clamp norm std var""".split()
SNIPPETS = ["(", ")", "[", "]", "{", "}", ",", ":", ";", "\n", "=", "+", "-", "*", "/", "//", "%", "@", "**", "..", "|>", ".", ".T", ".shape", "<", ">=",
            "==", "and", "or", "not ", "if ", "else ", "while ", "scan ", " in ", " with ", "final ", "fn ", "fn (v) { v }", "let ", "yield ", "learn ",
            "minimize ", "measure ", "assert ", " by ", " given ", " using ", " wrt ", "param ", "state ", "cache ", "own ", "phase ", "until ", "layer ", "rule ",
            "train ", "import ", "nonlocal ", "true", "none", "(x)", "[0]", "[none]", "[:, 1:]", "[::2]", "[x]", "* n", "+= 1", "-= x", "~", "<<", "&", "|", "for i in 0..3"]

KEYWORDS = set("""import fn layer rule train run let if else while scan yield learn minimize measure assert and or not param state cache own phase
  until by given using wrt sees in with final names for as nonlocal""".split())
OPERATORS = ["+", "-", "*", "/", "//", "%", "@", "**", "<", ">", "==", "and", "or", "|", "&", "<<"]


def tokens(text: str) -> list[str]:
    return TOKEN.findall(text)


def mutant(rng: random.Random) -> str:
    """A program with one to a few mistakes in it."""
    text = rng.choice(TEXTS)
    if rng.random() < 0.15:
        text = splice(rng, text, rng.choice(TEXTS))
    parts = tokens(text)
    words = [i for i, t in enumerate(parts) if t.strip() and not t.startswith("#")]
    if not words:
        return text
    names = [parts[i] for i in words if parts[i][0].isalpha() and parts[i] not in KEYWORDS]
    if rng.random() < 0.7:
        return gentle(rng, parts, words, names or NAMES)
    for _ in range(1 + min(int(rng.expovariate(0.8)), 5)):
        i, j = rng.choice(words), rng.choice(words)
        t = parts[i]
        kind = rng.random()
        if kind < 0.3 and names and t[:1].isalpha():
            parts[i] = rng.choice(names) if rng.random() < 0.6 else rng.choice(NAMES)
        elif kind < 0.45 and t[:1].isdigit():
            parts[i] = rng.choice(NUMBERS) if rng.random() < 0.7 else rng.choice(names or NAMES)
        elif kind < 0.55:
            parts[i] = " "
        elif kind < 0.65:
            parts[i], parts[j] = parts[j], t
        elif kind < 0.72:
            parts[i] = t + " " + t
        elif kind < 0.84:
            parts[i] = rng.choice(SNIPPETS)
        elif kind < 0.94:
            parts[i] = t + " " + rng.choice(SNIPPETS)
        else:                                                  # a run of tokens again somewhere else
            parts[j] += " " + "".join(parts[i:i + rng.randrange(2, 12)])
    return "".join(parts)


def gentle(rng: random.Random, parts: list[str], words: list[int], names: list[str]) -> str:
    """Mistakes that still parse, mostly: another name, number, operator, expression of the program in its place."""
    places = [i for i in words if parts[i] not in KEYWORDS and (parts[i][0].isalnum() or parts[i] in OPERATORS)]
    groups = [(i, k) for i in words if parts[i] in "([" for k in [closing(parts, i)] if k]
    for _ in range(1 + min(int(rng.expovariate(0.9)), 4)):
        if not places:
            break
        i = rng.choice(places)
        t = parts[i]
        if not t:                                              # its brackets got another content
            continue
        if t in OPERATORS:
            parts[i] = rng.choice(OPERATORS)
        elif groups and rng.random() < 0.25:                   # what stands in one pair of brackets, in another
            (a, b), (c, d) = rng.choice(groups), rng.choice(groups)
            body = "".join(parts[c + 1:d])
            if len(body) < 400 and "#" not in body:
                parts[a + 1:b] = [body] + [""] * (b - a - 2) if b > a + 1 else []
        elif t[0].isdigit():
            parts[i] = rng.choice(NUMBERS) if rng.random() < 0.7 else rng.choice(names)
        else:
            parts[i] = rng.choice(names) if rng.random() < 0.6 else rng.choice(NAMES) if rng.random() < 0.7 else rng.choice(NUMBERS)
    return "".join(parts)


def closing(parts: list[str], i: int) -> int | None:
    depth = 0
    for k in range(i, min(i + 60, len(parts))):
        depth += (parts[k] in ("(", "[", "{")) - (parts[k] in (")", "]", "}"))
        if depth == 0:
            return k
    return None


def splice(rng: random.Random, a: str, b: str) -> str:
    """Items of two programs, or the lines of one in the middle of the other."""
    la, lb = a.split("\n"), b.split("\n")
    i, j = rng.randrange(len(la)), rng.randrange(len(lb))
    if rng.random() < 0.5:
        return "\n".join([*la, *lb])
    return "\n".join([*la[:i], *lb[j:j + rng.randrange(1, 8)], *la[i:]])


# ---- all that the front end does ----------------------------------------------------------------------------------------

class TooSlow(BaseException):
    """Not an Exception, so that nothing on the way takes it for one of its own."""


@contextmanager
def time_limit(seconds: float):
    def stop(*_):
        raise TooSlow(f"more than {seconds} s")
    outer = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, outer)


def dataset(name, *args, **kwargs):
    """Sixteen samples of anything."""
    if name == "nothing":
        raise CompileError([])
    shape = {"digits": (64,), "xor": (2,), "mnist": (28, 28), "cifar10": (3, 32, 32), "text": (8,)}.get(name, (64,))
    dtype = {"text": np.int64, "mnist": np.uint8, "cifar10": np.uint8}.get(name, np.float32)
    y = np.zeros((16, *shape), np.int64) if name == "text" else np.zeros((16, 1), np.float32) if name == "xor" else np.zeros(16, np.int32)
    return SimpleNamespace(fields={"x": np.zeros((16, *shape), dtype), "y": y}, n=16)


def attempt(text: str, seconds: float = 10.0, observer=None) -> str:
    """Parse, check, elaborate with small arguments, verify."""
    with time_limit(seconds):
        try:
            program = load("fuzz.nn", text)
        except CompileError as e:
            return refused(e)
        outcome = "accepted"
        try:
            check(program)
        except CompileError as e:
            outcome = refused(e)
        if observer is not None:
            observer(program)
        for action in uses(program):
            try:
                action()
            except CompileError as e:
                outcome = refused(e)
        return outcome


def refused(e: CompileError) -> str:
    shown = str(e)
    assert "error: " in shown and len(shown) < 200_000, shown[:500]
    return "refused"


def uses(program):
    """What a user could do with each item, one after the other."""
    for name, decl in program.functions.items():
        args = arguments(decl.params, {})
        if args is not None:
            yield lambda name=name, args=args: verify(elaborate_function(program, name, args).module)
            yield lambda name=name, args=args: verify(elaborate_grad(program, name, args).module)
    for item in program.main.tree.items:
        if isinstance(item, A.Layer):
            yield lambda item=item: use_layer(program, item)
    for name, block in program.blocks.items():
        if isinstance(block, A.Train):
            yield lambda name=name: verify(elaborate_train(program, name, {"batch": 4} if "batch" in block_settings(program.blocks[name]) else {}, dataset).module)


def block_settings(block) -> set[str]:
    return {i.target.id for i in block.items if isinstance(i, A.Assign) and isinstance(i.target, A.Name) and isinstance(i.value, A.Int)}


def use_layer(program, decl) -> None:
    sizes = {p.name: 4 for p in decl.params if p.default is None}
    inst = instantiate(program, decl.name, list(sizes.values()))
    verify(elaborate_init(inst).module)
    if inst.forward is not None:
        args = arguments(inst.forward.decl.params, sizes)
        if args is not None:
            verify(elaborate_call(inst, args, training=True).module)


def arguments(params, sizes: dict) -> list | None:
    """Small arguments for parameters; None where a function or a layer is wanted."""
    out: list = []
    for p in params:
        t = p.type
        if p.default is not None:
            break
        if t is None:
            out.append(2)
        elif isinstance(t, A.TensorType) and (t.name in DTYPES or t.name in ("float", "num", "int", "key")):
            dtype = {"float": f32, "num": f32, "int": i64, "key": u64}.get(t.name) or DTYPES[t.name]
            try:
                dims = tuple(size(d, sizes) for d in t.dims or [] if not isinstance(d, A.Pack))
            except ValueError:
                return None
            out.append(TensorType(dtype, dims))
        else:
            return None
    return out


def size(node, sizes: dict) -> int:
    if isinstance(node, A.Int):
        return min(node.value, 1 << 40)
    if isinstance(node, A.Name):
        return sizes.get(node.id, 4 if node.id != "B" else 2)
    if isinstance(node, A.Binary) and node.op in ("+", "-", "*", "/", "//"):
        a, b = size(node.left, sizes), size(node.right, sizes)
        return max(0, {"+": a + b, "-": a - b, "*": a * b}.get(node.op, a // max(b, 1)))
    raise ValueError


NIGHTLY = os.environ.get("ENGRAM_NIGHTLY") == "1"
