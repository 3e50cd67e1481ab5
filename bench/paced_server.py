"""A stand-in for what serves models, which says a token every so often: `python -m bench.paced_server PORT`.

It speaks OpenAI's chat route strictly, and costs next to nothing, so that what stands before it is what is
measured. A token's text is the moment at which it was due, by the clock that all processes of a machine
share: whoever reads it knows how late it comes. `GET /running` tells which requests it still works on.
"""

import argparse
import asyncio
import json
import time
from collections import deque
from typing import Any, cast

import uvloop

MODEL = "paced"
OPENAIS = {"model", "messages", "stream", "max_tokens", "temperature"}
FIELDS = OPENAIS | {"tokens_per_second", "answer_seconds"}
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
LAST = b"0\r\n\r\n"
BEFORE = (
    '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"paced","choices":[{"index":0,'
)
ROLE = BEFORE + '"delta":{"role":"assistant","content":""},"finish_reason":null}]}'
TOKEN = BEFORE + '"delta":{"content":"%.6f "},"finish_reason":null}]}'
STOP = BEFORE + '"delta":{},"finish_reason":"stop"}]}'

JSON = dict[str, Any]


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server:
    """What all connections share: how many requests run, and who waits for a slot."""

    def __init__(self, slots: int) -> None:
        self._free, self._waiting = slots, deque["Connection"]()
        self.running = self.begun = self.left = 0
        self._first = self._last = 0.0

    def begin(self, connection: "Connection") -> None:
        """Let a connection work once a slot is free; `end` gives it back."""
        self.running += 1
        self.begun += 1
        self._first = self._first or time.monotonic()
        if self._free:
            self._free -= 1
            connection.work()
        else:
            self._waiting.append(connection)

    def end(self, connection: "Connection", *, left: bool) -> None:
        self.running -= 1
        self.left += left
        self._last = time.monotonic()
        if connection in self._waiting:
            self._waiting.remove(connection)
        elif self._waiting:
            self._waiting.popleft().work()
        else:
            self._free += 1

    def told(self) -> JSON:
        """What was asked since the last time that somebody asked for this, and the seconds that it took."""
        seconds = self._last - self._first if self._first else 0.0
        found = {"running": self.running, "begun": self.begun, "left": self.left, "seconds": seconds}
        if not self.running:
            self.begun, self._first = 0, 0.0
        return found


class Connection(asyncio.Protocol):
    """One caller: a request after the other."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._works = False
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._works:
            self._done(left=True)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        if not found:
            return
        first, *lines = head.decode().lower().split("\r\n")
        headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        if len(body) < length:
            return
        self._data = body[length:]
        try:
            self._answer(first, headers, body[:length])
        except Refused as refused:
            self._send({"error": {"message": str(refused), "type": "invalid_request_error"}}, refused.status)

    def _answer(self, first: str, headers: dict[str, str], body: bytes) -> None:
        method, path, _ = first.split(" ")
        if method == "get":
            answers = {
                "/v1/models": {"data": [{"id": MODEL}]},
                "/running": self._server.told(),
                "/health": {},
            }
            if path not in answers:
                raise Refused(404, f"no {path}")
            self._send(answers[path])
            return
        self._asked = _checked(path, headers, body)
        self._works = True
        self._server.begin(self)

    def work(self) -> None:
        if self._asked.get("stream"):
            self._stream()
        else:
            self._timer = self._loop.call_later(self._asked.get("answer_seconds", 0), self._say)

    def _say(self) -> None:
        words = self._asked["messages"][-1]["content"]
        message = {"role": "assistant", "content": words}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        self._done(left=False)
        self._send(
            {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL,
             "choices": [choice], "usage": usage}
        )  # fmt: skip

    def _stream(self) -> None:
        self._transport.write(HEAD + _event(ROLE))
        self._left, self._pace = self._asked["max_tokens"], 1 / self._asked["tokens_per_second"]
        self._due = time.monotonic()
        self._token()

    def _token(self) -> None:
        """Say what is due, however late it is: the schedule is that of the first token."""
        self._transport.write(_event(TOKEN % self._due))
        self._left -= 1
        self._due += self._pace
        if self._left:
            self._timer = self._loop.call_later(max(0.0, self._due - time.monotonic()), self._token)
        else:
            self._transport.write(_event(STOP) + _event("[DONE]") + LAST)
            self._done(left=False)

    def _done(self, *, left: bool) -> None:
        self._works, self._timer = False, None
        self._server.end(self, left=left)

    def _send(self, answer: JSON, status: int = 200) -> None:
        content = json.dumps(answer).encode()
        head = (
            f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        self._transport.write(head.encode() + content)


def _checked(path: str, headers: dict[str, str], body: bytes) -> JSON:
    if path != "/v1/chat/completions":
        raise Refused(404, f"no {path}")
    if headers.get("content-type") != "application/json":
        raise Refused(415, "JSON only")
    asked: JSON = json.loads(body)
    if not asked.keys() <= FIELDS:
        raise Refused(400, f"unknown: {sorted(asked.keys() - FIELDS)}")
    if asked.get("model") != MODEL:
        raise Refused(404, f"no model {asked.get('model')!r}")
    messages = asked.get("messages")
    if not messages or not all(row.keys() == {"role", "content"} for row in messages):
        raise Refused(400, "messages: rows of role and content")
    return asked


def _event(data: str) -> bytes:
    event = b"data: " + data.encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


async def serve(port: int, slots: int) -> None:
    server = Server(slots)
    listener = await asyncio.get_running_loop().create_server(
        lambda: Connection(server), "127.0.0.1", port, backlog=4096
    )
    await listener.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--slots", type=int, default=1_000_000, help="so many requests at once; others wait")
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.slots))


if __name__ == "__main__":
    main()
