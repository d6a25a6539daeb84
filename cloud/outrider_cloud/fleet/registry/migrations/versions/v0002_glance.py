"""What the page asks for all the time is read from indexes, and from sums by the minute."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_GLANCE = ["active_target", "active_name", "online", "acceptance", "tokens", "cloud_steps", "requests", "lost"]
_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_SUMS = ("requests", "tokens", "cloud_steps")


def upgrade() -> None:
    """Make the indexes, and the sums of the telemetry that is there."""
    op.drop_index("ix_devices_online", "devices")
    op.create_index("ix_devices_glance", "devices", _GLANCE)
    op.create_index("ix_devices_online_id", "devices", ["online", "id"])
    op.create_index("ix_devices_target_id", "devices", ["active_target", "id"])
    op.drop_index("ix_members_stage_state", "members")
    op.create_index("ix_members_stage_state", "members", ["rollout", "stage", "state", "changed", "device"])
    op.create_table(
        "minutes",
        sa.Column("minute", _NUMBER, autoincrement=False, nullable=False),
        *(sa.Column(name, _NUMBER, nullable=False) for name in ("windows", *_SUMS)),
        sa.PrimaryKeyConstraint("minute", name=op.f("pk_minutes")),
    )
    whole = "FLOOR(at / 60)" if op.get_bind().dialect.name == "postgresql" else "at / 60"
    sums = ", ".join(f"SUM({name})" for name in _SUMS)
    op.execute(
        f"INSERT INTO minutes (minute, windows, {', '.join(_SUMS)}) "  # noqa: S608 - our own names
        f"SELECT CAST({whole} AS BIGINT), COUNT(*), {sums} FROM telemetry GROUP BY 1"
    )
