"""What is compared: every method is a way for the same device to get the same answer.

    plain       no drafts, the cloud decodes and streams
    chain-K     synchronous speculation: K tokens are drafted, sent, and nothing is drafted until their commit is here
    ours-PACE   pipelined, with trees, stopping by margin, the cloud at that pace, which looks up, too
    ours-PACE+draft  the same against a cloud with a draft model beside the target

Co-located speculation is one of the last two, run beside the cloud, with the tokens streamed down (`relay`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from outrider_edge.session.events import Pace
from outrider_edge.session.policy import DraftPolicy
from outrider_shared.errors import ConfigError

LENGTHS = range(1, 9)
# No message before its chain is complete.
_WHOLE_BURST_S = 3600.0


@dataclass(frozen=True, slots=True)
class Method:
    """One way.

    Attributes:
        name: In results.
        pace: What the cloud does without drafts.
        drafts: Whether there is a drafter.
        policy: How far to draft.
        cloud_drafts: Whether the cloud may draft, too.
        draft_cloud: Whether the cloud is the one with a draft model.
    """

    name: str
    pace: Pace
    drafts: bool = True
    policy: DraftPolicy = field(default_factory=DraftPolicy)
    cloud_drafts: bool = False
    draft_cloud: bool = False


def plain() -> Method:
    """Cloud streaming."""
    return Method("plain", Pace.AHEAD, drafts=False)


def chain(length: int) -> Method:
    """Synchronous speculation of a fixed length."""
    policy = DraftPolicy(
        depth=length, width=1, stop_survival=0.0, bursts_ahead=0, coalesce_s=_WHOLE_BURST_S, timed=False, adaptive=False
    )
    return Method(f"chain-{length}", Pace.HOLD, policy=policy)


def ours() -> list[Method]:
    """Each pace as the product runs it."""
    return [Method(f"ours-{pace.value}", pace, cloud_drafts=True) for pace in Pace]


def beside() -> Method:
    """Co-located speculation as our own engine does it: the cloud has a draft model, the device only listens."""
    return Method("beside", Pace.AHEAD, drafts=False, cloud_drafts=True, draft_cloud=True)


def ours_with_draft() -> list[Method]:
    """The same against a cloud that has a draft model."""
    return [replace(how, name=f"{how.name}+draft", draft_cloud=True) for how in ours()]


def drafted() -> list[Method]:
    """All that draft on one side: what co-located speculation takes its fastest of."""
    alone = [replace(how, name=f"{how.name}-alone", cloud_drafts=False) for how in ours()]
    return [*(chain(length) for length in LENGTHS), *ours(), *alone]


def method(name: str) -> Method:
    """The method of a name.

    Raises:
        ConfigError: if there is none.
    """
    for known in (plain(), beside(), *drafted(), *ours_with_draft()):
        if known.name == name:
            return known
    raise ConfigError(f"there is no method {name!r}", hint=f"known: {[known.name for known in drafted()]}")
