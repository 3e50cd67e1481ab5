"""Documents on their way into the database, by real workers that are killed on the way."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text

from db.ids import new_id
from db.models import Chunk, Collection, Document, Step
from db.queries.collections import create_collection
from db.queries.documents import add_documents, list_documents
from db.queries.ingests import assign
from db.queries.jobs import cancel_job, get_job, list_events
from db.session import SessionFactory, transaction
from db.settings import Settings
from db.states import JobKind, JobStatus
from db.storage import job_folder
from retrieval.vector_index import BUILD_LOCK
from tests.embedding_server import UNEMBEDDABLE, EmbeddingStandIn
from tests.nursery import Child
from tests.rows import add_file, add_job
from tests.worker.conftest import Bench, environment

CHUNKING = {"max_tokens": 64, "overlap_tokens": 8}
SMALLEST_INDEXED = 10  # chunks: an index of so few is built in a moment


@pytest.fixture(scope="module")
def embedding_server() -> Iterator[EmbeddingStandIn]:
    server = EmbeddingStandIn()
    yield server
    server.stop()


@pytest.fixture
def embeddings(embedding_server: EmbeddingStandIn) -> EmbeddingStandIn:
    """It answers, and at once."""
    embedding_server.pause_seconds, embedding_server.is_away, embedding_server.waits = 0.0, False, None
    return embedding_server


@pytest.fixture(scope="module")
def standing_worker(idle_bench: Bench, embedding_server: EmbeddingStandIn) -> Bench:
    idle_bench.settings = idle_bench.settings.model_copy(update={"warm_seconds": 60.0})
    Ingests(idle_bench, embedding_server).start_worker()
    return idle_bench


@pytest.fixture
def ingests(standing_worker: Bench, embeddings: EmbeddingStandIn) -> "Ingests":
    """With one worker for all tests that let it live: starting one takes seconds."""
    return Ingests(standing_worker, embeddings)


@pytest.fixture
def own_ingests(bench: Bench, embeddings: EmbeddingStandIn) -> "Ingests":
    """With no worker but those that the test starts."""
    return Ingests(bench, embeddings)


class Ingests:
    """Jobs that ingest, and workers that do them."""

    def __init__(self, bench: Bench, embeddings: EmbeddingStandIn) -> None:
        self.bench = bench
        self.factory: SessionFactory = bench.factory
        self.settings: Settings = bench.settings
        self.embeddings = embeddings

    def start_worker(self) -> Child:
        own = environment(self.settings) | {
            "LATHE_EMBEDDING_SERVER_URL": self.embeddings.url,
            "LATHE_VECTOR_INDEX_MIN_CHUNKS": str(SMALLEST_INDEXED),
        }
        return self.bench.start(["-m", "worker"], own)

    def submit(
        self, contents: list[str], *, password: str | None = None, lost: int | None = None
    ) -> tuple[str, str]:
        """Queue the ingest of texts into a new collection; gives the collection and the job.

        Args:
            lost: the text whose upload is not on the disk any more.
        """
        with transaction(self.factory) as session:
            collection = create_collection(session, project_id="default", name="c")
            files = []
            for number, content in enumerate(contents):
                path = Path("files") / new_id("file")
                at = self.settings.storage_root / path
                at.parent.mkdir(parents=True, exist_ok=True)
                if number != lost:
                    at.write_text(content)
                given = {"bytes": len(content), "sha256": f"{number}-{len(content)}", "path": str(path)}
                files.append(add_file(session, f"{number}.txt", id=path.name, **given))
            every = len(files)
            documents = add_documents(
                session, collection, files,
                attributes=[{}] * every, chunking=[CHUNKING] * every, passwords=[password] * every,
            )  # fmt: skip
            params = {"collection": collection.id, "files": [file.id for file in files], "replace": False}
            job = add_job(session, kind=JobKind.INGEST, params=params)
            assign(session, documents, job)
            return collection.id, job.id

    def completed(self, collection_id: str) -> list[str]:
        with self.factory() as session:
            rows, _ = list_documents(session, collection_id=collection_id, status="completed", limit=1000)
            return [document.id for document, _, _ in rows]

    def check(self, collection_id: str) -> int:
        """That each document is whole or absent; gives how many are whole."""
        with self.factory() as session:
            query = select(Document).where(Document.collection_id == collection_id)
            whole = 0
            for document in session.scalars(query):
                chunks = select(Chunk).where(Chunk.document_id == document.id).order_by(Chunk.position)
                rows = session.scalars(chunks).all()
                if document.status != "completed":
                    assert rows == []
                    continue
                assert document.text is not None
                assert [row.position for row in rows] == list(range(document.chunk_count))
                for row in rows:
                    assert document.text[row.start_char : row.end_char] == row.text
                assert rows[-1].end_char == len(document.text)
                whole += 1
            return whole

    def indexes(self) -> dict[str, bool]:
        """The vector indexes that there are, and whether each is valid."""
        query = text(
            "SELECT relname, indisvalid FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid "
            "WHERE starts_with(relname, 'ix_chunks_vectors_')"
        )
        with self.factory() as session:
            return {row.relname: row.indisvalid for row in session.execute(query)}

    def building(self) -> int:
        """How many index builds Postgres has under way."""
        with self.factory() as session:
            query = text(
                "SELECT count(*) FROM pg_stat_progress_create_index WHERE datname = current_database()"
            )
            return int(session.scalars(query).one())

    def said(self, job_id: str) -> str:
        with self.factory() as session:
            return "\n".join(event.message for event in list_events(session, job_id)[0])


def texts(number: int, *, words: int = 600) -> list[str]:
    return [" ".join(f"word{n}of{at}" for n in range(words)) for at in range(number)]


def test_each_is_whole_or_absent_whoever_is_killed(own_ingests: Ingests) -> None:
    ingests = own_ingests
    ingests.embeddings.pause_seconds = 0.15
    collection, job = ingests.submit(texts(12))
    worker = ingests.start_worker()
    ingests.bench.wait_for(lambda: len(ingests.completed(collection)) >= 2, seconds=60)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    before = ingests.check(collection)
    assert 2 <= before < 12
    first = set(ingests.completed(collection))
    ingests.embeddings.pause_seconds = 0.0
    ingests.start_worker()
    ended = ingests.bench.ended(job, seconds=60)
    assert ended.status == JobStatus.SUCCEEDED, ended.error
    assert ingests.check(collection) == 12
    assert first <= set(ingests.completed(collection))
    assert ended.result is not None
    assert (ended.result["documents"], ended.result["failed"]) == (12, 0)
    left = job_folder(ingests.settings.storage_root, job)
    ingests.bench.wait_for(lambda: not list(left.glob("*/*/doc-*")))
    with ingests.factory() as session:
        doubled = text("SELECT count(*) - count(DISTINCT (document_id, position)) FROM chunks")
        assert session.scalars(doubled).one() == 0


def test_the_next_documents_are_asked_for_before_the_last_of_these_are_there(ingests: Ingests) -> None:
    """Else the embedding server would be idle between the two."""
    contents = texts(2, words=1200)
    ingests.embeddings.waits = ("word1199of0", "word0of1")
    collection, job = ingests.submit(contents)
    ended = ingests.bench.ended(job, seconds=60)
    assert ended.status == JobStatus.SUCCEEDED, ended.error
    assert ingests.check(collection) == 2
    with ingests.factory() as session:
        assert [step.attempts[-1].number for step in get_job(session, job, project_id="default").steps] == [
            1,
            1,
            1,
        ]


def test_a_refused_text_stops_no_other(ingests: Ingests) -> None:
    contents = texts(3, words=30)
    contents[1] += f" {UNEMBEDDABLE}"
    collection, job = ingests.submit([*contents, ""])
    ended = ingests.bench.ended(job, seconds=60)
    assert ended.status == JobStatus.SUCCEEDED, ended.error
    assert ended.result is not None
    assert (ended.result["documents"], ended.result["failed"]) == (2, 2)
    assert ingests.check(collection) == 2
    with ingests.factory() as session:
        chunks = session.scalars(
            select(func.count()).select_from(Chunk).where(Chunk.collection_id == collection)
        ).one()
        assert ended.result["chunks"] == chunks
        events, _ = list_events(session, job)
    warnings = [event.message for event in events if event.level == "warn"]
    assert [warning[:6] for warning in warnings] == ["3.txt:", "1.txt:"]
    with ingests.factory() as session:
        rows, _ = list_documents(session, collection_id=collection, status="failed")
    assert {document.filename for document, _, _ in rows} == {"1.txt", "3.txt"}


def test_a_job_without_a_readable_document_fails_and_says_why(ingests: Ingests) -> None:
    collection, job = ingests.submit(["", " "])
    ended = ingests.bench.ended(job, seconds=60)
    assert ended.status == JobStatus.FAILED
    assert ended.error is not None
    assert ended.error["code"] == "no_document_read"
    with ingests.factory() as session:
        rows, _ = list_documents(session, collection_id=collection, status="failed")
    assert [error["code"] for _, _, error in rows if error] == ["empty_file", "empty_file"]


def test_an_embedding_server_that_is_away_is_waited_for(ingests: Ingests) -> None:
    ingests.embeddings.is_away = True
    collection, job = ingests.submit(texts(1))

    def tried_again() -> bool:
        with ingests.factory() as session:
            events, _ = list_events(session, job)
            return any("Trying again" in event.message for event in events)

    ingests.bench.wait_for(tried_again, seconds=60)
    ingests.embeddings.is_away = False
    assert ingests.bench.ended(job, seconds=60).status == JobStatus.SUCCEEDED
    assert ingests.check(collection) == 1


def test_cancelled_documents_are_said_to_be(ingests: Ingests) -> None:
    ingests.embeddings.pause_seconds = 0.3
    collection, job = ingests.submit(texts(8))
    ingests.bench.wait_for(lambda: len(ingests.completed(collection)) >= 1, seconds=60)
    with transaction(ingests.factory) as session:
        cancel_job(session, job, project_id="default")
    assert ingests.bench.ended(job, seconds=60).status == JobStatus.CANCELLED
    whole = ingests.check(collection)
    with ingests.factory() as session:
        rows, _ = list_documents(session, collection_id=collection, status="cancelled", limit=100)
    assert len(rows) == 8 - whole


def passwords(ingests: Ingests, collection_id: str) -> set[str | None]:
    with ingests.factory() as session:
        query = select(Document.password).where(Document.collection_id == collection_id)
        return set(session.scalars(query))


def test_one_bad_file_stops_none_of_a_hundred(ingests: Ingests) -> None:
    contents = texts(100, words=8)
    contents[41] = "%PDF-1.7 and no more"
    collection, job = ingests.submit(contents, password="sesame")
    ended = ingests.bench.ended(job, seconds=120)
    assert ended.status == JobStatus.SUCCEEDED, ended.error
    assert ended.result is not None
    assert (ended.result["documents"], ended.result["failed"]) == (99, 1)
    assert ingests.check(collection) == 99
    with ingests.factory() as session:
        [(document, _, error)], _ = list_documents(session, collection_id=collection, status="failed")
    assert (document.filename, error and error["code"]) == ("41.txt", "invalid_file")
    assert passwords(ingests, collection) == {None}


def test_a_password_is_forgotten_when_its_job_is_cancelled_before_it_began(own_ingests: Ingests) -> None:
    ingests = own_ingests
    collection, job = ingests.submit(texts(2), password="sesame")
    assert passwords(ingests, collection) == {"sesame"}
    with transaction(ingests.factory) as session:
        cancel_job(session, job, project_id="default")
    assert passwords(ingests, collection) == {None}


def test_an_upload_that_is_gone_from_the_disk_is_said_to_be(ingests: Ingests) -> None:
    collection, job = ingests.submit(texts(2, words=8), lost=0)
    assert ingests.bench.ended(job, seconds=60).status == JobStatus.SUCCEEDED
    with ingests.factory() as session:
        [(_, _, error)], _ = list_documents(session, collection_id=collection, status="failed")
    assert error is not None
    assert (error["code"], "upload it again" in error["message"]) == ("file_missing", True)
    assert str(ingests.settings.storage_root) not in error["message"]


def test_a_small_collection_is_not_indexed(ingests: Ingests) -> None:
    before = ingests.indexes()
    _, job = ingests.submit(texts(1, words=30))
    ended = ingests.bench.ended(job, seconds=60)
    assert ended.status == JobStatus.SUCCEEDED, ended.error
    assert ended.result is not None
    assert ended.result["documents"] == 1
    assert ended.result["index"] == {"chunks": 0, "built_in_seconds": None}
    assert "No vector index is needed" in ingests.said(job)
    assert ingests.indexes() == before


def test_a_killed_builder_leaves_no_broken_index(own_ingests: Ingests) -> None:
    ingests = own_ingests
    collection, job = ingests.submit(texts(2))
    with ingests.factory() as writer:
        # What writes holds a build up, so that its worker can be killed in the midst of it.
        writer.execute(text("LOCK TABLE chunks IN ROW EXCLUSIVE MODE"))
        worker = ingests.start_worker()
        ingests.bench.wait_for(lambda: bool(ingests.indexes()), seconds=60)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        # Postgres notices by itself that nobody waits for it any more.
        ingests.bench.wait_for(lambda: ingests.building() == 0, seconds=30)
        [(broken, valid)] = ingests.indexes().items()
        assert not valid
        assert len(ingests.completed(collection)) == 2
    ingests.start_worker()
    ended = ingests.bench.ended(job, seconds=60)
    assert ended.status == JobStatus.SUCCEEDED, ended.error
    [(name, valid)] = ingests.indexes().items()
    assert valid
    assert name != broken
    with ingests.factory() as session:
        row = session.get_one(Collection, collection)
        chunks = session.scalars(select(func.count()).select_from(Chunk)).one()
    assert (row.index_name, row.indexed_chunks) == (name, chunks)
    assert f"Built the vector index of {chunks} chunks" in ingests.said(job)


def test_a_build_can_be_cancelled(ingests: Ingests) -> None:
    before = ingests.indexes()
    with ingests.factory() as writer:
        writer.execute(text("LOCK TABLE chunks IN ROW EXCLUSIVE MODE"))
        collection, job = ingests.submit(texts(1))
        ingests.bench.wait_for(lambda: bool(ingests.indexes().keys() - before.keys()), seconds=60)
        with transaction(ingests.factory) as session:
            cancel_job(session, job, project_id="default")
        assert ingests.bench.ended(job, seconds=60).status == JobStatus.CANCELLED
        assert ingests.building() == 0
    assert len(ingests.completed(collection)) == 1


def test_one_that_waits_for_another_builder_does_not_stall(ingests: Ingests) -> None:
    with ingests.factory() as builder:
        builder.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": BUILD_LOCK})
        _, job = ingests.submit(texts(1))
        progress = select(Step.progress, Step.progressed_at).where(Step.job_id == job, Step.name == "index")

        def told() -> tuple[Any, Any]:
            with ingests.factory() as session:
                return tuple(session.execute(progress).one())

        ingests.bench.wait_for(lambda: bool(told()[0]), seconds=60)
        first = told()
        assert (first[0]["done"], first[0]["unit"]) == (0, "chunks")
        ingests.bench.wait_for(lambda: told()[1] > first[1], seconds=30)
    assert ingests.bench.ended(job, seconds=60).status == JobStatus.SUCCEEDED
