"""How near an answer comes to the one that a row has: equal, or by ROUGE's overlap of words."""

import re
import unicodedata
from functools import lru_cache
from typing import Any

ROUGE = ("rouge1", "rouge2", "rougeL")
# Chinese and Japanese put no spaces between words: each of their characters counts as one.
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")


class _Words:
    """rouge-score's own tokenizer knows the letters a to z only, and would split every other word there."""

    def tokenize(self, text: str) -> list[str]:
        return WORD.findall(unicodedata.normalize("NFC", text).casefold())


def is_exact(expected: str, answer: str) -> bool:
    """Whether both say the same, but for white space and how Unicode composes characters."""
    return plain(expected) == plain(answer)


def plain(text: str) -> str:
    """The text as if white space were all alike, with characters composed."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def rouge(expected: str, answer: str) -> dict[str, float]:
    """F-measure of ROUGE-1, ROUGE-2 and ROUGE-L, by rouge-score.

    Source: Lin (2004), "ROUGE: A Package for Automatic Evaluation of Summaries".
    """
    scores = _scorer().score(expected, answer)
    return {name: float(scores[name].fmeasure) for name in ROUGE}


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), tokenizer=_Words())
