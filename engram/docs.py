"""`python -m engram.docs` writes docs/reference: ops.md from the op table, the other pages as reference.py says; `--check` only says
whether they are up to date.

Every example of the page is IR that parses, verifies and, where the op can be run, runs: `example_module` wraps it, with the types of
its free values taken from the row's samples or from CONTEXT.
"""
from __future__ import annotations

import re
import sys
from pathlib import Path

from .compiler import ops  # noqa: F401  (registers the op table)
from .compiler.ir.core import Module
from .compiler.ir.opdef import NN, OPS, STAGES, OpDef
from .compiler.ir.parser import IrSyntaxError, parse_module
from .compiler.ir.verifier import VerificationError, verify
from .reference import builtins_page, language_page, print_examples, std_page

# The families, by the file of compiler/ops that holds their rows: title, and what they have in common.
FAMILIES = {
    "elementwise": ("Elementwise", "Operands have equal shapes and dtypes; broadcasting is explicit (`tensor.broadcast`). Each op also exists as `scalar.NAME` on "
                                   "scalars, for the loop stage."),
    "movement": ("Constants and movement", "They make or move data without computing: exact, and mostly free, as the lowering reads through them."),
    "reduction": ("Reductions, running sums and sorting", ""),
    "contraction": ("Contractions", ""),
    "attention": ("Attention", "What softmax(mask(scale q k^T)) v becomes, however it is written: no array of [queries, keys] is made."),
    "window": ("Windows", "With them convolutions, pools and their gradients are contractions and reductions."),
    "indexing": ("Run-time positions", "An index out of range is a run-time error with the op's location, never undefined."),
    "control": ("Functions and control flow", "A region may use values of the blocks around it (that of `tensor.fused` may not); functions see only their own."),
    "nn": ("Neural networks", "Each is defined by a decomposition into base ops; the pass `decompose` applies it."),
    "packed": ("Cheap weights", "Parameters of the types ternary, int4, int8 and pow2(n), their packed codes, and integer products with them."),
    "packed_conv": ("Convolutions with cheap weights", "Filters of these types, and integer products of windows with them."),
    "random": ("Random numbers", "Philox 4x32-10 with an explicit key: the same bits on every backend and any number of threads."),
    "learn": ("Derivatives and learning", "The passes `grad` and `plasticity` remove them."),
    "loop": ("The loop stage", "Loops over explicit buffers; [ARCHITECTURE.md](../ARCHITECTURE.md), section 4, says what may stand where."),
}

_I = "%i = scalar.constant() {value = 1, dtype = i64} : i64\n"
_BOUNDS = "%lo = scalar.constant() {value = 0, dtype = i64} : i64\n%hi = scalar.constant() {value = 8, dtype = i64} : i64\n"
_F = "func @f(%x: f32[3]) -> (f32[3]) { func.return(%x) }\n"

