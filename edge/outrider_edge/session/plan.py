"""What a session does next. Pure: it looks, and names an action; `loop` acts.

Order:
    1. a finished session does nothing more;
    2. nodes are sent, where there is a stream, when a message is full; else when the way up is free, in time for the
       cloud's next step where that is known, and where it is not when their burst is done or they waited long enough
       for company;
    3. a burst that ended without a node to carry the news is ended by an empty message, lest the cloud wait;
    4. otherwise draft, up to the bounds: never wait for the network while there is something worth drafting;
    5. otherwise send what is left, or wait for the cloud.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from outrider_edge.session.events import Pace

if TYPE_CHECKING:
    from outrider_edge.session.state import SessionState


class Action(enum.Enum):
    """The next thing to do."""

    DONE = "done"
    SEND = "send"
    DRAFT = "draft"
    WAIT = "wait"


def plan(
    state: SessionState, *, drafting: bool, unsent_s: float, leave_in_s: float | None = None, connected: bool = True
) -> Action:
    """The next action.

    Args:
        state: What the session knows.
        drafting: Whether a drafter is at hand.
        unsent_s: How long the oldest unsent node has waited.
        leave_in_s: Seconds until it should leave, to find the way up free and be there for the cloud's next step; None
            if neither tells.
        connected: Whether there is a stream.
    """
    if state.finish is not None:
        return Action.DONE
    unsent = len(state.tree) - state.sent if connected else 0
    early = leave_in_s is not None and leave_in_s > 0.0 and unsent < state.max_per_message
    due = not early and (
        leave_in_s is not None
        or state.burst_done
        or unsent >= state.max_per_message
        or unsent_s >= state.policy.coalesce_s
    )
    if unsent and due:
        return Action.SEND
    if connected and drafting and not unsent and _owes_word(state) and leave_in_s is None:
        return Action.SEND
    if drafting and _worth_drafting(state):
        return Action.DRAFT
    return Action.SEND if unsent and not early else Action.WAIT


def _owes_word(state: SessionState) -> bool:
    """Whether the cloud may be waiting for more of a burst that is over."""
    return (state.burst_done or state.full) and not state.flushed and state.request.pace is not Pace.AHEAD


def _worth_drafting(state: SessionState) -> bool:
    if state.exhausted or state.at_end or state.full:
        return False
    return not state.burst_done or state.bursts_ahead < state.policy.bursts_ahead
