"""A pack's draft model beside the target: what devices would guess, for many sessions, in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from outrider_cloud.drafts.build import build_draft
from outrider_cloud.drafts.model import READING, Ask, DraftModel
from outrider_cloud.drafts.packed import PackedDraftModel
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.model.loading import BUNDLED, bundled_draft, bundled_model, load_model
from outrider_shared.drafting.drafter import ModelDrafter
from outrider_shared.drafting.runtime import DraftModel as PackModel
from outrider_shared.errors import MismatchError
from outrider_shared.ids import SessionId
from outrider_shared.packs import bundled_pack
from outrider_shared.sampling import SamplingParams
from support.rig import GREEDY

if TYPE_CHECKING:
    from outrider_cloud.model.loading import LoadedModel

SHORT, LONG = [5, 9, 300, 12, 77, 8], [1 + i % 900 for i in range(150)]


@pytest.fixture(scope="module")
def weights() -> PackModel:
    return PackModel.load(bundled_pack())


@pytest.fixture(scope="module")
def target() -> LoadedModel:
    return load_model(bundled_model(), check=False)


def ask(name: str, log: list[int], tail: tuple[int, ...] = (), params: SamplingParams = GREEDY) -> Ask:
    return Ask(SessionId(name), log, list(tail), params)


def answer(model: PackedDraftModel, question: Ask):
    """Asked again until it has read."""
    while (guess := model.guess([question], 2)[0]) is READING:
        pass
    return guess


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(0.9, seed=5), SamplingParams(0.0, frequency_penalty=1.0)])
def test_it_guesses_what_a_device_guesses(weights: PackModel, params: SamplingParams):
    """On branches, too, after a rollback, beside other sessions, and where memory is for one session only."""
    for kv_tokens in (100_000, 1):
        model = PackedDraftModel(weights, kv_tokens)
        for name, tail in (("a", ()), ("b", ()), ("a", (4,)), ("a", (6, 7)), ("b", (1,)), ("a", (4, 9))):
            question = ask(name, SHORT, tail, params)
            told = answer(model, question)
            anew = ModelDrafter(weights.new_runtime()).propose([*SHORT, *tail], params, 2)
            # The pack's activations are quantised together, so logits differ a little by what shares a pass.
            assert told.margin == pytest.approx(anew.margin, abs=0.25)
            assert told.tokens[0] == anew.tokens[0] or told.margin < 0.25
        assert len(model._drafters) == (2 if kv_tokens > 1 else 1)


def test_a_long_text_is_read_in_pieces_and_told_beforehand(weights: PackModel):
    model = PackedDraftModel(weights, 100_000)
    question = ask("a", LONG)
    assert [model.guess([question], 1)[0] is READING for _ in range(3)] == [True, True, False]
    assert model.reading_s(question) == 0.0
    assert model.reading_s(ask("b", LONG)) > model.reading_s(ask("b", LONG[:30])) > 0.0
    # What is asked again costs a pass, which is what a round is made of.
    assert model.guess([ask("a", LONG, (3,))], 1)[0] is not READING
    assert model.seconds(4) == 4 * model.seconds(1) > 0.0


def test_beyond_its_context_it_has_nothing_to_say(weights: PackModel):
    model = PackedDraftModel(weights, 100_000)
    assert model.guess([ask("a", [1] * (weights.default_capacity + 1))], 1) == [None]


def test_a_session_that_ended_is_forgotten(weights: PackModel):
    model = PackedDraftModel(weights, 100_000)
    answer(model, ask("a", SHORT))
    model.forget(SessionId("a"))
    model.forget(SessionId("never"))
    assert not model._drafters


def test_a_pack_drafts_by_onnx_runtime_and_a_folder_by_the_paged_model(target: LoadedModel):
    for draft, kind in ((BUNDLED, PackedDraftModel), (bundled_pack(), PackedDraftModel), (bundled_draft(), DraftModel)):
        assert isinstance(build_draft(draft, target, EngineConfig(kv_tokens=1024)), kind)


def test_a_pack_of_other_tokens_is_refused(tiny: LoadedModel):
    with pytest.raises(MismatchError, match="vocabulary"):
        build_draft(BUNDLED, tiny, EngineConfig())
