"""Documents of collections. What is ingested, and by which job, is decided here."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, case, delete, func, literal, or_, select, text, update
from sqlalchemy.orm import Session

from db.errors import NotFound
from db.ids import new_id
from db.models import Chunk, Collection, Document, File, Job
from db.states import ENDED_JOB, DocumentStatus, JobStatus

# What is said of a document whose job has ended without it.
STATUS: ColumnElement[str] = case(
    (Document.status != DocumentStatus.IN_PROGRESS, Document.status),
    (Job.status == JobStatus.FAILED, str(DocumentStatus.FAILED)),
    (
        or_(Job.id.is_(None), Job.status.in_([*ENDED_JOB, JobStatus.CANCELLING])),
        str(DocumentStatus.CANCELLED),
    ),
    else_=str(DocumentStatus.IN_PROGRESS),
).label("status")

COPY_CHUNKS = text(
    """
    INSERT INTO chunks (project_id, collection_id, document_id, position, text, start_char, end_char,
                        first_page, last_page, section, tokens, configuration, embedding)
    SELECT project_id, collection_id, :target, position, text, start_char, end_char,
           first_page, last_page, section, tokens, configuration, embedding
    FROM chunks WHERE document_id = :source
    """
)
# What a twin of the same content knows already.
READ_COLUMNS = (
    "text",
    "page_starts",
    "page_labels",
    "pages",
    "details",
    "language",
    "configuration",
    "chunk_count",
    "usage_bytes",
)


def add_documents(
    session: Session,
    collection: Collection,
    files: Sequence[File],
    *,
    attributes: Sequence[dict[str, Any]],
    chunking: Sequence[dict[str, int]],
    passwords: Sequence[str | None],
    languages: Sequence[str | None] | None = None,
) -> list[Document]:
    """Put files into a collection. One that is there already, cut as asked for and in the language that may
    be given, costs nothing; neither does the content of another such document of the collection. What is
    left to be ingested is `in_progress`, and waits for `db.queries.ingests.assign`.

    Args:
        collection: locked by the caller.
        languages: names; of those that are None, and by default all, it is detected.
    """
    query = select(Document).where(
        Document.collection_id == collection.id, Document.file_id.in_([file.id for file in files])
    )
    there = {document.file_id: document for document in session.scalars(query)}
    documents = []
    languages = languages or [None] * len(files)
    for file, own, cut, password, language in zip(
        files, attributes, chunking, passwords, languages, strict=True
    ):
        document = there.get(file.id)
        if document is None:
            document = Document(
                id=new_id("doc"),
                project_id=collection.project_id,
                collection_id=collection.id,
                file_id=file.id,
                filename=file.filename,
                content_hash=file.sha256,
                chunking=cut,
            )
            session.add(document)
        elif (
            document.status == DocumentStatus.COMPLETED
            and document.chunking == cut
            and language in (None, document.language)
        ):
            document.attributes = own
            documents.append(document)
            continue
        document.attributes, document.chunking, document.password = own, cut, password
        document.language = language
        document.status, document.error = str(DocumentStatus.IN_PROGRESS), None
        documents.append(document)
    session.flush()
    for document in documents:
        if document.status == DocumentStatus.IN_PROGRESS and not _may_be_loading(session, document):
            _take_from_twin(session, document)
    return documents


def _may_be_loading(session: Session, document: Document) -> bool:
    """Whether a job is at it, whose rows of it we would wait for while it waits for the collection."""
    running = select(Job.id).where(Job.id == document.job_id, Job.status.not_in(ENDED_JOB))
    return document.job_id is not None and session.scalars(running).first() is not None


def _take_from_twin(session: Session, document: Document) -> None:
    query = (
        select(Document)
        .where(
            Document.collection_id == document.collection_id,
            Document.content_hash == document.content_hash,
            Document.chunking == document.chunking,
            Document.status == DocumentStatus.COMPLETED,
            Document.id != document.id,
            or_(Document.language == document.language, literal(document.language is None)),
        )
        .limit(1)
    )
    twin = session.scalars(query).first()
    if twin is None:
        return
    session.execute(delete(Chunk).where(Chunk.document_id == document.id))
    session.execute(COPY_CHUNKS, {"source": twin.id, "target": document.id})
    for name in READ_COLUMNS:
        setattr(document, name, getattr(twin, name))
    document.status, document.completed_at = str(DocumentStatus.COMPLETED), func.clock_timestamp()
    document.password = None
    session.flush()


def forget_passwords(session: Session, job_id: str) -> None:
    """Forget what would open a job's documents, read or not."""
    session.execute(
        update(Document)
        .where(Document.job_id == job_id, Document.password.is_not(None))
        .values(password=None)
    )


