"""Tell the processes of the API when what they remember has changed: who answers for a model, and who may ask

Such changes are rare, so that their commits may notify; of attempts only those that hold a device do.

Revision: 0036
Before:   0035
"""

from alembic import op

revision = "0036"
down_revision = "0035"
branch_labels = None
depends_on = None

DESTINATIONS, CALLERS = "destinations_changed", "callers_changed"
# Of the rows of these tables every change counts.
WHOLE = ("models", "model_versions", "model_files", "model_aliases")
# Table, channel, event, and the rows that count.
SINGLE = (
    ("devices", DESTINATIONS, "UPDATE", "(OLD.serves, OLD.shares) IS DISTINCT FROM (NEW.serves, NEW.shares)"),
    ("attempts", DESTINATIONS, "INSERT", "NEW.device_id IS NOT NULL"),
    (
        "attempts",
        DESTINATIONS,
        "UPDATE",
        "NEW.device_id IS NOT NULL AND OLD.ended_at IS DISTINCT FROM NEW.ended_at",
    ),
    ("api_keys", CALLERS, "INSERT", "true"),
    (
        "api_keys",
        CALLERS,
        "UPDATE",
        "(OLD.scopes, OLD.expires_at, OLD.revoked_at) IS DISTINCT FROM "
        "(NEW.scopes, NEW.expires_at, NEW.revoked_at)",
    ),
    ("projects", CALLERS, "UPDATE", "OLD.* IS DISTINCT FROM NEW.*"),
)


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(
        """
        CREATE FUNCTION tell_of_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_notify(TG_ARGV[0], '');
            RETURN NULL;
        END $$
        """
    )
    for table in WHOLE:
        op.execute(
            f"CREATE TRIGGER tell_of_change AFTER INSERT OR UPDATE OR DELETE ON {table} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION tell_of_change('{DESTINATIONS}')"
        )
    for table, channel, event, counts in SINGLE:
        op.execute(
            f"CREATE TRIGGER tell_of_{event.lower()} AFTER {event} ON {table} FOR EACH ROW "
            f"WHEN ({counts}) EXECUTE FUNCTION tell_of_change('{channel}')"
        )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for table, _, event, _ in SINGLE:
        op.execute(f"DROP TRIGGER tell_of_{event.lower()} ON {table}")
    for table in WHOLE:
        op.execute(f"DROP TRIGGER tell_of_change ON {table}")
    op.execute("DROP FUNCTION tell_of_change()")
