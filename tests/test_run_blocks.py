"""Run blocks: statements of the host, compiled expressions, layers that live through the block, files; a known story to the byte."""
from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from engram import checkpoint
from engram.cli import main
from engram.compiler import driver
from engram.compiler.diagnostics import CompileError
from engram.run_block import RunBlock, check
from engram.session import load_program
from engram.tokenizers import Piece

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
STORIES = pytest.mark.skipif(not (DATA / "stories260K" / "stories260K.bin").is_file(), reason="the weights of stories260K are not here")
BACKENDS = ("interp", "cpu", "opencl")

NET = '''import "std/nn.nn"
layer Net(i, o) {
  l = Linear(i, o)
  cache n: i64 = 0
  cache last: f32[B, o] = 0
  state seen: f32[] = 0
  fn (x: f32[B, i]) -> f32[B, o] { let y = l(x); n += 1; seen += 1; last = y; y }
}
fn twice(x: f32[n]) -> f32[n] { 2 * x }
let base = 10
'''


def block(body: str, backend: str = "interp", **options) -> tuple[str, dict]:
    """What a run block prints, and the names it bound."""
    program = load_program("<test>", f"{NET}run a {{\n{body}\n}}\n")
    out = io.StringIO()
    env = RunBlock(program, program.blocks["a"], backend=backend, out=out, **options).run()
    return out.getvalue(), env


def fails(body: str, message: str) -> None:
    program = load_program("<test>", f"{NET}run a {{\n{body}\n}}\n")
    with pytest.raises(CompileError) as e:
        RunBlock(program, program.blocks["a"], backend="interp", out=io.StringIO()).run()
    assert message in str(e.value)


# ---- statements -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("body, printed", [
    ('print("a", 1, 1.5, true, none, (1, "b"), [2])', 'a 1 1.5 true none (1, "b") [2]\n'),
    ('print("a", "b", sep = "-", end = "!")\nprint()', "a-b!\n"),
    ("k = 3\nprint(k * base, k / 2, 7 // 2)", "30 1.5 3\n"),
    ("let x: f32[2, 2] = 1\nprint(sum(x), x.shape)", "4.0 (2, 2)\n"),
    ("let a, (b, c) = (1, (2, 3))\nprint(a, b, c)\nlet p, q = arange(2)\nprint(p + q)", "1 2 3\n1\n"),
    ("print(twice(tensor([1.0, 2.0])), arange(3) > 1)", "[2., 4.] [false, false, true]\n"),
    ('if base > 3 { print("big") } else { print("small") }', "big\n"),
    ('let x = sum(ones(3))\nif x > 3 { print("a") } else if x == 3 { print("b") } else { print("c") }', "b\n"),
    ("let x = while i < 3 with i = 0 { print(i, end = \" \"); i + 1 }\nprint(x)", "0 1 2 3\n"),
    ("let ys = scan t in 1..4 with final c = 0 { print(t, end = \",\"); yield c; c + t }\nprint(ys)", "1,2,3,([0, 1, 3], 6)\n"),
    ("let a, b = scan t in 0..3 { print(t, end = \"\"); yield (t, ones(1) * t) }\nprint(a, b.shape)", "012[0, 1, 2] (3, 1)\n"),
    ("scan r in eye(2) { print(r) }\nscan n in [2, 3] { print(zeros(n)) }\nscan k in reversed(0..2) { print(k) }", "[1., 0.]\n[0., 1.]\n[0., 0.]\n[0., 0., 0.]\n1\n0\n"),
    ("let k = 2\nlet f = fn (x) { sum(x ** k) }\nprint(f(ones(3)), grad(f)(ones(2)))", "3.0 [2., 2.]\n"),
    ('"x" |> print\nprint("a" + "b")', "x\nab\n"),
    ('data = dataset("xor")\nprint(data.n, data.x.shape, mean(data.y))\nlet d = data\nprint(d.y[1] + 1)', "4 (4, 2) 0.5\n[2.]\n"),
    ("assert base == 10\nassert arange(3) >= 0", ""),
])
def test_statements(body, printed):
    assert block(body)[0] == printed


