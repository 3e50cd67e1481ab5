"""A hub as huggingface_hub's own client meets it: model info and trees, resolve with its headers, redirects
of large files to a store on another host, ranges, gated and missing repositories, and outages on demand.

What this hub is strict about: unknown paths are 404 with the hub's X-Error-Code, and a gated repository wants
the one token.
"""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_a-token-of-the-test"
LARGE_BYTES = 4096  # from which on a file lies in the store


@dataclass
class FakeHub:
    """`repositories` holds files by name. `breaks` lets the next downloads stop after so many bytes, and
    `down` answers everything with 503."""

    repositories: dict[str, dict[str, bytes]]
    gated: set[str] = field(default_factory=set)
    breaks: list[int] = field(default_factory=list)
    down: bool = False
    ranges: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    _server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def start(self) -> "FakeHub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def stop(self) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.down:
            self._send(503, b"down for maintenance")
        elif path.startswith("/store/"):
            self._stored(path.removeprefix("/store/"))
        elif path.startswith("/api/models/"):
            self._api(path.removeprefix("/api/models/"))
        else:
            self._resolve(path)

    def _repository(self, name: str) -> dict[str, bytes] | None:
        """Its files, unless it was answered already why not."""
        if name not in self.hub.repositories:
            self._refuse(404, "RepoNotFound")
            return None
        if name in self.hub.gated and self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._refuse(401, "GatedRepo")
            return None
        return self.hub.repositories[name]

    def _api(self, rest: str) -> None:
        owner, name, *more = rest.split("/")
        files = self._repository(f"{owner}/{name}")
        if files is None:
            return
        if more and (more[0] not in ("revision", "tree") or more[1] not in ("main", COMMIT)):
            self._refuse(404, "RevisionNotFound")
            return
        if more and more[0] == "tree":
            self._send(200, json.dumps([_entry(path, files[path]) for path in sorted(files)]).encode())
            return
        siblings = [{"rfilename": path} for path in sorted(files)]
        about = {
            "id": f"{owner}/{name}",
            "sha": COMMIT,
            "siblings": siblings,
            "private": False,
            "gated": False,
        }
        self._send(200, json.dumps({**about, "tags": [], "downloads": 1, "likes": 1}).encode())

    def _resolve(self, path: str) -> None:
        parts = path.strip("/").split("/")
        if len(parts) < 5 or parts[2] != "resolve":
            self._refuse(404, "EntryNotFound")
            return
        files = self._repository("/".join(parts[:2]))
        if files is None:
            return
        name = "/".join(parts[4:])
        if parts[3] not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif name not in files:
            self._refuse(404, "EntryNotFound")
        else:
            self._file(files[name], f"{'/'.join(parts[:2])}/{name}")

    def _file(self, content: bytes, where: str) -> None:
        headers = {"x-repo-commit": COMMIT}
        if len(content) < LARGE_BYTES:
            self._ranged(content, {**headers, "etag": f'"{hashlib.sha1(content).hexdigest()}"'})  # noqa: S324
            return
        headers |= {
            "x-linked-etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "x-linked-size": str(len(content)),
            "location": f"{self.hub.url.replace('127.0.0.1', 'localhost')}/store/{where}",
        }
        self._send(302, b"", headers)

    def _stored(self, where: str) -> None:
        owner, name, path = where.split("/", 2)
        self._ranged(self.hub.repositories[f"{owner}/{name}"][path], {})

    def _ranged(self, content: bytes, headers: dict[str, str]) -> None:
        wanted = self.headers.get("range")
        if wanted is None:
            self._send(200, content, headers)
            return
        self.hub.ranges.append(wanted)
        begin, _, end = wanted.removeprefix("bytes=").partition("-")
        first, last = int(begin), int(end) if end else len(content) - 1
        headers |= {"content-range": f"bytes {first}-{last}/{len(content)}"}
        self._send(206, content[first : last + 1], headers)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"x-error-code": code, "x-error-message": code})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.path.startswith("/store/") and self.hub.breaks:
            self.wfile.write(content[: self.hub.breaks.pop(0)])
            self.close_connection = True
            return
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest(),  # noqa: S324
    }  # fmt: skip
    if len(content) >= LARGE_BYTES:
        oid = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
    return entry
