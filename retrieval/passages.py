"""What is told of the chunks that a search has found, and how similar they are to what was asked."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, any_, bindparam, func, select
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


CHUNK_IDS = bindparam("chunk_ids", type_=ARRAY(BigInteger))
OF_CHUNK = len(ChunkOfHit._fields)
PASSAGES = compiled(
    select(
        *(getattr(Chunk, name) for name in ChunkOfHit._fields),
        *(getattr(Document, name) for name in DocumentOfHit._fields),
    )
    .join(Document, Document.id == Chunk.document_id)
    .where(Chunk.id == any_(CHUNK_IDS))
)


def passages(statements: Statements, chunk_ids: Sequence[int]) -> dict[int, tuple[ChunkOfHit, DocumentOfHit]]:
    """Each chunk that is still there, with its document."""
    if not chunk_ids:
        return {}
    rows = statements.run(PASSAGES, {"chunk_ids": list(chunk_ids)})
    return {row[0]: (ChunkOfHit(*row[:OF_CHUNK]), DocumentOfHit(*row[OF_CHUNK:])) for row in rows}


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
