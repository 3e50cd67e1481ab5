"""The language of each document, and of the words that its chunks are found by

`chunk_words` takes the place of an expression that took every text for English. Postgres takes a run of
Chinese, Japanese, Korean or Thai for one word; there each character and the next one are a word instead, the
last of a run one alone. What is there already keeps the words that it has, as English.

Revision: 0023
Before:   0022
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None

# Thai and Lao, Burmese, Khmer, kana and Han, Hangul, half-width kana, and Han beyond the first plane.
UNSPACED = (
    r"\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
# The cast is STABLE, since a configuration can be replaced; to_tsvector('english', …) trusts it no less.
CHUNK_WORDS = rf"""
CREATE FUNCTION chunk_words(configuration text, passage text) RETURNS tsvector
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    pairs text;
    pairs_between text;
BEGIN
    IF octet_length(passage) = length(passage) OR passage !~ '[{UNSPACED}]' THEN
        RETURN to_tsvector(configuration::regconfig, passage);
    END IF;
    pairs := regexp_replace(passage, '([{UNSPACED}]{{1,2}})', ' \1 ', 'g');
    pairs_between := regexp_replace(passage, '[^{UNSPACED}]+', ' ', 'g');
    pairs_between := regexp_replace(pairs_between, '(^| )[{UNSPACED}]', ' ', 'g');
    pairs_between := regexp_replace(pairs_between, '([{UNSPACED}]{{1,2}})', ' \1 ', 'g');
    RETURN to_tsvector(configuration::regconfig, pairs || ' ' || pairs_between);
END
$$
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    op.execute(CHUNK_WORDS)
    op.add_column("documents", sa.Column("language", sa.Text()))
    op.add_column("documents", sa.Column("configuration", sa.Text(), nullable=False, server_default="simple"))
    op.execute("UPDATE documents SET language = 'english', configuration = 'english' WHERE chunk_count > 0")
    op.add_column("chunks", sa.Column("configuration", sa.Text(), nullable=False, server_default="english"))
    for table in ("documents", "chunks"):
        op.alter_column(table, "configuration", server_default=None)
    _replace_words("chunk_words(configuration, text)")


def downgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '5s'")
    _replace_words("to_tsvector('english'::regconfig, text)")
    op.drop_column("chunks", "configuration")
    op.drop_column("documents", "configuration")
    op.drop_column("documents", "language")
    op.execute("DROP FUNCTION chunk_words")


def _replace_words(expression: str) -> None:
    op.drop_column("chunks", "words")  # and its index with it
    words = sa.Column("words", postgresql.TSVECTOR(), sa.Computed(expression, persisted=True))
    op.add_column("chunks", words)
    op.create_index("ix_chunks_words", "chunks", ["words"], postgresql_using="gin")
