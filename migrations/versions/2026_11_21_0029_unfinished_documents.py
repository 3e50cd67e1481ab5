"""The documents of a collection that are still being read, found without going through the others

Revision: 0029
Before:   0028
"""

from alembic import op

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.create_index(
        "ix_documents_unfinished", "documents", ["collection_id"], postgresql_where="status = 'in_progress'"
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_index("ix_documents_unfinished", table_name="documents")
