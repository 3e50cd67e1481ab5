"""Documents on their way into the database: what a job is to ingest, and what its steps say of each.

Steps write files and never touch the database. Here a document's chunks are loaded under the fence, in one
transaction with its row: whoever is killed in between, it is there whole, or as it was before.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy import delete, func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from db.languages import SIMPLE, UNSPACED
from db.models import Chunk, Collection, Document, Job
from db.queries.collections import touch
from db.queries.documents import documents_of_job
from db.queries.files import get_file
from db.queries.ingests import replace_older
from db.queries.jobs import get_job
from db.states import DocumentStatus
from db.storage import job_folder
from db.wording import counted
from retrieval.copy_rows import COLUMNS
from worker.claim import Claim, say
from worker.lease import hold_fence
from worker.step import DocumentInput, Message

COPY = f"COPY chunks ({', '.join(COLUMNS)}) FROM STDIN (FORMAT binary)"
# Slow on purpose: the lease has to outlast the loading of what is announced.
ROWS_A_SECOND = 500
MIXED = "embedding_model_changed"


def documents_to_ingest(session: Session, claim: Claim, root: Path, job: Job) -> list[DocumentInput]:
    """The documents that a job has still to bring in; one that failed is tried again with its step.

    Args:
        job: locked by the caller. What its first step could not read is nothing to its second.
    """
    if claim.step == "index":
        return []  # what failed before has failed
    extracted = next((step.result for step in job.steps if step.name == "extract"), None)
    readable = {row["id"] for row in extracted["documents"]} if extracted else None
    found = []
    for document in documents_of_job(session, claim.job_id):
        if readable is not None and document.id not in readable:
            continue
        file = get_file(session, document.file_id, project_id=claim.project_id, also_expired=True)
        document.status, document.error = str(DocumentStatus.IN_PROGRESS), None
        found.append(
            DocumentInput(
                id=document.id,
                project_id=document.project_id,
                collection_id=document.collection_id,
                path=root / file.path,
                filename=document.filename,
                chunk_tokens=document.chunking["max_tokens"],
                chunk_overlap_tokens=document.chunking["overlap_tokens"],
                password=document.password,
                language=document.language,
            )
        )
    return found


def write_document(session: Session, claim: Claim, folder: Path, message: Message) -> bool:
    """Write what a step says of a document: that it failed, or its content and its chunks.

    Args:
        folder: the attempt's, which the message's paths are relative to.
    Raises:
        LeaseLost: the attempt is no longer current.
    """
    step = hold_fence(session, claim)
    step.progressed_at = func.clock_timestamp()
    error = message.get("error")
    if error is None:
        with session.begin_nested() as loading:
            document, error = _load(session, claim, folder, message)
            if document is None or error is not None:
                loading.rollback()
    document = _locked(session, claim, message["document_id"])
    if document is None:
        say(session, claim, _lost(session, message["document_id"]))
    elif error is not None:
        document.status, document.error, document.password = str(DocumentStatus.FAILED), error, None
        say(session, claim, f"{document.filename}: {error['message']}", level="warn", code=error["code"])
    else:
        job = get_job(session, claim.job_id, project_id=claim.project_id)
        replace_older(session, job, document, step=claim.step, attempt=claim.attempt)
        figures: dict[str, Any] = {"chunks": document.chunk_count, "language": document.language}
        say(session, claim, _loaded(document), document_id=document.id, **figures)
    return True


def _lost(session: Session, document_id: str) -> str:
    """What is told of a document that is not this job's to write any more."""
    query = select(Document.filename).where(Document.id == document_id)
    filename = session.scalars(query).one_or_none()
    if filename is None:
        return "A document was taken out of the collection before it was ready."
    return f"{filename} is left to another job, which was asked for it since."


def _loaded(document: Document) -> str:
    """What is told of a document that can be searched now."""
    pages = f" of {counted(document.pages, 'page')}" if document.pages else ""
    words = ""
    if document.language in UNSPACED:
        words = ", words found by pairs of characters"
    elif document.configuration == SIMPLE:
        words = ", words found as they are written"
    language = "no known language" if document.language == SIMPLE else document.language
    chunks = counted(document.chunk_count, "chunk")
    return f"{document.filename} can be searched: {chunks}{pages}, {language}{words}."