def documents_of_job(session: Session, job_id: str) -> Sequence[Document]:
    """The documents that a job has not brought in yet, in the order in which they were given."""
    query = (
        select(Document)
        .where(Document.job_id == job_id, Document.status != DocumentStatus.COMPLETED)
        .order_by(Document.id)
    )
    return session.scalars(query).all()


def get_document(
    session: Session, collection_id: str, file_id: str, *, project_id: str, lock: bool = False
) -> Document:
    """Find a document by its file.

    Raises:
        NotFound: the collection has none of that file.
    """
    query = select(Document).where(
        Document.collection_id == collection_id,
        Document.file_id == file_id,
        Document.project_id == project_id,
    )
    if lock:
        query = query.with_for_update(key_share=True)
    document = session.scalars(query).one_or_none()
    if document is None:
        raise NotFound(f"The collection {collection_id} has no file {file_id!r}.", param="file_id")
    return document


def document_as_told(session: Session, document_id: str) -> tuple[Document, str, dict[str, Any] | None]:
    """A document with its status as it is said, and why it failed: all of one moment."""
    query = (
        select(Document, STATUS, Job.error)
        .outerjoin(Job, Job.id == Document.job_id)
        .where(Document.id == document_id)
        .execution_options(populate_existing=True)
    )
    row = session.execute(query).one()
    return row[0], row.status, _error(row[0], row.status, row.error)


def _error(document: Document, status: str, job_error: dict[str, Any] | None) -> dict[str, Any] | None:
    return (document.error or job_error) if status == DocumentStatus.FAILED else None


def list_documents(
    session: Session,
    *,
    collection_id: str,
    file_ids: Sequence[str] | None = None,
    status: str | None = None,
    after: str | None = None,
    before: str | None = None,
    limit: int = 20,
    ascending: bool = False,
) -> tuple[list[tuple[Document, str, dict[str, Any] | None]], bool]:
    """One page of documents, each with its status and its error, and whether there are more.

    Args:
        file_ids: of these alone.
        after, before: ids of files. The document of one may have been taken out since, by who reads the list
            to empty the collection: then the place is where the file comes among those that were uploaded.
    """
    backwards = before is not None and after is None
    query = (
        select(Document, STATUS, Job.error)
        .outerjoin(Job, Job.id == Document.job_id)
        .where(Document.collection_id == collection_id)
    )
    if file_ids is not None:
        query = query.where(Document.file_id.in_(file_ids))
    if status is not None:
        query = query.where(STATUS.in_([status]))
    for mark, up in ((after, ascending), (before, not ascending)):
        if mark is not None:
            there = select(Document.id).where(
                Document.collection_id == collection_id, Document.file_id == mark
            )
            place = session.scalars(there).one_or_none()
            column, beside = (Document.id, place) if place is not None else (Document.file_id, mark)
            query = query.where(column > beside if up else column < beside)
    order = Document.id if ascending != backwards else Document.id.desc()
    rows = session.execute(query.order_by(order).limit(limit + 1)).all()
    found = [(row[0], row.status, _error(row[0], row.status, row.error)) for row in rows[:limit]]
    return (found[::-1] if backwards else found), len(rows) > limit


def counts_of_job(session: Session, job: Job) -> dict[str, int]:
    """The documents that an ingest was asked for, by status: one that another ingest was asked for since, and
    is at, is not there yet for either of them."""
    collection_id, file_ids = job.params["collection"], job.params["files"]
    return count_by_status(session, Document.collection_id == collection_id, Document.file_id.in_(file_ids))


def count_by_status(session: Session, *where: ColumnElement[bool]) -> dict[str, int]:
    """The documents that meet the conditions, by status."""
    query = (
        select(STATUS, func.count())
        .select_from(Document)
        .outerjoin(Job, Job.id == Document.job_id)
        .where(*where)
        .group_by(STATUS)
    )
    counts = dict.fromkeys(map(str, DocumentStatus), 0)
    for status, number in session.execute(query):
        counts[status] = number
    return counts


def unfinished_document_of(session: Session, file_id: str) -> Document | None:
    """A document that a job is to read from this file."""
    query = (
        select(Document)
        .join(Job, and_(Job.id == Document.job_id, Job.status.not_in(ENDED_JOB)))
        .where(Document.file_id == file_id, Document.status == DocumentStatus.IN_PROGRESS)
    )
    return session.scalars(query.limit(1)).first()
