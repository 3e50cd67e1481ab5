"""Jobs that estimate what quantising takes

Revision: 0040
Before:   0039
"""

from alembic import op

revision = "0040"
down_revision = "0039"
branch_labels = None
depends_on = None

KINDS = [
    "fine_tune", "pretrain", "export", "ingest", "pull", "push", "predict", "batch", "evaluate", "inspect",
    "estimate", "quantize",
]  # fmt: skip


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    _allow([*KINDS, "estimate_quantize"])


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("DELETE FROM jobs WHERE kind = 'estimate_quantize'")
    _allow(KINDS)


def _allow(kinds: list[str]) -> None:
    listed = ", ".join(f"'{kind}'" for kind in kinds)
    op.drop_constraint(op.f("ck_jobs_kind"), "jobs")
    op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", f"kind IN ({listed})")
