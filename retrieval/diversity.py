"""Hits that do not all say the same: maximal marginal relevance."""

from collections.abc import Sequence

from sqlalchemy import Float, cast, select
from sqlalchemy.orm import Session, aliased

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
    """The cosine of each two chunks, 0 to 1, by (smaller id, greater id)."""
    one, other = aliased(Chunk), aliased(Chunk)
    distance = cast(one.embedding.op("<=>")(other.embedding), Float)
    query = select(one.id, other.id, distance).where(
        one.id.in_(chunk_ids), other.id.in_(chunk_ids), one.id < other.id
    )
    # An empty text's vector has no direction, and is close to nothing.
    return {(first, second): max(0.0, 1.0 - apart) for first, second, apart in session.execute(query)}
