"""Drafts of the cloud's own: what lookup finds, what the model guesses, who is drafted for, and fair rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_cloud.drafts.build import build_draft
from outrider_cloud.drafts.fill import CloudDrafts, source_of
from outrider_cloud.drafts.lookup import PromptLookup
from outrider_cloud.drafts.model import READING, Ask
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.engine.events import Hint, Pace, Request, Source
from outrider_cloud.engine.schedule import Work, hint, load, patience_s, plan
from outrider_cloud.engine.session import Session, State
from outrider_cloud.engine.survival import DraftSurvival
from outrider_cloud.model.loading import LoadedModel
from outrider_shared.errors import MismatchError
from outrider_shared.ids import SessionId
from outrider_shared.sampling import SamplingParams
from outrider_shared.sampling.rule import Guess, guess
from outrider_shared.tree import DraftTree
from support.models import third_party
from support.rig import GREEDY, Rig, direct_logits, plain

TOKENS = st.integers(0, 4)


@given(st.lists(TOKENS, min_size=1, max_size=60), st.integers(1, 6))
def test_lookup_continues_the_longest_run_of_its_latest_places_however_the_log_grew(log: list[int], most: int):
    grown: list[int] = []
    index = PromptLookup(grown)
    for token in log:
        grown.append(token)
        tokens, run = index.continuation(most)
        places = [p for p in range(2, len(grown)) if grown[p - 2 : p] == grown[-2:]][-8:]
        if not places:
            assert (list(tokens), run) == ([], 0)
            continue

        def length(place: int) -> int:
            return max(n for n in range(2, min(12, place) + 1) if grown[place - n : place] == grown[-n:])

        best = max(places, key=lambda place: (length(place), place))
        assert (list(tokens), run) == (grown[best : best + most], length(best))


def ask(name: str, log: list[int], tail: list[int], params: SamplingParams = GREEDY) -> Ask:
    return Ask(SessionId(name), log, tail, params)


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(0.9, seed=5)])
def test_the_model_guesses_what_a_forward_over_the_whole_text_says(tiny: LoadedModel, tiny_folder, params):
    """Also after a rollback, beside other sessions, and when memory is too small for all of them."""
    model = build_draft(tiny, tiny, EngineConfig(kv_tokens=48, block_size=4, row_budget=16))
    logs = {"a": [3, 7, 9], "b": [8] * 9}
    for tails in ({"a": [1, 2], "b": []}, {"a": [1, 5], "b": [4]}, {"a": [], "b": [4, 4]}, {"a": [6], "b": [5, 5, 5]}):
        asks = [ask(name, logs[name], tail, params) for name, tail in tails.items()]
        for one, told in zip(asks, model.guess(asks, 2), strict=True):
            logits = direct_logits(tiny_folder, one.log + one.tail)[-1]
            expected = guess(logits, one.length, params, 2)
            assert told is not None
            assert told.tokens == expected.tokens
            assert told.margin == pytest.approx(expected.margin, abs=1e-3)
        logs["a"].append(1)
    model.guess([ask("c", list(range(1, 14)), [], params)], 2)
    assert model.guess([ask("a", logs["a"], [], params)], 2)[0] is not None


def test_a_prompt_beyond_the_row_budget_is_read_over_several_rounds(tiny: LoadedModel):
    model = build_draft(tiny, tiny, EngineConfig(row_budget=8, kv_tokens=256))
    question = ask("a", [1 + i % 50 for i in range(20)], [])
    assert [model.guess([question], 1)[0] is READING for _ in range(3)] == [True, True, False]


def test_a_draft_of_other_tokens_is_refused(tiny: LoadedModel):
    from outrider_cloud.model.loading import load_model

    other = load_model(third_party("draft-stories-260k"), check=False)
    with pytest.raises(MismatchError, match="vocabulary"):
        build_draft(other, tiny, EngineConfig())


class Knowing:
    """A draft model that knows the answer, and counts its rounds."""

    def __init__(self, answer, round_s: float) -> None:
        self.answer, self.round_s, self.rounds = answer, round_s, 0

    def seconds(self, asks):
        return self.round_s

    def reading_s(self, ask):
        return 0.0

    def guess(self, asks, width):
        self.rounds += 1
        return [
            Guess((self.answer[a.length], 0), (0.0, 9.0), 9.0) if a.length < len(self.answer) else None for a in asks
        ]

    def forget(self, session_id):
        """Nothing is held."""


def session_of(name: str, log: list[int], arrival: int = 1, **more) -> Session:
    session = Session(Request(SessionId(name), tuple(log), 50, **more), arrival, lambda _: None)
    session.state, session.computed = State.RUNNING, len(log) - 1
    return session


def chain_of(session: Session) -> list[int]:
    tokens, children = [], session.tree.children
    while children:
        node = next(iter(children.values()))
        tokens.append(node.token)
        children = node.children
    return tokens


@pytest.mark.parametrize(
    ("round_s", "deep"),
    [
        pytest.param(0.001, True, id="a round costs a fraction of the step"),
        pytest.param(0.1, False, id="a round costs four steps"),
    ],
)
def test_a_round_is_run_while_it_brings_tokens_faster_than_the_step(round_s: float, *, deep: bool):
    answer = list(range(10, 60))
    session, model = session_of("a", answer[:3]), Knowing(answer, round_s)
    CloudDrafts(EngineConfig(), model).fill([session], 0.025)
    drafted = chain_of(session)
    assert drafted == answer[3 : 3 + len(drafted)]
    assert (len(drafted) >= 4) == deep
    assert all(source_of(node) is Source.MODEL for node in session.tree.walk())
    assert session.tree.pending == 0


def test_a_draft_model_that_fails_is_let_go(tiny: LoadedModel, tiny_folder):
    rig = Rig(tiny)
    broken = Knowing([], 1e-6)
    broken.guess = lambda asks, width: 1 / 0
    rig.engine.drafts = CloudDrafts(rig.config, broken)
    rig.engine.stats.step_s = 0.025
    name = rig.open((3, 7, 9), 8, own_drafts=True, ignore_eos=True)
    rig.run()
    assert tuple(rig.tokens(name)) == plain(tiny_folder, (3, 7, 9), 8)
    assert not rig.engine.drafts.has_model


def test_only_rows_that_would_stay_empty_are_filled():
    answer = list(range(10, 60))
    everyone = [session_of(str(n), answer[:3], n) for n in range(6)]
    CloudDrafts(EngineConfig(row_budget=8), Knowing(answer, 1e-6)).fill(everyone, 0.025)
    assert sum(len(list(s.tree.walk())) for s in everyone) == 2


def test_nobody_drafts_for_a_session_that_asked_for_none():
    session = session_of("a", [1, 2, 1, 2, 1, 2], own_drafts=False)
    CloudDrafts(EngineConfig(), Knowing([0] * 99, 1e-6)).fill([session], 0.025)
    assert not session.tree.children


def test_the_model_rests_for_a_device_that_keeps_up_until_it_falls_silent():
    answer = list(range(10, 60))
    session, model = session_of("a", answer[:3]), Knowing(answer, 1e-4)
    drafts = CloudDrafts(EngineConfig(), model)
    session.response_s, session.hold_since = 0.0005, 100.0
    drafts.fill([session], 0.025)
    drafts.begin([Work(session, 1)], 0.025)
    assert model.rounds == 0
    assert not drafts.ahead.running
    session.silent_since = 99.0  # a whole commit passed without a draft
    drafts.fill([session], 0.025)
    assert chain_of(session)[:3] == answer[3:6]


def answering(log: list[int], response_s: float | None, **more) -> Session:
    """A session of pace `auto` amid its answer, whose device usually takes that long to draft."""
    session = session_of("a", log[:-1], pace=Pace.AUTO, **more)
    session.log.append(log[-1])
    session.computed, session.response_s = len(log) - 1, response_s
    return session


@pytest.mark.parametrize(
    ("response_s", "rows", "helped"),
    [
        pytest.param(0.0007, 256, False, id="sooner than eight rounds of the model"),
        pytest.param(0.0009, 256, True, id="later"),
        pytest.param(0.014, 18, False, id="later, but steps are full and the step waits"),
        pytest.param(0.016, 18, True, id="later than a step waits"),
    ],
)
def test_a_device_keeps_up_whose_drafts_are_worth_waiting_for(response_s: float, rows: int, *, helped: bool):
    answer = list(range(10, 60))
    session, model = answering(answer[:3], None), Knowing(answer, 1e-4)
    config = EngineConfig(row_budget=rows)
    drafts = CloudDrafts(config, model)
    drafts.fill([session], 0.025)
    drafts.begin(plan([session], config), 0.025)
    drafts.end([])
    drafts.gather()
    session.tree = DraftTree(session.log)
    session.response_s, model.rounds = response_s, 0
    assert (patience_s(session, config, 0.025, drafts.own_s(0.025)) > 0.0) == (not helped)
    drafts.fill([session], 0.025)
    assert bool(model.rounds) == helped


@pytest.mark.parametrize(("edge_nodes", "response_s", "helped"), [(6, 0.1, False), (6, None, True), (2, 0.1, True)])
def test_where_edges_fill_the_rows_the_model_helps_only_who_has_no_edge_that_drafts(edge_nodes, response_s, helped):
    """However far the device is; rows that the model filled itself do not count."""
    answer, config = list(range(10, 60)), EngineConfig(row_budget=8)
    full, other, model = session_of("a", answer[:3]), session_of("b", answer[:3], 2), Knowing(answer, 1e-5)
    full.survival, full.response_s, other.response_s = DraftSurvival(0.3), 0.1, response_s
    for token in range(edge_nodes):
        full.tree.append(token, None, 3)
    drafts = CloudDrafts(config, model)
    works = plan([full, other], config)
    drafts.begin(works, 0.025)
    drafts.end(works)
    drafts.gather()
    other.tree.clear()
    model.rounds = 0
    drafts.fill([full, other], 0.025)
    assert bool([node for node in other.tree.walk() if source_of(node) is Source.MODEL]) == helped


def test_without_a_model_a_device_is_waited_for_as_far_as_a_step_allows():
    session, config = answering([1, 2, 3], 0.014), EngineConfig()
    assert patience_s(session, config, 0.025, CloudDrafts(config).own_s(0.025)) > 0.0
    session.response_s = 0.016
    assert patience_s(session, config, 0.025, CloudDrafts(config).own_s(0.025)) == 0.0


def test_who_wants_no_drafts_of_the_cloud_waits_for_its_own():
    session, config = answering([1, 2, 3], 0.014, own_drafts=False), EngineConfig()
    assert patience_s(session, config, 0.025, CloudDrafts(config, Knowing([], 1e-4)).own_s(0.025)) > 0.0


@pytest.mark.parametrize(("reading_s", "helped"), [(0.012, True), (0.013, False)])
def test_what_takes_long_to_read_is_read_beside_the_step_and_not_before_it(reading_s: float, *, helped: bool):
    answer = list(range(10, 60))
    session, model = session_of("a", answer[:3]), Knowing(answer, 1e-4)
    model.reading_s = lambda ask: reading_s
    drafts = CloudDrafts(EngineConfig(), model)
    drafts.fill([session], 0.025)
    assert bool(model.rounds) == helped
    model.rounds = 0
    prompt = session_of("b", answer[:9])
    prompt.computed = 0
    drafts.begin([Work(prompt, 4)], 0.5)  # a piece of its prompt
    drafts.end([Work(prompt, 4)])
    drafts.gather()
    assert model.rounds > 0


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_lookup_alone_speeds_an_answer_up_and_changes_no_token(tiny: LoadedModel, tiny_folder, temperature: float):
    params, prompt = SamplingParams(temperature, seed=3), (3, 7, 3, 7, 3, 7)
    answer, steps = plain(tiny_folder, prompt, 40, params), []
    for own in (False, True):
        rig = Rig(tiny)
        name = rig.open(prompt, 40, params, own_drafts=own, ignore_eos=True)
        rig.run()
        assert tuple(rig.tokens(name)) == answer
        steps.append(rig.commits(name)[-1].usage.steps)
    assert steps[0] == 40
    assert steps[1] <= steps[0]


@given(st.data())
def test_no_session_is_served_less_than_its_floor_whatever_the_others_draft(data: st.DataObject):
    """Each is served within a round; and while drafts are dealt, each gets its even share of half of their rows."""
    count, rows = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 40))
    everyone = [session_of(str(n), [1, 2, 3], n) for n in range(count)]
    for session in everyone:
        session.survival = DraftSurvival(data.draw(st.sampled_from([0.05, 0.5, 0.99])))
        parents: list = [None]
        for token in range(data.draw(st.integers(0, 20))):
            parents.append(session.tree.append(token, data.draw(st.sampled_from(parents)), 3))
    bounds = EngineConfig(row_budget=rows)
    for step in range(1, 9):
        works = {id(work.session): work for work in plan(everyone, bounds)}
        for session in everyone:
            if id(session) in works:
                session.last_step = step
        drafting = [w for w in works.values() if w.session.tree.children]
        if len(works) == count and drafting:
            share = min(bounds.max_draft_rows, (rows - count) // (2 * len(drafting)))
            for work in drafting:
                assert len(work.nodes) >= min(share, len(list(work.session.tree.walk())))
        assert all(step - s.last_step < -(-count // rows) for s in everyone if step >= -(-count // rows))


def test_a_guess_of_the_model_takes_the_row_of_an_edge_node_that_is_worth_less():
    """However many nodes the edges have in flight, whoever has none that is likely gets the model's."""
    answer = list(range(10, 60))
    full, empty = session_of("a", answer[:3]), session_of("b", answer[:3], 2)
    full.survival = DraftSurvival(0.3)
    for token in range(12):
        full.tree.append(token, None, 3)
    CloudDrafts(EngineConfig(row_budget=8), Knowing(answer, 1e-6)).fill([full, empty], 0.025)
    works = {work.session: work for work in plan([full, empty], EngineConfig(row_budget=8))}
    assert {source_of(node) for node in works[empty].nodes} == {Source.MODEL}
    assert len(works[empty].nodes) >= 3


