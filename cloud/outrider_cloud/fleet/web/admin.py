"""Tokens, the audit log, webhooks."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from sqlalchemy import delete, insert, select

from outrider_cloud.fleet.registry import access, tables
from outrider_cloud.fleet.registry.access import Role
from outrider_cloud.fleet.web.guard import Approver, Found, Operator, Viewer
from outrider_shared.errors import ConfigError

router = APIRouter(prefix="/api")


class TokenBody(BaseModel):
    """Whom a token is for."""

    role: Role
    days: float | None = Field(None, gt=0)


class WebhookBody(BaseModel):
    """Where events go; no kinds means all."""

    url: str = Field(pattern=r"^https?://", max_length=2000)
    kinds: list[str] = Field(default_factory=list, max_length=50)


@router.get("/me")
def me(found: Found, who: Viewer) -> dict[str, Any]:
    """Who asks."""
    with found.controller.database.reading() as connection:
        row = connection.execute(select(tables.tokens).where(tables.tokens.c.name == who)).one()
    return {"name": who, "role": row.role, "expires": row.expires}


@router.put("/tokens/{name}", status_code=201)
def make_token(found: Found, who: Approver, name: str, body: TokenBody) -> dict[str, Any]:
    """Make a token; it is shown this once."""
    with found.controller.database.transaction() as connection:
        token = access.new_token(connection, name, body.role, body.days)
        access.note(connection, who, "token.create", name, role=body.role.value)
    return {"name": name, "role": body.role, "token": token}


@router.delete("/tokens/{name}")
def revoke_token(found: Found, who: Approver, name: str) -> dict[str, Any]:
    """Revoke a token."""
    with found.controller.database.transaction() as connection:
        if not access.revoke(connection, name):
            raise ConfigError(f"no token {name!r}")
        access.note(connection, who, "token.revoke", name)
    return {"revoked": name}


@router.get("/audit")
def audit(
    found: Found, _who: Viewer, subject: str = "", before: int | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:  # fmt: skip
    """Who did what, newest first."""
    chosen = select(tables.audit).order_by(tables.audit.c.id.desc()).limit(limit)
    if subject:
        chosen = chosen.where(tables.audit.c.subject == subject)
    if before is not None:
        chosen = chosen.where(tables.audit.c.id < before)
    with found.controller.database.reading() as connection:
        return {"audit": [dict(row._mapping) for row in connection.execute(chosen)]}  # noqa: SLF001 - public API


@router.put("/webhooks/{name}", status_code=201)
def set_webhook(found: Found, who: Operator, name: str, body: WebhookBody) -> dict[str, Any]:
    """Make or replace a webhook; its secret is shown this once."""
    secret = secrets.token_urlsafe(32)
    with found.controller.database.transaction() as connection:
        connection.execute(delete(tables.webhooks).where(tables.webhooks.c.name == name))
        row = {"name": name, "url": body.url, "secret": secret, "kinds": body.kinds}
        connection.execute(insert(tables.webhooks).values(**row))
        access.note(connection, who, "webhook.set", name, url=body.url)
    return {"name": name, "secret": secret}


@router.delete("/webhooks/{name}")
def remove_webhook(found: Found, who: Operator, name: str) -> dict[str, Any]:
    """Remove a webhook; what it is owed is dropped."""
    with found.controller.database.transaction() as connection:
        if not connection.execute(delete(tables.webhooks).where(tables.webhooks.c.name == name)).rowcount:
            raise ConfigError(f"no webhook {name!r}")
        connection.execute(delete(tables.deliveries).where(tables.deliveries.c.webhook == name))
        access.note(connection, who, "webhook.remove", name)
    return {"removed": name}
