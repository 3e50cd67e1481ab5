"""Two projects: neither sees, changes nor names what is the other's, whatever routes there are or will be."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from db.ids import new_id
from db.models import Artifact, StoredResponse
from db.session import transaction
from tests.api.conftest import error_of, upload
from tests.api.keyed import Keyed
from tests.rows import add_version
from tests.trainings import in_training

# What is open to all, or is the server's and nobody's.
OF_THE_SERVER = {"GET /healthz", "GET /readyz", "GET /v1/webhook_event_types", "POST /v1/embeddings"}
AUDIT = "/v1/audit"
PUBLIC_ADDRESS = "https://93.184.215.14/hook"


@dataclass
class Owned:
    """One of each thing that a project can have. `things` are by the names that paths call them."""

    client: httpx.Client
    things: dict[str, str]
    training_job: str
    checkpoint: str

    def ids(self) -> set[str]:
        """What no answer to somebody else may hold."""
        return {*self.things.values(), self.training_job, self.checkpoint} - {"faq", "metrics.json"}


def own_things(keyed: Keyed, project: str, tag: str) -> Owned:
    keyed.project(project)
    made = keyed.key(project, scopes=["admin"])
    client = keyed.with_key(made["key"])
    file_id = upload(client)
    endpoint = client.post(
        "/v1/webhook_endpoints", json={"name": tag, "url": PUBLIC_ADDRESS, "event_types": ["job.cancelled"]}
    ).json()
    store = client.post("/v1/vector_stores", json={"name": tag}).json()["id"]
    batch = client.post(f"/v1/vector_stores/{store}/file_batches", json={"file_ids": [file_id]}).json()["id"]
    job = client.post("/v1/jobs", json={"kind": "pretrain", "params": {"name": f"{tag}-base"}}).json()["id"]
    client.post(f"/v1/jobs/{job}/cancel")
    [delivery] = client.get(f"/v1/jobs/{job}/deliveries").json()["data"]
    body = {"kind": "fine_tune", "params": {"base_model": "tiny", "training_file": file_id, "name": tag}}
    submitted = client.post("/v1/jobs", json=body)
    assert submitted.status_code == 202, submitted.text
    training = in_training(submitted.json()["id"], keyed.settings.storage_root, keyed.sessions, project)
    checkpoint = training.checkpoint(10)
    _publish(keyed, project, job, model := f"{tag}-model")
    documents = client.post(f"/v1/models/{model}/documents", json={"file_ids": [file_id]})
    assert documents.status_code == 202, documents.text
    requests = client.post("/v1/files", files={"file": ("b.jsonl", b"{}")}, data={"purpose": "batch"}).json()
    wanted = {"input_file_id": requests["id"], "endpoint": "/v1/embeddings", "completion_window": "24h"}
    requests_job = client.post("/v1/batches", json=wanted).json()["id"]
    announced = {"filename": "large.csv", "bytes": 10, "mime_type": "text/csv", "purpose": "fine-tune"}
    upload_id = client.post("/v1/uploads", json=announced).json()["id"]
    things = {
        "response_id": _keep_response(keyed, project),
        "upload_id": upload_id,
        "file_id": file_id,
        "endpoint_id": endpoint["id"],
        "delivery_id": delivery["id"],
        "vector_store_id": store,
        "batch_id": batch,
        "batch_job_id": requests_job,
        "job_id": job,
        "fine_tuning_job_id": training.job_id,
        "model": model,
        "name": "metrics.json",
        "key_id": made["id"],
        "project_id": project,
    }
    return Owned(client, things, training.job_id, checkpoint)


def _publish(keyed: Keyed, project: str, job_id: str, name: str) -> None:
    """What a finished job leaves behind: a model, and an artifact."""
    (keyed.settings.storage_root / "jobs" / job_id).mkdir(parents=True)
    (keyed.settings.storage_root / "jobs" / job_id / "metrics.json").write_text("{}")
    with transaction(keyed.sessions) as session:
        add_version(session, name, {"backend_name": f"{name}-1"}, project=project, weights="w")
        path = f"jobs/{job_id}/metrics.json"
        kept = {"name": "metrics.json", "path": path, "bytes": 2, "sha256": "0" * 64}
        session.add(Artifact(job_id=job_id, step="train", attempt=1, **kept))


def _keep_response(keyed: Keyed, project: str) -> str:
    """A turn of a conversation that a model has answered."""
    response_id = new_id("resp")
    body = {
        "id": response_id, "object": "response", "created_at": 1, "completed_at": 1, "status": "completed",
        "model": "faq", "output": [], "error": None, "incomplete_details": None, "usage": None, "notices": [],
    }  # fmt: skip
    item = {"id": new_id("msg"), "type": "message", "role": "user", "status": "completed", "content": []}
    with transaction(keyed.sessions) as session:
        session.add(StoredResponse(id=response_id, project_id=project, input=[item], body=body, bytes=2))
    return response_id


@pytest.fixture(scope="module")
def theirs(keyed: Keyed) -> Owned:
    return own_things(keyed, "theirs", "theirs")


@pytest.fixture(scope="module")
def ours(keyed: Keyed) -> Owned:
    return own_things(keyed, "ours", "ours")


@dataclass(frozen=True)
class Operation:
    method: str
    path: str
    body: Any

    @property
    def names(self) -> list[str]:
        return re.findall(r"{(\w+)}", self.path)

    def send(self, client: httpx.Client, things: dict[str, str]) -> httpx.Response:
        return client.request(self.method, self.path.format(**things), json=self.body)


@pytest.fixture(scope="module")
def operations(keyed: Keyed) -> list[Operation]:
    schema = keyed.operator.get("/openapi.json").json()
    return [
        Operation(method.upper(), path, _example_of(schema, described))
        for path, methods in schema["paths"].items()
        for method, described in methods.items()
        if f"{method.upper()} {path}" not in OF_THE_SERVER
    ]


def _example_of(schema: dict[str, Any], operation: dict[str, Any]) -> Any:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return None
    if "example" in content:
        return content["example"]
    if "examples" in content:
        return next(iter(content["examples"].values()))["value"]
    named = schema["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
    return named["examples"][0]


class TestEveryRoute:
    def test_each_thing_that_a_path_names_is_among_those_that_are_tried(
        self, operations: list[Operation], theirs: Owned
    ) -> None:
        unknown = {name for operation in operations for name in operation.names} - set(theirs.things)
        assert not unknown, f"own_things() makes none of {unknown}: other projects could have them unseen"

    def test_shows_a_project_its_own(self, operations: list[Operation], ours: Owned) -> None:
        """Or else what follows would prove nothing."""
        for operation in operations:
            if operation.method == "GET":
                answer = operation.send(ours.client, ours.things)
                assert answer.status_code == 200, f"{operation.path}: {answer.text}"

    def test_knows_nothing_of_what_is_another_projects(
        self, operations: list[Operation], ours: Owned, theirs: Owned
    ) -> None:
        named = [operation for operation in operations if operation.names]
        assert len(named) > 40
        before = _seen(operations, theirs)
        for operation in named:
            # Each thing alone among our own, and all together.
            mixes = [{**ours.things, name: theirs.things[name]} for name in operation.names if name != "name"]
            for things in [theirs.things, *mixes]:
                answer = operation.send(ours.client, things)
                told = f"{operation.method} {operation.path}: {answer.status_code} {answer.text}"
                assert answer.status_code == 404, told
                assert error_of(answer)["code"] not in ("unknown_route", "method_not_allowed"), told
        assert _seen(operations, theirs) == before

    def test_lists_nothing_of_another_projects(
        self, operations: list[Operation], ours: Owned, theirs: Owned
    ) -> None:
        # The audit log tells also of what was asked for in vain: tests/api/test_audit.py has it.
        lists = [one for one in operations if not one.names and one.method == "GET" and one.path != AUDIT]
        assert len(lists) >= 8
        for operation in lists:
            answer = operation.send(ours.client, {})
            assert answer.status_code == 200, answer.text
            assert not [one for one in theirs.ids() if one in answer.text], operation.path


def _seen(operations: list[Operation], owned: Owned) -> dict[str, str]:
    """All that a project sees of its own, but for what looking changes by itself."""
    changing = re.compile(r'"(last_used_at|last_active_at|expires_at)":(\d+|null)')
    return {
        operation.path: changing.sub("", operation.send(owned.client, owned.things).text)
        for operation in operations
        if operation.method == "GET" and operation.path != AUDIT
    }


class TestBodies:
    """What a request names within its body."""

    @pytest.fixture
    def params(self, ours: Owned, theirs: Owned) -> dict[str, dict[str, Any]]:
        mine, foreign = ours.things, theirs.things
        train = {"base_model": "tiny", "training_file": mine["file_id"], "name": "x"}
        ingest = {"collection": mine["vector_store_id"], "files": [mine["file_id"]]}
        return {
            "training_file": {"kind": "fine_tune", "params": {**train, "training_file": foreign["file_id"]}},
            "validation_file": {
                "kind": "fine_tune", "params": {**train, "validation_file": foreign["file_id"]},
            },
            "training_files": {
                "kind": "fine_tune",
                "params": {
                    **train, "training_file": None, "training_files": [{"file": foreign["file_id"]}],
                },
            },
            "inspected_file": {
                "kind": "inspect", "params": {"base_model": "tiny", "training_file": foreign["file_id"]},
            },
            "inspected_base": {
                "kind": "inspect",
                "params": {"base_model": foreign["model"], "training_file": mine["file_id"]},
            },
            "base_model": {"kind": "fine_tune", "params": {**train, "base_model": foreign["model"]}},
            "start_from": {"kind": "pretrain", "params": {"name": "x", "start_from": foreign["model"]}},
            "source.file": {
                "kind": "pull", "params": {"source": {"file": foreign["file_id"]}, "name": "x"},
            },
            "model": {"kind": "push", "params": {"model": foreign["model"], "repository": "org/x"}},
            "checkpoint": {"kind": "export", "params": {"checkpoint": theirs.checkpoint}},
            "job": {"kind": "export", "params": {"job": theirs.training_job}},
            "collection": {"kind": "ingest", "params": {**ingest, "collection": foreign["vector_store_id"]}},
            "input_file": {
                "kind": "predict",
                "params": {"model": mine["model"], "input_file": foreign["file_id"], "prompt": "{question}"},
            },
            "asked_model": {
                "kind": "predict",
                "params": {"model": foreign["model"], "input_file": mine["file_id"], "prompt": "{question}"},
            },
            "files": {"kind": "ingest", "params": {**ingest, "files": [foreign["file_id"]]}},
        }  # fmt: skip

    @pytest.mark.parametrize(
        "field",
        ["training_file", "training_files", "inspected_file", "inspected_base", "validation_file",
         "base_model", "start_from", "checkpoint", "job", "collection",
         "files", "source.file", "model", "input_file", "asked_model"],
    )  # fmt: skip
    def test_jobs(self, ours: Owned, params: dict[str, dict[str, Any]], field: str) -> None:
        answer = ours.client.post("/v1/jobs", json=params[field])
        assert answer.status_code == 400, answer.text
        assert error_of(answer)["code"].endswith("not_found")

    def test_files_of_collections(self, ours: Owned, theirs: Owned) -> None:
        foreign = theirs.things["file_id"]
        own = f"/v1/vector_stores/{ours.things['vector_store_id']}"
        for path, body in (
            ("/v1/vector_stores", {"file_ids": [foreign]}),
            (f"{own}/files", {"file_id": foreign}),
            (f"{own}/file_batches", {"file_ids": [foreign]}),
            (f"/v1/models/{ours.things['model']}/documents", {"file_ids": [foreign]}),
        ):
            answer = ours.client.post(path, json=body)
            assert (answer.status_code, error_of(answer)["code"]) == (400, "file_not_found"), path

    def test_models_to_create_from(self, ours: Owned, theirs: Owned) -> None:
        answer = ours.client.post("/v1/models", json={"name": "mine", "from": theirs.things["model"]})
        assert (answer.status_code, error_of(answer)["code"]) == (400, "model_not_found")

    @pytest.mark.parametrize(
        "path", ["/v1/chat/completions", "/v1/completions", "/generate", "/agenerate", "/v1/responses"]
    )
    def test_models(self, ours: Owned, theirs: Owned, path: str) -> None:
        body = {"messages": [{"role": "user", "content": "?"}]} if "chat" in path else {"prompt": "?"}
        body = {"input": "?"} if "responses" in path else body
        answer = ours.client.post(path, json={**body, "model": theirs.things["model"]})
        assert (answer.status_code, error_of(answer)["code"]) == (404, "model_not_found")
        assert theirs.things["model"] not in answer.text.replace(f"no model '{theirs.things['model']}'", "")

    @pytest.mark.parametrize("by", ["id", "name"])
    def test_collections_to_answer_from(self, ours: Owned, theirs: Owned, by: str) -> None:
        named = theirs.things["vector_store_id"] if by == "id" else "theirs"
        for path, question in (
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "?"}]}),
            ("/generate", {"prompt": "?"}),
            ("/agenerate", {"prompt": "?"}),
        ):
            body = {**question, "model": ours.things["model"], "collections": [named]}
            answer = ours.client.post(path, json=body)
            assert answer.status_code in (400, 404), answer.text
            assert error_of(answer)["code"] in ("not_found", "collection_not_found")


class TestSharedGround:
    def test_requests_of_one_group_go_each_to_its_own_project(self, ours: Owned, theirs: Owned) -> None:
        def submit(number: int) -> tuple[Owned, str]:
            owner = (ours, theirs)[number % 2]
            body = {"kind": "pretrain", "params": {"name": f"grouped-{number}"}}
            return owner, owner.client.post("/v1/jobs", json=body).raise_for_status().json()["id"]

        with ThreadPoolExecutor(16) as pool:
            submitted = list(pool.map(submit, range(48)))
        for owner, job_id in submitted:
            other = theirs if owner is ours else ours
            assert owner.client.get(f"/v1/jobs/{job_id}").status_code == 200
            assert other.client.get(f"/v1/jobs/{job_id}").status_code == 404

    def test_one_idempotency_key_is_another_in_another_project(self, ours: Owned, theirs: Owned) -> None:
        body = {"kind": "pretrain", "params": {"name": "same"}}
        made = [
            owner.client.post("/v1/jobs", json=body, headers={"idempotency-key": "same"}).json()["id"]
            for owner in (ours, theirs, ours)
        ]
        assert made[0] == made[2] != made[1]

    def test_each_has_a_catalogue_of_its_own(self, keyed: Keyed, ours: Owned, theirs: Owned) -> None:
        keyed.project("fresh")
        names = {row["id"]: row["status"] for row in keyed.client("fresh").get("/v1/models").json()["data"]}
        assert names == {"tiny": "not made yet", "default": "ready"}
