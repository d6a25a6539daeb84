"""The fleet service as one process: broker connection, controller, API and page, artifact server.

    https://LISTEN:HTTPS_PORT/artifacts   for devices, with the fleet's certificate
    http://ADMIN                          for operators: page, API and metrics; on loopback unless told otherwise

Whoever can read the fleet's folder is its operator: the first token is written there (`admin.token`).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING

import structlog
import uvicorn
from sqlalchemy import select

from outrider_cloud.fleet.artifacts.server import artifact_app
from outrider_cloud.fleet.broker_refusals import follow
from outrider_cloud.fleet.config import ServeConfig
from outrider_cloud.fleet.controller import Controller
from outrider_cloud.fleet.home import ADMIN_TOKEN
from outrider_cloud.fleet.plane import Plane, PlaneConfig
from outrider_cloud.fleet.registry import access
from outrider_cloud.fleet.registry.access import Role
from outrider_cloud.fleet.registry.database import Database, sqlite_url
from outrider_cloud.fleet.registry.tables import devices
from outrider_cloud.fleet.web.app import fleet_app
from outrider_cloud.fleet.web.state import Services
from outrider_shared.errors import ConfigError, OutriderError, UnavailableError, ungrouped
from outrider_shared.fleet.mqtt import MqttBroker
from outrider_shared.ids import DeviceId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from starlette.types import ASGIApp

    from outrider_cloud.fleet.home import FleetHome

_REFRESH_S = 86400.0
# Of Python's lock. An answer to the page waits for it a dozen times while the controller goes through a large fleet: at
# the 5 ms that are usual that is felt.
_SWITCH_S = 0.0005
_log = structlog.get_logger()


def open_registry(home: FleetHome, dsn: str = "") -> Database:
    """The fleet's registry; the first time, with a token for whoever can read the folder.

    Raises:
        ConfigError, StorageError: if it cannot be opened.
    """
    file = home.folder / "fleet.db"
    if not dsn:
        file.touch(mode=0o600)  # webhooks' secrets are in it; what SQLite lays beside it has the same mode
    database = Database(dsn or sqlite_url(file))
    path = home.folder / ADMIN_TOKEN
    if not path.exists():
        with database.transaction() as connection:
            access.revoke(connection, "admin")
            token = access.new_token(connection, "admin", Role.APPROVER)
        path.touch(mode=0o600)
        path.write_text(token + "\n", "utf-8")
    return database


async def serve(
    home: FleetHome, config: ServeConfig | None = None, on_ready: Callable[[str], object] = lambda _page: None
) -> None:
    """Run until cancelled; `on_ready` is told the address of the page.

    Raises:
        ConfigError: if a port is taken.
        UnavailableError: if the broker cannot be reached at all at the start.
    """
    sys.setswitchinterval(_SWITCH_S)
    for key in home.bare_keys:
        _log.warning("fleet_key_is_readable_by_everybody", key=str(key), hint=f"chmod 600 {key}")
    config = config or ServeConfig()
    database = open_registry(home, config.dsn)
    controller = Controller(database, config.controller)
    settings = home.settings
    plane = Plane(
        MqttBroker(home.mqtt()),
        home.signer,
        controller,
        PlaneConfig(settings.tenant, config.controller.epoch),
        known=_known(database),
    )
    services = Services(controller, plane, home.repository)
    certificate, key = home.server_certificate
    with contextlib.closing(database), ungrouped():
        async with (
            _server(artifacts(services), settings.listen, settings.https_port, certificate, key),
            _server(fleet_app(services), config.admin_host, config.admin_port),
            asyncio.TaskGroup() as group,
        ):
            group.create_task(plane.run())
            await _reach(plane, settings.mqtt_port)
            group.create_task(controller.run(plane))
            group.create_task(_refresh(home))
            group.create_task(asyncio.to_thread(_first_look, services))
            group.create_task(follow(home.folder / "broker", controller))
            page = f"http://{config.admin_host}:{config.admin_port}"
            _log.info("fleet_serving", page=page, artifacts=home.url, token=str(home.folder / ADMIN_TOKEN))
            on_ready(page)


def artifacts(services: Services) -> ASGIApp:
    """What devices reach: artifacts and nothing else."""
    from starlette.applications import Starlette  # noqa: PLC0415 - beside its one use
    from starlette.routing import Mount  # noqa: PLC0415

    assert services.repository is not None, "a service that serves has one"
    return Starlette(routes=[Mount("/artifacts", artifact_app(services.repository))])


async def _reach(plane: Plane, port: int) -> None:
    try:
        await asyncio.wait_for(plane.connected(), 15)
    except TimeoutError:
        raise UnavailableError(
            f"no broker answers on port {port}", hint="start it: outrider fleet broker --dir FOLDER"
        ) from None


def _first_look(services: Services) -> None:
    """Who opens the page first does not wait for what nobody looked at yet; the disk may be slow."""
    with contextlib.suppress(OutriderError):  # whoever asks is told
        services.glance.overview()
        services.glance.counts()


async def _refresh(home: FleetHome) -> None:
    """Snapshot and timestamp expire within days, so that nobody can hold news back; renew them."""
    while True:
        await asyncio.sleep(_REFRESH_S)
        await asyncio.to_thread(home.repository.refresh)


def _known(database: Database) -> dict[DeviceId, tuple[int, int]]:
    with database.transaction() as connection:
        chosen = select(devices.c.id, devices.c.tele_bd, devices.c.tele_seq).where(devices.c.tele_bd >= 0)
        return {DeviceId(name): (bd, seq) for name, bd, seq in connection.execute(chosen)}


@contextlib.asynccontextmanager
async def _server(
    app: ASGIApp, host: str, port: int, certificate: Path | None = None, key: Path | None = None
) -> AsyncIterator[None]:
    """A listening uvicorn without signal handlers of its own."""
    tls = {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)} if certificate is not None else {}
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
        **tls,  # type: ignore[arg-type]
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    running = asyncio.create_task(_served(server))
    while not server.started:
        if running.done():
            raise ConfigError(f"cannot listen on {host}:{port}", hint="is the port taken?")
        await asyncio.sleep(0.02)
    try:
        yield
    finally:
        server.should_exit = True
        await running


async def _served(server: uvicorn.Server) -> None:
    """Uvicorn ends the process where it cannot listen; we end in words."""
    with contextlib.suppress(SystemExit):
        await server.serve()
