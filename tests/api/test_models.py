"""Models over HTTP: listed, looked at by every name, and deleted with what serves them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, event

from db.settings import Settings
from tests.api.conftest import Publish, error_of, upload


def served(settings: Settings, prefix: str) -> list[str]:
    return sorted(path.stem for path in settings.served_models_dir.glob(f"{prefix}-*.gguf"))


@contextmanager
def statements_about_models() -> Iterator[list[str]]:
    """Those that any engine of this process executes in the block; who asks is remembered for a while."""
    found: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        if "FROM model" in statement:
            found.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield found
    event.remove(Engine, "before_cursor_execute", note)


class TestList:
    def test_has_ready_ones_those_not_made_and_the_embedding_model(
        self, api: httpx.Client, publish: Publish
    ) -> None:
        publish("listed", quantizations=("Q4_K_M", "Q8_0"))
        answer = api.get("/v1/models").json()
        assert answer["object"] == "list"
        rows = {row["id"]: row for row in answer["data"]}
        assert rows["tiny"]["status"] == "not made yet"
        assert rows["default"]["type"] == "embedding"
        row = rows["listed"]
        assert (row["object"], row["owned_by"], row["status"], row["version"]) == (
            "model",
            "lathe",
            "ready",
            1,
        )
        assert [file["name"] for file in row["versions"][0]["quantizations"]] == [
            "listed:Q4_K_M",
            "listed:Q8_0",
        ]

    def test_asks_no_more_however_many_there_are(self, api: httpx.Client, publish: Publish) -> None:
        publish("counted")
        with statements_about_models() as few:
            api.get("/v1/models")
        for name in ("counted", "counted-2", "counted-3"):
            publish(name)
        with statements_about_models() as many:
            api.get("/v1/models")
        assert 0 < len(many) == len(few)


class TestLookAt:
    def test_by_each_name(self, api: httpx.Client, publish: Publish) -> None:
        publish("seen", quantizations=("Q4_K_M", "Q8_0"))
        publish("seen", quantizations=("Q4_K_M",))
        assert [row["number"] for row in api.get("/v1/models/seen").json()["versions"]] == [1, 2]
        old = api.get("/v1/models/seen@1").json()
        assert (old["id"], old["version"]) == ("seen@1", 1)
        assert len(old["versions"][0]["quantizations"]) == 2
        one = api.get("/v1/models/seen@1:Q8_0").json()
        assert [row["quantization"] for row in one["versions"][0]["quantizations"]] == ["Q8_0"]

    @pytest.mark.parametrize("name", ["nobody", "org/name", "seen2@9", "..%2f..%2fetc"])
    def test_unknown_is_404(self, api: httpx.Client, publish: Publish, name: str) -> None:
        publish("seen2")
        answer = api.get(f"/v1/models/{name}")
        assert answer.status_code == 404
        assert error_of(answer)["code"] == "model_not_found"


class TestDelete:
    def test_a_name_goes_with_its_versions_and_their_files(
        self, api: httpx.Client, publish: Publish, settings: Settings
    ) -> None:
        publish("gone")
        publish("gone", quantizations=("Q4_K_M", "Q8_0"))
        assert len(served(settings, "gone")) == 3
        answer = api.delete("/v1/models/gone").json()
        assert answer == {
            "id": "gone", "object": "model", "deleted": True, "versions": [1, 2], "current_version": None,
            "collection_id": None,
        }  # fmt: skip
        assert served(settings, "gone") == []
        assert api.get("/v1/models/gone").status_code == 404

    def test_of_a_version_the_name_moves_back(
        self, api: httpx.Client, publish: Publish, settings: Settings
    ) -> None:
        for _ in range(3):
            publish("back")
        assert api.delete("/v1/models/back@3").json()["current_version"] == 2
        assert api.get("/v1/models/back").json()["version"] == 2
        assert api.delete("/v1/models/back@1").json()["current_version"] == 2
        assert served(settings, "back") == ["back-2-q4_k_m"]
        api.delete("/v1/models/back@2")
        assert api.get("/v1/models/back").status_code == 404

    def test_a_file_that_another_version_serves_stays(
        self, api: httpx.Client, publish: Publish, settings: Settings
    ) -> None:
        publish("same", backend_name="same-v-0123")
        publish("same", backend_name="same-v-0123")
        api.delete("/v1/models/same@1")
        assert served(settings, "same") == ["same-v-0123"]
        api.delete("/v1/models/same")
        assert served(settings, "same") == []

    def test_a_failed_one_lists_what_can_be_deleted(self, api: httpx.Client, publish: Publish) -> None:
        publish("left")
        unknown = api.delete("/v1/models/nobody")
        assert unknown.status_code == 404
        assert "What can be deleted:" in error_of(unknown)["message"]
        assert "left" in error_of(unknown)["message"]
        assert "tiny" not in error_of(unknown)["message"].partition("deleted:")[2]
        assert "left@1" in error_of(api.delete("/v1/models/left@7"))["message"]
        assert api.delete("/v1/models/tiny").status_code == 404

    @pytest.mark.parametrize("name", ["left2:Q4_K_M", "default"])
    def test_what_cannot_be_deleted_says_so(self, api: httpx.Client, publish: Publish, name: str) -> None:
        publish("left2")
        assert api.delete(f"/v1/models/{name}").status_code == 400

    def test_a_base_of_an_unfinished_job_stays(self, api: httpx.Client, publish: Publish) -> None:
        publish("needed", weights="jobs/x/model")
        params = {"base_model": "needed", "training_file": upload(api), "name": "from-needed"}
        job_id = api.post("/v1/jobs", json={"kind": "fine_tune", "params": params}).json()["id"]
        for name in ("needed", "needed@1"):
            answer = api.delete(f"/v1/models/{name}")
            assert answer.status_code == 409
            assert job_id in error_of(answer)["message"]
        api.post(f"/v1/jobs/{job_id}/cancel")
        assert api.delete("/v1/models/needed").status_code == 200
