"""Drafting while the target's step runs: what is kept of it, when it is begun, and that no text depends on it."""

from __future__ import annotations

import functools
import threading
import time
from concurrent.futures import wait
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_cloud.drafts.ahead import DraftAhead
from outrider_cloud.drafts.build import build_draft
from outrider_cloud.drafts.fill import CloudDrafts
from outrider_cloud.drafts.growth import Growth
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.engine.events import Request
from outrider_cloud.engine.schedule import Work
from outrider_cloud.engine.session import Session, State
from outrider_edge.bench import methods
from outrider_shared.calibration import Calibrations
from outrider_shared.emulator.profile import LinkProfile
from outrider_shared.ids import SessionId
from outrider_shared.sampling import SamplingParams
from outrider_shared.sampling.rule import Guess
from support.rig import Rig, plain
from support.simulator import AtOnce
from support.virtual import Scenario, StepCost, simulate

if TYPE_CHECKING:
    from outrider_cloud.model.loading import LoadedModel

TOKENS = st.integers(0, 3)
# With a few, the chance of single drafts decides a cell.
_ANSWERS = 16


def session_of(log: list[int], name: str = "a", most: int = 50) -> Session:
    session = Session(Request(SessionId(name), tuple(log), most), 1, lambda _: None)
    session.state, session.computed = State.RUNNING, len(log) - 1
    return session


def told(*tokens: int, margin: float = 9.0) -> Guess:
    return Guess(tokens, (0.0, *(margin,) * (len(tokens) - 1)), margin)


def always(_guess: Guess) -> float:
    return 0.8


def grown(session: Session, answer: list[int], rounds: int) -> Growth:
    """A growth that was told `answer` from the log's end on."""
    growth = Growth(session, 16, 0.02)
    for _ in range(rounds):
        growth.take(told(answer[len(growth.ask().tail)]), always)
    return growth


def hanging(session: Session) -> list[list[int]]:
    """Paths from the log's end down to each node that hangs there."""
    paths = ((node, session.tree.path(node)) for node in session.tree.walk())
    return sorted(path[len(path) - (node.position + 1 - len(session.log)) :] for node, path in paths)


def test_the_likeliest_leaf_is_asked_about_whoever_drafted_it():
    session = session_of([1])
    best = session.tree.append(5, None, 1)  # the edge's
    session.tree.append(6, None, 1)
    session.tree.append(7, best)
    growth = Growth(session, 16, 0.02)
    assert growth.ask().tail == [5, 7]
    growth.take(told(8), lambda _: 0.01)  # it cannot go on there
    assert growth.ask().tail == [6]


def test_of_what_was_guessed_that_which_agrees_with_the_log_is_hung_below_it():
    session, answer = session_of([1]), [10, 11, 12, 13, 14]
    growth = grown(session, answer, 5)
    for token in (10, 11):
        session.tree.advance(token)
    assert growth.graft(Calibrations()) == 5  # two passed, three hang
    assert hanging(session) == [[12], [12, 13], [12, 13, 14]]


def test_a_guess_that_the_log_has_passed_teaches_and_one_beside_the_log_does_not():
    session, calibration = session_of([1]), Calibrations()
    growth = grown(session, [10, 11, 12], 3)
    for token in (10, 99):
        session.tree.advance(token)
    assert growth.graft(calibration) == 1
    assert hanging(session) == []
    trials = [(tried, hits) for _, tried, hits in calibration.evidence()["model"] if tried]
    assert trials == [(2.0, 1.0)]


def test_what_the_edge_has_sent_meanwhile_is_one_with_it():
    session = session_of([1])
    growth = grown(session, [10, 11], 2)
    session.tree.append(10, None, 1)
    growth.graft(Calibrations())
    assert hanging(session) == [[10], [10, 11]]
    assert session.tree.pending == 1


def test_nothing_is_guessed_for_the_last_token():
    session = session_of([1], most=3)
    growth = grown(session, [10, 11, 12], 2)
    assert growth.reach == 0.0
    growth.graft(Calibrations())
    assert hanging(session) == [[10], [10, 11]]


