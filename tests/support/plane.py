"""The service's side of MQTT with a sink that remembers."""

from __future__ import annotations

import asyncio
import contextlib

from outrider_cloud.fleet.plane import Arrived, Plane, PlaneConfig
from outrider_shared.fleet.messages import UpdateStatus
from outrider_shared.fleet.session import Retry


class Seen:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.all: list[Arrived] = []
        self.refusals: list[tuple[str, str]] = []
        self._more = asyncio.Event()

    async def arrived(self, batch):
        self.all += batch
        self._more.set()

    async def refused(self, topic, error):
        self.refusals.append((topic, error.code))

    async def until(self, kind, wanted=lambda message: True, seconds=180.0):
        """The newest message of a kind that fits; waits for it."""
        async with asyncio.timeout(seconds):
            while True:
                for arrived in reversed(self.all):
                    if arrived.new and isinstance(arrived.message, kind) and wanted(arrived.message):
                        return arrived.message
                self._more.clear()
                await self._more.wait()

    def states(self, rollout: str) -> list[str]:
        return [
            str(a.message.state)
            for a in self.all
            if isinstance(a.message, UpdateStatus) and a.message.rollout == rollout
        ]


@contextlib.asynccontextmanager
async def plane_of(home, broker):
    seen = Seen()
    plane = Plane(broker, home.signer, seen, PlaneConfig(batch_s=0.02), retry=Retry(0.05, 0.5))
    task = asyncio.create_task(plane.run())
    await plane.connected()
    try:
        yield plane, seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