@pytest.mark.parametrize(("others", "drafted"), [(0, True), (30, False)])
def test_a_round_is_weighed_against_all_who_share_the_step(others: int, *, drafted: bool):
    """A round of a tenth of the step is worth it for one who is alone, and holds thirty up who need none."""
    answer = list(range(10, 60))
    session, model = session_of("a", answer[:3]), Knowing(answer, 0.0025)
    near = [session_of(f"near {n}", answer[:3], n) for n in range(others)]
    for one in near:
        one.response_s = 0.005
    CloudDrafts(EngineConfig(), model).fill([session, *near], 0.025)
    assert bool(session.tree.children) == drafted


def test_where_each_costs_time_a_round_is_run_for_those_who_gain_enough_alone():
    answer = list(range(10, 60))
    sure, unsure = session_of("a", answer[:3]), session_of("b", answer[:3], 2)
    unsure.survival = DraftSurvival(0.3)
    unsure.tree.append(answer[3], None, 3)
    asked, model = set(), Knowing(answer, 0.0)
    model.seconds = lambda asks: 0.004 * asks
    guesses = model.guess

    def guess_and_note(asks, width):
        asked.update(one.session_id for one in asks)
        return guesses(asks, width)

    model.guess = guess_and_note
    CloudDrafts(EngineConfig(), model).fill([sure, unsure], 0.025)
    assert asked == {sure.request.session_id}


