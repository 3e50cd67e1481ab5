"""A model's own documents: in a collection that is made when it is first needed, and goes with the name."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from db.models import Chunk, Collection, Document, Model
from db.queries.collections import own_collection
from db.session import SessionFactory, transaction
from tests.api.conftest import Publish, error_of, upload


def submit(api: httpx.Client, model: str, *file_ids: str, **fields: Any) -> httpx.Response:
    return api.post(f"/v1/models/{model}/documents", json={"file_ids": list(file_ids), **fields})


def documents(api: httpx.Client, model: str, **query: Any) -> dict[str, Any]:
    answer = api.get(f"/v1/models/{model}/documents", params=query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


class TestImport:
    def test_the_first_makes_a_collection_that_is_one_like_any_other(
        self, api: httpx.Client, publish: Publish
    ) -> None:
        publish("reader")
        assert api.get("/v1/models/reader").json()["collection_id"] is None
        assert documents(api, "reader")["data"] == []
        first, second = upload(api, name="a.csv"), upload(api, name="b.csv")
        answer = submit(api, "reader", first, second, attributes={"year": 2025})
        assert answer.status_code == 202
        batch = answer.json()
        assert api.get(f"/v1/jobs/{batch['id']}").json()["kind"] == "ingest"
        assert batch["file_counts"]["in_progress"] == 2
        store = batch["vector_store_id"]
        assert api.get("/v1/models/reader").json()["collection_id"] == store
        listed = {row["id"]: row for row in api.get("/v1/models").json()["data"]}
        assert listed["reader"]["collection_id"] == store
        assert api.get(f"/v1/vector_stores/{store}").json()["name"] == "reader"
        rows = api.get(f"/v1/vector_stores/{store}/files").json()["data"]
        assert {row["id"] for row in rows} == {first, second}
        assert all(row["attributes"] == {"year": 2025} for row in rows)
        assert submit(api, "reader", upload(api)).json()["vector_store_id"] == store

    def test_files_may_each_have_their_own(self, api: httpx.Client, publish: Publish) -> None:
        publish("each")
        file_id = upload(api)
        static = {"max_chunk_size_tokens": 64, "chunk_overlap_tokens": 8}
        file = {
            "file_id": file_id, "attributes": {"by": "Ann"}, "password": "sesame",
            "chunking_strategy": {"type": "static", "static": static},
        }  # fmt: skip
        answer = api.post("/v1/models/each/documents", json={"files": [file], "replace": True})
        assert api.get(f"/v1/jobs/{answer.json()['id']}").json()["params"]["replace"] is True
        row = api.get(f"/v1/models/each/documents/{file_id}").json()
        assert (row["attributes"], row["chunking_strategy"]["static"]) == ({"by": "Ann"}, static)
        assert "sesame" not in answer.text + str(row)

    def test_by_any_name_the_model_answers_to(self, api: httpx.Client, publish: Publish) -> None:
        publish("named", quantizations=("Q4_K_M", "Q8_0"))
        file_id = upload(api)
        for name in ("named@1", "named:Q8_0", "named%401%3AQ8_0"):
            assert submit(api, name, file_id).status_code == 202
            assert [row["id"] for row in documents(api, name)["data"]] == [file_id]
        assert error_of(submit(api, "named@7", file_id))["code"] == "model_not_found"

    def test_a_name_may_hold_slashes(
        self, api: httpx.Client, publish: Publish, session_factory: SessionFactory
    ) -> None:
        publish("team")
        with transaction(session_factory) as session:
            session.query(Model).filter_by(name="team").one().name = "team/sub/faq"
        file_id = upload(api)
        assert submit(api, "team/sub/faq", file_id).status_code == 202
        for name in ("team/sub/faq", "team%2Fsub%2Ffaq@1"):
            assert [row["id"] for row in documents(api, name)["data"]] == [file_id]
            assert api.get(f"/v1/models/{name}/documents/{file_id}").json()["id"] == file_id
        assert api.get("/v1/models/team/sub/faq").json()["name"] == "team/sub/faq"

    def test_two_first_ones_at_once_share_a_collection(self, api: httpx.Client, publish: Publish) -> None:
        publish("twice")
        files = [upload(api, name=f"{n}.csv") for n in range(8)]
        with ThreadPoolExecutor(8) as executor:
            answers = list(executor.map(lambda file_id: submit(api, "twice", file_id), files))
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.json()["vector_store_id"] for answer in answers}) == 1
        assert len(documents(api, "twice")["data"]) == 8

    @pytest.mark.parametrize(
        ("model", "body", "expected"),
        [
            ("nobody", {"file_ids": ["file-0"]}, (404, "model")),
            ("default", {"file_ids": ["file-0"]}, (400, "model")),
            ("strict", {"file_ids": ["file-0"]}, (400, "file_ids")),
            ("strict", {"file_ids": []}, (400, "file_ids")),
            ("strict", {}, (400, "file_ids")),
            ("strict", {"file_ids": ["../etc"]}, (400, "file_ids[0]")),
            ("strict", {"files": [{"file_id": "file-0000"}]}, (400, "files")),
        ],
    )
    def test_bad_ones_name_the_field_and_make_nothing(
        self, api: httpx.Client, publish: Publish, model: str, body: dict[str, Any], expected: tuple[int, str]
    ) -> None:
        publish("strict")
        answer = api.post(f"/v1/models/{model}/documents", json=body)
        assert (answer.status_code, error_of(answer)["param"]) == expected
        assert api.get("/v1/models/strict").json()["collection_id"] is None

    def test_a_batch_is_not_done_while_another_is_at_its_file(
        self, api: httpx.Client, publish: Publish
    ) -> None:
        publish("twice")
        file_id = upload(api)
        first, second = (submit(api, "twice", file_id).json() for _ in range(2))
        for batch in (first, second):
            path = f"/v1/vector_stores/{batch['vector_store_id']}/file_batches/{batch['id']}"
            told = api.get(path).json()
            assert (told["status"], told["file_counts"]["in_progress"]) == ("in_progress", 1)
            assert [row["id"] for row in api.get(f"{path}/files").json()["data"]] == [file_id]


class TestList:
    def test_comes_in_pages_and_by_status(self, api: httpx.Client, publish: Publish) -> None:
        publish("paged")
        files = [upload(api, name=f"{n}.csv") for n in range(5)]
        submit(api, "paged", *files)
        seen: list[str] = []
        further: dict[str, Any] = {}
        while len(seen) < 5:
            page = documents(api, "paged", limit=2, order="asc", **further)
            seen += [row["id"] for row in page["data"]]
            assert page["has_more"] == (len(seen) < 5)
            further = {"after": page["last_id"]}
        assert seen == files
        assert documents(api, "paged", filter="completed")["data"] == []
        assert len(documents(api, "paged", filter="in_progress")["data"]) == 5

    @pytest.mark.parametrize("order", ["asc", "desc"])
    def test_goes_on_behind_one_that_was_taken_out_meanwhile(
        self, api: httpx.Client, publish: Publish, order: str
    ) -> None:
        publish(f"emptied-{order}")
        files = [upload(api, name=f"{n}.csv") for n in range(5)]
        submit(api, f"emptied-{order}", *files)
        gone: list[str] = []
        further: dict[str, Any] = {}
        while page := documents(api, f"emptied-{order}", limit=2, order=order, **further)["data"]:
            for row in page:
                api.delete(f"/v1/models/emptied-{order}/documents/{row['id']}")
                gone.append(row["id"])
            further = {"after": gone[-1]}
        assert gone == (files if order == "asc" else files[::-1])


class TestDelete:
    def test_one_goes_and_its_file_stays(self, api: httpx.Client, publish: Publish) -> None:
        publish("one")
        gone, stays = upload(api, name="a.csv"), upload(api, name="b.csv")
        submit(api, "one", gone, stays)
        path = f"/v1/models/one/documents/{gone}"
        assert api.delete(path).json()["deleted"]
        assert [row["id"] for row in documents(api, "one")["data"]] == [stays]
        assert (api.get(path).status_code, api.delete(path).status_code) == (404, 404)
        assert api.get(f"/v1/files/{gone}").status_code == 200

    def test_all_go_and_the_collection_takes_any_model_again(
        self, api: httpx.Client, publish: Publish, session_factory: SessionFactory
    ) -> None:
        publish("all")
        assert api.delete("/v1/models/all/documents").json()["documents"] == 0
        store = submit(api, "all", upload(api), upload(api, b"b", "b.txt")).json()["vector_store_id"]
        with transaction(session_factory) as session:
            session.get_one(Collection, store).embedding_model = "an-old-one"
        answer = api.delete("/v1/models/all/documents").json()
        assert (answer["collection_id"], answer["documents"], answer["deleted"]) == (store, 2, True)
        assert documents(api, "all")["data"] == []
        left = api.get(f"/v1/vector_stores/{store}").json()
        assert (left["file_counts"]["total"], left["embedding_model"]) == (0, None)

    def test_another_models_documents_are_out_of_reach(self, api: httpx.Client, publish: Publish) -> None:
        publish("mine")
        publish("yours")
        file_id = upload(api)
        submit(api, "yours", file_id)
        submit(api, "mine", upload(api, b"b", "b.txt"))
        assert api.delete(f"/v1/models/mine/documents/{file_id}").status_code == 404
        assert len(documents(api, "yours")["data"]) == 1

    def test_the_collection_goes_with_the_name_and_the_answer_says_so(
        self, api: httpx.Client, publish: Publish, session_factory: SessionFactory
    ) -> None:
        publish("over")
        publish("over")
        file_id = upload(api)
        store = submit(api, "over", file_id).json()["vector_store_id"]
        assert api.delete("/v1/models/over@2").json()["collection_id"] is None
        assert len(documents(api, "over")["data"]) == 1
        assert api.delete("/v1/models/over").json()["collection_id"] == store
        assert api.get(f"/v1/vector_stores/{store}").status_code == 404
        assert api.get(f"/v1/files/{file_id}").status_code == 200
        with session_factory() as session:
            for table in (Document, Chunk):
                assert session.query(table).filter_by(collection_id=store).count() == 0

    def test_a_model_outlives_its_collection(
        self, api: httpx.Client, publish: Publish, session_factory: SessionFactory
    ) -> None:
        publish("outlives")
        store = submit(api, "outlives", upload(api)).json()["vector_store_id"]
        assert api.delete(f"/v1/vector_stores/{store}").status_code == 200
        assert api.get("/v1/models/outlives").json()["collection_id"] is None
        again = submit(api, "outlives", upload(api)).json()["vector_store_id"]
        assert again != store
        with session_factory() as session:
            found = own_collection(session, session.query(Model).filter_by(name="outlives").one())
            assert found is not None
            assert found.id == again
