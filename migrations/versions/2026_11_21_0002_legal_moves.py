"""Refuse any change of a status that is not a legal move

The application makes moves through one function; this trigger holds for everything else that ever
writes to these tables, people with psql included.

Revision: 0002
Before:   0001
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# The moves as they were on this date: a migration must not change when db/states.py does.
MOVES = {
    "jobs": {
        "queued": ["running", "paused", "cancelled", "failed"],
        "running": ["succeeded", "failed", "cancelling", "cancelled", "paused"],
        "paused": ["queued", "cancelled"],
        "cancelling": ["cancelled"],
        "succeeded": [],
        "failed": ["queued"],
        "cancelled": ["queued"],
    },
    "steps": {
        "pending": ["queued", "cancelled", "failed"],
        "queued": ["running", "cancelled", "pending"],
        "running": ["succeeded", "failed", "cancelled", "queued"],
        "succeeded": [],
        "failed": ["pending", "queued"],
        "cancelled": ["pending", "queued"],
    },
}


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for table, moves in MOVES.items():
        pairs = ", ".join(f"('{old}', '{new}')" for old, news in moves.items() for new in news)
        op.execute(
            f"""
            CREATE FUNCTION refuse_illegal_move_of_{table}() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF (OLD.status, NEW.status) NOT IN ({pairs}) THEN
                    RAISE EXCEPTION '{table}: % may not go from % to %', OLD.id, OLD.status, NEW.status
                        USING ERRCODE = 'check_violation', CONSTRAINT = 'legal_move';
                END IF;
                RETURN NEW;
            END $$
            """
        )
        op.execute(
            f"""
            CREATE TRIGGER legal_move BEFORE UPDATE OF status ON {table} FOR EACH ROW
            WHEN (OLD.status IS DISTINCT FROM NEW.status)
            EXECUTE FUNCTION refuse_illegal_move_of_{table}()
            """
        )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    for table in MOVES:
        op.execute(f"DROP TRIGGER legal_move ON {table}")
        op.execute(f"DROP FUNCTION refuse_illegal_move_of_{table}()")
