"""OpenAI's own client, unmodified, with its `base_url` pointed here."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import FileObject

from db.errors import NotFound
from db.models import File
from db.queries.files import get_file
from db.session import SessionFactory, transaction
from db.settings import Settings
from retention import House, Removal
from retention.records import ExpiredFiles
from tests.api.conftest import FAQ, Publish
from tests.api.model_server import CHUNKS, VECTOR


@pytest.fixture
def client(api_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenAI]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with OpenAI(base_url=f"{api_url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_files(client: OpenAI) -> None:
    file = client.files.create(file=("faq.csv", FAQ), purpose="fine-tune")
    assert (file.object, file.filename, file.bytes, file.purpose) == (
        "file",
        "faq.csv",
        len(FAQ),
        "fine-tune",
    )
    assert client.files.retrieve(file.id).id == file.id
    assert client.files.content(file.id).read() == FAQ
    others = [client.files.create(file=(f"{n}.csv", FAQ), purpose="evals") for n in (2, 3)]
    listed = [row.id for row in client.files.list(purpose="evals", limit=1)]  # it pages by itself
    assert listed[:2] == [row.id for row in reversed(others)]
    assert client.files.delete(file.id).deleted is True
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_files_that_expire(client: OpenAI, session_factory: SessionFactory, settings: Settings) -> None:
    def create(seconds: int) -> FileObject:
        expiry: Any = {"anchor": "created_at", "seconds": seconds}
        return client.files.create(file=("faq.csv", FAQ), purpose="fine-tune", expires_after=expiry)

    kept, needed, gone = (create(3600) for _ in range(3))
    assert kept.expires_at == kept.created_at + 3600
    job = client.fine_tuning.jobs.create(model="org/base", training_file=needed.id)
    with transaction(session_factory) as session:
        for file in (needed, gone):
            session.get_one(File, file.id).expires_at = datetime.now(UTC)
    for file in (needed, gone):
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(file.id)
    assert gone.id not in [file.id for file in client.files.list(limit=3).data]
    rule, house = ExpiredFiles(), House(settings)
    with transaction(session_factory) as session:
        with pytest.raises(NotFound):
            get_file(session, needed.id, project_id="default")
        assert get_file(session, needed.id, project_id="default", also_expired=True).id == needed.id
    with transaction(session_factory) as session:
        found = [item.id for item in rule.find(session, house, None, 100).items]
    assert found == [gone.id]
    client.fine_tuning.jobs.cancel(job.id)
    with transaction(session_factory) as session:
        for item in rule.find(session, house, None, 100).items:
            assert rule.remove(session, house, item) == Removal.DONE
    assert not [file for file in (needed, gone) if (settings.storage_root / "files" / file.id).exists()]
    with pytest.raises(openai.BadRequestError) as caught:
        create(3599)
    assert caught.value.param == "expires_after[seconds]"


def test_models(client: OpenAI, publish: Publish) -> None:
    publish("stock")
    assert "stock" in [model.id for model in client.models.list()]
    assert client.models.retrieve("stock").object == "model"
    assert client.models.delete("stock").deleted is True
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("stock")
    assert caught.value.code == "model_not_found"
    assert caught.value.request_id


def test_chat(client: OpenAI, publish: Publish) -> None:
    publish("stock-chat")
    answer = client.chat.completions.create(
        model="stock-chat", messages=[{"role": "user", "content": "Hello"}]
    )
    assert answer.choices[0].message.content == "Answer"
    stream = client.chat.completions.create(
        model="stock-chat", messages=[{"role": "user", "content": "Hello"}], stream=True
    )
    words = [chunk.choices[0].delta.content for chunk in stream]
    assert words == [f"w{number} " for number in range(CHUNKS)]


def test_completions(client: OpenAI, publish: Publish) -> None:
    publish("stock-text")
    assert client.completions.create(model="stock-text", prompt="Once").choices[0].text == "more"


def test_an_error_amid_a_stream(client: OpenAI, publish: Publish) -> None:
    publish("broken-stock")
    stream = client.chat.completions.create(
        model="broken-stock", messages=[{"role": "user", "content": "Hello"}], stream=True
    )
    with pytest.raises(openai.APIError, match="stopped in mid-answer"):
        list(stream)


def test_embeddings_as_it_asks_for_them_and_as_floats(client: OpenAI) -> None:
    assert client.embeddings.create(model="default", input="a").data[0].embedding == VECTOR
    floats = client.embeddings.create(model="default", input=["a", "b"], encoding_format="float")
    assert [row.embedding for row in floats.data] == [VECTOR, VECTOR]


def test_errors_become_its_exceptions(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "Hello"}])
    assert caught.value.param == "model"
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=("x.csv", b""), purpose="fine-tune")


def test_a_conflict_is_not_repeated(api: httpx.Client, api_url: str) -> None:
    file_id = api.post("/v1/files", files={"file": ("faq.csv", FAQ)}).json()["id"]
    params = {"base_model": "org/base", "training_file": file_id, "name": "faq"}
    job_id = api.post("/v1/jobs", json={"kind": "fine_tune", "params": params}).json()["id"]
    asked: list[str] = []
    with OpenAI(base_url=f"{api_url}/v1", api_key="unused", max_retries=2) as client:
        client._client.event_hooks = {"request": [lambda request: asked.append(str(request.url))]}
        with pytest.raises(openai.ConflictError):
            client.files.delete(file_id)
    assert len(asked) == 1
    api.post(f"/v1/jobs/{job_id}/cancel")
