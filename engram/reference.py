"""The reference pages of the language: docs/reference/builtins.md, std.md, and the generated parts of language.md.

builtins.md comes from the tables of frontend/builtins*.py and the examples in frontend/builtin_examples.py; std.md from the files of
frontend/std; language.md is written by hand, but for the parts between `<!-- generated: WHAT -->` and `<!-- end -->`, which come from
the grammar and from the tables of train_settings.py.  `python -m engram.docs` writes all of them.
"""
from __future__ import annotations

import ast
import inspect
import math
import re
import sys
from pathlib import Path

import numpy as np

from .compiler.ir import DTYPES, DType
from .frontend.builtin_examples import INPUTS, Example, examples
from .frontend.builtins import builtin_scope
from .frontend.values import Builtin

ROOT = Path(__file__).resolve().parent.parent
FRONTEND = Path(sys.modules[Builtin.__module__].__file__).parent
GRAMMAR = FRONTEND / "grammar.lark"
LANGUAGE = ROOT / "docs" / "reference" / "language.md"
KEY = 7                                                        # the random key of the examples


# ---- operations -------------------------------------------------------------------------------------------------------

def builtins() -> dict[str, list[tuple[list[str], Builtin]]]:
    """The operations by family (the title of their module): all names of each, and the operation."""
    groups: dict[str, dict[int, tuple[list[str], Builtin]]] = {}
    for name, op in builtin_scope().names.items():
        if isinstance(op, Builtin):
            doc = sys.modules[op.run.__globals__["__name__"]].__doc__
            title = re.split(r"[.:\n]\s", doc.strip() + "\n ")[0].rstrip(".")
            groups.setdefault(title, {}).setdefault(id(op.run), ([], op))[0].append(name)
    return {title: list(found.values()) for title, found in groups.items()}


def text_of(v: object) -> str:
    """A default as the language writes it."""
    if v is None or isinstance(v, bool):
        return {None: "none", True: "true", False: "false"}[v]
    if isinstance(v, str):
        return f'"{v}"'
    if isinstance(v, DType):
        return next(n for n, d in DTYPES.items() if d is v)
    if isinstance(v, tuple | list):
        return f"({', '.join(map(text_of, v))})"
    return repr(v)


def signature(name: str, op: Builtin) -> str:
    """`name(x, dim = none)`."""
    parts = []
    for p in list(inspect.signature(op.run).parameters.values())[1:]:
        star = {p.VAR_POSITIONAL: " .."}.get(p.kind, "")
        parts.append(p.name + star + ("" if p.default is p.empty else f" = {text_of(p.default)}"))
    return f"{name}({', '.join(parts)})"


def document(op: Builtin) -> str:
    return re.sub(r"\s+", " ", op.doc).strip()


def examples_of() -> dict[str, list[Example]]:
    found: dict[str, list[Example]] = {}
    for e in examples():
        found.setdefault(e.of, []).append(e)
    return found


def builtins_page() -> str:
    """docs/reference/builtins.md."""
    groups, shown = builtins(), examples_of()
    count = sum(map(len, groups.values()))
    out = ["# Operations of the language", "",
           "<!-- Written by `make docs` from frontend/builtins*.py and frontend/builtin_examples.py: change them there. -->", "",
           f"{count} operations that programs know without an import. Names and arguments are PyTorch's, else NumPy's; `axis` may stand for `dim`, `keepdims` for",
           "`keepdim`, `input` for `x`, `other` for `y`. They broadcast as in NumPy. `x |> f(2)` is `f(x, 2)`. What they become in the IR is in [ops.md](ops.md);",
           "the language itself is described in [language.md](language.md), layers, optimisers and rules in [std.md](std.md).", "",
           "Beside them: the dtypes " + ", ".join(f"`{n}`" for n in DTYPES) + ", which also cast (`f32(x)`); the weight types `ternary`, `int8`, `int4`, `pow2(bits)`; the numbers",
           "`pi`, `e`, `inf`, `nan`; and `training`, which is true while a model learns.", "",
           "The examples are run by the tests. They use these inputs, and a random key `key`:", "", "```nn"]
    out += [f"let {n} = tensor({v})" for n, v in INPUTS.items()] + ["```", ""]
    for title, rows in groups.items():
        anchor = re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        out.append(f"- [{title}](#{anchor}): " + ", ".join(f"`{names[0]}`" for names, _ in rows))
    for title, rows in groups.items():
        out += ["", f"## {title}", ""]
        for names, op in rows:
            out += [f"### `{signature(names[0], op)}`", "", document(op)]
            if names[1:]:
                out[-1] += f" Also called {', '.join(f'`{n}`' for n in names[1:])}."
            lines = [e for n in names for e in shown.get(n, [])]
            out += ["", "```nn", *[f"{e.text}   # -> {e.value}" for e in lines], "```", ""]
    return "\n".join(out).rstrip("\n") + "\n"


# ---- the standard library ---------------------------------------------------------------------------------------------

