"""A target made by the command, from nothing or from one that there is."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest
import torch
from click.testing import CliRunner, Result
from transformers import AutoModelForCausalLM

from outrider_cloud.train.cli import train
from outrider_cloud.train.loop.fit import Fit
from unit.train.toys import toy_model, write_folder, write_texts

if TYPE_CHECKING:
    from pathlib import Path

MODEL = (
    'model_type = "llama"\nhidden_size = 16\nnum_hidden_layers = 2\nnum_attention_heads = 4\nnum_key_value_heads = 2\n'
    "head_dim = 16\nintermediate_size = 24\nmax_position_embeddings = 128\ntie_word_embeddings = true\n"
    "rope_theta = 10000.0\n"
)
FIT = "steps = 12\nwarmup_steps = 2\nvalidate_every = 6\ncheckpoint_every = 4\nmuon_lr = 0.01\n"


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A target, texts, and a recipe that fits both."""
    write_folder(toy_model(0), tmp_path / "before")
    write_texts(tmp_path / "texts.jsonl", 300)
    recipe(tmp_path, MODEL)
    return tmp_path


def recipe(room: Path, model: str) -> None:
    (room / "toy.toml").write_text(f"tokens_per_batch = 400\n[data]\nlongest = 64\n[model]\n{model}[fit]\n{FIT}")


def invoke(room: Path, *flags: str) -> Result:
    given = ["--config", str(room / "toy.toml"), "--data", str(room / "texts.jsonl"), "--out", str(room / "out")]
    return CliRunner().invoke(train, ["target", *given, *flags], catch_exceptions=False)


def go(room: Path, *flags: str) -> str:
    told = invoke(room, *flags)
    assert told.exit_code == 0, told.output
    return told.stdout


def refused(room: Path, *flags: str) -> str:
    """The sentence that a run ends with."""
    told = invoke(room, *flags)
    assert told.exit_code in {1, 2}, told.output
    *before, sentence = told.stderr.splitlines()
    assert not before
    return sentence


def other_tokenizer(room: Path) -> str:
    """One with a token less."""
    text = json.loads((room / "before" / "tokenizer.json").read_text())
    text["model"]["merges"].pop()
    return json.dumps(text)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return found


def test_a_target_goes_on_from_one_that_there_is(room: Path):
    """It begins with that one's weights, has its tokenizer, and says what it was worth before."""
    figures = json.loads(go(room, "--init", str(room / "before"), "--json").splitlines()[-1])
    assert figures["valid"] < figures["before"]["valid"] - 0.3
    assert figures["before"]["valid"] == pytest.approx(5.7, abs=0.3)  # of 300 tokens, by chance
    assert json.loads((room / "out" / "training.json").read_text())["before"] == figures["before"]
    assert (room / "out" / "tokenizer.json").read_bytes() == (room / "before" / "tokenizer.json").read_bytes()


def test_rates_of_nothing_leave_the_weights_that_it_began_with(room: Path):
    go(room, "--init", str(room / "before"), "--steps", "2", "--set", "fit.muon_lr=0.0", "--set", "fit.adam_lr=0.0")
    before, after = weights(room / "before"), weights(room / "out")
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_what_does_not_fit_is_told_before_anything_is_made(room: Path, tmp_path: Path):
    init = ["--init", str(room / "before")]
    other = write_folder(toy_model(0), tmp_path / "other")
    text = json.loads((other / "tokenizer.json").read_text())
    text["model"]["merges"].pop()
    (other / "tokenizer.json").write_text(json.dumps(text))
    assert f"the tokenizer of {other} is not that of {room / 'before'}" in refused(
        room, *init, "--tokenizer", str(other)
    )
    for wrong in ("hidden_size = 32", "rope_theta = 500000.0"):
        name = wrong.partition(" ")[0]
        recipe(
            room, "".join(each for each in MODEL.splitlines(keepends=True) if not each.startswith(name)) + wrong + "\n"
        )
        assert "leave [model] out" in refused(room, *init)
    assert "nowhere has no config.json (--init takes" in refused(room, "--init", "nowhere")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "mamba"}))
    assert "mamba" in refused(room, "--init", str(other))
    assert not (room / "out.work").exists()


def test_texts_longer_than_the_context_are_told(room: Path):
    told = refused(room, "--init", str(room / "before"), "--set", "data.longest=200")
    assert "data.longest is 200, the model's context 128" in told


def test_a_work_folder_of_another_start_is_not_gone_on_in(room: Path):
    """The tokenizer that lies there would be another one than the weights'."""
    (room / "out.work").mkdir()
    (room / "out.work" / "tokenizer.json").write_text(other_tokenizer(room))
    assert "--force starts anew" in refused(room, "--init", str(room / "before"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_stopped_says_how_it_goes_on_and_ends_with_the_same_weights(
    room: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
):
    init, step = ["--init", str(room / "before")], Fit.train_step
    go(room, *init)
    whole = weights(room / "out")
    (room / "out").rename(room / "whole")
    (room / "out.work").rename(room / "whole.work")

    def stopped(fit: Fit) -> tuple[float, int]:
        if fit.step == 7:
            os.kill(os.getpid(), number)
        return step(fit)

    with monkeypatch.context() as patch:
        patch.setattr(Fit, "train_step", stopped)
        told = invoke(room, *init)
    assert told.exit_code == 128 + number
    assert f"stopped; the same command goes on with what is in {room / 'out.work'}" in told.stderr.splitlines()[-1]
    assert not (room / "out").exists()
    go(room, *init)
    assert all(torch.equal(value, whole[name]) for name, value in weights(room / "out").items())


def test_a_model_that_is_there_is_not_written_over(room: Path):
    (room / "before").rename(room / "out")
    assert "out exists (--force" in refused(room)
    (room / "out" / "config.json").unlink()
    assert "holds no config.json: --force does not replace it" in refused(room, "--force")
