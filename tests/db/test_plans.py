"""With 100,000 finished jobs, what a submit, a claim and a sweep ask still goes by indexes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import ColumnElement, Engine, create_engine, event, text
from sqlalchemy.orm import Session

from db.models import Document
from db.queries.answers import BY_FINGERPRINT, BY_KEY, FORGET
from db.queries.documents import count_by_status
from db.queries.outlook import LINE_UP_TO, RUNNING, TYPICAL
from db.queries.runtime import RUNTIME
from db.settings import Settings
from db.states import DocumentStatus
from retention import RULES, House, Rule
from tests.conftest import PostgresServer
from tests.rows import add_job
from worker.claim import BEST_STEP, HAS_WORK, QUEUES_WITH_WORK
from worker.housekeeping import CHECKPOINTS_FOR, FOLDERS_FOR
from worker.leavings import dead_attempts, ended_within, no_longer_of_use
from worker.sweep import RUNNING as RUNNING_ATTEMPTS

# The triggers that guard moves cost a history like this one most of its time, and say nothing of plans.
HISTORY = """
    SET LOCAL session_replication_role = replica;
    INSERT INTO jobs (id, project_id, kind, status, params, priority, max_attempts, finished_at)
    SELECT 'job-' || lpad(n::text, 32, '0'), 'default', 'pretrain', 'succeeded', '{}', 0, 3,
           now() - n * interval '10 minutes'
    FROM generate_series(1, 100000) AS n;
    INSERT INTO steps (job_id, name, position, queue, status, attempt, failures, finished_at)
    SELECT 'job-' || lpad(n::text, 32, '0'), 'train', 0, 'train', 'succeeded', 1, 0,
           now() - n * interval '10 minutes'
    FROM generate_series(1, 100000) AS n;
    INSERT INTO attempts (step_id, project_id, queue, number, worker, host, ended_at, outcome)
    SELECT id, 'default', 'train', 1, 'w', 'h', finished_at, 'done' FROM steps;
    INSERT INTO attempts (step_id, project_id, queue, number, worker, host, ended_at, outcome)
    SELECT id, 'default', 'train', 2, 'w', 'h', finished_at, 'lost' FROM steps WHERE id % 5 = 0;
    INSERT INTO checkpoints (id, job_id, attempt, step_number, path, metrics)
    SELECT 'checkpoint-' || id, job_id, 1, 1, 'jobs/' || job_id || '/train/1/checkpoint-1', '{}' FROM steps;
    INSERT INTO answers (project_id, path, key, fingerprint, status, body, expires_at)
    SELECT 'default', '/v1/jobs', n::text, sha256(n::text::bytea), 202, '{}', now() + interval '1 day'
    FROM generate_series(1, 100000) AS n;
    INSERT INTO documents (id, project_id, collection_id, file_id, filename, content_hash, status, attributes,
                           chunking, configuration, chunk_count, usage_bytes)
    SELECT 'doc-' || n, 'default', 'vs-1', 'file-' || n, 'f', n::text,
           CASE WHEN n % 1000 = 0 THEN 'in_progress' ELSE 'completed' END, '{}', '{}', 'simple', 1, 1
    FROM generate_series(1, 10000) AS n;
