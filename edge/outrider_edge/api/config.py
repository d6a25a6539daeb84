"""Everything that can be set about the daemon; validated by raising. How it is read: `settings.py`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outrider_edge.session.events import Pace
from outrider_edge.session.offline import OfflineMode
from outrider_edge.session.policy import DraftPolicy
from outrider_shared.errors import ConfigError
from outrider_shared.sampling import SamplingParams

if TYPE_CHECKING:
    from outrider_edge.link.grpc_link import ClientTls


_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^/?#\s\"]+")


@dataclass(frozen=True, slots=True)
class Cloud:
    """The way to the cloud.

    Attributes:
        addresses: HOST:PORT, the most preferred first.
        tls: Use TLS with the system's roots; implied by `ca`.
        ca, cert, key: PEM files; empty is none.
        offline: What to do without it: error, wait or draft.
        offline_after_s: Silence after which it counts as away.
        settle_s: With `draft`: how long an answer that is complete, but not verified, waits for the cloud.
        padding: Blocks of one size at fixed times, against who listens on the network: off, on, or BYTES/INTERVAL.
    """

    addresses: tuple[str, ...] = ("127.0.0.1:50061",)
    tls: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""
    offline: str = OfflineMode.ERROR.value
    offline_after_s: float = 15.0
    settle_s: float = 30.0
    padding: str = "off"

    def __post_init__(self) -> None:
        _require(bool(self.addresses), "cloud.addresses", self.addresses, "at least one HOST:PORT")
        _require(self.offline in set(OfflineMode), "cloud.offline", self.offline, "error, wait or draft")
        for name in ("offline_after_s", "settle_s"):
            _require(getattr(self, name) >= 0, f"cloud.{name}", getattr(self, name), "0 or more seconds")
        if (self.cert or self.key) and not (self.tls or self.ca):
            raise ConfigError("cloud.cert and cloud.key need cloud.tls or cloud.ca")
        if self.padding != "off":
            from outrider_shared.padding import Padding  # noqa: PLC0415 - it knows the wire, which is slow to import

            Padding.parse(self.padding)

    def client_tls(self) -> ClientTls | None:
        """The files as the link wants them; None is plaintext."""
        from pathlib import Path  # noqa: PLC0415 - the link is slow to import, a config is not

        from outrider_edge.link.grpc_link import ClientTls  # noqa: PLC0415

        if not (self.tls or self.ca):
            return None
        return ClientTls(*(Path(name) if name else None for name in (self.ca, self.cert, self.key)))


@dataclass(frozen=True, slots=True)
class Draft:
    """The draft model.

    Attributes:
        pack: Folder, `bundled`, or `none` for plain decoding.
        threads: CPU threads of a pass.
        depth, width: Longest chain of a burst, candidates per position.
    """

    pack: str = "bundled"
    threads: int = 1
    depth: int = DraftPolicy().depth
    width: int = DraftPolicy().width

    def __post_init__(self) -> None:
        _require(1 <= self.threads <= 256, "draft.threads", self.threads, "from 1 to 256")
        DraftPolicy(depth=self.depth, width=self.width)


@dataclass(frozen=True, slots=True)
class Serve:
    """The endpoint and who may use it.

    Attributes:
        listen: HOST:PORT; port 0 takes a free one.
        api_key: Asked for as `Authorization: Bearer KEY`; empty asks for none.
        api_key_file: File with the key, for secrets that are mounted.
        hosts: Names in the `Host` header that are answered, besides those of loopback and of `listen`.
        origins: Web origins that may call (CORS); none by default, and "*" is all.
        playground: Serve the page at /.
        drain_s: How long a stop waits for answers.
    """

    listen: str = "127.0.0.1:8484"
    api_key: str = field(default="", repr=False)
    api_key_file: str = ""
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    playground: bool = True
    drain_s: float = 20.0

    def __post_init__(self) -> None:
        host, _, port = self.listen.rpartition(":")
        ok = bool(host) and port.isdecimal() and int(port) < 1 << 16
        _require(ok, "serve.listen", self.listen, "HOST:PORT, such as 127.0.0.1:8484")
        _require(self.drain_s >= 0, "serve.drain_s", self.drain_s, "0 or more seconds")
        if self.api_key and self.api_key_file:
            raise ConfigError("serve.api_key and serve.api_key_file are both given", hint="give one of them")
        for name in self.hosts:
            _require("/" not in name and name.count(":") != 1, "serve.hosts", name, "a name without scheme and port")
        for origin in self.origins:
            _require(
                _ORIGIN.fullmatch(origin) is not None,
                "serve.origins",
                origin,
                "as browsers send it, such as https://app.example, or *",
            )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        host = self.address[0]
        return host in {"localhost", "::1"} or host.startswith("127.")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the endpoint.

    Attributes:
        concurrent: Answers at once.
        queue: Requests that may wait for a slot.
        queue_s: How long one waits.
        deadline_s: Most time for one answer.
        body_bytes: Largest request.
        stall_s: A client that takes nothing for so long is let go.
        memory_mb: Most address space of the process; 0 is no bound.
    """

    concurrent: int = 32
    queue: int = 64
    queue_s: float = 30.0
    deadline_s: float = 600.0
    body_bytes: int = 4 << 20
    stall_s: float = 60.0
    memory_mb: int = 0

    def __post_init__(self) -> None:
        for name in ("concurrent", "queue_s", "deadline_s", "body_bytes", "stall_s"):
            _require(getattr(self, name) > 0, f"limits.{name}", getattr(self, name), "more than 0")
        for name in ("queue", "memory_mb"):
            _require(getattr(self, name) >= 0, f"limits.{name}", getattr(self, name), "0 or more")


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a request that does not say gets.

    Attributes:
        temperature, top_p, top_k, min_p: As OpenAI's API has them: sampling at temperature 1.
        max_tokens: Tokens at most, as far as the context has room.
        pace: auto, ahead or hold.
        smooth: Spread bursts of tokens.
        local_only: Never leave the device.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 2048
    pace: str = Pace.AUTO.value
    smooth: bool = False
    local_only: bool = False

    def __post_init__(self) -> None:
        SamplingParams(self.temperature, self.top_k, self.top_p, self.min_p)
        _require(self.max_tokens > 0, "defaults.max_tokens", self.max_tokens, "more than 0")
        _require(self.pace in set(Pace), "defaults.pace", self.pace, "auto, ahead or hold")


@dataclass(frozen=True, slots=True)
class Privacy:
    """What leaves the device, and what is written down.

    Attributes:
        redact: `module:function` that changes each text before it is sent on; empty is none.
        log_prompts: Write prompts and answers to the log.
        report_refused: Let the cloud keep where it refused drafts, with the text around, to train better ones.
    """

    redact: str = ""
    log_prompts: bool = False
    report_refused: bool = False

    def __post_init__(self) -> None:
        ok = not self.redact or all(part.replace(".", "").isidentifier() for part in self.redact.split(":", 1))
        _require(ok and (not self.redact or ":" in self.redact), "privacy.redact", self.redact, "module:function")


@dataclass(frozen=True, slots=True)
class EdgeConfig:
    """All of it, by section."""

    cloud: Cloud = field(default_factory=Cloud)
    draft: Draft = field(default_factory=Draft)
    serve: Serve = field(default_factory=Serve)
    limits: Limits = field(default_factory=Limits)
    defaults: Defaults = field(default_factory=Defaults)
    privacy: Privacy = field(default_factory=Privacy)


def _require(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise ConfigError(f"{name} is {value!r}", hint=f"it must be {expected}")
