"""A stand-in for an embedding server: each word has a direction, and a text the sum of its words'."""

import base64
import hashlib
import json
import math
import re
import struct
import threading
import time
from typing import Any

from serving.embeddings import model_of
from tests.http_server import Handler, Server

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

        class Embedding(Handler):
            def do_GET(self) -> None:
                self.reply_json(200, server._listing())

            def do_POST(self) -> None:
                asked = json.loads(self.body())
                if self.path == "/tokenize":
                    self.reply_json(*server._tokens(asked["content"]))
                    return
                server.requests += 1
                time.sleep(server.pause_seconds)
                if server.is_away or not server._may_answer(" ".join(asked["input"])):
                    self.reply_json(503, {"error": {"message": "loading model"}})
                    return
                if any(UNEMBEDDABLE in text for text in asked["input"]):
                    self.reply_json(400, {"error": {"message": "input is too large"}})
                    return
                write = packed if asked["encoding_format"] == "base64" else list
                vectors = [write(embed(text)) for text in asked["input"]]
                self.reply_json(
                    200, {"data": [{"index": n, "embedding": vector} for n, vector in enumerate(vectors)]}
                )

        self._server = Server(Embedding)
        self.url = self._server.url

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
        self._server.stop()
