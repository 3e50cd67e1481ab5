"""The parts of a local stack: what each is started with, how it is asked for its health, how it stops.

A part whose address the user names is not started; it is only asked whether it answers. Secrets reach
the parts by environment, never by argv, which every user of a machine can read.
"""

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from db import lathe_yaml
from db.errors import Conflict, InvalidInput
from db.settings import LOOPBACK, Settings
from db.states import DEVICE_QUEUES
from deploy.local import health, passwords, postgres, valkey
from deploy.local.gpus import Gpus
from deploy.local.ports import Port
from serving import llama_cpp
from serving.backends.configuration import BackendConfig, processes
from serving.backends.vllm_process import vllm_argv
from serving.devices import NONE, VISIBLE_DEVICES, Device
from serving.llama_cpp import Tools
from serving.served_adapters import prepare_folder

ROOT = Path(__file__).resolve().parent.parent.parent
Check = Callable[[], str | None]

# What a worker may take to drain is 30 s; all of a stop together stays within 40.
WORKER_STOP_SECONDS = 31
SERVER_STOP_SECONDS = 3
START_SECONDS = 60
BACKEND_START_SECONDS = 3600  # weights may be fetched first
BACKEND_PART = "backend-"
NO_GPU = "no GPU"  # where others show the GPUs that they have


@dataclass(frozen=True)
class Part:
    """One process to keep alive.

    Args:
        environment: changes to our own environment.
        check: None for a part that cannot be asked, whose process has to be sign enough.
        start_seconds: how long it may take until its check passes.
        stop_seconds: how long it may take to end after `stop_signal`; then it is killed.
    """

    name: str
    title: str
    argv: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    check: Check | None = None
    port: int | None = None
    address: str = ""
    start_seconds: float = START_SECONDS
    stop_signal: signal.Signals = signal.SIGTERM
    stop_seconds: float = SERVER_STOP_SECONDS


@dataclass(frozen=True)
class External:
    """A server of the user's own."""

    name: str
    title: str
    address: str
    setting: str
    check: Check


# --- what is to be started --------------------------------------------------------------------------


def wanted_ports(settings: Settings) -> list[Port]:
    ports = [
        Port("the API", "LATHE_API_PORT", settings.api_port, settings.api_host),
        Port("Flower", "LATHE_FLOWER_PORT", settings.flower_port),
    ]
    if settings.database_url is None:
        ports.append(Port("Postgres", "LATHE_POSTGRES_PORT", settings.postgres_port))
    if settings.redis_url is None:
        ports.append(Port("Valkey", "LATHE_VALKEY_PORT", settings.valkey_port))
    if starts_chat(settings):
        ports.append(Port("the chat server", "LATHE_CHAT_PORT", settings.chat_port))
    if settings.embedding_server_url is None:
        ports.append(Port("the embedding server", "LATHE_EMBEDDING_PORT", settings.embedding_port))
    for config in processes(settings):
        assert config.process is not None  # noqa: S101 - for the type checker
        where = f"{config.name}.process.port in LATHE_BACKENDS"
        ports.append(Port(f"the backend {config.name}", where, config.process.port))
    return ports


def starts_chat(settings: Settings) -> bool:
    return settings.chat_backend == "llama_server" and settings.chat_server_url is None


