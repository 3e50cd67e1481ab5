"""OpenAI's own client, unmodified, over the API, a real worker and an embedding server."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI

from api.app import create_app
from db.settings import Settings
from tests.api.conftest import serving
from tests.api.handing_in import HANDBOOK, named, run_lathe
from tests.conftest import PostgresServer
from tests.documents import docx_of, pdf_of
from tests.embedding_server import EmbeddingStandIn
from tests.nursery import WORKERS
from tests.worker.conftest import environment

MANY_FILTERS = {"type": "or", "filters": [{"type": "eq", "key": "a", "value": 1}] * 64}


@pytest.fixture(scope="module")
def embeddings() -> Iterator[EmbeddingStandIn]:
    server = EmbeddingStandIn()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def stack(
    postgres_server: PostgresServer,
    migrated_template: str,
    valkey_url: str,
    embeddings: EmbeddingStandIn,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The API's address; a worker of its own reads what comes in."""
    folder = tmp_path_factory.mktemp("documents")
    postgres_server.execute(f"CREATE DATABASE vectors TEMPLATE {migrated_template} STRATEGY file_copy")
    settings = Settings(
        database_url=postgres_server.url("vectors"),
        redis_url=valkey_url.removesuffix("/0") + "/2",
        data_dir=folder / "data",
        embedding_server_url=embeddings.url,
        train_concurrency=0,
        gpu_concurrency=0,
        heartbeat_seconds=1,
        sweep_seconds=1,
    )
    own = environment(settings) | {"LATHE_EMBEDDING_SERVER_URL": embeddings.url}
    with (folder / "worker.log").open("wb") as log:
        worker = WORKERS.start(["-m", "worker"], env=own, log=log)
    try:
        with serving(create_app(settings)) as url:
            yield url
    finally:
        worker.terminate()
        worker.wait(30)


@pytest.fixture
def client(stack: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAI]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with OpenAI(base_url=f"{stack}/v1", api_key="unused", max_retries=0) as client:
        yield client


