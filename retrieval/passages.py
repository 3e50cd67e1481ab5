"""What is told of the chunks that a search has found, and how similar they are to what was asked."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Select, any_, bindparam, func, select
from sqlalchemy.dialects.postgresql import ARRAY

from db.models import Chunk, Document
from retrieval.statements import Statements, compiled, given_vector, written


class ChunkOfHit(NamedTuple):
    """Columns of a `Chunk`: what a hit has of it. Rows of the ORM's cost ten times as much."""

    id: int
    text: str
    start_char: int
    end_char: int
    first_page: int | None
    last_page: int | None
    section: str | None
    tokens: int


class DocumentOfHit(NamedTuple):
    """Columns of the chunk's `Document`."""

    id: str
    collection_id: str
    file_id: str
    filename: str
    attributes: dict[str, Any]
    page_labels: list[Any] | None


Passage = tuple[ChunkOfHit, DocumentOfHit]

CHUNK_IDS = bindparam("chunk_ids", type_=ARRAY(BigInteger))
OF_CHUNK = [getattr(Chunk, name) for name in ChunkOfHit._fields]
OF_DOCUMENT = [getattr(Document, name) for name in DocumentOfHit._fields]
PASSAGES = compiled(
    select(*OF_CHUNK, *OF_DOCUMENT)
    .join(Document, Document.id == Chunk.document_id)
    .where(Chunk.id == any_(CHUNK_IDS))
)


def passages(statements: Statements, chunk_ids: Sequence[int]) -> dict[int, Passage]:
    """Each chunk that is still there, with its document."""
    if not chunk_ids:
        return {}
    rows = statements.run_prepared(PASSAGES, {}, {"chunk_ids": list(chunk_ids)})
    return {row[0]: passage_in(row) for row in rows}


def with_passages(found: Select[Any]) -> Select[Any]:
    """Let a statement that finds chunks, and their `distance`, tell their passages before that."""
    # Only of what it has found in the end: its limit stays below the join.
    inner = found.add_columns(*OF_CHUNK[1:], Chunk.document_id).subquery()
    of_chunk = [inner.c[name] for name in ChunkOfHit._fields]
    return select(*of_chunk, *OF_DOCUMENT, inner.c.distance).join(
        Document, Document.id == inner.c.document_id
    )


def passage_in(row: Sequence[Any]) -> Passage:
    end = len(OF_CHUNK) + len(OF_DOCUMENT)
    return ChunkOfHit(*row[: len(OF_CHUNK)]), DocumentOfHit(*row[len(OF_CHUNK) : end])


def similarities_of(
    statements: Statements, chunk_ids: Sequence[int], vectors: Sequence[list[float]]
) -> dict[int, float]:
    """The cosine of each chunk to the nearest of the vectors, 0 to 1."""
    if not chunk_ids:
        return {}
    values = {f"vector_{number}": written(vector) for number, vector in enumerate(vectors)}
    rows = statements.run(_distances(len(vectors), len(vectors[0])), {"chunk_ids": list(chunk_ids), **values})
    return {chunk_id: max(0.0, 1.0 - float(distance)) for chunk_id, distance in rows}


@cache
def _distances(vectors: int, dimensions: int) -> str:
    distances = (
        Chunk.embedding.op("<=>")(given_vector(dimensions, f"vector_{number}")) for number in range(vectors)
    )
    return compiled(select(Chunk.id, func.least(*distances)).where(Chunk.id == any_(CHUNK_IDS)))
