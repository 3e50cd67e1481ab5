"""Measured values as curves: what a later attempt measured again counts, and long ones are thinned."""

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from db.errors import Unavailable
from db.queries.jobs import add_event
from db.queries.series import Series, metric_series
from db.session import SessionFactory
from tests.rows import add_job


@pytest.fixture
def job_id(session: Session) -> str:
    return add_job(session, params={"name": "p"}).id


def measure(session: Session, job_id: str, attempt: int, **values: float | str | None) -> None:
    add_event(session, job_id, "", type="metrics", step="train", attempt=attempt, data=values)


def series_of(session: Session, job_id: str, points: int = 100) -> tuple[dict[str, Series], int]:
    session.flush()
    found, superseded = metric_series(session, job_id, points=points)
    return {series.name: series for series in found}, superseded


def test_each_value_is_a_series_over_the_training_steps(session: Session, job_id: str) -> None:
    measure(session, job_id, 1, step=10, loss=2.0, learning_rate=0.1)
    measure(session, job_id, 1, step=20, loss=1.0, learning_rate=0.05)
    measure(session, job_id, 1, step=20, eval_loss=1.5)
    measure(session, job_id, 1, text_tokens=7)  # at no step
    measure(session, job_id, 1, step=30, loss=None, note="a word")  # not a number
    found, superseded = series_of(session, job_id)
    assert found["loss"] == Series("train", "loss", 2, [10, 20], [2.0, 1.0], [1, 1])
    assert found["eval_loss"] == Series("train", "eval_loss", 1, [20], [1.5], [1])
    assert set(found) == {"loss", "learning_rate", "eval_loss"}
    assert superseded == 0


def test_from_where_a_later_attempt_began_only_it_counts(session: Session, job_id: str) -> None:
    for step in (10, 20, 30, 40):
        measure(session, job_id, 1, step=step, loss=step + 0.1)
    for step in (25, 30):  # it went on from a checkpoint at 20, and measures at other steps
        measure(session, job_id, 2, step=step, loss=step + 0.2)
    measure(session, job_id, 3, step=30, loss=30.3)
    found, superseded = series_of(session, job_id)
    loss = found["loss"]
    assert (loss.measured, loss.steps, loss.attempts) == (4, [10, 20, 25, 30], [1, 1, 2, 3])
    assert loss.values == [10.1, 20.1, 25.2, 30.3]
    assert superseded == 3


def test_an_attempt_that_began_anew_replaces_everything(session: Session, job_id: str) -> None:
    measure(session, job_id, 1, step=10, loss=1.0)
    measure(session, job_id, 1, step=20, loss=0.5)
    measure(session, job_id, 2, step=1, loss=9.0)
    assert series_of(session, job_id)[0]["loss"].values == [9.0]


def test_a_long_series_is_thinned_and_keeps_its_ends_and_its_spikes(session: Session, job_id: str) -> None:
    values = [1000.0 - number for number in range(1000)]
    values[637] = 5000.0
    for number, value in enumerate(values):
        measure(session, job_id, 1, step=number, loss=value)
    measure(session, job_id, 1, step=999, eval_loss=3.0)
    found, _ = series_of(session, job_id, points=50)
    loss = found["loss"]
    assert loss.measured == 1000
    assert 40 <= len(loss.steps) <= 50
    assert loss.steps == sorted(loss.steps)
    assert (loss.values[0], loss.values[-1], max(loss.values)) == (1000.0, 1.0, 5000.0)
    assert all(values[step] == value for step, value in zip(loss.steps, loss.values, strict=True))
    assert found["eval_loss"].values == [3.0]


def test_a_job_that_measured_nothing_has_none(session: Session, job_id: str) -> None:
    assert series_of(session, job_id) == ({}, 0)


def test_is_not_waited_for_without_end(session_factory: SessionFactory) -> None:
    with session_factory() as other, session_factory() as session:
        other.execute(text("LOCK TABLE events IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(Unavailable, match="GET /v1/jobs/job-1/metrics") as refused:
            metric_series(session, "job-1", points=10, patience_seconds=0.05)
    assert refused.value.code == "takes_too_long"
