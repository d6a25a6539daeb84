"""A device put together: a pack, a way to the cloud, and the answers that both give."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tokenizers import Tokenizer

from outrider_edge.draft.lookup import LookupDrafter
from outrider_edge.draft.mixed import MixedDrafter
from outrider_edge.draft.profile import chosen_pack
from outrider_edge.draft.runner import ThreadRunner
from outrider_edge.link.backoff import Backoff
from outrider_edge.link.failover import FailoverConnector
from outrider_edge.link.grpc_link import ClientTls, GrpcConnector
from outrider_edge.link.padded_link import PaddedStreams
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
from outrider_edge.session.local import generate_alone
from outrider_edge.session.offline import OfflineMode, OfflinePolicy
from outrider_edge.session.policy import DraftPolicy
from outrider_shared.calibration import PRIOR, Calibrations
from outrider_shared.drafting.drafter import Drafter, ModelDrafter
from outrider_shared.drafting.runtime import DraftModel
from outrider_shared.errors import ConfigError, DeadlineError
from outrider_shared.logprobs import TokenLogprobs
from outrider_shared.packs import bundled_pack, read_pack
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from types import TracebackType

    from outrider_shared.padding import Padding

BUNDLED, NONE, MIXED = "bundled", "none", "mixed"


def _pack_of(path: Path) -> Path:
    """A pack folder as it is; of a profile (`outrider edge profile`) the pack that it chose."""
    return chosen_pack(path) if path.suffix == ".json" else path


def _load(draft: str | Path, threads: int) -> DraftModel:
    pack = read_pack(bundled_pack() if str(draft) in {BUNDLED, NONE} else _pack_of(Path(draft)))
    return DraftModel.load(pack, threads=threads)


def _new_drafter(model: DraftModel, calibration: Calibrations, kind: str = MIXED) -> Drafter:
    if kind == "lookup":
        return LookupDrafter()
    drafter = ModelDrafter(model.new_runtime())
    if kind == "model":
        return drafter
    if kind != MIXED:
        raise ConfigError(f"there is no drafter {kind!r}", hint="mixed, model, lookup or none")
    return MixedDrafter(LookupDrafter(), drafter, calibration.survival_of)


class Device:
    """Answers requests; use as an async context manager. Make it with `open`."""

    def __init__(
        self,
        connector: FailoverConnector,
        model: DraftModel,
        client: Client,
        deadline_s: float | None = None,
        threads: int = 1,
    ) -> None:
        self._connector = connector
        self._deadline_s = deadline_s
        self._threads = threads
        self._model = model
        self._client = client
        self.pack = model.pack
        self.tokenizer = Tokenizer.from_file(str(model.pack.tokenizer_path))
        self.chat_template = model.pack.chat_template or ""

    @classmethod
    def open(  # noqa: PLR0913 - a keyword per setting, each with its default
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
        padding: Padding | None = None,
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
            padding: Blocks of one size at fixed times in place of messages, against who listens on the network.

        Raises:
            PackError: if the pack is damaged.
        """
        model = _load(draft, threads)
        manifest, calibration = model.manifest, Calibrations(model.manifest.survival or PRIOR)
        addresses = [cloud] if isinstance(cloud, str) else list(dict.fromkeys(cloud))
        connector = FailoverConnector({a: GrpcConnector(a, tls, deadline_s=deadline_s) for a in addresses})
        client = Client(
            connector,
            vocabulary=manifest.architecture.vocab_size,
            tokenizer_sha256=manifest.tokenizer_fingerprint,
            new_drafter=None if str(draft) == NONE else functools.partial(_new_drafter, model, calibration),
            policy=policy or DraftPolicy(),
            calibration=calibration,
            backoff=backoff or Backoff(),
            offline=offline or OfflinePolicy(),
            eos=frozenset(manifest.eos_ids),
            runner=ThreadRunner(),
            padded=None if padding is None else PaddedStreams(padding),
        )
        return cls(connector, model, client, deadline_s, threads)

    def with_pack(self, draft: str | Path) -> Device:
        """The same device with another pack: its own drafts and calibration, the same way to the cloud.

        Sessions of either go on side by side; the connection belongs to the one that was entered.

        Raises:
            PackError: if the pack is damaged.
        """
        model = _load(draft, self._threads)
        manifest, calibration = model.manifest, Calibrations(model.manifest.survival or PRIOR)
        client = dataclasses.replace(
            self._client,
            vocabulary=manifest.architecture.vocab_size,
            tokenizer_sha256=manifest.tokenizer_fingerprint,
            new_drafter=None if str(draft) == NONE else functools.partial(_new_drafter, model, calibration),
            calibration=calibration,
            eos=frozenset(manifest.eos_ids),
        )
        return Device(self._connector, model, client, self._deadline_s, self._threads)

    @property
    def drafts(self) -> bool:
        """Whether answers are drafted unless something else is asked for."""
        return self._client.new_drafter is not None

    @property
    def cloud(self) -> str:
        """Address that new sessions go to."""
        return self._connector.current

    @property
    def rtt_ms(self) -> float | None:
        """Round trip of pings to that address, smoothed over the device's sessions; None before the first."""
        rtt_s = self._client.clouds.measured.of(self.cloud).rtt_s
        return None if rtt_s is None else 1000 * rtt_s

    async def describe(self) -> pb.DescribeResponse:
        """What the cloud in use holds and allows.

        Raises:
            UnavailableError: if it cannot be reached.
        """
        answer = await self._connector.probe()
        assert isinstance(answer, pb.DescribeResponse)
        return answer

    def events(
        self,
        request: GenerateRequest,
        *,
        drafter: str | None = None,
        offline: OfflineMode | None = None,
        local_only: bool = False,
    ) -> AsyncGenerator[SessionEvent]:
        """Events of one answer, from `Started` to `Finished`; leave the iteration to cancel.

        Args:
            request: What to answer.
            drafter: `mixed`, `model`, `lookup` or `none`; None is what the device was opened with.
            offline: What to do without the cloud; None is what the device was opened with.
            local_only: Nothing leaves the device; the draft model answers alone.

        Raises:
            OutriderError: as `Client.generate`, as `generate_alone` where nothing may leave the device.
        """
        client = self._client
        if local_only:
            return generate_alone(
                request,
                _new_drafter(self._model, self.calibration, "model"),
                vocabulary=client.vocabulary,
                eos=client.eos,
            )
        if drafter is not None:
            new = None if drafter == NONE else functools.partial(_new_drafter, self._model, self.calibration, drafter)
            client = dataclasses.replace(client, new_drafter=new)
        if offline is not None:
            client = dataclasses.replace(client, offline=dataclasses.replace(client.offline, mode=offline))
        return client.generate(request)

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
        await self.settle()
        await self._connector.__aexit__(kind, error, trace)
        self._client.runner.close()

    async def settle(self) -> None:
        """Wait until padded streams whose answers are complete have come to the end of their rounds."""
        if self._client.padded is not None:
            await self._client.padded.close()

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
