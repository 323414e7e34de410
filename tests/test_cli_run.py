"""`engram run` and its relatives on the examples: what they write, that backends and thread counts agree, that stages round-trip."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from engram.cli import main

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


def run(tmp_path, name: str, *args: str) -> dict:
    assert main(["run", str(EXAMPLES / f"{name}.nn"), "--out", str(tmp_path), *args]) == 0
    return json.loads((tmp_path / "metrics.json").read_text())


def opencl() -> tuple[bool, str]:
    """Whether a device works, and which, or why not."""
    from engram.codegen.opencl.device import available
    return available()


def test_digits_end_to_end(tmp_path, capsys):
    m = run(tmp_path, "digits")
    out = capsys.readouterr().out
    assert "9,610 parameters, 1,438 samples to learn from, 359 held out; seed 0" in out and "epoch 20/20" in out and "\x1b" not in out
    assert (m["train"], m["backend"], m["seed"], len(m["epochs"])) == ("digits", "cpu", 0, 20)
    assert m["final"]["accuracy"] >= 0.955 and 0 < m["final"]["loss"] < 0.2 and m["held_out"] == 359
    assert set(m["epochs"][0]) >= {"epoch", "loss", "accuracy", "seconds"}
    assert m["epochs"][-1]["loss"] < m["epochs"][0]["loss"] / 5
    from engram.checkpoint import read
    weights = read(tmp_path / "weights.safetensors")
    assert {k: v.shape for k, v in weights.items()} == {"hidden.w": (64, 128), "hidden.b": (128,), "out.w": (128, 10), "out.b": (10,)}
    if pytest.importorskip("matplotlib"):
        assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
@pytest.mark.parametrize("name, mean, least", [("digits", 0.97, 0.945), ("digits_local", 0.97, 0.945)])
def test_ten_seeds(name, mean, least, tmp_path):
    found = [run(tmp_path, name, "-q", "--seed", str(s))["final"]["accuracy"] for s in range(10)]
    assert np.mean(found) >= mean and min(found) >= least, found


def test_local_rules_beat_a_frozen_hidden_layer(tmp_path):
    learned = run(tmp_path, "digits_local", "-q")["final"]["accuracy"]
    text = (EXAMPLES / "digits_local.nn").read_text()
    frozen = tmp_path / "frozen.nn"
    frozen.write_text("\n".join(line for line in text.splitlines() if "learn model.hidden" not in line) + "\n")
    assert main(["run", str(frozen), "-q", "--out", str(tmp_path / "f")]) == 0
    assert learned > json.loads((tmp_path / "f" / "metrics.json").read_text())["final"]["accuracy"] + 0.01


def test_the_other_examples(tmp_path):
    assert run(tmp_path / "xor", "xor", "-q")["final"]["accuracy"] == 1.0
    assert run(tmp_path / "rnn", "rnn", "-q", "--set", "epochs=8")["final"]["accuracy"] > 0.9


def test_thread_counts_give_the_same_bits(tmp_path):
    for t in ("1", "2", "3"):
        run(tmp_path / t, "digits", "-q", "--threads", t, "--set", "epochs=2")
    bits = {(tmp_path / t / "weights.safetensors").read_bytes() for t in ("1", "2", "3")}
    assert len(bits) == 1


@pytest.mark.parametrize("name", ["digits", "digits_local"])
def test_backends_agree(name, tmp_path):
    settings = ["-q", "--set", "epochs=2", "--set", "limit=64"]
    cpu = run(tmp_path / "cpu", name, *settings)
    backends = ["interp", "opencl"] if opencl()[0] else ["interp"]
    for backend in backends:
        other = run(tmp_path / backend, name, *settings, "--backend", backend)
        np.testing.assert_allclose(other["first_losses"], cpu["first_losses"], rtol=1e-5)
        np.testing.assert_allclose(other["final"]["loss"], cpu["final"]["loss"], rtol=1e-4)


def test_opencl_learns(tmp_path):
    works, reason = opencl()
    if not works:
        pytest.skip(reason)
    m = run(tmp_path, "digits", "-q", "--backend", "opencl", "--set", "epochs=3")
    assert m["backend"] == "opencl" and m["final"]["accuracy"] > 0.9


def test_weights_go_on(tmp_path):
    first = run(tmp_path / "a", "digits", "-q", "--set", "epochs=5")
    second = run(tmp_path / "b", "digits", "-q", "--set", "epochs=1", "--weights", str(tmp_path / "a" / "weights.safetensors"))
    assert second["epochs"][0]["loss"] < first["epochs"][0]["loss"] / 3


def test_weights_with_the_names_of_pytorch(tmp_path):
    """A state_dict begins a training, as `Model.load` takes it; a train block's own state begins as without it."""
    from engram.checkpoint import read, write
    rng = np.random.default_rng(0)
    write(tmp_path / "torch.safetensors", {k: rng.normal(size=s).astype(np.float32) for k, s in
                                           {"hidden.weight": (128, 64), "hidden.bias": (128,), "out.weight": (10, 128), "out.bias": (10,)}.items()})
    text = (EXAMPLES / "digits.nn").read_text().replace("  minimize", "  state seen: i64 = 0\n  seen += batch\n  minimize").replace("5e-3", "0.0")
    (tmp_path / "d.nn").write_text(text)
    assert main(["run", str(tmp_path / "d.nn"), "-q", "--set", "epochs=1", "--out", str(tmp_path), "--weights", str(tmp_path / "torch.safetensors")]) == 0
    now, given = read(tmp_path / "weights.safetensors"), read(tmp_path / "torch.safetensors")
    assert np.array_equal(now["hidden.w"], given["hidden.weight"].T) and np.array_equal(now["out.b"], given["out.bias"]) and now["seen"] > 1000


