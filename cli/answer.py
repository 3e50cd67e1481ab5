"""An answer as it comes from the API, and as it is printed: its words, and what it rests on."""

import json as jsonlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from cli.client import Client
from cli.output import stderr
from cli.text import harmless
from db.errors import Unavailable

JSON = dict[str, Any]
CITED = re.compile(r"\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\]")


@dataclass(frozen=True)
class Part:
    """A piece of an answer, as it arrives."""

    text: str
    is_thought: bool = False


def stream_chunks(client: Client, body: JSON) -> Iterator[JSON]:
    """Ask, and yield the chunks of the answer.

    Raises:
        Unavailable: the server ended the stream with an error.
    """
    with client.stream("POST", "/v1/chat/completions", body={**body, "stream": True}) as response:
        for line in response.iter_lines():
            data = line.removeprefix("data:").strip()
            if not line.startswith("data:") or not data:
                continue
            if data == "[DONE]":
                return
            chunk = jsonlib.loads(data)
            if chunk.get("error"):
                raise Unavailable(str(chunk["error"].get("message", chunk["error"])))
            yield chunk


def parts_of(chunk: JSON) -> Iterator[Part]:
    for choice in chunk.get("choices") or []:
        delta = choice.get("delta") or {}
        # What a reasoning model thinks before it answers, by the name that llama-server and vLLM give it.
        if delta.get("reasoning_content"):
            yield Part(delta["reasoning_content"], is_thought=True)
        if delta.get("content"):
            yield Part(delta["content"])


class Answer:
    """An answer while it is printed; `text` is as much of it as has come, `citations` are its passages."""

    def __init__(self, console: Console) -> None:
        self.text = ""
        self.citations: list[JSON] = []
        self._notices: list[str] = []
        self._console = console
        self._has_begun = False
        self._was_thought = False
        self._waiting = console.status("[dim]…[/]") if console.is_interactive else None

    def print(self, chunks: Iterator[JSON]) -> None:
        """Print the words as they come, and then where they are from."""
        if self._waiting:
            self._waiting.start()
        try:
            for chunk in chunks:
                self._take(chunk)
        finally:
            if self._waiting:
                self._waiting.stop()
            if self._has_begun:
                self._console.print()
        self._print_sources()

    def _take(self, chunk: JSON) -> None:
        if "citations" in chunk:
            self.citations = chunk["citations"]
            self._notices = chunk["retrieval"]["notices"]
        for part in parts_of(chunk):
            self._print(part)

    def _print(self, part: Part) -> None:
        if self._waiting:
            self._waiting.stop()
        if part.is_thought and not self._console.is_interactive:
            return
        self._has_begun = True
        if self._was_thought and not part.is_thought:
            self._console.print("\n")
        self._was_thought = part.is_thought
        self.text += "" if part.is_thought else part.text
        self._console.print(
            Text(harmless(part.text), "dim" if part.is_thought else ""), end="", soft_wrap=True
        )

    def _print_sources(self) -> None:
        """The passages that the answer cites; all that it was given, if it cites none."""
        if not self.citations:
            return  # the answer itself says so, and why
        for notice in self._notices:
            stderr().print(harmless(notice), style="yellow", markup=False, soft_wrap=True)
        cited = {int(number) for match in CITED.finditer(self.text) for number in match[1].split(",")}
        sources = [row for row in self.citations if row["number"] in cited]
        self._console.print()
        if not sources:
            stderr().print("The answer cites none of the passages that it was given:", style="yellow")
        for row in sources or self.citations:
            self._console.print(f"[{row['number']}] {source(row)}", markup=False, soft_wrap=True)


def source(passage: JSON) -> str:
    """Where a passage stands: `handbook.pdf, p. 12 (Holidays)`."""
    first, last, label = passage["first_page"], passage["last_page"], passage["page_label"]
    pages = ""
    if first is not None:
        pages = f", p. {first}" if first == last else f", pp. {first}–{last}"
        pages += f" “{label}”" if label else ""
    section = f" ({' '.join(passage['section'].split())})" if passage["section"] else ""
    return harmless(f"{passage['filename']}{pages}{section}")
