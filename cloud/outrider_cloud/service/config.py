"""What an operator can set of the service."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider_shared.addresses import split_address
from outrider_shared.errors import ConfigError
from outrider_shared.wire import MAX_MESSAGE_BYTES, NODES_BEFORE_OPENED

if TYPE_CHECKING:
    from pathlib import Path

    from outrider_cloud.replay.store import ReplayConfig


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of the server.

    Attributes:
        certificate: The server's chain.
        key: Its private key.
        client_ca: With it, every device must present a certificate that it signed (mTLS); the CN names the device.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def __post_init__(self) -> None:
        for path in (self.certificate, self.key, self.client_ca):
            if path is not None and not path.is_file():
                raise ConfigError(f"TLS file {path} does not exist")


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """Where the service listens, and its bounds.

    Attributes:
        listen: HOST:PORT; port 0 takes a free one.
        tls: Server certificate; None is plaintext.
        insecure: Allow plaintext on an address that is not loopback.
        max_nodes_per_message: Nodes in one Draft.
        max_message_bytes: Size of one message from a device.
        max_sessions_per_device: Streams of one certificate CN, or of one peer address without mTLS.
        open_timeout_s: How long a new stream may take to send Open.
        stall_timeout_s: How long a device may leave our messages unread before its stream is cut (and its KV leased).
        grammar_timeout_s: Most time that an answer's grammar may take to compile.
        remembered_tokens: Tokens of earlier logs that are kept so that devices need not send them again; 0 keeps none.
        share_prefixes: Devices share the KV of equal prompts. Whoever guesses a prompt, block by block, can then see by
            `Opened.cached_tokens` and by time that another device used it lately; for devices of one owner.
        drain_s: How long a stopping service lets sessions finish before it asks them to go on elsewhere.
        replay: Where refused drafts of devices that agreed are kept; None keeps none.
        metrics: HOST:PORT of the page for Prometheus; port 0 takes a free one, an empty text serves none.
    """

    listen: str = "127.0.0.1:0"
    tls: TlsFiles | None = None
    insecure: bool = False
    max_nodes_per_message: int = 128
    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_sessions_per_device: int = 256
    open_timeout_s: float = 10.0
    stall_timeout_s: float = 20.0
    grammar_timeout_s: float = 5.0
    remembered_tokens: int = 1 << 22
    share_prefixes: bool = False
    drain_s: float = 20.0
    replay: ReplayConfig | None = None
    metrics: str = ""

    def __post_init__(self) -> None:
        if self.max_nodes_per_message < NODES_BEFORE_OPENED:
            raise ConfigError(
                f"max_nodes_per_message is {self.max_nodes_per_message}",
                hint=f"devices count on at least {NODES_BEFORE_OPENED}",
            )
        host = _host(self.listen, "listen")
        if self.metrics:
            _host(self.metrics, "metrics")
        if self.tls is None and not self.insecure and not _loopback(host.strip("[]")):
            raise ConfigError(
                f"{self.listen} is not a loopback address and there is no TLS",
                hint="give --tls-cert and --tls-key, or --insecure if the network is trusted",
            )

    def check_free(self) -> None:
        """Refuse addresses that cannot be listened on, before minutes are spent on a model.

        Raises:
            ConfigError: which one, and why.
        """
        for address, hint in ((self.listen, "--listen HOST:PORT"), (self.metrics, "--metrics HOST:PORT")):
            if address and not address.endswith(":0"):
                _try_to_bind(address, hint)


def _host(address: str, name: str) -> str:
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{name} address {address!r} is not HOST:PORT")
    return host


def _try_to_bind(address: str, hint: str) -> None:
    host, port = split_address(address)
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do, after one of before
            probe.bind(where)
    except OSError as error:
        raise ConfigError(f"cannot listen on {address}: {error.strerror or error}", hint=hint) from error


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