@pytest.mark.parametrize("body, message", [
    ("print(fooo)", "unknown name `fooo`"), ("1 + 2\nprint(1)", "this value is not used"), ("print(Net(2, 3)(zeros(1, 2)))", "bind it first: `model = ..`"),
    ("k = 3\nk = 4", "`k` is not state"), ("let f = fn (x) { print(x) }", "`print` cannot be used in a function here"),
    ("yield 3", "`yield` belongs"), ("learn m by sgd(1) given y", "`learn` cannot stand in a run block"), ("load(3, \"x\")", "expected a model, got 3"),
    ("let r = 0..argmax(ones(2))", "cannot be bound in a run block"), ('assert sum(ones(2)) < 2, "too much"', "too much"),
    ('data = dataset("xor")\nprint(data.z)', "has no `.z`"), ("m = Net(2, 3)\nprint(m.last)", "cache `last` is empty"),
    ("m = Net(2, 3)\nprint(m(ones(4, 3)))", "dimension 1 is 3, not 2"), ('m = Net(2, 3)\nload(m, "nowhere")', "load: no such file: nowhere"),
    ("if ones(2) > 0 { print(1) }", "a condition is one bool"), ("print(1, sep = 2)", "`sep` and `end` are strings"),
])
def test_mistakes(body, message):
    fails(body, message)


def test_prints_at_once():
    """What came before an error is printed."""
    program = load_program("<test>", f"{NET}run a {{\nprint(1)\nassert sum(ones(2)) == 3\nprint(2)\n}}\n")
    out = io.StringIO()
    with pytest.raises(CompileError):
        RunBlock(program, program.blocks["a"], backend="interp", out=out).run()
    assert out.getvalue() == "1\n"


def test_decoded_text_is_streamed():
    """Decoded text ends no line; a character's bytes may come in pieces."""
    from engram.host_objects import Printer
    out = io.StringIO()
    p = Printer(out)
    for raw in (b"a", b"\xe4\xbd", b"\xa0 b"):
        p.print((Piece(raw),), " ", None)
    p.print(("next",), " ", None)
    p.print((Piece(b"end\n"),), " ", None)
    p.close()
    assert out.getvalue() == "a你 b\nnext\nend\n"


# ---- layers and state -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("backend", BACKENDS)
def test_state_lives_through_the_block(backend):
    if backend == "opencl":
        from engram.codegen.opencl.device import available
        if not available()[0]:
            pytest.skip("no OpenCL device")
    text, env = block('''model = Net(2, 3)
let first = model(ones(1, 2))
scan t in 0..3 { print(t, end = " "); model(ones(1, 2)) |> ignore }
print(model.n, model.seen, sum(abs(first - model.last)))
reset(model)
model(ones(4, 2)) |> ignore
print(model.n, model.seen, model.last.shape)
model.n = 7
print(model.n, sum(abs(first)) > 0)'''.replace("model(ones(1, 2)) |> ignore", "model(ones(1, 2))").replace("model(ones(4, 2)) |> ignore", "model(ones(4, 2))"), backend)
    assert text == "0 1 2 4 4.0 0.0\n1 5.0 (4, 3)\n7 true\n"


def test_weights_are_those_of_python():
    from engram import Model
    m = Model(NET, "Net", 2, 3, seed=4, backend="interp")
    _, env = block("model = Net(2, 3)\nlet w = model.l.w\nlet other = Net(2, 3)\nlet v = other.l.w", seed=4)
    assert np.array_equal(env["w"], m.parameters["l.w"]) and not np.array_equal(env["w"], env["v"])


def test_a_loop_that_is_not_entered_is_still_used():
    assert block("while i < 0 with i = 0 { print(i); i + 1 }\nprint(2)")[0] == "2\n"
    fails("while i < 3 with i = 0 { i + 1 }\nprint(2)", "this value is not used")


def test_keys_are_fresh_and_follow_the_seed():
    body = "let a = uniform(0, 1, size = [3])\nlet b = while i < 2 with i = 0, u = a { print(i); (i + 1, uniform(0, 1, size = [3])) }"
    one, same, other = (block(body, seed=s)[1] for s in (0, 0, 1))
    assert not np.array_equal(one["a"], one["b"][1]) and np.array_equal(one["b"][1], same["b"][1]) and not np.array_equal(one["a"], other["a"])


def test_gradients_are_values():
    text, env = block('''model = Net(2, 3)
let g = grad(fn (m, x) { sum(m.l(x)) })(model, ones(1, 2))
print(g.l.b, sum(tree_map(fn (p, d) { p - p + d }, model, g).l.w))''')
    assert text == "[1., 1., 1.] 6.0\n"


def test_compiled_once_per_type(monkeypatch):
    program = load_program("<test>", f"{NET}run a {{\nmodel = Net(2, 3)\nscan t in 0..20 {{ print(t); model(ones(1, 2) * t) }}\n}}\n")
    run = RunBlock(program, program.blocks["a"], backend="interp", out=io.StringIO())
    built = []
    build = driver.build
    monkeypatch.setattr(driver, "build", lambda module, *args, **kw: (built.append(module), build(module, *args, **kw))[1])
    run.run()
    assert len(built) == 3                                     # the weights, the caches, the call


