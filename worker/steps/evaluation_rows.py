"""The rows that a model is evaluated on: those its fine-tune has held out, or a file's."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from db.disk import file_sha256
from db.errors import InvalidInput
from db.source_files import rows_source
from training_data.chat_templates import Chat, merge_system_turn
from training_data.formats import RowReader, check_method, detect_format
from training_data.rows import read_conversations
from training_data.tokens import ChatTokenizer
from worker.step import Step
from worker.steps.teacher_forcing import ForcedRow
from worker.steps.verify_rows import force, spread

FILE = "input_file"


@dataclass(frozen=True)
class EvaluationRow:
    """A conversation whose last answer is asked for.

    Args:
        forced: its tokens, with the positions of every token of its answers.
        prompt: the token ids that the model is asked with.
        answer: what the row has for an answer.
    """

    forced: ForcedRow
    prompt: list[int]
    answer: str


@dataclass(frozen=True)
class EvaluationRows:
    """Args:
    data: where they are from, with the sha256 of the file, and how many were taken and left out.
    """

    rows: list[EvaluationRow]
    data: dict[str, Any]

    @property
    def longest_prompt(self) -> int:
        return max(len(row.prompt) for row in self.rows)

    @property
    def longest(self) -> int:
        return max(len(row.forced.ids) for row in self.rows)


def read_evaluation_rows(
    step: Step, about: dict[str, Any], tokenizer: ChatTokenizer, context: int
) -> EvaluationRows:
    """Take rows from all over the file, and tell what was left out and what the model has learnt from.

    Raises:
        InvalidInput: no row with an answer fits the model.
    """
    path, chats, data = _source(step, about, tokenizer)
    wanted, rows = take_rows(chats, step.input.params["max_rows"], tokenizer, context)
    if not rows:
        raise InvalidInput(
            f"No row of {data['name']} has an answer and fits the model's {context} tokens: nothing can be "
            "measured on it.",
            param=FILE,
        )
    learnt = {_said(chat) for chat in _trained(step, about)}
    data |= {
        "sha256": file_sha256(path),
        "rows": len(rows),
        "of": len(chats),
        "left_out": len(wanted) - len(rows),
        "trained_on": sum(_said(chat) in learnt for chat in wanted),
    }
    _tell(step, data, context)
    return EvaluationRows(rows, data)


def take_rows(
    chats: list[Chat], most: int, tokenizer: ChatTokenizer, context: int
) -> tuple[list[Chat], list[EvaluationRow]]:
    """Take `most` conversations from all over the list, and those of them that can be measured as rows."""
    wanted = spread(chats, most)
    return wanted, [row for chat in wanted if (row := _row(chat, tokenizer, context)) is not None]


def take_prompts(chats: list[Chat], most: int, tokenizer: ChatTokenizer) -> list[EvaluationRow]:
    """Take `most` prompts from all over the list, to be answered alone."""
    taken = spread([chat for chat in chats if chat and chat[-1]["role"] == "user"], most)
    encoded = [(chat, tokenizer.encode_prompt(chat)) for chat in taken]
    return [EvaluationRow(ForcedRow(ids, [], len(ids), chat), ids, "") for chat, ids in encoded]


def _source(
    step: Step, about: dict[str, Any], tokenizer: ChatTokenizer
) -> tuple[Path, list[Chat], dict[str, Any]]:
    file_id = step.input.params[FILE]
    if file_id is None:
        path = rows_source(step.input.require_source()) / f"{about['split']}.jsonl"
        name = f"the {about['split']} split of {about['job']}"
        return path, read_chats(path), {"name": name, "split": about["split"]}
    file = step.input.files[file_id]
    detected = detect_format(file.path, file.filename, param=FILE)
    check_method(detected, "supervised", file.filename, param=FILE)
    chats = [row.messages for row in RowReader(detected, param=FILE)]
    asked = about.get("system_prompt")
    if asked is not None:
        step.event("Rows without a system turn get the one that the fine-tune gave to its rows.")
    return file.path, [_as_trained(chat, asked, tokenizer) for chat in chats], {"name": file.filename}


def _as_trained(chat: Chat, system_prompt: str | None, tokenizer: ChatTokenizer) -> Chat:
    if system_prompt is not None and chat[0]["role"] != "system":
        chat = [{"role": "system", "content": system_prompt}, *chat]
    if chat[0]["role"] == "system" and not tokenizer.template.has_system_role:
        return merge_system_turn(chat)
    return chat


def read_chats(path: Path) -> list[Chat]:
    return [chats[0] for chats in read_conversations(path)]


def _trained(step: Step, about: dict[str, Any]) -> Iterable[Chat]:
    if about["kind"] != "fine_tune" or step.input.source is None:
        return []
    path = rows_source(step.input.source) / "train.jsonl"
    return read_chats(path) if path.is_file() else []


def _said(chat: Chat) -> tuple[tuple[str, str], ...]:
    return tuple((message["role"], str(message["content"])) for message in chat)


def _row(chat: Chat, tokenizer: ChatTokenizer, context: int) -> EvaluationRow | None:
    forced = force(chat, tokenizer, context, every_token=True)
    if forced is None:
        return None
    prompt = tokenizer.encode_prompt(forced.messages)
    return EvaluationRow(forced, prompt, str(chat[len(forced.messages)]["content"]))


def _tell(step: Step, data: dict[str, Any], context: int) -> None:
    step.event(f"{data['rows']} of {data['of']} rows of {data['name']} are measured.", **data)
    if data["left_out"]:
        step.event(
            f"{data['left_out']} rows have no answer that is learnt, or are longer than {context} tokens: "
            "they are left out.",
            level="warn",
        )
    if data["trained_on"]:
        step.event(
            f"{data['trained_on']} of these rows are among those that the model has learnt from: its figures "
            "say less about new questions.",
            level="warn",
        )
