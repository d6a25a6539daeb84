"""HOST:PORT, as flags and settings have it."""

from __future__ import annotations

from outrider_shared.errors import ConfigError


def split_address(address: str) -> tuple[str, int]:
    """Host and port.

    Raises:
        ConfigError: if the text is no HOST:PORT.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"address {address!r} is not HOST:PORT", hint="such as cloud.example:50061")
    return host.strip("[]"), int(port)
