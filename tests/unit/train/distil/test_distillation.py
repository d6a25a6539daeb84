"""Distilling toys: every loss and every kind of data brings the draft to its target; a killed run goes on the same."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from outrider_cloud.train.distil.acceptance import Answers, acceptance, answers_of, per_step, ranks, walk
from outrider_cloud.train.distil.distillation import DistilConfig, Distillation
from outrider_cloud.train.distil.samples import Writing, sampled_shard, write_texts
from outrider_cloud.train.loop.config import FitConfig
from outrider_cloud.train.loop.fit import Fit
from outrider_cloud.train.loop.losses import text_loss
from outrider_cloud.train.runs.draft import validation_of
from outrider_cloud.train.texts.course import ShardCourse
from outrider_cloud.train.texts.shards import Shard, ShardWriter
from outrider_cloud.train.texts.sources import FileSource, NoSource
from outrider_shared.errors import ConfigError
from unit.train.toys import toy_model, toy_tokenizer
from unit.train.toys import write_texts as write_file

WRITING = Writing(temperatures=(0.0, 1.0), most=12, longest=40, rows=16, context_share=0.2)
CONFIG = DistilConfig(
    prompts=64, rounds=2, top_k=8, tokens_per_batch=400, writing=WRITING, loss="forward-kl", data="samples"
)
FIT = FitConfig(40, warmup_steps=2, log_every=50, validate_every=50, checkpoint_every=5)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return toy_tokenizer()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> FileSource:
    path = write_file(tmp_path_factory.mktemp("data") / "texts.jsonl", 120)
    return FileSource((path,), tokenizer, longest=40, prompt_tokens=6, held_out_share=0.1)


@pytest.fixture(scope="module")
def target(source: FileSource, tmp_path_factory: pytest.TempPathFactory) -> torch.nn.Module:
    """A toy that knows the toy language."""
    folder = tmp_path_factory.mktemp("target")
    with ShardWriter(folder / "texts", 300, "toy") as writer:
        writer.add_all(source.examples(0), 0.0)
    model = toy_model(0, hidden=32)
    Fit(model, ShardCourse(Shard(folder / "texts"), 800, 1), text_loss, replace(FIT, steps=60), folder).run()
    return model.eval().requires_grad_(requires_grad=False)


def distil(
    target: torch.nn.Module, source: FileSource | NoSource, folder: Path, config: DistilConfig
) -> torch.nn.Module:
    draft = toy_model(5)
    Distillation(target, draft, source, frozenset({1}), config, FIT, folder, say=lambda _: None).run()
    return draft.eval()


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, loss="coupled-kl", on_policy=(0.0, 1.0)),
        replace(CONFIG, loss="tv", text_share=0.3),
        replace(CONFIG, loss="reverse-kl", on_policy=(1.0, 1.0)),
        replace(CONFIG, data="text", loss="mix"),
        replace(CONFIG, data="text", loss="text"),
    ],
    ids=lambda config: f"{config.data} {config.loss} {config.on_policy[1]:g}",
)
def test_a_distilled_draft_is_refused_less_often(
    target: torch.nn.Module, source: FileSource, tmp_path: Path, config: DistilConfig
):
    """On texts that the target writes after held-out beginnings: the chance of unequal choices under shared noise."""
    held_out = tmp_path / "held-out"
    prompts = [*source.held_out_prompts()] * 4
    sampled_shard(held_out, [(target, prompts)], target, {1}, WRITING, k=8, seed=9, source="held out")
    refused = validation_of(held_out, 400, torch.device("cpu"))
    before = refused(toy_model(5))["valid"]
    assert refused(distil(target, source, tmp_path / "run", config))["valid"] < before - 0.05


def test_no_corpus_is_needed(target: torch.nn.Module, tmp_path: Path):
    sampled_shard(tmp_path / "held-out", [(target, [[7]] * 24)], target, {1}, WRITING, k=8, seed=9, source="held out")
    refused = validation_of(tmp_path / "held-out", 400, torch.device("cpu"))
    draft = distil(target, NoSource(((7,),)), tmp_path / "run", CONFIG)
    assert refused(draft)["valid"] < refused(toy_model(5))["valid"] - 0.05


def test_texts_are_a_function_of_the_seed(target: torch.nn.Module):
    prompts = [[5, 6, 7], [9], [11, 12, 13, 14]] * 8
    first, again, other = (write_texts(target, prompts, {1}, WRITING, seed) for seed in (3, 3, 4))
    assert first == again != other
    assert all(len(prompt) + len(new) <= 40 and len(new) <= 12 for prompt, new in zip(prompts, first, strict=True))
    assert all(1 not in new[:-1] for new in first)


def test_a_warm_opening_makes_cool_texts_of_one_prompt_differ(target: torch.nn.Module):
    """Without it, greedy texts of one prompt are one text; behind it, each is what the target says greedily."""
    cool = replace(WRITING, temperatures=(0.0,))
    same = write_texts(target, [[7]] * 12, {1}, cool, seed=3)
    assert len({tuple(text) for text in same}) == 1
    warm = write_texts(target, [[7]] * 12, {1}, replace(cool, opening=3), seed=3)
    assert len({tuple(text[:3]) for text in warm}) > 3
    assert warm == write_texts(target, [[7]] * 12, {1}, replace(cool, opening=3), seed=3)
    rest = write_texts(target, [[7, *text[:3]] for text in warm], {1}, replace(cool, most=9), seed=4)
    agreed = [text[3:] == new for text, new in zip(warm, rest, strict=True) if len(text) > 3]
    assert sum(agreed) > 0.7 * len(agreed)  # bfloat16 rounds near-ties by how texts are padded together


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="losses:"):
        DistilConfig(loss="hope")
    with pytest.raises(ConfigError, match="on_policy"):
        DistilConfig(on_policy=(0.0, 1.5))
    assert DistilConfig(on_policy=(0.0, 1.0), rounds=5).share(2) == 0.5


def test_a_draft_equal_to_its_target_is_always_right(target: torch.nn.Module):
    for temperature in (0.0, 1.0):
        answers = answers_of(target, [[5, 6, 7], [9]], {1}, temperature, most=20)
        figures = acceptance(target, answers)
        assert figures["accepted"] == 1
        assert figures["tokens"] == sum(map(len, answers.texts))


def test_ranks_count_the_candidates_before_the_targets_choice(target: torch.nn.Module):
    with torch.no_grad():
        logits = target(torch.tensor([[5, 6]])).logits[0, -1]
    third = int(logits.topk(3).indices[2])
    assert ranks(target, Answers(0.0, [[5, 6]], [[third]], [0]))[0].tolist() == [2]


@pytest.mark.parametrize(
    ("found", "depth", "width", "steps"),
    [
        ([0] * 10, 4, 1, 2),
        ([0, 1, 0, 0], 4, 1, 2),
        ([0, 1, 0, 0], 4, 2, 2),
        ([1, 1, 1, 1], 4, 2, 2),
        ([9] * 3, 8, 2, 3),
    ],
)
def test_a_walk_takes_siblings_where_the_chain_is_wrong(found: list[int], depth: int, width: int, steps: int):
    assert walk(np.array(found), depth, width) == (len(found), steps)


def test_the_interval_holds_the_mean():
    rng = np.random.default_rng(0)
    found = per_step([rng.integers(0, 3, 30) for _ in range(40)], 4, 2)
    assert found["low"] < found["tokens_per_step"] < found["high"]


_RUN = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from unit.train.distil.test_distillation import CONFIG, FIT
from unit.train.toys import toy_model
from outrider_cloud.train.distil.distillation import Distillation
from outrider_cloud.train.texts.sources import NoSource
from dataclasses import replace

config = replace(CONFIG, on_policy=(0.0, 1.0), rounds=3, prompts=32)
target, draft = toy_model(0).eval().requires_grad_(False), toy_model(5)
fit = replace(FIT, steps=60, checkpoint_every=1)
source, folder = NoSource(((7,), (9,))), Path(sys.argv[1])
Distillation(target, draft, source, frozenset({1}), config, fit, folder, say=lambda _: None).run()
torch.save(draft.state_dict(), Path(sys.argv[1]) / "weights.pt")
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    tests = str(Path(__file__).resolve().parents[3])
    return subprocess.Popen(
        [sys.executable, "-c", _RUN, str(folder), tests], env=environment, stdout=subprocess.DEVNULL
    )


def test_a_run_that_was_killed_at_any_moment_ends_with_the_same_weights(tmp_path: Path):
    """SIGKILL at three random moments of one run, data making and on-policy rounds included."""
    whole, killed = start(tmp_path / "whole"), tmp_path / "killed"
    assert whole.wait(240) == 0
    rng = random.Random(os.environ.get("PYTEST_SEED", "kill"))
    for _ in range(3):
        run = start(killed)
        mark = rng.randint(1, 25)
        while run.poll() is None and steps_done(killed) < mark:
            time.sleep(0.02)
        time.sleep(rng.random() * 0.05)
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert start(killed).wait(240) == 0
    wanted, found = (torch.load(folder / "weights.pt") for folder in (tmp_path / "whole", killed))
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def steps_done(folder: Path) -> int:
    try:
        return int(torch.load(folder / "checkpoint.pt", weights_only=True)["step"])
    except (OSError, RuntimeError, EOFError):
        return 0


def test_stored_settings_tell_runs_apart(target: torch.nn.Module, source: FileSource, tmp_path: Path):
    """Samples made for other settings are made anew, the same ones are not."""
    run = Distillation(target, toy_model(5), source, frozenset({1}), CONFIG, FIT, tmp_path, say=lambda _: None)
    run.base_shard()
    before = (tmp_path / "samples" / "meta.json").stat().st_mtime_ns
    run.base_shard()
    assert (tmp_path / "samples" / "meta.json").stat().st_mtime_ns == before
    run.config = replace(CONFIG, prompts=20)
    assert len(run.base_shard()) == 20
    assert json.loads((tmp_path / "samples" / "meta.json").read_text())["examples"] == 20
