"""`engram bench`: the workloads are what they say, sides are compared before they are timed, and a failing one costs its row only. Times decide nothing here."""
from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest
from engram.benchmarks import compare, machine, models, tables, worker, workloads
from engram.benchmarks.ours import program_path
from engram.cli import main
from engram.datasets import Dataset, DatasetError, dataset
from engram.session import load_program, train_plan

LIMITS = machine.Limits(threads=2, fma=100e9, fma_one=50e9, read=10e9, triad=8e9, both=16e9, cache=32 << 20)
TINY = {"m": 16, "k": 16, "n": 16}


@pytest.mark.parametrize("name", ["mlp", "xor_call", "rnn", "cnn", "char_gpt"])
def test_parameters_are_those_of_the_program(name):
    w = workloads.WORKLOADS[name]
    given = {k: Dataset("d", models.data(w.model, w.size)) for k in ("random", "xor")}
    plan = train_plan(load_program(str(program_path(w.program))), w.block, given=given)
    found = {s.path.removeprefix("model."): tuple(s.type.shape) for s in plan.slots if s.kind == "param"}
    assert found == {k: shape for k, (shape, _, _) in models.parameters(w.model, w.size).items()}


def test_a_local_rules_readout_is_the_benchmarks_too():
    from engram.benchmarks import ours
    w = workloads.WORKLOADS["local_mlp"]
    step, values = ours.prepare(w, 1), models.parameter_values(w.model, w.size)
    assert set(step.names) == set(values)
    for k, i in step.names.items():
        np.testing.assert_array_equal(step.program.to_host(step.slots[i]), values[k])
    after = step.results()
    assert set(after) == {f"{k} after the first steps" for k in values} and not np.array_equal(after["l2.w after the first steps"], values["l2.w"])


@pytest.mark.parametrize("name", ["mlp", "rnn", "cnn", "char_gpt"])
def test_data_is_what_the_program_declares(name):
    w = workloads.WORKLOADS[name]
    plan = train_plan(load_program(str(program_path(w.program))), w.block)
    assert {k: v.shape for k, v in plan.dataset.fields.items()} == {k: v.shape for k, v in models.data(w.model, w.size).items()}


def test_counted_work():
    assert models.count("gpt", {**workloads.GPT2}) == 124_439_808
    assert workloads.WORKLOADS["matmul_1024"].parts(0)[0].flops == 2 * 1024 ** 3
    mlp = workloads.WORKLOADS["mlp"].parts(0)
    macs, first = 784 * 512 + 512 * 256 + 256 * 10, 784 * 512
    assert mlp[0].flops == 2 * 128 * (3 * macs - first) and mlp[1].bytes == 24 * (macs + 512 + 256 + 10)
    assert all(p.bytes == 0 for p in workloads.WORKLOADS["mlp"].parts(32 << 20)), "8 MB of state stay in a cache of 32 MB"
    caches = sum(2 * 12 * 768 * 4 * positions for positions in range(1, 65)) / 64
    assert workloads.WORKLOADS["gpt2_decode"].parts(32 << 20)[0].bytes == 4 * (124_439_808 - 1024 * 768) + caches
    assert workloads.WORKLOADS["gpt2_decode_ternary"].parts(32 << 20)[0].bytes == (124_439_808 - 1024 * 768) / 4 + caches


def test_the_limit_is_the_slower_of_arithmetic_and_memory_part_by_part():
    assert LIMITS.seconds([models.Part("a", 100e9, 1e9), models.Part("b", 0, 20e9)]) == 1 + 2
    assert LIMITS.seconds([models.Part("a", 0, 32e9, 12e9)]) == 2 == LIMITS.seconds([models.Part("a", 0, 32e9, 16e9)])       # by what is read, by all
    assert LIMITS.moment(50e9, 5e9).seconds([models.Part("a", 0, 32e9, 16e9)]) == 4