@given(st.lists(TOKENS, max_size=6), st.lists(TOKENS, max_size=12), st.lists(TOKENS, max_size=5), st.data())
def test_only_paths_that_agree_with_the_log_hang_whatever_came_between(edge, guesses, committed, data):
    """And no token hangs twice below one node, and the edge's numbers stay as they were."""
    session = session_of([3, 3])
    parents: list = [None]
    for token in edge:
        parents.append(session.tree.append(token, data.draw(st.sampled_from(parents)), 2))
    growth = Growth(session, 16, 0.0)
    asked = []
    for token in guesses:
        if growth.reach:
            asked.append([*growth.ask().tail, token])
            growth.take(told(token, (token + 1) % 4, margin=1.0), always)
    for token in committed:
        session.tree.advance(token)
    before = {tuple(path) for path in hanging(session)}
    growth.graft(Calibrations())
    for path in hanging(session):
        whole = [*committed, *path]
        assert tuple(path) in before or whole in asked or [*whole[:-1], (whole[-1] - 1) % 4] in asked
    numbered = [node for node in session.tree.walk() if node.number >= 0]
    assert session.tree.pending == len(numbered)


class Slow:
    """A draft model that counts, and takes its time by a clock of its own."""

    def __init__(self, round_s: float) -> None:
        self.round_s, self.rounds, self.now, self.forgotten = round_s, 0, 0.0, []
        self.may_go = threading.Event()
        self.may_go.set()

    def clock(self) -> float:
        return self.now

    def seconds(self, asks):
        return self.round_s

    def reading_s(self, ask):
        return 0.0

    def guess(self, asks, width):
        self.may_go.wait(10.0)
        self.rounds += 1
        self.now += self.round_s
        return [told(ask.length % 7) for ask in asks]

    def forget(self, session_id):
        self.forgotten.append(session_id)


@pytest.mark.parametrize(("step_s", "rounds"), [(0.01, 9), (0.0035, 3), (0.001, 0)])
def test_a_round_is_begun_only_if_it_ends_before_the_step(step_s: float, rounds: int):
    model = Slow(0.00101)
    ahead = DraftAhead(model, Calibrations(), model.clock)
    ahead.begin(lambda: [Growth(session_of([1]), 16, 0.0)], step_s)
    ahead.gather()
    assert model.rounds == rounds


def test_the_cloud_time_of_sessions_counts_their_helper_until_the_step_ends():
    """In equal parts, whether or not what it guessed is of use; nothing where this step went without one."""
    sessions, model = [session_of([1], "a"), session_of([1], "b")], Slow(0.001)
    ahead = DraftAhead(model, Calibrations(), model.clock)
    ahead.begin(lambda: [Growth(session, 16, 0.0) for session in sessions], 0.0045)
    wait([ahead._task])
    model.now = 0.0045  # the helper has rested since its fourth round
    ahead.end(alike=True)
    assert model.rounds == 4
    assert [session.usage.busy_us for session in sessions] == [2000, 2000]
    ahead.gather()
    ahead.begin(lambda: [Growth(session, 16, 0.0) for session in sessions], 0.0005)
    ahead.end(alike=True)
    assert [session.usage.busy_us for session in sessions] == [2000, 2000]


def test_time_without_end_is_not_filled():
    """A clock that stands still, as in the simulator; or a step of seconds."""
    model = Slow(0.0)
    ahead = DraftAhead(model, Calibrations(), model.clock)
    ahead.begin(lambda: [Growth(session_of([1], most=1_000_000), 16, 0.02)], 1.0)
    ahead.gather()
    assert model.rounds == 32


def test_a_step_that_ends_early_is_not_held_up_and_a_session_that_ends_meanwhile_is_forgotten_later():
    model, config = Slow(0.001), EngineConfig()
    model.may_go.clear()
    drafts, session = CloudDrafts(config, model, model.clock), session_of([1])
    drafts.begin([Work(session, 1)], 1.0)
    drafts.end([Work(session, 1)])  # returns while the round still runs
    session.state = State.FINISHED
    drafts.forget(session.request.session_id)
    assert model.forgotten == []
    model.may_go.set()
    drafts.gather()
    assert model.rounds == 1
    assert model.forgotten == ["a"]
    assert hanging(session) == []


def test_a_model_that_fails_in_the_helper_is_let_go():
    model, session = Slow(0.001), session_of([1])
    model.guess = lambda asks, width: 1 / 0
    drafts = CloudDrafts(EngineConfig(), model, model.clock)
    drafts.begin([Work(session, 1)], 1.0)
    drafts.end([Work(session, 1)])
    drafts.gather()
    assert not drafts.has_model


