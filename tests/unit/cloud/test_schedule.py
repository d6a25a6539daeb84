"""What a step runs: fairness, prompts beside decoding, drafts by worth, and who waits for drafts."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_cloud.engine.batch import lay_out
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.engine.events import Event, Pace, Request
from outrider_cloud.engine.habits import Habits
from outrider_cloud.engine.schedule import Work, next_hold_end, patience_s, plan, ready
from outrider_cloud.engine.session import Session, State
from outrider_cloud.engine.survival import DraftSurvival
from outrider_shared.errors import ConfigError
from outrider_shared.ids import SessionId

NOW = 100.0
HOLD_S = 0.25


def ignore(_: Event) -> None:
    """Sink of sessions that nobody listens to."""


@dataclass
class Given:
    """A session to be made: its name, log tokens without KV, and what is known of it.

    Attributes:
        drafts: (parent or -1, token) of pending nodes.
    """

    name: str
    sure: int = 1
    computed: int = 4
    last_step: int = 0
    survival: float = 0.5
    drafts: list[tuple[int, int]] = field(default_factory=list)
    pace: Pace = Pace.AHEAD
    state: State = State.RUNNING
    hold_since: float = NOW
    more: bool = False
    none_coming: bool = False
    max_tokens: int = 50
    generated: int = 0


def sessions(*given_sessions: Given) -> list[Session]:
    made = []
    for arrival, g in enumerate(given_sessions, 1):
        log = tuple(range(1, 1 + g.computed + g.sure))
        prompt, committed = log[: len(log) - g.generated], log[len(log) - g.generated :]
        request = Request(SessionId(g.name), prompt, g.max_tokens, pace=g.pace, committed=committed)
        session = Session(request, arrival, ignore)
        session.state, session.computed, session.last_step = g.state, g.computed, g.last_step
        session.survival, session.hold_since = DraftSurvival(g.survival), g.hold_since
        session.more_drafts, session.no_drafts = g.more, g.none_coming
        for parent, token in g.drafts:
            above = session.tree.node(parent) if parent >= 0 else None
            session.tree.append(token, above, len(session.log))
        made.append(session)
    return made


def config(rows: int = 16, share: float = 0.5, most: int = 16) -> EngineConfig:
    return EngineConfig(row_budget=rows, prefill_share=share, max_draft_rows=most, hold_s=HOLD_S)


def next_step(everyone: list[Session], bounds: EngineConfig, now: float, step_s: float = 0.0) -> list[Work]:
    return plan(ready(everyone, bounds, now, step_s), bounds)


def planned(works: list[Work]) -> dict[str, tuple[int, list[int]]]:
    """Name -> (sure rows, tokens of the nodes in the order that they were taken)."""
    return {str(w.session.request.session_id): (w.sure, [node.token for node in w.nodes]) for w in works}


CHAIN = [(-1, 11), (0, 12), (1, 13), (2, 14)]
WIDE = [(-1, 21), (-1, 22), (0, 23), (1, 24)]


@pytest.mark.parametrize(
    ("rows", "share", "most", "made", "expected"),
    [
        pytest.param(8, 0.5, 8, [], {}, id="nobody"),
        pytest.param(
            8, 0.5, 8, [Given("a"), Given("b")], {"a": (1, []), "b": (1, [])}, id="everyone gets the next token"
        ),
        pytest.param(
            2, 0.5, 8, [Given("a", last_step=5), Given("b", last_step=4), Given("c", last_step=3)],
            {"c": (1, []), "b": (1, [])}, id="the least recently served first",
        ),
        pytest.param(
            2, 0.5, 8, [Given("a", last_step=3), Given("b", last_step=3), Given("c", last_step=3)],
            {"a": (1, []), "b": (1, [])}, id="of equals the elder first",
        ),
        pytest.param(
            4, 0.5, 8, [Given(n, drafts=CHAIN, survival=0.99) for n in "abcd"],
            {n: (1, []) for n in "abcd"}, id="no drafts before everyone has a token",
        ),
        pytest.param(
            8, 0.5, 8, [Given("a"), Given("p", sure=100, computed=0)], {"a": (1, []), "p": (7, [])},
            id="a prompt gets all that decoding leaves",
        ),
        pytest.param(
            4, 0.5, 8, [*(Given(n) for n in "abcd"), Given("p", sure=100, computed=0)],
            {"a": (1, []), "b": (1, []), "p": (2, [])}, id="a prompt gets its share where decoding could take all",
        ),
        pytest.param(
            4, 0.5, 8, [*(Given(n) for n in "abcd"), Given("p", sure=2, computed=0)],
            {"a": (1, []), "b": (1, []), "p": (2, [])}, id="a short prompt",
        ),
        pytest.param(
            8, 0.5, 8, [Given("p", sure=5, computed=0), Given("q", sure=5, computed=0)], {"p": (5, []), "q": (3, [])},
            id="prompts in turn",
        ),
        pytest.param(
            8, 0.5, 8, [Given("p", sure=9, computed=8, last_step=7), Given("q", sure=5, computed=0)],
            {"q": (5, []), "p": (3, [])}, id="the prompt that was served last comes last",
        ),
        pytest.param(
            16, 0.5, 8, [Given("p", sure=3, computed=0, drafts=CHAIN)], {"p": (3, [11, 12, 13, 14])},
            id="drafts below a prompt that ends in this step",
        ),
        pytest.param(
            2, 0.5, 8, [Given("p", sure=3, computed=0, drafts=CHAIN)], {"p": (2, [])},
            id="no drafts below a prompt that does not end in this step",
        ),
        pytest.param(
            16, 0.5, 8, [Given("a", drafts=CHAIN)], {"a": (1, [11, 12, 13, 14])}, id="a chain in its order",
        ),
        pytest.param(
            3, 0.5, 8, [Given("a", drafts=CHAIN)], {"a": (1, [11, 12])}, id="a chain as far as rows go",
        ),
        pytest.param(
            16, 0.5, 3, [Given("a", drafts=CHAIN), Given("b", drafts=CHAIN)],
            {"a": (1, [11, 12, 13]), "b": (1, [11, 12, 13])}, id="at most so many drafts a session",
        ),
        pytest.param(
            16, 0.5, 0, [Given("a", drafts=CHAIN)], {"a": (1, [])}, id="drafts switched off",
        ),
        pytest.param(
            # Worths 0.9, 0.81, 0.73, 0.66 against 0.5, 0.25: four and one of five rows.
            7, 0.5, 8, [Given("a", drafts=CHAIN, survival=0.5), Given("b", drafts=CHAIN, survival=0.9)],
            {"a": (1, [11]), "b": (1, [11, 12, 13, 14])}, id="drafts that survive go before those that do not",
        ),
        pytest.param(
            # Worths 0.8, 0.64, 0.51 against 0.6, 0.36.
            6, 0.5, 8, [Given("a", drafts=CHAIN, survival=0.8), Given("b", drafts=CHAIN, survival=0.6)],
            {"a": (1, [11, 12, 13]), "b": (1, [11])}, id="depth lowers the worth",
        ),
        pytest.param(
            4, 0.5, 8, [Given("a", drafts=WIDE)], {"a": (1, [21, 23, 22])},
            id="a second best is worth less than what follows the best",
        ),
        pytest.param(
            8, 0.5, 8,
            [Given("w", state=State.WAITING), Given("p", state=State.PARKED), Given("f", state=State.FINISHED)],
            {}, id="only running sessions",
        ),
    ],
)  # fmt: skip
def test_a_plan(rows: int, share: float, most: int, made: list[Given], expected: dict):
    works = next_step(sessions(*made), config(rows, share, most), NOW)
    assert planned(works) == expected


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_no_decoding_session_waits_longer_than_a_round(rows: int):
    everyone = sessions(*(Given(str(i)) for i in range(7)))
    for step in range(1, 30):
        for work in next_step(everyone, config(rows=rows), NOW):
            work.session.last_step = step
        assert all(step - s.last_step < -(-7 // rows) for s in everyone if step >= 7)


@pytest.mark.parametrize("rows", [1, 2, 3, 16])
@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_neither_prompts_nor_decoding_starve(rows: int, share: float):
    """However few rows there are, a waiting prompt gets on while others decode, and they while it is long."""
    everyone = sessions(*(Given(str(i)) for i in range(4)), Given("prompt", sure=60, computed=0))
    served = dict.fromkeys((s.request.session_id for s in everyone), 0)
    for step in range(1, 41):
        for work in next_step(everyone, config(rows, share), NOW):
            work.session.last_step = step
            served[work.session.request.session_id] += work.sure
            if work.session is everyone[-1]:
                work.session.computed = min(work.session.computed + work.sure, 55)
    assert min(served.values()) > 0


@pytest.mark.parametrize(
    ("made", "runs"),
    [
        pytest.param(Given("a", pace=Pace.HOLD), False, id="no drafts: waits"),
        pytest.param(Given("a", pace=Pace.AHEAD), True, id="ahead never waits"),
        pytest.param(Given("a", pace=Pace.HOLD, drafts=CHAIN), True, id="drafts are here"),
        pytest.param(Given("a", pace=Pace.HOLD, drafts=CHAIN, more=True), False, id="more of the burst to come: waits"),
        pytest.param(Given("a", pace=Pace.HOLD, none_coming=True), True, id="told that no draft will come"),
        pytest.param(Given("a", pace=Pace.HOLD, hold_since=NOW - HOLD_S), True, id="waited long enough"),
        pytest.param(Given("a", pace=Pace.HOLD, hold_since=NOW - 0.9 * HOLD_S), False, id="not long enough"),
        pytest.param(
            Given("a", pace=Pace.HOLD, drafts=CHAIN, more=True, hold_since=NOW - HOLD_S), True, id="burst is too slow"
        ),
        pytest.param(Given("a", pace=Pace.HOLD, sure=3), True, id="a prompt has work without drafts"),
        pytest.param(Given("a", pace=Pace.HOLD, max_tokens=1), True, id="the last token is always the target's own"),
    ],
)
def test_who_waits_for_drafts(made: Given, runs: bool):
    (session,) = sessions(made)
    assert bool(next_step([session], config(), NOW)) == runs


def test_the_wait_of_the_first_holding_session_ends_first():
    made = [
        Given("a", pace=Pace.HOLD, hold_since=7.0),
        Given("b", pace=Pace.HOLD, hold_since=5.0),
        Given("c", pace=Pace.AHEAD, hold_since=1.0),
        Given("d", pace=Pace.HOLD, hold_since=2.0, state=State.PARKED),
    ]
    assert next_hold_end(sessions(*made), config(), 5.0) == 5.0 + HOLD_S
    assert next_hold_end(sessions(*made[2:]), config(), 5.0) == float("inf")


STEP_S = 0.025


@pytest.mark.parametrize("pace", [Pace.AUTO, Pace.AHEAD])
@pytest.mark.parametrize(
    ("response_s", "waits"),
    [
        pytest.param(0.002, True, id="drafts come at once"),
        pytest.param(0.02, False, id="drafts come when a step is nearly over"),
        pytest.param(0.2, False, id="drafts come steps later"),
        pytest.param(None, False, id="nothing known yet"),
    ],
)
def test_drafts_that_are_nearly_there_are_waited_for(pace: Pace, response_s: float | None, waits: bool):
    (session,) = sessions(Given("a", pace=pace, generated=1))
    session.response_s, session.silent_since, session.won_s = response_s, NOW, 1.0
    assert (next_step([session], config(64), NOW, STEP_S) == []) == waits
    if waits:
        end = next_hold_end([session], config(64), NOW, STEP_S)
        assert NOW < end < NOW + STEP_S
        assert next_step([session], config(64), end, STEP_S)


def test_the_rest_of_a_burst_is_waited_for_a_little_longer():
    (session,) = sessions(Given("a", pace=Pace.AUTO, drafts=CHAIN, more=True, generated=1))
    session.response_s, session.silent_since = 0.002, NOW
    alone = next_hold_end([session], config(64), NOW, STEP_S)
    session.silent_since = None
    assert next_hold_end([session], config(64), NOW, STEP_S) > alone
    assert not next_step([session], config(64), alone, STEP_S)
    session.more_drafts = False
    assert next_step([session], config(64), alone, STEP_S)


def test_a_device_that_let_a_commit_pass_in_silence_is_not_waited_for():
    (session,) = sessions(Given("a", pace=Pace.AUTO, generated=1))
    session.response_s, session.silent_since = 0.002, NOW - STEP_S
    assert next_step([session], config(64), NOW, STEP_S)


@pytest.mark.parametrize(
    ("usual_s", "pace", "waits"), [(0.2, Pace.AUTO, True), (None, Pace.AUTO, False), (0.2, Pace.AHEAD, False)]
)
def test_the_first_drafts_of_a_device_that_drafts_are_waited_for(usual_s: float | None, pace: Pace, waits: bool):
    """However far it is: they travel behind the opening. What a device is used to is known from its last answer."""
    habits = Habits()
    before, session, another = sessions(Given("a", pace=pace), Given("a", pace=pace), Given("b", pace=pace))
    another.request = replace(another.request, scope=b"another device")
    before.response_s = usual_s
    habits.end(before)
    for each in (session, another):
        habits.begin(each)
    assert (not next_step([session], config(64), NOW, STEP_S)) == waits
    assert next_step([another], config(64), NOW, STEP_S)


@given(st.floats(-1.0, 1.0), st.floats(0.0, 1.0), st.floats(0.001, 1.0))
def test_ahead_waits_no_longer_than_its_drafts_have_won(won_s: float, response_s: float, step_s: float):
    """So it is never behind plain streaming: what a wait costs was saved before."""
    (session,) = sessions(Given("a", pace=Pace.AHEAD))
    session.response_s, session.silent_since, session.won_s = response_s, NOW, won_s
    assert 0.0 <= patience_s(session, config(64), step_s) <= max(0.0, won_s)


def gathering(*, due: bool = True, pace: Pace = Pace.HOLD, usual_s: float = 0.06) -> list[Session]:
    """One session whose drafts are here, one of pace `hold` whose drafts are still to come; both committed just now."""
    found = sessions(Given("a", pace=pace, drafts=CHAIN), Given("b", pace=Pace.HOLD))
    for session in found:
        session.response_s = usual_s
    if not due:
        found[1].response_s = None
    return found


def test_sessions_of_pace_hold_gather_for_one_step():
    """Who is ready waits for whose drafts are due, not for a device that never sent any, nor while others step."""
    assert not next_step(gathering(), config(64), NOW + 0.02, STEP_S)
    assert planned(next_step(gathering(due=False), config(64), NOW + 0.02, STEP_S)).keys() == {"a"}
    assert planned(next_step(gathering(pace=Pace.AHEAD), config(64), NOW + 0.02, STEP_S)).keys() == {"a"}
    prompt = sessions(Given("p", pace=Pace.HOLD, sure=9, computed=0))
    assert planned(next_step(gathering() + prompt, config(64), NOW + 0.02, STEP_S)).keys() == {"a", "p"}


@given(st.floats(0.001, 1.0), st.floats(0.001, 1.0))
def test_gathering_ends(usual_s: float, step_s: float):
    """Half of a session's usual wait or a step's time after the last commit at the latest; the engine wakes then."""
    found = gathering(usual_s=usual_s)
    end = next_hold_end(found, config(64), NOW, step_s)
    assert NOW < end <= NOW + min(HOLD_S, max(usual_s / 2, step_s)) + 1e-9
    assert not next_step(found, config(64), NOW + 0.5 * (end - NOW), step_s)
    assert planned(next_step(found, config(64), end + 1e-9, step_s)).keys() >= {"a"}


def test_auto_takes_part_in_steps_however_many_sessions_there_are():
    """Waiting for late drafts saved no cloud time under load: whoever was ready stepped alone (decision 0025)."""
    made = sessions(*(Given(str(n), pace=Pace.AUTO, generated=1) for n in range(9)))
    for session in made:
        session.response_s = 0.2
    for count in (1, 7, 9):
        assert len(next_step(made[:count], config(16), NOW, STEP_S)) == count


@st.composite
def crowds(draw: st.DrawFn) -> list[Given]:
    crowd = []
    for name in range(draw(st.integers(0, 6))):
        drafts = [(draw(st.integers(-1, number - 1)), number) for number in range(draw(st.integers(0, 6)))]
        sure = draw(st.sampled_from([1, 1, 1, 2, 9, 40]))
        made = Given(str(name), sure, draws := draw(st.integers(0, 20)), draws, draw(st.floats(0.01, 1.0)), drafts)
        made.pace = draw(st.sampled_from(Pace))
        made.computed = max(1, made.computed) if sure == 1 else made.computed
        crowd.append(made)
    return crowd


@given(crowds(), st.integers(1, 24), st.floats(0.01, 1.0), st.integers(0, 8))
def test_any_plan_keeps_the_rules(crowd: list[Given], rows: int, share: float, most: int):
    everyone = sessions(*crowd)
    works = next_step(everyone, config(rows, share, most), NOW)
    assert sum(work.rows for work in works) <= rows
    assert len({id(work.session) for work in works}) == len(works)
    bounds = config(rows, share, most)
    free = [s for s in everyone if not s.holds(NOW, patience_s(s, bounds, 0.0))]
    assert bool(works) == bool(free)
    for work in works:
        assert work.session in free
        assert 1 <= work.sure <= work.session.sure_rows
        assert len(work.nodes) <= (most if work.decodes else 0)
        ran = {id(node) for node in work.nodes}
        for index, node in enumerate(work.nodes):
            assert node.parent is None or id(node.parent) in ran
            assert node.parent is None or work.nodes.index(node.parent) < index
    if any(work.nodes for work in works):
        served = {id(work.session) for work in works if work.decodes or work.sure}
        assert all(id(s) in served for s in free if s.sure_rows == 1)


@given(crowds())
def test_the_batch_lays_out_what_was_planned(crowd: list[Given]):
    """Tokens, positions and parents of all rows, and the rows that choose, follow from the works."""
    everyone = sessions(*crowd)
    works = next_step(everyone, config(24), NOW)
    for work in works:
        work.session.adopt(range(10), 16)
    batch = lay_out(works)
    row = 0
    sampled, choosing = [], []
    for work, segment in zip(works, batch.segments, strict=True):
        session, start = work.session, row
        assert len(segment.context) == session.computed
        for index in range(work.sure):
            position = session.computed + index
            assert (batch.tokens[row], batch.positions[row]) == (session.log[position], position)
            assert segment.parents[index] == index - 1
            row += 1
        for index, node in enumerate(work.nodes):
            assert (batch.tokens[row], batch.positions[row]) == (node.token, node.position)
            above = work.sure - 1 if node.parent is None else work.sure + work.nodes.index(node.parent)
            assert segment.parents[work.sure + index] == above
            row += 1
        assert segment.slots.tolist() == session.slots[session.computed :][: work.rows].tolist()
        if work.decodes:
            sampled += range(start + work.sure - 1, row)
            choosing += [len(session.log), *(node.position + 1 for node in work.nodes)]
    assert row == len(batch.tokens) == len(batch.positions)
    assert (batch.sampled, batch.choosing) == (sampled, choosing)
    assert len(batch.params) == len(sampled)


@pytest.mark.parametrize(
    ("field_name", "value"),
    [
        ("buckets", ()), ("buckets", (8, 4)), ("buckets", (0, 4)),
        ("row_budget", 0), ("kv_tokens", 0), ("block_size", 0), ("max_sessions", 0), ("max_nodes", 0),
        ("prefill_share", 0.0), ("prefill_share", 1.1), ("prefill_share", float("nan")), ("max_draft_rows", -1),
        ("hold_s", -0.1), ("hold_s", float("nan")), ("lease_s", -1.0), ("kv_tokens", 15),
    ],
)  # fmt: skip
def test_sizes_that_make_no_sense_are_refused(field_name: str, value: float):
    with pytest.raises(ConfigError, match=field_name):
        EngineConfig(**{field_name: value})


def test_a_step_has_the_bucket_in_exact_mode_and_the_budget_otherwise():
    assert EngineConfig(buckets=(4, 16), row_budget=99).rows == 99
    assert EngineConfig(exact=True, buckets=(4, 16), row_budget=99).rows == 16
    assert EngineConfig(kv_tokens=100, block_size=16).blocks == 6
