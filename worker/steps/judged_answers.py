"""What a training's own rewards say of the answers of each file: what GRPO trains for, as a figure in the
table of its evaluation.
"""

from pathlib import Path
from typing import Any

from db.errors import InvalidInput
from training_data.chat_templates import Chat
from training_data.rows import Row, read_prepared
from training_data.tokens import ChatTokenizer
from worker.step import Step
from worker.steps.rewards import judge, load_rewards

JSON = dict[str, Any]


def rows_of(path: Path, prompts: list[Chat]) -> list[Row]:
    """The prepared rows that have these prompts; of several that have one, the first."""
    found: list[Row | None] = [None] * len(prompts)
    for row in read_prepared(path):
        for position, prompt in enumerate(prompts):
            if found[position] is None and row.messages == prompt:
                found[position] = row
    return [row for row in found if row is not None]


def judge_answers(
    step: Step, tokenizer: ChatTokenizer, rows: list[Row], answers: dict[str, list[str]], table: list[JSON]
) -> None:
    """Add `reward` to each row of the table: the mean over its answers, by the weights of the training.

    Args:
        rows: prompts, as `prepare` left them.
        answers: to them, by the name of the table's row.
    """
    if not step.input.rewards or not rows:
        return
    chosen = step.input.results["train"]["hyperparameters"]
    settings = {"max_completion_length": chosen["max_completion_length"]}
    try:
        rewards = load_rewards(step, step.input.results["prepare"]["reward_columns"], settings)
        for figures in table:
            said = answers.get(figures["name"])
            if said is not None:
                judged = [judge(reward, tokenizer, rows, said) for reward in rewards]
                weighted = zip(chosen["reward_weights"], judged, strict=True)
                figures["reward"] = sum(weight * sum(each) for weight, each in weighted) / len(said)
    except (InvalidInput, RuntimeError) as error:  # the model is what it is without this figure
        step.event(f"The answers are not judged: {error}", level="warn")