def test_random_data_sets():
    d = dataset("random", n=3, x=[4, 5], y=[2], y_below=7)
    assert d.fields["x"].shape == (3, 4, 5) and d.fields["x"].dtype == np.float32
    assert d.fields["y"].shape == (3, 2) and d.fields["y"].max() < 7
    assert np.array_equal(d.fields["x"], dataset("random", n=3, x=[4, 5], y=[2], y_below=7).fields["x"])
    for wrong in ({"n": 0}, {"x": [-1]}, {"y_below": 0}, {"n": 1 << 40}):
        with pytest.raises(DatasetError):
            dataset("random", **wrong)


def test_names_and_groups():
    assert [w.name for w in workloads.choose(["xor", "mlp"])] == ["mlp", "xor_loop", "xor_call"]
    assert len(workloads.choose([])) == len(workloads.TABLE)
    with pytest.raises(KeyError, match="nope"):
        workloads.choose(["nope"])


def test_differences():
    a = {"x": np.array([1.0, 4.0])}
    assert compare.difference(a, {"x": np.array([1.0, 4.4])})[0] == pytest.approx(0.4 / 4.4)
    assert compare.difference(a, {"x": np.array([1.0])}) == (float("inf"), "x")
    assert np.isnan(compare.difference(a, {"x": np.array([1.0, np.nan])})[0])


def test_limits_are_measured():
    x = machine.Limits(1, machine.fma_peak(1, 0.02), 0, machine.bandwidth("read", 1, 0.02), machine.bandwidth("triad", 1, 0.02), machine.bandwidth("copy", 1, 0.02), machine.last_level_cache())
    assert x.fma > 1e8 and 1e8 < x.read < 1e13 and 1e8 < x.triad < 1e13 and x.cache > 0
    fma, read = machine.Probe(2).now()
    assert fma > 1e8 and 1e8 < read < 1e13


def test_the_share_of_the_limit_is_the_median_of_the_turns():
    row = compare.Row(workloads.WORKLOADS["gpt2_decode"], seconds=2.0, parts=[models.Part("a", 0, 10e9)], limits=LIMITS)
    assert row.share(LIMITS) == 0.5
    row.shares = [0.2, 0.7, 0.9]
    assert row.share(LIMITS) == 0.7


def test_a_side_answers_is_stopped_and_its_end_is_told(tmp_path):
    side = worker.Side("engram", 1)
    try:
        assert side.ask(do="prepare", workload="matmul_512", size=TINY)["unit"] == 1
        side.ask(do="results", path=str(tmp_path / "r.npz"))
        arrays = models.data("matmul", TINY)
        with np.load(tmp_path / "r.npz") as z:
            np.testing.assert_allclose(z["result"], arrays["a"] @ arrays["b"], rtol=1e-4, atol=1e-5)
        assert side.ask(do="time", n=3, warm=1)["seconds"] > 0
        if worker.CAN_STOP and os.path.exists(f"/proc/{side._process.pid}/stat"):
            def state() -> str:
                with open(f"/proc/{side._process.pid}/stat") as f:
                    return f.read().rsplit(")", 1)[1].split()[0]
            until = time.monotonic() + 10                        # the signal is on its way
            while state() != "T" and time.monotonic() < until:
                time.sleep(0.01)
            assert state() == "T", "between requests a side does not run"
        with pytest.raises(worker.SideFailed, match="FileNotFoundError|KeyError"):
            side.ask(do="prepare", workload="nope")
        side._process.kill()
        with pytest.raises(worker.SideFailed, match="engram ended with status -9"):
            side.ask(do="version")
    finally:
        side.close()


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux tells a process's own peak")
def test_peak_memory_is_the_sides_own():
    here = np.ones(40 << 20)                                   # 320 MB in this process
    side = worker.Side("engram", 1)
    try:
        assert 1 << 20 < side.ask(do="peak_memory")["bytes"] < here.nbytes
    finally:
        side.close()


