"""What a step committed and nobody was told of yet.

The log has it already: that decides what the next step runs. Events, the account of each session and what is learned
from refused drafts can wait until that step is launched, so that they do not stand before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider_cloud.drafts.fill import source_of
from outrider_cloud.engine.accept import judge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_cloud.drafts.fill import CloudDrafts
    from outrider_cloud.engine.events import Committed, Sink, Source
    from outrider_cloud.engine.schedule import Work


@dataclass(frozen=True, slots=True)
class Entry:
    """One session's part of a step.

    Attributes:
        work: What ran.
        offsets: Rows that the target's choices led through, as `accept` returned them.
        origins: Who proposed each committed token.
        event: For the sink.
        sink: The session's when it was committed; a resume may have given it another since.
    """

    work: Work
    offsets: Sequence[int]
    origins: Sequence[Source]
    event: Committed
    sink: Sink


class Ledger:
    """Entries in the order of their commits."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def add(self, entry: Entry) -> None:
        """Keep it until `close`."""
        self._entries.append(entry)

    def close(self, drafts: CloudDrafts) -> None:
        """Tell and learn from all entries: events first, devices wait for them.

        Args:
            drafts: Learns from what steps say of its nodes.
        """
        entries, self._entries = self._entries, []
        for entry in entries:
            _account(entry)
            entry.sink(entry.event)
        for entry in entries:
            judged = judge(entry.work.nodes, entry.offsets)
            entry.work.session.learn(judged, len(entry.origins))
            drafts.learn(judged)


def _account(entry: Entry) -> None:
    usage = entry.work.session.usage
    usage.steps += 1
    usage.rows += entry.work.rows
    for node in entry.work.nodes:
        usage.ran(source_of(node))
    for origin in entry.origins[:-1]:  # the last one is the target's own, whether somebody drafted it or not
        usage.committed(origin)