@pytest.mark.parametrize(("row_budget", "full"), [(256, False), (12, True)])
def test_beside_a_full_step_only_guesses_that_are_worth_their_time_are_made(row_budget: int, *, full: bool):
    answer = list(range(10, 90))
    everyone = [session_of(str(n), answer[:3], n) for n in range(4)]
    model = Knowing(answer, 1e-4)
    model.seconds = lambda asks: 0.002 * asks
    config = EngineConfig(row_budget=row_budget)
    drafts = CloudDrafts(config, model)
    drafts.fill(everyone, 0.025)
    before = model.rounds
    works = plan(everyone, config)
    drafts.begin(works, 0.025)
    drafts.end(works)
    drafts.gather()
    assert (model.rounds == before) == full


def told_to(sessions: list[Session], bounds: EngineConfig, step_s: float = 0.025):
    return hint(sessions[0], len(sessions), load(sessions, bounds), bounds, step_s)


def test_edges_are_told_to_draft_less_when_rows_are_scarce():
    bounds, crowd = EngineConfig(row_budget=64), [session_of(str(n), [1, 2, 3], n) for n in range(40)]
    assert told_to(crowd[:2], bounds).max_nodes == bounds.max_nodes
    told = told_to(crowd, bounds)
    assert (told.max_nodes, told.load) == (4, 62)


