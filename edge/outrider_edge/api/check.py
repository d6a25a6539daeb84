"""`outrider edge check`: what the daemon would do with its settings, and whether the way to the cloud is open."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from outrider_edge.api.daemon import listen, open_device, read_key
from outrider_edge.link.grpc_link import GrpcConnector
from outrider_shared.errors import OutriderError
from outrider_shared.wire import PROTOCOL_VERSION

if TYPE_CHECKING:
    from pathlib import Path

    from outrider_edge.api.config import EdgeConfig
    from outrider_edge.device import Device

_PINGS = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        about: What.
        text: What was found, for a person.
        failed: Whether the daemon could not work like this.
        facts: The same for programs.
    """

    about: str
    text: str
    failed: bool = False
    facts: dict[str, Any] | None = None

    @property
    def mark(self) -> str:
        """How it stands in a list."""
        return "FAIL" if self.failed else " ok "

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


async def check(config: EdgeConfig, file: Path | None) -> list[Finding]:
    """Look at everything that `serve` needs; nothing of a user's is sent."""
    findings = [
        Finding("settings", f"{file or 'no file'}, environment and flags"),
        _endpoint(config),
        _access(config),
        _privacy(config),
    ]
    try:
        device = await asyncio.to_thread(open_device, config)
    except OutriderError as error:
        return [*findings, Finding("draft", str(error), failed=True)]
    findings.append(_draft(device))
    clouds = [await _cloud(address, config, device) for address in config.cloud.addresses]
    return [*findings, *clouds]


def _endpoint(config: EdgeConfig) -> Finding:
    try:
        listen(*config.serve.address).close()
    except OutriderError as error:
        return Finding("endpoint", str(error), failed=True)
    limits = config.limits
    return Finding("endpoint", f"{config.serve.listen}: {limits.concurrent} answers at once, {limits.queue} may wait")


def _access(config: EdgeConfig) -> Finding:
    try:
        key = read_key(config)
    except OutriderError as error:
        return Finding("access", str(error), failed=True)
    who = "this machine only" if config.serve.loopback else "whoever reaches this address"
    if not key and not config.serve.loopback:
        return Finding("access", f"{who}, without a key: set serve.api_key_file", failed=False)
    origins = ", ".join(config.serve.origins) or "none"
    return Finding("access", f"{who}, {'with a key' if key else 'no key'}; web origins: {origins}")


def _privacy(config: EdgeConfig) -> Finding:
    if config.defaults.local_only:
        return Finding("privacy", "nothing leaves the device: the draft model answers alone")
    hook = f"changed by {config.privacy.redact} first" if config.privacy.redact else "as they are"
    logged = "; prompts are logged" if config.privacy.log_prompts else ""
    kept = "; it may keep where it refuses drafts, to train better ones" if config.privacy.report_refused else ""
    padded = "" if config.cloud.padding == "off" else f"; padded on the network ({config.cloud.padding})"
    return Finding("privacy", f"prompts go to the cloud {hook}{kept}{padded}{logged} (docs/privacy.md)")


def _draft(device: Device) -> Finding:
    manifest = device.pack.manifest
    shape = manifest.architecture
    size = f"{manifest.precision}, {shape.layers} layers, {shape.vocab_size} tokens"
    text = f"{manifest.name} ({size}) at {device.pack.path}"
    return Finding("draft", text if device.drafts else f"none; the tokenizer is of {text}")


async def _cloud(address: str, config: EdgeConfig, device: Device) -> Finding:
    connector = GrpcConnector(address, config.cloud.client_tls())
    tls = "TLS" if config.cloud.client_tls() else "plaintext"
    try:
        async with connector:
            answer = await connector.describe()
            times = []
            for _ in range(_PINGS):
                started = time.perf_counter()
                await connector.describe()
                times.append(1000 * (time.perf_counter() - started))
    except OutriderError as error:
        return Finding("cloud", f"{address} ({tls}): {error}", failed=config.cloud.offline == "error")
    if answer.protocol_version != PROTOCOL_VERSION:
        text = f"{address} speaks protocol {answer.protocol_version}, this device {PROTOCOL_VERSION}"
        return Finding("cloud", text, failed=True)
    ours = bytes.fromhex(device.pack.manifest.tokenizer_fingerprint)
    names = ", ".join(model.name for model in answer.models)
    if not any(model.tokenizer_sha256 == ours for model in answer.models):
        text = f"{address} has {names}: another tokenizer than the pack's, every session would be refused"
        return Finding("cloud", text, failed=True)
    facts = {"rtt_ms": min(times), "models": [model.name for model in answer.models], "version": answer.version}
    return Finding("cloud", f"{address} ({tls}): {names}, round trip {min(times):.1f} ms", facts=facts)
