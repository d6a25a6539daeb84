"""The devices of a roll-out that something went wrong on, newest first, without looking at all the others."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_WHERE = sa.text("code != ''")


def upgrade() -> None:
    """Make the index."""
    op.create_index(
        "ix_members_troubled", "members", ["rollout", "changed"], sqlite_where=_WHERE, postgresql_where=_WHERE
    )
