"""The schema. A change here needs a migration beside the others in `migrations/versions`."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)
_Number = BigInteger().with_variant(Integer, "sqlite")

devices = Table(
    "devices",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("device_class", String(128), nullable=False, default="", index=True),
    Column("labels", JSON, nullable=False, default=dict),
    Column("agent", String(128), nullable=False, default=""),
    Column("system", Text, nullable=False, default=""),
    Column("tokenizer", String(64), nullable=False, default=""),
    Column("cpus", Integer, nullable=False, default=0),
    Column("memory_bytes", _Number, nullable=False, default=0),
    Column("online", Boolean, nullable=False, default=False),
    Column("bd", _Number, nullable=False, default=-1),
    Column("since", Float, nullable=False, default=0.0),
    Column("seen", Float, nullable=False, default=0.0),
    Column("active_target", String(512), nullable=False, default=""),
    Column("active_sha256", String(64), nullable=False, default=""),
    Column("active_name", String(256), nullable=False, default=""),
    Column("applied_version", _Number, nullable=False, default=0),
    Column("refused", String(64), nullable=False, default=""),
    Column("config", JSON, nullable=False, default=dict),
    Column("tele_bd", _Number, nullable=False, default=-1),
    Column("tele_seq", _Number, nullable=False, default=-1),
    Column("status_seq", _Number, nullable=False, default=-1),
    Column("lost", _Number, nullable=False, default=0),
    # Totals over the device's life, and the baseline of its present draft.
    Column("requests", _Number, nullable=False, default=0),
    Column("tokens", _Number, nullable=False, default=0),
    Column("cloud_steps", _Number, nullable=False, default=0),
    Column("base_sha256", String(64), nullable=False, default=""),
    Column("base_windows", Integer, nullable=False, default=0),
    Column("base_total", Float, nullable=False, default=0.0),
    Column("base_square", Float, nullable=False, default=0.0),
    Column("base_latency", JSON, nullable=False, default=list),
    Column("acceptance", Float, nullable=True),
    Column("p95_ms", Float, nullable=True),
    Index("ix_devices_active", "active_sha256"),
    # All that the glance sums up, in the order in which it groups: it reads this and no device's row.
    Index(
        "ix_devices_glance",
        "active_target",
        "active_name",
        "online",
        "acceptance",
        "tokens",
        "cloud_steps",
        "requests",
        "lost",
    ),
    Index("ix_devices_online_id", "online", "id"),
    Index("ix_devices_target_id", "active_target", "id"),
)

telemetry = Table(
    "telemetry",
    metadata,
    Column("id", _Number, primary_key=True, autoincrement=True),
    Column("device", String(128), nullable=False),
    Column("at", Float, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("requests", Integer, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("cloud_steps", Integer, nullable=False),
    Column("tried", JSON, nullable=False),
    Column("taken", JSON, nullable=False),
    Column("acceptance", Float, nullable=True),
    Column("p50_ms", Float, nullable=True),
    Column("p95_ms", Float, nullable=True),
    Column("rtt_ms", Float, nullable=True),
    Column("bytes_up", _Number, nullable=False),
    Column("bytes_down", _Number, nullable=False),
    Column("offline_s", Float, nullable=False),
    Column("temperature_c", Float, nullable=True),
    Column("memory_bytes", _Number, nullable=True),
    Index("ix_telemetry_device_at", "device", "at"),
    Index("ix_telemetry_at", "at"),
)

minutes = Table(
    "minutes",
    metadata,
    Column("minute", _Number, primary_key=True, autoincrement=False),  # since 1970, UTC
    Column("windows", _Number, nullable=False, default=0),
    Column("requests", _Number, nullable=False, default=0),
    Column("tokens", _Number, nullable=False, default=0),
    Column("cloud_steps", _Number, nullable=False, default=0),
)

groups = Table(
    "groups",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("members", JSON, nullable=False, default=list),
    Column("labels", JSON, nullable=False, default=dict),
)

desired = Table(
    "desired",
    metadata,
    Column("device", String(128), primary_key=True),
    Column("version", _Number, nullable=False),
    Column("config", JSON, nullable=False, default=dict),
    Column("assignment", JSON, nullable=True),
    Column("issued", Float, nullable=False),
    Column("published", _Number, nullable=False, default=0, index=True),
    Column("pending", Boolean, nullable=False, default=True, index=True),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("spec", JSON, nullable=False),
    Column("author", String(64), nullable=False),
    Column("state", String(32), nullable=False, index=True),
    Column("stage", Integer, nullable=False, default=0),
    Column("stage_state", String(32), nullable=False, default="pending"),
    Column("created", Float, nullable=False),
    Column("stage_since", Float, nullable=False, default=0.0),
    Column("soak_since", Float, nullable=False, default=0.0),
    Column("dispatched", Integer, nullable=False, default=0),
    Column("approved", Boolean, nullable=False, default=False),
    Column("approvers", JSON, nullable=False, default=list),
    Column("gate", String(32), nullable=False, default=""),
    Column("reason", Text, nullable=False, default=""),
    Column("waits_for", Text, nullable=False, default=""),
    Column("evidence", JSON, nullable=True),
)

# Of members: something went wrong. Written without a parameter, which is how a query must say it to use the index.
TROUBLED = text("code != ''")

members = Table(
    "members",
    metadata,
    Column("rollout", String(64), ForeignKey("rollouts.id", ondelete="CASCADE"), primary_key=True),
    Column("device", String(128), primary_key=True),
    Column("stage", Integer, nullable=False),
    Column("state", String(32), nullable=False),
    Column("control", Boolean, nullable=False, default=False),
    Column("attempt", Integer, nullable=False, default=0),
    Column("told", Float, nullable=False, default=0.0),
    Column("changed", Float, nullable=False, default=0.0),
    Column("progress", String(32), nullable=False, default=""),
    Column("done", Float, nullable=False, default=0.0),
    Column("code", String(64), nullable=False, default=""),
    Column("message", Text, nullable=False, default=""),
    Column("before", JSON, nullable=True),
    Column("baseline", JSON, nullable=True),
    Index("ix_members_stage_state", "rollout", "stage", "state", "changed", "device"),
    Index("ix_members_device", "device"),
    Index("ix_members_troubled", "rollout", "changed", sqlite_where=TROUBLED, postgresql_where=TROUBLED),
)

events = Table(
    "events",
    metadata,
    Column("id", _Number, primary_key=True, autoincrement=True),
    Column("rollout", String(64), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("what", Text, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", _Number, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False, index=True),
    Column("actor", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(256), nullable=False),
    Column("detail", JSON, nullable=False, default=dict),
)

tokens = Table(
    "tokens",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=True),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("url", Text, nullable=False),
    Column("secret", String(128), nullable=False),
    Column("kinds", JSON, nullable=False, default=list),
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("id", _Number, primary_key=True, autoincrement=True),
    Column("webhook", String(64), nullable=False),
    Column("body", JSON, nullable=False),
    Column("attempts", Integer, nullable=False, default=0),
    Column("due", Float, nullable=False, index=True),
    Column("error", Text, nullable=False, default=""),
)
