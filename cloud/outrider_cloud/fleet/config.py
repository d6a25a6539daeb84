"""What an operator can set about the fleet service; apart from the service, which is slow to import."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """What an operator can set.

    Attributes:
        tick_s: How often roll-outs are looked at.
        keep_days: How long telemetry is kept.
        epoch: Of the desired states; raise it when the registry was restored from a backup.
    """

    tick_s: float = 0.5
    keep_days: float = 30.0
    epoch: int = 1


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """What an operator can set.

    Attributes:
        dsn: The registry; a file in the fleet's folder by default.
        admin_host, admin_port: Where page and API listen. There is no TLS on this one: keep it on loopback, or put a
            proxy with TLS before it.
        controller: See there.
    """

    dsn: str = ""
    admin_host: str = "127.0.0.1"
    admin_port: int = 8445
    controller: ControllerConfig = field(default_factory=ControllerConfig)
