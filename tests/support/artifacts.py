"""The artifact server as it is deployed: HTTPS with the fleet's certificate, in a thread."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

import uvicorn

from outrider_cloud.fleet.artifacts.server import artifact_app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from outrider_cloud.fleet.home import FleetHome


@contextlib.contextmanager
def artifact_server(home: FleetHome) -> Iterator[None]:
    """Serves /artifacts of a fleet on its port."""
    from starlette.applications import Starlette
    from starlette.routing import Mount

    certificate, key = home.server_certificate
    app = Starlette(routes=[Mount("/artifacts", artifact_app(home.repository))])
    config = uvicorn.Config(
        app, host="127.0.0.1", port=home.settings.https_port, ssl_certfile=str(certificate), ssl_keyfile=str(key),
        log_level="error",
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < end, "the artifact server did not start"
        time.sleep(0.02)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10)
