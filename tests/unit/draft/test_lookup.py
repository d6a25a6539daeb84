"""Prompt lookup, and the mix with a model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outrider_edge.draft.lookup import LookupDrafter
from outrider_edge.draft.mixed import MixedDrafter
from outrider_shared.sampling import SamplingParams
from outrider_shared.sampling.rule import Guess

GREEDY = SamplingParams()


def naive(tokens: list[int]) -> tuple[int, int] | None:
    for length in range(6, 1, -1):
        for place in range(len(tokens) - length - 1, -1, -1):
            if tokens[place : place + length] == tokens[-length:]:
                return tokens[place + length], length
    return None


@given(st.lists(st.sampled_from([0, 1, 2, 256, 65536, 16777216]), max_size=40))
def test_lookup_finds_the_latest_longest_run(tokens):
    """The byte search equals a naive search, also for ids whose bytes overlap across item borders."""
    found = LookupDrafter().propose(tokens, GREEDY, 2)
    assert (None if found is None else (found.tokens[0], int(found.margin))) == naive(tokens)


class Fixed:
    """Says one thing, and counts how often it is asked."""

    def __init__(self, *tokens: int, source: str = "model"):
        self._guess = Guess(tokens, (0.0,) * len(tokens), 1.0, source) if tokens else None
        self.asked = 0

    def propose(self, tokens, params, width):
        self.asked += 1
        return self._guess


def mixed(cheap: Fixed, dear: Fixed, trust: dict[str, float]) -> Guess | None:
    return MixedDrafter(cheap, dear, lambda guess: trust[guess.source]).propose([1], GREEDY, 3)


def test_sure_lookup_saves_the_models_pass():
    dear = Fixed(7)
    guess = mixed(Fixed(5, source="lookup"), dear, {"lookup": 0.95, "model": 0.5})
    assert guess.tokens == (5,)
    assert dear.asked == 0


def test_more_trusted_guess_leads_and_the_other_is_its_sibling():
    trust = {"lookup": 0.4, "model": 0.6}
    guess = mixed(Fixed(5, source="lookup"), Fixed(7, 8), trust)
    assert (guess.tokens, guess.source) == ((7, 5, 8), "model")
    guess = mixed(Fixed(5, source="lookup"), Fixed(7, 8), {"lookup": 0.7, "model": 0.6})
    assert (guess.tokens, guess.source) == ((5, 7, 8), "lookup")


def test_agreement_of_both_is_no_sibling():
    guess = mixed(Fixed(7, source="lookup"), Fixed(7, 8), {"lookup": 0.4, "model": 0.6})
    assert guess.tokens == (7, 8)


def test_one_silent_drafter_leaves_the_word_to_the_other():
    assert mixed(Fixed(), Fixed(7), {"model": 0.5}).tokens == (7,)
    assert mixed(Fixed(5, source="lookup"), Fixed(), {"lookup": 0.5}).tokens == (5,)
    assert mixed(Fixed(), Fixed(), {}) is None
