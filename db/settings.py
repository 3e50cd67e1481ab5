"""Lathe's settings: built once at a process's start by `load_settings`, read nowhere else.

Every setting is an environment variable `LATHE_<NAME>`; the addresses of servers keep the names that
people know: `DATABASE_URL`, `REDIS_URL`, `OLLAMA_HOST`.
"""

import importlib.util
import os
import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from db import lathe_yaml
from db.errors import InvalidInput
from db.lathe_yaml import ConfiguredModel

# In the environment of each process that a step starts: which attempt it belongs to.
STEP_MARKER = "LATHE_ATTEMPT"
Tracker = Literal["tensorboard", "trackio", "wandb"]
TRACKER_PACKAGES: dict[Tracker, str] = {
    "tensorboard": "tensorboardX",
    "trackio": "trackio",
    "wandb": "wandb",
}
Days = Annotated[float | None, Field(gt=0, le=36_500)]  # what is over a century overflows a time
CONFIGURATION_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
LOOPBACK = ("127.0.0.1", "::1", "localhost")
ORIGIN = re.compile(r"(?i)https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


def _home(variable: str, fallback: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / fallback) / "lathe"


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="LATHE_", frozen=True, extra="ignore", populate_by_name=True, env_ignore_empty=True
    )

    # Where things are
    data_dir: Path = Field(default_factory=lambda: _home("XDG_DATA_HOME", ".local/share"))
    cache_dir: Path = Field(default_factory=lambda: _home("XDG_CACHE_HOME", ".cache"))
    base_models_dir: Path | None = None

    # Servers: without an address, `lathe up` starts its own
    database_url: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("DATABASE_URL", "LATHE_DATABASE_URL")
    )
    redis_url: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("REDIS_URL", "LATHE_REDIS_URL")
    )
    ollama_host: str | None = Field(
        default=None, validation_alias=AliasChoices("OLLAMA_HOST", "LATHE_OLLAMA_HOST")
    )
    chat_server_url: str | None = None
    chat_server_key: SecretStr = SecretStr("")
    embedding_server_url: str | None = None
    embedding_server_key: SecretStr = SecretStr("")
    embedder: Literal["auto", "server", "local"] = "auto"  # of an ingest (docs/how-to/documents.md)
    embedding_tokenizer: Path | None = None  # a tokenizer.json; default: that of our own embedding model
    embedding_max_tokens: int = Field(default=256, ge=16)  # of one input, the special ones included

    # Where models come from by name: huggingface_hub's own variables are heeded, too
    hub_url: str = Field(
        default="https://huggingface.co", validation_alias=AliasChoices("LATHE_HUB_URL", "HF_ENDPOINT")
    )
    hub_token: SecretStr = Field(
        default=SecretStr(""), validation_alias=AliasChoices("LATHE_HUB_TOKEN", "HF_TOKEN")
    )
    hub_offline: bool = Field(
        default=False, validation_alias=AliasChoices("LATHE_HUB_OFFLINE", "HF_HUB_OFFLINE")
    )
    # Organisations and accounts that jobs may push to; unset: wherever the token may write
    hub_push_to: Annotated[list[str], NoDecode] = []
    hub_cache_dir: Path | None = None  # what was fetched; default: huggingface_hub's own folder

    config: Path | None = None  # a lathe.yaml (docs/how-to/coming-from-earlier-projects.md)
    configured_model: ConfiguredModel | None = None  # as that names it

    rerank_server_url: str | None = None  # anything with /v1/rerank; none is started without it
    rerank_server_key: SecretStr = SecretStr("")
    rerank_model: str = "default"  # as that server names it
    rerank_timeout_seconds: float = Field(default=15, gt=0)
    rewrite_model: str | None = None  # puts a search's question in other words; default: published last
    rewrite_timeout_seconds: float = Field(default=15, gt=0)

    backends: Path | None = None  # a TOML file of more servers that answer prompts (docs/how-to/backends.md)

    sql: Path | None = None  # a TOML file of SQL sources and targets (docs/how-to/sql.md)

    ray_clusters: Path | None = None  # a TOML file of clusters to train on (docs/how-to/several-machines.md)
    rewards: Path | None = None  # a TOML file of reward functions (docs/how-to/rewards.md)

    # Addresses of our own
    api_host: str = "127.0.0.1"
    api_port: int = Field(default=8000, ge=1, le=65535)
    api_url: str | None = None
    api_key: SecretStr = SecretStr("")
    allowed_hosts: Annotated[list[str], NoDecode] = []
    allowed_origins: Annotated[
        list[str], NoDecode
    ] = []  # whose pages may use the API (docs/how-to/access.md)
    flower_port: int = Field(default=5555, ge=1, le=65535)
    flower_user: str = "lathe"
    flower_password: SecretStr = SecretStr("")
    postgres_port: int = Field(default=55432, ge=1, le=65535)
    valkey_port: int = Field(default=56379, ge=1, le=65535)
    chat_port: int = Field(default=8081, ge=1, le=65535)
    embedding_port: int = Field(default=8082, ge=1, le=65535)

    # llama.cpp and serving
    llama_cpp_dir: Path | None = None
    llama_backend: Literal["auto", "cpu", "cuda", "vulkan"] = "auto"
    n_gpu_layers: int = Field(default=99, ge=0)
    context_size: int = Field(default=0, ge=0)  # 0: what the model was trained for
    chat_batch_tokens: int = Field(default=0, ge=0)  # read at once by the chat server; 0: its own default
    threads: int = Field(default_factory=lambda: len(os.sched_getaffinity(0)), ge=1)
    models_loaded_max: int = Field(default=4, ge=1)

    # Limits
    max_file_bytes: int = Field(default=2 * 1024**3, ge=1)
    max_body_bytes: int = Field(default=8 * 1024**2, ge=1024)

    # Search (docs/how-to/documents.md)
    vector_index_min_chunks: int = Field(default=5_000, ge=1)  # a collection's, from which on it is indexed
    vector_index_memory_bytes: int = Field(default=1024**3, ge=1024**2)  # for building one, in Postgres

    # Workers
    train_processes: int = Field(default=1, ge=1)  # that train together where there is no GPU
    # Configurations of DeepSpeed that jobs may name: name=file.json, between commas
    deepspeed: Annotated[dict[str, Path], NoDecode] = {}
    train_concurrency: int = Field(default=1, ge=0)
    gpu_concurrency: int = Field(default=1, ge=0)
    cpu_concurrency: int = Field(default=1, ge=0)
    io_concurrency: int = Field(default=2, ge=0)
    bulk_concurrency: int = Field(default=1, ge=0)
    ask_concurrency: int = Field(default=2, ge=0)
    hooks_concurrency: int = Field(default=8, ge=0)
    lease_seconds: float = Field(default=15, gt=0)
    heartbeat_seconds: float = Field(default=5, gt=0)
    sweep_seconds: float = Field(default=10, gt=0)
    stall_seconds: float = Field(default=1800, gt=0)
    warm_seconds: float = Field(default=600, ge=0)  # that a fork server waits for a step; 0: there is none

    # GPUs (docs/how-to/gpu.md), by numbers and UUIDs between commas, or all
    gpus: str = ""  # what `lathe up` starts a worker for each of; 0+1: one for both
    device: str = ""  # those of this worker, for its queues `train` and `gpu`; unset: all it sees; none
    cuda_visible_devices: str | None = Field(default=None, validation_alias="CUDA_VISIBLE_DEVICES")
    serving_device: str = ""  # where the chat server keeps its models; none: on no GPU that workers have
    share_device: bool = False  # its memory suffices for a step and the models that are served, together
    embed_on_gpu: bool = False  # large ingests wait for a GPU to hold
    unload_patience_seconds: float = Field(default=30, ge=0)  # for answers that are being written

    # How many days what has come to an end is kept; unset: for ever (docs/how-to/retention.md)
    keep_jobs_days: Days = None
    keep_artifacts_days: Days = None
    keep_checkpoints_days: Days = None
    keep_events_days: Days = None
    keep_metrics_days: Days = None
    keep_unused_files_days: Days = None
    keep_deliveries_days: Days = 30
    keep_audit_days: Days = 365
    keep_responses_days: Days = 30  # since they were last gone on from
    keep_prepared_days: Days = 30  # since the rows were last taken
    prepared_max_bytes: int = Field(default=20 * 1024**3, ge=0)  # of all projects; 0: nothing is kept
    keep_base_files_days: Days = 30  # in the cache, since a step last asked for them
    base_files_max_bytes: int = Field(default=50 * 1024**3, ge=0)  # but for those of the last day
    housekeeping_seconds: float = Field(default=600, gt=0)

    # Webhooks go to public addresses, and into these networks
    webhook_allowed_networks: Annotated[list[IPv4Network | IPv6Network], NoDecode] = []
    webhook_timeout_seconds: float = Field(default=10, gt=0)
    webhook_backoff_seconds: float = Field(default=5, gt=0)  # before the second try; then twice as long, …

    # What trainings measure goes to these too; their packages are the extras tensorboard, trackio and wandb
    trackers: Annotated[list[Tracker], NoDecode] = []
    tracker_project: str = "lathe"

    eval_tasks: Path | None = None  # a folder of lm-eval's tasks (docs/how-to/evaluate.md)

    # What publishing demands of a quantised file, against the weights it was made from
    min_top1_agreement: float = Field(default=0.98, ge=0, le=1)
    max_kl_ratio: float = Field(default=1.5, gt=0)
    auto_max_kl: float = Field(default=0.02, gt=0)  # nats; the quantization `auto` is the smallest within it

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_json: bool = False

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given in code goes before the environment, and that before lathe.yaml."""
        of_yaml = InitSettingsSource(settings_cls, lathe_yaml.read_settings(os.environ))
        return init_settings, env_settings, of_yaml

    @field_validator(
        "data_dir",
        "cache_dir",
        "base_models_dir",
        "llama_cpp_dir",
        "embedding_tokenizer",
        "backends",
        "sql",
        "ray_clusters",
        "rewards",
        "hub_cache_dir",
        "eval_tasks",
        "config",
    )
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path.expanduser().absolute() if path is not None else None

    @field_validator("database_url")
    @classmethod
    def _name_the_driver(cls, url: SecretStr | None) -> SecretStr | None:
        # SQLAlchemy 2.1 reads a bare postgresql:// as psycopg 3, which we do not ship.
        if url is None:
            return None
        scheme, _, rest = url.get_secret_value().partition("://")
        if scheme in ("postgres", "postgresql"):
            scheme = "postgresql+psycopg2"
        if scheme != "postgresql+psycopg2":
            raise ValueError("DATABASE_URL must begin with postgresql://")
        return SecretStr(f"{scheme}://{rest}")

    # Of two validators the one that stands below is asked first.
    @field_validator("webhook_allowed_networks", mode="before")
    @classmethod
    def _read_networks(cls, value: object) -> object:
        # Says what is wrong with 10.1.2.3/8; pydantic says only that it fits neither version.
        if not isinstance(value, list):
            return value
        return [ip_network(part) if isinstance(part, str) else part for part in value]

    @field_validator("allowed_hosts")
    @classmethod
    def _in_small_letters(cls, names: list[str]) -> list[str]:
        return [name.lower() for name in names]

    @field_validator("allowed_origins")
    @classmethod
    def _as_browsers_write_them(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is no origin: they are written https://name or http://name:port, without a "
                    "path. There is no word for all of them: any page could use a server without keys."
                )
        return [origin.lower() for origin in origins]

    @field_validator("deepspeed", mode="before")
    @classmethod
    def _named_files(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [part.strip().partition("=") for part in value.split(",") if part.strip()]
        wrong = [
            name for name, _, path in pairs if not path or not CONFIGURATION_NAME.fullmatch(name.strip())
        ]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is none of name=file.json; names are of a-z, 0-9, ., _ and -")
        return {name.strip(): Path(path.strip()).expanduser().absolute() for name, _, path in pairs}

    @field_validator(
        "allowed_hosts",
        "allowed_origins",
        "hub_push_to",
        "trackers",
        "webhook_allowed_networks",
        mode="before",
    )
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @property
    def storage_root(self) -> Path:
        return self.data_dir / "storage"

    @property
    def tracking_dir(self) -> Path:
        """What trackers keep on disk."""
        return self.data_dir / "tracking"

    @property
    def served_models_dir(self) -> Path:
        """Where llama-server's router looks for models."""
        return self.storage_root / "served"

    @property
    def chat_backend(self) -> Literal["llama_server", "ollama"]:
        """A named Ollama serves published models; else llama-server does."""
        return "ollama" if self.ollama_host else "llama_server"

    @property
    def ollama_url(self) -> str:
        host = self.ollama_host or "127.0.0.1:11434"
        return host.rstrip("/") if "://" in host else f"http://{host.rstrip('/')}"

    @property
    def chat_url(self) -> str:
        return (self.chat_server_url or f"http://127.0.0.1:{self.chat_port}").rstrip("/")

    @property
    def embedding_url(self) -> str:
        return (self.embedding_server_url or f"http://127.0.0.1:{self.embedding_port}").rstrip("/")

    @property
    def rerank_url(self) -> str | None:
        return self.rerank_server_url.rstrip("/") if self.rerank_server_url else None

    @property
    def client_url(self) -> str:
        """Where the command line finds the API."""
        return (self.api_url or f"http://127.0.0.1:{self.api_port}").rstrip("/")

    @property
    def concurrency(self) -> dict[str, int]:
        """How many steps of each queue one worker runs at once."""
        return {
            "train": self.train_concurrency,
            "gpu": self.gpu_concurrency,
            "cpu": self.cpu_concurrency,
            "io": self.io_concurrency,
            "bulk": self.bulk_concurrency,
            "ask": self.ask_concurrency,
            "hooks": self.hooks_concurrency,
        }

    def require_database_url(self) -> str:
        if self.database_url is None:
            raise InvalidInput(
                "DATABASE_URL is not set: name a Postgres server, or let `lathe up` start one.",
                param="DATABASE_URL",
            )
        return self.database_url.get_secret_value()

    def require_redis_url(self) -> str:
        if self.redis_url is None:
            raise InvalidInput(
                "REDIS_URL is not set: name a Redis or Valkey server, or let `lathe up` start one.",
                param="REDIS_URL",
            )
        return self.redis_url.get_secret_value()

    def require_trackers(self) -> None:
        """See that the packages of the trackers are there.

        Raises:
            InvalidInput: one is not; the message says how to get it.
        """
        for tracker in self.trackers:
            if importlib.util.find_spec(TRACKER_PACKAGES[tracker]) is None:
                raise InvalidInput(
                    f"LATHE_TRACKERS names {tracker}, whose package is not installed where the worker runs: "
                    f".venv/bin/pip install -e '.[{tracker}]', or take it out.",
                    param="LATHE_TRACKERS",
                )


def step_environment(marker: str, changes: Mapping[str, str]) -> dict[str, str]:
    """The environment of a step's processes: this process's, less every setting and secret of Lathe's.

    Args:
        marker: names the attempt; all that the step starts inherits it, and can be found by it.
        changes: what the step gets besides.
    """
    ours = (*lathe_yaml.PREFIXES, "DATABASE_URL", "REDIS_URL")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**environment, **changes, STEP_MARKER: marker}


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        InvalidInput: a variable holds what it cannot; the message names each one.
    """
    try:
        return Settings()
    except ValidationError as error:
        wrong = {_variable(str(e["loc"][0])): e["msg"].removeprefix("Value error, ") for e in error.errors()}
        lines = [f"{variable}: {message}" for variable, message in wrong.items()]
        raise InvalidInput(f"Settings are wrong: {'; '.join(lines)}.", param=next(iter(wrong))) from None


def _variable(name: str) -> str:
    """The environment variable of a setting, by the name that pydantic has for it in an error."""
    return f"LATHE_{name.upper()}" if name in Settings.model_fields else name


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a child process: ours, with `changes`."""
    return {**os.environ, **changes}
