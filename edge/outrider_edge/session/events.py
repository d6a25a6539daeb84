"""What a session tells its caller, and what it was asked."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from outrider_shared.errors import ParameterError
from outrider_shared.logprobs import check_top_logprobs
from outrider_shared.sampling import SamplingParams
from outrider_shared.sampling.philox import derived_seed

if TYPE_CHECKING:
    from outrider_shared.grammar import Grammar


class Origin(enum.StrEnum):
    """Where a committed token came from."""

    ACCEPTED = "accepted"  # drafted here, confirmed by the target
    CORRECTION = "correction"  # the target chose another token than was drafted
    BONUS = "bonus"  # the target's own token behind a draft that was accepted to its end
    CLOUD = "cloud"  # decoded in the cloud while no draft was at hand
    CLOUD_LOOKUP = "cloud-lookup"  # the cloud found it in the session's own text, confirmed by the target
    CLOUD_DRAFT = "cloud-draft"  # drafted by a model in the cloud, confirmed by the target
    UNVERIFIED = "unverified"  # drafted here, and no target has seen it


class Pace(enum.StrEnum):
    """What the cloud does while no draft of this session is at hand."""

    AHEAD = "ahead"
    HOLD = "hold"
    AUTO = "auto"


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One answer to generate.

    Attributes:
        prompt: Token ids.
        max_tokens: Tokens to generate at most.
        params: How the target chooses: temperature, filters, seed, penalties, logit bias.
        stop: Token ids that end the answer, besides the model's own.
        ignore_eos: Go on past the model's own end tokens.
        pace: What the cloud does without drafts.
        logprobs: Ask for the target's log-probability of each token (`Token.logprob`): its own distribution, before
            penalties, bias, grammar, temperature and filters.
        top_logprobs: With logprobs, the likeliest tokens to tell of each position (`Token.top`), from 0 to 20.
        min_tokens: The model's end tokens and `stop` are not chosen before this many tokens.
        grammar: What the answer must match; None is free text. Without `ignore_eos` and `min_tokens` only.
        trace: Tell each drafted node, too (`Drafted`).
        report_refused: Let the cloud keep where it refused a draft, with the text around it, to train better drafts.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    params: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[int, ...] = ()
    ignore_eos: bool = False
    pace: Pace = Pace.AUTO
    logprobs: bool = False
    top_logprobs: int = 0
    min_tokens: int = 0
    grammar: Grammar | None = None
    cloud_drafts: bool = True
    trace: bool = False
    report_refused: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens < 1 << 31:
            raise ParameterError(
                f"max_tokens is {self.max_tokens}", hint="ask for at least 1 token", param="max_tokens"
            )
        if not 0 <= self.min_tokens <= self.max_tokens:
            hint = f"it must be from 0 to max_tokens, {self.max_tokens}"
            raise ParameterError(f"min_tokens is {self.min_tokens}", hint=hint, param="min_tokens")
        check_top_logprobs(self.top_logprobs, logprobs=self.logprobs)
        if self.grammar is not None and (self.ignore_eos or self.min_tokens):
            odd = "ignore_eos" if self.ignore_eos else "min_tokens"
            raise ParameterError("a grammar decides where the answer ends", hint=f"leave out {odd}", param=odd)

    def choices(self, count: int) -> list[GenerateRequest]:
        """`count` requests for alternative answers (`n`): this one, and copies with seeds derived from its seed.

        Choice 0 keeps the seed; see `outrider_shared.sampling.philox.derived_seed` for the others. Equal prompts share
        their KV in the cloud once one of them was computed.
        """
        seeds = [derived_seed(self.params.seed, index) for index in range(count)]
        return [replace(self, params=replace(self.params, seed=seed)) for seed in seeds]


@dataclass(frozen=True, slots=True)
class Token:
    """One committed token.

    Attributes:
        id: Token id.
        origin: Who proposed it.
        logprob: Its natural log-probability under the target, where the request asked for it.
        top: (token id, log-probability) of the target's likeliest tokens here, best first, as many as were asked for.
    """

    id: int
    origin: Origin
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Tokens:
    """The log grew by these; nothing is ever taken back.

    All `Tokens`, `Verified` among them, put together are the answer. A caller that knows of nothing else shows
    committed text only, offline or not.
    """

    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Verified(Tokens):
    """The log grew by these, and they were shown before: they are the oldest tokens of `Unverified`, now committed."""


@dataclass(frozen=True, slots=True)
class Unverified:
    """The device goes on alone (`offline = draft`): its draft model's tokens, behind the log and earlier ones of these.

    Each is later committed as it is (`Verified`) or taken back (`Retracted`), or the answer ends with reason
    `unverified` and they stay what they are.
    """

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Retracted:
    """The target chose otherwise: the last `count` unverified tokens, which are all that are left, never were."""

    count: int


@dataclass(frozen=True, slots=True)
class Offline:
    """Nothing was heard of the cloud for `silent_s`; from here on `OfflinePolicy.mode` decides."""

    reason: str
    silent_s: float


@dataclass(frozen=True, slots=True)
class Settling:
    """The answer is complete, but unverified: for `wait_s` it waits for the cloud, and then ends as it is."""

    wait_s: float


@dataclass(frozen=True, slots=True)
class Online:
    """The cloud is back after `Offline`."""


@dataclass(frozen=True, slots=True)
class DraftedNode:
    """One node of the draft tree, as it went up.

    Attributes:
        number: Its number on this stream.
        parent: Number of the node above it; None where it hangs on the log.
        position: Index in the log that its token would take.
        token: Token id.
        margin: How sure the drafter was, in its own unit; None for a second best.
        source: Kind of drafter; empty for a second best.
    """

    number: int
    parent: int | None
    position: int
    token: int
    margin: float | None
    source: str


@dataclass(frozen=True, slots=True)
class Drafted:
    """These nodes were just sent; told only where the request asked for a trace."""

    nodes: tuple[DraftedNode, ...]


@dataclass(frozen=True, slots=True)
class Reconnecting:
    """The stream broke; the session goes on after `wait_s`, and its text will be what it would have been."""

    reason: str
    wait_s: float


@dataclass(slots=True)
class Totals:
    """What a session did and cost.

    Attributes:
        drafted: Nodes sent to the cloud.
        accepted: Of them, committed.
        cloud_steps: Engine steps that committed tokens.
        cloud_rows: Rows of those steps.
        cloud_lookups, cloud_drafts: Committed tokens that the cloud drafted itself, by lookup and by its draft model.
        lookup_rows, draft_rows: The part of `cloud_rows` that these took.
        cloud_busy_s: The session's share of the time of its steps, the cloud's own drafting included.
        cached_tokens: Prompt tokens whose KV the cloud held when the session began
            (`usage.prompt_tokens_details.cached_tokens`); final with `Finished`.
        uplink_bytes, downlink_bytes: Message bytes with gRPC and HTTP/2 framing, prompt included.
        draft_bytes, draft_messages: The part of the uplink that is drafts.
        draft_s: Seconds spent in the drafter.
        draft_steps: Calls of the drafter.
        connects: Streams opened.
        unverified: Tokens drafted alone that are neither committed nor taken back; not 0 only with reason `unverified`.
        prompt_bytes: The part of the uplink that is `Open` messages.
        prompt_reused: Prompt tokens that the cloud still had from an earlier answer.
    """

    drafted: int = 0
    accepted: int = 0
    cloud_steps: int = 0
    cloud_rows: int = 0
    cloud_lookups: int = 0
    cloud_drafts: int = 0
    lookup_rows: int = 0
    draft_rows: int = 0
    cloud_busy_s: float = 0.0
    cached_tokens: int = 0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    draft_bytes: int = 0
    draft_messages: int = 0
    draft_s: float = 0.0
    draft_steps: int = 0
    connects: int = 0
    unverified: int = 0
    prompt_bytes: int = 0
    prompt_reused: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """The session begins.

    Attributes:
        totals: What it did so far, from now on until its end; to be read only.
    """

    totals: Totals


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete.

    Attributes:
        reason: eos, stop, length, context or cancelled; unverified if the device ended the answer alone and the cloud
            did not come back in time.
        totals: What it cost.
    """

    reason: str
    totals: Totals


SessionEvent = (
    Started | Drafted | Tokens | Unverified | Retracted | Offline | Settling | Online | Reconnecting | Finished
)
