"""A device put together: a pack, a way to the cloud, and the answers that both give."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tokenizers import Tokenizer

from outrider_edge.draft.drafter import Drafter, ModelDrafter
from outrider_edge.draft.lookup import LookupDrafter
from outrider_edge.draft.mixed import MixedDrafter
from outrider_edge.draft.profile import chosen_pack
from outrider_edge.draft.runner import ThreadRunner
from outrider_edge.draft.runtime import DraftModel
from outrider_edge.link.backoff import Backoff
from outrider_edge.link.failover import FailoverConnector
from outrider_edge.link.grpc_link import ClientTls, GrpcConnector
from outrider_edge.report import AnswerReport
from outrider_edge.session.events import (
    Finished,
    GenerateRequest,
    Pace,
    Retracted,
    SessionEvent,
    Tokens,
    Unverified,
    Verified,
)
from outrider_edge.session.generate import Client
from outrider_edge.session.offline import OfflinePolicy
from outrider_edge.session.policy import DraftPolicy
from outrider_shared.calibration import PRIOR, Calibrations
from outrider_shared.errors import DeadlineError
from outrider_shared.logprobs import TokenLogprobs
from outrider_shared.packs import read_pack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

BUNDLED, NONE = "bundled", "none"


def bundled_pack() -> Path:
    """Folder of the draft that ships with the package."""
    return Path(str(files("outrider_edge") / "bundled" / "draft"))


def _pack_of(path: Path) -> Path:
    """A pack folder as it is; of a profile (`outrider edge profile`) the pack that it chose."""
    return chosen_pack(path) if path.suffix == ".json" else path


class Device:
    """Answers requests; use as an async context manager. Make it with `open`."""

    def __init__(
        self,
        connector: FailoverConnector,
        tokenizer: Tokenizer,
        chat_template: str,
        client: Client,
        deadline_s: float | None = None,
    ) -> None:
        self._connector = connector
        self._deadline_s = deadline_s
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self._client = client

    @classmethod
    def open(
        cls,
        cloud: str | Sequence[str],
        draft: str | Path = BUNDLED,
        *,
        tls: ClientTls | None = None,
        policy: DraftPolicy | None = None,
        backoff: Backoff | None = None,
        offline: OfflinePolicy | None = None,
        deadline_s: float | None = None,
        threads: int = 1,
    ) -> Device:
        """A device with a pack; nothing is sent yet.

        Args:
            cloud: HOST:PORT of the verifier; of several, the most preferred first.
            draft: Pack folder, a profile that chose one, `bundled`, or `none` for plain decoding (with the bundled
                pack's tokenizer).
            tls: None is plaintext.
            policy: How far to draft.
            backoff: How long to wait between tries to reach the cloud.
            offline: What to do while no cloud can be reached; by default the answer fails after 15 s.
            deadline_s: Bound on each answer.
            threads: CPU threads of a draft pass.

        Raises:
            PackError: if the pack is damaged.
        """
        pack = read_pack(bundled_pack() if str(draft) in {BUNDLED, NONE} else _pack_of(Path(draft)))
        manifest, policy = pack.manifest, policy or DraftPolicy()

        model = DraftModel.load(pack, threads=threads)
        calibration = Calibrations(manifest.survival or PRIOR)

        def new_drafter() -> Drafter:
            return MixedDrafter(LookupDrafter(), ModelDrafter(model.new_runtime()), calibration.survival_of)

        addresses = [cloud] if isinstance(cloud, str) else list(dict.fromkeys(cloud))
        connector = FailoverConnector({a: GrpcConnector(a, tls, deadline_s=deadline_s) for a in addresses})
        client = Client(
            connector,
            vocabulary=manifest.architecture.vocab_size,
            tokenizer_sha256=manifest.tokenizer_fingerprint,
            new_drafter=None if str(draft) == NONE else new_drafter,
            policy=policy,
            calibration=calibration,
            backoff=backoff or Backoff(),
            offline=offline or OfflinePolicy(),
            eos=frozenset(manifest.eos_ids),
            runner=ThreadRunner(),
        )
        tokenizer = Tokenizer.from_file(str(pack.tokenizer_path))
        return cls(connector, tokenizer, pack.chat_template or "", client, deadline_s)

    @property
    def calibration(self) -> Calibrations:
        """How far each kind of draft is trusted by now."""
        return self._client.calibration

    async def __aenter__(self) -> Self:
        await self._connector.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connector.__aexit__(kind, error, trace)
        self._client.runner.close()

    async def answer(
        self,
        request: GenerateRequest,
        on_event: Callable[[SessionEvent], None] | None = None,
        *,
        plain: bool = False,
    ) -> AnswerReport:
        """Generate one answer to its end.

        Args:
            request: What to answer.
            on_event: Sees each event as it comes.
            plain: Stream the target's own decoding, without drafts of anybody.

        Raises:
            OutriderError: as `Client.generate`.
        """
        started, first_s = time.perf_counter(), 0.0
        ids: list[int] = []
        alone: list[int] = []
        told: list[TokenLogprobs] = []
        finished: Finished | None = None
        client = dataclasses.replace(self._client, new_drafter=None) if plain else self._client
        events = client.generate(
            dataclasses.replace(request, pace=Pace.AHEAD, cloud_drafts=False) if plain else request
        )
        try:
            async with asyncio.timeout(self._deadline_s), contextlib.aclosing(events):
                async for event in events:
                    if isinstance(event, Tokens):
                        first_s = first_s or time.perf_counter() - started
                        ids += [token.id for token in event.tokens]
                        told += [TokenLogprobs(t.logprob, t.top) for t in event.tokens if t.logprob is not None]
                        if isinstance(event, Verified):
                            del alone[: len(event.tokens)]
                    elif isinstance(event, Unverified):
                        alone += event.tokens
                    elif isinstance(event, Retracted):
                        del alone[-event.count :]
                    elif isinstance(event, Finished):
                        finished = event
                    if on_event is not None:
                        on_event(event)
        except TimeoutError:
            raise DeadlineError(f"the answer was not complete within {self._deadline_s:g} s") from None
        assert finished is not None, "an answer ends with Finished"
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return AnswerReport(text, ids, finished, time.perf_counter() - started, first_s, alone, told)
