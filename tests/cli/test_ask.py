"""Questions to documents: the answer, and where it stands."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from cli.answer import source
from db.models import Collection
from db.queries.collections import create_collection
from db.queries.ingests import assign
from db.queries.models import get_model
from db.session import SessionFactory, transaction
from db.settings import Settings
from db.states import JobKind
from tests.api.answers.answering_server import AnsweringServer
from tests.api.conftest import serving
from tests.cli.conftest import Hand, Run
from tests.documents import pdf_of
from tests.embedding_server import EmbeddingStandIn
from tests.library import Library
from tests.rows import add_job

QUESTION = "How many days of holidays are there a year?"


@pytest.fixture(scope="module")
def embeddings() -> Iterator[EmbeddingStandIn]:
    server = EmbeddingStandIn()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def answering() -> Iterator[tuple[AnsweringServer, str]]:
    server = AnsweringServer(streams=True)
    with serving(server) as url:
        yield server, url


@pytest.fixture
def settings(
    database_url: str,
    redis_url: str,
    tmp_path: Path,
    answering: tuple[AnsweringServer, str],
    embeddings: EmbeddingStandIn,
) -> Settings:
    return Settings(
        database_url=database_url,
        redis_url=redis_url,
        data_dir=tmp_path / "data",
        chat_server_url=answering[1],
        chat_server_key=SecretStr(answering[0].key),
        embedding_server_url=embeddings.url,
    )


@pytest.fixture
def server(answering: tuple[AnsweringServer, str], hand: Hand) -> AnsweringServer:
    """The models' server, with the model `faq`."""
    hand.publish("faq", "Q4_K_M")
    answering[0].models.add("faq-1-q4_k_m")
    answering[0].says = "There are *thirty* [2]."
    return answering[0]


@pytest.fixture
def office(session_factory: SessionFactory, embeddings: EmbeddingStandIn, tmp_path: Path) -> str:
    """The id of a collection of two documents and one that is still being read."""
    library = Library(tmp_path, embeddings)
    pages = ["Lathes turn metal.", "Holidays are thirty days a year.", "Coffee is free."]
    with transaction(session_factory) as session:
        collection = create_collection(session, project_id="default", name="office")
        library.put(
            session, collection, "a.txt", "How many days of holidays are there a year is told elsewhere."
        )
        library.put(session, collection, "handbook.pdf", pdf_of(pages, outline={"Work": 1}))
        unread = library.announce(session, collection, "late.pdf")
        job = add_job(session, kind=JobKind.INGEST, params={}, max_attempts=1)
        assign(session, [unread], job)
        return collection.id


class TestAsk:
    def test_tells_the_answer_then_the_pages_it_cites(
        self, run: Run, api_url: str, server: AnsweringServer, office: str
    ) -> None:
        ran = run("ask", QUESTION, "--collection", "office", "--model", "faq")
        assert ran.out == "There are *thirty* [2].\n\n[2] handbook.pdf, pp. 1–3 (Work)\n"
        assert ran.err == "1 of 3 documents is still being read.\n"
        assert ran.status == 0

    def test_lists_all_when_none_is_cited(
        self, run: Run, api_url: str, server: AnsweringServer, office: str
    ) -> None:
        server.says = "Perhaps."
        ran = run("ask", QUESTION, "-c", office)
        assert ran.out == "Perhaps.\n\n[1] a.txt\n[2] handbook.pdf, pp. 1–3 (Work)\n"
        assert "cites none" in ran.err

    def test_reads_from_a_pipe_and_writes_json(
        self, run: Run, api_url: str, server: AnsweringServer, office: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n"))
        answer = run("ask", "-c", "office", "--json", "--rewrite").json()
        assert answer["choices"][0]["message"]["annotations"][0]["text"] == "[2]"
        assert answer["retrieval"]["queries"] == [QUESTION, "There are *thirty* [2]."]

    def test_without_a_collection_asks_the_models_own_documents(
        self, run: Run, api_url: str, server: AnsweringServer, office: str, session_factory: SessionFactory
    ) -> None:
        refused = run("ask", QUESTION, "--model", "faq")
        assert refused.status == 4
        assert "no documents of its own" in refused.err
        with transaction(session_factory) as session:
            session.get_one(Collection, office).model_id = get_model(session, "default", "faq").id
        assert run("ask", QUESTION).out.startswith("There are *thirty*")

    def test_nothing_found_is_an_answer(
        self, run: Run, api_url: str, server: AnsweringServer, session_factory: SessionFactory
    ) -> None:
        with transaction(session_factory) as session:
            create_collection(session, project_id="default", name="empty")
        ran = run("ask", QUESTION, "-c", "empty")
        assert (ran.status, ran.err) == (0, "")
        assert ran.out == (
            "Nothing was found about this in the given documents. There are no documents to search.\n"
        )

    def test_without_a_model_says_how_to_get_one(self, run: Run, api_url: str, office: str) -> None:
        ran = run("ask", QUESTION, "-c", "office")
        assert (ran.status, ran.out) == (4, "")
        assert "lathe fine-tune" in ran.err
        named = run("ask", QUESTION, "-c", "office", "-m", "tiny")
        assert named.status == 4
        assert "has not been made yet" in named.err


def test_a_printed_page_number_is_told() -> None:
    place = {"filename": "a.pdf", "first_page": 3, "last_page": 3, "page_label": "iii"}
    assert source({**place, "section": "Preface\n"}) == "a.pdf, p. 3 “iii” (Preface)"
