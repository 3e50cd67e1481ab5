"""Finding passages in several collections at once, in a database of the test's own."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from api.jobs.feeds import Feeds
from api.retrieval.finding import find
from api.unit_of_work import Services
from db.doorbell import Doorbell
from db.errors import Conflict, InvalidInput, NotFound, Unavailable
from db.models import Collection, Document, File
from db.queries.collections import create_collection
from db.queries.documents import add_documents
from db.queries.jobs import create_job
from db.session import SessionFactory, make_session_factory, transaction
from db.settings import Settings
from db.states import JobKind
from retrieval.search import Found
from serving.openai_compatible import make_async_client
from tests.embedding_server import DIMENSIONS, UNEMBEDDABLE, EmbeddingStandIn
from tests.retrieval.test_search import load


@pytest.fixture(scope="module")
def embeddings() -> Iterator[EmbeddingStandIn]:
    server = EmbeddingStandIn()
    yield server
    server.stop()


@pytest.fixture
def settings(database_url: str, redis_url: str, embeddings: EmbeddingStandIn) -> Settings:
    return Settings(database_url=database_url, redis_url=redis_url, embedding_server_url=embeddings.url)


@pytest.fixture
def session_factory(engine: Engine) -> SessionFactory:
    return make_session_factory(engine)


Find = Callable[..., Found]


@pytest.fixture
def look(settings: Settings, engine: Engine, session_factory: SessionFactory) -> Find:
    """`find`, with the services of a process of its own."""

    async def ask(collections: list[str], texts: list[str], **options: Any) -> Found:
        async with make_async_client() as client:
            services = Services(
                settings,
                engine,
                session_factory,
                Doorbell(settings.require_redis_url()),
                client,
                Feeds(settings.require_database_url(), session_factory),
            )
            return await find(services, collections, texts, **{"limit": 10, **options})

    return lambda *arguments, **options: asyncio.run(ask(*arguments, **options))


@pytest.fixture
def fill(session_factory: SessionFactory, embeddings: EmbeddingStandIn, tmp_path: Path) -> Callable[..., str]:
    """Make a collection with a document of these passages, as a finished ingest leaves it."""

    def fill(name: str, passages: list[str], *, model: str = "default") -> str:
        with transaction(session_factory) as session:
            collection = create_collection(session, project_id="default", name=name)
            if passages:
                load(session, tmp_path, collection, name, passages)
                collection.embedding_model = model
                collection.embedding_revision = embeddings.model_revision
                collection.dimensions = DIMENSIONS
            return collection.id

    return fill


class TestFind:
    def test_searches_several_collections_as_one(self, look: Find, fill: Callable[..., str]) -> None:
        foxes, owls = fill("foxes", ["red fox", "old hat"]), fill("owls", ["grey fox owl", "new hat"])
        found = look([foxes, owls, fill("empty", []), foxes], ["fox"])
        assert {hit.document.filename for hit in found.hits[:2]} == {"foxes.txt", "owls.txt"}
        assert len(found.hits) == 4
        assert (found.queries, found.indexing, found.notices) == (["fox"], 0, [])
        assert found.used[0] == "embedding"
        assert set(found.seconds) == set(found.used)

    def test_asks_no_server_about_empty_collections(
        self, look: Find, fill: Callable[..., str], embeddings: EmbeddingStandIn
    ) -> None:
        asked = embeddings.requests
        found = look([fill("empty", [])], ["fox"])
        assert (found.hits, found.used, embeddings.requests) == ([], [], asked)

    def test_names_two_whose_vectors_cannot_be_compared(self, look: Find, fill: Callable[..., str]) -> None:
        one, other = fill("one", ["a"]), fill("other", ["b"], model="another")
        with pytest.raises(Conflict, match=f"{one}.*{other} from another"):
            look([one, other], ["fox"])

    def test_tells_how_many_documents_are_still_being_read(
        self, look: Find, fill: Callable[..., str], session_factory: SessionFactory
    ) -> None:
        collection_id = fill("growing", ["red fox"])
        with transaction(session_factory) as session:
            collection = session.get_one(Collection, collection_id)
            file = File(
                id="file-new", project_id="default", purpose="assistants", filename="new.txt", bytes=1,
                sha256="new", path="new",
            )  # fmt: skip
            session.add(file)
            session.flush()
            [document] = add_documents(
                session, collection, [file], attributes=[{}],
                chunking=[{"max_tokens": 64, "overlap_tokens": 0}], passwords=[None],
            )  # fmt: skip
            job = create_job(session, project_id="default", kind=JobKind.INGEST, params={})
            document.job_id = job.id
        assert look([collection_id], ["fox"], where=Document.filename == "growing.txt").indexing == 1

    def test_what_cannot_be(self, look: Find, fill: Callable[..., str], embeddings: EmbeddingStandIn) -> None:
        collection_id = fill("c", ["red fox"])
        with pytest.raises(NotFound):
            look([collection_id, "vs-0"], ["fox"])
        with pytest.raises(InvalidInput, match="too large") as refused:
            look([collection_id], [UNEMBEDDABLE])
        assert refused.value.param == "query"
        embeddings.is_away = True
        try:
            with pytest.raises(Unavailable, match="loading model"):
                look([collection_id], ["fox"])
        finally:
            embeddings.is_away = False
