"""Let a cross-encoder order the best of what was found."""

from collections.abc import Sequence
from dataclasses import replace

from api.unit_of_work import Services
from retrieval.search import Hit
from serving.rerank import rerank

# It reads each passage anew for each question: what it costs grows with their tokens.
PASSAGES_MAX = 50
TOKENS_MAX = 12_000


async def reranked(services: Services, texts: Sequence[str], hits: Sequence[Hit]) -> list[Hit]:
    """Order hits by what the rerank server says of them; those beyond what it is asked about come after.

    Args:
        texts: what was asked.
        hits: the best first.
    Returns:
        all of the hits, with new scores, 0 to 1.
    Raises:
        Unavailable: the server does not answer.
    """
    settings = services.settings
    number = _affordable(hits)
    if not number or settings.rerank_url is None:
        return list(hits)
    scores = await rerank(
        services.client,
        settings.rerank_url,
        "\n".join(texts),
        [hit.chunk.text for hit in hits[:number]],
        model=settings.rerank_model,
        api_key=settings.rerank_server_key.get_secret_value(),
        seconds=settings.rerank_timeout_seconds,
    )
    best = [replace(hit, score=score) for hit, score in zip(hits[:number], scores, strict=True)]
    best.sort(key=lambda hit: -hit.score)
    # The fused scores of the rest go on below, so that scores fall from hit to hit.
    return best + [replace(hit, score=hit.score * best[-1].score) for hit in hits[number:]]


def _affordable(hits: Sequence[Hit]) -> int:
    tokens = 0
    for number, hit in enumerate(hits[:PASSAGES_MAX]):
        tokens += hit.chunk.tokens
        if tokens > TOKENS_MAX and number:
            return number
    return min(len(hits), PASSAGES_MAX)
