"""Rows as answers."""

from collections.abc import Mapping
from typing import Any, Literal

from sqlalchemy.orm import Session

from api.pages import unix_seconds, unix_seconds_or_none
from api.vector_stores.schemas import (
    BatchOut,
    ChunkingOut,
    CollectionOut,
    DocumentOut,
    ExpiresAfter,
    FileCounts,
    LastError,
    StaticOut,
)
from db.models import Collection, Document, Job
from db.queries.collections import counts_of, expires_at, is_expired
from db.queries.documents import counts_of_job
from db.states import JobStatus

# What the server, and not the file, is to blame for.
OURS = frozenset(
    {"file_missing", "worker_lost", "step_failed", "step_stalled", "embedding_model_changed", "out_of_memory"}
)


def collections_out(session: Session, collections: list[Collection]) -> list[CollectionOut]:
    counts = counts_of(session, [collection.id for collection in collections])
    return [collection_out(collection, counts[collection.id]) for collection in collections]


def collection_out(collection: Collection, counts: Mapping[str, int]) -> CollectionOut:
    status = "in_progress" if counts["in_progress"] else "completed"
    days = collection.expires_after_days
    return CollectionOut(
        id=collection.id,
        created_at=unix_seconds(collection.created_at),
        name=collection.name,
        usage_bytes=counts["usage_bytes"],
        file_counts=file_counts(counts),
        status="expired" if is_expired(collection) else status,
        expires_after=ExpiresAfter(days=days) if days is not None else None,
        expires_at=unix_seconds_or_none(expires_at(collection)),
        last_active_at=unix_seconds(collection.last_active_at),
        metadata=collection.notes,
        embedding_model=collection.embedding_model,
    )


def file_counts(counts: Mapping[str, int]) -> FileCounts:
    by_status = {name: counts[name] for name in ("in_progress", "completed", "failed", "cancelled")}
    return FileCounts(**by_status, total=sum(by_status.values()))


def batch_out(session: Session, job: Job, collection_id: str) -> BatchOut:
    counts = counts_of_job(session, job)
    status: Literal["in_progress", "completed", "cancelled", "failed"] = "completed"
    if job.status in (JobStatus.CANCELLED, JobStatus.CANCELLING):
        status = "cancelled"
    elif counts["in_progress"]:
        status = "in_progress"
    elif job.status == JobStatus.FAILED:
        status = "failed"
    return BatchOut(
        id=job.id,
        created_at=unix_seconds(job.created_at),
        vector_store_id=collection_id,
        status=status,
        file_counts=file_counts(counts),
    )


def document_out(document: Document, status: str, error: dict[str, Any] | None) -> DocumentOut:
    return DocumentOut(
        id=document.file_id,
        created_at=unix_seconds(document.created_at),
        vector_store_id=document.collection_id,
        usage_bytes=document.usage_bytes,
        status=status,
        last_error=_last_error(error),
        chunking_strategy=ChunkingOut(
            static=StaticOut(
                max_chunk_size_tokens=document.chunking["max_tokens"],
                chunk_overlap_tokens=document.chunking["overlap_tokens"],
            )
        ),
        attributes=document.attributes,
        filename=document.filename,
        sha256=document.content_hash,
        language=document.language,
        pages=document.pages,
        chunks=document.chunk_count,
        job_id=document.job_id,
    )


def _last_error(error: dict[str, Any] | None) -> LastError | None:
    if error is None:
        return None
    code = error["code"]
    if code != "unsupported_file":
        code = "server_error" if code in OURS else "invalid_file"
    return LastError(code=code, message=error["message"])
