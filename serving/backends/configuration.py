"""The operator's file of backends, LATHE_BACKENDS: a table of TOML each. What may stand there is
`BackendConfig`.

No request names an address, a key or a class: it names a backend, and only one of these.
"""

from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    field_validator,
)

from db.operator_file import checked, read_toml, wrong

SETTING = "LATHE_BACKENDS"

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]


# Of what loads a model: code of others, what has a field of its own, and secrets, which an argv would show.
REFUSED = frozenset({"trust_remote_code", "revision", "token", "use_safetensors", "host", "port", "api_key"})
WHY_REFUSED = (
    "no code of a model's is run, a hub's token stands in HF_TOKEN, and the others are not yours to set"
)


class Patience(BaseModel):
    """How long a backend may take."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    connect: Seconds = 5
    first_byte: Seconds = 600  # a model may have to be loaded first
    between_bytes: Seconds = 120  # of a stream
    queue: Seconds = 60  # for one's turn


class Process(BaseModel):
    """A server that `lathe up` starts for a backend of type transformers."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: Name  # a folder, or a name on the hub
    revision: Name | None = None
    adapter_id: Name | None = None  # a PEFT adapter: a folder, or a name on the hub
    bits: Annotated[int, Field(json_schema_extra={"enum": [4, 8, 16]})] = 16
    engine: Annotated[str, StringConstraints(pattern=r"^(transformers|vllm)$")] = "transformers"
    port: int = Field(default=8090, ge=1, le=65535)
    devices: str | None = None  # the GPUs that it sees, as CUDA_VISIBLE_DEVICES has them; "" for none
    model_kwargs: dict[str, Any] = {}
    tokenizer_kwargs: dict[str, Any] = {}
    tensor_parallel_size: int = Field(default=1, ge=1)
    vllm_kwargs: dict[str, Any] = {}

    @field_validator("model_kwargs", "tokenizer_kwargs", "vllm_kwargs")
    @classmethod
    def _harmless(cls, given: dict[str, Any]) -> dict[str, Any]:
        refused = REFUSED & {name.replace("-", "_") for name in given}
        if refused:
            raise ValueError(f"takes no {', '.join(sorted(refused))}: {WHY_REFUSED}")
        return given

    @field_validator("bits")
    @classmethod
    def _known(cls, bits: int) -> int:
        if bits not in (4, 8, 16):
            raise ValueError("must be 4, 8 or 16")
        return bits


class BackendConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    type: str
    url: str = ""
    key: SecretStr = SecretStr("")
    models: dict[Name, Name] = {}  # what callers say → what the backend calls it
    own_models: bool = True  # whatever it has can be asked as `name/model`
    concurrency: int | None = Field(default=None, ge=1, le=100_000)
    queue: int = Field(default=64, ge=0, le=1_000_000)
    timeout: Patience = Patience()
    retries: int = Field(default=1, ge=0, le=10)
    keep_alive: Seconds | None = None
    stands_in_for: str | None = None
    context_window: int | None = Field(default=None, ge=16)
    process: Process | None = None
    options: dict[str, Any] = {}

    def revealed(self) -> dict[str, Any]:
        """All of it as JSON, the key in plain words: for a process of ours that is to ask it."""
        return {**self.model_dump(mode="json"), "key": self.key.get_secret_value()}

    @field_validator("models", mode="before")
    @classmethod
    def _same_names(cls, models: object) -> object:
        return {name: name for name in models} if isinstance(models, list) else models

    @field_validator("url")
    @classmethod
    def _an_address(cls, url: str) -> str:
        if url and not url.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        # People give what they give to OpenAI's clients.
        return url.rstrip("/").removesuffix("/v1")


class BackendSettings(Protocol):
    """What is needed of `db.settings.Settings`."""

    @property
    def backends(self) -> Path | None: ...
    @property
    def chat_url(self) -> str: ...
    @property
    def chat_server_key(self) -> SecretStr: ...
    @property
    def embedding_url(self) -> str: ...
    @property
    def embedding_server_key(self) -> SecretStr: ...
    @property
    def ollama_host(self) -> str | None: ...
    @property
    def ollama_url(self) -> str: ...


def read_backends(settings: BackendSettings) -> dict[str, BackendConfig]:
    """All backends by name: the built-in ones as the older settings have them, and those of the file.

    A table of the file that bears a built-in one's name adds to it: limits, times, names.

    Raises:
        InvalidInput: the file cannot be read, or an entry is wrong; the message names it and its field.
    """
    found: dict[str, dict[str, Any]] = {
        # What is published, and the embedding model: all that these have goes by other names.
        "llama_server": {"url": settings.chat_url, "key": settings.chat_server_key},
        "embeddings": {"url": settings.embedding_url, "key": settings.embedding_server_key},
    }
    for table in found.values():
        table |= {"type": "llama_server", "own_models": False}
    if settings.ollama_host is not None:
        found["ollama"] = {"type": "ollama", "url": settings.ollama_url}
    for name, table in read_toml(settings.backends, SETTING).items():
        if not isinstance(table, dict):
            raise wrong(SETTING, f"{name} is no table: write [{name}] on a line of its own.")
        found[name] = found.get(name, {}) | table
    configs = {name: _checked(name, table) for name, table in found.items()}
    for config in configs.values():
        if config.stands_in_for is not None and config.stands_in_for not in configs:
            known = ", ".join(configs)
            raise wrong(
                SETTING,
                f"{config.name}.stands_in_for: there is no {config.stands_in_for!r}; there are: {known}.",
            )
    return configs


def processes(settings: BackendSettings) -> list[BackendConfig]:
    """The backends whose servers `lathe up` starts."""
    return [config for config in read_backends(settings).values() if config.process is not None]


def _checked(name: str, table: dict[str, Any]) -> BackendConfig:
    config = checked(BackendConfig, SETTING, name, name, table)
    if config.type == "transformers":
        if config.process is None:
            raise wrong(SETTING, f"{name}.process is missing: it names the model that is served.")
        # The server calls its model by the backend's name, so that no answer shows a folder of this machine.
        return config.model_copy(
            update={
                "url": config.url or f"http://127.0.0.1:{config.process.port}",
                "models": config.models or {name: name},
                "own_models": False,
            }
        )
    if not config.url and ":" not in config.type:
        raise wrong(SETTING, f"{name}.url is missing: where does it listen?")
    return config
