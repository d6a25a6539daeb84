"""Who may do what, and who did what.

Tokens are 256 random bits shown once; the registry keeps their SHA-256 alone. Roles: a viewer reads, an operator
changes devices and roll-outs, an approver also agrees to roll-outs of others and manages tokens.
"""

from __future__ import annotations

import enum
import hashlib
import secrets
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select

from outrider_cloud.fleet.registry.tables import audit, tokens
from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy import Connection


class Role(enum.StrEnum):
    """What a token allows; each allows what those before it do."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    APPROVER = "approver"

    def allows(self, other: Role) -> bool:
        """Whether this role may do what `other` may."""
        order = list(Role)
        return order.index(self) >= order.index(other)


def new_token(connection: Connection, name: str, role: Role, days: float | None = None) -> str:
    """Make a token and return it; it cannot be read again.

    Raises:
        ConfigError: if the name is taken or malformed.
    """
    if not 1 <= len(name) <= 64:
        raise ConfigError(f"a token's name has 1 to 64 characters, not {len(name)}")
    if connection.execute(select(tokens.c.name).where(tokens.c.name == name)).first():
        raise ConfigError(f"a token {name!r} exists", hint="revoke it first, or take another name")
    token = "orf_" + secrets.token_urlsafe(32)
    expires = time.time() + days * 86400 if days else None
    row = {"name": name, "role": role.value, "digest": _digest(token), "created": time.time(), "expires": expires}
    connection.execute(insert(tokens).values(**row))
    return token


def who(connection: Connection, token: str) -> tuple[str, Role] | None:
    """Name and role of a token; None if nobody has it or it is past its date."""
    row = connection.execute(select(tokens).where(tokens.c.digest == _digest(token))).one_or_none()
    if row is None or (row.expires is not None and row.expires < time.time()):
        return None
    return row.name, Role(row.role)


def revoke(connection: Connection, name: str) -> bool:
    """Whether there was such a token; there is none now."""
    return connection.execute(delete(tokens).where(tokens.c.name == name)).rowcount > 0


def note(connection: Connection, actor: str, action: str, subject: str, **detail: Any) -> None:
    """One line of the audit log."""
    row = {"at": time.time(), "actor": actor, "action": action, "subject": subject[:256], "detail": detail}
    connection.execute(insert(audit).values(**row))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
