"""A server of OpenAI's shape, byte by byte: what a request's `model` says is how it behaves."""

import contextlib
import json
import socket
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

EVENTS = [
    b'data: {"choices": [{"index": 0, "delta": {"content": "a\xc3\xa9"}}]}\n\n',
    b": ping\n\n",
    b"data: [DONE]\n\n",
]
WHOLE = b'{"id": "x",  "object":"chat.completion", "choices": [{"message": {"content": "said"}}]}'
# The first piece of a stream, of servers with words of their own.
FIRST = {
    "/api/chat": b'{"model": "m", "message": {"role": "assistant", "content": "a"}, "done": false}\n',
    "/generate": b'{"text": ["<|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\na"]}\n',
    "/own": b'"a"\n',
}
LONGEST_WAIT_SECONDS = 20


@dataclass
class StandIn:
    """`url` once it runs. `asked` counts requests by model, `left` those whose caller hung up.

    Args:
        always: how it behaves, whatever model is asked.
    """

    always: str = ""

    asked: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)  # what `waits` waits for
    _first: bytes = EVENTS[0]
    _listener: socket.socket | None = None
    _connections: set[socket.socket] = field(default_factory=set)

    @property
    def url(self) -> str:
        assert self._listener is not None
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def start(self, port: int = 0) -> "StandIn":
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", port))
        self._listener.listen(128)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def stop(self) -> None:
        """End as a killed process does: its connections with it."""
        assert self._listener is not None
        self.go_on.set()
        for open_socket in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                open_socket.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(LONGEST_WAIT_SECONDS)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            self._connections.add(connection)
            try:
                while (request := _read(connection)) is not None:
                    path, headers, body = request
                    self.paths.append(path)
                    self.headers.append(headers)
                    self.bodies.append(body)
                    if not self._answer(connection, path, json.loads(body) if body else {}):
                        return
            except OSError:
                return
            finally:
                self._connections.discard(connection)

    def _answer(self, connection: socket.socket, path: str, asked: dict[str, Any]) -> bool:
        """Answer one request; False to close the connection."""
        model = self.always or asked.get("model", "")
        self._first = FIRST.get(path, EVENTS[0])
        self.asked[model] += 1
        if path == "/v1/models":
            return _whole(connection, b'{"data": [{"id": "own"}, {"id": "dir/other:1b"}]}')
        if path == "/health":
            return _whole(connection, b"{}")
        behave = getattr(self, f"_{model.replace('-', '_')}", None)
        return _whole(connection, WHOLE) if behave is None else bool(behave(connection))

    # --- by the model's name

    def _streams(self, connection: socket.socket) -> bool:
        _head(connection, b"text/event-stream; charset=utf-8")
        # Cut where no event ends: a chunk of TCP knows nothing of events.
        whole = b"".join(EVENTS)
        for part in (whole[:5], whole[5:70], whole[70:]):
            connection.sendall(part)
        return False

    def _half(self, connection: socket.socket) -> bool:
        connection.sendall(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n" + WHOLE[:30]
        )
        return False

    def _half_that_looks_whole(self, connection: socket.socket) -> bool:
        return _whole(connection, WHOLE[:30])

    def _deep(self, connection: socket.socket) -> bool:
        return _whole(connection, b"[" * 5000)

    def _page(self, connection: socket.socket) -> bool:
        return _whole(connection, b"<html>I am a router's login page</html>")

    def _dies(self, connection: socket.socket) -> bool:
        _head(connection, b"text/event-stream", chunked=True)
        for part in (self._first, self._first[:-2]):
            connection.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        return False

    def _ends_early(self, connection: socket.socket) -> bool:
        _head(connection, b"text/event-stream")
        connection.sendall(self._first)
        return False

    def _stalls(self, connection: socket.socket) -> bool:
        _head(connection, b"text/event-stream")
        connection.sendall(self._first)
        return self._until_left(connection, "stalls")

    def _hangs(self, connection: socket.socket) -> bool:
        return self._until_left(connection, "hangs")

    def _hangs_after_its_head(self, connection: socket.socket) -> bool:
        _head(connection, b"text/event-stream")
        return self._until_left(connection, "hangs-after-its-head")

    def _until_left(self, connection: socket.socket, model: str) -> bool:
        if connection.recv(1) == b"":
            self.left[model] += 1
        return False

    def _drops_once(self, connection: socket.socket) -> bool:
        return self.asked["drops-once"] > 1 and _whole(connection, WHOLE)

    def _drops(self, connection: socket.socket) -> bool:
        return False

    def _waits(self, connection: socket.socket) -> bool:
        self.go_on.wait(LONGEST_WAIT_SECONDS)
        return _whole(connection, WHOLE)

    def _limited(self, connection: socket.socket) -> bool:
        body = b'{"error": {"message": "slow down", "code": "rate_limit_exceeded"}}'
        return _whole(connection, body, b"429 Too Many Requests\r\nretry-after: 7")

    def _restarting(self, connection: socket.socket) -> bool:
        return _whole(connection, b'{"error": {"message": "Loading model"}}', b"503 Wait\r\nretry-after: 3")

    def _forbidden(self, connection: socket.socket) -> bool:
        return _whole(connection, b'{"error": {"message": "Invalid API Key"}}', b"401 Unauthorized")

    def _wrong(self, connection: socket.socket) -> bool:
        return _whole(connection, b'{"error": {"message": "told 400", "param": "stop"}}', b"400 Bad Request")


def _head(connection: socket.socket, content_type: bytes, *, chunked: bool = False) -> None:
    how = b"transfer-encoding: chunked" if chunked else b"connection: close"
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: " + content_type + b"\r\n" + how + b"\r\n\r\n")


def _whole(connection: socket.socket, body: bytes, status: bytes = b"200 OK") -> bool:
    head = b"HTTP/1.1 " + status + b"\r\ncontent-type: application/json\r\ncontent-length: "
    connection.sendall(head + str(len(body)).encode() + b"\r\n\r\n" + body)
    return True


def _read(connection: socket.socket) -> tuple[str, dict[str, str], bytes] | None:
    """A request's path, headers and body; None once the caller has gone."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return None
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65536)
    return first.split(" ")[1], headers, body
