"""A webhook's receiver on loopback: a real server that keeps what it got and answers as it is told."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.http_server import Handler, serving_by
from tests.waiting import wait_until

TICK_SECONDS = 0.05


@dataclass(frozen=True)
class Received:
    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """By path: `/ok`, `/500-then-ok`, `/slow`, `/drip`, `/huge`, `/redirect?to`, `/<status>`."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.redirect_to = ""
        self.released = threading.Event()  # lets those that were kept waiting go
        self.url = ""

    def at(self, path: str) -> list[Received]:
        return [one for one in self.received if one.path == path]

    def wait_for(self, path: str, *, seconds: float = 30) -> list[Received]:
        """What has come there, once something has."""
        return wait_until(lambda: self.at(path), seconds=seconds, told=lambda: f"nothing came to {path}")

    def answer(self, handler: Handler) -> None:
        path = handler.path
        if path == "/slow":
            self.released.wait(30)
        elif path == "/drip":
            self._drip(handler)
            return
        status = 200
        if path == "/500-then-ok":
            status = 500 if len(self.at(path)) == 1 else 200
        elif path == "/redirect":
            status = 307
        elif path[1:].isdecimal():
            status = int(path[1:])
        content = b"x" * 1_000_000 if path == "/huge" else b"said\0so"
        handler.reply(status, content, {"location": self.redirect_to} if path == "/redirect" else {})

    def _drip(self, handler: Handler) -> None:
        """Headers that come a byte at a time, and never end."""
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
        while not self.released.is_set():
            handler.wfile.write(b"y")
            handler.wfile.flush()
            time.sleep(TICK_SECONDS)


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()

    class Receiving(Handler):
        def do_POST(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.received.append(Received(self.path, headers, self.body()))
            try:
                receiver.answer(self)
            except OSError:
                self.close_connection = True  # the sender had enough

    with serving_by(Receiving) as receiver.url:
        try:
            yield receiver
        finally:
            receiver.released.set()
