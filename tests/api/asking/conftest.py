"""The API, a worker, and a server of models that they both ask: one installation for all of these tests."""

import json
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from sqlalchemy import Engine, create_engine, text

from api.app import create_app
from db.session import SessionFactory, make_engine, make_session_factory
from db.settings import Settings
from tests.api.asking.oracle import Oracle
from tests.api.serving import serving
from tests.conftest import PostgresServer
from tests.nursery import WORKERS, Child
from tests.waiting import wait_until
from tests.worker.conftest import TOYS, environment

CONCURRENCY = 8
BACKENDS = """
[oracle]
type = "openai"
url = "{url}"
models = ["sage"]
concurrency = {concurrency}
timeout = {{ first_byte = 20 }}
"""
SQL = """
[source.tickets]
url = "{reader}"
query = "SELECT id, question AS input, context, created, price FROM tickets ORDER BY id"

[source.faq]
url = "{reader}"
table = "public.faq"

[source.theirs]
url = "{reader}"
table = "faq"
projects = ["somebody-else"]

[source.slow]
url = "{reader}"
query = "SELECT pg_sleep(5), 1 AS input"
statement_timeout_seconds = 0.3

[source.writing]
url = "{reader}"
query = "SELECT nextval('counter') AS input"

[source.almighty]
url = "{owner}"
table = "faq"

[source.away]
url = "postgresql://reader@127.0.0.1:1/nowhere"
table = "faq"

[target.answers]
url = "{writer}"
table = "public.answers"

[target.unindexed]
url = "{writer}"
table = "notes"
"""
SHOP = """
CREATE TABLE tickets (id int PRIMARY KEY, question text, context text, created date, price numeric);
INSERT INTO tickets SELECT n, 'ticket ' || n, 'of shop ' || n % 3, date '2026-01-01' + n, n / 4.0
FROM generate_series(1, 1200) AS n;
CREATE TABLE faq (question text, answer text, fold int);
INSERT INTO faq SELECT 'What is ' || n || '?', 'It is ' || n || '.', n % 5 FROM generate_series(1, 50) AS n;
CREATE SEQUENCE counter;
CREATE TABLE answers (job_id text, row_key text, answer text, error text, PRIMARY KEY (job_id, row_key));
CREATE TABLE notes (job_id text, row_key text, answer text, error text);
CREATE ROLE reader LOGIN PASSWORD 'reads';
CREATE ROLE writer LOGIN PASSWORD 'writes';
GRANT SELECT ON tickets, faq TO reader;
GRANT USAGE ON SEQUENCE counter TO reader;
GRANT SELECT, INSERT, UPDATE ON answers, notes TO writer;
"""
# Only what such jobs need; the first lease that lapses is found soon.
QUEUES = {
    "train": 0, "gpu": 0, "cpu": 0, "bulk": 0, "hooks": 0, "io": 2, "ask": 2,
}  # fmt: skip
ENDED = ("completed", "failed", "expired", "cancelled")


@dataclass
class Installation:
    """What a test can do to it."""

    settings: Settings
    sessions: SessionFactory
    oracle: Oracle
    folder: Path
    api: httpx.Client
    client: openai.OpenAI
    shop: Engine
    workers: list[Child] = field(default_factory=list)

    def start_worker(self) -> Child:
        own = environment(self.settings)
        own |= {f"LATHE_{queue.upper()}_CONCURRENCY": str(number) for queue, number in QUEUES.items()}
        with (self.folder / f"worker-{len(self.workers)}.log").open("wb") as log:
            worker = WORKERS.start([str(TOYS / "serve_asking.py")], env=own, log=log)
        self.workers.append(worker)
        return worker

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("worker-*.log")))[-5000:]

    def wait_for(self, condition: Callable[[], bool], *, seconds: float = 40) -> None:
        wait_until(condition, seconds=seconds, every=0.1, told=self.logs)

    def upload(self, content: str | bytes, name: str = "rows.jsonl", purpose: Any = "batch") -> str:
        raw = content.encode() if isinstance(content, str) else content
        return self.client.files.create(file=(name, raw), purpose=purpose).id

    def job(self, job_id: str) -> Any:
        return self.api.get(f"/v1/jobs/{job_id}").json()

    def ended(self, job_id: str, *, seconds: float = 40) -> Any:
        ends = ("succeeded", "failed", "cancelled")
        self.wait_for(lambda: self.job(job_id)["status"] in ends, seconds=seconds)
        return self.job(job_id)

    def batch_ended(self, batch_id: str) -> Any:
        self.wait_for(lambda: self.client.batches.retrieve(batch_id).status in ENDED)
        return self.client.batches.retrieve(batch_id)

    def lines(self, file_id: str | None) -> list[Any]:
        assert file_id is not None
        return [json.loads(line) for line in self.client.files.content(file_id).text.splitlines()]

    def events(self, job_id: str) -> list[str]:
        data = self.api.get(f"/v1/jobs/{job_id}/events").json()["data"]
        return [row["message"] for row in data]

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
        for worker in self.workers:
            worker.wait(30)


@pytest.fixture(scope="session")
def shared_installation(
    postgres_server: PostgresServer,
    migrated_template: str,
    valkey_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("asking")
    name = f"asking_{secrets.token_hex(4)}"
    postgres_server.execute(f"CREATE DATABASE {name} TEMPLATE {migrated_template} STRATEGY file_copy")
    oracle = Oracle()
    with serving(oracle) as oracle_url:
        shop = make_shop(postgres_server, folder / "sql.toml")
        (folder / "backends.toml").write_text(BACKENDS.format(url=oracle_url, concurrency=CONCURRENCY))
        settings = Settings(
            database_url=postgres_server.url(name),
            # Another of the server's databases: rings are not to be heard by the workers of other tests.
            redis_url=valkey_url.removesuffix("/0") + "/3",
            data_dir=folder / "data",
            backends=folder / "backends.toml",
            sql=folder / "sql.toml",
            lease_seconds=4.0,
            heartbeat_seconds=0.5,
            sweep_seconds=0.5,
        )
        engine = make_engine(settings.require_database_url())
        with (
            serving(create_app(settings)) as url,
            httpx.Client(base_url=url, timeout=20, trust_env=False) as api,
            openai.OpenAI(
                base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=httpx.Client(trust_env=False)
            ) as client,
        ):
            made = Installation(settings, make_session_factory(engine), oracle, folder, api, client, shop)
            made.start_worker()
            yield made
            made.close()
        engine.dispose()
        shop.dispose()


def make_shop(server: PostgresServer, path: Path) -> Engine:
    """A database of somebody else's, a role that reads and one that writes, and the file that names them."""
    name = f"shop_{secrets.token_hex(4)}"
    server.execute(f"CREATE DATABASE {name}")
    engine = create_engine(server.url(name))
    with engine.begin() as connection:
        connection.execute(text(SHOP))
    place = f"127.0.0.1:{server.port}/{name}"
    owner = server.url(name).replace("postgresql+psycopg2", "postgresql")
    path.write_text(
        SQL.format(
            reader=f"postgresql://reader:reads@{place}",
            writer=f"postgresql://writer:writes@{place}",
            owner=owner,
        )
    )
    return engine


@pytest.fixture
def installation(shared_installation: Installation) -> Installation:
    shared_installation.oracle.forget()
    return shared_installation


def request_line(custom_id: str, question: str, **changes: Any) -> str:
    body = {"model": "sage", "messages": [{"role": "user", "content": question}]}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps({**line, **changes}) + "\n"


def kill(process: Child) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
