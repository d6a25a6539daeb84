"""`outrider fleet`: the fleet's folder, its devices, its broker and the drafts that it may install."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from outrider_cloud.fleet import broker as mosquitto
from outrider_cloud.fleet.artifacts.publish import publish, read_golden
from outrider_cloud.fleet.config import ControllerConfig, ServeConfig
from outrider_cloud.fleet.demo.cli import demo
from outrider_cloud.fleet.home import ADMIN_TOKEN, FleetHome, Settings
from outrider_cloud.fleet.operate import COMMANDS, Client, client_options
from outrider_cloud.fleet.people import PEOPLE
from outrider_cloud.fleet.revoke import revoke
from outrider_cloud.fleet.simulate.behaviour import Behaviour, Draft
from outrider_cloud.fleet.simulate.run import Plan, simulate
from outrider_shared.cli import TypedErrors
from outrider_shared.errors import ConfigError, OutriderError
from outrider_shared.logs import configure_logs

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


_SETTINGS, _BEHAVIOUR, _PLAN, _SERVE = Settings(), Behaviour(), Plan(), ServeConfig()


@click.group(cls=TypedErrors)
def fleet() -> None:
    """Devices over MQTT: who is here, what they are to be, which drafts they run."""
    configure_logs()


def home_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """The fleet's folder."""
    about = "The fleet's folder."
    kind = click.Path(path_type=Path)
    return click.option(
        "--dir", "folder", type=kind, envvar="OUTRIDER_FLEET", default="fleet", show_default=True, help=about
    )(command)


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@fleet.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--tenant", default=_SETTINGS.tenant, show_default=True, help="Level of the topics.")
@click.option("--host", default=_SETTINGS.host, show_default=True, help="Name under which devices reach this machine.")
@click.option(
    "--listen", default=_SETTINGS.listen, show_default=True, help="Address that broker and artifact server bind."
)
@click.option("--mqtt-port", type=int, default=_SETTINGS.mqtt_port, show_default=True, help="Of the broker.")
@click.option("--https-port", type=int, default=_SETTINGS.https_port, show_default=True, help="Of the artifact server.")
@json_option
def init(folder: Path, *, as_json: bool, **settings: Any) -> None:
    """Make FOLDER: authority, certificates, signing keys, broker configuration, an empty signed repository."""
    home = FleetHome.init(folder, Settings(**settings))
    if as_json:
        click.echo(json.dumps({"folder": str(home.folder), "broker": str(home.folder / "broker" / "mosquitto.conf")}))
        return
    click.echo(f"made {home.folder}")
    click.echo(f"  outrider fleet broker --dir {folder}        # run the broker")
    click.echo(f"  outrider fleet enrol NAME --dir {folder}    # make a device's folder, to be copied to it")
    click.echo("  keys/root-*.key and keys/targets.key belong on other machines than this one; see docs/fleet.md")


@fleet.command()
@click.argument("devices", nargs=-1, required=True)
@click.option("--class", "device_class", default="int8", show_default=True, help="Which packs it takes.")
@click.option("--label", "labels", multiple=True, help="KEY=VALUE, for groups; may be given again.")
@home_option
@json_option
def enrol(devices: tuple[str, ...], *, device_class: str, labels: tuple[str, ...], folder: Path, as_json: bool) -> None:
    """Make the folder of each of DEVICES: certificate, what it trusts, agent.toml."""
    home, marks = FleetHome(folder), dict(_pair(label) for label in labels)
    made = [str(home.enrol(device, device_class=device_class, labels=marks)) for device in devices]
    click.echo(json.dumps({"folders": made}) if as_json else "\n".join(made))


@fleet.command("revoke")
@click.argument("names", nargs=-1, required=True)
@client_options
def revoke_command(client: Client, *, names: tuple[str, ...], as_json: bool) -> None:
    """Shut devices NAMES out for good: their certificates, their sessions, their place in the registry."""
    home = FleetHome(client.folder)
    told = [{"device": name, "broker": revoke(home, name), "service": _forgotten(client, name)} for name in names]
    lines = [f"revoked {row['device']}: {row['broker']}; {row['service']}" for row in told]
    click.echo(json.dumps({"revoked": told}) if as_json else "\n".join(lines))


def _forgotten(client: Client, name: str) -> str:
    """What the service made of it; that it is away undoes nothing."""
    try:
        client.call("DELETE", f"/devices/{quote(name, safe='')}")
    except OutriderError as error:
        return f"the service was not told: {error.message}"
    return "the service has forgotten it"


for _command in (*COMMANDS, *PEOPLE, demo):
    fleet.add_command(_command)


@fleet.command("serve")
@click.option(
    "--registry",
    "dsn",
    default="",
    envvar="OUTRIDER_FLEET_REGISTRY",
    help="DSN: sqlite:///FILE or postgresql://... [default: fleet.db in the folder]",
)
@click.option(
    "--admin-host", default=_SERVE.admin_host, show_default=True, help="Address of page and API. No TLS there."
)
@click.option("--admin-port", type=int, default=_SERVE.admin_port, show_default=True, help="Its port.")
@click.option(
    "--keep-days",
    type=click.FloatRange(0, min_open=True),
    default=_SERVE.controller.keep_days,
    show_default=True,
    help="How long windows of telemetry are kept.",
)
@home_option
def serve_command(*, dsn: str, admin_host: str, admin_port: int, keep_days: float, folder: Path) -> None:
    """Run the fleet service: controller, API and page, artifact server. Needs the broker."""
    from outrider_cloud.fleet.serve import serve  # noqa: PLC0415 - the service is slow to import

    config = ServeConfig(dsn, admin_host, admin_port, ControllerConfig(keep_days=keep_days))
    token = folder / ADMIN_TOKEN
    ready = lambda page: click.echo(f"serving {page} (page and API; the first token lies in {token})")  # noqa: E731
    asyncio.run(_until_ended(serve(FleetHome(folder), config, ready)))


