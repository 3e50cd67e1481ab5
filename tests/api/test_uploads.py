"""`client.uploads` of OpenAI's own client, and what becomes of uploads that are given up."""

import hashlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import Upload as OpenAIUpload

from db.models import Upload, UploadPart
from db.session import SessionFactory, transaction
from db.settings import Settings
from db.storage import upload_folder
from retention import House, Removal
from retention.records import OldUploads
from tests.api.conftest import FAQ, error_of
from tests.api.keyed import Keyed

LINE = b"What is it?,It is that.\n"
LARGE = b"question,answer\n" + LINE * 60_000


@pytest.fixture
def client(api_url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{api_url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def begin(client: OpenAI, number: int) -> OpenAIUpload:
    return client.uploads.create(bytes=number, filename="faq.csv", mime_type="text/csv", purpose="fine-tune")


def folder_of(settings: Settings, upload_id: str) -> Path:
    return upload_folder(settings.storage_root, upload_id)


class TestComplete:
    def test_chunked_by_the_client_itself(self, client: OpenAI, settings: Settings, tmp_path: Path) -> None:
        path = tmp_path / "large.csv"
        path.write_bytes(LARGE)
        done = client.uploads.upload_file_chunked(
            file=path,
            mime_type="text/csv",
            purpose="fine-tune",
            part_size=500_000,
            md5=hashlib.md5(LARGE, usedforsecurity=False).hexdigest(),
        )
        assert (done.status, done.bytes, done.filename) == ("completed", len(LARGE), "large.csv")
        assert done.file is not None
        assert client.files.content(done.file.id).read() == LARGE
        assert client.files.retrieve(done.file.id).purpose == "fine-tune"
        assert not folder_of(settings, done.id).exists()
        job = client.fine_tuning.jobs.create(model="org/base", training_file=done.file.id)
        client.fine_tuning.jobs.cancel(job.id)

    def test_in_the_order_that_is_named_and_once(self, client: OpenAI) -> None:
        upload = begin(client, len(FAQ))
        second = client.uploads.parts.create(upload.id, data=FAQ[10:])
        first = client.uploads.parts.create(upload.id, data=FAQ[:10])
        assert (first.object, first.upload_id) == ("upload.part", upload.id)
        done = client.uploads.complete(upload.id, part_ids=[first.id, second.id])
        again = client.uploads.complete(upload.id, part_ids=[first.id, second.id])
        assert done.file is not None
        assert again == done
        assert client.files.content(done.file.id).read() == FAQ

    def test_what_does_not_fit_leaves_it_pending(self, client: OpenAI, settings: Settings) -> None:
        upload = begin(client, 20)
        part = client.uploads.parts.create(upload.id, data=FAQ[:10])
        other = client.uploads.parts.create(upload.id, data=FAQ[10:20])
        both = [part.id, other.id]
        wrong: list[tuple[list[str], str | openai.Omit, str]] = [
            ([part.id], openai.omit, "part_ids"),
            ([part.id, part.id], openai.omit, "part_ids[1]"),
            ([part.id, "part-0"], openai.omit, "part_ids[1]"),
            (both, "0" * 32, "md5"),
        ]
        for part_ids, md5, param in wrong:
            with pytest.raises(openai.BadRequestError) as caught:
                client.uploads.complete(upload.id, part_ids=part_ids, md5=md5)
            assert caught.value.param == param
        files = set((settings.storage_root / "files").iterdir())
        done = client.uploads.complete(upload.id, part_ids=both)
        assert done.file is not None
        new = {path.name for path in set((settings.storage_root / "files").iterdir()) - files}
        assert new == {done.file.id}  # refused attempts have left nothing


class TestSizes:
    def test_no_more_than_was_announced(self, client: OpenAI, settings: Settings) -> None:
        upload = begin(client, 15)
        client.uploads.parts.create(upload.id, data=FAQ[:10])
        with pytest.raises(openai.APIStatusError) as caught:
            client.uploads.parts.create(upload.id, data=FAQ[10:16])
        assert (caught.value.status_code, caught.value.param) == (413, "data")
        assert "at most 5 bytes" in caught.value.message
        assert len(list(folder_of(settings, upload.id).iterdir())) == 1

    def test_nor_than_a_file_may_have(self, client: OpenAI, settings: Settings) -> None:
        with pytest.raises(openai.APIStatusError) as caught:
            begin(client, settings.max_file_bytes + 1)
        assert (caught.value.status_code, caught.value.param) == (413, "bytes")

    def test_what_is_announced_counts_in_the_quota(self, keyed: Keyed) -> None:
        ours = keyed.client(keyed.project("announcing", max_bytes=100))
        body = {"filename": "f.csv", "bytes": 60, "mime_type": "text/csv", "purpose": "fine-tune"}
        upload = ours.post("/v1/uploads", json=body)
        assert upload.status_code == 200, upload.text
        assert error_of(ours.post("/v1/uploads", json=body))["code"] == "bytes_quota_exceeded"
        path = f"/v1/uploads/{upload.json()['id']}"
        part = ours.post(f"{path}/parts", files={"data": b"x" * 60}).json()["id"]
        assert ours.post(f"{path}/complete", json={"part_ids": [part]}).status_code == 200
        assert ours.post("/v1/uploads", json={**body, "bytes": 41}).status_code == 429
        assert ours.post("/v1/uploads", json={**body, "bytes": 40}).status_code == 200


class TestForms:
    @pytest.mark.parametrize(
        ("form", "param"),
        [
            ({"files": {"file": b"x"}}, "data"),
            ({"files": {"data": b"x"}, "data": {"purpose": "batch"}}, "purpose"),
            ({"files": {"data": b""}}, "data"),
        ],
    )
    def test_refused_with_the_part_that_is_meant(
        self, client: OpenAI, api: httpx.Client, form: dict[str, dict[str, bytes]], param: str
    ) -> None:
        answer = api.post(f"/v1/uploads/{begin(client, 5).id}/parts", **form)  # type: ignore[arg-type]
        assert (answer.status_code, error_of(answer)["param"]) == (400, param)


class TestGivingUp:
    def test_cancel(self, client: OpenAI, settings: Settings) -> None:
        upload = begin(client, 20)
        part = client.uploads.parts.create(upload.id, data=FAQ[:20])
        assert client.uploads.cancel(upload.id).status == "cancelled"
        assert client.uploads.cancel(upload.id).status == "cancelled"
        assert not folder_of(settings, upload.id).exists()
        with pytest.raises(openai.ConflictError, match="cancelled"):
            client.uploads.complete(upload.id, part_ids=[part.id])
        with pytest.raises(openai.ConflictError, match="cancelled"):
            client.uploads.parts.create(upload.id, data=b"x")

    def test_one_that_expired_is_cleared_away(
        self, client: OpenAI, settings: Settings, session_factory: SessionFactory
    ) -> None:
        upload, waiting = begin(client, 20), begin(client, 20)
        part = client.uploads.parts.create(upload.id, data=FAQ[:20])
        assert upload.expires_at - upload.created_at == 3600
        with transaction(session_factory) as session:
            row = session.get_one(Upload, upload.id)
            row.expires_at -= timedelta(hours=3)
        with pytest.raises(openai.ConflictError, match="expired"):
            client.uploads.complete(upload.id, part_ids=[part.id])
        rule, house = OldUploads(), House(settings)
        with transaction(session_factory) as session:
            found = {item.id: item for item in rule.find(session, house, None, 1000).items}
            assert waiting.id not in found
            assert found[upload.id].bytes == 20
            assert rule.remove(session, house, found[upload.id]) == Removal.DONE
        with transaction(session_factory) as session:
            assert session.get(Upload, upload.id) is None
            assert session.get(UploadPart, part.id) is None
        assert not folder_of(settings, upload.id).exists()
