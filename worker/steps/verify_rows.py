"""Which conversations a finished model is judged by: a bounded number, and never more than it can read."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from db.errors import InvalidInput
from db.source_files import rows_source
from training_data.chat_templates import UNWEIGHTED, WEIGHT, Chat, ChatTemplateError, unweighted
from training_data.rows import answered, read_prepared
from training_data.tokens import ChatTokenizer
from worker.step import StepInput
from worker.steps.export import is_whole
from worker.steps.pretrain_text import chats_from, read_passages, trained_text
from worker.steps.teacher_forcing import ForcedRow

MAX_ROWS = 16
MAX_TOKENS_OF_A_ROW = 32
RowT = TypeVar("RowT")
PIECE_CHARACTERS = 200
SPLITS = ("test", "validation", "train")  # held-out rows first


def choose_rows(step_input: StepInput, tokenizer: ChatTokenizer, context: int) -> tuple[str, list[ForcedRow]]:
    """Pick rows of the first split that has any that fit.

    Returns:
        the split's name ("text" for a model made from text) and its rows, perhaps none.
    """
    for split, chats in _sources(step_input):
        rows = [row for chat in chats if (row := force(chat, tokenizer, context)) is not None]
        if rows:
            return split, spread(rows, MAX_ROWS)
    return SPLITS[-1], []


def prompts_of(step_input: StepInput) -> list[Chat]:
    """The prompts of the first split that has any."""
    if is_whole(step_input):
        return []
    for split in SPLITS:
        path = _prepared(step_input) / f"{split}.jsonl"
        found = [row.messages for row in read_prepared(path) if row.is_prompt] if path.is_file() else []
        if found:
            return found
    return []


def _sources(step_input: StepInput) -> list[tuple[str, list[list[dict[str, Any]]]]]:
    if is_whole(step_input):
        passages = read_passages(trained_text(step_input))
        chats = list(chats_from(passages, random.Random(0)))  # noqa: S311 - the same ones each time
        return [("text", chats[: 20 * MAX_ROWS])]
    folder = _prepared(step_input)
    return [(split, _read(folder / f"{split}.jsonl")) for split in SPLITS]


def _prepared(step_input: StepInput) -> Path:
    """Where the rows are that the model was trained on, and those that were held out."""
    return step_input.step_folders["prepare"] if step_input.source is None else rows_source(step_input.source)


def _read(path: Path) -> list[list[dict[str, Any]]]:
    """The conversations of prepared rows: of prompts, those whose rows say what their answer should be."""
    if not path.is_file():
        return []
    return [
        chat
        for row in read_prepared(path)
        for chat in ([answered(row)] if row.text is None else _chats_of_text(row.text))
    ]


def _chats_of_text(text: str) -> list[list[dict[str, Any]]]:
    """Conversations made of plain text: a sentence and the next one, or two pieces of what has none."""
    chats = list(chats_from([text], random.Random(0)))  # noqa: S311 - the same ones each time
    middle = min(len(text) // 2, PIECE_CHARACTERS)
    halves = text[:middle].strip(), text[middle : 2 * middle].strip()
    if chats or not all(halves):
        return chats
    return [
        [{"role": role, "content": said} for role, said in zip(("user", "assistant"), halves, strict=True)]
    ]


def spread(rows: Sequence[RowT], most: int) -> list[RowT]:
    """Take `most` from all over the list, for files are often sorted."""
    step = max(1, len(rows) / most)
    return [rows[int(i * step)] for i in range(min(len(rows), most))]


def force(
    messages: list[dict[str, Any]], tokenizer: ChatTokenizer, context: int, *, every_token: bool = False
) -> ForcedRow | None:
    """Encode a conversation up to the end of its last answer that was learnt; None where it has none or is
    too long.

    Args:
        every_token: compare all tokens of its answers, not only their beginning and end.
    """
    turns = [
        i
        for i, message in enumerate(messages)
        if message["role"] == "assistant" and message.get(WEIGHT) != UNWEIGHTED
    ]
    if not turns:
        return None
    messages = messages[: turns[-1] + 1]
    try:
        encoded = tokenizer.encode_chat(messages)
    except ChatTemplateError:
        return None
    answers = [i for i, answer in enumerate(encoded.answer_mask) if answer]
    if not answers or answers[0] == 0:
        return None
    last = answers[-1]
    first = last
    while first - 1 >= 0 and encoded.answer_mask[first - 1]:
        first -= 1
    if last + 1 > context:
        return None
    positions = answers if every_token else _positions(answers)
    return ForcedRow(encoded.ids[: last + 1], positions, first, unweighted(messages[:-1]))


def end_of_answers(rows: list[ForcedRow], tokenizer: ChatTokenizer) -> int:
    """The token that ends an answer in the training: its last special one, with nothing but space behind it.

    Raises:
        InvalidInput: the template writes none, so that no model can learn from it to stop.
    """
    answer = rows[0].ids[rows[0].prompt_length :]
    end = tokenizer.end_of(answer)
    if end is not None:
        return end
    said = tokenizer.tokenizer.decode(answer[-3:], skip_special_tokens=False)
    raise InvalidInput(
        f"The training's chat template writes no token that ends an answer (one ends with {said!r}), so the "
        "model never learnt to stop. Train again with a template that writes eos_token, or the model's end "
        "of turn, after each answer.",
        code="verification_failed",
    )


def _positions(answers: list[int]) -> list[int]:
    """The beginning of the answers and their end, which must be learnt too."""
    if len(answers) <= MAX_TOKENS_OF_A_ROW:
        return answers
    quarter = MAX_TOKENS_OF_A_ROW // 4
    return answers[: MAX_TOKENS_OF_A_ROW - quarter] + answers[-quarter:]
