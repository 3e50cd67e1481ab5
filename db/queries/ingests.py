"""What an ingest does to its collection besides bringing in its own documents."""

from collections.abc import Sequence

from sqlalchemy import delete
from sqlalchemy.orm import Session

from db.models import Document, Job
from db.queries.jobs import add_event
from db.states import DocumentStatus


def assign(session: Session, documents: Sequence[Document], job: Job) -> None:
    """Let a job ingest documents; what another job still does for them no longer counts.

    Those that are ready without being read take the place of older ones at once.
    """
    for document in documents:
        document.job_id = job.id
    session.flush()
    for document in documents:
        if document.status == DocumentStatus.COMPLETED:
            replace_older(session, job, document)


def replace_older(
    session: Session, job: Job, document: Document, *, step: str | None = None, attempt: int | None = None
) -> None:
    """If its job is to, let a document that is ready take the place of older ones of its file name."""
    if not job.params.get("replace"):
        return
    older = delete(Document).where(
        Document.collection_id == document.collection_id,
        Document.filename == document.filename,
        Document.id < document.id,
    )
    if replaced := session.scalars(older.returning(Document.file_id)).all():
        message = f"{document.filename} takes the place of {', '.join(replaced)}."
        add_event(session, job.id, message, step=step, attempt=attempt, data={"replaced": list(replaced)})
