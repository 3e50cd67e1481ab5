"""Documents with vectors that lie in clusters, as those of texts do, loaded as a worker loads them."""

import random
import struct
import tempfile
from pathlib import Path

from sqlalchemy.orm import Session

from db.ids import new_id
from db.models import Collection, Document
from retrieval.chunking import Chunk
from retrieval.copy_rows import COLUMNS, write_rows
from tests.rows import add_file

COPY = f"COPY chunks ({', '.join(COLUMNS)}) FROM STDIN (FORMAT binary)"
DIMENSIONS = 24
CLUSTERS = 40

Vector = list[float]


class Clusters:
    """Draws vectors; the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)  # noqa: S311 - the same at every run
        self._centres = [self._draw() for _ in range(CLUSTERS)]

    def vector(self, cluster: int | None = None) -> Vector:
        centre = self._centres[self._chance.randrange(CLUSTERS) if cluster is None else cluster]
        return [place + 0.6 * step for place, step in zip(centre, self._draw(), strict=True)]

    def _draw(self) -> Vector:
        return [self._chance.gauss(0, 1) for _ in range(DIMENSIONS)]


def load_vectors(
    session: Session, collection: Collection, vectors: list[Vector], *, attributes: dict[str, object]
) -> Document:
    """A document with a chunk for each vector, that can be searched."""
    file = add_file(session, "v.txt", project_id=collection.project_id)
    document = Document(
        id=new_id("doc"), project_id=collection.project_id, collection_id=collection.id, file_id=file.id,
        filename=file.filename, content_hash=file.sha256, status="completed", attributes=attributes,
        chunking={}, chunk_count=len(vectors),
    )  # fmt: skip
    session.add(document)
    collection.embedding_model, collection.embedding_revision = "m", "r"
    collection.dimensions = DIMENSIONS
    session.flush()
    chunks = [Chunk(str(place), place, place + 1, 1, 1, 1, None) for place in range(len(vectors))]
    packed = (struct.pack(f"<{DIMENSIONS}f", *vector) for vector in vectors)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows"
        write_rows(rows, (collection.project_id, collection.id, document.id), chunks, packed)
        with rows.open("rb") as binary:
            session.connection().connection.cursor().copy_expert(COPY, binary)
    return document
