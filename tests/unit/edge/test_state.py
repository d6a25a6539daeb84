"""The session's state on the device: bursts, commits, and what a commit makes of drafts that were not sent yet."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_edge.session.events import GenerateRequest, Origin, Pace
from outrider_edge.session.plan import Action, plan
from outrider_edge.session.policy import DraftPolicy
from outrider_edge.session.state import SessionState
from outrider_shared.errors import ConfigError, ParameterError, ProtocolError
from outrider_shared.packing import pack_tokens
from outrider_shared.sampling.rule import Guess
from outrider_wire.v1 import verifier_pb2 as pb

VOCABULARY = 97
SURE = 9.0


def guess(*tokens: int, margin: float = SURE) -> Guess:
    return Guess(tokens, tuple(0.1 * i for i in range(len(tokens))), margin)


def session(max_tokens: int = 40, pace: Pace = Pace.HOLD, asked=None, **policy) -> SessionState:
    request = GenerateRequest((1, 2, 3), max_tokens, pace=pace, **(asked or {}))
    state = SessionState(request, DraftPolicy(**policy), VOCABULARY)
    state.open(pb.Opened(lease=b"l", length=3, context_length=64, max_nodes=64, max_nodes_per_message=64))
    return state


def send_all(state: SessionState) -> None:
    state.mark_sent(state.unsent())
    state.flushed = state.burst_done or state.full


def commit(state: SessionState, tokens: list[int], accepted: int = 0, grow: int | None = None, **fields):
    length = len(state.log) + (grow if grow is not None else len(tokens))
    message = pb.Commit(
        accepted=accepted, tokens=pack_tokens(tokens, VOCABULARY), count=len(tokens), length=length, **fields
    )
    return state.commit(message)


def test_accepted_path_correction_and_bonus_are_told_apart():
    """Each committed token has its origin: accepted drafts, then a bonus; a refused draft gives a correction."""
    state = session(depth=3, stop_survival=0.0, bursts_ahead=0)
    for token in (10, 11, 12):
        state.grow(guess(token))
    send_all(state)
    tokens = commit(state, [13], accepted=3, grow=4)
    assert [(t.id, t.origin) for t in tokens] == [
        (10, Origin.ACCEPTED), (11, Origin.ACCEPTED), (12, Origin.ACCEPTED), (13, Origin.BONUS),
    ]  # fmt: skip
    state.grow(guess(20))
    send_all(state)
    assert [t.origin for t in commit(state, [21])] == [Origin.CORRECTION]
    assert [t.origin for t in commit(state, [22])] == [Origin.CLOUD]
    assert state.log == [1, 2, 3, 10, 11, 12, 13, 21, 22]


def test_drafting_goes_on_below_an_accepted_burst_without_a_rollback():
    """A commit that agrees with the burst ahead leaves the tip where it was."""
    state = session(depth=2, stop_survival=0.0, bursts_ahead=1)
    for token in (10, 11, 12, 13):
        state.grow(guess(token))
    send_all(state)
    assert state.path() == [1, 2, 3, 10, 11, 12, 13]
    commit(state, [12], accepted=2, grow=3)
    assert state.path() == [1, 2, 3, 10, 11, 12, 13]
    assert state.bursts_ahead == 0
    assert len(state.tree.children) == 1


def test_refused_burst_starts_anew_at_the_frontier():
    """A correction kills the drafts below it; the next burst hangs on the log."""
    state = session(depth=4, stop_survival=0.0)
    for token in (10, 11, 12):
        state.grow(guess(token))
    send_all(state)
    commit(state, [50])
    assert state.path() == [1, 2, 3, 50]
    assert plan(state, drafting=True, unsent_s=0.0) is Action.DRAFT
    state.grow(guess(60))
    assert state.tree.node(3).parent is None
    assert state.tree.node(3).position == 4


def test_unsent_nodes_that_died_are_never_sent():
    """Drafts that a commit killed before they left give their numbers to the next ones."""
    state = session(depth=4, stop_survival=0.0)
    state.grow(guess(10))
    send_all(state)
    state.grow(guess(11))
    state.grow(guess(12))
    commit(state, [50])
    assert state.unsent() == []
    state.grow(guess(60))
    assert [node.number for node in state.unsent()] == [1]


def test_siblings_are_sent_while_they_are_worth_it():
    """A doubtful guess brings its second best along, a sure one does not."""
    doubtful, sure = session(depth=4, sibling_survival=0.1), session(depth=4, sibling_survival=0.1)
    doubtful.grow(guess(10, 11, margin=0.1))
    sure.grow(guess(10, 11, margin=9.0))
    assert {n.token for n in doubtful.unsent()} == {10, 11}
    assert {n.token for n in sure.unsent()} == {10}


def test_the_next_pass_goes_to_the_likeliest_open_leaf():
    """A sibling is drafted on below when the best candidate's own path has become less likely, and stands if taken."""
    state = session(depth=9, stop_survival=0.0, sibling_survival=0.0)
    state.grow(guess(10, 11, margin=0.0))
    assert state.path() == [1, 2, 3, 10]
    state.grow(guess(20, margin=0.0))
    assert state.path() == [1, 2, 3, 11]
    state.grow(guess(30, margin=9.0))
    assert state.path() == [1, 2, 3, 11, 30]
    send_all(state)
    assert [node.parent and node.parent.number for node in map(state.tree.node, range(4))] == [None, None, 0, 1]
    commit(state, [], accepted=4, grow=2)
    assert state.log == [1, 2, 3, 11, 30]
    assert state.path() == state.log


