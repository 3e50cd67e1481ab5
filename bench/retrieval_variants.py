"""Questions in other words, as a chat model writes them when it is asked as the product asks."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx

from retrieval.variants import prompt_for, variants_in

SLOTS = 2
CONTEXT_TOKENS = 1024
ANSWER_TOKENS = 200
SECONDS = 120


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
