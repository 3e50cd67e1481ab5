"""The nearest by one bare statement on one connection: what of a search's time is Postgres's own."""

import time
from typing import Any

import psycopg2
from pgvector import HalfVector

from db.models import Collection
from retrieval.nearest import BY_DOCUMENT, BY_INDEX, CANDIDATES_OF_INDEX

NEAREST = """
    SELECT text FROM chunks WHERE collection_id = %(collection)s AND id <= %(through)s
    ORDER BY (embedding::halfvec(384)) <=> %(vector)s::halfvec(384) LIMIT 10
"""
NEAREST_OF_DOCUMENT = """
    WITH fitting AS MATERIALIZED (
        SELECT id FROM documents
        WHERE collection_id = %(collection)s AND (attributes->>'part')::int = %(part)s
    )
    SELECT text FROM chunks JOIN fitting ON fitting.id = document_id
    ORDER BY embedding <=> %(vector)s::halfvec(384) LIMIT 10
"""


def ask_bare(
    database_url: str, collection: Collection, vectors: list[list[float]], document: int | None
) -> list[tuple[list[int], float]]:
    """Ask for the nearest to each vector; return the rows found for each, and the seconds it took."""
    connection = psycopg2.connect(database_url.replace("+psycopg2", ""))
    connection.autocommit = True
    answers = []
    with connection.cursor() as cursor:
        for name in BY_INDEX if document is None else BY_DOCUMENT:
            cursor.execute(f"SET {name} = off")
        cursor.execute(f"SET hnsw.ef_search = {CANDIDATES_OF_INDEX}")
        values: dict[str, Any] = {
            "collection": collection.id,
            "through": collection.indexed_through or 2**62,
            "part": document,
        }
        for vector in vectors:
            began = time.perf_counter()
            statement = NEAREST if document is None else NEAREST_OF_DOCUMENT
            cursor.execute(statement, {**values, "vector": HalfVector(vector).to_text()})
            rows = [int(text.rpartition(" ")[2]) for (text,) in cursor]
            answers.append((rows, time.perf_counter() - began))
    connection.close()
    return answers
