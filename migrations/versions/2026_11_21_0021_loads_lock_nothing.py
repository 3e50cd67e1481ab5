"""Loading a document locks neither its collection nor itself until it is there

A foreign key that is checked after each COPY keeps whoever deletes the collection waiting from then on.

Revision: 0021
Before:   0020
"""

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

TO_COLLECTION, TO_DOCUMENT = "fk_chunks_collection_id_collections", "fk_chunks_document_id_documents"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    # A chunk is of its document's collection, and goes with its document.
    op.drop_constraint(op.f(TO_COLLECTION), "chunks")
    op.execute(f"ALTER TABLE chunks ALTER CONSTRAINT {TO_DOCUMENT} DEFERRABLE INITIALLY DEFERRED")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(f"ALTER TABLE chunks ALTER CONSTRAINT {TO_DOCUMENT} NOT DEFERRABLE")
    op.create_foreign_key(
        op.f(TO_COLLECTION), "chunks", "collections", ["collection_id"], ["id"], ondelete="CASCADE"
    )
