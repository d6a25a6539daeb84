"""What quantising or pruning does to a target is told beside the target as it was."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from click.testing import CliRunner

from outrider_cloud.model.plain import plain_model
from outrider_pair.quality import compare, quality
from outrider_shared.errors import MismatchError
from unit.train.toys import toy_model, write_folder

if TYPE_CHECKING:
    from pathlib import Path

PROMPTS = [[5 + n, 7, 9] for n in range(6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy whose choices are not near-ties."""
    model = toy_model(0, hidden=32)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(8)
    return write_folder(model, tmp_path_factory.mktemp("models") / "toy")


def judged(folder: Path, tmp_path: Path, *arguments: str) -> dict[str, Any]:
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a dog sees"}\n{"prompt": "the cat likes"}\n{"prompt": "my bird"}\n')
    flags = ["--model", str(folder), "--data", str(data), "--max-tokens", "12", "--json", *arguments]
    told = CliRunner().invoke(quality, flags, catch_exceptions=False)
    assert told.exit_code == 0, told.output
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def test_a_target_is_as_good_as_itself(folder: Path):
    model = plain_model(str(folder))
    figures = compare(model, model, PROMPTS, 8, frozenset())
    assert figures["places"] == 48
    assert (figures["tv"], figures["greedy_agreement"]) == (0, 1)
    assert figures["perplexity"] == figures["perplexity_against"]


def test_the_continuation_is_the_bases_and_costs_the_other_more(folder: Path, tmp_path: Path):
    """Each side as the base once: a model finds its own greedy text likelier than one that says the opposite."""
    turned = plain_model(str(folder))
    with torch.no_grad():
        turned.model.norm.weight.neg_()
    other = write_folder(turned, tmp_path / "other")
    sides = [plain_model(str(each)) for each in (folder, other)]
    for base, beside in (sides, sides[::-1]):
        figures = compare(base, beside, PROMPTS, 8, frozenset())
        assert figures["perplexity"] > figures["perplexity_against"]
        assert figures["tv"] > 0.1
        assert figures["greedy_agreement"] == 0


def test_an_end_token_ends_a_continuation(folder: Path):
    model = plain_model(str(folder))
    everything = frozenset(range(300))
    assert compare(model, model, PROMPTS, 8, everything)["places"] == len(PROMPTS)


def test_int8_weights_change_little_and_something(folder: Path, tmp_path: Path):
    figures = judged(folder, tmp_path)
    assert figures["weights"] == "int8"
    assert 0 < figures["tv"] < 0.1
    assert figures["greedy_agreement"] > 0.8
    assert figures["fingerprint"] != judged(folder, tmp_path, "--weights", "native")["fingerprint"]


def test_another_tokenizer_is_refused(folder: Path, tmp_path: Path, tiny_folder: Path):
    with pytest.raises(MismatchError, match="different tokenizers"):
        judged(folder, tmp_path, "--against", str(tiny_folder))
