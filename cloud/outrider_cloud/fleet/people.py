"""Commands about people: who may ask the service what, who is told of what happens, and who did what."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from outrider_cloud.fleet.operate import client_options, part, show
from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from outrider_cloud.fleet.operate import Client


@click.command("token")
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(["viewer", "operator", "approver"]),
    default="viewer",
    show_default=True,
    help="What it allows.",
)
@click.option("--days", type=click.FloatRange(0, min_open=True), help="How long it is good; by default for ever.")
@click.option("--revoke", is_flag=True, help="Take it back instead.")
@client_options
def token(client: Client, *, name: str, role: str, days: float | None, revoke: bool, as_json: bool) -> None:
    """Make a token for NAME and show it once, or revoke it."""
    path = f"/tokens/{part(name)}"
    told = client.call("DELETE", path) if revoke else client.call("PUT", path, {"role": role, "days": days})
    show(told, None, "", as_json=as_json)


@click.command("webhook")
@click.argument("name")
@click.argument("receiver", metavar="URL", required=False)
@click.option("--kind", "kinds", multiple=True, help="Only these events, such as rollout.paused; may be given again.")
@click.option("--remove", is_flag=True, help="Take it away instead.")
@client_options
def webhook(
    client: Client, *, name: str, receiver: str | None, kinds: tuple[str, ...], remove: bool, as_json: bool
) -> None:
    """Send what happens to roll-outs to URL, signed with a secret that is shown once.

    Each request carries X-Outrider-Signature: sha256=HMAC-SHA256(secret, body) in hex.
    """
    if remove:
        told = client.call("DELETE", f"/webhooks/{part(name)}")
    elif receiver is None:
        raise ConfigError("URL is missing", hint="or give --remove")
    else:
        told = client.call("PUT", f"/webhooks/{part(name)}", {"url": receiver, "kinds": list(kinds)})
    show(told, None, "", as_json=as_json)


@click.command("audit")
@click.option("--subject", default="", help="Only about this device or roll-out.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most so many.")
@client_options
def audit(client: Client, *, subject: str, limit: int, as_json: bool) -> None:
    """Who did what, newest first."""
    told = client.call("GET", f"/audit?subject={quote(subject)}&limit={limit}")
    rows = [row | {"at": _when(row["at"])} for row in told["audit"]]
    show(told, rows, "at actor action subject detail", as_json=as_json)


def _when(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")


PEOPLE = (token, webhook, audit)