class Fake:
    """A side without a process: a result, and a time for a unit."""

    made: dict = {}

    def __init__(self, name, threads, env=None):
        self.name = name

    def ask(self, **request):
        result, seconds = Fake.made[self.name]
        if isinstance(result, str):
            raise worker.SideFailed(f"{self.name}: {result}")
        if request["do"] == "results":
            np.savez(request["path"], result=np.array(result))
        if request["do"] == "first":
            return {"seconds": seconds, "loss": result[0]}
        return {"seconds": seconds * request.get("n", 1), "unit": 1, "bytes": 2 << 30}

    def close(self):
        pass


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.setattr(compare, "Side", Fake)
    monkeypatch.setattr(compare, "measure", lambda threads, seconds: LIMITS)
    monkeypatch.setattr(compare, "Probe", lambda threads: type("Same", (), {"now": lambda self: (LIMITS.fma, LIMITS.read)})())
    monkeypatch.setattr(compare, "installed", lambda name: name in Fake.made)
    return Fake


def met(row) -> dict:
    return {b.what: b.met for b in row.bars(LIMITS)}


def test_bars_that_no_program_could_reach(fakes):
    """Only what this run's limit and peer say: torch at 83 % of the peak leaves 1.2x."""
    least = 2 * 1024 ** 3 / LIMITS.fma
    fakes.made = {"engram": ([1.0], least / 0.9), "torch": ([1.0], least / 0.83)}
    row = compare.run(workloads.WORKLOADS["matmul_1024"], ["torch"], 2, 32 << 20, budget=0.0)
    assert [(b.what, b.met, b.limit) for b in row.bars(LIMITS)] == [(">= 1.9x torch", False, "1.20x torch"), (">= 87% of the limit", True, None)]
    assert "[out of reach: >= 1.9x torch, the limit is 1.20x torch]  [met: >= 87% of the limit]" in tables.line(row, LIMITS)
    report = tables.Report(2, "cpu", LIMITS, ["Engram 0"], ["torch"], [row])
    assert ">= 1.9x torch ✗ (out of reach: the limit is 1.20x torch); >= 87% of the limit ✓" in tables.markdown(report)
    assert tables.as_json(report)["results"][0]["bars"][0] == {"bar": ">= 1.9x torch", "met": False, "out_of_reach": "1.20x torch"}
    fakes.made = {"engram": ([1.0], least / 0.5), "torch": ([1.0], least / 0.5)}
    row = compare.run(workloads.WORKLOADS["matmul_1024"], ["torch"], 2, 32 << 20, budget=0.0)
    assert [b.limit for b in row.bars(LIMITS)] == [None, None] and "[MISSED: >= 1.9x torch]" in tables.line(row, LIMITS)
    w = workloads.WORKLOADS["gpt2_decode_int8"]
    fakes.made = {"engram": ([1.0], 1 / 50)}
    row = compare.run(w, [], 2, 32 << 20, budget=0.0)
    best = 1 / row.limit(LIMITS)
    assert [b.limit for b in row.bars(LIMITS)] == ([f"{best:.4g} tokens/s"] if best < w.bars["least"] else [None])


def test_a_side_with_other_results_is_not_timed(fakes):
    fakes.made = {"engram": ([1.0, 2.0], 0.2), "torch": ([1.0, 2.0], 0.5), "jax": ([1.0, 2.1], 0.1)}
    row = compare.run(workloads.WORKLOADS["mlp"], ["torch", "jax"], 2, 32 << 20, budget=0.0)
    torch, jax = row.peers
    assert row.seconds == pytest.approx(0.2) and torch.ratio == pytest.approx(2.5) and row.turns == compare.TURNS[0]
    assert jax.seconds is None and jax.note == "not timed: result differ by 0.048 of the largest (tolerance 0.0001)"
    assert met(row) == {">= 2.5x torch": True, ">= 1.15x jax": None, ">= 65% of the limit": False}


