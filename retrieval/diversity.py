"""Hits that do not all say the same: maximal marginal relevance."""

from collections.abc import Sequence

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import Float, func, select
from sqlalchemy.orm import Session

from db.models import Chunk

Closeness = dict[tuple[int, int], float]


def diversify(
    session: Session, ranked: Sequence[tuple[int, float]], *, limit: int, diversity: float
) -> list[int]:
    """Pick chunks of which each is relevant and unlike those before it.

    Args:
        ranked: chunks' ids with their relevance, 0 to 1.
        diversity: 0, relevance alone, to 1.
    Returns:
        the ids of `limit` of them, in the order in which they were picked.
    """
    return pick(ranked, closeness(session, [chunk_id for chunk_id, _ in ranked]), limit, diversity)


def pick(ranked: Sequence[tuple[int, float]], close: Closeness, limit: int, diversity: float) -> list[int]:
    """Carbonell and Goldstein 1998: the next is the one with the greatest
    (1 - diversity) · relevance - diversity · its greatest closeness to one that was picked before.
    """
    relevance = dict(ranked)
    closest = dict.fromkeys(relevance, 0.0)
    picked: list[int] = []
    while relevance and len(picked) < limit:
        # Of two that are equal, the one that was ranked before.
        best = max(relevance, key=lambda one: (1 - diversity) * relevance[one] - diversity * closest[one])
        del relevance[best]
        picked.append(best)
        for one in relevance:
            closest[one] = max(closest[one], close[min(one, best), max(one, best)])
    return picked


def closeness(session: Session, chunk_ids: Sequence[int]) -> Closeness:
    """The cosine of each two chunks, 0 to 1, by (smaller id, greater id); 0 for one without a direction."""
    # Made once for each chunk, not for each pair: four times as fast where vectors are stored out of line.
    directions = (
        select(Chunk.id, func.l2_normalize(Chunk.embedding, type_=HALFVEC()).label("direction"))
        .where(Chunk.id.in_(chunk_ids))
        .cte("directions")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )
    one, other = directions.alias(), directions.alias()
    negative = one.c.direction.op("<#>", return_type=Float())(other.c.direction)
    query = select(one.c.id, other.c.id, negative).join(other, one.c.id < other.c.id)
    return {(first, second): max(0.0, -product) for first, second, product in session.execute(query)}
