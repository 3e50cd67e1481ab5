"""Looking for jobs stays cheap however many have ended."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.orm import Session

from db.models import Job
from db.queries.base_models import resolve_base_model
from db.queries.jobs import list_jobs
from db.settings import Settings
from db.states import ENDED_JOB, JobStatus


@pytest.fixture
def history(session: Session) -> None:
    session.execute(
        text(
            "INSERT INTO jobs (id, project_id, kind, status, params, priority, max_attempts, finished_at) "
            "SELECT 'job-' || n, 'default', 'pretrain', 'succeeded', '{}', 0, 3, now() "
            "FROM generate_series(1, 5000) AS n"
        )
    )
    session.execute(text("ANALYZE jobs"))


@contextmanager
def plans(session: Session) -> Iterator[list[str]]:
    """The plans of the block's queries of jobs."""
    asked: list[tuple[str, Any]] = []
    connection = session.connection()

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        if "FROM jobs" in statement:
            asked.append((statement, parameters))

    found: list[str] = []
    event.listen(connection, "before_cursor_execute", note)
    yield found
    event.remove(connection, "before_cursor_execute", note)
    for statement, parameters in asked:
        rows = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
        found.append("\n".join(rows.scalars()))


@pytest.mark.usefixtures("history")
class TestUnfinishedJobs:
    def test_are_found_by_their_own_index(self, session: Session) -> None:
        with plans(session) as found:
            session.scalars(
                select(Job).where(Job.project_id == "default", Job.status.not_in(ENDED_JOB))
            ).all()
            list_jobs(session, project_id="default", status=JobStatus.RUNNING)
        assert len(found) == 2
        assert all("ix_jobs_unfinished" in plan for plan in found), found

    def test_that_make_a_base_model_too(self, session: Session, settings: Settings) -> None:
        with plans(session) as found:
            resolve_base_model(session, settings, "default", "tiny")
        assert any("ix_jobs_unfinished" in plan for plan in found), found
