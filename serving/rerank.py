"""A server with a cross-encoder, which reads a question and a passage together and says how well they fit.

`/v1/rerank` as llama-server (`--reranking`), vLLM, Infinity and Jina have it.
"""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import httpx

from db.errors import Unavailable


async def rerank(
    client: httpx.AsyncClient,
    url: str,
    query: str,
    passages: Sequence[str],
    *,
    model: str,
    api_key: str,
    seconds: float,
) -> list[float]:
    """How well each passage answers the query, 0 to 1, in the passages' order.

    Raises:
        Unavailable: the server does not answer within `seconds`, refuses, or leaves a passage out.
    """
    body = {"model": model, "query": query, "documents": list(passages), "top_n": len(passages)}
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        async with asyncio.timeout(seconds):
            response = await client.post(f"{url}/v1/rerank", json=body, headers=headers)
        if response.is_error:
            raise _unavailable(f"answers {response.status_code}: {response.text[:300]}")
        return _probabilities(_scores(response.json(), len(passages)))
    except TimeoutError:
        raise _unavailable(f"took longer than {seconds:g} s.") from None
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise _unavailable(f"does not answer as one: {error!r}.") from error


def _unavailable(what: str) -> Unavailable:
    return Unavailable(f"The rerank server {what}", code="rerank_server_unavailable")


def _scores(answer: Any, number: int) -> list[float]:
    scores = {int(row["index"]): float(row["relevance_score"]) for row in answer["results"]}
    if sorted(scores) != list(range(number)) or not all(map(math.isfinite, scores.values())):
        raise ValueError(f"{len(scores)} scores for {number} passages")
    return [scores[index] for index in range(number)]


def _probabilities(scores: list[float]) -> list[float]:
    """What is not between 0 and 1 is a logit: llama-server gives those of BERT's kind as they are."""
    if all(0 <= score <= 1 for score in scores):
        return scores
    return [_logistic(score) for score in scores]


def _logistic(value: float) -> float:
    # exp of a large number overflows; of a large negative one it is 0.
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))
