"""What travels on the topics. Schema version 1 of all; see `codec` for how they are read, `topics` for where they go.

`bd` numbers the connections of one device (the births and deaths of Sparkplug B 3.0): a Will that carries another
`bd` than the last birth is late and is ignored. `seq` counts the messages of one `bd` on one topic from 0 on without
gaps, so a reader knows what was lost. Times are Unix seconds by the sender's clock, for people; nothing is decided by
them but the expiry of a command.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Annotated, Any

from outrider_shared.fleet.codec import Bound

Count = Annotated[int, Bound(0, (1 << 63) - 1)]
Name = Annotated[str, Bound(1, 128)]
Text = Annotated[str, Bound(0, 2048)]
Sha256 = Annotated[str, Bound(64, 64)]
Ratio = Annotated[float, Bound(0, 1)]
Seconds = Annotated[float, Bound(0, 1e10)]
Counts = Annotated[tuple[Count, ...], Bound(0, 64)]

# Upper edges in milliseconds of the buckets of time per token; a last one takes the rest. Counts of many devices add
# up, so a p95 of a group is read from the sum and never from a mean of p95s. Ratio of neighbours: 10 ** (1 / 8) = 1.33.
LATENCY_EDGES_MS: tuple[float, ...] = tuple(round(10 ** (i / 8), 2) for i in range(-8, 33))


@dataclass(frozen=True, slots=True)
class Presence:
    """Retained, and the Will: whether the device is here."""

    online: bool
    bd: Count
    ts: Seconds
    reason: Name = "birth"  # birth, goodbye (said so itself) or lost (the Will)


@dataclass(frozen=True, slots=True)
class PackRef:
    """One draft: its TUF target ('bundled' for the one that came with the package) and its archive's sha256."""

    target: Name
    sha256: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Info:
    """Retained with each birth: what this device is."""

    bd: Count
    ts: Seconds
    agent: Name  # version of outrider
    system: Text  # what `platform` says
    device_class: Name  # which packs it takes, such as int8
    tokenizer: Sha256  # fingerprint
    active: PackRef
    cpus: Count = 0
    memory_bytes: Count = 0
    labels: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Telemetry:
    """What the device did in one window of `window_s` seconds.

    Attributes:
        active: The draft that did it; a window never mixes two.
        requests, tokens, cloud_steps: Answers finished, tokens committed, engine steps that committed them.
        drafted, accepted: Draft nodes sent, and of them committed.
        tried, taken: By depth below the last token that was the target's own, from depth 1: draft tokens at that depth
            whose fate is known, and of them accepted. taken[d] / tried[d] is the acceptance rate at depth d + 1.
        token_ms: How many answers had a time per token within each bucket of `LATENCY_EDGES_MS`.
        p50_ms, p95_ms: Of the time per token, exact over the window's answers.
        first_p50_ms: Median time to the first token.
        rtt_ms: Round trip to the cloud, smoothed; absent where unknown.
        offline_s: Seconds of the window without the cloud.
        draft_errors: Draft passes that raised.
        dropped: Messages that this agent gave up since its start (outbox full).
    """

    bd: Count
    seq: Count
    ts: Seconds
    window_s: Seconds
    active: PackRef
    requests: Count = 0
    tokens: Count = 0
    cloud_steps: Count = 0
    drafted: Count = 0
    accepted: Count = 0
    tried: Counts = ()
    taken: Counts = ()
    token_ms: Counts = ()
    p50_ms: Seconds | None = None
    p95_ms: Seconds | None = None
    first_p50_ms: Seconds | None = None
    rtt_ms: Seconds | None = None
    bytes_up: Count = 0
    bytes_down: Count = 0
    offline_s: Seconds = 0.0
    draft_errors: Count = 0
    dropped: Count = 0
    temperature_c: float | None = None
    memory_bytes: Count | None = None


class UpdateState(enum.StrEnum):
    """Where an update stands on the device, in the order of a good one; then the ways it can end."""

    ASSIGNED = "assigned"
    DEFERRED = "deferred"  # waits for the maintenance window, for room or for the network
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    STAGED = "staged"
    SELF_TEST = "self_test"
    SWITCHED = "switched"
    PROBATION = "probation"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"
    REJECTED = "rejected"  # never to be tried: not for this device
    CANCELED = "canceled"
    SUPERSEDED = "superseded"

    @property
    def final(self) -> bool:
        """Whether nothing follows in this attempt."""
        return self in _FINAL


_FINAL = frozenset({
    UpdateState.COMMITTED, UpdateState.ROLLED_BACK, UpdateState.FAILED, UpdateState.REJECTED, UpdateState.CANCELED,
    UpdateState.SUPERSEDED,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class UpdateStatus:
    """One step of one attempt. The same step may come twice (QoS 1, restarts): (rollout, attempt, state) decides."""

    rollout: Name
    attempt: Count
    target: Name
    state: UpdateState
    seq: Count  # over the device's life, never reset: the outbox outlives a connection
    ts: Seconds
    done: Ratio = 0.0  # of the download
    code: str = ""  # of the error tree
    message: Text = ""


@dataclass(frozen=True, slots=True)
class Reported:
    """Retained: which desired document the device has applied, and what it is now."""

    bd: Count
    seq: Count
    ts: Seconds
    epoch: Count
    version: Count
    active: PackRef
    config: dict[str, Any] = field(default_factory=dict)  # as in force
    rollout: str = ""
    attempt: Count = 0
    state: UpdateState | None = None
    refused: str = ""  # code of the error that the last document was refused with
    message: Text = ""
    slots: dict[str, str] = field(default_factory=dict)  # slot -> sha256 of the archive in it


class CommandName(enum.StrEnum):
    """All that a device can be told to do at once; there is no way to run anything else."""

    PING = "ping"
    RESTART_DRAFT = "restart-draft"
    COLLECT_LOGS = "collect-logs"
    REPORT = "report"  # say birth, info and reported again (Sparkplug's rebirth)
    FLUSH = "flush"  # send telemetry now


@dataclass(frozen=True, slots=True)
class Command:
    """One request. Signed like desired state; the same id is done once and answered again."""

    id: Name
    device: Name
    name: CommandName
    issued: Seconds
    expires: Seconds
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The answer; `code` is empty where it worked."""

    id: Name
    ts: Seconds
    code: str = ""
    message: Text = ""
    output: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServiceState:
    """Retained, and the service's Will: whether anybody listens."""

    online: bool
    epoch: Count
    ts: Seconds
