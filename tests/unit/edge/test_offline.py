"""Without the cloud: the chosen behaviour within `offline_after`, and nothing unverified that passes for verified."""

from __future__ import annotations

import pytest

from outrider_edge.link.backoff import Backoff
from outrider_edge.session.events import (
    Finished,
    GenerateRequest,
    Offline,
    Online,
    Origin,
    Retracted,
    Settling,
    Token,
    Tokens,
    Unverified,
    Verified,
)
from outrider_edge.session.generate import Client
from outrider_edge.session.line import Liveness
from outrider_edge.session.offline import Alone, OfflineMode, OfflinePolicy
from outrider_shared.emulator.profile import LinkProfile
from outrider_shared.errors import ConfigError, UnavailableError
from outrider_shared.sampling import SamplingParams
from support.virtual.clock import Passes, virtual_time
from support.virtual.cloud import StepCost
from support.virtual.faults import FaultyCloud, FaultyNetwork
from support.virtual.pair import PairDrafter, recorded

AFTER_S, PASS_S = 0.5, 0.002


def answer(mode: OfflineMode, act, *, settle_s: float = 1e6, drafts: bool = True, pair=None):
    """Events with their times of one answer; `act(network, loop)` may plan what happens to the link."""
    pair = pair or recorded()

    async def run(loop):
        cloud = FaultyCloud(loop, pair, StepCost(0.03))
        network = FaultyNetwork("cloud", cloud, LinkProfile(0.02), 0)
        client = Client(
            network, pair.vocabulary, "00" * 32, (lambda: PairDrafter(pair)) if drafts else None,
            backoff=Backoff(0.05, 0.2), liveness=Liveness(0.2, 1.0), runner=Passes(PASS_S),
            offline=OfflinePolicy(mode, AFTER_S, settle_s), eos=frozenset({pair.eos}),
        )  # fmt: skip
        act(network, loop)
        events = []
        try:
            request = GenerateRequest(pair.answers[0].prompt, 40, SamplingParams(0.0, seed=0), ignore_eos=True)
            async for event in client.generate(request):
                events += [(loop.time(), event)]
        except UnavailableError as error:
            events.append((loop.time(), error))
        cloud.stop()
        return events, network

    with virtual_time() as loop:
        return loop.run_until_complete(run(loop))


def lose_all(at: float, back: float | None = None):
    """From `at` on nothing passes, until `back`."""

    def act(network, loop):
        def lose():
            network.cloud.away_until = 1e9 if back is None else back
            network.fault("swallow", None)

        loop.call_later(at, lose)

    return act


def last_heard(events, at: float) -> float:
    return max((time for time, event in events if isinstance(event, Tokens) and time <= at + 0.05), default=0.0)


def kinds(events) -> list[str]:
    return [type(event).__name__ for _, event in events]


@pytest.mark.parametrize("mode", [*OfflineMode])
def test_at_total_loss_the_chosen_behaviour_comes_within_offline_after(mode):
    """From the last word of the cloud on, `offline_after` and one draft pass at most."""
    events, _ = answer(mode, lose_all(0.1, back=5.0))
    heard = last_heard(events, 0.1)
    expected = {OfflineMode.ERROR: UnavailableError, OfflineMode.WAIT: Offline, OfflineMode.DRAFT: Unverified}[mode]
    first = next(time for time, event in events if isinstance(event, expected))
    # A ping under way may have been answered after the last commit.
    assert first <= max(heard, 0.1) + 0.02 + AFTER_S + PASS_S + 0.01


def test_a_cloud_that_was_never_there_is_no_different():
    """No connection at all: the device answers alone from the start."""
    events, _ = answer(OfflineMode.DRAFT, lose_all(0.0), settle_s=1.0)
    assert kinds(events)[-1] == "Finished"
    last = events[-1][1]
    assert last.reason == "unverified"
    assert last.totals.unverified == 40
    assert not any(isinstance(event, Tokens) for _, event in events)


def test_a_complete_answer_waits_for_the_cloud_only_so_long():
    """With nobody to verify it, the answer ends as what it is: unverified."""
    events, _ = answer(OfflineMode.DRAFT, lose_all(0.1), settle_s=2.0)
    alone_end = max(time for time, event in events if isinstance(event, Unverified))
    assert events[-1][1].reason == "unverified"
    assert events[-1][0] == pytest.approx(alone_end + 2.0, abs=0.05)
    assert [event for _, event in events if isinstance(event, Settling)] == [Settling(2.0)]
    told = next(time for time, event in events if isinstance(event, Settling))
    assert told == pytest.approx(alone_end, abs=0.05)