# ---- files ----------------------------------------------------------------------------------------------------------

PHASES = ROOT / "tests" / "programs" / "phases.nn"


def test_load_and_report(tmp_path, monkeypatch, capsys):
    """phases.nn: trained weights are loaded, a test is made of them, the error rate printed; untrained ones fail the assert."""
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(PHASES), "report"]) == 1
    assert "no such file: out/weights.safetensors" in capsys.readouterr().err
    assert main(["run", str(PHASES), "mixed", "-q", "--out", "out", "--set", "epochs=1"]) == 0
    capsys.readouterr()
    assert main(["run", str(PHASES), "report"]) == 1
    assert "the trained model got worse" in capsys.readouterr().err
    assert main(["run", str(PHASES), "digits", "-q", "--out", "out", "--set", "patience=2"]) == 0
    capsys.readouterr()
    for more in ([], ["--weights", "out/weights.safetensors"]):
        assert main(["run", str(PHASES), "report", *more]) == 0
        word, rate = capsys.readouterr().out.rsplit(maxsplit=1)
        assert word == "error rate" and 0 <= float(rate) < 0.05


def test_weights_option(tmp_path, capsys):
    file = tmp_path / "a.nn"
    file.write_text(NET + "run a {\n  k = 1\n  model = Net(1, 2)\n  print(model(k * ones(1, 1)), model.seen)\n}\nrun b {\n  print(1)\n}\n")
    checkpoint.write(tmp_path / "w.safetensors", {"l.w": np.array([[2, 3]], np.float32), "l.b": np.ones(2, np.float32), "seen": np.array(5, np.float32)})
    arguments = ["--weights", str(tmp_path / "w.safetensors"), "--set", "k=2.0"]
    assert main(["run", str(file), *arguments]) == 0
    assert capsys.readouterr().out == "[[5., 7.]] 6.0\n"
    assert main(["run", str(file), "b", *arguments[:2]]) == 1 and "makes no model" in capsys.readouterr().err
    assert main(["run", str(file), "--set", "modle=2"]) == 1 and "did you mean `model`?" in capsys.readouterr().err
    assert main(["run", str(file), "--set", "model=2"]) == 1 and "literal only" in capsys.readouterr().err
    checkpoint.write(tmp_path / "w.safetensors", {"l.w": np.zeros((1, 3), np.float32)})
    assert main(["run", str(file), *arguments]) == 1
    problems = capsys.readouterr().err
    assert "expected shape [1, 2], got [1, 3]" in problems and "missing: l.b" in problems


# ---- checking -------------------------------------------------------------------------------------------------------

def test_check_computes_nothing(capsys):
    text = NET + '''run a {
  model = Net(2, 3)
  let x = while model.n < 3 with x = ones(4, 2) { print(x); model(x); x + 1 }
  if sum(x) > 3 { print("a") } else { print("b") }
  assert sum(x) < 0, "not known when checking"
  while true { print("for ever") }
  let ys = scan t in 0..1000000000 { print(t); yield ones(2) * t }
  let z: f32[1000000000, 2] = ys
  scan t in 0..1000000000 { print(t); yield (1, t) } |> print
  print(model.last, x @ ones(3, 2))
}
'''
    program = load_program("<test>", text)
    found = check(program, "a")
    assert len(found) == 1 and "f32[3, 2]" in str(found[0]) and found[0].span.line == text[:text.index("x @ ones")].count("\n") + 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["gpt2", "phases", "llama"])
def test_programs_are_checked(name, capsys, monkeypatch):
    monkeypatch.chdir(DATA / "gpt2" if (DATA / "gpt2").is_dir() else ROOT)
    assert main(["check", str(ROOT / "tests" / "programs" / f"{name}.nn")]) == 0
    err = capsys.readouterr().err
    assert "error" not in err and ("story" not in err or not (DATA / "gpt2").is_dir())


# ---- stories --------------------------------------------------------------------------------------------------------

# What llama2.c writes at temperature 0, as its author publishes it
STORY = '''Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a big, red ball. \
She wanted to play with it, but it was too high.
Lily's mom said, "Lily, let's go to the park." Lily was sad and didn't know what to do. She said, "I want to play with your ball, but I \
can't find it."
Lily was sad and didn't know what to do. She said, "I'm sorry, Lily. I didn't know what to do."
Lily didn't want to help her mom, so she said, "I'm sorry, mom. I didn't know what to do." Her mom said, "Don't worry, Lily. We can help you.
'''


