"""What a verified file answers to golden prompts, and whether the server that serves it says the same.

Another batch, another number of slots: sums come in another order, and where two tokens are nearly as likely
one of them is taken here and the other there. So answers are held against each other up to where they part,
and that counts as a difference only where the verified file was clear about its token.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serving.openai_compatible import GreedyAnswer, LlamaServer
from worker.steps.golden_prompts import GoldenPrompt
from worker.steps.teacher_forcing import DECIDED_NATS

GOLDEN_FILE = "golden.json"
ANSWERS = 4
ANSWER_TOKENS = 24

GoldenAnswers = dict[str, GreedyAnswer]  # by what the prompt is about


@dataclass(frozen=True)
class Golden:
    """What `verify` left: the prompts, and what one file answered to some of them."""

    prompts: list[GoldenPrompt]
    answers: GoldenAnswers


def answer_golden(server: LlamaServer, golden: list[GoldenPrompt], context: int) -> GoldenAnswers:
    """Let a file answer the shortest prompts, greedily."""
    fitting = [each for each in golden if each.learnt and len(each.ids) + ANSWER_TOKENS <= context]
    chosen = sorted(fitting, key=lambda each: len(each.ids))[:ANSWERS]
    return {each.about: server.greedy(each.ids, max_tokens=ANSWER_TOKENS) for each in chosen}


def certain_tokens(verified: GreedyAnswer) -> list[int]:
    """The answer's tokens up to the first that another server might take otherwise."""
    leads = enumerate(verified.leads)
    return verified.tokens[: next((i for i, lead in leads if lead < DECIDED_NATS), len(verified.tokens))]


def difference(verified: GreedyAnswer, live: GreedyAnswer) -> str | None:
    """How the live server's answer differs; None where it does not, or only by a coin's toss."""
    pairs = zip(verified.tokens, live.tokens, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(verified.tokens), len(live.tokens)))
    if at < len(verified.tokens) and verified.leads[at] < DECIDED_NATS:
        return None
    if verified.tokens == live.tokens and verified.ended == live.ended:
        return None
    return (
        f"it answers {live.text!r} where the verified file answers {verified.text!r} (they part at "
        f"token {at + 1}, of which the file was certain)"
    )


def write_golden(folder: Path, prompts: list[GoldenPrompt], answers: dict[str, GoldenAnswers]) -> None:
    written = {
        "prompts": [prompt.to_json() for prompt in prompts],
        "answers": {
            quantization: {about: asdict(answer) for about, answer in found.items()}
            for quantization, found in answers.items()
        },
    }
    (folder / GOLDEN_FILE).write_text(json.dumps(written, ensure_ascii=False), encoding="utf-8")


def read_golden(folder: Path | None, quantization: str) -> Golden | None:
    """Read what a verify step left; None of one that had no trained weights to ask."""
    if folder is None or not (folder / GOLDEN_FILE).is_file():
        return None
    found: dict[str, Any] = json.loads((folder / GOLDEN_FILE).read_text(encoding="utf-8"))
    answers = found["answers"].get(quantization, {})
    return Golden(
        [GoldenPrompt(**row) for row in found["prompts"]],
        {about: GreedyAnswer(**answer) for about, answer in answers.items()},
    )
