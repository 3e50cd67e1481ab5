"""All backends of this process, by name."""

import asyncio
import importlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import structlog

from db.errors import InvalidInput
from serving.backends.configuration import SETTING, BackendConfig, BackendSettings, read_backends
from serving.backends.guarding import LOOK_SECONDS, Guarded
from serving.backends.interface import Backend
from serving.backends.openai_server import LlamaServer, OpenAIServer
from serving.backends.vllm_generate import VllmGenerate

# How long a backend's list of its models is good for, and for how long one that did not answer is left alone.
LISTED_SECONDS = 15

# As with names of ours: neither NUL nor halves of surrogate pairs, which Postgres cannot take.
MODEL = re.compile(r"[^\x00-\x1f\ud800-\udfff]{1,256}")

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Place:
    """A model as one backend has it."""

    backend: str
    model: str


@dataclass(frozen=True)
class _Listing:
    models: list[str]
    at: float


class Backends:
    """Those of the settings.

    Raises:
        InvalidInput: the operator's file is wrong; the message names the entry.
    """

    def __init__(self, settings: BackendSettings, client: httpx.AsyncClient) -> None:
        configs = read_backends(settings)
        self._all = {name: Guarded(_made(config, client)) for name, config in configs.items()}
        self._listings: dict[str, _Listing] = {}

    def __iter__(self) -> Iterator[Guarded]:
        return iter(self._all.values())

    def get(self, name: str) -> Guarded | None:
        return self._all.get(name)

    def named(self, reference: str) -> list[Place]:
        """Who answers to a name of the operator's: `backend/model`, or what the file's `models` say."""
        name, slash, model = reference.partition("/")
        if slash and name in self._all and self._all[name].config.own_models:
            return [Place(name, model)] if MODEL.fullmatch(model) else []
        return [
            Place(config.name, config.models[reference])
            for config in (backend.config for backend in self)
            if reference in config.models
        ]

    def standing_in(self, name: str) -> list[str]:
        """Who has the same models as another backend, under the same names."""
        return [backend.name for backend in self if backend.config.stands_in_for == name]

    async def listed(self) -> dict[str, list[str]]:
        """The models that each has by itself. One that does not answer has none, and keeps nobody waiting."""
        found = await asyncio.gather(*(self._models_of(backend) for backend in self))
        return dict(zip(self._all, found, strict=True))

    async def _models_of(self, backend: Guarded) -> list[str]:
        known = self._listings.get(backend.name)
        if known is not None and time.monotonic() - known.at < LISTED_SECONDS:
            return known.models
        if not backend.config.own_models:
            return []
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                models = await backend.backend.models()
        except Exception as error:  # noqa: BLE001 - a class of the operator's own may raise anything
            log.warning("backend_not_listed", backend=backend.name, error=repr(error))
            models = []
        self._listings[backend.name] = _Listing(models, time.monotonic())
        return models

    async def close(self) -> None:
        for backend in self:
            await backend.close()


def _made(config: BackendConfig, client: httpx.AsyncClient) -> Backend:
    built_in: dict[str, type[Backend]] = {
        "llama_server": LlamaServer,
        "openai": OpenAIServer,
        "transformers": OpenAIServer,
        "vllm_generate": VllmGenerate,
    }
    if config.type == "ollama":
        # 4 MB that a process without it need not hold.
        from serving.backends.ollama_server import OllamaServer

        return OllamaServer(config, client)
    if config.type in built_in:
        return built_in[config.type](config, client)
    if ":" not in config.type:
        known = ", ".join(sorted([*built_in, "ollama"]))
        raise InvalidInput(
            f"{SETTING}: {config.name}.type is {config.type!r}; it is one of {known}, or module:Class.",
            param=SETTING,
        )
    return _own_class(config)(config, client)


def _own_class(config: BackendConfig) -> type[Backend]:
    module, _, name = config.type.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InvalidInput(
            f"{SETTING}: {config.name}.type is {config.type!r}, which cannot be imported: {error}. Is it on "
            "PYTHONPATH?",
            param=SETTING,
        ) from error
    if not (isinstance(found, type) and issubclass(found, Backend)):
        raise InvalidInput(
            f"{SETTING}: {config.name}.type is {config.type!r}, which is no class derived from "
            "serving.backends.interface.Backend.",
            param=SETTING,
        )
    return found
