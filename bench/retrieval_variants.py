"""Questions in other words.

Those of `data/retrieval_rewrites.jsonl` are the project's engineers': three a question, as the product asks a
model for, written from the list of questions alone before anything was searched with them, and not changed
since. A chat model can be asked for others. Nonsense is what a rewriter gives that does not understand.
"""

import json
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from bench.retrieval_labels import Question
from retrieval.variants import prompt_for, variants_in

REWRITES = Path(__file__).parent / "data" / "retrieval_rewrites.jsonl"
# Of the kind that a model of a few thousand parameters writes.
GIBBERISH = (
    "Q4_K_K_K_K_M.",
    "The the the of of of.",
    "lora_r lora_r lora_r 16 16 16",
    "a a a a a a a a",
    "Yes, yes, yes.",
    "What is the base model of the base model of the base model?",
    "I am a helpful assistant.",
)

SLOTS = 2
CONTEXT_TOKENS = 1024
ANSWER_TOKENS = 200
SECONDS = 120


def load_rewrites() -> dict[str, list[str]]:
    lines = REWRITES.read_text(encoding="utf-8").splitlines()
    return {row["question"]: row["rewrites"] for row in map(json.loads, lines)}


def nonsense_for(
    questions: Sequence[Question], rewrites: dict[str, list[str]], seed: int
) -> dict[str, list[str]]:
    """Returns: for each question two rewrites of one about another text, and gibberish."""
    chance = random.Random(seed)  # noqa: S311 - the same at every run
    written = {}
    for question in questions:
        others = [other for other in questions if other.text != question.text]
        other = chance.choice(others) if others else question
        written[question.question] = [*rewrites[other.question][:2], chance.choice(GIBBERISH)]
    return written


def variants_of(url: str, questions: Sequence[str]) -> dict[str, list[str]]:
    """Returns: for each question what of the model's answer can be used, often nothing."""

    def ask(question: str) -> list[str]:
        body = {
            "messages": [{"role": "user", "content": prompt_for([question])}],
            "temperature": 0,
            "max_tokens": ANSWER_TOKENS,
        }
        answer = (
            httpx.post(f"{url}/v1/chat/completions", json=body, timeout=SECONDS).raise_for_status().json()
        )
        choice = answer["choices"][0]
        cut_off = choice["finish_reason"] == "length"
        return variants_in(choice["message"]["content"] or "", [question], cut_off=cut_off)

    with ThreadPoolExecutor(SLOTS) as executor:
        return dict(zip(questions, executor.map(ask, questions), strict=True))
