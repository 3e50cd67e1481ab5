"""Ollama: put a GGUF file of our own there, see what it will be sent, ask, delete.

The one path that every version takes is: quantise ourselves, upload the blob, `create(files=…)` with
template, stops and parameters. Never `quantize`, and `adapters` only where a job asks for it: newer servers
refuse both. Parameters are checked here, for the server stores wrong ones and then fails every answer.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import ollama

from db.disk import file_sha256
from db.errors import InvalidInput, LatheError, NotFound, StepFailed, Unavailable

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}(:[A-Za-z0-9._-]{1,80})?")
FILE_NAME, ADAPTER_NAME = "model.gguf", "adapter.gguf"
# A blob of many gigabytes is hashed by the server before it answers.
TIMEOUT = httpx.Timeout(connect=5, read=1800, write=1800, pool=60)
# Of questions about the server itself, asked by who has a lease to renew.
MANAGE_SECONDS = 2
ON_CPU = {"num_gpu": 0}
PARAMETER_TYPES: dict[str, type | tuple[type, ...]] = {
    "num_ctx": int,
    "repeat_penalty": (int, float),
    "stop": list,
    "temperature": (int, float),
    "top_p": (int, float),
    "top_k": int,
    "num_predict": int,
    "min_p": (int, float),
    "typical_p": (int, float),
    "repeat_last_n": int,
    "presence_penalty": (int, float),
    "frequency_penalty": (int, float),
    "seed": int,
}

DEFAULT_CONTEXT = 4096

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Described:
    """A model that a server has, by its manifest's digest."""

    digest: str
    bytes: int
    quantization: str
    family: str
    context_length: int


