"""What devices are used to, beyond one answer: how soon after a commit their drafts come.

A session that begins knows nothing of its device; the answers that the same device got before do.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outrider_cloud.engine.session import Session

_DEVICES = 4096


class Habits:
    """Response times by the scope of a session's KV, which is its device; the least recently used are forgotten."""

    def __init__(self) -> None:
        self._response_s: OrderedDict[bytes, float] = OrderedDict()

    def begin(self, session: Session) -> None:
        """A session opened: it starts from what its device is used to."""
        session.response_s = self._response_s.get(session.request.scope)

    def end(self, session: Session) -> None:
        """A session ended: remember it."""
        if session.response_s is None:
            return
        self._response_s[session.request.scope] = session.response_s
        self._response_s.move_to_end(session.request.scope)
        if len(self._response_s) > _DEVICES:
            self._response_s.popitem(last=False)
