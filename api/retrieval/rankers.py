"""How passages are ordered, as a request names it: OpenAI's names, and ours."""

from typing import Literal

from retrieval.search import Weights

Ranker = Literal["none", "auto", "default-2024-11-15", "rrf", "rerank"]
RANKERS = (
    "none: by similarity alone. rrf: fused with full text. rerank: the best of those ordered by a "
    "cross-encoder, or an error. auto and default-2024-11-15: rerank if it can be had, else rrf."
)
# Whether a ranker reranks. OpenAI's do if there is a server for it.
_RERANKS: dict[Ranker, bool] = {"none": False, "rrf": False, "rerank": True}


def reranks(ranker: Ranker) -> bool | None:
    """What `find` takes as `rerank`."""
    return _RERANKS.get(ranker)


def weights_of(ranker: Ranker, asked: Weights = Weights()) -> Weights:
    return Weights(words=0.0) if ranker == "none" else asked
