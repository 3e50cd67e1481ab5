"""Rows of a training set, and how prepared ones are kept on disk: a JSON object a line."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from db.errors import InvalidInput
from training_data.chat_templates import Chat

# The column of a prompt's row that says what its answer should be.
ANSWER = "answer"


@dataclass(frozen=True)
class Row:
    """A row of training data.

    Args:
        line: the line it begins on, or its number where rows are no lines, counted from 1.
        messages: a conversation that ends with an answer; of a prompt, with the user's turn; of text, none.
        rejected: of a preference pair, the answer that is less good than the conversation's last.
        label: of a judgement, whether the conversation's last answer is good.
        text: of plain text, all of it.
        continues: of plain text, whether the next row goes on with the same document.
        fields: the other columns, where they are kept: reward functions are given them.
        place: as an error names it: `Line 3`.
    """

    line: int
    messages: Chat
    rejected: str | None = None
    label: bool | None = None
    text: str | None = None
    continues: bool = False
    fields: dict[str, Any] = field(default_factory=dict, compare=False)
    place: str = field(default="", compare=False)

    @property
    def is_prompt(self) -> bool:
        """Whether it has no answer: whoever trains on it has the model write them."""
        return bool(self.messages) and self.messages[-1]["role"] != "assistant"


def as_prompt(row: Row, *, param: str) -> Row:
    """The row without its last answer, which is kept as its column `answer` unless it has one.

    Raises:
        InvalidInput: no user's turn comes before the answer.
    """
    turns = row.messages
    while turns and turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    if not turns or turns[-1]["role"] != "user":
        raise InvalidInput(f"{row.place}: there is no user's turn for the model to answer.", param=param)
    if len(turns) == len(row.messages):
        return row
    return replace(row, messages=turns, fields={ANSWER: row.messages[-1]["content"], **row.fields})


def expected_answer(columns: Mapping[str, Any]) -> str | None:
    """What a prompt's answer should be, as its row's columns say; None: they do not."""
    value = columns.get(ANSWER)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value).strip() or None


def answered(row: Row) -> Chat:
    """The conversation; a prompt whose row says what its answer should be, with that."""
    answer = expected_answer(row.fields) if row.is_prompt else None
    return row.messages if answer is None else [*row.messages, {"role": "assistant", "content": answer}]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(line_of(row))


def line_of(row: Row) -> str:
    """A prepared row as a line: its messages, and of what else there is that which is there."""
    kept: dict[str, Any] = {"messages": row.messages, "rejected": row.rejected, "label": row.label}
    kept |= {"text": row.text, "continues": row.continues or None, "fields": row.fields or None}
    return (
        json.dumps(
            {key: value for key, value in kept.items() if value is not None}, ensure_ascii=False, default=str
        )
        + "\n"
    )


def read_prepared(path: Path) -> Iterator[Row]:
    """Rows as `write_rows` wrote them."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            yield Row(number, **json.loads(line))


def read_conversations(path: Path) -> Iterator[list[Chat]]:
    """Each row's conversations: one, of a pair two; of a prompt, with its answer where its row has one."""
    return ([answered(row)] if row.is_prompt else conversations(row) for row in read_prepared(path))


def conversations(row: Row) -> list[Chat]:
    """The conversation as it is, and of a preference pair also with the other answer."""
    if row.rejected is None:
        return [row.messages]
    return [row.messages, [*row.messages[:-1], {**row.messages[-1], "content": row.rejected}]]
