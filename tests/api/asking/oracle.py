"""A stand-in for a server of models that answers a row's question by what the question says.

`refuse …` is a 400, `flaky …` a 503 the first time, `broken …` always one; all else is answered after
`seconds`. `down`: it has no answer for anybody, as while it restarts.
"""

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Receive, Scope, Send

from tests.api.model_server import answer_lifespan


@dataclass
class Oracle:
    seconds: float = 0.0
    down: bool = False
    asked: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    def forget(self) -> None:
        self.seconds, self.down, self.most_at_once = 0.0, False, 0
        self.asked.clear()
        self.bodies.clear()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await answer_lifespan(receive, send)
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if self.down:
            await _answer(send, 503, _error("Loading model"))
        elif scope["method"] == "GET":
            await _answer(send, 200, {"data": []})
        else:
            await self._said(scope["path"], json.loads(body), send)

    async def _said(self, path: str, asked: dict[str, Any], send: Send) -> None:
        question = str(asked.get("prompt") or asked.get("input") or asked["messages"][-1]["content"])
        self.bodies.append(asked)
        self.asked[question] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.at_once -= 1
        if question.startswith("refuse"):
            await _answer(send, 400, _error("That is refused."))
        elif question.startswith("broken") or (question.startswith("flaky") and self.asked[question] == 1):
            await _answer(send, 503, _error("Not now."))
        else:
            await _answer(send, 200, _answers(path, question))


def _answers(path: str, question: str) -> dict[str, Any]:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    if path == "/v1/embeddings":
        row = {"object": "embedding", "index": 0, "embedding": [0.5, float(len(question))]}
        return {"object": "list", "data": [row], "usage": {"prompt_tokens": 3, "total_tokens": 3}}
    said: dict[str, Any] = {"text": f"So: {question}"}
    if path == "/v1/chat/completions":
        said = {"message": {"role": "assistant", "content": f"So: {question}"}}
    return {"id": "1", "choices": [{"index": 0, "finish_reason": "stop", **said}], "usage": usage}


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "said_by_the_oracle", "code": None}}


async def _answer(send: Send, status: int, body: dict[str, Any]) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})
