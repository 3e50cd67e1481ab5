"""Rows of a training set on disk: one `{"messages": [...]}` a line, and with `rejected` a preference pair."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from training_data.chat_templates import Chat
from training_data.formats import Row


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            pair = {} if row.rejected is None else {"rejected": row.rejected}
            file.write(json.dumps({"messages": row.messages, **pair}, ensure_ascii=False) + "\n")


def read_conversations(path: Path) -> Iterator[list[Chat]]:
    """Each row's conversations: one, or of a preference pair two."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            yield conversations(Row(0, row["messages"], row.get("rejected")))


def conversations(row: Row) -> list[Chat]:
    """The conversation as it is, and of a preference pair also with the other answer."""
    if row.rejected is None:
        return [row.messages]
    return [row.messages, [*row.messages[:-1], {**row.messages[-1], "content": row.rejected}]]
