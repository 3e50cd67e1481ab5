"""A strict stand-in for a llama-server that counts: it renders, tokenizes and answers as it is told to.

Its tokens are words with the space before them. The template of a model named `no-system-…` refuses a
system's message, as Gemma's does; `silent-…` knows nothing but the chat route, `loading-…` not even that.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Receive, Scope, Send

from tests.api.model_server import OLLAMA_ANSWER, ModelServer, _answer, _error, _read, answer_lifespan

JSON = dict[str, Any]
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
WORD = re.compile(r"\s*[^\s]+|\s+")
CONTROL = re.compile(r"(<\|im_start\|>|<\|im_end\|>|<own-mark>)")


@dataclass
class AnsweringServer(ModelServer):
    """Args:
    window: of every model, in tokens.
    says: the answer to every question; streamed where `streams`, in place of numbered words.
    thinks, calls: what stands beside it: thoughts, and functions to be called, by name and arguments.
    finish: why it has ended; `dies` in place of ending.
    asked: the requests to the chat route.
    """

    window: int = 2000
    says: str = "Thirty days [1]."
    streams: bool = False
    thinks: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    finish: str = "stop"
    dies: bool = False
    asked: list[JSON] = field(default_factory=list)
    counted: int = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await answer_lifespan(receive, send)
            return
        path, model = scope["path"], scope["query_string"].decode().removeprefix("model=")
        body = await _read(receive)
        asked: JSON = json.loads(body) if body else {}
        model = asked.get("model", model)
        if path == "/api/show":  # Ollama's own routes know no keys
            parameters = f"num_ctx                        {self.window}"
            await _answer(send, 200, json.dumps({"parameters": parameters, "model_info": {}}).encode())
        elif path == "/api/chat":
            self.asked.append(asked)
            await _answer(send, 200, OLLAMA_ANSWER)
        elif dict(scope["headers"]).get(b"authorization") != f"Bearer {self.key}".encode():
            await _answer(send, 401, _error("Invalid API Key", 401, "authentication_error"))
        elif path == "/v1/models":
            await _answer(send, 200, json.dumps({"data": [{"id": m} for m in self.models]}).encode())
        elif model not in self.models:
            await _answer(send, 400, _error(f"model '{model}' not found", 400, "invalid_request_error"))
        elif path == "/v1/chat/completions":
            self.bodies.append(body)
            self.asked.append(asked)
            await self._chat(model, asked, receive, send)
        elif model.startswith("silent"):
            await _answer(send, 404, _error("File Not Found", 404, "not_found_error"))
        else:
            self.counted += 1
            status, answer = self._measure(path, asked)
            await _answer(send, status, json.dumps(answer).encode())

    async def _chat(self, model: str, asked: JSON, receive: Receive, send: Send) -> None:
        if model.startswith("loading"):
            await _answer(send, 503, _error("Loading model", 503, "unavailable_error"))
        elif asked.get("stream") and self.streams:
            await self._say(asked, send)
        elif asked.get("stream"):
            await self._stream(model, receive, send)
        else:
            await _answer(send, 200, self._completion(asked))

    async def _say(self, asked: JSON, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        chunks = [
            {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in self._deltas()
        ]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": self.finish}]})
        if (asked.get("stream_options") or {}).get("include_usage"):
            chunks.append({"choices": [], "usage": USAGE})
        for chunk in chunks:
            event = b"data: " + json.dumps(chunk).encode() + b"\n\n"
            await send({"type": "http.response.body", "body": event, "more_body": True})
            if self.dies:
                raise ConnectionAbortedError("the stand-in dies, as it was asked to")
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    def _deltas(self) -> Iterator[JSON]:
        yield {"role": "assistant", "content": None}
        if self.thinks:
            yield {"reasoning_content": self.thinks}
        for word in WORD.findall(self.says):
            yield {"content": word}
        for index, (name, arguments) in enumerate(self.calls):
            function = {"name": name, "arguments": ""}
            yield {
                "tool_calls": [
                    {"index": index, "id": f"call-{index}", "type": "function", "function": function}
                ]
            }
            for piece in WORD.findall(arguments):
                yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}

    def _measure(self, path: str, asked: JSON) -> tuple[int, JSON]:
        if path == "/props":
            return 200, {"default_generation_settings": {"n_ctx": self.window}}
        if path == "/apply-template":
            roles = [message["role"] for message in asked["messages"]]
            if asked["model"].startswith("no-system") and "system" in roles:
                return 400, json.loads(_error("System role not supported", 400, "invalid_request_error"))
            return 200, {"prompt": rendered(asked["messages"])}
        assert path == "/tokenize", path
        tokens = list(_tokens(asked["content"], specials=asked["parse_special"]))
        return 200, {"tokens": tokens if asked["with_pieces"] else [token["id"] for token in tokens]}

    def _completion(self, asked: JSON) -> bytes:
        message: JSON = {"role": "assistant", "content": self.says}
        if self.thinks:
            message["reasoning_content"] = self.thinks
        if self.calls:
            message["tool_calls"] = [
                {"id": f"call-{index}", "type": "function", "function": {"name": name, "arguments": given}}
                for index, (name, given) in enumerate(self.calls)
            ]
        choice = {"index": 0, "finish_reason": self.finish, "message": message, "logprobs": None}
        return json.dumps(
            {
                "id": "chat-1", "object": "chat.completion", "created": 1, "model": asked["model"],
                "choices": [{**choice, "index": n} for n in range(asked.get("n", 1))], "usage": USAGE,
                "timings": {"x": 1.5},
            }
        ).encode()  # fmt: skip


def rendered(messages: list[JSON]) -> str:
    return "".join(
        f"<|im_start|>{message['role']}\n{_text(message['content'])}<|im_end|>\n" for message in messages
    )


def count(text: str) -> int:
    return len(list(_tokens(text, specials=True)))


def _text(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def _tokens(text: str, *, specials: bool) -> Iterator[JSON]:
    for part in CONTROL.split(text) if specials else [text]:
        if specials and CONTROL.fullmatch(part):
            yield {"id": hash(("special", part)), "piece": part}
        else:
            yield from ({"id": hash(word), "piece": word} for word in WORD.findall(part))
