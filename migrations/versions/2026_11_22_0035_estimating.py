"""Jobs that estimate a fine-tune, and the memory of workers, which they go by

Revision: 0035
Before:   0034
"""

import sqlalchemy as sa
from alembic import op

revision = "0035"
down_revision = "0034"
branch_labels = None
depends_on = None

KINDS = [
    "fine_tune", "pretrain", "export", "ingest", "pull", "push", "predict", "batch", "evaluate", "inspect",
]  # fmt: skip


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("workers", sa.Column("memory_bytes", sa.BigInteger(), nullable=True))
    _allow([*KINDS, "estimate"])


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_column("workers", "memory_bytes")
    op.execute("DELETE FROM jobs WHERE kind = 'estimate'")
    _allow(KINDS)


def _allow(kinds: list[str]) -> None:
    listed = ", ".join(f"'{kind}'" for kind in kinds)
    op.drop_constraint(op.f("ck_jobs_kind"), "jobs")
    op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", f"kind IN ({listed})")
