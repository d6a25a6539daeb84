"""`outrider edge agent`: a process that only carries an agent, and ends with a goodbye on SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

from outrider_edge.agent.build import build_agent
from outrider_edge.agent.host import StandaloneHost
from outrider_shared.errors import ungrouped

if TYPE_CHECKING:
    from pathlib import Path


async def run_standalone(file: Path, base: Path | None = None) -> None:
    """Run until a signal ends it.

    Raises:
        ConfigError: if the file cannot be used.
        RefusedError: if the broker does not take this device.
    """
    host = StandaloneHost()
    agent, pack = build_agent(file, host, base)
    await host.swap(pack)
    task = asyncio.create_task(agent.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with ungrouped(), contextlib.suppress(asyncio.CancelledError):
        await task