def test_absent_and_failing_sides(fakes):
    fakes.made = {"engram": ([1.0], 0.2), "jax": ("XlaRuntimeError: out of memory", 0)}
    row = compare.run(workloads.WORKLOADS["mlp"], ["torch", "jax"], 2, 32 << 20, budget=0.0)
    assert [p.note for p in row.peers] == ["torch is not installed", "jax: XlaRuntimeError: out of memory"] and row.seconds == pytest.approx(0.2)
    fakes.made = {"engram": ("CompileError: no", 0), "torch": ([1.0], 0.5)}
    row = compare.run(workloads.WORKLOADS["mlp"], ["torch"], 2, 32 << 20, budget=0.0)
    assert row.seconds is None and row.note == "engram: CompileError: no" and "failed" in tables.line(row, LIMITS)
    fakes.made = {"engram": ([1.0], 0.3), "torch": ([1.5], 0.6)}
    row = compare.run(workloads.WORKLOADS["mlp_first_cold"], ["torch"], 2, 32 << 20, budget=0.0)
    assert row.seconds == pytest.approx(0.3) and "the loss differs" in row.peers[0].note and met(row) == {"<= 0.4 s": True}


def test_an_error_of_ours_costs_its_row_only(fakes, monkeypatch):
    fakes.made = {"engram": ([1.0], 0.2)}
    monkeypatch.setattr(compare, "difference", None)
    monkeypatch.setattr(Fake, "close", lambda self: 1 / 0)
    row = compare.run(workloads.WORKLOADS["mlp"], [], 2, 32 << 20, budget=0.0)
    assert row.seconds is None and row.note.startswith("internal error: ZeroDivisionError")


def test_every_workload_has_its_work():
    for w in workloads.WORKLOADS.values():
        assert w.kind == "first" or (sum(p.flops for p in w.parts(0)) > 0 or w in workloads.MEMORY) and sum(p.bytes for p in w.parts(0)) > 0, w.name


def test_the_tables(fakes):
    fakes.made = {"engram": ([1.0], 0.001), "torch": ([1.0], 0.004)}
    rows = [compare.run(workloads.WORKLOADS[n], ["torch", "jax"], 2, 0, budget=0.0) for n in ("matmul_1024", "gpt2_decode", "gpt2_train")]
    report = tables.Report(2, "cpu", LIMITS, ["Engram 0"], ["torch", "jax"], rows)
    text = tables.markdown(report)
    assert "| f32 1024 x 1024 x 1024 | GFLOP/s | **2,147** | 537 | 4.00x (4.00-4.00) | - | - | 100 |" in text
    assert "jax is not installed" in text and "FMA peak 100 GFLOP/s on 2 threads (50 on one)" in text
    assert "peak memory <= 1x torch's ✓" in text and "Engram 2.00 GB, torch 2.00 GB." in text
    data = json.loads(json.dumps(tables.as_json(report)))
    assert data["results"][1]["value"] == pytest.approx(1000) and data["results"][0]["peers"][0]["ratio"] == pytest.approx(4)


def test_lists_of_curves(capsys):
    assert main(["bench", "--scaling", "--list"]) == 0 and "T = 64, 128, 256, 512, 1024, 2048" in capsys.readouterr().out
    assert main(["bench", "--scaling", "nope"]) == 1 and "unknown curve 'nope'; known: matmul" in capsys.readouterr().err


def test_list(capsys):
    assert main(["bench", "--list"]) == 0
    out = capsys.readouterr().out
    assert all(w.name in out and w.what in out for w in workloads.TABLE) and ">= 1.9x torch" in out and "groups: matmul =" in out