def externals(settings: Settings) -> list[External]:
    """The servers that the user's settings name in place of ours."""
    found: list[External] = []
    if settings.database_url is not None:
        url = settings.database_url.get_secret_value()
        check = partial(health.postgres, url)
        found.append(External("postgres", "Postgres", without_secrets(url), "DATABASE_URL", check))
    if settings.redis_url is not None:
        url = settings.redis_url.get_secret_value()
        check = partial(health.redis, url)
        found.append(External("valkey", "Redis", without_secrets(url), "REDIS_URL", check))
    if settings.chat_backend == "ollama":
        url = settings.ollama_url
        check = partial(health.http_get, f"{url}/api/version")
        found.append(External("chat", "Ollama", without_secrets(url), "OLLAMA_HOST", check))
    elif settings.chat_server_url is not None:
        url = settings.chat_url
        check = partial(health.http_get, f"{url}/health")
        found.append(External("chat", "chat server", without_secrets(url), "LATHE_CHAT_SERVER_URL", check))
    if settings.embedding_server_url is not None:
        url = settings.embedding_url
        check = partial(health.http_get, f"{url}/health")
        setting = "LATHE_EMBEDDING_SERVER_URL"
        found.append(External("embeddings", "embedding server", without_secrets(url), setting, check))
    return found


def without_secrets(url: str) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return parts._replace(netloc=f"{host}:{parts.port}" if parts.port else host, query="").geturl()


def require_guarded(settings: Settings) -> None:
    """Refuse to offer the API to other machines without a key.

    Raises:
        InvalidInput: LATHE_API_HOST is not loopback and there is no LATHE_API_KEY.
    """
    if settings.api_host not in LOOPBACK and not settings.api_key.get_secret_value():
        raise InvalidInput(
            f"LATHE_API_HOST is {settings.api_host}, where others can reach it: set LATHE_API_KEY as well.",
            param="LATHE_API_KEY",
        )


# --- their secrets and settings ---------------------------------------------------------------------


class Secrets:
    """The passwords of one data folder's servers; a setting of the user's goes before ours."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = settings.data_dir / "secrets"

    @property
    def postgres(self) -> str:
        cluster = self._settings.data_dir / "postgres"
        if (cluster / "PG_VERSION").exists() and not (self._folder / "postgres").exists():
            raise Conflict(
                f"The password of the database in {cluster} is gone: put {self._folder / 'postgres'} back "
                "from a backup, or choose another LATHE_DATA_DIR."
            )
        return passwords.password(self._folder, "postgres")

    @property
    def valkey(self) -> str:
        return passwords.password(self._folder, "valkey")

    @property
    def flower(self) -> str:
        given = self._settings.flower_password.get_secret_value()
        return given or passwords.password(self._folder, "flower")

    @property
    def chat_server(self) -> str:
        given = self._settings.chat_server_key.get_secret_value()
        return given or (
            passwords.password(self._folder, "chat_server") if starts_chat(self._settings) else ""
        )

    @property
    def embedding_server(self) -> str:
        given = self._settings.embedding_server_key.get_secret_value()
        ours = self._settings.embedding_server_url is None
        return given or (passwords.password(self._folder, "embedding_server") if ours else "")


def database_url(settings: Settings, secrets: Secrets) -> str:
    if settings.database_url is not None:
        return settings.database_url.get_secret_value()
    return postgres.database_url(settings.postgres_port, secrets.postgres)


def environment(settings: Settings, secrets: Secrets) -> dict[str, str]:
    """The settings that the API, the worker and Flower run with, on top of the user's own."""
    redis_url = (
        settings.redis_url.get_secret_value()
        if settings.redis_url is not None
        else valkey.redis_url(settings.valkey_port, secrets.valkey)
    )
    changes = {
        "DATABASE_URL": database_url(settings, secrets),
        "REDIS_URL": redis_url,
        "LATHE_DATA_DIR": str(settings.data_dir),
        "LATHE_CACHE_DIR": str(settings.cache_dir),
        "LATHE_CHAT_SERVER_KEY": secrets.chat_server,
        "LATHE_EMBEDDING_SERVER_KEY": secrets.embedding_server,
        "PYTHONUNBUFFERED": "1",
    }
    # Parts run in the checkout's folder, so a relative path of the user's would mean another one there.
    for name, path in (
        ("LATHE_BASE_MODELS_DIR", settings.base_models_dir),
        ("LATHE_LLAMA_CPP_DIR", settings.llama_cpp_dir),
        ("LATHE_EMBEDDING_TOKENIZER", settings.embedding_tokenizer),
        ("LATHE_BACKENDS", settings.backends),
        ("LATHE_SQL", settings.sql),
        ("LATHE_RAY_CLUSTERS", settings.ray_clusters),
        ("LATHE_REWARDS", settings.rewards),
        ("LATHE_HUB_CACHE_DIR", settings.hub_cache_dir),
        ("LATHE_EVAL_TASKS", settings.eval_tasks),
        (lathe_yaml.SETTING, settings.config),
    ):
        if path is not None:
            changes[name] = str(path)
    if settings.deepspeed:
        changes["LATHE_DEEPSPEED"] = ",".join(f"{name}={path}" for name, path in settings.deepspeed.items())
    return changes


