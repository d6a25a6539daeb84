"""One answer, whatever happens to the network: state, line and drafter put together.

What a resumed session needs is on the device: prompt, committed tokens, parameters and seed. By the invariants its text
is what it would have been, on the same replica or on another.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from outrider_edge.draft.runner import DraftRunner, ThreadRunner
from outrider_edge.link.backoff import Backoff
from outrider_edge.session.events import Started
from outrider_edge.session.line import Line, Liveness
from outrider_edge.session.loop import SessionLoop
from outrider_edge.session.memory import Clouds
from outrider_edge.session.offline import Alone, OfflinePolicy
from outrider_edge.session.policy import DraftPolicy
from outrider_edge.session.state import SessionState
from outrider_shared.calibration import Calibrations
from outrider_shared.errors import PromptError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from outrider_edge.link.link import Connector
    from outrider_edge.link.padded_link import PaddedStreams
    from outrider_edge.session.events import GenerateRequest, SessionEvent
    from outrider_shared.drafting.drafter import Drafter


@dataclass(frozen=True)
class Client:
    """What all sessions of a device share.

    Attributes:
        connector: The way to the cloud.
        vocabulary: Tokens of the draft's (and the target's) vocabulary.
        tokenizer_sha256: Fingerprint of the tokenizer, hex.
        new_drafter: Makes one session's drafter; None decodes plainly.
        policy: How far to draft.
        calibration: Margin to survival, shared by the device's sessions.
        backoff: How long to wait between tries.
        liveness: When a silent cloud counts as dead.
        offline: What to do without the cloud.
        eos: The model's end tokens, for answers without the cloud.
        runner: Where draft passes run; by default in the event loop.
        clouds: What is remembered of clouds: logs that they were sent, how far they are, how long their steps take.
        padded: Pads streams against who listens on the network; None leaves them as they are.
    """

    connector: Connector
    vocabulary: int
    tokenizer_sha256: str
    new_drafter: Callable[[], Drafter] | None = None
    policy: DraftPolicy = field(default_factory=DraftPolicy)
    calibration: Calibrations = field(default_factory=Calibrations)
    backoff: Backoff = field(default_factory=Backoff)
    liveness: Liveness = field(default_factory=Liveness)
    offline: OfflinePolicy = field(default_factory=OfflinePolicy)
    eos: frozenset[int] = frozenset()
    runner: DraftRunner = field(default_factory=lambda: ThreadRunner(threaded=False))
    clouds: Clouds = field(default_factory=Clouds)
    padded: PaddedStreams | None = None

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[SessionEvent]:
        """Events of one answer, from `Started` to `Finished`.

        Raises:
            PromptError: if a token of the prompt is outside the vocabulary, or there is none.
            OutriderError: what the cloud refused, or `UnavailableError` as `offline` says.
        """
        _check(request, self.vocabulary)
        # Blocks leave on their own schedule: nodes wait for the next one, not for the cloud's next step.
        policy = self.policy if self.padded is None else replace(self.policy, timed=False)
        state = SessionState(request, policy, self.vocabulary, self.calibration)
        line = Line(self.connector, self.backoff, self._liveness(), state.totals, self.padded)
        drafter = None if self.new_drafter is None else self.new_drafter()
        alone = Alone(request, self.eos)
        session = SessionLoop(
            state, self.tokenizer_sha256, line, drafter, self.runner, self.offline, alone, self.clouds
        )
        yield Started(state.totals)
        async with contextlib.aclosing(session.run()) as events:
            async for event in events:
                yield event

    def _liveness(self) -> Liveness:
        """Asks early enough that a live cloud never counts as away."""
        probe_s = min(self.liveness.probe_s, max(0.05, self.offline.after_s / 3))
        return Liveness(probe_s, max(self.liveness.dead_s, 2 * probe_s))


def _check(request: GenerateRequest, vocabulary: int) -> None:
    if not request.prompt:
        raise PromptError("the prompt is empty", hint="give at least one token")
    outside = [token for token in request.prompt if not 0 <= token < vocabulary]
    if outside:
        raise PromptError(f"token id {outside[0]} is outside the vocabulary of {vocabulary}")
