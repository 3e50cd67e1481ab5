"""The statements that find the nearest chunks, each compiled once.

A filter differs each time: its place is kept in the text, for `retrieval/statements.py` to fill.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Float,
    Integer,
    Select,
    Text,
    any_,
    bindparam,
    cast,
    exists,
    func,
    literal_column,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY

from db.models import Chunk, Document
from retrieval.passages import with_passages
from retrieval.statements import CONDITION, compiled, given_vector

EMBEDDING: ColumnElement[Any] = Chunk.__table__.c.embedding
COLLECTION_ID = bindparam("collection_id", type_=Text)
IN_COLLECTIONS = any_(bindparam("collection_ids", type_=ARRAY(Text)))
INDEXED_THROUGH = cast(bindparam("indexed_through"), BigInteger)
# Bounds of the pair: by the id alone the planner goes through all newer chunks of all collections, and with
# `collection_id = …` beside the pair Postgres begins at the collection's first chunk.
CAME_AFTER_INDEX = (
    tuple_(Chunk.collection_id, Chunk.id) > tuple_(COLLECTION_ID, INDEXED_THROUGH),
    Chunk.collection_id <= COLLECTION_ID,
)

# What makes the statement for vectors of so many dimensions, whether documents are filtered or not, and
# passages told or not.
Build = Callable[[int, bool, bool], Select[Any]]


@cache
def text_of(build: Build, dimensions: int, *, filtered: bool, passages: bool) -> str:
    """Its columns are those of a passage, or the id alone, then the distance."""
    return compiled(build(dimensions, filtered, passages))


def by_index(dimensions: int, filtered: bool, passages: bool) -> Select[Any]:
    """What a collection's index finds; a last column says whether anything came after the index."""
    # As the index has it, or it is not used.
    nearest = _nearest(cast(EMBEDDING, HALFVEC(dimensions)), dimensions).where(
        Chunk.collection_id == COLLECTION_ID, Chunk.id <= INDEXED_THROUGH
    )
    more = exists().where(*CAME_AFTER_INDEX).correlate(None)
    return _told(_of_documents(nearest, filtered), passages).add_columns(more)


def after_index(dimensions: int, filtered: bool, passages: bool) -> Select[Any]:
    """What came after a collection's index, compared exactly."""
    nearest = _nearest(EMBEDDING, dimensions).where(*CAME_AFTER_INDEX).order_by(Chunk.id)
    return _told(_of_documents(nearest, filtered), passages)


def of_collections(dimensions: int, filtered: bool, passages: bool) -> Select[Any]:
    """All of some collections, or of what a filter leaves of their documents, compared exactly."""
    nearest = _nearest(EMBEDDING, dimensions).order_by(Chunk.id)
    if filtered:
        fitting = _fitting()
        return _told(nearest.join(fitting, fitting.c.id == Chunk.document_id), passages)
    return _told(nearest.where(Chunk.collection_id == IN_COLLECTIONS), passages)


def of_few(dimensions: int, filtered: bool, passages: bool) -> Select[Any]:
    """The same if the filter leaves no more than `few` chunks.

    A first column has how many it leaves; there is one row at least, of which the others are null.
    """
    fitting = _fitting()
    size = select(func.coalesce(func.sum(fitting.c.chunk_count), literal_column("0")).label("chunks")).cte(
        "size"
    )
    are_few = select(size.c.chunks <= bindparam("few", type_=Integer)).scalar_subquery()
    nearest = _nearest(EMBEDDING, dimensions).order_by(Chunk.id).where(are_few)
    found = _told(nearest.join(fitting, fitting.c.id == Chunk.document_id), passages).subquery()
    return select(size.c.chunks, *found.c).select_from(size.outerjoin(found, true()))


def _nearest(key: ColumnElement[Any], dimensions: int) -> Select[Any]:
    distance = key.op("<=>", return_type=Float)(given_vector(dimensions)).label("distance")
    own = Chunk.project_id == bindparam("project_id", type_=Text)
    return select(Chunk.id, distance).where(own).order_by("distance").limit(bindparam("most", type_=Integer))


def _fitting() -> CTE:
    return (
        select(Document.id, Document.chunk_count)
        .where(Document.collection_id == IN_COLLECTIONS, CONDITION)
        .cte("fitting")
        .prefix_with("MATERIALIZED", dialect="postgresql")
    )


def _of_documents(nearest: Select[Any], filtered: bool) -> Select[Any]:
    return nearest.join(Document, Document.id == Chunk.document_id).where(CONDITION) if filtered else nearest


def _told(nearest: Select[Any], passages: bool) -> Select[Any]:
    return with_passages(nearest) if passages else nearest
