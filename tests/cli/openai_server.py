"""A small server that speaks OpenAI's chat API, and remembers what it was asked."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.http_server import Handler, serving_by

SLOW = "slowly"  # a prompt that is answered without end, until the client leaves
# What an answer from a collection rests on.
PASSAGE = {
    "number": 1, "filename": "handbook.pdf", "first_page": 2, "last_page": 2, "page_label": None,
    "section": "Leave", "text": "Holidays are thirty days a year.",
}  # fmt: skip


@dataclass
class Heard:
    """What the server was asked, in order."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    left_early: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serving() -> Iterator[Heard]:
    heard = Heard()

    class Asked(Handler):
        def do_GET(self) -> None:
            path, _, _ = self.path.partition("?")
            if path == "/v1/models":
                rows = [{"id": "m"}, {"id": "other"}, {"id": "e", "type": "embedding"}]
                self.reply_json(200, {"object": "list", "data": rows})
            elif path == "/v1/models/other":
                self.reply_json(200, {"id": "other"})
            elif path == "/v1/vector_stores":
                rows = [{"id": "vs-1", "name": "office"}, {"id": "vs-2", "name": "two words"}]
                self.reply_json(200, {"object": "list", "data": rows, "has_more": False})
            else:
                self.reply_json(404, {"error": {"message": f"no {path}", "param": None, "code": None}})

        def do_POST(self) -> None:
            body = json.loads(self.body())
            heard.bodies.append(body)
            heard.keys.append(self.headers["authorization"])
            if heard.keys[-1] == "Bearer wrong":
                self.reply_json(401, {"error": {"message": "Invalid key", "param": None, "code": None}})
            elif self.path != "/v1/chat/completions":
                self.reply_json(404, {"error": {"message": f"no {self.path}", "param": None, "code": None}})
            elif not body["stream"]:
                message = {"role": "assistant", "content": "whole"}
                self.reply_json(
                    200, {"object": "chat.completion", "choices": [{"index": 0, "message": message}]}
                )
            else:
                self._stream(body["messages"][-1]["content"])

        def _stream(self, prompt: str) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            if "collections" in heard.bodies[-1]:
                self._event(
                    {"choices": [], "citations": [PASSAGE], "retrieval": {"notices": ["One is missing."]}}
                )
            self._delta({"role": "assistant", "reasoning_content": "hm. "})
            if prompt == "break":
                self._event({"error": {"message": "The server stopped in mid-answer."}})
                return
            for word in ("You ", "said ", f"\x1b[31m{prompt}."):
                self._delta({"content": word})
            try:
                while prompt == SLOW:
                    self._delta({"content": "word "})
                    time.sleep(0.02)
            except OSError:
                heard.left_early.set()
                return
            self._event({"choices": [], "usage": {"total_tokens": 3}})
            self.wfile.write(b"data: [DONE]\n\n")

        def _delta(self, delta: dict[str, str]) -> None:
            self._event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})

        def _event(self, chunk: dict[str, Any]) -> None:
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.flush()

    with serving_by(Asked) as heard.url:
        yield heard
