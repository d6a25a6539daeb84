"""What a listener on the network sees of padded sessions, in virtual time: every block, to the microsecond."""

from __future__ import annotations

import itertools

import pytest

from outrider_edge.bench import methods
from outrider_shared.emulator.profile import LinkProfile
from outrider_shared.padding import Padding
from support.virtual import Scenario, StepCost, simulate
from support.virtual.pair import recorded

PADDING = Padding()
# The end of the stream, as the twin of the transport counts it.
END = 14


def listen(first: int, padding: Padding | None = PADDING, name: str = "ours-auto", **more) -> dict:
    """One answer, and what was heard meanwhile: (seconds, bytes) of each message, up and down."""
    link = LinkProfile(0.03)
    how = methods.method(name)
    return simulate(Scenario(how, link, StepCost(0.025), answers=1, first=first, padding=padding, **more))


def rounded(heard):
    return [[(round(at, 6), size) for at, size in way] for way in heard]


def alike() -> list[int]:
    """Answers whose prompts are of one class of size; their lengths and drafts differ."""
    answers = recorded().answers
    return [n for n in range(len(answers)) if len(answers[n].prompt) < 150][:6]


@pytest.mark.parametrize("name", ["ours-auto", "ours-hold", "plain"])
def test_sizes_and_times_tell_nothing_of_the_answer(name):
    """Different answers, with different drafts accepted, of different lengths: the same blocks at the same times."""
    figures = {n: listen(n, name=name) for n in alike()}
    assert len({f["tokens"] for f in figures.values()}) > 1, "answers of different lengths"
    by_rounds: dict[int, list] = {}
    for figure in figures.values():
        up, down = rounded(figure["heard"][0])
        assert {size for _, size in down} == {down[0][1], END}
        assert len({size for _, size in up[1:]}) == 1, "all but the opening"
        blocks = [at for at, size in down if size == down[0][1]]
        assert len(blocks) % PADDING.round_blocks == 0
        assert all(b - a == pytest.approx(PADDING.interval_s) for a, b in itertools.pairwise(blocks))
        by_rounds.setdefault(len(down), []).append((up, down))
    assert max(len(same) for same in by_rounds.values()) > 1, "several answers of as many rounds"
    for same in by_rounds.values():
        assert all(other == same[0] for other in same)


def test_without_padding_every_answer_sounds_different():
    """The listener of the test above is not deaf."""
    heard = [str([[size for _, size in way] for way in listen(n, None)["heard"][0]]) for n in alike()]
    assert len(set(heard)) == len(heard)


def test_how_busy_the_cloud_is_does_not_show():
    """The schedule is fixed when the stream begins: quick steps and slow ones give the same blocks."""
    fast, slow = (rounded(simulate(Scenario(
        methods.method("ours-ahead"), LinkProfile(0.03), StepCost(step), answers=1, padding=PADDING))["heard"][0])
        for step in (0.005, 0.015))  # fmt: skip
    count = min(len(fast[1]), len(slow[1])) - 1
    assert fast[1][:count] == slow[1][:count]


def test_the_text_is_the_unpadded_one_and_the_wait_is_bounded():
    """Padding changes no token; each way a message waits for at most one block."""
    for n in alike()[:3]:
        plain, padded = listen(n, None, "plain"), listen(n, PADDING, "plain")
        assert padded["texts"] == plain["texts"] == listen(n)["texts"]
        waits = (padded["answers"][0].times[-1][0] - plain["answers"][0].times[-1][0]) / PADDING.interval_s
        assert -0.01 <= waits <= 2.0


def test_bytes_are_counted_as_they_are_sent():
    """Totals of a padded answer count blocks, full or empty."""
    figure = listen(0)
    up, down = figure["heard"][0]
    totals = figure["answers"][0].totals
    assert totals.uplink_bytes == sum(size for _, size in up)
    # Those after the answer's end are counted by nobody.
    read = sum(size for at, size in down if at + 0.015 <= figure["answers"][0].times[-1][0])
    assert read <= totals.downlink_bytes <= read + 2 * down[0][1]
