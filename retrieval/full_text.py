"""Search by words: which chunks of a scope hold words of a query, the best first."""

from typing import Any

from sqlalchemy import Select, Text, cast, func
from sqlalchemy.dialects.postgresql import TSQUERY
from sqlalchemy.orm import Session

from db.models import Chunk

LANGUAGE = "english"


def matching(session: Session, chunks: Select[Any], words: str, *, most: int) -> list[int]:
    """Chunks with any of the words, those with more and rarer ones together first.

    Args:
        chunks: those that may be found.
    """
    # plainto_tsquery wants every word, which a question's sentence never finds in one passage.
    every = cast(func.plainto_tsquery(LANGUAGE, words), TSQUERY)
    any_of_them = cast(func.replace(cast(every, Text), " & ", " | "), TSQUERY)
    rank = func.ts_rank_cd(Chunk.words, any_of_them)
    query = (
        chunks.with_only_columns(Chunk.id)
        .where(Chunk.words.op("@@")(any_of_them))
        .order_by(rank.desc(), Chunk.id)
        .limit(most)
    )
    return list(session.scalars(query))