@STORIES
def test_story_to_the_byte(capsys):
    assert main(["run", str(ROOT / "examples" / "stories.nn"), "--set", f"data={DATA / 'stories260K'}"]) == 0
    assert capsys.readouterr().out == STORY


@STORIES
@pytest.mark.parametrize("backend", ["interp", "opencl"])
def test_story_on_other_backends(backend, capsys):
    if backend == "opencl":
        from engram.codegen.opencl.device import available
        if not available()[0]:
            pytest.skip("no OpenCL device")
    assert main(["run", str(ROOT / "examples" / "stories.nn"), "--backend", backend, "--set", "steps=20", "--set", f"data={DATA / 'stories260K'}"]) == 0
    text = capsys.readouterr().out.rstrip("\n")
    assert len(text) > 60 and STORY.startswith(text)


@STORIES
def test_story_goes_on_from_a_prompt(capsys):
    """The story's own beginning as a prompt: it is read at once, and the rest is the same."""
    start = STORY[:STORY.index(" One day")]
    assert main(["run", str(ROOT / "examples" / "stories.nn"), "--set", "steps=120", "--set", f"data={DATA / 'stories260K'}", "--set", f"prompt={start}"]) == 0
    text = capsys.readouterr().out.rstrip("\n")
    assert len(text) > 150 and STORY.startswith(text)


@STORIES
def test_llama2c_files(tmp_path):
    from engram.llama2c import read
    arrays = read(DATA / "stories260K" / "stories260K.bin")
    assert sum(a.size for a in arrays.values()) == 260_032 and arrays["model.layers.4.mlp.down_proj.weight"].shape == (64, 172)
    data = (DATA / "stories260K" / "stories260K.bin").read_bytes()
    for content, message in ((data[:-4], "of these sizes has"), (data[:20], "it has 20 bytes"), (struct.pack("<7i", *[0] * 7), "its header says dim 0")):
        (tmp_path / "w.bin").write_bytes(content)
        with pytest.raises(checkpoint.CheckpointError, match=message):
            read(tmp_path / "w.bin")


@pytest.mark.skipif(not (DATA / "gpt2").is_dir(), reason="GPT-2's vocabulary is not here")
def test_gpt2_story(tmp_path, capsys):
    """A small GPT-2 with random weights: noise that follows the seed."""
    text = (ROOT / "tests" / "programs" / "gpt2.nn").read_text().replace("model       = GPT2()", "model       = GPT2(dim = 32, heads = 4, depth = 2)")
    (tmp_path / "g.nn").write_text(text)
    outs = []
    for seed in (1, 2):
        assert main(["run", str(tmp_path / "g.nn"), "story", "--set", f"data={DATA / 'gpt2'}", "--set", "tokens=12", "--seed", str(seed)]) == 0
        outs.append(capsys.readouterr().out)
    assert outs[0] != outs[1] and outs[0].startswith("Once upon a time") and len(outs[0]) > 20


def test_gpt2_files_of_hugging_face():
    """Their names, with or without `transformer.`, with the causal masks and the tied head that such files hold."""
    from engram.frontend import instantiate
    from engram.weights import fit
    model = instantiate(load_program(str(ROOT / "tests" / "programs" / "gpt2.nn")), "GPT2", (11, 8, 4, 2, 2))
    d = 4
    shapes = {"wte.weight": (11, d), "wpe.weight": (8, d), "ln_f.weight": (d,), "ln_f.bias": (d,)}
    for k in range(2):
        shapes |= {f"h.{k}.{n}": s for n, s in {
            "ln_1.weight": (d,), "ln_1.bias": (d,), "ln_2.weight": (d,), "ln_2.bias": (d,), "attn.bias": (1, 1, 8, 8), "attn.c_attn.weight": (d, 3 * d),
            "attn.c_attn.bias": (3 * d,), "attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,), "mlp.c_fc.weight": (d, 4 * d),
            "mlp.c_fc.bias": (4 * d,), "mlp.c_proj.weight": (4 * d, d), "mlp.c_proj.bias": (d,)}.items()}
    rng = np.random.default_rng(0)
    arrays = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    plain = fit(model, arrays, "a file")
    assert np.array_equal(plain["blocks.1.attn.proj.w"], arrays["h.1.attn.c_proj.weight"]) and len(plain) == len(shapes) - 2
    prefixed = fit(model, {**{f"transformer.{n}": a for n, a in arrays.items()}, "lm_head.weight": arrays["wte.weight"]}, "a file")
    assert all(np.array_equal(prefixed[n], plain[n]) for n in plain)