def test_tokens_drafted_alone_are_verified_or_taken_back_when_the_cloud_returns():
    """After the outage: `Online`, then each unverified token becomes the cloud's own or goes."""
    events, _ = answer(OfflineMode.DRAFT, lose_all(0.15, back=1.5))
    names = kinds(events)
    assert names.index("Offline") < names.index("Unverified") < names.index("Online")
    assert {"Verified", "Retracted"} & set(names)
    shown = sum(len(event.tokens) for _, event in events if isinstance(event, Unverified))
    settled = sum(len(e.tokens) for _, e in events if isinstance(e, Verified))
    settled += sum(event.count for _, event in events if isinstance(event, Retracted))
    assert shown == settled > 0
    assert isinstance(events[-1][1], Finished)
    assert events[-1][1].totals.unverified == 0


def test_a_busy_cloud_is_not_an_absent_one():
    """A step that takes far longer than `offline_after` is no outage: pings are answered beside it."""

    def slow(network, loop):
        network.cloud.runner._cost = StepCost(2.0)

    events, _ = answer(OfflineMode.ERROR, slow, drafts=False)
    assert isinstance(events[-1][1], Finished)
    assert "Reconnecting" not in kinds(events)


def test_waiting_without_end_goes_on_when_the_cloud_is_back():
    """`wait` says that it waits, and finishes hours later."""
    events, _ = answer(OfflineMode.WAIT, lose_all(0.1, back=7200.0))
    assert kinds(events).count("Offline") == 1
    assert any(isinstance(event, Online) for _, event in events)
    assert isinstance(events[-1][1], Finished)
    assert not any(isinstance(event, Unverified) for _, event in events)


def test_drafting_alone_needs_a_drafter():
    """A plain device has nothing to go on with: it fails as with `error`."""
    events, _ = answer(OfflineMode.DRAFT, lose_all(0.1), drafts=False)
    assert isinstance(events[-1][1], UnavailableError)


def tokens(*ids: int) -> list[Token]:
    return [Token(i, Origin.CLOUD) for i in ids]


SETTLED = {
    "all agree, more follows": ([5, 6], [5, 6, 7], False, [Verified, Tokens], []),
    "some agree, more to come": ([5, 6, 7], [5], False, [Verified], [6, 7]),
    "a wrong one takes all behind it": ([5, 6, 7], [5, 9], False, [Verified, Retracted, Tokens], []),
    "the first is wrong": ([5, 6], [9], False, [Retracted, Tokens], []),
    "the cloud ends earlier": ([5, 6], [5], True, [Verified, Retracted], []),
    "nothing was shown": ([], [5], False, [Tokens], []),
}


@pytest.mark.parametrize("name", SETTLED)
def test_what_a_commit_makes_of_unverified_tokens(name):
    """Agreeing tokens are verified, all from the first disagreement on are taken back, the rest is new."""
    shown, committed, finished, events, left = SETTLED[name]
    alone = Alone(GenerateRequest((1,), 40))
    alone.extend([(token, None) for token in shown], 0)
    assert [type(e) for e in alone.settle(tokens(*committed), finished=finished)] == events
    assert alone.tokens == left


def test_an_answer_alone_ends_where_the_answer_would():
    """At an end token, at a stop token, at the most tokens; and end tokens are passed where the request says so."""
    drafts = [(token, None) for token in (7, 8, 2, 9)]
    for request, eos, expected in (
        (GenerateRequest((1,), 40), {2}, [7, 8, 2]),
        (GenerateRequest((1,), 40, stop=(8,)), {2}, [7, 8]),
        (GenerateRequest((1,), 3), {99}, [7, 8, 2]),
        (GenerateRequest((1,), 40, ignore_eos=True), {2}, [7, 8, 2, 9]),
    ):
        alone = Alone(request, frozenset(eos))
        alone.begin(0)
        alone.extend(drafts, 0)
        assert alone.tokens == expected


@pytest.mark.parametrize("make", [lambda: OfflinePolicy(after_s=-1), lambda: Liveness(2.0, 1.0), lambda: Backoff(0)])
def test_settings_out_of_range_are_refused(make):
    """A policy that cannot be kept is a configuration error."""
    with pytest.raises(ConfigError):
        make()
