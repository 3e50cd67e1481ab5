"""API keys, and how much a project may use

Revision: 0018
Before:   0017
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

NOW = sa.text("clock_timestamp()")
LIMITS = ("max_jobs", "max_gpu_minutes", "max_bytes", "max_requests_per_minute")


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("projects", sa.Column("name", sa.Text(), server_default="", nullable=False))
    for limit in LIMITS:
        op.add_column("projects", sa.Column(limit, sa.BigInteger()))
        op.create_check_constraint(op.f(f"ck_projects_{limit}"), "projects", f"{limit} >= 0")
    op.add_column("projects", sa.Column("archived_at", sa.DateTime(timezone=True)))
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("project_id", sa.Text(), sa.ForeignKey("projects.id"), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", postgresql.JSONB(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=NOW, nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True)),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
        sa.Column("last_used_at", sa.DateTime(timezone=True)),
    )
    op.create_index("uq_api_keys_hash", "api_keys", ["hash"], unique=True)
    op.create_index("ix_api_keys_project_id_id", "api_keys", ["project_id", "id"])


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.drop_table("api_keys")
    for column in ("archived_at", *LIMITS, "name"):
        op.drop_column("projects", column)
