"""A draft model's folder beside a target on a GPU: computed there if there are kernels, else on the processor."""

from __future__ import annotations

import contextlib

import pytest
import torch
from structlog.testing import capture_logs

from outrider_cloud.drafts.build import build_draft
from outrider_cloud.drafts.model import Ask, DraftModel
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.engine.cuda_runner import CudaRunner
from outrider_cloud.engine.runner import ModelRunner
from outrider_cloud.kernels.cuda.platform import cuda_platform
from outrider_cloud.kernels.cuda.sampling import CudaSampler
from outrider_cloud.model.loading import load_model
from outrider_shared.ids import SessionId
from outrider_shared.sampling import SamplingParams
from support.models import write_tiny_model

CONFIG = EngineConfig(kv_tokens=64, row_budget=16, exact=True, buckets=(16,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny model with heads of a size that the kernels have."""
    return write_tiny_model(tmp_path_factory.mktemp("drafts") / "wide", head_dim=64)


@pytest.fixture
def platform(host):
    return cuda_platform(host, CONFIG.block_size, CudaSampler(host, ranks=2, threads=32))


def asks(a_tail, b_tail):
    return [
        Ask(SessionId("a"), [3, 7, 9], a_tail, SamplingParams()),
        Ask(SessionId("b"), list(range(20, 29)), b_tail, SamplingParams(0.9, seed=5)),
    ]


def test_a_folder_guesses_on_the_targets_platform(folder, platform):
    """What the same weights guess on the processor, also after a rollback and where memory is short."""
    target = load_model(folder, torch.bfloat16)
    ours, theirs = build_draft(folder, target, CONFIG, platform), build_draft(target, target, CONFIG)
    assert isinstance(ours._runner, CudaRunner)
    assert type(theirs._runner) is ModelRunner
    assert ours._runner.loaded.dtype == torch.bfloat16
    questions = [asks([1, 2], []), asks([1, 5], [4]), asks([], [4, 4])]
    questions.append([Ask(SessionId("c"), list(range(40, 56)), [], SamplingParams())])
    questions.append(asks([1], [4, 4, 5]))
    for question in questions:
        for told, expected in zip(ours.guess(question, 2), theirs.guess(question, 2), strict=True):
            assert told.tokens[0] == expected.tokens[0] or expected.margin < 0.1
            assert told.margin == pytest.approx(expected.margin, abs=0.1)


def test_a_folder_without_kernels_guesses_on_the_processor(folder, tiny_folder, platform):
    """And the log says why; so does one that has no room."""
    target = load_model(folder, torch.bfloat16)
    with capture_logs() as logs:
        draft = build_draft(tiny_folder, target, CONFIG, platform)
    assert type(draft._runner) is ModelRunner
    assert draft.guess(asks([], []), 1)[0] is not None
    (log,) = logs
    assert log["event"] == "the draft model drafts on the processor instead of the GPU"
    assert "no head size" in log["reason"]


def test_each_forward_enters_the_drafts_own_stream(folder, platform):
    """Whichever thread asks, so that nothing waits behind the target's step."""
    entered = []

    @contextlib.contextmanager
    def stream():
        entered.append("in")
        yield
        entered.append("out")

    runner = build_draft(folder, load_model(folder, torch.bfloat16), CONFIG, platform)._runner
    draft = DraftModel(runner, CONFIG, stream=stream)
    draft.guess(asks([], []), 1)
    draft.guess(asks([1], []), 1)
    assert entered == ["in", "out"] * 2
