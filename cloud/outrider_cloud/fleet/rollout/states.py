"""The states of a roll-out, of its stages and of its devices, and who may follow whom.

    roll-out  DRAFT -> AWAITING_APPROVAL -> (DENIED) -> SCHEDULED -> RUNNING <-> PAUSED -> SUCCEEDED
                                            RUNNING or PAUSED -> ROLLING_BACK -> ROLLED_BACK
                                            DRAFT .. PAUSED -> ABORTED
    stage     PENDING -> DISPATCHING -> SOAKING -> PASSED | FAILED
    device    WAITING -> DISPATCHED -> ACTIVE -> COMMITTED | FAILED | REJECTED | TIMED_OUT
              CONTROL -> WAITING (when its stage comes); any that got the draft -> REVERTING -> REVERTED | TIMED_OUT

A device that says nothing is TIMED_OUT, which is a bucket of its own and never a success; if it speaks later, what it
says counts. So a roll-out ends though some of its devices are never heard of again. The device's own finer states
(downloading, probation, ...): `outrider_shared.fleet.messages.UpdateState`.
"""

import enum

from outrider_shared.errors import ConflictError


class RolloutState(enum.StrEnum):
    """Of the whole roll-out."""

    DRAFT = "draft"
    AWAITING_APPROVAL = "awaiting_approval"
    DENIED = "denied"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"

    @property
    def final(self) -> bool:
        """Whether nothing follows."""
        return not _FOLLOWERS[self]


class StageState(enum.StrEnum):
    """Of the stage that the roll-out is in."""

    PENDING = "pending"
    DISPATCHING = "dispatching"
    SOAKING = "soaking"
    PASSED = "passed"
    FAILED = "failed"


class MemberState(enum.StrEnum):
    """Of one device within one roll-out."""

    WAITING = "waiting"
    CONTROL = "control"
    DISPATCHED = "dispatched"
    ACTIVE = "active"
    COMMITTED = "committed"
    FAILED = "failed"
    REJECTED = "rejected"
    TIMED_OUT = "timed_out"
    REVERTING = "reverting"
    REVERTED = "reverted"


R = RolloutState
_FOLLOWERS: dict[RolloutState, frozenset[RolloutState]] = {
    R.DRAFT: frozenset({R.AWAITING_APPROVAL, R.SCHEDULED, R.ABORTED}),
    R.AWAITING_APPROVAL: frozenset({R.SCHEDULED, R.DENIED, R.ABORTED}),
    R.DENIED: frozenset(),
    R.SCHEDULED: frozenset({R.RUNNING, R.ABORTED}),
    R.RUNNING: frozenset({R.PAUSED, R.SUCCEEDED, R.ROLLING_BACK, R.ABORTED}),
    R.PAUSED: frozenset({R.RUNNING, R.ROLLING_BACK, R.ABORTED}),
    R.SUCCEEDED: frozenset({R.ROLLING_BACK}),
    R.ROLLING_BACK: frozenset({R.ROLLED_BACK}),
    R.ROLLED_BACK: frozenset(),
    R.ABORTED: frozenset(),
}
GOT_THE_DRAFT = frozenset({
    MemberState.DISPATCHED, MemberState.ACTIVE, MemberState.COMMITTED, MemberState.FAILED, MemberState.TIMED_OUT,
})  # fmt: skip
IN_PROGRESS = frozenset({MemberState.DISPATCHED, MemberState.ACTIVE})


def check_follows(now: RolloutState, then: RolloutState) -> None:
    """Refuse a step that the table does not have.

    Raises:
        ConflictError: naming both states and what could follow.
    """
    if then not in _FOLLOWERS[now]:
        could = ", ".join(sorted(_FOLLOWERS[now])) or "nothing"
        raise ConflictError(f"a roll-out that is {now} cannot become {then}", hint=f"what can follow: {could}")
