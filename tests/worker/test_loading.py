"""What a large document's loading keeps nobody waiting for, and what it must not let through."""

import json
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from db.ids import new_id
from db.models import Chunk, Collection, Document, File
from db.queries.collections import create_collection, get_collection, touch
from db.queries.documents import add_documents
from db.queries.ingests import assign
from db.queries.jobs import list_events
from db.session import SessionFactory, transaction
from db.states import JobKind
from retrieval.chunking import Chunk as Cut
from retrieval.copy_rows import write_rows
from tests.rows import add_file, add_job
from worker.claim import Claim, claim_step
from worker.documents import write_document

CHUNKING = {"max_tokens": 64, "overlap_tokens": 0}
CHUNKS = 50


class Loading:
    """Documents of one collection, each with a job of its own whose step is running."""

    def __init__(self, factory: SessionFactory, folder: Path) -> None:
        self.factory = factory
        self.folder = folder
        with transaction(factory) as session:
            self.collection_id = create_collection(session, project_id="default", name="c").id

    def add(self, *, content: str | None = None) -> tuple[str, Claim]:
        """Add a file as the API does. Gives the document, and the claim of the step that loads it."""
        with transaction(self.factory) as session:
            file = add_file(session, "f.txt", sha256=content or new_id("sha"))
        return self.add_file(file)

    def add_file(self, file: File) -> tuple[str, Claim]:
        """The same with a file that may be there already."""
        with transaction(self.factory) as session:
            collection = get_collection(session, self.collection_id, project_id="default", lock=True)
            touch(session, collection)
            [document] = add_documents(
                session, collection, [file], attributes=[{}], chunking=[CHUNKING], passwords=[None]
            )
            params = {"collection": collection.id, "files": [file.id], "replace": False}
            job = add_job(session, kind=JobKind.INGEST, params=params)
            assign(session, [document], job)
        with transaction(self.factory) as session:
            claim = claim_step(session, "cpu", worker="w", host="h", lease_seconds=60)
        assert claim is not None
        assert claim.job_id == job.id
        return document.id, claim

    def message(self, document_id: str, *, model: str = "m") -> dict[str, Any]:
        """What the step says of a document, with its files written."""
        chunks = [Cut(str(place), place, place + 1, 1, 1, 1, None) for place in range(CHUNKS)]
        vectors = [struct.pack("<3f", place, 1.0, 0.0) for place in range(CHUNKS)]
        rows = self.folder / f"{document_id}.copy"
        write_rows(rows, ("default", self.collection_id, document_id), chunks, vectors)
        content = {"text": "t", "page_starts": [], "page_labels": [], "details": {}}
        (self.folder / f"{document_id}.json").write_text(json.dumps(content))
        return {
            "document_id": document_id, "rows": rows.name, "content": f"{document_id}.json", "chunks": CHUNKS,
            "language": "english", "configuration": "simple", "model": model, "revision": "r",
            "dimensions": 3,
        }  # fmt: skip

    def write(self, claim: Claim, message: dict[str, Any]) -> None:
        with transaction(self.factory) as session:
            write_document(session, claim, self.folder, message)

    @contextmanager
    def being_loaded(self, claim: Claim, message: dict[str, Any]) -> Iterator[None]:
        """Within the block, half of the document's rows have been given to Postgres."""
        rows = self.folder / message["rows"]
        data = rows.read_bytes()
        rows.unlink()
        os.mkfifo(rows)
        thread = threading.Thread(target=self.write, args=(claim, message))
        thread.start()
        with rows.open("wb", buffering=0) as pipe:
            pipe.write(data[: len(data) // 2])
            yield
            pipe.write(data[len(data) // 2 :])
        thread.join()
        rows.unlink()

    def document(self, document_id: str) -> Document | None:
        with self.factory() as session:
            return session.get(Document, document_id)

    def chunks(self, document_id: str) -> int:
        with self.factory() as session:
            query = select(func.count()).select_from(Chunk).where(Chunk.document_id == document_id)
            return session.scalars(query).one()

    def said(self, claim: Claim) -> list[str]:
        with self.factory() as session:
            return [event.message for event in list_events(session, claim.job_id)[0]]


@pytest.fixture
def loading(session_factory: SessionFactory, tmp_path: Path) -> Loading:
    return Loading(session_factory, tmp_path)


def test_others_are_added_and_loaded_meanwhile(loading: Loading) -> None:
    large, claim = loading.add()
    with loading.being_loaded(claim, loading.message(large)):
        small, other_claim = loading.add()
        loading.write(other_claim, loading.message(small))
        document = loading.document(small)
        assert document is not None
        assert document.status == "completed"
        assert loading.chunks(large) == 0
    assert loading.chunks(large) == loading.chunks(small) == CHUNKS


def test_the_collection_can_be_deleted_meanwhile(loading: Loading) -> None:
    large, claim = loading.add()
    with loading.being_loaded(claim, loading.message(large)), transaction(loading.factory) as session:
        session.delete(get_collection(session, loading.collection_id, project_id="default", lock=True))
    assert loading.document(large) is None
    assert loading.chunks(large) == 0
    assert "A document was taken out of the collection before it was ready." in loading.said(claim)


def test_one_that_another_job_took_over_is_not_said_to_be_gone(loading: Loading) -> None:
    taken, claim = loading.add()
    _, other_claim = loading.add()
    with transaction(loading.factory) as session:
        session.get_one(Document, taken).job_id = other_claim.job_id
    loading.write(claim, loading.message(taken))
    assert loading.said(claim)[-1] == "f.txt is left to another job, which was asked for it since."
    assert loading.chunks(taken) == 0


def test_no_two_models_come_together_however_close_they_finish(loading: Loading) -> None:
    first, claim = loading.add()
    second, other_claim = loading.add()
    with loading.being_loaded(claim, loading.message(first, model="one")):
        loading.write(other_claim, loading.message(second, model="another"))
    refused = loading.document(first)
    assert refused is not None
    assert (refused.status, (refused.error or {})["code"]) == ("failed", "embedding_model_changed")
    assert (loading.chunks(first), loading.chunks(second)) == (0, CHUNKS)
    with loading.factory() as session:
        assert session.get_one(Collection, loading.collection_id).embedding_model == "another"


def test_what_another_job_has_taken_over_is_left_to_it(loading: Loading) -> None:
    document_id, claim = loading.add()
    with transaction(loading.factory) as session:
        params = {"collection": loading.collection_id, "files": [], "replace": False}
        job = add_job(session, kind=JobKind.INGEST, params=params)
        assign(session, [session.get_one(Document, document_id)], job)
    loading.write(claim, loading.message(document_id))
    document = loading.document(document_id)
    assert document is not None
    assert document.status == "in_progress"
    assert loading.chunks(document_id) == 0


def test_added_again_beside_a_finished_twin_it_waits_for_nobody(loading: Loading) -> None:
    large, claim = loading.add(content="same")
    twin, other_claim = loading.add(content="same")
    loading.write(other_claim, loading.message(twin))
    with loading.factory() as session:
        file = session.get_one(File, session.get_one(Document, large).file_id)
    with loading.being_loaded(claim, loading.message(large)):
        again, new_claim = loading.add_file(file)
        assert again == large
    assert loading.chunks(large) == 0
    loading.write(new_claim, loading.message(large))
    assert loading.chunks(large) == loading.chunks(twin) == CHUNKS
