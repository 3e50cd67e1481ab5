"""Rows that grow without end: events, metrics, deliveries, audit entries; and files whose time is over."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, exists, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from db.models import AuditEntry, Document, Event, File, Job, StoredResponse, Upload, WebhookDelivery
from db.queries.files import names_file
from db.queries.retention import is_note
from db.states import ENDED_JOB
from db.storage import job_folder, upload_folder
from retention.jobs import OfEndedJobs, note
from retention.rule import Batch, Expired, House, Removal, Rule, freed_bytes

# Of one job in one transaction.
ROWS_AT_ONCE = 10_000


class Events(OfEndedJobs):
    """What a job said, and the logs of its attempts."""

    kind = "events"
    setting = "keep_events_days"
    noun = "Its events and logs"

    def aged(self) -> ColumnElement[bool]:
        return and_(Event.type != "metrics", ~is_note())

    def which(self) -> ColumnElement[bool]:
        return exists().where(Event.job_id == Job.id, self.aged())

    def look(self, session: Session, house: House, job: Job) -> Expired | None:
        rows = select(func.count()).where(Event.job_id == job.id, self.aged())
        size = sum(map(freed_bytes, self._logs(house, job)))
        return Expired(self.kind, job.id, self.why(house), size, session.scalars(rows).one())

    def remove_of(self, session: Session, house: House, job: Job) -> Removal:
        some = select(Event.id).where(Event.job_id == job.id, self.aged()).order_by(Event.id)
        removed = session.scalars(
            delete(Event).where(Event.id.in_(some.limit(ROWS_AT_ONCE))).returning(Event.id)
        ).all()
        if len(removed) == ROWS_AT_ONCE:
            return Removal.MORE
        for path in self._logs(house, job):
            path.unlink(missing_ok=True)
        note(session, job, f"{self.noun} were removed: they are {self.why(house)}.", self.kind)
        return Removal.DONE

    def _logs(self, house: House, job: Job) -> list[Any]:
        return list(job_folder(house.root, job.id).glob("*/*.log"))


class Metrics(Events):
    """What a job measured."""

    kind = "metrics"
    setting = "keep_metrics_days"
    noun = "Its metrics"

    def aged(self) -> ColumnElement[bool]:
        return Event.type == "metrics"

    def _logs(self, house: House, job: Job) -> list[Any]:
        return []


class OldRows:
    """Rows that stand for themselves, such as webhook deliveries that came to an end. All that may go is one
    thing.

    Args:
        setting: names the days after `moment`; None: for ever.
        moment: a column with an index; a row where it is NULL stays.
    """

    def __init__(
        self, kind: str, setting: str, ids: InstrumentedAttribute[Any], moment: InstrumentedAttribute[Any]
    ) -> None:
        self.kind = kind
        self._setting, self._ids, self._moment = setting, ids, moment

    def find(self, session: Session, house: House, cursor: Any, limit: int) -> Batch:
        days = self._days(house)
        if days is None:
            return Batch()
        rows = session.scalars(select(func.count()).select_from(self._some(days).subquery())).one()
        why = f"kept for {days:g} days"
        return Batch([Expired(self.kind, "finished", why, rows=rows)] if rows else [])

    def remove(self, session: Session, house: House, item: Expired) -> Removal:
        days = self._days(house)
        if days is None:
            return Removal.KEPT
        some = self._some(days).with_for_update(skip_locked=True)
        gone = delete(self._ids.class_).where(self._ids.in_(some)).returning(self._ids)
        return Removal.MORE if len(session.scalars(gone).all()) == ROWS_AT_ONCE else Removal.DONE

    def _days(self, house: House) -> float | None:
        days: float | None = getattr(house.settings, self._setting)
        return days

    def _some(self, days: float) -> Any:
        query = select(self._ids).where(self._moment.is_not(None), self._moment <= _days_ago(days))
        return query.order_by(self._moment).limit(ROWS_AT_ONCE)


def _days_ago(days: float) -> ColumnElement[Any]:
    return func.statement_timestamp() - func.make_interval(0, 0, 0, 0, 0, 0, days * 86_400)


def _page(
    session: Session, table: Any, which: ColumnElement[bool], cursor: str | None, limit: int
) -> tuple[Sequence[Any], str | None]:
    """Rows in the order of their ids, and the cursor for the next ones; None when these are the last."""
    query = select(table).where(which).order_by(table.id).limit(limit)
    rows = session.scalars(query.where(table.id > cursor) if cursor else query).all()
    return rows, rows[-1].id if len(rows) == limit else None


class OldFiles:
    """A rule about files: which may go, and why."""

    kind = ""

    def find(self, session: Session, house: House, cursor: str | None, limit: int) -> Batch:
        which = self.which(house)
        if which is None:
            return Batch()
        files, after = _page(session, File, which, cursor, limit)
        items = [
            Expired(
                self.kind,
                file.id,
                f"{file.filename}: {self.why(house)}",
                freed_bytes(house.root / file.path),
                1,
            )
            for file in files
        ]
        return Batch(items, after, more=after is not None)

    def remove(self, session: Session, house: House, item: Expired) -> Removal:
        which = self.which(house)
        if which is None:
            return Removal.KEPT
        # The lock first: whoever submits a job takes a share of it, and is seen by the second look.
        file = session.get(File, item.id, with_for_update={"skip_locked": True})
        if file is None or not session.scalars(select(which).where(File.id == item.id)).one():
            return Removal.KEPT
        path = house.root / file.path
        if path.exists():
            house.discard(path)
        session.delete(file)
        return Removal.DONE

    def which(self, house: House) -> ColumnElement[bool] | None:
        raise TypeError("a rule says which files may go")

    def why(self, house: House) -> str:
        raise TypeError("a rule says why")


class UnusedFiles(OldFiles):
    """Files that no job names, not even one that has ended."""

    kind = "file"

    def which(self, house: House) -> ColumnElement[bool] | None:
        days = house.settings.keep_unused_files_days
        if days is None:
            return None
        held = exists().where(Document.file_id == File.id)
        return and_(File.created_at <= _days_ago(days), ~exists().where(names_file(File.id)), ~held)

    def why(self, house: House) -> str:
        return f"named by no job, kept for {house.settings.keep_unused_files_days:g} days"


class ExpiredFiles(OldFiles):
    """Files whose time is over, with their documents, once no job needs them that began before."""

    kind = "expired file"

    def which(self, house: House) -> ColumnElement[bool] | None:
        needed = exists().where(names_file(File.id), Job.status.not_in(ENDED_JOB))
        read = exists().where(
            Document.file_id == File.id, Document.job_id == Job.id, Job.status.not_in(ENDED_JOB)
        )
        over = and_(File.expires_at.is_not(None), File.expires_at <= func.statement_timestamp())
        return and_(over, ~needed, ~read)

    def why(self, house: House) -> str:
        return "its time is over"


class OldUploads:
    """Uploads of large files that are over: with their parts, where they were not completed."""

    kind = "large upload"
    # After it has expired, for one that is being put together at that moment.
    grace = timedelta(hours=1)

    def find(self, session: Session, house: House, cursor: str | None, limit: int) -> Batch:
        uploads, after = _page(session, Upload, self._over(), cursor, limit)
        items = [
            Expired(
                self.kind,
                row.id,
                f"{row.filename}: its hour is over",
                freed_bytes(self._parts(house, row.id)),
                1,
            )
            for row in uploads
        ]
        return Batch(items, after, more=after is not None)

    def remove(self, session: Session, house: House, item: Expired) -> Removal:
        upload = session.scalars(
            select(Upload).where(Upload.id == item.id, self._over()).with_for_update(skip_locked=True)
        ).one_or_none()
        if upload is None:
            return Removal.KEPT
        parts = self._parts(house, upload.id)
        if parts.exists():
            house.discard(parts)
        session.delete(upload)
        return Removal.DONE

    def _parts(self, house: House, upload_id: str) -> Path:
        return upload_folder(house.root, upload_id)

    def _over(self) -> ColumnElement[bool]:
        return Upload.expires_at <= func.statement_timestamp() - self.grace


RECORDS: tuple[Rule, ...] = (
    Events(),
    Metrics(),
    OldRows("webhook deliveries", "keep_deliveries_days", WebhookDelivery.id, WebhookDelivery.finished_at),
    OldRows("audit entries", "keep_audit_days", AuditEntry.id, AuditEntry.created_at),
    OldRows("stored responses", "keep_responses_days", StoredResponse.id, StoredResponse.last_used_at),
    UnusedFiles(),
    ExpiredFiles(),
    OldUploads(),
)
