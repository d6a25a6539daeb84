"""Commands that talk to a running `outrider fleet serve` through its API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click
import urllib3
from rich.console import Console
from rich.table import Table

from outrider_cloud.fleet.home import ADMIN_TOKEN
from outrider_shared.cli import TypedErrors
from outrider_shared.errors import ConfigError, InputError, OutriderError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

_http = urllib3.PoolManager()


class Client:
    """The API of one fleet service.

    Args:
        url: Where it listens.
        folder: The fleet's folder, for the token; `token` goes before it.

    Attributes:
        folder: That folder.
    """

    def __init__(self, url: str, folder: Path, token: str | None = None) -> None:
        self._url, self.folder = url.rstrip("/"), folder
        if token is None:
            try:
                token = (folder / ADMIN_TOKEN).read_text("utf-8").strip()
            except OSError as error:
                raise ConfigError(
                    f"no token: {folder / ADMIN_TOKEN} cannot be read ({error.strerror})",
                    hint="give --token, or --dir with the fleet's folder; `outrider fleet serve` writes the file",
                ) from error
        self._headers = {"authorization": f"Bearer {token}"}

    def call(self, verb: str, path: str, body: object | None = None, timeout_s: float = 30.0) -> dict[str, Any]:
        """One request.

        Raises:
            UnavailableError: if the service cannot be reached.
            OutriderError: what the service said.
        """
        try:
            answer = _http.request(
                verb, f"{self._url}/api{path}", json=body, headers=self._headers, timeout=timeout_s, retries=False
            )
        except urllib3.exceptions.HTTPError as error:
            raise UnavailableError(
                f"no fleet service at {self._url}: {_reason(error)}",
                hint="start it: outrider fleet serve; or give its --url",
            ) from error
        try:
            told: dict[str, Any] = answer.json()
        except json.JSONDecodeError:
            raise UnavailableError(f"{self._url} answered HTTP {answer.status}, not as a fleet service") from None
        if answer.status >= 400:
            unnamed = {"message": f"the service has nothing at {verb} {path} (HTTP {answer.status})"}
            raise _said(told.get("error", unnamed), answer.status)
        return told


def _said(error: dict[str, str], status: int) -> OutriderError:
    """The error that the service meant."""
    kinds, known = [OutriderError], dict[str, type[OutriderError]]()
    while kinds:
        kind = kinds.pop()
        known[kind.code] = kind
        kinds += kind.__subclasses__()
    found = known.get(error.get("code", ""), InputError if status < 500 else OutriderError)
    return found(error["message"], hint=error.get("hint", ""))


def client_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the service is and who asks; gives the command a `client`."""

    def run(*, url: str, folder: Path, token: str | None, **rest: Any) -> Any:
        return command(client=Client(url, folder, token), **rest)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for option in (
        click.option("--token", envvar="OUTRIDER_FLEET_TOKEN", help="Who asks; by default the folder's admin.token."),
        click.option("--dir", "folder", type=click.Path(path_type=Path), envvar="OUTRIDER_FLEET", default="fleet", show_default=True, help="The fleet's folder."),
        click.option("--url", envvar="OUTRIDER_FLEET_URL", default="http://127.0.0.1:8445", show_default=True, help="The service."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    ):  # fmt: skip
        run = option(run)
    return run


def show(told: dict[str, Any], rows: list[dict[str, Any]] | None, columns: str, *, as_json: bool) -> None:
    """As JSON, or as a table of these columns."""
    if as_json or rows is None:
        click.echo(json.dumps(told, indent=None if as_json else 2))
        return
    table = Table(*columns.split(), box=None, header_style="bold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns.split()))
    Console(width=None if Console().is_terminal else 160).print(table)


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)


@click.group(cls=TypedErrors)
def device() -> None:
    """Devices: list, look at, configure."""


@device.command("list")
@click.option("--group", default="", help="Only of this group.")
@click.option("--search", default="", help="Part of the name.")
@click.option("--limit", type=click.IntRange(1, 500), default=100, show_default=True, help="At most so many.")
@client_options
def list_devices(client: Client, *, group: str, search: str, limit: int, as_json: bool) -> None:
    """Devices by name."""
    told = client.call("GET", f"/devices?group={quote(group)}&search={quote(search)}&limit={limit}")
    show(told, told["devices"], "id online device_class active_name active_target acceptance p95_ms", as_json=as_json)


@device.command("show")
@click.argument("name")
@client_options
def show_device(client: Client, *, name: str, as_json: bool) -> None:
    """What a device is and is to be."""
    show(client.call("GET", f"/devices/{part(name)}"), None, "", as_json=as_json)


@device.command("set")
@click.argument("settings", nargs=-1, required=True)
@click.option("--device", "name", default="", help="One device; without it, a group or all.")
@click.option("--group", default="", help="All of a group.")
@client_options
def configure(client: Client, *, settings: tuple[str, ...], name: str, group: str, as_json: bool) -> None:
    """Change SETTINGS (KEY=VALUE): telemetry_s, bandwidth_bytes_s, window, probation_requests, probation_s, ..."""
    config = {key: _value(value) for key, value in map(pair, settings)}
    path = f"/devices/{part(name)}/config" if name else f"/config?group={quote(group)}"
    show(client.call("PATCH", path, config), None, "", as_json=as_json)


@click.group(cls=TypedErrors)
def group() -> None:
    """Groups of devices, named or by label."""


@group.command("list")
@client_options
def list_groups(client: Client, *, as_json: bool) -> None:
    """All groups."""
    told = client.call("GET", "/groups")
    show(told, told["groups"], "name members labels", as_json=as_json)


@group.command("set")
@click.argument("name")
@click.argument("members", nargs=-1)
@click.option("--label", "labels", multiple=True, help="KEY=VALUE that a device must carry; may be given again.")
@client_options
def set_group(client: Client, *, name: str, members: tuple[str, ...], labels: tuple[str, ...], as_json: bool) -> None:
    """Make or replace group NAME of MEMBERS, or of all that carry the labels."""
    body = {"members": list(members), "labels": dict(map(pair, labels))}
    show(client.call("PUT", f"/groups/{part(name)}", body), None, "", as_json=as_json)


@click.group(cls=TypedErrors)
def rollout() -> None:
    """Roll-outs: make, start, watch, stop."""


@rollout.command("create")
@click.argument("name")
@click.argument("target")
@click.option("--group", default="", help="Only devices of this group.")
@click.option("--stages", default="5,25,100", show_default=True, help="Percent of the devices, rising to 100.")
@click.option(
    "--soak", "soak_s", type=click.FloatRange(0), default=600.0, show_default=True, help="Seconds between stages."
)
@click.option(
    "--control",
    "control_percent",
    type=click.FloatRange(0, 50),
    default=10.0,
    show_default=True,
    help="Percent that keep the old draft to compare with.",
)
@click.option(
    "--per-minute",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    help="Devices told per minute in the first stage.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, min_open=True),
    default=3600.0,
    show_default=True,
    help="Seconds until a device counts as silent.",
)
@click.option(
    "--on-breach",
    type=click.Choice(["pause", "rollback"]),
    default="rollback",
    show_default=True,
    help="What a broken gate does.",
)
@click.option(
    "--approvals", type=click.IntRange(0, 5), default=0, show_default=True, help="Others who have to agree first."
)
@click.option(
    "--gate", "gates", multiple=True, help="KEY=VALUE of a gate, such as max_failed=0.05; may be given again."
)
@click.option("--start/--no-start", "start", default=False, help="Submit it at once.")
@client_options
def create_rollout(
    client: Client,
    *,
    name: str,
    target: str,
    stages: str,
    soak_s: float,
    gates: tuple[str, ...],
    start: bool,
    as_json: bool,
    **spec: Any,
) -> None:
    """Make roll-out NAME of the published pack TARGET."""
    try:
        parts = [{"percent": float(part), "soak_s": soak_s} for part in stages.split(",")]
    except ValueError:
        raise ConfigError(f"--stages {stages!r} is not a list of numbers such as 5,25,100") from None
    body = {"name": name, "target": target, "stages": parts, "gates": {k: _value(v) for k, v in map(pair, gates)}}
    told = client.call("POST", "/rollouts", body | spec)
    if start:
        told = client.call("POST", f"/rollouts/{part(name)}/submit")
    show(told, [told], "id state stage stage_state reason", as_json=as_json)


@rollout.command("list")
@client_options
def list_rollouts(client: Client, *, as_json: bool) -> None:
    """All roll-outs, newest first."""
    told = client.call("GET", "/rollouts")
    show(told, told["rollouts"], "id state stage stage_state counts waits_for gate reason", as_json=as_json)


@rollout.command("show")
@click.argument("name")
@client_options
def show_rollout(client: Client, *, name: str, as_json: bool) -> None:
    """Stages, evidence and what happened."""
    show(client.call("GET", f"/rollouts/{part(name)}"), None, "", as_json=as_json)


def _verb(verb: str, about: str) -> None:
    @rollout.command(verb, help=about)
    @click.argument("name")
    @client_options
    def act(client: Client, *, name: str, as_json: bool) -> None:
        told = client.call("POST", f"/rollouts/{part(name)}/{verb}")
        show(told, [told], "id state stage stage_state reason", as_json=as_json)


for _name, _about in (
    ("submit", "Start NAME, or ask for its approvals."),
    ("pause", "Tell no further devices."),
    ("resume", "Go on."),
    ("abort", "End it; devices keep what they have."),
    ("rollback", "Send every device back to the draft before."),
):
    _verb(_name, _about)


@rollout.command("approve")
@click.argument("name")
@click.option("--deny", is_flag=True, help="Say no.")
@client_options
def approve(client: Client, *, name: str, deny: bool, as_json: bool) -> None:
    """Agree to NAME, or to its next stage."""
    told = client.call("POST", f"/rollouts/{part(name)}/approval/decision", {"deny": deny})
    show(told, [told], "id state stage stage_state reason", as_json=as_json)


@click.command("command")
@click.argument("device_name", metavar="DEVICE")
@click.argument("name")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, 120, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds to wait.",
)
@client_options
def command(client: Client, *, device_name: str, name: str, timeout_s: float, as_json: bool) -> None:
    """Tell DEVICE to do NAME now: ping, report, flush, restart-draft, collect-logs."""
    body = {"name": name, "timeout_s": timeout_s}
    told = client.call("POST", f"/devices/{part(device_name)}/commands", body, timeout_s + 5)
    show(told, None, "", as_json=as_json)


COMMANDS = (device, group, rollout, command)


def part(name: str) -> str:
    """A name as one part of an address."""
    if not name:
        raise ConfigError("a name is empty")
    return quote(name, safe="")


def pair(text: str) -> tuple[str, str]:
    """KEY=VALUE, as typed."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigError(f"{text!r} is not KEY=VALUE")
    return name, value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _reason(error: urllib3.exceptions.HTTPError) -> str:
    """What the system said, without the library's objects around it."""
    cause = error.__cause__ or error.__context__ or error
    return getattr(cause, "strerror", None) or str(error)
