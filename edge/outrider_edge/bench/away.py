"""A link on which every packet is lost from one moment on: what each offline behaviour does, and how soon.

In the middle of an answer the link goes dead. `told_s` is from then until the caller hears of it; the cloud was last
heard of up to a ping's interval before. With `wait` and `draft` the link comes back, and the answer ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING, Any

from outrider_edge.session.events import Offline, Online, Retracted, Tokens, Unverified, Verified
from outrider_edge.session.offline import OfflineMode, OfflinePolicy
from outrider_shared.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from outrider_edge.device import Device
    from outrider_edge.session.events import GenerateRequest, SessionEvent
    from outrider_shared.emulator.control import LinkProcess
    from outrider_shared.emulator.profile import LinkProfile

AFTER_S = 2.0
# How long the link stays dead once the device has noticed.
_DEAD_S = 2.0


class Watch:
    """Follows one answer; kills the link at the first token and revives it some time after the device has noticed."""

    def __init__(self, link: LinkProcess, profile: LinkProfile) -> None:
        self._link, self._profile = link, profile
        self._changes: list[asyncio.Task[None]] = []
        self.dead_at = 0.0
        self.told_s: float | None = None
        self.back_s: float | None = None
        self.unverified = self.verified = self.retracted = 0

    def __call__(self, event: SessionEvent) -> None:
        """See one event."""
        now = time.perf_counter()
        if isinstance(event, Tokens) and not self.dead_at:
            self.dead_at = now
            self._change(dataclasses.replace(self._profile, loss=1.0))
        elif isinstance(event, Offline):
            self.note(now)
            self._change(self._profile, _DEAD_S)
        elif isinstance(event, Online):
            self.back_s = now - self.dead_at
        if isinstance(event, Unverified):
            self.unverified += len(event.tokens)
        elif isinstance(event, Verified):
            self.verified += len(event.tokens)
        elif isinstance(event, Retracted):
            self.retracted += event.count

    def note(self, now: float) -> None:
        """The caller hears that the cloud is away."""
        self.told_s = now - self.dead_at

    async def close(self) -> None:
        """The link is well again."""
        await asyncio.gather(*self._changes)
        await self._link.set(self._profile)

    def _change(self, profile: LinkProfile, after_s: float = 0.0) -> None:
        async def change() -> None:
            await asyncio.sleep(after_s)
            await self._link.set(profile)

        self._changes.append(asyncio.ensure_future(change()))


async def away(
    open_device: Callable[[OfflinePolicy], Device], link: LinkProcess, profile: LinkProfile, request: GenerateRequest,
    expected: Sequence[int],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """What each offline behaviour did.

    Args:
        open_device: Opens a device, behind the link, with that policy.
        link: Between it and the cloud.
        profile: Of the link while it is well.
        request: What is asked.
        expected: Tokens of the undisturbed answer.
    """
    return {
        mode.value: await _one(open_device(OfflinePolicy(mode, AFTER_S)), Watch(link, profile), request, expected)
        for mode in OfflineMode
    }


async def _one(device: Device, watch: Watch, request: GenerateRequest, expected: Sequence[int]) -> dict[str, Any]:
    failed, tokens = "", None
    async with device, contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(watch.close)
        try:
            tokens = (await device.answer(request, watch)).token_ids
        except UnavailableError as error:
            watch.note(time.perf_counter())
            failed = error.code
    return {
        "offline_after_s": AFTER_S,
        "told_s": watch.told_s,
        "error": failed or None,
        "unverified_tokens": watch.unverified,
        "later_verified": watch.verified,
        "later_retracted": watch.retracted,
        "online_again_s": watch.back_s,
        "identical_to_plain": None if tokens is None else list(tokens) == list(expected),
    }
