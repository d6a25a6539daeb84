"""The daemon's process: sockets, signals, systemd, and an orderly end.

Order of a start: the socket first (health says 503), then the pack in a thread, then READY. Order of a stop: nothing
new, what is being answered gets `drain_s`, then the sockets close. SIGHUP reads the pack again (from the path of the
configuration file, which may have changed) and swaps it in.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import resource
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import uvicorn

from outrider_edge.api.app import build_app
from outrider_edge.api.desk import Desk
from outrider_edge.api.metrics import Metrics
from outrider_edge.api.notify import keep_watchdog_quiet, notify
from outrider_shared.errors import ConfigError, OutriderError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from outrider_edge.agent.agent import Agent
    from outrider_edge.api.config import EdgeConfig
    from outrider_edge.device import Device

_log = structlog.get_logger(__name__)


class Daemon:
    """One `outrider edge serve`.

    Args:
        config: All settings.
        reread: Reads the configuration again, for SIGHUP.
        fleet: `agent.toml` or its folder: take part in that fleet, which then decides which pack is in use.
    """

    def __init__(
        self, config: EdgeConfig, reread: Callable[[], EdgeConfig] | None = None, fleet: Path | None = None
    ) -> None:
        self._config, self._reread, self._fleet = config, reread, fleet
        self._stop = asyncio.Event()
        metrics = Metrics()
        self.desk = Desk(config.limits, metrics, config.privacy)
        self._app = build_app(self.desk, config, metrics, read_key(config))

    async def run(self, on_ready: Callable[[str], None] | None = None) -> None:
        """Serve until `stop`, or a signal.

        Args:
            on_ready: Told the base URL when requests can be answered.

        Raises:
            ConfigError: if the address cannot be listened on.
            PackError: if the pack is damaged.
        """
        limit_memory(self._config.limits.memory_mb)
        listening = listen(*self._config.serve.address)
        server = _Server(uvicorn.Config(
            self._app, lifespan="off", log_config=None, access_log=False, server_header=False, timeout_keep_alive=30,
            timeout_graceful_shutdown=2, ws="none",
        ))  # fmt: skip
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        tasks = [asyncio.create_task(keep_watchdog_quiet())]
        swaps: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                _on_signal(signals, loop, number, self.stop)
            _on_signal(signals, loop, signal.SIGHUP, lambda: swaps.add(loop.create_task(self._swap_again())))
            try:
                agent = await asyncio.to_thread(self._join_fleet)
                device = await asyncio.to_thread(open_device, self._config)
                async with device:
                    self.desk.wear(device)
                    if not self._config.defaults.local_only:
                        tasks.append(asyncio.create_task(self.desk.learn_names()))
                    if agent is not None:
                        tasks.append(asyncio.create_task(_run_agent(agent)))
                    url = _url(listening)
                    notify(f"READY=1\nSTATUS=serving {url} with pack {self.desk.outfit.name}")
                    _log.info("ready", url=url, pack=self.desk.outfit.name, cloud=self._config.cloud.addresses)
                    if on_ready is not None:
                        on_ready(url)
                    await self._until_stop(serving)
                    notify("STOPPING=1")
                    drained = await self.desk.drain(self._config.serve.drain_s)
                    _log.info("stopped", drained=drained)
                    server.should_exit = True
                    await serving
            finally:
                server.should_exit = True
                for task in (*tasks, *swaps):
                    task.cancel()
                await asyncio.gather(serving, *tasks, *swaps, return_exceptions=True)

    def stop(self) -> None:
        """Begin an orderly end; a second call ends at once."""
        if self._stop.is_set():
            self.desk.hurry()
        self._stop.set()

    def _join_fleet(self) -> Agent | None:
        """The fleet's agent, which says which pack to begin with; before that pack is loaded, as it counts starts."""
        if self._fleet is None:
            return None
        from outrider_edge.agent.build import build_agent  # noqa: PLC0415 - [edge] alone has no MQTT
        from outrider_edge.agent.desk_host import DeskHost  # noqa: PLC0415 - likewise

        draft = self._config.draft
        base = Path(draft.pack) if draft.pack not in {"bundled", "none"} else None
        host = DeskHost(self.desk, keep_logs=not self._config.privacy.log_prompts)
        agent, pack = build_agent(self._fleet, host, base)
        self._config = dataclasses.replace(self._config, draft=dataclasses.replace(draft, pack=str(pack)))
        return agent

    async def _until_stop(self, serving: asyncio.Task[None]) -> None:
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        if serving.done():
            await serving

    async def _swap_again(self) -> None:
        try:
            if self._fleet is not None:
                raise ConfigError("the fleet decides which pack is in use")
            config = self._reread() if self._reread is not None else self._config
            notify("RELOADING=1")
            await self.desk.swap(config.draft.pack)
        except OutriderError as error:
            _log.error("the pack was not swapped", error=str(error))
        finally:
            if self.desk.ready:  # a signal may come while the first pack is being loaded
                notify("READY=1")


async def _run_agent(agent: Agent) -> None:
    """The agent's fault is not the endpoint's."""
    try:
        await agent.run()
    except Exception as error:  # noqa: BLE001 - whatever it is, requests are answered on
        _log.error("the fleet's agent ended", error=repr(error))


def open_device(config: EdgeConfig) -> Device:
    """The device of a configuration; slow, it loads a model.

    Raises:
        PackError: if the pack is damaged.
        ConfigError: if a TLS file cannot be read.
    """
    # Imported here: the socket is up, and health answers, before these take their time.
    from outrider_edge.device import Device  # noqa: PLC0415
    from outrider_edge.session.offline import OfflineMode, OfflinePolicy  # noqa: PLC0415
    from outrider_edge.session.policy import DraftPolicy  # noqa: PLC0415
    from outrider_shared.padding import Padding  # noqa: PLC0415

    cloud, draft = config.cloud, config.draft
    return Device.open(
        cloud.addresses,
        draft.pack,
        tls=cloud.client_tls(),
        policy=DraftPolicy(depth=draft.depth, width=draft.width),
        offline=OfflinePolicy(OfflineMode(cloud.offline), cloud.offline_after_s, cloud.settle_s),
        threads=draft.threads,
        padding=Padding.parse(cloud.padding),
    )


def read_key(config: EdgeConfig) -> str:
    """The API key; empty where none is asked for.

    Raises:
        ConfigError: if its file cannot be read or is empty.
    """
    name = config.serve.api_key_file
    if not name:
        return config.serve.api_key
    try:
        key = Path(name).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"serve.api_key_file {name} cannot be read: {error}") from error
    if not key:
        raise ConfigError(f"serve.api_key_file {name} is empty")
    return key


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: if the address is in use or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(256)
    except OSError as error:
        sock.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error}", hint="see serve.listen") from error
    sock.setblocking(False)
    return sock


def limit_memory(most_mb: int) -> None:
    """Bound the address space: beyond it an allocation fails here instead of starving the device."""
    if most_mb:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (most_mb << 20, hard))


class _Server(uvicorn.Server):
    """Signals are the daemon's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave signals alone."""
        yield


def _on_signal(
    stack: contextlib.ExitStack, loop: asyncio.AbstractEventLoop, number: signal.Signals, call: Callable[[], object]
) -> None:
    with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):  # not in the main thread
        loop.add_signal_handler(number, call)
        stack.callback(loop.remove_signal_handler, number)


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