class TestCollections:
    def test_create_retrieve_update_list_delete(self, client: OpenAI) -> None:
        made = client.vector_stores.create(
            name="one", metadata={"team": "a"}, expires_after={"anchor": "last_active_at", "days": 7}
        )
        assert (made.object, made.name, made.status, made.metadata) == (
            "vector_store",
            "one",
            "completed",
            {"team": "a"},
        )
        assert made.expires_at is not None
        assert made.last_active_at is not None
        assert made.expires_at - made.last_active_at == 7 * 86_400
        changed = client.vector_stores.update(made.id, name="two", expires_after=None)
        assert (changed.name, changed.expires_at, changed.metadata) == ("two", None, {"team": "a"})
        other = client.vector_stores.create(name="three")
        ids = [row.id for row in client.vector_stores.list(limit=1)]
        assert ids[:2] == [other.id, made.id]
        assert [row.id for row in client.vector_stores.list(order="asc", before=other.id)][-1:] == [made.id]
        assert client.vector_stores.delete(made.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.vector_stores.retrieve(made.id)

    def test_an_empty_one_finds_nothing(self, client: OpenAI) -> None:
        store = client.vector_stores.create(name="empty")
        assert client.vector_stores.search(store.id, query="anything").data == []


class TestFiles:
    def test_from_a_pdf_to_a_passage_with_its_page(self, client: OpenAI) -> None:
        store = client.vector_stores.create(name="handbook")
        file = client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=named("handbook.pdf", HANDBOOK), poll_interval_ms=100
        )
        assert (file.status, file.last_error) == ("completed", None)
        assert file.usage_bytes > 0
        store = client.vector_stores.retrieve(store.id)
        assert (store.file_counts.completed, store.file_counts.total) == (1, 1)

        found = client.vector_stores.search(store.id, query="How many days of holidays?", max_num_results=1)
        [passage] = found.data
        assert "thirty days" in passage.content[0].text
        assert (passage.file_id, passage.filename) == (file.id, "handbook.pdf")
        told = passage.model_extra or {}
        # Short pages share a chunk: the holidays' begins on page 1 or 2 and reaches page 2.
        assert told["first_page"] <= 2 <= told["last_page"]

        pages = [
            row.text or "" for row in client.vector_stores.files.content(file.id, vector_store_id=store.id)
        ]
        assert len(pages) == 3
        whole = "\n\n".join(pages)
        assert whole[told["start"] : told["end"]] == passage.content[0].text

    def test_the_same_file_again_costs_nothing(self, client: OpenAI, embeddings: EmbeddingStandIn) -> None:
        store = client.vector_stores.create(name="again")
        first = client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=named("a.txt", b"The fox jumps."), poll_interval_ms=100
        )
        asked = embeddings.requests
        again = client.vector_stores.files.create_and_poll(
            vector_store_id=store.id, file_id=first.id, attributes={"year": 2024}, poll_interval_ms=100
        )
        assert (again.id, again.status, again.attributes) == (first.id, "completed", {"year": 2024})
        twin = client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=named("b.txt", b"The fox jumps."), poll_interval_ms=100
        )
        assert twin.status == "completed"
        assert embeddings.requests == asked
        assert len(client.vector_stores.search(store.id, query="fox").data) == 2

    def test_other_formats(self, client: OpenAI) -> None:
        store = client.vector_stores.create(name="formats")
        report = docx_of([("Heading 1", "Budget"), ("Normal", "Marmalade is dear.")], table=[["Jam", "3"]])
        batch = client.vector_stores.file_batches.upload_and_poll(
            store.id,
            files=[
                named("notes.md", b"# Foxes\n\nA fox is red.\n\n# Owls\n\nAn owl is grey."),
                named("page.html", b"<title>T</title><h1>Ducks</h1><p>A duck is green.<script>x()</script>"),
                named("report.docx", report),
            ],
            poll_interval_ms=100,
        )
        assert (batch.status, batch.file_counts.completed) == ("completed", 3)
        [best] = client.vector_stores.search(store.id, query="marmalade", max_num_results=1).data
        assert (best.filename, (best.model_extra or {})["section"]) == ("report.docx", "Budget")

    def test_one_that_cannot_be_read_stops_no_other(self, client: OpenAI) -> None:
        store = client.vector_stores.create(name="mixed")
        good = client.files.create(file=("good.txt", b"Hedgehogs sleep."), purpose="assistants")
        bad = client.files.create(file=("bad.pdf", b"\x89PNG\r\n\x1a\n" + bytes(99)), purpose="assistants")
        locked = client.files.create(
            file=("locked.pdf", pdf_of(["Secret"], password="open")), purpose="assistants"
        )
        batch = client.vector_stores.file_batches.create_and_poll(
            store.id, file_ids=[good.id, bad.id, locked.id], poll_interval_ms=100
        )
        assert (batch.status, batch.file_counts.completed, batch.file_counts.failed) == ("completed", 1, 2)
        failed = client.vector_stores.file_batches.list_files(
            batch.id, vector_store_id=store.id, filter="failed"
        )
        errors = {row.id: row.last_error for row in failed}
        png, encrypted = errors[bad.id], errors[locked.id]
        assert png is not None
        assert png.code == "unsupported_file"
        assert "PNG" in png.message
        assert encrypted is not None
        assert "password" in encrypted.message
        opened = client.vector_stores.files.create_and_poll(
            vector_store_id=store.id, file_id=locked.id, poll_interval_ms=100
        )
        assert opened.status == "failed"

    def test_a_password_opens_a_file_and_comes_back_nowhere(self, client: OpenAI, stack: str) -> None:
        store = client.vector_stores.create(name="locked")
        file = client.files.create(
            file=("locked.pdf", pdf_of(["Badgers dig."], password="open-sesame")), purpose="assistants"
        )
        path = f"{stack}/v1/vector_stores/{store.id}/files"
        body = {"file_id": file.id, "password": "open-sesame"}
        answers = [httpx.post(path, json=body, trust_env=False)]
        done = client.vector_stores.files.poll(file.id, vector_store_id=store.id, poll_interval_ms=100)
        assert done.status == "completed"
        job = answers[0].json()["job_id"]
        answers += [
            httpx.get(f"{stack}/v1/jobs/{job}{part}", trust_env=False) for part in ("", "/events", "/logs")
        ]
        assert all("open-sesame" not in answer.text for answer in answers)

    def test_tells_the_language_and_takes_another(self, client: OpenAI, stack: str) -> None:
        store = client.vector_stores.create(name="languages")
        text = "Die Häuser am Fluss wurden im vergangenen Jahr verkauft."
        file = client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=named("haus.txt", text.encode()), poll_interval_ms=100
        )
        told = file.model_extra or {}
        assert told["language"] == "german"
        events = httpx.get(f"{stack}/v1/jobs/{told['job_id']}/events", trust_env=False).json()["data"]
        assert any("can be searched: 1 chunk, german." in event["message"] for event in events)
        found = client.vector_stores.search(store.id, query="Haus", max_num_results=1)
        assert [passage.filename for passage in found.data] == ["haus.txt"]
        path = f"{stack}/v1/vector_stores/{store.id}/files"
        given = {"file_id": file.id, "language": "nl"}
        assert httpx.post(path, json=given, trust_env=False).json()["language"] == "dutch"
        refused = httpx.post(path, json=given | {"language": "klingon"}, trust_env=False)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "language")

    def test_attributes_and_deletion(self, client: OpenAI) -> None:
        store = client.vector_stores.create(name="attributes")
        file = client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=named("a.txt", b"Otters swim."), poll_interval_ms=100
        )
        changed = client.vector_stores.files.update(
            file.id, vector_store_id=store.id, attributes={"year": 2023, "draft": True, "by": "Ann"}
        )
        assert changed.attributes == {"year": 2023, "draft": True, "by": "Ann"}
        assert client.vector_stores.files.delete(file.id, vector_store_id=store.id).deleted
        assert client.vector_stores.search(store.id, query="otters").data == []
        assert client.files.retrieve(file.id).id == file.id
        with pytest.raises(openai.NotFoundError):
            client.vector_stores.files.retrieve(file.id, vector_store_id=store.id)


