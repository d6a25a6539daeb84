"""The bundled pair's texts as training takes them, and a target of its kind made by the command."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer

from outrider_cloud.train.cli import train
from outrider_cloud.train.home.source import HomeSource
from outrider_cloud.train.home.texts import read_texts
from outrider_cloud.train.loop.folders import read_model
from outrider_cloud.train.texts.chat import render
from outrider_cloud.train.texts.vocabulary import train_vocabulary
from unit.train.rows import write_home_data

if TYPE_CHECKING:
    from pathlib import Path

SMALL = {
    "vocabulary": 320, "tokens_per_batch": 900, "data.passes": 1, "model.hidden_size": 32, "model.num_hidden_layers": 2,
    "model.num_attention_heads": 2, "model.num_key_value_heads": 1, "model.head_dim": 16, "model.intermediate_size": 48,
    "fit.warmup_steps": 2, "fit.validate_every": 50,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_home_data(tmp_path_factory.mktemp("home"), 150)


@pytest.fixture(scope="module")
def source(data: Path) -> HomeSource:
    texts = read_texts(data)
    return HomeSource(texts, train_vocabulary((render(chat) for chat in texts.chats(0)), 320))


def test_no_held_out_request_is_learned_or_prompted_with(source: HomeSource):
    """Whatever the pass, its houses and its invented names."""
    asked = [f"<|user|>{row.request.lower()}<|end|>" for row in source.texts.held_out]
    shown = [f"<|user|>{row.request.lower()}<|end|>" for row in source.texts.home[:20]]
    texts = [text(source, example.ids.tolist()) for part in range(2) for example in source.examples(part)]
    texts += [text(source, ids) for ids in islice(source.prompts(), 200)]
    assert asked
    assert not [each for each in texts for request in asked if request in each]
    assert any(request in each for each in texts for request in shown)


def text(source: HomeSource, ids: list[int]) -> str:
    return source.tokenizer.decode(ids, skip_special_tokens=False).lower()


def test_houses_differ_from_pass_to_pass_and_stay_within_one(source: HomeSource):
    first, again, other = ([e.ids.tolist() for e in source.examples(part)] for part in (0, 0, 1))
    assert first == again != other


def test_a_prompt_ends_where_the_assistant_begins(source: HomeSource):
    for ids in [*islice(source.prompts(), 50), *source.held_out_prompts()]:
        assert text(source, ids).endswith("<|assistant|>")


def test_a_target_like_the_bundled_one_is_made_by_the_command(data: Path, tmp_path: Path):
    """Its own tokenizer and template, weights in bfloat16, the held-out loss beside them."""
    out = tmp_path / "target"
    command = ["target", "--config", "bundled-target", "--data", str(data), "--out", str(out), "--steps", "12"]
    for key, value in SMALL.items():
        command += ["--set", f"{key}={value}"]
    told = CliRunner().invoke(train, command, catch_exceptions=False)
    assert told.exit_code == 0, told.output
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert Tokenizer.from_file(str(out / "tokenizer.json")).get_vocab_size() == 320
    assert "<|assistant|>" in (out / "chat_template.jinja").read_text()
    assert 0 < json.loads((out / "training.json").read_text())["valid"] < 6
    assert read_model(out).config.eos_token_id == 1
