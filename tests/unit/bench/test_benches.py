"""The benches of kernels, steps and peers on a CPU: what is measured, held to what, and what is said of the rest."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider_cloud.bench import cli, step
from outrider_cloud.bench.acceptance import Replay
from outrider_cloud.bench.jobs import Job, run_jobs
from outrider_cloud.bench.kernels import kernel_jobs
from outrider_cloud.bench.kernels import ratios as row_ratios
from outrider_cloud.bench.peers import PeerBench, Setting, ratios
from outrider_cloud.bench.shapes import random_model, weight_bytes
from outrider_cloud.bench.tables import table_of

CPU = torch.device("cpu")


def test_every_kernel_is_held_to_its_reference_and_no_time_of_the_host_build_is_told():
    if shutil.which("g++") is None:
        pytest.skip("the host build of the kernels needs g++")
    results = run_jobs(kernel_jobs("tiny-qwen3", CPU, torch.bfloat16, 1, 1))
    assert not [r for r in results if "failed" in r]
    cases = [r for r in results if "kernel" in r]
    kernels = {r["kernel"] for r in cases}
    assert kernels == {"attention", "sampling", "product", "rms_norm", "silu_mul", "rope_store", "kv_move"}
    assert all(r["ours"] is None and "of_copy" not in r for r in cases)
    assert all(r["max_error"] < 0.02 for r in cases)
    assert {r["peers"]["flashinfer"]["missing"] for r in cases if r["kernel"] == "attention"} == {"needs a card"}
    assert [entry["context"] for entry in row_ratios(results)] == [64, 300]
    assert all(entry["sdpa"] > 0 and "ours" not in entry for entry in row_ratios(results))


def test_ratios_are_those_of_eight_rows_to_one():
    def result(rows, ours):
        return {"kernel": "attention", "context": 512, "rows": rows, "ours": {"median_us": ours}, "peers": {}}

    assert row_ratios([result(1, 10.0), result(8, 13.0), result(9, 99.0)]) == [{"context": 512, "ours": 1.3}]


def test_steps_run_the_rows_that_they_say(monkeypatch):
    """Rows are sessions times one and their drafts, and an exact group is told beside the natural one."""
    groups = (step.Group(2, 20, (0, 3)), step.Group(2, 20, (0, 3), (16,)))
    monkeypatch.setattr(step, "ON_A_CPU", groups)
    monkeypatch.setattr(step, "COMPILED_ON_A_CPU", ())
    bandwidth, exact, natural, bucketed = run_jobs(step.StepBench("tiny-llama", CPU, torch.float32, 1, 3).jobs())
    assert bandwidth["gb_per_s"] > 0
    assert exact["agreeing"][-1] == 32
    for group in (natural, bucketed):
        assert [case["rows"] for case in group["cases"]] == [2, 8]
        assert all(case["tokens_per_s"] > 0 and case["floor_us"] > 0 for case in group["cases"])
    assert [case["of_natural"] for case in natural["cases"]] == [1.0, 1.0]
    assert all(case["of_natural"] > 0 and case["of_one_row"] is None for case in bucketed["cases"])


def test_a_step_is_told_beside_the_same_one_compiled(monkeypatch):
    """Without the time that compiling takes: the function as it is, and one that no compiler takes."""
    monkeypatch.setattr(step, "ON_A_CPU", (step.Group(1, 20, (0,)), step.Group(2, 20, (0, 3)), step.Group(2, 30, (0,))))
    monkeypatch.setattr(step, "COMPILED_ON_A_CPU", ((2, 20, 3), (2, 20, 0)))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    jobs = step.StepBench("tiny-llama", CPU, torch.float32, 1, 2, "alone").jobs()
    assert len(jobs) == 4  # the copy, the group that has both cases, and both compiled
    bandwidth, ours, many, one = run_jobs(jobs)
    assert bandwidth["gb_per_s"] > 0
    for told, case in ((many, ours["cases"][1]), (one, ours["cases"][0])):
        assert told["compiled"]["same_tokens"] == 1.0
        assert told["ours_us"] == case["wall"]["median_us"]
        assert told["of_ours"] == told["compiled"]["median_us"] / told["ours_us"]

    def compile_(*_, **__):
        raise RuntimeError("no C++ compiler\nSet TORCH_LOGS")

    monkeypatch.setattr(torch, "compile", compile_)
    results = run_jobs(step.StepBench("tiny-llama", CPU, torch.float32, 1, 2, "alone").jobs())
    assert results[-1]["compiled"] == {"missing": "torch.compile cannot compile here: RuntimeError: no C++ compiler"}
    assert table_of({"bench": "step", "results": results}).row_count == 5


def test_weights_that_a_step_reads_leave_out_the_embedding():
    loaded = random_model("tiny-llama", torch.float32, CPU)
    whole = sum(p.numel() * 4 for p in loaded.model.parameters())
    assert weight_bytes(loaded) == whole - 515 * 128 * 4


def test_peers_are_measured_at_the_acceptance_that_was_planned():
    """Everybody decodes; one that cannot take several sessions is named with the reason; speculation saves steps."""
    setting = Setting(prompt=12, tokens=12, drafts=3, acceptance=1.0, warmup=1, repeats=1)
    bench = PeerBench("tiny-llama", CPU, torch.float32, (1, 2), setting)
    results = run_jobs(bench.jobs())
    assert not [r for r in results if "failed" in r]
    # Before 5.18 transformers' continuous batching finds no memory on a CPU without psutil.
    batched = [r for r in results if r["peer"] == "transformers generate_batch" and "missing" not in r]
    assert batched or find_spec("psutil") is None
    others = [r for r in results if r["peer"] != "transformers generate_batch"]
    assert [r["missing"] for r in others if "missing" in r] == ["assisted generation takes one session at a time"]
    per_step = {(r["peer"], r["mode"], r["sessions"]): r.get("tokens_per_step_and_session") for r in results}
    assert per_step["outrider", "plain", 2] == 1.0
    assert per_step["outrider", "speculative", 1] > 3
    assert per_step["outrider", "speculative", 2] > 3
    assert per_step["transformers assisted generation", "speculative", 1] > 2.5
    # All decode the same weights: greedily and in float32 they agree.
    assert bench._answers["outrider", 2] == bench._answers["transformers generate, dynamic cache", 2]
    if batched:
        assert bench._answers["outrider", 2] == bench._answers["transformers generate_batch", 2]
    assert len(ratios(results)) == 5 + len(batched)
    assert table_of({"bench": "peers", "results": results, "summary": ratios(results)}).row_count == 12


@given(st.integers(0, 1000), st.floats(0, 1), st.integers(1, 6), st.integers(1, 30))
@settings(max_examples=50)
def test_a_replay_is_right_as_often_as_planned_and_never_goes_beyond_the_end(seed, rate, count, length):
    """Followed to its end it commits the answer; each chain is right up to one place and wrong there."""
    answer = list(range(100, 100 + length))
    replay = Replay(2, answer, count, rate, seed, 500)
    log = [1, 2]
    while len(log) < 2 + length:
        chain, coming = replay(log), answer[len(log) - 2 :]
        right = next((i for i, token in enumerate(chain) if token != coming[i]), len(chain))
        assert len(chain) == min(count, len(coming) - 1)
        assert all(token != coming[i] for i, token in enumerate(chain) if i >= right)
        log += coming[: right + 1]
    assert log[2:] == answer


def test_a_measurement_that_fails_does_not_take_the_others_along(monkeypatch, tmp_path):
    """Its reason is in the report, the report is written, and the command ends with an error that names it."""

    def fails():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    jobs = [Job("first", fails), Job("second", lambda: {"gb_per_s": 1.0})]
    monkeypatch.setattr("outrider_cloud.bench.kernels.kernel_jobs", lambda *_: jobs)
    out = tmp_path / "deep" / "kernels.json"
    done = CliRunner().invoke(cli.bench, ["kernels", "--json", "--out", str(out)])
    assert done.exit_code == 1
    assert "1 of 2 measurements failed: first" in done.stderr
    told = json.loads(out.read_text())
    assert told["results"][0] == {"name": "first", "failed": "OutOfMemoryError: CUDA out of memory."}
    assert told["results"][1]["gb_per_s"] == 1.0
    assert told["machine"]["torch"] == torch.__version__


def test_what_was_measured_is_kept_as_it_comes_and_nothing_is_begun_after_the_limit(monkeypatch, tmp_path):
    """A bench that is killed has left what it had; one that stops by itself names what it left out."""
    out, seen = tmp_path / "kernels.json", []

    def reads():
        seen.append([r["name"] for r in json.loads(out.read_text())["results"]] if out.exists() else [])
        return {"gb_per_s": 1.0}

    jobs = [Job("first", reads), Job("second", reads)]
    monkeypatch.setattr("outrider_cloud.bench.kernels.kernel_jobs", lambda *_: jobs)
    assert CliRunner().invoke(cli.bench, ["kernels", "--json", "--out", str(out)]).exit_code == 0
    assert seen == [[], ["first"]]
    done = CliRunner().invoke(cli.bench, ["kernels", "--out", str(out), "--limit-s", "1e-9"])
    assert done.exit_code == 0
    told = json.loads(out.read_text())["results"]
    assert [r["left_out"] for r in told] == ["not begun within 0 s"] * 2
    assert len(seen) == 2


def test_shapes_and_numbers_that_are_none_are_told():
    for arguments, text in (
        (["step", "--model", "gpt-5"], "there is no shape gpt-5"),
        (["peers", "--sessions", "1,x"], "--sessions is '1,x'"),
        (["kernels", "--dtype", "float32"], "the kernels compute in 16 bits"),
    ):
        done = CliRunner().invoke(cli.bench, arguments)
        assert done.exit_code == 2
        assert text in done.stderr
