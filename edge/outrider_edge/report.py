"""What an answer was and what it cost, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outrider_edge.session.events import Finished
    from outrider_shared.logprobs import TokenLogprobs


@dataclass(frozen=True, slots=True)
class AnswerReport:
    """One answer.

    Attributes:
        text: Decoded without special tokens.
        token_ids: Beyond the prompt.
        finished: Reason and totals.
        wall_s: From the call to the last token, connecting included.
        first_s: From the call to the first token (TTFT).
        unverified_ids: What the draft model went on with alone and the cloud did not see; in no case part of `text`.
        logprobs: Of each token, where asked for.
    """

    text: str
    token_ids: list[int]
    finished: Finished
    wall_s: float
    first_s: float
    unverified_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    @property
    def tokens_per_step(self) -> float:
        """Committed tokens per engine step of this session."""
        return len(self.token_ids) / max(1, self.finished.totals.cloud_steps)

    def as_dict(self) -> dict[str, Any]:
        """The keys of `--json`."""
        totals = self.finished.totals
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "unverified_ids": self.unverified_ids,
            **({"logprobs": [asdict(entry) for entry in self.logprobs]} if self.logprobs else {}),
            "finish": self.finished.reason,
            "cloud_steps": totals.cloud_steps,
            "tokens_per_step": self.tokens_per_step,
            "drafted": totals.drafted,
            "accepted": totals.accepted,
            "uplink_bytes": totals.uplink_bytes,
            "downlink_bytes": totals.downlink_bytes,
            "draft_bytes": totals.draft_bytes,
            "draft_messages": totals.draft_messages,
            "draft_s": totals.draft_s,
            "cloud_rows": totals.cloud_rows,
            "cloud_lookups": totals.cloud_lookups,
            "cloud_drafts": totals.cloud_drafts,
            "cached_tokens": totals.cached_tokens,
            "connects": totals.connects,
            "ttft_s": self.first_s,
            "wall_s": self.wall_s,
        }

    def summary(self) -> str:
        """One line for a person."""
        totals, count = self.finished.totals, len(self.token_ids)
        own = totals.cloud_lookups + totals.cloud_drafts
        cloud = f" and {own} of the cloud's" if own else ""
        alone = f", {len(self.unverified_ids)} more unverified" if self.unverified_ids else ""
        return (
            f"\n{count} tokens in {totals.cloud_steps} cloud steps ({self.tokens_per_step:.2f} per step), "
            f"{totals.accepted} of {totals.drafted} drafts accepted{cloud}, {totals.uplink_bytes} B up, "
            f"{totals.downlink_bytes} B down, {count / self.wall_s:.0f} tokens/s{alone}"
        )