ITEM = re.compile(r"^((?:nonlocal )?(layer|rule|fn) (\w+)[^{]*?)\s*\{(.*)$", re.M)


def std_items(path: Path) -> list[tuple[str, str, str, list[str]]]:
    """What a file of the library defines: (kind, name, what its comment says, its signature and those of its functions)."""
    text = path.read_text(encoding="utf-8")
    found = []
    starts = list(ITEM.finditer(text))
    for m, after in zip(starts, [*starts[1:], None]):
        lines = text[:m.start()].splitlines()
        comment: list[str] = []
        while lines and lines[-1].startswith("#") and not lines[-1].startswith(f"# {path.parent.name}/"):
            comment.insert(0, lines.pop().lstrip("# "))
        body = text[m.end(1):after.start() if after else len(text)]
        calls = [f"fn {c}" for c in re.findall(r"(?:^  |^ *\{ )fn ([^{]*?)\s*\{", body, re.M)] if m[2] != "fn" else []
        found.append((m[2], m[3], " ".join(comment), [re.sub(r"\s+", " ", c).strip() for c in [m[1], *calls]]))
    return found


def std_page() -> str:
    """docs/reference/std.md."""
    out = ["# The standard library", "", "<!-- Written by `make docs` from frontend/std/*.nn: change their comments there. -->", "",
           "Layers, initialisers, optimisers, learning rules and augmentation, all written in the language: read them in `frontend/std`. Layers are imported:",
           "`import \"std/nn.nn\"`; the rest is known without an import.", ""]
    for path in sorted((FRONTEND / "std").glob("*.nn"), key=lambda p: ("nn", "init", "optim", "rules", p.stem).index(p.stem) if p.stem in ORDER else 9):
        title, _, rest = path.read_text(encoding="utf-8").partition("\n")
        rest = " ".join(line[2:] for line in rest[:re.search(r"^[^#]|\Z", rest, re.M).start()].splitlines())
        about = title.partition(" - ")[2] + " " + rest
        out += [f"## `std/{path.name}`", "", about[:1].upper() + re.sub(r"\s+", " ", about[1:]).strip(), ""]
        for _, name, comment, signatures in std_items(path):
            out += [f"### `{name}`", "", comment, "", "```nn", signatures[0], *[f"  {c}" for c in signatures[1:]], "```", ""]
    return "\n".join(out).rstrip("\n") + "\n"


ORDER = ("nn", "init", "optim", "rules")


# ---- generated parts of language.md -----------------------------------------------------------------------------------

def grammar_rules() -> dict[str, str]:
    """The rules of grammar.lark by name, without comments, aliases and lark's marks."""
    text = re.sub(r"\s*//[ \S]*$", "", GRAMMAR.read_text(encoding="utf-8"), flags=re.M)
    rules: dict[str, str] = {}
    for m in re.finditer(r"^\??([a-z_]+):(.*(?:\n[ \t]+\|.*)*)", text, re.M):
        body = re.sub(r"\s*->\s*[a-z_]+[ ]*$", "", m[2], flags=re.M)
        rules[m[1]] = re.sub(r"\[_SEP\]|_SEP", lambda k: "[SEP]" if k[0][0] == "[" else "SEP", body).rstrip()
    return rules


def grammar_part(*names: str) -> list[str]:
    """These rules, or all of them and the tokens."""
    rules = grammar_rules()
    tokens = [] if names else ["SEP: a newline or `;`, where a statement may end", *re.findall(r"^[A-Z]+(?:\.-?\d+)?: .+$", GRAMMAR.read_text(encoding="utf-8"), re.M)]
    tokens = [re.sub(r"^([A-Z]+)\.-?\d+", r"\1", t) for t in tokens]
    return ["```", *[re.sub(r"\n\s+\|", "\n  |", f"{n}: {rules[n].strip()}") for n in names or rules], *tokens, "```"]


TOKENS = {"COMPARE": "== != < <= > >=", "SHIFT": "<< >>", "SUM": "+ -", "INVERT": "~", "PRODUCT": "* / // % @"}
NOTES = {
    "expr": "`x |> f(2)` is `f(x, 2)`", "range": "the end is left out", "or_": "elementwise on bool tensors", "and_": "elementwise on bool tensors",
    "not_": "elementwise on bool tensors", "comparison": "they chain: `0 <= i < n`", "product": "`/` of integers gives f32; `//` and `%` round down; `@` is the matrix product",
    "unary": "before a value", "power": "to the right, and before a minus on its left: `-x ** 2` is `-(x ** 2)`", "postfix": "",
}


