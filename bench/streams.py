"""Clients of the chat route that cost little: raw HTTP/1.1 over kept connections."""

import asyncio
import json
import re
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Any, cast

TOKEN = re.compile(rb'"content":"(\d+\.\d+) "')
# Sent as such to a server that this process did not start, so that nothing waits for ever.
PATIENCE_SECONDS = 60
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: a closed socket tells of it by a reset


@dataclass(frozen=True)
class Place:
    """Where to ask, and what the model is called there."""

    port: int
    model: str

    def request(self, content: str = "Hello", **fields: Any) -> bytes:
        asked = {"model": self.model, "messages": [{"role": "user", "content": content}], **fields}
        body = json.dumps(asked).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def stream(self, *, tokens: int, rate: float) -> bytes:
        return self.request(stream=True, max_tokens=tokens, tokens_per_second=rate)


@dataclass
class Stream(asyncio.Protocol):
    """One connection. `lags` has, of each token, how many seconds after its time it came."""

    lags: list[float] = field(default_factory=list)
    first_at: float = 0.0  # when the first token came
    error: bytes = b""
    whole: asyncio.Future[None] | None = None
    _end: bytes = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.waits = asyncio.get_running_loop().create_future()

    async def ask(self, request: bytes) -> float:
        """Send a request, and wait for the end of its answer; returns when it was sent."""
        self.waits = asyncio.get_running_loop().create_future()
        self.first_at = 0.0
        sent = time.monotonic()
        self.transport.write(request)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.waits
        assert self.first_at, f"no token came: {self._end!r} {self.error!r}"
        return sent

    async def ask_whole(self, request: bytes) -> None:
        """Send a request, and wait for an answer that is no stream."""
        self.whole = self.waits = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.whole

    def begin(self, request: bytes) -> None:
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self.whole is not None:
            # The stand-in writes an answer in one go, and it is shorter than a segment.
            self.whole.set_result(None)
            self.whole = None
            return
        now = time.monotonic()
        for due in TOKEN.findall(data):
            self.first_at = self.first_at or now
            self.lags.append(now - float(due))
        if b'"error"' in data:
            self.error = data
        self._end = self._end[-16:] + data[-64:]
        if self._end.endswith(b"0\r\n\r\n") and not self.waits.done():
            self.waits.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.waits.done():
            self.waits.set_exception(error or ConnectionResetError("the server has hung up"))
            self.waits.exception()  # seen, also where nobody waits

    def hang_up(self, *, reset: bool) -> None:
        """Go, with or without a good-bye."""
        if reset:
            connection: socket.socket = self.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.transport.abort()
        else:
            self.transport.close()


async def connect(place: Place) -> Stream:
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_connection(Stream, "127.0.0.1", place.port)
    return stream