@pytest.fixture(scope="module")
def library(stack: str) -> str:
    """A collection of four short texts, by year and language."""
    with OpenAI(base_url=f"{stack}/v1", api_key="unused", max_retries=0) as client:
        store = client.vector_stores.create(name="library")
        texts = {
            "fox": ("The quick fox lives in the forest.", {"year": 2020, "language": "en"}),
            "owl": ("The wise owl lives in the forest.", {"year": 2021, "language": "en"}),
            "eule": ("Die Eule wohnt im Wald.", {"year": 2022, "language": "de"}),
            "tax": ("Taxes are due in June.", {"year": 2023}),
        }
        client.vector_stores.file_batches.create_and_poll(
            store.id,
            files=[
                {
                    "file_id": client.files.create(
                        file=(f"{name}.txt", text.encode()), purpose="assistants"
                    ).id,
                    "attributes": attributes,  # type: ignore[typeddict-item]
                }
                for name, (text, attributes) in texts.items()
            ],
            poll_interval_ms=100,
        )
        return store.id


class TestSearch:
    @pytest.mark.parametrize(
        ("filters", "expected"),
        [
            ({"type": "eq", "key": "language", "value": "en"}, {"fox", "owl"}),
            ({"type": "ne", "key": "language", "value": "en"}, {"eule", "tax"}),
            ({"type": "gt", "key": "year", "value": 2021}, {"eule", "tax"}),
            ({"type": "gte", "key": "year", "value": 2021}, {"owl", "eule", "tax"}),
            ({"type": "lt", "key": "language", "value": "e"}, {"eule"}),
            ({"type": "lte", "key": "year", "value": 2020.5}, {"fox"}),
            ({"type": "in", "key": "year", "value": [2020, 2023]}, {"fox", "tax"}),
            ({"type": "nin", "key": "year", "value": [2020, 2023]}, {"owl", "eule"}),
            (
                {
                    "type": "and",
                    "filters": [
                        {"type": "gte", "key": "year", "value": 2021},
                        {
                            "type": "or",
                            "filters": [
                                {"type": "eq", "key": "language", "value": "de"},
                                {"type": "eq", "key": "year", "value": 2021},
                            ],
                        },
                    ],
                },
                {"owl", "eule"},
            ),
            ({"type": "eq", "key": "'; DROP TABLE chunks; --", "value": "x"}, set()),
        ],
    )
    def test_filters(self, client: OpenAI, library: str, filters: object, expected: set[str]) -> None:
        found = client.vector_stores.search(library, query="forest", filters=filters)  # type: ignore[arg-type]
        assert {row.filename.removesuffix(".txt") for row in found.data} == expected

    def test_ranking_options(self, client: OpenAI, library: str) -> None:
        alone = client.vector_stores.search(
            library, query="the wise owl", ranking_options={"ranker": "none", "score_threshold": 0.5}
        )
        assert alone.data[0].filename == "owl.txt"
        assert all(row.score >= 0.5 for row in alone.data)
        scores = [row.score for row in alone.data]
        assert scores == sorted(scores, reverse=True)

    def test_several_queries_and_how_was_searched(self, stack: str, library: str) -> None:
        body = {"query": ["owl", "taxes due"], "max_num_results": 2}
        answer = httpx.post(f"{stack}/v1/vector_stores/{library}/search", json=body, trust_env=False).json()
        assert {row["filename"] for row in answer["data"]} == {"owl.txt", "tax.txt"}
        assert answer["search_query"] == ["owl", "taxes due"]
        assert answer["used"] == ["embedding", "vector_exact", "full_text", "rrf"]
        assert set(answer["seconds"]) == set(answer["used"])
        assert answer["in_progress"] == 0

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"query": ""}, "query"),
            ({"query": "x", "max_num_results": 51}, "max_num_results"),
            ({"query": "x", "rewrite_query": True}, "rewrite_query"),  # nothing has been published
            ({"query": "x", "ranking_options": {"ranker": "rerank"}}, "ranker"),
            ({"query": "x", "ranking_options": {"diversity": 2}}, "ranking_options.diversity"),
            ({"query": "x\0"}, "query"),
            ({"query": "x", "filters": {"type": "gt", "key": "\0", "value": 1}}, "filters"),
            ({"query": "x", "filters": {"type": "in", "key": "a", "value": 1}}, "filters"),
            ({"query": "x", "filters": {"type": "or", "filters": [MANY_FILTERS] * 5}}, "filters"),
            (
                {"query": "x", "ranking_options": {"hybrid_search": {"embedding_weight": 1e308}}},
                "ranking_options.hybrid_search.embedding_weight",
            ),
            (
                {
                    "query": "x",
                    "ranking_options": {"hybrid_search": {"embedding_weight": 5e-324, "text_weight": 0}},
                },
                "ranking_options.hybrid_search",
            ),
            ({"query": "x", "filters": {"type": "gt", "key": "a", "value": True}}, "filters"),
        ],
    )
    def test_bad_requests_name_the_field(self, stack: str, library: str, body: object, param: str) -> None:
        answer = httpx.post(f"{stack}/v1/vector_stores/{library}/search", json=body, trust_env=False)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param

    def test_another_embedding_model_is_refused(
        self, client: OpenAI, library: str, embeddings: EmbeddingStandIn
    ) -> None:
        embeddings.revision = 2
        try:
            with pytest.raises(openai.ConflictError, match="new collection"):
                client.vector_stores.search(library, query="owl")
            file = client.vector_stores.files.upload_and_poll(
                vector_store_id=library, file=named("new.txt", b"New text."), poll_interval_ms=100
            )
        finally:
            embeddings.revision = 1
        assert file.status == "failed"
        assert file.last_error is not None
        assert file.last_error.code == "server_error"
        client.vector_stores.files.delete(file.id, vector_store_id=library)