# For rows without samples: arguments, ops before the example, and functions beside it.
CONTEXT: dict[str, tuple[str, str, str]] = {
    "func.call": ("%x: f32[3]", "", _F),
    "scf.if": ("%c: bool[], %a: f32[], %b: f32[]", "", ""),
    "scf.while": ("%x: f32[]", "%limit = tensor.constant() {value = 9.0, type = f32[]} : f32[]\n", ""),
    "scf.scan": ("%s0: f32[], %xs: f32[5]", "", ""),
    "tensor.assert": ("", "%c = tensor.constant() {value = true, type = bool[]} : bool[]\n", ""),
    "tensor.fused": ("%x: f32[8]", "", ""),
    "tensor.stop_gradient": ("%x: f32[3,5]", "", ""),
    "autodiff.gradient": ("%w: f32[64,10]", "%loss = tensor.reduce_sum(%w) {dims = [0, 1]} : f32[]\n%one = tensor.constant() {value = 1.0, type = f32[]} : f32[]\n", ""),
    "autodiff.watch": ("%x: f32[3]", "", ""),
    "autodiff.custom": ("%x: f32[3]", "", _F + "func @g(%x: f32[3], %y: f32[3], %dy: f32[3]) -> (f32[3]) { func.return(%dy) }\n"),
    "autodiff.vmap": ("%w: f32[3], %x: f32[8,3]", "", "func @f(%w: f32[3], %x: f32[3]) -> (f32[3]) { %y = tensor.mul(%w, %x) : f32[3] func.return(%y) }\n"),
    "learn.update": ("%pre: f32[32,64], %out: f32[32,128], %w: f32[64,128]", "",
                     "func @hebb(%pre: f32[32,64], %out: f32[32,128], %w: f32[64,128]) -> (f32[64,128]) { func.return(%w) }\n"),
    "loop.pack": ("%w: buf<i8[10,20]>, %p: buf<u8[2,1,64]>", "", ""),
    "loop.contract_packed": ("%x: buf<i8[3,16]>, %p: buf<u8[2,1,64]>, %y: buf<i32[3,20]>", "", ""),
    "learn.local_gradient": ("%w: f32[64,10]", "%loss = tensor.reduce_sum(%w) {dims = [0, 1]} : f32[]\n", ""),
    "loop.alloc": ("", "", ""),
    "loop.constant": ("", "", ""),
    "loop.view": ("%b: buf<f32[8,64]>", "%o = scalar.constant() {value = 64, dtype = i64} : i64\n", ""),
    "loop.load": ("%b: buf<f32[8,8]>", _I + _I.replace("%i", "%j"), ""),
    "loop.prefetch": ("%b: buf<f32[8,8]>", _I + _I.replace("%i", "%j"), ""),
    "loop.store": ("%a: buf<f32[8,8]>, %b: buf<f32[8,8]>", "", ""),
    "loop.parallel": ("%a: buf<f32[32,64]>, %b: buf<f32[32,64]>", "", ""),
    "loop.for": ("%a: buf<f32[8]>", _BOUNDS + "%s0 = scalar.constant() {value = 0.0, dtype = f32} : f32\n", ""),
    "loop.reduce": ("%a: buf<f32[8]>", _BOUNDS, ""),
    "loop.if": ("%s: buf<f32[8]>, %d: buf<f32[8]>", "%c = scalar.constant() {value = true, dtype = bool} : bool\n", ""),
    "loop.sections": ("%s: buf<f32[8]>, %d: buf<f32[8]>, %e: buf<f32[8]>", "", ""),
    "loop.while": ("", "%limit = scalar.constant() {value = 9.0, dtype = f32} : f32\n%cell = loop.alloc() {type = buf<f32[]>, offset = 0} : buf<f32[]>\n"
                       "loop.parallel() {extents = []} ({^(): %one = scalar.constant() {value = 1.0, dtype = f32} : f32 loop.store(%one, %cell) scf.yield()})\n", ""),
    "loop.contract": ("%a: buf<f32[4,6]>, %b: buf<f32[6,5]>, %c: buf<f32[4,5]>", "", ""),
    "loop.copy": ("%s: buf<f32[8]>, %d: buf<f32[8]>", "", ""),
    "loop.call": ("%x: buf<f32[8]>, %y: buf<f32[8]>", "",
                  "func @f(%x: buf<f32[8]>, %y: buf<f32[8]>) -> () attributes {n_inputs = 1, n_outputs = 1, arena = 0} { loop.copy(%y, %x) func.return() }\n"),
    "loop.assert": ("", _I + "%ok = scalar.constant() {value = true, dtype = bool} : bool\n", ""),
    "loop.sort": ("%v: buf<f32[8]>, %i: buf<i64[8]>", "", ""),
    "scalar.philox": ("", "%k = scalar.constant() {value = 7, dtype = u64} : u64\n%n = scalar.constant() {value = 0, dtype = u64} : u64\n", ""),
    "scalar.constant": ("", "", ""),
}
# Ops that stand only in regions or at the end of functions: the example is put where it may stand.
WHERE = {
    "func.return": "func @main(%y: f32[3]) -> (f32[3]) {{ {example} }}",
    "scf.yield": "func @main(%c: bool[], %y: f32[]) -> (f32[]) {{ %z = scf.if(%c) ({{^(): {example}}}, {{^(): {example}}}) : f32[] func.return(%z) }}",
    "loop.store": "func @main(%a: buf<f32[8,8]>, %b: buf<f32[8,8]>) -> () attributes {{n_inputs = 1, n_outputs = 1, arena = 0}} {{\n"
                  "loop.parallel() {{extents = [8, 8]}} ({{^(%i: i64, %j: i64): %x = loop.load(%a, %i, %j) : f32 {example} scf.yield()}})\nfunc.return() }}",
}


