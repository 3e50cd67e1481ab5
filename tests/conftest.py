"""Real servers for the tests, started once a session: Postgres and Valkey.

`database_url` is a database of the test's own, cloned from a migrated template (some 50 ms);
`session` is a transaction on a shared one, rolled back at the test's end.
"""

import gc
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session

import migrations
from db.session import SessionFactory, make_engine, make_session_factory
from db.settings import Settings
from deploy.local import postgres, valkey
from serving.local_port import free_port
from worker.steps.runtime import prepare_runtime

REPOSITORY = Path(__file__).parents[1]
# A file is one process's work, and one that begins last is waited for by all: these take longest.
LONGEST_FIRST = (
    "tests/test_main_job.py",
    "tests/worker/histories/test_histories.py",
    "tests/bench/test_chaos.py",
    "tests/worker/steps/test_verify.py",
    "tests/worker/steps/test_planted_faults.py",
    "tests/worker/steps/test_evaluate.py",
    "tests/worker/steps/test_killed_training.py",
    "tests/worker/steps/test_export.py",
    "tests/worker/test_losses.py",
    "tests/worker/test_limits.py",
    "tests/deploy/test_stack.py",
    "tests/deploy/test_gpus.py",
    "tests/api/asking/test_batches.py",
    "tests/worker/test_serve.py",
    "tests/worker/steps/test_resume.py",
    "tests/api/chat_page/test_foreign_pages.py",
    "tests/worker/steps/test_training_together.py",
    "tests/worker/test_going_on.py",
    "tests/worker/steps/test_preferences.py",
    "tests/worker/steps/test_pull.py",
    "tests/worker/test_pushing.py",
    "tests/worker/test_documents.py",
    "tests/api/test_vector_stores.py",
    "tests/worker/test_pausing.py",
    "tests/worker/test_clearing.py",
    "tests/serving/backends/test_ollama_server.py",
)

# A developer's own settings must not reach the tests.
for name in [name for name in os.environ if name.startswith("LATHE_") and name != "LATHE_CACHE_DIR"]:
    del os.environ[name]
for name in ("DATABASE_URL", "REDIS_URL", "OLLAMA_HOST"):
    os.environ.pop(name, None)
# Models this small gain nothing from a second thread, and three processes share the cores. torch reads what
# is set for it when it is imported.
os.environ["LATHE_THREADS"] = "1"
prepare_runtime(threads=1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; within a file, and among the others, the order stays."""
    places = {REPOSITORY / file: place for place, file in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """Let no collection of garbage go through all that was imported and collected, again and again."""
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class PostgresServer:
    port: int
    password: str

    def url(self, database: str) -> str:
        return postgres.database_url(self.port, self.password, database)

    def execute(self, statement: str) -> None:
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(statement))
        engine.dispose()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    folder = tmp_path_factory.mktemp("postgres") / "cluster"
    server = PostgresServer(free_port(), secrets.token_hex(8))
    postgres.initialise(folder, server.password)
    process = subprocess.Popen(
        postgres.server_argv(folder, server.port, durable=False), stderr=subprocess.DEVNULL
    )
    try:
        postgres.wait_until_ready(server.port, server.password)
        yield server
    finally:
        # SIGINT ends it now; SIGTERM would wait for open connections.
        process.send_signal(signal.SIGINT)
        process.wait(30)


@pytest.fixture(scope="session")
def migrated_template(postgres_server: PostgresServer) -> str:
    postgres_server.execute("CREATE DATABASE template_lathe")
    migrations.upgrade(postgres_server.url("template_lathe"))
    return "template_lathe"


@pytest.fixture
def database_url(postgres_server: PostgresServer, migrated_template: str) -> Iterator[str]:
    """A fresh, migrated database, for tests that commit or that use several connections."""
    name = f"test_{secrets.token_hex(6)}"
    postgres_server.execute(f"CREATE DATABASE {name} TEMPLATE {migrated_template} STRATEGY file_copy")
    yield postgres_server.url(name)
    postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def session_factory(engine: Engine) -> SessionFactory:
    return make_session_factory(engine)


@pytest.fixture(scope="session")
def shared_engine(postgres_server: PostgresServer, migrated_template: str) -> Iterator[Engine]:
    postgres_server.execute(f"CREATE DATABASE shared TEMPLATE {migrated_template}")
    engine = create_engine(postgres_server.url("shared"))
    yield engine
    engine.dispose()


@pytest.fixture
def session(shared_engine: Engine) -> Iterator[Session]:
    """A transaction that is rolled back at the test's end."""
    with shared_engine.connect() as connection:
        transaction = connection.begin()
        session = Session(connection, join_transaction_mode="create_savepoint", expire_on_commit=False)
        yield session
        session.close()
        transaction.rollback()


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, password = free_port(), secrets.token_hex(8)
    configuration = valkey.write_configuration(tmp_path_factory.mktemp("valkey"), port, password)
    process = subprocess.Popen(valkey.server_argv(configuration), stdout=subprocess.DEVNULL)
    url = valkey.redis_url(port, password)
    client = redis.Redis.from_url(url)
    deadline = time.monotonic() + 15
    try:
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield url
    finally:
        client.close()
        process.terminate()
        process.wait(15)


@pytest.fixture
def redis_url(valkey_url: str) -> str:
    """The broker, empty."""
    client = redis.Redis.from_url(valkey_url)
    client.flushall()
    client.close()
    return valkey_url


@pytest.fixture
def settings(database_url: str, redis_url: str, tmp_path: Path) -> Settings:
    """The settings of an installation of the test's own."""
    return Settings(
        database_url=database_url,
        redis_url=redis_url,
        data_dir=tmp_path / "data",
        chat_port=free_port(),
        embedding_port=free_port(),
    )
