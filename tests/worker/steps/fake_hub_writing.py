"""What a hub does for who pushes, as huggingface_hub's client asks it: repositories and branches are made,
preupload tells which files are large, the LFS batch which of them the store lacks, presigned addresses take
them (whole or in parts), and a commit refers to what lies in the store.

Strict about: the token; a presigned PUT bears none and says its length; a body is verified by its sha256; a
commit on what is no branch, and a repository or branch made twice, are refused.
"""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

import yaml

from tests.http_server import Handler

if TYPE_CHECKING:
    from tests.worker.steps.fake_hub import FakeHub

TOKEN = "hf_a-token-of-the-test"
LARGE_BYTES = 4096  # from which on a file lies in the store
PART_BYTES = 64 * 1024  # from which on it is sent in parts
LFS = "application/vnd.git-lfs+json"

Files = dict[str, bytes]


@dataclass
class Repository:
    """`commits` by their ids, and the commit that each branch is at."""

    commits: dict[str, Files]
    branches: dict[str, str]
    private: bool = False
    messages: list[str] = field(default_factory=list)

    def commit_of(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    @property
    def files(self) -> Files:
        return self.commits[self.branches["main"]]


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324


def is_large(path: str, size: int) -> bool:
    return size >= LARGE_BYTES or path.endswith((".safetensors", ".gguf"))


class Writing(Handler):
    hub: "FakeHub"

    def do_POST(self) -> None:
        path, body = unquote(self.path.partition("?")[0]), self.body()
        self.hub.requests.append(f"POST {path}")
        if self.hub.down or (self.hub.failing and path.endswith(self.hub.failing)):
            self._send(503, b"down for maintenance")
        elif path.startswith("/complete/"):
            self._complete(path.removeprefix("/complete/"), json.loads(body))
        elif self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._send(401, b"{}", {"x-error-message": "Invalid credentials in Authorization header"})
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body))
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif path.startswith("/verify/"):
            self._verify(path.removeprefix("/verify/"), json.loads(body))
        else:
            self._of_repository(path.removeprefix("/api/models/"), body)

    def do_PUT(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"PUT {path}")
        if "authorization" in self.headers or "content-length" not in self.headers:
            self._send(400, b"<Error>presigned: no Authorization, and a Content-Length</Error>")
            return
        _, _, oid, part = path.split("/")
        self.hub.puts += 1
        if self.hub.puts_held_from is not None and self.hub.puts > self.hub.puts_held_from:
            self.hub.held_put.wait(60)
            self.close_connection = True
            return
        if self.hub.puts_to_take is not None:
            self.hub.puts_to_take -= 1
            if self.hub.puts_to_take < 0:
                self.close_connection = True  # in mid-body, without an answer
                return
        content = self.body()
        self.hub.received += len(content)
        self.hub.parts.setdefault(oid, {})[int(part)] = content
        if part == "0":
            self.hub.store[oid] = content
        self._send(200, b"", {"etag": f'"{hashlib.md5(content).hexdigest()}"'})  # noqa: S324

    def _create(self, body: dict[str, Any]) -> None:
        name = f"{body['organization']}/{body['name']}"
        if body["organization"] not in self.hub.writable:
            self._send(403, b"{}", {"x-error-message": f"You don't have the rights under {name}"})
        elif name in self.hub.held:
            self.reply_json(
                409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
            )
        else:
            first = "f" * 40
            self.hub.held[name] = Repository(
                {first: {".gitattributes": b"*.gguf filter=lfs\n"}},
                {"main": first},
                body.get("visibility") == "private",
            )
            self.reply_json(200, {"url": f"{self.hub.url}/{name}", "name": name})

    def _validate(self, body: dict[str, Any]) -> None:
        data = front_matter(body["content"].encode())
        errors = [] if isinstance(data, dict) else [{"message": "there is no metadata"}]
        errors += [{"message": f"{name} is empty"} for name, value in (data or {}).items() if not value]
        self.reply_json(400 if errors else 200, {"errors": errors, "warnings": []})

    def _batch(self, body: dict[str, Any]) -> None:
        if self.headers.get("accept") != LFS or body["hash_algo"] != "sha256":
            self._send(406, b"{}")
            return
        self.reply_json(
            200, {"transfer": "basic", "objects": [self._object(each) for each in body["objects"]]}
        )

    def _object(self, wanted: dict[str, Any]) -> dict[str, Any]:
        oid, size = wanted["oid"], wanted["size"]
        if oid in self.hub.store:
            return wanted
        base, signed = self.hub.url.replace("127.0.0.1", "localhost"), "?X-Amz-Signature=secret"
        upload: dict[str, Any] = {"href": f"{base}/put/{oid}/0{signed}"}
        if size >= PART_BYTES:
            parts = range(1, ceil(size / PART_BYTES) + 1)
            urls = {f"{part:05d}": f"{base}/put/{oid}/{part}{signed}" for part in parts}
            upload = {
                "href": f"{self.hub.url}/complete/{oid}",
                "header": {"chunk_size": str(PART_BYTES), **urls},
            }
        return {**wanted, "actions": {"upload": upload, "verify": {"href": f"{self.hub.url}/verify/{oid}"}}}

    def _complete(self, oid: str, body: dict[str, Any]) -> None:
        parts = self.hub.parts.get(oid, {})
        tags = [f'"{hashlib.md5(parts[row["partNumber"]]).hexdigest()}"' for row in body["parts"]]  # noqa: S324
        if body["oid"] != oid or tags != [row["etag"] for row in body["parts"]]:
            self._send(400, b"{}")
            return
        self.hub.store[oid] = b"".join(parts[number] for number in sorted(parts))
        self.reply_json(200, {})

    def _verify(self, oid: str, body: dict[str, Any]) -> None:
        content = self.hub.store.get(oid, b"")
        is_right = hashlib.sha256(content).hexdigest() == oid == body["oid"] and len(content) == body["size"]
        if not is_right:
            self.hub.store.pop(oid, None)
        self.reply_json(200 if is_right else 400, {})

    def _of_repository(self, rest: str, body: bytes) -> None:
        owner, name, verb, revision = rest.split("/", 3)
        repository = self.hub.held.get(f"{owner}/{name}")
        if repository is None:
            self._refuse(404, "RepoNotFound")
        elif owner not in self.hub.writable and verb != "paths-info":
            self._send(403, b"{}", {"x-error-message": f"You don't have write access to {owner}"})
        elif verb == "branch":
            self._branch(repository, revision, json.loads(body))
        elif repository.commit_of(revision) is None:
            self._refuse(404, "RevisionNotFound")
        elif verb == "preupload":
            files = repository.commits[repository.commit_of(revision) or ""]
            self.reply_json(200, {"files": [self._mode(files, row) for row in json.loads(body)["files"]]})
        elif verb == "paths-info":
            files = repository.commits[repository.commit_of(revision) or ""]
            names = parse_qs(body.decode())["paths"]
            self.reply_json(200, [entry(path, files[path]) for path in names if path in files])
        elif verb == "commit" and revision in repository.branches:
            self._commit(f"{owner}/{name}", repository, revision, [json.loads(x) for x in body.splitlines()])
        else:
            self._refuse(404, "EntryNotFound")

    def _branch(self, repository: Repository, branch: str, body: dict[str, Any]) -> None:
        if branch in repository.branches:
            self.reply_json(409, {"error": "Reference already exists"})
            return
        repository.branches[branch] = repository.branches[body.get("startingPoint", "main")]
        self.reply_json(201, {})

    def _mode(self, files: Files, row: dict[str, Any]) -> dict[str, Any]:
        path, content = row["path"], files.get(row["path"])
        large = is_large(path, row["size"])
        known = {} if content is None else {"oid": oid_of(content) if large else blob_id(content)}
        mode = "lfs" if large else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": path in self.hub.ignored, **known}

    def _commit(self, name: str, repository: Repository, branch: str, lines: list[dict[str, Any]]) -> None:
        files, header = dict(repository.commits[repository.branches[branch]]), lines[0]["value"]
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "lfsFile" and value["oid"] not in self.hub.store:
                self.reply_json(
                    400, {"error": f"LFS pointer pointed to a file that does not exist: {value['oid']}"}
                )
                return
            files[value["path"]] = (
                self.hub.store[value["oid"]]
                if line["key"] == "lfsFile"
                else base64.b64decode(value["content"])
            )
        content = json.dumps([header, sorted((path, oid_of(data)) for path, data in files.items())])
        oid = hashlib.sha1(content.encode()).hexdigest()  # noqa: S324
        repository.commits[oid], repository.branches[branch] = files, oid
        repository.messages.append(header["summary"])
        if self.hub.loses_answer_of_commit:
            self.hub.loses_answer_of_commit, self.close_connection = False, True
            return
        self.reply_json(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"x-error-code": code, "x-error-message": code})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        if self.command != "HEAD" and self.path.startswith("/store/") and self.hub.breaks:
            headers = {"content-length": str(len(content)), **(headers or {})}
            content = content[: self.hub.breaks.pop(0)]
            self.close_connection = True
        self.reply(status, content, headers or {})


def front_matter(card: bytes) -> Any:
    """The metadata at the head of a card; None where there is none."""
    head = card.decode().split("---\n")
    return yaml.safe_load(head[1]) if len(head) > 2 else None


def oid_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as the hub lists it."""
    row: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
    if is_large(path, len(content)):
        row["lfs"] = {"oid": oid_of(content), "size": len(content), "pointerSize": 134}
    return row