class Ollama:
    """A client of one server.

    Args:
        url: its address.
    """

    def __init__(self, url: str) -> None:
        self._client = ollama.Client(host=url, timeout=TIMEOUT, trust_env=False)
        # For the one field that the official client does not know.
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT, trust_env=False)

    def exists(self, name: str) -> bool:
        try:
            with _translated():
                self._client.show(name)
        except NotFound:
            return False
        return True

    def version(self) -> tuple[int, ...]:
        """The numbers of its version, such as (0, 24, 0); none of one that is not made of numbers."""
        try:
            parts = str(self._manage("GET", "/api/version").json()["version"]).split(".")
            return tuple(int(re.match(r"\d+", part)[0]) for part in parts)  # type: ignore[index]
        except (ValueError, LookupError, TypeError):
            return ()

    def create(
        self,
        name: str,
        gguf: Path,
        *,
        template: str | None,
        parameters: dict[str, Any],
        adapter: Path | None = None,
    ) -> None:
        """Upload a GGUF file, unless the server has its content, and make it the model `name`.

        Args:
            adapter: a GGUF LoRA that is added to the file when it is served; from 0.34 on it is refused.
            template: a Go template, or None for the file's own.
            parameters: num_ctx, stop and the like, as Ollama spells them.

        Raises:
            InvalidInput: the name or a parameter would not work.
            Unavailable: no server answers.
            StepFailed: the server refused the file.
        """
        check_name(name)
        check_parameters(parameters)
        with _translated():
            files = {FILE_NAME: self._upload(gguf)}
            adapters = {ADAPTER_NAME: self._upload(adapter)} if adapter is not None else None
            self._client.create(
                name, files=files, adapters=adapters, template=template, parameters=parameters, stream=False
            )

    def _upload(self, file: Path) -> str:
        """Returns the digest. A base may be there already, with other adapters."""
        digest = f"sha256:{file_sha256(file)}"
        if self._http.head(f"/api/blobs/{digest}").status_code == httpx.codes.OK:
            return digest
        return self._client.create_blob(file)

    def create_from(
        self,
        name: str,
        base: str,
        *,
        parameters: dict[str, Any],
        system: str | None = None,
        template: str | None = None,
        messages: Messages | None = None,
    ) -> None:
        """Make the model `name` of one that the server has, as a Modelfile does.

        Raises:
            InvalidInput: a parameter would not work, or the template does not compile.
            NotFound: the server does not have `base`; it would try to pull it.
        """
        check_name(name)
        check_parameters(parameters)
        with _translated():
            self._client.show(base)
            self._client.create(
                name, from_=base, system=system, template=template, parameters=parameters or None,
                messages=messages, stream=False,
            )  # fmt: skip

    def pull(self, name: str) -> Iterator[tuple[str, int, int]]:
        """Have the server pull a model of its library: what it does, and how many bytes of how many it has.

        Raises:
            InvalidInput: the library has no such model.
            Unavailable: the server, or its library, does not answer.
        """
        try:
            with _translated():
                for said in self._client.pull(name, stream=True):
                    yield said.status or "", said.completed or 0, said.total or 0
        except (StepFailed, NotFound) as error:
            # The reason comes in the midst of the stream, as a sentence.
            if "does not exist" in error.message or "not found" in error.message:
                message = f"Ollama's library has no {name}: check its name and tag."
                raise InvalidInput(message, param="source", code="model_not_found") from error
            raise Unavailable(f"{error.message}. {name} could not be pulled.") from error

    def copy(self, name: str, to: str) -> None:
        check_name(to)
        with _translated():
            self._client.copy(name, to)

    def describe(self, name: str) -> Described:
        """What the server knows of a model that it has.

        Raises:
            NotFound: it has none by that name.
        """
        with _translated():
            shown, listed = self._client.show(name), self._client.list().models
        wanted = {name, f"{name}:latest"}
        row = next((each for each in listed if each.model in wanted), None)
        if row is None or row.digest is None:
            raise NotFound(f"Ollama does not list {name}.")
        info = shown.modelinfo or {}
        lengths = [value for key, value in info.items() if key.endswith(".context_length")]
        details = shown.details
        return Described(
            digest=row.digest.removeprefix("sha256:"),
            bytes=int(row.size or 0),
            quantization=(details.quantization_level if details else None) or "unknown",
            family=(details.family if details else None) or "unknown",
            context_length=int(lengths[0]) if lengths else DEFAULT_CONTEXT,
        )

    def rendered(self, name: str, messages: Messages, *, on_cpu: bool = False) -> str | None:
        """What the server would send to the model; None where its version cannot tell."""
        body = {"model": name, "messages": messages, "stream": False, "_debug_render_only": True}
        body |= {"options": ON_CPU} if on_cpu else {}
        with _translated():
            response = self._http.post("/api/chat", json=body)
            if response.is_error:
                raise ollama.ResponseError(response.text, response.status_code)
        text = (response.json().get("_debug_info") or {}).get("rendered_template")
        return None if text is None else str(text)

    def ask(
        self, name: str, messages: Messages, *, max_tokens: int, on_cpu: bool = False
    ) -> ollama.ChatResponse:
        """Answer greedily; `on_cpu`, without taking memory of a GPU."""
        options = {"num_predict": max_tokens, "temperature": 0} | (ON_CPU if on_cpu else {})
        with _translated():
            return self._client.chat(name, messages, options=options, stream=False)

    def delete(self, name: str) -> None:
        """Delete a model; one that is already gone is no error."""
        try:
            with _translated():
                self._client.delete(name)
        except NotFound:
            pass

    def loaded_models(self) -> list[str]:
        """The models that take a GPU's memory now."""
        response = self._manage("GET", "/api/ps")
        try:
            return [row["name"] for row in response.json()["models"] if row.get("size_vram") != 0]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            message = "/api/ps: the server does not answer as Ollama does."
            raise Unavailable(message, code="model_server_unavailable") from error

    def is_answering(self, name: str) -> bool:
        """No: the server itself lets answers end before it unloads a model."""
        return False

    def unload(self, name: str) -> None:
        """Ask the server to unload a model once it has answered what it was asked before."""
        # One that is gone takes no memory.
        with contextlib.suppress(NotFound):
            self._manage("POST", "/api/generate", {"model": name, "keep_alive": 0})

    def load(self, name: str) -> None:
        """Load a model, which takes as long as it takes: the server gives up when nobody waits."""
        with _translated():
            self._client.generate(name)

    def _manage(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        with _translated():
            response = self._http.request(method, path, json=body, timeout=MANAGE_SECONDS)
            if response.is_error:
                raise ollama.ResponseError(response.text, response.status_code)
        return response

    def close(self) -> None:
        self._http.close()
        self._client.close()  # type: ignore[no-untyped-call]  # theirs has no types


def check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise InvalidInput(f"{name!r} is no name for Ollama: lower case letters, digits, '.', '_' and '-'.")


def check_parameters(parameters: dict[str, Any]) -> None:
    """Refuse what Ollama would store and then fail on.

    Raises:
        InvalidInput: a parameter is unknown or of the wrong type.
    """
    for name, value in parameters.items():
        expected = PARAMETER_TYPES.get(name)
        if expected is None:
            raise InvalidInput(f"Ollama's parameter {name} is not one that Lathe sets.", param=name)
        if not isinstance(value, expected) or isinstance(value, bool):
            raise InvalidInput(f"Ollama's parameter {name} cannot be {value!r}.", param=name)
    stops = parameters.get("stop", [])
    if not all(isinstance(stop, str) and stop for stop in stops):
        raise InvalidInput("Ollama's parameter stop is a list of strings that are not empty.", param="stop")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Name the client's errors as Lathe does."""
    try:
        yield
    except ollama.ResponseError as error:
        raise _error_of(error) from error
    except (ConnectionError, httpx.HTTPError) as error:
        raise Unavailable("Ollama does not answer.", code="model_server_unavailable") from error


def _error_of(error: ollama.ResponseError) -> LatheError:
    message = f"Ollama: {error.error}"
    if error.status_code == 404:
        return NotFound(message)
    if error.status_code in (401, 403, 429, 502, 503, 504):
        return Unavailable(message)
    if error.status_code == 400:
        return InvalidInput(message, code="ollama_refused")
    # 500, or -1 for an error in the midst of a stream: the file itself is what it did not like.
    return StepFailed(message)
