"""Jobs that look at training data, and the files that a job takes several of

Revision: 0034
Before:   0033
"""

import sqlalchemy as sa
from alembic import op

revision = "0034"
down_revision = "0033"
branch_labels = None
depends_on = None

KINDS = ["fine_tune", "pretrain", "export", "ingest", "pull", "push", "predict", "batch", "evaluate"]


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    _allow([*KINDS, "inspect"])
    listed = sa.text("(params -> 'training_files')")
    op.create_index("ix_jobs_training_files", "jobs", [listed], postgresql_using="gin")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_index("ix_jobs_training_files", table_name="jobs")
    op.execute("DELETE FROM jobs WHERE kind = 'inspect'")
    _allow(KINDS)


def _allow(kinds: list[str]) -> None:
    listed = ", ".join(f"'{kind}'" for kind in kinds)
    op.drop_constraint(op.f("ck_jobs_kind"), "jobs")
    op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", f"kind IN ({listed})")
