"""Let a job that waits or is paused become one that is being cancelled: what it has is yet to be written

Revision: 0037
Before:   0036
"""

from alembic import op

revision = "0037"
down_revision = "0036"
branch_labels = None
depends_on = None

# The moves as they were on this date and before it: a migration must not change when db/states.py does.
BEFORE = {
    "queued": ["running", "paused", "cancelled", "failed"],
    "running": ["succeeded", "failed", "cancelling", "cancelled", "pausing", "paused"],
    "pausing": ["paused", "running", "cancelling", "succeeded", "failed"],
    "paused": ["queued", "cancelled", "failed"],
    "cancelling": ["cancelled"],
    "failed": ["queued"],
    "cancelled": ["queued"],
}
AFTER = BEFORE | {
    "queued": ["running", "paused", "cancelling", "cancelled", "failed"],
    "paused": ["queued", "cancelling", "cancelled", "failed"],
}


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    _allow(AFTER)


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    _allow(BEFORE)


def _allow(moves: dict[str, list[str]]) -> None:
    pairs = ", ".join(f"('{old}', '{new}')" for old, news in moves.items() for new in news)
    op.execute(
        f"""
        CREATE OR REPLACE FUNCTION refuse_illegal_move_of_jobs() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF (OLD.status, NEW.status) NOT IN ({pairs}) THEN
                RAISE EXCEPTION 'jobs: % may not go from % to %', OLD.id, OLD.status, NEW.status
                    USING ERRCODE = 'check_violation', CONSTRAINT = 'legal_move';
            END IF;
            RETURN NEW;
        END $$
        """
    )
