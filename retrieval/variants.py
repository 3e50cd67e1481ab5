"""A question in other words, by a chat model: what it is asked, and what of its answer can be used.

Searched together with the question, they find passages whose authors chose other words (multi-query).
"""

import json
import math
import operator
import re
from collections.abc import Sequence
from dataclasses import replace

from retrieval.search import Query

VARIANTS_MAX = 4
LONGEST_CHARACTERS = 400
PROMPT = """\
Rewrite this search query in three other ways, with words that a document about it might use instead. \
Keep its meaning and its language. Write one query a line, and nothing else.

{question}"""
THOUGHTS = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
# A bullet, a number, a label such as "Query 2:", an opening quotation mark.
LEADING = re.compile(
    r"""^(?:[-*•–>#]+\s+|\(?\d{1,2}[.):]\s*|(?:query|variant|question|rewrite)\s*\d*\s*:\s*|["'“”„«`*_]+)+""",
    re.IGNORECASE,
)
TRAILING = "\"'“”»`*_, "
FENCE = re.compile(r"^```\w*$", re.MULTILINE)
# A variant whose cosine to the question is lower asks something else, and what the variants count together is
# what so many may. Both chosen on a tuning half: docs/experiments.md.
LEAST_LIKENESS = 0.2
COUNTED_IN_FULL = 3


def prompt_for(questions: Sequence[str]) -> str:
    return PROMPT.format(question="\n".join(questions))


def variants_in(answer: str, questions: Sequence[str], *, cut_off: bool = False) -> list[str]:
    """The queries in a model's answer that none of `questions` is already, `VARIANTS_MAX` at most.

    Args:
        answer: a query a line, as it was asked for; or a JSON list, numbered, quoted, after thoughts.
        cut_off: the answer ended at its limit, so that its last line is none.
    """
    text = FENCE.sub("", THOUGHTS.sub("", answer)).strip()
    lines = _json_list(text)
    if lines is None:
        lines = text.splitlines()
        if cut_off:
            lines = lines[:-1]
    known = {_key(question) for question in questions} | {""}
    found: list[str] = []
    for line in lines:
        variant = LEADING.sub("", line.strip()).rstrip(TRAILING)
        # "Here are three ways:" is no query.
        if _key(variant) in known or len(variant) > LONGEST_CHARACTERS or variant.endswith((":", "：")):
            continue
        known.add(_key(variant))
        found.append(variant)
    return found[:VARIANTS_MAX]


def like_the_question(
    questions: Sequence[Query], variants: Sequence[Query]
) -> tuple[list[Query], list[float]]:
    """What of a rewriter's variants is worth a search: a wrong one hides what the question finds.

    Args:
        questions: all ask the same; a variant is as like them as it is like the nearest.
    Returns:
        the variants that mean what was asked, each with its cosine as its weight or, of many, a share of it;
        and the cosines of those that do not.
    """
    cosines = [max(_cosine(variant.vector, asked.vector) for asked in questions) for variant in variants]
    share = min(1.0, COUNTED_IN_FULL / max(1, len(variants)))
    kept = [
        replace(variant, weight=share * cosine)
        for variant, cosine in zip(variants, cosines, strict=True)
        if cosine >= LEAST_LIKENESS
    ]
    return kept, [cosine for cosine in cosines if cosine < LEAST_LIKENESS]


def _cosine(left: Sequence[float], right: Sequence[float]) -> float:
    lengths = math.hypot(*left) * math.hypot(*right)
    return sum(map(operator.mul, left, right)) / lengths if lengths else 0.0


def _json_list(text: str) -> list[str] | None:
    if not text.startswith(("[", "{")):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if isinstance(value, dict):
        value = next((member for member in value.values() if isinstance(member, list)), [])
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list) else None


def _key(text: str) -> str:
    """What is the same to a search is the same here: the words, whatever stands between them."""
    return " ".join(re.findall(r"\w+", text.casefold()))