class TestIngestJob:
    def test_replaces_what_has_the_same_name(self, client: OpenAI, stack: str) -> None:
        store = client.vector_stores.create(name="replacing")
        old = client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=named("prices.txt", b"Bread costs two."), poll_interval_ms=100
        )
        new = client.files.create(file=("prices.txt", b"Bread costs three."), purpose="assistants")
        params = {"collection": store.id, "files": [new.id], "replace": True}
        job = httpx.post(
            f"{stack}/v1/jobs", json={"kind": "ingest", "params": params}, trust_env=False
        ).json()
        client.vector_stores.file_batches.poll(job["id"], vector_store_id=store.id, poll_interval_ms=100)
        assert [row.id for row in client.vector_stores.files.list(store.id)] == [new.id]
        [row] = client.vector_stores.search(store.id, query="bread").data
        assert row.content[0].text == "Bread costs three."
        assert client.files.retrieve(old.id).id == old.id

    def test_what_has_the_content_of_another_document_replaces_too(self, client: OpenAI, stack: str) -> None:
        store = client.vector_stores.create(name="twins")
        for name, text in (("prices.txt", b"Bread costs two."), ("copy.txt", b"Bread costs three.")):
            client.vector_stores.files.upload_and_poll(
                vector_store_id=store.id, file=named(name, text), poll_interval_ms=100
            )
        new = client.files.create(file=("prices.txt", b"Bread costs three."), purpose="assistants")
        params = {"collection": store.id, "files": [new.id], "replace": True}
        job = httpx.post(
            f"{stack}/v1/jobs", json={"kind": "ingest", "params": params}, trust_env=False
        ).json()
        listed = {row.id: row.model_dump()["filename"] for row in client.vector_stores.files.list(store.id)}
        assert (len(listed), listed[new.id]) == (2, "prices.txt")
        events = httpx.get(f"{stack}/v1/jobs/{job['id']}/events", trust_env=False).json()["data"]
        assert any(event["message"].startswith("prices.txt takes the place of") for event in events)

    def test_of_two_files_of_one_name_none_replaces_the_other(self, client: OpenAI, stack: str) -> None:
        store = client.vector_stores.create(name="namesakes")
        files = [
            client.files.create(file=("README.md", text), purpose="assistants").id for text in (b"a", b"b")
        ]
        params = {"collection": store.id, "files": files, "replace": True}
        answer = httpx.post(f"{stack}/v1/jobs", json={"kind": "ingest", "params": params}, trust_env=False)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["param"], error["code"]) == ("files", "same_filename")
        assert "README.md" in error["message"]

    @pytest.mark.parametrize("missing", ["collection", "files"])
    def test_needs_what_it_names(self, client: OpenAI, stack: str, missing: str) -> None:
        store = client.vector_stores.create(name="needs")
        file = client.files.create(file=("a.txt", b"a"), purpose="assistants")
        params = {"collection": store.id, "files": [file.id]}
        params |= {"collection": "vs-0"} if missing == "collection" else {"files": ["file-0"]}
        answer = httpx.post(f"{stack}/v1/jobs", json={"kind": "ingest", "params": params}, trust_env=False)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == missing


