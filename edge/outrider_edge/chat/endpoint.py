"""Answers of a daemon, over its HTTP endpoint."""

from __future__ import annotations

import contextlib
import http.client
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from outrider_shared.errors import ConfigError, ContextError, InputError, OutriderError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from outrider_edge.chat.answerer import Chunk

_SILENT_S = 60.0  # the daemon says something every 15 s, if only that it is still there


class Endpoint:
    """A daemon; see `Answerer`.

    Args:
        url: Its base, such as http://127.0.0.1:8484.
        key: That it asks for; empty for none.

    Raises:
        ConfigError: if the URL is none.
    """

    def __init__(self, url: str, key: str = "") -> None:
        place = urlsplit(url)
        if place.scheme not in {"http", "https"} or not place.hostname:
            raise ConfigError(f"{url!r} is no URL of a daemon", hint="such as http://127.0.0.1:8484")
        self._url, self._place = url, place
        self._path = place.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}

    def answer(self, body: dict[str, Any], take: Callable[[Chunk], None]) -> None:
        """See `Answerer`."""
        with self._call("POST", "/v1/chat/completions", json.dumps(body).encode()) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    chunk = json.loads(line[6:])
                    if "error" in chunk:
                        raise _error(500, chunk)
                    take(chunk)

    def status(self) -> dict[str, Any]:
        """See `Answerer`."""
        with self._call("GET", "/outrider/status") as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def close(self) -> None:
        """Nothing is held between answers."""

    @contextlib.contextmanager
    def _call(self, method: str, path: str, body: bytes | None = None) -> Iterator[http.client.HTTPResponse]:
        """One request on a connection of its own: closing it is how a daemon is told that nobody listens any more."""
        kind = http.client.HTTPSConnection if self._place.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._place.hostname or "", self._place.port, timeout=_SILENT_S)
        try:
            connection.request(method, self._path + path, body, self._headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise _error(answer.status, _read(answer))
            yield answer
        except (OSError, http.client.HTTPException) as error:
            hint = "start one with `outrider edge serve`, or give --cloud to do without"
            raise UnavailableError(f"no daemon answers at {self._url}: {error}", hint=hint) from error
        finally:
            connection.close()


def _read(answer: http.client.HTTPResponse) -> dict[str, Any]:
    try:
        found = json.load(answer)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _error(status: int, body: dict[str, Any]) -> OutriderError:
    told = body.get("error") or {}
    message = str(told.get("message") or f"the daemon answered with status {status}")
    if told.get("code") == ContextError.code:
        return ContextError(message)
    return InputError(message) if 400 <= status < 429 else UnavailableError(message)