def remove_loaded(root: Path, job_id: str) -> None:
    """Remove what the steps of a finished ingest wrote for the database; manifests and logs stay."""
    for path in job_folder(root, job_id).glob("*/*/doc-*"):
        with contextlib.suppress(OSError):
            path.unlink()


def _locked(session: Session, claim: Claim, document_id: str) -> Document | None:
    """The document, locked after its collection, if it is still this job's to write."""
    collection_ids = select(Document.collection_id).where(Document.id == document_id).scalar_subquery()
    locking = select(Collection.id).where(Collection.id == collection_ids)
    session.execute(locking.with_for_update(key_share=True))
    query = select(Document).where(Document.id == document_id, Document.job_id == claim.job_id)
    return session.scalars(query.with_for_update(key_share=True)).one_or_none()


def _mixing(session: Session, document: Document, message: Message) -> dict[str, Any] | None:
    """Fix a collection's embedding model by its first document; later ones must have the same."""
    collection = session.get_one(Collection, document.collection_id)
    came = (message["model"], message["revision"], message["dimensions"])
    fixed = (collection.embedding_model, collection.embedding_revision, collection.dimensions)
    if collection.embedding_model is None:
        collection.embedding_model, collection.embedding_revision, collection.dimensions = came
    elif came != fixed:
        return {
            "code": MIXED,
            "message": f"The collection holds vectors of {fixed[0]} ({fixed[1]}, {fixed[2]} dimensions), and "
            f"the embedding server now has {came[0]} ({came[1]}, {came[2]}): vectors of the two cannot be "
            "compared. Put the documents into a new collection.",
            "param": None,
        }
    touch(session, collection)
    return None


def _load(
    session: Session, claim: Claim, folder: Path, message: Message
) -> tuple[Document | None, dict[str, Any] | None]:
    """Load a document's chunks, and then look whether they may stay.

    While a large one is loaded, nothing is locked that others need: who adds a document to the collection,
    or deletes it, does not wait.

    Returns:
        the document, if it is still this job's to write; and why it cannot be brought in.
    """
    document_id = message["document_id"]
    owner = select(Document.job_id).where(Document.id == document_id)
    if session.scalars(owner).one_or_none() != claim.job_id:
        return None, None
    session.execute(delete(Chunk).where(Chunk.document_id == document_id))
    _copy(session, folder / message["rows"], message["chunks"])
    document = _locked(session, claim, document_id)
    error = _mixing(session, document, message) if document is not None else None
    if document is not None and error is None:
        _complete(session, document, folder, message)
    return document, error


def _copy(session: Session, rows: Path, chunks: int) -> None:
    cursor = session.connection().connection.cursor()
    with rows.open("rb") as file:
        try:
            cursor.copy_expert(COPY, file)
        except (psycopg2.OperationalError, psycopg2.errors.UniqueViolation) as error:
            # As SQLAlchemy says it of its own statements: the database may be back in a moment. Chunks that
            # are there are those of another job, which has just taken the document over.
            raise OperationalError(COPY, None, error) from error
    if cursor.rowcount != chunks:
        raise ValueError(f"{rows} holds {cursor.rowcount} chunks, not {chunks}")


def _complete(session: Session, document: Document, folder: Path, message: Message) -> None:
    content = json.loads((folder / message["content"]).read_text(encoding="utf-8"))
    document.text = content["text"]
    document.page_starts, document.page_labels = content["page_starts"], content["page_labels"]
    document.pages = len(content["page_starts"]) or None
    document.details = content["details"]
    document.language, document.configuration = message["language"], message["configuration"]
    document.chunk_count = message["chunks"]
    document.usage_bytes = (folder / message["rows"]).stat().st_size
    document.status, document.completed_at = str(DocumentStatus.COMPLETED), func.clock_timestamp()
    document.password = None
    session.flush()