def test_scaling(fakes, tmp_path, monkeypatch):
    from engram.benchmarks import scaling
    fakes.made = {"engram": ([1.0], 0.001), "torch": ([1.0], 0.004)}
    monkeypatch.setattr(scaling, "POINT_BUDGET", 0.0)
    said = []
    results = scaling.run(["batch", "layers"], ["torch"], 2, LIMITS, "cpu", said.append)
    report = tables.Report(2, "cpu", LIMITS, ["Engram 0"], ["torch"])
    text = scaling.markdown(results, report)
    assert "| batch | Engram, ms | us a sample | of the limit | torch, ms | torch / Engram |" in text and "| 128 | 1 | 7.81 |" in text
    assert "The first step takes 1.00x as long with 24 layers as with 1." in text and len(said) == 2 + 9 + 6
    assert all(set(heads) for heads in (scaling.heads(c, ["torch"]) for c in scaling.CURVES.values()))
    pytest.importorskip("matplotlib")
    assert scaling.picture(results, tmp_path / "s.png") and (tmp_path / "s.png").stat().st_size > 1000


def test_growth():
    from engram.benchmarks.scaling import growth
    assert growth([(n, 3.0 * n ** 2.5) for n in (1, 2, 4, 8, 16)]) == pytest.approx(2.5) and np.isnan(growth([(1, 1)]))


def test_sizes_reach_the_program():
    """What scaling.py turns is what the block gets."""
    from engram.benchmarks.ours import Where, _Training
    w = workloads.WORKLOADS["char_gpt"].sized(layers=2, time=8, context=8, batch=3)
    plan = _Training(w, Where(1)).plan
    found = {s.path.removeprefix("model."): tuple(s.type.shape) for s in plan.slots if s.kind == "param"}
    assert found == {k: shape for k, (shape, _, _) in models.parameters(w.model, w.size).items()}
    assert plan.settings["batch"] == 3 and tuple(plan.dataset.fields["x"].shape) == (3, 8)


@pytest.mark.parametrize("peer", worker.PEERS)
def test_peers_compute_the_same(peer, tmp_path):
    """Every small workload, as `engram bench` compares it."""
    if os.environ.get("ENGRAM_TEST_PEERS") != "1":
        pytest.skip("ENGRAM_TEST_PEERS=1 runs it: loading a peer takes seconds")
    pytest.importorskip(peer)
    small = {"rnn": {"batch": 2}, "char_gpt": {"batch": 2}, "matmul_512": TINY, "mlp": {"batch": 8}, "cnn": {"batch": 4}, "xor_call": {}, "local_mlp": {}}
    sides = [worker.Side(name, 2) for name in ("engram", peer)]
    try:
        for name, size in small.items():
            if peer not in workloads.WORKLOADS[name].peers:
                continue
            found = []
            for k, side in enumerate(sides):
                side.ask(do="prepare", workload=name, size=size)
                side.ask(do="results", path=str(tmp_path / f"{k}.npz"))
                with np.load(tmp_path / f"{k}.npz") as z:
                    found.append({key: z[key] for key in z.files})
            assert compare.difference(*found)[0] <= workloads.WORKLOADS[name].tolerance, name
    finally:
        for side in sides:
            side.close()


@pytest.mark.parametrize("name", workloads.GROUPS["memory"])
def test_work_bound_by_memory_is_the_peers_work_too(name):
    """Small sizes of it give PyTorch's numbers, and its least traffic is that of its arrays."""
    pytest.importorskip("torch")
    from engram.benchmarks import ours, peers_torch
    w = workloads.WORKLOADS[name]
    assert w.parts(32 << 20)[0].bytes > 2 * (32 << 20) and w.bars == {"limit": 0.85}
    w = w.sized(**{k: {"n": 4096, "rows": 96, "columns": 64, "taken": 50}[k] for k in w.size})
    mine, theirs = ours.prepare(w, 2).results(), peers_torch.prepare(w, 2).results()
    difference, what = compare.difference(mine, theirs)
    assert difference < 1e-5, what