def test_weights_that_do_not_fit(tmp_path, capsys):
    from engram.checkpoint import write
    write(tmp_path / "w.safetensors", {"hidden.w": np.zeros((3, 3), np.float32)})
    assert main(["run", str(EXAMPLES / "digits.nn"), "--out", str(tmp_path), "--weights", str(tmp_path / "w.safetensors")]) == 1
    err = capsys.readouterr().err
    assert "does not fit the model" in err and "hidden.w: expected shape [64, 128], got [3, 3]" in err and "missing: out.b or out.bias [10]" in err


def test_wrong_settings(tmp_path, capsys):
    for setting, message in (("epoch=1", "did you mean `epochs`"), ("batch=0", "expected a positive number"), ("holdout=5000", "only 1,797 samples")):
        assert main(["run", str(EXAMPLES / "digits.nn"), "--out", str(tmp_path), "--set", setting]) == 1
        assert message in capsys.readouterr().err
    assert main(["run", str(EXAMPLES / "digits.nn"), "digit"]) == 1
    assert "did you mean `digits`" in capsys.readouterr().err


def test_nan_warns_and_finishes(tmp_path, capsys):
    program = tmp_path / "bad.nn"
    program.write_text((EXAMPLES / "digits.nn").read_text().replace("adam(cosine(step, steps, 5e-3))", "sgd(1e30)"))
    assert main(["run", str(program), "--out", str(tmp_path), "--set", "epochs=2"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("warning: the loss is ") and err.count("warning") == 1
    assert json.loads((tmp_path / "metrics.json").read_text())["epochs"][1]["loss"] is None


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_stops_cleanly_and_writes(tmp_path):
    p = subprocess.Popen([sys.executable, "-m", "engram", "run", str(EXAMPLES / "digits.nn"), "--out", str(tmp_path), "--set", "epochs=100000"],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert p.stdout.readline().startswith("digits:") and p.stdout.readline().startswith("epoch")
    time.sleep(0.2)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=30)
    assert p.returncode == 130 and "interrupted" in out and "final  loss" in out and err == ""
    m = json.loads((tmp_path / "metrics.json").read_text())
    assert m["interrupted"] and m["epochs"] and "accuracy" in m["final"] and (tmp_path / "weights.safetensors").exists()


# ---- looking inside --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stage", ["nn", "tensor", "fused", "loop"])
def test_printed_stages_run_again(stage, tmp_path, capsys):
    """Printing, reparsing and running gives what the program gives."""
    assert main(["ir", str(EXAMPLES / "digits_local.nn"), "--stage", stage, "--full", "--set", "batch=4"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "a.ir").write_text(text)
    assert main(["diff", str(tmp_path / "a.ir"), "--backends", "interp,cpu"]) == 0
    out = capsys.readouterr().out
    assert "step" in out and "no differences" in out


@pytest.mark.parametrize("stage, text", [("ast", "(Train"), ("llvm", "define "), ("opencl", "__kernel")])
def test_the_other_stages(stage, text, capsys):
    assert main(["ir", str(EXAMPLES / "xor.nn"), "--stage", stage]) == 0
    out = capsys.readouterr().out
    assert text in out or text.replace("__kernel", "kernel") in out


def test_nothing_is_differentiated_in_digits_local(capsys):
    assert main(["ir", str(EXAMPLES / "digits_local.nn"), "--after", "plasticity"]) == 0
    out = capsys.readouterr().out
    assert "autodiff." not in out and "learn." not in out and "three_factor" in out
    assert main(["ir", str(EXAMPLES / "digits.nn"), "--after", "plasticity"]) == 0
    assert "autodiff.gradient" in capsys.readouterr().out


def test_opt_continues_from_a_stage(tmp_path, capsys):
    for stage in ("nn", "tensor"):
        assert main(["ir", str(EXAMPLES / "xor.nn"), "--stage", stage, "--full"]) == 0
        (tmp_path / f"{stage}.ir").write_text(capsys.readouterr().out)
    assert main(["opt", str(tmp_path / "nn.ir"), "-p", "tensor"]) == 0
    assert capsys.readouterr().out == (tmp_path / "tensor.ir").read_text()
    (tmp_path / "bad.ir").write_text("module { what }")
    assert main(["opt", str(tmp_path / "bad.ir"), "-p", "dce"]) == 1
    assert "bad.ir: 1:" in capsys.readouterr().err


def test_diff_of_functions(tmp_path, capsys):
    f = tmp_path / "f.nn"
    f.write_text("fn f(x: f32[n, k], w: f32[k, 4]) -> f32[n, 4] { tanh(x @ w) }\nfn g(x: f32[n]) -> f32 { sum(x * x) }\n")
    assert main(["diff", str(f), "--dims", "n=5", "--backends", "interp,cpu"]) == 0
    out = capsys.readouterr().out
    assert out.count("same") == 2 and "2 compared on interp, cpu: no differences" in out


def test_diff_with_nothing_to_compare_with_is_no_success(tmp_path, capsys, monkeypatch):
    from engram.cli import diff
    from engram.compiler.diagnostics import BackendUnavailable
    build = diff.build

    def absent(module, backend, *rest):
        if backend == "opencl":
            raise BackendUnavailable("no OpenCL device")
        return build(module, backend, *rest)
    monkeypatch.setattr(diff, "build", absent)
    (tmp_path / "f.nn").write_text("fn g(x: f32[n]) -> f32 { sum(x * x) }\n")
    assert main(["diff", str(tmp_path / "f.nn"), "--backends", "interp,opencl"]) == 1
    assert "nothing was compared" in capsys.readouterr().err
    assert main(["diff", str(tmp_path / "f.nn"), "--backends", "interp,opencl,cpu"]) == 0
    assert "opencl   skipped: no OpenCL device" in capsys.readouterr().out


def test_opt_of_loops_that_would_begin_again(tmp_path, capsys):
    (tmp_path / "f.nn").write_text("fn g(x: f32[n]) -> f32 { sum(x * x) }\n")
    assert main(["ir", str(tmp_path / "f.nn"), "--stage", "loop"]) == 0
    (tmp_path / "l.ir").write_text(capsys.readouterr().out)
    for p in ("loop", "tensor", "fuse"):
        assert main(["opt", str(tmp_path / "l.ir"), "-p", p]) == 1
        assert "l.ir is at stage loop already" in capsys.readouterr().err
    assert main(["opt", str(tmp_path / "l.ir"), "-p", "cse,plan-buffers"]) == 0
    (tmp_path / "l.ir").write_text(capsys.readouterr().out.replace("f32[]", "f32[3]", 1))
    assert main(["opt", str(tmp_path / "l.ir"), "-p", "cse"]) == 1
    assert "l.ir: invalid IR: " in capsys.readouterr().err


def test_diff_tells_the_largest_difference_of_finite_numbers(tmp_path, capsys):
    f = tmp_path / "f.nn"
    f.write_text("fn f(x: f32[n, k], w: f32[k, 64]) -> f32[n, 64] { tanh(x @ w) + sqrt(x[:, :1]) }\n")        # not a number where x < 0
    assert main(["diff", str(f), "--dims", "n=64,k=64", "--backends", "interp,cpu"]) == 0
    out = capsys.readouterr().out
    assert "largest difference" in out and "nan" not in out


STEEP = "fn f(x: f32[n, k], w: f32[k, 64]) -> f32[n, 64] { sqrt(abs(tanh(x @ w))) }"


def test_diff_of_a_function_that_magnifies_rounding(tmp_path, capsys):
    (tmp_path / "f.nn").write_text(STEEP)
    for order in ("interp,cpu", "cpu,interp"):
        assert main(["diff", str(tmp_path / "f.nn"), "--dims", "n=64,k=64", "--backends", order]) == 0
        assert "no differences" in capsys.readouterr().out


@pytest.mark.parametrize("order", ["interp,cpu", "cpu,interp"])
@pytest.mark.parametrize("by", [3e-4, float("nan"), 1.0])
def test_diff_sees_one_wrong_element_of_such_a_function(tmp_path, capsys, monkeypatch, order, by):
    from engram.codegen.cpu.program import CpuProgram
    call = CpuProgram.call

    def wrong(self, name, args):
        results = call(self, name, args)
        y = np.array(results[0])
        y.flat[np.argmin(np.abs(y - np.median(y)))] += by                # where the function is not steep
        return [y, *results[1:]]
    monkeypatch.setattr(CpuProgram, "call", wrong)
    (tmp_path / "f.nn").write_text(STEEP)
    assert main(["diff", str(tmp_path / "f.nn"), "--dims", "n=64,k=64", "--backends", order]) == 1
    assert "1 of 4096 elements differ" in capsys.readouterr().out


def test_one_is_no_plural(tmp_path, capsys):
    f = tmp_path / "a.nn"
    f.write_text("layer L() { param w: f32 = 1; fn (x: f32[B, 64]) -> f32[B] { mean(x, dim = 1) * w } }\n"
                 'train t {\n  model = L()\n  data = dataset("digits")\n  batch = 1\n  limit = 2\n  holdout = 0.5\n'
                 "  minimize mean(square(model(x) - f32(y))) using sgd(0.1)\n}\n")
    assert main(["run", str(f), "--threads", "1", "--out", str(tmp_path / "o")]) == 0
    out = capsys.readouterr().out
    assert "t: 1 parameter, 1 sample to learn from, 1 held out; seed 0; cpu, 1 thread\n" in out and "on 1 held-out sample " in out


def test_locality_table(capsys):
    assert main(["check", "--locality", str(EXAMPLES / "digits_local.nn")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["parameter", "rule", "reads", "broadcast", "verdict"]
    assert [r[0] for r in rows[1:]] == ["model.hidden.w", "model.hidden.b", "model.out.w", "model.out.b"] and all(r[-1] == "local" for r in rows[1:])


def test_locality_table_names_files_and_train_blocks_where_there_are_several(tmp_path, capsys):
    block = """train NAME {
  model = Linear(64, 10)
  data = dataset("digits")
  learn model by delta(0.1) given one_hot(y, 10)
}
"""
    (tmp_path / "a.nn").write_text('import "std/nn.nn"\n' + block.replace("NAME", "one"))
    (tmp_path / "b.nn").write_text('import "std/nn.nn"\n' + block.replace("NAME", "one") + block.replace("NAME", "two"))
    a, b = str(tmp_path / "a.nn"), str(tmp_path / "b.nn")

    def table(*files):
        assert main(["check", "--locality", *files]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert all(r[-1] == "local" for r in rows[1:])
        return rows
    assert table(a)[0][0] == "parameter"
    assert table(b)[0][:2] == ["train", "parameter"] and [r[0] for r in table(b)[1:]] == ["one"] * 2 + ["two"] * 2
    assert table(a, a.replace("a.nn", "./a.nn"))[0][:2] == ["file", "parameter"]
    both = table(a, b)
    assert both[0][:3] == ["file", "train", "parameter"] and [(r[0][-4:], r[1]) for r in both[1:]] == [("a.nn", "one")] * 2 + [("b.nn", "one")] * 2 + [("b.nn", "two")] * 2


def test_check_of_absent_data_is_a_warning(tmp_path, capsys):
    f = tmp_path / "a.nn"
    f.write_text('import "std/nn.nn"\ntrain t {\n  model = Linear(784, 10)\n  data = dataset("mnist", "nowhere")\n'
                 "  minimize cross_entropy(model(reshape(f32(x), [-1, 784])), y) using adam(1e-3)\n}\n")
    assert main(["check", str(f)]) == 0
    assert "warning: no such folder: nowhere: `t` was checked with the shapes of mnist" in capsys.readouterr().err
    assert main(["run", str(f)]) == 1
    f.write_text(f.read_text().replace("784, 10", "783, 10").replace("784", "783"))
    assert main(["check", str(f)]) == 1
    assert "cannot reshape" in capsys.readouterr().err
    f.write_text(f.read_text().replace("mnist", "npz"))
    assert main(["check", str(f)]) == 0
    assert "train block `t` was not checked" in capsys.readouterr().err


def test_stage_plasticity_shows_what_each_update_reads(capsys):
    assert main(["ir", str(EXAMPLES / "mnist_local.nn"), "--stage", "plasticity", "--no-locs"]) == 0       # no data is needed for it
    head, _, rest = capsys.readouterr().out.partition("module attributes")
    assert head.splitlines()[:4] == ["// three_factor teaches model.l1: local",
                                     "//   updates    model.l1.w, model.l1.b   by @rule.three_factor.model.l1",
                                     "//   reads      pre, out, w, b, three_factor.m, three_factor.w.sgd.v, three_factor.b.sgd.v, three_factor.m.sgd.v",
                                     "//   broadcast  label: i64[100] from the batch's y"]
    assert "func @rule.three_factor.model.l1(" in rest and "learn.update" not in rest
    assert main(["ir", str(EXAMPLES / "xor.nn"), "--stage", "plasticity"]) == 0
    assert capsys.readouterr().out.startswith("// no learning rules")


def test_debugging_options(tmp_path, capsys):
    args = ["run", str(EXAMPLES / "xor.nn"), "-q", "--set", "epochs=2", "--out", str(tmp_path)]
    assert main([*args, "--time-passes", "--print-ir-after=grad", "--check-passes"]) == 0
    err = capsys.readouterr().err
    assert "// ----- IR after grad -----" in err and "===== time per pass =====" in err and "lower-to-loops" in err
    assert "check: grad: " in err and "check: plan-buffers: same results of @" in err             # what takes its time is seen to go on
    assert main([*args, "--print-ir-diff"]) == 0
    assert "--- before cse" in capsys.readouterr().err