async def _until_ended(work: Coroutine[Any, Any, None]) -> None:
    """SIGTERM and SIGINT end it in order."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


@fleet.command()
@home_option
def broker(*, folder: Path) -> None:
    """Run Mosquitto with this fleet's configuration, until it is ended."""
    mosquitto.become(FleetHome(folder).write_broker())


@fleet.group()
def model() -> None:
    """Drafts that devices may install."""


@model.command("publish")
@click.argument("pack", type=click.Path(path_type=Path))
@click.option("--version", required=True, help="Part of the target's path; never used twice.")
@click.option("--class", "device_class", help="Which devices it is for; by default the pack's precision.")
@click.option("--golden", type=click.Path(path_type=Path), help="Golden prompts from `outrider edge golden`.")
@click.option(
    "--deltas", type=click.IntRange(0, 8), default=2, show_default=True, help="Make deltas from that many packs before."
)
@home_option
@json_option
def publish_command(
    pack: Path, *, version: str, device_class: str | None, golden: Path | None, deltas: int, folder: Path, as_json: bool
) -> None:
    """Verify PACK, sign it into the repository, and tell its target."""
    repository = FleetHome(folder).repository
    cases = read_golden(golden) if golden else ()
    path = publish(repository, pack, version=version, device_class=device_class, golden=cases, deltas=deltas)
    target = repository.listed()[path]
    told = {"target": path, "sha256": target.hashes["sha256"], "bytes": target.length}
    click.echo(json.dumps(told) if as_json else f"{path}  {target.length} bytes  sha256 {told['sha256']}")


@model.command("list")
@home_option
@json_option
def list_command(*, folder: Path, as_json: bool) -> None:
    """What devices may install."""
    listed = FleetHome(folder).repository.listed()
    rows = [{"target": path, "bytes": found.length, "sha256": found.hashes["sha256"]} for path, found in listed.items()]
    click.echo(
        json.dumps({"models": rows}) if as_json else "\n".join(f"{r['target']}  {r['bytes']} bytes" for r in rows)
    )


@model.command()
@click.argument("target")
@home_option
def withdraw(target: str, *, folder: Path) -> None:
    """Ban TARGET: devices refuse it from their next look on. Those that run it go on until they are told otherwise."""
    FleetHome(folder).repository.withdraw(target)
    click.echo(f"withdrew {target}")


@model.command()
@home_option
def refresh(*, folder: Path) -> None:
    """Renew snapshot and timestamp; `outrider fleet serve` does it daily."""
    FleetHome(folder).repository.refresh()


@fleet.command("simulate")
@click.option("--devices", type=click.IntRange(1, 20_000), default=50, show_default=True, help="How many.")
@click.option("--prefix", default="sim", show_default=True, help="Of their names.")
@click.option("--seconds", type=click.FloatRange(0), help="Stop after so long; by default when ended.")
@click.option(
    "--draft",
    "drafts",
    multiple=True,
    help="SUBSTRING=ACCEPTANCE[,FAILING[,TOKEN_MS]]: how drafts whose target holds SUBSTRING behave. May be given again.",
)
@click.option(
    "--acceptance",
    type=click.FloatRange(0, 1),
    default=_BEHAVIOUR.other.acceptance,
    show_default=True,
    help="Of every other draft.",
)
@click.option(
    "--silent",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="Share of devices that fall silent when they are to update.",
)
@click.option(
    "--requests-s",
    type=click.FloatRange(0),
    default=_BEHAVIOUR.requests_s,
    show_default=True,
    help="Answers per second and device.",
)
@click.option("--telemetry-s", type=click.FloatRange(0.1), help="Window of telemetry, whatever is desired.")
@click.option(
    "--connects-s",
    type=click.FloatRange(1),
    default=_PLAN.connects_s,
    show_default=True,
    help="Devices that begin per second.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of everything that is left to chance.")
@home_option
@json_option
def simulate_command(  # noqa: PLR0913 - one argument a flag
    *, devices: int, prefix: str, seconds: float | None, drafts: tuple[str, ...], acceptance: float, silent: float,
    requests_s: float, telemetry_s: float | None, connects_s: float, seed: int, folder: Path, as_json: bool,
) -> None:  # fmt: skip
    """Connect many devices with real certificates and modelled behaviour; tells what they did."""
    known = {name: _draft(text) for name, text in map(_pair, drafts)}
    behaviour = Behaviour(known, Draft(acceptance), requests_s=requests_s, silent=silent)
    plan = Plan(devices, prefix, seconds, connects_s=connects_s, telemetry_s=telemetry_s, seed=seed)
    told = asyncio.run(_simulate(FleetHome(folder), plan, behaviour))
    click.echo(json.dumps(told) if as_json else "\n".join(f"{name}: {value}" for name, value in told.items()))


async def _simulate(home: FleetHome, plan: Plan, behaviour: Behaviour) -> dict[str, Any]:
    """SIGTERM and SIGINT end it early; what was done until then is told."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    return await simulate(home, plan, behaviour, ended)


def _draft(text: str) -> Draft:
    try:
        return Draft(*(float(part) for part in text.split(",")))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--draft {text!r} is not ACCEPTANCE[,FAILING[,TOKEN_MS]]: {error}") from None


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigError(f"{text!r} is not NAME=VALUE")
    return name, value


if __name__ == "__main__":
    fleet()