def twin(row: OpDef) -> OpDef | None:
    """The tensor row a scalar row repeats."""
    other = OPS.get("tensor." + row.name[7:]) if row.name.startswith("scalar.") else None
    return other if other is not None and other.elementwise else None


def family(row: OpDef) -> str:
    """The file of compiler/ops the row stands in; scalar ops of their own belong to the loop stage."""
    if row.name.startswith("scalar.") and twin(row) is None:
        return "loop"
    return row.infer.__module__.rpartition(".")[2]


def stage_of(row: OpDef) -> str:
    """A stage at which the row's example is legal."""
    return next(s for s in (NN, *reversed(STAGES)) if s in row.stages)


def free_types(row: OpDef) -> str:
    """The free values of the example with their types, as function arguments; VerificationError or IrSyntaxError when nothing fits."""
    if row.name in CONTEXT:
        return CONTEXT[row.name][0]
    if row.name.startswith("scalar."):
        return re.sub(r"\[[\d,]*\]", "", free_types(twin(row)))
    names = list(dict.fromkeys(re.findall(r"%\w+", row.example.partition("=")[2])))
    problem: Exception | None = None
    for sample in row.samples:
        args = ", ".join(f"{n}: {t}" for n, (t, _, _) in zip(names, sample.inputs))
        try:
            verify(_wrapped(row, args, "", ""))
            return args
        except (VerificationError, IrSyntaxError) as e:
            problem = e
    raise problem or ValueError(f"{row.name} has neither samples nor an entry in CONTEXT")


def example_module(row: OpDef) -> Module:
    """The row's example in a function @main that returns its results."""
    if row.name in WHERE:
        return parse_module(f'module attributes {{stage = "{stage_of(row)}", entries = ["main"]}} {{ {WHERE[row.name].format(example=row.example)} }}')
    _, before, beside = CONTEXT.get(row.name, ("", "", ""))
    args = free_types(row)
    if row.name.startswith("scalar.") and args:                # function arguments of the loop stage are buffers: numbers instead
        before += "".join(f"{n} = scalar.constant() {{value = {_number(t)}, dtype = {t}}} : {t}\n" for n, t in (a.split(": ") for a in args.split(", ")))
        args = ""
    return _wrapped(row, args, before, beside)


def _number(dtype: str) -> str:
    return "true" if dtype == "bool" else "0.5" if dtype[0] in "fb" else "3"


def _wrapped(row: OpDef, args: str, before: str, beside: str) -> Module:
    stage = stage_of(row)
    head = re.match(r"((?:%\w+(?:, )?)*) = ", row.example)
    results = head.group(1) if head and stage != "loop" else ""
    types = re.search(r" : ([^(){}]*)$", row.example).group(1) if results else ""
    loop = ""
    if stage == "loop":                                        # its functions take buffers: at least one, here an unused one
        loop = f" attributes {{n_inputs = {args.count(':') + 1}, n_outputs = 0, arena = 4096}}"
        args += ", " * bool(args) + "%unused: buf<f32[]>"
    return parse_module(f'module attributes {{stage = "{stage}", entries = ["main"]}} {{\n{beside}func @main({args}) -> ({types}){loop} {{\n'
                        f"{before}{row.example}\nfunc.return({results})\n}}\n}}")


