"""Metadata of jobs, and other names of models

Revision: 0024
Before:   0023
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("jobs", sa.Column("metadata", postgresql.JSONB(), nullable=True))
    op.create_index(
        "ix_jobs_metadata",
        "jobs",
        ["metadata"],
        postgresql_using="gin",
        postgresql_where=sa.text("metadata IS NOT NULL"),
    )
    op.create_table(
        "model_aliases",
        sa.Column("project_id", sa.Text(), sa.ForeignKey("projects.id"), primary_key=True),
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column(
            "version_id", sa.Text(), sa.ForeignKey("model_versions.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.CheckConstraint("name LIKE 'ft:%'", name=op.f("ck_model_aliases_name")),
    )
    op.create_index("ix_model_aliases_version_id", "model_aliases", ["version_id"])


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table("model_aliases")
    op.drop_index("ix_jobs_metadata", table_name="jobs")
    op.drop_column("jobs", "metadata")
