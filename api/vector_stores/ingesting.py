"""From files to documents that a job is to ingest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from api.quotas import admit_job
from api.unit_of_work import Unit
from api.vector_stores.schemas import BatchRequest, ChunkingStrategy, FileRequest
from db.errors import InvalidInput, NotFound
from db.models import Collection, Document, File, Job
from db.params.ingest import IngestParams
from db.queries.collections import get_collection, refuse_expired, touch
from db.queries.documents import add_documents
from db.queries.files import get_file
from db.queries.ingests import assign
from db.queries.jobs import create_job
from db.queries.languages import known_language
from db.states import JobKind

AUTO = {
    "max_tokens": IngestParams.model_fields["chunk_tokens"].default,
    "overlap_tokens": IngestParams.model_fields["chunk_overlap_tokens"].default,
}


@dataclass(frozen=True)
class Wanted:
    """A file, and how it shall be in the collection."""

    file_id: str
    attributes: dict[str, Any]
    chunking: dict[str, int]
    password: str | None = None
    language: str | None = None


def wanted(request: FileRequest) -> Wanted:
    return Wanted(
        request.file_id,
        request.attributes or {},
        chunking_of(request.chunking_strategy),
        request.password,
        request.language,
    )


def all_wanted(request: BatchRequest) -> list[Wanted]:
    if request.files is not None:
        return [wanted(file) for file in request.files]
    chunking = chunking_of(request.chunking_strategy)
    return [
        Wanted(file_id, request.attributes or {}, chunking, language=request.language)
        for file_id in request.file_ids or []
    ]


def chunking_of(strategy: ChunkingStrategy | None) -> dict[str, int]:
    if strategy is None or strategy.static is None:
        return dict(AUTO)
    static = strategy.static
    return {"max_tokens": static.max_chunk_size_tokens, "overlap_tokens": static.chunk_overlap_tokens}


def take_in(unit: Unit, params: IngestParams) -> list[Document]:
    """Make a job's documents.

    Raises:
        InvalidInput: the collection or a file does not exist, the language is not known, or two files that
            are to replace others have one name.
    """
    try:
        collection = get_collection(
            unit.session, params.collection, project_id=unit.project_id, lock=True, param="collection"
        )
    except NotFound as error:
        raise InvalidInput(error.message, param="collection", code="collection_not_found") from error
    chunking = {"max_tokens": params.chunk_tokens, "overlap_tokens": params.chunk_overlap_tokens}
    return _put_in(
        unit,
        collection,
        [Wanted(file_id, params.attributes, chunking, language=params.language) for file_id in params.files],
        param="files",
        replace=params.replace,
    )


def ingest(
    unit: Unit, collection: Collection, files: Sequence[Wanted], *, param: str, replace: bool = False
) -> tuple[Job, list[Document]]:
    """Put files into a collection, and queue the job that reads them.

    Args:
        collection: locked by the caller.
        param: the field that names the files.
        replace: whether they take the place of documents of the same file names.
    Raises:
        InvalidInput: a file does not exist, a language is not known, or two files that are to replace others
            have one name.
    """
    documents = _put_in(unit, collection, files, param=param, replace=replace)
    ids = list(dict.fromkeys(file.file_id for file in files))
    params = IngestParams(collection=collection.id, files=ids, replace=replace)
    admit_job(unit)
    job = create_job(
        unit.session,
        project_id=unit.project_id,
        kind=JobKind.INGEST,
        params=params.model_dump(mode="json"),
    )
    assign(unit.session, documents, job)
    return job, documents


def _put_in(
    unit: Unit, collection: Collection, files: Sequence[Wanted], *, param: str, replace: bool
) -> list[Document]:
    refuse_expired(collection)
    touch(unit.session, collection)
    by_id = {file.file_id: file for file in files}
    given = {file.language for file in files if file.language is not None}
    names: dict[str | None, str] = {language: known_language(unit.session, language) for language in given}
    found = [_file(unit, file_id, param) for file_id in by_id]
    if replace:
        _refuse_namesakes(found, param)
    return add_documents(
        unit.session,
        collection,
        found,
        attributes=[file.attributes for file in by_id.values()],
        chunking=[file.chunking for file in by_id.values()],
        passwords=[file.password for file in by_id.values()],
        languages=[names.get(file.language) for file in by_id.values()],
    )


def _refuse_namesakes(files: Sequence[File], param: str) -> None:
    """Of two files of one name, the one would take the place of the other."""
    first: dict[str, File] = {}
    for file in files:
        if (other := first.setdefault(file.filename, file)) is not file:
            raise InvalidInput(
                f"{param}: {other.id} and {file.id} are both named {file.filename!r}, and replace goes by "
                "the name: upload one of them under another name, or leave replace out.",
                param=param,
                code="same_filename",
            )


def _file(unit: Unit, file_id: str, param: str) -> File:
    try:
        # Locked against being deleted until its document is there.
        return get_file(unit.session, file_id, project_id=unit.project_id, param=param, lock="share")
    except NotFound as error:
        raise InvalidInput(error.message, param=param, code="file_not_found") from error