# --- the parts --------------------------------------------------------------------------------------


def databases(settings: Settings, secrets: Secrets) -> list[Part]:
    found: list[Part] = []
    if settings.database_url is None:
        found.append(
            Part(
                "postgres", "Postgres",
                postgres.server_argv(settings.data_dir / "postgres", settings.postgres_port),
                check=partial(postgres.prepare_database, settings.postgres_port, secrets.postgres),
                port=settings.postgres_port, address=f"127.0.0.1:{settings.postgres_port}",
                # SIGTERM would wait for every open connection.
                stop_signal=signal.SIGINT, stop_seconds=5,
            )
        )  # fmt: skip
    if settings.redis_url is None:
        folder = settings.data_dir / "valkey"
        configuration = valkey.write_configuration(folder, settings.valkey_port, secrets.valkey)
        found.append(
            Part(
                "valkey", "Valkey", valkey.server_argv(configuration),
                check=partial(valkey.ping, settings.valkey_port, secrets.valkey),
                port=settings.valkey_port, address=f"127.0.0.1:{settings.valkey_port}",
            )
        )  # fmt: skip
    return found


def model_servers(
    settings: Settings, secrets: Secrets, tools: Tools, embedding_model: Path | None, gpus: Gpus | None
) -> list[Part]:
    """llama-server for chat and for embeddings. SIGTERM lets the router end the models it has loaded.

    Where workers have GPUs, chat sees the one that it serves from, and the embedding model stays on the CPU:
    a step that holds a GPU has all of it.
    """
    found: list[Part] = []
    if starts_chat(settings):
        prepare_folder(settings.served_models_dir)
        argv = llama_cpp.chat_server_argv(tools, settings)
        chat = _llama_server("chat", "chat server", argv, settings.chat_port, secrets.chat_server)
        found.append(_with_devices(chat, gpus.serving) if gpus is not None else chat)
    if embedding_model is not None:
        argv = llama_cpp.embedding_server_argv(tools, settings, embedding_model)
        port, key = settings.embedding_port, secrets.embedding_server
        embeddings = _llama_server("embeddings", "embedding server", argv, port, key)
        found.append(_with_devices(embeddings, []) if gpus is not None else embeddings)
    return [*found, *map(backend_part, processes(settings))]


def backend_part(config: BackendConfig) -> Part:
    """The server of a backend of type transformers. A model may have to be fetched from a hub first."""
    assert config.process is not None  # noqa: S101 - for the type checker
    argv = (
        vllm_argv(config.name, config.process)
        if config.process.engine == "vllm"
        else [
            sys.executable,
            "-m",
            "worker.transformers_server",
            config.name,
            config.process.model_dump_json(),
        ]
    )
    return Part(
        f"{BACKEND_PART}{config.name}", f"backend {config.name}",
        postgres.child_argv(argv, death_signal="SIGTERM"),
        environment={} if config.process.devices is None else {VISIBLE_DEVICES: config.process.devices},
        check=partial(health.http_get, f"{config.url}/health"), port=config.process.port, address=config.url,
        start_seconds=BACKEND_START_SECONDS,
    )  # fmt: skip


