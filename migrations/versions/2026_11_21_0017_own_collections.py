"""A model's own collection

Revision: 0017
Before:   0016
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("collections", sa.Column("model_id", sa.Text()))
    op.create_unique_constraint(op.f("uq_collections_model_id"), "collections", ["model_id"])
    op.create_foreign_key(
        op.f("fk_collections_model_id_models"),
        "collections",
        "models",
        ["model_id"],
        ["id"],
        ondelete="CASCADE",
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column("collections", "model_id")
