"""Finding passages: in several collections, in other words, reranked by a real cross-encoder."""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from openai import OpenAI
from pydantic import SecretStr

from api.app import create_app
from api.caller import CALLER, Caller
from api.chat.generation import question
from api.chat.schemas import GenerateRequest
from api.retrieval.finding import find
from api.retrieval.rewriting import rewriting_model
from api.unit_of_work import Unit
from db.errors import Conflict, InvalidInput, NotFound, Unavailable
from db.models import Collection, Document
from db.queries.collections import create_collection
from db.queries.documents import add_documents
from db.session import SessionFactory, transaction
from db.settings import Settings
from db.states import JobKind
from retrieval.search import Found, Ranking
from serving import llama_cpp
from serving.backends.roster import Backends
from serving.local_port import free_port
from tests.api.conftest import Publish
from tests.api.model_server import ModelServer
from tests.api.serving import serving
from tests.embedding_server import DIMENSIONS, UNEMBEDDABLE, EmbeddingStandIn
from tests.retrieval.test_search import load
from tests.rows import add_file, add_job
from tests.serving.llama_process import LlamaProcess
from tests.serving.random_reranker import write_random_reranker
from tests.waiting import wait_until

NO_KEY = SecretStr("")


@pytest.fixture(scope="module")
def embeddings() -> Iterator[EmbeddingStandIn]:
    server = EmbeddingStandIn()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real llama-server with a cross-encoder of random weights."""
    path, port = tmp_path_factory.mktemp("reranker") / "reranker.gguf", free_port()
    write_random_reranker(path)
    tools = llama_cpp.require_tools(Settings())
    argv = llama_cpp.model_server_argv(
        tools, path, port=port, threads=1, n_gpu_layers=0, context=512, slots=2
    )
    process = LlamaProcess(path, argv=[*argv, "--reranking"], port=port)
    yield process.url
    process.stop()


@pytest.fixture
def finding(settings: Settings, embeddings: EmbeddingStandIn) -> Settings:
    """The settings of an installation whose embeddings mean something."""
    return settings.model_copy(
        update={"embedding_server_url": embeddings.url, "embedding_server_key": NO_KEY}
    )


@pytest.fixture
def rewritings(backend: tuple[ModelServer, str]) -> Iterator[Callable[[str], None]]:
    """Let models named `rewrites-…` answer with a text."""

    def answer(text: str) -> None:
        backend[0].rewritings = text

    yield answer
    answer("")


Find = Callable[..., Found]
Fill = Callable[..., str]


@pytest.fixture
def look(finding: Settings) -> Find:
    """`find`, as a request of the project `default` calls it, with `changes` to the settings."""

    async def ask(
        collections: list[str], texts: list[str], *, changes: dict[str, object] | None = None, **options: Any
    ) -> Found:
        CALLER.set(Caller())
        app = create_app(finding.model_copy(update=changes))
        async with app.router.lifespan_context(app):
            return await find(app.state.services, collections, texts, **{"limit": 10, **options})

    return lambda *arguments, **options: asyncio.run(ask(*arguments, **options))


@pytest.fixture
def fill(session_factory: SessionFactory, embeddings: EmbeddingStandIn, tmp_path: Path) -> Fill:
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


def texts_of(found: Found) -> list[str]:
    return [hit.chunk.text for hit in found.hits]


class TestFind:
    def test_searches_several_collections_as_one(self, look: Find, fill: Fill) -> None:
        foxes, owls = fill("foxes", ["red fox", "old hat"]), fill("owls", ["grey fox owl", "new hat"])
        found = look([foxes, owls, fill("empty", []), foxes], ["fox"])
        assert {hit.document.filename for hit in found.hits[:2]} == {"foxes.txt", "owls.txt"}
        assert len(found.hits) == 4
        assert (found.queries, found.indexing, found.notices) == (["fox"], 0, [])
        assert found.used[0] == "embedding"
        assert set(found.seconds) == set(found.used)

    def test_asks_no_server_about_empty_collections(
        self, look: Find, fill: Fill, embeddings: EmbeddingStandIn
    ) -> None:
        asked = embeddings.requests
        found = look([fill("empty", [])], ["fox"])
        assert (found.hits, found.used, embeddings.requests) == ([], [], asked)

    def test_names_two_whose_vectors_cannot_be_compared(self, look: Find, fill: Fill) -> None:
        one, other = fill("one", ["a"]), fill("other", ["b"], model="another")
        with pytest.raises(Conflict, match=f"{one}.*{other} from another"):
            look([one, other], ["fox"])

    def test_tells_how_many_documents_are_still_being_read(
        self, look: Find, fill: Fill, session_factory: SessionFactory
    ) -> None:
        collection_id = fill("growing", ["red fox"])
        with transaction(session_factory) as session:
            collection = session.get_one(Collection, collection_id)
            file = add_file(session, "new.txt")
            [document] = add_documents(
                session, collection, [file], attributes=[{}],
                chunking=[{"max_tokens": 64, "overlap_tokens": 0}], passwords=[None],
            )  # fmt: skip
            job = add_job(session, kind=JobKind.INGEST, params={})
            document.job_id = job.id
        assert look([collection_id], ["fox"], where=Document.filename == "growing.txt").indexing == 1

    def test_what_cannot_be(self, look: Find, fill: Fill, embeddings: EmbeddingStandIn) -> None:
        collection_id = fill("refused", ["red fox"])
        with pytest.raises(NotFound):
            look([collection_id, "vs-0"], ["fox"])
        with pytest.raises(InvalidInput, match=r"refuses a text: input is too large$") as refused:
            look([collection_id], [UNEMBEDDABLE])
        assert refused.value.param == "query"
        embeddings.is_away = True
        try:
            with pytest.raises(Unavailable, match="loading model"):
                look([collection_id], ["fox"])
        finally:
            embeddings.is_away = False


class TestRewriting:
    def test_searches_for_the_question_in_other_words_too(
        self,
        look: Find,
        fill: Fill,
        publish: Publish,
        rewritings: Callable[[str], None],
        backend: tuple[ModelServer, str],
    ) -> None:
        publish("rewrites")
        rewritings("1. duration of vacation\n2. days of holidays")
        collection = fill(
            "leave", ["We grant thirty holidays.", "Coffee is free.", "The office opens at nine."]
        )
        found = look([collection], ["leave of absence"], rewrite_with="rewrites", limit=1)
        assert texts_of(found) == ["We grant thirty holidays."]
        assert found.queries == ["leave of absence", "duration of vacation", "days of holidays"]
        assert found.used == ["embedding", "rewrite", "vector_exact", "full_text", "rrf"]
        assert set(found.seconds) == set(found.used)
        assert found.notices == []
        sent = json.loads(backend[0].bodies[-1])
        assert "leave of absence" in sent["messages"][0]["content"]
        assert sent["temperature"] == 0

    def test_does_without_other_words_that_cannot_be_embedded(
        self, look: Find, fill: Fill, publish: Publish, rewritings: Callable[[str], None]
    ) -> None:
        publish("rewrites-too-long")
        rewritings(f"{UNEMBEDDABLE} words")
        found = look([fill("held", ["red fox"])], ["fox"], rewrite_with="rewrites-too-long")
        assert (texts_of(found), found.queries) == (["red fox"], ["fox"])
        [notice] = found.notices
        assert "as it is" in notice

    def test_what_was_asked_counts_more_than_what_is_little_like_it(
        self, look: Find, fill: Fill, publish: Publish, rewritings: Callable[[str], None]
    ) -> None:
        publish("rewrites-much")
        rewritings("beta of one")
        found = look([fill("alpha", ["beta", "alpha"])], ["of alpha"], rewrite_with="rewrites-much")
        assert found.queries == ["of alpha", "beta of one"]
        assert texts_of(found) == ["alpha", "beta"]

    def test_what_means_something_else_is_not_searched_for(
        self, look: Find, fill: Fill, publish: Publish, rewritings: Callable[[str], None]
    ) -> None:
        publish("rewrites-badly")
        collection = fill("wrong", ["red fox", "lazy brown dog", "old hat"])
        alone = look([collection], ["the fox"])
        rewritings("lazy brown dog\nthe red animal\nQ4_K_K_K")
        found = look([collection], ["the fox"], rewrite_with="rewrites-badly")
        assert found.queries == ["the fox", "the red animal"]
        assert found.used[:3] == ["embedding", "rewrite", "rewrites_dropped"]
        [notice] = found.notices
        assert notice.startswith("2 of 3 rewritings were not searched for")
        rewritings("lazy brown dog")
        found = look([collection], ["the fox"], rewrite_with="rewrites-badly")
        assert found.queries == ["the fox"]
        assert [(hit.chunk.text, hit.score) for hit in found.hits] == [
            (hit.chunk.text, hit.score) for hit in alone.hits
        ]

    @pytest.mark.parametrize(
        ("model", "why"),
        [
            ("hangs-rewriting", "longer than 0.2 s"),
            ("loading-rewriting", "Loading model"),
            ("refuses-rewriting", "exceeds the context size"),
            ("rewrites-nothing", "no other words"),
        ],
    )
    def test_goes_on_without_a_model_that_does_not_help(
        self, look: Find, fill: Fill, publish: Publish, model: str, why: str
    ) -> None:
        publish(model)
        changes = {"rewrite_timeout_seconds": 0.2}
        found = look([fill(model, ["red fox", "old hat"])], ["fox"], rewrite_with=model, changes=changes)
        assert texts_of(found)[0] == "red fox"
        assert found.queries == ["fox"]
        [notice] = found.notices
        assert why in notice
        assert "rewrite" not in found.used
        assert "rewrite" in found.seconds

    def test_ends_when_the_caller_leaves(
        self, finding: Settings, fill: Fill, publish: Publish, backend: tuple[ModelServer, str]
    ) -> None:
        publish("hangs-searching")
        collection, server = fill("left", ["red fox"]), backend[0]
        app = create_app(finding.model_copy(update={"rewrite_model": "hangs-searching"}))
        begun, left = server.begun, server.left
        body = json.dumps({"query": "fox", "rewrite_query": True})
        head = (
            f"POST /v1/vector_stores/{collection}/search HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with serving(app) as url:
            address = urlsplit(url)
            with socket.create_connection((address.hostname, address.port)) as connection:
                connection.sendall((head + body).encode())
                wait_until(lambda: server.begun == begun + 1)
            wait_until(lambda: server.left == left + 1)

    def test_lets_no_model_think_first(self) -> None:
        asked = question(GenerateRequest(prompt="x"), thinking=False)("m")
        assert json.loads(asked.content)["chat_template_kwargs"] == {"enable_thinking": False}

    def test_which_model(
        self, settings: Settings, session_factory: SessionFactory, publish: Publish, tmp_path: Path
    ) -> None:
        publish("rewrites-newest")
        (tmp_path / "backends.toml").write_text("[there]\ntype = 'openai'\nurl = 'http://127.0.0.1:9'")
        settings = settings.model_copy(update={"backends": tmp_path / "backends.toml"})
        with transaction(session_factory) as session:

            def chosen(named: str | None, project: str = "default") -> str:
                changed = settings.model_copy(update={"rewrite_model": named})
                backends = Backends(settings, httpx.AsyncClient())
                return rewriting_model(Unit(session, changed, Caller(project)), backends)

            assert chosen(None) == "rewrites-newest"
            for name in ("rewrites-newest", "there/any-that-it-has"):
                assert chosen(name) == name
            for name, project, why in (
                (None, "empty", "No model has been published"),
                ("gone", "default", "LATHE_REWRITE_MODEL names 'gone'"),
            ):
                with pytest.raises(InvalidInput, match=why) as refused:
                    chosen(name, project)
                assert refused.value.param == "rewrite_query"


PASSAGES = [
    "red fox", "the fox is quick", "a fox and a hen", "no fox here", "fox: an animal of the woods",
    "old hat", "the hen", "a fox, a fox",
]  # fmt: skip


class TestReranking:
    def test_orders_as_the_cross_encoder_does(self, look: Find, fill: Fill, reranker: str) -> None:
        collection = fill("reranked", PASSAGES)
        body = {"query": "quick fox", "documents": PASSAGES}
        rows = httpx.post(f"{reranker}/v1/rerank", json=body, trust_env=False).json()["results"]
        scores = {PASSAGES[row["index"]]: row["relevance_score"] for row in rows}
        expected = sorted(PASSAGES, key=lambda text: -scores[text])

        fused = look([collection], ["quick fox"], limit=3)
        found = look([collection], ["quick fox"], limit=3, changes={"rerank_server_url": f"{reranker}/"})
        assert texts_of(found) == expected[:3] != texts_of(fused)
        assert [hit.score for hit in found.hits] == sorted((hit.score for hit in found.hits), reverse=True)
        assert all(0 <= hit.score <= 1 for hit in found.hits)
        assert found.used == ["embedding", "vector_exact", "full_text", "rrf", "rerank"]
        assert set(found.seconds) == set(found.used)

    def test_beyond_what_it_is_asked_the_order_stays(
        self, look: Find, fill: Fill, reranker: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        collection = fill("bounded", PASSAGES)
        fused = look([collection], ["fox"])
        monkeypatch.setattr("api.retrieval.reranking.TOKENS_MAX", 3)  # each of these passages counts one
        found = look([collection], ["fox"], changes={"rerank_server_url": reranker})
        assert set(texts_of(found)[:3]) == set(texts_of(fused)[:3])
        assert texts_of(found)[3:] == texts_of(fused)[3:]
        assert [hit.score for hit in found.hits] == sorted((hit.score for hit in found.hits), reverse=True)

    def test_diversity_comes_last(self, look: Find, fill: Fill, reranker: str) -> None:
        collection = fill("diverse", ["red fox", "red fox", "red fox", "old hat"])
        ranking = Ranking(diversity=0.9)
        found = look([collection], ["fox"], ranking=ranking, limit=2, changes={"rerank_server_url": reranker})
        assert sorted(texts_of(found)) == ["old hat", "red fox"]
        assert found.used[-2:] == ["rerank", "mmr"]
        assert look([collection], ["fox"], ranking=ranking, limit=2).used[-1] == "mmr"

    def test_without_the_server_the_order_stays_and_it_says_so(self, look: Find, fill: Fill) -> None:
        collection = fill("away", PASSAGES)
        away = {"rerank_server_url": f"http://127.0.0.1:{free_port()}"}
        fused = look([collection], ["fox"], limit=4)
        found = look([collection], ["fox"], limit=4, changes=away)
        assert texts_of(found) == texts_of(fused)
        assert "rerank" not in found.used
        [notice] = found.notices
        assert "rerank server" in notice
        with pytest.raises(Unavailable, match="rerank server"):
            look([collection], ["fox"], changes=away, rerank=True)
        assert look([collection], ["fox"], changes=away, rerank=False).notices == []
        with pytest.raises(InvalidInput, match="LATHE_RERANK_SERVER_URL"):
            look([collection], ["fox"], rerank=True)


class TestWithOpenAIsClient:
    @pytest.fixture
    def reranking(self, finding: Settings, reranker: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
        """The address of an API that has a rerank server."""
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with serving(create_app(finding.model_copy(update={"rerank_server_url": reranker}))) as url:
            yield url

    def test_rewrites_and_ranks(
        self, reranking: str, fill: Fill, publish: Publish, rewritings: Callable[[str], None]
    ) -> None:
        publish("rewrites-last")
        rewritings("quick fox")
        collection = fill("stock", PASSAGES)
        ways: dict[str, list[str]] = {
            "none": ["embedding", "vector_exact"],
            "rrf": ["embedding", "vector_exact", "full_text", "rrf"],
            "auto": ["embedding", "vector_exact", "full_text", "rrf", "rerank"],
            "default-2024-11-15": ["embedding", "vector_exact", "full_text", "rrf", "rerank"],
            "rerank": ["embedding", "vector_exact", "full_text", "rrf", "rerank"],
        }
        with OpenAI(base_url=f"{reranking}/v1", api_key="unused", max_retries=0) as client:
            for ranker, used in ways.items():
                options: Any = {"ranker": ranker, "score_threshold": 0.1}
                found = client.vector_stores.search(collection, query="fox", ranking_options=options)
                assert (found.model_extra or {})["used"] == used
                assert "fox" in found.data[0].content[0].text
            found = client.vector_stores.search(collection, query="fox", rewrite_query=True)
            told = found.model_extra or {}
            assert told["search_query"] == ["fox", "quick fox"]
            assert (told["used"][:2], told["notices"]) == (["embedding", "rewrite"], [])
            options = {"diversity": 0.5}
            found = client.vector_stores.search(collection, query="fox", ranking_options=options)
            assert (found.model_extra or {})["used"][-1] == "mmr"
            options = {"hybrid_search": {"embedding_weight": 0, "text_weight": 0}}
            with pytest.raises(openai.BadRequestError, match=r"at least 0\.001"):
                client.vector_stores.search(collection, query="fox", ranking_options=options)