"""


@pytest.fixture(scope="module")
def engine(postgres_server: PostgresServer, migrated_template: str) -> Iterator[Engine]:
    postgres_server.execute(f"CREATE DATABASE history TEMPLATE {migrated_template} STRATEGY file_copy")
    engine = create_engine(postgres_server.url("history"))
    with Session(engine) as session, session.begin():
        session.execute(text(HISTORY))
        add_job(session, params={"name": "next"})
    with engine.begin() as connection:
        connection.execute(text("ANALYZE jobs, steps, attempts, checkpoints, answers, documents"))
    yield engine
    engine.dispose()
    postgres_server.execute("DROP DATABASE history WITH (FORCE)")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_what_ages_out_is_found_by_indexes(engine: Engine, rule: Rule, tmp_path: Path) -> None:
    kept = {name: 30.0 for name in Settings.model_fields if re.fullmatch(r"keep_\w+_days", name)}
    house = House(Settings(data_dir=tmp_path, **kept))
    asked: list[tuple[str, Any]] = []
    with Session(engine) as session:
        connection = session.connection()
        event.listen(
            connection,
            "before_cursor_execute",
            lambda connection, cursor, statement, parameters, *_: asked.append((statement, parameters)),
        )
        rule.find(session, house, None, 50)
        for statement, parameters in list(asked):
            plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars())
            assert "Seq Scan on jobs" not in plan, plan


@pytest.mark.parametrize(
    "which",
    [ended_within(FOLDERS_FOR), no_longer_of_use(CHECKPOINTS_FOR)],
    ids=["ended_within", "no_longer_of_use"],
)
def test_what_dead_attempts_left_is_found_by_indexes(engine: Engine, which: ColumnElement[bool]) -> None:
    with Session(engine) as session:
        connection = session.connection()
        asked: list[tuple[str, Any]] = []
        event.listen(
            connection,
            "before_cursor_execute",
            lambda connection, cursor, statement, parameters, *_: asked.append((statement, parameters)),
        )
        dead_attempts(session, which)
        [(statement, parameters)] = asked
        plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars())
    assert "Seq Scan" not in plan, plan
    # And no index from end to end either.
    assert re.search(r"Index Cond: \((attempts\.)?ended_at|ix_jobs_finished_at", plan), plan


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        (BEST_STEP, {"queue": "train", "depth": 64}),
        (LINE_UP_TO, {"queue": "train", "depth": 1000, "step_id": 1}),
        (RUNNING, {"queue": "train"}),
        (TYPICAL, {"kind": "pretrain"}),
        (RUNTIME, {"job_id": "job-" + "7".rjust(32, "0")}),
        (HAS_WORK, {"queue": "train"}),
        (RUNNING_ATTEMPTS, {"status_1": "running"}),
        (QUEUES_WITH_WORK, {}),
        (
            BY_KEY,
            {"projects": ["default"] * 32, "paths": ["/v1/jobs"] * 32, "keys": [str(n) for n in range(32)]},
        ),
        (BY_FINGERPRINT, {"fingerprint": b"\0" * 32, "minutes": 10}),
        (FORGET, {"limit": 50_000}),
        (text("SELECT * FROM jobs WHERE project_id = 'default' ORDER BY id DESC LIMIT 21"), {}),
        (text("SELECT * FROM jobs WHERE id = 'job-' || lpad('7', 32, '0')"), {}),
    ],
    ids=[
        "claim",
        "line",
        "running",
        "typical",
        "runtime",
        "has_work",
        "running_attempts",
        "queues_with_work",
        "by_key",
        "by_fingerprint",
        "forget",
        "list",
        "get",
    ],
)
def test_plan_reads_no_table_from_end_to_end(
    engine: Engine, statement: object, values: dict[str, object]
) -> None:
    with engine.connect() as connection:
        plan = "\n".join(connection.execute(text(f"EXPLAIN {statement}"), values).scalars())
    assert "Index" in plan
    assert "Seq Scan" not in plan, plan


def test_a_claim_finds_each_job_by_its_id(engine: Engine) -> None:
    """By statistics that are older than the queue, to read all unfinished jobs for each step looks cheap."""
    with engine.connect() as connection:
        plan = "\n".join(
            connection.execute(text(f"EXPLAIN {BEST_STEP}"), {"queue": "train", "depth": 64}).scalars()
        )
    assert "ix_jobs_unfinished" not in plan, plan


def test_a_search_counts_what_is_being_read_without_the_rest(engine: Engine) -> None:
    asked: list[tuple[str, Any]] = []
    with Session(engine) as session:
        connection = session.connection()
        event.listen(
            connection,
            "before_cursor_execute",
            lambda connection, cursor, statement, parameters, *_: asked.append((statement, parameters)),
        )
        unread = (Document.collection_id.in_(["vs-1"]), Document.status == DocumentStatus.IN_PROGRESS)
        assert sum(count_by_status(session, *unread).values()) == 10
        [(statement, parameters)] = asked
        plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars())
    assert "ix_documents_unfinished" in plan, plan
