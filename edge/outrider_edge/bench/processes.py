"""The processes that take part: the cloud, the relay beside it; and what they cost in processor time."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import importlib
import ipaddress
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from outrider_edge.link.grpc_link import ClientTls
from outrider_shared.errors import ConfigError, UnavailableError
from outrider_shared.processes import ending_on_sigterm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

_START_S = 120.0
_STOP_S = 15.0
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Served:
    """A process that serves.

    Attributes:
        address: HOST:PORT.
        pid: Of the process.
        metrics: HOST:PORT of its page for Prometheus; empty where it has none.
    """

    address: str
    pid: int
    metrics: str = ""

    def cpu_s(self) -> float | None:
        """Processor seconds of all its threads so far; None where the system does not tell (no Linux)."""
        try:
            tasks = list(Path(f"/proc/{self.pid}/task").iterdir())
            return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
        except (OSError, ValueError, IndexError):
            return None


def measured(measurement: Coroutine[Any, Any, Result]) -> Result:
    """Run a measurement; ended by Ctrl-C or SIGTERM it ends its processes before."""
    with ending_on_sigterm():
        return asyncio.run(measurement)


@contextlib.asynccontextmanager
async def serving(module: str, *flags: str) -> AsyncIterator[Served]:
    """Run a module that takes `--ready-file` until the block ends.

    Raises:
        UnavailableError: if it does not come up; the message has its last words.
    """
    with tempfile.TemporaryDirectory(prefix="outrider-bench-") as folder:
        ready, log = Path(folder) / "address", Path(folder) / "log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", module, *flags, "--ready-file", str(ready), stdout=output, stderr=output
            )
        try:
            end = time.monotonic() + _START_S
            while not ready.exists():
                if process.returncode is not None or time.monotonic() > end:
                    words = log.read_text(errors="replace").strip().splitlines()[-3:]
                    raise UnavailableError(f"{module} did not start: {' | '.join(words) or 'no output'}")
                await asyncio.sleep(0.05)
            yield Served(ready.read_text(), process.pid)
        finally:
            await _stop(process)


async def _stop(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def cloud_flags(model: str, threads: int, step_ms: float) -> list[str]:
    """Flags of `outrider cloud serve`; with `step_ms` above 0 its engine is paced."""
    flags = ["serve", "--listen", "127.0.0.1:0", "--model", model, "--threads", str(threads), "--drain-s", "0"]
    return [*flags, "--pace-step-ms", f"{step_ms:g}"] if step_ms else flags


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate for this run.

    Attributes:
        certificate, key: PEM files.
    """

    certificate: Path
    key: Path

    @property
    def client(self) -> ClientTls:
        """What a device needs to trust it."""
        return ClientTls(self.certificate)

    @property
    def server_flags(self) -> list[str]:
        """What a server needs to show it."""
        return ["--tls-cert", str(self.certificate), "--tls-key", str(self.key)]


def make_identity(folder: Path) -> Identity:
    """A self-signed certificate for 127.0.0.1, good for a day.

    Raises:
        ConfigError: if the package `cryptography` is not installed.
    """
    try:
        x509 = importlib.import_module("cryptography.x509")
        primitives = "cryptography.hazmat.primitives"
        hashes, forms, ec = (
            importlib.import_module(f"{primitives}.{name}") for name in ("hashes", "serialization", "asymmetric.ec")
        )
    except ModuleNotFoundError:
        raise ConfigError("--tls needs the package cryptography", hint="pip install 'outrider[bench]'") from None
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "outrider bench")])
    hosts = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(subject_name=name, issuer_name=name, public_key=key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).add_extension(hosts, critical=False)
    builder = builder.not_valid_before(now - dt.timedelta(hours=1)).not_valid_after(now + dt.timedelta(days=1))
    identity = Identity(folder / "certificate.pem", folder / "key.pem")
    identity.certificate.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(forms.Encoding.PEM))
    plain = forms.NoEncryption()
    identity.key.write_bytes(key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, plain))
    return identity
