"""What goes into the engine and what comes out of it."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outrider_shared.sampling import SamplingParams

if TYPE_CHECKING:
    from outrider_cloud.grammar.matcher import Matcher
    from outrider_shared.errors import OutriderError
    from outrider_shared.ids import SessionId
    from outrider_shared.logprobs import TokenLogprobs


class Pace(enum.Enum):
    """What the engine does for a session without a usable draft."""

    AHEAD = "ahead"
    HOLD = "hold"
    AUTO = "auto"


class Finish(enum.Enum):
    """Why a session ended."""

    EOS = "eos"
    STOP = "stop"
    LENGTH = "length"
    CONTEXT = "context"
    CANCELLED = "cancelled"


class Source(enum.IntEnum):
    """Who proposed a committed token; the values are the wire's."""

    TARGET = 0  # nobody: the target's own choice
    EDGE = 1
    LOOKUP = 2  # the cloud, from the session's own text
    MODEL = 3  # the cloud, by its draft model


@dataclass(frozen=True, slots=True)
class Request:
    """One session as its owner asked for it.

    Attributes:
        session_id: Unique among open sessions.
        prompt: Token ids, at least one.
        max_tokens: Tokens to generate at most.
        params: How tokens are chosen.
        committed: Tokens that were committed before (resume).
        stop: Token ids that end the answer, besides the model's own.
        ignore_eos: Go on past the model's own end tokens.
        pace: What to do without drafts.
        logprobs: Whether to report log-probabilities.
        top_logprobs: Likeliest tokens to report with each, from 0 to 20.
        matcher: The compiled grammar that the answer must match, at its start; this session's own.
        min_tokens: End tokens and `stop` are not chosen before this many tokens are generated.
        own_drafts: Whether the cloud may draft for the session; without, and without drafts, it decodes plainly.
        report_refused: Tell with each commit where the edge's drafts were refused.
        scope: Sessions of the same 16 bytes share KV of equal prefixes; none is a scope, too.
    """

    session_id: SessionId
    prompt: tuple[int, ...]
    max_tokens: int
    params: SamplingParams = field(default_factory=SamplingParams)
    committed: tuple[int, ...] = ()
    stop: frozenset[int] = frozenset()
    ignore_eos: bool = False
    pace: Pace = Pace.AHEAD
    logprobs: bool = False
    top_logprobs: int = 0
    min_tokens: int = 0
    matcher: Matcher | None = None
    own_drafts: bool = True
    report_refused: bool = False
    scope: bytes = b""


@dataclass(slots=True)
class Usage:
    """What a session cost so far; the fields of the wire's `Usage`."""

    steps: int = 0
    rows: int = 0
    prefill_rows: int = 0
    cached_tokens: int = 0
    accepted: int = 0
    preemptions: int = 0
    accepted_lookup: int = 0
    accepted_cloud: int = 0
    edge_rows: int = 0
    lookup_rows: int = 0
    cloud_rows: int = 0
    busy_us: int = 0

    def ran(self, source: Source) -> None:
        """A draft row of that source ran."""
        if source is Source.EDGE:
            self.edge_rows += 1
        elif source is Source.LOOKUP:
            self.lookup_rows += 1
        else:
            self.cloud_rows += 1

    def committed(self, source: Source) -> None:
        """A token of that source was committed."""
        if source is Source.EDGE:
            self.accepted += 1
        elif source is Source.LOOKUP:
            self.accepted_lookup += 1
        elif source is Source.MODEL:
            self.accepted_cloud += 1


@dataclass(frozen=True, slots=True)
class Opened:
    """The session is accepted.

    Attributes:
        length: Tokens of its log; more than the owner sent if the engine was ahead when the stream broke.
        cached_tokens: Prompt tokens whose KV the engine holds.
    """

    session_id: SessionId
    length: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Hint:
    """How much drafting is of use.

    Attributes:
        max_nodes: Draft nodes that should be in flight at most.
        load: Rows that all sessions could use, in percent of a step's.
    """

    max_nodes: int
    load: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The edge's best draft at a place was not what the target chose.

    Attributes:
        position: Index in the log.
        drafted: What the edge had drafted there, its best first; one of the others may have been right.
    """

    position: int
    drafted: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Committed:
    """The log grew.

    Attributes:
        tokens: What it grew by.
        length: Its length now.
        accepted: Number of the deepest draft node among the tokens; -1 if there is none.
        known: How many of the tokens lie on that node's path.
        steps: Engine steps that this took.
        origins: Who proposed each token; empty if the edge knows by itself (all beyond `known` are the target's).
        hint: What the edge should know of the cloud's load; None if nothing changed.
        finish: Set with the last event of a session.
        logprobs: One per token if asked for.
        usage: Set with `finish`.
        refused: Where the edge's drafts were refused since the last event, if the request wants to know.
    """

    session_id: SessionId
    tokens: tuple[int, ...]
    length: int
    accepted: int = -1
    known: int = 0
    steps: int = 1
    origins: tuple[Source, ...] = ()
    hint: Hint | None = None
    finish: Finish | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    usage: Usage | None = None
    refused: tuple[Refused, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The session ended with an error; no other session is affected."""

    session_id: SessionId
    error: OutriderError


Event = Opened | Committed | Failed
Sink = Callable[[Event], None]
