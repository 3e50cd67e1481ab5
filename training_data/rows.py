"""Rows of a training set on disk: one `{"messages": [...]}` a line."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from training_data.chat_templates import Chat


def write_messages(path: Path, chats: Iterable[Chat]) -> int:
    """Write conversations, and say how many there were."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for chat in chats:
            file.write(json.dumps({"messages": chat}, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_messages(path: Path) -> Iterator[Chat]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["messages"]
