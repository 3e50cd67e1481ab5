"""A small and strict Ollama: refuses what real servers refuse, and answers through a real llama-server.

`version` decides what differs between them: 0.24 sends the Go template, 0.32 and 0.34 the file's Jinja;
0.34 refuses `adapters` and `quantize`. What each does was seen on real servers.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gguf import GGUFReader

from serving.openai_compatible import LlamaServer
from tests.http_server import Handler, Server
from tests.serving.go_interpreter import BadTemplate, parse, render
from tests.serving.llama_process import LlamaProcess, embedding_process
from training_data.chat_templates import ChatTemplate

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}(:[A-Za-z0-9._-]{1,80})?")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
DURATION = re.compile(r"-?(\d+(\.\d+)?(ns|us|ms|s|m|h))+")
CHATML = "<|im_start|>{role}\n{content}<|im_end|>\n"
DEFAULT_WINDOW = 4096  # tokens, on a small machine


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Model:
    blob: Path
    template: str | None
    jinja: str | None
    parameters: dict[str, Any]
    process: LlamaProcess | None = None
    on_cpu: bool = False
    system: str | None = None
    turns: list[dict[str, Any]] = field(default_factory=list)
    adapter: Path | None = None


@dataclass
class FakeOllama:
    """The server's state; `url` once it runs. `templates_broken` renders every prompt wrongly."""

    folder: Path
    version: str = "0.34.1"
    templates_broken: bool = False
    library: dict[str, Path] = field(default_factory=dict)
    library_down: bool = False
    models: dict[str, Model] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    options: list[dict[str, Any]] = field(default_factory=list)  # of each chat request
    kept: list[Any] = field(default_factory=list)  # the keep_alive of each request that has one
    _server: Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return self._server.url

    def start(self) -> "FakeOllama":
        self._server = Server(type("Handler", (_Handler,), {"ollama": self}))
        return self

    def stop(self) -> None:
        assert self._server is not None
        self._server.stop()
        for model in self.models.values():
            if model.process is not None:
                model.process.stop()

    @property
    def _numbers(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.version.split("."))

    # --- what is asked of it

    def blob(self, digest: str) -> Path:
        if not DIGEST.fullmatch(digest):
            raise Refused(400, "invalid digest format")
        return self.folder / digest.replace(":", "-")

    def put_blob(self, digest: str, content: bytes) -> int:
        path = self.blob(digest)
        if path.exists():
            return 200
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != digest:
            raise Refused(400, "digest mismatch")
        path.write_bytes(content)
        return 201

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        name = body.get("model", "")
        if not NAME.fullmatch(name):
            raise Refused(400, "invalid model name")
        if self._numbers >= (0, 34):
            if body.get("adapters"):
                raise Refused(400, "LoRA adapters are no longer supported")
            if body.get("quantize"):
                raise Refused(400, "quantization of GGUF models is not supported")
        if body.get("from"):
            return self._create_from(name, body)
        if not body.get("files"):
            raise Refused(400, "neither 'from' or 'files' was specified")
        [digest] = body["files"].values()
        path = self.blob(digest)
        if not path.exists():
            raise Refused(500, f"open {path.name}: no such file or directory")
        jinja = _jinja_of(path)
        if body.get("template"):
            try:
                parse(body["template"])
            except BadTemplate as error:
                raise Refused(400, f"template error: {error}") from None
        # `parameters` are kept unseen, as the real ones do.
        self.models[name] = Model(path, body.get("template"), jinja, body.get("parameters") or {})
        for digest in (body.get("adapters") or {}).values():
            self.models[name].adapter = self.blob(digest)
            if _metadata(self.blob(digest), "general.type") != "adapter":
                raise Refused(400, "not an adapter")
        return {"status": "success"}

    def _create_from(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        base = self.find(body["from"])
        self.models[name] = Model(
            base.blob,
            body.get("template") or base.template,
            base.jinja,
            {**base.parameters, **(body.get("parameters") or {})},
            system=body.get("system") or base.system,
            turns=body.get("messages") or base.turns,
            adapter=base.adapter,
        )
        return {"status": "success"}

    def pull(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Lines of a stream, as the real ones say them; what goes wrong is said in the midst of it."""
        begun = {"status": "pulling manifest"}
        name = body["model"]
        if self.library_down:
            reason = 'pull model manifest: Get "https://registry.ollama.ai": dial tcp: connection refused'
            return [begun, {"error": reason}]
        if name not in self.library:
            return [begun, {"error": "pull model manifest: file does not exist"}]
        content = self.library[name].read_bytes()
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.put_blob(digest, content)
        self.create({"model": name, "files": {"model.gguf": digest}})
        part = {"status": f"pulling {digest[7:19]}", "digest": digest, "total": len(content)}
        return [begun, part, {**part, "completed": len(content)}, {"status": "success"}]

    def copy(self, body: dict[str, Any]) -> None:
        if not NAME.fullmatch(body["destination"]):
            raise Refused(400, "invalid model name")
        self.models[body["destination"]] = replace(self.find(body["source"]), process=None)

    def tags(self) -> dict[str, Any]:
        rows = []
        for name, model in self.models.items():
            content = model.blob.read_bytes()
            # The real ones' is the manifest's, and has no prefix.
            row = {"size": len(content), "digest": hashlib.sha256(content).hexdigest()}
            rows.append({"name": name, "model": name, **row, "modified_at": "2026-01-01T00:00:00Z"})
        return {"models": rows}

    def find(self, name: str) -> Model:
        if name not in self.models:
            raise Refused(404, f"model '{name}' not found")
        return self.models[name]

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        model = self.find(body["model"])
        self.options.append(body.get("options") or {})
        self._keep(body)
        prompt = self._render(model, _with_own(model, body["messages"]))
        if body.get("_debug_render_only") and self._numbers >= (0, 12):
            return {"model": body["model"], "_debug_info": {"rendered_template": prompt}}
        options = {**model.parameters, **(body.get("options") or {})}
        if not isinstance(options.get("stop", []), list):
            raise Refused(500, 'option "stop" must be of type array')
        if model.process is None:
            model.process = LlamaProcess(model.blob, adapter=model.adapter)
            model.on_cpu = options.get("num_gpu") == 0
        return self._answer(body["model"], model.process.server, prompt, options)

    def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        """Without a prompt: load the model, or with keep_alive 0 unload it."""
        model = self.find(body["model"])
        self._keep(body)
        unloads = body.get("keep_alive") == 0
        if unloads and model.process is not None:
            model.process.stop()
            model.process = None
        elif not unloads and model.process is None:
            model.process = LlamaProcess(model.blob, adapter=model.adapter)
        reason = "unload" if unloads else "load"
        return {"model": body["model"], "response": "", "done": True, "done_reason": reason}

    def embed(self, body: dict[str, Any]) -> dict[str, Any]:
        """OpenAI's shape, which the server has too, from a model that was made to embed."""
        name = body["model"]
        if name not in self.models:
            raise Refused(404, f'model "{name}" not found, try pulling it first')
        model = self.models[name]
        if _metadata(model.blob, "general.architecture") != "bert":
            # Before, the model of a chat embedded as well, and badly.
            raise Refused(501 if self._numbers >= (0, 30) else 500, "this model does not support embeddings")
        if model.process is None:
            model.process = embedding_process(self.folder, model.blob)
        return model.process.server._post("/v1/embeddings", {**body, "model": name})

    def _keep(self, body: dict[str, Any]) -> None:
        """Take seconds as a number, or a duration such as "5m"; null and none are the server's own."""
        asked = body.get("keep_alive")
        if asked is None:
            return
        if isinstance(asked, bool) or not (isinstance(asked, int | float) or DURATION.fullmatch(str(asked))):
            raise Refused(400, f"invalid duration {asked!r}")
        self.kept.append(asked)

    def loaded(self) -> dict[str, Any]:
        found = [(name, model) for name, model in self.models.items() if model.process is not None]
        return {"models": [{"name": name, "size_vram": 0 if model.on_cpu else 1} for name, model in found]}

    def _answer(self, name: str, server: LlamaServer, prompt: str, options: dict[str, Any]) -> dict[str, Any]:
        # What is longer than the window loses its beginning, and nobody is told.
        window = server.tokenize(prompt)[-int(options.get("num_ctx", DEFAULT_WINDOW)) :]
        answer = server._post(
            "/completion",
            {
                "prompt": window,
                "n_predict": options.get("num_predict", -1),
                "temperature": options.get("temperature", 0.8),
                "stop": options.get("stop", []),
                "repeat_penalty": options.get("repeat_penalty", 1.1),
            },
        )
        return {
            "model": name,
            "created_at": "2026-01-01T00:00:00Z",
            "message": {"role": "assistant", "content": answer["content"]},
            "done": True,
            "done_reason": "length" if answer["stop_type"] == "limit" else "stop",
            "prompt_eval_count": answer["tokens_evaluated"],
            "eval_count": answer["tokens_predicted"],
        }

    def _render(self, model: Model, messages: list[dict[str, Any]]) -> str:
        if self.templates_broken:
            return str(messages[-1]["content"])
        if model.jinja and self._numbers >= (0, 32):
            template = ChatTemplate(model.jinja, {"eos_token": "<|im_end|>"})
            return template.render(messages, add_generation_prompt=True)
        if model.template is None and self._numbers >= (0, 32):
            return "".join(CHATML.format(**row) for row in messages) + "<|im_start|>assistant\n"
        if model.template is None:
            return str(messages[-1]["content"])
        rows = [{"Role": row["role"], "Content": row["content"]} for row in messages]
        return render(parse(model.template), {"Messages": rows})


def _with_own(model: Model, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A model's own turns come first, before them its system prompt unless the request begins with one."""
    begins = [] if messages[:1] and messages[0]["role"] == "system" else [model.system]
    return [*({"role": "system", "content": text} for text in begins if text), *model.turns, *messages]


def _jinja_of(path: Path) -> str | None:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise Refused(400, "invalid file magic")
    try:
        reader = GGUFReader(path)
        end = max(tensor.data_offset + tensor.n_bytes for tensor in reader.tensors)
    except (ValueError, IndexError) as error:
        raise Refused(500, f"offset+size exceeds file size: {error}") from None
    if end > path.stat().st_size:
        raise Refused(500, f"offset+size {end} exceeds file size {path.stat().st_size}")
    return _metadata(path, "tokenizer.chat_template")


def _metadata(path: Path, name: str) -> str | None:
    found = GGUFReader(path).get_field(name)
    return None if found is None else str(found.contents())


class _Handler(Handler):
    ollama: FakeOllama
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        digest = self.path.removeprefix("/api/blobs/")
        self._send(200 if self.ollama.blob(digest).exists() else 404, None)

    def do_GET(self) -> None:
        routes = {"/api/ps": self.ollama.loaded, "/api/tags": self.ollama.tags}
        version = {"version": self.ollama.version}
        self._run(lambda _: (200, routes.get(self.path, lambda: version)()))

    def do_POST(self) -> None:
        routes = {
            "/api/copy": lambda body: (200, self.ollama.copy(json.loads(body))),
            "/api/pull": lambda body: (200, self.ollama.pull(json.loads(body))),
            "/api/create": lambda body: (200, self._create(json.loads(body))),
            "/v1/embeddings": lambda body: (200, self.ollama.embed(json.loads(body))),
            "/api/show": lambda body: (200, self._show(json.loads(body))),
            "/api/chat": lambda body: (200, self.ollama.chat(json.loads(body))),
            "/api/generate": lambda body: (200, self.ollama.generate(json.loads(body))),
        }
        if self.path.startswith("/api/blobs/"):
            digest = self.path.removeprefix("/api/blobs/")
            self._run(lambda body: (self.ollama.put_blob(digest, body), None))
        else:
            self._run(routes.get(self.path, lambda _: (404, {"error": "not found"})))

    def do_DELETE(self) -> None:
        def delete(body: bytes) -> tuple[int, None]:
            name = json.loads(body)["model"]
            process = self.ollama.find(name).process
            if process is not None:
                process.stop()
            del self.ollama.models[name]
            return 200, None

        self._run(delete)

    def _create(self, body: dict[str, Any]) -> dict[str, Any] | list[dict[str, Any]]:
        """What goes wrong once it streams, as it does unless told otherwise, is said with status 200."""
        try:
            return self.ollama.create(body)
        except Refused as error:
            if not body.get("stream", True):
                raise
            return [{"status": "parsing GGUF"}, {"error": str(error)}]

    def _show(self, body: dict[str, Any]) -> dict[str, Any]:
        model = self.ollama.find(body["model"])
        details = {"family": "llama", "quantization_level": "Q8_0"}
        return {
            "template": model.template or "",
            "details": details,
            "model_info": {"llama.context_length": 256},
        }

    def _run(self, route: Any) -> None:
        self.ollama.requests.append((self.command, self.path))
        try:
            status, answer = route(self.body())
        except Refused as error:
            status, answer = error.status, {"error": str(error)}
        self._send(status, answer)

    def body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return super().body()

    def _send(self, status: int, answer: dict[str, Any] | list[dict[str, Any]] | None) -> None:
        lines = answer if isinstance(answer, list) else [answer] if answer is not None else []
        content = b"\n".join(json.dumps(line).encode() for line in lines)
        self.reply(status, content, {"content-type": "application/json"})