# ---- the page ---------------------------------------------------------------------------------------------------------


def accuracy(row: OpDef) -> str:
    if row.exact:
        return "the same bits on every backend"
    if row.ulp:
        return f"within {row.ulp:g} ulp (f32)"
    return "sums and products may regroup: within n eps of the sum of magnitudes"


def gradient(row: OpDef) -> str:
    if isinstance(row.grad, str):
        return ("none: " if not row.name.startswith("nn.") else "") + row.grad
    if row.name.startswith("nn."):
        return "a rule of its own"
    return "yes"


def entry(row: OpDef) -> list[str]:
    """One op's section."""
    args = free_types(row) if row.name not in WHERE else ""
    traits = [t for t, on in (("elementwise", row.elementwise), ("commutative", row.commutative), ("has effects", not row.pure),
                              ("terminator", row.terminator), ("decomposed into base ops", row.decompose is not None)) if on]
    out = [f"### `{row.name}`", "", row.doc, "", "```"]
    out += [f"// {args}"] if args else []
    out += [row.example, "```", ""]
    if row.operands:
        out.append("- operands: " + ", ".join(f"`{o.lstrip('*')}`" + (" (any number)" if o.startswith("*") else "") for o in row.operands))
    if row.attrs:
        out.append("- attributes: " + "; ".join(f"`{k}`: {v}" for k, v in row.attrs.items()))
    out.append("- stages: " + ", ".join(s for s in STAGES if s in row.stages))
    if "loop" not in row.stages or row.name.startswith(("func.", "scf.")):
        out.append(f"- gradient: {gradient(row)}")
    if not row.terminator and family(row) not in ("control", "learn", "loop"):
        out.append(f"- accuracy: {accuracy(row)}")
    if traits:
        out.append("- " + ", ".join(traits))
    return [*out, ""]


def page() -> str:
    """docs/reference/ops.md."""
    groups: dict[str, list[OpDef]] = {f: [] for f in FAMILIES}
    for row in OPS.values():
        if twin(row) is None:
            groups[family(row)].append(row)
    count = sum(map(len, groups.values()))
    out = ["# Operations", "", "<!-- Written by `python -m engram.docs` (`make docs`) from the op table in compiler/ops: change it there. -->", "",
           f"{count} operations of the IR, by family. The `nn` stage is what the front end gives, the `tensor` stage what the learning passes leave, the `loop` stage",
           "what the backends take. A line `// %x: f32[3,5]` in an example gives the types of the values it uses.", ""]
    for name, rows in groups.items():
        title = FAMILIES[name][0]
        anchor = re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        out.append(f"- [{title}](#{anchor}): " + ", ".join(f"`{r.name}`" for r in rows))
    for name, rows in groups.items():
        title, note = FAMILIES[name]
        out += ["", f"## {title}", ""] + ([note, ""] if note else [])
        for row in rows:
            out += entry(row)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).rstrip("\n") + "\n"


PAGES = {"ops.md": page, "builtins.md": builtins_page, "std.md": std_page, "language.md": language_page}


def main(argv: list[str] | None = None) -> int:
    """Write the pages into docs/reference of the checkout (or DIR); with --check, 1 when one differs."""
    argv = sys.argv[1:] if argv is None else argv
    if argv == ["--examples"]:
        return print_examples()
    check = "--check" in argv
    rest = [a for a in argv if a != "--check"]
    folder = Path(rest[0]) if rest else Path(__file__).resolve().parent.parent / "docs" / "reference"
    stale = []
    for name, make in PAGES.items():
        path, text = folder / name, make()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(str(path))
        if not check:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for path in stale:
        print(f"{path} {'is out of date: `make docs` writes it' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
