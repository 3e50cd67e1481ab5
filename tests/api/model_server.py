"""A strict stand-in for what serves models: it takes what llama-server takes, and refuses all else.

What it is asked says how it behaves: a model named `slow-…` streams with pauses, `broken-…` dies in
mid-stream, `hangs-…` never begins, `refuses-…` answers with an error, `rewrites-…` with `rewritings`.
"""

import asyncio
import base64
import json
import struct
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Message, Receive, Scope, Send

PAUSE_SECONDS = 0.02
CHUNKS = 40
VECTOR = [0.25, -0.5, 1.0]
# An odd way of writing JSON, to show that nothing on the way reads and writes it anew.
ANSWER = (
    b'{"id": "chat-1",  "object":"chat.completion","created":1,"model":"served",\n'
    b'"choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"An\\u0073wer"}}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}, "timings":{"x":1.0e-5}}'
)
OLLAMA_ANSWER = (
    b'{"model":"served","message":{"role":"assistant","content":"Answer"},"done":true,'
    b'"done_reason":"stop","prompt_eval_count":3,"eval_count":2}'
)


@dataclass
class ModelServer:
    """An ASGI application that remembers what it was asked."""

    key: str = "backend-key"
    models: set[str] = field(default_factory=set)
    bodies: list[bytes] = field(default_factory=list)
    begun: int = 0
    rewritings: str = ""
    left: int = 0  # callers that hung up before their answer was whole

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await answer_lifespan(receive, send)
            return
        path = scope["path"]
        if path == "/health":
            await _answer(send, 200, b'{"status":"ok"}')
            return
        body = await _read(receive)
        headers = dict(scope["headers"])
        if path == "/api/chat":  # Ollama's own, which knows no keys
            self.bodies.append(body)
            await _answer(send, 200, OLLAMA_ANSWER)
        elif headers.get(b"authorization") != f"Bearer {self.key}".encode():
            await _answer(send, 401, _error("Invalid API Key", 401, "authentication_error"))
        elif path == "/models/unload" or (scope["method"], path) == ("GET", "/v1/models"):
            await _answer(send, 200, b'{"data":[]}')
        elif headers.get(b"content-type") != b"application/json":
            await _answer(send, 415, _error("JSON only", 415, "invalid_request_error"))
        else:
            self.bodies.append(body)
            await self._route(path, json.loads(body), receive, send)

    async def _route(self, path: str, asked: dict[str, Any], receive: Receive, send: Send) -> None:
        if path == "/v1/embeddings":
            await _answer(send, 200, _embeddings(asked))
            return
        model = asked["model"]
        if model not in self.models:
            await _answer(send, 404, _error(f"model '{model}' not found", 404, "not_found_error"))
        elif model.startswith("refuses"):
            await _answer(
                send, 400, _error("the request exceeds the context size", 400, "exceed_context_size_error")
            )
        elif model.startswith("swamped"):
            message = "input (3002 tokens) is too large to process. increase the physical batch size"
            await _answer(send, 500, _error(message, 500, "server_error"))
        elif model.startswith("half"):
            headers = [(b"content-type", b"application/json"), (b"content-length", b"1000")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"choi', "more_body": True})
            raise ConnectionAbortedError("the stand-in dies, as it was asked to")
        elif model.startswith("loading"):
            await _answer(send, 503, _error("Loading model", 503, "unavailable_error"))
        elif model.startswith("hangs"):
            await self._until_left(receive)
        elif model.startswith("rewrites"):
            await _answer(send, 200, _said(self.rewritings))
        elif asked.get("stream"):
            await self._stream(model, receive, send)
        else:
            await _answer(send, 200, ANSWER if path.endswith("/chat/completions") else _completion())

    async def _stream(self, model: str, receive: Receive, send: Send) -> None:
        self.begun += 1
        watch = asyncio.create_task(receive())
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(CHUNKS):
            if watch.done():
                self.left += 1
                return
            if model.startswith("broken") and number == 2:
                raise ConnectionAbortedError("the stand-in dies, as it was asked to")
            if model.startswith("slow"):
                await asyncio.sleep(PAUSE_SECONDS)
            await send({"type": "http.response.body", "body": _chunk(number), "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        watch.cancel()

    async def _until_left(self, receive: Receive) -> None:
        self.begun += 1
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left += 1


def _chunk(number: int) -> bytes:
    delta = {"choices": [{"index": 0, "delta": {"content": f"w{number} "}, "finish_reason": None}]}
    chunk = {"id": "chat-1", "object": "chat.completion.chunk", "created": 1, "model": "served", **delta}
    return b"data: " + json.dumps(chunk, indent=None).encode() + b"\n\n"


def streamed_bytes() -> bytes:
    return b"".join(_chunk(number) for number in range(CHUNKS)) + b"data: [DONE]\n\n"


def _said(text: str) -> bytes:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return json.dumps({"id": "chat-1", "object": "chat.completion", "choices": [choice]}).encode()


def _completion() -> bytes:
    choice = {"text": "more", "index": 0, "finish_reason": "stop", "logprobs": None}
    return json.dumps(
        {"id": "c-1", "object": "text_completion", "created": 1, "model": "served", "choices": [choice]}
    ).encode()


def _embeddings(asked: dict[str, Any]) -> bytes:
    texts = asked["input"] if isinstance(asked["input"], list) else [asked["input"]]
    vector: Any = VECTOR
    if asked.get("encoding_format") == "base64":
        vector = base64.b64encode(struct.pack(f"<{len(VECTOR)}f", *VECTOR)).decode()
    rows = [{"object": "embedding", "index": index, "embedding": vector} for index, _ in enumerate(texts)]
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    return json.dumps({"object": "list", "data": rows, "model": asked["model"], "usage": usage}).encode()


def _error(message: str, code: int, kind: str) -> bytes:
    return json.dumps({"error": {"code": code, "message": message, "type": kind}}).encode()


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _read(receive: Receive) -> bytes:
    body = b""
    while True:
        message: Message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def answer_lifespan(receive: Receive, send: Send) -> None:
    while True:
        event = await receive()
        await send({"type": f"{event['type']}.complete"})
        if event["type"] == "lifespan.shutdown":
            return