def precedence_part() -> list[str]:
    """A table of the operators, loosest first, from the chain of rules below `expr`."""
    rules, rows, name = grammar_rules(), [], "expr"
    while name != "postfix":
        marks = dict.fromkeys(re.findall(r'"[^"]+"|[A-Z]{3,}', rules[name]))
        operators = " ".join(TOKENS.get(t, t.strip('"')) for t in marks).split()
        rows.append((" ".join(f"`{o}`" for o in operators), NOTES.get(name, "")))
        name = re.match(r"\s*([a-z_]+)", rules[name])[1]
    rows.append(("`f(x)` `x[i]` `x.name`", "calls, parts, attributes"))
    return ["| operators | |", "|---|---|", *["| {} | {} |".format(*(c.replace("|", "\\|") for c in row)) for row in rows]]


SETTINGS = {
    "batch": "samples a step",
    "epochs": "passes over the data",
    "holdout": "what is measured on and not learned from: a share drawn by the seed, or the last so many samples; without the line, the data's own test part, or else 0.2",
    "seed": "of initial weights, of the order of the data and of what is held out",
    "limit": "use only so many samples, drawn by the seed",
    "accumulate": "batches whose gradients make one update; `step` counts updates",
    "clip_norm": "the largest norm of the whole gradient; a larger one is scaled down before the optimiser sees it",
    "patience": "epochs without a better first measure after which training stops, with the best weights",
    "pipeline": "layers that learn by themselves do so in stages, of which each has a thread and a batch of its own at a time; a number of stages, or `true`: as many as threads. The numbers are the same",
}


def settings_part() -> list[str]:
    from .frontend.train_settings import DEFAULTS
    return ["| setting | default | meaning |", "|---|---|---|", *[f"| `{k}` | `{text_of(v)}` | {SETTINGS[k]} |" for k, v in DEFAULTS.items()]]


PARTS = {"grammar": grammar_part, "precedence": precedence_part, "settings": settings_part}


def language_page() -> str:
    """docs/reference/language.md with its generated parts made again."""
    def part(m: re.Match) -> str:
        kind, *rest = m[1].split()
        return f"<!-- generated: {m[1]} -->\n" + "\n".join(PARTS[kind](*rest)) + "\n<!-- end -->"
    return re.sub(r"<!-- generated: ([\w ]+) -->\n.*?<!-- end -->", part, LANGUAGE.read_text(encoding="utf-8"), flags=re.S)


# ---- running examples -------------------------------------------------------------------------------------------------

def parse_value(text: str) -> object:
    """A value as examples write it: numbers, lists (arrays), tuples of them."""
    plain = re.sub(r"\btrue\b", "True", re.sub(r"\bfalse\b", "False", text))
    plain = re.sub(r"\binf\b", "1e999", re.sub(r"\bnan\b", "'nan'", plain))
    return ast.literal_eval(plain)


def as_array(v: object) -> np.ndarray:
    def number(x: object) -> object:
        return [number(y) for y in x] if isinstance(x, list) else math.nan if x == "nan" else x
    a = np.asarray(number(v))
    return a.astype(np.float32) if a.dtype.kind == "f" else a


def format_value(v: object) -> str:
    """Four digits of each float."""
    if isinstance(v, tuple | list):
        return f"({', '.join(map(format_value, v))}{',' if len(v) == 1 else ''})"
    a = np.asarray(v)
    if a.ndim:
        return f"[{', '.join(format_value(x) for x in a)}]"
    if a.dtype.kind == "b":
        return str(bool(a)).lower()
    if a.dtype.kind in "iu":
        return str(int(a))
    text = f"{float(a):.4g}"
    text = "0" if text == "-0" else text
    return text if re.search(r"[.enai]", text) else text + ".0"


def same(got: object, want: object) -> bool:
    """Whether a result is what an example says, as far as its digits go."""
    if isinstance(want, tuple):
        return isinstance(got, tuple | list) and len(got) == len(want) and all(map(same, got, want))
    g, w = np.asarray(got), as_array(want)
    kind = {"u": "i"}.get(g.dtype.kind, g.dtype.kind)
    return g.shape == w.shape and kind == w.dtype.kind and np.allclose(g, w, rtol=6e-4, atol=1e-6, equal_nan=kind == "f")


def run_examples(chosen: list[Example], backend: str = "cpu") -> list[object]:
    """What the examples give, in order: one function of all of them, compiled once; the inputs are its arguments."""
    from .api import compile
    arrays = {n: as_array(parse_value(v)) for n, v in INPUTS.items()}
    types = {"f": "f32", "i": "i64", "b": "bool"}
    params = ", ".join(f"{n}: {types[a.dtype.kind]}{list(a.shape)}" for n, a in arrays.items())
    body = "".join(f"  let example{k} = {{ {e.text} }}\n" for k, e in enumerate(chosen))
    text = f"fn examples({params}, key: key) {{\n{body}  ({', '.join(f'example{k}' for k in range(len(chosen)))},)\n}}\n"
    return list(compile(text, backend=backend)["examples"](*arrays.values(), key=KEY))


def print_examples() -> int:
    """The lines of the table of examples with the values that come out now."""
    found = examples()
    for e, value in zip(found, run_examples(found)):
        e.value = format_value(value)
        print(e.line())
    return 0
