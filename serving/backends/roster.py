"""All backends of this process, by name."""

import asyncio
import importlib
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
from serving.backends.routing import Destination
from serving.backends.target import Target
from serving.backends.vllm_generate import VllmGenerate

# How long a backend's list of its models is good for, and for how long one that did not answer is left alone.
LISTED_SECONDS = 15

log = structlog.get_logger(__name__)


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
        self.configs = read_backends(settings)
        self._all = {name: guarded(config, client) for name, config in self.configs.items()}
        self._listings: dict[str, _Listing] = {}

    def __iter__(self) -> Iterator[Guarded]:
        return iter(self._all.values())

    def get(self, name: str) -> Guarded | None:
        return self._all.get(name)

    def target(self, found: Destination) -> Target:
        """Who is asked, in the order in which `configs` had them found."""
        return Target([(self._all[place.backend], place.model) for place in found.places], found.prompting)

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


def guarded(config: BackendConfig, client: httpx.AsyncClient) -> Guarded:
    """A backend of the settings, with what stands before it.

    Raises:
        InvalidInput: its type is none that there is.
    """
    return Guarded(_made(config, client))


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
