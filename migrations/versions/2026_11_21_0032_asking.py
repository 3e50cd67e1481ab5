"""Jobs that ask a model for each row of a file, and the queue on which they do

Revision: 0032
Before:   0031
"""

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"
branch_labels = None
depends_on = None

KINDS = ["fine_tune", "pretrain", "export", "ingest", "pull", "push"]
QUEUES = ["train", "gpu", "cpu", "io", "bulk", "hooks"]


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    _allow("jobs", "kind", [*KINDS, "predict", "batch"])
    _allow("steps", "queue", [*QUEUES, "ask"])
    op.create_index(
        "ix_jobs_input_file",
        "jobs",
        [sa.text("(params ->> 'input_file')")],
        postgresql_where=sa.text("params ->> 'input_file' IS NOT NULL"),
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_index("ix_jobs_input_file", table_name="jobs")
    op.execute("DELETE FROM jobs WHERE kind IN ('predict', 'batch')")
    _allow("steps", "queue", QUEUES)
    _allow("jobs", "kind", KINDS)


def _allow(table: str, column: str, values: list[str]) -> None:
    listed = ", ".join(f"'{value}'" for value in values)
    op.drop_constraint(op.f(f"ck_{table}_{column}"), table)
    op.create_check_constraint(op.f(f"ck_{table}_{column}"), table, f"{column} IN ({listed})")
