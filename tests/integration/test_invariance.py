"""Committed tokens equal plain decoding, whatever drafts, batch-mates, network and crashes do.

The schedules come from hypothesis through the simulator: every order of drafting, delivering, stepping, cutting and
restarting can be played, and a failing one is shrunk.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.engine.exactness import agreeing_buckets
from outrider_cloud.engine.runner import ModelRunner
from outrider_cloud.generate import generate
from outrider_cloud.kernels.platform import cpu_platform
from outrider_cloud.model.weights import Weights
from outrider_edge.session.events import GenerateRequest, Pace
from outrider_edge.session.policy import DraftPolicy
from outrider_shared.drafting.drafter import ModelDrafter
from outrider_shared.drafting.runtime import DraftModel
from outrider_shared.grammar import Grammar, json_schema, regex
from outrider_shared.packs import bundled_pack
from outrider_shared.sampling import SamplingParams
from support.drafters import AdversarialDrafter, CloudRounds, OracleDrafter, RandomDrafter
from support.grammars import matcher_of
from support.models import bundled_target, loaded, third_party
from support.simulator import RecordingEngine, Simulation

if TYPE_CHECKING:
    from collections.abc import Callable

    from outrider_cloud.model.loading import LoadedModel
    from outrider_shared.drafting.drafter import Drafter

CASES = int(os.environ.get("OUTRIDER_INVARIANCE_CASES", "120"))
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 1.0, 1.3]),
    top_k=st.sampled_from([0, 0, 5, 40]),
    top_p=st.sampled_from([1.0, 1.0, 0.8]),
    min_p=st.sampled_from([0.0, 0.0, 0.05]),
    seed=st.integers(0, 2**64 - 1),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.7, -0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.4]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
    logit_bias=st.dictionaries(st.integers(0, 96), st.sampled_from([-100.0, 3.5]), max_size=2),
)
LISTS = json_schema({"type": "array", "items": {"type": "integer"}, "minItems": 2})
WORDS = regex("([a-z]{2,5}[ ,]){2,6}[A-Z]+")
PERSON = json_schema({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]})
POLICIES = st.builds(
    DraftPolicy,
    depth=st.integers(1, 7),
    width=st.integers(1, 3),
    stop_survival=st.sampled_from([0.0, 0.3]),
    sibling_survival=st.sampled_from([0.0, 0.12]),
    bursts_ahead=st.integers(0, 2),
)


def configs(*, exact: bool) -> st.SearchStrategy[EngineConfig]:
    """Engines with buckets, budgets, blocks and KV memory of all sizes, down to ones that must preempt."""
    return st.builds(
        EngineConfig,
        exact=st.just(exact),
        buckets=st.sampled_from([(4,), (8,), (16,), (4, 8, 16)]),
        row_budget=st.sampled_from([3, 8, 64]),
        kv_tokens=st.sampled_from([128, 192, 1024]),
        block_size=st.sampled_from([4, 16]),
        max_draft_rows=st.sampled_from([1, 4, 16]),
        prefill_share=st.sampled_from([0.2, 0.5, 1.0]),
    )


def requests(vocabulary: int, longest_prompt: int, most_tokens: int) -> st.SearchStrategy[GenerateRequest]:
    """Prompts of random tokens with parameters of every kind."""
    return st.builds(
        GenerateRequest,
        prompt=st.lists(st.integers(0, vocabulary - 1), min_size=1, max_size=longest_prompt).map(tuple),
        max_tokens=st.integers(1, most_tokens),
        params=PARAMS,
        pace=st.sampled_from(list(Pace)),
        ignore_eos=st.booleans(),
        min_tokens=st.sampled_from([0, 0, 1]),
        logprobs=st.just(True),
        top_logprobs=st.sampled_from([0, 2]),
        cloud_drafts=st.booleans(),
    )


def structured(
    wanted: list[tuple[GenerateRequest, DraftPolicy]], grammar: Grammar | None
) -> list[tuple[GenerateRequest, DraftPolicy]]:
    """The first request with a grammar."""
    (request, policy), *others = wanted
    return [(replace(request, grammar=grammar, ignore_eos=False, min_tokens=0), policy), *others]


def play(
    model: LoadedModel,
    config: EngineConfig,
    wanted: list[tuple[GenerateRequest, DraftPolicy]],
    make_drafter: Callable[[int, GenerateRequest, list[int]], Drafter],
    choose: Callable[[int], int],
    *,
    faults: int,
    split: bool,
    in_the_cloud: bool = False,
) -> None:
    """Decode plainly, then through the simulated network, and compare tokens and (in exact mode) logits."""
    runner = ModelRunner(model, cpu_platform(exact=config.exact), config)
    if config.exact:
        runner.buckets = agreeing_buckets(runner)
    rounds = CloudRounds() if in_the_cloud else None
    simulation = Simulation(runner, config, choose, faults, split=split, draft_model=rounds)
    plain = []
    for number, (request, policy) in enumerate(wanted):
        engine = RecordingEngine(runner, config, lambda: 0.0)
        answer = generate(
            engine, request.prompt, request.params, request.max_tokens, ignore_eos=request.ignore_eos,
            logprobs=request.logprobs, top_logprobs=request.top_logprobs, min_tokens=request.min_tokens,
            matcher=matcher_of(request.grammar, model),
        )  # fmt: skip
        plain.append((answer, {position: row for (_, position), row in engine.rows.items()}))
        drafter = make_drafter(number, request, [*request.prompt, *answer.tokens])
        simulation.add(f"session-{number}", request, drafter, policy)
        if rounds is not None:
            rounds.drafters[f"session-{number}"] = make_drafter(number, request, [*request.prompt, *answer.tokens])
    simulation.run()
    for device, (answer, rows) in zip(simulation.devices, plain, strict=True):
        assert device.state.committed == answer.tokens
        assert device.shown == answer.tokens
        for token, entry in zip(device.told, answer.logprobs, strict=True):
            assert token.logprob == pytest.approx(entry.logprob, rel=1e-3, abs=1e-3)
            assert len(token.top) == device.request.top_logprobs
        if config.exact:
            for position, row in rows.items():
                assert torch.equal(simulation.rows[device.session_id, position], row)
        simulation.engine.close(device.session_id)
    simulation.engine.pool.check()
    assert simulation.engine.pool.used == 0


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "natural"])
@settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_drafter_any_schedule_any_fault_gives_plain_tokens(tiny, exact, data):
    """Random, lying, adversarial drafters on both sides, splits, delays, cuts, restarts, tiny KV: the same tokens."""
    play_anything(tiny, data, exact=exact)


@settings(max_examples=CASES // 4, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_target_with_int8_matrices_keeps_the_same_promises(tiny_folder, data):
    """Exact rows and plain tokens; what int8 changes, it changes for every schedule alike."""
    play_anything(loaded(tiny_folder, Weights.INT8), data, exact=True)


def play_anything(tiny: LoadedModel, data: st.DataObject, *, exact: bool) -> None:
    """One course of anything that may happen."""
    config = data.draw(configs(exact=exact))
    wanted = data.draw(st.lists(st.tuples(requests(97, 60, 40), POLICIES), min_size=1, max_size=3))
    wanted = structured(wanted, data.draw(st.sampled_from([None, LISTS, WORDS])))
    kinds = data.draw(st.lists(st.sampled_from(["random", "adversarial", "right", "lying"]), min_size=3, max_size=3))
    random = data.draw(st.randoms(use_true_random=False))

    def make_drafter(number: int, _: GenerateRequest, answer: list[int]) -> Drafter:
        kind = kinds[number]
        if kind == "random":
            return RandomDrafter(number, 97)
        if kind == "adversarial":
            return AdversarialDrafter(97, answer)
        return OracleDrafter(number, 97, answer, lies=0.0 if kind == "right" else 0.3)

    play(
        tiny,
        config,
        wanted,
        make_drafter,
        random.randrange,
        faults=data.draw(st.integers(0, 4)),
        split=data.draw(st.booleans()),
        in_the_cloud=data.draw(st.booleans()),
    )


def _real_pair(name: str) -> tuple[LoadedModel, DraftModel]:
    if name == "bundled":
        return bundled_target(), DraftModel.load(bundled_pack())
    from outrider_cloud.pack.export import Request, export_pack
    from outrider_shared.packs import Precision

    global _STORIES  # noqa: PLW0603 - exported once per run
    if _STORIES is None:
        import tempfile
        from pathlib import Path

        out = Path(tempfile.mkdtemp()) / "pack"
        export_pack(Request(third_party("draft-stories-260k"), out, Precision.FP32, "", "", "", force=True))
        _STORIES = DraftModel.load(out)
    return loaded(third_party("target-stories-3m")), _STORIES


_STORIES: DraftModel | None = None


@pytest.mark.parametrize("pair", ["bundled", "stories"])
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "natural"])
@settings(max_examples=max(4, CASES // 8), deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_real_drafter_over_a_broken_network_gives_plain_tokens(pair, exact, data):
    """Trained pairs with the real drafter: the same tokens, and in exact mode the same logits, bit for bit."""
    model, draft = _real_pair(pair)
    config = data.draw(configs(exact=exact))
    wanted = data.draw(st.lists(st.tuples(requests(model.vocabulary, 40, 24), POLICIES), min_size=1, max_size=2))
    if pair == "bundled":
        wanted = structured(wanted, data.draw(st.sampled_from([None, PERSON])))
    random = data.draw(st.randoms(use_true_random=False))
    play(
        model, config, wanted, lambda *_: ModelDrafter(draft.new_runtime()), random.randrange,
        faults=data.draw(st.integers(0, 3)), split=data.draw(st.booleans()),
    )  # fmt: skip
