"""A webhook's receiver on loopback: a real server that keeps what it got and answers as it is told."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

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
        deadline = time.monotonic() + seconds
        while not self.at(path):
            assert time.monotonic() < deadline, f"nothing came to {path}"
            time.sleep(TICK_SECONDS)
        return self.at(path)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
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
        handler.send_response(status)
        if path == "/redirect":
            handler.send_header("location", self.redirect_to)
        content = b"x" * 1_000_000 if path == "/huge" else b"said\0so"
        handler.send_header("content-length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def _drip(self, handler: BaseHTTPRequestHandler) -> None:
        """Headers that come a byte at a time, and never end."""
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
        while not self.released.is_set():
            handler.wfile.write(b"y")
            handler.wfile.flush()
            time.sleep(TICK_SECONDS)


@contextmanager
def receiving() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            receiver.received.append(Received(self.path, headers, body))
            try:
                receiver.answer(self)
            except OSError:
                self.close_connection = True  # the sender had enough

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(TICK_SECONDS,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.released.set()
        server.shutdown()
        thread.join(5)
        server.server_close()
