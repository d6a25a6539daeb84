"""What a device is to be: one signed document, whose number only grows.

Rules of `accept`, in this order:

1. The envelope is signed as "desired" by a trusted key (`SignatureError`).
2. The document names this device (`SignatureError`: a true document of another device is a forgery here).
3. (epoch, version) is not below the last one applied (`ReplayError`).
4. With the same (epoch, version) the bytes of the document are the same: then there is nothing to do (None); with other
   bytes there are two writers (`ConflictError`), and the one that came first stands.

`epoch` grows when the registry was restored from a backup, so that its versions may begin again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Annotated, Any

from outrider_shared.errors import ConflictError, ReplayError, SignatureError
from outrider_shared.fleet.codec import Bound, encode
from outrider_shared.fleet.messages import Count, Name, Seconds, Sha256
from outrider_shared.fleet.signed import Signer, Trust
from outrider_shared.ids import DeviceId

PURPOSE = "desired"


@dataclass(frozen=True, slots=True)
class Window:
    """Seconds of the UTC day in which downloads may run; `end` before `start` goes over midnight."""

    start_s: Annotated[int, Bound(0, 86399)] = 0
    end_s: Annotated[int, Bound(0, 86400)] = 86400


@dataclass(frozen=True, slots=True)
class Config:
    """What an operator may set on devices.

    Attributes:
        telemetry_s: Length of a window of telemetry.
        bandwidth_bytes_s: Most bytes per second of a download; 0 is no bound.
        window: When downloads may run.
        probation_requests, probation_s: A new draft is kept after that many answers, or that long without a failure.
        probation_boots: Starts of the agent within probation after which the device goes back.
        log_lines: What collect-logs returns at most.
    """

    telemetry_s: Annotated[float, Bound(0.1, 86400)] = 30.0
    bandwidth_bytes_s: Count = 0
    window: Window = field(default_factory=Window)
    probation_requests: Annotated[int, Bound(1, 1 << 31)] = 20
    probation_s: Annotated[float, Bound(0, 86400 * 30)] = 600.0
    probation_boots: Annotated[int, Bound(1, 100)] = 3
    log_lines: Annotated[int, Bound(1, 1000)] = 200


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which draft the device is to run.

    Attributes:
        rollout, attempt: Whose doing this is; a higher attempt of the same roll-out tries again.
        target: Path of the archive in the TUF repository. What it is, its hash and whom it fits stand there, signed.
        sha256: Hash of the archive: two ways to say the same must agree.
    """

    rollout: Name
    attempt: Count
    target: Name
    sha256: Sha256


@dataclass(frozen=True, slots=True)
class Desired:
    """The whole document."""

    device: Name
    epoch: Count
    version: Count
    issued: Seconds
    config: Config = field(default_factory=Config)
    assignment: Assignment | None = None
    labels: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Applied:
    """The number and digest of the last document that was applied; kept on the device's disk."""

    epoch: int = 0
    version: int = 0
    digest: str = ""


def sign(signer: Signer, document: Desired) -> bytes:
    """The payload of the topic `desired`."""
    return signer.sign(PURPOSE, document)


def accept(trust: Trust, device: DeviceId, last: Applied, payload: bytes) -> tuple[Desired, Applied] | None:
    """The document, if it is new and to be applied; None if it is the one that was applied last.

    Raises:
        ProtocolError: if it is malformed.
        SignatureError, ReplayError, ConflictError: by the rules above.
    """
    document = trust.open(PURPOSE, Desired, payload)
    if document.device != device:
        raise SignatureError(f"desired state of {document.device!r} came to {device!r}")
    found, known = (document.epoch, document.version), (last.epoch, last.version)
    digest = hashlib.sha256(encode(document)).hexdigest()
    if found < known:
        raise ReplayError(f"desired state {found} is older than {known}, which is applied")
    if found > known or not last.digest:
        return document, Applied(*found, digest)
    if digest != last.digest:
        raise ConflictError(
            f"two desired states with number {found}: {digest[:12]} came, {last.digest[:12]} is applied"
        )
    return None