def test_a_commit_makes_what_hangs_below_it_likelier():
    """Reach is told from the frontier: a branch that was not worth a pass becomes worth it when its parent is right."""
    state = session(depth=9, stop_survival=0.3)
    state.grow(guess(10, margin=0.0))
    state.grow(guess(20, margin=0.0))
    assert state.burst_done
    send_all(state)
    commit(state, [], accepted=1, grow=1)
    assert not state.burst_done


def test_burst_ends_where_survival_is_low_or_it_is_deep_enough():
    """Bursts are bounded by depth and by the tip's survival."""
    deep, doubtful = session(depth=3, stop_survival=0.0), session(depth=30, stop_survival=0.5)
    for token in range(3):
        assert not deep.burst_done
        deep.grow(guess(10 + token))
    assert deep.burst_done
    steps = 0
    while not doubtful.burst_done:
        doubtful.grow(guess(10 + steps, margin=0.5))
        steps += 1
    assert 1 <= steps <= 3


def test_drafter_without_a_word_ends_the_burst_with_an_empty_message():
    """The cloud need not wait for drafts that will not come."""
    state = session()
    state.grow(None)
    assert plan(state, drafting=True, unsent_s=0.0) is Action.SEND
    send_all(state)
    assert plan(state, drafting=True, unsent_s=0.0) is Action.WAIT
    commit(state, [9])
    assert plan(state, drafting=True, unsent_s=0.0) is Action.DRAFT


def test_nothing_is_drafted_that_could_not_be_committed():
    """The last token is always the target's own: with one token left there is nothing to draft."""
    state = session(max_tokens=1)
    assert state.at_end
    assert plan(state, drafting=True, unsent_s=9.0) is Action.WAIT
    longer = session(max_tokens=3, depth=9, stop_survival=0.0)
    while plan(longer, drafting=True, unsent_s=0.0) is Action.DRAFT:
        longer.grow(guess(5))
    assert len(longer.tree) == 2


def test_a_burst_that_the_clouds_bound_interrupts_is_not_waited_for():
    """The cloud hears that no more comes for now, also where the bound came down behind a promise of more."""
    state = session(max_tokens=500, depth=500, stop_survival=0.0)
    for _ in range(3):
        assert plan(state, drafting=True, unsent_s=0.0) is Action.DRAFT
        state.grow(guess(5))
    state.mark_sent(state.unsent())
    state.flushed = False
    state.max_nodes = state.tree.pending
    assert plan(state, drafting=True, unsent_s=0.0) is Action.SEND
    state.flushed = True
    assert plan(state, drafting=True, unsent_s=0.0) is Action.WAIT


def test_bounds_of_the_cloud_are_kept():
    """No more nodes are pending than the cloud takes, and no message is fuller than it takes."""
    state = session(max_tokens=500, depth=500, stop_survival=0.0, bursts_ahead=9)
    state.max_nodes, state.max_per_message, state.context_length = 10, 4, 600
    while (action := plan(state, drafting=True, unsent_s=0.0)) in {Action.DRAFT, Action.SEND}:
        if action is Action.SEND:
            assert len(state.unsent()) <= 4
            send_all(state)
        else:
            state.grow(guess(5))
    assert state.tree.pending <= 10


BROKEN_COMMITS = {
    "length that does not fit": {"tokens": [5], "grow": 7},
    "node that was never sent": {"tokens": [], "accepted": 9, "grow": 1},
    "log-probabilities that were asked for and did not come": {"tokens": [5], "asked": {"logprobs": True}},
    "log-probabilities of another number of tokens": {
        "tokens": [5],
        "asked": {"logprobs": True},
        "token_logprobs": b"\0" * 4,
    },
    "alternatives outside the vocabulary": {
        "tokens": [5],
        "asked": {"logprobs": True, "top_logprobs": 1},
        "token_logprobs": b"\0" * 2,
        "top_tokens": b"\xff",
        "top_logprobs": b"\0" * 2,
    },
}


@pytest.mark.parametrize("name", BROKEN_COMMITS)
def test_commit_that_contradicts_what_we_know_is_a_protocol_error(name):
    """A cloud that breaks the contract is not believed."""
    fields = dict(BROKEN_COMMITS[name])
    state = session(asked=fields.pop("asked", {}))
    with pytest.raises(ProtocolError):
        commit(state, **fields)


def test_cloud_that_forgot_committed_tokens_is_not_believed():
    """Opened with a shorter log than ours breaks the contract: only the cloud commits, and it did."""
    with pytest.raises(ProtocolError, match="2 tokens"):
        session().open(pb.Opened(length=2))


@pytest.mark.parametrize("fields", [{"depth": 0}, {"width": 0}, {"bursts_ahead": -1}])
def test_policy_out_of_range_is_refused(fields):
    """A policy that cannot draft is a configuration error."""
    with pytest.raises(ConfigError):
        DraftPolicy(**fields)


@given(st.integers(max_value=0))
def test_request_for_no_tokens_is_refused(count):
    """At least one token must be asked for."""
    with pytest.raises(ParameterError):
        GenerateRequest((1,), count)
