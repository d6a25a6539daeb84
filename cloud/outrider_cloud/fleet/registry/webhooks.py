"""Who is told of what happens: a delivery waits here until it was taken or too many tries failed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select, update

from outrider_cloud.fleet.registry.tables import deliveries, webhooks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Row

MOST_ATTEMPTS = 8


def tell(connection: Connection, kind: str, body: dict[str, Any]) -> None:
    """Queue an event for every webhook that wants its kind."""
    now = time.time()
    for hook in connection.execute(select(webhooks)):
        if not hook.kinds or kind in hook.kinds:
            message = {"kind": kind, "at": now, **body}
            connection.execute(insert(deliveries).values(webhook=hook.name, body=message, due=now))


def due(connection: Connection, most: int = 20) -> Sequence[Row[Any]]:
    """Deliveries to be tried now, with url and secret."""
    joined = select(deliveries, webhooks.c.url, webhooks.c.secret).join(
        webhooks, webhooks.c.name == deliveries.c.webhook
    )
    return connection.execute(joined.where(deliveries.c.due <= time.time()).order_by(deliveries.c.id).limit(most)).all()


def delivered(connection: Connection, delivery: int) -> None:
    """It was taken."""
    connection.execute(delete(deliveries).where(deliveries.c.id == delivery))


def failed(connection: Connection, delivery: int, attempts: int, error: str) -> None:
    """Try again later, up to two hours apart; give up after `MOST_ATTEMPTS`."""
    if attempts + 1 >= MOST_ATTEMPTS:
        delivered(connection, delivery)
        return
    later = time.time() + min(7200, 5 * 4**attempts)
    changed = {"attempts": attempts + 1, "due": later, "error": error[:500]}
    connection.execute(update(deliveries).where(deliveries.c.id == delivery).values(**changed))