def _with_devices(part: Part, devices: list[Device]) -> Part:
    """The part, which sees these GPUs alone."""
    visible = {VISIBLE_DEVICES: _ids(devices)}
    return replace(part, environment={**part.environment, **visible})


def _ids(devices: list[Device]) -> str:
    return ",".join(device.id for device in devices)


def _llama_server(name: str, title: str, argv: list[str], port: int, key: str) -> Part:
    url = f"http://127.0.0.1:{port}"
    return Part(
        name, title, postgres.child_argv(argv, death_signal="SIGTERM"),
        environment=llama_cpp.child_environment(key),
        check=partial(health.http_get, f"{url}/health"), port=port, address=url,
    )  # fmt: skip


def applications(settings: Settings, secrets: Secrets, gpus: Gpus | None) -> list[Part]:
    """The API, the workers and Flower: when the supervisor is killed there is nothing for them to save."""
    common = environment(settings, secrets)
    api_url, flower_url = local_api_url(settings), f"http://127.0.0.1:{settings.flower_port}"
    flower = [
        "-m", "celery", "-A", "worker.app", "flower", "--address=127.0.0.1", f"--port={settings.flower_port}",
    ]  # fmt: skip
    return [
        Part(
            "api", "API", _python("-m", "api"), common,
            check=partial(health.http_get, f"{api_url}/healthz"), port=settings.api_port, address=api_url,
        ),
        *_workers(settings, common, gpus),
        Part(
            "flower", "Flower", _python(*flower),
            common | {"FLOWER_BASIC_AUTH": f"{settings.flower_user}:{secrets.flower}"},
            check=partial(health.http_get, f"{flower_url}/healthcheck"),
            port=settings.flower_port, address=flower_url,
        ),
    ]  # fmt: skip


def _workers(settings: Settings, common: dict[str, str], gpus: Gpus | None) -> list[Part]:
    """One worker for everything; with GPUs one for each group of them, and one for what needs none."""

    def worker(name: str, title: str, changes: dict[str, str], devices: list[Device] | None = None) -> Part:
        address = "" if devices is None else _ids(devices) or NO_GPU
        part = Part(
            name, title, _python("-m", "worker"), common | changes, address=address,
            check=worker_check(settings, common["DATABASE_URL"], address),
            stop_seconds=WORKER_STOP_SECONDS,
        )  # fmt: skip
        return part if devices is None else _with_devices(part, devices)

    if gpus is None:
        return [worker("worker", "worker", {})]
    number = {queue: f"LATHE_{queue.upper()}_CONCURRENCY" for queue in settings.concurrency}
    by_device = {number[queue]: "0" for queue in DEVICE_QUEUES} | {"LATHE_DEVICE": NONE}
    others = {name: "0" for queue, name in number.items() if queue not in DEVICE_QUEUES}
    found = [worker("worker", "worker", by_device, [])]
    for devices in gpus.workers:
        changes = others | {
            "LATHE_DEVICE": _ids(devices),
            "LATHE_SERVING_DEVICE": _ids(gpus.serving) or NONE,
        }
        numbers = "-".join(str(device.index) for device in devices)
        title = f"worker of {', '.join(map(str, devices))}"
        found.append(worker(f"worker-gpu{numbers}", title, changes, devices))
    return found


def worker_check(settings: Settings, database: str, address: str) -> Check:
    devices = None if not address else [] if address == NO_GPU else address.split(",")
    # A worker signs in at each sweep; it may be late by one.
    within = 3 * settings.sweep_seconds
    return partial(health.worker, database, within_seconds=within, devices=devices)


def local_api_url(settings: Settings) -> str:
    host = settings.api_host
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    return f"http://[{host}]:{settings.api_port}" if ":" in host else f"http://{host}:{settings.api_port}"


def _python(*arguments: str) -> list[str]:
    return postgres.child_argv([sys.executable, *arguments], death_signal="SIGKILL")
