"""A hub as huggingface_hub's own client meets it: model info and trees, resolve with its headers, redirects
of large files to a store on another host, ranges, gated and missing repositories, and outages on demand.

What this hub is strict about: unknown paths are 404 with the hub's X-Error-Code, and a gated or private
repository wants the one token. What it does for who pushes is in `fake_hub_writing.py`.
"""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from urllib.parse import unquote

from tests.http_server import Server
from tests.worker.steps.fake_hub_writing import (
    LARGE_BYTES,
    TOKEN,
    Files,
    Repository,
    Writing,
    entry,
    front_matter,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """`repositories` holds files by name. `breaks` lets the next downloads stop after so many bytes, and
    `down` answers everything with 503. Of who pushes: `writable` are the accounts that the token may
    write to, `store` holds large files, `failing` ends the path that is a 503, `puts_to_take` is how many
    bodies are taken before connections break, and `received` counts their bytes. After `puts_held_from`
    bodies the next ones wait for `held_put`."""

    repositories: dict[str, Files]
    gated: set[str] = field(default_factory=set)
    breaks: list[int] = field(default_factory=list)
    down: bool = False
    writable: set[str] = field(default_factory=lambda: {"org"})
    ignored: set[str] = field(default_factory=set)
    failing: str = ""
    puts_to_take: int | None = None
    puts: int = 0
    puts_held_from: int | None = None
    held_put: threading.Event = field(default_factory=threading.Event)
    received: int = 0
    loses_answer_of_commit: bool = False
    store: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    held: dict[str, Repository] = field(init=False)
    ranges: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    _server: Server | None = None

    def __post_init__(self) -> None:
        self.held = {
            name: Repository({COMMIT: files}, {"main": COMMIT}) for name, files in self.repositories.items()
        }

    @property
    def url(self) -> str:
        assert self._server is not None
        return self._server.url

    def start(self) -> "FakeHub":
        self._server = Server(type("Handler", (_Handler,), {"hub": self}))
        return self

    def stop(self) -> None:
        assert self._server is not None
        self._server.stop()


class _Handler(Writing):
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

    def _repository(self, name: str) -> Repository | None:
        """It, unless it was answered already why not."""
        repository = self.hub.held.get(name)
        knows_token = self.headers.get("authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not knows_token):
            self._refuse(404 if knows_token else 401, "RepoNotFound")
            return None
        if name in self.hub.gated and not knows_token:
            self._refuse(401, "GatedRepo")
            return None
        return repository

    def _api(self, rest: str) -> None:
        owner, name, *more = rest.split("/", 3)
        repository = self._repository(f"{owner}/{name}")
        if repository is None:
            return
        if more == ["refs"]:
            branches = [
                {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": commit}
                for branch, commit in repository.branches.items()
            ]
            self._send(200, json.dumps({"branches": branches, "tags": [], "converts": []}).encode())
            return
        commit = repository.commit_of(more[1] if more else "main")
        if commit is None or (more and more[0] not in ("revision", "tree")):
            self._refuse(404, "RevisionNotFound")
            return
        files = repository.commits[commit]
        if more and more[0] == "tree":
            self._send(200, json.dumps([entry(path, files[path]) for path in sorted(files)]).encode())
            return
        siblings = [{"rfilename": path} for path in sorted(files)]
        about = {
            "id": f"{owner}/{name}",
            "sha": commit,
            "siblings": siblings,
            "private": repository.private,
            "gated": False,
            "cardData": front_matter(files.get("README.md", b"")),
        }
        self._send(200, json.dumps({**about, "tags": [], "downloads": 1, "likes": 1}).encode())

    def _resolve(self, path: str) -> None:
        parts = path.strip("/").split("/")
        if len(parts) < 5 or parts[2] != "resolve":
            self._refuse(404, "EntryNotFound")
            return
        repository = self._repository("/".join(parts[:2]))
        if repository is None:
            return
        name, commit = "/".join(parts[4:]), repository.commit_of(parts[3])
        if commit is None:
            self._refuse(404, "RevisionNotFound")
        elif name not in repository.commits[commit]:
            self._refuse(404, "EntryNotFound")
        else:
            self._file(repository.commits[commit][name], f"{'/'.join(parts[:2])}/{commit}/{name}", commit)

    def _file(self, content: bytes, where: str, commit: str) -> None:
        headers = {"x-repo-commit": commit}
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
        owner, name, commit, path = where.split("/", 3)
        self._ranged(self.hub.held[f"{owner}/{name}"].commits[commit][path], {})

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
