"""Distinct id types, so that a session is never passed where a device is meant."""

from __future__ import annotations

import re
import secrets
from typing import NewType

from outrider_shared.errors import ProtocolError

SessionId = NewType("SessionId", str)
DeviceId = NewType("DeviceId", str)
NodeId = NewType("NodeId", int)

_SESSION_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
_DEVICE_ID = re.compile(r"[a-z0-9][a-z0-9-]{1,62}")
SERVICE_PREFIX = "svc-"


def new_session_id() -> SessionId:
    """A fresh random id (128 bits): unguessable, so that no device can name another's session."""
    return SessionId(secrets.token_urlsafe(16))


def parse_session_id(text: str) -> SessionId:
    """Check an id from the wire.

    Raises:
        ProtocolError: if it is not 8 to 64 characters of A-Z, a-z, 0-9, '_' and '-'.
    """
    if not _SESSION_ID.fullmatch(text):
        raise ProtocolError(f"session id {text[:80]!r} is malformed", hint="use 8 to 64 characters of A-Z a-z 0-9 _ -")
    return SessionId(text)


def parse_device_id(text: str) -> DeviceId:
    """Check the name of a device: it is a certificate's CN, an MQTT client id and one level of a topic.

    Raises:
        ProtocolError: if it is not 2 to 63 characters of a-z, 0-9 and '-', or is a service's name.
    """
    if not _DEVICE_ID.fullmatch(text) or text.startswith(SERVICE_PREFIX):
        raise ProtocolError(
            f"device id {text[:80]!r} is malformed",
            hint=f"use 2 to 63 characters of a-z 0-9 -, not - first, and not {SERVICE_PREFIX!r} first",
        )
    return DeviceId(text)
