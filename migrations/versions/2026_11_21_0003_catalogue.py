"""The default project, and `tiny` in its catalogue

Revision: 0003
Before:   0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("INSERT INTO projects (id) VALUES ('default')")
    op.execute(
        sa.text(
            "INSERT INTO models (id, project_id, name, recipe) "
            "VALUES ('model-tiny', 'default', 'tiny', CAST(:recipe AS jsonb))"
        ).bindparams(recipe='{"name": "tiny"}')
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("DELETE FROM models WHERE id = 'model-tiny'")
    op.execute("DELETE FROM projects WHERE id = 'default'")