class TestCommandLine:
    def test_ingest_search_and_list(self, stack: str, tmp_path: Path) -> None:
        (tmp_path / "handbook.pdf").write_bytes(HANDBOOK)
        (tmp_path / "notes.txt").write_text("Squirrels hoard nuts.")
        files = [str(tmp_path / name) for name in ("handbook.pdf", "notes.txt")]
        lathe = functools.partial(run_lathe, stack)
        lathe("ingest", *files, "--collection", "office", "--watch")
        shown = lathe("collections", "search", "office", "days of holidays", "-n", "1")
        assert shown.startswith("handbook.pdf, p")
        assert "up to date" in lathe("ingest", *files, "-c", "office")
        listed = json.loads(lathe("collections", "--json"))
        [office] = [row for row in listed if row["name"] == "office"]
        assert office["file_counts"]["completed"] == 2
        assert "deleted" in lathe("collections", "delete", "office", "--yes")

    def test_ingest_for_a_model(self, client: OpenAI, stack: str, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("Squirrels hoard nuts.")
        lathe = functools.partial(run_lathe, stack, "ingest", str(tmp_path / "notes.txt"), "--model", "tiny")
        lathe("--watch")
        store = client.models.retrieve("tiny").model_extra["collection_id"]  # type: ignore[index]
        [row] = client.vector_stores.search(store, query="nuts").data
        assert row.filename == "notes.txt"
        assert "tiny is up to date" in lathe()
        assert "tiny is up to date" not in lathe("--language", "NL", "--watch")
        [document] = client.vector_stores.files.list(store)
        assert document.model_extra == {**(document.model_extra or {}), "language": "dutch"}