def test_the_farther_an_edge_is_the_more_of_its_nodes_may_be_in_flight():
    """What is sent now runs a round trip later, behind what runs meanwhile."""
    bounds, crowd = EngineConfig(row_budget=64), [session_of(str(n), [1, 2, 3], n) for n in range(32)]
    most = []
    for response_s in (None, 0.0, 0.05, 0.1, 10.0):
        crowd[0].response_s = response_s
        most.append(told_to(crowd, bounds).max_nodes)
    assert most == [4, 4, 20, 36, bounds.max_nodes]
    assert told_to(crowd, bounds, step_s=0.0).max_nodes == 4


def test_a_changed_load_is_told_once():
    session = session_of("a", [1, 2, 3])
    quiet, busy = told_to([session], EngineConfig()), told_to([session] * 300, EngineConfig())
    told = []
    for now in (quiet, quiet, busy, busy, quiet):
        session.hint = now
        told.append(session.fresh_hint())
    assert told == [None, None, busy, None, quiet]


def test_a_bound_that_moves_a_little_is_not_told_again():
    session, told = session_of("a", [1, 2, 3]), []
    for most in (40, 44, 36, 52, 48):
        session.hint = Hint(most, 90)
        told.append(session.fresh_hint() is not None)
    assert told == [True, False, False, True, False]
