"""Attempts that hold several devices, and workers that have several

Revision: 0039
Before:   0038
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0039"
down_revision = "0038"
branch_labels = None
depends_on = None

CHANNEL = "destinations_changed"
# Before: what told of attempts that hold a device.
TOLD_BY_ATTEMPTS = (
    ("INSERT", "NEW.device_id IS NOT NULL"),
    ("UPDATE", "NEW.device_id IS NOT NULL AND OLD.ended_at IS DISTINCT FROM NEW.ended_at"),
)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column(
        "attempts", sa.Column("open", sa.Boolean(), sa.Computed("ended_at IS NULL", persisted=True))
    )
    op.alter_column("attempts", "open", nullable=False)
    op.create_unique_constraint(op.f("uq_attempts_id_open"), "attempts", ["id", "open"])
    op.create_table(
        "attempt_devices",
        sa.Column("attempt_id", sa.BigInteger(), nullable=False),
        sa.Column("device_id", sa.Text(), nullable=False),
        sa.Column("open", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("attempt_id", "device_id", name=op.f("pk_attempt_devices")),
        sa.ForeignKeyConstraint(
            ["attempt_id", "open"],
            ["attempts.id", "attempts.open"],
            name=op.f("fk_attempt_devices_attempt_id_open_attempts"),
            onupdate="CASCADE",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["device_id"], ["devices.id"], name=op.f("fk_attempt_devices_device_id_devices")
        ),
    )
    op.create_index(
        "uq_attempt_devices_device_id",
        "attempt_devices",
        ["device_id"],
        unique=True,
        postgresql_where=sa.text("open"),
    )
    op.execute(
        "INSERT INTO attempt_devices (attempt_id, device_id, open) "
        "SELECT id, device_id, open FROM attempts WHERE device_id IS NOT NULL"
    )
    _tell_by("attempt_devices", (("INSERT", "true"), ("UPDATE", "OLD.open IS DISTINCT FROM NEW.open")))
    for event, _ in TOLD_BY_ATTEMPTS:
        op.execute(f"DROP TRIGGER tell_of_{event.lower()} ON attempts")
    op.drop_index("uq_attempts_device_id", "attempts")
    op.drop_column("attempts", "device_id")
    # Those that live sign in again within seconds.
    op.execute("DELETE FROM workers")
    op.drop_column("workers", "device_id")
    op.add_column(
        "workers",
        sa.Column("device_ids", JSONB(none_as_null=True), server_default="[]", nullable=False),
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("DELETE FROM workers")
    op.drop_column("workers", "device_ids")
    for table in ("attempts", "workers"):
        op.add_column(table, sa.Column("device_id", sa.Text(), nullable=True))
        op.create_foreign_key(op.f(f"fk_{table}_device_id_devices"), table, "devices", ["device_id"], ["id"])
    # Of several, the first.
    op.execute(
        "UPDATE attempts SET device_id = held.device_id FROM (SELECT attempt_id, min(device_id) AS device_id "
        "FROM attempt_devices GROUP BY attempt_id) AS held WHERE held.attempt_id = attempts.id"
    )
    op.create_index(
        "uq_attempts_device_id",
        "attempts",
        ["device_id"],
        unique=True,
        postgresql_where=sa.text("ended_at IS NULL"),
    )
    _tell_by("attempts", TOLD_BY_ATTEMPTS)
    op.drop_table("attempt_devices")
    op.drop_constraint(op.f("uq_attempts_id_open"), "attempts")
    op.drop_column("attempts", "open")


def _tell_by(table: str, changes: tuple[tuple[str, str], ...]) -> None:
    for event, counts in changes:
        op.execute(
            f"CREATE TRIGGER tell_of_{event.lower()} AFTER {event} ON {table} FOR EACH ROW "
            f"WHEN ({counts}) EXECUTE FUNCTION tell_of_change('{CHANNEL}')"
        )
