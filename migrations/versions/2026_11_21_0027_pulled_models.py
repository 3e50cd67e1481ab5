"""Models that are pulled: jobs of that kind, and the uploads that they name

Revision: 0027
Before:   0026
"""

import sqlalchemy as sa
from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None

KINDS = ["fine_tune", "pretrain", "export", "ingest"]
FILE = "params #>> '{source,file}'::text[]"


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    _allow_kinds([*KINDS, "pull"])
    op.create_index(
        "ix_jobs_source_file", "jobs", [sa.text(f"({FILE})")], postgresql_where=sa.text(f"{FILE} IS NOT NULL")
    )


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_index("ix_jobs_source_file", table_name="jobs")
    op.execute("DELETE FROM jobs WHERE kind = 'pull'")
    _allow_kinds(KINDS)


def _allow_kinds(kinds: list[str]) -> None:
    listed = ", ".join(f"'{kind}'" for kind in kinds)
    op.drop_constraint(op.f("ck_jobs_kind"), "jobs")
    op.create_check_constraint(op.f("ck_jobs_kind"), "jobs", f"kind IN ({listed})")
