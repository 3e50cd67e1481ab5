"""Models that are pushed: jobs of that kind

Revision: 0030
Before:   0029
"""

from alembic import op

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None

KINDS = ["fine_tune", "pretrain", "export", "ingest", "pull"]


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    _allow_kinds([*KINDS, "push"])


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute("DELETE FROM jobs WHERE kind = 'push'")
    _allow_kinds(KINDS)


def _allow_kinds(kinds: list[str]) -> None:
    listed = ", ".join(f"'{kind}'" for kind in kinds)
    op.drop_constraint(op.f("ck_jobs_kind"), "jobs")
    op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", f"kind IN ({listed})")