@pytest.mark.parametrize(("slowed_s", "helped"), [(0.2, range(4, 8)), (0.0, range(56, 61))])
def test_a_helper_that_slows_the_steps_by_more_than_it_saves_is_soon_left_out_but_for_one_step_in_thirty_two(
    slowed_s: float, helped: range
):
    """The first eight steps tell: with and without it by turns."""
    model, session = Slow(0.001), session_of([1])
    ahead, steps = DraftAhead(model, Calibrations(), model.clock, AtOnce()), 0
    for _ in range(64):
        began = model.now
        ahead.begin(lambda: [Growth(session, 16, 0.02)], 0.01)
        steps += ahead.running
        model.now = began + 0.01 + (slowed_s if ahead.running else 0.0)
        ahead.end(alike=True)
        ahead.gather()
    assert steps in helped


@pytest.mark.parametrize(("rtt_s", "step_s"), [(0.01, 0.01), (0.0, 0.025), (0.01, 0.025)])
def test_a_near_device_is_not_waited_for_where_the_cloud_drafts_sooner(rtt_s: float, step_s: float):
    """With rows to spare: as fast as the same cloud is for a device that only listens."""
    rates = []
    for way in ("beside", "ours-auto+draft"):
        quick = Scenario(methods.method(way), LinkProfile(rtt_s), StepCost(step_s), 0.0006, cloud_draft_s=0.0003)
        rates.append(simulate(replace(quick, answers=_ANSWERS, cached=True))["tokens_per_s"])
    assert rates[1] >= 0.98 * rates[0]


@functools.cache
def co_located(step_s: float) -> tuple[float, int, int]:
    """Seconds, tokens and answers of the fastest drafter beside the target, which a device only listens to."""
    alone = [how for how in methods.drafted() if how.name not in {ours.name for ours in methods.ours()}]
    played = [simulate(Scenario(how, LinkProfile(), StepCost(step_s), answers=_ANSWERS)) for how in alone]
    best = max(played, key=lambda figures: figures["tokens_per_s"])
    return best["tokens"] / best["tokens_per_s"], best["tokens"], len(best["texts"])


@pytest.mark.parametrize(("rtt_s", "step_s"), [(rtt, step) for rtt in (0.0, 0.05, 0.2) for step in (0.01, 0.025, 0.05)])
def test_with_a_draft_model_in_the_cloud_a_device_is_as_fast_as_with_the_drafter_beside_the_target(rtt_s, step_s):
    """The bar is 0.98 of co-located speculation at every round trip; that one pays one round trip an answer."""
    ours = Scenario(methods.method("ours-auto+draft"), LinkProfile(rtt_s), StepCost(step_s), cloud_draft_s=0.0015)
    figures = simulate(replace(ours, answers=_ANSWERS))
    seconds, tokens, answers = co_located(step_s)
    assert figures["tokens_per_s"] >= 0.98 * tokens / (seconds + answers * rtt_s)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafting_beside_real_steps_changes_no_token(tiny: LoadedModel, tiny_folder, temperature: float):
    """The target as its own draft model, in a real thread, steps as long as five rounds: same text, fewer steps."""
    rig = Rig(tiny, max_draft_rows=6)
    model = build_draft(tiny, tiny, EngineConfig(kv_tokens=1024))
    rig.engine.drafts = CloudDrafts(rig.config, model)
    run = rig.runner.run

    def slowly(batch, bucket=0):
        time.sleep(max(0.02, 5.0 * model.seconds(1)))
        return run(batch, bucket)

    rig.runner.run = slowly
    wanted = [((3, 7, 9), 24), ((8, 8, 2, 5), 17)]
    names = [
        rig.open(prompt, most, SamplingParams(temperature, seed=3), own_drafts=True, ignore_eos=True)
        for prompt, most in wanted
    ]
    rig.run()
    for name, (prompt, most) in zip(names, wanted, strict=True):
        assert tuple(rig.tokens(name)) == plain(tiny_folder, prompt, most, SamplingParams(temperature, seed=3))
        assert rig.commits(name)[-1].usage.accepted_cloud > 0
    assert rig.engine.drafts.ahead.rounds > 0
