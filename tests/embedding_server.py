"""A stand-in for an embedding server: each word has a direction, and a text the sum of its words'."""

import base64
import hashlib
import json
import math
import re
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from serving.embeddings import model_of

DIMENSIONS = 64
UNEMBEDDABLE = "unembeddable"
WAITED_SECONDS = 10


def embed(text: str) -> list[float]:
    vector = [0.0] * DIMENSIONS
    for word in re.findall(r"\w+", text.lower()):
        digest = hashlib.sha256(word.encode()).digest()
        vector[digest[0] % DIMENSIONS] += 1.0 if digest[1] & 1 else -1.0
    length = math.sqrt(sum(value * value for value in vector)) or 1.0
    return [value / length for value in vector]


def packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{DIMENSIONS}f", *vector)).decode()


class EmbeddingStandIn:
    """Serves until it is stopped. `revision` is that of its model; `pause_seconds` makes it slow.

    A text that has the first of `waits` is only embedded once one that has the second was asked for.
    """

    def __init__(self) -> None:
        self.revision = 1
        self.pause_seconds = 0.0
        self.is_away = False
        self.tokenizes = True
        self.requests = 0
        self.waits: tuple[str, str] | None = None
        self._awaited = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                self._answer(200, server._listing())

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if self.path == "/tokenize":
                    self._answer(*server._tokens(asked["content"]))
                    return
                server.requests += 1
                time.sleep(server.pause_seconds)
                if server.is_away or not server._may_answer(" ".join(asked["input"])):
                    self._answer(503, {"error": {"message": "loading model"}})
                    return
                if any(UNEMBEDDABLE in text for text in asked["input"]):
                    self._answer(400, {"error": {"message": "input is too large"}})
                    return
                write = packed if asked["encoding_format"] == "base64" else list
                vectors = [write(embed(text)) for text in asked["input"]]
                self._answer(
                    200, {"data": [{"index": n, "embedding": vector} for n, vector in enumerate(vectors)]}
                )

            def _answer(self, status: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def model_revision(self) -> str:
        """The revision as a collection keeps it."""
        return model_of(self._listing()).revision

    def _may_answer(self, asked: str) -> bool:
        first, second = self.waits or ("", "")
        if second in asked:
            self._awaited.set()
        return first not in asked or self._awaited.wait(WAITED_SECONDS)

    def _listing(self) -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "default", "meta": {"n_params": self.revision}}]}

    def _tokens(self, content: list[str | int]) -> tuple[int, dict[str, Any]]:
        """As llama-server has them: one for each word, and those that are given."""
        if not self.tokenizes:
            return 404, {"error": {"message": "not found"}}
        tokens: list[int] = []
        for part in content:
            tokens += [part] if isinstance(part, int) else [1000 + len(word) for word in part.split()]
        return 200, {"tokens": tokens}

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
