"""Jobs that quantise a base model

Revision: 0038
Before:   0037
"""

from alembic import op

revision = "0038"
down_revision = "0037"
branch_labels = None
depends_on = None

KINDS = [
    "fine_tune", "pretrain", "export", "ingest", "pull", "push", "predict", "batch", "evaluate", "inspect",
    "estimate",
]  # fmt: skip


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    _allow([*KINDS, "quantize"])


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("DELETE FROM jobs WHERE kind = 'quantize'")
    _allow(KINDS)


def _allow(kinds: list[str]) -> None:
    listed = ", ".join(f"'{kind}'" for kind in kinds)
    op.drop_constraint(op.f("ck_jobs_kind"), "jobs")
    op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", f"kind IN ({listed})")
