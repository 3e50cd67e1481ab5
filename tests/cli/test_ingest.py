"""Documents into collections, and what is said of them; the worker's part is done by a hand."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from db.models import Collection, Document, File, Job
from db.queries.states import move
from db.session import SessionFactory, transaction
from db.settings import Settings
from db.states import DocumentStatus, JobStatus
from tests.cli.conftest import Run
from tests.embedding_server import EmbeddingStandIn

End = Callable[[DocumentStatus], None]


@pytest.fixture(scope="module")
def embeddings() -> Iterator[EmbeddingStandIn]:
    server = EmbeddingStandIn()
    yield server
    server.stop()


@pytest.fixture
def settings(database_url: str, redis_url: str, tmp_path: Path, embeddings: EmbeddingStandIn) -> Settings:
    return Settings(
        database_url=database_url,
        redis_url=redis_url,
        data_dir=tmp_path / "data",
        embedding_server_url=embeddings.url,
    )


@pytest.fixture
def end(session_factory: SessionFactory) -> End:
    """End the reading of all documents."""

    def end_all(status: DocumentStatus) -> None:
        with transaction(session_factory) as session:
            for document in session.scalars(select(Document)):
                document.status = str(status)

    return end_all


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.md"
    path.write_text("Holidays are thirty days a year.")
    return path


def count(sessions: SessionFactory, table: type[Collection] | type[Document] | type[File] | type[Job]) -> int:
    with transaction(sessions) as session:
        return session.query(table).count()


class TestIngest:
    def test_a_file_that_is_refused_is_named_and_stops_no_other(
        self, run: Run, api_url: str, notes: Path, tmp_path: Path, session_factory: SessionFactory
    ) -> None:
        (tmp_path / "empty.txt").touch()
        ran = run("ingest", str(tmp_path / "empty.txt"), str(notes), "-c", "office")
        assert ran.err == f"Error: {tmp_path}/empty.txt: The file is empty.\n"
        assert (ran.status, ran.out.split()[1]) == (1, "queued")
        assert count(session_factory, Document) == 1

    def test_nothing_is_made_for_files_that_are_all_refused(
        self, run: Run, api_url: str, tmp_path: Path, session_factory: SessionFactory
    ) -> None:
        (tmp_path / "empty.txt").touch()
        ran = run("ingest", str(tmp_path / "empty.txt"), "-c", "office")
        assert (ran.status, ran.out) == (1, "")
        assert count(session_factory, Collection) == 0

    def test_a_collection_without_a_name_is_not_made(self, run: Run, api_url: str, notes: Path) -> None:
        assert run("ingest", str(notes), "-c", "").status == 2
        assert "--collection or --model" in run("ingest", str(notes)).err

    def test_two_of_one_name_are_refused_unless_both_shall_stay(
        self, run: Run, api_url: str, notes: Path, tmp_path: Path, session_factory: SessionFactory
    ) -> None:
        other = tmp_path / "b" / "notes.md"
        other.parent.mkdir()
        other.write_text("Coffee is free.")
        refused = run("ingest", str(notes), str(other), "-c", "office")
        assert (refused.status, count(session_factory, Document)) == (2, 0)
        assert "--keep" in refused.err
        assert run("ingest", str(notes), str(other), "-c", "office", "--keep").status == 0
        assert count(session_factory, Document) == 2

    def test_what_is_being_read_is_not_sent_again(
        self, run: Run, api_url: str, notes: Path, session_factory: SessionFactory
    ) -> None:
        first = run("ingest", str(notes), "-c", "office", "--json").json()
        again = run("ingest", str(notes), "-c", "office", "--json")
        assert (again.json()["id"], again.err) == (first["id"], "1 of 1 files are being read already.\n")
        assert count(session_factory, File) == 1

    def test_what_could_not_be_read_is_tried_again_without_being_sent_again(
        self, run: Run, api_url: str, notes: Path, end: End, session_factory: SessionFactory
    ) -> None:
        first = run("ingest", str(notes), "-c", "office", "--json").json()
        with transaction(session_factory) as session:
            move(session, session.get_one(Job, first["id"]), JobStatus.FAILED)
        end(DocumentStatus.FAILED)
        again = run("ingest", str(notes), "-c", "office", "--json", "--password", "sesame")
        assert again.json()["id"] != first["id"]
        assert again.json()["params"]["replace"] is True
        assert (count(session_factory, File), count(session_factory, Document)) == (1, 1)
        with transaction(session_factory) as session:
            assert session.scalars(select(Document.password)).one() == "sesame"

    def test_what_is_there_costs_nothing(
        self, run: Run, api_url: str, notes: Path, end: End, session_factory: SessionFactory
    ) -> None:
        run("ingest", str(notes), "-c", "office")
        end(DocumentStatus.COMPLETED)
        ran = run("ingest", str(notes), "-c", "office")
        assert (ran.status, ran.out) == (0, "office is up to date.\n")
        assert ran.err == "1 of 1 files are there already, unchanged.\n"
        assert count(session_factory, Job) == 1


class TestCollections:
    def test_are_listed_on_a_narrow_screen_with_their_ids_whole(
        self, run: Run, api_url: str, notes: Path, end: End, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert "no collections yet" in run("collections").out
        run("ingest", str(notes), "-c", "office")
        end(DocumentStatus.FAILED)
        [row] = httpx.get(f"{api_url}/v1/vector_stores").json()["data"]
        monkeypatch.setenv("COLUMNS", "80")
        last = run("collections").out.splitlines()[-1]
        assert last.split() == ["office", row["id"], "0,", "1", "failed", "0", "B"]
